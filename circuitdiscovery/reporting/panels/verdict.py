"""The verdict, in a headline, in figures, in a paragraph."""

from __future__ import annotations

from typing import Any

from circuitdiscovery.graph.nodes import parsed
from circuitdiscovery.reporting import sentences
from circuitdiscovery.reporting.folder import Run
from circuitdiscovery.reporting.panels.panel import Panel, beside


def values(run: Run) -> dict[str, Any]:
    """The verdict on the circuit's figures."""
    graph = run.circuit.graph
    nodes = [node for node in run.circuit.nodes if parsed(node).kind in ("head", "mlp")]
    heads = graph.n_layers * (graph.n_heads + graph.has_mlp)
    return {"verdict": sentences.verdict(run.evaluation, len(nodes), heads, run.contents)}


VERDICT = Panel(beside(__file__), values, (("verdict", "Verdict"),))
