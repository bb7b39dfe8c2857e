"""circuit.json: its fields, their types, and the sentence for each thing that is wrong.

The same rules hold for the provenance (`info`) of Scores and Circuit in memory, so that
what can be made can be saved and loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from circuitdiscovery.errors import CircuitDiscoveryError, unknown
from circuitdiscovery.files.fields import exactly, has_control_characters, shown_value, typed
from circuitdiscovery.graph.graph import Graph

FORMAT = "circuitdiscovery circuit 1"
SPLIT_FORMAT = "circuitdiscovery circuit 2"  # of a graph in which nodes are sums of parts

# What is known of where scores or a circuit came from. Every field may be missing, or null in a file.
INFO: Mapping[str, type] = {
    "model": dict,  # {"name": text, "digest": text, ...}
    "task": str,
    "counterfactual": str,
    "seed": int,
    "examples": int,
    "data": dict,  # {"examples": digest, "held_out": digest, "tokenizer": digest}
    "method": str,
    "options": dict,
    "versions": dict,
    "roles": dict,  # {role: [node, ...]}
}
# in a file: older ones lack the first two, and all may not apply
_OPTIONAL = ("counterfactual", "data", "roles")
_FIELDS = (
    "format",
    *(name for name in INFO if name not in _OPTIONAL),
    "graph",
    "n_edges",
    "total_edges",
    "edges",
)


# The fields that tell our other files apart from a circuit.
_OTHER_FILES: Mapping[str, set[str]] = {
    "an evaluation": {"faithfulness", "completeness", "minimality"},
    "an explanation": {"cards", "intervened"},
    "the record of a run": {"command", "options", "started"},
    "what a report shows": {"circuit", "example", "prompts"},
    "a benchmark": {"options", "results"},
}


def read(data: Any, where: str) -> tuple[Graph, np.ndarray, np.ndarray, Mapping[str, Any]]:
    """circuit.json as a graph, the mask and the scores (NaN: none), both
    [sources, receivers], and the provenance.

    Raises:
        CircuitDiscoveryError: anything missing, surplus, of another type or contradictory, by file and field.
    """
    for kind, fields_of in _OTHER_FILES.items():
        if isinstance(data, dict) and fields_of <= data.keys():
            raise CircuitDiscoveryError(f"{where} is {kind}, not a circuit; a run's circuit is circuit.json")
    exactly(data, _FIELDS, where, optional=_OPTIONAL)
    if data["format"] not in (FORMAT, SPLIT_FORMAT):
        raise CircuitDiscoveryError(
            f"{where}: field 'format' must be {FORMAT!r} or {SPLIT_FORMAT!r}, not "
            f"{shown_value(data['format'])}"
        )
    graph = Graph.from_dict(data["graph"], where, "graph")
    if data["format"] != _format(graph):
        raise CircuitDiscoveryError(
            f"{where}: field 'format' must be {_format(graph)!r} for this graph, not {data['format']!r}"
        )
    edges = typed(data["edges"], dict, where, "edges")
    for name, count in (("n_edges", len(edges)), ("total_edges", len(graph))):
        if typed(data[name], int, where, name) != count:
            raise CircuitDiscoveryError(f"{where}: field {name!r} says {data[name]}, but there are {count}")
    mask, scores = np.zeros(graph.allowed.shape, dtype=bool), np.full(graph.allowed.shape, np.nan)
    for edge, score in edges.items():
        try:
            at = graph.index(edge)
        except CircuitDiscoveryError as error:
            raise CircuitDiscoveryError(f"{where}: field 'edges': {error}") from None
        mask[at], scores[at] = True, np.nan if score is None else typed(score, float, where, f"edges.{edge}")
    return graph, mask, scores, info_of({name: data.get(name) for name in INFO}, graph, where)


def write(
    graph: Graph, mask: np.ndarray, scores: np.ndarray | None, info: Mapping[str, Any]
) -> dict[str, Any]:
    """What circuit.json says: what `read` reads."""
    known = {name: info.get(name) for name in INFO if name not in _OPTIONAL or name in info}
    counts = {"n_edges": int(mask.sum()), "total_edges": len(graph)}
    values = np.full(mask.sum(), np.nan) if scores is None else scores[mask]
    edges = {
        name: None if np.isnan(value) else float(value)
        for name, value in zip(graph.names(mask), values, strict=True)
    }
    return {"format": _format(graph), **known, "graph": graph.to_dict(), **counts, "edges": edges}


def _format(graph: Graph) -> str:
    return SPLIT_FORMAT if graph.splits else FORMAT


def info_of(value: Mapping[str, Any], graph: Graph, where: str = "info") -> Mapping[str, Any]:
    """A checked, unchangeable copy of a provenance, without what is null."""
    try:
        info = json.loads(json.dumps(dict(value), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise CircuitDiscoveryError(f"{where}: not JSON: {error}") from None
    info = {name: part for name, part in exactly(info, (), where, optional=INFO).items() if part is not None}
    for name, part in info.items():
        typed(part, INFO[name], where, name)
    for key in ("name", "digest") if "model" in info else ():
        typed(info["model"].get(key), str, where, f"model.{key}")
    for name, digest in info.get("data", {}).items():
        typed(digest, str, where, f"data.{name}")
    for package, version in info.get("versions", {}).items():
        typed(version or "", str, where, f"versions.{package}")  # null: not installed
    _check_roles(info.get("roles", {}), graph, where)
    return MappingProxyType(info)


def options_of(info: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """(name, value) of a search's options, and then of how edges were taken from its scores: older files have
    these among them."""
    options = dict(info.get("options", {}))
    taken = options.get("selection")
    if not isinstance(taken, Mapping):
        return list(options.items())
    del options["selection"]
    return [
        *options.items(),
        ("selection", taken.get("by")),
        *((k, v) for k, v in taken.items() if k != "by"),
    ]


def check_role(role: str) -> None:
    """Refuse a role without a name, and one with characters that no picture can show."""
    if not role or has_control_characters(role):
        raise CircuitDiscoveryError(
            f"a role must have a name without control characters, such as 'name mover', not {role!r}"
        )


def _check_roles(roles: Mapping[str, Any], graph: Graph, where: str) -> None:
    for role, nodes in roles.items():
        check_role(role)
        for node in typed(nodes, list, where, f"roles.{role}"):
            if node not in graph.sources:
                raise CircuitDiscoveryError(
                    f"{where}: field 'roles.{role}': {unknown('node', node, graph.sources)}"
                )
