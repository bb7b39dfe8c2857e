"""The cells of real_quality.py as tables of Markdown, and the file that keeps those of a page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from circuitdiscovery.files.disk import write_json
from circuitdiscovery.measure.estimates import Estimate

ONE_SIZE_EXAMPLES = 128
SLOW_EXAMPLES, SLOW_SHARE = 16, 0.01
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
        mine = [
            each
            for each in cells
            if each["task"] == name and each["method"] not in (*SLOW, "roles") and "seed" not in each
        ]
        if not mine:
            continue
        one = next((each for each in mine if "accuracy" in each), mine[0])
        yield f"### {name}"
        yield ""
        known = f"accuracy {one['accuracy']:.2f}, top-1 {one['top-1']:.2f}" if "accuracy" in one else ""
        if "rows" not in one:
            yield f"Not searched, as the model does not know it: {known}."
            yield ""
            continue
        yield (
            f"{one['examples']} prompts to search, {one['held out']} held out{known and f', {known}'}; "
            f"F(M) {_number(one['full'])}; empty circuit: KL {_number(one['empty kl'])}."
        )
        yield ""
        yield f"| method | F | GB | {' | '.join(f'{count:,} edges' for count in sizes_of(one))} |"
        yield f"| --- | --- | --- |{' --- |' * len(sizes_of(one))}"
        for each in mine:
            memory = f"{each['memory']:.2f}" if "memory" in each else ""
            figures = " | ".join(map(_figures, each["rows"]))
            yield f"| {each['method']} | {each['F']:,.3g} | {memory} | {figures} |"
        yield ""
    single = [each for each in cells if each["method"] == "matryoshka" and "seed" in each]
    if single:
        yield f"### matryoshka at one size: ioi, {ONE_SIZE_EXAMPLES} prompts"
        yield ""
        yield "| counterfactual | seed | edges | F | normalized; KL | KL of the empty circuit |"
        yield "| --- | --- | --- | --- | --- | --- |"
        for each in single:
            found, empty = each["rows"][0], each["empty kl"]["value"]
            figures = f"{found['edges']:,} | {each['F']:,.3g} | {_figures(found)} | {empty:.2f}"
            yield f"| {each['counterfactual']} | {each['seed']} | {figures} |"
        yield ""
    slow = [each for each in cells if each["method"] in SLOW]
    if slow:
        yield f"### Slow searches: {SLOW_SHARE:.0%} of the edges, {SLOW_EXAMPLES} prompts"
        yield ""
        yield "| task | method | F | edges | normalized; KL |"
        yield "| --- | --- | --- | --- | --- |"
        for each in slow:
            if each["rows"]:
                yield (
                    f"| {each['task']} | {each['method']} | {each['F']:,.3g} | {each['rows'][0]['edges']:,} | "
                    f"{_figures(each['rows'][0])} |"
                )
            else:
                yield (
                    f"| {each['task']} | {each['method']} | about {each['F']:,.2g} (estimated from {each['share']:.1%} "
                    "of it) | | |"
                )
        yield ""
    roles = [each for each in cells if each["method"] == "roles" and "cards" in each]
    if roles:
        yield f"### Roles in the circuits of {SLOW_SHARE:.0%} of the edges"
        yield ""
        yield "| task | by | nodes | F | nodes of largest effect, and those with a role |"
        yield "| --- | --- | --- | --- | --- |"
        for each in roles:
            told = "; ".join(_card(*card) for card in each["cards"])
            yield f"| {each['task']} | {each['of']} | {each['nodes']} | {each['F']:,.3g} | {told} |"
        yield ""


def _card(node: str, effect: float, roles: list[str]) -> str:
    return f"{node} ({effect:.2f}){': ' * bool(roles)}{', '.join(roles)}"


def sizes_of(found: dict[str, Any]) -> list[int]:
    """How many edges a cell's circuits have."""
    return [each["edges"] for each in found["rows"]]


def _number(figure: dict[str, float]) -> str:
    return str(Estimate(figure["value"], figure["low"], figure["high"]))


def _figures(found: dict[str, Any]) -> str:
    kept = found["normalized"]
    return f"{kept['value']:.2f} [{kept['low']:.2f}, {kept['high']:.2f}]; {found['kl']['value']:.2f}"
