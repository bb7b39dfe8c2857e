"""Granite: Llama with multipliers of the embeddings, the scores, what a layer adds and the logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from circuitdiscovery.model.architectures import llama
from circuitdiscovery.model.architectures.architecture import Weights
from circuitdiscovery.model.block import Block
from circuitdiscovery.model.norm import Norm


def norm(config: Any, weights: Weights, at: str) -> Norm:
    """RMSNorm of a stream that is not scaled.

    A layer makes x + r f(norm(x)) of the stream x, with the multiplier r. We keep x / r, of which it
    makes x / r + f(norm(x)); the norm of x / r is that of x with another eps. So no weight is changed.
    """
    return Norm(weights[f"{at}.weight"], None, config.rms_norm_eps / config.residual_multiplier**2, "rms")


def block(config: Any, weights: Weights, layer: int, **how: Any) -> Block:
    """The scores' multiplier stands for one over the root of d_head."""
    found = llama.block(config, weights, layer, normed=norm, **how)
    return replace(found, scale=config.attention_multiplier)


def refused(config: Any) -> Mapping[str, bool]:
    """What would be divided by."""
    return {f"{name} = 0": getattr(config, name) == 0 for name in ("residual_multiplier", "logits_scaling")}


GRANITE = replace(
    llama.LLAMA,
    block=block,
    norm=norm,
    embed_scale=lambda config: config.embedding_multiplier / config.residual_multiplier,
    logit_scale=lambda config: 1 / config.logits_scaling,
    stream_unit=lambda config: config.residual_multiplier,
    refused=refused,
)
