"""The figures that are quoted most, each against its definition written out here, on cases on which a slip
that is easily made (a 90% interval, KL the wrong way round, a K that still holds the node) gives another one.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from test_intervals import bootstrap_t
from tiny import Tiny, random_prompts

import circuitdiscovery as cd
from circuitdiscovery.benchmark.problems.compiler import Program
from circuitdiscovery.engine.metrics import kl_from
from circuitdiscovery.measure import intervals
from circuitdiscovery.measure.criteria import greedy
from circuitdiscovery.measure.estimates import weights
from circuitdiscovery.search.hybrid import hybrid

EDGES = (
    "input->a0.h1<v>",
    "input->m0",
    "a0.h1->m1",
    "a0.h1->a1.h2<v>",
    "m0->a2.h0<v>",
    "m0->a2.h0<q>",
    "a1.h2->a2.h0<k>",
    "a1.h2->logits",
    "a2.h0->logits",
    "m1->m2",
    "m2->logits",
    "input->logits",
)


# ------------------------------------------------------------------ intervals


def cox(values: np.ndarray) -> tuple[float, float]:
    """Limits of the mean of a log-normal quantity (Zhou and Gao 1997, Cox's method), with Student's t."""
    logs, n = np.log(values), len(values)
    variance = logs.var(ddof=1)
    error = np.sqrt(variance / n + variance**2 / (2 * (n - 1)))
    low, high = stats.t.interval(0.95, n - 1, loc=logs.mean() + variance / 2, scale=error)
    return float(np.exp(low)), float(np.exp(high))


def skewed(values: np.ndarray, draws: np.ndarray) -> tuple[float, float]:
    """The further of bootstrap-t's limits and of Cox's, on each side."""
    ours, theirs = bootstrap_t(values, np.ones(len(values)), draws), cox(values)
    return min(ours[0], theirs[0]), max(ours[1], theirs[1])


def test_a_skewed_mean_has_cox_s_limits_at_95_percent() -> None:
    values, draws = np.exp(np.linspace(-1, 1, 10)), weights(10, 0)
    ours, theirs = bootstrap_t(values, np.ones(10), draws), cox(values)
    found = intervals.mean(values, draws, skewed=True)
    assert (found.low, found.high) == pytest.approx(skewed(values, draws))
    assert theirs[1] > ours[1]  # so that Cox's is seen


# ------------------------------------------------------------------ evaluation


@pytest.fixture(scope="module")
def setting(gpt2: Tiny) -> tuple[Any, Any, Any]:
    """(model, task of 8 examples whose answers the corruption changes, a circuit)."""
    task, graph = random_prompts(101, n_examples=8, seed=3).task, gpt2.model.graph
    ends = cd.Circuit.full(graph), cd.Circuit.empty(graph)
    whole, none = (cd.run_circuit(gpt2.model, task, end) for end in ends)
    (batch,) = task.batches()
    told = cd.Task.from_tokens(
        clean=batch.clean,
        corrupted=batch.corrupted,
        correct=(whole - none).argmax(-1),
        incorrect=(whole - none).argmin(-1),
    )
    return gpt2.model, told, cd.Circuit.from_edges(graph, EDGES)


def logit_differences(setting: tuple[Any, Any, Any], circuit: Any) -> np.ndarray:
    model, task, _ = setting
    logits = cd.run_circuit(model, task, circuit).double().numpy()
    rows = np.arange(len(task))
    correct, incorrect = (
        [getattr(each, side)[0] for each in task.examples] for side in ("correct", "incorrect")
    )
    return logits[rows, correct] - logits[rows, incorrect]


def test_every_figure_of_an_evaluation_and_its_interval(setting: tuple[Any, Any, Any]) -> None:
    model, task, circuit = setting
    graph, draws, ones = circuit.graph, weights(len(task), 0), np.ones(len(task))
    circuits = cd.Circuit.full(graph), circuit, cd.Circuit.empty(graph)
    full, kept, empty = (logit_differences(setting, each) for each in circuits)
    p, q, none = (torch.softmax(cd.run_circuit(model, task, each).double(), -1).numpy() for each in circuits)
    found = cd.evaluate(model, task, circuit, effort="quick")

    def is_said(estimate: Any, value: float, limits: tuple[float, float]) -> None:
        assert (float(estimate), estimate.low, estimate.high) == pytest.approx((value, *limits), rel=2e-4)

    for estimate, values in ((found.full, full), (found.circuit, kept), (found.empty, empty)):
        is_said(estimate, values.mean(), bootstrap_t(values, ones, draws))
    assert found.normalized is not None
    is_said(
        found.normalized,
        (kept.mean() - empty.mean()) / (full.mean() - empty.mean()),
        bootstrap_t(kept - empty, full - empty, draws),
    )
    low, high = sorted(map(abs, bootstrap_t(full - kept, ones, draws)))
    is_said(found.faithfulness, abs(full.mean() - kept.mean()), (low, high))  # the signed one holds no 0
    for estimate, other in ((found.kl, q), (found.empty_kl, none)):
        values = np.asarray(stats.entropy(p, other, axis=1))  # sum of p log(p / other)
        assert abs(values.mean() - np.mean(stats.entropy(other, p, axis=1))) > 0.05  # the other way round
        is_said(estimate, values.mean(), skewed(values, draws))
    hits = int((p.argmax(-1) == q.argmax(-1)).sum())
    is_said(found.agreement, hits / 8, tuple(stats.binomtest(hits, 8).proportion_ci(method="exact")))


def test_kl_is_from_the_model_to_the_circuit() -> None:
    """A fair coin that is taken for one of 9 in 10: log(5/9) / -2 + log(5) / 2; the other way round 0.368."""
    model, circuit = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.9, 0.1]]).log()
    assert kl_from(model, circuit.clone()).item() == pytest.approx(0.510826, abs=1e-5)


def test_minimality_of_every_node_is_the_most_over_the_sets_without_it(setting: tuple[Any, Any, Any]) -> None:
    model, task, circuit = setting
    found = cd.evaluate(model, task, circuit)
    known: dict[frozenset[str], float] = {}

    def f(removed: set[str]) -> float:
        key = frozenset(removed)
        if key not in known:
            known[key] = logit_differences(setting, circuit.without(removed)).mean()
        return known[key]

    sets = [set(each.nodes) for each in found.completeness.sets]
    for node, score in found.minimality.scores.items():
        assert score == pytest.approx(max(abs(f(k | {node}) - f(k - {node})) for k in sets), abs=1e-5), node


# ------------------------------------------------------------------ greedy


@pytest.mark.parametrize(("helpful", "wanted"), [(4, 4), (12, 10)])
def test_greedy_takes_all_that_raise_incompleteness_up_to_ten(helpful: int, wanted: int) -> None:
    """F is made up: |F(C\\K) - F(M\\K)| is the sum of 1 and a weight of each node in K, so the best K is known."""
    graph = cd.Graph(n_layers=3, n_heads=4, n_kv_heads=4)
    nodes = [node for node in graph.sources if node != "input"]
    size = np.random.default_rng(2).permutation([*range(1, helpful + 1), *[-0.01] * (len(nodes) - helpful)])
    weight = dict(zip(nodes, size, strict=True))
    outside = cd.Circuit.from_edges(graph, ["input->logits"])
    circuit = cd.Circuit.full(graph) - outside

    def values(mask: np.ndarray) -> np.ndarray:
        if not (mask & outside.mask).any():  # C\\K
            return np.zeros(1)
        removed = [node for node in nodes if not mask[graph.source_index[node]].any()]
        return np.array([1 + sum(weight[node] for node in removed)])

    evaluator: Any = SimpleNamespace(values=values, measure_families=lambda families: None)
    assert greedy(evaluator, circuit, nodes) == tuple(sorted(nodes, key=lambda node: -weight[node])[:wanted])


# ------------------------------------------------------------------ the hybrid search


def stand_ins() -> tuple[Any, Any]:
    """(model, task) of an answer that any one of eight heads gives as well as all of them."""
    vocabulary, on, yes, no = 8, 1, 6, 7
    program = Program(vocabulary=vocabulary, length=10, n_layers=2, n_heads=8)
    shown = torch.zeros(1, vocabulary)
    shown[0, on] = 1
    inputs = [
        program.attend(
            f"a0.h{head}",
            query=program.one,
            key=program.positions,
            match=lambda _, at, place=head + 1: at == place,
            value={program.tokens: shown},
        )
        for head in range(8)
    ]
    either = program.neurons(
        "m1",
        reads={each: torch.full((2, 1), 1.25) for each in inputs},
        bias=torch.tensor([0.0, -1.0]),
        writes=torch.tensor([[1.0, -1.0]]),
    )
    scale, constant = torch.zeros(vocabulary, 1), torch.full((vocabulary, 1), -6.0)
    scale[yes], scale[no], constant[yes], constant[no] = 6.0, -6.0, 0.0, 6.0
    program.answer = {either: scale, program.one: constant}
    prompts = {
        kind: [[0, *[token] * 8, last] for last in (2, 3)]
        for kind, token in (("clean", on), ("corrupted", 5))
    }
    return program.compile("any of eight"), cd.Task.from_tokens(
        **prompts, correct=[yes] * 2, incorrect=[no] * 2
    )


def test_edges_that_stand_in_for_each_other_do_not_all_go() -> None:
    """Without any one of them nothing is lost, and without all of them everything."""
    model, task = stand_ins()
    circuit = hybrid(model, task, edges=40, rounds=0).top(40)
    inputs = [edge for edge in model.graph.edges if edge.startswith("input->a0.h") and edge.endswith("<v>")]
    whole = cd.Circuit.full(model.graph)
    circuits = circuit, whole, whole - cd.Circuit.from_edges(model.graph, inputs)
    answers = [cd.run_circuit(model, task, each).argmax(-1).tolist() for each in circuits]
    assert answers == [[6, 6], [6, 6], [7, 7]]
