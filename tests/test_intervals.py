"""Intervals against slow definitions and scipy, and a sample of their coverage
(the whole of it: benchmarks/coverage.py).
"""

from __future__ import annotations

import math
import pickle
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from circuitdiscovery.features import probe_fit
from circuitdiscovery.measure import estimates, intervals
from circuitdiscovery.measure.estimates import Estimate, Resamples, drawn, weights

SAMPLES = 400
RNG = np.random.default_rng(7)


def bootstrap_t(part: np.ndarray, whole: np.ndarray, draws: np.ndarray) -> tuple[float, float]:
    """One draw after the other, each row as often as it is drawn: the limits of the ratio of means."""
    n, value = len(part), part.mean() / whole.mean()

    def error(rows: np.ndarray) -> float:
        ratio = part[rows].mean() / whole[rows].mean()
        left = part[rows] - ratio * whole[rows]
        return math.sqrt((left**2).sum() / (n * (n - 1))) / abs(whole[rows].mean())

    studentised = []
    for draw in draws:
        rows = np.repeat(np.arange(n), np.round(draw * n).astype(int))
        off = part[rows].mean() / whole[rows].mean() - value
        spread = error(rows)
        studentised.append(off / spread if spread > 1e-9 else math.copysign(math.inf, off) if off else 0.0)
    order, student = sorted(studentised), stats.t.ppf(0.975, n - 1)
    own = error(np.arange(n))
    up, down = (min(max(each, student), 5 * student) * own for each in (-order[24], order[-25]))
    return value - down, value + up


@pytest.mark.parametrize("n", [3, 16])
def test_bootstrap_t_is_the_slow_one(n: int) -> None:
    draws, whole = weights(n, 0), RNG.normal(4, 1, n)
    skewed = RNG.lognormal(size=n)
    found = intervals.mean(skewed, draws)
    assert (found.low, found.high) == pytest.approx(bootstrap_t(skewed, np.ones(n), draws))
    found = intervals.ratio(skewed, whole, draws)
    assert float(found) == pytest.approx(skewed.mean() / whole.mean())
    assert (found.low, found.high) == pytest.approx(bootstrap_t(skewed, whole, draws))
    several = intervals.ratios(np.stack([whole, skewed]), whole, draws)
    assert (float(several[0]), several[0].low, several[0].high) == pytest.approx((1, 1, 1))
    assert several[1].to_dict() == pytest.approx(found.to_dict())


def test_draws_of_many_rows_are_made_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = 10_000
    truth = np.arange(rows) % 2
    found = np.where(np.arange(rows) % 7 == 0, 1 - truth, truth)
    tracemalloc.start()
    f1, more = probe_fit.f1(truth, found, [0, 1], None), probe_fit.more_right(truth == found, found * 0, None)
    kept, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 60e6 and kept < 5e6  # all draws at once are 80 MB
    share = 6 / 7  # as labels are equally frequent, F1 is the share that is right
    wide = 1.96 * math.sqrt(share * (1 - share) / rows)
    for each in (f1, more):
        assert (each.low, each.high) == pytest.approx((float(each) - wide, float(each) + wide), abs=wide / 9)
    values, whole = RNG.exponential(size=(2, 50)), RNG.normal(4, 1, 50)
    once = intervals.ratios(values, whole, Resamples(50, 3))
    (table,) = Resamples(50, 3)
    assert drawn(50, 3) is weights(50, 3)
    for resamples in (7, 500):
        monkeypatch.setattr(estimates, "_AT_ONCE", resamples * 8 * 50)
        blocks = list(Resamples(50, 3))
        assert len(blocks) == math.ceil(1000 / resamples) and (np.concatenate(blocks) == table).all()
        parts = intervals.ratios(values, whole, Resamples(50, 3))
        assert [each.to_dict() for each in parts] == [pytest.approx(each.to_dict()) for each in once]
    assert table.sum(1) == pytest.approx(1)
    counts = table * 50  # of each row binomial: 50 times 1 in 50
    assert counts.var() == pytest.approx(0.98, rel=0.02) and counts == pytest.approx(counts.round())


def test_a_mean_s_interval_is_student_s_at_least() -> None:
    for values in (RNG.normal(size=20), RNG.exponential(size=20), np.arange(9.0) - 4):
        student = stats.ttest_1samp(values, 0).confidence_interval()
        found = intervals.mean(values, weights(len(values), 3))
        assert found.low <= student.low + 1e-12 and student.high - 1e-12 <= found.high


@pytest.mark.parametrize(("hits", "n"), [(0, 8), (8, 8), (3, 16), (63, 64)])
def test_a_share_is_clopper_and_pearson_s(hits: int, n: int) -> None:
    exact = stats.binomtest(hits, n).proportion_ci(method="exact")
    values = np.arange(n) < hits
    for found in (
        intervals.share(hits, n),
        *([intervals.mean(values.astype(float), weights(n, 0))] if hits else []),
    ):
        assert (found.low, found, found.high) == pytest.approx((exact.low, hits / n, exact.high))


def test_two_shares_differ_by_what_is_won_less_what_is_lost() -> None:
    same = intervals.difference(np.ones(16), np.ones(16), weights(16, 0))
    assert (same.low, same, same.high) == pytest.approx(
        (-(1 - 0.0125 ** (1 / 16)), 0, 1 - 0.0125 ** (1 / 16))
    )
    won = intervals.difference(np.ones(16), (np.arange(16) < 8).astype(float), weights(16, 0))
    assert won.low < 0.5 < won.high and won == 0.5


def test_a_ratio_of_shares_is_no_narrower_than_their_limits() -> None:
    """Of 64 that the model has right and no edges wrong, all or 60 are kept: each limit is Clopper and Pearson's,
    of what is won (less what may be lost), where a bootstrap says less."""
    whole, draws = np.ones(64), weights(64, 0)

    def limits(hits: int) -> Any:
        return stats.binomtest(hits, 64).proportion_ci(confidence_level=0.975, method="exact")

    never = limits(0).high
    for hits in (60, 64):
        part = (np.arange(64) < hits).astype(float)
        plain = intervals.ratio(part, whole, draws)
        for found in (
            intervals.ratio(part, whole, draws, binary=True),
            intervals.ratio(-part, -whole, draws, binary=None),
        ):
            assert found == hits / 64 and found.low == pytest.approx(limits(hits).low - never)
            assert found.high == pytest.approx(max(plain.high, limits(hits).high))
    some = (np.arange(64) < 40).astype(float)
    rest, span = some - (np.arange(64) % 3 == 0) * some, whole - (np.arange(64) % 3 == 0)
    found, plain = intervals.ratio(rest, span, draws, binary=True), intervals.ratio(rest, span, draws)
    assert found.low <= plain.low < plain < plain.high <= found.high < 1.2
    assert not intervals.ratio(part[:1], whole[:1], draws, binary=True).has_interval


def test_what_is_a_share_by_its_nature_is_one_where_all_are_0_too() -> None:
    """And what is none is none where all are 1: a rank cannot be below 1."""
    zeros, ones, draws = np.zeros(16), np.ones(16), weights(16, 0)
    (mean,), same = (
        intervals.means(zeros[None], draws, binary=True),
        intervals.difference(zeros, zeros, draws, binary=True),
    )
    assert (mean, mean.low, mean.high) == (0, 0, intervals.share(0, 16).high)
    of_ones = intervals.difference(ones, ones, draws)
    assert (same.low, same.high) == pytest.approx((of_ones.low, of_ones.high)) and same.high > 0.2
    rank = intervals.mean(ones, draws, binary=False)
    assert (rank.low, rank.high) == (1, 1)


@pytest.mark.parametrize("n", [2, 4, 16])
def test_a_quantity_that_is_never_negative_has_no_negative_limit(n: int) -> None:
    """Such as KL: few and skewed values have a standard error beyond their mean."""
    rng, draws = np.random.default_rng(3), weights(n, 0)
    values = rng.lognormal(sigma=2, size=(200, n))
    assert min(each.low for each in intervals.means(values, draws)) < 0  # not said to be so
    assert all(0 <= each.low <= each <= each.high for each in intervals.means(values, draws, skewed=True))


def test_a_skewed_quantity_less_nothing_is_that_quantity() -> None:
    """As F(M) - F(C) of KL, which is 0 for the model: the same interval as of KL itself."""
    values, draws, nothing = (
        np.random.default_rng(3).lognormal(sigma=2, size=16),
        weights(16, 0),
        np.zeros(16),
    )
    itself = intervals.mean(values, draws, skewed=True)
    found, less = (
        intervals.difference(*pair, draws, skewed=True, binary=False)
        for pair in ((values, nothing), (nothing, values))
    )
    assert found.to_dict() == less.magnitude().to_dict() == itself.to_dict()
    assert itself.low == 0 > intervals.mean(values, draws).low
    both = intervals.difference(2 * values, values, draws, skewed=True, binary=False)
    assert both.to_dict() == intervals.mean(values, draws).to_dict()


def test_what_was_not_measured_twice_has_no_interval() -> None:
    alone = intervals.mean(np.array([3.0]), weights(1, 0))
    assert (
        not alone.has_interval
        and str(alone) == "3"
        and alone.to_dict() == {"value": 3, "low": None, "high": None}
    )
    assert str(pickle.loads(pickle.dumps(alone))) == "3" and math.isnan(alone.magnitude().low)


@pytest.mark.parametrize(
    ("signed", "folded"),
    [
        ((-2, -3, -1), (2, 1, 3)),
        ((0.5, -1, 2), (0.5, 0, 2)),
        ((-0.5, -2, 1), (0.5, 0, 2)),
        ((2, 1, 3), (2, 1, 3)),
    ],
)
def test_a_magnitude_folds_the_interval(signed: tuple[float, ...], folded: tuple[float, ...]) -> None:
    found = Estimate(*signed).magnitude()
    assert (float(found), found.low, found.high) == folded


def test_noise_is_taken_from_a_mean_of_magnitudes() -> None:
    signed = [Estimate(x, x - 1.96 * s, x + 1.96 * s) for x, s in ((0.3, 1), (-2, 0.5), (1, 0.01))]
    noise = np.random.default_rng(0).normal(size=400_000)
    drawn = [np.abs(float(each) + (each.high - each.low) / 3.92 * noise).mean() for each in signed]
    expected = np.mean([2 * abs(float(each)) - mean for each, mean in zip(signed, drawn, strict=True)])
    assert intervals.mean_of_magnitudes(signed) == pytest.approx(expected, abs=5e-3)


# ------------------------------------------------------------------ coverage

LOGNORMAL, SHIFT = math.exp(0.5), 0.7


FIGURES: dict[str, tuple[float, Callable[[int, np.random.Generator, np.ndarray], Any]]] = {
    "mean": (SHIFT, lambda n, rng, draws: intervals.mean(rng.normal(SHIFT, 1, n), draws)),
    "mean of a skewed quantity": (
        LOGNORMAL,
        lambda n, rng, draws: intervals.mean(rng.lognormal(size=n), draws, skewed=True),
    ),
    "share": (0.97, lambda n, rng, draws: intervals.share(int(rng.binomial(n, 0.97)), n)),
    "difference of two shares": (
        0.05,
        lambda n, rng, draws: intervals.difference(
            (rng.random(n) < 0.05).astype(float), np.zeros(n), draws, binary=True
        ),
    ),
    "magnitude of nothing": (
        0.0,
        lambda n, rng, draws: intervals.difference(rng.normal(size=n), rng.normal(size=n), draws).magnitude(),
    ),
    "ratio": (0.5, lambda n, rng, draws: intervals.ratio(rng.normal(1, 1, n), rng.normal(2, 1, n), draws)),
    "ratio of differences of shares": (
        0.97,
        lambda n, rng, draws: intervals.ratio(
            (rng.random(n) < 0.97).astype(float), np.ones(n), draws, binary=True
        ),
    ),
    "ratio of differences of shares, averaged over draws": (
        0.9,
        lambda n, rng, draws: intervals.ratio(rng.binomial(5, 0.9, n) / 5, np.ones(n), draws, binary=True),
    ),
    "mean of magnitudes": (
        0.1,
        lambda n, rng, draws: intervals.mean_of_magnitudes(
            intervals.means(rng.normal([[0.0]] * 4 + [[0.5]], 1, (5, n)), draws)
        ),
    ),
}


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize(("n", "least"), [(16, 0.9), (64, 0.93)])
def test_intervals_cover(name: str, n: int, least: float) -> None:
    """Of 400 samples; the standard error of a coverage of .95 is .011."""
    truth, figure = FIGURES[name]
    rng, draws = np.random.default_rng(11), weights(n, 0)
    found = [figure(n, rng, draws) for _ in range(SAMPLES)]
    assert all(each.low <= each <= each.high for each in found)
    assert np.mean([each.low <= truth <= each.high for each in found]) >= least


def test_percentiles_would_not() -> None:
    """What the sample above can see: the interval that was printed before."""
    rng, draws, missed = np.random.default_rng(11), weights(16, 0), 0
    for _ in range(SAMPLES):
        low, high = np.quantile(draws @ rng.lognormal(size=16), [0.025, 0.975])
        missed += not low <= LOGNORMAL <= high
    assert missed / SAMPLES > 0.12
