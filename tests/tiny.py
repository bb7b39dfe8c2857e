"""Tiny random models of every supported architecture, and random prompts for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from reference import Reference
from torch import Tensor

import circuitdiscovery as cd

VOCABULARY = 101
ARCHITECTURES = ("gpt2", "llama", "llama_biased", "mistral", "gemma3", "neox_parallel", "neox_serial")
REAL = ("stories260K", "toy")  # trained models, one outside the repository


def each_and_each(names: Sequence[str], values: Sequence[Any]) -> list[tuple[str, Any]]:
    """Every name with a value and every value with a name: for facts in
    which the one does not depend on the other.

    The first two, a GPT-2 and a grouped Llama among the architectures, stand with every value.
    """
    return [(name, value) for name in names[:2] for value in values] + list(
        zip(names[2:], cycle(values), strict=False)
    )


_COMMON: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 1}
_GPT2: dict[str, Any] = _COMMON | {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
_NEOX: dict[str, Any] = _COMMON | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_LLAMA: dict[str, Any] = _NEOX | {"num_key_value_heads": 2}
_SCALED: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", _GPT2),
    "llama": ("LlamaConfig", _LLAMA),
    "llama_biased": (
        "LlamaConfig",
        _LLAMA | {"attention_bias": True, "mlp_bias": True, "rope_parameters": _SCALED},
    ),
    "mistral": ("MistralConfig", _LLAMA | {"head_dim": 16}),
    "qwen2": ("Qwen2Config", _LLAMA),
    "gemma3": (
        "Gemma3TextConfig",
        _LLAMA
        | {
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "pad_token_id": 0,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "final_logit_softcapping": 20.0,
        },
    ),
    "bloom": ("BloomConfig", _COMMON | {"hidden_size": 32, "n_layer": 3, "n_head": 4}),
    "neox_parallel": ("GPTNeoXConfig", _NEOX | {"use_parallel_residual": True}),
    "neox_serial": ("GPTNeoXConfig", _NEOX | {"use_parallel_residual": False}),
}


def tiny_config(name: str, **changes: Any) -> Any:
    """The Hugging Face config of a tiny model: 3 layers, 4 heads (two
    groups where grouped), d_model 32, 101 tokens.
    """
    import transformers

    kind, options = CONFIGS[name]
    return getattr(transformers, kind)(**(options | changes))


def random_model(config: Any, seed: int = 0) -> Any:
    """A Hugging Face causal language model whose every parameter matters: no norm at one, no bias at zero."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.copy_(parameter + 0.3 * noise)
            else:  # queries and keys strong enough for attention to differ from uniform
                fan_in = (
                    4.0 if "wte" in name or "wpe" in name or "embed" in name else float(config.hidden_size)
                )
                parameter.copy_(1.3 * noise / fan_in**0.5)
    return model


def save_tiny(folder: Path, name: str, **changes: Any) -> Path:
    """Write a tiny random model as a Hugging Face folder without a tokenizer."""
    random_model(tiny_config(name, **changes)).save_pretrained(folder)
    return folder


_GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.": "blk.",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.qkv_proj": "attn_qkv",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def save_gguf(
    path: Path,
    hf: Any,
    *,
    tensors: dict[str, Tensor] | None = None,
    rope: str | None = None,
    tokenizer: bool = False,
    stated: dict[str, Any] | None = None,
) -> Path:
    """Write a Llama, Qwen2, Phi-3 or Gemma as llama.cpp does: its own names, for Llama the two halves of a
    rotary head interleaved, and for Gemma norms with the one added.

    `tensors` are added, and a rotary scaling, and what is `stated`, by key; and a tokenizer of letters that
    knows the words the and cat.
    """
    from gguf import MODEL_ARCH, GGUFWriter, RopeScalingType, get_tensor_name_map

    config = hf.config
    kind, gemma = config.model_type.removesuffix("_text"), config.model_type.startswith("gemma")
    theirs_of = get_tensor_name_map(MODEL_ARCH[kind.upper()], config.num_hidden_layers) if gemma else None
    writer = GGUFWriter(path, kind)
    writer.add_name(path.stem)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    if gemma:
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    else:
        d_head = config.hidden_size // config.num_attention_heads
        writer.add_rope_dimension_count(int(d_head * config.rope_parameters.get("partial_rotary_factor", 1)))
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    for key, value in (stated or {}).items():
        add = {
            bool: writer.add_bool,
            int: writer.add_uint32,
            float: writer.add_float32,
            list: writer.add_array,
        }
        add[type(value)](f"{kind}.{key}", value)
    if window := getattr(config, "sliding_window", None):
        writer.add_sliding_window(window)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if config.pad_token_id is not None:
        writer.add_pad_token_id(config.pad_token_id)
    if tokenizer:
        letters, merges = ["<s>", "Ġ", *"abcdefghijklmnopqrstuvwxyz"], ["t h", "th e", "c a", "ca t"]
        tokens = [*letters, *(merge.replace(" ", "") for merge in merges)]
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list([*tokens, *(f"unused{i}" for i in range(len(tokens), config.vocab_size))])
        writer.add_token_merges(merges)
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(0)
        writer.add_unk_token_id(0)
    if rope:
        writer.add_rope_scaling_type(RopeScalingType(rope))
    for name, tensor in hf.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if theirs_of is not None:
            tensor = tensor + 1 if name.endswith("norm.weight") else tensor
            name = theirs_of.get_name(name, try_suffixes=(".weight",)) or name
        else:
            for theirs, ours in _GGUF_NAMES.items():
                name = name.replace(theirs, ours)
        if config.model_type == "llama" and (".attn_q." in name or ".attn_k." in name):
            heads = config.num_attention_heads if ".attn_q." in name else config.num_key_value_heads
            tensor = tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
        writer.add_tensor(name, tensor.contiguous().numpy())
    for name, tensor in (tensors or {}).items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@dataclass(frozen=True)
class Prompts:
    """Token pairs and their answers."""

    clean: Tensor  # [N, T]
    corrupted: Tensor  # [N, T]
    correct: Tensor  # [N]
    incorrect: Tensor  # [N]

    def __len__(self) -> int:
        return len(self.clean)

    @cached_property
    def task(self) -> Any:
        """The same as a task."""
        return cd.Task.from_tokens(
            clean=self.clean, corrupted=self.corrupted, correct=self.correct, incorrect=self.incorrect
        )


def random_prompts(vocabulary: int, n_examples: int = 5, length: int = 6, seed: int = 0) -> Prompts:
    """Random token pairs; correct and incorrect answers differ."""
    generator = torch.Generator().manual_seed(seed)
    clean, corrupted = torch.randint(vocabulary, (2, n_examples, length), generator=generator)
    correct = torch.randint(vocabulary, (n_examples,), generator=generator)
    incorrect = (correct + 1 + torch.randint(vocabulary - 1, (n_examples,), generator=generator)) % vocabulary
    return Prompts(clean, corrupted, correct, incorrect)


@dataclass(frozen=True)
class Tiny:
    """One model folder, and everything that the tests want of it, made when it is first asked for."""

    name: str
    folder: Path
    words: Path  # a tokenizer, which TransformerBridge insists on

    @cached_property
    def hf(self) -> Any:
        """The Hugging Face model in float32."""
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32).eval()

    @cached_property
    def reference(self) -> Reference:
        """The slow reference in float32."""
        return Reference.boot(self.folder, self.words)

    @cached_property
    def reference64(self) -> Reference:
        """The slow reference in float64."""
        return Reference.boot(self.folder, self.words, dtype=torch.float64)

    @cached_property
    def model(self) -> Any:
        """What is tested."""
        return cd.load_model(self.folder)

    @cached_property
    def model64(self) -> Any:
        """The same in float64."""
        return cd.load_model(self.folder, dtype="float64")

    @cached_property
    def prompts(self) -> Prompts:
        """Five pairs of six random tokens."""
        return random_prompts(self.hf.config.vocab_size)
