"""What the parts of nodes that are split write, and what ablating each one does.

Shapes: N examples, D d_model, S the sources of the split graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from circuitdiscovery.engine.ablation import Ablation, inside
from circuitdiscovery.engine.memory import masked
from circuitdiscovery.engine.setup import Setup
from circuitdiscovery.explanation.attention import Observed
from circuitdiscovery.explanation.interventions import SEED, Trials
from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.graph.nodes import parsed, whole_of
from circuitdiscovery.measure import estimates
from circuitdiscovery.measure.estimates import Estimate
from circuitdiscovery.measure.evaluator import Evaluator
from circuitdiscovery.measure.intervals import difference
from circuitdiscovery.model.parts import Parts
from circuitdiscovery.model.run import at_position, plain_run
from circuitdiscovery.task.task import Task


@dataclass(frozen=True)
class WrittenParts:
    """What every source of a split graph writes at the answers of one batch."""

    seen: Observed
    parts: Parts
    sources: Tensor  # [S, N, D]

    @classmethod
    @torch.no_grad()
    def of(cls, seen: Observed, graph: Graph, task: Task) -> WrittenParts:
        """Those of a batch of a task's clean prompts."""
        model, batch = seen.model, seen.batch
        parts = Parts(model, graph, inside(graph, task, batch))
        run = plain_run(model, batch.clean, batch.position, keep_sources=True, parts=parts)
        assert run.sources is not None
        packed = torch.stack([at_position(each, batch.position) for each in run.sources])
        return cls(seen, parts, parts.packing.dense(packed))

    def written(self, part: str) -> Tensor:
        """[N, D]: what a part writes at the answer's position, as the unembedding reads it.

        Norms are frozen at the clean run, as in `Observed.written`, so that the parts of a node add up to it.
        """
        node, graph = parsed(part), self.parts.graph
        written = self.sources[graph.source_index[part]]
        if node.kind == "mlp" and (norm := self.parts.mlp_norm(node.layer)) is not None:
            written = norm.share(self.sources[graph.mlps(node.layer)].sum(0), written)
        return self.seen.share(part, written)

    def there(self, part: str) -> Tensor | None:
        """[N, D]: what a part of some positions writes at the last of them, as the unembedding reads it.

        None: another kind of part, or the rest, or a span that is empty in some prompt.
        """
        split = self.parts.graph.split_of(whole_of(part))
        if split is None or split.kind != "positions" or part == split.names[-1]:
            return None
        inside = self.parts.inside[split.node][split.names.index(part)]  # [N, T]
        if not bool(inside.any(-1).all()):
            return None
        places = torch.arange(inside.shape[-1], device=inside.device)
        last = (inside * places).argmax(-1).to(self.seen.batch.position)
        seen = replace(self.seen, batch=replace(self.seen.batch, position=last))
        return seen.written(self.seen.model.graph.source_index[split.node])


def effects_of(
    parts: Sequence[str], trials: Trials, graph: Graph, ablation: str | Ablation
) -> dict[str, Estimate]:
    """The damage of ablating each part alone in the full model, all its out-edges at once."""
    if not parts:
        return {}
    some = trials.task.select(trials.rows)
    need = masked(trials.model, graph, some)
    setup = Setup(trials.model, some, graph, trials.metric, ablation, False, trials.batch_size, need)
    evaluator, found = Evaluator.build(setup, work=trials.work), {}
    full, without = evaluator.ablated(parts)
    for part, less in zip(parts, without, strict=True):
        better, worse = (full, less) if evaluator.metric.higher_is_better else (less, full)
        found[part] = difference(better, worse, estimates.drawn(len(full), SEED))
    return found
