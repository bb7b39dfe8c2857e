"""A setup: a model on a task's examples, what a removed edge carries
there, and by which metric it is measured.

Searches and measurements stand on it. Two decisions are made here and nowhere else:

- Denoising runs the corrupted prompts, where the edges that are *not* restored carry the current output and
  the restored ones the clean run's: its mask is complemented once (`carrying`), and no ablation enters:
  one that is asked for is refused.
- How many examples are run at once where no batch size is asked for, by the bytes of their replacements; and
  that what a method needs for them fits the memory budget (memory.py).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuitdiscovery.engine import distributed
from circuitdiscovery.engine.ablation import (
    Ablation,
    OnDemand,
    inside,
    name_of,
    on_demand,
    run_sources,
)
from circuitdiscovery.engine.fast import PatchedRun
from circuitdiscovery.engine.finite import finite_logits
from circuitdiscovery.engine.memory import Need, budget, masked, of_token, packed_token
from circuitdiscovery.engine.metrics import BoundMetric, bind
from circuitdiscovery.engine.replacements import Replacements, mean_over
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.files.disk import to_json
from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.model.model import Model
from circuitdiscovery.model.parts import Parts, check_parts
from circuitdiscovery.model.run import embed, replaced_logits, run_tokens
from circuitdiscovery.model.units import Units
from circuitdiscovery.registry import checked_direction
from circuitdiscovery.task.batch import Batch
from circuitdiscovery.task.task import Task

Progress = Callable[[int, int], None]  # (done, total)
# of replacements held at once, where no batch size is asked for; more is no faster (benchmarks/speed.py)
_BATCH_BYTES = 2**27
_WITH_PARTS = 5  # times as many where nodes are split: parts are hundreds of sources that cost little to run


def within(progress: Progress | None, before: int, own: int, whole: int) -> Progress | None:
    """For one part of a longer work: it counts as `own` of `whole`, and `before` was done."""
    if progress is None:
        return None
    report = progress
    return lambda done, total: report(before + own * done // max(1, total), whole)


@dataclass(frozen=True)
class Setup:
    """What is measured, and how (see `of`).

    Args:
        model, task, graph: which model, on all examples of which task, by which edges.
        metric: a divergence is from the logits that `metric.against` is given.
        ablation: what a removed edge carries, by its canonical name or as it was given.
        denoising: whether the corrupted run is mended, and not the clean one damaged.
        batch_size: examples in one forward, at most; None: as many as are worth it.
        need: what the method holds.
    """

    model: Model
    task: Task
    graph: Graph
    metric: BoundMetric
    ablation: str | Ablation
    denoising: bool
    batch_size: int | None
    need: Need

    @classmethod
    def of(
        cls,
        model: Model,
        task: Task,
        graph: Graph | None = None,
        *,
        metric: Any = None,
        ablation: str | Ablation = "resample",
        direction: str = "noising",
        batch_size: int | None = None,
        plain: bool = False,
        need: Callable[[Model, Graph, Task], Need] = masked,
    ) -> Setup:
        """A setup from what public functions are given.

        Args:
            model, task, ablation, direction, batch_size: as in `run_circuit`.
            graph: by default the model's.
            metric: by default the task's own.
            plain: as in `bind`.
            need: of the method, what it holds; by default of runs under masks.

        Raises:
            CircuitDiscoveryError: an unknown name; a metric that the task cannot have; denoising with an
                ablation.
        """
        name = name_of(ablation)
        denoising = checked_direction(direction, name) == "denoising"
        bound = bind(metric or task.metric, model, task, plain=plain)
        graph = graph or model.graph
        check_parts(model, graph)
        ablation = name if isinstance(ablation, str) else ablation
        return cls(model, task, graph, bound, ablation, denoising, batch_size, need(model, graph, task))

    @cached_property
    def carried(self) -> OnDemand:
        """What a removed edge carries in noising; what it needs of the whole task is computed when it is
        first needed, after a search has said that it began."""
        return on_demand(self.model, self.task, self.ablation, graph=self.graph)

    @cached_property
    def held(self) -> Need:
        """What the method holds, and beside it what the ablation does."""
        return self.need if self.denoising else self.need.with_kept(self.carried.kept)

    @property
    def direction(self) -> str:
        """`noising` or `denoising`."""
        return "denoising" if self.denoising else "noising"

    @property
    def ablation_name(self) -> str:
        """What reports call the ablation."""
        return name_of(self.ablation)

    @property
    def own_run(self) -> bool:
        """Whether an example's replacements are one run's own activations."""
        return self.denoising or self.carried.own_run

    @cached_property
    def mean_over(self) -> int | None:
        """The fewest prompts that a replacement is a mean over; None: it is not a mean."""
        if self.denoising:
            return None
        # replacements that were given know it of held-out examples, too
        known = self.carried if isinstance(self.ablation, str) else self.ablation
        return mean_over(known, self.batches)

    @cached_property
    def batches(self) -> list[Batch]:
        """This process's share of the examples, on the model's device."""
        return list(batches(self.model, self.graph, self.task, self.batch_size, self.held))

    def options(self, **given: Any) -> dict[str, Any]:
        """Of a search's provenance: its own options, the metric, the ablation and `split_qkv`."""
        found = {
            "metric": self.metric.name,
            "ablation": self.ablation_name,
            "split_qkv": self.graph.split_qkv,
        }
        return given | found

    @property
    def data(self) -> dict[str, str]:
        """Of a search's state: digests of what its provenance does not tell apart, where there are these: the
        graph's parts, with where the prompts have them, and the replacements that were given."""
        parts = [split.to_dict() for split in self.graph.splits]
        if any(split.kind == "positions" for split in self.graph.splits):
            parts += [{"text": each.text, "positions": each.positions} for each in self.task.examples]
        found = {"parts": sha256(to_json(parts).encode()).hexdigest()} if parts else {}
        return found | ({"given": self.ablation.digest} if isinstance(self.ablation, Replacements) else {})

    def carrying(self, mask: np.ndarray) -> np.ndarray:
        """The [sources, receivers] edges that carry the current
        output: a circuit's, or in denoising all others.
        """
        return self.graph.allowed & ~mask if self.denoising else mask

    def parts(self, batch: Batch) -> Parts:
        """How the sources follow from the nodes in a batch."""
        packs = self.denoising or self.carried.parts.packs
        return Parts(self.model, self.graph, inside(self.graph, self.task, batch), self._known, packs)

    @cached_property
    def _known(self) -> dict[int, Units]:
        return {}

    def patched_runs(self) -> Iterator[tuple[Batch, PatchedRun]]:
        """Each batch of this process's share, as the fast engine takes it; its masks are `carrying`."""
        for batch in self.batches:
            yield batch, self.patched(batch)

    @torch.no_grad()
    def patched(self, batch: Batch) -> PatchedRun:
        """A batch as the fast engine takes it.

        Raises:
            CircuitDiscoveryError: replacements of another shape, or whose logits are not finite.
        """
        model, graph = self.model, self.graph
        parts = self.parts(batch)
        if self.denoising:
            clean = run_sources(model, batch.clean, parts)
            return PatchedRun(model, graph, embed(model, batch.corrupted), clean, batch.position, True, parts)
        values = self.carried.packed(batch)
        shape = (*batch.clean.shape, model.d_model)
        if values.shape != (len(parts.packing), *shape):
            expected = (len(graph.sources), *shape)
            raise CircuitDiscoveryError(
                f"ablation {self.ablation_name!r} gives replacements of shape {tuple(values.shape)}, not "
                f"{expected}"
            )
        kept = self._kept(values)
        key = id(model), graph, id(values), tuple(batch.position.tolist())
        if key not in kept:
            values = values.to(model.W_E)
            finite_logits(replaced_logits(parts, values, batch.position), batch.rows, "replaced")
            start, own_run = embed(model, batch.clean), self.carried.own_run
            kept[key] = PatchedRun(model, graph, start, values, batch.position, own_run, parts)
        return kept[key]

    def _kept(self, values: Tensor) -> dict[Hashable, PatchedRun]:
        """Where a batch's patched run is kept with replacements that were computed once for all examples."""
        given = self.ablation
        if isinstance(given, Replacements) and any(values is held.values for held in given.batches):
            return given.patched_runs
        return {}

    @torch.no_grad()
    def full_logits(self, parts: Iterable[tuple[Batch, PatchedRun]]) -> Tensor:
        """[examples, vocabulary] with every edge kept, on all examples, from this process's batches:
        what a divergence of other masks is from."""
        model, count = self.model, len(self.task)
        logits = torch.zeros(count, model.vocab_size, device=model.device, dtype=model.dtype)
        for batch, patched in parts:
            logits[batch.rows] = patched.logits(self.carrying(self.graph.allowed))
        return finite_logits(distributed.total(logits), range(count), "clean")


def replacement_bytes(model: Model, graph: Graph, tokens: int) -> int:
    """What the replacements of so many tokens take: everything that every source writes."""
    return tokens * packed_token(model, graph)


def fitting(model: Model, graph: Graph, task: Task, packs: bool = False) -> int:
    """How many examples are run at once where no batch size is asked for; `packs` as in `Need`."""
    longest = max(len(example.clean) for example in task.examples)
    most = _BATCH_BYTES * (_WITH_PARTS if graph.splits and not packs else 1)
    return max(1, most // (longest * (packed_token if packs else of_token)(model, graph)))


def batches(
    model: Model, graph: Graph, task: Task, batch_size: int | None, need: Need | None = None
) -> Iterator[Batch]:
    """This process's share of a task on the model's device, prompts of
    several lengths together where that is cheaper.

    Without a size, as many examples as keep the replacements in bounded memory; in any case no more than what
    is needed for them, by default for runs under masks, fits the memory budget.

    Raises:
        CircuitDiscoveryError: one example alone needs more memory than that.
    """
    task.check(model.vocab_size, model.n_positions)
    need = need or masked(model, graph, task)
    size = min(fitting(model, graph, task, need.packs) if batch_size is None else batch_size, len(task))
    size = need.at_once(size, budget(model.device))
    for batch in task.batches(size, distributed.share(task), run_tokens=run_tokens(model)):
        yield batch.to(model.device)
