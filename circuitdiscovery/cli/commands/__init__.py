"""The commands and their options; in the order in which help lists them."""

from circuitdiscovery.cli.commands import discover, about_circuits, patching, listing  # noqa: I001, F401  # each adds its own
from circuitdiscovery.cli.commands.group import COMPLETE, PROGRAM, cli, notes_of

__all__ = ["COMPLETE", "PROGRAM", "cli", "notes_of"]
