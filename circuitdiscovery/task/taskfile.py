"""A task as it is written down: a TOML file of templates and words, or a table of
prompts; parsed and checked without a tokenizer.

Nothing here imports torch, so that the command line can refuse a broken file at
once. tasks/README.md explains the fields.
"""

from __future__ import annotations

import os
import string
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from circuitdiscovery.errors import CircuitDiscoveryError, unknown
from circuitdiscovery.files.disk import data_folder, read_text
from circuitdiscovery.registry import canonical
from circuitdiscovery.task.table import Table, kind_of, read_table

if TYPE_CHECKING:
    from circuitdiscovery.task.saved import SavedTask

T = TypeVar("T")
SUFFIXES = (".toml", ".csv", ".jsonl", ".json")
PLAIN = ""  # the column of a word list that has only one
END = "END"  # the name of the answer's position
YEARS = "<years>"  # the word list that the generator of years makes, with the columns century and year
GENERATORS = {"years": ("centuries", "years"), "repeated_tokens": ("length", "periods")}


# ------------------------------------------------------------------ the values


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
    """What templates cannot express, by name: `years` or `repeated_tokens`, with its numbers."""

    kind: str
    options: Mapping[str, tuple[int, ...]]


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


# --------------------------------------------------------------- names and paths


def shipped_tasks() -> list[str]:
    """The names of the tasks that come with the package, sorted."""
    return sorted(path.stem for path in data_folder("tasks").glob("*.toml"))


def task_path(name_or_path: str | Path) -> Path:
    """The file of a task: a shipped name (hyphens or underscores), or a path, which
    has a separator or an ending of `SUFFIXES`.
    """
    if not isinstance(name_or_path, str | Path):
        raise CircuitDiscoveryError(f"a task is a name or a path, not {type(name_or_path).__name__}")
    text = str(name_or_path)
    path = Path(name_or_path)
    if path.suffix.lower() in SUFFIXES:
        return path
    if isinstance(name_or_path, Path) or "/" in text or os.sep in text:
        raise CircuitDiscoveryError(
            f"{path}: a task file ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
        )
    name = text.replace("-", "_")
    if name not in shipped_tasks():
        raise _no_task(text)
    return data_folder("tasks") / f"{name}.toml"


def _no_task(text: str) -> CircuitDiscoveryError:
    """With what was meant, where it differs in case alone or is the first letters of a name's words."""
    for name in shipped_tasks():
        if text.replace("-", "_").lower() in (name, "".join(word[0] for word in name.split("_"))):
            return CircuitDiscoveryError(
                f"no task {text!r}; did you mean {name!r}? Valid tasks: {', '.join(shipped_tasks())}"
            )
    return unknown("task", text, shipped_tasks())


def read_task(name_or_path: str | Path, *, skip_bad: bool = False) -> TaskFile | Table | SavedTask:
    """The task of that name or path, parsed and checked; with `skip_bad` a
    table without the rows that cannot be used.

    Raises:
        CircuitDiscoveryError: names what is wrong: the file, and its line, row or field.

    >>> read_task("ioi").metric
    'logit_diff'
    """
    path = task_path(name_or_path)
    if path.suffix.lower() == ".toml":
        return _read_toml(path)
    if path.suffix.lower() == ".json":
        from circuitdiscovery.task.saved import read_saved

        return read_saved(path)
    return read_table(path, skip_bad=skip_bad)


def counterfactual_of(task: TaskFile | Table | SavedTask, name: str) -> str:
    """The task's counterfactual of that name; hyphens are taken for underscores.

    Raises:
        CircuitDiscoveryError: there is none of that name, or the task is a
            table or was saved; names the valid ones.

    >>> counterfactual_of(read_task("ioi"), "flip")
    'flip'
    """
    if not isinstance(task, TaskFile):
        what = "a table" if isinstance(task, Table) else "a saved task"
        raise CircuitDiscoveryError(
            f"task {task.name}: {what} has its counterfactuals as rows, not by name ({name!r})"
        )
    found = name if name in task.counterfactuals else name.replace("-", "_")
    if found not in task.counterfactuals:
        raise unknown("counterfactual", name, task.counterfactuals, plural=f"counterfactuals of {task.name}")
    return found


# ------------------------------------------------------------------------ TOML


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


def _read_toml(path: Path) -> TaskFile:
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
    _check_references(str(path), task)
    return task


def _task(name: str, fields: _Fields) -> TaskFile:
    generator = _generator(fields)
    kind = generator.kind if generator else None
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
        templates=fields.texts("templates") if kind != "repeated_tokens" else (),
        correct=() if kind else fields.texts("correct"),
        incorrect=() if kind else fields.texts("incorrect"),
        words=words,
        multi_token=fields.strings("multi_token", []),
        slots=_slots(fields, words, kind),
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


def _slots(fields: _Fields, words: Mapping[str, Any], kind: str | None) -> dict[str, Slot]:
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
    own = {
        name: Slot(slots[repeats[name]].words, repeats[name]) if name in repeats else slots[name]
        for name in texts
    }
    return (
        own | {"years": {"start": Slot(YEARS)}, "repeated_tokens": {"sequence": Slot(PLAIN)}, None: {}}[kind]
    )


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


# ------------------------------------------------------------------ generators


def _generator(fields: _Fields) -> Generator | None:
    if "generator" not in fields.left:
        fields.known.append("generator")
        return None
    table = _Fields(f"{fields.where}: [generator]", fields.take("generator", dict))
    kind = table.take("kind", str)
    if kind not in GENERATORS:
        raise CircuitDiscoveryError(f"{table.where}: {unknown('kind', kind, GENERATORS)}")
    options = {name: _numbers(table, name) for name in GENERATORS[kind]}
    table.done()
    (_check_years if kind == "years" else _check_periods)(table, options)
    return Generator(kind, options)


def _numbers(fields: _Fields, name: str) -> tuple[int, ...]:
    if isinstance(fields.left.get(name), int):
        return (fields.take(name, int),)
    values: list[Any] = fields.take(name, list)
    for value in values:
        if type(value) is not int:
            raise fields.error(name, f"must hold whole numbers, not {kind_of(value)}")
    return tuple(values)


def _check_years(fields: _Fields, options: Mapping[str, tuple[int, ...]]) -> None:
    if not all(10 <= century <= 99 for century in options["centuries"]) or len(
        set(options["centuries"])
    ) < len(options["centuries"]):
        raise fields.error("centuries", "must hold different numbers from 10 to 99")
    if len(options["years"]) != 2 or not 0 <= options["years"][0] <= options["years"][1] <= 99:
        raise fields.error("years", "must be the first and the last two digits, from 0 to 99")


def _check_periods(fields: _Fields, options: Mapping[str, tuple[int, ...]]) -> None:
    if len(options["length"]) != 1:
        raise fields.error("length", "must be one number")
    length = options["length"][0]
    if not all(length < 2 * period and period < length for period in options["periods"]):
        raise fields.error("periods", f"must be longer than half of length ({length}) and shorter than it")


# ------------------------------------------------------------------ references


def _check_references(where: str, task: TaskFile) -> None:
    """Every name that a text, a slot or a counterfactual uses is there, and no alias leads back to itself."""
    aliases = dict(_all_aliases(task)) | generator_aliases(task)
    both = (
        aliases.keys() & task.slots.keys()
        | next(iter(task.orders.values())).keys() & next(iter(task.cases.values())).keys()
    )
    if both:
        raise CircuitDiscoveryError(
            f"{where}: {sorted(both)[0]!r} is the name of two things; slots, orders and cases need names "
            "of their own"
        )
    for field, text in _all_texts(task):
        for ref in text.refs:
            _check_ref(f"{where}: field {field!r}", task, aliases, ref)
    for tables in (task.orders, task.cases):
        for text in (text for table in tables.values() for text in table.values()):
            if any(ref.name in aliases for ref in text.refs):
                raise CircuitDiscoveryError(f"{where}: orders and cases refer to slots, not to each other")
    for name, rule in task.counterfactuals.items():
        _check_rule(f"{where}: [counterfactuals.{name}]", task, aliases, rule)
    elsewhere = set[str]().union(*(_shown(task, text) for text in task.templates))
    for text in task.templates:
        _check_answers(f"{where}: field 'templates'", task, text, elsewhere)
    written = {ref for text in task.templates for ref in text.refs}
    written |= {ref for name, text in _all_aliases(task) for ref in text.refs if Ref(name) in written}
    for name, ref in task.positions.items():
        _check_ref(f"{where}: field 'positions.{name}'", task, aliases, ref)
        if ref not in written:
            raise CircuitDiscoveryError(
                f"{where}: field 'positions.{name}': {{{'.'.join(filter(None, ref))}}} stands in no template"
            )
    for name in task.multi_token:
        if name not in task.words:
            raise CircuitDiscoveryError(f"{where}: multi_token: {unknown('list', name, task.words)}")
    if task.counterfactual not in task.counterfactuals:
        raise CircuitDiscoveryError(
            f"{where}: {unknown('counterfactual', task.counterfactual, task.counterfactuals)}"
        )


def _shown(task: TaskFile, template: Text) -> set[str]:
    """The names that stand in a template, and the slots that they stand for in any order and case."""
    shown = _names(template)
    shown |= {name for alias, text in _all_aliases(task) if alias in shown for name in _names(text)}
    return shown | {task.slots[name].repeats or name for name in shown if name in task.slots}


def _check_answers(where: str, task: TaskFile, template: Text, elsewhere: set[str]) -> None:
    """The template has every slot of the answers that others have, and something that
    says the case where an answer depends on it.

    A slot that no template has is drawn for the answers alone.
    """
    shown = _shown(task, template)
    told = "".join(
        part if isinstance(part, str) else f"{{{'.'.join(filter(None, part))}}}" for part in template.parts
    )
    in_cases = set(next(iter(task.cases.values())))
    for answer in (*task.correct, *task.incorrect):
        for ref in answer.refs:
            if (
                ref.name in task.slots
                and ref.name in elsewhere
                and not {ref.name, task.slots[ref.name].repeats} & shown
            ):
                raise CircuitDiscoveryError(f"{where}: {told!r} lacks the slot {ref.name!r} of its answers")
            if ref.name in in_cases and len(task.cases) > 1 and not in_cases & shown:
                others = ", ".join(
                    sorted(
                        in_cases
                        - {name for text in (*task.correct, *task.incorrect) for name in _names(text)}
                    )
                )
                raise CircuitDiscoveryError(
                    f"{where}: {told!r} lacks a slot that says which {ref.name!r} is right: "
                    f"{others or ref.name}"
                )


def _names(text: Text) -> set[str]:
    return {ref.name for ref in text.refs}


def generator_aliases(task: TaskFile) -> dict[str, Text]:
    """The names that the task's generator gives."""
    years = task.generator is not None and task.generator.kind == "years"
    return {name: Text((Ref("start", name),)) for name in ("century", "year")} if years else {}


def _all_aliases(task: TaskFile) -> Iterator[tuple[str, Text]]:
    for table in (*task.orders.values(), *task.cases.values()):
        yield from table.items()


def _all_texts(task: TaskFile) -> Iterator[tuple[str, Text]]:
    for field in ("templates", "correct", "incorrect"):
        yield from ((field, text) for text in getattr(task, field))
    for field in ("orders", "cases"):
        for key, table in getattr(task, field).items():
            yield from ((f"{field}.{key}.{name}", text) for name, text in table.items())
    for key, rule in task.counterfactuals.items():
        yield from ((f"counterfactuals.{key}.set.{name}", text) for name, text in rule.set.items())


def _check_ref(where: str, task: TaskFile, aliases: Mapping[str, Text], ref: Ref) -> None:
    if ref.name not in task.slots and ref.name not in aliases:
        raise CircuitDiscoveryError(f"{where}: {unknown('slot', ref.name, [*task.slots, *aliases])}")
    columns = (
        [PLAIN]
        if ref.name in aliases
        else list(task.words.get(task.slots[ref.name].words, ("century", "year")))
    )
    if ref.column not in columns:
        valid = (
            f"the words have the columns {', '.join(columns)}"
            if columns != [PLAIN]
            else "its words have no columns"
        )
        raise CircuitDiscoveryError(f"{where}: no column {ref.column!r} of {ref.name!r}; {valid}")


def _check_rule(where: str, task: TaskFile, aliases: Mapping[str, Text], rule: Counterfactual) -> None:
    for name in rule.redraw:
        if name not in task.slots:
            raise CircuitDiscoveryError(f"{where}: redraw: {unknown('slot', name, task.slots)}")
    for name in rule.set:
        if name not in task.slots and name not in aliases:
            raise CircuitDiscoveryError(f"{where}: set: {unknown('slot', name, [*task.slots, *aliases])}")
        if name in task.slots and PLAIN not in task.words.get(task.slots[name].words, ()):
            raise CircuitDiscoveryError(f"{where}: set: {name!r} has columns and cannot be set to a text")
    for name in (*rule.case.keys(), *rule.case.values()):
        if name not in task.cases:
            raise CircuitDiscoveryError(f"{where}: case: {unknown('case', name, task.cases)}")
