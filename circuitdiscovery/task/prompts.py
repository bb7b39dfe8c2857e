"""Pairs of prompts with their answers, drawn from a task file's templates or, where templates cannot express it, by a generator.

Drawing is without replacement throughout: a prompt's slots that share a word list, a counterfactual's fresh words, and the
prompts themselves. It depends on the seed, the file and which words the tokenizer has, on nothing else.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.task.encoder import Encoder, Example, resolve_position
from circuitdiscovery.task.table import Row
from circuitdiscovery.task.taskfile import YEARS, Counterfactual, Ref, TaskFile, Text, generator_aliases

DECADES = range(1, 9)  # of a year whose answer is the tens digit: there is an earlier decade, and a later one
FRESH_TRIES = 200  # counterfactuals drawn for one clean prompt until one is as long
REFERENCE = 500  # prompts drawn apart, for means: some fifteen of each of a task's thirty templates
CLEAN_TRIES = 1000  # clean prompts in a row without a counterfactual that is as long, until that is an error
Words = Mapping[str, Mapping[str, Sequence[str]]]


# ------------------------------------------------------------------- the words


@dataclass(frozen=True)
class Years:
    """How a tokenizer writes years, and with it what the prompts of a task about years ask.

    Args:
        dates: the years that may be drawn: the columns century and year.
        digits: how many digits of the last year the answer token decides: two, or one, the tens digit.
        answers: by century, the answer tokens by the value of these digits, a hundred or ten.
        cut: how many characters the prompt lacks at its end: 2 where the century belongs to the answer token.
    """

    dates: Mapping[str, tuple[str, ...]]
    digits: int
    answers: Mapping[str, tuple[int, ...]]
    cut: int = 0

    def sides(self, century: str, year: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The correct answers and the incorrect ones. Of years of the same decade a tens digit does not say which is later: in neither."""
        value = int(year[: self.digits])
        answers = self.answers[century]
        return answers[value + 1 :], answers[: value + (self.digits == 2)]


@dataclass(frozen=True)
class Vocabulary:
    """The words of a task that a tokenizer has, and those that it has not, both by list; and how it writes years, for a task about them."""

    words: Words
    left_out: Mapping[str, tuple[str, ...]]
    years: Years | None = None


def vocabulary(task: TaskFile, encoder: Encoder) -> Vocabulary:
    """The task's words that are single tokens (in all their columns), or, in a list that may hold longer ones, known at all."""
    kept: dict[str, Mapping[str, tuple[str, ...]]] = {}
    left_out: dict[str, tuple[str, ...]] = {}
    before = contexts(task)
    for name, columns in task.words.items():

        def fits(word: str, name: str = name) -> bool:
            return encoder.is_known(word) if name in task.multi_token else all(encoder.is_single(word, each) for each in before[name])

        entries = list(zip(*columns.values(), strict=True))
        good = [entry for entry in entries if all(fits(word) for word in entry)]
        bad = tuple("/".join(entry) for entry in entries if entry not in good)
        kept[name] = {column: tuple(entry[i] for entry in good) for i, column in enumerate(columns)}
        if bad:
            left_out[name] = bad
    if task.generator is None or task.generator.kind != "years":
        return Vocabulary(kept, left_out)
    years = usable_years(task, encoder)
    return Vocabulary(kept | {YEARS: years.dates}, left_out, years)


def contexts(task: TaskFile) -> dict[str, list[str | None]]:
    """What the words of each list follow in the task's prompts and answers, as `Encoder.is_single` takes it."""
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


def usable_years(task: TaskFile, encoder: Encoder) -> Years:
    """How the tokenizer writes years: the last two digits as one token, as Hanna et al. 2023 have it; else the tens digit as one (1|7|3|2)
    or at the end of one (173|2), where that token is all that a model can be asked for at once.
    """
    years = _two_digit_years(task, encoder) or _tens_of_years(task, encoder, cut=0) or _tens_of_years(task, encoder, cut=2)
    if years is None:
        raise CircuitDiscoveryError(
            f"task {task.name} needs years that end in a token of two digits (17|32), in two digits on their own (1|7|3|2) "
            f"or in a token of three and a digit (173|2), but the tokenizer writes ' 1732' as {encoder.show(encoder.ids(' 1732'))}"
        )
    return years


def _dates(dates: Sequence[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    return {"century": tuple(century for century, _ in dates), "year": tuple(year for _, year in dates)}


def _two_digit_years(task: TaskFile, encoder: Encoder) -> Years | None:
    """Years that are two two-digit tokens; the first and last such year of a century are left out (Hanna et al. 2023, section 2)."""
    assert task.generator is not None
    numbers = [f"{number:02d}" for number in range(100)]
    digits = encoder.tokenizer.convert_tokens_to_ids(numbers)
    if None in digits or encoder.tokenizer.convert_ids_to_tokens(digits) != numbers:
        return None
    low, high = task.generator.options["years"]
    centuries = [str(century) for century in task.generator.options["centuries"]]
    dates: list[tuple[str, str]] = []
    for century in centuries:
        start = encoder.ids(f"year {century}")
        whole = [year for year in range(100) if encoder.ids(f"year {century}{year:02d}") == (*start, digits[year])]
        dates += [(century, f"{year:02d}") for year in whole[1:-1] if low <= year <= high]
    return Years(_dates(dates), 2, dict.fromkeys(centuries, tuple(digits))) if dates else None


def _tens_of_years(task: TaskFile, encoder: Encoder, *, cut: int) -> Years | None:
    """Years of which the token after the prompt tells the tens digit and no more.

    The prompt ends after the century, or, with a cut of 2, before it.
    """
    assert task.generator is not None
    if any(text.parts[-1] != Ref("century") for text in task.templates):
        return None
    low, high = task.generator.options["years"]
    found = {str(century): _following(encoder, str(century), cut) for century in task.generator.options["centuries"]}
    answers = {century: tokens for century, tokens in found.items() if tokens is not None}
    dates = [(century, f"{year:02d}") for century in answers for year in range(low, high + 1) if year // 10 in DECADES]
    return Years(_dates(dates), 1, answers, cut) if dates else None


def _following(encoder: Encoder, century: str, cut: int) -> tuple[int, ...] | None:
    """The token after the prompt for each tens digit; None where it does not depend on that digit alone."""
    start = encoder.ids(f"year {century}"[: -cut or None])
    years = [f"year {century}{year:02d}" for year in range(100)]
    after = [ids[len(start) :] for ids in map(encoder.ids, years) if ids[: len(start)] == start and encoder.knows(years[0], ids)]
    if len(after) < 100 or not all(after):
        return None
    decades = [{ids[0] for ids in after[ten : ten + 10]} for ten in range(0, 100, 10)]
    tokens = tuple(token for decade in decades for token in decade)
    return tokens if len(tokens) == 10 == len(set(tokens)) else None


# --------------------------------------------------------------------- drawing


@dataclass(frozen=True)
class Form:
    """A template in one order and one case: what remains to be drawn are its slots."""

    task: TaskFile
    words: Words
    template: int
    order: str
    case: str
    years: Years | None = None

    @property
    def id(self) -> int:
        """The number of template and order. Cases share it, so that a mean over its rows knows no answer."""
        return self.template * len(self.task.orders) + list(self.task.orders).index(self.order)

    @cached_property
    def aliases(self) -> dict[str, Text]:
        return {**self.task.orders[self.order], **self.task.cases[self.case], **generator_aliases(self.task)}

    def slots(self, texts: Iterable[Text], own: Sequence[str] = (), fixed: Iterable[str] = ()) -> list[str]:
        """The slots to be drawn for these texts: not those that repeat another, unless they are to be drawn on their `own`."""
        found: dict[str, None] = {}
        for ref in (ref for text in texts for ref in text.refs if ref.name not in fixed):
            if ref.name in self.aliases:
                found |= dict.fromkeys(self.slots([self.aliases[ref.name]], own, fixed))
            else:
                repeats = self.task.slots[ref.name].repeats
                found[ref.name if repeats is None or ref.name in own else repeats] = None
        return list(found)

    def value(self, ref: Ref, drawn: Mapping[str, int], fixed: Mapping[str, str]) -> str:
        """What a reference stands for, given the drawn words (as places in their lists) and names with a fixed text."""
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
        """The filled template; without its last century where that belongs to the answer."""
        text = self.fill(self.task.templates[self.template], drawn, fixed)
        return text[: len(text) - self.years.cut] if self.years else text

    def flat(self, text: Text, fixed: Mapping[str, Text] | None = None) -> Iterator[str | Ref]:
        """The text's parts with every name of the order, the case, or `fixed` replaced by what it stands for: literals and slots."""
        for part in text.parts:
            if isinstance(part, Ref) and fixed and part.name in fixed:
                yield from self.flat(fixed[part.name])
            elif isinstance(part, Ref) and part.name in self.aliases:
                yield from self.flat(self.aliases[part.name], fixed)
            else:
                yield part

    def ends(self, drawn: Mapping[str, int]) -> dict[str, int]:
        """Where the task's named positions end in the clean prompt, in characters: each at the first place that stands for its name.

        A year whose tens digit decides ends there.
        """
        found: dict[str, int] = {}
        end = 0
        for part in self.task.templates[self.template].parts:
            end += len(part if isinstance(part, str) else self.value(part, drawn, {}))
            tens = self.years is not None and self.years.digits == 1 and part == Ref("year")
            for name, ref in self.task.positions.items():
                if isinstance(part, Ref) and (part == ref or self._means(part, ref)):
                    found.setdefault(name, end - tens)
        return found

    def _means(self, part: Ref, ref: Ref) -> bool:
        """Whether a name of the order or the case is nothing but this reference."""
        return part.name in self.aliases and self.aliases[part.name].parts == (ref,)

    def variables(self, drawn: Mapping[str, int]) -> dict[str, str]:
        """What the clean prompt is made of: the words of its slots, what order and case call by a name, and which these are."""
        found = {"template": str(self.template), "order": self.order, "case": self.case}
        for name, slot in self.task.slots.items():
            known = name in drawn or slot.repeats in drawn
            if known and slot.words != YEARS:
                found[name] = self.value(Ref(name, next(iter(self.words[slot.words]))), drawn, {})
        there = {name: text for name, text in self.aliases.items() if all(self._known(ref, drawn) for ref in text.refs)}
        return found | {name: self.fill(text, drawn, {}) for name, text in there.items()}

    def _known(self, ref: Ref, drawn: Mapping[str, int]) -> bool:
        """Whether a slot was drawn; one that this template has not, and that another has, was not."""
        return ref.name in drawn or self.task.slots[ref.name].repeats in drawn

    @cached_property
    def needed(self) -> list[str]:
        """The slots of the clean prompt and its answers."""
        return self.slots([self.task.templates[self.template], *self.task.correct, *self.task.incorrect])

    def choices(self, slots: Sequence[str], used: Mapping[str, set[int]]) -> list[tuple[str, list[int]]]:
        """For every slot, the words that it may take, apart from those that are used."""
        lists = {slot: self.task.slots[slot].words for slot in slots}
        sizes = {name: len(next(iter(self.words[name].values()))) for name in lists.values()}
        return [(slot, [i for i in range(sizes[name]) if i not in used.get(name, ())]) for slot, name in lists.items()]

    def draws(self, slots: Sequence[str], rng: random.Random, used: Mapping[str, set[int]]) -> tuple[int, Iterator[dict[str, int]]]:
        """How many ways there are to fill the slots, those of one list with different words; and all of them in random order."""
        choices = self.choices(slots, used)
        radix: list[int] = []
        for i, (slot, free) in enumerate(choices):
            taken = sum(self.task.slots[other].words == self.task.slots[slot].words for other, _ in choices[:i])
            radix.append(max(0, len(free) - taken))
        count = math.prod(radix)
        return count, (self._draw(number, choices, radix) for number in shuffled(count, rng))

    def _draw(self, number: int, choices: Sequence[tuple[str, list[int]]], radix: Sequence[int]) -> dict[str, int]:
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
    kinds = ((i, order, case) for i in range(len(task.templates)) for order in task.orders for case in task.cases)
    return [Form(task, vocab.words, *kind, vocab.years) for kind in kinds]


def corrupted(form: Form, rule: Counterfactual, drawn: Mapping[str, int], rng: random.Random) -> Iterator[str]:
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


def draw(task: TaskFile, encoder: Encoder, *, counterfactual: str, seed: int) -> tuple[int, Vocabulary, Iterator[Example]]:
    """How many prompts there may be at most, the words in use, and the examples in random order, round-robin over the templates."""
    rule = task.counterfactuals[counterfactual]
    vocab = vocabulary(task, encoder)
    _check_enough(task, vocab, rule)
    # Two streams: the clean prompts are the same for every counterfactual. A text as seed, since Random(-1) is Random(1).
    rng, again = random.Random(f"{seed}"), random.Random(f"{seed} {counterfactual}")
    everything = forms(task, vocab)
    rng.shuffle(everything)
    streams = [(form, *form.draws(form.needed, rng, {})) for form in everything]
    rows = _rows(task, encoder, rule, deque((form, draws) for form, _, draws in streams), again)
    return sum(count for _, count, _ in streams), vocab, rows


def _rows(
    task: TaskFile, encoder: Encoder, rule: Counterfactual, streams: deque[tuple[Form, Iterator[dict[str, int]]]], rng: random.Random
) -> Iterator[Example]:
    seen: set[str] = set()
    unpaired = 0
    while streams:
        form, draws = streams.popleft()
        drawn = next(draws, None)
        if drawn is None:
            continue
        streams.append((form, draws))
        clean = form.prompt(drawn, {})
        row = _pair(form, encoder, rule, drawn, clean, rng, last_try=unpaired == CLEAN_TRIES)
        unpaired = unpaired + 1 if row is None else 0
        if row is not None and clean not in seen:
            seen.add(clean)
            yield encoder.example(replace(row, where=f"task {task.name}, row {len(seen)}"))


def _pair(
    form: Form, encoder: Encoder, rule: Counterfactual, drawn: Mapping[str, int], clean: str, rng: random.Random, *, last_try: bool
) -> Row | None:
    """The clean prompt with a counterfactual as long as it.

    None where fresh words give none. One that could not be otherwise, or the last try, stays unequal: `Encoder.example` tells of it.
    """
    length, others = len(encoder.ids(clean)), list[str]()
    for other in islice(corrupted(form, rule, drawn, rng), FRESH_TRIES):
        others.append(other)
        if len(encoder.ids(other)) == length:
            break
    else:
        if len(others) > 1 and not last_try:
            return None
    correct, incorrect = _answers(form, drawn)
    return Row("", clean, others[-1], correct, incorrect, form.task.position, form.id, form.ends(drawn), form.variables(drawn))


def _answers(form: Form, drawn: Mapping[str, int]) -> tuple[tuple[str | int, ...], tuple[str | int, ...]]:
    task = form.task
    if form.years is not None:  # every later one against the others
        return form.years.sides(*(form.words[YEARS][column][drawn["start"]] for column in ("century", "year")))
    correct, incorrect = (tuple(form.fill(text, drawn, {}) for text in side) for side in (task.correct, task.incorrect))
    return correct, incorrect


def _check_enough(task: TaskFile, vocab: Vocabulary, rule: Counterfactual) -> None:
    """Enough words are left for the slots of a prompt and for those that its counterfactual draws anew."""
    fresh = [slot for slot in rule.redraw if slot in task.slots]
    for name, columns in vocab.words.items():
        drawn = [slot for slot in task.slots if task.slots[slot].words == name and task.slots[slot].repeats is None]
        needed = len(drawn) + sum(task.slots[slot].words == name for slot in fresh)
        have = len(next(iter(columns.values())))
        if drawn and have < needed:
            kind = "tokens" if name in task.multi_token else "single tokens"
            missing = [*vocab.left_out.get(name, ())]
            listed = ", ".join([*missing[:8], "..."] if len(missing) > 8 else missing)
            told = f"task {task.name} needs {needed} from the word list {name!r}, but the tokenizer has {have} of its words as {kind}"
            raise CircuitDiscoveryError(f"{told}; left out: {listed or 'none'}")


@dataclass(frozen=True)
class Apart:
    """Draws prompts that are none of a task's: those that the same drawing gives after them."""

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
        rows = stream(self.task, self.encoder, counterfactual=self.counterfactual, seed=self.seed)
        found: list[Example] = []
        with suppress(CircuitDiscoveryError):  # a prompt without a counterfactual of its length ends the drawing, and is not needed
            found.extend(islice(rows, self.after, self.after + REFERENCE))
        return tuple(found)


def stream(task: TaskFile, encoder: Encoder, *, counterfactual: str, seed: int) -> Iterator[Example]:
    """The examples of a task in random order, by its templates or its generator."""
    if task.generator is not None and task.generator.kind == "repeated_tokens":
        return repeated_tokens(task, encoder, seed=seed)
    return draw(task, encoder, counterfactual=counterfactual, seed=seed)[2]


# ------------------------------------------------------------ repeated tokens


def repeated_tokens(task: TaskFile, encoder: Encoder, *, seed: int) -> Iterator[Example]:
    """Random tokens that repeat themselves; the answer is what followed the last token the time before.

    With period p, the first p tokens are all different and the corrupted prompt has p others in their place.
    """
    assert task.generator is not None
    (length,), periods = task.generator.options["length"], task.generator.options["periods"]
    rng, start = random.Random(f"{seed}"), encoder.ids("")
    special = {*encoder.tokenizer.all_special_ids}
    tokens = [i for i in range(len(encoder.tokenizer)) if i not in special]
    if len(tokens) < 2 * max(periods):
        raise CircuitDiscoveryError(f"task {task.name} needs {2 * max(periods)} tokens, but the tokenizer has {len(tokens)}")
    where = f"task {task.name}"
    while True:
        period = rng.choice(periods)
        drawn = rng.sample(tokens, 2 * period)
        first, fresh = drawn[:period], drawn[period:]
        rest = first[: length - period]
        answer = first[length - period]
        clean, other = (*start, *first, *rest), (*start, *fresh, *rest)
        wrong = tuple(token for token in first if token != answer)
        position = resolve_position(task.position, len(clean), where)
        decode = encoder.tokenizer.decode
        previous = len(clean) - 1 - period
        positions = {"previous": previous, "next": previous + 1}
        variables = {"token": decode([clean[-1]]), "answer": decode([answer]), "period": str(period)}
        yield Example(clean, other, (answer,), wrong, position, periods.index(period), decode(clean), positions, variables)
