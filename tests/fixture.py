"""The agreement fixture: one random GPT-2, and what two independent implementations
(EAP-IG's code and AutoCircuit) compute on it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny import Prompts, Tiny

from circuitdiscovery.graph.graph import Graph

ACDC_THRESHOLDS = ("0.01", "0.001", "0.0001")


@dataclass(frozen=True)
class Agreement:
    """The model folder and `results.json`."""

    tiny: Tiny
    folder: Path

    @cached_property
    def results(self) -> dict[str, Any]:
        """See the fixture's README."""
        return json.loads((self.folder / "results.json").read_text())

    @cached_property
    def prompts(self) -> Prompts:
        """16 pairs of 16 tokens."""
        return Prompts(
            *(torch.tensor(self.results[key]) for key in ("clean", "corrupted", "correct", "incorrect"))
        )


def random_masks(graph: Graph, n: int, seed: int = 0) -> list[np.ndarray]:
    """Random edge sets of every density."""
    rng = np.random.default_rng(seed)
    return [
        graph.allowed & (rng.random(graph.allowed.shape) < density) for density in np.linspace(0.1, 0.95, n)
    ]
