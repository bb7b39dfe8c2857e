"""OLMo 3: OLMo 2 with windows in most layers, and a rotary embedding for each kind of layer."""

from __future__ import annotations

from dataclasses import replace

from circuitdiscovery.model.architectures.architecture import rotary_by
from circuitdiscovery.model.architectures.olmo2 import OLMO2

OLMO3 = replace(OLMO2, rotary=rotary_by("olmo3", "Olmo3RotaryEmbedding"))
