"""`neuron`: what makes one unit of a model active, and what it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from circuitdiscovery.cli.arguments import COUNT, Output, as_json, on_runs
from circuitdiscovery.cli.commands.group import cli
from circuitdiscovery.cli.files import show
from circuitdiscovery.cli.prompts import loaded, on_model, on_task_or_texts, unit_named
from circuitdiscovery.files.disk import write_atomically


@cli.command(short_help="Show what makes a neuron or a feature active.")
@on_model
@click.argument("unit", metavar="UNIT")
@on_task_or_texts
@click.option("--dictionary", metavar="FOLDER", help="Of which UNIT, such as m2/f17, is a feature.")
@click.option("--top", type=COUNT, default="20", show_default=True, help="How many snippets.")
@click.option("--html", type=Output(".html", ".htm"), help="Write a page with highlighted tokens, too.")
@on_runs
@as_json
def neuron(
    unit: str, dictionary: str | None, top: int, html: Path | None, as_json: bool, **given: Any
) -> None:
    """What makes UNIT of MODEL active, a neuron such as m2/n301 or a feature of a dictionary, on the prompts
    of TASK or in texts; and what it writes.
    """
    meant = unit_named(unit, dictionary)
    model, where = loaded(given)
    import circuitdiscovery as cd
    from circuitdiscovery.reporting.progress import stage

    how = {"top": top, "seed": given["seed"], "batch_size": given["batch_size"]}
    with stage("looking") as report:
        found = cd.features.top_activations(model, meant, where, progress=report, **how)
    if html is not None:
        write_atomically(html, found.html())
    show(found, as_json)
