"""The state of a search or a training in one file, so that one that was stopped goes on
where it was and ends with the same bytes.

    with saved_in(state, setup, info) as saved:
        weights = saved.array("weights", np.zeros(count))  # as the file has it; without a file the default
        drawn = saved.generator("drawn", torch.Generator().manual_seed(seed))
        for step in range(saved.number("step", 0), steps):
            ...  # one step
            saved.keep({"weights": weights, "drawn": drawn}, step=step + 1)

`keep` copies what it is given, which costs little, and writes it every few seconds. Whatever ends the block,
an error or Ctrl-C in the middle of a step too, what was kept last is in the file then. So call it where a
step is whole, with all that the next step stands on, the generators of random numbers among it.

The file holds the arrays, bit by bit (safetensors), and as JSON the numbers and what search this is: `info`,
which is the result's provenance with all options and digests of the data, with digests of the graph's parts
and of given replacements. The state of any other search is an error that names what differs; of a metric or
an ablation of a user's own the name alone is known. The versions of packages may differ: a search goes on
after an upgrade, and its result names those that finished it. Of several processes the first one reads and
writes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch

from circuitdiscovery.engine import distributed
from circuitdiscovery.engine.setup import Setup
from circuitdiscovery.errors import CircuitDiscoveryError, ResumeError
from circuitdiscovery.files.disk import read_arrays, write_atomically

FORMAT = "circuitdiscovery state 1"
SAVE_SECONDS = 2.0  # a search that is killed loses at most so much,
_SEARCH = "search"  # what is said in errors
_SHARE = 20  # or so many times what writing a large state takes

_DATA = {  # what each digest is of, in words
    "examples": "the task's rows are others",
    "held_out": "the task's rows are others",
    "tokenizer": "the tokenizer is another",
    "parts": "the graph's parts are others",
    "given": "the given replacements are others",
}
_OR_NONE = {  # of these, no digest says that there are none: (now, then)
    "parts": (
        "the graph was split into parts then, and is not now",
        "the graph is split into parts now, and was not then",
    ),
    "given": (
        "replacements were given then, and are not now",
        "replacements are given now, and were not then",
    ),
}

Number = TypeVar("Number", int, float, str)
Array = np.ndarray | torch.Tensor | torch.Generator
_Content = tuple[dict[str, np.ndarray], dict[str, Any]]


class State:
    """What a search has kept, and what it began with; made by `saved_in` or `kept_in`."""

    def __init__(
        self, path: Path | None, search: Mapping[str, Any], found: _Content | None, what: str = _SEARCH
    ) -> None:
        self.path = path
        self._what = what
        self.found = found is not None
        self._search = search
        self._arrays, self._values = found or ({}, {})
        self._kept: _Content | None = None  # since it was last written
        self._due = time.monotonic() + SAVE_SECONDS

    def array(self, name: str, default: np.ndarray) -> np.ndarray:
        """A copy of an array as it was kept, or of the default where the search is a fresh one.

        Raises:
            CircuitDiscoveryError: the file has none of that name, or of another shape or type.
        """
        if not self.found:
            return default.copy()
        kept = self._arrays.get(name)
        if kept is None or kept.shape != default.shape or kept.dtype != default.dtype:
            raise self._broken(f"{name} should be {default.dtype} of shape {list(default.shape)}")
        return kept.copy()

    def tensor(self, name: str, default: torch.Tensor) -> torch.Tensor:
        """As `array`, where the default is."""
        return torch.from_numpy(self.array(name, default.detach().cpu().numpy())).to(default.device)

    def generator(self, name: str, default: torch.Generator) -> torch.Generator:
        """The default, set to where it was when it was kept."""
        try:
            default.set_state(self.tensor(name, default.get_state()))
        except RuntimeError as error:
            raise self._broken(f"{name}: {error}") from None
        return default

    def number(self, name: str, default: Number) -> Number:
        """A number (or text) as it was kept, or the default where the search is a fresh one."""
        if not self.found:
            return default
        kept: object = self._values.get(name)
        if type(kept) is not type(default):
            raise self._broken(f"{name} should be of type {type(default).__name__}")
        return cast(Number, kept)

    def keep(self, arrays: Mapping[str, Array], **numbers: int | float | str) -> None:
        """Take copies of everything that the rest of the search stands on;
        written now and then, and when the block ends.
        """
        if self.path is None or distributed.rank():
            return
        self._kept = {name: _copied(values) for name, values in arrays.items()}, dict(numbers)
        if time.monotonic() >= self._due:
            self.write()

    def write(self) -> None:
        """Write what was kept since the last time, now."""
        if self.path is None or self._kept is None:
            return
        from safetensors.numpy import save

        started = time.monotonic()
        arrays, numbers = self._kept
        header = {"format": FORMAT, "search": self._search, "numbers": numbers, "arrays": sorted(arrays)}
        write_atomically(self.path, save(arrays, {"circuitdiscovery": json.dumps(header)}))
        self._kept = None
        self._due = time.monotonic() + max(SAVE_SECONDS, _SHARE * (time.monotonic() - started))

    def _broken(self, what: str) -> ResumeError:
        return _no_state(self.path, self._what, what)


@contextmanager
def saved_in(path: str | Path | None, setup: Setup, info: Mapping[str, Any]) -> Iterator[State]:
    """A search's state while the block lasts, from the file where it exists; with None nothing is kept.

    Args:
        path: the file.
        setup: what is searched by.
        info: the provenance of what is searched for, with all options that change it.

    Raises:
        CircuitDiscoveryError: the file is the state of another search, or of none.
    """
    search = info if path is None else {**info, "data": {**info["data"], **setup.data}}
    with kept_in(path, search) as state:
        yield state


@contextmanager
def kept_in(path: str | Path | None, search: Mapping[str, Any], what: str = _SEARCH) -> Iterator[State]:
    """As `saved_in`, of any long work.

    Args:
        path: the file.
        search: which work it is: JSON, with all that changes what comes out.
        what: what errors call it.
    """
    file = None if path is None else Path(path)
    search = json.loads(json.dumps(search))
    state = State(file, search, distributed.from_first(lambda: _read(file, search, what)), what)
    try:
        yield state
    finally:
        state.write()


def adam_as_kept(adam: torch.optim.Adam, learnt: Mapping[str, torch.Tensor], saved: State) -> None:
    """Give an optimizer the moments that `adam_arrays` kept of what is learnt, by name."""
    for name, values in learnt.items() if saved.found else ():
        moments = {
            part: saved.tensor(f"{name} {part}", torch.zeros_like(values))
            for part in ("exp_avg", "exp_avg_sq")
        }
        adam.state[values] = {"step": saved.tensor(f"{name} step", torch.tensor(0.0)), **moments}


def adam_arrays(adam: torch.optim.Adam, learnt: Mapping[str, torch.Tensor]) -> dict[str, Array]:
    """What is learnt and an optimizer's moments of it, to be kept."""
    arrays: dict[str, Array] = dict(learnt)
    for name, values in learnt.items():
        arrays |= {f"{name} {part}": moment for part, moment in adam.state[values].items()}
    return arrays


def _copied(values: Array) -> np.ndarray:
    if isinstance(values, torch.Generator):
        return values.get_state().numpy()
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    return np.array(values, order="C")  # a copy


def _read(path: Path | None, search: Mapping[str, Any], what: str) -> _Content | None:
    """(arrays, numbers) of a file, None where there is none."""
    if path is None or not path.exists():
        return None
    try:
        header, arrays = read_arrays(path)
    except CircuitDiscoveryError as error:
        raise _no_state(path, what, error) from None
    if header.get("format") != FORMAT or header.get("arrays") != sorted(arrays):
        raise _no_state(path, what, f"{FORMAT!r} is expected")
    there, here = _identity(header.get("search")), _identity(search)
    if there != here:
        raise ResumeError(
            f"{path}: the state of another {what} ({_difference(there, here)}); remove it to begin anew"
        )
    return arrays, header.get("numbers", {})


def _no_state(path: Path | None, what: str, why: object) -> ResumeError:
    return ResumeError(f"{path}: not the state of a {what} ({why}); remove it to begin anew")


def _identity(search: Any) -> dict[str, Any]:
    """Which work it is, by whatever versions of packages."""
    known = search if isinstance(search, dict) else {}
    return {name: value for name, value in known.items() if name != "versions"}


def _difference(saved: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """What is not the same, down to the one option."""
    told: list[str] = []
    for key in dict.fromkeys([*ours, *saved]):
        there, here = saved.get(key), ours.get(key)
        if there == here:
            continue
        if isinstance(there, dict) and isinstance(here, dict):
            other = other_data(there, here) if key == "data" else None
            told.append(other or f"{key}: {_difference(there, here)}")
        else:
            told.append(f"{key} {there!r} there, {here!r} here")
    return ", ".join(told)


def other_data(there: Mapping[str, str], here: Mapping[str, str]) -> str | None:
    """In words, the first that is not of the same digest; None where all that both know is."""
    for name, words in _DATA.items():
        then, now = there.get(name), here.get(name)
        if then == now:
            continue
        if then is not None and now is not None:
            return f"{words} than then"
        if name in _OR_NONE:
            return _OR_NONE[name][then is None]
    return None
