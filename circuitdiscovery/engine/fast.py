"""The model as a function of an edge mask.

    every receiver reads  (everything as replaced)  +  sum over kept edges of (current - replacement)

1. A `PatchedRun` is one batch under one ablation: where the run starts, what a removed edge carries, and the
   sum of all replacements at each place of the residual stream.
2. `PatchedRun.logits` evaluates any mask in one forward, and only what matters: the nodes with a path of kept
   edges to the logits and, where every replacement is a run's own activation, with one from the input
   (elsewhere current equals replacement); and of a node that no key and no value reads on the way to the
   logits, the answer's position alone.
3. `PatchedRun.branch` evaluates many alternatives of what one receiver reads, given the state of the rest:
   only the nodes that the receiver reaches run again. The searches stand on it.
4. `PatchedRun.begin` keeps the state of a mask's run, and `PatchedRun.go_on` runs from it only what another
   mask changes; several versions with other sources silenced (they carry their replacements) go through one
   run. Measuring stands on it (plan.py).

Shapes: R receivers, S sources, M alternatives, N examples, T positions, D d_model, H heads, h some of them, K
d_head; P = N * T places, or N where only the answer's position matters; B = M * P.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from circuitdiscovery.engine.places import Places
from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.model.block import Making
from circuitdiscovery.model.model import Model
from circuitdiscovery.model.norm import Norm
from circuitdiscovery.model.parts import Group, Parts
from circuitdiscovery.model.rows import index_of
from circuitdiscovery.model.run import at_position, streams, unembed

# ------------------------------------------------------------------ any set of edges


@dataclass(frozen=True)
class State:
    """What every source adds to its replacement under one mask: where branches start from."""

    difference: Tensor  # [N, T, S, D]: current - replacement; 0 where no receiver reads it
    at_answer: Tensor  # [N, S, D]: the same at the answer's position


@dataclass(frozen=True)
class Part:
    """Which part of a circuit runs, in M versions.

    Args:
        mask: [S, R], the edges that are kept, in every version.
        nodes: [S] bool, the sources that run.
        wide: [S] bool, the sources that are needed at other positions than the answer's too.
        silenced: [M, S] bool, the sources that carry their replacement in a version, whatever they read.
    """

    mask: np.ndarray
    nodes: np.ndarray
    wide: np.ndarray
    silenced: np.ndarray

    @property
    def held(self) -> np.ndarray:
        """[S] bool: the sources that do not run, but are silenced in some versions."""
        return self.silenced.any(axis=0) & ~self.nodes


class Memory:
    """Uninitialised tensors, the same memory each time for a name: new memory costs page faults."""

    def __init__(self, like: Tensor) -> None:
        self._like = like  # of its type, on its device
        self._held: dict[str, Tensor] = {}
        self._others: dict[torch.device, Memory] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        """Of a shape, in the memory of this name."""
        held, size = self._held.get(name), math.prod(shape)
        if held is None or len(held) < size:
            self._held.pop(name, held)  # before the larger one is taken
            held = self._held[name] = self._like.new_empty(size)
        return held[:size].view(shape)

    def on(self, device: torch.device) -> Memory:
        """Such memory of another device, or this."""
        if device == self._like.device:
            return self
        return self._others.setdefault(device, Memory(self._like.new_empty(0, device=device)))


@dataclass(frozen=True)
class PatchedRun:
    """One batch under one ablation.

    Args:
        model, graph: what runs, and how its edges are counted.
        start: [N, T, D], what `input` currently writes.
        replacement: [S', N, T, D], packed (model/packing.py), what a removed edge carries.
        position: [N], where the logits are wanted.
        own_run: every replacement is some run's own activation, so a node
            that reads only replacements writes its own.
        given: how the sources follow from the nodes, where some are split.
    """

    model: Model
    graph: Graph
    start: Tensor
    replacement: Tensor
    position: Tensor
    own_run: bool
    given: Parts | None = None

    @cached_property
    def bases(self) -> tuple[Tensor, ...]:
        """[N, T, D] each: what is read when every edge is removed, by attention
        and MLP of each layer, last by the logits.
        """
        added = {group.key: added for group, _, added in self.mixed}
        return tuple(streams(self.parts, self.replacement, added))

    @cached_property
    def parts(self) -> Parts:
        """How the sources follow from the nodes."""
        return self.given or Parts.of(self.model, self.graph)

    @cached_property
    def mixed(self) -> tuple[tuple[Group, Tensor, Tensor], ...]:
        """Each group of sources that are added up in a norm of their own: what they write together when every
        edge is removed, and what that adds to the stream, [N, T, D] both."""
        together = (
            (group, self.parts.packing.sum(self.replacement, group.rows)) for group in self.parts.groups
        )
        return tuple((group, x, group.out(x)) for group, x in together)

    def carried(self, rows: np.ndarray | slice) -> Tensor:
        """[s, N, T, D]: the replacements of some sources."""
        return self.parts.packing.rows(self.replacement, rows)

    @cached_property
    def at_answer(self) -> Tensor:
        """[S', N, D]: the replacements at the answer's position, packed."""
        return self.replacement[
            :, torch.arange(len(self.position), device=self.position.device), self.position
        ]

    @cached_property
    def _fixed(self) -> dict[tuple[int, str, bool], Tensor]:
        return {}

    def replaced(self, layer: int, letter: str, at_answer: bool) -> Tensor:
        """[heads or groups, P, K]: a layer's queries, keys or values, or with "n" what the parts of its MLP
        make of their streams, where every edge into them is removed."""
        key = layer, letter, at_answer
        if key not in self._fixed:
            base = self.bases[2 * layer + (letter == "n")]
            base = at_position(base, self.position) if at_answer else base.flatten(0, 1)
            if letter == "n":
                self._fixed[key] = self.parts.units(layer).read(base)
            else:
                self._fixed[key] = self.model.blocks[layer].heads_read(letter, base)
        return self._fixed[key]

    def readers(self, layer: int, asked: Mapping[str, np.ndarray]) -> tuple[Norm, list[Making], int]:
        """(the norm, for each letter what makes its projection, the width of these) of some heads or groups
        of a layer, or with the letter "n" some parts of its MLP."""
        if "n" in asked:
            units = self.parts.units(layer).some(asked["n"])
            return units.norm, [units.make], units.weight.shape[1]
        block = self.model.blocks[layer]
        return block.norm1, [block.making(letter, some) for letter, some in asked.items()], block.d_head

    @cached_property
    def memory(self) -> Memory:
        """What one run after the other writes to."""
        return Memory(self.start)

    def logits(self, mask: np.ndarray) -> Tensor:
        """[N, vocabulary]: one forward with the True edges of a [S, R] mask kept."""
        return self._logits(self._run(mask, self.graph.running(mask, self.own_run), None)[1])[0]

    def begin(self, part: Part) -> tuple[State, Tensor]:
        """The state after a part of one version ran from nothing, valid until
        the next, and its [N, vocabulary] logits.

        The logits are the circuit's where the part has all its nodes.
        """
        everywhere, at_answer = self._run(part.mask, part.nodes, None, wide=part.wide, silenced=part.silenced)
        logits = self._logits(at_answer)[0]
        n_sources, (n_examples, length, width) = len(self.graph.sources), self.start.shape
        difference = self.memory("state", n_examples, length, n_sources, width).zero_()
        last = self.memory("state at the answer", n_examples, n_sources, width).zero_()
        difference.flatten(0, 1)[:, index_of(everywhere.moved)] = everywhere.buffer[0, :, 1:]
        last[:, index_of(at_answer.moved)] = at_answer.buffer[0, :, 1:]
        return State(difference, last), logits

    def go_on(self, part: Part, state: State | None) -> Tensor:
        """[M, N, vocabulary]: the logits of each version of a part; what does not run is
        as in the state, or replaced without one.
        """
        _, at_answer = self._run(part.mask, part.nodes, state, wide=part.wide, silenced=part.silenced)
        return self._logits(at_answer).expand(len(part.silenced), -1, -1)

    def clean_state(self, sources: Tensor) -> State:
        """The state with every edge kept, from what every source then writes, packed, [S', N, T, D]."""
        packing, count = self.parts.packing, len(self.graph.sources)
        difference = sources.new_empty(*sources.shape[1:3], count, sources.shape[3])
        out = difference.permute(2, 0, 1, 3)
        if packing.layout.numbers:
            out.copy_(packing.dense(sources - self.replacement))
        else:
            torch.sub(sources, self.replacement, out=out)
        return State(difference, at_position(difference, self.position))

    def state(self, mask: np.ndarray, clean: State, first_layer: int) -> State:
        """The state under a mask that removes nothing before a layer, where
        `clean` is the state with every edge kept.
        """
        upstream = self.graph.n_upstream(first_layer)
        nodes = self.graph.live(mask)
        nodes[:upstream] = False
        everywhere, at_answer = self._run(mask, nodes, clean)
        difference, last = torch.zeros_like(clean.difference), clean.at_answer.clone()
        difference[:, :, :upstream] = clean.difference[:, :, :upstream]
        difference.flatten(0, 1)[:, index_of(everywhere.moved)] = everywhere.buffer[0, :, 1:]
        last[:, index_of(at_answer.moved)] = at_answer.buffer[0, :, 1:]
        return State(difference, last)

    def branch(self, mask: np.ndarray, state: State, receiver: int, kept: np.ndarray) -> Tensor:
        """[M, N, vocabulary]: the logits in a state, for [M, S]
        alternatives of the sources that one receiver keeps.
        """
        nodes = self.graph.reached(mask, self.graph.feeds[receiver]) & self.graph.live(mask)
        at_answer = self._run(mask, nodes, state, receiver, kept)[1]
        return self._logits(at_answer).expand(len(kept), -1, -1)

    def spreads(self, mask: np.ndarray, receiver: int) -> bool:
        """Whether alternatives of what a receiver reads differ at other positions than the answer's."""
        moved = self.graph.reached(mask, self.graph.feeds[receiver])
        return bool((moved & self.graph.everywhere(mask)).any())

    def _logits(self, at_answer: Places) -> Tensor:
        """[M or 1, N, vocabulary]."""
        return unembed(self.model, at_answer.read(np.array([len(self.graph.receivers) - 1]))[:, :, 0])

    def _run(
        self,
        mask: np.ndarray,
        nodes: np.ndarray,
        state: State | None,
        receiver: int = -1,
        alternatives: np.ndarray | None = None,
        *,
        wide: np.ndarray | None = None,
        silenced: np.ndarray | None = None,
    ) -> tuple[Places, Places]:
        """What the sources in a [S] bool `nodes` write, at all positions and at the answer's alone.

        All other sources stay as in the state, or are replaced where there is none. `alternatives`, [M, S],
        are what one receiver keeps; everything downstream of it has M versions. `wide` and `silenced` are
        those of a `Part`.
        """
        graph = self.graph
        wide = graph.everywhere(mask) if wide is None else wide
        if silenced is None:
            silenced = np.zeros((1 if alternatives is None else len(alternatives), len(nodes)), dtype=bool)
        held = np.flatnonzero(silenced.any(axis=0) & ~nodes) if state is not None else np.zeros(0, dtype=int)

        def running(rows: slice) -> np.ndarray:
            """Those of some rows that run, first those that are needed everywhere."""
            found = rows.start + np.flatnonzero(nodes[rows])
            return found[np.argsort(~wide[found], kind="stable")]

        inputs = running(graph.inputs)
        heads = [running(graph.heads(layer)) for layer in range(graph.n_layers)]
        mlps = [running(graph.mlps(layer)) for layer in range(graph.n_layers)]
        pairs = zip(heads, mlps, strict=True)
        moved = np.concatenate([held, inputs, *(rows for pair in pairs for rows in pair)])
        fixed = np.ones(len(nodes), dtype=bool)
        fixed[moved] = False
        changed = (
            mask,
            fixed,
            receiver,
            np.zeros((len(silenced), 0), dtype=bool) if alternatives is None else alternatives,
            silenced,
        )
        everywhere = Places.build(
            self, None, moved[wide[moved]], state and state.difference.flatten(0, 1), *changed
        )
        at_answer = Places.build(self, self.position, moved, state and state.at_answer, *changed)
        everywhere.hold(held[wide[held]])
        at_answer.hold(held)

        def write(rows: np.ndarray, at: Callable[[Places, np.ndarray], None]) -> None:
            """Some sources of a node: at all positions where that is needed, and from there at the answer's;
            else there alone."""
            n_wide = int(wide[rows].sum())
            if n_wide:
                at(everywhere, rows[:n_wide])
                at_answer.copy(everywhere, rows[:n_wide])
            if n_wide < len(rows):
                at(at_answer, rows[n_wide:])

        write(inputs, Places.write_input)
        for layer in range(graph.n_layers):
            if len(heads[layer]):
                self._run_heads(layer, heads[layer], wide, everywhere, at_answer)
            write(mlps[layer], lambda places, rows, layer=layer: places.write_mlp(layer, rows))
        return everywhere, at_answer

    def _run_heads(
        self, layer: int, rows: np.ndarray, wide: np.ndarray, everywhere: Places, at_answer: Places
    ) -> None:
        """Some heads of a layer, those that are needed everywhere first: what they attend to and write."""
        block, n_wide = self.model.blocks[layer], int(wide[rows].sum())
        of_row = self.graph.head_of_row[rows]
        first, back_first = np.unique(of_row[:n_wide], return_inverse=True)
        then, back_then = np.unique(of_row[n_wide:], return_inverse=True)
        heads = np.concatenate([first, then])
        q, k, v = everywhere.project(layer, {"q": first, "k": heads, "v": heads})
        if len(first):
            own = slice(len(first))
            z = block.attend(q, k[own], v[own], None, first)
            everywhere.write_heads(layer, rows[:n_wide], first, back_first, z)
            at_answer.copy(everywhere, rows[:n_wide])
        if len(then):
            own, (q,) = slice(len(first), None), at_answer.project(layer, {"q": then})
            z = block.attend(q, k[own], v[own], at_answer.positions, then)
            at_answer.write_heads(layer, rows[n_wide:], then, back_then, z)
