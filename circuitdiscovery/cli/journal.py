"""A run's folder while the run goes on: where it is, which of its files
are done, and what to say where it stops.

1. Every file is written whole or not at all (files.py), as soon as what it holds exists: the
   search's result before anything is measured.
2. run.json has the SHA-256 of each file that is done. A run that goes on takes the files that are as run.json
   says and makes what comes after the first that is not; so it ends with the bytes of a run that was never
   stopped.
3. A search that is under way has a state of its own beside them, and so has a measurement.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any

from circuitdiscovery.cli.folders import contents
from circuitdiscovery.engine import distributed
from circuitdiscovery.errors import CircuitDiscoveryError, ResumeError
from circuitdiscovery.files.disk import write_json
from circuitdiscovery.registry import MEASURES, OPTIONS
from circuitdiscovery.reporting.folder import CIRCUIT, EVALUATION, FILES, SCORES, listed, recorded
from circuitdiscovery.reporting.options import FIELDS, MAY_DIFFER, Options
from circuitdiscovery.reporting.progress import say

STATE = "search.state"
KEPT = ("started", "effort", "data", "done", "seconds", "report")  # of an earlier process's run.json
_FILES = ("model", "task")  # options that may be paths
PACKAGES = (
    "circuitdiscovery",
    "torch",
    "transformers",
    "transformer_lens",
    "numpy",
    "safetensors",
    "pygraphviz",
)


# -------------------------------------------------------------------- folder


def resumable(folder: Path) -> bool:
    """Whether a folder holds anything that a search found: its result, or its state."""
    return any((folder / name).exists() for name in (STATE, CIRCUIT, SCORES))


# -------------------------------------------------------------- an earlier run


def earlier_run(folder: Path, options: Options) -> dict[str, Any] | None:
    """run.json of the run that is to go on, None where the folder is
    new; other options than then are an error.

    Device and batch size may differ, which do not change what is found, and how much is measured. The files
    of the model and the task may lie elsewhere: what was found says by digests whether they are the same.
    """
    if not (folder / "run.json").exists():
        if contents(folder):
            raise ResumeError(f"{folder} has no run.json, so it is not a run that can be resumed")
        return None
    earlier = recorded(folder)
    then = earlier["options"]
    asked = options.to_dict()
    for name in {**FIELDS, **OPTIONS}:
        # an older version's may be fewer, and has False for a switch of the method's own that is not given
        before, now = then.get(name, FIELDS.get(name)), asked.get(name)
        before = None if before is False and name not in FIELDS else before
        if name not in MAY_DIFFER and before != now and not (name in _FILES and _moved(before, now)):
            raise ResumeError(
                f"{folder} was begun with {name} {before!r}, not {now!r}: resume with the same options"
            )
    return earlier


def going_on(options: Options, earlier: dict[str, Any] | None) -> tuple[Options, bool]:
    """The options that a run goes on with, and whether it is finished already.

    What is measured stays: a run that goes on may measure more than was asked for first,
    and less only where nothing is measured. One whose files lie elsewhere is looked through again.
    """
    if earlier is None:
        return options, False
    then, effort, asked = earlier["options"].get("measure"), earlier.get("effort", "full"), options.measure
    more = asked is not None and MEASURES.index(asked) > MEASURES.index(effort)
    kept = "summary" in earlier or EVALUATION in earlier.get("done", {})
    unchanged = asked is None or (kept and not more)
    over = "summary" in earlier and not more and not _elsewhere(options, earlier)
    return (replace(options, measure=then) if unchanged else options), over


def _elsewhere(options: Options, earlier: dict[str, Any]) -> bool:
    """Whether the files of the model or the task lie elsewhere than when a run was begun."""
    return any(earlier["options"].get(name) != getattr(options, name) for name in _FILES)


def _moved(before: Any, now: Any) -> bool:
    """Whether both are paths of files or of folders of one name."""
    if not (isinstance(before, str) and isinstance(now, str)):
        return False
    paths = Path(before), Path(now)
    return all(path.is_absolute() for path in paths) and paths[0].name == paths[1].name


def altered(folder: Path, record: dict[str, Any]) -> list[str]:
    """The files of a run that are gone, or not as they were written."""
    done = record.get("done", {})
    return [name for name in FILES if name in done and done[name] != _digest(folder / name)]


def whole(folder: Path, record: dict[str, Any]) -> bool:
    """Whether a finished run has all that it wrote."""
    return (folder / CIRCUIT).is_file() and not altered(folder, record)


def _digest(path: Path) -> str | None:
    return sha256(path.read_bytes()).hexdigest() if path.is_file() else None


# --------------------------------------------------------------------- journal


class Journal:
    """run.json of a run that goes on. Of several processes the first one writes, and decides for all."""

    def __init__(
        self, folder: Path, options: Options, command: list[str], earlier: dict[str, Any] | None
    ) -> None:
        self.folder, self.options, self._doing = folder, options, "loading"
        kept = {name: value for name, value in (earlier or {}).items() if name in KEPT}
        self.record: dict[str, Any] = {
            "command": command,
            "options": options.to_dict(),
            "started": now(),
            "versions": _versions(),
        }
        self.record |= {"done": {}, "seconds": {}} | kept
        if distributed.rank() == 0:
            if earlier is not None and (others := _upgraded(earlier, self.record)):
                say(f"{folder} was begun with {others}")
            for leftover in folder.glob(".*.tmp"):  # of a run that was killed while it wrote
                leftover.unlink()
            for name in altered(folder, self.record):
                if name not in (CIRCUIT, SCORES):  # which are not made again, but refused
                    self.forget(name)
        self._new, self.moved = earlier is None, earlier is not None and _elsewhere(options, earlier)

    def save(self) -> None:
        """Write run.json."""
        if distributed.rank() == 0:
            write_json(self.folder / "run.json", self.record)

    def of_data(self, data: dict[str, str]) -> None:
        """Note digests of the task's rows and of the tokenizer; they
        are saved with the first file that is done.

        Raises:
            CircuitDiscoveryError: the run was begun with others.
        """
        from circuitdiscovery.engine.state import other_data

        other = other_data(self.record.get("data", {}), data)
        if other is not None:
            raise ResumeError(
                f"{self.folder} was begun with other data, and is not gone on with: {other}; give a new --out"
            )
        self.record.setdefault("data", data)

    # ------------------------------------------------------------------ files

    def intact(self, name: str) -> bool:
        """Whether a file is done and as it was written. For the first process."""
        return self.claims(name) and self.record["done"][name] == _digest(self.folder / name)

    def claims(self, name: str) -> bool:
        """Whether a file is there and run.json says that it is done. For the first process."""
        return name in self.record["done"] and (self.folder / name).is_file()

    def finish(self, *names: str, write: Callable[[], None]) -> None:
        """Write files by `write` and note them; whatever comes after them in a run is to be made anew."""
        if distributed.rank() == 0:
            write()
            self.forget(names[0])
            self.record["done"] |= {
                name: _digest(self.folder / name) for name in names if (self.folder / name).exists()
            }
        self.save()

    def forget(self, first: str) -> None:
        """From this file on nothing is done."""
        earlier = FILES[: FILES.index(first)]
        self.record["done"] = {
            name: digest for name, digest in self.record["done"].items() if name in earlier
        }

    # ------------------------------------------------------------------ stages

    @contextmanager
    def stage(self, name: str, doing: str) -> Iterator[None]:
        """One stage of the run: its time under a name, and what to say that it was doing where it stops."""
        self._doing, began = doing, time.perf_counter()
        yield
        spent = self.record["seconds"].get(name, 0.0) if name == "write" else 0.0
        self.record["seconds"][name] = round(spent + time.perf_counter() - began, 3)

    @contextmanager
    def told(self) -> Iterator[None]:
        """Whatever stops the run, Ctrl-C too, says in a note of the exception what is there and how to go on.

        What an earlier process wrote stays until there is more to say; a new run begins with its run.json: of
        two commands that begin one in a folder at once, one is refused. After an error before anything was
        found nothing of a new run stays. What is not of this run is refused without a note: its error says
        what helps, and the same command alone would be refused again.
        """
        mine = not self._new
        try:
            if self._new:
                distributed.from_first(self._claim)
                mine = True
            yield
        except BaseException as error:
            found = mine and resumable(self.folder)
            if isinstance(error, KeyboardInterrupt) or (found and not isinstance(error, ResumeError)):
                error.add_note(self._left())
            elif not found and mine and self._new and distributed.rank() == 0:
                for file in FILES:
                    (self.folder / file).unlink(missing_ok=True)
            raise

    def _claim(self) -> None:
        try:
            write_json(self.folder / "run.json", self.record, new=True)
        except FileExistsError:
            raise CircuitDiscoveryError(
                f"another command has just begun a run in {self.folder}; give a new or empty folder"
            ) from None

    def _left(self) -> str:
        """The end of a sentence that begins with "stopped" or "interrupted"."""
        there = [name for name in FILES if name != "run.json" and (self.folder / name).exists()]
        how = self.options.resume_command(self.folder)
        if there:
            left = f"{listed(there)} {'is' if len(there) == 1 else 'are'} in {self.folder}; go on with: {how}"
        elif resumable(self.folder):
            left = f"the search so far is in {self.folder}; go on with: {how}"
        else:
            left = f"nothing was found yet; start again with: {how}"
        return f"while {self._doing}; {left}"


def now() -> str:
    """The time, for run.json alone."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _upgraded(then: dict[str, Any], now: dict[str, Any]) -> str:
    """Which packages were of other versions when run.json was written, and are now; empty where none was."""
    before, after = then.get("versions", {}), now["versions"]
    others = [name for name in after if name in before and before[name] != after[name]]
    told = (", ".join(f"{name} {versions[name]}" for name in others) for versions in (before, after))
    return "; it goes on with ".join(told) if others else ""
