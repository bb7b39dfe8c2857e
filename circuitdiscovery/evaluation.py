"""How good a circuit is: faithfulness, completeness and minimality (Wang et al. 2022, arXiv 2211.00593, section 4).

F is the mean metric, M the model, C the circuit, and "empty" all edges removed under the same ablation. C\\K removes every
edge into or out of the nodes in K. All values come from examples that the search has not seen, where the task holds some
out, and carry 95% bootstrap intervals over these examples.

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

from circuitdiscovery.ablation import Ablation, Replacements, name_of
from circuitdiscovery.arguments import guarded
from circuitdiscovery.bench import Bench, Family, normalized
from circuitdiscovery.circuit import Circuit, Scores
from circuitdiscovery.errors import CircuitDiscoveryError, unknown
from circuitdiscovery.estimates import Estimate, interval
from circuitdiscovery.metrics import Metric
from circuitdiscovery.model import Model
from circuitdiscovery.names import ablation_words
from circuitdiscovery.patching import Progress
from circuitdiscovery.plan import model_flop
from circuitdiscovery.saved import digest, saved
from circuitdiscovery.task import Task
from circuitdiscovery.values import Value

if TYPE_CHECKING:
    from circuitdiscovery.reporting.charts import Chart

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
    "interval",
    "price",
]

ENDS = ("input", "logits")
EFFORTS = ("full", "quick")
RANDOM_SETS = 20  # random K, each node with probability 1/2 (Wang et al. 2022, section 4.2)
QUICK_SETS = 5
QUICK_NODES = 30
GREEDY_NODES = 10
GREEDY_EXAMPLES = 16  # on which greedy's candidates are ranked; what is reported is measured on all
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
    incompleteness: Estimate


@dataclass(frozen=True)
class Completeness:
    """Whether the circuit responds to the removal of nodes as the model does: smaller is better."""

    sets: tuple[Knockout, ...]
    max: Estimate
    mean: Estimate


@dataclass(frozen=True)
class Minimality:
    """How much each node of the circuit matters in it, at most over the sets K.

    Args:
        scores: of the nodes that were measured.
        below: those of them that matter less than the bar.
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

    `edges` counts what is left after pruning, which is what the areas are taken over (linear trapezoid from the first
    point to the last, as fractions of all edges): CPR of the normalized faithfulness f, CMD of |1 - f|.
    """

    fractions: tuple[float, ...]
    requested: tuple[int, ...]
    edges: tuple[int, ...]
    normalized: tuple[Estimate, ...]
    cpr: Estimate
    cmd: Estimate

    def plot(self, path: str | Path | None = None) -> Chart:
        """The curve over a logarithmic axis of edges, with its intervals; a notebook shows it, a .svg path keeps it."""
        from circuitdiscovery.reporting.charts import Chart, curve

        known = {"edges": self.edges, "normalized": [each.to_dict() for each in self.normalized]}
        return Chart.standing(curve(known)).saved(path)

    def _repr_html_(self) -> str:
        return self.plot().svg

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON."""
        return _plain(self)


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
    mean_over: int | None = None  # the fewest prompts that a replacement is a mean over; None: it is not a mean

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON."""
        found = _plain(self)
        return found if self.mean_over is not None else {name: value for name, value in found.items() if name != "mean_over"}

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
        yield "completeness", f"largest incompleteness {self.completeness.max}, mean {self.completeness.mean}"
        named = f": {', '.join(self.minimality.below)}" if self.minimality.below else ""
        rest = f"; {len(self.minimality.unmeasured)} not measured" if self.minimality.unmeasured else ""
        yield (
            "minimality",
            f"{len(self.minimality.below)} of {len(self.minimality.scores)} nodes never matter more than {NEGLIGIBLE:.0%}{named}{rest}",
        )
        if self.curve is not None:
            yield "curve", f"CMD {self.curve.cmd}, CPR {self.curve.cpr}"


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
        task: measured on its held-out examples where there are some, else on its examples.
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
    plan = _Sets.of(circuit, effort, seed)
    of = (
        ""
        if state is None
        else digest(*_depends_on(model, used, ablation, metric, direction), circuit.mask, plan, scores and scores.values)
    )
    with saved(state, of) as kept:
        setup = (circuit.graph, ablation, metric, direction, batch_size, seed)
        bench = Bench.build(model, used, *setup, progress, saved=kept)
        curve = [] if scores is None else [Family([scores.top(n).mask for n in _sizes(scores, MIB_FRACTIONS)])]
        if effort == "full" and plan.nodes:
            few = _of_one_length(used, GREEDY_EXAMPLES) if len(used) > GREEDY_EXAMPLES else None
            ranking = bench if few is None else Bench.build(model, few, *setup, work=bench.work, saved=kept, name="ranking")
            bench.work.ahead = _expected(bench, ranking, plan) if progress else 0.0
            bench.measure_families((*curve, *plan.families()))
            greedy = _greedy(ranking, circuit, plan.nodes)
            plan = replace(plan, sets=(*plan.sets, ("greedy", greedy)))
        bench.work.ahead = 0.0
        bench.measure_families((*curve, *plan.families()))
        bench.work.report()
        return _evaluation(model, task, bench, plan, scores)


def _evaluation(model: Model, task: Task, bench: Bench, plan: _Sets, scores: Scores | None) -> Evaluation:
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
        faithfulness=bench.estimate(lambda f, c: abs(f - c), full, kept),
        normalized=normalized,
        reason=reason,
        kl=bench.mean(bench.values(circuit.mask, "kl")),
        empty_kl=bench.mean(bench.values(nothing, "kl")),
        agreement=bench.mean(bench.values(circuit.mask, "agreement")),
        completeness=_completeness(bench, circuit, plan.sets),
        minimality=_minimality(bench, plan),
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
    once = _WORLD + whole + kept + len(MIB_FRACTIONS) * (_RUN + _MASKED * 0.8)
    if effort == "quick":
        return once + QUICK_SETS * (whole + half) + min(QUICK_NODES, removable) * follows
    rounds = _ROUNDS * removable * (follows + whole / 2) * min(1.0, GREEDY_EXAMPLES / count_examples)
    return once + (RANDOM_SETS + 1) * (whole + half + removable * follows * _THINNED) + rounds


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
    """Normalized faithfulness of the best edges by |score| against their number, with MIB's CPR and CMD (see `Curve`).

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


def _of_one_length(task: Task, count: int) -> Task:
    """The first examples of the most frequent length, which run as one batch."""
    lengths = [len(example.clean) for example in task.examples]
    most = max(sorted(set(lengths)), key=lengths.count)
    return task.select([row for row, length in enumerate(lengths) if length == most][:count])


def _removable(circuit: Circuit) -> list[str]:
    return [node for node in circuit.nodes if node not in ENDS]


@dataclass(frozen=True)
class _Sets:
    """Which sets K are removed from a circuit, and which of its nodes are measured."""

    circuit: Circuit
    effort: str
    nodes: tuple[str, ...]
    sets: tuple[tuple[str, tuple[str, ...]], ...]  # (kind, K)

    @classmethod
    def of(cls, circuit: Circuit, effort: str, seed: int) -> _Sets:
        """The empty set, the roles that the circuit names, and random sets; all nodes. `quick` takes fewer, and no roles."""
        nodes, rng = _removable(circuit), np.random.default_rng(seed)
        sets: list[tuple[str, tuple[str, ...]]] = [("empty", ())]
        if effort == "full":
            sets += [(f"role {role}", tuple(each for each in members if each not in ENDS)) for role, members in circuit.roles.items()]
        for _ in range((RANDOM_SETS if effort == "full" else QUICK_SETS) if nodes else 0):
            sets.append(("random", tuple(np.array(nodes)[rng.random(len(nodes)) < 0.5].tolist())))
        return cls(circuit, effort, tuple(nodes) if effort == "full" else circuit.strongest(QUICK_NODES), tuple(sets))

    @property
    def unmeasured(self) -> tuple[str, ...]:
        """The nodes that minimality leaves out."""
        return tuple(node for node in _removable(self.circuit) if node not in set(self.nodes))

    @property
    def over(self) -> list[tuple[str, ...]]:
        """The sets that minimality takes the largest effect over."""
        return [nodes for kind, nodes in self.sets if kind == "empty" or (self.effort == "full" and not kind.startswith("role"))]

    def families(self) -> Iterator[Family]:
        """Everything that is to be measured, the curve aside."""
        circuit, whole = self.circuit, Circuit.full(self.circuit.graph)
        yield Family([np.zeros_like(circuit.mask)])
        yield Family([whole.without(removed).mask for _, removed in self.sets], whole.mask)
        for removed in self.over:
            yield without_each(circuit, removed, self.nodes)
        yield Family([circuit.without(removed).mask for _, removed in self.sets], circuit.mask)


def without_each(circuit: Circuit, removed: tuple[str, ...], nodes: Sequence[str]) -> Family:
    """C\\K, and with each of some nodes put in or out of K."""
    base = circuit.without(removed).mask
    return Family([base, *(circuit.without(set(removed) ^ {node}).mask for node in nodes)], base)


def _incomplete(bench: Bench, circuit: Circuit, removed: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """[examples] each: F(C\\K) and F(M\\K)."""
    whole = Circuit.full(circuit.graph)
    return bench.values(circuit.without(removed).mask), bench.values(whole.without(removed).mask)


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


def _expected(bench: Bench, ranking: Bench, plan: _Sets) -> float:
    """FLOP of a full measurement, from its first two sets and greedy's first round."""
    circuit, whole = plan.circuit, Circuit.full(plan.circuit.graph)
    first, second = (bench.cost([without_each(circuit, removed, plan.nodes)]) for removed in plan.over[:2])
    others = bench.cost([Family([whole.without(removed).mask for _, removed in plan.sets], whole.mask)])
    rounds = ranking.cost([without_each(each, (), plan.nodes) for each in (circuit, whole)])
    return first + second * len(plan.over) + others + _ROUNDS * rounds


def _completeness(bench: Bench, circuit: Circuit, sets: Iterable[tuple[str, tuple[str, ...]]]) -> Completeness:
    each = []
    for _, removed in sets:
        kept, whole = _incomplete(bench, circuit, removed)
        each.append(np.abs(bench.resampled(kept) - bench.resampled(whole)))
    found = np.stack(each)  # [sets, 1 + resamples]
    knockouts = tuple(Knockout(kind, removed, interval(draws)) for (kind, removed), draws in zip(sets, found, strict=True))
    return Completeness(knockouts, interval(found.max(0)), interval(found.mean(0)))


def _minimality(bench: Bench, plan: _Sets) -> Minimality:
    scores, circuit = {}, plan.circuit
    for node in plan.nodes:
        differences = []
        for removed in plan.over:
            without = tuple(other for other in removed if other != node)
            with_node, without_node = (bench.values(circuit.without(k).mask) for k in (without, (*without, node)))
            differences.append(np.abs(bench.resampled(without_node) - bench.resampled(with_node)))
        scores[node] = interval(np.stack(differences).max(0))
    full, empty = bench.values(circuit.graph.allowed), bench.values(np.zeros_like(circuit.mask))
    bar = NEGLIGIBLE * abs(float(full.mean() - empty.mean()))
    return Minimality(scores, tuple(node for node in plan.nodes if scores[node] < bar), bar, plan.unmeasured)


def _sizes(scores: Scores, fractions: Sequence[float]) -> tuple[int, ...]:
    return tuple(round(fraction * len(scores.graph)) for fraction in fractions)


def _curve(bench: Bench, scores: Scores, fractions: Sequence[float]) -> Curve:
    total, requested = len(scores.graph), _sizes(scores, fractions)
    circuits = [scores.top(n) for n in requested]
    edges = tuple(len(circuit.pruned()) for circuit in circuits)
    bench.measure([scores.graph.allowed, np.zeros_like(scores.graph.allowed), *(circuit.mask for circuit in circuits)])
    full, empty = bench.values(scores.graph.allowed), bench.values(np.zeros_like(scores.graph.allowed))
    _, reason = bench.normalized(full, full, empty)
    if reason is not None:
        raise CircuitDiscoveryError(f"no faithfulness curve: {reason}")
    ends = bench.resampled(full), bench.resampled(empty)
    f = np.stack([normalized(bench.resampled(bench.values(circuit.mask)), *ends) for circuit in circuits])  # [points, 1 + resamples]
    x = np.array(edges) / total
    cpr, cmd = (interval(np.trapezoid(y, x, axis=0)) for y in (f, np.abs(1 - f)))
    return Curve(tuple(fractions), requested, edges, tuple(interval(draws) for draws in f), cpr, cmd)


def _plain(value: Any) -> Any:
    """Dataclasses and estimates as JSON."""
    if isinstance(value, Estimate):
        return value.to_dict()
    if hasattr(value, "__dataclass_fields__"):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
