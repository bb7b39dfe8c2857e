"""What is kept of a unit's activations as they stream by: the highest ones, a random few of every height, and
how many there are of each.

Memory does not grow with the number of tokens. Bins are as wide as a power of two, from 0 on, so that two of
them make one of the next width without a rest: where an activation comes that is too large for the bins there
are, neighbours are put together.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

BINS = 32  # on the longer side of 0, at most


@dataclass(frozen=True)
class Seen:
    """A token that is kept, with those around it.

    Args:
        value: how active the unit is there.
        prompt, position: where it is.
        start: the position of the first of `tokens`.
        tokens, values: the window of token ids, and how active the unit is at each.
    """

    value: float
    prompt: int
    position: int
    start: int
    tokens: tuple[int, ...]
    values: np.ndarray


@dataclass
class Batch:
    """Prompts of one length.

    Args:
        numbers: [n] of the prompts.
        tokens: [n, T] ids.
        values: [n, T], of one unit.
        chance: [n, T] random numbers of each token; [2, n, T] for two draws that know nothing of each other.
        first: the first position that counts.
    """

    numbers: Sequence[int]
    tokens: np.ndarray
    values: np.ndarray
    chance: np.ndarray
    first: int


@dataclass
class Highest:
    """Of one unit (see the module).

    Args:
        top: how many of the highest are kept, and how many random ones.
        window: how many tokens on each side are kept of each.
        each: how many random ones are kept of every bin.
    """

    top: int
    window: int
    each: int
    highest: list[tuple[Seen, tuple[int, ...]]] = field(default_factory=list)  # by falling value
    random: list[tuple[float, Seen]] = field(default_factory=list)  # by rising chance
    counts: dict[int, int] = field(default_factory=dict)
    samples: dict[int, list[tuple[float, Seen]]] = field(default_factory=dict)
    exponent: int | None = None  # of a bin's width; None: all were 0
    tokens: int = 0
    zeros: int = 0
    low: float = math.inf
    high: float = -math.inf

    def add(self, batch: Batch) -> None:
        """One more batch."""
        counted = batch.values[:, batch.first :]
        if not counted.size:
            return
        self.tokens += counted.size
        self.zeros += int((counted == 0).sum())
        self.low, self.high = min(self.low, float(counted.min())), max(self.high, float(counted.max()))
        self._widen(max(-self.low, self.high))
        self._add_highest(batch)
        self._add_random(batch)
        self._add_bins(batch)

    # ------------------------------------------------------------------ the highest

    def _add_highest(self, batch: Batch) -> None:
        """None that is 0; of those that overlap the highest; and of prompts that begin alike up to the token
        one, because its activation is that of all of them."""
        every = np.where(batch.values == 0, -np.inf, batch.values)
        every[:, : batch.first] = -np.inf
        for row in np.argsort(-every.max(1), kind="stable").tolist():
            values = every[row]
            if not self._enters(float(values.max())):
                break
            for _ in range(self.top):
                at = int(values.argmax())
                value = float(values[at])
                if value == -np.inf or not self._enters(value):
                    break
                values[max(0, at - self.window) : at + self.window + 1] = -np.inf
                beginning = tuple(batch.tokens[row, : at + 1].tolist())
                if all(beginning != other for _, other in self.highest):
                    new = (self._seen(batch, row, at), beginning)
                    insort(self.highest, new, key=lambda each: -each[0].value)
                    del self.highest[self.top :]

    def _enters(self, value: float) -> bool:
        return len(self.highest) < self.top or value > self.highest[-1][0].value

    # ------------------------------------------------------------------ random ones

    def _add_random(self, batch: Batch) -> None:
        chance = batch.chance[0, :, batch.first :].reshape(-1)
        for i in np.argsort(chance, kind="stable")[: self.top].tolist():
            if len(self.random) == self.top and not chance[i] < self.random[-1][0]:
                break
            row, at = divmod(i, batch.values.shape[1] - batch.first)
            insort(
                self.random,
                (float(chance[i]), self._seen(batch, row, at + batch.first)),
                key=lambda each: each[0],
            )
            del self.random[self.top :]

    def _add_bins(self, batch: Batch) -> None:
        values = batch.values[:, batch.first :].reshape(-1)
        active = np.flatnonzero(values)
        if not len(active):
            return
        assert self.exponent is not None
        bins = np.floor(np.ldexp(values[active], -self.exponent)).astype(np.int64)
        chance = batch.chance[1, :, batch.first :].reshape(-1)[active]
        order = np.lexsort((chance, bins))
        ends = np.flatnonzero(np.diff(bins[order])) + 1
        for some in np.split(order, ends):
            number = int(bins[some[0]])
            self.counts[number] = self.counts.get(number, 0) + len(some)
            kept = self.samples.setdefault(number, [])
            for i in some[: self.each].tolist():
                if len(kept) == self.each and not chance[i] < kept[-1][0]:
                    break
                row, at = divmod(int(active[i]), batch.values.shape[1] - batch.first)
                seen = self._seen(batch, row, at + batch.first)
                insort(kept, (float(chance[i]), seen), key=lambda each: each[0])
                del kept[self.each :]

    def _widen(self, largest: float) -> None:
        """Bins for activations up to there."""
        if not largest > 0:
            return
        exponent = math.frexp(largest / BINS)[1]  # largest < BINS 2^exponent
        if self.exponent is None:
            self.exponent = exponent
        elif exponent > self.exponent:
            self.counts, self.samples = self.merged(exponent)
            self.exponent = exponent

    def merged(self, exponent: int) -> tuple[dict[int, int], dict[int, list[tuple[float, Seen]]]]:
        """The counts and the random ones of wider bins."""
        assert self.exponent is not None
        shift = exponent - self.exponent
        counts, samples = dict[int, int](), dict[int, list[tuple[float, Seen]]]()
        for number, count in self.counts.items():
            counts[number >> shift] = counts.get(number >> shift, 0) + count
            samples.setdefault(number >> shift, []).extend(self.samples[number])
        for kept in samples.values():
            kept.sort(key=lambda each: each[0])
            del kept[self.each :]
        return counts, samples

    def histogram(self) -> tuple[tuple[float, ...], tuple[int, ...]]:
        """(edges, counts) of the bins from the lowest activation to the highest, without those of 0."""
        found = list(self.bins(2 * BINS + 2))
        if not found:
            return (), ()
        return (*(low for low, *_ in found), found[-1][1]), tuple(count for _, _, count, _ in found)

    def bins(self, most: int) -> Iterator[tuple[float, float, int, list[Seen]]]:
        """(low, high, count, random ones), from the lowest, of at most so many bins."""
        if self.exponent is None:
            return
        shift = 0
        while (max(self.counts) >> shift) - (min(self.counts) >> shift) >= most:
            shift += 1
        counts, samples = self.merged(exponent := self.exponent + shift)
        for number in range(min(counts), max(counts) + 1):
            low, high = math.ldexp(number, exponent), math.ldexp(number + 1, exponent)
            yield low, high, counts.get(number, 0), [each for _, each in samples.get(number, ())]

    def _seen(self, batch: Batch, row: int, at: int) -> Seen:
        start, stop = max(0, at - self.window), at + self.window + 1
        values = batch.values[row, start:stop].copy()
        values[: max(0, batch.first - start)] = np.nan
        return Seen(
            value=float(batch.values[row, at]),
            prompt=int(batch.numbers[row]),
            position=at,
            start=start,
            tokens=tuple(batch.tokens[row, start:stop].tolist()),
            values=values,
        )
