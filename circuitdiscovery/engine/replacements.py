"""Replacements that were computed once for all examples of a task, and how a batch's are found among them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import Any, NamedTuple

import torch
from torch import Tensor

from circuitdiscovery.engine.fast import PatchedRun
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.model.parts import Parts
from circuitdiscovery.task.batch import Batch

Inside = Mapping[str, Tensor]  # where the spans of positions are, as `Parts` has it
_PROMPTS = ("rows", "clean", "corrupted", "lengths")  # of a batch


class Held(NamedTuple):
    """The replacements of some of the examples."""

    batch: Batch
    values: Tensor  # [rows, B, T, d_model], packed
    inside: Inside  # of the graph that they are of


@dataclass(frozen=True)
class Replacements:
    """Replacements computed once for all examples of a task (see `replacements`)."""

    name: str
    own_run: bool
    batches: tuple[Held, ...]
    of: Parts = field(compare=False, repr=False)  # whose
    # those of the task's held-out examples, computed when first needed
    held_out: Callable[[], Replacements] | None = None
    # what follows from them alone
    patched_runs: dict[Hashable, PatchedRun] = field(default_factory=dict, compare=False, repr=False)
    mean_over: int | None = None  # the fewest prompts that a replacement is a mean over

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the values, and the prompts that they are of."""
        found = sha256()
        for batch, values, _ in self.batches:
            for each in (*(getattr(batch, name) for name in _PROMPTS), values):
                found.update(b"%d:" % each.nbytes)
                found.update(each.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return found.hexdigest()

    def rows(self, batch: Batch) -> Tensor:
        """[sources, B, T, d_model] for a batch's examples, padded or not; errors as `packed`."""
        return self.of.packing.dense(self.packed(batch))

    def packed(self, batch: Batch, inside: Inside | None = None) -> Tensor:
        """[rows, B, T, d_model] for a batch's examples, padded or not, without a copy for a batch as it was
        computed; parts that are a number times a vector are numbers (model/packing.py).

        Args:
            batch: the examples.
            inside: where their spans are; None: where those of the same prompts were.

        Raises:
            CircuitDiscoveryError: a prompt that is neither among the task's examples nor held out, or has its
                spans elsewhere, by its row.
        """
        for held in self.batches:
            same = [(getattr(held.batch, name), getattr(batch, name)) for name in _PROMPTS]
            same += [(held.inside[node], spans) for node, spans in (inside or {}).items()]
            if all(torch.equal(ours, theirs.to(ours.device)) for ours, theirs in same):
                return held.values
        where: dict[tuple[Any, ...], tuple[Tensor, int]] = {}
        # the first of equal prompts stands for those of another row
        for held in reversed(self.batches):
            of = None if inside is None else held.inside
            for i, key in reversed(list(enumerate(_keys(held.batch, of)))):
                where[key] = where[key[1:]] = (held.values, i)
        found = [where.get(key, where.get(key[1:])) for key in _keys(batch, inside)]
        if None in found and self.held_out is not None:
            return self.held_out().packed(batch, inside)
        if None in found:
            row = batch.rows.tolist()[found.index(None)]
            spans = ", or other spans of them," if inside else ""
            raise CircuitDiscoveryError(
                f"the given replacements were computed for other prompts{spans} than row {row}'s"
            )
        return filled([each[0][:, each[1]] for each in found if each is not None], batch)


def mean_over(ablation: Any, batches: Sequence[Batch]) -> int | None:
    """The fewest prompts that a replacement of some batches is a mean over; None where it is not a mean."""
    if isinstance(ablation, Replacements) and ablation.held_out is not None and batches:
        known = {key[1:] for held in ablation.batches for key in _keys(held.batch)}
        if _keys(batches[0])[0][1:] not in known:
            return ablation.held_out().mean_over
    return getattr(ablation, "mean_over", None)


def _keys(batch: Batch, inside: Inside | None = None) -> list[tuple[Any, ...]]:
    """Of each example its row, and what its replacements are known by."""
    found = []
    each_row = zip(*(getattr(batch, name).tolist() for name in _PROMPTS), strict=True)
    for i, (row, clean, corrupted, length) in enumerate(each_row):
        spans = tuple(each[:, i, :length].cpu().numpy().tobytes() for each in (inside or {}).values())
        found.append((row, tuple(clean[:length]), tuple(corrupted[:length]), spans))
    return found


def filled(each: Sequence[Tensor], batch: Batch) -> Tensor:
    """[S, B, T, D] from each example's own [S, its length or more, D], with 0 at the pads."""
    if not batch.padded:
        return torch.stack([values[:, : batch.clean.shape[1]] for values in each], dim=1)
    out = each[0].new_zeros(len(each[0]), *batch.clean.shape, each[0].shape[-1])
    for i, (values, length) in enumerate(zip(each, batch.lengths.tolist(), strict=True)):
        out[:, i, :length] = values[:, :length]
    return out
