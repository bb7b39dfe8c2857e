"""`checkpoints`: how a circuit forms over training."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from circuitdiscovery.cli.arguments import CIRCUIT, as_json, as_searched
from circuitdiscovery.cli.commands.group import cli
from circuitdiscovery.cli.files import circuit_of, evaluation_options, file_of, show
from circuitdiscovery.cli.prompts import PICTURE
from circuitdiscovery.cli.unseen import load_unseen
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.reporting.folder import cards_beside, roles_of
from circuitdiscovery.reporting.options import check_model


@cli.command(short_help="Measure CIRCUIT at the checkpoints of a training run.")
@click.argument("circuit", type=CIRCUIT)
@click.argument("checkpoints", nargs=-1, required=True, metavar="FOLDER|STEP=MODEL...")
@click.option("--search", is_flag=True, help="Also search a circuit of this size at each, by eap-ig.")
@click.option("--plot", type=PICTURE, help="Draw it, as .png or .svg.")
@as_searched
@as_json
def checkpoints(
    circuit: str,
    checkpoints: tuple[str, ...],
    search: bool,
    plot: Path | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Measure CIRCUIT, a circuit.json or a run's folder, at each checkpoint: how the final model's circuit
    forms over training, its faithfulness and the strength of its roles.

    A FOLDER holds checkpoints (step-N, step_N, stepN or checkpoint-N); STEP=MODEL names one more, such as
    20000=runs/final.
    """
    found = circuit_of(circuit)
    sources = _sources(checkpoints)
    options = evaluation_options(found, circuit, {**given, "model": str(sources[max(sources)])})
    roles = found.roles or roles_of(cards_beside(Path(file_of(circuit)), found))
    try:
        model, task = load_unseen(found, circuit, options)
        import circuitdiscovery as cd
        from circuitdiscovery.engine import threads
        from circuitdiscovery.reporting.progress import stage

        threads.choose(model, task, options.batch_size)
        del model
        with stage("measuring checkpoints") as report:
            how = {name: getattr(options, name) for name in ("metric", "ablation", "direction", "batch_size")}
            how |= {name: getattr(options, name) for name in ("seed", "device", "dtype")}
            forming = cd.universality.checkpoints(
                sources, found.with_roles(roles), task, search=search, progress=report, **how
            )
    except KeyboardInterrupt:
        click.echo("\ninterrupted; nothing was kept", err=True)
        sys.exit(130)
    show(forming, as_json)
    if plot is not None:
        forming.plot(plot)


def _sources(given: tuple[str, ...]) -> dict[int, Any]:
    """Step -> the path of a model."""
    from circuitdiscovery.universality.training_run import checkpoint_folders

    found = dict[int, Any]()
    for text in given:
        step, equals, path = text.partition("=")
        some = {int(step): check_model(path)} if equals and step.isdecimal() else checkpoint_folders(text)
        if twice := found.keys() & some.keys():
            raise CircuitDiscoveryError(
                f"two checkpoints of step {min(twice)}: {found[min(twice)]} and {text}"
            )
        found |= some
    return dict(sorted(found.items()))
