"""Cards as JSON and from it, each field checked."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from circuitdiscovery.explanation.cards import Card, CardSnippet, CardUnit, Lens, Pattern
from circuitdiscovery.explanation.json_values import Reader, as_json
from circuitdiscovery.files.fields import exactly, typed
from circuitdiscovery.measure.estimates import Estimate

WHOLE = 64  # tokens of the longest prompt whose pattern a file has whole; it would grow with their square
STRONGEST = 2048  # weights that it has of a longer one's
LATER = ("roles", "units", "probes")  # which the files of older versions do not have
# files from before a card could have several roles have the first, and all evidence
FIELDS = tuple(
    name
    for field in Card.__dataclass_fields__
    if field not in LATER[1:]
    for name in (("role", "evidence") if field == "roles" else (field,))
)


def card_as_json(card: Card) -> dict[str, Any]:
    """Everything, numbers to six significant digits; units and probes where there are some."""
    attention = [[source, target, weight] for (source, target), weight in card.attention.items()]
    known = {name: getattr(card, name) for name in (*FIELDS, "roles")}
    known |= {name: getattr(card, name) for name in LATER[1:] if getattr(card, name)}
    patterns = [_pattern_as_json(each) for each in card.patterns]
    return as_json(known | {"attention": attention, "patterns": patterns})


def _pattern_as_json(pattern: Pattern) -> dict[str, Any]:
    """A pattern as a file has it: `weights`, or of many tokens the `strongest` of them, [query, key, weight]
    each, to three digits."""
    size, weights = len(pattern.tokens), pattern.weights
    if size > WHOLE:
        flat = np.nan_to_num(weights).ravel()
        largest = np.argsort(-flat, kind="stable")[:STRONGEST]
        places = np.sort(largest[flat[largest] > 0]).tolist()
        weights = [[at // size, at % size, float(f"{flat[at]:.3g}")] for at in places]
    known = {"text": pattern.text, "tokens": pattern.tokens}
    return known | {"strongest" if size > WHOLE else "weights": weights, "positions": pattern.positions}


class CardReader(Reader):
    """Reads cards and what they hold."""

    def card(self, node: str, data: Any) -> Card:
        exactly(data, FIELDS, self.where, self.field, optional=LATER)
        kind = data["kind"]
        if data["node"] != node or kind not in ("head", "mlp"):
            raise self.wrong("node" if data["node"] != node else "kind")
        attention = {
            (self.text("attention", a), self.text("attention", b)): self.number("attention", w)
            for a, b, w in self.rows(data, "attention", 3)
        }
        return Card(
            node=node,
            kind=kind,
            roles=self.roles(data),
            effect=self.estimate(data, "effect"),
            direct=self.estimate(data, "direct"),
            attention=attention,
            attended=self.pairs(data, "attended"),
            scores={
                name: self.number("scores", value)
                for name, value in typed(data["scores"], dict, self.where, f"{self.field}.scores").items()
            },
            patterns=tuple(
                self.part("patterns", i).pattern(each) for i, each in enumerate(self.items(data, "patterns"))
            ),
            lens=tuple(self.part("lens", i).lens(each) for i, each in enumerate(self.items(data, "lens"))),
            in_edges=self.edges(data, "in_edges"),
            out_edges=self.edges(data, "out_edges"),
            units=tuple(self.part("units", i).unit(each) for i, each in enumerate(self.items(data, "units")))
            if "units" in data
            else (),
            probes=self.probes(data),
        )

    def probes(self, data: Any) -> dict[str, Estimate]:
        found = typed(data.get("probes", {}), dict, self.where, f"{self.field}.probes")
        inside = CardReader(self.where, f"{self.field}.probes")
        return {label: inside.estimate(found, label) for label in found}

    def unit(self, data: Any) -> CardUnit:
        exactly(data, CardUnit.__dataclass_fields__, self.where, self.field)
        return CardUnit(
            name=self.text("name", data["name"]),
            damage=None if data["damage"] is None else self.number("damage", data["damage"]),
            promoted=self.pairs(data, "promoted"),
            suppressed=self.pairs(data, "suppressed"),
            snippets=tuple(
                self.part("snippets", i).snippet(each) for i, each in enumerate(self.items(data, "snippets"))
            ),
        )

    def snippet(self, data: Any) -> CardSnippet:
        exactly(data, CardSnippet.__dataclass_fields__, self.where, self.field)
        tokens = self.texts(data, "tokens")
        values = tuple(
            math.nan if each is None else self.number("activations", each)
            for each in self.items(data, "activations")
        )
        at = typed(data["at"], int, self.where, f"{self.field}.at")
        if len(values) != len(tokens) or not 0 <= at < len(tokens):
            raise self.wrong("tokens")
        return CardSnippet(tokens, values, at)

    def roles(self, data: Any) -> dict[str, tuple[str, ...]]:
        """Role -> evidence; `role` and `evidence` must say the same."""
        role = None if data["role"] is None else self.text("role", data["role"])
        evidence = self.texts(data, "evidence")
        if "roles" not in data:
            return {} if role is None else {role: evidence}
        found = typed(data["roles"], dict, self.where, f"{self.field}.roles")
        roles = {name: self.texts(found, name) for name in found}
        if next(iter(roles), None) != role or sum(roles.values(), ()) != evidence:
            raise self.wrong("roles")
        return roles

    def texts(self, data: Any, name: str) -> tuple[str, ...]:
        return tuple(self.text(name, each) for each in self.items(data, name))

    def pattern(self, data: Any) -> Pattern:
        weights = "strongest" if isinstance(data, dict) and "strongest" in data else "weights"
        exactly(data, ("text", "tokens", weights, "positions"), self.where, self.field)
        tokens = tuple(self.text("tokens", each) for each in self.items(data, "tokens"))
        places = typed(data["positions"], dict, self.where, f"{self.field}.positions")
        positions = {
            name: int(typed(at, int, self.where, f"{self.field}.positions.{name}"))
            for name, at in places.items()
        }
        found = (self.strongest if weights == "strongest" else self.whole)(data, len(tokens))
        return Pattern(self.text("text", data["text"]), tokens, found, positions)

    def whole(self, data: Any, size: int) -> np.ndarray:
        """[T, T]: a pattern's weights."""
        rows = [[self.number("weights", each) for each in row] for row in self.rows(data, "weights", size)]
        if len(rows) != size:
            raise self.wrong("weights")
        return np.array(rows, dtype=np.float32)

    def strongest(self, data: Any, size: int) -> np.ndarray:
        """[T, T]: the largest of a pattern's weights, NaN elsewhere."""
        found = np.full((size, size), np.nan, dtype=np.float32)
        for *at, weight in self.rows(data, "strongest", 3):
            query, key = (typed(each, int, self.where, f"{self.field}.strongest") for each in at)
            if not (0 <= query < size and 0 <= key < size):
                raise self.wrong("strongest")
            found[query, key] = self.number("strongest", weight)
        return found

    def lens(self, data: Any) -> Lens:
        exactly(data, Lens.__dataclass_fields__, self.where, self.field)
        return Lens(
            self.text("text", data["text"]),
            self.text("at", data["at"]),
            self.pairs(data, "promoted"),
            self.pairs(data, "suppressed"),
        )
