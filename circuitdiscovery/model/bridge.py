"""`Model.to_bridge`: from a loaded model back to TransformerLens."""

from __future__ import annotations

import copy
from typing import Any

import torch

from circuitdiscovery.errors import CircuitDiscoveryError, one_line
from circuitdiscovery.model.build import weights_digest
from circuitdiscovery.model.load import quiet_transformers, read
from circuitdiscovery.model.model import Model
from circuitdiscovery.model.object import has_adapters, held, inner_bridge, is_wrapped, unwrapped
from circuitdiscovery.model.proof import prove
from circuitdiscovery.model.tokenizer import bridges_own


def bridge_of(model: Model) -> Any:
    """The TransformerBridge that a model was loaded from, or one of what it was loaded from.

    Raises:
        CircuitDiscoveryError: as in `Model.to_bridge`.
    """
    name, source = model.name, model.source
    if source is None:
        raise CircuitDiscoveryError(
            f"{name}: it has no bridge, because it was not loaded; load a folder, a hub name or an object"
        )
    with quiet_transformers():
        if source.path is not None:
            found, _ = read(source.path, name)
        else:
            found = _alive(model)
            if (bridge := inner_bridge(found)) is not None:
                return bridge
        digest = weights_digest(held(unwrapped(found), name).weights)
        if digest != model.digest:
            raise CircuitDiscoveryError(
                f"{name}: what it was loaded from has other weights by now; load it again, and take that "
                "model's bridge"
            )
        found = _sharing(found) if source.path is None else _placed(found, model.device, model.dtype)
        bridge = inner_bridge(found)
        return _checked(_wrapped(found, model) if bridge is None else bridge, model)


def _alive(model: Model) -> Any:
    """The object that was loaded, where it can be wrapped."""
    found = None if model.source is None else model.source.object
    if found is None:
        raise CircuitDiscoveryError(
            f"{model.name}: the object that it was loaded from is gone; keep it, or load it again"
        )
    if inner_bridge(found) is None and is_wrapped(found):
        raise CircuitDiscoveryError(
            f"{model.name}: it was loaded from the inside of a TransformerBridge; give load_model the bridge"
        )
    if inner_bridge(found) is None and has_adapters(found):
        raise CircuitDiscoveryError(
            f"{model.name}: TransformerLens does not take adapters; merge them first "
            "(model.merge_and_unload()) and load that"
        )
    return found


def _placed(hf: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """What was read from files, on a device and with weights in a dtype; its tables stay precise."""
    if (bridge := inner_bridge(hf)) is not None:
        return bridge.to(device, dtype, print_details=False)
    for parameter in hf.parameters():
        parameter.data = parameter.data.to(device, dtype)
    return torch.nn.Module.to(hf, device)  # what was read from GGUF refuses its own


def _sharing(hf: Any) -> Any:
    """Modules of their own around the weights of a model."""
    return copy.deepcopy(hf, {id(parameter): parameter for parameter in hf.parameters()})


def _wrapped(hf: Any, model: Model) -> Any:
    """The bridge around a Hugging Face model, whose modules it takes for its own."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    native = getattr(hf, "cfg", None)
    try:
        return build_bridge_from_module(
            hf,
            type(hf).__name__ if native is None else native.architecture,
            hf_config=hf.config if native is None else None,
            tl_config=native,
            tokenizer=bridges_own(model.tokenizer),
            model_name=model.name,
        )
    except Exception as error:  # TransformerLens' adapters each have their own
        raise CircuitDiscoveryError(
            f"{model.name}: TransformerLens cannot wrap a {type(hf).__name__}: {one_line(error)}"
        ) from error


def _checked(bridge: Any, model: Model) -> Any:
    """A bridge in evaluation mode that computes the same as the model."""
    inner = bridge.eval().original_model
    try:
        prove(model, inner, inner, held(inner, model.name).layers)
    except CircuitDiscoveryError as error:
        raise CircuitDiscoveryError(
            f"{model.name}: TransformerLens computes a {type(inner).__name__} otherwise ({error}); "
            "there is no bridge of it"
        ) from error
    return bridge
