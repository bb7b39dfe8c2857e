"""What is known of every edge of a graph: scores, and circuits (sets of edges).
Values; nothing here changes what it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Integral
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from circuitdiscovery.arguments import guarded
from circuitdiscovery.circuit import circuit_json, mib
from circuitdiscovery.circuit.checks import (
    booleans,
    check_same_graph,
    check_shape,
    check_size,
    described,
    floats,
    named_nodes,
    naming,
    node_order,
    origin,
    table_of,
)
from circuitdiscovery.circuit.circuit_json import info_of
from circuitdiscovery.errors import CircuitDiscoveryError, PlaceError, shown, unknown
from circuitdiscovery.files.disk import ending, write_json
from circuitdiscovery.graph.graph import Edge, Edges, Graph
from circuitdiscovery.graph.nodes import edge_name, node_of, parsed, receiver_name, whole_of

if TYPE_CHECKING:
    import networkx as nx
    import pandas as pd

    from circuitdiscovery.circuit.notebook import Drawing
    from circuitdiscovery.circuit.scores import Scores

CIRCUIT_FILE = "circuit.json"  # in the folder of a run
Roles = Mapping[str, Iterable[str]]


class ModelLike(Protocol):
    """What of a loaded model a circuit is checked against."""

    @property
    def name(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def graph(self) -> Graph: ...


@dataclass(frozen=True, eq=False)
class Circuit:
    """A set of edges of a graph. Two circuits are equal if graph and edges are.

    Args:
        graph: whose edges.
        mask: [sources, receivers] bool, True at the edges of the circuit.
        scores: [sources, receivers] float, NaN where an edge has none; what stands outside
            the circuit is dropped. None: no scores.
        info: where it comes from (model, task, seed, examples, method,
            options, versions, roles); see circuit_json.INFO.

    >>> graph = Graph(n_layers=2, n_heads=1, n_kv_heads=1)
    >>> circuit = Circuit.from_edges(graph, ["input->a1.h0<q>", "a1.h0->logits", "m0->m1"])
    >>> circuit.pruned().edges
    ('input->a1.h0<q>', 'a1.h0->logits')
    """

    graph: Graph
    mask: np.ndarray
    scores: np.ndarray | None = None
    info: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        mask = booleans(self.mask)
        check_shape("a circuit's mask", mask, self.graph)
        if (mask & ~self.graph.allowed).any():
            raise CircuitDiscoveryError(
                f"the graph has no edge {self.graph.names(mask & ~self.graph.allowed)[0]}"
            )
        mask.flags.writeable = False
        object.__setattr__(self, "mask", mask)
        object.__setattr__(self, "scores", self._own_scores())
        object.__setattr__(self, "info", info_of(self.info, self.graph))

    def _own_scores(self) -> np.ndarray | None:
        if self.scores is None:
            return None
        given = floats(self.scores)
        check_shape("a circuit's scores", given, self.graph)
        scores = np.where(self.mask, given, given.dtype.type(np.nan))
        if np.isinf(scores).any():
            raise CircuitDiscoveryError(f"the score of {self.graph.names(np.isinf(scores))[0]} is infinite")
        check_size(scores, self.graph)
        scores.flags.writeable = False
        return None if np.isnan(scores).all() else scores

    @classmethod
    @guarded
    def from_edges(cls, graph: Graph, names: Edges) -> Circuit:
        """Some edges, each by its name or its two ends', nothing pruned; an unknown one
        is an error. For `graph` a model will do.
        """
        return cls(graph, graph.mask(names))

    @classmethod
    @guarded
    def from_nodes(cls, graph: Graph, names: Iterable[str]) -> Circuit:
        """Every edge between the named nodes, `input` and `logits`, which belong to every circuit of nodes.

        Where keys and values are shared, a head's name includes what its group reads.
        """
        named = named_nodes(graph, [*names, "input", "logits"])
        sources = np.array([name in named for name in graph.sources])
        receivers = np.array(
            [
                node_of(name) in named or not named.isdisjoint(graph.reader_nodes(name))
                for name in graph.receivers
            ]
        )
        return cls(graph, graph.allowed & sources[:, None] & receivers)

    @classmethod
    @guarded
    def full(cls, graph: Graph) -> Circuit:
        """Every edge."""
        return cls(graph, graph.allowed)

    @classmethod
    @guarded
    def empty(cls, graph: Graph) -> Circuit:
        """No edge."""
        return cls(graph, np.zeros_like(graph.allowed))

    # ----------------------------------------------------------------- a set

    @cached_property
    def edges(self) -> tuple[str, ...]:
        """The edges' names, in index order."""
        return self.graph.names(self.mask)

    @property
    def nodes(self) -> tuple[str, ...]:
        """Every node that an edge leaves or enters, in topological order; a group's
        keys and values are a node `a{l}.kv{g}`.
        """
        names = {self.graph.sources[row] for row in np.flatnonzero(self.mask.any(axis=1))}
        names |= {node_of(self.graph.receivers[column]) for column in np.flatnonzero(self.mask.any(axis=0))}
        return tuple(name for name in node_order(self.graph) if name in names)

    @property
    def roles(self) -> Mapping[str, tuple[str, ...]]:
        """What its nodes do, where it is known: role -> nodes."""
        return MappingProxyType({role: tuple(nodes) for role, nodes in self.info.get("roles", {}).items()})

    def __len__(self) -> int:
        return int(self.mask.sum())

    def __iter__(self) -> Iterator[str]:
        """The edges, in index order."""
        return iter(self.edges)

    def __getitem__(self, at: int | slice) -> Any:
        """The edge at an index, or those of a slice.

        >>> Circuit.full(Graph(n_layers=1, n_heads=1, n_kv_heads=1))[-1]
        'm0->logits'
        """
        if not isinstance(at, slice | Integral):
            raise CircuitDiscoveryError(
                f"a circuit's index is a whole number or a slice, not {shown(at)}; an edge's score is "
                "circuit.score(edge)"
            )
        edges, place = self.edges, int(at) if isinstance(at, Integral) else 0
        if not -len(edges) <= place < len(edges) and isinstance(at, Integral):
            raise PlaceError(f"there is no edge {shown(at)}: the circuit has {len(edges)}, counted from 0")
        return edges[at]  # pyright: ignore[reportArgumentType, reportCallIssue]

    def __contains__(self, part: object) -> bool:
        """Whether an edge (its name, or a pair of its ends' names) or a node is kept, of a node that is
        split any of its parts; a name that the graph does not have is an error.
        """
        if isinstance(part, str) and "->" not in part:
            return not named_nodes(self.graph, [part]).isdisjoint(self.nodes)
        return bool(self.mask[self.graph.index(part)])  # pyright: ignore[reportArgumentType]

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Circuit) and self.graph == other.graph and np.array_equal(self.mask, other.mask)
        )

    def __hash__(self) -> int:
        return hash((self.graph, self.mask.tobytes()))

    def __repr__(self) -> str:
        return f"Circuit({len(self):,} of {len(self.graph):,} edges{origin(self.info)})"

    def _repr_html_(self) -> str:
        from circuitdiscovery.circuit.notebook import of_circuit

        return of_circuit(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return Circuit, (self.graph, self.mask, self.scores, dict(self.info))

    def __or__(self, other: Circuit) -> Circuit:
        return self._combined(other, np.logical_or)

    def __and__(self, other: Circuit) -> Circuit:
        return self._combined(other, np.logical_and)

    def __sub__(self, other: Circuit) -> Circuit:
        return self._combined(other, lambda mine, theirs: mine & ~theirs)

    def _combined(self, other: Circuit, operation: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Circuit:
        """Scores and roles are the left one's; of the rest only a model that both share stays true."""
        if not isinstance(other, Circuit):
            return NotImplemented
        check_same_graph(self, other)
        shared = ("model", "roles") if self.info.get("model") == other.info.get("model") else ("roles",)
        info = {name: self.info[name] for name in shared if name in self.info}
        return Circuit(self.graph, operation(self.mask, other.mask), self.scores, info)

    def strongest(self, n: int) -> tuple[str, ...]:
        """The n heads and MLPs that write the most into it, in topological order: by the
        sum of |score| over their kept out-edges.

        Without scores by the number of these edges; ties by index; all of them where there are fewer.
        """
        weights = self.mask.astype(float) if self.scores is None else np.nan_to_num(np.abs(self.scores))
        writing = np.flatnonzero(self.mask.any(axis=1))
        writing = writing[~self.graph.is_input[writing]]
        best = writing[np.argsort(-weights.sum(axis=1)[writing], kind="stable")[:n]]
        return tuple(self.graph.sources[row] for row in np.sort(best))

    @property
    def whole(self) -> Circuit:
        """The circuit between whole nodes: an edge where their parts have one, with the sum of their scores;
        without a score where none of them has one.
        """
        graph = self.graph.whole
        if not self.graph.splits:
            return self
        rows = np.array([graph.source_index[whole_of(name)] for name in self.graph.sources])
        columns = np.array(
            [
                graph.receiver_index[whole_of(name) if parsed(name).part else name]
                for name in self.graph.receivers
            ]
        )
        mask, scores = np.zeros_like(graph.allowed), np.full(graph.allowed.shape, np.nan)
        at = np.ix_(rows, columns)
        np.logical_or.at(mask, at, self.mask)
        if self.scores is not None:
            np.fmax.at(scores, at, 0.0 * self.scores)  # 0 where any part's edge has a score
            np.add.at(scores, at, np.nan_to_num(self.scores))
        kept = {name: value for name, value in self.info.items() if name != "roles"}
        return Circuit(graph, mask, None if self.scores is None else scores, kept)

    # --------------------------------------------------------------- smaller

    def pruned(self) -> Circuit:
        """The edges that lie on a path from `input` to `logits`."""
        return self._part(self.graph.canonical(self.mask, own_run=True), pruned=True)

    @guarded
    def without(self, nodes: Iterable[str]) -> Circuit:
        """C\\K of Wang et al. 2022: less every edge into or out of K's nodes (never `input` or `logits`).

        Where keys and values are shared, what a group reads goes when all its heads do.
        """
        nodes = list(nodes)
        removed = named_nodes(self.graph, nodes)
        if ends := set(nodes) & {"input", "logits"}:
            raise CircuitDiscoveryError(
                f"{' and '.join(sorted(ends))} cannot be removed; only heads and MLPs can"
            )
        return self._part(self.mask & ~self.graph.touching(removed))

    def _part(self, mask: np.ndarray, **options: Any) -> Circuit:
        info = {**self.info, "options": {**self.info.get("options", {}), **options}} if options else self.info
        return Circuit(self.graph, mask, self.scores, info)

    # ------------------------------------------------------------------ views

    def check_model(self, model: ModelLike) -> None:
        """Raise where this is a circuit of another model (by the weights' digest) or of
        another shape; q, k and v may be merged.
        """
        own = self.info.get("model", {})
        merged = None if model.graph.grouped else replace(model.graph, split_qkv=False)
        if self.graph.whole not in (model.graph, merged):
            from circuitdiscovery.circuit.load import published_name

            raise CircuitDiscoveryError(
                f"this is a circuit of {described(own.get('name') or published_name(self), self.graph)}, "
                f"not of {described(model.name, model.graph)}"
            )
        if own.get("digest", model.digest) != model.digest:
            raise CircuitDiscoveryError(
                f"this is a circuit of {own['name']} (weights {own['digest'][:12]}), not of {model.name} "
                f"(weights {model.digest[:12]})"
            )

    def to_networkx(self) -> nx.MultiDiGraph:
        """As `Graph.to_networkx`, the circuit's edges only, with the attribute `score` where one has it."""
        from circuitdiscovery.graph.views import networkx_of

        view = networkx_of(self.graph, self.mask)
        for source, reader, letter, data in view.edges(keys=True, data=True):
            score = self.score(edge_name(source, receiver_name(reader, letter or "")))
            data |= {} if score is None else {"score": score}
        return view

    def to_dataframe(self) -> pd.DataFrame:
        """One row per edge, in index order: edge, source, receiver, score (NaN: none). Needs pandas."""
        return table_of(
            self.graph, self.mask, np.full(self.mask.shape, np.nan) if self.scores is None else self.scores
        )

    def score(self, edge: Edge) -> float | None:
        """The edge's score; None where it has none."""
        at = self.graph.index(edge)
        return None if self.scores is None or np.isnan(self.scores[at]) else float(self.scores[at])

    def to_dict(self) -> dict[str, Any]:
        """What circuit.json says, the same for the same circuit."""
        return circuit_json.write(self.graph, self.mask, self.scores, self.info)

    @classmethod
    def from_dict(cls, data: Any, where: str = "circuit", field: str = "") -> Circuit:
        """What `to_dict` gave; anything missing, surplus, of another type or contradictory is an error."""
        place = f"{where}: {field}" if field else where
        return naming(place, lambda: cls(*circuit_json.read(data, place)))

    @guarded
    def save(self, path: str | Path, *, format: Literal["circuit", "mib"] = "circuit") -> None:
        """Write circuit.json, or MIB's JSON; atomically, the same circuit the same bytes.
        `load_circuit` and `Circuit.load` read it.
        """
        ending(path, ".json")
        if format not in ("circuit", "mib"):
            raise unknown("format", format, ("circuit", "mib"))
        write_json(
            path, self.to_dict() if format == "circuit" else mib.write(self.graph, self.mask, self.scores)
        )

    @classmethod
    def load(cls, name_or_path: str | Path) -> Circuit:
        """As `load_circuit`."""
        from circuitdiscovery.circuit.load import load_circuit

        return load_circuit(name_or_path)

    @guarded
    def with_roles(self, roles: Roles) -> Circuit:
        """The same circuit with what its nodes do, role -> nodes; circuit.json
        keeps it, and pictures show it in colour.

        >>> graph = Graph(n_layers=1, n_heads=1, n_kv_heads=1)
        >>> circuit = Circuit.from_edges(graph, ["input->a0.h0<v>", "a0.h0->logits"])
        >>> circuit.with_roles({"name mover": ["a0.h0"]}).roles["name mover"]
        ('a0.h0',)
        """
        named = {role: list(nodes) for role, nodes in roles.items()}
        kept = {name: value for name, value in self.info.items() if name != "roles"}
        return Circuit(self.graph, self.mask, self.scores, {**kept, "roles": named} if named else kept)

    def plot(self, path: str | Path | None = None) -> Drawing:
        """As `draw`."""
        return self.draw(path)

    @guarded
    def draw(
        self,
        path: str | Path | None = None,
        *,
        scores: Scores | None = None,
        roles: Roles | None = None,
        max_edges: int | None = 60,
    ) -> Drawing:
        """The drawing, which a notebook shows, of at most `max_edges` edges: whole paths, strongest first.

        A path keeps it, as a .svg, .png, .pdf or .dot file (see circuitdiscovery.circuit.draw).
        """
        from circuitdiscovery.circuit.notebook import Drawing

        drawing = Drawing(self, scores, roles, max_edges)
        if path is not None:
            drawing.save(path)
        return drawing
