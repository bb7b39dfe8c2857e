"""An option of a search method, as the command line takes it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, cast

from circuitdiscovery.errors import CircuitDiscoveryError, unknown
from circuitdiscovery.files.disk import circuit_place
from circuitdiscovery.files.text import finite, whole

MOST = 2**63 - 1  # what numpy and torch hold


@dataclass(frozen=True)
class Option:
    """An option of some methods, as the command line takes it.

    Args:
        kind: `count` (1 or more), `whole` (0 or more), `number`, `switch`, `circuits` (files, runs' folders
            or shipped names; the option is repeatable), or the names to choose from.
        words: what it does.
        least: of a number.
        needs: another option, without which it does nothing.
        at_most: whether a search may do with less, which its circuit says.
    """

    kind: Literal["count", "whole", "number", "switch", "circuits"] | tuple[str, ...]
    words: str
    least: float = -math.inf
    needs: str | None = None
    at_most: bool = False

    def read(self, text: str) -> Any:
        """The value that a text stands for; of circuits one of several.

        Raises:
            CircuitDiscoveryError: another kind of value.

        >>> Option("count", "how many").read("5"), Option(("midpoint", "left"), "where").read("left")
        (5, 'left')
        """
        if isinstance(self.kind, tuple):
            if text not in self.kind:
                raise unknown("value", text, self.kind)
            return text
        if self.kind == "number":
            if (number := finite(text)) < self.least:
                raise CircuitDiscoveryError(f"{text[:40]!r} is less than {self.least:g}")
            return number
        if self.kind == "circuits":
            return circuit_place(text)
        return whole(text, 1 if self.kind == "count" else 0)

    def holds(self, value: Any) -> bool:
        """Whether a value is one of this option's."""
        if self.kind == "switch":
            return isinstance(value, bool)
        if isinstance(self.kind, tuple):
            return value in self.kind
        if self.kind == "circuits":
            return isinstance(value, list) and all(isinstance(each, str) for each in cast(list[Any], value))
        real = isinstance(value, int | float) and not isinstance(value, bool)
        if self.kind == "number":
            return real and self.least <= value and abs(value) < MOST
        return real and isinstance(value, int) and (self.kind == "count") <= value <= MOST

    def may_be(self, asked: Any, said: Any) -> bool:
        """Whether a circuit can say one value of a search that was asked for another."""
        if self.kind == "circuits":  # it says their digests
            return True
        return isinstance(said, int) and said <= asked if self.at_most else said == asked
