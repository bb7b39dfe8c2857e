"""Pictures: every edge is there, styled by its score, in rows; the files are whole and always the same."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pygraphviz
import pytest

from circuitdiscovery.circuit.circuit import Circuit
from circuitdiscovery.circuit.draw import FAINT, HELPS, HURTS, ROLE_COLOURS, draw, to_dot, to_svg
from circuitdiscovery.circuit.layout import CROWDED, layout, strongest_paths
from circuitdiscovery.circuit.numbers import number
from circuitdiscovery.circuit.render import render
from circuitdiscovery.circuit.scores import Scores
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.graph.nodes import letter_of, node_of

GRAPH = Graph(n_layers=4, n_heads=4, n_kv_heads=4)
GROUPED = Graph(n_layers=2, n_heads=4, n_kv_heads=2)
DEEP = Graph(n_layers=30, n_heads=9, n_kv_heads=3)
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


@pytest.mark.parametrize(
    "graph", [GRAPH, GROUPED, Graph(2, 3, 3, split_qkv=False), Graph(2, 3, 3, has_mlp=False)], ids=str
)
def test_graphviz_reads_every_edge_with_its_letter(graph: Graph) -> None:
    circuit = scored(graph).top(30)
    expected = [
        (edge.split("->")[0], node_of(edge.split("->")[1]), letter_of(edge.split("->")[1]))
        for edge in circuit.edges
    ]
    assert sorted(drawn_edges(to_dot(circuit))) == sorted(expected)


def _heights(dot: str) -> dict[str, float]:
    picture = parsed(dot)
    picture.layout(prog="dot")
    return {str(node): float(node.attr["pos"].split(",")[1]) for node in picture.nodes()}


def test_input_is_at_the_bottom_logits_at_the_top_and_layers_in_rows() -> None:
    y = _heights(to_dot(scored(GRAPH).top(80), max_edges=None))
    rows = [["input"], *([f"a{layer}.h0", f"m{layer}"] for layer in range(4)), ["logits"]]
    order = [name for row in rows for name in row if name in y]
    assert len(order) > 8 and [y[name] for name in order] == sorted(y[name] for name in order)
    for layer in range(4):
        assert len({y[name] for name in y if name.startswith(f"a{layer}.")}) == 1
    assert y["input"] == min(y.values()) and y["logits"] == max(y.values())


def _styles(circuit: Circuit, scores: Scores | None = None) -> dict[str, tuple[str, float]]:
    picture = parsed(to_dot(circuit, scores=scores, max_edges=None))
    kept = (edge for edge in picture.edges() if edge.attr["tooltip"])
    return {
        edge.attr["tooltip"].split()[0]: (edge.attr["color"][:7], float(edge.attr["penwidth"]))
        for edge in kept
    }


def test_width_follows_magnitude_and_colour_the_sign() -> None:
    scores = scored(GRAPH)
    styles = _styles(scores.top(300))
    by_magnitude = sorted(styles, key=lambda edge: abs(scores[edge]))
    widths = [styles[edge][1] for edge in by_magnitude]
    assert widths == sorted(widths) and widths[-1] > 2 * widths[0]
    assert {edge: colour for edge, (colour, _) in styles.items()} == {
        edge: HELPS if scores[edge] > 0 else HURTS for edge in styles
    }


@pytest.mark.parametrize(
    ("method", "damages"),
    [
        *dict.fromkeys(("acdc", "eap", "eap_ig", "clean_corrupted", "exact", "trace_back"), True).items(),
        *dict.fromkeys(("hybrid", "edge_pruning", "matryoshka"), False).items(),
        *dict.fromkeys(("random", "mine:method"), None).items(),
    ],
)
def test_the_legend_speaks_of_damage_only_where_scores_are_damages(method: str, damages: bool | None) -> None:
    """By the methods' papers: gradients times differences and patching are effects of ablation, learnt masks
    and elimination give an order. Whose scores are given decides, not who found the circuit.
    """
    scores = replace(scored(GRAPH), info={"method": method})
    if damages is False:
        scores = replace(scores, values=np.abs(scores.values))
    picture = parsed(to_dot(scored(GRAPH).top(300), scores=scores))
    legend = picture.graph_attr["label"]
    assert ("ablating it" in legend) == (damages is True)
    assert ("place in the search's order" in legend) == (damages is False)
    assert ("score &gt; 0" in legend) == (damages is not False)


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


@pytest.mark.parametrize("where", ["with_roles", "to_dot"])
@pytest.mark.parametrize("role", ["", "a\x00b", "a\x1bb", "a\nb", "a\x7fb"])
def test_a_role_without_a_name_that_can_be_shown_is_refused(where: str, role: str) -> None:
    """Graphviz would call it a syntax error; no XML has these characters."""
    circuit = Circuit.from_edges(GRAPH, ["input->m0", "m0->logits"])
    with pytest.raises(CircuitDiscoveryError, match="a role must have a name without control characters"):
        to_dot(circuit, roles={role: ["m0"]}) if where == "to_dot" else circuit.with_roles({role: ["m0"]})


def test_what_graphviz_cannot_read_is_told_in_one_line() -> None:
    with pytest.raises(CircuitDiscoveryError, match=r"^Graphviz could not read the circuit's drawing: .+$"):
        render('digraph { a [label="b\x00"] }', "svg")


def test_a_backslash_is_one_in_the_picture() -> None:
    r"""Graphviz writes the graph's name for \G and the node's for \N."""
    info = {"model": {"name": r"C:\Gpt\Neo", "digest": "0"}, "task": "ioi"}
    circuit = Circuit(GRAPH, GRAPH.mask(["input->m0", "m0->logits"]), info=info)
    picture = to_svg(circuit, roles={r"\Great": ["m0"]})
    shown = " ".join(text for text in ElementTree.fromstring(picture).itertext())
    assert r"C:\Gpt\Neo" in shown and r"\Great" in shown


def test_no_zero_is_negative() -> None:
    """-0.0 is equal to 0.0, and scores of nothing are from 0 to 0."""
    assert number(-0.0) == number(0.0) == "0"
    picture = Scores(GRAPH, np.zeros(GRAPH.allowed.shape)).plot()
    assert "\N{MINUS SIGN}0<" not in picture.svg


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
    assert [(edge[0], edge[1]) for edge in picture.edges() if edge.attr["color"] == FAINT] == [
        ("a0.kv1", "a0.h2")
    ]


@pytest.mark.parametrize(
    ("suffix", "magic"), [("svg", b"<?xml"), ("png", b"\x89PNG\r\n"), ("pdf", b"%PDF"), ("dot", b"digraph")]
)
def test_formats_go_by_suffix(tmp_path: Path, suffix: str, magic: bytes) -> None:
    scored(GRAPH).top(20).draw(tmp_path / f"c.{suffix}")
    assert (tmp_path / f"c.{suffix}").read_bytes().startswith(magic)
    assert [path.name for path in tmp_path.iterdir()] == [f"c.{suffix}"]


@pytest.mark.parametrize("name", ["c.jpg", "c", "c.svg.txt"])
def test_another_suffix_is_refused_before_anything_is_drawn(tmp_path: Path, name: str) -> None:
    with pytest.raises(CircuitDiscoveryError, match=r"must end in \.svg, \.png, \.pdf or \.dot"):
        draw(Circuit.full(GRAPH), tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("graph", "n"), [(GRAPH, 30), (GRAPH, 479), (DEEP, 100), (DEEP, 1200)])
def test_svg_shows_every_node_and_edge_once(tmp_path: Path, graph: Graph, n: int) -> None:
    """In rows, in columns, and on a grid."""
    circuit = scored(graph).top(n)
    assert layout(circuit).grid == (n == 1200)
    circuit.draw(tmp_path / "c.svg", max_edges=None)
    root = ElementTree.parse(tmp_path / "c.svg").getroot()
    texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    for node in circuit.nodes:
        assert texts.count(node) == 1
    tips = [
        a.get("{http://www.w3.org/1999/xlink}title", "").split(" ")[0]
        for a in root.iter("{http://www.w3.org/2000/svg}a")
    ]
    assert set(circuit.edges) <= set(tips)


def test_dot_and_svg_are_the_same_in_every_process(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_draw import *\n"
        "c = scored(GRAPH).top(40)\n"
        "c.draw(sys.argv[2] + '.svg', roles={'b': ['m1', 'm0'], 'a': ['a0.h1']}); c.draw(sys.argv[2] + "
        "'.dot')"
    )
    said = []
    for seed in ("1", "2"):
        command = [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path / seed)]
        said.append(
            subprocess.run(
                command, env={**os.environ, "PYTHONHASHSEED": seed}, check=True, capture_output=True
            ).stderr
        )
    for suffix in ("svg", "dot"):
        assert (tmp_path / f"1.{suffix}").read_bytes() == (tmp_path / f"2.{suffix}").read_bytes()
    assert said == [b"", b""]  # nothing about the system's fonts


def test_the_empty_circuit_can_be_drawn(tmp_path: Path) -> None:
    Circuit.empty(GRAPH).draw(tmp_path / "c.svg")
    assert b"0 of 479 edges" in (tmp_path / "c.svg").read_bytes()


# ------------------------------------------------------------ what is shown


def _on_paths(graph: Graph, edges: set[str]) -> set[str]:
    """The edges on a path from input to logits, by walking from edge to edge."""

    def after(edge: str) -> set[str]:
        return {other for other in edges if other.split("->")[0] in graph.reader_nodes(edge.split("->")[1])}

    follow = {edge: after(edge) for edge in edges}
    forth = {edge for edge in edges if edge.startswith("input->")}
    while more := {other for edge in forth for other in follow[edge]} - forth:
        forth |= more
    back = {edge for edge in edges if edge.endswith("->logits")}
    while more := {edge for edge in edges if follow[edge] & back} - back:
        back |= more
    return forth & back


def _greedy(circuit: Circuit, count: int) -> set[str]:
    """Strongest first, each edge with the cheapest whole path through it among all there are."""
    graph, mine = circuit.graph, _on_paths(circuit.graph, set(circuit.edges))

    def paths(so_far: tuple[str, ...]) -> list[tuple[str, ...]]:
        receiver = so_far[-1].split("->")[1]
        if receiver == "logits":
            return [so_far]
        on = [edge for edge in mine if edge.split("->")[0] in graph.reader_nodes(receiver)]
        return [path for edge in on for path in paths((*so_far, edge))]

    every: list[set[str]] = [
        set(path) for edge in mine if edge.startswith("input->") for path in paths((edge,))
    ]
    drawn: set[str] = set()
    by_strength = sorted(mine, key=lambda edge: -abs(circuit.score(edge) or 0))
    while True:
        for edge in by_strength:
            cheapest = min((len(path - drawn) for path in every if edge in path), default=0)
            if edge not in drawn and cheapest <= count - len(drawn):
                ways = [path - drawn for path in every if edge in path and len(path - drawn) == cheapest]
                strength = [sum(abs(circuit.score(each) or 0) for each in way) for way in ways]
                drawn |= ways[int(np.argmax(strength))]
                break
        else:
            return drawn


@pytest.mark.parametrize(
    "graph",
    [Graph(2, 2, 2), Graph(2, 4, 2), Graph(3, 2, 2, parallel=True), Graph(2, 2, 2, split_qkv=False)],
    ids=str,
)
@pytest.mark.parametrize("count", [1, 4, 9, 15])
def test_the_strongest_whole_paths_are_those_of_a_search_through_all(graph: Graph, count: int) -> None:
    for seed in range(3):
        circuit = scored(graph, seed).top(20)
        assert circuit.scores is not None
        found = strongest_paths(circuit, circuit.scores, count)
        assert set(found.edges) == _greedy(circuit, count) == _on_paths(graph, set(found.edges))
        assert len(found) <= count


@pytest.mark.parametrize("scores", [True, False])
def test_a_large_circuit_is_shown_by_sixty_edges_on_drawn_paths_and_says_so(scores: bool) -> None:
    found = scored(DEEP, 3).top(7000)
    circuit = found if scores else Circuit(DEEP, found.mask)
    dot = to_dot(circuit)
    edges = {
        f"{source}->{reader}<{letter}>" if letter else f"{source}->{reader}"
        for source, reader, letter in drawn_edges(dot)
    }
    assert len(edges) == 60 and _on_paths(DEEP, edges) == edges <= set(circuit.edges)
    assert (
        f"60 of 7,000 edges shown: the {'strongest' if scores else 'first'} on paths from input to logits"
        in dot
    )
    assert "7,000 of 70,651 edges" in dot


def test_a_circuit_that_fits_is_drawn_whole() -> None:
    circuit = scored(GRAPH).top(60)
    assert (
        circuit.pruned() != circuit
        and len(drawn_edges(to_dot(circuit))) == 60
        and "shown" not in to_dot(circuit)
    )
    assert len(drawn_edges(to_dot(scored(GRAPH).top(61), max_edges=61))) == 61
    assert len(drawn_edges(to_dot(scored(GRAPH).top(400), max_edges=None))) == 400


def test_without_a_whole_path_the_strongest_edges_are_drawn() -> None:
    scores = scored(GRAPH)
    loose = Circuit.from_edges(GRAPH, [edge for edge in GRAPH.edges if not edge.startswith("input")])
    dot = to_dot(loose, scores=scores, max_edges=7)
    strongest = sorted(loose.edges, key=lambda edge: -abs(scores[edge]))[:7]
    assert sorted(drawn_edges(dot)) == sorted(
        (e.split("->")[0], node_of(e.split("->")[1]), letter_of(e.split("->")[1])) for e in strongest
    )
    assert f"7 of {len(loose)} edges shown: the strongest; none is on a path from input to logits" in dot
    direct = Circuit.from_edges(GRAPH, ["input->m0", "m0->logits"])
    assert "1 of 2 edges shown: the first; a whole path is longer than 1" in to_dot(direct, max_edges=1)


@pytest.mark.parametrize("wrong", [0, -1, True, 2.5, "all"])
def test_max_edges_must_be_a_count(wrong: Any) -> None:
    with pytest.raises(
        CircuitDiscoveryError,
        match="max_edges must be a whole number of at least 1, or None for all edges, not",
    ):
        to_dot(Circuit.empty(GRAPH), max_edges=wrong)


# -------------------------------------------------------------- many layers


def _size(svg: str) -> tuple[float, float]:
    width, height = ElementTree.fromstring(svg).get("viewBox", "").split()[2:]
    return float(width), float(height)


@pytest.mark.parametrize("seed", range(4))
def test_a_deep_models_picture_is_no_strip(seed: int) -> None:
    width, height = _size(to_svg(scored(DEEP, seed).top(7000), heading=False))
    assert 0.45 < width / height < 2.3


def test_a_chain_is_no_strip_either() -> None:
    chain = ["input->m0", *(f"m{layer}->m{layer + 1}" for layer in range(15)), "m15->logits"]
    width, height = _size(to_svg(Circuit.from_edges(DEEP, chain), heading=False))
    assert width / height < 2.1


def test_columns_go_from_left_to_right_and_no_node_reads_from_its_own() -> None:
    circuit = scored(DEEP).top(7000)
    picture = parsed(to_dot(circuit))
    picture.layout(prog="dot")
    x = {str(node): float(node.attr["pos"].split(",")[0]) for node in picture.nodes()}
    edges = [(edge[0], edge[1]) for edge in picture.edges() if edge.attr["tooltip"]]
    assert len(edges) == 60 and all(x[source] + 20 < x[reader] for source, reader in edges)
    assert x["input"] == min(x.values()) and x["logits"] == max(x.values())
    by_layer = sorted((int(node[1:].split(".")[0]), x[node]) for node in x if node[0] in "am")
    assert [at for _, at in by_layer] == sorted(at for _, at in by_layer)
    for group in (node for node in x if ".kv" in node):
        heads = [head for head in DEEP.reader_nodes(f"{group}<k>") if head in x]
        assert all(x[head] == pytest.approx(x[group], abs=1) for head in heads)


def test_layers_without_a_node_take_no_space_and_are_named() -> None:
    near, far = Graph(3, 2, 2), Graph(40, 2, 2)
    edges = ["input->a0.h1<v>", "a0.h1->m0", "m0->a{}.h0<q>", "a{}.h0->logits"]
    sizes = [
        _size(to_svg(Circuit.from_edges(graph, [e.format(layer) for e in edges])))
        for graph, layer in ((near, 1), (far, 37))
    ]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.1)
    ranks = {
        rank.nodes[0]: rank for rank in layout(Circuit.from_edges(far, [e.format(37) for e in edges])).ranks
    }
    assert (
        ranks["a37.h0"].folded == "layers 1\N{EN DASH}36"
        and ranks["logits"].folded == "layers 38\N{EN DASH}39"
    )
    assert "layers 1\N{EN DASH}36: none" in to_dot(Circuit.from_edges(far, [e.format(37) for e in edges]))


@pytest.mark.parametrize("n", [707, 7000])
def test_crossings_too_many_for_dot_stand_on_a_grid(n: int) -> None:
    plan = layout(scored(DEEP).top(n))
    at = {node: i for i, rank in enumerate(plan.ranks) for node in rank.nodes}
    crossed = sum(at[node_of(edge.split("->")[1])] - at[edge.split("->")[0]] for edge in plan.circuit.edges)
    assert crossed > CROWDED and plan.grid
    dot = to_dot(plan.circuit, max_edges=None)
    assert "layout=neato" in dot and len(drawn_edges(dot)) == n


def test_roles_keep_their_colour_where_another_roles_nodes_are_not_shown() -> None:
    circuit = Circuit.from_edges(GRAPH, ["input->m0", "m0->logits", "input->m1", "m1->logits"])
    scores = Scores(GRAPH, np.where(GRAPH.mask(["input->m1", "m1->logits"]), 2.0, 1.0))
    circuit = Circuit(GRAPH, circuit.mask, scores.values).with_roles({"early": ["m0"], "late": ["m1"]})
    picture = parsed(to_dot(circuit, max_edges=2))
    assert {str(node): node.attr["fillcolor"] for node in picture.nodes() if str(node)[0] == "m"} == {
        "m1": ROLE_COLOURS[1]
    }
    assert "late" in picture.graph_attr["label"] and "early" not in picture.graph_attr["label"]
