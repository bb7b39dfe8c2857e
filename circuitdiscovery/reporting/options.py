"""What a run is asked for, checked without torch: the options, what
goes together, and which models there are.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast, get_type_hints

from circuitdiscovery import names
from circuitdiscovery.errors import CircuitDiscoveryError, shown, unknown
from circuitdiscovery.files.disk import GGUF, can_be_a_path, needs_gguf, shipped

ONE_WORD_HUB_NAMES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2")
LEAST = {"edges": 1, "examples": 1, "batch_size": 1, "seed": 0, "steps": 1, "rounds": 0}
MOST = 2**63 - 1
MAY_DIFFER = ("device", "batch_size", "measure")  # when a run goes on: they do not change what is found
DENOISING_METHODS = ("eap", "exact")  # the others are defined for a clean run that is damaged
THRESHOLD_METHODS = ("acdc", "trace_back")  # give a circuit whose size follows from a threshold
STEPPED_METHODS = ("eap_ig", "edge_pruning", "matryoshka")
ROUND_METHODS = ("hybrid",)
SIZED_METHODS = ("hybrid", "edge_pruning", "matryoshka")  # search for a circuit of a given number of edges


@dataclass(frozen=True)
class Options:
    """What `discover` is asked for, in canonical names.

    None is the default of the method (metric, threshold, edges), of the task, or (measure) what the
    numbers of edges, tokens and parameters allow.
    """

    model: str
    task: str
    method: str = "acdc"
    ablation: str = "resample"
    metric: str | None = None
    direction: str = "noising"
    threshold: float | None = None
    edges: int | None = None
    split_qkv: bool = True
    group_testing: bool = False
    counterfactual: str | None = None
    examples: int | None = None
    batch_size: int | None = None
    seed: int = 0
    device: str | None = None
    dtype: str = "float32"
    measure: str | None = None
    steps: int | None = None
    rounds: int | None = None
    skip_bad: bool = False

    def check(self) -> None:
        """Refuse options that do not go together; needs no torch."""
        if self.threshold is not None and self.edges is not None:
            raise CircuitDiscoveryError("--threshold and --edges exclude each other: give one of them")
        if self.method in THRESHOLD_METHODS and self.edges is not None:
            raise CircuitDiscoveryError(
                f"--edges is not for {self.method.replace('_', '-')}, whose size follows from "
                "--threshold; valid with the other methods"
            )
        if self.method in SIZED_METHODS and self.threshold is not None:
            raise CircuitDiscoveryError(
                f"--threshold is not for {self.method.replace('_', '-')}, which searches for a number of "
                "edges: give --edges"
            )
        if self.group_testing and self.method != "acdc":
            raise CircuitDiscoveryError(
                f"--group-testing is not for {self.method.replace('_', '-')}; valid with acdc"
            )
        for name, methods in (("steps", STEPPED_METHODS), ("rounds", ROUND_METHODS)):
            if getattr(self, name) is not None and self.method not in methods:
                valid = " and ".join(each.replace("_", "-") for each in methods)
                raise CircuitDiscoveryError(
                    f"--{name} is not for {self.method.replace('_', '-')}; valid with {valid}"
                )
        if self.direction == "denoising" and self.method not in DENOISING_METHODS:
            raise CircuitDiscoveryError(
                f"--direction denoising is not for {self.method.replace('_', '-')}; valid with "
                f"{' and '.join(DENOISING_METHODS)}"
            )
        if self.method == "eap" and self.metric == "kl_divergence" and self.direction == "noising":
            raise CircuitDiscoveryError(
                "--metric kl_divergence has no gradient on the clean run, where eap takes it; use "
                "--method eap-ig"
            )

    @property
    def name(self) -> str:
        """<model>-<task>-<method>, fit for a folder."""
        parts = (
            Path(self.model).name.removesuffix(GGUF),
            Path(self.task).stem,
            self.method.replace("_", "-"),
        )
        return "-".join(re.sub(r"[^\w.]+", "-", part) for part in parts)

    def resume_command(self, folder: Path) -> str:
        """The command line that goes on with this run."""
        words = ["circuitdiscovery", "discover", self.model, self.task]
        for field in fields(self)[2:]:
            value = getattr(self, field.name)
            if field.name == "split_qkv":
                words += [] if value else ["--no-split-qkv"]
            elif value is True:
                words += [f"--{field.name.replace('_', '-')}"]
            elif value != field.default:
                words += [f"--{field.name.replace('_', '-')}", str(value)]
        return shlex.join([*words, "--out", str(folder), "--resume"])


def checked(values: Mapping[str, Any], where: str, *, names_too: bool = True) -> dict[str, Any]:
    """Options that a file gives: each of its kind, in its range, (`names_too`) of a
    name that there is; others are left out.

    Raises:
        CircuitDiscoveryError: one that is not, by file and name.
    """
    kinds, found = get_type_hints(Options), {}
    for field in fields(Options):
        if field.name not in values:
            continue
        name, value, kind = field.name, values[field.name], kinds[field.name]
        real = (
            name == "threshold"
            and isinstance(value, int)
            and not isinstance(value, bool)
            and abs(value) < MOST
        )
        right = real or (isinstance(value, kind) and (not isinstance(value, bool) or kind is bool))
        if right and isinstance(value, float) and not math.isfinite(value):
            right = False
        if right and isinstance(value, int) and name in LEAST:
            right = LEAST[name] <= value <= MOST
        if not right:
            raise CircuitDiscoveryError(f"{where}: the field 'options.{name}' must not be {shown(value)}")
        if names_too and isinstance(value, str) and name in names.VALID:
            try:
                value = names.canonical(cast(names.Kind, name), value)
            except CircuitDiscoveryError as error:
                raise CircuitDiscoveryError(f"{where}: the field 'options.{name}': {error}") from None
        found[name] = value
    return found


def is_task(name: str) -> bool:
    """Whether a text can be a task's name alone: a shipped one's, or a file's of a task."""
    return name.replace("-", "_") in shipped("tasks") or Path(name).suffix.lower() in (
        ".toml",
        ".csv",
        ".jsonl",
    )


def check_model(name: str) -> str:
    """A bundled model's name, a hub name, or an existing folder or GGUF file, made
    absolute; else an error. Needs no torch.
    """
    path = Path(name).expanduser()
    if name in shipped("models"):
        return name
    if not can_be_a_path(name):
        raise CircuitDiscoveryError(
            f"no model {shown(name)}: neither a folder nor a hub model has such a name"
        )
    if (path / "config.json").is_file():
        return str(path.resolve())
    if not path.exists() and is_task(name):
        raise CircuitDiscoveryError(f"{name} is a task, not a model; the model comes first: MODEL TASK")
    if path.suffix.lower() == GGUF and not path.is_dir():
        if not path.is_file():
            raise CircuitDiscoveryError(f"{name}: there is no such file")
        needs_gguf(name)
        return str(path.resolve())
    if path.exists():
        what = (
            "it has no config.json"
            if path.is_dir()
            else f"a model is a folder with config.json or a {GGUF} file"
        )
        raise CircuitDiscoveryError(f"{name} is not a model: {what}")
    if name.startswith((".", "/", "~")):
        raise CircuitDiscoveryError(
            f"there is no folder {name}; a model is a folder with config.json or a {GGUF} file, or a hub name"
        )
    if name not in ONE_WORD_HUB_NAMES and not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        listed = unknown("model", name, shipped("models"), plural="bundled models")
        raise CircuitDiscoveryError(
            f"{listed}; or a model's folder or {GGUF} file, or a hub name such as EleutherAI/pythia-70m"
        )
    return name


def searched_with(info: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a circuit's provenance knows.

    The metric that acdc, exact and trace_back search with by default is not what a
    circuit is evaluated with: that is the task's own.
    """
    model, options = info.get("model"), info.get("options")
    model = model if isinstance(model, Mapping) else {}
    options = options if isinstance(options, Mapping) else {}
    found = {key: options.get(key) for key in ("ablation", "metric", "direction")}
    found |= {"model": model.get("name"), "dtype": model.get("dtype")} | {
        key: info.get(key) for key in ("task", "counterfactual", "seed", "examples")
    }
    if info.get("method") in ("acdc", "exact", "trace_back") and found["metric"] == "kl_divergence":
        del found["metric"]
    return {key: value for key, value in found.items() if value is not None}
