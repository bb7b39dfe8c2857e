"""How a circuit forms over training, as a table, as text and as a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitdiscovery.files.figures import figure_path, write_figure
from circuitdiscovery.measure.estimates import Estimate
from circuitdiscovery.registry import ablation_words
from circuitdiscovery.universality.strengths import DIRECT
from circuitdiscovery.values import part_in_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from circuitdiscovery.universality.forming import Checkpoint, Forming

FIGURES = ("full", "circuit", "empty", "faithfulness")
_NAMES = {"full": "model"}


def rows(forming: Forming) -> list[dict[str, Any]]:
    """One per checkpoint."""
    return [_row(forming, each, i) for i, each in enumerate(forming.steps)]


def _row(forming: Forming, point: Checkpoint, i: int) -> dict[str, Any]:
    row: dict[str, Any] = {"step": point.step, "name": point.model, "knows": point.knows}
    for name in FIGURES:
        row |= _limits(_NAMES.get(name, name), getattr(point, name))
    for role, node in forming.strongest.items():
        strength = point.roles[role]
        row |= _limits(f"{role}, {node}", strength.nodes[node])
        row |= _limits(f"{role}, {node}, direct effect", strength.direct[node])
        row |= _limits(f"{role}, {node}, effect", strength.effects[node])
        row |= _limits(f"{role}, mean", strength.mean)
    row |= {f"highest {score}": value for score, (_, value) in point.highest.items()}
    return row | ({"overlap": forming.overlap[i]} if forming.overlap else {})


def _limits(name: str, value: Estimate) -> dict[str, float]:
    return {name: float(value), f"{name}, low": value.low, f"{name}, high": value.high}


# ------------------------------------------------------------------ as text


def lines(forming: Forming) -> Iterator[str]:
    """A table of the figures, one of the strengths, and what they say."""
    how = f"{ablation_words(forming.ablation, forming.mean_over)}, {forming.direction}"
    yield f"{forming.edges:,} of {forming.edges_total:,} edges at {len(forming.steps)} checkpoints"
    on = f"{forming.task}: {forming.metric} on {forming.examples} {part_in_words(forming.part)}, {how}"
    yield on
    yield ""
    head = ["step", "model", "circuit", "no edges", "faithfulness"]
    body = [
        [
            f"{each.step:,}",
            str(each.full),
            *(f"{one:.3g}" for one in (each.circuit, each.empty)),
            str(each.faithfulness) if each.knows else "none",
        ]
        for each in forming.steps
    ]
    if forming.overlap:
        head.append("overlap")
        body = [[*row, f"{one:.2f}"] for row, one in zip(body, forming.overlap, strict=True)]
    yield from _table(head, body)
    yield ""
    columns = list(_strengths(forming))
    if columns:
        body = [
            [f"{each.step:,}", *(f"{values[i]:.2f}" for _, values in columns)]
            for i, each in enumerate(forming.steps)
        ]
        yield from _table(["step", *(name for name, _ in columns)], body)
        yield ""
    said = list(_said(forming))
    width = max(13, *(len(name) for name, _ in said))
    yield from (f"{name:<{width}} {text}" for name, text in said)


def _strengths(forming: Forming) -> Iterator[tuple[str, Sequence[float]]]:
    """(name, the value at each step) of the roles' strongest nodes, and of the highest scores of any head."""
    for role, node in forming.strongest.items():
        each = [point.roles[role] for point in forming.steps]
        yield role, [one.nodes[node] for one in each]
        if _writes(forming, role) and each[0].figure != DIRECT:
            yield f"{role}, {DIRECT}", [one.direct[node] for one in each]
    for score in forming.steps[-1].highest:
        yield f"any head's {score}", [point.highest[score][1] for point in forming.steps]


def _writes(forming: Forming, role: str) -> bool:
    """Whether a role is one of writing onto the logits, so that the direct effect tells of it."""
    return role.endswith("mover") or forming.steps[-1].roles[role].figure == DIRECT


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    for row in (head, *body):
        yield "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))


def _said(forming: Forming) -> Iterator[tuple[str, str]]:
    """What the tables say, each line with its name."""
    unknown = sum(not each.knows for each in forming.steps)
    known, faithful = forming.known_from, forming.faithful_from
    yield "known", "not at the last step" if known is None else f"from step {known:,} on"
    yield (
        "faithful",
        "below .9 at the last step" if faithful is None else f"at least .9 from step {faithful:,} on",
    )
    if unknown:
        yield "none", f"at {unknown} of {len(forming.steps)} steps the model is not better than no edges"
    if forming.own_step is not None:
        yield "circuit", f"found in the weights of step {forming.own_step:,}"
    for role, node in forming.strongest.items():
        last = forming.steps[-1].roles[role]
        others = [each for each in last.nodes if each != node]
        beside = f" (mean with {', '.join(others)}: {last.mean:.2f})" if others else ""
        yield role, f"{last.figure} of {node}{beside}; ablating it costs {last.effects[node]} at the end"
    if forming.overlap:
        yield "overlap", f"Jaccard with the edges found at the last step; by chance {forming.chance:.2f}"
    if not forming.strongest:
        yield "roles", "the circuit has none: circuit.with_roles(cd.explain(...).roles)"


# ------------------------------------------------------------------ as a picture


def plot(forming: Forming, path: str | Path | None) -> Figure:
    """Three panels over the steps."""
    from matplotlib.figure import Figure

    where = figure_path(path)
    figure = Figure(figsize=(8.5, 7.5), layout="constrained")
    metric, faithfulness, roles = figure.subplots(3, 1, sharex=True)
    steps = [each.step for each in forming.steps]
    for name, style in zip(("full", "circuit", "empty"), ("-", "-", "--"), strict=True):
        values = [getattr(each, name) for each in forming.steps]
        _line(metric, steps, values, {"full": "model", "empty": "no edges"}.get(name, name), linestyle=style)
    metric.set(
        ylabel=forming.metric, title=f"{forming.task}: {forming.edges:,} of {forming.edges_total:,} edges"
    )
    _faithfulness_panel(faithfulness, forming, steps)
    _roles_panel(roles, forming, steps)
    positive = [step for step in steps if step > 0]
    if positive:
        roles.set_xscale("symlog", linthresh=min(positive), linscale=0.3)
        roles.set_xlim(left=min(steps), right=max(steps) * 1.05)
    roles.set_xlabel("step of training")
    right = len(figure.axes) > 3  # whose ticks and name are beside the last panel
    for panel in (metric, faithfulness, roles):
        beside = 1.14 if right and panel is roles else 1.0
        panel.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(beside, 0.5))
        panel.grid(alpha=0.25)
    return write_figure(figure, where)


def _line(panel: Axes, steps: Sequence[int], values: Sequence[Estimate], label: str, **style: Any) -> None:
    """A line with its interval; a gap where there is no value."""
    (line,) = panel.plot(steps, list(map(float, values)), marker="o", markersize=3, label=label, **style)
    low, high = ([getattr(each, end) for each in values] for end in ("low", "high"))
    panel.fill_between(steps, low, high, alpha=0.18, color=line.get_color(), linewidth=0)


def _faithfulness_panel(panel: Axes, forming: Forming, steps: Sequence[int]) -> None:
    _line(panel, steps, [each.faithfulness for each in forming.steps], "faithfulness")
    if forming.overlap:
        panel.plot(
            steps,
            forming.overlap,
            marker="o",
            markersize=3,
            label="overlap of the edges\nfound with the last",
        )
        panel.axhline(forming.chance, color="gray", linewidth=0.8, linestyle=":", label="overlap by chance")
    for level in (0.0, 1.0):
        panel.axhline(level, color="gray", linewidth=0.8, linestyle="--")
    panel.set_ylim(-0.25, 1.5)
    panel.set_ylabel("normalized faithfulness")


def _roles_panel(panel: Axes, forming: Forming, steps: Sequence[int]) -> None:
    """Attention and scores on the left; direct effects, where there are any, on an axis of their own."""
    right = None
    for i, (role, node) in enumerate(forming.strongest.items()):
        each, color = [point.roles[role] for point in forming.steps], f"C{i}"
        if each[0].figure != DIRECT:
            _line(panel, steps, [one.nodes[node] for one in each], f"{role} ({node})", color=color)
        if _writes(forming, role):
            right = right or panel.twinx()
            label = f"{role} ({node}), direct"
            _line(right, steps, [one.direct[node] for one in each], label, color=color, linestyle=":")
            panel.plot([], [], color=color, linestyle=":", label=label)  # the legend is the left axis's
    if right is not None:
        right.set_ylabel("direct effect (dotted)")
    for score, style in zip(forming.steps[-1].highest, ("--", "-."), strict=False):
        values = [point.highest[score][1] for point in forming.steps]
        panel.plot(steps, values, color="gray", linestyle=style, label=f"any head: {score}")
    panel.set(ylabel="attention, or score", ylim=(-0.05, 1.05))
