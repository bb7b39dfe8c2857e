"""A run that is stopped anywhere keeps what it found, says how to go on, and ends with
the bytes of one that was never stopped.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

import circuitdiscovery as cd
from circuitdiscovery.circuit import draw
from circuitdiscovery.cli import journal, run
from circuitdiscovery.cli import main as cli
from circuitdiscovery.cli.files import evaluation_options
from circuitdiscovery.cli.folders import open_folder
from circuitdiscovery.cli.journal import Journal
from circuitdiscovery.engine.setup import Setup
from circuitdiscovery.engine.state import State
from circuitdiscovery.explanation import explain as explanation
from circuitdiscovery.measure import criteria, evaluation
from circuitdiscovery.measure.evaluator import Evaluator
from circuitdiscovery.reporting import data, page
from circuitdiscovery.reporting.folder import fingerprint
from circuitdiscovery.reporting.options import Options
from circuitdiscovery.search import provenance

FOUND = {"circuit.json", "scores.safetensors", "run.json"}
MEASURED = FOUND | {"evaluation.json"}
CARDS = MEASURED | {"explanation.json"}
COMPARED = CARDS | {"report.json"}
DRAWN = COMPARED | {"graph.dot", "graph.svg"}
ALL = DRAWN | {"report.html"}
SMALL = Options("toy", "ioi", method="eap", edges=12, examples=3, measure="quick")
ARGUMENTS = (
    "discover",
    "toy",
    "ioi",
    "--method",
    "eap",
    "--edges",
    "12",
    "--examples",
    "3",
    "--measure",
    "quick",
)

# where a run is stopped: what is replaced by something that stops it, what it
# was doing then, and what is in the folder
STOPS: dict[str, tuple[Any, str, str, set[str]]] = {
    "before the search": (run, "search", "searching", {"run.json"}),
    "between the scores and the circuit": (cd.Circuit, "save", "searching", FOUND - {"circuit.json"}),
    "before it measures": (evaluation, "evaluate", "measuring", FOUND),
    "before it explains": (explanation, "explain", "explaining", MEASURED),
    "before the curve": (data, "_curve", "comparing with the model", CARDS),
    "before it draws": (draw, "draw", "drawing", COMPARED),
    "before the page": (page, "render", "drawing", DRAWN),
    "before the summary": (run._Run, "summarised", "drawing", ALL),
}
WORK = {  # and the file that it ends with
    (run, "search"): "scores.safetensors",
    (evaluation, "evaluate"): "evaluation.json",
    (explanation, "explain"): "explanation.json",
    (data, "_curve"): "report.json",
    (draw, "draw"): "graph.svg",
}


def remembered(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which is called once for the same circuit at the same effort."""
    known: dict[Any, Any] = {}

    def once(model: Any, task: Any, circuit: cd.Circuit, *given: Any, **options: Any) -> Any:
        key = (fingerprint(circuit), task.name, len(task), options.get("effort"))
        if key not in known:
            known[key] = function(model, task, circuit, *given, **options)
        return known[key]

    return once


WHOLE, PROMPTS = evaluation.evaluate, data._prompts  # which measure each time that they are called


@pytest.fixture(scope="module", autouse=True)
def _brief() -> Iterator[None]:
    """The model is loaded once, and each circuit is measured and explained once:
    these tests are about what becomes of it.
    """
    assert cd.evaluate and cd.explain  # as they are, before anything stands in for them
    with pytest.MonkeyPatch.context() as patch:
        for module, name in (
            (evaluation, "evaluate"),
            (explanation, "explain"),
            (data, "_searched"),
            (data, "_prompts"),
        ):
            patch.setattr(module, name, remembered(getattr(module, name)))
        patch.setattr(cd, "evaluate", evaluation.evaluate, raising=False)
        patch.setattr(criteria, "RANDOM_SETS", 1)
        patch.setattr(criteria, "GREEDY_NODES", 1)
        model = cd.load_model("toy")
        tasks = {3: cd.load_task("ioi", model, examples=3), 4: cd.load_task("ioi", model, examples=4)}
        patch.setattr(run, "load", lambda options: (model, tasks[options.examples]))
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped, to be looked at only."""
    folder = tmp_path_factory.mktemp("whole")
    run.discover(SMALL, folder, ["x"])
    return folder


def files(folder: Path) -> dict[str, bytes]:
    """Every file that must not differ between two runs."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "run.json"}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith("measured-")}


def stop(patch: pytest.MonkeyPatch, where: str, how: Callable[..., Any]) -> None:
    module, name, _, _ = STOPS[where]
    patch.setattr(module, name, how)
    if name in ("evaluate", "explain"):  # `cd.evaluate` and the like are looked up once
        monkeypatched = getattr(cd, name, None)
        if monkeypatched is not None:
            patch.setattr(cd, name, how, raising=False)


def counted(patch: pytest.MonkeyPatch) -> list[str]:
    """The names of the work that is done from now on, as it is done."""
    done: list[str] = []
    for module, name in WORK:
        function = getattr(module, name)

        def count(*given: Any, _function: Any = function, _name: str = name, **options: Any) -> Any:
            done.append(_name)
            return _function(*given, **options)

        patch.setattr(module, name, count)
        if hasattr(cd, name):
            patch.setattr(cd, name, count, raising=False)
    return done


def killed(folder: Path, where: str, number: int) -> tuple[int, str]:
    """(exit status, standard error) of a process of its own that a signal stops there."""
    log = folder.with_suffix(".log")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside threads that wait for work
        child = os.fork()
    if child == 0:
        with (
            pytest.MonkeyPatch.context() as patch,
            open(log, "w") as sys.stderr,
            open(os.devnull, "w") as sys.stdout,
        ):
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
            stop(patch, where, lambda *_, **__: (os.kill(os.getpid(), number), signal.pause()))
            try:
                cli.main([*ARGUMENTS, "--out", str(folder)])
            except SystemExit as end:
                sys.stderr.flush()
                os._exit(int(end.code or 0))
            finally:
                os._exit(99)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), log.read_text()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("where", STOPS)
def test_a_killed_run_goes_on_where_it_was(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """SIGKILL: nothing can be said, nothing can be tidied."""
    status, said = killed(tmp_path / "run", where, signal.SIGKILL)
    assert status == -signal.SIGKILL and "Traceback" not in said
    assert names(tmp_path / "run") == STOPS[where][3]
    done = counted(monkeypatch)
    run.discover(SMALL, tmp_path / "run", ["x"])
    assert files(tmp_path / "run") == files(whole)
    assert set(done) == {name for (_, name), file in WORK.items() if file not in STOPS[where][3]}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    ("where", "number"),
    [
        ("before the search", signal.SIGTERM),
        ("before it measures", signal.SIGINT),
        ("before it explains", signal.SIGTERM),
    ],
)
def test_an_interrupted_run_says_what_is_there_and_how_to_go_on(
    tmp_path: Path, whole: Path, where: str, number: signal.Signals
) -> None:
    folder = tmp_path / "run"
    status, said = killed(folder, where, number)
    _, _, doing, there = STOPS[where]
    assert status == 130 and "Traceback" not in said and names(folder) == there
    sentence, _, command = said.strip().splitlines()[-1].rpartition(": ")
    assert sentence.startswith(f"interrupted while {doing}; ")
    assert all((name in sentence) == (name in there) for name in ALL - {"run.json"})
    with pytest.raises(SystemExit, match="0"):
        cli.main(shlex.split(command)[1:])
    assert files(folder) == files(whole)


def test_a_measurement_goes_on_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = Options("toy", "ioi", method="eap", edges=11, examples=4, measure="quick")
    note, counts = evaluation.Evaluator._note, {"stopped": 0, "resumed": 0}

    def counting(how: str, most: int) -> Callable[..., None]:
        def noting(*given: Any) -> None:
            counts[how] += 1
            if counts[how] > most:
                raise KeyboardInterrupt
            note(*given)

        return noting

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) as stopped:
        patch.setattr(evaluation.Evaluator, "_note", counting("stopped", 9))
        run.discover(options, tmp_path, ["x"])
    assert stopped.value.__notes__[0].startswith(
        "while measuring; circuit.json and scores.safetensors are in "
    )
    assert names(tmp_path) == FOUND and (tmp_path / "measured-quick.state").exists()
    monkeypatch.setattr(explanation, "explain", refused)  # which has a evaluator of its own
    monkeypatch.setattr(data, "_searched", lambda *_: (None, {"full": 0.0, "empty": 0.0}))
    monkeypatch.setattr(evaluation.Evaluator, "_note", counting("resumed", 10_000))
    run.discover(options, tmp_path, ["x"])
    resumed, counts["resumed"] = counts["resumed"], 0
    model = cd.load_model("toy")
    circuit, scores = (
        cd.load_circuit(tmp_path / "circuit.json"),
        cd.Scores.load(tmp_path / "scores.safetensors"),
    )
    whole = WHOLE(model, cd.load_task("ioi", model, examples=4), circuit, scores=scores, effort="quick")
    assert resumed == counts["resumed"] - 9 + 1  # the run that KL is measured from is not kept
    assert json.loads((tmp_path / "evaluation.json").read_text()) == json.loads(json.dumps(whole.to_dict()))
    assert not list(tmp_path.glob("measured-*"))


def refused(*_: Any, **__: Any) -> None:
    raise cd.CircuitDiscoveryError("no cards")


@pytest.mark.parametrize("where", list(STOPS)[1:])
def test_a_failure_is_one_line_that_says_what_is_there(
    tmp_path: Path,
    whole: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    where: str,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError("no more")

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop(patch, where, fail)
        with pytest.raises(SystemExit, match="2"):
            cli.main([*ARGUMENTS, "--out", str(folder)])
    said = capsys.readouterr().err.strip().splitlines()[-1]
    _, _, doing, there = STOPS[where]
    assert f"MemoryError: no more (CIRCUITDISCOVERY_DEBUG=1 shows where); stopped while {doing}; " in said
    assert f" in {folder}; go on with: circuitdiscovery discover toy ioi " in said and said.endswith(
        "--resume"
    )
    assert names(folder) == there
    run.discover(SMALL, folder, ["x"])
    assert files(folder) == files(whole)


@pytest.mark.parametrize("file", sorted(ALL))
def test_a_full_disk_at_any_file_keeps_what_is_there(
    tmp_path: Path,
    whole: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    file: str,
) -> None:
    write = Path.write_bytes
    allowed = 1 if file == "run.json" else 0  # a run that cannot even begin leaves nothing; this one can

    def full(path: Path, data: bytes) -> int:
        nonlocal allowed
        if f".{file}." in path.name:
            allowed -= 1
            if allowed < 0:
                write(path, data[: len(data) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, data)

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(
            cd.CircuitDiscoveryError,
            match=re.escape(f"cannot write {folder / file}: No space left on device"),
        ):
            run.discover(SMALL, folder, ["x"]) if folder.mkdir() is None else None
    if file == "scores.safetensors":  # nothing was found that could be kept
        assert not any(folder.iterdir())
        return
    assert file == "run.json" or file not in names(folder)
    assert {"scores.safetensors", "run.json"} <= names(folder)
    done = counted(monkeypatch)
    run.discover(SMALL, folder, ["x"])
    assert files(folder) == files(whole) and "search" not in done


# --------------------------------------------------- whose files a folder holds


def stopped(folder: Path, where: str, options: Options = SMALL) -> Path:
    """The folder of a run that an error stopped."""

    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        stop(patch, where, fail)
        with pytest.raises(MemoryError):
            run.discover(options, folder, ["x"])
    return folder


def change(path: Path, edit: Callable[[Any], None]) -> None:
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda circuit: circuit["model"].update(digest="0" * 64), "weights 000000000000"),
        (lambda circuit: circuit.update(seed=5), "its seed is 5, not 0"),
        (lambda circuit: circuit.update(examples=9), "it is of 9 examples, not 3"),
        (lambda circuit: circuit.update(method="exact"), "its method is 'exact', not 'eap'"),
        (
            lambda circuit: circuit["options"].update(ablation="mean"),
            "its ablation is 'mean', not 'resample'",
        ),
        (lambda circuit: circuit["options"]["selection"].update(edges=7), "its edges is 7, not"),
        (
            lambda circuit: circuit["edges"].update({next(iter(circuit["edges"])): 7.0}),
            "its scores are not those of scores.safetensors",
        ),
    ],
)
def test_a_circuit_of_another_run_is_refused(tmp_path: Path, edit: Callable[[Any], None], says: str) -> None:
    """Where a process died between circuit.json and run.json, the circuit itself says whose it is."""
    folder = stopped(tmp_path / "run", "before it measures")
    change(folder / "run.json", lambda record: record.update(done={}))
    change(folder / "circuit.json", edit)
    with pytest.raises(cd.CircuitDiscoveryError, match=re.escape(says)) as caught:
        run.discover(SMALL, folder, ["x"])
    assert str(caught.value).startswith(f"{folder / 'circuit.json'} is not of this run: ")
    assert names(folder) == FOUND


def test_a_circuit_that_run_json_does_not_know_yet_is_taken(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stopped(tmp_path / "run", "before it measures")
    change(folder / "run.json", lambda record: record.update(done={}))
    done = counted(monkeypatch)
    run.discover(SMALL, folder, ["x"])
    assert "search" not in done and files(folder) == files(whole)


@pytest.mark.parametrize("name", ["circuit.json", "scores.safetensors"])
def test_what_was_found_and_changed_since_is_refused(tmp_path: Path, whole: Path, name: str) -> None:
    folder = stopped(tmp_path / "run", "before it measures")
    other = stopped(
        tmp_path / "other",
        "before it measures",
        Options("toy", "ioi", method="eap", edges=12, examples=4, measure="quick"),
    )
    (folder / name).write_bytes((other / name).read_bytes())
    with pytest.raises(cd.CircuitDiscoveryError, match=rf"{name} is not of this run: it was changed since"):
        run.discover(SMALL, folder, ["x"])
    (folder / name).unlink()
    run.discover(SMALL, folder, ["x"])
    assert files(folder) == files(whole)


def under_way(folder: Path) -> Options:
    """The options of a run that was stopped while it searched, and keeps the state of its search."""
    options = Options("toy", "ioi", method="trace_back", threshold=0.05, examples=3, measure="none")
    keep, calls = State.keep, iter(range(10))

    def stopping(*given: Any, **numbers: Any) -> None:
        keep(*given, **numbers)
        if next(calls) == 1:
            raise KeyboardInterrupt

    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(State, "keep", stopping)
        run.discover(options, folder, ["x"])
    assert names(folder) == {"run.json", "search.state"}
    return options


def test_a_search_goes_on_after_an_upgrade(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With what it had found; the result names the versions that finished it, and a line those that began."""
    folder, found = tmp_path / "run", list[bool]()
    with monkeypatch.context() as patch:
        patch.setattr(provenance, "version", lambda package: "0.0.1")
        patch.setattr(journal.metadata, "version", lambda package: "0.0.1")
        options = under_way(folder)
    number = State.number
    monkeypatch.setattr(
        State, "number", lambda self, *given: found.append(self.found) or number(self, *given)
    )
    capsys.readouterr()
    run.discover(options, folder, ["x"])
    assert found and all(found)
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "0.0.1" in line]
    now = {name: version(name) for name in ("circuitdiscovery", "torch", "transformers", "numpy")}
    assert said.startswith(f"{folder} was begun with circuitdiscovery 0.0.1, torch 0.0.1, ")
    assert f"; it goes on with circuitdiscovery {now['circuitdiscovery']}, torch {now['torch']}, " in said
    assert cd.load_circuit(folder / "circuit.json").info["versions"] == now
    assert json.loads((folder / "run.json").read_text())["versions"]["torch"] == now["torch"]
    capsys.readouterr()
    run.discover(options, folder, ["x"])
    (folder / "report.html").unlink()
    run.discover(options, folder, ["x"])
    assert "begun with" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "edit", "says"),
    [
        ("run.json", lambda record: record["data"].update(examples="0"), "give a new --out"),
        ("circuit.json", lambda circuit: circuit.update(seed=5), "or remove it to search again"),
        ("circuit.json", lambda circuit: circuit.pop("graph"), "or remove it to search again"),
    ],
)
def test_a_run_that_is_refused_is_not_said_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, edit: Callable[[Any], None], says: str
) -> None:
    """The same command would be refused again: the line ends with what helps."""
    folder = stopped(tmp_path / "run", "before it measures")
    change(folder / name, edit)
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        cli.main([*ARGUMENTS, "--out", str(folder), "--resume"])
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.endswith(says) and "go on with" not in said


@pytest.mark.parametrize("broken", [False, True])
def test_a_state_that_is_refused_is_named_with_what_helps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], broken: bool
) -> None:
    folder = tmp_path / "run"
    options = under_way(folder)
    data = (folder / "search.state").read_bytes()
    other = data[:-4] if broken else data.replace(b'\\"threshold\\": 0.05', b'\\"threshold\\": 0.06')
    assert other != data
    (folder / "search.state").write_bytes(other)
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        cli.main(shlex.split(options.resume_command(folder))[1:])
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{folder / 'search.state'}: " in said and said.endswith("; remove it to begin anew")
    (folder / "search.state").unlink()
    run.discover(options, folder, ["x"])


def test_a_measurement_that_is_refused_is_named_with_what_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = stopped(tmp_path / "run", "before it measures")
    stop(monkeypatch, "before it measures", WHOLE)
    header = {"circuitdiscovery": json.dumps({"format": "circuitdiscovery measured 1", "of": "another"})}
    for content in (b"cut", save({"x": np.zeros(1)}), save({"x": np.zeros(1)}, header)):
        (folder / "measured-quick.state").write_bytes(content)
        with pytest.raises(SystemExit, match="2"):
            cli.main([*ARGUMENTS, "--out", str(folder), "--resume"])
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert f"{folder / 'measured-quick.state'} " in said and said.endswith("; delete it to measure anew")


def test_a_measurement_that_was_changed_since_is_made_again(tmp_path: Path, whole: Path) -> None:
    folder = stopped(tmp_path / "run", "before it draws")
    change(folder / "evaluation.json", lambda values: values["kl"].update(value=9.0))
    run.discover(SMALL, folder, ["x"])
    assert files(folder) == files(whole)


def test_an_unfinished_run_says_what_it_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = stopped(tmp_path / "run", "before it explains")
    with pytest.raises(cd.CircuitDiscoveryError) as caught:
        page.report(folder)
    lacking = "explanation.json, report.json, graph.dot, graph.svg and report.html are missing"
    assert str(caught.value) == (
        f"the run in {folder} is not finished: circuit.json is there, {lacking}; go on with: "
        f"{SMALL.resume_command(folder)}"
    )
    capsys.readouterr()
    with pytest.raises(SystemExit, match="0"):
        cli.main(["evaluate", str(folder / "circuit.json"), "--measure", "quick", "--json"])
    assert json.loads(capsys.readouterr().out) == json.loads((folder / "evaluation.json").read_text())


@pytest.mark.parametrize("wheel", ["pygraphviz", "jinja2"])
def test_a_missing_wheel_is_said_before_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wheel: str
) -> None:
    monkeypatch.setitem(sys.modules, wheel, None)  # an import of it fails
    monkeypatch.setattr(run, "load", None)  # whoever calls it fails
    with pytest.raises(SystemExit, match="2"):
        cli.main([*ARGUMENTS, "--out", str(tmp_path / "run")])
    (said,) = capsys.readouterr().err.splitlines()
    assert wheel in said and said.endswith(f"pip install {wheel}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("gone", "makes"),
    [
        (["report.html"], []),
        (["graph.svg", "report.html"], ["draw"]),
        (["explanation.json"], ["explain", "_curve", "draw"]),
        (["evaluation.json", "report.json"], ["evaluate", "explain", "_curve", "draw"]),
        (["circuit.json", "scores.safetensors"], ["search", "evaluate", "explain", "_curve", "draw"]),
    ],
)
def test_what_is_gone_from_a_finished_run_is_made_again(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, gone: list[str], makes: list[str]
) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    for name in gone:
        (folder / name).unlink()
    done = counted(monkeypatch)
    record = run.discover(SMALL, folder, ["x"])
    assert files(folder) == files(whole) and list(dict.fromkeys(done)) == makes
    assert record["report"] == json.loads((whole / "run.json").read_text())["report"]
    assert record["summary"]["folder"] == str(folder)


@pytest.mark.parametrize(
    ("name", "edit", "makes"),
    [
        ("report.json", lambda each: [each.pop(key) for key in ("scores", "searched", "asked")], []),
        ("report.json", lambda each: each.pop("effort"), ["_curve", "draw"]),  # a full one's, by its age
        ("report.json", lambda each: each.update(format="circuitdiscovery report 0"), ["_curve", "draw"]),
        ("report.json", lambda each: each.pop("curve"), ["_curve", "draw"]),
        ("explanation.json", lambda each: each.pop("unmeasured"), []),
        ("explanation.json", lambda each: each.pop("cards"), ["explain", "_curve", "draw"]),
        ("evaluation.json", lambda each: each.pop("empty_kl"), []),
        ("evaluation.json", lambda each: each.pop("kl"), ["evaluate", "explain", "_curve", "draw"]),
    ],
)
def test_a_run_of_an_older_version_goes_on(
    tmp_path: Path,
    whole: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    edit: Callable[[Any], None],
    makes: list[str],
) -> None:
    """Its files are as run.json says; what they lack has the value that it had then, and what is unfit is made
    anew."""
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    change(folder / name, edit)
    digest = sha256((folder / name).read_bytes()).hexdigest()
    change(folder / "run.json", lambda record: record["done"].update({name: digest}))
    (folder / "report.html").unlink()
    done = counted(monkeypatch)
    run.discover(SMALL, folder, ["x"])
    assert list(dict.fromkeys(done)) == makes
    assert page.report(folder) == folder / "report.html"
    if makes:
        assert files(folder) == files(whole)


def test_an_older_versions_difference_is_not_taken_for_a_damage(tmp_path: Path, whole: Path) -> None:
    """It was F(M) - F(empty) by the metric of the evaluation, in whatever unit the scores are."""
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    change(
        folder / "report.json", lambda each: each["scores"].update(difference=each["scores"].pop("damage"))
    )
    digest = sha256((folder / "report.json").read_bytes()).hexdigest()

    def older(record: dict[str, Any]) -> None:
        record["done"]["report.json"] = digest
        record["report"] = record["report"].replace("the damage of removing everything", "F(M) - F(empty)")

    change(folder / "run.json", older)
    (folder / "report.html").unlink()
    report = run.discover(SMALL, folder, ["x"])["report"]
    (line,) = (each for each in report.splitlines() if each.startswith("scores "))
    assert "F(M) - F(empty)" not in line and "the damage of" not in line


def test_the_prompts_of_a_search_without_held_out_ones_may_lack_the_empty_circuits_kl() -> None:
    """As folders of older versions do."""
    model = cd.load_model("toy")
    task = replace(cd.load_task("ioi", model, examples=3), held_out=None)
    circuit = cd.eap(model, task).top(12)
    found = WHOLE(model, task, circuit, effort="quick").to_dict() | {"empty_kl": None}
    assert data._searched(model, task, circuit, found, SMALL)[1].keys() == {"full", "empty"}


def test_a_run_by_denoising_goes_on_whatever_ablation_was_noted(tmp_path: Path) -> None:
    """Earlier versions took one, which did nothing."""
    folder, options = tmp_path, replace(SMALL, direction="denoising", measure="none")
    run.discover(options, folder, ["x"])
    change(folder / "run.json", lambda record: record["options"].update(ablation="mean"))
    (folder / "report.html").unlink()
    run.discover(options, folder, ["x"])
    assert (folder / "report.html").exists()
    given: dict[str, Any] = dict.fromkeys(("model", "task", "counterfactual"))
    circuit = cd.load_circuit(folder / "circuit.json")
    assert evaluation_options(circuit, str(folder), given).ablation == "resample"
    change(folder / "run.json", lambda record: record["options"].update(ablation="zero", direction="noising"))
    asked = {**given, "direction": "denoising"}
    assert evaluation_options(circuit, str(folder), asked).ablation == "resample"


@pytest.mark.parametrize("field", ["format", "circuit", "effort"])
def test_what_a_page_had_to_compute_is_kept(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    """Where the folder's own is of another format, circuit or effort, and is not used."""
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    change(folder / "report.json", lambda each: each.update({field: "another"}))
    change(folder / "explanation.json", lambda each: each.update(cards={}))
    before = files(folder)
    done = counted(monkeypatch)
    page.report(folder, tmp_path / "elsewhere.html")
    assert "explain" in done and files(folder) == before
    done.clear()
    page.report(folder)
    assert "explain" in done and files(folder) == files(whole)
    done.clear()
    page.report(folder)
    assert not done and files(folder) == files(whole)


def test_a_finished_runs_circuit_that_was_changed_is_refused(tmp_path: Path, whole: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    before = (folder / "run.json").read_bytes()
    change(folder / "circuit.json", lambda circuit: circuit.update(seed=5))
    with pytest.raises(cd.CircuitDiscoveryError, match=r"circuit\.json is not of this run: it was changed"):
        run.discover(SMALL, folder, ["x"])
    assert (folder / "run.json").read_bytes() == before and names(folder) == ALL


def test_a_run_that_was_moved_says_where_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "then").mkdir()
    run.discover(with_measure("none"), tmp_path / "then", ["x"])
    now = (tmp_path / "then").rename(tmp_path / "now")
    before = files(now)
    with pytest.raises(SystemExit, match="0"):
        cli.main([*ARGUMENTS[:-1], "none", "--out", str(now), "--resume"])
    said = capsys.readouterr().out
    assert "not measured; measure it with: circuitdiscovery discover toy ioi" in said
    assert f"--measure quick --out {now} --resume" in said and "/then" not in said and files(now) == before


def test_files_that_run_json_alone_knows_are_not_looked_for(tmp_path: Path, whole: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    change(folder / "run.json", lambda record: record["done"].update({"other.txt": "0"}))
    assert run.discover(SMALL, folder, ["x"])["summary"]["folder"] == str(folder)
    assert files(folder) == files(whole)


# ---------------------------------------------------------------- whose folder it is


@pytest.mark.parametrize("where", [(journal, "_versions"), (run._Run, "all")])
def test_a_run_that_was_interrupted_as_it_began_can_begin(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, where: tuple[Any, str]
) -> None:
    """No file is there before all of it is."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(*where, interrupt)
        run.discover(SMALL, tmp_path, ["x"], fresh=True)
    run.discover(SMALL, tmp_path, ["x"])
    assert files(tmp_path) == files(whole)


def test_of_two_commands_at_once_one_has_the_folder(tmp_path: Path, whole: Path) -> None:
    """Both find it empty, before either has begun."""
    out = tmp_path / "run"
    how: dict[str, Any] = {"out": out, "resume": False}
    with open_folder("x", **how) as one, open_folder("x", **how) as other:
        run.discover(SMALL, one, ["x"], fresh=True)
        before = (out / "run.json").read_bytes()
        with pytest.raises(cd.CircuitDiscoveryError, match="another command has just begun a run in"):
            run.discover(SMALL, other, ["x"], fresh=True)
    assert files(out) == files(whole) and (out / "run.json").read_bytes() == before


def test_the_latest_run_has_the_highest_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where one between was removed; what is of another name does not count."""
    monkeypatch.chdir(tmp_path)

    def opened(resume: bool = False) -> str:
        with open_folder("x", out=None, resume=resume) as folder:
            (folder / "run.json").touch()
        return str(folder)

    assert [opened(), opened(), opened(resume=True)] == ["runs/x", "runs/x-2", "runs/x-2"]
    shutil.rmtree("runs/x")
    for other in ("x-y", "x-03", "xx-9"):
        (tmp_path / "runs" / other).mkdir()
    assert [opened(), opened(resume=True), opened()] == ["runs/x-3", "runs/x-3", "runs/x-4"]


# ------------------------------------------------------------ how much is measured


def with_measure(measure: str | None) -> Options:
    return Options("toy", "ioi", method="eap", edges=12, examples=3, measure=measure)


def test_what_was_not_measured_can_be_measured_later(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with monkeypatch.context() as patch:
        done = counted(patch)
        record = run.discover(with_measure("none"), folder, ["x"])
        assert done == ["search", "draw", "draw"]
    assert names(folder) == ALL - {"evaluation.json", "explanation.json"}
    assert record["summary"]["measured"] == "none" and record["summary"]["evaluation"] is None
    text = (folder / "report.html").read_text("utf-8")
    assert (
        "Not measured" in text
        and "There is no curve: not measured." in text
        and text.count('class="edge ') == record["summary"]["edges"] > 0
    )
    again = page.report(folder, tmp_path / "again.html")
    assert again.read_text("utf-8") == text
    done = counted(monkeypatch)
    assert run.discover(with_measure(None), folder, ["x"]) == record and not done
    record = run.discover(with_measure("quick"), folder, ["x"])
    assert "search" not in done and record["summary"]["measured"] == "quick"
    assert files(folder) == files(whole)
    done.clear()
    for less in ("none", "quick", None):
        assert run.discover(with_measure(less), folder, ["x"]) == record and not done


def test_a_run_that_goes_on_never_measures_less_than_it_has(tmp_path: Path) -> None:
    full = stopped(tmp_path / "full", "before it draws", with_measure("full"))
    record = run.discover(with_measure("none"), full, ["x"])
    assert measured_in(full, record) == "full"
    assert record["options"]["measure"] == "full"
    less = stopped(tmp_path / "less", "before it measures", with_measure("full"))
    record = run.discover(with_measure("quick"), less, ["x"])
    assert measured_in(less, record) == "quick"


def measured_in(folder: Path, record: Any) -> str:
    """How much was measured, as the record and the evaluation both say."""
    effort = json.loads((folder / "evaluation.json").read_text())["effort"]
    assert record["summary"]["measured"] == effort
    return effort


def test_the_price_is_said_before_it_is_paid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def asked(*_: Any, **options: Any) -> None:
        said = capsys.readouterr().err
        price = evaluation.price(cd.load_circuit(tmp_path / "circuit.json"), 3, "quick")
        assert f"measuring (quick): about {price:.0f} forwards of 3 prompts\n" in said
        assert options["effort"] == "quick" and options["state"].parent == tmp_path
        raise ZeroDivisionError

    stop(monkeypatch, "before it measures", asked)
    with pytest.raises(ZeroDivisionError):
        run.discover(SMALL, tmp_path, ["x"])


def test_by_default_the_counts_say_how_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(
        evaluation, "default_effort", lambda model, task, circuit: seen.append(len(circuit)) or "quick"
    )
    record = run.discover(with_measure(None), tmp_path, ["x"])
    assert (
        seen == [12]
        and record["effort"] == record["summary"]["measured"] == "quick"
        and record["options"]["measure"] is None
    )
    assert (
        "--measure"
        not in (tmp_path / "report.html").read_text("utf-8").partition("To repeat it")[2].partition("</p>")[0]
    )


# ----------------------------------------------------------------- what it says


def test_the_mass_of_the_scores_is_that_of_all_edges(whole: Path) -> None:
    scores = cd.Scores.load(whole / "scores.safetensors")
    values = [scores[edge] for edge in scores.graph.edges]
    model = cd.load_model("toy")
    task = cd.load_task("ioi", model, examples=3)
    ends = [
        cd.run_circuit(model, task, getattr(cd.Circuit, name)(scores.graph)) for name in ("full", "empty")
    ]
    full, empty = (
        sum(
            float(row[e.correct[0]] - row[e.incorrect[0]])
            for row, e in zip(logits, task.examples, strict=True)
        )
        / 3
        for logits in ends
    )
    said = json.loads((whole / "report.json").read_text())["scores"]
    assert said["positive"] == pytest.approx(sum(value for value in values if value > 0), rel=1e-4)
    assert (
        said["negative"] == pytest.approx(sum(value for value in values if value < 0), rel=1e-4)
        and said["negative"] < 0
    )
    assert said["damage"] == pytest.approx(full - empty, rel=1e-4)
    record = json.loads((whole / "run.json").read_text())
    assert record["summary"]["scores"] == said
    assert re.search(
        r"^scores +positive [\d.]+, negative -[\d.]+; the damage of removing everything \d",
        record["report"],
        re.MULTILINE,
    )


@pytest.mark.parametrize("held_out", [True, False])
@pytest.mark.parametrize(
    ("searched", "measured", "sign"),
    [
        ("logit_diff", "logit_diff", -1),
        ("nll", "nll", 1),
        ("kl_divergence", "logit_diff", 1),
        ("nll", "logit_diff", None),
    ],
)
def test_scores_stand_beside_the_damage_of_everything_in_their_unit(
    held_out: bool, searched: str, measured: str, sign: int | None
) -> None:
    """By the metric that they were searched with, whatever the circuit is measured by."""
    model = cd.load_model("toy")
    task = cd.load_task("ioi", model, examples=3)
    task = task if held_out else replace(task, held_out=None)
    scores = cd.eap_ig(model, task, metric=searched, steps=1)
    circuit, options = scores.top(20), Options("toy", "ioi", metric=measured)
    found = WHOLE(model, task, circuit, metric=measured, effort="quick").to_dict()
    said = data.contents_of(model, task, circuit, scores, found, options, "quick", None)["scores"]
    by = Evaluator.build(Setup.of(model, task, circuit.graph, metric=searched))
    full, empty = (by.values(mask).mean() for mask in (circuit.graph.allowed, np.zeros_like(circuit.mask)))
    expected = None if sign is None else pytest.approx(sign * (empty - full), rel=1e-4)
    assert said["damage"] == expected and (expected is None or said["damage"] > 0)


def test_the_prompts_of_the_search_are_measured_beside_those_held_out() -> None:
    model = cd.load_model("toy")
    task = cd.load_task("ioi", model, examples=12)
    circuit = cd.eap_ig(model, task).top(60)
    evaluator = evaluation.Evaluator.build(
        Setup.of(model, cd.Task(task.name, task.examples), metric="logit_diff")
    )
    ends = [evaluator.values(mask) for mask in (circuit.mask, circuit.graph.allowed, circuit.mask & False)]
    expected, _ = evaluator.normalized(*ends)
    said, means = data._searched(model, task, circuit, {}, SMALL)
    assert expected is not None and said is not None and said["examples"] == 12
    assert said["normalized"] == pytest.approx(expected.to_dict(), rel=1e-5)
    assert means["full"] - means["empty"] == pytest.approx(ends[1].mean() - ends[2].mean())


@pytest.mark.parametrize("how", [{"ablation": "mean"}, {"ablation": "noise"}, {"direction": "denoising"}])
def test_only_the_prompts_that_are_shown_are_run(
    how: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = cd.load_model("toy")
    task, circuit = (
        cd.load_task("ioi", model, examples=50),
        cd.random(model, cd.load_task("ioi", model)).top(300),
    )
    full, kept = (cd.run_circuit(model, task, of, **how) for of in (cd.Circuit.full(model.graph), circuit))
    ran: list[int] = []
    patched = Setup.patched
    monkeypatch.setattr(
        Setup, "patched", lambda self, batch: (ran.append(len(batch)), patched(self, batch))[1]
    )
    rows = PROMPTS(model, task, circuit, Options("toy", "ioi", **how))
    assert sum(ran) == len(rows) == 20
    for row, found in enumerate(rows):
        chance = [float(each[row].softmax(-1).max()) for each in (full, kept)]
        assert [found[side]["probability"] for side in ("full", "circuit")] == pytest.approx(chance, rel=1e-4)
    assert any(found["full"] != found["circuit"] for found in rows)


def test_a_journal_forgets_what_comes_after(tmp_path: Path) -> None:
    journal = Journal(tmp_path, SMALL, ["x"], None)
    for name in ("circuit.json", "evaluation.json", "report.json"):
        (tmp_path / name).write_text("{}")
        journal.finish(name, write=lambda: None)
    assert all(journal.intact(name) for name in ("circuit.json", "evaluation.json", "report.json"))
    journal.finish("evaluation.json", write=lambda: None)
    assert [journal.intact(name) for name in ("circuit.json", "evaluation.json", "report.json")] == [
        True,
        True,
        False,
    ]
    (tmp_path / "circuit.json").write_text("[]")
    assert journal.claims("circuit.json") and not journal.intact("circuit.json")
    assert Journal(tmp_path, SMALL, ["y"], json.loads((tmp_path / "run.json").read_text())).intact(
        "evaluation.json"
    )
