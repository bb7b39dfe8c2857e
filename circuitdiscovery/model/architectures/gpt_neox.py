"""GPT-NeoX (Pythia): LayerNorm, rotary positions, attention and MLP in parallel or in series."""

from __future__ import annotations

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
    """LayerNorm."""
    return Norm(weights[f"{at}.weight"], weights[f"{at}.bias"], config.layer_norm_eps, kind="layer")


def block(config: Any, weights: Weights, layer: int, **how: Any) -> Block:
    """Queries, keys and values of a head stand together."""
    at = f"gpt_neox.layers.{layer}."
    d_head = config.hidden_size // config.num_attention_heads
    # heads are outermost and q, k, v inside each: no strided view serves a fused product, so these are copies
    w_q, w_k, w_v = (
        w.contiguous()
        for w in heads(weights[at + "attention.query_key_value.weight"], 3 * d_head).chunk(3, dim=1)
    )
    bias = optional_heads(weights.get(at + "attention.query_key_value.bias"), 3 * d_head)
    b_q, b_k, b_v = (None, None, None) if bias is None else bias.chunk(3, dim=1)
    return Block(
        norm1=norm(config, weights, at + "input_layernorm"),
        W_Q=w_q, W_K=w_k, W_V=w_v, b_Q=b_q, b_K=b_k, b_V=b_v,
        W_O=heads(weights[at + "attention.dense.weight"].T, d_head),
        b_O=weights.get(at + "attention.dense.bias"),
        scale=d_head**-0.5, norm2=norm(config, weights, at + "post_attention_layernorm"),
        W_in=weights[at + "mlp.dense_h_to_4h.weight"], b_in=weights[at + "mlp.dense_h_to_4h.bias"],
        W_gate=None, b_gate=None,
        W_out=weights[at + "mlp.dense_4h_to_h.weight"], b_out=weights[at + "mlp.dense_4h_to_h.bias"],
        **how,
    )  # fmt: skip


def rotary(config: Any) -> Rotary:
    """Of a part of each head's dimensions."""
    from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXRotaryEmbedding

    return rotary_of(GPTNeoXRotaryEmbedding(config))


GPT_NEOX = Architecture(
    block,
    norm,
    layers="gpt_neox.layers",
    embedding="gpt_neox.embed_in.weight",
    final_norm="gpt_neox.final_layer_norm",
    unembedding=("lm_head.weight", "embed_out.weight"),
    rotary=rotary,
    parallel=lambda config: bool(config.use_parallel_residual),
)
