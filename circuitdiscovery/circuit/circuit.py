"""What is known of every edge of a graph: scores, and circuits (sets of edges). Values; nothing here changes what it is given."""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import numpy as np

from circuitdiscovery.arguments import guarded
from circuitdiscovery.circuit import mib, schema
from circuitdiscovery.circuit.schema import info_of
from circuitdiscovery.errors import CircuitDiscoveryError, PlaceError, shown, unknown
from circuitdiscovery.files.disk import (
    data_folder,
    data_frame,
    ending,
    is_folder,
    read_arrays,
    read_json,
    shipped,
    write_atomically,
    write_json,
)
from circuitdiscovery.files.fields import exactly, typed
from circuitdiscovery.graph.graph import Edge, Edges, Graph
from circuitdiscovery.graph.nodes import edge_name, no_node, node_of, receiver_name
from circuitdiscovery.graph.selection import best_mask

if TYPE_CHECKING:
    import networkx as nx
    import pandas as pd

    from circuitdiscovery.circuit.charts import Chart
    from circuitdiscovery.circuit.notebook import Drawing

LARGEST = 1e30  # of a score
CIRCUIT_FILE = "circuit.json"  # in the folder of a run
SCORES_FORMAT = "circuitdiscovery scores 1"
Roles = Mapping[str, Iterable[str]]
Made = TypeVar("Made")


class ModelLike(Protocol):
    """What of a loaded model a circuit is checked against."""

    @property
    def name(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def graph(self) -> Graph: ...


# -------------------------------------------------------------------- scores


@dataclass(frozen=True, eq=False)
class Scores:
    """A score for every edge: the estimated damage of ablating it (positive: the behaviour needs it).

    Args:
        graph: whose edges.
        values: [sources, receivers] float32 or float64, in the metric's units; what stands where there is no edge becomes 0.
        info: where they come from (model, task, seed, examples, method, options, versions); see schema.INFO.

    Raises:
        CircuitDiscoveryError: another shape; a score that is not finite.

    >>> graph = Graph(n_layers=1, n_heads=1, n_kv_heads=1)
    >>> scores = Scores(graph, np.arange(15.0).reshape(3, 5))
    >>> scores["input->logits"], scores.top(2).edges
    (4.0, ('a0.h0->logits', 'm0->logits'))
    """

    graph: Graph
    values: np.ndarray
    info: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        given = _floats(self.values)
        _check_shape("scores", given, self.graph)
        values = np.where(self.graph.allowed, given, given.dtype.type(0))
        if not np.isfinite(values).all():
            edge = self.graph.names(~np.isfinite(values))[0]
            raise CircuitDiscoveryError(f"the score of {edge} is {values[self.graph.index(edge)]}; scores must be finite numbers")
        _check_size(values, self.graph)
        values.flags.writeable = False
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "info", info_of(self.info, self.graph))

    def __getitem__(self, edge: Edge) -> float:
        return float(self.values[self.graph.index(edge)])

    def __len__(self) -> int:
        return len(self.graph)

    def __iter__(self) -> Iterator[str]:
        """The edges, in index order."""
        return iter(self.graph.edges)

    def __contains__(self, edge: object) -> bool:
        """Whether there is such an edge."""
        return _is_edge(self.graph, edge)

    def __repr__(self) -> str:
        return f"Scores({len(self.graph):,} edges{_origin(self.info)})"

    def _repr_html_(self) -> str:
        from circuitdiscovery.circuit.notebook import of_scores

        return of_scores(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return Scores, (self.graph, self.values, dict(self.info))

    def ranking(self, absolute: bool = True) -> np.ndarray:
        """[edges, 2]: every edge's (row, column), the highest |score| (or score) first, ties by index."""
        edges = np.argwhere(self.graph.allowed)
        return edges[np.argsort(-self._keys(absolute)[tuple(edges.T)], kind="stable")]

    def top(self, n: int, absolute: bool = True) -> Circuit:
        """The n edges of the highest |score| (or, signed, of the highest score): exactly n, ties by index, nothing pruned."""
        self._check_count(n)
        mask = np.zeros_like(self.graph.allowed)
        mask[tuple(self.ranking(absolute)[:n].T)] = True
        return self._circuit(mask, selection="top", edges=n, absolute=absolute)

    def best(self, n: int, absolute: bool = True) -> Circuit:
        """At most n edges, each on a path from `input` to `logits`, of the greatest total |score| (or, signed, score) that is found.

        Small graphs by a mixed-integer programme, others greedily by whole paths (selection.py); `info["options"]["solver"]` says which.
        """
        self._check_count(n)
        mask, solver = best_mask(self.graph, self._keys(absolute), n)
        return self._circuit(mask, selection="best", edges=n, absolute=absolute, solver=solver)

    @guarded
    def above(self, threshold: float, absolute: bool = True) -> Circuit:
        """The edges whose |score| (or, signed, score) is at least the threshold, as acdc keeps them; nothing pruned."""
        if not math.isfinite(threshold):
            raise CircuitDiscoveryError(f"threshold must be a finite number, not {threshold}")
        mask = self.graph.allowed & (self._keys(absolute) >= threshold)
        return self._circuit(mask, selection="above", threshold=threshold, absolute=absolute)

    def greedy(self, n: int, absolute: bool = True) -> Circuit:
        """n edges grown from the logits: n times the highest edge into a node that is reached already (Hanna et al. 2024).

        Every edge leads to the logits; not every one needs to be on a path from `input`. Ties by index; nothing pruned.
        """
        self._check_count(n)
        keys, mask, feeds = self._keys(absolute), np.zeros_like(self.graph.allowed), self.graph.feeds
        reached: set[int] = set()
        heap: list[tuple[float, int, int]] = []

        def reach(columns: Iterable[int]) -> None:
            for column in columns:
                if column not in reached:
                    reached.add(column)
                    for row in np.flatnonzero(self.graph.allowed[:, column]).tolist():
                        heapq.heappush(heap, (-float(keys[row, column]), row, column))

        reach([len(self.graph.receivers) - 1])
        for _ in range(n):
            _, row, column = heapq.heappop(heap)
            mask[row, column] = True
            reach(np.flatnonzero(feeds[:, row]).tolist())
        return self._circuit(mask, selection="greedy", edges=n, absolute=absolute)

    def by_node(self) -> dict[str, float]:
        """The sum over each source's out-edges."""
        return dict(zip(self.graph.sources, self.values.sum(axis=1, dtype=np.float64).tolist(), strict=True))

    @guarded
    def plot(self, path: str | Path | None = None) -> Chart:
        """A heat map of `by_node()`, a row per layer and a column per head and for the MLP; a notebook shows it, a .svg path keeps it."""
        from circuitdiscovery.circuit.charts import Chart, node_scores

        return Chart.standing(node_scores(self.graph, self.by_node())).saved(path)

    def to_dataframe(self) -> pd.DataFrame:
        """One row per edge, in index order: edge, source, receiver, score. Needs pandas."""
        return _table(self.graph, self.graph.allowed, self.values)

    @guarded
    def save(self, path: str | Path) -> None:
        """Write a .safetensors file, or MIB's JSON (.json, no edge in the circuit); atomically, the same scores the same bytes."""
        if ending(path, ".safetensors", ".json") == ".json":
            return write_json(path, mib.write(self.graph, np.zeros_like(self.graph.allowed), self.values))
        from safetensors.numpy import save

        header = {"format": SCORES_FORMAT, "graph": self.graph.to_dict(), "info": dict(self.info)}
        # One entry only: safetensors writes several in the order of a hash.
        write_atomically(path, save({"scores": np.ascontiguousarray(self.values)}, {"circuitdiscovery": json.dumps(header)}))

    @classmethod
    @guarded
    def load(cls, path: str | Path, *, n_kv_heads: int | None = None) -> Scores:
        """Read a .safetensors file of ours, or MIB's JSON (.json; `n_kv_heads` as in `load_circuit`)."""
        if ending(path, ".safetensors", ".json") == ".safetensors":
            return _scores_from_safetensors(path)
        data = read_json(path)
        if not mib.is_mib(data):
            raise CircuitDiscoveryError(f"{path} holds no scores: it is not MIB's JSON, which has 'cfg', 'nodes' and 'edges'")
        graph, _, values = mib.read(data, str(path), n_kv_heads)
        return _named(str(path), lambda: cls(graph, values))

    def _keys(self, absolute: bool) -> np.ndarray:
        return np.abs(self.values) if absolute else self.values

    def _check_count(self, n: int) -> None:
        total = len(self.graph)
        if isinstance(n, bool) or not isinstance(n, int | np.integer) or not 0 <= n <= total:
            raise CircuitDiscoveryError(f"edges must be a whole number from 0 to {total}, the number there is, not {shown(n)}")

    def _circuit(self, mask: np.ndarray, **selection: Any) -> Circuit:
        return Circuit(self.graph, mask, self.values, {**self.info, "options": {**self.info.get("options", {}), **selection}})


def _scores_from_safetensors(path: str | Path) -> Scores:
    described, arrays = read_arrays(path)
    if list(arrays) != ["scores"] or described.get("format") != SCORES_FORMAT:
        raise CircuitDiscoveryError(f"{path} holds no scores of circuitdiscovery")
    exactly(described, ("format", "graph", "info"), str(path))
    graph = Graph.from_dict(described["graph"], str(path), "graph")
    return _named(str(path), lambda: Scores(graph, arrays["scores"], typed(described["info"], dict, str(path), "info")))


# ------------------------------------------------------------------- circuit


@dataclass(frozen=True, eq=False)
class Circuit:
    """A set of edges of a graph. Equal where graph and edges are.

    Args:
        graph: whose edges.
        mask: [sources, receivers] bool, True at the edges of the circuit.
        scores: [sources, receivers] float, NaN where an edge has none; what stands outside the circuit is dropped. None: no scores.
        info: where it comes from (model, task, seed, examples, method, options, versions, roles); see schema.INFO.

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
        mask = _booleans(self.mask)
        _check_shape("a circuit's mask", mask, self.graph)
        if (mask & ~self.graph.allowed).any():
            raise CircuitDiscoveryError(f"the graph has no edge {self.graph.names(mask & ~self.graph.allowed)[0]}")
        mask.flags.writeable = False
        object.__setattr__(self, "mask", mask)
        object.__setattr__(self, "scores", self._own_scores())
        object.__setattr__(self, "info", info_of(self.info, self.graph))

    def _own_scores(self) -> np.ndarray | None:
        if self.scores is None:
            return None
        given = _floats(self.scores)
        _check_shape("a circuit's scores", given, self.graph)
        scores = np.where(self.mask, given, given.dtype.type(np.nan))
        if np.isinf(scores).any():
            raise CircuitDiscoveryError(f"the score of {self.graph.names(np.isinf(scores))[0]} is infinite")
        _check_size(scores, self.graph)
        scores.flags.writeable = False
        return None if np.isnan(scores).all() else scores

    @classmethod
    @guarded
    def from_edges(cls, graph: Graph, names: Edges) -> Circuit:
        """Some edges, each by its name or its two ends', nothing pruned; an unknown one is an error. For `graph` a model will do."""
        return cls(graph, graph.mask(names))

    @classmethod
    @guarded
    def from_nodes(cls, graph: Graph, names: Iterable[str]) -> Circuit:
        """Every edge between the named nodes, `input` and `logits`, which belong to every circuit of nodes.

        Where keys and values are shared, a head's name includes what its group reads.
        """
        named = _nodes(graph, names) | {"input", "logits"}
        sources = np.array([name in named for name in graph.sources])
        receivers = np.array([node_of(name) in named or not named.isdisjoint(graph.reader_nodes(name)) for name in graph.receivers])
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

    @property
    def edges(self) -> tuple[str, ...]:
        """The edges' names, in index order."""
        return self.graph.names(self.mask)

    @property
    def nodes(self) -> tuple[str, ...]:
        """Every node that an edge leaves or enters, in topological order; a group's keys and values are a node `a{l}.kv{g}`."""
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
                f"a circuit's index is a whole number or a slice, not {shown(at)}; an edge's score is circuit.score(edge)"
            )
        edges = self.edges
        if isinstance(at, Integral) and not -len(edges) <= at < len(edges):  # pyright: ignore[reportOperatorIssue]
            raise PlaceError(f"there is no edge {shown(at)}: the circuit has {len(edges)}, counted from 0")
        return edges[at]  # pyright: ignore[reportArgumentType, reportCallIssue]

    def __contains__(self, part: object) -> bool:
        """Whether an edge (its name, or a pair of its ends' names) or a node is kept; a name that the graph does not have is an error."""
        if isinstance(part, str) and "->" not in part:
            if part not in (valid := node_order(self.graph)):
                raise no_node(part, valid)
            return part in self.nodes
        return bool(self.mask[self.graph.index(part)])  # pyright: ignore[reportArgumentType]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Circuit) and self.graph == other.graph and np.array_equal(self.mask, other.mask)

    def __hash__(self) -> int:
        return hash((self.graph, self.mask.tobytes()))

    def __repr__(self) -> str:
        return f"Circuit({len(self):,} of {len(self.graph):,} edges{_origin(self.info)})"

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
        """The n heads and MLPs that write the most into it, in topological order: by the sum of |score| over their kept out-edges.

        Without scores by the number of these edges; ties by index; all of them where there are fewer.
        """
        weights = self.mask.astype(float) if self.scores is None else np.nan_to_num(np.abs(self.scores))
        writing = np.flatnonzero(self.mask.any(axis=1))
        writing = writing[writing > 0]  # without `input`
        best = writing[np.argsort(-weights.sum(axis=1)[writing], kind="stable")[:n]]
        return tuple(self.graph.sources[row] for row in np.sort(best))

    # --------------------------------------------------------------- smaller

    def pruned(self) -> Circuit:
        """The edges that lie on a path from `input` to `logits`."""
        return self._part(self.graph.canonical(self.mask, own_run=True), pruned=True)

    @guarded
    def without(self, nodes: Iterable[str]) -> Circuit:
        """C\\K of Wang et al. 2022: less every edge into or out of K's nodes (never `input` or `logits`).

        Where keys and values are shared, what a group reads goes when all its heads do.
        """
        removed = _nodes(self.graph, nodes)
        if ends := removed & {"input", "logits"}:
            raise CircuitDiscoveryError(f"{' and '.join(sorted(ends))} cannot be removed; only heads and MLPs can")
        return self._part(self.mask & ~self.graph.touching(removed))

    def _part(self, mask: np.ndarray, **options: Any) -> Circuit:
        info = {**self.info, "options": {**self.info.get("options", {}), **options}} if options else self.info
        return Circuit(self.graph, mask, self.scores, info)

    # ------------------------------------------------------------------ views

    def check_model(self, model: ModelLike) -> None:
        """Raise where this is a circuit of another model (by the weights' digest) or of another shape; q, k and v may be merged."""
        own = self.info.get("model", {})
        merged = None if model.graph.grouped else replace(model.graph, split_qkv=False)
        if self.graph not in (model.graph, merged):
            raise CircuitDiscoveryError(
                f"this is a circuit of {_described(own.get('name') or _published(self), self.graph)}, "
                f"not of {_described(model.name, model.graph)}"
            )
        if own.get("digest", model.digest) != model.digest:
            raise CircuitDiscoveryError(
                f"this is a circuit of {own['name']} (weights {own['digest'][:12]}), not of {model.name} (weights {model.digest[:12]})"
            )

    def to_networkx(self) -> nx.MultiDiGraph:
        """As `Graph.to_networkx`, the circuit's edges only, each with its score (attribute `score`) where it has one."""
        view = self.graph.networkx_of(self.mask)
        for source, reader, letter, data in view.edges(keys=True, data=True):
            score = self.score(edge_name(source, receiver_name(reader, letter or "")))
            data |= {} if score is None else {"score": score}
        return view

    def to_dataframe(self) -> pd.DataFrame:
        """One row per edge of the circuit, in index order: edge, source, receiver, score (NaN: none). Needs pandas."""
        return _table(self.graph, self.mask, np.full(self.mask.shape, np.nan) if self.scores is None else self.scores)

    def score(self, edge: Edge) -> float | None:
        """The edge's score; None where it has none."""
        at = self.graph.index(edge)
        return None if self.scores is None or np.isnan(self.scores[at]) else float(self.scores[at])

    def to_dict(self) -> dict[str, Any]:
        """What circuit.json says, the same for the same circuit."""
        return schema.write(self.graph, self.mask, self.scores, self.info)

    @guarded
    def save(self, path: str | Path, *, format: Literal["circuit", "mib"] = "circuit") -> None:
        """Write circuit.json, or MIB's JSON; atomically, the same circuit the same bytes. `load_circuit` and `Circuit.load` read it."""
        ending(path, ".json")
        if format not in ("circuit", "mib"):
            raise unknown("format", format, ("circuit", "mib"))
        write_json(path, self.to_dict() if format == "circuit" else mib.write(self.graph, self.mask, self.scores))

    @classmethod
    def load(cls, name_or_path: str | Path) -> Circuit:
        """As `load_circuit`."""
        return load_circuit(name_or_path)

    @guarded
    def with_roles(self, roles: Roles) -> Circuit:
        """The same circuit with what its nodes do, role -> nodes; circuit.json keeps it, and pictures show it in colour.

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


@guarded
def load_circuit(name_or_path: str | Path, *, n_kv_heads: int | None = None) -> Circuit:
    """A circuit from a .json file (circuit.json, or MIB's), from the folder of a run, or a shipped one such as "gpt2/ioi".

    Args:
        name_or_path: what ends in .json is a path, and so is a folder.
        n_kv_heads: key/value groups of the model; MIB's JSON does not say where they are fewer than heads.

    Raises:
        CircuitDiscoveryError: no such circuit; a file that says something else than a circuit, by file and field.
    """
    path = circuit_file(name_or_path)
    data = read_json(path)
    if mib.is_mib(data):
        return Circuit(*mib.read(data, str(path), n_kv_heads))
    return _named(str(path), lambda: Circuit(*schema.read(data, str(path))))


def _why_none(record: Path) -> str:
    """Why a folder has no circuit."""
    if not record.is_file():
        return "it is not the folder of a run"
    known = read_json(record)
    finished = isinstance(known, dict) and "summary" in known
    return "it was removed from the finished run there" if finished else "the run in it has found none yet"


def circuit_file(name_or_path: str | Path) -> Path:
    """The file that a shipped circuit's name, a path or a run's folder means."""
    name, path = str(name_or_path), Path(name_or_path)
    names = shipped("graphs")
    if name in names:
        return data_folder("graphs") / f"{name}.json"
    if is_folder(path):
        if not (path / CIRCUIT_FILE).is_file():
            what = _why_none(path / "run.json")
            raise CircuitDiscoveryError(f"{path} holds no {CIRCUIT_FILE}: {what}")
        return path / CIRCUIT_FILE
    if path.suffix.lower() == ".json":
        return path
    family = name.partition("/")[0]
    if "/" in name and family in shipped("models"):
        raise CircuitDiscoveryError(f"no circuit of {family} is shipped; find one, such as cd.acdc. Valid graphs: {', '.join(names)}")
    if "/" in name and family not in {other.partition("/")[0] for other in names} and not path.exists():
        raise CircuitDiscoveryError(
            f"there is no folder {shown(name)}; a circuit is a .json file, the folder of a run, or one of {', '.join(names)}"
        )
    raise CircuitDiscoveryError(f"{unknown('graph', name, names)}; or a path that ends in .json, or the folder of a run")


# -------------------------------------------------------------------- shared


def node_order(graph: Graph) -> tuple[str, ...]:
    """Every node in topological order: `input`; per layer its groups' keys and values (where shared), heads and MLP; `logits`."""
    names = ["input"]
    for layer in range(graph.n_layers):
        names += [*graph.group_nodes(layer), *graph.head_nodes(layer), *graph.mlp_nodes(layer)]
    return (*names, "logits")


def check_same_graph(a: Circuit | Scores, b: Circuit | Scores) -> None:
    """Raise where two circuits (or scores) are not over the same edges."""
    if a.graph != b.graph:
        mine, theirs = (_described(x.info.get("model", {}).get("name"), x.graph) for x in (a, b))
        raise CircuitDiscoveryError(f"circuits of different graphs: {mine} and {theirs}")


def _nodes(graph: Graph, names: Iterable[str]) -> set[str]:
    valid, named = node_order(graph), set(names)
    if wrong := sorted(named - set(valid)):
        raise no_node(wrong[0], valid)
    return named


def _floats(values: Any) -> np.ndarray:
    """The array as it is where it is of float32 or float64, else as float64."""
    try:
        array = np.asarray(values)
        if array.dtype.kind not in "biufO":
            raise TypeError(f"not {array.dtype} values")
        return array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise CircuitDiscoveryError(f"scores must be numbers: {error}") from None


def _check_size(scores: np.ndarray, graph: Graph) -> None:
    """Refuse scores whose sums, or their values in float32, would be infinite."""
    large = np.abs(scores) > LARGEST
    if large.any():
        edge = graph.names(large)[0]
        raise CircuitDiscoveryError(f"the score of {edge} is {scores[graph.index(edge)]:.3g}; no score can be larger than {LARGEST:g}")


def _check_shape(what: str, array: np.ndarray, graph: Graph) -> None:
    if array.shape != graph.allowed.shape:
        raise CircuitDiscoveryError(f"{what} must be [sources, receivers] = {list(graph.allowed.shape)}, not {list(array.shape)}")


def _booleans(values: Any) -> np.ndarray:
    """A new array of True and False; 0 and 1 are taken, too."""
    try:
        array = np.array(values)
        plain = array.dtype == bool or (array.dtype.kind in "iuf" and bool(np.isin(array, (0, 1)).all()))
    except (TypeError, ValueError, OverflowError) as error:
        raise CircuitDiscoveryError(f"a circuit's mask must hold True and False: {error}") from None
    if not plain:
        raise CircuitDiscoveryError(f"a circuit's mask must hold True and False, not {array.dtype} values")
    return array.astype(bool)


def _is_edge(graph: Graph, edge: object) -> bool:
    try:
        graph.index(edge)  # pyright: ignore[reportArgumentType]
    except CircuitDiscoveryError:
        return False
    return True


def _table(graph: Graph, mask: np.ndarray, scores: np.ndarray) -> pd.DataFrame:
    """One row per edge of a [sources, receivers] mask."""
    rows, columns = np.nonzero(mask)
    sources, receivers = [graph.sources[i] for i in rows], [graph.receivers[i] for i in columns]
    return data_frame({"edge": graph.names(mask), "source": sources, "receiver": receivers, "score": scores[rows, columns]})


def _named(where: str, make: Callable[[], Made]) -> Made:
    try:
        return make()
    except CircuitDiscoveryError as error:
        told = str(error)
        raise CircuitDiscoveryError(told if told.startswith(where) else f"{where}: {told}") from None


def _published(circuit: Circuit) -> str | None:
    """Which of the shipped circuits it is, or a part of: one that names no model."""
    task = circuit.info.get("task")
    alike = [name for name in shipped("graphs") if name.endswith(f"/{task}") and circuit.info.get("method") == "published"]
    return next((name for name in alike if load_circuit(name).graph == circuit.graph), None)


def _described(name: str | None, graph: Graph) -> str:
    parts = [f"{graph.n_layers} layers of {graph.n_heads} heads" + (f" in {graph.n_kv_heads} groups" if graph.grouped else "")]
    parts += ["parallel"] if graph.parallel else []
    parts += [] if graph.has_mlp else ["no MLPs"]
    parts += [] if graph.split_qkv else ["q, k and v merged"]
    return f"{name or 'an unnamed model'} ({', '.join(parts)}, {len(graph):,} edges)"


def _origin(info: Mapping[str, Any]) -> str:
    parts = [info["model"]["name"] if "model" in info else None, info.get("task"), info.get("method")]
    known = [str(part) for part in parts if part]
    return f", {' '.join(known)}" if known else ""
