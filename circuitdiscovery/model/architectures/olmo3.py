"""OLMo 3: OLMo 2 with windows in most layers, and a rotary embedding for each kind of layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from circuitdiscovery.model.architectures.architecture import rotary_by_kind
from circuitdiscovery.model.architectures.olmo2 import OLMO2
from circuitdiscovery.model.block import Rotary


def rotary(config: Any) -> Mapping[str, Rotary]:
    """One for each kind of layer."""
    from transformers.models.olmo3.modeling_olmo3 import Olmo3RotaryEmbedding

    return rotary_by_kind(config, Olmo3RotaryEmbedding(config))


OLMO3 = replace(OLMO2, rotary=rotary)
