"""What the nodes of a hypothesis write, scrubbed: the forward over the tree of draws."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from circuitdiscovery.engine import memory
from circuitdiscovery.engine.ablation import run_sources
from circuitdiscovery.engine.fast import PatchedRun
from circuitdiscovery.explanation.scrubbing.tree import Drawn, Prompts
from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.graph.nodes import letter_of, parsed
from circuitdiscovery.model.model import Model
from circuitdiscovery.model.run import at_position, embed, unembed

_STREAM_BYTES = 2**22  # of one receiver's stream over a batch and its draws


@dataclass(frozen=True)
class Written:
    """What some sources write on prompts of one length, and what receivers read there."""

    model: Model
    sources: Mapping[int, Tensor]  # row -> [P, T, D]
    streams: Mapping[int, Tensor]  # index (see `stream_of`) -> [P, T, D]
    together: Mapping[int, Tensor]  # layer -> [P, T, D], what its heads write, where that goes through a norm
    # what does not depend on draws, computed when it is first asked for
    _read_on_all: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    _rest_on_all: dict[tuple[int, tuple[int, ...]], Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Model, prompts: Prompts, rows: Sequence[int], places: Sequence[int]) -> Written:
        tokens = torch.tensor([example.clean for example in prompts.examples], device=model.device)  # [P, T]
        empty = model.W_E.new_empty(*tokens.shape, model.d_model)
        mixing = {layer for row in rows if (layer := _mixed(model, row)) is not None}
        sources, streams, together = (
            {name: torch.empty_like(empty) for name in names} for names in (rows, places, sorted(mixing))
        )
        size = memory.at_once(tokens.shape[1] * memory.of_token(model, model.graph), model.device)
        for start in range(0, len(tokens), size):
            part, read = slice(start, start + size), tokens[start : start + size]
            written = run_sources(model, read)
            bases = PatchedRun(
                model, model.graph, embed(model, read), written, torch.zeros_like(read[:, 0]), True
            ).bases
            for row, all_of_it in sources.items():
                all_of_it[part] = written[row]
            for place, all_of_it in streams.items():
                all_of_it[part] = bases[place]
            for layer, all_of_it in together.items():
                all_of_it[part] = written[model.graph.heads(layer)].sum(0)
        return cls(model, sources, streams, together)

    def batch_size(self, draws: int) -> int:
        """How many examples are worth one forward: enough to fill the cores, little enough for the caches."""
        stream = next(iter(self.streams.values()))[0]
        return max(1, _STREAM_BYTES // (draws * stream.numel() * stream.element_size()))

    def write(self, drawn: Drawn, some: slice) -> Tensor:
        """[draws * examples, T, D]: what a source writes, scrubbed, for some of the examples."""
        if drawn.rest is None:
            return self.sources[drawn.node][self._numbers(drawn.prompt, some)]
        graph = self.model.graph
        columns = np.flatnonzero(graph.feeds[:, drawn.node]).tolist()
        held = {column for column, _ in drawn.inputs}
        streams, layer = self._read(drawn, sorted(held), some), graph.receiver_layers[columns[0]]
        block = self.model.blocks[layer]
        if not letter_of(graph.receivers[columns[0]]):
            return block.mlp_writes(streams[columns[0]])
        head, projected = drawn.node - graph.heads(layer).start, {}
        for column in columns:
            letter = letter_of(graph.receivers[column])
            if column in held:
                projected[letter] = block.head_reads(letter, head, streams[column])[None]
            else:
                assert drawn.rest is not None
                reads = self._reads(column, head)
                projected[letter] = reads[self._numbers(drawn.rest, some).to(reads.device)][None]
        # [1, draws * examples, T, K]
        z = block.attend(projected["q"], projected["k"], projected["v"], heads=[head])
        return block.written(z, [head])[0].to(self.model.device)

    def _reads(self, column: int, head: int) -> Tensor:
        """[P, T, K], where the layer is: what a head reads by one of its receivers on every prompt, where the
        hypothesis holds nothing of it."""
        if (column, head) not in self._read_on_all:
            graph = self.model.graph
            block = self.model.blocks[graph.receiver_layers[column]]
            letter, stream = letter_of(graph.receivers[column]), self.streams[stream_of(graph, column)]
            size = max(1, _STREAM_BYTES // (stream[0].numel() * stream.element_size()))
            parts = [block.head_reads(letter, head, part) for part in stream.split(size)]
            self._read_on_all[column, head] = torch.cat(parts)
        return self._read_on_all[column, head]

    def _rest(self, column: int, rows: tuple[int, ...]) -> Tensor:
        """[P, T, D]: what a receiver reads on every prompt, but for what some sources write."""
        if (column, rows) not in self._rest_on_all:
            stream = self.streams[stream_of(self.model.graph, column)]
            for row in rows:
                stream = stream - self.sources[row]
            self._rest_on_all[column, rows] = stream
        return self._rest_on_all[column, rows]

    def logits(self, drawn: Drawn, some: slice, position: Tensor) -> Tensor:
        """[draws, examples, vocabulary] at the answers' positions, for some of the examples."""
        column, draws = len(self.model.graph.receivers) - 1, len(drawn.prompt)
        x = self._read(drawn, [column], some, position.repeat(draws))[column]  # [draws * examples, D]
        return unembed(self.model, x).unflatten(0, (draws, -1))

    def _read(
        self, drawn: Drawn, columns: Sequence[int], some: slice, at: Tensor | None = None
    ) -> dict[int, Tensor]:
        """Receiver's column -> [draws * examples, T, D], or [draws * examples, D] at positions."""
        assert drawn.rest is not None
        rest = self._numbers(drawn.rest, some)

        def on_rest(x: Tensor) -> Tensor:
            return x[rest] if at is None else x[rest, at]

        added: dict[int, list[tuple[int, Tensor]]] = {column: [] for column in columns}
        mixed: dict[tuple[int, int], list[Tensor]] = defaultdict(list)  # (column, layer) -> changes
        for column, below in drawn.inputs:
            written = self.write(below, some)
            written = written if at is None else at_position(written, at)
            layer = _mixed(self.model, below.node)
            if layer is None:
                added[column].append((below.node, written))
            else:
                mixed[column, layer].append(written - on_rest(self.sources[below.node]))
        streams: dict[int, Tensor] = {}
        for column, parts in added.items():
            streams[column] = on_rest(self._rest(column, tuple(row for row, _ in parts)))  # memory of its own
            for _, written in parts:
                streams[column] += written
        for (column, layer), changes in mixed.items():
            block, together = self.model.blocks[layer], on_rest(self.together[layer])
            streams[column] = streams[column] + block.out_change(together, torch.stack(changes).sum(0))
        return streams

    def _numbers(self, drawn: np.ndarray, some: slice) -> Tensor:
        """[draws * examples]: the prompts drawn for some of the examples."""
        return torch.from_numpy(drawn[:, some].ravel()).to(self.model.device)


def _mixed(model: Model, row: int) -> int | None:
    """The layer of a source that is a head which others are added to before a norm; None: it is not one."""
    node = parsed(model.graph.sources[row])
    return None if node.kind != "head" or model.blocks[node.layer].linear else node.layer


def stream_of(graph: Graph, column: int) -> int:
    """Where a receiver reads the stream, as an index into `PatchedRun.bases`."""
    return 2 * graph.receiver_layers[column] + (parsed(graph.receivers[column]).kind == "mlp")
