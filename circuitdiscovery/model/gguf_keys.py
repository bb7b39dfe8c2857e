"""What a .gguf file states of a model's computation, beside the config that transformers makes of it.

transformers reads some keys of each family and takes its own defaults for the others without a word. Here
each key is one that changes nothing, or says what the config says, or is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isclose
from typing import Any

from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.model.build import architecture_of, of_family

# the sizes of tensors, which are compared with the tensors; what bounds prompts; and the fields of a rotary
# scaling that do nothing without its type, which is refused
_HARMLESS = {
    "block_count", "context_length", "decoder_start_token_id", "embedding_length",
    "expert_feed_forward_length", "expert_shared_count", "expert_shared_feed_forward_length",
    "feed_forward_length", "pooling_type", "rope.scaling.finetuned", "rope.scaling.original_context_length",
    "tensor_data_layout", "vocab_size",
}  # fmt: skip
_CAPS = {
    "gemma2": ("attn_logit_softcapping", "final_logit_softcapping"),
    "gemma3_text": ("final_logit_softcapping",),
}
# llama.cpp knows the models of 27 billion weights by their layers; no file says how their scores are scaled
_LAYERS_OF_27B = {"gemma2": 46, "gemma3_text": 62}


def complete(config: Any, stated: Mapping[str, Any]) -> None:
    """Write into a config what transformers does not read: the caps that a file states, and the score scale
    that llama.cpp computes of Gemma's sizes.
    """
    for cap in _CAPS.get(config.model_type, ()):
        if cap in stated:
            setattr(config, cap, stated[cap] or None)
    if config.model_type in _LAYERS_OF_27B:
        large = config.num_hidden_layers == _LAYERS_OF_27B[config.model_type]
        config.query_pre_attn_scalar = (
            config.hidden_size // config.num_attention_heads if large else config.head_dim
        )


def check_keys(config: Any, stated: Mapping[str, Any], name: str) -> None:
    """Refuse a file that states something else than what a config says, or something unknown."""
    if (scaling := stated.get("rope.scaling.type", "none")) != "none":
        raise CircuitDiscoveryError(f"{name}: transformers leaves out the file's rotary scaling {scaling!r}")
    taken = _taken(config)
    for key, value in stated.items():
        if key in _HARMLESS or (key.startswith("rope.scaling.") and "rope.scaling.type" in stated):
            continue
        if key not in taken:
            raise CircuitDiscoveryError(
                f"{name}: transformers leaves out the file's {key} {value!s:.60}, which is not supported"
            )
        known = taken[key]()
        if not _same(value, known):
            raise CircuitDiscoveryError(
                f"{name}: transformers leaves out the file's {key} {value!s:.60} and takes "
                f"{known!s:.60} for it"
            )


def _same(value: Any, known: Any) -> bool:
    if isinstance(value, list) and not isinstance(known, list):  # one for each layer
        return all(_same(each, known) for each in value)
    if isinstance(value, list | bool | str) or isinstance(known, list):
        return value == known
    return isinstance(value, int | float) and isclose(value, known or 0, rel_tol=1e-6)


def _taken(config: Any) -> Mapping[str, Callable[[], Any]]:
    """Key -> what the forward computes with."""
    heads = config.num_attention_heads

    def field(*names: str, default: Any = None) -> Callable[[], Any]:
        return lambda: next(
            (found for key in names if (found := getattr(config, key, None)) is not None), default
        )

    def d_head() -> int:
        return getattr(config, "head_dim", None) or config.hidden_size // heads

    def groups() -> int:
        return 1 if getattr(config, "multi_query", False) else field("num_key_value_heads", default=heads)()

    def score_scale() -> float:
        return float(getattr(config, "query_pre_attn_scalar", None) or d_head()) ** -0.5

    rotary = architecture_of(config.model_type).rotary(config)
    rope = getattr(config, "rope_parameters", None) or {}
    by_kind = isinstance(rotary, Mapping)  # without a suffix a key is of the layers without a window

    def turned(kind: str) -> int:
        found = rotary[kind] if isinstance(rotary, Mapping) else rotary
        return 0 if found is None else 2 * len(found.frequencies)

    def base(kind: str) -> float | None:
        return (rope[kind] if by_kind else rope).get("rope_theta")

    def windows() -> list[bool] | None:
        kinds = of_family(config, "layer_types")
        return None if kinds is None else [kind == "sliding_attention" for kind in kinds]

    found: dict[str, Callable[[], Any]] = {
        "attention.causal": lambda: True,
        "attention.clamp_kqv": lambda: 0.0,
        "attention.head_count": lambda: heads,
        "attention.head_count_kv": groups,
        "attention.layer_norm_epsilon": field("layer_norm_epsilon", "layer_norm_eps"),
        "attention.layer_norm_rms_epsilon": field("rms_norm_eps"),
        "attention.max_alibi_bias": lambda: 8.0,
        "attention.scale": score_scale,
        "attention.sliding_window": lambda: of_family(config, "sliding_window"),
        "attention.sliding_window_pattern": windows,
        "expert_count": field("num_experts", "num_local_experts"),
        "expert_gating_func": lambda: 1,  # softmax
        "expert_used_count": field("num_experts_per_tok"),
        "expert_weights_norm": field("norm_topk_prob"),
        "expert_weights_scale": lambda: 1.0,
        "nextn_predict_layers": lambda: 0,
        "rope.scaling.attn_factor": lambda: 1.0,
        "rope.scaling.factor": lambda: 1.0,
        "use_parallel_residual": field("use_parallel_residual"),
    }
    for suffix, kind in (("", "full_attention"), ("_swa", "sliding_attention")):
        found |= {
            f"attention.key_length{suffix}": d_head,
            f"attention.value_length{suffix}": d_head,
            f"rope.dimension_count{suffix}": lambda kind=kind: turned(kind),
            f"rope.freq_base{suffix}": lambda kind=kind: base(kind),
        }
    return found | {cap: field(cap) for cap in _CAPS.get(config.model_type, ())}
