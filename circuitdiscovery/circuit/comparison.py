"""How far a circuit agrees with a reference: precision, recall, Jaccard, and the ROC of its scores.

The literature uses two rules for the area under a ROC curve: *pessimistic* (Conmy et al. 2023, arXiv
2304.14997: the lower staircase through the Pareto points) and *trapezoid* (straight lines between points).
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from circuitdiscovery.arguments import guarded
from circuitdiscovery.circuit.checks import check_same_graph
from circuitdiscovery.circuit.circuit import Circuit
from circuitdiscovery.circuit.scores import Scores
from circuitdiscovery.values import Value, plain, table


@dataclass(frozen=True)
class Overlap:
    """The sizes of two sets, `found` and `reference`, and of what they have in `common`.

    A ratio is None if it is 0/0.
    """

    found: int
    reference: int
    common: int

    @classmethod
    def of(cls, a: Set[str], b: Set[str]) -> Overlap:
        """The overlap of two sets of names."""
        return cls(len(a), len(b), len(a & b))

    @property
    def precision(self) -> float | None:
        """The share of what was found that is in the reference."""
        return _ratio(self.common, self.found)

    @property
    def recall(self) -> float | None:
        """The share of the reference that was found."""
        return _ratio(self.common, self.reference)

    @property
    def jaccard(self) -> float | None:
        """The size of the intersection over that of the union."""
        return _ratio(self.common, self.found + self.reference - self.common)

    def to_dict(self) -> dict[str, Any]:
        """Counts and ratios, as JSON."""
        return asdict(self) | {"precision": self.precision, "recall": self.recall, "jaccard": self.jaccard}


@dataclass(frozen=True, repr=False)
class Comparison(Value):
    """How far a circuit agrees with a reference.

    Args:
        edges: the overlap of their edges: `found`, `reference` and `common` counts, `precision`, `recall`
            and `jaccard`.
        nodes: the overlap of their heads and MLPs, or the parts of those that are split (`input` and `logits`
            are in almost every circuit).
        total_edges: the number of edges in the graph.
        auc_pessimistic: area under the ROC of the edges by the lower staircase; None without scores, or if
            the reference has no edges or all edges.
        auc_trapezoid: the same by straight lines.
        auc_nodes_pessimistic, auc_nodes_trapezoid: the same for heads and MLPs, scored as in
            `Scores.by_node`.
    """

    edges: Overlap
    nodes: Overlap
    total_edges: int
    auc_pessimistic: float | None = None
    auc_trapezoid: float | None = None
    auc_nodes_pessimistic: float | None = None
    auc_nodes_trapezoid: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """All figures, as JSON."""
        return plain(self) | {"edges": self.edges.to_dict(), "nodes": self.nodes.to_dict()}

    def _repr_html_(self) -> str:
        """A row for edges and one for nodes."""
        parts = {"edges": self.edges, "nodes": self.nodes}
        rows = [
            (
                name,
                part.found,
                part.reference,
                part.common,
                *map(_shown, (part.precision, part.recall, part.jaccard)),
            )
            for name, part in parts.items()
        ]
        head = ("", "found", "reference", "common", "precision", "recall", "Jaccard")
        return table(rows, head=head, note="; ".join(str(self).splitlines()[3:]))

    def __str__(self) -> str:
        rows = [
            (
                f"{'':6} {'found':>6} {'reference':>9} {'common':>6} {'precision':>9} {'recall':>6} "
                f"{'Jaccard':>7}"
            )
        ]
        for name, part in (("edges", self.edges), ("nodes", self.nodes)):
            ratios = f"{_shown(part.precision):>9} {_shown(part.recall):>6} {_shown(part.jaccard):>7}"
            rows.append(f"{name:6} {part.found:6} {part.reference:9} {part.common:6} {ratios}")
        rows.append(f"of {self.total_edges:,} edges in all; nodes are heads and MLPs")
        if self.auc_pessimistic is not None:
            rows.append(
                f"ROC AUC of the scores, edges: {_shown(self.auc_pessimistic)} pessimistic, "
                f"{_shown(self.auc_trapezoid)} trapezoid"
            )
        if self.auc_nodes_pessimistic is not None:
            both = (
                f"{_shown(self.auc_nodes_pessimistic)} pessimistic, "
                f"{_shown(self.auc_nodes_trapezoid)} trapezoid"
            )
            rows.append(f"ROC AUC of the scores, nodes: {both}")
        return "\n".join(rows)


@guarded
def compare(a: Circuit, b: Circuit, *, scores: Scores | None = None, absolute: bool = True) -> Comparison:
    """Compare a circuit with a reference of the same graph.

    Args:
        a: the circuit that was found.
        b: the reference.
        scores: the scores that `a` was taken from; with them the ROC AUC against `b` is computed.
        absolute: rank edges by |score|, as `scores.top` does, else by score.

    Returns:
        Counts, precision, recall and Jaccard of edges and of nodes, and with scores the ROC AUC.

    Raises:
        CircuitDiscoveryError: circuits or scores of different graphs; names both.

    >>> from circuitdiscovery.graph.graph import Graph
    >>> graph = Graph(n_layers=1, n_heads=1, n_kv_heads=1)
    >>> result = compare(Circuit.full(graph), Circuit.from_edges(graph, ["input->m0", "m0->logits"]))
    >>> result.edges.recall, result.nodes.precision
    (1.0, 0.5)
    """
    check_same_graph(a, b)
    points: dict[str, float | None] = {}
    if scores is not None:
        check_same_graph(scores, b)
        points = _areas(scores, b, absolute)
    edges = Overlap(len(a), len(b), int((a.mask & b.mask).sum()))
    return Comparison(edges, Overlap.of(components(a), components(b)), len(a.graph), **points)


def pessimistic_auc(fpr: ArrayLike, tpr: ArrayLike) -> float:
    """The area under the lower staircase through the Pareto points of [n] ROC points, with (0, 0) and (1, 1).

    Sort by FPR, then TPR; keep the points whose TPR exceeds all earlier ones; sum (1 - FPR) times the rise.

    >>> pessimistic_auc([0.5], [1.0]), trapezoid_auc([0.5], [1.0])
    (0.5, 0.75)
    """
    x, y = _with_corners(fpr, tpr)
    rise = np.diff(np.maximum.accumulate(y), prepend=0.0)
    return float(((1 - x) * rise).sum())


def trapezoid_auc(fpr: ArrayLike, tpr: ArrayLike) -> float:
    """The area under straight lines between [n] ROC points, sorted by
    FPR, then TPR, with (0, 0) and (1, 1)."""
    x, y = _with_corners(fpr, tpr)
    return float((np.diff(x) * (y[1:] + y[:-1]) / 2).sum())


def roc(values: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """([points] false, [points] true positive rates) of [n] values against [n] bool; ties enter together.

    Neither has a rate where all, or none, are positive (see `rated`).

    >>> fpr, tpr = roc(np.array([3.0, 2.0, 1.0]), np.array([True, False, True]))
    >>> fpr.tolist(), tpr.tolist()
    ([0.0, 1.0, 1.0], [0.5, 0.5, 1.0])
    """
    order = np.argsort(-values, kind="stable")
    ends = np.flatnonzero(np.diff(values[order], append=np.nan) != 0)
    return np.cumsum(~positive[order])[ends] / (~positive).sum(), np.cumsum(positive[order])[
        ends
    ] / positive.sum()


def rated(positive: np.ndarray) -> bool:
    """Whether true and false positives have rates: some of [n] bool are positive, and not all."""
    return bool(positive.any() and not positive.all())


def _areas(scores: Scores, reference: Circuit, absolute: bool) -> dict[str, float | None]:
    allowed, sources = scores.graph.allowed, scores.graph.inner
    members, by_node = components(reference), scores.by_node()
    levels = {
        "auc": (scores.values[allowed], reference.mask[allowed]),
        "auc_nodes": (
            np.array([by_node[name] for name in sources]),
            np.array([name in members for name in sources]),
        ),
    }
    found: dict[str, float | None] = {}
    for level, (values, positive) in levels.items():
        if rated(positive):
            points = roc(np.abs(values) if absolute else values, positive)
            found |= {
                f"{level}_pessimistic": pessimistic_auc(*points),
                f"{level}_trapezoid": trapezoid_auc(*points),
            }
    return found


def _with_corners(fpr: ArrayLike, tpr: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.append(np.asarray(fpr, dtype=float), [0, 1]), np.append(np.asarray(tpr, dtype=float), [0, 1])
    order = np.lexsort((y, x))
    return x[order], y[order]


def components(circuit: Circuit) -> set[str]:
    """Its heads and MLPs; of those that are split, their parts."""
    return set(circuit.nodes) & set(circuit.graph.inner)


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
