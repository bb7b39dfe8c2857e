"""Stability against hand-computed Jaccards, an enumerated bootstrap, and
simulated runs whose mean overlap is known.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from scipy import stats
from tiny import Tiny, random_prompts

import circuitdiscovery as cd
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.measure.stability import Stability, mean_over_pairs, stability

GRAPH = Graph(n_layers=1, n_heads=2, n_kv_heads=2)
MODEL = cd.load_model("toy")  # that the searches here do not look at
TASK = random_prompts(101, n_examples=40, length=3).task
NAMES = [
    ["input->a0.h0<v>", "a0.h0->logits"],
    ["input->a0.h0<v>", "a0.h0->logits"],
    ["input->a0.h0<v>", "a0.h0->logits", "input->m0", "m0->logits"],
    ["input->m0", "m0->logits", "input->logits"],
    ["input->m0", "m0->logits", "input->logits"],
]


def searching(lists: Sequence[Sequence[str]]) -> Callable[..., Any]:
    """A search that finds one circuit after the other."""
    following = iter(lists)
    return lambda model, task, **options: cd.Circuit.from_edges(GRAPH, next(following))


def found(lists: Sequence[Sequence[str]] = NAMES, **options: Any) -> Stability:
    return stability(searching(lists), MODEL, TASK, runs=len(lists), **options)


def test_jaccards_by_hand() -> None:
    # pairs 01 02 03 04 12 13 14 23 24 34; edges 2/2 2/4 0/5 0/5 2/4 0/5 0/5 2/5 2/5 3/3; the
    # nodes are {h0} {h0} {h0, m0} {m0} {m0}
    result = found()
    assert result.edge_jaccards.tolist() == [1, 1 / 2, 0, 0, 1 / 2, 0, 0, 2 / 5, 2 / 5, 1]
    assert result.node_jaccards.tolist() == [1, 1 / 2, 0, 0, 1 / 2, 0, 0, 1 / 2, 1 / 2, 1]
    assert float(result.edge_jaccard) == pytest.approx(3.8 / 10)
    assert float(result.node_jaccard) == pytest.approx(4 / 10)


def test_the_share_of_runs_by_hand() -> None:
    result = found()
    shares = {
        "input->a0.h0<v>": 0.6,
        "a0.h0->logits": 0.6,
        "input->m0": 0.6,
        "m0->logits": 0.6,
        "input->logits": 0.4,
    }
    assert {edge: float(result.share[GRAPH.index(edge)]) for edge in GRAPH.edges} == dict.fromkeys(
        GRAPH.edges, 0
    ) | shares
    assert (len(result.in_all), set(result.in_any.edges)) == (0, set(shares))
    assert result.in_any.score("input->m0") == 0.6
    assert set(found([*NAMES[:3], *NAMES[:2]]).in_all.edges) == set(NAMES[0])


@pytest.mark.parametrize("edges", [NAMES[2], []])
def test_identical_circuits_agree_completely(edges: list[str]) -> None:
    result = found([edges] * 5)
    # a circuit that is found with a probability of .48 is found by all five in 2.5%
    # of the cases, and by two of two in .48^2
    assert (result.edge_jaccard, result.edge_jaccard.high) == (1, 1)
    assert result.edge_jaccard.low == pytest.approx((0.025 ** (1 / 5)) ** 2)
    assert result.node_jaccard == 1
    assert len(result.in_all) == len(result.in_any) == len(edges)


def test_the_report_says_the_figures() -> None:
    result = found()
    assert json.loads(json.dumps(result.to_dict()))["share"]["input->logits"] == 0.4
    told = str(result)
    for figure in ("5 times", "2 to 4 edges of 13", "0.38 [", "of 10 pairs", "0 of the 5 edges"):
        assert figure in told, told


# ------------------------------------------------------------------ the interval


def test_the_interval_is_the_jackknife_over_runs_written_out() -> None:
    runs, values = 6, np.random.default_rng(0).random(15)
    of = dict(zip(combinations(range(runs), 2), values, strict=True))
    without = [np.mean([value for pair, value in of.items() if run not in pair]) for run in range(runs)]
    error = np.sqrt((runs - 1) / runs * sum((each - np.mean(without)) ** 2 for each in without))
    wide = stats.t.ppf(0.975, runs - 1) * error
    estimate = mean_over_pairs(values, runs)
    assert float(estimate) == pytest.approx(values.mean())
    assert (estimate.low, estimate.high) == pytest.approx(
        (max(0, values.mean() - wide), min(1, values.mean() + wide))
    )


@pytest.mark.parametrize("runs", [5, 20])
def test_the_interval_covers_the_true_overlap(runs: int) -> None:
    """Runs of differing quality, as real ones are: an interval over pairs instead covers it half as often."""
    rng, sets, n = np.random.default_rng(0), 60, 400

    def draw(count: int) -> np.ndarray:
        """[count, sets] bool: each run finds half of the elements, by a
        quality of its own nearly all of that half.
        """
        quality = rng.beta(2, 1, size=(count, 1))
        return rng.random((count, sets)) < np.where(np.arange(sets) < sets / 2, quality, 0.05)

    def jaccards(circuits: np.ndarray) -> np.ndarray:
        a, b = (circuits[list(side)] for side in zip(*combinations(range(len(circuits)), 2), strict=True))
        return (a & b).sum(1) / (a | b).sum(1)

    truth = jaccards(draw(1000)).mean()
    estimates = [mean_over_pairs(jaccards(draw(runs)), runs) for _ in range(n)]
    covered = np.mean([each.low <= truth <= each.high for each in estimates])
    assert covered >= 0.9


def drawn(rng: np.random.Generator, runs: int, fixed: int, others: int) -> np.ndarray:
    """[runs, 479]: circuits of toy's size, of some edges that all have and some at random."""
    found = np.zeros((runs, 479), dtype=bool)
    found[:, :fixed] = True
    for row in found:
        row[fixed + rng.choice(479 - fixed, others, replace=False)] = True
    return found


def either(rng: np.random.Generator, runs: int) -> np.ndarray:
    """[runs, 2]: one of two circuits that share nothing, each as often."""
    return np.eye(2, dtype=bool)[rng.integers(2, size=runs)]


@pytest.mark.parametrize(
    ("runs", "draw"),
    [
        (10, lambda rng, runs: drawn(rng, runs, 0, 2)),
        (10, lambda rng, runs: drawn(rng, runs, 0, 5)),
        (5, lambda rng, runs: drawn(rng, runs, 0, 5)),
        (5, lambda rng, runs: drawn(rng, runs, 1, 1)),
        (10, either),
    ],
    ids=["two of 479", "five of 479", "five of 479, 5 runs", "one in common", "two circuits"],
)
def test_it_covers_where_runs_agree_alike(
    runs: int, draw: Callable[[np.random.Generator, int], np.ndarray]
) -> None:
    """Often no pair shares an edge, or each run as much as any other: the jackknife sees no variance."""

    def jaccards(circuits: np.ndarray) -> np.ndarray:
        a, b = (circuits[list(side)] for side in zip(*combinations(range(len(circuits)), 2), strict=True))
        return (a & b).sum(1) / (a | b).sum(1)

    rng = np.random.default_rng(0)
    truth = float(np.mean([jaccards(draw(rng, 2)).mean() for _ in range(20_000)]))
    found = [mean_over_pairs(jaccards(draw(rng, runs)), runs) for _ in range(400)]
    assert all(0 <= each.low <= each <= each.high <= 1 for each in found)
    assert np.mean([each.low <= truth <= each.high for each in found]) >= 0.93


@pytest.mark.parametrize("runs", [5, 10])
def test_runs_that_share_nothing_have_an_upper_limit(runs: int) -> None:
    """If a run finds one circuit with probability p and else one of its own, two find it with p^2, and at most
    one of all does in 2.5 of 100 cases at the limit."""
    found = mean_over_pairs(np.zeros(runs * (runs - 1) // 2), runs)
    assert (float(found), found.low) == (0, 0)
    assert stats.binom.cdf(1, runs, found.high**0.5) == pytest.approx(0.025)


# ------------------------------------------------------------------ what changes from run to run


def recorded(over: str, **options: Any) -> list[tuple[Any, dict[str, int]]]:
    """(the task, the options) of every run."""
    seen: list[tuple[Any, dict[str, int]]] = []

    def search(model: Any, task: Any, **given: int) -> Any:
        seen.append((task, given))
        return cd.Circuit.empty(GRAPH)

    stability(search, MODEL, TASK, over=over, **options)
    return seen


def test_examples_are_drawn_with_replacement() -> None:
    seen = recorded("examples", runs=30)
    everything = list(TASK.examples)
    assert all(
        len(task) == 40 and set(task.examples) <= set(everything) and not given for task, given in seen
    )
    assert len({task.examples for task, _ in seen}) == 30
    distinct = np.mean([len(set(task.examples)) for task, _ in seen]) / 40
    # of 40, as many as a bootstrap draw has
    assert distinct == pytest.approx(1 - (1 - 1 / 40) ** 40, abs=0.03)
    assert [task.examples for task, _ in recorded("examples", runs=5)] == [
        task.examples for task, _ in seen[:5]
    ]
    assert recorded("examples", runs=5, seed=1)[0][0].examples != seen[0][0].examples


@pytest.mark.parametrize(("over", "option"), [("seeds", "seed"), ("order", "order")])
def test_seeds_and_orders_count_upwards(over: str, option: str) -> None:
    seen = recorded(over, runs=5, seed=7)
    assert [given for _, given in seen] == [{option: seed} for seed in range(7, 12)]
    assert all(task is TASK for task, _ in seen)


def test_a_repeated_example_counts_twice(gpt2: Tiny) -> None:
    """What the bootstrap over examples stands on: the attribution of rows 0, 0, 1 is the mean of theirs."""
    task = gpt2.prompts.task
    both, first, second = (cd.eap(gpt2.model, task.select(rows)).values for rows in ([0, 0, 1], [0], [1]))
    np.testing.assert_allclose(both, (2 * first + second) / 3, atol=1e-5)
    assert np.abs(both - (first + second) / 2).max() > 1e-3


def test_real_searches_differ_by_their_examples_and_not_without_a_change(gpt2: Tiny) -> None:
    result = stability(lambda model, task: cd.eap(model, task).top(40), gpt2.model, gpt2.prompts.task, runs=5)
    assert 0 < result.edge_jaccard < 1
    same = stability(
        lambda model, task, seed: cd.eap(model, task).top(40),
        gpt2.model,
        gpt2.prompts.task,
        over="seeds",
        runs=5,
    )
    assert same.edge_jaccard == 1
    random = stability(
        lambda model, task, seed: cd.random(model, task, seed=seed).top(40),
        gpt2.model,
        TASK,
        over="seeds",
        runs=5,
    )
    # of two sets of n of N each: n / N of one are in the other, on average
    chance = 40 / len(gpt2.model.graph)
    assert random.edge_jaccard == pytest.approx(chance / (2 - chance), abs=0.06)


def test_progress_counts_runs() -> None:
    seen: list[tuple[int, int]] = []
    found(progress=lambda done, total: seen.append((done, total)))
    assert seen == [(run, 5) for run in range(1, 6)]


# ------------------------------------------------------------------ errors


def test_what_is_wrong_is_named() -> None:
    with pytest.raises(cd.CircuitDiscoveryError, match="Valid values: examples, seeds, order"):
        found(over="sedes")
    with pytest.raises(cd.CircuitDiscoveryError, match="at least 5, not 4"):
        found(NAMES[:4])
    one = TASK.select([0])  # all draws of which are the same
    with pytest.raises(cd.CircuitDiscoveryError, match="'examples' needs at least 2 examples, not 1: valid"):
        stability(lambda model, task: cd.Circuit.empty(GRAPH), MODEL, one, runs=5)
    with pytest.raises(cd.CircuitDiscoveryError, match=r"must return a Circuit, .*not list"):
        stability(lambda model, task: [], MODEL, TASK, runs=5)  # type: ignore[arg-type,return-value]
    other = iter([GRAPH, GRAPH, Graph(2, 2, 2), GRAPH, GRAPH])
    with pytest.raises(cd.CircuitDiscoveryError, match="different graphs"):
        stability(lambda model, task: cd.Circuit.empty(next(other)), MODEL, TASK, runs=5)


def test_of_a_graph_with_parts(toy: cd.Model) -> None:
    """Each run's search is given the graph, and must return a circuit of it."""
    task = cd.load_task("ioi", toy, examples=6)
    graph = cd.split(toy, {"m1": [3, 17]})
    found = cd.stability(
        lambda model, task, graph: cd.eap(model, task, graph=graph).top(40), toy, task, runs=5, graph=graph
    )
    assert {each.graph for each in found.circuits} == {graph}
    with pytest.raises(CircuitDiscoveryError, match="a circuit of the graph that it is given"):
        cd.stability(lambda model, task, graph: cd.eap(model, task).top(40), toy, task, runs=5, graph=graph)


def test_a_bootstrap_draw_is_of_the_tasks_own_kind() -> None:
    """So that a search draws as many prompts beside it as beside the task."""
    model = cd.load_model("toy")
    task = cd.load_task("ioi", model, examples=6)

    def search(model: cd.Model, task: cd.Task, **how: Any) -> cd.Circuit:
        return cd.matryoshka(model, task, edges=30, steps=4).top(30)

    drawn = search(model, task).info["options"]["drawn"]
    found = cd.stability(search, model, task, runs=5, over="examples")
    assert drawn > 0 and [each.info["options"]["drawn"] for each in found.circuits] == [drawn] * 5
