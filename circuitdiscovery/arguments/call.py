"""One call of a public function, as the checks of its arguments see it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from circuitdiscovery.errors import ArgumentError, shown


@dataclass
class Call:
    """One call: the given arguments by name, and in `made` the checked ones that the function gets."""

    function: str
    given: dict[str, Any]
    made: dict[str, Any]
    stack: ExitStack

    def model(self) -> Any:
        """The loaded model among the arguments; None if there is none."""
        return self.made.get("model")

    def graph(self) -> Any:
        """The graph of edges that are given by name: the model's, or that of another argument."""
        found = [self.made.get("graph"), getattr(self.model(), "graph", None)]
        found += [getattr(value, "graph", None) for value in (*self.made.values(), *self.given.values())]
        return next((graph for graph in found if graph is not None), None)


Check = Callable[[Call, str, Any], Any]


def refused(call: Call, name: str, valid: str, value: Any) -> ArgumentError:
    """The error that says what an argument must be."""
    return ArgumentError(f"{call.function}: {name} must be {valid}, not {shown(value)}")
