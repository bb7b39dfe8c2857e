"""Circuits on tasks: `run_circuit`, and the worlds (batch by batch) that searches and evaluation stand on."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from circuitdiscovery.arguments import guarded
from circuitdiscovery.circuit.circuit import Circuit
from circuitdiscovery.engine import distributed
from circuitdiscovery.engine.ablation import Ablation, Replacements, name_of, on_demand, run_sources
from circuitdiscovery.engine.fast import World
from circuitdiscovery.engine.finite import finite_logits
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.model.model import Model
from circuitdiscovery.model.run import embed, replaced_logits, run_tokens
from circuitdiscovery.names import canonical
from circuitdiscovery.task.batch import Batch
from circuitdiscovery.task.task import Task

Progress = Callable[[int, int], None]  # (done, total)
# of replacements held at once, where no batch size is asked for; more is no faster (benchmarks/speed.py)
_BATCH_BYTES = 2**27


def replacement_bytes(model: Model, tokens: int) -> int:
    """What the replacements of so many tokens take: everything that every source writes."""
    return len(model.graph.sources) * tokens * model.d_model * model.W_E.element_size()


def fitting(model: Model, task: Task) -> int:
    """How many examples are run at once where no batch size is asked for."""
    longest = max(len(example.clean) for example in task.examples)
    return max(1, _BATCH_BYTES // replacement_bytes(model, longest))


def batches(model: Model, task: Task, batch_size: int | None) -> Iterator[Batch]:
    """This process's share of a task in batches on the model's device, prompts of
    several lengths together where that is cheaper.

    Without a size, as many examples as keep the replacements in bounded memory.
    """
    task.check(model.vocab_size, model.n_positions)
    size = fitting(model, task) if batch_size is None else batch_size
    for batch in task.batches(size, distributed.share(task), run_tokens=run_tokens(model)):
        yield batch.to(model.device)


def worlds(
    model: Model,
    task: Task,
    graph: Graph,
    *,
    ablation: str | Ablation,
    direction: str = "noising",
    batch_size: int | None = None,
) -> Iterator[tuple[Batch, World]]:
    """Each batch of this process's share under an ablation; in a denoising world the mask is
    that of the edges that are *not* restored.
    """
    make = world_maker(model, task, graph, ablation=ablation, direction=direction)
    for batch in batches(model, task, batch_size):
        yield batch, make(batch)


def world_maker(
    model: Model, task: Task, graph: Graph, *, ablation: str | Ablation, direction: str = "noising"
) -> Callable[[Batch], World]:
    """What makes the world of a batch of a task's examples; what the ablation needs
    of the whole task is computed here, once.
    """
    denoising = canonical("direction", direction) == "denoising"
    # no ablation enters denoising
    carried = on_demand(model, task, "zero" if denoising and name_of(ablation) else ablation)

    @torch.no_grad()
    def make(batch: Batch) -> World:
        if denoising:
            return World(
                model,
                graph,
                embed(model, batch.corrupted),
                run_sources(model, batch.clean),
                batch.position,
                True,
            )
        values = carried.rows(batch)
        expected = (len(graph.sources), *batch.clean.shape, model.d_model)
        if values.shape != expected:
            raise CircuitDiscoveryError(
                f"ablation {carried.name!r} gives replacements of shape {tuple(values.shape)}, not {expected}"
            )
        kept: dict[Hashable, World] = {}
        if isinstance(ablation, Replacements) and any(values is part for _, part in ablation.parts):
            kept = ablation.worlds
        key = id(model), graph.split_qkv, id(values), tuple(batch.position.tolist())
        if key not in kept:
            values = values.to(model.W_E)
            finite_logits(replaced_logits(model, values, batch.position), batch.rows, "replaced")
            kept[key] = World(
                model, graph, embed(model, batch.clean), values, batch.position, carried.own_run
            )
        return kept[key]

    return make


@torch.no_grad()
def full_logits(
    model: Model, task: Task, parts: Iterable[tuple[Batch, World]], direction: str = "noising"
) -> Tensor:
    """[examples, vocabulary] with every edge kept, on all examples, from this process's
    batches: what KL of other masks is from.
    """
    logits = torch.zeros(len(task), model.vocab_size, device=model.device, dtype=model.dtype)
    for batch, world in parts:
        logits[batch.rows] = world.logits(carried_mask(world.graph, world.graph.allowed, direction))
    return finite_logits(distributed.total(logits), range(len(task)), "clean")


def carried_mask(graph: Graph, mask: np.ndarray, direction: str) -> np.ndarray:
    """The [sources, receivers] edges that carry the current output:
    the circuit's, or in denoising all others.
    """
    return mask if canonical("direction", direction) == "noising" else graph.allowed & ~mask


@guarded
@torch.no_grad()
def run_circuit(
    model: Model,
    task: Task,
    circuit: Circuit,
    *,
    ablation: str | Ablation = "resample",
    direction: str = "noising",
    batch_size: int | None = None,
) -> Tensor:
    """The logits of a circuit on a task's examples.

    Args:
        model: a loaded model.
        task: its examples are run.
        circuit: the edges that stay.
        ablation: what a removed edge carries: a name, or `replacements(...)` computed once.
        direction: `noising` runs the clean prompt; the circuit's edges carry the current output, the others
            the replacement. `denoising` runs the corrupted prompt; the circuit's edges carry the clean run's
            outputs, the others the current output (no ablation enters).
        batch_size: examples in one forward; by default as many as fit
            an eighth of a gigabyte of replacements.

    Returns:
        [examples, vocabulary], at each example's answer position.

    Raises:
        CircuitDiscoveryError: a circuit of another model or shape; an unknown ablation or direction.

    >>> import circuitdiscovery as cd
    >>> model = cd.load_model("toy")
    >>> task = cd.load_task("ioi", model, examples=4)
    >>> cd.run_circuit(model, task, cd.Circuit.full(model.graph)).shape[0]
    4
    """
    circuit.check_model(model)
    out = torch.zeros(len(task), model.vocab_size, device=model.device, dtype=model.dtype)
    mask = carried_mask(circuit.graph, circuit.mask, direction)
    for batch, world in worlds(
        model, task, circuit.graph, ablation=ablation, direction=direction, batch_size=batch_size
    ):
        out[batch.rows] = world.logits(mask)
    return distributed.total(out)
