"""One `discover`, from options to a run folder: where it goes, the search, the files, and how it resumes.

A folder holds circuit.json, scores.safetensors (where there are scores), evaluation.json, explanation.json (the nodes' cards), report.json
(what else the page shows), graph.dot, graph.svg, report.html (the page) and run.json.
The same options give the same bytes in all of them but run.json, which alone knows times, versions and the command.
While acdc searches there is also state.json: with it a run that was stopped goes on where it was.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from datetime import UTC, datetime
from importlib import metadata
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from circuitdiscovery import distributed
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.files import write_json
from circuitdiscovery.names import DEFAULT_SHARE, DEFAULT_THRESHOLD
from circuitdiscovery.options import Options
from circuitdiscovery.progress import stage
from circuitdiscovery.reporting.folder import CONTENTS, EXPLANATION, PAGE, load, recorded

if TYPE_CHECKING:
    from circuitdiscovery.circuit import Circuit, Scores
    from circuitdiscovery.evaluation import Evaluation
    from circuitdiscovery.model import Model
    from circuitdiscovery.task import Task

RUNS = Path("runs")
FILES = (
    *("circuit.json", "scores.safetensors", "evaluation.json", EXPLANATION, CONTENTS),
    *("graph.dot", "graph.svg", PAGE, "run.json"),
)
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
    for field in fields(options):
        before, now = then.get(field.name, field.default), getattr(options, field.name)  # an older version's may be fewer
        if field.name not in ("device", "batch_size") and before != now:
            raise CircuitDiscoveryError(f"{folder} was begun with {field.name} {before!r}, not {now!r}: resume with the same options")
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
    from circuitdiscovery import threads

    record: dict[str, Any] = {}
    with threads.restored():
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
        found = _found(options, folder, clock)
        _write(folder, found)
        clock.lap("write")
        summary = _summary(options, folder, found, clock.laps)
        record |= {"finished": _now(), "threads": _threads(), "processes": distributed.world_size()}
        record |= {"summary": summary, "report": str(found.evaluation)}
        write_json(folder / "run.json", record)
        (folder / STATE).unlink(missing_ok=True)
    return record


class Found(NamedTuple):
    """What a run found, before it is written: of the last two see reporting/contents.py."""

    circuit: Circuit
    scores: Scores | None
    evaluation: Evaluation
    explanation: dict[str, Any] | None
    contents: dict[str, Any]


def _found(options: Options, folder: Path, clock: _Clock) -> Found:
    from circuitdiscovery import threads
    from circuitdiscovery.reporting.contents import gather

    model, task = load(options)
    threads.choose(model, task, options.batch_size)
    clock.lap("load")
    circuit, scores = search(model, task, options, state=folder / STATE)
    clock.lap("search")
    evaluation = evaluate(model, task, circuit, scores, options)
    clock.lap("evaluate")
    gathered = gather(model, task, circuit, scores, evaluation.to_dict(), options)
    clock.lap("explain")
    return Found(circuit, scores, evaluation, *gathered)


def search(model: Model, task: Task, options: Options, *, state: Path | None = None) -> tuple[Circuit, Scores | None]:
    """The circuit by the method asked for, and the scores it was taken from (None where the method gives a circuit).

    A method takes of the options those that its signature names.
    """
    import circuitdiscovery as cd

    function = getattr(cd, options.method)
    accepted = signature(function).parameters.keys() - {"model", "task"}
    edges = options.edges or max(1, round(DEFAULT_SHARE * len(cd.Graph.from_model(model, split_qkv=options.split_qkv))))
    threshold = DEFAULT_THRESHOLD if options.threshold is None else options.threshold
    with stage(options.name) as report:
        given = asdict(options) | {"edges": edges, "threshold": threshold, "progress": report, "state": state}
        found = function(model, task, **{name: value for name, value in given.items() if name in accepted})
    if isinstance(found, cd.Circuit):
        return found, None
    return found.top(edges) if options.threshold is None else found.above(options.threshold), found


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


def _write(folder: Path, found: Found) -> None:
    from circuitdiscovery.reporting.page import write_page

    with stage("drawing"):
        found.circuit.save(folder / "circuit.json")
        if found.scores is not None:
            found.scores.save(folder / "scores.safetensors")
        write_json(folder / "evaluation.json", found.evaluation.to_dict())
        if found.explanation is not None:
            write_json(folder / EXPLANATION, found.explanation)
        write_json(folder / CONTENTS, found.contents)
        found.circuit.draw(folder / "graph.dot")
        found.circuit.draw(folder / "graph.svg")
        write_page(folder, folder / PAGE)


def _summary(options: Options, folder: Path, found: Found, seconds: Mapping[str, float]) -> dict[str, Any]:
    return {
        "model": options.model,
        "task": options.task,
        "method": options.method,
        "edges": len(found.circuit),
        "edges_pruned": len(found.circuit.pruned()),
        "edges_total": len(found.circuit.graph),
        "evaluation": found.evaluation.to_dict(),
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
