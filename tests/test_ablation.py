"""An ablation of one's own, and replacements computed once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import Tiny

import circuitdiscovery as cd


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


def _resampled(task: Any, row: int) -> Any:
    """A task whose every corrupted prompt is one clean prompt."""
    (batch,) = task.batches()
    rows = batch.clean[row].expand_as(batch.clean)
    return cd.Task.from_tokens(
        clean=batch.clean, corrupted=rows, correct=batch.correct, incorrect=batch.incorrect
    )
