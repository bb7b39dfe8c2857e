"""What several models are asked: circuits with their models, and a task in the tokens of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from circuitdiscovery.circuit.circuit import Circuit
from circuitdiscovery.errors import CircuitDiscoveryError, shown
from circuitdiscovery.model.model import Model
from circuitdiscovery.task.load import load_task, tasks_alike
from circuitdiscovery.task.task import Task
from circuitdiscovery.task.tokenization import first_foreign


def check_pairs(given: Mapping[Any, Any]) -> None:
    """Each is a model and a circuit of it.

    Raises:
        CircuitDiscoveryError: one that is not; names its label.
    """
    for label, each in given.items():
        pair = tuple(each) if isinstance(each, tuple | list) else ()
        if len(pair) != 2 or not isinstance(pair[0], Model) or not isinstance(pair[1], Circuit):
            raise CircuitDiscoveryError(
                f"circuits must be name -> (model, circuit); {label!r}: give (model, circuit), "
                f"not {shown(each)}"
            )
        pair[1].check_model(pair[0])


def tasks_for(
    models: Mapping[str, Model],
    task: Any,
    *,
    examples: int | None = None,
    seed: int = 0,
    skip_bad: bool = False,
) -> dict[str, Task]:
    """A task in the tokens of each of several models, of the same prompts as far as there can be.

    Args:
        models: by label.
        task: as for `task_for`, or one for each label.
        examples, seed, skip_bad: as for `load_task`.

    Raises:
        CircuitDiscoveryError: as `task_for`; a label without a task.
    """
    if isinstance(task, Mapping):
        if missing := [label for label in models if label not in task]:
            raise CircuitDiscoveryError(f"task: there is none for {', '.join(map(repr, missing))}")
        return {label: task_for(model, task[label]) for label, model in models.items()}
    if isinstance(task, Task):
        return {label: task_for(model, task) for label, model in models.items()}
    made = tasks_alike(task, list(models.values()), examples=examples, seed=seed, skip_bad=skip_bad)
    return dict(zip(models, made, strict=True))


def task_for(model: Model, task: Any, *, examples: int | None = None, seed: int = 0) -> Task:
    """A task in a model's tokens.

    Args:
        model: whose tokens.
        task: what `load_task` reads (a name, a file, rows), drawn for the model's tokenizer; or a `Task`, for
            the models whose tokens it is in.
        examples, seed: as for `load_task`; not used with a `Task`.

    Raises:
        CircuitDiscoveryError: a task that cannot be drawn; a `Task` whose tokens are not the model's.
    """
    if not isinstance(task, Task):
        return load_task(task, model, examples=examples, seed=seed)
    if model.tokenizer is not None and first_foreign(task.examples, model.tokenizer) is not None:
        raise CircuitDiscoveryError(
            f"task {task.title} is not in the tokens of {model.name}: give the task by its name"
        )
    return task
