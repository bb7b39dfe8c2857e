"""Circuits on other tasks, a task by template, and circuits apart from earlier ones."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tiny import Tiny, random_prompts

import circuitdiscovery as cd
from circuitdiscovery.cli.commands import cli
from circuitdiscovery.search import matryoshka
from circuitdiscovery.search.edge_pruning import edge_pruning

TASKS = ["greater_than", "subject_verb_agreement"]


@pytest.fixture(scope="module")
def found(toy: cd.Model) -> dict[str, tuple[cd.Model, cd.Circuit]]:
    """A circuit of each of two tasks."""
    return {name: (toy, cd.eap(toy, cd.load_task(name, toy, examples=8)).best(40)) for name in TASKS}


# ------------------------------------------------------------------ transfer


def test_faithfulness_is_that_of_the_logits(toy: cd.Model, found: Any) -> None:
    """(F(C) - F(empty)) / (F(M) - F(empty)) of run_circuit's logits; the interval is that of `evaluate`."""
    result = cd.universality.transfer(found, TASKS, examples=8)
    for circuit_name, (_, circuit) in found.items():
        for name in TASKS:
            task = cd.load_task(name, toy, examples=8)
            kept, full, empty = (
                mean_metric(toy, task, each)
                for each in (circuit, cd.Circuit.full(toy.graph), cd.Circuit.empty(toy.graph))
            )
            value = result[circuit_name, name]
            assert value == pytest.approx((kept - empty) / (full - empty), abs=1e-4)
            known = result.baseline(circuit_name, name)
            assert (float(known.full), float(known.empty)) == pytest.approx((full, empty), abs=1e-4)
            measured = cd.evaluate(toy, task, circuit, effort="quick").normalized
            assert measured is not None
            assert (value.low, value.high) == pytest.approx((measured.low, measured.high), abs=1e-6)
    assert np.array(result.faithfulness).shape == (2, 2)


def mean_metric(model: cd.Model, task: cd.Task, circuit: cd.Circuit) -> float:
    """The task's own metric on its held-out prompts, by hand."""
    held = task.held_out
    assert held is not None
    logits = cd.run_circuit(model, held, circuit)
    values = []
    for row, example in zip(logits, held.examples, strict=True):
        if task.metric == "prob_diff":
            row = row.softmax(-1)
        right, wrong = (row[list(each)] for each in (example.correct, example.incorrect))
        combined = [each.sum() if task.metric == "prob_diff" else each.mean() for each in (right, wrong)]
        values.append(float(combined[0] - combined[1]))
    return float(np.mean(values))


def test_each_circuit_runs_in_its_own_model(toy: cd.Model, found: Any) -> None:
    """A copy of toy with weaker MLPs has other figures, those that `evaluate` gives it."""
    other = moved(toy)
    circuit = cd.Circuit(other.graph, found["greater_than"][1].mask)
    merged = cd.Circuit.full(replace(toy.graph, split_qkv=False))  # of another graph
    pairs = {**found, "copy": (other, circuit), "merged": (toy, merged)}
    result = cd.universality.transfer(pairs, {"gt": "greater_than"}, examples=8)
    assert result.models == ("toy (greater_than)", "toy (greater_than)", "toy (copy)", "toy (greater_than)")
    assert result["merged", "gt"] == 1
    task = cd.load_task("greater_than", other, examples=8)
    expected = cd.evaluate(other, task, circuit, effort="quick")
    assert result["copy", "gt"] == pytest.approx(expected.normalized, abs=1e-6)
    assert result.baseline("copy", "gt").full == pytest.approx(expected.full, abs=1e-6)
    assert result["copy", "gt"] != pytest.approx(result["greater_than", "gt"], abs=1e-3)


def moved(model: cd.Model) -> cd.Model:
    """A copy with weaker MLPs."""
    blocks = tuple(
        replace(block, W_out=block.W_out * 0.5) for block in model.blocks if block.W_out is not None
    )
    return replace(model, blocks=blocks, digest="other")


def test_a_task_that_nothing_is_known_of_is_undefined(gpt2: Tiny, tmp_path: Path) -> None:
    """Where corrupted prompts are the clean ones F(M) and F(empty) do not differ: NaN, and why; in every form."""
    task = gpt2.prompts.task
    same = replace(task, name="same", examples=tuple(replace(e, corrupted=e.clean) for e in task.examples))
    pairs = {"all": (gpt2.model, cd.Circuit.full(gpt2.model.graph))}
    result = cd.universality.transfer(pairs, {"own": lambda _: random_prompts(101, 40, 5).task, "same": same})
    assert math.isnan(result["all", "same"]) and "is rounding" in str(result.baseline("all", "same").reason)
    assert "undefined" in str(result) and "undefined" in result._repr_html_()
    result.save(tmp_path / "t.json")
    assert str(cd.universality.Transfer.load(tmp_path / "t.json")) == str(result)
    assert result.to_dataframe()["faithfulness"].isna().tolist()[1]
    result.plot(tmp_path / "t.png")
    assert (tmp_path / "t.png").stat().st_size > 1000
    assert json.loads((tmp_path / "t.json").read_text())["faithfulness"][0][1]["value"] is None


@pytest.mark.parametrize("count", [1, 2, 5])
def test_long_names_are_whole_in_the_picture(found: Any, toy: cd.Model, tmp_path: Path, count: int) -> None:
    """Every text is inside of the picture, and no two of them overlap."""
    circuit = found["greater_than"][1]
    names = [f"smollm2-135m-subject_verb_agreement-matryoshka {i}" for i in range(count)]
    tasks = {f"subject_verb_agreement_in_long_sentences_{i}": "ioi" for i in range(count)}
    result = cd.universality.transfer(dict.fromkeys(names, (toy, circuit)), tasks, examples=2)
    figure = result.plot(tmp_path / "t.png")
    figure.draw_without_rendering()
    size, (axes, bar) = figure.bbox, figure.axes
    labels = [axes.xaxis.label, axes.yaxis.label, bar.yaxis.label]
    texts = [*labels, *axes.get_xticklabels(), *axes.get_yticklabels(), *axes.texts]
    boxes = [each.get_window_extent() for each in texts if each.get_text()]
    for box in boxes:
        assert size.x0 <= box.x0 and box.x1 <= size.x1 and size.y0 <= box.y0 and box.y1 <= size.y1
    for i, box in enumerate(boxes):
        assert not [other for other in boxes[:i] if box.overlaps(other)]


def test_the_picture_is_the_same_with_any_settings_of_the_user(found: Any, toy: cd.Model) -> None:
    """Whatever matplotlib's `figure.dpi` is."""
    result = cd.universality.transfer({"a": found["greater_than"]}, {"ioi": "ioi"}, examples=2)
    sizes: list[tuple[float, float]] = []
    for dpi in (72, 100, 200):
        with matplotlib.rc_context({"figure.dpi": dpi}):
            sizes.append(tuple(result.plot().get_size_inches()))
    assert sizes[0] == sizes[1] == sizes[2]


def test_progress_ends(toy: cd.Model, found: Any) -> None:
    seen: list[tuple[int, int]] = []
    cd.universality.transfer(found, TASKS, examples=2, progress=lambda *now: seen.append(now))
    assert seen == sorted(seen) and seen[-1] == (200, 200)


def test_what_cannot_be_transferred(toy: cd.Model, gpt2: Tiny, found: Any) -> None:
    circuit = found["greater_than"][1]
    for pairs, tasks, message in (
        ([circuit], "ioi", "circuits must be name -> "),
        ({"a": circuit}, "ioi", "circuits must be name -> "),
        ({"a": (gpt2.model, circuit)}, "ioi", "this is a circuit of toy"),
        (found, [], "a task at least"),
        (found, ["ioi", "ioi"], "two tasks are named ioi"),
    ):
        with pytest.raises(cd.CircuitDiscoveryError, match=message):
            cd.universality.transfer(pairs, tasks)
    result = cd.universality.transfer(found, TASKS[:1], examples=2)
    with pytest.raises(cd.CircuitDiscoveryError, match="no task 'ioi'"):
        _ = result["greater_than", "ioi"]


def test_on_the_command_line(toy: cd.Model, found: Any, tmp_path: Path) -> None:
    """Each circuit's own task is drawn as its search drew it; the figures are those of `transfer`."""
    for name, (_, circuit) in found.items():
        circuit.save(tmp_path / f"{name}.json")
    paths = [str(tmp_path / f"{name}.json") for name in found]
    shown = CliRunner().invoke(cli, ["transfer", *paths, "--plot", str(tmp_path / "t.png"), "--json"])
    assert shown.exit_code == 0, shown.exception
    expected = cd.universality.transfer(found, TASKS, examples=8)
    assert json.loads(shown.stdout) == expected.to_dict()
    assert (tmp_path / "t.png").exists()
    other = CliRunner().invoke(cli, ["transfer", paths[0], "--task", "ioi", "--examples", "2"])
    assert other.exit_code == 0 and "2 held-out examples" in other.stdout


# ------------------------------------------------------------------ a task in parts


def test_every_row_is_in_the_part_of_its_value(toy: cd.Model) -> None:
    task = cd.load_task("ioi", toy, examples=60)
    for what in ("template", "order", "place"):
        parts = task.by(what)
        for side in (lambda each: each, lambda each: each.held_out):
            rows = {value: side(part) for value, part in parts.items()}
            assert all({e.variables[what] for e in part} == {value} for value, part in rows.items() if part)
            assert sorted(e.text for part in rows.values() for e in part or ()) == sorted(
                e.text for e in side(task) if e.variables[what] in parts
            )
    assert list(task.by("template")) == [str(i) for i in range(15)]


def test_a_part_is_its_task_and_says_which_part(toy: cd.Model, tmp_path: Path) -> None:
    part = cd.load_task("ioi", toy, examples=8).by("order")["ABBA"]
    assert part.name == "ioi" and part.held_out is not None and part.held_out.name == "ioi"
    assert part.title == "ioi, order ABBA" and repr(part).startswith("<Task ioi, order ABBA: ")
    path = tmp_path / "part.json"
    part.save(path)
    assert cd.load_task(path, toy) == part
    scores = cd.eap(toy, part)
    assert scores.info["task"] == "ioi, order ABBA"
    assert cd.evaluate(toy, part, scores.top(20), effort="quick").task == "ioi, order ABBA"
    found = cd.scrub(toy, part, cd.load_hypothesis("toy/ioi-position"), draws=1, renamed=0)
    assert found.task == "ioi, order ABBA" and set(cd.features.labels(part, "repeated").values) <= {
        "first",
        "second",
    }


def test_further_prompts_of_a_part_are_of_the_part(toy: cd.Model, tmp_path: Path) -> None:
    """A search learns from no other sentence; a part of a part narrows it, rows by number have none."""
    task = cd.load_task("ioi", toy, examples=32)
    part, path = task.by("template")["3"], tmp_path / "part.json"
    assert task.apart is not None and task.further() == task.apart()
    part.save(path)
    for each in (part, part.held_out, cd.load_task(path, toy)):
        assert each is not None and each.further()
        pool = matryoshka._pool(toy, each, 480)
        assert len(pool) == len(each) + len(each.further())
        assert {e.variables["template"] for e in pool} == {"3"}
    both = part.by("order")["ABBA"]
    assert {(e.variables["template"], e.variables["order"]) for e in both.further()} == {("3", "ABBA")}
    assert both.title == "ioi, template 3, order ABBA"
    few = task.select([0, 1])
    few.save(path)
    assert few.further() == () == cd.load_task(path, toy).further() == few.by("order")["ABBA"].further()
    task.save(path)
    assert cd.load_task(path, toy, examples=4).further() == task.further()


@pytest.mark.parametrize("draws", [True, False])
def test_means_of_a_part_are_those_of_the_whole(toy: cd.Model, draws: bool) -> None:
    """A part's replacements are the whole task's at its rows, whether or not the task can draw further prompts."""
    task = cd.load_task("ioi", toy, examples=24)
    assert task.held_out is not None
    if not draws:
        task = replace(without_drawing(task), held_out=without_drawing(task.held_out))
    part = task.by("order")["ABBA"]
    for whole, some in ((task, part), (task.held_out, part.held_out)):
        assert whole is not None and some is not None
        chosen = [i for i, each in enumerate(whole.examples) if each.variables["order"] == "ABBA"]
        values = rows_by_text(toy, whole)
        for text, row in rows_by_text(toy, some).items():
            torch.testing.assert_close(row, values[text], atol=1e-5, rtol=0)
        assert len(some) == len(chosen)


def without_drawing(task: cd.Task) -> cd.Task:
    """Only its rows of the length that most have: a mean needs others of that length."""
    ((length, _),) = Counter(len(each.clean) for each in task.examples).most_common(1)
    return replace(task, examples=tuple(e for e in task.examples if len(e.clean) == length), apart=None)


def rows_by_text(model: cd.Model, task: cd.Task) -> dict[str, torch.Tensor]:
    """text -> [sources, T, d_model]"""
    replacements = cd.replacements(model, task, ablation="mean")
    return {
        task[row].text: replacements.rows(batch)[:, i]
        for batch in task.batches()
        for i, row in enumerate(batch.rows.tolist())
    }


def test_what_has_no_parts(toy: cd.Model) -> None:
    with pytest.raises(cd.CircuitDiscoveryError, match="no variable 'colour'"):
        cd.load_task("ioi", toy, examples=2).by("colour")
    with pytest.raises(cd.CircuitDiscoveryError, match="row 0: it is not known what the prompt is made of"):
        random_prompts(101, 4, 5).task.by()


# ------------------------------------------------------------------ apart from earlier circuits


def test_no_repulsion_changes_no_bit(gpt2: Tiny) -> None:
    task, first = gpt2.prompts.task, cd.random(gpt2.model, gpt2.prompts.task).top(30)
    plain = edge_pruning(gpt2.model, task, edges=30, steps=4)
    same = edge_pruning(gpt2.model, task, edges=30, steps=4, apart_from=first, repulsion=0.0)
    assert (plain.values == same.values).all() and "apart_from" not in plain.info["options"]


def test_a_circuit_that_costs_any_price_is_avoided(gpt2: Tiny) -> None:
    """The best edges are given as two earlier circuits, at a price above any loss: none of them is among the best."""
    task, graph = gpt2.prompts.task, gpt2.model.graph
    best = edge_pruning(gpt2.model, task, edges=30, steps=60).top(30).edges
    earlier = [cd.Circuit.from_edges(graph, best[part::2]) for part in (0, 1)]
    second = edge_pruning(gpt2.model, task, edges=30, steps=60, apart_from=earlier, repulsion=1e4)
    assert not set(second.top(30).edges) & set(best)


def test_it_is_further_away_than_another_seed(gpt2: Tiny) -> None:
    task = random_prompts(101, 8, 5, seed=6).task

    def search(**how: Any) -> cd.Circuit:
        return edge_pruning(gpt2.model, task, edges=40, steps=60, **how).top(40)

    first, again = search(seed=0), search(seed=1)
    second = search(seed=1, apart_from=first, repulsion=2.0)
    shared = [cd.compare(each, first).edges.jaccard for each in (second, again)]
    assert None not in shared and shared[0] < 0.7 * shared[1]  # type: ignore[operator]


def test_apart_from_what(gpt2: Tiny, toy: cd.Model, tmp_path: Path) -> None:
    task = gpt2.prompts.task
    first = cd.random(gpt2.model, task).top(10)
    state = tmp_path / "state"
    edge_pruning(gpt2.model, task, edges=5, steps=2, apart_from=first, state=state)
    with pytest.raises(cd.CircuitDiscoveryError, match="another"):
        edge_pruning(gpt2.model, task, edges=5, steps=2, state=state)
    merged = cd.Circuit.full(replace(gpt2.model.graph, split_qkv=False))
    for wrong, message in ((cd.Circuit.full(toy.graph), "circuit of"), (merged, "different graphs")):
        with pytest.raises(cd.CircuitDiscoveryError, match=message):
            edge_pruning(gpt2.model, task, edges=5, steps=1, apart_from=wrong)
    for none in (None, []):
        with pytest.raises(cd.CircuitDiscoveryError, match="repulsion does nothing without apart_from"):
            edge_pruning(gpt2.model, task, edges=5, steps=1, repulsion=7.0, apart_from=none)
    with pytest.raises(cd.CircuitDiscoveryError, match="repulsion must be at least 0, not -1"):
        edge_pruning(gpt2.model, task, edges=5, steps=1, apart_from=first, repulsion=-1)


def test_a_run_apart_from_an_earlier_one(
    toy: cd.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cd.Circuit.full(toy.graph).save("first.json")
    common = ["discover", "toy", "ioi", "--examples", "4", "--measure", "none", "--out", "run"]
    asked = [
        *common,
        "--method",
        "edge-pruning",
        "--edges",
        "20",
        "--steps",
        "2",
        "--apart-from",
        "first.json",
    ]
    for more in ([], ["--resume"]):
        result = CliRunner().invoke(cli, [*asked, *more])
        assert result.exit_code == 0, result.exception
    assert cd.load_circuit("run").info["options"]["repulsion"] == 0.5
    page = Path("run/report.html").read_text("utf-8")
    assert "--apart-from ./first.json" in page and str(tmp_path) not in page
    record = json.loads(Path("run/run.json").read_text())
    del record["summary"]  # as if the process had been killed before it noted what it found
    Path("run/run.json").write_text(json.dumps(record | {"done": {}}))
    result = CliRunner().invoke(cli, [*asked, "--resume"])
    assert result.exit_code == 0, result.exception
    refused = CliRunner().invoke(cli, [*common[:-2], "--method", "eap", "--apart-from", "first.json"])
    assert "--apart-from is not for eap" in str(refused.exception)
