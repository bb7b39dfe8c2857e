"""What is going on, on standard error: a bar with an estimate on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Report = Callable[[int, int], None]  # (done, total)

FIRST_LINE = 2.0  # seconds of silence in a log: what is over by then needs no line
NEXT_LINE = 15.0


@contextmanager
def stage(label: str) -> Iterator[Report]:
    """Show one stage of the work while it lasts; the yielded function is told (done, total) as it goes."""
    if not sys.stderr.isatty():
        yield _lines(label)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _lines(label: str) -> Report:
    started = time.monotonic()
    due = started + FIRST_LINE

    def report(done: int, total: int) -> None:
        nonlocal due
        now = time.monotonic()
        if now >= due and 0 < done < total:
            due = now + NEXT_LINE
            left = (now - started) / done * (total - done)
            print(f"{label}: {done} of {total}, about {duration(left)} left", file=sys.stderr, flush=True)

    return report


def duration(seconds: float) -> str:
    """A time span for people.

    >>> duration(3.21), duration(75), duration(7260)
    ('3.2 s', '1 min 15 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
