"""Years, in whatever way a tokenizer writes them; the answer is every year that is later.

The last two digits may be one token (17|32), as Hanna et al. 2023 have it. Else the answer is the tens digit
alone, as one token (1|7|3|2) or at the end of one (173|2): that token is all that a model can be asked for at
once. Years of the same decade are then neither correct nor incorrect, since the tens digit does not say which
of them is later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.task.generators.generator import GeneratedWords, PromptGenerator
from circuitdiscovery.task.taskfile import Ref
from circuitdiscovery.task.tokenization import Encoder

if TYPE_CHECKING:
    from circuitdiscovery.task.taskfile import TaskFile

DECADES = range(1, 9)  # of a year whose answer is the tens digit: one decade is earlier, one is later

Date = tuple[str, str]  # century, year: ("17", "32")


def years(
    task: TaskFile, encoder: Encoder, *, centuries: tuple[int, ...], years: tuple[int, ...]
) -> GeneratedWords:
    """The years that a task may ask for.

    Raises:
        CircuitDiscoveryError: the tokenizer writes years in no such way.
    """
    names = [str(century) for century in centuries]
    span = range(years[0], years[1] + 1)
    found = _two_digits(encoder, names, span)
    # the prompt ends after the century, or, where that belongs to the answer's token, before it
    if found is None and all(text.parts[-1] == Ref("century") for text in task.templates):
        found = _tens(encoder, names, span, cut=0) or _tens(encoder, names, span, cut=2)
    if found is None:
        raise CircuitDiscoveryError(
            f"task {task.name} needs years that end in a token of two digits (17|32), in two digits on "
            "their own (1|7|3|2) or in a token of three and a digit (173|2), but the tokenizer writes "
            f"' 1732' as {encoder.show(encoder.ids(' 1732'))}"
        )
    return found


def _two_digits(encoder: Encoder, centuries: Sequence[str], span: range) -> GeneratedWords | None:
    """Years that are two two-digit tokens, apart from the first and last such year of a century (Hanna et al.
    2023, section 2).
    """
    numbers = [f"{number:02d}" for number in range(100)]
    digits = encoder.tokenizer.convert_tokens_to_ids(numbers)
    if None in digits or encoder.tokenizer.convert_ids_to_tokens(digits) != numbers:
        return None
    dates: list[Date] = []
    for century in centuries:
        start = encoder.ids(f"year {century}")
        whole = [
            year for year in range(100) if encoder.ids(f"year {century}{year:02d}") == (*start, digits[year])
        ]
        dates += [(century, f"{year:02d}") for year in whole[1:-1] if year in span]
    return _generated(dates, dict.fromkeys(centuries, tuple(digits)), digits=2, cut=0)


def _tens(encoder: Encoder, centuries: Sequence[str], span: range, *, cut: int) -> GeneratedWords | None:
    """Years of which the token after the prompt, which lacks its last `cut` characters, tells the tens digit
    and no more.
    """
    answers = {century: _following(encoder, century, cut) for century in centuries}
    known = {century: tokens for century, tokens in answers.items() if tokens is not None}
    dates = [(century, f"{year:02d}") for century in known for year in span if year // 10 in DECADES]
    return _generated(dates, known, digits=1, cut=cut)


def _generated(
    dates: Sequence[Date], tokens: Mapping[str, tuple[int, ...]], *, digits: int, cut: int
) -> GeneratedWords | None:
    """The dates with their answers: of a century's tokens, by the value of the first `digits` digits of the
    year, all that are later against all that are not.
    """

    def answers(row: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        century, year = dates[row]
        value = int(year[:digits])
        return tokens[century][value + 1 :], tokens[century][: value + (digits == 2)]

    columns = {"century": [century for century, _ in dates], "year": [year for _, year in dates]}
    return GeneratedWords(columns, answers, cut, {"year": 2 - digits}) if dates else None


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


def _check(*, centuries: tuple[int, ...], years: tuple[int, ...]) -> tuple[str, str] | None:
    if not all(10 <= century <= 99 for century in centuries) or len(set(centuries)) < len(centuries):
        return "centuries", "must hold different numbers from 10 to 99"
    if len(years) != 2 or not 0 <= years[0] <= years[1] <= 99:
        return "years", "must be the first and the last two digits, from 0 to 99"
    return None


GENERATOR = PromptGenerator(
    ("centuries", "years"), "start", words=years, columns=("century", "year"), check=_check
)
