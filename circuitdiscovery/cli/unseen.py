"""Prompts that are new to a circuit: those held out of a task, without the search's clean ones.

One may be a corrupted prompt of the search, as among those that `discover` measures on: of a task with few
prompts, such as capitals, many are. The task's own line says how many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from circuitdiscovery.cli.arguments import task_name
from circuitdiscovery.cli.files import known_of_search
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.reporting.folder import model_of
from circuitdiscovery.reporting.options import DRAWN_WITH, Options, checked
from circuitdiscovery.reporting.progress import say

if TYPE_CHECKING:
    from circuitdiscovery.circuit.circuit import Circuit
    from circuitdiscovery.model.model import Model
    from circuitdiscovery.task.task import Task


@dataclass(frozen=True)
class Drawing:
    """How a task is drawn.

    Args:
        task: a shipped name or a file.
        examples, seed, counterfactual, skip_bad: as `load_task` takes them.
    """

    task: str
    examples: int | None = None
    seed: int = 0
    counterfactual: str | None = None
    skip_bad: bool = False

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Drawing:
        """Of options by name; where no counterfactual is given, the task's own is named."""
        from circuitdiscovery.task.read import counterfactual_of, own_counterfactual, read_task

        given = {name: values[name] for name in ("task", *DRAWN_WITH) if values.get(name) is not None}
        task, name = read_task(given["task"], skip_bad=True), given.get("counterfactual")
        named = own_counterfactual(task) if name is None else counterfactual_of(task, name)
        return cls(**{**given, "counterfactual": named})

    def draw(self, model: Model) -> Task:
        """The task in a model's tokens."""
        from circuitdiscovery.task.load import load_task

        return load_task(self.task, model, **{name: getattr(self, name) for name in DRAWN_WITH})


@dataclass(frozen=True)
class Searched:
    """What a circuit was searched on.

    Args:
        how: the task, and how it was drawn.
        task: what was drawn; None where that is not known.
        prompts: the tokens of its prompts, and of those that the search drew beside them.
    """

    how: Drawing
    task: Task | None = None
    prompts: frozenset[tuple[int, ...]] = frozenset()

    @property
    def count(self) -> int:
        """How many different prompts of the task's own."""
        return 0 if self.task is None else len({example.clean for example in self.task.examples})


def searched(
    model: Model, circuit: Circuit, path: str, asked: Sequence[str], *, skip_bad: bool = False
) -> Searched | None:
    """What a circuit was searched on, as far as it can be drawn again; else a line says why not.

    Args:
        model: whose circuit it is.
        circuit, path: it, and where it lies.
        asked: tasks, of which one may be the circuit's: its file may have moved, and a circuit alone knows
            only its name.
        skip_bad: whether a table's bad rows are skipped, where it is not known how they were.

    Returns:
        None where nothing is known of a search.
    """
    found, wrong = None, list[CircuitDiscoveryError]()
    digest = circuit.info.get("data", {}).get("examples")
    try:
        values = known_of_search(circuit, path, ("task", *DRAWN_WITH))
    except CircuitDiscoveryError as error:
        values, wrong = {}, [error]
    names = [values["task"], *(asked if digest else ())] if "task" in values else []
    values |= {
        "counterfactual": values.get("counterfactual") or circuit.info.get("counterfactual"),
        "skip_bad": values.get("skip_bad", False) or skip_bad,
    }
    for name in dict.fromkeys(names):
        try:
            how = Drawing.of({**values, "task": task_name(name)})
            if name == names[0]:
                found = Searched(how)
            if "examples" not in values:  # a published circuit, say, that only names its task
                return found
            task = how.draw(model)
            if digest not in (None, task.digest):
                raise CircuitDiscoveryError(f"{how.task} has other prompts now")
            return Searched(how, task, _prompts(task, circuit, path))
        except CircuitDiscoveryError as error:
            wrong.append(error)
    if wrong:
        say(f"the prompts that {path} was searched on are not known: {wrong[0]}")
    return found


def _prompts(task: Task, circuit: Circuit, path: str) -> frozenset[tuple[int, ...]]:
    """The tokens of a search's prompts: a task's, and those that Matryoshka drew beside them, at most."""
    given = {"drawn": circuit.info.get("options", {}).get("drawn")}
    beside = checked(given, path)["drawn"]
    more = task.further()[:beside] if beside else ()
    return frozenset(example.clean for example in (*task.examples, *more))


def unseen(model: Model, how: Drawing, searches: Sequence[Searched]) -> Task:
    """A task whose held-out prompts are new to circuits.

    Of the prompts that the seed holds out these are the first ones that no search has seen, `how.examples` at
    most. Where a search had more than that, they are among as many as it had, or as there are. A line says
    how many are left out, where fewer remain than were asked for.

    Args:
        model: whose tokenizer makes the tokens.
        how: the task, and how it is drawn.
        searches: of the circuits.

    Raises:
        CircuitDiscoveryError: none is new; as `load_task`.
    """
    again = (each.task for each in searches if each.task is not None and each.how == how)
    made = next(again, None) or how.draw(model)
    most = max((each.count for each in searches if each.how.task == how.task), default=0)
    if len({example.clean for example in made.examples}) < most:
        # another counterfactual may have fewer: then as many as are drawn where nothing is said
        for examples in (most, None):
            with suppress(CircuitDiscoveryError):
                made = max(made, replace(how, examples=examples).draw(model), key=len)
                break
    held = made.held_out
    if held is None:
        return made
    seen = frozenset[tuple[int, ...]]().union(*(each.prompts for each in searches))
    new = [example.clean for example in held.examples if example.clean not in seen]
    if not new:
        raise _none_new(made, seen)
    kept = list(dict.fromkeys(new))[: how.examples]
    if len(new) < len(held) and len(kept) != how.examples:
        told = f"{len(held) - len(new)} of {len(held)} held-out prompts of {made.name}"
        say(f"{told} are left out: a circuit was searched on them")
    chosen = set(kept)
    rows = [row for row, example in enumerate(held.examples) if example.clean in chosen]
    return made if len(rows) == len(held) else replace(made, held_out=held.select(rows))


def _none_new(task: Task, seen: frozenset[tuple[int, ...]]) -> CircuitDiscoveryError:
    """With what helps: nothing but fewer circuits where a table, or a saved task, has no other prompts."""
    from circuitdiscovery.task.prompts import Apart

    every = {example.clean for example in (*task.examples, *task.others)}
    drawable = isinstance(task.apart, Apart) or not every <= seen
    give = "another --seed, more --examples" if drawable else "fewer circuits"
    return CircuitDiscoveryError(
        f"task {task.title}: every prompt that is held out is one that a circuit was searched on; give "
        f"{give} or another --task"
    )


def load_unseen(circuit: Circuit, path: str, options: Options) -> tuple[Model, Task]:
    """The model and the task that options name, with held-out prompts that are new to a circuit."""
    model = model_of(options)
    search = searched(model, circuit, path, [options.task], skip_bad=options.skip_bad)
    return model, unseen(model, Drawing.of(options.to_dict()), [] if search is None else [search])
