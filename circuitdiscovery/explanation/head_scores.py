"""The scores by which the literature distinguishes kinds of attention heads.

| score | definition |
| --- | --- |
| `previous token` | mean attention from a token to the one before it |
| `duplicate token` | mean attention from the second occurrence of a token to the first |
| `induction` | mean attention from the second occurrence of a token to the token after the first |
| `copying` | share of answers that a head would move to the top 5 tokens if it attended to nothing else |
| `negative copying` | the same of a head that would write the negative of what it does |

1. The first three are measured on random tokens (Olsson et al. 2022, arXiv 2209.11895, head activation
   evaluators; duplicate token heads are Wang et al.'s, section 3.3): a sequence of distinct ordinary tokens,
   twice, after BOS if the task's prompts begin with it; means over all tokens.
2. The last two are Wang et al.'s copy score (2022, arXiv 2211.00593, section 3.1): the residual stream after
   the first MLP, at a token of the task's prompts, passes through the head's value and output, the final norm
   and the unembedding; for the negative one, what the head writes is negated before. The tokens are those
   that are a right or wrong answer of some example; if there are none, all tokens of the prompts. Ties with
   the right token count against it, so a head that writes nothing copies nothing.

Shapes: L layers, H heads, T positions, D d_model, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from circuitdiscovery.engine import memory
from circuitdiscovery.explanation.attention import Observed, at_once, attention
from circuitdiscovery.graph.nodes import head_of
from circuitdiscovery.model.model import Model
from circuitdiscovery.model.parts import Parts
from circuitdiscovery.model.run import stream_after, unembed
from circuitdiscovery.task.task import Task

# random tokens before the repetition, as in Olsson et al.; fewer for a small context or vocabulary
PERIOD = 25
SHORTEST = 4  # with three tokens, a head that always attends to one position scores as any kind
SEQUENCES = 32  # 800 second occurrences: a mean of weights in [0, 1] is then accurate to 0.02
TOP = 5  # tokens, as in Wang et al.
_BYTES = 2**25  # of logits held at once


# ------------------------------------------------------------------ on random tokens


def first_token(model: Model, task: Task) -> int | None:
    """The BOS of all prompts; without a tokenizer, a first token that they share and never repeat."""
    firsts = {example.clean[0] for example in task.examples}
    if len(firsts) > 1:
        return None
    (first,) = firsts
    if model.tokenizer is not None:
        return first if first == model.tokenizer.bos_token_id else None
    later = {token for example in task.examples for token in example.clean[1:]}
    return first if len(task) > 1 and first not in later else None


def repeated_sequences(model: Model, task: Task, *, seed: int = 0) -> Tensor | None:
    """[sequences, T]: distinct random tokens, twice, after BOS if the task has it; None if too few fit."""
    begin = first_token(model, task)
    special = {begin, *([] if model.tokenizer is None else model.tokenizer.all_special_ids)}
    known = model.vocab_size if model.tokenizer is None else min(model.vocab_size, len(model.tokenizer))
    ordinary = np.array([token for token in range(known) if token not in special])
    room = math.inf if model.max_length is None else (model.max_length - (begin is not None)) // 2
    period = int(min(PERIOD, room, len(ordinary)))
    if period < SHORTEST:
        return None
    rng = np.random.default_rng(seed)
    drawn = np.stack([rng.choice(ordinary, period, replace=False) for _ in range(SEQUENCES)])
    start = np.full((SEQUENCES, int(begin is not None)), 0 if begin is None else begin)
    return torch.from_numpy(np.concatenate([start, drawn, drawn], axis=1))


@dataclass(frozen=True)
class PatternScores:
    """`previous token`, `duplicate token` and `induction`, [L, H] each; empty if the context is too short.

    `even` is the `previous token` score of a head that attends to all tokens equally.
    """

    scores: Mapping[str, np.ndarray]
    even: float | None

    @classmethod
    def measure(
        cls,
        model: Model,
        task: Task,
        *,
        batch_size: int | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> PatternScores:
        """The scores of all heads; `progress` is called with each forward's share."""
        tokens = repeated_sequences(model, task)
        if tokens is None:
            return cls({}, None)
        length = tokens.shape[1]
        period, weights = length // 2, torch.zeros(())
        for some in tokens.split(batch_size or at_once(model, length)):
            # [L, H, T, T]
            weights = weights + attention(model, some.to(model.device)).sum(2).cpu() / len(tokens)
            if progress is not None:
                progress(len(some) / len(tokens))
        every, second = torch.arange(1, length), torch.arange(length - period, length)
        looked_at = {
            "previous token": weights[:, :, every, every - 1],
            "duplicate token": weights[:, :, second, second - period],
            "induction": weights[:, :, second, second - period + 1],
        }
        even = float((1 / (every + 1)).mean())
        return cls({name: each.mean(-1).cpu().numpy() for name, each in looked_at.items()}, even)

    def of(self, head: str) -> dict[str, float]:
        """The scores of one head."""
        return {name: float(values[head_of(head)]) for name, values in self.scores.items()}


# ------------------------------------------------------------------ copying


class CopyScores:
    """`copying` and `negative copying` of some heads, counted batch by batch.

    Args:
        model, task, heads: the heads to score, and the prompts.
        most: the largest number of tokens to use, evenly spaced; None uses all.
    """

    def __init__(self, model: Model, task: Task, heads: Sequence[str], most: int | None = None) -> None:
        answers = {token for example in task.examples for token in (*example.correct, *example.incorrect)}
        told = {token for example in task.examples for token in example.clean} & answers
        places = [
            (row, at)
            for row, e in enumerate(task.examples)
            for at, token in enumerate(e.clean)
            if not told or token in told
        ]
        places = places if most is None else places[:: math.ceil(len(places) / most)]
        self._places: dict[int, list[int]] = {}  # by row
        for row, at in places:
            self._places.setdefault(row, []).append(at)
        self.total = len(places)
        self._counts = {head: np.zeros(2) for head in heads}

    @torch.no_grad()
    def add(self, seen: Observed) -> None:
        """Count one more batch."""
        if not self._counts:
            return
        chosen = [
            (i, at) for i, row in enumerate(seen.batch.rows.tolist()) for at in self._places.get(row, ())
        ]
        if not chosen:
            return
        rows, places = (torch.tensor(each, device=seen.sources.device) for each in zip(*chosen, strict=True))
        early = seen.sources[: seen.model.graph.n_upstream(1)]
        # [n, D], [n]
        stream, words = (
            stream_after(Parts.of(seen.model), early[:, rows, places], 1),
            seen.batch.clean[rows, places],
        )
        size = memory.at_once(2 * seen.model.vocab_size * stream.element_size(), seen.model.device, _BYTES)
        for part, right in zip(stream.split(size), words.split(size), strict=True):
            for head, count in self._counts.items():
                both = _copied(seen.model, head, part)
                near = torch.stack([among(logits, right[:, None])[0] for logits in both])
                count += near.sum(1).cpu().numpy()

    def of(self, head: str) -> dict[str, float]:
        """The two scores of one head."""
        copying, negative = (self._counts[head] / max(1, self.total)).tolist()
        return {"copying": copying, "negative copying": negative}


def among(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """[n] bool each: whether any of [n, k] tokens is among the TOP highest, and lowest, of [n, V] logits.

    A token that is tied with so many others that they exceed TOP does not count.
    """
    found = logits.gather(1, tokens)
    best, least = found.amax(1, keepdim=True), found.amin(1, keepdim=True)
    return (logits >= best).sum(1) <= TOP, (logits <= least).sum(1) <= TOP


def _copied(model: Model, node: str, stream: Tensor) -> tuple[Tensor, Tensor]:
    """[n, V] both: the logits, before a cap, of what a head writes if it attends only to one position, with
    [n, D] streams, and those of its negative."""
    layer, head = head_of(node)
    block = model.blocks[layer]
    value = block.head_reads("v", head, stream.to(block.device))
    written = block.written(value[None], [head])[0]
    out = block.out_share(written, written).to(model.device)
    uncapped = replace(model, logit_cap=None)
    logits, none = (unembed(uncapped, x) for x in (out, torch.zeros_like(out[:1])))
    return logits, 2 * none - logits  # of the norm's and the unembedding's biases nothing is negated
