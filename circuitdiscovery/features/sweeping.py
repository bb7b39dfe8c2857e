"""`sweep`: dictionaries of several kinds and sparsities on one axis, beside PCA, neurons and random ones."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from circuitdiscovery.arguments import guarded
from circuitdiscovery.arguments.plain import several
from circuitdiscovery.engine.metrics import bind
from circuitdiscovery.engine.setup import Progress
from circuitdiscovery.errors import CircuitDiscoveryError, shown, unknown
from circuitdiscovery.features.collecting import Activations, as_activations
from circuitdiscovery.features.dictionary import Dictionary
from circuitdiscovery.features.evaluation import DictionaryQuality, Examples, qualities
from circuitdiscovery.features.load import load_sae
from circuitdiscovery.features.standing import Stand, baselines, of_dictionary, places_of_dictionary
from circuitdiscovery.features.training import STEPS, train_sae
from circuitdiscovery.features.whole import KINDS
from circuitdiscovery.files.disk import data_frame, read_json, write_json
from circuitdiscovery.files.figures import figure_path, write_figure
from circuitdiscovery.model.model import Model
from circuitdiscovery.task.task import Task
from circuitdiscovery.task.tokens import as_python
from circuitdiscovery.values import Reported

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

# by default: k of topk, weights of the others
SPARSITIES: Mapping[str, Sequence[float]] = {
    "topk": (4, 8, 16, 32),
    "relu": (0.25, 0.5, 1.0, 2.0),
    "jumprelu": (0.1, 0.25, 0.5, 1.0),
    "gated": (0.5, 1.0, 2.0, 4.0),
}
_MARKS = {"topk": "o", "relu": "s", "jumprelu": "^", "gated": "D", "pca": "x", "neurons": "+", "random": "."}


@dataclass(frozen=True, repr=False)
class SweepRow(Reported):
    """One dictionary of a sweep, or one baseline.

    Args:
        kind: of the dictionary; or "pca", "neurons", "random".
        sparsity: k of topk and of baselines; else the weight of the penalty.
        quality: its figures.
    """

    kind: str
    sparsity: float
    quality: DictionaryQuality

    @property
    def name(self) -> str:
        """What it is called in a sweep's folder."""
        return _cell(self.kind, self.sparsity)

    def _lines(self) -> Iterator[tuple[str, str]]:
        yield self.name, str(self.quality)


@dataclass(frozen=True, repr=False)
class Sweep(Reported):
    """Dictionaries of one place, by kind and sparsity (see `sweep`).

    Args:
        site: the place.
        held_out: whether the figures are of activations that nothing was trained or fitted on.
        rows: the dictionaries, then the baselines.
    """

    site: str | None
    held_out: bool
    rows: tuple[SweepRow, ...]

    def to_dataframe(self) -> pd.DataFrame:
        """A row each: kind, sparsity and the figures.

        Raises:
            CircuitDiscoveryError: pandas is not installed.
        """
        return data_frame(
            [{"kind": row.kind, "sparsity": row.sparsity, **row.quality.figures} for row in self.rows]
        )

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw explained variance, and with a model the loss recovered, over L0.

        Args:
            path: a .png, .svg or .pdf file to write; by default none.

        Returns:
            matplotlib's figure.
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        where = figure_path(path)
        shown = {"explained_variance": "explained variance"}
        if any(row.quality.loss_recovered is not None for row in self.rows):
            shown["loss_recovered"] = "loss recovered"
        if any(row.quality.behaviour is not None for row in self.rows):
            shown["behaviour"] = "behaviour kept"
        figure = Figure(figsize=(4.2 * len(shown) + 1.4, 3.6), layout="constrained")
        FigureCanvasAgg(figure)
        for axes, (name, label) in zip(
            figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True
        ):
            for kind in dict.fromkeys(row.kind for row in self.rows):
                points = sorted(
                    (row.quality.l0, float(value))
                    for row in self.rows
                    if row.kind == kind and (value := getattr(row.quality, name)) is not None
                )
                own = kind in KINDS
                axes.plot(
                    *zip(*points, strict=True),
                    marker=_MARKS[kind],
                    linestyle="-" if own else ":",
                    color=None if own else "0.45",
                    label=kind,
                )
            axes.set_xscale("log", base=2)  # sparsities are doubled, as a rule
            axes.xaxis.set_major_formatter("{x:g}")
            axes.set(xlabel="L0", ylabel=label)
            axes.grid(alpha=0.25)
        figure.legend(*figure.axes[0].get_legend_handles_labels(), fontsize=8, loc="outside right upper")
        return write_figure(figure, where)

    def _lines(self) -> Iterator[tuple[str, str]]:
        where = "held-out activations" if self.held_out else "the activations that they were trained on"
        yield "site", f"{self.site or 'not told'}, measured on {where}"
        for row in self.rows:
            yield row.name, row.quality.in_words
        for of in dict.fromkeys(row.quality.behaviour_of for row in self.rows):
            if of is not None:
                yield "behaviour", of


@guarded
def sweep(
    acts: Any,
    *,
    kinds: Sequence[str] = KINDS,
    sparsities: Mapping[str, float | Sequence[float]] | None = None,
    n: int = 512,
    steps: int | None = None,
    lr: float | None = None,
    target: Any = None,
    end_to_end: Model | None = None,
    model: Model | None = None,
    task: Task | None = None,
    held_out: float = 0.2,
    seed: int = 0,
    to: str | Path | None = None,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Sweep:
    """Train dictionaries of several kinds and sparsities, and measure them and baselines on other prompts.

    Args:
        acts: what `activations` gives, or a matrix [rows, d].
        kinds: some of "topk", "relu", "jumprelu" and "gated".
        sparsities: kind -> the k's of topk, or the weights of the others, one or several; a kind that is not
            there has four by default, of topk those that are at most n.
        n, steps, lr, target, end_to_end, seed: as of `train_sae`.
        model, task, batch_size: as of `evaluate_sae`.
        held_out: a share of the prompts (of a matrix: of the rows), drawn by the seed, on which nothing is
            trained: the figures are of them, but for tokens up to which a prompt that was trained on is the
            same, and of the task's prompts that were not trained on; with 0 they are of what was trained on.
        to: a folder in which every dictionary is kept with its figures: the same call goes on where it was
            stopped, within a training too. Of a task's metric that is a function only the name is known.
        progress: called with (steps done, steps in all).

    Returns:
        The table: `.rows`, `.to_dataframe()`, `.plot()`. PCA, neurons and random directions (see
        `DictionaryQuality`) have the k's of topk; PCA's directions and the means are of the training's
        activations.

    Raises:
        CircuitDiscoveryError: what `train_sae` and `evaluate_sae` refuse; an unknown kind; a sparsity that
            cannot be; a folder with another sweep.

    >>> import circuitdiscovery as cd, torch
    >>> acts = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
    >>> found = cd.features.sweep(acts, kinds=["topk"], sparsities={"topk": [2, 4]}, n=16, steps=20)
    >>> [row.name for row in found.rows]
    ['topk-2', 'topk-4', 'pca-2', 'random-2', 'pca-4', 'random-4']
    """
    cells, ks = _cells(kinds, {} if sparsities is None else sparsities, n)
    if task is not None and model is None:
        raise CircuitDiscoveryError("task= needs model=, which is run on its prompts")
    if not 0 <= held_out < 1:
        raise CircuitDiscoveryError(f"held_out must be a share from 0 to below 1, not {held_out:g}")
    read = as_activations(acts, "acts")
    written = None if target is None else as_activations(target, "target")
    trained, measured = _parts(read, held_out, seed)
    goals = (trained, measured) if written is None else _parts(written, held_out, seed)
    steps = STEPS if steps is None else steps
    examples = None if task is None else Examples.of(task, _prompts(trained) if held_out else ())
    work = {
        "format": "circuitdiscovery sweep 2",
        "acts": read.digest if to is not None else None,
        "target": written.digest if to is not None and written is not None else None,
        "options": {"n": n, "steps": steps, "lr": lr, "held_out": held_out, "seed": seed},
        "end_to_end": None if end_to_end is None else end_to_end.digest,
        "model": None if model is None else model.digest,
        "task": None if examples is None else examples.task.digest,
        "metric": None if task is None or model is None else bind(task.metric, model, task, plain=False).name,
    }
    folder = None if to is None else _folder(Path(to), work)
    how: dict[str, Any] = {"model": model, "examples": examples, "batch_size": batch_size, "seed": seed}
    rows, last = list[SweepRow](), None
    for number, (kind, sparsity) in enumerate(cells):

        def report(done: int, _: int, before: int = number * steps) -> None:
            if progress is not None:
                progress(before + done, len(cells) * steps)

        own: dict[str, Any] = {"k": int(sparsity)} if kind == "topk" else {"sparsity": sparsity}
        own |= {"kind": kind, "n": n, "steps": steps, "lr": lr, "end_to_end": end_to_end, "seed": seed}
        own["target"] = None if written is None else goals[0]
        cell = None if folder is None else folder / _cell(kind, sparsity)
        last = _dictionary(trained, cell, own, report)
        stand = {kind: of_dictionary(last, measured, goals[1])}
        rows.append(SweepRow(kind, sparsity, _measured(cell, stand, last, goals[1], how)[kind]))
        report(steps, steps)
    assert last is not None
    for k in ks:
        cell = None if folder is None else folder / f"baselines-{k}"
        beside = baselines(last, goals[0], goals[1], k, model, seed)
        found = _measured(cell, beside, last, goals[1], how)
        rows += [SweepRow(name, k, each) for name, each in found.items()]
    return Sweep(last.site, held_out > 0, tuple(rows))


def _cell(kind: str, sparsity: float) -> str:
    """What a cell is called: with all digits of its sparsity, so that no two share a folder."""
    return f"{kind}-{repr(sparsity).removesuffix('.0')}"


def _cells(kinds: Sequence[str], given: Any, n: int) -> tuple[list[tuple[str, float]], list[int]]:
    """((kind, sparsity) of each dictionary, the k's of the baselines), of each kind rising; by default of
    topk those that n features can have."""
    if not isinstance(given, Mapping):
        raise CircuitDiscoveryError(f"sparsities must be a mapping from kinds to numbers, not {shown(given)}")
    axis: dict[str, Any] = {**SPARSITIES, "topk": [k for k in SPARSITIES["topk"] if k <= n], **given}
    for kind in (*axis, *kinds):
        if kind not in KINDS:
            raise unknown("kind", kind, KINDS)
    for kind, values in axis.items():
        values = as_python(values)
        own: list[Any] = [as_python(each) for each in (values if several(values) else [values])]
        valid = "numbers above 0" if kind != "topk" else "whole numbers of at least 1"
        for value in own:
            if type(value) not in (int, float) or not 0 < value < math.inf or (kind == "topk" and value % 1):
                raise CircuitDiscoveryError(f"the sparsities of {kind} are {valid}, not {shown(value)}")
        axis[kind] = sorted(set(own))
    found = [(kind, value) for kind in dict.fromkeys(kinds) for value in axis[kind]]
    if not found:
        raise CircuitDiscoveryError(
            f"a sweep needs one kind and one sparsity at least, of topk at most n = {n}"
        )
    ks = [int(k) for k in axis["topk"]]
    if "topk" in kinds and max(ks, default=0) > n:
        raise CircuitDiscoveryError(f"k is {max(ks):g}, but there are only {n} features")
    return found, ks


def _parts(acts: Activations, held_out: float, seed: int) -> tuple[Activations, Activations]:
    """(to train on, to measure on): by prompts where there are some, which are drawn; of those to measure on
    without rows that are of the same tokens as one to train on."""
    if not held_out:
        return acts, acts
    groups = acts.rows if acts.prompts else torch.arange(len(acts))
    numbers = groups.unique()
    order = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(seed))
    count = min(len(numbers) - 1, max(1, round(held_out * len(numbers))))
    if count < 1:
        raise CircuitDiscoveryError("one prompt cannot be held out of one; held_out=0 measures on all")
    out = torch.isin(groups, numbers[order[:count]])
    train, rest = (~out).nonzero()[:, 0], out.nonzero()[:, 0]
    if acts.prompts:
        prefixes = torch.from_numpy(acts.places.prefixes)
        rest = rest[~torch.isin(prefixes[rest], prefixes[train])]
        if not len(rest):
            raise CircuitDiscoveryError(
                "every prompt that is held out is trained on, too, or begins as one that is: give other "
                "prompts; held_out=0 measures on all"
            )
    return _Some.of(acts, train), _Some.of(acts, rest)


def _prompts(acts: Activations) -> set[tuple[int, ...]]:
    """Those that some rows are of."""
    return {acts.prompts[number] for number in acts.rows.unique().tolist()} if acts.prompts else set()


@dataclass(frozen=True, eq=False, repr=False)
class _Some(Activations):
    """Some rows of activations, which stay where they are: in memory or in files.

    Args:
        which: [n], the rows, rising.
    """

    which: Tensor = field(kw_only=True)

    @classmethod
    def of(cls, acts: Activations, which: Tensor) -> _Some:
        rows, positions = acts.rows[which], acts.positions[which]
        own = {"parts": acts.parts, "model": acts.model, "position": acts.position}
        return cls(acts.site, acts.prompts, rows, positions, **own, which=which)

    def __len__(self) -> int:
        return len(self.which)

    @property
    def values(self) -> Tensor:
        """[n, d]."""
        return super().take(self.which)

    def take(self, which: Tensor) -> Tensor:
        """[m, d]: the values of some of them."""
        return super().take(self.which[which])

    def _between(self, start: int, stop: int) -> Tensor:
        return super().take(self.which[start:stop])


def _folder(folder: Path, work: Mapping[str, Any]) -> Path:
    path = folder / "sweep.json"
    if path.exists():
        known = read_json(path)
        differing = [name for name in work if not isinstance(known, dict) or known.get(name) != work[name]]
        if differing:
            raise CircuitDiscoveryError(
                f"{folder} has another sweep ({', '.join(differing)} differ); give another folder"
            )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, dict(work))
    return folder


def _dictionary(
    acts: Activations, cell: Path | None, how: Mapping[str, Any], progress: Progress
) -> Dictionary:
    """Trained, or read where it was before."""
    if cell is None:
        return train_sae(acts, **how, progress=progress)
    if (cell / "cfg.json").exists():
        return load_sae(cell)
    cell.mkdir(parents=True, exist_ok=True)
    state = cell / "training.state"
    found = train_sae(acts, **how, state=state, progress=progress)
    found.save(cell)
    state.unlink(missing_ok=True)
    return found


def _measured(
    cell: Path | None,
    stands: Mapping[str, Stand],
    sae: Dictionary,
    written: Activations,
    how: Mapping[str, Any],
) -> dict[str, DictionaryQuality]:
    """The figures of things that stand at the same place; read where they were measured before."""
    paths = {name: None if cell is None else cell / f"{name}.json" for name in stands}
    if paths and all(path is not None and path.exists() for path in paths.values()):
        return {name: DictionaryQuality.load(path) for name, path in paths.items() if path is not None}
    model = how["model"]
    place = None if model is None or sae.site is None else places_of_dictionary(sae, model)[1]
    with torch.no_grad():
        found = qualities(stands, written, site=sae.site, place=place, **how)
    for name, path in paths.items():
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            found[name].save(path)
    return found
