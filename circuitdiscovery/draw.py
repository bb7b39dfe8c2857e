"""A circuit as a picture: `input` at the bottom, `logits` at the top, a row for each layer's heads and one for its MLP.

1. A head is a box with a cell for each of its query, key and value that the circuit reads; an edge ends in the cell it feeds.
   An MLP is a hexagon. Where heads share keys and values, the group's are a box of their own, dashed to its heads.
2. An edge's width grows with |score|, its colour is the score's sign; an edge without a score is grey.
3. A node's colour is its role, where one is known; the legend stands above the picture.

`graphviz` writes the DOT, `pygraphviz` lays it out and renders it inside the process. Colours are Okabe and Ito's (2008), which people
with any colour vision tell apart.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from circuitdiscovery.circuit import Circuit, Roles, Scores, check_same_graph
from circuitdiscovery.errors import CircuitDiscoveryError, unknown
from circuitdiscovery.files import write_atomically
from circuitdiscovery.graph import LETTERS, Graph, letter_of, node_of

if TYPE_CHECKING:
    import graphviz

FORMATS = ("svg", "png", "pdf", "dot")
HELPS, HURTS, UNSCORED = "#0072B2", "#D55E00", "#7A7A7A"
PLAIN_HEAD, PLAIN_MLP, INK, FAINT = "#F3F3F3", "#D5DAE1", "#222222", "#9A9A9A"
# Tints of Okabe and Ito's colours, light enough for black text; after the ninth role they start again.
ROLE_COLOURS = ("#F6C65B", "#8FD3F4", "#7FD1B3", "#F4E97A", "#E9A5CB", "#F2A97E", "#9DB7E8", "#C9C2A5", "#C6A4E0")
SPACE = 7  # points at each side of a head
THIN, THICK = 0.6, 4.6  # line widths in points
FONT = "Helvetica,Arial,DejaVu Sans,sans-serif"
CROWDED = 400  # edges above which nodes stand on a grid and lines are straight: dot's layout would take minutes, and show no more


def draw(circuit: Circuit, path: str | Path, *, scores: Scores | None = None, roles: Roles | None = None) -> None:
    """Draw a circuit into a file whose suffix is .svg, .png, .pdf or .dot; atomically; DOT and SVG are the same for the same circuit.

    Args:
        circuit: what is drawn, edge for edge.
        path: the file.
        scores: of its edges; by default those it carries.
        roles: role -> nodes; by default those it carries.

    Raises:
        CircuitDiscoveryError: another suffix; scores of another graph; a role's node that the graph does not have.
    """
    kind = Path(path).suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise CircuitDiscoveryError(f"{path} must end in {', '.join('.' + name for name in FORMATS[:-1])} or .{FORMATS[-1]}")
    dot = to_dot(circuit, scores=scores, roles=roles)
    write_atomically(path, dot if kind == "dot" else _render(dot, kind, _engine(circuit)))


def to_svg(circuit: Circuit, *, scores: Scores | None = None, roles: Roles | None = None, heading: bool = True) -> str:
    """The picture as SVG; arguments as in `to_dot`."""
    return _render(to_dot(circuit, scores=scores, roles=roles, heading=heading), "svg", _engine(circuit)).decode()


def to_dot(circuit: Circuit, *, scores: Scores | None = None, roles: Roles | None = None, heading: bool = True) -> str:
    """The picture in Graphviz' DOT language; arguments as in `draw`, and whether title, counts and legend stand above it.

    >>> circuit = Circuit.from_edges(Graph(n_layers=1, n_heads=1, n_kv_heads=1), ["input->a0.h0<v>", "a0.h0->logits"])
    >>> '"a0.h0":box:n -> logits' in to_dot(circuit)
    True
    """
    import graphviz

    values = _scores(circuit, scores)
    role_of = _role_of(circuit.graph, circuit.roles if roles is None else roles, circuit.nodes)
    colours = {role: ROLE_COLOURS[i % len(ROLE_COLOURS)] for i, role in enumerate(dict.fromkeys(role_of.values()))}
    picture = graphviz.Digraph("circuit", graph_attr=_graph_style(circuit), node_attr=_NODE_STYLE, edge_attr=_EDGE_STYLE)
    if heading:
        picture.attr(label=_heading(circuit, colours, values))
    _add_rows(picture, circuit, {node: colours[role] for node, role in role_of.items()}, role_of)
    _add_group_links(picture, circuit)
    _add_edges(picture, circuit, values)
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
        for node in nodes:
            if node not in graph.source_index:
                raise CircuitDiscoveryError(f"role {role!r}: {unknown('node', node, graph.sources)}")
            if node in drawn:
                role_of.setdefault(node, role)
    return role_of


# --------------------------------------------------------------------- nodes

_NODE_STYLE = {"fontname": FONT, "fontsize": "12", "fontcolor": INK, "color": INK, "penwidth": "0.8", "margin": "0.08,0.04"}


def _rows(circuit: Circuit) -> Iterator[tuple[str, list[str]]]:
    """The picture's rows from the bottom, each with its heading: per layer its groups, its heads, its MLP."""
    nodes = [node for node in circuit.nodes if node not in ("input", "logits")]
    yield "", ["input"]
    for layer in range(circuit.graph.n_layers):
        heading = f"layer {layer}"
        for prefix in (f"a{layer}.kv", f"a{layer}.h"):
            if row := [node for node in nodes if node.startswith(prefix)]:
                yield heading, row
                heading = ""
        if f"m{layer}" in nodes:
            yield heading, [f"m{layer}"]
    yield "", ["logits"]


def _add_rows(picture: graphviz.Digraph, circuit: Circuit, colours: Mapping[str, str], role_of: Mapping[str, str]) -> None:
    """Each row on one rank, held in order by a chain of headings at the left."""
    import graphviz

    letters, rows = _letters(circuit), list(_rows(circuit))
    left = max(len(nodes) for _, nodes in rows) / 2 + 0.5
    for number, (heading, nodes) in enumerate(rows):
        rank = graphviz.Digraph(graph_attr={"rank": "same"})
        rank.node(f"row{number}", heading, shape="plaintext", fontcolor=FAINT, fontsize="11", pos=f"{-left},{number}!")
        for i, node in enumerate(nodes):
            place = f"{i - (len(nodes) - 1) / 2},{number}!"  # in inches, for neato; dot finds its own
            rank.node(
                node, **_node(node, letters.get(node, ""), colours.get(node)), tooltip=graphviz.escape(role_of.get(node, node)), pos=place
            )
        picture.subgraph(rank)
        if number:
            picture.edge(f"row{number - 1}", f"row{number}", style="invis", weight="1000")


def _letters(circuit: Circuit) -> dict[str, str]:
    """The letters that a node reads in the circuit: {"a1.h0": "qv"}."""
    letters: dict[str, str] = {}
    for column in np.flatnonzero(circuit.mask.any(axis=0)):
        receiver = circuit.graph.receivers[column]
        letters[node_of(receiver)] = letters.get(node_of(receiver), "") + letter_of(receiver)
    return letters


def _node(node: str, letters: str, role_colour: str | None) -> dict[str, str]:
    if node in ("input", "logits"):
        return {"label": node, "shape": "box", "style": "rounded,filled", "fillcolor": INK, "fontcolor": "white", "width": "3"}
    if node.startswith("m"):
        return {"label": node, "shape": "hexagon", "style": "filled", "fillcolor": role_colour or PLAIN_MLP}
    cells = [f'<TD PORT="{letter}" WIDTH="16"><FONT POINT-SIZE="10">{letter}</FONT></TD>' for letter in LETTERS if letter in letters]
    read = f"<HR/><TR>{'<VR/>'.join(cells)}</TR>" if cells else ""
    style = f'BORDER="1" CELLBORDER="0" CELLSPACING="0" CELLPADDING="2" STYLE="ROUNDED" BGCOLOR="{role_colour or PLAIN_HEAD}"'
    box = f'<TABLE {style}><TR><TD COLSPAN="{max(1, len(cells))}">{node}</TD></TR>{read}</TABLE>'
    return {"label": f"<{_beside_space(box)}>", "shape": "plain"}


def _beside_space(box: str) -> str:
    """Room at a head's sides: `nodesep` also spaces the lanes of long edges, which shall be narrow."""
    space = f'<TD WIDTH="{SPACE}"></TD>'
    return f'<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="0" CELLPADDING="0"><TR>{space}<TD PORT="box">{box}</TD>{space}</TR></TABLE>'


# --------------------------------------------------------------------- edges

_EDGE_STYLE = {"arrowsize": "0.5", "color": UNSCORED, "penwidth": "1"}


def _add_edges(picture: graphviz.Digraph, circuit: Circuit, values: np.ndarray) -> None:
    """Every edge of the circuit; the strongest last, so that they lie on top."""
    edges = np.argwhere(circuit.mask)
    size = np.nan_to_num(np.abs(values[circuit.mask]))
    largest = size.max(initial=0)
    for i in np.argsort(size, kind="stable"):
        row, column = edges[i]
        source, receiver = circuit.graph.sources[row], circuit.graph.receivers[column]
        letter = letter_of(receiver)
        head = f"{node_of(receiver)}:{letter}:s" if letter else node_of(receiver)
        style = _line(float(values[row, column]), float(size[i] / largest) if largest else 0.0)
        picture.edge(_tail(source), head, tooltip=_tooltip(f"{source}->{receiver}", float(values[row, column])), **style)


def _tail(source: str) -> str:
    return f"{source}:box:n" if source.startswith("a") else source


def _line(score: float, relative: float) -> dict[str, str]:
    """Width by |score| over the largest, colour by sign; weak edges are lighter too."""
    if np.isnan(score):
        return {"color": UNSCORED, "penwidth": "0.9"}
    opacity = round(255 * (0.35 + 0.6 * relative**0.5))
    return {"color": f"{HELPS if score >= 0 else HURTS}{opacity:02X}", "penwidth": f"{THIN + (THICK - THIN) * relative:.2f}"}


def _tooltip(edge: str, score: float) -> str:
    return edge if np.isnan(score) else f"{edge}  {score:+.4g}"


def _add_group_links(picture: graphviz.Digraph, circuit: Circuit) -> None:
    """From a group's keys and values to those of its heads that are in the circuit."""
    nodes = set(circuit.nodes)
    for receiver in circuit.graph.receivers:
        if ".kv" not in receiver or letter_of(receiver) != "k" or node_of(receiver) not in nodes:
            continue
        for head in circuit.graph.reader_nodes(receiver):
            if head in nodes:
                picture.edge(_tail(node_of(receiver)), f"{head}:box:s", style="dashed", color=FAINT, arrowhead="none")


# ------------------------------------------------------------------- heading


def _engine(circuit: Circuit) -> str:
    return "dot" if len(circuit) <= CROWDED else "neato"


def _graph_style(circuit: Circuit) -> dict[str, str]:
    style = {"rankdir": "BT", "bgcolor": "white", "fontname": FONT, "labelloc": "t", "nodesep": "0.08", "ranksep": "0.6"}
    engine = _engine(circuit)
    return style | {"outputorder": "edgesfirst", "layout": engine, "splines": "true" if engine == "dot" else "line"}


def _heading(circuit: Circuit, colours: Mapping[str, str], values: np.ndarray) -> str:
    """Title, counts and legend, as one HTML-like label."""
    info, total, n_nodes = circuit.info, len(circuit.graph), len(set(circuit.nodes) - {"input", "logits"})
    title = [info.get("model", {}).get("name"), info.get("task"), info.get("method")]
    counts = f"{len(circuit):,} of {total:,} edges ({len(circuit) / total:.1%}), {n_nodes} nodes"
    rows = [f'<FONT POINT-SIZE="18"><B>{escape(" · ".join(filter(None, title)) or "circuit")}</B></FONT>']
    rows += [f'<FONT POINT-SIZE="13">{counts}</FONT>', f'<FONT POINT-SIZE="11" COLOR="#555555">{_key(values)}</FONT>']
    swatches = [
        f'<FONT COLOR="{colour}" POINT-SIZE="15">■</FONT> <FONT POINT-SIZE="12">{escape(role)}</FONT>' for role, colour in colours.items()
    ]
    per_row = math.ceil(len(swatches) / math.ceil(len(swatches) / 5)) if swatches else 1
    rows += ["    ".join(swatches[i : i + per_row]) for i in range(0, len(swatches), per_row)]
    return f'<<TABLE BORDER="0" CELLSPACING="0" CELLPADDING="3">{"".join(f"<TR><TD>{row}</TD></TR>" for row in rows)}</TABLE>>'


def _key(values: np.ndarray) -> str:
    scored = values[~np.isnan(values)]
    if not scored.size:
        return "edges without scores"
    parts = [(HELPS, "ablating it hurts (score &gt; 0)", scored.max() >= 0), (HURTS, "ablating it helps (score &lt; 0)", scored.min() < 0)]
    words = [f'<FONT COLOR="{colour}"><B>━━</B></FONT> {text}' for colour, text, shown in parts if shown]
    return "    ".join([*words, f"width: |score|, up to {np.abs(scored).max():.3g}"])


# ----------------------------------------------------------------- rendering


def _render(dot: str, kind: str, engine: str) -> bytes:
    import pygraphviz

    with _quiet_fontconfig():
        rendered: bytes | None = pygraphviz.AGraph(dot).draw(format=kind, prog=engine)
    if rendered is None:
        raise CircuitDiscoveryError(f"Graphviz could not render the circuit as {kind}")
    return rendered


@contextmanager
def _quiet_fontconfig() -> Iterator[None]:
    """Keep back what the C libraries say of the system's font configuration; anything else they say is passed on."""
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as heard:
        os.dup2(heard.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            heard.seek(0)
            for line in heard.read().decode(errors="replace").splitlines():
                if "Fontconfig" not in line:
                    print(line, file=sys.stderr)
