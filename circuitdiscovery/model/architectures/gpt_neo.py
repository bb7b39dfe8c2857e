"""GPT-Neo: GPT-2 with unscaled attention, local in some layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from circuitdiscovery.model.architectures.architecture import Weights, heads
from circuitdiscovery.model.architectures.gpt2 import GPT2, norm
from circuitdiscovery.model.block import Block


def block(config: Any, weights: Weights, layer: int, **how: Any) -> Block:
    """Queries, keys and values have no biases."""
    at = f"transformer.h.{layer}."
    attention, mlp = at + "attn.attention.", at + "mlp."
    d_head = config.hidden_size // config.num_heads
    how["window"] = config.window_size if config.attention_layers[layer] == "local" else None
    return Block(
        norm1=norm(config, weights, at + "ln_1"), norm2=norm(config, weights, at + "ln_2"),
        W_Q=heads(weights[attention + "q_proj.weight"], d_head), b_Q=None,
        W_K=heads(weights[attention + "k_proj.weight"], d_head), b_K=None,
        W_V=heads(weights[attention + "v_proj.weight"], d_head), b_V=None,
        W_O=heads(weights[attention + "out_proj.weight"].T, d_head), b_O=weights[attention + "out_proj.bias"],
        scale=1.0,
        W_in=weights[mlp + "c_fc.weight"], b_in=weights[mlp + "c_fc.bias"], W_gate=None, b_gate=None,
        W_out=weights[mlp + "c_proj.weight"], b_out=weights[mlp + "c_proj.bias"],
        **how,
    )  # fmt: skip


GPT_NEO = replace(
    GPT2,
    block=block,
    refused=lambda config: {
        f"a window of {config.window_size} positions (window_size)": config.window_size < 1
    },
)
