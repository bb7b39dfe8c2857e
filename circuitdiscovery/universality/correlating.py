"""Pearson correlations of all units of one model with all of another, over the same text, in bounded memory.

1. Texts run through both models, a batch at a time. Of the units' values, less those of the first batch's
   mean, only weighted sums are kept: of products of units of the one with units of the other, and within each
   layer of the other.
2. Only some layers of the one model are summed in a pass, as many as memory has room for; more passes run the
   texts again, the one model only as deep as these layers.
3. The baseline: the units of each layer of the other model are turned by a random rotation. The covariances
   with turned units follow from the sums; no text runs for it.

Shapes: m places, u units of a layer of the one model, n units of a layer of the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# of one batch: the weights [m] of its places, the values [m, u] of some layers of the one model, and those
# [m, n] of all layers of the other
Values = tuple[Tensor, Sequence[Tensor], Sequence[Tensor]]
_FLAT = 1e-10  # of the mean square of a unit, below which its variance is rounding: it is constant


@dataclass(frozen=True)
class Best:
    """For each unit of one model, the unit of another that correlates most with it.

    Args:
        correlation: [units]; 0 where the unit is constant.
        partner: [units], its number among all units of the other; -1 where the unit is constant.
        baseline: [units], the highest correlation with a turned unit of the other.
        dead: [units] bool, those that are constant.
    """

    correlation: np.ndarray
    partner: np.ndarray
    baseline: np.ndarray
    dead: np.ndarray


class _Sums:
    """Of some layers of the one model with all of the other."""

    def __init__(self, sizes: Sequence[int], others: Sequence[int], within: bool) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64)

        self.weight = 0.0
        self.one = [(zeros(u), zeros(u)) for u in sizes]
        self.other = [(zeros(n), zeros(n)) for n in others]
        self.between = [[zeros(u, n) for n in others] for u in sizes]
        self.within = [zeros(n, n) for n in others] if within else []
        self._shift: list[list[Tensor]] = []

    def add(self, values: Values) -> None:
        weights, own, theirs = values
        weights = weights.to(own[0].dtype)
        if not self._shift:
            share = (weights / weights.sum())[:, None]
            self._shift = [[(share * each).sum(0) for each in some] for some in (own, theirs)]
        own, theirs = (
            [each - shift for each, shift in zip(some, shifts, strict=True)]
            for some, shifts in zip((own, theirs), self._shift, strict=True)
        )
        self.weight += float(weights.double().sum())
        weighed = [each * weights[:, None] for each in own]
        for sums, some, heavy in ((self.one, own, weighed), (self.other, theirs, None)):
            for i, ((total, squares), each) in enumerate(zip(sums, some, strict=True)):
                times = each * weights[:, None] if heavy is None else heavy[i]
                total += times.sum(0).double().cpu()
                squares += (times * each).sum(0).double().cpu()
        for row, heavy in zip(self.between, weighed, strict=True):
            for into, each in zip(row, theirs, strict=True):
                into += (heavy.T @ each).double().cpu()
        for into, each in zip(self.within, theirs if self.within else (), strict=True):
            into += ((each * weights[:, None]).T @ each).double().cpu()

    def covariance(self, i: int, j: int) -> Tensor:
        """[u, n]."""
        mean, there = self.one[i][0] / self.weight, self.other[j][0] / self.weight
        return self.between[i][j] / self.weight - torch.outer(mean, there)

    def within_other(self, j: int) -> Tensor:
        """[n, n]: the covariance of a layer of the other."""
        mean = self.other[j][0] / self.weight
        return self.within[j] / self.weight - torch.outer(mean, mean)

    def deviations(self, sums: Sequence[tuple[Tensor, Tensor]], shifts: Sequence[Tensor]) -> list[Tensor]:
        """Each layer's standard deviations; 0 where a unit is constant."""
        found = []
        for (total, squares), shift in zip(sums, shifts, strict=True):
            mean = total / self.weight
            variance = squares / self.weight - mean.square()
            size = squares / self.weight + shift.double().cpu().square()
            found.append(torch.where(variance > _FLAT * size, variance, 0.0).sqrt())
        return found

    @property
    def deviation(self) -> tuple[list[Tensor], list[Tensor]]:
        """Of the one model's layers, and of the other's."""
        one, other = self._shift
        return self.deviations(self.one, one), self.deviations(self.other, other)


def rotation(size: int, seed: int, layer: int) -> Tensor:
    """[size, size], random and orthogonal, of a layer."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + layer)
    matrix, triangle = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    return matrix * triangle.diagonal().sign()  # uniform over rotations and reflections


def best(
    sizes: Sequence[int],
    others: Sequence[int],
    run: Callable[[Sequence[int]], Iterable[Values]],
    room: float,
    seed: int,
) -> Best:
    """The best partner of each unit of one model among all units of another, and the baseline.

    Args:
        sizes: the number of units of each layer of the one model.
        others: the same of the other.
        run: from some layers of the one model, the values of all texts.
        room: bytes that the sums may take; one layer of each at least is summed.
        seed: of the rotations.
    """
    found, turned = list[Best](), list[Tensor]()
    for number, layers in enumerate(_passes(sizes, others, room)):
        sums = _Sums([sizes[i] for i in layers], others, within=not number)
        for values in run(layers):
            sums.add(values)
        if not number:  # the deviations of the turned units
            for layer in range(len(others)):
                matrix, within = rotation(others[layer], seed, layer), sums.within_other(layer)
                turned.append(((matrix @ within) * matrix).sum(1).clamp_min(0).sqrt())
            sums.within.clear()
        own, theirs = sums.deviation
        for i, deviation in enumerate(own):
            found.append(_of_layer(sums, i, deviation, theirs, turned, seed))
    return Best(
        *(
            np.concatenate([getattr(each, name) for each in found])
            for name in ("correlation", "partner", "baseline", "dead")
        )
    )


def _passes(sizes: Sequence[int], others: Sequence[int], room: float) -> Iterator[list[int]]:
    """Layers of the one model that are summed together, the deepest last."""
    some, held = list[int](), 8.0 * sum(n * n for n in others)
    for layer, size in enumerate(sizes):
        needed = 8.0 * size * sum(others)
        if some and held + needed > room:
            yield some
            some, held = [], 0.0
        some.append(layer)
        held += needed
    yield some


def _of_layer(
    sums: _Sums,
    layer: int,
    deviation: Tensor,
    theirs: Sequence[Tensor],
    turned: Sequence[Tensor],
    seed: int,
) -> Best:
    """The best partners of one layer's units."""
    highest = torch.full_like(deviation, -torch.inf)
    partner = torch.full((len(deviation),), -1)
    baseline, first = highest.clone(), 0
    for j, (other, others) in enumerate(zip(theirs, turned, strict=True)):
        covariance = sums.covariance(layer, j)
        value, which = _correlations(covariance, deviation, other).max(1)
        partner = torch.where(value > highest, first + which, partner)
        highest = torch.maximum(highest, value)
        rotated = covariance @ rotation(len(other), seed, j).T
        baseline = torch.maximum(baseline, _correlations(rotated, deviation, others).amax(1))
        first += len(other)
    dead = deviation == 0
    return Best(
        torch.where(dead, 0.0, highest).numpy(),
        torch.where(dead, -1, partner).numpy(),
        torch.where(dead, 0.0, baseline).numpy(),
        dead.numpy(),
    )


def _correlations(covariance: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """[u, n]; -1, below all that counts, where a unit of the other is constant."""
    products = torch.outer(torch.where(one > 0, one, 1.0), torch.where(other > 0, other, 1.0))
    return torch.where(other > 0, covariance / products, -1.0).clamp(-1.0, 1.0)
