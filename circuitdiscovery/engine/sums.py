"""Sums and products over some of the sources and some of the heads, by whichever way moves least.

Shapes: S sources, R receivers, B rows, D d_model, P places, M alternatives, h heads, K d_head.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from circuitdiscovery.model.rows import index_of, project, take

# costs of moving one stream of a source, in multiples of its share in a product (measured on two cores)
ADD = 10
COPY = 20


def shared(heads: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray | None]:
    """(the groups of so many heads that some heads are in, which of these each
    head is in); None where each has its own.
    """
    return (heads, None) if size == 1 else np.unique(heads // size, return_inverse=True)


def project_some(
    x: Tensor, which: np.ndarray, heads: np.ndarray, weight: Tensor, bias: Tensor | None, out: Tensor
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
