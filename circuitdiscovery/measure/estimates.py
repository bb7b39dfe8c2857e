"""Numbers with 95% intervals over the examples (computed in intervals.py), and the bootstrap draws."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from circuitdiscovery.files.fields import exactly, typed


class Estimate(float):
    """A number with its 95% interval from `low` to `high` over the examples; both are NaN if it has none."""

    low: float
    high: float

    def __new__(cls, value: float, low: float = math.nan, high: float = math.nan) -> Estimate:
        self = super().__new__(cls, value)
        self.low, self.high = float(low), float(high)
        return self

    def __getnewargs__(self) -> tuple[float, float, float]:  # pyright: ignore
        return float(self), self.low, self.high

    def __str__(self) -> str:
        return (
            f"{float(self):.3g} [{self.low:.3g}, {self.high:.3g}]"
            if self.has_interval
            else f"{float(self):.3g}"
        )

    __repr__ = __str__

    @property
    def has_interval(self) -> bool:
        """Whether it has an interval; a largest value chosen on the examples it is measured on has none."""
        return not math.isnan(self.low)

    def magnitude(self) -> Estimate:
        """|value|, with the interval folded at 0: its low end is 0 if the signed interval contains 0.

        >>> Estimate(-2, -3, 1).magnitude(), Estimate(-2, -3, -1).magnitude()
        (2 [0, 3], 2 [1, 3])
        """
        ends = abs(self.low), abs(self.high)
        return Estimate(abs(self), 0.0 if self.low <= 0 <= self.high else min(ends), max(ends))

    @classmethod
    def from_dict(cls, data: Any, where: str = "estimate", field: str = "") -> Estimate:
        """Read what `to_dict` gave; null stands for NaN."""
        parts = ("value", "low", "high")
        exactly(data, parts, where, field)
        given = (
            None if data[name] is None else typed(data[name], float, where, f"{field}.{name}")
            for name in parts
        )
        return cls(*(math.nan if each is None else float(each) for each in given))

    def to_dict(self) -> dict[str, float | None]:
        """The value and its interval, as JSON; null if there is no interval, or no value."""
        return (
            {"value": float(self), "low": self.low, "high": self.high}
            if self.has_interval
            else _without_interval(self)
        )


def _without_interval(value: float) -> dict[str, float | None]:
    return {"value": None if math.isnan(value) else float(value), "low": None, "high": None}


RESAMPLES = 1000
_AT_ONCE = 2**24  # bytes of draws that are held at once


def bootstrap(count: int, seed: int) -> np.ndarray:
    """[resamples, count]: how often each of `count` items is in each draw of `count` with replacement."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)


@lru_cache(maxsize=4)
def weights(count: int, seed: int) -> np.ndarray:
    """[resamples, count], read-only: the draws as weights that sum to 1."""
    found = bootstrap(count, seed) / count
    found.flags.writeable = False
    return found


@dataclass(frozen=True)
class Resamples:
    """The bootstrap draws of many items, made anew and some at a time wherever they are used."""

    count: int
    seed: int

    def __iter__(self) -> Iterator[np.ndarray]:
        """Blocks of resamples, [some, count] each, as weights that sum to 1."""
        rng, count = np.random.default_rng(self.seed), self.count
        some = max(1, _AT_ONCE // (8 * count))
        for start in range(0, RESAMPLES, some):
            block = np.empty((min(some, RESAMPLES - start), count))
            for draw in block:  # faster than `multinomial`, which is slow where items are many
                draw[:] = np.bincount(rng.integers(count, size=count), minlength=count)
            block /= count
            yield block


Draws = np.ndarray | Resamples


def drawn(count: int, seed: int) -> Draws:
    """The bootstrap draws of so many items: a table of them, where it is not too large."""
    return weights(count, seed) if 8 * RESAMPLES * count <= _AT_ONCE else Resamples(count, seed)
