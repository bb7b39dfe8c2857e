"""Scores and circuits as values, and their files."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch

from circuitdiscovery.circuit.circuit import Circuit
from circuitdiscovery.circuit.circuit_json import options_of
from circuitdiscovery.circuit.load import load_circuit
from circuitdiscovery.circuit.scores import Scores
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.graph.graph import Graph

SMALL = Graph(n_layers=1, n_heads=1, n_kv_heads=1)
GRAPH = Graph(n_layers=3, n_heads=3, n_kv_heads=3)
GROUPED = Graph(n_layers=3, n_heads=4, n_kv_heads=2)
INFO: dict[str, Any] = {
    "model": {"name": "toy", "digest": "ab12" * 16},
    "task": "ioi",
    "seed": 0,
    "examples": 64,
    "method": "eap",
    "options": {"metric": "logit_diff"},
    "versions": {"torch": "2.13.0", "transformers": None},
}


def random_circuit(graph: Graph, seed: int, share: float = 0.15) -> Circuit:
    rng = np.random.default_rng(seed)
    return Circuit(graph, graph.allowed & (rng.random(graph.allowed.shape) < share))


def random_scores(graph: Graph, seed: int = 0) -> Scores:
    return Scores(graph, np.random.default_rng(seed).normal(size=graph.allowed.shape), INFO)


def by_edge(graph: Graph, **scores: float) -> Scores:
    """Scores by edge, written with underscores: input_m0."""
    values = np.zeros(graph.allowed.shape)
    for name, score in scores.items():
        values[graph.index(name.replace("_", "->"))] = score
    return Scores(graph, values)


# -------------------------------------------------------------------- scores


def test_top_takes_the_largest_magnitude_or_the_largest() -> None:
    scores = by_edge(SMALL, input_m0=-3, input_logits=2, m0_logits=1)
    assert scores.top(2).edges == ("input->m0", "input->logits")
    assert scores.top(2, absolute=False).edges == ("input->logits", "m0->logits")
    assert scores["input->m0"] == -3


def test_trap_14_ties_reach_every_count_by_index() -> None:
    scores = Scores(GRAPH, np.random.default_rng(0).integers(-2, 3, GRAPH.allowed.shape).astype(float))
    ranked = sorted(GRAPH.edges, key=lambda edge: -abs(scores[edge]))  # Python's sort keeps the order of ties
    for n in range(len(GRAPH) + 1):
        assert set(scores.top(n).edges) == set(ranked[:n])


@pytest.mark.parametrize("n", [-1, len(SMALL) + 1, 2.0, True, "3", None])
@pytest.mark.parametrize("choose", ["top", "greedy"])
def test_an_impossible_count_names_the_range(choose: str, n: Any) -> None:
    with pytest.raises(CircuitDiscoveryError, match="edges must be a whole number from 0 to 8"):
        getattr(random_scores(SMALL), choose)(n)


@pytest.mark.parametrize("choose", ["top", "best", "greedy"])
def test_a_count_of_numpy_is_one_of_python(choose: str) -> None:
    scores = random_scores(SMALL)
    found = getattr(scores, choose)(np.int64(5), absolute=np.True_)
    assert found == getattr(scores, choose)(5) and found.info == getattr(scores, choose)(5).info


def test_scores_and_masks_of_tensors() -> None:
    values = torch.arange(15.0).reshape(3, 5).requires_grad_()
    given: Any = values
    assert Scores(SMALL, given)["input->logits"] == 4.0
    assert Scores(SMALL, given.bfloat16())["input->logits"] == 4.0  # which NumPy does not have
    mask: Any = torch.ones(3, 5, requires_grad=True) * torch.tensor(SMALL.allowed)
    assert Circuit(SMALL, mask) == Circuit.full(SMALL)
    with pytest.raises(CircuitDiscoveryError, match="scores must be numbers"):
        Scores(SMALL, given.to_sparse())


def test_trap_11_above_says_signed_or_absolute_and_keeps_equality() -> None:
    """acdc removes an edge where damage < threshold, so what equals it stays."""
    scores = by_edge(SMALL, input_m0=-0.5, input_logits=0.5, m0_logits=0.25)
    assert scores.above(0.5).edges == ("input->m0", "input->logits")
    assert scores.above(0.5, absolute=False).edges == ("input->logits",)
    assert scores.above(0.51).edges == ()
    assert len(scores.above(-1, absolute=False)) == len(SMALL)


@pytest.mark.parametrize("threshold", [float("nan"), float("inf")])
def test_a_threshold_is_a_number(threshold: float) -> None:
    with pytest.raises(CircuitDiscoveryError, match="threshold must be a finite number"):
        random_scores(SMALL).above(threshold)


def test_greedy_by_hand() -> None:
    """From the logits: m0->logits (2), then what m0 opens: input->m0 (9);
    input->a0.h0<q> (8) only once a0.h0 is reached.
    """
    values = by_edge(SMALL, m0_logits=2, input_m0=-9, input_logits=1).values.copy()
    values[SMALL.index("input->a0.h0<q>")] = 8
    values[SMALL.index("a0.h0->logits")] = 0.5
    scores = Scores(SMALL, values)
    assert scores.greedy(1).edges == ("m0->logits",)
    assert scores.greedy(2).edges == ("input->m0", "m0->logits")
    assert scores.greedy(4).edges == ("input->m0", "input->logits", "a0.h0->logits", "m0->logits")
    assert "input->a0.h0<q>" in scores.greedy(5)
    assert scores.top(2).edges == ("input->a0.h0<q>", "input->m0")


@pytest.mark.parametrize("graph", [GRAPH, GROUPED], ids=str)
def test_every_greedy_edge_leads_to_the_logits(graph: Graph) -> None:
    scores = random_scores(graph)
    for n in (1, 10, 40, len(graph)):
        circuit = scores.greedy(n)
        assert len(circuit) == n
        view = circuit.to_networkx()
        view.add_edges_from(
            (node, head) for node, heads in list(view.nodes(data="heads")) for head in (heads or "").split()
        )
        assert all(node == "logits" or nx.has_path(view, node, "logits") for node in circuit.nodes)


def test_by_node_takes_the_best_place_in_an_order() -> None:
    """Places do not add up: a node of many poor edges is not a good one."""
    values = np.where(GRAPH.allowed, 0.1, 0.0)
    best = GRAPH.index("a1.h0->logits")
    values[best] = 1.0
    order = Scores(GRAPH, values, {"method": "matryoshka"}).by_node()
    damages = Scores(GRAPH, values, {"method": "eap"}).by_node()
    assert max(order, key=order.__getitem__) == "a1.h0" and order["m0"] == 0.1
    assert max(damages, key=damages.__getitem__) != "a1.h0"


def test_by_node_sums_the_out_edges() -> None:
    scores = random_scores(GRAPH)
    for node, total in scores.by_node().items():
        assert total == pytest.approx(
            sum(scores[edge] for edge in GRAPH.edges if edge.startswith(f"{node}->"))
        )
    assert list(scores.by_node()) == list(GRAPH.sources)


def test_a_score_that_is_no_number_names_its_edge() -> None:
    values = np.zeros(SMALL.allowed.shape)
    values[SMALL.index("a0.h0->m0")] = np.nan
    with pytest.raises(CircuitDiscoveryError, match=r"the score of a0\.h0->m0 is nan"):
        Scores(SMALL, values)
    with pytest.raises(CircuitDiscoveryError, match=r"\[3, 5\], not \[2, 2\]"):
        Scores(SMALL, np.zeros((2, 2)))


def test_scores_are_values() -> None:
    values = np.ones(SMALL.allowed.shape)
    scores = Scores(SMALL, values, INFO)
    values[:] = 7
    assert scores["input->m0"] == 1
    with pytest.raises(ValueError, match="read-only"):
        scores.values[0, 0] = 2
    with pytest.raises(FrozenInstanceError):
        scores.graph = GRAPH  # pyright: ignore[reportAttributeAccessIssue]


def test_selection_is_recorded() -> None:
    """Beside the options of the search, which may have been given a number of edges too."""
    circuit = random_scores(GRAPH).top(5)
    selection = {"by": "top", "edges": 5, "absolute": True}
    assert circuit.info["options"] == {"metric": "logit_diff", "selection": selection}
    ordered = Scores(GRAPH, random_scores(GRAPH).values, INFO | {"options": {"edges": 100, "threshold": 0.5}})
    for taken in (ordered.top(5), ordered.above(0.1), ordered.greedy(3), ordered.best(4)):
        assert {name: taken.info["options"][name] for name in ("edges", "threshold")} == {
            "edges": 100,
            "threshold": 0.5,
        }
    old = {"options": {"metric": "logit_diff", "selection": "top", "edges": 5, "absolute": True}}
    assert options_of(Circuit(GRAPH, circuit.mask, info=old).info) == options_of(circuit.info)
    assert circuit.info["model"] == INFO["model"]
    assert circuit.score(circuit.edges[0]) == random_scores(GRAPH)[circuit.edges[0]]


def test_dataframe_has_a_row_per_edge() -> None:
    pytest.importorskip("pandas")
    frame = random_scores(GRAPH).to_dataframe()
    assert tuple(frame["edge"]) == GRAPH.edges
    for edge, source, receiver, score in frame.itertuples(index=False):
        assert f"{source}->{receiver}" == edge and score == random_scores(GRAPH)[edge]


def test_without_pandas_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(CircuitDiscoveryError, match="pip install"):
        random_scores(GRAPH).to_dataframe()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_saved_scores_come_back(tmp_path: Path, dtype: type) -> None:
    scores = Scores(GROUPED, random_scores(GROUPED).values.astype(dtype), INFO)
    scores.save(tmp_path / "s.safetensors")
    loaded = Scores.load(tmp_path / "s.safetensors")
    assert loaded.values.dtype == dtype and np.array_equal(loaded.values, scores.values)
    assert loaded.graph == GROUPED and loaded.info == INFO
    first = (tmp_path / "s.safetensors").read_bytes()
    loaded.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.safetensors", "s.safetensors"]


def test_what_holds_no_scores_is_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "s.safetensors"
    for data in (b"", b"\xff" * 100, b"{}"):
        path.write_bytes(data)
        with pytest.raises(CircuitDiscoveryError, match=r"s\.safetensors"):
            Scores.load(path)
    save_file({"scores": np.zeros((3, 5))}, path)
    with pytest.raises(CircuitDiscoveryError, match="no scores of circuitdiscovery"):
        Scores.load(path)
    bad = np.full((3, 5), np.inf)
    header = {"format": "circuitdiscovery scores 1", "graph": SMALL.to_dict(), "info": {}}
    save_file({"scores": bad}, path, {"circuitdiscovery": json.dumps(header)})
    with pytest.raises(CircuitDiscoveryError, match=r"s\.safetensors: the score of input->a0\.h0<q> is inf"):
        Scores.load(path)
    save_file({"scores": bad}, path, {"circuitdiscovery": json.dumps(header | {"graph": GRAPH.to_dict()})})
    with pytest.raises(CircuitDiscoveryError, match=r"s\.safetensors: scores must be \[sources, receivers\]"):
        Scores.load(path)
    with pytest.raises(CircuitDiscoveryError, match=r"missing\.safetensors"):
        Scores.load(tmp_path / "missing.safetensors")
    with pytest.raises(CircuitDiscoveryError, match=r"must end in \.safetensors or \.json"):
        Scores.load(tmp_path / "scores.pt")


# ------------------------------------------------------------------ circuits


def test_a_circuit_cannot_be_changed() -> None:
    mask = SMALL.mask(["input->m0"])
    circuit = Circuit(SMALL, mask, info=INFO)
    mask[:] = False
    assert circuit.edges == ("input->m0",)
    with pytest.raises(ValueError, match="read-only"):
        circuit.mask[0, 0] = True
    with pytest.raises(TypeError):
        circuit.info["seed"] = 3  # pyright: ignore[reportIndexIssue]
    with pytest.raises(FrozenInstanceError):
        circuit.mask = mask  # pyright: ignore[reportAttributeAccessIssue]


def test_edges_come_in_index_order_whatever_order_they_are_given_in() -> None:
    names = ["m0->logits", "input->m0", "input->a0.h0<v>", "input->a0.h0<q>"]
    assert Circuit.from_edges(SMALL, names).edges == (
        "input->a0.h0<q>",
        "input->a0.h0<v>",
        "input->m0",
        "m0->logits",
    )


def test_set_operations_are_those_of_sets() -> None:
    a, b = random_circuit(GRAPH, 1, 0.5), random_circuit(GRAPH, 2, 0.5)
    assert set((a | b).edges) == set(a.edges) | set(b.edges)
    assert set((a & b).edges) == set(a.edges) & set(b.edges)
    assert set((a - b).edges) == set(a.edges) - set(b.edges)
    assert len(a) == len(set(a.edges)) and a.edges[0] in a and (Circuit.full(GRAPH) - a).edges[0] not in a


def test_equal_edges_are_equal_circuits() -> None:
    a = random_circuit(GRAPH, 1)
    b = Circuit(GRAPH, a.mask, np.ones(a.mask.shape), INFO)
    assert a == b and hash(a) == hash(b) and len({a, b}) == 1
    assert a != Circuit.empty(GRAPH) and a != "a"
    assert Circuit.full(GRAPH) != Circuit.full(replace(GRAPH, parallel=True))


def test_operations_between_graphs_name_both() -> None:
    other = Circuit.from_edges(SMALL, [])
    with pytest.raises(
        CircuitDiscoveryError,
        match=r"toy \(3 layers of 3 heads, .*an unnamed model \(1 layers of 1 heads, 8 edges\)",
    ):
        _ = Circuit(GRAPH, GRAPH.allowed, info=INFO) | other


def test_a_set_operation_keeps_no_provenance_that_became_untrue() -> None:
    a = Circuit(GRAPH, random_circuit(GRAPH, 1).mask, info=INFO)
    assert (a | Circuit(GRAPH, GRAPH.allowed, info=INFO)).info == {"model": INFO["model"]}
    assert (a | Circuit.full(GRAPH)).info == {}


def test_a_circuit_has_scores_of_its_own_edges_only() -> None:
    circuit = random_scores(SMALL).top(3)
    assert circuit.scores is not None and np.array_equal(~np.isnan(circuit.scores), circuit.mask)
    assert circuit.score(next(edge for edge in SMALL.edges if edge not in circuit)) is None
    assert Circuit(SMALL, circuit.mask, np.full(circuit.mask.shape, np.nan)).scores is None


def test_a_mask_outside_the_graph_is_refused() -> None:
    mask = np.ones(SMALL.allowed.shape, dtype=bool)
    with pytest.raises(CircuitDiscoveryError, match=r"the graph has no edge a0\.h0->a0\.h0<q>"):
        Circuit(SMALL, mask)


def test_nodes_are_what_edges_touch_in_topological_order() -> None:
    circuit = Circuit.from_edges(GROUPED, ["a0.h3->a1.kv1<k>", "m0->a1.h0<q>", "a1.h0->logits", "input->m0"])
    assert circuit.nodes == ("input", "a0.h3", "m0", "a1.kv1", "a1.h0", "logits")


def test_trap_10_nothing_depends_on_a_hash() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_circuit import *\n"
        "c = Circuit.from_nodes(GRAPH, {'a1.h1', 'a0.h2', 'm1', 'a2.h0'})\n"
        "print(c.nodes, c.edges, Scores(GRAPH, np.ones(GRAPH.allowed.shape)).greedy(20).edges, "
        "c.pruned().to_dict())"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code, str(Path(__file__).parent)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1] and b"a1.h1" in runs[0]


def test_from_nodes_has_every_edge_between_them() -> None:
    nodes = {"input", "logits", "a0.h1", "m1", "a2.h0"}
    circuit = Circuit.from_nodes(GRAPH, ["a2.h0", "a0.h1", "m1"])
    expected = {
        e for e in GRAPH.edges if e.split("->")[0] in nodes and e.split("->")[1].split("<")[0] in nodes
    }
    assert set(circuit.edges) == expected and "input->logits" in expected
    assert Circuit.from_nodes(GRAPH, circuit.nodes) == circuit
    assert Circuit.from_nodes(GRAPH, GRAPH.sources) == Circuit.full(GRAPH)


def test_from_nodes_takes_what_a_heads_group_reads() -> None:
    circuit = Circuit.from_nodes(GROUPED, ["a1.h2"])
    assert {"input->a1.h2<q>", "input->a1.kv1<k>", "input->a1.kv1<v>"} <= set(circuit.edges)
    assert not [edge for edge in circuit.edges if "a1.kv0" in edge or "a1.h3" in edge]
    with pytest.raises(CircuitDiscoveryError, match=r"no node 'a1\.h9'"):
        Circuit.from_nodes(GROUPED, ["a1.h9"])


def _on_a_path(circuit: Circuit) -> set[str]:
    """By networkx: the edges whose source is reached from `input` and whose receiver reaches `logits`."""
    view = nx.DiGraph()
    view.add_nodes_from(["input", "logits"])
    for edge in circuit.edges:
        source, receiver = edge.split("->")
        view.add_edge(source, receiver)
        view.add_edges_from((receiver, node) for node in circuit.graph.reader_nodes(receiver))
    up, down = nx.descendants(view, "input") | {"input"}, nx.ancestors(view, "logits") | {"logits"}
    return {edge for edge in circuit.edges if edge.split("->")[0] in up and edge.split("->")[1] in down}


@pytest.mark.parametrize(
    "graph", [GRAPH, GROUPED, replace(GRAPH, split_qkv=False), replace(GRAPH, has_mlp=False)], ids=str
)
def test_pruned_is_what_networkx_finds_on_paths(graph: Graph) -> None:
    lost = 0
    for seed in range(30):
        circuit = random_circuit(graph, seed, share=0.08 + 0.01 * (seed % 10))
        pruned = circuit.pruned()
        assert set(pruned.edges) == _on_a_path(circuit)
        assert pruned.pruned() == pruned
        lost += len(circuit) - len(pruned)
    assert lost > 100


def test_a_groups_keys_lead_to_each_of_its_heads() -> None:
    edges = ["input->a0.kv1<k>", "a0.h3->logits", "a0.h0->logits"]
    assert Circuit.from_edges(GROUPED, edges).pruned().edges == ("input->a0.kv1<k>", "a0.h3->logits")


def test_trap_3_pruning_leaves_the_callers_circuit_alone() -> None:
    circuit = Circuit.from_edges(GRAPH, ["a0.h0->m1", "input->logits"])
    graph, before = copy.deepcopy(circuit.graph), circuit.mask.copy()
    _ = circuit.pruned(), circuit.without(["a0.h0"]), circuit.to_networkx(), circuit | circuit
    assert np.array_equal(circuit.mask, before) and circuit.graph == graph and len(circuit) == 2
    assert circuit.pruned().edges == ("input->logits",)


def test_nothing_is_pruned_unasked() -> None:
    edges = ("a0.h0->m1", "m1->a2.h2<q>")
    assert Circuit.from_edges(GRAPH, edges).edges == edges
    scores = np.zeros(GRAPH.allowed.shape)
    scores[GRAPH.index(edges[0])] = 1
    assert Scores(GRAPH, scores).top(1).edges == edges[:1] == Scores(GRAPH, scores).above(0.5).edges


def test_without_removes_every_edge_of_the_nodes() -> None:
    circuit = Circuit.full(GRAPH)
    left = circuit.without(["a1.h2", "m0"])
    assert set(left.edges) == {
        e for e in circuit.edges if not {"a1.h2", "m0"} & {e.split("->")[0], e.split("->")[1].split("<")[0]}
    }
    assert circuit.without([]) == circuit
    with pytest.raises(CircuitDiscoveryError, match="input and logits cannot be removed"):
        circuit.without(["logits", "input"])


def test_without_keeps_what_the_rest_of_a_group_reads() -> None:
    full = Circuit.full(GROUPED)
    assert "input->a1.kv0<k>" in full.without(["a1.h0"]) and "input->a1.h0<q>" not in full.without(["a1.h0"])
    assert not [edge for edge in full.without(["a1.h0", "a1.h1"]).edges if "a1.kv0" in edge]


def test_the_strongest_nodes_by_hand() -> None:
    graph = Graph(n_layers=2, n_heads=1, n_kv_heads=1)
    edges = {"input->m0": 9.0, "a0.h0->m0": -3.0, "m0->m1": 1.0, "m0->logits": 1.0, "m1->logits": 2.5}
    values = np.zeros(graph.allowed.shape)
    for name, value in edges.items():
        values[graph.index(name)] = value
    scored = Circuit(graph, graph.mask(edges), values)
    assert scored.strongest(2) == ("a0.h0", "m1")
    assert scored.strongest(9) == ("a0.h0", "m0", "m1")
    assert Circuit.from_edges(graph, edges).strongest(1) == ("m0",)
    assert Circuit.empty(graph).strongest(3) == ()


def test_networkx_view_has_edges_letters_and_scores() -> None:
    circuit = random_scores(GROUPED).top(30)
    view = circuit.to_networkx()
    names = {f"{a}->{b}<{key}>" if key else f"{a}->{b}" for a, b, key in view.edges(keys=True)}
    assert names == set(circuit.edges)
    a, b, data = next(iter(view.edges(data=True)))
    assert data["score"] in [circuit.score(edge) for edge in circuit.edges if edge.startswith(f"{a}->{b}")]


def test_networkx_view_is_written_as_graphml(tmp_path: Path) -> None:
    """Whose attributes are texts and numbers; a group's heads are read from it again."""
    for circuit in (random_scores(GROUPED).top(60), random_scores(GRAPH).top(60)):
        view = circuit.to_networkx()
        nx.write_graphml(view, tmp_path / "a.graphml")
        read = nx.read_graphml(tmp_path / "a.graphml", force_multigraph=True)
        edges = [
            sorted((a, b, str(key), data) for a, b, key, data in each.edges(keys=True, data=True))
            for each in (view, read)
        ]
        assert edges[0] == edges[1] and len(edges[0]) == 60
        groups = {node: heads.split("\n") for node, heads in read.nodes(data="heads") if heads}
        assert (len(groups) > 0) == circuit.graph.grouped
        for node, heads in groups.items():
            assert tuple(heads) == circuit.graph.reader_nodes(f"{node}<k>")


def model(name: str = "toy", digest: str = INFO["model"]["digest"], graph: Graph = GRAPH) -> Any:
    return SimpleNamespace(name=name, digest=digest, graph=graph)


def test_a_circuit_of_another_model_names_both() -> None:
    circuit = Circuit(GRAPH, GRAPH.allowed, info=INFO)
    circuit.check_model(model())
    circuit.check_model(model(name="a copy elsewhere"))
    Circuit.full(GRAPH).check_model(model(digest="unknown to a circuit by hand"))
    Circuit.full(replace(GRAPH, split_qkv=False)).check_model(model())
    with pytest.raises(
        CircuitDiscoveryError, match=r"toy \(weights ab12ab12ab12\), not of gpt2 \(weights 99\)"
    ):
        circuit.check_model(model(name="gpt2", digest="99"))
    with pytest.raises(
        CircuitDiscoveryError,
        match=r"toy \(3 layers of 3 heads, .* not of gpt2 \(3 layers of 4 heads in 2 groups",
    ):
        circuit.check_model(model(name="gpt2", graph=GROUPED))


# --------------------------------------------------------------------- files


def test_a_saved_circuit_comes_back(tmp_path: Path) -> None:
    info = {**INFO, "roles": {"mover": ["a1.h0"], "early": ["m0", "a0.h1"]}}
    values = np.where(
        np.arange(GRAPH.allowed.size).reshape(GRAPH.allowed.shape) % 3, random_scores(GRAPH).values, np.nan
    )
    circuit = Circuit(GRAPH, random_circuit(GRAPH, 3).mask, values, info)
    circuit.save(tmp_path / "c.json")
    loaded = load_circuit(tmp_path / "c.json")
    assert loaded == circuit and loaded.info == info and loaded.roles["early"] == ("m0", "a0.h1")
    assert [loaded.score(e) for e in loaded.edges] == [circuit.score(e) for e in circuit.edges]
    assert {type(circuit.score(e)) for e in circuit.edges} == {float, type(None)}
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "c.json").read_bytes()


def test_the_file_says_what_the_contract_says(tmp_path: Path) -> None:
    Circuit(SMALL, SMALL.mask(["m0->logits", "input->m0"]), np.full((3, 5), 0.5), INFO).save(
        tmp_path / "c.json"
    )
    said = json.loads((tmp_path / "c.json").read_text("utf-8"))
    assert {name: said[name] for name in INFO} == INFO
    assert said["total_edges"] == 8 and said["n_edges"] == 2
    assert said["edges"] == {"input->m0": 0.5, "m0->logits": 0.5}
    assert said["graph"]["n_heads"] == 1 and "time" not in json.dumps(said)


def test_shipped_circuits_load_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("circuitdiscovery.circuit.load.shipped", lambda kind: ["gpt2/ioi", "toy/ioi"])
    monkeypatch.setattr("circuitdiscovery.circuit.load.data_folder", lambda kind: tmp_path)
    (tmp_path / "toy").mkdir()
    random_circuit(GRAPH, 1).save(tmp_path / "toy" / "ioi.json")
    assert load_circuit("toy/ioi") == random_circuit(GRAPH, 1)
    with pytest.raises(CircuitDiscoveryError, match=r"'gpt/ioi'.* one of gpt2/ioi"):
        load_circuit("gpt/ioi")


def saved(**changes: Any) -> dict[str, Any]:
    said = Circuit(SMALL, SMALL.mask(["m0->logits", "input->m0"]), np.full((3, 5), 0.5), INFO).to_dict()
    return {name: value for name, value in {**said, **changes}.items() if value != "gone"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": "gone"}, "lacks 'seed'"),
        ({"sede": 1}, "no field 'sede'; did you mean 'seed'"),
        ({"format": "circuitdiscovery circuit 9"}, "field 'format' must be"),
        ({"model": "toy"}, "field 'model' must be an object, not 'toy'"),
        ({"model": {"name": "toy"}}, "field 'model.digest' must be text, not null"),
        ({"task": 3}, "field 'task' must be text, not 3"),
        ({"seed": True}, "field 'seed' must be a whole number, not True"),
        ({"examples": 64.0}, "field 'examples' must be a whole number"),
        ({"options": []}, "field 'options' must be an object"),
        ({"versions": {"torch": 2}}, "field 'versions.torch' must be text"),
        ({"roles": {"mover": ["a0.h1"]}}, r"field 'roles.mover': no node 'a0.h1'; did you mean 'a0.h0'"),
        ({"roles": {"mover": "a0.h0"}}, "field 'roles.mover' must be a list"),
        ({"graph": None}, "field 'graph' must be an object"),
        ({"graph": {**SMALL.to_dict(), "n_heads": "1"}}, "field 'graph.n_heads' must be a whole number"),
        ({"graph": {**SMALL.to_dict(), "n_heads": 0}}, "field 'graph': a graph needs at least one"),
        ({"graph": {**SMALL.to_dict(), "parallel": 1}}, "field 'graph.parallel' must be true or false"),
        ({"graph": {**SMALL.to_dict(), "n_layers": 10**9}}, "is not the shape of a model"),
        ({"graph": {"n_layers": 1}}, "field 'graph' lacks"),
        ({"n_edges": 3}, "field 'n_edges' says 3, but there are 2"),
        ({"total_edges": 9}, "field 'total_edges' says 9, but there are 8"),
        ({"edges": ["input->m0"]}, "field 'edges' must be an object"),
        (
            {"edges": {"input->m0": 0.5, "m0->logits": "high"}},
            "field 'edges.m0->logits' must be a number, not 'high'",
        ),
        ({"edges": {"input->m0": 0.5, "m0->m0": 1.0}}, "field 'edges': no edge 'm0->m0'"),
    ],
)
def test_a_wrong_file_is_named_with_its_field(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps(saved(**changes)), "utf-8")
    with pytest.raises(CircuitDiscoveryError, match=message) as error:
        load_circuit(path)
    assert str(error.value).startswith(str(path)) and len(str(error.value).splitlines()) == 1


def test_the_unchanged_file_is_right(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps(saved()), "utf-8")
    assert len(load_circuit(str(tmp_path / "c.json"))) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps(saved()).replace("0.5", "NaN"), "line 1: NaN is not a finite number"),
        (
            json.dumps(saved()).replace('"input->m0": 0.5', '"input->m0": 0.5, "input->m0": 0.5'),
            "'input->m0' stands twice",
        ),
        ("[]", "must be an object"),
        ("3", "must be an object"),
        ("{", "line 1: not JSON"),
        ("[" * 100_000, "nested deeper"),
        ("", "is empty"),
    ],
)
def test_what_is_no_circuit_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.json").write_text(text, "utf-8")
    with pytest.raises(CircuitDiscoveryError, match=message):
        load_circuit(tmp_path / "c.json")


def test_what_could_not_be_loaded_cannot_be_made() -> None:
    with pytest.raises(CircuitDiscoveryError, match="info: no field 'metohd'; did you mean 'method'"):
        Circuit(SMALL, SMALL.allowed, info={"metohd": "acdc"})
    with pytest.raises(CircuitDiscoveryError, match="info: not JSON"):
        Circuit(SMALL, SMALL.allowed, info={"options": {"threshold": float("nan")}})
    with pytest.raises(CircuitDiscoveryError, match=r"must end in \.json"):
        Circuit.full(SMALL).save("circuit.txt")


def test_roles_are_carried_saved_and_replaced(tmp_path: Path) -> None:
    graph = Graph(2, 2, 2)
    circuit = Circuit.from_edges(graph, ["input->m0", "m0->logits"])
    named = circuit.with_roles({"early": ("m0",)})
    named.save(tmp_path / "c.json")
    assert (
        named == circuit
        and not circuit.roles
        and dict(load_circuit(tmp_path / "c.json").roles) == {"early": ("m0",)}
    )
    assert (
        dict(named.with_roles({"late": iter(["m1"])}).roles) == {"late": ("m1",)}
        and not named.with_roles({}).roles
    )
    with pytest.raises(CircuitDiscoveryError, match="no node 'm7'"):
        circuit.with_roles({"x": ["m7"]})
