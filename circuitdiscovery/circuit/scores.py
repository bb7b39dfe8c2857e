"""Scores: a number for every edge."""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from circuitdiscovery.arguments import guarded
from circuitdiscovery.circuit import mib
from circuitdiscovery.circuit.checks import check_shape, check_size, floats, is_edge, naming, origin, table_of
from circuitdiscovery.circuit.circuit_json import info_of
from circuitdiscovery.errors import CircuitDiscoveryError, shown
from circuitdiscovery.files.disk import (
    ending,
    read_arrays,
    read_json,
    write_atomically,
    write_json,
)
from circuitdiscovery.files.fields import exactly, typed
from circuitdiscovery.graph.graph import Edge, Graph
from circuitdiscovery.graph.selection import best_mask
from circuitdiscovery.registry import are_damages

if TYPE_CHECKING:
    import pandas as pd

    from circuitdiscovery.circuit.charts import Chart

from circuitdiscovery.circuit.circuit import Circuit

SCORES_FORMAT = "circuitdiscovery scores 1"


@dataclass(frozen=True, eq=False)
class Scores:
    """A score for every edge: the estimated damage of ablating it (positive: the behaviour needs it).

    Args:
        graph: the graph whose edges are scored.
        values: [sources, receivers] float32 or float64, in the metric's units; entries where there is no
            edge are set to 0.
        info: where the scores come from (model, task, seed, examples, method, options, versions).

    Raises:
        CircuitDiscoveryError: values of another shape; a score that is not finite.

    >>> graph = Graph(n_layers=1, n_heads=1, n_kv_heads=1)
    >>> scores = Scores(graph, np.arange(15.0).reshape(3, 5))
    >>> scores["input->logits"], scores.top(2).edges
    (4.0, ('a0.h0->logits', 'm0->logits'))
    """

    graph: Graph
    values: np.ndarray
    info: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        given = floats(self.values)
        check_shape("scores", given, self.graph)
        values = np.where(self.graph.allowed, given, given.dtype.type(0))
        if not np.isfinite(values).all():
            edge = self.graph.names(~np.isfinite(values))[0]
            raise CircuitDiscoveryError(
                f"the score of {edge} is {values[self.graph.index(edge)]}; scores must be finite numbers"
            )
        check_size(values, self.graph)
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
        """Whether the graph has this edge."""
        return is_edge(self.graph, edge)

    def __repr__(self) -> str:
        return f"Scores({len(self.graph):,} edges{origin(self.info)})"

    def _repr_html_(self) -> str:
        from circuitdiscovery.circuit.notebook import of_scores

        return of_scores(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return Scores, (self.graph, self.values, dict(self.info))

    def ranking(self, absolute: bool = True) -> np.ndarray:
        """[edges, 2]: the (row, column) of every edge, highest |score| first, ties by index.

        Args:
            absolute: rank by |score|, else by score.
        """
        edges = np.argwhere(self.graph.allowed)
        return edges[np.argsort(-self._keys(absolute)[tuple(edges.T)], kind="stable")]

    def top(self, n: int, absolute: bool = True) -> Circuit:
        """The n edges of highest |score|: exactly n, ties by index, nothing pruned.

        Args:
            n: from 0 to the number of edges.
            absolute: rank by |score|, else by score.

        Raises:
            CircuitDiscoveryError: an n that is not such a number.
        """
        n = self._count(n)
        mask = np.zeros_like(self.graph.allowed)
        mask[tuple(self.ranking(absolute)[:n].T)] = True
        return self._circuit(mask, by="top", edges=n, absolute=bool(absolute))

    def best(self, n: int, absolute: bool = True) -> Circuit:
        """At most n edges, each on a path from `input` to `logits`, of large total |score|.

        Small graphs are solved as a mixed-integer programme, others greedily by whole paths;
        `info["options"]["selection"]` records which.

        Args:
            n: from 0 to the number of edges.
            absolute: sum |score|, else score.

        Raises:
            CircuitDiscoveryError: an n that is not such a number.
        """
        n = self._count(n)
        mask, solver = best_mask(self.graph, self._keys(absolute), n)
        return self._circuit(mask, by="best", edges=n, absolute=bool(absolute), solver=solver)

    @guarded
    def above(self, threshold: float, absolute: bool = True) -> Circuit:
        """The edges whose |score| is at least a threshold; nothing pruned.

        Args:
            threshold: in the metric's units.
            absolute: compare |score|, else score.

        Raises:
            CircuitDiscoveryError: a threshold that is not finite.
        """
        if not math.isfinite(threshold):
            raise CircuitDiscoveryError(f"threshold must be a finite number, not {threshold}")
        mask = self.graph.allowed & (self._keys(absolute) >= threshold)
        return self._circuit(mask, by="above", threshold=threshold, absolute=bool(absolute))

    def greedy(self, n: int, absolute: bool = True) -> Circuit:
        """n edges grown from the logits: each step adds the best edge into a node already reached.

        The rule is that of Hanna et al. (2024). Every edge leads to the logits, but not every edge must be on
        a path from `input`. Ties by index; nothing pruned.

        Args:
            n: from 0 to the number of edges.
            absolute: the best edge has the highest |score|, else the highest score.

        Raises:
            CircuitDiscoveryError: an n that is not such a number.
        """
        n = self._count(n)
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
        return self._circuit(mask, by="greedy", edges=n, absolute=bool(absolute))

    def by_node(self) -> dict[str, float]:
        """For each source, the sum of the scores of its out-edges; of scores that are places in an order,
        which do not add up (matryoshka, hybrid, edge_pruning), the best one.
        """
        if are_damages(self.info) is False:
            found = np.where(self.graph.allowed, self.values, -np.inf).max(axis=1)
        else:
            found = self.values.sum(axis=1, dtype=np.float64)
        return dict(zip(self.graph.sources, found.tolist(), strict=True))

    @guarded
    def plot(self, path: str | Path | None = None) -> Chart:
        """Draw `by_node()` as a heat map with a row per layer and a column per head, and one for the MLP.

        Args:
            path: a .svg file to write; by default none.

        Returns:
            The picture, which a notebook displays.

        Raises:
            CircuitDiscoveryError: a path that does not end in .svg or cannot be written.
        """
        from circuitdiscovery.circuit.charts import Chart, node_scores

        return Chart.standing(node_scores(self.graph, self.by_node())).saved(path)

    def to_dataframe(self) -> pd.DataFrame:
        """One row per edge, in index order: edge, source, receiver, score. Needs pandas."""
        return table_of(self.graph, self.graph.allowed, self.values)

    @guarded
    def save(self, path: str | Path) -> None:
        """Write the scores to a file, atomically; the same scores give the same bytes.

        Args:
            path: a .safetensors file, or a .json file for MIB's format (in which no edge is in the circuit).

        Raises:
            CircuitDiscoveryError: another ending; a file that cannot be written.
        """
        if ending(path, ".safetensors", ".json") == ".json":
            return write_json(path, mib.write(self.graph, np.zeros_like(self.graph.allowed), self.values))
        from safetensors.numpy import save

        header = {"format": SCORES_FORMAT, "graph": self.graph.to_dict(), "info": dict(self.info)}
        # One entry only: safetensors writes several in the order of a hash.
        write_atomically(
            path,
            save({"scores": np.ascontiguousarray(self.values)}, {"circuitdiscovery": json.dumps(header)}),
        )

    @classmethod
    @guarded
    def load(cls, path: str | Path, *, n_kv_heads: int | None = None) -> Scores:
        """Read scores from a file.

        Args:
            path: a .safetensors file that `save` wrote, or MIB's JSON (.json).
            n_kv_heads: as for `load_circuit`; only for MIB's JSON.

        Raises:
            CircuitDiscoveryError: a file that cannot be read or holds no scores.
        """
        if ending(path, ".safetensors", ".json") == ".safetensors":
            mib.only_here(n_kv_heads, str(path))
            return _scores_from_safetensors(path)
        data = read_json(path)
        if not mib.is_mib(data):
            raise CircuitDiscoveryError(
                f"{path} holds no scores: it is not MIB's JSON, which has 'cfg', 'nodes' and 'edges'"
            )
        graph, _, values = mib.read(data, str(path), n_kv_heads)
        return naming(str(path), lambda: cls(graph, values))

    def _keys(self, absolute: bool) -> np.ndarray:
        return np.abs(self.values) if absolute else self.values

    def _count(self, n: int) -> int:
        """A number of edges, as a number of Python."""
        total = len(self.graph)
        if isinstance(n, bool) or not isinstance(n, int | np.integer) or not 0 <= n <= total:
            raise CircuitDiscoveryError(
                f"edges must be a whole number from 0 to {total}, the number there is, not {shown(n)}"
            )
        return int(n)

    def _circuit(self, mask: np.ndarray, **selection: Any) -> Circuit:
        """Of some edges, with how they were taken, apart from the search's own options."""
        options = {**self.info.get("options", {}), "selection": selection}
        return Circuit(self.graph, mask, self.values, {**self.info, "options": options})


def _scores_from_safetensors(path: str | Path) -> Scores:
    described, arrays = read_arrays(path)
    if list(arrays) != ["scores"] or described.get("format") != SCORES_FORMAT:
        raise CircuitDiscoveryError(f"{path} holds no scores of circuitdiscovery")
    exactly(described, ("format", "graph", "info"), str(path))
    graph = Graph.from_dict(described["graph"], str(path), "graph")
    return naming(
        str(path), lambda: Scores(graph, arrays["scores"], typed(described["info"], dict, str(path), "info"))
    )
