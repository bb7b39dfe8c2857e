"""`top_activations`: what makes a unit active, in texts or on a task's prompts, and what it writes.

The texts stream by: of each unit the highest activations, a random few of every height and a histogram are
kept (highest.py), so that ten million tokens need no more memory than ten thousand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from itertools import islice
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuitdiscovery.arguments import guarded
from circuitdiscovery.engine.setup import Progress
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.features.attribution import attributed
from circuitdiscovery.features.dictionary import Feature
from circuitdiscovery.features.forward import Site, forward
from circuitdiscovery.features.highest import Batch, Highest
from circuitdiscovery.features.prompts import batches, prompts_of
from circuitdiscovery.features.snippets import Bin, Texts, TopActivations, written
from circuitdiscovery.features.units import Unit, unit_of
from circuitdiscovery.measure.estimates import Estimate
from circuitdiscovery.model.model import Model
from circuitdiscovery.task.task import Task

BINS = 10  # of the range of activations that are shown, at most
EACH = 5  # snippets of each
_AT_ONCE = 2**10  # prompts that are read at once


@guarded
def top_activations(
    model: Model,
    unit: Any,
    texts_or_task: Any,
    *,
    top: int = 20,
    at: str | None = None,
    window: int = 16,
    first: bool = False,
    batch_size: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Any:
    """Find what makes a unit active, and what it writes.

    Args:
        model: a loaded model.
        unit: a neuron such as "m2/n301"; a feature of a dictionary, `sae[17]`; a vector with `at`, of which
            the activation's part along it counts; or a list of them, which take one pass together.
        texts_or_task: texts (a list, or anything that gives one after the other), rows
            of token ids, or a task, whose clean prompts are meant.
        top: how many of the highest snippets, and how many random ones. Of tokens that are at most `window`
            apart one is kept, and of prompts that begin alike up to the token one.
        at: a vector's site, such as "resid5", or "a1.h3" for what a head writes.
        window: how many tokens of a snippet stand on each side.
        first: whether the first token of a prompt counts. Most units are unlike themselves there.
        batch_size: how many prompts are run at once; by default about eight thousand tokens.
        seed: of what is drawn at random.
        progress: called with (prompts done, prompts in all, or done so far where that is not known).

    Returns:
        `.snippets`, `.quantiles`, `.histogram`, `.promoted`, ...; of a list of units a list.

    Raises:
        CircuitDiscoveryError: no such unit; an unknown token; a text without tokens; no token that counts;
            activations that are not finite.

    >>> import circuitdiscovery as cd
    >>> model = cd.load_model("toy")
    >>> task = cd.load_task("subject_verb_agreement", model, examples=16)
    >>> found = cd.features.top_activations(model, "m1/n3", task, top=3)
    >>> found.snippets[0].activation == found.high
    True
    """
    for name, value, least in (("top", top, 1), ("window", window, 0)):
        if value < least:
            raise CircuitDiscoveryError(f"{name} must be a whole number of at least {least}, not {value}")
    numbers = isinstance(unit, list | tuple) and unit and all(isinstance(each, Real) for each in unit)
    several = isinstance(unit, list | tuple) and not numbers
    asked = list(unit) if several else [unit]
    if not asked:
        raise CircuitDiscoveryError("unit is an empty list")
    units = [
        unit_of(model, each, None if isinstance(each, str | Feature) and several else at) for each in asked
    ]
    readers, kept = _readers(asked, units), [Highest(top, window, EACH) for _ in units]
    done = 0
    for start, rows in _parts(model, texts_or_task):
        draw = np.random.default_rng((seed, start))
        chance = [draw.random((2, len(row))) for row in rows]
        for some, tokens in batches(model, rows, batch_size):
            chances, ids = np.stack([chance[row] for row in some], 1), tokens.cpu().numpy()
            for which, values in _values(model, tokens, readers):
                _check(values, units[which])
                kept[which].add(Batch([start + row for row in some], ids, values, chances, 0 if first else 1))
            done += len(some)
            if progress is not None:
                progress(done, _count(texts_or_task, start + len(rows)))
    if not kept[0].tokens:
        raise CircuitDiscoveryError("texts_or_task has no token but the first of each; first=True keeps it")
    task = texts_or_task if isinstance(texts_or_task, Task) else None
    direct = [None] * len(units) if task is None else attributed(model, task, units, batch_size, seed)
    texts = Texts(model)
    found = [
        _found(model, each, own, task, done, texts, part)
        for each, own, part in zip(units, kept, direct, strict=True)
    ]
    return found if several else found[0]


# ------------------------------------------------------------------ the units' values


@dataclass(frozen=True)
class _Reader:
    """Units that are computed of one site together.

    Args:
        site: which.
        which: their numbers.
        value: what stands at the site -> [units, n, T].
    """

    site: Site
    which: tuple[int, ...]
    value: Callable[[Tensor], Tensor]


def _readers(asked: Sequence[Any], units: Sequence[Unit]) -> list[_Reader]:
    """Features of one dictionary are computed together."""
    together: dict[int, list[int]] = {}
    for i, each in enumerate(asked):
        together.setdefault(id(each.dictionary) if isinstance(each, Feature) else -i - 1, []).append(i)
    return [_reader(asked, units, which) for which in together.values()]


def _reader(asked: Sequence[Any], units: Sequence[Unit], which: Sequence[int]) -> _Reader:
    first = units[which[0]]
    if len(which) == 1:
        return _Reader(first.read, tuple(which), lambda x: first.value(x)[None])
    dictionary, numbers = asked[which[0]].dictionary, torch.tensor([asked[i].number for i in which])

    def value(x: Tensor) -> Tensor:
        return dictionary.to(x.device).encode_some(x, numbers.to(x.device))

    return _Reader(first.read, tuple(which), value)


def _values(model: Model, tokens: Tensor, readers: Sequence[_Reader]) -> Iterator[tuple[int, np.ndarray]]:
    """(which unit, its values [n, T]) of each, where [n, T] tokens are run."""
    places = forward(model, tokens, {each.site.place for each in readers})
    for each in readers:
        values = each.value(each.site.of(places[each.site.place])).double().cpu().numpy()
        yield from zip(each.which, values, strict=True)


def _check(values: np.ndarray, unit: Unit) -> None:
    if not np.isfinite(values).all():
        raise CircuitDiscoveryError(f"activations of {unit.name} are not finite numbers")


def _parts(model: Model, given: Any) -> Iterator[tuple[int, Sequence[tuple[int, ...]]]]:
    """(the first one's number, token ids) of some prompts at a time."""
    streams = isinstance(given, Iterable) and not isinstance(given, Task | str | bytes | Mapping | Sized)
    lists = isinstance(given, list | tuple) and not all(type(each) is int for each in given)
    if not streams and not lists:
        yield 0, prompts_of(model, given, "texts_or_task").rows
        return
    start, rest = 0, iter(given)
    while (some := list(islice(rest, _AT_ONCE))) or not start:
        yield start, prompts_of(model, some, "texts_or_task", start).rows
        start += len(some)


def _count(given: Any, seen: int) -> int:
    """How many prompts there are, as far as that is known."""
    return max(seen, len(given)) if isinstance(given, list | tuple) else seen


def _found(
    model: Model,
    unit: Unit,
    kept: Highest,
    task: Task | None,
    prompts: int,
    texts: Texts,
    direct: Estimate | None,
) -> TopActivations:
    promoted, suppressed = ((), ()) if unit.stream is None else written(model, unit.stream)
    edges, counts = kept.histogram()
    return TopActivations(
        unit=unit.name,
        model=model.name,
        task=None if task is None else task.title,
        prompts=prompts,
        tokens=kept.tokens,
        zero=kept.zeros / kept.tokens,
        low=kept.low,
        high=kept.high,
        snippets=tuple(texts.snippet(each) for each, _ in kept.highest),
        random=tuple(texts.snippet(each) for _, each in kept.random),
        quantiles=tuple(
            Bin(low, high, count, tuple(map(texts.snippet, some)))
            for low, high, count, some in kept.bins(BINS)
        ),
        edges=edges,
        counts=counts,
        promoted=promoted,
        suppressed=suppressed,
        attribution=direct,
    )
