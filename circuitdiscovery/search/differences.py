"""What every source differs by, as attribution patching multiplies it with gradients.

Most sources have rows [N, T, D] of their own. Parts that are a number times a vector (model/packing.py) stay
so: a part's product with a gradient g is sum over places of c (v . g). Where a norm of their sum follows
(Gemma's MLPs), with normalised sum x', deviation s and gain w, its Jacobian makes of c v

    c / s (w v)  -  c / s mean(v x')  (w x')

which is a number times a vector again, less a number times one vector of each place that all parts share.

Shapes: S sources, N examples, T positions, P places (N * T, or N answers), D d_model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from circuitdiscovery.model.parts import Parts

_AT_ONCE = 2**25  # numbers of a product of gradients with parts' vectors


@dataclass(frozen=True)
class Scaled:
    """Sources that differ by numbers times vectors, and by others times a vector of the place.

    Args:
        which: among the numbers of all sources.
        numbers: [s, P], and vectors: [s, D].
        shared: ([s, P], [P, D]), what is added: numbers, and the vectors of the places.
    """

    which: slice
    numbers: Tensor
    vectors: Tensor
    shared: tuple[Tensor, Tensor] | None = None

    def products(self, gradients: Tensor) -> Tensor:
        """[R, s]: with [R, P, D] gradients, summed over the places."""
        size = max(1, _AT_ONCE // (gradients.shape[1] * len(self.vectors)))
        parts = [(g @ self.vectors.T * self.numbers.T).sum(1) for g in gradients.split(size)]
        found = torch.cat(parts)
        if self.shared is None:
            return found
        others, common = self.shared
        return found + (gradients * common).sum(-1) @ others.T


@dataclass(frozen=True)
class Differences:
    """Of all sources of a batch.

    Args:
        parts: how the sources follow from the nodes.
        packed: [S', N, T, D]; those with rows of their own as the stream changes by them.
        together: `Run.together`: what sources write together where a norm of that follows.
        position: [N], the answers'.
    """

    parts: Parts
    packed: Tensor
    together: Mapping[tuple[int, str], Tensor]
    position: Tensor
    _made: dict[tuple[int, bool], Scaled] = field(default_factory=dict)

    @classmethod
    def of(
        cls, parts: Parts, packed: Tensor, together: Mapping[tuple[int, str], Tensor], position: Tensor
    ) -> Differences:
        """From packed differences of what the sources write, [S', N, T, D], which are written to: where the
        sum of what they write goes through a norm, they become what that changes in the stream, to first
        order."""
        there = torch.arange(len(position), device=position.device), position
        for group in parts.groups:
            x, (own, _) = together[group.key], parts.packing.layout.split(group.rows)
            if group.layer == parts.graph.n_layers - 1:  # read at the answer's position alone
                packed[own, *there] = group.push(x[:, 0], packed[own, *there])
            else:
                packed[own] = group.push(x, packed[own])
        return cls(parts, packed, together, position)

    def upstream(self, count: int, at_answer: bool) -> tuple[Tensor, list[Scaled]]:
        """([s, P, D] of the first sources those with rows of their own, the others MLP by MLP), at all places
        or at the answers' alone."""
        layout, graph = self.parts.packing.layout, self.parts.graph
        own, _ = layout.split(slice(0, count))
        layers = (layer for layer in range(graph.n_layers) if graph.mlps(layer).stop <= count)
        scaled = (layer for layer in layers if layout.scaled[graph.mlps(layer)].any())
        return self._at(self.packed[own], at_answer), [self._scaled(layer, at_answer) for layer in scaled]

    def _at(self, values: Tensor, at_answer: bool) -> Tensor:
        """[s, N, T, ...] -> [s, P, ...]."""
        if not at_answer:
            return values.flatten(1, 2)
        rows = torch.arange(len(self.position), device=values.device)
        return values[:, rows, self.position.to(values.device)]

    def _scaled(self, layer: int, at_answer: bool) -> Scaled:
        """The parts of an MLP that are numbers times vectors."""
        if (layer, at_answer) not in self._made:
            self._made[layer, at_answer] = self._scale(layer, at_answer)
        return self._made[layer, at_answer]

    def _scale(self, layer: int, at_answer: bool) -> Scaled:
        packing = self.parts.packing
        _, which = packing.layout.split(self.parts.graph.mlps(layer))
        numbers = self._at(packing.numbers(self.packed, which), at_answer)
        vectors = packing.vectors[which].to(numbers)
        norm = self.parts.mlp_norm(layer)
        if norm is None:
            return Scaled(which, numbers, vectors)
        x = self.together[layer, "m"]
        x = x[:, 0] if x.shape[1] == 1 and at_answer else self._at(x[None], at_answer)[0]
        normalised, inverse = (each.to(numbers.device) for each in norm.jacobian(x))  # [P, D], [P, 1]
        scale = norm.scale.to(numbers.device)
        numbers = (numbers * inverse[:, 0]).to(numbers.dtype)
        vectors = norm.centre(vectors)
        others = numbers * (vectors @ normalised.T) / -vectors.shape[-1]
        return Scaled(which, numbers, vectors * scale, (others, normalised * scale))
