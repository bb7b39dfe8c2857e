"""What causal scrubbing draws: the tree of a hypothesis' paths, and for each place in
it a prompt that agrees on what it must.

Here is all that is random in it, and nothing of what the model makes of it: `scrubbing` runs what was drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.explanation.scrubbing.hypothesis import Hypothesis, Variables
from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.graph.nodes import (
    edge_name,
    group_name,
    head_name,
    letter_of,
    node_of,
    receiver_name,
    split_edge,
)
from circuitdiscovery.task.example import Example

MAX_TREE = 10_000  # nodes in the tree of paths; each is a node's run


# ------------------------------------------------------------------ the tree


def _inputs(graph: Graph, edges: Mapping[str, Variables]) -> dict[int, list[tuple[int, int, Variables]]]:
    """For each source with an edge into it, and for the logits (-1): (receiver's column,
    source's row, variables) of each such edge.
    """
    found: dict[int, list[tuple[int, int, Variables]]] = {}
    for edge, variables in edges.items():
        row, column = graph.index(edge)
        readers = np.flatnonzero(graph.feeds[column]).tolist() or [-1]
        for reader in readers:  # a group's key and value are read by each of its heads
            found.setdefault(reader, []).append((column, row, variables))
    return found


def count_places(graph: Graph, hypothesis: Hypothesis, edges: Mapping[str, Variables]) -> int:
    """How many nodes the tree of paths has, the logits among them."""
    inputs, count = _inputs(graph, edges), {}
    for row in (*range(len(graph.sources)), -1):
        count[row] = 1 + sum(count[source] for _, source, _ in inputs.get(row, ()))
    if count[-1] > MAX_TREE:
        told = f"the tree of its paths has {count[-1]:,} nodes, more than {MAX_TREE:,}"
        raise CircuitDiscoveryError(
            f"hypothesis {hypothesis.name}: {told}; leave out some of its {len(edges)} edges"
        )
    return count[-1]


# ------------------------------------------------------------------ its prompts


@dataclass(frozen=True)
class Drawn:
    """A place in the tree with what was drawn there, as indices into the prompts of one length.

    Args:
        node: the source that writes; -1: the logits.
        prompt: [draws, examples], the prompt that it stands for.
        rest: [draws, examples], where what the hypothesis does not hold comes
            from; None: all of it is the prompt's own.
        inputs: (receiver's column, place) of each edge that it holds.
    """

    node: int
    prompt: np.ndarray
    rest: np.ndarray | None
    inputs: tuple[tuple[int, Drawn], ...] = ()


class Prompts:
    """Prompts of one length, which are drawn by what they agree on."""

    def __init__(self, examples: Sequence[Example], shared: Variables) -> None:
        self.examples, self.shared = examples, shared
        self._known: dict[Variables, tuple[np.ndarray, ...]] = {}

    def draw(self, like: np.ndarray, variables: Variables, rng: np.random.Generator) -> np.ndarray:
        """For each prompt another one, at random, that agrees with it on these and the
        shared variables; itself where none does.
        """
        order, first, size, place, equal = self._alike(variables)
        others = size[like] - equal[like]
        number = (rng.random(like.shape) * others).astype(int)
        # those that read the same, itself among them, follow each other, and are passed over
        number += equal[like] * (number >= place[like])
        return np.where(others > 0, order[(first[like] + number) % len(order)], like)

    def _alike(self, variables: Variables) -> tuple[np.ndarray, ...]:
        """(prompts sorted so that those that agree follow each other, and of them those that read the same;
        of each prompt's such run the start and size; of those that read the same, the place there and size).
        """
        if variables not in self._known:
            names = dict.fromkeys((*self.shared, *variables))
            values = [tuple(example.variables[name] for name in names) for example in self.examples]
            numbers = {value: number for number, value in enumerate(dict.fromkeys(values))}
            kind = np.array([numbers[value] for value in values])
            last = {example.clean: number for number, example in enumerate(self.examples)}
            reads = np.array([last[example.clean] for example in self.examples])
            order, size = np.lexsort((reads, kind)), np.bincount(kind)
            first = (np.cumsum(size) - size)[kind]
            _, which, equal = np.unique((kind, reads), axis=1, return_inverse=True, return_counts=True)
            which = which.ravel()  # some versions of NumPy give it in two dimensions
            place = (np.cumsum(equal) - equal)[which] - first
            self._known[variables] = order, first, size[kind], place, equal[which]
        return self._known[variables]


def draw_tree(
    graph: Graph,
    edges: Mapping[str, Variables],
    prompts: Prompts,
    examples: np.ndarray,
    draws: int,
    rng: np.random.Generator,
) -> Drawn:
    """All draws of a hypothesis, for [examples] indices into the prompts."""
    inputs = _inputs(graph, edges)

    def place(node: int, prompt: np.ndarray) -> Drawn:
        if node >= 0 and node not in inputs:
            return Drawn(node, prompt, None)
        rest = prompts.draw(prompt, (), rng)
        below = [
            (column, place(row, prompts.draw(prompt, variables, rng)))
            for column, row, variables in inputs.get(node, ())
        ]
        return Drawn(node, prompt, rest, tuple(below))

    return place(-1, np.repeat(examples[None], draws, axis=0))


# ------------------------------------------------------------------ the same shape, other heads


def other_heads(
    graph: Graph, edges: Mapping[str, Variables], count: int, seed: int
) -> Iterator[Mapping[str, Variables]]:
    """The hypothesis about other heads, each at most once: as many as asked for, or fewer where exchanging
    heads gives no more that are found.
    """
    rng = np.random.default_rng((seed, 0))
    known = [dict(edges)]
    for _ in range(count):
        for _ in range(100):
            other = _with_names(edges, _exchanged(graph, rng))
            if other not in known:
                known.append(other)
                yield {edge: other[edge] for edge in sorted(other, key=graph.index)}
                break
        else:
            return


def _exchanged(graph: Graph, rng: np.random.Generator) -> dict[str, str]:
    """A random renaming of each layer's heads; where they share keys and
    values, of the groups and of the heads in each.
    """
    names: dict[str, str] = {}
    size = graph.n_heads // graph.n_kv_heads
    for layer in range(graph.n_layers):
        for group, other in enumerate(rng.permutation(graph.n_kv_heads).tolist()):
            names[group_name(layer, group)] = group_name(layer, other)
            heads = rng.permutation(size).tolist()
            names |= {
                head_name(layer, group * size + i): head_name(layer, other * size + head)
                for i, head in enumerate(heads)
            }
    return names


def _with_names(edges: Mapping[str, Variables], names: Mapping[str, str]) -> dict[str, Variables]:
    renamed: dict[str, Variables] = {}
    for edge, variables in edges.items():
        source, receiver = split_edge(edge)
        node = node_of(receiver)
        into = receiver_name(names.get(node, node), letter_of(receiver))
        renamed[edge_name(names.get(source, source), into)] = variables
    return renamed
