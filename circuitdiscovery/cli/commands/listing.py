"""What there is: `models`, `tasks`, `graphs`; and the `benchmark`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from circuitdiscovery.cli.arguments import (
    MODEL,
    SEED,
    Checked,
    as_json,
    benchmark_method,
    in_folder,
    one_of,
    skip_bad_rows,
)
from circuitdiscovery.cli.commands.group import PROGRAM, cli
from circuitdiscovery.cli.files import circuit_of, show_json
from circuitdiscovery.cli.folders import open_folder
from circuitdiscovery.files.disk import data_folder, read_json, shipped


@cli.command(short_help="Compare methods on a SUITE of known circuits.")
@click.argument("suite", type=one_of("suite"))
@click.option(
    "--method",
    "methods",
    type=Checked(benchmark_method, "M"),
    multiple=True,
    help="A method, or your own as module:function; repeatable.",
)
@click.option("--model", type=MODEL, help="The model of the published circuits.  [default: gpt2]")
@click.option("--quick", is_flag=True, help="Fewer examples and methods: under two minutes on two cores.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Draws the prompts.")
@in_folder("benchmark-SUITE", "Continue the benchmark in --out, or the latest one of this suite.")
@as_json
def benchmark(out: Path | None, resume: bool, as_json: bool, **given: Any) -> None:
    """Compare methods on a SUITE: planted (known circuits), toy, published
    (GPT-2 small), or one published circuit.
    """
    from circuitdiscovery.benchmark.options import BenchmarkOptions

    options = BenchmarkOptions(**given)
    options.check()
    with open_folder(options.name, out=out, resume=resume) as folder:
        # imports torch: only now that the folder is known to be good
        from circuitdiscovery.benchmark.run import run as run_benchmark
        from circuitdiscovery.reporting.progress import stage

        try:
            with stage(options.name) as report:
                run_benchmark(options, folder, [PROGRAM, *sys.argv[1:]], report)
        except KeyboardInterrupt as stopped:
            stopped.add_note(f"while measuring; resume with: {options.resume_command(folder)}")
            raise
    if as_json:
        show_json(read_json(folder / "benchmark.json"))
    else:
        click.echo((folder / "benchmark.md").read_text("utf-8"))
        click.echo(f"files: {folder}: benchmark.md, benchmark.json, benchmark.png", err=True)


@cli.command(short_help="List the bundled models.")
def models() -> None:
    """List the bundled models."""
    for name in shipped("models"):
        config = read_json(data_folder("models") / name / "config.json")
        layers, heads = (
            config.get(a, config.get(b))
            for a, b in (("n_layer", "num_hidden_layers"), ("n_head", "num_attention_heads"))
        )
        click.echo(f"{name:<12}{config.get('model_type')}, {layers} layers of {heads} heads")
    click.echo(
        "Also: a Hugging Face folder, a .gguf file, or a hub name such as gpt2 or EleutherAI/pythia-70m",
        err=True,
    )


@cli.command(short_help="List the shipped tasks, or show one.")
@click.argument("task", required=False)
@skip_bad_rows
def tasks(task: str | None, skip_bad: bool) -> None:
    """List the shipped tasks, and what their counterfactuals ask; or show TASK: its
    prompts, its words and how many there are.
    """
    from circuitdiscovery.task.read import read_task
    from circuitdiscovery.task.taskfile import TaskFile

    if task is not None:
        from circuitdiscovery.task.view import shown_task

        return click.echo("\n".join(shown_task(read_task(task, skip_bad=skip_bad))))
    for name in shipped("tasks"):
        file = read_task(name)
        if not isinstance(file, TaskFile):
            click.echo(name)
            continue
        click.echo(f"{name:<28}{file.description}")
        for key, rule in file.counterfactuals.items():
            click.echo(
                f"  {f'{key} (default)' if key == file.counterfactual else key:<26}{rule.asks}".rstrip()
            )


@cli.command(short_help="List the shipped circuits.")
def graphs() -> None:
    """List the shipped circuits: published and planted ones."""
    for name in shipped("graphs"):
        click.echo(f"{name:<32}{len(circuit_of(name))} edges")
