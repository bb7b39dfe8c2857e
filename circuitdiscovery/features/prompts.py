"""Prompts as people give them (texts, token ids, a task), as rows of token ids."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from circuitdiscovery.engine import memory
from circuitdiscovery.errors import CircuitDiscoveryError, shown
from circuitdiscovery.model.model import Model
from circuitdiscovery.task.task import Task
from circuitdiscovery.task.tokenization import Encoder
from circuitdiscovery.task.tokens import as_python

TOKENS = 2**13  # that are run at once where no batch size is given


@dataclass(frozen=True)
class Prompts:
    """Token ids, one row per prompt.

    Args:
        rows: each of any length from 1.
        positions: of a task, each prompt's named positions, END among them; None of texts.
    """

    rows: tuple[tuple[int, ...], ...]
    positions: tuple[Mapping[str, int], ...] | None = None


def prompts_of(model: Model, given: Any, where: str, first: int = 0) -> Prompts:
    """The prompts.

    Args:
        model: whose tokens they are.
        given: a text, several texts, rows of token ids, or a task, whose clean prompts are meant.
        where: what errors call them.
        first: the number of the first one, where others came before.

    Raises:
        CircuitDiscoveryError: there is none; a text of no token or with an unknown one, by its number; a
            token that the model does not have; a prompt that is too long.
    """
    if isinstance(given, Task):
        found = Prompts(
            tuple(each.clean for each in given.examples), tuple(each.positions for each in given.examples)
        )
    else:
        found = Prompts(_rows(model, given, where, first))
    if not found.rows:
        raise CircuitDiscoveryError(f"{where}: there is no prompt")
    for number, row in enumerate(found.rows, first):
        try:
            model.check_tokens(torch.tensor(row))
        except CircuitDiscoveryError as error:
            raise CircuitDiscoveryError(f"{where}, row {number}: {error}") from None
    return found


def _rows(model: Model, given: Any, where: str, first: int) -> tuple[tuple[int, ...], ...]:
    values = as_python(given)
    values = [values] if isinstance(values, str) else values
    if not isinstance(values, Iterable) or isinstance(values, bytes | Mapping):
        raise CircuitDiscoveryError(
            f"{where} must be a text, several texts, rows of token ids or a task, not {shown(values)}"
        )
    values = list(values)
    if all(isinstance(each, str) for each in values):
        if model.tokenizer is None and values:
            raise CircuitDiscoveryError(
                f"{where}: {model.name} has no tokenizer for texts; give rows of token ids"
            )
        encoder = Encoder(model.tokenizer)
        return tuple(encoder.prompt(text, f"{where}, text {i}") for i, text in enumerate(values, first))
    if values and all(type(each) is int for each in values):  # one row
        values = [values]
    return tuple(_row(row, f"{where}, row {i}") for i, row in enumerate(values, first))


def _row(row: Any, where: str) -> tuple[int, ...]:
    ids = as_python(row)
    if not isinstance(ids, list | tuple) or not ids or not all(type(as_python(each)) is int for each in ids):
        raise CircuitDiscoveryError(f"{where}: must be token ids, one at least, not {shown(ids)}")
    return tuple(as_python(each) for each in ids)


def at_once(model: Model, length: int, most: int = TOKENS) -> int:
    """How many prompts of so many tokens are run at once where no batch size is given: of about `most`
    tokens, as far as memory allows; at least one."""
    each = length * memory.run_token(model, length)
    return memory.at_once(each, model.device, most // length * each)


def batches(
    model: Model, rows: Sequence[tuple[int, ...]], batch_size: int | None, most: int = TOKENS
) -> Iterator[tuple[list[int], Tensor]]:
    """(which rows, their tokens [n, T]) of one length at a time, so that there are no pads.

    Args:
        model: on whose device the tokens go.
        rows: of token ids.
        batch_size: how many at once; None: of about `most` tokens, as far as memory allows.
        most: how many tokens at once.
    """
    by_length: dict[int, list[int]] = {}
    for number, row in enumerate(rows):
        by_length.setdefault(len(row), []).append(number)
    for length, numbers in sorted(by_length.items()):
        size = at_once(model, length, most) if batch_size is None else batch_size
        for start in range(0, len(numbers), size):
            some = numbers[start : start + size]
            yield some, torch.tensor([rows[number] for number in some], device=model.device)
