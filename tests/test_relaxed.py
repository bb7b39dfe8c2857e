"""The relaxed forward's gradient by hand is the definition's by autograd, for every architecture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import Tiny
from torch import Tensor

import circuitdiscovery as cd
from circuitdiscovery.benchmark.problems.suite import planted
from circuitdiscovery.engine.definition import masked_logits
from circuitdiscovery.engine.relaxed import Relaxed
from circuitdiscovery.engine.setup import Setup


def both(
    model: Any, task: Any, graph: Any, ablation: str, steps: int = 2
) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """(value, gradient) by hand and by autograd through the definition, in random masks."""
    relaxed, draw, out = Relaxed.build(model, graph), torch.Generator().manual_seed(0), []
    ((batch, patched_run),) = Setup.of(model, task, graph, ablation=ablation).patched_runs()
    allowed = torch.tensor(graph.allowed)
    for _ in range(steps):  # the memory of one step is the next one's
        mask = (torch.rand(allowed.shape, generator=draw, dtype=torch.float64) * allowed).to(model.dtype)

        def loss(logits: Tensor) -> Tensor:
            return (logits.log_softmax(-1)[:, 3] * torch.arange(1, len(logits) + 1)).sum()

        value, gradient = relaxed.gradient(patched_run, mask, loss)
        leaf = mask.requires_grad_()
        expected = loss(
            masked_logits(model, graph, patched_run.start, patched_run.replacement, batch.position, leaf)
        )
        (slow,) = torch.autograd.grad(expected, leaf)
        out.append((value, expected.detach(), gradient, slow * allowed))
    return out


@pytest.mark.parametrize("ablation", ["resample", "zero"])
def test_the_gradient_is_autograds(tiny: Tiny, ablation: str) -> None:
    model = tiny.model64
    for value, expected, gradient, slow in both(model, tiny.prompts.task, model.graph, ablation):
        torch.testing.assert_close(value, expected, atol=1e-11, rtol=1e-11)
        torch.testing.assert_close(gradient, slow, atol=1e-10, rtol=1e-9)


@pytest.mark.parametrize("name", ["gpt2", "neox_parallel"])
def test_merged_receivers(tinies: Callable[[str], Tiny], name: str) -> None:
    tiny = tinies(name)
    model = tiny.model64
    for value, expected, gradient, slow in both(
        model, tiny.prompts.task, cd.Graph.from_model(model, split_qkv=False), "resample"
    ):
        torch.testing.assert_close(value, expected, atol=1e-11, rtol=1e-11)
        torch.testing.assert_close(gradient, slow, atol=1e-10, rtol=1e-9)


def test_without_norms() -> None:
    problem = planted(examples=4)["reverse"]()
    ((batch, _),) = Setup.of(
        problem.model, problem.task, problem.model.graph, ablation="resample"
    ).patched_runs()
    assert problem.model.final_norm.kind == "none" and len(batch) == 4
    for value, expected, gradient, slow in both(problem.model, problem.task, problem.model.graph, "resample"):
        torch.testing.assert_close(value, expected, atol=0, rtol=1e-4)
        torch.testing.assert_close(gradient / slow.abs().max(), slow / slow.abs().max(), atol=1e-4, rtol=0)
