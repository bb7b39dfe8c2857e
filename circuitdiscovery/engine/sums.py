"""Sums and products over some of the sources and some of the heads, by whichever way moves least.

Shapes: S sources, R receivers, B rows, D d_model, P places, M alternatives, h heads, K d_head.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from circuitdiscovery.model.rows import take

# costs of moving one stream of a source, in multiples of its share in a product (measured on two cores)
ADD = 10
COPY = 20


def shared(heads: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray | None]:
    """(the groups of so many heads that some heads are in, which of these each
    head is in); None where each has its own.
    """
    return (heads, None) if size == 1 else np.unique(heads // size, return_inverse=True)


def combine(kept: np.ndarray, rows: np.ndarray, values: Tensor, out: Tensor | None = None) -> Tensor:
    """Sums over the kept ones of some sources: [s, R] bool, [s] rows of [B, S, D] ->
    [B, R, D], which may be written to `out`.

    By whichever moves least: adding up the kept ones, a product with the range
    that they span, or one with a copy of them.
    """
    used = kept.any(axis=1)
    kept, rows = kept[used], rows[used]
    if not len(rows):
        return values.new_zeros(len(values), kept.shape[1], values.shape[2])
    span = int(rows[-1] - rows[0]) + 1
    n_readers = kept.shape[1]
    costs = {
        "add": ADD * int(kept.sum()),
        "span": n_readers * span,
        "copy": n_readers * len(rows) + COPY * len(rows),
    }
    way = min(costs, key=costs.__getitem__)
    if way == "add":
        reader, source = np.nonzero(kept.T)
        starts = torch.from_numpy(np.searchsorted(reader, np.arange(n_readers)))
        places = torch.arange(len(values))[:, None]
        index = (places * values.shape[1] + torch.from_numpy(rows[source])).flatten().to(values.device)
        offsets = (places * len(source) + starts).flatten().to(values.device)
        return F.embedding_bag(index, values.flatten(0, 1), offsets, mode="sum").unflatten(
            0, (len(values), n_readers)
        )
    if way == "span":
        spread = np.zeros((span, n_readers), dtype=bool)
        spread[rows - rows[0]] = kept
        kept, values = spread, values[:, rows[0] : rows[-1] + 1]
    else:
        values = take(values, rows, dim=1)
    return torch.matmul(torch.from_numpy(kept.T.copy()).to(values), values, out=out)
