"""Estimates of the time that is left, against a clock that the test turns."""

from __future__ import annotations

import random
import re
import sys
import time
from collections.abc import Callable

import pytest

from circuitdiscovery.circuit.render import render
from circuitdiscovery.reporting import progress
from circuitdiscovery.reporting.progress import Pace, say, stage


class Clock:
    def __init__(self) -> None:
        self.now = 100.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "_now", lambda: clock.now)
    return clock


def estimates(
    seconds: list[float], clock: Clock, *, begun: int = 0, announced: bool = True, setup: float = 0.0
) -> list[tuple[int, float, float]]:
    """(units done, the seconds left that were estimated, that there were) of work
    whose units take so long, from `begun` on.
    """
    pace, total, found = Pace(), len(seconds), []
    if announced:
        assert pace.left(begun, total) is None
    clock.now += setup
    for done in range(begun + 1, total + 1):
        clock.now += seconds[done - 1]
        left = pace.left(done, total)
        if left is not None and done < total:
            found.append((done, left, sum(seconds[done:])))
    return found


KINDS: dict[str, Callable[[], list[float]]] = {
    "even": lambda: [1.0] * 200,
    "quick": lambda: [0.01] * 5000,
    "slow": lambda: [40.0] * 30,
    "few": lambda: [60.0] * 5,
    "uneven": lambda: random.Random(0).choices([0.2, 0.5, 3.0], k=400),
    "the first one slow": lambda: [300.0] + [1.0] * 400,
}


@pytest.mark.parametrize("announced", [True, False], ids=["from 0", "from the first unit"])
@pytest.mark.parametrize("share", [0, 0.5, 0.9], ids=["new", "resumed in the middle", "resumed near the end"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_estimate_is_within_a_factor_of_two(
    clock: Clock, kind: str, share: float, announced: bool
) -> None:
    seconds = KINDS[kind]()
    begun = int(share * len(seconds))
    found = estimates(seconds, clock, begun=begun, announced=announced, setup=25.0)
    assert found or len(seconds) - begun < 4
    # the end is a matter of a few uneven units
    assert not [each for each in found if not 0.5 <= each[1] / each[2] <= 2 and each[2] > 5]


def test_nothing_is_said_too_early_and_something_in_time(clock: Clock) -> None:
    first = estimates([1.0] * 1000, clock)[0]
    assert 3 < first[0] <= 21  # three reports and 2%, or 20 seconds
    assert estimates([100.0] * 1000, clock)[0][0] == 4
    assert estimates([0.001] * 1000, clock) == []  # over before it matters


def test_one_report_of_what_was_done_before_says_nothing_of_the_pace(clock: Clock) -> None:
    """990 of 1,000 were done by another process in an unknown time."""
    done, left, _ = estimates([7.0] * 1000, clock, begun=990)[0]
    assert left == pytest.approx(7.0 * (1000 - done))


def test_a_log_has_a_line_now_and_then(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with stage("searching") as report:
        report(0, 100)
        for done in range(1, 101):
            clock.now += 1.0
            report(done, 100)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "searching: 2 of 100"
    assert lines[1] == "searching: 17 of 100, about 1 min 23 s left"
    assert len(lines) == 7 and all(
        re.fullmatch(r"searching: \d+ of 100, about .* left", line) for line in lines[1:]
    )


def test_a_silent_stage_is_heard_of_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "FIRST_LINE", 0.02)
    for reported, said in ((None, "loading: under way"), ((0, 7), "loading: 0 of 7")):
        with stage("loading") as report:
            if reported:
                report(*reported)
            time.sleep(0.2)
        assert capsys.readouterr().err == f"{said}\n"
    with stage("short"):
        pass
    assert capsys.readouterr().err == ""


def test_without_standard_error_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a program without a console."""
    monkeypatch.setattr(progress, "FIRST_LINE", 0.01)
    monkeypatch.setattr(sys, "stderr", None)
    with stage("searching") as report:
        report(0, 2)
        time.sleep(0.1)
        report(1, 2)
    say("something")
    assert b"<svg" in render("digraph { layout=dot; a }", "svg")
    assert capsys.readouterr() == ("", "")
