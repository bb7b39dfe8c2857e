"""How stable a search is: whether it finds the same circuit with other examples, another seed or order.

A circuit is an estimate from a sample of prompts, and so it has a variance (Meloux et al. 2025, arXiv
2510.00845).

1. Run the search several times and change one thing each time (`over`).
2. Compare each pair of circuits: the Jaccard index of their edges, and that of their heads and MLPs.
3. Take the mean over the pairs, with a 95% interval over the *runs*: the jackknife, which leaves out one run
   at a time, with Student's t. Pairs that share a run are not independent, so an interval over pairs would be
   too narrow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from circuitdiscovery.arguments import guarded
from circuitdiscovery.circuit.checks import check_same_graph
from circuitdiscovery.circuit.circuit import Circuit
from circuitdiscovery.circuit.comparison import Overlap, compare
from circuitdiscovery.engine.setup import Progress
from circuitdiscovery.errors import CircuitDiscoveryError, unknown
from circuitdiscovery.files.fields import exactly, typed
from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.measure.estimates import Estimate
from circuitdiscovery.measure.intervals import mean_over_pairs
from circuitdiscovery.model.model import Model
from circuitdiscovery.task.task import Task
from circuitdiscovery.values import Reported

OVER: Mapping[str, str] = {  # what is changed from run to run, in words
    "examples": "the task's examples drawn with replacement, as many",
    "seeds": "other seeds",
    "order": "other orders of the edges",
}
_FEWEST = 5  # runs; with fewer, 95% intervals cover less than that (docs/coverage.md)


@dataclass(frozen=True, eq=False, repr=False)
class Stability(Reported):
    """How far the circuits of several runs agree. Pairs are in the order of `itertools.combinations`.

    Args:
        over: what was changed from run to run.
        circuits: [runs], the circuit of each run.
        edge_jaccards: [runs (runs - 1) / 2], the Jaccard index of the edges of each pair of circuits; 1 if
            both have none.
        node_jaccards: the same for their heads and MLPs.
        edge_jaccard: the mean of `edge_jaccards`, with its interval over the runs.
        node_jaccard: the mean of `node_jaccards`, likewise.
        share: [sources, receivers], the share of the runs that found each edge.
    """

    over: str
    circuits: tuple[Circuit, ...]
    edge_jaccards: np.ndarray
    node_jaccards: np.ndarray
    edge_jaccard: Estimate
    node_jaccard: Estimate
    share: np.ndarray

    @property
    def runs(self) -> int:
        """The number of runs."""
        return len(self.circuits)

    @property
    def in_all(self) -> Circuit:
        """The edges that every run found."""
        return Circuit(self.circuits[0].graph, self.share == 1)

    @property
    def in_any(self) -> Circuit:
        """The edges that at least one run found; the score of each is the share of the runs that found it."""
        return Circuit(self.circuits[0].graph, self.share > 0, self.share)

    def to_dict(self) -> dict[str, Any]:
        """All figures, the share of each edge that was found, and the circuits, as JSON."""
        found = self.in_any
        return {
            "over": self.over,
            "runs": self.runs,
            "sizes": [len(circuit) for circuit in self.circuits],
            "edge_jaccard": self.edge_jaccard.to_dict() | {"pairs": self.edge_jaccards.tolist()},
            "node_jaccard": self.node_jaccard.to_dict() | {"pairs": self.node_jaccards.tolist()},
            "in_all": len(self.in_all),
            "in_any": len(found),
            "share": dict(zip(found.edges, self.share[found.mask].tolist(), strict=True)),
            "circuits": [circuit.to_dict() for circuit in self.circuits],
        }

    @classmethod
    def from_dict(cls, data: Any, where: str = "stability") -> Stability:
        """Read what `to_dict` gave; the figures are recomputed from the circuits and compared.

        Args:
            data: the JSON value.
            where: what errors call it.

        Raises:
            CircuitDiscoveryError: a field that is missing or of another type, or figures that are not those
                of the circuits; names the field.
        """
        fields = (
            "over",
            "runs",
            "sizes",
            "edge_jaccard",
            "node_jaccard",
            "in_all",
            "in_any",
            "share",
            "circuits",
        )
        exactly(data, fields, where)
        if typed(data["over"], str, where, "over") not in OVER:
            raise CircuitDiscoveryError(f"{where}: {unknown('over', data['over'], OVER, plural='values')}")
        typed(data["circuits"], list, where, "circuits")
        read = [Circuit.from_dict(each, where, f"circuits.{i}") for i, each in enumerate(data["circuits"])]
        if len(read) < _FEWEST:
            raise CircuitDiscoveryError(
                f"{where}: field 'circuits' must hold at least {_FEWEST}, not {len(read)}"
            )
        for other in read[1:]:
            check_same_graph(read[0], other)
        found = _measured(data["over"], tuple(read))
        for name, value in found.to_dict().items():
            if value != data[name]:
                raise CircuitDiscoveryError(f"{where}: field {name!r} is not that of its circuits")
        return found

    def _lines(self) -> Iterator[tuple[str, str]]:
        sizes = [len(circuit) for circuit in self.circuits]
        yield "searched", f"{self.runs} times: {OVER[self.over]}"
        yield "circuits", f"{min(sizes):,} to {max(sizes):,} edges of {len(self.circuits[0].graph):,}"
        for name, mean, pairs in (
            ("edges", self.edge_jaccard, self.edge_jaccards),
            ("nodes", self.node_jaccard, self.node_jaccards),
        ):
            yield (
                name,
                f"mean Jaccard {mean} of {len(pairs)} pairs, from {pairs.min():.3g} to {pairs.max():.3g}",
            )
        yield "in every run", f"{len(self.in_all):,} of the {len(self.in_any):,} edges that any run found"


@guarded
def stability(
    search: Callable[..., Circuit],
    model: Model,
    task: Task,
    *,
    over: str = "examples",
    runs: int = 10,
    graph: Graph | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Stability:
    """Run a search several times with one thing changed, and measure how far the circuits agree.

    Args:
        search: called as `search(model, task, **options)`; returns a circuit.
        model: given to the search.
        task: the search runs on its examples; held-out examples are not used.
        over: what changes from run to run. `examples`: each run gets a bootstrap draw of the task's examples,
            and no options. `seeds`: each run gets the whole task and the option `seed`, counted from `seed`,
            for the scores or for a task of its own, such as `lambda model, task, seed: cd.acdc(model,
            cd.load_task("ioi", model, seed=seed), threshold=0.002)`. `order`: each run gets the whole task
            and the option `order`, counted from `seed`, which `acdc` takes.
        runs: the number of runs, at least 5; ten give 45 pairs.
        graph: where nodes are split into parts (`split`), whose edges: each run gets it as the option
            `graph`, which every search takes.
        seed: of the draws, and the first seed or order.
        progress: called with (runs done, runs); True shows a bar.

    Returns:
        The circuits, their Jaccard indices, and how often each edge was found.

    Raises:
        CircuitDiscoveryError: an unknown `over`; fewer than five runs; fewer than two examples to draw
            from; a search that does not return a circuit, or returns circuits of different graphs.

    >>> import circuitdiscovery as cd
    >>> model = cd.load_model("toy")
    >>> task = cd.load_task("ioi", model, examples=4)
    >>> found = stability(lambda model, task: cd.eap(model, task).top(20), model, task, runs=5)
    >>> found.runs, len(found.edge_jaccards), len(found.in_all) <= 20 <= len(found.in_any)
    (5, 10, True)
    """
    if over not in OVER:
        raise unknown("over", over, OVER, plural="values")
    if type(runs) is not int or runs < _FEWEST:
        raise CircuitDiscoveryError(f"runs must be a whole number of at least {_FEWEST}, not {runs!r}")
    if over == "examples" and len(task) < 2:
        raise CircuitDiscoveryError(
            f"over='examples' needs at least 2 examples, not {len(task)}: valid here are 'seeds' and 'order'"
        )
    circuits: list[Circuit] = []
    for run in range(runs):
        some, options = _changed(task, over, seed, run)
        circuits.append(_found(search, model, some, options if graph is None else options | {"graph": graph}))
        if graph is not None and circuits[-1].graph != graph:
            raise CircuitDiscoveryError("the search must return a circuit of the graph that it is given")
        check_same_graph(circuits[0], circuits[-1])
        if progress:
            progress(run + 1, runs)
    return _measured(over, tuple(circuits))


def _changed(task: Task, over: str, seed: int, run: int) -> tuple[Task, dict[str, Any]]:
    """The task and the options of one run."""
    if over == "examples":
        rows = np.random.default_rng((seed, run)).integers(len(task), size=len(task))
        return task.subset(np.sort(rows).tolist()), {}
    return task, {"seed" if over == "seeds" else "order": seed + run}


def _found(search: Callable[..., Circuit], model: Model, task: Task, options: Mapping[str, Any]) -> Circuit:
    circuit = search(model, task, **options)
    if not isinstance(circuit, Circuit):
        raise CircuitDiscoveryError(
            f"the search must return a Circuit, such as scores.top(100), not {type(circuit).__name__}"
        )
    return circuit


def _measured(over: str, circuits: tuple[Circuit, ...]) -> Stability:
    compared = [compare(a, b) for a, b in combinations(circuits, 2)]
    edges, nodes = _jaccards([each.edges for each in compared]), _jaccards([each.nodes for each in compared])
    of_edges, of_nodes = (mean_over_pairs(values, len(circuits)) for values in (edges, nodes))
    share = np.mean([circuit.mask for circuit in circuits], axis=0)
    for array in (edges, nodes, share):
        array.flags.writeable = False
    return Stability(over, circuits, edges, nodes, of_edges, of_nodes, share)


def _jaccards(overlaps: Sequence[Overlap]) -> np.ndarray:
    """Two empty sets are the same set."""
    return np.array([1.0 if each.jaccard is None else each.jaccard for each in overlaps])
