"""What the commands take: one check for each kind of argument, before torch is imported."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from circuitdiscovery.errors import CircuitDiscoveryError, unknown
from circuitdiscovery.files.disk import data_folder, ending, expanded
from circuitdiscovery.files.text import finite, size, whole
from circuitdiscovery.registry import (
    MEASURES,
    METHODS,
    OPTIONS,
    Kind,
    Method,
    Option,
    canonical,
    opened,
    valid,
)
from circuitdiscovery.reporting.options import SPLITS, check_model, split_of

Command = Callable[..., None]


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


def one_of(kind: Kind) -> Checked:
    return Checked(
        lambda value: opened(kind, value),
        "|".join(name.replace("_", "-") for name in valid(kind)),
    )


def task_name(name: str) -> str:
    """A shipped task's name, or the whole path of another file."""
    from circuitdiscovery.task.read import read_task, task_path

    read_task(name, skip_bad=True)  # whether bad rows are skipped is another option
    path = task_path(name)
    shipped = path.suffix == ".toml" and path.parent.resolve() == data_folder("tasks").resolve()
    return path.stem if shipped else str(path.resolve())


def circuit_text(text: str) -> str:
    """A circuit's name or path, with ~ expanded; ./NAME stays a path, and is not the shipped NAME."""
    path = expanded(text)
    return str(path) if text.startswith("~") else text


def valid_counterfactual(task: str, name: str | None) -> str | None:
    """The canonical name of a task's counterfactual; None is the task's own."""
    from circuitdiscovery.task.read import counterfactual_of, read_task

    return None if name is None else counterfactual_of(read_task(task, skip_bad=True), name)


def check_rows(task: str, skip_bad: bool) -> None:
    """Refuse a table's bad rows where they are not to be skipped, as far
    as that can be told without a tokenizer.
    """
    from circuitdiscovery.task.read import read_task

    read_task(task, skip_bad=skip_bad)


def benchmark_method(name: str) -> str:
    return name if ":" in name else canonical("benchmark method", name)


def valid_device(name: str) -> str:
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise unknown("device", name, ("cpu", "cuda", "cuda:0", "mps"))
    return name


def valid_effort(name: str) -> str:
    if name not in MEASURES[1:]:
        raise unknown("measure", name, MEASURES[1:])
    return name


def neuron_method(name: str) -> str:
    known = ("eap", "eap-ig", "exact")  # as in search/neurons.py, which imports torch
    if name.replace("_", "-") not in known:
        raise unknown("method", name, known)
    return name.replace("-", "_")


def split_text(text: str) -> str:
    """NODE=PARTS, checked."""
    split_of(text)
    return text


def whole_number(minimum: int) -> Callable[[str], int]:
    return partial(whole, least=minimum)


def edge_limit(text: str) -> float:
    """A whole number, or infinity for all."""
    if text == "all":
        return math.inf
    if not re.fullmatch(r"\d{1,18}", text) or int(text) < 1:
        raise CircuitDiscoveryError(f"{text[:40]!r} is neither a whole number of at least 1 nor all")
    return int(text)


class PathType(click.Path):
    """A path, with ~ expanded."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return super().convert(expanded(value), param, ctx)
        except CircuitDiscoveryError as error:
            self.fail(str(error), param, ctx)


class Output(PathType):
    """A file to write, in a folder that there is."""

    def __init__(self, *endings: str) -> None:
        super().__init__(dir_okay=False, path_type=Path)
        self._endings = endings

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = super().convert(value, param, ctx)
        try:
            ending(path, *self._endings)
        except CircuitDiscoveryError as error:
            self.fail(str(error), param, ctx)
        if not path.parent.is_dir():
            self.fail(f"there is no folder {path.parent}", param, ctx)
        return path


PATH = PathType(path_type=Path)
FOLDER = PathType(path_type=Path, file_okay=False)
FILE = PathType(path_type=Path, dir_okay=False, exists=True)
MODEL = Checked(check_model, "MODEL")
TASK = Checked(task_name, "TASK")
CIRCUIT = Checked(circuit_text, "CIRCUIT")
METRIC = one_of("metric")
ABLATION = one_of("ablation")
DIRECTION = one_of("direction")
COUNT = Checked(whole_number(1), "N")
SEED = Checked(whole_number(0), "S")
DEVICE = Checked(valid_device, "cpu|cuda|cuda:N|mps")
DTYPE = one_of("dtype")
EFFORT = Checked(valid_effort, "quick|full")
THRESHOLD = Checked(finite, "T")
NEURON_METHOD = Checked(neuron_method, "eap|eap-ig|exact")
SPLIT = Checked(split_text, f"NODE={'|'.join(SPLITS)}|3,17,200")


def _bounded(ctx: click.Context, param: click.Parameter, value: int | None) -> None:
    """Whatever the command does is within the budget."""
    if value is not None:
        from circuitdiscovery.engine.memory import memory_budget

        ctx.with_resource(memory_budget(value))


memory = click.option(
    "--memory",
    type=Checked(size, "SIZE"),
    expose_value=False,
    callback=_bounded,
    help="What may be held beside the weights, such as 8GB.  [default: 80% of what is free]",
)
SKIPPED = "Skip rows of a table that cannot be used."
skip_bad_rows = click.option("--skip-bad", is_flag=True, help=SKIPPED)
as_json = click.option("--json", "as_json", is_flag=True, help="Print only JSON on standard output.")


def about_circuit(command: Command) -> Command:
    """CIRCUIT, and the model and how it is measured where that shall not be as it was searched."""
    words = "[default: the one the circuit was found in]"
    command = click.option("--model", type=MODEL, help=words)(as_searched(command))
    return click.argument("circuit", type=CIRCUIT)(command)


def as_searched(command: Command) -> Command:
    """How a circuit is measured where that shall not be as it was searched."""
    options = (
        click.option("--task", type=TASK, help="[default: the one the circuit was found with]"),
        click.option("--counterfactual", metavar="NAME", help="[default: same as the search]"),
        click.option("--ablation", type=ABLATION, help="[default: same as the search]"),
        click.option("--metric", type=METRIC, help="[default: same as the search, or the task's own]"),
        click.option("--examples", type=COUNT, help="[default: same as the search]"),
        click.option("--seed", type=SEED, help="[default: same as the search]"),
        click.option(
            "--skip-bad", is_flag=True, default=None, help=f"{SKIPPED}  [default: same as the search]"
        ),
        click.option("--batch-size", type=COUNT, help="[default: what memory allows]"),
        memory,
        click.option("--device", type=DEVICE, help="[default: a GPU if there is one]"),
        click.option("--dtype", type=DTYPE, help="[default: same as the search]"),
    )
    for option in reversed(options):  # as decorators are applied
        command = option(command)
    return command


def on_task(command: Command) -> Command:
    """MODEL and TASK."""
    return click.argument("model", type=MODEL)(click.argument("task", type=TASK)(command))


def in_folder(default: str, resumed: str) -> Callable[[Command], Command]:
    """The folder of a command that writes one, and goes on where it was stopped."""
    words = f"A new or empty folder.  [default: runs/{default}]"

    def with_folder(command: Command) -> Command:
        command = click.option("--resume", is_flag=True, help=resumed)(command)
        return click.option("--out", type=PATH, metavar="DIR", help=words)(command)

    return with_folder


def methods(which: Callable[[Method], bool]) -> str:
    """The names of those search methods, for a sentence."""
    return ", ".join(name.replace("_", "-") for name, method in METHODS.items() if which(method))


def methods_own(command: Command) -> Command:
    """The options that only some methods have, from the registry."""
    for name, option in reversed(OPTIONS.items()):
        if name not in ("threshold", "edges", "direction"):  # which have words of their own
            command = _own_option(name, option)(command)
    return command


def _own_option(name: str, option: Option) -> Callable[..., Any]:
    takers = {
        key.replace("_", "-"): method.options[name] for key, method in METHODS.items() if method.takes(name)
    }
    defaults = {
        key: default for key, default in takers.items() if default is not None and default is not False
    }
    told = ", ".join(
        str(default) if len(takers) == 1 else f"{default} for {key}" for key, default in defaults.items()
    )
    words = f"{', '.join(takers)}: {option.words}.{f'  [default: {told}]' if told else ''}"
    flag = f"--{name.replace('_', '-')}"
    if option.kind == "switch":
        return click.option(flag, is_flag=True, default=None, help=words)
    if option.kind == "circuits":
        words += "  Repeatable."
        taken = Checked(option.read, "CIRCUIT")
        return click.option(flag, type=taken, multiple=True, callback=_listed_or_none, help=words)
    metavar = "|".join(option.kind) if isinstance(option.kind, tuple) else "N"
    return click.option(flag, type=Checked(option.read, metavar), help=words)


def _listed_or_none(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> list[str] | None:
    """As the option of a method that is given, or not given."""
    return list(value) or None


def on_prompts(command: Command) -> Command:
    """How many prompts a command draws, by which seed, what measures them, and where and how they run."""
    return click.option("--metric", type=METRIC, help="[default: the task's]")(on_runs(command))


def on_runs(command: Command) -> Command:
    """How many prompts a command draws, by which seed and from which rows, and where and how they run."""
    options = (
        click.option("--examples", type=COUNT, help="Prompt pairs.  [default: 64, or half of a table]"),
        click.option("--seed", type=SEED, default=0, show_default=True, help="For everything that is drawn."),
        skip_bad_rows,
        click.option("--batch-size", type=COUNT, help="[default: what memory allows]"),
        memory,
        click.option("--device", type=DEVICE, help="[default: a GPU if there is one]"),
        click.option("--dtype", type=DTYPE, default="float32", show_default=True),
    )
    for option in reversed(options):  # as decorators are applied
        command = option(command)
    return command
