"""Pearson correlations of all units of one model with all of another, over the same text, in bounded memory.

1. Texts run through both models. Of the units' values, less the mean of the first ones, only weighted sums
   are kept: of products of units of the one with units of the other, and within groups of units of the other.
   Values are collected until there are enough of them for one multiplication of matrices.
2. Only some units of the one model are summed in a pass, as many as memory has room for; more passes run the
   texts again.
3. The baseline: the units of each group of the other model are turned by a random rotation. A group is a
   layer, or an equal part of one that has more than 2,048 units. The covariances with turned units follow
   from the sums; no text runs for it.

Sums of products are in the values' precision, single as a rule: each is off by about 1e-7 of the sum of the
products' sizes, times the root of how often values were added. All other sums are double.

Shapes: m places, u units of the one model, n of the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

# of some places: their weights [m]; values of units of the one model [m, u], and of all units of the other
# [m, n], each as parts side by side
Values = tuple[Tensor, Sequence[Tensor], Sequence[Tensor]]
LARGEST = 2048  # units that are turned together, at most
_FLAT = 1e-10  # of the mean square of a unit, below which its variance is rounding: it is constant
_AT_ONCE = 1024  # units of the one model whose correlations with a group are held
_BLOCK = 128  # columns of a symmetric matrix that are summed together


@dataclass(frozen=True)
class Best:
    """For each unit of one model, the unit of another that correlates most with it.

    Args:
        correlation: [units]; 0 where the unit is constant, or all units of the other are.
        partner: [units], its number among all units of the other; -1 where there is none for these reasons.
        baseline: [units], the highest correlation with a turned unit of the other.
        dead: [units] bool, those that are constant.
    """

    correlation: np.ndarray
    partner: np.ndarray
    baseline: np.ndarray
    dead: np.ndarray


class Covariances(Protocol):
    """Of units of the one model with those of the other."""

    @property
    def deviations(self) -> tuple[Tensor, Tensor]:
        """The standard deviations [u] and [n]; 0 where a unit is constant."""
        ...

    def between(self, rows: slice, group: slice) -> Tensor:
        """[rows, group]."""
        ...

    def turned(self, matrix: Tensor, group: slice) -> Tensor:
        """[group]: the standard deviations of a group's units turned by a matrix."""
        ...


class _Sums:
    """The covariances of some units of the one model, from sums over texts."""

    def __init__(self, own: int, groups: Sequence[slice], rows: int, within: bool) -> None:
        self.sizes, self.groups = (own, groups[-1].stop), groups
        self.rows, self.filled, self.weight, self.has_within = rows, 0, 0.0, within
        self.moments = [torch.zeros(2, size, dtype=torch.float64) for size in self.sizes]  # sums and squares
        self.shifts: list[Tensor] = []

    def _start(self, weights: Tensor, values: Sequence[Sequence[Tensor]]) -> None:
        share = weights / weights.sum()
        self.shifts = [torch.cat([share.to(part.dtype) @ part for part in parts]) for parts in values]
        like = self.shifts[0]
        self.weights = like.new_empty(self.rows)
        self.held = [like.new_empty(self.rows, size) for size in self.sizes]
        self.products = like.new_zeros(self.sizes)
        sizes = [group.stop - group.start for group in self.groups if self.has_within]
        self.within = [like.new_zeros(size, size) for size in sizes]  # the upper triangles

    def add(self, values: Values) -> None:
        """Some more places."""
        weights, *both = values
        if not self.shifts:
            self._start(weights, both)
        done = 0
        while done < len(weights):
            count = min(len(weights) - done, self.rows - self.filled)
            some, into = slice(done, done + count), slice(self.filled, self.filled + count)
            self.weights[into] = weights[some]
            for held, shift, parts in zip(self.held, self.shifts, both, strict=True):
                first = 0
                for part in parts:
                    columns = slice(first, first + part.shape[1])
                    torch.sub(part[some], shift[columns], out=held[into, columns])
                    first = columns.stop
            self.filled, done = self.filled + count, done + count
            if self.filled == self.rows:
                self.flush()

    def flush(self) -> None:
        """Sum what is held."""
        root, both = self.weights[: self.filled].sqrt(), [held[: self.filled] for held in self.held]
        self.weight += float(root.double().square().sum())
        if bool((root != 1).any()):
            for values in both:
                values *= root[:, None]
        own, theirs = both
        self.products.addmm_(own.T, theirs)
        for into, group in zip(self.within, self.groups if self.within else (), strict=True):
            part = theirs[:, group]
            for first in range(0, len(into), _BLOCK):
                into[first : first + _BLOCK, first:].addmm_(
                    part[:, first : first + _BLOCK].T, part[:, first:]
                )
        for values, (total, squares) in zip(both, self.moments, strict=True):
            total += (root @ values).double().cpu()
            squares += values.square_().sum(0).double().cpu()
        self.filled = 0

    @property
    def deviations(self) -> tuple[Tensor, Tensor]:
        """See `Covariances`."""
        found = []
        for (total, squares), shift in zip(self.moments, self.shifts, strict=True):
            mean, square = total / self.weight, squares / self.weight
            variance = square - mean.square()
            size = square + shift.double().cpu().square()
            found.append(torch.where(variance > _FLAT * size, variance, 0.0).sqrt())
        return found[0], found[1]

    def between(self, rows: slice, group: slice) -> Tensor:
        """See `Covariances`."""
        own, theirs = ((total / self.weight).to(self.products) for total, _ in self.moments)
        return self.products[rows, group] / self.weight - torch.outer(own[rows], theirs[group])

    def turned(self, matrix: Tensor, group: slice) -> Tensor:
        """See `Covariances`."""
        upper = self.within[self.groups.index(group)].triu().double().cpu()
        mean, varies = self.moments[1][0, group] / self.weight, self.deviations[1][group] > 0
        covariance = (upper + upper.triu(1).T) / self.weight - torch.outer(mean, mean)
        covariance = covariance * torch.outer(varies, varies)  # that of a constant unit is rounding
        return ((matrix @ covariance) * matrix).sum(1).clamp_min(0).sqrt()


def rotation(size: int, seed: int, group: int) -> Tensor:
    """[size, size], random and orthogonal, of a group."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + group)
    matrix, triangle = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    return matrix * triangle.diagonal().sign()  # uniform over rotations and reflections


def groups_of(sizes: Sequence[int]) -> list[slice]:
    """The groups of units that are turned together, of layers of some sizes."""
    found, first = list[slice](), 0
    for size in sizes:
        parts = -(-size // LARGEST)
        ends = [first + size * i // parts for i in range(parts + 1)]
        found += map(slice, ends, ends[1:])
        first += size
    return found


def best(
    own: int,
    groups: Sequence[slice],
    run: Callable[[int, int], Iterable[Values]],
    room: float,
    rows: int,
    seed: int,
) -> Best:
    """The best partner of each unit of one model among all units of another, and the baseline.

    Args:
        own: the number of units of the one model.
        groups: those of the other's units.
        run: the values of all texts, of the one model's units from one number up to another.
        room: bytes that the sums may take; one unit at least is summed.
        rows: places that are summed together.
        seed: of the rotations.
    """
    found, turned = list[Best](), list[Tensor]()
    for start, stop in _passes(own, groups, room):
        sums = _Sums(stop - start, groups, rows, within=not turned)
        for values in run(start, stop):
            sums.add(values)
        sums.flush()
        found.append(compared(sums, groups, seed, turned))
    return Best(
        *(
            np.concatenate([getattr(each, name) for each in found])
            for name in ("correlation", "partner", "baseline", "dead")
        )
    )


def _passes(own: int, groups: Sequence[slice], room: float) -> Iterator[tuple[int, int]]:
    """From which unit to which a pass sums; the first one also within the other model."""
    start, held = 0, 4.0 * sum((group.stop - group.start) ** 2 for group in groups)
    while start < own:
        stop = start + int(min(own - start, max(1.0, (room - held) / (4.0 * groups[-1].stop))))
        yield start, stop
        start, held = stop, 0.0


def compared(sums: Covariances, groups: Sequence[slice], seed: int, turned: list[Tensor]) -> Best:
    """The best partners of the units of the one model.

    Args:
        sums: the covariances.
        groups: of the other's units.
        seed: of the rotations.
        turned: each group's turned units' standard deviations; filled where it is empty.
    """
    deviation, others = sums.deviations
    highest = torch.full_like(deviation, -torch.inf)
    partner = torch.full((len(deviation),), -1)
    baseline, known = highest.clone(), bool(turned)
    for number, group in enumerate(groups):
        matrix = rotation(group.stop - group.start, seed, number)
        turning = matrix.T
        if not known:
            turned.append(sums.turned(matrix, group))
        for first in range(0, len(deviation), _AT_ONCE):
            rows = slice(first, first + _AT_ONCE)
            covariance = sums.between(rows, group)
            covariance = covariance * (others[group] > 0).to(covariance)
            value, which = _correlations(covariance, deviation[rows], others[group]).max(1)
            value, which = value.double().cpu(), which.cpu()
            partner[rows] = torch.where(value > highest[rows], group.start + which, partner[rows])
            highest[rows] = torch.maximum(highest[rows], value)
            turning = turning.to(covariance)
            value = (
                _correlations(covariance @ turning, deviation[rows], turned[number]).amax(1).double().cpu()
            )
            baseline[rows] = torch.maximum(baseline[rows], value)
    dead = deviation == 0
    alone = dead if bool((others > 0).any()) else torch.ones_like(dead)
    return Best(
        torch.where(alone, 0.0, highest).numpy(),
        torch.where(alone, -1, partner).numpy(),
        torch.where(alone, 0.0, baseline).numpy(),
        dead.numpy(),
    )


def _correlations(covariance: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """[u, n]; -1, below all that counts, where a unit of the other is constant."""
    one, other = (torch.where(each > 0, 1 / each, 0.0).to(covariance) for each in (one, other))
    found = covariance * one[:, None] * other
    return torch.where(other > 0, found, -1.0).clamp(-1.0, 1.0)
