"""`neuron`: what makes one unit of a model active, and what it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from circuitdiscovery.cli.arguments import COUNT, DEVICE, DTYPE, MODEL, SEED, TASK, Checked, as_json, memory
from circuitdiscovery.cli.commands.group import cli
from circuitdiscovery.cli.files import show
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.reporting.folder import load
from circuitdiscovery.reporting.options import Options


def _page(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in (".html", ".htm"):
        raise CircuitDiscoveryError(f"{text!r} must end in .html")
    if not path.parent.is_dir():
        raise CircuitDiscoveryError(f"there is no folder {path.parent}")
    return path


@cli.command(short_help="Show what makes a neuron or a feature active.")
@click.argument("model", type=MODEL)
@click.argument("unit", metavar="UNIT")
@click.argument("task", type=TASK, required=False)
@click.option("--texts", metavar="FILE", help="Look in this file, a text a line, and not in TASK's prompts.")
@click.option("--dictionary", metavar="FOLDER", help="Of which UNIT, such as m2/f17, is a feature.")
@click.option("--top", type=COUNT, default="20", show_default=True, help="How many snippets.")
@click.option("--html", type=Checked(_page, "FILE"), help="Write a page with highlighted tokens, too.")
@click.option("--examples", type=COUNT, help="Prompts of TASK.  [default: 64, or half of a table]")
@click.option("--seed", type=SEED, default=0, show_default=True, help="For everything that is drawn.")
@click.option("--batch-size", type=COUNT, help="[default: what memory allows]")
@memory
@click.option("--device", type=DEVICE, help="[default: a GPU if there is one]")
@click.option("--dtype", type=DTYPE, default="float32", show_default=True)
@as_json
def neuron(
    unit: str,
    task: str | None,
    texts: str | None,
    dictionary: str | None,
    top: int,
    html: Path | None,
    as_json: bool,
    **given: Any,
) -> None:
    """What makes UNIT of MODEL active, a neuron such as m2/n301 or a feature of a dictionary, on the prompts
    of TASK or in texts; and what it writes.
    """
    if (task is None) == (texts is None):
        raise CircuitDiscoveryError("give TASK, or --texts FILE: where UNIT is looked for")
    lines = None if texts is None else _lines(texts)
    import circuitdiscovery as cd
    from circuitdiscovery.reporting.progress import stage

    if task is None:
        with stage("loading"):
            where: Any = lines
            model = cd.load_model(given["model"], device=given["device"], dtype=given["dtype"])
    else:
        model, where = load(Options.of(given | {"task": task}))
    meant = unit if dictionary is None else _feature(cd.features.load_sae(dictionary), unit)
    how = {"top": top, "seed": given["seed"], "batch_size": given["batch_size"]}
    with stage("looking") as report:
        found = cd.features.top_activations(model, meant, where, progress=report, **how)
    if html is not None:
        from circuitdiscovery.files.disk import write_atomically

        write_atomically(html, found.html())
    show(found, as_json)


def _lines(path: str) -> list[str]:
    """The texts of a file, one a line, without empty lines."""
    from circuitdiscovery.files.disk import read_text

    return [line for line in read_text(path).replace("\r", "").split("\n") if line.strip()]


def _feature(dictionary: Any, unit: str) -> Any:
    """The feature of that name: m2/f17."""
    site, _, part = unit.partition("/")
    if dictionary.site is None:
        raise CircuitDiscoveryError("the dictionary does not say where in a model it stands")
    if not (part[:1] == "f" and part[1:].isdecimal()) or site != dictionary.site:
        raise CircuitDiscoveryError(
            f"UNIT {unit!r} is no feature of the dictionary; one is {dictionary.site}/f0, for example"
        )
    return dictionary[int(part[1:])]
