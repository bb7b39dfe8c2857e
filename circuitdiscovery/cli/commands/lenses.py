"""`lens`: what a model would say at each layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

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
)
from circuitdiscovery.cli.commands.group import cli
from circuitdiscovery.cli.files import show
from circuitdiscovery.errors import CircuitDiscoveryError, unknown
from circuitdiscovery.files.disk import ending, read_text
from circuitdiscovery.reporting.folder import load
from circuitdiscovery.reporting.options import Options
from circuitdiscovery.reporting.progress import stage

if TYPE_CHECKING:
    from circuitdiscovery.model.model import Model

_KINDS = ("logit", "linear", "tuned", "attention", "future")  # as in features/lenses.py, which imports torch


def _kind(name: str) -> str:
    if name not in _KINDS:
        raise unknown("kind", name, _KINDS)
    return name


def _documents(path: str) -> list[str]:
    """The lines of a file that are not empty; a file without one is an error."""
    return [line for line in read_text(path).splitlines() if line.strip()]


def _picture(path: str) -> Path:
    ending(path, ".png", ".svg")
    return Path(path)


_TEXTS = Checked(_documents, "FILE")


@cli.command(short_help="Read what MODEL would say at each layer.")
@click.argument("model", type=MODEL)
@click.argument("task", type=TASK, required=False)
@click.option("--texts", type=_TEXTS, help="Read these instead of TASK: one document per line.")
@click.option(
    "--kind", type=Checked(_kind, "|".join(_KINDS)), default="logit", show_default=True, help="Which lens."
)
@click.option("--fit-on", type=_TEXTS, help="Texts to fit any lens but logit on, one document per line.")
@click.option("--ahead", type=COUNT, default="1", show_default=True, help="future: how many tokens, 1 to 3.")
@click.option("--saved", type=click.Path(path_type=Path), metavar="DIR", help="Read by a lens kept there.")
@click.option("--save", type=click.Path(path_type=Path), metavar="DIR", help="Keep the fitted lens there.")
@click.option("--plot", type=Checked(_picture, "FILE"), help="Draw the table, as .png or .svg.")
@click.option("--examples", type=COUNT, help="Prompts of TASK.  [default: 64, or half of a table]")
@click.option("--seed", type=SEED, default=0, show_default=True, help="For everything that is drawn.")
@click.option("--batch-size", type=COUNT, help="[default: what memory allows]")
@memory
@click.option("--device", type=DEVICE, help="[default: a GPU if there is one]")
@click.option("--dtype", type=DTYPE, default="float32", show_default=True)
@as_json
def lens(
    texts: list[str] | None,
    kind: str,
    fit_on: list[str] | None,
    ahead: int,
    saved: Path | None,
    save: Path | None,
    plot: Path | None,
    as_json: bool,
    **given: Any,
) -> None:
    """What MODEL would say at each of its layers, on TASK's prompts or on texts: KL to what it says, and how
    often the answer (of texts its own likeliest token) is among the 1 and 10 likeliest tokens.
    """
    if (given["task"] is None) == (texts is None):
        raise CircuitDiscoveryError("give a TASK or --texts FILE: what is to be read")
    if saved is not None and (fit_on is not None or save is not None):
        raise CircuitDiscoveryError(
            "--saved is a lens that was fitted: --fit-on and --save are for a new one"
        )
    if saved is None and kind != "logit" and fit_on is None:
        raise CircuitDiscoveryError(f"a {kind} lens is fitted: give --fit-on FILE, or --saved DIR")
    model, on = _loaded(given, texts)
    import circuitdiscovery as cd

    if saved is not None:
        looked = cd.features.Lens.load(saved, model)
    else:
        how: dict[str, Any] = {"batch_size": given["batch_size"], "seed": given["seed"], "ahead": ahead}
        with stage("fitting") as report:
            looked = cd.features.lens(model, kind=kind, fit_on=fit_on, progress=report, **how)
    if save is not None:
        looked.save(save)
    with stage("reading") as report:
        found = looked.read(on, batch_size=given["batch_size"], progress=report)
    if plot is not None:
        found.plot(plot)
    show(found, as_json)


def _loaded(given: dict[str, Any], texts: list[str] | None) -> tuple[Model, Any]:
    """The model, and what is to be read."""
    if texts is None:
        return load(Options.of(given))
    with stage("loading"):
        from circuitdiscovery.model.load import load_model

        return load_model(given["model"], device=given["device"], dtype=given["dtype"]), texts
