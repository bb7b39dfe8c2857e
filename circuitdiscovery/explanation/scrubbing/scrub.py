"""Causal scrubbing (Chan, Garriga-Alonso, Goldowsky-Dill, Greenblatt, Nitishinskaya, Radhakrishnan, Shlegeris
and Thomas 2022, "Causal scrubbing: a method for rigorously testing interpretability hypotheses", Redwood
Research).

A hypothesis says which edges matter, and on which variables of the prompt alone what they carry depends. If
it holds, whatever it calls irrelevant can be exchanged without harm to the behaviour. What a node writes,
scrubbed, for a prompt x:

1. For an edge into the node that the hypothesis holds: draw a prompt that agrees with x on the edge's
   variables, and take what the edge's source writes, scrubbed, for that prompt. The recursion unrolls the
   graph into the tree of its paths; each has draws of its own.
2. All other edges into the node carry what their sources write on one prompt,
   drawn at random for this node of the tree.
3. A source without such edges into it writes what it writes on the prompt that was drawn.

The root is the logits, read at x's answer position and judged by x's answers. Prompts stand in for each other
only where they are of the same length and agree on the hypothesis' `shared` variables: their words must stand
at the same positions. The prompt itself is never drawn while another one agrees; how often none did is
counted, because what was never exchanged was never tested.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from circuitdiscovery.arguments import guarded
from circuitdiscovery.engine.finite import rounding
from circuitdiscovery.engine.metrics import BoundMetric, Metric, bind, clean_logits
from circuitdiscovery.engine.setup import Progress
from circuitdiscovery.errors import CircuitDiscoveryError, unknown
from circuitdiscovery.explanation.scrubbing.hypothesis import Hypothesis, Variables
from circuitdiscovery.explanation.scrubbing.result import Scrubbing, mean
from circuitdiscovery.explanation.scrubbing.tree import Drawn, Prompts, count_places, draw_tree, other_heads
from circuitdiscovery.explanation.scrubbing.written import Written, stream_of
from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.graph.nodes import edge_name
from circuitdiscovery.measure.estimates import drawn
from circuitdiscovery.measure.normalized import Ends, normalized
from circuitdiscovery.model.model import Model
from circuitdiscovery.task.example import Example
from circuitdiscovery.task.task import Task

RESAMPLED = Ends("F(model) - F(everything resampled)", "resampling everything", "with everything resampled")
RENAMED = 20  # hypotheses of the same shape about other heads: if none recovers as much, p is 1 / 21


@guarded
@torch.no_grad()
def scrub(
    model: Model,
    task: Task,
    hypothesis: Hypothesis,
    *,
    prompts: Task | None = None,
    metric: str | Metric | Any | None = None,
    draws: int = 5,
    renamed: int = RENAMED,
    seed: int = 0,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Scrubbing:
    """Test a hypothesis by causal scrubbing: how much of the behaviour is left when
    all that it calls irrelevant is exchanged.

    Holds, for the prompts of one length, what the hypothesis' sources write and what its nodes read.

    Args:
        model: a loaded model.
        task: measured on its held-out examples where there are some, else on its examples.
        hypothesis: what to test (`load_hypothesis`, or made in Python).
        prompts: a task whose clean prompts (its examples') are drawn from as well as the measured ones. Where
            a variable takes many values, such as a name, few of the measured prompts agree on it.
        metric: by default the task's own.
        draws: for each example and node of the tree; the metric is averaged over them.
        renamed: hypotheses of the same shape to compare with, fewer where there are fewer: the heads of each
            layer exchanged at random, the edges with them.
        seed: of the draws, the renamed hypotheses and the bootstrap; the same call gives the same bytes.
        batch_size: examples in one forward, each with all its draws.
        progress: called with (hypotheses tested, in all).

    Returns:
        How much of the model's behaviour is left under the hypothesis, and under others of its shape.

    Raises:
        CircuitDiscoveryError: a hypothesis of another task, or that does not fit the model; variables that
            the examples lack; a tree of more than 10,000 nodes.

    >>> import circuitdiscovery as cd
    >>> from circuitdiscovery.explanation.scrubbing.hypothesis import load_hypothesis
    >>> model = cd.load_model("toy")
    >>> task = cd.load_task("ioi", model, examples=16)
    >>> result = scrub(model, task, load_hypothesis("toy/ioi-position"), draws=2, renamed=2)
    >>> len(result.renamed)
    2
    """
    _check(task, hypothesis)
    _check_counts(
        draws=(draws, 1),
        renamed=(renamed, 0),
        seed=(seed, 0),
        batch_size=(1 if batch_size is None else batch_size, 1),
    )
    used = task.held_out or task
    edges = hypothesis.edges_of(model.graph)
    places = count_places(model.graph, hypothesis, edges)
    bound = bind(metric or used.metric, model, used)
    others = list(other_heads(model.graph, edges, renamed, seed))
    groups = _groups(model, used, prompts, hypothesis, [edges, *others])
    evaluator = _Bench(model, used, bound, groups, draws, seed, batch_size)
    tested: list[_Tested] = []
    for held in ({}, edges, *others):
        tested.append(evaluator.test(held))
        if progress:
            progress(len(tested), 2 + len(others))
    (full, noise), (resampled, scrubbed, *rest) = evaluator.full(), (each.values for each in tested)
    # of shares a mean over draws is one where all draws agree on every example
    shares = [bound.share and bool(np.isin(values, (0, 1)).all()) for values in (full, scrubbed, resampled)]
    least = 0.0 if bound.share else noise
    values = scrubbed, full, resampled, drawn(len(used), seed)
    recovered, reason = normalized(*values, metric=bound, least=least, ends=RESAMPLED)
    return Scrubbing(
        hypothesis=hypothesis.name,
        model=model.name,
        task=task.title,
        part="examples" if task.held_out is None else "held_out",
        examples=len(used),
        prompts=sum(len(group.prompts.examples) for group in groups),
        draws=draws,
        metric=bound.name,
        edges=edges,
        places=places,
        full=mean(full, seed, shares[0]),
        scrubbed=mean(scrubbed, seed, shares[1]),
        resampled=mean(resampled, seed, shares[2]),
        recovered=recovered,
        reason=reason,
        renamed=()
        if recovered is None
        else tuple(float(_share(each.mean(), full.mean(), resampled.mean())) for each in rest),
        own={edge: tested[1].own[edge] for edge in edges},
        own_rest=tested[1].own[""],
    )


def _check(task: Task, hypothesis: Any) -> None:
    if not isinstance(hypothesis, Hypothesis):
        raise CircuitDiscoveryError(
            f"a hypothesis is what load_hypothesis gives, or a Hypothesis, not {type(hypothesis).__name__}"
        )
    if hypothesis.task.replace("-", "_") != task.name.replace("-", "_"):
        raise CircuitDiscoveryError(
            f"hypothesis {hypothesis.name} is about the task {hypothesis.task!r}, not {task.name!r}"
        )


def _check_counts(**counts: tuple[Any, int]) -> None:
    """Each value with the least that it may be."""
    for name, (value, least) in counts.items():
        if type(value) is not int or value < least:
            raise CircuitDiscoveryError(f"{name} must be a whole number of at least {least}, not {value!r}")


# ------------------------------------------------------------------ measuring


@dataclass(frozen=True)
class _Group:
    """Measured examples of one length, and the prompts that stand in for them."""

    rows: list[int]  # of the examples, in the task
    where: np.ndarray  # [examples], their prompts
    prompts: Prompts
    written: Written


@dataclass(frozen=True)
class _Tested:
    """One hypothesis."""

    values: np.ndarray  # [examples], the metric averaged over the draws
    own: Mapping[str, float]  # edge, or "" for the rest -> the share of draws that were the prompt itself


@dataclass(frozen=True)
class _Bench:
    """A task, ready to test hypotheses on: each by the same seed."""

    model: Model
    used: Task
    metric: BoundMetric
    groups: Sequence[_Group]
    draws: int
    seed: int
    batch_size: int | None

    def test(self, edges: Mapping[str, Variables]) -> _Tested:
        values, own = np.zeros(len(self.used)), _Own(self.model.graph)
        for group in self.groups:
            rng = np.random.default_rng((self.seed, 1, len(group.prompts.examples[0].clean)))
            drawn = draw_tree(self.model.graph, edges, group.prompts, group.where, self.draws, rng)
            own.count(drawn)
            size = self.batch_size or group.written.batch_size(self.draws)
            starts = range(0, len(group.rows), size)
            for start, batch in zip(starts, self.used.batches(size, group.rows), strict=True):
                batch = batch.to(self.model.device)
                logits = group.written.logits(drawn, slice(start, start + size), batch.position)
                values[batch.rows.cpu().numpy()] = self.metric(logits, batch).double().mean(0).cpu().numpy()
        return _Tested(values, own.shares())

    def full(self) -> tuple[np.ndarray, float]:
        """([examples] the metric of the model itself, what a difference of two means of it
        must be above to be more than rounding).
        """
        values, logits = np.zeros(len(self.used)), clean_logits(self.model, self.used)
        for batch in self.used.batches():
            batch = batch.to(self.model.device)
            values[batch.rows.cpu().numpy()] = self.metric(logits[batch.rows], batch).double().cpu().numpy()
        return values, float(rounding(logits, self.model.dtype, self.metric.name).mean())


class _Own:
    """Counts how often a draw was the prompt itself."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._draws: dict[str, list[np.ndarray]] = {}  # edge, or "" for the rest -> whether each draw was

    def count(self, drawn: Drawn) -> None:
        if drawn.rest is not None:
            self._draws.setdefault("", []).append(drawn.rest == drawn.prompt)
        for column, below in drawn.inputs:
            edge = edge_name(self._graph.sources[below.node], self._graph.receivers[column])
            self._draws.setdefault(edge, []).append(below.prompt == drawn.prompt)
            self.count(below)

    def shares(self) -> dict[str, float]:
        """Edge, or "" for the rest -> the share."""
        return {
            edge: float(np.concatenate([each.ravel() for each in draws]).mean())
            for edge, draws in self._draws.items()
        }


def _groups(
    model: Model,
    used: Task,
    prompts: Task | None,
    hypothesis: Hypothesis,
    held: Sequence[Mapping[str, Variables]],
) -> list[_Group]:
    """The measured examples by length, with what the hypotheses need of
    their prompts; equal prompts of equal variables count once.
    """

    def key(example: Example) -> tuple[Any, ...]:
        return example.clean, *(example.variables[name] for name in hypothesis.variables)

    by_length: dict[int, dict[tuple[Any, ...], Example]] = {}
    for task in (used, *([prompts] if prompts is not None else [])):
        task.check(model.vocab_size, model.n_positions)
        _check_variables(task, hypothesis)
        for example in task.examples:
            by_length.setdefault(len(example.clean), {}).setdefault(key(example), example)
    graph, groups = model.graph, []
    edges = [graph.index(edge) for each in held for edge in each]
    nodes = sorted({int(node) for _, column in edges for node in np.flatnonzero(graph.feeds[column])})
    columns = [len(graph.receivers) - 1, *np.flatnonzero(graph.feeds[:, nodes].any(axis=1)).tolist()]
    places = sorted({stream_of(graph, column) for column in columns})
    for batch in used.batches():
        rows = batch.rows.tolist()
        found = by_length[len(used.examples[rows[0]].clean)]
        number = {known: i for i, known in enumerate(found)}
        where = np.array([number[key(used.examples[row])] for row in rows])
        standing_in = Prompts(list(found.values()), hypothesis.shared)
        groups.append(
            _Group(
                rows,
                where,
                standing_in,
                Written.of(model, standing_in, sorted({row for row, _ in edges}), places),
            )
        )
    return groups


def _check_variables(task: Task, hypothesis: Hypothesis) -> None:
    for row, example in enumerate(task.examples):
        for name in hypothesis.variables:
            if name in example.variables:
                continue
            where = f"hypothesis {hypothesis.name}{': shared' if name in hypothesis.shared else ''}"
            if example.variables:
                raise CircuitDiscoveryError(
                    f"{where}: {unknown('variable', name, example.variables)} (row {row} of task "
                    f"{task.title})"
                )
            told = "has no variables; Task.from_tokens(..., variables={...}) gives them to your own prompts"
            raise CircuitDiscoveryError(
                f"{where}: no variable {name!r}, for row {row} of task {task.title} {told}"
            )


# ------------------------------------------------------------------ figures


def _share(scrubbed: Any, full: Any, resampled: Any) -> Any:
    """Of the way from everything resampled to the model."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num((scrubbed - resampled) / (full - resampled), posinf=0, neginf=0)
