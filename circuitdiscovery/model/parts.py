"""What the sources of a split graph write, from what its nodes write and read.

The rule: what a node writes is a sum of named parts, and `rest` is the node's output less the others, so that
all parts together are the node, exactly. Parts with receivers of their own (neurons, features of transcoders)
are each computed from their own stream, and `rest` is the node's output on its stream less what all named
parts would write on that stream.

Shapes: N examples, T positions or 1 (the answer's), D d_model, H heads, p named parts, K values of a unit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from circuitdiscovery.errors import CircuitDiscoveryError, shown
from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.graph.layout import Layout
from circuitdiscovery.graph.nodes import INPUT, parsed, part_name
from circuitdiscovery.graph.splits import Split
from circuitdiscovery.model.model import Model
from circuitdiscovery.model.norm import Norm
from circuitdiscovery.model.packing import Packing, Written
from circuitdiscovery.model.units import Units, dictionary_of, unit_of, units_of, vectors_of


@dataclass(frozen=True)
class Group:
    """Sources that go through one function together before they are added to the stream.

    Args:
        rows: of the sources.
        layer, letter: whose: "a" for its heads, "m" for its MLP.
        out: [..., D] that they write together -> what that adds to the stream.
        push: (that, a change of it) -> what the stream changes by, to first order.
    """

    rows: slice
    layer: int
    letter: str
    out: Callable[[Tensor], Tensor]
    push: Callable[[Tensor, Tensor], Tensor]

    @property
    def key(self) -> tuple[int, str]:
        """What a run keeps of it by."""
        return self.layer, self.letter


@dataclass(frozen=True)
class Parts:
    """How the sources of a graph follow from its nodes, on one batch.

    Args:
        model, graph: whose.
        inside: node -> [s, N, T], 1 where each of its spans of positions is, and last where none is, else 0.
        known: what was made of the weights for it, by layer; the same for all batches.
        packs: whether parts that are a number times a vector are kept as numbers (see packing.py): not where
            replacements are given that are no such products.
    """

    model: Model
    graph: Graph
    inside: Mapping[str, Tensor] = field(default_factory=dict)
    known: dict[int, Units] = field(default_factory=dict, compare=False, repr=False)
    packs: bool = True

    @classmethod
    def of(cls, model: Model, graph: Graph | None = None) -> Parts:
        """Of a graph in which no node is split by positions; by default the model's."""
        return cls(model, graph or model.graph)

    def some(self, examples: Tensor) -> Parts:
        """On some of the batch's examples, by a mask or an index of them."""
        return replace(self, inside={node: each[:, examples] for node, each in self.inside.items()})

    def at(self, position: Tensor) -> Parts:
        """At [N] positions alone, where T is 1."""
        return replace(self, inside={node: self._spans(node, position) for node in self.inside})

    @cached_property
    def packing(self) -> Packing:
        """How what all sources write lies in one tensor."""
        graph, none = self.graph, self.model.W_E.new_empty(0, self.model.d_model)
        if not self.packs or not graph.layout.numbers:
            return Packing(Layout(np.zeros(len(graph.sources), dtype=bool)), none)
        splits = (graph.split_of(node) for node in graph.nodes)  # in the order of their rows
        vectors = [self._vectors(split).to(none) for split in splits if split is not None and split.scaled]
        return Packing(graph.layout, torch.cat(vectors))

    def _vectors(self, split: Split) -> Tensor:
        """[p, D]: what one of each of a node's parts writes."""
        if split.own:
            return self.units(parsed(split.node).layer).vectors
        dictionary = dictionary_of(split)
        some = torch.tensor(split.numbers, device=dictionary.vectors.device)
        return vectors_of(dictionary, some, self.model.stream_unit)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The groups whose function is not linear, in topological order; all others are added up."""
        found = []
        for layer, block in enumerate(self.model.blocks):
            if not block.linear:
                heads = self.graph.heads(layer)
                found.append(Group(heads, layer, "a", block.out_attention, block.out_push))
            if (norm := self.mlp_norm(layer)) is not None:
                found.append(Group(self.graph.mlps(layer), layer, "m", norm.back, norm.push_back))
        return tuple(found)

    def mlp_norm(self, layer: int) -> Norm | None:
        """The norm that follows an MLP's sources: parts of the MLP stand before it."""
        split, norm = self._split_of_mlp(layer), self.model.blocks[layer].mlp_norm
        if norm is None or split is None or split.kind == "positions":
            return None
        return norm if split.kind != "features" or dictionary_of(split).inner else None

    def out_mlp(self, layer: int) -> Callable[[Tensor], Tensor]:
        """What an MLP's sources go through together before they are added to the stream."""
        norm = self.mlp_norm(layer)
        return (lambda x: x) if norm is None else norm.back

    def _split_of_mlp(self, layer: int) -> Split | None:
        nodes = self.graph.mlp_nodes(layer)
        return self.graph.split_of(nodes[0]) if nodes else None

    # ------------------------------------------------------------------ what all sources of a node write

    def input(self, start: Tensor, position: Tensor | None = None) -> Tensor:
        """[s, N, T, D], from [N, T, D]."""
        return self.of_node(INPUT, start, position)

    def heads(self, layer: int, written: Tensor, position: Tensor | None = None) -> Tensor:
        """[s, N, T, D], from what each head of a layer writes, [H, N, T, D]."""
        nodes = self.graph.head_nodes(layer)
        if all(self.graph.split_of(node) is None for node in nodes):
            return written
        each = zip(nodes, written, strict=True)
        return torch.cat([self.of_node(node, out, position) for node, out in each])

    def mlp(self, layer: int, streams: Tensor, position: Tensor | None = None) -> Tensor:
        """[s, N, T, D], from what each receiver of an MLP reads, [r, N, T, D]."""
        block, split = self.model.blocks[layer], self._split_of_mlp(layer)
        if split is None or not split.own:
            return self.shared(layer, block.norm2(streams[0]), position).dense()
        units = self.units(layer)
        named = units.written(units.values(streams[:-1]))
        return torch.cat([named, self.rest(layer, streams[-1])[None]])

    def mlp_of(self, layer: int, stream: Tensor) -> Written:
        """As `mlp`, where all its receivers read one stream, [N, T, D]."""
        if self.owns(layer):
            return self.apart(layer, self.units(layer).read(stream), stream)
        return self.shared(layer, self.model.blocks[layer].norm2(stream))

    def apart(self, layer: int, values: Tensor, stream: Tensor) -> Written:
        """What an MLP's parts write that have receivers of their own, from what the named ones make of their
        streams, [p, N, T, K], and the rest's stream, [N, T, D]."""
        units = self.units(layer)
        rest = self.rest(layer, stream)[None]
        return Written(rest, units.numbers(values), units.vectors)

    def shared(self, layer: int, normalised: Tensor, position: Tensor | None = None) -> Written:
        """What an MLP's sources write where it has one receiver, from what that reads, [N, T, D],
        normalised."""
        block, split = self.model.blocks[layer], self._split_of_mlp(layer)
        if split is not None and split.kind == "experts":
            assert block.experts is not None
            named, whole = block.experts.apart(normalised, split.numbers)
            return Written(torch.cat([named, (whole - named.sum(0))[None]]))
        out = self._whole(layer, normalised)
        return self.written(self.graph.mlp_nodes(layer)[0], out, position)

    def rest(self, layer: int, stream: Tensor) -> Tensor:
        """[..., D]: what the rest of an MLP writes whose parts read for themselves, from its own stream."""
        whole = self._whole(layer, self.model.blocks[layer].norm2(stream))
        return whole - self.units(layer).together(stream)

    def _whole(self, layer: int, normalised: Tensor) -> Tensor:
        """[..., D]: what all parts of an MLP write together, before a norm of that."""
        block = self.model.blocks[layer]
        return block.mlp(normalised) if self.mlp_norm(layer) is None else block.mlp_before_norm(normalised)

    def units(self, layer: int) -> Units:
        """The named parts of a layer's MLP that have receivers of their own."""
        split = self._split_of_mlp(layer)
        assert split is not None and split.own
        if layer not in self.known:
            self.known[layer] = units_of(self.model.blocks[layer], split, self.model.stream_unit)
        return self.known[layer]

    def splits_mlp(self, layer: int) -> bool:
        """Whether a layer's MLP is split."""
        return self._split_of_mlp(layer) is not None

    def owns(self, layer: int) -> bool:
        """Whether the parts of a layer's MLP have receivers of their own."""
        split = self._split_of_mlp(layer)
        return split is not None and split.own

    def of_node(self, node: str, out: Tensor, position: Tensor | None) -> Tensor:
        """[s, ..., N, T, D]: a node's sources, from what it writes, [..., N, T, D]; T is 1 at [N] positions.

        An MLP's parts that need to know what it reads are in `mlp`.
        """
        return self.written(node, out, position).dense()

    def written(self, node: str, out: Tensor, position: Tensor | None) -> Written:
        """As `of_node`."""
        split = self.graph.split_of(node)
        if split is None:
            return Written(out[None])
        if split.kind == "positions":
            spans = self._spans(node, position).to(out)  # [s, N, T]
            return Written(spans.view(len(spans), *(1,) * (out.dim() - 3), *spans.shape[1:], 1) * out)
        dictionary, some = dictionary_of(split), torch.tensor(split.numbers, device=out.device)
        unit = unit_of(dictionary, self.model.stream_unit)
        # [p, ..., N, T] by the dictionary as it is, then rounded: the rest is the rest of what is kept
        numbers = dictionary.encode_some(out if unit == 1.0 else out * unit, some).to(out)
        vectors = vectors_of(dictionary, some, self.model.stream_unit).to(out)
        rest = out - numbers.movedim(0, -1) @ vectors
        return Written(rest[None], numbers, vectors)

    def _spans(self, node: str, position: Tensor | None) -> Tensor:
        """[s, N, T], or [s, N, 1] at [N] positions: where each span of a node is, last what they leave."""
        inside = self.inside[node]
        if position is None:
            return inside
        rows = torch.arange(len(position), device=position.device)
        return inside[:, rows, position][..., None]


def check_parts(model: Model, graph: Graph) -> None:
    """Refuse parts that a model's nodes do not have: a graph that was read from a file may name any."""
    for split in graph.splits:
        if split.kind == "positions":
            continue
        block = model.blocks[parsed(split.node).layer]
        there = {
            "neurons": 0 if block.W_in is None else block.d_mlp,
            "experts": 0 if block.experts is None else block.experts.count,
        }
        count = there[split.kind] if split.kind in there else dictionary_of(split).width
        if split.parts and max(split.numbers) >= count:
            raise CircuitDiscoveryError(
                f"{split.node} of {model.name} has {count:,} {split.kind}, counted from 0: there is no "
                f"{part_name(split.node, split.parts[int(np.argmax(split.numbers))])}"
            )


def lifted(
    graph: Graph, sources: Tensor, rows_of: Graph, inside: Mapping[str, Tensor], packs: bool = True
) -> Tensor:
    """What the sources of a split graph write, from what those of one write in which fewer nodes are split.

    What a node writes at some positions stands in that span's part. Nothing is known of other parts: they are
    0, and the rest is the node.

    Args:
        graph: the split one.
        sources: [rows, N, T, D].
        rows_of: whose they are.
        inside: as `Parts` has it.
        packs: whether both are packed (`Packing`); a graph without such parts is the same either way.
    """
    if graph.splits == rows_of.splits:
        return sources
    into_layout, of_layout = graph.layout, rows_of.layout
    full = into_layout.full if packs else len(graph.sources)
    rows = into_layout.rows(sources.shape[-1]) if packs else full
    out = sources.new_zeros(rows, *sources.shape[1:])
    if packs and of_layout.numbers:  # of the same parts
        out[full:] = sources[of_layout.full :]
    for node in graph.nodes:
        into, of = graph.rows(node), rows_of.rows(node)
        if packs:
            (into, _), (of, _) = into_layout.split(into), of_layout.split(of)
        split = graph.split_of(node)
        if into.stop - into.start == of.stop - of.start:
            out[into] = sources[of]
        elif split is not None and split.kind == "positions":
            out[into] = inside[node].to(out.dtype)[..., None] * sources[of]
        else:
            out[into.stop - 1] = sources[of.start]
    return out


def spans_of(
    graph: Graph,
    positions: Sequence[Mapping[str, int]],
    texts: Sequence[str],
    lengths: Sequence[int],
    width: int,
) -> Mapping[str, Tensor]:
    """node -> [s, N, T]: where the spans of each node that is split by positions are, last what they leave.

    Args:
        graph: the splits.
        positions: of each example, its named positions.
        texts: of each example, its clean prompt, for a schema.
        lengths: of each example, how many tokens it has.
        width: T, the batch's.

    Raises:
        CircuitDiscoveryError: an example that has no such position.
    """
    found = {}
    for split in graph.splits:
        if split.kind != "positions":
            continue
        inside = torch.zeros(len(split.parts), len(positions), width)
        for i, (names, text, length) in enumerate(zip(positions, texts, lengths, strict=True)):
            named = {name: (at,) for name, at in names.items()}
            if split.digest:
                named = _of_schema(split, text)
            for number, part in enumerate(split.parts):
                for at in _places(split, number, part, named, length):
                    inside[number, i, at] = 1
        if (inside.sum(0) > 1).any():
            _, i, at = (inside * (inside.sum(0) > 1)).nonzero()[0].tolist()
            shared = [split.parts[j] for j in range(len(split.parts)) if inside[j, i, at]]
            raise CircuitDiscoveryError(
                f"{split.node}: the spans {' and '.join(shared)} share a token in some prompt: "
                "each token belongs to one span"
            )
        found[split.node] = torch.cat([inside, 1 - inside.sum(0, keepdim=True)])
    return found


def _of_schema(split: Split, text: str) -> Mapping[str, Sequence[int]]:
    prompts = dictionary_of(split).prompts
    if text not in prompts:
        raise CircuitDiscoveryError(f"{split.node}: the schema has no spans of the prompt {shown(text)}")
    return {name: range(*ends) for name, ends in prompts[text].items()}


def _places(
    split: Split, number: int, part: str, named: Mapping[str, Sequence[int]], length: int
) -> Sequence[int]:
    """The positions of one span in one prompt, from 0."""
    given = split.spans[number] if split.spans else named.get(part[1:])
    if given is None:
        known = ", ".join(f"@{name}" for name in named)
        raise CircuitDiscoveryError(f"{split.node}/{part}: the task names no such position; it names {known}")
    found = [at + length if at < 0 else at for at in given]
    if min(found) < 0 or max(found) >= length:
        raise CircuitDiscoveryError(
            f"{split.node}/{part}: a prompt of {length} tokens has no position {max(given, key=abs)}"
        )
    return found
