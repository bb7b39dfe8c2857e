"""How attention knows positions: rotary embeddings of queries and keys, and linear biases of the scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from circuitdiscovery.model.rows import take

Heads = Sequence[int] | np.ndarray | None  # some of a layer's, or all


@dataclass(frozen=True)
class Rotary:
    """Rotary position embedding of the first `2 * len(frequencies)` dimensions of a
    head (Su et al. 2021, arXiv 2104.09864).
    """

    frequencies: Tensor  # [rotary / 2], float32 as in Hugging Face
    scaling: float  # of cos and sin (YaRN's attention factor)
    # whether dimension 2i goes with 2i + 1 (GPT-J), and not with the half's other one
    neighbours: bool = False
    # of the prompt's length: frequencies and scaling, where they depend on it (dynamic, longrope)
    by_length: Callable[[int], tuple[Tensor, float]] | None = None

    def at(self, length: int) -> Rotary:
        """For prompts of so many tokens."""
        if self.by_length is None:
            return self
        frequencies, scaling = self.by_length(length)
        return replace(
            self, frequencies=frequencies.to(self.frequencies.device), scaling=scaling, by_length=None
        )

    def __call__(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """[..., position, d_head] -> the same, each position's pairs turned by its
        angles; positions are 0, 1, ... unless given.
        """
        if positions is None:
            positions = torch.arange(x.shape[-2], device=x.device)
        angles = positions.float()[..., None] * self.frequencies
        # [..., position, rotary]
        angles = (
            angles.repeat_interleave(2, dim=-1) if self.neighbours else torch.cat([angles, angles], dim=-1)
        )
        cos, sin = (angles.cos() * self.scaling).to(x.dtype), (angles.sin() * self.scaling).to(x.dtype)
        turned, rest = x.split([angles.shape[-1], x.shape[-1] - angles.shape[-1]], dim=-1)
        if self.neighbours:
            first, second = turned[..., 0::2], turned[..., 1::2]
            across = torch.stack([-second, first], dim=-1).flatten(-2)
        else:
            first, second = turned.chunk(2, dim=-1)
            across = torch.cat([-second, first], dim=-1)
        turned = turned * cos + across * sin
        return torch.cat([turned, rest], dim=-1) if rest.shape[-1] else turned


@dataclass(frozen=True)
class Alibi:
    """Attention with linear biases: a key counts the less the further it is before the query, at a slope of
    each head's own (Press et al. 2021, arXiv 2108.12409).
    """

    slopes: Tensor  # [heads]; a slope times a position is rounded to their dtype, as in Hugging Face
    scale: float = 1.0  # of these products

    def __call__(self, length: int, position: Tensor | None, heads: Heads) -> Tensor:
        """[h, 1, T, T], or [h, N, 1, T] at [N] positions, float32: what is added to the score of each query
        and key; 0 at the query's own position, so that a half precision holds those near it.
        """
        slopes = self.slopes if heads is None else take(self.slopes, np.asarray(heads))
        places = (slopes[:, None] * torch.arange(length, device=slopes.device)).float()  # [h, T]
        own = places[:, None, :, None] if position is None else places[:, position, None, None]
        return (places[:, None, None] - own) * self.scale
