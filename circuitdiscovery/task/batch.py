"""Examples as tensors: a batch of them, and which examples share one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.task.example import Example

PAD = -1  # in place of an answer where a row has fewer than the batch's longest
PAD_TOKEN = 0  # after a prompt shorter than the batch's longest; any token would do: no position sees it


@dataclass(frozen=True)
class Batch:
    """Examples as tensors: T tokens each, of which the first
    `lengths` are the prompt and the others are pads.

    Attention is causal, so that no position of a prompt sees a pad: each example runs as if it ran alone.

    Args:
        rows: [B], their indices in the task's examples.
        clean, corrupted: [B, T] token ids.
        position: [B], where the answer is read.
        correct, incorrect: [B, k] answer ids, padded with -1.
        lengths: [B], each prompt's own number of tokens.
    """

    rows: Tensor
    clean: Tensor
    corrupted: Tensor
    position: Tensor
    correct: Tensor
    incorrect: Tensor
    lengths: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def padded(self) -> bool:
        """Whether any prompt is shorter than the batch."""
        return int(self.lengths.min()) < self.clean.shape[1] if len(self) else False

    def by_length(self) -> Iterator[tuple[list[int], Batch]]:
        """(which of the examples, a batch of these alone without pads), length by length;
        where nothing is padded, the batch itself.
        """
        if not self.padded:
            yield list(range(len(self))), self
            return
        lengths = self.lengths.tolist()
        for length in sorted(set(lengths)):
            columns = [i for i, other in enumerate(lengths) if other == length]
            parts = {field.name: getattr(self, field.name)[columns] for field in fields(self)}
            yield (
                columns,
                Batch(**(parts | {name: parts[name][:, :length] for name in ("clean", "corrupted")})),
            )

    def to(self, device: torch.device | str) -> Batch:
        """The batch on a device."""
        return Batch(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def batches(
    examples: Sequence[Example], rows: Sequence[int], batch_size: int | None, run_tokens: float
) -> Iterator[Batch]:
    """The examples of these rows in batches, see `Task.batches`."""
    if batch_size is not None and (type(batch_size) is not int or batch_size < 1):
        raise CircuitDiscoveryError(f"batch_size must be at least 1, not {batch_size}")
    by_length: dict[int, list[int]] = {}
    for row in rows:
        by_length.setdefault(len(examples[row].clean), []).append(row)
    groups = list(by_length.values())
    if run_tokens > 0 and len(groups) > 1:
        counts = [(length, len(group)) for length, group in sorted(by_length.items())]
        shared = _cheapest(counts, batch_size or len(rows), run_tokens)
        groups = [[row for length in lengths for row in by_length[length]] for lengths in shared]
    for group in groups:
        size = batch_size or len(group)
        yield from (_batch(examples, group[start : start + size]) for start in range(0, len(group), size))


def _batch(examples: Sequence[Example], rows: list[int]) -> Batch:
    chosen = [examples[row] for row in rows]
    clean, corrupted = (
        _filled([getattr(e, side) for e in chosen], PAD_TOKEN) for side in ("clean", "corrupted")
    )  # [B, T]
    correct, incorrect = (
        _filled([getattr(e, side) for e in chosen], PAD) for side in ("correct", "incorrect")
    )  # [B, k]
    position = torch.tensor([example.position for example in chosen])  # [B]
    lengths = torch.tensor([len(example.clean) for example in chosen])  # [B]
    return Batch(torch.tensor(rows), clean, corrupted, position, correct, incorrect, lengths)


def _filled(rows: Sequence[tuple[int, ...]], value: int) -> Tensor:
    """[n, longest]: the rows, with a value behind those that are shorter; all may be empty."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows], dtype=torch.long)


def _cheapest(counts: Sequence[tuple[int, int]], batch_size: int, run_tokens: float) -> list[list[int]]:
    """The lengths of (length, how many) ascending, in groups: those that cost the fewest
    tokens, pads and `run_tokens` a batch included.

    By dynamic programming over where a group begins and ends.
    """
    lengths = np.repeat([length for length, _ in counts], [count for _, count in counts])  # of all rows
    ends = np.cumsum([0, *(count for _, count in counts)])
    size = min(batch_size, len(lengths))
    # of full batches one after the other, the last of which ends before a row: of two rows that are some
    # batches apart, the difference is what these cost
    padded = np.zeros(-(-(len(lengths) + 1) // size) * size, dtype=np.int64)
    padded[size : len(lengths) + 1] = size * lengths[size - 1 :]
    full = padded.reshape(-1, size).cumsum(0).ravel()
    # of the first so many lengths: tokens, and where the last group begins
    best, begins = np.zeros(len(ends)), np.zeros(len(ends), dtype=np.int64)
    for stop in range(1, len(ends)):
        starts = ends[:stop]
        count, rest = np.divmod(ends[stop] - starts, size)
        tokens = full[starts + count * size] - full[starts] + rest * lengths[ends[stop] - 1]
        options = best[:stop] + tokens + run_tokens * (count + (rest > 0))
        begins[stop] = stop - 1 - options[::-1].argmin()  # of equals the last one
        best[stop] = options[begins[stop]]
    groups, stop = [], len(counts)
    while stop:
        groups.insert(0, [length for length, _ in counts[begins[stop] : stop]])
        stop = int(begins[stop])
    return groups
