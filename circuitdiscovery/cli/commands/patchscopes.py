"""`patchscope`: a model says in words what stands in its own residual stream."""

from __future__ import annotations

from typing import Any

import click

from circuitdiscovery.cli.arguments import COUNT, Checked, as_json, on_runs, whole_number
from circuitdiscovery.cli.commands.group import cli
from circuitdiscovery.cli.files import show
from circuitdiscovery.cli.prompts import POSITION, loaded, on_model, on_task_or_texts

LAYER = Checked(whole_number(0), "LAYER")


@cli.command(short_help="Let MODEL say what stands in its own stream (Patchscopes).")
@on_model
@on_task_or_texts
@click.option("--at", type=LAYER, multiple=True, required=True, help="Whose stream is taken; repeat it.")
@click.option(
    "--position",
    type=POSITION,
    default="-1",
    show_default=True,
    help="Of the source token, negative from the end; of TASK one of its names too.",
)
@click.option("--into", type=LAYER, help="Whose stream it replaces.  [default: the same]")
@click.option("--target", metavar="TEXT", help='With the placeholder "?".  [default: the identity prompt]')
@click.option("--target-position", type=int, metavar="N", help="Of the placeholder in it.")
@click.option(
    "--read",
    metavar="TEXT",
    default="?",
    show_default=True,
    help="? reads what follows next; -> appends an arrow, and reads which token it is.",
)
@click.option("--generate", type=COUNT, default="1", show_default=True, help="How many tokens are said.")
@on_runs
@as_json
def patchscope(
    at: tuple[int, ...],
    position: int | str,
    into: int | None,
    target: str | None,
    target_position: int | None,
    read: str,
    generate: int,
    as_json: bool,
    **given: Any,
) -> None:
    """Put the stream at a token of each prompt, of TASK or in texts, in the place of a placeholder in another
    prompt, and print what MODEL says there.
    """
    model, prompts = loaded(given)
    import circuitdiscovery as cd
    from circuitdiscovery.reporting.progress import stage

    how: dict[str, Any] = {"position": position, "into": into, "target_position": target_position}
    how |= {"read": read, "generate": generate, "batch_size": given["batch_size"]}
    how |= {} if target is None else {"target": target}
    with stage("patching") as report:
        found = cd.features.patchscope(model, prompts, at[0] if len(at) == 1 else at, progress=report, **how)
    show(found, as_json)
