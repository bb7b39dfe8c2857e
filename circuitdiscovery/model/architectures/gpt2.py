"""GPT-2: LayerNorm, learnt positions."""

from __future__ import annotations

from typing import Any

from circuitdiscovery.model.architectures.architecture import Architecture, Weights, heads
from circuitdiscovery.model.block import Block, Norm


def norm(config: Any, weights: Weights, at: str) -> Norm:
    """LayerNorm."""
    return Norm(weights[f"{at}.weight"], weights[f"{at}.bias"], config.layer_norm_epsilon, kind="layer")


def block(config: Any, weights: Weights, layer: int, **how: Any) -> Block:
    """Queries, keys and values are one matrix."""
    at = f"transformer.h.{layer}."
    d_head = config.n_embd // config.n_head
    # Conv1D holds [in, out]
    w_q, w_k, w_v = weights[at + "attn.c_attn.weight"].T.chunk(3)
    b_q, b_k, b_v = weights[at + "attn.c_attn.bias"].chunk(3)
    scale = d_head**-0.5 if config.scale_attn_weights else 1.0
    return Block(
        norm1=norm(config, weights, at + "ln_1"), norm2=norm(config, weights, at + "ln_2"),
        W_Q=heads(w_q, d_head), W_K=heads(w_k, d_head), W_V=heads(w_v, d_head),
        b_Q=heads(b_q, d_head), b_K=heads(b_k, d_head), b_V=heads(b_v, d_head),
        W_O=heads(weights[at + "attn.c_proj.weight"], d_head), b_O=weights[at + "attn.c_proj.bias"],
        scale=scale / (layer + 1) if config.scale_attn_by_inverse_layer_idx else scale,
        W_in=weights[at + "mlp.c_fc.weight"].T, b_in=weights[at + "mlp.c_fc.bias"], W_gate=None, b_gate=None,
        W_out=weights[at + "mlp.c_proj.weight"].T, b_out=weights[at + "mlp.c_proj.bias"],
        **how,
    )  # fmt: skip


GPT2 = Architecture(
    block,
    norm,
    layers="transformer.h",
    embedding="transformer.wte.weight",
    final_norm="transformer.ln_f",
    positions="transformer.wpe.weight",
    activation=lambda config: config.activation_function,
)
