"""Completeness and minimality: which sets of nodes K are knocked out, and what follows from it.

Wang et al. 2022, arXiv 2211.00593, section 4.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from circuitdiscovery.circuit.circuit import Circuit
from circuitdiscovery.graph.nodes import whole_of
from circuitdiscovery.measure import intervals
from circuitdiscovery.measure.estimates import Estimate
from circuitdiscovery.measure.evaluator import Evaluator
from circuitdiscovery.measure.work import Family, Masks

ENDS = ("input", "logits")
RANDOM_SETS = 20  # random K, each node with probability 1/2 (Wang et al. 2022, section 4.2)
QUICK_SETS = 5
QUICK_NODES = 30
GREEDY_NODES = 10
GREEDY_EXAMPLES = 16  # examples of the search on which the greedy K and the K that matters most are chosen
ROUNDS = 3  # rounds that the greedy choice is expected to take
NEGLIGIBLE = 0.01  # of |F(M) - F(empty)|: minimality names the nodes that always matter less


@dataclass(frozen=True)
class Knockout:
    """One set K of completeness: its kind, its nodes, and |F(C\\K) - F(M\\K)|."""

    kind: str  # "empty", "role NAME", "random" or "greedy"
    nodes: tuple[str, ...]
    incompleteness: Estimate  # without an interval for "greedy" if no examples are held out


@dataclass(frozen=True)
class Completeness:
    """Whether the circuit responds to knocked-out nodes as the model does; smaller is better.

    Args:
        sets: each K with its incompleteness |F(C\\K) - F(M\\K)|, in the metric's units.
        max: the incompleteness of the K that was worst on examples of the search; without held-out examples,
            for a quick measurement, and of a single example, the largest value, without an interval.
        mean: the mean over the random K, minus what noise adds to a mean of magnitudes.
    """

    sets: tuple[Knockout, ...]
    max: Estimate
    mean: Estimate


@dataclass(frozen=True)
class Minimality:
    """How much each node of the circuit matters: the largest effect of its removal over the sets K.

    Args:
        scores: the effect of each measured node, in the metric's units, at the K where it matters most on
            examples of the search; without held-out examples it has no interval.
        below: the nodes whose effect is below the bar, or rounding where there is none, here and for every
            K on the examples of the search.
        bar: the effect that counts as negligible, 1% of |F(M) - F(empty)|; None where normalized
            faithfulness is None too.
        unmeasured: the nodes that the effort `quick` left out.
    """

    scores: Mapping[str, Estimate]
    below: tuple[str, ...]
    bar: float | None
    unmeasured: tuple[str, ...] = ()

    @property
    def unsure(self) -> int:
        """How many of the nodes below the bar may matter more: their intervals reach above it."""
        return sum(self.bar is not None and self.scores[node].high > self.bar for node in self.below)


def removable_nodes(circuit: Circuit) -> list[str]:
    """Its heads and MLPs, of those that are split the parts, and what heads share."""
    whole = {split.node for split in circuit.graph.splits}
    return [node for node in circuit.nodes if whole_of(node) not in ENDS and node not in whole]


@dataclass(frozen=True)
class Sets:
    """The sets K to remove from a circuit, and the nodes to measure."""

    circuit: Circuit
    effort: str
    nodes: tuple[str, ...]
    sets: tuple[tuple[str, tuple[str, ...]], ...]  # (kind, K)
    worst: int = 0  # the index of the set with the largest incompleteness
    most: tuple[tuple[str, ...], ...] = ()  # for each node, the K at which it matters most
    largest: tuple[float, ...] = ()  # for each node, its largest effect on the examples that chose its K

    @classmethod
    def of(cls, circuit: Circuit, effort: str, seed: int) -> Sets:
        """The empty set, the circuit's roles and random sets; `quick` takes fewer, and no roles."""
        nodes, rng = removable_nodes(circuit), np.random.default_rng(seed)
        sets: list[tuple[str, tuple[str, ...]]] = [("empty", ())]
        if effort == "full":
            sets += [
                (f"role {role}", tuple(each for each in members if each not in ENDS))
                for role, members in circuit.roles.items()
            ]
        for _ in range((RANDOM_SETS if effort == "full" else QUICK_SETS) if nodes else 0):
            sets.append(("random", tuple(np.array(nodes)[rng.random(len(nodes)) < 0.5].tolist())))
        plan = cls(circuit, effort, tuple(nodes if effort == "full" else _quick(circuit, nodes)), tuple(sets))
        # with a single K nothing has to be chosen, so minimality is measured in the same pass as the rest
        return replace(plan, most=tuple(plan.over) * len(plan.nodes)) if len(plan.over) == 1 else plan

    @property
    def unmeasured(self) -> tuple[str, ...]:
        """The nodes that minimality leaves out."""
        return tuple(node for node in removable_nodes(self.circuit) if node not in set(self.nodes))

    @property
    def over(self) -> list[tuple[str, ...]]:
        """The sets K over which minimality takes the largest effect."""
        return [
            nodes
            for kind, nodes in self.sets
            if kind == "empty" or (self.effort == "full" and not kind.startswith("role"))
        ]

    def families(self) -> Iterator[Family]:
        """The circuits that are measured in any case, except for the curve."""
        circuit, whole = self.circuit, Circuit.full(self.circuit.graph)
        yield Family([np.zeros_like(circuit.mask)])
        for each in (whole, circuit):
            yield Family(Masks(self.sets, lambda of, each=each: _less(each, of[1])), each.mask)

    def candidates(self) -> Iterator[Family]:
        """The circuits that are measured to choose each node's K for minimality."""
        return (
            without_each(self.circuit, removed, self.nodes) for removed in self.over if len(self.over) > 1
        )

    def minimal(self) -> Iterator[Family]:
        """The circuits that minimality needs at the chosen K."""
        for removed in dict.fromkeys(self.most):
            yield without_each(
                self.circuit,
                removed,
                [node for node, at in zip(self.nodes, self.most, strict=True) if at == removed],
            )

    def chosen(self, evaluator: Evaluator, sure: bool) -> Sets:
        """These sets with the worst one, and the K at which each node
        matters most, on the evaluator's examples.

        With `sure`, sets are compared by how far the magnitude of a mean exceeds its standard error, because
        the largest of several noisy means is noise. Of equal sets the first is chosen.
        """

        def size(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
            value, error = abs(float((a - b).mean())), float((a - b).std()) / math.sqrt(max(1, len(a) - 1))
            return (max(0.0, value - error) if sure else value), value

        incomplete = [size(*_incomplete(evaluator, self.circuit, removed)) for _, removed in self.sets]
        over, most, largest = self.over, [], []
        for node in self.nodes:
            effects = (
                [size(*_with_and_without(evaluator, self.circuit, removed, node)) for removed in over]
                if len(over) > 1
                else [(0.0, 0.0)]
            )
            most.append(over[effects.index(max(effects))])
            largest.append(max(value for _, value in effects))
        return replace(
            self, worst=incomplete.index(max(incomplete)), most=tuple(most), largest=tuple(largest)
        )


def _quick(circuit: Circuit, nodes: Sequence[str]) -> list[str]:
    """The nodes that write most, then those that write nothing, as many as a quick measurement takes."""
    writing = circuit.strongest(QUICK_NODES)
    chosen = [*writing, *(node for node in nodes if node not in writing)][:QUICK_NODES]
    return [node for node in nodes if node in chosen]


def _less(circuit: Circuit, removed: Iterable[str]) -> np.ndarray:
    """[sources, receivers]: the edges of C\\K, faster than `Circuit.without`; thousands are needed."""
    return circuit.mask & ~circuit.graph.touching(set(removed))


def without_each(circuit: Circuit, removed: tuple[str, ...], nodes: Sequence[str]) -> Family:
    """C\\K, and the same with each of some nodes added to K or taken out of it."""
    sets = [set(removed), *(set(removed) ^ {node} for node in nodes)]
    return Family(Masks(sets, lambda each: _less(circuit, each)), _less(circuit, removed))


def _incomplete(
    evaluator: Evaluator, circuit: Circuit, removed: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """[examples] each: F(C\\K) and F(M\\K)."""
    whole = Circuit.full(circuit.graph)
    return evaluator.values(_less(circuit, removed)), evaluator.values(_less(whole, removed))


def _with_and_without(
    evaluator: Evaluator, circuit: Circuit, removed: tuple[str, ...], node: str
) -> tuple[np.ndarray, np.ndarray]:
    """[examples] each: F of C\\K without a node and with it."""
    rest = tuple(other for other in removed if other != node)
    return evaluator.values(_less(circuit, (*rest, node))), evaluator.values(_less(circuit, rest))


def greedy(evaluator: Evaluator, circuit: Circuit, nodes: Sequence[str]) -> tuple[str, ...]:
    """Up to ten nodes; each is the one that raises |F(C\\K) - F(M\\K)| most, until none raises it."""
    whole = Circuit.full(circuit.graph)

    def of(removed: tuple[str, ...]) -> float:
        kept, full = _incomplete(evaluator, circuit, removed)
        return abs(float(kept.mean() - full.mean()))

    chosen: tuple[str, ...] = ()
    while len(chosen) < GREEDY_NODES:
        others = [node for node in nodes if node not in chosen]
        evaluator.measure_families([without_each(of_whom, chosen, others) for of_whom in (circuit, whole)])
        tried = {node: of((*chosen, node)) for node in others}
        node = max(tried, key=tried.__getitem__, default=None)
        if node is None or tried[node] <= of(chosen):
            break
        chosen = (*chosen, node)
    return chosen


def expected(evaluator: Evaluator, chooser: Evaluator, plan: Sets) -> float:
    """The FLOP of the whole measurement but the curve, from its first two sets and the first greedy round."""
    circuit, whole = plan.circuit, Circuit.full(plan.circuit.graph)
    total = evaluator.cost(list(plan.families())) + (
        chooser.cost(list(plan.families())) if chooser is not evaluator else 0.0
    )
    if plan.effort == "quick" or not plan.nodes:
        return total + evaluator.cost([without_each(circuit, plan.over[0], plan.nodes)])
    second = chooser.cost([without_each(circuit, plan.over[1], plan.nodes)])
    minimal = (
        0.0 if chooser is evaluator else evaluator.cost([without_each(circuit, plan.over[1], plan.nodes)])
    )
    rounds = chooser.cost([without_each(each, (), plan.nodes) for each in (circuit, whole)])
    return total + second * len(plan.over) + minimal + ROUNDS * rounds


def completeness_of(evaluator: Evaluator, plan: Sets, apart: bool) -> Completeness:
    pairs = [_incomplete(evaluator, plan.circuit, removed) for _, removed in plan.sets]
    signed = [evaluator.difference(kept, whole) for kept, whole in pairs]
    found = [each.magnitude() for each in signed]
    knockouts = tuple(
        Knockout(kind, removed, Estimate(each) if kind == "greedy" and not apart else each)
        for (kind, removed), each in zip(plan.sets, found, strict=True)
    )
    worst = found[plan.worst]
    if len(found) > 1 and not (apart and worst.has_interval):
        worst = Estimate(max(map(float, found)))
    random = [each for (kind, _), each in zip(plan.sets, signed, strict=True) if kind == "random"]
    return Completeness(knockouts, worst, intervals.mean_of_magnitudes(random or signed))


def minimality_of(evaluator: Evaluator, plan: Sets, apart: bool, spanned: bool) -> Minimality:
    """`spanned`: there is a normalized faithfulness."""
    scores: dict[str, Estimate] = {}
    for node, removed in zip(plan.nodes, plan.most, strict=True):
        found = evaluator.difference(*_with_and_without(evaluator, plan.circuit, removed, node)).magnitude()
        scores[node] = found if apart or len(plan.over) == 1 else Estimate(found)
    full, empty = (
        evaluator.values(plan.circuit.graph.allowed),
        evaluator.values(np.zeros_like(plan.circuit.mask)),
    )
    bar = NEGLIGIBLE * abs(float(full.mean() - empty.mean())) if spanned else None
    least = evaluator.least(full, empty)
    below = []
    for node, seen in zip(plan.nodes, plan.largest, strict=True):
        most = max(scores[node], seen)
        if most < bar if bar is not None else most <= least:
            below.append(node)
    return Minimality(scores, tuple(below), bar, plan.unmeasured)
