"""The commands and their options: each file adds some of them to the group."""

from circuitdiscovery.cli.commands import (
    about_circuits,
    dictionaries,
    discover,
    forming,
    lenses,
    listing,
    neuron,
    patching,
    patchscopes,
    planning,
    probing,
    steering,
    transferring,
    universal,
)
from circuitdiscovery.cli.commands.group import COMPLETE, PROGRAM, cli, notes_of

__all__ = [
    "COMPLETE",
    "PROGRAM",
    "about_circuits",
    "cli",
    "dictionaries",
    "discover",
    "forming",
    "lenses",
    "listing",
    "neuron",
    "notes_of",
    "patching",
    "patchscopes",
    "planning",
    "probing",
    "steering",
    "transferring",
    "universal",
]
