"""A task as `Task.save` writes it: its tokens, so that it is the same task
again whatever drew it; read without torch.

Each prompt stands once in the file; the task, and the task that is held out, say which are theirs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitdiscovery.errors import CircuitDiscoveryError, shown
from circuitdiscovery.files.disk import read_json, write_json
from circuitdiscovery.registry import canonical
from circuitdiscovery.task.example import Example
from circuitdiscovery.values import left_out, plain, read

if TYPE_CHECKING:
    from circuitdiscovery.task.task import Task

FORMAT = "circuitdiscovery task 1"


@dataclass(frozen=True)
class Kept:
    """A task's own fields; its prompts as indices."""

    name: str
    metric: str
    seed: int | None
    info: Mapping[str, Any]
    examples: tuple[int, ...]
    others: tuple[int, ...]
    apart: tuple[int, ...] | None
    held_out: Kept | None
    part: Mapping[str, str] | None = left_out()
    chosen: bool | None = left_out()


@dataclass(frozen=True)
class SavedTask:
    """What a file holds."""

    format: str
    prompts: tuple[Example, ...]
    task: Kept

    @property
    def name(self) -> str:
        """The task's."""
        return self.task.name

    def examples(self, indices: tuple[int, ...]) -> tuple[Example, ...]:
        """The prompts of these indices."""
        return tuple(self.prompts[i] for i in indices)


@dataclass(frozen=True)
class Drawn:
    """Prompts that were drawn apart when the task was saved."""

    prompts: tuple[Example, ...]

    def __call__(self) -> tuple[Example, ...]:
        return self.prompts


def write_saved(path: str | Path, task: Task) -> None:
    """Write a task's tokens, held-out examples, and what means are taken over.

    Raises:
        CircuitDiscoveryError: a field of something that JSON does not have; names it.
    """
    numbers: dict[Example, int] = {}
    kept = _kept(task, numbers)
    data = plain(SavedTask(FORMAT, tuple(numbers), kept))
    for field, value in _leaves(data):
        if not isinstance(value, str | int | float | None):
            raise CircuitDiscoveryError(
                f"task {task.title}: field {field!r} must be a text, a number, or a list or a mapping of "
                f"these, to be saved, not {shown(value)}"
            )
    write_json(path, data)


def _leaves(data: Any, field: str = "") -> Iterator[tuple[str, Any]]:
    """What is in the lists and mappings, with the name of its field."""
    if isinstance(data, Mapping | list):
        for name, value in data.items() if isinstance(data, Mapping) else enumerate(data):
            yield from _leaves(value, f"{field}.{name}" if field else str(name))
    else:
        yield field, data


def _kept(task: Task, numbers: dict[Example, int]) -> Kept:
    """A task as its file has it; its prompts are numbered in `numbers`."""

    def indices(examples: Iterable[Example]) -> tuple[int, ...]:
        return tuple(numbers.setdefault(example, len(numbers)) for example in examples)

    examples, others = indices(task.examples), indices(task.others)
    apart = None if task.apart is None else indices(task.apart())
    held_out = None if task.held_out is None else _kept(task.held_out, numbers)
    known = (task.name, task.metric, task.seed, task.info, examples, others, apart, held_out)
    return Kept(*known, part=dict(task.part) or None, chosen=task.chosen or None)


def read_saved(path: Path) -> SavedTask:
    """The task in a .json file.

    Raises:
        CircuitDiscoveryError: a file of something else, or fields and rows that cannot be; names them.
    """
    data = read_json(path)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise CircuitDiscoveryError(
            f"{path} is not a task that Task.save wrote: its field 'format' is not {FORMAT!r}"
        )
    saved = read(SavedTask, data, str(path))
    for i, prompt in enumerate(saved.prompts):
        _check_prompt(f"{path}: field 'prompts.{i}'", prompt)
    for part in _parts(saved.task):
        try:
            canonical("metric", part.metric)
        except CircuitDiscoveryError as error:
            raise CircuitDiscoveryError(f"{path}: {error}") from None
        wrong = [
            i for i in (*part.examples, *part.others, *(part.apart or ())) if not 0 <= i < len(saved.prompts)
        ]
        if wrong or not part.examples:
            told = f"names prompt {wrong[0]} of {len(saved.prompts)}" if wrong else "has no examples"
            raise CircuitDiscoveryError(f"{path}: the task {part.name} {told}")
    return saved


def _parts(task: Kept) -> Iterator[Kept]:
    yield task
    if task.held_out is not None:
        yield from _parts(task.held_out)


def _check_prompt(where: str, prompt: Example) -> None:
    sides = (prompt.clean, prompt.corrupted, prompt.correct, prompt.incorrect)
    if len(prompt.clean) != len(prompt.corrupted):
        raise CircuitDiscoveryError(
            f"{where}: clean has {len(prompt.clean)} tokens and corrupted {len(prompt.corrupted)}"
        )
    if not prompt.clean or not prompt.correct or any(token < 0 for side in sides for token in side):
        raise CircuitDiscoveryError(f"{where}: needs tokens and a correct answer, none of them negative")
    if set(prompt.correct) & set(prompt.incorrect):
        raise CircuitDiscoveryError(
            f"{where}: correct and incorrect are the same token "
            f"{min({*prompt.correct} & {*prompt.incorrect})}"
        )
    if not all(0 <= at < len(prompt.clean) for at in prompt.positions.values()):
        raise CircuitDiscoveryError(
            f"{where}: a position is outside of the prompt's {len(prompt.clean)} tokens"
        )
