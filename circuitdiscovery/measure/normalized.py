"""How much of a behaviour is kept: the share of the way from nothing to the model, or why there is none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from circuitdiscovery.engine.metrics import BoundMetric
from circuitdiscovery.measure import intervals
from circuitdiscovery.measure.estimates import Draws, Estimate


@dataclass(frozen=True)
class Ends:
    """What the two ends of the way are called.

    Args:
        span: the model's metric less the other end's.
        removing: what leads from the model to the other end.
        nothing: the other end.
    """

    span: str
    removing: str
    nothing: str


EDGES = Ends("F(M) - F(empty)", "replacing every edge", "no edges")


def normalized(
    kept: np.ndarray,
    full: np.ndarray,
    empty: np.ndarray,
    draws: Draws,
    *,
    metric: BoundMetric,
    least: float,
    ends: Ends = EDGES,
) -> tuple[Estimate | None, str | None]:
    """((kept - empty) / (full - empty) of the means, None), or (None, why there is none).

    Args:
        kept, full, empty: [examples], of the metric.
        draws: of the bootstrap.
        metric: which knows what is worse, and whether it is a share.
        least: what a difference of two means must be above to be more than rounding.
        ends: what they are called.
    """
    span = intervals.difference(full, empty, draws, skewed=metric.skewed, binary=metric.share)
    said = f"{ends.span} = {span}"
    if abs(span) <= least:
        return None, f"{said} is rounding: {ends.removing} changes nothing, so there is nothing to explain"
    if span.low <= 0 <= span.high:
        return None, f"{said} is not distinguishable from 0"
    if metric.damage(full.mean(), empty.mean()) < 0:
        return (
            None,
            (
                f"{said}: the model is worse than {ends.nothing}; right and wrong answers, or the metric's "
                "direction, may be exchanged"
            ),
        )
    return intervals.ratio(kept - empty, full - empty, draws, binary=metric.share), None
