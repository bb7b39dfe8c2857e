"""Families beyond those that every test runs on: each equals Hugging Face's forward and the definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import VOCABULARY, random_model, random_prompts

import circuitdiscovery as cd
from circuitdiscovery.engine.definition import masked_logits
from circuitdiscovery.engine.setup import Setup

COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
# name -> (config class, its changes)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("Qwen3Config", {"head_dim": 16}),
    "qwen3 with biases": (
        "Qwen3Config",
        {"head_dim": 8, "attention_bias": True, "tie_word_embeddings": True},
    ),
    "qwen3 sliding": (
        "Qwen3Config",
        {"head_dim": 8, "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
    ),
    "gemma": ("GemmaConfig", {"head_dim": 16}),
    "smollm3": ("SmolLM3Config", {"no_rope_layer_interval": 2, "tie_word_embeddings": False}),
    "smollm3 sliding": (
        "SmolLM3Config",
        {"no_rope_layers": [0, 1, 1], "use_sliding_window": True, "sliding_window": 3, "head_dim": 16},
    ),
    "smollm3 with biases": (
        "SmolLM3Config",
        {
            "attention_bias": True, "mlp_bias": True, "no_rope_layers": [1, 1, 0], "num_key_value_heads": 4,
            "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 100.0},
        },
    ),
    "phi3": ("Phi3Config", {}),
    "phi3 with a rotary half": (
        "Phi3Config",
        {
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
            "num_key_value_heads": 1, "sliding_window": 3, "tie_word_embeddings": True,
        },
    ),
    "phi3 with wide heads": ("Phi3Config", {"head_dim": 12, "num_key_value_heads": 4, "hidden_act": "gelu"}),
    "granite": (
        "GraniteConfig",
        {
            "embedding_multiplier": 12.0, "residual_multiplier": 0.22, "attention_multiplier": 0.3,
            "logits_scaling": 8.0,
        },
    ),
    "granite with biases": (
        "GraniteConfig",
        {
            "attention_bias": True, "mlp_bias": True, "head_dim": 16, "residual_multiplier": 1.7,
            "attention_multiplier": 0.1, "rms_norm_eps": 0.1, "tie_word_embeddings": True,
        },
    ),
    "stablelm": ("StableLmConfig", {}),
    "stablelm in parallel": (
        "StableLmConfig",
        {"use_parallel_residual": True, "use_qkv_bias": True, "num_key_value_heads": 4},
    ),
    "stablelm of one group": (
        "StableLmConfig",
        {
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5},
            "use_qkv_bias": True, "num_key_value_heads": 1, "tie_word_embeddings": True,
            "layer_norm_eps": 0.1, "hidden_act": "gelu",
        },
    ),
    "cohere": ("CohereConfig", {}),
    "cohere with biases": (
        "CohereConfig",
        {
            "attention_bias": True, "head_dim": 16, "logit_scale": 0.7, "num_key_value_heads": 1,
            "tie_word_embeddings": False, "layer_norm_eps": 0.1,
        },
    ),
    "cohere with scaled positions": (
        "CohereConfig",
        {
            "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 100.0},
            "num_key_value_heads": 4,
        },
    ),
    "gemma of one group": ("GemmaConfig", {"head_dim": 8, "num_key_value_heads": 1}),
}


@pytest.fixture(params=CASES, scope="module")
def network(request: pytest.FixtureRequest) -> Any:
    import transformers

    kind, changes = CASES[request.param]
    return random_model(getattr(transformers, kind)(**{**COMMON, **changes}))


def hf_logits(network: Any, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return network(tokens).logits[:, -1]


def test_all_edges_are_hugging_face_and_none_are_the_corrupted_run(network: Any) -> None:
    model, prompts = cd.load_model((network, None)), random_prompts(VOCABULARY, 6, 7)
    for circuit, tokens in ((cd.Circuit.full, prompts.clean), (cd.Circuit.empty, prompts.corrupted)):
        logits, expected = (
            cd.run_circuit(model, prompts.task, circuit(model.graph)),
            hf_logits(network, tokens),
        )
        assert (logits - expected).abs().max() < 1e-5 * expected.abs().max()


def test_the_fast_engine_is_the_definition(network: Any) -> None:
    model = cd.load_model((network, None), dtype="float64")
    graph, prompts = model.graph, random_prompts(VOCABULARY, 3, 6)
    rng = np.random.default_rng(0)
    for ablation in ("resample", "zero"):
        for _, patched in Setup.of(model, prompts.task, ablation=ablation).patched_runs():
            for share in (0.9, 0.5, 0.2):
                mask = graph.allowed & (rng.random(graph.allowed.shape) < share)
                given = patched.start, patched.replacement, patched.position
                expected = masked_logits(model, graph, *given, torch.tensor(mask).double())
                torch.testing.assert_close(patched.logits(mask), expected, atol=1e-10, rtol=1e-10)


def test_eap_is_the_gradient_in_the_mask(network: Any) -> None:
    model = cd.load_model((network, None), dtype="float64")
    graph, prompts = model.graph, random_prompts(VOCABULARY, 4, 6)
    scores, total = cd.eap(model, prompts.task).values, np.zeros(graph.allowed.shape)
    for batch, patched in Setup.of(model, prompts.task).patched_runs():
        mask = torch.tensor(graph.allowed).double().requires_grad_()
        logits = masked_logits(model, graph, patched.start, patched.replacement, patched.position, mask)
        rows = torch.arange(len(batch))
        difference = logits[rows, batch.correct[:, 0]] - logits[rows, batch.incorrect[:, 0]]
        total += torch.autograd.grad(difference.sum(), mask)[0].numpy() / len(prompts.task)
    np.testing.assert_allclose(scores[graph.allowed], total[graph.allowed], atol=1e-10)


def test_in_half_precision_from_a_folder(network: Any, tmp_path: Path) -> None:
    """The proof at load compares the layers in float32, tightly."""
    network.save_pretrained(tmp_path)
    model = cd.load_model(tmp_path, dtype="bfloat16")
    prompts = random_prompts(VOCABULARY, 4, 6)
    logits = cd.run_circuit(model, prompts.task, cd.Circuit.full(model.graph))
    expected = hf_logits(network, prompts.clean)
    assert (logits.float() - expected).abs().max() < 0.1 * expected.abs().max()
