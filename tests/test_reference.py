"""The slow reference is right: against Hugging Face, against itself, and
against two independent implementations.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fixture import ACDC_THRESHOLDS, Agreement, random_masks
from reference import acdc_order, carried, exact, integrated, kl_divergence, logit_diff, naive_damages
from tiny import Tiny


def test_keeping_every_edge_is_the_hugging_face_model(any_model: Tiny) -> None:
    reference, prompts = any_model.reference, any_model.prompts
    replacement = carried(reference, "resample", prompts.corrupted)
    with torch.no_grad():
        expected = any_model.hf(prompts.clean).logits[:, -1]
    got = reference.circuit(prompts.clean, prompts.corrupted, reference.graph.allowed, replacement)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(reference.run(prompts.clean)[0][:, -1], expected, atol=1e-4, rtol=0)


def test_keeping_no_edge_is_the_corrupted_prompt(any_model: Tiny) -> None:
    reference, prompts = any_model.reference, any_model.prompts
    replacement = carried(reference, "resample", prompts.corrupted)
    with torch.no_grad():
        expected = any_model.hf(prompts.corrupted).logits[:, -1]
    for direction in ("noising", "denoising"):
        got = reference.circuit(
            prompts.clean,
            prompts.corrupted,
            np.zeros_like(reference.graph.allowed),
            replacement,
            direction=direction,
        )
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


def test_every_parameter_of_the_tiny_models_matters(tiny: Tiny) -> None:
    for name, parameter in tiny.hf.named_parameters():
        assert parameter.std() > 0.1, name
    clean, corrupted = (
        tiny.reference.run(tokens)[0][:, -1] for tokens in (tiny.prompts.clean, tiny.prompts.corrupted)
    )
    assert (clean - corrupted).abs().mean() > 0.3


def test_the_sources_and_b_o_are_the_residual_stream(tiny: Tiny) -> None:
    graph, state = tiny.reference.graph, tiny.hf.state_dict()
    written = tiny.reference.run(tiny.prompts.clean)[1]
    with torch.no_grad():
        before_norm: list[torch.Tensor] = []
        norms = {"gpt2": "transformer.ln_f", "gpt_neox": "gpt_neox.final_layer_norm"}
        norm = tiny.hf.get_submodule(norms.get(tiny.hf.config.model_type, "model.norm"))
        handle = norm.register_forward_pre_hook(lambda module, args: before_norm.append(args[0]))
        tiny.hf(tiny.prompts.clean)
        handle.remove()
    output_biases = [
        v for k, v in state.items() if k.endswith(("attn.c_proj.bias", "o_proj.bias", "attention.dense.bias"))
    ]
    assert len(output_biases) in (0, graph.n_layers)
    nothing = torch.zeros_like(written)  # norms and all sum up from 0
    expected = tiny.reference.added(nothing, range(len(written)), written) + sum(output_biases)
    torch.testing.assert_close(before_norm[0], expected, atol=1e-4, rtol=0)


def test_one_edge_moves_the_logits_only_through_its_receiver(gpt2: Tiny) -> None:
    """The edge a2.h1->m2 changes what m2 writes, and nothing that is written before it."""
    reference, prompts = gpt2.reference, gpt2.prompts
    replacement = carried(reference, "resample", prompts.corrupted)
    moved = reference.graph.mask(["a2.h1->m2"])
    logits = reference.patched(prompts.clean, replacement, moved)
    clean_logits, clean_written = reference.run(prompts.clean)
    with torch.no_grad():
        block = gpt2.hf.transformer.h[2]
        resid_mid = clean_written[: reference.graph.source_index["m2"]].sum(0) + sum(
            b.attn.c_proj.bias for b in gpt2.hf.transformer.h
        )
        row = reference.graph.source_index["a2.h1"]
        m2 = block.mlp(block.ln_2(resid_mid + replacement[row] - clean_written[row]))
        final = resid_mid + m2
        expected = gpt2.hf.lm_head(gpt2.hf.transformer.ln_f(final))
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    assert (logits - clean_logits).abs().max() > 1e-2


def test_derivatives_are_those_of_autograd(gpt2: Tiny) -> None:
    """The derivative along input->logits is the gradient of the unembedding by hand."""
    reference, prompts = gpt2.reference64, gpt2.prompts
    replacement = carried(reference, "resample", prompts.corrupted)
    metric = logit_diff(prompts.correct, prompts.incorrect)
    got = integrated(reference, prompts.clean, replacement, ["m2->logits"], metric, [1.0])["m2->logits"]
    written = reference.run(prompts.clean)[1]
    final = (
        (written.sum(0) + sum(b.attn.c_proj.bias.double() for b in gpt2.hf.transformer.h))[:, -1]
        .detach()
        .requires_grad_()
    )
    norm, unembed = gpt2.hf.transformer.ln_f, gpt2.hf.lm_head
    x = torch.nn.functional.layer_norm(
        final, final.shape[-1:], norm.weight.double(), norm.bias.double(), norm.eps
    )
    metric(x @ unembed.weight.double().T).mean().backward()
    assert final.grad is not None
    expected = -((replacement - written)[reference.graph.source_index["m2"], :, -1] * final.grad).sum().item()
    assert got == pytest.approx(expected, rel=1e-6)


# ------------------------------------------------------------------ two independent implementations


def test_fixture_logits(agreement: Agreement) -> None:
    reference, prompts = agreement.tiny.reference, agreement.prompts
    for kind in ("clean", "corrupted"):
        expected = torch.tensor(agreement.results["last_position_logits"][kind])
        torch.testing.assert_close(
            reference.run(getattr(prompts, kind))[0][:, -1], expected, atol=1e-4, rtol=0
        )


def test_fixture_circuits(agreement: Agreement) -> None:
    reference, prompts = agreement.tiny.reference, agreement.prompts
    replacement = carried(reference, "resample", prompts.corrupted)
    kl = kl_divergence(reference.run(prompts.clean)[0][:, -1])
    for circuit in agreement.results["circuits"]:
        logits = reference.circuit(
            prompts.clean, prompts.corrupted, reference.graph.mask(circuit["edges"]), replacement
        )
        values = logit_diff(prompts.correct, prompts.incorrect)(logits)
        torch.testing.assert_close(values, torch.tensor(circuit["logit_diff"]), atol=1e-4, rtol=0)
        torch.testing.assert_close(kl(logits).float(), torch.tensor(circuit["kl"]), atol=1e-4, rtol=0)


def test_fixture_scores(agreement: Agreement) -> None:
    """A sample of edges under every score that the fixture has."""
    results, prompts, reference = agreement.results, agreement.prompts, agreement.tiny.reference64
    edges = [str(edge) for edge in np.random.default_rng(0).choice(reference.graph.edges, 8, replace=False)]
    replacement = carried(reference, "resample", prompts.corrupted)
    metric, kl = (
        logit_diff(prompts.correct, prompts.incorrect),
        kl_divergence(reference.run(prompts.clean)[0][:, -1]),
    )
    left_riemann = [0.0, 0.2, 0.4, 0.6, 0.8]
    found = {
        "eap": integrated(reference, prompts.clean, replacement, edges, metric, [1.0]),
        "clean_corrupted": integrated(reference, prompts.clean, replacement, edges, metric, [0.0, 1.0]),
        "eap_ig_5_left_riemann_token_embedding": integrated(
            reference, prompts.clean, replacement, edges, metric, left_riemann
        ),
    }
    for name, scores in found.items():
        largest = max(map(abs, results[name].values()))
        assert scores == pytest.approx({edge: results[name][edge] for edge in edges}, abs=1e-4 * largest), (
            name
        )
    for name, m, higher in (("logit_diff", metric, True), ("kl_divergence", kl, False)):
        scores = exact(reference, prompts.clean, replacement, edges, m, higher_is_better=higher)
        expected = results["exact"][name]
        assert scores == pytest.approx(
            {edge: expected[edge] for edge in edges}, abs=1e-4 * max(map(abs, expected.values()))
        ), name


@pytest.mark.parametrize("threshold", ACDC_THRESHOLDS)
def test_fixture_acdc(agreement: Agreement, threshold: str) -> None:
    """The naive decision from 12 sampled states of each finished search is the one that was taken."""
    reference, prompts, acdc = agreement.tiny.reference, agreement.prompts, agreement.results["acdc"]
    order, kept = acdc["0.0001"]["order"], set(acdc[threshold]["kept"])
    assert acdc_order(reference.graph) == order
    replacement = carried(reference, "resample", prompts.corrupted)
    kl = kl_divergence(reference.run(prompts.clean)[0][:, -1])
    some = [order[i] for i in np.random.default_rng(0).choice(len(order), 12, replace=False)]
    for edge, damage in naive_damages(
        reference, prompts.clean, replacement, kl, kept, some, higher_is_better=False
    ).items():
        assert (damage >= float(threshold)) == (edge in kept), (edge, damage)


def test_random_masks_are_of_every_density(gpt2: Tiny) -> None:
    sizes = [mask.sum() / len(gpt2.reference.graph) for mask in random_masks(gpt2.reference.graph, 5)]
    assert sizes == sorted(sizes) and sizes[0] < 0.2 and sizes[-1] > 0.8
