"""What is asked of an evaluator, and how far it is: circuits that differ little, and FLOP done and to do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, overload

import numpy as np

from circuitdiscovery.engine.setup import Progress


class Masks(Sequence[np.ndarray]):
    """Masks of some things, each made when it is asked for: of thousands of parts they are gigabytes."""

    def __init__(self, of: Sequence[Any], make: Callable[[Any], np.ndarray]) -> None:
        self._of, self._make = of, make

    def __len__(self) -> int:
        return len(self._of)

    @overload
    def __getitem__(self, at: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, at: slice) -> Masks: ...
    def __getitem__(self, at: int | slice) -> np.ndarray | Masks:
        return Masks(self._of[at], self._make) if isinstance(at, slice) else self._make(self._of[at])


class Family(NamedTuple):
    """Circuits to measure that differ little from a base.

    Args:
        masks: [sources, receivers] each.
        base: what they differ little from; by default all their edges together.
    """

    masks: Sequence[np.ndarray]
    base: np.ndarray | None = None

    @property
    def common(self) -> np.ndarray:
        """[sources, receivers]: the base."""
        return together(self.masks) if self.base is None else self.base

    def parts(self, most: int) -> Iterator[Family]:
        """The same in parts of so many masks at most, which differ little from the same base."""
        if len(self.masks) <= most:
            yield self
            return
        base = self.common
        for start in range(0, len(self.masks), most):
            yield Family(self.masks[start : start + most], base)


def passes(families: Iterable[Family], most: int) -> Iterator[list[Family]]:
    """The families in lists of so many masks at most."""
    some: list[Family] = []
    for family in families:
        for part in family.parts(most):
            if sum(len(each.masks) for each in (*some, part)) > most:
                yield some
                some = []
            some.append(part)
    yield some


def together(masks: Iterable[np.ndarray]) -> np.ndarray:
    """All edges of some masks, one at least."""
    found = None
    for mask in masks:
        found = mask.copy() if found is None else np.logical_or(found, mask, out=found)
    assert found is not None
    return found


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
