"""A Hugging Face config and the tensors by their names become one `Model`; what
the forward does not compute is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from typing import Any

import torch

from circuitdiscovery.errors import CircuitDiscoveryError, one_line, shown
from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.model.architectures.architecture import Architecture, Weights, activation, has_weights
from circuitdiscovery.model.block import Block
from circuitdiscovery.model.model import Model
from circuitdiscovery.model.norm import Norm
from circuitdiscovery.model.positions import Alibi, Rotary
from circuitdiscovery.registry import ARCHITECTURES


def architecture_of(kind: str) -> Architecture:
    """The description of a family, by Hugging Face's `model_type`."""
    return ARCHITECTURES[kind].load()


# what our forward does not compute, by the name a reader of the model's paper knows it by
_POST_NORM, _MOE = "post-norm (a norm after attention or the MLP)", "mixture of experts"
_KNOWN_REASONS = {
    "glm4": _POST_NORM,
    "gemma3": "images as well as text; of a folder its text part is loaded",
    **dict.fromkeys(("granitemoe", "qwen3_next"), _MOE),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3"), "multi-head latent attention"),
    **dict.fromkeys(("mamba", "mamba2"), "a state space instead of attention"),
    **dict.fromkeys(("t5", "bert"), "an encoder"),
}
_ROPE = ("default", "linear", "llama3", "yarn", "dynamic", "longrope")


def check_kind(kind: Any, name: str) -> None:
    """Refuse, by name, a family (`model_type`) that the forward does not compute."""
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        reason = _KNOWN_REASONS.get(kind) if isinstance(kind, str) else None
        raise CircuitDiscoveryError(
            f"{name}: architecture {kind!r} is not supported{f' ({reason})' if reason else ''}; "
            f"supported: {', '.join(ARCHITECTURES)}"
        )


def check_supported(config: Any, name: str) -> None:
    """Refuse, by name, what the forward does not compute."""
    try:
        _check(config, name)
    except CircuitDiscoveryError:
        raise
    except Exception as error:  # each of its fields can be wrong in its own way
        raise CircuitDiscoveryError(f"{name}: its config cannot be used: {one_line(error)}") from error


def _check(config: Any, name: str) -> None:
    check_kind(config.model_type, name)
    if getattr(config, "add_cross_attention", False):
        raise CircuitDiscoveryError(f"{name}: cross-attention is not supported")
    rope = getattr(config, "rope_parameters", None) or {}
    nested = [each for each in rope.values() if isinstance(each, dict)]  # one for each kind of layer
    for each in nested or [rope]:
        kind, turned = each.get("rope_type", "default"), each.get("partial_rotary_factor", 1.0)
        if kind not in _ROPE or (nested and kind in ("dynamic", "longrope")):
            raise CircuitDiscoveryError(
                f"{name}: rotary scaling {kind!r} is not supported; supported: {', '.join(_ROPE)}"
            )
        if not 0 < turned <= 1:  # it is the size of a table
            raise CircuitDiscoveryError(
                f"{name}: the rotary part of a head must be above 0 and at most 1, not {turned!r}"
            )
    window, kinds = of_family(config, "sliding_window"), of_family(config, "layer_types")
    if kinds is None or "sliding_attention" in kinds:
        _check_count("a sliding window", window, name)
    architecture = architecture_of(config.model_type)
    _check_count("the number of positions", architecture.longest(config), name)
    layers = config.num_hidden_layers
    if kinds is not None and not (isinstance(kinds, list | tuple) and len(kinds) == layers):
        raise CircuitDiscoveryError(
            f"{name}: layer_types must name the kind of each of its {layers} layers, not {shown(kinds, 100)}"
        )
    act = architecture.activation(config)
    learnt = {f"the activation {act!r} with weights of its own": has_weights(act)}
    for what, asked in {**learnt, **architecture.refused(config)}.items():
        if asked:
            raise CircuitDiscoveryError(f"{name}: {what} is not supported")


def _check_count(what: str, value: Any, name: str) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise CircuitDiscoveryError(f"{name}: {what} must be a whole number of at least 1, not {value!r}")


def of_family(config: Any, field: str) -> Any:
    """A field that the family's configs have; transformers does not read what else a file says."""
    return getattr(config, field, None) if hasattr(type(config), field) else None


def _window(config: Any, layer: int) -> int | None:
    """How many positions a layer's queries see; None: all before them."""
    kinds = of_family(config, "layer_types")
    slides = kinds is None or kinds[layer] == "sliding_attention"
    return of_family(config, "sliding_window") if slides else None


def _rotary(config: Any, architecture: Architecture, weights: Weights) -> list[Rotary | None]:
    """Each layer's rotary embedding, where the weights are."""
    found, layers = architecture.rotary(config), config.num_hidden_layers
    device = weights[architecture.embedding].device

    def there(rotary: Rotary) -> Rotary:
        return replace(rotary, frequencies=rotary.frequencies.to(device))

    if isinstance(found, Mapping):
        placed = {kind: there(each) for kind, each in found.items()}
        return [placed[kind] for kind in config.layer_types]
    return [found and there(found)] * layers


def _placed(block: Block) -> Block:
    """With what is made for it, norms without weights and tables of positions, where its weights are."""
    parts = {field.name: getattr(block, field.name) for field in fields(block)}
    made = {name: part for name, part in parts.items() if isinstance(part, Norm | Rotary | Alibi)}
    return replace(block, **{name: _there(part, block.device) for name, part in made.items()})


def _there(part: Any, device: torch.device) -> Any:
    values = {field.name: getattr(part, field.name) for field in fields(part)}
    tensors = {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
    return replace(part, **{name: value.to(device) for name, value in tensors.items()})


def build(config: Any, weights: Weights, name: str, digest: str, tokenizer: Any) -> Model:
    """The model of a supported config and of the weights under Hugging Face's names."""
    architecture = architecture_of(config.model_type)
    embedding, rotary = weights[architecture.embedding], _rotary(config, architecture, weights)
    act = activation(architecture.activation(config))
    blocks = tuple(
        _placed(
            architecture.block(
                config, weights, layer, window=_window(config, layer), rotary=rotary[layer], activation=act
            )
        )
        for layer in range(config.num_hidden_layers)
    )
    parallel, has_mlp = architecture.parallel(config), any(block.d_mlp for block in blocks)
    offset = architecture.position_offset
    shape = len(blocks), len(blocks[0].W_Q), len(blocks[0].W_K)
    return Model(
        name=name,
        digest=digest,
        tokenizer=tokenizer,
        graph=Graph(*shape, parallel=parallel, has_mlp=has_mlp),
        W_E=embedding,
        W_pos=None if not architecture.positions else weights[architecture.positions][offset:],
        blocks=blocks,
        final_norm=architecture.norm(config, weights, architecture.final_norm),
        W_U=next(
            weights[key] for key in (*architecture.unembedding, architecture.embedding) if key in weights
        ),
        b_U=weights.get(architecture.unembedding_bias),
        embed_scale=architecture.embed_scale(config),
        logit_scale=architecture.logit_scale(config),
        logit_cap=architecture.logit_cap(config),
        stream_unit=architecture.stream_unit(config),
        longest=architecture.longest(config),
        adding=architecture.adding,
        embed_norm=architecture.norm(config, weights, architecture.embed_norm)
        if architecture.embed_norm
        else None,
    )


def weights_digest(weights: Weights) -> str:
    """SHA-256 over the sorted tensors' names, shapes and bytes; the same for a
    folder, its Hugging Face model and its bridge.

    Half precisions are hashed as the float32 that they are exactly, so that it
    does not matter which of them holds a value.
    """

    def one(name: str) -> str:
        tensor = weights[name].detach().cpu().contiguous()
        tensor = tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
        numbers = tensor.reshape(-1).view(torch.uint8).numpy()  # which a scalar has too
        return f"{name} {list(tensor.shape)} {hashlib.sha256(numbers.data).hexdigest()}"

    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter lock
        return hashlib.sha256("\n".join(pool.map(one, sorted(weights))).encode()).hexdigest()
