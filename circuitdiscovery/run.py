"""One `discover`, from options to a run folder: where it goes, the search, the files, and how it resumes.

A folder holds circuit.json, scores.safetensors (where there are scores), evaluation.json, graph.dot, graph.svg and run.json.
The same options give the same bytes in all of them but run.json, which alone knows times, versions and the command.
While acdc searches there is also state.json: with it a run that was stopped goes on where it was.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitdiscovery import distributed
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.files import read_json, write_json
from circuitdiscovery.names import DEFAULT_SHARE, DEFAULT_THRESHOLD
from circuitdiscovery.options import DENOISING_METHODS, SIZED_METHODS, Options
from circuitdiscovery.progress import Report, stage

if TYPE_CHECKING:
    from circuitdiscovery.circuit import Circuit, Scores
    from circuitdiscovery.evaluation import Evaluation
    from circuitdiscovery.graph import Graph
    from circuitdiscovery.model import Model
    from circuitdiscovery.task import Task

RUNS = Path("runs")
FILES = ("circuit.json", "scores.safetensors", "evaluation.json", "graph.dot", "graph.svg", "run.json")
STATE = "state.json"
PACKAGES = ("circuitdiscovery", "torch", "transformers", "transformer_lens", "numpy", "safetensors", "pygraphviz")


# -------------------------------------------------------------------- folder


def open_folder(name: str, *, out: Path | None, resume: bool) -> Path:
    """The folder of a run of this name: a fresh one, or with `resume` the one to go on with.

    Raises:
        CircuitDiscoveryError: `out` is a file, holds something, or cannot be made; with `resume`, it holds another run.
    """
    if out is None:
        return _latest(name) if resume else _numbered(name)
    if out.exists() and not out.is_dir():
        raise CircuitDiscoveryError(f"--out {out} is a file; it must be a new or empty folder")
    if not resume and out.is_dir() and any(_listed(out)):
        raise CircuitDiscoveryError(f"--out {out} is not empty; give a new or empty folder, or --resume to go on with the run in it")
    return _make(out)


def _folder(name: str, number: int) -> Path:
    return RUNS / (name if number == 1 else f"{name}-{number}")


def _numbered(name: str) -> Path:
    number = 1
    while True:
        try:
            return _make(_folder(name, number), exist_ok=False)
        except FileExistsError:
            number += 1


def _latest(name: str) -> Path:
    number = 1
    while _folder(name, number + 1).is_dir():
        number += 1
    return _make(_folder(name, number))


def _make(folder: Path, *, exist_ok: bool = True) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=exist_ok)
    except FileExistsError:
        raise
    except OSError as error:
        raise CircuitDiscoveryError(f"cannot make the folder {folder}: {error.strerror}") from None
    return folder


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise CircuitDiscoveryError(f"cannot read the folder {folder}: {error.strerror}") from None


def recorded(folder: Path) -> dict[str, Any]:
    """What run.json in a folder says: the options, and once the run is finished its summary."""
    record = read_json(folder / "run.json")
    if not isinstance(record, dict) or not isinstance(record.get("options"), dict):
        raise CircuitDiscoveryError(f"{folder / 'run.json'}: the field 'options' is missing")
    return record


def earlier_run(folder: Path, options: Options) -> dict[str, Any] | None:
    """run.json of the run that is to go on, None where the folder is new; other options than then are an error.

    Device and batch size may differ: they do not change what is found.
    """
    if not (folder / "run.json").exists():
        if any(_listed(folder)):
            raise CircuitDiscoveryError(f"{folder} has no run.json, so it is no run to resume")
        return None
    earlier = recorded(folder)
    then = earlier["options"]
    for name, now in asdict(options).items():
        if name not in ("device", "batch_size") and then.get(name) != now:
            raise CircuitDiscoveryError(f"{folder} was begun with {name} {then.get(name)!r}, not {now!r}: resume with the same options")
    return earlier


@contextmanager
def _cleared_on_error(folder: Path) -> Iterator[None]:
    """After an error, nothing of a run that cannot go on stays; an interrupted one, or one with a search's state, does."""
    try:
        yield
    except Exception:
        if not (folder / STATE).exists():
            for file in FILES:
                (folder / file).unlink(missing_ok=True)
            if not _listed(folder):
                folder.rmdir()
        raise


# ----------------------------------------------------------------------- run


def discover(options: Options, folder: Path, command: list[str]) -> dict[str, Any]:
    """Search, measure, draw and write into `folder`; what run.json then holds: among other things `summary`, and `report` for people.

    A finished run is not done again. Ctrl-C leaves run.json and the search's state, from which the same call goes on.
    Of several processes all search and measure, and the first one writes.
    """
    earlier = distributed.from_first(lambda: earlier_run(folder, options))
    if earlier and "summary" in earlier:
        return earlier
    record: dict[str, Any] = {}
    if distributed.rank() == 0:
        record = _recorded(options, folder, command)
    else:
        _found(options, folder, _Clock())
    return distributed.from_first(lambda: record)


def _recorded(options: Options, folder: Path, command: list[str]) -> dict[str, Any]:
    for leftover in folder.glob(".*.tmp"):  # of a run that was killed while it wrote
        leftover.unlink()
    record: dict[str, Any] = {"command": command, "options": asdict(options), "started": _now(), "versions": _versions()}
    with _cleared_on_error(folder):
        write_json(folder / "run.json", record)
        clock = _Clock()
        circuit, scores, evaluation = _found(options, folder, clock)
        _write(folder, circuit, scores, evaluation)
        clock.lap("write")
        summary = _summary(options, folder, circuit, evaluation, clock.laps)
        record |= {"finished": _now(), "threads": _threads(), "processes": distributed.world_size()}
        record |= {"summary": summary, "report": str(evaluation)}
        write_json(folder / "run.json", record)
        (folder / STATE).unlink(missing_ok=True)
    return record


def _found(options: Options, folder: Path, clock: _Clock) -> tuple[Circuit, Scores | None, Evaluation]:
    model, task = load(options)
    clock.lap("load")
    circuit, scores = search(model, task, options, state=folder / STATE)
    clock.lap("search")
    evaluation = evaluate(model, task, circuit, scores, options)
    clock.lap("evaluate")
    return circuit, scores, evaluation


def load(options: Options) -> tuple[Model, Task]:
    """The model and the task; this is where torch is imported."""
    with stage("loading"):
        from circuitdiscovery import load_model, load_task

        model = load_model(options.model, device=options.device, dtype=options.dtype)
        return model, load_task(options.task, model, examples=options.examples, seed=options.seed)


def search(model: Model, task: Task, options: Options, *, state: Path | None = None) -> tuple[Circuit, Scores | None]:
    """The circuit by the method asked for, and the scores it was taken from (None for acdc)."""
    with stage(options.name) as report:
        if options.method == "acdc":
            return _acdc(model, task, options, report, state), None
        scores = _scores(model, task, options, report)
    if options.threshold is not None:
        return scores.above(options.threshold), scores
    return scores.top(_n_edges(scores.graph, options)), scores


def _n_edges(graph: Graph, options: Options) -> int:
    return options.edges or max(1, round(DEFAULT_SHARE * len(graph)))


def _acdc(model: Model, task: Task, options: Options, report: Report, state: Path | None) -> Circuit:
    from circuitdiscovery import acdc

    return acdc(
        model,
        task,
        threshold=DEFAULT_THRESHOLD if options.threshold is None else options.threshold,
        metric=options.metric,
        ablation=options.ablation,
        split_qkv=options.split_qkv,
        batch_size=options.batch_size,
        progress=report,
        state=state,
    )


def _scores(model: Model, task: Task, options: Options, report: Report) -> Scores:
    import circuitdiscovery as cd

    if options.method == "random":
        return cd.random(model, task, seed=options.seed, split_qkv=options.split_qkv)
    shared: dict[str, Any] = {
        "metric": options.metric,
        "ablation": options.ablation,
        "split_qkv": options.split_qkv,
        "batch_size": options.batch_size,
        "progress": report,
    }
    if options.method in DENOISING_METHODS:
        shared["direction"] = options.direction
    if options.method in SIZED_METHODS:
        shared["edges"] = _n_edges(cd.Graph.from_model(model, split_qkv=options.split_qkv), options)
    if options.method == "edge_pruning":
        shared["seed"] = options.seed
    return getattr(cd, options.method)(model, task, **shared)


def evaluate(model: Model, task: Task, circuit: Circuit, scores: Scores | None, options: Options) -> Evaluation:
    """The circuit's evaluation under the options that it was searched with."""
    from circuitdiscovery import evaluate

    with stage("evaluating") as report:
        return evaluate(
            model,
            task,
            circuit,
            ablation=options.ablation,
            metric=options.metric,
            direction=options.direction,
            scores=scores,
            batch_size=options.batch_size,
            seed=options.seed,
            progress=report,
        )


# --------------------------------------------------------------------- files


def _write(folder: Path, circuit: Circuit, scores: Scores | None, evaluation: Evaluation) -> None:
    with stage("drawing"):
        circuit.save(folder / "circuit.json")
        if scores is not None:
            scores.save(folder / "scores.safetensors")
        write_json(folder / "evaluation.json", evaluation.to_dict())
        circuit.draw(folder / "graph.dot")
        circuit.draw(folder / "graph.svg")


def _summary(options: Options, folder: Path, circuit: Circuit, evaluation: Evaluation, seconds: Mapping[str, float]) -> dict[str, Any]:
    return {
        "model": options.model,
        "task": options.task,
        "method": options.method,
        "edges": len(circuit),
        "edges_pruned": len(circuit.pruned()),
        "edges_total": len(circuit.graph),
        "evaluation": evaluation.to_dict(),
        "seconds": dict(seconds),
        "folder": str(folder),
        "files": [name for name in FILES if name == "run.json" or (folder / name).exists()],
    }


class _Clock:
    """Seconds between laps."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = round(now - self._last, 3)
        self._last = now


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
