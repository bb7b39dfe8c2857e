"""95% intervals that contain the true value 95% of the time; docs/coverage.md has a simulation of how often.

1. A mean, or a ratio of two means, of values per example: bootstrap-t (Efron and Tibshirani 1993, chapter
   12.5). Each draw's error is divided by the draw's own standard error, and the quantiles of these ratios
   replace those of Student's t. The percentiles of the draws themselves would be too narrow with few examples
   or a skewed distribution. Each side is at least as wide as by Student's t, so the interval contains its
   estimate, and at most five times as wide, because a draw without spread carries no information.
2. A mean of a quantity that is never negative and about log-normal over prompts, such as KL: on each side the
   further of that limit and Cox's limit for the mean of a log-normal quantity (Zhou and Gao 1997), because
   a few prompts seldom include the rare large values. No limit is below 0.
3. A share of the examples: Clopper and Pearson 1934, which covers for any share and number. Of a difference
   of shares, what is won and what is lost have such limits each. Of a ratio of such differences, bootstrap-t,
   and no narrower than by such limits of its part or of the rest: a bootstrap sees no variance where all
   examples agree, which with few examples is common even if the share is not 1.
4. A magnitude |x|: the interval of the signed x, folded at 0. Percentiles of |x| exclude 0 even if x is 0.
5. A mean of magnitudes: the mean of the folded limits, which is too wide rather than too narrow.
6. A mean over pairs of runs: the jackknife over runs with Student's t; where all runs agree alike, the limits
   of how likely that is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from circuitdiscovery.measure.estimates import Draws, Estimate, Resamples

LEVEL = 0.95
_TAIL = (1 - LEVEL) / 2
_WIDEST = 5.0  # times Student's
_SMALL = 1e-3  # of the mean: smaller values are raised to it before their logarithm is taken
_CALM = 1e-9  # of the sample's standard error, or of a share's whole: a standard error below it is rounding


def mean(values: np.ndarray, draws: Draws, *, skewed: bool = False, binary: bool | None = None) -> Estimate:
    """The mean of [n] values.

    Args:
        values: [n], one per example.
        draws: of the bootstrap, [resamples, n] weights or blocks of them (see `estimates.drawn`).
        skewed: the values are about log-normal, and never negative except by rounding.
        binary: whether every value is 0 or 1 by its nature, so that the mean is a share; None: where they
            are all 0 or 1 and some 1.

    >>> from circuitdiscovery.measure.estimates import weights
    >>> mean(np.arange(5.0), weights(5, 0)), mean(np.ones(8), weights(8, 0))
    (2 [-0.236, 4.27], 1 [0.631, 1])
    """
    return means(np.asarray(values)[None], draws, skewed=skewed, binary=binary)[0]


def means(
    values: np.ndarray, draws: Draws, *, skewed: bool = False, binary: bool | None = None
) -> list[Estimate]:
    """As `mean`, for [figures, n] values at once."""
    values = np.asarray(values, dtype=float)
    found = _ratios(values, np.ones(values.shape[1]), draws)
    if skewed:
        found = [clipped(_with_cox(row, each), 0.0) for row, each in zip(values, found, strict=True)]
    return [
        share(round(row.sum()), len(row)) if _are_shares(row, binary) else each
        for row, each in zip(values, found, strict=True)
    ]


def difference(
    a: np.ndarray, b: np.ndarray, draws: Draws, *, skewed: bool = False, binary: bool | None = None
) -> Estimate:
    """The mean of a - b, [n] values each, of the same examples (`skewed`, `binary`: as of `mean`).

    If all values are 0 or 1, such as `accuracy`, it is the share won minus the share lost, each with its own
    limits at 97.5%. A skewed quantity that is 0 on one side, as the model's KL from itself is, is as on the
    other side.
    """
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if _are_shares(np.concatenate([a, b]), binary):
        return _won_and_lost(a - b)
    if skewed and not a.any():
        found = mean(b, draws, skewed=True, binary=False)
        return Estimate(-found, -found.high, -found.low)
    return mean(a - b, draws, skewed=skewed and not b.any(), binary=False)


def ratio(part: np.ndarray, whole: np.ndarray, draws: Draws, *, binary: bool | None = False) -> Estimate:
    """The mean of `part` over the mean of `whole`, [n] values each, of the same examples; NaN over 0.

    Args:
        part, whole, draws: see `mean`.
        binary: whether `part`, `whole` and the rest are differences of values that are 0 or 1 by their
            nature; None: where they are -1, 0 or 1 each.

    >>> from circuitdiscovery.measure.estimates import weights
    >>> ratio(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0]), weights(3, 0))
    0.5 [0.5, 0.5]
    >>> ratio(np.ones(64), np.ones(64), weights(64, 0), binary=True)
    1 [0.868, 1]
    """
    return ratios(np.asarray(part)[None], whole, draws, binary=binary)[0]


def ratios(
    parts: np.ndarray, whole: np.ndarray, draws: Draws, *, binary: bool | None = False
) -> list[Estimate]:
    """As `ratio`, for [figures, n] parts of one whole."""
    parts, whole = np.asarray(parts, dtype=float), np.asarray(whole, dtype=float)
    found = _ratios(parts, whole, draws)
    if of_shares(parts, whole, binary):
        return [_widened(each, part, whole) for each, part in zip(found, parts, strict=True)]
    return found


def of_shares(parts: np.ndarray, whole: np.ndarray, binary: bool | None) -> bool:
    """Whether parts, a whole and its rests are differences of values that are 0 or 1 (see `ratio`)."""
    some = (whole, parts, whole - parts)
    return all(bool(np.isin(each, (-1, 0, 1)).all()) for each in some) if binary is None else binary


def clipped(found: Estimate, least: float = -math.inf, most: float = math.inf) -> Estimate:
    """The estimate with limits that are possible ones; they still contain it.

    >>> clipped(Estimate(2.21, -3.11, 7.54), 0.0)
    2.21 [0, 7.54]
    """
    if not found.has_interval:
        return found
    low, high = max(found.low, least), min(found.high, most)
    return Estimate(float(found), min(float(found), low), max(float(found), high))


def share(hits: float, count: int, outside: float = 1 - LEVEL) -> Estimate:
    """`hits` of `count`, with the limits of Clopper and Pearson.

    The hits may be a sum of values from 0 to 1, which vary less than those that are 0 or 1.

    >>> share(8, 8), share(0, 16)
    (1 [0.631, 1], 0 [0, 0.206])
    """
    from scipy.special import betaincinv

    low = float(betaincinv(hits, count - hits + 1, outside / 2)) if hits else 0.0
    high = float(betaincinv(hits + 1, count - hits, 1 - outside / 2)) if hits < count else 1.0
    return Estimate(hits / count, low, high)


def _won_and_lost(values: np.ndarray) -> Estimate:
    """The mean of [n] differences of shares' values: what is won minus what is lost, with limits at 97.5%."""
    won, lost = (
        share(float(np.maximum(side * values, 0).sum()), len(values), 0.5 * (1 - LEVEL)) for side in (1, -1)
    )
    return Estimate(won - lost, won.low - lost.high, won.high - lost.low)


def _widened(found: Estimate, part: np.ndarray, whole: np.ndarray) -> Estimate:
    """The ratio of the means of [n] differences of shares' values, with limits that are no nearer than those
    of the part, or of the rest, over the whole as it was measured; of these two the narrower.
    """
    if not found.has_interval:
        return found
    size = float(whole.mean())
    kept, rest = _won_and_lost(part), _won_and_lost(whole - part)
    both = (kept.low / size, kept.high / size), (1 - rest.low / size, 1 - rest.high / size)
    low, high = min((sorted(each) for each in both), key=lambda each: each[1] - each[0])
    return Estimate(float(found), min(found.low, low), max(found.high, high))


def _are_shares(values: np.ndarray, binary: bool | None) -> bool:
    """Whether values are 0 or 1 each: as is known of the quantity, else where they all are, and some are 1.

    Zeros alone can come from any quantity, such as the difference of a circuit from itself.
    """
    return bool(((values == 0) | (values == 1)).all() and values.any()) if binary is None else binary


def mean_of_magnitudes(signed: Sequence[Estimate]) -> Estimate:
    """The mean of the magnitudes of several means, minus what noise adds to it.

    |x| of a noisy x is too large on average. How much too large follows from the mean of |x + noise|, with
    normal noise as large as the interval, and is subtracted (a bootstrap bias correction, in closed form).

    >>> mean_of_magnitudes([Estimate(0.1, -0.9, 1.1), Estimate(-5, -6, -4)])
    2.39 [2, 3.55]
    """
    from scipy.special import ndtr, ndtri

    folded = [each.magnitude() for each in signed]
    if not all(each.has_interval for each in signed):  # a single example does not show how noisy it is
        return Estimate(float(np.mean(folded)))
    value = np.array([float(each) for each in folded])
    noise = np.array([each.high - each.low for each in signed]) / (2 * float(ndtri(1 - _TAIL)))
    z = np.divide(value, noise, out=np.full(len(value), np.inf), where=noise > 0)
    added = noise * math.sqrt(2 / math.pi) * np.exp(-(z**2) / 2) - 2 * value * ndtr(-z)
    low, high = (float(np.mean([getattr(each, end) for each in folded])) for end in ("low", "high"))
    return Estimate(min(high, max(low, float((value - added).mean()))), low, high)


def weighted_magnitudes(signed: Sequence[Estimate], weight: np.ndarray) -> Estimate:
    """The sum of weight |x|, for [figures] weights of at least 0, with the limits summed in the same way."""
    folded = [each.magnitude() for each in signed]
    sums = (
        float(weight @ np.array(part))
        for part in zip(*((float(each), each.low, each.high) for each in folded), strict=True)
    )
    return Estimate(*sums)


def mean_over_pairs(values: np.ndarray, runs: int) -> Estimate:
    """The mean over all pairs of runs of a value from 0 to 1, with an interval over the runs.

    Where each run agrees with the others as much as any other run does, such as where all pairs are 1 or all
    are 0, the jackknife sees no variance, and the limits follow from how likely that is. Low: if a run is
    like these with probability q, all n are with q^n, and two runs agree by q^2 of the mean at least. High:
    if a run finds some one circuit with probability p, two find it with p^2, and it went unseen if at most
    one of n found it: (1 - p)^n + n p (1 - p)^(n - 1). Then p^2 of what the mean lacks to 1 is missing in it.

    Args:
        values: [runs (runs - 1) / 2], in the order of `itertools.combinations`.
        runs: the number of runs, at least three.

    >>> mean_over_pairs(np.array([0.4, 0.5, 0.5, 0.5, 0.6, 0.6]), 4)
    0.517 [0.311, 0.722]
    >>> mean_over_pairs(np.zeros(45), 10), mean_over_pairs(np.ones(45), 10)
    (0 [0, 0.198], 1 [0.478, 1])
    """
    from scipy.special import stdtrit

    value = float(values.mean())
    first, second = np.array(list(combinations(range(runs), 2))).T
    # [runs]: the sum over a run's pairs
    of_run = np.bincount(first, values, runs) + np.bincount(second, values, runs)
    left = (values.sum() - of_run) / ((runs - 1) * (runs - 2) / 2)  # the mean without it
    error = math.sqrt((runs - 1) / runs * float(((left - left.mean()) ** 2).sum()))
    if error <= _CALM:
        unseen = share(1, runs).high ** 2
        return Estimate(value, _TAIL ** (2 / runs) * value, value + unseen * (1 - value))
    wide = float(stdtrit(runs - 1, 1 - _TAIL)) * error
    return Estimate(value, max(0.0, value - wide), min(1.0, value + wide))


# ------------------------------------------------------------------ bootstrap-t


def _ratios(parts: np.ndarray, whole: np.ndarray, draws: Draws) -> list[Estimate]:
    """The ratio of the means of [figures, n] parts and of [n] whole, by bootstrap-t."""
    from scipy.special import stdtrit

    count, divisor = len(whole), float(whole.mean())
    if divisor == 0:
        return [Estimate(math.nan)] * len(parts)
    if count < 2:
        return [Estimate(each) for each in (parts.mean(1) / divisor).tolist()]
    value = parts.mean(1) / divisor  # [figures]
    left = parts - value[:, None] * whole  # each with mean 0: the residual of each example
    error = np.sqrt((left**2).sum(1) / (count * (count - 1))) / abs(divisor)
    student = float(stdtrit(count - 1, 1 - _TAIL))
    above, below = _quantiles(left, whole, draws)
    down = np.clip(above, student, _WIDEST * student) * error
    up = np.clip(-below, student, _WIDEST * student) * error
    return [
        Estimate(*each)
        for each in zip(value.tolist(), (value - down).tolist(), (value + up).tolist(), strict=True)
    ]


def _quantiles(left: np.ndarray, whole: np.ndarray, draws: Draws) -> tuple[np.ndarray, np.ndarray]:
    """[figures] each: the upper and the lower quantile of the draws' studentised errors."""
    blocks = draws if isinstance(draws, Resamples) else (draws,)
    order = np.sort(np.concatenate([_studentised(left, whole, each) for each in blocks], axis=1), axis=1)
    first = math.floor(_TAIL * (order.shape[1] - 1))
    return order[:, -1 - first], order[:, first]


def _studentised(left: np.ndarray, whole: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """[figures, resamples]: the draws' errors, each over its own standard error."""
    count = len(whole)
    of_whole = draws @ whole  # [resamples]
    moved = left @ draws.T  # [figures, resamples]: the error of the ratio, times the draw's whole
    off = moved / np.where(of_whole == 0, 1, of_whole)
    spread = left**2 @ draws.T - 2 * off * ((left * whole) @ draws.T) + off**2 * (draws @ whole**2)
    error = np.sqrt(np.maximum(spread, 0) / (count - 1))
    calm = error <= _CALM * np.sqrt((left**2).mean(1, keepdims=True))
    moved = moved * np.sign(of_whole)
    return np.where(
        calm, np.where(moved == 0, 0.0, np.copysign(np.inf, moved)), moved / np.where(calm, 1, error)
    )


def _with_cox(values: np.ndarray, found: Estimate) -> Estimate:
    """The estimate with the wider of its limits and those of the mean of a log-normal quantity."""
    from scipy.special import stdtrit

    value, count = float(found), len(values)
    if count < 2 or value <= 0 or found.low == found.high:
        return found
    logs = np.log(np.maximum(values, _SMALL * value))
    middle, variance = float(logs.mean()), float(logs.var(ddof=1))
    student = float(stdtrit(count - 1, 1 - _TAIL))
    wide = student * math.sqrt(variance / count + variance**2 / (2 * (count - 1)))
    low, high = (math.exp(min(700.0, middle + variance / 2 + side * wide)) for side in (-1, 1))
    most = value + _WIDEST * student * float(values.std(ddof=1)) / math.sqrt(count)
    return Estimate(value, min(found.low, max(0.0, low)), max(found.high, min(high, most)))
