"""A task under an ablation, ready to measure circuits: batch after batch, in
each batch every circuit that is asked for.

What a batch needs (its replacements, the full circuit's logits) is computed once for all circuits and dropped
before the next batch; only where all batches together are small are they kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from circuitdiscovery.engine import distributed
from circuitdiscovery.engine.fast import PatchedRun
from circuitdiscovery.engine.finite import finite_logits, rounding
from circuitdiscovery.engine.memory import at_once, budget
from circuitdiscovery.engine.metrics import BoundMetric, kl_from
from circuitdiscovery.engine.setup import Progress, Setup, replacement_bytes
from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.measure import intervals
from circuitdiscovery.measure.estimates import Draws, Estimate, drawn
from circuitdiscovery.measure.normalized import normalized
from circuitdiscovery.measure.plan import Costs, Plan, Planner
from circuitdiscovery.measure.saved import KEY_BYTES, Saved
from circuitdiscovery.measure.work import Family, Masks, Work, passes
from circuitdiscovery.registry import METRICS
from circuitdiscovery.task.batch import Batch

KINDS = ("metric", "kl", "agreement")
_KEPT_BYTES = 2**27  # of replacements of all batches together, which are then computed only once
_MASK_BYTES = 2**28  # of masks in one pass over the batches
_UNITS = 100  # of progress in a plain forward of the examples


@dataclass
class Evaluator:
    """A task under an ablation, ready to measure masks; each distinct circuit runs once."""

    setup: Setup
    metric: BoundMetric  # the setup's; a divergence is from the full circuit's logits
    count: int
    draws: Draws  # of the examples, for the bootstrap
    unchanged: bool  # whether what is replaced is what was there, on every example
    costs: Costs
    most: int  # masks in one pass over the batches
    work: Work
    saved: Saved | None = None
    name: str = "evaluator"  # in what is saved
    # by batch: its patched run and the full circuit's logits
    _kept: dict[int, tuple[PatchedRun, Tensor]] | None = field(kw_only=True)
    _known: dict[bytes, dict[str, np.ndarray]] = field(default_factory=dict)
    # by a mask's content, the key of the circuit that it is
    _names: dict[bytes, bytes] = field(default_factory=dict)
    # the batch that is measured, and the full circuit's logits on it
    _last: tuple[Batch, Tensor] | None = None
    _rounding: dict[int, float] = field(default_factory=dict)  # by batch, summed over its examples

    @classmethod
    def build(
        cls,
        setup: Setup,
        *,
        seed: int = 0,
        progress: Progress | None = None,
        work: Work | None = None,
        saved: Saved | None = None,
        name: str = "evaluator",
    ) -> Evaluator:
        """The evaluator on a setup's examples.

        Args:
            setup: all examples of its task are run.
            seed: of the bootstrap.
            progress: called with (done, total), in hundredths of a plain forward of the examples.
            work: in place of `progress`, of another evaluator that is part of the same work.
            saved: where values are kept beyond this process, under `name`.
        """
        model, count, found, examples = setup.model, len(setup.task), setup.batches, setup.task.examples
        tokens, rows = [batch.clean.numel() for batch in found], [len(batch) for batch in found]
        largest = max(tokens, default=0), max(rows, default=0)
        costs = Costs(model, setup.graph, sum(rows), sum(tokens), len(found), *largest)
        kept = replacement_bytes(model, setup.graph, sum(tokens))
        logits = sum(rows) * model.vocab_size * model.W_E.element_size()
        room = setup.held.with_kept(2 * kept + logits).fitting(1, budget(model.device))
        most = at_once(setup.graph.allowed.nbytes, model.device, _MASK_BYTES)
        same = all(each.clean == each.corrupted for each in examples)
        evaluator = cls(
            setup,
            setup.metric.against(lambda batch: evaluator._reference(batch)),
            count,
            drawn(count, seed),
            same and (setup.denoising or setup.ablation_name == "resample"),
            costs,
            distributed.least(most),  # all processes make the same passes
            work or Work(progress, max(costs.forward, 1.0) / _UNITS),
            saved,
            name,
            _kept={} if kept <= _KEPT_BYTES and room else None,
        )
        return evaluator

    @property
    def graph(self) -> Graph:
        """The graph whose edges are kept or removed."""
        return self.setup.graph

    @property
    def batches(self) -> list[Batch]:
        """This process's share of the examples."""
        return self.setup.batches

    # ------------------------------------------------------------------ measuring

    def values(self, mask: np.ndarray, what: str = "metric") -> np.ndarray:
        """[examples]: the metric, `kl` or `agreement` of a circuit, measured now if it was not before.

        Circuits that differ only in edges that change no logit are the same circuit.
        """
        key = self._names.get(_content(mask)) or self._identity(mask)[0]
        if key not in self._known:
            self.measure([mask])
        return self._known[key][what]

    def ablated(self, sources: Sequence[str]) -> tuple[np.ndarray, list[np.ndarray]]:
        """([examples] the metric with every edge kept, the same for each source with its out-edges removed),
        all measured together."""
        whole = self.graph.allowed

        def less(source: str | None) -> np.ndarray:
            mask = whole.copy()
            if source is not None:
                mask[self.graph.source_index[source]] = False
            return mask

        masks = Masks([None, *sources], less)
        self.measure_families([Family(masks, whole)])
        full, *without = (self.values(mask) for mask in masks)
        return full, without

    def measure(self, masks: Sequence[np.ndarray], base: np.ndarray | None = None) -> None:
        """Measure circuits together: each batch's replacements are computed once, and what
        they have in common with the base runs once.

        Args:
            masks: [sources, receivers] each.
            base: a mask from which they differ little; by default all their edges together.
        """
        self.measure_families([Family(masks, base)])

    def measure_families(self, families: Iterable[Family]) -> None:
        """As `measure`, of several families in one pass over the batches, or
        more where their masks take too much memory.
        """
        for some in passes(families, self.most):
            self._measure(self.plans(some))

    @torch.no_grad()
    def _measure(self, plans: Sequence[Plan]) -> None:
        # sorted, for processes that have other examples may plan in
        # another order, and what they found is summed
        keys = sorted(key for plan in plans for step in plan.all_steps for key in step.keys)
        if not keys:
            return
        out = {key: np.zeros((len(KINDS), self.count)) for key in keys}
        parts = [batch.clean.numel() / max(1, self.costs.tokens) for batch in self.batches]
        todo = [self._todo(plans, batch, out) for batch in self.batches]
        whole, building = sum(plan.cost for plan in plans), 0.0 if self._kept else self.costs.patched
        for left, part in zip(todo, parts, strict=True):
            self.work.plan(
                (whole + (building if left else 0.0)) * part, (whole - sum(plan.cost for plan in left)) * part
            )
        self.work.report()
        for number, (left, part) in enumerate(zip(todo, parts, strict=True)):
            if left:
                self._run_batch(number, left, part, building * part, out)
        found = distributed.total(torch.from_numpy(np.stack([out[key] for key in keys]))).numpy()
        for key, values in zip(keys, found, strict=True):
            self._known[key] = dict(zip(KINDS, values, strict=True))
            if self.saved is not None and distributed.world_size() > 1:
                self.saved.put(self.name, key, np.arange(self.count), values, self.count)
        if self.saved is not None:
            self.saved.write()

    def cost(self, families: Sequence[Family]) -> float:
        """FLOP of measuring what is not known yet of some families, roughly."""
        return sum(plan.cost for some in passes(families, self.most) for plan in self.plans(some))

    def plans(self, families: Sequence[Family]) -> list[Plan]:
        """The runs that measure what is not known yet of some families, each circuit once."""
        planner, plans, planned = Planner(self.graph, self.setup.own_run, self.costs), [], set(self._known)
        for family in families:
            masks = {}
            for mask in family.masks:
                if self._names.get(_content(mask)) in planned:
                    continue
                key, canonical_mask = self._identity(mask)
                if key not in planned:
                    masks[key] = canonical_mask
            if not masks:
                continue
            key, base = self._identity(family.common)
            asked = key if masks.pop(key, None) is not None else None
            planned |= {*masks, key} if asked else {*masks}
            plans += planner.family(base, asked, masks)
        return plans

    def _identity(self, mask: np.ndarray) -> tuple[bytes, np.ndarray]:
        """(a circuit's key, the canonical mask of the edges that carry the current output in it)."""
        canonical_mask = self.graph.canonical(self.setup.carrying(mask), self.setup.own_run)
        key = self._names[_content(mask)] = _content(canonical_mask)
        return key, canonical_mask

    def _todo(self, plans: Sequence[Plan], batch: Batch, out: dict[bytes, np.ndarray]) -> list[Plan]:
        """What is left of the plans on a batch; the rest is saved and goes to `out`.

        A run is done again as a whole, so that an interrupted measurement gives the same bytes as any other.
        """
        if self.saved is None:
            return list(plans)
        rows, left = batch.rows.cpu().numpy(), []
        for plan in plans:
            open_steps = []
            for step in plan.all_steps:
                values = [self.saved.get(self.name, key, rows) for key in step.keys]
                if any(each is None for each in values):
                    open_steps.append(step)
                for key, each in zip(step.keys, values, strict=True):
                    out[key][:, rows] = 0.0 if each is None else each
            if open_steps:
                left.append(Plan(plan.start, tuple(step for step in open_steps if step is not plan.start)))
        return left

    def _run_batch(
        self, number: int, plans: Sequence[Plan], share: float, building: float, out: dict[bytes, np.ndarray]
    ) -> None:
        batch = self.batches[number]
        patched, reference = self._patched(number)
        self.work.did(building)
        for plan in plans:
            state = None
            if plan.start is not None:
                state, logits = patched.begin(plan.start.part)
                self._note(plan.start.keys, batch, reference, logits[None], out)
                self.work.did(plan.start.cost * share)
            for step in plan.steps:
                logits = patched.go_on(step.part, state)
                self._note(step.keys, batch, reference, logits, out)
                self.work.did(step.cost * share)

    def _note(
        self,
        keys: Sequence[bytes],
        batch: Batch,
        reference: Tensor,
        logits: Tensor,
        out: dict[bytes, np.ndarray],
    ) -> None:
        """The values of [versions, N, vocabulary] logits.

        The full circuit's are the reference itself: runs that share their start with another circuit's round
        elsewhere, which in a half precision is seen.
        """
        if not keys:
            return
        if self._full[0] in keys:
            logits = torch.stack(
                [reference if key == self._full[0] else each for key, each in zip(keys, logits, strict=True)]
            )
        rows = batch.rows.cpu().numpy()
        best = reference.argmax(-1) == logits.argmax(-1)
        metric = self.metric(logits, batch)
        values = torch.stack(
            [each.double().cpu() for each in (metric, kl_from(reference, logits), best)], dim=1
        ).numpy()
        for key, each in zip(keys, values, strict=True):  # [kinds, N]
            out[key][:, rows] = each
            if self.saved is not None and distributed.world_size() == 1:
                self.saved.put(self.name, key, rows, each, self.count)
        if self.saved is not None and distributed.world_size() == 1:
            self.saved.write()

    # ------------------------------------------------------------------ patched runs

    def patched_runs(self) -> Iterator[tuple[Batch, PatchedRun]]:
        """Each batch of this process's share under the ablation."""
        for number, batch in enumerate(self.batches):
            yield batch, self._patched(number)[0]

    @cached_property
    def _full(self) -> tuple[bytes, np.ndarray]:
        """The circuit of every edge, which stands for the model: the same
        arithmetic as any circuit's, unlike a plain run.
        """
        return self._identity(self.graph.allowed)

    def _reference(self, batch: Batch) -> Tensor:
        """[N, vocabulary]: the full circuit's logits on a batch."""
        if self._last is None or self._last[0] is not batch:
            self._patched(next(i for i, each in enumerate(self.batches) if each is batch))
        assert self._last is not None
        return self._last[1]

    def _patched(self, number: int) -> tuple[PatchedRun, Tensor]:
        """A batch's patched run, and the full circuit's [N, vocabulary] logits on it."""
        found = None if self._kept is None else self._kept.get(number)
        if found is None:
            patched = self.setup.patched(self.batches[number])
            found = patched, finite_logits(patched.logits(self._full[1]), self.batches[number].rows, "clean")
            self._note_rounding(
                number, rounding(found[1], self.setup.model.dtype, self.metric.name).cpu().numpy()
            )
        if self._kept is not None:
            self._kept[number] = found
        self._last = self.batches[number], found[1]
        return found

    def _note_rounding(self, number: int, values: np.ndarray) -> None:
        """Keep what rounding is on a batch, [N]."""
        self._rounding[number] = float(values.sum())
        if self.saved is not None:
            rows = self.batches[number].rows.cpu().numpy()
            self.saved.put(f"{self.name} rounding", bytes(KEY_BYTES), rows, values[None], self.count)

    @torch.no_grad()
    def rounding(self) -> float:
        """What a difference of two means of the metric must be above to be more than rounding."""
        for number in range(len(self.batches)):
            if number in self._rounding:
                continue
            rows = self.batches[number].rows.cpu().numpy()
            known = (
                None
                if self.saved is None
                else self.saved.get(f"{self.name} rounding", bytes(KEY_BYTES), rows)
            )
            if known is None:
                self._patched(number)
            else:
                self._rounding[number] = float(known.sum())
        summed = torch.tensor(sum(self._rounding.values()), dtype=torch.float64)
        return math.inf if self.unchanged else float(distributed.total(summed)) / self.count

    # ------------------------------------------------------------------ statistics

    def mean(self, values: np.ndarray, what: str = "metric") -> Estimate:
        """The mean over the examples of what `values` gives, with its interval."""
        return self.means(values[None], what)[0]

    def means(self, values: np.ndarray, what: str = "metric") -> list[Estimate]:
        """As `mean`, of [figures, examples]."""
        skewed, binary = {
            "metric": (self.metric.skewed, self.metric.share),
            "kl": (True, False),
            "agreement": (False, True),
        }[what]
        return intervals.means(values, self.draws, skewed=skewed, binary=binary)

    def difference(self, a: np.ndarray, b: np.ndarray) -> Estimate:
        """The mean of the metric's a - b, of the same examples, with its interval."""
        return intervals.difference(a, b, self.draws, skewed=self.metric.skewed, binary=self.metric.share)

    def damage(self, old: np.ndarray, new: np.ndarray) -> Estimate:
        """How much worse the metric's new values are than the old ones on average, with its interval."""
        return self.difference(old, new) if self.metric.higher_is_better else self.difference(new, old)

    def least(self, full: np.ndarray, empty: np.ndarray) -> float:
        """What a difference of two means must be above to be more than rounding; of a metric of unknown units
        by the values at both ends."""
        if self.unchanged or self.metric.name in METRICS:
            return self.rounding()
        return torch.finfo(self.setup.model.dtype).eps * float(np.abs(full).mean() + np.abs(empty).mean())

    def normalized(
        self, kept: np.ndarray, full: np.ndarray, empty: np.ndarray
    ) -> tuple[Estimate | None, str | None]:
        """(normalized faithfulness, None), or (None, why there is none)."""
        # shares can be equal where single examples differ
        least = self.least(full, empty) if self.unchanged or not self.metric.share else -math.inf
        return normalized(kept, full, empty, self.draws, metric=self.metric, least=least)


def _content(mask: np.ndarray) -> bytes:
    """What stands for a mask's edges."""
    return blake2b(np.packbits(mask).tobytes(), digest_size=KEY_BYTES).digest()
