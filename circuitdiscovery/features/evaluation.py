"""`evaluate_sae`: how well a dictionary writes what it is of, and what a model loses where it does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuitdiscovery.arguments import guarded
from circuitdiscovery.engine.metrics import bind, kl_from
from circuitdiscovery.errors import CircuitDiscoveryError, shown
from circuitdiscovery.features.collecting import Activations, as_activations
from circuitdiscovery.features.dictionary import Dictionary
from circuitdiscovery.features.forward import INPUTS, LOGITS, forward, site_of
from circuitdiscovery.features.prompts import batches
from circuitdiscovery.measure import intervals
from circuitdiscovery.measure.estimates import Estimate, weights
from circuitdiscovery.model.model import Model
from circuitdiscovery.task.task import Task
from circuitdiscovery.values import Value

_LOGITS_AT_ONCE = 2**25  # numbers
_PLACE = {reads: place for place, reads in INPUTS.items()}
Edit = Callable[[Tensor], Tensor]


@dataclass(frozen=True, repr=False)
class DictionaryQuality(Value):
    """How good a dictionary is (see `evaluate_sae`).

    x is what it is of, x' what it writes, E the mean over the activations, m the mean of x.

    Args:
        rows: how many activations.
        explained_variance: 1 - E|x - x'|^2 / E|x - m|^2.
        l0: how many features are active, on average.
        dead: the share of the features that are active nowhere.
        shrinkage: 1 - g, where (x' - m) / g is nearest to x - m on average: g = E|x' - m|^2 / E (x' - m)(x -
            m) (Rajamanoharan et al. 2024a, arXiv 2404.16014, there of what is not centred). It
            is above 0 where features are too small, as an L1 penalty makes them (Wright & Sharkey 2024).
        kl_reconstruction, kl_mean: KL(model || model with x' in place of x), and with m in its place,
            averaged over the activations' positions; None without a model.
        loss_recovered: 1 - kl_reconstruction / kl_mean.
        behaviour: (F(x') - F(m)) / (F(x) - F(m)), where F is the task's metric of the model with that in
            place of x at every position but the first: what is kept of the behaviour where the error is
            ablated; None without a task.
    """

    rows: int
    explained_variance: float
    l0: float
    dead: float
    shrinkage: float
    kl_reconstruction: Estimate | None = None
    kl_mean: Estimate | None = None
    loss_recovered: float | None = None
    behaviour: Estimate | None = None


@guarded
def evaluate_sae(
    sae: Any,
    acts: Any,
    *,
    target: Any = None,
    model: Model | None = None,
    task: Task | None = None,
    batch_size: int | None = None,
    seed: int = 0,
) -> DictionaryQuality:
    """Measure a dictionary on activations, and what a model and a behaviour lose by it.

    Take other texts than it was trained on.

    Args:
        sae: a dictionary, as `train_sae` and `load_sae` give.
        acts: what it reads: what `activations` gives, or a matrix [rows, d].
        target: what it writes, row for row: of a transcoder.
        model: to measure loss recovered on the prompts that the activations are of.
        task: with a model, to measure what is kept of the behaviour.
        batch_size: how many prompts are run at once.
        seed: of the bootstrap for the intervals.

    Returns:
        The figures.

    Raises:
        CircuitDiscoveryError: another width or site; a model without the activations' prompts; a task without
            a model; no target for a transcoder.

    >>> import circuitdiscovery as cd, torch
    >>> acts = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    >>> sae = cd.features.train_sae(acts, n=16, k=4, steps=50)
    >>> cd.features.evaluate_sae(sae, acts).l0 <= 4
    True
    """
    if not isinstance(sae, Dictionary):
        raise CircuitDiscoveryError(
            f"sae must be what features.train_sae or features.load_sae gives, not {shown(sae)}"
        )
    read = as_activations(acts, "acts")
    if sae.transcoder and target is None:
        raise CircuitDiscoveryError("a transcoder is measured on what it writes, too: give target=")
    written = read if target is None else as_activations(target, "target")
    for what, found, wanted in (("reads", read, sae.d_in), ("writes", written, sae.d_out)):
        if found.d != wanted:
            raise CircuitDiscoveryError(
                f"the dictionary {what} activations of width {wanted}, but these have {found.d}"
            )
    if len(read) != len(written):
        raise CircuitDiscoveryError(f"target has {len(written):,} rows, acts have {len(read):,}")
    if task is not None and model is None:
        raise CircuitDiscoveryError("task= needs model=, which is run on its prompts")
    figures, mean = _figures(sae, read, written)
    more: dict[str, Any] = {}
    if model is not None:
        if sae.site is None:
            raise CircuitDiscoveryError("the dictionary does not say where it stands: no model can be run")
        if not read.prompts:
            raise CircuitDiscoveryError(
                "acts are a matrix, without prompts to run: collect them by features.activations"
            )
        more = _loss(sae, read, mean, model, batch_size, seed)
        if task is not None:
            more["behaviour"] = _behaviour(sae, mean, model, task, batch_size, seed)
    return DictionaryQuality(len(read), **figures, **more)


def _figures(sae: Dictionary, read: Activations, written: Activations) -> tuple[dict[str, float], Tensor]:
    """(what needs no model, the mean of what is to be written)."""
    mean = sum((chunk.double().sum(0) for chunk in written.chunks()), torch.zeros(written.d).double())
    mean = mean / len(written)
    error = around = own = both = active = 0.0
    ever = torch.zeros(sae.width, dtype=torch.bool)
    for x, y in zip(read.chunks(), written.chunks(), strict=True):
        numbers = sae.encode(x.to(sae.W_enc.dtype))
        made = sae.decode(numbers, x.to(sae.W_enc.dtype)).double()
        error += float((y - made).square().sum())
        around += float((y - mean).square().sum())
        own += float((made - mean).square().sum())
        both += float(((made - mean) * (y - mean)).sum())
        active += float((numbers != 0).sum())
        ever |= (numbers != 0).any(0)
    return {
        "explained_variance": 1 - error / around if around else float("nan"),
        "l0": active / len(read),
        "dead": 1 - float(ever.float().mean()),
        "shrinkage": 1 - own / both if both else float("nan"),
    }, mean


# ------------------------------------------------------------------- in a model


def places_of(sae: Dictionary, model: Model) -> tuple[str | None, str]:
    """(the place that a transcoder reads, the place that is written)."""
    assert sae.site is not None
    site = site_of(model, sae.site + (".inner" if sae.inner and "." not in sae.site else ""))
    return (f"{sae.site}.{_PLACE[sae.reads]}" if sae.transcoder else None), site.place


def reconstructed(sae: Dictionary, model: Model, kept: Tensor) -> dict[str, Edit]:
    """The edits of a run that put what a dictionary writes in its site's place.

    Args:
        sae: of a site of the model.
        model: which.
        kept: [n, T], where the site stays as it is.
    """
    read, place = places_of(sae, model)
    own, seen = sae.to(model.device, str(model.dtype).removeprefix("torch.")), list[Tensor]()

    def remember(x: Tensor) -> Tensor:
        seen[:] = [x]
        return x

    def edit(x: Tensor) -> Tensor:
        given = seen[0] if read is not None else x
        return torch.where(kept[..., None], x, own.decode(own.encode(given), given))

    return {place: edit} if read is None else {read: remember, place: edit}


def _averaged(sae: Dictionary, model: Model, mean: Tensor, kept: Tensor) -> dict[str, Edit]:
    """The edits that put the mean there."""
    value = mean.to(model.device, model.dtype)
    return {places_of(sae, model)[1]: lambda x: torch.where(kept[..., None], x, value)}


@torch.no_grad()
def _loss(
    sae: Dictionary, acts: Activations, mean: Tensor, model: Model, batch_size: int | None, seed: int
) -> dict[str, Any]:
    """KL at the activations' positions, with what the dictionary writes and with the mean there."""
    if acts.model != model.digest:
        raise CircuitDiscoveryError(f"acts are of another model than {model.name}")
    inside = [set[int]() for _ in acts.prompts]
    for row, position in zip(acts.rows.tolist(), acts.positions.tolist(), strict=True):
        inside[row].add(position)
    sums, counts = np.zeros((2, len(acts.prompts))), np.array([len(each) for each in inside])
    for rows, tokens in batches(acts.prompts, batch_size, model.device, _LOGITS_AT_ONCE // model.vocab_size):
        kept = torch.ones(tokens.shape, dtype=torch.bool, device=model.device)
        for i, row in enumerate(rows):
            kept[i, sorted(inside[row])] = False
        plain = forward(model, tokens, (LOGITS,))[LOGITS]
        for figure, edits in enumerate((reconstructed(sae, model, kept), _averaged(sae, model, mean, kept))):
            divergence = kl_from(plain, forward(model, tokens, (LOGITS,), edits)[LOGITS])
            sums[figure, rows] = torch.where(kept, 0.0, divergence).sum(-1).double().cpu().numpy()
    some = counts > 0
    draws = weights(int(some.sum()), seed)
    each = [intervals.ratio(row[some], counts[some], draws) for row in sums]
    recovered = 1 - float(each[0]) / float(each[1]) if each[1] else None
    return {"kl_reconstruction": each[0], "kl_mean": each[1], "loss_recovered": recovered}


@torch.no_grad()
def _behaviour(
    sae: Dictionary, mean: Tensor, model: Model, task: Task, batch_size: int | None, seed: int
) -> Estimate:
    """What is kept of a task's metric, of what the mean takes away."""
    metric = bind(task.metric, model, task)
    values = np.zeros((3, len(task)))
    longest = max(len(example.clean) for example in task.examples)
    fitting = max(1, _LOGITS_AT_ONCE // model.vocab_size // longest)
    for batch in task.batches(batch_size or fitting):
        batch = batch.to(model.device)
        kept = torch.zeros(batch.clean.shape, dtype=torch.bool, device=model.device)
        kept[:, 0] = True
        every: tuple[Mapping[str, Edit], ...] = (
            {},
            reconstructed(sae, model, kept),
            _averaged(sae, model, mean, kept),
        )
        for figure, edits in enumerate(every):
            logits = forward(model, batch.clean, (LOGITS,), edits)[LOGITS]
            answers = logits[torch.arange(len(batch), device=logits.device), batch.position]
            values[figure, batch.rows.numpy(force=True)] = metric(answers, batch).double().cpu().numpy()
    full, made, averaged = values
    return intervals.ratio(made - averaged, full - averaged, weights(len(task), seed))
