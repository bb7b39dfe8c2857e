"""`plan`: what searches of a model cost, before it is loaded."""

from __future__ import annotations

import click

from circuitdiscovery.cli.arguments import COUNT, DTYPE, as_json, memory, on_task, skip_bad_rows
from circuitdiscovery.cli.commands.group import cli
from circuitdiscovery.cli.files import show


@cli.command(short_help="Say what searches of MODEL on TASK would cost.")
@on_task
@click.option("--examples", type=COUNT, help="Prompt pairs.  [default: 64, or half of a table]")
@click.option("--dtype", type=DTYPE, default="float32", show_default=True, help="Of the weights.")
@skip_bad_rows
@memory
@as_json
def plan(model: str, task: str, examples: int | None, dtype: str, skip_bad: bool, as_json: bool) -> None:
    """Say what searches of MODEL on TASK would cost: forwards, time on this machine, memory.

    The weights are not read; of a name on the hub only the config and the tokenizer are fetched.
    """
    import circuitdiscovery as cd

    show(cd.plan(model, task, examples=examples, dtype=dtype, skip_bad=skip_bad), as_json)
