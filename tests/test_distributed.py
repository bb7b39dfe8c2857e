"""Two processes over gloo give what one gives, to 1e-5 of the largest, and both the same bits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
from forked import Forked, as_torchrun
from tiny import VOCABULARY, random_prompts, save_tiny
from torch import Tensor

import circuitdiscovery as cd
from circuitdiscovery.cli import main as cli
from circuitdiscovery.engine import distributed
from circuitdiscovery.engine import state as state_file
from circuitdiscovery.engine.metrics import clean_logits
from circuitdiscovery.engine.setup import Setup, batches
from circuitdiscovery.measure import criteria, evaluation
from circuitdiscovery.search import alternatives

ROOT = Path(cd.__file__).parents[1]
Results = dict[str, np.ndarray]


def mixed(*counts: int, seed: int = 0) -> cd.Task:
    """So many random prompts of 4 tokens, of 5, of 6, ..., in an order that mixes the lengths."""
    parts = [random_prompts(VOCABULARY, count, 4 + i, seed + i) for i, count in enumerate(counts)]
    rows: dict[str, list[Any]] = {
        name: [row for part in parts for row in getattr(part, name).tolist()] for name in vars(parts[0])
    }
    order = np.random.default_rng(seed).permutation(sum(counts)).tolist()
    others = tuple(
        example
        for length in range(3)
        for example in random_prompts(VOCABULARY, 2, 4 + length, 50).task.examples
    )
    task = cd.Task.from_tokens(**{name: [values[row] for row in order] for name, values in rows.items()})
    return replace(task, others=others)  # which means are over too


TASKS = {
    "odd": replace(mixed(4, 3), held_out=mixed(2, 3, seed=10)),  # an odd number of examples, of two lengths
    "one": mixed(1),  # a process more than examples
}


SMALL = (
    (alternatives, "TOKENS", {"cpu": 24}),  # room for 2 alternatives in one process and for 3 in the other
    (evaluation, "GREEDY_EXAMPLES", 1),  # which one of the processes has
    (criteria, "GREEDY_NODES", 2),
    (criteria, "RANDOM_SETS", 3),
)


def margin(logits: Tensor, task: Any) -> Tensor:
    """A metric of the user's own: [examples]."""
    correct = torch.tensor([example.correct[0] for example in task.examples])
    return logits.gather(-1, correct[:, None])[:, 0] - logits.logsumexp(-1)


def measured(model: Any) -> Results:
    """Everything that shares work, on each of the tasks, by name."""
    found: Results = {}
    with ExitStack() as stack:
        for module, constant, value in SMALL:
            stack.enter_context(mock.patch.object(module, constant, value))
        for name, task in TASKS.items():
            found |= {f"{name} {what}": np.asarray(value) for what, value in _measured(model, task)}
    return found


def _measured(model: Any, task: cd.Task) -> Iterator[tuple[str, Any]]:
    scores = cd.eap_ig(model, task, steps=2, metric="kl_divergence")
    circuit = scores.top(len(scores.graph) // 3)
    yield "eap_ig", scores.values
    yield "eap", cd.eap(model, task, metric=margin, batch_size=2).values
    yield "clean_corrupted", cd.clean_corrupted(model, task, ablation="mean").values
    yield "exact", cd.exact(model, task).values
    yield "exact denoising", cd.exact(model, task, direction="denoising", batch_size=1).values
    yield "exact node", list(cd.exact(model, task, level="node", metric=margin).values())
    pruned = cd.acdc(model, task, threshold=0.02)
    assert pruned.scores is not None and 0 < len(pruned) < len(pruned.graph)
    yield "acdc edges", pruned.mask
    yield "acdc", np.nan_to_num(pruned.scores)
    for ablation in ("resample", "mean", "mean_all", "zero", "noise", "random"):
        yield f"run_circuit {ablation}", cd.run_circuit(model, task, circuit, ablation=ablation)
    given = cd.replacements(model, task, ablation="noise", seed=3)
    yield "run_circuit given", cd.run_circuit(model, task, circuit, ablation=given)
    yield "run_circuit denoising", cd.run_circuit(model, task, circuit, direction="denoising", batch_size=1)
    yield "clean_logits", clean_logits(model, task)
    yield "cases", alternatives.cases(Setup.of(model, task, model.graph, ablation="zero"))[1]
    for field, value in cd.evaluate(model, task, circuit, ablation="mean", scores=scores).to_dict().items():
        numbers, words = _leaves(value)
        if numbers:
            yield f"evaluate {field}", numbers
        if words:
            yield f"evaluate {field} words", words


def _leaves(value: Any) -> tuple[list[float], list[str]]:
    """(the numbers, the words) of a JSON value, in order."""
    if isinstance(value, dict | list):
        pairs = [_leaves(each) for each in (value.values() if isinstance(value, dict) else value)]
        return [number for numbers, _ in pairs for number in numbers], [
            word for _, words in pairs for word in words
        ]
    return ([], [str(value)]) if isinstance(value, str | None) else ([float(value)], [])


class Stopped(Exception):
    """A search was interrupted."""


def stop_halfway(done: int, total: int) -> None:
    if 2 * done > total:
        raise Stopped


def resumed(model: Any, state: Path) -> np.ndarray:
    """The edges of a search that was stopped and resumed from its state."""
    with mock.patch.object(state_file, "SAVE_SECONDS", 0.0), pytest.raises(Stopped):
        cd.acdc(model, TASKS["odd"], threshold=0.02, state=state, progress=stop_halfway)
    first: list[int] = []
    circuit = cd.acdc(
        model, TASKS["odd"], threshold=0.02, state=state, progress=lambda done, _: first.append(done)
    )
    assert 2 * first[0] > len(circuit.graph)
    return circuit.mask


def one_of_two(number: int, source: Path, folder: Path) -> None:
    """What each of two processes does: leaves `<number>.npz`."""
    torch.set_num_threads(1)
    meet = f"file://{folder / 'meet'}"
    dist.init_process_group("gloo", init_method=meet, rank=number, world_size=2, timeout=timedelta(minutes=1))
    model = cd.load_model(source)
    found = measured(model)
    for name, task in TASKS.items():
        found[f"{name} rows"] = np.array(
            [row for batch in batches(model, model.graph, task, 2) for row in batch.rows.tolist()], dtype=int
        )
    state = folder / f"state-{number}.json"
    found["resumed"] = resumed(model, state)
    with pytest.raises(
        cd.CircuitDiscoveryError, match=r"state-0.json: the state of another search \(.*threshold"
    ):
        cd.acdc(model, TASKS["odd"], threshold=0.03, state=state)
    np.savez(folder / f"{number}.npz", **found)  # pyright: ignore[reportArgumentType]
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 of two layers of two heads: what is shared does not depend on how many there are."""
    return save_tiny(tmp_path_factory.mktemp("small"), "gpt2", n_layer=2, n_head=2)


@pytest.fixture(scope="module")
def two(small: Path, folder: Path) -> list[Results]:
    """What each of two processes found."""
    said = [folder / "said" / str(number) for number in range(2)]
    processes = []
    for number, words in enumerate(said):
        words.mkdir(parents=True)
        processes.append(Forked(partial(one_of_two, number, small, folder), folder, words))
    for result in [process.ended() for process in processes]:
        assert result.status == 0, result.err
    return [dict(np.load(folder / f"{number}.npz")) for number in range(2)]


@pytest.mark.slow
def test_two_processes_give_what_one_gives(small: Path, two: list[Results]) -> None:
    one = measured(cd.load_model(small))
    assert set(one) <= set(two[0])
    relative: dict[str, float] = {}
    for name, expected in one.items():
        if expected.dtype.kind in "US" or name.endswith("edges"):
            assert np.array_equal(two[0][name], expected), name
        else:
            relative[name] = float(np.abs(two[0][name] - expected).max() / (np.abs(expected).max() or 1))
    assert not {name: value for name, value in relative.items() if not value <= 1e-5}


@pytest.mark.slow
def test_both_have_the_same_bits(two: list[Results]) -> None:
    assert all(
        two[1][name].tobytes() == value.tobytes()
        for name, value in two[0].items()
        if not name.endswith("rows")
    )


@pytest.mark.slow
def test_every_example_runs_in_one_process(two: list[Results]) -> None:
    for name, task in TASKS.items():
        rows = [results[f"{name} rows"].tolist() for results in two]
        assert sorted(rows[0] + rows[1]) == list(range(len(task)))
        assert 0 <= len(rows[0]) - len(rows[1]) <= 1


@pytest.mark.slow
def test_a_search_is_saved_by_the_first_process_and_resumed_by_both(two: list[Results], folder: Path) -> None:
    assert np.array_equal(two[0]["resumed"], two[0]["odd acdc edges"])
    assert (folder / "state-0.json").exists() and not (folder / "state-1.json").exists()


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_shares_are_balanced(processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    task = mixed(3, 4, 4)
    monkeypatch.setattr(distributed, "world_size", lambda: processes)
    shares = []
    for number in range(processes):
        monkeypatch.setattr(distributed, "rank", lambda number=number: number)
        shares.append(distributed.share(task))
    assert sorted(row for rows in shares for row in rows) == list(range(len(task)))
    tokens = [sum(len(task.examples[row].clean) for row in rows) for rows in shares]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    # one prompt, and the difference of the longest and the shortest
    assert max(tokens) - min(tokens) <= 6 + 2


# ------------------------------------------------------------ the command line


DISCOVER = ("discover", "toy", "ioi", "--examples", "3", "--threshold", "0.05", "--json")


def torchrun(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A script or module in two processes."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    launch = (
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    )
    return subprocess.run(
        [sys.executable, *launch, *arguments], capture_output=True, text=True, cwd=cwd, env=environment
    )


@pytest.mark.slow
def test_torchrun_discovers_what_one_process_discovers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / "1", tmp_path / "2"]
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # this process keeps its own
    with pytest.raises(SystemExit, match="0"):
        cli.main([*DISCOVER, "--out", str(folders[0])])
    result = torchrun(tmp_path, "-m", "circuitdiscovery", *DISCOVER, "--out", "2")
    assert result.returncode == 0, result.stderr
    # printed once, or it were no JSON
    one, two = (json.loads(out) for out in (capsys.readouterr().out, result.stdout))
    assert (
        {path.name for path in folders[0].iterdir()}
        == {path.name for path in folders[1].iterdir()}
        == set(two["files"])
    )
    assert {path.name for path in tmp_path.iterdir()} == {"1", "2"}
    assert [json.loads((folder / "run.json").read_text())["processes"] for folder in folders] == [1, 2]
    masks = [cd.load_circuit(folder / "circuit.json").mask for folder in folders]
    assert np.array_equal(masks[0], masks[1])
    for field, value in one["evaluation"].items():
        numbers, words = _leaves(value)
        assert words == _leaves(two["evaluation"][field])[1]
        assert np.allclose(
            numbers,
            _leaves(two["evaluation"][field])[0],
            rtol=0,
            atol=1e-5 * max(map(abs, numbers), default=0),
        ), field


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux' names of threads")
def test_a_group_leaves_no_threads_behind(tmp_path: Path) -> None:
    """Which abort the process now and then, where they let go of something while Python exits."""
    script = tmp_path / "script.py"
    script.write_text(
        "import pathlib, torch\n"
        "from circuitdiscovery.engine import distributed\n"
        "threads = lambda: [each.read_text().strip() for each in pathlib.Path('/proc/self/task').glob('*/comm')]\n"
        "with distributed.launched():\n"
        "    import transformers.modeling_utils\n"  # which imports what keeps the group that there is
        "    distributed.total(torch.ones(1))\n"
        "    during = threads()\n"
        "print('gloo' in ' '.join(during), 'gloo' in ' '.join(threads()))\n"
    )
    result = torchrun(tmp_path, str(script))
    assert result.stdout.split() == ["True", "False"] * 2, result.stdout + result.stderr


@pytest.mark.slow
def test_an_error_is_printed_once_and_nothing_is_made(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    said = tmp_path_factory.mktemp("said")
    results = as_torchrun(2, lambda: cli.main([*DISCOVER, "--out", "full"]), tmp_path, said)
    assert [result.status for result in results] == [2, 2] and not any(result.out for result in results)
    err = "".join(result.err for result in results)
    assert err.count("--out full is not empty") == err.count("circuitdiscovery: ") == 1, err
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")} == {"full", "full/file"}
