"""Gates 1, 2, 3 and 6: any edge set under any ablation, against Hugging Face and the
slow reference on TransformerBridge's hooks.

Where edges are removed the reference runs in float64: it subtracts what a receiver no longer reads, and where
all is removed a norm would blow up what is left of that in float32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from fixture import Agreement, random_masks
from reference import carried, kl_divergence, logit_diff
from tiny import Prompts, Tiny, random_prompts
from torch import Tensor

import circuitdiscovery as cd

ABLATIONS = ("resample", "mean", "mean_all", "zero", "noise", "random")
DETERMINISTIC = ("resample", "mean", "mean_all", "zero")


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got.double(), expected.double(), atol=1e-4, rtol=0)


def hf_logits(tiny: Tiny, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return tiny.hf(tokens).logits[:, -1]


def only_batch(task: Any) -> Any:
    (batch,) = task.batches()
    return batch


# ------------------------------------------------------------------ gates 1 and 2


# no ablation enters denoising (test_definition.py): one of them stands for all
@pytest.mark.parametrize(
    ("ablation", "direction"), [*((each, "noising") for each in ABLATIONS), ("resample", "denoising")]
)
def test_gate_1_all_edges_are_the_model(any_model: Tiny, ablation: str, direction: str) -> None:
    prompts, model = any_model.prompts, any_model.model
    got = cd.run_circuit(
        model, prompts.task, cd.Circuit.full(model.graph), ablation=ablation, direction=direction
    )
    close(got, hf_logits(any_model, prompts.clean))
    close(got, any_model.reference.run(prompts.clean)[0][:, -1])


@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_gate_2_no_edge_is_the_corrupted_prompt(any_model: Tiny, direction: str) -> None:
    prompts, model = any_model.prompts, any_model.model
    got = cd.run_circuit(model, prompts.task, cd.Circuit.empty(model.graph), direction=direction)
    close(got, hf_logits(any_model, prompts.corrupted))


# ------------------------------------------------------------------ gate 3


def test_the_graph_is_that_of_the_config(any_model: Tiny) -> None:
    assert cd.Graph.from_model(any_model.model) == any_model.reference.graph


@pytest.mark.parametrize("ablation", DETERMINISTIC)
def test_gate_3_replacements(any_model: Tiny, ablation: str) -> None:
    prompts = any_model.prompts
    alt = cd.replacements(any_model.model, prompts.task, ablation=ablation)
    close(alt.rows(only_batch(prompts.task)), carried(any_model.reference64, ablation, prompts.corrupted))


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_gate_3_random_masks(any_model: Tiny, ablation: str) -> None:
    prompts, model, reference = any_model.prompts, any_model.model, any_model.reference64
    alt = cd.replacements(model, prompts.task, ablation=ablation)
    replacement = alt.rows(only_batch(prompts.task))
    for mask in random_masks(model.graph, 4, seed=1):
        expected = reference.circuit(prompts.clean, prompts.corrupted, mask, replacement)
        for given in (alt, ablation):
            close(
                cd.run_circuit(model, prompts.task, cd.Circuit(model.graph, mask), ablation=given), expected
            )


def test_gate_3_random_masks_denoising(any_model: Tiny) -> None:
    prompts, model, reference = any_model.prompts, any_model.model, any_model.reference64
    for mask in random_masks(model.graph, 4, seed=2):
        expected = reference.circuit(
            prompts.clean, prompts.corrupted, mask, torch.empty(0), direction="denoising"
        )
        close(
            cd.run_circuit(model, prompts.task, cd.Circuit(model.graph, mask), direction="denoising"),
            expected,
        )


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_gate_3_nothing_kept(tiny: Tiny, ablation: str) -> None:
    """Every receiver reads replacements only; the logits are those of the replaced stream."""
    prompts, model, reference = tiny.prompts, tiny.model, tiny.reference64
    alt = cd.replacements(model, prompts.task, ablation=ablation)
    replacement = alt.rows(only_batch(prompts.task))
    expected = reference.circuit(
        prompts.clean, prompts.corrupted, np.zeros_like(model.graph.allowed), replacement
    )
    close(cd.run_circuit(model, prompts.task, cd.Circuit.empty(model.graph), ablation=alt), expected)


@pytest.mark.parametrize("ablation", ["resample", "mean", "zero"])
def test_gate_3_sparse_circuits(tiny: Tiny, ablation: str) -> None:
    """Few edges, so that whole heads are dead, or read replacements only."""
    prompts, model, reference = tiny.prompts, tiny.model, tiny.reference64
    alt = cd.replacements(model, prompts.task, ablation=ablation)
    replacement = alt.rows(only_batch(prompts.task))
    rng = np.random.default_rng(3)
    for n in (1, 2, 5, 12, 25):
        circuit = cd.Circuit.from_edges(model.graph, rng.choice(model.graph.edges, n, replace=False).tolist())
        close(
            cd.run_circuit(model, prompts.task, circuit, ablation=alt),
            reference.circuit(prompts.clean, prompts.corrupted, circuit.mask, replacement),
        )


def test_gate_3_each_edge_alone(gpt2: Tiny, llama: Tiny) -> None:
    """One edge removed, and one edge kept, for edges into every kind of receiver."""
    for tiny in (gpt2, llama):
        prompts, model, reference = tiny.prompts, tiny.model, tiny.reference64
        replacement = carried(reference, "mean", prompts.corrupted)
        for receiver in model.graph.receivers[::2]:
            mask = model.graph.mask([f"input->{receiver}"])
            for kept in (mask, model.graph.allowed & ~mask):
                expected = reference.circuit(prompts.clean, prompts.corrupted, kept, replacement)
                close(
                    cd.run_circuit(model, prompts.task, cd.Circuit(model.graph, kept), ablation="mean"),
                    expected,
                )


@pytest.mark.parametrize("name", ["gpt2", "neox_parallel", "neox_serial"])
@pytest.mark.parametrize("ablation", ["resample", "mean"])
def test_gate_3_merged_receivers(tinies: Any, name: str, ablation: str) -> None:
    tiny = tinies(name)
    prompts, model = tiny.prompts, tiny.model
    graph = cd.Graph.from_model(model, split_qkv=False)
    reference = tiny.reference64.with_graph(graph)
    replacement = carried(reference, ablation, prompts.corrupted)
    for mask in random_masks(graph, 4, seed=4):
        expected = reference.circuit(prompts.clean, prompts.corrupted, mask, replacement)
        close(cd.run_circuit(model, prompts.task, cd.Circuit(graph, mask), ablation=ablation), expected)


def test_merged_receivers_are_the_split_ones_together(gpt2: Tiny) -> None:
    model, prompts = gpt2.model, gpt2.prompts
    merged = cd.Graph.from_model(model, split_qkv=False)
    edges = ["input->a0.h1", "a0.h2->a1.h0", "m0->a2.h3", "a1.h0->logits", "input->logits"]
    split = [f"{e}<{x}>" for e in edges[:3] for x in "qkv"] + edges[3:]
    close(
        cd.run_circuit(model, prompts.task, cd.Circuit.from_edges(merged, edges)),
        cd.run_circuit(model, prompts.task, cd.Circuit.from_edges(model.graph, split)),
    )


def test_float64_is_the_reference_to_rounding(tinies: Any) -> None:
    for name in ("gpt2", "llama_biased", "neox_parallel"):
        tiny = tinies(name)
        prompts, model, reference = (
            tiny.prompts,
            tiny.model64,
            tiny.reference64,
        )
        replacement = carried(reference, "resample", prompts.corrupted)
        mask = random_masks(model.graph, 3, seed=5)[1]
        got = cd.run_circuit(model, prompts.task, cd.Circuit(model.graph, mask))
        torch.testing.assert_close(
            got, reference.circuit(prompts.clean, prompts.corrupted, mask, replacement), atol=1e-6, rtol=0
        )


# ------------------------------------------------------------------ what the ablations mean


def test_noise_is_a_clean_run_with_gaussian_noise_on_the_embeddings(any_model: Tiny) -> None:
    """The noise is read off `input`; the other sources must be those
    of the reference's run with that noise."""
    prompts, reference = any_model.prompts, any_model.reference
    replacement = cd.replacements(any_model.model, prompts.task, ablation="noise", k=3.0).rows(
        only_batch(prompts.task)
    )
    noise = replacement[0] - reference.run(prompts.clean)[1][0]
    close(replacement, reference.run(prompts.clean, noise=noise)[1])
    sigma = any_model.hf.get_input_embeddings().weight.std().item() * any_model.model.embed_scale
    n = noise.numel()
    assert noise.mean().abs().item() < 5 * 3 * sigma / n**0.5
    assert noise.std().item() == pytest.approx(3 * sigma, rel=4 / (2 * n) ** 0.5)
    assert noise.abs().max() > 2.5 * 3 * sigma  # Gaussian: among hundreds of draws some are far out
    assert len({row.numpy().tobytes() for row in noise}) == len(prompts)


def test_noise_scales_with_k_and_depends_on_the_seed(gpt2: Tiny) -> None:
    task, batch = gpt2.prompts.task, only_batch(gpt2.prompts.task)

    def noise(**options: Any) -> Tensor:
        return cd.replacements(gpt2.model, task, ablation="noise", **options).rows(batch)[0] - clean

    clean = gpt2.reference.run(gpt2.prompts.clean)[1][0]
    close(noise(k=1.0) * 3, noise(k=3.0))
    assert torch.equal(noise(seed=1), noise(seed=1))
    assert not torch.allclose(noise(seed=1), noise(seed=2), atol=0.1)


def test_random_has_the_mean_and_variance_of_the_reference(gpt2: Tiny) -> None:
    """2,000 examples of two tokens, standardised with the statistics of 40
    reference prompts, are standard Gaussians.
    """
    pairs = random_prompts(101, 2000, 2, seed=7)
    corrupted = random_prompts(101, 40, 2, seed=8).corrupted
    given = cd.replacements(gpt2.model, pairs.task, ablation="random", reference=corrupted)
    draws = torch.cat([given.rows(batch) for batch in pairs.task.batches()], dim=1)  # [S, N, T, D]
    written = gpt2.reference.run(corrupted)[1]
    z = (draws - written.mean(1, keepdim=True)) / written.std(1, correction=0, keepdim=True)
    assert z.mean(1).abs().max() < 6 / 2000**0.5
    assert (z.std(1) - 1).abs().max() < 6 / 4000**0.5 + 1 / 40  # a variance over n - 1 would be right too
    assert z.flatten(1).corrcoef().fill_diagonal_(0).abs().max() < 0.03  # independent between sources
    between = z.permute(2, 0, 3, 1).reshape(2, -1)
    assert abs(between.corrcoef()[0, 1].item()) < 0.01  # and between positions
    assert z.abs().max() > 4


def test_random_is_one_seeded_draw(gpt2: Tiny) -> None:
    task, batch = gpt2.prompts.task, only_batch(gpt2.prompts.task)
    one, same, other = (
        cd.replacements(gpt2.model, task, ablation="random", seed=seed).rows(batch) for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.allclose(one, other, atol=0.1)


@pytest.mark.parametrize("ablation", ["mean", "mean_all"])
def test_means_are_over_the_given_reference(tiny: Tiny, ablation: str) -> None:
    other = random_prompts(101, 7, 6, seed=9).clean
    alt = cd.replacements(tiny.model, tiny.prompts.task, ablation=ablation, reference=other)
    written = tiny.reference64.run(other)[1]
    mean = (
        written.mean(1, keepdim=True)
        if ablation == "mean"
        else written.mean((1, 2), keepdim=True).expand(-1, -1, 6, -1)
    )
    expected = mean.expand(-1, len(tiny.prompts), -1, -1)
    close(alt.rows(only_batch(tiny.prompts.task)), expected)


def test_mean_is_over_other_rows_of_the_same_template(gpt2: Tiny) -> None:
    """Of at least ten of them, else of the length."""
    templates = [0, 1] * 9 + [0, 0, 0, 2]
    prompts = random_prompts(101, len(templates), 5, seed=10)
    examples = [replace(e, template=t) for e, t in zip(prompts.task.examples, templates, strict=True)]
    task = replace(prompts.task, examples=tuple(examples))
    got = cd.replacements(gpt2.model, task, ablation="mean").rows(only_batch(task))
    written = gpt2.reference.run(prompts.corrupted)[1]
    for row, template in enumerate(templates):
        pooled = [i for i, other in enumerate(templates) if i != row and (template > 0 or other == template)]
        close(got[:, row], written[:, pooled].mean(1))


def mixed(n_each: int = 3) -> tuple[Any, list[Prompts]]:
    """A task of two lengths, interleaved, and its parts."""
    parts = [random_prompts(101, n_each, 4, seed=11), random_prompts(101, n_each, 7, seed=12)]
    columns: dict[str, list[Any]] = {}
    for key in Prompts.__dataclass_fields__:
        columns[key] = [
            row for pair in zip(*(getattr(part, key).tolist() for part in parts), strict=True) for row in pair
        ]
    return cd.Task.from_tokens(**columns), parts


@pytest.mark.parametrize("ablation", ["resample", "mean", "zero"])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_lengths_do_not_touch_each_other(tiny: Tiny, ablation: str, batch_size: int | None) -> None:
    task, parts = mixed()
    mask = random_masks(tiny.model.graph, 3, seed=6)[1]
    got = cd.run_circuit(
        tiny.model, task, cd.Circuit(tiny.model.graph, mask), ablation=ablation, batch_size=batch_size
    )
    for i, part in enumerate(parts):
        replacement = carried(tiny.reference64, ablation, part.corrupted)
        close(got[i::2], tiny.reference64.circuit(part.clean, part.corrupted, mask, replacement))


@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_the_answer_is_read_where_the_task_says(tiny: Tiny, direction: str) -> None:
    prompts, positions = tiny.prompts, [2, -1, 0, 3, -3]
    answers = {"correct": prompts.correct, "incorrect": prompts.incorrect}
    task = cd.Task.from_tokens(
        clean=prompts.clean, corrupted=prompts.corrupted, position=positions, **answers
    )
    graph, reference = tiny.model.graph, tiny.reference64
    mask = random_masks(graph, 3, seed=7)[1]
    if direction == "noising":
        expected = reference.patched(
            prompts.clean, carried(reference, "resample", prompts.corrupted), graph.allowed & ~mask
        )
    else:
        expected = reference.patched(prompts.corrupted, carried(reference, "resample", prompts.clean), mask)
    close(
        cd.run_circuit(tiny.model, task, cd.Circuit(graph, mask), direction=direction),
        expected[torch.arange(5), positions],
    )


@dataclass(frozen=True)
class Constant:
    """An ablation of one's own: every removed edge carries ones."""

    name: str = "ones"
    own_run: bool = False

    def rows(self, batch: Any) -> Tensor:
        return torch.ones(16, *batch.clean.shape, 32)


@dataclass(frozen=True)
class Given:
    """Replacements as they are."""

    values: Tensor
    name: str = "given"
    own_run: bool = False

    def rows(self, batch: Any) -> Tensor:
        return self.values


def test_what_nobody_reads_does_not_matter(tiny: Tiny) -> None:
    """Of the last layer's nodes only the answer's position is read: what
    they would write elsewhere may be anything.
    """
    prompts, model = tiny.prompts, tiny.model
    carried = cd.replacements(model, prompts.task).rows(only_batch(prompts.task))
    n_last = model.graph.n_heads + 1
    spoilt = carried.clone()
    spoilt[-n_last:, :, :-1] = torch.nan
    for mask in random_masks(model.graph, 3):
        circuit = cd.Circuit(model.graph, mask)
        expected = cd.run_circuit(model, prompts.task, circuit)
        torch.testing.assert_close(
            cd.run_circuit(model, prompts.task, circuit, ablation=Given(spoilt)), expected, atol=1e-5, rtol=0
        )


def test_an_ablation_of_ones_own(gpt2: Tiny) -> None:
    prompts, model = gpt2.prompts, gpt2.model
    mask = random_masks(model.graph, 3, seed=8)[1]
    ones = torch.ones(len(model.graph.sources), *prompts.clean.shape, 32)
    expected = gpt2.reference.circuit(prompts.clean, prompts.corrupted, mask, ones)
    close(cd.run_circuit(model, prompts.task, cd.Circuit(model.graph, mask), ablation=Constant()), expected)


# ------------------------------------------------------------------ gate 6, the fixture, and what is refused


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_gate_6_twice_the_same_bytes(llama: Tiny, ablation: str) -> None:
    circuit = cd.Circuit(llama.model.graph, random_masks(llama.model.graph, 3, seed=9)[1])
    first, second = (
        cd.run_circuit(llama.model, llama.prompts.task, circuit, ablation=ablation) for _ in range(2)
    )
    assert first.numpy().tobytes() == second.numpy().tobytes()


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_batches_do_not_matter(gpt2: Tiny, ablation: str) -> None:
    circuit = cd.Circuit(gpt2.model.graph, random_masks(gpt2.model.graph, 3, seed=9)[1])
    whole, parts = (
        cd.run_circuit(gpt2.model, gpt2.prompts.task, circuit, ablation=ablation, batch_size=size)
        for size in (None, 2)
    )
    torch.testing.assert_close(whole, parts, atol=1e-5, rtol=0)


def test_the_fixtures_circuits(agreement: Agreement) -> None:
    prompts, model = agreement.prompts, agreement.tiny.model
    kl = kl_divergence(torch.tensor(agreement.results["last_position_logits"]["clean"]))
    for expected in agreement.results["circuits"]:
        logits = cd.run_circuit(model, prompts.task, cd.Circuit.from_edges(model.graph, expected["edges"]))
        close(logit_diff(prompts.correct, prompts.incorrect)(logits), torch.tensor(expected["logit_diff"]))
        close(kl(logits).float(), torch.tensor(expected["kl"]))


def test_running_a_circuit_changes_no_input(gpt2: Tiny) -> None:
    model, prompts = gpt2.model, gpt2.prompts
    alt = cd.replacements(model, prompts.task, ablation="resample")
    before = alt.rows(only_batch(prompts.task)).clone()
    mask = random_masks(model.graph, 3, seed=9)[1].copy()
    kept = mask.copy()
    cd.run_circuit(model, prompts.task, cd.Circuit(model.graph, mask), ablation=alt)
    cd.acdc(model, prompts.task, threshold=0.05, ablation=alt)
    cd.eap_ig(model, prompts.task, steps=2, ablation=alt)
    assert (mask == kept).all() and torch.equal(before, alt.rows(only_batch(prompts.task)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ablation": "men"}, "no ablation 'men'; did you mean 'mean'"),
        ({"direction": "nosing"}, "no direction 'nosing'; did you mean 'noising'"),
    ],
)
def test_unknown_options_are_refused(gpt2: Tiny, options: dict[str, Any], message: str) -> None:
    with pytest.raises(cd.CircuitDiscoveryError, match=message):
        cd.run_circuit(gpt2.model, gpt2.prompts.task, cd.Circuit.full(gpt2.model.graph), **options)


def test_a_circuit_of_another_shape_is_refused(gpt2: Tiny, llama: Tiny) -> None:
    with pytest.raises(cd.CircuitDiscoveryError):
        cd.run_circuit(gpt2.model, gpt2.prompts.task, cd.Circuit.full(llama.model.graph))


def test_replacements_of_other_prompts_are_refused(gpt2: Tiny) -> None:
    alt = cd.replacements(gpt2.model, gpt2.prompts.task)
    with pytest.raises(cd.CircuitDiscoveryError, match="other prompts"):
        cd.run_circuit(
            gpt2.model,
            random_prompts(101, 5, 6, seed=99).task,
            cd.Circuit.full(gpt2.model.graph),
            ablation=alt,
        )


def test_a_length_that_the_reference_lacks_is_refused(gpt2: Tiny) -> None:
    with pytest.raises(cd.CircuitDiscoveryError, match="tokens"):
        cd.replacements(
            gpt2.model, gpt2.prompts.task, ablation="mean", reference=random_prompts(101, 3, 4).clean
        )


def test_tokens_outside_the_vocabulary_are_refused(gpt2: Tiny) -> None:
    task = cd.Task.from_tokens(clean=[[1, 101]], corrupted=[[1, 2]], correct=[3], incorrect=[4])
    with pytest.raises(cd.CircuitDiscoveryError, match="101"):
        cd.run_circuit(gpt2.model, task, cd.Circuit.full(gpt2.model.graph))
    long = random_prompts(101, 2, 65)
    with pytest.raises(cd.CircuitDiscoveryError, match=r"65.*64"):
        cd.run_circuit(gpt2.model, long.task, cd.Circuit.full(gpt2.model.graph))
