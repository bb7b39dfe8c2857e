"""Sums of numbers of two digits, in whatever way a tokenizer writes them; the answer is a sum's first token.

Other sums stand before the one that is asked for, a line each, so that a model sees what is wanted. Where a
tokenizer writes two digits as one token (12|+|35|=|47), the answer is the whole sum. Where it writes them one
by one (1|2|+|3|5|=|4|7), it is the tens digit: that token is all that a model can be asked for at once.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.task.example import Example
from circuitdiscovery.task.generators.generator import PromptGenerator
from circuitdiscovery.task.table import Row
from circuitdiscovery.task.tokenization import Encoder

if TYPE_CHECKING:
    from circuitdiscovery.task.taskfile import TaskFile

Pair = tuple[int, int]  # 12, 35

LEAST, MOST = 10, 99  # of operands and sums: two digits each


def sums(
    task: TaskFile, encoder: Encoder, counterfactual: str, seed: int, *, shots: tuple[int, ...]
) -> Iterator[Example]:
    """Every sum once; the wrong answers are the other tokens with which a sum may begin.

    Every counterfactual asks for another sum, which begins with another token, after the same lines.

    Raises:
        CircuitDiscoveryError: the tokenizer writes numbers in no such way.
    """
    (count,) = shots
    rng = random.Random(f"{seed}")
    pairs = [(a, b) for a in range(LEAST, MOST) for b in range(LEAST, MOST + 1 - a)]
    tokens = _first_tokens(task, encoder, count)  # by the sum
    rng.shuffle(pairs)
    for number, pair in enumerate(pairs, 1):
        shown = [each for each in rng.sample(pairs, count + 1) if each != pair][:count]
        answer, other = tokens[sum(pair)], pair
        while tokens[sum(other)] == answer or other in shown:
            other = rng.choice(pairs)
        before = "".join(f"{_asked(each)}{sum(each)}\n" for each in shown)
        wrong = tuple(token for token in dict.fromkeys(tokens.values()) if token != answer)
        yield encoder.example(
            Row(
                f"task {task.name}, row {number}",
                before + _asked(pair),
                before + _asked(other),
                (answer,),
                wrong,
                task.position,
                template=0,
                ends=_ends(before, pair),
                variables={"A": str(pair[0]), "B": str(pair[1]), "sum": str(sum(pair))},
            )
        )


def _asked(pair: Pair) -> str:
    return f"{pair[0]}+{pair[1]}="


def _ends(before: str, pair: Pair) -> dict[str, int]:
    """Where the operands of the sum that is asked for end, and their tens digits, in characters."""
    first = len(f"{before}{pair[0]}")
    second = first + len(f"+{pair[1]}")
    return {"A_TENS": first - 1, "A": first, "B_TENS": second - 1, "B": second}


def _first_tokens(task: TaskFile, encoder: Encoder, count: int) -> Mapping[int, int]:
    """The token after the prompt by which each sum begins: one for every sum, or one for every tens digit."""
    prompt = "12+35=47\n" * count + "12+35="
    start = encoder.ids(prompt)
    texts = {total: f"{prompt}{total}" for total in range(2 * LEAST, MOST + 1)}
    found = {total: encoder.ids(text) for total, text in texts.items()}
    continued = all(
        ids[: len(start)] == start and len(ids) > len(start) and encoder.knows(texts[total], ids)
        for total, ids in found.items()
    )
    tokens = {total: ids[len(start)] for total, ids in found.items()} if continued else {}
    kinds = len(set(tokens.values()))
    by_tens = {(total // 10, token) for total, token in tokens.items()}
    if kinds != len(found) and not kinds == len(by_tens) == len({total // 10 for total in found}):
        raise CircuitDiscoveryError(
            f"task {task.name} needs numbers of two digits that are one token (47) or two digits on their "
            f"own (4|7), but the tokenizer writes '12+35=47' as {encoder.show(encoder.ids('12+35=47'))}"
        )
    return tokens


def _check(*, shots: tuple[int, ...]) -> tuple[str, str] | None:
    if len(shots) != 1 or not 0 <= shots[0] <= 100:
        return "shots", "must be one number from 0 to 100"
    return None


GENERATOR = PromptGenerator(("shots",), "operands", prompts=sums, check=_check)
