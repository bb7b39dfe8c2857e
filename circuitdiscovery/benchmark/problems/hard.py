"""A planted circuit among the noise of a model that looks trained.

1. The residual stream is made wider. Every idle head and MLP gets random weights whose singular values fall
   as a power of their rank, as those of trained models do (Martin and Mahoney 2021, arXiv 1810.01075). They
   read everything, the planted variables too, and write to the new directions; a small part leaks into the
   planted variables and into the logits.
2. With LayerNorm, a large constant in the stream keeps the norm nearly the same for every prompt, as the
   massive activations of trained models do (Sun et al. 2024, arXiv 2402.17762); the planted computation is
   then off by as much as the norm varies.
3. The stream is turned by a random rotation, so that no direction of the basis means anything.

What all of this does to a logit is bounded: `BOUNDS`, which the tests hold against fresh prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from circuitdiscovery.benchmark.problems.compiler import assembled
from circuitdiscovery.benchmark.problems.problem import Problem
from circuitdiscovery.model.block import Block
from circuitdiscovery.model.model import Model
from circuitdiscovery.model.norm import Norm
from circuitdiscovery.model.run import plain_run

EXTRA = 32  # directions that only noise is written to
HIDDEN = 64  # of a random MLP
DECAY = 0.7  # singular value of rank k: k^-DECAY
# of what random nodes write that reaches the planted variables, and of the noise that reaches the logits
LEAK = 0.01
CONSTANT = 30.0  # in the stream, where there are norms
# without norms, with LayerNorm: the most that a logit moves; an answer leads by 6 or more
BOUNDS = {False: 0.25, True: 0.75}


@torch.no_grad()
def harden(problem: Problem, *, layernorm: bool, seed: int = 0) -> Problem:
    """The problem in its hard form: the same program, prompts and circuit in a model full of noise.

    Args:
        problem: a constructed one; heads and MLPs that write nothing are filled.
        layernorm: whether the model has LayerNorm, else it has no norms.
        seed: of the noise and the rotation.
    """
    name = f"{problem.name}-hard{'-layernorm' if layernorm else ''}"
    model = (
        _normalised(_noisy(problem, name, layernorm, seed), problem)
        if layernorm
        else _noisy(problem, name, layernorm, seed)
    )
    return replace(problem, name=name, model=model, bound=BOUNDS[layernorm])


def _noisy(problem: Problem, name: str, layernorm: bool, seed: int) -> Model:
    """The model with noise in it, turned; without norms."""
    model, generator = problem.model, torch.Generator().manual_seed(seed)
    width = model.d_model
    inner = width + EXTRA + layernorm
    turn = _rotation(inner, -(-(inner + layernorm) // 8) * 8, layernorm, generator)  # [inner, d_model]

    def wide(weight: Tensor) -> Tensor:
        """[..., width] -> [..., inner]."""
        return torch.nn.functional.pad(weight, (0, inner - width))

    def noise(rows: int) -> Tensor:
        """[rows, inner] that reads everything but the constant."""
        return torch.nn.functional.pad(_power_law(rows, width + EXTRA, generator), (0, inner - width - EXTRA))

    def written(rows: int) -> Tensor:
        """[rows, inner] that writes to the new directions, and leaks into the old ones."""
        out = noise(rows)
        out[:, :width] *= LEAK
        return out

    W_E, W_pos, W_U = (
        wide(model.W_E),
        wide(model.W_pos if model.W_pos is not None else model.W_E[:0]),
        wide(model.W_U),
    )
    W_E[:, width : width + EXTRA] = _power_law(len(W_E), EXTRA, generator) * len(W_E) ** 0.5
    W_pos[:, width : width + EXTRA] = _power_law(len(W_pos), EXTRA, generator) * len(W_pos) ** 0.5
    W_U[:, width : width + EXTRA] = LEAK * _power_law(len(W_U), EXTRA, generator) * len(W_U) ** 0.5
    if layernorm:
        W_pos[:, -1] = CONSTANT
    blocks = tuple(_filled(block, wide, noise, written, turn) for block in model.blocks)
    return assembled(name, model.graph, W_E @ turn, W_pos @ turn, blocks, _norm(turn.shape[1]), W_U @ turn)


def _filled(
    block: Block,
    wide: Callable[[Tensor], Tensor],
    noise: Callable[[int], Tensor],
    written: Callable[[int], Tensor],
    turn: Tensor,
) -> Block:
    """A block with its idle heads and MLP filled."""
    parts = {name: wide(getattr(block, name)) for name in ("W_Q", "W_K", "W_V", "W_O")}
    d_head = block.W_O.shape[1]
    for head in range(len(block.W_O)):
        if not block.W_O[head].any():
            for name in ("W_Q", "W_K", "W_V"):
                parts[name][head] = noise(d_head)
            parts["W_O"][head] = written(d_head)
    assert block.W_in is not None and block.W_out is not None
    W_in, b_in, W_out = wide(block.W_in), block.b_in, wide(block.W_out.T).T
    if not block.W_out.any():
        W_in, b_in, W_out = noise(HIDDEN), torch.zeros(HIDDEN), written(HIDDEN).T
    norm = _norm(turn.shape[1])
    turned = {name: weight @ turn for name, weight in parts.items()}
    return replace(block, norm1=norm, norm2=norm, **turned, W_in=W_in @ turn, b_in=b_in, W_out=turn.T @ W_out)


def _power_law(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """[rows, columns] with random singular vectors and singular values 1, 2^-DECAY, 3^-DECAY, ..."""
    rank = min(rows, columns)
    left, right = (
        torch.linalg.qr(torch.randn(size, rank, generator=generator)).Q for size in (rows, columns)
    )
    return left * torch.arange(1, rank + 1) ** -DECAY @ right.T


def _rotation(inner: int, d_model: int, centred: bool, generator: torch.Generator) -> Tensor:
    """[inner, d_model] with orthonormal rows; their entries sum to 0
    where LayerNorm is to find nothing to centre.
    """
    directions = torch.randn(d_model, inner, generator=generator, dtype=torch.float64)
    directions -= directions.mean(0) if centred else 0
    return torch.linalg.qr(directions).Q.T.float()


def _norm(d_model: int) -> Norm:
    return Norm(torch.ones(d_model), None, 1e-5, "none")


def _normalised(model: Model, problem: Problem) -> Model:
    """The model with LayerNorms whose weights undo what they divide
    by on an average prompt of the problem."""
    (batch,) = problem.task.batches()
    run = plain_run(model, batch.clean, batch.position, keep_readings=True)
    deviation = {
        (reading.readers.layer, reading.readers.letter): reading.stream.square().mean().sqrt()
        for reading in run.readings
    }

    def norm(layer: int, letter: str) -> Norm:
        return Norm(deviation[layer, letter] * torch.ones(model.d_model), None, 1e-5, "layer")

    assert model.W_pos is not None
    blocks = tuple(
        replace(block, norm1=norm(layer, "k"), norm2=norm(layer, "m"))
        for layer, block in enumerate(model.blocks)
    )
    return assembled(
        model.name, model.graph, model.W_E, model.W_pos, blocks, norm(len(blocks), "logits"), model.W_U
    )
