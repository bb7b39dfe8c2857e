"""The words that a task's slots may take in a tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from circuitdiscovery.task.form import forms
from circuitdiscovery.task.generators import GeneratedWords, generator_of
from circuitdiscovery.task.taskfile import Ref, TaskFile, Text
from circuitdiscovery.task.tokenization import Encoder

Words = Mapping[str, Mapping[str, Sequence[str]]]  # list -> column -> words


@dataclass(frozen=True)
class Vocabulary:
    """The words of a task that a tokenizer has, and those that it does not have, both by list; and the words
    that the task's generator makes.
    """

    words: Words
    left_out: Mapping[str, tuple[str, ...]]
    generated: GeneratedWords | None = None


def vocabulary(task: TaskFile, encoder: Encoder) -> Vocabulary:
    """The task's words that are single tokens (in all their columns), or, in a list
    that may hold longer ones, known at all.
    """
    kept: dict[str, Mapping[str, tuple[str, ...]]] = {}
    left_out: dict[str, tuple[str, ...]] = {}
    before = contexts(task)
    for name, columns in task.words.items():

        def fits(word: str, name: str = name) -> bool:
            return (
                encoder.is_known(word)
                if name in task.multi_token
                else all(encoder.is_single(word, each) for each in before[name])
            )

        entries = list(zip(*columns.values(), strict=True))
        good = [entry for entry in entries if all(fits(word) for word in entry)]
        bad = tuple("/".join(entry) for entry in entries if entry not in good)
        kept[name] = {column: tuple(entry[i] for entry in good) for i, column in enumerate(columns)}
        if bad:
            left_out[name] = bad
    generator = generator_of(task)
    if task.generator is None or generator is None or generator.words is None:
        return Vocabulary(kept, left_out)
    generated = generator.words(task, encoder, **task.generator.options)
    return Vocabulary(kept | {task.generator.word_list: generated.columns}, left_out, generated)


def contexts(task: TaskFile) -> dict[str, list[str | None]]:
    """What the words of each list follow in the task's prompts and
    answers, as `Encoder.is_single` takes it."""
    found: dict[str, dict[str | None, None]] = {name: {} for name in task.words}
    for form in forms(task, Vocabulary({}, {})):
        for fixed in ({}, *(rule.set for rule in task.counterfactuals.values())):
            prompt = list(form.flat(task.templates[form.template], fixed))
            for answer in (*task.correct, *task.incorrect, Text(())):
                _note(task, [*prompt, *form.flat(answer)], found)
    return {name: list(each) or [" "] for name, each in found.items()}


def _note(task: TaskFile, parts: Iterable[str | Ref], found: Mapping[str, dict[str | None, None]]) -> None:
    """Add what the words of this text follow to `found`, by list."""
    since: str | None = ""  # the text since the last word, None where there is none
    for part in parts:
        if isinstance(part, str):
            since = (since or "") + part
            continue
        name = task.slots[part.name].words
        if name in found:
            # from the last space on: a tokenizer may join a mark with the space in front of it
            near = " " if since and since[-1] == " " else since and since[max(0, since.rfind(" ")) :]
            found[name].setdefault(near)
        since = None
