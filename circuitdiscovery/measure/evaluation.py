"""How good a circuit is: faithfulness, completeness and minimality (Wang
et al. 2022, arXiv 2211.00593, section 4).

F is the mean metric, M the model, C the circuit, and "empty" all edges removed under the same ablation. C\\K
removes every edge into or out of the nodes in K. All values come from examples that the search has not seen,
where the task holds some out, and carry 95% intervals over these examples (intervals.py). Which K matters
most, greedily grown or for a node's minimality, is chosen on some of the search's examples: a largest value
of noisy ones is too large where it is chosen on the examples that it is measured on. Where none are held out
it is, and stands without an interval; so does the largest of a quick measurement, which does not pay for
choosing.

How much is measured is the effort. *full*: K empty, the roles, 20 random sets and a greedy one, and
minimality over them. *quick*: K empty and 5 random sets; minimality at K empty, of the 30 nodes that write
most. Both say F, KL, agreement and the curve.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from circuitdiscovery.arguments import guarded
from circuitdiscovery.circuit.circuit import Circuit
from circuitdiscovery.circuit.scores import Scores
from circuitdiscovery.engine.ablation import Ablation, name_of
from circuitdiscovery.engine.metrics import Metric
from circuitdiscovery.engine.replacements import Replacements
from circuitdiscovery.engine.setup import Progress, Setup
from circuitdiscovery.errors import CircuitDiscoveryError, unknown
from circuitdiscovery.measure.criteria import (
    GREEDY_EXAMPLES,
    NEGLIGIBLE,
    QUICK_NODES,
    QUICK_SETS,
    RANDOM_SETS,
    ROUNDS,
    Completeness,
    Minimality,
    Sets,
    completeness_of,
    expected,
    greedy,
    minimality_of,
    removable_nodes,
)
from circuitdiscovery.measure.curve import MIB_FRACTIONS, Curve, curve_masks, curve_of
from circuitdiscovery.measure.estimates import Estimate
from circuitdiscovery.measure.evaluator import Evaluator
from circuitdiscovery.measure.plan import model_flop
from circuitdiscovery.measure.saved import digest, saved
from circuitdiscovery.measure.work import Family
from circuitdiscovery.model.model import Model
from circuitdiscovery.registry import ablation_words
from circuitdiscovery.task.task import Task
from circuitdiscovery.values import Reported, left_out, part_in_words, repeated_in_words

EFFORTS = ("full", "quick")
_AFFORDABLE = 1e13  # FLOP of a full measurement that is done unasked: some minutes on two cores
# in plain forwards of the examples, about:
_WORLD = 2.2  # the replacements, and the full model's logits
_RUN = 0.05  # what any run costs, and
_MASKED = 1.1  # a run of every source more
_THINNED = 0.5  # of what a node costs at K empty, what it costs at a random K


@dataclass(frozen=True, repr=False)
class Evaluation(Reported):
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
    # the fewest prompts that a replacement is a mean over; None: it is not a mean
    mean_over: int | None = left_out()
    # how many different prompts the examples have; None: all are different
    prompts: int | None = left_out()

    def _lines(self) -> Iterator[tuple[str, str]]:
        yield (
            "circuit",
            (
                f"{self.edges:,} edges ({self.edges_pruned:,} on a path from input to logits) of "
                f"{self.edges_total:,}"
            ),
        )
        how = f"{ablation_words(self.ablation, self.mean_over)}, {self.direction} ({self.effort})"
        yield "measured", f"{self.metric} on {self.examples} {part_in_words(self.part)}, {how}"
        yield "F", f"model {self.full}, circuit {self.circuit}, empty {self.empty}"
        yield "faithfulness", f"|F(M) - F(C)| {self.faithfulness}"
        yield "normalized", str(self.normalized) if self.reason is None else f"none: {self.reason}"
        yield "KL", f"{self.kl} nats (empty {self.empty_kl}); same top token {self.agreement}"
        worst = (
            "at the K that is worst on the search's examples"
            if self.completeness.max.has_interval
            else "at most"
        )
        yield "completeness", f"mean incompleteness {self.completeness.mean}, {worst} {self.completeness.max}"
        yield "minimality", self._minimality()
        if self.curve is not None:
            yield "curve", self.curve.areas_in_words()
        if self.prompts is not None:
            yield "warning", repeated_in_words(self.examples, self.prompts)

    def _minimality(self) -> str:
        known = self.minimality
        named = f": {', '.join(known.below)}" if known.below else ""
        rest = f"; {len(known.unmeasured)} not measured" if known.unmeasured else ""
        how = f"matter less than {NEGLIGIBLE:.0%}" if known.bar is not None else "have no effect at all"
        unsure = f" ({known.unsure} of them may matter more: their intervals reach above it)"
        more = unsure if known.unsure else ""
        return f"{len(known.below)} of {len(known.scores)} nodes {how}{more}{named}{rest}"


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
        task: measured on its held-out examples where there are some, else on its examples; which
            K matters most is chosen on its examples.
        circuit: what to measure; its roles, where it has some, are sets K of completeness.
        ablation: what a removed edge carries.
        metric: by default the task's own.
        direction: `noising`, or `denoising`, which takes no `ablation`.
        scores: of the circuit's graph; adds the faithfulness curve of their best edges.
        effort: `full`, or `quick`: K empty and 5 random ones, minimality of the 30
            strongest nodes at K empty (see `price`).
        batch_size: examples in one forward; only so many examples' replacements are held at once.
        seed: of the random sets and the bootstrap.
        state: a file that what is measured is saved to as it goes; with it a call that was stopped goes on,
            to the same result. One of another measurement is an error; the caller deletes it in the end. Of
            an ablation or a metric of your own it knows the name only.
        progress: called with (done, total), in hundredths of a plain forward of the examples.

    Returns:
        Every figure with its 95% interval over the examples.

    Raises:
        CircuitDiscoveryError: a circuit of another model; scores of another graph; unknown names; a state
            file of another measurement.

    >>> import circuitdiscovery as cd
    >>> model = cd.load_model("toy")
    >>> task = cd.load_task("ioi", model, examples=8)
    >>> float(cd.evaluate(model, task, cd.Circuit.empty(model.graph)).normalized)
    0.0
    """
    if effort not in EFFORTS:
        raise unknown("effort", effort, EFFORTS)
    circuit.check_model(model)
    if scores is not None and scores.graph != circuit.graph:
        raise CircuitDiscoveryError(
            "the scores are of another graph than the circuit: curve(model, task, scores) measures theirs"
        )
    used, metric = task.held_out or task, metric or task.metric
    plan, few = Sets.of(circuit, effort, seed), _choosing(task, ablation) if effort == "full" else used
    of = (
        ""
        if state is None
        else digest(
            *_depends_on(circuit, model, used, ablation, metric, direction),
            few.examples,
            circuit.mask,
            plan,
            scores and scores.values,
        )
    )
    with saved(state, of) as kept:
        how: dict[str, Any] = {"ablation": ablation, "metric": metric, "direction": direction}
        how |= {"batch_size": batch_size}
        evaluator = Evaluator.build(
            Setup.of(model, used, circuit.graph, **how), seed=seed, progress=progress, saved=kept
        )
        chooser = evaluator
        if few is not used:
            setup = Setup.of(model, few, circuit.graph, **how)
            chooser = Evaluator.build(setup, seed=seed, work=evaluator.work, saved=kept, name="ranking")
        if progress:
            evaluator.work.ahead = expected(evaluator, chooser, plan)
        first = [] if scores is None else [Family(curve_masks(scores, MIB_FRACTIONS))]
        evaluator.measure_families((*first, *plan.families(), *plan.minimal()))
        if effort == "full" and plan.nodes:
            plan = replace(plan, sets=(*plan.sets, ("greedy", greedy(chooser, circuit, plan.nodes))))
        chooser.measure_families((*plan.families(), *plan.candidates()))
        apart = few is not used and task.held_out is not None
        plan = plan.chosen(chooser, apart)
        evaluator.work.ahead = 0.0
        evaluator.measure_families((*plan.families(), *plan.minimal()))
        evaluator.work.report()
        return _evaluation(model, task, evaluator, plan, scores, apart)


def _choosing(task: Task, ablation: str | Ablation) -> Task:
    """The examples that K is chosen on: the first of the search's, which are of all templates; where the
    ablation has none of them, all that are measured."""
    used = task.held_out or task
    few = task.select(range(GREEDY_EXAMPLES)) if len(task) > GREEDY_EXAMPLES else task
    if isinstance(ablation, Replacements) and task.held_out is not None:
        try:
            for batch in few.batches():
                ablation.rows(batch)
        except CircuitDiscoveryError:  # computed of the held-out examples alone
            return used
    return few


def _evaluation(
    model: Model, task: Task, evaluator: Evaluator, plan: Sets, scores: Scores | None, apart: bool
) -> Evaluation:
    """What the values say; `apart`: K was chosen on other examples."""
    circuit, allowed, nothing = plan.circuit, plan.circuit.graph.allowed, np.zeros_like(plan.circuit.mask)
    full, kept, empty = (evaluator.values(mask) for mask in (allowed, circuit.mask, nothing))
    normalized, reason = evaluator.normalized(kept, full, empty)
    prompts = (task.held_out or task).different
    return Evaluation(
        model=model.name,
        task=task.title,
        part="examples" if task.held_out is None else "held_out",
        examples=evaluator.count,
        metric=evaluator.metric.name,
        ablation=evaluator.setup.ablation_name,
        direction=evaluator.setup.direction,
        effort=plan.effort,
        edges=len(circuit),
        edges_pruned=len(circuit.pruned()),
        edges_total=len(circuit.graph),
        full=evaluator.mean(full),
        circuit=evaluator.mean(kept),
        empty=evaluator.mean(empty),
        faithfulness=evaluator.difference(full, kept).magnitude(),
        normalized=normalized,
        reason=reason,
        kl=evaluator.mean(evaluator.values(circuit.mask, "kl"), "kl"),
        empty_kl=evaluator.mean(evaluator.values(nothing, "kl"), "kl"),
        agreement=evaluator.mean(evaluator.values(circuit.mask, "agreement"), "agreement"),
        completeness=completeness_of(evaluator, plan, apart),
        minimality=minimality_of(evaluator, plan, apart, reason is None),
        curve=curve_of(evaluator, scores, MIB_FRACTIONS) if scores is not None and reason is None else None,
        mean_over=evaluator.setup.mean_over,
        prompts=None if prompts == evaluator.count else prompts,
    )


def _depends_on(
    circuit: Circuit, model: Model, task: Task, ablation: str | Ablation, metric: Any, direction: str
) -> tuple[Any, ...]:
    """What values are measured of and by, beside the circuit's edges."""
    given = [ablation.digest] if isinstance(ablation, Replacements) else []
    names = (
        name_of(ablation),
        metric if isinstance(metric, str) else getattr(metric, "name", getattr(metric, "__name__", "metric")),
    )
    return model.digest, str(model.dtype), circuit.graph, task.examples, names, direction, *given


@guarded
def price(circuit: Circuit, count_examples: int, effort: str = "full") -> float:
    """What measuring a circuit costs, in plain forwards of the examples, within a
    factor of 2 or so; a curve is counted in.

    >>> import circuitdiscovery as cd
    >>> graph = cd.Graph(n_layers=30, n_heads=9, n_kv_heads=3)
    >>> sparse = cd.Circuit.from_nodes(graph, ["a3.h0", "m3", "a20.h1"])
    >>> price(sparse, 64, "quick") < price(sparse, 64, "full")
    True
    """
    if effort not in EFFORTS:
        raise unknown("effort", effort, EFFORTS)
    size, removable = len(circuit.graph.sources), len(removable_nodes(circuit))
    share = int(circuit.pruned().mask.any(axis=1).sum()) / size  # of the sources that run
    whole, half, kept = (_RUN + _MASKED * part for part in (1.0, share / 2, share))
    follows = _RUN + _MASKED * share / 2  # what follows a node that is left out
    once = _WORLD + whole + kept + 2 * len(MIB_FRACTIONS) * (_RUN + _MASKED * 0.8)
    count = (QUICK_SETS if effort == "quick" else RANDOM_SETS) + 1
    sets = count * (whole + half)
    if effort == "quick":
        return once + sets + min(QUICK_NODES, removable) * follows
    rounds = ROUNDS * removable * (follows + whole / 2) + count * removable * follows * _THINNED
    few = min(1.0, GREEDY_EXAMPLES / count_examples)
    return once + sets + removable * follows * _THINNED + few * (_WORLD + sets + rounds)


@guarded
def default_effort(model: Model, task: Task, circuit: Circuit) -> str:
    """`full` where it costs little, else `quick`; it depends on counts
    alone, so that it is the same everywhere.

    >>> import circuitdiscovery as cd
    >>> model = cd.load_model("toy")
    >>> default_effort(model, cd.load_task("ioi", model), cd.Circuit.full(model.graph))
    'full'
    """
    used = task.held_out or task
    forward = model_flop(model) * sum(len(example.clean) for example in used.examples)
    return "full" if price(circuit, len(used), "full") * forward <= _AFFORDABLE else "quick"
