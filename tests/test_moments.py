"""The reference of means: drawn apart from the examples, never a row
itself, at least ten of a kind, streamed.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Prompts, Tiny, random_prompts

import circuitdiscovery as cd
from circuitdiscovery.engine import moments
from circuitdiscovery.engine.ablation import on_demand


def rows_of(model: Any, task: Any, ablation: str, **options: Any) -> list[torch.Tensor]:
    """[S, T, D] for each example, by row."""
    alt = cd.replacements(model, task, ablation=ablation, **options)
    found = {
        row: alt.rows(batch)[:, i] for batch in task.batches() for i, row in enumerate(batch.rows.tolist())
    }
    return [found[row] for row in range(len(task))]


def written(model: Any, tokens: Any) -> torch.Tensor:
    """[S, N, T, D] of some prompts of one length, each run alone."""
    return torch.cat([moments.run_sources(model, torch.tensor([row])) for row in tokens], dim=1)


@pytest.mark.parametrize("name", ["ioi", "induction"])
def test_a_drawn_reference_is_apart_from_the_examples(toy: Any, name: str) -> None:
    task = cd.load_task(name, toy, examples=6)
    assert task.held_out is not None and task.apart is not None
    known = {example.clean for example in (*task.examples, *task.held_out.examples)}
    drawn = task.apart()
    assert len(known) == 12 and len({example.clean for example in drawn}) == len(drawn) == 500
    assert not known & {example.clean for example in drawn}
    assert task.held_out.apart is not None and task.held_out.apart() == drawn
    assert cd.load_task(name, toy, examples=6).apart() == drawn  # type: ignore[misc]


def test_a_mean_is_over_drawn_prompts_of_the_template(toy: Any) -> None:
    """With few examples each row's mean was its own corrupted run: `mean` and `resample` were the same."""
    task = cd.load_task("ioi", toy, examples=4)
    assert task.apart is not None
    found = rows_of(toy, task, "mean")
    for row, example in enumerate(task.examples):
        group = [
            e.corrupted
            for e in task.apart()
            if e.template == example.template and len(e.clean) == len(example.clean)
        ]
        assert len(group) >= 10
        torch.testing.assert_close(found[row], written(toy, group).mean(1), atol=1e-5, rtol=0)
        assert (found[row] - written(toy, [example.corrupted])[:, 0]).abs().max() > 0.1
    assert on_demand(toy, task, "mean").mean_over == 16  # type: ignore[attr-defined]  # 500 over thirty templates


def test_a_row_of_tokens_is_not_in_its_own_mean(gpt2: Tiny) -> None:
    prompts = random_prompts(101, 4, 5, seed=1)
    task, runs = prompts.task, written(gpt2.model, prompts.corrupted.tolist())
    for row in range(4):
        others = runs[:, [other for other in range(4) if other != row]]
        torch.testing.assert_close(rows_of(gpt2.model, task, "mean")[row], others.mean(1), atol=1e-5, rtol=0)
        flat = others.mean((1, 2))[:, None].expand(-1, 5, -1)
        torch.testing.assert_close(rows_of(gpt2.model, task, "mean_all")[row], flat, atol=1e-5, rtol=0)


def test_copies_of_a_row_are_the_row_itself(gpt2: Tiny) -> None:
    prompts = random_prompts(101, 3, 5, seed=2)
    columns = {
        name: [*getattr(prompts, name).tolist(), *getattr(prompts, name).tolist()[:1]]
        for name in Prompts.__dataclass_fields__
    }
    found, runs = (
        rows_of(gpt2.model, cd.Task.from_tokens(**columns), "mean"),
        written(gpt2.model, prompts.corrupted.tolist()),
    )
    torch.testing.assert_close(found[0], runs[:, 1:].mean(1), atol=1e-5, rtol=0)
    torch.testing.assert_close(found[1], runs[:, [0, 0, 2]].mean(1), atol=1e-5, rtol=0)


def test_a_row_s_clean_prompt_is_not_in_its_mean(gpt2: Tiny) -> None:
    """A table often has its pairs in both directions: the clean prompt of one is what another runs."""
    a, b, *others = random_prompts(101, 14, 5, seed=8).clean.tolist()
    columns = {"clean": [a, b, *others], "corrupted": [b, a, *reversed(others)]}
    count = len(columns["clean"])
    task = cd.Task.from_tokens(**columns, correct=[1] * count, incorrect=[2] * count)
    for row in range(count):
        rest = [
            each
            for each in columns["corrupted"]
            if each not in (columns["clean"][row], columns["corrupted"][row])
        ]
        runs = written(gpt2.model, rest)
        torch.testing.assert_close(rows_of(gpt2.model, task, "mean")[row], runs.mean(1), atol=1e-5, rtol=0)
        flat = runs.mean((1, 2))[:, None].expand(-1, 5, -1)
        torch.testing.assert_close(rows_of(gpt2.model, task, "mean_all")[row], flat, atol=1e-5, rtol=0)
    assert on_demand(gpt2.model, task, "mean").mean_over == 12  # type: ignore[attr-defined]
    apart = replace(task, examples=task.examples[:1], apart=lambda: task.examples)  # drawn, the same holds
    runs = written(gpt2.model, [each for each in columns["corrupted"] if each != a])
    torch.testing.assert_close(rows_of(gpt2.model, apart, "mean")[0], runs.mean(1), atol=1e-5, rtol=0)
    with pytest.raises(cd.CircuitDiscoveryError, match=r"row 0 .* neither its own pair nor its clean prompt"):
        cd.replacements(gpt2.model, replace(task, examples=task.examples[:2]), ablation="mean")


def test_the_variance_of_the_others_divides_by_one_less(gpt2: Tiny) -> None:
    """What is drawn for a row less its mean, over a standard Gaussian
    draw, is the deviation of the other rows.
    """
    prompts = random_prompts(101, 5, 4, seed=3)
    runs = written(gpt2.model, prompts.corrupted.tolist()).double()
    mean, drawn = (rows_of(gpt2.model, prompts.task, name) for name in ("mean", "random"))
    for row in range(5):
        z = torch.randn(mean[row].shape, generator=torch.Generator().manual_seed(row))
        expected = runs[:, [other for other in range(5) if other != row]].std(1, correction=1)
        torch.testing.assert_close(((drawn[row] - mean[row]) / z).double(), expected, atol=2e-4, rtol=2e-3)


def test_batches_of_the_reference_do_not_matter(gpt2: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = random_prompts(101, 23, 4, seed=4)
    whole = {name: rows_of(gpt2.model, prompts.task, name) for name in ("mean", "mean_all", "random")}
    monkeypatch.setattr(moments, "_BATCH_ROWS", 3)
    for name, found in whole.items():
        torch.testing.assert_close(
            torch.stack(rows_of(gpt2.model, prompts.task, name)), torch.stack(found), atol=1e-5, rtol=0
        )


def test_memory_does_not_grow_with_the_reference(gpt2: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than a batch of prompts runs at once, and what is kept is one group's sums."""
    most: list[int] = []
    run = moments.run_sources
    monkeypatch.setattr(
        moments,
        "run_sources",
        lambda model, start, *parts: most.append(len(start)) or run(model, start, *parts),
    )
    reference = random_prompts(101, 300, 4, seed=5).clean
    kept = moments.Moments(
        gpt2.model, random_prompts(101, 2, 4).task, random_prompts(101, 300, 4, seed=5).task, variance=True
    )
    assert [tuple(group.mean.shape) for group in kept._groups.values()] == [(16, 4, 32)]
    assert sum(most) == len(reference) == kept.least and max(most) <= 32


def test_a_row_without_others_of_its_length_is_named(gpt2: Tiny) -> None:
    """A mean of the row alone is its own run; it was taken for a mean."""
    task = cd.Task.from_tokens(
        clean=[[1, 2], [3, 4], [5, 6, 7]],
        corrupted=[[2, 2], [4, 4], [6, 6, 7]],
        correct=[1] * 3,
        incorrect=[2] * 3,
    )
    with pytest.raises(
        cd.CircuitDiscoveryError, match="row 2 has 3 tokens: its mean needs another prompt of that length"
    ):
        cd.eap(gpt2.model, task, ablation="mean")
    with pytest.raises(
        cd.CircuitDiscoveryError, match="row 0 has 2 tokens: its mean needs two other prompts"
    ):
        cd.eap(gpt2.model, task, ablation="random")
    cd.eap(gpt2.model, task.select([0, 1]), ablation="mean")


def test_few_of_a_template_are_pooled_to_the_length(gpt2: Tiny) -> None:
    given = random_prompts(101, 21, 4, seed=6)
    # eleven of 0, ten of 1
    examples = [replace(e, template=i % 2) for i, e in enumerate(given.task.examples)]
    task = replace(random_prompts(101, 2, 4).task, examples=(replace(given.task.examples[0], template=0),))
    for count, expected in ((21, range(0, 21, 2)), (18, range(18))):  # nine of a template are too few
        reference = replace(task, examples=tuple(examples[:count]))
        found = rows_of(gpt2.model, task, "mean", reference=reference)[0]
        runs = written(gpt2.model, given.corrupted[list(expected)].tolist())
        torch.testing.assert_close(found, runs.mean(1), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        (torch.tensor([1, 2, 3]), "reference, row 0: must be token ids, not int"),
        (["one"], r"reference, row 0: must be token ids, not str; for texts there is Task.from_prompts"),
        ([["a", "b", "c", "d"]], "reference, row 0: must be token ids, not str"),
        (torch.full((2, 4), 0.5), r"reference, row 0: must be token ids, not 0\.5"),
        (torch.full((2, 4), -1), "reference, row 0: must be token ids, not -1"),
        ([[True] * 4], "reference, row 0: must be token ids, not True"),
        ([[1, 2, 3, 4], [1, 101, 2, 3]], "task reference, row 1: clean has token 101"),
        ([[]], "reference, row 0: has no token"),
        ([], "reference: at least one prompt is needed"),
    ],
)
def test_a_reference_is_rows_of_tokens(gpt2: Tiny, reference: Any, told: str) -> None:
    with pytest.raises(cd.CircuitDiscoveryError, match=told):
        cd.replacements(gpt2.model, random_prompts(101, 2, 4).task, ablation="mean", reference=reference)


def test_a_selection_keeps_what_means_are_over(gpt2: Tiny) -> None:
    task = random_prompts(101, 5, 4, seed=7).task
    whole, some = rows_of(gpt2.model, task, "mean"), rows_of(gpt2.model, task.select([3, 1]), "mean")
    torch.testing.assert_close(torch.stack(some), torch.stack([whole[3], whole[1]]), atol=1e-6, rtol=0)


def test_a_table_s_unused_rows_are_of_the_reference(toy: Any, tmp_path: Path) -> None:
    drawn = cd.load_task("ioi", toy, examples=12).examples
    lines = [f'"{e.text}","{e.text.replace(" the ", " a ")}", Mary, John' for e in drawn]
    path = tmp_path / "table.csv"
    path.write_text("\n".join(["clean,corrupted,correct,incorrect", *lines]) + "\n")
    task = cd.load_task(path, toy, examples=1)
    assert task.held_out is not None and task.others == task.held_out.others
    assert len(task.others) == len(lines) - 2
    assert not {*task.others} & {*task.examples, *task.held_out.examples}


def test_every_report_says_over_how_many(toy: Any) -> None:
    """At least of the printed ones, and of their JSON; the others stay as they were."""
    task = cd.load_task("ioi", toy, examples=3)
    circuit = cd.eap(toy, task).top(20)
    found = cd.evaluate(toy, task, circuit, ablation="mean", effort="quick")
    assert found.mean_over == 16 and "mean ablation (over 16 or more prompts)" in str(found)
    assert found.to_dict()["mean_over"] == 16
    plain = cd.evaluate(toy, task, circuit, effort="quick")
    assert "mean_over" not in plain.to_dict() and "resample ablation, noising" in str(plain)
    explained = cd.explain(toy, task, circuit, ablation="mean", nodes=["a2.h0"])
    assert "mean ablation (over 16 or more prompts)" in str(explained)
    assert type(explained).from_dict(explained.to_dict()).mean_over == 16
    assert "(over 16 or more prompts)" in str(cd.path_patching(toy, task, ablation="mean"))
    task = cd.load_task("ioi", toy, examples=8)
    assert task.held_out is not None
    over, scores = cd.replacements(toy, task.held_out, ablation="mean").mean_over, cd.random(toy, task)
    curve, plain_curve = (cd.curve(toy, task, scores, ablation=ablation) for ablation in ("mean", "resample"))
    assert (
        over is not None
        and curve.mean_over == over
        and f"mean ablation (over {over} or more prompts)" in str(curve)
    )
    assert (
        plain_curve.mean_over is None
        and "mean_over" not in plain_curve.to_dict()
        and "resample ablation" in str(plain_curve)
    )
