"""OLMoE: Llama with experts, and with a norm of all heads' queries and of all keys.

Muennighoff et al. 2024, arXiv 2409.02060.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from circuitdiscovery.model.architectures.architecture import Weights
from circuitdiscovery.model.architectures.experts import experts_by
from circuitdiscovery.model.architectures.llama import LLAMA, norm
from circuitdiscovery.model.architectures.llama import block as llama
from circuitdiscovery.model.block import Block

_EXPERTS = experts_by("olmoe", "OlmoeSparseMoeBlock")


def block(config: Any, weights: Weights, layer: int, **how: Any) -> Block:
    """The norms are over all heads together, before the rotary embedding."""
    at = f"model.layers.{layer}.self_attn."
    how |= {"joint_q": norm(config, weights, at + "q_norm"), "joint_k": norm(config, weights, at + "k_norm")}
    return llama(config, weights, layer, experts=_EXPERTS, **how)


OLMOE = replace(
    LLAMA,
    block=block,
    refused=lambda config: {"clipped queries, keys and values (clip_qkv)": config.clip_qkv is not None},
)
