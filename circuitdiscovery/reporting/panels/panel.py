"""What a part of the page is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuitdiscovery.reporting.folder import Run
from circuitdiscovery.reporting.sentences import in_words

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Panel:
    """A part of the page.

    Args:
        template: Jinja; its text is escaped, and it may use the macros of `macros.html.j2`.
        values: what the template is given of a run, by name, beside what all are given (`shared`).
        nav: (id of an element, label) of each entry in the list of the page's parts.
    """

    template: str
    values: Callable[[Run], Mapping[str, Any]]
    nav: tuple[tuple[str, str], ...] = ()


def beside(file: str) -> str:
    """The template that lies beside a panel's file."""
    return Path(file).with_suffix(".html.j2").read_text("utf-8")


def cards_of(run: Run) -> dict[str, Json]:
    """The nodes' cards by name; none where nothing was explained."""
    return dict(run.explanation["cards"]) if run.explanation else {}


def by_effect(cards: Mapping[str, Json]) -> list[Json]:
    """The cards from the largest effect to the smallest."""
    return sorted(cards.values(), key=lambda card: -abs(card["effect"]["value"]))


def shared(run: Run) -> dict[str, Any]:
    """What every template is given."""
    return {
        "run": run,
        "known": list(cards_of(run)),
        "measured": run.effort != "none",
        "metric": in_words("metric", run.evaluation["metric"]),
        "missing": run.missing or (run.contents["no_cards"] if run.contents else None),
    }
