"""The circuit JSON of EAP-IG and of MIB's circuit track, to and from arrays over a Graph.

Format: `Graph.to_json` of https://github.com/hannamw/EAP-IG (Hanna et al. 2024, arXiv 2403.17806), used by
MIB (Mueller et al. 2025, arXiv 2504.13151): {"cfg": {n_layers, n_heads, parallel_attn_mlp, d_model}, "nodes":
{name: {in_graph}}, "edges": {name: {score, in_graph}}} with every edge of the model, in our names.

Sign. Their attribution is (corrupted - clean) . gradient of a *loss*, which is the damage of ablating the
edge: our sign. So nothing is turned. Files made with the metric itself in place of a loss (the circuit
track's own example of November 2024 is one: its name movers are negative) have the opposite sign, and nothing
in them says so.

Groups. Their graph has a key and a value edge for each query head. Where heads share keys and values, a
group's edge is written once for each of its heads, and read where the heads agree. The format does not say
how many groups there are: ours adds `n_kv_heads` to `cfg`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from circuitdiscovery.errors import CircuitDiscoveryError, shown, unknown
from circuitdiscovery.files.fields import exactly, typed
from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.graph.nodes import edge_name, group_name, letter_of, parsed, receiver_name

_EDGE, _NODE = ("in_graph", "score"), ("in_graph", "score", "neurons", "neurons_scores")


def is_mib(data: Any) -> bool:
    """Whether a JSON value has the shape of MIB's format."""
    return isinstance(data, dict) and {"cfg", "nodes", "edges"} <= data.keys()


def read(data: Any, where: str, n_kv_heads: int | None = None) -> tuple[Graph, np.ndarray, np.ndarray]:
    """MIB's JSON as a graph, its mask and its scores, both [sources, receivers]; a missing score is NaN.

    Args:
        data: the JSON value.
        where: the file, for errors.
        n_kv_heads: key/value groups of the model; by default as many as heads, or what the file's `cfg` says.

    Raises:
        CircuitDiscoveryError: another shape of file; a missing or unknown edge; heads of a
            group that disagree; a circuit of neurons; other groups than the file's `cfg` says.
    """
    exactly(data, ("cfg", "nodes", "edges"), where)
    graph = _graph(data["cfg"], where, n_kv_heads)
    _check_nodes(data["nodes"], graph, where)
    return graph, *_arrays(typed(data["edges"], dict, where, "edges"), graph, where)


def only_here(n_kv_heads: int | None, where: str) -> None:
    """Refuse a number of groups for a file in a format that says it itself."""
    if n_kv_heads is not None:
        raise CircuitDiscoveryError(
            f"{where}: n_kv_heads is for MIB's JSON alone; this file says itself which graph it is of"
        )


def write(
    graph: Graph, mask: np.ndarray, scores: np.ndarray | None = None, *, d_model: int = 0
) -> dict[str, Any]:
    """MIB's JSON of a [sources, receivers] mask; edges without a score get 0, which EAP-IG's reader requires.

    Args:
        d_model: of the model; only circuits of neurons, which ours are not, have arrays of that width.

    Raises:
        CircuitDiscoveryError: merged q, k and v, or no MLPs: the format has neither.
    """
    if graph.splits:
        node = graph.splits[0].node
        raise CircuitDiscoveryError(f"MIB's format has no parts of nodes, and {node} is split into some")
    if not graph.split_qkv or not graph.has_mlp:
        raise CircuitDiscoveryError("MIB's format needs separate q, k and v, and an MLP in every block")
    cfg = {
        "n_layers": graph.n_layers,
        "n_heads": graph.n_heads,
        "parallel_attn_mlp": graph.parallel,
        "d_model": d_model,
    }
    cfg |= {"n_kv_heads": graph.n_kv_heads} if graph.grouped else {}
    scores = np.zeros(mask.shape) if scores is None else np.nan_to_num(scores)
    touched = {
        name
        for row, column in np.argwhere(mask)
        for name in (graph.sources[row], *_readers(graph, graph.receivers[column]))
    }
    edges = {
        name: {"score": float(scores[at]), "in_graph": bool(mask[at])} for name, at in _their_edges(graph)
    }
    return {
        "cfg": cfg,
        "nodes": {name: {"in_graph": name in touched} for name in (*graph.sources, "logits")},
        "edges": edges,
    }


def _graph(cfg: Any, where: str, n_kv_heads: int | None) -> Graph:
    known = ("n_layers", "n_heads", "parallel_attn_mlp")
    for name, kind in zip(known, (int, int, bool), strict=True):
        typed(typed(cfg, dict, where, "cfg").get(name), kind, where, f"cfg.{name}")
    said = cfg.get("n_kv_heads")
    if None not in (n_kv_heads, said) and n_kv_heads != said:
        raise CircuitDiscoveryError(
            f"{where}: its cfg has n_kv_heads {shown(said)}, not the given {n_kv_heads}"
        )
    groups = cfg.get("n_kv_heads", cfg["n_heads"]) if n_kv_heads is None else n_kv_heads
    shape = {
        "n_layers": cfg["n_layers"],
        "n_heads": cfg["n_heads"],
        "n_kv_heads": groups,
        "parallel": cfg["parallel_attn_mlp"],
    }
    return Graph.from_dict({**shape, "has_mlp": True, "split_qkv": True}, where, "cfg")


def _check_nodes(nodes: Any, graph: Graph, where: str) -> None:
    """Node flags follow from the edges (EAP-IG's evaluation derives them
    anew), so only names and neurons matter.
    """
    names = {*graph.sources, "logits"}
    for name, node in typed(nodes, dict, where, "nodes").items():
        if name not in names:
            raise CircuitDiscoveryError(
                f"{where}: field 'nodes': {unknown('node', name, [*graph.sources, 'logits'])}"
            )
        exactly(node, ("in_graph",), where, f"nodes.{name}", optional=_NODE)
        if not all(typed(node.get("neurons", []), list, where, f"nodes.{name}.neurons")):
            raise CircuitDiscoveryError(
                f"{where}: field 'nodes.{name}.neurons': circuits of neurons are not supported"
            )


def _arrays(edges: dict[str, Any], graph: Graph, where: str) -> tuple[np.ndarray, np.ndarray]:
    mask, scores = np.zeros(graph.allowed.shape, dtype=bool), np.full(graph.allowed.shape, np.nan)
    first: dict[tuple[int, int], str] = {}
    theirs = dict(_their_edges(graph))
    if surplus := next((name for name in edges if name not in theirs), None):
        raise CircuitDiscoveryError(f"{where}: field 'edges': {unknown('edge', surplus, theirs)}")
    for name, at in theirs.items():
        if name not in edges:
            raise CircuitDiscoveryError(f"{where}: field 'edges' lacks {name!r}")
        kept, score = _edge(edges[name], where, f"edges.{name}")
        if at not in first:
            first[at], mask[at], scores[at] = name, kept, score
        elif kept != mask[at] or not np.array_equal(score, scores[at], equal_nan=True):
            raise CircuitDiscoveryError(
                f"{where}: heads of one key/value group disagree: edges {first[at]!r} and {name!r}"
            )
    return mask, scores


def _edge(value: Any, where: str, field: str) -> tuple[bool, float]:
    exactly(value, ("in_graph",), where, field, optional=_EDGE)
    score = value.get("score")
    kept = typed(value["in_graph"], bool, where, f"{field}.in_graph")
    return kept, np.nan if score is None else float(typed(score, float, where, f"{field}.score"))


def _their_edges(graph: Graph) -> Iterator[tuple[str, tuple[int, int]]]:
    """Every edge of their graph with its (row, column) in ours; several of
    theirs are one of ours where keys are shared.
    """
    theirs = replace(graph, n_kv_heads=graph.n_heads)
    columns = [graph.receiver_index[_receiver(name, graph)] for name in theirs.receivers]
    for row, column in np.argwhere(theirs.allowed):
        yield edge_name(theirs.sources[row], theirs.receivers[column]), (int(row), columns[column])


def _receiver(theirs: str, graph: Graph) -> str:
    """Our receiver of theirs: `a0.h3<k>` -> `a0.kv1<k>` where two heads share a group."""
    if not graph.grouped or letter_of(theirs) not in ("k", "v"):
        return theirs
    head = parsed(theirs)
    return receiver_name(
        group_name(head.layer, head.index // (graph.n_heads // graph.n_kv_heads)), letter_of(theirs)
    )


def _readers(graph: Graph, receiver: str) -> tuple[str, ...]:
    return graph.reader_nodes(receiver) or ("logits",)
