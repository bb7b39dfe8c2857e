"""The charts as inline SVG: the faithfulness curve, node scores by layer and head, attention patterns.

In the report page the style sheet of the page colours them; a `Chart` stands alone and includes charts.css.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, NamedTuple, Self

from circuitdiscovery.circuit.numbers import number, percent, token
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.files.disk import write_atomically
from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.graph.nodes import parsed

WIDTH, HEIGHT = 760, 340
LEFT, RIGHT, TOP, BOTTOM = 58, 18, 16, 48
CELL = 17  # of a heat map, in pixels
FAINTEST = 0.01  # the least attention that is drawn
CELLS = 16_000  # of all heat maps of a page together: less than two megabytes
_FEWEST = 60  # cells of one heat map
STYLE = Path(__file__).with_name("charts.css")  # also in the page, whose style sheet defines these colours
_LIGHT = (
    "--page:#ffffff;--line:#d6dae0;--ink:#1b1f24;--muted:#565e68;"
    "--helps:#0072b2;--hurts:#d55e00;--good:#006b4c;--bad:#a33b00"
)
_DARK = (
    "--page:#14171b;--line:#39404a;--ink:#e8eaed;--muted:#a8b0ba;"
    "--helps:#56b4e9;--hurts:#f08c4a;--good:#7fd8b6;--bad:#f5a27c"
)
_FONT = (
    '.chart{font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue","DejaVu Sans",sans-serif}'
)


# ------------------------------------------------------------ outside the page


@dataclass(frozen=True)
class Chart:
    """A picture as SVG text with its style, light and dark, which a notebook displays.

    Args:
        svg: the <svg> element.
    """

    svg: str

    @classmethod
    def standing(cls, inline: str) -> Self:
        """A chart of the page, with the name space, background and style that it needs to stand alone."""
        head, _, inside = inline.partition(">")
        left, top, width, height = re.findall(r'viewBox="(\S+) (\S+) (\S+) (\S+)"', head)[0]
        colours = f".chart{{{_LIGHT}}} @media (prefers-color-scheme: dark) {{ .chart{{{_DARK}}} }}"
        style = f"<style>{_FONT} {colours} {' '.join(STYLE.read_text('utf-8').split())}</style>"
        ground = f'<rect class="ground" x="{left}" y="{top}" width="{width}" height="{height}"/>'
        size = f'xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
        return cls(f"{head} {size}>{style}{ground}{inside}\n")

    def saved(self, path: str | Path | None) -> Self:
        """The same chart; if there is a path, which must end in .svg, it is written there atomically."""
        if path is not None:
            if Path(path).suffix.lower() != ".svg":
                raise CircuitDiscoveryError(f"{path} must end in .svg: charts are written as SVG only")
            write_atomically(path, self.svg)
        return self

    def _repr_svg_(self) -> str:
        return self.svg

    def __repr__(self) -> str:
        return f"Chart({len(self.svg):,} characters of SVG)"


# --------------------------------------------------------------------- curve


class _Scale(NamedTuple):
    """Maps an edge count (logarithmic) and a normalized faithfulness to pixels."""

    first: float
    last: float
    bottom: float
    top: float

    def x(self, edges: float) -> float:
        along = math.log(max(edges, self.first) / self.first) / math.log(self.last / self.first)
        return round(LEFT + along * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        value = min(max(value, self.bottom - 0.5), self.top + 0.5)  # what is cut off needs no large numbers
        return round(
            HEIGHT - BOTTOM - (value - self.bottom) / (self.top - self.bottom) * (HEIGHT - TOP - BOTTOM), 1
        )


def curve(
    known: Mapping[str, Any],
    *,
    edges: int | None = None,
    normalized: Mapping[str, float] | None = None,
    total: int | None = None,
) -> str:
    """The curve, with a mark for the chosen circuit.

    Args:
        known: the curve in report.json: at each number of edges the normalized faithfulness and its interval.
        edges: the chosen circuit's edges on a path from input to logits, which is what the curve counts; None
            marks no circuit.
        normalized: the chosen circuit's normalized faithfulness.
        total: the number of edges in the graph, where the axis ends; by default the curve's last point.
    """
    points = list(zip(known["edges"], known["normalized"], strict=True))
    total = max(known["edges"]) if total is None else total
    marked = [] if edges is None or normalized is None else [(edges, normalized)]
    scale = _scale(
        [count for count, _ in points + marked] + [total], [each["value"] for _, each in points + marked]
    )
    line = " ".join(f"{scale.x(count)},{scale.y(each['value'])}" for count, each in points)
    dots = "".join(
        f"<g><title>{count:,} edges: {_said(each)}</title>{_whisker(scale, count, each)}"
        f'<circle class="dot" cx="{scale.x(count)}" cy="{scale.y(each["value"])}" r="4"/></g>'
        for count, each in points
    )
    chosen = "".join(_chosen(scale, *each) for each in marked)
    label = "Normalized faithfulness against the number of edges"
    label += "".join(f"; this circuit: {count:,} edges, {_said(each)}" for count, each in marked)
    frame = (
        f'<clipPath id="plot"><rect x="0" y="{TOP - 8}" width="{WIDTH}" '
        f'height="{HEIGHT - TOP - BOTTOM + 16}"/></clipPath>'
    )
    plot = f'<g clip-path="url(#plot)"><polyline class="ranked" points="{line}"/>{dots}{chosen}</g>'
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{label}">{frame}{_axes(scale, total)}{plot}</svg>'
    )


def _scale(counts: Sequence[int], values: Sequence[float]) -> _Scale:
    # 0 edges have no logarithm and are drawn where half an edge would be
    first = 0.5 if min(counts) < 1 else min(counts)
    last = max(*counts, 2 * first)
    low, high = min(0.0, max(min(values), -1.0)), max(1.0, min(max(values), 2.0))
    return _Scale(first, last, low - 0.06, high + 0.1)


def _chosen(scale: _Scale, edges: int, normalized: Mapping[str, float]) -> str:
    x, y = scale.x(edges), scale.y(normalized["value"])
    # in the corner below the curve, which is high there
    said = escape(f"this circuit: {edges:,} edges, {percent(normalized['value'])}")
    text = (
        f'<text class="marker-label" x="{WIDTH - RIGHT - 8}" y="{HEIGHT - BOTTOM - 40}" '
        f'text-anchor="end">◆ {said}</text>'
    )
    diamond = f'<path class="marker" d="M{x},{y - 8:.1f}l8,8l-8,8l-8,-8z"/>'
    return (
        f'<g id="chosen"><title>{_said(normalized)}</title>'
        f"{_whisker(scale, edges, normalized)}{diamond}{text}</g>"
    )


def _whisker(scale: _Scale, count: int, estimate: Mapping[str, float]) -> str:
    if estimate["low"] is None:
        return ""
    x, low, high = scale.x(count), scale.y(estimate["low"]), scale.y(estimate["high"])
    return f'<path class="whisker" d="M{x},{low}V{high}M{x - 4:.1f},{low}h8M{x - 4:.1f},{high}h8"/>'


def _axes(scale: _Scale, total: int) -> str:
    parts, floor = [], HEIGHT - BOTTOM
    step = 0.25 if scale.top - scale.bottom < 1.8 else 0.5
    for i in range(math.ceil(scale.bottom / step), math.floor(scale.top / step) + 1):
        y, kind = scale.y(i * step), "whole" if i * step == 1 else "nothing" if i == 0 else ""
        parts.append(f'<path class="grid {kind}" d="M{LEFT},{y}H{WIDTH - RIGHT}"/>')
        parts.append(
            f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(percent(i * step))}</text>'
        )
    for count in _ticks(scale, total):
        x = scale.x(count)
        parts.append(
            f'<path class="grid" d="M{x},{floor}v5"/><text x="{x}" y="{floor + 19}" text-anchor="middle">'
            f"{count:,}</text>"
        )
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">edges '
        "(logarithmic)</text>"
    )
    return f'<g class="axes">{"".join(parts)}</g>'


def _ticks(scale: _Scale, total: int) -> list[int]:
    """0 if a point is there, 1, 2, 5, 10, ..., and the graph's number of edges, without overlaps."""
    round_ones = [digit * 10**power for power in range(8) for digit in (1, 2, 5)]
    wanted = [0] * (scale.first < 1) + [count for count in round_ones if scale.first <= count < total]
    kept: list[int] = []
    for count in wanted:
        if scale.x(total) - scale.x(count) > 52 and (not kept or scale.x(count) - scale.x(kept[-1]) > 38):
            kept.append(count)
    return [*kept, total]


def _said(estimate: Mapping[str, float]) -> str:
    if estimate["low"] is None:
        return escape(percent(estimate["value"]))
    return escape(
        f"{percent(estimate['value'])}, 95% interval {percent(estimate['low'])} to "
        f"{percent(estimate['high'])}"
    )


# --------------------------------------------------------------- node scores

WIDE, HIGH, STEPS = 30, 17, 9  # of a node's cell, in pixels; colours on each side of 0 in the legend


def node_scores(
    graph: Graph, values: Mapping[str, float], *, kept: Collection[str] = (), cards: Collection[str] = ()
) -> str:
    """A heat map of the scores of heads and MLPs: a row per layer, a column per head and one for the MLP.

    Args:
        graph: the graph of the nodes.
        values: the score of each node, or of its parts, of which a cell has the sum; blue above 0, orange
            below.
        kept: nodes or parts whose cell has a frame.
        cards: nodes that link to their card; of a node that is split, to that of its first part.
    """
    sums = {node: sum(values.get(part, 0.0) for part in graph.parts(node)) for node in graph.nodes}
    columns = [f"h{head}" for head in range(graph.n_heads)] + ["MLP"] * graph.has_mlp
    largest = max((abs(sums[node]) for node in graph.nodes[1:]), default=0.0)
    cells, frames = [], []
    for layer in range(graph.n_layers):
        nodes = [*graph.head_nodes(layer), *graph.mlp_nodes(layer)]
        for column, node in enumerate(nodes):
            at = (
                f'x="{column * WIDE + GAP * (parsed(node).kind == "mlp")}" y="{layer * HIGH}" '
                f'width="{WIDE}" height="{HIGH}"'
            )
            parts = graph.parts(node)
            card = next((part for part in parts if part in cards), "")
            said = f"{node}: {number(sums[node])}" + f", its {len(parts)} parts together" * (len(parts) > 1)
            cells.append(_node_cell(said, sums[node], largest, at, card))
            frames += [f'<rect class="kept" {at}/>'] if any(part in kept for part in parts) else []
    middle = [column * WIDE + WIDE / 2 + GAP * (name == "MLP") for column, name in enumerate(columns)]
    heads = "".join(
        f'<text x="{x:g}" y="-6" text-anchor="middle">{name}</text>'
        for x, name in zip(middle, columns, strict=True)
    )
    layers = "".join(
        f'<text x="-6" y="{layer * HIGH + 12.5}" text-anchor="end">{layer}</text>'
        for layer in range(graph.n_layers)
    )
    width, height = len(columns) * WIDE + GAP * graph.has_mlp, graph.n_layers * HIGH
    corner = '<text x="-6" y="-6" text-anchor="end">layer</text>'
    left, right, top, bottom = 46, max(width, LEGEND) + 8, 24, height + 74
    box = f'viewBox="{-left} {-top} {left + right} {top + bottom}" style="width:{left + right}px"'
    label = "Node scores by layer and head: the sum of each node's scores over its out-edges"
    inside = (
        f"{corner}{heads}{layers}{''.join(cells)}{''.join(frames)}{_legend(largest, height + 20, bool(kept))}"
    )
    return f'<svg class="chart nodes" {box} role="img" aria-label="{label}">{inside}</svg>'


GAP, LEGEND = 6, 300  # between heads and MLP, and the legend's width, in pixels


def _node_cell(said: str, value: float, largest: float, at: str, card: str) -> str:
    share = _shade(abs(value) / largest) if largest else 0.0
    tint = (
        f'<rect class="{"plus" if value >= 0 else "minus"}" fill-opacity="{share:.3f}" {at}><title>'
        f"{said}</title></rect>"
    )
    cell = f'<rect class="cell" {at}/>{tint}'
    return f'<a class="to-card" href="#card-{escape(card)}" tabindex="-1">{cell}</a>' if card else cell


def _shade(share: float) -> float:
    """How dark a share of the largest score is: its square root, because few nodes have large scores."""
    return math.sqrt(share)


def _legend(largest: float, y: float, framed: bool) -> str:
    """The colours from the lowest to the highest score, with 0 in the middle."""
    step = 120 / (2 * STEPS + 1)
    bars = "".join(
        f'<rect class="{"plus" if i > 0 else "minus"}" fill-opacity="{_shade(abs(i) / STEPS):.3f}" '
        f'x="{(i + STEPS) * step:.2f}" y="{y}" width="{step:.2f}" height="10"/>'
        for i in range(-STEPS, STEPS + 1)
    )
    ends = [(0, "start", -largest), (60, "middle", 0.0), (120, "end", largest)]
    marks = "".join(
        f'<text x="{x}" y="{y + 24}" text-anchor="{anchor}">{number(value)}</text>'
        for x, anchor, value in ends
    )
    kept = (
        f'<rect class="kept" x="136" y="{y - 2}" width="22" height="13"/><text x="164" y="{y + 9}">in '
        "the circuit</text>"
    ) * framed
    sense = f'<text x="0" y="{y + 44}">a node\'s score: the sum over the edges that leave it</text>'
    return f'<rect class="cell" x="0" y="{y}" width="120" height="10"/>{bars}{marks}{kept}{sense}'


# ----------------------------------------------------------------- attention


def cells_each(patterns: int) -> int:
    """How many cells each of so many heat maps may have, to keep the page small; 0: leave them out."""
    each = CELLS // max(1, patterns)
    return each if each >= _FEWEST else 0


def heat_map(pattern: Mapping[str, Any], limit: int) -> str:
    """An attention pattern, whole or its strongest weights: a row per attending token, a column per token
    attended to; darker is more.
    """
    tokens = pattern["tokens"]
    weights = (
        [(i, j, each) for i, row in enumerate(pattern["weights"]) for j, each in enumerate(row)]
        if "weights" in pattern
        else pattern["strongest"]
    )
    places = {index: name for name, index in pattern["positions"].items()}
    names = [_name(text, places.get(i)) for i, text in enumerate(tokens)]
    side = 8 + max(len(name) for name in names) * 6.6
    size = len(tokens) * CELL
    found = [(weight, row, column) for row, column, weight in weights if weight >= FAINTEST]
    kept = sorted(sorted(found, reverse=True)[:limit], key=lambda cell: cell[1:])
    cells = "".join(_cell(weight, row, column, names) for weight, row, column in kept)
    rows = "".join(
        _label(name, i in places, f'x="-6" y="{i * CELL + 12.5}" text-anchor="end"')
        for i, name in enumerate(names)
    )
    columns = "".join(
        _label(name, i in places, f'transform="translate({i * CELL + 12.5},-6) rotate(-90)"')
        for i, name in enumerate(names)
    )
    stripes = "".join(
        f'<rect class="stripe" x="0" y="{i * CELL}" width="{size}" height="{CELL}"/>' for i in places
    )
    whole = side + size + 2
    box = f'viewBox="{-side:g} {-side:g} {whole:g} {whole:g}" style="width:{whole:g}px"'
    label = escape(f"Attention pattern on: {pattern['text']}")
    frame = f'<rect class="frame" width="{size}" height="{size}"/>'
    return (
        f'<svg class="heat" {box} role="img" '
        f'aria-label="{label}">{frame}{cells}{stripes}{rows}{columns}</svg>'
    )


def _cell(weight: float, row: int, column: int, names: Sequence[str]) -> str:
    said = escape(f"{names[row]} → {names[column]}: {number(weight)}")
    at = f'x="{column * CELL}" y="{row * CELL}" width="{CELL}" height="{CELL}"'
    return f'<rect {at} fill-opacity="{min(weight, 1.0):.2f}"><title>{said}</title></rect>'


def _name(text: str, place: str | None) -> str:
    """A token as a label, such as `Amy (S1)`."""
    shown = token(text)
    shown = shown if len(shown) <= 14 else f"{shown[:13]}…"
    return f"{shown} ({place})" if place else shown


def _label(name: str, named: bool, where: str) -> str:
    return f"<text {where}{' class=named' if named else ''}>{escape(name)}</text>"


def quoted(text: str) -> str:
    """A token for a title, in quotation marks, with its spaces and line breaks visible."""
    return json.dumps(text, ensure_ascii=False)
