"""How what all sources write lies in one tensor.

A source has a row [N, T, D] of its own, but parts of an MLP that are a number times a vector (neurons,
features) do not: only their numbers are kept, D of them in one row, after the rows of all others. 36,864
neurons of a model of width 768 are then 48 rows, not 36,864. All that is linear in what sources write (means,
differences, noise times a number) is the same on the packed tensor; what reads single sources asks here.

Shapes: S sources, s some of them, N examples, T positions or 1, D d_model, p parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from circuitdiscovery.graph.layout import Layout, rows_of
from circuitdiscovery.model.rows import take


class Written(NamedTuple):
    """What the sources of a node write: some parts as numbers times vectors, first, then the others.

    Args:
        numbers: [p, ..., N, T], and vectors: [p, D]; None where there are no such parts.
        full: [f, ..., N, T, D].
    """

    full: Tensor
    numbers: Tensor | None = None
    vectors: Tensor | None = None

    def dense(self) -> Tensor:
        """[p + f, ..., N, T, D]."""
        if self.numbers is None or self.vectors is None:
            return self.full
        return torch.cat([times(self.numbers, self.vectors), self.full])

    def sum(self) -> Tensor:
        """[..., N, T, D]: what they write together."""
        total = self.full[0] if len(self.full) == 1 else self.full.sum(0)
        if self.numbers is None or self.vectors is None:
            return total
        return total + self.numbers.movedim(0, -1) @ self.vectors


def times(numbers: Tensor, vectors: Tensor) -> Tensor:
    """[p, ...] numbers, [p, D] vectors -> [p, ..., D]."""
    return numbers[..., None] * vectors.view(len(vectors), *(1,) * (numbers.dim() - 1), -1)


@dataclass(frozen=True, eq=False)
class Packing:
    """What all sources write, in one tensor.

    Args:
        layout: which sources are numbers.
        vectors: [p, D], what these are multiplied with, in order.
    """

    layout: Layout
    vectors: Tensor

    def __len__(self) -> int:
        return self.layout.rows(self.vectors.shape[-1])

    def numbers(self, packed: Tensor, which: slice) -> Tensor:
        """[p, ...]: some scaled sources' numbers, of [rows, ..., D]."""
        width = packed.shape[-1]
        first = self.layout.full + which.start // width
        block = packed[first : self.layout.full + rows_of(which.stop, width)]
        start = which.start % width
        return block.movedim(-1, 1).flatten(0, 1)[start : start + which.stop - which.start]

    def set(
        self, packed: Tensor, rows: slice, written: Written, less: bool, at: Tensor | None = None
    ) -> None:
        """Put what some sources write where it belongs in [rows, N, T, D], or take it from what is there.

        Args:
            packed: is written to.
            rows: sources that follow each other.
            written: theirs; T is 1 at positions.
            less: whether it is taken from what is there.
            at: [N] positions; None: all.
        """
        full, scaled = self.layout.split(rows)
        if written.numbers is not None and scaled.stop == scaled.start:
            written = Written(written.dense())
        there = () if at is None else (torch.arange(len(at), device=packed.device), at.to(packed.device))

        def put(index: tuple[Any, ...], values: Tensor) -> None:
            values = values.detach().to(packed.device)
            packed[index] = packed[index] - values if less else values

        put((full, *there), written.full if at is None else written.full[:, :, 0])
        if written.numbers is None:
            return
        width, numbers = packed.shape[-1], written.numbers.movedim(0, -1)  # [N, T, p]
        numbers = numbers if at is None else numbers[:, 0]
        for start in range(scaled.start - scaled.start % width, scaled.stop, width):
            first, last = max(start, scaled.start), min(start + width, scaled.stop)
            where = there or (slice(None), slice(None))
            put(
                (self.layout.full + start // width, *where, slice(first - start, last - start)),
                numbers[..., first - scaled.start : last - scaled.start],
            )

    def copy(self, packed: Tensor, other: Tensor, row: int) -> None:
        """Put what one source writes in another packed tensor where it belongs in [rows, ..., D]."""
        at, width = int(self.layout.order[row]), packed.shape[-1]
        if self.layout.scaled[row]:
            down, number = divmod(at - self.layout.full, width)
            packed[self.layout.full + down, ..., number] = other[self.layout.full + down, ..., number]
        else:
            packed[at] = other[at]

    def sum(self, packed: Tensor, rows: slice) -> Tensor:
        """[..., D]: what some sources that follow each other write together."""
        full, scaled = self.layout.split(rows)
        total = packed[full].sum(0)
        if scaled.start == scaled.stop:
            return total
        return total + self.numbers(packed, scaled).movedim(0, -1) @ self.vectors[scaled].to(packed)

    def rows(self, packed: Tensor, which: np.ndarray | slice) -> Tensor:
        """[s, ..., D]: what some sources write; without a copy where they follow each other and have rows of
        their own."""
        layout = self.layout
        if isinstance(which, slice):
            if not layout.numbers:
                return packed[which]
            which = np.arange(*which.indices(len(layout.scaled)))
        scaled = layout.scaled[which]
        if not scaled.any():
            return take(packed, layout.order[which])
        out = packed.new_empty(len(which), *packed.shape[1:])
        out[torch.from_numpy(~scaled)] = take(packed, layout.order[which[~scaled]])
        some = layout.before[which[scaled]]
        numbers = self.numbers(packed, slice(0, len(self.vectors)))[torch.from_numpy(some)]
        out[torch.from_numpy(scaled)] = times(numbers, self.vectors[torch.from_numpy(some)].to(packed))
        return out

    def dense(self, packed: Tensor) -> Tensor:
        """[S, ..., D]."""
        return self.rows(packed, slice(None))
