"""A mask of real numbers: every edge carries a part of its source, and the loss has a gradient in each part.

    receiver r reads  (everything as replaced)  +  sum over s of mask[s, r] * (current - replacement) of s

where sources that go through a norm together add what that norm makes of such a sum of theirs.

`Relaxed.gradient` is that of `definition.masked_logits`, by hand across layers, for searches that take many
steps: what all sources write lies in one tensor, what all receivers read sends its gradient to another, and
autograd works within one layer at a time. A step is then a few large products, and copies nothing.

Shapes: R receivers, S sources, N examples, T positions, D d_model, K d_head; P = N * T places.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from circuitdiscovery.engine.fast import Memory, PatchedRun
from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.model.block import Block
from circuitdiscovery.model.model import Model
from circuitdiscovery.model.parts import Group
from circuitdiscovery.model.projection import Centred, centred, projected, pulled
from circuitdiscovery.model.run import per_head, unembed

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

    # what queries, keys and values read; nothing where heads do not read each for itself
    streams: Centred | None
    # leaves: q, k, v, [R, P, K] each; the streams themselves where heads do not read each for itself
    leaves: tuple[Tensor, ...]
    attended: Tensor  # [s, P, D]
    read: Tensor | None  # [r, P, D], what the MLP reads, a leaf
    written: Tensor | None  # [s, P, D]


@dataclass(frozen=True)
class _Step:
    """One forward and backward.

    Args:
        patched: a batch under an ablation.
        mask: [S, R] real.
        difference: [S, P, D], current - replacement, filled layer by layer.
        sent: [R - 1, P, D], the gradients at what all receivers but the logits read, filled backwards.
        rows: [N], the answers' places.
        mixed: of each group of sources that go through a norm together, its rows and [s, R], the gradients in
            their part of the mask.
    """

    patched: PatchedRun
    mask: Tensor
    difference: Tensor
    sent: Tensor
    rows: Tensor
    mixed: list[tuple[slice, Tensor]] = field(default_factory=list)

    def group(self, layer: int, letter: str) -> Group | None:
        """The group of a layer's heads or MLP, where a norm follows."""
        groups = self.patched.parts.groups
        return next((group for group in groups if group.key == (layer, letter)), None)


def _sum(base: Tensor, kept: Tensor, values: Tensor) -> Tensor:
    """[R', P, D]: a base, [P, D], and parts, [R', S'], of what some sources write, [S', P, D]."""
    out = base.flatten()[None].expand(len(kept), -1)
    return torch.addmm(out, kept, values.flatten(1)).unflatten(1, base.shape)


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
    def gradient(
        self, patched: PatchedRun, mask: Tensor, loss: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """(the loss, its [S, R] gradient in a mask): one forward and one backward.

        Args:
            patched: a batch under an ablation.
            mask: [S, R] real, 0 where there is no edge.
            loss: of the [N, vocabulary] logits; a scalar.
        """
        graph, shape = self.graph, patched.start.shape
        places, width = shape[0] * shape[1], shape[2]
        mask = mask.to(patched.start)
        step = _Step(
            patched,
            mask,
            self.memory("difference", len(graph.sources), places, width),
            self.memory("sent", len(graph.receivers) - 1, places, width),
            # [N], the answers' places
            torch.arange(shape[0], device=mask.device) * shape[1] + patched.position,
        )
        inputs = graph.inputs
        out = step.difference[inputs].view(-1, *shape)
        torch.sub(patched.parts.input(patched.start), patched.carried(inputs), out=out)
        layers = [self._forward(layer, step) for layer in range(graph.n_layers)]
        last = self._read(step, patched.bases[-1], np.array([len(graph.receivers) - 1]), at=step.rows)[0]
        with torch.enable_grad():
            last.requires_grad_()
            value = loss(unembed(self.model, last))
            (at_answer,) = torch.autograd.grad(value, last)  # [N, D]
        for layer in reversed(range(graph.n_layers)):
            self._backward(layer, layers.pop(), step, at_answer)
        gradient = self._products(step.difference, step.sent)
        gradient[:, -1] = step.difference[:, step.rows].flatten(1) @ at_answer.flatten()
        for rows, products in step.mixed:
            gradient[rows] = products
        return value.detach(), gradient * torch.from_numpy(graph.allowed.copy()).to(gradient)

    def _forward(self, layer: int, step: _Step) -> _Layer:
        model, graph, block, patched = self.model, self.graph, self.model.blocks[layer], step.patched
        difference, shape = step.difference, step.patched.start.shape
        columns = [graph.columns(layer, letter) for letter in "qkv"]
        streams = self._read(step, patched.bases[2 * layer], np.concatenate(columns)).to(block.device)
        sizes, read_as = [len(each) for each in columns], None
        if block.joint:
            leaves = tuple(each.requires_grad_() for each in streams.split(sizes))
        else:
            read_as = centred(block.norm1, streams)
            leaves = tuple(
                projected(block.norm1, part, *block.projection(letter)).requires_grad_()
                for part, letter in zip(read_as.split(sizes), "qkv", strict=True)
            )
        with torch.enable_grad():
            made = map(block.projected, "qkv", leaves) if block.joint else leaves
            q, k, v = (each.unflatten(1, shape[:2]) for each in made)
            z = block.attend(q, per_head(model, k), per_head(model, v))  # [H, N, T, K]
            attended = patched.parts.heads(layer, block.written(z)).flatten(1, 2)  # [s, P, D]
        heads = graph.heads(layer)
        torch.sub(
            attended.detach().to(difference.device),
            patched.carried(heads).flatten(1, 2),
            out=difference[heads],
        )
        if not graph.has_mlp:
            return _Layer(read_as, leaves, attended, None, None)
        read = self._read(step, patched.bases[2 * layer + 1], graph.columns(layer, "m")).to(block.device)
        read.requires_grad_()
        with torch.enable_grad():
            written = patched.parts.mlp(layer, read.unflatten(1, shape[:2])).flatten(1, 2)
        own = graph.mlps(layer)
        torch.sub(
            written.detach().to(difference.device),
            patched.carried(own).flatten(1, 2),
            out=difference[own],
        )
        return _Layer(read_as, leaves, attended, read, written)

    def _read(self, step: _Step, base: Tensor, columns: np.ndarray, at: Tensor | None = None) -> Tensor:
        """[R', P, D]: what receivers at one place of the stream read, over [N, T, D] that all read; with [N]
        places only there, [R', N, D]."""

        def some(x: Tensor) -> Tensor:
            return x if at is None else x[..., at, :]

        upstream = int(self.graph.allowed[:, columns].any(1).sum())
        kept = step.mask[:upstream, torch.from_numpy(columns).to(step.mask.device)].T  # [R', S']
        values = some(step.difference[:upstream])
        mixed = [each for each in step.patched.mixed if each[0].rows.stop <= upstream]
        linear = kept.clone() if mixed else kept
        for group, *_ in mixed:
            linear[:, group.rows] = 0
        x = _sum(some(base.flatten(0, 1)), linear, values)
        for group, *pair in mixed:
            together, added = (some(each.flatten(0, 1)) for each in pair)
            x += group.out(_sum(together, kept[:, group.rows], values[group.rows])) - added
        return x

    def _backward(self, layer: int, kept: _Layer, step: _Step, at_answer: Tensor) -> None:
        """Fill in what a layer's receivers send back."""
        graph, block, mask, sent = self.graph, self.model.blocks[layer], step.mask, step.sent

        def received(letter: str, sources: slice, first: int) -> Tensor:
            """[len(sources), P, D]: the gradient at what some sources
            write, from the receivers from one on."""
            if (group := step.group(layer, letter)) is not None:
                return self._through_norm(group, step, at_answer, first)
            gradient = (mask[sources, first:-1] @ sent[first:].flatten(1)).unflatten(1, sent.shape[1:])
            gradient[:, step.rows] += mask[sources, -1][:, None, None] * at_answer
            return gradient

        columns = [graph.columns(layer, letter) for letter in "qkv"]
        after = int(max(each[-1] for each in columns)) + 1  # the first receiver after these
        if kept.written is not None and kept.read is not None:
            then = after + len(kept.read)
            at_mlp = received("m", graph.mlps(layer), then)
            (sent[after:then],) = torch.autograd.grad(kept.written, kept.read, at_mlp.to(block.device))
        at_heads = received("a", graph.heads(layer), after)
        gradients = torch.autograd.grad(kept.attended, kept.leaves, at_heads.to(block.device))
        back = torch.cat(self._pulled(block, kept, gradients))
        if not graph.split_qkv:  # the three read the same
            columns, back = columns[:1], back.unflatten(0, (3, -1)).sum(0)
        sent[torch.from_numpy(np.concatenate(columns)).to(sent.device)] = back.to(sent.device)

    def _pulled(self, block: Block, kept: _Layer, gradients: Sequence[Tensor]) -> list[Tensor]:
        """[R, P, D] each: the gradients at the leaves, back at what queries, keys and values read."""
        if kept.streams is None:
            return list(gradients)
        parts = kept.streams.split([len(each) for each in gradients])
        return [
            pulled(block.norm1, *block.projection(letter), part, sent_back, made)
            for part, sent_back, made, letter in zip(parts, gradients, kept.leaves, "qkv", strict=True)
        ]

    def _through_norm(self, group: Group, step: _Step, at_answer: Tensor, first: int) -> Tensor:
        """[s, P, D]: the gradient at what sources that go through a norm together write, from the receivers
        from one on, each of which has a norm of its own sum; that in the mask is kept in `step.mixed`."""
        mask, rows, own, last = step.mask, step.rows, group.rows, len(self.graph.receivers) - 1
        (together,) = (each[1].flatten(0, 1) for each in step.patched.mixed if each[0] is group)
        values = step.difference[own]
        products = values.new_zeros(len(values), last + 1)

        def back(columns: slice, values: Tensor, together: Tensor, sent: Tensor) -> Tensor:
            kept = mask[own, columns]
            total = _sum(together, kept.T, values).requires_grad_()
            with torch.enable_grad():
                added = group.out(total)
            (pulled,) = torch.autograd.grad(added, total, sent)
            products[:, columns] = values.flatten(1) @ pulled.flatten(1).T
            return (kept @ pulled.flatten(1)).unflatten(1, pulled.shape[1:])

        received, size = torch.zeros_like(values), _LAYERS_AT_ONCE * len(values)
        for start in range(first, last, size):
            columns = slice(start, min(start + size, last))
            received += back(columns, values, together, step.sent[columns])
        received[:, rows] += back(slice(last, last + 1), values[:, rows], together[rows], at_answer[None])
        step.mixed.append((own, products))
        return received

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
        return out
