"""Experts in files, which have three matrices for each one; transformers has two tensors for a layer."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import Tensor

_EXPERT = re.compile(r"^(.*\.)(?:mlp|block_sparse_moe)\.experts\.(\d+)\.(\w+)\.weight$")
# a matrix in a file -> the tensor that holds it, and which half of its rows
_HOLDS = {
    **dict.fromkeys(("gate_proj", "w1"), ("gate_up_proj", 0)),
    **dict.fromkeys(("up_proj", "w3"), ("gate_up_proj", 1)),
    **dict.fromkeys(("down_proj", "w2"), ("down_proj", None)),
}


@dataclass(frozen=True)
class Part:
    """One matrix of one expert, as a part of what transformers has."""

    whole: str
    expert: int
    half: int | None

    def of(self, whole: Tensor) -> Tensor | None:
        """The view of [experts, rows, columns] that it is; None where there are not so many experts."""
        if self.expert >= len(whole):
            return None
        return whole[self.expert] if self.half is None else whole[self.expert].chunk(2)[self.half]


def part_of(name: str) -> Part | None:
    """What a weight's name in a file says; None: it is no expert's."""
    match = _EXPERT.match(name)
    if match is None or match[3] not in _HOLDS:
        return None
    tensor, half = _HOLDS[match[3]]
    return Part(f"{match[1]}mlp.experts.{tensor}", int(match[2]), half)


def router_of(name: str) -> str:
    """Mixtral's files have another name for what the router is a part of."""
    return name.replace(".block_sparse_moe.", ".mlp.")
