"""A task as a TOML file declares it: templates, words, counterfactuals. tasks/README.md explains the fields.

Neither this nor the reading of it imports torch, so that the command line can refuse a broken file at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

PLAIN = ""  # the column of a word list that has only one


class Ref(NamedTuple):
    """`{name}` or `{name.column}` in a text."""

    name: str
    column: str = PLAIN


@dataclass(frozen=True)
class Text:
    """A text with references, for example ` {IO}`."""

    parts: tuple[str | Ref, ...]

    @property
    def refs(self) -> tuple[Ref, ...]:
        return tuple(part for part in self.parts if isinstance(part, Ref))

    def fill(self, value: Callable[[Ref], str]) -> str:
        """The text with every reference replaced by its value."""
        return "".join(value(part) if isinstance(part, Ref) else part for part in self.parts)


@dataclass(frozen=True)
class Slot:
    """What is drawn: a word of the list `words`; or, with `repeats`, what another slot has drawn."""

    words: str
    repeats: str | None = None


@dataclass(frozen=True)
class Counterfactual:
    """How the corrupted prompt differs: slots drawn anew, names set to a text
    of the clean prompt, the case exchanged.

    What it asks is a sentence for people, empty where the file has none.
    """

    redraw: tuple[str, ...]
    set: Mapping[str, Text]
    case: Mapping[str, str]
    asks: str = ""


@dataclass(frozen=True)
class Generator:
    """The table [generator]: a kind, which is one of `task.generators`, and its numbers."""

    kind: str
    options: Mapping[str, tuple[int, ...]]

    @property
    def word_list(self) -> str:
        """The name of the word list that its slot draws from."""
        return f"<{self.kind}>"


@dataclass(frozen=True)
class TaskFile:
    """A task as declared in TOML. Word lists are mappings from column to words,
    one column `""` where there is only one.
    """

    name: str
    version: int
    description: str
    source: str
    metric: str
    templates: tuple[Text, ...]
    correct: tuple[Text, ...]
    incorrect: tuple[Text, ...]
    words: Mapping[str, Mapping[str, tuple[str, ...]]]
    multi_token: tuple[str, ...]
    slots: Mapping[str, Slot]
    orders: Mapping[str, Mapping[str, Text]]
    cases: Mapping[str, Mapping[str, Text]]
    counterfactuals: Mapping[str, Counterfactual]
    counterfactual: str
    generator: Generator | None
    bos: bool | None
    position: int | None
    positions: Mapping[str, Ref]
