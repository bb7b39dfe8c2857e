"""Qwen2-MoE: Qwen2 with experts, one of them shared, in some layers."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from circuitdiscovery.model.architectures.experts import experts_by
from circuitdiscovery.model.architectures.llama import LLAMA

_EXPERTS = experts_by("qwen2_moe", "Qwen2MoeSparseMoeBlock")
QWEN2_MOE = replace(LLAMA, block=partial(LLAMA.block, experts=_EXPERTS))
