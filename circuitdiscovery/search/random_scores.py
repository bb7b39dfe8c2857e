"""The random baseline that every search must beat."""

from __future__ import annotations

import numpy as np

from circuitdiscovery.arguments import guarded
from circuitdiscovery.circuit.scores import Scores
from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.model.model import Model
from circuitdiscovery.search.provenance import provenance
from circuitdiscovery.task.task import Task


@guarded
def random(
    model: Model, task: Task, *, seed: int = 0, split_qkv: bool = True, graph: Graph | None = None
) -> Scores:
    """Scores drawn from a standard Gaussian, one per edge, by the seed.

    Args:
        model, task: whose edges are scored; the task is only named in the provenance.
        seed: of the draws.
        split_qkv: query, key and value as separate receivers.
        graph: whose edges, where nodes are split into parts (`split`); by default the model's.

    Returns:
        One number per edge that says nothing about it.

    >>> import circuitdiscovery as cd
    >>> model = cd.load_model("toy")
    >>> scores = cd.random(model, cd.load_task("ioi", model, examples=4), seed=1)
    """
    graph = Graph.given(model, graph, split_qkv)
    values = np.random.default_rng(seed).standard_normal(graph.allowed.shape)
    info = provenance(model, task, "random", {"seed": seed, "split_qkv": graph.split_qkv})
    return Scores(graph, np.where(graph.allowed, values, 0.0), info)
