"""Falcon: rotary positions or ALiBi, keys and values for groups of heads or for all, attention and MLP mostly
in parallel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from circuitdiscovery.model.architectures.architecture import Architecture, Weights, rotary_by, slopes
from circuitdiscovery.model.architectures.gpt2 import norm
from circuitdiscovery.model.architectures.parts import attention, grouped, linears, mlp, norms
from circuitdiscovery.model.block import Block
from circuitdiscovery.model.positions import Alibi


def block(config: Any, weights: Weights, layer: int, **how: Any) -> Block:
    """ALiBi's products are rounded to bfloat16, and scaled as the scores are."""
    n_heads = config.num_attention_heads
    groups = config.num_kv_heads if config.new_decoder_architecture else 1 if config.multi_query else n_heads
    if config.alibi:
        rounded = slopes(n_heads, weights[FALCON.embedding].device).bfloat16()
        how["alibi"] = Alibi(rounded, (config.hidden_size // n_heads) ** -0.5)
    return joint_block(config, weights, layer, groups, **how)


def joint_block(config: Any, weights: Weights, layer: int, groups: int, **how: Any) -> Block:
    """Each group's queries, its key and its value stand together."""
    at = f"transformer.h.{layer}."
    n_heads = config.num_attention_heads
    d_head = config.hidden_size // n_heads
    joint, out = linears(weights, f"{at}self_attention.", "query_key_value", "dense")
    kinds = (("ln_attn", "ln_mlp"), ("input_layernorm", "post_attention_layernorm"))
    names = next((pair for pair in kinds if f"{at}{pair[1]}.weight" in weights), ("input_layernorm",))
    return Block(
        **norms(norm, config, weights, at, *names),
        **attention(d_head, *grouped(joint, n_heads, groups, d_head), out),
        **mlp(*linears(weights, f"{at}mlp.", "dense_h_to_4h", "dense_4h_to_h")),
        **how,
    )


_turned = rotary_by("falcon", "FalconRotaryEmbedding")


def refused(config: Any) -> Mapping[str, bool]:
    """transformers' eager attention adds the biases to the scores, and once more with the mask."""
    return {
        "ALiBi in eager attention, which adds it twice (attn_implementation; take 'sdpa'),": bool(
            config.alibi and config._attn_implementation == "eager"
        )
    }


FALCON = Architecture(
    block,
    norm,
    layers="transformer.h",
    embedding="transformer.word_embeddings.weight",
    final_norm="transformer.ln_f",
    rotary=lambda config: None if config.alibi else _turned(config),
    activation=lambda config: config.activation,
    parallel=lambda config: bool(config.new_decoder_architecture or config.parallel_attn),
    refused=refused,
    attention="sdpa",
)
