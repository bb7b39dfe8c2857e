"""What the texts of a task file refer to: every name that one uses is there, and the answers can be told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from circuitdiscovery.errors import CircuitDiscoveryError, unknown
from circuitdiscovery.task.generators import generator_of
from circuitdiscovery.task.taskfile import PLAIN, Counterfactual, Ref, TaskFile, Text

_KINDS = ("template", "order", "case")  # variables of every example, as `Form.variables` has them


def check_references(where: str, task: TaskFile) -> None:
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
    for name in _KINDS:
        if name in task.slots or name in aliases:
            raise CircuitDiscoveryError(
                f"{where}: an example's variable {name!r} says which template, order and case it is of: give "
                "what has this name another name"
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
    says the order or the case where an answer depends on it.

    A slot that no template has is drawn for the answers alone.
    """
    shown = _shown(task, template)
    told = "".join(
        part if isinstance(part, str) else f"{{{'.'.join(filter(None, part))}}}" for part in template.parts
    )
    for answer in (*task.correct, *task.incorrect):
        for ref in answer.refs:
            if (
                ref.name in task.slots
                and ref.name in elsewhere
                and not {ref.name, task.slots[ref.name].repeats} & shown
            ):
                raise CircuitDiscoveryError(f"{where}: {told!r} lacks the slot {ref.name!r} of its answers")
            for tables in (task.orders, task.cases):
                first = next(iter(tables.values()))
                names = {name for name in first if len({table[name] for table in tables.values()}) > 1}
                if ref.name in names and not names & shown:
                    others = names - {
                        name for text in (*task.correct, *task.incorrect) for name in _names(text)
                    }
                    raise CircuitDiscoveryError(
                        f"{where}: {told!r} lacks a slot that says which {ref.name!r} is right: "
                        f"{', '.join(sorted(others)) or ref.name}"
                    )


def _names(text: Text) -> set[str]:
    return {ref.name for ref in text.refs}


def generator_aliases(task: TaskFile) -> dict[str, Text]:
    """The names that the task's generator gives."""
    generator = generator_of(task)
    return generator.aliases if generator else {}


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
    generator = generator_of(task)
    columns = [PLAIN]
    if ref.name not in aliases:
        columns = list(task.words.get(task.slots[ref.name].words, generator.columns if generator else ()))
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
