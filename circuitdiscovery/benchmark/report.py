"""What a benchmark run found, for people: one Markdown table per question, and one picture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from circuitdiscovery.benchmark.measure import Measured
from circuitdiscovery.files.figures import write_figure

FAILED = 0.9  # an AUROC below it is reported with what was missed
# Okabe and Ito's, and two
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8B8B00", "#999999")
_STYLES = ("-", "--", ":", "-.")

Rows = list[list[str]]


def markdown(results: Sequence[Measured], why: dict[str, str], heading: str) -> str:
    """The whole report."""
    parts = [heading]
    known = [result for result in results if result.truth is not None]
    if known:
        parts += [
            "What is recovered: medians over the problems, AUROC by the pessimistic rule.",
            _table(*_by_method(known)),
        ]
        parts += [
            "Edge AUROC by problem.",
            _table(*_by_problem(known, lambda r: _number(r.areas["edges_pessimistic"], 2))),
        ]
        parts += _failures(known, why)
        told = "KL in nats on held-out examples, of the circuit with as many edges as the true one."
        parts += [told, _table(*_by_problem(known, lambda r: _number(r.at[0].kl)))]
    unknown = [result for result in results if result.truth is None]
    if unknown:
        told = "Faithfulness on held-out examples at equal numbers of edges: normalized, and KL in nats."
        parts += [told, _table(*_faithfulness(unknown))]
    return "\n\n".join(parts) + "\n"


def _table(head: Iterable[str], rows: Rows) -> str:
    head = list(head)
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def _names(results: Sequence[Measured], field: str) -> list[str]:
    return list(dict.fromkeys(getattr(result, field) for result in results))


def _by_method(results: Sequence[Measured]) -> tuple[list[str], Rows]:
    """With a column for each kind of problem, where there are several."""
    kinds = [kind for kind in ("easy", "hard", "trained") if kind in map(_kind, _names(results, "problem"))]
    head = [
        "method",
        "edge AUROC",
        *(kinds if len(kinds) > 1 else ()),
        "node AUROC",
        "precision",
        "recall",
        "Jaccard",
        "KL",
        "distance",
        "area",
        "F",
    ]
    rows = []
    for method in _names(results, "method"):
        mine = [result for result in results if result.method == method]
        parts = [[result for result in mine if _kind(result.problem) == kind] for kind in kinds]
        areas = [
            _median(part, lambda r: r.areas["edges_pessimistic"])
            for part in (mine, *(parts if len(parts) > 1 else ()))
        ]
        overlaps = [
            _median(mine, lambda r, name=name: getattr(r.at[0].overlap, name))
            for name in ("precision", "recall", "jaccard")
        ]
        rest = [_median(mine, of) for of in (lambda r: r.at[0].kl, lambda r: r.distance, lambda r: r.area)]
        nodes = _median(mine, lambda r: r.areas["nodes_pessimistic"])
        rows.append([method, *areas, nodes, *overlaps, *rest, _median(mine, lambda r: r.forwards, ",.0f")])
    return head, rows


def _kind(problem: str) -> str:
    return "trained" if problem.startswith("semisynthetic") else "hard" if "-hard" in problem else "easy"


def _median(results: Sequence[Measured], of: Callable[[Measured], float | None], form: str = ".2f") -> str:
    values = [value for value in map(of, results) if value is not None]
    return format(median(values), form) if values else "-"


def _by_problem(results: Sequence[Measured], of: Callable[[Measured], str]) -> tuple[list[str], Rows]:
    methods = _names(results, "method")
    found = {(result.problem, result.method): result for result in results}
    rows = []
    for problem in _names(results, "problem"):
        cells = [found.get((problem, method)) for method in methods]
        one = next(cell for cell in cells if cell is not None)
        rows.append(
            [
                problem,
                f"{one.truth} of {one.edges_total:,}",
                *("" if cell is None else of(cell) for cell in cells),
            ]
        )
    return ["problem", "edges", *methods], rows


def _failures(results: Sequence[Measured], why: dict[str, str]) -> list[str]:
    lines = []
    for result in results:
        area = result.areas["edges_pessimistic"]
        if area is not None and area < FAILED and result.method != "random":
            missed = (
                f"lacks {', '.join(result.missed)} at {result.truth} edges"
                if result.missed
                else "the sweep is too coarse"
            )
            reason = f" ({why[result.problem]})" if why.get(result.problem) else ""
            lines.append(f"- {result.method} on {result.problem}, {area:.2f}: {missed}{reason}")
    return (
        ["Where a method falls short of .9, and what is known of the problem.", "\n".join(lines)]
        if lines
        else []
    )


def _faithfulness(results: Sequence[Measured]) -> tuple[list[str], Rows]:
    rows = []
    for result in results:
        at = [f"{each.edges}: {_number(each.normalized)}, KL {_number(each.kl)}" for each in result.at]
        rest = [
            _number(result.distance),
            _number(result.area),
            f"{result.seconds:.1f}",
            f"{result.forwards:,.0f}",
        ]
        rows.append([result.problem, result.method, f"{result.edges_total:,}", "; ".join(at), *rest])
    return [
        "problem",
        "method",
        "edges in all",
        "edges kept: normalized faithfulness, KL",
        "distance",
        "area",
        "seconds",
        "F",
    ], rows


def _number(value: float | None, places: int = 3) -> str:
    return "-" if value is None else f"{round(value, places) + 0.0:.{places}f}"  # + 0.0: no -0.000


# ------------------------------------------------------------------ the picture


def picture(results: Sequence[Measured], path: Path) -> None:
    """ROC curves (where there is a truth) and faithfulness curves of every
    method, means over the problems, as a .png.
    """

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    known = [result for result in results if result.roc]
    panels: list[tuple[str, Sequence[Measured]]] = [("roc", known)] if known else []
    problems = _names(results, "problem")
    panels += (
        [("faithfulness", results)]
        if known
        else [(problem, [r for r in results if r.problem == problem]) for problem in problems]
    )
    figure = Figure(figsize=(5.5 * len(panels) + 1.5, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, shown) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        (_draw_roc if name == "roc" else _draw_faithfulness)(axes, shown)
        axes.set_title({"roc": "edges of the true circuit", "faithfulness": "faithfulness"}.get(name, name))
        axes.grid(alpha=0.25)
    figure.legend(*figure.axes[-1].get_legend_handles_labels(), fontsize=8, loc="outside right upper")
    write_figure(figure, Path(path))


def _style(results: Sequence[Measured], method: str) -> dict[str, Any]:
    index = _names(results, "method").index(method)
    return {
        "color": _COLOURS[index % len(_COLOURS)],
        "linestyle": _STYLES[index % len(_STYLES)],
        "label": method,
        "linewidth": 1.8,
    }


def _draw_roc(axes: Any, results: Sequence[Measured]) -> None:
    grid = np.linspace(0, 1, 401)
    for method in _names(results, "method"):
        curves = [_staircase(np.array(result.roc), grid) for result in results if result.method == method]
        axes.plot(grid, np.mean(curves, axis=0), **_style(results, method))
    axes.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(-0.01, 1), ylim=(0, 1.02))


def _staircase(points: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """The best true positive rate up to each false positive rate: the lower staircase through the points."""
    x, y = np.append(points[:, 0], [0, 1]), np.append(points[:, 1], [0, 1])
    return np.array([y[x <= at + 1e-12].max() for at in grid])


def _draw_faithfulness(axes: Any, results: Sequence[Measured]) -> None:
    grid = np.geomspace(0.002, 1, 400)
    for method in _names(results, "method"):
        curves = [
            np.interp(grid, np.array(result.curve)[:, 0] / result.edges_total, np.array(result.curve)[:, 1])
            for result in results
            if result.method == method and result.curve
        ]
        if curves:
            axes.plot(grid, np.mean(curves, axis=0), **_style(results, method))
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.set(
        xlabel="part of all edges (after pruning)",
        ylabel="normalized faithfulness",
        xscale="log",
        ylim=(-0.5, 1.6),
    )
