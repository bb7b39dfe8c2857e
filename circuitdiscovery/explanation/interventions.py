"""Interventions that show what a node does: on its edges, on words of the prompts, on its keys and values.

1. edges: ablate only some of the edges out of a node (path patching; Wang et al. 2022, arXiv 2211.00593,
   section 3).
2. words: let a head write what it writes for a prompt with another word at one position, or in place of the
   wrong answer (interchange intervention; Geiger et al. 2021, arXiv 2106.02997). The word is from another
   example, so the prompt stays a valid one.
3. the same, but only the head's values, or only its keys, see the other word. This distinguishes what the
   head moves from what it matches, and a head that finds copies of a token from one that is told of them.
4. copies: replace the earlier copies of the token at END. A head that attends to what followed them because
   of the copies stops doing so; a head that finds the same position by other means does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from circuitdiscovery.engine import distributed
from circuitdiscovery.engine.ablation import Ablation
from circuitdiscovery.engine.metrics import BoundMetric
from circuitdiscovery.engine.setup import batches
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.explanation.attention import after_copies, attention_on
from circuitdiscovery.explanation.interchange import Change, Plain, changed_logits, receivers
from circuitdiscovery.explanation.words import same_word
from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.graph.nodes import head_of, parsed
from circuitdiscovery.measure import estimates
from circuitdiscovery.measure.estimates import Estimate
from circuitdiscovery.measure.intervals import difference
from circuitdiscovery.measure.work import Work
from circuitdiscovery.model.model import Model
from circuitdiscovery.model.parts import Parts
from circuitdiscovery.model.run import parameters, replaced_logits
from circuitdiscovery.task.batch import Batch
from circuitdiscovery.task.example import Example
from circuitdiscovery.task.task import Task

SEED = 0  # of the bootstrap, the default of `evaluate`
ABLATE_RUNS = 2.5  # the cost of the plain run and the replacements, in runs

Cut = tuple[str, tuple[int, ...]]  # a node, and the receivers (columns) of the edges to ablate
Part = Literal["whole", "values", "keys"]
Asked = tuple[str, str, Part]  # a head, a named position, and what of the head sees the other word
WRONG = "the wrong answer"  # in place of a named position: wherever a wrong answer stands before END


@dataclass(frozen=True)
class Ablated:
    """The effects of ablations, in the metric's units.

    Args:
        full: the mean metric of the whole model.
        empty: the same with every edge ablated.
        nodes: the damage of ablating all that each node writes.
        edges: the damage of ablating only its edges into some receivers.
    """

    full: float
    empty: float
    nodes: Mapping[str, Estimate]
    edges: Mapping[Cut, Estimate]


@dataclass(frozen=True)
class Trials:
    """Interventions on a model, on some of a task's examples.

    Args:
        model, graph: the model, and the graph that its edges are counted in.
        task: its examples give the other words.
        rows: the examples that the interventions run on.
        metric: measures the damage, bound to these examples; KL is from their plain runs.
        ablation: what an ablated edge carries on these examples, computed batch by batch.
        batch_size: examples in one forward; by default as many as bounded memory holds.
        work: counts the cost, for progress.
    """

    model: Model
    graph: Graph
    task: Task
    rows: tuple[int, ...]
    metric: BoundMetric
    ablation: Ablation
    batch_size: int | None
    work: Work

    @property
    def forward(self) -> float:
        """The FLOP of one run of the examples through the whole model."""
        return 2.0 * parameters(self.model) * sum(len(self.task.examples[row].clean) for row in self.rows)

    def ablating(self, nodes: Sequence[str]) -> float:
        """The approximate cost of `ablate`, in FLOP."""
        return self.forward * (ABLATE_RUNS + self._after(nodes))

    def asking(self, heads: Sequence[str], names: int) -> float:
        """The approximate cost, in FLOP, of another word at each position for each head, and once for its
        values or keys.
        """
        return self.forward * (2 * (1 + names) + (1 + names) * self._after(heads)) if heads and names else 0.0

    def _after(self, nodes: Sequence[str]) -> float:
        """The cost of running what follows each of some nodes, in runs of the whole model."""
        layers = self.graph.n_layers
        return sum(1 - (node.layer + (node.kind == "mlp")) / layers for node in map(parsed, nodes))

    def ablate(self, nodes: Sequence[str], cuts: Sequence[Cut]) -> Ablated:
        """The damage of ablating all that each node writes, and of each cut."""
        index = self.graph.source_index
        reads = [(node, receivers(self.graph, columns)) for node, columns in cuts]

        def changes(batch: Batch, plain: Plain) -> tuple[list[Change], list[Tensor]]:
            carried = self._carried(batch)
            whole = {
                node: plain.change(node, carried[index[node]])
                for node in dict.fromkeys([*nodes, *(node for node, _ in cuts)])
            }
            empty = replaced_logits(Parts.of(self.model), carried, batch.position)
            return [
                *(whole[node] for node in nodes),
                *(replace(whole[node], reads=each) for node, each in reads),
            ], [empty]

        full, empty, *others = self._values(ABLATE_RUNS, 1, len(nodes) + len(cuts), changes)
        damages = [self._damage(full, each) for each in others]
        parts = dict(zip(nodes, damages, strict=False)), dict(zip(cuts, damages[len(nodes) :], strict=True))
        return Ablated(float(full.mean()), float(empty.mean()), *parts)

    def other_words(self, asked: Sequence[Asked], others: Mapping[str, Task]) -> dict[Asked, Estimate]:
        """The damage of another word at a named position, through all or a part of a head, on the examples
        that have another word there.

        `whole`: all that the head writes changes (what it has from that position); `values`: only its values
        see the other word (what it moves); `keys`: only its keys at that position do (what it matches). If
        heads share keys and values, these are the group's.

        Args:
            asked: head, position and part of each intervention; `WRONG` has no position for keys.
            others: by position, the examples with another word there as corrupted prompts (see words.py).
        """
        deepest = {
            name: 1 + max(head_of(head)[0] for head, other, _ in asked if other == name)
            for _, name, _ in asked
        }

        def changes(batch: Batch, plain: Plain) -> tuple[list[Change], list[Tensor]]:
            runs = {
                name: Plain.run(self.model, _corrupted(batch, others[name]), layers)
                for name, layers in deepest.items()
            }
            places = {name: self._places(batch, name) for name in runs}
            return [_change(plain, head, runs[name], part, places[name]) for head, name, part in asked], []

        full, *values = self._values(1 + len(deepest), 0, len(asked), changes) if asked else [np.zeros(0)]
        changed = {
            name: np.array([example.clean != example.corrupted for example in others[name].examples])
            for name in deepest
        }
        return {
            each: self._damage(full[changed[each[1]]], value[changed[each[1]]])
            for each, value in zip(asked, values, strict=True)
        }

    def _carried(self, batch: Batch) -> Tensor:
        """[S, N, T, D]: the replacements."""
        values = self.ablation.rows(batch)
        expected = (len(self.graph.sources), *batch.clean.shape, self.model.d_model)
        if values.shape != expected:
            shape = tuple(values.shape)
            raise CircuitDiscoveryError(
                f"ablation {self.ablation.name!r} gives replacements of shape {shape}, not {expected}"
            )
        return values.to(self.model.W_E)

    def _places(self, batch: Batch, name: str) -> Tensor:
        """[N]: the named position; 0 for an example without it, whose word does not change."""
        at = [self.task.examples[self.rows[row]].positions.get(name, 0) for row in batch.rows.tolist()]
        return torch.tensor(at, device=batch.clean.device)

    def _values(
        self,
        runs: float,
        others: int,
        count: int,
        changes: Callable[[Batch, Plain], tuple[list[Change], list[Tensor]]],
    ) -> list[np.ndarray]:
        """[examples] each: the metric of plain runs, of `others` further logits, and of `count` changed runs.

        `changes` returns the changes of a batch and its further logits, [N, V] each; `runs` is the cost of
        that.
        """
        chosen, known, planned = self.task.select(self.rows), 1 + others, False
        out, tokens = (
            np.zeros((known + count, len(chosen))),
            sum(len(example.clean) for example in chosen.examples),
        )
        for batch in batches(self.model, self.model.graph, chosen, self.batch_size):
            cost, rows = self.forward * int(batch.lengths.sum()) / tokens, batch.rows.cpu().numpy()
            plain = Plain.run(self.model, batch.clean)
            made, beside = changes(batch, plain)
            if not planned:
                self.work.plan(self.forward * (runs + sum(each.runs(self.model) for each in made)))
                planned = True
            self.work.did(cost * runs)
            full = plain.logits(batch.position)
            metric = self.metric.against(lambda _, full=full: full)
            for i, logits in enumerate([full, *beside]):
                out[i, rows] = metric(logits, batch).double().cpu().numpy()
            for which, logits in changed_logits(plain, batch.position, made):
                for i, values in zip(which, metric(logits, batch).double().cpu().numpy(), strict=True):
                    out[known + i, rows] = values
                self.work.did(cost * sum(made[i].runs(self.model) for i in which))
        return list(distributed.total(torch.from_numpy(out)).numpy())

    def _damage(self, full: np.ndarray, less: np.ndarray) -> Estimate:
        better, worse = (full, less) if self.metric.higher_is_better else (less, full)
        draws = estimates.drawn(len(full), SEED)
        return difference(better, worse, draws, skewed=self.metric.skewed, binary=self.metric.share)

    def after_copies(self, heads: Sequence[str]) -> Mapping[str, float]:
        """The mean attention of some heads from END to what followed earlier copies of its token, once these
        are replaced by other tokens.
        """
        changed = [
            (row, prompt) for row in self.rows if (prompt := _without_copies(self.task, row)) is not None
        ]
        if not changed:
            return {}
        old = [self.task.examples[row] for row, _ in changed]
        new = [replace(example, clean=prompt) for example, (_, prompt) in zip(old, changed, strict=True)]
        found = [
            weights[:, old[row].position, after_copies(old[row])].sum(-1)
            for row, weights in self._attention(new, heads)
        ]
        return dict(zip(heads, np.mean(found, axis=0).tolist(), strict=True))

    def attention_to_other(self, heads: Sequence[str], query: str, key: str, other: Task) -> dict[str, float]:
        """The mean attention of some heads from a named position to an earlier one that has the same word,
        once another word stands there; nothing where there is no such example.
        """
        tokenizer = self.model.tokenizer
        changed = [
            example
            for example in other.examples
            if example.clean != example.corrupted and {query, key} <= {*example.positions}
            if same_word(tokenizer, example, example.positions[query], example.positions[key])
        ]
        if not changed:
            return {}
        found = [
            weights[:, changed[row].positions[query], changed[row].positions[key]]
            for row, weights in self._attention(
                [replace(example, clean=example.corrupted) for example in changed], heads
            )
        ]
        return dict(zip(heads, np.mean(found, axis=0).tolist(), strict=True))

    def _attention(
        self, examples: Sequence[Example], heads: Sequence[str]
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yields (index of an example, the [h, T, T] attention of some heads on its clean prompt)."""
        layers, places = zip(*map(head_of, heads), strict=True)
        for batch, seen in attention_on(
            self.model, replace(self.task, examples=tuple(examples), held_out=None), self.batch_size
        ):
            weights = seen[list(layers), list(places)].cpu().numpy()  # [h, N, T, T]
            for i, row in enumerate(batch.rows.tolist()):
                yield row, weights[:, i]


def _change(plain: Plain, head: str, other: Plain, part: Part, places: Tensor) -> Change:
    if part == "whole":
        return plain.change(head, other.written(head))
    return plain.changed_values(head, other) if part == "values" else plain.changed_keys(head, other, places)


def _corrupted(batch: Batch, task: Task) -> Tensor:
    """[N, T]: the corrupted prompts of a task's examples, padded as a batch's clean ones."""
    tokens = batch.clean.clone()
    for i, row in enumerate(batch.rows.tolist()):
        prompt = task.examples[row].corrupted
        tokens[i, : len(prompt)] = torch.tensor(prompt, device=tokens.device)
    return tokens


def _without_copies(task: Task, row: int) -> tuple[int, ...] | None:
    """The prompt with the earlier copies of the token at END replaced; None if it has none.

    The new tokens are from other examples, preferably from the same position, and are not in the prompt.
    """
    example, prompt = task.examples[row], list(task.examples[row].clean)
    others = [other.clean for other in (*task.examples[row + 1 :], *task.examples[:row])]
    for after in after_copies(example):
        alike = [other[after - 1] for other in others if len(other) >= after]
        word = next(
            (word for word in (*alike, *(word for other in others for word in other)) if word not in prompt),
            None,
        )
        if word is None:
            return None
        prompt[after - 1] = word
    return tuple(prompt) if tuple(prompt) != example.clean else None
