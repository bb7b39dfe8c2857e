"""Falcon: rotary positions, keys and values for groups of heads or for all, attention and MLP mostly in
parallel."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from circuitdiscovery.model.architectures.architecture import Architecture, Weights, heads, rotary_of
from circuitdiscovery.model.architectures.gpt2 import norm
from circuitdiscovery.model.block import Block, Rotary


def block(config: Any, weights: Weights, layer: int, **how: Any) -> Block:
    """Each group's queries, its key and its value stand together."""
    at = f"transformer.h.{layer}."
    attention, mlp = at + "self_attention.", at + "mlp."
    n_heads, grouped = config.num_attention_heads, config.new_decoder_architecture
    groups = config.num_kv_heads if grouped else 1 if config.multi_query else n_heads
    d_head = config.hidden_size // n_heads

    def split(joint: Tensor | None) -> tuple[Any, ...]:
        """Of queries, keys and values; copies, as a fused product is served by no strided view."""
        if joint is None:
            return None, None, None
        parts = heads(joint, d_head).unflatten(0, (groups, -1))
        return tuple(x.flatten(0, 1).contiguous() for x in parts.split([n_heads // groups, 1, 1], dim=1))

    (w_q, w_k, w_v), (b_q, b_k, b_v) = (
        split(weights.get(f"{attention}query_key_value.{kind}")) for kind in ("weight", "bias")
    )
    kinds = (("ln_attn", "ln_mlp"), ("input_layernorm", "post_attention_layernorm"))
    names = next((pair for pair in kinds if f"{at}{pair[1]}.weight" in weights), ("input_layernorm",) * 2)
    norm1, norm2 = (norm(config, weights, at + name) for name in names)
    return Block(
        norm1=norm1, norm2=norm2,
        W_Q=w_q, W_K=w_k, W_V=w_v, b_Q=b_q, b_K=b_k, b_V=b_v,
        W_O=heads(weights[attention + "dense.weight"].T, d_head), b_O=weights.get(attention + "dense.bias"),
        scale=d_head**-0.5,
        W_in=weights[mlp + "dense_h_to_4h.weight"], b_in=weights.get(mlp + "dense_h_to_4h.bias"),
        W_gate=None, b_gate=None,
        W_out=weights[mlp + "dense_4h_to_h.weight"], b_out=weights.get(mlp + "dense_4h_to_h.bias"),
        **how,
    )  # fmt: skip


def rotary(config: Any) -> Rotary:
    """As the config scales it."""
    from transformers.models.falcon.modeling_falcon import FalconRotaryEmbedding

    return rotary_of(FalconRotaryEmbedding(config))


FALCON = Architecture(
    block,
    norm,
    layers="transformer.h",
    embedding="transformer.word_embeddings.weight",
    final_norm="transformer.ln_f",
    rotary=rotary,
    activation=lambda config: config.activation,
    parallel=lambda config: bool(config.new_decoder_architecture or config.parallel_attn),
    refused=lambda config: {"ALiBi position biases (alibi)": bool(config.alibi)},
)
