"""Norms over d_model (or over heads), and what they do to a change of what they read.

A norm computes where its weight is: where layers are on several devices, a stream that goes through one
arrives where the layer's other weights are.

Deviations and what is divided by them are computed in float32 at least: in float16 the square of an element
above 256 is infinite. What is normalised is small enough to be rounded again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F


def wide(x: Tensor) -> Tensor:
    """The same in float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@dataclass(frozen=True)
class Norm:
    """LayerNorm, RMSNorm or none (a weight of ones and no bias) over d_model."""

    weight: Tensor  # [d_model]
    bias: Tensor | None  # [d_model]
    eps: float
    kind: Literal["layer", "rms", "none"]
    from_one: bool = False  # whether the weight is what is added to 1 (Gemma), in float32 at least

    @property
    def centred(self) -> bool:
        """Whether the mean over d_model is taken away."""
        return self.kind == "layer"

    @property
    def scale(self) -> Tensor:
        """[d_model]: what the normalised stream is multiplied with."""
        return self.weight + 1 if self.from_one else self.weight

    @property
    def bare(self) -> Norm:
        """The same without its gain and bias."""
        return replace(self, weight=torch.ones_like(self.weight), bias=None, from_one=False)

    @property
    def hooked(self) -> Norm:
        """The norm as far as TransformerLens' `hook_normalized`, which a LayerNorm of its HookedTransformer
        has after the gain and bias, and an RMSNorm before the gain."""
        return self if self.centred else self.bare

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.weight.device

    def back(self, x: Tensor) -> Tensor:
        """As a call, where x is."""
        return self(x).to(x.device)

    def push_back(self, stream: Tensor, change: Tensor) -> Tensor:
        """As `push`, where the change is."""
        return self.push(stream, change).to(change.device)

    def __call__(self, x: Tensor) -> Tensor:
        """[..., d_model] -> [..., d_model], normalised, scaled and shifted."""
        x = x.to(self.device)
        if self.from_one:
            scaled = F.rms_norm(wide(x), x.shape[-1:], None, self.eps) * (1 + wide(self.weight))
            return scaled.to(x.dtype)
        if self.kind == "layer":
            return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)
        if self.kind == "rms":
            return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)
        return x.view_as(x)  # a tensor of its own, so that its gradient is what its readers alone send back

    def centre(self, x: Tensor) -> Tensor:
        """[..., D] less its mean, where that is taken away."""
        return x - x.mean(-1, keepdim=True) if self.centred else x

    def gained(self, x: Tensor) -> Tensor:
        """[..., D]: as a call, without the division and the bias: what is linear."""
        return self.centre(x.to(self.device)) * self.scale

    def share(self, stream: Tensor, term: Tensor) -> Tensor:
        """[..., D]: the share of one term of a stream in the normalised stream, without the norm's bias."""
        _, inverse = self.jacobian(stream)
        return (self.gained(wide(term)) * inverse).to(term.dtype)

    def push(self, stream: Tensor, change: Tensor) -> Tensor:
        """[..., D]: what the normalised stream changes by where the stream does, to first order."""
        normalised, inverse = self.jacobian(stream)
        moved, normalised = self.centre(wide(change.to(self.device))), wide(normalised)
        along = (moved * normalised).mean(-1, keepdim=True)
        pushed = torch.addcmul(moved, normalised, along, value=-1) * (inverse * self.scale)
        return pushed.to(change.dtype)

    def jacobian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(x' [..., d_model], 1 / s [..., 1] in float32 at least) of the Jacobian g -> (centre(g) - x' mean(g
        x')) / s at a stream, before the weight.

        x' is the normalised stream and s its deviation; without a norm they are 0 and 1.
        """
        x = x.to(self.device)
        if self.kind == "none":
            return torch.zeros_like(x), wide(torch.ones_like(x[..., :1]))
        centred = self.centre(wide(x))
        inverse = torch.rsqrt(centred.square().mean(-1, keepdim=True) + self.eps)
        return (centred * inverse).to(x.dtype), inverse


def no_norm(like: Tensor) -> Norm:
    """One that changes nothing, for streams like this one."""
    return Norm(torch.ones_like(like[(0,) * (like.dim() - 1)]), None, 0.0, "none")
