"""Random circuits to compare with, made of paths from `input` to `logits` (Shi et al.
2024, arXiv 2410.13032, and their code).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.graph.graph import Graph

# random paths in a row without a new edge, after which a random circuit gets its edges in another way
_MISSES = 50


@dataclass(frozen=True)
class RandomPaths:
    """Random paths of a graph: a walk from `input`, each step uniform among the edges out of where it stands.

    >>> paths = RandomPaths(Graph(n_layers=1, n_heads=2, n_kv_heads=2))
    >>> int(paths.circuit(5, np.random.default_rng(0)).sum())
    5
    """

    graph: Graph

    @cached_property
    def _out(self) -> list[np.ndarray]:
        """The columns that each source can be read by."""
        return [np.flatnonzero(row) for row in self.graph.allowed]

    @cached_property
    def _fed(self) -> list[np.ndarray]:
        """The rows of the sources that each receiver feeds."""
        return [np.flatnonzero(row) for row in self.graph.feeds]

    def path(self, rng: np.random.Generator) -> np.ndarray:
        """[sources, receivers] bool: the edges of one path."""
        path, row = np.zeros_like(self.graph.allowed), _one(np.flatnonzero(self.graph.is_input), rng)
        while True:
            column = _one(self._out[row], rng)
            path[row, column] = True
            if not len(self._fed[column]):  # the logits
                return path
            row = _one(self._fed[column], rng)

    def beside(self, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """[sources, receivers] bool: the edges of a random path that a mask lacks, at least one.

        The mask must lack an edge.
        """
        while True:
            new = self.path(rng) & ~mask
            if new.any():
                return new

    def circuit(self, size: int, rng: np.random.Generator) -> np.ndarray:
        """[sources, receivers] bool: exactly so many edges, each on a path: random paths while
        they fit, then edges between their nodes.
        """
        if not 0 <= size <= len(self.graph):
            raise CircuitDiscoveryError(f"a random circuit has 0 to {len(self.graph)} edges, not {size}")
        while True:
            mask = self._union(size, rng)
            reached = self.graph.reached(mask, self.graph.is_input)
            spare = np.argwhere(self.graph.allowed & ~mask & reached[:, None] & self.graph.leading(mask))
            missing = size - int(mask.sum())
            # else the few paths so far have no room for so many more, and others may
            if missing <= len(spare):
                mask[tuple(rng.choice(spare, missing, replace=False).T)] = True
                return mask

    def _union(self, size: int, rng: np.random.Generator) -> np.ndarray:
        """Random paths together, until the next would make them too many
        edges or a lot of them have brought nothing.
        """
        mask, misses = np.zeros_like(self.graph.allowed), 0
        while misses < _MISSES:
            larger = mask | self.path(rng)
            if larger.sum() > size:
                break
            misses = misses + 1 if larger.sum() == mask.sum() else 0
            mask = larger
        return mask


def _one(rows: np.ndarray, rng: np.random.Generator) -> int:
    return int(rows[rng.integers(len(rows))])
