"""`patchscope`: a model says in words what stands in its own residual stream."""

from __future__ import annotations

from typing import Any

import click

from circuitdiscovery.cli.arguments import (
    COUNT,
    DEVICE,
    DTYPE,
    MODEL,
    SEED,
    TASK,
    Checked,
    as_json,
    memory,
    whole_number,
)
from circuitdiscovery.cli.commands.group import cli
from circuitdiscovery.cli.files import show
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.reporting.folder import load
from circuitdiscovery.reporting.options import Options

LAYER = Checked(whole_number(0), "LAYER")


def position_of(text: str) -> int | str:
    """A number, or a task's name of a position."""
    return int(text) if text.removeprefix("-").isdecimal() else text


@cli.command(short_help="Let MODEL say what stands in its own stream (Patchscopes).")
@click.argument("model", type=MODEL)
@click.argument("task", type=TASK, required=False)
@click.option("--texts", metavar="FILE", help="Source prompts, a text a line, in place of TASK's prompts.")
@click.option("--at", type=LAYER, multiple=True, required=True, help="Whose stream is taken; repeat it.")
@click.option(
    "--position",
    type=Checked(position_of, "N|NAME"),
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
@click.option("--examples", type=COUNT, help="Prompts of TASK.  [default: 64, or half of a table]")
@click.option("--seed", type=SEED, default=0, show_default=True, help="For everything that is drawn.")
@click.option("--batch-size", type=COUNT, help="[default: what memory allows]")
@memory
@click.option("--device", type=DEVICE, help="[default: a GPU if there is one]")
@click.option("--dtype", type=DTYPE, default="float32", show_default=True)
@as_json
def patchscope(
    task: str | None,
    texts: str | None,
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
    if (task is None) == (texts is None):
        raise CircuitDiscoveryError("give TASK, or --texts FILE: the source prompts")
    lines = None if texts is None else _lines(texts)
    import circuitdiscovery as cd
    from circuitdiscovery.reporting.progress import stage

    if task is None:
        with stage("loading"):
            prompts: Any = lines
            model = cd.load_model(given["model"], device=given["device"], dtype=given["dtype"])
    else:
        model, prompts = load(Options.of(given | {"task": task}))
    how: dict[str, Any] = {"position": position, "into": into, "target_position": target_position}
    how |= {"read": read, "generate": generate, "batch_size": given["batch_size"]}
    how |= {} if target is None else {"target": target}
    with stage("patching") as report:
        found = cd.features.patchscope(model, prompts, at[0] if len(at) == 1 else at, progress=report, **how)
    show(found, as_json)


def _lines(path: str) -> list[str]:
    """The texts of a file, one a line, without empty lines."""
    from circuitdiscovery.files.disk import read_text

    return [line for line in read_text(path).replace("\r", "").split("\n") if line.strip()]
