"""What the values that people keep have in common: a repr of a few lines,
a table in a notebook, a file, a pickle.

A class gets all of it by `class Found(Value)` under `@dataclass(frozen=True, repr=False)`.
Its file holds its fields, and is read by
their annotations: what a class adds to `to_dict` beside them are properties, which
    have to say the same when they are read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from dataclasses import field as dataclass_field
from html import escape
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Any, Literal, Self, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from circuitdiscovery.arguments import guarded
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.files.disk import ending, read_json, write_json
from circuitdiscovery.files.fields import exactly, typed

T = TypeVar("T")

LONGEST = 600  # characters of a repr: six lines of a terminal
_PART = 60
_STYLE = "text-align:left;vertical-align:top;white-space:pre-wrap"


class Value:
    """A measured thing: a frozen dataclass with `to_dict`."""

    def __repr__(self) -> str:
        return brief(self)

    def _repr_html_(self) -> str:
        return told(str(self))

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: dict(value) if isinstance(value, MappingProxyType) else value
            for name, value in self.__dict__.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON."""
        return plain(self)

    @classmethod
    def from_dict(cls, data: Any, where: str = "") -> Self:
        """What `to_dict` gave.

        Args:
            data: as JSON has it.
            where: it is from, for errors; by default the class's name.

        Raises:
            CircuitDiscoveryError: anything missing, surplus, of another type or contradictory, by field.
        """
        return read(cls, data, where or cls.__name__)

    @guarded
    def save(self, path: str | Path) -> None:
        """Write `to_dict()` as a .json file; atomically, the same value the same bytes. `load` reads it."""
        ending(path, ".json")
        write_json(path, self.to_dict())

    @classmethod
    @guarded
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote; a broken file, or one of something
        else, is an error that names it and the field.
        """
        return cls.from_dict(read_json(path), str(path))


class Reported(Value):
    """One that prints as lines, each a name and what is said of it."""

    def __str__(self) -> str:
        lines = list(self._lines())
        width = max(13, *(len(name) for name, _ in lines))
        return "\n".join(f"{name:<{width}} {value}" for name, value in lines)

    def _lines(self) -> Iterator[tuple[str, str]]:
        raise NotImplementedError


def part_in_words(part: str) -> str:
    """Which examples of a task the part "held_out" or "examples" is, as reports say it."""
    return "held-out examples" if part == "held_out" else "examples (none are held out)"


def repeated_in_words(examples: int, prompts: int) -> str:
    """A warning of intervals over examples of which several have the same prompt."""
    different = f"{prompts:,} different prompt{'s' * (prompts != 1)}"
    return f"{examples:,} examples of {different}: intervals take examples as independent, and are too narrow"


def brief(value: Any) -> str:
    """The repr of a dataclass, of at most 600 characters: what is long in it is counted.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True, repr=False)
    ... class Found(Value):
    ...     edges: int
    ...     names: tuple[str, ...]
    >>> Found(3, ("a" * 99,))
    Found(edges=3, names=<1 of str>)
    """
    parts: list[str] = []
    for part in fields(value):
        if part.repr:
            parts.append(f"{part.name}={_brief(getattr(value, part.name))}")
    name = type(value).__name__
    while len(name) + 2 + len(", ".join(parts)) > LONGEST:
        parts = [*parts[:-2], "..."]
    return f"{name}({', '.join(parts)})"


def _brief(value: Any) -> str:
    if isinstance(value, Mapping | tuple | list) and len(value) > 8:
        return _counted(value)
    text = repr(value)
    if len(text) <= _PART and "\n" not in text:
        return text
    if isinstance(value, str):
        return f"{text[: _PART - 4]}...{text[0]}"
    return _counted(value) if isinstance(value, Mapping | Sequence) else f"<{type(value).__name__}>"


def _counted(value: Mapping[Any, Any] | Sequence[Any]) -> str:
    first = next(iter(value.values() if isinstance(value, Mapping) else value))
    return f"<{len(value):,} of {type(first).__name__}>"


# -------------------------------------------------------------------- to JSON and back


_LEFT_OUT = {"written": "unless None"}


def left_out() -> Any:
    """A field that is None by default, and then is not written."""
    return dataclass_field(default=None, metadata=_LEFT_OUT)


def plain(value: Any) -> Any:
    """Dataclasses, estimates and arrays as JSON; what is not finite or has no value is null."""
    if hasattr(value, "to_dict") and not isinstance(value, Value):
        return value.to_dict()
    if is_dataclass(value):
        known = {part.name: getattr(value, part.name) for part in fields(value) if part.metadata != _LEFT_OUT}
        known |= {
            part.name: each
            for part in fields(value)
            if part.name not in known and (each := getattr(value, part.name)) is not None
        }
        return {name: plain(each) for name, each in known.items()}
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, tuple | list):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read(cls: type[T], data: Any, where: str, field: str = "") -> T:
    """A dataclass from the JSON of its fields; those with a default may be missing.

    Args:
        cls: which; its fields are of the kinds that `plain` writes.
        data: as JSON has it.
        where, field: the file, and where in it, for errors.

    Raises:
        CircuitDiscoveryError: a field that is missing, surplus or of another
            type, or a property that says something else.
    """
    hints = get_type_hints(cls)
    known = fields(cls)  # type: ignore[arg-type]
    parts = {part.name: part.default is MISSING and part.default_factory is MISSING for part in known}
    properties = [name for name in dir(cls) if isinstance(getattr(cls, name), property)]
    needed = [name for name, required in parts.items() if required]
    exactly(data, needed, where, field, optional=[*parts, *properties])
    found = cls(
        **{name: _read(hints[name], data[name], where, _at(field, name)) for name in parts if name in data}
    )
    for name in properties:
        if name in data and plain(getattr(found, name)) != data[name]:
            raise CircuitDiscoveryError(f"{where}: field {_at(field, name)!r} contradicts the others")
    return found


def _at(field: str, name: object) -> str:
    return f"{field}.{name}" if field else str(name)


def _read(hint: Any, data: Any, where: str, field: str) -> Any:
    """A value of an annotated kind."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        kind = next(each for each in inner if each is not type(None))
        return None if data is None else _read(kind, data, where, field)
    # such as Estimate, Graph and Circuit
    if isinstance(hint, type) and not issubclass(hint, Value) and hasattr(hint, "from_dict"):
        return hint.from_dict(data, where, field)
    if isinstance(hint, type) and is_dataclass(hint):
        return read(hint, data, where, field)
    if origin is tuple:
        rows = typed(data, list, where, field)
        kinds = inner[:1] * len(rows) if inner[-1] is Ellipsis else inner
        if len(rows) != len(kinds):
            raise CircuitDiscoveryError(
                f"{where}: field {field!r} must be a list of {len(kinds)}, not of {len(rows)}"
            )
        return tuple(
            _read(kind, each, where, _at(field, i))
            for i, (kind, each) in enumerate(zip(kinds, rows, strict=True))
        )
    if origin is Mapping:
        return {
            key: _read(inner[1], each, where, _at(field, key))
            for key, each in typed(data, dict, where, field).items()
        }
    if origin is Literal:
        if data not in inner:
            raise CircuitDiscoveryError(
                f"{where}: field {field!r} must be {' or '.join(map(repr, inner))}, not {data!r}"
            )
        return data
    if hint is np.ndarray:
        return _array(data, where, field)
    if hint is Any:
        return data
    if hint is float:  # null: one that is not finite
        return math.nan if data is None else float(typed(data, float, where, field))
    return typed(data, hint, where, field)


def _array(data: Any, where: str, field: str) -> np.ndarray:
    """An array of texts, or of numbers; its rows are of one length."""
    found = np.array(typed(data, list, where, field), dtype=object)
    if found.size and all(isinstance(each, str) for each in found.flat):
        return found.astype(str)
    return np.array([_read(float, each, where, field) for each in found.flat]).reshape(found.shape)


# ------------------------------------------------------------------- in a notebook


def table(rows: Sequence[Sequence[object]], *, head: Sequence[str] = (), note: str = "") -> str:
    """An HTML table; every text in it is escaped."""
    top = f"<tr>{''.join(_cell('th', name) for name in head)}</tr>" if head else ""
    body = "".join(f"<tr>{''.join(_cell('td', each) for each in row)}</tr>" for row in rows)
    told = f"<caption style='text-align:left'>{escape(note)}</caption>" if note else ""
    return f"<table>{told}<tbody>{top}{body}</tbody></table>"


def _cell(kind: str, value: object) -> str:
    return f"<{kind} style='{_STYLE}'>{escape(str(value))}</{kind}>"


def told(text: str) -> str:
    """A report of lines `name          what is said of it` as an HTML
    table; lines of other forms stand in one cell.
    """
    return table(list(_rows(text)))


def _rows(text: str) -> Iterator[tuple[str, ...]]:
    for line in text.splitlines():
        name, said = line[:14].strip(), line[14:]
        named = bool(name) and line[13:14] == " " and "  " not in name
        yield (name, said) if named else ("", line)
