"""Evaluation against the definitions, computed one circuit at a time
with run_circuit and plain arithmetic."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from tiny import Tiny, random_prompts
from torch.nn.functional import kl_div

import circuitdiscovery as cd
from circuitdiscovery.engine.setup import Setup
from circuitdiscovery.measure.curve import MIB_FRACTIONS
from circuitdiscovery.measure.evaluator import Evaluator
from circuitdiscovery.reporting.sentences import verdict
from circuitdiscovery.values import plain

EDGES = (
    "input->a0.h1<v>",
    "input->m0",
    "a0.h1->m1",
    "m0->a2.h0<v>",
    "m0->a2.h0<q>",
    "a2.h0->logits",
    "m1->m2",
    "m2->logits",
    "input->logits",
)


@pytest.fixture(scope="module")
def setting(gpt2: Tiny) -> tuple[Any, Any, Any]:
    """(model, task of 8 examples, a circuit of nine edges)."""
    return (
        gpt2.model,
        random_prompts(101, n_examples=8, seed=3).task,
        cd.Circuit.from_edges(gpt2.model.graph, EDGES),
    )


@pytest.fixture(scope="module")
def result(setting: tuple[Any, Any, Any]) -> Any:
    return cd.evaluate(*setting)


def each(setting: tuple[Any, Any, Any], circuit: Any, **options: Any) -> np.ndarray:
    """[examples]: the logit difference of a circuit, by the tests' own metric."""
    model, task, _ = setting
    (batch,) = task.batches()
    logits = cd.run_circuit(model, task, circuit, **options)
    return (logits.gather(1, batch.correct) - logits.gather(1, batch.incorrect))[:, 0].double().numpy()


def mean(setting: tuple[Any, Any, Any], circuit: Any, **options: Any) -> float:
    return float(each(setting, circuit, **options).mean())


def full(setting: tuple[Any, Any, Any]) -> Any:
    return cd.Circuit.full(setting[2].graph)


def empty(setting: tuple[Any, Any, Any]) -> Any:
    return cd.Circuit.empty(setting[2].graph)


def test_faithfulness_is_the_paper_s_difference(setting: tuple[Any, Any, Any], result: Any) -> None:
    m, c, e = (mean(setting, circuit) for circuit in (full(setting), setting[2], empty(setting)))
    assert result.faithfulness == pytest.approx(abs(m - c), rel=1e-5)
    assert (result.full, result.circuit, result.empty) == pytest.approx((m, c, e), rel=1e-5)
    if result.normalized is not None:
        assert result.normalized == pytest.approx((c - e) / (m - e), rel=1e-5)


def test_kl_and_agreement_compare_with_the_model(setting: tuple[Any, Any, Any], result: Any) -> None:
    model, task, circuit = setting
    ours, theirs = cd.run_circuit(model, task, circuit), cd.run_circuit(model, task, full(setting))
    assert result.kl == pytest.approx(
        float(kl_div(ours.log_softmax(-1), theirs.log_softmax(-1), log_target=True, reduction="batchmean")),
        rel=1e-4,
    )
    assert result.agreement == float((ours.argmax(-1) == theirs.argmax(-1)).double().mean())


def test_the_full_circuit_is_perfect_and_the_empty_one_is_nothing(setting: tuple[Any, Any, Any]) -> None:
    model, task, _ = setting
    # an answer that tells clean from corrupted, so that there is something to normalize by
    clean, corrupted = (cd.run_circuit(model, task, end(setting)) for end in (full, empty))
    answers = (clean - corrupted).argmax(-1), (clean - corrupted).argmin(-1)
    (batch,) = task.batches()
    told = cd.Task.from_tokens(
        clean=batch.clean, corrupted=batch.corrupted, correct=answers[0], incorrect=answers[1]
    )
    perfect, nothing = cd.evaluate(model, told, full(setting)), cd.evaluate(model, told, empty(setting))
    assert (perfect.normalized, perfect.faithfulness, perfect.agreement) == (1, 0, 1)
    assert perfect.kl == pytest.approx(0, abs=1e-6)
    assert perfect.completeness.max == 0
    assert nothing.normalized == 0
    assert nothing.circuit == nothing.empty


def test_no_normalized_faithfulness_where_model_and_empty_cannot_be_told_apart(
    setting: tuple[Any, Any, Any],
) -> None:
    model, task, circuit = setting
    (batch,) = task.batches()
    same = cd.Task.from_tokens(
        clean=batch.clean, corrupted=batch.clean, correct=batch.correct, incorrect=batch.incorrect
    )
    result = cd.evaluate(model, same, circuit)
    assert result.normalized is None
    assert result.reason is not None and "is rounding" in result.reason
    assert result.reason in str(result)
    # 1% of nothing is no bar
    assert result.minimality.bar is None and result.minimality.below == tuple(result.minimality.scores)
    assert "minimality    5 of 5 nodes have no effect at all: " in str(result)
    said = verdict(plain(result.to_dict()), 5, 12).sentences
    assert any("how little a node may matter is undetermined too" in each.lower() for each in said)


def test_model_and_empty_circuit_may_be_right_equally_often_on_other_prompts(
    setting: tuple[Any, Any, Any],
) -> None:
    model, task, circuit = setting
    clean, corrupted = (cd.run_circuit(model, task, end(setting)) for end in (full, empty))
    (batch,) = task.batches()
    answers = clean.argmax(-1), corrupted.argmax(-1)
    correct, incorrect = zip(*([answers, answers[::-1]][i % 2] for i in range(8)), strict=True)
    told = cd.Task.from_tokens(
        clean=batch.clean,
        corrupted=batch.corrupted,
        correct=[int(each[i]) for i, each in enumerate(correct)],
        incorrect=[int(each[i]) for i, each in enumerate(incorrect)],
    )
    result = cd.evaluate(model, told, circuit, metric="accuracy", effort="quick")
    assert (result.full, result.empty) == (0.5, 0.5)
    assert result.reason is not None and "not distinguishable from 0" in result.reason


def test_a_share_that_is_kept_on_every_prompt_may_still_be_lost_on_others() -> None:
    """The rule of three: of 16 prompts none lost leaves a share of up to 3 / 16 that may be."""
    model = cd.load_model("toy")
    task = cd.load_task("ioi", model, examples=16)
    ranking = cd.eap_ig(model, task, steps=2)

    def unsaid(logits: Any, part: Any) -> Any:
        right = [
            row[e.correct[0]] > row[e.incorrect[0]] for row, e in zip(logits, part.examples, strict=True)
        ]
        return torch.stack(right).to(logits)

    for metric in ("accuracy", unsaid):
        found = cd.evaluate(model, task, ranking.top(60), metric=metric, scores=ranking, effort="quick")
        assert found.curve is not None and found.normalized is not None
        whole, area = found.curve.normalized[-1], found.curve.area
        assert found.normalized == whole == 1 and area > 0.5
        for each in (found.normalized, whole, area):
            assert each.low < float(each) - 3 / 16 * 0.5 and each.high >= float(each)
        assert whole.low < 1 - 3 / 16


def test_faithfulness_by_kl_is_kl(setting: tuple[Any, Any, Any]) -> None:
    """KL of the model from itself is 0."""
    found = cd.evaluate(*setting, metric="kl_divergence", effort="quick")
    assert found.faithfulness.to_dict() == pytest.approx(found.kl.to_dict())


def test_what_may_matter_more_than_the_bar_is_said() -> None:
    """Of 16 answers none changed without a node: up to a fifth of all answers may, which is above 1%."""
    model = cd.load_model("toy")
    task = cd.load_task("ioi", model, examples=16)
    found = cd.evaluate(
        model, task, cd.eap_ig(model, task, steps=2).top(60), metric="accuracy", effort="quick"
    )
    below = found.minimality.below
    assert below and all(found.minimality.scores[node].high > 0.1 for node in below)
    assert f"matter less than 1% ({len(below)} of them may matter more" in str(found)
    said = verdict(plain(found.to_dict()), 5, 12).sentences
    assert any(f"; {len(below)} of these may matter more" in each for each in said)


def test_of_a_single_prompt_the_largest_is_said_to_be_the_most() -> None:
    """Another K than the worst on the search's prompts may be the worst there."""
    model = cd.load_model("toy")
    task = cd.load_task("ioi", model, examples=16)
    circuit, unseen = cd.eap_ig(model, task, steps=2).top(30), task.held_out
    assert unseen is not None
    for row in range(4):
        found = cd.evaluate(model, replace(task, held_out=unseen.select([row])), circuit)
        assert found.completeness.max == max(each.incompleteness for each in found.completeness.sets)
        assert f"at most {found.completeness.max}" in str(found)


def test_a_metric_of_your_own_says_whether_it_is_a_share(setting: tuple[Any, Any, Any]) -> None:
    """All 1 is the best of ranks, and the whole of shares."""
    model, task, circuit = setting

    def measured(share: bool | None, value: float = 1.0) -> Any:
        one = cd.Metric("one", lambda logits, task: logits[:, 0] * 0 + value, share=share)
        return cd.evaluate(model, task, circuit, metric=one, effort="quick")

    assert (measured(False).full.low, measured(False).full.high) == (1, 1)
    least = 0.025 ** (1 / 8)  # Clopper and Pearson's, of 8 of 8
    assert [measured(share).full.low for share in (True, None)] == pytest.approx([least, least])
    assert measured(True, 0).full.high == pytest.approx(1 - least)
    with pytest.raises(cd.CircuitDiscoveryError, match="'one' is said to be a share, but is not 0 or 1"):
        measured(True, 0.5)


def test_incompleteness_of_every_set_follows_its_definition(
    setting: tuple[Any, Any, Any], result: Any
) -> None:
    circuit = setting[2]
    kinds = [knockout.kind for knockout in result.completeness.sets]
    assert kinds == ["empty", *["random"] * 20, "greedy"]
    for knockout in result.completeness.sets:
        c, m = (mean(setting, whole.without(knockout.nodes)) for whole in (circuit, full(setting)))
        assert knockout.incompleteness == pytest.approx(abs(c - m), abs=1e-5)
    values = [float(knockout.incompleteness) for knockout in result.completeness.sets]
    assert result.completeness.max == pytest.approx(max(values))
    # chosen where it is measured
    assert not result.completeness.max.has_interval and ", at most " in str(result)
    random = [knockout.incompleteness for knockout in result.completeness.sets if knockout.kind == "random"]
    assert result.completeness.mean < np.mean(random)  # less what noise adds
    for end in ("low", "high"):
        assert getattr(result.completeness.mean, end) == pytest.approx(
            np.mean([getattr(each, end) for each in random])
        )
    assert [
        knockout.kind for knockout in result.completeness.sets if not knockout.incompleteness.has_interval
    ] == ["greedy"]


def test_what_matters_most_is_chosen_on_the_search_s_examples(
    setting: tuple[Any, Any, Any], result: Any
) -> None:
    from dataclasses import replace

    model, task, circuit = setting
    held = random_prompts(101, n_examples=12, seed=9).task
    found, inner = cd.evaluate(model, replace(task, held_out=held), circuit), (model, held, None)
    # greedy saw the same examples
    assert found.completeness.sets[-1].nodes == result.completeness.sets[-1].nodes

    def incompleteness(nodes: tuple[str, ...], where: Any) -> np.ndarray:
        return each(where, circuit.without(nodes)) - each(where, full(setting).without(nodes))

    def surely(nodes: tuple[str, ...]) -> float:
        values = incompleteness(nodes, setting)
        return abs(values.mean()) - values.std(ddof=1) / np.sqrt(len(values))

    worst = max((knockout.nodes for knockout in found.completeness.sets), key=surely)
    assert found.completeness.max == pytest.approx(abs(incompleteness(worst, inner).mean()), abs=1e-5)
    assert found.completeness.max.has_interval
    assert all(
        score.has_interval and score.low <= score <= score.high for score in found.minimality.scores.values()
    )
    effects = {
        node: [
            abs(mean(inner, circuit.without((*rest, node))) - mean(inner, circuit.without(rest)))
            for knockout in found.completeness.sets
            for rest in [tuple(n for n in knockout.nodes if n != node)]
        ]
        for node in ("a2.h0", "m1")
    }
    for node, values in effects.items():
        assert min(abs(np.array(values) - found.minimality.scores[node])) < 1e-5  # of one of the sets


def test_a_quick_measurement_s_largest_has_no_interval(setting: tuple[Any, Any, Any]) -> None:
    found = cd.evaluate(*setting, effort="quick")
    assert found.completeness.max == max(knockout.incompleteness for knockout in found.completeness.sets)
    assert found.completeness.max.to_dict() == {
        "value": float(found.completeness.max),
        "low": None,
        "high": None,
    }
    # at K empty, which nobody chose
    assert all(score.has_interval for score in found.minimality.scores.values())


def test_greedy_takes_the_node_that_raises_incompleteness_most(
    setting: tuple[Any, Any, Any], result: Any
) -> None:
    circuit = setting[2]

    def incompleteness(nodes: tuple[str, ...]) -> float:
        return abs(mean(setting, circuit.without(nodes)) - mean(setting, full(setting).without(nodes)))

    nodes = [node for node in circuit.nodes if node not in ("input", "logits")]
    chosen: tuple[str, ...] = ()
    while len(chosen) < 10:
        tried = {node: incompleteness((*chosen, node)) for node in nodes if node not in chosen}
        if not tried or max(tried.values()) <= incompleteness(chosen):
            break
        chosen = (*chosen, max(tried, key=lambda node: tried[node]))
    assert result.completeness.sets[-1].nodes == chosen


def test_roles_of_a_circuit_are_sets_of_completeness(setting: tuple[Any, Any, Any]) -> None:
    model, task, circuit = setting
    named = cd.Circuit(circuit.graph, circuit.mask, info={"roles": {"mover": ["a2.h0"]}})
    knockout = cd.evaluate(model, task, named).completeness.sets[1]
    assert (knockout.kind, knockout.nodes) == ("role mover", ("a2.h0",))


def test_minimality_is_the_largest_effect_of_a_node_over_the_sets(
    setting: tuple[Any, Any, Any], result: Any
) -> None:
    circuit = setting[2]
    sets = [knockout.nodes for knockout in result.completeness.sets]
    assert set(result.minimality.scores) == set(circuit.nodes) - {"input", "logits"}
    for node in ("a2.h0", "m1"):
        rest = [tuple(n for n in nodes if n != node) for nodes in sets]
        effects = [
            abs(mean(setting, circuit.without((*k, node))) - mean(setting, circuit.without(k))) for k in rest
        ]
        assert result.minimality.scores[node] == pytest.approx(max(effects), abs=1e-5)


def test_a_node_that_leads_nowhere_is_named_as_not_minimal(
    setting: tuple[Any, Any, Any], result: Any
) -> None:
    model, task, circuit = setting
    padded = circuit | cd.Circuit.from_edges(circuit.graph, ["input->a1.h3<v>"])
    found = cd.evaluate(model, task, padded)
    assert "a1.h3" in found.minimality.below
    assert found.minimality.scores["a1.h3"] == 0
    assert (found.edges, found.edges_pruned) == (len(EDGES) + 1, len(circuit.pruned()))
    assert found.circuit == result.circuit


def test_intervals_are_of_the_values_per_example(setting: tuple[Any, Any, Any], result: Any) -> None:
    student = stats.ttest_1samp(each(setting, setting[2]), 0).confidence_interval()
    assert result.circuit.low <= student.low + 1e-5 and student.high - 1e-5 <= result.circuit.high
    assert result.circuit.high - result.circuit.low < 2 * (student.high - student.low)
    hits = round(result.agreement * 8)
    exact = stats.binomtest(hits, 8).proportion_ci(method="exact")
    assert (result.agreement.low, result.agreement.high) == pytest.approx((exact.low, exact.high))
    for figure in (result.full, result.faithfulness, result.kl, result.empty_kl, result.completeness.mean):
        assert figure.low <= figure <= figure.high


def test_the_curve_s_areas_are_trapezoids_ours_and_mib_s(setting: tuple[Any, Any, Any]) -> None:
    model, task, _ = setting
    (batch,) = task.batches()
    clean, corrupted = (cd.run_circuit(model, task, end(setting)) for end in (full, empty))
    told = cd.Task.from_tokens(
        clean=batch.clean,
        corrupted=batch.corrupted,
        correct=(clean - corrupted).argmax(-1),
        incorrect=(clean - corrupted).argmin(-1),
    )
    scores = cd.eap(model, told)
    curve = cd.curve(model, told, scores)
    inner = (model, told, None)
    ends = mean(inner, cd.Circuit.full(scores.graph)), mean(inner, cd.Circuit.empty(scores.graph))

    def areas(points: list[tuple[float, Any]]) -> tuple[float, float]:
        faithful = [(x, (mean(inner, circuit) - ends[1]) / (ends[0] - ends[1])) for x, circuit in points]
        pairs = list(itertools.pairwise(faithful))
        under = sum((x2 - x1) * (y1 + y2) / 2 for (x1, y1), (x2, y2) in pairs)
        return under, sum((x2 - x1) * (abs(1 - y1) + abs(1 - y2)) / 2 for (x1, y1), (x2, y2) in pairs)

    total = len(scores.graph)
    ours = [scores.top(round(fraction * total)) for fraction in MIB_FRACTIONS]
    assert (curve.area, curve.distance) == pytest.approx(
        areas([(len(each.pruned()) / total, each) for each in ours]), abs=1e-5
    )
    # MIB's code: the fraction itself, int(p n) edges by signed score, pruned
    order = sorted(scores.graph.edges, key=lambda edge: -scores[edge])
    theirs = [
        (p, cd.Circuit.from_edges(scores.graph, order[: int(p * total)]).pruned()) for p in MIB_FRACTIONS
    ]
    assert (curve.cpr, curve.cmd) == pytest.approx(areas(theirs), abs=1e-5)
    assert abs(curve.cpr - curve.area) > 1e-3
    for figure in (curve.cpr, curve.cmd, curve.area, curve.distance, *curve.normalized):
        assert figure.low <= figure <= figure.high
    assert curve.normalized[-1] == 1
    assert curve.edges[-1] == len(scores.graph)


@pytest.mark.parametrize("grouped", [False, True])
def test_of_shared_keys_and_values_mib_s_areas_say_that_mib_counts_other_edges(
    gpt2: Tiny, llama: Tiny, grouped: bool
) -> None:
    """EAP-IG's graph, which MIB's figures are of, has q, k and v of each head, in a grouped model too."""
    model, task = (llama if grouped else gpt2).model, random_prompts(101, n_examples=8, seed=3).task
    scores = cd.random(model, task)
    found = cd.evaluate(model, task, scores.top(40), metric="kl_divergence", scores=scores, effort="quick")
    assert found.curve is not None
    lines = [
        next(line for line in str(each).splitlines() if " CPR " in line) for each in (found, found.curve)
    ]
    clause = " (edges into k and v by group; MIB's are by head)"
    assert [line.endswith(clause) for line in lines] == [grouped, grouped]
    assert type(found).from_dict(found.to_dict()).curve == found.curve


@pytest.mark.parametrize("other", [{"split_qkv": False}, {"graph": {"x": [-1]}}])
def test_scores_of_another_graph_are_refused_before_any_work(
    setting: tuple[Any, Any, Any], other: dict[str, Any]
) -> None:
    """Of another shape, and of the same shape and names with a span at another position."""
    model, task, _ = setting
    of: dict[str, Any] = {
        name: cd.split(model, {"input": at}) if name == "graph" else at for name, at in other.items()
    }
    circuit, seen = cd.eap(model, task, graph=cd.split(model, {"input": {"x": [0]}})).top(40), list[int]()
    scores = cd.eap(model, task, **of)
    with pytest.raises(
        cd.CircuitDiscoveryError, match="the scores are of another graph than the circuit"
    ) as told:
        cd.evaluate(model, task, circuit, scores=scores, progress=lambda done, _: seen.append(done))
    assert "\n" not in str(told.value) and not seen


@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_a_curve_says_its_direction(toy: Any, direction: str) -> None:
    """As an evaluation does; one of an older file does not know it."""
    task = cd.load_task("ioi", toy, examples=8)
    found = cd.curve(toy, task, cd.random(toy, task), direction=direction)
    assert found.direction == found.to_dict()["direction"] == direction
    assert str(found).splitlines()[0].endswith(f" resample ablation, {direction}")
    older = {name: value for name, value in found.to_dict().items() if name != "direction"}
    read = type(found).from_dict(older)
    assert read.direction is None and str(read).splitlines()[0].endswith(" resample ablation")
    assert read.to_dict() == older


def test_denoising_starts_at_the_corrupted_run(setting: tuple[Any, Any, Any]) -> None:
    result = cd.evaluate(*setting, direction="denoising")
    assert result.circuit == pytest.approx(mean(setting, setting[2], direction="denoising"), rel=1e-5)
    # the corrupted prompt either way
    assert result.empty == pytest.approx(mean(setting, empty(setting)), rel=1e-5)


def test_held_out_examples_are_used_where_there_are_some(setting: tuple[Any, Any, Any], result: Any) -> None:
    from dataclasses import replace

    model, task, circuit = setting
    held = random_prompts(101, n_examples=4, seed=9).task
    found = cd.evaluate(model, replace(task, held_out=held), circuit)
    assert (result.part, found.part, found.examples) == ("examples", "held_out", 4)
    assert found.circuit == pytest.approx(mean((model, held, None), circuit), rel=1e-5)


def test_given_replacements_serve_the_held_out_examples_too(setting: tuple[Any, Any, Any]) -> None:
    from dataclasses import replace

    model, task, circuit = setting
    both = replace(task, held_out=random_prompts(101, n_examples=20, seed=9).task)
    given = cd.evaluate(model, both, circuit, ablation=cd.replacements(model, both, ablation="mean"))
    assert given.to_dict() == cd.evaluate(model, both, circuit, ablation="mean").to_dict()


def test_replacements_of_other_prompts_are_refused(setting: tuple[Any, Any, Any]) -> None:
    model, task, circuit = setting
    other = cd.replacements(model, random_prompts(101, n_examples=8, seed=4).task)
    with pytest.raises(cd.CircuitDiscoveryError, match="row 0"):
        cd.run_circuit(model, task, circuit, ablation=other)


def test_the_same_evaluation_twice_is_the_same(setting: tuple[Any, Any, Any], result: Any) -> None:
    assert cd.evaluate(*setting).to_dict() == result.to_dict()


def test_circuits_that_differ_in_dead_edges_only_run_once(setting: tuple[Any, Any, Any]) -> None:
    model, task, circuit = setting
    evaluator = Evaluator.build(Setup.of(model, task, circuit.graph, metric="logit_diff"))
    padded = circuit | cd.Circuit.from_edges(circuit.graph, ["input->a1.h3<v>"])
    torch.testing.assert_close(
        torch.tensor(evaluator.values(padded.mask)), torch.tensor(each(setting, padded)), atol=1e-5, rtol=0
    )
    assert evaluator.values(circuit.mask) is evaluator.values(padded.mask)


def test_repeated_rows_are_told_where_intervals_are(toy: Any) -> None:
    """Each of four rows three times is no more than four: the intervals do not know it, and the reader does."""
    task = cd.load_task("ioi", toy, examples=4)
    circuit = cd.eap(toy, task).top(20)
    for given in (task.select([0, 1, 2, 3] * 3), replace(task, held_out=task.select([0, 1, 2, 3] * 3))):
        found = cd.evaluate(toy, given, circuit, effort="quick")
        told = (
            "12 examples of 4 different prompts: intervals take examples as independent, and are too narrow"
        )
        assert f"warning       {told}" in str(found)
        assert type(found).from_dict(found.to_dict()) == found and found.to_dict()["prompts"] == 4
        assert f"{told}." in verdict(found.to_dict(), 9, 15).sentences
    assert "12 examples of 14-16 tokens, 4 different prompts, " in repr(task.select([0, 1, 2, 3] * 3))
    usual = cd.evaluate(toy, task, circuit, effort="quick")
    assert "warning" not in str(usual) and "prompts" not in usual.to_dict() and "different" not in repr(task)
