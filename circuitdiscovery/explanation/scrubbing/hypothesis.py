"""A hypothesis of causal scrubbing as it is written down: in Python, or as a TOML file.

    task = "ioi"
    description = "The movers carry the name, and look where the repeated one does not stand."
    # the prompts that stand in for each other agree on these at least, so that their words line up
    shared = ["template"]

    [nodes]  # what passes from a node depends on these variables of the prompt alone
    "a2.h0" = ["IO"]

    [edges]  # the same, edge by edge; "a0.h1->a2.h0" is each of the head's query, key and value
    "a0.h1->a2.h0<v>" = ["IO"]
    "a2.h0->logits" = false  # not a part of the hypothesis after all

The rule: every edge between two of the nodes, and from each of them to the logits, with the variables of the
node that writes; then the edges one by one. Without nodes the hypothesis is exactly its edges. A path that it
does not hold carries anything at all.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from circuitdiscovery.arguments import guarded
from circuitdiscovery.errors import CircuitDiscoveryError, unknown
from circuitdiscovery.files.disk import data_folder, read_text
from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.graph.nodes import edge_name, node_of, split_edge
from circuitdiscovery.task.table import kind_of
from circuitdiscovery.values import brief

Variables = tuple[str, ...]
FIELDS = ("task", "description", "shared", "nodes", "edges")


@dataclass(frozen=True, repr=False)
class Hypothesis:
    """What a behaviour's nodes and edges may depend on (see the file's head for the rule).

    Args:
        task: the task that it speaks of.
        nodes: node -> the variables of a prompt that what it writes depends on; none: on nothing.
        edges: edge, or `source->node` for all the ways that a node reads -> the same; False: not held.
        shared: variables that all prompts that stand in for each other agree on.
        name: what reports call it.
        description: the hypothesis in a sentence.

    Raises:
        CircuitDiscoveryError: variables that are not lists of different texts.

    >>> chain = Hypothesis("ioi", {"a0.h0": ["S"], "a1.h1": ["S"]}, {"a0.h0->logits": False})
    >>> sorted(chain.edges_of(Graph(n_layers=2, n_heads=2, n_kv_heads=2)))
    ['a0.h0->a1.h1<k>', 'a0.h0->a1.h1<q>', 'a0.h0->a1.h1<v>', 'a1.h1->logits']
    """

    task: str
    nodes: Mapping[str, Any] = field(default_factory=dict)
    edges: Mapping[str, Any] = field(default_factory=dict)
    shared: Variables = ("template",)
    name: str = "hypothesis"
    description: str = ""

    def __post_init__(self) -> None:
        for name in ("task", "name", "description"):
            if not isinstance(getattr(self, name), str) or (name == "task" and not self.task):
                raise self._error(f"{name} must be a text, not {kind_of(getattr(self, name))}")
        tables = {"nodes": self.nodes, "edges": self.edges}
        for table, value in tables.items():
            if not isinstance(value, Mapping):
                raise self._error(f"{table} must be a table from names to variables, not {kind_of(value)}")
            checked = {
                name: self._variables(f"{table}: {name!r}", each, removed=table == "edges")
                for name, each in value.items()
            }
            object.__setattr__(self, table, MappingProxyType(checked))
        object.__setattr__(self, "shared", self._variables("shared", self.shared, removed=False))

    def __hash__(self) -> int:
        tables = frozenset(self.nodes.items()), frozenset(self.edges.items())
        return hash((self.task, *tables, self.shared, self.name, self.description))

    def __repr__(self) -> str:
        return brief(self)

    def _repr_html_(self) -> str:
        listed = [
            (name, ", ".join(each) if each else "nothing")
            for name, each in {**self.nodes, **self.edges}.items()
        ]
        from circuitdiscovery.values import table

        return table(listed, head=("node or edge", "may depend on"), note=f"{self.name}: {self.description}")

    def __reduce__(self) -> tuple[Any, ...]:
        return Hypothesis, (
            self.task,
            dict(self.nodes),
            dict(self.edges),
            self.shared,
            self.name,
            self.description,
        )

    def _error(self, message: str) -> CircuitDiscoveryError:
        return CircuitDiscoveryError(f"hypothesis {self.name}: {message}")

    def _variables(self, where: str, value: Any, *, removed: bool) -> Variables | Literal[False]:
        if removed and value is False:
            return False
        if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
            valid = "a list of variables" + (", or false" if removed else "")
            raise self._error(f"{where} must be {valid}, not {kind_of(value)}")
        if len(set(value)) < len(value):
            raise self._error(f"{where} has {next(each for each in value if value.count(each) > 1)!r} twice")
        return tuple(value)

    @property
    def variables(self) -> tuple[str, ...]:
        """Every variable that it speaks of, sorted."""
        named = [*self.nodes.values(), *(each for each in self.edges.values() if each is not False)]
        return tuple(sorted({*self.shared, *(variable for each in named for variable in each)}))

    def edges_of(self, graph: Graph) -> Mapping[str, Variables]:
        """The edges that it holds in a model's graph, in index order, each with its variables.

        Raises:
            CircuitDiscoveryError: an unknown node or edge; one that no path of the hypothesis connects to the
                logits; one to take out that is not there.
        """
        found = self._between_nodes(graph)
        for name in sorted(self.edges, key=lambda edge: "<" in edge):  # one letter's edge has the last word
            variables, each = self.edges[name], self._named(graph, name)
            if variables is False and not found.keys() & set(each):
                raise self._error(f"{name} = false takes out an edge that the nodes do not give")
            for edge in each:
                if variables is False:
                    found.pop(edge, None)
                else:
                    found[edge] = variables
        mask = graph.mask(found)
        if loose := graph.names(mask & ~graph.leading(mask)):
            raise self._error(
                f"{loose[0]} leads nowhere: no path of the hypothesis goes on from it to the logits"
            )
        return {edge: found[edge] for edge in graph.names(mask)}

    def _between_nodes(self, graph: Graph) -> dict[str, Variables]:
        for node in self.nodes:
            if node not in graph.source_index:
                raise self._error(str(unknown("node", node, graph.sources)))
        rows = [graph.source_index[node] for node in self.nodes]
        mask = np.zeros_like(graph.allowed)
        mask[rows] = graph.allowed[rows] & (
            graph.feeds[:, rows].any(axis=1) | (np.array(graph.receivers) == "logits")
        )
        return {edge: self.nodes[split_edge(edge)[0]] for edge in graph.names(mask)}

    def _named(self, graph: Graph, name: str) -> list[str]:
        """An edge, or those into all receivers of a node."""
        source, end = split_edge(name)
        if end not in graph.receiver_index:
            ends = [r for r in graph.receivers if end == node_of(r) or end in graph.reader_nodes(r)]
            edges = [edge_name(source, receiver) for receiver in ends] or [name]
        else:
            edges = [name]
        try:
            graph.mask(edges)
        except CircuitDiscoveryError as error:
            raise self._error(str(error)) from None
        return edges


# ------------------------------------------------------------------ files


def shipped_hypotheses() -> list[str]:
    """The names of the hypotheses that come with the package, such as `toy/ioi-...`, sorted."""
    folder = data_folder("graphs")
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.glob("*/*.toml"))


@guarded
def load_hypothesis(name_or_path: str | Path) -> Hypothesis:
    """A hypothesis from a .toml file, or a shipped one.

    Args:
        name_or_path: what ends in .toml is a path.

    Returns:
        The hypothesis, which `scrub` tests.

    Raises:
        CircuitDiscoveryError: no such hypothesis; broken TOML, by line; a field
            that is missing, unknown or of another type.

    >>> load_hypothesis("toy/ioi-position").task
    'ioi'
    """
    path = Path(name_or_path)
    if path.suffix.lower() != ".toml":
        if str(name_or_path) not in shipped_hypotheses():
            wrong = unknown("hypothesis", str(name_or_path), shipped_hypotheses(), plural="hypotheses")
            raise CircuitDiscoveryError(f"{wrong}; or a path that ends in .toml")
        return _read(str(name_or_path), data_folder("graphs") / f"{name_or_path}.toml")
    return _read(path.stem, path)


def _read(name: str, path: Path) -> Hypothesis:
    try:
        value = tomllib.loads(read_text(path).replace("\r\n", "\n"))
    except CircuitDiscoveryError:
        raise
    except (RecursionError, MemoryError):
        raise CircuitDiscoveryError(f"{path}: nested too deeply") from None
    except ValueError as error:  # broken TOML, a number of thousands of digits, a date that does not exist
        raise CircuitDiscoveryError(f"{path}: not TOML: {error}") from None
    for key in value:
        if key not in FIELDS:
            raise CircuitDiscoveryError(f"{path}: {unknown('field', key, FIELDS)}")
    if "task" not in value:
        raise CircuitDiscoveryError(f"{path}: field 'task' is missing: which task the hypothesis speaks of")
    if "nodes" not in value and "edges" not in value:
        raise CircuitDiscoveryError(f"{path}: a hypothesis needs a table [nodes] or [edges]")
    try:
        return Hypothesis(name=name, **value)
    except CircuitDiscoveryError as error:
        raise CircuitDiscoveryError(f"{path}: {error}") from None
