"""Attribution patching: the damage of ablating each edge, to first order.

EAP: Syed et al. 2023, arXiv 2310.10348, equation 3. EAP-IG (inputs): Hanna et al. 2024, arXiv 2403.17806,
equation 3. Clean-corrupted: the mean of the gradients at both ends.

1. Run the clean prompts and take the ablation's replacements: the difference of every source.
2. At each point of the straight line between the two values of `input`, the clean run's and the ablated run's
   (where no run writes the replacements, as of a mean or zero, the corrupted run's), run forward and backward
   and keep the metric's gradient at what every receiver reads, as far back as its projection (query, key,
   value) or its norm's output.
3. Pull it back through the projection and the norm to the residual stream. The norm's Jacobian at stream x
   with normalised x' and deviation s is g -> (centre(g) - x' mean(g x')) / s. All of this is linear in the
   gradient: g / s is summed over the points of the line while it is small, and goes through the projection
   once.
4. One product per place of the stream, of the sources' differences with these
   gradients, gives the score of every edge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuitdiscovery.arguments import guarded
from circuitdiscovery.circuit.scores import Scores
from circuitdiscovery.engine import distributed
from circuitdiscovery.engine.ablation import Ablation, name_of
from circuitdiscovery.engine.fast import Memory
from circuitdiscovery.engine.memory import along_a_line
from circuitdiscovery.engine.metrics import Metric
from circuitdiscovery.engine.setup import Progress, Setup
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.model.model import Model
from circuitdiscovery.registry import checked_direction
from circuitdiscovery.search.gradient_products import batch_products
from circuitdiscovery.search.provenance import provenance
from circuitdiscovery.task.task import Task

_NO_GRADIENT = (
    "metric 'kl_divergence' has no gradient on the clean run, where it is 0 at its least; use "
    "eap_ig (or exact)"
)


@guarded
def eap(
    model: Model,
    task: Task,
    *,
    metric: str | Metric | Any | None = None,
    ablation: str | Ablation = "resample",
    direction: str = "noising",
    split_qkv: bool = True,
    graph: Graph | None = None,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Scores:
    """Edge attribution patching: -(replacement - clean) . gradient at the
    receiver on the clean run, mean over examples.

    Args:
        model: a loaded model.
        task: all its examples are used.
        metric: differentiable; by default the task's own. Scores are in its units,
            positive where the circuit needs the edge.
        ablation: what a removed edge carries.
        direction: `denoising` takes the gradient on the corrupted run,
            and the corrupted run as the replacement (no `ablation`).
        split_qkv: query, key and value as separate receivers.
        graph: whose edges, where nodes are split into parts (`split`); by default the model's.
        batch_size: examples in one forward and backward; scores do not depend on it.
        progress: called with (examples done, examples in all), of this process's share.

    Returns:
        The damage of ablating each edge, to first order, in the metric's units.

    Raises:
        CircuitDiscoveryError: kl_divergence with noising, whose gradient is zero on the clean run; denoising
            with an ablation.

    >>> import circuitdiscovery as cd
    >>> model = cd.load_model("toy")
    >>> scores = cd.eap(model, cd.load_task("ioi", model, examples=4))
    """
    denoising = checked_direction(direction, name_of(ablation)) == "denoising"
    at = (0.0,) if denoising else (1.0,)
    carried = "resample" if denoising else ablation
    line = _Line("eap", at, {"direction": direction})
    graph = Graph.given(model, graph, split_qkv)
    return _attribute(model, task, line, metric, carried, graph, batch_size, progress)


@guarded
def eap_ig(
    model: Model,
    task: Task,
    *,
    steps: int = 5,
    rule: str = "midpoint",
    metric: str | Metric | Any | None = None,
    ablation: str | Ablation = "resample",
    split_qkv: bool = True,
    graph: Graph | None = None,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Scores:
    """EAP with integrated gradients: the gradient averaged along the
    straight line between the two values of `input`.

    The line goes from the clean prompt's embedding to that of the run whose values are the replacements, or,
    where these are a mean, zero or drawn, to the corrupted prompt's.

    Args:
        model, task, metric, ablation, split_qkv, graph, batch_size, progress: as in `eap`; kl_divergence
            works here.
        steps: points on the line.
        rule: `midpoint` evaluates at (i + 1/2) / steps (second-order accurate); `left` at i / steps from the
            corrupted end, which never evaluates the clean end (the rule of the EAP-IG code).

    Returns:
        The damage of ablating each edge, by the mean gradient, in the metric's units.

    Raises:
        CircuitDiscoveryError: steps below 1, an unknown rule.

    >>> import circuitdiscovery as cd
    >>> model = cd.load_model("toy")
    >>> scores = cd.eap_ig(model, cd.load_task("ioi", model, examples=4), steps=2)
    """
    if steps < 1:
        raise CircuitDiscoveryError(f"steps must be at least 1, not {steps}")
    offsets = {"midpoint": 0.5, "left": 0.0}
    if rule not in offsets:
        raise CircuitDiscoveryError(f"no rule {rule!r}; valid rules: midpoint, left")
    at = [(i + offsets[rule]) / steps for i in range(steps)]
    line = _Line("eap_ig", at, {"steps": steps, "rule": rule})
    graph = Graph.given(model, graph, split_qkv)
    return _attribute(model, task, line, metric, ablation, graph, batch_size, progress)


@guarded
def clean_corrupted(
    model: Model,
    task: Task,
    *,
    metric: str | Metric | Any | None = None,
    ablation: str | Ablation = "resample",
    split_qkv: bool = True,
    graph: Graph | None = None,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Scores:
    """EAP with the mean of the gradients at the clean and at the corrupted
    end of the line (arguments as in `eap`).

    Args:
        model, task, metric, ablation, split_qkv, graph, batch_size, progress: as in `eap`.

    Returns:
        The damage of ablating each edge, by the mean of both gradients, in the metric's units.

    >>> import circuitdiscovery as cd
    >>> model = cd.load_model("toy")
    >>> scores = cd.clean_corrupted(model, cd.load_task("ioi", model, examples=4))
    """
    return _attribute(
        model,
        task,
        _Line("clean_corrupted", (0.0, 1.0), {}),
        metric,
        ablation,
        Graph.given(model, graph, split_qkv),
        batch_size,
        progress,
    )


@dataclass(frozen=True)
class _Line:
    """A method as the points where it takes the gradient: 0 is the
    corrupted end of the line, 1 the clean one.
    """

    method: str
    points: Sequence[float]
    options: Mapping[str, Any]


def _attribute(
    model: Model,
    task: Task,
    line: _Line,
    metric: str | Metric | Any | None,
    ablation: str | Ablation,
    graph: Graph,
    batch_size: int | None,
    progress: Progress | None,
) -> Scores:
    """Scores by the mean of the gradients at the points of a line."""
    method, at = line.method, line.points
    how: dict[str, Any] = {"metric": metric, "ablation": ablation, "batch_size": batch_size}
    need = partial(along_a_line, points=len(at))
    setup = Setup.of(model, task, graph, **how, plain=True, need=need)
    bound = setup.metric
    if bound.divergence and tuple(at) == (1.0,):
        raise CircuitDiscoveryError(_NO_GRADIENT)
    done, share = 0, len(distributed.share(task))
    if progress:
        progress(done, share)
    carried = setup.carried
    given = not isinstance(ablation, str)  # and not to be written to
    dtype = torch.promote_types(model.dtype, torch.float32)
    total = torch.zeros(graph.allowed.shape, device=model.device, dtype=dtype)
    memory = Memory(model.W_E)
    for batch in setup.batches:
        replacement = _own(carried.packed(batch), model, given)
        total += batch_products(
            setup.parts(batch), batch, replacement, carried.starts_at_input, bound, at, memory
        )
        done += len(batch.rows)
        if progress:
            progress(done, share)
    # damage = -(replacement - clean) . gradient, where higher is better
    sign = -1.0 if bound.higher_is_better else 1.0
    values = distributed.total(total).double().cpu().numpy() * (sign / (len(at) * len(task)))
    info = provenance(model, task, method, setup.options(**line.options))
    if not np.isfinite(values).all():
        raise CircuitDiscoveryError(
            f"{method}: the gradients of task {task.title} are not finite numbers; try dtype float32"
        )
    return Scores(graph, np.where(graph.allowed, values, 0.0), info)


@torch.no_grad()
def _own(replacement: Tensor, model: Model, given: bool) -> Tensor:
    """[S, N, T, D] as the model's weights are, that may be written to:
    the clean run is taken from it in place.
    """
    return replacement.to(model.W_E, copy=given).contiguous()
