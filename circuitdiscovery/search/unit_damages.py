"""The damage of each unit of some MLPs, their neurons or a dictionary's features, to first order.

Attribution patching of nodes (Syed et al. 2023, arXiv 2310.10348, equation 2, for a unit instead of an edge):
the damage of a unit is -(replacement - activation) . gradient. The gradient at a neuron's activation is that
at what its MLP writes times its column of W_out, so that all neurons of a layer take one product. With
integrated gradients (Hanna et al. 2024, arXiv 2403.17806, equation 3) the gradient is the mean over the line
between the two prompts' embeddings.

Shapes: N examples, T positions or 1 (the answer's), D d_model, U neurons (or features) of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuitdiscovery.engine import distributed
from circuitdiscovery.engine.memory import Need, along_a_line
from circuitdiscovery.engine.metrics import bind
from circuitdiscovery.engine.setup import Progress, Setup
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.graph.nodes import mlp_name
from circuitdiscovery.model.block import Block
from circuitdiscovery.model.model import Model
from circuitdiscovery.model.run import Reading, Run, embed, plain_run
from circuitdiscovery.model.units import unit_of
from circuitdiscovery.task.batch import Batch
from circuitdiscovery.task.task import Task

ABLATIONS = ("resample", "zero")
_STEPS = 5


@dataclass(frozen=True)
class Kind:
    """Numbers times vectors that an MLP's output is made of: its neurons, or features of a dictionary.

    Args:
        count: how many of a block.
        values: (block, what the MLP reads, what it writes, [N, T, D]) -> [N, T, U].
        back: (block, the gradient at what the MLP writes, [N, T, D]) -> that at the numbers, [N, T, U].
        before_norm: whether what the MLP writes is meant before a norm of it.
    """

    count: Callable[[Block], int]
    values: Callable[[Block, Reading, Tensor], Tensor]
    back: Callable[[Block, Tensor], Tensor]
    before_norm: bool


def _back(block: Block, gradient: Tensor) -> Tensor:
    assert block.W_out is not None
    return gradient @ block.W_out


NEURONS = Kind(
    lambda block: block.d_mlp, lambda block, read, _: block.hidden(read.values), _back, before_norm=True
)


def features_of(dictionary: Any, stream_unit: float) -> Kind:
    """The features of a dictionary of what an MLP writes, or of a transcoder of it, in a model of that
    `stream_unit`."""
    unit = unit_of(dictionary, stream_unit)

    def values(block: Block, read: Reading, written: Tensor) -> Tensor:
        given = {
            "output": lambda: written if unit == 1.0 else written * unit,
            "normed": lambda: read.values,
            "normed without gain": lambda: block.norm2.bare(read.stream),
            "hook_normalized": lambda: block.norm2.hooked(read.stream),
            "stream": lambda: read.stream * stream_unit,
        }[dictionary.reads]
        return dictionary.encode(given())

    def back(_: Block, gradient: Tensor) -> Tensor:
        gradient = gradient.to(dictionary.vectors.dtype)
        return (gradient if unit == 1.0 else gradient / unit) @ dictionary.vectors.T

    return Kind(lambda _: dictionary.width, values, back, before_norm=dictionary.inner)


def need_of(kinds: Mapping[int, Kind]) -> Callable[[Model, Graph, Task], Need]:
    """What `unit_damages` holds of an example: a run with its gradient, the units' numbers on both prompts,
    and of one layer what these, or their damages, are made of."""

    def need(model: Model, _: Graph, task: Task) -> Need:
        counts = [kind.count(model.blocks[layer]) for layer, kind in kinds.items()]
        longest = max(len(example.clean) for example in task.examples)
        numbers = longest * (2 * sum(counts) + 3 * max(counts)) * max(4, model.W_E.element_size())
        run = along_a_line(model, model.graph, task, 1)
        return replace(run, each=run.each + numbers)

    return need


def unit_damages(
    setup: Setup,
    kinds: Mapping[int, Kind],
    points: Sequence[float],
    progress: Progress | None = None,
    *,
    only: Mapping[int, Sequence[int]] | None = None,
) -> dict[int, np.ndarray]:
    """layer -> [examples, U]: the damage of ablating each unit of some layers' MLPs, to first order.

    Args:
        setup: the examples, the metric (see `chosen_by`), and the ablation: `resample` or `zero`.
        kinds: layer -> its units.
        points: where on the line the gradient is taken: 0 is the corrupted prompt's embedding, 1 the clean
            one's.
        progress: called with (examples done, examples in all).
        only: layer -> the units that are wanted, in this order; by default all.
    """
    blocks = setup.model.blocks
    some = only or {layer: range(kind.count(blocks[layer])) for layer, kind in kinds.items()}
    found = {layer: np.zeros((len(setup.task), len(units))) for layer, units in some.items()}
    for rows, damages in _by_batch(setup, kinds, points, progress):
        for layer, units in some.items():
            found[layer][rows] = damages[layer][:, units]
    return _whole(setup, found)


def mean_damages(
    setup: Setup, kinds: Mapping[int, Kind], points: Sequence[float], progress: Progress | None = None
) -> dict[int, np.ndarray]:
    """layer -> [U]: the means of `unit_damages` over the examples, of which no more is held."""
    found = {layer: np.zeros(kind.count(setup.model.blocks[layer])) for layer, kind in kinds.items()}
    for _, damages in _by_batch(setup, kinds, points, progress):
        for layer, each in damages.items():
            found[layer] += each.sum(0) / len(setup.task)
    return _whole(setup, found)


def _by_batch(
    setup: Setup, kinds: Mapping[int, Kind], points: Sequence[float], progress: Progress | None
) -> Iterator[tuple[np.ndarray, dict[int, np.ndarray]]]:
    """([N] rows of the task, layer -> [N, U] damages) of this process's examples."""
    if setup.ablation not in ABLATIONS:
        raise CircuitDiscoveryError(
            f"units are ablated by {' or '.join(ABLATIONS)}, not by {setup.ablation_name!r}"
        )
    share, done = len(distributed.share(setup.task)), 0
    sign = -1.0 if setup.metric.higher_is_better else 1.0
    for batch in setup.batches:
        damages = _of_batch(setup, batch, kinds, points).items()
        yield (
            batch.rows.cpu().numpy(),
            {layer: each.double().cpu().numpy() * (sign / len(points)) for layer, each in damages},
        )
        done += len(batch)
        if progress:
            progress(done, share)


def _whole(setup: Setup, found: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
    """The sums over the processes."""
    whole = {layer: distributed.total(torch.from_numpy(each)).numpy() for layer, each in found.items()}
    for layer, each in whole.items():
        if not np.isfinite(each).all():
            raise CircuitDiscoveryError(
                f"the gradients of task {setup.task.title} at {mlp_name(layer)} are not finite numbers"
            )
    return whole


def unit_values(model: Model, kinds: Mapping[int, Kind], run: Run) -> dict[int, Tensor]:
    """layer -> [B, T, U]: the numbers of the units in a run."""
    read = {each.readers.layer: each for each in run.readings if each.readers.letter == "m"}
    return {
        layer: kind.values(model.blocks[layer], read[layer], run.mlps[layer][not kind.before_norm])
        for layer, kind in kinds.items()
    }


def _of_batch(
    setup: Setup, batch: Batch, kinds: Mapping[int, Kind], points: Sequence[float]
) -> dict[int, Tensor]:
    """layer -> [B, U], summed over the points."""
    model = setup.model
    clean, other = embed(model, batch.clean), embed(model, batch.corrupted)

    def plain(start: Tensor) -> dict[int, Tensor]:
        with torch.no_grad():
            return unit_values(model, kinds, plain_run(model, start, batch.position, keep_readings=True))

    replaced = None if setup.ablation == "zero" else plain(other)
    own = None if points[0] == 1.0 else plain(clean)  # else the run that has the gradient
    found: dict[int, Tensor] = {}
    for weight in points:
        with torch.enable_grad():
            start = (other + weight * (clean - other)).detach().requires_grad_()
            run = plain_run(model, start, batch.position, keep_readings=True)
            measured = setup.metric(run.logits, batch).sum()
            if not measured.requires_grad or setup.metric.share:
                raise CircuitDiscoveryError(
                    f"metric {setup.metric.name!r} has no gradient, by which neurons and features are "
                    "ranked; use another metric"
                )
            at = [run.mlps[layer][not kind.before_norm] for layer, kind in kinds.items()]
            gradients = torch.autograd.grad(measured, at)
        with torch.no_grad():
            own = unit_values(model, kinds, run) if own is None else own
        for (layer, kind), gradient in zip(kinds.items(), gradients, strict=True):
            change = (0.0 if replaced is None else replaced[layer]) - own[layer]
            product = (kind.back(model.blocks[layer], gradient) * change).sum(1)
            found[layer] = found[layer] + product if layer in found else product
    return found


def chosen_by(setup: Setup) -> Setup:
    """What units are chosen by: the setup's metric, but for accuracy, which has no gradient, the logit
    difference."""
    if not setup.metric.share:
        return setup
    return replace(setup, metric=bind("logit_diff", setup.model, setup.task))


def line(method: str, steps: int = _STEPS) -> tuple[float, ...]:
    """The points of the line at which a method takes gradients."""
    return (1.0,) if method == "eap" else tuple((i + 0.5) / steps for i in range(steps))
