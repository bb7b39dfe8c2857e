"""Planted circuits: the programs compute what they say, and the
stated edges are the circuit, by intervention.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np
import pytest
import torch

import circuitdiscovery as cd
from circuitdiscovery.benchmark.problems.compiler import Program
from circuitdiscovery.benchmark.problems.hard import DECAY
from circuitdiscovery.benchmark.problems.problem import Problem
from circuitdiscovery.benchmark.problems.programs import RECIPES
from circuitdiscovery.benchmark.problems.suite import planted
from circuitdiscovery.model.model import Model
from circuitdiscovery.task.batch import Batch

SMALL = planted(examples=24)
CONSTRUCTED = [name for name in SMALL if not name.startswith("semisynthetic")]


@cache
def problem(name: str) -> Problem:
    return SMALL[name]()


# ------------------------------------------------------------------ a slow forward of any edge mask


def slow_logits(model: Model, batch: Batch, mask: np.ndarray) -> np.ndarray:
    """[N, vocabulary] in float64: one receiver after the other reads the
    sum of what it is given, source by source.
    """
    graph, weight = model.graph, lambda x: x.double().numpy()

    def norm(module: object, x: np.ndarray) -> np.ndarray:
        return module(torch.from_numpy(x).float()).double().numpy()  # type: ignore[operator]

    def run(tokens: torch.Tensor, replaced: Mapping[str, np.ndarray] | None) -> dict[str, np.ndarray]:
        written = {"input": weight(model.W_E)[tokens.numpy()] + weight(model.W_pos)[None, : tokens.shape[1]]}

        def read(receiver: str) -> np.ndarray:
            column = graph.receiver_index[receiver]
            upstream = [name for row, name in enumerate(graph.sources) if graph.allowed[row, column]]
            kept = [replaced is None or mask[graph.source_index[name], column] for name in upstream]
            return np.sum(
                [
                    written[n] if keep or replaced is None else replaced[n]
                    for n, keep in zip(upstream, kept, strict=True)
                ],
                axis=0,
            )

        for layer, block in enumerate(model.blocks):
            for head in range(graph.n_heads):
                q, k, v = (
                    norm(block.norm1, read(f"a{layer}.h{head}<{letter}>"))
                    @ weight(block.projection(letter)[0][head]).T
                    for letter in "qkv"
                )
                scores = q @ k.swapaxes(1, 2) * block.scale
                scores = np.where(np.tril(np.ones(scores.shape[1:], dtype=bool)), scores, -np.inf)
                pattern = np.exp(scores - scores.max(-1, keepdims=True))
                written[f"a{layer}.h{head}"] = (
                    pattern / pattern.sum(-1, keepdims=True) @ v @ weight(block.W_O[head])
                )
            hidden = norm(block.norm2, read(f"m{layer}")) @ weight(block.W_in).T + weight(block.b_in)
            written[f"m{layer}"] = np.maximum(hidden, 0) @ weight(block.W_out).T
        return written | {"logits": norm(model.final_norm, read("logits")) @ weight(model.W_U).T}

    found = run(batch.clean, run(batch.corrupted, None))["logits"]
    return found[np.arange(len(batch)), batch.position.numpy()]


@pytest.mark.parametrize("name", ["ioi", "induction-hard", "induction-hard-layernorm"])
def test_the_forward_without_norms_is_a_slow_one(name: str) -> None:
    one = problem(name)
    for share in (1.0, 0.5):
        mask = one.model.graph.allowed & (
            np.random.default_rng(0).random(one.model.graph.allowed.shape) < share
        )
        (batch,) = one.task.batches()
        ours = cd.run_circuit(one.model, one.task, cd.Circuit(one.model.graph, mask)).numpy()
        assert np.abs(ours - slow_logits(one.model, batch, mask)).max() < 1e-3 * np.abs(ours).max()


def test_attribution_without_norms_is_the_derivative() -> None:
    """EAP of an edge is the change of the metric, to first order, as the edge moves to its replacement."""
    one = problem("xproportion-hard")
    scores = cd.eap(one.model, one.task)
    full = cd.run_circuit(one.model, one.task, cd.Circuit.full(one.model.graph))
    rows = torch.arange(len(full))
    correct, incorrect = (
        torch.tensor([getattr(e, side)[0] for e in one.task.examples]) for side in ("correct", "incorrect")
    )
    # the logits are linear in these
    for edge in ("input->logits", "m0->logits", "a1.h3->logits", "a0.h1->logits"):
        less = cd.run_circuit(
            one.model,
            one.task,
            cd.Circuit.full(one.model.graph) - cd.Circuit.from_edges(one.model.graph, [edge]),
        )
        damage = ((full - less)[rows, correct] - (full - less)[rows, incorrect]).mean()
        assert scores[edge] == pytest.approx(float(damage), abs=2e-4)


# ------------------------------------------------------------------ what the programs do


@pytest.mark.parametrize("name", CONSTRUCTED)
def test_the_model_answers_as_the_program_says(name: str) -> None:
    """The answers in the rows are computed in Python, from the words of the program."""
    one = problem(name)
    assert one.task.held_out is not None
    for task in (one.task, one.task.held_out, one.probe):
        answers = cd.run_circuit(one.model, task, cd.Circuit.full(one.model.graph)).argmax(-1)
        assert answers.tolist() == [example.correct[0] for example in task.examples]


def test_the_prompts_are_what_their_names_say() -> None:
    for example in problem("induction").task.examples:
        before = example.clean.index(example.clean[-1])
        assert before < len(example.clean) - 1 and example.clean[before + 1] == example.correct[0]
    for example in problem("reverse").task.examples:
        separator = example.clean.index(1)
        letters, asked = example.clean[1:separator], len(example.clean) - separator - 1
        assert tuple(reversed(letters))[asked - 1] == example.correct[0]
    for example in problem("xproportion").task.examples:
        assert example.correct[0] - 8 == example.clean.count(1)
    for example in problem("ioi").task.examples:
        names = [example.clean[at] for at in (2, 4, 8)]
        assert sorted(names) == sorted([*example.correct, *example.incorrect, *example.incorrect])
    for name in CONSTRUCTED:
        task = problem(name).task
        assert task.held_out is not None
        assert not {e.clean for e in task.examples} & {e.clean for e in task.held_out.examples}


@pytest.mark.parametrize("name", CONSTRUCTED)
def test_only_the_true_edges_give_the_output(name: str) -> None:
    one = problem(name)
    full = cd.run_circuit(one.model, one.probe, cd.Circuit.full(one.model.graph))
    assert (cd.run_circuit(one.model, one.probe, one.truth) - full).abs().max() <= one.bound
    assert one.bound <= 0.75  # an answer leads by 6; the fraction's by at least 1


@pytest.mark.parametrize("name", CONSTRUCTED)
def test_without_any_single_true_edge_the_output_is_another(name: str) -> None:
    one = problem(name)
    full = cd.run_circuit(one.model, one.probe, cd.Circuit.full(one.model.graph))
    for edge in one.truth.edges:
        without = cd.run_circuit(
            one.model, one.probe, one.truth - cd.Circuit.from_edges(one.model.graph, [edge])
        )
        moved = (without - full).abs().amax(-1)
        assert (moved > max(1.0, 4 * one.bound / 3)).float().mean() >= 0.3, edge


@pytest.mark.parametrize("program", RECIPES)
def test_truths_are_shipped(program: str) -> None:
    shipped = cd.load_circuit(f"planted/{program}")
    assert shipped == problem(program).truth
    for form in ("hard", "hard-layernorm"):
        assert problem(f"{program}-{form}").truth == shipped


def test_the_seven_edges_of_interpbench() -> None:
    expected = [
        "input->m0",
        "m0->a1.h1<v>",
        "m0->a2.h1<v>",
        "m0->a4.h1<v>",
        "a1.h1->a2.h1<v>",
        "a2.h1->a4.h1<v>",
        "a4.h1->logits",
    ]
    assert set(problem("ioi").truth.edges) == set(expected)


# ------------------------------------------------------------------ hard forms


@pytest.mark.parametrize("program", RECIPES)
@pytest.mark.parametrize("form", ["hard", "hard-layernorm"])
def test_hard_forms_are_full_of_noise(program: str, form: str) -> None:
    easy, hard = problem(program).model, problem(f"{program}-{form}").model
    kind = "layer" if form.endswith("layernorm") else "none"
    assert {
        hard.final_norm.kind,
        *(norm.kind for block in hard.blocks for norm in (block.norm1, block.norm2)),
    } == {kind}
    written = cd.run_circuit(hard, problem(program).task, cd.Circuit.empty(hard.graph))
    assert written.isfinite().all()
    for before, after in zip(easy.blocks, hard.blocks, strict=True):
        idle = [not w.any() for w in before.W_O]
        assert after.W_out is not None and all(w.any() for w in (*after.W_O, after.W_out))
        for head in np.flatnonzero(idle):
            values = torch.linalg.svdvals(after.W_Q[head])
            rank = len(values)
            slope = np.polyfit(np.log(np.arange(1, rank + 1)), values.log().numpy(), 1)[0]
            assert slope == pytest.approx(-DECAY, abs=0.02)
    embedding = hard.W_E - hard.W_E.mean(0)
    assert (embedding.abs() > 1e-3).float().mean() > 0.9  # no direction of the basis is left alone


def test_noise_is_seen_by_every_edge_and_moves_little() -> None:
    one = problem("ioi-hard-layernorm")
    full = cd.run_circuit(one.model, one.task, cd.Circuit.full(one.model.graph))
    rng = np.random.default_rng(0)
    others = cd.Circuit.full(one.model.graph) - one.truth
    for edge in rng.choice(others.edges, 12, replace=False):
        without = cd.run_circuit(
            one.model,
            one.task,
            cd.Circuit.full(one.model.graph) - cd.Circuit.from_edges(one.model.graph, [edge]),
        )
        assert 0 < (without - full).abs().max() < one.bound


# ------------------------------------------------------------------ what is known of gates


def test_one_at_a_time_ablation_fails_on_gates_in_opposite_ways() -> None:
    inputs = [edge for edge in problem("or").truth.edges if edge.startswith("input")]
    damage = {
        (gate, direction): cd.exact(
            problem(gate).model, problem(gate).task, metric="logit_diff", direction=direction
        )
        for gate in ("and", "or")
        for direction in ("noising", "denoising")
    }
    for edge in inputs:
        assert damage["and", "noising"][edge] == pytest.approx(12, abs=0.05)
        assert damage["and", "denoising"][edge] == pytest.approx(0, abs=0.05)
        assert damage["or", "noising"][edge] == pytest.approx(0, abs=0.05)
        assert damage["or", "denoising"][edge] == pytest.approx(12, abs=0.05)


def test_acdc_finds_half_of_an_or_gate() -> None:
    one = problem("or")
    found = cd.acdc(one.model, one.task, threshold=0.01)
    assert len(found & one.truth) == 3 and len(found) == 3
    assert set(cd.acdc(problem("and").model, problem("and").task, threshold=0.01).edges) == set(
        one.truth.edges
    )


# ------------------------------------------------------------------ the compiler


def test_a_lookup_is_its_table() -> None:
    """Over every pair of two one-hot inputs."""
    program = Program(vocabulary=5, length=4, n_layers=1, n_heads=1)
    table = {(i, j): (3 * i + j) % 7 for i in range(5) for j in range(4) if (i, j) != (2, 2)}
    out = program.lookup("m0", (program.tokens, program.positions), lambda i, j: table.get((i, j)), 7)
    program.answer = {out: torch.eye(5, 7)}
    model = program.compile("table")
    for token in range(5):
        for place in range(4):
            clean = [[0] * place + [token]]
            task = cd.Task.from_tokens(clean=clean, corrupted=clean, correct=[1], incorrect=[2])
            logits = cd.run_circuit(model, task, cd.Circuit.full(model.graph))[0]
            expected = torch.zeros(7)
            if (token, place) in table:
                expected[table[token, place]] = 1
            assert torch.allclose(logits, expected[:5], atol=1e-6)


def test_nodes_are_used_once() -> None:
    program = Program(vocabulary=3, length=3, n_layers=1, n_heads=1)
    value = {program.tokens: torch.eye(3)}
    program.attend(
        "a0.h0", query=program.positions, key=program.positions, match=lambda q, k: q == k, value=value
    )
    for node in ("a0.h0", "a1.h0", "a0.h1"):
        with pytest.raises(cd.CircuitDiscoveryError, match="not an idle head"):
            program.attend(
                node, query=program.positions, key=program.positions, match=lambda q, k: q == k, value=value
            )
