"""Node cards: attention as Hugging Face gives it, attribution that adds up, effects as exact patching measures them, and roles that
are known by construction or by intervention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import Tiny

import circuitdiscovery as cd
from circuitdiscovery.ablation import run_sources
from circuitdiscovery.attention import attention, observe
from circuitdiscovery.headscores import PatternScores, repeated_sequences
from circuitdiscovery.planted.suite import planted

PLANTED = ("induction", "induction-hard", "induction-hard-layernorm", "ioi", "ioi-hard", "ioi-hard-layernorm")


def task_of(tiny: Tiny, **more: Any) -> cd.Task:
    prompts = tiny.prompts
    return cd.Task.from_tokens(clean=prompts.clean, corrupted=prompts.corrupted, correct=[3] * 5, incorrect=[4] * 5, **more)


@pytest.fixture(scope="module")
def toy() -> Any:
    return cd.load_model("toy")


@pytest.fixture(scope="module")
def ioi(toy: Any) -> cd.Task:
    return cd.load_task("ioi", toy)


@pytest.fixture(scope="module")
def explained(toy: Any, ioi: cd.Task) -> cd.Explanation:
    return cd.explain(toy, ioi, cd.acdc(toy, ioi, threshold=0.002))


# ------------------------------------------------------------------ what is measured


def test_attention_is_hugging_faces(tiny: Tiny) -> None:
    from transformers import AutoModelForCausalLM

    eager = AutoModelForCausalLM.from_pretrained(tiny.folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        expected = torch.stack(eager(tiny.prompts.clean, output_attentions=True).attentions)  # [L, N, H, T, T]
    torch.testing.assert_close(attention(tiny.model, tiny.prompts.clean), expected.transpose(1, 2), rtol=1e-4, atol=1e-5)


def test_direct_attribution_adds_up_to_the_logits(tiny: Tiny) -> None:
    model = tiny.model
    (seen,) = observe(model, task_of(tiny))
    written = sum(seen.written(row) for row in range(len(model.graph.sources)))
    bias = sum((block.b_O for block in model.blocks if block.b_O is not None), torch.zeros(model.d_model))
    inverse = (seen.stream - (seen.stream.mean(-1, keepdim=True) if model.final_norm.centred else 0)).square().mean(-1, keepdim=True)
    bias = (bias - bias.mean() if model.final_norm.centred else bias) / (inverse + model.final_norm.eps).sqrt() * model.final_norm.weight
    total = written + bias + (0 if model.final_norm.bias is None else model.final_norm.bias)
    with torch.no_grad():
        expected = tiny.hf(tiny.prompts.clean).logits[:, -1]
    torch.testing.assert_close(total @ model.W_U.T, expected, rtol=1e-4, atol=1e-4)


def test_direct_attribution_of_a_node_is_its_definition(gpt2: Tiny) -> None:
    model, task = gpt2.model, task_of(gpt2)
    card = cd.explain(model, task, cd.Circuit.full(model.graph)).cards["a1.h2"]
    sources = run_sources(model, gpt2.prompts.clean)[:, :, -1].double().numpy()  # [S, N, D]
    stream = sources.sum(0) + torch.stack([block.b_O for block in model.blocks]).sum(0).double().numpy()  # [N, D]
    head = sources[model.graph.source_index["a1.h2"]]
    scale = model.final_norm.weight.double().numpy() / np.sqrt(stream.var(-1, keepdims=True) + model.final_norm.eps)
    normalised = (head - head.mean(-1, keepdims=True)) * scale
    expected = (normalised @ (model.W_U[3] - model.W_U[4]).double().numpy()).mean()
    assert float(card.direct) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("ablation", ["resample", "zero"])
def test_effect_is_what_exact_patching_measures(tiny: Tiny, ablation: str) -> None:
    model, task = tiny.model, task_of(tiny)
    found = cd.explain(model, task, cd.Circuit.full(model.graph), ablation=ablation)
    expected = cd.exact(model, task, level="node", metric="logit_diff", ablation=ablation)
    assert set(found.cards) == set(expected) - {"input"}
    for node, card in found.cards.items():
        assert float(card.effect) == pytest.approx(expected[node], abs=2e-5) and card.effect.low <= card.effect <= card.effect.high


def test_pattern_scores_are_their_definitions_written_out(gpt2: Tiny) -> None:
    model, task = gpt2.model, task_of(gpt2)
    tokens = repeated_sequences(model, task)
    assert tokens is not None
    period = tokens.shape[1] // 2
    assert torch.equal(tokens[:, :period], tokens[:, period:]) and all(len(set(row[:period])) == period for row in tokens.tolist())
    weights = attention(model, tokens)[1, 0]
    sums = {"previous token": [0.0, 0], "duplicate token": [0.0, 0], "induction": [0.0, 0]}
    for row in range(len(tokens)):
        for query in range(1, 2 * period):
            for key in range(query + 1):
                same = query >= period and int(tokens[row, key]) == int(tokens[row, query]) and key < query
                after = query >= period and key > 0 and key - 1 < period and int(tokens[row, key - 1]) == int(tokens[row, query])
                for name, hit in (("previous token", key == query - 1), ("duplicate token", same), ("induction", after)):
                    sums[name][0] += float(weights[row, query, key]) * hit
    counts = {"previous token": len(tokens) * (2 * period - 1), "duplicate token": len(tokens) * period, "induction": len(tokens) * period}
    found = PatternScores.measure(model, task).of("a1.h0")
    for name, (total, _) in sums.items():
        assert found[name] == pytest.approx(total / counts[name], abs=1e-4), name


def test_attention_between_named_positions_is_a_mean_over_examples(gpt2: Tiny) -> None:
    task = task_of(gpt2, positions={"A": [0, 1, 2, 0, 1], "B": 3})
    card = cd.explain(gpt2.model, task, cd.Circuit.full(gpt2.model.graph)).cards["a0.h1"]
    weights = attention(gpt2.model, gpt2.prompts.clean)[0, 1]
    expected = np.mean([float(weights[i, 3, a]) for i, a in enumerate([0, 1, 2, 0, 1])])
    assert card.attention["B", "A"] == pytest.approx(expected, abs=1e-6) and ("A", "B") not in card.attention
    assert card.patterns[0].weights == pytest.approx(weights[0].numpy(), abs=1e-6)


def test_the_lens_ranks_what_a_node_writes(gpt2: Tiny) -> None:
    model, task = gpt2.model, task_of(gpt2)
    (seen,) = observe(model, task)
    logits = (seen.written(model.graph.source_index["m1"]) @ model.W_U.T)[0]
    lens = cd.explain(model, task, cd.Circuit.full(model.graph)).cards["m1"].lens[0]
    order = logits.argsort(descending=True).tolist()
    shown = [str(model.tokenizer.decode([token])) if model.tokenizer is not None else str(token) for token in order]
    assert [word for word, _ in lens.promoted] == shown[:5] and [word for word, _ in lens.suppressed] == shown[::-1][:5]
    assert [value for _, value in lens.promoted] == pytest.approx(logits[order[:5]].tolist(), abs=1e-5)


# ------------------------------------------------------------------ roles


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANTED)
def test_roles_that_are_known_by_construction(name: str) -> None:
    """Every head of the truth gets its role, and no other head gets any, in the full graph."""
    problem = planted()[name]()
    known = {role: nodes for role, nodes in problem.truth.roles.items() if nodes[0].startswith("a")}
    found = cd.explain(problem.model, problem.task, cd.Circuit.full(problem.model.graph)).roles
    assert {role: tuple(nodes) for role, nodes in found.items()} == {role: tuple(nodes) for role, nodes in known.items()}


def test_planted_heads_attend_as_they_were_built() -> None:
    problem = planted(examples=32)["induction"]()
    cards = cd.explain(problem.model, problem.task, problem.truth).cards
    assert cards["a0.h2"].scores["previous token"] == pytest.approx(1, abs=0.01)
    assert cards["a1.h1"].attention["END", "next"] == pytest.approx(1, abs=0.01)
    ioi = planted(examples=32)["ioi"]()
    cards = cd.explain(ioi.model, ioi.task, ioi.truth).cards
    assert cards["a2.h1"].attention["END", "S2"] == pytest.approx(1, abs=0.01)


@pytest.mark.slow
def test_toys_roles_are_what_interventions_say(toy: Any, ioi: cd.Task, explained: cd.Explanation) -> None:
    """Edges patched one kind at a time, measured by `run_circuit` alone, tell what the heads with the largest effects do."""
    test, graph = ioi.held_out, toy.graph
    assert test is not None
    correct, incorrect = (torch.tensor([getattr(e, side)[0] for e in test.examples]) for side in ("correct", "incorrect"))
    rows = torch.arange(len(test))

    def damage(*edges: str) -> float:
        logits = [cd.run_circuit(toy, test, circuit) for circuit in (cd.Circuit.full(graph), without(edges))]
        full, less = ((each[rows, correct] - each[rows, incorrect]).mean() for each in logits)
        return float(full - less)

    def without(edges: tuple[str, ...]) -> cd.Circuit:
        return cd.Circuit.full(graph) - cd.Circuit.from_edges(graph, edges)

    movers = [f"a2.h{head}" for head in range(4)]
    for node in ("a2.h0", "a2.h2"):  # what they do, they do to the logits directly
        assert damage(f"{node}->logits") > 0.7 * damage(*(e for e in graph.edges if e.startswith(f"{node}->"))) > 0.7
        assert explained.cards[node].role == "name mover"
    for node in ("a1.h1", "a1.h3"):  # what they do goes through the movers' queries
        queries = damage(*(f"{node}->{mover}<q>" for mover in movers))
        assert queries > 1.5 and abs(damage(f"{node}->logits")) < 0.1 * queries
        assert explained.cards[node].role == "S-inhibition"
    # without the match of S2's query with S1's key nothing is left
    assert damage("input->a0.h0<q>") > 3 and damage("input->a0.h0<k>") > 3
    assert explained.cards["a0.h0"].role == "duplicate token"


def test_a_role_has_evidence_and_no_role_has_none(explained: cd.Explanation) -> None:
    assert all(bool(card.evidence) == (card.role is not None) for card in explained.cards.values())
    card = explained.cards["a1.h3"]
    assert f"{card.attention['END', 'S2']:.2f}" in card.evidence[0]


# ------------------------------------------------------------------ values, files, errors


def test_an_explanation_comes_back_from_its_file(explained: cd.Explanation, tmp_path: Path) -> None:
    explained.save(tmp_path / "a.json")
    again = cd.Explanation.load(tmp_path / "a.json")
    again.save(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert again.roles == explained.roles and str(again).splitlines()[0] == str(explained).splitlines()[0]
    assert float(again.cards["a2.h0"].effect) == pytest.approx(float(explained.cards["a2.h0"].effect), rel=1e-5)


def test_the_same_call_gives_the_same_bytes(toy: Any, tmp_path: Path) -> None:
    task, circuit = cd.load_task("subject_verb_agreement", toy, examples=8), cd.Circuit.from_nodes(toy.graph, ["a0.h3", "a2.h1", "m3"])
    for name in ("a.json", "b.json"):
        cd.explain(toy, task, circuit).save(tmp_path / name)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_a_table_has_a_row_for_each_node(explained: cd.Explanation) -> None:
    frame = explained.to_dataframe()
    assert frame["node"].tolist() == list(explained.cards) and {"role", "effect", "effect_low", "effect_high", "direct"} <= set(frame)


def test_grouped_and_merged_edges_belong_to_each_head(llama: Tiny, gpt2: Tiny) -> None:
    graph = llama.model.graph
    cards = cd.explain(
        llama.model, task_of(llama), cd.Circuit.from_edges(graph, ["input->a1.kv0<k>", "a1.h0->logits", "a1.h1->logits"])
    ).cards
    assert [card.in_edges for card in cards.values()] == [(("input->a1.kv0<k>", None),)] * 2
    merged = cd.Graph.from_model(gpt2.model, split_qkv=False)
    cards = cd.explain(gpt2.model, task_of(gpt2), cd.Circuit.from_edges(merged, ["input->a0.h1", "a0.h1->logits"])).cards
    assert cards["a0.h1"].in_edges == (("input->a0.h1", None),)


def test_a_circuit_without_nodes_is_explained_too(gpt2: Tiny) -> None:
    empty = cd.explain(gpt2.model, task_of(gpt2), cd.Circuit.empty(gpt2.model.graph))
    assert not empty.cards and not empty.roles and str(empty)


def test_bad_input_is_told_in_one_line(gpt2: Tiny, toy: Any) -> None:
    full, task = cd.Circuit.full(gpt2.model.graph), task_of(gpt2)
    for wrong, told in (
        (lambda: cd.explain(toy, cd.load_task("ioi", toy, examples=2), full), "edges"),
        (lambda: cd.explain(gpt2.model, task, full, metric="logits"), "no metric 'logits'"),
        (lambda: cd.explain(gpt2.model, task, full, ablation="none"), "no ablation 'none'"),
        (lambda: cd.explain(gpt2.model, task, full, prompts=0), "prompts must be"),
    ):
        with pytest.raises(cd.CircuitDiscoveryError, match=told) as caught:
            wrong()
        assert "\n" not in str(caught.value)
