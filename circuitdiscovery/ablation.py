"""What a removed edge carries: for every source, example and position a replacement of what the source writes.

| ablation | replacement |
| --- | --- |
| `resample` | the paired corrupted run (interchange ablation; Chan et al. 2022, Conmy et al. 2023) |
| `mean` | mean over the reference rows at that position (Wang et al. 2022), rows of the same template, else of the same length |
| `mean_all` | mean over all tokens of the reference rows |
| `zero` | 0 |
| `noise` | a clean run with Gaussian noise on the token embeddings (Meng et al. 2022, arXiv 2202.05262, section 2.1) |
| `random` | a Gaussian draw with the reference's mean and variance, per source, position and dimension |

A new ablation is one function and one line in `ABLATIONS`; a user's own is any object with `rows` and `own_run`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from circuitdiscovery.arguments import guarded
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.forward import World, embed, plain_run, run_tokens
from circuitdiscovery.model import Model
from circuitdiscovery.names import canonical
from circuitdiscovery.task import Batch, Example, Task


class Ablation(Protocol):
    """What every function that takes `ablation=` accepts beside a name."""

    @property
    def name(self) -> str:
        """What reports call it."""
        ...

    @property
    def own_run(self) -> bool:
        """Whether the replacements of an example are one run's own activations; False is always right, True is faster."""
        ...

    def rows(self, batch: Batch) -> Tensor:
        """[sources, B, T, d_model]: the replacements for a batch's examples, all of one length T: these are asked for without pads."""
        ...


@dataclass(frozen=True)
class OnDemand:
    """An ablation that computes the replacements of a batch when they are asked for."""

    name: str
    own_run: bool
    compute: Callable[[Batch], Tensor]

    def rows(self, batch: Batch) -> Tensor:
        """[sources, B, T, d_model] for a batch's examples; what stands at pads is finite, and nothing reads it."""
        return self.compute(batch)


@dataclass(frozen=True)
class Replacements:
    """Replacements computed once for all examples of a task (see `replacements`)."""

    name: str
    own_run: bool
    parts: tuple[tuple[Batch, Tensor], ...]  # (batch, [sources, B, T, d_model])
    held_out: Callable[[], Replacements] | None = None  # those of the task's held-out examples, computed when first needed
    worlds: dict[Hashable, World] = field(default_factory=dict, compare=False, repr=False)  # what follows from them alone

    def rows(self, batch: Batch) -> Tensor:
        """[sources, B, T, d_model] for a batch's examples, padded or not, without a copy for a batch as it was computed.

        Raises:
            CircuitDiscoveryError: a prompt that is neither among the task's examples nor held out, by its row.
        """
        same = ("rows", "clean", "corrupted", "lengths")
        for part, values in self.parts:
            if all(torch.equal(getattr(part, name), getattr(batch, name).to(values.device)) for name in same):
                return values
        where: dict[tuple[Any, ...], tuple[Tensor, int]] = {}
        for part, values in reversed(self.parts):  # the first of equal prompts stands for those of another row
            for i, key in reversed(list(enumerate(_keys(part)))):
                where[key] = where[key[1:]] = (values, i)
        found = [where.get(key, where.get(key[1:])) for key in _keys(batch)]
        if None in found and self.held_out is not None:
            return self.held_out().rows(batch)
        if None in found:
            row = batch.rows.tolist()[found.index(None)]
            raise CircuitDiscoveryError(f"the given replacements were computed for other prompts than row {row}'s")
        return _filled([each[0][:, each[1]] for each in found if each is not None], batch)


def _keys(batch: Batch) -> list[tuple[int, tuple[int, ...], tuple[int, ...]]]:
    rows = zip(batch.rows.tolist(), batch.clean.tolist(), batch.corrupted.tolist(), batch.lengths.tolist(), strict=True)
    return [(row, tuple(clean[:length]), tuple(corrupted[:length])) for row, clean, corrupted, length in rows]


def _filled(each: Sequence[Tensor], batch: Batch) -> Tensor:
    """[S, B, T, D] from each example's own [S, its length or more, D], with 0 at the pads."""
    if not batch.padded:
        return torch.stack([values[:, : batch.clean.shape[1]] for values in each], dim=1)
    out = each[0].new_zeros(len(each[0]), *batch.clean.shape, each[0].shape[-1])
    for i, (values, length) in enumerate(zip(each, batch.lengths.tolist(), strict=True)):
        out[:, i, :length] = values[:, :length]
    return out


# ------------------------------------------------------------------ the ablations


@torch.no_grad()
def run_sources(model: Model, start: Tensor) -> Tensor:
    """[sources, N, T, d_model]: what every source writes, from [N, T] tokens or an [N, T, d_model] embedding."""
    sources = plain_run(model, start, None, keep_sources=True).sources
    assert sources is not None
    return sources


def _resample(model: Model, **_: Any) -> Callable[[Batch], Tensor]:
    return lambda batch: run_sources(model, batch.corrupted.to(model.device))


def _zero(model: Model, **_: Any) -> Callable[[Batch], Tensor]:
    return lambda batch: torch.zeros(len(model.graph.sources), *batch.clean.shape, model.d_model, device=model.device, dtype=model.dtype)


def _noise(model: Model, *, seed: int, k: float, **_: Any) -> Callable[[Batch], Tensor]:
    deviation = k * float(model.W_E.float().std())

    def rows(batch: Batch) -> Tensor:
        clean = embed(model, batch.clean.to(model.device))
        return run_sources(model, clean + deviation * _draws(seed, batch, 1, clean)[0])

    return rows


def _mean(model: Model, *, task: Task, reference: Task, **_: Any) -> Callable[[Batch], Tensor]:
    means = _Statistics(model, reference)
    return lambda batch: means.of(batch, task)[0]


def _random(model: Model, *, task: Task, reference: Task, seed: int, **_: Any) -> Callable[[Batch], Tensor]:
    statistics = _Statistics(model, reference, variance=True)

    def rows(batch: Batch) -> Tensor:
        mean, variance = statistics.of(batch, task)
        return mean + variance.sqrt() * _draws(seed, batch, len(mean), mean)

    return rows


def _mean_all(model: Model, *, reference: Task, **_: Any) -> Callable[[Batch], Tensor]:
    total, count = None, 0
    for batch in reference.batches(_REFERENCE_ROWS):
        summed = run_sources(model, batch.corrupted.to(model.device)).sum((1, 2))  # [S, D]
        total, count = (summed if total is None else total + summed), count + batch.corrupted.numel()
    assert total is not None
    mean = (total / count)[:, None, None]  # [S, 1, 1, D]
    return lambda batch: mean.expand(-1, *batch.clean.shape, -1)


# name -> (what makes the function from a batch to its replacements, whether they are a run's own activations)
ABLATIONS: dict[str, tuple[Callable[..., Callable[[Batch], Tensor]], bool]] = {
    "resample": (_resample, True),
    "mean": (_mean, False),
    "mean_all": (_mean_all, False),
    "zero": (_zero, False),
    "noise": (_noise, True),
    "random": (_random, False),
}
_REFERENCE_ROWS = 32  # reference prompts in one forward


def _draws(seed: int, batch: Batch, sources: int, like: Tensor) -> Tensor:
    """[S, B, T, D] standard Gaussians, each example's from its own generator, so that batches and pads do not matter."""
    each = zip(batch.rows.tolist(), batch.lengths.tolist(), strict=True)
    generators = ((torch.Generator().manual_seed(seed * 1_000_003 + row), length) for row, length in each)
    return _filled([torch.randn(sources, n, like.shape[-1], generator=generator) for generator, n in generators], batch).to(like)


class _Statistics:
    """Mean and variance over reference rows per source, position and dimension, for each template and each length."""

    def __init__(self, model: Model, reference: Task, variance: bool = False) -> None:
        self._model, self._reference = model, reference
        self._mean = self._collect(lambda values, _: values)
        self._variance = self._collect(lambda values, key: (values - self._mean[key][:, None]) ** 2) if variance else {}

    def _collect(self, of: Callable[[Tensor, tuple[int | None, int]], Tensor]) -> dict[tuple[int | None, int], Tensor]:
        """[S, T, D] mean of a function of the sources, by (template, length); template None is all rows of that length."""
        totals: dict[tuple[int | None, int], tuple[Tensor | float, int]] = {}
        for batch in self._reference.batches(_REFERENCE_ROWS):
            sources = run_sources(self._model, batch.corrupted.to(self._model.device))
            for key, columns in _by_template(batch, self._reference):
                total, count = totals.get(key, (0.0, 0))
                totals[key] = (total + of(sources[:, columns], key).sum(1), count + len(columns))
        return {key: total / count for key, (total, count) in totals.items()}  # pyright: ignore[reportReturnType]

    def of(self, batch: Batch, task: Task) -> tuple[Tensor, Tensor]:
        """([S, B, T, D] mean, the same of the variance or of the mean again) for a batch of a task's examples."""
        rows, lengths = batch.rows.tolist(), batch.lengths.tolist()
        keys = [(task.examples[row].template, length) for row, length in zip(rows, lengths, strict=True)]
        keys = [key if key in self._mean else (None, key[1]) for key in keys]
        if missing := [(row, key[1]) for row, key in zip(rows, keys, strict=True) if key not in self._mean]:
            raise CircuitDiscoveryError(f"row {missing[0][0]} has {missing[0][1]} tokens, but no row of the reference does")
        mean = _filled([self._mean[key] for key in keys], batch)
        return mean, _filled([self._variance[key] for key in keys], batch) if self._variance else mean


def _by_template(batch: Batch, task: Task) -> Iterator[tuple[tuple[int | None, int], list[int]]]:
    """((template, length), columns of the batch) for each template in it, and (None, length) for all of them."""
    templates = [task.examples[row].template for row in batch.rows.tolist()]
    length = batch.corrupted.shape[1]
    yield (None, length), list(range(len(templates)))
    for template in dict.fromkeys(templates):
        if template is not None:
            yield (template, length), [i for i, other in enumerate(templates) if other == template]


# ------------------------------------------------------------------ by name, or given


def name_of(ablation: str | Ablation) -> str:
    """What reports call an ablation; an object without a name goes by its class."""
    return canonical("ablation", ablation) if isinstance(ablation, str) else str(getattr(ablation, "name", type(ablation).__name__))


def on_demand(
    model: Model,
    task: Task,
    ablation: str | Ablation,
    *,
    reference: Task | Tensor | Sequence[Sequence[int]] | None = None,
    seed: int = 0,
    k: float = 3.0,
) -> Ablation:
    """The ablation by its name, its replacements computed batch by batch; one that is given comes back as it is."""
    if isinstance(ablation, OnDemand):
        return ablation
    if not isinstance(ablation, str):
        if not callable(getattr(ablation, "rows", None)):
            raise CircuitDiscoveryError(f"an ablation is a name or an object with `rows(batch)`, not {type(ablation).__name__}")
        rows = ablation.rows if isinstance(ablation, Replacements) else _without_pads(ablation.rows)
        return OnDemand(name_of(ablation), getattr(ablation, "own_run", False), rows)
    name = canonical("ablation", ablation)
    make, own_run = ABLATIONS[name]
    rows = make(model, task=task, reference=_as_reference(task, reference), seed=seed, k=k)
    return OnDemand(name, own_run, rows)


def _without_pads(rows: Callable[[Batch], Tensor]) -> Callable[[Batch], Tensor]:
    """The rows of an ablation of one's own, which is asked for examples of one length at a time: it need not know of pads."""

    def filled(batch: Batch) -> Tensor:
        if not batch.padded:
            return rows(batch)
        each: dict[int, Tensor] = {}
        for columns, part in batch.by_length():
            values = rows(part)
            if values.shape[1:3] != part.clean.shape:
                return values  # of a wrong shape, which whoever asked says
            each |= dict(zip(columns, values.unbind(1), strict=True))
        return _filled([each[i] for i in range(len(batch))], batch)

    return filled


def _as_reference(task: Task, reference: Task | Tensor | Sequence[Sequence[int]] | None) -> Task:
    """The reference prompts, as the corrupted prompts of a task."""
    if reference is None:
        return task
    if isinstance(reference, Task):
        return reference
    rows = reference.tolist() if isinstance(reference, Tensor) else [list(row) for row in reference]
    if not rows:
        raise CircuitDiscoveryError("reference: at least one prompt is needed")
    examples = tuple(Example(tuple(row), tuple(row), (0,), (1,), len(row) - 1, None, "") for row in rows)
    return replace(task, examples=examples, held_out=None)


@guarded
@torch.no_grad()
def replacements(
    model: Model,
    task: Task,
    *,
    ablation: str = "resample",
    reference: Task | Tensor | Sequence[Sequence[int]] | None = None,
    seed: int = 0,
    k: float = 3.0,
) -> Replacements:
    """The replacements of every source on every example, computed once: [sources, examples, positions, d_model] per batch.

    What circuits need of them beside is kept with them from their first use on, and takes about as much memory again.

    Args:
        model: a loaded model.
        task: its examples' prompts.
        ablation: `resample`, `mean`, `mean_all`, `zero`, `noise` or `random`.
        reference: prompts that `mean`, `mean_all` and `random` take their statistics from: a task (its corrupted prompts) or
            token ids; by default the task's own corrupted prompts.
        seed: of the draws of `noise` and `random`.
        k: the standard deviation of `noise`, in standard deviations of the embedding matrix's entries (3 as in Meng et al.).

    Raises:
        CircuitDiscoveryError: an unknown ablation; a prompt whose length no reference row has.

    >>> import circuitdiscovery as cd
    >>> model = cd.load_model("toy")
    >>> alt = cd.replacements(model, cd.load_task("ioi", model, examples=4), ablation="mean")
    """
    computed = on_demand(model, task, ablation, reference=reference, seed=seed, k=k)
    found = task.batches(run_tokens=run_tokens(model))  # as `patching.batches` has them
    parts = tuple((batch.to(model.device), computed.rows(batch.to(model.device))) for batch in found)
    rest = task.held_out
    later = None if rest is None else cache(lambda: replacements(model, rest, ablation=ablation, reference=reference, seed=seed, k=k))
    return Replacements(computed.name, computed.own_run, parts, later)
