"""Which tokens of two models stand for the same text.

Models that make the same tokens of a text are compared token by token, each counts once. Others are compared
character by character: a stretch of text that lies in one token of each counts as often as it has characters.
A prompt's first token is left out on either side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.features.prompts import prompts_of
from circuitdiscovery.model.model import Model

Row = tuple[int, ...]


@dataclass(frozen=True)
class Shared:
    """What two models read of one text.

    Args:
        tokens, others: token ids of the one and of the other.
        at, there: [m] of each stretch which token of the one it lies in, and which of the other.
        weights: [m], how often it counts.
    """

    tokens: Row
    others: Row
    at: np.ndarray
    there: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class Batch:
    """Texts that are of one length to each of two models.

    Args:
        tokens: [N, T], and others: [N, U], token ids.
        at, there: [m] places, of N * T and of N * U.
        weights: [m].
        same: whether both read the same tokens.
    """

    tokens: Tensor
    others: Tensor
    at: Tensor
    there: Tensor
    weights: Tensor
    same: bool


def shared(model: Model, other: Model, texts: Any) -> list[Shared]:
    """What two models read of each text that has more than its first token.

    Raises:
        CircuitDiscoveryError: no text, an unknown token; token ids for models of other tokens; a tokenizer
            that does not say where its tokens stand; no text with a second token.
    """
    rows, others = prompts_of(model, texts, "texts").rows, prompts_of(other, texts, "texts").rows
    if rows == others and same_vocabulary(model, other):
        places = (np.arange(1, len(row)) for row in rows)
        found = [Shared(row, row, at, at, np.ones(len(at))) for row, at in zip(rows, places, strict=True)]
    else:
        given = [texts] if isinstance(texts, str) else list(texts)
        if not all(isinstance(each, str) for each in given):
            raise CircuitDiscoveryError(
                f"{model.name} and {other.name} have other tokens: give texts, not token ids"
            )
        found = [
            _by_characters(model, other, text, row, theirs)
            for text, row, theirs in zip(given, rows, others, strict=True)
        ]
    found = [each for each in found if len(each.at)]
    if not found:
        raise CircuitDiscoveryError("texts: none has more than its first token")
    return found


def same_vocabulary(model: Model, other: Model) -> bool:
    if model.tokenizer is None or other.tokenizer is None or model.tokenizer is other.tokenizer:
        return True
    return model.tokenizer.get_vocab() == other.tokenizer.get_vocab()


def _by_characters(model: Model, other: Model, text: str, row: Row, theirs: Row) -> Shared:
    """Stretches that lie in one token of each."""
    ends = [_owners(each, text, len(ids)) for each, ids in ((model, row), (other, theirs))]
    both = np.stack(ends)  # [2, characters]: which token each is in, -1 for none or the first
    both = both[:, (both >= 0).all(0)]
    pairs, weights = np.unique(both, axis=1, return_counts=True)
    return Shared(row, theirs, pairs[0], pairs[1], weights.astype(float))


def _owners(model: Model, text: str, count: int) -> np.ndarray:
    """[characters]: the token that each is in."""
    try:
        offsets = model.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    except NotImplementedError:
        raise CircuitDiscoveryError(
            f"the tokenizer of {model.name} does not say where its tokens stand in a text"
        ) from None
    assert len(offsets) == count
    found = np.full(len(text), -1)
    for token, (start, end) in enumerate(offsets):
        if token:
            found[start:end] = token
    return found


def batches(
    found: Sequence[Shared], batch_size: int | None, device: torch.device, most: int
) -> Iterator[Batch]:
    """Texts of one length at a time, without pads: `batch_size` of them, or of about `most` tokens."""
    by_length: dict[tuple[int, int], list[Shared]] = {}
    for each in found:
        by_length.setdefault((len(each.tokens), len(each.others)), []).append(each)
    for (length, theirs), some in sorted(by_length.items()):
        size = max(1, most // max(length, theirs)) if batch_size is None else batch_size
        for start in range(0, len(some), size):
            part = some[start : start + size]
            at = np.concatenate([i * length + each.at for i, each in enumerate(part)])
            there = np.concatenate([i * theirs + each.there for i, each in enumerate(part)])
            weights = np.concatenate([each.weights for each in part])
            yield Batch(
                torch.tensor([each.tokens for each in part], device=device),
                torch.tensor([each.others for each in part], device=device),
                torch.from_numpy(at).to(device),
                torch.from_numpy(there).to(device),
                torch.from_numpy(weights).to(device),
                all(each.tokens == each.others for each in part),
            )
