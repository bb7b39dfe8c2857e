"""Where each layer's weights go, for models larger than one device holds.

Layers are spread, each whole on one device; embeddings, the last norm and the unembedding are on the first
one, where runs begin and end and where what a search keeps of all sources lies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import torch

from circuitdiscovery.errors import CircuitDiscoveryError, one_line, shown

Placement = Callable[[str], torch.device]  # of a weight's name
_KINDS = ("auto", "balanced", "sequential")


def placement(
    hf: Any, layers: str, prefix: str, asked: str | Mapping[str, Any], dtype: torch.dtype, name: str
) -> Placement:
    """Where each weight of a model goes.

    Args:
        hf: the Hugging Face model.
        layers: where it holds its layers.
        prefix: what the names of the layers' weights begin with.
        asked: as `load_model`'s `device_map`.
        dtype: what the weights will be.
        name: what messages call the model.

    Raises:
        CircuitDiscoveryError: another kind of map; no accelerate; a device that is not there; a layer that no
            name is for.
    """
    count = len(hf.get_submodule(layers))
    found = _inferred(hf, asked, dtype, name) if isinstance(asked, str) else asked
    if not isinstance(found, Mapping) or not found:
        raise CircuitDiscoveryError(
            f"device_map is {', '.join(_KINDS)} or a mapping from modules to devices, not {shown(asked)}"
        )
    devices = [_device(_of(f"{layers}.{layer}", found, name)) for layer in range(count)]

    def where(weight: str) -> torch.device:
        number = weight.removeprefix(f"{prefix}.").partition(".")[0]
        inside = weight.startswith(f"{prefix}.") and number.isdigit()
        return devices[int(number)] if inside else devices[0]

    return where


def _inferred(hf: Any, kind: str, dtype: torch.dtype, name: str) -> Mapping[str, Any]:
    """accelerate's map, by the free memory of each device."""
    if kind not in _KINDS:
        raise CircuitDiscoveryError(
            f"no device_map {shown(kind)}; valid: {', '.join(_KINDS)}, or a mapping from modules to devices"
        )
    try:
        accelerate: Any = import_module("accelerate")
        utils: Any = import_module("accelerate.utils")
    except ImportError:
        raise CircuitDiscoveryError(
            f"device_map={kind!r} needs accelerate: pip install circuitdiscovery[large]; or give a mapping"
        ) from None
    whole = getattr(hf, "_no_split_modules", None)
    how: dict[str, Any] = {"no_split_module_classes": list(whole or ()), "dtype": dtype}
    try:
        memory = None
        if kind != "sequential":
            memory = utils.get_balanced_memory(hf, **how)
        return accelerate.infer_auto_device_map(hf, max_memory=memory, **how)
    except Exception as error:  # accelerate's own
        raise CircuitDiscoveryError(f"{name}: accelerate finds no device_map: {one_line(error)}") from error


def _of(layer: str, found: Mapping[str, Any], name: str) -> Any:
    """The device of a layer: of its own name, else of a module around it, else where its parts are."""
    at = layer
    while at not in found and at:
        at = at.rpartition(".")[0]
    if at in found:
        return found[at]
    parts = {str(value): value for key, value in found.items() if key.startswith(f"{layer}.")}
    if len(parts) != 1:
        why = "is spread over several devices" if parts else "has no device"
        raise CircuitDiscoveryError(f"{name}: {layer} {why} in device_map: a layer is whole on one")
    return next(iter(parts.values()))


def _device(value: Any) -> torch.device:
    if value == "disk":
        raise CircuitDiscoveryError(
            "device_map: the model does not fit, for weights on the disk are not computed with: load it in "
            "bfloat16, or on more devices"
        )
    try:
        device = torch.device("cuda", value) if type(value) is int else torch.device(value)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        raise CircuitDiscoveryError(f"device_map: no device {shown(value)}: {one_line(error, 80)}") from error
    return device
