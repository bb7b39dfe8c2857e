"""`transfer`: circuits on other tasks than their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from circuitdiscovery.cli.arguments import (
    ABLATION,
    CIRCUIT,
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
    skip_bad_rows,
)
from circuitdiscovery.cli.commands.group import cli
from circuitdiscovery.cli.files import circuit_of, evaluation_options, file_of, show
from circuitdiscovery.cli.prompts import PICTURE
from circuitdiscovery.cli.unseen import Drawing, Searched, searched, unseen
from circuitdiscovery.registry import checked_direction
from circuitdiscovery.reporting.folder import CIRCUIT as CIRCUIT_FILE

if TYPE_CHECKING:
    from circuitdiscovery.model.model import Model
    from circuitdiscovery.task.task import Task

_OF_SEARCH = ("model", "task", "counterfactual", "device", "dtype")  # how it measured is of no account


@cli.command(short_help="Measure CIRCUITs on each other's tasks.")
@click.argument("circuits", type=CIRCUIT, nargs=-1, required=True, metavar="CIRCUIT...")
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
@skip_bad_rows
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
    plot: Path | None,
    skip_bad: bool,
    as_json: bool,
    **how: Any,
) -> None:
    """How faithful each CIRCUIT (a circuit.json, a run's folder or a shipped graph's name) is on each task,
    its own and those of the others, as a matrix with intervals.
    """
    checked_direction(how["direction"], how["ablation"])
    import circuitdiscovery as cd
    from circuitdiscovery.reporting.progress import stage

    given = {"model": model, "task": tasks[0] if tasks else None, "device": device, "dtype": dtype}
    found = {path: circuit_of(path) for path in circuits}
    options = {
        path: evaluation_options(circuit, path, {**given, "counterfactual": None}, _OF_SEARCH)
        for path, circuit in found.items()
    }
    load = cache(lambda name, device, dtype: cd.load_model(name, device=device, dtype=dtype))
    with stage("loading"):
        models = [load(each.model, each.device, each.dtype) for each in options.values()]
    of = list(zip(models, found.values(), strict=True))
    drawn = {name: how.pop(name) for name in ("examples", "seed")}
    searches = [
        (model, searched(model, circuit, path, tasks, skip_bad=skip_bad))
        for path, (model, circuit) in zip(found, of, strict=True)
    ]

    def drawn_for(model: Model, how: Drawing) -> Task:
        return unseen(model, how, [each for other, each in searches if each and other is model])

    columns = {
        name: partial(drawn_for, how=how)
        for name, how in _columns(tasks, [each for _, each in searches if each], drawn, skip_bad)
    }
    with stage("measuring") as report:
        pairs = dict(zip(_names(tuple(found)), of, strict=True))
        result = cd.universality.transfer(pairs, columns, **how, seed=drawn["seed"] or 0, progress=report)
    show(result, as_json)
    if plot is not None:
        result.plot(plot)


def _columns(
    asked: Sequence[str], searches: Sequence[Searched], drawn: Mapping[str, Any], skip_bad: bool
) -> Iterator[tuple[str, Drawing]]:
    """(its name, how its task is drawn) for each column: as the searches that used it drew it; where these
    differ, as many prompts as the largest had, by the least of their seeds.

    Args:
        asked: tasks; none: those of the searches.
        searches: of the circuits.
        drawn: what is asked for in place of what the searches had; None: theirs.
        skip_bad: whether a table's bad rows are skipped.
    """
    wanted = dict[tuple[str, str | None], list[Searched]]()
    for task in dict.fromkeys(asked or (each.how.task for each in searches)):
        own = [each for each in searches if each.how.task == task]
        for each in own or [Searched(Drawing.of({"task": task, "skip_bad": skip_bad}))]:
            wanted.setdefault((task, each.how.counterfactual), []).append(each)
    for (task, counterfactual), own in wanted.items():
        same = [other for other, _ in wanted if Path(other).stem == Path(task).stem]
        name = Path(task).stem if set(same) == {task} else task
        how = Drawing(
            task,
            examples=drawn["examples"] or max(each.count for each in own) or None,
            seed=min(each.how.seed for each in own) if drawn["seed"] is None else drawn["seed"],
            counterfactual=counterfactual,
            skip_bad=any(each.how.skip_bad for each in own),
        )
        yield name if same.count(task) == 1 else f"{name} {counterfactual}", how


def _names(paths: tuple[str, ...]) -> list[str]:
    """What circuits are called: by their files or their runs' folders; by their paths, where two have one
    name."""
    files = [Path(file_of(path)) for path in paths]
    short = [each.parent.name if each.name == CIRCUIT_FILE else each.stem for each in files]
    return [path if short.count(name) > 1 else name for path, name in zip(paths, short, strict=True)]
