"""What the hypothesis tests compute (Shi et al. 2024, arXiv 2410.13032)
of numbers alone: distances and p-values.

scipy.stats takes a second to import, so each function imports what it needs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

SAME = 1e-5  # two values of float32 forwards that are relatively no further apart are the same


def distance(a: np.ndarray, b: np.ndarray, least: float) -> float:
    """How far apart two circuits are by their [examples] values: the
    mean squared difference, roundings left out (`least`: see `same`).
    """
    return float((np.where(same(a, b, least), 0, a - b) ** 2).mean())


def same(a: np.ndarray, b: np.ndarray, least: float) -> np.ndarray:
    """Elementwise, whether two values of forwards differ by no more than roundings.

    `least`: how far apart values near 0 must be to be more, in their unit.
    """
    return np.isclose(a, b, rtol=SAME, atol=least)


def sign_test(wins: int, rounds: int, epsilon: float) -> float:
    """P(|K / rounds - 1/2| >= |wins / rounds - 1/2|), where each of the rounds is
    won with a probability of 1/2 + epsilon.

    It is the same with 1/2 - epsilon, and smaller with everything between:
    the largest p of |P(win) - 1/2| <= epsilon.

    >>> sign_test(10, 10, 0.0) == 2 * 0.5**10
    True
    """
    from scipy.stats import binomtest

    if not rounds:
        return 1.0
    most = max(wins, rounds - wins)
    above = binomtest(most, rounds, 0.5 + epsilon, alternative="greater").pvalue
    return float(min(1.0, above + binomtest(rounds - most, rounds, 0.5 + epsilon, alternative="less").pvalue))


def independence_test(x: np.ndarray, y: np.ndarray, permutations: int, seed: Any = 0) -> tuple[float, float]:
    """HSIC of two [n] samples (Gretton et al. 2007, equation 4) and its p: the
    share of the permutations of y that reach it.

    HSIC is trace(K H L H) / n^2 with H = 1 - 1/n. The sample as it is
    counts as a permutation more, so p is never 0.

    >>> hsic, p = independence_test(np.arange(20.0), np.arange(20.0) ** 2, 99)
    >>> p
    0.01
    """
    rows, columns = _kernel(x), _kernel(y)
    rows = rows - rows.mean(0) - rows.mean(1)[:, None] + rows.mean()  # H K H
    observed, rng = float((rows * columns).mean()), np.random.default_rng(seed)
    orders = (rng.permutation(len(x)) for _ in range(permutations))
    reached = sum(
        float((rows * columns[np.ix_(order, order)]).mean()) >= observed - 1e-12 for order in orders
    )
    return observed, (1 + reached) / (1 + permutations)


def _kernel(x: np.ndarray) -> np.ndarray:
    """[n] -> [n, n], Gaussian, as wide as the median distance of two
    (or the mean one, where most are equal)."""
    distances = np.abs(x[:, None] - x)
    pairs = distances[np.triu_indices(len(x), 1)]
    width = float(np.median(pairs) or pairs.mean() or 1.0) if len(pairs) else 1.0
    return np.exp(-(distances**2) / (2 * width**2))


def too_seldom(hits: np.ndarray, n: int, quantile: float) -> np.ndarray:
    """[k] counts of n -> [k] P(K <= hits), where each of the n is hit with a probability of `quantile`.

    >>> too_seldom(np.array([0, 2]), 2, 0.5).tolist()
    [0.25, 1.0]
    """
    from scipy.stats import binom

    return np.asarray(binom.cdf(hits, n, quantile))


def often_enough(hits: int, n: int, quantile: float) -> float:
    """P(K >= hits), where each of the n is hit with a probability of `quantile`.

    >>> often_enough(2, 2, 0.5)
    0.25
    """
    from scipy.stats import binomtest

    return float(binomtest(hits, n, quantile, alternative="greater").pvalue)


def corrected(p: np.ndarray, correction: str = "holm") -> np.ndarray:
    """[n] p-values corrected for being n (Holm 1979, or Bonferroni): any true H0 is
    rejected with a probability of at most alpha.

    >>> p = np.array([0.01, 0.04, 0.03])
    >>> corrected(p).tolist(), corrected(p, "bonferroni").tolist()
    ([0.03, 0.06, 0.06], [0.03, 0.12, 0.09])
    """
    if correction != "holm":
        return np.minimum(1, p * (len(p) if correction == "bonferroni" else 1))
    order, out = np.argsort(p), np.empty(len(p))
    out[order] = np.minimum(1, np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order]))
    return out
