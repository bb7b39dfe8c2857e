"""What a notebook shows of a circuit and of scores."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from circuitdiscovery.circuit.charts import Chart, node_scores
from circuitdiscovery.circuit.circuit import Circuit, Roles
from circuitdiscovery.circuit.scores import Scores
from circuitdiscovery.values import table


@dataclass(frozen=True, eq=False)
class Drawing:
    """A drawing of a circuit, made when it is shown or saved; arguments as in `Circuit.draw`."""

    circuit: Circuit
    scores: Scores | None = None
    roles: Roles | None = None
    max_edges: int | None = 60

    def save(self, path: str | Path) -> None:
        """Write a .svg, .png, .pdf or .dot file."""
        from circuitdiscovery.circuit.draw import draw

        draw(self.circuit, path, scores=self.scores, roles=self.roles, max_edges=self.max_edges)

    @property
    def svg(self) -> str:
        """The picture as SVG."""
        from circuitdiscovery.circuit.draw import to_svg

        return to_svg(self.circuit, scores=self.scores, roles=self.roles, max_edges=self.max_edges)

    def _repr_svg_(self) -> str:
        return self.svg

    def __repr__(self) -> str:
        return f"Drawing({self.circuit!r})"


def of_circuit(circuit: Circuit) -> str:
    """Its drawing, or of a circuit without an edge the sentence that says so."""
    if len(circuit) == 0:
        return table([[repr(circuit)]])
    svg = Drawing(circuit).svg
    return svg[svg.index("<svg") :]  # without the XML declaration, which is not HTML


def of_scores(scores: Scores) -> str:
    """The heat map of its nodes."""
    return Chart.standing(node_scores(scores.graph, scores.by_node())).svg
