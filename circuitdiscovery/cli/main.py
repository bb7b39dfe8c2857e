"""The command line. Arguments are checked, and help is given, before torch is imported.

Whatever goes wrong is one line on standard error and exit status 2; Ctrl-C is 130. Set CIRCUITDISCOVERY_DEBUG=1 for a traceback.
"""

from __future__ import annotations

import atexit
import difflib
import gc
import json
import math
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from circuitdiscovery import __version__, names
from circuitdiscovery.cli import defaults
from circuitdiscovery.engine import distributed
from circuitdiscovery.errors import CircuitDiscoveryError, printable, shown, unknown
from circuitdiscovery.files.disk import data_folder, read_json, shipped
from circuitdiscovery.reporting.options import Options, check_model, checked, searched_with

if TYPE_CHECKING:
    from circuitdiscovery.circuit.circuit import Circuit
    from circuitdiscovery.circuit.scores import Scores

PROGRAM = "circuitdiscovery"
EVALUATION_FIELDS = (
    *("model", "task", "counterfactual", "ablation", "metric", "direction"),
    *("examples", "batch_size", "seed", "device", "dtype", "skip_bad"),
)
FORMATS = ("svg", "png", "pdf", "dot")
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
    **{name: f"it is circuitdiscovery discover --method {name.replace('_', '-')}" for name in names.METHOD_NAMES},
}
_ALLOCATIONS = 100_000  # of objects, from one search for garbage to the next
MOST_EDGES = 60  # as in layout.py, which imports numpy


# ------------------------------------------------------------ argument types


class Checked(click.ParamType):  # pyright: ignore[reportMissingTypeArgument]  # generic since click 8.4 only
    """An argument that a function turns into its value or refuses with a CircuitDiscoveryError."""

    def __init__(self, check: Callable[[str], Any], metavar: str) -> None:
        self.name = metavar
        self._check = check

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self._check(value) if isinstance(value, str) else value
        except CircuitDiscoveryError as error:
            self.fail(str(error), param, ctx)

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return self.name


def _name(kind: names.Kind) -> Checked:
    return Checked(lambda value: names.canonical(kind, value), "|".join(name.replace("_", "-") for name in names.VALID[kind]))


def _task(name: str) -> str:
    from circuitdiscovery.task.taskfile import read_task, task_path

    read_task(name, skip_bad=True)  # whether bad rows are skipped is another option
    path = task_path(name)
    return path.stem if path.parent == data_folder("tasks") else str(path.resolve())


def _counterfactual(task: str, name: str | None) -> str | None:
    """The canonical name of a task's counterfactual; None is the task's own."""
    from circuitdiscovery.task.taskfile import counterfactual_of, read_task

    return None if name is None else counterfactual_of(read_task(task, skip_bad=True), name)


def _check_rows(task: str, skip_bad: bool) -> None:
    """Refuse a table's bad rows where they are not to be skipped, as far as that can be told without a tokenizer."""
    from circuitdiscovery.task.taskfile import read_task

    read_task(task, skip_bad=skip_bad)


def _benchmark_method(name: str) -> str:
    return name if ":" in name else names.canonical("benchmark method", name)


def _device(name: str) -> str:
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise unknown("device", name, ("cpu", "cuda", "cuda:0", "mps"))
    return name


def _effort(name: str) -> str:
    if name not in names.MEASURES[1:]:
        raise unknown("measure", name, names.MEASURES[1:])
    return name


def _threshold(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise CircuitDiscoveryError(f"{text!r} is not a finite number")
    return value


def _whole(minimum: int) -> Callable[[str], int]:
    def check(text: str) -> int:
        if not re.fullmatch(r"[+-]?\d{1,18}", text) or int(text) < minimum:
            raise CircuitDiscoveryError(f"{text[:40]!r} is not a whole number of at least {minimum}")
        return int(text)

    return check


def _edge_limit(text: str) -> float:
    """A whole number, or infinity for all."""
    if text == "all":
        return math.inf
    if not re.fullmatch(r"\d{1,18}", text) or int(text) < 1:
        raise CircuitDiscoveryError(f"{text[:40]!r} is neither a whole number of at least 1 nor all")
    return int(text)


def _picture(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower()[1:] not in FORMATS:
        raise CircuitDiscoveryError(f"{text!r} must end in .{', .'.join(FORMATS[:-1])} or .{FORMATS[-1]}")
    if not path.parent.is_dir():
        raise CircuitDiscoveryError(f"there is no folder {path.parent}")
    return path


MODEL = Checked(check_model, "MODEL")
TASK = Checked(_task, "TASK")
METRIC = _name("metric")
ABLATION = _name("ablation")
DIRECTION = _name("direction")
COUNT = Checked(_whole(1), "N")
SEED = Checked(_whole(0), "S")
DEVICE = Checked(_device, "cpu|cuda|cuda:N|mps")
DTYPE = _name("dtype")
EFFORT = Checked(_effort, "quick|full")
as_json = click.option("--json", "as_json", is_flag=True, help="JSON, and nothing else, on standard output.")


def about_circuit(command: Callable[..., None]) -> Callable[..., None]:
    """CIRCUIT, and how it is measured where that shall not be as it was searched."""
    options = (
        click.argument("circuit"),
        click.option("--model", type=MODEL, help="[default: the one the circuit was found in]"),
        click.option("--task", type=TASK, help="[default: the one the circuit was found with]"),
        click.option("--counterfactual", metavar="NAME", help="[default: as the search]"),
        click.option("--ablation", type=ABLATION, help="[default: as the search]"),
        click.option("--metric", type=METRIC, help="[default: as the search, or the task's own]"),
        click.option("--examples", type=COUNT, help="[default: as the search]"),
        click.option("--seed", type=SEED, help="[default: as the search]"),
        click.option("--batch-size", type=COUNT, help="[default: what memory allows]"),
        click.option("--device", type=DEVICE, help="[default: a GPU where there is one]"),
        click.option("--dtype", type=DTYPE, help="[default: as the search]"),
    )
    for option in reversed(options):  # as decorators are applied
        command = option(command)
    return command


# ------------------------------------------------------------------ commands


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
    epilog=f"\b\nShell completion (bash, zsh or fish): this prints the script\n  {COMPLETE.format(shell='bash')}",
)
@click.version_option(__version__, prog_name=PROGRAM, message="%(prog)s %(version)s")
def cli() -> None:
    """From a transformer and a task to a measured, drawn circuit."""


@cli.command(short_help="Find, measure and draw the circuit of MODEL behind TASK.")
@click.argument("model", type=MODEL)
@click.argument("task", type=TASK)
@click.option(
    "--method", type=_name("method"), help=f"How to search.  [default: acdc; matryoshka for a graph of more than {defaults.LARGE:,} edges]"
)
@click.option("--ablation", type=ABLATION, default="resample", show_default=True, help="What a removed edge carries.")
@click.option(
    "--metric", type=METRIC, help="What is measured.  [default: kl-divergence to search by acdc, exact, trace-back, else the task's]"
)
@click.option("--direction", type=DIRECTION, default="noising", show_default=True, help="Damage the clean run, or mend the corrupted one.")
@click.option(
    "--threshold",
    type=Checked(_threshold, "T"),
    help=f"acdc, trace-back: no edge of damage below T  [default: {names.DEFAULT_THRESHOLD}].  Others: keep edges of |score| T or more.",
)
@click.option(
    "--edges",
    type=COUNT,
    help=f"Not for acdc, trace-back: keep the N edges of the largest scores.  [default: 10% of all; 1% of more than {defaults.LARGE:,}]",
)
@click.option("--counterfactual", metavar="NAME", help="What the corrupted prompts ask, see `tasks`.  [default: the task's first choice]")
@click.option("--no-split-qkv", is_flag=True, help="One edge into a head instead of one each into its query, key and value.")
@click.option("--group-testing", is_flag=True, help="acdc: remove edges together where they do no harm; faster, not always the same edges.")
@click.option(
    "--examples", type=COUNT, help="Prompt pairs to search on; as many are held out to evaluate.  [default: 64, or half of a table]"
)
@click.option("--steps", type=COUNT, metavar="N", help="eap-ig, edge-pruning, matryoshka: how many.  [default: 5, 200, 600]")
@click.option("--rounds", type=Checked(_whole(0), "N"), help="hybrid: how often it looks again.  [default: 4]")
@click.option("--skip-bad", is_flag=True, help="Go on without the rows of a table that cannot be used.")
@click.option("--batch-size", type=COUNT, help="Examples at a time.  [default: what memory allows]")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Draws the examples and whatever else is random.")
@click.option("--device", type=DEVICE, help="[default: a GPU where there is one]")
@click.option("--dtype", type=DTYPE, default="float32", show_default=True)
@click.option(
    "--measure",
    type=_name("measure"),
    help="How much of the circuit is measured and explained.  [default: full for small models and circuits, else quick]",
)
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="A new or empty folder.  [default: runs/MODEL-TASK-METHOD]")
@click.option(
    "--resume",
    is_flag=True,
    help="Go on with the run in --out, or with the latest of this model, task and method; with --measure, measure more of it.",
)
@as_json
def discover(no_split_qkv: bool, out: Path | None, resume: bool, as_json: bool, **given: Any) -> None:
    """Find, measure and draw the circuit of MODEL behind TASK.

    MODEL is a bundled or hub name, a folder, or a .gguf file; TASK is a name, or a .toml, .csv or .jsonl file, or the .json of
    a saved task.
    """
    from circuitdiscovery.cli import discover as run

    given["counterfactual"] = _counterfactual(given["task"], given["counterfactual"])
    _check_rows(given["task"], given["skip_bad"])
    if given["method"] is None:  # a threshold says that it is acdc
        given["method"] = "acdc" if given["threshold"] is not None else defaults.default_method(given["model"])
    options = Options(split_qkv=not no_split_qkv, **given)
    options.check()
    folder = distributed.from_first(lambda: run.open_folder(options.name, out=out, resume=resume))
    try:
        record = run.discover(options, folder, [PROGRAM, *sys.argv[1:]])
    except KeyboardInterrupt as stopped:
        click.echo(" ".join(["\ninterrupted", *_notes(stopped)]), err=True)
        sys.exit(130)
    if as_json:
        _print_json(record["summary"])
    else:
        _print_report(record["report"], record["summary"])


@cli.command(short_help="Measure CIRCUIT: faithfulness, completeness, minimality.")
@about_circuit
@click.option("--direction", type=DIRECTION, help="[default: as the search]")
@click.option("--measure", type=EFFORT, default="full", show_default=True, help="How much is measured; quick takes some 60 forwards.")
@as_json
def evaluate(circuit: str, measure: str, as_json: bool, **given: Any) -> None:
    """Measure CIRCUIT, a circuit.json, a run's folder or a shipped graph's name: faithfulness, completeness, minimality."""
    from circuitdiscovery.cli import discover as run

    model, task, found, options = _searched_in(circuit, given)
    scores = _scores(circuit)
    result = run.evaluate(model, task, found, scores, options, effort=measure)
    _print(result, as_json)
    if not as_json:
        from circuitdiscovery.reporting.contents import mass
        from circuitdiscovery.reporting.words import told

        for line in told(result.to_dict(), {"scores": mass(scores, None), "searched": None}):
            click.echo(line)


def _searched_in(circuit: str, given: dict[str, Any]) -> tuple[Any, Any, Circuit, Options]:
    """(model, task, circuit, options) of a command about a circuit: what is given, else as it was searched."""
    from circuitdiscovery.cli import discover as run

    found = _circuit(circuit)
    options = _evaluation_options(found, circuit, given)
    model, task = run.load(options)
    from circuitdiscovery.engine import threads  # imports torch

    threads.choose(model, task, options.batch_size)
    found.check_model(model)
    return model, task, found, options


@cli.command(short_help="Say what the heads and MLPs of CIRCUIT do.")
@about_circuit
@click.option("--node", "nodes", multiple=True, metavar="NODE", help="Of this head or MLP only; repeat it for more.")
@click.option("--effort", type=EFFORT, default="full", show_default=True, help="How many examples are intervened on.")
@as_json
def explain(circuit: str, nodes: tuple[str, ...], effort: str, as_json: bool, **given: Any) -> None:
    """Say what the heads and MLPs of CIRCUIT do, a circuit.json, a run's folder or a shipped graph's name: a card for each."""
    model, task, found, options = _searched_in(circuit, given)
    import circuitdiscovery as cd
    from circuitdiscovery.reporting.progress import stage

    with stage("explaining") as report:
        chosen: dict[str, Any] = {"nodes": nodes or None, "effort": effort, "batch_size": options.batch_size, "progress": report}
        result = cd.explain(model, task, found, metric=options.metric, ablation=options.ablation, **chosen)
    _print(result, as_json)


@cli.command(short_help="Patch the paths from every node to RECEIVERs.")
@click.argument("model", type=MODEL)
@click.argument("task", type=TASK)
@click.argument("receivers", nargs=-1, metavar="[RECEIVER]...")
@click.option("--ablation", type=ABLATION, default="resample", show_default=True, help="What a sender writes instead.")
@click.option("--metric", type=METRIC, help="[default: the task's]")
@click.option("--counterfactual", metavar="NAME", help="[default: the task's first choice]")
@click.option("--examples", type=COUNT, help="Prompt pairs.  [default: 64, or half of a table]")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Draws the examples.")
@click.option("--batch-size", type=COUNT, help="[default: what memory allows]")
@click.option("--device", type=DEVICE, help="[default: a GPU where there is one]")
@click.option("--dtype", type=DTYPE, default="float32", show_default=True)
@as_json
def trace(receivers: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Path patching in MODEL on TASK: how much each node matters for what the RECEIVERs read, such as a2.h0<q>.  [default: logits]"""
    from circuitdiscovery.cli import discover as run

    given["counterfactual"] = _counterfactual(given["task"], given["counterfactual"])
    options = Options(**given)
    model, task = run.load(options)
    import circuitdiscovery as cd
    from circuitdiscovery.reporting.progress import stage

    with stage("patching paths") as report:
        how: dict[str, Any] = {"metric": options.metric, "ablation": options.ablation, "batch_size": options.batch_size, "progress": report}
        result = cd.path_patching(model, task, receivers=receivers or "logits", **how)
    _print(result, as_json)


@cli.command(short_help="Test a HYPOTHESIS by causal scrubbing.")
@click.argument("model", type=MODEL)
@click.argument("hypothesis", metavar="HYPOTHESIS")
@click.option("--task", type=TASK, help="[default: the one that the hypothesis names]")
@click.option("--metric", type=METRIC, help="[default: the task's]")
@click.option("--draws", type=COUNT, default="5", show_default=True, help="How often each prompt is scrubbed.")
@click.option("--examples", type=COUNT, help="Prompt pairs.  [default: 64, or half of a table]")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Draws the examples and the prompts that stand in for them.")
@click.option("--batch-size", type=COUNT, help="[default: what memory allows]")
@click.option("--device", type=DEVICE, help="[default: a GPU where there is one]")
@click.option("--dtype", type=DTYPE, default="float32", show_default=True)
@as_json
def scrub(hypothesis: str, draws: int, as_json: bool, **given: Any) -> None:
    """Test HYPOTHESIS, a .toml file or a shipped one such as toy/ioi-position, in MODEL by causal scrubbing."""
    from circuitdiscovery.cli import discover as run
    from circuitdiscovery.explanation.scrubbing.hypothesis import load_hypothesis

    held = load_hypothesis(hypothesis)
    given["task"] = given["task"] or _task(held.task)
    options = Options(**given)
    model, task = run.load(options)
    import circuitdiscovery as cd
    from circuitdiscovery.reporting.progress import stage

    with stage("scrubbing") as report:
        how: dict[str, Any] = {"metric": options.metric, "seed": options.seed, "batch_size": options.batch_size, "progress": report}
        result = cd.scrub(model, task, held, draws=draws, **how)
    _print(result, as_json)


@cli.command(short_help="Compare circuit A with circuit B, the reference.")
@click.argument("a")
@click.argument("b")
@as_json
def compare(a: str, b: str, as_json: bool) -> None:
    """Compare circuit A with circuit B, the reference: precision, recall and Jaccard, and ROC AUC where A has scores beside it."""
    from circuitdiscovery.circuit.comparison import compare

    _print(compare(_circuit(a), _circuit(b), scores=_scores(a)), as_json)


@cli.command(short_help="Draw CIRCUIT into a picture.")
@click.argument("circuit")
@click.option("-o", "--out", type=Checked(_picture, "FILE"), required=True, help=f"The picture: .{', .'.join(FORMATS)}.")
@click.option(
    "--max-edges",
    type=Checked(_edge_limit, "N|all"),
    default=str(MOST_EDGES),
    show_default=True,
    help="Draw at most N edges, 1 or more: the strongest whole paths from input to logits; or all of them.",
)
def draw(circuit: str, out: Path, max_edges: float) -> None:
    """Draw CIRCUIT, a circuit.json, a run's folder or a shipped graph's name; of a run with the roles of its nodes in colour."""
    from circuitdiscovery.reporting.folder import roles_beside

    found = _circuit(circuit)
    roles = found.roles or roles_beside(Path(_file(circuit)), found)
    found.draw(out, roles=roles, max_edges=None if max_edges == math.inf else int(max_edges))
    click.echo(str(out))


@cli.command(short_help="Write the page of RUN, the folder of a finished discover.")
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
@click.option("-o", "--out", type=click.Path(path_type=Path), metavar="FILE", help="The page: .html.  [default: RUN/report.html]")
def report(run: Path, out: Path | None) -> None:
    """Write the page of RUN, the folder of a finished discover: the circuit, its measures and what its nodes do, in one HTML file.

    A circuit that was not measured has one, too; circuitdiscovery discover ... --resume --measure quick measures it.
    """
    from circuitdiscovery.reporting.page import report

    click.echo(str(report(run, out)))


@cli.command(short_help="Compare methods on a SUITE of known circuits.")
@click.argument("suite", type=_name("suite"))
@click.option(
    "--method",
    "methods",
    type=Checked(_benchmark_method, "M"),
    multiple=True,
    help="A method, or one's own as module:function; repeat it for more.",
)
@click.option("--model", type=MODEL, help="Of the published circuits.  [default: gpt2]")
@click.option("--quick", is_flag=True, help="Fewer examples and methods: under two minutes on two cores.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Draws the prompts.")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="A new or empty folder.  [default: runs/benchmark-SUITE]")
@click.option("--resume", is_flag=True, help="Go on with the benchmark in --out, or with the latest of this suite.")
@as_json
def benchmark(out: Path | None, resume: bool, as_json: bool, **given: Any) -> None:
    """Compare methods on a SUITE: planted (known circuits), toy, published (GPT-2 small), or one published circuit."""
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
        _print_json(read_json(folder / "benchmark.json"))
    else:
        click.echo((folder / "benchmark.md").read_text("utf-8"))
        click.echo(f"files: {folder}: benchmark.md, benchmark.json, benchmark.png", err=True)


@cli.command(short_help="List the bundled models.")
def models() -> None:
    """List the bundled models."""
    for name in shipped("models"):
        config = read_json(data_folder("models") / name / "config.json")
        layers, heads = (config.get(a, config.get(b)) for a, b in (("n_layer", "num_hidden_layers"), ("n_head", "num_attention_heads")))
        click.echo(f"{name:<12}{config.get('model_type')}, {layers} layers of {heads} heads")
    click.echo("Also: a Hugging Face folder, a .gguf file, or a hub name such as gpt2 or EleutherAI/pythia-70m", err=True)


@cli.command(short_help="List the shipped tasks, or show one.")
@click.argument("task", required=False)
def tasks(task: str | None) -> None:
    """List the shipped tasks, and what their counterfactuals ask; or show TASK: its prompts, its words and how many there are."""
    from circuitdiscovery.task.taskfile import TaskFile, read_task

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
            click.echo(f"  {f'{key} (default)' if key == file.counterfactual else key:<22}{rule.asks}".rstrip())


@cli.command(short_help="List the shipped circuits.")
def graphs() -> None:
    """List the shipped circuits: published and planted ones."""
    for name in shipped("graphs"):
        click.echo(f"{name:<32}{len(_circuit(name))} edges")


# -------------------------------------------------------------------- output


def _circuit(path: str) -> Circuit:
    from circuitdiscovery.circuit.circuit import load_circuit

    return load_circuit(path)


def _file(path: str) -> str:
    """The circuit.json of a run's folder; anything else as it is."""
    from circuitdiscovery.files.disk import is_folder

    if path in shipped("graphs") or not is_folder(path):
        return path
    from circuitdiscovery.circuit.circuit import circuit_file

    return str(circuit_file(path))


def _scores(path: str) -> Scores | None:
    """The scores in the run folder that a circuit lies in, where it lies in one that has some."""
    from circuitdiscovery.circuit.scores import Scores

    path = _file(path)
    beside = Path(path).parent / "scores.safetensors"
    return Scores.load(beside) if Path(path).name == "circuit.json" and beside.exists() else None


def _evaluation_options(circuit: Circuit, path: str, given: dict[str, Any]) -> Options:
    """What is given; else what run.json beside the circuit says; else what the circuit knows of its search."""
    from circuitdiscovery.cli import discover as run

    path = _file(path)
    folder = Path(path).parent
    asked_anew = {key for key, value in given.items() if value is not None}
    values = checked({key: value for key, value in searched_with(circuit.info).items() if key not in asked_anew}, path)
    if Path(path).name == "circuit.json" and (folder / "run.json").exists():
        values |= checked(run.recorded(folder)["options"], str(folder / "run.json"))
    values |= {key: value for key, value in given.items() if value is not None}
    for key, check in (("model", check_model), ("task", _task)):
        if not isinstance(values.get(key), str):
            raise CircuitDiscoveryError(f"{path} does not say its {key}: give --{key}")
        if given[key] is None:
            values[key] = _from_file(path, key, check, values[key])
    if given["task"] is not None and given["counterfactual"] is None:
        values.pop("counterfactual", None)  # was another task's
    if isinstance(values.get("counterfactual"), str):
        values["counterfactual"] = _counterfactual(values["task"], values["counterfactual"])
    return Options(**{field: values[field] for field in EVALUATION_FIELDS if field in values})


def _from_file(path: str, key: str, check: Callable[[str], str], value: str) -> str:
    try:
        return check(value)
    except CircuitDiscoveryError as error:
        raise CircuitDiscoveryError(f"{path} was found with {key} {value!r}: {error}; give --{key}") from None


def _print(result: Any, as_json: bool) -> None:
    if as_json:
        _print_json(result.to_dict())
    else:
        click.echo(str(result))


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=1, allow_nan=False))


def _print_report(report: str, summary: dict[str, Any]) -> None:
    from circuitdiscovery.reporting.progress import duration

    seconds = summary["seconds"]
    parts = ", ".join(f"{name} {duration(value)}" for name, value in seconds.items())
    rows = [("time", f"{duration(sum(seconds.values()))} ({parts})"), ("files", f"{summary['folder']}: {', '.join(summary['files'])}")]
    for line in [*report.splitlines(), *(f"{name:<13} {value}" for name, value in rows)]:
        name, value = line[:14], line[14:]
        click.echo(click.style(name, bold=True) + value)


# --------------------------------------------------------------------- errors


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `kill` is Ctrl-C: the state is kept, the resume command printed
    for late in (signal.SIGTERM, signal.SIGINT):  # while the interpreter is taken down: all is written, the status is known
        atexit.register(signal.signal, late, signal.SIG_IGN)
    _spare_collections()
    try:
        with distributed.launched():
            cli.main(args=arguments, prog_name=PROGRAM, standalone_mode=False)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except Exception as error:
        if os.environ.get("CIRCUITDISCOVERY_DEBUG"):
            raise
        click.echo(f"{PROGRAM}: {_one_line(error)}", err=True)
        sys.exit(2)
    sys.exit(0)


def _spare_collections() -> None:
    """Look for garbage seldom, and not at the end.

    Importing torch and transformers makes half a million objects that stay; Python would look through them again and again meanwhile,
    and three times more before it exits, which is a quarter of a short command.
    """
    gc.set_threshold(_ALLOCATIONS)
    atexit.register(gc.freeze)


def _one_line(error: Exception) -> str:
    if isinstance(error, click.NoSuchOption):
        text = _no_option(error)
    elif isinstance(error, click.UsageError):
        text = f"{error.format_message().rstrip('.')}. {_valid(error)}".removesuffix(". ")
    elif isinstance(error, click.ClickException):
        text = error.format_message()
    elif isinstance(error, OSError):
        text = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    elif isinstance(error, CircuitDiscoveryError):
        text = str(error)
    else:  # a mistake of ours, or memory that ran out
        text = f"{type(error).__name__}: {error} (CIRCUITDISCOVERY_DEBUG=1 shows where)"
    notes = [f"; stopped {note}" for note in _notes(error)]
    return printable(" ".join("".join([text, *notes]).split()))


def _notes(error: BaseException) -> list[str]:
    """What the run that an exception stopped says of what is left."""
    return list(getattr(error, "__notes__", ()))


def _no_option(error: click.NoSuchOption) -> str:
    """The sentence for an option that there is not."""
    if "completion" in error.option_name:
        shells = ", ".join(COMPLETE.format(shell=shell) for shell in ("bash", "zsh", "fish"))
        return f"no option {error.option_name!r}; these commands print the script that completes words in a shell: {shells}"
    params = [] if error.ctx is None else error.ctx.command.get_params(error.ctx)
    options = [name for param in params for name in param.opts if name.startswith("--")]
    wanted = error.option_name.lstrip("-").replace("_", "-")
    near = difflib.get_close_matches(wanted, [name[2:] for name in options], n=1, cutoff=0.65)
    hint = f"did you mean '--{near[0]}'? " if near else ""
    return f"no option {shown(error.option_name)}; {hint}Valid options: {', '.join(options)}"


def _valid(error: click.UsageError) -> str:
    """What would have been valid, where the message does not say it."""
    context = error.ctx
    if context is None:
        return ""
    if isinstance(context.command, click.Group):
        return "Valid commands: " + ", ".join(context.command.list_commands(context))
    return "" if isinstance(error, click.BadParameter) and error.message else context.get_usage()
