"""`neurons` and `heads`: which units of a model other models have too.

Gurnee et al. 2024, arXiv 2401.12181: a unit's excess correlation is the mean over the other models of the
highest Pearson correlation with any unit of that model, less the highest with any unit of a random rotation
of each layer's units. The rotations here are orthogonal; the units of a layer of more than 2,048 are rotated
in equal parts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from circuitdiscovery.arguments import guarded
from circuitdiscovery.engine.memory import budget
from circuitdiscovery.engine.setup import Progress, within
from circuitdiscovery.errors import CircuitDiscoveryError, shown
from circuitdiscovery.files.disk import data_frame
from circuitdiscovery.files.figures import figure_path, write_figure
from circuitdiscovery.model.model import Model
from circuitdiscovery.task.task import Task
from circuitdiscovery.universality.aligning import shared
from circuitdiscovery.universality.correlating import Best, best, groups_of
from circuitdiscovery.universality.kinds import Heads, Neurons, Reading, Units
from circuitdiscovery.values import Value

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

UNIVERSAL = 0.5  # the excess from which a unit counts as universal (Gurnee et al. 2024)
_SHOWN = 5  # units that are printed


@dataclass(frozen=True, eq=False, repr=False)
class Universality(Value):
    """Which units of a model others have too (see `neurons`, `heads` and `features`).

    Args:
        model: its name; of features of a dictionary "m1 of NAME", with the site.
        others: the other models' names, or dictionaries'.
        kind: "neurons", "heads" or "features".
        tokens: how many tokens of the model were compared with each other one.
        names: [units].
        correlation: [others, units], the highest with any unit of that model.
        partners: [others, units], the name of that unit; "" where the unit is dead, or all of those are.
        baseline: [others, units], the highest with any unit of a random rotation of each layer's, where these
            are more than 2,048 of each equal part.
        dead: the units that are constant on the texts; their correlations are 0.
    """

    model: str
    others: tuple[str, ...]
    kind: str
    tokens: tuple[int, ...]
    names: tuple[str, ...]
    correlation: np.ndarray
    partners: np.ndarray
    baseline: np.ndarray
    dead: tuple[str, ...]

    @property
    def excess(self) -> np.ndarray:
        """[units]: the mean over the other models of correlation - baseline."""
        return (self.correlation - self.baseline).mean(0)

    def share(self, above: float = UNIVERSAL) -> float:
        """The share of the units whose excess is above a number; dead ones count as not."""
        return float((self.excess > above).mean())

    def best(self, count: int = 10) -> tuple[str, ...]:
        """The units with the highest excess, the highest first."""
        order = np.argsort(-self.excess, kind="stable")
        return tuple(self.names[i] for i in order[:count])

    def to_dataframe(self) -> pd.DataFrame:
        """One row per unit: unit, excess, dead, and of each other model correlation, partner, baseline. Needs
        pandas."""
        dead = set(self.dead)
        columns: dict[str, Any] = {
            "unit": self.names,
            "excess": self.excess,
            "dead": [name in dead for name in self.names],
        }
        for i, other in enumerate(self.others):
            columns |= {
                f"correlation with {other}": self.correlation[i],
                f"partner in {other}": self.partners[i],
                f"baseline of {other}": self.baseline[i],
            }
        return data_frame(columns)

    @guarded
    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw the excess of every unit by layer, and how the correlations and the baseline lie.

        Args:
            path: a .png, .svg or .pdf file to write; by default none.

        Returns:
            Matplotlib's figure.
        """
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

        where = figure_path(path)
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        layers = [int(re.findall(r"\d+", name)[0]) for name in self.names]
        shift = np.random.default_rng(0).uniform(-0.35, 0.35, len(layers))
        # a few heads are seen as well as thousands of neurons
        size = float(np.clip(3000 / len(layers), 3, 30))
        left.scatter(np.array(layers) + shift, self.excess, s=size, alpha=0.6, linewidths=0)
        left.xaxis.set_major_locator(MaxNLocator(integer=True))
        left.axhline(UNIVERSAL, color="gray", linewidth=0.8, linestyle="--")
        left.set(xlabel="layer", ylabel="excess correlation")
        bins = np.linspace(min(0.0, float(self.baseline.min())), 1, 41).tolist()
        for name, values in (("best partner", self.correlation), ("rotated", self.baseline)):
            right.hist(values.mean(0), bins=bins, histtype="step", label=name)
        right.set(xlabel="correlation, mean over models", ylabel=self.kind)
        right.legend(frameon=False)
        return write_figure(figure, where)

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        tokens = f"{min(self.tokens):,}" if len(set(self.tokens)) == 1 else f"at least {min(self.tokens):,}"
        beside = ", ".join(self.others)
        yield f"{len(self.names):,} {self.kind} of {self.model} beside {beside}, {tokens} tokens"
        yield f"{'universal':<13} {self.share():.1%} have an excess correlation above {UNIVERSAL}"
        medians = [float(np.median(each)) for each in (self.correlation, self.baseline, self.excess)]
        yield "{:<13} correlation {:.2g}, baseline {:.2g}, excess {:.2g}".format("medians", *medians)
        if self.dead:
            yield f"{'dead':<13} {len(self.dead):,} constant ones, such as {', '.join(self.dead[:_SHOWN])}"
        for name in self.best(_SHOWN):
            i = self.names.index(name)
            each = (
                f"{partner} of {other} {value:.2g}" if partner else f"no partner in {other}"
                for partner, other, value in zip(
                    self.partners[:, i], self.others, self.correlation[:, i], strict=True
                )
            )
            yield f"{name:<13} excess {self.excess[i]:.2g}: {', '.join(each)}"


@guarded
def neurons(
    model: Model,
    others: Any,
    texts: Any,
    *,
    seed: int = 0,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Universality:
    """Which neurons of a model correlate with some neuron of other models, over the same text.

    Args:
        model: a loaded model.
        others: another one, or several.
        texts: texts, or where all models have the same tokens rows of token ids or a task. The first token of
            each is left out. Models of other tokens are compared by characters.
        seed: of the rotations.
        batch_size: texts in one forward; by default about eight thousand tokens.
        progress: called with (texts run, texts in all), through every model and pass.

    Returns:
        Of each neuron the best partner in every other model, and its excess correlation.

    Raises:
        CircuitDiscoveryError: a model without neurons (a mixture of experts), an unknown token, no text.

    >>> import circuitdiscovery as cd
    >>> model = cd.load_model("toy")
    >>> texts = ["The keys on the table are small.", "There is a dog by the door."]
    >>> found = cd.universality.neurons(model, model, texts)
    >>> found.names[:2], round(float(found.correlation[0, :2].min()), 3)
    (('m0/n0', 'm0/n1'), 1.0)
    """
    return _universality(model, others, texts, Neurons, seed, batch_size, progress)


@guarded
def heads(
    model: Model,
    others: Any,
    texts: Any,
    *,
    seed: int = 0,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Universality:
    """Which attention heads of a model look where some head of other models looks, over the same text.

    A head's values are its attention from every token to every token before it or itself, first tokens left
    out. The baseline mixes the patterns of each layer's heads by a random rotation.

    Args:
        model, others, seed, batch_size, progress: as for `neurons`.
        texts: texts, rows of token ids or a task, of which all models make the same tokens.

    Returns:
        Of each head the best partner in every other model, and its excess correlation.

    Raises:
        CircuitDiscoveryError: models of other tokens, an unknown token, no text.

    >>> import circuitdiscovery as cd
    >>> model = cd.load_model("toy")
    >>> found = cd.universality.heads(model, model, ["There is a dog by the door."])
    >>> found.partners[0, :2].tolist()
    ['a0.h0', 'a0.h1']
    """
    return _universality(model, others, texts, Heads, seed, batch_size, progress)


def _universality(
    model: Model,
    others: Any,
    texts: Any,
    kind: type[Neurons | Heads],
    seed: int,
    batch_size: int | None,
    progress: Progress | None,
) -> Universality:
    several = list(others) if isinstance(others, list | tuple) else [others]
    if not several or not all(isinstance(each, Model) for each in several):
        raise CircuitDiscoveryError(f"others must be a loaded model, or several, not {shown(others)}")
    names = distinct([each.name for each in several])
    return universality(
        kind(model), [kind(each) for each in several], texts, (model.name, *names), seed, batch_size, progress
    )


def universality(
    units: Units,
    others: Sequence[Units],
    texts: Any,
    names: Sequence[str],
    seed: int,
    batch_size: int | None,
    progress: Progress | None,
) -> Universality:
    """Which units others have too, over texts.

    Args:
        units: of one model.
        others: of each other one.
        texts, seed, batch_size, progress: as for `neurons`.
        names: what the one and the others are called.
    """
    if not isinstance(texts, str | Task):
        texts = list(texts)  # of an iterator, too
    found, tokens = list[Best](), list[int]()
    for number, theirs in enumerate(others):
        both = shared(units.model, theirs.model, texts)
        report = within(progress, 100 * number, 100, 100 * len(others))
        reading = Reading(units, theirs, both, batch_size, budget(units.model.device), report)
        groups = groups_of(theirs.sizes)
        found.append(best(sum(units.sizes), groups, reading.values, reading.room, reading.rows, seed))
        tokens.append(sum(len(each.tokens) - 1 for each in both))
    return gathered(units.kind, names, units.names, [each.names for each in others], found, tokens)


def gathered(
    kind: str,
    models: Sequence[str],
    names: tuple[str, ...],
    theirs: Sequence[Sequence[str]],
    found: Sequence[Best],
    tokens: Sequence[int],
) -> Universality:
    """What was found beside each of several others.

    Args:
        kind: of the units.
        models: what the one and the others are called.
        names: of the units, and `theirs`: of those of each other one.
        found, tokens: of each other one.
    """
    dead = np.logical_or.reduce([each.dead for each in found])
    partners = [np.array([*some, ""])[each.partner] for some, each in zip(theirs, found, strict=True)]
    return Universality(
        models[0],
        tuple(models[1:]),
        kind,
        tuple(tokens),
        names,
        np.stack([each.correlation for each in found]),
        np.array([each.tolist() for each in partners]),
        np.stack([each.baseline for each in found]),
        tuple(name for name, gone in zip(names, dead, strict=True) if gone),
    )


def distinct(names: Sequence[str]) -> list[str]:
    """The same with a number behind each that another one has, too.

    >>> distinct(["toy", "other", "toy"])
    ['toy 1', 'other', 'toy 2']
    """
    return [
        f"{name} {names[: i + 1].count(name)}" if names.count(name) > 1 else name
        for i, name in enumerate(names)
    ]
