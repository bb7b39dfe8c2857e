"""Gemma 3: Gemma 2 with norms of queries and keys, and another rotary embedding in layers with a window.

Team et al. 2025, arXiv 2503.19786, section 2.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from circuitdiscovery.model.architectures.architecture import Weights, rotary_by
from circuitdiscovery.model.architectures.gemma import norm
from circuitdiscovery.model.architectures.gemma2 import GEMMA2
from circuitdiscovery.model.architectures.gemma2 import block as gemma2
from circuitdiscovery.model.block import Block


def block(config: Any, weights: Weights, layer: int, **how: Any) -> Block:
    """The norms are over d_head, before the rotary embedding; transformers caps no scores here, whatever the
    config says."""
    at = f"model.layers.{layer}.self_attn."
    how |= {"q_norm": norm(config, weights, at + "q_norm"), "k_norm": norm(config, weights, at + "k_norm")}
    return replace(gemma2(config, weights, layer, **how), soft_cap=None)


GEMMA3 = replace(GEMMA2, block=block, rotary=rotary_by("gemma3", "Gemma3RotaryEmbedding"))
