"""Scores.best: every edge on a path, and of all such sets of at most
n edges the one of the greatest total."""

from __future__ import annotations

from functools import cache
from typing import Any

import networkx as nx
import numpy as np
import pytest

import circuitdiscovery as cd
from circuitdiscovery.graph.selection import MILP_EDGES, _Paths, best_mask

GRAPHS = {
    "one layer": cd.Graph(1, 1, 1),
    "merged": cd.Graph(1, 1, 1, split_qkv=False),
    "grouped": cd.Graph(1, 2, 1),
    "two layers, merged, parallel": cd.Graph(2, 1, 1, parallel=True, split_qkv=False),
}


def drawn(graph: cd.Graph, seed: int = 0) -> Any:
    """Random signed scores."""
    return np.random.default_rng(seed).standard_normal(graph.allowed.shape)


@cache
def connected(name: str) -> np.ndarray:
    """Every set of edges, as rows of bits over the graph's edges, in
    which all lie on a path: by trying them all.
    """
    graph = GRAPHS[name]
    edges = np.argwhere(graph.allowed)
    sets = ((np.arange(2 ** len(edges))[:, None] >> np.arange(len(edges))) & 1).astype(bool)
    good = np.ones(len(sets), dtype=bool)
    for i, (source, receiver) in enumerate(edges):
        before = graph.feeds[edges[:, 1], source]  # the edges into its source
        after = graph.feeds[receiver][edges[:, 0]]  # the edges out of what it feeds
        good &= ~sets[:, i] | (source == 0) | (sets @ before)
        good &= ~sets[:, i] | (receiver == len(graph.receivers) - 1) | (sets @ after)
    return sets[good]


@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize("name", GRAPHS)
def test_no_set_of_edges_is_better(name: str, absolute: bool) -> None:
    graph, sets = GRAPHS[name], connected(name)
    for seed in range(3):
        scores = cd.Scores(graph, drawn(graph, seed))
        weights = (np.abs(scores.values) if absolute else scores.values)[graph.allowed]
        for n in range(len(graph) + 1):
            best = float((sets[sets.sum(1) <= n] @ weights).max())
            found = scores.best(n, absolute=absolute)
            assert len(found) <= n
            assert found.pruned() == found
            assert float(weights[found.mask[graph.allowed]].sum()) == pytest.approx(best, abs=1e-9), (seed, n)


def on_networkx_paths(circuit: cd.Circuit) -> bool:
    """Every edge on a path from input to logits, by networkx, in a graph whose
    heads have keys and values of their own.
    """
    view = nx.DiGraph(circuit.to_networkx())
    if not len(circuit):
        return True
    behind = nx.descendants(view, "input") | {"input"}
    before = nx.ancestors(view, "logits") | {"logits"}
    return set(view) <= behind & before


@pytest.mark.parametrize("n", [0, 1, 3, 30, 300, 2000])
def test_large_graphs_are_connected_and_near_the_bound(n: int) -> None:
    graph = cd.Graph(6, 6, 6)
    assert len(graph) > MILP_EDGES
    scores = cd.Scores(graph, drawn(graph))
    found = scores.best(n)
    assert found.info["options"]["selection"]["solver"] == "greedy"
    assert len(found) <= n and found.pruned() == found and on_networkx_paths(found)
    if n >= 300:
        assert len(found) == n
        # of the best edges, connected or not
        bound = np.sort(np.abs(scores.values[graph.allowed]))[::-1][:n].sum()
        assert np.abs(scores.values[found.mask]).sum() > 0.85 * bound


def test_greedy_is_near_the_best() -> None:
    """On a graph that the programme solves."""
    graph = cd.Graph(3, 2, 2)
    for seed in range(3):
        weights = np.abs(drawn(graph, seed))
        for n in (12, 24, 48):
            exact, solver = best_mask(graph, weights, n)
            assert solver == "milp"
            greedy = _Paths(graph, weights).chosen(n)
            assert weights[greedy].sum() >= 0.9 * weights[exact].sum()


def test_the_best_alone_are_not_connected() -> None:
    """What best is for: the best 353 of random edges of SmolLM2's graph
    hold no path, and best's are all on one.
    """
    graph = cd.Graph(30, 9, 3)
    scores = cd.Scores(graph, drawn(graph))
    assert len(scores.top(353).pruned()) < 35
    found = scores.best(353)
    assert len(found) == len(found.pruned()) == 353


def test_in_signed_order_harm_is_kept_only_to_connect() -> None:
    graph = cd.Graph(1, 1, 1)
    values = np.zeros(graph.allowed.shape) - 1.0
    values[graph.index("a0.h0->logits")] = 5.0  # worth one harmful edge into its head, and no more
    found = cd.Scores(graph, values).best(8, absolute=False)
    assert "a0.h0->logits" in found.edges
    assert len(found) == 2


def test_the_same_scores_the_same_circuit() -> None:
    for graph in (cd.Graph(2, 2, 1), cd.Graph(6, 6, 6)):
        ties = cd.Scores(graph, np.ones(graph.allowed.shape))
        assert ties.best(20) == ties.best(20)


@pytest.mark.parametrize("n", [-1, 16, 1.5, True, "4"])
def test_an_impossible_number_names_the_range(n: Any) -> None:
    graph = cd.Graph(1, 1, 1)
    with pytest.raises(
        cd.CircuitDiscoveryError, match=f"edges must be a whole number from 0 to {len(graph)}"
    ):
        cd.Scores(graph, drawn(graph)).best(n)
