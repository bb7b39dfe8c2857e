"""Stability against hand-computed Jaccards, an enumerated bootstrap, and simulated runs whose mean overlap is known."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
from tiny import Tiny, random_prompts

import circuitdiscovery as cd
from circuitdiscovery.graph import Graph
from circuitdiscovery.reruns import Stability, mean_over_pairs, stability

GRAPH = Graph(n_layers=1, n_heads=2, n_kv_heads=2)
MODEL = cd.load_model("toy")  # that the searches here do not look at
TASK = random_prompts(101, n_examples=40, length=3).task
NAMES = [
    ["input->a0.h0<v>", "a0.h0->logits"],
    ["input->a0.h0<v>", "a0.h0->logits"],
    ["input->a0.h0<v>", "a0.h0->logits", "input->m0", "m0->logits"],
    ["input->m0", "m0->logits", "input->logits"],
]


def searching(lists: Sequence[Sequence[str]]) -> Callable[..., Any]:
    """A search that finds one circuit after the other."""
    following = iter(lists)
    return lambda model, task, **options: cd.Circuit.from_edges(GRAPH, next(following))


def found(lists: Sequence[Sequence[str]] = NAMES, **options: Any) -> Stability:
    return stability(searching(lists), MODEL, TASK, runs=len(lists), **options)


def test_jaccards_by_hand() -> None:
    # pairs 01 02 03 12 13 23; edges 2/2 2/4 0/5 2/4 0/5 2/5; the nodes are {h0} {h0} {h0, m0} {m0}
    result = found()
    assert result.edge_jaccards.tolist() == [1, 1 / 2, 0, 1 / 2, 0, 2 / 5]
    assert result.node_jaccards.tolist() == [1, 1 / 2, 0, 1 / 2, 0, 1 / 2]
    assert float(result.edge_jaccard) == pytest.approx(2.4 / 6)
    assert float(result.node_jaccard) == pytest.approx(2.5 / 6)


def test_the_share_of_runs_by_hand() -> None:
    result = found()
    shares = {"input->a0.h0<v>": 0.75, "a0.h0->logits": 0.75, "input->m0": 0.5, "m0->logits": 0.5, "input->logits": 0.25}
    assert {edge: float(result.share[GRAPH.index(edge)]) for edge in GRAPH.edges} == dict.fromkeys(GRAPH.edges, 0) | shares
    assert (len(result.in_all), set(result.in_any.edges)) == (0, set(shares))
    assert result.in_any.score("input->m0") == 0.5
    assert set(found([*NAMES[:3]]).in_all.edges) == set(NAMES[0])


@pytest.mark.parametrize("edges", [NAMES[2], []])
def test_identical_circuits_agree_completely(edges: list[str]) -> None:
    result = found([edges] * 4)
    assert (result.edge_jaccard, result.edge_jaccard.low, result.edge_jaccard.high) == (1, 1, 1)
    assert result.node_jaccard == 1
    assert len(result.in_all) == len(result.in_any) == len(edges)


def test_the_report_says_the_figures() -> None:
    result = found()
    assert json.loads(json.dumps(result.to_dict()))["share"]["input->logits"] == 0.25
    told = str(result)
    for figure in ("4 times", "2 to 4 edges of 13", "0.4 [", "of 6 pairs", "0 of the 5 edges"):
        assert figure in told, told


# ------------------------------------------------------------------ the interval


def test_the_interval_is_the_bootstrap_over_runs_enumerated() -> None:
    """All 5^5 draws of five runs; a run that is drawn twice is in twice as many pairs, and in none with itself."""
    runs, values = 5, np.random.default_rng(0).random(10)
    of = dict(zip(combinations(range(runs), 2), values, strict=True))
    means = []
    for draw in product(range(runs), repeat=runs):
        drawn = [of[min(a, b), max(a, b)] for a, b in combinations(draw, 2) if a != b]
        means += [np.mean(drawn)] if drawn else []
    estimate = mean_over_pairs(values, runs)
    assert float(estimate) == pytest.approx(values.mean())
    for limit, share in ((estimate.low, 0.025), (estimate.high, 0.975)):
        assert np.mean(means < np.float64(limit)) == pytest.approx(share, abs=0.02)


def test_the_interval_covers_the_true_overlap() -> None:
    """Runs of differing quality, as real ones are: an interval over pairs instead covers it half as often."""
    rng, sets, runs, n = np.random.default_rng(0), 60, 20, 300

    def draw(count: int) -> np.ndarray:
        """[count, sets] bool: each run finds half of the elements, by a quality of its own nearly all of that half."""
        quality = rng.beta(2, 1, size=(count, 1))
        return rng.random((count, sets)) < np.where(np.arange(sets) < sets / 2, quality, 0.05)

    def jaccards(circuits: np.ndarray) -> np.ndarray:
        a, b = (circuits[list(side)] for side in zip(*combinations(range(len(circuits)), 2), strict=True))
        return (a & b).sum(1) / (a | b).sum(1)

    truth = jaccards(draw(1000)).mean()
    estimates = [mean_over_pairs(jaccards(draw(runs)), runs, seed) for seed in range(n)]
    covered = np.mean([each.low <= truth <= each.high for each in estimates])
    assert 0.88 <= covered <= 0.99


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
    assert all(len(task) == 40 and set(task.examples) <= set(everything) and not given for task, given in seen)
    assert len({task.examples for task, _ in seen}) == 30
    distinct = np.mean([len(set(task.examples)) for task, _ in seen]) / 40
    assert distinct == pytest.approx(1 - (1 - 1 / 40) ** 40, abs=0.03)  # of 40, as many as a bootstrap draw has
    assert [task.examples for task, _ in recorded("examples", runs=3)] == [task.examples for task, _ in seen[:3]]
    assert recorded("examples", runs=3, seed=1)[0][0].examples != seen[0][0].examples


@pytest.mark.parametrize(("over", "option"), [("seeds", "seed"), ("order", "order")])
def test_seeds_and_orders_count_upwards(over: str, option: str) -> None:
    seen = recorded(over, runs=4, seed=7)
    assert [given for _, given in seen] == [{option: 7}, {option: 8}, {option: 9}, {option: 10}]
    assert all(task is TASK for task, _ in seen)


def test_a_repeated_example_counts_twice(gpt2: Tiny) -> None:
    """What the bootstrap over examples stands on: the attribution of rows 0, 0, 1 is the mean of theirs."""
    task = gpt2.prompts.task
    both, first, second = (cd.eap(gpt2.model, task.select(rows)).values for rows in ([0, 0, 1], [0], [1]))
    np.testing.assert_allclose(both, (2 * first + second) / 3, atol=1e-5)
    assert np.abs(both - (first + second) / 2).max() > 1e-3


def test_real_searches_differ_by_their_examples_and_not_without_a_change(gpt2: Tiny) -> None:
    result = stability(lambda model, task: cd.eap(model, task).top(40), gpt2.model, gpt2.prompts.task, runs=4)
    assert 0 < result.edge_jaccard < 1
    same = stability(lambda model, task, seed: cd.eap(model, task).top(40), gpt2.model, gpt2.prompts.task, over="seeds", runs=3)
    assert same.edge_jaccard == 1
    random = stability(lambda model, task, seed: cd.random(model, task, seed=seed).top(40), gpt2.model, TASK, over="seeds", runs=3)
    chance = 40 / len(gpt2.model.graph)  # of two sets of n of N each: n / N of one are in the other, on average
    assert random.edge_jaccard == pytest.approx(chance / (2 - chance), abs=0.06)


def test_progress_counts_runs() -> None:
    seen: list[tuple[int, int]] = []
    found(progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


# ------------------------------------------------------------------ errors


def test_what_is_wrong_is_named() -> None:
    with pytest.raises(cd.CircuitDiscoveryError, match="Valid values: examples, seeds, order"):
        found(over="sedes")
    with pytest.raises(cd.CircuitDiscoveryError, match="at least 3, not 2"):
        found(NAMES[:2])
    with pytest.raises(cd.CircuitDiscoveryError, match=r"must return a Circuit, .*not list"):
        stability(lambda model, task: [], MODEL, TASK, runs=3)  # type: ignore[arg-type,return-value]
    other = iter([GRAPH, GRAPH, Graph(2, 2, 2)])
    with pytest.raises(cd.CircuitDiscoveryError, match="different graphs"):
        stability(lambda model, task: cd.Circuit.empty(next(other)), MODEL, TASK, runs=3)
