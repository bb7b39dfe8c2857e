"""Runs that are killed at random moments, or whose disk is full or read-only: each goes on to
the bytes of a run that nothing stopped.

    python benchmarks/kills.py [--kills 60] [--disks 20] [--chain 5]
    [--seed 0] [--work FOLDER] -- discover toy ioi

1. The command is run once without interruption: its files are what every other run must end
   with (all but run.json, which has times).
2. Chains: a run is killed at a random moment, by SIGKILL, SIGTERM and SIGINT in turn, resumed, killed again,
   `--chain` times, and then left to its end. Wherever it was stopped, no traceback may be shown, SIGTERM and
   SIGINT end with status 130, every file that was there before is there still, no half-written file is left
   under a result's name, and the files at the end are byte for byte those of 1.
3. Disks (Linux, as root): a file system in memory that is full after a random number of bytes, or becomes
   read-only at a random moment; the run ends in one line with status 2 or 130, and is resumed with room to
   write.

Prints one line for each chain and disk, and exits with status 1 where anything was wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
RESULTS = (".json", ".safetensors", ".svg", ".dot", ".html")
APART = {"run.json"}  # has times
EARLIEST = 0.5  # seconds: before it, Python itself is starting


@dataclass
class Trial:
    """A folder that a command writes to, and what was wrong there."""

    command: list[str]
    folder: Path
    wrong: list[str] = field(default_factory=list)

    def start(self) -> subprocess.Popen[str]:
        """The command, or its resumption where there is something to resume."""
        resume = ["--resume"] if (self.folder / "run.json").exists() else []
        program = [
            sys.executable,
            "-m",
            "circuitdiscovery",
            *self.command,
            "--out",
            str(self.folder),
            *resume,
        ]
        return subprocess.Popen(
            program, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def stop(self, wait: float, number: int) -> bool:
        """Send a signal after some seconds; False where the run had ended before."""
        running, before = self.start(), self.files()
        try:
            running.communicate(timeout=wait)
        except subprocess.TimeoutExpired:
            running.send_signal(number)
            said = running.communicate()[1]
            self.check(said)
            # shells call -SIGINT 130 too; Python ends so where the interrupt came inside of
            # an exec, such as a dataclass being made
            if running.returncode not in (
                (-number,) if number == signal.SIGKILL else (0, 130, -signal.SIGINT)
            ):
                self.wrong.append(
                    f"status {running.returncode} after {signal.Signals(number).name}: {said[-300:]}"
                )
            if lost := before.keys() - self.files().keys():
                self.wrong.append(f"lost: {sorted(lost)}")
            return True
        if running.returncode != 0:
            self.wrong.append(f"status {running.returncode} without a signal")
        return False

    def check(self, said: str) -> None:
        """No traceback, and every result whole."""
        if "Traceback" in said:
            self.wrong.append(said)
        for name, data in self.files().items():
            try:
                if name.endswith(".json"):
                    json.loads(data)
            except ValueError:
                self.wrong.append(f"{name} is broken: {data[:80]!r}")

    def end(self, whole: dict[str, bytes] | None) -> None:
        """Let it run to its end, and compare, where there is something to compare with."""
        running = self.start()
        said = running.communicate()[1]
        self.check(said)
        if running.returncode != 0:
            self.wrong.append(f"status {running.returncode} at the end: {said[-300:]}")
        ours = self.files()
        expected = ours if whole is None else whole
        different = (
            name for name in sorted(expected.keys() | ours.keys()) if expected.get(name) != ours.get(name)
        )
        self.wrong += [f"{name} is not that of the run that was not stopped" for name in different]

    def files(self) -> dict[str, bytes]:
        """Results and their bytes."""
        if not self.folder.is_dir():
            return {}
        paths = [path for path in self.folder.iterdir() if path.suffix in RESULTS and path.name not in APART]
        return {path.name: path.read_bytes() for path in paths}


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """A file system in memory at a folder."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def disk_trial(trial: Trial, whole: dict[str, bytes], seconds: float, draw: random.Random, full: bool) -> str:
    """A disk that is full or read-only, then one with room."""
    page = os.sysconf("SC_PAGE_SIZE")
    size = draw.randrange(page, sum(len(data) for data in whole.values()) + page) if full else 2**28
    wait = draw.uniform(EARLIEST, seconds)
    with small_disk(trial.folder.parent, size):
        running = trial.start()
        if not full:
            time.sleep(wait)
            subprocess.run(["mount", "-o", "remount,ro", trial.folder.parent], check=False)
        said = running.communicate()[1]
        trial.check(said)
        if running.returncode not in (0, 2):
            trial.wrong.append(f"status {running.returncode}: {said[-300:]}")
        subprocess.run(["mount", "-o", f"remount,rw,size={2**28}", trial.folder.parent], check=True)
        trial.end(whole)
    last = re.sub(r"\s+", " ", said.strip())[-160:]
    return f"{'full after ' + format(size, ',') + ' bytes' if full else f'read-only after {wait:.1f} s'}: status {running.returncode}, {last}"


def main() -> None:
    """All of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--disks", type=int, default=20)
    parser.add_argument("--chain", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("runs/kills"))
    parser.add_argument("command", nargs="+", help="after --: discover MODEL TASK ...")
    given = parser.parse_args()
    draw, failed = random.Random(given.seed), 0

    reference = Trial(given.command, given.work / "whole")
    begun = time.monotonic()
    reference.end(None)
    seconds, whole = time.monotonic() - begun, reference.files()
    if reference.wrong:
        sys.exit("; ".join(reference.wrong))
    print(f"not stopped: {len(whole)} files, {seconds:.0f} s", flush=True)

    def report(name: str, trial: Trial, said: str) -> None:
        nonlocal failed
        failed += bool(trial.wrong)
        print(f"{name}: {said}; {'; '.join(trial.wrong) or 'the same bytes'}", flush=True)

    kills = chain = 0
    while kills < given.kills:
        trial, moments = Trial(given.command, given.work / f"chain-{chain}"), []
        for _ in range(min(given.chain, given.kills - kills)):
            wait, number = draw.uniform(EARLIEST, seconds), SIGNALS[kills % len(SIGNALS)]
            if not trial.stop(wait, number):
                break  # it came to its end first
            moments.append(f"{signal.Signals(number).name} {wait:.1f}")
            kills += 1
        trial.end(whole)
        report(f"chain {chain}", trial, ", ".join(moments))
        chain += 1
    for i in range(given.disks):
        trial = Trial(given.command, given.work / f"disk-{i}" / "run")
        said = disk_trial(trial, whole, seconds, draw, full=i % 2 == 0)
        report(f"disk {i}", trial, said)
    print(f"{kills} kills, {given.disks} disks: {failed or 'nothing'} wrong")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
