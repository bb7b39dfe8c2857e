"""Phi 1, 1.5 and 2: attention and MLP in parallel behind one LayerNorm, rotary positions, biases."""

from __future__ import annotations

from typing import Any

from circuitdiscovery.model.architectures.architecture import Architecture, Weights, rotary_by
from circuitdiscovery.model.architectures.gpt_neox import norm
from circuitdiscovery.model.architectures.parts import attention, linears, mlp, norms
from circuitdiscovery.model.block import Block


def block(config: Any, weights: Weights, layer: int, **how: Any) -> Block:
    """The norms of queries and keys are LayerNorms over d_head, where there are some."""
    at = f"model.layers.{layer}."
    d_head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if config.qk_layernorm:
        how |= {f"{x}_norm": norm(config, weights, f"{at}self_attn.{x}_layernorm") for x in "qk"}
    return Block(
        **norms(norm, config, weights, at, "input_layernorm"),
        **attention(d_head, *linears(weights, f"{at}self_attn.", "q_proj", "k_proj", "v_proj", "dense")),
        **mlp(*linears(weights, f"{at}mlp.", "fc1", "fc2")),
        **how,
    )


PHI = Architecture(
    block,
    norm,
    layers="model.layers",
    embedding="model.embed_tokens.weight",
    final_norm="model.final_layernorm",
    rotary=rotary_by("phi", "PhiRotaryEmbedding"),
    parallel=lambda config: True,
)
