"""Which folder a run is in. What is made for it and stays empty is removed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from circuitdiscovery.engine import distributed
from circuitdiscovery.errors import CircuitDiscoveryError

RUNS = Path("runs")


@contextmanager
def open_folder(name: str, *, out: Path | None, resume: bool) -> Iterator[Path]:
    """The folder of a run of this name: a fresh one, or with `resume` the one to go on with.

    Of the folders that were made for it, those that are empty at the end are removed.

    Raises:
        CircuitDiscoveryError: `out` is a file, holds something, or cannot be made.
    """
    created: list[Path] = []  # by the first process of several
    try:
        yield distributed.from_first(lambda: _opened(name, out, resume, created))
    finally:
        with suppress(OSError):  # it holds the run
            for folder in reversed(created):
                folder.rmdir()


def _opened(name: str, out: Path | None, resume: bool, created: list[Path]) -> Path:
    if out is None:
        return _latest(name, created) if resume else _fresh(name, created)
    if os.path.exists(out) and not os.path.isdir(out):
        raise CircuitDiscoveryError(f"--out {out} is a file; it must be a new or empty folder")
    if not resume and os.path.isdir(out) and contents(out):
        raise CircuitDiscoveryError(
            f"--out {out} is not empty; give a new or empty folder, or --resume to go on with the run in it"
        )
    return _ensure(out, created)


def contents(folder: Path) -> list[str]:
    """The names of what is in a folder."""
    try:
        return os.listdir(folder)
    except OSError as error:
        raise CircuitDiscoveryError(f"cannot read the folder {folder}: {error.strerror}") from None


# -------------------------------------------------------------------- numbers


def _folder(name: str, number: int) -> Path:
    return RUNS / (name if number == 1 else f"{name}-{number}")


def _numbers(name: str) -> list[int]:
    """The numbers of the runs of a name that there are."""
    found = (
        re.fullmatch(rf"{re.escape(name)}(?:-([2-9]|[1-9]\d{{1,17}}))?", each)
        for each in (contents(RUNS) if os.path.isdir(RUNS) else ())
    )
    return [int(match[1] or 1) for match in found if match]


def _fresh(name: str, created: list[Path]) -> Path:
    """The next number after the highest, so that the highest is always the latest run."""
    _ensure(RUNS, created)
    number = max(_numbers(name), default=0) + 1
    while not _mkdir(_folder(name, number), created):
        number += 1  # another process has made it meanwhile
    return _folder(name, number)


def _latest(name: str, created: list[Path]) -> Path:
    numbers = [number for number in _numbers(name) if os.path.isdir(_folder(name, number))]
    return _ensure(_folder(name, max(numbers, default=1)), created)


# --------------------------------------------------------------------- making


def _ensure(folder: Path, created: list[Path]) -> Path:
    """Make a folder and those that it lies in."""
    for each in (*reversed(folder.parents), folder):
        if not os.path.isdir(each) and not _mkdir(each, created) and not os.path.isdir(each):
            raise CircuitDiscoveryError(
                f"cannot make the folder {folder}: {each} is a file, or a link to what is not there"
            )
    return folder


def _mkdir(folder: Path, created: list[Path]) -> bool:
    """Make one folder; False where there is something of that name."""
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    except OSError as error:
        raise CircuitDiscoveryError(f"cannot make the folder {folder}: {error.strerror}") from None
    created.append(folder)
    return True
