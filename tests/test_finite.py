"""NaN and infinity: every search and every measurement refuses them
by row, whatever the metric makes of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Tiny, random_prompts

import circuitdiscovery as cd
from circuitdiscovery.engine.finite import finite_logits, finite_values
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.measure.hypothesis_tests import hypothesis_tests
from circuitdiscovery.search.edge_pruning import edge_pruning
from circuitdiscovery.search.hybrid import hybrid
from circuitdiscovery.search.matryoshka import matryoshka
from circuitdiscovery.search.path_patching import path_patching
from circuitdiscovery.search.trace_back import trace_back

BROKEN = 77  # the token whose embedding is not a number


@pytest.fixture(scope="module")
def broken(gpt2: Tiny) -> Any:
    """A model that gives NaN on every prompt that holds one token."""
    W_E = gpt2.model.W_E.clone()
    W_E[BROKEN] = torch.nan
    return replace(gpt2.model, W_E=W_E)


def task_with(side: str, row: int = 2) -> Any:
    """Four pairs, one of which holds that token on one side."""
    prompts = random_prompts(76, 4, 5, seed=3)
    getattr(prompts, side)[row, 1] = BROKEN
    return prompts.task


def some(model: Any) -> Any:
    return cd.Circuit(model.graph, model.graph.mask(list(model.graph.edges)[::3]))


def ratio(logits: Any, task: Any) -> Any:
    """A metric that is infinite on a row of its own making."""
    return logits[:, 0] / torch.tensor([0.0 if example.clean[0] == 1 else 1.0 for example in task.examples])


CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "eap": lambda model, task: cd.eap(model, task),
    "eap of prob_diff": lambda model, task: cd.eap(model, task, metric="prob_diff"),
    "eap_ig": lambda model, task: cd.eap_ig(model, task, steps=2),
    "eap_ig of KL": lambda model, task: cd.eap_ig(model, task, steps=2, metric="kl_divergence"),
    "clean_corrupted": lambda model, task: cd.clean_corrupted(model, task),
    "exact": lambda model, task: cd.exact(model, task),
    "exact of accuracy": lambda model, task: cd.exact(model, task, metric="accuracy"),
    "exact nodes": lambda model, task: cd.exact(model, task, level="node"),
    "acdc": lambda model, task: cd.acdc(model, task, threshold=0.01),
    "acdc of a metric": lambda model, task: cd.acdc(model, task, threshold=0.01, metric="logit_diff"),
    "trace_back": lambda model, task: trace_back(model, task, threshold=0.01),
    "hybrid": lambda model, task: hybrid(model, task, edges=5, rounds=1),
    "edge_pruning": lambda model, task: edge_pruning(model, task, edges=5, steps=2),
    "matryoshka": lambda model, task: matryoshka(model, task, edges=5, steps=2),
    "path_patching": lambda model, task: path_patching(model, task),
    "run_circuit": lambda model, task: cd.run_circuit(model, task, some(model)),
    "evaluate": lambda model, task: cd.evaluate(model, task, some(model), effort="quick"),
    "evaluate accuracy": lambda model, task: cd.evaluate(
        model, task, some(model), effort="quick", metric="accuracy"
    ),
    "curve": lambda model, task: cd.curve(model, task, cd.Scores(model.graph, model.graph.allowed * 1.0)),
    "hypothesis_tests": lambda model, task: hypothesis_tests(model, task, some(model), reference=30, edges=2),
    "explain": lambda model, task: cd.explain(model, task, some(model), nodes=["m1"]),
}


@pytest.mark.parametrize("name", [name for name in CALLS if name != "run_circuit"])
def test_nan_on_a_clean_prompt_is_refused_by_row(broken: Any, name: str) -> None:
    with pytest.raises(CircuitDiscoveryError, match=r"^row 2: .*(nan|NaN)"):
        CALLS[name](broken, task_with("clean"))


@pytest.mark.parametrize("name", CALLS)
def test_nan_on_a_corrupted_prompt_is_refused_by_row(broken: Any, name: str) -> None:
    with pytest.raises(CircuitDiscoveryError, match=r"^row 2: .*(nan|NaN)"):
        CALLS[name](broken, task_with("corrupted"))


@pytest.mark.parametrize("ablation", ["mean", "random", "mean_all"])
def test_a_nan_in_the_reference_is_refused(broken: Any, ablation: str) -> None:
    for call in (cd.eap, lambda *a, **o: cd.acdc(*a, threshold=0.1, **o)):
        with pytest.raises(CircuitDiscoveryError, match=r"^row [013]: "):  # row 2's own mean is without it
            call(broken, task_with("corrupted"), ablation=ablation)


@pytest.mark.parametrize("name", ["eap", "acdc", "evaluate"])
def test_infinity_by_one_s_own_metric_is_refused_by_row(gpt2: Tiny, name: str) -> None:
    prompts = random_prompts(76, 4, 5, seed=4)
    prompts.clean[:, 0], prompts.clean[3, 0] = 5, 1
    calls = {
        "eap": lambda: cd.eap(gpt2.model, prompts.task, metric=ratio),
        "acdc": lambda: cd.acdc(gpt2.model, prompts.task, threshold=0.1, metric=ratio),
        "evaluate": lambda: cd.evaluate(
            gpt2.model, prompts.task, some(gpt2.model), metric=ratio, effort="quick"
        ),
    }
    with pytest.raises(
        CircuitDiscoveryError, match=r"^row 3: metric 'ratio' is -?inf, and not a finite number"
    ):
        calls[name]()


def test_the_refusal_comes_before_anything_is_decided(broken: Any, tmp_path: Path) -> None:
    with pytest.raises(CircuitDiscoveryError):
        cd.acdc(broken, task_with("corrupted"), threshold=0.01, state=tmp_path / "state")
    assert not (tmp_path / "state").exists()


def test_the_first_row_is_the_least_of_those_that_are_wrong() -> None:
    rows = torch.tensor([7, 4, 9])
    with pytest.raises(CircuitDiscoveryError, match="row 4: metric 'm' is nan"):
        finite_values(torch.tensor([[1.0, 2.0, 3.0], [torch.inf, torch.nan, 1.0]]), rows, "m")
    with pytest.raises(CircuitDiscoveryError, match="row 7: the clean run's"):
        finite_logits(torch.tensor([[1.0, torch.nan], [1.0, torch.inf], [torch.nan, 0.0]]), rows, "clean")
    kept = torch.tensor([[1.0, -2.0, 3.0]], requires_grad=True)
    assert finite_values(kept, rows, "m") is kept
