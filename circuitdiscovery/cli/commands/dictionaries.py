"""`sae`: train, show and sweep sparse dictionaries of what a model's activations carry."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from circuitdiscovery.cli.arguments import (
    COUNT,
    FOLDER,
    MODEL,
    SEED,
    TASK,
    Checked,
    Command,
    as_json,
    on_runs,
)
from circuitdiscovery.cli.commands.group import cli
from circuitdiscovery.cli.files import show, show_json
from circuitdiscovery.cli.prompts import TEXTS, all_of_them
from circuitdiscovery.errors import CircuitDiscoveryError, unknown
from circuitdiscovery.files.disk import is_folder
from circuitdiscovery.files.text import finite

TOLD = ("layer", "site", "reads", "centred")  # of load_sae: what a folder may leave out
SAE_KINDS = ("topk", "relu", "jumprelu", "gated")  # as in features/dictionary.py, which imports torch


def _kind(name: str) -> str:
    if name not in SAE_KINDS:
        raise unknown("kind", name, SAE_KINDS)
    return name


def _above_zero(text: str) -> float:
    if (number := finite(text)) <= 0:
        raise CircuitDiscoveryError(f"{text[:40]!r} is not above 0")
    return number


KIND = Checked(_kind, "|".join(SAE_KINDS))
NUMBER = Checked(_above_zero, "X")


def on_prompts_of(command: Command) -> Command:
    """The prompts, and where and how they run."""
    command = click.option("--task", type=TASK, help="The clean prompts of a task.")(on_runs(command))
    return click.option("--texts", type=TEXTS, help="A file, a text a line.")(command)


def in_training(command: Command) -> Command:
    """Where a dictionary stands and how it is trained."""
    options = (
        click.option("--at", required=True, metavar="SITE", help="What it reads: m2, resid5, m2.normed, ..."),
        click.option(
            "--target", metavar="SITE", help="What it writes: makes a transcoder, as m2 of m2.normed."
        ),
        click.option("--n", type=COUNT, default="512", show_default=True, help="Features."),
        click.option("--steps", type=COUNT, default="2000", show_default=True, help="Steps of 1,024 rows."),
        click.option("--lr", type=NUMBER, help="Learning rate.  [default: 2e-4 sqrt(2^14 / n)]"),
        click.option(
            "--end-to-end", is_flag=True, help="Train for what the model does with what is written."
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@cli.group(short_help="Train, show and sweep sparse dictionaries (autoencoders, transcoders).")
def sae() -> None:
    """Sparse dictionaries of activations: autoencoders and transcoders."""


@sae.command(short_help="Train one on the activations of MODEL.")
@click.argument("model", type=MODEL)
@in_training
@click.option("--kind", type=KIND, default="topk", show_default=True)
@click.option("--k", type=COUNT, help="Active features of topk.  [default: 8]")
@click.option("--sparsity", type=NUMBER, help="Weight of the penalty of the other kinds.")
@click.option(
    "--to", type=FOLDER, required=True, help="Where it is kept: a training that was stopped goes on."
)
@on_prompts_of
def train(to: Path, kind: str, k: int | None, sparsity: float | None, **given: Any) -> None:
    """Train a sparse dictionary on the activations of MODEL at SITE, on --texts or the prompts of --task.

    While it lasts, all that it stands on is kept in FOLDER.state."""
    if kind != "topk" and k is not None:
        raise CircuitDiscoveryError(f"--k is for topk; of {kind} it is --sparsity")
    if given["texts"] is not None and given["task"] is not None:
        raise CircuitDiscoveryError("give --texts FILE or --task TASK, not both")
    if (to / "cfg.json").exists():
        raise CircuitDiscoveryError(f"{to} has a dictionary already: give another folder")
    import circuitdiscovery as cd

    model, prompts, _ = _loaded(**given)
    acts, how = _collected(model, prompts, given)
    own = {"kind": kind, "sparsity": sparsity} | ({"k": k} if k is not None else {})
    to.parent.mkdir(parents=True, exist_ok=True)
    whole = to.resolve()  # . has no name
    state = whole.parent / f"{whole.name}.state"
    with _going_on("training", state):
        found = _watched(cd.features.train_sae, "training")(acts, **own, **how, state=state)
    found.save(to)
    state.unlink(missing_ok=True)
    last = found.history[-1]
    click.echo(
        f"{found}\n{to}: {len(acts):,} activations, of the last batch explained variance "
        f"{last['explained_variance']:.3f}, L0 {last['l0']:.1f}, dead {last['dead']:.0f}"
    )


@sae.command("show", short_help="What a FOLDER's dictionary is, and its figures on MODEL.")
@click.argument("folder", type=FOLDER)
@click.argument("model", type=MODEL, required=False)
@click.option("--layer", type=SEED, help="Of a folder with dictionaries of several layers.")
@click.option("--site", metavar="SITE", help="Where it stands, if the folder does not say.")
@click.option("--reads", metavar="WHAT", help="What it reads, if the folder does not say: normed, ...")
@click.option(
    "--centred/--not-centred",
    default=None,
    help="Of SAE Lens: whether its model's center_writing_weights was on, if the folder does not say.",
)
@click.option("--to", type=FOLDER, help="Write it as a folder that says all of this.")
@on_prompts_of
@as_json
def show_one(folder: Path, model: str | None, to: Path | None, **given: Any) -> None:
    """What the dictionary in FOLDER is; with MODEL and --texts or --task how well it writes what it is of."""
    as_json, told = given.pop("as_json"), {name: given.pop(name) for name in TOLD}
    if not is_folder(folder):
        raise CircuitDiscoveryError(f"there is no folder {folder}")
    if model is None and (given["texts"] or given["task"]):
        raise CircuitDiscoveryError("give MODEL, too, which is run on the prompts")
    import circuitdiscovery as cd

    found = cd.features.load_sae(folder, **told)
    if to is not None:
        found.save(to)
    if model is None:
        fields = ("kind", "site", "reads", "width", "d_in", "d_out", "k", "digest")
        known = {name: getattr(found, name) for name in fields}
        if as_json:
            show_json(known)
        else:
            click.echo("\n".join(f"{name:<13} {value}" for name, value in known.items() if value is not None))
        return
    if found.site is None:
        raise CircuitDiscoveryError(f"{folder} does not say where the dictionary stands: give --site")
    loaded, prompts, task = _loaded(model=model, **given)
    from circuitdiscovery.features.standing import places_of_dictionary

    reads, writes = places_of_dictionary(found, loaded)
    acts = _activations(loaded, prompts, reads or writes, given)
    target = None if reads is None else _activations(loaded, prompts, writes, given)
    how = {"batch_size": given["batch_size"], "seed": given["seed"]}
    show(cd.features.evaluate_sae(found, acts, target=target, model=loaded, task=task, **how), as_json)


@sae.command("sweep", short_help="Several kinds and sparsities on one axis.")
@click.argument("model", type=MODEL)
@in_training
@click.option("--kind", "kinds", type=KIND, multiple=True, help="Repeatable.  [default: all]")
@click.option("--to", type=FOLDER, required=True, help="Where all is kept: a sweep that was stopped goes on.")
@on_prompts_of
@as_json
def sweep_all(to: Path, kinds: tuple[str, ...], **given: Any) -> None:
    """Train dictionaries of several kinds and sparsities on the activations of MODEL at SITE, and measure
    them beside PCA, neurons and random directions on the last fifth of the prompts."""
    as_json = given.pop("as_json")
    import circuitdiscovery as cd

    model, prompts, task = _loaded(**given)
    acts, how = _collected(model, prompts, given)
    how |= {"kinds": kinds or SAE_KINDS, "model": model, "task": task, "batch_size": given["batch_size"]}
    with _going_on("sweeping", to):
        found = _watched(cd.features.sweep, "sweep")(acts, to=to, **how)
    show(found, as_json)
    found.plot(to / "sweep.png")


@contextmanager
def _going_on(doing: str, kept: Path) -> Iterator[None]:
    """Where it is interrupted, that is told with what is kept."""
    try:
        yield
    except KeyboardInterrupt as stopped:
        there = f"what was done is in {kept}: the same command goes on from there"
        stopped.add_note(f"while {doing}; {there if kept.exists() else 'nothing was kept yet'}")
        raise


def _loaded(
    *,
    model: str,
    texts: list[str] | None,
    task: str | None,
    examples: int | None,
    seed: int,
    skip_bad: bool,
    **given: Any,
) -> tuple[Any, Any, Any]:
    """(the model, the prompts, the task)."""
    if texts is None and task is None:
        raise CircuitDiscoveryError("give the prompts: --texts FILE or --task TASK")
    if task is None:
        all_of_them(examples)
    import circuitdiscovery as cd

    loaded = cd.load_model(model, device=given["device"], dtype=given["dtype"])
    made = (
        None if task is None else cd.load_task(task, loaded, examples=examples, seed=seed, skip_bad=skip_bad)
    )
    return loaded, made if texts is None else texts, made


def _activations(model: Any, prompts: Any, at: str, given: dict[str, Any]) -> Any:
    import circuitdiscovery as cd

    how = {"position": "all", "batch_size": given["batch_size"]}
    return _watched(cd.features.activations, f"collecting {at}")(model, prompts, at, **how)


def _collected(model: Any, prompts: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """(the activations that are read, the options of a training)."""
    acts = _activations(model, prompts, given["at"], given)
    target = None if given["target"] is None else _activations(model, prompts, given["target"], given)
    how = {name: given[name] for name in ("n", "steps", "lr", "seed")}
    return acts, how | {"target": target, "end_to_end": model if given["end_to_end"] else None}


def _watched(function: Callable[..., Any], label: str) -> Callable[..., Any]:
    """A function with its progress shown."""

    def run(*arguments: Any, **options: Any) -> Any:
        from circuitdiscovery.reporting.progress import stage

        with stage(label) as report:
            return function(*arguments, **options, progress=report)

    return run
