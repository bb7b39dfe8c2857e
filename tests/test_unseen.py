"""What a circuit is measured on is new to it: no prompt that it was searched on is among those held out, whatever
the numbers, seeds, tables and circuits; and tables with bad rows go through every command.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import circuitdiscovery as cd
from circuitdiscovery.cli.arguments import TASK
from circuitdiscovery.cli.commands import cli
from circuitdiscovery.cli.files import EVALUATION_FIELDS, evaluation_options
from circuitdiscovery.measure.evaluator import Evaluator

HEAD = "clean,corrupted,correct,incorrect\n"
PAIRS = [(word, place) for word in ("keys", "dogs", "cats") for place in ("on the cabinet", "near the car")]
ROWS = [f"The {word} {place},The {word[:-1]} {place}, are, is\n" for word, place in PAIRS]
BAD = "The keys on the cabinet,The key on the cabinet, are is, is\n"  # an answer of two words
SHORT = "The keys on the cabinet,\n"  # fewer cells than the header

FEW = """
version = 1
description = "A counterfactual that fewer prompts have"
templates = ["Then, {first} and {second} went to the {place}. {first} gave a ring to"]
correct = " {second}"
incorrect = " {first}"
counterfactual = "other"

multi_token = ["place"]

[slots]
first = "name"
second = "name"
place = "place"

[counterfactuals.other]
redraw = ["second"]
[counterfactuals.small]
redraw = ["place"]

[words]
name = ["Mary", "John", "Tom", "Anna", "James", "Kate"]
place = ["store", "garden", "school and the garden", "office"]
"""

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command line in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(cli, [str(each) for each in arguments])


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """The clean prompts of each measurement, as it takes place."""
    seen, build = list[set[str]](), Evaluator.build

    def spy(setup: Any, **how: Any) -> Evaluator:
        seen.append({each.text for each in setup.task.examples})
        return build(setup, **how)

    monkeypatch.setattr(Evaluator, "build", spy)
    return seen


def table(path: str, rows: list[str]) -> str:
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_text(HEAD + "".join(rows))
    return path


def searched(run: Run, task: str, out: str, *more: Any) -> str:
    """The folder of a run that was not measured."""
    method = () if "--method" in more else ("--method", "eap")
    done = run("discover", "toy", task, *method, "--edges", 40, "--measure", "none", "--out", out, *more)
    assert done.exit_code == 0, done.exception
    return out


def texts(model: cd.Model, task: str, **how: Any) -> set[str]:
    return {each.text for each in cd.load_task(task, model, **how)}


# ------------------------------------------------------------------ one circuit


@pytest.mark.parametrize("command", ["evaluate", "transfer"])
@pytest.mark.parametrize(
    ("task", "search", "measure", "count"),
    [
        ("ioi", {"examples": 8}, {"examples": 4}, 4),  # fewer than were searched on
        ("ioi", {"examples": 8}, {"examples": 20}, 20),
        ("ioi", {"examples": 8}, {}, 8),
        ("gendered_pronoun", {}, {"seed": 1}, None),  # other prompts, some of them the same
        ("gendered_pronoun", {}, {"seed": 1, "examples": 9}, 9),
        ("ok.csv", {}, {"seed": 3}, None),
    ],
)
def test_it_is_measured_on_new_prompts(
    run: Run,
    measured: list[set[str]],
    toy: cd.Model,
    command: str,
    task: str,
    search: Any,
    measure: Any,
    count: Any,
) -> None:
    table("ok.csv", ROWS)
    asked = [word for name, value in search.items() for word in (f"--{name}", value)]
    folder = searched(run, task, "run", *asked)
    more = [word for name, value in measure.items() for word in (f"--{name}", value)]
    more += ["--measure", "quick"] if command == "evaluate" else []
    done = run(command, folder, *more, "--json")
    assert done.exit_code == 0, done.exception
    new = measured[-1]
    assert new and not new & texts(toy, task, **search)
    assert count is None or len(new) == count
    if count is None:  # what the same seed holds out, but for what was searched on
        held = cd.load_task(task, toy, **measure).held_out
        assert held is not None
        expected = {each.text for each in held} - texts(toy, task, **search)
        assert new == expected
        gone = len(held) - len(expected)
        assert gone and f"{gone} of {len(held)} held-out prompts" in done.stderr


def test_prompts_that_a_search_draws_beside_its_own_are_not_new(
    run: Run, measured: list[set[str]], toy: cd.Model
) -> None:
    """Matryoshka's: they come after the held-out ones of its own number."""
    how = ("--method", "matryoshka", "--steps", 2, "--drawn", 4)
    folder = searched(run, "ioi", "run", "--examples", 2, *how)
    stream = [each.text for each in cd.load_task("ioi", toy, examples=12)]
    assert run("evaluate", folder, "--measure", "quick", "--examples", 6).exit_code == 0
    assert measured[-1] == set(stream[8:12])
    refused = run("evaluate", folder, "--measure", "quick", "--examples", 4)  # 4 to 7, all of them drawn
    assert isinstance(refused.exception, cd.CircuitDiscoveryError)
    assert "was searched on" in str(refused.exception) and "--seed" in str(refused.exception)


def test_checkpoints_and_explanations_are_on_new_prompts_too(
    run: Run, toy: cd.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = dict[str, Any]()
    monkeypatch.setattr(cd, "explain", lambda model, task, *_, **__: given.update(explain=task) or {})
    monkeypatch.setattr(
        cd.universality,
        "checkpoints",
        lambda sources, circuit, task, **_: given.update(checkpoints=task) or {},
    )
    folder = searched(run, "ioi", "run", "--examples", 8)
    run("explain", folder, "--examples", 4)
    run("checkpoints", folder, "7=toy", "--examples", 4)
    for task in (given["explain"], given["checkpoints"]):
        assert len(task.held_out) == 4
        assert not {each.text for each in task.held_out} & texts(toy, "ioi", examples=8)


def test_it_says_where_the_searchs_prompts_cannot_be_known(run: Run) -> None:
    """A table that has changed since gives other prompts."""
    folder = searched(run, table("ok.csv", ROWS), "run")
    table("ok.csv", ROWS[1:])
    done = run("evaluate", folder, "--measure", "quick")
    assert done.exit_code == 0 and "not known" in done.stderr
    Path("ok.csv").unlink()
    done = run("transfer", folder, "--task", table("other.csv", ROWS[2:]), "--examples", 2)
    assert done.exit_code == 0 and "not known" in done.stderr and "ok.csv" in done.stderr


# ------------------------------------------------------------------ several circuits


def test_a_task_is_drawn_as_its_search_drew_it_whether_or_not_it_is_named(run: Run) -> None:
    path = table("ok.csv", ROWS)
    folder = searched(run, path, "s3", "--seed", 3)
    Path("moved.json").write_bytes(Path(folder, "circuit.json").read_bytes())
    shown = [
        json.loads(run("transfer", *given, "--json").stdout)["faithfulness"]
        for given in ((folder,), (folder, "--task", path), ("moved.json", "--task", path))
    ]
    assert shown[0] == shown[1] == shown[2]


def test_no_circuit_is_measured_on_what_it_or_another_was_searched_on(
    run: Run, measured: list[set[str]], toy: cd.Model
) -> None:
    """In whatever order they are given."""
    path = table("ok.csv", ROWS)
    folders = [searched(run, path, f"s{seed}", "--seed", seed) for seed in (0, 3)]
    seen = texts(toy, path, seed=0) | texts(toy, path, seed=3)
    shown = [json.loads(run("transfer", *some, "--json").stdout) for some in (folders, folders[::-1])]
    assert measured[0] == measured[1] and len(measured[0]) == 6 - len(seen) and not measured[0] & seen
    assert shown[0]["faithfulness"] == shown[1]["faithfulness"][::-1]
    folders = [searched(run, "ioi", f"n{many}", "--examples", many) for many in (8, 20)]
    assert run("transfer", *folders).exit_code == 0
    assert len(measured[-1]) == 20 and not measured[-1] & texts(toy, "ioi", examples=20)


def test_tables_of_one_file_name_are_two_tasks(run: Run, measured: list[set[str]]) -> None:
    paths = [table("A/ok.csv", ROWS[:4]), table("B/ok.csv", ROWS[2:])]
    folders = [searched(run, path, f"run{i}") for i, path in enumerate(paths)]
    found = json.loads(run("transfer", *folders, "--json").stdout)
    assert found["tasks"] == [str(Path(path).resolve()) for path in paths]
    assert measured[0] != measured[1]
    once, twice = (
        json.loads(run("transfer", folders[0], *["--task", paths[0]] * times, "--json").stdout)
        for times in (1, 2)
    )
    assert once == twice


def test_counterfactuals_of_one_task_are_columns(run: Run) -> None:
    folders = [searched(run, "ioi", "default", "--examples", 4)]
    folders += [searched(run, "ioi", "flip", "--examples", 4, "--counterfactual", "flip")]
    assert json.loads(run("transfer", *folders, "--json").stdout)["tasks"] == ["ioi abc", "ioi flip"]


def test_a_circuit_that_does_not_name_its_counterfactual_has_the_tasks_own(run: Run) -> None:
    folder = searched(run, "ioi", "a1", "--examples", 4)
    circuit = json.loads(Path(folder, "circuit.json").read_text())
    circuit["counterfactual"] = None
    Path("bare.json").write_text(json.dumps(circuit))
    assert json.loads(run("transfer", "bare.json", folder, "--json").stdout)["tasks"] == ["ioi"]


# ------------------------------------------------------------------ which task it was


@pytest.mark.parametrize("command", ["evaluate", "transfer"])
def test_a_saved_task_has_the_counterfactual_that_it_was_drawn_with(
    run: Run, measured: list[set[str]], toy: cd.Model, command: str
) -> None:
    cd.load_task("ioi", toy, examples=8).save("plain.json")
    folder = searched(run, "plain.json", "run")
    done = run(command, folder, "--examples", 4, *(["--measure", "quick"] if command == "evaluate" else []))
    assert done.exit_code == 0 and "not known" not in done.stderr, done.exception
    assert len(measured[-1]) == 4 and not measured[-1] & texts(toy, "plain.json")


def test_a_task_that_moved_is_known_by_its_prompts(run: Run, measured: list[set[str]], toy: cd.Model) -> None:
    """Whatever its file is called now, if it is asked for; also of a circuit that was found in Python."""
    folder = searched(run, table("ok.csv", ROWS), "run")
    seen = texts(toy, "ok.csv")
    Path("moved").mkdir()
    path = Path("ok.csv").rename("moved/other.csv")
    task = replace(cd.load_task("ioi", toy, examples=8), name="mine")
    task.save("saved.json")
    cd.eap(toy, task).best(40).save("py.json")
    asked = [(folder, path, seen, 3), ("py.json", "saved.json", {each.text for each in task}, 8)]
    for circuit, file, known, count in asked:
        done = run("evaluate", circuit, "--task", file, "--seed", 1, "--measure", "quick")
        assert done.exit_code == 0 and "not known" not in done.stderr, (done.exception, done.stderr)
        assert 0 < len(measured[-1]) <= count and not measured[-1] & known


def test_another_counterfactual_may_have_fewer_prompts(
    run: Run, measured: list[set[str]], toy: cd.Model
) -> None:
    """As many as the search had cannot be drawn there; all that there are can. Where they are all there,
    none is told to be left out."""
    Path("few.toml").write_text(FEW)
    most = len(cd.load_task("few.toml", toy, counterfactual="small"))
    folder = searched(run, "few.toml", "run", "--examples", most + 1)
    done = run("evaluate", folder, "--counterfactual", "small", "--examples", 6, "--measure", "quick")
    assert done.exit_code == 0, done.exception
    assert len(measured[-1]) == 6 and not measured[-1] & texts(toy, "few.toml", examples=most + 1)
    done = run("evaluate", folder, "--examples", 6, "--seed", 2, "--measure", "quick")
    assert done.exit_code == 0 and len(measured[-1]) == 6 and "left out" not in done.stderr


def test_a_table_without_other_prompts_says_what_helps(run: Run) -> None:
    path = table("ok.csv", ROWS[:3])
    folders = [searched(run, path, f"s{seed}", "--seed", seed) for seed in range(4)]
    refused = run("transfer", *folders)
    assert isinstance(refused.exception, cd.CircuitDiscoveryError)
    assert "give fewer circuits or another --task" in str(refused.exception)


def test_what_another_tool_wrote_is_no_traceback(run: Run) -> None:
    folder = searched(run, "ioi", "run", "--examples", 4)
    circuit = json.loads(Path(folder, "circuit.json").read_text())
    circuit["options"]["drawn"] = "many"
    Path("other.json").write_text(json.dumps(circuit))
    done = run("evaluate", "other.json", "--measure", "quick")
    assert done.exit_code == 0 and "options.drawn" in done.stderr, done.exception


def test_a_home_folder_is_found_wherever_a_path_is_taken(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the shell has not replaced ~; run.json is read beside the circuit, too."""
    monkeypatch.setenv("HOME", str(tmp_path))
    table("ok.csv", ROWS)
    folder = searched(run, "~/ok.csv", "home", "--metric", "prob-diff")
    more = ("--measure", "quick", "--json")
    for given in (("~/home",), ("~/home/circuit.json", "--task=~/ok.csv")):
        done = run("evaluate", *given, *more)
        assert done.exit_code == 0, done.exception
        assert json.loads(done.stdout)["metric"] == "prob_diff"
        assert done.stdout == run("evaluate", folder, *more).stdout
    for command in (
        "transfer ~/home",
        "compare ~/home ~/home",
        "draw ~/home -o home.dot",
        "universal toy toy --task ok.csv --circuit ~/home --circuit ~/home",
    ):
        done = run(*command.split())
        assert done.exit_code == 0, (command, done.exception)


# ------------------------------------------------------------------ bad rows


def test_every_command_that_takes_a_task_skips_bad_rows() -> None:
    def leaves(command: Any) -> list[Any]:
        below = getattr(command, "commands", None)
        return [leaf for each in below.values() for leaf in leaves(each)] if below else [command]

    taking = [each for each in leaves(cli) if any(param.type is TASK for param in each.params)]
    assert len(taking) >= 15
    lacking = [each.name for each in taking if "skip_bad" not in {param.name for param in each.params}]
    assert not lacking


@pytest.mark.parametrize(
    "arguments",
    [
        "evaluate run --measure quick",
        "evaluate other --task bad.csv --examples 2 --measure quick --skip-bad",
        "transfer run",
        "transfer other --task bad.csv --skip-bad",
        "transfer run --task bad.csv",
        "tasks bad.csv --skip-bad",
        "plan toy bad.csv --skip-bad",
        "neurons toy bad.csv --skip-bad --top 2",
        "trace toy bad.csv --skip-bad",
        "lens toy bad.csv --skip-bad",
        "universal toy toy --task bad.csv --edges 30 --skip-bad",
        "universal toy toy --task bad.csv --of heads --skip-bad",
        "sae train toy --task bad.csv --at m2 --n 16 --k 2 --steps 2 --to sae --skip-bad",
    ],
)
def test_a_table_with_bad_rows_can_be_used(run: Run, arguments: str) -> None:
    table("bad.csv", [*ROWS, BAD, BAD, SHORT, SHORT])
    if "run" in arguments.split():
        searched(run, "bad.csv", "run", "--skip-bad")
    if "other" in arguments.split():
        searched(run, "ioi", "other", "--examples", 2)
    done = run(*arguments.split())
    assert done.exit_code == 0, done.exception
    if "--skip-bad" in arguments:
        refused = run(
            *(word for word in arguments.replace("--to sae", "--to new").split() if word != "--skip-bad")
        )
        assert "rows cannot be used (--skip-bad" in str(refused.exception), refused.exception


def test_where_and_in_what_batches_it_was_searched_is_of_no_account(run: Run) -> None:
    """A run that was made on another machine is measured, explained and shown here, as this one can."""
    found = run(
        "discover", "toy", "ioi", "--method", "eap", "--examples", 4, "--measure", "none", "--out", "far"
    )
    assert found.exit_code == 0, found.stderr
    record = json.loads(Path("far/run.json").read_text())
    record["options"] |= {"device": "cuda:99", "batch_size": 3}
    Path("far/run.json").write_text(json.dumps(record))
    circuit = cd.load_circuit("far")
    given = dict.fromkeys(EVALUATION_FIELDS)
    options = evaluation_options(circuit, "far", given)
    assert (options.device, options.batch_size, options.examples, options.method) == (None, None, 4, "acdc")
    options = evaluation_options(circuit, "far", given | {"device": "cpu", "batch_size": 2})
    assert (options.device, options.batch_size) == ("cpu", 2)
    commands = (
        ("evaluate", "far", "--measure", "quick"),
        ("explain", "far", "--effort", "quick", "--node", circuit.nodes[1]),
        ("transfer", "far"),
        ("checkpoints", "far", "1=toy"),
    )
    for command in commands:
        told = run(*command)
        assert told.exit_code == 0, (told.stderr, told.exception)
    Path("far/report.json").unlink()
    assert run("report", "far").exit_code == 0 and Path("far/report.json").exists()


def test_another_task_is_measured_by_its_own_metric(run: Run) -> None:
    """Whether a run's folder or its circuit alone is given; a task that is named again is the search's."""
    how = ("--method", "eap", "--counterfactual", "flip", "--measure", "none", "--examples", 2)
    for metric in ("", "prob_diff"):  # the task's own, and one that was asked for
        asked = ("--metric", metric) if metric else ()
        done = run("discover", "toy", "ioi", *how, *asked, "--out", metric or "own")
        assert done.exit_code == 0, done.stderr
        Path("alone.json").write_bytes(Path(metric or "own", "circuit.json").read_bytes())
        for path in (metric or "own", "alone.json"):
            circuit, given = cd.load_circuit(path), dict.fromkeys(EVALUATION_FIELDS)
            other = evaluation_options(circuit, path, given | {"task": "greater_than"})
            assert (other.task, other.metric, other.counterfactual) == ("greater_than", None, None)
            for same in ({}, {"task": "ioi"}):
                options = evaluation_options(circuit, path, given | same)
                assert options.counterfactual == "flip"
                assert options.metric in ([metric] if metric else [None, "logit_diff"])  # ioi's own
            options = evaluation_options(circuit, path, given | {"task": "greater_than", "metric": "nll"})
            assert options.metric == "nll"


def test_scores_beside_another_circuit_are_not_its_own(run: Run, toy: cd.Model) -> None:
    """What they rank best is not what it is made of: no area under a curve, no sum, is of it."""
    circuit = cd.load_circuit(searched(run, "ioi", "run", "--examples", 2))
    others = {
        "of another search": cd.eap(toy, cd.load_task("ioi", toy, examples=2, seed=5)).top(40),
        "without scores": cd.Circuit.from_edges(circuit.graph, circuit.edges),
        "of another graph": cd.Circuit.from_edges(cd.Graph(1, 1, n_kv_heads=1), ["input->logits"]),
    }
    a_part = circuit.without([circuit.nodes[1]])
    said = "run/scores.safetensors is of another circuit than run/circuit.json, and not used\n"
    for name, each in {"its own": circuit, "a part of it": a_part, **others}.items():
        each.save("run/circuit.json")
        with_scores = name not in others
        cd.Circuit.from_edges(each.graph, each.edges[:1]).save("one.json")
        compared = run("compare", "run", "one.json", "--json")
        assert compared.exit_code == 0, (name, compared.exception)
        assert (json.loads(compared.stdout)["auc_trapezoid"] is not None) == with_scores, name
        assert compared.stderr == ("" if with_scores else said), name
    others["without scores"].save("run/circuit.json")
    measured = run("evaluate", "run", "--measure", "quick")
    assert measured.exit_code == 0 and said in measured.stderr
    assert not re.search("^scores ", measured.stdout, re.MULTILINE)
