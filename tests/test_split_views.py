"""Circuits of graphs in which nodes are sums of parts: drawn, written, explained, and by the command line."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import Tiny
from torch import Tensor

import circuitdiscovery as cd
from circuitdiscovery.circuit.charts import node_scores
from circuitdiscovery.circuit.circuit import Circuit
from circuitdiscovery.circuit.draw import to_dot
from circuitdiscovery.circuit.layout import layout, strongest_paths
from circuitdiscovery.circuit.scores import Scores
from circuitdiscovery.cli import main as cli
from circuitdiscovery.cli import run
from circuitdiscovery.cli.search import graph_of
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.explanation.attention import observe
from circuitdiscovery.explanation.parts import WrittenParts
from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.graph.nodes import split_edge, whole_of
from circuitdiscovery.graph.splits import Split
from circuitdiscovery.measure.criteria import removable_nodes
from circuitdiscovery.model.model import Model
from circuitdiscovery.reporting.drawing import drawing
from circuitdiscovery.reporting.options import Options
from circuitdiscovery.task.task import Task

SPLITS = (
    Split("input", "positions", ("@a", "@b c"), spans=((0,), (1,))),
    Split("a0.h1", "positions", ("@a", "@-1"), spans=((0,), (-1,))),
    Split("m0", "neurons", ("n3", "n17"), own=True),
    Split("m1", "experts", ("e0", "e1")),
)
SMALL = Graph(2, 2, 2, splits=SPLITS)
GRAPHS = {
    "rows": SMALL,
    "groups": Graph(2, 4, 2, splits=SPLITS),
    "columns": Graph(12, 2, 2, splits=SPLITS),
    "merged": Graph(2, 2, 2, split_qkv=False, splits=SPLITS),
}


def scores_of(graph: Graph) -> Scores:
    return Scores(graph, np.random.default_rng(0).standard_normal(graph.allowed.shape))


@pytest.fixture(scope="module")
def toy() -> Model:
    return cd.load_model("toy")


@pytest.fixture(scope="module")
def ioi(toy: Model) -> Task:
    return cd.load_task("ioi", toy, examples=6)


@pytest.fixture(scope="module")
def circuit(toy: Model, ioi: Task) -> Circuit:
    """Positions of the input, of a head and of an MLP, and some neurons."""
    nodes = {"input": "positions", "a1.h3": "positions", "m1": "positions", "m0": [3, 17]}
    graph = cd.split(toy, nodes, task=ioi)
    return cd.eap(toy, ioi, graph=graph).best(70)


# -------------------------------------------------------------------- drawing


def edges_in(dot: str, circuit: Circuit) -> dict[str, tuple[str, str]]:
    """Edge's name -> the two ends in the picture."""
    found = {}
    for line in dot.splitlines():
        if match := re.match(r'\s*(\S+) -> (\S+) \[.*tooltip="(.*?)(?:  [+-]\S+)?"[ \]]', line):
            found[match[3]] = (match[1].replace('"', ""), match[2].replace('"', ""))
    return {edge: ends for edge, ends in found.items() if "->" in edge}


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("scored", [True, False])
def test_the_drawing_has_every_edge_between_the_boxes_of_its_ends(name: str, scored: bool) -> None:
    graph = GRAPHS[name]
    circuit = scores_of(graph).top(60)
    circuit = circuit if scored else Circuit(graph, circuit.mask)
    dot = to_dot(circuit, max_edges=None)
    found = edges_in(dot, circuit)
    assert set(found) == set(circuit.edges)
    for edge, ends in found.items():
        for end, drawn in zip(split_edge(edge), ends, strict=True):
            assert drawn.split(":")[0] == whole_of(end)
            if "/" in end:  # its own cell, which says what it is
                port = drawn.split(":")[1]
                (cell,) = re.findall(
                    rf'<TD PORT="{port}" ID="{port}" TITLE="{re.escape(end)}"[^>]*>.*?</TD>', dot
                )
                assert f">{end.partition('/')[2]}<" in cell


def test_a_part_that_is_not_in_the_circuit_has_no_cell() -> None:
    circuit = Circuit.from_edges(SMALL, ["input/@a->m0/n3", "m0/n3->m1", "m1/e0->logits"])
    dot = to_dot(circuit)
    assert re.findall(r'TITLE="(.*?)"', dot) == ["input/@a", "m0/n3", "m1/e0"]
    assert layout(circuit).parts["m0"] == ("m0/n3",)
    assert ", 3 nodes<" not in dot and ", 2 nodes<" in dot  # the input's parts are none


def test_spans_stand_in_the_order_of_their_split(circuit: Circuit) -> None:
    spans = re.findall(r'TITLE="input/(.*?)"', to_dot(circuit, max_edges=None))
    split = circuit.graph.split_of("input")
    assert split is not None and len(spans) > 1
    assert spans == [part for part in (*split.parts, "rest") if part in spans]


@pytest.mark.parametrize("name", GRAPHS)
def test_what_a_picture_shows_in_part_are_whole_paths(name: str) -> None:
    graph = GRAPHS[name]
    scores = scores_of(graph)
    part = strongest_paths(scores.top(len(graph) // 2), scores.values, 25)
    assert 15 < len(part) <= 25 and part.pruned() == part


@pytest.mark.parametrize("name", GRAPHS)
def test_the_pages_drawing_leads_from_every_part_to_what_reads_for_it(name: str) -> None:
    circuit = scores_of(GRAPHS[name]).top(60)
    svg = drawing(circuit, {"some role": ["m0/n3"]}, ["m0/n3", "a0.h1/@a"])
    edges = {
        edge: (source, reader)
        for source, reader, edge in re.findall(
            r'data-from="([^"]*)" data-to="([^"]*)" data-edge="([^"]*)"', svg
        )
    }
    assert {edge.replace("&gt;", ">").replace("&lt;", "<") for edge in edges} == set(circuit.edges)
    nodes = re.findall(r'<a class="node[^"]*" data-node="([^"]*)"', svg)
    assert len(nodes) == len(set(nodes)) and set(circuit.nodes) <= set(nodes)
    assert {end for ends in edges.values() for end in ends} <= set(nodes)
    if "a0.h1" in circuit.nodes and "a0.h1/@a" in circuit.nodes:
        assert '<g class="edge group" data-from="a0.h1" data-to="a0.h1/@a">' in svg
    assert '<g class="edge group" data-from="m0"' not in svg  # each reads for itself
    if "m0/n3" in circuit.nodes:
        assert re.search(r'data-node="m0/n3" href="#card-m0/n3" aria-label="m0/n3, some role"', svg)


def test_a_cell_of_the_heat_map_is_the_sum_of_its_parts() -> None:
    scores = scores_of(SMALL)
    chart = node_scores(SMALL, scores.by_node(), kept=["m0/rest"], cards=["m0/n17"])
    cells = dict(re.findall(r"<title>([^:]*): ([^,<]*)", chart))
    for node in SMALL.nodes[1:]:
        rows = [SMALL.source_index[part] for part in SMALL.parts(node)]
        told = float(cells[node].replace("\N{MINUS SIGN}", "-"))
        assert told == pytest.approx(scores.values[rows].sum(), rel=5e-3)
    assert chart.count('class="kept"') == 2 and 'href="#card-m0/n17"' in chart  # one in the legend
    assert "m0: " in scores.plot().svg and "3 parts together" in scores.plot().svg


# --------------------------------------------------------------------- values


def test_a_node_is_in_a_circuit_that_has_a_part_of_it() -> None:
    circuit = Circuit.from_edges(SMALL, ["input/@a->m0/n3", "m0/n3->logits"])
    assert "m0" in circuit and "m0/n3" in circuit and "input" in circuit
    assert "m0/rest" not in circuit and "m1" not in circuit
    with pytest.raises(CircuitDiscoveryError, match="no node 'm0/n4'"):
        assert "m0/n4" in circuit
    reading = Circuit.from_edges(SMALL, ["input/@a->a0.h1<q>", "input/@a->m1"])
    assert reading.nodes == ("input/@a", "a0.h1", "m1") and all(node in reading for node in reading.nodes)
    assert "a0.h1/@a" not in reading and "m0" not in reading
    assert reading.without(["a0.h1"]).nodes == ("input/@a", "m1")


def test_a_nodes_name_stands_for_its_parts_and_the_input_stays() -> None:
    full = Circuit.full(SMALL)
    less = full.without(["m0"])
    assert less == full.without(["m0/n3", "m0/n17", "m0/rest"]) and "m0" not in less
    assert set(full.without(["m0/n3"]).edges) == {e for e in full.edges if "m0/n3" not in split_edge(e)}
    with pytest.raises(CircuitDiscoveryError, match="input cannot be removed"):
        full.without(["input"])
    assert Circuit.from_nodes(SMALL, ["m0"]) == Circuit.from_nodes(SMALL, SMALL.parts("m0"))
    assert removable_nodes(full) == list(SMALL.inner)


def test_the_whole_circuit_has_an_edge_where_parts_have_one() -> None:
    scores = scores_of(SMALL)
    circuit = scores.top(40)
    whole = circuit.whole
    pairs: dict[str, float] = {}
    for edge in circuit.edges:
        source, receiver = split_edge(edge)
        into = whole_of(receiver) if "/" in receiver else receiver
        pairs[f"{whole_of(source)}->{into}"] = pairs.get(f"{whole_of(source)}->{into}", 0) + scores[edge]
    assert set(whole.edges) == set(pairs) and whole.graph == SMALL.whole
    assert {edge: whole.score(edge) for edge in whole.edges} == pytest.approx(pairs)


def test_an_edge_whose_parts_have_no_score_has_none() -> None:
    into = [edge for edge in SMALL.edges if edge.startswith("m0/") and edge.endswith("->logits")]
    mask, values = SMALL.mask([*into, "m1/rest->logits"]), np.full(SMALL.allowed.shape, np.nan)
    values[SMALL.index("m1/rest->logits")] = 2.0
    assert cd.Circuit(SMALL, mask, values).whole.score("m0->logits") is None
    values[SMALL.index(into[0])] = -1.5
    whole = cd.Circuit(SMALL, mask, values).whole
    assert whole.score("m0->logits") == -1.5 and whole.score("m1->logits") == 2.0


def test_networkx_notebooks_and_comparisons_take_parts(circuit: Circuit) -> None:
    view = circuit.to_networkx()
    assert view.number_of_edges() == len(circuit) and set(view.nodes) == set(circuit.nodes)
    svg, html = circuit.draw(max_edges=None).svg, circuit._repr_html_()
    parts = [part for part in circuit.nodes if "/" in part]
    assert len(parts) > 4 and all(f'xlink:title="{part}"' in svg for part in parts)
    assert html.startswith("<svg") and any(part in html for part in parts)
    same = cd.compare(circuit, circuit)
    assert same.nodes.jaccard == 1 and same.nodes.found == len(removable_nodes(circuit))


# ---------------------------------------------------------------------- files


def test_a_file_says_the_same_circuit_in_format_2(circuit: Circuit, tmp_path: Path) -> None:
    circuit.save(tmp_path / "c.json")
    again = cd.load_circuit(tmp_path / "c.json")
    assert again == circuit and hash(again) == hash(circuit) and again.to_dict() == circuit.to_dict()
    assert json.loads((tmp_path / "c.json").read_text())["format"] == "circuitdiscovery circuit 2"
    with pytest.raises(CircuitDiscoveryError, match="split"):
        circuit.save(tmp_path / "m.json", format="mib")


@dataclass(frozen=True)
class Directions:
    """A dictionary of unit directions: what a node writes along each."""

    vectors: Tensor  # [F, D]
    digest: str = "d" * 64

    @property
    def width(self) -> int:
        return len(self.vectors)

    def encode_some(self, out: Tensor, numbers: Tensor) -> Tensor:
        return torch.einsum("...d,pd->p...", out, self.vectors[numbers].to(out))


def test_a_circuit_of_features_needs_its_dictionary_only_to_run(
    toy: Model, ioi: Task, tmp_path: Path
) -> None:
    found = Directions(
        torch.linalg.qr(torch.randn(toy.d_model, 4, generator=torch.Generator().manual_seed(0)))[0].T
    )
    split = Split("m1", "features", ("f0", "f3"), digest=found.digest)
    graph = replace(toy.graph, splits=(split,))
    full = Circuit.full(graph)
    path = tmp_path / "c.json"
    full.save(path)
    without = cd.load_circuit(path)
    assert without == full and cd.compare(without, full).edges.jaccard == 1
    without.draw(tmp_path / "c.dot")
    with pytest.raises(
        CircuitDiscoveryError, match=r"needed to run the circuit: .*dictionaries=\{'m1'"
    ) as told:
        cd.run_circuit(toy, ioi, without)
    assert "\n" not in str(told.value)
    with_it = cd.load_circuit(path, dictionaries={"m1": found})
    assert with_it == full and with_it.graph.splits[0].dictionary is found
    expected = cd.run_circuit(toy, ioi, Circuit.full(toy.graph))
    torch.testing.assert_close(cd.run_circuit(toy, ioi, with_it), expected, rtol=1e-4, atol=1e-4)
    for dictionaries, why in (
        (
            {"m1": Directions(found.vectors, "e" * 64)},
            "is split by the dictionary dddddddddddd, not by .*eee",
        ),
        ({"m2": found}, "only m1 is split into features, so not 'm2'"),
        ({"m1": 3}, "it has no digest"),
    ):
        with pytest.raises(CircuitDiscoveryError, match=why):
            cd.load_circuit(path, dictionaries=dictionaries)


# --------------------------------------------------------------------- explain


def test_a_parts_card_has_its_own_effect_and_what_the_parts_write_adds_up(toy: Model) -> None:
    ioi = cd.load_task("ioi", toy, examples=32)
    held_out = ioi.held_out
    assert held_out is not None
    nodes = {"a2.h0": {"END": [-1], "first": [0]}, "m3": [3, 17], "m1": "positions"}
    graph = cd.split(toy, nodes, task=ioi)
    parts = [part for node in nodes for part in graph.parts(node)]
    plain = cd.explain(toy, ioi, Circuit.full(toy.graph), nodes=list(nodes))
    found = cd.explain(toy, ioi, Circuit.full(graph), nodes=list(nodes))
    assert set(found.cards) == set(parts)
    for node, card in plain.cards.items():
        mine = [found.cards[part] for part in graph.parts(node)]
        assert sum(float(each.direct) for each in mine) == pytest.approx(float(card.direct), abs=1e-4)
        for each in mine:  # what is defined for a head is the whole head's
            assert (each.roles, each.scores, each.attended) == (card.roles, card.scores, card.attended)
            assert (each.kind, bool(each.patterns)) == (card.kind, bool(card.patterns))
    # ablating a part is removing its out-edges
    full = Circuit.full(graph)
    for part in ("a2.h0/@END", "m3/n3", "m1/rest"):
        less = cd.run_circuit(toy, held_out, full.without([part]))
        logits = cd.run_circuit(toy, held_out, full)
        damage = [
            float((a - b)[list(e.correct)].mean() - (a - b)[list(e.incorrect)].mean())
            for a, b, e in zip(logits, less, held_out.examples, strict=True)
        ]
        assert float(found.cards[part].effect) == pytest.approx(np.mean(damage), abs=1e-4)
    # END's part writes all that the head writes there; the first token's is read where it stands
    mine, whole = (dict(each.lens[0].promoted) for each in (found.cards["a2.h0/@END"], plain.cards["a2.h0"]))
    assert mine == pytest.approx(whole, rel=1e-4)
    assert [lens.at for lens in found.cards["a2.h0/@first"].lens] == ["first"] * 3
    early = replace(held_out, examples=tuple(replace(e, position=0) for e in held_out.examples))
    (there,) = cd.explain(toy, early, Circuit.full(toy.graph), nodes=["a2.h0"]).cards.values()
    assert dict(found.cards["a2.h0/@first"].lens[0].promoted) == pytest.approx(
        dict(there.lens[0].promoted), rel=1e-4
    )
    said = str(found.cards["m3/n17"]) + str(found.cards["a2.h0/@first"])
    assert "neuron 17 of m3" in said and "what a2.h0 writes at first" in said and "whole head" in said
    assert cd.Explanation.from_dict(found.to_dict()).to_dict() == found.to_dict()
    assert plain.roles and found.roles == {role: graph.parts("a2.h0") for role in plain.roles}


@pytest.mark.parametrize("of_parts", [True, False])
def test_cards_of_neurons_take_no_given_replacements(toy: Model, ioi: Task, of_parts: bool) -> None:
    """Those of whole nodes say nothing of a neuron, and heads' cards are not of a graph with parts: it is said
    before any work."""
    graph, seen = cd.split(toy, {"m1": [3, 17]}), list[int]()
    given = cd.replacements(toy, ioi, graph=graph if of_parts else None)
    with pytest.raises(CircuitDiscoveryError, match="cards take given replacements of whole nodes") as told:
        circuit = Circuit.full(graph)
        cd.explain(toy, ioi, circuit, ablation=given, progress=lambda done, _: seen.append(done))
    assert "\n" not in str(told.value) and not seen


def test_a_card_is_asked_for_by_the_name_of_a_part_or_of_its_node(toy: Model, ioi: Task) -> None:
    graph = cd.split(toy, {"m1": [3, 17]})
    circuit = Circuit.from_edges(graph, ["input->m1/n3", "m1/n3->logits", "input->m0", "m0->logits"])
    asked = {"m1": ["m1/n3"], "m1/n3": ["m1/n3"], "m0": ["m0"]}
    for name, cards in asked.items():
        assert list(cd.explain(toy, ioi, circuit, nodes=[name]).cards) == cards
    for name in ("m1/n17", "m2", "m1/n4", "input"):
        with pytest.raises(CircuitDiscoveryError, match=f"no head or MLP '{name}'"):
            cd.explain(toy, ioi, circuit, nodes=[name])


def test_what_parts_write_adds_up_to_the_node_in_every_architecture(any_model: Tiny) -> None:
    model, task = any_model.model, any_model.prompts.task
    last = model.graph.n_layers - 1
    nodes: dict[str, Any] = {"a0.h1": {"first": [0], "last": [-1]}, "input": {"last": [-1]}}
    graph = cd.split(model, nodes | {f"m{layer}": [0, 5] for layer in (0, last)})
    for seen in observe(model, task):
        parts = WrittenParts.of(seen, graph, task)
        for split in graph.splits:
            each = [parts.written(part) for part in split.names]
            whole = seen.written(model.graph.source_index[split.node])
            torch.testing.assert_close(sum(each), whole, rtol=1e-4, atol=1e-5)
            assert all(part.abs().max() > 1e-6 for part in each[-2:-1])


def test_measurements_take_parts(toy: Model, ioi: Task, circuit: Circuit) -> None:
    found = cd.evaluate(toy, ioi, circuit, effort="quick")
    named = {node for each in found.completeness.sets for node in each.nodes}
    assert named | set(found.minimality.scores) <= set(circuit.graph.inner)
    table = cd.stability(
        lambda model, task: cd.eap(model, task, graph=circuit.graph).top(30), toy, ioi, runs=5
    )
    assert "/" in str(table.to_dict())
    assert cd.hypothesis_tests(toy, ioi, circuit).to_dict()


# ---------------------------------------------------------------- command line

Call = Callable[..., tuple[int, str, str]]
RUN = ("discover", "toy", "ioi", "--method", "eap", "--examples", "4", "--measure", "quick", "--edges", "40")
SPLIT = ("--split", "input=positions", "--split", "m1=neurons", "--split", "m2=3,17", "--keep", "3")


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Call]:
    """Runs the command line in this process, in an empty folder: status, output, messages."""
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)

    def call(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit:
            cli.main(list(arguments))
        out, err = capfd.readouterr()
        return int(exit.value.code or 0), str(out), str(err)

    yield call
    signal.signal(signal.SIGTERM, before)


def test_a_run_among_parts_goes_on_to_the_same_bytes(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy: Model
) -> None:
    status, out, err = call(*RUN, *SPLIT, "--out", "a")
    assert status == 0, err
    found = cd.load_circuit(tmp_path / "a")
    task = cd.load_task("ioi", toy, examples=4)
    nodes = {"input": "positions", "m1": "neurons", "m2": [3, 17]}
    graph = cd.split(toy, nodes, task=task, keep=3)
    assert found == cd.eap(toy, task, graph=graph).best(40)

    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(run, "evaluate", stopped)
        status, _, err = call(*RUN, *SPLIT, "--out", "b")
    assert status == 130 and "--split input=positions --split m1=neurons --split m2=3,17 --keep 3" in err
    status, _, err = call(*RUN, *SPLIT[2:], "--out", "b", "--resume")
    assert status == 2 and len(err.strip().splitlines()) == 1 and "was begun with split" in err
    status, _, err = call(*RUN, *SPLIT, "--out", "b", "--resume")
    assert status == 0, err
    names = {path.name for path in (tmp_path / "a").iterdir()} - {"run.json"}
    assert {"circuit.json", "scores.safetensors", "report.html", "graph.svg", "explanation.json"} <= names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name

    page = (tmp_path / "a" / "report.html").read_text()
    assert "heads, MLPs and parts of them" in page and "m1 of 3 neurons and the rest" in page
    assert "no role" in page or "Why" in page
    for command in (
        ("evaluate", "a", "--measure", "quick"),
        ("explain", "a", "--node", "m1", "--effort", "quick"),
    ):
        status, out, err = call(*command)
        assert status == 0 and out, err
    assert set(graph.parts("m1")) & set(re.findall(r"^m1/\w+", out, re.M))
    assert call("draw", "a", "-o", "c.dot")[0] == call("report", "a", "-o", "c.html")[0] == 0
    assert json.loads(call("compare", "a", "b", "--json")[1])["edges"]["jaccard"] == 1
    # a circuit of other parts that somebody put there
    record = json.loads((tmp_path / "b" / "run.json").read_text())
    del record["summary"], record["done"]["circuit.json"], record["done"]["scores.safetensors"]
    (tmp_path / "b" / "run.json").write_text(json.dumps(record))
    (tmp_path / "b" / "scores.safetensors").unlink()
    other = cd.eap(toy, task, graph=cd.split(toy, {"m1": [3]})).best(40)
    Circuit(other.graph, other.mask, other.scores, other.info).save(tmp_path / "b" / "circuit.json")
    status, _, err = call(*RUN, *SPLIT, "--out", "b", "--resume")
    assert status == 2 and "it splits m1, not input, m1, m2" in err


@pytest.mark.parametrize("method", ["acdc", "trace-back", "exact"])
def test_methods_that_choose_themselves_search_among_parts(call: Call, tmp_path: Path, method: str) -> None:
    words = ("discover", "toy", "agreement", "--method", method, "--examples", "2", "--measure", "none")
    words = (*words[:2], "subject_verb_agreement", *words[3:], "--split", "m3=3,17", "--out", "a")
    if method == "exact":
        words = (*words, "--level", "node", "--edges", "30")
    status, _, err = call(*words)
    assert status == 0, err
    assert [split.node for split in cd.load_circuit(tmp_path / "a").graph.splits] == ["m3"]


def test_all_mlps_are_split_by_one_option(call: Call, tmp_path: Path) -> None:
    words = (
        "discover",
        "toy",
        "ioi",
        "--method",
        "eap",
        "--examples",
        "2",
        "--measure",
        "none",
        "--out",
        "a",
    )
    status, _, err = call(*words, "--neurons", "2")
    assert status == 0, err
    splits = cd.load_circuit(tmp_path / "a").graph.splits
    assert [(split.node, len(split.parts)) for split in splits] == [(f"m{layer}", 2) for layer in range(4)]


@pytest.mark.parametrize(
    ("options", "metric", "ablation"),
    [
        ({"method": "eap_ig", "metric": "nll", "ablation": "zero"}, "nll", "zero"),
        ({"method": "acdc"}, "kl_divergence", "resample"),  # which it searches by unless told
        ({"method": "eap", "ablation": "mean"}, None, "resample"),
    ],
)
def test_a_search_chooses_its_parts_by_its_own_metric_and_ablation(
    toy: Model, options: dict[str, Any], metric: str | None, ablation: str, capfd: pytest.CaptureFixture[str]
) -> None:
    nodes, task = {"m3": "neurons"}, cd.load_task("ioi", toy, examples=8)
    found = graph_of(toy, task, Options("toy", "ioi", split="m3=neurons", keep=8, **options))
    assert found == cd.split(toy, nodes, task=task, keep=8, metric=metric, ablation=ablation)
    said = "not by mean ablation, but by resample" in capfd.readouterr().err
    assert said == (options.get("ablation") == "mean")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (
            ("--split", "m2"),
            "'m2' does not say what the parts of m2 are: m2=neurons, positions, all, experts",
        ),
        (("--split", "m2=neuron"), "does not say what the parts of m2 are"),
        (("--split", "m2/n3=neurons"), "a node that is split is input, a head or an MLP, not 'm2/n3'"),
        (("--split", "logits=positions"), "a node that is split is input, a head or an MLP, not 'logits'"),
        (("--split", "b2=neurons"), "'b2' is not the name of a node"),
        (("--split", "m2=neurons", "--split", "m2=3"), "--split m2 is given twice"),
        (("--keep", "3"), "--keep needs an MLP that is split into neurons"),
        (("--split", "input=positions", "--keep", "3"), "--keep needs an MLP that is split into neurons"),
        (("--split", "m2=neurons", "--keep", "3", "--neurons", "4"), "give one of them"),
        (("--split", "m9=neurons"), "no node 'm9'"),
        (("--split", "m2=999999"), "m2 has no neuron 999999"),
        (("--split", "a1.h0=neurons"), "a1.h0 can be split by positions only"),
        (("--split", "m2=experts"), "m2 of toy is no mixture of experts"),
        (("--neurons", "0"), "0"),
    ],
)
def test_wrong_parts_are_one_line(call: Call, words: tuple[str, ...], why: str) -> None:
    status, out, err = call(*RUN, *words)
    lines = [line for line in err.strip().splitlines() if line.startswith("circuitdiscovery: ")]
    assert status == 2 and not out and len(lines) == 1 and why in lines[0], err


def test_the_neurons_that_matter_are_printed(call: Call, toy: Model) -> None:
    words = ("neurons", "toy", "ioi", "--examples", "4", "--top", "3", "--method", "eap-ig")
    expected = cd.neurons(toy, cd.load_task("ioi", toy, examples=4), top=3, method="eap_ig")
    status, out, err = call(*words)
    assert (status, out) == (0, f"{expected}\n"), err
    assert json.loads(call(*words, "--json")[1]) == json.loads(json.dumps(expected.to_dict()))
    for wrong, why in (
        (("--top", "99999"), "top must be a whole number from 1 to"),
        (("--method", "acdc"), "Valid methods: eap, eap-ig, exact"),
        (("--ablation", "mean"), "units are ablated by resample or zero"),
    ):
        status, _, err = call(*words, *wrong)
        assert status == 2 and why in err.splitlines()[-1], err
