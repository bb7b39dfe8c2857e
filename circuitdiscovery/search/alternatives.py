"""What the exact searches stand on: one receiver's alternatives, evaluated on every example of a task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from circuitdiscovery.engine import distributed
from circuitdiscovery.engine.fast import PatchedRun, State
from circuitdiscovery.engine.finite import finite_logits
from circuitdiscovery.engine.memory import alternative, budget, measured
from circuitdiscovery.engine.setup import Setup
from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.model.model import Model
from circuitdiscovery.model.run import plain_run
from circuitdiscovery.task.batch import Batch
from circuitdiscovery.task.task import Task

Measure = Callable[[Tensor, Batch], Tensor]  # [..., N, vocabulary] logits of a batch -> [..., N]
# alternatives x examples x positions in one forward: enough to fill the cores, little enough for the caches
TOKENS = {"cpu": 2048}
TOKENS_ACCELERATOR = 65536


@dataclass(frozen=True)
class Case:
    """A batch under an ablation, with what every source adds to its replacement."""

    batch: Batch
    patched: PatchedRun
    clean: State  # every edge kept
    state: State  # the edges of some mask kept
    room: float  # the bytes that one forward's alternatives may take


@torch.no_grad()
def cases(setup: Setup) -> tuple[list[Case], Tensor]:
    """(a case per batch of this process's share, all edges kept; the [examples, vocabulary] logits of the
    full circuit, for KL)."""
    found: list[Case] = []
    room = setup.held.room(1.0, budget(setup.model.device))  # asked for before the states are held
    run_of = "corrupted" if setup.denoising else "clean"
    for batch, patched in setup.patched_runs():
        run = plain_run(setup.model, patched.start, batch.position, keep_sources=True, parts=patched.parts)
        finite_logits(run.logits, batch.rows, run_of)
        assert run.sources is not None
        clean = patched.clean_state(run.sources)
        found.append(Case(batch, patched, clean, clean, room))
    return found, setup.full_logits([(case.batch, case.patched) for case in found])


def most_alternatives(cases: Sequence[Case], mask: np.ndarray, receiver: int) -> int:
    """How many alternatives of what a receiver reads are worth one
    forward: the same number in every process."""
    worth = [TOKENS_ACCELERATOR]
    for case in cases:
        count, length = case.batch.clean.shape
        places = length if case.patched.spreads(mask, receiver) else 1
        model, graph = case.patched.model, case.patched.graph
        room = (case.room / count - measured(model)) // alternative(model, graph, length, places)
        tokens = TOKENS.get(case.batch.clean.device.type, TOKENS_ACCELERATOR)
        worth.append(int(min(tokens // (count * places), room)))
    return max(1, distributed.least(min(worth)))


def mean_metric(task: Task, cases: Sequence[Case], metric: Measure, logits: Iterable[Tensor]) -> np.ndarray:
    """[M]: a metric's mean over all examples, from each case's [M, N, vocabulary] logits."""
    return mean_metrics(task, cases, [metric], logits)[0]


def mean_metrics(
    task: Task, cases: Sequence[Case], metrics: Sequence[Measure], logits: Iterable[Tensor]
) -> np.ndarray:
    """[metrics, M]: the means of several over all examples.

    The logits are of one case after the other: those that are computed as they are asked for are held one
    case at a time.
    """

    def sums(case: Case, one: Tensor) -> np.ndarray:
        """[metrics, M]; the logits are let go with the call."""
        return np.stack([metric(one, case.batch).double().sum(-1).cpu().numpy() for metric in metrics])

    given = iter(logits)
    # of this process's cases; plain zeros where it has none
    total = np.array(sum(sums(case, next(given)) for case in cases), dtype=np.float64)
    if len(task) < distributed.world_size():
        total = np.resize(total, distributed.from_first(lambda: total.shape))
    return distributed.total(torch.from_numpy(total)).numpy() / len(task)


@torch.no_grad()
def rises(
    cases: Sequence[Case], mask: np.ndarray, receiver: int, measure: Callable[[Iterable[Tensor]], np.ndarray]
) -> np.ndarray:
    """[S]: how much a measure rises where each source that a receiver
    keeps is removed alone; 0 for the others.

    It rises from the same run with nothing removed, and not from another one, which
    in a half precision would round elsewhere.

    Args:
        cases: with their states under the mask.
        mask: [S, R], the edges that are kept.
        receiver: its column.
        measure: [M], from each case's [M, N, vocabulary] logits, which are computed as it asks for them.
    """
    kept, values = mask[:, receiver], np.zeros(len(mask))
    sources, size = np.flatnonzero(kept), most_alternatives(cases, mask, receiver)
    alternatives = np.concatenate([kept[None], without_each(kept, sources)])
    parts = np.array_split(alternatives, -(-len(alternatives) // size))
    found = np.concatenate(
        [measure(case.patched.branch(mask, case.state, receiver, part) for case in cases) for part in parts]
    )
    values[sources] = found[1:] - found[0]
    return values


def without_each(kept: np.ndarray, sources: np.ndarray) -> np.ndarray:
    """[len(sources), S] bool: a receiver's kept sources less one more, one at a time."""
    alternatives = np.repeat(kept[None], len(sources), axis=0)
    alternatives[np.arange(len(sources)), sources] = False
    return alternatives


def without_more(kept: np.ndarray, sources: np.ndarray) -> np.ndarray:
    """[len(sources), S] bool: a receiver's kept sources less the
    first, the first two, the first three, ..."""
    return np.logical_and.accumulate(without_each(kept, sources), axis=0)


def at_mask(case: Case, mask: np.ndarray, first_layer: int) -> Case:
    """The case under a mask that removes nothing before a layer."""
    return replace(case, state=case.patched.state(mask, case.clean, first_layer))


@dataclass(frozen=True)
class EachCost:
    """What one alternative of what a receiver reads costs, in forwards: the weights that it meets."""

    graph: Graph
    nodes: np.ndarray  # [S]: of a source at one position, in forwards
    unembed: float
    length: float  # positions

    @classmethod
    def of(cls, model: Model, task: Task, graph: Graph) -> EachCost:
        """By the mean length of a task's prompts."""
        length = float(np.mean([len(example.clean) for example in task.examples]))
        nodes = np.zeros(len(graph.sources))
        for layer, block in enumerate(model.blocks):
            heads, mlp = block.sizes()
            nodes[graph.heads(layer)], nodes[graph.mlps(layer)] = heads / graph.n_heads, mlp
        forward = length * float(nodes.sum()) + model.unembedding_size
        return cls(graph, nodes / forward, model.unembedding_size / forward, length)

    def of_each(self, mask: np.ndarray, receivers: Sequence[int]) -> list[float]:
        """Of all kept in-edges of each receiver, one after the other, under a mask."""
        at = np.where(self.graph.everywhere(mask), self.length, 1.0) * self.nodes * self.graph.live(mask)
        reached = (self.graph.reached(mask, self.graph.feeds[receiver]) for receiver in receivers)
        return [
            int(mask[:, r].sum()) * (float(at[moved].sum()) + self.unembed)
            for r, moved in zip(receivers, reached, strict=True)
        ]
