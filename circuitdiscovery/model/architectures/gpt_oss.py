"""gpt-oss: Llama with experts, a sink in the attention of each head, and windows in every other layer.

OpenAI 2025, arXiv 2508.10925.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from circuitdiscovery.model.architectures.architecture import Weights, rotary_by
from circuitdiscovery.model.architectures.experts import experts_by
from circuitdiscovery.model.architectures.llama import LLAMA
from circuitdiscovery.model.architectures.llama import block as llama
from circuitdiscovery.model.block import Block

_EXPERTS = experts_by("gpt_oss", "GptOssMLP")


def block(config: Any, weights: Weights, layer: int, **how: Any) -> Block:
    """Of full precision: the published files are quantized, and refused."""
    sinks = weights[f"model.layers.{layer}.self_attn.sinks"]
    return llama(config, weights, layer, experts=_EXPERTS, sinks=sinks, **how)


GPT_OSS = replace(LLAMA, block=block, rotary=rotary_by("gpt_oss", "GptOssRotaryEmbedding"))
