"""One `benchmark`, from a suite and methods to a folder: benchmark.md, benchmark.json and benchmark.png.

Each method on each problem is one file in `cells/`, written when it is measured: a run that is
killed goes on with those that are missing.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import torch

from circuitdiscovery import __version__
from circuitdiscovery.benchmark.measure import Measured, measure
from circuitdiscovery.benchmark.methods import Run, resolve
from circuitdiscovery.benchmark.options import BenchmarkOptions
from circuitdiscovery.benchmark.report import markdown, picture
from circuitdiscovery.benchmark.suites import Entries, Entry, entries
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.files.disk import read_json, write_atomically, write_json
from circuitdiscovery.reporting.progress import Report


def run(options: BenchmarkOptions, folder: Path, command: Sequence[str], report: Report) -> list[Measured]:
    """Measure what is missing in the folder, then write the table, the JSON and the picture.

    Raises:
        CircuitDiscoveryError: a folder of a benchmark with other
            options; whatever a method or a problem raises.
    """
    cells = folder / "cells"
    with _cleared_on_error(folder, cells):
        methods = [resolve(name) for name in options.chosen]
        problems = entries(options.suite, model=options.model, quick=options.quick, seed=options.seed)
        cells.mkdir(parents=True, exist_ok=True)
        _check_same(folder, options)
        results, why = _measured(problems, methods, cells, report)
    _write(folder, options, results, why, command)
    return results


@contextmanager
def _cleared_on_error(folder: Path, cells: Path) -> Iterator[None]:
    """After an error, nothing stays of a benchmark that has measured nothing."""
    try:
        yield
    except Exception:
        if not list(cells.glob("*")) and not (folder / "benchmark.md").exists():
            (folder / "options.json").unlink(missing_ok=True)
            if cells.is_dir():
                cells.rmdir()
        raise


def _measured(
    problems: Entries, methods: Sequence[tuple[str, Run]], cells: Path, report: Report
) -> tuple[list[Measured], dict[str, str]]:
    """(every method on every problem, why problems are hard): what has no file in `cells` is measured."""
    done, results, why = 0, list[Measured](), dict[str, str]()
    for problem, make in problems.items():
        entry: Entry | None = None
        for name, method in methods:
            path = cells / f"{_file_name(problem)}--{_file_name(name)}.json"
            if not path.exists():
                entry = entry or make()
                measured = measure(problem, entry.model, entry.task, entry.truth, name, method)
                write_json(path, {"why": entry.why, **measured.to_dict()})
            data = read_json(path)
            why[problem] = data.pop("why")
            results.append(Measured.from_dict(data))
            done += 1
            report(done, len(problems) * len(methods))
    return results, why


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text)


def _check_same(folder: Path, options: BenchmarkOptions) -> None:
    """Note the options, or refuse those that differ from the noted ones."""
    path, now = folder / "options.json", {**asdict(options), "methods": list(options.chosen)}
    if path.exists():
        then: Any = read_json(path)
        different = [name for name in now if then.get(name) != now[name]]
        if different:
            told = ", ".join(f"{name} {then.get(name)!r}, not {now[name]!r}" for name in different)
            raise CircuitDiscoveryError(f"{folder} was begun with {told}: resume with the same options")
    write_json(path, now)


def _write(
    folder: Path,
    options: BenchmarkOptions,
    results: list[Measured],
    why: dict[str, str],
    command: Sequence[str],
) -> None:
    where = {
        "date": str(date.today()),
        "machine": machine(),
        "command": list(command),
        "version": __version__,
    }
    write_json(
        folder / "benchmark.json",
        {**where, "options": asdict(options), "results": [result.to_dict() for result in results]},
    )
    heading = f"Suite `{options.suite}`, {where['date']}, {where['machine']}, `{' '.join(command)}`."
    write_atomically(folder / "benchmark.md", markdown(results, why, heading))
    picture(results, folder / "benchmark.png")


def machine() -> str:
    """The processor as the system names it, the threads, and torch's version."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.processor() or platform.machine()
    return f"{processor}, {torch.get_num_threads()} threads, torch {torch.__version__}"
