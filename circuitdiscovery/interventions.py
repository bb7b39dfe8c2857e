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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from circuitdiscovery.ablation import Ablation, OnDemand, run_sources
from circuitdiscovery.attention import after_copies, attention, head_of
from circuitdiscovery.encoder import Example
from circuitdiscovery.evaluation import Bench, Estimate
from circuitdiscovery.model import Model
from circuitdiscovery.task import Batch, Task

ENOUGH = 0.5  # of the examples must have another word to change to


@dataclass(frozen=True)
class Depends:
    """The damage of another word at a named position.

    Args:
        whole: to all that a head writes.
        values: seen by the head's values alone: what it moves.
        keys: seen by its keys alone, at that position alone: what it matches there.

    Where heads share their keys and values, the last two are those of the group.
    """

    whole: Estimate
    values: Estimate
    keys: Estimate


@dataclass(frozen=True)
class Trials:
    """Interventions on a model, on the examples of a bench.

    Args:
        model, task: what the bench runs.
        bench: ablates as the caller asks; interventions on words have benches of their own, which hold what every source writes.
        metric, batch_size: as the bench was built with.
        progress: called after each intervention.
    """

    model: Model
    task: Task
    bench: Bench
    metric: Any
    batch_size: int | None
    progress: Callable[[], None]

    def node(self, node: str) -> Estimate:
        """The damage of ablating all that a node writes."""
        return self._damage(self.bench, self.bench.graph.source_index[node])

    def edges(self, node: str, columns: Sequence[int]) -> Estimate:
        """The damage of ablating a node's edges into some receivers."""
        return self._damage(self.bench, self.bench.graph.source_index[node], columns)

    def other_word(self, heads: Sequence[str], name: str) -> Mapping[str, Depends]:
        """What it damages that each head has another word at a named position; nothing where there is no other."""
        other = other_word(self.task, name)
        if other is None:
            return {}
        bench = self._bench(other, "resample")
        whole = {head: self._damage(bench, bench.graph.source_index[head]) for head in heads}
        values = {head: self._damage(bench, slice(None), [self._column(head, "v")]) for head in heads}
        del bench  # before the next one is made: each holds what every source writes
        bench = self._bench(other, OnDemand(f"another word at {name}", False, self._only_at(name)))
        return {head: Depends(whole[head], values[head], self._damage(bench, slice(None), [self._column(head, "k")])) for head in heads}

    def _column(self, node: str, letter: str) -> int:
        graph, (layer, head) = self.model.graph, head_of(node)
        return int(graph.columns(layer, letter)[head // (graph.n_heads // graph.n_kv_heads)])

    def _damage(self, bench: Bench, rows: int | slice, columns: Sequence[int] | slice = slice(None)) -> Estimate:
        mask = bench.graph.allowed.copy()
        mask[rows, columns] = False
        found = bench.estimate(bench.metric.damage, bench.values(bench.graph.allowed), bench.values(mask))
        self.progress()
        return found

    def attention_to_other(self, head: str, query: str, key: str) -> float:
        """The mean attention of a head from a named position to one where another word stands."""
        other = other_word(self.task, key)
        assert other is not None
        layer, place = head_of(head)
        weights: list[float] = []
        for batch in other.batches(self.batch_size):
            seen = attention(self.model, batch.corrupted.to(self.model.device))[layer, place]  # [N, T, T]
            for i, row in enumerate(batch.rows.tolist()):
                at = self.task.examples[row].positions
                weights += [float(seen[i, at[query], at[key]])] if query in at and key in at else []
        return float(np.mean(weights))

    def after_copies(self, heads: Sequence[str]) -> Mapping[str, float]:
        """The mean attention of some heads from END to what followed earlier copies of its token, with other tokens in their place."""
        changed = [(row, prompt) for row in range(len(self.task)) if (prompt := _without_copies(self.task, row)) is not None]
        if not changed:
            return {}
        old = [self.task.examples[row] for row, _ in changed]
        new = [replace(example, clean=prompt) for example, (_, prompt) in zip(old, changed, strict=True)]
        total = np.zeros(len(heads))
        layers, places = zip(*map(head_of, heads), strict=True)
        for batch in replace(self.task, examples=tuple(new), held_out=None).batches(self.batch_size):
            weights = attention(self.model, batch.clean.to(self.model.device))[list(layers), list(places)].cpu().numpy()  # [h, N, T, T]
            for i, row in enumerate(batch.rows.tolist()):
                total += weights[:, i, old[row].position, after_copies(old[row])].sum(-1)
        return dict(zip(heads, (total / len(old)).tolist(), strict=True))

    def _only_at(self, name: str) -> Callable[[Batch], Tensor]:
        def rows(batch: Batch) -> Tensor:
            values, other = run_sources(self.model, batch.clean), run_sources(self.model, batch.corrupted)  # [S, B, T, D]
            for i, row in enumerate(batch.rows.tolist()):
                at = self.task.examples[row].positions.get(name, 0)
                values[:, i, at] = other[:, i, at]
            return values

        return rows

    def _bench(self, task: Task, ablation: str | Ablation) -> Bench:
        return Bench.build(self.model, task, self.model.graph, ablation, self.metric, "noising", self.batch_size, 0)


def other_word(task: Task, name: str) -> Task | None:
    """A task's examples, each against itself with another word at a named position.

    The word is that of the example whose answers contradict this one's most, or else the next one's, and not in the prompt.
    None where less than half of the examples can be changed.
    """
    examples = tuple(_with_other_word(task, row, name) for row in range(len(task)))
    changed = sum(example.clean != example.corrupted for example in examples)
    return replace(task, examples=examples, held_out=None) if changed >= ENOUGH * len(task) else None


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
