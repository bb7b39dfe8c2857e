"""The circuit as a drawing, the nodes' scores, and a card for each node."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from circuitdiscovery.circuit import charts
from circuitdiscovery.circuit.checks import check_same_graph
from circuitdiscovery.circuit.circuit import Circuit
from circuitdiscovery.circuit.draw import signs
from circuitdiscovery.circuit.numbers import about
from circuitdiscovery.circuit.scores import Scores
from circuitdiscovery.graph.nodes import letter_of, node_of, split_edge
from circuitdiscovery.registry import are_damages
from circuitdiscovery.reporting.drawing import colours, drawing, letters, part_of
from circuitdiscovery.reporting.folder import Run, roles_of, strongest_roles_of
from circuitdiscovery.reporting.panels.panel import Json, Panel, beside, by_effect, cards_of
from circuitdiscovery.reporting.panels.roles import attention, end, looks, rows

BESIDE = 900  # points of width up to which a drawing can be read beside the cards


def values(run: Run) -> dict[str, Any]:
    """The drawing, its legend, the chart of nodes, the cards."""
    circuit, cards = run.circuit, cards_of(run)
    roles = roles_of(cards)
    drawn, shown = part_of(circuit)
    picture = drawing(drawn, strongest_roles_of(cards), list(cards))
    return {
        "drawing": Markup(picture),
        "large": int(re.findall(r"--width:(\d+)", picture)[0]) > BESIDE,
        "drawn": len(drawn),
        "shown": shown,
        "node_scores": _node_scores(run, list(cards)),
        "scored": circuit.scores is not None,
        "signs": _signs(drawn),
        "damages": are_damages(circuit.info),
        "roles": rows(roles, cards),
        "cards": _cards(run),
    }


def _cards(run: Run) -> list[dict[str, Any]]:
    cards = cards_of(run)
    roles = list(roles_of(cards))
    marks, tints = letters(roles), colours(roles)
    limit = charts.cells_each(sum(len(card["patterns"]) for card in cards.values()))
    each = 3 if limit else 1
    limit = limit or charts.cells_each(sum(bool(card["patterns"]) for card in cards.values()))
    return [
        dict(card)
        | {
            "marks": [(role, marks[role], tints[role], why) for role, why in card["roles"].items()],
            "about": about(card["node"]),
            "partly": any("strongest" in pattern for pattern in card["patterns"]),
            "looks": looks(card),
            "end": end(card),
            "table": _table(card),
            "units": [_unit(unit) for unit in card.get("units", ())],
            "probes": card.get("probes", {}),
        }
        | {
            "reads": [_in_edge(*edge) for edge in card["in_edges"]],
            "read_by": [_out_edge(*edge) for edge in card["out_edges"]],
        }
        | {
            "maps": [
                (pattern["text"], Markup(charts.heat_map(pattern, limit)))
                for pattern in card["patterns"][: each if limit else 0]
            ]
        }
        for card in by_effect(cards)
    ]


def _unit(unit: Json) -> Json:
    """A neuron or a feature; its snippets as (the space before a token, the token, its share of the largest
    activation shown, whether it is the one that the snippet is of)."""
    active = [abs(each or 0.0) for snippet in unit["snippets"] for each in snippet["activations"]]
    most = max(active, default=0.0) or 1.0
    snippets = [
        [
            (*_spaced(token), (value or 0.0) / most, i == snippet["at"])
            for i, (token, value) in enumerate(zip(snippet["tokens"], snippet["activations"], strict=True))
        ]
        for snippet in unit["snippets"]
    ]
    return dict(unit) | {"snippets": snippets, "feature": "/f" in unit["name"]}


def _spaced(token: str) -> tuple[str, str]:
    """(the space in front, the rest)."""
    word = token.lstrip(" ")
    return token[: len(token) - len(word)], word


def _in_edge(edge: str, score: float | None) -> tuple[str, str, float | None]:
    """(the source, the letter that reads it, the score) of an edge into a card's node."""
    source, receiver = split_edge(edge)
    return source, f"into {letter_of(receiver)}" if letter_of(receiver) else "", score


def _out_edge(edge: str, score: float | None) -> tuple[str, str, float | None]:
    """(the reader, its letter, the score) of an edge out of a card's node."""
    receiver = split_edge(edge)[1]
    return node_of(receiver), f"by its {letter_of(receiver)}" if letter_of(receiver) else "", score


def _table(card: Json) -> dict[str, Any] | None:
    """Mean attention from each named position (rows) to each (columns)."""
    known = {(source, target): weight for source, target, weight in attention(card)}
    if not known:
        return None
    names = list(dict.fromkeys(name for pair in known for name in pair))
    return {
        "columns": names,
        "rows": [(source, [known.get((source, target)) for target in names]) for source in names],
    }


def _signs(drawn: Circuit) -> dict[str, str | bool]:
    """The kinds of edges that the drawing has, in words, for its legend."""
    known, (above, below) = [drawn.score(edge) for edge in drawn.edges], signs(drawn.info)
    return {
        "helps": any(score is not None and score >= 0 for score in known) and above,
        "hurts": any(score is not None and score < 0 for score in known) and below,
        "unscored": any(score is None for score in known),
    }


def _node_scores(run: Run, cards: Sequence[str]) -> dict[str, Any] | None:
    """The heat map by the run's own scores, else by those of the
    circuit's edges; None where there are none."""
    circuit, own = run.circuit, run.scores()
    if own is not None:
        check_same_graph(circuit, own)
        scores = own
    elif circuit.scores is not None:
        scores = Scores(circuit.graph, np.nan_to_num(circuit.scores), circuit.info)
    else:
        return None
    kept = [circuit.graph.sources[row] for row in np.flatnonzero(np.any(circuit.mask, axis=1))]
    chart = charts.node_scores(circuit.graph, scores.by_node(), kept=kept, cards=cards)
    return {"svg": Markup(chart), "own": own is not None}


CIRCUIT = Panel(beside(__file__), values, (("circuit", "Circuit"),))
