"""TransformerLens' own models (`TransformerBridge.boot_native`), the attention-only ones among them."""

from __future__ import annotations

from typing import Any

import torch

from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.model.architectures.architecture import Architecture, Weights
from circuitdiscovery.model.architectures.parts import attention, linears, mlp, norms
from circuitdiscovery.model.block import Block
from circuitdiscovery.model.norm import Norm

KIND = "transformer_lens_native"
_NORMS = {"LN": "layer", "LNPRE": "layer", "RMS": "rms", "RMSPRE": "rms", "NONE": "none"}


class NativeConfig:
    """What the loader asks of a config, from TransformerLens' `cfg`.

    Raises:
        CircuitDiscoveryError: what our forward does not compute, by name.
    """

    model_type = KIND
    sliding_window = None

    def __init__(self, cfg: Any) -> None:
        self.norm = str(cfg.normalization_type).upper()
        self.eps, self.hidden_size = float(cfg.eps), int(cfg.d_model)
        self.num_hidden_layers, self.d_head = int(cfg.n_layers), int(cfg.d_head)
        self.attention_only, self.gated = bool(cfg.attn_only), bool(cfg.gated_mlp)
        scaled = cfg.use_attn_scale and cfg.attn_scale > 0
        self.scale = 1 / cfg.attn_scale if scaled else self.d_head**-0.5
        act = cfg.act_fn or ("silu" if self.gated else "gelu")
        self.hidden_act = "gelu" if self.attention_only else act  # which its configs name without one
        unlike = {
            f"positions of kind {cfg.positional_embedding_type!r}": cfg.positional_embedding_type
            != "standard",
            f"the norm {cfg.normalization_type!r}": self.norm not in _NORMS,
            "another norm at the end than in the layers": cfg.final_rms and _NORMS.get(self.norm) != "rms",
            "a soft cap": cfg.attn_scores_soft_cap > 0 or cfg.output_logits_soft_cap > 0,
            "attention to later tokens": cfg.attention_dir != "causal",
            f"the activation {cfg.act_fn!r}": "solu" in self.hidden_act,
        }
        for what, there in unlike.items():
            if there:
                raise CircuitDiscoveryError(f"{what} is not supported")


def norm(config: Any, weights: Weights, at: str) -> Norm:
    """LayerNorm, RMSNorm or none; the kinds that are called Pre have no weights."""
    weight = weights.get(f"{at}.weight")
    if weight is None:
        weight = torch.ones_like(weights["tok_embed.weight"][0])
    return Norm(weight, weights.get(f"{at}.bias"), config.eps, _NORMS[config.norm])  # pyright: ignore


def block(config: Any, weights: Weights, layer: int, **how: Any) -> Block:
    """Attention, and an MLP where the model has some."""
    at, d_head = f"layers.{layer}.", config.d_head
    parts = () if config.attention_only else ("in", "out", "gate") if config.gated else ("fc_in", "fc_out")
    return Block(
        **norms(norm, config, weights, at, "ln1", "ln2"),
        **attention(d_head, *linears(weights, f"{at}attn.", *"qkvo"), scale=config.scale),
        **mlp(*linears(weights, f"{at}mlp.", *parts)),
        **how,
    )


NATIVE = Architecture(
    block,
    norm,
    layers="layers",
    embedding="tok_embed.weight",
    final_norm="ln_out",
    unembedding=("head.weight",),
    unembedding_bias="head.bias",
    positions="pos.weight",
)
