"""Interventions that tell what a node does: on its edges, on the words of the prompts, on what its keys see.

1. edges: ablate only some of the edges out of a node (Wang et al. 2022, arXiv 2211.00593, section 3: path patching).
2. words: give a head what it writes where the prompt has another word at one position (interchange intervention; Geiger et al.
   2021, arXiv 2106.02997). The word is another example's, so the prompt stays one of its kind.
3. the same seen by the head's values alone, or by its keys alone: it tells what the head moves from what it matches, and a head
   that looks for copies of a token from one that is told of them.
4. copies: take away the earlier copies of the token at END. A head that attends to what followed them because of the copies then
   no longer does; one that finds the same place by other means still does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from circuitdiscovery.ablation import Ablation, OnDemand, run_sources
from circuitdiscovery.attention import after_copies, attention_on, head_of
from circuitdiscovery.bench import Bench, Family, Work
from circuitdiscovery.encoder import Example
from circuitdiscovery.estimates import Estimate
from circuitdiscovery.graph import Graph
from circuitdiscovery.model import Model
from circuitdiscovery.task import Batch, Task

ENOUGH = 0.5  # of the examples must have another word to change to

Cut = tuple[str, tuple[int, ...]]  # a node, and the receivers (columns) that its edges into are ablated


@dataclass(frozen=True)
class Trials:
    """Interventions on a model, on some of a task's examples.

    Args:
        model: what runs.
        task: its examples give the other words.
        rows: the examples that interventions run on.
        bench: of these, ablates as the caller asks; interventions on words have benches of their own.
        metric, batch_size: as the bench was built with.
        work: what all benches are part of.
    """

    model: Model
    task: Task
    rows: tuple[int, ...]
    bench: Bench
    metric: Any
    batch_size: int | None
    work: Work

    def nodes(self, nodes: Sequence[str]) -> tuple[float, float, dict[str, Estimate]]:
        """The mean metric of the whole model and with every edge ablated, and the damage of ablating all that each of some nodes writes."""
        graph = self.bench.graph
        less = [_without(graph, graph.source_index[node], slice(None)) for node in nodes]
        self.bench.measure_families([Family([graph.allowed, *less]), Family([np.zeros_like(graph.allowed)])])
        full, empty = (float(self.bench.values(mask).mean()) for mask in (graph.allowed, np.zeros_like(graph.allowed)))
        return full, empty, dict(zip(nodes, self.damages(self.bench, less), strict=True))

    def edges(self, cuts: Sequence[Cut]) -> dict[Cut, Estimate]:
        """The damage of ablating a node's edges into some receivers, for each of some."""
        graph = self.bench.graph
        found = self.damages(self.bench, [_without(graph, graph.source_index[node], list(columns)) for node, columns in cuts])
        return dict(zip(cuts, found, strict=True))

    def damages(self, bench: Bench, masks: Sequence[np.ndarray]) -> list[Estimate]:
        """The damage of keeping only a mask's edges, for each of some."""
        if not masks:
            return []
        full = bench.graph.allowed
        bench.measure([full, *masks])
        return [bench.estimate(bench.metric.damage, bench.values(full), bench.values(mask)) for mask in masks]

    def words(self, name: str) -> Words | None:
        """The same with another word at a named position; None where there is no other."""
        other = other_word(self.task, name, self.rows)
        return None if other is None else Words(self, name, other)

    def after_copies(self, heads: Sequence[str]) -> Mapping[str, float]:
        """The mean attention of some heads from END to what followed earlier copies of its token, with other tokens in their place."""
        changed = [(row, prompt) for row in self.rows if (prompt := _without_copies(self.task, row)) is not None]
        if not changed:
            return {}
        old = [self.task.examples[row] for row, _ in changed]
        new = [replace(example, clean=prompt) for example, (_, prompt) in zip(old, changed, strict=True)]
        total = np.zeros(len(heads))
        layers, places = zip(*map(head_of, heads), strict=True)
        for batch, seen in attention_on(self.model, replace(self.task, examples=tuple(new), held_out=None), self.batch_size):
            weights = seen[list(layers), list(places)].cpu().numpy()  # [h, N, T, T]
            for i, row in enumerate(batch.rows.tolist()):
                total += weights[:, i, old[row].position, after_copies(old[row])].sum(-1)
        return dict(zip(heads, (total / len(old)).tolist(), strict=True))


@dataclass(frozen=True)
class Words:
    """What heads do where another word stands at a named position.

    Where heads share their keys and values, what `values` and `keys` tell is their group's.

    Args:
        trials: what the interventions run on.
        name: the position.
        task: the examples, each against itself with the other word.
    """

    trials: Trials
    name: str
    task: Task

    def whole(self, heads: Sequence[str]) -> dict[str, Estimate]:
        """The damage to all that a head writes."""
        if not heads:
            return {}
        index = self.trials.model.graph.source_index
        return self._damages(self._written, heads, [(index[head], slice(None)) for head in heads])

    def values(self, heads: Sequence[str]) -> dict[str, Estimate]:
        """The damage of the other word seen by a head's values alone: what it moves."""
        if not heads:
            return {}
        return self._damages(self._written, heads, [(slice(None), self._column(head, "v")) for head in heads])

    def keys(self, heads: Sequence[str]) -> dict[str, Estimate]:
        """The damage of the other word seen by a head's keys alone, at that position alone: what it matches there."""
        if not heads:
            return {}
        bench = self._bench(OnDemand(f"another word at {self.name}", False, self._only_here))
        return self._damages(bench, heads, [(slice(None), self._column(head, "k")) for head in heads])

    def attention(self, heads: Sequence[str], query: str) -> dict[str, float]:
        """The mean attention of some heads from a named position to the other word."""
        layers, places = zip(*map(head_of, heads), strict=True)
        weights: list[np.ndarray] = []  # [h] each
        other = [replace(example, clean=example.corrupted) for example in self.task.examples]
        for batch, seen in attention_on(self.trials.model, replace(self.task, examples=tuple(other)), self.trials.batch_size):
            for i, row in enumerate(batch.rows.tolist()):
                at = self.task.examples[row].positions
                if query in at and self.name in at:
                    weights.append(seen[list(layers), list(places), i, at[query], at[self.name]].cpu().numpy())
        return dict(zip(heads, np.mean(weights, axis=0).tolist(), strict=True))

    @cached_property
    def _written(self) -> Bench:
        return self._bench("resample")

    def _bench(self, ablation: str | Ablation) -> Bench:
        trials = self.trials
        given = ablation, trials.metric, "noising", trials.batch_size, 0
        return Bench.build(trials.model, self.task, trials.model.graph, *given, work=trials.work)

    def _damages(self, bench: Bench, heads: Sequence[str], cuts: Sequence[tuple[int | slice, int | slice]]) -> dict[str, Estimate]:
        found = self.trials.damages(bench, [_without(bench.graph, rows, columns) for rows, columns in cuts])
        return dict(zip(heads, found, strict=True))

    def _column(self, node: str, letter: str) -> int:
        graph, (layer, head) = self.trials.model.graph, head_of(node)
        return int(graph.columns(layer, letter)[head // (graph.n_heads // graph.n_kv_heads)])

    def _only_here(self, batch: Batch) -> Tensor:
        """[S, B, T, D]: what every source writes on the clean prompts, at the named position on the other ones."""
        values, other = run_sources(self.trials.model, batch.clean), run_sources(self.trials.model, batch.corrupted)
        for i, row in enumerate(batch.rows.tolist()):
            at = self.task.examples[row].positions.get(self.name, 0)
            values[:, i, at] = other[:, i, at]
        return values


def _without(graph: Graph, rows: int | slice, columns: list[int] | int | slice) -> np.ndarray:
    """[S, R] bool: all edges but those from some sources into some receivers."""
    mask = graph.allowed.copy()
    mask[rows, columns] = False
    return mask


def other_word(task: Task, name: str, rows: Sequence[int] | None = None) -> Task | None:
    """Some of a task's examples (by default all), each against itself with another word at a named position.

    The word is that of the example of the task whose answers contradict this one's most, or else the next one's, and not in the
    prompt. None where less than half of the examples can be changed.
    """
    examples = tuple(_with_other_word(task, row, name) for row in (range(len(task)) if rows is None else rows))
    changed = sum(example.clean != example.corrupted for example in examples)
    return replace(task, examples=examples, held_out=None) if changed >= ENOUGH * len(examples) else None


def _with_other_word(task: Task, row: int, name: str) -> Example:
    example, prompt = task.examples[row], list(task.examples[row].clean)
    others = [other for other in (*task.examples[row + 1 :], *task.examples[:row]) if name in other.positions]
    others = [other for other in others if other.clean[other.positions[name]] not in prompt]
    if name in example.positions and others:
        other = max(others, key=lambda other: _contradiction(example, other))
        prompt[example.positions[name]] = other.clean[other.positions[name]]
    return replace(example, corrupted=tuple(prompt))


def _contradiction(a: Example, b: Example) -> int:
    """How many answers are right for one and wrong for the other."""
    return len({*a.correct} & {*b.incorrect}) + len({*a.incorrect} & {*b.correct})


def _without_copies(task: Task, row: int) -> tuple[int, ...] | None:
    """The prompt with other examples' tokens in place of the earlier copies of the one at END; None where it has none.

    A token from the same place goes before others; none stands in the prompt.
    """
    example, prompt = task.examples[row], list(task.examples[row].clean)
    others = [other.clean for other in (*task.examples[row + 1 :], *task.examples[:row])]
    for after in after_copies(example):
        alike = [other[after - 1] for other in others if len(other) >= after]
        word = next((word for word in (*alike, *(word for other in others for word in other)) if word not in prompt), None)
        if word is None:
            return None
        prompt[after - 1] = word
    return tuple(prompt) if tuple(prompt) != example.clean else None
