"""A search problem with a known answer."""

from __future__ import annotations

from dataclasses import dataclass

from circuitdiscovery.circuit.circuit import Circuit
from circuitdiscovery.model.model import Model
from circuitdiscovery.task.task import Task


@dataclass(frozen=True)
class Problem:
    """A model, a task, and the circuit that does the task in this model: a fact about
    the weights, not the result of a search.

    Args:
        name: what tables call it, such as `induction` or `induction-hard`.
        model: the model.
        task: what searches are given; it has held-out examples.
        truth: the circuit, under resample ablation; its `info` may name roles.
        probe: examples on which the truth can be proved: with only the true edges the logits are the full
            model's to `bound`, without any single one of them they are not. Often the task itself; a gate of
            heads also needs examples on which a single input is on.
        bound: the most that resampling everything outside the truth moves a logit on the probe.
        trained: whether the weights were trained to the circuit (semi-synthetic), not constructed.
        why: what makes the problem hard for some methods, for reports; empty where nothing does.
    """

    name: str
    model: Model
    task: Task
    truth: Circuit
    probe: Task
    bound: float
    trained: bool = False
    why: str = ""
