"""What all sources write in one tensor, in which parts that are a number times a vector are numbers: against the
sources written out."""

import numpy as np
import pytest
import torch

import circuitdiscovery as cd
from circuitdiscovery.engine.definition import masked_logits
from circuitdiscovery.engine.setup import Setup
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.graph.layout import Layout
from circuitdiscovery.model.packing import Packing, Written
from circuitdiscovery.model.run import plain_run
from circuitdiscovery.task.batch import Batch


@pytest.mark.parametrize("counts", [(1, 1), (3, 7), (4, 4), (9, 0), (2, 11)])
@pytest.mark.parametrize("at", [None, torch.tensor([2, 0])])
def test_sources_come_back(counts: tuple[int, int], at: torch.Tensor | None) -> None:
    """Two nodes of some scaled parts and one other each, after a node without any, in rows 4 wide: single sources
    and sums are those of the sources written out, as they were written and as they were taken from others."""
    width, examples, length = 4, 2, 3
    generator = torch.Generator().manual_seed(0)
    scaled = np.concatenate([[False], *([True] * count + [False] for count in counts)])
    packing = Packing(Layout(scaled), torch.randn(int(scaled.sum()), width, generator=generator))
    nodes = [slice(0, 1), slice(1, counts[0] + 2), slice(counts[0] + 2, len(scaled))]
    before = torch.randn(len(packing), examples, length, width, generator=generator)
    packed, dense = before.clone(), packing.dense(before).clone()
    for less in (False, True):
        for rows in nodes:
            _, which = packing.layout.split(rows)
            shape = (examples, length if at is None else 1)
            own = torch.randn(1, *shape, width, generator=generator)
            numbers = torch.randn(which.stop - which.start, *shape, generator=generator)
            written = Written(own, numbers, packing.vectors[which]) if len(numbers) else Written(own)
            packing.set(packed, rows, written, less, at)
            new = written.dense()
            if at is None:
                dense[rows] = dense[rows] - new if less else new
            else:
                there = rows, torch.arange(examples), at
                dense[there] = dense[there] - new[:, :, 0] if less else new[:, :, 0]
    assert len(packing) == 3 + -(-sum(counts) // width)
    torch.testing.assert_close(packing.dense(packed), dense)
    for rows in (*nodes, slice(1, len(scaled))):
        torch.testing.assert_close(packing.rows(packed, rows), dense[rows])
        torch.testing.assert_close(packing.sum(packed, rows), dense[rows].sum(0))
    some = np.array([len(scaled) - 1, 0, 1])
    torch.testing.assert_close(packing.rows(packed, some), dense[some])
    other = torch.randn(before.shape, generator=generator)
    for row in range(1, len(scaled), 2):
        packing.copy(packed, other, row)
        dense[row] = packing.dense(other)[row]
    torch.testing.assert_close(packing.dense(packed), dense)


def test_one_part_is_not_taken_for_a_row(toy: cd.Model) -> None:
    """One neuron's numbers take one row, so that there are as many rows as sources, in another order."""
    task = cd.load_task("ioi", toy, examples=4)
    graph = cd.split(toy, {"m1": [3]})
    given = cd.replacements(toy, task, graph=graph)
    batch = next(iter(task.batches()))
    assert len(given.packed(batch)) == len(graph.sources)
    neuron = given.rows(batch)[graph.source_index["m1/n3"]]
    column = toy.blocks[1].W_out
    assert column is not None
    along = neuron @ column[:, 3] / column[:, 3].square().sum()
    torch.testing.assert_close(neuron, along[..., None] * column[:, 3], atol=1e-5, rtol=1e-4)
    scores = [cd.eap(toy, task, graph=graph, ablation=each).values for each in ("resample", given)]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-6)
    ((_, patched),) = Setup.of(toy, task.select([0, 1]), graph).patched_runs()
    run = plain_run(toy, patched.start, patched.position, keep_sources=True, parts=patched.parts)
    assert run.sources is not None
    state = patched.clean_state(run.sources).difference[:, :, graph.source_index["m1/n3"]]
    own = (patched.parts.packing.dense(run.sources) - patched.carried(slice(None)))[
        graph.source_index["m1/n3"]
    ]
    torch.testing.assert_close(state, own)


@pytest.mark.parametrize("parts", [{"m1": [3, 4]}, {}])
def test_replacements_of_other_parts_are_refused(toy: cd.Model, parts: dict[str, list[int]]) -> None:
    """Of as many neurons, but others, and of none: of the neurons that are asked for nothing is known."""
    task = cd.load_task("ioi", toy, examples=4)
    given = cd.replacements(toy, task, graph=cd.split(toy, parts))
    graph = cd.split(toy, {"m1": [3, 5]})
    for search in (cd.eap, cd.exact):
        with pytest.raises(CircuitDiscoveryError, match="of a graph with other parts") as told:
            search(toy, task, graph=graph, ablation=given)
        assert "\n" not in str(told.value)


class Own:
    """Replacements of a user's own for every part, that are not its vector times a number."""

    name, own_run = "own", False

    def __init__(self, graph: Graph) -> None:
        self.count = len(graph.sources)

    def rows(self, batch: Batch) -> torch.Tensor:
        draws = torch.randn(
            self.count, 16, 128, generator=torch.Generator().manual_seed(1), dtype=torch.float64
        )
        return draws[:, None, : batch.clean.shape[1]].expand(-1, len(batch), -1, -1).clone()


def test_own_replacements_of_parts_stay_as_they_are() -> None:
    """A user's own may be any vectors: the engine's logits are the definition's with them, and EAP is the gradient
    of the definition."""
    model = cd.load_model("toy", dtype="float64")
    task = cd.load_task("ioi", model, examples=2)
    graph = cd.split(model, {"m1": [3, 4, 9], "m3": [1]})
    own = Own(graph)
    ((batch, patched),) = Setup.of(model, task, graph, ablation=own).patched_runs()
    mask = graph.allowed & (np.random.default_rng(0).random(graph.allowed.shape) < 0.5)
    real = torch.tensor(mask).double()
    expected = masked_logits(model, graph, patched.start, own.rows(batch), batch.position, real)
    torch.testing.assert_close(patched.logits(mask), expected, atol=1e-10, rtol=1e-10)
    ones = torch.tensor(graph.allowed).double().requires_grad_()
    logits = masked_logits(model, graph, patched.start, own.rows(batch), batch.position, ones)
    rows = torch.arange(len(batch))
    gap = (logits[rows, batch.correct[:, 0]] - logits[rows, batch.incorrect[:, 0]]).mean()
    (slow,) = torch.autograd.grad(gap, ones)
    found = cd.eap(model, task, graph=graph, ablation=own, metric="logit_diff").values
    np.testing.assert_allclose(found[graph.allowed], slow.numpy()[graph.allowed], atol=1e-10)


def test_edge_pruning_on_some_of_a_batch(toy: cd.Model) -> None:
    """Where a step takes some of a batch's examples, spans of positions are those of these examples."""
    task = cd.load_task("ioi", toy, examples=40)
    graph = cd.split(toy, {"input": "positions"}, task=task)
    scores = cd.edge_pruning(toy, task, edges=200, graph=graph, steps=3)
    assert np.isfinite(scores.values[graph.allowed]).all()
