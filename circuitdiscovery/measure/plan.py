"""Which runs measure many circuits, and about what they cost.

Circuits of one family differ from a base only from some layer on (a node is left
out), so they share its run up to there:

1. Run the base once and keep its state: what every source adds to its replacement.
2. Where a circuit is the family's common mask with some sources silenced, run only what follows these
   sources. Several such circuits go through one run, as long as that costs less than running each.
3. Of any other circuit run only what its edges change.
4. What costs less without the base, by the estimate, runs from nothing.

All masks here are canonical (`Graph.canonical`) and say which edges carry the current output.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from circuitdiscovery.engine.fast import Part
from circuitdiscovery.engine.memory import at_once
from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.graph.nodes import parsed
from circuitdiscovery.measure.work import together
from circuitdiscovery.model.model import Model
from circuitdiscovery.model.run import parameters

_MERGED_BYTES = 2**25  # of what sources write in one run of several versions
_LOGITS = 3  # of one version: its logits, and what a divergence makes of them, in float32
_OVERHEAD = 3e7  # FLOP in the time that a layer costs beside its products
_KEPT = 32  # FLOP in the time that a number costs which is kept for later
_ADDED = 10  # adding up a stream's sources costs so many times its share in a product (as in sums.py)


def model_flop(model: Model) -> float:
    """Of a plain forward per token, the logits of every token among them."""
    return 2.0 * (model.unembedding_size + parameters(model))


@dataclass(frozen=True)
class Costs:
    """FLOP of runs on some examples, roughly.

    Args:
        model, graph: what runs, and how its edges are counted.
        examples, tokens: of all batches together.
        batches: how many.
        places, rows: tokens and examples of the largest batches.
    """

    model: Model
    graph: Graph
    examples: int
    tokens: int
    batches: int
    places: int
    rows: int

    @cached_property
    def forward(self) -> float:
        """Of the whole model."""
        return self.tokens * model_flop(self.model) + self.batches * self.graph.n_layers * _OVERHEAD

    @cached_property
    def patched(self) -> float:
        """Of a batch's replacements and the full model's logits, for all batches."""
        return 2.2 * self.forward

    @property
    def state(self) -> float:
        """Of keeping what every source writes."""
        return float(_KEPT * self.tokens * len(self.graph.sources) * self.model.d_model)

    @cached_property
    def _per_token(self) -> tuple[np.ndarray, np.ndarray]:
        """[S] each: of a source that runs at all positions per token; the part of it
        that does if only the answer's is wanted.
        """
        model, graph, block = self.model, self.graph, self.model.blocks[0]
        projection = 2 * model.d_model * block.d_head  # of one head
        shared = 2 * projection * graph.n_kv_heads / graph.n_heads
        heads, mlps = (
            np.array([parsed(name).kind == kind for name in graph.sources]) for kind in ("head", "mlp")
        )
        return heads * (2 * projection + shared) + mlps * 2.0 * block.sizes()[1], heads * shared

    @cached_property
    def _layer(self) -> np.ndarray:
        """[S]: where each source stands, heads and MLP of a layer together; `input` in a layer of its own."""
        return np.array([1 + parsed(name).layer for name in self.graph.sources])

    def of(self, part: Part) -> float:
        """Of all versions of a part, logits included."""
        everywhere, always = self._per_token
        nodes, wide = part.nodes, part.nodes & part.wide
        narrow = nodes & ~wide
        kept = part.mask.sum(0)
        reading = (
            2.0
            * self.model.d_model
            * np.minimum(_ADDED * kept, part.mask.shape[0] - part.mask[::-1].argmax(0))
        )
        feeds = self.graph.feeds
        at_all = np.any(feeds[:, wide], axis=1)
        at_answer = np.asarray(np.any(feeds[:, narrow], axis=1)) & ~at_all
        at_answer[-1] = True
        per_token = everywhere[wide].sum() + always[narrow].sum() + reading[at_all].sum()
        per_example = (
            (everywhere - always)[narrow].sum() + reading[at_answer].sum() + 2.0 * self.model.unembedding_size
        )
        layers = len(np.unique(self._layer[nodes])) + 1
        return float(
            len(part.silenced) * (self.tokens * per_token + self.examples * per_example)
            + self.batches * layers * _OVERHEAD
        )

    @cached_property
    def _room(self) -> int:
        """The bytes of what sources write in one run of several versions."""
        return at_once(1, self.model.device, _MERGED_BYTES)

    @cached_property
    def _most_logits(self) -> int:
        """How many versions' logits fit in bounded memory."""
        return at_once(_LOGITS * 4 * max(1, self.rows) * self.model.vocab_size, self.model.device)

    def most_versions(self, part: Part) -> int:
        """How many versions fit in bounded memory."""
        moved = part.nodes | part.held
        places = self.places * (1 + int((moved & part.wide).sum())) + self.places // 10
        # a process without examples has no places
        written = max(1, places * self.model.d_model * self.model.W_E.element_size())
        return max(1, min(self._room // written, self._most_logits))


@dataclass(frozen=True)
class Step:
    """One run, and the circuits that its versions are."""

    keys: tuple[bytes, ...]
    part: Part
    cost: float


@dataclass(frozen=True)
class Plan:
    """Runs that start from the state of a first one, or from nothing where there is none.

    The first one measures its own circuit too, if it has a key.
    """

    start: Step | None
    steps: tuple[Step, ...]

    @property
    def cost(self) -> float:
        """FLOP, roughly."""
        return sum(step.cost for step in self.all_steps)

    @property
    def all_steps(self) -> tuple[Step, ...]:
        """In the order that they run in."""
        return self.steps if self.start is None else (self.start, *self.steps)


@dataclass(frozen=True)
class _Wanted:
    """What a family asks for: circuits, none of them the base, and with a key the base too."""

    base: np.ndarray  # [S, R]
    key: bytes | None
    masks: Mapping[bytes, np.ndarray]  # [S, R] each
    alone: Mapping[bytes, Step]  # each circuit's run from nothing

    def cost_alone(self, steps: Iterable[Step]) -> float:
        """FLOP of the circuits of some steps, each run from nothing."""
        return sum(self.alone[each].cost for step in steps for each in step.keys)


@dataclass(frozen=True)
class Planner:
    """Plans runs on one graph, whose replacements are or are not a run's own."""

    graph: Graph
    own_run: bool
    costs: Costs

    def plain(self, key: bytes, mask: np.ndarray) -> Step:
        """A run from nothing."""
        part = Part(mask, _running(mask), self.graph.everywhere(mask), self._silent(1))
        return Step((key,), part, self.costs.of(part))

    def family(self, base: np.ndarray, key: bytes | None, masks: Mapping[bytes, np.ndarray]) -> list[Plan]:
        """The cheapest runs that measure some circuits, none of them
        the base, and with a key the base too."""
        alone = {each: self.plain(each, mask) for each, mask in masks.items()}
        wanted = _Wanted(base, key, masks, alone)
        merged, rest = self._merged(wanted)
        asked = None if merged and merged.start and merged.start.keys else key
        changed = self._changed(replace(wanted, key=asked, masks={each: masks[each] for each in rest}))
        asked = None if changed and changed.start and changed.start.keys else asked
        plans = [plan for plan in (merged, changed) if plan is not None]
        done = {each for plan in plans for step in plan.all_steps for each in step.keys}
        plain = [] if asked is None else [self.plain(asked, base)]
        plain += [step for each, step in alone.items() if each not in done]
        return [*plans, Plan(None, tuple(plain))] if plain else plans

    def fed(self, receivers: np.ndarray) -> np.ndarray:
        """[S] bool: the sources that any of some receivers feeds."""
        return np.asarray(np.any(self.graph.feeds[receivers], axis=0))

    def _silent(self, versions: int) -> np.ndarray:
        return np.zeros((versions, len(self.graph.sources)), dtype=bool)

    # ------------------------------------------------------------------ several versions of one mask

    def _merged(self, wanted: _Wanted) -> tuple[Plan | None, list[bytes]]:
        """(the plan of circuits that are one mask with sources
        silenced, if it pays; the circuits that are not).
        """
        base, masks = wanted.base, wanted.masks
        common = together((base, *masks.values()))
        off = self._silenced(common, base)
        silenced = {
            each: found for each, mask in masks.items() if (found := self._silenced(common, mask)) is not None
        }
        rest = [each for each in masks if each not in silenced]
        if off is None or not silenced:
            return None, list(masks)
        chosen = sorted(silenced, key=lambda each: int((silenced[each] ^ off).argmax()))
        steps = _Versions(self, common, off, silenced, masks).grouped(chosen)
        steps = [step for step in steps if step.cost < wanted.cost_alone([step])]
        if not steps:
            return None, rest
        needed = np.logical_or.reduce([_running(step.part.mask) & ~step.part.nodes for step in steps])
        needed |= _running(base) if wanted.key is not None else False
        start = Part(common, needed & ~off, self.graph.everywhere(common), off[None])
        return self._if_it_pays(wanted, start, steps), rest

    def _silenced(self, common: np.ndarray, mask: np.ndarray) -> np.ndarray | None:
        """[S] bool: the fewest sources that turn the common mask into this
        one if they are silenced; None where none do.
        """
        graph, running = self.graph, _running(mask)
        read = np.asarray(np.any(graph.feeds[:, running], axis=1))  # by what runs
        read[-1] = True
        silenced = _running(common) & ~running & np.any(common[:, read], axis=1)
        same = np.array_equal(graph.canonical(common & ~silenced[:, None], self.own_run), mask)
        return silenced if same else None

    # ------------------------------------------------------------------ any other change

    def _changed(self, wanted: _Wanted) -> Plan | None:
        """The plan of circuits of which only what differs from the base runs, if it pays."""
        graph, steps, base, alone = self.graph, [], wanted.base, wanted.alone
        needed, wide = np.zeros((2, len(graph.sources)), dtype=bool)
        for each, mask in wanted.masks.items():
            whole = alone[each].part
            moved = graph.reached(mask, self.fed(np.any(mask != base, axis=0)))
            part = replace(whole, nodes=whole.nodes & moved)
            step = Step((each,), part, self.costs.of(part))
            if step.cost < alone[each].cost:
                steps.append(step)
                needed |= whole.nodes & ~moved
                wide |= whole.wide & ~moved
        if not steps:
            return None
        if wanted.key is not None:
            needed |= _running(base)
            wide |= graph.everywhere(base)
        return self._if_it_pays(wanted, Part(base, needed, wide, self._silent(1)), steps)

    def _if_it_pays(self, wanted: _Wanted, start: Part, steps: Sequence[Step]) -> Plan | None:
        key = wanted.key
        first = Step(() if key is None else (key,), start, self.costs.of(start) + self.costs.state)
        without = wanted.cost_alone(steps)
        without += 0.0 if key is None else self.plain(key, wanted.base).cost
        plan = Plan(first, tuple(steps))
        return plan if plan.cost < without else None


def _running(mask: np.ndarray) -> np.ndarray:
    """[S] bool: the sources that a run of a canonical mask computes,
    which are those that write any edge of it.
    """
    return np.asarray(np.any(mask, axis=1))


@dataclass(frozen=True)
class _Versions:
    """Circuits that are a common mask with some sources silenced, to be run from the
    state where those in `off` are silenced.
    """

    planner: Planner
    common: np.ndarray  # [S, R]
    off: np.ndarray  # [S] bool
    silenced: Mapping[bytes, np.ndarray]  # [S] bool each
    masks: Mapping[bytes, np.ndarray]  # [S, R] each

    def grouped(self, keys: Sequence[bytes]) -> list[Step]:
        """Runs of circuits that follow each other, together where that costs less."""
        steps: list[Step] = []
        for key in keys:
            alone, costs = self.step((key,)), self.planner.costs
            if steps and len(steps[-1].keys) < costs.most_versions(steps[-1].part):
                both = self.step((*steps[-1].keys, key))
                if (
                    len(both.keys) <= costs.most_versions(both.part)
                    and both.cost <= steps[-1].cost + alone.cost
                ):
                    steps[-1] = both
                    continue
            steps.append(alone)
        return steps

    def step(self, keys: tuple[bytes, ...]) -> Step:
        """One run of some circuits: of the sources that any of them
        silences or wakes, and all that follows."""
        planner, graph = self.planner, self.planner.graph
        silenced = np.stack([self.silenced[key] for key in keys])
        masks = (self.masks[key] for key in keys)
        mask = next(masks) if len(keys) == 1 else together(masks)
        flipped = np.any(silenced ^ self.off, axis=0)
        following = graph.reached(self.common, planner.fed(np.any(self.common[flipped], axis=0)))
        nodes = _running(mask) & (following | (flipped & self.off))
        part = Part(mask, nodes, graph.everywhere(mask), silenced & _running(mask) & (flipped | nodes))
        return Step(keys, part, planner.costs.of(part))
