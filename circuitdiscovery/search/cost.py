"""What searches cost, before anything is loaded: forwards, time and memory, from a model's outline.

A cost is in F, one Hugging Face forward of all prompts with the logits at every position. What a search
multiplies is counted (weights, and the products of sources and receivers); what it does beside that is one
factor per method, measured on SmolLM2-135M (docs/real-models.md). On other models and tasks an estimate can
be off by half.

How long acdc, trace_back and hybrid take depends on what they find:

- Of trace_back and acdc the most that they can cost is given. trace_back tests each edge once; acdc tests a
  chain of them, and again what follows a refusal: each edge twice at most, over all.
- Of hybrid an estimate is given, for as many edges as `discover` keeps where nothing is said, with every
  round of floating as large as the first. It can be twice that, or half.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from circuitdiscovery.arguments import guarded
from circuitdiscovery.engine.memory import Need, along_a_line, budget, of_token, relaxed, stepwise
from circuitdiscovery.engine.setup import fitting
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.model.load import as_dtype
from circuitdiscovery.model.model import Model
from circuitdiscovery.model.outline import outline
from circuitdiscovery.model.run import parameters
from circuitdiscovery.registry import DRAWN, METHODS, default_edges
from circuitdiscovery.search.alternatives import TOKENS
from circuitdiscovery.search.edge_pruning import EXAMPLES
from circuitdiscovery.search.hybrid import forwards
from circuitdiscovery.search.matryoshka import KEPT_BYTES, LOGIT_BYTES, PROMPTS
from circuitdiscovery.task.load import load_task
from circuitdiscovery.task.task import Task
from circuitdiscovery.values import Reported, Value

CARDS = (24, 40, 80)  # GB
_USABLE = 0.9  # of a card's memory
_SMALL = 0.2  # seconds of a forward
# a cost over the products alone: norms, attention, the optimizer
_BESIDE = {"matryoshka": 2.5, "edge_pruning": 1.6}
_AT_MOST = ("acdc", "trace_back")  # what they find decides how long they take


@dataclass(frozen=True, repr=False)
class Cost(Value):
    """What one search costs.

    Args:
        forwards: in F.
        at_most: whether that depends on what is found, and this is the most; else it is an estimate.
        seconds: on this machine.
        gigabytes: above the weights.
        fits: how much of what goes through at once has room in the memory budget: 1 all of it, 0 not even one
            example.
    """

    forwards: float
    at_most: bool
    seconds: float
    gigabytes: float
    fits: float


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
        budget: the gigabytes that may be held beside the weights (see `memory_budget`).
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
    budget: float
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
            yield name.replace("_", "-"), f"{most}{took}; {cost.gigabytes:.2f} GB more{_room(cost.fits)}"
        yield "budget", f"{self.budget:.2f} GB beside the weights"
        for card, billions in self.largest.items():
            yield f"{card} GB card", f"up to {billions:.1f} billion weights of this shape in bfloat16"


def _round(value: float) -> str:
    return f"{value:,.1f}" if value < 10 else f"{float(f'{value:.2g}'):,.0f}"


def _room(fits: float) -> str:
    if fits == 1:
        return ""
    return ", of which a part at a time fits the budget" if fits else ", which does not fit the budget"


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
    skip_bad: bool = False,
) -> Plan:
    """What every search of a model on a task costs, without reading its weights.

    Args:
        source: a bundled model's name, a folder, a name on the Hugging Face hub (its config and tokenizer
            are fetched), or a loaded model.
        task: a task, or a shipped one's name or a file.
        examples: how many of a shipped task or a file; by default the task's own.
        dtype: what the weights would be held as; a loaded model's are what they are.
        skip_bad: go on without the rows of a table that cannot be used.

    Raises:
        CircuitDiscoveryError: a model or a task that cannot be loaded, by what its config says; examples or
            skip_bad with a task that is loaded already.

    >>> import circuitdiscovery as cd
    >>> found = cd.plan("toy", "ioi", examples=8)
    >>> found.edges, found.costs["eap"].forwards < found.costs["eap_ig"].forwards
    (479, True)
    """
    as_dtype(dtype)
    if isinstance(task, Task) and (examples is not None or skip_bad):
        raise CircuitDiscoveryError(
            f"plan: examples and skip_bad say how a task is loaded, and {task.title} is loaded already; give "
            "neither, or the task's name"
        )
    model = source if isinstance(source, Model) else outline(source, dtype)
    on = task if isinstance(task, Task) else load_task(task, model, examples=examples, skip_bad=skip_bad)
    return estimated(model, on, _rate(model.d_model))


def estimated(model: Model, task: Task, rate: float) -> Plan:
    """The plan of a machine that does so many products of numbers a second."""
    work, size = _Work(model, task), model.W_E.element_size()
    forward, products, needs = work.forward / rate, work.products(), work.needs()
    gigabytes = {name: need.of(many) / 1e9 for name, (need, many) in needs.items()}
    room = _budget(model, work.weights * size)
    return Plan(
        model=model.name,
        task=task.title,
        examples=len(task),
        tokens=work.tokens,
        edges=len(model.graph),
        weights=work.weights,
        dtype=str(model.dtype).removeprefix("torch."),
        gigabytes=work.weights * size / 1e9,
        forward=forward,
        costs={
            name: Cost(
                products[name] / work.forward,
                name in _AT_MOST,
                products[name] / rate,
                gigabytes[name],
                need.fitting(many, room) / many,
            )
            for name in METHODS
            if name in needs
            for need, many in [needs[name]]
        },
        budget=room / 1e9,
        largest={str(card): max(0.0, _USABLE * card - gigabytes["eap"]) / 2 for card in CARDS},
    )


def _budget(model: Model, weights: float) -> float:
    """The bytes that a search may hold, of an outline where it would be loaded."""
    if model.device.type != "meta":
        return budget(model.device)
    return budget(torch.device("cuda" if torch.cuda.is_available() else "cpu"), weights)


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
    """Counts of products of two numbers, and of numbers that are held.

    S sources, R receivers, D d_model, L layers.
    """

    model: Model
    task: Task

    @property
    def tokens(self) -> int:
        return sum(len(example.clean) for example in self.task.examples)

    @property
    def weights(self) -> int:
        """All of them, those of every expert too."""
        model = self.model
        held = [each for each in (model.W_E, model.W_pos, model.W_U) if each is not None]
        once = {each.untyped_storage()._cdata: each.numel() for each in held}  # where they are tied
        return sum(once.values()) + sum(block.weights() for block in model.blocks)

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

    # -------------------------------------------------------------- products

    def products(self) -> dict[str, float]:
        """By method."""

        def along_a_line(runs: int, points: int) -> float:
            return (runs + 3 * points) * self.plain + self.edges

        return {
            # the replacements' run, the clean one, and at each point forward and backward
            "eap": along_a_line(1, 1),
            "eap_ig": along_a_line(2, _option("eap_ig", "steps")),
            "clean_corrupted": along_a_line(1, 2),
            **dict.fromkeys(("exact", "trace_back"), self._each_edge(1)),
            "acdc": self._each_edge(2, 4),
            "hybrid": self._hybrid(),
            "edge_pruning": self._learnt("edge_pruning", EXAMPLES, len(self.task)),
            "matryoshka": self._learnt("matryoshka", PROMPTS, self._shown),
            "random": 0.0,
        }

    @property
    def _shown(self) -> int:
        """How many prompts matryoshka learns from, of a task that can draw some."""
        most = LOGIT_BYTES // (4 * self.model.vocab_size)
        return len(self.task) + min(DRAWN, most)

    def _each_edge(self, times: int, more: int = 0) -> float:
        """What follows a receiver, so many times for every edge into it, and more for the receiver itself: in
        acdc its state, what the first chain is compared with, and two alternatives of that chain."""
        graph = self.model.graph
        left = 1 - np.array(graph.receiver_layers) / graph.n_layers  # of the layers
        tests = times * graph.allowed.sum(0) + more
        logits = float(tests.sum()) * self.model.unembedding_size * len(self.task)
        return float((tests * left).sum()) * parameters(self.model) * self.tokens + logits

    def _hybrid(self) -> float:
        graph, rounds = self.model.graph, _option("hybrid", "rounds")
        return forwards(self.model, self.task, graph, default_edges(len(graph)), rounds) * self.plain

    def _learnt(self, method: str, at_once: int, shown: int) -> float:
        """Relaxed forwards and backwards, and the runs of all prompts that they compare with."""
        step = 3 * (self.plain + self.edges) * min(at_once, len(self.task)) / len(self.task)
        compared = 3 * self.plain * shown / len(self.task)
        return (_option(method, "steps") * step + compared) * _BESIDE[method]

    # -------------------------------------------------------------- memory

    def needs(self) -> dict[str, tuple[Need, int]]:
        """By method: what is held beside the weights, and how many examples go through at once where there is
        memory for them."""
        model, graph, task = self.model, self.model.graph, self.task
        many, whole = min(len(task), fitting(model, graph, task)), stepwise(model, graph, task)
        longest = max(len(example.clean) for example in task.examples)
        kept = of_token(model, graph) * longest * self._shown  # replacements
        logits = model.vocab_size * model.W_E.element_size() * self._shown  # what the model says
        learnt = relaxed(model, graph, task)
        steps = _option("eap_ig", "steps")
        return {
            "eap": (along_a_line(model, graph, task, 1), many),
            "eap_ig": (along_a_line(model, graph, task, steps), many),
            "clean_corrupted": (along_a_line(model, graph, task, 2), many),
            **dict.fromkeys(("exact", *_AT_MOST, "hybrid"), (whole, max(1, TOKENS["cpu"] // longest))),
            "edge_pruning": (learnt, min(EXAMPLES, len(task))),
            "matryoshka": (
                Need(learnt.each, logits + (kept if kept <= KEPT_BYTES else 0)),
                min(PROMPTS, len(task)),
            ),
            "random": (Need(1.0), 1),
        }


def _option(method: str, name: str) -> int:
    """A method's option where nothing is said."""
    return METHODS[method].options[name]
