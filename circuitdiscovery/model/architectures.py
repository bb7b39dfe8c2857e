"""Where the supported families keep their weights: the config and the named tensors
of a Hugging Face model become one `Model`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from circuitdiscovery.errors import CircuitDiscoveryError, shown
from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.model.block import Block, Norm, Rotary
from circuitdiscovery.model.model import Model

Weights = Mapping[str, Tensor]


def _heads(weight: Tensor, d_head: int) -> Tensor:
    """[heads * d_head, d_model] -> [heads, d_head, d_model]; biases alike."""
    return weight.unflatten(0, (-1, d_head))


def _optional_heads(bias: Tensor | None, d_head: int) -> Tensor | None:
    return None if bias is None else _heads(bias, d_head)


def _gpt2_block(config: Any, weights: Weights, layer: int, **how: Any) -> Block:
    at = f"transformer.h.{layer}."
    d_head = config.n_embd // config.n_head
    # Conv1D holds [in, out]
    w_q, w_k, w_v = weights[at + "attn.c_attn.weight"].T.chunk(3)
    b_q, b_k, b_v = weights[at + "attn.c_attn.bias"].chunk(3)
    scale = d_head**-0.5 if config.scale_attn_weights else 1.0
    return Block(
        norm1=Norm(weights[at + "ln_1.weight"], weights[at + "ln_1.bias"], config.layer_norm_epsilon, kind="layer"),
        W_Q=_heads(w_q, d_head), W_K=_heads(w_k, d_head), W_V=_heads(w_v, d_head),
        b_Q=_heads(b_q, d_head), b_K=_heads(b_k, d_head), b_V=_heads(b_v, d_head),
        W_O=_heads(weights[at + "attn.c_proj.weight"], d_head), b_O=weights[at + "attn.c_proj.bias"],
        scale=scale / (layer + 1) if config.scale_attn_by_inverse_layer_idx else scale,
        norm2=Norm(weights[at + "ln_2.weight"], weights[at + "ln_2.bias"], config.layer_norm_epsilon, kind="layer"),
        W_in=weights[at + "mlp.c_fc.weight"].T, b_in=weights[at + "mlp.c_fc.bias"], W_gate=None, b_gate=None,
        W_out=weights[at + "mlp.c_proj.weight"].T, b_out=weights[at + "mlp.c_proj.bias"],
        **how,
    )  # fmt: skip


def _llama_block(config: Any, weights: Weights, layer: int, **how: Any) -> Block:
    at = f"model.layers.{layer}."
    attention, mlp = at + "self_attn.", at + "mlp."
    d_head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    b_q, b_k, b_v = (_optional_heads(weights.get(f"{attention}{x}_proj.bias"), d_head) for x in "qkv")
    return Block(
        norm1=Norm(weights[at + "input_layernorm.weight"], None, config.rms_norm_eps, kind="rms"),
        W_Q=_heads(weights[attention + "q_proj.weight"], d_head),
        W_K=_heads(weights[attention + "k_proj.weight"], d_head),
        W_V=_heads(weights[attention + "v_proj.weight"], d_head),
        b_Q=b_q, b_K=b_k, b_V=b_v,
        W_O=_heads(weights[attention + "o_proj.weight"].T, d_head), b_O=weights.get(attention + "o_proj.bias"),
        scale=d_head**-0.5,
        norm2=Norm(weights[at + "post_attention_layernorm.weight"], None, config.rms_norm_eps, kind="rms"),
        W_in=weights[mlp + "up_proj.weight"], b_in=weights.get(mlp + "up_proj.bias"),
        W_gate=weights[mlp + "gate_proj.weight"], b_gate=weights.get(mlp + "gate_proj.bias"),
        W_out=weights[mlp + "down_proj.weight"], b_out=weights.get(mlp + "down_proj.bias"),
        **how,
    )  # fmt: skip


def _neox_block(config: Any, weights: Weights, layer: int, **how: Any) -> Block:
    at = f"gpt_neox.layers.{layer}."
    d_head = config.hidden_size // config.num_attention_heads
    # heads are outermost and q, k, v inside each: no strided view serves a fused product, so these are copies
    w_q, w_k, w_v = (
        w.contiguous()
        for w in _heads(weights[at + "attention.query_key_value.weight"], 3 * d_head).chunk(3, dim=1)
    )
    bias = _optional_heads(weights.get(at + "attention.query_key_value.bias"), 3 * d_head)
    b_q, b_k, b_v = (None, None, None) if bias is None else bias.chunk(3, dim=1)
    norms = [
        Norm(weights[f"{at}{name}.weight"], weights[f"{at}{name}.bias"], config.layer_norm_eps, kind="layer")
        for name in ("input_layernorm", "post_attention_layernorm")
    ]
    return Block(
        norm1=norms[0], W_Q=w_q, W_K=w_k, W_V=w_v, b_Q=b_q, b_K=b_k, b_V=b_v,
        W_O=_heads(weights[at + "attention.dense.weight"].T, d_head), b_O=weights.get(at + "attention.dense.bias"),
        scale=d_head**-0.5, norm2=norms[1],
        W_in=weights[at + "mlp.dense_h_to_4h.weight"], b_in=weights[at + "mlp.dense_h_to_4h.bias"], W_gate=None, b_gate=None,
        W_out=weights[at + "mlp.dense_4h_to_h.weight"], b_out=weights[at + "mlp.dense_4h_to_h.bias"],
        **how,
    )  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """Where one family keeps what all families have."""

    # of (config, weights, layer), and of what they all have: rotary, window, activation
    block: Callable[..., Block]
    layers: str
    embedding: str
    final_norm: str
    unembedding: tuple[str, ...]
    positions: str | None = None


_LLAMA = Architecture(
    _llama_block, "model.layers", "model.embed_tokens.weight", "model.norm", ("lm_head.weight",)
)
ARCHITECTURES = {
    "gpt2": Architecture(
        _gpt2_block,
        "transformer.h",
        "transformer.wte.weight",
        "transformer.ln_f",
        ("lm_head.weight",),
        "transformer.wpe.weight",
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "gpt_neox": Architecture(
        _neox_block,
        "gpt_neox.layers",
        "gpt_neox.embed_in.weight",
        "gpt_neox.final_layer_norm",
        ("lm_head.weight", "embed_out.weight"),
    ),
}

# what our forward does not compute, by the name a reader of the model's paper knows it by
_POST_NORM, _MOE, _ALIBI = (
    "post-norm (a norm after attention or the MLP)",
    "mixture of experts",
    "ALiBi position biases",
)
_KNOWN_REASONS = {
    "gemma2": _POST_NORM, "gemma3": _POST_NORM, "gemma3_text": _POST_NORM, "olmo2": _POST_NORM, "olmo3": _POST_NORM, "glm4": _POST_NORM,
    "mixtral": _MOE, "qwen2_moe": _MOE, "qwen3_moe": _MOE, "deepseek_v3": _MOE, "olmoe": _MOE, "gpt_oss": _MOE,
    "bloom": _ALIBI, "mpt": _ALIBI, "falcon": f"{_ALIBI} or multi-query attention", "qwen3": "a norm on queries and keys",
    "mamba": "a state space instead of attention", "mamba2": "a state space instead of attention", "t5": "an encoder", "bert": "an encoder",
}  # fmt: skip
_STATIC_ROPE = ("default", "linear", "llama3", "yarn")


def check_kind(kind: Any, name: str) -> None:
    """Refuse, by name, a family (`model_type`) that the forward does not compute."""
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        reason = _KNOWN_REASONS.get(kind) if isinstance(kind, str) else None
        raise CircuitDiscoveryError(
            f"{name}: architecture {kind!r} is not supported{f' ({reason})' if reason else ''}; "
            f"supported: {', '.join(ARCHITECTURES)}"
        )


def check_supported(config: Any, name: str) -> None:
    """Refuse, by name, what the forward does not compute."""
    check_kind(config.model_type, name)
    if getattr(config, "add_cross_attention", False):
        raise CircuitDiscoveryError(f"{name}: cross-attention is not supported")
    rope = getattr(config, "rope_parameters", None) or {}
    kind, turned = rope.get("rope_type", "default"), rope.get("partial_rotary_factor", 1.0)
    if kind not in _STATIC_ROPE:
        raise CircuitDiscoveryError(
            f"{name}: rotary scaling {kind!r} depends on the prompt's length; supported: "
            f"{', '.join(_STATIC_ROPE)}"
        )
    if not 0 < turned <= 1:  # it is the size of a table
        raise CircuitDiscoveryError(
            f"{name}: the rotary part of a head must be above 0 and at most 1, not {turned!r}"
        )
    window = getattr(config, "sliding_window", None)
    if window is not None and (isinstance(window, bool) or not isinstance(window, int) or window < 1):
        raise CircuitDiscoveryError(
            f"{name}: a sliding window must be a whole number of at least 1, not {window!r}"
        )
    kinds, layers = getattr(config, "layer_types", None), config.num_hidden_layers
    if kinds is not None and not (isinstance(kinds, list | tuple) and len(kinds) == layers):
        raise CircuitDiscoveryError(
            f"{name}: layer_types must name the kind of each of its {layers} layers, not {shown(kinds, 100)}"
        )


def _window(config: Any, layer: int) -> int | None:
    """How many positions a layer's queries see; None: all before them."""
    kinds = getattr(config, "layer_types", None)
    slides = kinds is None or kinds[layer] == "sliding_attention"
    return getattr(config, "sliding_window", None) if slides else None


def _activation(name: str) -> Callable[[Tensor], Tensor]:
    """Hugging Face's activation, by torch's fused kernel where there is one for the same function."""
    if name in ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"):
        return partial(F.gelu, approximate="tanh")  # a lambda could not be pickled
    from transformers.activations import ACT2FN

    return {"gelu": F.gelu, "silu": F.silu, "swish": F.silu, "relu": F.relu}.get(name) or ACT2FN[name]


def _rotary(config: Any) -> Rotary | None:
    if config.model_type == "gpt2":
        return None
    if config.model_type == "gpt_neox":
        from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXRotaryEmbedding as Embedding
    else:
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding as Embedding
    embedding: Any = Embedding(config)
    return Rotary(embedding.inv_freq.float(), float(embedding.attention_scaling))


def build(config: Any, weights: Weights, name: str, digest: str, tokenizer: Any) -> Model:
    """The model of a supported config and of the weights under Hugging Face's names."""
    architecture = ARCHITECTURES[config.model_type]
    embedding, rotary = weights[architecture.embedding], _rotary(config)
    turned = rotary and replace(rotary, frequencies=rotary.frequencies.to(embedding.device))
    activation = _activation(config.activation_function if config.model_type == "gpt2" else config.hidden_act)
    blocks = tuple(
        architecture.block(
            config, weights, layer, rotary=turned, window=_window(config, layer), activation=activation
        )
        for layer in range(config.num_hidden_layers)
    )
    norm, final = blocks[0].norm1, architecture.final_norm
    parallel = config.model_type == "gpt_neox" and bool(config.use_parallel_residual)
    return Model(
        name=name,
        digest=digest,
        tokenizer=tokenizer,
        graph=Graph(len(blocks), len(blocks[0].W_Q), len(blocks[0].W_K), parallel=parallel),
        W_E=embedding,
        W_pos=weights[architecture.positions] if architecture.positions else None,
        blocks=blocks,
        final_norm=Norm(weights[final + ".weight"], weights.get(final + ".bias"), norm.eps, norm.kind),
        W_U=next(
            weights[key] for key in (*architecture.unembedding, architecture.embedding) if key in weights
        ),
    )


def weights_digest(weights: Weights) -> str:
    """SHA-256 over the sorted tensors' names, shapes and bytes; the same for a
    folder, its Hugging Face model and its bridge.

    Half precisions are hashed as the float32 that they are exactly, so that it
    does not matter which of them holds a value.
    """

    def one(name: str) -> str:
        tensor = weights[name].detach().cpu().contiguous()
        tensor = tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
        return (
            f"{name} {list(tensor.shape)} {hashlib.sha256(tensor.view(torch.uint8).numpy().data).hexdigest()}"
        )

    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter lock
        return hashlib.sha256("\n".join(pool.map(one, sorted(weights))).encode()).hexdigest()
