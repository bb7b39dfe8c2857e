"""What of a circuit a picture shows, and where: the strongest whole paths, in rows or columns.

1. A circuit of more edges than asked for is shown in part: whole paths from
   `input` to `logits`, grown strongest first.
2. Few layers stand in rows from the bottom, one for each layer's groups, heads and MLP. More stand in columns
   from the left: a column takes layer after layer while none of its nodes reads another one in it, so that a
   deep model's picture is not a strip.
3. A layer without a node takes no space; the next row or column names it in small letters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from circuitdiscovery.circuit.circuit import Circuit
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.graph.nodes import parsed, whole_of

MOST_EDGES = 60  # that a picture shows unless asked for more: what can be read
MOST_ROWS = 10  # from bottom to top; a picture of more goes from left to right
TALLEST = 12  # nodes of a column that several layers share
# ranks that all edges cross together, above which nodes stand on a grid: dot's layout would take minutes
CROWDED = 2500
LANE, NODE, COLUMN = 11, 46, 112  # points that a passing edge, a node and a column take in a landscape, about


# ---------------------------------------------------------- what is shown


def shown(circuit: Circuit, values: np.ndarray, max_edges: int | None) -> tuple[Circuit, str | None]:
    """The part of a circuit that a picture shows, and the sentence that
    says which part; None where it is the whole.

    Args:
        circuit: what is drawn.
        values: [sources, receivers], the edges' scores, NaN where there is none.
        max_edges: at least 1; None shows everything.

    Raises:
        CircuitDiscoveryError: another `max_edges`.
    """
    if max_edges is not None and (
        isinstance(max_edges, bool) or not isinstance(max_edges, int | np.integer) or max_edges < 1
    ):
        raise CircuitDiscoveryError(
            f"max_edges must be a whole number of at least 1, or None for all edges, not {max_edges!r}"
        )
    if max_edges is None or len(circuit) <= max_edges:
        return circuit, None
    on_paths = circuit.pruned()
    part = strongest_paths(circuit, values, max_edges)
    scored = not np.isnan(values[circuit.mask]).all()
    if len(part) == len(on_paths) > 0:
        which = "those on paths from input to logits"
    elif len(part):
        which = f"the {'strongest' if scored else 'first'} on paths from input to logits"
    else:
        part = _strongest(circuit, values, max_edges)
        why = (
            f"a whole path is longer than {max_edges}"
            if len(on_paths)
            else "none is on a path from input to logits"
        )
        which = f"the {'strongest' if scored else 'first'}; {why}"
    return part, f"{len(part):,} of {len(circuit):,} edges shown: {which}"


def strongest_paths(circuit: Circuit, values: np.ndarray, count: int) -> Circuit:
    """Whole paths from `input` to `logits` of at most `count` edges together, grown strongest first.

    Again and again the strongest edge that is left brings the path through it that needs the fewest new
    edges; one whose path does not fit any more is passed over. Strength is |value|; ties go by index.
    """
    graph, mask = circuit.graph, circuit.pruned().mask
    size = np.nan_to_num(np.abs(np.where(mask, values, 0.0)))
    rows, columns = np.nonzero(mask)
    order = np.argsort(-size[rows, columns], kind="stable")
    rows, columns = rows[order], columns[order]
    paths = _Paths(graph, mask, size)
    drawn = np.zeros_like(mask)
    while (left := count - int(drawn.sum())) > 0:
        paths.measure(drawn)
        need = paths.new_edges(rows, columns)
        # between two nodes of drawn paths: adding them makes no other path cheaper
        alone = (need == 1) & ~drawn[rows, columns]
        fits = (need > 1) & (need <= left - (np.cumsum(alone) - alone))
        first = int(np.argmax(fits)) if fits.any() else len(need)
        taken = np.flatnonzero(alone[:first])[:left]
        drawn[rows[taken], columns[taken]] = True
        if first == len(need):
            break
        for edge in paths.through(int(rows[first]), int(columns[first])):
            drawn[edge] = True
    return Circuit(graph, drawn, circuit.scores, circuit.info)


class _Paths:
    """The cheapest ways from `input` to every source and from every
    receiver to `logits`, along the edges of a mask.

    A drawn edge costs nothing, a new one 1 and a little more the weaker it is, so that
    among equally many the stronger are taken.
    """

    def __init__(self, graph: Graph, mask: np.ndarray, size: np.ndarray) -> None:
        longest = 2 * graph.n_layers + 1  # edges of a path
        weakness = 1 - size / (size.max(initial=0) or 1.0)
        self._graph, self._new = graph, np.where(mask, 1 + weakness / (2 * longest), np.inf)
        self._units = [
            (slice(start, stop), np.flatnonzero(np.any(graph.feeds[start:stop], axis=0)))
            for start, stop in _units(graph)
        ]

    def measure(self, drawn: np.ndarray) -> None:
        """Take these edges as drawn."""
        graph = self._graph
        self._cost = cost = np.where(drawn, 0.0, self._new)
        self._to = to = np.full(len(graph.sources), np.inf)  # from `input` to what the source writes
        # from what the receiver reads to `logits`
        self._from = onward = np.full(len(graph.receivers), np.inf)
        to[graph.inputs], onward[-1] = 0.0, 0.0
        for columns, rows in self._units:
            read = (to[: rows[0], None] + cost[: rows[0], columns]).min(axis=0)
            to[rows] = np.where(graph.feeds[columns][:, rows], read[:, None], np.inf).min(axis=0)
        for columns, rows in reversed(self._units):
            written = (cost[rows, columns.stop :] + onward[columns.stop :]).min(axis=1)
            onward[columns] = np.where(graph.feeds[columns][:, rows], written, np.inf).min(axis=1)

    def new_edges(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """How many new edges the cheapest path through each edge has."""
        return np.floor(self._to[rows] + self._cost[rows, columns] + self._from[columns] + 1e-9).astype(int)

    def through(self, row: int, column: int) -> Iterator[tuple[int, int]]:
        """The edges, as (row, column), of the cheapest path through one."""
        yield row, column
        back, on = row, column
        while not self._graph.is_input[back]:
            feeding = np.flatnonzero(self._graph.feeds[:, back])
            costs = self._to[:back, None] + self._cost[:back, feeding]
            source, i = np.unravel_index(int(np.argmin(costs)), costs.shape)
            yield int(source), int(feeding[i])
            back = int(source)
        while on != len(self._from) - 1:
            fed = np.flatnonzero(self._graph.feeds[on])
            costs = self._cost[fed] + self._from
            i, receiver = np.unravel_index(int(np.argmin(costs)), costs.shape)
            yield int(fed[i]), int(receiver)
            on = int(receiver)


def _units(graph: Graph) -> Iterator[tuple[int, int]]:
    """The columns, from and to, of each layer's attention and of its MLP; what stands
    in one does not read from another in it.
    """
    nodes = [parsed(receiver) for receiver in graph.receivers[:-1]]
    kinds = [(node.layer, node.in_attention) for node in nodes]
    starts = [i for i, kind in enumerate(kinds) if i == 0 or kind != kinds[i - 1]]
    yield from pairwise([*starts, len(kinds)])


def _strongest(circuit: Circuit, values: np.ndarray, count: int) -> Circuit:
    edges = np.argwhere(circuit.mask)
    size = np.nan_to_num(np.abs(values[circuit.mask]))
    mask = np.zeros_like(circuit.mask)
    mask[tuple(edges[np.argsort(-size, kind="stable")[:count]].T)] = True
    return Circuit(circuit.graph, mask, circuit.scores, circuit.info)


# ------------------------------------------------------------------ where


@dataclass(frozen=True)
class Rank:
    """Nodes beside one another.

    Args:
        heading: which layers they are of, in words.
        folded: which layers before them have no node, in words; empty where there are none.
        nodes: in topological order.
    """

    heading: str
    folded: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """A circuit's nodes in ranks from `input` to `logits`: rows from the bottom,
    or with `landscape` columns from the left.
    """

    circuit: Circuit
    ranks: tuple[Rank, ...]
    landscape: bool

    @cached_property
    def _spans(self) -> tuple[np.ndarray, np.ndarray]:
        """Every edge's first and last rank."""
        at = {node: i for i, rank in enumerate(self.ranks) for node in rank.nodes}
        sources = np.array([at.get(whole_of(name), 0) for name in self.circuit.graph.sources])
        receivers = np.array([at.get(whole_of(name), 0) for name in self.circuit.graph.receivers])
        rows, columns = np.nonzero(self.circuit.mask)
        return sources[rows], receivers[columns]

    @cached_property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """Each node that is split with those of its parts that the circuit has, in order."""
        drawn = set(self.circuit.nodes)
        return {
            split.node: tuple(part for part in split.names if part in drawn)
            for split in self.circuit.graph.splits
        }

    def breadth(self, node: str) -> float:
        """The room that a node takes beside others, in ordinary nodes."""
        return _breadth(len(self.parts.get(node, ())), self.landscape)

    def _breadth(self, rank: Rank) -> float:
        return sum(map(self.breadth, rank.nodes))

    @property
    def grid(self) -> bool:
        """Whether the nodes are set on a grid, because a layout in
        layers would take minutes and show no more.
        """
        first, last = self._spans
        return int((last - first).sum()) > CROWDED

    @property
    def flat(self) -> bool:
        """Whether a landscape would be more than about twice as wide as high, from
        what stands in a column and what passes it.
        """
        first, last = self._spans
        passing = [int(((first < i) & (last > i)).sum()) for i in range(len(self.ranks))]
        height = max(
            NODE * self._breadth(rank) + LANE * edges for rank, edges in zip(self.ranks, passing, strict=True)
        )
        return self.landscape and COLUMN * len(self.ranks) > 2.2 * height

    def places(self, number: int) -> list[str]:
        """Where a rank's heading and its nodes stand on the grid, in inches, as Graphviz reads it.

        Columns are spread over half the picture's width. An MLP alone in its column stands on an arc, so that
        lines from one to a later one do not lie on those between.
        """
        nodes, longest = self.ranks[number].nodes, max(map(self._breadth, self.ranks))
        sizes = np.array([self.breadth(node) for node in nodes])
        along = np.cumsum(sizes) - sizes / 2 - sizes.sum() / 2  # of each node's middle
        if not self.landscape:
            return [f"{x},{number}!" for x in (-longest / 2 - 0.5, *along)]
        wide, step = 1.05, max(0.8, 0.52 * len(self.ranks) / longest)
        height, turn = step * longest, number / (len(self.ranks) - 1)
        dip = 2 * height * turn * (1 - turn) if len(nodes) == 1 else 0.0
        return [f"{wide * number:.3f},{y:.3f}!" for y in (-height / 2 - 1, *(-step * along - dip))]

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """Each group of keys and values with those of its heads that are drawn."""
        nodes, graph = _nodes(self.circuit), self.circuit.graph
        drawn, readers = (
            set(nodes),
            {whole_of(receiver): graph.reader_nodes(receiver) for receiver in graph.receivers},
        )
        return {
            node: tuple(head for head in dict.fromkeys(map(whole_of, readers[node])) if head in drawn)
            for node in nodes
            if parsed(node).kind == "group"
        }


def _breadth(parts: int, landscape: bool) -> float:
    return max(1.0, (parts + 1) * (0.4 if landscape else 0.6)) if parts else 1.0


def _nodes(circuit: Circuit) -> list[str]:
    """The nodes of a drawing, in topological order: the parts of a node stand in its box."""
    return list(dict.fromkeys(map(whole_of, circuit.nodes)))


def layout(circuit: Circuit) -> Layout:
    """Where a circuit's nodes stand."""
    rows = list(_rows(circuit))
    landscape = len(rows) + 2 > MOST_ROWS
    ranks = _ranks(_columns(circuit) if landscape else rows, circuit.graph.n_layers)
    return Layout(circuit, tuple(ranks), landscape)


_Layers = tuple[int, int, Sequence[str]]  # first layer, last layer, nodes


def _rows(circuit: Circuit) -> Iterator[_Layers]:
    """Per layer its groups, its heads, its MLP."""
    nodes = _nodes(circuit)
    for layer in range(circuit.graph.n_layers):
        for kind in ("group", "head", "mlp"):
            if row := [node for node in nodes if (parsed(node).layer, parsed(node).kind) == (layer, kind)]:
                yield layer, layer, row


def _columns(circuit: Circuit) -> Iterator[_Layers]:
    """Attention and MLPs of as many layers as do not read one another, and as one column has room for."""
    graph = circuit.graph
    reads: dict[str, set[str]] = {}
    for row, column in np.argwhere(circuit.mask):
        reads.setdefault(whole_of(graph.receivers[column]), set()).add(whole_of(graph.sources[row]))
    first, last, held = 0, 0, list[str]()
    sizes = Counter(whole_of(node) for node in circuit.nodes if parsed(node).part)
    for layer, nodes in _parts(circuit):
        if held and (
            sum(_breadth(sizes[node], True) for node in (*held, *nodes)) > TALLEST
            or any(not reads.get(node, set()).isdisjoint(held) for node in nodes)
        ):
            yield first, last, held
            held = []
        first, last = first if held else layer, layer
        held = [*held, *nodes]
    if held:
        yield first, last, held


def _parts(circuit: Circuit) -> Iterator[tuple[int, list[str]]]:
    """Each layer's attention and its MLP, where they have a node."""
    nodes = _nodes(circuit)
    for layer in range(circuit.graph.n_layers):
        own = [node for node in nodes if parsed(node).layer == layer]
        for part in (
            [node for node in own if parsed(node).in_attention],
            [node for node in own if not parsed(node).in_attention],
        ):
            if part:
                yield layer, part


def _ranks(parts: Iterator[_Layers] | Sequence[_Layers], n_layers: int) -> Iterator[Rank]:
    yield Rank("", "", ("input",))
    before, said = -1, ""
    for first, last, nodes in parts:
        heading = _said(first, last)
        yield Rank("" if heading == said else heading, _folded(before, first), tuple(nodes))
        before, said = last, heading
    yield Rank("", _folded(before, n_layers) if said else "", ("logits",))


def _said(first: int, last: int) -> str:
    return f"layer {first}" if first == last else f"layers {first}\N{EN DASH}{last}"


def _folded(before: int, layer: int) -> str:
    return _said(before + 1, layer - 1) if layer > before + 1 else ""
