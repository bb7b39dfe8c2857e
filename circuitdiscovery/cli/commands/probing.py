"""The command `probe`: which sites tell a label, and whether the task needs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from circuitdiscovery.cli.arguments import FILE, Checked, as_json, on_prompts, on_task
from circuitdiscovery.cli.commands.group import cli
from circuitdiscovery.cli.files import show
from circuitdiscovery.cli.prompts import POSITION
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.files.text import whole
from circuitdiscovery.reporting.folder import load
from circuitdiscovery.reporting.options import Options


def _sizes(text: str) -> list[int | None]:
    """`1,2,all` -> [1, 2, None]."""
    return [None if part.strip() == "all" else whole(part.strip(), 1) for part in text.split(",")]


@cli.command(short_help="Probe sites of MODEL for a label of TASK's prompts.")
@on_task
@click.option("--label", metavar="NAME", help="Of the task, or a variable of its prompts.")
@click.option("--of", metavar="NAME", help="The variable whose word the label is of.")
@click.option("--csv", "table", type=FILE, metavar="FILE", help="Labels of other texts: text, token, label.")
@click.option(
    "--at",
    default="resid",
    show_default=True,
    metavar="SITES",
    help="Of every layer resid, a, a.z, m or m.neurons; or sites such as resid0,m2.",
)
@click.option("--position", type=POSITION, help="Where.  [default: the answer's position]")
@click.option(
    "--k", type=Checked(_sizes, "K,..."), default="all", help="Columns that a probe reads.  [default: all]"
)
@click.option("--groups", metavar="NAME", help="A variable whose words are held out whole.")
@click.option("--erase", is_flag=True, help="Erase what each probe reads, and measure the task.")
@on_prompts
@as_json
def probe(
    label: str | None,
    of: str | None,
    table: Path | None,
    at: str,
    position: Any,
    k: list[int | None],
    groups: str | None,
    erase: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Fit a linear probe at each site of MODEL for a label of TASK's prompts, such as --label number of
    subject_verb_agreement; with --erase, what TASK loses without what the probe reads.
    """
    if (label is None) == (table is None):
        raise CircuitDiscoveryError("give --label NAME, of the task's prompts, or --csv FILE")
    if table is not None and (of or groups or position is not None):
        raise CircuitDiscoveryError("--of, --groups and --position are for labels of the task, not for --csv")
    from circuitdiscovery import features
    from circuitdiscovery.reporting.progress import stage

    options = Options.of(given)
    model, task = load(options)
    how: dict[str, Any] = {"at": [part.strip() for part in at.split(",")], "k": k, "position": position}
    if erase:
        how |= {"task": task, "metric": options.metric}
    asked: tuple[Any, ...]
    if table is not None:
        asked = (features.labels_from_csv(table, model),)
    else:
        asked = (task, features.labels(task, label or "", of=of))
        how["groups"] = None if groups is None else features.labels(task, groups).values
    with stage("probing") as report:
        found = features.probes(
            model, *asked, **how, batch_size=options.batch_size, seed=options.seed, progress=report
        )
    show(found, as_json)
