"""Numbers with their 95% bootstrap intervals over the examples."""

from __future__ import annotations

import numpy as np


class Estimate(float):
    """A number with its 95% bootstrap interval `low` to `high` over the examples."""

    low: float
    high: float

    def __new__(cls, value: float, low: float, high: float) -> Estimate:
        self = super().__new__(cls, value)
        self.low, self.high = float(low), float(high)
        return self

    def __getnewargs__(self) -> tuple[float, float, float]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return float(self), self.low, self.high

    def __str__(self) -> str:
        return f"{float(self):.3g} [{self.low:.3g}, {self.high:.3g}]"

    __repr__ = __str__

    def to_dict(self) -> dict[str, float]:
        """Value and interval, as JSON."""
        return {"value": float(self), "low": self.low, "high": self.high}


RESAMPLES = 1000


def bootstrap(count: int, seed: int) -> np.ndarray:
    """[resamples, count]: how often each of `count` things is in each draw of as many with replacement."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)


def resampled(values: np.ndarray, seed: int) -> np.ndarray:
    """[1 + resamples]: the mean of [count] values, then that of each bootstrap draw."""
    return np.concatenate([[values.mean()], bootstrap(len(values), seed) / len(values) @ values])


def interval(draws: np.ndarray) -> Estimate:
    """The first of [1 + resamples] values with the 95% interval of the others."""
    low, high = np.quantile(draws[1:], [0.025, 0.975])
    return Estimate(float(draws[0]), low, high)
