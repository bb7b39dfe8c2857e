"""Attribution ranks, exact tests decide: backward elimination among the edges that attribution favours.

The loss is what evaluation reports: KL(model || circuit) + |1 - normalized faithfulness| of the metric.

1. EAP-IG (Hanna et al. 2024, arXiv 2403.17806) of KL scores every edge; the best few
   times as many as are wanted are the pool.
2. Elimination: the exact damage of removing each kept edge alone *from the circuit that is left* is measured,
   as ACDC does (Conmy et al. 2023, arXiv 2304.14997); the least needed fifth goes, or fewer where together
   they do far more damage than each alone, and again, until the wanted number is left.
3. Floating (after the floating search of feature selection, Pudil et al. 1994): the absent edges with the
   steepest gradient of the loss, in a mask that opens all absent edges a little, come back, and elimination
   returns to the wanted number. That is kept where the loss fell; otherwise half as many edges are tried.

HAP (Gu et al. 2025, arXiv 2510.03282) has attribution first, too, but then prunes by gradient. That
elimination measures within what is left, the loss, and step 3 are ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuitdiscovery.arguments import guarded
from circuitdiscovery.circuit.scores import Scores
from circuitdiscovery.engine.ablation import Ablation
from circuitdiscovery.engine.finite import rounding
from circuitdiscovery.engine.memory import floating
from circuitdiscovery.engine.metrics import BoundMetric, Metric, bind, by_rows
from circuitdiscovery.engine.setup import Progress, Setup
from circuitdiscovery.engine.state import State, saved_in
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.model.model import Model
from circuitdiscovery.registry import KL
from circuitdiscovery.search.alternatives import (
    Case,
    EachCost,
    at_mask,
    cases,
    mean_metric,
    mean_metrics,
    rises,
)
from circuitdiscovery.search.attribution import eap_ig
from circuitdiscovery.search.edge_pruning import check_edges, check_gradient, mask_gradient
from circuitdiscovery.search.provenance import provenance
from circuitdiscovery.task.batch import Batch
from circuitdiscovery.task.task import Task

_POOL = 3  # times the wanted edges enter elimination
_AT_ONCE = 0.2  # of the kept edges are removed on one measurement
# together they may do this many times what each does alone, and a hundredth of a nat
_SLACK, _FREE = 2.0, 0.01
# how far absent edges are open where the gradient is taken, so that paths of several absent edges show
_AJAR = 0.1
_FLOAT = 0.5  # of the wanted edges come back at first
# measurements count as if they had removed all that one may, in the estimate of how many there will be
_PRIOR = 3
# forwards, about: of the ranking, of each measurement but its edges, and of each edge at first
_RANKING, _PASS, _EACH = 20.0, 5.0, 0.2


@guarded
def hybrid(
    model: Model,
    task: Task,
    *,
    edges: int,
    rounds: int = 4,
    metric: str | Metric | Any | None = None,
    ablation: str | Ablation = "resample",
    split_qkv: bool = True,
    graph: Graph | None = None,
    batch_size: int | None = None,
    progress: Progress | None = None,
    state: str | Path | None = None,
) -> Scores:
    """Every edge's place in the order that the search ends with; `scores.top(edges)` is the circuit.

    Args:
        model: a loaded model.
        task: all its examples are used.
        edges: how many are wanted, from 1 to all there are.
        rounds: how often edges may come back (step 3), at most.
        metric: whose faithfulness counts beside KL; by default the task's
            own. With kl_divergence KL alone counts.
        ablation: what a removed edge carries; noising.
        split_qkv: query, key and value as separate receivers.
        graph: whose edges, where nodes are split into parts (`split`); by default the model's.
        batch_size: examples in one forward; another size changes roundings only.
        progress: called with (forwards of all examples done, in all): the
            second is an estimate, and better as it goes.
        state: as in `acdc`.

    Returns:
        Places from 1 / all edges (the worst) to 1: the circuit's edges come first, by their exact damage in
        the circuit, then the others by |EAP-IG|. They are not damages.

    Raises:
        CircuitDiscoveryError: an impossible number of edges; a metric without a gradient; a state of another
            search.

    >>> import circuitdiscovery as cd
    >>> from circuitdiscovery.search.hybrid import hybrid
    >>> model = cd.load_model("toy")
    >>> scores = hybrid(model, cd.load_task("ioi", model, examples=4), edges=20, rounds=1)
    """
    graph = Graph.given(model, graph, split_qkv)
    check_edges(graph, edges)
    if rounds < 0:
        raise CircuitDiscoveryError(f"rounds must be at least 0, not {rounds}")
    how: dict[str, Any] = {"ablation": ablation, "batch_size": batch_size, "need": floating}
    setup = Setup.of(model, task, graph, metric=metric, **how)
    check_gradient(setup)
    options = setup.options(edges=edges, rounds=rounds)
    info = provenance(model, task, "hybrid", options)
    shared: dict[str, Any] = {"ablation": ablation, "graph": graph, "batch_size": batch_size}
    with saved_in(state, setup, info) as saved:
        walk = _Walk(graph, edges, rounds, EachCost.of(model, task, graph), saved, progress)
        walk.show()
        if walk.stage == 0:
            ranked = eap_ig(model, task, metric=KL, **shared, progress=walk.show_ranking)
            walk.begin(ranked.values, ranked.top(min(_POOL * edges, len(graph))).mask)
        found, full = cases(setup)
        search = _Search(task, graph, found, _Loss.of(setup, found, full))
        while walk.stage <= 1 + rounds:
            search.eliminate(walk)
            search.compare(walk)
        values = _places(graph, walk.mask, search.damages(walk), walk.ranked)
        walk.show()
    return Scores(graph, values, info)


def _places(graph: Graph, mask: np.ndarray, damages: np.ndarray, ranked: np.ndarray) -> np.ndarray:
    """[S, R]: 1 for the first edge, 1 / E for the last one."""
    places = np.zeros(graph.allowed.shape)
    rows, columns = np.nonzero(graph.allowed)
    kept = mask[rows, columns]
    key = np.where(kept, damages[rows, columns], np.abs(ranked[rows, columns]))
    order = np.lexsort((-key, ~kept))
    places[rows[order], columns[order]] = 1 - np.arange(len(order)) / len(order)
    return places


@dataclass(frozen=True)
class _Loss:
    """KL + |F(M) - F(C)| / |F(M) - F(empty)|, of means over all examples."""

    task: Task
    cases: list[Case]
    kl: BoundMetric
    metric: BoundMetric
    full: float  # F(M)
    span: float  # F(M) - F(empty); infinite where the metric is not to count

    @classmethod
    def of(cls, setup: Setup, found: list[Case], logits: Tensor) -> _Loss:
        """With F at both ends measured; `logits` are the full circuit's, [examples, vocabulary]."""
        model, task, graph = setup.model, setup.task, setup.graph
        kl = bind(KL, model, task, plain=False).against(by_rows(logits))
        metric = setup.metric.against(by_rows(logits))

        def noise(logits: Tensor, _: Batch) -> Tensor:
            return rounding(logits, model.dtype, metric.name)[None]

        full, least = mean_metrics(task, found, (metric, noise), _logits(found, graph.allowed))[:, 0].tolist()
        empty = float(mean_metric(task, found, metric, _logits(found, graph.allowed & False))[0])
        counts = not metric.divergence and abs(full - empty) > least
        return cls(task, found, kl, metric, full, full - empty if counts else math.inf)

    def __call__(self, logits: Iterable[Tensor]) -> np.ndarray:
        """[M], from each case's [M, N, vocabulary]."""
        kl, f = mean_metrics(self.task, self.cases, (self.kl, self.metric), logits)
        return kl + np.abs((f - self.full) / self.span)

    def around(self, logits: Iterable[Tensor]) -> BoundMetric:
        """What has the loss's gradient near [1, N, vocabulary] logits of each
        case: there F(C) is above F(M), or below.
        """
        above = np.sign(float(mean_metric(self.task, self.cases, self.metric, logits)[0]) - self.full)
        weight = above / abs(self.span)
        return BoundMetric(
            "loss", False, lambda given, batch: self.kl(given, batch) + weight * self.metric(given, batch)
        )


@torch.no_grad()
def _logits(cases: Sequence[Case], mask: np.ndarray) -> Iterator[Tensor]:
    """[1, N, vocabulary] of each case with a mask's edges kept."""
    for case in cases:
        yield case.patched.logits(mask)[None]


def _gone(kept: int, edges: int, share: float = _AT_ONCE) -> int:
    """How many edges one measurement removes, at most."""
    return min(kept - edges, max(1, int(share * kept)))


def _passes(kept: int, edges: int, share: float) -> list[int]:
    """How many edges each measurement of an elimination measures, where each removes such a share."""
    passes: list[int] = []
    while kept > edges:
        passes.append(kept)
        kept -= _gone(kept, edges, share)
    return passes


def forwards(model: Model, task: Task, graph: Graph, edges: int, rounds: int) -> float:
    """About how many it takes, where each round lets as many edges come back as the first."""
    count = len(graph.receivers)
    each = sum(EachCost.of(model, task, graph).of_each(graph.allowed, range(count))) / len(graph)
    passes = [*_passes(min(_POOL * edges, len(graph)), edges, _AT_ONCE), edges]
    passes += rounds * _passes(min(edges + max(1, int(_FLOAT * edges)), len(graph)), edges, _AT_ONCE)
    # a receiver with kept edges runs with all of them, too: so many have some, were edges spread by chance
    readers = [count * (1 - math.exp(-kept / count)) for kept in passes]
    return _RANKING + sum((kept + own) * each + _PASS for kept, own in zip(passes, readers, strict=True))


class _Walk:
    """Where the search is, kept as it goes on; and how much of it is left, in forwards of all examples.

    Stages: 0 ranking, 1 the first elimination, then one for each round of
    floating, last the measurement of what was found.
    """

    def __init__(
        self, graph: Graph, edges: int, rounds: int, cost: EachCost, saved: State, progress: Progress | None
    ) -> None:
        self.graph, self.edges, self.rounds = graph, edges, rounds
        self._cost, self._saved, self._progress = cost, saved, progress
        none, zeros = np.zeros_like(graph.allowed), np.zeros(graph.allowed.shape)
        self.ranked = saved.array("ranked", zeros)
        self.mask = saved.array("mask", none)  # the best circuit so far
        self.trial = saved.array("trial", none)  # the edges that are eliminated from
        self.damages = saved.array("damages", zeros)  # of the trial's edges, as far as they are measured
        self.receivers = saved.number("receivers", 0)  # how many of `readers` are measured
        self.stage = saved.number("stage", 0)
        self.loss = saved.number("loss", 0.0)  # of `mask`
        self.size = saved.number("size", max(1, int(_FLOAT * edges)))  # how many edges come back
        self.done = saved.number("done", 0.0)  # forwards
        # measurements, and the logarithm of the share that they left
        self.passes = saved.number("passes", _PRIOR)
        self.shrunk = saved.number("shrunk", _PRIOR * math.log(1 - _AT_ONCE))
        self._look()

    def _look(self) -> None:
        """What is to be measured of the trial, and what it costs."""
        self.readers: list[int] = np.flatnonzero(
            self.graph.leading(self.trial) & self.trial.any(axis=0)
        ).tolist()
        self._costs = self._cost.of_each(self.trial, self.readers)

    def begin(self, ranked: np.ndarray, pool: np.ndarray) -> None:
        """The edges are ranked: on to the first elimination."""
        self.done = _RANKING
        self.ranked = ranked
        self.enter(1, self.mask, self.loss, self.size, pool)

    def enter(self, stage: int, mask: np.ndarray, loss: float, size: int, trial: np.ndarray) -> None:
        """The next stage."""
        self.stage, self.mask, self.loss, self.size = stage, mask, loss, size
        self.turn_to(trial)

    def turn_to(self, trial: np.ndarray) -> None:
        """A trial of which nothing is measured yet."""
        self.done += _PASS
        self.trial, self.damages, self.receivers = trial, np.zeros(trial.shape), 0
        self._look()
        self._keep()

    def measured(self, receiver: int, damages: np.ndarray) -> None:
        """What the next of `readers` reads is measured, [S]."""
        self.damages[:, receiver] = damages
        self.done += self._costs[self.receivers]
        self.receivers += 1
        self._keep()
        self.show()

    def learn(self, kept: int, left: int) -> None:
        """What a measurement removes, for the estimate; an elimination's last one removes what is wanted."""
        if left > self.edges:
            self.passes, self.shrunk = self.passes + 1, self.shrunk + math.log(left / kept)

    def _keep(self) -> None:
        arrays = {"ranked": self.ranked, "mask": self.mask, "trial": self.trial, "damages": self.damages}
        numbers = {name: getattr(self, name) for name in ("receivers", "stage", "loss", "size", "passes")}
        self._saved.keep(arrays, **numbers, done=float(self.done), shrunk=self.shrunk)

    def show_ranking(self, done: int, total: int) -> None:
        """How far the ranking is."""
        self.done = _RANKING * done / total
        self.show()

    def show(self) -> None:
        """Forwards done, and those with what is left, if later rounds are like this one."""
        if self._progress:
            done = int(self.done)
            self._progress(done, int(self.done + self._left()))

    def _left(self) -> float:
        kept = int(self.trial.sum()) if self.stage else min(_POOL * self.edges, len(self.graph))
        share = 1 - math.exp(self.shrunk / self.passes)
        each = sum(self._costs) / kept if self._costs else _EACH  # of one edge
        left = sum(self._costs[self.receivers :]) if self.stage else _RANKING - self.done + kept * each
        later = _passes(kept, self.edges, share)[1:]
        for _ in range(max(self.stage, 1), 1 + self.rounds):
            later += _passes(self.edges + self.size, self.edges, share)
        if self.stage <= 1 + self.rounds:
            later += [self.edges]
        return left + sum(count * each + _PASS for count in later)


@dataclass(frozen=True)
class _Search:
    task: Task
    graph: Graph
    cases: list[Case]
    loss: _Loss

    @torch.no_grad()
    def damages(self, walk: _Walk) -> np.ndarray:
        """[S, R]: how much the loss rises when each of the trial's edges goes alone; 0 elsewhere."""
        current = [at_mask(case, walk.trial, 0) for case in self.cases]
        for receiver in walk.readers[walk.receivers :]:
            walk.measured(receiver, rises(current, walk.trial, receiver, self.loss))
        return walk.damages

    def value(self, mask: np.ndarray) -> float:
        """The loss with a mask's edges kept."""
        return float(self.loss(_logits(self.cases, mask))[0])

    def eliminate(self, walk: _Walk) -> None:
        """As many of the trial's edges as are wanted: the least needed fifth goes, again and again."""
        while (kept := int(walk.trial.sum())) > walk.edges:
            smaller = self.less(walk, _gone(kept, walk.edges))
            walk.learn(kept, int(smaller.sum()))
            walk.turn_to(smaller)

    def less(self, walk: _Walk, most: int) -> np.ndarray:
        """The trial without its least needed edges: `most`, or fewer where edges
        that stand in for each other would all go.
        """
        mask, damages, old = walk.trial, self.damages(walk), self.value(walk.trial)
        rows, columns = np.nonzero(mask)
        order = np.argsort(damages[rows, columns], kind="stable")
        while True:
            gone = rows[order[:most]], columns[order[:most]]
            smaller = mask.copy()
            smaller[gone] = False
            if most == 1 or self.value(smaller) - old <= _SLACK * damages[gone].clip(0).sum() + _FREE:
                return smaller
            most //= 2

    def compare(self, walk: _Walk) -> None:
        """Keep the trial where its loss fell, else let fewer edges come back; then the next stage's trial."""
        mask, loss, size, stage = walk.mask, walk.loss, walk.size, walk.stage + 1
        new = self.value(walk.trial)
        if walk.stage == 1 or new < loss:
            mask, loss = walk.trial, new
        elif size == 1:
            stage = 2 + walk.rounds
        else:
            size = size // 2
        walk.enter(stage, mask, loss, size, self.grow(mask, size) if stage <= 1 + walk.rounds else mask)

    def grow(self, mask: np.ndarray, size: int) -> np.ndarray:
        """The mask and so many absent edges: those whose opening lowers the loss most, to first order."""
        absent = self.graph.allowed & ~mask
        relaxed = torch.from_numpy(mask + _AJAR * absent)
        parts = [(case.batch, case.patched) for case in self.cases]
        gradient = mask_gradient(
            self.graph, self.loss.around(_logits(self.cases, mask)), parts, relaxed, len(self.task)
        )
        rows, columns = np.nonzero(absent)
        best = np.argsort(gradient[rows, columns], kind="stable")[:size]
        grown = mask.copy()
        grown[rows[best], columns[best]] = True
        return grown
