"""What attention heads attend to, on a task's prompts.

TransformerLens computes this too, and the tests compare with it. It is not used here because the planted
models are not Hugging Face models and must be explained as well, and because importing it takes six seconds.

Shapes: L layers, H heads, h some of them, N examples, T positions, S sources, D d_model.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
import torch
from torch import Tensor

from circuitdiscovery.circuit.circuit import Circuit
from circuitdiscovery.engine import memory
from circuitdiscovery.explanation.cards import FIRST
from circuitdiscovery.explanation.words import same_word
from circuitdiscovery.graph.nodes import head_of, letter_of, parsed
from circuitdiscovery.model.model import Model
from circuitdiscovery.model.parts import Parts
from circuitdiscovery.model.run import Run, at_position, per_head, plain_run, run_tokens, stream_after
from circuitdiscovery.task.batch import Batch
from circuitdiscovery.task.example import END, Example
from circuitdiscovery.task.task import Task
from circuitdiscovery.task.tokenization import text_of

MOST = 5  # attended tokens that are named


# ------------------------------------------------------------------ a plain run, seen


@dataclass(frozen=True)
class Observed:
    """One batch's plain run on the clean prompts; values at pads are meaningless."""

    model: Model
    batch: Batch
    attention: Tensor  # [L, H, N, T, T] float32: from query to key
    sources: Tensor  # [S, N, T, D]
    values: Tensor  # [L, G, N, K]: each group's value at the answer's position

    @cached_property
    def stream(self) -> Tensor:
        """[N, D]: what the final norm reads at the answer's position."""
        return at_position(
            stream_after(Parts.of(self.model), self.sources, self.model.graph.n_layers),
            self.batch.position,
        )

    def written(self, row: int) -> Tensor:
        """[N, D]: what a source writes at the answer's position, as the unembedding reads it.

        The scale of the final norm is frozen at this run, so what all sources and output biases write adds
        up to the logits (Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits").
        """
        return self.share(self.model.graph.sources[row], at_position(self.sources[row], self.batch.position))

    def written_of_itself(self, head: str) -> Tensor:
        """[N, D]: the part of what a head writes at the answer's position that it finds at this position."""
        (layer, index), at = head_of(head), self.batch.position
        weight = self.attention[layer, index, torch.arange(len(at), device=at.device), at, at]
        value = self.values[layer, index * self.values.shape[1] // self.model.graph.n_heads]
        z = (weight[:, None] * value).to(value)
        block = self.model.blocks[layer]
        return self.share(head, block.written(z.to(block.device)[None], [index])[0].to(z.device))

    def share(self, source: str, written: Tensor) -> Tensor:
        """[N, D] that a source writes, or a part of it, as the unembedding reads it."""
        node, graph = parsed(source), self.model.graph
        if node.kind == "head" and not (block := self.model.blocks[node.layer]).linear:
            together = at_position(self.sources[graph.heads(node.layer)].sum(0), self.batch.position)
            written = block.out_share(together.to(block.device), written.to(block.device)).to(written.device)
        return self.model.final_norm.share(self.stream, written)


@torch.no_grad()
def attention(model: Model, tokens: Tensor) -> Tensor:
    """[L, H, N, T, T] float32: the weight that each head gives from query to key on [N, T] token ids."""
    return _attention(model, plain_run(model, tokens, None, keep_readings=True))


def _attention(model: Model, run: Run) -> Tensor:
    """[L, H, N, T, T] float32, from the queries and keys of a plain run."""
    read = {(reading.readers.layer, reading.readers.letter): reading.values for reading in run.readings}
    out: Tensor | None = None
    for layer, block in enumerate(model.blocks):
        q, k = read[layer, "q"], per_head(model, read[layer, "k"])  # [H, N, T, K]
        pattern = block.pattern(q, k)
        if out is None:
            out = pattern.new_empty(len(model.blocks), *pattern.shape, device=model.device)
        out[layer] = pattern
    assert out is not None
    return out


def _values_at_answers(model: Model, run: Run, batch: Batch) -> Tensor:
    """[L, G, N, K]."""
    read = {each.readers.layer: each.values for each in run.readings if each.readers.letter == "v"}
    found = [at_position(read[layer].permute(1, 2, 0, 3), batch.position) for layer in range(len(read))]
    return torch.stack([each.to(model.device).transpose(0, 1) for each in found])


def at_once(model: Model, length: int, *, sources: bool = False) -> int:
    """How many prompts of a length fit into memory with their attention, and with sources if asked."""
    graph, block = model.graph, model.blocks[0]
    # numbers per token that a plain run keeps of a layer
    streams = 3 * model.d_model + (graph.n_heads + 2 * graph.n_kv_heads) * block.d_head
    numbers = graph.n_layers * streams + (len(graph.sources) * model.d_model if sources else 0)
    weights = graph.n_layers * graph.n_heads * length  # float32
    return memory.at_once(length * (numbers * model.W_E.element_size() + 4 * weights), model.device)


@torch.no_grad()
def observe(model: Model, task: Task, batch_size: int | None = None) -> Iterator[Observed]:
    """All of a task's examples, batch by batch."""
    task.check(model.vocab_size, model.n_positions)
    longest = max(len(example.clean) for example in task.examples)
    for batch in task.batches(
        batch_size or at_once(model, longest, sources=True), run_tokens=run_tokens(model)
    ):
        batch = batch.to(model.device)
        run = plain_run(model, batch.clean, None, keep_sources=True, keep_readings=True)
        assert run.sources is not None
        yield Observed(
            model, batch, _attention(model, run), run.sources, _values_at_answers(model, run, batch)
        )


@torch.no_grad()
def attention_on(model: Model, task: Task, batch_size: int | None = None) -> Iterator[tuple[Batch, Tensor]]:
    """Each batch of a task with the [L, H, N, T, T] attention on its clean prompts."""
    longest = max(len(example.clean) for example in task.examples)
    for batch in task.batches(batch_size or at_once(model, longest), run_tokens=run_tokens(model)):
        yield batch, attention(model, batch.clean.to(model.device))


# ------------------------------------------------------------------ where in the prompt a node matters


@torch.no_grad()
def read_at(circuit: Circuit, seen: Observed) -> Mapping[str, Tensor]:
    """For each node with a path to the logits, [N, T]: the share of its output that is read at each position.

    The logits read at the answer's position. A query or an MLP reads at the positions where its own node is
    read; a key or a value at the positions that its head attends to from there. Readers are weighted by the
    |score| of their edges, or equally if a score is unknown.
    """
    graph, length = circuit.graph, seen.batch.clean.shape[1]
    found = {"logits": torch.nn.functional.one_hot(seen.batch.position, length).to(seen.attention)}
    read: dict[int, Tensor] = {}  # by column: where the receiver reads
    for row in reversed(range(len(graph.sources))):
        columns = np.flatnonzero(circuit.mask[row])
        total = torch.zeros_like(found["logits"])
        for column, weight in zip(columns.tolist(), _weights(circuit, row, columns).tolist(), strict=True):
            if column not in read:  # all nodes that it feeds come after its sources, so they are done
                receiver = graph.receivers[column]
                nodes = [node for node in graph.reader_nodes(receiver) or ("logits",) if node in found]
                read[column] = sum(
                    (_reading(seen, receiver, node, found[node]) for node in nodes), torch.zeros_like(total)
                )
            total.add_(read[column], alpha=weight)
        if bool((total.sum(-1) > 0).all()):
            found[graph.sources[row]] = total / total.sum(-1, keepdim=True)
    return found


def _weights(circuit: Circuit, row: int, columns: np.ndarray) -> np.ndarray:
    if circuit.scores is None:
        return np.ones(len(columns))
    scores = np.abs(circuit.scores[row, columns].astype(float))
    return scores if np.isfinite(scores).all() and scores.any() else np.ones(len(columns))


def _reading(seen: Observed, receiver: str, node: str, places: Tensor) -> Tensor:
    """[N, T]: where a receiver reads the stream, given where its node is read, [N, T]."""
    letter = letter_of(receiver)
    if not parsed(receiver).in_attention or letter == "q":
        return places
    head = parsed(node)
    across = torch.einsum("nq,nqk->nk", places, seen.attention[head.layer, head.index])
    return across if letter else (places + 2 * across) / 3  # query, key and value merged


# ------------------------------------------------------------------ names of positions


def one_names(task: Task) -> dict[str, str]:
    """The one name that each of a task's named positions goes by.

    Names that stand at the same token in every example are names of one position; the first of them counts,
    the task's own before END.
    """
    own = dict.fromkeys(name for example in task.examples for name in example.positions if name != END)
    at = {name: [example.positions.get(name) for example in task.examples] for name in (*own, END)}
    return {name: next(first for first in at if at[first] == at[name]) for name in at}


def named(example: Example, names: Mapping[str, str]) -> dict[str, int]:
    """An example's named positions by their one name."""
    return {name: at for name, at in example.positions.items() if names[name] == name}


def names_at(example: Example, names: Mapping[str, str]) -> dict[int, str]:
    """The name of each position of an example that has one: the task's own, or END, or `first token`."""
    found: dict[int, str] = {}
    for name, at in sorted(named(example, names).items(), key=lambda each: each[0] == END):
        found.setdefault(at, name)
    found.setdefault(0, FIRST)
    return found


# ------------------------------------------------------------------ on the task's prompts


class Sights:
    """What some heads attend to on a task's prompts, summed batch by batch.

    The methods after `add` give means over examples. Positions go by the one name that each has (see
    `one_names`); a method that takes a name takes any.
    """

    def __init__(self, model: Model, task: Task, circuit: Circuit, heads: Sequence[str]) -> None:
        self._model, self._task, self._circuit, self._heads = model, task, circuit, tuple(heads)
        self._names = one_names(task)
        self.end = self._names[END]  # the name of the answer's position
        self.names = frozenset(self._names.values())
        self._sums: dict[tuple[str, ...], np.ndarray] = defaultdict(lambda: np.zeros(len(heads)))  # [h]
        self._counts: dict[tuple[str, ...], int] = defaultdict(int)
        self._possible: set[tuple[str, str]] = set()

    def add(self, seen: Observed) -> None:
        """Add one more batch."""
        if not self._heads:
            return
        layers, heads = zip(*map(head_of, self._heads), strict=True)
        weights = seen.attention[list(layers), list(heads)].cpu().numpy()  # [h, N, T, T]
        reads = read_at(self._circuit, seen)
        nowhere = torch.full(seen.batch.clean.shape, torch.nan)
        places = np.stack([reads.get(head, nowhere).cpu().numpy() for head in self._heads])  # [h, N, T]
        for i, row in enumerate(seen.batch.rows.tolist()):
            example = self._task.examples[row]
            self._add_positions(example, weights[:, i])
            self._add_tokens(example, weights[:, i])
            self._add_places(example, weights[:, i], places[:, i])

    def _count(self, key: tuple[str, ...], weights: np.ndarray) -> None:
        self._sums[key] += weights
        self._counts[key] += 1

    def _add_positions(self, example: Example, weights: np.ndarray) -> None:
        at = named(example, self._names)
        for query, key in product(at, repeat=2):
            self._count(("pair", query, key), weights[:, at[query], at[key]])
            if at[key] <= at[query]:
                self._possible.add((query, key))
            if at[key] < at[query] and same_word(self._model.tokenizer, example, at[key], at[query]):
                self._count(("copy", query, key), weights[:, at[query], at[key]])
                self._count(("even", query, key), np.full(len(weights), 1 / (at[query] + 1)))

    def _add_tokens(self, example: Example, weights: np.ndarray) -> None:
        """What END attends to, by name or text, and how much to what followed earlier copies of its token."""
        names = names_at(example, self._names)
        for index, token in enumerate(example.clean[: example.position + 1]):
            self._sums["attended", names.get(index) or shown(self._model, [token])] += weights[
                :, example.position, index
            ]
        after = after_copies(example)
        if after:
            self._count(("induction",), weights[:, example.position, after].sum(-1))

    def _add_places(self, example: Example, weights: np.ndarray, places: np.ndarray) -> None:
        """At which positions a head is read, and what it attends to from there."""
        self._count(("before",), np.einsum("hq,hqq->h", places[:, 1:], weights[:, 1:, :-1]))
        self._count(("stays",), np.einsum("hq,hqq->h", places, weights))
        for name, index in named(example, self._names).items():
            self._count(("read", name), places[:, index])
            self._count(("from", name), np.einsum("hq,hq->h", places, weights[:, :, index]))

    def _mean(self, head: str, *key: str) -> float | None:
        """None if no example has it, or if the head has no path to the logits in the circuit."""
        if not self._counts[key]:
            return None
        value = float(self._sums[key][self._heads.index(head)]) / self._counts[key]
        return None if math.isnan(value) else value

    def pairs(self, head: str) -> dict[tuple[str, str], float]:
        """Mean attention from one named position to another, over the examples that have both.

        Pairs whose second position always comes later are left out.
        """
        found = ((key[1], key[2]) for key in self._counts if key[0] == "pair" and key[1:] in self._possible)
        return {pair: self._mean(head, "pair", *pair) or 0.0 for pair in found}

    def weight(self, head: str, query: str, key: str) -> float:
        """The same from one named position to another; 0 where no example has both."""
        return self._mean(head, "pair", self._names.get(query, query), self._names.get(key, key)) or 0.0

    def copies(self, head: str) -> dict[tuple[str, str], float]:
        """The same for an earlier position with the same word, over the examples with equal words.

        Pairs with equal words in less than half of the examples are left out.
        """
        often = [
            key for key, count in self._counts.items() if key[0] == "copy" and 2 * count >= len(self._task)
        ]
        return {(key[1], key[2]): self._mean(head, *key) or 0.0 for key in often}

    def even(self, pair: tuple[str, str]) -> float:
        """What a head gives to the second of such a pair that attends to all tokens alike."""
        return float(self._sums["even", *pair][0]) / self._counts["even", *pair]

    def attended(self, head: str) -> tuple[tuple[str, float], ...]:
        """The five tokens that END attends to most, by position name or else text (equal ones summed)."""
        at = self._heads.index(head)
        found = [
            (key[1], float(sums[at]) / len(self._task))
            for key, sums in self._sums.items()
            if key[0] == "attended"
        ]
        return tuple(sorted(found, key=lambda each: (-each[1], each[0]))[:MOST])

    def induction(self, head: str) -> float | None:
        """Attention from END to the tokens after earlier copies of its token, over the examples with copies.

        None if less than half of the examples have one.
        """
        return self._mean(head, "induction") if 2 * self._counts["induction",] >= len(self._task) else None

    def before(self, head: str) -> float | None:
        """Attention to the previous token, from where the head is read; None if it is not read."""
        return self._mean(head, "before")

    def stays(self, head: str) -> float | None:
        """Attention to the position itself, from where the head is read."""
        return self._mean(head, "stays")

    def read(self, head: str, name: str) -> float | None:
        """The share of what the head writes that is read at a named position."""
        return self._mean(head, "read", self._names.get(name, name))

    def looks(self, head: str, name: str) -> float | None:
        """Attention to a named position, from where the head is read."""
        return self._mean(head, "from", self._names.get(name, name))


def after_copies(example: Example) -> list[int]:
    """The positions after earlier copies of the token at END."""
    return [
        index + 1
        for index in range(example.position - 1)
        if example.clean[index] == example.clean[example.position]
    ]


def shown(model: Model, ids: Sequence[int]) -> str:
    """The text of tokens; their ids if the model has no tokenizer."""
    return text_of(model.tokenizer, ids)
