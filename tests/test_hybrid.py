"""The hybrid search: exactly as many edges as asked for, the best there are where all
can be tried, and better than its ranking.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
import torch
from reference import carried, kl_divergence, logit_diff
from test_edge_pruning import KNOWN, cut_model, kl_by_others
from tiny import ARCHITECTURES, Tiny, random_model, random_prompts, tiny_config

import circuitdiscovery as cd
from circuitdiscovery.engine.setup import Setup
from circuitdiscovery.search.alternatives import cases, mean_metric
from circuitdiscovery.search.hybrid import _Loss, _Search, hybrid


def mean_kl(model: Any, task: Any, circuit: Any, ablation: str = "resample") -> float:
    """KL(model || circuit) on a task's examples."""
    full, logits = (
        cd.run_circuit(model, task, c, ablation=ablation) for c in (cd.Circuit.full(circuit.graph), circuit)
    )
    return float(kl_divergence(full)(logits).mean())


def test_the_edges_that_can_matter_are_found() -> None:
    model, prompts = cut_model(), random_prompts(101, 8, 5, seed=6)
    assert list(hybrid(model, prompts.task, edges=10).top(10).edges) == sorted(KNOWN, key=model.graph.index)


@pytest.mark.parametrize("seed", range(1, 5))  # elimination is greedy: at seed 0 it misses the best one
def test_the_best_of_all_circuits_of_one_layer(seed: int) -> None:
    """8 edges: each of the 70 circuits of 4 is run."""
    model = cd.load_model((random_model(tiny_config("gpt2", n_layer=1, n_head=1), seed=seed), None))
    task, graph = random_prompts(101, 6, 4, seed=seed).task, model.graph
    losses = [
        mean_kl(model, task, cd.Circuit.from_edges(graph, edges)) for edges in combinations(graph.edges, 4)
    ]
    assert (
        mean_kl(model, task, hybrid(model, task, edges=4, metric="kl_divergence").top(4))
        <= min(losses) + 1e-6
    )


def test_scores_are_places_by_exact_damage(llama: Tiny) -> None:
    """The circuit's edges in the order of what the slow reference says of the removal of each."""
    prompts, reference, graph = llama.prompts, llama.reference64, llama.model.graph
    scores = hybrid(llama.model, prompts.task, edges=12, rounds=1, metric="kl_divergence")
    circuit = scores.top(12)
    kl, replacement = (
        kl_divergence(reference.run(prompts.clean)[0][:, -1]),
        carried(reference, "resample", prompts.corrupted),
    )

    def without(edge: str) -> float:
        mask = circuit.mask & ~graph.mask([edge])
        return float(kl(reference.circuit(prompts.clean, prompts.corrupted, mask, replacement)).mean())

    order = sorted(circuit.edges, key=lambda edge: -scores[edge])
    damages = [without(edge) for edge in order]
    assert all(first >= second - 1e-4 for first, second in pairwise(damages))
    n = len(graph)
    np.testing.assert_allclose(np.sort(scores.values[graph.allowed]), np.arange(1, n + 1) / n)
    assert [scores[edge] for edge in order] == pytest.approx([1 - i / n for i in range(12)])


def test_more_rounds_are_never_worse(gpt2: Tiny) -> None:
    task = random_prompts(101, 12, 6, seed=8).task
    losses = [
        mean_kl(
            gpt2.model,
            task,
            hybrid(gpt2.model, task, edges=15, rounds=rounds, metric="kl_divergence").top(15),
        )
        for rounds in (0, 1, 3)
    ]
    assert losses[0] >= losses[1] - 1e-6 and losses[1] >= losses[2] - 1e-6
    assert losses[2] < losses[0]  # and here they pay


def test_a_trial_that_is_worse_is_not_kept(gpt2: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever comes of a round: here other edges than the first ones."""
    model, task, graph = gpt2.model, gpt2.prompts.task, gpt2.model.graph
    first = hybrid(model, task, edges=6, rounds=0).top(6)
    others = cd.Circuit.from_edges(graph, [edge for edge in graph.edges if edge not in first][:6])
    assert mean_kl(model, task, others) > mean_kl(model, task, first)
    eliminate, rounds = _Search.eliminate, list[int]()

    def to_others(self: _Search, walk: Any) -> None:
        if walk.stage == 1:
            return eliminate(self, walk)
        rounds.append(walk.stage)
        walk.turn_to(others.mask)

    monkeypatch.setattr(_Search, "eliminate", to_others)
    assert hybrid(model, task, edges=6, rounds=2).top(6) == first
    assert rounds == [2, 3]


@pytest.mark.parametrize("sign", [1, -1])
def test_the_loss_rises_as_its_gradient_says(gpt2: Tiny, sign: int) -> None:
    """|1 - faithfulness| has a slope on each side of 0; between two points of one side it is a line."""
    task = gpt2.prompts.task
    found, full = cases(Setup.of(gpt2.model, task, gpt2.model.graph))
    loss, (case,) = _Loss.of(Setup.of(gpt2.model, task, gpt2.model.graph), found, full), found
    rows = torch.arange(len(full))
    points = []
    for step in (1, 2):  # by which the correct answer's logit is above or below the model's
        points.append(full.clone()[None])
        points[-1][0, rows, case.batch.correct[:, 0]] += sign * step
    slope = loss.around([points[0]])
    rises = [
        float(measured([points[1]])[0] - measured([points[0]])[0])
        for measured in (loss, lambda logits: mean_metric(task, found, slope, logits))
    ]
    assert rises[0] > 0.1 and rises[1] == pytest.approx(rises[0], abs=1e-5)


@pytest.mark.slow
def test_better_than_attribution_and_chance_on_ioi() -> None:
    assert kl_by_others(24, partial(hybrid, rounds=1), edges=30) < 0.5


@pytest.mark.slow
def test_edges_that_stand_in_for_each_other_do_not_go_at_once() -> None:
    """On these prompts many edges are redundant one by one; removed a
    fifth at a time, a KL of nearly 3 nats is left.
    """
    model = cd.load_model("toy")
    task = cd.load_task("ioi", model, examples=2)
    assert mean_kl(model, task, hybrid(model, task, edges=47, rounds=0).top(47)) < 1


def test_the_best_edge_to_remove_under_any_ablation() -> None:
    """All are tried; the ablations do not agree on it. And the least and most edges there can be."""
    model = cd.load_model((random_model(tiny_config("gpt2", n_layer=2, n_head=2)), None))
    task, graph = random_prompts(101, 5, 6).task, model.graph
    full, removed = cd.Circuit.full(graph), set[str]()
    for ablation in ("resample", "mean", "zero"):
        search = partial(hybrid, model, task, rounds=0, ablation=ablation, metric="kl_divergence")
        found = search(edges=len(graph) - 1).top(len(graph) - 1)
        losses = [
            mean_kl(model, task, full - cd.Circuit.from_edges(graph, [edge]), ablation)
            for edge in graph.edges
        ]
        assert mean_kl(model, task, found, ablation) <= min(losses) + 1e-6
        removed.update(edge for edge in graph.edges if edge not in found)
        for edges in (1, len(graph)):
            assert len(search(edges=edges).top(edges)) == edges
    assert len(removed) > 1


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_any_architecture(tinies: Callable[[str], Tiny], name: str) -> None:
    """Twelve edges, nearer to the model than those that the search starts from."""
    tiny = tinies(name)
    task = tiny.prompts.task
    ranked = cd.eap_ig(tiny.model, task, metric="kl_divergence").top(12)
    found = hybrid(tiny.model, task, edges=12, rounds=0, metric="kl_divergence").top(12)
    assert mean_kl(tiny.model, task, found) < mean_kl(tiny.model, task, ranked)


@pytest.mark.parametrize("name", ["gpt2", "llama", "neox_parallel"])
def test_nearer_to_the_model_than_attribution_alone(tinies: Callable[[str], Tiny], name: str) -> None:
    tiny = tinies(name)
    task = tiny.prompts.task
    ranked = cd.eap_ig(tiny.model, task, metric="kl_divergence").top(20)
    found = hybrid(tiny.model, task, edges=20, rounds=1, metric="kl_divergence").top(20)
    assert mean_kl(tiny.model, task, found) < mean_kl(tiny.model, task, ranked)


def test_merged_receivers(gpt2: Tiny) -> None:
    scores = hybrid(gpt2.model, gpt2.prompts.task, edges=15, rounds=1, split_qkv=False)
    assert scores.graph == cd.Graph.from_model(gpt2.model, split_qkv=False)
    assert len(scores.top(15)) == 15


def test_the_tasks_metric_counts_beside_kl(gpt2: Tiny) -> None:
    """By default the circuit is nearer to the model in the logit difference,
    neither less nor more, than with KL alone.
    """
    task, graph = random_prompts(101, 12, 6, seed=8).task, gpt2.model.graph

    def off(circuit: Any) -> float:
        full, empty, found = (
            float(logit_diffs(gpt2.model, task, c))
            for c in (cd.Circuit.full(graph), cd.Circuit.empty(graph), circuit)
        )
        return abs((found - full) / (full - empty))

    both, kl = (
        hybrid(gpt2.model, task, edges=15, rounds=1).top(15),
        hybrid(gpt2.model, task, edges=15, rounds=1, metric="kl_divergence").top(15),
    )
    assert off(both) < off(kl)


def logit_diffs(model: Any, task: Any, circuit: Any) -> float:
    (batch,) = task.batches()
    return float(
        logit_diff(batch.correct[:, 0], batch.incorrect[:, 0])(cd.run_circuit(model, task, circuit)).mean()
    )


@pytest.fixture(scope="module")
def six(llama: Tiny) -> Any:
    return hybrid(llama.model, llama.prompts.task, edges=6, rounds=1)


def test_twice_the_same_bytes(llama: Tiny, six: Any, tmp_path: Any) -> None:
    for name, scores in (("a", six), ("b", hybrid(llama.model, llama.prompts.task, edges=6, rounds=1))):
        scores.save(tmp_path / f"{name}.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_batches_do_not_matter(llama: Tiny, six: Any) -> None:
    assert hybrid(llama.model, llama.prompts.task, edges=6, rounds=1, batch_size=2).top(6) == six.top(6)


def test_progress_ends_at_its_total(gpt2: Tiny) -> None:
    seen: list[tuple[int, int]] = []
    hybrid(gpt2.model, gpt2.prompts.task, edges=15, rounds=2, progress=lambda *now: seen.append(now))
    done = [now[0] for now in seen]
    assert done[0] == 0 and done == sorted(done) and seen[-1][0] == seen[-1][1]
    # what was expected at any time
    assert all(seen[-1][1] / 2 < total < 2 * seen[-1][1] for _, total in seen)


def ranked_first(logits: torch.Tensor, task: cd.Task) -> torch.Tensor:
    """A user's own metric that counts."""
    correct = torch.tensor([example.correct[0] for example in task.examples])
    return (logits.argmax(-1) == correct).to(logits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"edges": 0}, "edges must be a whole number from 1 to"),
        ({"edges": 1.5}, "edges must be a whole number, not 1.5"),
        ({"edges": 5, "rounds": -1}, "rounds must be at least 0, not -1"),
        ({"edges": 5, "metric": "nonsense"}, "no metric 'nonsense'"),
        ({"edges": 5, "metric": "accuracy"}, "metric 'accuracy' has no gradient"),
        ({"edges": 5, "metric": ranked_first}, "metric 'ranked_first' has no gradient"),
    ],
)
def test_what_is_refused(gpt2: Tiny, options: dict[str, Any], message: str) -> None:
    with pytest.raises(cd.CircuitDiscoveryError, match=message):
        hybrid(gpt2.model, gpt2.prompts.task, **options)
