"""The best one-to-one alignment of the nodes of two circuits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from circuitdiscovery.graph.nodes import parsed
from circuitdiscovery.universality.views import Views


@dataclass(frozen=True)
class Pair:
    """Two nodes that were aligned.

    Args:
        a, b: their names.
        similarity: the mean of the views but depth, from 0 to 1; where there is no other, the depth.
        views: each of them that is known of both.
    """

    a: str
    b: str
    similarity: float
    views: Mapping[str, float]


def align(a: Views, b: Views, by: Sequence[str]) -> tuple[Pair, ...]:
    """The one-to-one alignment of heads with heads and MLPs with MLPs whose similarities have the largest sum
    (scipy's linear_sum_assignment); of the larger circuit some nodes stay without a partner.
    """
    from scipy.optimize import linear_sum_assignment

    found = list[Pair]()
    for kind in ("head", "mlp"):
        rows, columns = (
            [i for i, node in enumerate(each.nodes) if parsed(node).kind == kind] for each in (a, b)
        )
        if not rows or not columns:
            continue
        known = similarities(a, b, rows, columns, by)
        mean = _mean([each for name, each in known.items() if name != "depth"], known["depth"])
        chosen = linear_sum_assignment(mean + 1e-9 * known["depth"], maximize=True)  # ties by depth
        for i, j in zip(*(each.tolist() for each in chosen), strict=True):
            its = {name: float(each[i, j]) for name, each in known.items() if not np.isnan(each[i, j])}
            found.append(Pair(a.nodes[rows[i]], b.nodes[columns[j]], float(mean[i, j]), its))
    order = {node: i for i, node in enumerate(a.nodes)}
    return tuple(sorted(found, key=lambda pair: order[pair.a]))


def similarities(
    a: Views, b: Views, rows: Sequence[int], columns: Sequence[int], by: Sequence[str]
) -> dict[str, np.ndarray]:
    """[rows, columns] of each view, from 0 to 1, NaN where it is not known of both; `depth` always.

    role: the Jaccard index of two nodes' roles, where one of them has any. attention: the cosine of what is
    measured of both. activation: the CKA, 0 where it is negative. depth: 1 - the difference of the relative
    depths; it counts for a pair of which no other view is known, and between equals.
    """
    found = {"depth": 1 - np.abs(a.depth[rows, None] - b.depth[None, columns])}
    names, others = [a.nodes[i] for i in rows], [b.nodes[j] for j in columns]
    if "role" in by:
        found["role"] = np.array([[_jaccard(a.roles[x], b.roles[y]) for y in others] for x in names])
    if "attention" in by and all(name in a.attention for name in names):
        found["attention"] = _cosines([a.attention[x] for x in names], [b.attention[y] for y in others])
    if "activation" in by and a.activation is not None and b.activation is not None:
        cka = a.activation[rows] @ b.activation[columns].T
        found["activation"] = np.clip(cka.astype(float), 0, 1)
    return found


def _jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    return len(a & b) / len(a | b) if a | b else np.nan


def _cosines(a: Sequence[Mapping[str, float]], b: Sequence[Mapping[str, float]]) -> np.ndarray:
    common = [name for name in a[0] if name in b[0]]
    x, y = (np.array([[each[name] for name in common] for each in side]) for side in (a, b))
    x, y = (each / np.maximum(np.linalg.norm(each, axis=1, keepdims=True), 1e-12) for each in (x, y))
    return np.clip(x @ y.T, 0, 1)


def _mean(known: Sequence[np.ndarray], otherwise: np.ndarray) -> np.ndarray:
    """Of what is known of each pair; the other where nothing is."""
    stacked = np.stack([*known, np.full_like(otherwise, np.nan)])
    there = (~np.isnan(stacked)).sum(0)
    return np.where(there > 0, np.nansum(stacked, axis=0) / np.maximum(1, there), otherwise)
