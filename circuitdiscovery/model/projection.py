"""A norm and a projection, which make a query, key or value of a stream; and a gradient back through both.

Shapes: R receivers, P places, D d_model, K d_head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from circuitdiscovery.model.norm import Norm


def centred(norm: Norm, x: Tensor) -> tuple[Tensor, Tensor]:
    """([R, P, D] less its mean where the norm is centred, [R, P, 1] one over the deviation)."""
    if norm.kind == "none":
        return x, torch.ones_like(x[..., :1])
    if norm.centred:
        x -= x.mean(-1, keepdim=True)
    square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
    return x, torch.rsqrt(square / x.shape[-1] + norm.eps)


def projected(norm: Norm, x: Tensor, inverse: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """[R, P, K] of [R, P, D] streams that are not scaled yet."""
    out = torch.bmm(x, (weight * norm.scale).mT).mul_(inverse)
    constant = offset(norm, weight, bias)
    return out if constant is None else out.add_(constant)


def pulled(
    norm: Norm,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    inverse: Tensor,
    gradient: Tensor,
    made: Tensor,
) -> Tensor:
    """[R, P, D]: a gradient at what the projection makes, [R, P, K], back through it and the norm."""
    scaled = weight * norm.scale
    if norm.kind == "none":
        return torch.bmm(gradient, scaled)
    constant = offset(norm, weight, bias)
    linear = made.detach() if constant is None else made.detach() - constant
    along = (gradient * linear).sum(-1, keepdim=True) / x.shape[-1]
    out = torch.bmm(gradient * inverse, norm.centre(scaled))
    # not the square of the inverse, which in float16 is too large where a stream is nearly 0
    return out.addcmul_(x * inverse, along * inverse, value=-1)


def offset(norm: Norm, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """[R, 1, K]: what a projection makes of a normalised stream of 0."""
    shift = None if norm.bias is None else weight @ norm.bias
    parts = [each for each in (shift, bias) if each is not None]
    return torch.stack(parts).sum(0)[:, None] if parts else None
