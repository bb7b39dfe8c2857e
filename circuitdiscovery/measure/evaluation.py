"""How good a circuit is: faithfulness, completeness and minimality (Wang et al. 2022, arXiv 2211.00593, section 4).

F is the mean metric, M the model, C the circuit, and "empty" all edges removed under the same ablation. C\\K removes every
edge into or out of the nodes in K. All values come from examples that the search has not seen, where the task holds some
out, and carry 95% intervals over these examples (intervals.py). Which K matters most, greedily grown or for a node's minimality, is
chosen on some of the search's examples: a largest value of noisy ones is too large where it is chosen on the examples that it is
measured on. Where none are held out it is, and stands without an interval; so does the largest of a quick measurement, which does not
pay for choosing.

How much is measured is the effort. *full*: K empty, the roles, 20 random sets and a greedy one, and minimality over them. *quick*: K
empty and 5 random sets; minimality at K empty, of the 30 nodes that write most. Both say F, KL, agreement and the curve.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from circuitdiscovery.arguments import guarded
from circuitdiscovery.circuit.circuit import Circuit
from circuitdiscovery.circuit.scores import Scores
from circuitdiscovery.engine.ablation import Ablation, Replacements, name_of
from circuitdiscovery.engine.metrics import Metric
from circuitdiscovery.engine.patching import Progress
from circuitdiscovery.errors import CircuitDiscoveryError, unknown
from circuitdiscovery.measure import intervals
from circuitdiscovery.measure.bench import Bench, Family
from circuitdiscovery.measure.estimates import Estimate
from circuitdiscovery.measure.plan import model_flop
from circuitdiscovery.measure.saved import digest, saved
from circuitdiscovery.model.model import Model
from circuitdiscovery.names import ablation_words
from circuitdiscovery.task.task import Task
from circuitdiscovery.values import Value, left_out

if TYPE_CHECKING:
    from circuitdiscovery.circuit.charts import Chart

__all__ = [
    "Bench",
    "Completeness",
    "Curve",
    "Estimate",
    "Evaluation",
    "Knockout",
    "Minimality",
    "curve",
    "default_effort",
    "evaluate",
    "price",
]

ENDS = ("input", "logits")
EFFORTS = ("full", "quick")
RANDOM_SETS = 20  # random K, each node with probability 1/2 (Wang et al. 2022, section 4.2)
QUICK_SETS = 5
QUICK_NODES = 30
GREEDY_NODES = 10
GREEDY_EXAMPLES = 16  # of the search's, on which greedy's K, and the K that matters most, are chosen
NEGLIGIBLE = 0.01  # of |F(M) - F(empty)|: a node that never matters more is named by minimality
MIB_FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # Mueller et al. 2025, arXiv 2504.13151
_AFFORDABLE = 1e13  # FLOP of a full measurement that is done unasked: some minutes on two cores
# in plain forwards of the examples, about:
_WORLD = 2.2  # the replacements, and the full model's logits
_RUN = 0.05  # what any run costs, and
_MASKED = 1.1  # a run of every source more
_THINNED = 0.5  # of what a node costs at K empty, what it costs at a random K
_ROUNDS = 3  # that greedy is expected to take


@dataclass(frozen=True)
class Knockout:
    """One K of completeness: which nodes, why these, and |F(C\\K) - F(M\\K)|."""

    kind: str  # "empty", "role NAME", "random" or "greedy"
    nodes: tuple[str, ...]
    incompleteness: Estimate  # of "greedy" without an interval where none are held out


@dataclass(frozen=True)
class Completeness:
    """Whether the circuit responds to the removal of nodes as the model does: smaller is better.

    Args:
        sets: each K.
        max: of the K that is surely worst on some of the search's examples; where none are held out, and of a quick measurement, the
            largest, without an interval.
        mean: over the random K, less what noise adds to a mean of magnitudes.
    """

    sets: tuple[Knockout, ...]
    max: Estimate
    mean: Estimate


@dataclass(frozen=True)
class Minimality:
    """How much each node of the circuit matters in it, at most over the sets K.

    Args:
        scores: of the nodes that were measured, each at the K where it surely matters most on some of the search's examples; where none are
            held out, without an interval.
        below: those of them that matter less than the bar, on the search's examples at every K too.
        bar: what is negligible.
        unmeasured: the nodes that the effort `quick` left out.
    """

    scores: Mapping[str, Estimate]
    below: tuple[str, ...]
    bar: float
    unmeasured: tuple[str, ...] = ()


@dataclass(frozen=True, repr=False)
class Curve(Value):
    """Faithfulness against the number of edges, for the best edges by score at MIB's fractions.

    Areas are linear trapezoids from the first fraction to the last: `area` under the normalized faithfulness f and `distance` under
    |1 - f|, over the part of edges that pruning leaves of the edges of the highest |score|; `cpr` and `cmd` the same by the rule of
    MIB's code (Mueller et al. 2025): over the fractions themselves, rounded down to edges, of the highest signed score, pruned.

    Args:
        fractions: of all edges.
        requested: how many edges that is, by |score|.
        edges: how many of these pruning leaves.
        normalized: f of the requested edges.
        cpr, cmd, area, distance: the areas.
        ablation: what a removed edge carries.
        mean_over: the fewest prompts that a replacement is a mean over; None: it is not a mean.
    """

    fractions: tuple[float, ...]
    requested: tuple[int, ...]
    edges: tuple[int, ...]
    normalized: tuple[Estimate, ...]
    cpr: Estimate
    cmd: Estimate
    area: Estimate
    distance: Estimate
    ablation: str | None = left_out()
    mean_over: int | None = left_out()

    def __str__(self) -> str:
        return "\n".join(f"{name:<13} {value}" for name, value in self._lines())

    def _lines(self) -> Iterator[tuple[str, str]]:
        if self.ablation is not None:
            yield "measured", ablation_words(self.ablation, self.mean_over)
        for requested, edges, normalized in zip(self.requested, self.edges, self.normalized, strict=True):
            yield f"{requested:,} edges", f"{normalized} ({edges:,} on a path from input to logits)"
        yield "areas", f"area {self.area}, distance {self.distance}; MIB's CPR {self.cpr}, CMD {self.cmd}"

    def plot(self, path: str | Path | None = None) -> Chart:
        """The curve over a logarithmic axis of edges, with its intervals; a notebook shows it, a .svg path keeps it."""
        from circuitdiscovery.circuit.charts import Chart, curve

        known = {"edges": self.edges, "normalized": [each.to_dict() for each in self.normalized]}
        return Chart.standing(curve(known)).saved(path)

    def _repr_html_(self) -> str:
        return self.plot().svg


@dataclass(frozen=True, repr=False)
class Evaluation(Value):
    """What `evaluate` measured."""

    model: str
    task: str
    part: str  # "held_out" or "examples"
    examples: int
    metric: str
    ablation: str
    direction: str
    effort: str  # "full" or "quick"
    edges: int
    edges_pruned: int
    edges_total: int
    full: Estimate  # F(M)
    circuit: Estimate  # F(C)
    empty: Estimate  # F(empty)
    faithfulness: Estimate  # |F(M) - F(C)|
    normalized: Estimate | None  # (F(C) - F(empty)) / (F(M) - F(empty))
    reason: str | None  # why there is no normalized faithfulness
    kl: Estimate  # KL(M || C), nats
    empty_kl: Estimate  # KL(M || empty), nats
    agreement: Estimate  # same top token, of all examples
    completeness: Completeness
    minimality: Minimality
    curve: Curve | None = field(default=None)
    mean_over: int | None = left_out()  # the fewest prompts that a replacement is a mean over; None: it is not a mean

    def __str__(self) -> str:
        return "\n".join(f"{name:<13} {value}" for name, value in self._lines())

    def _lines(self) -> Iterator[tuple[str, str]]:
        where = "held-out examples" if self.part == "held_out" else "examples (none are held out)"
        yield "circuit", f"{self.edges:,} edges ({self.edges_pruned:,} on a path from input to logits) of {self.edges_total:,}"
        how = f"{ablation_words(self.ablation, self.mean_over)}, {self.direction} ({self.effort})"
        yield "measured", f"{self.metric} on {self.examples} {where}, {how}"
        yield "F", f"model {self.full}, circuit {self.circuit}, empty {self.empty}"
        yield "faithfulness", f"|F(M) - F(C)| {self.faithfulness}"
        yield "normalized", str(self.normalized) if self.reason is None else f"none: {self.reason}"
        yield "KL", f"{self.kl} nats (empty {self.empty_kl}); same top token {self.agreement}"
        worst = "at the worst K of the search's examples" if self.completeness.max.has_interval else "at most"
        yield "completeness", f"mean incompleteness {self.completeness.mean}, {worst} {self.completeness.max}"
        named = f": {', '.join(self.minimality.below)}" if self.minimality.below else ""
        rest = f"; {len(self.minimality.unmeasured)} not measured" if self.minimality.unmeasured else ""
        yield (
            "minimality",
            f"{len(self.minimality.below)} of {len(self.minimality.scores)} nodes never matter more than {NEGLIGIBLE:.0%}{named}{rest}",
        )
        if self.curve is not None:
            yield "curve", f"area {self.curve.area}, distance {self.curve.distance}; MIB's CPR {self.curve.cpr}, CMD {self.curve.cmd}"


@guarded
def evaluate(
    model: Model,
    task: Task,
    circuit: Circuit,
    *,
    ablation: str | Ablation = "resample",
    metric: str | Metric | Any | None = None,
    direction: str = "noising",
    scores: Scores | None = None,
    effort: str = "full",
    batch_size: int | None = None,
    seed: int = 0,
    state: Path | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure a circuit: exactly its edges, nothing pruned.

    Args:
        model: the model it is a circuit of.
        task: measured on its held-out examples where there are some, else on its examples; which K matters most is chosen on its
            examples.
        circuit: what to measure; its roles, where it has some, are sets K of completeness.
        ablation: what a removed edge carries.
        metric: by default the task's own.
        direction: `noising` or `denoising`.
        scores: adds the faithfulness curve of their best edges.
        effort: `full`, or `quick`: K empty and 5 random ones, minimality of the 30 strongest nodes at K empty (see `price`).
        batch_size: examples in one forward; only so many examples' replacements are held at once.
        seed: of the random sets and the bootstrap.
        state: a file that what is measured is saved to as it goes; with it a call that was stopped goes on, to the same result. One
            of another measurement is an error; the caller deletes it in the end. Of an ablation or a metric of your own it
            knows the name only.
        progress: called with (done, total), in hundredths of a plain forward of the examples.

    Raises:
        CircuitDiscoveryError: a circuit of another model; unknown names; a state file of another measurement.

    >>> import circuitdiscovery as cd
    >>> model = cd.load_model("toy")
    >>> task = cd.load_task("ioi", model, examples=8)
    >>> float(cd.evaluate(model, task, cd.Circuit.empty(model.graph)).normalized)
    0.0
    """
    if effort not in EFFORTS:
        raise unknown("effort", effort, EFFORTS)
    circuit.check_model(model)
    used, metric = task.held_out or task, metric or task.metric
    plan, few = _Sets.of(circuit, effort, seed), _choosing(task, ablation) if effort == "full" else used
    of = (
        ""
        if state is None
        else digest(*_depends_on(model, used, ablation, metric, direction), few.examples, circuit.mask, plan, scores and scores.values)
    )
    with saved(state, of) as kept:
        setup = (circuit.graph, ablation, metric, direction, batch_size, seed)
        bench = Bench.build(model, used, *setup, progress, saved=kept)
        chooser = bench if few is used else Bench.build(model, few, *setup, work=bench.work, saved=kept, name="ranking")
        if progress:
            bench.work.ahead = _expected(bench, chooser, plan)
        first = [] if scores is None else [Family(_curve_masks(scores, MIB_FRACTIONS))]
        bench.measure_families((*first, *plan.families(), *plan.minimal()))
        if effort == "full" and plan.nodes:
            plan = replace(plan, sets=(*plan.sets, ("greedy", _greedy(chooser, circuit, plan.nodes))))
        chooser.measure_families((*plan.families(), *plan.candidates()))
        apart = few is not used and task.held_out is not None
        plan = plan.chosen(chooser, apart)
        bench.work.ahead = 0.0
        bench.measure_families((*plan.families(), *plan.minimal()))
        bench.work.report()
        return _evaluation(model, task, bench, plan, scores, apart)


def _choosing(task: Task, ablation: str | Ablation) -> Task:
    """The examples that K is chosen on: the first of the search's, which are of all templates; where the ablation has none of them, all
    that are measured."""
    used = task.held_out or task
    few = task.select(range(GREEDY_EXAMPLES)) if len(task) > GREEDY_EXAMPLES else task
    if isinstance(ablation, Replacements) and task.held_out is not None:
        try:
            for batch in few.batches():
                ablation.rows(batch)
        except CircuitDiscoveryError:  # computed of the held-out examples alone
            return used
    return few


def _evaluation(model: Model, task: Task, bench: Bench, plan: _Sets, scores: Scores | None, apart: bool) -> Evaluation:
    """What the values say; `apart`: K was chosen on other examples."""
    circuit, allowed, nothing = plan.circuit, plan.circuit.graph.allowed, np.zeros_like(plan.circuit.mask)
    full, kept, empty = (bench.values(mask) for mask in (allowed, circuit.mask, nothing))
    normalized, reason = bench.normalized(kept, full, empty)
    return Evaluation(
        model=model.name,
        task=task.name,
        part="examples" if task.held_out is None else "held_out",
        examples=bench.count,
        metric=bench.metric.name,
        ablation=bench.ablation,
        direction=bench.direction,
        effort=plan.effort,
        edges=len(circuit),
        edges_pruned=len(circuit.pruned()),
        edges_total=len(circuit.graph),
        full=bench.mean(full),
        circuit=bench.mean(kept),
        empty=bench.mean(empty),
        faithfulness=bench.difference(full, kept).magnitude(),
        normalized=normalized,
        reason=reason,
        kl=bench.mean(bench.values(circuit.mask, "kl"), "kl"),
        empty_kl=bench.mean(bench.values(nothing, "kl"), "kl"),
        agreement=bench.mean(bench.values(circuit.mask, "agreement"), "agreement"),
        completeness=_completeness(bench, plan, apart),
        minimality=_minimality(bench, plan, apart),
        curve=_curve(bench, scores, MIB_FRACTIONS) if scores is not None and reason is None else None,
        mean_over=bench.mean_over,
    )


def _depends_on(model: Model, task: Task, ablation: str | Ablation, metric: Any, direction: str) -> tuple[Any, ...]:
    """What values are measured of and by, beside the circuit."""
    given = [part for _, part in ablation.parts] if isinstance(ablation, Replacements) else []
    arrays = [part.detach().cpu().contiguous().view(torch.uint8).numpy() for part in given]
    names = name_of(ablation), metric if isinstance(metric, str) else getattr(metric, "name", getattr(metric, "__name__", "metric"))
    return model.digest, str(model.dtype), model.graph, task.examples, names, direction, *arrays


@guarded
def price(circuit: Circuit, count_examples: int, effort: str = "full") -> float:
    """What measuring a circuit costs, in plain forwards of the examples, within a factor of 2 or so; a curve is counted in.

    >>> import circuitdiscovery as cd
    >>> graph = cd.Graph(n_layers=30, n_heads=9, n_kv_heads=3)
    >>> sparse = cd.Circuit.from_nodes(graph, ["a3.h0", "m3", "a20.h1"])
    >>> price(sparse, 64, "quick") < price(sparse, 64, "full")
    True
    """
    if effort not in EFFORTS:
        raise unknown("effort", effort, EFFORTS)
    size, removable = len(circuit.graph.sources), len(_removable(circuit))
    share = int(circuit.pruned().mask.any(axis=1).sum()) / size  # of the sources that run
    whole, half, kept = (_RUN + _MASKED * part for part in (1.0, share / 2, share))
    follows = _RUN + _MASKED * share / 2  # what follows a node that is left out
    once = _WORLD + whole + kept + 2 * len(MIB_FRACTIONS) * (_RUN + _MASKED * 0.8)
    count = (QUICK_SETS if effort == "quick" else RANDOM_SETS) + 1
    sets = count * (whole + half)
    if effort == "quick":
        return once + sets + min(QUICK_NODES, removable) * follows
    rounds = _ROUNDS * removable * (follows + whole / 2) + count * removable * follows * _THINNED
    few = min(1.0, GREEDY_EXAMPLES / count_examples)
    return once + sets + removable * follows * _THINNED + few * (_WORLD + sets + rounds)


@guarded
def default_effort(model: Model, task: Task, circuit: Circuit) -> str:
    """`full` where it costs little, else `quick`; it depends on counts alone, so that it is the same everywhere.

    >>> import circuitdiscovery as cd
    >>> model = cd.load_model("toy")
    >>> default_effort(model, cd.load_task("ioi", model), cd.Circuit.full(model.graph))
    'full'
    """
    used = task.held_out or task
    forward = model_flop(model) * sum(len(example.clean) for example in used.examples)
    return "full" if price(circuit, len(used), "full") * forward <= _AFFORDABLE else "quick"


@guarded
def curve(
    model: Model,
    task: Task,
    scores: Scores,
    *,
    ablation: str | Ablation = "resample",
    metric: str | Metric | Any | None = None,
    direction: str = "noising",
    fractions: Sequence[float] = MIB_FRACTIONS,
    batch_size: int | None = None,
    seed: int = 0,
) -> Curve:
    """Normalized faithfulness of the best edges by |score| against their number, with the areas under it (see `Curve`).

    Raises:
        CircuitDiscoveryError: fractions that do not rise from 0 to 1; no normalized faithfulness on this task.

    >>> import circuitdiscovery as cd
    >>> model = cd.load_model("toy")
    >>> task = cd.load_task("ioi", model, examples=8)
    >>> float(cd.curve(model, task, cd.eap(model, task)).normalized[-1])
    1.0
    """
    if len(fractions) < 2 or list(fractions) != sorted(set(fractions)) or not 0 <= fractions[0] <= fractions[-1] <= 1:
        raise CircuitDiscoveryError(f"fractions must rise from 0 to 1, at least two of them, not {list(fractions)}")
    Circuit.empty(scores.graph).check_model(model)
    bench = Bench.build(model, task.held_out or task, scores.graph, ablation, metric or task.metric, direction, batch_size, seed)
    return _curve(bench, scores, fractions)


# ------------------------------------------------------------------ the criteria


def _removable(circuit: Circuit) -> list[str]:
    return [node for node in circuit.nodes if node not in ENDS]


@dataclass(frozen=True)
class _Sets:
    """Which sets K are removed from a circuit, and which of its nodes are measured."""

    circuit: Circuit
    effort: str
    nodes: tuple[str, ...]
    sets: tuple[tuple[str, tuple[str, ...]], ...]  # (kind, K)
    worst: int = 0  # the set of largest incompleteness
    most: tuple[tuple[str, ...], ...] = ()  # of each node, the K at which it matters most
    largest: tuple[float, ...] = ()  # of each node, its largest effect on the examples that K was chosen on

    @classmethod
    def of(cls, circuit: Circuit, effort: str, seed: int) -> _Sets:
        """The empty set, the roles that the circuit names, and random sets; all nodes. `quick` takes fewer, and no roles."""
        nodes, rng = _removable(circuit), np.random.default_rng(seed)
        sets: list[tuple[str, tuple[str, ...]]] = [("empty", ())]
        if effort == "full":
            sets += [(f"role {role}", tuple(each for each in members if each not in ENDS)) for role, members in circuit.roles.items()]
        for _ in range((RANDOM_SETS if effort == "full" else QUICK_SETS) if nodes else 0):
            sets.append(("random", tuple(np.array(nodes)[rng.random(len(nodes)) < 0.5].tolist())))
        plan = cls(circuit, effort, tuple(nodes) if effort == "full" else circuit.strongest(QUICK_NODES), tuple(sets))
        # with one K there is nothing to choose, and what minimality needs is measured with the rest, in one pass over the prompts
        return replace(plan, most=tuple(plan.over) * len(plan.nodes)) if len(plan.over) == 1 else plan

    @property
    def unmeasured(self) -> tuple[str, ...]:
        """The nodes that minimality leaves out."""
        return tuple(node for node in _removable(self.circuit) if node not in set(self.nodes))

    @property
    def over(self) -> list[tuple[str, ...]]:
        """The sets that minimality takes the largest effect over."""
        return [nodes for kind, nodes in self.sets if kind == "empty" or (self.effort == "full" and not kind.startswith("role"))]

    def families(self) -> Iterator[Family]:
        """What is measured whatever is chosen, the curve aside."""
        circuit, whole = self.circuit, Circuit.full(self.circuit.graph)
        yield Family([np.zeros_like(circuit.mask)])
        yield Family([_less(whole, removed) for _, removed in self.sets], whole.mask)
        yield Family([_less(circuit, removed) for _, removed in self.sets], circuit.mask)

    def candidates(self) -> Iterator[Family]:
        """What the K of minimality are chosen by."""
        return (without_each(self.circuit, removed, self.nodes) for removed in self.over if len(self.over) > 1)

    def minimal(self) -> Iterator[Family]:
        """What minimality needs at the K that were chosen."""
        for removed in dict.fromkeys(self.most):
            yield without_each(self.circuit, removed, [node for node, at in zip(self.nodes, self.most, strict=True) if at == removed])

    def chosen(self, bench: Bench, sure: bool) -> _Sets:
        """With the set that is worst, and the K at which each node matters most, on a bench's examples; the first of equals.

        `sure`: by what a mean exceeds its standard error by, where it does, for others are measured. The largest of noisy means is noise.
        """

        def size(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
            value, error = abs(float((a - b).mean())), float((a - b).std()) / math.sqrt(max(1, len(a) - 1))
            return (max(0.0, value - error) if sure else value), value

        incomplete = [size(*_incomplete(bench, self.circuit, removed)) for _, removed in self.sets]
        over, most, largest = self.over, [], []
        for node in self.nodes:
            effects = [size(*_with_and_without(bench, self.circuit, removed, node)) for removed in over] if len(over) > 1 else [(0.0, 0.0)]
            most.append(over[effects.index(max(effects))])
            largest.append(max(value for _, value in effects))
        return replace(self, worst=incomplete.index(max(incomplete)), most=tuple(most), largest=tuple(largest))


def _less(circuit: Circuit, removed: Iterable[str]) -> np.ndarray:
    """[sources, receivers]: the edges of C\\K (`Circuit.without`), of which a measurement needs thousands."""
    return circuit.mask & ~circuit.graph.touching(set(removed))


def without_each(circuit: Circuit, removed: tuple[str, ...], nodes: Sequence[str]) -> Family:
    """C\\K, and with each of some nodes put in or out of K."""
    base = _less(circuit, removed)
    return Family([base, *(_less(circuit, set(removed) ^ {node}) for node in nodes)], base)


def _incomplete(bench: Bench, circuit: Circuit, removed: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """[examples] each: F(C\\K) and F(M\\K)."""
    whole = Circuit.full(circuit.graph)
    return bench.values(_less(circuit, removed)), bench.values(_less(whole, removed))


def _with_and_without(bench: Bench, circuit: Circuit, removed: tuple[str, ...], node: str) -> tuple[np.ndarray, np.ndarray]:
    """[examples] each: F of C\\K without a node and with it."""
    rest = tuple(other for other in removed if other != node)
    return bench.values(_less(circuit, (*rest, node))), bench.values(_less(circuit, rest))


def _greedy(bench: Bench, circuit: Circuit, nodes: Sequence[str]) -> tuple[str, ...]:
    """Up to ten nodes, each the one that raises |F(C\\K) - F(M\\K)| most, until none does."""
    whole = Circuit.full(circuit.graph)

    def of(removed: tuple[str, ...]) -> float:
        kept, full = _incomplete(bench, circuit, removed)
        return abs(float(kept.mean() - full.mean()))

    chosen: tuple[str, ...] = ()
    while len(chosen) < GREEDY_NODES:
        others = [node for node in nodes if node not in chosen]
        bench.measure_families([without_each(of_whom, chosen, others) for of_whom in (circuit, whole)])
        tried = {node: of((*chosen, node)) for node in others}
        node = max(tried, key=tried.__getitem__, default=None)
        if node is None or tried[node] <= of(chosen):
            break
        chosen = (*chosen, node)
    return chosen


def _expected(bench: Bench, chooser: Bench, plan: _Sets) -> float:
    """FLOP of all that is measured but the curve, from its first two sets and greedy's first round."""
    circuit, whole = plan.circuit, Circuit.full(plan.circuit.graph)
    total = bench.cost(list(plan.families())) + (chooser.cost(list(plan.families())) if chooser is not bench else 0.0)
    if plan.effort == "quick" or not plan.nodes:
        return total + bench.cost([without_each(circuit, plan.over[0], plan.nodes)])
    second = chooser.cost([without_each(circuit, plan.over[1], plan.nodes)])
    minimal = 0.0 if chooser is bench else bench.cost([without_each(circuit, plan.over[1], plan.nodes)])
    rounds = chooser.cost([without_each(each, (), plan.nodes) for each in (circuit, whole)])
    return total + second * len(plan.over) + minimal + _ROUNDS * rounds


def _completeness(bench: Bench, plan: _Sets, apart: bool) -> Completeness:
    pairs = [_incomplete(bench, plan.circuit, removed) for _, removed in plan.sets]
    signed = [bench.difference(kept, whole) for kept, whole in pairs]
    found = [each.magnitude() for each in signed]
    knockouts = tuple(
        Knockout(kind, removed, Estimate(each) if kind == "greedy" and not apart else each)
        for (kind, removed), each in zip(plan.sets, found, strict=True)
    )
    largest = found[plan.worst] if apart or len(found) == 1 else Estimate(max(map(float, found)))
    random = [each for (kind, _), each in zip(plan.sets, signed, strict=True) if kind == "random"]
    return Completeness(knockouts, largest, intervals.mean_of_magnitudes(random or signed))


def _minimality(bench: Bench, plan: _Sets, apart: bool) -> Minimality:
    scores: dict[str, Estimate] = {}
    for node, removed in zip(plan.nodes, plan.most, strict=True):
        found = bench.difference(*_with_and_without(bench, plan.circuit, removed, node)).magnitude()
        scores[node] = found if apart or len(plan.over) == 1 else Estimate(found)
    full, empty = bench.values(plan.circuit.graph.allowed), bench.values(np.zeros_like(plan.circuit.mask))
    bar = NEGLIGIBLE * abs(float(full.mean() - empty.mean()))
    below = (node for node, seen in zip(plan.nodes, plan.largest, strict=True) if max(scores[node], seen) < bar)
    return Minimality(scores, tuple(below), bar, plan.unmeasured)


def _sizes(scores: Scores, fractions: Sequence[float]) -> tuple[int, ...]:
    return tuple(round(fraction * len(scores.graph)) for fraction in fractions)


def mib_circuits(scores: Scores, fractions: Sequence[float] = MIB_FRACTIONS) -> list[Circuit]:
    """The circuits of MIB's curve: the fractions rounded down to edges, the highest signed scores, pruned."""
    return [scores.top(int(fraction * len(scores.graph)), absolute=False).pruned() for fraction in fractions]


def _curve_masks(scores: Scores, fractions: Sequence[float]) -> list[np.ndarray]:
    ours = [scores.top(n) for n in _sizes(scores, fractions)]
    return [circuit.mask for circuit in (*ours, *mib_circuits(scores, fractions))]


def _curve(bench: Bench, scores: Scores, fractions: Sequence[float]) -> Curve:
    requested, masks = _sizes(scores, fractions), _curve_masks(scores, fractions)
    full, empty = scores.graph.allowed, np.zeros_like(scores.graph.allowed)
    bench.measure([full, empty, *masks])
    whole = bench.values(full) - bench.values(empty)
    _, reason = bench.normalized(bench.values(full), bench.values(full), bench.values(empty))
    if reason is not None:
        raise CircuitDiscoveryError(f"no faithfulness curve: {reason}")
    kept = np.stack([bench.values(mask) - bench.values(empty) for mask in masks])  # [points, examples], ours and MIB's
    ours, mib = kept[: len(fractions)], kept[len(fractions) :]
    edges = tuple(len(scores.top(n).pruned()) for n in requested)
    area, distance, points = areas(np.array(edges) / len(scores.graph), ours, whole, bench.draws)
    cpr, cmd, _ = areas(np.array(fractions), mib, whole, bench.draws)
    return Curve(tuple(fractions), requested, edges, tuple(points), cpr, cmd, area, distance, bench.ablation, bench.mean_over)


def areas(x: np.ndarray, parts: np.ndarray, whole: np.ndarray, draws: np.ndarray) -> tuple[Estimate, Estimate, list[Estimate]]:
    """The areas under f and |1 - f| by linear trapezoids, and the points f, each a ratio of two means over the examples.

    Args:
        x: [points], rising.
        parts: [points, examples], F(C) - F(empty).
        whole: [examples], F(M) - F(empty).
        draws: of the bootstrap.
    """
    steps = np.diff(x)
    weight = (np.append(steps, 0) + np.insert(steps, 0, 0)) / 2  # of each point in the sum of the trapezoids
    missing = intervals.ratios(whole - parts, whole, draws)
    points = intervals.ratios(parts, whole, draws)
    return intervals.ratio(weight @ parts, whole, draws), intervals.weighted_magnitudes(missing, weight), points
