"""`transfer`: how faithful the circuit of one task, template or model is on other tasks.

A circuit is run in its own model, on a task drawn for that model's tokenizer. Its faithfulness is the
normalized one of `evaluate`: (F(C) - F(empty)) / (F(M) - F(empty)), F the mean metric over the task's
held-out prompts. Of each model and task one evaluator measures all circuits of that model together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from circuitdiscovery.arguments import guarded
from circuitdiscovery.circuit.circuit import Circuit
from circuitdiscovery.engine.ablation import Ablation, name_of
from circuitdiscovery.engine.metrics import Metric
from circuitdiscovery.engine.setup import Progress, Setup, within
from circuitdiscovery.errors import CircuitDiscoveryError, shown, unknown
from circuitdiscovery.files.disk import data_frame
from circuitdiscovery.files.figures import figure_path, write_figure
from circuitdiscovery.measure.estimates import Estimate
from circuitdiscovery.measure.evaluator import Evaluator
from circuitdiscovery.model.model import Model
from circuitdiscovery.registry import canonical
from circuitdiscovery.task.task import Task
from circuitdiscovery.universality.tasks import check_pairs, task_for
from circuitdiscovery.values import Value, part_in_words, table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_DARK = 0.6  # faithfulness from which a cell's text is light


@dataclass(frozen=True, repr=False)
class Baseline(Value):
    """Whether a model does a task at all: what faithfulness on it is between.

    Args:
        model, task: their names.
        part: "held_out", or "examples" where none are held out.
        examples: how many.
        metric: which.
        full, empty: F of the model, and with every edge removed.
        reason: why faithfulness is undefined; None where it is defined.
    """

    model: str
    task: str
    part: str
    examples: int
    metric: str
    full: Estimate
    empty: Estimate
    reason: str | None


@dataclass(frozen=True, repr=False)
class Transfer(Value):
    """How faithful each of several circuits is on each of several tasks (see `transfer`).

    Args:
        circuits, tasks: their names.
        models: the name of each circuit's model.
        edges, edges_total: how many each circuit has, and of how many.
        ablation, direction: how edges were removed.
        faithfulness: [circuits, tasks], normalized, with intervals over the prompts; NaN where F of the model
            and of the empty circuit do not differ. `numpy.array(found.faithfulness)` holds the values.
        baselines: of each model and task.
    """

    circuits: tuple[str, ...]
    tasks: tuple[str, ...]
    models: tuple[str, ...]
    edges: tuple[int, ...]
    edges_total: tuple[int, ...]
    ablation: str
    direction: str
    faithfulness: tuple[tuple[Estimate, ...], ...]
    baselines: tuple[Baseline, ...]

    def __getitem__(self, key: tuple[str, str]) -> Estimate:
        """The faithfulness of a circuit on a task, by their names.

        Raises:
            CircuitDiscoveryError: a name that is not one of them.
        """
        circuit, task = key
        return self.faithfulness[_index("circuit", circuit, self.circuits)][_index("task", task, self.tasks)]

    def baseline(self, circuit: str, task: str) -> Baseline:
        """What a circuit's model does on a task.

        Raises:
            CircuitDiscoveryError: a name that is not one of them.
        """
        model = self.models[_index("circuit", circuit, self.circuits)]
        task = self.tasks[_index("task", task, self.tasks)]
        return next(each for each in self.baselines if (each.model, each.task) == (model, task))

    def to_dataframe(self) -> pd.DataFrame:
        """One row per circuit and task: faithfulness with its interval, the circuit's edges, F of the model
        and of the empty circuit. Needs pandas."""
        return data_frame(list(self._rows()))

    def _rows(self) -> Iterator[dict[str, Any]]:
        for i, circuit in enumerate(self.circuits):
            for j, task in enumerate(self.tasks):
                value, known = self.faithfulness[i][j], self.baseline(circuit, task)
                yield {
                    "circuit": circuit,
                    "model": self.models[i],
                    "edges": self.edges[i],
                    "share": self.edges[i] / self.edges_total[i],
                    "task": task,
                    "faithfulness": float(value),
                    "low": value.low,
                    "high": value.high,
                    "full": float(known.full),
                    "empty": float(known.empty),
                }

    @guarded
    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw the matrix as a heat map, a row per circuit, with the figures and their intervals.

        Args:
            path: a .png, .svg or .pdf file to write; by default none.

        Returns:
            Matplotlib's figure.
        """
        from matplotlib.figure import Figure

        where, values = figure_path(path), np.array(self.faithfulness, dtype=float)
        figure = Figure(dpi=100, layout="constrained")  # texts are measured in dots
        axes = figure.subplots()
        axes.set_facecolor("lightgray")  # of what is undefined
        image = axes.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for (i, j), value in np.ndenumerate(values):
            color = "white" if value > _DARK else "black"
            axes.text(
                j, i, _cell(self.faithfulness[i][j], "\n"), color=color, fontsize=8, ha="center", va="center"
            )
        columns = axes.set_xticks(range(len(self.tasks)), [each.replace("_", "\n") for each in self.tasks])
        rows = axes.set_yticks(
            range(len(self.circuits)), [f"{name}\n{self._size(i)}" for i, name in enumerate(self.circuits)]
        )
        axes.set(xlabel="measured on", ylabel="circuit of")
        figure.colorbar(image, label="faithfulness", extend="both")
        below, beside = (
            [tick.label1.get_window_extent() for tick in ticks] for ticks in (columns, rows)
        )  # in dots
        width = max(130.0, *(each.width + 20 for each in below)) * len(below) + max(e.width for e in beside)
        height = max(62.0, *(each.height + 15 for each in beside)) * len(beside) + max(
            e.height for e in below
        )
        figure.set_size_inches((200 + width) / figure.dpi, (100 + height) / figure.dpi)
        return write_figure(figure, where)

    def _size(self, i: int) -> str:
        return f"{self.edges[i]:,} of {self.edges_total[i]:,} edges"

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _repr_html_(self) -> str:
        first, *rows = self._cells()
        return table(rows, head=first, note="; ".join(self._notes()))

    def _lines(self) -> Iterator[str]:
        yield f"faithfulness (row: the circuit, column: the task), {self.ablation} ablation, {self.direction}"
        cells = self._cells()
        widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
        for row in cells:
            yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        yield from self._notes()

    def _cells(self) -> list[list[str]]:
        rows = zip(self.circuits, self.faithfulness, strict=True)
        return [
            ["", "edges", *self.tasks],
            *([name, f"{self.edges[i]:,}", *map(_cell, row)] for i, (name, row) in enumerate(rows)),
        ]

    def _notes(self) -> Iterator[str]:
        for each in self.baselines:
            told = f"{each.metric} {each.full}, without any edge {each.empty}"
            undefined = "" if each.reason is None else f"; faithfulness is undefined, {each.reason}"
            examples = f"{each.examples} {part_in_words(each.part)}"
            yield f"{each.model} on {each.task}: {told}; {examples}{undefined}"


@guarded
def transfer(
    circuits: Any,
    tasks: Any,
    *,
    ablation: str | Ablation = "resample",
    metric: str | Metric | Any | None = None,
    direction: str = "noising",
    examples: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Transfer:
    """How faithful each circuit is on each task, its own and others'.

    Args:
        circuits: name -> (model, circuit); of one model or of several.
        tasks: what circuits are measured on, each drawn for the tokenizer of each model: a name, a file, a
            `Task`, a function model -> `Task`, several of these, or name -> any of these.
        ablation, metric, direction: as for `evaluate`.
        examples: of tasks that are drawn here; as many are held out, and measured on. Give as many as the
            searches had, and their seed: what is held out is then new to each circuit.
        batch_size: examples in one forward.
        seed: of the drawing and the bootstrap.
        progress: called with (done, total), a hundred for each model and task.

    Returns:
        The matrix, with 95% intervals over the held-out prompts.

    Raises:
        CircuitDiscoveryError: a circuit of another model; a task that a model's tokenizer cannot have; a
            metric that a task cannot have; two tasks of one name.

    >>> import circuitdiscovery as cd
    >>> model = cd.load_model("toy")
    >>> circuit = cd.Circuit.full(model.graph)
    >>> found = cd.universality.transfer({"all": (model, circuit)}, "greater_than", examples=8)
    >>> found["all", "greater_than"]
    1 [1, 1]
    """
    groups, columns = _groups(_pairs(circuits)), _columns(tasks)
    drawn = [
        (group, name, _drawn(group.model, task, examples, seed))
        for group in groups
        for name, task in columns.items()
    ]
    how: dict[str, Any] = {"ablation": ablation, "metric": metric, "direction": direction}
    how |= {"batch_size": batch_size}
    baselines, cells = list[Baseline](), dict[tuple[str, str], Estimate]()
    for number, (group, name, task) in enumerate(drawn):
        baseline, found = group.measured(
            name, task, how, seed, within(progress, 100 * number, 100, 100 * len(drawn))
        )
        baselines.append(baseline)
        cells |= {(circuit, name): each for circuit, each in found.items()}
    of = {name: (group.name, circuit) for group in groups for name, circuit in group.circuits.items()}
    names = tuple(map(str, circuits))
    return Transfer(
        names,
        tuple(columns),
        tuple(of[name][0] for name in names),
        tuple(len(of[name][1]) for name in names),
        tuple(len(of[name][1].graph) for name in names),
        name_of(ablation),
        canonical("direction", direction),
        tuple(tuple(cells[circuit, task] for task in columns) for circuit in names),
        tuple(baselines),
    )


# ------------------------------------------------------------------ what is measured


@dataclass(frozen=True)
class _Group:
    """The circuits of one model."""

    name: str
    model: Model
    circuits: Mapping[str, Circuit]

    def measured(
        self, name: str, task: Task, how: Mapping[str, Any], seed: int, progress: Progress | None
    ) -> tuple[Baseline, dict[str, Estimate]]:
        """The model on a task, and the faithfulness of each of its circuits there."""
        used, found, baselines = task.held_out or task, dict[str, Estimate](), list[Baseline]()
        graphs = list(dict.fromkeys(circuit.graph for circuit in self.circuits.values()))
        for number, graph in enumerate(graphs):
            some = {each: circuit.mask for each, circuit in self.circuits.items() if circuit.graph == graph}
            setup = Setup.of(self.model, used, graph, **how)
            report = within(progress, 100 * number, 100, 100 * len(graphs))
            evaluator = Evaluator.build(setup, seed=seed, progress=report)
            nothing = np.zeros_like(graph.allowed)
            evaluator.measure([graph.allowed, nothing, *some.values()])
            full, empty = evaluator.values(graph.allowed), evaluator.values(nothing)
            for each, mask in some.items():
                value, _ = evaluator.normalized(evaluator.values(mask), full, empty)
                found[each] = Estimate(math.nan) if value is None else value
            _, reason = evaluator.normalized(full, full, empty)
            part, of = "examples" if task.held_out is None else "held_out", evaluator.mean
            known = part, evaluator.count, evaluator.metric.name, of(full), of(empty), reason
            baselines.append(Baseline(self.name, name, *known))
        return baselines[0], found


def _groups(pairs: Mapping[str, tuple[Model, Circuit]]) -> list[_Group]:
    """The models, each with its circuits, in the order of their first circuits."""
    of: dict[int, dict[str, tuple[Model, Circuit]]] = {}
    for name, (model, circuit) in pairs.items():
        of.setdefault(id(model), {})[name] = (model, circuit)
    names = [next(iter(each.values()))[0].name for each in of.values()]
    groups = list[_Group]()
    for own, each in zip(names, of.values(), strict=True):
        first, (model, _) = next(iter(each.items()))
        called = own if names.count(own) == 1 else f"{own} ({first})"  # models of one name
        groups.append(_Group(called, model, {name: circuit for name, (_, circuit) in each.items()}))
    return groups


def _drawn(model: Model, task: Any, examples: int | None, seed: int) -> Task:
    if callable(task):
        task = task(model)
    return task_for(model, task, examples=examples, seed=seed)


# ------------------------------------------------------------------ what is given


def _pairs(given: Any) -> dict[str, tuple[Model, Circuit]]:
    """Circuits by name, each with its model."""
    valid = 'circuits must be name -> (model, circuit), such as {"a": (model, circuit)}'
    if not isinstance(given, Mapping) or not given:
        raise CircuitDiscoveryError(f"{valid}, not {shown(given)}")
    check_pairs(given)
    return {str(name): (model, circuit) for name, (model, circuit) in given.items()}


def _columns(given: Any) -> dict[str, Any]:
    """Tasks by name."""
    if isinstance(given, Mapping):
        found = {str(name): task for name, task in given.items()}
    else:
        several = [given] if isinstance(given, str | Path | Task) or callable(given) else list(given)
        names = [_task_name(each) for each in several]
        twice = sorted(name for name in set(names) if names.count(name) > 1)
        if twice:
            raise CircuitDiscoveryError(f"two tasks are named {twice[0]}: give name -> task")
        found = dict(zip(names, several, strict=True))
    if not found:
        raise CircuitDiscoveryError("transfer needs a task at least")
    return found


def _task_name(task: Any) -> str:
    if isinstance(task, str | Path):
        return Path(task).stem
    return getattr(task, "name", None) or getattr(task, "__name__", "task")


# ------------------------------------------------------------------ what is shown


def _index(kind: str, name: str, names: Sequence[str]) -> int:
    if name not in names:
        raise unknown(kind, name, names)
    return names.index(name)


def _cell(value: Estimate, between: str = " ") -> str:
    if math.isnan(value):
        return "undefined"
    middle, low, high = (f"{round(each, 2) + 0.0:.2f}" for each in (float(value), value.low, value.high))
    return f"{middle}{between}[{low}, {high}]" if value.has_interval else middle
