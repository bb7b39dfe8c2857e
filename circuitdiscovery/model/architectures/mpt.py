"""MPT: LayerNorm without biases, and ALiBi."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from circuitdiscovery.model.architectures.architecture import Architecture, Weights, slopes
from circuitdiscovery.model.architectures.parts import attention, linears, mlp, norms
from circuitdiscovery.model.block import Block
from circuitdiscovery.model.norm import Norm
from circuitdiscovery.model.positions import Alibi


def norm(config: Any, weights: Weights, at: str) -> Norm:
    """LayerNorm without a bias."""
    return Norm(weights[f"{at}.weight"], None, config.layer_norm_epsilon, kind="layer")


def block(config: Any, weights: Weights, layer: int, **how: Any) -> Block:
    """Queries, keys and values are one matrix; nothing has a bias."""
    at = f"transformer.blocks.{layer}."
    (joint, _), out = linears(weights, f"{at}attn.", "Wqkv", "out_proj")
    parts = [(weight, None) for weight in joint.chunk(3)]
    return Block(
        **norms(norm, config, weights, at, "norm_1", "norm_2"),
        **attention(config.d_model // config.n_heads, *parts, out, scale=config.attn_config.softmax_scale),
        **mlp(*linears(weights, f"{at}ffn.", "up_proj", "down_proj")),
        alibi=Alibi(slopes(config.n_heads, joint.device)),
        **how,
    )


def refused(config: Any) -> Mapping[str, bool]:
    """What only some MPTs have; all of it but `clip_qkv` is left out by transformers without a word."""
    asked = config.attn_config
    return {
        "clipping of queries, keys and values (clip_qkv)": bool(asked.clip_qkv),
        "norms of queries and keys (qk_ln)": asked.qk_ln,
        "attention to later tokens (prefix_lm)": asked.prefix_lm,
        "attention without ALiBi (alibi)": not asked.alibi,
        f"ALiBi up to {asked.alibi_bias_max} (alibi_bias_max)": asked.alibi_bias_max != 8,
        f"attention of kind {asked.attn_type!r} (attn_type)": asked.attn_type != "multihead_attention",
        "a scale of the logits (logit_scale)": config.logit_scale not in (None, 1),
        "a bias of a linear layer (no_bias)": not config.no_bias,
        f"an MLP of {config.expansion_ratio} times the width (expansion_ratio)": config.expansion_ratio != 4,
        f"the norm {config.norm_type!r} (norm_type)": "rms" in config.norm_type.lower(),
    }


MPT = Architecture(
    block,
    norm,
    layers="transformer.blocks",
    embedding="transformer.wte.weight",
    final_norm="transformer.norm_f",
    activation=lambda config: "gelu",
    longest=lambda config: config.max_seq_len,
    adding="m",
    refused=refused,
)
