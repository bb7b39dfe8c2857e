"""Where clean and corrupted prompts are the same there is nothing to
explain, and no share of rounding is given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import ARCHITECTURES, Tiny, each_and_each, random_prompts

import circuitdiscovery as cd
from circuitdiscovery.engine.metrics import BoundMetric
from circuitdiscovery.engine.setup import Setup
from circuitdiscovery.explanation.scrubbing.hypothesis import load_hypothesis
from circuitdiscovery.measure.estimates import weights
from circuitdiscovery.measure.evaluator import Evaluator
from circuitdiscovery.measure.normalized import normalized
from circuitdiscovery.reporting.sentences import verdict
from circuitdiscovery.values import plain


def unchanged(task: Any, keep: int = 0) -> Any:
    """Every row against itself, but the first few."""
    same = tuple(
        replace(e, corrupted=e.corrupted if row < keep else e.clean) for row, e in enumerate(task.examples)
    )
    return replace(task, examples=same, held_out=None)


@pytest.fixture(scope="module")
def task() -> Any:
    return unchanged(random_prompts(101, 12, 6, seed=3).task)


@pytest.mark.parametrize(
    ("name", "metric"), each_and_each(ARCHITECTURES, ["logit_diff", "prob_diff", "kl_divergence", "nll"])
)
def test_an_evaluation_gives_a_reason_instead_of_a_number(
    tinies: Callable[[str], Tiny], name: str, task: Any, metric: str
) -> None:
    tiny = tinies(name)
    circuit = cd.Circuit(tiny.model.graph, tiny.model.graph.mask(list(tiny.model.graph.edges)[::2]))
    scores = cd.Scores(tiny.model.graph, tiny.model.graph.allowed * 1.0)
    found = cd.evaluate(tiny.model, task, circuit, metric=metric, effort="quick", scores=scores)
    assert found.normalized is None and found.curve is None
    assert "nothing to explain" in str(found.reason) and "nothing to explain" in str(found)
    with pytest.raises(cd.CircuitDiscoveryError, match=r"no faithfulness curve: .* nothing to explain"):
        cd.curve(tiny.model, task, scores, metric=metric)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_bound_is_above_rounding_and_below_a_difference(dtype: str) -> None:
    """Of runs that are the same, however they are computed; the flag
    that says so from the tokens is put out."""
    model = cd.load_model("toy", dtype=dtype)
    real = replace(cd.load_task("ioi", model, examples=16), held_out=None)
    for given, there in ((unchanged(real), False), (real, True)):
        evaluator = Evaluator.build(Setup.of(model, given, model.graph, metric="logit_diff"))
        assert evaluator.unchanged is not there
        evaluator.unchanged = False
        full, empty = (
            evaluator.values(mask) for mask in (model.graph.allowed, np.zeros_like(model.graph.allowed))
        )
        assert bool(abs(full.mean() - empty.mean()) > 3 * evaluator.rounding()) is there
        assert (evaluator.normalized(full, full, empty)[0] is not None) is there


def test_another_ablation_of_the_same_prompts_changes_something(gpt2: Tiny, task: Any) -> None:
    found = cd.evaluate(gpt2.model, task, cd.Circuit.full(gpt2.model.graph), ablation="zero", effort="quick")
    assert "nothing to explain" not in str(found.reason)


def test_a_metric_of_small_units_is_not_rounding(gpt2: Tiny) -> None:
    def small(logits: Any, part: Any) -> Any:
        return 1e-9 * torch.stack(
            [row[e.correct[0]] - row[e.incorrect[0]] for row, e in zip(logits, part.examples, strict=True)]
        )

    task = random_prompts(101, 12, 6, seed=3).task
    evaluator = Evaluator.build(Setup.of(gpt2.model, task, gpt2.model.graph, metric=small))
    full, empty = (
        evaluator.values(mask) for mask in (gpt2.model.graph.allowed, np.zeros_like(gpt2.model.graph.allowed))
    )
    assert "nothing to explain" not in str(evaluator.normalized(full, full, empty)[1])


def test_rounding_is_the_same_where_all_was_saved(gpt2: Tiny, task: Any, tmp_path: Path) -> None:
    circuit = cd.Circuit.full(gpt2.model.graph)
    some = replace(task, examples=(*task.examples, *random_prompts(101, 1, 6).task.examples))
    first, second = (
        cd.evaluate(gpt2.model, some, circuit, effort="quick", state=tmp_path / "state").to_dict()
        for _ in range(2)
    )
    assert first == second


def test_searches_accept_them(gpt2: Tiny, task: Any) -> None:
    assert np.abs(cd.eap(gpt2.model, task).values).max() < 1e-4
    assert len(cd.acdc(gpt2.model, task, threshold=1e-3)) == 0


def test_a_file_of_unchanged_rows_is_refused(tmp_path: Path) -> None:
    toy = cd.load_model("toy")
    task = cd.load_task("ioi", toy, examples=4)
    same = [f'"{e.text}","{e.text}", Mary, John' for e in task.examples]
    other = f'"{task.examples[0].text}","{toy.tokenizer.decode(task.examples[0].corrupted)}", Mary, John'
    (tmp_path / "same.csv").write_text("\n".join(["clean,corrupted,correct,incorrect", *same]))
    with pytest.raises(
        cd.CircuitDiscoveryError, match=r"4 of 4 rows .* row 1: the corrupted prompt is the clean one"
    ):
        cd.load_task(tmp_path / "same.csv", toy)
    (tmp_path / "one.csv").write_text("\n".join(["clean,corrupted,correct,incorrect", *same, other]))
    with pytest.raises(cd.CircuitDiscoveryError, match=r"4 of 5 rows .* there is nothing to explain"):
        cd.load_task(tmp_path / "one.csv", toy)
    found = cd.load_task(tmp_path / "one.csv", toy, skip_bad=True)
    assert len(found) == 1 and found.info["skipped"] == 4
    saved = unchanged(task)
    saved.save(tmp_path / "saved.json")
    with pytest.raises(cd.CircuitDiscoveryError, match="task ioi: every corrupted prompt is its clean"):
        cd.load_task(tmp_path / "saved.json", toy)


def test_a_counterfactual_that_leaves_a_prompt_as_it_is_is_refused(tmp_path: Path) -> None:
    """Of the two cases one has no other."""
    (tmp_path / "half.toml").write_text(
        'description = "d"\ntemplates = ["Then the {dogs} on the cabinet"]\ncorrect = " {is}"\n'
        'incorrect = " {are}"\n[slots]\nnoun = "noun"\n[counterfactuals.number]\ncase = { one = "many" }\n'
        '[cases]\none = { dogs = "{noun.one}", is = "is", are = "are" }\n'
        'many = { dogs = "{noun.many}", is = "are", are = "is" }\n'
        '[words.noun]\none = ["key", "dog", "cat"]\nmany = ["keys", "dogs", "cats"]\n'
    )
    told = r"task half, row \d: the corrupted prompt is the clean one, 'Then the \w+s on the cabinet'"
    with pytest.raises(cd.CircuitDiscoveryError, match=told):
        cd.load_task(tmp_path / "half.toml", cd.load_model("toy"))


def test_the_given_file_is_refused(shared: Path) -> None:
    with pytest.raises(cd.CircuitDiscoveryError, match="nothing to explain"):
        cd.load_task(shared / "faults" / "clean-equals-corrupted.csv", cd.load_model("toy"))


@pytest.mark.parametrize("higher", [True, False])
def test_rounding_and_the_wrong_side_are_no_spans(higher: bool) -> None:
    full, draws = np.array([1.0, 2.0, 3.0]), weights(3, 0)
    metric = BoundMetric("mine", higher, lambda logits, _: logits)

    def found(nothing: np.ndarray) -> Any:
        return normalized(full, full, nothing, draws, metric=metric, least=1e-6)

    side = 1 if higher else -1
    assert found(full - 1e-7)[0] is None and "is rounding" in found(full - 1e-7)[1]
    assert found(full - 1e-5 * side) == (1.0, None)
    share, reason = found(full + 1e-5 * side)
    assert share is None and "the model is worse than no edges; right and wrong answers" in reason


def test_a_model_that_prefers_the_wrong_answers_has_no_behaviour_to_keep() -> None:
    """Of exchanged answers F(M) - F(empty) is that of the right ones with the other sign."""
    model = cd.load_model("toy")
    task = replace(cd.load_task("ioi", model, examples=16), held_out=None)
    turned = tuple(replace(e, correct=e.incorrect, incorrect=e.correct) for e in task.examples)
    circuit = cd.eap(model, task).top(100)
    right, wrong = (
        cd.evaluate(model, replace(task, examples=each), circuit, effort="quick")
        for each in (task.examples, turned)
    )
    assert right.normalized is not None and right.full - right.empty > 1
    assert wrong.full - wrong.empty == pytest.approx(right.empty - right.full, abs=1e-4)
    assert wrong.normalized is None and "right and wrong answers" in str(wrong.reason)
    word, _, said = verdict(plain(wrong.to_dict()), 5, 12)
    assert word == "Undetermined" and any("the model is worse than no edges" in each for each in said)
    found = cd.universality.transfer({"one": (model, circuit)}, {"turned": replace(task, examples=turned)})
    assert np.isnan(found["one", "turned"]) and "worse than no edges" in str(found)
    how: dict[str, Any] = {"prompts": cd.load_task("ioi", model, examples=300), "renamed": 0}
    scrubbed = cd.scrub(model, replace(task, examples=turned), load_hypothesis("toy/ioi-position"), **how)
    assert scrubbed.recovered is None and "worse than with everything resampled" in str(scrubbed.reason)
