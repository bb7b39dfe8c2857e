"""The published circuits have the edges that the papers' figures count."""

from __future__ import annotations

from collections import Counter

import pytest

import circuitdiscovery as cd

# Conmy et al. 2023's ground truth for IOI, by kind of writer and reader
IOI_KINDS = {
    ("m", "q"): 189, ("m", "k"): 189, ("m", "v"): 189, ("a", "m"): 123, ("m", "m"): 66, ("a", "q"): 52, ("a", "k"): 36, ("a", "v"): 36,
    ("input", "k"): 18, ("input", "v"): 18, ("a", "logits"): 13, ("m", "logits"): 12, ("input", "m"): 12, ("input", "q"): 9,
    ("input", "logits"): 1,
}  # fmt: skip


def kinds(circuit: cd.Circuit) -> Counter[tuple[str, str]]:
    found: Counter[tuple[str, str]] = Counter()
    for edge in circuit.edges:
        source, receiver = edge.split("->")
        reader = receiver[-2] if receiver.endswith(">") else "logits" if receiver == "logits" else "m"
        found["input" if source == "input" else source[0], reader] += 1
    return found


def test_ioi() -> None:
    circuit = cd.load_circuit("gpt2/ioi")
    assert len(circuit) == 963 and len(circuit.graph) == 32491
    assert kinds(circuit) == IOI_KINDS
    assert {role: len(nodes) for role, nodes in circuit.roles.items()} == {
        "name mover": 3, "backup name mover": 8, "negative name mover": 2, "S-inhibition": 4, "induction": 4, "duplicate token": 3,
        "previous token": 2,
    }  # fmt: skip
    assert sum(node.startswith("a") for node in circuit.nodes) == 26
    for edge in ("a9.h9->logits", "a7.h3->a9.h9<q>", "a5.h5->a7.h3<k>", "a2.h2->a5.h5<v>", "input->a9.h9<v>"):
        assert edge in circuit
    for edge in ("input->a9.h9<q>", "a7.h3->a9.h9<k>", "a7.h3->logits"):
        assert edge not in circuit


def test_greater_than() -> None:
    circuit = cd.load_circuit("gpt2/greater_than")
    assert len(circuit) == 235
    for edge in (
        "input->a0.h1<q>",
        "a0.h1->m0",
        "a0.h5->a5.h5<k>",
        "a8.h11->m8",
        "a9.h1->m11",
        "m4->a5.h5<q>",
        "m4->m7",
        "m11->logits",
    ):
        assert edge in circuit
    for edge in ("m4->a5.h5<k>", "a9.h1->m8", "m7->m9", "a0.h3->m0", "m4->logits"):
        assert edge not in circuit.edges


@pytest.mark.parametrize(
    ("name", "edges", "total"), [("attn-only-4l/docstring", 24, 1281), ("redwood_attn_2l/induction", 6, 257)]
)
def test_attention_only(name: str, edges: int, total: int) -> None:
    circuit = cd.load_circuit(name)
    assert (len(circuit), len(circuit.graph)) == (edges, total)
    assert not circuit.graph.has_mlp


def test_the_induction_circuit_is_of_the_model_whose_heads_it_names() -> None:
    """Shi et al.'s `get_induction_canonical_circuit`, whose task loads `redwood_attn_2l`; TransformerLens'
    `attn-only-2l` has other weights in the same shape."""
    circuit = cd.load_circuit("redwood_attn_2l/induction")
    assert set(circuit.edges) == {
        "input->a0.h0<v>", "input->a1.h6<q>", "a0.h0->a1.h6<k>", "input->a1.h6<v>", "input->logits", "a1.h6->logits",
    }  # fmt: skip
    assert "2410.13032" in circuit.info["options"]["source"]
    with pytest.raises(
        cd.CircuitDiscoveryError, match=r"no folder 'attn-only-2l/induction'.* redwood_attn_2l/"
    ):
        cd.load_circuit("attn-only-2l/induction")


def test_every_published_edge_lies_on_a_path() -> None:
    """Hand-made circuits say how information gets from the input to
    the logits: pruning takes nothing away."""
    for name in ("gpt2/ioi", "gpt2/greater_than", "attn-only-4l/docstring", "redwood_attn_2l/induction"):
        circuit = cd.load_circuit(name)
        assert len(circuit.pruned()) == len(circuit), name
        assert circuit.to_dict()["method"] == "published" and "source" in circuit.info["options"]
