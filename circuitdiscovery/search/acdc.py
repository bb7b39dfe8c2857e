"""ACDC: automatic circuit discovery (Conmy et al. 2023, arXiv 2304.14997, algorithm 1), exactly but faster.

1. Start from the full graph. Visit the receivers from the logits back: per layer from the last its MLP, then
   values, keys and queries, each with its heads (or groups) descending.
2. For each receiver visit its sources from the latest back (per layer the MLP, then the heads ascending; last
   `input`). Remove the edge if the damage, new against old, is below the threshold, and go on from there.

What makes it fast, without another decision anywhere:

- While a layer's receivers are decided, everything before the layer is the clean
  run: only what the receiver reaches runs.
- A receiver whose node has no kept out-edge changes nothing: the
  damage of its in-edges is 0 without a forward.
- One forward evaluates the chain "this one gone", "the first two gone",
  ...; it is accepted up to the first refusal.

Group testing (Dorfman 1943) evaluates less in large models and is no longer exact: the chain is that of
groups of edges, "the first ten gone", "the first twenty gone", ...; a group that does less damage than the
threshold goes as a whole, and one that does more is taken apart, at last into edges. An edge that algorithm 1
keeps is lost where others of its group make up for it.

The state is the number of decided receivers and the kept edges; it is saved as receivers are decided, and
every receiver starts from a state that is computed from its mask alone, so that a resumed search takes the
same decisions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from circuitdiscovery.arguments import guarded
from circuitdiscovery.circuit.circuit import Circuit
from circuitdiscovery.engine.ablation import Ablation
from circuitdiscovery.engine.memory import stepwise
from circuitdiscovery.engine.metrics import BoundMetric, Metric, by_rows
from circuitdiscovery.engine.setup import Progress, Setup
from circuitdiscovery.engine.state import saved_in
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.graph.nodes import parsed
from circuitdiscovery.model.model import Model
from circuitdiscovery.registry import DEFAULT_THRESHOLD, KL
from circuitdiscovery.search.alternatives import (
    Case,
    at_mask,
    cases,
    mean_metric,
    most_alternatives,
    without_more,
)
from circuitdiscovery.search.provenance import provenance
from circuitdiscovery.task.task import Task

_GROUPS = 8  # that a receiver's sources are divided into first


@guarded
@torch.no_grad()
def acdc(
    model: Model,
    task: Task,
    *,
    threshold: float = DEFAULT_THRESHOLD,
    metric: str | Metric | Any | None = None,
    ablation: str | Ablation = "resample",
    absolute: bool = False,
    split_qkv: bool = True,
    graph: Graph | None = None,
    order: int | None = None,
    group_testing: bool = False,
    batch_size: int | None = None,
    progress: Progress | None = None,
    state: str | Path | None = None,
) -> Circuit:
    """The circuit that is left when no edge can be removed at less
    damage than the threshold, in ACDC's order.

    Args:
        model: a loaded model.
        task: all its examples are used.
        threshold: an edge is removed if its damage, in the metric's units (nats for
            kl_divergence), is below it; 0.002 nats by default.
        metric: any; by default kl_divergence, as in the paper.
        ablation: what a removed edge carries; noising.
        absolute: compare |damage|; by default, as in the paper, an edge whose removal helps is removed too.
        split_qkv: query, key and value as separate receivers.
        graph: whose edges, where nodes are split into parts (`split`); by default the model's.
        order: None is the order above. What is found depends on it; a number seeds a random one of those that
            algorithm 1 allows, with every reader before what it reads: the sources of each receiver, and the
            queries, keys and values of each layer.
        group_testing: remove several sources of a receiver at once where together they do less damage than
            the threshold: half the evaluations or fewer in large models, and not always the same edges. By
            default each is decided by its own damage.
        batch_size: examples in one forward; another size changes roundings only.
        progress: called with (edges decided, edges in all).
        state: a file that the search is saved to as it goes and resumed from where it exists; of
            a metric or an ablation of your own it knows the name only.

    Returns:
        The circuit, not pruned; the score of an edge is its damage when it was refused.

    Raises:
        CircuitDiscoveryError: a threshold that is not a finite number; an order that is not a
            whole number; a state of another search.

    >>> import circuitdiscovery as cd
    >>> model = cd.load_model("toy")
    >>> circuit = cd.acdc(model, cd.load_task("ioi", model, examples=4), threshold=0.1)
    """
    if not math.isfinite(threshold):
        raise CircuitDiscoveryError(f"threshold must be a finite number, not {threshold}")
    if order is not None and (type(order) is not int or order < 0):
        raise CircuitDiscoveryError(f"order must be a whole number of at least 0, or None, not {order!r}")
    graph = Graph.given(model, graph, split_qkv)
    how: dict[str, Any] = {"ablation": ablation, "batch_size": batch_size, "need": stepwise}
    setup = Setup.of(model, task, graph, metric=metric or KL, **how)
    options = setup.options(threshold=threshold, absolute=absolute)
    options |= ({} if order is None else {"order": order}) | (
        {"group_testing": True} if group_testing else {}
    )
    info = provenance(model, task, "acdc", options)
    receivers = receiver_order(graph, order)
    # edges decided after each receiver
    ends = np.cumsum([0, *graph.allowed[:, receivers].sum(axis=0)]).tolist()
    with saved_in(state, setup, info) as saved:
        mask, scores = (
            saved.array("kept", graph.allowed),
            saved.array("scores", np.zeros(graph.allowed.shape)),
        )
        done = saved.number("receivers", 0)
        if progress:
            progress(ends[done], len(graph))
        found, full = cases(setup)
        search = _Search(
            task, graph, setup.metric.against(by_rows(full)), threshold, absolute, found, order, group_testing
        )
        for at in range(done, len(receivers)):
            mask, scores = search.decide(receivers[at], mask, scores)
            saved.keep({"kept": mask, "scores": scores}, receivers=at + 1)
            if progress:
                progress(ends[at + 1], len(graph))
    return Circuit(graph, mask, scores=scores, info=info)


def receiver_order(graph: Graph, order: int | None = None) -> list[int]:
    """The receivers' columns in ACDC's order: logits; per layer from
    the last m, then v, k, q, heads descending.

    With a number, v, k and q of a layer come in a random order; the layers stay as they are,
    and so does m before the heads it reads.
    """
    found = [len(graph.receivers) - 1]
    for layer in reversed(range(graph.n_layers)):
        heads = [column for letter in "vkq" for column in graph.columns(layer, letter)[::-1].tolist()]
        heads = list(dict.fromkeys(heads))  # merged receivers stand under all three letters
        found += graph.columns(layer, "m").tolist()
        found += heads if order is None else np.random.default_rng((order, layer)).permutation(heads).tolist()
    return found


def source_order(graph: Graph, receiver: int, order: int | None = None) -> np.ndarray:
    """A receiver's sources in ACDC's order: per layer from the latest m, then heads ascending;
    last `input`; with a number a random one.
    """

    def key(row: int) -> tuple[int, int, int]:
        node = parsed(graph.sources[row])
        return (1, 0, 0) if node.kind == "input" else (-node.layer, int(node.kind == "head"), node.index)

    sources = np.array(sorted(np.flatnonzero(graph.allowed[:, receiver]).tolist(), key=key))
    # a generator of its own for each receiver, so that a resumed search goes on in the same order
    return (
        sources
        if order is None
        else np.random.default_rng((order, graph.n_layers, receiver)).permutation(sources)
    )


@dataclass(frozen=True)
class _Search:
    task: Task
    graph: Graph
    metric: BoundMetric
    threshold: float
    absolute: bool
    cases: list[Case]
    order: int | None
    group_testing: bool

    def refuses(self, damage: float) -> bool:
        """Whether an edge of this damage stays."""
        return not (abs(damage) if self.absolute else damage) < self.threshold

    def decide(self, receiver: int, mask: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Decide every in-edge of a receiver: (mask without the removed
        ones, scores with those of the kept ones).
        """
        mask, scores, sources = mask.copy(), scores.copy(), source_order(self.graph, receiver, self.order)
        if not self.graph.leading(mask)[receiver]:
            if not self.refuses(0.0):
                mask[sources, receiver] = False
            return mask, scores
        current = [at_mask(case, mask, self.graph.receiver_layers[receiver]) for case in self.cases]
        room = most_alternatives(current, mask, receiver)
        # how many links the next chain has, and how many sources go with each: in groups whatever the room is
        most = _GROUPS if self.group_testing else room
        length, group = (most, -(-len(sources) // most)) if self.group_testing else (min(2, most), 1)
        old: float | None = None  # the metric before the chain; the first one evaluates it too
        while len(sources):
            chain = sources[: length * group]
            ends = np.append(np.arange(group, len(chain), group), len(chain))
            alternatives = without_more(mask[:, receiver], chain)[ends - 1]
            accepted, old, refused = self._accept(current, mask, receiver, alternatives, old, room)
            gone = len(chain) if refused is None else accepted * group
            mask[sources[:gone], receiver] = False
            if refused is None:
                length, group = (
                    min(2 * length, most),
                    2 * group if self.group_testing and length == most else group,
                )
            elif group > 1:
                group = -(-group // most)
            else:
                scores[sources[gone], receiver] = refused
                gone, length = gone + 1, max(1, accepted)
            sources = sources[gone:]
        return mask, scores

    def _accept(
        self,
        current: list[Case],
        mask: np.ndarray,
        receiver: int,
        alternatives: np.ndarray,
        old: float | None,
        room: int,
    ) -> tuple[int, float | None, float | None]:
        """(how many of a chain are accepted, the metric after them, the refused one's damage or None).

        It runs as many at once as there is room for, up to the first refusal.
        """
        for start in range(0, len(alternatives), room):
            some = alternatives[start : start + room]
            if old is None:
                some = np.concatenate([mask[None, :, receiver], some])
            metrics = self._evaluate(current, mask, receiver, some).tolist()
            before = metrics.pop(0) if old is None else old
            for accepted, new in enumerate(metrics, start):
                damage = self.metric.damage(before, new)
                if self.refuses(damage):
                    return accepted, before, damage
                before = new
            old = before
        return len(alternatives), old, None

    def _evaluate(
        self, current: list[Case], mask: np.ndarray, receiver: int, alternatives: np.ndarray
    ) -> np.ndarray:
        """[M]: the mean metric for [M, S] alternatives of the sources that a receiver keeps."""
        logits = (case.patched.branch(mask, case.state, receiver, alternatives) for case in current)
        return mean_metric(self.task, current, self.metric, logits)
