"""The faithfulness curve: how much of the behaviour the best edges keep, by their number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from circuitdiscovery.arguments import guarded
from circuitdiscovery.circuit.circuit import Circuit
from circuitdiscovery.circuit.scores import Scores
from circuitdiscovery.engine.ablation import Ablation
from circuitdiscovery.engine.metrics import Metric
from circuitdiscovery.engine.setup import Setup
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.measure import intervals
from circuitdiscovery.measure.estimates import Draws, Estimate
from circuitdiscovery.measure.evaluator import Evaluator
from circuitdiscovery.model.model import Model
from circuitdiscovery.registry import ablation_words
from circuitdiscovery.task.task import Task
from circuitdiscovery.values import Reported, left_out

if TYPE_CHECKING:
    from circuitdiscovery.circuit.charts import Chart

# Mueller et al. 2025, arXiv 2504.13151
MIB_FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True, repr=False)
class Curve(Reported):
    """Normalized faithfulness f of the edges with the highest scores, at several numbers of edges.

    The areas are linear trapezoids from the first fraction to the last.

    Args:
        fractions: [points], shares of all edges, rising.
        requested: [points], the number of edges at each fraction, of highest |score|.
        edges: [points], how many of these are left after pruning.
        normalized: [points], f of the requested edges.
        cpr: the area under f by the rule of MIB's code (Mueller et al. 2025): over the fractions, each
            rounded down to edges, of the edges of highest signed score, pruned. Where heads share keys and
            values, these are this graph's edges, into k and v one per group; MIB's graph has one per head
            (`ungroup_grouped_query_attention`), so its published figures are of other circuits.
        cmd: the area under |1 - f| by the same rule.
        area: the area under f over the share of edges left after pruning.
        distance: the area under |1 - f| over the same share; 0 is best.
        ablation: what a removed edge carries.
        mean_over: the smallest number of prompts that a replacement is a mean over; None if it is not a mean.
        direction: `noising` or `denoising`.
        grouped: True where heads share keys and values; else None.
    """

    fractions: tuple[float, ...]
    requested: tuple[int, ...]
    edges: tuple[int, ...]
    normalized: tuple[Estimate, ...]
    cpr: Estimate
    cmd: Estimate
    area: Estimate
    distance: Estimate
    ablation: str | None = left_out()
    mean_over: int | None = left_out()
    direction: str | None = left_out()
    grouped: bool | None = left_out()

    def _lines(self) -> Iterator[tuple[str, str]]:
        if self.ablation is not None:
            how = (ablation_words(self.ablation, self.mean_over), self.direction)
            yield "measured", ", ".join(filter(None, how))
        for requested, edges, normalized in zip(self.requested, self.edges, self.normalized, strict=True):
            yield f"{requested:,} edges", f"{normalized} ({edges:,} on a path from input to logits)"
        yield "areas", self.areas_in_words()

    def areas_in_words(self) -> str:
        """The four areas, and what MIB's are of."""
        ours = f"area {self.area}, distance {self.distance}; MIB's CPR {self.cpr}, CMD {self.cmd}"
        return f"{ours} (edges into k and v by group; MIB's are by head)" if self.grouped else ours

    def plot(self, path: str | Path | None = None) -> Chart:
        """Draw the curve over a logarithmic axis of edges, with its intervals.

        Args:
            path: a .svg file to write; by default none.

        Returns:
            The picture, which a notebook displays.

        Raises:
            CircuitDiscoveryError: a path that does not end in .svg or cannot be written.
        """
        from circuitdiscovery.circuit.charts import Chart, curve

        known = {"edges": self.edges, "normalized": [each.to_dict() for each in self.normalized]}
        return Chart.standing(curve(known)).saved(path)

    def _repr_html_(self) -> str:
        return self.plot().svg


@guarded
def curve(
    model: Model,
    task: Task,
    scores: Scores,
    *,
    ablation: str | Ablation = "resample",
    metric: str | Metric | Any | None = None,
    direction: str = "noising",
    fractions: Sequence[float] = MIB_FRACTIONS,
    batch_size: int | None = None,
    seed: int = 0,
) -> Curve:
    """Measure the normalized faithfulness of the edges of highest |score| at several numbers of edges.

    Args:
        model: the model that the scores are of.
        task: measured on its held-out examples if it has some, else on its examples.
        scores: they rank the edges.
        ablation: what a removed edge carries: a name, or your own (an object with `rows`).
        metric: a name, a `Metric` or a function of (logits, task); by default the task's own.
        direction: `noising`, or `denoising`, which takes no `ablation`.
        fractions: shares of all edges to measure at, rising from 0 to 1; by default MIB's.
        batch_size: examples in one forward; by default as many as bounded memory holds.
        seed: of the bootstrap.

    Returns:
        The curve with the areas under it.

    Raises:
        CircuitDiscoveryError: scores of another model; an unknown name; fractions that do not rise from 0
            to 1; a task on which the normalized faithfulness is undetermined.

    >>> import circuitdiscovery as cd
    >>> model = cd.load_model("toy")
    >>> task = cd.load_task("ioi", model, examples=8)
    >>> float(cd.curve(model, task, cd.eap(model, task)).normalized[-1])
    1.0
    """
    if (
        len(fractions) < 2
        or list(fractions) != sorted(set(fractions))
        or not 0 <= fractions[0] <= fractions[-1] <= 1
    ):
        raise CircuitDiscoveryError(
            f"fractions must rise from 0 to 1, at least two of them, not {list(fractions)}"
        )
    Circuit.empty(scores.graph).check_model(model)
    how: dict[str, Any] = {"ablation": ablation, "direction": direction, "batch_size": batch_size}
    setup = Setup.of(model, task.held_out or task, scores.graph, metric=metric, **how)
    return curve_of(Evaluator.build(setup, seed=seed), scores, fractions)


def _sizes(scores: Scores, fractions: Sequence[float]) -> tuple[int, ...]:
    return tuple(round(fraction * len(scores.graph)) for fraction in fractions)


def mib_circuits(scores: Scores, fractions: Sequence[float] = MIB_FRACTIONS) -> list[Circuit]:
    """The circuits of MIB's curve: the fractions rounded down to edges, the highest signed scores, pruned.

    Of the scores' own edges: of shared keys and values MIB has one per head, not per group.
    """
    return [scores.top(int(fraction * len(scores.graph)), absolute=False).pruned() for fraction in fractions]


def curve_masks(scores: Scores, fractions: Sequence[float]) -> list[np.ndarray]:
    ours = [scores.top(n) for n in _sizes(scores, fractions)]
    return [circuit.mask for circuit in (*ours, *mib_circuits(scores, fractions))]


def curve_of(evaluator: Evaluator, scores: Scores, fractions: Sequence[float]) -> Curve:
    requested, masks = _sizes(scores, fractions), curve_masks(scores, fractions)
    full, empty = scores.graph.allowed, np.zeros_like(scores.graph.allowed)
    evaluator.measure([full, empty, *masks])
    whole = evaluator.values(full) - evaluator.values(empty)
    _, reason = evaluator.normalized(evaluator.values(full), evaluator.values(full), evaluator.values(empty))
    if reason is not None:
        raise CircuitDiscoveryError(f"no faithfulness curve: {reason}")
    # [points, examples], ours and MIB's
    kept = np.stack([evaluator.values(mask) - evaluator.values(empty) for mask in masks])
    ours, mib = kept[: len(fractions)], kept[len(fractions) :]
    edges = tuple(len(scores.top(n).pruned()) for n in requested)
    draws, binary = evaluator.draws, evaluator.metric.share
    area, distance, points = areas(np.array(edges) / len(scores.graph), ours, whole, draws, binary)
    cpr, cmd, _ = areas(np.array(fractions), mib, whole, draws, binary)
    return Curve(
        tuple(fractions),
        requested,
        edges,
        tuple(points),
        cpr,
        cmd,
        area,
        distance,
        evaluator.setup.ablation_name,
        evaluator.setup.mean_over,
        evaluator.setup.direction,
        scores.graph.grouped or None,
    )


def areas(
    x: np.ndarray, parts: np.ndarray, whole: np.ndarray, draws: Draws, binary: bool | None
) -> tuple[Estimate, Estimate, list[Estimate]]:
    """The areas under f and |1 - f| by linear trapezoids, and the points f,
    each a ratio of two means over the examples.

    Args:
        x: [points], rising.
        parts: [points, examples], F(C) - F(empty).
        whole: [examples], F(M) - F(empty).
        draws: of the bootstrap.
        binary: whether F is a mean of values that are 0 or 1; None: where all are.
    """
    steps = np.diff(x)
    weight = (np.append(steps, 0) + np.insert(steps, 0, 0)) / 2  # of each point in the sum of the trapezoids
    binary = intervals.of_shares(parts, whole, binary)
    missing = intervals.ratios(whole - parts, whole, draws, binary=binary)
    points = intervals.ratios(parts, whole, draws, binary=binary)
    return (
        intervals.ratio(weight @ parts, whole, draws, binary=binary),
        intervals.weighted_magnitudes(missing, weight),
        points,
    )
