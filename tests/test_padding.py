"""Prompts of several lengths in one run, padded on the right: each as if
it ran alone, whatever stands behind it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from fixture import random_masks
from tiny import Tiny, random_prompts
from torch import Tensor

import circuitdiscovery as cd
import circuitdiscovery.task.batch
from circuitdiscovery.engine.setup import batches
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.measure import criteria
from circuitdiscovery.model import run
from circuitdiscovery.search.hybrid import hybrid
from circuitdiscovery.search.path_patching import path_patching

ABLATIONS = ("resample", "mean", "mean_all", "zero", "noise", "random")
LENGTHS = (4, 7, 9, 4)
POSITIONS = (None, 5, -3, 0)


@pytest.fixture(scope="module")
def pairs() -> Any:
    """Four pairs of prompts of three lengths, in no order, that are read at several
    places; means are over two more of each length.
    """
    rows = [random_prompts(101, 1, length, seed=20 + i) for i, length in enumerate(LENGTHS)]
    sides = {
        side: [getattr(row, side)[0].tolist() for row in rows]
        for side in ("clean", "corrupted", "correct", "incorrect")
    }
    position = [
        length - 1 if at is None else at % length for length, at in zip(LENGTHS, POSITIONS, strict=True)
    ]
    more = [random_prompts(101, 2, length, seed=30 + length).task.examples for length in sorted(set(LENGTHS))]
    return replace(
        cd.Task.from_tokens(**sides, position=position),
        others=tuple(example for each in more for example in each),
    )


@pytest.fixture(scope="module", params=[torch.float64, torch.float32], ids=["float64", "float32"])
def model(request: pytest.FixtureRequest, tiny: Tiny) -> Any:
    """Every architecture, in both."""
    return tiny.model64 if request.param == torch.float64 else tiny.model


@pytest.fixture(scope="module")
def gpt2_64(tinies: Callable[[str], Tiny]) -> Any:
    return tinies("gpt2").model64


def together(model: Any, pairs: Any) -> Iterator[Any]:
    """The batches of a task, which must be one, padded."""
    (batch,) = batches(model, model.graph, pairs, None)
    assert batch.padded and len(batch) == len(pairs)
    yield batch


def same(found: Any, alone: Any) -> None:
    """To 1e-10 of the largest in float64 and 2e-5 in float32, whose roundings differ between processors."""
    found, alone = (each if isinstance(each, Tensor) else torch.tensor(each) for each in (found, alone))
    largest = max(1.0, float(alone.abs().max()))
    bound = 1e-10 if alone.dtype == torch.float64 else 2e-5
    torch.testing.assert_close(found, alone, atol=bound * largest, rtol=0)


def values(model: Any, scores: Any) -> Tensor:
    """Scores in the model's precision: they are summed in float64, and kept in it."""
    return torch.tensor(scores.values).to(model.dtype)


# ------------------------------------------------------------------ against one prompt at a time


# no ablation enters denoising (test_definition.py): one of them stands for all
@pytest.mark.parametrize(
    ("ablation", "direction"), [*((each, "noising") for each in ABLATIONS), ("resample", "denoising")]
)
def test_any_circuit_runs_as_each_prompt_alone(model: Any, pairs: Any, ablation: str, direction: str) -> None:
    next(together(model, pairs))
    circuit, shared = (
        cd.Circuit(model.graph, random_masks(model.graph, 2, seed=3)[1]),
        {"ablation": ablation, "direction": direction},
    )
    same(*(cd.run_circuit(model, pairs, circuit, batch_size=size, **shared) for size in (None, 1)))


def test_prompts_that_are_tasks_of_their_own_have_the_same_logits(model: Any, pairs: Any) -> None:
    circuit = cd.Circuit(model.graph, random_masks(model.graph, 2, seed=4)[1])
    alone = torch.cat([cd.run_circuit(model, pairs.select([row]), circuit) for row in range(len(pairs))])
    same(cd.run_circuit(model, pairs, circuit), alone)


def test_attribution_scores_each_prompt_as_if_it_were_alone(model: Any, pairs: Any) -> None:
    searches: list[Callable[..., Any]] = [
        cd.eap,
        lambda *args, **options: cd.eap(*args, direction="denoising", **options),
        lambda *args, **options: cd.eap(*args, ablation="random", **options),
        lambda *args, **options: cd.eap_ig(*args, steps=2, metric="kl_divergence", **options),
        cd.clean_corrupted,
    ]
    for search in searches:
        same(*(values(model, search(model, pairs, batch_size=size)) for size in (None, 1)))


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_exact_searches_find_the_same(tinies: Callable[[str], Tiny], pairs: Any, name: str) -> None:
    model, few = tinies(name).model64, pairs.select([0, 1, 2])
    same(*(cd.exact(model, few, direction="denoising", batch_size=size).values for size in (None, 1)))
    found, alone = (
        cd.acdc(model, few, threshold=0.1, ablation="mean_all", batch_size=size) for size in (None, 1)
    )
    assert found == alone and 0 < len(found) < len(model.graph)
    assert found.scores is not None and alone.scores is not None
    same(found.scores[found.mask], alone.scores[found.mask])
    found, alone = (hybrid(model, few, edges=8, rounds=1, batch_size=size).top(8) for size in (None, 1))
    assert found == alone
    same(*(list(path_patching(model, few, batch_size=size).effects.values()) for size in (None, 1)))


@pytest.mark.parametrize("ablation", ["resample", "random"])
def test_an_evaluation_measures_the_same(
    gpt2_64: Any, pairs: Any, ablation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(criteria, "RANDOM_SETS", 1)
    monkeypatch.setattr(criteria, "GREEDY_NODES", 1)
    circuit = cd.eap(gpt2_64, pairs).top(12)
    found, alone = (
        cd.evaluate(gpt2_64, pairs, circuit, ablation=ablation, batch_size=size).to_dict()
        for size in (None, 1)
    )
    assert _numbers(found) and _numbers(found) == pytest.approx(_numbers(alone), abs=1e-10)


def _numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [number for each in value.values() for number in _numbers(each)]
    if isinstance(value, list | tuple):
        return [number for each in value for number in _numbers(each)]
    return [float(value)] if isinstance(value, float) else []


# ------------------------------------------------------------------ what stands behind a prompt


def test_no_pad_changes_a_byte(
    gpt2_64: Any, llama: Tiny, pairs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for model in (gpt2_64, llama.model):
        circuit = cd.Circuit(model.graph, random_masks(model.graph, 2, seed=5)[1])
        found: list[list[bytes]] = []
        for token in (0, 17, 100):
            monkeypatch.setattr(circuitdiscovery.task.batch, "PAD_TOKEN", token)
            assert int(next(together(model, pairs)).clean[0, -1]) == token
            runs = [cd.run_circuit(model, pairs, circuit, ablation=name).numpy() for name in ABLATIONS]
            runs += [cd.run_circuit(model, pairs, circuit, ablation=cd.replacements(model, pairs)).numpy()]
            runs += [cd.run_circuit(model, pairs, circuit, direction="denoising").numpy()]
            runs += [
                cd.eap(model, pairs).values,
                cd.eap_ig(model, pairs, steps=2).values,
                cd.exact(model, pairs).values,
            ]
            found.append([each.tobytes() for each in runs])
        assert found[0] == found[1] == found[2]


# ------------------------------------------------------------------ what is given


@pytest.mark.parametrize("name", ABLATIONS)
def test_given_replacements_are_each_prompt_s_own_at_any_batch_size(
    gpt2_64: Any, pairs: Any, name: str
) -> None:
    circuit = cd.eap(gpt2_64, pairs).top(60)
    given = cd.replacements(gpt2_64, pairs, ablation=name)
    expected = cd.run_circuit(gpt2_64, pairs, circuit, ablation=name, batch_size=1)
    for size in (None, 1, 4):
        same(cd.run_circuit(gpt2_64, pairs, circuit, ablation=given, batch_size=size), expected)
    whole = given.rows(next(together(gpt2_64, pairs)))
    for batch in pairs.batches():  # without pads
        for i, row in enumerate(batch.rows.tolist()):
            column = next(together(gpt2_64, pairs)).rows.tolist().index(row)
            same(given.rows(batch)[:, i, : LENGTHS[row]], whole[:, column, : LENGTHS[row]])


class Backwards:
    """What another run wrote, the prompt read from its end: it knows of no pads."""

    name = "backwards"
    own_run = False

    def __init__(self, given: Any) -> None:
        self.given, self.seen = given, []

    def rows(self, batch: Any) -> Tensor:
        """[sources, B, T, d_model]."""
        self.seen.append(tuple(batch.clean.shape))
        return self.given.rows(batch).flip(2)


def test_an_ablation_of_one_s_own_is_asked_for_prompts_of_one_length(gpt2_64: Any, pairs: Any) -> None:
    own = Backwards(cd.replacements(gpt2_64, pairs))
    circuit = cd.eap(gpt2_64, pairs, ablation=own).top(60)
    assert sorted(set(own.seen)) == [(1, 7), (1, 9), (2, 4)]
    found, alone = (
        cd.run_circuit(gpt2_64, pairs, circuit, ablation=own, batch_size=size) for size in (None, 1)
    )
    same(found, alone)
    own.rows = lambda batch: torch.zeros(16, len(batch), 3, 32)
    with pytest.raises(CircuitDiscoveryError, match=r"of shape \(16, 2, 3, 32\), not \(16, 4, 9, 32\)"):
        cd.run_circuit(gpt2_64, pairs, circuit, ablation=own)


# ------------------------------------------------------------------ which prompts share a run


def test_lengths_share_a_batch_where_their_pads_cost_less_than_a_run() -> None:
    prompts = [[1] * 5, [2] * 2, [3] * 9, [4] * 4, [5] * 2, [6] * 4]
    pairs = cd.Task.from_tokens(clean=prompts, corrupted=prompts, correct=[7] * 6, incorrect=[8] * 6)

    def rows(run_tokens: float, batch_size: int | None = None) -> list[list[int]]:
        return [batch.rows.tolist() for batch in pairs.batches(batch_size, run_tokens=run_tokens)]

    assert rows(0) == [[0], [1, 4], [2], [3, 5]]  # never padded, in the task's order
    assert rows(1) == [[1, 4], [3, 5], [0], [2]]  # two pads would save one run
    assert rows(2.5) == [[1, 4], [3, 5, 0], [2]]
    assert rows(6.5) == [[1, 4, 3, 5, 0], [2]]  # 6 pads more
    assert rows(1000) == [[1, 4, 3, 5, 0, 2]]
    assert rows(1000, 4) == [[1, 4, 3, 5], [0, 2]]
    (*_, last) = pairs.batches(4, run_tokens=1000)
    assert (
        last.clean.tolist() == [[1] * 5 + [0] * 4, [3] * 9]
        and last.lengths.tolist() == [5, 9]
        and last.padded
    )
    assert [(columns, part.clean.tolist()) for columns, part in last.by_length()] == [
        ([0], [[1] * 5]),
        ([1], [[3] * 9]),
    ]
    assert last.position.tolist() == [4, 8]  # the prompts' ends, as without pads


def test_large_models_are_padded_little(gpt2: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    few = run.run_tokens(gpt2.model)
    monkeypatch.setattr(run, "_RUN_FLOP", {"cpu": 0.0})
    assert few > 100 * run.run_tokens(gpt2.model)
    assert np.isfinite(few)


def test_many_lengths_are_grouped_in_no_time() -> None:
    """A thousand of them; by the square of that many batches it takes seconds."""
    rows = [[1] * length for length in range(2, 1_002)]
    task = cd.Task.from_tokens(clean=rows, corrupted=rows, correct=[1] * 1_000, incorrect=[2] * 1_000)
    begun = time.process_time()
    found = [len(batch) for batch in task.batches(16, run_tokens=50.0)]
    assert time.process_time() - begun < 2 and sum(found) == 1_000 and max(found) <= 16
