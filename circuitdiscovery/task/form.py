"""A template with its slots: what a prompt is made of, and how another is made of it."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from circuitdiscovery.task.references import generator_aliases
from circuitdiscovery.task.taskfile import Counterfactual, Ref, TaskFile, Text

if TYPE_CHECKING:
    from circuitdiscovery.task.generators import GeneratedWords
    from circuitdiscovery.task.vocabulary import Vocabulary, Words


@dataclass(frozen=True)
class Form:
    """A template in one order and one case: what remains to be drawn are its slots."""

    task: TaskFile
    words: Words
    template: int
    order: str
    case: str
    generated: GeneratedWords | None = None

    @property
    def id(self) -> int:
        """The number of template and order. Cases share it, so that a mean over its rows knows no answer."""
        return self.template * len(self.task.orders) + list(self.task.orders).index(self.order)

    @cached_property
    def aliases(self) -> dict[str, Text]:
        return {**self.task.orders[self.order], **self.task.cases[self.case], **generator_aliases(self.task)}

    def slots(self, texts: Iterable[Text], own: Sequence[str] = (), fixed: Iterable[str] = ()) -> list[str]:
        """The slots to be drawn for these texts: not those that repeat another,
        unless they are to be drawn on their `own`.
        """
        found: dict[str, None] = {}
        for ref in (ref for text in texts for ref in text.refs if ref.name not in fixed):
            if ref.name in self.aliases:
                found |= dict.fromkeys(self.slots([self.aliases[ref.name]], own, fixed))
            else:
                repeats = self.task.slots[ref.name].repeats
                found[ref.name if repeats is None or ref.name in own else repeats] = None
        return list(found)

    def value(self, ref: Ref, drawn: Mapping[str, int], fixed: Mapping[str, str]) -> str:
        """What a reference stands for, given the drawn words (as places in
        their lists) and names with a fixed text.
        """
        if ref.name in fixed:
            return fixed[ref.name]
        if ref.name in self.aliases:
            return self.fill(self.aliases[ref.name], drawn, fixed)
        slot = self.task.slots[ref.name]
        if ref.name not in drawn and slot.repeats is not None:
            return self.value(Ref(slot.repeats, ref.column), drawn, fixed)
        return self.words[slot.words][ref.column][drawn[ref.name]]

    def fill(self, text: Text, drawn: Mapping[str, int], fixed: Mapping[str, str]) -> str:
        return text.fill(lambda ref: self.value(ref, drawn, fixed))

    def prompt(self, drawn: Mapping[str, int], fixed: Mapping[str, str]) -> str:
        """The filled template, without what belongs to the answer."""
        text = self.fill(self.task.templates[self.template], drawn, fixed)
        return text[: len(text) - self.generated.cut] if self.generated else text

    def flat(self, text: Text, fixed: Mapping[str, Text] | None = None) -> Iterator[str | Ref]:
        """The text's parts with every name of the order, the case, or `fixed`
        replaced by what it stands for: literals and slots.
        """
        for part in text.parts:
            if isinstance(part, Ref) and fixed and part.name in fixed:
                yield from self.flat(fixed[part.name])
            elif isinstance(part, Ref) and part.name in self.aliases:
                yield from self.flat(self.aliases[part.name], fixed)
            else:
                yield part

    def ends(self, drawn: Mapping[str, int]) -> dict[str, int]:
        """Where the task's named positions end in the clean prompt, in characters: each at
        the first place that stands for its name.
        """
        found: dict[str, int] = {}
        end = 0
        for part in self.task.templates[self.template].parts:
            end += len(part if isinstance(part, str) else self.value(part, drawn, {}))
            for name, ref in self.task.positions.items():
                if isinstance(part, Ref) and (part == ref or self._means(part, ref)):
                    back = self.generated.back.get(part.name, 0) if self.generated else 0
                    found.setdefault(name, end - back)
        return found

    def _means(self, part: Ref, ref: Ref) -> bool:
        """Whether a name of the order or the case is nothing but this reference."""
        return part.name in self.aliases and self.aliases[part.name].parts == (ref,)

    def variables(self, drawn: Mapping[str, int]) -> dict[str, str]:
        """What the clean prompt is made of: the words of its slots, what order and
        case call by a name, and which these are.
        """
        found = {"template": str(self.template), "order": self.order, "case": self.case}
        for name, slot in self.task.slots.items():
            known = name in drawn or slot.repeats in drawn
            if known and slot.words in self.task.words:
                found[name] = self.value(Ref(name, next(iter(self.words[slot.words]))), drawn, {})
        there = {
            name: text
            for name, text in self.aliases.items()
            if all(self._known(ref, drawn) for ref in text.refs)
        }
        return found | {name: self.fill(text, drawn, {}) for name, text in there.items()}

    def _known(self, ref: Ref, drawn: Mapping[str, int]) -> bool:
        """Whether a slot was drawn; one that only other templates have was not."""
        return ref.name in drawn or self.task.slots[ref.name].repeats in drawn

    @cached_property
    def needed(self) -> list[str]:
        """The slots of the clean prompt and its answers."""
        return self.slots([self.task.templates[self.template], *self.task.correct, *self.task.incorrect])

    @cached_property
    def shown(self) -> list[str]:
        """The slots of the clean prompt: what makes it another one."""
        return self.slots([self.task.templates[self.template]])

    def choices(self, slots: Sequence[str], used: Mapping[str, set[int]]) -> list[tuple[str, list[int]]]:
        """For every slot, the words that it may take, apart from those that are used."""
        lists = {slot: self.task.slots[slot].words for slot in slots}
        sizes = {name: len(next(iter(self.words[name].values()))) for name in lists.values()}
        return [
            (slot, [i for i in range(sizes[name]) if i not in used.get(name, ())])
            for slot, name in lists.items()
        ]

    def draws(
        self, slots: Sequence[str], rng: random.Random, used: Mapping[str, set[int]]
    ) -> tuple[int, Iterator[dict[str, int]]]:
        """How many ways there are to fill the slots, those of one list with
        different words; and all of them in random order.
        """
        choices = self.choices(slots, used)
        radix: list[int] = []
        for i, (slot, free) in enumerate(choices):
            taken = sum(
                self.task.slots[other].words == self.task.slots[slot].words for other, _ in choices[:i]
            )
            radix.append(max(0, len(free) - taken))
        count = math.prod(radix)
        return count, (self._draw(number, choices, radix) for number in shuffled(count, rng))

    def _draw(
        self, number: int, choices: Sequence[tuple[str, list[int]]], radix: Sequence[int]
    ) -> dict[str, int]:
        left = {self.task.slots[slot].words: list(free) for slot, free in choices}
        drawn: dict[str, int] = {}
        for (slot, _), size in zip(choices, radix, strict=True):
            number, digit = divmod(number, size)
            drawn[slot] = left[self.task.slots[slot].words].pop(digit)
        return drawn


def shuffled(count: int, rng: random.Random) -> Iterator[int]:
    """The numbers below `count` in random order, lazily (Fisher and Yates with the moved entries alone)."""
    moved: dict[int, int] = {}
    for i in range(count):
        j = rng.randrange(i, count)
        yield moved.get(j, j)
        moved[j] = moved.pop(i, i)


def forms(task: TaskFile, vocab: Vocabulary) -> list[Form]:
    """Every template in every order and case."""
    kinds = (
        (i, order, case) for i in range(len(task.templates)) for order in task.orders for case in task.cases
    )
    return [Form(task, vocab.words, *kind, vocab.generated) for kind in kinds]


def corrupted(
    form: Form, rule: Counterfactual, drawn: Mapping[str, int], rng: random.Random
) -> Iterator[str]:
    """The corrupted prompts that the rule allows for a clean one, in random order."""
    other = replace(form, case=rule.case.get(form.case, form.case))
    fixed = {name: form.fill(text, drawn, {}) for name, text in rule.set.items()}
    kept = {slot: word for slot, word in drawn.items() if slot not in rule.redraw}
    template = form.task.templates[form.template]
    fresh = [slot for slot in other.slots([template], rule.redraw, fixed) if slot not in kept]
    used: dict[str, set[int]] = {}
    for slot, word in drawn.items():
        used.setdefault(form.task.slots[slot].words, set()).add(word)
    _, draws = other.draws(fresh, rng, used)
    return (other.prompt({**kept, **draw}, fixed) for draw in draws)
