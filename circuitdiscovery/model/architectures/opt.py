"""OPT: LayerNorm before attention and MLP, learnt positions from row 2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from circuitdiscovery.model.architectures.architecture import Architecture, Weights
from circuitdiscovery.model.architectures.parts import attention, linears, mlp, norms
from circuitdiscovery.model.block import Block
from circuitdiscovery.model.norm import Norm

EPS = 1e-5  # torch's own, which no config changes


def norm(config: Any, weights: Weights, at: str) -> Norm:
    """LayerNorm, in Galactica without weights."""
    weight = weights.get(f"{at}.weight")
    if weight is None:
        weight = torch.ones_like(weights[OPT.embedding][0])
    return Norm(weight, weights.get(f"{at}.bias"), EPS, kind="layer")


def block(config: Any, weights: Weights, layer: int, **how: Any) -> Block:
    """Biases everywhere, or nowhere."""
    at = f"{OPT.layers}.{layer}."
    d_head = config.hidden_size // config.num_attention_heads
    return Block(
        **norms(norm, config, weights, at, "self_attn_layer_norm", "final_layer_norm"),
        **attention(d_head, *linears(weights, f"{at}self_attn.", "q_proj", "k_proj", "v_proj", "out_proj")),
        **mlp(*linears(weights, at, "fc1", "fc2")),
        **how,
    )


def refused(config: Any) -> Mapping[str, bool]:
    """What opt-350m has, and old fine-tuned models."""
    return {
        "post-norm (do_layer_norm_before)": not config.do_layer_norm_before,
        "a projection of the embeddings (word_embed_proj_dim)": config.word_embed_proj_dim
        != config.hidden_size,
        "a model without its last norm (_remove_final_layer_norm)": config._remove_final_layer_norm,
    }


OPT = Architecture(
    block,
    norm,
    layers="model.decoder.layers",
    embedding="model.decoder.embed_tokens.weight",
    final_norm="model.decoder.final_layer_norm",
    positions="model.decoder.embed_positions.weight",
    position_offset=2,
    activation=lambda config: config.activation_function,
    refused=refused,
)
