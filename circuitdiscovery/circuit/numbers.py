"""Numbers, intervals, tokens and names of parts as people read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from circuitdiscovery.graph.nodes import REST, parsed, whole_of
from circuitdiscovery.graph.splits import LETTER

MINUS = "\N{MINUS SIGN}"
OF_HEAD = "Attention, scores and roles of a head's part are those of the whole head."


def number(value: float) -> str:
    """Three significant digits, with a minus sign that is one.

    >>> number(0.05761), number(1234.5), number(-0.0)
    ('0.0576', '1,230', '0')
    """
    rounded = float(f"{value:.3g}") + 0.0  # -0.0 becomes 0.0
    text = f"{rounded:,.0f}" if abs(rounded) >= 1000 else f"{rounded:g}"
    return text.replace("-", MINUS)


def percent(value: float) -> str:
    """A share in percent; never 100% or 0% for what only rounds to it.

    >>> percent(0.97), percent(0.9999), percent(0.001)
    ('97%', '>99%', '<1%')
    """
    rounded = round(100 * value)
    if rounded == 100 and value < 1:
        return ">99%"
    if rounded == 0 and value > 0:
        return "<1%"
    return f"{rounded:,}%".replace("-", MINUS)


def interval(estimate: Mapping[str, float], form: Any = number) -> str:
    """The value with its interval where it has one: `0.147 [0.0119, 0.436]`."""
    if estimate["low"] is None:
        return form(estimate["value"])
    return f"{form(estimate['value'])} [{form(estimate['low'])}, {form(estimate['high'])}]"


def ends(estimate: Mapping[str, Any], form: str = "number") -> str:
    """An interval in words: `93% to 99%`; of a single prompt there is none."""
    if estimate["low"] is None:
        return "of a single prompt"
    low, high = ((percent if form == "percent" else number)(estimate[end]) for end in ("low", "high"))
    return f"{low} to {high}"


def token(text: str) -> str:
    """A token as people read it: without the space in front, and with what is not seen made visible."""
    shown = text.strip(" ").replace("\n", "⏎").replace("\t", "⇥")
    return shown or "␣" * max(1, len(text))


def plural(count: int, word: str) -> str:
    """`1 node`, `2 nodes`."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def about(node: str) -> str:
    """What a part of a node is, in words; empty for a whole node.

    >>> about("m2/n301"), about("m2")
    ('neuron 301 of m2', '')
    """
    place, whole = parsed(node), whole_of(node)
    if not place.part:
        return ""
    if place.part == REST:
        said = f"what the named parts of {whole} leave"
    elif place.part.startswith(LETTER["positions"]):
        said = f"what {whole} writes at {place.part[1:]}"
    else:
        kind = next(kind for kind, letter in LETTER.items() if place.part.startswith(letter))
        said = f"{kind.removesuffix('s')} {place.part[1:]} of {whole}"
    return f"{said}. {OF_HEAD}" if place.kind == "head" else said
