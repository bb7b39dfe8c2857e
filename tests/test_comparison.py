"""Overlaps by hand, and ROC areas against the figures that the ACDC paper printed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from circuitdiscovery.circuit.circuit import Circuit
from circuitdiscovery.circuit.comparison import compare, pessimistic_auc, trapezoid_auc
from circuitdiscovery.circuit.scores import Scores
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.graph.graph import Graph

GRAPH = Graph(n_layers=2, n_heads=2, n_kv_heads=2)


def circuit(*edges: str) -> Circuit:
    return Circuit.from_edges(GRAPH, edges)


def test_the_second_circuit_is_the_reference() -> None:
    found = circuit("input->m0", "m0->logits", "a0.h0->logits", "input->a0.h0<v>")
    reference = circuit("input->m0", "m0->logits", "m1->logits")
    result = compare(found, reference)
    assert (result.edges.precision, result.edges.recall, result.edges.jaccard) == (2 / 4, 2 / 3, 2 / 5)
    # heads and MLPs: m0, a0.h0 against m0, m1
    assert (result.nodes.precision, result.nodes.recall, result.nodes.jaccard) == (1 / 2, 1 / 2, 1 / 3)
    assert compare(reference, found).edges.precision == 2 / 3
    assert result.auc_pessimistic is None


def test_what_is_0_of_0_is_none() -> None:
    result = compare(circuit(), circuit())
    assert (result.edges.precision, result.edges.recall, result.edges.jaccard) == (None, None, None)
    assert compare(circuit(), circuit("input->m0")).edges.recall == 0
    assert json.loads(json.dumps(result.to_dict()))["nodes"]["precision"] is None
    assert "-" in str(result)


def test_print_and_dict_give_every_figure() -> None:
    values = np.zeros(GRAPH.allowed.shape)
    values[GRAPH.index("input->m0")] = 1
    result = compare(circuit("input->m0"), circuit("input->m0", "m0->logits"), scores=Scores(GRAPH, values))
    said = result.to_dict()
    assert said["edges"] == {
        "found": 1,
        "reference": 2,
        "common": 1,
        "precision": 1.0,
        "recall": 0.5,
        "jaccard": 0.5,
    }
    assert said["total_edges"] == len(GRAPH)
    for figure in (
        "1.000",
        "0.500",
        f"{said['auc_pessimistic']:.3f}",
        f"{said['auc_trapezoid']:.3f}",
        str(len(GRAPH)),
    ):
        assert figure in str(result)


def test_circuits_of_different_graphs_are_refused() -> None:
    other = Graph(n_layers=3, n_heads=1, n_kv_heads=1)
    with pytest.raises(
        CircuitDiscoveryError, match=r"different graphs: .*2 layers of 2 heads.*3 layers of 1 heads"
    ):
        compare(circuit(), Circuit.full(other))
    with pytest.raises(CircuitDiscoveryError, match="different graphs"):
        compare(circuit(), circuit(), scores=Scores(other, np.zeros(other.allowed.shape)))


def test_pessimistic_area_reproduces_the_published_figures(shared: Path) -> None:
    """Table of Conmy et al. 2023, edges: every figure that it prints
    for curves whose points were published."""
    text = (shared / "data" / "acdc_roc_points.json").read_text("utf-8")
    curves = [curve for curve in json.loads(text) if curve["published_edge_auc"] is not None]
    assert len(curves) == 6
    for curve in curves:
        area = pessimistic_auc(curve["edge_fpr"], curve["edge_tpr"])
        assert round(area, 3) == curve["published_edge_auc"], curve["task"]


def test_a_trapezoid_gives_ioi_another_figure(shared: Path) -> None:
    """.869 by the pessimistic rule is .886 by the trapezoid (the reference's note on the ACDC paper)."""
    curves = json.loads((shared / "data" / "acdc_roc_points.json").read_text("utf-8"))
    [ioi] = [curve for curve in curves if curve["published_edge_auc"] == 0.869]
    x, y = np.array(ioi["edge_fpr"]), np.array(ioi["edge_tpr"])
    pareto = np.array([not any((x <= a) & (y >= b) & ((x < a) | (y > b))) for a, b in zip(x, y, strict=True)])
    assert trapezoid_auc(x[pareto], y[pareto]) == pytest.approx(0.886, abs=5e-4)


def test_areas_by_hand() -> None:
    assert pessimistic_auc([0.25], [0.5]) == 0.5 * 0.75
    assert trapezoid_auc([0.25], [0.5]) == 0.25 * 0.5 / 2 + 0.75 * 0.75
    assert pessimistic_auc([0.5, 0.25], [0.4, 0.5]) == 0.5 * 0.75  # a point below the curve adds nothing
    assert pessimistic_auc([0.0], [1.0]) == trapezoid_auc([0.0], [1.0]) == 1.0
    assert pessimistic_auc([], []) == 0.0 and trapezoid_auc([], []) == 0.5


def _scores(ranked: list[tuple[str, float]]) -> Scores:
    values = np.zeros(GRAPH.allowed.shape)
    for edge, score in ranked:
        values[GRAPH.index(edge)] = score
    return Scores(GRAPH, values)


def test_area_of_scores_is_the_chance_to_rank_an_edge_of_the_reference_higher() -> None:
    """The trapezoid area is the Mann-Whitney statistic, ties counting half;
    the pessimistic one counts ties as lost.
    """
    rng = np.random.default_rng(0)
    scores = Scores(GRAPH, rng.integers(-6, 7, GRAPH.allowed.shape).astype(float))
    reference = Circuit(GRAPH, GRAPH.allowed & (rng.random(GRAPH.allowed.shape) < 0.3))
    positive = np.abs([scores[edge] for edge in reference.edges])
    negative = np.abs([scores[edge] for edge in GRAPH.edges if edge not in reference])
    wins = (positive[:, None] > negative).mean()
    result = compare(reference, reference, scores=scores)
    assert result.auc_trapezoid == pytest.approx(wins + 0.5 * (positive[:, None] == negative).mean())
    assert result.auc_pessimistic == pytest.approx(wins)


def test_scores_rank_by_magnitude_unless_signed() -> None:
    reference = circuit("input->m0")
    scores = _scores([("input->m0", -2.0), ("m0->logits", 1.0)])
    assert compare(reference, reference, scores=scores).auc_pessimistic == 1.0
    assert compare(reference, reference, scores=scores, absolute=False).auc_pessimistic == 0.0


@pytest.mark.parametrize("reference", [Circuit.empty(GRAPH), Circuit.full(GRAPH)])
def test_no_area_without_edges_of_both_kinds(reference: Circuit) -> None:
    result = compare(reference, reference, scores=_scores([]))
    assert result.auc_pessimistic is None and result.auc_trapezoid is None
