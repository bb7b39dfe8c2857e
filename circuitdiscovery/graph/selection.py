"""The best edges of which every one lies on a path from `input` to `logits`.

The highest scores alone need not form paths: of the best 353 of random scores on a graph of 70,651 edges none
is on one, and methods that prune afterwards then measure an empty circuit. Here the whole circuit is chosen:
at most n edges, connected, of the greatest total weight.

1. Small graphs: a mixed-integer programme (HiGHS, by scipy). A variable per edge; an edge needs a kept edge
   into its source, unless that is `input`, and one out of what its receiver feeds, unless that is `logits`.
   The graph has no cycles, so these make paths.
2. Large graphs, and where the programme ends at its limit: whole paths, greedily. Every new edge has a price.
   The path from `input` to `logits` of the greatest weight less price, by dynamic programming over the
   topological order, is added as long as that is positive; edges that are kept already are free. All edges
   between connected nodes that are worth their price follow. The price is the lowest one (by bisection) at
   which no more than n edges are bought; the best single edges between connected nodes fill up.

Limits are counts, never the clock: the same scores give the same circuit.
"""

from __future__ import annotations

import numpy as np

from circuitdiscovery.graph.graph import Graph

MILP_EDGES = 2_000  # of a graph; larger ones take minutes
_MILP_NODES = 2_000  # of branch and bound, at most
_PRICES = 14  # steps of a bisection
_NOTHING = 1e-12  # of gain, in multiples of the greatest weight: a sum of so many rounds to as much
_SHORT_PATHS = 50  # at most, that spend what is left


def best_mask(graph: Graph, weights: np.ndarray, n: int) -> tuple[np.ndarray, str]:
    """([sources, receivers] bool of at most n edges, "milp" or "greedy").

    Args:
        graph: whose edges.
        weights: [sources, receivers]; edges of negative weight are kept only
            where they connect others that are worth it.
        n: from 0 to the number of edges.
    """
    greedy = _Paths(graph, weights).chosen(n)
    if len(graph) > MILP_EDGES:
        return greedy, "greedy"
    programmed = _programmed(graph, weights, n)
    if programmed is None or _total(weights, programmed) < _total(weights, greedy):
        return greedy, "greedy"
    return programmed, "milp"


def _total(weights: np.ndarray, mask: np.ndarray) -> float:
    return float(weights[mask].sum(dtype=np.float64))


# ------------------------------------------------------------------ exactly


def _programmed(graph: Graph, weights: np.ndarray, n: int) -> np.ndarray | None:
    """The best mask; None where it was not proved within the limit, or did not come out connected."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import coo_array, vstack

    edges = np.argwhere(graph.allowed)
    count = len(edges)
    into = graph.feeds[edges[:, 1]]  # [edges, sources]: what an edge's receiver feeds
    needs: list[tuple[int, np.ndarray]] = []  # an edge, and the edges of which it needs one
    for i, (source, receiver) in enumerate(edges.tolist()):
        if not graph.is_input[source]:
            needs.append((i, np.flatnonzero(into[:, source])))
        if receiver < len(graph.receivers) - 1:
            needs.append((i, np.flatnonzero(into[i][edges[:, 0]])))
    rows = np.repeat(np.arange(len(needs)), [1 + len(each) for _, each in needs])
    columns = np.concatenate([np.append(i, each) for i, each in needs])
    values = np.concatenate([np.append(1.0, -np.ones(len(each))) for _, each in needs])
    connected = coo_array((values, (rows, columns)), shape=(len(needs), count))
    size = coo_array(np.ones((1, count)))
    limits = np.append(np.zeros(len(needs)), n)
    scale = max(float(np.abs(weights).max()), 1e-300)
    rows = vstack([connected, size]).tocsr()
    found = milp(
        -weights[graph.allowed] / scale,
        integrality=np.ones(count),
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(rows, -np.inf, limits),  # pyright: ignore[reportArgumentType]
        options={"node_limit": _MILP_NODES, "mip_rel_gap": 1e-6},
    )
    if found.status != 0 or found.x is None:
        return None
    mask = np.zeros_like(graph.allowed)
    mask[tuple(edges[found.x > 0.5].T)] = True
    return mask if mask.sum() <= n and np.array_equal(graph.canonical(mask, own_run=True), mask) else None


# ------------------------------------------------------------------ by whole paths


class _Paths:
    """Whole paths of the greatest weight less price, on one graph."""

    def __init__(self, graph: Graph, weights: np.ndarray) -> None:
        self.graph = graph
        most = float(np.abs(weights[graph.allowed]).max())
        # at most 1, so that rounding is of a known size
        self.weights = np.where(graph.allowed, weights / (most or 1.0), -np.inf)
        # of each source, the receivers that feed it
        self._feeding = [np.flatnonzero(column) for column in graph.feeds.T]

    def chosen(self, n: int) -> np.ndarray:
        """At most n connected edges."""
        if n == 0:
            return np.zeros_like(self.graph.allowed)
        kept = self._bought(0.0, n)
        if kept is None:
            kept = np.zeros_like(self.graph.allowed)
            low, high = 0.0, 1.0  # too much is bought, nothing is
            # near it, if the best are connected
            price = max(0.0, float(np.sort(self.weights[self.graph.allowed])[-n]))
            for _ in range(_PRICES):
                found = self._bought(price, n)
                if found is None:
                    low = price
                else:
                    high, kept = price, found if found.sum() >= kept.sum() else kept
                price = (low + high) / 2
        return self._filled(kept, n)

    def _bought(self, price: float, n: int) -> np.ndarray | None:
        """What is worth its price; None where that is more than n edges."""
        mask = np.zeros_like(self.graph.allowed)
        gains = self.weights - price
        while True:
            path = self._best_path(np.where(mask, 0.0, gains))
            if path is None:
                return mask
            mask[path] = True
            # what connects connected nodes needs no path
            while (more := self._between(mask) & (gains > 0) & ~mask).any():
                mask |= more
            if mask.sum() > n:
                return None

    def _between(self, mask: np.ndarray) -> np.ndarray:
        """[S, R] bool: the graph's edges from connected sources into receivers of connected nodes."""
        connected = self.graph.reached(mask, self.graph.is_input) & self.graph.live(mask)
        connected |= self.graph.is_input
        receivers = np.asarray(np.any(self.graph.feeds[:, connected & ~self.graph.is_input], axis=1))
        receivers[-1] = True
        return self.graph.allowed & connected[:, None] & receivers

    def _best_path(self, gains: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """(rows, columns) of the path from `input` to `logits` of the
        greatest gain; None where no gain is positive.
        """
        best = np.full(gains.shape[1], -np.inf)  # of each receiver, the best way to it
        source = np.zeros(gains.shape[1], dtype=np.int64)  # its last source
        # of each source, the receiver on the best way to it
        through = np.zeros(gains.shape[0], dtype=np.int64)
        for row, feeding in enumerate(self._feeding):
            reach = 0.0
            if len(feeding):
                through[row] = feeding[best[feeding].argmax()]
                reach = best[through[row]]
            way = reach + gains[row]
            better = way > best
            best[better] = way[better]
            source[better] = row
        if best[-1] < _NOTHING:
            return None
        rows, columns, column = [], [], gains.shape[1] - 1
        while True:
            rows.append(int(source[column]))
            columns.append(column)
            if self.graph.is_input[rows[-1]]:
                return np.array(rows), np.array(columns)
            column = int(through[rows[-1]])

    def _filled(self, mask: np.ndarray, n: int) -> np.ndarray:
        """With what is left spent: on short paths as long as they are worth more
        than single edges, then on single edges.
        """
        mask = mask.copy()
        for _ in range(_SHORT_PATHS):
            left = n - int(mask.sum())
            singles = np.argwhere(self._between(mask) & ~mask & (self.weights >= 0))
            singles = singles[np.argsort(-self.weights[tuple(singles.T)], kind="stable")[:left]]
            path = self._short_path(mask, left) if left else None
            if path is not None:
                worth = self.weights[path].sum()
                if worth > max(0.0, self.weights[tuple(singles[: len(path[0])].T)].sum()):
                    mask[path] = True
                    continue
            mask[tuple(singles.T)] = True
            break
        return mask

    def _short_path(self, mask: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray] | None:
        """(rows, columns) of the new edges of a path, at most so many: the path at
        the lowest price at which it is that short.
        """
        found, low, high, price = None, 0.0, 1.0, 0.5
        for _ in range(_PRICES):
            path = self._best_path(np.where(mask, 0.0, self.weights - price))
            if path is None:
                high = price
            else:
                new = ~mask[path]
                if new.sum() <= most:
                    found, high = (path[0][new], path[1][new]), price
                else:
                    low = price
            price = (low + high) / 2
        return found
