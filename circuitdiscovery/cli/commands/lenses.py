"""`lens`: what a model would say at each layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from circuitdiscovery.cli.arguments import COUNT, FOLDER, PATH, Checked, as_json, on_runs
from circuitdiscovery.cli.commands.group import cli
from circuitdiscovery.cli.files import show
from circuitdiscovery.cli.prompts import PICTURE, TEXTS, loaded, on_model, on_task_or_texts
from circuitdiscovery.errors import CircuitDiscoveryError, unknown

_KINDS = ("logit", "linear", "tuned", "attention", "future")  # as in features/lenses.py, which imports torch


def _kind(name: str) -> str:
    if name not in _KINDS:
        raise unknown("kind", name, _KINDS)
    return name


@cli.command(short_help="Read what MODEL would say at each layer.")
@on_model
@on_task_or_texts
@click.option("--kind", type=Checked(_kind, "|".join(_KINDS)), help="Which lens.  [default: logit]")
@click.option("--fit-on", type=TEXTS, help="Texts to fit any lens but logit on, one document per line.")
@click.option("--ahead", type=COUNT, help="future: how many tokens, 1 to 3.  [default: 1]")
@click.option("--saved", type=PATH, metavar="DIR", help="Read by a lens kept there.")
@click.option("--save", type=FOLDER, metavar="DIR", help="Keep the fitted lens there.")
@click.option("--plot", type=PICTURE, help="Draw the table, as .png or .svg.")
@on_runs
@as_json
def lens(
    kind: str | None,
    fit_on: list[str] | None,
    ahead: int | None,
    saved: Path | None,
    save: Path | None,
    plot: Path | None,
    as_json: bool,
    **given: Any,
) -> None:
    """What MODEL would say at each of its layers, on TASK's prompts or on texts: KL to what it says, and how
    often the answer (of texts its own likeliest token) is among the 1 and 10 likeliest tokens.
    """
    kind = _checked(kind, saved, {"fit-on": fit_on, "ahead": ahead, "save": save})
    model, on = loaded(given)
    import circuitdiscovery as cd
    from circuitdiscovery.reporting.progress import stage

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
    show(found, as_json)
    if plot is not None:
        found.plot(plot)


def _checked(kind: str | None, saved: Path | None, given: dict[str, Any]) -> str:
    """The kind of lens; an error for options that are not for it."""
    if saved is not None:
        if other := [name for name, value in {"kind": kind, **given}.items() if value is not None]:
            raise CircuitDiscoveryError(f"--saved is a lens that was fitted: --{other[0]} is for a new one")
        return "logit"
    kind = kind or "logit"
    if kind == "logit" and given["fit-on"] is not None:
        raise CircuitDiscoveryError(
            f"--fit-on is not for the logit lens; valid with --kind {', '.join(_KINDS[1:])}"
        )
    if kind != "future" and given["ahead"] is not None:
        raise CircuitDiscoveryError("--ahead is for --kind future")
    if kind != "logit" and given["fit-on"] is None:
        raise CircuitDiscoveryError(f"a {kind} lens is fitted: give --fit-on FILE, or --saved DIR")
    return kind
