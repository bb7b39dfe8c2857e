"""Activation patching of every edge, or node, alone: the damage itself, which attribution estimates.

For each receiver, the alternatives "without this source" of what it reads are evaluated many in one forward;
only the nodes downstream of the receiver run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from circuitdiscovery.arguments import guarded
from circuitdiscovery.circuit.circuit import Circuit
from circuitdiscovery.circuit.scores import Scores
from circuitdiscovery.engine.ablation import Ablation
from circuitdiscovery.engine.memory import stepwise
from circuitdiscovery.engine.metrics import Metric, by_rows
from circuitdiscovery.engine.setup import Progress, Setup
from circuitdiscovery.engine.state import saved_in
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.graph.nodes import parsed
from circuitdiscovery.model.model import Model
from circuitdiscovery.registry import KL
from circuitdiscovery.search.alternatives import cases, mean_metric, rises
from circuitdiscovery.search.provenance import provenance
from circuitdiscovery.task.task import Task


@guarded
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
    graph: Graph | None = None,
    batch_size: int | None = None,
    progress: Progress | None = None,
    state: str | Path | None = None,
) -> Any:
    """The damage of ablating each edge alone; in denoising, how much
    restoring it alone improves the corrupted run.

    Args:
        model, task, ablation, split_qkv, graph, batch_size: as in `eap`.
        level: `edge` gives `Scores`; `node` ablates all of a node's
            out-edges at once and gives {node: damage}.
        metric: any; by default kl_divergence, which misses no change of the output.
        direction: `noising`, or `denoising`, which takes no `ablation`.
        progress: called with (receivers or nodes done, in all).
        state: as in `acdc`.

    Returns:
        `Scores` in the metric's units (nats for kl_divergence); with `level="node"` damages by node.

    Raises:
        CircuitDiscoveryError: an unknown level, metric, ablation or direction; a state of another search.

    >>> import circuitdiscovery as cd
    >>> model = cd.load_model("toy")
    >>> damage = cd.exact(model, cd.load_task("ioi", model, examples=4), level="node")
    """
    if level not in ("edge", "node"):
        raise CircuitDiscoveryError(f"no level {level!r}; valid levels: edge, node")
    graph = Graph.given(model, graph, split_qkv)
    how: dict[str, Any] = {"ablation": ablation, "direction": direction, "batch_size": batch_size}
    setup = Setup.of(model, task, graph, metric=metric or KL, need=stepwise, **how)
    options = setup.options(direction=direction)
    info = provenance(model, task, "exact", options)
    count = len(graph.receivers if level == "edge" else graph.sources)
    with saved_in(state, setup, info | {"level": level}) as saved:
        values = saved.array("damages", np.zeros(graph.allowed.shape if level == "edge" else count))
        done = saved.number("done", 0)
        if progress:
            progress(done, count)
        found, full = cases(setup)
        bound, sign = setup.metric.against(by_rows(full)), -1 if setup.denoising else 1

        def measure(logits: Iterable[torch.Tensor]) -> np.ndarray:
            return sign * bound.damage(0.0, mean_metric(task, found, bound, logits))

        def removed(mask: np.ndarray) -> float:
            return float(measure(case.patched.logits(mask)[None] for case in found)[0])

        nothing = removed(graph.allowed) if level == "node" else 0.0
        for at in range(done, count):
            if level == "node":
                values[at] = removed(_without(graph, at)) - nothing
            else:
                values[:, at] = rises(found, graph.allowed, at, measure)
            saved.keep({"damages": values}, done=at + 1)
            if progress:
                progress(at + 1, count)
    return (
        dict(zip(graph.sources, values.tolist(), strict=True))
        if level == "node"
        else Scores(graph, values, info)
    )


def circuit_of_nodes(
    graph: Graph, damages: Mapping[str, float], *, threshold: float | None, edges: int
) -> Circuit:
    """All edges between the nodes that their damages choose: those of at least the threshold, or, where it is
    None, as many of the most damage as have together no more than so many edges."""
    ranked = sorted(
        (node for node in damages if parsed(node).kind != "input"), key=lambda node: -abs(damages[node])
    )
    if threshold is not None:
        return Circuit.from_nodes(graph, [node for node in ranked if abs(damages[node]) >= threshold])
    found = Circuit.from_nodes(graph, ())
    for count in range(1, len(ranked) + 1):
        larger = Circuit.from_nodes(graph, ranked[:count])
        if len(larger) > edges:
            break
        found = larger
    return found


def _without(graph: Graph, row: int) -> np.ndarray:
    """Every edge but those out of a source."""
    mask = graph.allowed.copy()
    mask[row] = False
    return mask
