"""Some rows of a tensor, and one product for all heads."""

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
