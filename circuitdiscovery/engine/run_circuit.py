"""The logits of a circuit on a task."""

from __future__ import annotations

import torch
from torch import Tensor

from circuitdiscovery.arguments import guarded
from circuitdiscovery.circuit.circuit import Circuit
from circuitdiscovery.engine import distributed
from circuitdiscovery.engine.ablation import Ablation
from circuitdiscovery.engine.setup import Setup
from circuitdiscovery.model.model import Model
from circuitdiscovery.task.task import Task


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
            outputs, the others the current output (no ablation enters: another than `resample` is refused).
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
    setup = Setup.of(
        model, task, circuit.graph, ablation=ablation, direction=direction, batch_size=batch_size
    )
    out = torch.zeros(len(task), model.vocab_size, device=model.device, dtype=model.dtype)
    for batch, patched in setup.patched_runs():
        out[batch.rows] = patched.logits(setup.carrying(circuit.mask))
    return distributed.total(out)
