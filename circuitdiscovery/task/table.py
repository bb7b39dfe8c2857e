"""A task as a table of prompts: CSV or JSONL, parsed and checked without a tokenizer.

The columns are clean, corrupted, correct, incorrect and, where the answer
is not read at the last token, position.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from circuitdiscovery.errors import CircuitDiscoveryError, unknown
from circuitdiscovery.files.disk import read_text

_NAMED = 5  # bad rows, of which an error says what is wrong
COLUMNS = ("clean", "corrupted", "correct", "incorrect", "position")


@dataclass(frozen=True)
class Row:
    """One pair of prompts as text. An answer is a text that continues the clean prompt, or a
    token id; `where` names the row in errors.

    `ends` are where the clean prompt's named words end, in characters;
    `variables` are what the prompt was made of.
    """

    where: str
    clean: str
    corrupted: str
    correct: tuple[str | int, ...]
    incorrect: tuple[str | int, ...]
    position: int | None = None
    template: int | None = None
    ends: Mapping[str, int] = field(default_factory=dict, hash=False)
    variables: Mapping[str, str] = field(default_factory=dict, hash=False)
    number: int = 0  # in its table, from 1


@dataclass(frozen=True)
class Table:
    """A task as a CSV or JSONL file gives it, or rows that are at hand.

    `bad` are the rows that cannot be used: their numbers, and why.
    """

    name: str
    rows: tuple[Row, ...]
    bad: tuple[tuple[int, str], ...] = ()
    where: str = ""

    def refuse(self, bad: Iterable[tuple[int, str]]) -> None:
        """Raise an error that counts the bad rows and names the first five, where there are any."""
        found = [message for _, message in sorted(bad)]
        if len(found) == 1:
            raise CircuitDiscoveryError(found[0])
        if found:
            told = "; ".join(message.removeprefix(f"{self.where}, ") for message in found[:_NAMED])
            more = f"; and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
            count = f"{len(found)} of {len(self.rows) + len(self.bad)} rows cannot be used"
            how = "--skip-bad, in Python skip_bad=True, goes on without them"
            raise CircuitDiscoveryError(f"{self.where}: {count} ({how}): {told}{more}")


def read_table(path: Path, *, skip_bad: bool = False) -> Table:
    """The table in a .csv or .jsonl file; errors name its line or row, and the column.

    With `skip_bad` a row that cannot be used stands in the table's `bad`, and is not an error.
    """
    return _table(
        path.stem,
        str(path),
        _read_csv(path) if path.suffix.lower() == ".csv" else _read_jsonl(path),
        skip_bad,
    )


def table_of(records: Iterable[Mapping[str, Any]], name: str, *, skip_bad: bool = False) -> Table:
    """The table of rows at hand, each a mapping from the columns to its values."""

    def read(number: int, record: Any) -> Row | CircuitDiscoveryError:
        where = f"{name}, row {number}"
        try:
            if not isinstance(record, Mapping):
                raise CircuitDiscoveryError(f"{where}: must be an object, not {kind_of(record)}")
            value = {
                str(column): each.tolist() if hasattr(each, "tolist") else each
                for column, each in record.items()
            }
            _check_columns(where, list(value))
            position = value.get("position")
            if isinstance(position, float):  # a column with gaps
                value["position"] = (
                    None if position != position else int(position) if position.is_integer() else position
                )
            return replace(_row(where, value), number=number)
        except CircuitDiscoveryError as error:
            return error

    return _table(name, name, (read(number, record) for number, record in enumerate(records, 1)), skip_bad)


def _table(name: str, where: str, found: Iterable[Row | CircuitDiscoveryError], skip_bad: bool) -> Table:
    everything = list(found)
    rows = tuple(each for each in everything if isinstance(each, Row))
    bad = tuple((i, str(each)) for i, each in enumerate(everything, 1) if not isinstance(each, Row))
    if not everything:
        raise CircuitDiscoveryError(f"{where} has no rows")
    table = Table(name, rows, bad, where)
    if not (skip_bad and rows):
        table.refuse(bad)
    return table


def _read_csv(path: Path) -> Iterator[Row | CircuitDiscoveryError]:
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        _check_columns(f"{path}, line 1", list(reader.fieldnames or ()))
        for number, cells in enumerate(reader, 1):
            where = f"{path}, row {number}"
            try:
                if None in cells or None in cells.values():
                    raise CircuitDiscoveryError(
                        f"{where}: has {'more' if None in cells else 'fewer'} cells than the header"
                    )
                row = _row(where, {**cells, "position": _cell_position(where, cells.get("position"))})
                yield replace(row, number=number)
            except CircuitDiscoveryError as error:
                yield error
    except csv.Error as error:
        raise CircuitDiscoveryError(f"{path}, line {reader.line_num}: not CSV: {error}") from None


def _cell_position(where: str, cell: str | None) -> int | None:
    if cell is None or not cell.strip():
        return None
    try:
        return int(cell)
    except ValueError:
        raise CircuitDiscoveryError(f"{where}: position must be a whole number, not {cell[:40]!r}") from None


def _read_jsonl(path: Path) -> Iterator[Row | CircuitDiscoveryError]:
    lines = [(number, line) for number, line in enumerate(read_text(path).split("\n"), 1) if line.strip()]
    for row, (number, line) in enumerate(lines, 1):
        where = f"{path}, row {row}" + ("" if row == number else f" (line {number})")
        try:
            value = _json_line(f"{path}, line {number}", line)
            if not isinstance(value, dict):
                raise CircuitDiscoveryError(f"{where}: must be an object, not {kind_of(value)}")
            _check_columns(where, list(value))
            yield replace(_row(where, value), number=row)
        except CircuitDiscoveryError as error:
            yield error


def _json_line(where: str, line: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> Any:
        names = [name for name, _ in pairs]
        _check_once(where, names)
        return dict(pairs)

    try:
        return json.loads(line, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise CircuitDiscoveryError(f"{where}, column {error.colno}: not JSON: {error.msg}") from None
    except CircuitDiscoveryError:
        raise
    except (RecursionError, MemoryError):
        raise CircuitDiscoveryError(f"{where}: nested too deeply") from None
    except ValueError:  # a number of thousands of digits
        raise CircuitDiscoveryError(f"{where}: a number is too long") from None


def _check_once(where: str, names: list[str]) -> None:
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise CircuitDiscoveryError(f"{where}: {twice[0]!r} stands twice")


def _check_columns(where: str, names: list[str]) -> None:
    _check_once(where, names)
    for name in names:
        if name not in COLUMNS:
            raise CircuitDiscoveryError(f"{where}: {unknown('column', name, COLUMNS)}")
    for name in COLUMNS[:4]:
        if name not in names:
            raise CircuitDiscoveryError(f"{where}: the column {name!r} is missing")


def _row(where: str, value: Mapping[str, Any]) -> Row:
    position = value.get("position")
    if position is not None and type(position) is not int:
        raise CircuitDiscoveryError(f"{where}: position must be a whole number, not {kind_of(position)}")
    clean, corrupted = (_prompt(where, name, value[name]) for name in ("clean", "corrupted"))
    correct, incorrect = (_answers(where, name, value[name]) for name in ("correct", "incorrect"))
    return Row(where, clean, corrupted, correct, incorrect, position)


def _prompt(where: str, name: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise CircuitDiscoveryError(f"{where}: {name} must be a text, not {kind_of(value)}")
    return _whole(where, name, value)


def _whole(where: str, name: str, text: str) -> str:
    """A text without half a surrogate pair, which JSON can say but no file or tokenizer takes."""
    half = next((character for character in text if "\ud800" <= character <= "\udfff"), None)
    if half is not None:
        raise CircuitDiscoveryError(f"{where}: {name} has {half!a}, which is half a character: not text")
    return text


def _answers(where: str, name: str, value: Any) -> tuple[str, ...]:
    answers = value.split("|") if isinstance(value, str) else value
    if (
        not isinstance(answers, list | tuple)
        or not answers
        or not all(isinstance(answer, str) and answer for answer in answers)
    ):
        raise CircuitDiscoveryError(
            f"{where}: {name} must be an answer or several, none of them empty, not {kind_of(value)}"
        )
    return tuple(_whole(where, name, answer) for answer in answers)


def kind_of(value: Any) -> str:
    """A value's type in a reader's words; never its repr, which may be absurdly long or deep."""
    if isinstance(value, float) and value != value:
        return "NaN"
    if isinstance(value, str):
        return repr(value[:40])
    names = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        list: "a list",
        dict: "a table",
        type(None): "nothing",
    }
    return names.get(type(value), type(value).__name__)
