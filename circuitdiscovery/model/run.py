"""The transformer itself: what a block computes, and a run of the whole model.

`plain_run` goes from an embedding to the logits at the answer's position. It can keep what every source wrote
(the replacements of resample ablation) and what every receiver read (for gradients).

Shapes: N examples, T positions, D d_model, H heads, h some of them, K d_head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from circuitdiscovery.model.block import Block
from circuitdiscovery.model.model import Model
from circuitdiscovery.model.norm import Norm

_RUN_FLOP = {"cpu": 5e8, "accelerator": 1e12}  # that could be done while Python prepares a run
_RUN_TOKENS = 16  # whose products take as long as reading the weights

# ------------------------------------------------------------------ the program,
# written once over the architectures' switches


def embed(model: Model, tokens: Tensor) -> Tensor:
    """[N, T] token ids -> [N, T, D]: token plus position embedding, the source `input`."""
    model.check_tokens(tokens)
    x = model.embedded(F.embedding(tokens, model.W_E))
    return x if model.W_pos is None else x + model.W_pos[: tokens.shape[1]]


def at_position(x: Tensor, position: Tensor) -> Tensor:
    """[N, T, ...] -> [N, ...] at each example's position."""
    return x[torch.arange(len(position), device=x.device), position]


def unembed(model: Model, x: Tensor) -> Tensor:
    """[..., D] final residual stream -> [..., vocabulary]."""
    return model.logits_of(model.final_norm(x))


def replaced_logits(model: Model, replacement: Tensor, position: Tensor) -> Tensor:
    """[N, vocabulary] where every edge is removed, from [S, N, T, D] replacements."""
    at_answer = replacement[:, torch.arange(len(position), device=replacement.device), position]
    return unembed(model, stream_after(model, at_answer, model.n_layers))


def stream_after(model: Model, sources: Tensor, layers: int) -> Tensor:
    """[..., D]: the stream after some layers, from what all sources so far write, [S, ..., D]."""
    graph = model.graph
    total = sources[0]
    for layer, block in enumerate(model.blocks[:layers]):
        total = total + block.out_attention(sources[graph.heads(layer)].sum(0))
        total = total + sources[graph.mlps(layer)].sum(0)
    return total


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
    """The receivers of one layer and letter, and how they read the stream:
    through a norm and, in attention, a projection.
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
        return self.layer, "attention" if self.weight is not None else self.letter, self.at_answer


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
    sources: Tensor | None  # [S, N, T, D]
    readings: tuple[Reading, ...]
    # [N, T, D] each, with readings: what the heads of a layer write together, where a norm of that follows;
    # T is 1 in the last layer, where only the answer's position is run
    together: Mapping[int, Tensor] = field(default_factory=dict)


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
        position: [N], where the logits are wanted; the last layer then runs there alone, and what its sources
            write elsewhere is kept as 0. None runs all of it, without logits.
        keep_sources: keep what every source writes.
        less: [S, N, T, D], instead: what every source writes is taken from
            it, in place, where a receiver reads it.
        keep_readings: keep what every receiver reads, as part of the autograd graph.
    """
    x = embed(model, start) if start.dim() == 2 else start
    graph, rows = model.graph, torch.arange(len(x), device=x.device)
    sources = x.new_empty(len(graph.sources), *x.shape) if keep_sources else less
    readings: list[Reading] = []
    together: dict[int, Tensor] = {}
    at = None

    def keep(sources: Tensor, where: Any, written: Tensor) -> None:
        sources[where] = written.detach() if less is None else less[where] - written.detach()

    if sources is not None:
        keep(sources, 0, x)
    for layer, block in enumerate(model.blocks):
        stream, u = x, block.norm1(x)
        k, v = (block.heads_make(letter, u) for letter in "kv")
        if position is not None and layer == graph.n_layers - 1:
            at, x, u = position, at_position(x, position)[:, None], at_position(u, position)[:, None]
            if sources is not None and less is None:
                sources[graph.n_upstream(layer) :] = 0
        q = block.heads_make("q", u)
        z = block.attend(q, per_head(model, k), per_head(model, v), at)  # [H, N, T, K]
        if block.linear:
            attended = block.attended(z)  # [N, T, D]
        else:
            summed = block.together(z)
            attended = block.out_attention(summed)
            if keep_readings:
                together[layer] = summed.detach()
        y = x if graph.parallel else x + attended
        normalised = written = None
        if graph.has_mlp:
            normalised = block.norm2(y)
            written = block.mlp(normalised)
        if keep_readings:
            read = (("q", x, q), ("k", stream, k), ("v", stream, v))
            readings += [
                Reading(
                    Readers(
                        layer,
                        letter,
                        at is not None and letter == "q",
                        block.norm1,
                        *block.projection(letter),
                        block if block.joint else None,
                    ),
                    before,
                    values,
                )
                for letter, before, values in read
            ]
            if normalised is not None:
                readings.append(Reading(Readers(layer, "m", at is not None, block.norm2), y, normalised))
        if sources is not None and at is None:
            beta, alpha = (0, 1) if less is None else (1, -1)
            sources[graph.heads(layer)].flatten(1, 2).baddbmm_(
                z.detach().flatten(1, 2), block.W_O, beta=beta, alpha=alpha
            )
            if written is not None:
                keep(sources, graph.mlp(layer), written)
        elif sources is not None:
            keep(sources, (graph.heads(layer), rows, at), torch.bmm(z.detach().flatten(1, 2), block.W_O))
            if written is not None:
                keep(sources, (graph.mlp(layer), rows, at), written[:, 0])
        x = x + attended if written is None else x + attended + written
    if at is None:
        return Run(x, x.new_empty(0, model.vocab_size), sources, tuple(readings), together)
    normalised = model.final_norm(x)
    if keep_readings:
        readings.append(Reading(Readers(graph.n_layers, "logits", True, model.final_norm), x, normalised))
    return Run(x, model.logits_of(normalised[:, 0]), sources, tuple(readings), together)
