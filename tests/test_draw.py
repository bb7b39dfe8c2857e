"""Pictures: every edge is there, styled by its score, in rows; the files are whole and always the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pygraphviz
import pytest

from circuitdiscovery.circuit import Circuit, Scores
from circuitdiscovery.draw import CROWDED, FAINT, HELPS, HURTS, ROLE_COLOURS, draw, to_dot
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.graph import Graph, letter_of, node_of

GRAPH = Graph(n_layers=4, n_heads=4, n_kv_heads=4)
GROUPED = Graph(n_layers=2, n_heads=4, n_kv_heads=2)
INFO = {"model": {"name": "toy<1>", "digest": "0"}, "task": "ioi", "method": "eap"}


def scored(graph: Graph, seed: int = 0) -> Scores:
    return Scores(graph, np.random.default_rng(seed).normal(size=graph.allowed.shape), INFO)


def parsed(dot: str) -> Any:
    """As Graphviz reads it. Keep it in a variable: its nodes and edges live no longer than it."""
    return pygraphviz.AGraph(dot)


def drawn_edges(dot: str) -> list[tuple[str, str, str]]:
    """(source, reader, letter) of every edge, as Graphviz itself parses the DOT."""
    picture = parsed(dot)
    found = []
    for edge in picture.edges():
        if edge.attr["style"] not in ("invis", "dashed"):
            port = (edge.attr["headport"] or "").split(":")[0]
            found.append((edge[0], edge[1], port if port in ("q", "k", "v") else ""))
    return found


@pytest.mark.parametrize("graph", [GRAPH, GROUPED, Graph(2, 3, 3, split_qkv=False), Graph(2, 3, 3, has_mlp=False)], ids=str)
def test_graphviz_reads_every_edge_with_its_letter(graph: Graph) -> None:
    circuit = scored(graph).top(30)
    expected = [(edge.split("->")[0], node_of(edge.split("->")[1]), letter_of(edge.split("->")[1])) for edge in circuit.edges]
    assert sorted(drawn_edges(to_dot(circuit))) == sorted(expected)


def _heights(dot: str) -> dict[str, float]:
    picture = parsed(dot)
    picture.layout(prog="dot")
    return {str(node): float(node.attr["pos"].split(",")[1]) for node in picture.nodes()}


def test_input_is_at_the_bottom_logits_at_the_top_and_layers_in_rows() -> None:
    y = _heights(to_dot(scored(GRAPH).top(80)))
    rows = [["input"], *([f"a{layer}.h0", f"m{layer}"] for layer in range(4)), ["logits"]]
    order = [name for row in rows for name in row if name in y]
    assert len(order) > 8 and [y[name] for name in order] == sorted(y[name] for name in order)
    for layer in range(4):
        assert len({y[name] for name in y if name.startswith(f"a{layer}.")}) == 1
    assert y["input"] == min(y.values()) and y["logits"] == max(y.values())


def _styles(circuit: Circuit, scores: Scores | None = None) -> dict[str, tuple[str, float]]:
    picture = parsed(to_dot(circuit, scores=scores))
    kept = (edge for edge in picture.edges() if edge.attr["tooltip"])
    return {edge.attr["tooltip"].split()[0]: (edge.attr["color"][:7], float(edge.attr["penwidth"])) for edge in kept}


def test_width_follows_magnitude_and_colour_the_sign() -> None:
    scores = scored(GRAPH)
    styles = _styles(scores.top(300))
    by_magnitude = sorted(styles, key=lambda edge: abs(scores[edge]))
    widths = [styles[edge][1] for edge in by_magnitude]
    assert widths == sorted(widths) and widths[-1] > 2 * widths[0]
    assert {edge: colour for edge, (colour, _) in styles.items()} == {edge: HELPS if scores[edge] > 0 else HURTS for edge in styles}


def test_scores_given_replace_those_carried() -> None:
    circuit, other = scored(GRAPH).top(20), scored(GRAPH, 5)
    assert {edge: colour == HELPS for edge, (colour, _) in _styles(circuit, scores=other).items()} == {
        e: other[e] > 0 for e in circuit.edges
    }
    unscored = {colour for colour, _ in _styles(Circuit.from_edges(GRAPH, circuit.edges)).values()}
    assert len(unscored) == 1 and not unscored & {HELPS, HURTS}
    with pytest.raises(CircuitDiscoveryError, match="different graphs"):
        to_dot(circuit, scores=scored(GROUPED))


def test_heads_and_mlps_differ_and_roles_colour_them() -> None:
    circuit = Circuit.from_edges(GRAPH, ["input->a0.h1<v>", "a0.h1->m1", "a0.h2->m1", "m1->logits"])
    roles = {"mover": ["a0.h1", "a3.h3"], "reader & writer": ["m1"], "absent": ["a2.h0"]}
    picture = parsed(to_dot(circuit, roles=roles))
    nodes = {str(node): node.attr for node in picture.nodes()}
    assert nodes["m1"]["shape"] != nodes["a0.h1"]["shape"]
    assert ROLE_COLOURS[0] in nodes["a0.h1"]["label"] and nodes["m1"]["fillcolor"] == ROLE_COLOURS[1]
    assert not any(colour in nodes["a0.h2"]["label"] for colour in ROLE_COLOURS)
    heading = picture.graph_attr["label"]
    assert "mover" in heading and "reader &amp; writer" in heading and "absent" not in heading
    with pytest.raises(CircuitDiscoveryError, match=r"role 'x': no node 'a9\.h9'"):
        to_dot(circuit, roles={"x": ["a9.h9"]})


def test_the_circuits_own_roles_are_the_default() -> None:
    circuit = Circuit(GRAPH, GRAPH.mask(["input->m0", "m0->logits"]), info={"roles": {"early": ["m0"]}})
    assert "early" in to_dot(circuit) and "early" not in to_dot(circuit, roles={})


def test_the_title_says_what_and_how_many() -> None:
    picture = parsed(to_dot(scored(GRAPH).top(48)))
    label = picture.graph_attr["label"]
    assert "toy&lt;1&gt; · ioi · eap" in label and "48 of 479 edges (10.0%)" in label


def test_a_groups_box_is_tied_to_its_heads() -> None:
    circuit = Circuit.from_edges(GROUPED, ["input->a0.kv1<k>", "a0.h2->logits", "a0.h1->logits"])
    picture = parsed(to_dot(circuit))
    assert [(edge[0], edge[1]) for edge in picture.edges() if edge.attr["color"] == FAINT] == [("a0.kv1", "a0.h2")]


@pytest.mark.parametrize(("suffix", "magic"), [("svg", b"<?xml"), ("png", b"\x89PNG\r\n"), ("pdf", b"%PDF"), ("dot", b"digraph")])
def test_formats_go_by_suffix(tmp_path: Path, suffix: str, magic: bytes) -> None:
    scored(GRAPH).top(20).draw(tmp_path / f"c.{suffix}")
    assert (tmp_path / f"c.{suffix}").read_bytes().startswith(magic)
    assert [path.name for path in tmp_path.iterdir()] == [f"c.{suffix}"]


@pytest.mark.parametrize("name", ["c.jpg", "c", "c.svg.txt"])
def test_another_suffix_is_refused_before_anything_is_drawn(tmp_path: Path, name: str) -> None:
    with pytest.raises(CircuitDiscoveryError, match=r"must end in \.svg, \.png, \.pdf or \.dot"):
        draw(Circuit.full(GRAPH), tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("n", [30, CROWDED + 1])
def test_svg_shows_every_node_and_edge_once(tmp_path: Path, n: int) -> None:
    circuit = scored(GRAPH).top(n)
    circuit.draw(tmp_path / "c.svg")
    root = ElementTree.parse(tmp_path / "c.svg").getroot()
    texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    for node in circuit.nodes:
        assert texts.count(node) == 1
    tips = [a.get("{http://www.w3.org/1999/xlink}title", "").split(" ")[0] for a in root.iter("{http://www.w3.org/2000/svg}a")]
    assert set(circuit.edges) <= set(tips)


def test_dot_and_svg_are_the_same_in_every_process(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_draw import *\n"
        "c = scored(GRAPH).top(40)\n"
        "c.draw(sys.argv[2] + '.svg', roles={'b': ['m1', 'm0'], 'a': ['a0.h1']}); c.draw(sys.argv[2] + '.dot')"
    )
    said = []
    for seed in ("1", "2"):
        command = [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path / seed)]
        said.append(subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": seed}, check=True, capture_output=True).stderr)
    for suffix in ("svg", "dot"):
        assert (tmp_path / f"1.{suffix}").read_bytes() == (tmp_path / f"2.{suffix}").read_bytes()
    assert said == [b"", b""]  # nothing about the system's fonts


def test_the_empty_circuit_can_be_drawn(tmp_path: Path) -> None:
    Circuit.empty(GRAPH).draw(tmp_path / "c.svg")
    assert b"0 of 479 edges" in (tmp_path / "c.svg").read_bytes()
