"""GPT-J: attention and MLP in parallel behind one LayerNorm, rotary positions in pairs of neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from circuitdiscovery.model.architectures.architecture import Architecture, Weights
from circuitdiscovery.model.architectures.gpt2 import norm
from circuitdiscovery.model.architectures.parts import attention, linears, mlp, norms
from circuitdiscovery.model.block import Block
from circuitdiscovery.model.positions import Rotary


def block(config: Any, weights: Weights, layer: int, **how: Any) -> Block:
    """Attention has no biases."""
    at = f"transformer.h.{layer}."
    d_head = config.hidden_size // config.num_attention_heads
    return Block(
        **norms(norm, config, weights, at, "ln_1"),
        **attention(d_head, *linears(weights, f"{at}attn.", "q_proj", "k_proj", "v_proj", "out_proj")),
        **mlp(*linears(weights, f"{at}mlp.", "fc_in", "fc_out")),
        **how,
    )


def rotary(config: Any) -> Rotary:
    """Of the first `rotary_dim` dimensions of each head."""
    exponents = torch.arange(0, config.rotary_dim, 2, dtype=torch.float32) / config.rotary_dim
    return Rotary(10_000.0**-exponents, 1.0, neighbours=True)


def refused(config: Any) -> Mapping[str, bool]:
    """A part of a head that is none; it is the size of a table, too."""
    turned, d_head = config.rotary_dim, config.hidden_size // config.num_attention_heads
    return {
        f"a rotary part of {turned} of a head's {d_head} dimensions (rotary_dim)": not isinstance(turned, int)
        or not 2 <= turned <= d_head
        or turned % 2 == 1
    }


GPTJ = Architecture(
    block,
    norm,
    layers="transformer.h",
    embedding="transformer.wte.weight",
    final_norm="transformer.ln_f",
    rotary=rotary,
    activation=lambda config: config.activation_function,
    parallel=lambda config: True,
    longest=lambda config: config.n_positions,
    refused=refused,
)
