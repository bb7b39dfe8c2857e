"""GPT-2: LayerNorm, learnt positions."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from circuitdiscovery.model.architectures.architecture import Architecture, Weights
from circuitdiscovery.model.architectures.parts import attention, mlp, norms
from circuitdiscovery.model.block import Block
from circuitdiscovery.model.norm import Norm


def norm(config: Any, weights: Weights, at: str) -> Norm:
    """LayerNorm."""
    return Norm(weights[f"{at}.weight"], weights[f"{at}.bias"], config.layer_norm_epsilon, kind="layer")


def block(config: Any, weights: Weights, layer: int, **how: Any) -> Block:
    """Queries, keys and values are one matrix."""
    at = f"transformer.h.{layer}."
    d_head = config.n_embd // config.n_head
    (joint, biases), out = _turned(weights, f"{at}attn.", "c_attn", "c_proj")
    scale = d_head**-0.5 if config.scale_attn_weights else 1.0
    return Block(
        **norms(norm, config, weights, at, "ln_1", "ln_2"),
        **attention(
            d_head,
            *zip(joint.chunk(3), biases.chunk(3), strict=True),
            out,
            scale=scale / (layer + 1) if config.scale_attn_by_inverse_layer_idx else scale,
        ),
        **mlp(*_turned(weights, f"{at}mlp.", "c_fc", "c_proj")),
        **how,
    )


def _turned(weights: Weights, at: str, *names: str) -> list[tuple[Tensor, Tensor]]:
    """As `linears`; Conv1D holds [in, out], and always a bias."""
    return [(weights[f"{at}{name}.weight"].T, weights[f"{at}{name}.bias"]) for name in names]


GPT2 = Architecture(
    block,
    norm,
    layers="transformer.h",
    embedding="transformer.wte.weight",
    final_norm="transformer.ln_f",
    positions="transformer.wpe.weight",
    activation=lambda config: config.activation_function,
)
