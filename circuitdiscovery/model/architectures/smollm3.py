"""SmolLM3: Llama whose layers do not all have a rotary embedding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from circuitdiscovery.model.architectures.architecture import Weights
from circuitdiscovery.model.architectures.llama import LLAMA
from circuitdiscovery.model.architectures.llama import block as llama
from circuitdiscovery.model.block import Block


def block(config: Any, weights: Weights, layer: int, **how: Any) -> Block:
    """`no_rope_layers` has a 1 for each layer that has one."""
    found = llama(config, weights, layer, **how)
    return found if config.no_rope_layers[layer] else replace(found, rotary=None)


SMOLLM3 = replace(LLAMA, block=block)
