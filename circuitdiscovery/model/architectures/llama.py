"""Llama, Mistral, Qwen2: RMSNorm, gated MLPs, rotary positions, grouped keys and values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from circuitdiscovery.model.architectures.architecture import Architecture, Weights, rotary_by
from circuitdiscovery.model.architectures.parts import attention, linears, mlp, norms
from circuitdiscovery.model.block import Block, Experts
from circuitdiscovery.model.norm import Norm


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
    experts: Callable[[Any, Weights, str], Experts] | None = None,
    **how: Any,
) -> Block:
    """Biases where the file has some; for other families another kind of norm, another one that the
    MLP reads through, and experts in the layers that have a router."""
    at = f"model.layers.{layer}."
    routed = experts if f"{at}mlp.experts.down_proj" in weights else None
    d_head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Block(
        **norms(normed, config, weights, at, "input_layernorm", before_mlp),
        **attention(d_head, *linears(weights, f"{at}self_attn.", "q_proj", "k_proj", "v_proj", "o_proj")),
        **mlp(*(() if routed else linears(weights, f"{at}mlp.", "up_proj", "down_proj", "gate_proj"))),
        experts=routed and routed(config, weights, f"{at}mlp."),
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
