"""Means and variances of what every source writes, over reference prompts: what the ablations
`mean`, `mean_all` and `random` stand on.

The reference is drawn apart from the examples: a task that can draw prompts draws hundreds more. A task that
cannot (a table, tokens) has only its own rows, and a row's reference is then every row but itself. Nor does
it hold the row's clean prompt, which may be the corrupted prompt of another: a mean that holds the row would
give it back to the circuit.

1. A row's group are the reference prompts of its template and length, where these are at least ten; else
   those of its length, whatever their template; where even these are fewer than ten, the task's own other
   rows of that length are taken in.
2. Prompts run a few at a time, and of what they write only sums are kept: memory
   grows with the groups, not with the prompts.
3. Where a row, or its clean prompt, is of its group, that run is taken out again: the mean of the other n - 1
   is (sum - x) / (n - 1), and the sum of squares about it that about the old mean less (x - mean)^2 n / (n -
   1). The variance divides by one less than the number of prompts.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import NamedTuple

import torch
from torch import Tensor

from circuitdiscovery.engine import memory
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.model.model import Model
from circuitdiscovery.model.parts import Parts
from circuitdiscovery.model.run import plain_run
from circuitdiscovery.task.batch import Batch
from circuitdiscovery.task.example import Example
from circuitdiscovery.task.task import Task

LEAST = 10  # prompts of one template and length; a mean of fewer says more about them than about their kind
_BATCH_BYTES = 2**26  # of what reference prompts write in one forward
_BATCH_ROWS = 32


@torch.no_grad()
def run_sources(model: Model, start: Tensor, parts: Parts | None = None) -> Tensor:
    """[rows, N, T, d_model]: what every source writes, from [N, T] tokens or an [N, T, d_model] embedding; of
    a split graph by its `Parts`, packed."""
    sources = plain_run(model, start, None, keep_sources=True, parts=parts).sources
    assert sources is not None
    return sources


class Key(NamedTuple):
    """Which reference prompts a group holds."""

    template: int | None  # None: whatever the template
    length: int | None  # None: of all lengths
    own: bool = False  # among them the task's own rows, and not only those that were drawn apart

    def holds(self, example: Example, own: bool) -> bool:
        """Whether a prompt is of the group."""
        same = self.template in (None, example.template) and self.length in (None, len(example.corrupted))
        return same and (self.own or not own)


@dataclass(frozen=True)
class Group:
    """Sums over prompts, of the [S, T, D] that they write; or, where prompts of all
    lengths count, over their tokens, of [S, D].
    """

    prompts: int
    weight: int  # how many were summed: prompts, or tokens
    mean: Tensor
    squares: Tensor | None  # sum of squares about the mean, where the variance is asked for

    @classmethod
    def of(cls, values: Tensor, squares: bool) -> Group:
        """Of some prompts' [S, B, T, D], position by position."""
        mean = values.mean(1)
        return cls(
            values.shape[1],
            values.shape[1],
            mean,
            ((values - mean[:, None]) ** 2).sum(1) if squares else None,
        )

    @classmethod
    def of_tokens(cls, values: Tensor) -> Group:
        """Of some prompts' [S, B, T, D], over all their tokens."""
        return cls(values.shape[1], values.shape[1] * values.shape[2], values.mean((1, 2)), None)

    def __add__(self, other: Group) -> Group:
        """Of both (Chan, Golub and LeVeque 1983: the squares about the common mean from those about each)."""
        weight = self.weight + other.weight
        apart = other.mean - self.mean
        squares = None
        if self.squares is not None and other.squares is not None:
            squares = self.squares + other.squares + apart**2 * (self.weight * other.weight / weight)
        return Group(
            self.prompts + other.prompts, weight, self.mean + apart * (other.weight / weight), squares
        )

    def __mul__(self, copies: int) -> Group:
        """Every prompt so many times."""
        squares = None if self.squares is None else self.squares * copies
        return Group(self.prompts * copies, self.weight * copies, self.mean, squares)

    def __sub__(self, other: Group) -> Group:
        """Without some of its prompts, which are all the same one."""
        left = self.weight - other.weight
        apart = self.mean - other.mean
        squares = None
        if self.squares is not None:
            squares = (self.squares - apart**2 * (self.weight * other.weight / left)).clamp_min(0.0)
        return Group(self.prompts - other.prompts, left, self.mean + apart * (other.weight / left), squares)


class Moments:
    """Mean and variance of what every source writes, for each row of a task.

    Args:
        model: whose sources.
        task: the rows, and what their reference is taken from unless it is given.
        given: prompts that are the reference as they are: nothing is added to them, and no row is taken out.
        variance: whether that is wanted.
        tokens: over all tokens of the reference, instead of position by position.
        graph: whose sources, where nodes are split (not by positions); by default the model's.

    Raises:
        CircuitDiscoveryError: a row whose length no other prompt has; names it.
    """

    def __init__(
        self,
        model: Model,
        task: Task,
        given: Task | None,
        *,
        variance: bool = False,
        tokens: bool = False,
        graph: Graph | None = None,
    ) -> None:
        self._parts = Parts.of(model, graph)
        self._model, self._task, self._given, self._tokens = model, task, given, tokens
        self._fewest = self._sums = 2 if variance else 1  # prompts; and sums, of values and of their squares
        self._of = Group.of_tokens if tokens else partial(Group.of, squares=variance)
        apart = given.examples if given is not None else () if task.apart is None else task.apart()
        own = () if given is not None else (*task.others, *task.examples)
        self._pool = replace(task, examples=(*apart, *own), held_out=None)
        self._apart = len(apart)
        self._sizes = self._counted()
        self._same = Counter((e.clean, e.corrupted, template) for e in own for template in {None, e.template})
        self._run = Counter(
            (e.corrupted, template, i >= len(apart))
            for i, e in enumerate(self._pool.examples)
            for template in {None, e.template}
        )
        self._keys = [self._key(example) for example in task.examples]
        self._left_out = [
            self._itself(key, example) for key, example in zip(self._keys, task.examples, strict=True)
        ]
        self._counts = [
            self._sizes[key] - sum(left_out) for key, left_out in zip(self._keys, self._left_out, strict=True)
        ]
        for row, count in enumerate(self._counts):
            if count < self._fewest:
                raise self._lacking(row, count)

    @property
    def least(self) -> int:
        """The fewest prompts that a row's reference holds."""
        return min(self._counts)

    @property
    def kept(self) -> int:
        """The bytes of the sums, which are held from the first batch on."""
        places = sum(key.length or 1 for key in set(self._keys))
        numbers = len(self._parts.packing) * self._model.d_model * self._sums
        return places * numbers * max(4, self._model.W_E.element_size())

    def of(self, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        """(each example's mean, [S, T, D] or over all tokens [S, D]; their
        variances, none where they were not asked for).
        """
        rows, lengths = batch.rows.tolist(), batch.lengths.tolist()
        found = [self._groups[self._keys[row]] for row in rows]
        for side, tokens in enumerate((batch.corrupted, batch.clean)):
            left_out = [self._left_out[row][side] for row in rows]
            own = self._written(tokens) if any(left_out) else None
            for i, (count, length) in enumerate(zip(left_out, lengths, strict=True)):
                if own is not None and count:
                    found[i] -= self._of(own[:, i : i + 1, :length]) * count
        variances = [each.squares / (each.weight - 1) for each in found if each.squares is not None]
        return [each.mean for each in found], variances

    # ------------------------------------------------------------------ which prompts

    def _counted(self) -> Counter[Key]:
        """How many prompts there are in each group that may be asked for."""
        sizes: Counter[Key] = Counter()
        for i, example in enumerate(self._pool.examples):
            for template in {None, example.template}:
                for length in (None, len(example.corrupted)):
                    sizes[Key(template, length, True)] += 1
                    sizes[Key(template, length, False)] += i < self._apart
        return sizes

    def _key(self, example: Example) -> Key:
        """The group of a row."""
        length = None if self._tokens else len(example.corrupted)
        templates = (None,) if self._tokens else dict.fromkeys((example.template, None))
        for own in (False, True) if self._given is None else (False,):
            for template in templates:
                key = Key(template, length, own)
                if self._sizes[key] - sum(self._itself(key, example)) >= LEAST:
                    return key
        return Key(None, length, self._given is None)

    def _itself(self, key: Key, example: Example) -> tuple[int, int]:
        """How many of a group's prompts are the row's own pair (several, where a table has it several times),
        and how many others run its clean prompt.
        """
        if self._given is not None:
            return 0, 0
        pairs = self._same[example.clean, example.corrupted, key.template] if key.own else 0
        met = sum(self._run[example.clean, key.template, own] for own in {False, key.own})
        return (0 if example.clean == example.corrupted else pairs), met

    def _lacking(self, row: int, left: int) -> CircuitDiscoveryError:
        count = len(self._task.examples[row].clean)
        if self._given is not None:
            there = "no row" if left == 0 else "only one row"
            return CircuitDiscoveryError(f"row {row} has {count} tokens, but {there} of the reference does")
        needed = "another prompt" if self._fewest == 1 else "two other prompts"
        return CircuitDiscoveryError(
            f"row {row} has {count} tokens: its mean needs {needed} of that length, and neither its own "
            "pair nor its clean prompt is taken; "
            "give more rows of that length, or replacements(..., reference=prompts)"
        )

    # ------------------------------------------------------------------ what they write

    def _written(self, tokens: Tensor) -> Tensor:
        values = run_sources(self._model, tokens.to(self._model.device), self._parts)
        return values.to(torch.promote_types(values.dtype, torch.float32))

    @cached_property
    def _groups(self) -> dict[Key, Group]:
        keys, groups = sorted(set(self._keys), key=repr), dict[Key, Group]()
        member = [
            [key for key in keys if key.holds(e, i >= self._apart)] for i, e in enumerate(self._pool.examples)
        ]
        wanted = [row for row, found in enumerate(member) if found]
        longest = max(len(self._pool.examples[row].corrupted) for row in wanted)
        each = len(self._parts.packing) * longest * self._model.d_model * 4
        size = min(_BATCH_ROWS, memory.at_once(each, self._model.device, _BATCH_BYTES))
        for batch in self._pool.batches(size, wanted):
            values, rows = self._written(batch.corrupted), batch.rows.tolist()
            for key in keys:
                if columns := [i for i, row in enumerate(rows) if key in member[row]]:
                    found = self._of(values[:, columns])
                    groups[key] = groups[key] + found if key in groups else found
        return groups
