"""Families beyond those that every test runs on: each equals Hugging Face's forward and the definition."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import VOCABULARY, random_model, random_prompts, save_gguf

import circuitdiscovery as cd
from circuitdiscovery.cli.defaults import edges_of
from circuitdiscovery.engine.definition import masked_logits
from circuitdiscovery.engine.relaxed import Relaxed
from circuitdiscovery.engine.setup import Setup
from circuitdiscovery.explanation.attention import attention
from circuitdiscovery.model import proof
from circuitdiscovery.model.run import embed
from circuitdiscovery.search.alternatives import cases, rises

COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
TOKENS: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 1}
SIZES: dict[str, dict[str, Any]] = {  # of the classes that call them otherwise
    "GPTNeoConfig": TOKENS
    | {"hidden_size": 32, "intermediate_size": 48, "num_layers": 3, "num_heads": 4,
       "max_position_embeddings": 64, "attention_types": [[["global", "local", "local"], 1]], "window_size": 3},
    "OPTConfig": TOKENS
    | {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
       "max_position_embeddings": 64, "pad_token_id": 0},
    "PhiConfig": COMMON | {"num_key_value_heads": None},
    "GPTJConfig": TOKENS | {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "rotary_dim": 4},
    "FalconConfig": TOKENS
    | {"hidden_size": 32, "ffn_hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
       "max_position_embeddings": 64},
    "BloomConfig": TOKENS | {"hidden_size": 32, "n_layer": 3, "n_head": 4},
    "MptConfig": TOKENS | {"d_model": 32, "n_layers": 3, "n_heads": 4, "max_seq_len": 64},
}  # fmt: skip
# name -> (config class, its changes)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("Qwen2Config", {}),
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
    "cohere whose file names a window": ("CohereConfig", {"sliding_window": 3}),
    "gemma of one group": ("GemmaConfig", {"head_dim": 8, "num_key_value_heads": 1}),
    "gemma2": ("Gemma2Config", {"head_dim": 8, "sliding_window": 3, "query_pre_attn_scalar": 8}),
    "gemma2 of wide heads, without caps": (
        "Gemma2Config",
        {
            "head_dim": 12, "num_key_value_heads": 1, "final_logit_softcapping": None,
            "attn_logit_softcapping": None, "attention_bias": True, "tie_word_embeddings": False,
        },
    ),
    "gemma2 with low caps": (
        "Gemma2Config",
        {"head_dim": 8, "num_key_value_heads": 4, "final_logit_softcapping": 2.0, "attn_logit_softcapping": 1.0},
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {
            "head_dim": 8, "sliding_window": 3, "query_pre_attn_scalar": 16,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "gemma3 scaled, with biases": (
        "Gemma3TextConfig",
        {
            "head_dim": 16, "num_key_value_heads": 1, "attention_bias": True, "tie_word_embeddings": False,
            "layer_types": ["full_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 100.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10.0},
            },
            "final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0,
        },
    ),
    "gemma3 whose last layer has no window": (
        "Gemma3TextConfig",
        {"head_dim": 8, "sliding_window": 3, "num_hidden_layers": 6, "query_pre_attn_scalar": 8},
    ),
    "olmo2": ("Olmo2Config", {}),
    "olmo2 with biases": (
        "Olmo2Config",
        {"attention_bias": True, "num_key_value_heads": 1, "tie_word_embeddings": True, "hidden_act": "gelu"},
    ),
    "olmo3": ("Olmo3Config", {"sliding_window": 3, "num_hidden_layers": 4}),
    "olmo3 scaled": (
        "Olmo3Config",
        {
            "num_key_value_heads": 4, "sliding_window": 4,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": {
                    "rope_type": "yarn", "factor": 8.0, "rope_theta": 100.0,
                    "original_max_position_embeddings": 16,
                },
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        },
    ),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "mixtral of many experts": (
        "MixtralConfig",
        {"num_local_experts": 6, "num_experts_per_tok": 3, "head_dim": 16, "sliding_window": 3,
         "num_key_value_heads": 4, "tie_word_embeddings": True},
    ),
    "qwen2 with experts": (
        "Qwen2MoeConfig",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
         "shared_expert_intermediate_size": 40, "decoder_sparse_step": 2},
    ),
    "qwen2 with experts, sliding": (
        "Qwen2MoeConfig",
        {"num_experts": 3, "num_experts_per_tok": 1, "moe_intermediate_size": 16, "norm_topk_prob": True,
         "shared_expert_intermediate_size": 24, "mlp_only_layers": [1], "use_sliding_window": True,
         "sliding_window": 3, "max_window_layers": 3},
    ),
    "qwen3 with experts": (
        "Qwen3MoeConfig",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8},
    ),
    "qwen3 with experts in some layers": (
        "Qwen3MoeConfig",
        {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 16, "head_dim": 16,
         "norm_topk_prob": True, "mlp_only_layers": [0], "attention_bias": True},
    ),
    "olmoe": ("OlmoeConfig", {"num_experts": 4, "num_experts_per_tok": 2}),
    "olmoe of groups": (
        "OlmoeConfig",
        {"num_experts": 3, "num_experts_per_tok": 1, "norm_topk_prob": True, "num_key_value_heads": 4},
    ),
    "gpt-oss": (
        "GptOssConfig",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, "sliding_window": 3},
    ),
    "gpt-oss of wide heads": (
        "GptOssConfig",
        {"num_local_experts": 3, "num_experts_per_tok": 1, "head_dim": 16, "num_key_value_heads": 4,
         "attention_bias": False, "swiglu_limit": 0.5,
         "rope_parameters": {"rope_type": "default", "rope_theta": 100.0}},
    ),
    "gpt-neo": ("GPTNeoConfig", {}),
    "gpt-neo untied, of wide heads": (
        "GPTNeoConfig",
        {"num_heads": 2, "tie_word_embeddings": False, "activation_function": "gelu", "window_size": 1},
    ),
    "gpt-neo without windows": (
        "GPTNeoConfig",
        {"attention_types": [[["global"], 3]], "intermediate_size": None, "layer_norm_epsilon": 0.1},
    ),
    "opt": ("OPTConfig", {}),
    "opt untied, of two heads": (
        "OPTConfig",
        {"num_attention_heads": 2, "tie_word_embeddings": False, "activation_function": "gelu"},
    ),
    "opt as galactica": ("OPTConfig", {"enable_bias": False, "layer_norm_elementwise_affine": False}),
    "phi": ("PhiConfig", {}),
    "phi of groups": ("PhiConfig", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "phi with norms": ("PhiConfig", {"qk_layernorm": True, "hidden_act": "gelu"}),
    "phi scaled": (
        "PhiConfig",
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 100.0,
                             "partial_rotary_factor": 0.25}, "num_attention_heads": 2},
    ),
    "gpt-j": ("GPTJConfig", {}),
    "gpt-j tied, all turned": ("GPTJConfig", {"rotary_dim": 8, "tie_word_embeddings": True}),
    "gpt-j of two heads": ("GPTJConfig", {"n_head": 2, "n_inner": 40, "activation_function": "relu"}),
    "falcon of one group": ("FalconConfig", {}),
    "falcon of groups": (
        "FalconConfig",
        {"new_decoder_architecture": True, "num_kv_heads": 2, "tie_word_embeddings": False},
    ),
    "falcon of groups behind one norm": (
        "FalconConfig",
        {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1, "bias": True},
    ),
    "falcon in series": (
        "FalconConfig",
        {"parallel_attn": False, "multi_query": False, "bias": True, "activation": "relu",
         "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 100.0}},
    ),
    "falcon with alibi": (
        "FalconConfig", {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True},
    ),
    "falcon with alibi of sixteen heads": (  # whose slopes are no powers of two
        "FalconConfig", {"alibi": True, "hidden_size": 48, "num_attention_heads": 16, "tie_word_embeddings": False},
    ),
    "falcon with alibi of six heads in groups": (
        "FalconConfig",
        {"alibi": True, "hidden_size": 48, "num_attention_heads": 6, "new_decoder_architecture": True, "num_kv_heads": 3},
    ),
    "bloom": ("BloomConfig", {}),
    "bloom of six heads": (
        "BloomConfig", {"hidden_size": 48, "n_head": 6, "tie_word_embeddings": False, "layer_norm_epsilon": 0.1},
    ),
    "bloom of eleven heads": ("BloomConfig", {"hidden_size": 44, "n_head": 11, "n_layer": 2}),
    "mpt": ("MptConfig", {}),
    "mpt of three heads": (
        "MptConfig",
        {"d_model": 24, "n_heads": 3, "attn_config": {"softmax_scale": 0.7}, "tie_word_embeddings": False},
    ),
    "mpt of twelve heads": ("MptConfig", {"d_model": 48, "n_heads": 12, "n_layers": 2, "layer_norm_epsilon": 0.1}),
}  # fmt: skip
# (config class, its changes, what is said)
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("GPTNeoConfig", {"window_size": 0}, r"a window of 0 positions \(window_size\) is not supported"),
    ("OPTConfig", {"do_layer_norm_before": False}, r"post-norm \(do_layer_norm_before\) is not supported"),
    ("OPTConfig", {"word_embed_proj_dim": 16}, "projection of the embeddings .* is not supported"),
    ("OPTConfig", {"_remove_final_layer_norm": True}, "without its last norm .* is not supported"),
    ("GPTJConfig", {"rotary_dim": 12}, "a rotary part of 12 of a head's 8 dimensions .* is not supported"),
    ("GPTJConfig", {"rotary_dim": 3}, "a rotary part of 3 of a head's 8 dimensions .* is not supported"),
    (
        "BloomConfig", {"apply_residual_connection_post_layernorm": True},
        r"a residual stream of norms \(apply_residual_connection_post_layernorm\) is not supported",
    ),
    ("MptConfig", {"attn_config": {"clip_qkv": 6.0}}, r"clipping of .* \(clip_qkv\) is not supported"),
    ("MptConfig", {"attn_config": {"qk_ln": True}}, r"norms of queries and keys \(qk_ln\) is not supported"),
    ("MptConfig", {"attn_config": {"prefix_lm": True}}, r"to later tokens \(prefix_lm\) is not supported"),
    ("MptConfig", {"attn_config": {"alibi": False}}, r"without ALiBi \(alibi\) is not supported"),
    ("MptConfig", {"attn_config": {"alibi_bias_max": 16}}, r"up to 16 \(alibi_bias_max\) is not supported"),
    (
        "MptConfig", {"attn_config": {"attn_type": "multiquery_attention"}},
        r"'multiquery_attention' \(attn_type\) is not supported",
    ),
    ("MptConfig", {"logit_scale": 0.5}, r"a scale of the logits \(logit_scale\) is not supported"),
    ("MptConfig", {"no_bias": False}, r"a bias of a linear layer \(no_bias\) is not supported"),
    ("MptConfig", {"expansion_ratio": 2}, r"2 times the width \(expansion_ratio\) is not supported"),
    ("MptConfig", {"max_seq_len": -5}, "number of positions must be a whole number of at least 1, not -5"),
    ("MptConfig", {"norm_type": "low_precision_rmsnorm"}, r"the norm 'low_precision_rmsnorm' .* is not supported"),
    (
        "Gemma3TextConfig",
        {"head_dim": 8, "rope_parameters": {"full_attention": {"rope_type": "dynamic", "factor": 4.0}}},
        "rotary scaling 'dynamic' is not supported",
    ),
    *(
        (f"{kind}Config", {"head_dim": 8, "use_bidirectional_attention": True},
         r"attention to later tokens \(use_bidirectional_attention\) is not supported")
        for kind in ("Gemma", "Gemma2", "Gemma3Text")
    ),
    ("OlmoeConfig", {"clip_qkv": 2.0, "num_experts": 2, "num_experts_per_tok": 1}, "clipped queries"),
    *(
        ("LlamaConfig", {"hidden_act": name}, f"the activation '{name}' with weights of its own is not supported")
        for name in ("prelu", "xielu")
    ),
    ("GraniteConfig", {"residual_multiplier": 0.0}, "residual_multiplier = 0 is not supported"),
    ("GraniteConfig", {"logits_scaling": 0.0}, "logits_scaling = 0 is not supported"),
    ("StableLmConfig", {"qk_layernorm": True}, r"norms with each head's own weights .qk_layernorm\) is not supported"),
    ("CohereConfig", {"use_qk_norm": True}, r"norms with each head's own weights .use_qk_norm\) is not supported"),
]  # fmt: skip


@pytest.fixture(params=CASES, scope="module")
def network(request: pytest.FixtureRequest) -> Any:
    return random_model(config_of(*CASES[request.param]))


@pytest.fixture(scope="module")
def model64(network: Any) -> Any:
    return cd.load_model((network, None), dtype="float64")


def config_of(kind: str, changes: dict[str, Any]) -> Any:
    """A Hugging Face config of tiny sizes."""
    import transformers

    return getattr(transformers, kind)(**{**SIZES.get(kind, COMMON), **changes})


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


def test_the_fast_engine_is_the_definition(model64: Any) -> None:
    model, graph, prompts = model64, model64.graph, random_prompts(VOCABULARY, 3, 6)
    rng = np.random.default_rng(0)
    for ablation in ("resample", "zero"):
        for _, patched in Setup.of(model, prompts.task, ablation=ablation).patched_runs():
            for share in (0.9, 0.5, 0.2):
                mask = graph.allowed & (rng.random(graph.allowed.shape) < share)
                given = patched.start, patched.replacement, patched.position
                expected = masked_logits(model, graph, *given, torch.tensor(mask).double())
                torch.testing.assert_close(patched.logits(mask), expected, atol=1e-10, rtol=1e-10)


def test_eap_is_the_gradient_in_the_mask(model64: Any) -> None:
    model, graph, prompts = model64, model64.graph, random_prompts(VOCABULARY, 4, 6)
    scores, total = cd.eap(model, prompts.task).values, np.zeros(graph.allowed.shape)
    for batch, patched in Setup.of(model, prompts.task).patched_runs():
        mask = torch.tensor(graph.allowed).double().requires_grad_()
        logits = masked_logits(model, graph, patched.start, patched.replacement, patched.position, mask)
        rows = torch.arange(len(batch))
        difference = logits[rows, batch.correct[:, 0]] - logits[rows, batch.incorrect[:, 0]]
        total += torch.autograd.grad(difference.sum(), mask)[0].numpy() / len(prompts.task)
    np.testing.assert_allclose(scores[graph.allowed], total[graph.allowed], atol=1e-10)


def test_relaxed_and_branching_forwards_are_the_definition(model64: Any) -> None:
    """The gradient in a mask of real numbers, and the damage of single edges."""
    model, graph, prompts = model64, model64.graph, random_prompts(VOCABULARY, 1, 6)
    rng = np.random.default_rng(2)
    ((batch, patched),) = Setup.of(model, prompts.task).patched_runs()
    given = patched.start, patched.replacement, patched.position
    mask = torch.tensor(rng.random(graph.allowed.shape) * graph.allowed)
    value, gradient = Relaxed.build(model, graph).gradient(
        patched, mask, lambda logits: logits[:, :7].square().sum()
    )
    expected = masked_logits(model, graph, *given, mask.requires_grad_())[:, :7].square().sum()
    (slow,) = torch.autograd.grad(expected, mask)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-10, atol=0)
    slow = slow * torch.tensor(graph.allowed)
    torch.testing.assert_close(gradient, slow, rtol=1e-8, atol=1e-9 * float(slow.abs().max()))
    found, _ = cases(Setup.of(model, prompts.task))

    def differences(logits: torch.Tensor) -> np.ndarray:
        """[M] of [M, 1, vocabulary]."""
        return (logits[:, 0, batch.correct[0, 0]] - logits[:, 0, batch.incorrect[0, 0]]).numpy()

    def measured(kept: np.ndarray) -> float:
        return float(differences(masked_logits(model, graph, *given, torch.tensor(kept).double())[None])[0])

    full = measured(graph.allowed)
    for row, column in rng.permutation(np.argwhere(graph.allowed))[:8]:
        kept = graph.allowed.copy()
        kept[row, column] = False
        rise = rises(found, graph.allowed, column, lambda logits: differences(next(iter(logits))))[row]
        assert rise == pytest.approx(measured(kept) - full, abs=1e-9)


def test_in_half_precision_from_a_folder(network: Any, tmp_path: Path) -> None:
    """The proof at load compares the layers in float32, tightly."""
    network.save_pretrained(tmp_path)
    model = cd.load_model(tmp_path, dtype="bfloat16")
    assert edges_of(str(tmp_path)) == len(model.graph)
    prompts = random_prompts(VOCABULARY, 4, 6)
    logits = cd.run_circuit(model, prompts.task, cd.Circuit.full(model.graph))
    expected = hf_logits(network, prompts.clean)
    errors = (logits.float() - expected).abs().amax(-1)
    if model.blocks[0].experts is not None:  # a rounding can send a token to another expert
        errors = errors.median()
    assert (errors < 0.1 * expected.abs().max()).all()


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        *(CASES[name] for name in CASES if re.search("experts|mixtral|olmoe|gpt-oss", name)),
        ("GPT2Config", {"reorder_and_upcast_attn": True, "scale_attn_by_inverse_layer_idx": True}),
    ],
    ids=str,
)
def test_in_double_precision_from_a_folder(kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """What transformers computes faster, it computes in single precision alone."""
    network, prompts = random_model(config_of(kind, changes)), random_prompts(VOCABULARY, 4, 6)
    network.save_pretrained(tmp_path)
    model = cd.load_model(tmp_path, dtype="float64")
    logits = cd.run_circuit(model, prompts.task, cd.Circuit.full(model.graph))
    network.set_experts_implementation("eager")  # of the attention its own is right in every dtype
    expected = hf_logits(network.double(), prompts.clean)
    assert (logits - expected).abs().max() < 1e-5 * expected.abs().max()


def test_in_half_precision_as_a_large_model(network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which the first and last layers run alone, whatever kinds they are of."""
    monkeypatch.setattr(proof, "SMALL", 0)
    kinds = copy.deepcopy(getattr(network.config, "layer_types", None))
    cd.load_model((network, None), dtype="bfloat16")
    assert getattr(network.config, "layer_types", None) == kinds


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        *((kind, {"sliding_window": 18}) for kind in (*SIZES, "GPT2Config", "LlamaConfig", "GemmaConfig")),
        ("LlamaConfig", {"sliding_window": 18, "layer_types": ["sliding_attention"] * 3}),
        ("LlamaConfig", {"sliding_window": 0}),
        ("MistralConfig", {"sliding_window": 18, "layer_types": ["full_attention"] * 3}),
        ("Qwen2Config", {"sliding_window": 18, "use_sliding_window": True, "max_window_layers": 1}),
    ],
    ids=str,
)
def test_a_window_counts_where_the_family_has_one(kind: str, changes: dict[str, Any]) -> None:
    """Longer prompts than those of the proof at load, which sees no window of this size."""
    network, prompts = random_model(config_of(kind, changes)), random_prompts(VOCABULARY, 4, 30)
    model = cd.load_model((network, None))
    logits = cd.run_circuit(model, prompts.task, cd.Circuit.full(model.graph))
    expected = hf_logits(network, prompts.clean)
    assert (logits - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("kind", [*SIZES, "GPT2Config", "LlamaConfig"])
def test_prompts_that_are_too_long_for_transformers_are_refused(kind: str) -> None:
    """They are in families with a table of positions, learnt or not, which is of 64 here."""
    network = random_model(config_of(kind, {}))
    model, longest, longer = cd.load_model((network, None)), *(random_prompts(101, 2, n) for n in (64, 65))
    full = cd.Circuit.full(model.graph)
    expected = hf_logits(network, longest.clean)
    assert (cd.run_circuit(model, longest.task, full) - expected).abs().max() < 1e-5 * expected.abs().max()
    try:
        hf_logits(network, longer.clean)
    except (IndexError, RuntimeError):
        assert model.max_length == 64
        with pytest.raises(cd.CircuitDiscoveryError, match="65 tokens, but the model reads at most 64"):
            cd.run_circuit(model, longer.task, full)
    else:
        assert model.max_length is None
        cd.run_circuit(model, longer.task, full)


def test_an_object_that_was_converted_to_a_half_precision(network: Any) -> None:
    """Its tables are rounded then, of angles and scales, and the float32 proof is by precise ones."""
    half = copy.deepcopy(network).to(torch.bfloat16)
    for dtype in ("float32", "bfloat16"):
        assert cd.load_model((half, None), dtype=dtype).graph == cd.load_model((network, None)).graph


@pytest.mark.parametrize(
    ("kind", "changes", "message"), REFUSED, ids=[f"{kind} {changes}" for kind, changes, _ in REFUSED]
)
def test_what_the_blocks_do_not_compute_is_refused_by_name(
    kind: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """From an object and from a folder."""
    network = random_model(config_of(kind, changes))
    network.save_pretrained(tmp_path)
    for source in ((network, None), tmp_path):
        with pytest.raises(cd.CircuitDiscoveryError, match=message):
            cd.load_model(source)


@pytest.mark.parametrize("name", [name for name in CASES if re.search("alibi|bloom|mpt", name)])
def test_alibi_at_far_positions(name: str) -> None:
    """Where Falcon's biases, rounded to bfloat16, are the same for several positions."""
    kind, changes = CASES[name]
    network = random_model(config_of(kind, changes | ({"max_seq_len": 512} if kind == "MptConfig" else {})))
    model, prompts = cd.load_model((network, None)), random_prompts(VOCABULARY, 2, 400)
    logits = cd.run_circuit(model, prompts.task, cd.Circuit.full(model.graph))
    expected = hf_logits(network, prompts.clean)
    assert (logits - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", ["bloom of six heads", "mpt of three heads"])
def test_attention_with_alibi_is_hugging_faces(name: str) -> None:
    network, tokens = random_model(config_of(*CASES[name])), random_prompts(VOCABULARY, 3, 7).clean
    with torch.no_grad():
        expected = torch.stack(network(tokens, output_attentions=True).attentions)  # [L, N, H, T, T]
    found = attention(cd.load_model((network, None)), tokens)
    torch.testing.assert_close(found.transpose(1, 2), expected, atol=1e-5, rtol=0)


def test_falcons_eager_alibi_is_refused_by_name() -> None:
    """transformers' eager attention adds the biases to the scores, and with the mask once more."""
    network, eager = (
        random_model(config_of("FalconConfig", {"alibi": True, "attn_implementation": kind}))
        for kind in ("sdpa", "eager")
    )
    tokens = random_prompts(VOCABULARY, 4, 7).clean
    assert (hf_logits(network, tokens) - hf_logits(eager, tokens)).abs().max() > 0.05
    with pytest.raises(
        cd.CircuitDiscoveryError,
        match=r"adds it twice \(attn_implementation; take 'sdpa'\), is not supported",
    ):
        cd.load_model((eager, None))


@pytest.mark.parametrize("name", ["gemma", "granite", "bloom"])
def test_noise_is_as_large_as_the_scaled_embeddings(name: str) -> None:
    """Three standard deviations of what the token embeddings are, whatever scales or normalises them."""
    network = random_model(config_of(*CASES[name]))
    model, prompts = cd.load_model((network, None)), random_prompts(VOCABULARY, 40, 7)
    clean, deviation = embed(model, prompts.clean), embed(model, torch.arange(VOCABULARY)[None]).std()
    for _, patched in Setup.of(model, prompts.task, ablation="noise").patched_runs():
        noise = patched.replacement[0] - clean
        assert abs(float(noise.std() / deviation) - 3) < 0.1


def test_a_gguf_file_whose_positions_transformers_leaves_out_is_refused(tmp_path: Path) -> None:
    """It takes whole heads as rotary and no window, whatever a file of Phi-3 says."""
    for name, message in (("half", r"rope.dimension_count 4 and takes 8"), ("window", "sliding_window 3")):
        half = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
        changes = {"rope_parameters": half} if name == "half" else {"sliding_window": 3}
        path = save_gguf(tmp_path / f"{name}.gguf", random_model(config_of("Phi3Config", changes)))
        with pytest.raises(cd.CircuitDiscoveryError, match=message):
            cd.load_model(path)
    network, prompts = random_model(config_of("Phi3Config", {})), random_prompts(VOCABULARY, 4, 7)
    model = cd.load_model(save_gguf(tmp_path / "whole.gguf", network))
    logits = cd.run_circuit(model, prompts.task, cd.Circuit.full(model.graph))
    torch.testing.assert_close(logits, hf_logits(network, prompts.clean), atol=1e-4, rtol=1e-4)


def gguf_of(path: Path, kind: str, stated: dict[str, Any], **changes: Any) -> tuple[Any, Any, Any]:
    """(the model of a GGUF file, its logits on prompts, those of Hugging Face's network)."""
    network, prompts = random_model(config_of(kind, changes)), random_prompts(VOCABULARY, 4, 7)
    model = cd.load_model(save_gguf(path, network, stated=stated))
    logits = cd.run_circuit(model, prompts.task, cd.Circuit.full(model.graph))
    return model, logits, hf_logits(network, prompts.clean)


@pytest.mark.parametrize(
    ("layers", "caps", "scalar"),
    [
        (2, {"attn_logit_softcapping": 1.0, "final_logit_softcapping": 2.0}, 8),
        (2, {"attn_logit_softcapping": 0.5}, 8),
        (46, {}, 10),
    ],
)
def test_a_gguf_file_of_gemma2_has_its_caps_and_score_scale(
    layers: int, caps: dict[str, float], scalar: int, tmp_path: Path
) -> None:
    """transformers reads no cap; the scale is the one that llama.cpp has for so many layers."""
    changes = {"hidden_size": 40, "head_dim": 8, "sliding_window": 3, "query_pre_attn_scalar": scalar}
    changes |= {"num_hidden_layers": layers, **caps}
    _, logits, expected = gguf_of(tmp_path / "tiny.gguf", "Gemma2Config", caps, **changes)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_a_gguf_file_of_gemma3(tmp_path: Path) -> None:
    """With a cap of the logits, and the kinds of its layers."""
    kinds = [True, False, True]
    stated = {"final_logit_softcapping": 3.0, "attention.sliding_window_pattern": kinds}
    given = {"head_dim": 8, "sliding_window": 3, "query_pre_attn_scalar": 8}
    with pytest.raises(
        cd.CircuitDiscoveryError, match=r"attention.sliding_window_pattern \[True, False, True\]"
    ):
        gguf_of(tmp_path / "tiny.gguf", "Gemma3TextConfig", stated, **given)
    stated["attention.sliding_window_pattern"] = [True, True, True]
    model, logits, expected = gguf_of(
        tmp_path / "tiny.gguf", "Gemma3TextConfig", stated, final_logit_softcapping=3.0, **given
    )
    assert model.logit_cap == 3.0
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"attention.scale": 0.2}, "attention.scale 0.2.* and takes 0.35"),
        ({"attention.key_length": 16}, "attention.key_length 16 and takes 8"),
        ({"attention.causal": False}, "attention.causal False and takes True"),
        ({"attn_logit_softcapping": 30.0}, "attn_logit_softcapping 30.0, which is not supported"),
        ({"logit_scale": 0.5}, "logit_scale 0.5, which is not supported"),
        ({"rope.scaling.factor": 4.0}, "rope.scaling.factor 4.0 and takes 1.0"),
    ],
)
def test_a_gguf_file_that_states_what_is_not_computed_is_refused(
    stated: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """transformers takes its own defaults, whatever the file says."""
    network = random_model(config_of("LlamaConfig", {}))
    harmless = {"attention.scale": 8**-0.5, "rope.scaling.factor": 1.0, "attention.key_length": 8}
    cd.load_model(save_gguf(tmp_path / "tiny.gguf", network, stated=harmless))
    with pytest.raises(cd.CircuitDiscoveryError, match=message):
        cd.load_model(save_gguf(tmp_path / "tiny.gguf", network, stated=stated))


def test_the_text_part_of_a_model_that_reads_images_too(tmp_path: Path) -> None:
    import transformers

    text = COMMON | {"head_dim": 8, "sliding_window": 3, "num_hidden_layers": 6}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 28, "patch_size": 14}  # fmt: skip
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, image_token_index=100)  # pyright: ignore[reportCallIssue]
    network = transformers.Gemma3ForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    network.save_pretrained(tmp_path)
    model, prompts = cd.load_model(tmp_path), random_prompts(98, 4, 7)
    assert edges_of(str(tmp_path)) == len(model.graph) and model.graph.n_layers == 6
    logits, expected = (
        cd.run_circuit(model, prompts.task, cd.Circuit.full(model.graph)),
        hf_logits(network, prompts.clean),
    )
    assert (logits - expected).abs().max() < 1e-5 * expected.abs().max()
    with pytest.raises(cd.CircuitDiscoveryError, match="images as well as text; of a folder"):
        cd.load_model((network, None))


BY_LENGTH: list[tuple[str, dict[str, Any]]] = [
    ("LlamaConfig", {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 100.0}),
    (
        "Phi3Config",
        {"rope_type": "longrope", "rope_theta": 100.0, "short_factor": [1.0, 1.5, 2.0, 2.5],
         "long_factor": [2.0, 4.0, 6.0, 8.0], "original_max_position_embeddings": 8},
    ),
]  # fmt: skip


def config_by_length(kind: str, rope: dict[str, Any]) -> Any:
    """Of a model that was trained on prompts of eight tokens."""
    trained = {"max_position_embeddings": 8, "original_max_position_embeddings": 8}
    return config_of(kind, {"rope_parameters": rope, **trained})


@pytest.mark.parametrize(("kind", "rope"), BY_LENGTH, ids=[kind for kind, _ in BY_LENGTH])
def test_a_rotary_scaling_is_that_of_each_prompts_own_length(kind: str, rope: dict[str, Any]) -> None:
    """Prompts of several lengths in one task, of which some are longer than what the model was trained on."""
    network, lengths = random_model(config_by_length(kind, rope)), (4, 8, 12, 12, 30)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(VOCABULARY, size=length).tolist() for length in lengths]
    model = cd.load_model((copy.deepcopy(network), None))
    task = cd.Task.from_tokens(
        clean=prompts, corrupted=[prompt[::-1] for prompt in prompts], correct=[1] * 5, incorrect=[2] * 5
    )
    logits = cd.run_circuit(model, task, cd.Circuit.full(model.graph))
    for row, prompt in zip(logits, prompts, strict=True):  # transformers remembers what it saw before
        expected = hf_logits(copy.deepcopy(network), torch.tensor([prompt]))[0]
        assert (row - expected).abs().max() < 1e-5 * expected.abs().max()
    short = hf_logits(copy.deepcopy(network), torch.tensor([prompts[0] * 3]))[0]
    assert (short - hf_logits(copy.deepcopy(network), torch.tensor([prompts[0]]))[0]).abs().max() > 0.01
