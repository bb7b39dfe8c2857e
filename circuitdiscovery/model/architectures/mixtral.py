"""Mixtral: Mistral with experts.

Jiang et al. 2024, arXiv 2401.04088, section 2.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from circuitdiscovery.model.architectures.experts import experts_by
from circuitdiscovery.model.architectures.llama import LLAMA

_EXPERTS = experts_by("mixtral", "MixtralSparseMoeBlock")
MIXTRAL = replace(LLAMA, block=partial(LLAMA.block, experts=_EXPERTS))
