"""GPT-NeoX (Pythia): LayerNorm, rotary positions, attention and MLP in parallel or in series."""

from __future__ import annotations

from typing import Any

from circuitdiscovery.model.architectures.architecture import Architecture, Weights, rotary_by
from circuitdiscovery.model.architectures.parts import attention, grouped, linears, mlp, norms
from circuitdiscovery.model.block import Block
from circuitdiscovery.model.norm import Norm


def norm(config: Any, weights: Weights, at: str) -> Norm:
    """LayerNorm."""
    return Norm(weights[f"{at}.weight"], weights[f"{at}.bias"], config.layer_norm_eps, kind="layer")


def block(config: Any, weights: Weights, layer: int, **how: Any) -> Block:
    """Queries, keys and values of a head stand together."""
    at = f"gpt_neox.layers.{layer}."
    n_heads = config.num_attention_heads
    d_head = config.hidden_size // n_heads
    joint, out = linears(weights, f"{at}attention.", "query_key_value", "dense")
    return Block(
        **norms(norm, config, weights, at, "input_layernorm", "post_attention_layernorm"),
        **attention(d_head, *grouped(joint, n_heads, n_heads, d_head), out),
        **mlp(*linears(weights, f"{at}mlp.", "dense_h_to_4h", "dense_4h_to_h")),
        **how,
    )


GPT_NEOX = Architecture(
    block,
    norm,
    layers="gpt_neox.layers",
    embedding="gpt_neox.embed_in.weight",
    final_norm="gpt_neox.final_layer_norm",
    unembedding=("lm_head.weight", "embed_out.weight"),
    rotary=rotary_by("gpt_neox", "GPTNeoXRotaryEmbedding"),
    parallel=lambda config: bool(config.use_parallel_residual),
)
