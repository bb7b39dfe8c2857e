"""The walk back from the logits that path patching takes by hand (Wang et al. 2022, arXiv 2211.00593)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuitdiscovery.arguments import guarded
from circuitdiscovery.circuit.circuit import Circuit
from circuitdiscovery.engine.ablation import Ablation
from circuitdiscovery.engine.memory import stepwise
from circuitdiscovery.engine.metrics import Metric, by_rows
from circuitdiscovery.engine.setup import Progress, Setup
from circuitdiscovery.engine.state import saved_in
from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.model.model import Model
from circuitdiscovery.registry import DEFAULT_THRESHOLD, KL
from circuitdiscovery.search.alternatives import cases, mean_metric, rises
from circuitdiscovery.search.path_patching import finite_threshold
from circuitdiscovery.search.provenance import provenance
from circuitdiscovery.task.task import Task


@guarded
@torch.no_grad()
def trace_back(
    model: Model,
    task: Task,
    *,
    threshold: float = DEFAULT_THRESHOLD,
    metric: str | Metric | Any | None = None,
    ablation: str | Ablation = "resample",
    split_qkv: bool = True,
    graph: Graph | None = None,
    batch_size: int | None = None,
    progress: Progress | None = None,
    state: str | Path | None = None,
) -> Circuit:
    """From the logits back: the edges that alone do at least the threshold's
    damage, among those into nodes that were kept.

    What is kept is what `exact` scores at least the threshold, as far as it is connected to the logits by
    kept edges; other receivers are never evaluated. MLPs are nodes like any other.

    Args:
        model: a loaded model.
        task: all its examples are used.
        threshold: an edge is kept if its damage alone, in the metric's units
            (nats for kl_divergence), is at least this.
        metric: any; by default kl_divergence, as for `acdc` and `exact`.
        ablation: what a removed edge carries; noising.
        split_qkv: query, key and value as separate receivers.
        graph: whose edges, where nodes are split into parts (`split`); by default the model's.
        batch_size: examples in one forward; another size changes roundings only.
        progress: called with (receivers done or passed over, in all).
        state: as in `acdc`.

    Returns:
        The circuit, not pruned; the score of an edge is its damage.

    Raises:
        CircuitDiscoveryError: a threshold that is not a finite number; an unknown metric or
            ablation; a state of another search.

    >>> import circuitdiscovery as cd
    >>> from circuitdiscovery.search.trace_back import trace_back
    >>> model = cd.load_model("toy")
    >>> circuit = trace_back(model, cd.load_task("ioi", model, examples=4), threshold=0.1)
    """
    finite_threshold(threshold)
    graph = Graph.given(model, graph, split_qkv)
    how: dict[str, Any] = {"ablation": ablation, "batch_size": batch_size, "need": stepwise}
    setup = Setup.of(model, task, graph, metric=metric or KL, **how)
    info = provenance(model, task, "trace_back", setup.options(threshold=threshold))
    count = len(graph.receivers)
    with saved_in(state, setup, info) as saved:
        mask = saved.array("kept", np.zeros_like(graph.allowed))
        scores = saved.array("scores", np.zeros(graph.allowed.shape))
        done = saved.number("receivers", 0)
        if progress:
            progress(done, count)
        found, full = cases(setup)
        bound = setup.metric.against(by_rows(full))

        def measure(logits: Iterable[Tensor]) -> np.ndarray:
            return bound.damage(0.0, mean_metric(task, found, bound, logits))

        # every reader before what it reads
        for at in range(done, count):
            receiver = count - 1 - at
            if graph.leading(mask)[receiver]:
                scores[:, receiver] = rises(found, graph.allowed, receiver, measure)
                mask[:, receiver] = graph.allowed[:, receiver] & (scores[:, receiver] >= threshold)
            saved.keep({"kept": mask, "scores": scores}, receivers=at + 1)
            if progress:
                progress(at + 1, count)
    return Circuit(graph, mask, scores, info)
