"""What the values that people keep have in common: a repr of a few lines, a table in a notebook, a file, a pickle.

A class gets all of it by `class Found(Value)` under `@dataclass(frozen=True, repr=False)` and its own `to_dict`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from html import escape
from pathlib import Path
from types import MappingProxyType
from typing import Any

from circuitdiscovery.arguments import guarded
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.files.disk import write_json

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
        return {name: dict(value) if isinstance(value, MappingProxyType) else value for name, value in self.__dict__.items()}

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON."""
        raise NotImplementedError

    @guarded
    def save(self, path: str | Path) -> None:
        """Write `to_dict()` as a .json file; atomically, the same value the same bytes."""
        if Path(path).suffix.lower() != ".json":
            raise CircuitDiscoveryError(f"{path} must end in .json")
        write_json(path, self.to_dict())


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
    """A report of lines `name          what is said of it` as an HTML table; lines of other forms stand in one cell."""
    return table(list(_rows(text)))


def _rows(text: str) -> Iterator[tuple[str, ...]]:
    for line in text.splitlines():
        name, said = line[:14].strip(), line[14:]
        named = bool(name) and line[13:14] == " " and "  " not in name
        yield (name, said) if named else ("", line)
