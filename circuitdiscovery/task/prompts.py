"""Pairs of prompts with their answers, drawn from a task file's templates or, where
templates cannot express it, by a generator.

Drawing is without replacement throughout: a prompt's slots that share a word list, a counterfactual's fresh
words, and the prompts themselves. It depends on the seed, the file and which words the tokenizer has, on
nothing else.
"""

from __future__ import annotations

import math
import random
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.task.example import Example
from circuitdiscovery.task.form import Form, corrupted, forms
from circuitdiscovery.task.generators import generator_of
from circuitdiscovery.task.table import Row
from circuitdiscovery.task.taskfile import Counterfactual, TaskFile
from circuitdiscovery.task.tokenization import Encoder
from circuitdiscovery.task.vocabulary import Vocabulary, vocabulary

FRESH_TRIES = 200  # counterfactuals drawn for one clean prompt until one is as long
REFERENCE = 500  # prompts drawn apart, for means: some fifteen of each of a task's thirty templates
CLEAN_TRIES = 1000  # clean prompts in a row that are not new or cannot be used, until that is the end


def draw(
    task: TaskFile, encoder: Encoder, *, counterfactual: str, seed: int, skip_bad: bool = False
) -> tuple[tuple[float, float], Vocabulary, Iterator[Example]]:
    """How many prompts there may be at most and after how many draws all are there, the words in use, and the
    examples in random order: round-robin over the templates, or as a generator of whole prompts makes them,
    without an end as far as is known. No two have the same clean prompt; one that cannot be used is an error,
    or is skipped.
    """
    generator = generator_of(task)
    if task.generator is not None and generator is not None and generator.prompts is not None:
        made = generator.prompts(task, encoder, counterfactual, seed, **task.generator.options)
        return (math.inf, math.inf), Vocabulary({}, {}), _different(made, skip_bad)
    rule = task.counterfactuals[counterfactual]
    vocab = vocabulary(task, encoder)
    _check_enough(task, vocab, rule)
    # Two streams: the clean prompts are the same for every counterfactual. A text
    # as seed, since Random(-1) is Random(1).
    rng, again = random.Random(f"{seed}"), random.Random(f"{seed} {counterfactual}")
    everything = forms(task, vocab)
    rng.shuffle(everything)
    streams = [(form, *form.draws(form.needed, rng, {})) for form in everything]
    rows = _rows(task, encoder, rule, deque((form, draws) for form, _, draws in streams), again)
    most = sum(form.draws(form.shown, rng, {})[0] for form in everything)
    number = (most, sum(count for _, count, _ in streams))
    made = map(encoder.example, islice(rows, min(most, sys.maxsize)))
    return number, vocab, _different(made, skip_bad)


def _different(made: Iterator[Example], skip_bad: bool) -> Iterator[Example]:
    """The examples whose clean prompt is new, without those that are an error where these are skipped."""
    seen: set[tuple[int, ...]] = set()
    missed = 0
    while missed < CLEAN_TRIES:
        try:
            example = next(made, None)
        except CircuitDiscoveryError:
            if not skip_bad:
                raise
            missed += 1
            continue
        if example is None:
            return
        missed += 1
        if example.clean not in seen:
            seen.add(example.clean)
            missed = 0
            yield example


def _rows(
    task: TaskFile,
    encoder: Encoder,
    rule: Counterfactual,
    streams: deque[tuple[Form, Iterator[dict[str, int]]]],
    rng: random.Random,
) -> Iterator[Row]:
    seen: set[str] = set()
    unpaired = 0
    while streams:
        form, draws = streams.popleft()
        drawn = next(draws, None)
        if drawn is None:
            continue
        streams.append((form, draws))
        clean = form.prompt(drawn, {})
        other, paired = _counterfactual(form, encoder, rule, drawn, clean, rng)
        unpaired = 0 if paired else unpaired + 1
        last = unpaired > CLEAN_TRIES
        if last or (paired and clean not in seen):
            seen.add(clean)
            where, position = f"task {task.name}, row {len(seen)}", form.task.position
            answers = _answers(form, drawn)
            known = form.ends(drawn), form.variables(drawn)
            yield Row(where, clean, other, *answers, position, form.id, *known)
        if last:
            return


def _counterfactual(
    form: Form,
    encoder: Encoder,
    rule: Counterfactual,
    drawn: Mapping[str, int],
    clean: str,
    rng: random.Random,
) -> tuple[str, bool]:
    """(a corrupted prompt for the clean one, whether it is as long or could not be another); fresh words may
    give none that is. `Encoder.example` tells of one that is not.
    """
    length, others = len(encoder.ids(clean)), list[str]()
    for other in islice(corrupted(form, rule, drawn, rng), FRESH_TRIES):
        others.append(other)
        if len(encoder.ids(other)) == length:
            return other, True
    return others[-1], len(others) == 1


def _answers(form: Form, drawn: Mapping[str, int]) -> tuple[tuple[str | int, ...], tuple[str | int, ...]]:
    task, generator = form.task, generator_of(form.task)
    if form.generated is not None and generator is not None:
        return form.generated.answers(drawn[generator.slot])
    correct, incorrect = (
        tuple(form.fill(text, drawn, {}) for text in side) for side in (task.correct, task.incorrect)
    )
    return correct, incorrect


def _check_enough(task: TaskFile, vocab: Vocabulary, rule: Counterfactual) -> None:
    """Enough words are left for the slots of a prompt and for those that its counterfactual draws anew."""
    fresh = [slot for slot in rule.redraw if slot in task.slots]
    for name, columns in vocab.words.items():
        drawn = [
            slot for slot in task.slots if task.slots[slot].words == name and task.slots[slot].repeats is None
        ]
        needed = len(drawn) + sum(task.slots[slot].words == name for slot in fresh)
        have = len(next(iter(columns.values())))
        if drawn and have < needed:
            kind = "tokens" if name in task.multi_token else "single tokens"
            missing = [*vocab.left_out.get(name, ())]
            listed = ", ".join([*missing[:8], "..."] if len(missing) > 8 else missing)
            told = (
                f"task {task.name} needs {needed} from the word list {name!r}, but the tokenizer has "
                f"{have} of its words as {kind}"
            )
            raise CircuitDiscoveryError(f"{told}; left out: {listed or 'none'}")


@dataclass(frozen=True)
class Apart:
    """Draws prompts that are not the task's own: those that the same drawing gives after them."""

    task: TaskFile
    encoder: Encoder
    counterfactual: str
    seed: int
    after: int

    def __call__(self) -> tuple[Example, ...]:
        """500 prompts, fewer where the task does not make so many more."""
        return self._drawn

    @cached_property
    def _drawn(self) -> tuple[Example, ...]:
        how = {"counterfactual": self.counterfactual, "seed": self.seed}
        # one that cannot be used would have been an error of the task, and is not needed here
        _, _, examples = draw(self.task, self.encoder, **how, skip_bad=True)
        return tuple(islice(examples, self.after, self.after + REFERENCE))
