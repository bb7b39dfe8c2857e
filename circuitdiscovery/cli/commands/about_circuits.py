"""Commands about a circuit: `evaluate`, `explain`, `compare`, `draw`, and `report` of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from circuitdiscovery.cli.arguments import (
    CIRCUIT,
    DIRECTION,
    EFFORT,
    PATH,
    Checked,
    Output,
    about_circuit,
    as_json,
    edge_limit,
)
from circuitdiscovery.cli.commands.group import cli
from circuitdiscovery.cli.files import circuit_of, evaluation_options, file_of, scores_of, show
from circuitdiscovery.cli.prompts import TEXTS
from circuitdiscovery.cli.unseen import load_unseen
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.reporting.options import Options

if TYPE_CHECKING:
    from circuitdiscovery.circuit.circuit import Circuit
    from circuitdiscovery.features.dictionary import Dictionary

MOST_EDGES = 60  # as in layout.py, which imports numpy


@cli.command(short_help="Measure CIRCUIT: faithfulness, completeness, minimality.")
@about_circuit
@click.option("--direction", type=DIRECTION, help="[default: same as the search]")
@click.option(
    "--measure",
    type=EFFORT,
    default="full",
    show_default=True,
    help="How much is measured; quick takes some 60 forwards.",
)
@as_json
def evaluate(circuit: str, measure: str, as_json: bool, **given: Any) -> None:
    """Measure CIRCUIT, a circuit.json, a run's folder or a shipped graph's
    name: faithfulness, completeness, minimality.
    """
    from circuitdiscovery.cli.search import evaluate as measured

    found = circuit_of(circuit)
    model, task, options = _searched_in(found, circuit, given)
    scores = scores_of(found, circuit)
    result = measured(model, task, found, scores, options, effort=measure)
    show(result, as_json)
    if not as_json:
        from circuitdiscovery.reporting.data import mass
        from circuitdiscovery.reporting.sentences import told

        for line in told(result.to_dict(), {"scores": mass(scores, None), "searched": None}):
            click.echo(line)


def _searched_in(found: Circuit, path: str, given: dict[str, Any]) -> tuple[Any, Any, Options]:
    """(model, task, options) of a command about a circuit: what is given, else as it was searched."""
    options = evaluation_options(found, path, given)
    model, task = load_unseen(found, path, options)
    from circuitdiscovery.engine import threads  # imports torch

    threads.choose(model, task, options.batch_size)
    found.check_model(model)
    return model, task, options


@cli.command(short_help="Say what the heads and MLPs of CIRCUIT do.")
@about_circuit
@click.option(
    "--node", "nodes", multiple=True, metavar="NODE", help="Explain only this head or MLP; repeatable."
)
@click.option(
    "--effort",
    type=EFFORT,
    default="full",
    show_default=True,
    help="How many examples the interventions run on.",
)
@click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="NAME",
    help="Can it be read there? Repeat it.",
)
@click.option(
    "--dictionary",
    "folders",
    multiple=True,
    metavar="FOLDER",
    help="Of an MLP, to show features.",
)
@click.option("--texts", type=TEXTS, help="Where neurons and features are active.  [default: the prompts]")
@as_json
def explain(
    circuit: str,
    nodes: tuple[str, ...],
    effort: str,
    labels: tuple[str, ...],
    folders: tuple[str, ...],
    texts: list[str] | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Say what the heads and MLPs of CIRCUIT do, a circuit.json, a run's folder
    or a shipped graph's name: a card for each.
    """
    import circuitdiscovery as cd
    from circuitdiscovery.reporting.progress import stage

    found = circuit_of(circuit)
    features = _by_site(folders)
    # cards are of noising, whatever the search was
    model, task, options = _searched_in(found, circuit, {**given, "direction": "noising"})
    with stage("explaining") as report:
        chosen: dict[str, Any] = {
            "nodes": nodes or None,
            "effort": effort,
            "features": features or None,
            "texts": texts,
            "labels": labels,
            "batch_size": options.batch_size,
            "progress": report,
        }
        result = cd.explain(model, task, found, metric=options.metric, ablation=options.ablation, **chosen)
    show(result, as_json)


def _by_site(folders: Sequence[str]) -> dict[str, Dictionary]:
    """The dictionaries in folders, by the MLP that each is of."""
    from circuitdiscovery.features.load import load_sae

    found: dict[str, Dictionary] = {}
    first: dict[str, str] = {}
    for folder in folders:
        each = load_sae(folder)
        site = str(each.site)
        if site in found:
            raise CircuitDiscoveryError(
                f"{first[site]} and {folder} are both of {site}: give one --dictionary for an MLP"
            )
        found[site], first[site] = each, folder
    return found


@cli.command(short_help="Compare circuit A with circuit B, the reference.")
@click.argument("a", type=CIRCUIT, metavar="A")
@click.argument("b", type=CIRCUIT, metavar="B")
@as_json
def compare(a: str, b: str, as_json: bool) -> None:
    """Compare circuit A with circuit B, the reference: precision, recall and Jaccard,
    and ROC AUC where A has scores beside it.
    """
    from circuitdiscovery.circuit.comparison import compare

    found = circuit_of(a)
    show(compare(found, circuit_of(b), scores=scores_of(found, a)), as_json)


@cli.command(short_help="Draw CIRCUIT into a picture.")
@click.argument("circuit", type=CIRCUIT)
@click.option(
    "-o",
    "--out",
    type=Output(".svg", ".png", ".pdf", ".dot"),
    required=True,
    help="The picture: .svg, .png, .pdf, .dot.",
)
@click.option(
    "--max-edges",
    type=Checked(edge_limit, "N|all"),
    default=str(MOST_EDGES),
    show_default=True,
    help="Draw at most N edges, 1 or more: the strongest whole paths from input to logits; or all of them.",
)
def draw(circuit: str, out: Path, max_edges: float) -> None:
    """Draw CIRCUIT, a circuit.json, a run's folder or a shipped graph's name; of a
    run with the roles of its nodes in colour.
    """
    from circuitdiscovery.reporting.folder import cards_beside, strongest_roles_of

    found = circuit_of(circuit)
    roles = found.roles or strongest_roles_of(cards_beside(Path(file_of(circuit)), found))
    found.draw(out, roles=roles, max_edges=None if max_edges == math.inf else int(max_edges))
    click.echo(str(out))


@cli.command(short_help="Write the page of RUN, the folder of a finished discover.")
@click.argument("run", type=PATH, metavar="RUN")
@click.option(
    "-o", "--out", type=Output(".html", ".htm"), help="The page: .html.  [default: RUN/report.html]"
)
def report(run: Path, out: Path | None) -> None:
    """Write the page of RUN, the folder of a finished discover: the circuit, its measures
    and what its nodes do, in one HTML file.

    A circuit that was not measured has one, too; circuitdiscovery discover
    ... --resume --measure quick measures it.
    """
    from circuitdiscovery.reporting.page import report

    click.echo(str(report(run, out)))
