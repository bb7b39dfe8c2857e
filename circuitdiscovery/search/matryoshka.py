"""Matryoshka attribution: a score for every edge, learnt so that the best edges of each size are a circuit.

After arXiv 2609.25518 (Matryoshka Attribution). Each step draws a size k, relaxes "the k highest scores" to a
mask of real numbers that adds up to k, and descends through it:

1. The mask of scores theta at size k and temperature T is sigmoid((theta - tau) / T), with
   tau such that it adds up to k (bisection).
2. The loss of some prompts is KL(model || circuit) + 2 |F(circuit) - F(model)| / |F(model)|, the mean over
   them. Its gradient g in the mask (relaxed.py) goes through the threshold too: dL/dtheta = w / T (g - sum(g
   w) / sum(w)), w = m (1 - m). Adam descends.

What is ours, and what it is for:

3. The scores start in the order of EAP-IG's (Hanna et al. 2024, arXiv 2403.17806), as normal quantiles: a few
   hundred steps are then enough where thousands are needed from nothing.
4. In the second part of the steps the size is the wanted one, and what runs is the circuit itself, its best k
   edges and nothing of the others; the gradient is taken there and goes back as if the mask had been soft
   (straight through). A soft mask of a small size is mostly edges that are half open, which no circuit has.
5. The result is a running mean of the scores.
6. Learnt from a hundred prompts alone, a circuit does more for them than for others. A task that can draw
   prompts draws some hundreds more, none of which is held out. Of a task that cannot, some are set apart and
   not learnt from; the mean is tried on them now and then, and the best one is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor

from circuitdiscovery.arguments import guarded
from circuitdiscovery.circuit.scores import Scores
from circuitdiscovery.engine import distributed
from circuitdiscovery.engine.ablation import Ablation, replacements
from circuitdiscovery.engine.fast import PatchedRun
from circuitdiscovery.engine.finite import finite_gradient, finite_logits
from circuitdiscovery.engine.memory import budget, by_steps
from circuitdiscovery.engine.metrics import BoundMetric, Metric, by_rows, clean_logits, kl_from
from circuitdiscovery.engine.relaxed import Relaxed, graph_mask
from circuitdiscovery.engine.setup import Progress, Setup, replacement_bytes
from circuitdiscovery.engine.state import State, saved_in
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.model.model import Model
from circuitdiscovery.model.run import embed, replaced_logits, run_tokens
from circuitdiscovery.registry import DRAWN
from circuitdiscovery.search.attribution import eap_ig
from circuitdiscovery.search.edge_pruning import check_edges
from circuitdiscovery.search.provenance import provenance
from circuitdiscovery.task.batch import Batch
from circuitdiscovery.task.task import Task

SIZES = (0.01, 0.02)  # of all edges, that the finish is for where no number is asked for
_LEAST, _MOST = 0.003, 0.1  # the sizes of the first part, as shares of all edges; log-uniform
_FIRST = 0.4  # of the steps are the first part
_AT_ONCE, _ANY = 16, 1e9  # examples in one forward, whatever their lengths, where these may differ
_MEMORY = 100  # steps that the running mean reaches back
PROMPTS = 4  # in one step: more steps are worth more than quieter ones
LOGIT_BYTES = 2**28  # of what the model says to them, which is kept
_APART, _MOST_APART = 8, 16  # where none can be drawn, one in so many is set apart, at most so many
_WEIGHT = 2.0  # of the metric's difference beside KL: at 1, small circuits do too little of the behaviour
_LOOK = 25  # steps from one look at them to the next
_SPREAD = 2.0  # standard deviation of the scores at the start
_TEMPERATURE, _SHARP = 0.5, 0.2  # in the first part, in the second
_RATE, _SLOW = 0.05, 0.02  # of Adam, in the first part, in the second
_START_PROMPTS = 32  # whose EAP-IG scores are where the order starts
_START = 16  # steps that this costs, for the estimate of time
KEPT_BYTES = 2**31  # of replacements that are computed once, where all of them are not more


@guarded
def matryoshka(
    model: Model,
    task: Task,
    *,
    edges: int | None = None,
    steps: int = 520,
    drawn: int | None = None,
    metric: str | Metric | Any | None = None,
    ablation: str | Ablation = "resample",
    split_qkv: bool = True,
    graph: Graph | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    state: str | Path | None = None,
) -> Scores:
    """Scores learnt so that the best edges of every size, most of all the wanted one, are a good circuit.

    The scores order the edges and are not damages: they are not negative, and a larger one is kept longer.

    Args:
        model: a loaded model.
        task: its examples, and where it can draw prompts up to 480 more (`drawn`), never held-out ones. Of a
            task that cannot, one in eight is set apart to choose by, 16 at most.
        edges: the size that the second part of the steps is for; None: 1% and 2% of all edges.
        steps: of gradient descent; each is a relaxed forward and backward of four examples.
        drawn: how many prompts are drawn beside the examples, at most, which the provenance says; by default
            480, or 0 where the ablation is not a name: given replacements are of the examples alone.
        metric: differentiable; the loss is KL(model || circuit) + 2 |F(circuit) - F(model)| / |F(model)|. By
            default the task's own; for kl_divergence the second part is left out.
        ablation: what a closed edge carries; noising.
        split_qkv: query, key and value as separate receivers.
        graph: whose edges, where nodes are split into parts (`split`); by default the model's.
        seed: of the sizes and the order of the examples.
        progress: called with (steps done, steps), the start by EAP-IG counted as some steps.
        state: as in `acdc`.

    Returns:
        Scores that are not negative.

    Raises:
        CircuitDiscoveryError: an impossible number of edges or steps; prompts to draw beside replacements
            that are given; a metric without a gradient; a state of another search.

    >>> import circuitdiscovery as cd
    >>> model = cd.load_model("toy")
    >>> scores = cd.matryoshka(model, cd.load_task("ioi", model, examples=8), edges=40, steps=4)
    """
    graph = Graph.given(model, graph, split_qkv)
    if edges is not None:
        check_edges(graph, edges)
    if type(steps) is not int or steps < 2:
        raise CircuitDiscoveryError(f"steps must be a whole number of at least 2, not {steps!r}")
    by_name = isinstance(ablation, str)
    drawn = (DRAWN if by_name else 0) if drawn is None else drawn
    if type(drawn) is not int or drawn < 0:
        raise CircuitDiscoveryError(f"drawn must be a whole number of at least 0, not {drawn!r}")
    if drawn and not by_name:
        raise CircuitDiscoveryError("drawn is for a named ablation: a given one is of the task's examples")
    report = progress or (lambda done, total: None)
    report(0, _START + steps)
    pool = _pool(model, task, min(drawn, steps * PROMPTS))
    setup = Setup.of(model, pool, graph, metric=metric, ablation=ablation, need=by_steps)
    options = setup.options(edges=edges, steps=steps, drawn=len(pool) - len(task))
    info = provenance(model, task, "matryoshka", {**options, "seed": seed})
    with saved_in(state, setup, info) as saved:
        if saved.found:
            start = np.zeros(len(graph))
        else:
            start = _start(model, task, graph, metric, ablation, lambda done: report(done, _START + steps))
        learnt = _Learnt.resumed(saved, start, len(pool), seed)
        search = _Search.build(setup, len(task))
        sizes = [edges] if edges is not None else [max(1, round(share * len(graph))) for share in SIZES]
        report(_START + learnt.steps, _START + steps)
        while learnt.steps < steps:
            search.step(learnt, steps, sizes)
            learnt.keep(saved)
            report(_START + learnt.steps, _START + steps)
    values = learnt.best - learnt.best.min()
    return Scores(graph, graph_mask(graph, values).numpy(), info)


def _start(
    model: Model,
    task: Task,
    graph: Graph,
    metric: Any,
    ablation: str | Ablation,
    progress: Callable[[int], None],
) -> np.ndarray:
    """[E]: normal quantiles in the order of EAP-IG's |scores|, on some of the examples."""
    every = max(1, len(task) // _START_PROMPTS)
    some = task.select(range(0, len(task), every)[:_START_PROMPTS])
    options: dict[str, Any] = {"metric": metric, "ablation": ablation, "graph": graph}
    scores = eap_ig(model, some, progress=lambda done, total: progress(_START * done // total), **options)
    rank = np.argsort(np.argsort(np.abs(scores.values[graph.allowed]), kind="stable"), kind="stable")
    return norm.ppf((rank + 0.5) / len(rank)) * _SPREAD


def _pool(model: Model, task: Task, drawn: int) -> Task:
    """A task with further prompts behind its examples, where it can draw
    any; means are then taken over all of these.
    """
    most = min(drawn, LOGIT_BYTES // (4 * model.vocab_size))
    more = task.further()[:most] if most else ()
    return (
        replace(task, examples=(*task.examples, *more), held_out=None, apart=None, others=())
        if more
        else task
    )


# ------------------------------------------------------------------ what is learnt


@dataclass
class _Learnt:
    """The scores of E edges, and all that the rest of the search stands on."""

    theta: Tensor  # [E]
    smooth: Tensor  # [E], its running mean over the second part of the steps
    mean: Tensor  # [E], of the gradient; Adam's two moments
    square: Tensor  # [E]
    best: Tensor  # [E], of those that the prompts apart were measured with
    loss: float  # of these
    waiting: Tensor  # [examples]: the rows in their drawn order, -1 where one has been taken
    draw: torch.Generator
    steps: int

    @classmethod
    def resumed(cls, saved: State, start: np.ndarray, examples: int, seed: int) -> _Learnt:
        """As it was saved, or at the start."""
        theta = saved.tensor("theta", torch.from_numpy(start))
        smooth = saved.tensor("smooth", theta.clone())
        mean, square = (saved.tensor(name, torch.zeros_like(theta)) for name in ("mean", "square"))
        waiting = saved.tensor("waiting", torch.full((examples,), -1))
        draw = saved.generator("draw", torch.Generator().manual_seed(seed))
        best, loss = saved.tensor("best", theta.clone()), saved.number("loss", math.inf)
        return cls(theta, smooth, mean, square, best, loss, waiting, draw, saved.number("steps", 0))

    def keep(self, saved: State) -> None:
        """All of it, in the search's state."""
        arrays = {
            name: getattr(self, name)
            for name in ("theta", "smooth", "mean", "square", "best", "waiting", "draw")
        }
        saved.keep(arrays, loss=self.loss, steps=self.steps)

    def rows(self, rows: Sequence[int]) -> list[int]:
        """The next step's examples: all are taken once before any is taken again."""
        left = [row for row in self.waiting.tolist() if row >= 0]
        if len(left) < min(PROMPTS, len(rows)):
            left = [rows[i] for i in torch.randperm(len(rows), generator=self.draw).tolist()]
        taken, left = left[:PROMPTS], left[PROMPTS:]
        self.waiting[:] = -1
        self.waiting[: len(left)] = torch.tensor(left, dtype=torch.long)
        return taken

    def descend(self, gradient: Tensor, rate: float) -> None:
        """One step of Adam."""
        self.steps += 1
        self.mean = 0.9 * self.mean + 0.1 * gradient
        self.square = 0.99 * self.square + 0.01 * gradient.square()
        corrected = self.mean / (1 - 0.9**self.steps), self.square / (1 - 0.99**self.steps)
        self.theta = self.theta - rate * corrected[0] / (corrected[1].sqrt() + 1e-8)


def soft_top(theta: Tensor, size: float, temperature: float) -> Tensor:
    """[E] in [0, 1] that add up to a size: sigmoid((theta - tau) / temperature), tau by bisection."""
    reach = temperature * (math.log(len(theta)) + 10)
    low, high = float(theta.min()) - reach, float(theta.max()) + reach
    while True:
        tau = (low + high) / 2
        mask = torch.sigmoid((theta - tau) / temperature)
        if not low < tau < high or high - low < 1e-12 * reach:
            return mask
        low, high = (tau, high) if float(mask.sum()) > size else (low, tau)


def through_soft_top(mask: Tensor, gradient: Tensor, temperature: float) -> Tensor:
    """The gradient in theta of a loss that has a gradient in `soft_top(theta,
    size, temperature)` = mask; it adds up to 0.
    """
    weights = mask * (1 - mask)
    return weights / temperature * (gradient - (gradient * weights).sum() / weights.sum().clamp(min=1e-12))


def hard_top(theta: Tensor, size: int) -> Tensor:
    """[E] of 0 and 1: the best ones of a number, ties by index."""
    mask = torch.zeros_like(theta)
    mask[torch.sort(theta, descending=True, stable=True).indices[:size]] = 1
    return mask


# ------------------------------------------------------------------ the search


@dataclass(frozen=True)
class _Search:
    """A task under an ablation, and the loss of a mask on some of its examples.

    Args:
        setup: the model on the task, drawn prompts included.
        metric: the setup's; a divergence is from `full`.
        learning, apart: the rows that are learnt from, and those that are chosen by.
        full: [examples, vocabulary], the model's logits.
        span: |F(model)|, which differences of the metric are measured in; None where the loss is KL alone.
    """

    setup: Setup
    relaxed: Relaxed
    metric: BoundMetric
    learning: tuple[int, ...]
    apart: tuple[int, ...]
    full: Tensor
    span: float | None

    @classmethod
    def build(cls, setup: Setup, own: int) -> _Search:
        """Ready for the first step; the first `own` of the task's examples are what the search was given."""
        model, task = setup.model, setup.task
        task.check(model.vocab_size, model.n_positions)
        longest, need, free = max(len(e.clean) for e in task.examples), setup.held, budget(model.device)
        size = replacement_bytes(model, setup.graph, len(task) * longest)
        kept = need.with_kept(size)
        if isinstance(setup.ablation, str) and size <= KEPT_BYTES and kept.fitting(1, free):
            made = replacements(model, task, ablation=setup.ablation, graph=setup.graph)
            setup, need = replace(setup, ablation=made), kept
        setup = replace(setup, batch_size=need.at_once(_AT_ONCE, free))
        tried = range(0, len(task), _APART)[:_MOST_APART] if len(task) >= _APART else ()
        apart = tuple(tried) if len(task) == own else ()
        learning = tuple(row for row in range(len(task)) if row not in apart)
        for batch, patched in _patched_runs(setup, range(own)):
            finite_logits(
                replaced_logits(patched.parts, patched.replacement, batch.position), batch.rows, "replaced"
            )
        full = clean_logits(model, task)  # what a half precision rounds apart is a constant of the loss
        metric = setup.metric.against(by_rows(full))
        found = [float(metric(full[batch.rows], batch.to(model.device)).sum()) for batch in task.batches()]
        span = None if metric.divergence else max(abs(sum(found)) / len(task), 1e-6)
        return cls(setup, Relaxed.build(model, setup.graph), metric, learning, apart, full, span)

    def step(self, learnt: _Learnt, steps: int, sizes: Sequence[int]) -> None:
        """One step of descent, of `steps` in all."""
        done, first = learnt.steps, int(_FIRST * steps)
        if done < first:
            drawn = float(torch.rand(1, generator=learnt.draw))
            size = len(self.relaxed.graph) * math.exp(math.log(_LEAST) + drawn * math.log(_MOST / _LEAST))
            soft = used = soft_top(learnt.theta, size, _TEMPERATURE)
            temperature, rate = _TEMPERATURE, _RATE * (1 - 0.7 * done / first)
        else:
            past = (done - first) / (steps - first)
            size = sizes[done % len(sizes)]
            soft, used = soft_top(learnt.theta, size, _SHARP), hard_top(learnt.theta, size)
            temperature, rate = _SHARP, _SLOW * (1 - 0.9 * past)
        gradient = self.gradient(used, learnt.rows(self.learning))
        learnt.descend(through_soft_top(soft, gradient, temperature), rate)
        if learnt.steps <= first:
            learnt.smooth = learnt.theta
        else:
            learnt.smooth = learnt.smooth + (learnt.theta - learnt.smooth) / min(
                learnt.steps - first, _MEMORY
            )
        if learnt.steps == steps or (learnt.steps > first and (learnt.steps - first) % _LOOK == 0):
            loss = sum(self.loss_apart(hard_top(learnt.smooth, size)) for size in sizes) / len(sizes)
            if loss <= learnt.loss:
                learnt.best, learnt.loss = learnt.smooth, loss

    def gradient(self, mask: Tensor, rows: Sequence[int]) -> Tensor:
        """[E]: of the mean loss of some examples in a mask [E] of real numbers."""
        graph, values = self.relaxed.graph, graph_mask(self.relaxed.graph, mask)
        total = torch.zeros(graph.allowed.shape, dtype=torch.float64)
        for batch, patched in self.patched_runs(rows):
            loss, found = self.relaxed.gradient(
                patched, values, lambda logits, batch=batch: self.losses(logits, batch).sum()
            )
            if not bool(loss.isfinite()):
                raise CircuitDiscoveryError(f"the loss of the examples {batch.rows.tolist()} is not finite")
            total += finite_gradient(found.double().cpu(), batch.rows)
        return (distributed.total(total) / len(rows))[torch.tensor(graph.allowed)]

    @torch.no_grad()
    def loss_apart(self, mask: Tensor) -> float:
        """The mean loss of a circuit, [E] of 0 and 1, on the examples that
        are set apart; of 0 where there are none.
        """
        kept = graph_mask(self.relaxed.graph, mask).numpy() > 0
        found = [
            self.losses(patched.logits(kept), batch).sum().double().cpu()
            for batch, patched in self.patched_runs(self.apart)
        ]
        total = distributed.total(torch.stack(found).sum() if found else torch.zeros((), dtype=torch.float64))
        return float(total) / max(1, len(self.apart))

    def patched_runs(self, rows: Sequence[int]) -> Iterator[tuple[Batch, PatchedRun]]:
        """This process's share of some examples, in batches."""
        return _patched_runs(self.setup, rows)

    def losses(self, logits: Tensor, batch: Batch) -> Tensor:
        """[B]: of a circuit's logits."""
        full = self.full[batch.rows]
        kl = kl_from(full, logits)
        if self.span is None:
            return kl
        difference = self.metric(logits, batch) - self.metric(full, batch)
        if torch.is_grad_enabled() and (not difference.requires_grad or self.metric.name == "accuracy"):
            raise CircuitDiscoveryError(
                f"metric {self.metric.name!r} has no gradient; matryoshka needs a differentiable one"
            )
        return kl + _WEIGHT * difference.abs() / self.span


def _patched_runs(setup: Setup, rows: Sequence[int]) -> Iterator[tuple[Batch, PatchedRun]]:
    """This process's share of some of a task's examples, in batches; not `Setup.patched`,
    which looks at the replacements of every batch: here they are looked at once."""
    model, own = setup.model, sorted(rows)[distributed.rank() :: distributed.world_size()]
    any_length = _ANY if run_tokens(model) else 0.0
    for batch in setup.task.batches(setup.batch_size or _AT_ONCE, own, run_tokens=any_length):
        batch = batch.to(model.device)
        values, start = setup.carried.packed(batch).to(model.W_E), embed(model, batch.clean)
        parts, own_run = setup.parts(batch), setup.own_run
        yield batch, PatchedRun(model, setup.graph, start, values, batch.position, own_run, parts)
