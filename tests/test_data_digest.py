"""A run goes on with the rows and the tokenizer that it was begun with, and with no others."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tiny import Tiny

import circuitdiscovery as cd
from circuitdiscovery.cli import main as cli
from circuitdiscovery.cli import run
from circuitdiscovery.reporting.options import Options
from circuitdiscovery.search import acdc
from circuitdiscovery.task.tokenization import tokenizer_digest

OPTIONS = ("--threshold", "0.05", "--measure", "quick")


class Killed(BaseException):
    """As a signal: nothing gets to handle it."""


def write_table(path: Path, toy: Any, seed: int, change: str | None = None) -> None:
    """Eight rows; with a change, the last cell of one row is another."""
    drawn = cd.load_task("ioi", toy, examples=8, seed=seed).examples
    decode = toy.tokenizer.decode
    lines = ["clean,corrupted,correct,incorrect"]
    for example in drawn:
        right, wrong = decode([example.correct[0]]), decode([example.incorrect[0]])
        lines.append(
            f'"{decode(example.clean)}","{decode(example.corrupted)}", {right.strip()}, {wrong.strip()}'
        )
    if change is not None:
        lines[1] = lines[1].rpartition(",")[0] + f", {change}"
    path.write_text("\n".join(lines) + "\n")


def stop(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Kill a run while it searches, after something was kept, or before it measures."""

    def killed(*_: Any, **__: Any) -> Any:
        raise Killed

    if where == "measure":
        monkeypatch.setattr(run, "evaluate", killed)
        return
    decide, left = acdc._Search.decide, iter(range(5))

    def some(self: Any, *args: Any) -> Any:
        return decide(self, *args) if next(left, None) is not None else killed()

    monkeypatch.setattr(acdc._Search, "decide", some)


def call(table: Path, out: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, str]:
    arguments = ["discover", "toy", str(table), *OPTIONS, "--out", str(out), *more]
    try:
        cli.main(arguments)
    except SystemExit as exit:
        return int(exit.code or 0), capsys.readouterr().err.strip()
    return 0, capsys.readouterr().err.strip()


@pytest.fixture(scope="module")
def whole(toy: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the first table that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    write_table(folder / "table.csv", toy, seed=1)
    asked = ["discover", "toy", str(folder / "table.csv"), *OPTIONS, "--out", str(folder / "run")]
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), pytest.raises(SystemExit, match="0"):
        cli.main(asked)
    return folder / "run"


@pytest.mark.parametrize("where", ["search", "measure"])
@pytest.mark.parametrize("change", ["all rows", "one answer"])
def test_rows_replaced_between_kill_and_resume_are_refused(
    toy: Any,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    where: str,
    change: str,
) -> None:
    table, out = tmp_path / "table.csv", tmp_path / "run"
    write_table(table, toy, seed=1)
    with monkeypatch.context() as patch:
        stop(patch, where)
        with pytest.raises(Killed):
            call(table, out, capsys)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    write_table(
        table, toy, seed=2 if change == "all rows" else 1, change=None if change == "all rows" else "Zoe"
    )
    capsys.readouterr()
    code, said = call(table, out, capsys, "--resume")
    last = said.splitlines()[-1]
    assert code == 2 and "the task's rows are others than then" in last and str(out) in last
    assert {name: data for name, data in before.items() if name != "run.json"} == {
        path.name: path.read_bytes() for path in out.iterdir() if path.name != "run.json"
    }
    write_table(table, toy, seed=1)
    assert call(table, out, capsys, "--resume")[0] == 0
    for name in ("circuit.json", "evaluation.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize("where", ["search", "measure", "end"])
def test_a_project_that_was_moved_goes_on_if_its_rows_did_not_change(
    toy: Any,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    where: str,
) -> None:
    """By the same relative command: whose files they are, their digests say, not where they lie."""
    (tmp_path / "then").mkdir()
    monkeypatch.chdir(tmp_path / "then")
    table, out = Path("table.csv"), Path("run")
    write_table(table, toy, seed=1)
    with monkeypatch.context() as patch, suppress(Killed):
        if where != "end":
            stop(patch, where)
        call(table, out, capsys)
    monkeypatch.chdir((tmp_path / "then").rename(tmp_path / "now"))
    write_table(table, toy, seed=1, change="Zoe")
    code, said = call(table, out, capsys, "--resume")
    assert code == 2 and "the task's rows are others than then" in said.splitlines()[-1]
    write_table(table.with_name("other.csv"), toy, seed=1)
    code, said = call(table.with_name("other.csv"), out, capsys, "--resume")
    assert code == 2 and "was begun with task " in said and "resume with the same options" in said
    write_table(table, toy, seed=1)
    assert call(table, out, capsys, "--resume")[0] == 0
    for name in ("circuit.json", "evaluation.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert json.loads((out / "run.json").read_text())["options"]["task"] == str(table.resolve())
    monkeypatch.setattr(run, "load", None)  # whoever calls it fails
    assert call(table, out, capsys, "--resume")[0] == 0


def test_a_model_that_was_moved_is_known_by_its_weights(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Path(shutil.copytree(toy.source.path, tmp_path / "then" / "model"))
    options = Options(str(own), "ioi", method="eap", examples=2, edges=9, measure="none")
    (tmp_path / "then" / "run").mkdir()
    run.discover(options, tmp_path / "then" / "run", ["x"])
    now = (tmp_path / "then").rename(tmp_path / "now")
    options = replace(options, model=str(now / "model"))
    weights = now / "model" / "model.safetensors"
    before = weights.read_bytes()
    save_file({name: 1.01 * values for name, values in load_file(weights).items()}, weights, {"format": "pt"})
    with pytest.raises(cd.CircuitDiscoveryError, match=r"is not of this run: .*weights"):
        run.discover(options, now / "run", ["x"])
    weights.write_bytes(before)
    record = run.discover(options, now / "run", ["x"])
    assert record["options"]["model"] == record["summary"]["model"] == options.model


def test_a_search_names_the_rows_and_the_tokenizer(toy: Any, tmp_path: Path) -> None:
    one, other = (cd.load_task("ioi", toy, examples=4, seed=seed) for seed in (0, 1))
    found = [cd.eap(toy, task).info["data"] for task in (one, one, other)]
    assert found[0] == found[1] and found[0]["examples"] != found[2]["examples"]
    assert found[0]["tokenizer"] == found[2]["tokenizer"]
    circuit = cd.eap(toy, one).top(5)
    circuit.save(tmp_path / "circuit.json")
    assert cd.load_circuit(tmp_path / "circuit.json").info["data"] == found[0]


def test_every_part_of_a_row_is_in_the_digest(gpt2: Tiny) -> None:
    row: dict[str, Any] = {"clean": [[1, 2]], "corrupted": [[3, 2]], "correct": [4], "incorrect": [5]}
    changes: Iterator[dict[str, Any]] = iter(
        [
            {},
            {"clean": [[6, 2]]},
            {"corrupted": [[6, 2]]},
            {"correct": [6]},
            {"incorrect": [6]},
            {"position": 0},
        ]
    )
    digests = [cd.Task.from_tokens(**(row | change)).digest for change in changes]
    assert len(set(digests)) == 6
    assert "tokenizer" not in cd.eap(gpt2.model, gpt2.prompts.task).info["data"]


def test_a_tokenizer_is_known_by_what_it_does(words: Path) -> None:
    from transformers import AutoTokenizer

    one, same, other = (AutoTokenizer.from_pretrained(words) for _ in range(3))
    one(["w3", "w4 w5"], padding=True, truncation=True, max_length=4)  # which it remembers
    assert tokenizer_digest(one) == tokenizer_digest(same)
    other.add_tokens(["w3 w4"])
    assert tokenizer_digest(other) != tokenizer_digest(same)
    assert tokenizer_digest(None) is None


def test_a_circuit_of_an_older_version_is_read(toy: Any, tmp_path: Path) -> None:
    path = tmp_path / "circuit.json"
    cd.eap(toy, cd.load_task("ioi", toy, examples=4)).top(5).save(path)
    value = json.loads(path.read_text())
    del value["data"]
    path.write_text(json.dumps(value))
    assert len(cd.load_circuit(path)) == 5
    path.write_text(json.dumps(value | {"data": {"examples": 3}}))
    with pytest.raises(cd.CircuitDiscoveryError, match=r"data\.examples.* must be text"):
        cd.load_circuit(path)
