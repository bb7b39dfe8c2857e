"""Gemma 3 270M (marked `real`, run by `make real`): a real model whose heads go through a norm together.

Skipped, with the reason, where its packages cannot be had.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference import acdc_order, kl_divergence
from test_real import KNOWN, accuracy, fetched, hf_logits, real_models

import circuitdiscovery as cd
from circuitdiscovery.engine.definition import masked_logits
from circuitdiscovery.engine.setup import Setup

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def folder() -> Path:
    return fetched(real_models.GEMMA3)


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return cd.load_model(folder, device="cpu")


@pytest.fixture(scope="module")
def task(model: Any) -> cd.Task:
    return cd.load_task("ioi", model, examples=4, counterfactual="flip")


def test_all_edges_are_hugging_face_and_none_are_the_corrupted_run(
    folder: Path, model: Any, task: cd.Task
) -> None:
    assert (model.n_layers, model.n_heads, len(model.graph)) == (18, 4, 5644)
    exchanged = cd.Task.from_tokens(
        clean=[example.corrupted for example in task.examples],
        corrupted=[example.clean for example in task.examples],
        correct=[example.correct[0] for example in task.examples],
        incorrect=[example.incorrect[0] for example in task.examples],
    )
    for circuit, prompts in ((cd.Circuit.full, task), (cd.Circuit.empty, exchanged)):
        ours, theirs = cd.run_circuit(model, task, circuit(model.graph)), hf_logits(folder, prompts)
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_eap_is_the_slope_in_the_mask(folder: Path, task: cd.Task) -> None:
    """In one random direction of all 5,644 edges, by the definition in float64."""
    model = cd.load_model(folder, device="cpu", dtype="float64")
    graph, rng, step = model.graph, np.random.default_rng(0), 1e-4
    direction = rng.standard_normal(graph.allowed.shape) * graph.allowed
    found = float((cd.eap(model, task, metric="logit_diff").values * direction).sum())
    total = 0.0
    for batch, patched in Setup.of(model, task).patched_runs():
        given, rows = (patched.start, patched.replacement, patched.position), torch.arange(len(batch))
        for sign in (1, -1):
            mask = torch.tensor(graph.allowed + sign * step * direction)
            with torch.no_grad():
                logits = masked_logits(model, graph, *given, mask)
            difference = logits[rows, batch.correct[:, 0]] - logits[rows, batch.incorrect[:, 0]]
            total += sign * float(difference.sum()) / (2 * step * len(task))
    assert found == pytest.approx(total, rel=1e-5)


def test_acdcs_decisions_are_the_definitions(model: Any, task: cd.Task) -> None:
    """At a sample of ACDC's states: what the edge costs, given what was decided before it."""
    threshold, graph, rng = 0.02, model.graph, np.random.default_rng(1)
    found = cd.acdc(model, task, threshold=threshold)
    kept, removed, states = set(found.edges), np.zeros_like(graph.allowed), {}
    for edge in acdc_order(graph):
        trial = removed | graph.mask([edge])
        states[edge] = removed, trial
        removed = removed if edge in kept else trial
    ((batch, patched),) = Setup.of(model, task).patched_runs()
    given = patched.start, patched.replacement, patched.position

    def logits(missing: np.ndarray) -> torch.Tensor:
        with torch.no_grad():
            return masked_logits(model, graph, *given, torch.tensor(graph.allowed & ~missing).float())

    divergence = kl_divergence(logits(np.zeros_like(graph.allowed)))
    names = list(states)
    sample = [*rng.choice(names, 12, replace=False), *rng.choice(sorted(kept), 12, replace=False)]
    for edge in sample:
        before, after = (float(divergence(logits(state)).mean()) for state in states[edge])
        if abs(after - before - threshold) > 1e-4:
            assert (after - before >= threshold) == (edge in kept), edge
    assert len(batch) == 4 and 20 < len(kept) < 2000


@pytest.mark.parametrize("name", cd.shipped_tasks())
def test_what_it_knows_of_every_shipped_task(model: Any, name: str) -> None:
    """What SmolLM2 knows, but for sums, of which it knows more."""
    least, most = {**KNOWN, "addition": (0.45, 0.75)}[name]
    assert least <= accuracy(model, name) <= most
