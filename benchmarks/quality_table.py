"""The cells of real_quality.py as tables of Markdown, and the file that keeps those of a page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from circuitdiscovery.files.disk import write_json
from circuitdiscovery.measure.estimates import Estimate

ONE_SIZE_EXAMPLES = 128
SLOW_EXAMPLES, SLOW_SHARE = 16, 0.01
THRESHOLD = 0.01  # acdc's
SLOW = ("edge_pruning", "hybrid", "acdc")
MEASURED = Path(__file__).with_name("measured")  # MODEL.json: the cells that its page shows, by name


def kept(model: str, names: list[str], cells: dict[str, Any]) -> dict[str, Any]:
    """Those of a model's page with others in their place or beside them, in the order of their names, which
    are written back."""
    path = MEASURED / f"{model}.json"
    found = (json.loads(path.read_text("utf-8")) if path.exists() else {}) | cells
    ordered = {name: found[name] for name in names if name in found}
    write_json(path, ordered)
    return ordered


def table(cells: list[dict[str, Any]]) -> Iterator[str]:
    """Lines of Markdown."""
    for name in dict.fromkeys(each["task"] for each in cells):
        mine = [each for each in cells if each["task"] == name and not _apart(each)]
        if mine:
            yield from _task(name, mine)
    single = [each for each in cells if "seed" in each]
    slow = [each for each in cells if each["method"] in SLOW]
    roles = [each for each in cells if each["method"] == "roles" and "cards" in each]
    if single:
        columns = "counterfactual", "seed", "edges", "F", "normalized; KL", "KL of the empty circuit"
        yield from _rows(
            f"matryoshka at one size: ioi, {ONE_SIZE_EXAMPLES} prompts", columns, map(_single, single)
        )
    if slow:
        columns = "task", "method", "F", "edges", "normalized; KL"
        yield from _rows(
            f"Slow searches: {SLOW_SHARE:.0%} of the edges, or acdc at {THRESHOLD:g}, {SLOW_EXAMPLES} prompts",
            columns,
            map(_slow, slow),
        )
    if roles:
        columns = "task", "by", "nodes", "F", "nodes of largest effect, and those with a role"
        yield from _rows(
            f"Roles in the circuits of {SLOW_SHARE:.0%} of the edges", columns, map(_roles, roles)
        )


def _apart(cell: dict[str, Any]) -> bool:
    """Whether it stands in a table of its own, not in its task's."""
    return cell["method"] in (*SLOW, "roles") or "seed" in cell


def _rows(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], before: str = ""
) -> Iterator[str]:
    yield f"### {title}"
    yield ""
    if before:
        yield before
        yield ""
    for row in (columns, ["---"] * len(columns), *rows):
        yield f"| {' | '.join(row)} |"
    yield ""


def _task(name: str, cells: list[dict[str, Any]]) -> Iterator[str]:
    one = next((each for each in cells if "accuracy" in each), cells[0])
    known = f"accuracy {one['accuracy']:.2f}, top-1 {one['top-1']:.2f}" if "accuracy" in one else ""
    if "rows" not in one:
        yield from (f"### {name}", "", f"Not searched, as the model does not know it: {known}.", "")
        return
    before = (
        f"{one['examples']} prompts to search, {one['held out']} held out{known and f', {known}'}; "
        f"F(M) {_number(one['full'])}; empty circuit: KL {_number(one['empty kl'])}."
    )
    columns = "method", "F", "GB", *(f"{row['edges']:,} edges" for row in one["rows"])
    yield from _rows(name, columns, map(_method, cells), before)


def _method(cell: dict[str, Any]) -> list[str]:
    memory = f"{cell['memory']:.2f}" if "memory" in cell else ""
    return [cell["method"], f"{cell['F']:,.3g}", memory, *map(_figures, cell["rows"])]


def _single(cell: dict[str, Any]) -> list[str]:
    (row,) = cell["rows"]
    figures = [f"{row['edges']:,}", f"{cell['F']:,.3g}", _figures(row), f"{cell['empty kl']['value']:.2f}"]
    return [cell["counterfactual"], str(cell["seed"]), *figures]


def _slow(cell: dict[str, Any]) -> list[str]:
    if not cell["rows"]:
        cost = f"about {cell['F']:,.2g} (estimated from {cell['share']:.1%} of it)"
        return [cell["task"], cell["method"], cost, "", ""]
    (row,) = cell["rows"]
    return [cell["task"], cell["method"], f"{cell['F']:,.3g}", f"{row['edges']:,}", _figures(row)]


def _roles(cell: dict[str, Any]) -> list[str]:
    told = "; ".join(_card(*card) for card in cell["cards"])
    return [cell["task"], cell["of"], str(cell["nodes"]), f"{cell['F']:,.3g}", told]


def _card(node: str, effect: float, roles: list[str]) -> str:
    return f"{node} ({effect:.2f}){': ' * bool(roles)}{', '.join(roles)}"


def _number(figure: dict[str, float]) -> str:
    return str(Estimate(figure["value"], figure["low"], figure["high"]))


def _figures(found: dict[str, Any]) -> str:
    share = found["normalized"]
    return f"{share['value']:.2f} [{share['low']:.2f}, {share['high']:.2f}]; {found['kl']['value']:.2f}"
