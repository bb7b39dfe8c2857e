"""circuit-tracer's transcoders of MLPs: config.yaml and layer_N.safetensors for each layer.

The encoder's matrix is [features, d_in]. A threshold makes it a JumpReLU, and `activation: topk` in the
configuration takes the k largest; both leave a selected feature below zero as it is.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from circuitdiscovery.errors import CircuitDiscoveryError, shown
from circuitdiscovery.features.dictionary import Dictionary
from circuitdiscovery.features.files import field, made, read_tensors, read_yaml, taken
from circuitdiscovery.features.sites import location_of, transcoded

CONFIG = "config.yaml"
_KIND = "transcoder_set"
_THRESHOLD = "activation_function.threshold"
_JUMP = ("jumprelu", "jump_relu")
_FILE = re.compile(r"layer_(\d{1,5})\.safetensors")


def read(folder: Path, layer: int | None) -> Dictionary:
    """The transcoder of a layer.

    Raises:
        CircuitDiscoveryError: whatever is missing, contradictory or not computed, by name.
    """
    where = folder / CONFIG
    config = read_yaml(where)
    kind = field(config, "model_kind", str, where, "(none)")
    if kind != _KIND:
        raise CircuitDiscoveryError(f"{where}: model_kind {shown(kind)} is not computed; {_KIND} is")
    weights, layer = _weights(folder, layer, config, where)
    read, written = (
        location_of(f"blocks.{layer}.{_hook(config, name, where)}", where)
        for name in ("feature_input_hook", "feature_output_hook")
    )
    place = transcoded(read, written, where)
    tensors = read_tensors(weights)
    taken(tensors, weights, ("W_enc", "b_enc", "W_dec", "b_dec"), (_THRESHOLD, "W_skip"))
    threshold = tensors.get(_THRESHOLD)
    k = _k(config, where)
    told = config.get("activation")
    if threshold is not None and told in ("relu", "topk"):
        raise CircuitDiscoveryError(f"{weights}: {_THRESHOLD} is not used where the activation is {told}")
    if threshold is None and told in _JUMP:
        raise CircuitDiscoveryError(f"{weights}: {_THRESHOLD} is missing, but the activation is {told}")
    if threshold is not None and threshold.dim() == 0:
        threshold = threshold.expand_as(tensors["b_enc"]).contiguous()
    return made(
        weights,
        kind="topk" if k is not None else "relu" if threshold is None else "jumprelu",
        site=place.site,
        reads=place.reads,
        W_enc=tensors["W_enc"],
        b_enc=tensors["b_enc"],
        W_dec=tensors["W_dec"],
        b_dec=tensors["b_dec"],
        threshold=threshold,
        k=k,
        W_skip=tensors.get("W_skip"),
        signed=k is not None or (threshold is not None and bool((threshold < 0).any())),
        inner=place.inner,
    )


def _hook(config: dict[str, Any], name: str, where: Path) -> str:
    found = field(config, name, str, where, "")
    if not found:
        raise CircuitDiscoveryError(f"{where}: field {name!r} is missing")
    return found


def _k(config: dict[str, Any], where: Path) -> int | None:
    """How many features are taken; None where it is not topk."""
    activation = field(config, "activation", str, where, "")
    if activation not in ("", "relu", "topk", *_JUMP):
        raise CircuitDiscoveryError(f"{where}: the activation {shown(activation)} is not computed")
    if activation != "topk":
        return None
    found = field(config, "k", int, where, None)
    if found is None:
        raise CircuitDiscoveryError(f"{where}: k of topk is missing")
    return found


def _weights(folder: Path, layer: int | None, config: dict[str, Any], where: Path) -> tuple[Path, int]:
    """The file of a layer, and the layer: the only one where none is given."""
    files = {int(match[1]): each for each in folder.iterdir() if (match := _FILE.fullmatch(each.name))}
    if not files:
        why = f"; {CONFIG} lists files elsewhere: give their own folders" if config.get("transcoders") else ""
        raise CircuitDiscoveryError(f"{where}: there is no layer_N.safetensors beside it{why}")
    if layer is None and len(files) > 1:
        raise CircuitDiscoveryError(f"{folder}: give layer=; there are {', '.join(map(str, sorted(files)))}")
    layer = next(iter(files)) if layer is None else layer
    if layer not in files:
        raise CircuitDiscoveryError(
            f"{folder}: there is no layer {layer}; there are {', '.join(map(str, sorted(files)))}"
        )
    return files[layer], layer
