"""MIB's / EAP-IG's circuit JSON, as their `Graph.to_json` writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from circuitdiscovery.circuit.circuit import Circuit
from circuitdiscovery.circuit.load import load_circuit
from circuitdiscovery.circuit.scores import Scores
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.graph.graph import Graph

GRAPH = Graph(n_layers=2, n_heads=2, n_kv_heads=2)
GROUPED = Graph(n_layers=2, n_heads=4, n_kv_heads=2)


def theirs(n_layers: int = 1, n_heads: int = 2, parallel: bool = False) -> dict[str, Any]:
    """Built as EAP-IG builds its graph: per layer every source so far to each head's q,
    k, v, then to the MLP, last to the logits.
    """
    stream, edges, nodes = ["input"], [], ["input"]
    for layer in range(n_layers):
        heads = [f"a{layer}.h{head}" for head in range(n_heads)]
        edges += [f"{source}->{head}<{letter}>" for source in stream for head in heads for letter in "qkv"]
        edges += [f"{source}->m{layer}" for source in (stream if parallel else stream + heads)]
        stream += [*heads, f"m{layer}"]
        nodes += [*heads, f"m{layer}"]
    edges += [f"{source}->logits" for source in stream]
    cfg = {"n_layers": n_layers, "n_heads": n_heads, "parallel_attn_mlp": parallel, "d_model": 16}
    flags = {name: {"in_graph": False} for name in [*nodes, "logits"]}
    return {"cfg": cfg, "nodes": flags, "edges": {edge: {"score": 0.0, "in_graph": False} for edge in edges}}


def load(tmp_path: Path, data: Any, **options: Any) -> Circuit:
    (tmp_path / "mib.json").write_text(json.dumps(data), "utf-8")
    return load_circuit(tmp_path / "mib.json", **options)


def test_of_shared_keys_and_values_they_count_other_edges() -> None:
    """Their graph is of heads, in a grouped model too; the page has the figures of SmolLM2-135M's shape."""
    page = (Path(__file__).parent.parent / "docs" / "concepts.md").read_text("utf-8")
    ours, others = len(Graph(n_layers=30, n_heads=9, n_kv_heads=3)), len(theirs(30, 9)["edges"])
    assert f"this graph has {ours:,} edges and MIB's {others:,}" in page and ours < others


@pytest.mark.parametrize("parallel", [False, True])
def test_their_circuit_is_read_edge_for_edge(tmp_path: Path, parallel: bool) -> None:
    data = theirs(2, 2, parallel)
    data["edges"]["m0->a1.h1<k>"] = {"score": -0.25, "in_graph": True}
    data["edges"]["input->logits"] = {"score": 0.5, "in_graph": True}
    data["edges"]["input->m0"]["score"] = 3.0
    circuit = load(tmp_path, data)
    assert circuit.graph == Graph(n_layers=2, n_heads=2, n_kv_heads=2, parallel=parallel)
    assert circuit.edges == ("input->logits", "m0->a1.h1<k>")
    scores = Scores.load(tmp_path / "mib.json")
    assert scores["input->m0"] == 3.0 and circuit.score("m0->a1.h1<k>") == -0.25


def test_the_sign_is_that_of_a_losss_gradient(tmp_path: Path) -> None:
    """(corrupted - clean) . gradient of the loss is the damage: an edge that
    EAP-IG ranks as needed is one of ours that is.
    """
    clean, corrupted, slope = 2.0, 0.0, 1.0  # of an edge's activation, and of the logit difference along it
    data = theirs()
    data["edges"]["m0->logits"]["score"] = (corrupted - clean) * -slope
    load(tmp_path, data)
    assert Scores.load(tmp_path / "mib.json")["m0->logits"] == slope * clean - slope * corrupted


@pytest.mark.parametrize(
    "graph", [GRAPH, GROUPED, Graph(n_layers=2, n_heads=3, n_kv_heads=3, parallel=True)], ids=str
)
def test_what_we_write_comes_back(tmp_path: Path, graph: Graph) -> None:
    scores = Scores(graph, np.random.default_rng(0).normal(size=graph.allowed.shape))
    circuit = scores.top(20)
    circuit.save(tmp_path / "c.json", format="mib")
    again = load_circuit(tmp_path / "c.json")
    assert again == circuit and [again.score(e) for e in again.edges] == [
        circuit.score(e) for e in circuit.edges
    ]
    scores.save(tmp_path / "s.json")
    assert np.array_equal(Scores.load(tmp_path / "s.json").values, scores.values)


@pytest.mark.parametrize("graph", [GRAPH, GROUPED], ids=str)
def test_what_we_write_has_their_fields(tmp_path: Path, graph: Graph) -> None:
    Circuit.from_edges(graph, ["input->m0", "m0->a1.h1<q>"]).save(tmp_path / "c.json", format="mib")
    said, expected = (
        json.loads((tmp_path / "c.json").read_text("utf-8")),
        theirs(graph.n_layers, graph.n_heads),
    )
    assert said.keys() == expected.keys() and said["cfg"].keys() >= expected["cfg"].keys()
    assert set(said["edges"]) == set(expected["edges"]) and list(said["nodes"]) == list(expected["nodes"])
    assert {name for name, node in said["nodes"].items() if node["in_graph"]} == {"input", "m0", "a1.h1"}
    assert all(edge.keys() == {"score", "in_graph"} for edge in said["edges"].values())


def test_a_groups_edge_is_written_for_each_of_its_heads(tmp_path: Path) -> None:
    values = np.zeros(GROUPED.allowed.shape)
    values[GROUPED.index("input->a1.kv1<v>")] = 0.5
    Scores(GROUPED, values).top(1).save(tmp_path / "c.json", format="mib")
    edges = json.loads((tmp_path / "c.json").read_text("utf-8"))["edges"]
    assert {name for name, edge in edges.items() if edge["in_graph"]} == {
        "input->a1.h2<v>",
        "input->a1.h3<v>",
    }
    assert edges["input->a1.h2<v>"]["score"] == edges["input->a1.h3<v>"]["score"] == 0.5


def test_a_groups_heads_must_agree(tmp_path: Path) -> None:
    data = theirs(2, 4)
    for head in (0, 1):
        data["edges"][f"m0->a1.h{head}<k>"] = {"score": 1.0, "in_graph": True}
    assert load(tmp_path, data, n_kv_heads=2).edges == ("m0->a1.kv0<k>",)
    # the file does not say that they are shared
    assert load(tmp_path, data).edges == ("m0->a1.h0<k>", "m0->a1.h1<k>")
    data["edges"]["m0->a1.h1<k>"]["in_graph"] = False
    with pytest.raises(
        CircuitDiscoveryError,
        match=r"heads of one key/value group disagree: edges 'm0->a1\.h0<k>' and 'm0->a1\.h1<k>'",
    ):
        load(tmp_path, data, n_kv_heads=2)
    data["edges"]["m0->a1.h1<k>"] = {"score": 2.0, "in_graph": True}
    with pytest.raises(CircuitDiscoveryError, match="disagree"):
        load(tmp_path, data, n_kv_heads=2)
    with pytest.raises(CircuitDiscoveryError, match=r"field 'cfg': .* a multiple of n_kv_heads"):
        load(tmp_path, data, n_kv_heads=3)


def test_groups_that_the_file_denies_are_refused(tmp_path: Path) -> None:
    data = theirs(2, 4)
    with pytest.raises(CircuitDiscoveryError, match=r"field 'cfg': .*at least one"):
        load(tmp_path, data, n_kv_heads=0)
    data["cfg"]["n_kv_heads"] = 2
    assert load(tmp_path, data, n_kv_heads=2).graph == load(tmp_path, data).graph == GROUPED
    for read in (load_circuit, Scores.load):
        with pytest.raises(CircuitDiscoveryError, match="its cfg has n_kv_heads 2, not the given 4"):
            read(tmp_path / "mib.json", n_kv_heads=4)
    Circuit.full(GROUPED).save(tmp_path / "own.json")
    Scores(GROUPED, np.zeros(GROUPED.allowed.shape)).save(tmp_path / "own.safetensors")
    for read, own in ((load_circuit, "own.json"), (Scores.load, "own.safetensors")):
        with pytest.raises(CircuitDiscoveryError, match="n_kv_heads is for MIB's JSON alone"):
            read(tmp_path / own, n_kv_heads=2)


def _changed(change: str) -> dict[str, Any]:
    data = theirs()
    changes = {
        "no heads": lambda: data["cfg"].pop("n_heads"),
        "text": lambda: data["cfg"].update(n_layers="1"),
        "huge": lambda: data["cfg"].update(n_layers=10**8),
        "cfg": lambda: data.update(cfg=[]),
        "missing": lambda: data["edges"].pop("m0->logits"),
        "unknown": lambda: data["edges"].update({"m0->m0": {"score": 0.0, "in_graph": True}}),
        "flag": lambda: data["edges"]["m0->logits"].update(in_graph=1),
        "no flag": lambda: data["edges"]["m0->logits"].pop("in_graph"),
        "score": lambda: data["edges"]["m0->logits"].update(score="x"),
        "surplus": lambda: data["edges"]["m0->logits"].update(weight=1.0),
        "node": lambda: data["nodes"].update({"m7": {"in_graph": True}}),
        "neurons": lambda: data["nodes"]["m0"].update(neurons=[True, False]),
        "field": lambda: data.update(time=3),
    }
    changes[change]()
    return data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no heads", "field 'cfg.n_heads' must be a whole number, not null"),
        ("text", "field 'cfg.n_layers' must be a whole number, not '1'"),
        ("huge", "field 'cfg': .*not the shape of a model"),
        ("cfg", "field 'cfg' must be an object"),
        ("missing", "field 'edges' lacks 'm0->logits'"),
        ("unknown", "field 'edges': no edge 'm0->m0'"),
        ("flag", "field 'edges.m0->logits.in_graph' must be true or false, not 1"),
        ("no flag", "field 'edges.m0->logits' lacks 'in_graph'"),
        ("score", "field 'edges.m0->logits.score' must be a number"),
        ("surplus", "field 'edges.m0->logits': no field 'weight'"),
        ("node", "field 'nodes': no node 'm7'"),
        ("neurons", "circuits of neurons are not supported"),
        ("field", "no field 'time'"),
    ],
)
def test_a_wrong_file_is_named_with_its_field(tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(CircuitDiscoveryError, match=message) as error:
        load(tmp_path, _changed(change))
    assert str(error.value).startswith(str(tmp_path / "mib.json"))


def test_what_the_format_lacks_is_refused(tmp_path: Path) -> None:
    for graph in (Graph(1, 2, 2, split_qkv=False), Graph(1, 2, 2, has_mlp=False)):
        with pytest.raises(CircuitDiscoveryError, match="MIB's format needs"):
            Circuit.full(graph).save(tmp_path / "c.json", format="mib")
    with pytest.raises(CircuitDiscoveryError, match="no format 'mibb'; did you mean 'mib'"):
        Circuit.full(GRAPH).save(tmp_path / "c.json", format="mibb")  # pyright: ignore[reportArgumentType]
    Circuit.full(GRAPH).save(tmp_path / "ours.json")
    with pytest.raises(CircuitDiscoveryError, match="holds no scores"):
        Scores.load(tmp_path / "ours.json")
