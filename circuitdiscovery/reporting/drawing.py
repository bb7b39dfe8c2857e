"""Graphviz' drawing of a circuit made over for the page: colours by class, so that the style sheet decides
them; nodes that link to their cards; edges that say their name and score; and a letter for each role, so that
colour alone never says one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from html import escape
from string import ascii_uppercase
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import numpy as np

from circuitdiscovery.circuit.boxes import INK, PLAIN_HEAD, PLAIN_MLP
from circuitdiscovery.circuit.draw import ROLE_COLOURS, to_svg
from circuitdiscovery.circuit.layout import MOST_EDGES, layout, shown
from circuitdiscovery.graph.nodes import node_of, split_edge

if TYPE_CHECKING:
    from circuitdiscovery.circuit.circuit import Circuit

_SVG, _TITLE = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}title"
_GEOMETRY = (
    "d",
    "points",
    "x",
    "y",
    "text-anchor",
    "font-size",
    "stroke-width",
    "stroke-opacity",
    "fill-opacity",
    "stroke-dasharray",
)
_CLASS_OF = {
    INK.lower(): "ink",
    PLAIN_HEAD.lower(): "head",
    PLAIN_MLP.lower(): "mlp",
    "none": "outline",
    "white": "paper",
}


def letters(roles: Sequence[str]) -> dict[str, str]:
    """A letter for each role: A to Z, then AA to AZ, ...

    >>> letters(["name mover", "induction"])
    {'name mover': 'A', 'induction': 'B'}
    """
    return {
        role: ("" if i < 26 else ascii_uppercase[i // 26 - 1]) + ascii_uppercase[i % 26]
        for i, role in enumerate(roles)
    }


def colours(roles: Sequence[str]) -> dict[str, str]:
    """The colour of each role, as in draw.py."""
    return {role: ROLE_COLOURS[i % len(ROLE_COLOURS)] for i, role in enumerate(roles)}


def part_of(circuit: Circuit) -> tuple[Circuit, str | None]:
    """What the page draws of a circuit, and the sentence that says so where that is not all."""
    values = np.full(circuit.mask.shape, np.nan) if circuit.scores is None else circuit.scores
    return shown(circuit, values, MOST_EDGES)


def drawing(circuit: Circuit, roles: Mapping[str, Sequence[str]], cards: Sequence[str]) -> str:
    """The <svg> element.

    Args:
        circuit: what is drawn, all of it.
        roles: role -> nodes; a node stands in one.
        cards: the nodes that have a card, to which they link.
    """
    plan, drawn = layout(circuit), set(circuit.nodes)
    root = ElementTree.fromstring(to_svg(circuit, roles=roles, max_edges=None, heading=False))
    picture = next(root.iter(f"{_SVG}g"))
    groups = [group for group in picture.iter(f"{_SVG}g") if group.get("class") in ("edge", "node")]
    marks = {node: (role, letter) for role, letter in letters(list(roles)).items() for node in roles[role]}
    edges = [_edge(circuit, group) for group in groups if group.get("class") == "edge"]
    nodes = [_node(group, marks, cards) for group in groups if group.get("class") == "node"]
    frames = "".join(
        shape
        for group in picture.iter(f"{_SVG}g")
        if group.get("class") == "cluster"
        for shape in _shapes(group)
    )
    if frames:  # which stand for the lines from a group's keys and values to its heads
        edges += [
            f'<g class="edge group" {_ends(group, head)}></g>'
            for group, heads in plan.groups.items()
            for head in heads
        ]
    edges += [  # what is read by a node's receivers is read by its parts
        f'<g class="edge group" {_ends(node, part)}></g>'
        for node, parts in plan.parts.items()
        for part in parts
        if node in drawn
    ]
    width, height = (round(float(size)) for size in root.get("viewBox", "").split()[2:])
    first, last = ("left", "right") if plan.landscape else ("bottom", "top")
    label = f'role="group" aria-label="The circuit, from input at the {first} to logits at the {last}"'
    head = (
        f'<svg id="drawing" class="drawing" viewBox="0 0 {width} {height}" '
        f'style="--width:{width};--height:{height}" {label}>'
    )
    parts = f'<g class="frames">{frames}</g><g>{"".join(edges)}</g><g>{"".join(nodes)}</g>'
    return f'{head}<g transform="{escape(picture.get("transform", ""))}">{parts}</g></svg>'


# --------------------------------------------------------------------- edges


def _edge(circuit: Circuit, group: ElementTree.Element) -> str:
    ends = split_edge(group.findtext(f"{_SVG}title") or "")
    tip = next((a.get(_TITLE) for a in group.iter(f"{_SVG}a")), None)
    if tip is None:  # from a group's keys and values to one of its heads
        source, reader = (end.split(":")[0] for end in ends)
        return f'<g class="edge group" {_ends(source, reader)}>{"".join(_shapes(group))}</g>'
    name = re.sub(r"\s\s[+-]\S+$", "", tip)  # without its score
    source, receiver = split_edge(name)
    data = _ends(source, node_of(receiver))
    score = circuit.score(name)
    sign = "unscored" if score is None else "helps" if score >= 0 else "hurts"
    said = "no score" if score is None else f"score {score:+.4g}"
    data += f' data-edge="{escape(name)}"' + ("" if score is None else f' data-score="{score!r}"')
    curve = next(shape.get("d", "") for shape in group.iter(f"{_SVG}path"))
    label = escape(f"{name}, {said}")
    inside = f'<title>{label}</title><path class="hit" d="{curve}"/>{"".join(_shapes(group))}'
    return f'<g class="edge {sign}" {data} role="img" aria-label="{label}">{inside}</g>'


def _ends(source: str, reader: str) -> str:
    return f'data-from="{escape(source)}" data-to="{escape(reader)}"'


# --------------------------------------------------------------------- nodes


def _node(group: ElementTree.Element, marks: Mapping[str, tuple[str, str]], cards: Sequence[str]) -> str:
    name = group.findtext(f"{_SVG}title") or ""
    if re.fullmatch(r"row\d+", name):
        return f'<g class="row">{"".join(_shapes(group))}</g>'
    parts = {
        title: part
        for part in group.iter(f"{_SVG}a")
        if (title := part.get(_TITLE) or "").startswith(f"{name}/")
    }
    inside = {id(shape) for part in parts.values() for shape in part.iter()}
    box = _linked(name, "node", group, marks, cards, inside)
    return box + "".join(_linked(part, "node part", shapes, marks, cards) for part, shapes in parts.items())


def _linked(
    name: str,
    kind: str,
    group: ElementTree.Element,
    marks: Mapping[str, tuple[str, str]],
    cards: Sequence[str],
    without: Set[int] = frozenset(),
) -> str:
    """A node or a part of one, with its role's letter, and a link to its card where it has one."""
    role, letter = marks.get(name, ("", ""))
    label = escape(f"{name}, {role}" if role else name)
    link = f' href="#card-{escape(name)}"' if name in cards else ""
    badge = _badge(group, letter) if letter else ""
    return (
        f'<a class="{kind}" data-node="{escape(name)}"{link} aria-label="{label}"><title>{label}</title>'
        f"{''.join(_shapes(group, without))}{badge}</a>"
    )


def _badge(group: ElementTree.Element, letter: str) -> str:
    """The role's letter at the box's upper right corner."""
    numbers = [
        tuple(map(float, pair))
        for text in _outlines(group)
        for pair in re.findall(r"(-?[\d.]+),(-?[\d.]+)", text)
    ]
    x, y = max(x for x, _ in numbers), min(y for _, y in numbers)
    return (
        f'<g class="badge"><circle cx="{x:.1f}" cy="{y:.1f}" r="7.5"/><text x="{x:.1f}" '
        f'y="{y + 3.2:.1f}">{letter}</text></g>'
    )


def _outlines(group: ElementTree.Element) -> list[str]:
    return [
        shape.get("d") or shape.get("points") or ""
        for shape in group.iter()
        if shape.tag in (f"{_SVG}path", f"{_SVG}polygon")
    ]


# -------------------------------------------------------------------- shapes


def _shapes(group: ElementTree.Element, without: Set[int] = frozenset()) -> Iterator[str]:
    """A group's lines, boxes and texts, but for those of some ids, with a class in place of the colour where
    the style sheet has one.
    """
    for shape in group.iter():
        tag = shape.tag.removeprefix(_SVG)
        if tag not in ("path", "polygon", "polyline", "ellipse", "text") or id(shape) in without:
            continue
        attributes = " ".join(f'{key}="{escape(value)}"' for key, value in shape.items() if key in _GEOMETRY)
        style = _style(group.get("class", ""), shape.get("fill", "black"))
        yield f"<{tag} {style} {attributes}" + (
            f">{escape((shape.text or '').strip())}</text>" if tag == "text" else "/>"
        )


def _style(kind: str, fill: str) -> str:
    if kind == "edge":
        return 'class="line"' if fill == "none" else 'class="tip"'
    if fill.upper() in ROLE_COLOURS:
        return f'class="role" fill="{fill}"'
    return f'class="{_CLASS_OF.get(fill, "faint")}"'
