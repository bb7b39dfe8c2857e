"""What a generator gives: whole prompts, or words with their answers for the templates of a task file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from circuitdiscovery.task.example import Example
from circuitdiscovery.task.taskfile import Ref, Text


@dataclass(frozen=True)
class GeneratedWords:
    """Words made for one tokenizer, and the answers to a prompt with one of them.

    Args:
        columns: the words, in columns of one length.
        answers: (the number of a word) -> (its correct answers, its incorrect ones), as tokens.
        cut: how many characters at the end of a filled template belong to the answer.
        back: by column, how many characters before the end of a word its named position lies; absent: 0.
    """

    columns: Mapping[str, Sequence[str]]
    answers: Callable[[int], tuple[tuple[int, ...], tuple[int, ...]]]
    cut: int = 0
    back: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class PromptGenerator:
    """One kind of prompts. It makes either whole prompts or words for the file's templates.

    Args:
        options: the fields of [generator] beside its kind. Each is a whole number or a list of them, and
            reaches the functions below by its name, as a tuple.
        slot: the name of what it draws; a counterfactual may redraw it.
        prompts: (task, encoder, counterfactual, seed, **options) -> examples in random order.
        words: (task, encoder, **options) -> words; templates refer to a column by its name.
        columns: the columns of these words.
        check: (**options) -> None, or (the option that is wrong, a message that begins with "must").
    """

    options: tuple[str, ...]
    slot: str
    prompts: Callable[..., Iterator[Example]] | None = None
    words: Callable[..., GeneratedWords] | None = None
    columns: tuple[str, ...] = ()
    check: Callable[..., tuple[str, str] | None] = lambda **_: None

    @property
    def aliases(self) -> dict[str, Text]:
        """The names that templates may use for its columns."""
        return {name: Text((Ref(self.slot, name),)) for name in self.columns}
