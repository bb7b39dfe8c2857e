"""Edge pruning: its forward is the model's with any part of each edge, its
gradient a derivative, and what it finds is known.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from fixture import random_masks
from reference import Reference, carried, kl_divergence
from tiny import ARCHITECTURES, Tiny, each_and_each, random_model, random_prompts, tiny_config
from torch import Tensor

import circuitdiscovery as cd
from circuitdiscovery.engine.definition import masked_logits
from circuitdiscovery.model.run import embed
from circuitdiscovery.search.edge_pruning import edge_pruning

# of the model with cut weights below: head a0.h0 and a1.h1 attend uniformly, a0.h1,
# a1.h0 and m0 write nothing that differs
KNOWN = [
    *("input->a0.h0<v>", "input->a1.h1<v>", "input->m1", "input->logits", "a0.h0->a1.h1<v>"),
    *("a0.h0->m1", "a0.h0->logits", "a1.h1->m1", "a1.h1->logits", "m1->logits"),
]


def cut_model() -> Any:
    """A random GPT-2 of 2 layers and 2 heads in which nothing but the ten known edges can matter."""
    hf = random_model(tiny_config("gpt2", n_layer=2, n_head=2), seed=3)
    with torch.no_grad():
        for block in hf.transformer.h:
            block.attn.c_attn.weight[:, : 2 * 32] = 0  # queries and keys
        hf.transformer.h[0].attn.c_proj.weight[16:] = 0  # a0.h1
        hf.transformer.h[1].attn.c_proj.weight[:16] = 0  # a1.h0
        hf.transformer.h[0].mlp.c_proj.weight[:] = 0  # m0
    return cd.load_model((hf, None))


def held_out_kl(model: Any, task: Any, circuit: Any) -> float:
    """KL(model || circuit) on the held-out examples."""
    full, logits = (
        cd.run_circuit(model, task.held_out, c) for c in (cd.Circuit.full(circuit.graph), circuit)
    )
    return float(kl_divergence(full)(logits).mean())


def kl_by_others(examples: int, search: Callable[..., Any], edges: int = 47) -> float:
    """The held-out KL of a search's circuit of toy's IOI, as a share of the least that attribution, by either
    metric and rule, or chance leaves with so many edges."""
    model = cd.load_model("toy")
    task = cd.load_task("ioi", model, examples=examples)
    ranked = [cd.eap_ig(model, task), cd.eap_ig(model, task, metric="kl_divergence")]
    others = [circuit for scores in ranked for circuit in (scores.top(edges), scores.greedy(edges))]
    least = min(held_out_kl(model, task, each) for each in [*others, cd.random(model, task).top(edges)])
    return held_out_kl(model, task, search(model, task, edges=edges).top(edges)) / least


def relaxed(model: Any, graph: Any, task: Any, mask: Tensor, ablation: str = "resample") -> Tensor:
    """The relaxed forward on a task of one batch."""
    (batch,) = task.batches()
    replacement = cd.replacements(model, task, ablation=ablation).rows(batch)
    return masked_logits(model, graph, embed(model, batch.clean), replacement, batch.position, mask)


# ------------------------------------------------------------------ the forward


@pytest.mark.parametrize(("name", "ablation"), each_and_each(ARCHITECTURES, ["resample", "mean", "zero"]))
def test_a_boolean_mask_is_a_circuit(tinies: Callable[[str], Tiny], name: str, ablation: str) -> None:
    tiny = tinies(name)
    graph, task = tiny.model.graph, tiny.prompts.task
    for mask in [graph.allowed, ~graph.allowed & False, *random_masks(graph, 4, seed=1)]:
        expected = cd.run_circuit(tiny.model, task, cd.Circuit(graph, mask), ablation=ablation)
        got = relaxed(tiny.model, graph, task, torch.tensor(mask).float(), ablation)
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["gpt2", "neox_parallel"])
def test_a_boolean_mask_of_merged_receivers(tinies: Callable[[str], Tiny], name: str) -> None:
    tiny = tinies(name)
    graph = cd.Graph.from_model(tiny.model, split_qkv=False)
    for mask in random_masks(graph, 4, seed=2):
        expected = cd.run_circuit(tiny.model, tiny.prompts.task, cd.Circuit(graph, mask))
        got = relaxed(tiny.model, graph, tiny.prompts.task, torch.tensor(mask).float())
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


def test_a_part_of_each_edge_is_the_slow_reference(tiny: Tiny) -> None:
    """On TransformerBridge's own hooks: each receiver reads what it
    would, less (1 - mask) of each difference.
    """
    prompts, reference, graph = tiny.prompts, tiny.reference64, tiny.model.graph
    mask = np.random.default_rng(3).random(graph.allowed.shape) * graph.allowed
    expected = partly_patched(
        reference, prompts.clean, carried(reference, "resample", prompts.corrupted), mask
    )
    got = relaxed(tiny.model, graph, prompts.task, torch.tensor(mask).float())
    torch.testing.assert_close(got.double(), expected, atol=1e-4, rtol=0)


def partly_patched(reference: Reference, clean: Tensor, replacement: Tensor, mask: np.ndarray) -> Tensor:
    current, hooks = reference._written(clean)
    missing = torch.from_numpy((1 - mask) * reference.graph.allowed)  # [S, R]

    def change(column: int) -> Tensor:
        changes = missing[:, column, None, None, None] * (replacement - current)
        return reference.added(current, range(len(current)), changes)

    return reference._forward(clean, hooks + reference._at_receivers(change))[:, -1]


def test_the_answer_is_read_where_the_task_says(llama: Tiny) -> None:
    prompts, graph = llama.prompts, llama.model.graph
    answers = {"correct": prompts.correct, "incorrect": prompts.incorrect}
    task = cd.Task.from_tokens(
        clean=prompts.clean, corrupted=prompts.corrupted, position=[2, -1, 0, 3, -3], **answers
    )
    mask = random_masks(graph, 3, seed=4)[1]
    got = relaxed(llama.model, graph, task, torch.tensor(mask).float())
    torch.testing.assert_close(
        got, cd.run_circuit(llama.model, task, cd.Circuit(graph, mask)), atol=1e-4, rtol=0
    )


def test_the_gradient_is_the_finite_difference(tiny: Tiny) -> None:
    model, task = tiny.model64, tiny.prompts.task
    graph, rng = model.graph, np.random.default_rng(5)
    reference = cd.run_circuit(model, task, cd.Circuit.full(graph)).softmax(-1)

    def loss(mask: Tensor) -> Tensor:
        return -(reference * relaxed(model, graph, task, mask).log_softmax(-1)).sum()

    mask = torch.from_numpy(rng.random(graph.allowed.shape)).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(mask), mask)
    direction = torch.from_numpy(rng.standard_normal(graph.allowed.shape))
    singles = [
        torch.zeros_like(mask).index_put((torch.tensor(s), torch.tensor(r)), torch.tensor(1.0).double())
        for s, r in some(graph, rng)
    ]
    for nudge in [direction, *singles]:
        with torch.no_grad():
            expected = (loss(mask + 1e-5 * nudge) - loss(mask - 1e-5 * nudge)) / 2e-5
        assert float((gradient * nudge).sum()) == pytest.approx(float(expected), rel=1e-5, abs=1e-7)
    assert float(gradient[torch.from_numpy(~graph.allowed)].abs().max()) == 0


def some(graph: Any, rng: np.random.Generator) -> list[tuple[int, int]]:
    edges = np.argwhere(graph.allowed)
    return [(int(s), int(r)) for s, r in edges[rng.choice(len(edges), 6, replace=False)]]


# ------------------------------------------------------------------ what it finds


@pytest.mark.parametrize("seed", [0, 1])
def test_the_edges_that_can_matter_are_found(seed: int) -> None:
    model, prompts = cut_model(), random_prompts(101, 8, 5, seed=6)
    assert list(edge_pruning(model, prompts.task, edges=10, steps=150, seed=seed).top(10).edges) == sorted(
        KNOWN, key=model.graph.index
    )


@pytest.mark.slow
def test_better_than_attribution_and_chance_on_ioi() -> None:
    assert kl_by_others(16, partial(edge_pruning, steps=150)) < 0.8


def test_any_number_of_edges_under_any_ablation(tiny: Tiny) -> None:
    for edges, ablation in ((1, "resample"), (20, "mean"), (len(tiny.model.graph), "zero")):
        scores = edge_pruning(tiny.model, tiny.prompts.task, edges=edges, ablation=ablation, steps=3)
        assert len(scores.top(edges)) == edges
        assert scores.values[scores.graph.allowed].min() > 0
        assert scores.values.max() <= 1


def test_another_metric_is_matched_not_driven_up() -> None:
    """The circuit's logit difference shall be the model's: neither less nor more."""
    model, prompts = cut_model(), random_prompts(101, 8, 5, seed=6)
    scores = edge_pruning(model, prompts.task, edges=10, steps=150, metric="logit_diff")
    assert list(scores.top(10).edges) == sorted(KNOWN, key=model.graph.index)


def test_the_number_of_open_gates_becomes_the_wanted_one(gpt2: Tiny) -> None:
    scores = edge_pruning(gpt2.model, gpt2.prompts.task, edges=60, steps=200)
    assert scores.values.sum() == pytest.approx(60, rel=0.25)


def test_twice_the_same_bytes_and_another_draw(llama: Tiny, tmp_path: Any) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        edge_pruning(llama.model, llama.prompts.task, edges=30, steps=5, seed=seed).save(
            tmp_path / f"{name}.safetensors"
        )
    a, b, c = ((tmp_path / f"{name}.safetensors").read_bytes() for name in "abc")
    assert a == b != c


def test_batches_do_not_matter(llama: Tiny) -> None:
    whole, parts = (
        edge_pruning(llama.model, llama.prompts.task, edges=30, steps=5, batch_size=size)
        for size in (None, 2)
    )
    np.testing.assert_allclose(whole.values, parts.values, atol=1e-4)


def test_progress_counts_steps(gpt2: Tiny) -> None:
    seen: list[tuple[int, int]] = []
    edge_pruning(gpt2.model, gpt2.prompts.task, edges=5, steps=3, progress=lambda *now: seen.append(now))
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"edges": 0}, "edges must be a whole number from 1 to"),
        ({"edges": 10**6}, "edges must be a whole number from 1 to"),
        ({"edges": 5, "steps": 0}, "steps must be at least 1, not 0"),
        ({"edges": 5, "metric": "accuracy"}, "'accuracy' has no gradient"),
        ({"edges": 5, "metric": "nonsense"}, "no metric 'nonsense'"),
    ],
)
def test_what_is_refused(gpt2: Tiny, options: dict[str, Any], message: str) -> None:
    with pytest.raises(cd.CircuitDiscoveryError, match=message):
        edge_pruning(gpt2.model, gpt2.prompts.task, **options)
