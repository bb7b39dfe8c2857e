"""Attribution ranks, exact tests decide: backward elimination among the edges that attribution finds promising.

The loss is what evaluation reports: KL(model || circuit), plus |1 - normalized faithfulness| of the task's metric.

1. EAP-IG (Hanna et al. 2024, arXiv 2403.17806) of KL scores every edge; the best few times as many as are wanted are the pool.
2. Elimination: the exact damage of removing each kept edge alone *from the circuit that is left* is measured, as ACDC does
   (Conmy et al. 2023, arXiv 2304.14997); the least needed fifth goes, or fewer where together they do far more damage than each
   alone, and again, until the wanted number is left.
3. Floating (after the floating search of feature selection, Pudil et al. 1994): the absent edges with the steepest gradient of
   the loss, in a mask that opens all absent edges a little, come back, and elimination returns to the wanted number. That is
   kept where the loss fell; otherwise half as many edges are tried.

HAP (Gu et al. 2025, arXiv 2510.03282) has attribution first, too, but then prunes by gradient. That elimination measures within
what is left, the loss, and step 3 are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuitdiscovery.ablation import Ablation, name_of
from circuitdiscovery.circuit import Scores
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.graph import Graph
from circuitdiscovery.metrics import BoundMetric, Metric, bind
from circuitdiscovery.model import Model
from circuitdiscovery.patching import Progress
from circuitdiscovery.search.attribution import eap_ig
from circuitdiscovery.search.cases import Case, at_mask, cases, mean_metric, most_alternatives, without_each
from circuitdiscovery.search.edge_pruning import check_edges, mask_gradient
from circuitdiscovery.search.provenance import provenance
from circuitdiscovery.task import Task

_POOL = 3  # times the wanted edges enter elimination
_AT_ONCE = 0.2  # of the kept edges are removed on one measurement
_SLACK, _FREE = 2.0, 0.01  # together they may do this many times what each does alone, and a hundredth of a nat
_AJAR = 0.1  # how far absent edges are open where the gradient is taken, so that paths of several absent edges show
_FLOAT = 0.5  # of the wanted edges come back at first


def hybrid(
    model: Model,
    task: Task,
    *,
    edges: int,
    rounds: int = 4,
    metric: str | Metric | Any | None = None,
    ablation: str | Ablation = "resample",
    split_qkv: bool = True,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Scores:
    """Every edge's place in the order that the search ends with; `scores.top(edges)` is the circuit.

    Args:
        model: a loaded model.
        task: all its examples are used.
        edges: how many are wanted, from 1 to all there are.
        rounds: how often edges may come back (step 3), at most.
        metric: whose faithfulness counts beside KL; by default the task's own. With kl_divergence KL alone counts.
        ablation: what a removed edge carries; noising.
        split_qkv: query, key and value as separate receivers.
        batch_size: examples in one forward; another size changes roundings only.
        progress: called with (rounds done, rounds), the first elimination being one.

    Returns:
        Places from 1 / all edges (the worst) to 1: the circuit's edges come first, by their exact damage in the circuit,
        then the others by |EAP-IG|. They are no damages.

    Raises:
        CircuitDiscoveryError: a number of edges that there cannot be; a metric without a gradient.

    >>> import circuitdiscovery as cd
    >>> from circuitdiscovery.search.hybrid import hybrid
    >>> model = cd.load_model("toy")
    >>> scores = hybrid(model, cd.load_task("ioi", model, examples=4), edges=20, rounds=1)
    """
    graph = Graph.from_model(model, split_qkv=split_qkv)
    check_edges(graph, edges)
    if rounds < 0:
        raise CircuitDiscoveryError(f"rounds must be at least 0, not {rounds}")
    bound = bind(metric or task.metric, model, task)
    options = {"metric": bound.name, "ablation": name_of(ablation), "split_qkv": split_qkv}
    shared: dict[str, Any] = {"ablation": ablation, "split_qkv": split_qkv, "batch_size": batch_size}
    ranked = eap_ig(model, task, metric="kl_divergence", **shared)
    found, _ = cases(model, task, graph, ablation=ablation, batch_size=batch_size)
    search = _Search(task, graph, found, _Loss.of(model, task, graph, bound, found))
    mask = search.eliminate(ranked.top(min(_POOL * edges, len(graph))).mask, edges)
    if progress:
        progress(1, 1 + rounds)
    mask = search.improve(mask, rounds, progress)
    values = _places(graph, mask, search.damages(mask), ranked)
    return Scores(graph, values, provenance(model, task, "hybrid", {"edges": edges, "rounds": rounds, **options}))


def _places(graph: Graph, mask: np.ndarray, damages: np.ndarray, ranked: Scores) -> np.ndarray:
    """[S, R]: 1 for the first edge, 1 / E for the last one."""
    places = np.zeros(graph.allowed.shape)
    rows, columns = np.nonzero(graph.allowed)
    kept = mask[rows, columns]
    key = np.where(kept, damages[rows, columns], np.abs(ranked.values[rows, columns]))
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
    def of(cls, model: Model, task: Task, graph: Graph, metric: BoundMetric, found: list[Case]) -> _Loss:
        """With F at both ends measured."""
        kl = bind("kl_divergence", model, task)
        ends = [[case.world.logits(mask)[None] for case in found] for mask in (graph.allowed, graph.allowed & False)]
        full, empty = (float(mean_metric(task, found, metric, logits)[0]) for logits in ends)
        counts = metric.name != "kl_divergence" and full != empty
        return cls(task, found, kl, metric, full, full - empty if counts else math.inf)

    def __call__(self, logits: Sequence[Tensor]) -> np.ndarray:
        """[M], from each case's [M, N, vocabulary]."""
        kl, f = (mean_metric(self.task, self.cases, metric, logits) for metric in (self.kl, self.metric))
        return kl + np.abs((f - self.full) / self.span)

    def around(self, logits: Sequence[Tensor]) -> BoundMetric:
        """What has the loss's gradient near [1, N, vocabulary] logits of each case: there F(C) is above F(M), or below."""
        above = np.sign(float(mean_metric(self.task, self.cases, self.metric, logits)[0]) - self.full)
        weight = above / abs(self.span)
        return BoundMetric("loss", False, lambda given, batch: self.kl(given, batch) + weight * self.metric(given, batch))


@dataclass(frozen=True)
class _Search:
    task: Task
    graph: Graph
    cases: list[Case]
    loss: _Loss

    @torch.no_grad()
    def logits(self, mask: np.ndarray) -> list[Tensor]:
        """[1, N, vocabulary] of each case with a mask's edges kept."""
        return [case.world.logits(mask)[None] for case in self.cases]

    @torch.no_grad()
    def damages(self, mask: np.ndarray) -> np.ndarray:
        """[S, R]: how much the loss rises when each of a mask's edges goes alone; 0 elsewhere."""
        damages, old, leading = np.zeros(mask.shape), self.loss(self.logits(mask)), self.graph.leading(mask)
        current = [at_mask(case, mask, 0) for case in self.cases]
        for receiver in np.flatnonzero(leading & mask.any(axis=0)).tolist():
            sources = np.flatnonzero(mask[:, receiver])
            size = most_alternatives(current, mask, receiver)
            for some in np.array_split(sources, -(-len(sources) // size)):
                alternatives = without_each(mask[:, receiver], some)
                damages[some, receiver] = self.loss([c.world.branch(mask, c.state, receiver, alternatives) for c in current]) - old
        return damages

    def value(self, mask: np.ndarray) -> float:
        """The loss with a mask's edges kept."""
        return float(self.loss(self.logits(mask))[0])

    def eliminate(self, mask: np.ndarray, edges: int) -> np.ndarray:
        """So many of a mask's edges: the least needed fifth goes, again and again."""
        while (kept := int(mask.sum())) > edges:
            mask = self.less(mask, min(kept - edges, max(1, int(_AT_ONCE * kept))))
        return mask

    def less(self, mask: np.ndarray, most: int) -> np.ndarray:
        """The mask without its least needed edges: `most`, or fewer where edges that stand in for each other would all go."""
        damages, old = self.damages(mask), self.value(mask)
        rows, columns = np.nonzero(mask)
        order = np.argsort(damages[rows, columns], kind="stable")
        while True:
            gone = rows[order[:most]], columns[order[:most]]
            smaller = mask.copy()
            smaller[gone] = False
            if most == 1 or self.value(smaller) - old <= _SLACK * damages[gone].clip(0).sum() + _FREE:
                return smaller
            most //= 2

    def improve(self, mask: np.ndarray, rounds: int, progress: Progress | None) -> np.ndarray:
        """As many edges with at most the same loss: some come back, as many go."""
        edges, old = int(mask.sum()), self.value(mask)
        size = max(1, int(_FLOAT * edges))
        for done in range(rounds):
            trial = self.eliminate(self.grow(mask, size), edges)
            new = self.value(trial)
            if new < old:
                mask, old = trial, new
            elif size == 1:
                break
            else:
                size = size // 2
            if progress:
                progress(2 + done, 1 + rounds)
        return mask

    def grow(self, mask: np.ndarray, size: int) -> np.ndarray:
        """The mask with so many absent edges more: those whose opening lowers the loss most, to first order."""
        absent = self.graph.allowed & ~mask
        relaxed = torch.from_numpy(mask + _AJAR * absent)
        parts = [(case.batch, case.world) for case in self.cases]
        gradient = mask_gradient(self.graph, self.loss.around(self.logits(mask)), parts, relaxed, len(self.task))
        rows, columns = np.nonzero(absent)
        best = np.argsort(gradient[rows, columns], kind="stable")[:size]
        grown = mask.copy()
        grown[rows[best], columns[best]] = True
        return grown
