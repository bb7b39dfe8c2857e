"""The words that a task's slots may take in a tokenizer, and what years look like in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.task.encoder import Encoder
from circuitdiscovery.task.form import forms
from circuitdiscovery.task.taskfile import YEARS, Ref, TaskFile, Text

Words = Mapping[str, Mapping[str, Sequence[str]]]  # list -> column -> words
DECADES = range(1, 9)  # of a year whose answer is the tens digit: there is an earlier decade, and a later one


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
        """The correct answers and the incorrect ones. Of years of the same decade a tens digit
        does not say which is later: in neither.
        """
        value = int(year[: self.digits])
        answers = self.answers[century]
        return answers[value + 1 :], answers[: value + (self.digits == 2)]


@dataclass(frozen=True)
class Vocabulary:
    """The words of a task that a tokenizer has, and those that it has not, both by list; and
    how it writes years, for a task about them.
    """

    words: Words
    left_out: Mapping[str, tuple[str, ...]]
    years: Years | None = None


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
    if task.generator is None or task.generator.kind != "years":
        return Vocabulary(kept, left_out)
    years = usable_years(task, encoder)
    return Vocabulary(kept | {YEARS: years.dates}, left_out, years)


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


def usable_years(task: TaskFile, encoder: Encoder) -> Years:
    """How the tokenizer writes years: the last two digits as one token, as Hanna et al. 2023 have it; else
    the tens digit as one (1|7|3|2) or at the end of one (173|2), where that token is all that a model can be
    asked for at once.
    """
    years = (
        _two_digit_years(task, encoder)
        or _tens_of_years(task, encoder, cut=0)
        or _tens_of_years(task, encoder, cut=2)
    )
    if years is None:
        raise CircuitDiscoveryError(
            f"task {task.name} needs years that end in a token of two digits (17|32), in two digits on "
            "their own (1|7|3|2) "
            "or in a token of three and a digit (173|2), but the tokenizer writes ' 1732' as "
            f"{encoder.show(encoder.ids(' 1732'))}"
        )
    return years


def _dates(dates: Sequence[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    return {"century": tuple(century for century, _ in dates), "year": tuple(year for _, year in dates)}


def _two_digit_years(task: TaskFile, encoder: Encoder) -> Years | None:
    """Years that are two two-digit tokens; the first and last such year of a century are
    left out (Hanna et al. 2023, section 2).
    """
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
        whole = [
            year for year in range(100) if encoder.ids(f"year {century}{year:02d}") == (*start, digits[year])
        ]
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
    found = {
        str(century): _following(encoder, str(century), cut)
        for century in task.generator.options["centuries"]
    }
    answers = {century: tokens for century, tokens in found.items() if tokens is not None}
    dates = [
        (century, f"{year:02d}")
        for century in answers
        for year in range(low, high + 1)
        if year // 10 in DECADES
    ]
    return Years(_dates(dates), 1, answers, cut) if dates else None


def _following(encoder: Encoder, century: str, cut: int) -> tuple[int, ...] | None:
    """The token after the prompt for each tens digit; None where it does not depend on that digit alone."""
    start = encoder.ids(f"year {century}"[: -cut or None])
    years = [f"year {century}{year:02d}" for year in range(100)]
    after = [
        ids[len(start) :]
        for ids in map(encoder.ids, years)
        if ids[: len(start)] == start and encoder.knows(years[0], ids)
    ]
    if len(after) < 100 or not all(after):
        return None
    decades = [{ids[0] for ids in after[ten : ten + 10]} for ten in range(0, 100, 10)]
    tokens = tuple(token for decade in decades for token in decade)
    return tokens if len(tokens) == 10 == len(set(tokens)) else None
