"""Gemma 1: Llama with norms whose weights are added to 1, and scaled embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from circuitdiscovery.model.architectures import llama
from circuitdiscovery.model.architectures.architecture import Weights
from circuitdiscovery.model.norm import Norm


def norm(config: Any, weights: Weights, at: str) -> Norm:
    """RMSNorm by 1 + weight."""
    return Norm(weights[f"{at}.weight"], None, config.rms_norm_eps, kind="rms", from_one=True)


def looks_ahead(config: Any) -> Mapping[str, bool]:
    """Encoders are built of the same parts."""
    return {
        "attention to later tokens (use_bidirectional_attention)": bool(config.use_bidirectional_attention)
    }


GEMMA = replace(
    llama.LLAMA,
    block=partial(llama.block, normed=norm),
    norm=norm,
    embed_scale=lambda config: config.hidden_size**0.5,
    refused=looks_ahead,
)
