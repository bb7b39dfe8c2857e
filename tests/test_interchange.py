"""Changes of a plain run, against runs of edge masks, which know nothing of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from test_explain import task_of
from tiny import Tiny
from torch import Tensor

import circuitdiscovery as cd
from circuitdiscovery.engine.ablation import run_sources
from circuitdiscovery.engine.fast import PatchedRun
from circuitdiscovery.explanation.interchange import Change, Plain, changed_logits, receivers
from circuitdiscovery.model.run import embed
from circuitdiscovery.task.batch import Batch
from circuitdiscovery.task.task import Task


def batch_of(tiny: Tiny, position: int | list[int] = -1) -> Batch:
    (batch,) = task_of(tiny, position=position).batches()
    return batch


def together(tiny: Tiny, batch: Batch, changes: Sequence[Change]) -> Tensor:
    """[M, N, vocabulary] of all changes, in their order."""
    plain = Plain.run(tiny.model, batch.clean)
    out = torch.zeros(len(changes), len(batch), tiny.model.vocab_size)
    for which, logits in changed_logits(plain, batch.position, changes):
        out[which] = logits
    return out


def masked(tiny: Tiny, batch: Batch, carried: Tensor, graph: cd.Graph, rows: Any, columns: Any) -> Tensor:
    """[N, vocabulary]: the whole model without some edges, which carry replacements."""
    mask = graph.allowed.copy()
    mask[rows, columns] = False
    return PatchedRun(
        tiny.model, graph, embed(tiny.model, batch.clean), carried, batch.position, False
    ).logits(mask)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-6 * float(expected.abs().max()) + 1e-5)


@pytest.mark.parametrize("position", [-1, [5, 3, 4, 2, 5]])
def test_a_nodes_change_is_that_all_its_edges_carry_another_run(
    tiny: Tiny, position: int | list[int]
) -> None:
    nodes_changes(tiny, position)


def test_a_heads_change_is_by_its_own_slope(tinies: Callable[[str], Tiny]) -> None:
    """BLOOM's heads do not differ by their weights alone."""
    nodes_changes(tinies("bloom"), [5, 3, 4, 2, 5])
    some_receivers_alone(tinies("bloom"), tinies("bloom").model.graph)


def nodes_changes(tiny: Tiny, position: int | list[int]) -> None:
    model, batch = tiny.model, batch_of(tiny, position)
    with torch.no_grad():
        carried, plain = run_sources(model, batch.corrupted), Plain.run(model, batch.clean)
        nodes = model.graph.sources[1:]
        found = together(tiny, batch, [plain.change(node, carried[row]) for row, node in enumerate(nodes, 1)])
        for row, logits in enumerate(found, 1):
            close(logits, masked(tiny, batch, carried, model.graph, row, slice(None)))
        close(plain.logits(batch.position), tiny.hf(batch.clean).logits[torch.arange(5), batch.position])


def test_some_receivers_alone_see_a_change(tiny: Tiny) -> None:
    """Queries, keys, values, MLPs and the logits, in layers before,
    between and after others that see it too."""
    some_receivers_alone(tiny, tiny.model.graph)


def test_merged_receivers_alone_see_a_change(gpt2: Tiny) -> None:
    some_receivers_alone(gpt2, cd.Graph.from_model(gpt2.model, split_qkv=False))


def some_receivers_alone(tiny: Tiny, graph: cd.Graph) -> None:
    model, batch, rng = tiny.model, batch_of(tiny), np.random.default_rng(0)
    with torch.no_grad():
        carried, plain = run_sources(model, batch.corrupted), Plain.run(model, batch.clean)
        cuts: list[tuple[int, list[int]]] = []
        for row in (1, 3, 5, 6, 10, 14):
            columns = np.flatnonzero(graph.allowed[row])
            cuts += [
                (row, [int(columns[-1])]),
                (row, sorted(rng.choice(columns, (len(columns) + 1) // 2, replace=False).tolist())),
            ]
            cuts += [(row, [column]) for column in columns.tolist()[:6]]
        changes = [
            Change(change.layer, change.after_mlp, change.difference, receivers(graph, columns))
            for row, columns in cuts
            for change in [plain.change(graph.sources[row], carried[row])]
        ]
        for (row, columns), logits in zip(cuts, together(tiny, batch, changes), strict=True):
            close(logits, masked(tiny, batch, carried, graph, row, columns))


@pytest.mark.parametrize("name", ["gpt2", "llama_biased", "neox_parallel", "bloom"])
def test_other_values_and_keys_are_another_runs(name: str, tinies: Callable[[str], Tiny]) -> None:
    """Of a group, where heads share them; keys at one position of each example."""
    tiny = tinies(name)
    model, batch = tiny.model, batch_of(tiny)
    graph, places = model.graph, torch.tensor([0, 2, 1, 3, 2])
    with torch.no_grad():
        carried, plain, other = (
            run_sources(model, batch.corrupted),
            Plain.run(model, batch.clean),
            Plain.run(model, batch.corrupted, 2),
        )
        there = run_sources(model, batch.clean)
        there[:, torch.arange(5), places] = carried[:, torch.arange(5), places]
        found = together(
            tiny, batch, [plain.changed_values("a1.h3", other), plain.changed_keys("a1.h3", other, places)]
        )
        group = 3 // (graph.n_heads // graph.n_kv_heads)
        for logits, values, letter in zip(found, (carried, there), "vk", strict=True):
            close(
                logits, masked(tiny, batch, values, graph, slice(None), int(graph.columns(1, letter)[group]))
            )


def test_pads_do_not_matter(llama: Tiny) -> None:
    """Three lengths in one batch, and few changes at once, as each example alone."""
    rows = [[5, 6, 7, 8, 9], [9, 10, 11], [12, 13, 14, 15]]
    task = Task.from_tokens(
        clean=rows, corrupted=[row[::-1] for row in rows], correct=[1, 2, 3], incorrect=[4, 5, 6]
    )
    (batch,) = task.batches(run_tokens=100)
    assert batch.padded
    with torch.no_grad():
        carried, plain = run_sources(llama.model, batch.corrupted), Plain.run(llama.model, batch.clean)
        nodes = ["a0.h1", "m0", "a1.h2", "m1", "a2.h0", "m2"]
        index = llama.model.graph.source_index
        with cd.memory_budget(1):  # one at a time
            found = together(llama, batch, [plain.change(node, carried[index[node]]) for node in nodes])
        for alone in task.batches():
            (row,), own = alone.rows.tolist(), run_sources(llama.model, alone.corrupted)
            where = batch.rows.tolist().index(row)
            for node, logits in zip(nodes, found, strict=True):
                close(logits[[where]], masked(llama, alone, own, llama.model.graph, index[node], slice(None)))
