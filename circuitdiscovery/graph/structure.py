"""What a graph's nodes are, which write and which read, and who can read whom (see graph.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, fields
from functools import cached_property
from numbers import Integral

import numpy as np

from circuitdiscovery.arguments import guarded
from circuitdiscovery.errors import CircuitDiscoveryError, shown
from circuitdiscovery.graph.layout import Layout
from circuitdiscovery.graph.nodes import (
    INPUT,
    LETTERS,
    LOGITS,
    group_name,
    head_name,
    mlp_name,
    no_node,
    node_of,
    parsed,
    receiver_name,
)
from circuitdiscovery.graph.splits import Split


@dataclass(frozen=True)
class Structure:
    """The nodes of one architecture, as sources and receivers; its fields are explained in `Graph`."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    parallel: bool = False
    has_mlp: bool = True
    split_qkv: bool = True
    splits: tuple[Split, ...] = ()

    def __post_init__(self) -> None:
        for part in SHAPE:
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
        if self.splits:
            self._check_splits()

    def _check_splits(self) -> None:
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

    @cached_property
    def layout(self) -> Layout:
        """How what all sources write lies in one tensor."""
        found = np.zeros(len(self.sources), dtype=bool)
        for split in self.splits:
            if split.scaled:
                rows = self._rows[split.node]
                found[rows.start : rows.stop - 1] = True  # all but the rest
        found.flags.writeable = False
        return Layout(found)

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

    @cached_property
    def allowed(self) -> np.ndarray:
        """[sources, receivers] bool, read-only: True where there is an edge."""
        allowed = np.zeros((len(self.sources), len(self.receivers)), dtype=bool)
        for column, name in enumerate(self.receivers):
            letter = "m" if parsed(name).kind == "mlp" else "q"
            allowed[: self.n_upstream(self.receiver_layers[column], letter), column] = True
        allowed.flags.writeable = False
        return allowed


SHAPE = tuple(part for part in fields(Structure) if part.name != "splits")
