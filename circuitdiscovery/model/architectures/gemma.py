"""Gemma 1: Llama with norms whose weights are added to 1, and scaled embeddings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from circuitdiscovery.model.architectures.architecture import Weights
from circuitdiscovery.model.architectures.llama import LLAMA
from circuitdiscovery.model.architectures.llama import block as llama
from circuitdiscovery.model.block import Block, Norm


def norm(config: Any, weights: Weights, at: str) -> Norm:
    """RMSNorm by 1 + weight."""
    return Norm(weights[f"{at}.weight"], None, config.rms_norm_eps, kind="rms", from_one=True)


def block(config: Any, weights: Weights, layer: int, **how: Any) -> Block:
    """As Llama's, with these norms."""
    at, found = f"model.layers.{layer}.", llama(config, weights, layer, **how)
    return replace(
        found,
        norm1=norm(config, weights, at + "input_layernorm"),
        norm2=norm(config, weights, at + "post_attention_layernorm"),
    )


GEMMA = replace(LLAMA, block=block, norm=norm, embed_scale=lambda config: config.hidden_size**0.5)
