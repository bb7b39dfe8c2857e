"""What a model says at a task's answers while some of its values are edited."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from circuitdiscovery.features.forward import forward
from circuitdiscovery.features.prompts import at_once
from circuitdiscovery.features.units import logits_of
from circuitdiscovery.model.model import Model
from circuitdiscovery.model.run import at_position
from circuitdiscovery.task.batch import Batch
from circuitdiscovery.task.task import Task


def answer_logits(model: Model, batch: Batch, edits: Mapping[str, Callable[[Tensor], Tensor]]) -> Tensor:
    """[B, vocabulary]: the logits at the answers' positions alone, of a batch's clean prompts."""
    last = f"resid{model.n_layers}"
    return logits_of(model, at_position(forward(model, batch.clean, (last,), edits)[last], batch.position))


def answer_batches(model: Model, task: Task, batch_size: int | None) -> Iterator[Batch]:
    """A task's examples on the model's device, of about as many tokens at once as other runs have."""
    longest = max(len(example.clean) for example in task.examples)
    for batch in task.batches(batch_size or at_once(model, longest)):
        yield batch.to(model.device)


def marked(rows: Tensor, positions: Tensor, shape: tuple[int, int]) -> Tensor:
    """[examples, longest] bool: where some places are, by their rows and positions."""
    found = torch.zeros(shape, dtype=torch.bool)
    found[rows, positions] = True
    return found
