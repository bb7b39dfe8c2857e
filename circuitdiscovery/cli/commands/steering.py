"""`steer`: a unit's direction is added to the activations, and what that does is measured."""

from __future__ import annotations

from typing import Any

import click

from circuitdiscovery.cli.arguments import COUNT, Checked, as_json, on_prompts, on_task
from circuitdiscovery.cli.commands.group import cli
from circuitdiscovery.cli.files import show
from circuitdiscovery.cli.prompts import POSITION, unit_named
from circuitdiscovery.files.text import finite
from circuitdiscovery.reporting.folder import load
from circuitdiscovery.reporting.options import Options


@cli.command(short_help="Steer MODEL with a neuron or a feature.")
@on_task
@click.argument("unit", metavar="UNIT")
@click.option(
    "--by",
    type=Checked(finite, "F"),
    multiple=True,
    help="In multiples of UNIT's largest activation; repeat it.  [default: 1, 2 and 4]",
)
@click.option("--dictionary", metavar="FOLDER", help="Of which UNIT, such as m2/f17, is a feature.")
@click.option("--position", type=POSITION, help="[default: every token but the first]")
@click.option("--largest", type=Checked(finite, "A"), help="The activation to multiply, if not that on TASK.")
@click.option(
    "--draws", type=COUNT, default="5", show_default=True, help="How many random directions beside it."
)
@on_prompts
@as_json
def steer(
    unit: str,
    by: tuple[float, ...],
    dictionary: str | None,
    position: int | str | None,
    largest: float | None,
    draws: int,
    as_json: bool,
    **given: Any,
) -> None:
    """Add the direction of UNIT, a neuron such as m2/n301 or a feature of a dictionary, to the activations of
    MODEL on TASK; and print how the metric changes and which tokens rise, beside random directions.
    """
    import circuitdiscovery as cd
    from circuitdiscovery.reporting.progress import stage

    meant = unit_named(unit, dictionary)
    options = Options.of(given)
    model, task = load(options)
    how: dict[str, Any] = {"by": list(by)} if by else {}
    how |= {"position": position, "largest": largest, "draws": draws}
    how |= options.some("metric", "seed", "batch_size")
    with stage("steering") as report:
        found = cd.features.steer(model, task, meant, progress=report, **how)
    show(found, as_json)
