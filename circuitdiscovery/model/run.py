"""The transformer itself: what a block computes, and a run of the whole model.

`plain_run` goes from an embedding to the logits at the answer's position. It can keep what every source wrote
(the replacements of resample ablation) and what every receiver read (for gradients).

Shapes: N examples, T positions, D d_model, H heads, h some of them, K d_head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor
from torch.nn import functional as F

from circuitdiscovery.graph.nodes import LETTERS
from circuitdiscovery.model.block import Block
from circuitdiscovery.model.model import Model
from circuitdiscovery.model.norm import Norm, no_norm
from circuitdiscovery.model.packing import Written
from circuitdiscovery.model.parts import Parts

_RUN_FLOP = {"cpu": 5e8, "accelerator": 1e12}  # that could be done while Python prepares a run
_RUN_TOKENS = 16  # whose products take as long as reading the weights

# ------------------------------------------------------------------ the program,
# written once over the architectures' switches


def embed(model: Model, tokens: Tensor) -> Tensor:
    """[N, T] token ids -> [N, T, D]: token plus position embedding, the source `input`."""
    model.check_weights()
    model.check_tokens(tokens)
    x = model.embedded(F.embedding(tokens, model.W_E))
    return x if model.W_pos is None else x + model.W_pos[: tokens.shape[1]]


def at_position(x: Tensor, position: Tensor) -> Tensor:
    """[N, T, ...] -> [N, ...] at each example's position."""
    return x[torch.arange(len(position), device=x.device), position.to(x.device)]


def unembed(model: Model, x: Tensor) -> Tensor:
    """[..., D] final residual stream -> [..., vocabulary]."""
    return model.logits_of(model.final_norm(x))


def replaced_logits(parts: Parts, replacement: Tensor, position: Tensor) -> Tensor:
    """[N, vocabulary] where every edge is removed, from packed replacements, [S', N, T, D]."""
    at_answer = replacement[:, torch.arange(len(position), device=replacement.device), position]
    return unembed(parts.model, stream_after(parts, at_answer, parts.graph.n_layers))


def stream_after(parts: Parts, sources: Tensor, layers: int) -> Tensor:
    """[..., D]: the stream after some layers, from what all sources so far write, packed, [S', ..., D]."""
    return next(islice(streams(parts, sources), 2 * layers, None))


def streams(
    parts: Parts, sources: Tensor, added: Mapping[tuple[int, str], Tensor] | None = None
) -> Iterator[Tensor]:
    """[..., D] each, from what all sources write, packed, [S', ..., D]: what attention and MLP of each layer
    read, and last the logits.

    `added` is what the groups of `Parts.groups` add to the stream, by key, where that is known.
    """
    graph, known, total = parts.graph, added or {}, parts.packing.sum
    x = total(sources, graph.inputs)
    for layer, block in enumerate(parts.model.blocks):
        heads = known.get((layer, "a"))
        y = x + (block.out_attention(total(sources, graph.heads(layer))) if heads is None else heads)
        yield from (x, x if graph.parallel else y)
        mlp = known.get((layer, "m"))
        x = y + (parts.out_mlp(layer)(total(sources, graph.mlps(layer))) if mlp is None else mlp)
    yield x


def per_head(model: Model, x: Tensor) -> Tensor:
    """[groups, ...] -> [H, ...]."""
    size = model.graph.n_heads // model.graph.n_kv_heads
    return x if size == 1 else x.repeat_interleave(size, dim=0)


def parameters(model: Model) -> int:
    """How many weights each token goes through: those of the layers."""
    return sum(sum(block.sizes()) for block in model.blocks)


def run_tokens(model: Model) -> float:
    """How many tokens cost as much as what a run costs beside its
    tokens: calls from Python, reading the weights.

    0, so that no prompt is padded, where positions depend on the prompt's length.
    """
    if any(block.rotary is not None and block.rotary.by_length is not None for block in model.blocks):
        return 0.0
    return (
        _RUN_FLOP["cpu" if model.device.type == "cpu" else "accelerator"] / (2 * parameters(model))
        + _RUN_TOKENS
    )


# ------------------------------------------------------------------ the whole model


@dataclass(frozen=True)
class Readers:
    """The receivers of one layer and letter, and how they read the stream: through a norm and, in attention
    and for the parts of an MLP that read for themselves (letter "n"), a projection.
    """

    layer: int
    letter: str
    at_answer: bool  # only at the answer's position: in the last layer except for its keys and values
    norm: Norm
    weight: Tensor | None = None  # [R, K, D]
    bias: Tensor | None = None  # [R, K]
    joint: Block | None = None  # whose heads do not read each for itself

    @property
    def place(self) -> tuple[int, str, bool]:
        """Where in the residual stream they read, which queries, keys
        and values of a layer have in common."""
        return self.layer, "attention" if self.letter in LETTERS else self.letter, self.at_answer


@dataclass(frozen=True)
class Reading:
    """What some receivers read in a plain run, for the chain rule back to the stream.

    `values` is what the projection makes of the normalised stream, [R, N, T, K]; where there is none it is
    the normalised stream itself. T is 1 where only the answer's position is read.
    """

    readers: Readers
    stream: Tensor  # [N, T, D], before the norm
    values: Tensor


@dataclass(frozen=True)
class Run:
    """One forward of the whole model."""

    # [N, T, D] that the logits read, before the norm; [N, 1, D] where there is an answer's position
    stream: Tensor
    logits: Tensor  # [N, vocabulary] at each example's answer position; [0, vocabulary] where there is none
    sources: Tensor | None  # [S', N, T, D], packed (packing.py)
    readings: tuple[Reading, ...]
    # by the group's key, [N, T, D] each, with readings: what sources write together where a norm of that
    # follows; T is 1 in the last layer, where only the answer's position is run
    together: Mapping[tuple[int, str], Tensor] = field(default_factory=dict)
    # per layer, [N, T, D] both, with readings: what the MLP writes, before a norm of it and after, as part of
    # the autograd graph
    mlps: tuple[tuple[Tensor, Tensor], ...] = ()


def plain_run(
    model: Model,
    start: Tensor,
    position: Tensor | None,
    *,
    keep_sources: bool = False,
    less: Tensor | None = None,
    keep_readings: bool = False,
    parts: Parts | None = None,
) -> Run:
    """The transformer itself.

    Args:
        model: the model.
        start: [N, T] token ids, or [N, T, D], what the source `input` writes.
        position: [N], where the logits are wanted; the last layer then runs there alone, and what its sources
            write elsewhere is kept as 0. None runs all of it, without logits.
        keep_sources: keep what every source writes.
        less: [S', N, T, D], packed, instead: what every source writes is taken from
            it, in place, where a receiver reads it.
        keep_readings: keep what every receiver reads, as part of the autograd graph.
        parts: of a graph whose nodes are split; by default the model's own.
    """
    x = embed(model, start) if start.dim() == 2 else start
    parts = Parts.of(model) if parts is None else parts
    graph = parts.graph
    sources = x.new_empty(len(parts.packing), *x.shape) if keep_sources else less
    kept = None if sources is None else _Kept(parts, sources, less is not None)
    readings: list[Reading] = []
    together: dict[tuple[int, str], Tensor] = {}
    mlps: list[tuple[Tensor, Tensor]] = []
    at = None
    if keep_sources and kept is not None:
        kept.values[parts.packing.layout.full :] = 0
    if kept is not None:
        kept.write(graph.inputs, Written(parts.input(x)), None)
    for layer, block in enumerate(model.blocks):
        x = x.to(block.device)
        stream, u = x, block.norm1(x)
        k, v = (block.heads_make(letter, u) for letter in "kv")
        if position is not None and layer == graph.n_layers - 1:
            at, x, u = position, at_position(x, position)[:, None], at_position(u, position)[:, None]
            if keep_sources and kept is not None:
                later, _ = parts.packing.layout.split(slice(graph.n_upstream(layer), len(graph.sources)))
                kept.values[later] = 0
        q = block.heads_make("q", u)
        z = block.attend(q, per_head(model, k), per_head(model, v), at)  # [H, N, T, K]
        if block.linear:
            attended = block.attended(z)  # [N, T, D]
        else:
            summed = block.together(z)
            attended = block.out_attention(summed)
            together[layer, "a"] = summed.detach()
        if keep_readings:
            joint = block if block.joint else None
            readings += [
                Reading(
                    Readers(
                        layer,
                        letter,
                        at is not None and letter == "q",
                        block.norm1,
                        *block.projection(letter),
                        joint,
                    ),
                    before,
                    values,
                )
                for letter, before, values in (("q", x, q), ("k", stream, k), ("v", stream, v))
            ]
        if kept is not None:
            kept.write_heads(layer, z.detach(), at)
        y = x if graph.parallel else x + attended
        x = x + attended
        if graph.has_mlp:
            run = _run_mlp(parts, layer, y, at, kept, keep_readings)
            readings += run.readings
            together |= {} if run.together is None else {(layer, "m"): run.together}
            mlps += [(run.written, run.added)] if keep_readings else []
            x = x + run.added
    x = x.to(model.device)
    if at is None:
        return Run(x, x.new_empty(0, model.vocab_size), sources, tuple(readings), together, tuple(mlps))
    normalised = model.final_norm(x)
    if keep_readings:
        readings.append(Reading(Readers(graph.n_layers, "logits", True, model.final_norm), x, normalised))
    logits = model.logits_of(normalised[:, 0])
    return Run(x, logits, sources, tuple(readings), together, tuple(mlps))


@dataclass(frozen=True)
class _Kept:
    """What a run keeps of its sources, or what they are taken from: packed, [S', N, T, D]."""

    parts: Parts
    values: Tensor
    less: bool

    def write(self, rows: slice, written: Written, at: Tensor | None) -> None:
        """What some sources write; at [N] positions T is 1."""
        self.parts.packing.set(self.values, rows, written, self.less, at)

    def write_heads(self, layer: int, z: Tensor, at: Tensor | None) -> None:
        """What the heads of a layer write, from what they attend to, [H, N, T, K]."""
        parts, values = self.parts, self.values
        block, rows = parts.model.blocks[layer], parts.graph.heads(layer)
        # none is split, and all is in one place
        if at is None and rows.stop - rows.start == len(z) and z.device == values.device:
            own, _ = parts.packing.layout.split(rows)
            beta, alpha = (1, -1) if self.less else (0, 1)
            values[own].flatten(1, 2).baddbmm_(z.flatten(1, 2), block.W_O, beta=beta, alpha=alpha)
        else:
            self.write(rows, Written(parts.heads(layer, block.written(z), at)), at)


@dataclass(frozen=True)
class _MlpRun:
    """What an MLP writes and what that adds to the stream, [N, T, D] both, with its readings, and what its
    sources write together where a norm of that follows."""

    written: Tensor
    added: Tensor
    readings: tuple[Reading, ...]
    together: Tensor | None


def _run_mlp(
    parts: Parts, layer: int, y: Tensor, at: Tensor | None, kept: _Kept | None, keep_readings: bool
) -> _MlpRun:
    """The MLP of a layer, from what it reads, [N, T, D]."""
    block, norm, at_answer = parts.model.blocks[layer], parts.mlp_norm(layer), at is not None
    if parts.owns(layer):
        units, own = parts.units(layer), y.view_as(y)  # the rest's, so that it has a gradient of its own
        values = units.read(y)  # [p, N, T, K]
        readings = [
            Reading(Readers(layer, "n", at_answer, units.norm, units.weight, units.bias), y, values),
            Reading(Readers(layer, "m", at_answer, no_norm(y)), y, own),
        ]
        written = parts.apart(layer, values, own)
        total = written.sum()
    else:
        normalised = block.norm2(y)
        readings = [Reading(Readers(layer, "m", at_answer, block.norm2), y, normalised)]
        written = parts.shared(layer, normalised, at) if parts.splits_mlp(layer) else None
        total = block.mlp_before_norm(normalised) if written is None else written.sum()
    after = block.mlp_norm if written is None else norm
    added = total if after is None else after(total)
    if kept is not None:
        kept.write(parts.graph.mlps(layer), Written(added[None]) if written is None else written, at)
    return _MlpRun(
        total,
        added,
        tuple(readings) if keep_readings else (),
        None if norm is None else total.detach(),
    )
