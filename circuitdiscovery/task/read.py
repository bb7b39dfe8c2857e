"""Reading a task, by a shipped name or a path, without a tokenizer: a TOML file, a table of prompts, or what
`Task.save` wrote.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from circuitdiscovery.errors import CircuitDiscoveryError, unknown
from circuitdiscovery.files.disk import data_folder, expanded
from circuitdiscovery.task.table import Table, read_table
from circuitdiscovery.task.taskfile import TaskFile
from circuitdiscovery.task.toml import read_toml

if TYPE_CHECKING:
    from circuitdiscovery.task.saved import SavedTask

SUFFIXES = (".toml", ".csv", ".jsonl", ".json")


def shipped_tasks() -> list[str]:
    """The names of the tasks that come with the package, sorted.

    Returns:
        What `load_task` takes by name.

    >>> shipped_tasks()[0]
    'addition'
    """
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
        return expanded(path)
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
        return read_toml(path)
    if path.suffix.lower() == ".json":
        from circuitdiscovery.task.saved import read_saved

        return read_saved(path)
    return read_table(path, skip_bad=skip_bad)


def counterfactual_of(task: TaskFile | Table | SavedTask, name: str) -> str:
    """The task's counterfactual of that name; hyphens are taken for underscores.

    Raises:
        CircuitDiscoveryError: there is none of that name, or the task has none by name; names the valid ones.

    >>> counterfactual_of(read_task("ioi"), "flip")
    'flip'
    """
    own = own_counterfactual(task)
    known = task.counterfactuals if isinstance(task, TaskFile) else () if own is None else (own,)
    if not known:
        what = "a table" if isinstance(task, Table) else "a saved task"
        raise CircuitDiscoveryError(
            f"task {task.name}: {what} has its counterfactuals as rows, not by name ({name!r})"
        )
    found = name if name in known else name.replace("-", "_")
    if found not in known:
        raise unknown("counterfactual", name, known, plural=f"counterfactuals of {task.name}")
    return found


def own_counterfactual(task: TaskFile | Table | SavedTask) -> str | None:
    """The name of the counterfactual that a task has where none is asked for: the file's first choice, or the
    one that a saved task was drawn with; None where it has none by name.

    >>> own_counterfactual(read_task("ioi"))
    'abc'
    """
    if isinstance(task, TaskFile):
        return task.counterfactual
    name = None if isinstance(task, Table) else task.task.info.get("counterfactual")
    return name if isinstance(name, str) else None
