"""The proof at load: a model's forward is the one that Hugging Face has for the same
weights, at all positions of several lengths.

1. In float32 or float64 the whole model is compared, to rounding.
2. A half precision rounds at every step, which hides as much as a scale that is a tenth wrong. There the
   whole model is compared roughly, and its first and last layers (all of a small model) once more with their
   weights in float32, to rounding.
3. In a mixture of experts a rounding can send a token to another expert, and then all that follows differs.
   In a half precision every layer of it is compared by itself, on what it reads in Hugging Face's run.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from circuitdiscovery.errors import CircuitDiscoveryError, one_line
from circuitdiscovery.model.block import Block, Experts
from circuitdiscovery.model.build import of_family
from circuitdiscovery.model.model import Model
from circuitdiscovery.model.norm import Norm
from circuitdiscovery.model.run import plain_run, unembed

LENGTHS = (1, 4, 16)  # of the prompts that are compared
PART_LENGTHS = (1, 6, 24)  # where two layers run alone
TIGHT = 2e-5  # of the largest logit: float32 agrees to about 1e-6 of it
LOOSE = 0.1  # of it too, in a half precision: SmolLM2 is .04 off in bfloat16
SMALL = 2**24  # weights of a model that is proved in float32 as a whole
_PRECISE = (torch.float32, torch.float64)


@torch.no_grad()
def prove(model: Model, hf: Any, own: Any, name_of_layers: str) -> None:
    """Refuse a model whose forward is not Hugging Face's.

    Args:
        model: what was loaded.
        hf: the Hugging Face model that its weights come from.
        own: what the user gave, which is `hf` itself but for adapters.
        name_of_layers: where `hf` holds its layers.

    Raises:
        CircuitDiscoveryError: their logits differ, are not finite, or cannot be computed.
    """
    precise = model.dtype in _PRECISE and _dtype(own) in _PRECISE
    routed = any(block.experts is not None for block in model.blocks)
    if precise or not routed:
        _compare(model, own, LENGTHS, tight=precise)
    else:
        _compare_layers(model, hf, name_of_layers)
    if not precise:
        skeleton, layers = _part(hf, name_of_layers, model)
        _compare(_float32(_some(model, layers)), skeleton, PART_LENGTHS, tight=True)


def _some(model: Model, layers: Sequence[int]) -> Model:
    """A model of some of its layers."""
    blocks = tuple(model.blocks[i] for i in layers)
    return replace(model, blocks=blocks, graph=replace(model.graph, n_layers=len(layers)))


def _compare(model: Model, hf: Any, lengths: Sequence[int], *, tight: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    for length in sorted({min(length, model.max_length or length) for length in lengths}):
        tokens = torch.randint(model.vocab_size, (1, length), generator=generator)
        theirs = _logits(hf, tokens, model.name)[..., : model.vocab_size].to(model.device, torch.float64)
        ours = unembed(model, plain_run(model, tokens.to(model.device), None).stream).double()
        if not bool(theirs.isfinite().all()):
            raise CircuitDiscoveryError(
                f"{model.name}: the model's own logits are not finite; look for NaN or infinity in its "
                "weights"
            )
        error, scale = float((ours - theirs).abs().max()), float(theirs.abs().max())
        if not error <= (TIGHT if tight else LOOSE) * scale + 1e-7:
            raise CircuitDiscoveryError(
                f"{model.name}: our forward differs from the model's own by {error:.2g} (largest logit "
                f"{scale:.2g}); "
                "the model has a feature that is not supported (norms folded by compatibility mode, a "
                "modified module, ...)"
            )


def _compare_layers(model: Model, hf: Any, name: str) -> None:
    """Refuse a layer, but the last, that adds something else to the stream than Hugging Face's does."""
    generator, seen = torch.Generator().manual_seed(0), list[Tensor]()

    def keep(module: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen.append(args[0] if args else named["hidden_states"])

    hooks = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in hf.get_submodule(name)]
    length = min(max(LENGTHS), model.max_length or max(LENGTHS))
    try:
        _logits(hf, torch.randint(model.vocab_size, (1, length), generator=generator), model.name)
    finally:
        for hook in hooks:
            hook.remove()
    for layer, (read, after) in enumerate(pairwise(seen)):
        ours = plain_run(_some(model, [layer]), read.to(model.device, model.dtype), None).stream.double()
        before, theirs = (each.to(model.device, torch.float64) for each in (read, after))
        error, change, size = (
            torch.linalg.vector_norm(each, dim=-1) for each in (ours - theirs, theirs - before, theirs)
        )
        # some tokens go to other experts; both streams were rounded twice
        allowed = LOOSE * change + 2 * torch.finfo(model.dtype).eps * size
        if not float((error / allowed.clamp_min(1e-30)).median()) <= 1:
            raise CircuitDiscoveryError(
                f"{model.name}: layer {layer} of our forward differs from the model's own by "
                f"{float((error / size).median()):.2g} of the stream; the model has a feature that is not "
                "supported (a modified module, ...)"
            )


def _logits(hf: Any, tokens: Tensor, name: str) -> Tensor:
    """[1, T, vocabulary] of a Hugging Face model in evaluation mode, which is left as it was."""
    training = [(module, module.training) for module in hf.modules()]
    # a model that compiles itself in place would spend minutes on each length
    call = hf.forward if getattr(hf, "_compiled_call_impl", None) is not None else hf
    try:
        out = call(tokens.to(next(hf.parameters()).device)) if hf.eval() else None
        logits = out if isinstance(out, Tensor) else getattr(out, "logits", None)
        logits = out[0] if logits is None and isinstance(out, tuple) else logits
    except Exception as error:  # a forward can fail in as many ways as there are models
        raise CircuitDiscoveryError(f"{name}: the model's own forward fails: {one_line(error)}") from error
    finally:
        for module, mode in training:
            module.training = mode
    if not isinstance(logits, Tensor) or logits.dim() != 3 or logits.shape[:2] != tokens.shape:
        raise CircuitDiscoveryError(f"{name}: the model's own forward gives no logits of every position")
    return logits


# ------------------------------------------------------------------ some layers in float32


def _part(hf: Any, name: str, model: Model) -> tuple[Any, tuple[int, ...]]:
    """(a copy of a model with some of its layers only, in float32; which)."""
    layers, last = hf.get_submodule(name), model.graph.n_layers - 1
    small = sum(parameter.numel() for parameter in hf.parameters()) <= SMALL
    chosen = tuple(range(last + 1)) if small else tuple(dict.fromkeys((0, last)))
    kept = nn.ModuleList([layers[i] for i in chosen])
    part = copy.deepcopy(hf, {id(layers): copy.deepcopy(kept)})
    for parameter in part.parameters():
        parameter.data = parameter.data.to(model.dtype)  # rounded as ours are
    part = nn.Module.float(part)  # what was read from GGUF refuses its own float()
    _fill_tables(part)
    _name_kinds(part, name, chosen)
    return part, chosen


def _name_kinds(part: Any, name: str, chosen: Sequence[int]) -> None:
    """Let the modules around the layers find the kinds of those that are left: they choose masks and rotary
    embeddings by a layer's place in the list. The layers know their own, by their old numbers, from configs
    of their own.
    """
    inside = name.split(".")
    around = [part.get_submodule(".".join(inside[:depth])) for depth in range(len(inside))]
    configs = {id(module.config): module.config for module in around if hasattr(module, "config")}
    for config in configs.values():
        if (kinds := of_family(config, "layer_types")) is not None:
            config.layer_types = [*(kinds[i] for i in chosen), *kinds[len(chosen) :]]


def _fill_tables(hf: Any) -> None:
    """Write the tables that no file holds (of rotary embeddings, scales) once more: they
    are rounded where the model was converted to a half precision, ours are not.
    """
    for parameter in hf.parameters():
        parameter._is_hf_initialized = True  # or it would be drawn at random
    theirs: Any = next((module for module in hf.modules() if hasattr(module, "_init_weights")), nn.Module())
    for module in theirs.modules():
        if any(module.get_buffer(name).is_floating_point() for name in module._non_persistent_buffers_set):
            theirs._init_weights(module)


def _float32(value: Any) -> Any:
    """A model, or a part of one, with all its tensors in float32."""
    if isinstance(value, Tensor):
        return value.float()
    if isinstance(value, tuple):
        return tuple(map(_float32, value))
    if isinstance(value, nn.Module):
        return copy.deepcopy(value).float()
    if isinstance(value, Model | Block | Norm | Experts):
        return replace(value, **{field.name: _float32(getattr(value, field.name)) for field in fields(value)})
    return value


def _dtype(hf: Any) -> torch.dtype:
    return next(hf.parameters()).dtype
