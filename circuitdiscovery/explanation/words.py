"""Words of prompts, and prompts with another word in the place of one: what interventions run on.

A word can be several tokens. It is exchanged as a whole, for one of as many tokens from another example, so
that the prompt stays a valid one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from circuitdiscovery.task.example import Example
from circuitdiscovery.task.task import Task
from circuitdiscovery.task.tokenization import Encoder, text_of

ENOUGH = 0.5  # the least share of the examples with another word to change to

Word = tuple[int, ...]  # its tokens


def place_of(tokenizer: Any, example: Example, at: int) -> tuple[int, ...]:
    """The positions of the word that ends at a position; none where it is unknown where it begins.

    It is the longest word of the prompt's variables that ends there, or else a token after a space. In a
    prompt that came as tokens each token is a word.
    """
    if tokenizer is None or not example.text:
        return (at,)
    known = {value.strip() for value in example.variables.values() if value.strip()}
    longest, found = max(map(len, known), default=0), tuple[int, ...]()
    for start in range(at, -1, -1):
        text = text_of(tokenizer, example.clean[start : at + 1]).strip()
        if len(text) > longest:
            break
        if text in known:
            found = tuple(range(start, at + 1))
    spaced = at == 0 or Encoder(tokenizer).token(example.clean[at]).startswith(" ")
    return found or ((at,) if spaced else ())


def word_at(tokenizer: Any, example: Example, at: int) -> Word:
    """The word that ends at a position; empty where it is unknown where it begins."""
    return tuple(example.clean[place] for place in place_of(tokenizer, example, at))


def same_word(tokenizer: Any, example: Example, one: int, other: int) -> bool:
    """Whether the words that end at two positions are known, and the same."""
    if example.clean[one] != example.clean[other]:
        return False
    word = word_at(tokenizer, example, one)
    return word != () and word == word_at(tokenizer, example, other)


def standing(example: Example, answers: Sequence[int]) -> list[int]:
    """The answers that are tokens of the prompt before END."""
    return sorted(set(answers) & set(example.clean[: example.position]))


def other_words(
    task: Task, names: Sequence[str], rows: Sequence[int], tokenizer: Any = None
) -> dict[str, Task]:
    """For each named position what `other_word` returns, without None."""
    found = {name: other_word(task, name, rows, tokenizer) for name in names}
    return {name: other for name, other in found.items() if other is not None}


def other_word(
    task: Task, name: str, rows: Sequence[int] | None = None, tokenizer: Any = None
) -> Task | None:
    """Some examples of a task (by default all) with another word at a named position as corrupted prompts.

    The word is not in the prompt. It is from the example whose answers contradict this one's most, or else
    from the next example. None if less than half of the examples can be changed.
    """
    places = [
        place_of(tokenizer, example, example.positions[name]) if name in example.positions else ()
        for example in task.examples
    ]
    words = [
        (example, tuple(example.clean[at] for at in place))
        for example, place in zip(task.examples, places, strict=True)
    ]
    return _changed(
        task,
        [
            _with_words(task.examples[row], [[places[row]]], [*words[row + 1 :], *words[:row]])
            for row in (range(len(task)) if rows is None else rows)
        ],
    )


def other_wrong_answer(task: Task, rows: Sequence[int]) -> Task | None:
    """The same with another example's wrong answer wherever one stands before END."""
    return _changed(task, [_with_other_wrong_answer(task, row) for row in rows])


def _changed(task: Task, examples: Sequence[Example]) -> Task | None:
    """The task of some examples; None if less than half of them have another corrupted prompt."""
    changed = sum(example.clean != example.corrupted for example in examples)
    return (
        replace(task, examples=tuple(examples), held_out=None) if changed >= ENOUGH * len(examples) else None
    )


def _with_other_wrong_answer(task: Task, row: int) -> Example:
    example = task.examples[row]
    others = (*task.examples[row + 1 :], *task.examples[:row])
    words = [(other, (word,)) for other in others for word in standing(other, other.incorrect)]
    places = [
        [(at,) for at, token in enumerate(example.clean[: example.position]) if token == wrong]
        for wrong in standing(example, example.incorrect)
    ]
    return _with_words(example, places, words)


def _with_words(
    example: Example, places: Sequence[Sequence[tuple[int, ...]]], words: Sequence[tuple[Example, Word]]
) -> Example:
    """The example with one new word at all of some places, for each such group, as its corrupted prompt.

    A word is new to the prompt and has as many tokens as the place; of these, the one whose example's answers
    contradict this one's most.
    """
    prompt = list(example.clean)
    for group in places:
        size = len(group[0])
        new = [(other, word) for other, word in words if len(word) == size and not _stands(word, prompt)]
        if new:
            _, word = max(new, key=lambda each: _contradiction(example, each[0]))
            for place in group:
                prompt[place[0] : place[-1] + 1] = word
    return replace(example, corrupted=tuple(prompt))


def _stands(word: Word, prompt: Sequence[int]) -> bool:
    """Whether a word stands in a prompt; one of no tokens does."""
    return any(
        tuple(prompt[start : start + len(word)]) == word for start in range(len(prompt) - len(word) + 1)
    )


def _contradiction(a: Example, b: Example) -> int:
    """The number of answers that are right for one example and wrong for the other."""
    return len({*a.correct} & {*b.incorrect}) + len({*a.incorrect} & {*b.correct})
