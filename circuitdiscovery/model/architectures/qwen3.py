"""Qwen3: Llama with a norm of each query and key."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from circuitdiscovery.model.architectures.architecture import Weights
from circuitdiscovery.model.architectures.llama import LLAMA, norm
from circuitdiscovery.model.architectures.llama import block as llama
from circuitdiscovery.model.block import Block


def block(config: Any, weights: Weights, layer: int, **how: Any) -> Block:
    """The norms are over d_head, before the rotary embedding."""
    at = f"model.layers.{layer}.self_attn."
    how |= {"q_norm": norm(config, weights, at + "q_norm"), "k_norm": norm(config, weights, at + "k_norm")}
    return llama(config, weights, layer, **how)


QWEN3 = replace(LLAMA, block=block)
