"""Cohere (Command R): Llama with attention and MLP in parallel behind one LayerNorm without a bias."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from circuitdiscovery.model.architectures import llama
from circuitdiscovery.model.architectures.architecture import Weights
from circuitdiscovery.model.block import Block, Norm, Rotary


def norm(config: Any, weights: Weights, at: str) -> Norm:
    """LayerNorm without a bias."""
    return Norm(weights[f"{at}.weight"], None, config.layer_norm_eps, kind="layer")


def block(config: Any, weights: Weights, layer: int, **how: Any) -> Block:
    """The MLP reads through the norm of attention."""
    return llama.block(config, weights, layer, normed=norm, before_mlp="input_layernorm", **how)


def rotary(config: Any) -> Rotary:
    """Of pairs of neighbours."""
    return replace(llama.rotary(config), neighbours=True)


COHERE = replace(
    llama.LLAMA,
    block=block,
    norm=norm,
    rotary=rotary,
    parallel=lambda config: True,
    logit_scale=lambda config: config.logit_scale,
    refused=lambda config: {
        "a norm of each head's own of queries and keys (use_qk_norm)": config.use_qk_norm
    },
)
