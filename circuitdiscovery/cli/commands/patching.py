"""Commands that intervene in a model without a circuit: `trace` (path patching) and `scrub`."""

from __future__ import annotations

from typing import Any

import click

from circuitdiscovery.cli.arguments import (
    ABLATION,
    COUNT,
    DEVICE,
    DTYPE,
    METRIC,
    MODEL,
    SEED,
    TASK,
    as_json,
    task_name,
    valid_counterfactual,
)
from circuitdiscovery.cli.commands.group import cli
from circuitdiscovery.cli.files import show
from circuitdiscovery.reporting.folder import load
from circuitdiscovery.reporting.options import Options


@cli.command(short_help="Patch the paths from every node to RECEIVERs.")
@click.argument("model", type=MODEL)
@click.argument("task", type=TASK)
@click.argument("receivers", nargs=-1, metavar="[RECEIVER]...")
@click.option(
    "--ablation", type=ABLATION, default="resample", show_default=True, help="What a sender writes instead."
)
@click.option("--metric", type=METRIC, help="[default: the task's]")
@click.option("--counterfactual", metavar="NAME", help="[default: the task's first choice]")
@click.option("--examples", type=COUNT, help="Prompt pairs.  [default: 64, or half of a table]")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Draws the examples.")
@click.option("--batch-size", type=COUNT, help="[default: what memory allows]")
@click.option("--device", type=DEVICE, help="[default: a GPU if there is one]")
@click.option("--dtype", type=DTYPE, default="float32", show_default=True)
@as_json
def trace(receivers: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Path patching in MODEL on TASK: how much each node matters for what the RECEIVERs
    read, such as a2.h0<q>.  [default: logits]
    """
    given["counterfactual"] = valid_counterfactual(given["task"], given["counterfactual"])
    options = Options.of(given)
    model, task = load(options)
    import circuitdiscovery as cd
    from circuitdiscovery.reporting.progress import stage

    with stage("patching paths") as report:
        how: dict[str, Any] = {
            "metric": options.metric,
            "ablation": options.ablation,
            "batch_size": options.batch_size,
            "progress": report,
        }
        result = cd.path_patching(model, task, receivers=receivers or "logits", **how)
    show(result, as_json)


@cli.command(short_help="Test a HYPOTHESIS by causal scrubbing.")
@click.argument("model", type=MODEL)
@click.argument("hypothesis", metavar="HYPOTHESIS")
@click.option("--task", type=TASK, help="[default: the one that the hypothesis names]")
@click.option("--metric", type=METRIC, help="[default: the task's]")
@click.option(
    "--draws", type=COUNT, default="5", show_default=True, help="How often each prompt is scrubbed."
)
@click.option("--examples", type=COUNT, help="Prompt pairs.  [default: 64, or half of a table]")
@click.option(
    "--seed",
    type=SEED,
    default=0,
    show_default=True,
    help="For the examples and their substitute prompts.",
)
@click.option("--batch-size", type=COUNT, help="[default: what memory allows]")
@click.option("--device", type=DEVICE, help="[default: a GPU if there is one]")
@click.option("--dtype", type=DTYPE, default="float32", show_default=True)
@as_json
def scrub(hypothesis: str, draws: int, as_json: bool, **given: Any) -> None:
    """Test HYPOTHESIS, a .toml file or a shipped one such as
    toy/ioi-position, in MODEL by causal scrubbing."""
    from circuitdiscovery.explanation.scrubbing.hypothesis import load_hypothesis

    held = load_hypothesis(hypothesis)
    given["task"] = given["task"] or task_name(held.task)
    options = Options.of(given)
    model, task = load(options)
    import circuitdiscovery as cd
    from circuitdiscovery.reporting.progress import stage

    with stage("scrubbing") as report:
        how: dict[str, Any] = {
            "metric": options.metric,
            "seed": options.seed,
            "batch_size": options.batch_size,
            "progress": report,
        }
        result = cd.scrub(model, task, held, draws=draws, **how)
    show(result, as_json)
