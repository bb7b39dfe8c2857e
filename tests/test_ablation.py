"""An ablation of one's own, and replacements computed once."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import Tiny

import circuitdiscovery as cd
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.task.example import Example


class Nothing:
    """The least an ablation can be."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def rows(self, batch: Any) -> torch.Tensor:
        return torch.zeros(len(self.model.graph.sources), *batch.clean.shape, self.model.d_model)


def nothing(model: Any) -> Any:
    """Less than the protocol asks for, which is enough."""
    return Nothing(model)


def test_one_s_own_ablation_needs_no_more_than_rows(tiny: Tiny) -> None:
    model, task = tiny.model, tiny.prompts.task
    circuit = cd.eap(model, task).top(len(model.graph) // 3)
    ours, shipped = (
        cd.run_circuit(model, task, circuit, ablation=ablation) for ablation in (nothing(model), "zero")
    )
    torch.testing.assert_close(ours, shipped, atol=1e-6, rtol=0)
    assert cd.eap(model, task, ablation=nothing(model)).info["options"]["ablation"] == "Nothing"
    found = cd.evaluate(model, task, circuit, ablation=nothing(model), effort="quick")
    assert found.ablation == "Nothing"
    assert cd.acdc(model, task, threshold=0.01, ablation=nothing(model)) == cd.acdc(
        model, task, threshold=0.01, ablation="zero"
    )


def test_an_ablation_of_the_wrong_shape_says_both(gpt2: Tiny) -> None:
    class Short(Nothing):
        def rows(self, batch: Any) -> torch.Tensor:
            return super().rows(batch)[1:]

    short: Any = Short(gpt2.model)
    with pytest.raises(cd.CircuitDiscoveryError, match=r"\(15, 5, 6, 32\), not \(16, 5, 6, 32\)"):
        cd.run_circuit(gpt2.model, gpt2.prompts.task, cd.Circuit.full(gpt2.model.graph), ablation=short)


def test_what_is_no_ablation_is_refused(gpt2: Tiny) -> None:
    wrong: Any = 3
    with pytest.raises(cd.CircuitDiscoveryError, match="rows"):
        cd.run_circuit(gpt2.model, gpt2.prompts.task, cd.Circuit.full(gpt2.model.graph), ablation=wrong)


@pytest.mark.parametrize("name", ["resample", "mean", "mean_all", "zero", "noise", "random"])
def test_given_replacements_do_what_the_name_does_at_any_batch_size(gpt2: Tiny, name: str) -> None:
    model, task = gpt2.model, gpt2.prompts.task
    circuit = cd.eap(model, task).top(60)
    alt = cd.replacements(model, task, ablation=name)
    expected = cd.run_circuit(model, task, circuit, ablation=name)
    for batch_size in (None, 2):
        torch.testing.assert_close(
            cd.run_circuit(model, task, circuit, ablation=alt, batch_size=batch_size),
            expected,
            atol=1e-5,
            rtol=0,
        )


def test_a_reference_gives_the_mean_its_prompts(gpt2: Tiny) -> None:
    model, task = gpt2.model, gpt2.prompts.task
    (batch,) = task.batches()
    by_tokens = cd.replacements(model, task, ablation="mean", reference=batch.clean).rows(batch)
    resampled = [_resampled(task, row) for row in range(len(task))]
    runs = torch.stack([cd.replacements(model, each).rows(next(each.batches()))[:, 0] for each in resampled])
    torch.testing.assert_close(by_tokens[:, 0], runs.mean(0), atol=1e-5, rtol=0)


def test_given_replacements_are_of_the_model_that_runs(toy: cd.Model) -> None:
    """Of a copy they are as good as its own; of other weights, or of these in another precision, they are
    refused by both names."""
    task = cd.load_task("ioi", toy, examples=4)
    circuit, given = cd.Circuit.empty(toy.graph), cd.replacements(toy, task)
    copied = cd.run_circuit(copy.deepcopy(toy), task, circuit, ablation=given)
    assert torch.equal(copied, cd.run_circuit(toy, task, circuit))
    halved = replace(toy, W_E=toy.W_E * 0.5)
    others = halved, replace(toy, name="other", digest="0" * 64), cd.load_model("toy", dtype="bfloat16")
    for model, told in zip(others, (r"toy \(.*float32", r"other \(weights 000", "bfloat16"), strict=True):
        with pytest.raises(
            CircuitDiscoveryError, match=rf"weights of toy \(.*, which are not those of .*{told}"
        ):
            cd.run_circuit(model, task, circuit, ablation=given)


@pytest.mark.parametrize("ablation", ["noise", "random"])
def test_any_whole_number_is_a_seed(toy: cd.Model, ablation: str) -> None:
    task = cd.load_task("ioi", toy, examples=2)
    batch = next(task.batches())
    large, other = (
        cd.replacements(toy, task, ablation=ablation, seed=seed).rows(batch) for seed in (10**15, 2**63 - 1)
    )
    assert not torch.equal(large, other)


def _resampled(task: Any, row: int) -> Any:
    """A task whose every corrupted prompt is one clean prompt."""
    (batch,) = task.batches()
    rows = batch.clean[row].expand_as(batch.clean)
    return cd.Task.from_tokens(
        clean=batch.clean, corrupted=rows, correct=batch.correct, incorrect=batch.incorrect
    )


@pytest.mark.parametrize("method", ["eap_ig", "clean_corrupted"])
@pytest.mark.parametrize(
    ("nodes", "of_nodes"),
    [
        ({"input": {"x": [0, 1]}}, {"input": {"x": [0, 1]}}),
        ({"input": {"x": [0, 1]}}, {}),
        ({"m1": [3, 17]}, {"m1": [3, 17]}),
        ({"m1": [3, 17], "a0.h1": {"x": [2]}}, {"m1": [3, 17]}),
    ],
)
def test_given_replacements_lie_on_the_line_of_their_name(
    toy: cd.Model, method: str, nodes: dict[str, Any], of_nodes: dict[str, Any]
) -> None:
    """The line's other end is the noisy run, not the corrupted one, however a user holds what that run wrote."""
    task, graph = cd.load_task("ioi", toy, examples=4), cd.split(toy, nodes)
    given = cd.replacements(toy, task, ablation="noise", graph=cd.split(toy, of_nodes))
    by_name, by_value, by_object = (
        getattr(cd, method)(toy, task, graph=graph, ablation=ablation).values
        for ablation in ("noise", given, Held(given))
    )
    np.testing.assert_allclose(by_value, by_name, atol=1e-5)
    np.testing.assert_allclose(by_object, by_name, atol=1e-5)


class Held:
    """A user's own object that has another's rows, which are one run's."""

    name, own_run = "held", True

    def __init__(self, given: cd.Replacements) -> None:
        self.rows = given.rows


def test_given_replacements_are_of_their_named_positions(toy: cd.Model) -> None:
    """The same prompts with a position named elsewhere: replacements of the whole nodes stand where this task
    has its spans; those that were computed part by part are of the first task's and are refused."""
    task = cd.load_task("ioi", toy, examples=4)

    def renamed(example: Example) -> Example:
        taken = example.positions.values()
        free = next(place for place in range(2, len(example.clean)) if place not in taken)
        return replace(example, positions={**example.positions, "S2": free})

    other = replace(task, examples=tuple(map(renamed, task.examples)), held_out=None)
    graph = cd.split(toy, {"input": "positions", "a1.h0": "positions"}, task=task)
    circuit = cd.eap(toy, task, graph=graph).top(60)
    whole, of_parts = cd.replacements(toy, task), cd.replacements(toy, task, graph=graph)
    for given in (whole, of_parts):
        logits = cd.run_circuit(toy, task, circuit, ablation=given)
        assert torch.equal(logits, cd.run_circuit(toy, task, circuit))
    expected = cd.run_circuit(toy, other, circuit)
    assert (expected - logits).abs().max() > 1
    assert torch.equal(cd.run_circuit(toy, other, circuit, ablation=whole), expected)
    with pytest.raises(
        CircuitDiscoveryError, match="for other prompts, or other spans of them, than row 3's"
    ):
        cd.run_circuit(toy, other, circuit, ablation=of_parts)
