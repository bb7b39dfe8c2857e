"""What a family of models is described by, and what the descriptions share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from circuitdiscovery.model.block import Block
from circuitdiscovery.model.norm import Norm
from circuitdiscovery.model.positions import Rotary

Weights = Mapping[str, Tensor]
ATTENTION = "eager"  # Hugging Face's own, in Python: there is no kernel to fetch
EXPERTS = "eager"  # which run in every dtype, on every device


def none(config: Any) -> None:
    """Of what there is not."""


def one(config: Any) -> float:
    """Of what is not scaled."""
    return 1.0


def in_series(config: Any) -> bool:
    """Of blocks whose MLP reads what their attention writes."""
    return False


def nothing(config: Any) -> Mapping[str, bool]:
    """Of configs with which all is computed."""
    return {}


@dataclass(frozen=True)
class Architecture:
    """Where one family keeps what all families have. Its line in the
    registry goes by Hugging Face's `model_type`.

    Args:
        block: one layer, of (config, weights, number of the layer) and, by
            name, `rotary`, `window` and `activation`.
        norm: any norm, of (config, weights, prefix of the norm's weights).
        layers: the prefix of the layers' weights.
        embedding, positions: the names of these weights; positions None: not learnt.
        final_norm: the prefix of its weights.
        position_offset: the first row of the positions that is used.
        unembedding: names that this weight can have, the first one that is there; none: the embedding's.
        rotary: of the config, the rotary embedding that the blocks have, or one for each of their kinds
            (`layer_types`).
        activation: of the config, the name of the MLPs' activation.
        parallel: of the config, whether attention and MLP read the same.
        unembedding_bias: the name of this weight, where there may be one.
        embed_scale, logit_scale, logit_cap, stream_unit: of the config, as in `Model`.
        longest: of the config, the longest prompt that transformers computes, where a table of positions that
            is not learnt bounds it.
        embed_norm: the prefix of its weights, where the token embeddings go through one.
        adding: as in `Model`.
        attention: which of Hugging Face's attentions a model from a folder is compared with.
        refused: of the config, what the forward does not compute, by name, and whether it asks for that.
    """

    block: Callable[..., Block]
    norm: Callable[[Any, Weights, str], Norm]
    layers: str
    embedding: str
    final_norm: str
    unembedding: tuple[str, ...] = ("lm_head.weight",)
    positions: str | None = None
    rotary: Callable[[Any], Rotary | Mapping[str, Rotary] | None] = none
    activation: Callable[[Any], str] = lambda config: config.hidden_act
    parallel: Callable[[Any], bool] = in_series
    position_offset: int = 0
    unembedding_bias: str = "lm_head.bias"
    embed_scale: Callable[[Any], float] = one
    logit_scale: Callable[[Any], float] = one
    logit_cap: Callable[[Any], float | None] = none
    stream_unit: Callable[[Any], float] = one
    longest: Callable[[Any], int | None] = none
    embed_norm: str | None = None
    adding: str = ""
    attention: str = ATTENTION
    refused: Callable[[Any], Mapping[str, bool]] = nothing


def rotary_of(embedding: Any) -> Rotary:
    """From Hugging Face's module, which knows every kind of scaling."""
    return Rotary(embedding.inv_freq.float(), float(embedding.attention_scaling))


@dataclass(frozen=True, eq=False)
class _ByLength:
    """What Hugging Face's module has for prompts of a length, where that is the first it sees."""

    module: Any
    config: Any

    @lru_cache  # noqa: B019  # as many as there are lengths
    def __call__(self, length: int) -> tuple[Tensor, float]:
        """(frequencies, scaling)."""
        embedding = self.module(self.config)
        embedding(torch.zeros(1), torch.arange(length)[None])
        return embedding.inv_freq.float(), float(embedding.attention_scaling)


def rotary_by(family: str, name: str) -> Callable[[Any], Any]:
    """Of the config, the rotary embedding by a module of this name that Hugging Face has for a family; or one
    for each kind of layer."""

    def rotary(config: Any) -> Rotary | dict[str, Rotary]:
        module = import_module(f"transformers.models.{family}.modeling_{family}")
        embedding = getattr(module, name)(config)
        if not hasattr(embedding, "layer_types"):
            found = rotary_of(embedding)
            depends = embedding.rope_type in ("dynamic", "longrope")
            return replace(found, by_length=_ByLength(getattr(module, name), config)) if depends else found
        parts = {
            kind: (getattr(embedding, f"{kind}_inv_freq"), getattr(embedding, f"{kind}_attention_scaling"))
            for kind in embedding.layer_types
        }
        return {kind: Rotary(inv_freq.float(), float(scaling)) for kind, (inv_freq, scaling) in parts.items()}

    return rotary


def slopes(n_heads: int, device: torch.device) -> Tensor:
    """ALiBi's, [heads] float32: 2 to the power of -8 i / n for heads i = 1 to n, where n is a power of two.

    For another number of heads it is every second one for the next power of two, then some of the rest.
    """
    n = 1 << (n_heads - 1).bit_length()
    found = 2.0 ** (-8 / n * torch.arange(1, n + 1, dtype=torch.float64))
    return (found if n == n_heads else torch.cat([found[1::2], found[::2]])[:n_heads]).float().to(device)


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """Hugging Face's activation, by torch's fused kernel where there is one for the same function."""
    if name in ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"):
        return partial(F.gelu, approximate="tanh")  # a lambda could not be pickled
    from transformers.activations import ACT2FN

    return {"gelu": F.gelu, "silu": F.silu, "swish": F.silu, "relu": F.relu}.get(name) or ACT2FN[name]


def has_weights(name: str) -> bool:
    """Whether an activation is learnt."""
    found = activation(name)
    return isinstance(found, nn.Module) and any(True for _ in found.parameters())
