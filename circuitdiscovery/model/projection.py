"""A norm and a projection, which make a query, key or value of a stream; and a gradient back through both.

Shapes: R receivers, P places, D d_model, K d_head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from circuitdiscovery.model.norm import Norm, wide


@dataclass(frozen=True)
class Centred:
    """Streams as a projection reads them: times `left`, they are normalised.

    In float32 that is left to the projection, whose product is smaller. A half precision is normalised at
    once: float16 holds no product of a large stream.

    Args:
        x: [R, P, D], less its mean where the norm is centred.
        left: [R, P, 1].
        inverse: [R, P, 1], one over the deviation, in float32 at least.
    """

    x: Tensor
    left: Tensor
    inverse: Tensor

    def split(self, sizes: Sequence[int]) -> list[Centred]:
        """Some receivers each."""
        parts = (each.split(list(sizes)) for each in (self.x, self.left, self.inverse))
        return [Centred(*each) for each in zip(*parts, strict=True)]


def centred(norm: Norm, x: Tensor) -> Centred:
    """Of [R, P, D], which is written to."""
    one = torch.ones_like(x[..., :1])
    if norm.kind == "none":
        return Centred(x, one, wide(one))
    if norm.centred:
        x -= x.mean(-1, keepdim=True)
    square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide(one).dtype).square_()
    inverse = torch.rsqrt(square / x.shape[-1] + norm.eps)
    return (
        Centred(x, inverse, inverse) if inverse.dtype == x.dtype else Centred(x.mul_(inverse), one, inverse)
    )


def projected(norm: Norm, streams: Centred, weight: Tensor, bias: Tensor | None) -> Tensor:
    """[R, P, K] of [R, P, D]."""
    out = torch.bmm(streams.x, (weight * norm.scale).mT).mul_(streams.left)
    constant = offset(norm, weight, bias)
    return out if constant is None else out.add_(constant)


def pulled(
    norm: Norm, weight: Tensor, bias: Tensor | None, streams: Centred, gradient: Tensor, made: Tensor
) -> Tensor:
    """[R, P, D]: a gradient at what the projection makes, [R, P, K], back through it and the norm."""
    scaled, x, inverse = weight * norm.scale, streams.x, streams.inverse
    if norm.kind == "none":
        return torch.bmm(gradient, scaled)
    constant = offset(norm, weight, bias)
    linear = made.detach() if constant is None else made.detach() - constant
    along = (wide(gradient) * linear).sum(-1, keepdim=True) / x.shape[-1]
    out = torch.bmm((gradient * inverse).to(x.dtype), norm.centre(scaled))
    # not the square of the inverse, which is too large where a stream is nearly 0
    return out.addcmul_(x * streams.left, (along * inverse).to(x.dtype), value=-1)


def offset(norm: Norm, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """[R, 1, K]: what a projection makes of a normalised stream of 0."""
    shift = None if norm.bias is None else weight @ norm.bias
    parts = [each for each in (shift, bias) if each is not None]
    return torch.stack(parts).sum(0)[:, None] if parts else None
