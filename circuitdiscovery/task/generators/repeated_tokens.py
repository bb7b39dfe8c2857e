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
    """Random tokens that repeat themselves; the answer is what followed the last token, or the one at the
    file's position, the time before.

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
    position = resolve_position(task.position, len(start) + n, f"task {task.name}")
    if position < len(start) + max(periods):
        raise CircuitDiscoveryError(
            f"task {task.name}: position {task.position} is before the first repeated token of a period of "
            f"{max(periods)}: valid are {len(start) + max(periods)} to {len(start) + n - 1}, or from the end"
        )
    while True:
        period = rng.choice(periods)
        drawn = rng.sample(tokens, 2 * period)
        first, fresh = drawn[:period], drawn[period:]
        rest = first[: n - period]
        answer = first[(position - len(start) + 1) % period]
        clean, other = (*start, *first, *rest), (*start, *fresh, *rest)
        wrong = tuple(token for token in first if token != answer)
        decode = encoder.tokenizer.decode
        previous = position - period
        positions = {"previous": previous, "next": previous + 1}
        variables = {"token": decode([clean[position]]), "answer": decode([answer]), "period": str(period)}
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
