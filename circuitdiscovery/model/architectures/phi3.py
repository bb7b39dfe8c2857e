"""Phi-3: Llama with one matrix for queries, keys and values, one for gate and input, and
rotary positions of a part of each head's dimensions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from circuitdiscovery.model.architectures.architecture import Weights, rotary_by
from circuitdiscovery.model.architectures.llama import LLAMA
from circuitdiscovery.model.architectures.llama import block as llama
from circuitdiscovery.model.block import Block


def block(config: Any, weights: Weights, layer: int, **how: Any) -> Block:
    """Queries, keys and values, and gate and input, follow each other: views serve."""
    attention, mlp = f"model.layers.{layer}.self_attn.", f"model.layers.{layer}.mlp."
    joint, groups = weights[attention + "qkv_proj.weight"], config.num_key_value_heads
    d_head = len(joint) // (config.num_attention_heads + 2 * groups)
    q, k, v = joint.split([config.num_attention_heads * d_head, groups * d_head, groups * d_head])
    gate, into = weights[mlp + "gate_up_proj.weight"].chunk(2)
    apart = {attention + "q_proj.weight": q, attention + "k_proj.weight": k, attention + "v_proj.weight": v}
    apart |= {mlp + "gate_proj.weight": gate, mlp + "up_proj.weight": into}
    return llama(config, {**weights, **apart}, layer, **how)


PHI3 = replace(LLAMA, block=block, rotary=rotary_by("phi3", "Phi3RotaryEmbedding"))
