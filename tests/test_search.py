"""Gates 4 and 5, and two independent implementations: scores are
derivatives and damages, ACDC is the naive one's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from fixture import ACDC_THRESHOLDS, Agreement
from reference import Metric, acdc_order, carried, exact, integrated, kl_divergence, logit_diff, naive_damages
from tiny import ARCHITECTURES, Prompts, Tiny, each_and_each, random_prompts
from torch import Tensor

import circuitdiscovery as cd
from circuitdiscovery.search import alternatives
from circuitdiscovery.search.acdc import receiver_order, source_order

MIDPOINTS = [0.1, 0.3, 0.5, 0.7, 0.9]
LEFT = [0.0, 0.2, 0.4, 0.6, 0.8]


def sample(graph: Any, n: int = 24, seed: int = 0) -> list[str]:
    """Random edges, and one into each kind of receiver."""
    kinds = {receiver.partition("<")[2] or receiver[0]: f"input->{receiver}" for receiver in graph.receivers}
    return sorted(
        {
            *kinds.values(),
            *(str(e) for e in np.random.default_rng(seed).choice(graph.edges, n, replace=False)),
        }
    )


def agree(scores: Any, expected: Mapping[str, float]) -> None:
    """To 1e-4 of the largest score."""
    scale = float(np.abs(scores.values).max())
    assert scale > 0.01  # or nothing would be compared
    assert {edge: scores[edge] for edge in expected} == pytest.approx(dict(expected), rel=0, abs=1e-4 * scale)


def nll(correct: Tensor) -> Metric:
    return lambda logits: (
        -torch.stack([row.log_softmax(-1)[c] for row, c in zip(logits, correct, strict=True)])
    )


# ------------------------------------------------------------------ gate 4: attribution is a derivative


@pytest.mark.parametrize("ablation", ["resample", "mean", "zero"])
def test_gate_4_eap_is_the_finite_difference(any_model: Tiny, ablation: str) -> None:
    prompts, reference = any_model.prompts, any_model.reference64
    scores = cd.eap(any_model.model, prompts.task, ablation=ablation)
    replacement = carried(reference, ablation, prompts.corrupted)
    metric = logit_diff(prompts.correct, prompts.incorrect)
    agree(scores, integrated(reference, prompts.clean, replacement, sample(scores.graph), metric, [1.0]))


def test_gate_4_every_edge_of_the_tiny_gpt2(gpt2: Tiny) -> None:
    prompts, reference = gpt2.prompts, gpt2.reference64
    scores = cd.eap(gpt2.model, prompts.task)
    replacement = carried(reference, "resample", prompts.corrupted)
    metric = logit_diff(prompts.correct, prompts.incorrect)
    agree(scores, integrated(reference, prompts.clean, replacement, list(scores.graph.edges), metric, [1.0]))


def test_gate_4_where_lower_is_better(tiny: Tiny) -> None:
    prompts, reference = tiny.prompts, tiny.reference64
    scores = cd.eap(tiny.model, prompts.task, metric="nll")
    replacement = carried(reference, "resample", prompts.corrupted)
    edges = sample(scores.graph, 10)
    agree(
        scores,
        integrated(
            reference, prompts.clean, replacement, edges, nll(prompts.correct), [1.0], higher_is_better=False
        ),
    )


def test_gate_4_merged_receivers(gpt2: Tiny) -> None:
    """A merged edge's score is the sum over its query, key and value:
    to first order they are moved together."""
    split, merged = (cd.eap(gpt2.model, gpt2.prompts.task, split_qkv=which) for which in (True, False))
    expected = {
        e: sum(split[f"{e}<{x}>"] for x in "qkv") if f"{e}<q>" in split.graph.edges else split[e]
        for e in merged.graph.edges
    }
    agree(merged, expected)


@pytest.mark.parametrize(("rule", "alphas"), [("midpoint", MIDPOINTS), ("left", LEFT)])
def test_eap_ig_averages_the_gradient_along_the_line(tiny: Tiny, rule: str, alphas: list[float]) -> None:
    prompts, reference = tiny.prompts, tiny.reference64
    scores = cd.eap_ig(tiny.model, prompts.task, steps=5, rule=rule)
    replacement = carried(reference, "resample", prompts.corrupted)
    metric = logit_diff(prompts.correct, prompts.incorrect)
    agree(scores, integrated(reference, prompts.clean, replacement, sample(scores.graph, 8), metric, alphas))


@pytest.mark.parametrize("ablation", ["mean", "zero"])
def test_eap_ig_with_kl_and_other_ablations(gpt2: Tiny, llama: Tiny, ablation: str) -> None:
    for tiny in (gpt2, llama):
        prompts, reference = tiny.prompts, tiny.reference64
        scores = cd.eap_ig(tiny.model, prompts.task, steps=5, metric="kl_divergence", ablation=ablation)
        replacement = carried(reference, ablation, prompts.corrupted)
        metric = kl_divergence(reference.run(prompts.clean)[0][:, -1])
        edges, end = sample(scores.graph, 10), reference.run(prompts.corrupted)[1][0]
        agree(
            scores,
            integrated(
                reference,
                prompts.clean,
                replacement,
                edges,
                metric,
                MIDPOINTS,
                end=end,
                higher_is_better=False,
            ),
        )


@pytest.mark.parametrize(
    ("name", "ablation"), each_and_each(ARCHITECTURES, ["mean", "mean_all", "zero", "random"])
)
def test_no_gradient_is_taken_where_the_norm_has_none(
    tinies: Callable[[str], Tiny], name: str, ablation: str
) -> None:
    """At an embedding of 0 it is 1 / sqrt(epsilon) times what is read:
    scores of 7e10 where the damage was .74.
    """
    prompts, model = tinies(name).prompts, tinies(name).model
    scale = max(
        float(np.abs(cd.exact(model, prompts.task, metric="logit_diff", ablation=ablation).values).max()), 1.0
    )
    for scores in (
        cd.clean_corrupted(model, prompts.task, ablation=ablation),
        cd.eap_ig(model, prompts.task, rule="left", ablation=ablation),
    ):
        assert 0.01 < np.abs(scores.values).max() < 30 * scale


def test_with_a_mean_the_line_ends_at_the_corrupted_run(gpt2: Tiny) -> None:
    prompts, reference = gpt2.prompts, gpt2.reference64
    scores, metric = (
        cd.clean_corrupted(gpt2.model, prompts.task, ablation="zero"),
        logit_diff(prompts.correct, prompts.incorrect),
    )
    end, zero = reference.run(prompts.corrupted)[1][0], carried(reference, "zero", prompts.corrupted)
    agree(
        scores,
        integrated(reference, prompts.clean, zero, sample(scores.graph, 10), metric, [0.0, 1.0], end=end),
    )


def test_clean_corrupted_is_the_mean_of_both_ends(tiny: Tiny) -> None:
    prompts, reference = tiny.prompts, tiny.reference64
    scores = cd.clean_corrupted(tiny.model, prompts.task)
    replacement = carried(reference, "resample", prompts.corrupted)
    metric = logit_diff(prompts.correct, prompts.incorrect)
    agree(
        scores,
        integrated(reference, prompts.clean, replacement, sample(scores.graph, 10), metric, [0.0, 1.0]),
    )


def test_searches_read_the_answer_where_the_task_says(llama: Tiny) -> None:
    """With the answer at position 2, what stands behind it does not matter."""
    prompts = llama.prompts
    answers = {"correct": prompts.correct, "incorrect": prompts.incorrect}
    inside = cd.Task.from_tokens(clean=prompts.clean, corrupted=prompts.corrupted, position=2, **answers)
    short = cd.Task.from_tokens(clean=prompts.clean[:, :3], corrupted=prompts.corrupted[:, :3], **answers)
    for method in (cd.eap, cd.eap_ig, cd.clean_corrupted, cd.exact):
        expected = method(llama.model, short)
        agree(method(llama.model, inside), {edge: expected[edge] for edge in expected.graph.edges})
    assert (
        cd.acdc(llama.model, inside, threshold=0.02).edges
        == cd.acdc(llama.model, short, threshold=0.02).edges
    )


def test_eap_denoising_has_its_gradient_on_the_corrupted_run(gpt2: Tiny) -> None:
    prompts, reference = gpt2.prompts, gpt2.reference64
    scores = cd.eap(gpt2.model, prompts.task, direction="denoising")
    replacement = carried(reference, "resample", prompts.corrupted)
    metric = logit_diff(prompts.correct, prompts.incorrect)
    agree(scores, integrated(reference, prompts.clean, replacement, sample(scores.graph), metric, [0.0]))


def test_eap_is_transformer_lens_attribution_patching(gpt2: Tiny) -> None:
    """`attribution_patch` points from its corrupt run, where it has its gradient, to
    its clean one: our clean, our corrupted.
    """
    from transformer_lens.tools.analysis.attribution_patching import (
        EdgeAttributionConfig,
        Node,
        attribution_patch,
    )

    def ours(source: Node, reader: Node) -> str:
        writer = {
            "embed": "input",
            "attn_head_out": f"a{source.layer}.h{source.head}",
            "mlp_out": f"m{source.layer}",
        }[source.kind]
        letter = reader.kind[0]
        return f"{writer}->" + {"m": f"m{reader.layer}", "l": "logits"}.get(
            letter, f"a{reader.layer}.h{reader.head}<{letter}>"
        )

    prompts, scores = gpt2.prompts, cd.eap(gpt2.model, gpt2.prompts.task)
    summed = dict.fromkeys(scores.graph.edges, 0.0)
    for row in range(len(prompts)):
        correct, incorrect = int(prompts.correct[row]), int(prompts.incorrect[row])
        result = attribution_patch(
            gpt2.reference.bridge,
            prompts.corrupted[row : row + 1],
            prompts.clean[row : row + 1],
            lambda logits, c=correct, i=incorrect: logits[0, -1, c] - logits[0, -1, i],
            EdgeAttributionConfig(granularity="edge"),
        )
        for (source, reader), score in result.edge_scores.items():
            summed[ours(source, reader)] -= score / len(prompts)
    agree(scores, summed)


def test_kl_has_no_gradient_on_the_clean_run(gpt2: Tiny) -> None:
    with pytest.raises(cd.CircuitDiscoveryError, match="eap_ig"):
        cd.eap(gpt2.model, gpt2.prompts.task, metric="kl_divergence")
    assert np.abs(cd.eap_ig(gpt2.model, gpt2.prompts.task, metric="kl_divergence").values).max() > 0.01


# ------------------------------------------------------------------ exact


@pytest.mark.parametrize("ablation", ["resample", "mean", "zero"])
def test_exact_is_the_damage_of_each_edge_alone(any_model: Tiny, ablation: str) -> None:
    prompts, reference = any_model.prompts, any_model.reference64
    scores = cd.exact(any_model.model, prompts.task, ablation=ablation)
    replacement = carried(reference, ablation, prompts.corrupted)
    kl = kl_divergence(reference.run(prompts.clean)[0][:, -1])
    agree(
        scores, exact(reference, prompts.clean, replacement, sample(scores.graph), kl, higher_is_better=False)
    )


def test_exact_of_another_metric(tiny: Tiny) -> None:
    prompts, reference = tiny.prompts, tiny.reference64
    scores = cd.exact(tiny.model, prompts.task, metric="logit_diff")
    replacement = carried(reference, "resample", prompts.corrupted)
    metric = logit_diff(prompts.correct, prompts.incorrect)
    agree(
        scores,
        exact(reference, prompts.clean, replacement, sample(scores.graph), metric, higher_is_better=True),
    )


def test_random_scores_say_what_graph_they_are_of(gpt2: Tiny) -> None:
    merged = cd.Graph.from_model(gpt2.model, split_qkv=False)
    assert cd.random(gpt2.model, PAIRS.task, graph=merged).info["options"] == {"seed": 0, "split_qkv": False}


def test_exact_merged(gpt2: Tiny) -> None:
    prompts = gpt2.prompts
    scores = cd.exact(gpt2.model, prompts.task, split_qkv=False)
    reference = gpt2.reference64.with_graph(scores.graph)
    replacement = carried(reference, "resample", prompts.corrupted)
    kl = kl_divergence(reference.run(prompts.clean)[0][:, -1])
    agree(
        scores, exact(reference, prompts.clean, replacement, sample(scores.graph), kl, higher_is_better=False)
    )


def test_exact_nodes_lose_all_their_edges_at_once(llama: Tiny) -> None:
    prompts, reference = llama.prompts, llama.reference64
    graph, replacement = reference.graph, carried(reference, "resample", prompts.corrupted)
    metric = logit_diff(prompts.correct, prompts.incorrect)
    full = metric(reference.run(prompts.clean)[0][:, -1]).mean().item()
    # all edges of one source, source by source
    moved = np.eye(len(graph.sources), dtype=bool)[:, :, None] & graph.allowed
    patched = reference.patched(prompts.clean, replacement, moved)[:, :, -1]
    expected = {
        name: full - metric(logits).mean().item() for name, logits in zip(graph.sources, patched, strict=True)
    }
    assert cd.exact(llama.model, prompts.task, level="node", metric="logit_diff") == pytest.approx(
        expected, abs=1e-4
    )


# ------------------------------------------------------------------ gate 5: ACDC


def compare_with_naive(
    tiny: Tiny,
    prompts: Prompts,
    threshold: float,
    *,
    ablation: str = "resample",
    graph: Any = None,
    edges: list[str] | None = None,
    **options: Any,
) -> Any:
    """ACDC and the naive one (over `edges` in their order), edge for edge, and the scores of the kept edges.

    No decision may hang on a rounding.
    """
    reference = tiny.reference64 if graph is None else tiny.reference64.with_graph(graph)
    replacement = carried(reference, ablation, prompts.corrupted)
    if options.get("metric") == "logit_diff":
        metric, higher = logit_diff(prompts.correct, prompts.incorrect), True
    else:
        metric, higher = kl_divergence(reference.run(prompts.clean)[0][:, -1]), False
    absolute = options.get("absolute", False)
    found = cd.acdc(tiny.model, prompts.task, threshold=threshold, ablation=ablation, **options)
    damages = naive_damages(
        reference, prompts.clean, replacement, metric, set(found.edges), higher_is_better=higher, order=edges
    )
    assert len(damages) == len(reference.graph)
    compared = {edge: abs(damage) if absolute else damage for edge, damage in damages.items()}
    assert min(abs(damage - threshold) for damage in compared.values()) > 1e-6, "another threshold, please"
    assert set(found.edges) == {edge for edge, damage in compared.items() if damage >= threshold}
    assert 0 < len(found) < len(reference.graph)  # or nothing would be compared
    assert {edge: found.score(edge) for edge in found.edges} == pytest.approx(
        {edge: damages[edge] for edge in found.edges}, abs=1e-4
    )
    return found


PAIRS = random_prompts(101, 4, 5, seed=20)


def test_gate_5_acdc_is_the_naive_one(tiny: Tiny) -> None:
    compare_with_naive(tiny, PAIRS, 0.02)


@pytest.mark.parametrize("threshold", [0.0003, 0.07])
def test_gate_5_dense_and_sparse(gpt2: Tiny, llama: Tiny, threshold: float) -> None:
    for tiny in (gpt2, llama):
        compare_with_naive(tiny, PAIRS, threshold)


@pytest.mark.parametrize("ablation", ["mean", "zero"])
def test_gate_5_other_ablations(gpt2: Tiny, llama: Tiny, ablation: str) -> None:
    for tiny in (gpt2, llama):
        compare_with_naive(tiny, PAIRS, 0.1, ablation=ablation)


@pytest.mark.parametrize("absolute", [False, True])
def test_gate_5_signed_and_absolute(gpt2: Tiny, absolute: bool) -> None:
    found = compare_with_naive(gpt2, PAIRS, 0.05, metric="logit_diff", absolute=absolute)
    assert (min(score for edge in found.edges if (score := found.score(edge)) is not None) < 0) is absolute


def test_gate_5_merged_receivers(gpt2: Tiny) -> None:
    compare_with_naive(
        gpt2, PAIRS, 0.05, graph=cd.Graph.from_model(gpt2.model, split_qkv=False), split_qkv=False
    )


@pytest.mark.parametrize(("name", "batch_size"), [("gpt2", 1), ("llama", 3), ("neox_parallel", 3)])
def test_gate_5_batches_do_not_matter(tinies: Callable[[str], Tiny], name: str, batch_size: int) -> None:
    """Of three of four examples the last batch is one alone."""
    model = tinies(name).model
    whole, parts = (
        cd.acdc(model, PAIRS.task, threshold=0.05, batch_size=size) for size in (None, batch_size)
    )
    assert whole.edges == parts.edges


def kl_by_full_forwards(model: Any, task: Any, ablation: Any) -> Callable[[np.ndarray], float]:
    """The mean KL of a mask, by a full forward and torch's own KL."""
    full = cd.run_circuit(model, task, cd.Circuit.full(model.graph)).double().log_softmax(-1)

    def kl(mask: np.ndarray) -> float:
        patched = (
            cd.run_circuit(model, task, cd.Circuit(model.graph, mask), ablation=ablation)
            .double()
            .log_softmax(-1)
        )
        return torch.nn.functional.kl_div(patched, full, log_target=True, reduction="batchmean").item()

    return kl


@pytest.mark.parametrize("ablation", ["noise", "random", "mean"])
def test_gate_5_prompts_of_two_lengths(llama: Tiny, ablation: str) -> None:
    """The naive search by `run_circuit`, which gate 3 holds to the
    reference, under the drawn ablations too."""
    parts = [random_prompts(101, 2, length, seed=length) for length in (4, 6)]
    columns = {
        key: [row for part in parts for row in getattr(part, key).tolist()]
        for key in Prompts.__dataclass_fields__
    }
    # that means are over too
    others = random_prompts(101, 2, 4, seed=8).task.examples + random_prompts(101, 2, 6, seed=9).task.examples
    task, graph, threshold = replace(cd.Task.from_tokens(**columns), others=others), llama.model.graph, 0.05
    alt = cd.replacements(llama.model, task, ablation=ablation)
    kl, mask, old = kl_by_full_forwards(llama.model, task, alt), graph.allowed.copy(), 0.0
    for edge in acdc_order(graph):
        trial = mask & ~graph.mask([edge])
        new = kl(trial)
        assert abs(new - old - threshold) > 1e-6, "another threshold, please"
        if new - old < threshold:
            mask, old = trial, new
    assert 0 < mask.sum() < len(graph)
    for given in (alt, ablation):
        assert cd.acdc(llama.model, task, threshold=threshold, ablation=given).edges == graph.names(mask)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stories260K", "toy"])
def test_gate_5_sampled_states_of_trained_models(tinies: Callable[[str], Tiny], name: str) -> None:
    """The naive decision from 60 states of a finished search is the one that was taken."""
    tiny = tinies(name)
    threshold, prompts = 0.005, random_prompts(tiny.hf.config.vocab_size, 4, 8, seed=21)
    found = cd.acdc(tiny.model, prompts.task, threshold=threshold)
    check_sampled_states(tiny.reference64, prompts, found, threshold, 60)


def check_sampled_states(reference: Any, prompts: Prompts, found: Any, threshold: float, n: int) -> None:
    order, kept = acdc_order(reference.graph), set(found.edges)
    assert 0 < len(kept) < len(order)
    replacement = carried(reference, "resample", prompts.corrupted)
    kl = kl_divergence(reference.run(prompts.clean)[0][:, -1])
    rng = np.random.default_rng(0)
    some_kept = rng.choice(
        [i for i, edge in enumerate(order) if edge in kept], min(len(kept), n // 2), replace=False
    )
    some = [order[i] for i in {*some_kept.tolist(), *rng.choice(len(order), n // 2, replace=False).tolist()}]
    for edge, damage in naive_damages(
        reference, prompts.clean, replacement, kl, kept, some, higher_is_better=False
    ).items():
        if abs(damage - threshold) > 1e-5:
            assert (damage >= threshold) == (edge in kept), (edge, damage)


@pytest.mark.parametrize("threshold", [0.005, 0.07])
def test_group_testing_keeps_only_edges_that_do_damage(tiny: Tiny, threshold: float) -> None:
    """Each kept edge, by full forwards, where those before it in
    ACDC's order are decided as the search did."""
    reference, found = (
        tiny.reference64,
        cd.acdc(tiny.model, PAIRS.task, threshold=threshold, group_testing=True),
    )
    assert 0 < len(found) < len(tiny.model.graph)
    replacement, kl = (
        carried(reference, "resample", PAIRS.corrupted),
        kl_divergence(reference.run(PAIRS.clean)[0][:, -1]),
    )
    damages = naive_damages(
        reference, PAIRS.clean, replacement, kl, set(found.edges), found.edges, higher_is_better=False
    )
    assert damages == pytest.approx({edge: found.score(edge) for edge in found.edges}, abs=1e-5)
    assert min(damages.values()) > threshold - 1e-5


def test_groups_are_the_same_however_many_alternatives_are_run_at_once(
    toy: cd.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the batch size nor the room that a device has decides which edges go together."""
    task = cd.load_task("ioi", toy, examples=6)
    options: dict[str, Any] = {"threshold": 0.02, "metric": "logit_diff", "group_testing": True}
    expected = cd.acdc(toy, task, **options)
    assert expected != cd.acdc(toy, task, **{**options, "group_testing": False})
    longest = max(len(each.clean) for each in task.examples)
    for room, batch_size in ((1, None), (3, 4)):
        monkeypatch.setattr(alternatives, "TOKENS", {"cpu": room * 6 * longest})
        assert cd.acdc(toy, task, **options, batch_size=batch_size) == expected


class Killed(Exception):
    """Raised in the middle of a search."""


def kill(done: int, total: int) -> None:
    if done > total / 2:
        raise Killed


def test_acdc_resumes_where_it_was_killed(llama: Tiny, tmp_path: Any) -> None:
    state = tmp_path / "search.state"
    expected = cd.acdc(llama.model, PAIRS.task, threshold=0.05)
    with pytest.raises(Killed):
        cd.acdc(llama.model, PAIRS.task, threshold=0.05, state=state, progress=kill)
    assert cd.acdc(llama.model, PAIRS.task, threshold=0.05, state=state) == expected
    with pytest.raises(cd.CircuitDiscoveryError, match="another search"):
        cd.acdc(llama.model, PAIRS.task, threshold=0.06, state=state)


@pytest.mark.parametrize("threshold", [float("nan"), float("inf")])
def test_a_threshold_is_a_finite_number(gpt2: Tiny, threshold: float) -> None:
    with pytest.raises(cd.CircuitDiscoveryError, match="threshold"):
        cd.acdc(gpt2.model, PAIRS.task, threshold=threshold)


# ------------------------------------------------------------------ ACDC in other orders


def order_of_edges(graph: Any, order: int | None) -> list[str]:
    """Every edge in the order in which a search with this `order` tries it."""
    receivers = receiver_order(graph, order)
    return [
        f"{graph.sources[row]}->{graph.receivers[column]}"
        for column in receivers
        for row in source_order(graph, column, order)
    ]


@pytest.mark.parametrize(
    ("name", "order"), [("gpt2", 0), ("gpt2", 1), ("gpt2", 2), ("llama", 0), ("neox_parallel", 0)]
)
def test_acdc_in_a_random_order_is_the_naive_one_in_that_order(
    tinies: Callable[[str], Tiny], name: str, order: int
) -> None:
    edges = order_of_edges(tinies(name).model.graph, order)
    compare_with_naive(tinies(name), PAIRS, 0.05, edges=edges, order=order)


@pytest.mark.parametrize("split_qkv", [True, False])
def test_an_order_is_a_permutation_that_keeps_readers_before_what_they_read(
    gpt2: Tiny, llama: Tiny, split_qkv: bool
) -> None:
    for tiny in (gpt2, llama) if split_qkv else (gpt2,):
        graph = cd.Graph.from_model(tiny.model, split_qkv=split_qkv)
        orders = [order_of_edges(graph, order) for order in (None, 0, 1, 2)]
        assert orders[0] == acdc_order(graph)
        assert (
            len({tuple(edges) for edges in orders})
            == len({tuple(receiver_order(graph, order)) for order in (None, 0, 1, 2)})
            == 4
        )
        for edges in orders:
            assert sorted(edges) == sorted(graph.edges)
            decided: set[str] = set()  # a node's in-edges are tried when all its out-edges have been
            for edge in edges:
                source, _, receiver = edge.partition("->")
                assert not decided & {source}
                decided |= set(graph.reader_nodes(receiver))


def test_orders_differ_in_what_they_find_and_each_finds_the_same_again(gpt2: Tiny) -> None:
    found = [cd.acdc(gpt2.model, PAIRS.task, threshold=0.05, order=order) for order in (None, 0, 1, 0)]
    assert len({circuit.edges for circuit in found}) == 3
    assert found[1].to_dict() == found[3].to_dict()
    assert [circuit.info["options"].get("order") for circuit in found] == [None, 0, 1, 0]
    assert "order" not in found[0].info["options"]  # the contract's order writes what it always wrote


def test_a_search_is_resumed_in_its_own_order_only(gpt2: Tiny, tmp_path: Any) -> None:
    state, whole = tmp_path / "search.state", cd.acdc(gpt2.model, PAIRS.task, threshold=0.05, order=1)
    with pytest.raises(Killed):
        cd.acdc(gpt2.model, PAIRS.task, threshold=0.05, order=1, state=state, progress=kill)
    for other in (None, 2):
        with pytest.raises(cd.CircuitDiscoveryError, match="another search"):
            cd.acdc(gpt2.model, PAIRS.task, threshold=0.05, order=other, state=state)
    assert cd.acdc(gpt2.model, PAIRS.task, threshold=0.05, order=1, state=state).to_dict() == whole.to_dict()


@pytest.mark.parametrize("order", [-1, 1.5, True])
def test_an_order_is_a_whole_number(gpt2: Tiny, order: Any) -> None:
    with pytest.raises(cd.CircuitDiscoveryError, match="order"):
        cd.acdc(gpt2.model, PAIRS.task, threshold=0.05, order=order)


# ------------------------------------------------------------------ gate 6, and the fixture


@pytest.mark.parametrize("method", ["eap", "eap_ig", "clean_corrupted", "exact", "acdc", "random"])
def test_gate_6_twice_the_same_bytes(llama: Tiny, tmp_path: Any, method: str) -> None:
    options = {"threshold": 0.05} if method == "acdc" else {}
    suffix = "json" if method == "acdc" else "safetensors"
    for name in "ab":
        getattr(cd, method)(llama.model, PAIRS.task, **options).save(tmp_path / f"{name}.{suffix}")
    assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


FIXTURE_SCORES: dict[str, Callable[..., Any]] = {
    "eap": cd.eap,
    "clean_corrupted": cd.clean_corrupted,
    "eap_ig_5_left_riemann_token_embedding": lambda model, task: cd.eap_ig(model, task, steps=5, rule="left"),
}


@pytest.mark.parametrize("name", FIXTURE_SCORES)
def test_the_fixtures_attributions(agreement: Agreement, name: str) -> None:
    agree(FIXTURE_SCORES[name](agreement.tiny.model, agreement.prompts.task), agreement.results[name])


@pytest.mark.parametrize("metric", ["logit_diff", "kl_divergence"])
def test_the_fixtures_exact_damages(agreement: Agreement, metric: str) -> None:
    scores = cd.exact(agreement.tiny.model, agreement.prompts.task, metric=metric)
    agree(scores, agreement.results["exact"][metric])


@pytest.mark.parametrize("threshold", ACDC_THRESHOLDS)
def test_the_fixtures_acdc(agreement: Agreement, threshold: str) -> None:
    found = cd.acdc(agreement.tiny.model, agreement.prompts.task, threshold=float(threshold))
    assert set(found.edges) == set(agreement.results["acdc"][threshold]["kept"])
