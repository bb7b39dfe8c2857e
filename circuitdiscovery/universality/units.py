"""`neurons` and `heads`: which units of a model other models have too.

Gurnee et al. 2024, arXiv 2401.12181: a unit's excess correlation is the mean over the other models of the
highest Pearson correlation with any unit of that model, less the highest with any unit of a random rotation
of each layer's units. The rotations here are orthogonal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from circuitdiscovery.arguments import guarded
from circuitdiscovery.engine.memory import budget
from circuitdiscovery.engine.setup import Progress
from circuitdiscovery.errors import CircuitDiscoveryError, shown
from circuitdiscovery.features.forward import NEURONS, PATTERN, forward, site_of
from circuitdiscovery.files.disk import data_frame
from circuitdiscovery.files.figures import figure_path, write_figure
from circuitdiscovery.graph.nodes import head_name, mlp_name, part_name
from circuitdiscovery.model.model import Model
from circuitdiscovery.task.task import Task
from circuitdiscovery.universality.aligning import Batch, Shared, batches, shared
from circuitdiscovery.universality.correlating import Best, Values, best
from circuitdiscovery.values import Value

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

UNIVERSAL = 0.5  # the excess from which a unit counts as universal (Gurnee et al. 2024)
_ROOM = 0.5  # of the memory that may be held, for the sums
_SHOWN = 5  # units that are printed


@dataclass(frozen=True, eq=False, repr=False)
class Universality(Value):
    """Which units of a model others have too (see `neurons` and `heads`).

    Args:
        model: its name.
        others: the other models' names.
        kind: "neurons" or "heads".
        tokens: how many tokens of the model were compared with each other one.
        names: [units].
        correlation: [others, units], the highest with any unit of that model.
        partners: [others, units], the name of that unit; "" where the unit is dead.
        baseline: [others, units], the highest with any unit of a random rotation of each layer's.
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

        where = figure_path(path)
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        layers = [int(name[1:].split("/")[0].split(".")[0]) for name in self.names]
        shift = np.random.default_rng(0).uniform(-0.35, 0.35, len(layers))
        left.scatter(np.array(layers) + shift, self.excess, s=3, alpha=0.6, linewidths=0)
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
                f"{partner} of {other} {value:.2g}"
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
    return _universality(model, others, texts, _Neurons, seed, batch_size, progress)


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
    return _universality(model, others, texts, _Heads, seed, batch_size, progress)


def _universality(
    model: Model,
    others: Any,
    texts: Any,
    kind: type[_Neurons | _Heads],
    seed: int,
    batch_size: int | None,
    progress: Progress | None,
) -> Universality:
    several = [others] if isinstance(others, Model) else list(others)
    if not several or not all(isinstance(each, Model) for each in several):
        raise CircuitDiscoveryError(f"others must be a loaded model, or several, not {shown(others)}")
    if not isinstance(texts, str | Task):
        texts = list(texts)  # of an iterator, too
    units, found, tokens = kind(model), list[Best](), list[int]()
    partners = list[list[str]]()
    for number, other in enumerate(several):
        theirs, both = kind(other), shared(model, other, texts)
        run = partial(
            _values,
            units,
            theirs,
            both,
            batch_size=batch_size,
            progress=_part(progress, number, len(several)),
        )
        room = _ROOM * budget(torch.device("cpu"))
        found.append(best(units.sizes, theirs.sizes, run, room, seed))
        tokens.append(sum(len(each.tokens) - 1 for each in both))
        names = np.array([*theirs.names, ""])
        partners.append(names[found[-1].partner].tolist())
    dead = np.logical_or.reduce([each.dead for each in found])
    return Universality(
        model.name,
        tuple(each.name for each in several),
        kind.kind,
        tuple(tokens),
        units.names,
        np.stack([each.correlation for each in found]),
        np.array(partners),
        np.stack([each.baseline for each in found]),
        tuple(name for name, gone in zip(units.names, dead, strict=True) if gone),
    )


def _part(progress: Progress | None, number: int, models: int) -> Progress | None:
    """Of one of several other models."""
    if progress is None:
        return None
    report = progress
    return lambda done, whole: report(number * whole + done, models * whole)


def _values(
    units: _Neurons | _Heads,
    theirs: _Neurons | _Heads,
    both: Sequence[Shared],
    layers: Sequence[int],
    *,
    batch_size: int | None,
    progress: Progress | None,
) -> Iterator[Values]:
    """Of all texts, of some layers of the one model."""
    done = 0
    for batch in batches(both, batch_size, units.model.device):
        own = units.values(batch, layers, own=True)
        other = theirs.values(batch, range(theirs.model.n_layers), own=False)
        yield units.weights(batch), own, [each.to(own[0].device) for each in other]
        done += len(batch.tokens)
        if progress is not None:
            progress(done, len(both))


@dataclass(frozen=True)
class _Neurons:
    """A model's neurons."""

    model: Model
    kind = "neurons"

    def __post_init__(self) -> None:
        for layer in range(self.model.n_layers):
            site_of(self.model, NEURONS.format(layer))  # where there are any

    @property
    def sizes(self) -> list[int]:
        """Of each layer."""
        return [block.d_mlp for block in self.model.blocks]

    @property
    def names(self) -> tuple[str, ...]:
        """Layer by layer."""
        return tuple(
            part_name(mlp_name(layer), f"n{i}") for layer, size in enumerate(self.sizes) for i in range(size)
        )

    def values(self, batch: Batch, layers: Sequence[int], own: bool) -> list[Tensor]:
        """[m, u] each."""
        tokens, at = (batch.tokens, batch.at) if own else (batch.others, batch.there)
        places = [NEURONS.format(layer) for layer in layers]
        found = forward(self.model, tokens.to(self.model.device), places)
        return [_wide(found[place].flatten(0, 1))[at.to(found[place].device)] for place in places]

    def weights(self, batch: Batch) -> Tensor:
        """[m]."""
        return batch.weights


@dataclass(frozen=True)
class _Heads:
    """A model's attention heads."""

    model: Model
    kind = "heads"

    @property
    def sizes(self) -> list[int]:
        """Of each layer."""
        return [self.model.n_heads] * self.model.n_layers

    @property
    def names(self) -> tuple[str, ...]:
        """Layer by layer."""
        return tuple(
            head_name(layer, i) for layer in range(self.model.n_layers) for i in range(self.model.n_heads)
        )

    def values(self, batch: Batch, layers: Sequence[int], own: bool) -> list[Tensor]:
        """[m, heads] each: m pairs of a token and one before it, or itself."""
        if not batch.same:
            raise CircuitDiscoveryError("attention is compared between models that make the same tokens")
        places = [PATTERN.format(layer) for layer in layers]
        found = forward(self.model, batch.tokens.to(self.model.device), places)
        query, key = _pairs(batch.tokens.shape[1])
        return [_wide(found[place][:, :, query, key].flatten(1).T) for place in places]

    def weights(self, batch: Batch) -> Tensor:
        """[m]: each pair counts once."""
        query, _ = _pairs(batch.tokens.shape[1])
        return torch.ones(len(batch.tokens) * len(query), device=batch.tokens.device)


def _pairs(length: int) -> tuple[Tensor, Tensor]:
    """(queries, keys): all from the second token on."""
    query, key = torch.tril_indices(length - 1, length - 1)
    return query + 1, key + 1


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
