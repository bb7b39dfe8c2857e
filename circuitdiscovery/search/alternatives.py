"""What the exact searches stand on: one receiver's alternatives, evaluated on every example of a task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from circuitdiscovery.engine import distributed
from circuitdiscovery.engine.fast import PatchedRun, State
from circuitdiscovery.engine.finite import finite_logits
from circuitdiscovery.engine.memory import alternative_token, budget
from circuitdiscovery.engine.metrics import BoundMetric
from circuitdiscovery.engine.setup import Setup
from circuitdiscovery.model.run import plain_run
from circuitdiscovery.task.batch import Batch
from circuitdiscovery.task.task import Task

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
    most: float  # alternatives x examples x positions that memory has room for in one forward


@torch.no_grad()
def cases(setup: Setup) -> tuple[list[Case], Tensor]:
    """(a case per batch of this process's share, all edges kept; the [examples, vocabulary] logits of the
    full circuit, for KL)."""
    found: list[Case] = []
    # asked for before the states are held
    longest = max(len(example.clean) for example in setup.task.examples)
    token = alternative_token(setup.model, setup.graph, longest)
    most = setup.need.room(token, budget(setup.model.device))
    run_of = "corrupted" if setup.denoising else "clean"
    for batch, patched in setup.patched_runs():
        run = plain_run(setup.model, patched.start, batch.position, keep_sources=True, parts=patched.parts)
        finite_logits(run.logits, batch.rows, run_of)
        assert run.sources is not None
        clean = patched.clean_state(run.sources)
        found.append(Case(batch, patched, clean, clean, most))
    return found, setup.full_logits([(case.batch, case.patched) for case in found])


def most_alternatives(cases: Sequence[Case], mask: np.ndarray, receiver: int) -> int:
    """How many alternatives of what a receiver reads are worth one
    forward: the same number in every process."""
    worth = [TOKENS_ACCELERATOR]
    for case in cases:
        places = case.batch.clean.numel() if case.patched.spreads(mask, receiver) else len(case.batch.clean)
        tokens = TOKENS.get(case.batch.clean.device.type, TOKENS_ACCELERATOR)
        worth.append(int(min(tokens, case.most)) // places)
    return max(1, distributed.least(min(worth)))


def mean_metric(
    task: Task, cases: Sequence[Case], metric: BoundMetric, logits: Sequence[Tensor]
) -> np.ndarray:
    """[M]: the metric's mean over all examples, from each case's [M, N, vocabulary] logits."""
    own = sum(
        metric(one, case.batch).double().sum(-1).cpu().numpy()
        for case, one in zip(cases, logits, strict=True)
    )
    total = np.array(own, dtype=np.float64)  # of this process's cases; a plain 0 where it has none
    if len(task) < distributed.world_size():
        total = np.resize(total, distributed.from_first(lambda: total.shape))
    return distributed.total(torch.from_numpy(total)).numpy() / len(task)


@torch.no_grad()
def rises(
    cases: Sequence[Case], mask: np.ndarray, receiver: int, measure: Callable[[Sequence[Tensor]], np.ndarray]
) -> np.ndarray:
    """[S]: how much a measure rises where each source that a receiver
    keeps is removed alone; 0 for the others.

    It rises from the same run with nothing removed, and not from another one, which
    in a half precision would round elsewhere.

    Args:
        cases: with their states under the mask.
        mask: [S, R], the edges that are kept.
        receiver: its column.
        measure: [M], from each case's [M, N, vocabulary] logits.
    """
    kept, values = mask[:, receiver], np.zeros(len(mask))
    sources, size = np.flatnonzero(kept), most_alternatives(cases, mask, receiver)
    alternatives = np.concatenate([kept[None], without_each(kept, sources)])
    parts = np.array_split(alternatives, -(-len(alternatives) // size))
    found = np.concatenate(
        [measure([case.patched.branch(mask, case.state, receiver, part) for case in cases]) for part in parts]
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
