"""The transformer as a DAG of components that read from and write to the residual stream.

Sources (writers) are `input`, every head `a{l}.h{h}` and every MLP `m{l}`; receivers (readers) are every head's query,
key and value `a{l}.h{h}<q|k|v>`, every `m{l}` and `logits` (Conmy et al. 2023, arXiv 2304.14997, section 2.1). An edge is
a pair (source, receiver) with the source upstream. Everything that is known per edge (membership, score) is one
[sources, receivers] array; this file is the only place that knows which entry is which edge.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np

from circuitdiscovery.arguments import guarded
from circuitdiscovery.errors import CircuitDiscoveryError, nearest, shown, unknown

if TYPE_CHECKING:
    import networkx as nx

    from circuitdiscovery.model.model import Model

LETTERS = ("q", "k", "v")
Edge = str | tuple[Any, ...]  # "a->b", (a, b), (a, b, letter) as networkx has it, or (row, column)
Edges = Iterable[Edge]


@dataclass(frozen=True)
class Graph:
    """All edges of one architecture.

    Args:
        n_layers: blocks.
        n_heads: query heads per block.
        n_kv_heads: key/value heads (groups) per block; fewer than `n_heads` is grouped-query attention.
        parallel: attention and MLP of a block read the same stream (GPT-NeoX), so `m{l}` does not read `a{l}.*`.
        has_mlp: blocks have an MLP.
        split_qkv: a head reads its query, key and value through separate edges.

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

    def __post_init__(self) -> None:
        for part in fields(self):
            self._check_kind(part.name, part.type == "bool")
        if min(self.n_layers, self.n_heads, self.n_kv_heads) < 1 or self.n_heads % self.n_kv_heads:
            raise CircuitDiscoveryError(
                f"a graph needs at least one layer and head, and n_heads ({self.n_heads}) a multiple of n_kv_heads ({self.n_kv_heads})"
            )
        if self.grouped and not self.split_qkv:
            raise CircuitDiscoveryError(
                f"split_qkv=False needs one key and value per head, but {self.n_heads} heads share {self.n_kv_heads} key/value groups"
            )

    def _check_kind(self, name: str, switch: bool) -> None:
        value = getattr(self, name)
        wanted = "True or False" if switch else "a whole number"
        if isinstance(value, bool) != switch or not (switch or isinstance(value, Integral)):
            raise CircuitDiscoveryError(f"a graph's {name} must be {wanted}, not {shown(value)}")
        object.__setattr__(self, name, value if switch else int(value))  # of numpy, too

    @classmethod
    @guarded
    def from_model(cls, model: Model, split_qkv: bool = True) -> Graph:
        """The graph of a loaded model (`split_qkv=False` merges a head's three receivers into one)."""
        return model.graph if split_qkv else replace(model.graph, split_qkv=False)

    @property
    def grouped(self) -> bool:
        """Whether several heads share a key and a value."""
        return self.n_kv_heads < self.n_heads

    # ---------------------------------------------------------------- sources

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """Writers in topological order: `input`, then per layer its heads and its MLP."""
        names = ["input"]
        for layer in range(self.n_layers):
            names += [f"a{layer}.h{head}" for head in range(self.n_heads)]
            names += [f"m{layer}"] if self.has_mlp else []
        return tuple(names)

    @cached_property
    def source_index(self) -> Mapping[str, int]:
        """Source name -> row."""
        return {name: i for i, name in enumerate(self.sources)}

    def n_upstream(self, layer: int, letter: str = "q") -> int:
        """How many sources (they are the first ones) a receiver of this layer can read; `layer == n_layers` is `logits`."""
        before = 1 + layer * (self.n_heads + self.has_mlp)
        return before + (self.n_heads if letter == "m" and not self.parallel else 0)

    def heads(self, layer: int) -> slice:
        """The rows of a layer's heads."""
        start = self.n_upstream(layer)
        return slice(start, start + self.n_heads)

    def mlp(self, layer: int) -> int:
        """The row of a layer's MLP."""
        return self.n_upstream(layer) + self.n_heads

    # -------------------------------------------------------------- receivers

    def _head_receivers(self, layer: int) -> list[str]:
        if not self.split_qkv:
            return [f"a{layer}.h{head}" for head in range(self.n_heads)]
        if not self.grouped:
            return [f"a{layer}.h{head}<{letter}>" for head in range(self.n_heads) for letter in LETTERS]
        queries = [f"a{layer}.h{head}<q>" for head in range(self.n_heads)]
        return queries + [f"a{layer}.kv{group}<{letter}>" for group in range(self.n_kv_heads) for letter in LETTERS[1:]]

    @cached_property
    def receivers(self) -> tuple[str, ...]:
        """Readers in topological order: per layer its heads' receivers and its MLP, last `logits`."""
        names: list[str] = []
        for layer in range(self.n_layers):
            names += self._head_receivers(layer) + ([f"m{layer}"] if self.has_mlp else [])
        return (*names, "logits")

    @cached_property
    def receiver_index(self) -> Mapping[str, int]:
        """Receiver name -> column."""
        return {name: i for i, name in enumerate(self.receivers)}

    def columns(self, layer: int, letter: str) -> np.ndarray:
        """The columns of a layer's receivers of one letter: [heads] for "q", [groups] for "k" and "v", [1] for "m".

        Where q, k and v are merged, all three letters name the same columns.
        """
        return self._columns[layer, letter]

    @cached_property
    def _columns(self) -> Mapping[tuple[int, str], np.ndarray]:
        found: dict[tuple[int, str], np.ndarray] = {}
        for layer in range(self.n_layers):
            for letter in LETTERS:
                prefix, count = ("h", self.n_heads) if letter == "q" or not self.grouped else ("kv", self.n_kv_heads)
                suffix = f"<{letter}>" if self.split_qkv else ""
                found[layer, letter] = np.array([self.receiver_index[f"a{layer}.{prefix}{i}{suffix}"] for i in range(count)])
            if self.has_mlp:
                found[layer, "m"] = np.array([self.receiver_index[f"m{layer}"]])
        return found

    def reader_nodes(self, receiver: str) -> tuple[str, ...]:
        """The sources that a receiver feeds: its head or MLP, every head of its group, none for `logits`."""
        node = node_of(receiver)
        if ".kv" not in node:
            return () if node == "logits" else (node,)
        layer, group = node.split(".kv")
        size = self.n_heads // self.n_kv_heads
        return tuple(f"{layer}.h{head}" for head in range(int(group) * size, (int(group) + 1) * size))

    @cached_property
    def feeds(self) -> np.ndarray:
        """[receivers, sources] bool, read-only: the source is what the receiver's node writes (for a group, each of its heads)."""
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
        """[sources, receivers] bool: what is into or out of some nodes; into a group that several heads read by, where all of them are."""
        sources = np.array([name in nodes for name in self.sources])
        named = np.array([name in nodes for name in self._reading_nodes])
        return sources[:, None] | named | (self.feeds.any(axis=1) & ~(self.feeds & ~sources).any(axis=1))

    @cached_property
    def receiver_layers(self) -> tuple[int, ...]:
        """Each receiver's layer; `logits` stands in the one after the last."""
        return tuple(self.n_layers if node == "logits" else int(node[1:].split(".")[0]) for node in self._reading_nodes)

    # ------------------------------------------------------------------ edges

    @cached_property
    def allowed(self) -> np.ndarray:
        """[sources, receivers] bool, read-only: True where there is an edge."""
        allowed = np.zeros((len(self.sources), len(self.receivers)), dtype=bool)
        for column, receiver in enumerate(self.receivers):
            allowed[: self.n_upstream(self.receiver_layers[column], receiver[0]), column] = True
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
        return tuple(f"{self.sources[s]}->{self.receivers[r]}" for s, r in np.argwhere(mask))

    def index(self, edge: Edge) -> tuple[int, int]:
        """An edge's (row, column), by its name or its two ends'; an unknown one is an error that offers the nearest."""
        source, receiver = ends_of(edge)
        row, column = self._place(source, self.source_index), self._place(receiver, self.receiver_index)
        if row is None or column is None or not self.allowed[row, column]:
            name = edge if isinstance(edge, str) else f"{source}->{receiver}"
            raise CircuitDiscoveryError(self._no_edge(name, str(source), str(receiver)))
        return row, column

    def _place(self, end: Any, index: Mapping[str, int]) -> int | None:
        """The row of a source or the column of a receiver; of a number itself, where there is such a one."""
        if isinstance(end, str):
            return index.get(end)
        return int(end) if 0 <= end < len(index) else None

    def _no_edge(self, edge: str, source: str, receiver: str) -> str:
        """The sentence for an unknown edge; its two ends are looked up apart, for there are tens of thousands of edges."""
        if max(len(source), len(receiver)) > 200:
            return f"no edge {shown(edge, 100)}; Valid edges: {self.edges[0]}, ..., {self.edges[-1]} (a source, and a receiver after it)"
        several = [name for name in self.receivers if receiver == node_of(name) or receiver in self.reader_nodes(name)]
        if several and receiver not in self.receiver_index and source in self.source_index:
            listed = f"{', '.join(several[:-1])} and {several[-1]}" if several[1:] else several[0]
            return f"no edge {edge!r}; {receiver} is not one receiver: it reads by {listed}, such as {source}->{several[0]}"
        sources, receivers = nearest(source, self.sources), nearest(receiver, self.receivers)
        near = [f"{s}->{r}" for s in sources for r in receivers if self.allowed[self.source_index[s], self.receiver_index[r]]]
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"no edge {shown(edge, 100)}; {hint}Valid edges: {self.edges[0]}, ..., {self.edges[-1]} (a source, and a receiver after it)"

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
        """[sources] bool: those that can differ when those in `changed` do, along the edges of a [sources, receivers] mask."""
        reached, reading = changed.tolist(), 0
        for row, (read, feeding) in enumerate(zip(_as_bits(mask), self._feeding, strict=True)):
            if reached[row] or reading & feeding:  # topological order: a source's receivers are decided before it
                reached[row] = True
                reading |= read
        return np.array(reached, dtype=bool)

    def live(self, mask: np.ndarray) -> np.ndarray:
        """[sources] bool: those with a path of the mask's edges to `logits`."""
        return np.array(self._live(_as_bits(mask))[0], dtype=bool)

    def running(self, mask: np.ndarray, own_run: bool) -> np.ndarray:
        """[sources] bool: those that a run of the mask computes: live and, where replacements are a run's own, reached from `input`.

        All others carry their replacement, or are read by nothing that leads to the logits.
        """
        live = self.live(mask)
        return live & self.reached(mask, np.arange(len(live)) == 0) if own_run else live

    def canonical(self, mask: np.ndarray, own_run: bool) -> np.ndarray:
        """The mask without the edges that change no logit: circuits with the same canonical mask are the same circuit."""
        return mask & self.running(mask, own_run)[:, None] & self.leading(mask)

    def leading(self, mask: np.ndarray) -> np.ndarray:
        """[receivers] bool: `logits`, and those that feed a live source."""
        _, leading = self._live(_as_bits(mask))
        size = len(self.receivers)
        packed = np.frombuffer(leading.to_bytes((size + 7) // 8, "little"), dtype=np.uint8)
        return np.unpackbits(packed, count=size, bitorder="little").astype(bool)

    def _live(self, reads: list[int]) -> tuple[list[bool], int]:
        """(which sources are live, the leading receivers as bits), from the receivers that read each source."""
        live, leading = [False] * len(reads), 1 << (len(self.receivers) - 1)
        for row in reversed(range(len(reads))):
            if reads[row] & leading:
                live[row] = True
                leading |= self._feeding[row]
        return live, leading

    @cached_property
    def _reads_across(self) -> int:
        """The keys and the values, as bits: what other positions read than the one it stands at."""
        kinds = [letter_of(receiver) or receiver[0] for receiver in self.receivers]
        return _as_bits(np.array([[kind in "kva" for kind in kinds]]))[0]  # "a": query, key and value merged

    def everywhere(self, mask: np.ndarray) -> np.ndarray:
        """[sources] bool: those that matter to `logits` at other positions than the answer's too.

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
        """A MultiDiGraph over nodes, an edge per edge, keyed by its letter (`q`, `k`, `v`; 0 for MLPs and logits).

        Several heads read through a group's node `a{l}.kv{g}`; its attribute `heads` names them.
        """
        return self.networkx_of(self.allowed)

    def networkx_of(self, mask: np.ndarray) -> nx.MultiDiGraph:
        """The part of `to_networkx()` that is True in a [sources, receivers] mask; nodes without an edge are left out."""
        import networkx as nx

        view = nx.MultiDiGraph()
        for row, column in np.argwhere(mask):
            receiver = self.receivers[column]
            reader = node_of(receiver)
            if ".kv" in reader and reader not in view:
                view.add_node(reader, heads=self.reader_nodes(receiver))
            view.add_edge(self.sources[row], reader, key=letter_of(receiver) or 0)
        return view

    def to_dict(self) -> dict[str, Any]:
        """The arguments that make this graph again, as JSON."""
        return asdict(self)


def _as_bits(rows: np.ndarray) -> list[int]:
    """The rows of a [n, m] bool array as numbers: Python's are as long as they need to be, and one operation does all bits."""
    packed = np.packbits(rows, axis=1, bitorder="little")
    content, width = packed.tobytes(), packed.shape[1]
    return [int.from_bytes(content[start : start + width], "little") for start in range(0, len(content), width)]


def ends_of(edge: Any) -> tuple[Any, Any]:
    """The source and the receiver of an edge: texts, or row and column.

    >>> ends_of("m0->a1.h0<q>"), ends_of(("m0", "logits")), ends_of(("m0", "a1.h0", "q"))
    (('m0', 'a1.h0<q>'), ('m0', 'logits'), ('m0', 'a1.h0<q>'))
    """
    if isinstance(edge, str):
        source, _, receiver = edge.partition("->")
        return source, receiver
    ends = edge.tolist() if hasattr(edge, "tolist") else edge
    if isinstance(ends, Sequence) and not isinstance(ends, bytes) and len(ends) in (2, 3):
        source, receiver, *letter = ends
        if isinstance(source, str) and isinstance(receiver, str) and all(isinstance(each, str) or each == 0 for each in letter):
            return source, f"{receiver}<{letter[0]}>" if any(letter) else receiver
        if all(isinstance(each, Integral) and not isinstance(each, bool) for each in ends) and not letter:
            return source, receiver
    raise CircuitDiscoveryError(f"an edge is a text such as 'm0->logits' or a pair such as ('m0', 'logits'), not {shown(edge)}")


def no_node(name: object, valid: Sequence[str], kind: str = "node", plural: str | None = None) -> CircuitDiscoveryError:
    """The error for what is not the name of a node; it knows how other libraries write heads and layers.

    >>> str(no_node("L1H2", ["input", "a1.h2", "m1", "logits"]))
    "no node 'L1H2'; did you mean 'a1.h2'? Valid nodes: input, a1.h2, m1, logits (a head is a{layer}.h{head}, an MLP m{layer})"
    """
    if not isinstance(name, str) and isinstance(name, Sequence):
        name = ".".join(map(str, name))
    numbers = re.findall(r"[0-9]{1,4}", str(name)[:200])
    mlp = numbers[:1] if "mlp" in str(name)[:200].lower() else []
    meant = f"m{int(mlp[0])}" if mlp else f"a{int(numbers[0])}.h{int(numbers[1])}" if len(numbers) > 1 else ""
    told = str(unknown(kind, name, valid, plural=plural))
    if meant in valid and name != meant:
        told = re.sub(r"; (did you mean '[^']*'\? )?", f"; did you mean {meant!r}? ", told, count=1)
    return CircuitDiscoveryError(f"{told} (a head is a{{layer}}.h{{head}}, an MLP m{{layer}})")


def node_of(receiver: str) -> str:
    """The node a receiver belongs to: `a1.h2<q>` -> `a1.h2`."""
    return receiver.partition("<")[0]


def letter_of(receiver: str) -> str:
    """The letter of a receiver inside a head, else the empty string: `a1.h2<q>` -> `q`."""
    return receiver.partition("<")[2].rstrip(">")
