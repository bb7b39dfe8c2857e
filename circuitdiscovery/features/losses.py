"""What the kinds of dictionaries are trained on: each one's parameters, features and loss.

x [B, d_in] is what is read, y [B, d_out] what is to be written, both scaled so that E|x - E x|^2 = d. p = W x
+ b are the features' pre-activations, z their values, D the decoder's rows, each of length 1, y' = D^T z + b'
what is written; s is `sparsity`, averages are over B.

topk (Gao et al. 2024, arXiv 2406.04093): z keeps the k largest of p, positive ones. The loss is |y - y'|^2 +
    1/32 |e - e'|^2 (their section A.2), where e = y - y' and e' is written by those of the features that have
    been dead for a while which are the d / 2 largest.
relu (Bricken et al. 2023, Towards Monosemanticity; the decoder of unit norm, its gradient without the part
    along its rows): z = relu(p), |y - y'|^2 + s sum z. Dead neurons are not sown anew.
jumprelu (Rajamanoharan et al. 2024b, arXiv 2407.14435): z = p where p > t, else 0 (equation 4), |y - y'|^2 +
    s sum 1[p > t] (equation 9). The gradient in t is a kernel estimate (equations 11 and 12), of a rectangle
    of width e around the threshold: -(t / e) of what z gets and -(1 / e) of what the count gets, where
    |p - t| < e / 2.
gated (Rajamanoharan et al. 2024a, arXiv 2404.16014): with g = p the gate, z = relu(exp(r) W x + c) where g >
    0 (equations 6 and 7), |y - y'|^2 + s sum relu(g) + |y - D'^T relu(g) - b'|^2 (section 3.2.2), in the last
    term of which the decoder is held.

End to end, |y - y'|^2 is another distance, in the gate's term, too (`features.end_to_end`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

AUXILIARY = 1 / 32
DEAD_STEPS = 100  # without a single value, after which a feature counts as dead
BANDWIDTH = 0.1  # of the kernel; the paper's .001 is of activations whose E|x|^2 is 1
# at the start: the deviation of what a random row gives of scaled activations. A smaller one lets so much be
# active while the penalty rises that directions are mixed, which an L0 penalty, without a gradient in the
# directions, does not undo
_THRESHOLD = 1.0

Parameters = dict[str, Tensor]


def start(kind: str, n: int, d_in: int, d_out: int, generator: torch.Generator) -> Parameters:
    """Decoder rows in random directions, and an autoencoder's encoder the same (Gao et al. 2024)."""
    decoder = F.normalize(torch.randn(n, d_out, generator=generator), dim=1)
    encoder = decoder.clone() if d_in == d_out else torch.randn(n, d_in, generator=generator) / d_in**0.5
    found = {"W_enc": encoder, "b_enc": torch.zeros(n), "W_dec": decoder, "b_dec": torch.zeros(d_out)}
    if kind == "jumprelu":
        found["log_threshold"] = torch.full((n,), math.log(_THRESHOLD))
    if kind == "gated":
        found |= {"r_mag": torch.zeros(n), "b_mag": torch.zeros(n)}
    return {name: each.requires_grad_() for name, each in found.items()}


def loss_of(
    kind: str,
    held: Mapping[str, Tensor],
    x: Tensor,
    y: Tensor,
    *,
    k: int,
    sparsity: float,
    dead: Tensor,
    away: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(the loss, |y - y'|^2 alone, z): of the scaled activations of a batch.

    Args:
        kind: of the dictionary.
        held: its parameters.
        x: what W is multiplied with: of an autoencoder less b'.
        y: what is to be written.
        k: of topk.
        sparsity: what each unit of sparsity costs now.
        dead: [n], which features are dead.
        away: how far what is written [B, d_out] is from what it should be; by default |y - y'|^2.
    """
    away = (lambda made: _squared(y - made)) if away is None else away
    product = F.linear(x, held["W_enc"])
    before = product + held["b_enc"]
    extra: Tensor | float = 0.0
    if kind == "topk":
        values, which = before.topk(k, dim=-1, sorted=False)
        z = torch.zeros_like(before).scatter(-1, which, values.relu())
    elif kind == "relu":
        z = before.relu()
        extra = sparsity * z.sum(-1).mean()
    elif kind == "jumprelu":
        threshold = held["log_threshold"].exp()
        z = _jump(before, threshold)
        extra = sparsity * _count(before, threshold).sum(-1).mean()
    else:
        z = (product * held["r_mag"].exp() + held["b_mag"]).relu() * (before > 0)
        gate = before.relu()
        through = gate @ held["W_dec"].detach() + held["b_dec"].detach()
        extra = sparsity * gate.sum(-1).mean() + away(through)
    made = z @ held["W_dec"] + held["b_dec"]
    error = y - made
    if kind == "topk" and bool(dead.any()):
        extra = AUXILIARY * _of_dead(before, dead, held["W_dec"], error.detach())
    return away(made) + extra, _squared(error).detach(), z.detach()


def _squared(x: Tensor) -> Tensor:
    return x.square().sum(-1).mean()


def _of_dead(before: Tensor, dead: Tensor, decoder: Tensor, error: Tensor) -> Tensor:
    """|e - e'|^2: how well the dead features alone write what is missing."""
    some = dead.nonzero()[:, 0]
    values, which = before[:, some].topk(min(len(some), max(1, error.shape[1] // 2)), dim=-1, sorted=False)
    z = before.new_zeros(len(before), len(some)).scatter(-1, which, values.relu())
    return _squared(z @ decoder[some] - error)


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, before: Tensor, threshold: Tensor) -> Tensor:
        ctx.save_for_backward(before, threshold)
        return before * (before > threshold)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        before, threshold = ctx.saved_tensors
        near = ((before - threshold).abs() < BANDWIDTH / 2) * grads[0]
        return grads[0] * (before > threshold), -(threshold / BANDWIDTH) * near.sum(0)


class _Count(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, before: Tensor, threshold: Tensor) -> Tensor:
        ctx.save_for_backward(before, threshold)
        return (before > threshold).to(before.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        before, threshold = ctx.saved_tensors
        near = ((before - threshold).abs() < BANDWIDTH / 2) * grads[0]
        return None, -near.sum(0) / BANDWIDTH


def _jump(before: Tensor, threshold: Tensor) -> Tensor:
    out: Any = _Jump.apply(before, threshold)
    return out


def _count(before: Tensor, threshold: Tensor) -> Tensor:
    out: Any = _Count.apply(before, threshold)
    return out
