"""The transformer as a DAG of components that read from and write to the residual stream.

Sources (writers) are `input`, every head `a{l}.h{h}` and every MLP `m{l}`; receivers (readers) are every
head's query, key and value `a{l}.h{h}<q|k|v>`, every `m{l}` and `logits` (Conmy et al. 2023, arXiv
2304.14997, section 2.1). An edge is a pair (source, receiver) with the source upstream. Everything that is
known per edge (membership, score) is one [sources, receivers] array; this file is the only place that knows
which entry is which edge.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, fields, replace
from functools import cached_property
from numbers import Integral
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from circuitdiscovery.arguments import guarded
from circuitdiscovery.errors import CircuitDiscoveryError, shown
from circuitdiscovery.files.fields import exactly, typed
from circuitdiscovery.graph.nodes import (
    INPUT,
    LETTERS,
    LOGITS,
    edge_name,
    ends_of,
    group_name,
    head_name,
    letter_of,
    mlp_name,
    no_node,
    node_of,
    parsed,
    receiver_name,
)
from circuitdiscovery.graph.splits import Split
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
class Graph:
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

    n_layers: int
    n_heads: int
    n_kv_heads: int
    parallel: bool = False
    has_mlp: bool = True
    split_qkv: bool = True
    splits: tuple[Split, ...] = ()

    def __post_init__(self) -> None:
        for part in _SHAPE:
            self._check_kind(part.name, part.type == "bool")
        if min(self.n_layers, self.n_heads, self.n_kv_heads) < 1 or self.n_heads % self.n_kv_heads:
            raise CircuitDiscoveryError(
                f"a graph needs at least one layer and head, and n_heads ({self.n_heads}) a multiple of "
                f"n_kv_heads ({self.n_kv_heads})"
            )
        if self.grouped and not self.split_qkv:
            raise CircuitDiscoveryError(
                f"split_qkv=False needs one key and value per head, but {self.n_heads} heads share "
                f"{self.n_kv_heads} key/value groups"
            )
        order = {node: row for row, node in enumerate(self.nodes)}
        for node in self._split:
            if node not in order:
                raise no_node(node, self.nodes)
        if len(self._split) < len(self.splits):
            raise CircuitDiscoveryError("a node is split once: give all its parts together")
        splits = sorted(self.splits, key=lambda split: order[split.node])
        object.__setattr__(self, "splits", tuple(splits))

    def _check_kind(self, name: str, switch: bool) -> None:
        value = getattr(self, name)
        wanted = "True or False" if switch else "a whole number"
        if isinstance(value, bool) != switch or not (switch or isinstance(value, Integral)):
            raise CircuitDiscoveryError(f"a graph's {name} must be {wanted}, not {shown(value)}")
        object.__setattr__(self, name, value if switch else int(value))  # of numpy, too

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
    def grouped(self) -> bool:
        """Whether several heads share a key and a value."""
        return self.n_kv_heads < self.n_heads

    # ---------------------------------------------------------------- sources

    @cached_property
    def _split(self) -> Mapping[str, Split]:
        return {split.node: split for split in self.splits}

    def split_of(self, node: str) -> Split | None:
        """How a node is a sum of parts; None: it is not split."""
        return self._split.get(node)

    @guarded
    def parts(self, node: str) -> tuple[str, ...]:
        """The sources that a node is the sum of: its parts, `rest` last, or the node itself.

        Raises:
            CircuitDiscoveryError: no node, or one that writes nothing.
        """
        if node not in self._rows:
            raise no_node(node, self.nodes)
        return self.sources[self._rows[node]]

    @property
    def whole(self) -> Graph:
        """The same graph with no node split."""
        return replace(self, splits=()) if self.splits else self

    def without(self, kind: str) -> Graph:
        """The same graph with no node split into parts of one kind."""
        left = tuple(split for split in self.splits if split.kind != kind)
        return replace(self, splits=left) if len(left) < len(self.splits) else self

    @cached_property
    def nodes(self) -> tuple[str, ...]:
        """The nodes that write, in topological order: `input`, then per layer its heads and its MLP."""
        names = [INPUT]
        for layer in range(self.n_layers):
            names += [*self.head_nodes(layer), *self.mlp_nodes(layer)]
        return tuple(names)

    @cached_property
    def _rows(self) -> Mapping[str, slice]:
        """Node -> the rows of its sources."""
        found, start = {}, 0
        for node in self.nodes:
            split = self._split.get(node)
            stop = start + (1 if split is None else len(split.parts) + 1)
            found[node], start = slice(start, stop), stop
        return found

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """Writers in topological order: `input`, then per layer its heads and its MLP, each or its parts."""
        names: list[str] = []
        for node in self.nodes:
            split = self._split.get(node)
            names += [node] if split is None else split.names
        return tuple(names)

    def head_nodes(self, layer: int) -> list[str]:
        """The names of a layer's heads."""
        return [head_name(layer, head) for head in range(self.n_heads)]

    def mlp_nodes(self, layer: int) -> list[str]:
        """The name of a layer's MLP, or none."""
        return [mlp_name(layer)] if self.has_mlp else []

    def group_nodes(self, layer: int) -> list[str]:
        """The names of a layer's groups, which share a key and a value; none where each head has its own."""
        return [group_name(layer, group) for group in range(self.n_kv_heads)] if self.grouped else []

    @cached_property
    def source_index(self) -> Mapping[str, int]:
        """Source name -> row."""
        return {name: i for i, name in enumerate(self.sources)}

    def rows(self, node: str) -> slice:
        """The rows of a node's sources: one, or its parts'."""
        return self._rows[node]

    @cached_property
    def inputs(self) -> slice:
        """The rows of `input`."""
        return self._rows[INPUT]

    @cached_property
    def is_input(self) -> np.ndarray:
        """[sources] bool, read-only: `input`, or its parts."""
        found = np.arange(len(self.sources)) < self.inputs.stop
        found.flags.writeable = False
        return found

    @property
    def inner(self) -> tuple[str, ...]:
        """The sources but `input`: those that read too."""
        return self.sources[self.inputs.stop :]

    @cached_property
    def _layer_rows(self) -> tuple[tuple[slice, slice], ...]:
        """For each layer the rows of its heads, and those of its MLP."""
        found, end = [], self.inputs.stop
        for layer in range(self.n_layers):
            heads = slice(end, self._rows[head_name(layer, self.n_heads - 1)].stop)
            end = self._rows[mlp_name(layer)].stop if self.has_mlp else heads.stop
            found.append((heads, slice(heads.stop, end)))
        return tuple(found)

    def n_upstream(self, layer: int, letter: str = "q") -> int:
        """How many sources, the first ones, a receiver of a layer can read; layer `n_layers` is `logits`."""
        if layer == self.n_layers:
            return len(self.sources)
        heads, _ = self._layer_rows[layer]
        return heads.stop if letter == "m" and not self.parallel else heads.start

    def heads(self, layer: int) -> slice:
        """The rows of a layer's heads."""
        return self._layer_rows[layer][0]

    def mlps(self, layer: int) -> slice:
        """The rows of a layer's MLP: none, one, or its parts'."""
        return self._layer_rows[layer][1]

    def splits_heads(self, layer: int) -> bool:
        """Whether a head of a layer is split."""
        rows = self.heads(layer)
        return rows.stop - rows.start > self.n_heads

    @cached_property
    def head_of_row(self) -> np.ndarray:
        """[sources]: which head of its layer each source is, or is a part of; -1 where it is no head."""
        nodes = map(parsed, self.sources)
        return np.array([node.index if node.kind == "head" else -1 for node in nodes])

    # -------------------------------------------------------------- receivers

    def _head_receivers(self, layer: int) -> list[str]:
        heads = self.head_nodes(layer)
        if not self.split_qkv:
            return heads
        if not self.grouped:
            return [receiver_name(head, letter) for head in heads for letter in LETTERS]
        shared = [receiver_name(group, letter) for group in self.group_nodes(layer) for letter in LETTERS[1:]]
        return [receiver_name(head, "q") for head in heads] + shared

    @cached_property
    def receivers(self) -> tuple[str, ...]:
        """Readers in topological order: per layer its heads' receivers and its MLP, last `logits`."""
        names: list[str] = []
        for layer in range(self.n_layers):
            names += [*self._head_receivers(layer), *self._mlp_receivers(layer)]
        return (*names, LOGITS)

    def _mlp_receivers(self, layer: int) -> Sequence[str]:
        split = self._split.get(mlp_name(layer))
        return self.mlp_nodes(layer) if split is None or not split.own else split.names

    @cached_property
    def receiver_index(self) -> Mapping[str, int]:
        """Receiver name -> column."""
        return {name: i for i, name in enumerate(self.receivers)}

    def columns(self, layer: int, letter: str) -> np.ndarray:
        """The columns of a layer's receivers of one letter: [heads] for "q", [groups] for
        "k" and "v", [1] for "m", [0] without MLPs.

        Where q, k and v are merged, all three letters name the same columns. Where the MLP's parts have
        receivers of their own, "m" are all of them, the rest's last.
        """
        return self._columns[layer, letter]

    @cached_property
    def _columns(self) -> Mapping[tuple[int, str], np.ndarray]:
        found: dict[tuple[int, str], np.ndarray] = {}
        for layer in range(self.n_layers):
            for letter in LETTERS:
                shared = self.grouped and letter != "q"
                read_by = self.group_nodes(layer) if shared else self.head_nodes(layer)
                read = [receiver_name(node, letter if self.split_qkv else "") for node in read_by]
                found[layer, letter] = np.array([self.receiver_index[name] for name in read])
            mlps = [self.receiver_index[name] for name in self._mlp_receivers(layer)]
            found[layer, "m"] = np.array(mlps, dtype=int)
        return found

    def reader_nodes(self, receiver: str) -> tuple[str, ...]:
        """The sources that a receiver feeds: its head or MLP or their parts, every head of its group, none
        for `logits`."""
        return self._reader_nodes[self.receiver_index[receiver]]

    @cached_property
    def _reader_nodes(self) -> tuple[tuple[str, ...], ...]:
        size, found = self.n_heads // self.n_kv_heads, list[tuple[str, ...]]()
        for receiver in self.receivers:
            node = parsed(receiver)
            nodes = [node_of(receiver)]
            if node.kind == "group":
                nodes = self.head_nodes(node.layer)[node.index * size : (node.index + 1) * size]
            if node.kind == "logits" or node.part:
                found.append(() if node.kind == "logits" else tuple(nodes))
            else:
                found.append(tuple(name for each in nodes for name in self.sources[self._rows[each]]))
        return tuple(found)

    @cached_property
    def feeds(self) -> np.ndarray:
        """[receivers, sources] bool, read-only: the source is the receiver's node or a head of its group."""
        feeds = np.zeros((len(self.receivers), len(self.sources)), dtype=bool)
        for column, receiver in enumerate(self.receivers):
            feeds[column, [self.source_index[node] for node in self.reader_nodes(receiver)]] = True
        feeds.flags.writeable = False
        return feeds

    @cached_property
    def _reading_nodes(self) -> tuple[str, ...]:
        """The node that each receiver belongs to."""
        return tuple(map(node_of, self.receivers))

    def touching(self, nodes: Set[str]) -> np.ndarray:
        """[sources, receivers] bool: what is into or out of some nodes; into a group that
        several heads read by, where all of them are.
        """
        sources = np.array([name in nodes for name in self.sources])
        named = np.array([name in nodes for name in self._reading_nodes])
        return sources[:, None] | named | (self.feeds.any(axis=1) & ~(self.feeds & ~sources).any(axis=1))

    @cached_property
    def receiver_layers(self) -> tuple[int, ...]:
        """Each receiver's layer; `logits` stands in the one after the last."""
        return tuple(self.n_layers if name == LOGITS else parsed(name).layer for name in self.receivers)

    # ------------------------------------------------------------------ edges

    @cached_property
    def allowed(self) -> np.ndarray:
        """[sources, receivers] bool, read-only: True where there is an edge."""
        allowed = np.zeros((len(self.sources), len(self.receivers)), dtype=bool)
        for column, name in enumerate(self.receivers):
            letter = "m" if parsed(name).kind == "mlp" else "q"
            allowed[: self.n_upstream(self.receiver_layers[column], letter), column] = True
        allowed.flags.writeable = False
        return allowed

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

        Several heads read through a group's node `a{l}.kv{g}`; its attribute `heads` names them.
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
        kinds: dict[str, type] = {part.name: bool if part.type == "bool" else int for part in _SHAPE}
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
        shape = {part.name: getattr(self, part.name) for part in _SHAPE}
        return shape | ({"splits": [split.to_dict() for split in self.splits]} if self.splits else {})


_SHAPE = tuple(part for part in fields(Graph) if part.name != "splits")


def _as_bits(rows: np.ndarray) -> list[int]:
    """The rows of a [n, m] bool array as Python's whole numbers: one operation does all bits of one."""
    packed = np.packbits(rows, axis=1, bitorder="little")
    content, width = packed.tobytes(), packed.shape[1]
    return [
        int.from_bytes(content[start : start + width], "little") for start in range(0, len(content), width)
    ]
