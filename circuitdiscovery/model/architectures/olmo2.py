"""OLMo 2: Llama whose norms come after attention and MLP, with a norm of all heads' queries and of all keys.

OLMo et al. 2024, arXiv 2501.00656.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from circuitdiscovery.model.architectures.architecture import Weights
from circuitdiscovery.model.architectures.llama import LLAMA, norm
from circuitdiscovery.model.architectures.llama import block as llama
from circuitdiscovery.model.block import Block
from circuitdiscovery.model.norm import Norm


def unnormed(config: Any, weights: Weights, at: str) -> Norm:
    """What attention and MLP read: the stream as it is."""
    embedding = weights["model.embed_tokens.weight"]
    return Norm(embedding.new_ones(embedding.shape[1]), None, config.rms_norm_eps, kind="none")


def block(config: Any, weights: Weights, layer: int, **how: Any) -> Block:
    """The norm of queries is over all heads, before the rotary embedding; that of keys alike."""
    at = f"model.layers.{layer}."
    return llama(
        config,
        weights,
        layer,
        normed=unnormed,
        joint_q=norm(config, weights, at + "self_attn.q_norm"),
        joint_k=norm(config, weights, at + "self_attn.k_norm"),
        heads_norm=norm(config, weights, at + "post_attention_layernorm"),
        mlp_norm=norm(config, weights, at + "post_feedforward_layernorm"),
        **how,
    )


OLMO2 = replace(LLAMA, block=block)
