"""The neurons of all MLPs as nodes: how much each matters to a task (unit_damages.py), and what it writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from circuitdiscovery.arguments import guarded
from circuitdiscovery.engine.memory import masked
from circuitdiscovery.engine.metrics import BoundMetric, Metric
from circuitdiscovery.engine.setup import Progress, Setup
from circuitdiscovery.errors import CircuitDiscoveryError, unknown
from circuitdiscovery.features.units import words_of
from circuitdiscovery.files.disk import data_frame
from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.graph.nodes import mlp_name, parsed, part_name
from circuitdiscovery.graph.splits import Split
from circuitdiscovery.measure import intervals
from circuitdiscovery.measure.estimates import Estimate, drawn
from circuitdiscovery.measure.evaluator import Evaluator
from circuitdiscovery.model.model import Model
from circuitdiscovery.search.unit_damages import NEURONS, chosen_by, line, mean_damages, need_of, unit_damages
from circuitdiscovery.task.task import Task
from circuitdiscovery.task.tokenization import text_of
from circuitdiscovery.values import Value

if TYPE_CHECKING:
    import pandas as pd

METHODS = ("eap", "eap_ig", "exact")
TOKENS = 6  # of a neuron, that are named at each end
_Tokens = tuple[tuple[str, float], ...]


@dataclass(frozen=True, repr=False)
class Neurons(Value):
    """The neurons that matter most (see `neurons`).

    Args:
        model, task, metric, ablation, method: on what, and how.
        examples: that the neurons were chosen on.
        measured: that their damage was measured on: as many held-out ones, else the same.
        damages: neuron -> its damage in the metric's units, the largest |damage| of the choice first; with a
            95% interval where other examples than those of the choice were measured.
        promoted, suppressed: neuron -> the tokens whose logits one unit of its activation raises the most,
            and those that it lowers the most, each with how much: directly, through the gains of the norm
            after the MLP, where there is one, and of the last norm. What these norms divide by, which depends
            on the prompt, is left out.
    """

    model: str
    task: str
    examples: int
    measured: int
    metric: str
    ablation: str
    method: str
    damages: Mapping[str, Estimate]
    promoted: Mapping[str, tuple[tuple[str, float], ...]]
    suppressed: Mapping[str, tuple[tuple[str, float], ...]]

    @property
    def names(self) -> tuple[str, ...]:
        """The neurons, the most important first."""
        return tuple(self.damages)

    def of(self, node: str) -> tuple[int, ...]:
        """The numbers of those in one MLP, as `split` takes them."""
        split = (name.partition("/") for name in self.names)
        return tuple(int(part[1:]) for own, _, part in split if own == node)

    def to_dataframe(self) -> pd.DataFrame:
        """One row per neuron: node, neuron, damage, low, high, promoted, suppressed. Needs pandas."""
        rows = []
        for name, damage in self.damages.items():
            node, _, part = name.partition("/")
            tokens = (
                ", ".join(token for token, _ in each[name]) for each in (self.promoted, self.suppressed)
            )
            rows.append((node, int(part[1:]), float(damage), damage.low, damage.high, *tokens))
        columns = ["node", "neuron", "damage", "low", "high", "promoted", "suppressed"]
        return data_frame(rows, columns=columns)

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield (
            f"{len(self.damages)} neurons of {self.model} on {self.task}: damage to {self.metric} by "
            f"{self.method}, {self.ablation}, chosen on {self.examples} examples, measured on {self.measured}"
        )
        for name, damage in self.damages.items():
            tokens = " ".join(token for token, _ in self.promoted[name])
            yield f"{name:<12} {damage!s:<24} writes {tokens}"


@guarded
def neurons(
    model: Model,
    task: Task,
    *,
    top: int = 50,
    method: str = "eap",
    metric: str | Metric | Any | None = None,
    ablation: str = "resample",
    graph: Graph | None = None,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Neurons:
    """The neurons whose ablation does the most damage, of all MLPs.

    All are scored by attribution on the task's examples; of the best ones the damage is then measured on the
    held-out examples, where there are some, because that of the examples they were chosen on is too large.

    Args:
        model: a loaded model.
        task: its examples choose, its held-out examples measure.
        top: how many.
        method: `eap` takes the gradient on the clean prompt, `eap_ig` at five points of the line from the
            corrupted one; `exact` chooses by `eap_ig` and measures the damage of ablating each chosen neuron.
        metric: differentiable; for `exact` accuracy too, which chooses by the logit difference. By default
            the task's own; kl_divergence has no gradient on the clean prompt, which `eap` takes.
        ablation: `resample` or `zero`.
        graph: the neurons that are parts of it alone are ranked; by default all.
        batch_size: examples in one forward.
        progress: called with (examples done, in all).

    Returns:
        The neurons with their damages and the tokens that they write.

    Raises:
        CircuitDiscoveryError: a model without neurons (attention alone, or experts); an unknown method or
            ablation; fewer neurons than `top`; a metric without the gradient that the method takes.

    >>> import circuitdiscovery as cd
    >>> model = cd.load_model("toy")
    >>> table = cd.neurons(model, cd.load_task("subject_verb_agreement", model, examples=16), top=5)
    >>> len(table.names)
    5
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    ranks = _among(model, graph)
    kinds, count = dict.fromkeys(ranks, NEURONS), sum(map(len, ranks.values()))
    if not kinds:
        of = model.name if graph is None else "the graph"
        raise CircuitDiscoveryError(f"{of} has no MLPs with neurons")
    if type(top) is not int or not 1 <= top <= count:
        raise CircuitDiscoveryError(f"top must be a whole number from 1 to {count:,}, not {top!r}")
    how: dict[str, Any] = {"metric": metric, "ablation": ablation, "batch_size": batch_size}
    how |= {"plain": True, "need": need_of(kinds)}
    setup, points = Setup.of(model, task, **how), line("eap_ig" if method == "exact" else method)
    _check_gradient(setup.metric, method)
    damages = mean_damages(chosen_by(setup), kinds, points, progress)
    ranked = sorted(
        ((layer, unit) for layer, units in ranks.items() for unit in units),
        key=lambda at: -abs(damages[at[0]][at[1]]),
    )[:top]
    other = setup if task.held_out is None else Setup.of(model, task.held_out, **how)
    if method == "exact":
        estimates = _measured(other, ranked)
    elif other is setup:
        estimates = [damages[layer][unit] for layer, unit in ranked]
    else:
        units = {layer: [unit for own, unit in ranked if own == layer] for layer, _ in ranked}
        found = unit_damages(other, dict.fromkeys(units, NEURONS), points, only=units)
        values = np.stack([found[layer][:, units[layer].index(unit)] for layer, unit in ranked])
        estimates = intervals.means(values, drawn(values.shape[1], 0))
    if other is setup:  # the examples that they were chosen on, of whose largest no interval would hold
        estimates = [Estimate(float(each)) for each in estimates]
    names = [part_name(mlp_name(layer), f"n{unit}") for layer, unit in ranked]
    promoted, suppressed = _tokens(model, ranked)
    return Neurons(
        model=model.name,
        task=task.title,
        examples=len(task),
        measured=len(other.task),
        metric=setup.metric.name,
        ablation=setup.ablation_name,
        method=method,
        damages=dict(zip(names, estimates, strict=True)),
        promoted=dict(zip(names, promoted, strict=True)),
        suppressed=dict(zip(names, suppressed, strict=True)),
    )


def _check_gradient(metric: BoundMetric, method: str) -> None:
    """Refuse a metric without the gradient that a method takes."""
    if metric.divergence and method == "eap":
        raise CircuitDiscoveryError(
            f"metric {metric.name!r} has no gradient on the clean run, where it is 0 at its least; use "
            "method='eap_ig' or 'exact'"
        )
    if metric.share and method != "exact":
        raise CircuitDiscoveryError(
            f"metric {metric.name!r} has no gradient: use method='exact', or another metric"
        )


def _among(model: Model, graph: Graph | None) -> dict[int, Sequence[int]]:
    """layer -> the neurons that are ranked."""
    if graph is not None:
        splits = Graph.given(model, graph).splits
        return {parsed(each.node).layer: each.numbers for each in splits if each.kind == "neurons"}
    return {layer: range(each.d_mlp) for layer, each in enumerate(model.blocks) if each.W_in is not None}


def _measured(setup: Setup, ranked: Sequence[tuple[int, int]]) -> list[Estimate]:
    """The damage of removing all edges out of each neuron, several at a time."""
    by_layer: dict[int, list[int]] = {}
    for layer, unit in ranked:
        by_layer.setdefault(layer, []).append(unit)
    splits = (
        Split(mlp_name(layer), "neurons", tuple(f"n{unit}" for unit in units), own=True)
        for layer, units in sorted(by_layer.items())
    )
    graph = replace(setup.model.graph, splits=tuple(splits))
    need = masked(setup.model, graph, setup.task)
    evaluator = Evaluator.build(replace(setup, graph=graph, need=need))
    full, without = evaluator.ablated([part_name(mlp_name(layer), f"n{unit}") for layer, unit in ranked])
    return [evaluator.damage(full, less) for less in without]


def _tokens(model: Model, units: Sequence[tuple[int, int]]) -> tuple[list[_Tokens], list[_Tokens]]:
    """The tokens that each neuron promotes and those that it suppresses, by what it writes directly to the
    logits."""
    wide, columns = torch.promote_types(model.dtype, torch.float32), []
    for layer, unit in units:
        block = model.blocks[layer]
        assert block.W_out is not None
        column, norm = block.W_out[:, unit].to(wide), block.norm_after("m")
        columns.append((column if norm is None else norm.gained(column)).to(model.device))
    logits = words_of(model, torch.stack(columns)).to(wide)
    found: tuple[list[_Tokens], list[_Tokens]] = [], []
    for sign, into in zip((1, -1), found, strict=True):
        best = (sign * logits).topk(min(TOKENS, logits.shape[-1]))
        for tokens, values in zip(best.indices.tolist(), best.values.tolist(), strict=True):
            words = [text_of(model.tokenizer, [token]) for token in tokens]
            into.append(tuple(zip(words, (sign * value for value in values), strict=True)))
    return found
