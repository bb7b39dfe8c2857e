"""Matryoshka attribution: its relaxed top edges add up, their gradient is
a derivative, and what it finds is known.
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_edge_pruning import KNOWN, cut_model, held_out_kl
from test_families import BY_LENGTH, config_by_length
from tiny import Tiny, random_model, random_prompts

import circuitdiscovery as cd
from circuitdiscovery.cli import run
from circuitdiscovery.engine.relaxed import Relaxed
from circuitdiscovery.engine.setup import Setup
from circuitdiscovery.reporting.options import Options
from circuitdiscovery.search.matryoshka import _Search, hard_top, soft_top, through_soft_top


@pytest.mark.parametrize(("size", "temperature"), [(1, 0.5), (7.5, 0.02), (99, 0.5), (40, 3.0)])
def test_the_soft_mask_adds_up_to_its_size(size: float, temperature: float) -> None:
    theta = torch.randn(100, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3
    mask = soft_top(theta, size, temperature)
    assert float(mask.sum()) == pytest.approx(size, abs=1e-7)
    assert mask.argsort().tolist() == theta.argsort().tolist() or temperature < 0.1  # saturated ones tie
    assert 0 <= float(mask.min()) <= float(mask.max()) <= 1


def test_the_gradient_through_the_threshold_is_the_finite_difference() -> None:
    draw = torch.Generator().manual_seed(2)
    theta, weights, nudge = (torch.randn(50, generator=draw, dtype=torch.float64) for _ in range(3))

    def loss(theta: Any) -> float:
        return float((weights * soft_top(theta, 12, 0.5)).sum())

    expected = (loss(theta + 1e-5 * nudge) - loss(theta - 1e-5 * nudge)) / 2e-5
    got = through_soft_top(soft_top(theta, 12, 0.5), weights, 0.5)
    assert float((got * nudge).sum()) == pytest.approx(expected, rel=1e-4)
    assert float(got.sum()) == pytest.approx(0, abs=1e-9)


def test_ties_go_by_index() -> None:
    assert hard_top(torch.tensor([1.0, 3.0, 1.0, 1.0]), 3).tolist() == [1, 1, 1, 0]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_edges_that_can_matter_are_found(seed: int) -> None:
    model, prompts = cut_model(), random_prompts(101, 8, 5, seed=6)
    scores = cd.matryoshka(model, prompts.task, edges=10, steps=100, seed=seed)
    assert list(scores.top(10).edges) == sorted(KNOWN, key=model.graph.index)
    assert scores.values.min() >= 0


def test_better_than_attribution_on_ioi() -> None:
    """At a tenth of toy's edges the divergence that EAP-IG leaves is at least halved."""
    model = cd.load_model("toy")
    task = cd.load_task("ioi", model, examples=32)
    ours = held_out_kl(model, task, cd.matryoshka(model, task, edges=47, steps=120).top(47))
    assert ours < 0.5 * held_out_kl(model, task, cd.eap_ig(model, task).top(47))


def test_further_prompts_are_drawn_and_none_is_held_out() -> None:
    """What is learnt depends on them; a metric of one's own is asked about
    them, and never about a held-out prompt.
    """
    model = cd.load_model("toy")
    task = cd.load_task("ioi", model, examples=8)
    asked: set[tuple[int, ...]] = set()

    def metric(logits: Any, part: Any) -> Any:
        asked.update(example.clean for example in part.examples)
        rows = torch.arange(len(part))
        answers = torch.tensor([[example.correct[0], example.incorrect[0]] for example in part.examples])
        return logits[rows, answers[:, 0]] - logits[rows, answers[:, 1]]

    more = cd.matryoshka(model, task, edges=40, steps=20, metric=metric)
    assert (
        task.held_out is not None
        and len(asked) > 60
        and not asked & {example.clean for example in task.held_out}
    )
    asked.clear()
    assert more.info["options"]["drawn"] == 80  # four in each of 20 steps
    alone = cd.matryoshka(model, task, edges=40, steps=20, drawn=0, metric=metric)
    own = {example.clean for example in task}
    assert asked == own and not np.array_equal(more.values, alone.values)
    asked.clear()
    given = cd.matryoshka(
        model, task, edges=40, steps=20, metric=metric, ablation=cd.replacements(model, task)
    )
    assert asked == own and given.info["options"] == alone.info["options"] != more.info["options"]


def test_a_circuit_that_says_fewer_prompts_than_were_asked_for_is_of_the_run(tmp_path: Path) -> None:
    """Where a process died between circuit.json and run.json, the circuit itself says whose it is."""
    how = {"drawn": 10, "steps": 2}
    options = Options("toy", "ioi", method="matryoshka", edges=10, examples=4, measure="none", how=how)
    run.discover(options, tmp_path, ["x"])
    found = (tmp_path / "circuit.json").read_bytes()
    assert json.loads(found)["options"]["drawn"] == 8
    for drawn, right in ((8, True), (11, False)):
        (tmp_path / "circuit.json").write_bytes(found.replace(b'"drawn": 8', f'"drawn": {drawn}'.encode()))
        record = json.loads((tmp_path / "run.json").read_bytes()) | {"done": {}}
        del record["summary"]
        (tmp_path / "run.json").write_text(json.dumps(record))
        with (
            nullcontext()
            if right
            else pytest.raises(cd.CircuitDiscoveryError, match="its drawn is 11, not 10")
        ):
            run.discover(options, tmp_path, ["x"])


@pytest.mark.parametrize(("kind", "rope"), BY_LENGTH, ids=[kind for kind, _ in BY_LENGTH])
def test_prompts_run_as_each_alone_where_positions_depend_on_the_length(
    kind: str, rope: dict[str, Any]
) -> None:
    """Lengths on both sides of what the model was trained on, which no run may have together."""
    model = cd.load_model((random_model(config_by_length(kind, rope)), None), dtype="float64")
    rng, lengths = np.random.default_rng(0), (5, 6, 14, 16)
    sides = [[rng.integers(97, size=length).tolist() for length in lengths] for _ in range(2)]
    task = cd.Task.from_tokens(clean=sides[0], corrupted=sides[1], correct=[1] * 4, incorrect=[2] * 4)
    circuit = cd.random(model, task).top(len(model.graph) // 2)
    search = _Search.build(Setup.of(model, task), len(task))
    for batch, patched in search.patched_runs(range(len(task))):
        alone = [cd.run_circuit(model, task.select([row]), circuit) for row in batch.rows.tolist()]
        torch.testing.assert_close(patched.logits(circuit.mask), torch.cat(alone), atol=1e-10, rtol=1e-10)


def test_pads_have_a_gradient_in_float16() -> None:
    """At a pad the stream is nearly 0, and one over its deviation, squared, more than float16 holds."""
    model = cd.load_model("toy", dtype="float16")
    task = cd.load_task("ioi", model, examples=8)
    assert len({len(example.clean) for example in task}) > 1
    scores = cd.matryoshka(model, task, edges=30, steps=4).values
    assert np.isfinite(scores).all() and np.ptp(scores) > 0


@pytest.mark.parametrize("method", ["matryoshka", "edge_pruning", "hybrid"])
def test_a_gradient_that_is_no_number_stops_the_search_at_once(
    llama: Tiny, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, asked = Relaxed.gradient, list[int]()

    def broken(*args: Any) -> tuple[Any, Any]:
        asked.append(1)
        loss, gradient = given(*args)
        return loss, gradient + torch.nan

    monkeypatch.setattr(Relaxed, "gradient", broken)
    with pytest.raises(
        cd.CircuitDiscoveryError, match=r"^the gradient of rows [\d, ]+ is not finite; "
    ) as told:
        getattr(cd, method)(llama.model, llama.prompts.task, edges=9)
    assert len(asked) == 1 and "\n" not in str(told.value)


@pytest.mark.parametrize("ablation", ["mean", "zero"])
def test_under_any_ablation(tiny: Tiny, ablation: str) -> None:
    scores = cd.matryoshka(tiny.model, tiny.prompts.task, ablation=ablation, metric="kl_divergence", steps=4)
    assert len(scores.top(5)) == 5


def test_stopped_anywhere_and_resumed_it_ends_with_the_same_bytes(llama: Tiny, tmp_path: Path) -> None:
    prompts = random_prompts(101, 9, 5, seed=3)

    def searched(name: str, stop: int | None = None) -> bytes:
        def progress(done: int, total: int) -> None:
            assert 0 <= done <= total
            if done == stop:
                raise KeyboardInterrupt

        options: dict[str, Any] = {
            "edges": 30,
            "steps": 6,
            "progress": progress,
            "state": tmp_path / f"{name}.state",
        }
        cd.matryoshka(llama.model, prompts.task, **options).save(tmp_path / f"{name}.safetensors")
        return (tmp_path / f"{name}.safetensors").read_bytes()

    whole = searched("whole")
    for stop in (0, 16, 17, 19, 21):  # before the start, after it, in both halves
        with pytest.raises(KeyboardInterrupt):
            searched("stopped", stop)
        assert searched("stopped") == whole
        (tmp_path / "stopped.state").unlink(missing_ok=True)


def test_another_search_is_not_resumed(llama: Tiny, tmp_path: Path) -> None:
    cd.matryoshka(llama.model, llama.prompts.task, edges=9, steps=2, state=tmp_path / "s")
    with pytest.raises(
        cd.CircuitDiscoveryError, match=r"the state of another search .*edges 9 there, 10 here"
    ):
        cd.matryoshka(llama.model, llama.prompts.task, edges=10, steps=2, state=tmp_path / "s")


def test_twice_the_same_and_another_draw(llama: Tiny) -> None:
    a, b, c = (
        cd.matryoshka(llama.model, llama.prompts.task, steps=3, seed=seed).values for seed in (0, 0, 1)
    )
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


class Given:
    """Replacements of somebody's own."""

    name, rows = "given", None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"edges": 0}, "edges must be a whole number from 1 to"),
        ({"edges": 10**6}, "edges must be a whole number from 1 to"),
        ({"drawn": -1}, "drawn must be a whole number of at least 0, not -1"),
        ({"drawn": 4, "ablation": Given()}, "drawn is for a named ablation"),
        ({"steps": 1}, "steps must be a whole number of at least 2, not 1"),
        ({"metric": "accuracy"}, "'accuracy' has no gradient"),
        ({"metric": "nonsense"}, "no metric 'nonsense'"),
    ],
)
def test_what_is_refused(llama: Tiny, options: dict[str, Any], message: str) -> None:
    with pytest.raises(cd.CircuitDiscoveryError, match=message):
        cd.matryoshka(llama.model, llama.prompts.task, **options)
