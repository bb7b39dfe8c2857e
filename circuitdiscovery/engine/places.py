"""The buffers of one masked run: what its sources write at some places, and what receivers read there.

Shapes: R receivers, S sources, M alternatives, N examples, T positions, D d_model, h some heads, K d_head;
P = N * T places, or N where only the answer's position matters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from circuitdiscovery.engine.sums import combine, shared
from circuitdiscovery.graph.nodes import parsed
from circuitdiscovery.model.rows import index_of, take
from circuitdiscovery.model.run import at_position

if TYPE_CHECKING:
    from circuitdiscovery.engine.fast import PatchedRun
    from circuitdiscovery.model.block import Making

# of streams that are read, normalised and projected at once, where there are several alternatives
_PIECE_BYTES = 2**23


@dataclass(frozen=True)
class Places:
    """What some sources write and what receivers read at the same
    places: all positions, or the answer's alone.
    """

    patched: PatchedRun
    position: Tensor | None  # [N]; None: all positions
    moved: np.ndarray  # the sources that run, in the buffer's order
    state: Tensor | None  # [P, S, D], for the other sources
    mask: np.ndarray
    fixed: np.ndarray  # [S] bool: the sources that stay as in the state
    receiver: int  # reads each of
    alternatives: np.ndarray  # [M, S] bool
    silenced: np.ndarray  # [M, S] bool
    # [M, P, 1 + len(moved), D]: scratch for a base, then current -
    # replacement, filled up to the receiver's layer
    buffer: Tensor

    @classmethod
    def build(
        cls,
        patched: PatchedRun,
        position: Tensor | None,
        moved: np.ndarray,
        state: Tensor | None,
        mask: np.ndarray,
        fixed: np.ndarray,
        receiver: int,
        alternatives: np.ndarray,
        silenced: np.ndarray,
    ) -> Places:
        """With an empty buffer."""
        n_places = len(patched.start) * (patched.start.shape[1] if position is None else 1)
        name = "everywhere" if position is None else "at the answer"
        buffer = patched.memory(name, len(alternatives), n_places, 1 + len(moved), patched.start.shape[-1])
        return cls(patched, position, moved, state, mask, fixed, receiver, alternatives, silenced, buffer)

    @property
    def positions(self) -> Tensor | None:
        """[M * N], where there is one position only."""
        return None if self.position is None else self.position.repeat(len(self.alternatives))

    def of(self, x: Tensor) -> Tensor:
        """[N, T, D] -> [P, D]."""
        return x.flatten(0, 1) if self.position is None else at_position(x, self.position)

    def carried(self, rows: np.ndarray) -> Tensor:
        """[s, P, D]: the replacements of some sources."""
        patched = self.patched
        packed = patched.replacement.flatten(1, 2) if self.position is None else patched.at_answer
        return patched.parts.packing.rows(packed, rows)

    # -------------------------------------------------------------- writing

    def _slots(self, rows: np.ndarray) -> Tensor:
        """[M, P, len(rows), D]: where some sources that follow each other among the moved ones write to."""
        first = 1 + int((self.moved == rows[0]).argmax())
        return self.buffer[:, :, first : first + len(rows)]

    @property
    def _shape(self) -> tuple[int, int]:
        """(N, T), or (N, 1) where there is one position only: the places."""
        return (len(self.patched.start), self.patched.start.shape[1] if self.position is None else 1)

    def _write(self, rows: np.ndarray, written: Tensor) -> None:
        """What some sources write, [s, M or 1, P, D]."""
        out = self._slots(rows)
        replacement = self.carried(rows).transpose(0, 1)
        torch.sub(written.to(out.device).movedim(0, 2).expand_as(out), replacement.expand_as(out), out=out)
        self._silence(rows)

    def write_input(self, rows: np.ndarray) -> None:
        """What some sources of `input` write."""
        start = self.of(self.patched.start).unflatten(0, self._shape)
        written = self.patched.parts.input(start, self.position)
        self._write(rows, take(written, rows).flatten(1, 2)[:, None])

    def write_heads(
        self, layer: int, rows: np.ndarray, heads: np.ndarray, of_row: np.ndarray, z: Tensor
    ) -> None:
        """What some sources of a layer's heads write, from what the heads attended to, [h, M * N, T, K]; each
        source is of one of these heads."""
        block, graph = self.patched.model.blocks[layer], self.patched.graph
        if not graph.splits_heads(layer):
            out = self._slots(rows)
            torch.neg(self.carried(rows).transpose(0, 1).expand_as(out), out=out)
            block.add_written(out.flatten(0, 1).transpose(0, 1), z, heads)
            return self._silence(rows)
        written = block.written(z, heads.tolist()).unflatten(1, (-1, len(self.patched.start)))
        each = list[Tensor]()
        for i, head in enumerate(heads.tolist()):
            node = graph.head_nodes(layer)[head]
            some = rows[of_row == i] - graph.rows(node).start
            each.append(take(self.patched.parts.of_node(node, written[i], self.position), some))
        self._write(rows[np.argsort(of_row, kind="stable")], torch.cat(each).flatten(2, 3))
        return None

    def write_mlp(self, layer: int, rows: np.ndarray) -> None:
        """What some sources of a layer's MLP write."""
        parts, graph = self.patched.parts, self.patched.graph
        which = rows - graph.mlps(layer).start
        if not parts.owns(layer):
            read = self.read(graph.columns(layer, "m"))[:, :, 0].unflatten(1, self._shape)
            normalised = self.patched.model.blocks[layer].norm2(read)
            written = take(parts.shared(layer, normalised, self.position).dense(), which)
            return self._write(rows, written.flatten(2, 3))
        rest = len(graph.columns(layer, "m")) - 1
        if len(named := which[which < rest]):
            units = parts.units(layer).some(named)
            self._write(rows[which < rest], units.written(self._projected(layer, {"n": named})[0]))
        if (which == rest).any():
            read = self.read(graph.columns(layer, "m")[rest:])[:, :, 0]
            self._write(rows[which == rest], parts.rest(layer, read)[None])
        return None

    def hold(self, rows: np.ndarray) -> None:
        """What some sources, the first of the moved ones, write in the
        state, except where they are silenced."""
        if len(rows):
            assert self.state is not None
            self._slots(rows).copy_(take(self.state, rows, dim=1))
            self._silence(rows)

    def _silence(self, rows: np.ndarray) -> None:
        for version, which in np.argwhere(self.silenced[:, rows]):
            self._slots(rows[which : which + 1])[version].zero_()

    def copy(self, everywhere: Places, rows: np.ndarray) -> None:
        """What some sources write at these places, from what they write everywhere."""
        if len(rows):
            written = everywhere._slots(rows).unflatten(1, self.patched.start.shape[:2])  # [M, N, T, r, D]
            examples = torch.arange(len(self.patched.start), device=written.device)
            self._slots(rows).copy_(written[:, examples, self.position])

    # -------------------------------------------------------------- reading

    def read(self, columns: np.ndarray, versions: slice = slice(None)) -> Tensor:
        """[m or 1, P, len(columns), D]: the streams of receivers at one place of the residual stream.

        By default for all M alternatives; receivers that read nothing which runs have
        one version. It is valid until the next.
        """
        graph = self.patched.graph
        layer, kind = (
            graph.receiver_layers[columns[0]],
            "m" if parsed(graph.receivers[columns[0]]).kind == "mlp" else "q",
        )
        base, upstream = self.of(self.patched.bases[2 * layer + (kind == "m")]), graph.n_upstream(layer, kind)
        if columns[0] == self.receiver:  # alternatives of what it reads from a state
            kept, total = self.alternatives[versions, :upstream].T, self._alternatives
        else:
            kept, total = self.mask[:upstream, columns], partial(self._kept, versions=versions)
        mixed = self.patched.mixed
        x = total(base, kept & self._linear[:upstream, None] if mixed else kept, "streams")
        for group, together, added in mixed:
            rows = group.rows
            if rows.stop <= upstream and kept[rows].any():
                own = np.zeros_like(kept)
                own[rows] = kept[rows]
                x = x + (group.out(total(self.of(together), own, "group")) - self.of(added)[:, None])
        return x

    @cached_property
    def _linear(self) -> np.ndarray:
        """[S] bool: the sources that are added up in the stream as they are."""
        linear = np.ones(len(self.fixed), dtype=bool)
        for group in self.patched.parts.groups:
            linear[group.rows] = False
        return linear

    def _alternatives(self, base: Tensor, kept: np.ndarray, name: str) -> Tensor:
        """[m, P, 1, D]: a base and what is kept of some sources, [S', m] bool, as they are in the state."""
        assert self.state is not None
        values = combine(kept, np.arange(len(kept)), self.state)
        return base[None, :, None] + values.transpose(0, 1)[:, :, None]

    def _kept(self, base: Tensor, kept: np.ndarray, name: str, *, versions: slice) -> Tensor:
        """[m or 1, P, R, D]: a base and what is kept of some sources, [S', R] bool, in the memory named."""
        upstream, readers = kept.shape
        slots = (self.moved < upstream).nonzero()[0]
        x = base[None, :, None].expand(1, -1, readers, -1)
        moves = bool(kept[self.moved[slots]].any())
        if moves:
            buffer = self.buffer[versions]
            out = self.patched.memory(name, len(buffer) * buffer.shape[1], readers, buffer.shape[-1])
            buffer[:, :, 0] = base  # as one source more, so that one product makes the whole stream
            weights = np.concatenate([np.ones((1, readers), dtype=bool), kept[self.moved[slots]]])
            x = combine(weights, np.append(0, 1 + slots), buffer.flatten(0, 1), out).unflatten(
                0, buffer.shape[:2]
            )
        if self.state is not None:
            fixed = self.fixed[:upstream].nonzero()[0]
            if kept[fixed].any():
                from_state = combine(kept[fixed], fixed, self.state)
                x = x.add_(from_state) if moves else x + from_state
        return x

    def project(self, layer: int, asked: Mapping[str, np.ndarray]) -> list[Tensor]:
        """For each letter the projections of what some heads of a layer read, [h, M * N, T, K]."""
        n_heads, columns = self.patched.graph.n_heads, self.patched.graph.columns
        own = {
            letter: shared(heads, n_heads // len(columns(layer, letter))) for letter, heads in asked.items()
        }
        found = self._projected(layer, {letter: some for letter, (some, _) in own.items()})
        n_examples = len(self.patched.start)
        return [
            (out if back is None else take(out, back))
            .flatten(1, 2)
            .unflatten(1, (-1, out.shape[2] // n_examples))
            for out, (_, back) in zip(found, own.values(), strict=True)
        ]

    def _projected(self, layer: int, asked: Mapping[str, np.ndarray]) -> list[Tensor]:
        """[h, M, P, K] for each letter: what some heads or groups of a layer make of what they read, or with
        the letter "n" some parts of its MLP. Letters that are asked for together read at one place."""
        graph = self.patched.graph
        norm, makings, width = self.patched.readers(layer, asked)
        streams, which = self._distinct(
            np.concatenate(
                [
                    graph.columns(layer, "m" if letter == "n" else letter)[some]
                    for letter, some in asked.items()
                ]
            )
        )
        # per letter: streams, what makes a projection of them, what comes out
        parts: list[tuple[np.ndarray, Making, Tensor]] = []
        for (letter, some), making in zip(asked.items(), makings, strict=True):
            mine, which = np.split(which, [len(some)])
            out = self.buffer.new_empty(len(some), *self.buffer.shape[:2], width, device=norm.device)
            if len(replaced := (mine[:, 0] < 0).nonzero()[0]):
                out[index_of(replaced)] = take(
                    self.patched.replaced(layer, letter, self.position is not None), some[replaced]
                )[:, None]
            parts.append((mine, making, out))
        for number, readers in enumerate(streams):
            for versions in self._pieces(readers):
                x = norm(self.read(readers, versions))
                for mine, make, out in parts:
                    heads = (mine[:, 0] == number).nonzero()[0]
                    make(x, mine[heads, 1], heads, out[:, versions])
        return [out for _, _, out in parts]

    def _pieces(self, columns: np.ndarray) -> list[slice]:
        """Slices of the alternatives, so few in each that what some receivers read stays in the caches."""
        if len(self.alternatives) == 1 or not self._moves(columns).any():
            return [slice(None)]
        places, width = self.buffer.shape[1], self.buffer.shape[-1]
        size = max(1, _PIECE_BYTES // (places * len(columns) * width * self.buffer.element_size()))
        return [slice(first, first + size) for first in range(0, len(self.alternatives), size)]

    def _moves(self, columns: np.ndarray) -> np.ndarray:
        """For each receiver 2 if it is the one of the alternatives, 1
        if it reads anything that runs, else 0."""
        return np.where(columns == self.receiver, 2, self.mask[self.moved[:, None], columns].any(axis=0))

    def _distinct(self, columns: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """(receivers that read one distinct stream each, [len(columns), 2] which of
        these lists and stream each receiver reads).

        Streams of which there are M versions stand apart from those of which there is
        one; list -1 is that all edges are removed.
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
