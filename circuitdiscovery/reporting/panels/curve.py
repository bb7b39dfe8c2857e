"""The faithfulness curve, with the chosen circuit marked."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from circuitdiscovery.circuit import charts
from circuitdiscovery.reporting.folder import Run
from circuitdiscovery.reporting.panels.panel import Panel, beside


def _curve(run: Run) -> dict[str, Any]:
    """The chart, what ranked its edges, and the areas; or why there is none."""
    known = run.contents["curve"] if run.contents else None
    if known is None or run.evaluation["normalized"] is None:
        why = run.contents["no_curve"] if run.contents else run.missing
        return {"svg": None, "why": why}
    chart = charts.curve(
        known,
        edges=run.evaluation["edges_pruned"],
        normalized=run.evaluation["normalized"],
        total=run.evaluation["edges_total"],
    )
    former = "area" not in known  # in which ours stood under MIB's names
    ours = (known["cpr"], known["cmd"]) if former else (known["area"], known["distance"])
    mib = {name: None if former else known[name] for name in ("cpr", "cmd")}
    mib["grouped"] = run.circuit.graph.grouped
    return {"svg": Markup(chart), "ranking": known["ranking"], "area": ours[0], "distance": ours[1]} | mib


CURVE = Panel(beside(__file__), lambda run: {"curve": _curve(run)}, (("curve", "Curve"),))
