"""Qwen3-MoE: Qwen3 with experts in some layers."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from circuitdiscovery.model.architectures.experts import experts_by
from circuitdiscovery.model.architectures.qwen3 import QWEN3

_EXPERTS = experts_by("qwen3_moe", "Qwen3MoeSparseMoeBlock")
QWEN3_MOE = replace(QWEN3, block=partial(QWEN3.block, experts=_EXPERTS))
