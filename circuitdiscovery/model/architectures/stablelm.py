"""StableLM: Llama with LayerNorm, one for both attention and MLP where they are in parallel."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from circuitdiscovery.model.architectures import llama
from circuitdiscovery.model.architectures.architecture import Weights, rotary_by
from circuitdiscovery.model.architectures.gpt_neox import norm
from circuitdiscovery.model.block import Block


def block(config: Any, weights: Weights, layer: int, **how: Any) -> Block:
    """A block in parallel has no second norm."""
    if config.use_parallel_residual:
        how["before_mlp"] = "input_layernorm"
    return llama.block(config, weights, layer, normed=norm, **how)


STABLELM = replace(
    llama.LLAMA,
    block=block,
    norm=norm,
    rotary=rotary_by("stablelm", "StableLmRotaryEmbedding"),
    parallel=lambda config: bool(config.use_parallel_residual),
    refused=lambda config: {"norms with each head's own weights (qk_layernorm)": config.qk_layernorm},
)
