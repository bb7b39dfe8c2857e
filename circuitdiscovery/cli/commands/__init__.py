"""The commands and their options: each file adds some of them to the group."""

from circuitdiscovery.cli.commands import about_circuits, dictionaries, discover, listing, patching, planning
from circuitdiscovery.cli.commands.group import COMPLETE, PROGRAM, cli, notes_of

__all__ = [
    "COMPLETE",
    "PROGRAM",
    "about_circuits",
    "cli",
    "dictionaries",
    "discover",
    "listing",
    "notes_of",
    "patching",
    "planning",
]
