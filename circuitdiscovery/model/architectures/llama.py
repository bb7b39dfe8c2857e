"""Llama, Mistral, Qwen2: RMSNorm, gated MLPs, rotary positions, grouped keys and values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from circuitdiscovery.model.architectures.architecture import (
    Architecture,
    Weights,
    heads,
    optional_heads,
    rotary_of,
)
from circuitdiscovery.model.block import Block, Norm, Rotary


def norm(config: Any, weights: Weights, at: str) -> Norm:
    """RMSNorm."""
    return Norm(weights[f"{at}.weight"], None, config.rms_norm_eps, kind="rms")


def block(
    config: Any,
    weights: Weights,
    layer: int,
    *,
    normed: Callable[[Any, Weights, str], Norm] = norm,
    before_mlp: str = "post_attention_layernorm",
    **how: Any,
) -> Block:
    """Biases where the file has some; for other families another kind of
    norm, and another one that the MLP reads through."""
    at = f"model.layers.{layer}."
    attention, mlp = at + "self_attn.", at + "mlp."
    d_head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    b_q, b_k, b_v = (optional_heads(weights.get(f"{attention}{x}_proj.bias"), d_head) for x in "qkv")
    return Block(
        norm1=normed(config, weights, at + "input_layernorm"),
        W_Q=heads(weights[attention + "q_proj.weight"], d_head),
        W_K=heads(weights[attention + "k_proj.weight"], d_head),
        W_V=heads(weights[attention + "v_proj.weight"], d_head),
        b_Q=b_q, b_K=b_k, b_V=b_v,
        W_O=heads(weights[attention + "o_proj.weight"].T, d_head),
        b_O=weights.get(attention + "o_proj.bias"),
        scale=d_head**-0.5,
        norm2=normed(config, weights, at + before_mlp),
        W_in=weights[mlp + "up_proj.weight"], b_in=weights.get(mlp + "up_proj.bias"),
        W_gate=weights[mlp + "gate_proj.weight"], b_gate=weights.get(mlp + "gate_proj.bias"),
        W_out=weights[mlp + "down_proj.weight"], b_out=weights.get(mlp + "down_proj.bias"),
        **how,
    )  # fmt: skip


def rotary(config: Any) -> Rotary:
    """As the config scales it."""
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    return rotary_of(LlamaRotaryEmbedding(config))


LLAMA = Architecture(
    block,
    norm,
    layers="model.layers",
    embedding="model.embed_tokens.weight",
    final_norm="model.norm",
    rotary=rotary,
)
