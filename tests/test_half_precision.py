"""In a half precision too: KL of the full circuit is 0, and metrics are sums in float32 or better."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_families import CASES, config_of
from tiny import Tiny, random_model, random_prompts, tiny_config

import circuitdiscovery as cd
from circuitdiscovery.engine.ablation import on_demand
from circuitdiscovery.engine.metrics import Metric, bind, by_rows, kl_from
from circuitdiscovery.engine.relaxed import Relaxed
from circuitdiscovery.engine.setup import Setup
from circuitdiscovery.explanation.interventions import Trials
from circuitdiscovery.features.dictionary import Dictionary
from circuitdiscovery.measure.evaluator import Evaluator
from circuitdiscovery.measure.work import Work
from circuitdiscovery.model.norm import Norm
from circuitdiscovery.registry import METRICS
from circuitdiscovery.search import edge_pruning, hybrid, matryoshka
from circuitdiscovery.search.alternatives import cases
from circuitdiscovery.search.trace_back import trace_back

DTYPES = ("float64", "float32", "bfloat16", "float16")


def evaluator_of(model: Any, task: Any, **options: Any) -> Evaluator:
    setting = {"metric": "logit_diff", "batch_size": 3} | options
    return Evaluator.build(Setup.of(model, task, model.graph, **setting))


@pytest.mark.parametrize("direction", ["noising", "denoising"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["gpt2", "llama", "neox_parallel", "toy"])
def test_kl_of_the_full_circuit_is_0(
    name: str, dtype: str, direction: str, tinies: Callable[[str], Tiny]
) -> None:
    """On each row, as what is measured beside KL and as the metric, whatever is measured with it, and as a
    circuit with every edge that matters, which another run computes."""
    model = cd.load_model(tinies(name).folder, dtype=dtype)
    task = cd.load_task("ioi", model, examples=6) if name == "toy" else random_prompts(101, 6).task
    full, empty = cd.Circuit.full(model.graph), cd.Circuit.empty(model.graph)
    head = full.without(["a1.h2"])
    evaluator = evaluator_of(model, task, metric="kl_divergence", direction=direction)
    evaluator.measure([head.mask, full.mask, empty.mask], full.mask)
    for what in ("kl", "metric"):
        assert abs(evaluator.values(full.mask, what)).max() < 1e-6
        assert (
            evaluator.values(empty.mask, what).min() > -1e-6
            and evaluator.values(empty.mask, what).max() > 0.01
        )
    assert evaluator.values(full.mask, "agreement").min() == 1


@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_evaluate_gives_the_full_circuit_a_kl_of_0(gpt2: Tiny, ablation: str) -> None:
    """The replacements that are added and taken away again round, which the reference does too."""
    model = cd.load_model(gpt2.folder, dtype="bfloat16")
    found = cd.evaluate(
        model, gpt2.prompts.task, cd.Circuit.full(model.graph), ablation=ablation, effort="quick"
    )
    assert abs(float(found.kl)) < 1e-6 and float(found.agreement) == 1
    assert float(found.faithfulness) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_metrics_are_computed_in_float32(gpt2: Tiny, dtype: torch.dtype) -> None:
    """What they give is what they give of the same logits in float64, to
    float32's rounding; a metric of one's own too.
    """
    task = gpt2.prompts.task
    batch = next(iter(task.batches(8)))
    logits = (3 * torch.randn(2, len(task), 101, generator=torch.Generator().manual_seed(1))).to(dtype)

    def entropy(x: torch.Tensor, part: Any) -> torch.Tensor:
        assert x.dtype in (torch.float32, torch.float64)
        return -(x.softmax(-1) * x.log_softmax(-1)).sum(-1)

    alone = [name for name, known in METRICS.items() if not known.divergence]
    for metric in (*alone, Metric("entropy", entropy)):
        bound = bind(metric, gpt2.model, task)
        torch.testing.assert_close(
            bound(logits, batch).double(), bound(logits.double(), batch).double(), atol=2e-6, rtol=0
        )
    torch.testing.assert_close(
        kl_from(logits[0], logits[1]).double(),
        kl_from(logits[0].double(), logits[1].double()),
        atol=5e-6,
        rtol=0,
    )
    assert kl_from(logits[0], logits[0]).abs().max() < 1e-6


# ------------------------------------------------------------------ searches with KL


def unchanged(task: Any) -> Any:
    """Every row against itself: whatever is removed is replaced by itself."""
    return replace(task, examples=tuple(replace(e, corrupted=e.clean) for e in task.examples), held_out=None)


KL_SEARCHES: dict[str, Callable[[Any, Any], Any]] = {
    "exact": lambda model, task: cd.exact(model, task).values,
    "exact, denoising": lambda model, task: cd.exact(model, task, direction="denoising").values,
    "trace_back": lambda model, task: np.array(len(trace_back(model, task, threshold=1e-6))),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", list(KL_SEARCHES))
def test_removing_nothing_does_no_damage(name: str, dtype: str) -> None:
    """Where each source of a receiver is replaced by itself; and KL
    sees what is removed from other prompts."""
    model = cd.load_model("toy", dtype=dtype)
    task = replace(cd.load_task("ioi", model, examples=1), held_out=None)
    assert abs(KL_SEARCHES[name](model, unchanged(task))).max() < 1e-6
    assert abs(KL_SEARCHES[name](model, task)).max() > 0.01


@pytest.mark.parametrize("direction", ["noising", "denoising"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kl_of_a_search_is_from_its_own_run(dtype: str, direction: str) -> None:
    """The full circuit's is 0 on each row, by the same forward that other circuits go through."""
    model = cd.load_model("toy", dtype=dtype)
    task = cd.load_task("ioi", model, examples=6)
    how: dict[str, Any] = {
        "direction": direction,
        "ablation": "mean" if direction == "noising" else "resample",
    }
    found, full = cases(Setup.of(model, task, model.graph, **how, batch_size=4))
    metric = bind("kl_divergence", model, task, plain=False).against(by_rows(full))
    for case in found:
        logits = case.patched.logits(model.graph.allowed if direction == "noising" else ~model.graph.allowed)
        assert metric(logits, case.batch).abs().max() < 1e-6


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_losses_that_are_learnt_by_are_from_their_own_runs(dtype: str) -> None:
    """A circuit of every edge has none, but for what a relaxed run rounds elsewhere."""
    model = cd.load_model("toy", dtype=dtype)
    task = cd.load_task("ioi", model, examples=16)
    setup = Setup.of(model, task, metric="kl_divergence")
    # learns only: from a plain run
    search = matryoshka._Search.build(setup, len(task))
    assert abs(search.loss_apart(torch.ones(len(model.graph)))) < (1e-6 if dtype == "float32" else 2e-4)
    assert search.loss_apart(torch.zeros(len(model.graph))) > 0.01
    found, full = cases(setup)
    loss = hybrid._Loss.of(setup, found, full)
    assert abs(loss([case.patched.logits(model.graph.allowed)[None] for case in found])).max() < 1e-6
    distance = edge_pruning.distance_to(full, setup.metric)
    assert distance(found[0].patched.logits(model.graph.allowed), found[0].batch).abs().max() < 1e-6


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_explained_is_from_its_own_run(dtype: str) -> None:
    model = cd.load_model("toy", dtype=dtype)
    task = cd.load_task("ioi", model, examples=6)
    rows = tuple(range(6))
    metric, ablation = bind("kl_divergence", model, task, plain=False), on_demand(model, task, "resample")
    found = Trials(model, model.graph, task, rows, metric, ablation, None, Work(None, 1.0)).ablate(["m0"], [])
    assert abs(found.full) < 1e-6 and found.nodes["m0"] > 0.01


# ------------------------------------------------------------------ streams that are large

# what is made so many times as large, for a norm to take that away again: in OLMo 2 only what is written
# before one, as its MLPs read the stream itself
WRITERS = ("wte", "wpe", "c_proj", "embed_tokens", "o_proj", "down_proj")
LATER = ("post_attention_layernorm", "post_feedforward_layernorm")  # in Gemma 2, of what is written


def scaled(name: str, by: float) -> Any:
    """A model that computes the same with numbers that are so many times as large."""
    config = tiny_config(name) if name == "gpt2" else config_of(*CASES[name])
    config.tie_word_embeddings = False
    hf = random_model(config)
    writers = WRITERS[-2:] if name == "olmo2" else WRITERS
    with torch.no_grad():
        for key, weight in hf.named_parameters():
            if any(each in key for each in writers):
                weight.mul_(by)
            if name == "gemma2" and any(each in key for each in LATER):
                weight.copy_(by * (1 + weight) - 1)
    return hf


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["gpt2", "qwen3", "gemma2", "olmo2"])
def test_a_large_stream_is_attributed_and_relaxed_as_in_float32(name: str, dtype: str) -> None:
    """Trained models have activations in the thousands; the square of 256 is infinite in float16."""
    hf, task = scaled(name, 60.0), random_prompts(101, 6).task
    precise, half = (cd.load_model((hf, None), dtype=each) for each in ("float32", dtype))
    allowed = precise.graph.allowed

    def relaxed(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
        ((_, patched),) = Setup.of(model, task).patched_runs()
        seen: list[torch.Tensor] = []

        def loss(logits: torch.Tensor) -> torch.Tensor:
            seen.append(logits.detach().float())
            return (logits[:, 1] - logits[:, 2]).float().sum()

        mask = 0.8 * torch.tensor(allowed).to(model.dtype)
        _, gradient = Relaxed.build(model, model.graph).gradient(patched, mask, loss)
        return seen[0], gradient.float()

    kinds: list[Callable[[Any], Any]] = [
        lambda model: torch.tensor(cd.eap(model, task).values[allowed]).float(),
        lambda model: relaxed(model)[0],
        lambda model: relaxed(model)[1][torch.tensor(allowed)],
    ]
    for kind in kinds:
        expected, found = kind(precise), kind(half)
        error = (found - expected).abs().max() / expected.abs().max()
        assert error < (0.02 if dtype == "float16" else 0.15)


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_a_norm_divides_large_streams_in_float16(kind: Any) -> None:
    """The shares of terms, and what a change of the stream changes, are the derivative in float64."""
    draw = torch.Generator().manual_seed(0)
    stream, change = (
        5000 * torch.randn(2, 64, generator=draw).half(),
        300 * torch.randn(2, 64, generator=draw).half(),
    )
    weight = 1 + torch.rand(64, generator=draw).half()
    norm, precise = (Norm(w, None, 1e-6, kind) for w in (weight, weight.double()))
    _, expected = torch.autograd.functional.jvp(precise, stream.double(), change.double())
    pairs: list[tuple[torch.Tensor, Any]] = [
        (norm.push(stream, change), expected),
        (norm.share(stream, stream), precise(stream.double())),
    ]
    for found, goal in pairs:
        assert found.dtype == torch.float16
        torch.testing.assert_close(found.double(), goal, atol=1e-3 * float(goal.abs().max()), rtol=2e-3)


def test_a_dictionary_is_one_in_its_own_precision_everywhere() -> None:
    """Beside a dimension that is much larger than the others, rounding would make other features active."""
    network = random_model(tiny_config("gpt2"))
    with torch.no_grad():
        network.transformer.h[1].mlp.c_proj.bias[7] = 300.0
    model = cd.load_model((network, None), dtype="bfloat16")
    prompts = random_prompts(101, 4, 6)
    rows, task = prompts.clean.tolist(), prompts.task
    acts = cd.features.activations(model, rows, "m1", position="all")
    encoder = torch.randn(24, 32, generator=torch.Generator().manual_seed(0))
    bias = -encoder @ acts.values.float().mean(0)
    sae = Dictionary("relu", "m1", "output", encoder, bias, encoder / 32, acts.values.float().mean(0))
    expected = (acts.values.float() @ encoder.T + bias).relu()

    alone = cd.features.top_activations(model, sae[3], rows)
    together = cd.features.top_activations(model, [sae[3], sae[5]], rows)
    for found, number in ((alone, 3), *zip(together, (3, 5), strict=True)):
        assert found.high == pytest.approx(float(expected[:, number].max()), rel=1e-4)
        assert found.zero == float((expected[:, number] == 0).double().mean())

    written = sae.decode(sae.encode(acts.values))
    assert written.dtype == torch.float32 and torch.equal(sae.written(acts.values), written)

    def edit(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[:, :1], written.to(x.dtype).view(4, 5, 32)], 1)

    plain, edited = (
        cd.features.run(model, rows, edits=edits).values("logits")[:, 1:].float().log_softmax(-1)
        for edits in ({}, {"m1": edit})
    )
    kl = (plain.exp() * (plain - edited)).sum(-1).mean()
    found = cd.features.evaluate_sae(sae, acts, model=model, baselines=False)
    assert found.kl_reconstruction is not None
    assert float(found.kl_reconstruction) == pytest.approx(float(kl), rel=1e-3)

    graph = cd.split(model, {"m1": sae}, task=task)
    every = (rows, prompts.corrupted.tolist())
    active = torch.stack(
        [sae.encode(cd.features.run(model, each).values("m1")).flatten(0, 1).amax(0) > 0 for each in every]
    )
    names = [f"m1/f{number}" for number in active.any(0).nonzero()[:, 0].tolist()]
    assert list(graph.parts("m1")[:-1]) == names
    found = cd.explain(model, task, cd.Circuit.full(graph), nodes=[names[0]], effort="quick")
    assert found.cards[names[0]].units[0].name == names[0]
