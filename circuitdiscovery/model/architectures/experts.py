"""Mixtures of experts: the MLP of a layer is the whole of one, by Hugging Face's own module."""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import nn

from circuitdiscovery.model.architectures.architecture import EXPERTS, Weights
from circuitdiscovery.model.block import Experts


def experts_by(family: str, name: str) -> Callable[[Any, Weights, str], Experts]:
    """Of (config, weights, prefix), the module of this name that Hugging Face has for a family, on the
    weights behind the prefix."""

    def experts(config: Any, weights: Weights, at: str) -> Experts:
        own = {key.removeprefix(at): value for key, value in weights.items() if key.startswith(at)}
        config = copy.copy(config)
        config._experts_implementation = EXPERTS
        kind = getattr(import_module(f"transformers.models.{family}.modeling_{family}"), name)
        with torch.device("meta"):
            module: nn.Module = kind(config)
        module.load_state_dict(own, assign=True)
        sizes = {key: value.numel() for key, value in own.items()}
        routed = sum(size for key, size in sizes.items() if key.startswith("experts."))
        n_experts = len(own["experts.down_proj"])
        width = getattr(config, "moe_intermediate_size", config.intermediate_size)
        chosen, all_others = config.num_experts_per_tok, sum(sizes.values()) - routed
        return Experts(
            module.eval().requires_grad_(False), all_others + routed * chosen // n_experts, chosen * width
        )

    return experts
