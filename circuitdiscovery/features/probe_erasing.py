"""What a task loses where a probe's directions are taken out of a site: whether what the probe reads is used.

Amnesic probing (Elazar et al. 2021, arXiv 2006.00995): remove a property from the representation and see
whether the behaviour changes. What is removed here moves to its mean, not to 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuitdiscovery.engine.metrics import bind
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.features.answers import answer_batches, answer_logits, marked
from circuitdiscovery.features.forward import Site, device_of, site_of
from circuitdiscovery.features.places import places_of
from circuitdiscovery.features.probing import Probe
from circuitdiscovery.measure import intervals
from circuitdiscovery.measure.estimates import Estimate, drawn
from circuitdiscovery.model.model import Model
from circuitdiscovery.task.task import Task
from circuitdiscovery.values import Reported, part_in_words


@dataclass(frozen=True, repr=False)
class Erasure(Reported):
    """What erasing a probe's directions does to a task (see `Probe.erase`), with 95% intervals over examples.

    Args:
        site, metric: where, and what is measured.
        examples: how many; `part` says which.
        part: "held_out" or "examples".
        dimensions: how many are taken out of the site's d.
        plain: the metric without erasing.
        effect: erased - plain.
        random: the same for random directions of equal number, the mean over the draws.
        random_largest: the largest |effect| of a draw.
        left: the accuracy of a new probe that is fitted to what is left, on the held-out rows.
    """

    site: str
    metric: str
    examples: int
    part: str
    dimensions: int
    plain: Estimate
    effect: Estimate
    random: Estimate
    random_largest: float
    left: float

    def _lines(self) -> Iterator[tuple[str, str]]:
        some = "1 dimension" if self.dimensions == 1 else f"{self.dimensions} dimensions"
        yield "erased", f"{some} of {self.site}, after which a new probe has accuracy {self.left:.3g}"
        yield "measured", f"{self.metric} of {self.examples} {part_in_words(self.part)}: {self.plain}"
        yield "effect", str(self.effect)
        yield "random", f"{self.random}, at most {self.random_largest:.3g}"


def erase(
    probe: Probe,
    model: Model,
    task: Task,
    position: Any,
    metric: Any,
    draws: int,
    batch_size: int | None,
    seed: int,
) -> Erasure:
    """See `Probe.erase`."""
    if probe.site is None:
        raise CircuitDiscoveryError("a probe of a matrix has no site: collect features.activations for it")
    if probe.model != model.digest:
        raise CircuitDiscoveryError(f"the probe is of another model than {model.name}")
    site, measured = site_of(model, probe.site), task.held_out or task
    bound = bind(metric or task.metric, model, measured)
    where = device_of(model, site.place)
    basis, mean = (each.to(where, model.dtype) for each in probe.erased())
    generator = torch.Generator().manual_seed(seed)
    bases = [basis] + [
        torch.linalg.qr(torch.randn(len(mean), len(basis), generator=generator))[0].T.to(basis)
        for _ in range(draws)
    ]
    places = places_of(model, measured, position)
    probed = marked(places.rows, places.positions, (len(measured), max(map(len, places.prompts))))
    values = np.zeros((draws + 2, len(measured)))
    for batch in answer_batches(model, measured, batch_size):
        there = probed[batch.rows.cpu(), : batch.clean.shape[1]].to(where)
        for figure, some in enumerate([None, *bases]):
            edits = {} if some is None else {site.place: _edit(site, there, some, mean)}
            answers = answer_logits(model, batch, edits)
            values[figure, batch.rows.cpu().numpy()] = bound(answers, batch).double().cpu().numpy()
    plain, changes = values[0], values[1:] - values[0]
    resamples = drawn(len(measured), seed)
    return Erasure(
        probe.site,
        bound.name,
        len(measured),
        "examples" if task.held_out is None else "held_out",
        len(basis),
        intervals.mean(plain, resamples, binary=bound.share),
        intervals.difference(values[1], plain, resamples, binary=bound.share),
        intervals.mean(changes[1:].mean(0), resamples, binary=False),
        float(np.abs(changes[1:].mean(1)).max()),
        probe.left(),
    )


def _edit(site: Site, there: Tensor, basis: Tensor, mean: Tensor) -> Any:
    """An edit of the site's place: x - B'B (x - mean) where it is probed."""

    def edit(values: Tensor) -> Tensor:
        x = site.of(values)
        wide = x[..., None] if x.dim() == 2 else x
        new = torch.where(there[..., None], wide - (wide - mean) @ basis.T @ basis, wide)
        if site.unit is None:
            return new
        values = values.clone()
        site.of(values).copy_(new.view_as(x))
        return values

    return edit
