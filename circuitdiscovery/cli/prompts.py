"""What the commands of feature study read: prompts of a task, or texts from a file; and units of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from circuitdiscovery.cli.arguments import MODEL, TASK, Checked, Command, Output
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.files.disk import expanded, read_text
from circuitdiscovery.reporting.folder import load
from circuitdiscovery.reporting.options import Options

if TYPE_CHECKING:
    from circuitdiscovery.model.model import Model


def documents(path: str) -> list[str]:
    """The lines of a file that are not empty."""
    found = [line.rstrip("\r") for line in read_text(path).split("\n") if line.strip()]
    if not found:
        raise CircuitDiscoveryError(f"{path} has no text")
    return found


def _position(text: str) -> int | str:
    """A number, negative from the end, or a task's name of a position."""
    if not text.removeprefix("-").isdecimal():
        return text
    if len(text) > 18:
        raise CircuitDiscoveryError(f"{text[:40]}... is no position in a prompt")
    return int(text)


TEXTS = Checked(lambda text: documents(str(expanded(text))), "FILE")
POSITION = Checked(_position, "N|NAME")
PICTURE = Output(".png", ".svg")


def on_model(command: Command) -> Command:
    """MODEL."""
    return click.argument("model", type=MODEL)(command)


def on_task_or_texts(command: Command) -> Command:
    """TASK, or --texts FILE."""
    words = "Read these in place of TASK's prompts, a text a line."
    command = click.option("--texts", type=TEXTS, help=words)(command)
    return click.argument("task", type=TASK, required=False)(command)


def loaded(given: dict[str, Any]) -> tuple[Model, Any]:
    """The model, and the task or the texts; `texts`, `task` and where they run are taken from what was given.

    Raises:
        CircuitDiscoveryError: neither of the two, or both; texts, and how many examples.
    """
    texts = given.pop("texts")
    if (given["task"] is None) == (texts is None):
        raise CircuitDiscoveryError("give a TASK, or --texts FILE")
    if texts is None:
        return load(Options.of(given))
    all_of_them(given["examples"])
    from circuitdiscovery.model.load import load_model
    from circuitdiscovery.reporting.progress import stage

    with stage("loading"):
        return load_model(given["model"], device=given["device"], dtype=given["dtype"]), texts


def all_of_them(examples: int | None) -> None:
    """Refuse a number of examples where texts are read."""
    if examples is not None:
        raise CircuitDiscoveryError(
            "--examples is how many prompts of a task are drawn; of texts all are read"
        )


def unit_named(name: str, folder: str | None) -> Any:
    """A neuron by its name, or where a dictionary's folder is given that feature of it, m2/f17 or 17.

    Raises:
        CircuitDiscoveryError: no such feature; a folder that holds no dictionary.
    """
    if folder is None:
        return name
    from circuitdiscovery.features.load import load_sae

    dictionary = load_sae(folder)
    number = name.removeprefix(f"{dictionary.site}/f")
    if not number.isdecimal():
        raise CircuitDiscoveryError(
            f"UNIT {name!r} is no feature of the dictionary; one is {dictionary.site or ''}/f0, for example"
        )
    return dictionary[int(number)]
