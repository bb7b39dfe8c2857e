"""The products that attribution patching adds up: of what every source differs by with the gradient at what
every receiver reads (see attribution.py).

Shapes: S sources, R receivers, N examples, T positions, D d_model, K d_head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from circuitdiscovery.engine.fast import Memory
from circuitdiscovery.engine.metrics import BoundMetric
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.graph.nodes import LETTERS
from circuitdiscovery.model.block import Block
from circuitdiscovery.model.parts import Parts
from circuitdiscovery.model.projection import offset
from circuitdiscovery.model.run import Readers, Reading, embed, plain_run, replaced_logits
from circuitdiscovery.search.differences import Differences, Scaled
from circuitdiscovery.task.batch import Batch

_AT_ONCE = 128  # parts of an MLP whose gradients at the stream are held together


def batch_products(
    parts: Parts,
    batch: Batch,
    replacement: Tensor,
    starts_at_input: bool,
    metric: BoundMetric,
    at: Sequence[float],
    memory: Memory,
) -> Tensor:
    """[S, R]: (replacement - clean) . gradient, summed over a batch's examples and the points of the line."""
    model, graph = parts.model, parts.graph
    # for a mean or a zero there is no such run as starts from the replacement of
    # `input`: its norm may not even have a Jacobian
    clean, start = (
        embed(model, batch.clean),
        parts.packing.sum(replacement, graph.inputs) if starts_at_input else embed(model, batch.corrupted),
    )
    with torch.no_grad():
        metric(replaced_logits(parts, replacement, batch.position), batch)  # finite, or an error
    # the clean end's run serves twice: its sources, taken from the replacements
    # [S', N, T, D] in place, and its gradients
    line = [_readings(parts, clean, batch, metric, less=replacement)] if 1.0 in at else []
    if not line:
        with torch.no_grad():
            # finite, or an error
            metric(plain_run(model, clean, batch.position, less=replacement, parts=parts).logits, batch)
    total = replacement.new_zeros(graph.allowed.shape, dtype=torch.promote_types(model.dtype, torch.float32))
    places: dict[tuple[int, str, bool], _Place] = {}
    for number, weight in enumerate(at, start=1):
        readings, gradients, together = (
            line.pop() if weight == 1.0 else _readings(parts, start + weight * (clean - start), batch, metric)
        )
        pairs = zip(readings, gradients, strict=True)
        for key, group in groupby(pairs, key=lambda pair: pair[0].readers.place):
            same = list(group)
            if key not in places:
                places[key] = _Place([reading.readers for reading, _ in same])
            places[key].add(same)
        if number < len(at) and not together:
            continue  # the points' gradients are added up first
        packed = replacement if number == len(at) else replacement.clone()
        difference = Differences.of(parts, packed, together, batch.position)
        while places:
            places.popitem()[1].add_products(total, difference, memory)
    layout = parts.packing.layout
    return total[torch.from_numpy(layout.order)] if layout.numbers else total


def _readings(
    parts: Parts, start: Tensor, batch: Batch, metric: BoundMetric, *, less: Tensor | None = None
) -> tuple[tuple[Reading, ...], tuple[Tensor, ...], Mapping[tuple[int, str], Tensor]]:
    """(what every receiver read, the summed metric's gradient at each reading's values, `Run.together`) of a
    plain run."""
    with torch.enable_grad():
        start = start.detach().requires_grad_()
        run = plain_run(parts.model, start, batch.position, less=less, keep_readings=True, parts=parts)
        measured = metric(run.logits, batch).sum()
        if not measured.requires_grad or metric.share:
            raise CircuitDiscoveryError(
                f"metric {metric.name!r} has no gradient; attribution needs a differentiable one (or use "
                "exact)"
            )
        gradients = torch.autograd.grad(measured, [reading.values for reading in run.readings])
    readings = (
        replace(reading, stream=reading.stream.detach(), values=reading.values.detach())
        for reading in run.readings
    )
    return tuple(readings), gradients, run.together


class _Place:
    """The gradients of the receivers that read at one place of the
    stream, summed over the points of the line.

    P places are examples and positions, or examples where only the answer's position is read.
    """

    def __init__(self, readers: Sequence[Readers]) -> None:
        self.readers = readers  # the letters
        # per letter [R, 1, K]: what a projection makes of a normalised stream of 0, which is no part of what
        # it makes of the stream
        self.offsets = [_offset(each) for each in readers]
        # per letter [R, P, K], over the deviation; at the stream itself [P, D] for MLPs and logits, and
        # [R, P, D] for heads that do not read each for itself
        self.scaled: list[Tensor] = []
        self.normalised: list[Tensor] = []  # per point [P, D]
        # per point [R', P]: what the norm takes away, in multiples of `normalised`
        self.along: list[Tensor] = []

    @torch.no_grad()
    def add(self, pairs: Sequence[tuple[Reading, Tensor]]) -> None:
        """One point of the line: the letters' readings and gradients."""
        norm, joint = self.readers[0].norm, self.readers[0].joint
        # [P, D], [P, 1] in float32 at least, as all that is multiplied with it
        normalised, inverse = norm.jacobian(pairs[0][0].stream.flatten(0, 1))
        if joint is not None:
            scaled = [_pull_jointly(joint, reading, gradient) for reading, gradient in pairs]
        elif self.readers[0].weight is None:
            pulled = pairs[0][1].flatten(0, 1) * norm.scale * inverse
            pulled -= (pulled * normalised).mean(-1, keepdim=True) * normalised
            scaled = [norm.centre(pulled).to(normalised.dtype)]
        else:  # in head space the product with the normalised stream is one over d_head, not d_model
            scaled = [gradient.flatten(1, 2) * inverse for _, gradient in pairs]
            linear = [
                reading.values.flatten(1, 2) - offset
                for (reading, _), offset in zip(pairs, self.offsets, strict=True)
            ]
            along = torch.cat([(g * values).sum(-1) for g, values in zip(scaled, linear, strict=True)])
            self.along.append((along / normalised.shape[-1]).to(normalised.dtype))
            self.normalised.append(normalised)
            scaled = [each.to(normalised.dtype) for each in scaled]
        if not self.scaled:
            self.scaled = scaled
        else:
            for summed, more in zip(self.scaled, scaled, strict=True):
                summed += more

    def pieces(self, memory: Memory) -> Iterator[tuple[slice, Tensor]]:
        """(some receivers, [R', P, D] their gradients at the stream before the norm): all of a place,
        but of the parts of an MLP, which can be thousands, some at a time."""
        count = sum(map(len, self.scaled))
        if not self._own_parts:
            yield slice(0, count), self._at_stream(memory, slice(None))
            return
        for start in range(0, count, _AT_ONCE):
            some = slice(start, min(start + _AT_ONCE, count))
            yield some, self._at_stream(memory, some)

    @property
    def _own_parts(self) -> bool:
        """Whether these are the parts of an MLP, each a number times a vector as a receiver, too."""
        return self.readers[0].letter == "n"

    def _at_stream(self, memory: Memory, some: slice) -> Tensor:
        """[R', P, D], over all letters; some of the receivers where there is one letter."""
        if self.readers[0].joint is not None:
            return torch.cat(self.scaled)
        if not self.along:
            return self.scaled[0][None]
        gradients = [each[some] for each in self.scaled]
        here = memory.on(self.readers[0].norm.device)
        pulled = here("at the stream", sum(map(len, gradients)), *self.normalised[0].shape)
        for readers, scaled, out in zip(
            self.readers, gradients, pulled.split([len(each) for each in gradients]), strict=True
        ):
            torch.bmm(scaled, self._weight(readers, some), out=out)
        # [R', P, points], [P, points, D]
        along, normalised = (
            torch.stack([each[some] for each in self.along], dim=-1),
            torch.stack(self.normalised, dim=1),
        )
        pulled.transpose(0, 1).baddbmm_(along.transpose(0, 1), normalised, alpha=-1)
        return pulled

    def _weight(self, readers: Readers, some: slice) -> Tensor:
        """[R', K, D]: what some receivers' projections make of a stream over its deviation."""
        assert readers.weight is not None
        return readers.norm.centre(readers.weight[some] * readers.norm.scale)

    @torch.no_grad()
    def add_products(self, total: Tensor, difference: Differences, memory: Memory) -> None:
        """Adds the products with what the sources differ by to `total` [S, R], in `Layout.order`."""
        first, graph = self.readers[0], difference.parts.graph
        if first.letter == "logits":
            upstream, columns = len(graph.sources), np.array([len(graph.receivers) - 1])
        else:
            upstream = graph.n_upstream(first.layer, "q" if first.letter in LETTERS else "m")
            columns = np.concatenate([_columns(graph, each) for each in self.readers])
        full, scaled = difference.upstream(upstream, first.at_answer)
        numbers = total[difference.parts.packing.layout.full :]  # after the sources with rows of their own
        columns = torch.from_numpy(columns).to(total.device)

        def add(rows: Tensor, some: slice, products: Tensor) -> None:
            """[R', S'] products; merged receivers stand several times in `columns`, and get the sum."""
            rows.index_add_(1, columns[some], products.T.to(total.dtype))

        of = full.flatten(1).T
        for some, gradients in self.pieces(memory):
            at_stream = gradients.to(of.device)
            add(total[: len(full)], some, at_stream.flatten(1) @ of)
            for each in scaled if not self._own_parts else ():
                add(numbers[each.which], some, each.products(at_stream))
        for each in scaled if self._own_parts else ():
            add(numbers[each.which], slice(None), self._of_parts(each))

    def _of_parts(self, sources: Scaled) -> Tensor:
        """[R, S']: the products of receivers and sources that both are numbers times vectors."""
        (readers,), (gradients,) = self.readers, self.scaled  # one letter: [R, P, K]
        weight, device = self._weight(readers, slice(None)), gradients.device
        numbers, vectors = sources.numbers.to(device), sources.vectors.to(device)  # [S', P], [S', D]
        found = gradients.new_zeros(len(gradients), len(numbers))
        for k in range(gradients.shape[-1]):
            found += (gradients[..., k] @ numbers.T) * (weight[:, k] @ vectors.T)
        for along, normalised in zip(self.along, self.normalised, strict=True):
            found -= along @ (numbers * (vectors @ normalised.T)).T
        if sources.shared is not None:
            others, common = (each.to(device) for each in sources.shared)  # [S', P], [P, D]
            made = torch.einsum("rpk,rkd,pd->rp", gradients, weight, common)
            for along, normalised in zip(self.along, self.normalised, strict=True):
                made -= along * (normalised * common).sum(-1)
            found += made @ others.T
        return found


def _pull_jointly(block: Block, reading: Reading, gradient: Tensor) -> Tensor:
    """[R, P, D]: a gradient at queries, keys or values, back to what each receiver reads of its own."""
    streams = reading.stream.flatten(0, 1).expand(len(gradient), -1, -1).clone().requires_grad_()
    with torch.enable_grad():
        made = block.projected(reading.readers.letter, streams)
    return torch.autograd.grad(made, streams, gradient.flatten(1, 2))[0]


def _columns(graph: Graph, readers: Readers) -> np.ndarray:
    """Theirs: of an MLP whose parts read for themselves, the parts' or the rest's."""
    letter, mlps = readers.letter, graph.columns(readers.layer, "m")
    return {"n": mlps[:-1], "m": mlps[-1:]}.get(
        letter, graph.columns(readers.layer, letter if letter in LETTERS else "m")
    )


def _offset(readers: Readers) -> Tensor | float:
    constant = None if readers.weight is None else offset(readers.norm, readers.weight, readers.bias)
    return 0.0 if constant is None else constant
