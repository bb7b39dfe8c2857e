"""The verdict, in a headline, in figures, in a paragraph."""

from __future__ import annotations

from typing import Any

from circuitdiscovery.circuit.comparison import components
from circuitdiscovery.reporting import sentences
from circuitdiscovery.reporting.folder import Run
from circuitdiscovery.reporting.panels.panel import Panel, beside


def values(run: Run) -> dict[str, Any]:
    """The verdict on the circuit's figures."""
    graph = run.circuit.graph
    counts = len(components(run.circuit)), len(graph.inner)
    what = "heads, MLPs and parts of them" if graph.splits else "heads and MLPs"
    return {"verdict": sentences.verdict(run.evaluation, *counts, run.contents, what=what)}


VERDICT = Panel(beside(__file__), values, (("verdict", "Verdict"),))
