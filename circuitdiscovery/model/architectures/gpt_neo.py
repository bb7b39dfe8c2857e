"""GPT-Neo: GPT-2 with unscaled attention, local in some layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from circuitdiscovery.model.architectures.architecture import Weights
from circuitdiscovery.model.architectures.gpt2 import GPT2, norm
from circuitdiscovery.model.architectures.parts import attention, linears, mlp, norms
from circuitdiscovery.model.block import Block


def block(config: Any, weights: Weights, layer: int, **how: Any) -> Block:
    """Queries, keys and values have no biases."""
    at = f"transformer.h.{layer}."
    how["window"] = config.window_size if config.attention_layers[layer] == "local" else None
    parts = linears(weights, f"{at}attn.attention.", "q_proj", "k_proj", "v_proj", "out_proj")
    return Block(
        **norms(norm, config, weights, at, "ln_1", "ln_2"),
        **attention(config.hidden_size // config.num_heads, *parts, scale=1.0),
        **mlp(*linears(weights, f"{at}mlp.", "c_fc", "c_proj")),
        **how,
    )


GPT_NEO = replace(
    GPT2,
    block=block,
    refused=lambda config: {
        f"a window of {config.window_size} positions (window_size)": config.window_size < 1
    },
)
