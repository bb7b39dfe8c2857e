"""`transfer`: circuits on other tasks than their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from circuitdiscovery.cli.arguments import (
    ABLATION,
    COUNT,
    DEVICE,
    DIRECTION,
    DTYPE,
    METRIC,
    MODEL,
    SEED,
    TASK,
    as_json,
    memory,
)
from circuitdiscovery.cli.commands.group import cli
from circuitdiscovery.cli.files import circuit_of, evaluation_options, file_of, show
from circuitdiscovery.cli.prompts import PICTURE
from circuitdiscovery.reporting.folder import CIRCUIT
from circuitdiscovery.reporting.options import checked, searched_with

if TYPE_CHECKING:
    from circuitdiscovery.model.model import Model
    from circuitdiscovery.task.task import Task


@cli.command(short_help="Measure CIRCUITs on each other's tasks.")
@click.argument("circuits", nargs=-1, required=True, metavar="CIRCUIT...")
@click.option(
    "--task",
    "tasks",
    type=TASK,
    multiple=True,
    help="Measure on this; repeatable.  [default: the tasks that the circuits were found with]",
)
@click.option("--model", type=MODEL, help="Of all.  [default: the one each circuit was found in]")
@click.option("--ablation", type=ABLATION, default="resample", show_default=True)
@click.option("--metric", type=METRIC, help="[default: each task's own]")
@click.option("--direction", type=DIRECTION, default="noising", show_default=True)
@click.option(
    "--examples",
    type=COUNT,
    help="Held-out prompts of each task.  [default: same as the search that used it, else 64]",
)
@click.option(
    "--seed", type=SEED, help="For the prompts.  [default: same as the search that used them, else 0]"
)
@click.option("--batch-size", type=COUNT, help="[default: what memory allows]")
@memory
@click.option("--device", type=DEVICE, help="[default: a GPU if there is one]")
@click.option("--dtype", type=DTYPE, help="[default: same as the search]")
@click.option("--plot", type=PICTURE, help="Draw the matrix, as .png or .svg.")
@as_json
def transfer(
    circuits: tuple[str, ...],
    tasks: tuple[str, ...],
    model: str | None,
    device: str | None,
    dtype: str | None,
    plot: str | None,
    as_json: bool,
    **how: Any,
) -> None:
    """How faithful each CIRCUIT (a circuit.json, a run's folder or a shipped graph's name) is on each task,
    its own and those of the others, as a matrix with intervals.
    """
    import circuitdiscovery as cd
    from circuitdiscovery.reporting.progress import stage

    given = {"model": model, "task": tasks[0] if tasks else None, "device": device, "dtype": dtype}
    found = {path: circuit_of(path) for path in circuits}
    options = {
        path: evaluation_options(circuit, path, {**given, "counterfactual": None})
        for path, circuit in found.items()
    }
    load = cache(lambda name, device, dtype: cd.load_model(name, device=device, dtype=dtype))
    with stage("loading"):
        models = [load(each.model, each.device, each.dtype) for each in options.values()]
    pairs = dict(zip(_names(tuple(found)), zip(models, found.values(), strict=True), strict=True))
    drawn = {name: how.pop(name) for name in ("examples", "seed")}
    drawn = {name: value for name, value in drawn.items() if value is not None}
    searched = [checked(searched_with(circuit.info), path) for path, circuit in found.items()]
    columns = _columns(tasks or [each.task for each in options.values()], searched, bool(tasks), drawn)
    with stage("measuring") as report:
        result = cd.universality.transfer(pairs, columns, **how, seed=drawn.get("seed", 0), progress=report)
    if plot is not None:
        result.plot(plot)
    show(result, as_json)


def _columns(
    tasks: Sequence[str], searched: Sequence[Mapping[str, Any]], asked: bool, drawn: Mapping[str, Any]
) -> dict[str, Any]:
    """Tasks by name, each drawn as a circuit's search drew it, whose held-out prompts are new to the circuit.

    Args:
        tasks: those that are asked for, or those of the circuits.
        searched: how each circuit was.
        asked: which of the two.
        drawn: what is asked for in place of that.
    """
    wanted = dict[tuple[Any, ...], dict[str, Any]]()
    for number, task in enumerate(tasks):
        own = [each for each in searched if each.get("task") == task] if asked else [searched[number]]
        known = own[0] if own else {}
        how = {name: known[name] for name in ("counterfactual", "examples", "seed") if name in known}
        wanted.setdefault((task, how.get("counterfactual")), {**how, **drawn})
    alone = [Path(task).stem for task, _ in wanted]
    return {
        name if alone.count(name) == 1 else f"{name} {counterfactual}": partial(_drawn, task, how)
        for name, ((task, counterfactual), how) in zip(alone, wanted.items(), strict=True)
    }


def _drawn(task: str, how: Mapping[str, Any], model: Model) -> Task:
    """A task for any model."""
    import circuitdiscovery as cd

    return cd.load_task(task, model, **how)


def _names(paths: tuple[str, ...]) -> list[str]:
    """What circuits are called: by their files or their runs' folders; by their paths, where two have one
    name."""
    files = [Path(file_of(path)) for path in paths]
    short = [each.parent.name if each.name == CIRCUIT else each.stem for each in files]
    return [path if short.count(name) > 1 else name for path, name in zip(paths, short, strict=True)]
