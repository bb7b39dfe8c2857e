"""The box of a node in a drawing: its name, a cell for each letter that it reads, and one for each part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from circuitdiscovery.circuit.layout import Layout
from circuitdiscovery.graph.nodes import INPUT, LETTERS, LOGITS, parsed

PLAIN_HEAD, PLAIN_MLP, INK = "#F3F3F3", "#D5DAE1", "#222222"
SPACE = 7  # points at each side of a head
_BARE = 'BORDER="0" CELLBORDER="0" CELLSPACING="0"'


def box_of(plan: Layout, node: str, letters: str, colours: Mapping[str, str]) -> dict[str, str]:
    """How Graphviz is to draw a node.

    Args:
        plan: where it stands.
        node: its name; of a node that is split all its parts stand in its box.
        letters: those that it reads in the circuit, such as `qv`.
        colours: of nodes and parts with a role.
    """
    if node in plan.parts:
        return _split_box(plan, node, letters, colours)
    landscape, kind = plan.landscape, parsed(node).kind
    if node in (INPUT, LOGITS):
        size = {"width": "0.3", "height": "1.6"} if landscape else {"width": "3"}
        return {
            "label": node,
            "shape": "box",
            "style": "rounded,filled",
            "fillcolor": INK,
            "fontcolor": "white",
        } | size
    if kind == "mlp":
        flat = {"margin": "0", "width": "0.7", "height": "0.36"} if landscape else {}
        return {
            "label": node,
            "shape": "hexagon",
            "style": "filled",
            "fillcolor": colours.get(node, PLAIN_MLP),
        } | flat
    cells = _letters(letters)
    inside = (_cells_left if landscape else _cells_below)(node, cells)
    return _framed(inside, colours.get(node, PLAIN_HEAD), landscape)


def port(plan: Layout, part: str) -> str:
    """The cell of a part in its node's box."""
    return f"p{plan.circuit.graph.source_index[part]}"


def _framed(inside: str, colour: str, landscape: bool, lines: str = "") -> dict[str, str]:
    style = 'BORDER="1" CELLBORDER="0" CELLSPACING="0" CELLPADDING="2" STYLE="ROUNDED" '
    style += f'BGCOLOR="{colour}"{lines}'
    return {"label": f"<{_amid_space(f'<TABLE {style}>{inside}</TABLE>', landscape)}>", "shape": "plain"}


def _letters(letters: str, span: str = "") -> list[str]:
    return [
        f'<TD PORT="{letter}"{span} WIDTH="16"><FONT POINT-SIZE="10">{letter}</FONT></TD>'
        for letter in LETTERS
        if letter in letters
    ]


def _cells_below(node: str, cells: list[str]) -> str:
    read = f"<HR/><TR>{'<VR/>'.join(cells)}</TR>" if cells else ""
    return f'<TR><TD COLSPAN="{max(1, len(cells))}">{node}</TD></TR>{read}'


def _cells_left(node: str, cells: list[str]) -> str:
    if not cells:
        return f'<TR><TD CELLPADDING="3">{node}</TD></TR>'
    return f'<TR><TD CELLPADDING="0">{_column(cells)}</TD><VR/><TD CELLPADDING="3">{node}</TD></TR>'


def _column(cells: Sequence[str]) -> str:
    """Cells one below the other."""
    rows = "<HR/>".join(f"<TR>{cell}</TR>" for cell in cells)
    return f'<TABLE {_BARE} CELLPADDING="1">{rows}</TABLE>'


def _amid_space(box: str, landscape: bool) -> str:
    """Room at a head's sides: `nodesep` also spaces the lanes of long edges, which should be narrow."""
    inside = f'<TD PORT="box">{box}</TD>'
    if landscape:
        space = f'<TR><TD HEIGHT="{SPACE // 2}"></TD></TR>'
        rows = f"{space}<TR>{inside}</TR>{space}"
    else:
        space = f'<TD WIDTH="{SPACE}"></TD>'
        rows = f"<TR>{space}{inside}{space}</TR>"
    return f'<TABLE {_BARE} CELLPADDING="0">{rows}</TABLE>'


# ---------------------------------------------------------------- nodes that are split


def _split_box(plan: Layout, node: str, letters: str, colours: Mapping[str, str]) -> dict[str, str]:
    """A node's name, what reads for all its parts below or left of it, and the parts.

    Parts that read for themselves stand beside the name, so that edges enter and leave their cells.
    """
    split, parts = plan.circuit.graph.split_of(node), plan.parts[node]
    assert split is not None
    plain = {"input": INK, "mlp": PLAIN_MLP}.get(parsed(node).kind, PLAIN_HEAD)
    letters_below = len(_letters(letters))
    wide = f' COLSPAN="{max(1, letters_below)}"' if not (split.own or plan.landscape) else ""
    cells = [_part(plan, part, colours.get(part), wide) for part in parts]
    name = f"<B>{node}</B>"
    if plan.landscape:
        inside = _left(name, _letters(letters), cells, split.own)
    else:
        columns = max(1, letters_below) * max(1, len(parts))
        below = _letters(letters, f' COLSPAN="{columns // max(1, letters_below)}"')
        inside = _below(name, below, cells, split.own, columns)
    if plain == INK:
        return _framed(inside, plain, plan.landscape, ' COLOR="white"') | {"fontcolor": "white"}
    return _framed(inside, plain, plan.landscape)


def _part(plan: Layout, part: str, colour: str | None, wide: str) -> str:
    tint = f' BGCOLOR="{colour}"' if colour else ""
    label = escape(parsed(part).part)
    cell = port(plan, part)  # also its ID, because Graphviz counts others on from drawing to drawing
    room = 16 if parsed(part).kind != "input" or plan.landscape else 48
    return (
        f'<TD PORT="{cell}" ID="{cell}" TITLE="{escape(part)}" WIDTH="{room}"{wide}{tint}>'
        f'<FONT POINT-SIZE="10">{label}</FONT></TD>'
    )


def _below(name: str, letters: list[str], cells: list[str], own: bool, columns: int) -> str:
    """From the top: what writes, the name, what reads."""
    if own:
        return f"<TR>{'<VR/>'.join([f'<TD>{name}</TD>', *cells])}</TR>"
    rows = [f"<TR>{'<VR/>'.join(cells)}</TR>"] if cells else []
    rows += [f'<TR><TD COLSPAN="{columns}">{name}</TD></TR>']
    rows += [f"<TR>{'<VR/>'.join(letters)}</TR>"] if letters else []
    return "<HR/>".join(rows)


def _left(name: str, letters: list[str], cells: list[str], own: bool) -> str:
    """From the left: what reads, the name, what writes."""
    if own:
        return "<HR/>".join(f"<TR>{cell}</TR>" for cell in (f"<TD>{name}</TD>", *cells))
    columns = [f'<TD CELLPADDING="0">{_column(letters)}</TD>'] if letters else []
    columns += [f'<TD CELLPADDING="3">{name}</TD>']
    columns += [f'<TD CELLPADDING="0">{_column(cells)}</TD>'] if cells else []
    return f"<TR>{'<VR/>'.join(columns)}</TR>"
