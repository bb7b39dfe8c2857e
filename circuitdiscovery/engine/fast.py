"""The model as a function of an edge mask.

    every receiver reads  (everything as replaced)  +  sum over kept edges of (current - replacement)

1. `plain_run` is the transformer itself, from an embedding to the logits at the answer's position. It can keep what every
   source wrote (the replacements of resample ablation) and what every receiver read (for gradients).
2. A `World` is one batch under one ablation: where the run starts, what a removed edge carries, and the sum of all
   replacements at each place of the residual stream.
3. `World.logits` evaluates any mask in one forward, and only what matters: the nodes with a path of kept edges to the logits
   and, where every replacement is a run's own activation, with one from the input (elsewhere current equals replacement);
   and of a node that no key and no value reads on the way to the logits, the answer's position alone.
4. `World.branch` evaluates many alternatives of what one receiver reads, given the state of the rest: only the nodes that
   the receiver reaches run again. The searches stand on it.
5. `World.begin` keeps the state of a mask's run, and `World.go_on` runs from it only what another mask changes; several
   versions with other sources silenced (they carry their replacements) go through one run. Measuring stands on it (plan.py).

Shapes: R receivers, S sources, M alternatives, N examples, T positions, D d_model, H heads, h some of them, K d_head;
P = N * T places, or N where only the answer's position matters; B = M * P.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.model.model import Block, Model, Norm

# costs of moving one stream of a source, in multiples of its share in a product (measured on two cores)
_ADD = 10
_COPY = 20
_RUN_FLOP = {"cpu": 5e8, "accelerator": 1e12}  # that could be done while Python prepares a run
_RUN_TOKENS = 16  # whose products take as long as reading the weights
_PIECE_BYTES = 2**23  # of streams that are read, normalised and projected at once, where there are several alternatives

# ------------------------------------------------------------------ the program, written once over the architectures' switches


def embed(model: Model, tokens: Tensor) -> Tensor:
    """[N, T] token ids -> [N, T, D]: token plus position embedding, the source `input`."""
    model.check_tokens(tokens)
    x = F.embedding(tokens, model.W_E)
    return x if model.W_pos is None else x + model.W_pos[: tokens.shape[1]]


def _project(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """One stream for all heads: [..., D] through [h, K, D] -> [h, ..., K]."""
    out = F.linear(x, weight.flatten(0, 1), None if bias is None else bias.flatten())
    return out.unflatten(-1, weight.shape[:2]).movedim(-2, 0)


def _project_each(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """One stream for each head: [B, h, D] through [h, K, D] -> [h, B, K]."""
    out = torch.bmm(x.transpose(0, 1), weight.transpose(1, 2))
    return out if bias is None else out.add_(bias[:, None])


def attend(model: Model, block: Block, q: Tensor, k: Tensor, v: Tensor, position: Tensor | None = None) -> Tensor:
    """Causal attention per head, [h, N, T, K] each (k and v already repeated per head) -> [h, N, T, K].

    With [N] positions q is [h, N, 1, K], the query at that position of each example, and so is what comes out.
    """
    at = None if position is None else position[:, None]  # [N, 1]
    if model.rotary is not None:
        q, k = model.rotary(q, at), model.rotary(k)
    if at is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=block.scale)
    seen = torch.arange(k.shape[-2], device=k.device) <= at
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None], scale=block.scale)


def mlp(model: Model, block: Block, x: Tensor) -> Tensor:
    """[..., D] normalised -> [..., D]."""
    hidden = F.linear(x, block.W_in, block.b_in)
    if block.W_gate is None:
        hidden = model.activation(hidden)
    else:
        hidden = model.activation(F.linear(x, block.W_gate, block.b_gate)) * hidden
    return F.linear(hidden, block.W_out, block.b_out)


def at_position(x: Tensor, position: Tensor) -> Tensor:
    """[N, T, ...] -> [N, ...] at each example's position."""
    return x[torch.arange(len(position), device=x.device), position]


def unembed(model: Model, x: Tensor) -> Tensor:
    """[..., D] final residual stream -> [..., vocabulary]."""
    return F.linear(model.final_norm(x), model.W_U)


def replaced_logits(model: Model, replacement: Tensor, position: Tensor) -> Tensor:
    """[N, vocabulary] where every edge is removed, from [S, N, T, D] replacements."""
    x = replacement[:, torch.arange(len(position), device=replacement.device), position].sum(0)
    biases = [block.b_O for block in model.blocks if block.b_O is not None]
    return unembed(model, x + torch.stack(biases).sum(0) if biases else x)


def per_head(model: Model, x: Tensor) -> Tensor:
    """[groups, ...] -> [H, ...]."""
    size = model.graph.n_heads // model.graph.n_kv_heads
    return x if size == 1 else x.repeat_interleave(size, dim=0)


def parameters(model: Model) -> int:
    """How many weights each token goes through: those of the layers."""
    weights = (w for b in model.blocks for w in (b.W_Q, b.W_K, b.W_V, b.W_O, b.W_in, b.W_gate, b.W_out))
    return sum(weight.numel() for weight in weights if weight is not None)


def run_tokens(model: Model) -> float:
    """How many tokens cost as much as what a run costs beside its tokens: calls from Python, reading the weights."""
    return _RUN_FLOP["cpu" if model.device.type == "cpu" else "accelerator"] / (2 * parameters(model)) + _RUN_TOKENS


# ------------------------------------------------------------------ the whole model


@dataclass(frozen=True)
class Readers:
    """The receivers of one layer and letter, and how they read the stream: through a norm and, in attention, a projection."""

    layer: int
    letter: str
    at_answer: bool  # only at the answer's position: in the last layer except for its keys and values
    norm: Norm
    weight: Tensor | None = None  # [R, K, D]
    bias: Tensor | None = None  # [R, K]

    @property
    def place(self) -> tuple[int, str, bool]:
        """Where in the residual stream they read, which queries, keys and values of a layer have in common."""
        return self.layer, "attention" if self.weight is not None else self.letter, self.at_answer


@dataclass(frozen=True)
class Reading:
    """What some receivers read in a plain run, for the chain rule back to the stream.

    `values` is what the projection makes of the normalised stream, [R, N, T, K]; where there is none it is the normalised
    stream itself. T is 1 where only the answer's position is read.
    """

    readers: Readers
    stream: Tensor  # [N, T, D], before the norm
    values: Tensor


@dataclass(frozen=True)
class Run:
    """One forward of the whole model."""

    logits: Tensor  # [N, vocabulary] at each example's answer position; [0, vocabulary] where there is none
    sources: Tensor | None  # [S, N, T, D]
    readings: tuple[Reading, ...]


def plain_run(
    model: Model,
    start: Tensor,
    position: Tensor | None,
    *,
    keep_sources: bool = False,
    less: Tensor | None = None,
    keep_readings: bool = False,
) -> Run:
    """The transformer itself.

    Args:
        model: the model.
        start: [N, T] token ids, or [N, T, D], what the source `input` writes.
        position: [N], where the logits are wanted; the last layer then runs there alone, and what its sources write elsewhere
            is kept as 0. None runs all of it, without logits.
        keep_sources: keep what every source writes.
        less: [S, N, T, D], instead: what every source writes is taken from it, in place, where a receiver reads it.
        keep_readings: keep what every receiver reads, as part of the autograd graph.
    """
    x = embed(model, start) if start.dim() == 2 else start
    graph, rows = model.graph, torch.arange(len(x), device=x.device)
    sources = x.new_empty(len(graph.sources), *x.shape) if keep_sources else less
    readings: list[Reading] = []
    at = None

    def keep(sources: Tensor, where: Any, written: Tensor) -> None:
        sources[where] = written.detach() if less is None else less[where] - written.detach()

    if sources is not None:
        keep(sources, 0, x)
    for layer, block in enumerate(model.blocks):
        stream, u = x, block.norm1(x)
        k, v = (_project(u, *block.projection(letter)) for letter in "kv")
        if position is not None and layer == graph.n_layers - 1:
            at, x, u = position, at_position(x, position)[:, None], at_position(u, position)[:, None]
            if sources is not None and less is None:
                sources[graph.n_upstream(layer) :] = 0
        q = _project(u, *block.projection("q"))
        z = attend(model, block, q, per_head(model, k), per_head(model, v), at)  # [H, N, T, K]
        attended = F.linear(z.permute(1, 2, 0, 3).flatten(2), block.W_O.flatten(0, 1).T, block.b_O)  # [N, T, D]
        y = x if graph.parallel else x + attended
        normalised = block.norm2(y)
        written = mlp(model, block, normalised)
        if keep_readings:
            read = (("q", x, q), ("k", stream, k), ("v", stream, v))
            readings += [
                Reading(Readers(layer, letter, at is not None and letter == "q", block.norm1, *block.projection(letter)), before, values)
                for letter, before, values in read
            ]
            readings.append(Reading(Readers(layer, "m", at is not None, block.norm2), y, normalised))
        if sources is not None and at is None:
            beta, alpha = (0, 1) if less is None else (1, -1)
            sources[graph.heads(layer)].flatten(1, 2).baddbmm_(z.detach().flatten(1, 2), block.W_O, beta=beta, alpha=alpha)
            keep(sources, graph.mlp(layer), written)
        elif sources is not None:
            keep(sources, (graph.heads(layer), rows, at), torch.bmm(z.detach().flatten(1, 2), block.W_O))
            keep(sources, (graph.mlp(layer), rows, at), written[:, 0])
        x = x + attended + written
    if at is None:
        return Run(x.new_empty(0, model.vocab_size), sources, tuple(readings))
    normalised = model.final_norm(x)
    if keep_readings:
        readings.append(Reading(Readers(graph.n_layers, "logits", True, model.final_norm), x, normalised))
    return Run(F.linear(normalised[:, 0], model.W_U), sources, tuple(readings))


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

    def __call__(self, name: str, *shape: int) -> Tensor:
        """Of a shape, in the memory of this name."""
        held, size = self._held.get(name), math.prod(shape)
        if held is None or len(held) < size:
            self._held.pop(name, held)  # before the larger one is taken
            held = self._held[name] = self._like.new_empty(size)
        return held[:size].view(shape)


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
        """[N, T, D] each: what is read when every edge is removed, by attention and MLP of each layer, last by the logits."""
        bases: list[Tensor] = []
        x = self.replacement[0]
        for layer, block in enumerate(self.model.blocks):
            attended = self.replacement[self.graph.heads(layer)].sum(0)
            y = x + attended if block.b_O is None else x + attended + block.b_O
            bases += [x, x if self.graph.parallel else y]
            x = y + self.replacement[self.graph.mlp(layer)]
        return (*bases, x)

    @cached_property
    def at_answer(self) -> Tensor:
        """[S, N, D]: the replacements at the answer's position."""
        return self.replacement[:, torch.arange(len(self.position), device=self.position.device), self.position]

    @cached_property
    def _fixed(self) -> dict[tuple[int, str, bool], Tensor]:
        return {}

    def replaced(self, layer: int, letter: str, at_answer: bool) -> Tensor:
        """[heads or groups, P, K]: a layer's queries, keys or values where every edge into them is removed."""
        key = layer, letter, at_answer
        if key not in self._fixed:
            block, base = self.model.blocks[layer], self.bases[2 * layer]
            base = at_position(base, self.position) if at_answer else base.flatten(0, 1)
            self._fixed[key] = _project(block.norm1(base), *block.projection(letter))
        return self._fixed[key]

    @cached_property
    def memory(self) -> Memory:
        """What one run after the other writes to."""
        return Memory(self.start)

    def logits(self, mask: np.ndarray) -> Tensor:
        """[N, vocabulary]: one forward with the True edges of a [S, R] mask kept."""
        return self._logits(self._run(mask, self.graph.running(mask, self.own_run), None)[1])[0]

    def begin(self, part: Part) -> tuple[State, Tensor]:
        """The state after a part of one version ran from nothing, valid until the next, and its [N, vocabulary] logits.

        The logits are the circuit's where the part has all its nodes.
        """
        everywhere, at_answer = self._run(part.mask, part.nodes, None, wide=part.wide, silenced=part.silenced)
        logits = self._logits(at_answer)[0]
        n_sources, (n_examples, length, width) = len(self.graph.sources), self.start.shape
        difference = self.memory("state", n_examples, length, n_sources, width).zero_()
        last = self.memory("state at the answer", n_examples, n_sources, width).zero_()
        difference.flatten(0, 1)[:, _index(everywhere.moved)] = everywhere.buffer[0, :, 1:]
        last[:, _index(at_answer.moved)] = at_answer.buffer[0, :, 1:]
        return State(difference, last), logits

    def go_on(self, part: Part, state: State | None) -> Tensor:
        """[M, N, vocabulary]: the logits of each version of a part; what does not run is as in the state, or replaced without one."""
        _, at_answer = self._run(part.mask, part.nodes, state, wide=part.wide, silenced=part.silenced)
        return self._logits(at_answer).expand(len(part.silenced), -1, -1)

    def clean_state(self, sources: Tensor) -> State:
        """The state with every edge kept, from [S, N, T, D], what every source then writes."""
        difference = sources.new_empty(*sources.shape[1:3], len(sources), sources.shape[3])
        torch.sub(sources, self.replacement, out=difference.permute(2, 0, 1, 3))
        return State(difference, at_position(difference, self.position))

    def state(self, mask: np.ndarray, clean: State, first_layer: int) -> State:
        """The state under a mask that removes nothing before a layer, where `clean` is the state with every edge kept."""
        upstream = self.graph.n_upstream(first_layer)
        nodes = self.graph.live(mask)
        nodes[:upstream] = False
        everywhere, at_answer = self._run(mask, nodes, clean)
        difference, last = torch.zeros_like(clean.difference), clean.at_answer.clone()
        difference[:, :, :upstream] = clean.difference[:, :, :upstream]
        difference.flatten(0, 1)[:, _index(everywhere.moved)] = everywhere.buffer[0, :, 1:]
        last[:, _index(at_answer.moved)] = at_answer.buffer[0, :, 1:]
        return State(difference, last)

    def branch(self, mask: np.ndarray, state: State, receiver: int, kept: np.ndarray) -> Tensor:
        """[M, N, vocabulary]: the logits in a state, for [M, S] alternatives of the sources that one receiver keeps."""
        nodes = self.graph.reached(mask, self.graph.feeds[receiver]) & self.graph.live(mask)
        at_answer = self._run(mask, nodes, state, receiver, kept)[1]
        return self._logits(at_answer).expand(len(kept), -1, -1)

    def spreads(self, mask: np.ndarray, receiver: int) -> bool:
        """Whether alternatives of what a receiver reads differ at other positions than the answer's."""
        moved = self.graph.reached(mask, self.graph.feeds[receiver])
        return bool((moved & self.graph.everywhere(mask)).any())

    def _logits(self, at_answer: _Places) -> Tensor:
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
    ) -> tuple[_Places, _Places]:
        """What the sources in a [S] bool `nodes` write, at all positions and at the answer's alone.

        All other sources stay as in the state, or are replaced where there is none. `alternatives`, [M, S], are what one
        receiver keeps; everything downstream of it has M versions. `wide` and `silenced` are those of a `Part`.
        """
        graph = self.graph
        wide = graph.everywhere(mask) if wide is None else wide
        if silenced is None:
            silenced = np.zeros((1 if alternatives is None else len(alternatives), len(nodes)), dtype=bool)
        held = np.flatnonzero(silenced.any(axis=0) & ~nodes) if state is not None else np.zeros(0, dtype=int)
        heads = [graph.heads(layer).start + np.flatnonzero(nodes[graph.heads(layer)]) for layer in range(graph.n_layers)]
        heads = [rows[np.argsort(~wide[rows], kind="stable")] for rows in heads]  # first those that are needed everywhere
        mlps = [graph.mlp(layer) + np.arange(int(nodes[graph.mlp(layer)])) for layer in range(graph.n_layers)]
        moved = [held, np.arange(int(nodes[0])), *(rows for pair in zip(heads, mlps, strict=True) for rows in pair)]
        moved = np.concatenate(moved)
        fixed = np.ones(len(nodes), dtype=bool)
        fixed[moved] = False
        changed = mask, fixed, receiver, np.zeros((len(silenced), 0), dtype=bool) if alternatives is None else alternatives, silenced
        everywhere = _Places.build(self, None, moved[wide[moved]], state and state.difference.flatten(0, 1), *changed)
        at_answer = _Places.build(self, self.position, moved, state and state.at_answer, *changed)
        everywhere.hold(held[wide[held]])
        at_answer.hold(held)

        def write(row: int, of: Callable[[_Places], Tensor]) -> None:
            """One source that is no head, [M or 1, P, D] at some places: at all positions if needed, and at the answer's."""
            places = everywhere if wide[row] else at_answer
            places.write(row, of(places))
            if wide[row]:
                at_answer.copy(everywhere, np.array([row]))

        if nodes[0]:
            write(0, lambda places: places.of(self.start)[None])
        for layer, block in enumerate(self.model.blocks):
            if len(heads[layer]):
                self._run_heads(layer, block, heads[layer], wide, everywhere, at_answer)
            if len(mlps[layer]):
                columns = graph.columns(layer, "m")
                write(graph.mlp(layer), lambda places, b=block, c=columns: mlp(self.model, b, b.norm2(places.read(c)[:, :, 0])))
        return everywhere, at_answer

    def _run_heads(self, layer: int, block: Block, rows: np.ndarray, wide: np.ndarray, everywhere: _Places, at_answer: _Places) -> None:
        """Some heads of a layer, those that are needed everywhere first: what they attend to and write."""
        heads, n_wide = rows - self.graph.heads(layer).start, int(wide[rows].sum())
        q, k, v = everywhere.project(layer, {"q": heads[:n_wide], "k": heads, "v": heads})
        for places, some in ((everywhere, slice(n_wide)), (at_answer, slice(n_wide, None))):
            if not len(heads[some]):
                continue
            if places is at_answer:
                (q,) = places.project(layer, {"q": heads[some]})
            z = attend(self.model, block, q, k[some], v[some], places.positions)
            places.write_heads(rows[some], z, _take(block.W_O, heads[some]))
        at_answer.copy(everywhere, rows[:n_wide])


@dataclass(frozen=True)
class _Places:
    """What some sources write and what receivers read at the same places: all positions, or the answer's alone."""

    world: World
    position: Tensor | None  # [N]; None: all positions
    moved: np.ndarray  # the sources that run, in the buffer's order
    state: Tensor | None  # [P, S, D], for the other sources
    mask: np.ndarray
    fixed: np.ndarray  # [S] bool: the sources that stay as in the state
    receiver: int  # reads each of
    alternatives: np.ndarray  # [M, S] bool
    silenced: np.ndarray  # [M, S] bool
    buffer: Tensor  # [M, P, 1 + len(moved), D]: scratch for a base, then current - replacement, filled up to the receiver's layer

    @classmethod
    def build(
        cls,
        world: World,
        position: Tensor | None,
        moved: np.ndarray,
        state: Tensor | None,
        mask: np.ndarray,
        fixed: np.ndarray,
        receiver: int,
        alternatives: np.ndarray,
        silenced: np.ndarray,
    ) -> _Places:
        """With an empty buffer."""
        n_places = len(world.start) * (world.start.shape[1] if position is None else 1)
        name = "everywhere" if position is None else "at the answer"
        buffer = world.memory(name, len(alternatives), n_places, 1 + len(moved), world.start.shape[-1])
        return cls(world, position, moved, state, mask, fixed, receiver, alternatives, silenced, buffer)

    @property
    def positions(self) -> Tensor | None:
        """[M * N], where there is one position only."""
        return None if self.position is None else self.position.repeat(len(self.alternatives))

    def of(self, x: Tensor) -> Tensor:
        """[N, T, D] -> [P, D]."""
        return x.flatten(0, 1) if self.position is None else at_position(x, self.position)

    @property
    def replacement(self) -> Tensor:
        """[S, P, D]."""
        return self.world.replacement.flatten(1, 2) if self.position is None else self.world.at_answer

    # -------------------------------------------------------------- writing

    def _slots(self, rows: np.ndarray) -> Tensor:
        """[M, P, len(rows), D]: where some sources that follow each other among the moved ones write to."""
        first = 1 + int((self.moved == rows[0]).argmax())
        return self.buffer[:, :, first : first + len(rows)]

    def write(self, row: int, written: Tensor) -> None:
        """What `input` or an MLP writes, [M or 1, P, D]."""
        out = self._slots(np.array([row]))[:, :, 0]
        torch.sub(written.expand_as(out), self.replacement[row], out=out)
        self._silence(np.array([row]))

    def write_heads(self, rows: np.ndarray, z: Tensor, W_O: Tensor) -> None:
        """What some heads of a layer write, from what they attended to, [h, M * N, T, K], and [h, K, D]."""
        out = self._slots(rows)
        torch.neg(_take(self.replacement, rows).transpose(0, 1).expand_as(out), out=out)
        out.flatten(0, 1).transpose(0, 1).baddbmm_(z.flatten(1, 2), W_O)
        self._silence(rows)

    def hold(self, rows: np.ndarray) -> None:
        """What some sources, the first of the moved ones, write in the state, except where they are silenced."""
        if len(rows):
            assert self.state is not None
            self._slots(rows).copy_(_take(self.state, rows, dim=1))
            self._silence(rows)

    def _silence(self, rows: np.ndarray) -> None:
        for version, which in np.argwhere(self.silenced[:, rows]):
            self._slots(rows[which : which + 1])[version].zero_()

    def copy(self, everywhere: _Places, rows: np.ndarray) -> None:
        """What some sources write at these places, from what they write everywhere."""
        if len(rows):
            written = everywhere._slots(rows).unflatten(1, self.world.start.shape[:2])  # [M, N, T, r, D]
            examples = torch.arange(len(self.world.start), device=written.device)
            self._slots(rows).copy_(written[:, examples, self.position])

    # -------------------------------------------------------------- reading

    def read(self, columns: np.ndarray, versions: slice = slice(None)) -> Tensor:
        """[m or 1, P, len(columns), D]: the streams of receivers at one place of the residual stream.

        By default for all M alternatives; receivers that read nothing which runs have one version. It is valid until the next.
        """
        graph = self.world.graph
        layer, kind = graph.receiver_layers[columns[0]], graph.receivers[columns[0]][0]
        base, upstream = self.of(self.world.bases[2 * layer + (kind == "m")]), graph.n_upstream(layer, kind)
        if columns[0] == self.receiver:  # alternatives of what it reads from a state
            assert self.state is not None
            kept = self.alternatives[versions, :upstream].T
            return base[None, :, None] + _combine(kept, np.arange(upstream), self.state).transpose(0, 1)[:, :, None]
        kept = self.mask[:, columns]
        slots = (self.moved < upstream).nonzero()[0]
        x = base[None, :, None].expand(1, -1, len(columns), -1)
        moves = bool(kept[self.moved[slots]].any())
        if moves:
            buffer = self.buffer[versions]
            out = self.world.memory("streams", len(buffer) * buffer.shape[1], len(columns), buffer.shape[-1])
            buffer[:, :, 0] = base  # as one source more, so that one product makes the whole stream
            weights = np.concatenate([np.ones((1, len(columns)), dtype=bool), kept[self.moved[slots]]])
            x = _combine(weights, np.append(0, 1 + slots), buffer.flatten(0, 1), out).unflatten(0, buffer.shape[:2])
        if self.state is not None:
            fixed = self.fixed[:upstream].nonzero()[0]
            if kept[fixed].any():
                from_state = _combine(kept[fixed], fixed, self.state)
                x = x.add_(from_state) if moves else x + from_state
        return x

    def project(self, layer: int, asked: Mapping[str, np.ndarray]) -> list[Tensor]:
        """For each letter the projections of what some heads of a layer read, [h, M * N, T, K]."""
        graph, block = self.world.graph, self.world.model.blocks[layer]
        columns = {letter: graph.columns(layer, letter) for letter in asked}
        own = {letter: _shared(heads, graph.n_heads // len(columns[letter])) for letter, heads in asked.items()}
        streams, which = self._distinct(np.concatenate([columns[letter][some] for letter, (some, _) in own.items()]))
        parts: list[tuple[np.ndarray, Tensor, Tensor | None, Tensor]] = []  # per letter: streams, weight, bias, what comes out
        for letter, (some, _) in own.items():
            mine, which = np.split(which, [len(some)])
            weight, bias = (None if x is None else _take(x, some) for x in block.projection(letter))
            assert weight is not None
            out = self.buffer.new_empty(len(some), *self.buffer.shape[:2], weight.shape[1])
            if len(replaced := (mine[:, 0] < 0).nonzero()[0]):
                out[_index(replaced)] = _take(self.world.replaced(layer, letter, self.position is not None), some[replaced])[:, None]
            parts.append((mine, weight, bias, out))
        for number, readers in enumerate(streams):
            for versions in self._pieces(readers):
                x = block.norm1(self.read(readers, versions))
                for mine, weight, bias, out in parts:
                    heads = (mine[:, 0] == number).nonzero()[0]
                    _project_some(x, mine[heads, 1], heads, weight, bias, out[:, versions])
        n_examples = len(self.world.start)
        return [
            (out if back is None else _take(out, back)).flatten(1, 2).unflatten(1, (-1, out.shape[2] // n_examples))
            for (_, _, _, out), (_, back) in zip(parts, own.values(), strict=True)
        ]

    def _pieces(self, columns: np.ndarray) -> list[slice]:
        """Slices of the alternatives, so few in each that what some receivers read stays in the caches."""
        if len(self.alternatives) == 1 or not self._moves(columns).any():
            return [slice(None)]
        places, width = self.buffer.shape[1], self.buffer.shape[-1]
        size = max(1, _PIECE_BYTES // (places * len(columns) * width * self.buffer.element_size()))
        return [slice(first, first + size) for first in range(0, len(self.alternatives), size)]

    def _moves(self, columns: np.ndarray) -> np.ndarray:
        """For each receiver 2 if it is the one of the alternatives, 1 if it reads anything that runs, else 0."""
        return np.where(columns == self.receiver, 2, self.mask[self.moved[:, None], columns].any(axis=0))

    def _distinct(self, columns: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """(receivers that read one distinct stream each, [len(columns), 2] which of these lists and stream each receiver reads).

        Streams of which there are M versions stand apart from those of which there is one; list -1 is that all edges are removed.
        """
        kept, kinds = self.mask[:, columns], self._moves(columns)
        kinds[~kept.any(axis=0) & (kinds < 2)] = -1
        packed = np.packbits(kept.T, axis=1)
        content, width = packed.tobytes(), packed.shape[1]
        seen: dict[tuple[int, bytes], int] = {}  # a stream -> its number among those of its kind
        streams: dict[int, list[int]] = {}  # kind -> the first receivers that read each
        places: list[tuple[int, int]] = []  # of each receiver: kind, stream
        for i, (kind, column) in enumerate(zip(kinds.tolist(), columns.tolist(), strict=True)):
            if kind >= 0:
                alike = streams.setdefault(kind, [])
                number = seen.setdefault((kind, content[i * width : (i + 1) * width]), len(alike))
                if number == len(alike):
                    alike.append(column)
                places.append((kind, number))
            else:
                places.append((-1, -1))
        order = {kind: number for number, kind in enumerate(sorted(streams))} | {-1: -1}
        which = np.array([(order[kind], number) for kind, number in places]).reshape(-1, 2)
        return [np.array(streams[kind]) for kind in sorted(streams)], which


def _shared(heads: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray | None]:
    """(the groups of so many heads that some heads are in, which of these each head is in); None where each has its own."""
    return (heads, None) if size == 1 else np.unique(heads // size, return_inverse=True)


def _project_some(x: Tensor, which: np.ndarray, heads: np.ndarray, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """To [h, m, P, K], at some heads: one of the normalised streams [m or 1, P, u, D] for each, through its part of [h, K, D].

    Heads that share a stream go through one product.
    """
    readers = np.bincount(which, minlength=x.shape[2])  # of each stream
    x, shape = x.flatten(0, 1), x.shape[:2]
    for stream in (readers > 1).nonzero()[0]:
        rows = heads[which == stream]
        each = _project(x[:, stream], _take(weight, rows), None if bias is None else _take(bias, rows))
        out[_index(rows)] = each.unflatten(1, shape)
    alone = readers[which] == 1
    if alone.any():
        rows = heads[alone]
        each = _project_each(_take(x, which[alone], dim=1), _take(weight, rows), None if bias is None else _take(bias, rows))
        out[_index(rows)] = each.unflatten(1, shape)


def _index(rows: np.ndarray) -> slice | Tensor:
    """Rows as an index to write to: a slice where they follow each other."""
    numbers = rows.tolist()
    if numbers and numbers[-1] - numbers[0] == len(numbers) - 1 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return slice(numbers[0], numbers[-1] + 1)
    return torch.from_numpy(rows)


def _take(x: Tensor, rows: np.ndarray, dim: int = 0) -> Tensor:
    """Some rows, without a copy where they follow each other."""
    index = _index(rows)
    if isinstance(index, slice):
        return x.narrow(dim, index.start, len(rows))
    return x.index_select(dim, index.to(x.device))


def _combine(kept: np.ndarray, rows: np.ndarray, values: Tensor, out: Tensor | None = None) -> Tensor:
    """Sums over the kept ones of some sources: [s, R] bool, [s] rows of [B, S, D] -> [B, R, D], which may be written to `out`.

    By whichever moves least: adding up the kept ones, a product with the range that they span, or one with a copy of them.
    """
    used = kept.any(axis=1)
    kept, rows = kept[used], rows[used]
    if not len(rows):
        return values.new_zeros(len(values), kept.shape[1], values.shape[2])
    span = int(rows[-1] - rows[0]) + 1
    n_readers = kept.shape[1]
    costs = {"add": _ADD * int(kept.sum()), "span": n_readers * span, "copy": n_readers * len(rows) + _COPY * len(rows)}
    way = min(costs, key=costs.__getitem__)
    if way == "add":
        reader, source = np.nonzero(kept.T)
        starts = torch.from_numpy(np.searchsorted(reader, np.arange(n_readers)))
        places = torch.arange(len(values))[:, None]
        index = (places * values.shape[1] + torch.from_numpy(rows[source])).flatten().to(values.device)
        offsets = (places * len(source) + starts).flatten().to(values.device)
        return F.embedding_bag(index, values.flatten(0, 1), offsets, mode="sum").unflatten(0, (len(values), n_readers))
    if way == "span":
        spread = np.zeros((span, n_readers), dtype=bool)
        spread[rows - rows[0]] = kept
        kept, values = spread, values[:, rows[0] : rows[-1] + 1]
    else:
        values = _take(values, rows, dim=1)
    return torch.matmul(torch.from_numpy(kept.T.copy()).to(values), values, out=out)
