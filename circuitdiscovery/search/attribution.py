"""Attribution patching: the damage of ablating each edge, to first order.

EAP: Syed et al. 2023, arXiv 2310.10348, equation 3. EAP-IG (inputs): Hanna et al. 2024, arXiv 2403.17806, equation 3.
Clean-corrupted: the mean of the gradients at both ends.

1. Run the clean prompts and take the ablation's replacements: the difference of every source.
2. At each point of the straight line between the two values of `input`, run forward and backward and keep the metric's
   gradient at what every receiver reads, as far back as its projection (query, key, value) or its norm's output.
3. Pull it back through the projection and the norm to the residual stream. The norm's Jacobian at stream x with
   normalised x' and deviation s is g -> (centre(g) - x' mean(g x')) / s; centring is done once, on the differences.
4. One product per layer and letter of the sources' differences with these gradients gives the score of every edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuitdiscovery import distributed
from circuitdiscovery.ablation import Ablation, on_demand, run_sources
from circuitdiscovery.circuit import Scores
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.forward import Reading, embed, plain_run
from circuitdiscovery.graph import Graph
from circuitdiscovery.metrics import BoundMetric, Metric, bind
from circuitdiscovery.model import Model
from circuitdiscovery.names import canonical
from circuitdiscovery.patching import Progress, batches
from circuitdiscovery.search.provenance import provenance
from circuitdiscovery.task import Batch, Task

_NO_GRADIENT = "metric 'kl_divergence' has no gradient on the clean run, where it is 0 at its least; use eap_ig (or exact)"


def eap(
    model: Model,
    task: Task,
    *,
    metric: str | Metric | Any | None = None,
    ablation: str | Ablation = "resample",
    direction: str = "noising",
    split_qkv: bool = True,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Scores:
    """Edge attribution patching: -(replacement - clean) . gradient at the receiver on the clean run, mean over examples.

    Args:
        model: a loaded model.
        task: all its examples are used.
        metric: differentiable; by default the task's own. Scores are in its units, positive where the circuit needs the edge.
        ablation: what a removed edge carries.
        direction: `denoising` takes the gradient on the corrupted run, and the corrupted run as the replacement.
        split_qkv: query, key and value as separate receivers.
        batch_size: examples in one forward and backward; scores do not depend on it.
        progress: called with (examples done, examples in all), of this process's share.

    Raises:
        CircuitDiscoveryError: kl_divergence with noising, whose gradient is zero on the clean run.

    >>> import circuitdiscovery as cd
    >>> model = cd.load_model("toy")
    >>> scores = cd.eap(model, cd.load_task("ioi", model, examples=4))
    """
    denoising = canonical("direction", direction) == "denoising"
    at = (0.0,) if denoising else (1.0,)
    carried = "resample" if denoising else ablation
    options = {"direction": direction}
    return _attribute(model, task, at, "eap", options, metric, carried, split_qkv, batch_size, progress)


def eap_ig(
    model: Model,
    task: Task,
    *,
    steps: int = 5,
    rule: str = "midpoint",
    metric: str | Metric | Any | None = None,
    ablation: str | Ablation = "resample",
    split_qkv: bool = True,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Scores:
    """EAP with integrated gradients: the gradient averaged along the straight line between the two values of `input`.

    Args:
        model, task, metric, ablation, split_qkv, batch_size, progress: as in `eap`; kl_divergence works here.
        steps: points on the line.
        rule: `midpoint` evaluates at (i + 1/2) / steps (second-order accurate); `left` at i / steps from the corrupted end,
            which never evaluates the clean end (the rule of the EAP-IG code).

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
    return _attribute(model, task, at, "eap_ig", {"steps": steps, "rule": rule}, metric, ablation, split_qkv, batch_size, progress)


def clean_corrupted(
    model: Model,
    task: Task,
    *,
    metric: str | Metric | Any | None = None,
    ablation: str | Ablation = "resample",
    split_qkv: bool = True,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Scores:
    """EAP with the mean of the gradients at the clean and at the corrupted end of the line (arguments as in `eap`).

    >>> import circuitdiscovery as cd
    >>> model = cd.load_model("toy")
    >>> scores = cd.clean_corrupted(model, cd.load_task("ioi", model, examples=4))
    """
    return _attribute(model, task, (0.0, 1.0), "clean_corrupted", {}, metric, ablation, split_qkv, batch_size, progress)


def _attribute(
    model: Model,
    task: Task,
    at: Sequence[float],
    method: str,
    options: dict[str, Any],
    metric: str | Metric | Any | None,
    ablation: str | Ablation,
    split_qkv: bool,
    batch_size: int | None,
    progress: Progress | None,
) -> Scores:
    """Scores by the mean of the gradients at points of the line: 0 is the corrupted end, 1 the clean one."""
    bound = bind(metric or task.metric, model, task)
    if bound.name == "kl_divergence" and tuple(at) == (1.0,):
        raise CircuitDiscoveryError(_NO_GRADIENT)
    graph = Graph.from_model(model, split_qkv=split_qkv)
    carried = on_demand(model, task, ablation)
    total = torch.zeros(graph.allowed.shape, device=model.device, dtype=torch.promote_types(model.dtype, torch.float32))
    done, share = 0, len(distributed.share(task))
    for batch in batches(model, task, batch_size):
        total += _batch_products(model, graph, batch, carried, bound, at)
        done += len(batch.rows)
        if progress:
            progress(done, share)
    sign = -1.0 if bound.higher_is_better else 1.0  # damage = -(replacement - clean) . gradient, where higher is better
    values = (distributed.total(total).double().cpu().numpy() * (sign / (len(at) * len(task)))).astype(np.float64)
    info = provenance(model, task, method, {**options, "metric": bound.name, "ablation": carried.name, "split_qkv": split_qkv})
    return Scores(graph, np.where(graph.allowed, values, 0.0), info)


def _batch_products(model: Model, graph: Graph, batch: Batch, carried: Ablation, metric: BoundMetric, at: Sequence[float]) -> Tensor:
    """[S, R]: (replacement - clean) . gradient, summed over a batch's examples and the points of the line."""
    with torch.no_grad():
        clean = embed(model, batch.clean)
        replacement = carried.rows(batch)
    # the clean end's run serves twice: its sources, and its gradients
    at_clean = _readings(model, clean, batch, metric, keep_sources=True) if 1.0 in at else None
    with torch.no_grad():
        difference = run_sources(model, clean) if at_clean is None else at_clean[2]
        torch.sub(replacement, difference, out=difference)  # [S, N, T, D]
        start = replacement[0]
        line = [at_clean[:2]] if at_clean is not None else []
        del replacement, at_clean
        if model.final_norm.centred:
            difference -= difference.mean(-1, keepdim=True)
    total = difference.new_zeros(graph.allowed.shape, dtype=torch.promote_types(model.dtype, torch.float32))
    for weight in at:
        readings, gradients = line.pop() if weight == 1.0 else _readings(model, start + weight * (clean - start), batch, metric)[:2]
        pairs = zip(readings, gradients, strict=True)
        for _, place in groupby(pairs, key=lambda pair: (pair[0].layer, pair[0].weight is None)):  # a layer's q, k and v together
            _add_products(total, graph, difference, batch.position, list(place))
    return total


def _readings(
    model: Model, start: Tensor, batch: Batch, metric: BoundMetric, *, keep_sources: bool = False
) -> tuple[tuple[Reading, ...], tuple[Tensor, ...], Tensor | Any]:
    """(what every receiver read, the summed metric's gradient at each reading's values, the sources) of a plain run."""
    with torch.enable_grad():
        run = plain_run(model, start.detach().requires_grad_(), batch.position, keep_sources=keep_sources, keep_readings=True)
        measured = metric(run.logits, batch).sum()
        if not measured.requires_grad or metric.name == "accuracy":
            raise CircuitDiscoveryError(f"metric {metric.name!r} has no gradient; attribution needs a differentiable one (or use exact)")
        gradients = torch.autograd.grad(measured, [reading.values for reading in run.readings])
    return run.readings, gradients, run.sources


@torch.no_grad()
def _add_products(total: Tensor, graph: Graph, difference: Tensor, position: Tensor, place: Sequence[tuple[Reading, Tensor]]) -> None:
    """Add the products of the (centred) differences with the gradients of all readings of one stream to `total` [S, R]."""
    first = place[0][0]
    at_stream = _pull_back(place)  # [R', N, T, D]
    if first.letter == "logits":
        upstream, columns = len(difference), np.array([len(graph.receivers) - 1])
        difference = difference[:, torch.arange(len(position), device=position.device), position]  # [S, N, D]
    else:
        upstream = graph.n_upstream(first.layer, first.letter)
        columns = np.concatenate([graph.columns(reading.layer, reading.letter) for reading, _ in place])
    products = difference[:upstream].flatten(1) @ at_stream.flatten(1).T  # [S', R']
    # merged receivers stand several times in `columns`, and get the sum
    total[:upstream].index_add_(1, torch.from_numpy(columns).to(total.device), products.to(total.dtype))


def _pull_back(place: Sequence[tuple[Reading, Tensor]]) -> Tensor:
    """The gradients at the stream before the norm, less a constant over d_model where the norm is centred: [R', ..., D]."""
    norm, stream = place[0][0].norm, place[0][0].stream.detach()
    if norm.centred:
        stream = stream - stream.mean(-1, keepdim=True)
    inverse = torch.rsqrt(stream.square().mean(-1, keepdim=True) + norm.eps)  # [..., 1]
    normalised = stream * inverse
    rows = [1 if reading.weight is None else len(reading.weight) for reading, _ in place]
    pulled = stream.new_empty(sum(rows), *stream.shape)
    for (reading, gradient), out in zip(place, pulled.split(rows), strict=True):
        if reading.weight is None:
            torch.mul(gradient, norm.weight * inverse, out=out[0])
            along = (out * normalised).mean(-1, keepdim=True)
        else:  # in head space the product with the normalised stream is one over d_head, not d_model
            gradient = gradient * inverse  # [R, N, T, K]
            torch.bmm(gradient.flatten(1, 2), reading.weight * norm.weight, out=out.flatten(1, 2))
            along = (gradient * _without_bias(reading)).sum(-1, keepdim=True) / stream.shape[-1]
        out.addcmul_(normalised, along, value=-1)
    return pulled


def _without_bias(reading: Reading) -> Tensor:
    """[R, N, T, K]: the values less what they would be at a normalised stream of 0."""
    values, weight = reading.values.detach(), reading.weight
    assert weight is not None
    offset = torch.zeros_like(weight[..., 0]) if reading.norm.bias is None else weight @ reading.norm.bias
    offset = offset if reading.bias is None else offset + reading.bias
    return values - offset[:, None, None]
