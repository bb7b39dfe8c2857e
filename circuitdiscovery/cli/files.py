"""What a command is told by a file: a circuit, its scores, and the options that
it was searched with; and what is printed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from circuitdiscovery.cli.arguments import task_name, valid_counterfactual
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.files.disk import shipped
from circuitdiscovery.registry import checked_direction
from circuitdiscovery.reporting.folder import CIRCUIT, SCORES, recorded
from circuitdiscovery.reporting.options import MAY_DIFFER, Options, check_model, checked, searched_with
from circuitdiscovery.reporting.progress import say

if TYPE_CHECKING:
    from circuitdiscovery.circuit.circuit import Circuit
    from circuitdiscovery.circuit.scores import Scores

EVALUATION_FIELDS = (
    *("model", "task", "counterfactual", "ablation", "metric", "direction"),
    *("examples", "batch_size", "seed", "device", "dtype", "skip_bad"),
)


def circuit_of(path: str) -> Circuit:
    from circuitdiscovery.circuit.load import load_circuit

    return load_circuit(path)


def file_of(path: str) -> str:
    """The circuit.json of a run's folder; anything else as it is."""
    from circuitdiscovery.files.disk import is_folder

    if path in shipped("graphs") or not is_folder(path):
        return path
    from circuitdiscovery.circuit.load import circuit_file

    return str(circuit_file(path))


def scores_of(circuit: Circuit, path: str) -> Scores | None:
    """The scores in the run folder that a circuit lies in, where it lies in one that has some, and was taken
    from them; where it was not, a line says so."""
    from circuitdiscovery.circuit.scores import Scores

    path = file_of(path)
    beside = Path(path).parent / SCORES
    if Path(path).name != CIRCUIT or not beside.exists():
        return None
    scores = Scores.load(beside)
    if taken_from(circuit, scores):
        return scores
    say(f"{beside} is of another circuit than {path}, and not used")
    return None


def taken_from(circuit: Circuit, scores: Scores) -> bool:
    """Whether a circuit's edges have the scores that they have there."""
    if circuit.graph != scores.graph or circuit.scores is None:
        return circuit.graph == scores.graph and len(circuit) == 0
    return bool((circuit.scores[circuit.mask] == scores.values[circuit.mask]).all())


def known_of_search(circuit: Circuit, path: str, names: Collection[str]) -> dict[str, Any]:
    """Options by name of the search that found a circuit: what run.json beside it says, else what the circuit
    knows. Others may be of a method that is not at hand."""
    path = file_of(path)
    run = Path(path).parent / "run.json"

    def those(options: Mapping[str, Any], where: str) -> dict[str, Any]:
        return checked({name: value for name, value in options.items() if name in names}, where)

    values = those(searched_with(circuit.info), path)
    if Path(path).name == CIRCUIT and run.exists():
        values |= those(recorded(run.parent)["options"], str(run))
    return values


def evaluation_options(
    circuit: Circuit, path: str, given: dict[str, Any], names: Collection[str] = EVALUATION_FIELDS
) -> Options:
    """What is given; else what is known of the circuit's search, of the options that are named. On which
    device it was searched, and how many examples at a time, was of that machine; by which metric and
    counterfactual, of its task.
    """
    asked_anew = {key: value for key, value in given.items() if value is not None}
    before = known_of_search(circuit, path, ("task",)).get("task")
    another = "task" in asked_anew and Path(asked_anew["task"]).stem != Path(before or "").stem
    not_taken = (*asked_anew, *MAY_DIFFER, *(("metric", "counterfactual") if another else ()))
    values = known_of_search(circuit, path, set(names) - set(not_taken)) | asked_anew
    path = file_of(path)
    for key, check in (("model", check_model), ("task", task_name)):
        if not isinstance(values.get(key), str):
            raise CircuitDiscoveryError(f"{path} does not say its {key}: give --{key}")
        if given[key] is None:
            values[key] = from_file(path, key, check, values[key])
    if isinstance(values.get("counterfactual"), str):
        values["counterfactual"] = valid_counterfactual(values["task"], values["counterfactual"])
    if values.get("direction") == "denoising" and "ablation" not in asked_anew:
        values["ablation"] = "resample"  # whatever the search took
    options = Options.of({field: values[field] for field in names if field in values})
    checked_direction(options.direction, options.ablation)
    return options


def from_file(path: str, key: str, check: Callable[[str], str], value: str) -> str:
    try:
        return check(value)
    except CircuitDiscoveryError as error:
        raise CircuitDiscoveryError(f"{path} was found with {key} {value!r}: {error}; give --{key}") from None


def show(result: Any, as_json: bool) -> None:
    if as_json:
        show_json(result.to_dict())
    else:
        click.echo(str(result))


def show_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=1, allow_nan=False))


def show_report(report: str, summary: dict[str, Any], options: Options) -> None:
    """What `discover` says at its end."""
    from circuitdiscovery.reporting.progress import duration

    seconds = summary["seconds"]
    parts = ", ".join(f"{name} {duration(value)}" for name, value in seconds.items())
    rows = []
    if summary["measured"] == "none":
        how = replace(options, measure="quick").resume_command(summary["folder"])
        rows = [("measured", f"not measured; measure it with: {how}")]
    rows += [
        ("time", f"{duration(sum(seconds.values()))} ({parts})"),
        ("files", f"{summary['folder']}: {', '.join(summary['files'])}"),
    ]
    for line in [*report.splitlines(), *(f"{name:<13} {value}" for name, value in rows)]:
        name, value = line[:14], line[14:]
        click.echo(click.style(name, bold=True) + value)
