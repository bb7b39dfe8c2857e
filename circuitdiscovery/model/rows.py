"""Some rows of a tensor, and products for all heads or some."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def project(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """One stream for all heads: [..., D] through [h, K, D] -> [h, ..., K]."""
    out = F.linear(x, weight.flatten(0, 1), None if bias is None else bias.flatten())
    return out.unflatten(-1, weight.shape[:2]).movedim(-2, 0)


def index_of(rows: np.ndarray) -> slice | Tensor:
    """Rows as an index to write to: a slice where they follow each other."""
    numbers = rows.tolist()
    if (
        numbers
        and numbers[-1] - numbers[0] == len(numbers) - 1
        and numbers == list(range(numbers[0], numbers[-1] + 1))
    ):
        return slice(numbers[0], numbers[-1] + 1)
    return torch.from_numpy(rows)


def take(x: Tensor, rows: np.ndarray, dim: int = 0) -> Tensor:
    """Some rows, without a copy where they follow each other."""
    index = index_of(rows)
    if isinstance(index, slice):
        return x.narrow(dim, index.start, len(rows))
    return x.index_select(dim, index.to(x.device))


def project_some(
    weight: Tensor, bias: Tensor | None, x: Tensor, which: np.ndarray, heads: np.ndarray, out: Tensor
) -> None:
    """To [h, m, P, K], at some heads: one of the normalised streams [m or 1, P, u, D]
    for each, through its part of [h, K, D].

    Heads that share a stream go through one product.
    """
    readers = np.bincount(which, minlength=x.shape[2])  # of each stream
    x, shape = x.flatten(0, 1), x.shape[:2]
    for stream in (readers > 1).nonzero()[0]:
        rows = heads[which == stream]
        each = project(x[:, stream], take(weight, rows), None if bias is None else take(bias, rows))
        out[index_of(rows)] = each.unflatten(1, shape)
    alone = readers[which] == 1
    if alone.any():
        rows = heads[alone]
        each = project_each(
            take(x, which[alone], dim=1), take(weight, rows), None if bias is None else take(bias, rows)
        )
        out[index_of(rows)] = each.unflatten(1, shape)


def project_each(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """One stream for each head: [B, h, D] through [h, K, D] -> [h, B, K]."""
    out = torch.bmm(x.transpose(0, 1), weight.transpose(1, 2))
    return out if bias is None else out.add_(bias[:, None])
