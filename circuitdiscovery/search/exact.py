"""Activation patching of every edge, or node, alone: the damage itself, which attribution estimates.

For each receiver, the alternatives "without this source" of what it reads are evaluated many in one forward; only the nodes
downstream of the receiver run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from circuitdiscovery.ablation import Ablation, name_of
from circuitdiscovery.circuit import Scores
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.graph import Graph
from circuitdiscovery.metrics import Metric, bind
from circuitdiscovery.model import Model
from circuitdiscovery.names import canonical
from circuitdiscovery.patching import Progress
from circuitdiscovery.search.cases import Case, cases, mean_metric, most_alternatives, without_each
from circuitdiscovery.search.provenance import provenance
from circuitdiscovery.task import Task


@torch.no_grad()
def exact(
    model: Model,
    task: Task,
    *,
    level: str = "edge",
    metric: str | Metric | Any | None = None,
    ablation: str | Ablation = "resample",
    direction: str = "noising",
    split_qkv: bool = True,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Any:
    """The damage of ablating each edge alone; in denoising, how much restoring it alone improves the corrupted run.

    Args:
        model, task, ablation, split_qkv, batch_size: as in `eap`.
        level: `edge` gives `Scores`; `node` ablates all of a node's out-edges at once and gives {node: damage}.
        metric: any; by default kl_divergence, which misses no change of the output.
        direction: `noising` or `denoising`.
        progress: called with (receivers or nodes done, in all).

    Raises:
        CircuitDiscoveryError: an unknown level, metric, ablation or direction.

    >>> import circuitdiscovery as cd
    >>> model = cd.load_model("toy")
    >>> damage = cd.exact(model, cd.load_task("ioi", model, examples=4), level="node")
    """
    if level not in ("edge", "node"):
        raise CircuitDiscoveryError(f"no level {level!r}; valid levels: edge, node")
    bound = bind(metric or "kl_divergence", model, task)
    graph = Graph.from_model(model, split_qkv=split_qkv)
    found, logits = cases(model, task, graph, ablation=ablation, direction=direction, batch_size=batch_size)
    old = float(mean_metric(task, found, bound, [logits[None, case.batch.rows] for case in found])[0])
    sign = 1 if canonical("direction", direction) == "noising" else -1

    def damage(of: Callable[[Case], torch.Tensor]) -> np.ndarray:
        return sign * bound.damage(old, mean_metric(task, found, bound, [of(case) for case in found]))

    if level == "node":
        return _nodes(graph, damage, progress)
    values = _edges(graph, found, damage, progress)
    options = {"metric": bound.name, "ablation": name_of(ablation), "direction": direction, "split_qkv": split_qkv}
    return Scores(graph, values, provenance(model, task, "exact", options))


def _edges(
    graph: Graph, found: list[Case], damage: Callable[[Callable[[Case], torch.Tensor]], np.ndarray], progress: Progress | None
) -> np.ndarray:
    values = np.zeros(graph.allowed.shape)
    for receiver in range(len(graph.receivers)):
        size = most_alternatives(found, graph.allowed, receiver)
        kept = graph.allowed[:, receiver]
        sources = np.flatnonzero(kept)
        for some in np.array_split(sources, -(-len(sources) // size)):
            alternatives = without_each(kept, some)
            values[some, receiver] = damage(lambda case, r=receiver, a=alternatives: case.world.branch(graph.allowed, case.state, r, a))
        if progress:
            progress(receiver + 1, len(graph.receivers))
    return values


def _nodes(graph: Graph, damage: Callable[[Callable[[Case], torch.Tensor]], np.ndarray], progress: Progress | None) -> dict[str, float]:
    values: dict[str, float] = {}
    for row, name in enumerate(graph.sources):
        mask = graph.allowed.copy()
        mask[row] = False
        values[name] = float(damage(lambda case, m=mask: case.world.logits(m)[None])[0])
        if progress:
            progress(row + 1, len(graph.sources))
    return values
