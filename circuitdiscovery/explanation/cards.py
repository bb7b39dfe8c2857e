"""Cards of a circuit's nodes, as values and as files; `explain` makes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.files.disk import data_frame
from circuitdiscovery.files.fields import exactly, typed
from circuitdiscovery.measure.estimates import Estimate
from circuitdiscovery.registry import ablation_words
from circuitdiscovery.values import Value, table

if TYPE_CHECKING:
    import pandas as pd

FORMAT = "circuitdiscovery explanation 2"
FORMER = "circuitdiscovery explanation 1"
SHOWN = 60  # cards that a notebook shows
_DIGITS = 6  # significant ones in a file: what is beyond differs from machine to machine

Pairs = tuple[tuple[str, float], ...]
Edges = tuple[tuple[str, float | None], ...]


@dataclass(frozen=True, eq=False)
class Pattern:
    """A head's attention on one prompt.

    Args:
        text: the prompt.
        tokens: [T], as text; token ids where the model has no tokenizer.
        weights: [T, T] float32, from query (row) to key.
        positions: the prompt's named positions.
    """

    text: str
    tokens: tuple[str, ...]
    weights: np.ndarray
    positions: Mapping[str, int]


@dataclass(frozen=True)
class Lens:
    """The five tokens that a node promotes most at a named position of a prompt, and the
    five that it suppresses most; in logits.
    """

    text: str
    at: str
    promoted: Pairs
    suppressed: Pairs


@dataclass(frozen=True, eq=False, repr=False)
class Card(Value):
    """What is known of one node.

    Args:
        node, kind: which, and "head" or "mlp".
        role: what a head does, where the evidence supports a role.
        evidence: sentences with figures; empty if and only if there is no role.
        effect: damage to the metric of ablating the node alone in the full model.
        direct: what it writes at END onto the logit difference,
            through the final norm frozen at the clean run.
        attention: mean weight from named position to named position, over the
            examples that have both; empty for MLPs.
        attended: the five that END attends to most, as named position or else
            as the token's text, with the mean weight.
        scores: of headscores.py; empty for MLPs.
        patterns: attention on the first prompts; empty for MLPs.
        lens: what the node promotes and suppresses on the first prompts.
        in_edges, out_edges: the circuit's edges with their scores (None: it has
            none), the strongest first, at most ten.
    """

    node: str
    kind: Literal["head", "mlp"]
    role: str | None
    evidence: tuple[str, ...]
    effect: Estimate
    direct: Estimate
    attention: Mapping[tuple[str, str], float]
    attended: Pairs
    scores: Mapping[str, float]
    patterns: tuple[Pattern, ...]
    lens: tuple[Lens, ...]
    in_edges: Edges
    out_edges: Edges

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON, numbers to six significant digits."""
        return _written(self)

    @classmethod
    def from_dict(cls, data: Any, where: str = "card") -> Card:
        """What `to_dict` gave.

        Raises:
            CircuitDiscoveryError: anything missing, surplus or of another type, by field.
        """
        node = typed(exactly(data, Card.__dataclass_fields__, where)["node"], str, where, "node")
        return _Reader(where, node).card(node, data)

    def __str__(self) -> str:
        lines = [
            f"{'node':<13} {self.node}{f', {self.role}' if self.role else ''}",
            f"{'effect':<13} {self.effect}",
        ]
        return "\n".join(
            [*lines, f"{'direct':<13} {self.direct}", *(f"{'':<13} {sentence}" for sentence in self.evidence)]
        )


@dataclass(frozen=True, eq=False, repr=False)
class Explanation(Value):
    """The cards of a circuit's nodes, in index order, and what they were measured on (see `explain`).

    Args:
        model, task: their names.
        part, examples: "held_out" or "examples", and how many: what is seen is of all of them.
        metric, ablation: of effects.
        effort: "full" or "quick".
        intervened: on how many of the examples interventions were made
            (effects, and those that roles rest on).
        unmeasured: the circuit's heads and MLPs without a card, in index order.
        cards: by node.
        mean_over: the fewest prompts that a replacement is a mean over; None: it is not a mean.
    """

    model: str
    task: str
    part: str
    examples: int
    metric: str
    ablation: str
    effort: str
    intervened: int
    unmeasured: tuple[str, ...]
    cards: Mapping[str, Card]
    mean_over: int | None = None

    @property
    def roles(self) -> Mapping[str, tuple[str, ...]]:
        """Role -> nodes, as `Circuit.draw(roles=...)` takes it."""
        found: dict[str, tuple[str, ...]] = {}
        for node, card in self.cards.items():
            if card.role is not None:
                found[card.role] = (*found.get(card.role, ()), node)
        return MappingProxyType(found)

    def _repr_html_(self) -> str:
        """A row per card."""
        cards = list(self.cards.values())
        rows = [
            (card.node, card.role or "", card.effect, card.direct, "; ".join(card.evidence))
            for card in cards[:SHOWN]
        ]
        rest = f"; {len(cards) - SHOWN} more" if len(cards) > SHOWN else ""
        return table(
            rows, head=("node", "role", "effect", "direct", "why"), note=str(self).splitlines()[0] + rest
        )

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        where = "held-out examples" if self.part == "held_out" else "examples (none are held out)"
        some = f" (interventions on {self.intervened} of them)" if self.intervened < self.examples else ""
        told = (
            f"{self.metric} on {self.examples} {where}{some}, {ablation_words(self.ablation, self.mean_over)}"
        )
        yield f"{len(self.cards)} nodes of {self.model} on {self.task}: {told}"
        if self.cards:
            yield from self._table()
        if self.unmeasured:
            yield f"not measured: {', '.join(self.unmeasured)}"

    def _table(self) -> Iterator[str]:
        rows = [("node", "role", "effect", "direct", "END attends to")]
        rows += [
            (c.node, c.role or "", str(c.effect), str(c.direct), _most(c, 3)) for c in self.cards.values()
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for card in self.cards.values():
            if card.role is not None:
                yield f"{card.node}: {card.role}"
                yield from (f"  {sentence}" for sentence in card.evidence)

    def to_dataframe(self) -> pd.DataFrame:
        """One row per node: node, role, effect with its interval, direct, scores (NaN
        for MLPs), and what END attends to most.
        """
        names = list(dict.fromkeys(name for card in self.cards.values() for name in card.scores))
        columns = ["node", "role", "effect", "effect_low", "effect_high", "direct", *names, "top attention"]
        rows = [
            (
                c.node,
                c.role,
                float(c.effect),
                c.effect.low,
                c.effect.high,
                float(c.direct),
                *_scores(c, names),
                _most(c, 1) or None,
            )
            for c in self.cards.values()
        ]
        return data_frame(rows, columns=columns)

    # ----------------------------------------------------------------- files

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON, numbers to six significant digits: the same for the same explanation."""
        known = {name: getattr(self, name) for name in _HEAD} | {"unmeasured": list(self.unmeasured)}
        known |= {} if self.mean_over is None else {"mean_over": self.mean_over}
        return {
            "format": FORMAT,
            **known,
            "cards": {node: _written(card) for node, card in self.cards.items()},
        }

    @classmethod
    def from_dict(cls, data: Any, where: str = "explanation") -> Explanation:
        """What `to_dict` gave.

        Raises:
            CircuitDiscoveryError: anything missing, surplus or of another type, by field.
        """
        if isinstance(data, dict) and data.get("format") == FORMER:  # knew no other effort
            data = data | {
                "format": FORMAT,
                "effort": "full",
                "intervened": data.get("examples"),
                "unmeasured": [],
            }
        exactly(data, ("format", *_HEAD, "unmeasured", "cards"), where, optional=("mean_over",))
        if data["format"] != FORMAT:
            raise CircuitDiscoveryError(f"{where}: field 'format' must be {FORMAT!r}, not {data['format']!r}")
        known = {name: typed(data[name], kind, where, name) for name, kind in _HEAD.items()}
        known["unmeasured"] = tuple(
            typed(node, str, where, "unmeasured")
            for node in typed(data["unmeasured"], list, where, "unmeasured")
        )
        known |= (
            {"mean_over": typed(data["mean_over"], int, where, "mean_over")} if "mean_over" in data else {}
        )
        cards = typed(data["cards"], dict, where, "cards")
        return cls(
            **known,
            cards={node: _Reader(where, f"cards.{node}").card(node, card) for node, card in cards.items()},
        )


_HEAD: dict[str, type] = {
    "model": str,
    "task": str,
    "part": str,
    "examples": int,
    "metric": str,
    "ablation": str,
    "effort": str,
    "intervened": int,
}


def _scores(card: Card, names: Sequence[str]) -> list[float]:
    return [card.scores.get(name, float("nan")) for name in names]


def _most(card: Card, count: int) -> str:
    return ", ".join(f"{visible(name)} {weight:.2f}" for name, weight in card.attended[:count])


def visible(name: str) -> str:
    """A position's name, or a token's text as it stands in a sentence: punctuation and spaces in quotes."""
    return name.strip() if name.strip().isalnum() else repr(name)


# -------------------------------------------------------------------- to JSON


def _written(card: Card) -> dict[str, Any]:
    plain = {name: _plain(getattr(card, name)) for name in Card.__dataclass_fields__}
    return plain | {
        "attention": [
            [source, target, _rounded(weight)] for (source, target), weight in card.attention.items()
        ]
    }


def _plain(value: Any) -> Any:
    if type(value) is float:  # most of them are
        return _rounded(value)
    if isinstance(value, Estimate):
        return {name: None if each is None else _rounded(each) for name, each in value.to_dict().items()}
    if isinstance(value, Pattern | Lens):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(tuple(value.tolist()))
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    return _rounded(value) if isinstance(value, float) else value


def _rounded(value: float) -> float:
    return float(f"{float(value):.{_DIGITS}g}")


# ------------------------------------------------------------------ from JSON


@dataclass(frozen=True)
class _Reader:
    """Values of a file's object, each checked; `field` is where in the file."""

    where: str
    field: str

    def card(self, node: str, data: Any) -> Card:
        exactly(data, Card.__dataclass_fields__, self.where, self.field)
        kind, role = data["kind"], data["role"]
        if data["node"] != node or kind not in ("head", "mlp"):
            raise self._wrong("node" if data["node"] != node else "kind")
        attention = {
            (self._text("attention", a), self._text("attention", b)): self._number("attention", w)
            for a, b, w in self._rows(data, "attention", 3)
        }
        return Card(
            node=node,
            kind=kind,
            role=None if role is None else self._text("role", role),
            evidence=tuple(self._text("evidence", each) for each in self._list(data, "evidence")),
            effect=self._estimate(data, "effect"),
            direct=self._estimate(data, "direct"),
            attention=attention,
            attended=self._pairs(data, "attended"),
            scores={
                name: self._number("scores", value)
                for name, value in typed(data["scores"], dict, self.where, f"{self.field}.scores").items()
            },
            patterns=tuple(
                self._part("patterns", i).pattern(each) for i, each in enumerate(self._list(data, "patterns"))
            ),
            lens=tuple(self._part("lens", i).lens(each) for i, each in enumerate(self._list(data, "lens"))),
            in_edges=self._edges(data, "in_edges"),
            out_edges=self._edges(data, "out_edges"),
        )

    def pattern(self, data: Any) -> Pattern:
        exactly(data, Pattern.__dataclass_fields__, self.where, self.field)
        tokens = tuple(self._text("tokens", each) for each in self._list(data, "tokens"))
        rows = [
            [self._number("weights", each) for each in row]
            for row in self._rows(data, "weights", len(tokens))
        ]
        if len(rows) != len(tokens):
            raise self._wrong("weights")
        places = typed(data["positions"], dict, self.where, f"{self.field}.positions")
        positions = {
            name: int(typed(at, int, self.where, f"{self.field}.positions.{name}"))
            for name, at in places.items()
        }
        return Pattern(self._text("text", data["text"]), tokens, np.array(rows, dtype=np.float32), positions)

    def lens(self, data: Any) -> Lens:
        exactly(data, Lens.__dataclass_fields__, self.where, self.field)
        return Lens(
            self._text("text", data["text"]),
            self._text("at", data["at"]),
            self._pairs(data, "promoted"),
            self._pairs(data, "suppressed"),
        )

    def _part(self, name: str, index: int) -> _Reader:
        return _Reader(self.where, f"{self.field}.{name}.{index}")

    def _wrong(self, name: str) -> CircuitDiscoveryError:
        return CircuitDiscoveryError(
            f"{self.where}: field '{self.field}.{name}' is not as an explanation has it"
        )

    def _text(self, name: str, value: Any) -> str:
        return typed(value, str, self.where, f"{self.field}.{name}")

    def _number(self, name: str, value: Any) -> float:
        return float(typed(value, float, self.where, f"{self.field}.{name}"))

    def _list(self, data: Any, name: str) -> list[Any]:
        return typed(data[name], list, self.where, f"{self.field}.{name}")

    def _rows(self, data: Any, name: str, width: int) -> list[list[Any]]:
        rows = self._list(data, name)
        if not all(isinstance(row, list) and len(row) == width for row in rows):
            raise self._wrong(name)
        return rows

    def _pairs(self, data: Any, name: str) -> Pairs:
        return tuple(
            (self._text(name, text), self._number(name, value)) for text, value in self._rows(data, name, 2)
        )

    def _edges(self, data: Any, name: str) -> Edges:
        rows = self._rows(data, name, 2)
        return tuple(
            (self._text(name, edge), None if score is None else self._number(name, score))
            for edge, score in rows
        )

    def _estimate(self, data: Any, name: str) -> Estimate:
        exactly(data[name], ("value", "low", "high"), self.where, f"{self.field}.{name}")
        if data[name]["low"] is None and data[name]["high"] is None:  # of one example
            return Estimate(self._number(f"{name}.value", data[name]["value"]))
        return Estimate(
            *(self._number(f"{name}.{part}", data[name][part]) for part in ("value", "low", "high"))
        )
