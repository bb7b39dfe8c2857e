"""BLOOM: LayerNorm, of the token embeddings too, and ALiBi."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from circuitdiscovery.model.architectures.architecture import ATTENTION, Weights, none, slopes
from circuitdiscovery.model.architectures.falcon import FALCON, joint_block
from circuitdiscovery.model.block import Block
from circuitdiscovery.model.positions import Alibi


def block(config: Any, weights: Weights, layer: int, **how: Any) -> Block:
    """Falcon's, in series, with a key and a value of each head's own."""
    alibi = Alibi(slopes(config.n_head, weights[BLOOM.embedding].device))
    return joint_block(config, weights, layer, config.n_head, alibi=alibi, **how)


BLOOM = replace(
    FALCON,
    block=block,
    embed_norm="transformer.word_embeddings_layernorm",
    rotary=none,
    activation=lambda config: "gelu_pytorch_tanh",
    parallel=lambda config: False,
    attention=ATTENTION,
    adding="am",
    refused=lambda config: {
        "a residual stream of norms (apply_residual_connection_post_layernorm)": bool(
            config.apply_residual_connection_post_layernorm
        )
    },
)
