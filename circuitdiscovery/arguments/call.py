"""One call of a public function, as its arguments' checks see it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from circuitdiscovery.errors import ArgumentError, shown


@dataclass
class Call:
    """One call: what is given, by name. `made` is what the call of the function gets."""

    function: str
    given: dict[str, Any]
    made: dict[str, Any]
    stack: ExitStack

    def model(self) -> Any:
        """The model that the call is about, loaded; None where it is about none."""
        return self.made.get("model")

    def graph(self) -> Any:
        """The graph that edges given as names are of: the model's, or another circuit's."""
        found = [self.made.get("graph"), getattr(self.model(), "graph", None)]
        found += [getattr(value, "graph", None) for value in (*self.made.values(), *self.given.values())]
        return next((graph for graph in found if graph is not None), None)


Check = Callable[[Call, str, Any], Any]


def refused(call: Call, name: str, valid: str, value: Any) -> ArgumentError:
    """The line that says what an argument must be."""
    return ArgumentError(f"{call.function}: {name} must be {valid}, not {shown(value)}")
