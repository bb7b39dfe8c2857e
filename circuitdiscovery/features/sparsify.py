"""EleutherAI's sparsify: cfg.json and sae.safetensors, in a folder that is named after the module of Hugging
Face whose output was encoded (`layers.5.mlp`, `h.5`), and many such folders in one.

A transcoder of an MLP reads the module's input and writes its output, before the norm that Gemma 2 and 3 have
there.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from circuitdiscovery.errors import CircuitDiscoveryError, shown
from circuitdiscovery.features.dictionary import Dictionary
from circuitdiscovery.features.files import field, made, read_config, read_tensors, sized, taken
from circuitdiscovery.features.sites import Location, is_module, location_of, transcoded, what_is_read

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
_READ = ("activation", "signed", "transcode", "skip_connection", "d_in", "num_latents", "k")
_OF_TRAINING = ("expansion_factor", "normalize_decoder", "multi_topk")
# what is without effect unless gram_lookup or matching_pursuit is on, which are not computed
_BESIDE = ("lookup_max_order", "gram_table_hash", "mp_untie")


def folders(folder: Path) -> list[Path]:
    """The folders in a folder that have a dictionary each."""
    return sorted(each.parent for each in folder.glob(f"*/{WEIGHTS}"))


def read_layer(folder: Path, layer: int | None, reads: str | None) -> Dictionary:
    """The dictionary of a layer, of a folder with one folder for each place."""
    found = folders(folder)
    names = ", ".join(each.name for each in found)
    if layer is None and len(found) > 1:
        raise CircuitDiscoveryError(
            f"{folder}: give layer=, or the folder of one of its dictionaries: {names}"
        )
    fitting = [
        each for each in found if layer is None or layer in map(int, re.findall(r"\d{1,5}", each.name))
    ]
    if len(fitting) != 1:
        what = "several dictionaries" if fitting else "no dictionary"
        raise CircuitDiscoveryError(f"{folder}: {what} of layer {layer}; give the folder of one: {names}")
    return read(fitting[0], fitting[0].name, reads)


def read(folder: Path, module: str, reads: str | None) -> Dictionary:
    """The dictionary of a folder that is named after a module, or otherwise.

    Raises:
        CircuitDiscoveryError: whatever is missing, contradictory or not computed, by name.
    """
    where, weights = folder / CONFIG, folder / WEIGHTS
    if not where.is_file():
        raise CircuitDiscoveryError(f"{folder}: {WEIGHTS} is there, but {CONFIG} beside it is missing")
    config = read_config(where)
    _check(config, where)
    transcode = field(config, "transcode", bool, where, False)
    skip = field(config, "skip_connection", bool, where, False)
    place = _place(module, transcode, where)
    tensors = read_tensors(weights)
    taken(
        tensors, weights, ("encoder.weight", "encoder.bias", "W_dec", "b_dec", *(("W_skip",) if skip else ()))
    )
    encoder = tensors["encoder.weight"]
    if encoder.dim() != 2:
        raise CircuitDiscoveryError(
            f"{weights}: encoder.weight is a matrix, not of shape {list(encoder.shape)}"
        )
    sized(config, where, {"d_in": encoder.shape[1]})
    if field(config, "num_latents", int, where, 0):
        sized(config, where, {"num_latents": len(encoder)})
    k = field(config, "k", int, where, None)
    if k is None:
        raise CircuitDiscoveryError(f"{where}: k is missing")
    return made(
        weights,
        kind="topk",
        site=place.site if place else None,
        reads=what_is_read(place, transcode, reads or ("normed" if transcode else "output"), where),
        W_enc=encoder,
        b_enc=tensors["encoder.bias"],
        W_dec=tensors["W_dec"],
        b_dec=tensors["b_dec"],
        k=k,
        W_skip=tensors.get("W_skip"),
        subtracts_b_dec=not transcode,
        inner=place.inner if place else transcode,
    )


def _check(config: dict[str, Any], where: Path) -> None:
    """Refuse what is not computed: any field that is on and not known to change nothing."""
    activation = field(config, "activation", str, where, "topk")
    if activation != "topk":
        raise CircuitDiscoveryError(f"{where}: the activation {shown(activation)} is not computed; topk is")
    if field(config, "signed", bool, where, False):
        raise CircuitDiscoveryError(f"{where}: signed features, the largest by magnitude, are not computed")
    known = (*_READ, *_OF_TRAINING, *_BESIDE)
    if other := [name for name, value in config.items() if value and name not in known]:
        raise CircuitDiscoveryError(
            f"{where}: {shown(other[0])} is on: what it changes is not computed; "
            f"known fields are {', '.join(known)}"
        )


def _place(module: str, transcode: bool, where: Path) -> Location | None:
    """Where it stands, by the folder's name; None where that is not the name of a module."""
    if not is_module(module):
        return None
    written = location_of(f"{module}.output", where)
    return transcoded(location_of(f"{module}.input", where), written, where) if transcode else written
