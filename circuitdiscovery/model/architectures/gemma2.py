"""Gemma 2: Gemma 1 with norms after attention and MLP, with caps, and with windows in half of the layers.

Team et al. 2024, arXiv 2408.00118, section 2.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from circuitdiscovery.model.architectures import llama
from circuitdiscovery.model.architectures.architecture import Weights
from circuitdiscovery.model.architectures.gemma import GEMMA, norm
from circuitdiscovery.model.block import Block


def block(config: Any, weights: Weights, layer: int, **how: Any) -> Block:
    """With a norm of what all heads write together, and one of what the MLP writes."""
    at = f"model.layers.{layer}."
    found = llama.block(
        config,
        weights,
        layer,
        normed=norm,
        before_mlp="pre_feedforward_layernorm",
        heads_norm=norm(config, weights, at + "post_attention_layernorm"),
        mlp_norm=norm(config, weights, at + "post_feedforward_layernorm"),
        soft_cap=config.attn_logit_softcapping,
        **how,
    )
    return replace(found, scale=config.query_pre_attn_scalar**-0.5)


GEMMA2 = replace(
    GEMMA,
    block=block,
    activation=lambda config: config.hidden_activation,
    logit_cap=lambda config: config.final_logit_softcapping,
)
