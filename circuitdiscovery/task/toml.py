"""Reading a TOML file into a `TaskFile`; whatever is wrong is an error that names the file and the field."""

from __future__ import annotations

import string
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from circuitdiscovery.errors import CircuitDiscoveryError, unknown
from circuitdiscovery.files.disk import read_text
from circuitdiscovery.registry import GENERATORS, canonical
from circuitdiscovery.task.example import END
from circuitdiscovery.task.generators import named
from circuitdiscovery.task.references import check_references
from circuitdiscovery.task.table import kind_of
from circuitdiscovery.task.taskfile import PLAIN, Counterfactual, Generator, Ref, Slot, TaskFile, Text

T = TypeVar("T")


class _Fields:
    """A TOML table whose fields are taken one by one; what is left over in the end is an error."""

    def __init__(self, where: str, value: Any) -> None:
        if not isinstance(value, dict):
            raise CircuitDiscoveryError(f"{where} must be a table, not {kind_of(value)}")
        self.where, self.left, self.known = where, dict(value), list[str]()

    def error(self, name: str, message: str) -> CircuitDiscoveryError:
        return CircuitDiscoveryError(f"{self.where}: field {name!r} {message}")

    def take(self, name: str, kind: type[T], default: T | None = None, *, needed: bool = True) -> T:
        """The field's value; `default` where it is absent, or an error
        where that is None and the field `needed`.
        """
        self.known.append(name)
        if name not in self.left:
            if default is None and needed:
                raise self.error(name, "is missing")
            return default  # type: ignore[return-value]
        value = self.left.pop(name)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.error(
                name,
                f"must be {kind_of(kind())}, not {kind_of(value)}"
                if kind is not str
                else f"must be a text, not {kind_of(value)}",
            )
        if value in ("", [], {}):
            raise self.error(name, "is empty")
        return value

    def strings(self, name: str, default: list[str] | None = None) -> tuple[str, ...]:
        """A list of different texts; one text is a list of one."""
        if isinstance(self.left.get(name), str):
            self.left[name] = [self.left[name]]
        values: list[Any] = self.take(name, list, default)
        for value in values:
            if not isinstance(value, str) or not value:
                raise self.error(name, f"must hold texts, not {kind_of(value)}")
        if len(set(values)) < len(values):
            raise self.error(
                name, f"has {next(value for value in values if values.count(value) > 1)!r} twice"
            )
        return tuple(values)

    def texts(self, name: str, default: list[str] | None = None) -> tuple[Text, ...]:
        return tuple(self.text(name, value) for value in self.strings(name, default))

    def text(self, name: str, value: Any) -> Text:
        if not isinstance(value, str):
            raise self.error(name, f"must be a text, not {kind_of(value)}")
        try:
            pieces = list(string.Formatter().parse(value))
        except ValueError as error:
            raise self.error(name, f"has a brace that does not match in {value!r}: {error}") from None
        return Text(tuple(part for piece in pieces for part in self._parts(name, value, piece)))

    def _parts(
        self, name: str, value: str, piece: tuple[str, str | None, str | None, str | None]
    ) -> Iterator[str | Ref]:
        literal, field, spec, conversion = piece
        if literal:
            yield literal
        if field is not None:
            slot, _, column = field.partition(".")
            if (
                spec
                or conversion
                or not slot.isidentifier()
                or not (column.isidentifier() or "." not in field)
            ):
                raise self.error(
                    name, f"has {{{field}}} in {value!r}; a reference is {{name}} or {{name.column}}"
                )
            yield Ref(slot, column)

    def tables(self, name: str) -> Iterator[tuple[str, _Fields]]:
        """The tables below a field, each with its name."""
        for key, value in self.take(name, dict, {}).items():
            yield key, _Fields(f"{self.where}: [{name}.{key}]", value)

    def done(self) -> None:
        for name in self.left:
            raise CircuitDiscoveryError(f"{self.where}: {unknown('field', name, self.known)}")


def read_toml(path: Path) -> TaskFile:
    """The task that a file declares."""
    try:
        value = tomllib.loads(read_text(path).replace("\r\n", "\n"))
    except tomllib.TOMLDecodeError as error:
        raise CircuitDiscoveryError(f"{path}: not TOML: {error}") from None
    except (RecursionError, MemoryError):
        raise CircuitDiscoveryError(f"{path}: nested too deeply") from None
    except CircuitDiscoveryError:
        raise
    except ValueError as error:  # a number of thousands of digits, a date that does not exist
        raise CircuitDiscoveryError(f"{path}: not TOML: {error}") from None
    task = _task(path.stem, _Fields(str(path), value))
    check_references(str(path), task)
    return task


def _task(name: str, fields: _Fields) -> TaskFile:
    generator = _generator(fields)
    kind = named(generator.kind) if generator else None
    words = dict(_word_lists(fields))
    counterfactuals = {key: _counterfactual(table) for key, table in fields.tables("counterfactuals")}
    if not counterfactuals:
        raise fields.error("counterfactuals", "is missing: a task needs at least one")
    task = TaskFile(
        name=name,
        version=fields.take("version", int, 1),
        description=fields.take("description", str),
        source=fields.take("source", str, needed=False) or "",
        metric=_metric(fields),
        templates=() if kind and kind.prompts else fields.texts("templates"),
        correct=() if kind else fields.texts("correct"),
        incorrect=() if kind else fields.texts("incorrect"),
        words=words,
        multi_token=fields.strings("multi_token", []),
        slots=_slots(fields, words) | ({kind.slot: Slot(generator.word_list)} if generator and kind else {}),
        orders=_aliases(fields, "orders"),
        cases=_aliases(fields, "cases"),
        counterfactuals=counterfactuals,
        counterfactual=fields.take("counterfactual", str, next(iter(counterfactuals))),
        generator=generator,
        bos=fields.take("bos", bool, needed=False),
        position=fields.take("position", int, needed=False),
        positions=_named_positions(fields),
    )
    fields.done()
    return task


def _metric(fields: _Fields) -> str:
    try:
        return canonical("metric", fields.take("metric", str, "logit_diff"))
    except CircuitDiscoveryError as error:
        raise CircuitDiscoveryError(
            str(error) if str(error).startswith(fields.where) else f"{fields.where}: {error}"
        ) from None


def _word_lists(fields: _Fields) -> Iterator[tuple[str, Mapping[str, tuple[str, ...]]]]:
    lists = _Fields(f"{fields.where}: [words]", fields.take("words", dict, {}))
    for name, value in list(lists.left.items()):
        if not isinstance(value, dict):
            yield name, {PLAIN: lists.strings(name)}
            continue
        table = _Fields(f"{lists.where}: [{name}]", value)
        columns = {column: table.strings(column) for column in value}
        if len({len(column) for column in columns.values()}) != 1:
            raise lists.error(
                name,
                "needs columns of the same length: "
                + ", ".join(f"{c} has {len(w)}" for c, w in columns.items()),
            )
        yield name, columns


def _slots(fields: _Fields, words: Mapping[str, Any]) -> dict[str, Slot]:
    table = _Fields(f"{fields.where}: [slots]", fields.take("slots", dict, {}))
    texts = {name: table.take(name, str) for name in list(table.left)}
    slots = {name: Slot(value) for name, value in texts.items() if "{" not in value}
    for name, slot in slots.items():
        if slot.words not in words:
            raise table.error(name, f"names no word list: {unknown('list', slot.words, words)}")
    for name in texts.keys() - slots.keys():
        refs = table.text(name, texts[name]).parts
        if (
            len(refs) != 1
            or not isinstance(refs[0], Ref)
            or refs[0].column
            or refs[0].name not in slots
            or texts[refs[0].name][0] == "{"
        ):
            raise table.error(
                name, f"must be a word list or a slot that draws from one, in braces, not {texts[name]!r}"
            )
    repeats = {name: texts[name].strip("{}") for name in texts if name not in slots}
    return {
        name: Slot(slots[repeats[name]].words, repeats[name]) if name in repeats else slots[name]
        for name in texts
    }


def _aliases(fields: _Fields, name: str) -> dict[str, dict[str, Text]]:
    tables = {
        key: {alias: table.text(alias, value) for alias, value in table.left.items()}
        for key, table in fields.tables(name)
    }
    for key, table in tables.items():
        missing = set(next(iter(tables.values()))) ^ set(table)
        if missing:
            raise fields.error(
                name,
                f"must give the same names everywhere, but {sorted(missing)[0]!r} is not in all, see {key!r}",
            )
    return tables or {"": {}}


def _named_positions(fields: _Fields) -> dict[str, Ref]:
    table = _Fields(f"{fields.where}: [positions]", fields.take("positions", dict, {}))
    texts = {name: table.text(name, value) for name, value in table.left.items()}
    for name, text in texts.items():
        if name == END:
            raise table.error(name, "is the answer's position, which has that name already")
        if len(text.parts) != 1 or not text.refs:
            raise table.error(
                name, f"must be one name in braces, as it stands in the templates, not {table.left[name]!r}"
            )
    return {name: text.refs[0] for name, text in texts.items()}


def _counterfactual(fields: _Fields) -> Counterfactual:
    sets = _Fields(f"{fields.where}: set", fields.take("set", dict, {}))
    cases = _Fields(f"{fields.where}: case", fields.take("case", dict, {}))
    texts = {name: sets.text(name, value) for name, value in sets.left.items()}
    exchanged = {name: cases.take(name, str) for name in list(cases.left)}
    result = Counterfactual(
        fields.strings("redraw", []), texts, exchanged, fields.take("asks", str, needed=False) or ""
    )
    fields.done()
    if not (result.redraw or result.set or result.case):
        raise CircuitDiscoveryError(f"{fields.where} changes nothing: give redraw, set or case")
    return result


def _generator(fields: _Fields) -> Generator | None:
    if "generator" not in fields.left:
        fields.known.append("generator")
        return None
    table = _Fields(f"{fields.where}: [generator]", fields.take("generator", dict))
    kind = table.take("kind", str)
    if kind not in GENERATORS:
        raise CircuitDiscoveryError(f"{table.where}: {unknown('kind', kind, GENERATORS)}")
    options = {name: _numbers(table, name) for name in named(kind).options}
    table.done()
    wrong = named(kind).check(**options)
    if wrong:
        raise table.error(*wrong)
    return Generator(kind, options)


def _numbers(fields: _Fields, name: str) -> tuple[int, ...]:
    if isinstance(fields.left.get(name), int):
        return (fields.take(name, int),)
    values: list[Any] = fields.take(name, list)
    for value in values:
        if type(value) is not int:
            raise fields.error(name, f"must hold whole numbers, not {kind_of(value)}")
    return tuple(values)
