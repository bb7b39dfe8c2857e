"""Measuring many circuits together, against each circuit run on its own;
its memory, its progress and what it saves.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixture import random_masks
from tiny import Tiny, random_prompts
from torch.nn.functional import kl_div

import circuitdiscovery as cd
from circuitdiscovery.engine.fast import PatchedRun
from circuitdiscovery.engine.setup import Setup
from circuitdiscovery.measure import evaluator as evaluator_file
from circuitdiscovery.measure import plan as plan_file
from circuitdiscovery.measure.criteria import without_each
from circuitdiscovery.measure.evaluation import default_effort, price
from circuitdiscovery.measure.evaluator import Evaluator
from circuitdiscovery.measure.work import Family

CASES = [
    *(
        ("gpt2", ablation, "noising")
        for ablation in ("resample", "mean", "mean_all", "zero", "noise", "random")
    ),
    *(
        (name, ablation, "noising")
        for name in ("llama", "neox_parallel")
        for ablation in ("resample", "mean")
    ),
    *((name, "resample", "denoising") for name in ("gpt2", "llama", "neox_parallel")),
    *(("gemma3", *how) for how in (("resample", "noising"), ("mean", "noising"), ("resample", "denoising"))),
]


@pytest.fixture
def _no_overhead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever saves a product is worth it, so that even tiny models share runs."""
    monkeypatch.setattr(plan_file, "_OVERHEAD", 0.0)
    monkeypatch.setattr(plan_file, "_KEPT", 0.0)


def build(
    model: Any, task: Any, *, ablation: str = "resample", direction: str = "noising", **options: Any
) -> Evaluator:
    return Evaluator.build(
        Setup.of(model, task, model.graph, metric="logit_diff", ablation=ablation, direction=direction),
        **options,
    )


def alone(model: Any, task: Any, mask: np.ndarray, **options: Any) -> np.ndarray:
    """[examples]: the logit difference of one circuit, by one run of it."""
    logits = cd.run_circuit(model, task, cd.Circuit(model.graph, mask), **options)
    rows = torch.arange(len(task))
    correct, incorrect = (
        torch.tensor([getattr(each, side)[0] for each in task.examples]) for side in ("correct", "incorrect")
    )
    return (logits[rows, correct] - logits[rows, incorrect]).double().numpy()


def families(graph: Any, seed: int) -> list[Family]:
    """Nodes left out of random circuits and of the model, nodes put back, some edges
    less or more, and masks that share nothing.
    """
    rng, found = np.random.default_rng(seed), []
    for mask in (graph.allowed, *random_masks(graph, 4, seed=seed)[1:3]):
        circuit, others = cd.Circuit(graph, mask), rng.choice(graph.sources[1:-5], 4, replace=False).tolist()
        nodes = [*others, "a2.h0", "a2.h1"]  # the last two can share a run
        removed = (*nodes[:2], rng.choice(graph.sources[1:]).item())
        for start in ((), removed):
            base = circuit.without(start).mask
            found.append(Family([base, *(circuit.without(set(start) ^ {node}).mask for node in nodes)], base))
        fewer = [mask & (rng.random(mask.shape) < 0.98) for _ in range(2)]
        more = [graph.allowed & (mask | (rng.random(mask.shape) < 0.02)) for _ in range(2)]
        found.append(Family([*fewer, *more], mask))
        half = [circuit.without(rng.choice(graph.sources[1:], 6, replace=False)).mask for _ in range(2)]
        found.append(Family(half, mask))
    found.append(Family(random_masks(graph, 3, seed=seed + 1)))
    return found


# ------------------------------------------------------------------ the same values


@pytest.mark.usefixtures("_no_overhead")
@pytest.mark.parametrize(("name", "ablation", "direction"), CASES)
def test_circuits_measured_together_are_as_if_each_ran_alone(
    tinies: Callable[[str], Tiny], name: str, ablation: str, direction: str
) -> None:
    tiny = tinies(name)
    model = tiny.model64
    task = random_prompts(101, n_examples=3, seed=5).task
    evaluator, asked = (
        build(model, task, ablation=ablation, direction=direction),
        families(model.graph, seed=CASES.index((name, ablation, direction))),
    )
    planned = evaluator.plans(asked)
    assert any(plan.start for plan in planned)
    assert direction == "denoising" or any(len(step.keys) > 1 for plan in planned for step in plan.steps)
    evaluator.measure_families(asked)
    # computed once for all runs (test_ablation.py: they do what their name does)
    given = cd.replacements(model, task, ablation=ablation) if direction == "noising" else ablation
    for mask in {mask.tobytes(): mask for family in asked for mask in family.masks}.values():
        got, expected = evaluator.values(mask), alone(model, task, mask, ablation=given, direction=direction)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-10)


@pytest.mark.usefixtures("_no_overhead")
def test_only_what_follows_a_node_runs_again(gpt2: Tiny) -> None:
    graph = gpt2.model.graph
    evaluator, whole = build(gpt2.model, gpt2.prompts.task), cd.Circuit.full(graph)
    (plan,) = evaluator.plans(
        [Family([whole.without([node]).mask for node in ("a2.h0", "a2.h1", "m0")], graph.allowed)]
    )
    last, first = sorted(plan.steps, key=lambda step: step.part.nodes.sum())
    assert [graph.sources[row] for row in np.flatnonzero(last.part.nodes)] == ["m2"]
    assert [graph.sources[row] for row in np.flatnonzero(first.part.nodes)] == list(
        graph.sources[graph.source_index["m0"] + 1 :]
    )
    assert (len(last.keys), len(first.keys)) == (2, 1)


def test_each_circuit_is_planned_once(gpt2: Tiny) -> None:
    graph = gpt2.model.graph
    evaluator, masks = build(gpt2.model, gpt2.prompts.task), random_masks(graph, 3)
    planned = evaluator.plans(
        [Family(masks), Family([*masks, masks[0]], masks[1]), Family([graph.allowed, masks[2]])]
    )
    keys = [key for plan in planned for step in plan.all_steps for key in step.keys]
    assert len(keys) == len(set(keys)) == 4
    evaluator.measure(masks)
    assert not evaluator.plans([Family(masks)])


# ------------------------------------------------------------------ memory


def test_one_batch_s_replacements_are_held_at_once(gpt2: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[Any] = []
    made, most = PatchedRun.__init__, [0]

    def counted(self: PatchedRun, *arguments: Any) -> None:
        made(self, *arguments)
        gc.collect()
        alive.append(weakref.ref(self))
        most[0] = max(most[0], sum(each() is not None for each in alive))

    task, masks = random_prompts(101, n_examples=6, seed=2).task, random_masks(gpt2.model.graph, 3)
    expected = [build(gpt2.model, task).values(mask) for mask in masks]
    monkeypatch.setattr(PatchedRun, "__init__", counted)
    monkeypatch.setattr(evaluator_file, "_KEPT_BYTES", 0)
    evaluator = Evaluator.build(
        Setup.of(gpt2.model, task, gpt2.model.graph, metric="logit_diff", batch_size=2)
    )
    evaluator.measure(masks)
    assert (len(alive), most[0]) == (3, 1)  # three batches, each once for all masks
    for mask, each in zip(masks, expected, strict=True):
        np.testing.assert_allclose(evaluator.values(mask), each, atol=1e-5)
    assert len(alive) == 3


def test_few_masks_are_held_at_once(gpt2: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, task = gpt2.model.graph, random_prompts(101, n_examples=3, seed=5).task
    asked, at_once = families(graph, seed=1), build(gpt2.model, task)
    at_once.measure_families(asked)
    planned: list[int] = []
    plans = Evaluator.plans
    monkeypatch.setattr(
        Evaluator,
        "plans",
        lambda self, some: (planned.append(sum(len(each.masks) for each in some)), plans(self, some))[1],
    )
    monkeypatch.setattr(evaluator_file, "_MASK_BYTES", 4 * graph.allowed.nbytes)
    evaluator = build(gpt2.model, task)
    evaluator.measure_families(asked)
    assert max(planned) <= 4 and max(len(each.masks) for each in asked) > 4
    for mask in (mask for family in asked for mask in family.masks):
        np.testing.assert_allclose(evaluator.values(mask), at_once.values(mask), atol=1e-5)
    circuit, made = cd.Circuit.full(graph), []
    monkeypatch.setattr("circuitdiscovery.measure.criteria._less", lambda *_: made.append(1))
    without_each(circuit, (), graph.sources[1:-1])
    assert len(made) == 1  # the base: others when they are asked for


def test_where_all_fits_patched_runs_are_made_once(gpt2: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator, made = (
        Evaluator.build(
            Setup.of(gpt2.model, gpt2.prompts.task, gpt2.model.graph, metric="logit_diff", batch_size=2)
        ),
        [],
    )
    monkeypatch.setattr(PatchedRun, "__post_init__", lambda self: made.append(self), raising=False)
    for mask in random_masks(gpt2.model.graph, 3):
        evaluator.values(mask)
    assert len(made) <= len(evaluator.batches)


# ------------------------------------------------------------------ quick


@pytest.fixture(scope="module")
def setting(gpt2: Tiny) -> tuple[Any, Any, Any]:
    """(model, task of 8 examples, a circuit of 80 edges with scores)."""
    task = random_prompts(101, n_examples=8, seed=3).task
    return gpt2.model, task, cd.eap(gpt2.model, task).top(80)


def test_quick_measures_what_it_says(setting: tuple[Any, Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("circuitdiscovery.measure.criteria.QUICK_NODES", 4)
    model, task, circuit = setting
    found = cd.evaluate(model, task, circuit, effort="quick")
    assert [each.kind for each in found.completeness.sets] == ["empty", *["random"] * 5]
    nodes = circuit.strongest(4)
    rest = [node for node in circuit.nodes if node not in (*nodes, "input", "logits")]
    assert (tuple(found.minimality.scores), list(found.minimality.unmeasured)) == (nodes, rest)
    kept = alone(model, task, circuit.mask)
    for node, score in found.minimality.scores.items():
        assert score == pytest.approx(
            abs((alone(model, task, circuit.without([node]).mask) - kept).mean()), abs=1e-5
        )
    assert found.effort == "quick" and "(quick)" in str(found) and f"{len(rest)} not measured" in str(found)


def test_quick_measures_what_writes_nothing_too_where_there_is_room(setting: tuple[Any, Any, Any]) -> None:
    model, task, _ = setting
    circuit = cd.Circuit.from_edges(model.graph, ["input->a0.h0<v>", "input->m0", "m0->logits"])
    found = {
        effort: cd.evaluate(model, task, circuit, effort=effort).minimality for effort in ("quick", "full")
    }
    assert "a0.h0" in found["full"].below and found["quick"].below == found["full"].below
    assert found["quick"].unmeasured == ()


def test_quick_agrees_with_full_where_both_measure(setting: tuple[Any, Any, Any]) -> None:
    model, task, circuit = setting
    scores = cd.eap(model, task)
    full, quick = (
        cd.evaluate(model, task, circuit, effort=effort, scores=scores).to_dict()
        for effort in ("full", "quick")
    )
    assert (
        full["effort"] == "full"
        and full["minimality"]["unmeasured"] == quick["minimality"]["unmeasured"] == []
    )
    for name in ("full", "circuit", "empty", "kl", "empty_kl", "faithfulness", "agreement"):
        assert list(quick[name].values()) == pytest.approx(list(full[name].values()), abs=1e-5)
    for few, many in zip(quick["completeness"]["sets"], full["completeness"]["sets"], strict=False):
        assert few["nodes"] == many["nodes"]
        assert few["incompleteness"]["value"] == pytest.approx(many["incompleteness"]["value"], abs=1e-5)
    assert (quick["curve"] is None) == (full["curve"] is None)


def test_the_empty_circuit_s_kl_stands_beside(setting: tuple[Any, Any, Any]) -> None:
    model, task, circuit = setting
    found = cd.evaluate(model, task, circuit, effort="quick")
    ours, theirs = (
        cd.run_circuit(model, task, end(model.graph)) for end in (cd.Circuit.empty, cd.Circuit.full)
    )
    expected = kl_div(ours.log_softmax(-1), theirs.log_softmax(-1), log_target=True, reduction="batchmean")
    assert found.empty_kl == pytest.approx(float(expected), rel=1e-4)
    assert f"(empty {found.empty_kl})" in str(found)


def test_an_unknown_effort_names_both(setting: tuple[Any, Any, Any]) -> None:
    with pytest.raises(
        cd.CircuitDiscoveryError, match=r"no effort 'quik'; did you mean 'quick'.*full, quick"
    ):
        cd.evaluate(*setting, effort="quik")


def test_kl_as_the_metric_is_the_kl(setting: tuple[Any, Any, Any]) -> None:
    found = cd.evaluate(*setting, effort="quick", metric="kl_divergence", batch_size=3)
    assert (found.circuit, found.empty) == pytest.approx((found.kl, found.empty_kl), abs=1e-6)


# ------------------------------------------------------------------ saved as it goes


class Stopped(KeyboardInterrupt):
    """Ctrl-C at a chosen moment."""


def stop_after(calls: int) -> Callable[[int, int], None]:
    seen = []

    def progress(done: int, total: int) -> None:
        seen.append((done, total))
        if len(seen) > calls:
            raise Stopped

    return progress


@pytest.mark.parametrize("batch_size", [3, None])
def test_what_was_stopped_goes_on_to_the_same_bytes(
    setting: tuple[Any, Any, Any], tmp_path: Path, batch_size: int | None
) -> None:
    model, task, circuit = setting
    asked: dict[str, Any] = {"effort": "quick", "scores": cd.eap(model, task), "batch_size": batch_size}
    expected, state, firsts = cd.evaluate(model, task, circuit, **asked), tmp_path / "measured", []
    while True:
        first: list[int] = []
        stop = stop_after(10 if batch_size else 4)
        try:
            found = cd.evaluate(
                model,
                task,
                circuit,
                **asked,
                state=state,
                progress=lambda *now, f=first, s=stop: (f.append(now[0]), s(*now))[0],
            )
            break
        except Stopped:
            firsts.append(first[0])
            assert state.is_file()
    assert found.to_dict() == expected.to_dict()
    assert len(firsts) > 2 and firsts[0] == 0 and firsts[-1] > firsts[0]
    assert [path.name for path in tmp_path.iterdir()] == ["measured"]


def test_a_full_measurement_goes_on_too(setting: tuple[Any, Any, Any], tmp_path: Path) -> None:
    model, task, _ = setting
    # greedy ranks on fewer
    circuit, more = cd.eap(model, task).top(8), replace(task, examples=task.examples * 3)
    expected, state = cd.evaluate(model, more, circuit), tmp_path / "measured"
    for calls in (5, 15):
        with pytest.raises(Stopped):
            cd.evaluate(model, more, circuit, state=state, progress=stop_after(calls))
    assert cd.evaluate(model, more, circuit, state=state).to_dict() == expected.to_dict()
    runs, run = [], PatchedRun._run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            PatchedRun,
            "_run",
            lambda self, *given, **named: (runs.append(self), run(self, *given, **named))[1],
        )
        assert cd.evaluate(model, more, circuit, state=state).to_dict() == expected.to_dict()
    assert not runs  # everything was saved


@pytest.mark.parametrize(
    "other",
    [
        {"effort": "full"},
        {"ablation": "zero"},
        {"metric": "prob_diff"},
        {"direction": "denoising"},
        {"seed": 1},
    ],
)
def test_a_file_of_another_measurement_is_refused(
    setting: tuple[Any, Any, Any], tmp_path: Path, other: dict[str, Any]
) -> None:
    asked: dict[str, Any] = {"effort": "quick"}
    state = tmp_path / "measured"
    with pytest.raises(Stopped):
        cd.evaluate(*setting, **asked, state=state, progress=stop_after(2))
    before = state.read_bytes()
    with pytest.raises(cd.CircuitDiscoveryError, match="another measurement"):
        cd.evaluate(*setting, **(asked | other), state=state)
    assert state.read_bytes() == before
    state.write_text("{}")
    with pytest.raises(cd.CircuitDiscoveryError, match="measured"):
        cd.evaluate(*setting, **asked, state=state)


@pytest.mark.parametrize("what", ["spans", "dictionary"])
def test_a_file_of_a_circuit_among_other_parts_is_refused(
    setting: tuple[Any, Any, Any], tmp_path: Path, what: str
) -> None:
    """The same edges by name, among spans at other positions, or features of another dictionary."""
    model, task, _ = setting
    graph = cd.split(model, {"input": {"x": [0, 1]}})
    (split,) = graph.splits
    other = {"spans": {"spans": ((-1,),)}, "dictionary": {"digest": "another"}}[what]
    circuit = cd.Circuit(graph, cd.eap(model, task, graph=graph).top(80).mask)
    with pytest.raises(Stopped):
        cd.evaluate(model, task, circuit, effort="quick", state=tmp_path / "s", progress=stop_after(2))
    there = cd.Circuit(replace(graph, splits=(replace(split, **other),)), circuit.mask)
    assert there.edges == circuit.edges
    with pytest.raises(cd.CircuitDiscoveryError, match="another measurement"):
        cd.evaluate(model, task, there, effort="quick", state=tmp_path / "s")


# ------------------------------------------------------------------ how much there is to do


def test_progress_is_in_proportion_to_the_work(setting: tuple[Any, Any, Any]) -> None:
    model, task, circuit = setting
    seen: list[tuple[int, int]] = []
    cd.evaluate(model, task, circuit, progress=lambda *now: seen.append(now))
    done = [each for each, _ in seen]
    assert done == sorted(done) and seen[-1][0] == seen[-1][1]
    assert all(0.5 <= total / seen[-1][1] <= 2 for _, total in seen)


def test_a_resumed_measurement_s_progress_starts_where_it_was(
    setting: tuple[Any, Any, Any], tmp_path: Path
) -> None:
    model, task, circuit = setting
    seen: list[list[tuple[int, int]]] = [[], []]
    with pytest.raises(Stopped):
        stop = stop_after(30)
        cd.evaluate(
            model,
            task,
            circuit,
            state=tmp_path / "measured",
            progress=lambda *now: (seen[0].append(now), stop(*now))[0],
            batch_size=2,
        )
    cd.evaluate(
        model,
        task,
        circuit,
        state=tmp_path / "measured",
        progress=lambda *now: seen[1].append(now),
        batch_size=2,
    )
    assert 0 < seen[1][0][0] <= seen[0][-1][0]


def test_price_and_effort_follow_counts_alone(tinies: Callable[[str], Tiny]) -> None:
    toy = tinies("toy").model
    for name in ("gendered_pronoun", "greater_than", "induction", "ioi", "subject_verb_agreement"):
        task = cd.load_task(name, toy)
        assert default_effort(toy, task, cd.Circuit.full(toy.graph)) == "full"
    smollm2 = cd.Graph(n_layers=30, n_heads=9, n_kv_heads=3)
    circuit = cd.Scores(smollm2, np.random.default_rng(0).random(smollm2.allowed.shape)).top(707)
    assert price(circuit, 64, "quick") < 60 < price(circuit, 64, "full")
    assert price(circuit, 640, "full") < price(circuit, 64, "full")  # greedy ranks on 16 examples
