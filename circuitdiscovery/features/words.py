"""Tokens in words."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from circuitdiscovery.model.model import Model
from circuitdiscovery.task.tokenization import Encoder

Words = tuple[tuple[str, float], ...]


def word(model: Model, token: int) -> str:
    """A token as it stands in a text, or its number where the model has no tokenizer; `<token 7>` where it
    has no text."""
    return str(token) if model.tokenizer is None else Encoder(model.tokenizer).token(token)


def named(model: Model, numbers: Tensor, tokens: Sequence[int]) -> Words:
    """Some tokens, each with its one of [vocabulary] numbers."""
    return tuple(zip((word(model, token) for token in tokens), numbers[list(tokens)].tolist(), strict=True))


def words(model: Model, numbers: Tensor, count: int, largest: bool = True) -> Words:
    """The tokens with the highest of [vocabulary] numbers, the highest first; or with the lowest."""
    best = numbers.topk(min(count, len(numbers)), largest=largest)
    return named(model, numbers, best.indices.tolist())
