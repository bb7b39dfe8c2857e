"""Cohere (Command R): Llama with attention and MLP in parallel behind one LayerNorm without a bias."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from circuitdiscovery.model.architectures import llama
from circuitdiscovery.model.architectures.architecture import Weights
from circuitdiscovery.model.norm import Norm
from circuitdiscovery.model.positions import Rotary


def norm(config: Any, weights: Weights, at: str) -> Norm:
    """LayerNorm without a bias."""
    return Norm(weights[f"{at}.weight"], None, config.layer_norm_eps, kind="layer")


def rotary(config: Any) -> Rotary:
    """Of pairs of neighbours."""
    return replace(llama.rotary(config), neighbours=True)


COHERE = replace(
    llama.LLAMA,
    block=partial(llama.block, normed=norm, before_mlp="input_layernorm"),
    norm=norm,
    rotary=rotary,
    parallel=lambda config: True,
    logit_scale=lambda config: config.logit_scale,
    refused=lambda config: {"norms with each head's own weights (use_qk_norm)": config.use_qk_norm},
)
