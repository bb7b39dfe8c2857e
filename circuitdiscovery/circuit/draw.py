"""A circuit as a picture: `input` at the bottom, `logits` at the top, a row
for each layer's heads and one for its MLP.

1. A head is a box with a cell for each of its query, key and value that the circuit reads; an edge ends in
   the cell it feeds. An MLP is a hexagon. A node that is split is a box with a cell for each of its parts in
   the circuit. Where heads share keys and values, the group's are a box of their own, dashed to its heads.
2. An edge's width grows with |score|, its colour is the score's sign, which the legend explains where the
   scores are damages; an edge without a score is grey.
3. A node's colour is its role, where one is known; the legend stands above the picture.
4. Of many edges the strongest whole paths are shown, which the picture says; many layers go from left to
   right in columns, where a dashed frame holds a group and its heads. layout.py says which edges, and where.

`graphviz` writes the DOT, render.py makes the picture. The colours are Okabe and Ito's (2008), which people
with any colour vision tell apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from circuitdiscovery.circuit.boxes import INK, box_of, port
from circuitdiscovery.circuit.checks import check_same_graph
from circuitdiscovery.circuit.circuit import Circuit, Roles
from circuitdiscovery.circuit.circuit_json import check_role
from circuitdiscovery.circuit.layout import MOST_EDGES, Layout, Rank, layout, shown
from circuitdiscovery.circuit.render import render
from circuitdiscovery.circuit.scores import Scores
from circuitdiscovery.errors import CircuitDiscoveryError, unknown
from circuitdiscovery.files.disk import write_atomically
from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.graph.nodes import INPUT, LOGITS, edge_name, letter_of, node_of, parsed, whole_of
from circuitdiscovery.registry import are_damages

if TYPE_CHECKING:
    import graphviz

FORMATS = ("svg", "png", "pdf", "dot")
HELPS, HURTS, UNSCORED = "#0072B2", "#D55E00", "#7A7A7A"
FAINT = "#9A9A9A"
# Tints of Okabe and Ito's colours, light enough for black text; after the ninth role they start again.
ROLE_COLOURS = (
    "#F6C65B",
    "#8FD3F4",
    "#7FD1B3",
    "#F4E97A",
    "#E9A5CB",
    "#F2A97E",
    "#9DB7E8",
    "#C9C2A5",
    "#C6A4E0",
)
THIN, THICK = 0.6, 4.6  # line widths in points
FONT = "Helvetica,Arial,DejaVu Sans,sans-serif"


def draw(
    circuit: Circuit,
    path: str | Path,
    *,
    scores: Scores | None = None,
    roles: Roles | None = None,
    max_edges: int | None = MOST_EDGES,
) -> None:
    """Draw a circuit into a file whose suffix is .svg, .png, .pdf or .dot; atomically; DOT
    and SVG are the same for the same circuit.

    Args:
        circuit: what is drawn.
        path: the file.
        scores: of its edges; by default those it carries.
        roles: role -> nodes, which get a colour each, a node of several that of the first; by default those
            it carries.
        max_edges: a circuit of more is drawn in part, which the picture says: whole paths from `input` to
            `logits`, the strongest first (without scores by index); where there are none, its strongest
            edges. None draws every edge.

    Raises:
        CircuitDiscoveryError: another suffix; scores of another graph; a role's node that the
            graph does not have; `max_edges` below 1.
    """
    kind = Path(path).suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise CircuitDiscoveryError(
            f"{path} must end in {', '.join('.' + name for name in FORMATS[:-1])} or .{FORMATS[-1]}"
        )
    dot = to_dot(circuit, scores=scores, roles=roles, max_edges=max_edges)
    write_atomically(path, dot if kind == "dot" else render(dot, kind))


def to_svg(circuit: Circuit, **how: Any) -> str:
    """The picture as SVG; arguments as in `to_dot`."""
    return render(to_dot(circuit, **how), "svg").decode()


def to_dot(
    circuit: Circuit,
    *,
    scores: Scores | None = None,
    roles: Roles | None = None,
    max_edges: int | None = MOST_EDGES,
    heading: bool = True,
) -> str:
    """The picture in Graphviz' DOT language; arguments as in `draw`, and whether
    title, counts and legend stand above it.

    >>> graph = Graph(n_layers=1, n_heads=1, n_kv_heads=1)
    >>> circuit = Circuit.from_edges(graph, ["input->a0.h0<v>", "a0.h0->logits"])
    >>> '"a0.h0":box:n -> logits' in to_dot(circuit)
    True
    """
    import graphviz

    values = _scores(circuit, scores)
    part, note = shown(circuit, values, max_edges)
    values = np.where(part.mask, values, np.nan)
    roles = circuit.roles if roles is None else roles
    role_of = _role_of(circuit.graph, roles, part.nodes)
    colours = {
        role: ROLE_COLOURS[i % len(ROLE_COLOURS)] for i, role in enumerate(roles) if role in role_of.values()
    }
    plan = layout(part)
    picture = graphviz.Digraph(
        "circuit", graph_attr=_graph_style(plan), node_attr=_NODE_STYLE, edge_attr=_EDGE_STYLE
    )
    if heading:
        meant = signs((circuit if scores is None else scores).info)
        picture.attr(label=_heading(circuit, colours, _key(values, *meant), note))
    _add_ranks(picture, plan, {node: colours[role] for node, role in role_of.items()}, role_of)
    _add_groups(picture, plan)
    _add_edges(picture, plan, values)
    return picture.source


# -------------------------------------------------------------------- values


def _scores(circuit: Circuit, scores: Scores | None) -> np.ndarray:
    """[sources, receivers], NaN where an edge is not of the circuit or has no score."""
    if scores is not None:
        check_same_graph(circuit, scores)
        return np.where(circuit.mask, scores.values, np.nan)
    return np.full(circuit.mask.shape, np.nan) if circuit.scores is None else circuit.scores


def _role_of(graph: Graph, roles: Roles, drawn: Iterable[str]) -> dict[str, str]:
    """Role of each drawn node that has one, in the roles' order; a node with several has the first."""
    drawn, role_of = set(drawn), dict[str, str]()
    for role, nodes in roles.items():
        check_role(role)
        for node in nodes:
            if node not in graph.source_index:
                raise CircuitDiscoveryError(f"role {role!r}: {unknown('node', node, graph.sources)}")
            if node in drawn:
                role_of.setdefault(node, role)
    return role_of


def signs(info: Mapping[str, Any]) -> tuple[str, str]:
    """What a score of a provenance says of an edge: one of 0 or more, and a negative one.

    >>> signs({"method": "eap"})
    ('ablating it hurts (score > 0)', 'ablating it helps (score < 0)')
    """
    damages = are_damages(info)
    if damages is None:
        return "score > 0", "score < 0"
    if damages:
        return "ablating it hurts (score > 0)", "ablating it helps (score < 0)"
    return "its place in the search's order (score)", "score < 0"


# --------------------------------------------------------------------- nodes

_NODE_STYLE = {
    "fontname": FONT,
    "fontsize": "12",
    "fontcolor": INK,
    "color": INK,
    "penwidth": "0.8",
    "margin": "0.08,0.04",
}


def _add_ranks(
    picture: graphviz.Digraph, plan: Layout, colours: Mapping[str, str], role_of: Mapping[str, str]
) -> None:
    """Each rank held in order by a chain of headings at the picture's margin."""
    import graphviz

    letters = _letters(plan.circuit)
    for number, rank in enumerate(plan.ranks):
        places = plan.places(number)
        row = graphviz.Digraph(graph_attr={"rank": "same"})
        row.node(f"row{number}", _said(rank), pos=places[0], **_heading_style(plan))
        for node, place in zip(rank.nodes, places[1:], strict=True):
            style = box_of(plan, node, letters.get(node, ""), colours)
            row.node(node, **style, tooltip=graphviz.escape(role_of.get(node, node)), pos=place)
        picture.subgraph(row)
        if number:
            picture.edge(f"row{number - 1}", f"row{number}", style="invis", weight="1000")


def _said(rank: Rank) -> str:
    """A rank's heading, and under it the layers that are left out before it."""
    if not rank.folded:
        return rank.heading
    folded = f'<FONT POINT-SIZE="8.5">{rank.folded}: none</FONT>'
    return f"<{rank.heading}<BR/>{folded}>" if rank.heading else f"<{folded}>"


def _heading_style(plan: Layout) -> dict[str, str]:
    style = {"shape": "plaintext", "fontcolor": FAINT, "fontsize": "11"}
    return style | ({"margin": "0", "width": "0.1", "height": "0.2"} if plan.landscape else {})


def _letters(circuit: Circuit) -> dict[str, str]:
    """The letters that a node reads in the circuit: {"a1.h0": "qv"}."""
    letters: dict[str, str] = {}
    for column in np.flatnonzero(circuit.mask.any(axis=0)):
        receiver = circuit.graph.receivers[column]
        letters[node_of(receiver)] = letters.get(node_of(receiver), "") + letter_of(receiver)
    return letters


# --------------------------------------------------------------------- edges

_EDGE_STYLE = {"arrowsize": "0.5", "color": UNSCORED, "penwidth": "1"}
_FRAME_STYLE = {"style": "dashed,rounded", "color": FAINT, "margin": "3", "label": ""}


def _add_edges(picture: graphviz.Digraph, plan: Layout, values: np.ndarray) -> None:
    """Every edge that is shown; the strongest last, so that they lie on top."""
    circuit = plan.circuit
    edges = np.argwhere(circuit.mask)
    size = np.nan_to_num(np.abs(values[circuit.mask]))
    largest = size.max(initial=0)
    for i in np.argsort(size, kind="stable"):
        row, column = edges[i]
        source, receiver = circuit.graph.sources[row], circuit.graph.receivers[column]
        style = _line(float(values[row, column]), float(size[i] / largest) if largest else 0.0)
        tooltip = _tooltip(edge_name(source, receiver), float(values[row, column]))
        picture.edge(_tail(source, plan), _head(receiver, plan), tooltip=tooltip, **style)


def _tail(source: str, plan: Layout) -> str:
    """Where an edge leaves its source."""
    side, node = "e" if plan.landscape else "n", parsed(source)
    if node.part:
        return f"{whole_of(source)}:{port(plan, source)}:{side}"
    return f"{source}:box:{side}" if node.in_attention else source


def _head(receiver: str, plan: Layout) -> str:
    """Where an edge enters its receiver: a part, a letter's cell, or the node."""
    side, node = "w" if plan.landscape else "s", whole_of(receiver)
    if parsed(receiver).part:
        return f"{node}:{port(plan, receiver)}:{side}"
    cell = letter_of(receiver) or ("box" if node in plan.parts else "")
    return f"{node}:{cell}:{side}" if cell else node


def _line(score: float, relative: float) -> dict[str, str]:
    """Width by |score| over the largest, colour by sign; weak edges are lighter too."""
    if np.isnan(score):
        return {"color": UNSCORED, "penwidth": "0.9"}
    opacity = round(255 * (0.35 + 0.6 * relative**0.5))
    return {
        "color": f"{HELPS if score >= 0 else HURTS}{opacity:02X}",
        "penwidth": f"{THIN + (THICK - THIN) * relative:.2f}",
    }


def _tooltip(edge: str, score: float) -> str:
    return edge if np.isnan(score) else f"{edge}  {score:+.4g}"


def _add_groups(picture: graphviz.Digraph, plan: Layout) -> None:
    """What ties a group's keys and values to those of its heads that are drawn: a frame
    where they stand in one column, else lines.
    """
    import graphviz

    for group, heads in plan.groups.items():
        if plan.landscape and not plan.grid:
            frame = graphviz.Digraph(f"cluster_{group}", graph_attr=_FRAME_STYLE)
            for node in (group, *heads):
                frame.node(node)
            picture.subgraph(frame)
            continue
        for head in heads:
            end = f"{head}:box:{'w' if plan.landscape else 's'}"
            picture.edge(_tail(group, plan), end, style="dashed", color=FAINT, arrowhead="none")


# ------------------------------------------------------------------- heading


def _graph_style(plan: Layout) -> dict[str, str]:
    style = {
        "bgcolor": "white",
        "fontname": FONT,
        "labelloc": "t",
        "nodesep": "0.08",
        "outputorder": "edgesfirst",
    }
    style |= (
        {"rankdir": "LR", "ranksep": "0.5", "newrank": "true"}
        if plan.landscape
        else {"rankdir": "BT", "ranksep": "0.6"}
    )
    if plan.grid:
        return style | {"layout": "neato", "splines": "line"}
    return style | {"layout": "dot", "splines": "true"} | ({"ratio": "0.5"} if plan.flat else {})


def _heading(circuit: Circuit, colours: Mapping[str, str], key: str, note: str | None) -> str:
    """Title, counts and legend, as one HTML-like label."""
    info, total = circuit.info, len(circuit.graph)
    n_nodes = sum(
        whole_of(node) not in (INPUT, LOGITS) and circuit.graph.split_of(node) is None
        for node in circuit.nodes
    )
    title = [info.get("model", {}).get("name"), info.get("task"), info.get("method")]
    counts = f"{len(circuit):,} of {total:,} edges ({len(circuit) / total:.1%}), {n_nodes} nodes"
    rows = [f'<FONT POINT-SIZE="18"><B>{_words(" · ".join(filter(None, title)) or "circuit")}</B></FONT>']
    rows += [f'<FONT POINT-SIZE="13">{line}</FONT>' for line in (counts, note) if line]
    rows += [f'<FONT POINT-SIZE="11" COLOR="#555555">{key}</FONT>']
    swatches = [
        f'<FONT COLOR="{colour}" POINT-SIZE="15">■</FONT> <FONT POINT-SIZE="12">{_words(role)}</FONT>'
        for role, colour in colours.items()
    ]
    per_row = math.ceil(len(swatches) / math.ceil(len(swatches) / 5)) if swatches else 1
    rows += ["    ".join(swatches[i : i + per_row]) for i in range(0, len(swatches), per_row)]
    return (
        '<<TABLE BORDER="0" CELLSPACING="0" CELLPADDING="3">'
        f"{''.join(f'<TR><TD>{row}</TD></TR>' for row in rows)}</TABLE>>"
    )


def _words(text: str) -> str:
    """A text in an HTML-like label, in which Graphviz writes names for some letters after a backslash."""
    return escape(text.replace("\\", "\\\\"))


def _key(values: np.ndarray, above: str, below: str) -> str:
    """What the edges' colours and widths say, in an HTML-like label."""
    scored = values[~np.isnan(values)]
    if not scored.size:
        return "edges without scores"
    parts = [(HELPS, above, scored.max() >= 0), (HURTS, below, scored.min() < 0)]
    words = [
        f'<FONT COLOR="{colour}"><B>━━</B></FONT> {escape(text, quote=False)}'
        for colour, text, shown in parts
        if shown
    ]
    return "    ".join([*words, f"width: |score|, up to {np.abs(scored).max():.3g}"])
