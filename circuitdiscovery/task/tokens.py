"""Examples from token ids, checked; errors name the row, counted from 0."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from circuitdiscovery.errors import CircuitDiscoveryError, shown
from circuitdiscovery.task.batch import PAD
from circuitdiscovery.task.example import END, Example, resolve_position


def examples_of_tokens(
    sides: Mapping[str, Any], position: Any, positions: Mapping[str, Any], variables: Mapping[str, Any]
) -> tuple[Example, ...]:
    """The examples of `Task.from_tokens`; the sides are clean, corrupted, correct and incorrect."""
    rows_of = {name: token_rows(name, value) for name, value in sides.items()}
    counts = {name: len(rows) for name, rows in rows_of.items()}
    if len(set(counts.values())) != 1 or not counts["clean"]:
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise CircuitDiscoveryError(f"a task needs rows, as many of each, not {told}")
    answers = positions_of_rows("position", position, counts["clean"])
    rows = zip(*rows_of.values(), answers, strict=True)
    examples = [_example(f"row {i}", *row) for i, row in enumerate(rows)]
    return tuple(_named(examples, positions, variables))


def as_python(value: Any) -> Any:
    """Tensors and arrays as (nested) Python values."""
    return value.tolist() if hasattr(value, "tolist") else value


def token_rows(name: str, value: Any) -> list[tuple[int, ...]]:
    """Rows of token ids: a tensor, an array, or a list of rows; answers may be one id each."""
    rows = as_python(value)
    if not isinstance(rows, list | tuple):
        raise CircuitDiscoveryError(
            f"{name} must be a list or a tensor with a row per example, not {type(rows).__name__}"
        )
    answers = name in ("correct", "incorrect")
    return [_row(f"{name}, row {i}", as_python(row), answers) for i, row in enumerate(rows)]


def _row(where: str, row: Any, answers: bool) -> tuple[int, ...]:
    values = [row] if answers and type(row) is int else row
    if not isinstance(values, list | tuple):
        texts = "; for texts there is Task.from_prompts(model, ...)" if isinstance(row, str) else ""
        raise CircuitDiscoveryError(f"{where}: must be token ids, not {type(row).__name__}{texts}")
    ids = [as_python(value) for value in values]
    for value in ids:
        if type(value) is not int or value < (PAD if answers else 0):
            raise CircuitDiscoveryError(
                f"{where}: must be token ids, not "
                f"{value if isinstance(value, int | float) else type(value).__name__}"
            )
    found = tuple(dict.fromkeys(i for i in ids if i != PAD)) if answers else tuple(ids)
    if not found:
        raise CircuitDiscoveryError(f"{where}: has no {'answer' if answers else 'token'}")
    return found


def positions_of_rows(what: str, position: Any, count: int) -> list[int | None]:
    value = as_python(position)
    values: list[Any] = (
        [as_python(each) for each in value] if isinstance(value, list | tuple) else [value] * count
    )
    if len(values) != count:
        raise CircuitDiscoveryError(f"{what} has {len(values)} rows, but clean has {count}")
    for row, each in enumerate(values):
        if each is not None and type(each) is not int:
            raise CircuitDiscoveryError(f"{what}, row {row}: must be a whole number, not {each!r}")
    return values


def _named(
    examples: list[Example], positions: Mapping[str, Any], variables: Mapping[str, Any]
) -> Iterator[Example]:
    """The examples with their named positions and variables."""
    for what, named in (("positions", positions), ("variables", variables)):
        if not isinstance(named, Mapping):
            raise CircuitDiscoveryError(
                f"{what} must be a mapping from names to values, not {type(named).__name__}"
            )
        for name in named:
            if not isinstance(name, str):
                raise CircuitDiscoveryError(f"{what}: a name is a text, not {shown(name)}")
    if END in positions:
        raise CircuitDiscoveryError(f"positions: {END} is the answer's position, which has that name already")
    columns = {
        name: positions_of_rows(f"positions[{name!r}]", value, len(examples))
        for name, value in positions.items()
    }
    words = {name: as_python(values) for name, values in variables.items()}
    for name, values in words.items():
        listed = isinstance(values, Sequence) and not isinstance(values, str)
        if not listed or len(values) != len(examples):
            told = "" if listed else f", not {type(values).__name__}"
            raise CircuitDiscoveryError(
                f"variables[{name!r}] must hold a value per row, {len(examples)}{told}"
            )
    for row, example in enumerate(examples):
        length = len(example.clean)
        places = {
            name: resolve_position(column[row], length, f"positions[{name!r}], row {row}")
            for name, column in columns.items()
        }
        yield replace(
            example,
            positions=places,
            variables={name: str(as_python(values[row])) for name, values in words.items()},
        )


def _example(
    where: str,
    clean: tuple[int, ...],
    corrupted: tuple[int, ...],
    correct: tuple[int, ...],
    incorrect: tuple[int, ...],
    position: int | None,
) -> Example:
    if len(clean) != len(corrupted):
        told = f"{list(clean)} and {list(corrupted)}"
        raise CircuitDiscoveryError(
            f"{where}: clean has {len(clean)} tokens and corrupted {len(corrupted)}: {told}"
        )
    both = set(correct) & set(incorrect)
    if both:
        raise CircuitDiscoveryError(f"{where}: correct and incorrect are the same token {min(both)}")
    return Example(clean, corrupted, correct, incorrect, resolve_position(position, len(clean), where))
