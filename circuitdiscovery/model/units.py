"""The parts of an MLP that read for themselves, each a number times a vector: neurons, and features of
transcoders.

Shapes: P places, D d_model, p parts, K values of a part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.graph.splits import Split
from circuitdiscovery.model.block import Block
from circuitdiscovery.model.norm import Norm, no_norm
from circuitdiscovery.model.packing import times
from circuitdiscovery.model.rows import index_of, project, project_some, take


@dataclass(frozen=True)
class Units:
    """The named parts of an MLP that read for themselves: each a number times a vector.

    Args:
        norm: what their streams go through.
        weight: [p, K, D], what they make of a normalised stream.
        bias: [p, K].
        vectors: [p, D], what one of each writes.
        activation: ([p, ..., K], [p] which of all) -> [p, ...].
        chosen: ([..., D] normalised, [p] which of all) -> [p, ...] bool, where they compete with others for
            what they read: which are chosen is then the last of the K values, and has no gradient.
        which: [p], among all named parts of the MLP.
    """

    norm: Norm
    weight: Tensor
    bias: Tensor | None
    vectors: Tensor
    activation: Callable[[Tensor, Tensor], Tensor]
    chosen: Callable[[Tensor, Tensor], Tensor] | None
    which: Tensor

    def some(self, which: np.ndarray) -> Units:
        """Some of them."""
        return replace(
            self,
            weight=take(self.weight, which),
            bias=None if self.bias is None else take(self.bias, which),
            vectors=take(self.vectors, which),
            which=take(self.which, which),
        )

    def values(self, streams: Tensor) -> Tensor:
        """[p, ..., K], from each one's own stream, [p, ..., D]."""
        read = self.norm(streams)
        out = torch.bmm(read.flatten(1, -2), self.weight.mT).unflatten(1, streams.shape[1:-1])
        out = out if self.bias is None else out + self.bias.view(len(out), *(1,) * (out.dim() - 2), -1)
        if self.chosen is None:
            return out
        own = torch.stack([self.chosen(each, self.which)[i] for i, each in enumerate(read)])
        return _with_last(out, own)

    def read(self, stream: Tensor) -> Tensor:
        """[p, ..., K], from one stream for all, [..., D]."""
        read = self.norm(stream)
        out = project(read, self.weight, self.bias)
        return out if self.chosen is None else _with_last(out, self.chosen(read, self.which))

    def make(self, x: Tensor, which: np.ndarray, rows: np.ndarray, out: Tensor) -> None:
        """To out [h, m, P, K], at some rows: what each makes of its normalised stream, one of
        [m or 1, P, u, D], as `Block.making` does."""
        project_some(self.weight, self.bias, x, which, rows, out)
        if self.chosen is not None:
            for stream in np.unique(which):
                own = rows[which == stream]
                out[index_of(own), ..., -1] = take(self.chosen(x[:, :, stream], self.which), own).to(
                    out.dtype
                )

    def numbers(self, values: Tensor) -> Tensor:
        """[p, ..., K] -> [p, ...]: how active each is."""
        return self.activation(values, self.which)

    def written(self, values: Tensor) -> Tensor:
        """[p, ..., K] -> [p, ..., D]."""
        return times(self.numbers(values), self.vectors)

    def together(self, stream: Tensor) -> Tensor:
        """[..., D]: what all write together on one stream, [..., D]."""
        numbers = self.activation(self.read(stream), self.which)  # [p, ...]
        return numbers.movedim(0, -1) @ self.vectors


def _with_last(values: Tensor, last: Tensor) -> Tensor:
    """[p, ..., K] with [p, ...] as the last of the K values."""
    return torch.cat([values[..., :-1], last[..., None].to(values.dtype)], dim=-1)


def units_of(block: Block, split: Split, stream_unit: float) -> Units:
    """The named parts of an MLP, where each has a receiver of its own, in a model of that `stream_unit`."""
    some = torch.tensor(split.numbers, dtype=torch.long, device=block.W_Q.device)
    if split.kind == "neurons":
        return _neurons(block, some)
    return _features(block, dictionary_of(split), some, stream_unit)


def _neurons(block: Block, some: Tensor) -> Units:
    assert block.W_in is not None and block.W_out is not None
    weights = [block.W_in] if block.W_gate is None else [block.W_in, block.W_gate]
    biases = [block.b_in] if block.W_gate is None else [block.b_in, block.b_gate]
    bias = None
    if any(each is not None for each in biases):
        zero = block.W_in.new_zeros(len(some))
        bias = torch.stack([zero if each is None else each[some] for each in biases], 1)

    def activation(values: Tensor, _: Tensor) -> Tensor:
        if len(weights) == 1:
            return block.activation(values[..., 0])
        return block.activation(values[..., 1]) * values[..., 0]

    weight = torch.stack([each[some] for each in weights], 1)
    which = torch.arange(len(some), device=some.device)
    return Units(block.norm2, weight, bias, block.W_out.T[some], activation, None, which)


def _features(block: Block, dictionary: Any, some: Tensor, stream_unit: float) -> Units:
    """Of a transcoder: products are in the model's precision, how active features are is told in its own."""
    like, unit = block.W_Q, stream_unit if dictionary.reads == "stream" else 1.0
    own = block.norm2
    norms = {"normed": own, "normed without gain": own.bare, "hook_normalized": own.hooked}
    norm = norms.get(dictionary.reads, no_norm(like))
    weight = (dictionary.W_enc[some][:, None] * unit).to(like)
    vectors = vectors_of(dictionary, some, stream_unit).to(like)
    which = torch.arange(len(some), device=some.device)
    if dictionary.separately():
        return Units(
            norm,
            weight,
            None,
            vectors,
            lambda values, which: dictionary.values_of(values[..., 0], some[which]).to(values.dtype),
            None,
            which,
        )

    def activation(values: Tensor, which: Tensor) -> Tensor:
        own = dictionary.b_enc[some[which]].view(-1, *(1,) * (values.dim() - 2))
        numbers = (values[..., 0] + own).to(values.dtype)
        return (numbers if dictionary.signed else numbers.relu()) * values[..., 1].detach()

    return Units(
        norm,
        torch.cat([weight, torch.zeros_like(weight)], 1),
        None,
        vectors,
        activation,
        lambda x, which: dictionary.encode_some(x if unit == 1.0 else x * unit, some[which]) != 0,
        which,
    )


def unit_of(dictionary: Any, stream_unit: float) -> float:
    """r: where a dictionary stands, there is r times what a block of ours writes (`Model.stream_unit`)."""
    return 1.0 if stream_unit == 1.0 or dictionary.inner else stream_unit


def vectors_of(dictionary: Any, some: Tensor, stream_unit: float) -> Tensor:
    """[p, D]: what one of each of some features adds to what a block of ours writes."""
    vectors, unit = dictionary.vectors[some], unit_of(dictionary, stream_unit)
    return vectors if unit == 1.0 else vectors / unit


def dictionary_of(split: Split) -> Any:
    """The dictionary or schema of a split, which what is read from a file may lack."""
    if split.dictionary is None:
        raise CircuitDiscoveryError(
            f"{split.node} is split by a dictionary, which is needed to run the circuit: "
            f"load_circuit(path, dictionaries={{{split.node!r}: load_sae(folder)}})"
        )
    return split.dictionary
