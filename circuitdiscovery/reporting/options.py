"""What a run is asked for, checked without torch: the options, what
goes together, and which models there are.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast, get_args, get_type_hints

from circuitdiscovery.errors import CircuitDiscoveryError, shown, unknown
from circuitdiscovery.files.disk import GGUF, can_be_a_path, expanded, needs_gguf, shipped
from circuitdiscovery.graph.nodes import mlp_name, parsed, whole_of
from circuitdiscovery.registry import METHODS, METRICS, OPTIONS, Kind, canonical, checked_direction
from circuitdiscovery.registry.option import MOST

ONE_WORD_HUB_NAMES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2")
LEAST = {"edges": 1, "examples": 1, "batch_size": 1, "seed": 0, "keep": 1, "neurons": 1}
MAY_DIFFER = ("device", "batch_size", "measure")  # when a run goes on: they do not change what is found
SPLITS = ("neurons", "positions", "all", "experts")  # what a node's parts can be

MEASURED_WITH = ("metric", "ablation", "direction", "batch_size")  # what a measurement takes
DRAWN_WITH = ("examples", "seed", "counterfactual", "skip_bad")  # what the drawing of a task takes


@dataclass(frozen=True)
class Options:
    """What `discover` is asked for, in canonical names.

    None is the default of the method (metric, threshold, edges), of the task, or (measure) what the
    numbers of edges, tokens and parameters allow. `how` holds the options of the method alone. `split` says
    which nodes are sums of which parts, such as `m2=neurons input=positions`; `keep` how many neurons of each
    MLP among them are parts; `neurons` is the same for all MLPs.
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
    counterfactual: str | None = None
    examples: int | None = None
    batch_size: int | None = None
    seed: int = 0
    device: str | None = None
    dtype: str = "float32"
    measure: str | None = None
    skip_bad: bool = False
    split: str | None = None
    keep: int | None = None
    neurons: int | None = None
    how: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Options:
        """Of values by name; those that are not a field are the method's, where they are given at all."""
        own = {name: value for name, value in values.items() if name in FIELDS}
        how = {name: value for name, value in values.items() if name not in FIELDS}
        return cls(
            **own,
            how={name: value for name, value in how.items() if value is not None and value is not False},
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything by name, as run.json holds it."""
        return {name: getattr(self, name) for name in FIELDS} | dict(self.how)

    def some(self, *names: str) -> dict[str, Any]:
        """Some of them by name, as functions take them."""
        return {name: getattr(self, name) for name in names}

    def check(self) -> None:
        """Refuse options that do not go together; needs no torch."""
        if self.threshold is not None and self.edges is not None:
            raise CircuitDiscoveryError("--threshold and --edges exclude each other: give one of them")
        self._check_parts()
        method = METHODS[self.method]
        if method.sizes == "threshold" and self.edges is not None:
            raise CircuitDiscoveryError(
                f"--edges is not for {_hyphened(self.method)}, whose size follows from --threshold; "
                "valid with the "
                "other methods"
            )
        if method.sizes == "edges" and self.threshold is not None:
            raise CircuitDiscoveryError(
                f"--threshold is not for {_hyphened(self.method)}, which searches for a number of edges: "
                "give --edges"
            )
        for name in self.how:
            if not method.takes(name):
                raise CircuitDiscoveryError(
                    f"{_flag(name)} is not for {_hyphened(self.method)}; {_valid_with(name)}"
                )
            if (needed := OPTIONS[name].needs) is not None and needed not in self.how:
                raise CircuitDiscoveryError(
                    f"{_flag(name)} does nothing without {_flag(needed)}: give it, too"
                )
        if checked_direction(self.direction, self.ablation) == "denoising" and not method.takes("direction"):
            raise CircuitDiscoveryError(
                f"--direction denoising is not for {_hyphened(self.method)}; {_valid_with('direction')}"
            )
        if method.gradient is not None and self.metric is not None and METRICS[self.metric].share:
            raise CircuitDiscoveryError(
                f"--metric {self.metric} has no gradient, which {_hyphened(self.method)} takes; "
                "use --method exact"
            )
        divergence = self.metric is not None and METRICS[self.metric].divergence
        if method.gradient == "clean" and divergence and self.direction == "noising":
            raise CircuitDiscoveryError(
                f"--metric {self.metric} has no gradient on the clean run, where "
                f"{_hyphened(self.method)} takes it; "
                "use --method eap-ig"
            )

    def _check_parts(self) -> None:
        split = self.parts()
        if self.keep is not None and self.neurons is not None:
            raise CircuitDiscoveryError(
                "--neurons N is for all MLPs what --keep N is for some: give one of them"
            )
        if self.keep is not None and not any(
            isinstance(each, list) or each == "neurons" for each in split.values()
        ):
            raise CircuitDiscoveryError("--keep needs an MLP that is split into neurons: --split m2=neurons")

    def parts(self, n_layers: int = 0) -> dict[str, str | list[int]]:
        """Which nodes are split into what, as `circuitdiscovery.split` takes it.

        Args:
            n_layers: whose MLPs all are split where `neurons` is given.

        Raises:
            CircuitDiscoveryError: an MLP that is split twice.
        """
        found: dict[str, str | list[int]] = {}
        for given in (self.split or "").split():
            node, parts = split_of(given)
            if node in found:
                raise CircuitDiscoveryError(f"--split {node} is given twice: give all its parts together")
            found[node] = parts
        for layer in range(n_layers if self.neurons is not None else 0):
            found.setdefault(mlp_name(layer), "neurons")
        return found

    @property
    def name(self) -> str:
        """<model>-<task>-<method>, fit for a folder."""
        parts = Path(self.model).name.removesuffix(GGUF), Path(self.task).stem, _hyphened(self.method)
        return "-".join(re.sub(r"[^\w.]+", "-", part) for part in parts)

    def resume_command(self, folder: str | Path) -> str:
        """The command line that goes on with this run."""
        words = ["circuitdiscovery", "discover", self.model, self.task]
        for name, value in [*self.to_dict().items()][2:]:
            if name == "split_qkv":
                words += [] if value else ["--no-split-qkv"]
            elif name == "split":
                words += [word for given in (value or "").split() for word in ("--split", given)]
            elif isinstance(value, list):
                words += [word for each in value for word in (_flag(name), each)]
            elif value is True:
                words += [_flag(name)]
            elif value != FIELDS.get(name):
                words += [_flag(name), str(value)]
        return shlex.join([*words, "--out", str(folder), "--resume"])


FIELDS = {each.name: each.default for each in fields(Options) if each.name != "how"}  # with their defaults


def split_of(text: str) -> tuple[str, str | list[int]]:
    """(the node, its parts) of what `--split` is given.

    >>> split_of("m2=neurons"), split_of("m1=3,17")
    (('m2', 'neurons'), ('m1', [3, 17]))

    Raises:
        CircuitDiscoveryError: no node, or no parts that a node can have.
    """
    node, _, parts = text.partition("=")
    if "/" in node or parsed(node).kind not in ("input", "head", "mlp") or node != whole_of(node):
        raise CircuitDiscoveryError(f"a node that is split is input, a head or an MLP, not {shown(node)}")
    if re.fullmatch(r"\d{1,9}(,\d{1,9})*", parts):
        return node, [int(number) for number in parts.split(",")]
    if parts not in SPLITS:
        raise CircuitDiscoveryError(
            f"{shown(text)} does not say what the parts of {node} are: {node}="
            f"{', '.join(SPLITS)}, or the numbers of neurons, such as 3,17,200"
        )
    return node, parts


def _hyphened(name: str) -> str:
    return name.replace("_", "-")


def _flag(option: str) -> str:
    return f"--{_hyphened(option)}"


def _valid_with(option: str) -> str:
    return (
        "valid with "
        f"{' and '.join(_hyphened(name) for name, method in METHODS.items() if method.takes(option))}"
    )


def checked(values: Mapping[str, Any], where: str, *, names_too: bool = True) -> dict[str, Any]:
    """Options that a file gives: each of its kind, in its range, (`names_too`) of a
    name that there is; others are left out.

    Raises:
        CircuitDiscoveryError: one that is not, by file and name.
    """
    kinds, found = get_type_hints(Options), {}
    for name, value in values.items():
        if name in FIELDS:
            right = _fits(name, value, kinds[name])
        elif name in OPTIONS:
            right = value is None or value is False or OPTIONS[name].holds(value)
        else:
            continue
        if not right:
            raise CircuitDiscoveryError(f"{where}: the field 'options.{name}' must not be {shown(value)}")
        if names_too and isinstance(value, str) and name in get_args(Kind):
            try:
                value = canonical(cast(Kind, name), value)
            except CircuitDiscoveryError as error:
                told = f": {error}"
                if ":" in value:  # which a file's word is no reason to import
                    told = f" is {shown(value)}, which is your own: give it again with {_flag(name)}"
                raise CircuitDiscoveryError(f"{where}: the field 'options.{name}'{told}") from None
        found[name] = value
    return found


def _fits(name: str, value: Any, kind: Any) -> bool:
    """Whether a value is of a field's kind and range."""
    if name == "threshold" and value is not None:
        return OPTIONS[name].holds(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        return False
    return not isinstance(value, int) or name not in LEAST or LEAST[name] <= value <= MOST


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
    if name in shipped("models"):
        return name
    if not can_be_a_path(name):
        raise CircuitDiscoveryError(
            f"no model {shown(name)}: neither a folder nor a hub model has such a name"
        )
    path = expanded(name)
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

    The metric that a method searches with by default is not what a
    circuit is evaluated with: that is the task's own.
    """
    model, options = info.get("model"), info.get("options")
    model = model if isinstance(model, Mapping) else {}
    options = options if isinstance(options, Mapping) else {}
    found = {key: options.get(key) for key in ("ablation", "metric", "direction")}
    found |= {"model": model.get("name"), "dtype": model.get("dtype")} | {
        key: info.get(key) for key in ("task", "counterfactual", "seed", "examples")
    }
    method = METHODS.get(str(info.get("method")))
    if method is not None and method.metric is not None and found["metric"] == method.metric:
        del found["metric"]
    return {key: value for key, value in found.items() if value is not None}
