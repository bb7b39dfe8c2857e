"""Path patching: which nodes act on a receiver directly.

Wang et al. 2022 (arXiv 2211.00593, section 3 and appendix B) and Goldowsky-Dill et al.
2023 (arXiv 2304.05969). For one sender:

1. Freeze every head as it is on the clean prompt, and replace what the sender writes. The MLPs after it are
   computed anew (`through_mlps`, as Wang et al. do: paths through MLPs count as direct) and their changes add
   up in the residual stream.
2. The receivers read that stream, and nothing else that has changed. All that follows them runs again.
3. The sender's effect on the receivers is the damage to the metric.

With frozen MLPs as well, a direct path is an edge of the graph: the edges from the sender to the receivers
are then patched together, and with one receiver it is the edge's `exact` score. trace_back.py takes
these steps by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from circuitdiscovery.arguments import guarded
from circuitdiscovery.engine import distributed
from circuitdiscovery.engine.ablation import Ablation
from circuitdiscovery.engine.fast import PatchedRun
from circuitdiscovery.engine.metrics import Metric
from circuitdiscovery.engine.setup import Progress, Setup
from circuitdiscovery.errors import CircuitDiscoveryError, unknown
from circuitdiscovery.files.disk import data_frame
from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.graph.nodes import LETTERS, letter_of, no_node, node_of, whole_of
from circuitdiscovery.measure.estimates import Estimate
from circuitdiscovery.measure.evaluator import Evaluator
from circuitdiscovery.model.model import Model
from circuitdiscovery.model.run import at_position, plain_run
from circuitdiscovery.registry import ablation_words
from circuitdiscovery.task.task import Task
from circuitdiscovery.values import Value, left_out

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = 20  # senders that a printed result names


@dataclass(frozen=True, repr=False)
class PathEffects(Value):
    """What `path_patching` measured.

    Args:
        model, task, metric, ablation: on what, and how.
        examples: of the task, all of them.
        through_mlps: whether MLPs between sender and receiver were recomputed.
        receivers: who read the change, in index order.
        full: the metric of the model itself.
        effects: sender -> the damage to the metric, with its interval
            over the examples; in topological order.
        graph: whose names these are.
        mean_over: the fewest prompts that a replacement is a mean over; None: it is not a mean.
    """

    model: str
    task: str
    examples: int
    metric: str
    ablation: str
    through_mlps: bool
    receivers: tuple[str, ...]
    full: Estimate
    effects: Mapping[str, Estimate]
    graph: Graph = field(repr=False)
    mean_over: int | None = left_out()

    def __getitem__(self, sender: str) -> Estimate:
        if sender not in self.effects:
            raise unknown("sender", sender, self.effects)
        return self.effects[sender]

    def ranking(self) -> tuple[str, ...]:
        """Every sender, the largest |effect| first, ties in topological order."""
        return tuple(sorted(self.effects, key=lambda sender: -abs(self.effects[sender])))

    def strongest(self, n: int | None = None, *, threshold: float | None = None) -> tuple[str, ...]:
        """The n senders of the largest |effect|, or all with at least a threshold's, the largest first.

        A head that acts against the behaviour is among them: its effect is negative.
        """
        if (n is None) == (threshold is None):
            raise CircuitDiscoveryError("give either n, how many senders, or threshold, the least |effect|")
        if n is None:
            assert threshold is not None
            return tuple(
                sender
                for sender in self.ranking()
                if abs(self.effects[sender]) >= finite_threshold(threshold)
            )
        if type(n) is not int or not 0 <= n <= len(self.effects):
            raise CircuitDiscoveryError(
                f"n must be a whole number from 0 to {len(self.effects)}, the number of senders, not {n!r}"
            )
        return self.ranking()[:n]

    def back(
        self, letter: str | None = None, n: int | None = None, *, threshold: float | None = None
    ) -> tuple[str, ...]:
        """The receivers of the strongest senders, for the next step; of heads those of one letter, or all.

        `input` reads nothing, so it has no receivers. Where heads
        share keys and values, these are the group's.
        """
        if letter is not None and letter not in LETTERS:
            raise unknown("letter", letter, LETTERS)
        nodes = self.strongest(n, threshold=threshold)
        columns = [
            column
            for node in nodes
            for column in np.flatnonzero(self.graph.feeds[:, self.graph.source_index[node]])
        ]
        names = [self.graph.receivers[column] for column in sorted(set(columns))]
        return tuple(name for name in names if letter is None or letter_of(name) in ("", letter))

    def to_dataframe(self) -> pd.DataFrame:
        """One row per sender, in topological order: sender, effect, low, high. Needs pandas."""
        rows = [(sender, float(effect), effect.low, effect.high) for sender, effect in self.effects.items()]
        return data_frame(rows, columns=["sender", "effect", "low", "high"])

    def __str__(self) -> str:
        through = "intermediate MLPs recomputed" if self.through_mlps else "intermediate MLPs frozen"
        shown, rest = self.ranking()[:_SHOWN], max(0, len(self.effects) - _SHOWN)
        how = ablation_words(self.ablation, self.mean_over)
        lines = [
            f"damage to {self.metric} ({self.full}) on {self.examples} examples, {how}, {through}",
            f"of what each sender writes to {', '.join(self.receivers)}",
            *(f"{sender:<10} {self.effects[sender]}" for sender in shown),
        ]
        return "\n".join(lines + ([f"and {rest} weaker ones"] if rest else []))


@guarded
@torch.no_grad()
def path_patching(
    model: Model,
    task: Task,
    *,
    receivers: str | Iterable[str] = ("logits",),
    senders: Iterable[str] | None = None,
    through_mlps: bool = True,
    metric: str | Metric | Any | None = None,
    ablation: str | Ablation = "resample",
    split_qkv: bool = True,
    graph: Graph | None = None,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> PathEffects:
    """The damage of replacing what each sender writes, along the direct paths to some receivers alone.

    Args:
        model: a loaded model.
        task: all its examples are used.
        receivers: such as `a1.h2<q>`, `m1` or `logits`; a node's name means all it reads by (of
            grouped heads: the group's key and value too; of an MLP in parts: all of them).
        senders: heads, MLPs, `input` or parts of these; by default every source upstream of a receiver.
        through_mlps: a path through MLPs alone is direct, and where one receiver is downstream of another it
            does not read what the other changed (Wang et al.). False: the edges from the sender to the
            receivers are patched, together, as `run_circuit` does.
        metric: by default the task's own.
        ablation: what the sender writes instead.
        split_qkv: query, key and value as separate receivers.
        graph: whose edges, where nodes are split into parts (`split`); by default the model's.
        batch_size: examples in one forward; another size changes roundings only.
        progress: called with (senders done, in all), over every batch.

    Returns:
        The effect of each sender on the receivers, with 95% intervals.

    Raises:
        CircuitDiscoveryError: an unknown receiver or sender; a sender that is upstream of no receiver.

    >>> import circuitdiscovery as cd
    >>> from circuitdiscovery.search.path_patching import path_patching
    >>> model = cd.load_model("toy")
    >>> task = cd.load_task("ioi", model, examples=8)
    >>> step = path_patching(model, task)  # who writes to the logits
    >>> sorted(step.strongest(2))
    ['a2.h0', 'a2.h2']
    >>> step = path_patching(model, task, receivers=step.back("q", 2))  # and who to their queries
    """
    graph = Graph.given(model, graph, split_qkv)
    columns = _columns(graph, [receivers] if isinstance(receivers, str) else receivers)
    rows = _rows(graph, senders, columns)
    setup = Setup.of(model, task, graph, metric=metric, ablation=ablation, batch_size=batch_size)
    evaluator = Evaluator.build(setup)
    values = np.zeros((len(rows), evaluator.count))
    for number, (batch, patched) in enumerate(evaluator.patched_runs()):
        logits = _logits_of(patched, columns, through_mlps)
        where = batch.rows.cpu().numpy()
        for i, row in enumerate(rows):
            values[i, where] = evaluator.metric(logits(row), batch).double().cpu().numpy()
            if progress:
                progress(number * len(rows) + i + 1, len(evaluator.batches) * len(rows))
    values = distributed.total(torch.from_numpy(values)).numpy()
    full = evaluator.values(graph.allowed)
    return PathEffects(
        model=model.name,
        task=task.title,
        examples=len(task),
        metric=evaluator.metric.name,
        ablation=setup.ablation_name,
        through_mlps=through_mlps,
        mean_over=setup.mean_over,
        receivers=tuple(graph.receivers[column] for column in columns),
        full=evaluator.mean(full),
        effects={
            graph.sources[row]: evaluator.damage(full, new) for row, new in zip(rows, values, strict=True)
        },
        graph=graph,
    )


def _logits_of(patched: PatchedRun, columns: np.ndarray, through_mlps: bool) -> Callable[[int], Tensor]:
    """A sender's row -> [N, vocabulary] where the receivers read its replacement, in one batch."""
    if through_mlps:
        return _Paths.of(patched, columns).logits

    def frozen(row: int) -> Tensor:
        mask = patched.graph.allowed.copy()
        mask[row, columns] = False
        return patched.logits(mask)

    return frozen


@dataclass(frozen=True)
class _Paths:
    """One batch, with what every source writes on the clean prompts."""

    patched: PatchedRun
    clean: Tensor  # [S', N, T, D], packed as the replacements are
    columns: np.ndarray  # of the receivers

    @classmethod
    def of(cls, patched: PatchedRun, columns: np.ndarray) -> _Paths:
        start, position, parts = patched.start, patched.position, patched.parts
        clean = plain_run(patched.model, start, position, keep_sources=True, parts=parts).sources
        assert clean is not None
        if patched.graph.receivers[columns[0]] != "logits":
            return cls(patched, clean, columns)
        # no head runs again, and MLPs act on each position alone: the answer's is enough

        def at_answer(sources: Tensor) -> Tensor:  # [S', N, T, D] -> [S', N, 1, D]
            return at_position(sources.movedim(0, 2), position).movedim(1, 0)[:, :, None]

        run = replace(
            patched,
            start=at_position(start, position)[:, None],
            replacement=at_answer(patched.replacement),
            position=torch.zeros_like(position),
            given=parts.at(position),
        )
        return cls(run, at_answer(clean), columns)

    @cached_property
    def _streams(self) -> tuple[Tensor, ...]:
        """[N, T, D] each: what attention and MLP of each layer, and the logits, read on the clean prompts."""
        return replace(self.patched, replacement=self.clean).bases

    def logits(self, row: int) -> Tensor:
        """[N, vocabulary]: the receivers read one sender's replacement, and what MLPs make of it."""
        mask = self.patched.graph.allowed.copy()
        mask[:, self.columns] = False  # they read the stream of `_written`, and of the rest's changes nothing
        return replace(self.patched, replacement=self._written(row), own_run=False).logits(mask)

    def _written(self, row: int) -> Tensor:
        """[S', N, T, D], packed: what every source writes where the sender's is replaced,
        MLPs are computed anew and heads are frozen.
        """
        graph, parts, written = self.patched.graph, self.patched.parts, self.clean.clone()
        packing, sender = parts.packing, slice(row, row + 1)
        packing.copy(written, self.patched.replacement, row)
        change = self._added(row, packing.sum(written, sender) - packing.sum(self.clean, sender))
        for layer in range(graph.n_layers):
            if graph.allowed[row, graph.columns(layer, "m")].any():
                own = graph.mlps(layer)  # all its parts
                anew = parts.mlp_of(layer, self._streams[2 * layer + 1] + change)
                packing.set(written, own, anew, less=False)
                made = anew.sum().to(change)  # another device's, where layers are on several
                change = change + self._added(own.start, made - packing.sum(self.clean, own))
        return written

    def _added(self, row: int, change: Tensor) -> Tensor:
        """[N, T, D]: what a change adds to the stream of the clean run, of what a source writes, or of what
        all of its group do."""
        for group in self.patched.parts.groups:
            if group.rows.start <= row < group.rows.stop:
                together = self.patched.parts.packing.sum(self.clean, group.rows)
                return group.out(together + change) - group.out(together)
        return change


def _columns(graph: Graph, names: Iterable[str]) -> np.ndarray:
    """The columns of receivers, or of all receivers of nodes, in index order."""
    found: set[int] = set()
    for name in names:
        named = [
            i
            for i, receiver in enumerate(graph.receivers)
            if name
            in (receiver, whole_of(receiver), *graph.reader_nodes(receiver), *_readers(graph, receiver))
        ]
        if not named:
            raise _no_receiver(graph, name)
        found |= set(named)
    if not found:
        raise CircuitDiscoveryError("receivers: at least one is needed, such as 'logits'")
    return np.array(sorted(found))


def _readers(graph: Graph, receiver: str) -> tuple[str, ...]:
    """The nodes that a receiver feeds, whole."""
    return tuple(dict.fromkeys(map(whole_of, graph.reader_nodes(receiver))))


def _no_receiver(graph: Graph, name: str) -> CircuitDiscoveryError:
    letter = letter_of(name)
    for group in graph.receivers:
        if letter and letter_of(group) == letter and node_of(name) in (heads := _readers(graph, group)):
            return CircuitDiscoveryError(f"no receiver {name!r}; {', '.join(heads)} share {group}")
    return no_node(name, [*graph.receivers, *graph.inner], "receiver")


def _rows(graph: Graph, senders: Iterable[str] | None, columns: np.ndarray) -> list[int]:
    """The rows of the senders, in index order."""
    upstream = np.asarray(np.any(graph.allowed[:, columns], axis=1))
    if senders is None:
        return np.flatnonzero(upstream).tolist()
    names = [senders] if isinstance(senders, str) else list(senders)
    for name in names:
        if name not in graph.source_index:
            raise no_node(name, graph.sources, "sender")
        if not upstream[graph.source_index[name]]:
            latest = graph.sources[int(np.flatnonzero(upstream)[-1])]
            raise CircuitDiscoveryError(
                f"sender {name!r} is upstream of no receiver; the last one that is: {latest}"
            )
    if not names:
        raise CircuitDiscoveryError(
            "senders: at least one is needed; leave them out for every source upstream of a receiver"
        )
    return sorted({graph.source_index[name] for name in names})


def finite_threshold(threshold: float) -> float:
    """The threshold, if it is a finite number."""
    if not math.isfinite(threshold):
        raise CircuitDiscoveryError(f"threshold must be a finite number, not {threshold}")
    return threshold
