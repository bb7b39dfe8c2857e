"""Which sources have rows of their own in a tensor of what all sources write, and which are numbers there.

Parts of an MLP that are a number times a vector (neurons, features) have no row: their numbers alone are
kept, as many as the model is wide in a row, after the rows of all others (model/packing.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True, eq=False)
class Layout:
    """Of the sources of a graph, S of them.

    Args:
        scaled: [S] bool, those that are numbers.
    """

    scaled: np.ndarray

    @cached_property
    def before(self) -> np.ndarray:
        """[S + 1]: how many of the first sources are numbers."""
        return np.concatenate([[0], np.cumsum(self.scaled)])

    @property
    def numbers(self) -> int:
        """How many sources are numbers."""
        return int(self.before[-1])

    @property
    def full(self) -> int:
        """How many sources have rows of their own: the first rows."""
        return len(self.scaled) - self.numbers

    @cached_property
    def order(self) -> np.ndarray:
        """[S]: each source's place where those with rows of their own come first."""
        each = np.arange(len(self.scaled))
        return np.where(self.scaled, self.full + self.before[:-1], each - self.before[:-1])

    def rows(self, width: int) -> int:
        """How many rows of so many numbers there are in all."""
        return self.full + rows_of(self.numbers, width)

    def split(self, rows: slice) -> tuple[slice, slice]:
        """(the rows of their own of some sources that follow each other, which of the numbers they are)."""
        start, stop, _ = rows.indices(len(self.scaled))
        first, last = int(self.before[start]), int(self.before[stop])
        return slice(start - first, stop - last), slice(first, last)


def rows_of(numbers: int, width: int) -> int:
    """How many rows of a width so many numbers take."""
    return -(-numbers // width)
