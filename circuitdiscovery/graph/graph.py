"""The transformer as a DAG of components that read from and write to the residual stream.

Sources (writers) are `input`, every head `a{l}.h{h}` and every MLP `m{l}`; receivers (readers) are every
head's query, key and value `a{l}.h{h}<q|k|v>`, every `m{l}` and `logits` (Conmy et al. 2023, arXiv
2304.14997, section 2.1). An edge is a pair (source, receiver) with the source upstream. Everything that is
known per edge (membership, score) is one [sources, receivers] array; this file is the only place that knows
which entry is which edge.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from circuitdiscovery.arguments import guarded
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.files.fields import exactly, typed
from circuitdiscovery.graph.nodes import (
    edge_name,
    ends_of,
    letter_of,
    parsed,
)
from circuitdiscovery.graph.splits import Split
from circuitdiscovery.graph.structure import SHAPE, Structure
from circuitdiscovery.graph.unknown_edge import no_edge

if TYPE_CHECKING:
    import networkx as nx

Edge = str | tuple[Any, ...]  # "a->b", (a, b), (a, b, letter) as networkx has it, or (row, column)
Edges = Iterable[Edge]
MAX_CELLS = 10**9  # sources x receivers of a graph read from a file; the largest open model (405B) has 8e8


class HasGraph(Protocol):
    """What edges belong to: a loaded model."""

    @property
    def graph(self) -> Graph:
        """With queries, keys and values as separate receivers."""
        ...


@dataclass(frozen=True)
class Graph(Structure):
    """All edges of one architecture.

    Args:
        n_layers: blocks.
        n_heads: query heads per block.
        n_kv_heads: key/value heads (groups) per block; fewer than `n_heads` is grouped-query attention.
        parallel: attention and MLP of a block read the same stream (GPT-NeoX): `m{l}` reads no `a{l}.*`.
        has_mlp: blocks have an MLP.
        split_qkv: a head reads its query, key and value through separate edges.
        splits: the nodes that are sums of parts, each of which is a source (see `split`).

    >>> graph = Graph(n_layers=12, n_heads=12, n_kv_heads=12)
    >>> len(graph), graph.edges[0], graph.edges[-1]
    (32491, 'input->a0.h0<q>', 'm11->logits')
    """

    @classmethod
    @guarded
    def from_model(cls, model: HasGraph, split_qkv: bool = True) -> Graph:
        """The graph of a loaded model (`split_qkv=False` merges a head's three receivers into one)."""
        return model.graph if split_qkv else replace(model.graph, split_qkv=False)

    @classmethod
    def given(cls, model: HasGraph, graph: Graph | None, split_qkv: bool = True) -> Graph:
        """The graph that a search was given, else the model's.

        Raises:
            CircuitDiscoveryError: a graph of another model.
        """
        if graph is None:
            return cls.from_model(model, split_qkv=split_qkv)
        graph = graph if split_qkv else replace(graph, split_qkv=False)
        if replace(graph.whole, split_qkv=True) != model.graph:
            raise CircuitDiscoveryError("the graph is of another model: split(model, ...) makes one of this")
        return graph

    @property
    def whole(self) -> Graph:
        """The same graph with no node split."""
        return replace(self, splits=()) if self.splits else self

    def without(self, kind: str) -> Graph:
        """The same graph with no node split into parts of one kind."""
        left = tuple(split for split in self.splits if split.kind != kind)
        return replace(self, splits=left) if len(left) < len(self.splits) else self

    # ------------------------------------------------------------------ edges

    def __len__(self) -> int:
        return int(self.allowed.sum())

    @cached_property
    def edges(self) -> tuple[str, ...]:
        """Every edge's name, in index order: by source, then by receiver."""
        return self.names(self.allowed)

    def names(self, mask: np.ndarray) -> tuple[str, ...]:
        """The names of the edges that are True in a [sources, receivers] mask, in index order."""
        return tuple(edge_name(self.sources[s], self.receivers[r]) for s, r in np.argwhere(mask))

    def index(self, edge: Edge) -> tuple[int, int]:
        """An edge's (row, column), by its name or its two ends; an unknown edge is an error."""
        source, receiver = ends_of(edge)
        row, column = self._place(source, self.source_index), self._place(receiver, self.receiver_index)
        if row is None or column is None or not self.allowed[row, column]:
            name = edge if isinstance(edge, str) else edge_name(source, receiver)
            raise CircuitDiscoveryError(no_edge(self, name, str(source), str(receiver)))
        return row, column

    def _place(self, end: Any, index: Mapping[str, int]) -> int | None:
        """The row of a source or the column of a receiver, by its name or its number; None: there is none."""
        if isinstance(end, str):
            return index.get(end)
        return int(end) if 0 <= end < len(index) else None

    @guarded
    def mask(self, edges: Edges) -> np.ndarray:
        """[sources, receivers] bool: True at the edges, each by its name or its two ends'."""
        mask = np.zeros_like(self.allowed)
        for edge in edges:
            mask[self.index(edge)] = True
        return mask

    # ------------------------------------------------------------------ paths of kept edges

    @cached_property
    def _feeding(self) -> list[int]:
        """For each source, the receivers that feed it, as bits."""
        return _as_bits(self.feeds.T)

    def reached(self, mask: np.ndarray, changed: np.ndarray) -> np.ndarray:
        """[sources] bool: those that can differ when those in `changed` do, along the edges of a mask."""
        reached, reading = changed.tolist(), 0
        for row, (read, feeding) in enumerate(zip(_as_bits(mask), self._feeding, strict=True)):
            # topological order: a source's receivers are decided before it
            if reached[row] or reading & feeding:
                reached[row] = True
                reading |= read
        return np.array(reached, dtype=bool)

    def live(self, mask: np.ndarray) -> np.ndarray:
        """[sources] bool: those with a path of the mask's edges to `logits`."""
        return np.array(self._live(_as_bits(mask))[0], dtype=bool)

    def running(self, mask: np.ndarray, own_run: bool) -> np.ndarray:
        """[sources] bool: those that a run of the mask computes: live and, where
        replacements are a run's own, reached from `input`.

        All others carry their replacement, or are read by nothing that leads to the logits.
        """
        live = self.live(mask)
        return live & self.reached(mask, self.is_input) if own_run else live

    def canonical(self, mask: np.ndarray, own_run: bool) -> np.ndarray:
        """The mask without the edges that change no logit: equal for circuits that are the same."""
        return mask & self.running(mask, own_run)[:, None] & self.leading(mask)

    def leading(self, mask: np.ndarray) -> np.ndarray:
        """[receivers] bool: `logits`, and those that feed a live source."""
        _, leading = self._live(_as_bits(mask))
        size = len(self.receivers)
        packed = np.frombuffer(leading.to_bytes((size + 7) // 8, "little"), dtype=np.uint8)
        return np.unpackbits(packed, count=size, bitorder="little").astype(bool)

    def _live(self, reads: list[int]) -> tuple[list[bool], int]:
        """(which sources are live, the leading receivers as bits), of each source's readers as bits."""
        live, leading = [False] * len(reads), 1 << (len(self.receivers) - 1)
        for row in reversed(range(len(reads))):
            if reads[row] & leading:
                live[row] = True
                leading |= self._feeding[row]
        return live, leading

    @cached_property
    def _reads_across(self) -> int:
        """The keys and the values, as bits: what positions read of others."""
        # without a letter all three are merged
        across = [parsed(name).in_attention and letter_of(name) != "q" for name in self.receivers]
        return _as_bits(np.array([across]))[0]

    def everywhere(self, mask: np.ndarray) -> np.ndarray:
        """[sources] bool: those that matter to `logits` also at positions other than the answer's.

        These are read by a key or a value, or by a query or an MLP of one of them.
        """
        reads = _as_bits(mask)
        _, leading = self._live(reads)
        across, everywhere = leading & self._reads_across, [False] * len(reads)
        for row in reversed(range(len(reads))):
            if reads[row] & across:
                everywhere[row] = True
                across |= self._feeding[row] & leading
        return np.array(everywhere, dtype=bool)

    def to_networkx(self) -> nx.MultiDiGraph:
        """A MultiDiGraph over nodes, an edge per edge, keyed by `q`, `k`, `v`, or 0 for MLPs and logits.

        Several heads read through a group's node `a{l}.kv{g}`; its attribute `heads` names them, one a line.
        """
        from circuitdiscovery.graph.views import networkx_of

        return networkx_of(self, self.allowed)

    @classmethod
    def from_dict(cls, data: Any, where: str = "graph", field: str = "") -> Graph:
        """What `to_dict` gave.

        Args:
            data: as JSON has it.
            where, field: the file, and where in it, for errors.

        Raises:
            CircuitDiscoveryError: anything missing, surplus, of another type, or not the shape of a model.
        """
        kinds: dict[str, type] = {part.name: bool if part.type == "bool" else int for part in SHAPE}
        exactly(data, kinds, where, field, optional=("splits",))
        for name, kind in kinds.items():
            typed(data[name], kind, where, f"{field}.{name}" if field else name)
        layers, heads = data["n_layers"], data["n_heads"]
        place = f"{field}.splits" if field else "splits"
        splits = [
            Split.from_dict(each, where, f"{place}[{i}]")
            for i, each in enumerate(typed(data.get("splits", []), list, where, place))
        ]
        parts = sum(len(split.parts) for split in splits)
        if (1 + layers * (heads + 1) + parts) * (1 + layers * (3 * heads + 1) + parts) > MAX_CELLS:
            shape = f"{layers} layers of {heads} heads" + f" with {parts:,} parts" * bool(parts)
            raise CircuitDiscoveryError(f"{where}: field {field!r}: {shape} is not the shape of a model")
        try:
            return cls(**{name: data[name] for name in kinds}, splits=tuple(splits))
        except CircuitDiscoveryError as error:
            raise CircuitDiscoveryError(f"{where}: field {field!r}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """The arguments that make this graph again, as JSON."""
        shape = {part.name: getattr(self, part.name) for part in SHAPE}
        return shape | ({"splits": [split.to_dict() for split in self.splits]} if self.splits else {})


def _as_bits(rows: np.ndarray) -> list[int]:
    """The rows of a [n, m] bool array as Python's whole numbers: one operation does all bits of one."""
    packed = np.packbits(rows, axis=1, bitorder="little")
    content, width = packed.tobytes(), packed.shape[1]
    return [
        int.from_bytes(content[start : start + width], "little") for start in range(0, len(content), width)
    ]
