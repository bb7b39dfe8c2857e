"""The model as a function of an edge mask.

    every receiver reads  (everything as replaced)  +  sum over kept edges of (current - replacement)

1. `plain_run` is the transformer itself, from an embedding to the logits at the answer's position. It can keep what every
   source wrote (the replacements of resample ablation) and what every receiver read (for gradients).
2. A `World` is one batch under one ablation: where the run starts, what a removed edge carries, and the sum of all
   replacements at each place of the residual stream.
3. `World.logits` evaluates any mask in one forward, and only the nodes that matter: those with a path of kept edges to the
   logits and, where every replacement is a run's own activation, with one from the input (elsewhere current equals
   replacement).
4. `World.branch` evaluates many alternatives of what one receiver reads, given the state of the rest: only the nodes that
   the receiver reaches run again. The searches stand on it.

Shapes: R receivers of a layer, S sources, M alternatives, N examples, T positions, D d_model, H heads, K d_head.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from circuitdiscovery.graph import Graph
from circuitdiscovery.model import Block, Model, Norm

# ------------------------------------------------------------------ the program, written once over the architectures' switches


def embed(model: Model, tokens: Tensor) -> Tensor:
    """[N, T] token ids -> [N, T, D]: token plus position embedding, the source `input`."""
    model.check_tokens(tokens)
    x = F.embedding(tokens, model.W_E)
    return x if model.W_pos is None else x + model.W_pos[: tokens.shape[1]]


def _project(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """One stream for all heads, [1, N, T, D], or one each, [H, N, T, D], through [H, K, D] -> [H, N, T, K]."""
    n_heads, d_head, _ = weight.shape
    if len(x) == 1:
        flat_bias = None if bias is None else bias.flatten()
        return F.linear(x[0], weight.flatten(0, 1), flat_bias).unflatten(-1, (n_heads, d_head)).movedim(-2, 0)
    out = torch.bmm(x.flatten(1, 2), weight.transpose(1, 2)).unflatten(1, x.shape[1:3])
    return out if bias is None else out + bias[:, None, None]


def _attend(model: Model, block: Block, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention per head, [H, N, T, K] each (k and v already repeated per head) -> [H, N, T, K]."""
    if model.rotary is not None:
        q, k = model.rotary(q), model.rotary(k)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=block.scale)


def _mlp(model: Model, block: Block, x: Tensor) -> Tensor:
    """[..., D] normalised -> [..., D]."""
    hidden = F.linear(x, block.W_in, block.b_in)
    if block.W_gate is None:
        hidden = model.activation(hidden)
    else:
        hidden = model.activation(F.linear(x, block.W_gate, block.b_gate)) * hidden
    return F.linear(hidden, block.W_out, block.b_out)


def _at(x: Tensor, position: Tensor) -> Tensor:
    """[..., N, T, D] -> [..., N, D] at each example's position."""
    return x[..., torch.arange(len(position), device=x.device), position, :]


def _unembed(model: Model, x: Tensor) -> Tensor:
    """[..., D] final residual stream -> [..., vocabulary]."""
    return F.linear(model.final_norm(x), model.W_U)


def _per_head(model: Model, x: Tensor) -> Tensor:
    """[groups, ...] -> [H, ...]."""
    size = model.graph.n_heads // model.graph.n_kv_heads
    return x if size == 1 else x.repeat_interleave(size, dim=0)


# ------------------------------------------------------------------ the whole model


@dataclass(frozen=True)
class Reading:
    """What the receivers of one layer and letter read in a plain run, for the chain rule back to the stream.

    `values` is what `weight` makes of the normalised stream, [R, N, T, K]; where `weight` is None it is the normalised
    stream itself, [N, T, D] (MLPs) or [N, D] (logits, at the answer's position only).
    """

    layer: int
    letter: str
    stream: Tensor  # [N, T, D] or [N, D], before the norm
    norm: Norm
    values: Tensor
    weight: Tensor | None  # [R, K, D]
    bias: Tensor | None  # [R, K]


@dataclass(frozen=True)
class Run:
    """One forward of the whole model."""

    logits: Tensor  # [N, vocabulary] at each example's answer position
    sources: Tensor | None  # [S, N, T, D]
    readings: tuple[Reading, ...]


def plain_run(model: Model, start: Tensor, position: Tensor, *, keep_sources: bool = False, keep_readings: bool = False) -> Run:
    """The transformer itself.

    Args:
        model: the model.
        start: [N, T] token ids, or [N, T, D], what the source `input` writes.
        position: [N], where the logits are wanted.
        keep_sources: keep what every source writes.
        keep_readings: keep what every receiver reads, as part of the autograd graph.
    """
    x = embed(model, start) if start.dim() == 2 else start
    sources = x.new_empty(len(model.graph.sources), *x.shape) if keep_sources else None
    readings: list[Reading] = []
    if sources is not None:
        sources[0] = x.detach()
    for layer, block in enumerate(model.blocks):
        u = block.norm1(x)[None]
        q, k, v = (_project(u, *block.projection(letter)) for letter in "qkv")
        if keep_readings:
            read = zip("qkv", (q, k, v), strict=True)
            readings += [Reading(layer, letter, x, block.norm1, values, *block.projection(letter)) for letter, values in read]
        z = _attend(model, block, q, _per_head(model, k), _per_head(model, v))  # [H, N, T, K]
        attended = F.linear(z.permute(1, 2, 0, 3).flatten(2), block.W_O.flatten(0, 1).T, block.b_O)  # [N, T, D]
        y = x if model.graph.parallel else x + attended
        u = block.norm2(y)
        if keep_readings:
            readings.append(Reading(layer, "m", y, block.norm2, u, None, None))
        written = _mlp(model, block, u)
        if sources is not None:
            torch.bmm(z.detach().flatten(1, 2), block.W_O, out=sources[model.graph.heads(layer)].flatten(1, 2))
            sources[model.graph.mlp(layer)] = written.detach()
        x = x + attended + written
    last = _at(x, position)  # [N, D]
    u = model.final_norm(last)
    if keep_readings:
        readings.append(Reading(len(model.blocks), "logits", last, model.final_norm, u, None, None))
    return Run(F.linear(u, model.W_U), sources, tuple(readings))


# ------------------------------------------------------------------ any set of edges


@dataclass(frozen=True)
class State:
    """What every source adds to its replacement under one mask: where branches start from."""

    difference: Tensor  # [S, N, T, D]: current - replacement


@dataclass(frozen=True)
class World:
    """One batch under one ablation.

    Args:
        model, graph: what runs, and how its edges are counted.
        start: [N, T, D], what `input` currently writes.
        replacement: [S, N, T, D], what a removed edge carries.
        position: [N], where the logits are wanted.
        own_run: every replacement is some run's own activation, so a node that reads only replacements writes its own.
    """

    model: Model
    graph: Graph
    start: Tensor
    replacement: Tensor
    position: Tensor
    own_run: bool

    @cached_property
    def bases(self) -> tuple[Tensor, ...]:
        """What is read when every edge is removed: [N, T, D] by attention and MLP of each layer, [N, D] by the logits."""
        bases: list[Tensor] = []
        x = self.replacement[0]
        for layer, block in enumerate(self.model.blocks):
            attended = self.replacement[self.graph.heads(layer)].sum(0)
            y = x + attended if block.b_O is None else x + attended + block.b_O
            bases += [x, x if self.graph.parallel else y]
            x = y + self.replacement[self.graph.mlp(layer)]
        return (*bases, _at(x, self.position))

    def logits(self, mask: np.ndarray) -> Tensor:
        """[N, vocabulary]: one forward with the True edges of a [S, R] mask kept."""
        nodes = self.graph.live(mask)
        if self.own_run:
            nodes &= self.graph.reached(mask, np.arange(len(nodes)) == 0)
        return self._run(mask, np.flatnonzero(nodes), None, {})[1][0]

    def state(self, mask: np.ndarray, clean: State, first_layer: int) -> State:
        """The state under a mask that removes nothing before a layer, where `clean` is the state with every edge kept."""
        nodes = self.graph.live(mask)
        nodes[: self.graph.n_upstream(first_layer)] = False
        difference = clean.difference.clone()
        moved = np.flatnonzero(nodes)
        difference[torch.from_numpy(moved).to(difference.device)] = self._run(mask, moved, clean, {})[0][:, 0]
        return State(difference)

    def stream(self, state: State, receiver: int, kept: np.ndarray) -> Tensor:
        """What a receiver reads in a state with a [S] bool column of sources kept: [N, T, D], for logits [N, D]."""
        rows = np.flatnonzero(kept)
        base, _ = self.place(receiver)
        return base + self.written(state, receiver, rows).sum(0)

    def written(self, state: State, receiver: int, rows: np.ndarray) -> Tensor:
        """What some sources add to a receiver's stream: [len(rows), N, T, D], for logits [len(rows), N, D]."""
        at_logits = receiver == len(self.graph.receivers) - 1
        return _rows(_at(state.difference, self.position) if at_logits else state.difference, rows)

    def branch(self, mask: np.ndarray, state: State, receiver: int, streams: Tensor) -> Tensor:
        """[M, N, vocabulary]: let one receiver read each of [M, N, T, D] streams instead (logits: [M, N, D])."""
        graph = self.graph
        if receiver == len(graph.receivers) - 1:
            return _unembed(self.model, streams)
        nodes = graph.reached(mask, graph.feeds[receiver]) & graph.live(mask)
        return self._run(mask, np.flatnonzero(nodes), state, {receiver: streams})[1]

    def place(self, receiver: int) -> tuple[Tensor, int]:
        """(what the receiver reads when every edge is removed, how many sources are upstream of it)."""
        layer, kind = self.graph.receiver_layers[receiver], self.graph.receivers[receiver][0]
        return self.bases[2 * layer + (kind == "m")], self.graph.n_upstream(layer, kind)

    def _run(self, mask: np.ndarray, moved: np.ndarray, state: State | None, given: dict[int, Tensor]) -> tuple[Tensor, Tensor]:
        """([len(moved), M, N, T, D] differences, [M, N, vocabulary] logits) with the sources `moved` run, in order.

        All others stay at the state's difference, or are replaced where there is no state.
        `given` holds alternatives, [M, N, T, D], of what a receiver reads; everything downstream of it has M versions.
        """
        graph = self.graph
        n_alternatives = max((len(streams) for streams in given.values()), default=1)
        reader = _Reader.build(self, mask, moved, state, given, n_alternatives)
        difference = reader.buffer[1:]
        if len(moved) and moved[0] == 0:
            torch.sub(self.start, self.replacement[0], out=difference[0, 0])
        for layer, block in enumerate(self.model.blocks):
            heads, mlp = graph.heads(layer), graph.mlp(layer)
            at = np.flatnonzero((moved >= heads.start) & (moved < heads.stop))
            if len(at):
                z = self._heads(reader, layer, block, moved[at] - heads.start)  # [h, M * N, T, K]
                W_O = _rows(block.W_O, moved[at] - heads.start)
                replaced = _rows(self.replacement, moved[at])[:, None].expand(-1, n_alternatives, -1, -1, -1)
                out = difference[at[0] : at[-1] + 1].view(len(at), -1, self.start.shape[-1])
                torch.baddbmm(replaced.reshape(out.shape), z.flatten(1, 2), W_O, beta=-1, out=out)
            at = np.flatnonzero(moved == mlp)
            if len(at):
                x = block.norm2(reader.read(graph.columns(layer, "m"))[0])  # [M, N, T, D]
                torch.sub(_mlp(self.model, block, x), self.replacement[mlp], out=difference[at[0]])
        return difference, _unembed(self.model, reader.read_logits())

    def _heads(self, reader: _Reader, layer: int, block: Block, heads: np.ndarray) -> Tensor:
        """What some heads of a layer have attended to: [h, M * N, T, K]."""
        columns = {letter: self.graph.columns(layer, letter) for letter in "qkv"}
        groups = {letter: heads // (self.graph.n_heads // len(columns[letter])) for letter in "qkv"}  # each head's column
        streams, which = reader.read_distinct(np.concatenate([columns[letter][groups[letter]] for letter in "qkv"]))
        x = block.norm1(streams).expand(-1, reader.buffer.shape[1], -1, -1, -1)  # [U, M, N, T, D]
        projected = []
        for letter, part in zip("qkv", np.split(which, 3), strict=True):
            own, first, back = np.unique(groups[letter], return_index=True, return_inverse=True)
            weight, bias = block.projection(letter)
            bias = None if bias is None else _rows(bias, own)
            out = _project(_select(x, part[first]).flatten(1, 2), _rows(weight, own), bias)  # [own, M * N, T, K]
            projected.append(_rows(out, back) if len(own) < len(heads) else out)
        return _attend(self.model, block, *projected)


@dataclass(frozen=True)
class _Reader:
    """What receivers read while the nodes in `moved` are being run, in order."""

    world: World
    mask: np.ndarray
    moved: np.ndarray
    fixed: np.ndarray
    state: State | None
    given: dict[int, Tensor]
    buffer: Tensor  # [1 + len(moved), M, N, T, D]: scratch for a base, then the differences, filled up to the receiver's layer

    @classmethod
    def build(
        cls, world: World, mask: np.ndarray, moved: np.ndarray, state: State | None, given: dict[int, Tensor], n_alternatives: int
    ) -> _Reader:
        """With an empty buffer."""
        fixed = np.setdiff1d(np.arange(len(mask)), moved, assume_unique=True) if state is not None else moved[:0]
        buffer = world.start.new_empty(1 + len(moved), n_alternatives, *world.start.shape)
        return cls(world, mask, moved, fixed, state, given, buffer)

    def read_distinct(self, columns: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """([U, M or 1, N, T, D] distinct streams, [len(columns)] which of them each receiver reads)."""
        if not self.given.keys().isdisjoint(columns.tolist()):
            distinct, which = np.unique(columns, return_inverse=True)
            streams = [self.read(distinct[i : i + 1])[0] for i in range(len(distinct))]
            return torch.stack(torch.broadcast_tensors(*streams)), which
        packed = np.packbits(self.mask[:, columns], axis=0)
        _, first, which = np.unique(packed, axis=1, return_index=True, return_inverse=True)
        order = np.argsort(first)  # in order of first occurrence, so that a run of receivers is a slice
        return self.read(columns[first[order]]), np.argsort(order)[which.reshape(-1)]

    def read(self, columns: np.ndarray) -> Tensor:
        """[len(columns), M or 1, N, T, D]: the streams of receivers at one place."""
        if int(columns[0]) in self.given:
            return self.given[int(columns[0])][None]
        base, upstream = self.world.place(int(columns[0]))
        kept = self.mask[:, columns]  # [S, R]
        fixed, moved = self.fixed[self.fixed < upstream], self.moved[self.moved < upstream]
        out = base.expand(len(columns), 1, *base.shape)
        if kept[moved].any():
            self.buffer[0] = base  # as one source more, so that one product makes the whole stream
            weights = np.concatenate([np.ones((1, len(columns)), dtype=bool), kept[moved]])
            out = _combine(weights, np.arange(len(weights)), self.buffer)
        if self.state is not None and kept[fixed].any():
            out = out + _combine(kept[fixed], fixed, self.state.difference)[:, None]
        return out

    def read_logits(self) -> Tensor:
        """[M or 1, N, D]: the final residual stream at the answer's position."""
        kept, position = self.mask[:, -1], self.world.position
        fixed, moved = self.fixed[kept[self.fixed]], np.flatnonzero(kept[self.moved])
        out = self.world.bases[-1][None]
        if self.state is not None and len(fixed):
            out = out + _rows(_at(self.state.difference, position), fixed).sum(0)
        if len(moved):
            out = out + _rows(_at(self.buffer, position), 1 + moved).sum(0)
        return out


def _rows(x: Tensor, rows: np.ndarray) -> Tensor:
    """x[rows], without a copy where the rows are a range."""
    if len(rows) and (np.diff(rows) == 1).all():
        return x[rows[0] : rows[-1] + 1]
    return x[torch.from_numpy(rows).to(x.device)]


def _select(x: Tensor, which: np.ndarray) -> Tensor:
    """x[which], as one row where all are the same (one stream for all heads is one fused product)."""
    return x[which[:1]] if (which == which[0]).all() else _rows(x, which)


def _combine(kept: np.ndarray, rows: np.ndarray, values: Tensor) -> Tensor:
    """Sum over the kept ones of some sources: [s, R] bool, [s] rows of [S, ...] -> [R, ...]."""
    used = kept.any(1)
    kept, rows = kept[used], rows[used]
    span = int(rows[-1] - rows[0]) + 1
    if span <= 4 * len(rows):  # a range with some zero weights is cheaper than a copy of the rows
        spread = np.zeros((span, kept.shape[1]), dtype=bool)
        spread[rows - rows[0]] = kept
        kept, rows = spread, np.arange(rows[0], rows[-1] + 1)
    weights = torch.from_numpy(kept.T.copy()).to(values)  # [R, s]
    return (weights @ _rows(values, rows).flatten(1)).unflatten(1, values.shape[1:])
