"""From a program of attention heads and look-ups to the weights of a transformer (after RASP and Tracr: Weiss
et al. 2021, arXiv 2106.06981; Lindner et al. 2023, arXiv 2301.05062).

1. A `Variable` is a subspace of the residual stream that one node writes. Tokens and
   positions are one-hot variables of `input`.
2. `Program.attend` is select and aggregate in one head: the query's one-hot meets the keys that a predicate
   gives it, and what the values' variables hold there is averaged into a new variable.
3. `Program.lookup` and `Program.neurons` are an MLP: a table over one-hot variables, or any hidden layer.
4. `Program.compile` writes all of it into the weights of a model without norms, with
   ReLU; every other head and MLP writes 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.graph.nodes import parsed
from circuitdiscovery.model.block import Block
from circuitdiscovery.model.load import weights_digest
from circuitdiscovery.model.model import Model
from circuitdiscovery.model.norm import Norm

# of a selection: 5e-5 of the attention goes to each wrong key, and gradients do not vanish altogether
SHARPNESS = 10.0

D_HEAD = 8  # at least: room for noise


@dataclass(frozen=True)
class Variable:
    """`size` directions of the residual stream from `start` on."""

    start: int
    size: int


Linear = Mapping[Variable, Tensor]  # variable -> [k, size]: a sum of linear maps of variables


@dataclass(frozen=True)
class _Head:
    query: Linear
    key: Linear
    value: Linear
    out: Variable


@dataclass(frozen=True)
class _Neurons:
    reads: Linear
    bias: Tensor  # [hidden]
    writes: Tensor  # [size, hidden]
    out: Variable


@dataclass
class Program:
    """A transformer under construction: say what its nodes do, then `compile` it.

    Args:
        vocabulary: tokens.
        length: positions.
        n_layers, n_heads: of the transformer; most heads may stay idle.
    """

    vocabulary: int
    length: int
    n_layers: int
    n_heads: int
    width: int = 0  # of the residual stream so far
    heads: dict[tuple[int, int], _Head] = field(default_factory=dict)
    mlps: dict[int, _Neurons] = field(default_factory=dict)
    answer: Linear = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tokens, self.positions, self.one = (
            self._new(self.vocabulary),
            self._new(self.length),
            self._new(1),
        )

    def _new(self, size: int) -> Variable:
        self.width += size
        return Variable(self.width - size, size)

    # ---------------------------------------------------------------- nodes

    def attend(
        self, node: str, *, query: Variable, key: Variable, match: Callable[[int, int], bool], value: Linear
    ) -> Variable:
        """A head, such as "a1.h2": the mean of `value` over the keys
        that match; over all keys where none does.

        Args:
            node: which head.
            query, key: one-hot variables.
            match: whether a query's index looks at a key's.
            value: what is averaged, [k, size] of each variable.
        """
        found = parsed(node)
        place = found.layer, found.index
        if (
            found.kind != "head"
            or not (place[0] < self.n_layers and place[1] < self.n_heads)
            or place in self.heads
        ):
            raise CircuitDiscoveryError(
                f"{node} is not an idle head of {self.n_layers} layers of {self.n_heads} heads"
            )
        meets = torch.tensor([[SHARPNESS * match(i, j) for j in range(key.size)] for i in range(query.size)])
        out = self._new(len(next(iter(value.values()))))
        self.heads[place] = _Head({query: torch.eye(query.size)}, {key: meets}, value, out)
        return out

    def lookup(
        self, node: str, inputs: tuple[Variable, ...], table: Callable[..., int | None], size: int
    ) -> Variable:
        """An MLP, such as "m1", that writes the one-hot of table(i, j, ...) where its
        one-hot inputs are i, j, ...; None writes 0.
        """
        entries = [(cell, table(*cell)) for cell in product(*(range(variable.size) for variable in inputs))]
        entries = [(cell, found) for cell, found in entries if found is not None]
        # 2 (sum - n + 1/2) is 1 where all n are on and at most -1 elsewhere
        reads = {
            variable: 2.0 * _one_hots([cell[i] for cell, _ in entries], variable.size)
            for i, variable in enumerate(inputs)
        }
        bias = torch.full((len(entries),), 1.0 - 2 * len(inputs))
        return self.neurons(
            node, reads=reads, bias=bias, writes=_one_hots([found for _, found in entries], size).T
        )

    def neurons(self, node: str, *, reads: Linear, bias: Tensor, writes: Tensor) -> Variable:
        """An MLP of any hidden layer: relu([hidden, size] of each variable, plus
        [hidden]), through [size of the result, hidden].
        """
        layer = int(node[1:])
        if layer >= self.n_layers or layer in self.mlps:
            raise CircuitDiscoveryError(f"{node} is not an idle MLP of {self.n_layers} layers")
        out = self._new(len(writes))
        self.mlps[layer] = _Neurons(reads, bias, writes, out)
        return out

    # -------------------------------------------------------------- weights

    def compile(self, name: str) -> Model:
        """The model."""
        graph = Graph(self.n_layers, self.n_heads, self.n_heads)
        W_E, W_pos = torch.zeros(self.vocabulary, self.width), torch.zeros(self.length, self.width)
        W_E[:, self.tokens.start : self.tokens.start + self.tokens.size] = torch.eye(self.vocabulary)
        W_pos[:, self.positions.start : self.positions.start + self.positions.size] = torch.eye(self.length)
        W_pos[:, self.one.start] = 1
        blocks = tuple(self._block(layer) for layer in range(self.n_layers))
        return assembled(
            name, graph, W_E, W_pos, blocks, self._norm(), self._dense(self.answer, self.vocabulary)
        )

    def _block(self, layer: int) -> Block:
        parts = [linear for head in self.heads.values() for linear in (head.query, head.key, head.value)]
        d_head = max([D_HEAD, *(len(matrix) for linear in parts for matrix in linear.values())])
        idle = torch.zeros(d_head, self.width)
        heads = [self.heads.get((layer, index)) for index in range(self.n_heads)]
        W_Q, W_K, W_V = (
            torch.stack(
                [idle if head is None else self._dense(getattr(head, part), d_head) for head in heads]
            )
            for part in ("query", "key", "value")
        )
        W_O = torch.stack(
            [
                idle if head is None else self._written(head.out, torch.eye(head.out.size, d_head)).T
                for head in heads
            ]
        )
        mlp = self.mlps.get(layer)
        if mlp is None:
            W_in, b_in, W_out = torch.zeros(1, self.width), torch.zeros(1), torch.zeros(self.width, 1)
        else:
            W_in, b_in, W_out = (
                self._dense(mlp.reads, len(mlp.bias)),
                mlp.bias,
                self._written(mlp.out, mlp.writes),
            )
        return Block(
            norm1=self._norm(), W_Q=W_Q, W_K=W_K, W_V=W_V, b_Q=None, b_K=None, b_V=None,
            W_O=W_O, b_O=None, scale=1.0,
            rotary=None, window=None, activation=F.relu,
            norm2=self._norm(), W_in=W_in, b_in=b_in, W_gate=None, b_gate=None, W_out=W_out, b_out=None,
        )  # fmt: skip

    def _norm(self) -> Norm:
        return Norm(torch.ones(self.width), None, 0.0, "none")

    def _dense(self, linear: Linear, rows: int) -> Tensor:
        """[rows, width]."""
        dense = torch.zeros(rows, self.width)
        for variable, matrix in linear.items():
            dense[: len(matrix), variable.start : variable.start + variable.size] += matrix
        return dense

    def _written(self, out: Variable, matrix: Tensor) -> Tensor:
        """[width, columns] from [size of the variable, columns]."""
        written = torch.zeros(self.width, matrix.shape[1])
        written[out.start : out.start + out.size] = matrix
        return written


def _one_hots(indices: list[int], size: int) -> Tensor:
    return F.one_hot(torch.tensor(indices), size).float()


def assembled(
    name: str,
    graph: Graph,
    W_E: Tensor,
    W_pos: Tensor,
    blocks: tuple[Block, ...],
    final_norm: Norm,
    W_U: Tensor,
) -> Model:
    """The model of these weights, with ReLU and no tokenizer."""
    weights = {"W_E": W_E, "W_pos": W_pos, "W_U": W_U, "norm": final_norm.weight}
    for layer, block in enumerate(blocks):
        weights |= {f"{layer}.norm1": block.norm1.weight, f"{layer}.norm2": block.norm2.weight}
        for part in ("W_Q", "W_K", "W_V", "W_O", "W_in", "b_in", "W_out"):
            weights[f"{layer}.{part}"] = getattr(block, part)
    return Model(
        name=name, digest=weights_digest(weights), tokenizer=None, graph=graph,
        W_E=W_E, W_pos=W_pos, blocks=blocks, final_norm=final_norm, W_U=W_U,
    )  # fmt: skip
