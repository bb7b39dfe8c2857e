"""Direct logit attribution of units: what each writes at a task's answer onto the logit difference."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from circuitdiscovery.features.forward import forward
from circuitdiscovery.features.prompts import batches
from circuitdiscovery.features.units import Unit, norm_after
from circuitdiscovery.measure import intervals
from circuitdiscovery.measure.estimates import Estimate, drawn
from circuitdiscovery.model.model import Model
from circuitdiscovery.task.example import Example
from circuitdiscovery.task.task import Task


def attributed(
    model: Model, task: Task, units: Sequence[Unit], batch_size: int | None, seed: int
) -> list[Estimate | None]:
    """Of each unit the mean over a task's clean prompts, with an interval; None where nothing that stands at
    its site is added to the stream.

    Elhage et al. 2021 ("A Mathematical Framework for Transformer Circuits"): what the unit writes at the
    answer's position, through the last norm with its scale as it is in that run, onto the mean unembedding of
    the right answers less that of the wrong ones. A norm that follows the node is passed in the same way.
    """
    values = np.zeros((len(units), len(task)))
    norms = [norm_after(model, unit.written.place) for unit in units]
    inner = [f"{unit.written.place.partition('.')[0]}.inner" for unit in units]  # what the norms read
    last = f"resid{model.n_layers}"
    places = {last, *(unit.read.place for unit in units)}
    places |= {place for place, norm in zip(inner, norms, strict=True) if norm is not None}
    directions = torch.stack([direction_of(model, each) for each in task.examples])
    for rows, tokens in batches(model, [each.clean for each in task.examples], batch_size):
        found, n = forward(model, tokens, places), torch.arange(len(rows), device=model.device)
        ends = torch.tensor([task.examples[row].position for row in rows], device=model.device)
        for i, (unit, norm) in enumerate(zip(units, norms, strict=True)):
            if unit.inner is None:
                continue
            active = unit.value(unit.read.of(found[unit.read.place]))[n, ends]
            term = active[:, None] * unit.inner
            if norm is not None:
                term = norm.share(found[inner[i]][n, ends], term)
            term = model.final_norm.share(found[last][n, ends] / model.stream_unit, term)
            products = (term * directions[rows]).sum(-1)
            values[i, rows] = products.double().cpu().numpy()
    means = intervals.means(values, drawn(len(task), seed))
    return [None if unit.inner is None else mean for unit, mean in zip(units, means, strict=True)]


def direction_of(model: Model, example: Example) -> Tensor:
    """[D]: the direction of the logit difference in the normalised stream."""
    return difference(example, model.logit_directions)


def difference(example: Example, of: Callable[[Sequence[int]], Tensor]) -> Tensor:
    """The mean of what there is of each right answer, less that of the wrong ones."""
    correct, incorrect = (of(answers) for answers in (example.correct, example.incorrect))
    return correct.mean(0) - incorrect.mean(0) if len(incorrect) else correct.mean(0)
