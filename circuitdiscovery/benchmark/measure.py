"""How well search methods do: what they recover of a known circuit, and how
faithful their circuits are at equal sparsity.

1. A problem is a model, a task and, where it is known, the true circuit.
2. A method is a function (model, task) -> Scores, a Circuit, or a sweep (a sequence of circuits). One that
   searches for a given number of edges takes `sizes` as well, and gives a circuit for each.
3. `measure` runs one method on one problem: seconds and F; ROC AUC, precision, recall and Jaccard against the
   truth; normalized faithfulness and KL on held-out examples at fixed numbers of edges; of scores the areas
   under the curve at MIB's fractions, and CPR and CMD by its rule (Mueller et al. 2025, arXiv 2504.13151),
   in a grouped model of fewer edges than MIB's own (see `measure.Curve`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from inspect import signature
from typing import Any

import numpy as np
import torch

from circuitdiscovery.circuit.circuit import Circuit
from circuitdiscovery.circuit.comparison import (
    Overlap,
    compare,
    components,
    pessimistic_auc,
    rated,
    roc,
    trapezoid_auc,
)
from circuitdiscovery.circuit.scores import Scores
from circuitdiscovery.engine.setup import Setup
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.measure.curve import MIB_FRACTIONS, mib_circuits
from circuitdiscovery.measure.evaluator import Evaluator
from circuitdiscovery.model.model import Model
from circuitdiscovery.model.run import plain_run
from circuitdiscovery.task.task import Task

RULES = {"pessimistic": pessimistic_auc, "trapezoid": trapezoid_auc}
# parts of all edges, at most, at which methods are compared where no truth says how many there are
SPARSITIES = (0.02, 0.05, 0.1)


@dataclass(frozen=True)
class At:
    """A method's circuit at a number of edges."""

    asked: int  # edges at most
    edges: int
    normalized: float | None  # None: the full and the empty model do the task equally well
    kl: float  # nats
    overlap: Overlap | None  # of the edges with the truth's


@dataclass(frozen=True)
class Measured:
    """One method on one problem.

    Args:
        problem, method: names.
        edges_total: of the graph.
        truth: the number of true edges; None where they are not known.
        seconds: that the search took; of a sweep, all its searches.
        forwards: the same in plain forwards of the model on the same examples.
        areas: ROC AUC of `edges` and `nodes` by the rules
            `pessimistic` and `trapezoid`; empty without a truth, None where all are true, or none.
        roc: [points, 2] false and true positive rates of the edges.
        at: its circuits at fixed numbers of edges.
        curve: [points, 2] actual number of edges and normalized faithfulness.
        area, distance: the areas under f and |1 - f| over the part of edges kept, at the fractions of MIB;
            None of what gives circuits, which are of sizes of its own.
        cpr, cmd: the same by MIB's rule (see `measure.Curve`).
        missed: the true edges that the circuit of the truth's size lacks.
    """

    problem: str
    method: str
    edges_total: int
    truth: int | None
    seconds: float
    forwards: float
    areas: Mapping[str, float | None]
    roc: list[list[float]]
    at: list[At]
    curve: list[list[float]]
    cpr: float | None
    cmd: float | None
    missed: list[str]
    area: float | None
    distance: float | None

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Measured:
        """What `to_dict` gave."""
        at = [
            At(**{**each, "overlap": each["overlap"] and Overlap(**each["overlap"])}) for each in data["at"]
        ]
        former: dict[str, float | None] = {}
        if "area" not in data:  # under the names of MIB's
            former = {"area": data["cpr"], "distance": data["cmd"], "cpr": None, "cmd": None}
        elif data["cpr"] is None:  # of circuits, over sizes of their own
            former = {"area": None, "distance": None}
        return cls(**{**data, **former, "at": at})


def measure(
    problem: str, model: Model, task: Task, truth: Circuit | None, method: str, search: Callable[..., Any]
) -> Measured:
    """Run a method on a problem and measure what it finds, on the
    task's held-out examples where there are some.

    Raises:
        CircuitDiscoveryError: a method that gives something else than Scores, a
            Circuit or circuits of the model's graph.
    """
    parts = sorted({max(1, int(part * len(model.graph))) for part in SPARSITIES})
    counts = parts if truth is None else [len(truth)]
    options = {"sizes": sorted({*parts, *counts})} if "sizes" in signature(search).parameters else {}
    start = time.perf_counter()
    found = search(model, task, **options)
    seconds = time.perf_counter() - start
    sweep = Sweep.of(found, method)
    if truth is not None and truth.graph != sweep.graph:
        raise CircuitDiscoveryError(
            f"method {method!r} gives circuits of another graph than the true one on {problem!r}"
        )
    evaluator = Evaluator.build(Setup.of(model, task.held_out or task, sweep.graph))
    evaluator.measure([circuit.mask for circuit in (*sweep.to_the_ends(), *map(sweep.at_most, counts))])
    at = [_at(evaluator, sweep.at_most(count), count, truth) for count in counts]
    curve = sweep.curve(evaluator)
    area = distance = cpr = cmd = None
    if curve and sweep.scores is not None:
        area, distance = _areas_under(curve, len(sweep.graph))
        cpr, cmd = _mib(evaluator, sweep.scores)
    levels = {} if truth is None else {level: sweep.roc(truth, level) for level in ("edges", "nodes")}
    rates = levels.get("edges")
    return Measured(
        problem=problem,
        method=method,
        edges_total=len(sweep.graph),
        truth=None if truth is None else len(truth),
        seconds=seconds,
        forwards=seconds / one_forward(model, task),
        areas={
            f"{level}_{rule}": None if points is None else area(*points)
            for level, points in levels.items()
            for rule, area in RULES.items()
        },
        roc=[] if rates is None else np.stack(rates, axis=1).tolist(),
        at=at,
        curve=[[float(n), float(f)] for n, f in curve],
        cpr=cpr,
        cmd=cmd,
        missed=[] if truth is None else list((truth - sweep.at_most(len(truth))).edges),
        area=area,
        distance=distance,
    )


def _at(evaluator: Evaluator, circuit: Circuit, asked: int, truth: Circuit | None) -> At:
    normalized = _faithfulness(evaluator, circuit)
    kl = float(evaluator.values(circuit.mask, "kl").mean())
    return At(asked, len(circuit), normalized, kl, None if truth is None else compare(circuit, truth).edges)


def _faithfulness(evaluator: Evaluator, circuit: Circuit) -> float | None:
    """Normalized faithfulness."""
    full, empty = (evaluator.values(mask) for mask in (circuit.graph.allowed, np.zeros_like(circuit.mask)))
    estimate, _ = evaluator.normalized(evaluator.values(circuit.mask), full, empty)
    return None if estimate is None else float(estimate)


def _areas_under(curve: Sequence[tuple[int, float]], total: int) -> tuple[float, float]:
    """Under f and |1 - f|, over the actual part of edges."""
    x, f = np.array([n for n, _ in curve]) / total, np.array([f for _, f in curve])
    return float(np.trapezoid(f, x)), float(np.trapezoid(np.abs(1 - f), x))


def _mib(evaluator: Evaluator, scores: Scores) -> tuple[float, float]:
    """(CPR, CMD) by MIB's rule, over the edges of the scores' own graph."""
    circuits = mib_circuits(scores)
    evaluator.measure([circuit.mask for circuit in circuits])
    f = np.array([_faithfulness(evaluator, circuit) for circuit in circuits], dtype=float)
    return float(np.trapezoid(f, MIB_FRACTIONS)), float(np.trapezoid(np.abs(1 - f), MIB_FRACTIONS))


@torch.no_grad()
def one_forward(model: Model, task: Task) -> float:
    """Seconds of a plain forward of the model on a task's clean prompts, the median of five."""
    batches = [batch.to(model.device) for batch in task.batches()]
    taken = []
    for _ in range(6):
        start = time.perf_counter()
        for batch in batches:
            plain_run(model, batch.clean, batch.position)
        taken.append(time.perf_counter() - start)
    return float(np.median(taken[1:]))


@dataclass(frozen=True)
class Sweep:
    """What a method found, as circuits from sparse to dense."""

    circuits: Sequence[Circuit]  # ascending number of edges
    scores: Scores | None  # from which any number of edges can be taken

    @classmethod
    def of(cls, found: Any, method: str) -> Sweep:
        """From scores, one circuit or several."""
        if isinstance(found, Scores):
            total = len(found.graph)
            return cls([found.top(n) for n in sorted({round(part * total) for part in MIB_FRACTIONS})], found)
        circuits = (
            [found] if isinstance(found, Circuit) else list(found) if isinstance(found, Sequence) else []
        )
        if not circuits or not all(isinstance(circuit, Circuit) for circuit in circuits):
            raise CircuitDiscoveryError(
                f"method {method!r} must give Scores, a Circuit or a sequence of circuits, not "
                f"{type(found).__name__}"
            )
        return cls(sorted(circuits, key=len), None)

    @property
    def graph(self) -> Graph:
        """The graph whose edges these are."""
        return self.circuits[0].graph

    def at_most(self, edges: int) -> Circuit:
        """The densest circuit of at most so many edges."""
        if self.scores is not None:
            return self.scores.top(min(edges, len(self.graph)))
        return max(
            (circuit for circuit in self.circuits if len(circuit) <= edges),
            key=len,
            default=Circuit.empty(self.graph),
        )

    def to_the_ends(self) -> list[Circuit]:
        """The circuits with the empty and the full model, between which a sweep is."""
        ends = [] if self.scores is not None else [Circuit.empty(self.graph), Circuit.full(self.graph)]
        return [*self.circuits, *(end for end in ends if end not in self.circuits)]

    def curve(self, evaluator: Evaluator) -> list[tuple[int, float]]:
        """[(edges after pruning, normalized faithfulness)], ascending."""
        points = [
            (len(circuit.pruned()), _faithfulness(evaluator, circuit)) for circuit in self.to_the_ends()
        ]
        return sorted((n, f) for n, f in points if f is not None)

    def roc(self, truth: Circuit, level: str) -> tuple[np.ndarray, np.ndarray] | None:
        """([points] false, [points] true positive rates) of the `edges`, or of the `nodes`: heads and MLPs;
        None where all of them are true, or none."""
        positive = _members(truth, level)
        if not rated(positive):
            return None
        if self.scores is not None:
            by_node = list(self.scores.by_node().values())[1:]  # without `input`
            return roc(
                np.abs(self.scores.values[self.graph.allowed] if level == "edges" else by_node), positive
            )
        found = np.stack([_members(circuit, level) for circuit in self.circuits])
        return found[:, ~positive].mean(1), found[:, positive].mean(1)


def _members(circuit: Circuit, level: str) -> np.ndarray:
    """[edges], or [heads and MLPs], bool."""
    if level == "edges":
        return circuit.mask[circuit.graph.allowed]
    inside = components(circuit)
    return np.array([name in inside for name in circuit.graph.inner])
