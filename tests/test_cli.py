"""The command line as a user meets it: what it refuses, what it
writes, and what is left when it is stopped."""

from __future__ import annotations

import errno
import html
import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from forked import Forked, Result

import circuitdiscovery as cd
from circuitdiscovery import registry
from circuitdiscovery.cli import main as cli
from circuitdiscovery.cli import prompts, run
from circuitdiscovery.cli.arguments import task_name
from circuitdiscovery.cli.commands.discover import discover
from circuitdiscovery.engine import state
from circuitdiscovery.files.disk import data_folder
from circuitdiscovery.measure import criteria
from circuitdiscovery.model import load
from circuitdiscovery.reporting.options import Options
from circuitdiscovery.search import acdc

EXPLAINED = {"explanation.json", "report.json", "report.html"}
FILES = {"circuit.json", "evaluation.json", "graph.dot", "graph.svg", "run.json"} | EXPLAINED
ROOT = Path(cd.__file__).parents[1]
# a fresh interpreter in which whoever imports torch, or what takes as long, fails; a call is a fork of it
WITHOUT_TORCH = """
import json, os, sys
for name in ("torch", "transformers", "transformer_lens"):
    sys.modules[name] = None
# with most of what the calls below import
import circuitdiscovery.circuit.circuit, circuitdiscovery.task.read, huggingface_hub.hf_api
from circuitdiscovery.cli.main import main
for line in sys.stdin:
    folder, files, arguments = json.loads(line)
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        for number, file in enumerate(files, 1):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        main(arguments)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


Call = Callable[..., Result]


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    # as in this process: bytes are the same for the same number of threads
    threads = str(torch.get_num_threads())
    return os.environ | {
        "PYTHONPATH": path,
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "200",
        "OMP_NUM_THREADS": threads,
    }


@pytest.fixture(scope="module")
def without_torch() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", WITHOUT_TORCH]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
    ) as process:
        yield process


@pytest.fixture
def light(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, without_torch: subprocess.Popen[str]
) -> Call:
    """Runs the command line in a process of its own that has no torch, in an empty folder."""
    files = [tmp_path_factory.mktemp("said") / name for name in ("out", "err")]

    def call(*arguments: str) -> Result:
        assert without_torch.stdin is not None and without_torch.stdout is not None
        without_torch.stdin.write(
            json.dumps([str(tmp_path), [str(file) for file in files], [str(each) for each in arguments]])
            + "\n"
        )
        without_torch.stdin.flush()
        return Result(int(without_torch.stdout.readline()), *(file.read_text("utf-8") for file in files))

    return call


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Call]:
    """Runs the command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    # these tests are not about the evaluation, which takes longest
    monkeypatch.setattr(criteria, "RANDOM_SETS", 2)
    monkeypatch.setattr(criteria, "GREEDY_NODES", 1)
    before = signal.getsignal(signal.SIGTERM)

    def call(*arguments: str | Path) -> Result:
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit:
            cli.main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return Result(int(exit.value.code or 0), str(out), str(err))

    yield call
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished `discover toy ioi`, to be looked at and not to be written to."""
    folder = tmp_path_factory.mktemp("finished")
    subprocess.run(
        [sys.executable, "-c", BRIEF, *SMALL], cwd=folder, env=environment(), check=True, capture_output=True
    )
    return folder / "runs" / "toy-ioi-acdc"


# a fresh interpreter in which an evaluation is as brief as in `call`, and a search is saved at every step
BRIEF = (
    "from circuitdiscovery.measure import criteria\n"
    "from circuitdiscovery.engine import state\n"
    "from circuitdiscovery.search import acdc\n"
    "from circuitdiscovery.cli.main import main\n"
    "criteria.RANDOM_SETS, criteria.GREEDY_NODES, state.SAVE_SECONDS = 2, 1, 0.0\n"
    "main()"
)
SMALL = ("discover", "toy", "ioi", "--examples", "6", "--threshold", "0.05")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a run folder that must not differ between two runs."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "run.json"}


def one_line(result: Result) -> str:
    """The message of a refused call: one line on standard error after those on the progress,
    nothing on standard output, exit status 2.
    """
    assert result.status == 2, result
    assert result.out == ""
    progress = r": (under way|\d+ of \d+)(, about .* left)?$|^measuring \((quick|full)\): about "
    lines = [line for line in result.err.splitlines() if not re.search(progress, line)]
    assert result.err.endswith("\n") and len(lines) == 1, result.err
    assert "Traceback" not in result.err
    return lines[0]


# ---------------------------------------------------------- before torch is there


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["discover", "--help"], ["evaluate", "-h"], ["--version"], ["tasks"], ["models"]],
)
def test_help_and_lists_need_no_torch(light: Call, arguments: list[str]) -> None:
    result = light(*arguments)
    assert result.status == 0, result.err
    assert result.out.strip()


def test_help_comes_within_half_a_second() -> None:
    """Of the processor's time: it waits for nothing, and other processes may run beside it. Once in five is
    enough: what others do at the same time only adds to it.
    """

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-m", "circuitdiscovery", "discover", "--help"],
            env=environment(),
            check=True,
            capture_output=True,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert any(seconds() < 0.5 for _ in range(5))


def test_help_names_the_methods_that_take_an_option() -> None:
    """Those that `check` lets have it, and by what they search where no metric is given."""
    own = [name for name in registry.METHODS if ":" not in name]  # another test may have added its own
    words = {param.name: str(param.help) for param in discover.params if isinstance(param, click.Option)}

    def named(text: str) -> set[str]:
        return {name for name in own if re.search(rf"(?<![\w-]){name.replace('_', '-')}(?![\w-])", text)}

    def take(**option: Any) -> set[str]:
        taking = {*own}
        for name in own:
            try:
                Options("toy", "ioi", method=name, **option).check()
            except cd.CircuitDiscoveryError:
                taking.remove(name)
        return taking

    assert named(words["threshold"]) == take(threshold=0.1)
    assert named(words["edges"]) == {*own} - take(edges=9)
    model = cd.load_model("toy")
    task = cd.load_task("ioi", model, examples=1)
    few: dict[str, dict[str, Any]] = {
        name: {"edges": 9, "steps": 2} for name in ("edge_pruning", "matryoshka")
    }
    few |= {"hybrid": {"edges": 9, "rounds": 0}, "acdc": {"threshold": 9.0}, "trace_back": {"threshold": 9.0}}
    metrics = {
        name: getattr(cd, name)(model, task, **few.get(name, {})).info["options"]
        for name in own
        if name != "random"
    }
    assert named(words["metric"]) == {
        name for name, said in metrics.items() if said["metric"] == "kl_divergence"
    }


def test_help_states_every_choice_and_default(light: Call) -> None:
    text = " ".join(light("discover", "--help").out.split())
    for words in (
        "acdc|eap|eap-ig|clean-corrupted|exact|trace-back|hybrid|edge-pruning|matryoshka|random",
        "matryoshka for a graph of more than 2,000 edges",
        "noising|denoising",
        "float32|float64|bfloat16|float16",
        str(registry.DEFAULT_THRESHOLD),
        "10% of all, but no more than 200, or 1% where that is more",
    ):
        assert words in text


REFUSED = [
    ("", ["Missing command", "discover", "draw"]),
    ("discovr toy ioi", ["discovr", "discover, draw"]),
    ("discover", ["MODEL"]),
    ("discover gpt2", ["TASK"]),
    ("discover tooy ioi", ["tooy", "did you mean 'toy'", "folder", "hub name"]),
    ("discover ./missing ioi", ["./missing"]),
    ("discover empty ioi", ["empty", "config.json"]),
    ("discover gpt2 ioy", ["ioy", "did you mean 'ioi'", "greater_than"]),
    ("discover gpt2 missing.toml", ["missing.toml", "No such file"]),
    ("discover gpt2 broken.toml", ["broken.toml", "line 2"]),
    ("discover gpt2 broken.csv", ["broken.csv", "line 1", "correct"]),
    ("discover gpt2 broken.jsonl", ["broken.jsonl", "line 1"]),
    ("discover gpt2 task.yaml", ["task.yaml"]),
    ("discover gpt2 ioi --method acdcc", ["--method", "did you mean 'acdc'", "eap_ig"]),
    ("discover gpt2 ioi --metric logitdiff", ["--metric", "did you mean 'logit_diff'", "kl_divergence"]),
    ("discover gpt2 ioi --ablation means", ["--ablation", "did you mean 'mean'", "mean_all"]),
    ("discover gpt2 ioi --direction up", ["--direction", "noising, denoising"]),
    ("discover gpt2 ioi --device tpu", ["--device", "cpu, cuda, cuda:0, mps"]),
    ("discover gpt2 ioi --device cuda:x", ["--device", "cuda:x"]),
    ("discover gpt2 ioi --dtype float23", ["--dtype", "did you mean 'float32'", "bfloat16"]),
    ("discover gpt2 ioi --threshold nan", ["--threshold", "finite"]),
    ("discover gpt2 ioi --threshold -inf", ["--threshold", "finite"]),
    ("discover gpt2 ioi --threshold much", ["--threshold", "'much'"]),
    ("discover gpt2 ioi --examples 0", ["--examples", "at least 1"]),
    ("discover gpt2 ioi --examples -3", ["--examples", "at least 1"]),
    ("discover gpt2 ioi --examples 2.5", ["--examples", "whole number"]),
    ("discover gpt2 ioi --batch-size 0", ["--batch-size", "at least 1"]),
    ("discover gpt2 ioi --seed -1", ["--seed", "at least 0"]),
    ("discover gpt2 ioi --method eap --edges 0", ["--edges", "at least 1"]),
    ("discover gpt2 ioi --edges 10", ["--edges", "acdc", "--threshold"]),
    ("discover gpt2 ioi --method eap --edges 10 --threshold 1", ["--edges", "--threshold"]),
    ("discover gpt2 ioi --direction denoising", ["--direction", "acdc", "eap and exact"]),
    *(
        (
            f"{command} --direction denoising --ablation zero",
            ["denoising takes no ablation but resample", "'zero' is for direction noising"],
        )
        for command in (
            "discover gpt2 ioi --method eap",
            "evaluate gpt2/ioi --model gpt2 --task ioi",
            "transfer gpt2/ioi --model gpt2 --task ioi",
        )
    ),
    ("discover gpt2 ioi --method hybrid --threshold 0.1", ["--threshold", "hybrid", "--edges"]),
    ("discover gpt2 ioi --method eap-ig --direction denoising", ["--direction", "eap-ig", "eap and exact"]),
    ("discover gpt2 ioi --method eap --metric kl-divergence", ["kl_divergence", "eap-ig"]),
    *(
        (
            f"discover gpt2 ioi --method {name} --metric accuracy",
            ["accuracy", "no gradient", "--method exact"],
        )
        for name in ("eap", "eap-ig", "clean-corrupted", "hybrid", "edge-pruning", "matryoshka")
    ),
    (
        "discover gpt2 ioi --counterfactual flop",
        ["'flop'", "did you mean 'flip'", "counterfactuals of ioi: abc, flip"],
    ),
    ("discover gpt2 rows.csv --counterfactual abc", ["rows", "counterfactuals as rows", "'abc'"]),
    ("discover missing.gguf ioi", ["missing.gguf", "no such file"]),
    ("discover below/missing.gguf ioi", ["below/missing.gguf", "no such file"]),
    ("discover broken.toml ioi", ["broken.toml", ".gguf"]),
    (
        "evaluate gpt2/ioi --model gpt2 --task ioi --counterfactual flop",
        ["'flop'", "counterfactuals of ioi: abc, flip"],
    ),
    ("discover gpt2 ioi --edgs 3", ["--edgs", "--edges"]),
    ("discover gpt2 ioi --examples", ["--examples"]),
    ("discover gpt2 ioi more", ["more"]),
    ("discover gpt2 ioi --out file", ["file", "--out"]),
    ("discover gpt2 ioi --out full", ["full", "not empty", "--resume"]),
    ("discover gpt2 ioi --out full --resume", ["full", "run.json"]),
    ("discover gpt2 ioi --out file/below", ["file/below"]),
    ("discover gpt2 ioi --out other --resume", ["other", "seed", "7", "0"]),
    ("discover gpt2 ioi --out torn --resume", ["torn/run.json", "line 1"]),
    ("discover toy ioi --out link", ["cannot make the folder link", "a link to what is not there"]),
    ("discover toy ioi --out=~no-such-user/x", ["~no-such-user/x: there is no such home folder"]),
    (
        "discover gpt2 ioi --method edge-pruning --repulsion 1",
        ["--repulsion does nothing without --apart-from"],
    ),
    ("discover gpt2 ioi --method edge-pruning --repulsion -1", ["--repulsion", "'-1' is less than 0"]),
    ("patchscope gpt2 ioi --at 3 --position " + "1" * 5000, ["--position", "is no position in a prompt"]),
    *(
        (f"{command} --plot nowhere/a.png", ["--plot", "there is no folder nowhere"])
        for command in ("lens gpt2 ioi", "transfer full", "checkpoints full full", "universal gpt2 gpt2")
    ),
    ("evaluate missing.json", ["missing.json"]),
    ("evaluate torn/run.json", ["torn/run.json", "line 1"]),
    ("evaluate gpt3/ioi", ["gpt3/ioi"]),
    ("compare missing.json missing.json", ["missing.json"]),
    ("compare missing.json", ["'B'"]),
    ("draw missing.json", ["--out"]),
    ("draw missing.json -o a.gif", ["a.gif", ".svg, .png, .pdf or .dot"]),
    ("draw missing.json -o nowhere/a.svg", ["nowhere"]),
    ("draw missing.json -o a.svg", ["missing.json"]),
    *(
        (f"draw gpt2/ioi -o a.svg --max-edges {n}", ["--max-edges", n, "whole number of at least 1 nor all"])
        for n in ("0", "-3", "many")
    ),
    ("report", ["RUN"]),
    ("report missing", ["missing is not a run folder", "there is no such folder"]),
    ("report empty", ["empty is not a run folder", "run.json"]),
    ("report file", ["file is not a run folder", "it is a file"]),
    ("report torn", ["torn/run.json", "line 1"]),
    ("report other", ["other", "not finished", "circuitdiscovery discover gpt2 ioi", "--out other --resume"]),
    ("report other --json", ["--json", "--out"]),
    ("models toy", ["toy"]),
    ("lens gpt2 ioi --save file", ["--save", "'file' is a file"]),
    ("probe gpt2 ioi --csv nowhere.csv", ["--csv", "'nowhere.csv' does not exist"]),
    ("probe gpt2 ioi --csv empty", ["--csv", "'empty' is a directory"]),
]


@pytest.mark.parametrize(("arguments", "says"), REFUSED, ids=[arguments[:80] for arguments, _ in REFUSED])
def test_bad_arguments_are_refused_before_torch_is_imported(
    tmp_path: Path, light: Call, arguments: str, says: list[str]
) -> None:
    (tmp_path / "file").write_text("")
    for folder in ("empty", "full", "other", "torn"):
        (tmp_path / folder).mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "other" / "run.json").write_text(
        json.dumps({"options": {"model": "gpt2", "task": "ioi"} | OTHER})
    )
    (tmp_path / "torn" / "run.json").write_text('{"options": {')
    (tmp_path / "broken.toml").write_text("version = 1\ntemplates = = 2\n")
    (tmp_path / "rows.csv").write_text("clean,corrupted,correct,incorrect\na,b,c,d\n")
    (tmp_path / "broken.csv").write_text("clean,corrupted\na,b\n")
    (tmp_path / "broken.jsonl").write_text('{"clean": \n')
    before = sorted(path for path in tmp_path.rglob("*"))
    message = one_line(light(*arguments.split()))
    assert not [word for word in says if word not in message], message
    assert sorted(path for path in tmp_path.rglob("*")) == before  # nothing was made, nothing was lost


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["discover", "", "ioi"], "no model ''"),
        (["discover", "toy", ""], "no task ''"),
        (["discover", "toy", "ioi", "--out", ""], "an empty text is no path"),
        (
            ["discover", "toy", "ioi", "--out", "file/a   b"],
            "cannot make the folder file/a   b: file is a file",
        ),
        (["draw", "", "-o", "a.svg"], "an empty text is no path"),
        (["lens", "toy", "ioi", "--save", ""], "an empty text is no path"),
        (["lens", "toy", "--texts", ""], "an empty text is no path"),
    ],
)
def test_a_path_is_taken_as_it_is(tmp_path: Path, light: Call, arguments: list[str], says: str) -> None:
    """An empty one is not the current folder, and spaces in it stay."""
    (tmp_path / "file").write_text("")
    assert says in one_line(light(*arguments))


def test_runs_that_cannot_be_made_is_one_line(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("runs").symlink_to("nowhere/x")
    left, mkdir = 5, Path.mkdir

    def counted(path: Path, *given: Any, **how: Any) -> None:
        nonlocal left
        left -= 1
        assert left, "it tries for ever"
        mkdir(path, *given, **how)

    monkeypatch.setattr(Path, "mkdir", counted)
    message = "circuitdiscovery: cannot make the folder runs: runs is a file, or a link to what is not there"
    assert one_line(call(*SMALL)) == message


@pytest.mark.parametrize("out", [".", "mine", "link", "new/a/b", None])
def test_an_error_leaves_the_folders_as_they_were(call: Call, tmp_path: Path, out: str | None) -> None:
    """Those that it made are gone, an empty one of the user's stays, and what was wrong is said."""
    table = tmp_path / "bad.csv"
    table.write_text("clean,corrupted,correct,incorrect\na,b,c,d\n")
    here = tmp_path / "here"
    (here / "mine").mkdir(parents=True)
    (here / "link").symlink_to("mine")
    os.chdir(here / "mine" if out == "." else here)
    message = one_line(call("discover", "toy", table, *(() if out is None else ("--out", out))))
    assert "bad.csv, row 1: the tokenizer does not know a word" in message
    assert sorted(path.name for path in here.iterdir()) == ["link", "mine"]
    assert (here / "link").is_symlink() and not any((here / "mine").iterdir())


def test_a_dictionary_is_kept_in_the_current_folder_too(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "kept"
    folder.mkdir()
    monkeypatch.chdir(folder)
    how = ("--at", "m2", "--task", "ioi", "--examples", "2", "--steps", "2", "--n", "8", "--k", "2")
    assert call("sae", "train", "toy", *how, "--to", ".").status == 0
    assert {path.name for path in folder.iterdir()} == {"cfg.json", "sae_weights.safetensors"}
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert "has a dictionary already" in one_line(call("sae", "train", "toy", *how, "--to", "."))


def test_a_tilde_that_the_shell_left_is_the_home_folder(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    run_ = call(
        "discover", "toy", "ioi", "--method", "random", "--examples", "2", "--measure", "none", "--out=~/x"
    )
    assert run_.status == 0 and f"{home}/x: circuit.json" in run_.out
    assert call("draw", finished, "--out=~/a.svg").status == 0
    assert call("report", finished, "--out=~/a.html").status == 0
    assert {path.name for path in home.iterdir()} == {"x", "a.svg", "a.html"}
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_a_path_with_a_dot_is_not_what_is_shipped(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished, "gpt2/ioi")
    assert "of 479 edges in all" in call("compare", "./gpt2/ioi", finished).out
    assert "there is no folder './nothing/'" in one_line(call("compare", "./nothing/", finished))


def test_a_table_beside_the_shipped_tasks_is_not_one_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole paths and others: a shipped task is a .toml file there."""
    tasks = tmp_path / "tasks"
    shutil.copytree(data_folder("tasks"), tasks)
    (tasks / "ioi.csv").write_text("clean,corrupted,correct,incorrect\none,two, a, b\n")
    monkeypatch.setattr("circuitdiscovery.files.disk.PACKAGE", tmp_path / "package")
    monkeypatch.chdir(tmp_path)
    for given in ("tasks/ioi.csv", str(tasks / "ioi.csv")):
        assert task_name(given) == str((tasks / "ioi.csv").resolve())
    for given in ("ioi", "tasks/ioi.toml", "tasks/../tasks/ioi.toml", str(tasks / "ioi.toml")):
        assert task_name(given) == "ioi"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_standard_output_is_named() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "circuitdiscovery", "tasks"],
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    said = f"circuitdiscovery: standard output: {os.strerror(errno.ENOSPC)}\n"
    assert (done.returncode, done.stderr) == (2, said)


@pytest.mark.parametrize("closed", [[1], [2], [1, 2]])
def test_a_standard_stream_that_is_closed_is_written_to_nowhere(tmp_path: Path, closed: list[int]) -> None:
    """As `2>&-` closes it. Nothing that is opened later takes its place."""
    table = "clean,corrupted,correct,incorrect\none,two, a, b\n"
    (tmp_path / "mine.csv").write_text(table)
    code = "from circuitdiscovery.reporting.progress import say, stage\n"
    code += "from circuitdiscovery.cli.commands import cli\nfrom circuitdiscovery.cli.main import main\n"
    code += "import time\n@cli.command()\ndef slow():\n    with stage('it'), open('mine.csv', 'a'):\n"
    code += "        time.sleep(2.5)\n        say('said')\nmain({arguments})"
    for arguments, status in ((["slow"], 0), (["tasks"], 0), (["nothing"], 2)):
        done = subprocess.run(
            [sys.executable, "-c", code.format(arguments=arguments)],
            env=environment(),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            preexec_fn=lambda: [os.close(number) for number in closed],
        )
        assert done.returncode == status and "Traceback" not in done.stderr
        assert (1 in closed) <= (done.stdout == "") and (2 in closed) <= (done.stderr == "")
    assert (tmp_path / "mine.csv").read_text() == table


OTHER = {
    "method": "acdc",
    "ablation": "resample",
    "metric": None,
    "direction": "noising",
    "threshold": None,
    "edges": None,
    "split_qkv": True,
    "examples": None,
    "seed": 7,
    "dtype": "float32",
}


def test_names_take_hyphens_and_underscores(light: Call) -> None:
    """Whatever is spelled right gets as far as torch."""
    for spelled in (
        "--method eap_ig",
        "--method eap-ig",
        "--metric prob-diff",
        "--metric prob_diff",
        "--ablation mean-all --method eap",
    ):
        message = one_line(light("discover", "gpt2", "greater-than", *spelled.split()))
        assert "torch" in message, message


def test_the_lists_name_what_is_shipped(light: Call) -> None:
    tasks = light("tasks").out
    assert re.search(r"^ioi +Indirect object", tasks, re.MULTILINE)
    assert re.search(r"^  abc \(default\) +What .*\n  flip +Which ", tasks, re.MULTILINE)
    assert re.search(r"^toy +gpt2, \d+ layers of \d+ heads$", light("models").out, re.MULTILINE)
    graphs = light("graphs")
    assert graphs.status == 0, graphs.err
    for path in data_folder("graphs").glob("*/*.json"):
        assert f"{path.parent.name}/{path.stem} " in graphs.out


# ------------------------------------------------------------------- discover


def test_discover_finds_measures_draws_and_says_so(call: Call, tmp_path: Path) -> None:
    result = call("discover", "toy", "ioi")
    assert result.status == 0, result.err
    folder = tmp_path / "runs" / "toy-ioi-acdc"
    assert {path.name for path in folder.iterdir()} == FILES
    circuit, model = cd.load_circuit(folder / "circuit.json"), cd.load_model("toy")
    circuit.check_model(model)
    total = len(cd.Graph.from_model(model))
    assert 0 < len(circuit) <= 0.15 * total
    measured = json.loads((folder / "evaluation.json").read_text())
    assert cd.evaluate(model, cd.load_task("ioi", model), circuit).to_dict() == measured
    assert measured["part"] == "held_out" and measured["normalized"]["value"] >= 0.95
    assert ElementTree.parse(folder / "graph.svg").getroot().tag.endswith("svg")
    assert (folder / "graph.dot").read_text().lstrip().startswith("digraph")
    for shown in (
        f"{len(circuit)}",
        f"{len(circuit.pruned())}",
        f"{total}",
        "faithfulness",
        str(Path("runs") / folder.name),
        *FILES,
    ):
        assert shown in result.out
    record = json.loads((folder / "run.json").read_text())
    assert record["command"][0] == "circuitdiscovery"
    assert record["options"]["task"] == "ioi" and record["versions"]["torch"].startswith("2.")
    assert sum(record["summary"]["seconds"].values()) > 0


def test_the_same_call_twice_gives_the_same_bytes(call: Call, tmp_path: Path, finished: Path) -> None:
    for _ in range(2):
        assert call(*SMALL).status == 0
    first, second = tmp_path / "runs" / "toy-ioi-acdc", tmp_path / "runs" / "toy-ioi-acdc-2"
    assert contents(first) == contents(second) == contents(finished)
    assert all(str(tmp_path).encode() not in data for data in contents(first).values())


def test_json_stands_alone_on_standard_output(call: Call, tmp_path: Path) -> None:
    result = call(*SMALL, "--json", "--out", "here")
    summary = json.loads(result.out)
    circuit = json.loads((tmp_path / "here" / "circuit.json").read_text())
    assert (
        summary["edges"] == len(circuit["edges"]) == len(cd.load_circuit(tmp_path / "here" / "circuit.json"))
    )
    assert summary["evaluation"] == json.loads((tmp_path / "here" / "evaluation.json").read_text())
    assert summary["edges_pruned"] <= summary["edges"] <= summary["edges_total"]
    assert set(summary["files"]) == FILES


@pytest.mark.parametrize(
    ("method", "brief"),
    [
        ("eap", ""),
        ("eap-ig", ""),
        ("clean-corrupted", ""),
        ("exact", ""),
        ("hybrid", "--rounds 0"),
        ("edge-pruning", "--steps 20"),
        ("matryoshka", "--steps 20"),
        ("random", ""),
    ],
)
def test_methods_with_scores_keep_as_many_edges_as_asked(
    call: Call, tmp_path: Path, method: str, brief: str
) -> None:
    asked = ("--method", method, "--examples", "4", "--edges", "20", "--json", *brief.split())
    result = call("discover", "toy", "ioi", *asked)
    assert result.status == 0, result.err
    folder = tmp_path / "runs" / f"toy-ioi-{method}"
    assert {path.name for path in folder.iterdir()} == FILES | {"scores.safetensors"}
    circuit, scores = cd.load_circuit(folder / "circuit.json"), cd.Scores.load(folder / "scores.safetensors")
    assert len(circuit) == len(circuit.pruned()) == 20 and json.loads(result.out)["edges"] == 20
    reached = scores.top(20).pruned()  # of the highest alone, what lies on a path
    assert sum(abs(scores[edge]) for edge in circuit.edges) >= sum(
        abs(scores[edge]) for edge in reached.edges
    )


def test_fewer_edges_than_asked_for_are_told(call: Call, tmp_path: Path) -> None:
    """As many as there are on whole paths: none of one edge, where that from input to logits does nothing."""
    how = ("--method", "eap", "--examples", "1", "--measure", "none")
    some = call("discover", "toy", "ioi", *how, "--edges", "1", "--out", "one")
    assert some.status == 0 and len(cd.load_circuit(tmp_path / "one")) == 0
    assert "0 edges: --edges 1 is how many at most" in some.err
    assert "at most" not in call("discover", "toy", "ioi", *how, "--edges", "3", "--out", "three").err
    words = " ".join(call("discover", "--help").out.split())
    assert "at most N edges, all on whole paths" in words and "N edges of largest score" not in words


def test_trace_back_gives_its_circuit_at_a_threshold(call: Call, tmp_path: Path) -> None:
    asked = ("discover", "toy", "ioi", "--method", "trace-back", "--examples", "4", "--out", "a")
    assert "--edges is not for trace-back" in one_line(call(*asked, "--edges", "20"))
    assert call(*asked, "--threshold", "0.05").status == 0
    model = cd.load_model("toy")
    expected = cd.trace_back(model, cd.load_task("ioi", model, examples=4), threshold=0.05)
    assert 0 < len(expected) < 100 and cd.load_circuit(tmp_path / "a" / "circuit.json") == expected


def test_group_testing_is_acdc_s(call: Call, tmp_path: Path) -> None:
    asked = ("discover", "toy", "ioi", "--examples", "4", "--threshold", "0.05", "--group-testing")
    assert "--group-testing is not for eap" in one_line(call(*asked, "--method", "eap"))
    assert call(*asked, "--out", "a").status == 0
    model = cd.load_model("toy")
    expected = cd.acdc(model, cd.load_task("ioi", model, examples=4), threshold=0.05, group_testing=True)
    found = cd.load_circuit(tmp_path / "a" / "circuit.json")
    assert found == expected and found.info["options"]["group_testing"] is True
    options = Options(model="toy", task="ioi", how={"group_testing": True})
    assert (
        options.resume_command(tmp_path)
        == f"circuitdiscovery discover toy ioi --group-testing --out {tmp_path} --resume"
    )


def test_a_threshold_keeps_the_scores_from_it_on(call: Call, tmp_path: Path) -> None:
    assert (
        call(
            "discover", "toy", "ioi", "--method", "eap", "--examples", "4", "--threshold", "0.1", "--out", "a"
        ).status
        == 0
    )
    scores = cd.Scores.load(tmp_path / "a" / "scores.safetensors")
    expected = {edge for edge in scores.graph.edges if abs(scores[edge]) >= 0.1}
    assert 0 < len(expected) < len(scores.graph)
    assert set(cd.load_circuit(tmp_path / "a" / "circuit.json").edges) == expected


def test_without_either_a_tenth_of_the_edges_is_kept(call: Call) -> None:
    summary = json.loads(call("discover", "toy", "ioi", "--method", "eap", "--examples", "4", "--json").out)
    assert summary["edges"] == round(summary["edges_total"] / 10)


@pytest.mark.parametrize("how", [{"direction": "denoising"}, {"ablation": "zero"}], ids=["denoising", "zero"])
def test_options_reach_the_search(call: Call, tmp_path: Path, how: dict[str, Any]) -> None:
    options = [
        *(word for name, value in how.items() for word in (f"--{name}", value)),
        "--metric",
        "prob-diff",
        "--no-split-qkv",
        "--seed",
        "3",
        "--batch-size",
        "2",
    ]
    assert (
        call("discover", "toy", "ioi", "--method", "eap", "--examples", "4", "--out", "a", *options).status
        == 0
    )
    circuit = cd.load_circuit(tmp_path / "a" / "circuit.json")
    model = cd.load_model("toy")
    task = cd.load_task("ioi", model, examples=4, seed=3)
    scores = cd.eap(model, task, metric="prob_diff", split_qkv=False, batch_size=2, **how)
    assert circuit == scores.best(len(circuit))
    assert "<q>" not in "".join(circuit.edges)


def test_more_edges_than_there_are_is_one_line_and_leaves_nothing(call: Call, tmp_path: Path) -> None:
    message = one_line(
        call("discover", "toy", "ioi", "--method", "random", "--examples", "4", "--edges", "1000000")
    )
    assert "1000000" in message and str(len(cd.load_model("toy").graph)) in message
    assert not [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]


def test_a_device_that_is_not_there_is_one_line(call: Call) -> None:
    assert "cuda:99" in one_line(call("discover", "toy", "ioi", "--device", "cuda:99"))


@pytest.mark.parametrize(
    "command",
    [
        "universal toy toy --task ioi --circuit nope.json --circuit nope.json",
        "universal toy toy --task ioi --circuit gpt2/ioi --circuit nope",
        "explain gpt2/ioi --model toy --task ioi --dictionary nope",
        "neuron toy m2/f3 ioi --dictionary nope",
    ],
)
def test_a_file_that_is_not_there_is_told_before_a_model_is_loaded(
    call: Call, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    for module in (cd, load):
        monkeypatch.setattr(module, "load_model", lambda *_, **__: pytest.fail("was loaded"), raising=False)
    assert "nope" in one_line(call(*command.split()))


def test_only_an_end_of_line_ends_a_text(call: Call, tmp_path: Path) -> None:
    """Not what Unicode calls a boundary inside of a line: U+2028, a form feed, NEL."""
    lines = ["The keys\u2028on the\x0ctable\x85are small.", "There is a dog."]
    (tmp_path / "texts.txt").write_bytes("\r\n\n".join([*lines, ""]).encode())
    assert prompts.documents(str(tmp_path / "texts.txt")) == lines


def test_a_table_of_ones_own(call: Call, tmp_path: Path) -> None:
    model = cd.load_model("toy")
    decode = model.tokenizer.decode
    lines = [
        ",".join(
            ['"' + decode(prompt) + '"' for prompt in (e.clean, e.corrupted)]
            + [" " + decode(a).strip() for a in (e.correct, e.incorrect)]
        )
        for e in cd.load_task("ioi", model, examples=4).examples
    ]
    (tmp_path / "mine.csv").write_text("clean,corrupted,correct,incorrect\n" + "\n".join(lines) + "\n")
    result = call("discover", "toy", "mine.csv", "--method", "eap", "--json")
    assert result.status == 0, result.err
    assert Path(json.loads(result.out)["folder"]) == Path("runs/toy-mine-eap")
    again = call("evaluate", "runs/toy-mine-eap/circuit.json", "--json")
    assert json.loads(again.out) == json.loads(result.out)["evaluation"]


# ------------------------------------------------------- stopped, and gone on with


def stop(patch: pytest.MonkeyPatch, after: int) -> None:
    """Ctrl-C when the search begins with its receiver number `after`."""
    decide, count = acdc._Search.decide, iter(range(1, 10_000))

    def decide_or_stop(*arguments: Any) -> Any:
        if next(count) == after:
            raise KeyboardInterrupt
        return decide(*arguments)

    patch.setattr(acdc._Search, "decide", decide_or_stop)


@pytest.mark.parametrize("after", [1, 2, 20])
def test_an_interrupted_search_resumes_to_the_same_circuit(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: Path, after: int
) -> None:
    with monkeypatch.context() as patch:
        stop(patch, after)
        stopped = call(*SMALL)
    assert stopped.status == 130
    assert "Traceback" not in stopped.err and stopped.out == ""
    folder = tmp_path / "runs" / "toy-ioi-acdc"
    assert {path.name for path in folder.iterdir()} == {"run.json"} | (
        {"search.state"} if after > 1 else set()
    )
    command = shlex.split(stopped.err.strip().splitlines()[-1].partition(": ")[2])
    assert command[0] == "circuitdiscovery" and command[-1] == "--resume"
    resumed = call(*command[1:])
    assert resumed.status == 0, resumed.err
    assert contents(folder) == contents(finished)
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"toy-ioi-acdc"}


def test_a_run_that_is_stopped_before_it_searches_goes_on_too(
    call: Call, monkeypatch: pytest.MonkeyPatch, finished: Path
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "load", interrupted)
        stopped = call(*SMALL, "--out", "here")
    assert stopped.status == 130
    assert os.listdir("here") == ["run.json"]
    resumed = call(*shlex.split(stopped.err.strip().splitlines()[-1].partition(": circuitdiscovery ")[2]))
    assert resumed.status == 0, resumed.err
    assert contents(Path("here")) == contents(finished)


def test_the_resumed_search_does_not_begin_again(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    decide, decided = acdc._Search.decide, []
    with monkeypatch.context() as patch:
        stop(patch, 20)
        assert call(*SMALL).status == 130
    with monkeypatch.context() as patch:
        patch.setattr(
            acdc._Search, "decide", lambda *arguments: (decided.append(arguments[1]), decide(*arguments))[1]
        )
        assert call(*SMALL, "--resume").status == 0
    assert len(decided) == len(cd.load_model("toy").graph.receivers) - 19


LATE = """
import atexit, os, signal
from circuitdiscovery.cli.commands import cli
from circuitdiscovery.cli.main import main
class Late:
    def __del__(self, kill=os.kill, me=os.getpid(), number=signal.{name}):
        kill(me, number)
late = Late()  # goes with the interpreter
@cli.command()
def last():
    atexit.register(os.kill, os.getpid(), signal.{name})  # as what is imported while it runs has things to do at exit
main(["last"])
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_after_the_end_changes_nothing(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LATE.format(name=name)],
        env=environment(),
        capture_output=True,
        text=True,
        preexec_fn=heard,
    )
    assert (done.returncode, done.stderr) == (0, "")


def heard() -> None:
    """SIGINT is heard, which a shell's background jobs ignore."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("signal_", [signal.SIGTERM, signal.SIGKILL])
def test_a_real_signal_in_the_middle(
    call: Call,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    finished: Path,
    signal_: signal.Signals,
) -> None:
    folder = tmp_path / "runs" / "toy-ioi-acdc"
    with monkeypatch.context() as patch:
        patch.setattr(state, "SAVE_SECONDS", 0.0)
        process = Forked(lambda: cli.main([*SMALL]), tmp_path, tmp_path_factory.mktemp("said"))
    while not (folder / "search.state").exists():
        time.sleep(0.002)
    os.kill(process.pid, signal_)
    stopped_and_goes_on(call, process.ended(), signal_, folder, finished)


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_ctrl_c_in_a_fresh_interpreter(call: Call, tmp_path: Path, finished: Path) -> None:
    """What Python does at its own exit changes neither the status nor what was said."""
    folder = tmp_path / "runs" / "toy-ioi-acdc"
    process = subprocess.Popen(
        [sys.executable, "-c", BRIEF, *SMALL],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heard,
    )
    while process.poll() is None and not (folder / "search.state").exists():
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    stopped_and_goes_on(call, Result(process.returncode, out, err), signal.SIGINT, folder, finished)


def test_ctrl_c_while_an_object_is_thrown_away(tmp_path: Path) -> None:
    """Python shows what a `__del__` raises as ignored and goes on, with Ctrl-C too."""
    script = (
        "import signal, time\n"
        "from circuitdiscovery.cli import main, run\n"
        "class Thrown:\n"
        "    def __del__(self):\n"
        "        signal.raise_signal(signal.SIGINT)\n"
        "def begun(*given, **how):\n"
        "    Thrown()\n"
        "    time.sleep(5)\n"
        "    print('it went on')\n"
        "run._check_wheels = begun\n"
        "main.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *SMALL],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (130, "") and "Traceback" not in done.stderr, done


def stopped_and_goes_on(
    call: Call, stopped: Result, by: signal.Signals, folder: Path, finished: Path
) -> None:
    assert "Traceback" not in stopped.err and stopped.out == ""
    if by == signal.SIGKILL:
        assert stopped.status == -by
    else:
        assert stopped.status == 130
        assert "--resume" in stopped.err
    assert (folder / "search.state").exists()
    done = call(*SMALL, "--resume")
    assert done.status == 0, done.err
    assert contents(folder) == contents(finished)


def test_resuming_a_finished_run_does_nothing(
    call: Call, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.iterdir()}
    monkeypatch.setattr(run, "load", None)  # whoever calls it fails
    result = call(*SMALL, "--out", finished, "--resume", "--json")
    assert result.status == 0, result.err
    assert json.loads(result.out)["edges"] == len(cd.load_circuit(finished / "circuit.json"))
    assert {path: path.stat().st_mtime_ns for path in finished.iterdir()} == before


def test_resume_refuses_other_options(call: Call, finished: Path) -> None:
    message = one_line(
        call(
            "discover", "toy", "ioi", "--examples", "4", "--threshold", "0.06", "--out", finished, "--resume"
        )
    )
    assert "threshold" in message and "0.05" in message and "0.06" in message


# ----------------------------------------------------------------- a full disk


@pytest.mark.parametrize("file", ["run.json", "search.state", "circuit.json"])
def test_a_full_disk_is_one_line_and_nothing_half_written_stays(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: Path, file: str
) -> None:
    write = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if file not in path.name:
            return write(path, data)
        write(path, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        message = one_line(call(*SMALL, "--out", "out"))
    assert f"out/{file}" in message and "No space left on device" in message
    left = {path.name for path in (tmp_path / "out").iterdir()} if (tmp_path / "out").exists() else set()
    if file in ("run.json", "search.state"):
        assert left == set()
        return
    assert left == {"run.json", "search.state"}  # test_run.py has the files that come later
    assert (
        "; stopped while searching; the search so far is in out; go on with: circuitdiscovery discover "
        "toy ioi --"
    ) in message
    assert call(*SMALL, "--out", "out", "--resume").status == 0
    assert contents(tmp_path / "out") == contents(finished)


def test_a_disk_that_is_really_full(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The system refuses files of more than two kilobytes."""

    asked = ["discover", "toy", "ioi", "--method", "random", "--examples", "2", "--edges", "50"]

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))
        cli.main(asked)

    message = one_line(Forked(limited, tmp_path, tmp_path_factory.mktemp("said")).ended())
    assert "runs/toy-ioi-random/" in message and os.strerror(errno.EFBIG) in message
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


# --------------------------------------------------- evaluate, compare, draw


def test_evaluate_gives_what_discover_gave(call: Call, finished: Path) -> None:
    result = call("evaluate", finished / "circuit.json", "--json")
    assert result.status == 0, result.err
    assert json.loads(result.out) == json.loads((finished / "evaluation.json").read_text())


def test_evaluate_knows_the_search_from_the_circuit_alone(call: Call, finished: Path, tmp_path: Path) -> None:
    (tmp_path / "moved.json").write_bytes((finished / "circuit.json").read_bytes())
    result = call("evaluate", "moved.json", "--json")
    assert json.loads(result.out) == json.loads((finished / "evaluation.json").read_text())


def test_a_counterfactual_goes_from_the_search_to_the_circuit_and_its_evaluation(
    call: Call, tmp_path: Path
) -> None:
    """The circuit alone knows which question it answers, and another question is another number."""
    options = ("--method", "eap", "--edges", "60", "--examples", "4", "--json")
    found = {
        name: json.loads(
            call("discover", "toy", "ioi", *options, "--counterfactual", name, "--out", name).out
        )
        for name in ("abc", "flip")
    }
    for name in found:
        assert json.loads((tmp_path / name / "circuit.json").read_text())["counterfactual"] == name
        assert json.loads((tmp_path / name / "run.json").read_text())["options"]["counterfactual"] == name
    (tmp_path / "alone.json").write_bytes((tmp_path / "flip" / "circuit.json").read_bytes())
    measured = json.loads(call("evaluate", "alone.json", "--json").out)
    assert measured["faithfulness"] == found["flip"]["evaluation"]["faithfulness"]
    other = json.loads(call("evaluate", "alone.json", "--counterfactual", "abc", "--json").out)
    assert other["empty"] != measured["empty"] == found["flip"]["evaluation"]["empty"]
    assert other["empty"] == found["abc"]["evaluation"]["empty"]
    assert call("evaluate", "alone.json", "--task", "induction").status == 0  # flip was ioi's


def test_a_run_with_a_method_and_a_metric_of_ones_own_is_measured(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another process, which has not imported them: a file's words are no reason to do so."""
    (tmp_path / "bymine.py").write_text(
        "import circuitdiscovery as cd\n\ndef mine(model, task):\n    return cd.eap(model, task)\n\n"
        "def top(logits, task):\n    return logits.amax(-1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    how = ("--method", "bymine:mine", "--examples", "2", "--edges", "60", "--measure", "none")

    def another_process() -> None:
        registry.METHODS.pop("bymine:mine", None)
        registry.METRICS.pop("bymine:top", None)

    assert call("discover", "toy", "ioi", *how, "--out", "one").status == 0
    assert call("discover", "toy", "ioi", *how, "--metric", "bymine:top", "--out", "two").status == 0
    another_process()
    for command in (("evaluate", "one", "--measure", "quick"), ("transfer", "one", "two")):
        assert call(*command, "--json").status == 0
    for command in (("evaluate", "two", "--measure", "quick"), ("explain", "two")):
        told = one_line(call(*command))
        assert "is 'bymine:top', which is your own: give it again with --metric" in told
    for metric in ("bymine:top", "logit-diff"):
        another_process()
        done = call("evaluate", "two", "--measure", "quick", "--metric", metric, "--json")
        assert json.loads(done.out)["metric"] == metric.replace("-", "_")
    another_process()


def test_the_cards_of_a_circuit_by_denoising_are_of_noising(call: Call) -> None:
    how = ("--method", "eap", "--examples", "4", "--edges", "20", "--measure", "none")
    assert call("discover", "toy", "ioi", *how, "--direction", "denoising", "--out", "one").status == 0
    said = call("explain", "one", "--ablation", "zero", "--effort", "quick")
    assert "zero ablation, noising" in said.out.splitlines()[0], said


def test_evaluate_takes_other_options(call: Call, finished: Path) -> None:
    result = call(
        "evaluate",
        finished / "circuit.json",
        "--ablation",
        "mean",
        "--examples",
        "4",
        "--metric",
        "prob-diff",
        "--json",
    )
    model = cd.load_model("toy")
    task = cd.load_task("ioi", model, examples=6)  # as the search: the fifth and the sixth were searched on
    assert task.held_out is not None
    expected = cd.evaluate(
        model,
        replace(task, held_out=task.held_out.select(range(4))),
        cd.load_circuit(finished / "circuit.json"),
        ablation="mean",
        metric="prob_diff",
    )
    assert json.loads(result.out) == expected.to_dict()


def test_evaluate_prints_for_people(call: Call, finished: Path) -> None:
    result = call("evaluate", finished / "circuit.json", "--examples", "4")
    assert result.status == 0 and "faithfulness" in result.out


def test_a_circuit_of_another_model_names_both(call: Call, finished: Path, tmp_path: Path) -> None:
    text = (finished / "circuit.json").read_text()
    digest = (
        json.loads(text)["model"]["digest"] if "model" in json.loads(text) else cd.load_model("toy").digest
    )
    (tmp_path / "other.json").write_text(text.replace(digest, "0" * len(digest)))
    message = one_line(call("evaluate", "other.json"))
    assert "toy" in message


def test_compare_with_itself_and_with_another(call: Call, finished: Path, tmp_path: Path) -> None:
    circuit = cd.load_circuit(finished / "circuit.json")
    cd.Circuit.from_edges(circuit.graph, circuit.edges[: len(circuit) // 2]).save(tmp_path / "half.json")
    same = call("compare", finished / "circuit.json", finished / "circuit.json")
    assert same.status == 0 and same.out.strip()
    result = json.loads(call("compare", finished / "circuit.json", "half.json", "--json").out)
    half = (len(circuit) // 2) / len(circuit)
    assert result["edges"]["jaccard"] == pytest.approx(half)
    assert result["edges"]["precision"] == pytest.approx(half)
    assert result["edges"]["recall"] == 1


@pytest.mark.parametrize(
    ("suffix", "starts"), [("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF"), ("dot", b"digraph")]
)
def test_draw_writes_every_format(
    call: Call, finished: Path, tmp_path: Path, suffix: str, starts: bytes
) -> None:
    assert call("draw", finished / "circuit.json", "-o", f"picture.{suffix}").status == 0
    assert (tmp_path / f"picture.{suffix}").read_bytes().lstrip().startswith(starts)


def test_draw_takes_a_number_of_edges_or_all(call: Call, tmp_path: Path) -> None:
    for given, says in (
        ((), "60 of 963 edges shown"),
        (("--max-edges", "7"), "7 of 963 edges shown"),
        (("--max-edges", "all"), None),
    ):
        assert call("draw", "gpt2/ioi", "-o", "a.dot", *given).status == 0
        text = (tmp_path / "a.dot").read_text("utf-8")
        assert says in text if says else "shown" not in text and text.count("tooltip=") > 963


def test_draw_colours_the_roles_that_a_run_found(call: Call, finished: Path, tmp_path: Path) -> None:
    cards = json.loads((finished / "explanation.json").read_text("utf-8"))["cards"]
    roles = {card["role"] for card in cards.values()} - {None}
    assert call("draw", finished / "circuit.json", "-o", "a.dot").status == 0
    assert roles and all(role in (tmp_path / "a.dot").read_text("utf-8") for role in roles)
    shutil.copy(finished / "circuit.json", tmp_path)
    (tmp_path / "explanation.json").write_text('{"cards": {"m0": {}}}')
    assert (
        "explanation.json: the field 'cards.m0.role' is missing"
        in call("draw", "circuit.json", "-o", "a.dot").err
    )


# -------------------------------------------------------------------- report


def test_an_older_runs_folder_gets_the_same_page(call: Call, finished: Path, tmp_path: Path) -> None:
    """Without what an older version did not write, everything is computed again, to the same bytes."""
    shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns(*EXPLAINED))
    result = call("report", "run")
    assert (result.status, result.out) == (0, "run/report.html\n"), result.err
    assert contents(tmp_path / "run") == contents(finished)


def test_an_older_run_with_scores_gets_its_curve(call: Call, tmp_path: Path) -> None:
    assert call("discover", "toy", "ioi", "--method", "eap-ig", "--examples", "4", "--out", "run").status == 0
    before = contents(tmp_path / "run")
    for name in EXPLAINED:
        (tmp_path / "run" / name).unlink()
    evaluation = json.loads(before["evaluation.json"])
    curve = evaluation.pop("curve")
    (tmp_path / "run" / "evaluation.json").write_text(json.dumps(evaluation))
    assert call("report", "run", "-o", "page.html").out == "page.html\n"
    assert not EXPLAINED & set(os.listdir(tmp_path / "run"))  # only the file that was asked for is written
    assert (tmp_path / "page.html").read_bytes() == before["report.html"]
    assert call("report", "run").status == 0
    known = json.loads((tmp_path / "run" / "report.json").read_bytes())["curve"]
    assert known == {"ranking": "scores"} | {
        name: curve[name] for name in ("edges", "normalized", "cpr", "cmd", "area", "distance")
    }


def test_the_page_of_a_finished_run_needs_no_model(
    call: Call, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "load_model", None)  # whoever calls it fails
    assert call("report", finished, "-o", "page.html").status == 0
    assert (tmp_path / "page.html").read_bytes() == (finished / "report.html").read_bytes()


def test_weights_that_changed_are_refused(call: Call, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    text = (finished / "circuit.json").read_text()
    digest = json.loads(text)["model"]["digest"]
    (tmp_path / "run" / "circuit.json").write_text(text.replace(digest, "0" * len(digest)))
    message = one_line(call("report", "run"))
    assert "toy (weights 000000000000)" in message and digest[:12] in message
    assert (tmp_path / "run" / "report.html").read_bytes() == (finished / "report.html").read_bytes()


def test_the_drawing_has_the_roles_and_the_circuit_has_not(finished: Path) -> None:
    cards = json.loads((finished / "explanation.json").read_text())["cards"]
    roles = {card["role"] for card in cards.values() if card["role"]}
    for name in ("graph.svg", "graph.dot"):
        text = html.unescape((finished / name).read_text("utf-8"))
        assert roles and all(role in text for role in roles), name
    assert "roles" not in json.loads((finished / "circuit.json").read_text())


def test_a_circuit_without_scores_stands_beside_the_curve_of_eap_ig(finished: Path) -> None:
    model = cd.load_model("toy")
    task = cd.load_task("ioi", model, examples=6)
    curve = cd.curve(model, task, cd.eap_ig(model, task))
    known = json.loads((finished / "report.json").read_bytes())["curve"]
    assert known["ranking"] == "eap_ig" and known["edges"] == list(curve.edges)
    assert [each["value"] for each in known["normalized"]] == pytest.approx(list(curve.normalized), abs=1e-5)
    for name in ("cpr", "cmd", "area", "distance"):
        assert known[name]["value"] == pytest.approx(getattr(curve, name), abs=1e-5)


def test_the_prompts_are_what_the_model_and_the_circuit_say(finished: Path) -> None:
    """The model's side by Hugging Face; the circuit's by a run of its own."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = data_folder("models") / "toy"
    bridge, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    model = cd.load_model("toy")
    task = cd.load_task("ioi", model, examples=6).held_out
    assert task is not None
    kept = cd.run_circuit(model, task, cd.load_circuit(finished / "circuit.json"))
    rows = json.loads((finished / "report.json").read_bytes())["prompts"]
    assert len(rows) == len(task) == 6
    for row, example, circuit in zip(rows, task.examples, kept, strict=True):
        with torch.no_grad():
            logits = bridge(torch.tensor([example.clean])).logits[0, example.position]
        assert row["text"] == tokenizer.decode(example.clean)
        for side, values in (("full", logits), ("circuit", circuit)):
            probability, top = values.softmax(-1).max(-1)
            assert row[side]["token"] == tokenizer.decode([int(top)])
            assert row[side]["probability"] == pytest.approx(float(probability), abs=1e-4)
            assert row[side]["logit_diff"] == pytest.approx(
                float(values[example.correct[0]] - values[example.incorrect[0]]), abs=1e-3
            )
            assert row[side]["right"] == (int(top) == example.correct[0])
        assert row["agree"] == (int(logits.argmax()) == int(circuit.argmax()))


def test_the_page_of_a_real_run_says_what_its_files_say(finished: Path) -> None:
    text = (finished / "report.html").read_text("utf-8")
    explanation, evaluation = (
        json.loads((finished / f"{name}.json").read_bytes()) for name in ("explanation", "evaluation")
    )
    circuit = cd.load_circuit(finished / "circuit.json")
    assert (
        set(explanation["cards"])
        == set(circuit.nodes) - {"input", "logits"}
        == set(re.findall(r'id="card-([^"]+)"', text))
    )
    assert set(re.findall(r'data-edge="([^"]+)"', text)) == {
        edge.replace("<", "&lt;").replace(">", "&gt;") for edge in circuit.edges
    }
    assert f"{evaluation['normalized']['value']:.0%} [".replace("-", "\N{MINUS SIGN}") in text
    assert len(text) < 1_500_000
    evidence = [sentence for card in explanation["cards"].values() for sentence in card["evidence"]]
    assert evidence and all(
        html.escape(sentence, quote=False) in text.replace("&#39;", "'").replace("&#34;", '"')
        for sentence in evidence
    )


def test_a_table_of_ones_own_has_a_page_without_paths(call: Call, tmp_path: Path) -> None:
    lines = ["clean,corrupted,correct,incorrect"]
    lines += [
        f"Then {a} met {b} and {a} met,Then {a} met {b} and {b} met, {b}, {a}"
        for a, b in (("Amy", "Jim"), ("Kate", "Paul")) * 4
    ]
    (tmp_path / "mine.csv").write_text("\n".join(dict.fromkeys(lines)) + "\n")
    assert call("discover", "toy", "mine.csv", "--method", "eap", "--out", "run").status == 0
    text = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "circuitdiscovery discover toy ./mine.csv --method eap" in text
    assert str(tmp_path) not in text and str(tmp_path) not in (
        tmp_path / "run" / "explanation.json"
    ).read_text("utf-8")


def test_a_bug_of_ours_is_one_line_too(call: Call, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr("circuitdiscovery.cli.commands.about_circuits.load_unseen", fail)
    assert "ZeroDivisionError: two lines" in one_line(call("evaluate", finished / "circuit.json"))
    monkeypatch.setenv("CIRCUITDISCOVERY_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        cli.main(["evaluate", str(finished / "circuit.json")])
