"""Edge pruning: gradient descent on a relaxed mask of the edges (Bhaskar
et al. 2024, arXiv 2406.16778, section 3).

1. Every edge has a gate z in [0, 1]; a receiver reads  (everything as
   replaced) + sum of z * (current - replacement).
2. Gates are hard-concrete (Louizos et al. 2018, arXiv 1712.01312, equations 10-12): s = sigmoid((logit(u) +
   log alpha) / beta) with u uniform is stretched to (gamma, zeta) and clipped to [0, 1]. A gate is not 0 with
   probability sigmoid(log alpha - beta log(-gamma / zeta)), whose sum is the expected number of edges.
3. At each step one draw of all gates and of some examples; the loss is KL(model || circuit), mean over these,
   plus the Lagrangian lambda1 (p - t) + lambda2 (p - t)^2 of the expected share p of the edges and its target
   t. Adam descends in log alpha and ascends in both lambdas.
4. The target goes down linearly from all edges to the wanted number, and stays there for the last steps.
5. The circuit is the wanted number of edges whose gates are most probably
   not 0, on average over these last steps.
6. Apart from earlier circuits: Overlap-Aware Sheaf Repulsion (Chen et al. 2026, arXiv 2605.12671; the term is
   that of the authors' code, github.com/TonyXiChen/OASR) adds to the loss

       weight * sum over the earlier circuits C of  (1 / |C|) * sum over e in C of  P(gate e is not 0),

   the expected share of each earlier circuit that is open. The authors add it to DiscoGP's loss, for one
   earlier circuit, with a weight near 1. Ours are the sum over several, and the unit of the weight: the loss
   with every gate closed, so that the same number does for any task and metric.

The paper's gates of whole nodes are left out (it disables their loss, too, where only edges count).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuitdiscovery.arguments import guarded
from circuitdiscovery.circuit.checks import check_same_graph
from circuitdiscovery.circuit.circuit import Circuit
from circuitdiscovery.circuit.scores import Scores
from circuitdiscovery.engine import distributed
from circuitdiscovery.engine.ablation import Ablation
from circuitdiscovery.engine.fast import PatchedRun
from circuitdiscovery.engine.finite import finite_gradient
from circuitdiscovery.engine.memory import relaxed
from circuitdiscovery.engine.metrics import BoundMetric, Metric, by_rows
from circuitdiscovery.engine.relaxed import Relaxed, graph_mask
from circuitdiscovery.engine.setup import Progress, Setup
from circuitdiscovery.engine.state import Array, State, adam_arrays, adam_as_kept, saved_in
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.model.model import Model
from circuitdiscovery.registry import KL, REPULSION
from circuitdiscovery.search.provenance import provenance
from circuitdiscovery.task.batch import Batch
from circuitdiscovery.task.task import Task

_GAMMA, _ZETA, _BETA = -0.1, 1.1, 2 / 3  # Louizos et al. 2018, section 4; Bhaskar et al. have the same
_SHIFT = _BETA * math.log(-_GAMMA / _ZETA)
_START = 2.0  # log alpha of every edge: nearly always open, and near enough to closing for some hundred steps
_RATE = 0.1  # of log alpha
_RATE_LAMBDA = 2.0  # above the rate of log alpha, so that a few hundred steps come near the target
EXAMPLES = 32  # in one step, as in the paper
_RAMP = 5 / 6  # of the steps, as in the paper's runs on GPT-2 (2,500 of 3,000)


@guarded
def edge_pruning(
    model: Model,
    task: Task,
    *,
    edges: int,
    steps: int = 200,
    metric: str | Metric | Any | None = None,
    ablation: str | Ablation = "resample",
    split_qkv: bool = True,
    graph: Graph | None = None,
    apart_from: Circuit | Sequence[Circuit] | None = None,
    repulsion: float | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    state: str | Path | None = None,
) -> Scores:
    """How probably each edge is open after its gate was learnt; `scores.top(edges)` is the circuit.

    Scores are probabilities, not damages. They are specific to one circuit size, and of interchangeable edges
    one takes all the credit.

    Args:
        model: a loaded model.
        task: all its examples are used.
        edges: how many are wanted, from 1 to all there are.
        steps: of gradient descent; each is a forward and a backward of 32 examples.
        metric: the loss is the mean over examples of |F(circuit) - F(model)|, which for kl_divergence, the
            default, is the divergence itself; differentiable.
        ablation: what a closed edge carries; noising.
        split_qkv: query, key and value as separate receivers.
        graph: whose edges, where nodes are split into parts (`split`); by default the model's.
        apart_from: an earlier circuit of the same graph, or several, or their files: their edges are kept
            closed where others do as well.
        repulsion: what it costs to open all edges of an earlier circuit, as a share of the loss with every
            edge closed; by default 0.5.
        batch_size: examples in one forward and backward; another size changes roundings only.
        seed: of the gates' draws.
        progress: called with (steps done, steps).
        state: as in `acdc`.

    Returns:
        Probabilities in [0, 1].

    Raises:
        CircuitDiscoveryError: an impossible number of edges or steps; a negative repulsion, or one from
            nothing; a metric without a gradient; an earlier circuit of another model or graph; a state of
            another search.

    >>> import circuitdiscovery as cd
    >>> from circuitdiscovery.search.edge_pruning import edge_pruning
    >>> model = cd.load_model("toy")
    >>> scores = edge_pruning(model, cd.load_task("ioi", model, examples=4), edges=40, steps=3)
    """
    graph = Graph.given(model, graph, split_qkv)
    check_edges(graph, edges)
    if steps < 1:
        raise CircuitDiscoveryError(f"steps must be at least 1, not {steps}")
    given = [apart_from] if isinstance(apart_from, Circuit) else apart_from or ()
    if repulsion is not None and not given:
        raise CircuitDiscoveryError("repulsion does nothing without apart_from: give it, too")
    repulsion = REPULSION if repulsion is None else repulsion
    if repulsion < 0:
        raise CircuitDiscoveryError(f"repulsion must be at least 0, not {repulsion}")
    how: dict[str, Any] = {"ablation": ablation, "batch_size": batch_size, "need": relaxed}
    setup = Setup.of(model, task, graph, metric=metric or KL, **how)
    options = setup.options(edges=edges, steps=steps, seed=seed)
    earlier = _earlier(model, graph, given)
    if earlier:
        options |= {"apart_from": [_digest(each) for each in earlier], "repulsion": repulsion}
    info = provenance(model, task, "edge_pruning", options)
    with saved_in(state, setup, info) as saved:
        done = saved.number("step", 0)
        if progress:
            progress(done, steps)
        parts = list(setup.patched_runs())
        distance = distance_to(setup.full_logits(parts), setup.metric)
        costs = _costs(earlier, repulsion * _closed(graph, distance, parts, len(task))) if earlier else None
        gates = _Gates(len(graph), seed, saved, costs)
        opened = saved.tensor("opened", torch.zeros(len(graph), dtype=torch.float64))
        for step in range(done, steps):
            sample = gates.sample()
            rows = gates.draw(len(task))
            gradient = mask_gradient(
                graph,
                distance,
                [_some(*part, rows) for part in parts],
                graph_mask(graph, sample.detach()),
                len(rows),
            )
            wanted = 1 - (1 - edges / len(graph)) * min(1.0, (step + 1) / (_RAMP * steps))
            gates.step(sample, torch.from_numpy(gradient[graph.allowed]), wanted)
            if step >= int(_RAMP * steps):
                opened += gates.open_probability().detach() / (steps - int(_RAMP * steps))
            saved.keep({"opened": opened, **gates.arrays()}, step=step + 1)
            if progress:
                progress(step + 1, steps)
    return Scores(graph, graph_mask(graph, opened).numpy(), info)


def check_edges(graph: Graph, edges: int) -> None:
    """Refuse a number of edges that a circuit of this graph cannot have."""
    if isinstance(edges, bool) or not isinstance(edges, int | np.integer) or not 1 <= edges <= len(graph):
        raise CircuitDiscoveryError(
            f"edges must be a whole number from 1 to {len(graph)}, the number there is, not {edges!r}"
        )


def check_gradient(setup: Setup) -> None:
    """Refuse a metric without a gradient in the logits, before anything runs."""
    metric, without, device = setup.metric, setup.metric.share, setup.model.device
    for batch in () if metric.divergence else setup.task.batches(1, [0]):  # one example tells
        with torch.enable_grad():
            logits = torch.zeros(1, setup.model.vocab_size, device=device).requires_grad_()
            without = without or not metric.function(logits, batch.to(device)).requires_grad
    if without:
        raise CircuitDiscoveryError(
            f"metric {metric.name!r} has no gradient; edges are ranked by a differentiable one"
        )


# ------------------------------------------------------------------ earlier circuits


def _earlier(model: Model, graph: Graph, given: Sequence[Circuit]) -> list[Circuit]:
    """The circuits that another one is wanted apart from: those with edges."""
    for circuit in given:
        circuit.check_model(model)
        check_same_graph(circuit, Circuit.empty(graph))
    return [circuit for circuit in given if len(circuit)]


def _digest(circuit: Circuit) -> str:
    return sha256(np.packbits(circuit.mask).tobytes()).hexdigest()[:16]


@torch.no_grad()
def _closed(
    graph: Graph, loss: BoundMetric, parts: Sequence[tuple[Batch, PatchedRun]], n_examples: int
) -> float:
    """The mean loss with every gate closed."""
    nothing = np.zeros_like(graph.allowed)
    each = [loss(patched.logits(nothing), batch).double().sum().cpu() for batch, patched in parts]
    return float(distributed.total(sum(each, start=torch.zeros((), dtype=torch.float64)))) / n_examples


def _costs(earlier: Sequence[Circuit], weight: float) -> Tensor:
    """[E]: what an open edge costs."""
    shares = (each.mask[each.graph.allowed] * (weight / len(each)) for each in earlier)
    return torch.from_numpy(sum(shares, start=np.zeros(len(earlier[0].graph))))


# ------------------------------------------------------------------ the gates


class _Gates:
    """Hard-concrete gates of E edges, and the two multipliers of their number; `costs`: [E], of open ones."""

    def __init__(self, count: int, seed: int, saved: State, costs: Tensor | None = None) -> None:
        self._costs = costs
        self.log_alpha = saved.tensor(
            "log alpha", torch.full((count,), _START, dtype=torch.float64)
        ).requires_grad_()
        self.multipliers = saved.tensor("multipliers", torch.zeros(2, dtype=torch.float64)).requires_grad_()
        self._generator = saved.generator("generator", torch.Generator().manual_seed(seed))
        up = {"params": [self.multipliers], "lr": _RATE_LAMBDA, "maximize": True}
        self._adam = torch.optim.Adam([{"params": [self.log_alpha]}, up], lr=_RATE)
        adam_as_kept(self._adam, self._learnt, saved)

    @property
    def _learnt(self) -> dict[str, Tensor]:
        return {"log alpha": self.log_alpha, "multipliers": self.multipliers}

    def arrays(self) -> dict[str, Array]:
        """Everything that the next step stands on, by the names that they are saved by."""
        return {"generator": self._generator, **adam_arrays(self._adam, self._learnt)}

    def sample(self) -> Tensor:
        """[E] in [0, 1], differentiable in log alpha."""
        u = torch.rand(len(self.log_alpha), dtype=torch.float64, generator=self._generator)
        s = torch.sigmoid((torch.logit(u, eps=1e-6) + self.log_alpha) / _BETA)
        return (s * (_ZETA - _GAMMA) + _GAMMA).clamp(0, 1)

    def draw(self, n_examples: int) -> Tensor:
        """The rows of a step's examples, the same in every process."""
        return torch.randperm(n_examples, generator=self._generator)[:EXAMPLES]

    def open_probability(self) -> Tensor:
        """[E]: that a gate is not 0."""
        return torch.sigmoid(self.log_alpha - _SHIFT)

    def step(self, sample: Tensor, gradient: Tensor, wanted: float) -> None:
        """One step, from the loss's [E] gradient at a sample and the wanted share of open gates."""
        opened = self.open_probability()
        surplus = opened.mean() - wanted
        penalty = self.multipliers[0] * surplus + self.multipliers[1] * surplus.square()
        if self._costs is not None:
            penalty = penalty + self._costs @ opened
        self._adam.zero_grad()
        torch.autograd.backward([sample, penalty], [gradient, None])
        self._adam.step()


# ------------------------------------------------------------------ the loss, and its gradient in the mask


def distance_to(full: Tensor, metric: BoundMetric) -> BoundMetric:
    """|F(circuit) - F(model)| of each example, which for kl_divergence is the
    divergence itself, from the model's logits.
    """

    def distance(given: Tensor, batch: Batch) -> Tensor:
        return (metric(given, batch) - metric(full[batch.rows], batch)).abs()

    return metric.against(by_rows(full)) if metric.divergence else BoundMetric(metric.name, False, distance)


def mask_gradient(
    graph: Graph, loss: BoundMetric, parts: Sequence[tuple[Batch, PatchedRun]], mask: Tensor, n_examples: int
) -> np.ndarray:
    """[S, R]: the gradient of the loss's mean over all examples in a real-valued [S, R] mask.

    Raises:
        CircuitDiscoveryError: a metric without a gradient, or one that is not finite.
    """
    total = torch.zeros(graph.allowed.shape, dtype=torch.float64)

    def summed(logits: Tensor, batch: Batch) -> Tensor:
        measured = loss(logits, batch).sum()
        if not measured.requires_grad or loss.name == "accuracy":
            raise CircuitDiscoveryError(
                f"metric {loss.name!r} has no gradient; edges are pruned by a differentiable one"
            )
        return measured

    for batch, patched in parts:
        if not len(batch):
            continue
        _, found = Relaxed.build(patched.model, graph).gradient(
            patched, mask, lambda logits, batch=batch: summed(logits, batch)
        )
        total += finite_gradient(found.double().cpu(), batch.rows)
    return distributed.total(total).numpy() / n_examples


def _some(batch: Batch, patched: PatchedRun, rows: Tensor) -> tuple[Batch, PatchedRun]:
    """The examples of a batch that are among some rows of the task."""
    at = torch.isin(batch.rows, rows.to(batch.rows.device))
    batch = Batch(*(getattr(batch, field.name)[at] for field in fields(batch)))
    return batch, replace(
        patched,
        start=patched.start[at],
        replacement=patched.replacement[:, at],
        position=patched.position[at],
        given=patched.given and patched.given.some(at),
    )
