"""Prompts that are new to a circuit: those held out of a task, without the ones that it was searched on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitdiscovery.cli.arguments import task_name
from circuitdiscovery.cli.files import known_of_search
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.reporting.options import Options
from circuitdiscovery.reporting.progress import say, stage

if TYPE_CHECKING:
    from circuitdiscovery.circuit.circuit import Circuit
    from circuitdiscovery.model.model import Model
    from circuitdiscovery.task.task import Task

DRAWING = ("examples", "seed", "counterfactual", "skip_bad")  # options that say how a task is drawn


@dataclass(frozen=True)
class Searched:
    """What a circuit was searched on.

    Args:
        task: a shipped name or a file.
        how: how it was drawn, as `load_task` takes it.
        count: how many different prompts of the task's own.
        prompts: the tokens of these, and of those that the search drew beside them.
    """

    task: str
    how: Mapping[str, Any]
    count: int = 0
    prompts: frozenset[tuple[int, ...]] = frozenset()


def searched(
    model: Model, circuit: Circuit, path: str, asked: Sequence[str], *, skip_bad: bool = False
) -> Searched | None:
    """What a circuit was searched on, as far as it can be drawn again; else a line says why not.

    Args:
        model: whose circuit it is.
        circuit, path: it, and where it lies.
        asked: tasks, among them perhaps the table of which the circuit alone knows only the name.
        skip_bad: whether a table's bad rows are skipped, where it is not known how they were.

    Returns:
        None where nothing is known of a search.
    """
    from circuitdiscovery.task.load import load_task

    found = None
    try:
        values = known_of_search(circuit, path)
        if "task" not in values:
            return None
        how = {name: values[name] for name in DRAWING if name in values}
        how["counterfactual"] = how.get("counterfactual") or circuit.info.get("counterfactual")
        how["skip_bad"] = how.get("skip_bad", False) or skip_bad
        found = Searched(_task_of(values["task"], asked), how)
        if "examples" not in values:  # a published circuit, say, that only names its task
            return found
        task = load_task(found.task, model, **how)
        if circuit.info.get("data", {}).get("examples", task.digest) != task.digest:
            raise CircuitDiscoveryError(f"{found.task} has other prompts now")
    except CircuitDiscoveryError as error:
        say(f"the prompts that {path} was searched on are not known: {error}")
        return found
    own = {example.clean for example in task.examples}
    beside = circuit.info.get("options", {}).get("drawn", 0)  # by matryoshka, at most
    more = () if task.apart is None or not beside else task.apart()[:beside]
    return replace(found, count=len(own), prompts=frozenset({*own, *(example.clean for example in more)}))


def _task_of(name: str, asked: Sequence[str]) -> str:
    """A task's shipped name or file; of a table's name alone the file of that name that is asked for."""
    try:
        return task_name(name)
    except CircuitDiscoveryError:
        return next((each for each in asked if Path(each).stem == name), name)


def unseen(model: Model, task: str, how: Mapping[str, Any], searches: Sequence[Searched]) -> Task:
    """A task whose held-out prompts are new to circuits.

    Of the prompts that the seed holds out these are the first ones that no search has seen, `how["examples"]`
    at most. Where a search had more than that, they are among as many as it had. A line says how many are
    left out.

    Args:
        model: whose tokenizer makes the tokens.
        task, how: the task, and how it is drawn, as `load_task` takes them.
        searches: of the circuits.

    Raises:
        CircuitDiscoveryError: none is new; as `load_task`.
    """
    from circuitdiscovery.task.load import load_task

    made, wanted = load_task(task, model, **how), how.get("examples")
    most = max((each.count for each in searches if each.task == task), default=0)
    if len({example.clean for example in made.examples}) < most:
        made = load_task(task, model, **{**how, "examples": most})
    held = made.held_out
    if held is None:
        return made
    seen = frozenset[tuple[int, ...]]().union(*(each.prompts for each in searches))
    new = [example.clean for example in held.examples if example.clean not in seen]
    if not new:
        raise CircuitDiscoveryError(
            f"task {made.name}: every prompt that is held out is one that a circuit was searched on; give "
            "another --seed, more --examples or another --task"
        )
    if len(new) < len(held):
        told = f"{len(held) - len(new)} of {len(held)} held-out prompts of {made.name}"
        say(f"{told} are left out: a circuit was searched on them")
    kept = set(islice(dict.fromkeys(new), wanted))
    rows = [row for row, example in enumerate(held.examples) if example.clean in kept]
    return made if len(rows) == len(held) else replace(made, held_out=held.select(rows))


def load_unseen(circuit: Circuit, path: str, options: Options) -> tuple[Model, Task]:
    """The model and the task that options name, with held-out prompts that are new to a circuit."""
    with stage("loading"):
        from circuitdiscovery.model.load import load_model

        model = load_model(options.model, device=options.device, dtype=options.dtype)
    search = searched(model, circuit, path, [options.task], skip_bad=options.skip_bad)
    return model, unseen(model, options.task, options.some(*DRAWING), [] if search is None else [search])
