"""Tests of the hypothesis that a circuit is what does the task (Shi et al. 2024, arXiv
2410.13032; code: github.com/blei-lab/circuitry).

s is the metric of each example, M the model, C the circuit, M\\C all other
edges. Of each test the null hypothesis H0:

- *equivalence*: |P(s(C) better than s(M)) - 1/2| <= epsilon. Sign test at the edge of H0, where the p-value
  is largest; ties, which say nothing about the sign, are left out.
- *independence*: s(M\\C) is independent of s(M). HSIC with Gaussian kernels, each of the width of its own
  sample's median distance; permutation test.
- *minimality*, of every edge e: with a probability of `quantile` or more, removing e changes s(C) more than
  removing a redundant edge does. The redundant ones: inflate the circuit by a random path from `input` to
  `logits`, and remove a random edge that the path brought. Binomial test per edge, corrected for the number
  of edges.
- *sufficiency*: with a probability of `quantile` or less, C is more faithful than a random circuit of as many
  edges. Binomial test; a tie, which the authors' code counts for C, says nothing for it: a circuit that does
  nothing ties with every random one that does nothing.

A good circuit retains the first three and rejects the last. To retain is not to prove: where examples are
few, little is rejected. Where nothing can be (with alpha .05: equivalence of fewer than 7 examples that
differ, sufficiency with fewer than 29 references), the result says so. How far two circuits are apart is the
mean over the examples of the squared difference of s, as in the authors' code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from circuitdiscovery.arguments import guarded
from circuitdiscovery.circuit.circuit import Circuit
from circuitdiscovery.engine.ablation import Ablation
from circuitdiscovery.engine.metrics import Metric
from circuitdiscovery.engine.setup import Progress, Setup
from circuitdiscovery.errors import CircuitDiscoveryError, unknown
from circuitdiscovery.graph.nodes import edge_name
from circuitdiscovery.measure.evaluator import Evaluator
from circuitdiscovery.measure.hypothesis_runs import Runs
from circuitdiscovery.measure.significance import (
    corrected,
    distance,
    independence_test,
    often_enough,
    same,
    sign_test,
    too_seldom,
)
from circuitdiscovery.model.model import Model
from circuitdiscovery.registry import ablation_words
from circuitdiscovery.task.task import Task
from circuitdiscovery.values import Reported, left_out, part_in_words, plain

CORRECTIONS = ("holm", "bonferroni", "none")
TESTS = ("equivalence", "independence", "minimality", "sufficiency")


@dataclass(frozen=True)
class HypothesisTest:
    """One test.

    Args:
        null: the null hypothesis, in words.
        statistic: |share of wins - 1/2|; HSIC; the least share of redundant edges that an edge surpasses; the
            share of random circuits that the circuit is more faithful than.
        p: how probable such a statistic, or one further from H0, is under H0 (minimality:
            the least of the edges' corrected ones).
        told: the figures in a sentence.
        wanted: whether it is H0 that a good circuit retains.
        least: the smallest p that any outcome could have had, with so many examples and references.
        p_holm: p corrected for there being four tests.
        rejected: whether p, uncorrected, is at most alpha.
        decidable: whether any outcome could have been rejected; where not, to be retained says nothing.
    """

    null: str
    statistic: float
    p: float
    told: str
    wanted: bool = True
    least: float = 0.0
    p_holm: float = math.nan
    rejected: bool = False
    decidable: bool = True

    @property
    def retained(self) -> bool:
        """Whether H0 is retained, which does not prove it."""
        return not self.rejected

    @property
    def passed(self) -> bool:
        """Whether the outcome is that of a good circuit."""
        return self.rejected is not self.wanted

    @property
    def outcome(self) -> str:
        """`retained` or `rejected`; a word more where no outcome could have been rejected."""
        if not self.decidable:
            return f"retained whatever is found (p is {self.least:.2g} at least)"
        return "rejected" if self.rejected else "retained"


@dataclass(frozen=True)
class EdgeTest:
    """Minimality of one edge: what its removal changes, the share of redundant
    edges that change less, p raw and corrected.
    """

    edge: str
    effect: float
    share: float
    p: float
    p_corrected: float
    needed: bool  # H0 is retained


@dataclass(frozen=True, repr=False)
class HypothesisTests(Reported):
    """What `hypothesis_tests` found."""

    model: str
    task: str
    part: str  # "held_out" or "examples"
    examples: int
    metric: str
    ablation: str
    size: int  # edges of the circuit
    edges_total: int
    alpha: float
    equivalence: HypothesisTest
    independence: HypothesisTest
    minimality: HypothesisTest
    sufficiency: HypothesisTest
    edges: tuple[EdgeTest, ...]  # those that minimality tested
    # the fewest prompts that a replacement is a mean over; None: it is not a mean
    mean_over: int | None = left_out()

    @property
    def unneeded(self) -> tuple[str, ...]:
        """The edges whose H0 of minimality is rejected."""
        return tuple(each.edge for each in self.edges if not each.needed)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON."""
        tests = {
            name: plain(getattr(self, name))
            | {each: getattr(getattr(self, name), each) for each in ("passed", "retained")}
            for name in TESTS
        }
        return plain(self) | tests

    def _lines(self) -> Iterator[tuple[str, str]]:
        yield "circuit", f"{self.size:,} edges of {self.edges_total:,}"
        how = f"{ablation_words(self.ablation, self.mean_over)}; alpha {self.alpha:g}"
        yield "measured", f"{self.metric} on {self.examples} {part_in_words(self.part)}, {how}"
        yield "H0", "a good circuit retains the first three and rejects the last"
        for name in TESTS:
            test: HypothesisTest = getattr(self, name)
            yield name, f"{test.outcome}, p {test.p:.2g} (for four tests {test.p_holm:.2g}): {test.told}"
        if self.unneeded:
            yield "not needed", ", ".join(self.unneeded[:10]) + (", ..." if len(self.unneeded) > 10 else "")


@guarded
def hypothesis_tests(
    model: Model,
    task: Task,
    circuit: Circuit,
    *,
    ablation: str | Ablation = "resample",
    metric: str | Metric | Any | None = None,
    alpha: float = 0.05,
    epsilon: float = 0.1,
    quantile: float = 0.9,
    reference: int = 100,
    permutations: int = 1000,
    correction: str = "holm",
    edges: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> HypothesisTests:
    """Test whether a circuit is equivalent, independent, minimal and sufficient; epsilon,
    quantile and counts are the authors' code's.

    It runs 3 + 3 * `reference` circuits and one per tested edge, noising;
    exactly the circuit's edges, nothing pruned.

    Args:
        model: the model it is a circuit of.
        task: measured on its held-out examples where there are some, else on its examples.
        circuit: neither empty nor everything.
        ablation: what a removed edge carries.
        metric: by default the task's own; not kl_divergence, which the model itself has no values of.
        alpha: the largest p that rejects, for each test on its own.
        epsilon: how far from 1/2 the probability may be that the circuit beats the model.
        quantile: the share of the references that an edge, or the circuit, is to surpass.
        reference: random circuits, and as many redundant edges; with fewer than log(alpha) / log(quantile),
            29 by default, sufficiency cannot be rejected.
        permutations: of the test of independence.
        correction: of minimality's p-values for the number of edges:
            `holm`, `bonferroni` (the authors') or `none`.
        edges: test at most so many edges, drawn by the seed; None: all.
        batch_size: examples in one forward.
        seed: of everything random.
        progress: called with (done, total), in hundredths of a plain forward of the examples.

    Returns:
        A p-value and a decision for each of the tests.

    Raises:
        CircuitDiscoveryError: a circuit of another model, of no edge or
            of every edge; an option out of its range.

    >>> import circuitdiscovery as cd
    >>> model = cd.load_model("toy")
    >>> task = cd.load_task("ioi", model, examples=4)
    >>> tests = hypothesis_tests(model, task, cd.eap_ig(model, task).top(100), reference=30, edges=3)
    >>> tests.sufficiency.passed, len(tests.edges)
    (True, 3)
    """
    _check(alpha=alpha, epsilon=epsilon, quantile=quantile, correction=correction)
    _check_counts(reference=reference, permutations=permutations, edges=edges)
    circuit.check_model(model)
    if not 0 < len(circuit) < len(circuit.graph):
        raise CircuitDiscoveryError(
            f"hypothesis tests need a circuit of 1 to {len(circuit.graph) - 1} edges, not {len(circuit)}"
        )
    used = task.held_out or task
    setup = Setup.of(model, used, circuit.graph, metric=metric, ablation=ablation, batch_size=batch_size)
    evaluator = Evaluator.build(setup, seed=seed, progress=progress)
    if evaluator.metric.divergence:
        raise CircuitDiscoveryError(
            "hypothesis tests need a metric of the model itself, such as logit_diff, not kl_divergence"
        )
    runs = Runs(evaluator, circuit, seed, edges, reference)
    each = _edges(runs, reference, quantile, alpha, correction)
    first = _equivalence(runs, epsilon), _independence(runs, permutations)
    found = (
        *first,
        _minimality(each, reference, quantile, correction),
        _sufficiency(runs, reference, quantile),
    )
    p_holm = corrected(np.array([one.p for one in found])).tolist()
    decided = (
        replace(one, p_holm=p, rejected=one.p <= alpha, decidable=one.least <= alpha)
        for one, p in zip(found, p_holm, strict=True)
    )
    return HypothesisTests(
        model=model.name,
        task=task.title,
        part="examples" if task.held_out is None else "held_out",
        examples=evaluator.count,
        metric=evaluator.metric.name,
        ablation=setup.ablation_name,
        size=len(circuit),
        edges_total=len(circuit.graph),
        alpha=alpha,
        **dict(zip(TESTS, decided, strict=True)),
        edges=each,
        mean_over=setup.mean_over,
    )


# ------------------------------------------------------------------ the tests


def _equivalence(runs: Runs, epsilon: float) -> HypothesisTest:
    ties = same(runs.kept, runs.full, runs.least)
    wins, rounds = (
        int((runs.evaluator.metric.damage(runs.full, runs.kept)[~ties] < 0).sum()),
        int((~ties).sum()),
    )
    null = f"the circuit beats the model with a probability of 1/2 +- {epsilon:g}"
    told = f"the circuit beats the model on {wins} of {rounds} examples" + (
        f" ({int(ties.sum())} ties)" if ties.any() else ""
    )
    statistic = abs(wins / rounds - 0.5) if rounds else 0.0
    told = f"{told}; 50% +- {epsilon:.0%} is equivalent"
    return HypothesisTest(
        null, statistic, sign_test(wins, rounds, epsilon), told, least=sign_test(rounds, rounds, epsilon)
    )


def _independence(runs: Runs, permutations: int) -> HypothesisTest:
    hsic, p = independence_test(runs.rest, runs.full, permutations, (runs.seed, 0))
    null = "what all other edges do is independent of what the model does"
    told = f"HSIC {hsic:.2g} of {runs.evaluator.metric.name} without the circuit and of the model"
    orders = math.factorial(
        min(20, runs.evaluator.count)
    )  # of so few examples, many permutations are the same
    return HypothesisTest(null, hsic, p, told, least=max(1 / (1 + permutations), 1 / orders))


def _edges(
    runs: Runs, reference: int, quantile: float, alpha: float, correction: str
) -> tuple[EdgeTest, ...]:
    effects = np.array([runs.effect(runs.circuit.mask, edge) for edge in runs.tested])
    redundant = np.array([runs.redundant_effect(number) for number in range(reference)])
    surpassed = (effects[:, None] > redundant).sum(1)  # [edges]
    p = too_seldom(surpassed, reference, quantile)
    p_corrected, graph = corrected(p, correction), runs.circuit.graph
    names = [edge_name(graph.sources[row], graph.receivers[column]) for row, column in runs.tested]
    figures = (effects, surpassed / reference, p, p_corrected, p_corrected > alpha)
    return tuple(EdgeTest(*one) for one in zip(names, *(column.tolist() for column in figures), strict=True))


def _minimality(
    edges: tuple[EdgeTest, ...], reference: int, quantile: float, correction: str
) -> HypothesisTest:
    least, unneeded = min(each.share for each in edges), sum(not each.needed for each in edges)
    told = (
        f"{unneeded} of {len(edges)} tested edges are not needed; the least matters more than "
        f"{least:.0%} of redundant ones"
    )
    null = f"every edge matters more than a redundant one with a probability of at least {quantile:g}"
    smallest = float(
        corrected(
            np.append(too_seldom(np.zeros(1), reference, quantile), np.ones(len(edges) - 1)), correction
        )[0]
    )
    return HypothesisTest(null, least, min(each.p_corrected for each in edges), told, least=smallest)


def _sufficiency(runs: Runs, reference: int, quantile: float) -> HypothesisTest:
    own = distance(runs.kept, runs.full, runs.least)
    others = np.array([distance(runs.random(number), runs.full, runs.least) for number in range(reference)])
    ties = same(np.sqrt(others), np.full(reference, own**0.5), runs.least)
    n = int(((own < others) & ~ties).sum())
    null = f"the circuit is more faithful than a random one with a probability of at most {quantile:g}"
    alike = f" ({int(ties.sum())} ties)" if ties.any() else ""
    told = f"more faithful than {n} of {reference} random circuits of {len(runs.circuit):,} edges{alike}"
    least = often_enough(reference, reference, quantile)
    return HypothesisTest(
        null, n / reference, often_enough(n, reference, quantile), told, wanted=False, least=least
    )


def _check(*, correction: str, **numbers: float) -> None:
    for name, value in numbers.items():
        most, from_0 = (0.5, "from 0 to less than") if name == "epsilon" else (1, "between 0 and")
        if not (0 < value < most or (name == "epsilon" and value == 0)):
            raise CircuitDiscoveryError(f"{name} must be {from_0} {most}, not {value}")
    if correction not in CORRECTIONS:
        raise unknown("correction", correction, CORRECTIONS)


def _check_counts(**counts: int | None) -> None:
    for name, value in counts.items():
        if (value is None and name != "edges") or (
            value is not None and (type(value) is not int or value < 1)
        ):
            raise CircuitDiscoveryError(f"{name} must be a whole number of at least 1, not {value!r}")
