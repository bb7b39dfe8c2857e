"""Interchange interventions: runs of the whole model in which a node writes something else.

Geiger et al. 2021, arXiv 2106.02997. In activation patching a node's change reaches all its readers, in path
patching only some of them (Wang et al. 2022, arXiv 2211.00593, section 3).

1. `Plain` is an unchanged run, with what the receivers of every layer read.
2. A `Change` is a difference that is added to the stream after one node, or only to what some receivers read.
3. `changed_logits` runs many changes of one plain run together, layer by layer. A change joins the batch at
   its layer, so only what follows it runs, and the weights are read once for all changes.

Shapes: M changes, N examples, T positions, D d_model, H heads, h some of them, K d_head, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from circuitdiscovery.engine import memory
from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.graph.nodes import letter_of, parsed
from circuitdiscovery.model.model import Model
from circuitdiscovery.model.run import Reading, at_position, per_head, plain_run, unembed

ATTENTION = 0.3  # its share of the cost of a layer
_LOGIT_BYTES = 2**25

# (layer, letter) -> indices of receivers; the logits are in the layer after the last
Reads = Mapping[tuple[int, str], Sequence[int]]


# ------------------------------------------------------------------ the unchanged run


@dataclass(frozen=True)
class Plain:
    """The unchanged run of one batch of [N, T] tokens, through all layers or the first ones."""

    model: Model
    tokens: Tensor
    readings: Mapping[tuple[int, str], Reading]

    @classmethod
    def run(cls, model: Model, tokens: Tensor, layers: int | None = None) -> Plain:
        """The run; with `layers`, through only so many of them."""
        part = model if layers is None else replace(model, blocks=model.blocks[:layers])
        readings = plain_run(part, tokens, None, keep_readings=True).readings
        return cls(model, tokens, {(each.readers.layer, each.readers.letter): each for each in readings})

    def stream(self, layer: int, position: Tensor | None = None) -> Tensor:
        """[N, T, D]: what a layer's attention reads before its norm; for layer `n_layers`, the logits.

        With [N] positions, only what it reads there, [N, 1, D].
        """
        if layer < len(self.model.blocks):
            return _at(self.readings[layer, "q"].stream, position)
        last, block, graph = layer - 1, self.model.blocks[layer - 1], self.model.graph
        if graph.has_mlp and not graph.parallel:
            y = _at(self.after_attention(last), position)
        else:
            z = _at_query(self._attended(last, range(graph.n_heads)), position)
            y = _at(self.readings[last, "q"].stream, position) + block.attended(z)
        return y + block.mlp(_at(self.readings[last, "m"].values, position)) if graph.has_mlp else y

    def logits(self, position: Tensor) -> Tensor:
        """[N, V] at positions."""
        return unembed(self.model, self.stream(len(self.model.blocks), position)[:, 0])

    def after_attention(self, layer: int) -> Tensor:
        """[N, T, D]: what a layer's MLP reads before its norm; without MLPs, what the next layer reads."""
        return self.readings[layer, "m"].stream if self.model.graph.has_mlp else self.stream(layer + 1)

    def _attended(
        self, layer: int, heads: Sequence[int], other: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """[h, N, T, K]: the attended values of some heads, with `other` keys or values, [groups, N, T, K]."""
        q = self.readings[layer, "q"].values[list(heads)]
        size = self.model.graph.n_heads // self.model.graph.n_kv_heads
        groups = [head // size for head in heads]
        k, v = ((other or {}).get(letter, self.readings[layer, letter].values)[groups] for letter in "kv")
        return self.model.blocks[layer].attend(q, k, v, heads=heads)

    def _written_by(
        self, layer: int, heads: Sequence[int], other: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """[N, T, D]: what some heads write together."""
        z = self._attended(layer, heads, other)
        return self.model.blocks[layer].written(z, heads).sum(0)

    def written(self, node: str) -> Tensor:
        """[N, T, D]: what a head or an MLP writes."""
        layer, head = _place(node)
        if head is not None:
            return self._written_by(layer, [head])
        return self.model.blocks[layer].mlp(self.readings[layer, "m"].values)

    def change(self, node: str, written: Tensor) -> Change:
        """The change that a node writes [N, T, D]."""
        own = self.written(node)
        return self._at_node(node, written.to(own.device) - own)

    def changed_values(self, node: str, other: Plain) -> Change:
        """The change that the values of a head's group are those of another run."""
        return self._with(node, {"v": other.readings[_place(node)[0], "v"].values})

    def changed_keys(self, node: str, other: Plain, places: Tensor) -> Change:
        """The change that a head's group has the keys of another run at one position of each example, [N]."""
        layer = _place(node)[0]
        own = self.readings[layer, "k"].values.clone()
        places, rows = places.to(own.device), torch.arange(len(places), device=own.device)
        own[:, rows, places] = other.readings[layer, "k"].values[:, rows, places]
        return self._with(node, {"k": own})

    def _with(self, node: str, other: Mapping[str, Tensor]) -> Change:
        layer, head = _place(node)
        assert head is not None
        size = self.model.graph.n_heads // self.model.graph.n_kv_heads
        group = range(head // size * size, (head // size + 1) * size)
        return self._at_node(node, self._written_by(layer, group, other) - self._written_by(layer, group))

    def _at_node(self, node: str, difference: Tensor) -> Change:
        """The change that a node writes [N, T, D] more than it does."""
        layer, head = _place(node)
        block = self.model.blocks[layer]
        if head is not None and not block.linear:
            together = self._written_by(layer, range(self.model.graph.n_heads))
            difference = block.out_change(together, difference)
        return Change(layer, head is None or self.model.graph.parallel, difference)


def _place(node: str) -> tuple[int, int | None]:
    """`a1.h2` -> (1, 2), `m1` -> (1, None)."""
    found = parsed(node)
    return found.layer, found.index if found.kind == "head" else None


def _at(x: Tensor, position: Tensor | None) -> Tensor:
    """[N, T, D], or [N, 1, D] at positions."""
    return x if position is None else at_position(x, position)[:, None]


def _at_query(z: Tensor, position: Tensor | None) -> Tensor:
    """[h, N, T, K], or [h, N, 1, K] at positions."""
    if position is None:
        return z
    return z[:, torch.arange(len(position), device=z.device), position.to(z.device)][:, :, None]


# ------------------------------------------------------------------ changes


@dataclass(frozen=True)
class Change:
    """A [N, T, D] difference in the stream, after a layer's attention or after its MLP.

    With `reads`, the stream does not change and only these receivers read the difference.
    """

    layer: int
    after_mlp: bool
    difference: Tensor
    reads: Reads | None = None

    @cached_property
    def joins(self) -> tuple[int, bool]:
        """(layer, whether after its attention): where the run first differs."""
        if self.reads is not None:
            return min(layer for layer, _ in self.reads), False
        return (self.layer + 1, False) if self.after_mlp else (self.layer, True)

    def runs(self, model: Model) -> float:
        """The cost of what has to run again, in runs of the whole model."""
        layer, late = self.joins
        return (len(model.blocks) - layer - late * ATTENTION) / len(model.blocks)


def receivers(graph: Graph, columns: Sequence[int]) -> Reads:
    """Receivers by layer and letter, as `Change` needs them."""
    reads: dict[tuple[int, str], list[int]] = {}
    for column in columns:
        name, layer = graph.receivers[column], graph.receiver_layers[column]
        merged = {"mlp": "m", "logits": "l"}.get(parsed(name).kind, "qkv")
        for letter in letter_of(name) or merged:
            index = (
                int(np.flatnonzero(graph.columns(layer, letter) == graph.receiver_index[name])[0])
                if letter != "l"
                else 0
            )
            reads.setdefault((layer, letter), []).append(index)
    return reads


@torch.no_grad()
def changed_logits(
    plain: Plain, position: Tensor, changes: Sequence[Change]
) -> Iterator[tuple[list[int], Tensor]]:
    """Yields (indices of changes, their [m, N, V] logits at [N] positions), some changes at a time."""
    order = sorted(range(len(changes)), key=lambda i: changes[i].joins)
    size = _at_once(plain)
    for start in range(0, len(order), size):
        some = order[start : start + size]
        streams = _Sweep(plain, position, [changes[i] for i in some]).streams()  # [m, N, D]
        logits = streams.shape[1] * plain.model.vocab_size * streams.element_size()
        at_once = memory.at_once(logits, plain.model.device, _LOGIT_BYTES)
        for first in range(0, len(some), at_once):
            yield some[first : first + at_once], unembed(plain.model, streams[first : first + at_once])


def _at_once(plain: Plain) -> int:
    block, width = plain.model.blocks[0], plain.model.d_model
    hidden, heads = block.d_mlp, plain.model.graph.n_heads * block.d_head
    each = (6 * width + 3 * hidden + 5 * heads) * plain.model.W_E.element_size()
    return memory.at_once(plain.tokens.numel() * each, plain.model.device)


class _Sweep:
    """A batch of changes, in the order in which they join, on its way through the layers."""

    def __init__(self, plain: Plain, position: Tensor, changes: Sequence[Change]) -> None:
        self._plain, self._position, self._changes = plain, position, changes
        self._active = 0  # how many have joined
        self._x = plain.model.W_E.new_empty(0)  # [active * N, T, D]

    def streams(self) -> Tensor:
        """[m, N, D]: what the logits read."""
        layers, at = len(self._plain.model.blocks), self._position
        for layer in range(layers):
            self._layer(layer, at if layer == layers - 1 else None)
        self._join((layers, False), at)
        for rows, _, seen in self._read(self._x, layers, "l", at):
            self._x[rows] = seen
        return self._x.unflatten(0, (len(self._changes), len(at)))[:, :, 0].to(self._plain.model.device)

    def _layer(self, layer: int, at: Tensor | None) -> None:
        model, block = self._plain.model, self._plain.model.blocks[layer]
        self._x = self._x.to(block.device)
        self._join((layer, False), None)
        attended = self._attended(layer, at) if self._active else self._x
        if self._active and at is not None:
            self._x = _at(self._x, at.repeat(self._active))
        out = self._x + attended
        if not model.graph.parallel:
            self._x = out
            self._join((layer, True), at)
            out = self._x
        if self._active and model.graph.has_mlp:
            written = block.mlp_writes(self._x)
            for rows, _, seen in self._read(self._x, layer, "m", at):
                written[rows] = block.mlp_writes(seen)
            out = out + written
        self._x = out

    def _attended(self, layer: int, at: Tensor | None) -> Tensor:
        """[active * N, T, D]: what the heads of a layer write together; with [N] positions, only there."""
        model, block, x = self._plain.model, self._plain.model.blocks[layer], self._x
        places = None if at is None else at.repeat(self._active)
        read: dict[str, Tensor] = {}
        for letter in "qkv":
            where, own = (at, places) if letter == "q" else (None, None)
            read[letter] = block.heads_read(letter, _at(x, own)).contiguous()
            for rows, some, seen in self._read(_at(x, own), layer, letter, where):
                read[letter][list(some), rows] = block.heads_read(letter, seen)[list(some)]
        k, v = (per_head(model, read[letter]) for letter in "kv")
        return block.attended(block.attend(read["q"], k, v, places))

    def _join(self, place: tuple[int, bool], at: Tensor | None) -> None:
        """Append the changes whose runs first differ here."""
        joining = [each for each in self._changes[self._active :] if each.joins == place]
        if not joining:
            return
        layer, late = place
        last = layer == len(self._plain.model.blocks)
        base = (
            _at(self._plain.after_attention(layer), at)
            if late
            else self._plain.stream(layer, at if last else None)
        )
        new = [
            base if each.reads is not None else base + _at(each.difference, at).to(base.device)
            for each in joining
        ]
        self._x = torch.cat([self._x, *new] if self._active else new)
        self._active += len(joining)

    def _read(
        self, x: Tensor, layer: int, letter: str, at: Tensor | None
    ) -> Iterator[tuple[slice, Sequence[int], Tensor]]:
        """(rows, receivers, what they read before the norm) of each change that only receivers read."""
        for i, each in enumerate(self._changes[: self._active]):
            if each.reads is not None and (layer, letter) in each.reads:
                rows = slice(i * len(self._position), (i + 1) * len(self._position))
                yield rows, each.reads[layer, letter], x[rows] + _at(each.difference, at).to(x.device)
