"""What searches cost, before anything is loaded: forwards, time and memory, from a model's outline.

A cost is in F, one Hugging Face forward of all prompts with the logits at every position. What a search
multiplies is counted (weights, and the products of sources and receivers); what it does beside that is one
factor per method, measured on SmolLM2-135M (docs/real-models.md). On other models and tasks an estimate can
be off by half. How long acdc, trace_back and hybrid take depends on what they find: of them the most that
they can cost is given.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from circuitdiscovery.arguments import guarded
from circuitdiscovery.engine.setup import fitting
from circuitdiscovery.model.model import Model
from circuitdiscovery.model.outline import outline
from circuitdiscovery.model.run import parameters
from circuitdiscovery.registry import METHODS
from circuitdiscovery.task.load import load_task
from circuitdiscovery.task.task import Task
from circuitdiscovery.values import Reported, Value

CARDS = (24, 40, 80)  # GB
_USABLE = 0.9  # of a card's memory
_SMALL = 0.2  # seconds of a forward
_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
_AT_ONCE = 2**28  # bytes of alternatives that acdc and its kind run together
_KEPT = 2**31  # of replacements that matryoshka keeps, where all of them are not more
_STEP = {"matryoshka": 4, "edge_pruning": 32}  # examples in a step
# a cost over the products alone: norms, attention, the optimizer
_BESIDE = {"matryoshka": 2.5, "edge_pruning": 1.6}
_DEPENDS = ("acdc", "trace_back", "hybrid")  # on what they find


@dataclass(frozen=True, repr=False)
class Cost(Value):
    """What one search costs.

    Args:
        forwards: in F.
        at_most: whether that depends on what is found, and this is the most.
        seconds: on this machine.
        gigabytes: above the weights.
    """

    forwards: float
    at_most: bool
    seconds: float
    gigabytes: float


@dataclass(frozen=True, repr=False)
class Plan(Reported):
    """What searches of a model on a task cost (see `plan`).

    Args:
        model, task, examples: of what.
        tokens: of all prompts.
        edges: of the model's graph.
        weights: how many numbers it has.
        dtype, gigabytes: what the weights are held as, and what that takes.
        forward: the seconds of F on this machine.
        costs: by method.
        largest: for cards of 24, 40 and 80 GB, the most weights, in billions, that a model of this shape can
            have in bfloat16 beside an attribution by `eap`.
    """

    model: str
    task: str
    examples: int
    tokens: int
    edges: int
    weights: int
    dtype: str
    gigabytes: float
    forward: float
    costs: Mapping[str, Cost]
    largest: Mapping[str, float]

    def _lines(self) -> Iterator[tuple[str, str]]:
        yield "model", f"{self.model}: {self.edges:,} edges, {self.weights / 1e6:,.0f} million weights"
        yield "memory", f"{self.gigabytes:.2f} GB of weights in {self.dtype}"
        yield "task", f"{self.task}: {self.examples} examples, {self.tokens:,} tokens"
        small = "; of so small a model Python's own calls take longer than is said here" * (
            self.forward < _SMALL
        )
        yield "F", f"one forward of these: about {_seconds(self.forward)} on this machine{small}"
        for name, cost in self.costs.items():
            most = "at most " if cost.at_most else ""
            took = f"{_round(cost.forwards)} F, about {_seconds(cost.seconds)}"
            yield name.replace("_", "-"), f"{most}{took}; {cost.gigabytes:.2f} GB more"
        for card, billions in self.largest.items():
            yield f"{card} GB card", f"up to {billions:.1f} billion weights of this shape in bfloat16"


def _round(value: float) -> str:
    return f"{value:,.1f}" if value < 10 else f"{float(f'{value:.2g}'):,.0f}"


def _seconds(value: float) -> str:
    for size, unit in ((3600, "hours"), (60, "minutes")):
        if value >= 2 * size:
            return f"{_round(value / size)} {unit}"
    return f"{_round(value)} seconds"


@guarded
def plan(
    source: str | Path | Model,
    task: str | Path | Task = "ioi",
    *,
    examples: int | None = None,
    dtype: str = "float32",
) -> Plan:
    """What every search of a model on a task costs, without reading its weights.

    Args:
        source: a bundled model's name, a folder, a name on the Hugging Face hub (its config and tokenizer
            are fetched), or a loaded model.
        task: a task, or a shipped one's name or a file.
        examples: how many; by default the task's own.
        dtype: what the weights would be held as.

    Raises:
        CircuitDiscoveryError: a model or a task that cannot be loaded, by what its config says.

    >>> import circuitdiscovery as cd
    >>> found = cd.plan("toy", "ioi", examples=8)
    >>> found.edges, found.costs["eap"].forwards < found.costs["eap_ig"].forwards
    (479, True)
    """
    model = source if isinstance(source, Model) else outline(source)
    on = task if isinstance(task, Task) else load_task(task, model, examples=examples)
    return estimated(model, on, dtype, _rate(model.d_model))


def estimated(model: Model, task: Task, dtype: str, rate: float) -> Plan:
    """The plan of a machine that does so many products of numbers a second."""
    work = _Work(model, task, _BYTES[dtype])
    held, forward = work.weights * work.size / 1e9, work.forward / rate
    eap = work.memory("eap") / 1e9
    return Plan(
        model=model.name,
        task=task.name,
        examples=len(task),
        tokens=int(work.tokens),
        edges=len(model.graph),
        weights=work.weights,
        dtype=dtype,
        gigabytes=held,
        forward=forward,
        costs={
            name: Cost(found, name in _DEPENDS, found * forward, work.memory(name) / 1e9)
            for name in METHODS
            if (found := work.forwards(name)) is not None
        },
        largest={str(card): max(0.0, _USABLE * card - eap * 2 / work.size) / 2 for card in CARDS},
    )


def _rate(width: int) -> float:
    """How many products of two numbers this machine does a second, in matrices like a model's."""
    a, b = torch.randn(512, width), torch.randn(width, 4 * width)
    best = 0.0
    for _ in range(5):
        begun = time.perf_counter()
        torch.mm(a, b)
        best = max(best, a.numel() * b.shape[1] / (time.perf_counter() - begun))
    return best


@dataclass(frozen=True)
class _Work:
    """Counts of products of two numbers, and of bytes of `size` each.

    S sources, R receivers, D d_model, L layers.
    """

    model: Model
    task: Task
    size: int

    @property
    def tokens(self) -> float:
        return float(sum(len(example.clean) for example in self.task.examples))

    @property
    def weights(self) -> int:
        """All of them, those of every expert too."""
        held = [self.model.W_E.numel(), 0 if self.model.W_pos is None else self.model.W_pos.numel()]
        storages = {each.untyped_storage()._cdata for each in (self.model.W_E, self.model.W_U)}
        if len(storages) == 2:  # not tied
            held.append(self.model.unembedding_size)
        return sum(held) + sum(block.weights() for block in self.model.blocks)

    @property
    def forward(self) -> float:
        """F: with the logits at every position."""
        return (parameters(self.model) + self.model.unembedding_size) * self.tokens

    @property
    def plain(self) -> float:
        """A forward with the logits at the answer alone."""
        return parameters(self.model) * self.tokens + self.model.unembedding_size * len(self.task)

    @property
    def edges(self) -> float:
        """What every receiver reads of every source before it, at all positions."""
        return len(self.model.graph) * self.model.d_model * self.tokens

    def forwards(self, method: str) -> float | None:
        """In F; None where it is not known."""
        count = self._counted().get(method)
        return None if count is None else count() * _BESIDE.get(method, 1.0) / self.forward

    def _counted(self) -> dict[str, Callable[[], float]]:
        steps = {name: METHODS[name].options.get("steps", 1) for name in METHODS}

        def line(runs: int, points: int) -> float:
            return (runs + 3 * points) * self.plain + self.edges

        return {
            # the replacements' run, the clean one, and at each point forward and backward
            "eap": lambda: line(1, 1),
            "eap_ig": lambda: line(2, steps["eap_ig"]),
            "clean_corrupted": lambda: line(1, 2),
            **dict.fromkeys(("exact", *_DEPENDS), self._each_edge),
            **{name: lambda name=name: self._learnt(name, steps[name]) for name in _STEP},
            "random": lambda: 0.0,
        }

    def _each_edge(self) -> float:
        """For every edge what follows its receiver."""
        graph = self.model.graph
        left = 1 - np.array(graph.receiver_layers) / graph.n_layers  # of the layers
        share = float((graph.allowed.sum(0) * left).sum())
        logits = len(graph) * self.model.unembedding_size * len(self.task)
        return share * parameters(self.model) * self.tokens + logits

    def _learnt(self, method: str, steps: int) -> float:
        """Relaxed forwards and backwards, and the runs that they compare with."""
        at_once = min(_STEP[method], len(self.task))
        drawn = (METHODS[method].options.get("drawn") or 0) / len(self.task)
        return 3 * steps * (self.plain + self.edges) * at_once / len(self.task) + 3 * (1 + drawn) * self.plain

    def memory(self, method: str) -> float:
        """Bytes above the weights, at the peak."""
        model, graph, block = self.model, self.model.graph, self.model.blocks[0]
        longest = max(len(example.clean) for example in self.task.examples)
        sources, receivers = len(graph.sources) * model.d_model, len(graph.receivers) * model.d_model
        if method in _STEP:
            tokens = min(_STEP[method], len(self.task)) * longest
            kept = (
                sources
                * self.tokens
                * self.size
                * (1 + (METHODS[method].options.get("drawn") or 0) / len(self.task))
            )
            held = kept if kept <= _KEPT and method == "matryoshka" else 0.0
            return (sources + 3 * receivers) * tokens * self.size + held
        if method == "random":
            return 0.0
        examples = min(len(self.task), fitting(model, self.task))
        tokens = examples * longest
        heads = (graph.n_heads + 2 * graph.n_kv_heads) * block.d_head
        layer = 4 * model.d_model + 2 * heads + 3 * block.d_mlp  # numbers that autograd keeps of a token
        activations = graph.n_layers * layer * tokens + 4 * examples * model.vocab_size
        if method in ("exact", *_DEPENDS):
            return 2 * sources * tokens * self.size + _AT_ONCE
        points = {"eap": 1, "clean_corrupted": 2}.get(method, (METHODS[method].options.get("steps") or 1))
        kept = graph.n_layers * 2 * model.d_model * tokens * points
        return (sources * tokens + activations + kept) * self.size
