"""Steering: a direction is added to a model's activations, and what that does is measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from circuitdiscovery.arguments import guarded
from circuitdiscovery.engine.metrics import BoundMetric, Metric, bind, precise
from circuitdiscovery.engine.setup import Progress
from circuitdiscovery.errors import CircuitDiscoveryError, shown
from circuitdiscovery.features.answers import answer_batches, answer_logits, marked
from circuitdiscovery.features.forward import Site, forward
from circuitdiscovery.features.places import places_of
from circuitdiscovery.features.prompts import batches
from circuitdiscovery.features.units import Unit, unit_of, words_of
from circuitdiscovery.features.words import Words, named
from circuitdiscovery.files.disk import data_frame
from circuitdiscovery.measure import intervals
from circuitdiscovery.measure.estimates import Estimate, drawn
from circuitdiscovery.model.model import Model
from circuitdiscovery.task.batch import Batch
from circuitdiscovery.task.task import Task
from circuitdiscovery.task.tokens import as_python
from circuitdiscovery.values import Value

if TYPE_CHECKING:
    import pandas as pd

TOP = 10  # tokens
_SHOWN = 5  # tokens that are printed
_BEFORE_OUTPUT = (".neurons", ".z")  # places of which a matrix makes what is written
T = TypeVar("T")


@dataclass(frozen=True, repr=False)
class Move(Value):
    """What adding a direction does (see `steer`).

    Where `by` was one number, `.effect` and the like give one value; of a list one for each, in its order.

    Args:
        by: how much was added, in multiples of the unit's largest activation.
        single: whether `by` was one number.
        effects: the metric's mean change, steered - plain, with a 95% interval over the examples.
        risen: the tokens whose log-probability at the answer's position rises most, by how many nats, on
            average over the examples.
        overlaps: the share of these that are among as many tokens that the unit's direction promotes most;
            None where nothing that stands at the site is added to the stream (what an MLP reads).
    """

    by: tuple[float, ...]
    single: bool
    effects: tuple[Estimate, ...]
    risen: tuple[Words, ...]
    overlaps: tuple[float, ...] | None

    @property
    def effect(self) -> Any:
        """The metric's mean change, with an interval."""
        return self._by(self.effects)

    @property
    def tokens(self) -> Any:
        """The tokens that rise most, (token, nats)."""
        return self._by(self.risen)

    @property
    def overlap(self) -> Any:
        """The share of them that the unit's direction promotes most."""
        return None if self.overlaps is None else self._by(self.overlaps)

    def _by(self, values: Sequence[T]) -> T | tuple[T, ...]:
        return values[0] if self.single else tuple(values)


@dataclass(frozen=True, repr=False)
class Steering(Move):
    """What steering with a unit does, beside random directions (see `steer`).

    Args:
        model, task, metric, unit: of what, measured how.
        examples: how many.
        site: where its direction is added.
        position: at which tokens; None: at all but the first.
        largest: the magnitude of the unit's largest activation on the prompts.
        promoted: the tokens that its direction promotes most, straight to the logits; none where it has no
            overlap.
        random: the same, of random directions of equal norm.
    """

    model: str
    task: str
    metric: str
    examples: int
    unit: str
    site: str
    position: str | None
    largest: float
    promoted: Words
    random: tuple[Move, ...]

    def to_dataframe(self) -> pd.DataFrame:
        """One row per direction and amount: direction, by, effect, low, high, overlap, tokens. Needs
        pandas."""
        named = [(self.unit, self), *((f"random {i}", each) for i, each in enumerate(self.random))]
        rows = [
            (name, by, float(effect), effect.low, effect.high, overlap, " ".join(token for token, _ in risen))
            for name, move in named
            for by, effect, overlap, risen in zip(
                move.by, move.effects, move.overlaps or [None] * len(move.by), move.risen, strict=True
            )
        ]
        return data_frame(rows, columns=["direction", "by", "effect", "low", "high", "overlap", "tokens"])

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        where = "every token but the first" if self.position is None else f"position {self.position}"
        yield (
            f"{self.unit} of {self.model} on {self.task}: {self.metric} of {self.examples} examples, added "
            f"at {where}, in multiples of its largest activation {self.largest:.3g}"
        )
        for i, by in enumerate(self.by):
            rises = " ".join(repr(token) for token, _ in self.risen[i][:_SHOWN])
            others = [float(each.effects[i]) for each in self.random]
            yield f"by {by:<10g} effect {self.effects[i]}{_overlap([self], i)}; rises {rises}"
            yield (
                f"{'':<13} {len(others)} random: effect {min(others):.3g} to {max(others):.3g}"
                f"{_overlap(self.random, i)}"
            )


def _overlap(moves: Sequence[Move], i: int) -> str:
    """The mean overlap of the i-th amount, where there is one."""
    shares = [each.overlaps[i] for each in moves if each.overlaps is not None]
    return f", overlap {np.mean(shares):.2g}" if shares else ""


@guarded
def steer(
    model: Model,
    task: Task,
    unit: Any,
    by: Any = (1, 2, 4),
    *,
    at: str | None = None,
    position: Any = None,
    largest: float | None = None,
    metric: str | Metric | Any | None = None,
    draws: int = 5,
    seed: int = 0,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Steering:
    """Add a unit's direction to the activations, and measure what that does to a task and to the next token.

    Nothing is taken away: what is added is `by` times the largest magnitude of the unit's activation on the
    task's prompts, the first token left out, times its direction. A random direction of equal norm shows what
    any push of that size does. Of a unit before an output matrix (a neuron, a vector at a1.z) the random one
    is drawn where the matrix writes, with the norm that the unit has there.

    Args:
        model: a loaded model.
        task: its clean prompts are run.
        unit: a neuron's name, a feature of a dictionary (`sae[17]`), or a vector.
        by: a number or several, in multiples of the largest activation; below 0 it pushes the other way.
        at: a vector's site, such as "resid5"; its activation is that along the vector.
        position: where it is added, as for `activations`: by default at every token but the first.
        largest: the activation to multiply, where that on other prompts is meant.
        metric: by default the task's own.
        draws: how many random directions.
        seed: of the random directions and of the bootstrap.
        batch_size: examples in one forward; by default about eight thousand tokens.
        progress: called with (examples done, examples in all).

    Returns:
        What it does: `.effect`, `.tokens`, `.overlap`, and `.random`, the same of each random direction.

    Raises:
        CircuitDiscoveryError: no such unit, site or position; a unit that is active nowhere.

    >>> import circuitdiscovery as cd
    >>> model = cd.load_model("toy")
    >>> task = cd.load_task("subject_verb_agreement", model, examples=16)
    >>> move = cd.features.steer(model, task, "m3/n5", by=4)
    >>> float(move.effect) != 0, len(move.tokens), len(move.random)
    (True, 10, 5)
    """
    single, amounts = _amounts(by)
    found = unit_of(model, unit, at)
    size = _largest(model, task, found, batch_size) if largest is None else largest
    if not size > 0:
        raise CircuitDiscoveryError(
            f"{found.name} is active nowhere on the prompts of {task.title} (its largest activation is "
            f"{size:.3g}): give largest="
        )
    added = [(found.written, found.direction), *_random(model, found, draws, seed)]
    run = _Run(model, task, bind(task.metric if metric is None else metric, model, task))
    mask = _where(model, task, position)
    plain, values, rises = run.all(added, [size * each for each in amounts], mask, batch_size, progress)
    resamples, top = drawn(len(task), seed), min(TOP, model.vocab_size)
    direct = None if found.stream is None else precise(words_of(model, found.stream))
    ids = None
    if direct is not None:
        ids = [set((each * direct).topk(top).indices.tolist()) for each in amounts]

    def overlaps(best: list[list[int]]) -> tuple[float, ...] | None:
        if ids is None:
            return None
        return tuple(len(known.intersection(own)) / top for known, own in zip(ids, best, strict=True))

    def move(i: int) -> dict[str, Any]:
        best = [row.topk(top).indices.tolist() for row in rises[i]]
        return {
            "by": amounts,
            "single": single,
            "effects": tuple(
                intervals.difference(each, plain, resamples, binary=run.metric.share) for each in values[i]
            ),
            "risen": tuple(named(model, row, tokens) for row, tokens in zip(rises[i], best, strict=True)),
            "overlaps": overlaps(best),
        }

    return Steering(
        **move(0),
        model=model.name,
        task=task.title,
        metric=run.metric.name,
        examples=len(task),
        unit=found.name,
        site=found.written.name,
        position=None if position is None else str(as_python(position)),
        largest=float(size),
        promoted=() if direct is None else named(model, direct, direct.topk(top).indices.tolist()),
        random=tuple(Move(**move(i)) for i in range(1, len(added))),
    )


def _amounts(by: Any) -> tuple[bool, tuple[float, ...]]:
    """(whether it was one number, the numbers)."""
    given = as_python(by)
    single = not isinstance(given, Iterable) or isinstance(given, str)
    values = [as_python(each) for each in ([given] if single else given)]
    for each in values:
        right = isinstance(each, int | float) and not isinstance(each, bool) and math.isfinite(each)
        if not right or each == 0:
            raise CircuitDiscoveryError(f"by must be a number other than 0, or several, not {shown(each)}")
    if not values:
        raise CircuitDiscoveryError("by: there is no number")
    return single, tuple(float(each) for each in values)


def _where(model: Model, task: Task, position: Any) -> Tensor:
    """[examples, longest]: whether a token is meant."""
    places = places_of(model, task, "all" if position is None else position)
    return marked(places.rows, places.positions, (len(task), max(map(len, places.prompts))))


def _largest(model: Model, task: Task, unit: Unit, batch_size: int | None) -> float:
    """A unit's largest activation by magnitude, at any token but the first."""
    largest = 0.0
    for _, tokens in batches(model, [each.clean for each in task.examples], batch_size):
        if tokens.shape[1] > 1:
            values = unit.value(unit.read.of(forward(model, tokens, (unit.read.place,))[unit.read.place]))
            largest = max(largest, float(values[:, 1:].abs().max()))
    return largest


def _random(model: Model, unit: Unit, draws: int, seed: int) -> list[tuple[Site, Tensor]]:
    """Directions as long as the unit's, where it is added or, before an output matrix, where that writes."""
    site, direction = unit.written, unit.direction
    if site.place.endswith(_BEFORE_OUTPUT):
        assert unit.inner is not None
        node = site.place.partition(".")[0]
        site, direction = Site(f"{node}.inner", f"{node}.inner"), unit.inner
    noise = torch.randn(draws, len(direction), generator=torch.Generator().manual_seed(seed))
    noise = noise * (direction.norm().cpu() / noise.norm(dim=1, keepdim=True))
    return [(site, each) for each in noise.to(direction)]


def _added(site: Site, vector: Tensor, where: Tensor) -> Callable[[Tensor], Tensor]:
    """The edit of a place that adds a vector to one of its sites, where a [n, T] mask says."""

    def edit(x: Tensor) -> Tensor:
        add = where.to(x.device)[..., None] * vector.to(x.device)
        if site.unit is None:
            return x + add.to(x.dtype)
        x = x.clone()
        site.of(x).add_(add)
        return x

    return edit


@dataclass(frozen=True)
class _Run:
    """A model on a task's clean prompts, under edits."""

    model: Model
    task: Task
    metric: BoundMetric

    @torch.no_grad()
    def all(
        self,
        added: Sequence[tuple[Site, Tensor]],
        amounts: Sequence[float],
        mask: Tensor,
        batch_size: int | None,
        progress: Progress | None,
    ) -> tuple[np.ndarray, np.ndarray, Tensor]:
        """([examples] the metric of a plain run, [directions, amounts, examples] that of each steered one,
        [directions, amounts, vocabulary] the mean change of log-probabilities)."""
        count, vocabulary = len(self.task), self.model.vocab_size
        plain, values = np.zeros(count), np.zeros((len(added), len(amounts), count))
        rises = torch.zeros(len(added), len(amounts), vocabulary, device=self.model.device)
        done = 0
        for batch in answer_batches(self.model, self.task, batch_size):
            rows = batch.rows.cpu().numpy()
            where = mask[rows, : batch.clean.shape[1]]
            before, plain[rows] = self._once(batch, {})
            for i, (site, vector) in enumerate(added):
                for j, amount in enumerate(amounts):
                    edits = {site.place: _added(site, amount * vector, where)}
                    after, values[i, j, rows] = self._once(batch, edits)
                    rises[i, j] += (after - before).sum(0).to(rises)
            done += len(rows)
            if progress is not None:
                progress(done, count)
        return plain, values, rises / count

    def _once(
        self, batch: Batch, edits: Mapping[str, Callable[[Tensor], Tensor]]
    ) -> tuple[Tensor, np.ndarray]:
        """([n, V] log-probabilities at the answers' positions, [n] the metric)."""
        logits = answer_logits(self.model, batch, edits)
        return precise(logits).log_softmax(-1), self.metric(logits, batch).double().cpu().numpy()
