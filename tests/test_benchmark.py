"""The benchmark measures what it says, takes a user's own method, and goes on where it was stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import Forked

import circuitdiscovery as cd
from circuitdiscovery.benchmark.measure import Measured, measure
from circuitdiscovery.benchmark.methods import resolve
from circuitdiscovery.benchmark.options import BenchmarkOptions
from circuitdiscovery.benchmark.problems.problem import Problem
from circuitdiscovery.benchmark.problems.programs import RECIPES
from circuitdiscovery.benchmark.report import markdown, picture
from circuitdiscovery.benchmark.run import run
from circuitdiscovery.cli import main as cli
from circuitdiscovery.registry import opened


@pytest.fixture(scope="module")
def ioi() -> Problem:
    return RECIPES["ioi"].problem("ioi", examples=16)


def measured(problem: Problem, found: object) -> Measured:
    return measure(problem.name, problem.model, problem.task, problem.truth, "given", lambda *_: found)


def with_scores(problem: Problem, values: np.ndarray) -> cd.Scores:
    return cd.Scores(problem.model.graph, values)


def test_the_truth_scores_perfectly(ioi: Problem) -> None:
    for found in (
        with_scores(ioi, ioi.truth.mask.astype(float)),
        ioi.truth,
        [ioi.truth, cd.Circuit.empty(ioi.model.graph)],
    ):
        result = measured(ioi, found)
        assert set(result.areas.values()) == {1.0}
        (at,) = result.at
        assert at.overlap is not None
        assert (at.asked, at.edges, at.overlap.jaccard, result.missed) == (7, 7, 1.0, [])
        assert at.normalized == pytest.approx(1, abs=1e-5) and at.kl == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(("truth", "levels"), [("nodes", ["nodes"]), ("full", ["edges", "nodes"])])
def test_where_all_are_true_there_is_no_rate(
    ioi: Problem, truth: str, levels: list[str], tmp_path: Path
) -> None:
    """As `compare` has none: nothing is there to be wrongly found."""
    graph = ioi.model.graph
    whole = cd.Circuit.full(graph)
    given = whole if truth == "full" else cd.Circuit.from_edges(graph, whole.edges[::2])
    assert set(given.nodes) >= set(graph.inner)
    scores = cd.eap(ioi.model, ioi.task)
    result = measured(replace(ioi, truth=given), scores)
    beside = cd.compare(scores.top(10), given, scores=scores)
    for level, name in (("edges", "auc"), ("nodes", "auc_nodes")):
        for rule in ("pessimistic", "trapezoid"):
            assert (result.areas[f"{level}_{rule}"] is None) == (level in levels)
            assert result.areas[f"{level}_{rule}"] == getattr(beside, f"{name}_{rule}")
    assert "nan" not in markdown([result], {}, "") and "nan" not in json.dumps(result.to_dict()).lower()
    picture([result], tmp_path / "figure.png")


def test_rates_by_hand(ioi: Problem) -> None:
    """Four of seven true edges and 20 false ones: one ROC point, and the areas of its two rules."""
    graph, truth = ioi.model.graph, ioi.truth
    false = list((cd.Circuit.full(graph) - truth).edges[:20])
    result = measured(ioi, cd.Circuit.from_edges(graph, [*truth.edges[:4], *false]))
    fpr, tpr = 20 / (len(graph) - 7), 4 / 7
    assert result.roc == [[pytest.approx(fpr), pytest.approx(tpr)]]
    assert result.areas["edges_pessimistic"] == pytest.approx((1 - fpr) * tpr)
    assert result.areas["edges_trapezoid"] == pytest.approx(fpr * tpr / 2 + (1 - fpr) * (tpr + 1) / 2)
    assert set(result.missed) == set(truth.edges)  # no circuit of at most seven edges was given
    assert result.at[0].edges == 0 and result.at[0].normalized == pytest.approx(0, abs=1e-5)


def test_the_ranking_of_scikit_learn(ioi: Problem) -> None:
    """The trapezoid area is the probability that a true edge outranks a false one, ties counting half."""
    values = np.random.default_rng(0).normal(size=ioi.truth.mask.shape).round(1) + 0.5 * ioi.truth.mask
    result = measured(ioi, with_scores(ioi, values))
    kept = np.abs(values[ioi.model.graph.allowed])
    true = ioi.truth.mask[ioi.model.graph.allowed]
    pairs = np.sign(kept[true][:, None] - kept[~true][None])
    assert result.areas["edges_trapezoid"] == pytest.approx(((pairs + 1) / 2).mean())


def test_the_curve_is_the_public_one(ioi: Problem) -> None:
    scores = cd.eap_ig(ioi.model, ioi.task)
    result, curve = measured(ioi, scores), cd.curve(ioi.model, ioi.task, scores)
    for name in ("cpr", "cmd", "area", "distance"):
        assert getattr(result, name) == pytest.approx(float(getattr(curve, name)), abs=1e-6)


def test_circuits_of_some_sizes_have_no_area(ioi: Problem) -> None:
    """A line from the last of them to the full model says nothing of a ranking's curve over the same edges."""
    scores = cd.eap(ioi.model, ioi.task)
    for found in (scores.top(38), [scores.top(n) for n in (7, 15, 38, 76)]):
        result = measured(ioi, found)
        assert (result.area, result.distance, result.cpr, result.cmd) == (None, None, None, None)
        assert len(result.curve) > 2 and result.at[0].normalized is not None
        known = json.loads(json.dumps(result.to_dict()))
        assert (known["area"], known["distance"]) == (None, None)
        assert Measured.from_dict({**known, "area": 0.76, "distance": 0.24}).area is None  # of an older run
        (row,) = [line for line in markdown([result], {}, "").splitlines() if line.startswith("| given |")]
        assert row.split(" | ")[-3:-1] == ["-", "-"]


def test_what_was_written_before_mib_s_rule_is_read_by_its_own_names(ioi: Problem) -> None:
    now = measured(ioi, cd.eap(ioi.model, ioi.task)).to_dict()
    former = {name: value for name, value in now.items() if name not in ("area", "distance")} | {
        "cpr": 0.8,
        "cmd": 0.2,
    }
    read = Measured.from_dict(former)
    assert (read.area, read.distance, read.cpr, read.cmd) == (0.8, 0.2, None, None)


def test_results_are_json_and_come_back(ioi: Problem) -> None:
    result = measured(ioi, cd.eap(ioi.model, ioi.task))
    assert Measured.from_dict(json.loads(json.dumps(result.to_dict()))).to_dict() == result.to_dict()


def test_a_method_that_needs_sizes_is_told_them(ioi: Problem) -> None:
    """The number of true edges, and 2, 5 and 10% of all 761."""
    told: list[int] = []

    def sized(model: cd.Model, task: cd.Task, sizes: list[int]) -> list[cd.Circuit]:
        told.extend(sizes)
        return [cd.eap(model, task).top(n) for n in sizes]

    result = measure("ioi", ioi.model, ioi.task, ioi.truth, "sized", sized)
    assert told == [7, 15, 38, 76] and len(result.roc) == 4


def test_a_ranking_of_all_edges_is_learnt_once() -> None:
    """By the search that large models have by default, though it takes a number of edges too; an OR gate, which
    it sees, hides its inputs from whatever ablates one of them."""
    problem = RECIPES["or"].problem("or", examples=16)
    name, search = resolve("matryoshka")
    found = search(problem.model, problem.task)
    assert name in BenchmarkOptions("planted").chosen and isinstance(found, cd.Scores)
    result = measure("or", problem.model, problem.task, problem.truth, name, search)
    assert result.areas["edges_pessimistic"] == 1 and result.area is not None
    assert result.at[0].overlap is not None and result.at[0].overlap.jaccard == 1


def test_a_method_that_gives_something_else(ioi: Problem) -> None:
    with pytest.raises(
        cd.CircuitDiscoveryError, match="must give Scores, a Circuit or a sequence of circuits, not str"
    ):
        measured(ioi, "edges")
    with pytest.raises(cd.CircuitDiscoveryError, match="another graph"):
        measured(ioi, cd.Circuit.full(cd.Graph(2, 4, 4)))


def test_kinds_of_problems_stand_apart_only_where_there_are_several(ioi: Problem) -> None:
    """A published circuit is not an easy problem."""
    result = measured(ioi, cd.eap(ioi.model, ioi.task))
    assert "| easy |" not in markdown([replace(result, problem="gpt2/ioi")], {}, "")
    text = markdown([result, replace(result, problem="ioi-hard")], {}, "")
    assert "| edge AUROC | easy | hard | node AUROC |" in text and "trained" not in text


def test_failures_are_told_with_their_reason() -> None:
    problem = RECIPES["or"].problem("or", examples=16)
    result = measure(
        "or", problem.model, problem.task, problem.truth, "exact", lambda model, task: cd.exact(model, task)
    )
    area = result.areas["edges_pessimistic"]
    assert area is not None and area < 0.5  # only the edge after the gate shows
    text = markdown([result], {"or": problem.why}, "heading")
    assert "- exact on or, " in text and "input->a0.h1<v>" in text and "an OR" in text


# ------------------------------------------------------------------ runs

OWN = """
import circuitdiscovery as cd

def by_size(model, task):
    calls.append(task.name)
    return cd.eap(model, task)

def mine(model, task, sizes):
    calls.append(sizes)
    return [cd.eap(model, task).top(n) for n in sizes]

calls = []
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "mymethod.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return "mymethod:by_size"


def test_a_method_of_ones_own_is_one_more_row_and_a_stopped_run_goes_on(own: str, tmp_path: Path) -> None:
    options = BenchmarkOptions("toy", (own, "random"), quick=True)
    folder = tmp_path / "out"

    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        assert total == 4
        if done == 3:
            raise Stop

    with pytest.raises(Stop):
        run(options, folder, ["circuitdiscovery"], stop)
    assert not (folder / "benchmark.md").exists()
    first = {path.name: path.read_bytes() for path in (folder / "cells").iterdir()}
    assert len(first) == 3
    run(options, folder, ["circuitdiscovery"], lambda *_: None)
    assert first.items() <= {path.name: path.read_bytes() for path in (folder / "cells").iterdir()}.items()
    calls = sys.modules["mymethod"].calls  # type: ignore[attr-defined]
    assert sorted(calls) == ["greater_than", "ioi"]  # each once, though there were two runs
    table = (folder / "benchmark.md").read_text()
    assert "mymethod:by_size" in table and "greater_than" in table
    data = json.loads((folder / "benchmark.json").read_text())
    assert {result["method"] for result in data["results"]} == {own, "random"}
    assert (folder / "benchmark.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(cd.CircuitDiscoveryError, match="seed 0, not 1"):
        run(replace(options, seed=1), folder, [], lambda *_: None)


def test_a_method_that_is_none(own: str) -> None:
    for name, message in (
        ("eapig", "did you mean"),
        ("nowhere:f", "No module named 'nowhere'"),
        ("mymethod:g", "no attribute 'g'"),
    ):
        with pytest.raises(cd.CircuitDiscoveryError, match=message):
            resolve(name)
    with pytest.raises(cd.CircuitDiscoveryError, match="is a list, not a function"):
        resolve("mymethod:calls")


# tiny models gain nothing from more threads
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """(exit status, standard output, standard error) of `circuitdiscovery
    benchmark` in this process, in the test's folder.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # this process keeps its own

    def command(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main(["benchmark", *arguments])
        out, err = capfd.readouterr()
        return int(end.value.code or 0), str(out), str(err)

    return command


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["planed"], "did you mean 'planted'"),
        (["planted", "--method", "eapig"], "did you mean 'eap_ig'"),
        (["planted", "--model", "toy"], "the suite planted has models of its own"),
        (["toy", "--out", "full"], "is not empty"),
        (["ioi", "--model", "toy"], "this is a circuit of"),
    ],
)
def test_wrong_arguments_are_one_line(
    arguments: list[str], message: str, command: Command, tmp_path: Path
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").touch()
    assert message in one_line(*command(*arguments))
    assert not list((tmp_path / "runs").glob("*"))  # no folder is left of what cannot be


def test_weights_that_are_not_there_are_one_line(tmp_path: Path) -> None:
    """In a process of its own: where the hub's files are kept is read once."""
    program = [sys.executable, "-m", "circuitdiscovery", "benchmark", "ioi"]
    environment = ENVIRONMENT | {"HF_HOME": str(tmp_path / "empty")}
    result = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "GPT-2 small's, and its weights are needed" in one_line(
        result.returncode, result.stdout, result.stderr
    )
    assert not list((tmp_path / "runs").glob("*"))


def one_line(status: int, out: str, err: str) -> str:
    """What a refused call says."""
    assert (status, out) == (2, "")
    # said after two seconds
    (told,) = (line for line in err.splitlines() if not line.endswith(": under way"))
    return told


def test_a_method_with_sizes_runs_from_the_command(own: str, command: Command) -> None:
    """2, 5 and 10% of 479 edges, for each of two tasks. `discover`, which has no sizes, refuses it."""
    name = own.replace("by_size", "mine")
    status, out, err = command("toy", "--quick", "--method", name, "--json")
    assert status == 0, err
    assert [row["method"] for row in json.loads(out)["results"]] == [name] * 2
    assert sys.modules["mymethod"].calls == [[9, 23, 47]] * 2  # type: ignore[attr-defined]
    told = r"'mymethod:mine' is not a function of \(model, task\): missing a required argument: 'sizes'"
    with pytest.raises(cd.CircuitDiscoveryError, match=told):
        opened("method", name)


@pytest.mark.slow
def test_a_killed_benchmark_resumes(
    command: Command, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """SIGKILL in the middle, then --resume: what was measured stays as it is, byte for byte."""
    methods = ("random", "eap", "eap_ig")
    arguments = ["toy", "--quick", *(word for name in methods for word in ("--method", name)), "--out", "out"]
    said = tmp_path_factory.mktemp("said")
    running, cells = (
        Forked(lambda: cli.main(["benchmark", *arguments]), tmp_path, said),
        tmp_path / "out" / "cells",
    )
    while not list(cells.glob("*.json")):
        time.sleep(0.01)
    os.kill(running.pid, signal.SIGKILL)
    assert running.ended().status == -signal.SIGKILL
    before = {path.name: path.read_bytes() for path in cells.glob("*.json")}
    assert 0 < len(before) < 6
    status, out, err = command(*arguments, "--resume", "--json")
    assert status == 0, err
    assert len(json.loads(out)["results"]) == 6
    assert all((cells / name).read_bytes() == data for name, data in before.items())


@pytest.mark.slow
def test_published_circuits_of_a_model_of_that_shape(command: Command, tmp_path: Path, shared: Path) -> None:
    """Random weights of GPT-2 small's shape with its tokenizer: every row
    is there, and no method recovers anything.
    """
    import shutil

    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path / "gpt2"
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(n_embd=96)).save_pretrained(folder)
    for file in (shared / "models" / "gpt2-tokenizer").iterdir():
        shutil.copy(file, folder)
    status, out, err = command(
        "ioi", "--model", str(folder), "--quick", "--method", "eap", "--method", "random", "--json"
    )
    assert status == 0, err
    rows = json.loads(out)["results"]
    assert [row["method"] for row in rows] == ["eap", "random"]
    for row in rows:
        assert (row["problem"], row["truth"], row["edges_total"]) == ("gpt2/ioi", 963, 32491)
        assert 0.3 < row["areas"]["edges_trapezoid"] < 0.75
