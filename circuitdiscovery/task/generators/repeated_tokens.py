"""Prompts of random tokens that repeat themselves."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.task.example import Example, resolve_position
from circuitdiscovery.task.generators.generator import PromptGenerator
from circuitdiscovery.task.tokenization import Encoder

if TYPE_CHECKING:
    from circuitdiscovery.task.taskfile import TaskFile


def repeated_tokens(
    task: TaskFile,
    encoder: Encoder,
    counterfactual: str,
    seed: int,
    *,
    length: tuple[int, ...],
    periods: tuple[int, ...],
) -> Iterator[Example]:
    """Random tokens that repeat themselves; the answer is what followed the last token the time before.

    With period p, the first p tokens are all different. Every counterfactual puts p others in their place.
    """
    (n,) = length
    rng, start = random.Random(f"{seed}"), encoder.ids("")
    special = {*encoder.tokenizer.all_special_ids}
    tokens = [i for i in range(len(encoder.tokenizer)) if i not in special]
    if len(tokens) < 2 * max(periods):
        raise CircuitDiscoveryError(
            f"task {task.name} needs {2 * max(periods)} tokens, but the tokenizer has {len(tokens)}"
        )
    where = f"task {task.name}"
    while True:
        period = rng.choice(periods)
        drawn = rng.sample(tokens, 2 * period)
        first, fresh = drawn[:period], drawn[period:]
        rest = first[: n - period]
        answer = first[n - period]
        clean, other = (*start, *first, *rest), (*start, *fresh, *rest)
        wrong = tuple(token for token in first if token != answer)
        position = resolve_position(task.position, len(clean), where)
        decode = encoder.tokenizer.decode
        previous = len(clean) - 1 - period
        positions = {"previous": previous, "next": previous + 1}
        variables = {"token": decode([clean[-1]]), "answer": decode([answer]), "period": str(period)}
        yield Example(
            clean,
            other,
            (answer,),
            wrong,
            position,
            periods.index(period),
            decode(clean[len(start) :]),
            positions,
            variables,
        )


def _check(*, length: tuple[int, ...], periods: tuple[int, ...]) -> tuple[str, str] | None:
    if len(length) != 1:
        return "length", "must be one number"
    (n,) = length
    if not all(period < n < 2 * period for period in periods):
        return "periods", f"must be longer than half of length ({n}) and shorter than it"
    return None


GENERATOR = PromptGenerator(("length", "periods"), "sequence", prompts=repeated_tokens, check=_check)
