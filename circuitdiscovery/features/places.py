"""Places: tokens of some prompts, as they are named by positions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from circuitdiscovery.errors import CircuitDiscoveryError, unknown
from circuitdiscovery.features.prompts import Prompts, prompts_of
from circuitdiscovery.model.model import Model
from circuitdiscovery.task.example import END
from circuitdiscovery.task.tokens import as_python


class Places(NamedTuple):
    """Tokens of some prompts.

    Args:
        prompts: token ids, a row per prompt.
        rows, positions: [n], of each token its prompt and its position there, from 0.
    """

    prompts: tuple[tuple[int, ...], ...]
    rows: Tensor
    positions: Tensor

    @property
    def tokens(self) -> Tensor:
        """[n]."""
        where = zip(self.rows.tolist(), self.positions.tolist(), strict=True)
        return torch.tensor([self.prompts[row][position] for row, position in where])

    @property
    def prefixes(self) -> np.ndarray:
        """[n]: a number for all that a token's activation depends on: the prompt up to it."""
        lengths = np.array([len(prompt) for prompt in self.prompts])
        starts = np.cumsum(lengths) - lengths
        tokens = np.fromiter(chain.from_iterable(self.prompts), np.int64, int(lengths.sum()))
        found, before = np.zeros_like(tokens), np.zeros_like(lengths)  # of all tokens; of prompts' last ones
        which, first = np.arange(len(lengths)), 0
        for position in range(int(lengths.max())):
            which = which[lengths[which] > position]
            at = starts[which] + position
            pairs = before[which] * (int(tokens.max()) + 1) + tokens[at]
            before[which] = np.unique(pairs, return_inverse=True)[1]
            found[at] = first + before[which]
            first = int(found[at].max()) + 1
        return found[starts[self.rows.numpy()] + self.positions.numpy()]


def places_of(model: Model, task_or_texts: Any, position: Any = None, first: bool = False) -> Places:
    """The tokens that `activations` would be of.

    Raises:
        CircuitDiscoveryError: as `activations`.
    """
    prompts = prompts_of(model, task_or_texts, "task_or_texts")
    return Places(prompts.rows, *flat(positions_of(prompts, position, first)))


def flat(places: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """([n] prompts, [n] positions), from each prompt's positions."""
    rows = torch.tensor([row for row, some in enumerate(places) for _ in some])
    return rows, torch.tensor([place for some in places for place in some])


def meant(prompts: Prompts, position: Any) -> Any:
    """The position that is meant where none is given, too."""
    if position is None:
        return "all" if prompts.positions is None else END
    return as_python(position)


def positions_of(prompts: Prompts, position: Any, first: bool) -> list[list[int]]:
    """Of each prompt, the positions that are meant; an error where there is none at all."""
    position = meant(prompts, position)
    if position == "all":
        found = [list(range(0 if first else 1, len(row))) for row in prompts.rows]
        if not any(found):
            raise CircuitDiscoveryError(
                "task_or_texts has no token but the first of each; first=True keeps that one"
            )
        return found
    if type(position) is int:
        for number, row in enumerate(prompts.rows):
            if not -len(row) <= position < len(row):
                raise CircuitDiscoveryError(
                    f"position {position} is outside of prompt {number}, which has {len(row)} tokens"
                )
        return [[position % len(row)] for row in prompts.rows]
    names = [] if prompts.positions is None else list(prompts.positions[0])
    found = list[list[int]]()
    for named in prompts.positions or [{}]:
        if not isinstance(position, str) or position not in named:
            raise unknown("position", position, ["all", *names, "a whole number"])
        found.append([named[position]])
    return found
