"""What is asked of an evaluator, and how far it is: circuits that differ little, and FLOP done and to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from circuitdiscovery.engine.setup import Progress


class Family(NamedTuple):
    """Circuits to measure that differ little from a base.

    Args:
        masks: [sources, receivers] each.
        base: what they differ little from; by default all their edges together.
    """

    masks: Sequence[np.ndarray]
    base: np.ndarray | None = None


@dataclass
class Work:
    """FLOP that are done, planned (among them those done), and expected beside."""

    progress: Progress | None
    unit: float
    done: float = 0.0
    planned: float = 0.0
    ahead: float = 0.0

    def plan(self, cost: float, done: float = 0.0) -> None:
        """So much of what was expected, or more, is to be done; some of it was done before."""
        self.planned += cost
        self.ahead = max(0.0, self.ahead - cost)
        self.done += done

    def did(self, cost: float) -> None:
        """Of what was planned, so much is done."""
        self.done += cost
        self.report()

    def report(self) -> None:
        """Tell the progress."""
        if self.progress:
            done = round(self.done / self.unit)
            self.progress(done, max(done, round((max(self.planned, self.done) + self.ahead) / self.unit)))
