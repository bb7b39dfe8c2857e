"""The group that the commands belong to."""

from __future__ import annotations

import click

from circuitdiscovery import __version__
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.registry import METHODS

PROGRAM = "circuitdiscovery"
COMPLETE = "_CIRCUITDISCOVERY_COMPLETE={shell}_source circuitdiscovery"
# What people look for among the commands, and where it is.
ELSEWHERE = {
    "help": "circuitdiscovery --help lists the commands, circuitdiscovery COMMAND --help the options of one",
    "path_patching": "it is circuitdiscovery trace",
    "patch": "it is circuitdiscovery trace",
    "stability": "in Python it is circuitdiscovery.stability",
    "hypothesis_tests": "in Python it is circuitdiscovery.hypothesis_tests",
    "curve": "circuitdiscovery discover measures the curve; in Python it is circuitdiscovery.curve",
    "search": "it is circuitdiscovery discover",
    "run": "it is circuitdiscovery discover",
    **{name: f"it is circuitdiscovery discover --method {name.replace('_', '-')}" for name in METHODS},
}


class Commands(click.Group):
    """The commands; what is one in Python only, or is called otherwise here, is told."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = super().get_command(ctx, cmd_name)
        if found is None and (meant := ELSEWHERE.get(cmd_name.replace("-", "_").lower())):
            raise CircuitDiscoveryError(f"no command {cmd_name!r}: {meant}")
        return found


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    no_args_is_help=False,
    epilog=(
        f"\b\nShell completion (bash, zsh or fish): this prints the script\n  {COMPLETE.format(shell='bash')}"
    ),
)
@click.version_option(__version__, prog_name=PROGRAM, message="%(prog)s %(version)s")
def cli() -> None:
    """From a transformer and a task to a measured, drawn circuit."""


def notes_of(error: BaseException) -> list[str]:
    """What the run that an exception stopped says of what is left."""
    return list(getattr(error, "__notes__", ()))
