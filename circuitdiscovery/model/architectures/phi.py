"""Phi 1, 1.5 and 2: attention and MLP in parallel behind one LayerNorm, rotary positions, biases."""

from __future__ import annotations

from typing import Any

from circuitdiscovery.model.architectures.architecture import Architecture, Weights, heads, rotary_of
from circuitdiscovery.model.architectures.gpt_neox import norm
from circuitdiscovery.model.block import Block, Rotary


def block(config: Any, weights: Weights, layer: int, **how: Any) -> Block:
    """The norms of queries and keys are LayerNorms over d_head, where there are some."""
    at = f"model.layers.{layer}."
    attention, mlp = at + "self_attn.", at + "mlp."
    d_head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    before = norm(config, weights, at + "input_layernorm")
    if config.qk_layernorm:
        how |= {f"{x}_norm": norm(config, weights, f"{attention}{x}_layernorm") for x in "qk"}
    return Block(
        norm1=before, norm2=before,
        W_Q=heads(weights[attention + "q_proj.weight"], d_head),
        W_K=heads(weights[attention + "k_proj.weight"], d_head),
        W_V=heads(weights[attention + "v_proj.weight"], d_head),
        b_Q=heads(weights[attention + "q_proj.bias"], d_head),
        b_K=heads(weights[attention + "k_proj.bias"], d_head),
        b_V=heads(weights[attention + "v_proj.bias"], d_head),
        W_O=heads(weights[attention + "dense.weight"].T, d_head), b_O=weights[attention + "dense.bias"],
        scale=d_head**-0.5,
        W_in=weights[mlp + "fc1.weight"], b_in=weights[mlp + "fc1.bias"], W_gate=None, b_gate=None,
        W_out=weights[mlp + "fc2.weight"], b_out=weights[mlp + "fc2.bias"],
        **how,
    )  # fmt: skip


def rotary(config: Any) -> Rotary:
    """Of a part of each head's dimensions."""
    from transformers.models.phi.modeling_phi import PhiRotaryEmbedding

    return rotary_of(PhiRotaryEmbedding(config))


PHI = Architecture(
    block,
    norm,
    layers="model.layers",
    embedding="model.embed_tokens.weight",
    final_norm="model.final_layernorm",
    rotary=rotary,
    parallel=lambda config: True,
)
