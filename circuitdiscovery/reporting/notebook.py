"""What a notebook shows of a circuit, scores, cards, a task and a comparison."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from circuitdiscovery.circuit.circuit import Circuit, Roles, Scores
from circuitdiscovery.reporting.charts import Chart, node_scores
from circuitdiscovery.values import table

if TYPE_CHECKING:
    from circuitdiscovery.circuit.comparison import Comparison
    from circuitdiscovery.explanation.cards import Explanation
    from circuitdiscovery.task.task import Task

ROWS = 10  # of a task's prompts, and of a circuit's edges beside no drawing
CARDS = 60


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


def of_explanation(explanation: Explanation) -> str:
    """A row per card."""
    cards = list(explanation.cards.values())
    rows = [(card.node, card.role or "", card.effect, card.direct, "; ".join(card.evidence)) for card in cards[:CARDS]]
    rest = f"; {len(cards) - CARDS} more" if len(cards) > CARDS else ""
    note = str(explanation).splitlines()[0] + rest
    return table(rows, head=("node", "role", "effect", "direct", "why"), note=note)


def of_comparison(comparison: Comparison) -> str:
    """A row for edges and one for nodes."""
    rows = [(name, part.found, part.reference, part.common, *map(_ratio, (part.precision, part.recall, part.jaccard))) for name, part in
            (("edges", comparison.edges), ("nodes", comparison.nodes))]  # fmt: skip
    rest = str(comparison).splitlines()[3:]
    return table(rows, head=("", "found", "reference", "common", "precision", "recall", "Jaccard"), note="; ".join(rest))


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def of_task(task: Task) -> str:
    """Its first prompts."""
    rows = [
        (row, each.text or " ".join(map(str, each.clean)), ", ".join(f"{name} = {word}" for name, word in each.variables.items()))
        for row, each in enumerate(task.examples[:ROWS])
    ]
    rest = f"; {len(task) - ROWS} more" if len(task) > ROWS else ""
    return table(rows, head=("row", "clean", "made of"), note=repr(task)[1:-1] + rest)
