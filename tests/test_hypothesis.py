"""The hypothesis tests against scipy, slow obvious versions, and a model of which the
circuit is known because nothing else writes.
"""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from tiny import Tiny, random_model, random_prompts, tiny_config

import circuitdiscovery as cd
from circuitdiscovery.engine.setup import Setup
from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.graph.random_paths import RandomPaths
from circuitdiscovery.measure.evaluator import Evaluator
from circuitdiscovery.measure.hypothesis_tests import HypothesisTests, hypothesis_tests
from circuitdiscovery.measure.significance import (
    corrected,
    distance,
    independence_test,
    often_enough,
    sign_test,
    too_seldom,
)

ALPHA = 0.05

# ------------------------------------------------------------------ equivalence


@pytest.mark.parametrize("wins", [0, 3, 10, 11, 17, 20])
def test_without_tolerance_it_is_the_sign_test(wins: int) -> None:
    assert sign_test(wins, 20, 0.0) == pytest.approx(stats.binomtest(wins, 20).pvalue)


@pytest.mark.parametrize(
    ("wins", "rounds", "epsilon"), [(3, 12, 0.1), (9, 12, 0.1), (11, 12, 0.3), (5, 11, 0.05), (7, 7, 0.2)]
)
def test_the_p_value_is_the_largest_under_the_null(wins: int, rounds: int, epsilon: float) -> None:
    """By summing the binomial over every count as far from a half, for every probability that H0 allows."""

    def p(of: float) -> float:
        far = [k for k in range(rounds + 1) if abs(2 * k - rounds) >= abs(2 * wins - rounds)]
        return float(np.sum([stats.binom.pmf(k, rounds, of) for k in far]))

    largest = max(p(of) for of in np.linspace(0.5 - epsilon, 0.5 + epsilon, 101))
    assert sign_test(wins, rounds, epsilon) == pytest.approx(largest)


def test_a_null_at_its_edge_is_rejected_at_most_alpha_of_the_time_and_a_bad_circuit_always() -> None:
    rejected = np.array([sign_test(wins, 200, 0.1) <= ALPHA for wins in range(201)])
    for edge in (0.4, 0.6):
        assert 0.02 < stats.binom.pmf(np.arange(201), 200, edge)[rejected].sum() <= ALPHA
    assert stats.binom.pmf(np.arange(201), 200, 0.5)[rejected].sum() < 0.001
    assert stats.binom.pmf(np.arange(201), 200, 0.2)[rejected].sum() > 0.999
    assert sign_test(0, 0, 0.1) == 1  # nothing but ties


# ------------------------------------------------------------------ independence


def slow_hsic(x: np.ndarray, y: np.ndarray) -> float:
    """The three sums of Gretton et al. (2005, lemma 1), each over its indices;
    the kernels as wide as the median distance.
    """
    n = len(x)

    def kernel(z: np.ndarray) -> list[list[float]]:
        width = float(np.median([abs(a - b) for a, b in itertools.combinations(z, 2)]))
        return [[float(np.exp(-((a - b) ** 2) / (2 * width**2))) for b in z] for a in z]

    k, m = kernel(x), kernel(y)
    together = sum(k[i][j] * m[i][j] for i in range(n) for j in range(n)) / n**2
    apart = sum(map(sum, k)) * sum(map(sum, m)) / n**4
    crossed = sum(k[i][j] * m[i][q] for i in range(n) for j in range(n) for q in range(n)) / n**3
    return together + apart - 2 * crossed


def test_hsic_is_the_slow_one_and_its_p_counts_permutations() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(9)
    y = 0.5 * x**2 + rng.standard_normal(9)
    hsic, p = independence_test(x, y, 200, seed=3)
    assert hsic == pytest.approx(slow_hsic(x, y), abs=1e-12)
    orders = np.random.default_rng(3)
    reached = [slow_hsic(x, y[orders.permutation(9)]) >= hsic - 1e-12 for _ in range(200)]
    assert p == pytest.approx((1 + sum(reached)) / 201)


def test_independent_samples_are_rejected_alpha_of_the_time() -> None:
    rng = np.random.default_rng(0)
    p = [
        independence_test(rng.standard_normal(25), rng.standard_normal(25), 99, seed)[1]
        for seed in range(400)
    ]
    assert stats.binomtest(sum(each <= ALPHA for each in p), len(p), ALPHA).pvalue > 0.01
    assert stats.kstest(p, "uniform").pvalue > 0.001


def test_dependence_without_correlation_is_found() -> None:
    rng = np.random.default_rng(0)
    found = []
    for seed in range(20):
        x = rng.standard_normal(60)
        found.append(independence_test(x, x**2 + 0.3 * rng.standard_normal(60), 99, seed)[1] <= ALPHA)
    assert np.mean(found) > 0.95


def test_a_constant_is_independent_of_everything() -> None:
    assert independence_test(np.ones(12), np.arange(12.0), 99) == (0, 1)


# ------------------------------------------------------------------ minimality and sufficiency


@pytest.mark.parametrize("hits", [0, 50, 84, 85, 96, 100])
def test_binomial_tails_are_scipy_s(hits: int) -> None:
    assert too_seldom(np.array([hits]), 100, 0.9)[0] == pytest.approx(
        stats.binomtest(hits, 100, 0.9, alternative="less").pvalue
    )
    assert often_enough(hits, 100, 0.9) == pytest.approx(
        stats.binomtest(hits, 100, 0.9, alternative="greater").pvalue
    )
    assert often_enough(hits, 100, 0.9) == pytest.approx(
        sum(stats.binom.pmf(k, 100, 0.9) for k in range(hits, 101))
    )


def test_holm_by_hand_and_its_family_wise_error() -> None:
    assert corrected(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert corrected(np.array([0.01, 0.4]), "bonferroni") == pytest.approx([0.02, 0.8])
    assert corrected(np.array([0.01, 0.4]), "none") == pytest.approx([0.01, 0.4])
    p = np.random.default_rng(0).random((2000, 10))  # true null hypotheses
    wrong = sum((corrected(row) <= ALPHA).any() for row in p)
    assert stats.binomtest(int(wrong), 2000, 1 - (1 - ALPHA / 10) ** 10).pvalue > 0.01


def test_random_paths_lead_from_input_to_logits(gpt2: Tiny, llama: Tiny) -> None:
    for graph in (gpt2.model.graph, llama.model.graph):
        rng, paths, view = np.random.default_rng(0), RandomPaths(graph), set()
        for _ in range(200):
            path = cd.Circuit(graph, paths.path(rng))
            assert path.pruned() == path
            assert path.mask[0].sum() == 1 and path.mask[:, -1].sum() == 1
            assert path.mask.sum(axis=0).max() == 1  # into one receiver one edge
            view |= set(path.edges)
        assert len(view) > 0.4 * len(graph)


@pytest.mark.parametrize("size", [1, 2, 3, 8, 40, 150])
def test_random_circuits_have_exactly_as_many_edges_all_on_paths(llama: Tiny, size: int) -> None:
    graph = llama.model.graph
    for n in (size, len(graph) - size):
        drawn = [
            cd.Circuit(graph, RandomPaths(graph).circuit(n, np.random.default_rng(seed))) for seed in range(5)
        ]
        for circuit in drawn:
            assert len(circuit) == len(circuit.pruned()) == n
        assert n == 1 or len(set(drawn)) > 1


def test_what_a_path_adds_is_new() -> None:
    graph = Graph(2, 2, 2)
    mask = graph.allowed & ~graph.mask(["a0.h1->m1"])
    assert graph.names(RandomPaths(graph).beside(mask, np.random.default_rng(0))) == ("a0.h1->m1",)


def test_a_distance_is_the_mean_square_of_what_is_no_rounding() -> None:
    assert distance(np.array([1.0, 2.0, 5.0]), np.array([1.0, 4.0, 4.0]), 0.0) == pytest.approx(
        (0 + 4 + 1) / 3
    )
    assert distance(np.array([10.0, 0.0]), np.array([10.00001, 1e-6]), 1e-5) == 0
    assert distance(np.array([10.0, 0.0]), np.array([10.01, 0.0]), 1e-5) > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_metric_s_unit_changes_nothing(dtype: str) -> None:
    """Each test is of ranks or of signs, so one in another unit decides the same, as does the metric by name."""
    model = cd.load_model("toy", dtype=dtype)
    task = cd.load_task("ioi", model, examples=12)
    circuit = cd.eap(model, task).top(60)

    def measured(unit: float | None) -> list[tuple[float, float]]:
        def difference(logits: torch.Tensor, part: Any) -> torch.Tensor:
            ends = [
                row[e.correct[0]] - row[e.incorrect[0]] for row, e in zip(logits, part.examples, strict=True)
            ]
            return (unit or 1.0) * torch.stack(ends).float()

        metric = "logit_diff" if unit is None else difference
        how: dict[str, Any] = {"metric": metric, "edges": 30, "reference": 20}
        found = hypothesis_tests(model, task, circuit, **how)
        tests = found.equivalence, found.independence, found.minimality, found.sufficiency
        return [(each.statistic, each.p) for each in tests]

    whole, small = measured(1.0), measured(0.0005)
    assert whole[3][0] > 0.5
    assert small == [pytest.approx(each) for each in whole]
    assert measured(None) == [pytest.approx(each, rel=1e-3) for each in whole]


def test_redundant_edges_are_removed_from_an_inflated_circuit(gpt2: Tiny) -> None:
    """An edge's share, from run_circuit: of circuit plus path, and of the same less one edge of the path."""
    model, task = gpt2.model, own_answers(gpt2.model, 10, seed=2)
    circuit, (batch,) = cd.eap(model, task).top(60), task.batches()

    def values(mask: np.ndarray) -> np.ndarray:
        logits = cd.run_circuit(model, task, cd.Circuit(model.graph, mask))
        return (logits.gather(1, batch.correct) - logits.gather(1, batch.incorrect))[:, 0].double().numpy()

    redundant = []
    for number in range(20):
        rng = np.random.default_rng((0, 2, number))
        added = RandomPaths(model.graph).beside(circuit.mask, rng)
        inflated = circuit.mask | added
        less = inflated.copy()
        less[tuple(rng.choice(np.argwhere(added)))] = False
        redundant.append(np.mean((values(inflated) - values(less)) ** 2))
    result = hypothesis_tests(model, task, circuit, reference=20, permutations=1, edges=15)
    assert len({each.share for each in result.edges}) > 3  # or nothing would be compared
    for each in result.edges:
        # one may hang on a rounding
        assert each.share == pytest.approx(np.mean(each.effect > np.array(redundant)), abs=0.051)
    assert np.mean([each.share for each in result.edges]) == pytest.approx(
        np.mean([np.mean(each.effect > np.array(redundant)) for each in result.edges]), abs=0.01
    )


# ------------------------------------------------------------------ a model whose circuit is known


TRUE = (
    "input->a1.h2<q>",
    "input->a1.h2<k>",
    "input->a1.h2<v>",
    "input->m2",
    "a1.h2->m2",
    "input->logits",
    "a1.h2->logits",
    "m2->logits",
)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    """(a model in which only a1.h2 and m2 write, a task whose answer is the
    model's own, the eight edges between them).
    """
    made = random_model(tiny_config("gpt2"), seed=5)
    with torch.no_grad():
        for layer, block in enumerate(made.transformer.h):
            kept = block.attn.c_proj.weight[16:24].clone() if layer == 1 else None
            block.attn.c_proj.weight.zero_()  # [heads x d_head, d_model]
            if kept is not None:
                block.attn.c_proj.weight[16:24] = 3 * kept
            if layer != 2:
                block.mlp.c_proj.weight.zero_()
                block.mlp.c_proj.bias.zero_()
    folder: Path = tmp_path_factory.mktemp("known")
    made.save_pretrained(folder)
    model = cd.load_model(folder)
    return model, own_answers(model, 60, seed=1), cd.Circuit.from_edges(model.graph, TRUE)


def own_answers(model: Any, n: int, seed: int) -> Any:
    """Random prompts; correct is what the model prefers on the clean one to the
    corrupted one, incorrect the other way round.
    """
    prompts = random_prompts(101, n, 6, seed)
    clean, corrupted = (
        cd.run_circuit(model, prompts.task, end(model.graph)) for end in (cd.Circuit.full, cd.Circuit.empty)
    )
    told = {"correct": (clean - corrupted).argmax(-1), "incorrect": (clean - corrupted).argmin(-1)}
    return cd.Task.from_tokens(clean=prompts.clean, corrupted=prompts.corrupted, **told)


@pytest.fixture(scope="module")
def true(known: tuple[Any, Any, Any]) -> HypothesisTests:
    return hypothesis_tests(*known)


def test_the_true_circuit_passes(true: HypothesisTests) -> None:
    assert true.equivalence.passed and true.equivalence.p == 1  # ties only: it is the model
    assert true.minimality.passed and true.minimality.p == 1 and not true.unneeded
    assert true.sufficiency.passed and true.sufficiency.p == pytest.approx(0.9**100)
    assert true.sufficiency.p_holm == pytest.approx(4 * 0.9**100)
    assert {each.edge for each in true.edges} == set(TRUE)
    assert all(each.effect > 0 and each.share == 1 for each in true.edges)


def test_statistics_are_of_the_circuits_that_the_docs_say(
    known: tuple[Any, Any, Any], true: HypothesisTests
) -> None:
    """From run_circuit, and the tests' own logit difference."""
    model, task, circuit = known
    (batch,) = task.batches()

    def values(mask: np.ndarray) -> np.ndarray:
        logits = cd.run_circuit(model, task, cd.Circuit(model.graph, mask))
        return (logits.gather(1, batch.correct) - logits.gather(1, batch.incorrect))[:, 0].double().numpy()

    full, rest = values(model.graph.allowed), values(model.graph.allowed & ~circuit.mask)
    assert true.independence.statistic == pytest.approx(slow_hsic(rest, full), rel=1e-4)
    effect = np.mean((values(circuit.mask) - values(circuit.mask & ~model.graph.mask(["a1.h2->m2"]))) ** 2)
    assert {each.edge: each.effect for each in true.edges}["a1.h2->m2"] == pytest.approx(effect, rel=1e-3)
    partial = cd.Circuit.from_edges(model.graph, TRUE[:-1])
    result = hypothesis_tests(model, task, partial, reference=1, permutations=1, edges=1)
    wins = int((values(partial.mask) > full).sum())
    assert result.equivalence.statistic == pytest.approx(abs(wins / 60 - 0.5))
    assert result.equivalence.p == pytest.approx(sign_test(wins, 60, 0.1))
    # or the side could not be told
    assert f"beats the model on {wins} of 60" in result.equivalence.told and wins != 30


@pytest.mark.parametrize("missing", ["input->logits", "m2->logits", "a1.h2->logits"])
def test_without_an_edge_it_is_not_equivalent(known: tuple[Any, Any, Any], missing: str) -> None:
    model, task, circuit = known
    partial = circuit - cd.Circuit.from_edges(model.graph, [missing])
    assert not hypothesis_tests(model, task, partial, reference=1, permutations=1, edges=1).equivalence.passed


def test_an_edge_too_many_is_named(known: tuple[Any, Any, Any]) -> None:
    model, task, circuit = known
    surplus = ("input->a0.h1<v>", "a0.h1->logits")
    result = hypothesis_tests(
        model, task, circuit | cd.Circuit.from_edges(model.graph, surplus), permutations=1
    )
    assert result.unneeded == surplus
    assert result.equivalence.passed and result.sufficiency.passed and not result.minimality.passed
    for one in result.edges:
        if one.edge in surplus:
            assert (one.effect, one.share) == (0, 0)
            assert one.p == pytest.approx(0.1**100)
    assert result.minimality.p == pytest.approx(10 * 0.1**100)  # Holm's largest factor, over ten edges
    assert "not needed    input->a0.h1<v>, a0.h1->logits" in str(result)


def test_the_page_prints_what_is_printed(true: HypothesisTests) -> None:
    """All but the figures."""
    page = (Path(__file__).parents[1] / "docs" / "benchmark.md").read_text("utf-8")
    logs = re.findall(r"```log\n(circuit .*?)\n```", page, re.DOTALL)
    names = [line.split()[0] for line in str(true).splitlines()]
    assert len(logs) == 2
    for lines in map(str.splitlines, logs):
        assert [line.split()[0] for line in lines] == names
        assert all(re.match(r"\w+ +(retained|rejected), p ", line) for line in lines[3:7])
    more = true.sufficiency.told.partition("100")[0]
    assert page.count(f": {more}") == 2


def test_a_random_circuit_fails(known: tuple[Any, Any, Any]) -> None:
    model, task, _ = known
    random = cd.Circuit(model.graph, RandomPaths(model.graph).circuit(8, np.random.default_rng(4)))
    result = hypothesis_tests(model, task, random)
    assert not result.equivalence.passed  # far worse than the model
    assert not result.independence.passed  # what is left is nearly the model
    assert not result.minimality.passed  # most of its edges do nothing
    assert not result.sufficiency.passed


def test_a_circuit_that_does_nothing_is_not_more_faithful_than_others(known: tuple[Any, Any, Any]) -> None:
    model, task, _ = known
    nothing = cd.Circuit.from_edges(model.graph, ["input->a0.h1<v>", "a0.h1->a1.h0<v>", "a1.h0->logits"])
    result = hypothesis_tests(model, task, nothing, reference=40, permutations=1, edges=1)
    assert result.sufficiency.statistic < 0.5 and not result.sufficiency.passed
    assert "ties)" in result.sufficiency.told


def test_the_model_without_its_circuit_is_independent_of_it(known: tuple[Any, Any, Any]) -> None:
    """All other edges carry the corrupted prompt only, which was drawn apart; so is the answer here."""
    model, _, circuit = known
    p = []
    for seed in range(60):
        task = random_prompts(101, 30, 6, seed=100 + seed).task
        result = hypothesis_tests(
            model, task, circuit, metric=first_token, reference=1, permutations=99, edges=1, seed=seed
        )
        p.append(result.independence.p)
    assert stats.binomtest(sum(each <= ALPHA for each in p), len(p), ALPHA).pvalue > 0.01


def first_token(logits: Any, task: Any) -> Any:
    """One token's logit against another's, the same two for every example: an answer
    drawn with the prompt would tie both sides.
    """
    return logits[:, 7] - logits[:, 8]


def test_a_random_circuit_is_sufficient_alpha_of_the_time(gpt2: Tiny) -> None:
    """H0 holds: among 301 circuits of one distribution each is tested against 100 of the others.

    Its rank is uniform. Rejected are 96 of 100 and more (scipy), so 5 of the 101 ranks.
    """
    model, task = gpt2.model, own_answers(gpt2.model, 16, seed=2)
    evaluator = Evaluator.build(Setup.of(model, task, model.graph, metric="logit_diff"))
    full, paths = evaluator.values(model.graph.allowed), RandomPaths(model.graph)
    drawn = [paths.circuit(60, np.random.default_rng((9, seed))) for seed in range(301)]
    far = np.array([((evaluator.values(mask) - full) ** 2).mean() for mask in drawn])
    rng, rejected = np.random.default_rng(0), 0
    for i, own in enumerate(far):
        others = rng.choice(np.delete(far, i), 100, replace=False)
        rejected += often_enough(int((own <= others).sum()), 100, 0.9) <= ALPHA
    assert 0.02 < rejected / len(far) < 0.09


def test_an_edge_at_the_quantile_is_rejected_at_most_alpha_of_the_time() -> None:
    """H0 of minimality at its edge: the effect is exactly the .9 quantile of the redundant edges' effects."""
    below = (np.random.default_rng(0).random((4000, 100)) < 0.9).sum(1)
    rate = (too_seldom(below, 100, 0.9) <= ALPHA).mean()
    assert 0.02 < rate <= 0.055


# ------------------------------------------------------------------ the report


def test_the_report_says_the_figures(true: HypothesisTests) -> None:
    data = json.loads(json.dumps(true.to_dict()))
    assert data["sufficiency"]["passed"] is True and data["sufficiency"]["rejected"] is True
    assert data["equivalence"]["passed"] is True and data["equivalence"]["rejected"] is False
    assert data["sufficiency"]["retained"] is False and data["equivalence"]["retained"] is True
    assert data["edges"][0]["edge"] == true.edges[0].edge and len(data["edges"]) == 8
    told = str(true)
    for figure in (
        "8 edges of",
        "logit_diff on 60 examples (none are held out)",
        "0 of 0 examples (60 ties)",
        "100 of 100 random",
    ):
        assert figure in told, told
    assert (
        "passed" not in told and "sufficiency   rejected, p" in told and "minimality    retained, p" in told
    )


def test_a_test_with_one_outcome_says_so(known: tuple[Any, Any, Any], true: HypothesisTests) -> None:
    model, task, circuit = known
    assert not true.equivalence.decidable  # it is the model: no example differs
    assert all(getattr(true, name).decidable for name in ("independence", "minimality", "sufficiency"))
    few = hypothesis_tests(model, task, circuit, reference=28, permutations=18, edges=2)
    assert (
        few.sufficiency.p == few.sufficiency.least == pytest.approx(0.9**28) and not few.sufficiency.decidable
    )
    assert few.independence.least == pytest.approx(1 / 19) and not few.independence.decidable
    assert "sufficiency   retained whatever is found (p is 0.052 at least)" in str(few)
    enough = hypothesis_tests(model, task, circuit, reference=29, permutations=19, edges=2)
    assert enough.sufficiency.decidable and enough.independence.decidable
    assert few.minimality.least == pytest.approx(2 * 0.1**28)  # Holm's largest factor
    # .1
    assert (
        hypothesis_tests(model, task, circuit, reference=1, permutations=19, edges=1).minimality.decidable
        is False
    )
    assert [sign_test(n, n, 0.1) <= ALPHA for n in (6, 7)] == [False, True]


def test_the_same_tests_twice_are_the_same_and_each_edge_s_is_its_own(
    known: tuple[Any, Any, Any], true: HypothesisTests
) -> None:
    options: dict[str, Any] = {"edges": 3}
    some, again = (hypothesis_tests(*known, **options) for _ in range(2))
    assert some == again
    assert (some.independence.p, some.sufficiency.p) == (true.independence.p, true.sufficiency.p)
    whole = {each.edge: (each.effect, each.share, each.p) for each in true.edges}
    assert [whole[each.edge] for each in some.edges] == [
        (each.effect, each.share, each.p) for each in some.edges
    ]
    assert len(some.edges) == 3


def test_held_out_examples_are_used_where_there_are_some(known: tuple[Any, Any, Any]) -> None:
    from dataclasses import replace

    model, task, circuit = known
    held = own_answers(model, 7, seed=8)
    result = hypothesis_tests(
        model, replace(task, held_out=held), circuit, reference=1, permutations=1, edges=1
    )
    assert (result.part, result.examples) == ("held_out", 7)


def test_progress_ends_at_what_was_expected(known: tuple[Any, Any, Any]) -> None:
    seen: list[tuple[int, int]] = []
    hypothesis_tests(
        *known, reference=5, permutations=1, edges=2, progress=lambda done, total: seen.append((done, total))
    )
    done, (total,) = [done for done, _ in seen], {total for _, total in seen}
    assert done == sorted(done) and done[0] == 0 and done[-1] == total


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("alpha", 0.0),
        ("alpha", 1.0),
        ("epsilon", 0.5),
        ("epsilon", -0.1),
        ("quantile", 1.0),
        ("quantile", float("nan")),
        ("reference", 0),
        ("permutations", None),
        ("edges", 0),
        ("correction", "holms"),
        ("metric", "kl_divergence"),
    ],
)
def test_options_out_of_range_are_named(known: tuple[Any, Any, Any], option: str, value: Any) -> None:
    with pytest.raises(cd.CircuitDiscoveryError, match=option):
        hypothesis_tests(*known, **{option: value})


def test_nothing_and_everything_are_no_hypothesis(known: tuple[Any, Any, Any]) -> None:
    model, task, circuit = known
    for end in (cd.Circuit.empty, cd.Circuit.full):
        with pytest.raises(cd.CircuitDiscoveryError, match="1 to"):
            hypothesis_tests(model, task, end(circuit.graph))
