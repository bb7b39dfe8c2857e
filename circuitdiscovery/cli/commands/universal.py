"""`universal`: which units of a model others have too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from circuitdiscovery.cli.arguments import CIRCUIT, COUNT, MODEL, TASK, Checked, as_json, on_runs
from circuitdiscovery.cli.commands.group import cli
from circuitdiscovery.cli.files import circuit_of, show
from circuitdiscovery.cli.prompts import PICTURE, TEXTS, all_of_them
from circuitdiscovery.errors import CircuitDiscoveryError, unknown

if TYPE_CHECKING:
    from circuitdiscovery.circuit.circuit import Circuit
    from circuitdiscovery.model.model import Model
    from circuitdiscovery.universality import SharedCircuits

_KINDS = ("neurons", "heads", "circuits")


def _kind(name: str) -> str:
    if name not in _KINDS:
        raise unknown("kind", name, _KINDS)
    return name


@cli.command(short_help="Find neurons, heads or circuits that MODELs have in common.")
@click.argument("models", type=MODEL, nargs=-1, required=True, metavar="MODEL OTHER...")
@click.option("--text", "texts", type=TEXTS, help="What they read, a text a line.")
@click.option("--task", type=TASK, help="In place of a text: the prompts of a task.")
@click.option("--of", type=Checked(_kind, "|".join(_KINDS)), help="[default: neurons]")
@click.option(
    "--circuit",
    "circuits",
    type=CIRCUIT,
    multiple=True,
    help="Of circuits: one for each MODEL, in their order.",
)
@click.option("--edges", type=COUNT, help="Without --circuit: how many edges of each MODEL, by eap-ig.")
@click.option("--plot", type=PICTURE, help="Draw it, as .png or .svg.")
@on_runs
@as_json
def universal(
    models: tuple[str, ...],
    texts: list[str] | None,
    task: str | None,
    of: str | None,
    circuits: tuple[str, ...],
    edges: int | None,
    plot: Path | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Which neurons or heads of the first MODEL correlate with some neuron or head of each OTHER over the
    same text, beyond what they do with random rotations of them (Gurnee et al. 2024); or which nodes and
    edges of their circuits for a TASK are alike.
    """
    kind = of or ("circuits" if circuits or edges is not None else "neurons")
    if len(models) < 2:
        raise CircuitDiscoveryError("give at least two models: MODEL OTHER...")
    own: list[Circuit] = []
    if kind == "circuits":
        _check_circuits(models, texts, task, circuits, edges)
        own = [circuit_of(path) for path in circuits]
    elif circuits or edges is not None:
        raise CircuitDiscoveryError(f"--circuit and --edges are for --of circuits, not --of {kind}")
    elif (texts is None) == (task is None):
        raise CircuitDiscoveryError("give --text FILE, or --task TASK: what the models read")
    elif texts is not None:
        all_of_them(given["examples"])
    import circuitdiscovery as cd
    from circuitdiscovery.reporting.progress import stage

    with stage("loading"):
        loaded = [cd.load_model(each, device=given["device"], dtype=given["dtype"]) for each in models]
    drawing = {name: given[name] for name in ("examples", "seed", "skip_bad")}
    if kind == "circuits":
        found: Any = _circuits(loaded, task, own, edges, drawing, given["batch_size"])
    else:
        where: Any = texts
        if task is not None:
            made = cd.load_task(task, loaded[0], **drawing)
            where = [each.text for each in made.examples]
        find = cd.universality.neurons if kind == "neurons" else cd.universality.heads
        chosen = {"seed": given["seed"], "batch_size": given["batch_size"]}
        with stage("comparing") as report:
            found = find(loaded[0], loaded[1:], where, progress=report, **chosen)
    show(found, as_json)
    if plot is not None:
        (found.draw if kind == "circuits" else found.plot)(plot)


def _check_circuits(
    models: Sequence[str],
    texts: list[str] | None,
    task: str | None,
    circuits: Sequence[str],
    edges: int | None,
) -> None:
    if task is None or texts is not None:
        raise CircuitDiscoveryError("circuits are compared on a task: give --task TASK")
    if circuits and edges is not None:
        raise CircuitDiscoveryError("give --circuit or --edges, not both")
    if not circuits and edges is None:
        raise CircuitDiscoveryError("give --circuit CIRCUIT for each MODEL, or --edges N to search for them")
    if circuits and len(circuits) != len(models):
        raise CircuitDiscoveryError(
            f"give one --circuit for each MODEL: there are {len(models)} models, {len(circuits)} circuits"
        )


def _circuits(
    models: Sequence[Model],
    task: str | None,
    circuits: Sequence[Circuit],
    edges: int | None,
    drawing: dict[str, Any],
    batch_size: int | None,
) -> SharedCircuits:
    """The models' circuits beside each other: those that are given, or the best edges by eap-ig."""
    import circuitdiscovery as cd
    from circuitdiscovery.reporting.progress import stage
    from circuitdiscovery.universality.tasks import tasks_for

    names = [each.name for each in models]
    labels = [name if names.count(name) == 1 else f"{name} {i + 1}" for i, name in enumerate(names)]
    of: dict[str, tuple[Model, Circuit]] = {}
    if circuits:
        of = {label: (model, circuit) for label, model, circuit in zip(labels, models, circuits, strict=True)}
    else:
        assert edges is not None
        for label, model in zip(labels, models, strict=True):
            own = cd.load_task(task, model, **drawing)
            with stage(f"searching {label}") as report:
                scores = cd.eap_ig(model, own, batch_size=batch_size, progress=report)
            of[label] = (model, scores.top(edges))
    drawn = tasks_for({label: model for label, (model, _) in of.items()}, task, **drawing)
    with stage("comparing") as report:
        return cd.universality.circuits(
            of, drawn, seed=drawing["seed"], batch_size=batch_size, progress=report
        )
