"""What an explanation costs: known before it begins, but for what its first parts decide, and told as it goes.

The unit is one prompt's run through the whole model. What that costs is taken to be its products with the weights of all layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from circuitdiscovery.graph import Graph
from circuitdiscovery.model import Model
from circuitdiscovery.patching import Progress
from circuitdiscovery.task import Task

SEEN = 2.0  # runs that a plain run counts as which keeps sources and attention
BENCH = 3.5  # a bench's plain run, its replacements and its run of all edges
MASK = 1.2  # a run of the whole model with some edges cut
ASKED = 0.4  # of the heads are asked about other words, as far as that can be told before anything is measured


class Work:
    """Parts of work, one after the other.

    Args:
        expected: what each costs, in their order; corrected when the part is begun or over.
        progress: called with (done, expected in all).
    """

    def __init__(self, expected: Mapping[str, float], progress: Progress | None) -> None:
        self._expected, self._progress = dict(expected), progress
        self._part, self._done = "", dict.fromkeys(expected, 0.0)

    def begin(self, part: str, expected: float | None = None) -> None:
        """The parts before it are over."""
        for earlier in self._done:
            if earlier == part:
                break
            self._expected[earlier] = self._done[earlier]
        self._part = part
        if expected is not None:
            self._expected[part] = expected

    def spend(self, cost: float) -> None:
        """So much more of the part is done."""
        self._done[self._part] += cost
        if self._progress is not None:
            total = sum(max(self._done[part], expected) for part, expected in self._expected.items())
            self._progress(round(sum(self._done.values())), max(1, round(total)))

    def spend_share(self, share: float) -> None:
        """Such a share of what the part was expected to cost is done."""
        self.spend(share * self._expected[self._part])

    def finish(self) -> None:
        """Everything is over."""
        if self._progress is not None:
            total = max(1, round(sum(self._done.values())))
            self._progress(total, total)


def suffix(graph: Graph, mask: np.ndarray) -> float:
    """The part of the model that runs again where a [S, R] mask cuts edges of the whole graph: what follows the first cut."""
    cut = np.flatnonzero((mask != graph.allowed).any(axis=0))
    return 0.0 if not len(cut) else 1 - graph.receiver_layers[cut[0]] / graph.n_layers


def after(graph: Graph, nodes: Sequence[str]) -> float:
    """Runs of the whole model that ablating each of some nodes takes, together."""
    return MASK * sum(1 - (int(node[1:].split(".")[0]) + (node[0] == "m")) / graph.n_layers for node in nodes)


def asking(graph: Graph, heads: Sequence[str], names: int) -> float:
    """The same for asking each of some heads about each named position and, once, about its values or keys."""
    return (names + 1) * after(graph, heads) + names * BENCH if heads else 0.0


def unembedding(model: Model, task: Task) -> float:
    """What the logits of one vector cost, in runs of a task's prompts."""
    layers = sum(value.numel() for block in model.blocks for value in vars(block).values() if isinstance(value, Tensor))
    return model.W_U.numel() / (layers * mean_length(task))


def mean_length(task: Task) -> float:
    """Tokens of a clean prompt."""
    return float(np.mean([len(example.clean) for example in task.examples]))
