"""`universal`: which units of a model others have too."""

from __future__ import annotations

from typing import Any

import click

from circuitdiscovery.cli.arguments import MODEL, TASK, Checked, as_json, on_runs
from circuitdiscovery.cli.commands.group import cli
from circuitdiscovery.cli.files import show
from circuitdiscovery.cli.prompts import PICTURE, TEXTS
from circuitdiscovery.errors import CircuitDiscoveryError, unknown

_KINDS = ("neurons", "heads")


def _kind(name: str) -> str:
    if name not in _KINDS:
        raise unknown("kind", name, _KINDS)
    return name


@cli.command(short_help="Find neurons or heads that MODELs have in common.")
@click.argument("models", type=MODEL, nargs=-1, required=True, metavar="MODEL OTHER...")
@click.option("--text", "texts", type=TEXTS, help="What they read, a text a line.")
@click.option("--task", type=TASK, help="In place of a text: the clean prompts of a task for MODEL.")
@click.option("--of", type=Checked(_kind, "neurons|heads"), default="neurons", show_default=True)
@click.option("--plot", type=PICTURE, help="Draw it, as .png or .svg.")
@on_runs
@as_json
def universal(
    models: tuple[str, ...],
    texts: list[str] | None,
    task: str | None,
    of: str,
    plot: str | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Which neurons or heads of the first MODEL correlate with some neuron or head of each OTHER over the
    same text, beyond what they do with random rotations of them (Gurnee et al. 2024).
    """
    if len(models) < 2:
        raise CircuitDiscoveryError("give at least two models: MODEL OTHER...")
    if (texts is None) == (task is None):
        raise CircuitDiscoveryError("give --text FILE, or --task TASK: what the models read")
    import circuitdiscovery as cd
    from circuitdiscovery.reporting.progress import stage

    with stage("loading"):
        model, *others = [
            cd.load_model(each, device=given["device"], dtype=given["dtype"]) for each in models
        ]
    where: Any = texts
    if task is not None:
        made = cd.load_task(task, model, examples=given["examples"], seed=given["seed"])
        where = [each.text for each in made.examples]
    find = cd.universality.neurons if of == "neurons" else cd.universality.heads
    with stage("comparing") as report:
        found = find(
            model, others, where, seed=given["seed"], batch_size=given["batch_size"], progress=report
        )
    if plot is not None:
        found.plot(plot)
    show(found, as_json)
