"""`probes`: the same question at many sites, as a table and a picture: is it encoded, is it used?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitdiscovery.arguments import guarded
from circuitdiscovery.engine.metrics import Metric
from circuitdiscovery.engine.setup import Progress
from circuitdiscovery.errors import CircuitDiscoveryError, unknown
from circuitdiscovery.features.collecting import Activations
from circuitdiscovery.features.forward import site_of
from circuitdiscovery.features.labelling import Labels, collected
from circuitdiscovery.features.labelling import labels as labels_of
from circuitdiscovery.features.places import places_of
from circuitdiscovery.features.probe_erasing import Erasure
from circuitdiscovery.features.probe_question import DRAWS, Question
from circuitdiscovery.features.probing import ProbeScores, probe_of, shared_words
from circuitdiscovery.features.prompts import Prompts
from circuitdiscovery.files.disk import data_frame
from circuitdiscovery.files.figures import figure_path, write_figure
from circuitdiscovery.model.model import Model
from circuitdiscovery.task.task import Task
from circuitdiscovery.task.tokens import as_python
from circuitdiscovery.values import Value

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

# a site of each layer -> what it is called there
FAMILIES = {"resid": "resid{}", "a": "a{}", "a.z": "a{}.z", "m": "m{}", "m.neurons": "m{}.neurons"}


@dataclass(frozen=True, repr=False)
class ProbeRow(Value):
    """A probe of a table.

    Args:
        site: whose activations it reads.
        k: how many columns it reads; None: all.
        columns: which these are; None: all.
        scores: on the rows that it was not fitted to.
        erasure: what erasing its directions does; None where no task was to be measured.
    """

    site: str
    k: int | None
    columns: tuple[int, ...] | None
    scores: ProbeScores
    erasure: Erasure | None = None


@dataclass(frozen=True, repr=False)
class Probes(Value):
    """Probes of one label at several sites (see `probes`).

    Args:
        model: its name.
        label: what they tell.
        classes: the labels, sorted.
        rows: a probe each, site by site.
    """

    model: str
    label: str
    classes: tuple[str, ...]
    rows: tuple[ProbeRow, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, site: str) -> ProbeRow:
        """The first probe of a site."""
        for row in self.rows:
            if row.site == site:
                return row
        raise unknown(
            "site", site, dict.fromkeys(row.site for row in self.rows), plural="sites of this table"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row per probe: site, k, chance, control; accuracy, f1, selectivity, effect and random, each
        with its limits (`_low`, `_high`). Needs pandas."""
        table = []
        for row in self.rows:
            own = row.scores
            record = {"site": row.site, "k": row.k, "chance": own.chance}
            for name, value in (
                ("accuracy", own.accuracy),
                ("f1", own.f1),
                ("selectivity", own.selectivity),
                ("effect", row.erasure and row.erasure.effect),
                ("random", row.erasure and row.erasure.random),
            ):
                record[name] = None if value is None else float(value)
                record[f"{name}_low"] = None if value is None else value.low
                record[f"{name}_high"] = None if value is None else value.high
            table.append(record | {"control": own.control})
        return data_frame(table)

    def __str__(self) -> str:
        return "\n".join(line.rstrip() for line in self._lines())

    def _lines(self) -> Iterator[str]:
        first, erasure = self.rows[0].scores, self.rows[0].erasure
        yield (
            f"{self.label} in {self.model}: {len(self.classes)} labels, {first.train} rows for training, "
            f"{first.test} held out, the most frequent label {first.chance:.3g}"
        )
        if first.shared is not None:
            yield f"control: {shared_words(first.shared)}"
        if erasure is not None:
            yield (
                f"erased: {erasure.metric} of {erasure.examples} examples, {float(erasure.plain):.3g} before "
                "it, beside random directions; left: a new probe's accuracy"
            )
        cells = list(self._cells())
        widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
        yield from ("  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)) for row in cells)

    def _cells(self) -> Iterator[list[str]]:
        ks = any(row.k is not None for row in self.rows)
        control = self.rows[0].scores.selectivity is not None
        erased = self.rows[0].erasure is not None
        head = ["site", *(["k"] if ks else []), "accuracy", "f1"]
        yield [
            *head,
            *(["control", "selectivity"] if control else []),
            *(["effect", "random", "left"] if erased else []),
        ]
        for row in self.rows:
            own, erasure = row.scores, row.erasure
            found = [row.site, *(["all" if row.k is None else str(row.k)] if ks else [])]
            found += [str(own.accuracy), f"{float(own.f1):.3g}"]
            found += [f"{own.control:.3g}", str(own.selectivity)] if control else []
            if erasure is not None:
                found += [str(erasure.effect), f"{float(erasure.random):.3g}", f"{erasure.left:.3g}"]
            yield found

    def plot(self, path: str | Path | None = None) -> Figure:
        """Accuracy, control and selectivity by site, and beside them the effect of erasing.

        Args:
            path: also write it there, as .png, .svg or .pdf.
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        where = figure_path(path)
        erased = self.rows[0].erasure is not None
        figure = Figure(figsize=(6.4 * (1 + erased), 3.6), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, 1 + erased, squeeze=False)[0]
        for k in dict.fromkeys(row.k for row in self.rows):
            some = [row for row in self.rows if row.k == k]
            sites, of = [row.site for row in some], "" if k is None else f", k = {k}"
            _line(panels[0], sites, [row.scores.accuracy for row in some], f"accuracy{of}")
            if some[0].scores.selectivity is not None:
                _line(panels[0], sites, [row.scores.selectivity for row in some], f"selectivity{of}")
            if erased:
                both = [row.erasure for row in some if row.erasure is not None]
                _line(panels[1], sites, [each.effect for each in both], f"erased{of}")
                _line(panels[1], sites, [each.random for each in both], f"random directions{of}")
                panels[1].set_ylabel(f"change of {both[0].metric}")
        panels[0].set_title(f"{self.label} in {self.model}")
        for axes in panels:
            axes.tick_params(axis="x", rotation=90)
            axes.grid(alpha=0.25)
            axes.legend(fontsize=8)
        return write_figure(figure, where)


def _line(axes: Any, sites: Sequence[str], values: Sequence[Any], name: str) -> None:
    """One line with its intervals as a band."""
    (drawn,) = axes.plot(sites, [float(each) for each in values], marker="o", markersize=3, label=name)
    ends = [[each.low for each in values], [each.high for each in values]]
    axes.fill_between(sites, *ends, alpha=0.2, color=drawn.get_color(), linewidth=0)


@guarded
def probes(
    model: Model,
    task_or_texts: Any,
    labels: Any = None,
    *,
    at: str | Iterable[str] = "resid",
    position: Any = None,
    k: Any = None,
    control: Any = None,
    groups: Any = None,
    task: Task | None = None,
    metric: str | Metric | Any | None = None,
    draws: int = DRAWS,
    l2: float = 0.01,
    batch_size: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Probes:
    """Probe several sites for one label, with the same held-out rows and control labels at each.

    Args:
        model: a loaded model.
        task_or_texts: a task, texts or rows of token ids; or labels that bring their prompts (`word_labels`,
            `text_labels`, `labels_from_csv`).
        labels: the name of a task's label, as for `labels`; or what `probe` takes.
        at: sites, such as ["resid0", "m2"]; or one of each layer: "resid", "a", "a.z", "m", "m.neurons".
        position: where the probes read, as for `activations`, and where `task` is erased; labels that bring
            their prompts are read where they say.
        k: read so many columns only: a number or several, None among them for all.
        control, groups, draws, l2, seed: as for `probe`.
        task: erase each probe's directions at the same position and measure this task. By default that is
            the answer's where a task is probed, and every token but the first where texts are, or labels that
            bring their prompts.
        metric: of the task; by default its own.
        batch_size: how many prompts are run at once.
        progress: called with (sites done, in all).

    Returns:
        The table.

    Raises:
        CircuitDiscoveryError: as `probe`, `activations` and `Probe.erase`.

    >>> import circuitdiscovery as cd
    >>> model = cd.load_model("toy")
    >>> task = cd.load_task("subject_verb_agreement", model, examples=64)
    >>> table = cd.features.probes(model, task, "number", at=["resid0", "resid3"])
    >>> [float(row.scores.accuracy) > 0.9 for row in table.rows]
    [False, True]
    """
    names = sites_of(model, at)
    k = as_python(k)
    sizes = [as_python(each) for each in k] if isinstance(k, list | tuple | range) else [k]
    if not sizes or not all(each is None or (type(each) is int and each >= 1) for each in sizes):
        raise CircuitDiscoveryError(
            "k must be a whole number of at least 1, None for all, or a list of these"
        )
    if position is None and not isinstance(task_or_texts, Task):
        position = "all"  # of `task` too
    if isinstance(task_or_texts, Labels):
        labels, task_or_texts = task_or_texts, None
    elif isinstance(labels, str):
        if not isinstance(task_or_texts, Task):
            raise CircuitDiscoveryError("a label's name is of a task; for texts give a label per row")
        labels = labels_of(task_or_texts, labels)
    question, found = None, list[ProbeRow]()
    for done, acts in enumerate(_acts(model, task_or_texts, labels, names, position, batch_size), 1):
        question = question or Question.of(acts.places, labels, control, groups, draws, seed)
        for size in sizes:
            own = probe_of(question, acts, size, l2, seed)
            erasure = None
            if task is not None:
                how: dict[str, Any] = {"metric": metric, "batch_size": batch_size, "seed": seed}
                erasure = own.erase(model, task, position=position, **how)
            found.append(ProbeRow(names[done - 1], size, own.columns, own.scores, erasure))
        if progress is not None:
            progress(done, len(names))
    assert question is not None
    return Probes(model.name, question.label, question.classes, tuple(found))


def sites_of(model: Model, at: str | Iterable[str]) -> list[str]:
    """The sites that are meant.

    Raises:
        CircuitDiscoveryError: none; one that the model does not have.
    """
    found: list[str] = []
    for each in [at] if isinstance(at, str) else at:
        pattern = FAMILIES.get(each)
        layers = model.n_layers + (each == "resid")
        found += [each] if pattern is None else [pattern.format(layer) for layer in range(layers)]
    if not found:
        raise CircuitDiscoveryError("at names no site")
    for each in found:
        site_of(model, each)
    return list(dict.fromkeys(found))


def _acts(
    model: Model, given: Any, labels: Any, names: Sequence[str], position: Any, batch_size: int | None
) -> Iterator[Activations]:
    """The activations at each site, of one run of all prompts."""
    if given is None:
        if not labels.prompts:
            raise CircuitDiscoveryError(
                f"the labels {labels.name} have no prompts of their own: give the task"
            )
        prompts = Prompts(labels.prompts)
        places = list(zip(labels.rows, labels.positions, strict=True))
    else:
        found = places_of(model, given, position)
        prompts = Prompts(found.prompts)
        places = list(zip(found.rows.tolist(), found.positions.tolist(), strict=True))
    yield from collected(model, prompts, places, names, batch_size)
