"""The commands and their options."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from circuitdiscovery import __version__, names
from circuitdiscovery.cli import defaults
from circuitdiscovery.cli.arguments import (
    ABLATION,
    COUNT,
    DEVICE,
    DIRECTION,
    DTYPE,
    EFFORT,
    FORMATS,
    METRIC,
    MODEL,
    SEED,
    TASK,
    Checked,
    about_circuit,
    as_json,
    benchmark_method,
    check_rows,
    edge_limit,
    one_of,
    picture_path,
    task_name,
    valid_counterfactual,
    valid_threshold,
    whole_number,
)
from circuitdiscovery.cli.files import (
    circuit_of,
    evaluation_options,
    file_of,
    scores_of,
    show,
    show_json,
    show_report,
)
from circuitdiscovery.engine import distributed
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.files.disk import data_folder, read_json, shipped
from circuitdiscovery.reporting.options import Options

if TYPE_CHECKING:
    from circuitdiscovery.circuit.circuit import Circuit

PROGRAM = "circuitdiscovery"
COMPLETE = "_CIRCUITDISCOVERY_COMPLETE={shell}_source circuitdiscovery"
# What people look for among the commands, and where it is.
ELSEWHERE = {
    "help": "circuitdiscovery --help lists the commands, circuitdiscovery COMMAND --help the options of one",
    "path_patching": "it is circuitdiscovery trace",
    "patch": "it is circuitdiscovery trace",
    "stability": "in Python it is circuitdiscovery.stability",
    "hypothesis_tests": "in Python it is circuitdiscovery.hypothesis_tests",
    "curve": "circuitdiscovery discover measures the curve; in Python it is circuitdiscovery.curve",
    "search": "it is circuitdiscovery discover",
    "run": "it is circuitdiscovery discover",
    **{
        name: f"it is circuitdiscovery discover --method {name.replace('_', '-')}"
        for name in names.METHOD_NAMES
    },
}
MOST_EDGES = 60  # as in layout.py, which imports numpy


class Commands(click.Group):
    """The commands; what is one in Python only, or is called otherwise here, is told."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = super().get_command(ctx, cmd_name)
        if found is None and (meant := ELSEWHERE.get(cmd_name.replace("-", "_").lower())):
            raise CircuitDiscoveryError(f"no command {cmd_name!r}: {meant}")
        return found


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    no_args_is_help=False,
    epilog=(
        f"\b\nShell completion (bash, zsh or fish): this prints the script\n  {COMPLETE.format(shell='bash')}"
    ),
)
@click.version_option(__version__, prog_name=PROGRAM, message="%(prog)s %(version)s")
def cli() -> None:
    """From a transformer and a task to a measured, drawn circuit."""


@cli.command(short_help="Find, measure and draw the circuit of MODEL behind TASK.")
@click.argument("model", type=MODEL)
@click.argument("task", type=TASK)
@click.option(
    "--method",
    type=one_of("method"),
    help=f"How to search.  [default: acdc; matryoshka for a graph of more than {defaults.LARGE:,} edges]",
)
@click.option(
    "--ablation", type=ABLATION, default="resample", show_default=True, help="What a removed edge carries."
)
@click.option(
    "--metric",
    type=METRIC,
    help="What is measured.  [default: kl-divergence to search by acdc, exact, trace-back, else the task's]",
)
@click.option(
    "--direction",
    type=DIRECTION,
    default="noising",
    show_default=True,
    help="Damage the clean run, or mend the corrupted one.",
)
@click.option(
    "--threshold",
    type=Checked(valid_threshold, "T"),
    help=(
        f"acdc, trace-back: no edge of damage below T  [default: {names.DEFAULT_THRESHOLD}].  Others: "
        "keep edges of |score| T or more."
    ),
)
@click.option(
    "--edges",
    type=COUNT,
    help=(
        "Not for acdc, trace-back: keep the N edges of the largest scores.  [default: 10% of all; 1% "
        f"of more than {defaults.LARGE:,}]"
    ),
)
@click.option(
    "--counterfactual",
    metavar="NAME",
    help="What the corrupted prompts ask, see `tasks`.  [default: the task's first choice]",
)
@click.option(
    "--no-split-qkv",
    is_flag=True,
    help="One edge into a head instead of one each into its query, key and value.",
)
@click.option(
    "--group-testing",
    is_flag=True,
    help="acdc: remove edges together where they do no harm; faster, not always the same edges.",
)
@click.option(
    "--examples",
    type=COUNT,
    help="Prompt pairs to search on; as many are held out to evaluate.  [default: 64, or half of a table]",
)
@click.option(
    "--steps",
    type=COUNT,
    metavar="N",
    help="eap-ig, edge-pruning, matryoshka: how many.  [default: 5, 200, 600]",
)
@click.option(
    "--rounds", type=Checked(whole_number(0), "N"), help="hybrid: how often it looks again.  [default: 4]"
)
@click.option("--skip-bad", is_flag=True, help="Go on without the rows of a table that cannot be used.")
@click.option("--batch-size", type=COUNT, help="Examples at a time.  [default: what memory allows]")
@click.option(
    "--seed", type=SEED, default=0, show_default=True, help="Draws the examples and whatever else is random."
)
@click.option("--device", type=DEVICE, help="[default: a GPU where there is one]")
@click.option("--dtype", type=DTYPE, default="float32", show_default=True)
@click.option(
    "--measure",
    type=one_of("measure"),
    help=(
        "How much of the circuit is measured and explained.  [default: full for small models and "
        "circuits, else quick]"
    ),
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="A new or empty folder.  [default: runs/MODEL-TASK-METHOD]",
)
@click.option(
    "--resume",
    is_flag=True,
    help=(
        "Go on with the run in --out, or with the latest of this model, task and method; with "
        "--measure, measure more of it."
    ),
)
@as_json
def discover(no_split_qkv: bool, out: Path | None, resume: bool, as_json: bool, **given: Any) -> None:
    """Find, measure and draw the circuit of MODEL behind TASK.

    MODEL is a bundled or hub name, a folder, or a .gguf file; TASK is a name, or a .toml, .csv or
    .jsonl file, or the .json of a saved task.
    """
    from circuitdiscovery.cli import discover as run

    given["counterfactual"] = valid_counterfactual(given["task"], given["counterfactual"])
    check_rows(given["task"], given["skip_bad"])
    if given["method"] is None:  # a threshold says that it is acdc
        given["method"] = (
            "acdc" if given["threshold"] is not None else defaults.default_method(given["model"])
        )
    options = Options(split_qkv=not no_split_qkv, **given)
    options.check()
    folder = distributed.from_first(lambda: run.open_folder(options.name, out=out, resume=resume))
    try:
        record = run.discover(options, folder, [PROGRAM, *sys.argv[1:]])
    except KeyboardInterrupt as stopped:
        click.echo(" ".join(["\ninterrupted", *notes_of(stopped)]), err=True)
        sys.exit(130)
    if as_json:
        show_json(record["summary"])
    else:
        show_report(record["report"], record["summary"])


@cli.command(short_help="Measure CIRCUIT: faithfulness, completeness, minimality.")
@about_circuit
@click.option("--direction", type=DIRECTION, help="[default: as the search]")
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
    from circuitdiscovery.cli import discover as run

    model, task, found, options = _searched_in(circuit, given)
    scores = scores_of(circuit)
    result = run.evaluate(model, task, found, scores, options, effort=measure)
    show(result, as_json)
    if not as_json:
        from circuitdiscovery.reporting.contents import mass
        from circuitdiscovery.reporting.words import told

        for line in told(result.to_dict(), {"scores": mass(scores, None), "searched": None}):
            click.echo(line)


def _searched_in(circuit: str, given: dict[str, Any]) -> tuple[Any, Any, Circuit, Options]:
    """(model, task, circuit, options) of a command about a circuit:
    what is given, else as it was searched."""
    from circuitdiscovery.cli import discover as run

    found = circuit_of(circuit)
    options = evaluation_options(found, circuit, given)
    model, task = run.load(options)
    from circuitdiscovery.engine import threads  # imports torch

    threads.choose(model, task, options.batch_size)
    found.check_model(model)
    return model, task, found, options


@cli.command(short_help="Say what the heads and MLPs of CIRCUIT do.")
@about_circuit
@click.option(
    "--node", "nodes", multiple=True, metavar="NODE", help="Of this head or MLP only; repeat it for more."
)
@click.option(
    "--effort", type=EFFORT, default="full", show_default=True, help="How many examples are intervened on."
)
@as_json
def explain(circuit: str, nodes: tuple[str, ...], effort: str, as_json: bool, **given: Any) -> None:
    """Say what the heads and MLPs of CIRCUIT do, a circuit.json, a run's folder
    or a shipped graph's name: a card for each.
    """
    model, task, found, options = _searched_in(circuit, given)
    import circuitdiscovery as cd
    from circuitdiscovery.reporting.progress import stage

    with stage("explaining") as report:
        chosen: dict[str, Any] = {
            "nodes": nodes or None,
            "effort": effort,
            "batch_size": options.batch_size,
            "progress": report,
        }
        result = cd.explain(model, task, found, metric=options.metric, ablation=options.ablation, **chosen)
    show(result, as_json)


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
@click.option("--device", type=DEVICE, help="[default: a GPU where there is one]")
@click.option("--dtype", type=DTYPE, default="float32", show_default=True)
@as_json
def trace(receivers: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Path patching in MODEL on TASK: how much each node matters for what the RECEIVERs
    read, such as a2.h0<q>.  [default: logits]
    """
    from circuitdiscovery.cli import discover as run

    given["counterfactual"] = valid_counterfactual(given["task"], given["counterfactual"])
    options = Options(**given)
    model, task = run.load(options)
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
    help="Draws the examples and the prompts that stand in for them.",
)
@click.option("--batch-size", type=COUNT, help="[default: what memory allows]")
@click.option("--device", type=DEVICE, help="[default: a GPU where there is one]")
@click.option("--dtype", type=DTYPE, default="float32", show_default=True)
@as_json
def scrub(hypothesis: str, draws: int, as_json: bool, **given: Any) -> None:
    """Test HYPOTHESIS, a .toml file or a shipped one such as
    toy/ioi-position, in MODEL by causal scrubbing."""
    from circuitdiscovery.cli import discover as run
    from circuitdiscovery.explanation.scrubbing.hypothesis import load_hypothesis

    held = load_hypothesis(hypothesis)
    given["task"] = given["task"] or task_name(held.task)
    options = Options(**given)
    model, task = run.load(options)
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


@cli.command(short_help="Compare circuit A with circuit B, the reference.")
@click.argument("a")
@click.argument("b")
@as_json
def compare(a: str, b: str, as_json: bool) -> None:
    """Compare circuit A with circuit B, the reference: precision, recall and Jaccard,
    and ROC AUC where A has scores beside it.
    """
    from circuitdiscovery.circuit.comparison import compare

    show(compare(circuit_of(a), circuit_of(b), scores=scores_of(a)), as_json)


@cli.command(short_help="Draw CIRCUIT into a picture.")
@click.argument("circuit")
@click.option(
    "-o",
    "--out",
    type=Checked(picture_path, "FILE"),
    required=True,
    help=f"The picture: .{', .'.join(FORMATS)}.",
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
    from circuitdiscovery.reporting.folder import roles_beside

    found = circuit_of(circuit)
    roles = found.roles or roles_beside(Path(file_of(circuit)), found)
    found.draw(out, roles=roles, max_edges=None if max_edges == math.inf else int(max_edges))
    click.echo(str(out))


@cli.command(short_help="Write the page of RUN, the folder of a finished discover.")
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The page: .html.  [default: RUN/report.html]",
)
def report(run: Path, out: Path | None) -> None:
    """Write the page of RUN, the folder of a finished discover: the circuit, its measures
    and what its nodes do, in one HTML file.

    A circuit that was not measured has one, too; circuitdiscovery discover
    ... --resume --measure quick measures it.
    """
    from circuitdiscovery.reporting.page import report

    click.echo(str(report(run, out)))


@cli.command(short_help="Compare methods on a SUITE of known circuits.")
@click.argument("suite", type=one_of("suite"))
@click.option(
    "--method",
    "methods",
    type=Checked(benchmark_method, "M"),
    multiple=True,
    help="A method, or one's own as module:function; repeat it for more.",
)
@click.option("--model", type=MODEL, help="Of the published circuits.  [default: gpt2]")
@click.option("--quick", is_flag=True, help="Fewer examples and methods: under two minutes on two cores.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Draws the prompts.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="A new or empty folder.  [default: runs/benchmark-SUITE]",
)
@click.option(
    "--resume", is_flag=True, help="Go on with the benchmark in --out, or with the latest of this suite."
)
@as_json
def benchmark(out: Path | None, resume: bool, as_json: bool, **given: Any) -> None:
    """Compare methods on a SUITE: planted (known circuits), toy, published
    (GPT-2 small), or one published circuit.
    """
    from circuitdiscovery.benchmark.options import BenchmarkOptions
    from circuitdiscovery.cli import discover as run

    options = BenchmarkOptions(**given)
    options.check()
    folder = run.open_folder(options.name, out=out, resume=resume)
    # imports torch: only now that the folder is known to be good
    from circuitdiscovery.benchmark.run import run as run_benchmark
    from circuitdiscovery.reporting.progress import stage

    try:
        with stage(options.name) as report:
            run_benchmark(options, folder, [PROGRAM, *sys.argv[1:]], report)
    except KeyboardInterrupt:
        click.echo(f"\ninterrupted; resume with: {options.resume_command(folder)}", err=True)
        sys.exit(130)
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
def tasks(task: str | None) -> None:
    """List the shipped tasks, and what their counterfactuals ask; or show TASK: its
    prompts, its words and how many there are.
    """
    from circuitdiscovery.task.read import read_task
    from circuitdiscovery.task.taskfile import TaskFile

    if task is not None:
        from circuitdiscovery.task.view import shown_task

        return click.echo("\n".join(shown_task(read_task(task))))
    for name in shipped("tasks"):
        file = read_task(name)
        if not isinstance(file, TaskFile):
            click.echo(name)
            continue
        click.echo(f"{name:<24}{file.description}")
        for key, rule in file.counterfactuals.items():
            click.echo(
                f"  {f'{key} (default)' if key == file.counterfactual else key:<22}{rule.asks}".rstrip()
            )


@cli.command(short_help="List the shipped circuits.")
def graphs() -> None:
    """List the shipped circuits: published and planted ones."""
    for name in shipped("graphs"):
        click.echo(f"{name:<32}{len(circuit_of(name))} edges")


def notes_of(error: BaseException) -> list[str]:
    """What the run that an exception stopped says of what is left."""
    return list(getattr(error, "__notes__", ()))
