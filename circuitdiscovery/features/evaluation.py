"""`evaluate_sae`: how well a dictionary writes what it is of, and what a model loses where it does."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from circuitdiscovery.arguments import guarded
from circuitdiscovery.engine import memory
from circuitdiscovery.engine.finite import rounding
from circuitdiscovery.engine.metrics import bind, kl_from
from circuitdiscovery.errors import CircuitDiscoveryError, shown
from circuitdiscovery.features import standing
from circuitdiscovery.features.answers import answer_batches, answer_logits, marked
from circuitdiscovery.features.collecting import Activations, as_activations
from circuitdiscovery.features.dictionary import Dictionary
from circuitdiscovery.features.forward import LOGITS, device_of, forward
from circuitdiscovery.features.places import Places, places_of
from circuitdiscovery.features.standing import (
    Edit,
    Edits,
    Stand,
    check_activations,
    mean_of,
    of_dictionary,
    places_of_dictionary,
    runs_of,
)
from circuitdiscovery.files.disk import data_frame
from circuitdiscovery.measure import intervals
from circuitdiscovery.measure.estimates import Estimate, drawn
from circuitdiscovery.measure.normalized import Ends, normalized
from circuitdiscovery.model.model import Model
from circuitdiscovery.task.task import Task
from circuitdiscovery.values import Reported, part_in_words

if TYPE_CHECKING:
    import pandas as pd


FIGURES = {
    "l0": "L0",
    "explained_variance": "explained variance",
    "dead": "dead",
    "shrinkage": "shrinkage",
    "kl_reconstruction": "KL",
    "loss_recovered": "loss recovered",
    "behaviour": "behaviour kept",
}

MEAN = Ends("F(x) - F(m)", "the mean there", "with the mean there")
_ROUNDING = 1e-9  # a correlation that is not above it is rounding


@dataclass(frozen=True, repr=False)
class DictionaryQuality(Reported):
    """How good a dictionary is (see `evaluate_sae`).

    x is what it is of, x' what it writes, E the mean over the activations, m the mean of x.

    Args:
        rows: how many activations.
        explained_variance: 1 - E|x - x'|^2 / E|x - m|^2.
        l0: how many features are active, on average.
        dead: the share of the features that are active nowhere.
        shrinkage: 1 - g, where (x' - m) / g is nearest to x - m on average: g = E|x' - m|^2 / E (x' - m)(x -
            m) (Rajamanoharan et al. 2024a, arXiv 2404.16014, equation 10, there of what is not centred). It
            is above 0 where features are too small, as an L1 penalty makes them (Wright & Sharkey 2024). NaN
            where x' is everywhere the same.
        kl_reconstruction, kl_mean: KL(model || model with x' in place of x), and with m in its place,
            averaged over the activations' positions; None without a model.
        loss_recovered: 1 - kl_reconstruction / kl_mean.
        behaviour: (F(x') - F(m)) / (F(x) - F(m)), where F is the task's metric of the model with that in
            place of x at the positions that the activations are of: what is kept of the behaviour where the
            error is ablated; None without a task, and where F(x) - F(m) is rounding, its interval has
            0, or the model is worse than with m.
        behaviour_of: at which position of which examples the behaviour was measured; where nothing of it can
            be kept, why.
        baselines: the same of what else could be written with round(l0) numbers per activation: the largest
            coordinates along principal directions ("pca") or random ones ("random"), or the strongest
            neurons ("neurons"; of an MLP, with a model). Principal directions are those of these very
            activations, which flatters them. A transcoder has no "pca" and "random", which would read what
            it should write; nor has a site that is more than 4,096 wide.
    """

    rows: int
    explained_variance: float
    l0: float
    dead: float
    shrinkage: float
    kl_reconstruction: Estimate | None = None
    kl_mean: Estimate | None = None
    loss_recovered: float | None = None
    behaviour: Estimate | None = None
    behaviour_of: str | None = None
    baselines: Mapping[str, DictionaryQuality] = field(default_factory=dict)

    def to_dataframe(self) -> pd.DataFrame:
        """A row for the dictionary and one for each baseline.

        Raises:
            CircuitDiscoveryError: pandas is not installed.
        """
        every = {"dictionary": self, **self.baselines}
        return data_frame([{"of": name, **each.figures} for name, each in every.items()])

    @property
    def figures(self) -> dict[str, float | None]:
        """Its own figures by name, without intervals and baselines."""
        own = {name: getattr(self, name) for name in FIGURES}
        return {name: None if each is None else float(each) for name, each in own.items()}

    def _lines(self) -> Iterator[tuple[str, str]]:
        yield "activations", f"{self.rows:,}"
        every = {"dictionary": self, **self.baselines}
        for name, each in every.items():
            yield name, each.in_words
        if self.behaviour_of is not None:
            yield "behaviour", self.behaviour_of

    @property
    def in_words(self) -> str:
        """Its own figures on one line."""
        return ", ".join(
            f"{label} {round(float(getattr(self, key)), 6) + 0.0:.3g}"
            for key, label in FIGURES.items()
            if getattr(self, key) is not None
        )


@dataclass(frozen=True)
class Examples:
    """The examples by which a behaviour is measured.

    Args:
        task: of these examples.
        part: "held_out" or "examples".
    """

    task: Task
    part: str

    @classmethod
    def of(cls, task: Task, seen: Collection[tuple[int, ...]] = ()) -> Examples:
        """A task's held-out examples where there are some, without prompts that were trained on.

        Raises:
            CircuitDiscoveryError: there are no others.
        """
        some, part = (task, "examples") if task.held_out is None else (task.held_out, "held_out")
        rows = [row for row, example in enumerate(some.examples) if example.clean not in seen]
        if not rows:
            raise CircuitDiscoveryError(
                f"all prompts of task {task.title} were trained on: give a task with held-out examples"
            )
        return cls(some if len(rows) == len(some) else some.select(rows), part)


@guarded
def evaluate_sae(
    sae: Any,
    acts: Any,
    *,
    target: Any = None,
    model: Model | None = None,
    task: Task | None = None,
    baselines: bool = True,
    batch_size: int | None = None,
    seed: int = 0,
) -> DictionaryQuality:
    """Measure a dictionary on activations, and what a model and a behaviour lose by it.

    Take other texts than it was trained on.

    Args:
        sae: a dictionary, as `train_sae` and `load_sae` give.
        acts: what it reads: what `activations` gives, or a matrix [rows, d].
        target: what it writes, row for row: of a transcoder.
        model: to measure loss recovered on the prompts that the activations are of.
        task: with a model, to measure what is kept of the behaviour, on its held-out examples where it has
            some, at the positions that acts are of.
        baselines: whether to measure the same of PCA, neurons and random directions.
        batch_size: how many prompts are run at once.
        seed: of the bootstrap for the intervals, and of the random directions.

    Returns:
        The figures.

    Raises:
        CircuitDiscoveryError: another width or site; a target of other rows, or for an autoencoder; none for
            a transcoder; a model without the activations' prompts; a task without a model, or without the
            activations' position.

    >>> import circuitdiscovery as cd, torch
    >>> acts = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    >>> sae = cd.features.train_sae(acts, n=16, k=4, steps=50)
    >>> cd.features.evaluate_sae(sae, acts).l0 <= 4
    True
    """
    if not isinstance(sae, Dictionary):
        raise CircuitDiscoveryError(
            f"sae must be what features.train_sae or features.load_sae gives, not {shown(sae)}"
        )
    read = as_activations(acts, "acts")
    if sae.transcoder and target is None:
        raise CircuitDiscoveryError("a transcoder is measured on what it writes, too: give target=")
    written = read if target is None else as_activations(target, "target")
    if not sae.transcoder and target is not None:
        raise CircuitDiscoveryError("target= is of a transcoder: an autoencoder writes what it reads")
    if task is not None and model is None:
        raise CircuitDiscoveryError("task= needs model=, which is run on its prompts")
    place = None if model is None or sae.site is None else places_of_dictionary(sae, model)[1]
    check_activations(sae, read, written, model)
    stands = {"dictionary": of_dictionary(sae, read, written)}
    examples = None if task is None else Examples.of(task)
    figures: dict[str, Any] = {"model": model, "examples": examples, "batch_size": batch_size, "seed": seed}
    figures |= {"site": sae.site, "place": place}
    found = qualities(stands, written, **figures)["dictionary"]
    if not baselines:
        return found
    k = max(1, round(found.l0))
    beside = standing.baselines(sae, written, written, k, model, seed)
    return replace(found, baselines=qualities(beside, written, **figures))


def qualities(
    stands: Mapping[str, Stand],
    written: Activations,
    *,
    site: str | None,
    place: str | None,
    model: Model | None,
    examples: Examples | None,
    batch_size: int | None,
    seed: int,
) -> dict[str, DictionaryQuality]:
    """The figures of several things that stand in the place of the same activations, each for itself.

    Args:
        stands: by name.
        written: the activations.
        site: where they are, for errors; place: the same as the forward calls it.
        model, batch_size, seed: as of `evaluate_sae`.
        examples: by what a behaviour is measured.
    """
    mean = mean_of(written)
    figures = {name: _figures(stand, mean) for name, stand in stands.items()}
    more: dict[str, dict[str, Any]] = {name: {} for name in stands}
    if model is not None:
        if site is None or place is None:
            raise CircuitDiscoveryError("the dictionary does not say where it stands: no model can be run")
        if not written.prompts:
            raise CircuitDiscoveryError(
                "acts are a matrix, without prompts to run: collect them by features.activations"
            )
        if written.model != model.digest:
            raise CircuitDiscoveryError(f"acts are of another model than {model.name}")
        value = mean.to(device_of(model, place), model.dtype)

        def averaged(_: Model, kept: Tensor) -> Mapping[str, Edit]:
            return {place: lambda x: torch.where(kept[..., None].to(x.device), x, value)}

        edits = {name: stand.edits for name, stand in stands.items()}
        for name, found in _loss(edits, averaged, written, model, batch_size, seed).items():
            more[name] |= found
        if examples is not None:
            where, places = _where(written, model, examples)
            values, why = _behaviour(edits, averaged, model, examples.task, places, batch_size, seed)
            for name in stands:
                more[name] |= {"behaviour": values.get(name), "behaviour_of": where + why}
    return {name: DictionaryQuality(len(written), **figures[name], **more[name]) for name in stands}


def _figures(stand: Stand, mean: Tensor) -> dict[str, float]:
    """What needs no model."""
    error = around = own = both = active = 0.0
    ever, rows = torch.zeros(stand.units, dtype=torch.bool), 0
    for which, made, y in stand.rows():
        made = made.double()
        error += float((y - made).square().sum())
        around += float((y - mean).square().sum())
        own += float((made - mean).square().sum())
        both += float(((made - mean) * (y - mean)).sum())
        active += float(which.sum())
        ever |= which.any(0)
        rows += len(y)
    return {
        "explained_variance": 1 - error / around if around else math.nan,
        "l0": active / rows,
        "dead": 1 - float(ever.float().mean()),
        "shrinkage": 1 - own / both if abs(both) > _ROUNDING * math.sqrt(own * around) else math.nan,
    }


# ------------------------------------------------------------------- in a model


@torch.no_grad()
def _loss(
    edits: Mapping[str, Edits],
    averaged: Edits,
    acts: Activations,
    model: Model,
    batch_size: int | None,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """KL at the activations' positions, with what each writes and with the mean there."""
    every = [*edits.values(), averaged]
    sums, counts = np.zeros((len(every), len(acts.prompts))), np.zeros(len(acts.prompts))
    most = memory.logits_at_once(model)
    for rows, tokens, kept in runs_of(model, acts, batch_size, most):
        counts[rows] = (~kept).sum(-1).cpu().numpy()
        plain = forward(model, tokens, (LOGITS,))[LOGITS]
        for figure, made in enumerate(every):
            divergence = kl_from(plain, forward(model, tokens, (LOGITS,), made(model, kept))[LOGITS])
            sums[figure, rows] = torch.where(kept, 0.0, divergence).sum(-1).double().cpu().numpy()
    some = counts > 0
    draws = drawn(int(some.sum()), seed)
    *each, mean = [intervals.clipped(intervals.ratio(row[some], counts[some], draws), 0.0) for row in sums]
    return {
        name: {
            "kl_reconstruction": found,
            "kl_mean": mean,
            "loss_recovered": 1 - float(found) / float(mean) if mean else None,
        }
        for name, found in zip(edits, each, strict=True)
    }


def _where(acts: Activations, model: Model, examples: Examples) -> tuple[str, Places]:
    """(in words, the places of a task's examples) at the position that activations are of."""
    if acts.position is None:
        raise CircuitDiscoveryError(
            "acts do not say of which position they are, where task= would be measured: collect them by "
            "features.activations"
        )
    first = bool((acts.positions == 0).any())
    every = "every token" if first else "every token but the first"
    at = every if acts.position == "all" else f"position {acts.position}"
    where = f"{at} of {len(examples.task)} {part_in_words(examples.part)}"
    return where, places_of(model, examples.task, acts.position, first)


@torch.no_grad()
def _behaviour(
    edits: Mapping[str, Edits],
    averaged: Edits,
    model: Model,
    task: Task,
    places: Places,
    batch_size: int | None,
    seed: int,
) -> tuple[dict[str, Estimate], str]:
    """(what is kept of what the mean takes away from a task's metric, ""), or ({}, why nothing is)."""
    metric = bind(task.metric, model, task)
    every: list[Edits] = [lambda _, kept: {}, *edits.values(), averaged]
    values, noise = np.zeros((len(every), len(task))), 0.0
    edited = marked(places.rows, places.positions, (len(task), max(map(len, places.prompts))))
    for batch in answer_batches(model, task, batch_size):
        kept = ~edited[batch.rows.cpu(), : batch.clean.shape[1]].to(model.device)
        for figure, made in enumerate(every):
            answers = answer_logits(model, batch, made(model, kept))
            noise += 0.0 if figure else float(rounding(answers, model.dtype, metric.name).sum())
            values[figure, batch.rows.cpu().numpy()] = metric(answers, batch).double().cpu().numpy()
    full, *each, mean = values
    draws = drawn(len(task), seed)
    found = [
        normalized(made, full, mean, draws, metric=metric, least=noise / len(task), ends=MEAN)
        for made in each
    ]
    kept = {name: value for name, (value, _) in zip(edits, found, strict=True) if value is not None}
    return kept, "" if found[0][1] is None else f": {found[0][1]}"
