"""Values of an explanation's file, to JSON and from it, each checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Self

import numpy as np

from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.files.fields import exactly, typed
from circuitdiscovery.measure.estimates import Estimate

_DIGITS = 6  # significant ones in a file: what is beyond differs from machine to machine

Pairs = tuple[tuple[str, float], ...]
Edges = tuple[tuple[str, float | None], ...]


def as_json(value: Any) -> Any:
    """A value as JSON has it, numbers to six significant digits; null for one that is not a number."""
    if type(value) is float:  # most of them are
        return rounded(value) if value == value else None
    if isinstance(value, Estimate):
        return {name: None if each is None else rounded(each) for name, each in value.to_dict().items()}
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: as_json(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): as_json(each) for key, each in value.items()}
    if isinstance(value, np.ndarray):
        return as_json(tuple(value.tolist()))
    if isinstance(value, tuple | list):
        return [as_json(each) for each in value]
    return rounded(value) if isinstance(value, float) else value


def rounded(value: float) -> float:
    return float(f"{float(value):.{_DIGITS}g}")


@dataclass(frozen=True)
class Reader:
    """Reads parts of one object in a file; an error names the part by its field.

    Args:
        where: the file.
        field: where in it the object stands.
    """

    where: str
    field: str

    def part(self, name: str, index: int) -> Self:
        return type(self)(self.where, f"{self.field}.{name}.{index}")

    def wrong(self, name: str) -> CircuitDiscoveryError:
        return CircuitDiscoveryError(
            f"{self.where}: field '{self.field}.{name}' is not as an explanation has it"
        )

    def text(self, name: str, value: Any) -> str:
        return typed(value, str, self.where, f"{self.field}.{name}")

    def number(self, name: str, value: Any) -> float:
        return float(typed(value, float, self.where, f"{self.field}.{name}"))

    def items(self, data: Any, name: str) -> list[Any]:
        return typed(data[name], list, self.where, f"{self.field}.{name}")

    def rows(self, data: Any, name: str, width: int) -> list[list[Any]]:
        rows = self.items(data, name)
        if not all(isinstance(row, list) and len(row) == width for row in rows):
            raise self.wrong(name)
        return rows

    def pairs(self, data: Any, name: str) -> Pairs:
        return tuple(
            (self.text(name, text), self.number(name, value)) for text, value in self.rows(data, name, 2)
        )

    def edges(self, data: Any, name: str) -> Edges:
        rows = self.rows(data, name, 2)
        return tuple(
            (self.text(name, edge), None if score is None else self.number(name, score))
            for edge, score in rows
        )

    def estimate(self, data: Any, name: str) -> Estimate:
        exactly(data[name], ("value", "low", "high"), self.where, f"{self.field}.{name}")
        if data[name]["low"] is None and data[name]["high"] is None:  # of one example
            return Estimate(self.number(f"{name}.value", data[name]["value"]))
        return Estimate(
            *(self.number(f"{name}.{part}", data[name][part]) for part in ("value", "low", "high"))
        )
