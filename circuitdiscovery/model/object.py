"""A model that a user holds: what is wrapped around it is taken off, adapters are merged
in a copy, and the rest is refused by name.

The user's object is never changed: not its weights, not its modes, not its hooks.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from circuitdiscovery.errors import CircuitDiscoveryError, one_line
from circuitdiscovery.model.architectures.architecture import ATTENTION
from circuitdiscovery.model.architectures.native import KIND, NativeConfig
from circuitdiscovery.model.build import architecture_of, check_supported

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_BRIDGE = "TransformerBridge"  # TransformerLens' class, which is known without its import of seconds
_WRAPPED = "._original_component"  # what it puts into names
_SHARDED = ("FullyShardedDataParallel", "FlatParameter", "DTensor", "DeepSpeedEngine")
_GATHER = "the weights are sharded over processes; gather them into a plain model first, and give that"
_PRECISION = "load it again in float32 or bfloat16, without a quantization config"


@dataclass(frozen=True)
class Held:
    """A Hugging Face model that a user holds.

    Args:
        own: the user's own model, whose forward counts.
        plain: the same, or a copy with its adapters merged.
        config: Hugging Face's, or what stands for it.
        weights: by Hugging Face's names, in the dtype and on the device that they have.
        layers: where `plain` holds its layers.
    """

    own: Any
    plain: Any
    config: Any
    weights: dict[str, Tensor]
    layers: str


def unwrapped(source: Any) -> Any:
    """What a TransformerBridge, torch.compile or a data-parallel wrapper holds; anything else as it is.

    Raises:
        CircuitDiscoveryError: what holds no Hugging Face model, with where one may be found in it.
    """
    *_, found = _inwards(source)
    if isinstance(found, type) or _kind(found) is None or not isinstance(found, nn.Module):
        valid = (
            "a name, a folder, a Hugging Face causal language model, a pair (model, tokenizer) or a "
            "TransformerBridge"
        )
        raise CircuitDiscoveryError(
            f"{type(source).__name__} is not a model: give {_inside(source) or valid}"
        )
    return found


def _inwards(source: Any) -> Iterator[Any]:
    """An object, what it wraps, what that wraps, ..."""
    found = source
    while True:
        if type(found).__name__ in _SHARDED:
            raise CircuitDiscoveryError(f"{type(found).__name__}: {_GATHER}")
        yield found
        parts = getattr(found, "__dict__", {}).get("_modules", {}) if isinstance(found, nn.Module) else {}
        inner = parts.get("_orig_mod") or (parts.get("module") if _kind(found) is None else None)
        if inner is None and not isinstance(found, type):
            inner = getattr(found, "original_model", None)
        if inner is None or inner is found:
            return
        found = inner


def inner_bridge(source: Any) -> Any:
    """The TransformerBridge that an object is or wraps; None where there is none."""
    return next((each for each in _inwards(source) if type(each).__name__ == _BRIDGE), None)


def is_wrapped(model: Any) -> bool:
    """Whether a bridge has wrapped a model's modules."""
    return any(_WRAPPED in f".{name}" for name, _ in model.named_modules())


def _kind(model: Any) -> Any:
    native = getattr(getattr(model, "cfg", None), "architecture", None) == "TransformerLensNative"
    return KIND if native else getattr(getattr(model, "config", None), "model_type", None)


def _config(model: Any, name: str) -> Any:
    """The config of a model as the loader reads it.

    Raises:
        CircuitDiscoveryError: a feature of TransformerLens' own models that is not supported.
    """
    if _kind(model) != KIND:
        return model.config
    try:
        return NativeConfig(model.cfg)
    except CircuitDiscoveryError as error:
        raise CircuitDiscoveryError(f"{name}: {error}") from None


def _inside(source: Any) -> str | None:
    """Where a model may be found in something that is not one."""
    attributes = vars(source) if hasattr(source, "__dict__") and not isinstance(source, type) else {}
    for name, value in {**attributes, **attributes.get("_modules", {})}.items():
        if isinstance(value, nn.Module) and _kind(value) is not None:
            return f"its .{name}, which is one ({type(value).__name__})"
    return None


def held(source: Any, name: str) -> Held:
    """What the loader needs of a model that `unwrapped` gave.

    Raises:
        CircuitDiscoveryError: an architecture or a feature that is not supported; adapters that cannot be
            merged; no head; weights that are not in memory, sharded or quantized.
    """
    _check_in_memory(source, name)
    base = _base(source)
    config = _config(base, name)
    check_supported(config, name)
    plain = _merged(source, name) if has_adapters(source) else source
    state = _state(plain, config, name)
    architecture = architecture_of(config.model_type)
    if (prefix := _prefix(state, architecture.embedding)) is None:
        raise CircuitDiscoveryError(f"{name}: {_headless(plain, state)}")
    weights = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if not any(key in weights for key in architecture.unembedding):
        raise CircuitDiscoveryError(f"{name}: {_headless(plain, state)}")
    return Held(source, plain, config, weights, prefix + architecture.layers)


def _prefix(state: dict[str, Tensor], embedding: str) -> str | None:
    """What stands in front of Hugging Face's names."""
    return min(
        (key.removesuffix(embedding) for key in state if f".{key}".endswith(f".{embedding}")),
        key=len,
        default=None,
    )


def _headless(model: Any, state: dict[str, Tensor]) -> str:
    head = [key for key in state if key.startswith(("score.", "classifier.", "qa_outputs."))]
    if head or getattr(model, "get_output_embeddings", lambda: None)() is None:
        return (
            f"there is no head that predicts the next token in a {type(model).__name__}; load it with "
            "AutoModelForCausalLM"
        )
    return f"the weights are not named as transformers names those of {model.config.model_type!r}"


# ------------------------------------------------------------------ weights


def _check_in_memory(model: Any, name: str) -> None:
    for key, value in [*model.named_parameters(), *model.named_buffers()]:
        if value.is_meta:
            raise CircuitDiscoveryError(
                f"{name}: the weight {key} is not in memory (device meta: offloaded, or never loaded); "
                "load the model without offloading, such as with device_map=None"
            )
        if type(value).__name__ in _SHARDED:
            raise CircuitDiscoveryError(f"{name}: {_GATHER}")


def _state(model: Any, config: Any, name: str) -> dict[str, Tensor]:
    """The weights under Hugging Face's names, also where a bridge has wrapped the modules."""
    try:
        state = model.state_dict()
    except Exception as error:  # quantized modules have states of their own
        raise CircuitDiscoveryError(f"{name}: its weights cannot be read: {one_line(error)}") from error
    if any(_WRAPPED in key for key in state):
        state = {key.replace(_WRAPPED, ""): value for key, value in state.items()}
        if config.model_type != KIND:  # whose names are not known beforehand
            state = {key: state[key] for key in _expected(config)}
    for key, value in state.items():
        if type(value) is not Tensor or value.dtype not in DTYPES.values():
            kind = value.dtype if type(value) is Tensor else type(value).__name__
            raise CircuitDiscoveryError(
                f"{name}: quantized weights ({key} is {kind}) are not supported; {_PRECISION}"
            )
    return state


def _expected(config: Any) -> list[str]:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return list(
            AutoModelForCausalLM.from_config(
                config, trust_remote_code=False, attn_implementation=ATTENTION
            ).state_dict()
        )


# ------------------------------------------------------------------ adapters


def _base(model: Any) -> Any:
    """The Hugging Face model inside of a PeftModel."""
    return (
        model.get_base_model()
        if hasattr(model, "get_base_model") and hasattr(model, "peft_config")
        else model
    )


def has_adapters(model: Any) -> bool:
    """Whether adapters are in a model or around it."""
    return _base(model) is not model or any(map(_is_adapter, model.modules()))


def _is_adapter(module: nn.Module) -> bool:
    return _is_layer(module) or _is_saved(module)


def _is_layer(module: nn.Module) -> bool:
    """One of PEFT's layers around a layer, such as LoRA's."""
    return hasattr(module, "base_layer") and hasattr(module, "get_base_layer") and hasattr(module, "merge")


def _is_saved(module: nn.Module) -> bool:
    """PEFT's wrapper of a layer that was trained as a whole."""
    return isinstance(getattr(module, "modules_to_save", None), nn.ModuleDict) and hasattr(
        module, "original_module"
    )


def _merged(model: Any, name: str) -> Any:
    """A copy of the model with its adapters merged into its weights, in float32 at least."""
    prompted = [
        kind
        for kind in getattr(model, "peft_config", {}).values()
        if getattr(kind, "is_prompt_learning", False)
    ]
    if prompted:
        raise CircuitDiscoveryError(
            f"{name}: a learnt prompt ({prompted[0].peft_type}) cannot be merged into weights; give the "
            "base model"
        )
    try:
        with torch.no_grad():
            plain = copy.deepcopy(_base(model))
            wide = any(parameter.dtype == torch.float64 for parameter in plain.parameters())
            plain = nn.Module.double(plain) if wide else nn.Module.float(plain)
            for parent, child, module in list(_adapters(plain)):
                setattr(parent, child, _without(module))
    except Exception as error:  # each kind of adapter has its own
        raise CircuitDiscoveryError(
            f"{name}: its adapters cannot be merged ({one_line(error)}); merge them first: "
            "model.merge_and_unload()"
        ) from error
    for key in ("peft_config", "_hf_peft_config_loaded"):
        plain.__dict__.pop(key, None)
    return plain


def _adapters(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    for parent in model.modules():
        if not _is_adapter(parent):
            yield from (
                (parent, child, module) for child, module in parent.named_children() if _is_adapter(module)
            )


def _without(module: Any) -> Any:
    """The layer inside of an adapter, with what it adds where it is switched on."""
    off = bool(getattr(module, "disable_adapters", False))
    if _is_saved(module):
        active = getattr(module, "active_adapters", None) or getattr(module, "active_adapter", None)
        active = [active] if isinstance(active, str) else list(active or ())
        chosen = [each for each in active if each in module.modules_to_save]
        return module.original_module if off or not chosen else module.modules_to_save[chosen[0]]
    if not off:
        module.merge(safe_merge=True)
    return module.get_base_layer()
