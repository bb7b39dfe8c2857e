"""The graph's counts, order and names, against the published figures and networkx."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest

from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.graph.views import networkx_of

GPT2_SMALL = Graph(n_layers=12, n_heads=12, n_kv_heads=12)
GROUPED = Graph(n_layers=3, n_heads=8, n_kv_heads=2)
SHAPES = [
    Graph(n_layers=2, n_heads=3, n_kv_heads=3),
    Graph(n_layers=2, n_heads=3, n_kv_heads=3, split_qkv=False),
    Graph(n_layers=2, n_heads=3, n_kv_heads=3, parallel=True),
    Graph(n_layers=3, n_heads=2, n_kv_heads=2, has_mlp=False),
    GROUPED,
    Graph(n_layers=2, n_heads=4, n_kv_heads=1, parallel=True),
]
each_shape = pytest.mark.parametrize("graph", SHAPES, ids=str)


@pytest.mark.parametrize(
    ("shape", "edges"),
    [
        ({"n_layers": 12, "n_heads": 12}, 32_491),  # GPT-2 small (ACDC, EAP-IG)
        ({"n_layers": 12, "n_heads": 12, "split_qkv": False}, 11_611),
        ({"n_layers": 4, "n_heads": 8, "has_mlp": False}, 1_281),
        ({"n_layers": 2, "n_heads": 8, "has_mlp": False}, 257),
        ({"n_layers": 4, "n_heads": 4}, 479),  # the agreement fixture's, by EAP-IG's code and AutoCircuit
    ],
)
def test_published_edge_counts(shape: dict[str, Any], edges: int) -> None:
    graph = Graph(n_kv_heads=shape["n_heads"], **shape)
    assert len(graph) == edges == len(graph.edges) == len(set(graph.edges))


def test_published_node_counts() -> None:
    assert (len(GPT2_SMALL.sources), len(GPT2_SMALL.receivers)) == (157, 445)


def test_the_fixture_names_the_same_edges(shared: Path) -> None:
    results = json.loads((shared / "fixtures" / "agreement" / "results.json").read_text("utf-8"))
    assert set(Graph(n_layers=4, n_heads=4, n_kv_heads=4).edges) == set(results["eap"])


@each_shape
def test_networkx_finds_no_cycle(graph: Graph) -> None:
    view = graph.to_networkx()
    if graph.grouped:  # what a group reads goes on to its heads
        view.add_edges_from(
            (node, head) for node, heads in list(view.nodes(data="heads")) for head in (heads or "").split()
        )
    assert nx.is_directed_acyclic_graph(view)


@each_shape
def test_index_order_is_topological(graph: Graph) -> None:
    """Every receiver's node stands after all the sources it reads,
    and edges come by source, then by receiver.
    """
    for row, column in np.argwhere(graph.allowed):
        for node in graph.reader_nodes(graph.receivers[column]):
            assert row < graph.source_index[node]
    positions = [graph.index(edge) for edge in graph.edges]
    assert positions == sorted(positions)


@each_shape
def test_names_round_trip(graph: Graph) -> None:
    rng = np.random.default_rng(0)
    mask = graph.allowed & (rng.random(graph.allowed.shape) < 0.3)
    assert np.array_equal(graph.mask(graph.names(mask)), mask)
    assert np.array_equal(graph.mask(reversed(graph.names(mask))), mask)
    assert Graph(**graph.to_dict()) == graph


@each_shape
def test_networkx_has_every_edge_once_under_its_letter(graph: Graph) -> None:
    view = graph.to_networkx()
    assert view.number_of_edges() == len(graph)
    letters = Counter(key for _, _, key in view.edges(keys=True))
    if graph.split_qkv:
        assert letters["k"] == letters["v"] > 0
        assert letters["q"] == letters["k"] * graph.n_heads // graph.n_kv_heads
    else:
        assert set(letters) == {0}


def test_a_head_reads_no_head_of_its_own_layer_but_its_mlp_does() -> None:
    edges = set(GPT2_SMALL.edges)
    assert "a9.h6->a10.h0<q>" in edges and "input->m0" in edges and "m3->logits" in edges
    assert "a9.h6->a9.h7<q>" not in edges and "a9.h6->a9.h6<q>" not in edges and "m9->a9.h6<q>" not in edges
    assert "a9.h6->m9" in edges and "m9->m9" not in edges and "m9->a10.h0<k>" in edges
    assert "input->logits" in edges


def test_in_parallel_blocks_the_mlp_does_not_read_its_attention() -> None:
    edges = set(Graph(n_layers=3, n_heads=2, n_kv_heads=2, parallel=True).edges)
    assert (
        "a1.h0->m1" not in edges
        and "a0.h0->m1" in edges
        and "a1.h0->m2" in edges
        and "a2.h1->logits" in edges
    )


def test_trap_8_shared_keys_and_values_are_one_receiver_of_their_group() -> None:
    """An edge to each query head's copy would count edges that are not independent."""
    # by hand: layer l has 1 + 9 l sources below, 8 + 2*2 receivers in heads, and an
    # MLP that reads 8 more; logits read all 28
    assert len(GROUPED) == sum((1 + 9 * layer) * 12 + (1 + 9 * layer + 8) for layer in range(3)) + 28
    edges = set(GROUPED.edges)
    assert "a0.h7->a1.kv1<k>" in edges and "a0.h0->a1.h5<q>" in edges
    assert not [edge for edge in edges if edge.endswith((".h0<k>", ".h0<v>", ".kv0<q>"))]
    assert GROUPED.reader_nodes("a1.kv1<v>") == ("a1.h4", "a1.h5", "a1.h6", "a1.h7")
    assert GROUPED.to_networkx().nodes["a1.kv0"]["heads"] == "a1.h0\na1.h1\na1.h2\na1.h3"


def test_columns_name_the_receivers() -> None:
    for layer in range(3):
        assert [GROUPED.receivers[i] for i in GROUPED.columns(layer, "k")] == [
            f"a{layer}.kv0<k>",
            f"a{layer}.kv1<k>",
        ]
        assert [GROUPED.receivers[i] for i in GROUPED.columns(layer, "q")] == [
            f"a{layer}.h{head}<q>" for head in range(8)
        ]
        assert [GROUPED.receivers[i] for i in GROUPED.columns(layer, "m")] == [f"m{layer}"]
        assert GROUPED.sources[GROUPED.heads(layer)] == tuple(f"a{layer}.h{head}" for head in range(8))
        assert GROUPED.sources[GROUPED.mlps(layer)] == (f"m{layer}",)


@pytest.mark.parametrize(
    "wrong",
    [
        "a0.h1->a1.h0",
        "a0.h1->a1.h8<q>",
        "a1.h0->a0.h1<q>",
        "a0.h1->a1.h0<k>",
        "logits->input",
        "",
        "input",
        "input->",
    ],
)
def test_an_unknown_edge_is_an_error(wrong: str) -> None:
    with pytest.raises(CircuitDiscoveryError, match="no edge"):
        GROUPED.index(wrong)


def test_an_unknown_edge_offers_the_nearest() -> None:
    with pytest.raises(
        CircuitDiscoveryError, match=r"no edge 'a0\.h1->a1\.h1q'; did you mean 'a0\.h1->a1\.h1<q>'"
    ):
        Graph(n_layers=2, n_heads=2, n_kv_heads=2).index("a0.h1->a1.h1q")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_layers": 0, "n_heads": 1, "n_kv_heads": 1}, "at least one"),
        ({"n_layers": 1, "n_heads": 4, "n_kv_heads": 3}, r"n_heads \(4\) a multiple of n_kv_heads \(3\)"),
        (
            {"n_layers": 1, "n_heads": 4, "n_kv_heads": 2, "split_qkv": False},
            "4 heads share 2 key/value groups",
        ),
    ],
)
def test_impossible_graphs_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(CircuitDiscoveryError, match=message):
        Graph(**arguments)


def test_allowed_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        GPT2_SMALL.allowed[0, 0] = False


@each_shape
def test_everywhere_is_what_a_key_or_a_value_leads_on(graph: Graph) -> None:
    rng = np.random.default_rng(0)
    for density in (0.1, 0.3, 1.0):
        mask = graph.allowed & (rng.random(graph.allowed.shape) < density)
        view = networkx_of(graph, mask)
        for node, heads in list(view.nodes(data="heads")):
            view.add_edges_from((node, head) for head in (heads or "").split())
        view.add_nodes_from(["logits", *graph.sources])
        leads = nx.ancestors(view, "logits")
        # ends of kept edges that other positions read; 0 is also the key of
        # MLPs, logits and of a group to its heads
        across = {
            source
            for source, reader, key in view.edges(keys=True)
            if reader in leads
            and (key in ("k", "v") or (key == 0 and not graph.split_qkv and ".h" in reader))
        }
        expected = across | {node for source in across for node in nx.ancestors(view, source)}
        assert {
            name for name, is_so in zip(graph.sources, graph.everywhere(mask), strict=True) if is_so
        } == expected & set(graph.sources)


@pytest.mark.parametrize("shape", [(3, 4, 4, True), (3, 4, 4, False), (2, 6, 2, True)])
def test_touching_is_every_edge_with_an_end_among_the_nodes(shape: tuple[int, int, int, bool]) -> None:
    layers, heads, groups, split = shape
    graph = Graph(layers, heads, groups, split_qkv=split)
    for nodes in ({"a0.h1"}, {"a1.h0", "m0"}, {f"a1.h{head}" for head in range(3)}, set(graph.sources[1:])):
        touching = graph.touching(nodes)
        for row, source in enumerate(graph.sources):
            for column, receiver in enumerate(graph.receivers):
                readers = graph.reader_nodes(receiver)
                assert touching[row, column] == (
                    source in nodes or (receiver != "logits" and nodes >= {*readers})
                )
