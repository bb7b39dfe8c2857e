"""An example of a task: a clean prompt, the corrupted one and their answers, as token ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.files.fields import has_control_characters

END = "END"  # the name of the answer's position


@dataclass(frozen=True)
class Example:
    """One pair of prompts of equal length, as token ids.

    Args:
        clean, corrupted: the prompts.
        correct, incorrect: the answers, none in both; at least one is correct, and one incorrect where the
            metric compares the two.
        position: where the answer is read, counted from 0.
        template: rows with the same number have their words at the same place (up
            to the words' own lengths); None: unknown.
        text: the clean prompt, empty where the task came as tokens.
        positions: where the clean prompt's named words stand (their last tokens),
            such as IO; END, the answer's position, always.
        variables: what the clean prompt was made of, such as IO = "Mary"; empty where it is unknown.
    """

    clean: tuple[int, ...]
    corrupted: tuple[int, ...]
    correct: tuple[int, ...]
    incorrect: tuple[int, ...]
    position: int
    template: int | None = None
    text: str = ""
    positions: Mapping[str, int] = field(default_factory=dict, hash=False)
    variables: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name in self.positions:
            if "->" in name or has_control_characters(name):
                raise CircuitDiscoveryError(
                    "positions: a name is without '->', which edges have, and without control characters, "
                    f"such as 'S2', not {name!r}"
                )
        object.__setattr__(self, "positions", {**self.positions, END: self.position})


def resolve_position(position: int | None, length: int, where: str) -> int:
    """The position counted from 0; None is the last, negative ones count from the end."""
    if position is None:
        return length - 1
    if not -length <= position < length:
        raise CircuitDiscoveryError(
            f"{where}: position {position} is outside of the prompt's {length} tokens"
        )
    return position % length
