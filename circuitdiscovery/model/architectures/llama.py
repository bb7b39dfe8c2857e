"""Llama, Mistral, Qwen2: RMSNorm, gated MLPs, rotary positions, grouped keys and values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from circuitdiscovery.model.architectures.architecture import Architecture, Weights, rotary_by
from circuitdiscovery.model.architectures.parts import attention, linears, mlp, norms
from circuitdiscovery.model.block import Block, Norm


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
    d_head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Block(
        **norms(normed, config, weights, at, "input_layernorm", before_mlp),
        **attention(d_head, *linears(weights, f"{at}self_attn.", "q_proj", "k_proj", "v_proj", "o_proj")),
        **mlp(*linears(weights, f"{at}mlp.", "up_proj", "down_proj", "gate_proj")),
        **how,
    )


rotary = rotary_by("llama", "LlamaRotaryEmbedding")

LLAMA = Architecture(
    block,
    norm,
    layers="model.layers",
    embedding="model.embed_tokens.weight",
    final_norm="model.norm",
    rotary=rotary,
)
