"""The models of a training run, in the order of their steps, loaded one at a time."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from circuitdiscovery.arguments import guarded
from circuitdiscovery.circuit.circuit import Circuit
from circuitdiscovery.errors import CircuitDiscoveryError, shown
from circuitdiscovery.files.disk import is_folder
from circuitdiscovery.model.load import load_model, located
from circuitdiscovery.model.model import Model
from circuitdiscovery.model.outline import outline

_NUMBER = re.compile(r"(?:step|checkpoint)[-_]?(\d+)$")


@guarded
def checkpoint_folders(folder: str | Path) -> dict[int, Path]:
    """The checkpoints in a folder: step -> its folder, in the order of the steps.

    Args:
        folder: with folders named step-N, step_N, stepN or checkpoint-N; what has other names is left out.

    Raises:
        CircuitDiscoveryError: no such folder; none in it with such a name; two of one step.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for step in (1000, 0, 250):
    ...     (folder / f"step-{step}").mkdir()
    >>> list(checkpoint_folders(folder))
    [0, 250, 1000]
    """
    if not is_folder(folder):
        raise CircuitDiscoveryError(f"{folder}: there is no such folder of checkpoints")
    named = [(_NUMBER.fullmatch(path.name), path) for path in Path(folder).iterdir() if path.is_dir()]
    found = [(int(match[1]), path) for match, path in named if match]
    if not found:
        raise CircuitDiscoveryError(
            f"{folder} holds no checkpoints: folders named step-N, step_N, stepN or checkpoint-N"
        )
    return _in_order(found)


def _in_order(found: Iterable[tuple[int, Any]]) -> dict[int, Any]:
    by_step: dict[int, Any] = {}
    for step, source in found:
        if step in by_step:
            raise CircuitDiscoveryError(f"two checkpoints of step {step}: {by_step[step]} and {source}")
        by_step[step] = source
    return dict(sorted(by_step.items()))


def sources_of(models: Any) -> dict[int, Any]:
    """What `checkpoints` is given, as step -> what is loaded there.

    A list is numbered by its names where all of them end in a step, else from 0.
    """
    if isinstance(models, str | Path):
        return dict(checkpoint_folders(models))
    if isinstance(models, Mapping):
        if wrong := [step for step in models if type(step) is not int or step < 0]:
            raise CircuitDiscoveryError(
                f"models: a step is a whole number of at least 0, not {shown(wrong[0])}"
            )
        found = _in_order(models.items())
    elif isinstance(models, Iterable) and not isinstance(models, Model):
        given = list(models)
        names = [_NUMBER.search(Path(each).name) if isinstance(each, str | Path) else None for each in given]
        steps = [int(match[1]) for match in names if match]
        found = _in_order(zip(steps if len(steps) == len(given) else range(len(given)), given, strict=True))
    else:
        raise CircuitDiscoveryError(
            "models must be a folder of checkpoints, step -> model or its path, or a list of paths, not "
            f"{shown(models)}"
        )
    if not found:
        raise CircuitDiscoveryError("models: no checkpoint is given")
    return found


@dataclass
class TrainingRun:
    """The checkpoints of a run of training, all of one graph and of the same tokens.

    Args:
        sources: as `sources_of` gives them.
        circuit: whose graph they must have.
        device, dtype: as for `load_model`.
    """

    sources: Mapping[int, Any]
    circuit: Circuit
    device: str | None = None
    dtype: str = "float32"
    _tokens: tuple[int, int, Any] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        """Each is looked for before the first one is measured: a folder or a name on the hub is checked by
        its config and tokenizer."""
        for step, source in self.sources.items():
            with _told(step):
                if isinstance(source, Model):
                    self._check(source)
                elif isinstance(source, str | Path) and not located(source, weights=False)[0].is_file():
                    self._check(outline(source))

    def load(self, step: int) -> Model:
        """The model of a step; a loaded one as it is.

        Raises:
            CircuitDiscoveryError: as `load_model`; another graph, width or other tokens than the first.
        """
        source = self.sources[step]
        with _told(step):
            model = source if isinstance(source, Model) else self._read(source)
            self._check(model)
        return model

    def _read(self, source: Any) -> Model:
        return load_model(source, device=self.device, dtype=self.dtype)

    def _check(self, model: Model) -> None:
        on_weights_of(self.circuit, model).check_model(model)
        words = None if model.tokenizer is None else model.tokenizer.get_vocab()
        own = (model.d_model, model.vocab_size, words)
        if self._tokens is None:
            self._tokens = own
        differing = ("another width", "a vocabulary of another size", "other tokens")
        for what, mine, first in zip(differing, own, self._tokens, strict=True):
            if mine != first and mine is not None and first is not None:
                raise CircuitDiscoveryError(
                    f"{model.name} has {what} than that of step {next(iter(self.sources))}"
                )


@contextmanager
def _told(step: int) -> Iterator[None]:
    """An error says of which checkpoint it is."""
    try:
        yield
    except CircuitDiscoveryError as error:
        raise CircuitDiscoveryError(f"the checkpoint of step {step}: {error}") from None


def on_weights_of(circuit: Circuit, model: Model) -> Circuit:
    """The same edges as a circuit of a model, whatever weights they were found in; the name stays."""
    own = circuit.info.get("model")
    info = {} if own is None else {"model": {**own, "digest": model.digest}}
    return Circuit(circuit.graph, circuit.mask, circuit.scores, info)
