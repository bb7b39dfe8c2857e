"""Commands that intervene in a model without a circuit: `trace` (path patching), `neurons` and `scrub`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from circuitdiscovery.cli.arguments import (
    ABLATION,
    COUNT,
    MODEL,
    NEURON_METHOD,
    TASK,
    as_json,
    on_prompts,
    on_task,
    task_name,
    valid_counterfactual,
)
from circuitdiscovery.cli.commands.group import cli
from circuitdiscovery.cli.files import show
from circuitdiscovery.reporting.folder import load
from circuitdiscovery.reporting.options import Options


@cli.command(short_help="Patch the paths from every node to RECEIVERs.")
@on_task
@click.argument("receivers", nargs=-1, metavar="[RECEIVER]...")
@click.option(
    "--ablation", type=ABLATION, default="resample", show_default=True, help="What a sender writes instead."
)
@click.option("--counterfactual", metavar="NAME", help="[default: the task's first choice]")
@on_prompts
@as_json
def trace(receivers: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Path patching in MODEL on TASK: how much each node matters for what the RECEIVERs
    read, such as a2.h0<q>.  [default: logits]
    """
    given["counterfactual"] = valid_counterfactual(given["task"], given["counterfactual"])
    import circuitdiscovery as cd

    def run(model: Any, task: Any, **how: Any) -> Any:
        return cd.path_patching(model, task, receivers=receivers or "logits", **how)

    _show(run, "patching paths", Options.of(given), ("metric", "ablation", "batch_size"), as_json)


@cli.command(short_help="List the neurons of MODEL that matter most to TASK.")
@on_task
@click.option("--top", type=COUNT, default="20", show_default=True, help="How many.")
@click.option(
    "--method",
    type=NEURON_METHOD,
    default="eap",
    show_default=True,
    help="Gradients on the clean prompt, on the line between the prompts, or the best ones ablated in turn.",
)
@click.option("--ablation", type=ABLATION, default="resample", show_default=True, help="resample or zero.")
@click.option("--counterfactual", metavar="NAME", help="[default: the task's first choice]")
@on_prompts
@as_json
def neurons(top: int, method: str, as_json: bool, **given: Any) -> None:
    """The neurons of all MLPs of MODEL whose ablation does the most damage to TASK, and the tokens that each
    of them writes; discover --neurons N makes the N of each MLP nodes of a circuit.
    """
    given["counterfactual"] = valid_counterfactual(given["task"], given["counterfactual"])
    import circuitdiscovery as cd

    def run(model: Any, task: Any, **how: Any) -> Any:
        return cd.neurons(model, task, top=top, method=method, **how)

    _show(run, "ranking neurons", Options.of(given), ("metric", "ablation", "batch_size"), as_json)


@cli.command(short_help="Test a HYPOTHESIS by causal scrubbing.")
@click.argument("model", type=MODEL)
@click.argument("hypothesis", metavar="HYPOTHESIS")
@click.option("--task", type=TASK, help="[default: the one that the hypothesis names]")
@click.option(
    "--draws", type=COUNT, default="5", show_default=True, help="How often each prompt is scrubbed."
)
@on_prompts
@as_json
def scrub(hypothesis: str, draws: int, as_json: bool, **given: Any) -> None:
    """Test HYPOTHESIS, a .toml file or a shipped one such as
    toy/ioi-position, in MODEL by causal scrubbing."""
    from circuitdiscovery.explanation.scrubbing.hypothesis import load_hypothesis

    held = load_hypothesis(hypothesis)
    given["task"] = given["task"] or task_name(held.task)
    import circuitdiscovery as cd

    def run(model: Any, task: Any, **how: Any) -> Any:
        return cd.scrub(model, task, held, draws=draws, **how)

    _show(run, "scrubbing", Options.of(given), ("metric", "seed", "batch_size"), as_json)


def _show(run: Callable[..., Any], name: str, options: Options, taken: Sequence[str], as_json: bool) -> None:
    """Print what a function finds on the options' model and task, with those options that it takes."""
    from circuitdiscovery.reporting.progress import stage

    model, task = load(options)
    with stage(name) as report:
        found = run(model, task, **options.some(*taken), progress=report)
    show(found, as_json)
