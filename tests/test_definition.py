"""The fast engine is the definition, on random masks, for every architecture and every
ablation; and what follows from the definition.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from fixture import random_masks
from reference import honest_float64
from tiny import Tiny, random_model, random_prompts, save_tiny, tiny_config
from torch import Tensor

import circuitdiscovery as cd
from circuitdiscovery.engine.definition import masked_logits
from circuitdiscovery.engine.setup import Setup
from circuitdiscovery.registry import ABLATIONS


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)


def defined(graph: cd.Graph, patched_run: Any, mask: Tensor) -> Tensor:
    """The definition's logits of one batch."""
    return masked_logits(
        patched_run.model, graph, patched_run.start, patched_run.replacement, patched_run.position, mask
    )


def numbers(mask: np.ndarray) -> Tensor:
    return torch.tensor(mask, dtype=torch.float64)


@pytest.fixture
def precise(tiny: Tiny) -> cd.Model:
    """Each architecture in float64."""
    return tiny.model64


# no ablation enters denoising: one of them stands for all
WAYS = [*((ablation, "noising") for ablation in ABLATIONS), ("resample", "denoising")]


@pytest.mark.parametrize(("ablation", "direction"), WAYS)
def test_the_fast_forward_is_the_definition(
    precise: cd.Model, tiny: Tiny, ablation: str, direction: str
) -> None:
    graph = precise.graph
    for _, patched_run in Setup.of(
        precise, tiny.prompts.task, graph, ablation=ablation, direction=direction
    ).patched_runs():
        for mask in [graph.allowed, graph.allowed & False, *random_masks(graph, 3, seed=3)]:
            close(patched_run.logits(mask), defined(graph, patched_run, numbers(mask)))


def test_denoising_takes_no_ablation(gpt2: Tiny) -> None:
    """Its replacements are the clean run's: what names another ablation would be labelled with it."""
    model, task, circuit = gpt2.model, gpt2.prompts.task, cd.Circuit.full(gpt2.model.graph)
    how: dict[str, Any] = {"direction": "denoising"}
    calls: dict[str, Callable[[Any], Any]] = {
        "run_circuit": lambda ablation: cd.run_circuit(model, task, circuit, ablation=ablation, **how),
        "evaluate": lambda ablation: cd.evaluate(model, task, circuit, ablation=ablation, **how),
        "curve": lambda ablation: cd.curve(model, task, cd.eap(model, task), ablation=ablation, **how),
        "eap": lambda ablation: cd.eap(model, task, ablation=ablation, **how),
        "exact": lambda ablation: cd.exact(model, task, ablation=ablation, **how),
        "transfer": lambda ablation: cd.universality.transfer(
            {"own": (model, circuit)}, task, ablation=ablation, **how
        ),
        "checkpoints": lambda ablation: cd.universality.checkpoints(
            {0: model}, circuit, task, ablation=ablation, **how
        ),
    }
    for ablation in {*ABLATIONS} - {"resample"}:
        with pytest.raises(
            cd.CircuitDiscoveryError, match=f"no ablation but resample, .* '{ablation}' is for"
        ):
            calls["run_circuit"](ablation)
    for call in calls.values():
        for ablation in ("zeros", cd.replacements(model, task, ablation="mean")):
            with pytest.raises(cd.CircuitDiscoveryError, match="denoising takes no ablation but resample"):
                call(ablation)
    own = cd.replacements(model, task)
    assert torch.equal(calls["run_circuit"](own), calls["run_circuit"]("resample"))


def test_with_every_edge_it_is_hugging_faces_model(precise: cd.Model, tiny: Tiny) -> None:
    for batch, patched_run in Setup.of(
        precise, tiny.prompts.task, precise.graph, ablation="resample"
    ).patched_runs():
        every = numbers(precise.graph.allowed)
        rows = torch.arange(len(batch))
        hf = copy.deepcopy(tiny.hf).double()
        with torch.no_grad(), honest_float64():
            for mask, tokens in ((every, batch.clean), (0 * every, batch.corrupted)):
                expected = hf(tokens).logits[rows, batch.position]
                torch.testing.assert_close(
                    defined(precise.graph, patched_run, mask), expected, atol=1e-6, rtol=1e-6
                )


def test_its_gradient_where_all_is_kept_is_attribution_patching(precise: cd.Model, tiny: Tiny) -> None:
    graph, task = precise.graph, tiny.prompts.task
    scores = cd.eap(precise, task, metric="logit_diff")
    total = torch.zeros(graph.allowed.shape, dtype=torch.float64)
    for batch, patched_run in Setup.of(precise, task, graph, ablation="resample").patched_runs():
        mask = numbers(graph.allowed).requires_grad_()
        logits, rows = defined(graph, patched_run, mask), torch.arange(len(batch))
        correct, incorrect = (logits[rows, answers[:, 0]] for answers in (batch.correct, batch.incorrect))
        total += torch.autograd.grad((correct - incorrect).sum(), mask)[0] / len(task)
    expected = torch.where(torch.tensor(graph.allowed), total, 0.0).numpy()
    np.testing.assert_allclose(scores.values, expected, atol=1e-6 * np.abs(expected).max(), rtol=1e-5)


def test_a_position_is_one_axis_more_of_the_mask(precise: cd.Model, tiny: Tiny) -> None:
    graph = precise.graph
    for _, patched_run in Setup.of(precise, tiny.prompts.task, graph, ablation="resample").patched_runs():
        length = patched_run.start.shape[1]
        (mask,) = random_masks(graph, 1, seed=5)
        flat = numbers(mask).requires_grad_()
        deep = numbers(mask)[..., None].repeat(1, 1, length).requires_grad_()
        logits, same = defined(graph, patched_run, flat), defined(graph, patched_run, deep)
        close(same, logits)
        (per_edge,), (per_position,) = (
            torch.autograd.grad(each[:, :5].square().sum(), of) for each, of in ((logits, flat), (same, deep))
        )
        torch.testing.assert_close(
            per_position.sum(-1), per_edge, atol=1e-9 * float(per_edge.abs().max()), rtol=1e-9
        )


# ------------------------------------------------------------------ attention alone


def without_mlps(model: cd.Model) -> cd.Model:
    """The same model with attention alone."""
    blocks = tuple(
        replace(block, W_in=None, b_in=None, W_gate=None, b_gate=None, W_out=None, b_out=None)
        for block in model.blocks
    )
    return replace(model, blocks=blocks, graph=replace(model.graph, has_mlp=False), digest="0" * 64)


def silent_mlps(model: cd.Model) -> cd.Model:
    """A model whose MLPs write 0, which is the same function."""
    blocks = []
    for block in model.blocks:
        assert block.W_out is not None
        silent = {"W_out": torch.zeros_like(block.W_out), "b_out": None}
        blocks.append(replace(block, **silent))
    return replace(model, blocks=tuple(blocks), digest="1" * 64)


@pytest.fixture(params=["gpt2", "llama", "neox_parallel"])
def two(request: pytest.FixtureRequest, tinies: Callable[[str], Tiny]) -> tuple[cd.Model, cd.Model, Any]:
    """(attention alone, the same with MLPs that write 0, a task)."""
    tiny = tinies(request.param)
    model = tiny.model64
    return without_mlps(model), silent_mlps(model), tiny.prompts.task


def same_edges(short: cd.Graph, long: cd.Graph, values: np.ndarray) -> np.ndarray:
    """[S, R] of the graph with MLPs -> those of the graph without."""
    rows = [long.source_index[name] for name in short.sources]
    columns = [long.receiver_index[name] for name in short.receivers]
    return values[np.ix_(rows, columns)]


def test_attention_alone_is_a_model_whose_mlps_write_nothing(two: tuple[cd.Model, cd.Model, Any]) -> None:
    model, silent, task = two
    assert not any(name[0] == "m" for name in model.graph.sources)
    for mask in random_masks(silent.graph, 4, seed=7):
        kept = same_edges(model.graph, silent.graph, mask)
        expected = cd.run_circuit(silent, task, cd.Circuit(silent.graph, mask))
        close(cd.run_circuit(model, task, cd.Circuit(model.graph, kept)), expected)
        for _, patched_run in Setup.of(model, task, model.graph, ablation="mean").patched_runs():
            close(patched_run.logits(kept), defined(model.graph, patched_run, numbers(kept)))


@pytest.mark.parametrize("search", [cd.eap, cd.eap_ig, cd.exact])
def test_searches_score_attention_alone_alike(
    two: tuple[cd.Model, cd.Model, Any], search: Callable[..., cd.Scores]
) -> None:
    model, silent, task = two
    expected = same_edges(model.graph, silent.graph, search(silent, task).values)
    np.testing.assert_allclose(search(model, task).values, expected, atol=1e-7 * np.abs(expected).max())


def test_everything_runs_on_attention_alone(two: tuple[cd.Model, cd.Model, Any]) -> None:
    model, silent, task = two
    circuit, other = cd.acdc(model, task, threshold=0.01), cd.acdc(silent, task, threshold=0.01)
    assert set(circuit.edges) == {
        edge for edge in other.edges if "m" not in edge.replace("logits", "")
    } and len(circuit)
    ours, theirs = (
        cd.evaluate(model, task, circuit, effort="quick"),
        cd.evaluate(silent, task, other, effort="quick"),
    )
    assert float(ours.circuit) == pytest.approx(float(theirs.circuit), rel=1e-6)
    ours, theirs = cd.explain(model, task, circuit).cards, cd.explain(silent, task, other).cards
    assert set(ours) == {node for node in theirs if node[0] != "m"}
    assert [float(card.effect) for card in ours.values()] == pytest.approx(
        [float(theirs[node].effect) for node in ours], rel=1e-6
    )
    assert (
        cd.hybrid(model, task, edges=4).graph
        == model.graph
        == cd.edge_pruning(model, task, edges=4, steps=2).graph
    )
    assert cd.matryoshka(model, task, edges=4, steps=2).values.max() > 0
    effects = dict(cd.path_patching(model, task).effects.items())
    assert effects.keys() == {node for node in cd.path_patching(silent, task).effects if node[0] != "m"}


# ------------------------------------------------------------------ windows


@pytest.mark.parametrize(("name", "changes"), [
    ("mistral", {"sliding_window": 4}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 2}),
])  # fmt: skip
def test_a_sliding_window_shorter_than_the_prompt(tmp_path: Any, name: str, changes: dict[str, Any]) -> None:
    from transformers import AutoModelForCausalLM

    folder = save_tiny(tmp_path / name, name, **changes)
    model, prompts = cd.load_model(folder, dtype="float64"), random_prompts(101, 3, 12)
    assert {block.window for block in model.blocks} & {3, 4}
    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
    with torch.no_grad():
        expected = hf(prompts.task.batches().__next__().clean).logits[:, -1]
    torch.testing.assert_close(
        cd.run_circuit(model, prompts.task, cd.Circuit.full(model.graph)), expected, atol=1e-5, rtol=1e-3
    )
    for _, patched_run in Setup.of(model, prompts.task, model.graph, ablation="resample").patched_runs():
        for mask in random_masks(model.graph, 3, seed=9):
            close(patched_run.logits(mask), defined(model.graph, patched_run, numbers(mask)))


def test_a_model_that_does_not_say_which_layers_slide_is_refused() -> None:
    hf = random_model(tiny_config("qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=2))
    hf.config.layer_types = ["sliding_attention"]  # of three
    with pytest.raises(cd.CircuitDiscoveryError, match="each of its 3 layers"):
        cd.load_model(hf)
