"""What is going on, on standard error: a bar with an estimate on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Report = Callable[[int, int], None]  # (done, total), in units of about the same work each

FIRST_LINE = 2.0  # seconds of silence in a log: what is over by then needs no line
NEXT_LINE = 15.0
# how much an estimate wants to have seen; see `Pace.left`
ENOUGH_SHARE, ENOUGH_SECONDS, ENOUGH_REPORTS = 0.02, 20.0, 3
ENOUGH_OF_FEW = 0.2  # of the work, where it comes in a few large pieces


class Pace:
    """How long the rest will take, from what this process has seen itself.

    The clock starts with the second report of progress: what an earlier process did is in the first one, and
    what is made only once (replacements, a compiled kernel) is paid before the second.
    """

    def __init__(self) -> None:
        self._first: int | None = None
        self._began: tuple[float, int] | None = None  # (when, done)
        self._reports = 0
        self._done = 0

    def left(self, done: int, total: int) -> float | None:
        """Seconds that are left after this report, or None while too little was seen to say so.

        Enough is two seconds and, of what was left when the clock started, 2% in three reports or more;
        or 20 seconds in three reports; or a fifth.
        """
        now = _now()
        if self._first is None:
            self._first = self._done = done
        if self._began is None:
            if done > self._first:
                self._began, self._done = (now, done), done
            return None
        self._reports += done > self._done
        self._done = done
        seconds, seen = now - self._began[0], done - self._began[1]
        share = seen / max(1, total - self._began[1])
        several = self._reports >= ENOUGH_REPORTS and (share >= ENOUGH_SHARE or seconds >= ENOUGH_SECONDS)
        if seen <= 0 or seconds < FIRST_LINE or not (several or share >= ENOUGH_OF_FEW):
            return None
        return seconds / seen * (total - done)


@contextmanager
def stage(label: str) -> Iterator[Report]:
    """Show one stage of the work while it lasts; the yielded function is told (done, total) as it goes."""
    with _bar(label) if sys.stderr and sys.stderr.isatty() else _lines(label) as report:
        yield report


def say(text: str) -> None:
    """One line on standard error, where there is one: a program without a console has none."""
    if sys.stderr:
        print(text, file=sys.stderr, flush=True)


@contextmanager
def _bar(label: str) -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    pace = Pace()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None, left="")

        def report(done: int, total: int) -> None:
            left = pace.left(done, total)
            bar.update(
                task, completed=done, total=total, left="" if left is None else f"about {duration(left)} left"
            )

        yield report


@contextmanager
def _lines(label: str) -> Iterator[Report]:
    """Lines in a log: the first after two seconds, whether or not anything was reported by then."""
    pace, done_of, lock = Pace(), "under way", threading.Lock()
    due, silent = _now() + FIRST_LINE, True

    def first() -> None:
        with lock:
            if silent:
                line(done_of)

    def line(text: str) -> None:
        nonlocal due, silent
        due, silent = _now() + NEXT_LINE, False
        say(f"{label}: {text}")

    def report(done: int, total: int) -> None:
        nonlocal done_of
        left = pace.left(done, total)
        with lock:
            done_of = f"{done} of {total}"
            if _now() >= due and 0 < done < total:
                line(done_of if left is None else f"{done_of}, about {duration(left)} left")

    timer = threading.Timer(FIRST_LINE, first)
    timer.daemon = True
    timer.start()
    try:
        yield report
    finally:
        timer.cancel()


def _now() -> float:
    return time.monotonic()


def duration(seconds: float) -> str:
    """A time span for people.

    >>> duration(3.21), duration(75), duration(7260)
    ('3.2 s', '1 min 15 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
