"""How good a circuit is: faithfulness, completeness and minimality (Wang et al. 2022, arXiv 2211.00593, section 4).

F is the mean metric, M the model, C the circuit, and "empty" all edges removed under the same ablation. C\\K removes every
edge into or out of the nodes in K. All values come from examples that the search has not seen, where the task holds some
out, and carry 95% bootstrap intervals over these examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from circuitdiscovery import distributed
from circuitdiscovery.ablation import Ablation, name_of
from circuitdiscovery.circuit import Circuit, Scores
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.graph import Graph
from circuitdiscovery.metrics import BoundMetric, Metric, bind, clean_logits, kl_from
from circuitdiscovery.model import Model
from circuitdiscovery.patching import Progress, carried_mask, worlds
from circuitdiscovery.task import Task

if TYPE_CHECKING:
    from circuitdiscovery.reporting.charts import Chart

RANDOM_SETS = 20  # random K, each node with probability 1/2 (Wang et al. 2022, section 4.2)
GREEDY_NODES = 10
GREEDY_EXAMPLES = 16  # on which greedy's candidates are ranked; what is reported is measured on all
NEGLIGIBLE = 0.01  # of |F(M) - F(empty)|: a node that never matters more is named by minimality
MIB_FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # Mueller et al. 2025, arXiv 2504.13151
_RESAMPLES = 1000


class Estimate(float):
    """A number with its 95% bootstrap interval `low` to `high` over the examples."""

    low: float
    high: float

    def __new__(cls, value: float, low: float, high: float) -> Estimate:
        self = super().__new__(cls, value)
        self.low, self.high = float(low), float(high)
        return self

    def __getnewargs__(self) -> tuple[float, float, float]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return float(self), self.low, self.high

    def __str__(self) -> str:
        return f"{float(self):.3g} [{self.low:.3g}, {self.high:.3g}]"

    __repr__ = __str__

    def to_dict(self) -> dict[str, float]:
        """Value and interval, as JSON."""
        return {"value": float(self), "low": self.low, "high": self.high}


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
    """How much each node of the circuit matters in it, at most over the sets K; `below` names the negligible ones."""

    scores: Mapping[str, Estimate]
    below: tuple[str, ...]
    bar: float


@dataclass(frozen=True)
class Curve:
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


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured."""

    model: str
    task: str
    part: str  # "held_out" or "examples"
    examples: int
    metric: str
    ablation: str
    direction: str
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
    agreement: Estimate  # same top token, of all examples
    completeness: Completeness
    minimality: Minimality
    curve: Curve | None = field(default=None)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON."""
        return _plain(self)

    def __str__(self) -> str:
        return "\n".join(f"{name:<13} {value}" for name, value in self._lines())

    def _lines(self) -> Iterator[tuple[str, str]]:
        where = "held-out examples" if self.part == "held_out" else "examples (none are held out)"
        yield "circuit", f"{self.edges:,} edges ({self.edges_pruned:,} on a path from input to logits) of {self.edges_total:,}"
        yield "measured", f"{self.metric} on {self.examples} {where}, {self.ablation} ablation, {self.direction}"
        yield "F", f"model {self.full}, circuit {self.circuit}, empty {self.empty}"
        yield "faithfulness", f"|F(M) - F(C)| {self.faithfulness}"
        yield "normalized", str(self.normalized) if self.reason is None else f"none: {self.reason}"
        yield "KL", f"{self.kl} nats; same top token {self.agreement}"
        yield "completeness", f"largest incompleteness {self.completeness.max}, mean {self.completeness.mean}"
        named = f": {', '.join(self.minimality.below)}" if self.minimality.below else ""
        yield (
            "minimality",
            f"{len(self.minimality.below)} of {len(self.minimality.scores)} nodes never matter more than {NEGLIGIBLE:.0%}{named}",
        )
        if self.curve is not None:
            yield "curve", f"CMD {self.curve.cmd}, CPR {self.curve.cpr}"


def evaluate(
    model: Model,
    task: Task,
    circuit: Circuit,
    *,
    ablation: str | Ablation = "resample",
    metric: str | Metric | Any | None = None,
    direction: str = "noising",
    scores: Scores | None = None,
    batch_size: int | None = None,
    seed: int = 0,
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
        batch_size: examples in one forward.
        seed: of the random sets and the bootstrap.
        progress: called with (circuits run, circuits expected at most).

    Raises:
        CircuitDiscoveryError: a circuit of another model; unknown names.

    >>> import circuitdiscovery as cd
    >>> model = cd.load_model("toy")
    >>> task = cd.load_task("ioi", model, examples=8)
    >>> float(cd.evaluate(model, task, cd.Circuit.empty(model.graph)).normalized)
    0.0
    """
    circuit.check_model(model)
    used = task.held_out or task
    setup = (circuit.graph, ablation, metric or task.metric, direction, batch_size, seed)
    bench = Bench.build(model, used, *setup, progress)
    nodes = _removable(circuit)
    bench.expected = 3 + 2 * RANDOM_SETS + (2 + RANDOM_SETS) * len(nodes)
    ranking = bench if len(used) <= GREEDY_EXAMPLES else Bench.build(model, _of_one_length(used, GREEDY_EXAMPLES), *setup)
    full, kept, empty = (bench.values(mask) for mask in (circuit.graph.allowed, circuit.mask, np.zeros_like(circuit.mask)))
    normalized, reason = bench.normalized(kept, full, empty)
    sets = _knockouts(ranking, circuit, nodes, seed)
    return Evaluation(
        model=model.name,
        task=task.name,
        part="examples" if task.held_out is None else "held_out",
        examples=bench.count,
        metric=bench.metric.name,
        ablation=name_of(ablation),
        direction=direction,
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
        agreement=bench.mean(bench.values(circuit.mask, "agreement")),
        completeness=_completeness(bench, circuit, sets),
        minimality=_minimality(bench, circuit, nodes, [nodes for kind, nodes in sets if not kind.startswith("role")]),
        curve=_curve(bench, scores, MIB_FRACTIONS) if scores is not None and reason is None else None,
    )


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


# ------------------------------------------------------------------ measuring masks


@dataclass
class Bench:
    """A task under an ablation, ready to measure masks; each distinct circuit runs once."""

    graph: Graph
    metric: BoundMetric
    direction: str
    count: int
    draws: np.ndarray  # [resamples, examples]: how often each example is drawn, as weights that sum to 1
    batches: list[Any]  # (batch, world) of this process's share
    reference: torch.Tensor  # [examples, vocabulary]: the full model's logits
    progress: Progress | None = None
    expected: int = 0
    _known: dict[bytes, dict[str, np.ndarray]] = field(default_factory=dict)

    @classmethod
    def build(
        cls,
        model: Model,
        task: Task,
        graph: Graph,
        ablation: Any,
        metric: Any,
        direction: str,
        batch_size: int | None,
        seed: int,
        progress: Progress | None = None,
    ) -> Bench:
        """The bench on a task's examples."""
        count, bound = len(task), bind(metric, model, task)
        found = list(worlds(model, task, graph, ablation=ablation, direction=direction, batch_size=batch_size))
        draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=_RESAMPLES) / count
        return cls(graph, bound, direction, count, draws, found, clean_logits(model, task), progress)

    def values(self, mask: np.ndarray, what: str = "metric") -> np.ndarray:
        """[examples]: the metric, `kl` or `agreement` of a circuit.

        Circuits that differ only in edges into nodes that lead nowhere are the same circuit.
        """
        carried = carried_mask(self.graph, mask, self.direction)
        key = np.packbits(carried & self.graph.leading(carried)).tobytes()
        if key not in self._known:
            self._known[key] = self._run(carried)
            if self.progress:
                self.progress(len(self._known), max(self.expected, len(self._known)))
        return self._known[key][what]

    @torch.no_grad()
    def _run(self, carried: np.ndarray) -> dict[str, np.ndarray]:
        metric, kl, agreement = out = np.zeros((3, self.count))
        for batch, world in self.batches:
            logits, reference, rows = world.logits(carried), self.reference[batch.rows], batch.rows.cpu().numpy()
            metric[rows] = self.metric(logits, batch).double().cpu().numpy()
            kl[rows] = kl_from(reference, logits).double().cpu().numpy()
            agreement[rows] = (reference.argmax(-1) == logits.argmax(-1)).double().cpu().numpy()
        return dict(zip(("metric", "kl", "agreement"), distributed.total(torch.from_numpy(out)).numpy(), strict=True))

    def resampled(self, values: np.ndarray) -> np.ndarray:
        """[1 + resamples]: the mean over the examples, then over each bootstrap draw of them."""
        return np.concatenate([[values.mean()], self.draws @ values])

    def estimate(self, statistic: Callable[..., Any], *values: np.ndarray) -> Estimate:
        """A function of means, elementwise over the bootstrap draws, with its interval."""
        return interval(statistic(*(self.resampled(value) for value in values)))

    def mean(self, values: np.ndarray) -> Estimate:
        """The mean over the examples with its interval."""
        return interval(self.resampled(values))

    def normalized(self, kept: np.ndarray, full: np.ndarray, empty: np.ndarray) -> tuple[Estimate | None, str | None]:
        """(normalized faithfulness, None), or (None, why there is none)."""
        span = self.estimate(lambda f, e: f - e, full, empty)
        if span.low <= 0 <= span.high:
            return None, f"F(M) - F(empty) = {span} is not distinguishable from 0"
        return self.estimate(_normalized, kept, full, empty), None


def interval(draws: np.ndarray) -> Estimate:
    """The first of [1 + resamples] values with the 95% interval of the others."""
    low, high = np.quantile(draws[1:], [0.025, 0.975])
    return Estimate(float(draws[0]), low, high)


def _normalized(kept: np.ndarray, full: np.ndarray, empty: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num((kept - empty) / (full - empty), posinf=0, neginf=0)


# ------------------------------------------------------------------ the criteria


def _of_one_length(task: Task, count: int) -> Task:
    """The first examples of the most frequent length, which run as one batch."""
    lengths = [len(example.clean) for example in task.examples]
    most = max(sorted(set(lengths)), key=lengths.count)
    return task.select([row for row, length in enumerate(lengths) if length == most][:count])


def _removable(circuit: Circuit) -> list[str]:
    return [node for node in circuit.nodes if node not in ("input", "logits")]


def _knockouts(bench: Bench, circuit: Circuit, nodes: Sequence[str], seed: int) -> list[tuple[str, tuple[str, ...]]]:
    """(kind, K): the empty set, the roles that the circuit names, random sets and the greedy one."""
    rng = np.random.default_rng(seed)
    sets: list[tuple[str, tuple[str, ...]]] = [("empty", ())]
    sets += [
        (f"role {role}", tuple(node for node in members if node not in ("input", "logits"))) for role, members in circuit.roles.items()
    ]
    if nodes:
        sets += [("random", tuple(np.array(nodes)[rng.random(len(nodes)) < 0.5].tolist())) for _ in range(RANDOM_SETS)]
        sets.append(("greedy", _greedy(bench, circuit, nodes)))
    return sets


def _incomplete(bench: Bench, circuit: Circuit, removed: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """[examples] each: F(C\\K) and F(M\\K)."""
    whole = Circuit.full(circuit.graph)
    return bench.values(circuit.without(removed).mask), bench.values(whole.without(removed).mask)


def _greedy(bench: Bench, circuit: Circuit, nodes: Sequence[str]) -> tuple[str, ...]:
    """Up to ten nodes, each the one that raises |F(C\\K) - F(M\\K)| most, until none does."""

    def of(removed: tuple[str, ...]) -> float:
        kept, whole = _incomplete(bench, circuit, removed)
        return abs(float(kept.mean() - whole.mean()))

    chosen: tuple[str, ...] = ()
    best = of(chosen)
    while len(chosen) < GREEDY_NODES:
        tried = {node: of((*chosen, node)) for node in nodes if node not in chosen}
        node = max(tried, key=tried.__getitem__, default=None)
        if node is None or tried[node] <= best:
            break
        chosen, best = (*chosen, node), tried[node]
    return chosen


def _completeness(bench: Bench, circuit: Circuit, sets: Sequence[tuple[str, tuple[str, ...]]]) -> Completeness:
    each = []
    for _, removed in sets:
        kept, whole = _incomplete(bench, circuit, removed)
        each.append(np.abs(bench.resampled(kept) - bench.resampled(whole)))
    found = np.stack(each)  # [sets, 1 + resamples]
    knockouts = tuple(Knockout(kind, removed, interval(draws)) for (kind, removed), draws in zip(sets, found, strict=True))
    return Completeness(knockouts, interval(found.max(0)), interval(found.mean(0)))


def _minimality(bench: Bench, circuit: Circuit, nodes: Sequence[str], sets: Sequence[tuple[str, ...]]) -> Minimality:
    scores = {}
    for node in nodes:
        differences = []
        for removed in sets:
            without = tuple(other for other in removed if other != node)
            with_node, without_node = (bench.values(circuit.without(k).mask) for k in (without, (*without, node)))
            differences.append(np.abs(bench.resampled(without_node) - bench.resampled(with_node)))
        scores[node] = interval(np.stack(differences).max(0))
    full, empty = bench.values(circuit.graph.allowed), bench.values(np.zeros_like(circuit.mask))
    bar = NEGLIGIBLE * abs(float(full.mean() - empty.mean()))
    return Minimality(scores, tuple(node for node in nodes if scores[node] < bar), bar)


def _curve(bench: Bench, scores: Scores, fractions: Sequence[float]) -> Curve:
    total = len(scores.graph)
    requested = tuple(round(fraction * total) for fraction in fractions)
    circuits = [scores.top(n) for n in requested]
    edges = tuple(len(circuit.pruned()) for circuit in circuits)
    full, empty = bench.values(scores.graph.allowed), bench.values(np.zeros_like(scores.graph.allowed))
    _, reason = bench.normalized(full, full, empty)
    if reason is not None:
        raise CircuitDiscoveryError(f"no faithfulness curve: {reason}")
    ends = bench.resampled(full), bench.resampled(empty)
    f = np.stack([_normalized(bench.resampled(bench.values(circuit.mask)), *ends) for circuit in circuits])  # [points, 1 + resamples]
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
