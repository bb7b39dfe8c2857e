"""What the tests of hypotheses run: the circuit less an edge, inflated by a path, and random circuits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from circuitdiscovery.circuit.circuit import Circuit
from circuitdiscovery.graph.random_paths import RandomPaths
from circuitdiscovery.measure.evaluator import Evaluator
from circuitdiscovery.measure.significance import SAME, distance
from circuitdiscovery.measure.work import Family, Masks


class Runs:
    """The circuits that the tests run on one evaluator. Each random choice has its own
    generator, so that no test changes another.
    """

    def __init__(
        self, evaluator: Evaluator, circuit: Circuit, seed: int, edges: int | None, reference: int
    ) -> None:
        graph = circuit.graph
        self.evaluator, self.circuit, self.seed, self.paths = evaluator, circuit, seed, RandomPaths(graph)
        self.tested = self._tested(edges)
        evaluator.measure_families(self._families(reference))
        ends = graph.allowed, circuit.mask, graph.allowed & ~circuit.mask
        self.full, self.kept, self.rest = (evaluator.values(mask) for mask in ends)
        # what two values near 0 must differ by to be more than roundings, in the metric's unit
        self.least = SAME * float(np.abs(self.full).mean() + np.abs(self.rest).mean())

    def _families(self, reference: int) -> Iterator[Family]:
        """Everything that the tests ask for."""
        graph, own = self.circuit.graph, self.circuit.mask
        lost = [None, *self.tested]
        yield Family(Masks(lost, lambda edge: own if edge is None else without(own, edge)), own)
        for mask in (graph.allowed, graph.allowed & ~own):
            yield Family([mask])
        for number in range(reference):
            yield self._inflated(number)
            yield Family([self._random(number)])

    def _tested(self, most: int | None) -> np.ndarray:
        """[edges, 2]: all of the circuit's, or a sample of them, in index order."""
        edges = np.argwhere(self.circuit.mask)
        if most is None or most >= len(edges):
            return edges
        return edges[np.sort(np.random.default_rng((self.seed, 1)).choice(len(edges), most, replace=False))]

    def effect(self, mask: np.ndarray, edge: np.ndarray) -> float:
        """How far the metric of a circuit moves when the circuit loses an edge."""
        return self._distance(mask, without(mask, edge))

    def redundant_effect(self, number: int) -> float:
        """The effect of a random edge of those by which a random path inflates the circuit."""
        return self._distance(*self._inflated(number).masks)

    def _distance(self, a: np.ndarray, b: np.ndarray) -> float:
        return distance(self.evaluator.values(a), self.evaluator.values(b), self.least)

    def random(self, number: int) -> np.ndarray:
        """[examples]: the metric of a random circuit of as many edges."""
        return self.evaluator.values(self._random(number))

    def _inflated(self, number: int) -> Family:
        """The circuit inflated by a random path, and that less a random edge of the path."""
        rng = np.random.default_rng((self.seed, 2, number))
        added = self.paths.beside(self.circuit.mask, rng)
        whole = self.circuit.mask | added
        return Family([whole, without(whole, rng.choice(np.argwhere(added)))], whole)

    def _random(self, number: int) -> np.ndarray:
        return self.paths.circuit(len(self.circuit), np.random.default_rng((self.seed, 3, number)))


def without(mask: np.ndarray, edge: np.ndarray) -> np.ndarray:
    """A mask less one edge."""
    left = mask.copy()
    left[tuple(edge)] = False
    return left
