"""Completeness and minimality, as bars with their intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from circuitdiscovery.reporting.folder import Run
from circuitdiscovery.reporting.panels.panel import Json, Panel, beside

_KINDS = {
    "empty": "nothing knocked out",
    "random": "a random half of the nodes",
    "greedy": "the nodes that drive them furthest apart",
}


def values(run: Run) -> dict[str, Any]:
    """The sets K of completeness by kind, and the nodes of minimality."""
    return {"sets": _sets(run.evaluation), "minimality": _minimality(run.evaluation)}


def _bar(estimate: Mapping[str, float], largest: float) -> dict[str, Any]:
    """An estimate with where its bar and interval end, in percent of the track;
    without an interval, both where the bar does.
    """
    ends = {
        name: estimate["value"] if estimate[name] is None else estimate[name]
        for name in ("value", "low", "high")
    }
    at = {name: round(100 * end / largest, 2) if largest else 0.0 for name, end in ends.items()}
    return {"estimate": estimate, "at": at}


def _end(estimate: Mapping[str, Any]) -> float:
    """Where an estimate's bar and interval end."""
    return estimate["value"] if estimate["high"] is None else estimate["high"]


def _sets(evaluation: Json) -> list[dict[str, Any]]:
    """The sets K of completeness, by kind."""
    if evaluation["effort"] == "none":
        return []
    sets = evaluation["completeness"]["sets"]
    largest = max((_end(each["incompleteness"]) for each in sets), default=0.0)
    groups: dict[str, list[dict[str, Any]]] = {}
    for each in sets:
        groups.setdefault(each["kind"], []).append(
            {"nodes": each["nodes"]} | _bar(each["incompleteness"], largest)
        )
    return [{"kind": kind, "said": _KINDS.get(kind, kind), "rows": rows} for kind, rows in groups.items()]


def _minimality(evaluation: Json) -> dict[str, Any]:
    if evaluation["effort"] == "none":
        return {}
    scores, bar = evaluation["minimality"]["scores"], evaluation["minimality"]["bar"]
    largest = max([bar or 0.0, *map(_end, scores.values())])
    below = set(evaluation["minimality"]["below"])
    rows = [{"node": node, "below": node in below} | _bar(score, largest) for node, score in scores.items()]
    return {
        "others": evaluation["minimality"]["unmeasured"],
        "rows": rows,
        "bar": bar,
        "at": round(100 * bar / largest, 2) if bar is not None and largest else 0.0,
    }


CRITERIA = Panel(beside(__file__), values, (("completeness", "Completeness"), ("minimality", "Minimality")))
