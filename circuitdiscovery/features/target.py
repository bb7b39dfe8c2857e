"""The target prompt of a Patchscope: where its placeholder is, and where it is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from circuitdiscovery.errors import CircuitDiscoveryError, shown
from circuitdiscovery.features.prompts import prompts_of
from circuitdiscovery.model.model import Model
from circuitdiscovery.task.tokenization import Encoder
from circuitdiscovery.task.tokens import as_python

PLACEHOLDER = "?"


@dataclass(frozen=True)
class Target:
    """A target prompt.

    Args:
        text: as it was given; of token ids their numbers.
        tokens: up to the one at which it is read.
        position: of the placeholder.
        whole: the text up to there; None of token ids.
    """

    text: str
    tokens: tuple[int, ...]
    position: int
    whole: str | None

    def said(self, model: Model, new: Sequence[int]) -> str:
        """Tokens that follow, as text: what they add to the target's."""
        if model.tokenizer is None:
            return " ".join(map(str, new))
        decode = model.tokenizer.decode
        return decode([*self.tokens, *new]).removeprefix(decode(list(self.tokens)))


def target_of(model: Model, target: Any, position: int | None, read: str, generate: int) -> Target:
    """The target prompt, checked.

    Args:
        model: whose tokens it is of.
        target: a text, or a row of token ids.
        position: of the placeholder; None: the text's last "?".
        read: "?", or what is appended.
        generate: how many tokens follow.

    Raises:
        CircuitDiscoveryError: see `patchscope`.
    """
    if not read:
        raise CircuitDiscoveryError(f"read must be '{PLACEHOLDER}', '->' or another text, not an empty one")
    if isinstance(target, str):
        found = _of_text(model, target, position, read)
    else:
        if position is None:
            raise CircuitDiscoveryError("a target of token ids needs target_position=, its placeholder")
        if read != PLACEHOLDER:
            raise CircuitDiscoveryError(f"read={read!r} is appended to a text: give target= as one")
        (ids,) = prompts_of(model, [target], "target").rows
        found = Target(str(list(ids)), ids[: _index(ids, position) + 1], _index(ids, position), None)
    longest = len(found.tokens) + generate - 1
    if model.max_length is not None and longest > model.max_length:
        raise CircuitDiscoveryError(
            f"{model.name}: the target and {generate} generated tokens are {longest} to be read, more than "
            f"its {model.max_length} positions"
        )
    return found


def _of_text(model: Model, text: str, position: int | None, read: str) -> Target:
    if model.tokenizer is None:
        raise CircuitDiscoveryError(
            f"{model.name} has no tokenizer for the target: give its token ids and target_position="
        )
    encoder = Encoder(model.tokenizer)
    try:
        ids = encoder.prompt(text, "target")
    except CircuitDiscoveryError as error:
        raise CircuitDiscoveryError(f"{error}; give target= a text of words that it has") from None
    where = _placeholder(model, text, ids) if position is None else _index(ids, position)
    if read == PLACEHOLDER:
        return Target(text, ids[: where + 1], where, model.tokenizer.decode(list(ids[: where + 1])))
    whole = f"{text} {read}"
    longer = encoder.prompt(whole, "target and read")
    if longer[: len(ids)] != ids or len(longer) == len(ids):
        raise CircuitDiscoveryError(
            f"read={read!r} changes the target's tokens: {encoder.show(ids)} becomes {encoder.show(longer)}"
        )
    return Target(text, longer, where, whole)


def _placeholder(model: Model, text: str, ids: Sequence[int]) -> int:
    """Where the last placeholder of a text is among its tokens."""
    pieces = [model.tokenizer.decode([token]) for token in ids]
    where = next((i for i in reversed(range(len(ids))) if PLACEHOLDER in pieces[i]), None)
    if where is None:
        raise CircuitDiscoveryError(
            f"the target {shown(text)} has no placeholder {PLACEHOLDER!r}: write one, or say by "
            "target_position= which token it is"
        )
    if pieces[where].strip() != PLACEHOLDER:
        raise CircuitDiscoveryError(
            f"the placeholder is part of the token {pieces[where]!r} of the target {shown(text)}: it must be "
            "a token of its own"
        )
    return where


def _index(ids: Sequence[int], position: int) -> int:
    if not -len(ids) <= position < len(ids):
        raise CircuitDiscoveryError(
            f"target_position {position} is outside of the target, which has {len(ids)} tokens"
        )
    return position % len(ids)


def expected_of(model: Model, given: Any, target: Target, count: int) -> Tensor:
    """[prompts] the tokens that the user expects."""
    values = as_python(given)
    values = [values] * count if isinstance(values, int | str) else values
    if not isinstance(values, list | tuple) or len(values) != count:
        raise CircuitDiscoveryError(
            f"expected must be a token for each of the {count} prompts, or one for all"
        )
    found = list[int]()
    for number, each in enumerate(map(as_python, values)):
        if isinstance(each, str) and target.whole is not None:
            each = Encoder(model.tokenizer).answer(target.whole, each, f"expected, {number}")
        if type(each) is not int or not 0 <= each < model.vocab_size:
            raise CircuitDiscoveryError(f"expected, {number}: {shown(each)} is not a token")
        found.append(each)
    return torch.tensor(found)
