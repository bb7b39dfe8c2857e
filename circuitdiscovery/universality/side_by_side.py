"""Circuits of several models as one picture: a frame each, aligned nodes with the same number."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from circuitdiscovery.circuit.boxes import INK, PLAIN_HEAD, PLAIN_MLP
from circuitdiscovery.circuit.circuit import Circuit
from circuitdiscovery.circuit.draw import FAINT, FONT, FORMATS, HELPS, ROLE_COLOURS
from circuitdiscovery.circuit.layout import shown
from circuitdiscovery.circuit.render import render
from circuitdiscovery.files.disk import ending, write_atomically
from circuitdiscovery.graph.nodes import INPUT, LOGITS, parsed
from circuitdiscovery.universality.overlap import Link, links, moved

if TYPE_CHECKING:
    import graphviz

    from circuitdiscovery.universality.comparing import SharedCircuits

_GRAPH = {
    "rankdir": "BT",
    "layout": "dot",
    "bgcolor": "white",
    "fontname": FONT,
    "labelloc": "t",
    "nodesep": "0.12",
    "ranksep": "0.45",
    "outputorder": "edgesfirst",
}


def draw(found: SharedCircuits, path: str | Path, max_edges: int | None) -> None:
    """Write the picture; see `SharedCircuits.draw`."""
    ending(path, *(f".{each}" for each in FORMATS))
    kind, dot = Path(path).suffix.lower()[1:], to_dot(found, max_edges)
    write_atomically(Path(path), dot.encode() if kind == "dot" else render(dot, kind))


def to_dot(found: SharedCircuits, max_edges: int | None) -> str:
    """The picture in Graphviz' DOT language."""
    import graphviz

    picture = graphviz.Digraph(
        "circuits",
        graph_attr=_GRAPH,
        node_attr={"fontname": FONT, "fontsize": "12", "fontcolor": INK, "color": INK, "penwidth": "0.8"},
        edge_attr={"arrowsize": "0.5"},
    )
    colours = {role: ROLE_COLOURS[i % len(ROLE_COLOURS)] for i, role in enumerate(found.roles)}
    picture.attr(label=_heading(found, colours))
    first = next(iter(found.circuits))
    letters = all(circuit.graph.split_qkv for circuit in found.circuits.values())
    inner = [node for node in found.circuits[first].graph.inner if node in found.circuits[first].nodes]
    of_first = {node: str(i + 1) for i, node in enumerate(inner)}
    for number, (label, circuit) in enumerate(found.circuits.items()):
        partner = (
            {node: node for node in inner}
            if label == first
            else {pair.a: pair.b for pair in found.alignment[first, label]}
        )
        common = moved(links(found.circuits[first], letters), partner)
        if label == first:  # shared with any of the others
            common = frozenset().union(
                *(
                    moved(links(other, letters), {p.b: p.a for p in found.alignment[first, its]})
                    for its, other in found.circuits.items()
                    if its != first
                )
            )
        numbers = {there: of_first[here] for here, there in partner.items()}
        roles = dict[str, str]()
        for role, by in found.roles.items():
            for node in by.get(label, ()):
                roles.setdefault(node, role)
        frame = graphviz.Digraph(
            f"cluster_{number}",
            graph_attr={
                "label": label if label == found.models[label] else f"{label}: {found.models[label]}",
                "color": FAINT,
                "labelloc": "b",
                "style": "rounded",
                "fontsize": "14",
            },
        )
        tints = {node: colours[role] for node, role in roles.items()}
        _add(frame, number, circuit, common, letters, numbers, tints, max_edges)
        picture.subgraph(frame)
    return picture.source


def _add(
    frame: graphviz.Digraph,
    number: int,
    circuit: Circuit,
    common: frozenset[Link],
    letters: bool,
    numbers: dict[str, str],
    colours: dict[str, str],
    max_edges: int | None,
) -> None:
    """One circuit's nodes and edges, in a row for each kind of each layer."""
    import graphviz

    values = np.full(circuit.mask.shape, np.nan) if circuit.scores is None else circuit.scores
    part, _ = shown(circuit, values, max_edges)
    drawn = dict[tuple[str, str], bool]()
    for link in links(part, letters):
        drawn[link[:2]] = drawn.get(link[:2], False) or link in common
    nodes = {node for edge in drawn for node in edge}
    ranks = dict[tuple[int, int], list[str]]()
    for node in (INPUT, *circuit.graph.inner, LOGITS):
        if node in nodes:
            ranks.setdefault(_rank(node), []).append(node)
    before = ""
    for rank in ranks.values():
        row = graphviz.Digraph(graph_attr={"rank": "same"})
        for node in rank:
            row.node(f"{number}.{node}", **_style(node, numbers.get(node, ""), colours))
        frame.subgraph(row)
        if before:
            frame.edge(f"{number}.{before}", f"{number}.{rank[0]}", style="invis", weight="20")
        before = rank[0]
    for (source, reader), shared in sorted(drawn.items(), key=lambda each: (each[1], each[0])):
        style = {"color": HELPS, "penwidth": "2"} if shared else {"color": "#BBBBBB", "penwidth": "0.9"}
        frame.edge(f"{number}.{source}", f"{number}.{reader}", **style)


def _rank(node: str) -> tuple[int, int]:
    if node in (INPUT, LOGITS):
        return (-1, 0) if node == INPUT else (1_000_000, 0)
    return parsed(node).layer, 0 if parsed(node).kind == "head" else 1


def _style(node: str, number: str, colours: dict[str, str]) -> dict[str, str]:
    if node in (INPUT, LOGITS):
        return {
            "label": node,
            "shape": "box",
            "style": "rounded,filled",
            "fillcolor": INK,
            "fontcolor": "white",
        }
    mlp = parsed(node).kind == "mlp"
    mark = f'<FONT COLOR="{HELPS}"><B>{number}</B></FONT>  ' if number else ""
    return {
        "label": f"<{mark}{escape(node)}>",
        "shape": "hexagon" if mlp else "box",
        "style": "filled" if mlp else "rounded,filled",
        "fillcolor": colours.get(node, PLAIN_MLP if mlp else PLAIN_HEAD),
        "margin": "0.06,0.03",
        "height": "0.3",
        "width": "0.5",
    }


def _heading(found: SharedCircuits, colours: dict[str, str]) -> str:
    rows = [f'<FONT POINT-SIZE="18"><B>{escape(found.task)} in {len(found.circuits)} models</B></FONT>']
    first = next(iter(found.circuits))
    for each in found.between:
        if each.a == first:
            told = f"{each.a} and {each.b}: Jaccard {each.jaccard}, random alignments {each.null.mean:.2g}"
            rows.append(f'<FONT POINT-SIZE="12">{escape(told)}</FONT>')
    rows.append(
        f'<FONT POINT-SIZE="11" COLOR="#555555">the same number: aligned with that node of {escape(first)};  '
        f'<FONT COLOR="{HELPS}"><B>━━</B></FONT> an edge that both have</FONT>'
    )
    swatches = [
        f'<FONT COLOR="{colour}" POINT-SIZE="15">■</FONT> <FONT POINT-SIZE="12">{escape(role)}</FONT>'
        for role, colour in colours.items()
    ]
    rows += ["    ".join(swatches[i : i + 5]) for i in range(0, len(swatches), 5)]
    return (
        '<<TABLE BORDER="0" CELLSPACING="0" CELLPADDING="3">'
        f"{''.join(f'<TR><TD>{row}</TD></TR>' for row in rows)}</TABLE>>"
    )
