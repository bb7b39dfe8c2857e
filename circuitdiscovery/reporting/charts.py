"""The page's charts as inline SVG: the faithfulness curve and attention patterns. Their colours are the style sheet's."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from circuitdiscovery.reporting.words import number, percent, token

WIDTH, HEIGHT = 760, 340
LEFT, RIGHT, TOP, BOTTOM = 58, 18, 16, 48
CELL = 17  # of a heat map, in pixels
FAINTEST = 0.01  # attention below it is not drawn
CELLS = 16_000  # of all heat maps of a page together: less than two megabytes
_FEWEST = 60  # cells of one heat map


# --------------------------------------------------------------------- curve


class _Scale(NamedTuple):
    """Where an edge count (logarithmic) and a normalized faithfulness lie."""

    first: float
    last: float
    bottom: float
    top: float

    def x(self, edges: float) -> float:
        along = math.log(max(edges, self.first) / self.first) / math.log(self.last / self.first)
        return round(LEFT + along * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        value = min(max(value, self.bottom - 0.5), self.top + 0.5)  # what is cut off needs no large numbers
        return round(HEIGHT - BOTTOM - (value - self.bottom) / (self.top - self.bottom) * (HEIGHT - TOP - BOTTOM), 1)


def curve(known: Mapping[str, Any], *, edges: int, normalized: Mapping[str, float], total: int) -> str:
    """The curve with the chosen circuit marked.

    Args:
        known: of report.json: how the edges were ranked, and at each number of edges the normalized faithfulness with its interval.
        edges: of the chosen circuit, on a path from input to logits, as the curve counts them.
        normalized: the chosen circuit's.
        total: the graph's edges.
    """
    points = list(zip(known["edges"], known["normalized"], strict=True))
    scale = _scale([count for count, _ in points] + [edges, total], [each["value"] for _, each in points] + [normalized["value"]])
    line = " ".join(f"{scale.x(count)},{scale.y(each['value'])}" for count, each in points)
    dots = "".join(
        f"<g><title>{count:,} edges: {_said(each)}</title>{_whisker(scale, count, each)}"
        f'<circle class="dot" cx="{scale.x(count)}" cy="{scale.y(each["value"])}" r="4"/></g>'
        for count, each in points
    )
    chosen = _chosen(scale, edges, normalized)
    label = f"Normalized faithfulness against the number of edges; this circuit: {edges:,} edges, {_said(normalized)}"
    frame = f'<clipPath id="plot"><rect x="0" y="{TOP - 8}" width="{WIDTH}" height="{HEIGHT - TOP - BOTTOM + 16}"/></clipPath>'
    plot = f'<g clip-path="url(#plot)"><polyline class="ranked" points="{line}"/>{dots}{chosen}</g>'
    return f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{frame}{_axes(scale, total)}{plot}</svg>'


def _scale(counts: Sequence[int], values: Sequence[float]) -> _Scale:
    first = 0.5 if min(counts) < 1 else min(counts)  # no edge at all has no logarithm; it stands where half an edge would
    last = max(*counts, 2 * first)
    low, high = min(0.0, max(min(values), -1.0)), max(1.0, min(max(values), 2.0))
    return _Scale(first, last, low - 0.06, high + 0.1)


def _chosen(scale: _Scale, edges: int, normalized: Mapping[str, float]) -> str:
    x, y = scale.x(edges), scale.y(normalized["value"])
    # the corner below the curve, which has risen where it reaches it
    said = f"this circuit: {edges:,} edges, {percent(normalized['value'])}"
    text = f'<text class="marker-label" x="{WIDTH - RIGHT - 8}" y="{HEIGHT - BOTTOM - 40}" text-anchor="end">◆ {said}</text>'
    diamond = f'<path class="marker" d="M{x},{y - 8:.1f}l8,8l-8,8l-8,-8z"/>'
    return f'<g id="chosen"><title>{_said(normalized)}</title>{_whisker(scale, edges, normalized)}{diamond}{text}</g>'


def _whisker(scale: _Scale, count: int, estimate: Mapping[str, float]) -> str:
    x, low, high = scale.x(count), scale.y(estimate["low"]), scale.y(estimate["high"])
    return f'<path class="whisker" d="M{x},{low}V{high}M{x - 4:.1f},{low}h8M{x - 4:.1f},{high}h8"/>'


def _axes(scale: _Scale, total: int) -> str:
    parts, floor = [], HEIGHT - BOTTOM
    step = 0.25 if scale.top - scale.bottom < 1.8 else 0.5
    for i in range(math.ceil(scale.bottom / step), math.floor(scale.top / step) + 1):
        y, kind = scale.y(i * step), "whole" if i * step == 1 else "nothing" if i == 0 else ""
        parts.append(f'<path class="grid {kind}" d="M{LEFT},{y}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{percent(i * step)}</text>')
    for count in _ticks(scale, total):
        x = scale.x(count)
        parts.append(f'<path class="grid" d="M{x},{floor}v5"/><text x="{x}" y="{floor + 19}" text-anchor="middle">{count:,}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">edges (logarithmic)</text>')
    return f'<g class="axes">{"".join(parts)}</g>'


def _ticks(scale: _Scale, total: int) -> list[int]:
    """0 where something lies there, 1, 2, 5, 10, ..., and the graph's number of edges; none so near the next that they touch."""
    round_ones = [digit * 10**power for power in range(8) for digit in (1, 2, 5)]
    wanted = [0] * (scale.first < 1) + [count for count in round_ones if scale.first <= count < total]
    kept: list[int] = []
    for count in wanted:
        if scale.x(total) - scale.x(count) > 52 and (not kept or scale.x(count) - scale.x(kept[-1]) > 38):
            kept.append(count)
    return [*kept, total]


def _said(estimate: Mapping[str, float]) -> str:
    return f"{percent(estimate['value'])}, 95% interval {percent(estimate['low'])} to {percent(estimate['high'])}"


# ----------------------------------------------------------------- attention


def cells_each(patterns: int) -> int:
    """How many cells a heat map may have on a page with so many, so that the page stays small; 0: the page has too many of them."""
    each = CELLS // max(1, patterns)
    return each if each >= _FEWEST else 0


def heat_map(pattern: Mapping[str, Any], limit: int) -> str:
    """An attention pattern: a row per attending token, a column per token attended to, darker where more; each cell says its weight."""
    tokens, weights = pattern["tokens"], pattern["weights"]
    places = {index: name for name, index in pattern["positions"].items()}
    names = [_name(text, places.get(i)) for i, text in enumerate(tokens)]
    side = 8 + max(len(name) for name in names) * 6.6
    size = len(tokens) * CELL
    found = [(weight, row, column) for row, line in enumerate(weights) for column, weight in enumerate(line) if weight >= FAINTEST]
    kept = sorted(sorted(found, reverse=True)[:limit], key=lambda cell: cell[1:])
    cells = "".join(_cell(weight, row, column, names) for weight, row, column in kept)
    rows = "".join(_label(name, i in places, f'x="-6" y="{i * CELL + 12.5}" text-anchor="end"') for i, name in enumerate(names))
    columns = "".join(_label(name, i in places, f'transform="translate({i * CELL + 12.5},-6) rotate(-90)"') for i, name in enumerate(names))
    stripes = "".join(f'<rect class="stripe" x="0" y="{i * CELL}" width="{size}" height="{CELL}"/>' for i in places)
    whole = side + size + 2
    box = f'viewBox="{-side:g} {-side:g} {whole:g} {whole:g}" style="width:{whole:g}px"'
    label = escape(f"Attention pattern on: {pattern['text']}")
    frame = f'<rect class="frame" width="{size}" height="{size}"/>'
    return f'<svg class="heat" {box} role="img" aria-label="{label}">{frame}{cells}{stripes}{rows}{columns}</svg>'


def _cell(weight: float, row: int, column: int, names: Sequence[str]) -> str:
    said = escape(f"{names[row]} → {names[column]}: {number(weight)}")
    at = f'x="{column * CELL}" y="{row * CELL}" width="{CELL}" height="{CELL}"'
    return f'<rect {at} fill-opacity="{min(weight, 1.0):.2f}"><title>{said}</title></rect>'


def _name(text: str, place: str | None) -> str:
    """A token as a label: `Amy (S1)`."""
    shown = token(text)
    shown = shown if len(shown) <= 14 else f"{shown[:13]}…"
    return f"{shown} ({place})" if place else shown


def _label(name: str, named: bool, where: str) -> str:
    return f"<text {where}{' class=named' if named else ''}>{escape(name)}</text>"


def quoted(text: str) -> str:
    """A token exactly, for a title: with its quotation marks, spaces and line breaks."""
    return json.dumps(text, ensure_ascii=False)
