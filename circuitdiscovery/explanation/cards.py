"""Cards of a circuit's nodes, as values and as files; `explain` makes them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from circuitdiscovery.circuit.numbers import OF_HEAD, about
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.explanation.json_values import Edges, Pairs
from circuitdiscovery.files.disk import data_frame
from circuitdiscovery.files.fields import exactly, typed
from circuitdiscovery.graph.nodes import parsed
from circuitdiscovery.measure.estimates import Estimate
from circuitdiscovery.registry import ablation_words
from circuitdiscovery.task.example import END
from circuitdiscovery.values import Value, part_in_words, table

if TYPE_CHECKING:
    import pandas as pd

FORMAT = "circuitdiscovery explanation 3"
FIRST_FORMAT = "circuitdiscovery explanation 1"
FORMER = "circuitdiscovery explanation 2"  # has every pattern whole
SHOWN = 60  # cards that a notebook shows
FIRST = "first token"  # a prompt's; where many heads look that find nothing


@dataclass(frozen=True, eq=False)
class Pattern:
    """A head's attention on one prompt.

    Args:
        text: the prompt.
        tokens: [T], as text; token ids where the model has no tokenizer.
        weights: [T, T] float32, from query (row) to key. Of more than 64 tokens a file has the 2,048 largest,
            to three digits; what it does not have is NaN where it is read.
        positions: the prompt's named positions.
    """

    text: str
    tokens: tuple[str, ...]
    weights: np.ndarray
    positions: Mapping[str, int]


@dataclass(frozen=True)
class Lens:
    """The five tokens that a node promotes most at a named position of a prompt, and the five that it
    suppresses most, in logits. The position is the answer's; of a part of other positions, its own.
    """

    text: str
    at: str
    promoted: Pairs
    suppressed: Pairs


@dataclass(frozen=True)
class CardSnippet:
    """A token that a unit was active at, with those around it.

    Args:
        tokens, activations: as texts, and how active the unit is at each; NaN at a prompt's first token.
        at: which of them it is.
    """

    tokens: tuple[str, ...]
    activations: tuple[float, ...]
    at: int

    def __str__(self) -> str:
        """The text with the token in brackets."""
        word = self.tokens[self.at]
        space = " " * (len(word) - len(word.lstrip(" ")))
        return "".join((*self.tokens[: self.at], f"{space}[{word.lstrip(' ')}]", *self.tokens[self.at + 1 :]))


@dataclass(frozen=True)
class CardUnit:
    """A neuron or a feature of a node.

    Args:
        name: such as "m2/n301".
        damage: of ablating it on the task's prompts, to first order; None where the card is the unit's own,
            whose effect was measured.
        promoted, suppressed: the tokens whose logits one unit of activation raises and lowers the most, by
            what it writes, without the last norm's division.
        snippets: where it is most active.
    """

    name: str
    damage: float | None
    promoted: Pairs
    suppressed: Pairs
    snippets: tuple[CardSnippet, ...] = ()


@dataclass(frozen=True, eq=False, repr=False)
class Card(Value):
    """Everything measured about one node.

    Args:
        node, kind: its name, or a part's, and "head" or "mlp".
        roles: what a head does, where the evidence supports it: role -> its evidence in sentences with
            figures, the strongest role first.
        effect: damage to the metric of ablating the node alone in the full model.
        direct: what it writes at END onto the logit difference,
            through the final norm frozen at the clean run.
        attention: mean weight from named position to named position, over the examples that have both;
            empty for MLPs.
        attended: the five that END attends to most, by position or text, with the mean weight.
        scores: of head_scores.py; empty for MLPs.
        patterns: attention on the first prompts; empty for MLPs.
        lens: what the node promotes and suppresses on the first prompts.
        in_edges, out_edges: the circuit's edges with their scores or None, the strongest first, at most ten.
        units: of an MLP the neurons, or the features of a dictionary, that matter most to the task; of a part
            that is one, itself.
        probes: what can be read there: label -> accuracy on examples that were held out.
    """

    node: str
    kind: Literal["head", "mlp"]
    roles: Mapping[str, tuple[str, ...]]
    effect: Estimate
    direct: Estimate
    attention: Mapping[tuple[str, str], float]
    attended: Pairs
    scores: Mapping[str, float]
    patterns: tuple[Pattern, ...]
    lens: tuple[Lens, ...]
    in_edges: Edges
    out_edges: Edges
    units: tuple[CardUnit, ...] = ()
    probes: Mapping[str, Estimate] = field(default_factory=dict)

    @property
    def role(self) -> str | None:
        """The strongest role; None where there is none."""
        return next(iter(self.roles), None)

    @property
    def about(self) -> str:
        """What a part is; empty for a whole node."""
        return about(self.node)

    @property
    def end(self) -> str | None:
        """The name of the answer's position, where a lens is of it; that of a part can be of its own."""
        return next((lens.at for lens in self.lens if parsed(self.node).part != f"@{lens.at}"), None)

    @property
    def evidence(self) -> tuple[str, ...]:
        """The evidence of all roles."""
        return tuple(sentence for told in self.roles.values() for sentence in told)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON, numbers to six significant digits."""
        from circuitdiscovery.explanation.card_json import card_as_json

        return card_as_json(self)

    @classmethod
    def from_dict(cls, data: Any, where: str = "card") -> Card:
        """What `to_dict` gave.

        Raises:
            CircuitDiscoveryError: anything missing, surplus or of another type, by field.
        """
        from circuitdiscovery.explanation.card_json import FIELDS, LATER, CardReader

        node = typed(exactly(data, FIELDS, where, optional=LATER)["node"], str, where, "node")
        return CardReader(where, node).card(node, data)

    def __str__(self) -> str:
        lines = [
            f"{'node':<13} {', '.join((self.node, *self.roles))}",
            *([f"{'part':<13} {self.about}"] if self.about else []),
            f"{'effect':<13} {self.effect}",
        ]
        lines += [f"{'direct':<13} {self.direct}", *(f"{'':<13} {sentence}" for sentence in self.evidence)]
        lines += [f"{'read there':<13} {label} {accuracy}" for label, accuracy in self.probes.items()]
        for unit in self.units:
            damage = "" if unit.damage is None else f"{unit.damage:.3g} "
            words = " ".join(visible(token, ()) for token, _ in unit.promoted)
            lines.append(f"{unit.name:<13} {damage}writes {words}")
            lines += [f"{'':<13} {snippet}" for snippet in unit.snippets]
        return "\n".join(lines)


@dataclass(frozen=True, eq=False, repr=False)
class Explanation(Value):
    """The cards of a circuit's nodes, and what they were measured on (see `explain`).

    `cards`, `roles` and `to_dataframe()` are in index order, from the first layer to the last. What is
    printed begins with the node of largest effect.

    Args:
        model, task: their names.
        part, examples: "held_out" or "examples", and how many: what is seen is of all of them.
        metric, ablation: of effects, which are of noising.
        effort: "full" or "quick".
        intervened: on how many of the examples interventions were made (effects, and what roles rest on).
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
        """Role -> nodes, as `Circuit.draw(roles=...)` takes it; a node with several roles stands in each."""
        found: dict[str, tuple[str, ...]] = {}
        for node, card in self.cards.items():
            for role in card.roles:
                found[role] = (*found.get(role, ()), node)
        return MappingProxyType(found)

    def _by_effect(self) -> list[Card]:
        return sorted(self.cards.values(), key=lambda card: -abs(card.effect))

    def _repr_html_(self) -> str:
        """A row per card."""
        cards = self._by_effect()
        rows = [
            (card.node, ", ".join(card.roles), card.effect, card.direct, "; ".join(card.evidence))
            for card in cards[:SHOWN]
        ]
        rest = f"; {len(cards) - SHOWN} more" if len(cards) > SHOWN else ""
        return table(
            rows, head=("node", "role", "effect", "direct", "why"), note=str(self).splitlines()[0] + rest
        )

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        where = part_in_words(self.part)
        some = f" (interventions on {self.intervened} of them)" if self.intervened < self.examples else ""
        how = f"{ablation_words(self.ablation, self.mean_over)}, noising"
        told = f"{self.metric} on {self.examples} {where}{some}, {how}"
        yield f"{len(self.cards)} nodes of {self.model} on {self.task}: {told}"
        if self.cards:
            yield from self._table()
        if self.unmeasured:
            yield f"not measured: {', '.join(self.unmeasured)}"

    def _table(self) -> Iterator[str]:
        end = next(filter(None, (card.end for card in self.cards.values())), END)
        rows = [("node", "role", "effect", "direct", f"{end} attends to")]
        rows += [
            (c.node, ", ".join(c.roles), str(c.effect), str(c.direct), _most(c, 3)) for c in self._by_effect()
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        if any(card.about and card.kind == "head" for card in self.cards.values()):
            yield OF_HEAD
        for card in self._by_effect():
            for role, evidence in card.roles.items():
                yield f"{card.node}: {role}"
                yield from (f"  {sentence}" for sentence in evidence)

    def to_dataframe(self) -> pd.DataFrame:
        """One row per node: node, roles (None for none), effect with its interval, direct, scores (NaN
        for MLPs), and what END attends to most.
        """
        names = list(dict.fromkeys(name for card in self.cards.values() for name in card.scores))
        columns = ["node", "role", "effect", "effect_low", "effect_high", "direct", *names, "top attention"]
        rows = [
            (
                c.node,
                ", ".join(c.roles) or None,
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
            "cards": {node: card.to_dict() for node, card in self.cards.items()},
        }

    @classmethod
    def from_dict(cls, data: Any, where: str = "explanation") -> Explanation:
        """What `to_dict` gave.

        Raises:
            CircuitDiscoveryError: anything missing, surplus or of another type, by field.
        """
        from circuitdiscovery.explanation.card_json import CardReader

        if isinstance(data, dict) and data.get("format") == FORMER:
            data = data | {"format": FORMAT}
        if isinstance(data, dict) and data.get("format") == FIRST_FORMAT:  # knew no other effort
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
            cards={node: CardReader(where, f"cards.{node}").card(node, card) for node, card in cards.items()},
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
    names = {name for pair in card.attention for name in pair}
    return ", ".join(f"{visible(name, names)} {weight:.2f}" for name, weight in card.attended[:count])


def visible(text: str, names: Collection[str]) -> str:
    """The name of a position, one of some names, or a token's text, which is in quotes unless it is words."""
    if text in names or text == FIRST:
        return text
    return text.strip() if all(map(str.isalnum, text.strip().split(" "))) else repr(text)
