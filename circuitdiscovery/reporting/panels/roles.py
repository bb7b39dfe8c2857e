"""Which roles the nodes have, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from circuitdiscovery.circuit import numbers
from circuitdiscovery.explanation.cards import FIRST
from circuitdiscovery.graph.nodes import parsed
from circuitdiscovery.reporting import sentences
from circuitdiscovery.reporting.drawing import colours, letters
from circuitdiscovery.reporting.folder import Run, roles_of
from circuitdiscovery.reporting.panels.panel import Json, Panel, beside, by_effect, cards_of
from circuitdiscovery.task.example import END

LOOKS = 0.2  # mean attention from which on a pair of positions is named in a summary
TOLD = 24  # nodes with a role up to which the table of roles says why


def values(run: Run) -> dict[str, Any]:
    """A row per role, and the nodes without one."""
    cards = cards_of(run)
    roles = roles_of(cards)
    return {
        "roles": rows(roles, cards),
        "why": sum(map(len, roles.values())) <= TOLD,
        "roleless": [card for card in by_effect(cards) if not card["roles"]],
        "unmeasured": run.explanation["unmeasured"] if run.explanation else [],
        "cards": list(cards.values()),
    }


def rows(roles: Mapping[str, Sequence[str]], cards: Mapping[str, Json]) -> list[dict[str, Any]]:
    """Each role with its letter, colour, meaning and nodes, those of largest effect first."""
    marks, tints = letters(list(roles)), colours(list(roles))
    return [
        {
            "role": role,
            "letter": marks[role],
            "colour": tints[role],
            "meaning": sentences.meaning(role),
            "cards": [
                dict(card) | {"looks": looks(card), "evidence": card["roles"][role]}
                for card in by_effect({node: cards[node] for node in nodes})
            ],
        }
        for role, nodes in roles.items()
    ]


def attention(card: Json) -> list[tuple[str, str, float]]:
    """(from, to, mean weight) of the named positions."""
    return [(source, target, weight) for source, target, weight in card["attention"]]


def end(card: Json) -> str:
    """The name of the answer's position."""
    own = parsed(card["node"]).part  # whose lens can be of its own position
    return next((lens["at"] for lens in card["lens"] if own != f"@{lens['at']}"), END)


def looks(card: Json) -> list[tuple[str, str, float]]:
    """Where a head looks most, if anywhere: between which named positions, or
    else to which tokens the answer's position looks; two at most.
    """
    at, known = end(card), {FIRST, *(name for pair in attention(card) for name in pair[:2])}
    pairs = [pair for pair in attention(card) if pair[0] != pair[1]]
    tokens = [
        (at, name if name in known else f'"{numbers.token(name)}"', weight)
        for name, weight in card["attended"]
        if name != at
    ]
    for found in (pairs, tokens):
        strong = sorted((pair for pair in found if pair[2] >= LOOKS), key=lambda pair: -pair[2])
        if strong:
            return strong[:2]
    return []


ROLES = Panel(beside(__file__), values, (("roles", "Roles"),))
