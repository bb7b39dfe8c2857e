"""Gemma Scope (params.npz, for Gemma 2) and Gemma Scope 2 (config.json and params.safetensors, for Gemma 3).

Both are JumpReLU. The first's file does not say where it stands, and its transcoders have the same arrays as
its autoencoders; the second's says it by the module of Hugging Face. The second's skip connection is stored
as [d_in, d_out]: activations are multiplied with it from the left.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from circuitdiscovery.errors import CircuitDiscoveryError, shown
from circuitdiscovery.features.dictionary import Dictionary
from circuitdiscovery.features.files import (
    field,
    made,
    matrix,
    read_config,
    read_npz,
    read_tensors,
    sized,
    taken,
)
from circuitdiscovery.features.sites import location_of, transcoded

ARRAYS, WEIGHTS, CONFIG = "params.npz", "params.safetensors", "config.json"
_SKIP = "affine_skip_connection"


def read_first(folder: Path, reads: str | None) -> Dictionary:
    """A dictionary of Gemma Scope, whose site the file does not say.

    Args:
        reads: what it reads; None: what it writes, unless the folder's path says that it is a transcoder.

    Raises:
        CircuitDiscoveryError: whatever is missing or contradictory.
    """
    path = folder / ARRAYS
    if reads is None and any("transcoder" in part for part in folder.absolute().parts):
        raise CircuitDiscoveryError(
            f"{path}: the path names a transcoder, but the file does not say what it reads; give site= and "
            "reads= ('normed without gain' for Gemma Scope's own)"
        )
    arrays = read_npz(path)
    taken(arrays, path, ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"))
    rest: dict[str, Any] = {**arrays, "W_enc": matrix(arrays, "W_enc", path)}
    return made(path, kind="jumprelu", site=None, reads=reads or "output", **rest)


def read_second(folder: Path) -> Dictionary:
    """A dictionary of Gemma Scope 2.

    Raises:
        CircuitDiscoveryError: whatever is missing, contradictory or not computed, by name.
    """
    where, path = folder / CONFIG, folder / WEIGHTS
    config = read_config(where)
    architecture = field(config, "architecture", str, where, "(none)")
    if architecture != "jump_relu":
        raise CircuitDiscoveryError(
            f"{where}: architecture {shown(architecture)} is not computed; jump_relu is"
        )
    hooks = [field(config, name, str, where, "") for name in ("hf_hook_point_in", "hf_hook_point_out")]
    if not hooks[0]:
        raise CircuitDiscoveryError(f"{where}: field 'hf_hook_point_in' is missing")
    place = location_of(hooks[0], where)
    transcoder = hooks[1] not in ("", hooks[0])
    if transcoder:
        place = transcoded(place, location_of(hooks[1], where), where)
    elif place.reads != "output":
        raise CircuitDiscoveryError(f"{where}: an autoencoder of {hooks[0]} is not supported")
    tensors = read_tensors(path)
    skip = (_SKIP,) if field(config, "affine_connection", bool, where, _SKIP in tensors) else ()
    taken(tensors, path, ("w_enc", "w_dec", "b_enc", "b_dec", "threshold", *skip))
    encoder = matrix(tensors, "w_enc", path)
    sized(config, where, {"width": len(encoder)})
    return made(
        path,
        kind="jumprelu",
        site=place.site,
        reads=place.reads,
        W_enc=encoder,
        b_enc=tensors["b_enc"],
        W_dec=tensors["w_dec"],
        b_dec=tensors["b_dec"],
        threshold=tensors["threshold"],
        W_skip=matrix(tensors, _SKIP, path) if skip else None,
        inner=place.inner,
    )
