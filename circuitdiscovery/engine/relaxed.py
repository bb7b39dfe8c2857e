"""A mask of real numbers: every edge carries a part of its source, and the loss has a gradient in each part.

    receiver r reads  (everything as replaced)  +  sum over s of mask[s, r] * (current - replacement) of s

`Relaxed.gradient` is that of `definition.masked_logits`, by hand across layers, for searches that take many
steps: what all sources write lies in one tensor, what all receivers read sends its gradient to another, and
autograd works within one layer at a time. A step is then a few large products, and copies nothing.

Shapes: R receivers, S sources, N examples, T positions, D d_model, K d_head; P = N * T places.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from circuitdiscovery.engine.fast import Memory, World
from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.model.model import Model
from circuitdiscovery.model.projection import centred, projected, pulled
from circuitdiscovery.model.run import at_position, per_head, unembed

# of receivers in one product of the mask's gradient: half of it lies where there is no edge
_LAYERS_AT_ONCE = 4


def graph_mask(graph: Graph, values: Tensor) -> Tensor:
    """[E] values in index order -> [S, R], 0 where there is no edge."""
    return torch.zeros(graph.allowed.shape, dtype=values.dtype).masked_scatter(
        torch.tensor(graph.allowed), values
    )


@dataclass(frozen=True)
class _Layer:
    """One layer's forward, for its backward."""

    streams: Tensor  # [R', P, D]: what queries, keys and values read, less its mean where the norm is centred
    inverse: Tensor  # [R', P, 1]: one over the norm's deviation
    projected: tuple[Tensor, ...]  # q, k, v: [R, P, K] each, leaves
    attended: Tensor  # [H, P, D]
    read: Tensor | None  # [P, D], what the MLP reads, a leaf
    written: Tensor | None  # [P, D]


@dataclass(frozen=True)
class Relaxed:
    """Relaxed forwards of one model with their gradients in the mask.

    Args:
        model, graph: what runs, and how its edges are counted.
        memory: what one step after the other writes to.
    """

    model: Model
    graph: Graph
    memory: Memory

    @classmethod
    def build(cls, model: Model, graph: Graph) -> Relaxed:
        """With memory of its own."""
        return cls(model, graph, Memory(model.W_E))

    @torch.no_grad()
    def gradient(self, world: World, mask: Tensor, loss: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """(the loss, its [S, R] gradient in a mask): one forward and one backward.

        Args:
            world: a batch under an ablation.
            mask: [S, R] real, 0 where there is no edge.
            loss: of the [N, vocabulary] logits; a scalar.
        """
        graph, shape = self.graph, world.start.shape
        places, width = shape[0] * shape[1], shape[2]
        mask = mask.to(world.start)
        difference = self.memory("difference", len(graph.sources), places, width)
        torch.sub(world.start, world.replacement[0], out=difference[0].view(shape))
        layers = [self._forward(layer, world, mask, difference) for layer in range(graph.n_layers)]
        # [N], the answers' places
        rows = torch.arange(shape[0], device=mask.device) * shape[1] + world.position
        answers = difference[:, rows]  # [S, N, D]
        with torch.enable_grad():
            last = at_position(world.bases[-1], world.position) + (mask[:, -1] @ answers.flatten(1)).view(
                -1, width
            )
            last.requires_grad_()
            value = loss(unembed(self.model, last))
            (at_answer,) = torch.autograd.grad(value, last)  # [N, D]
        # the gradients at what receivers but the logits read
        sent = self.memory("sent", len(graph.receivers) - 1, places, width)
        for layer in reversed(range(graph.n_layers)):
            self._backward(layer, layers.pop(), mask, sent, at_answer, rows)
        gradient = self._products(difference, sent)
        gradient[:, -1] = answers.flatten(1) @ at_answer.flatten()
        return value.detach(), gradient

    def _forward(self, layer: int, world: World, mask: Tensor, difference: Tensor) -> _Layer:
        model, graph, block, shape = self.model, self.graph, self.model.blocks[layer], world.start.shape
        columns = [graph.columns(layer, letter) for letter in "qkv"]
        streams = self._read(
            world.bases[2 * layer], np.concatenate(columns), graph.n_upstream(layer), mask, difference
        )
        streams, inverse = centred(block.norm1, streams)
        sizes = [len(each) for each in columns]
        parts = zip(streams.split(sizes), inverse.split(sizes), "qkv", strict=True)
        made = tuple(
            projected(block.norm1, stream, scale, *block.projection(letter)).requires_grad_()
            for stream, scale, letter in parts
        )
        with torch.enable_grad():
            q, k, v = (each.unflatten(1, shape[:2]) for each in made)
            z = block.attend(q, per_head(model, k), per_head(model, v))  # [H, N, T, K]
            attended = block.written(z).flatten(1, 2)  # [H, P, D]
        heads = graph.heads(layer)
        torch.sub(attended.detach(), world.replacement[heads].flatten(1, 2), out=difference[heads])
        if not graph.has_mlp:
            return _Layer(streams, inverse, made, attended, None, None)
        read = self._read(
            world.bases[2 * layer + 1],
            graph.columns(layer, "m"),
            graph.n_upstream(layer, "m"),
            mask,
            difference,
        )[0]
        read.requires_grad_()
        with torch.enable_grad():
            written = block.mlp_writes(read)
        torch.sub(
            written.detach(),
            world.replacement[graph.mlp(layer)].flatten(0, 1),
            out=difference[graph.mlp(layer)],
        )
        return _Layer(streams, inverse, made, attended, read, written)

    def _read(
        self, base: Tensor, columns: np.ndarray, upstream: int, mask: Tensor, difference: Tensor
    ) -> Tensor:
        """[len(columns), P, D]."""
        kept = mask[:upstream, torch.from_numpy(columns).to(mask.device)].T  # [R', S']
        out = base.flatten()[None].expand(len(columns), -1)
        return torch.addmm(out, kept, difference[:upstream].flatten(1)).unflatten(1, difference.shape[1:])

    def _backward(
        self, layer: int, kept: _Layer, mask: Tensor, sent: Tensor, at_answer: Tensor, rows: Tensor
    ) -> None:
        """Fill in what a layer's receivers send back."""
        graph, block = self.graph, self.model.blocks[layer]

        def received(sources: slice, first: int) -> Tensor:
            """[len(sources), P, D]: the gradient at what some sources
            write, from the receivers from one on."""
            gradient = (mask[sources, first:-1] @ sent[first:].flatten(1)).unflatten(1, sent.shape[1:])
            gradient[:, rows] += mask[sources, -1][:, None, None] * at_answer
            return gradient

        columns = [graph.columns(layer, letter) for letter in "qkv"]
        after = int(max(each[-1] for each in columns)) + 1  # the first receiver after these
        if kept.written is not None and kept.read is not None:
            (sent[after],) = torch.autograd.grad(
                kept.written, kept.read, received(graph.mlps(layer), after + 1)[0]
            )
        gradients = torch.autograd.grad(kept.attended, kept.projected, received(graph.heads(layer), after))
        sizes = [len(each) for each in columns]
        parts = zip(
            kept.streams.split(sizes),
            kept.inverse.split(sizes),
            gradients,
            kept.projected,
            "qkv",
            strict=True,
        )
        back = torch.cat(
            [
                pulled(block.norm1, *block.projection(letter), stream, scale, sent_back, made)
                for stream, scale, sent_back, made, letter in parts
            ]
        )
        if not graph.split_qkv:  # the three read the same
            columns, back = columns[:1], back.unflatten(0, (3, -1)).sum(0)
        sent[torch.from_numpy(np.concatenate(columns)).to(sent.device)] = back

    def _products(self, difference: Tensor, sent: Tensor) -> Tensor:
        """[S, R]: of what every source writes with what every receiver but the logits sends back."""
        graph = self.graph
        out = difference.new_zeros(graph.allowed.shape)
        layers = np.array(graph.receiver_layers[:-1])
        for first in range(0, graph.n_layers, _LAYERS_AT_ONCE):
            some = np.flatnonzero((layers >= first) & (layers < first + _LAYERS_AT_ONCE))
            columns = slice(int(some[0]), int(some[-1]) + 1)
            upstream = int(graph.allowed[:, some].any(1).sum())
            out[:upstream, columns] = difference[:upstream].flatten(1) @ sent[columns].flatten(1).T
        return out * torch.from_numpy(graph.allowed.copy()).to(out)
