"""What was measured so far, in a file, so that a measurement that was stopped goes on where it was.

The file says of which measurement it is, by a fingerprint of everything that the values
depend on. It is written atomically, at most
every few seconds, and whatever happens: after an exception or Ctrl-C it holds all that was
    measured until then. Values stand by example,
so that a circuit may be known on some of them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from circuitdiscovery.engine import distributed
from circuitdiscovery.errors import CircuitDiscoveryError, ResumeError
from circuitdiscovery.files.disk import read_arrays, write_atomically

FORMAT = "circuitdiscovery measured 1"
KEY_BYTES = 16
_PAUSE = 5.0  # seconds between two writes, and at least so many times as long as a write takes:
_PAUSE_RATIO = 20


@dataclass
class Saved:
    """The values of circuits on examples, by the name of a evaluator and the circuit's key."""

    path: Path | None
    fingerprint: str
    # [examples] known, [kinds, examples]
    _values: dict[tuple[str, bytes], tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    _due: float = field(default_factory=lambda: time.monotonic() + _PAUSE)

    def get(self, name: str, key: bytes, rows: np.ndarray) -> np.ndarray | None:
        """[kinds, rows]: what is known of a circuit on some examples; None where not all of them are."""
        known, values = self._values.get((name, key), (None, None))
        return values[:, rows] if known is not None and values is not None and known[rows].all() else None

    def put(self, name: str, key: bytes, rows: np.ndarray, values: np.ndarray, count: int) -> None:
        """Note [kinds, rows] values on some of `count` examples."""
        if (name, key) not in self._values:
            self._values[name, key] = np.zeros(count, dtype=bool), np.zeros((len(values), count))
        known, kept = self._values[name, key]
        known[rows], kept[:, rows] = True, values

    def write(self, now: bool = False) -> None:
        """Write the file if that is due, or now."""
        started = time.monotonic()
        if self.path is None or distributed.rank() or not (now or started >= self._due):
            return
        write_atomically(self.path, self._bytes())
        ended = time.monotonic()
        self._due = ended + max(_PAUSE, _PAUSE_RATIO * (ended - started))

    def _bytes(self) -> bytes:
        from safetensors.numpy import save

        names = sorted({name for name, _ in self._values})
        tensors: dict[str, np.ndarray] = {}
        for i, name in enumerate(names):
            found = {key: each for (owner, key), each in self._values.items() if owner == name}
            tensors[f"{i}.keys"] = (
                np.frombuffer(b"".join(found), dtype=np.uint8).reshape(-1, KEY_BYTES).copy()
            )
            tensors[f"{i}.known"] = np.stack([known for known, _ in found.values()])
            tensors[f"{i}.values"] = np.stack([values for _, values in found.values()])
        return save(
            tensors,
            {"circuitdiscovery": json.dumps({"format": FORMAT, "of": self.fingerprint, "names": names})},
        )


@contextmanager
def saved(path: Path | None, fingerprint: str) -> Iterator[Saved]:
    """What a file knows of a measurement, nothing where there is no
    file; written at the end, whatever that is.

    Of several processes the first one reads and writes it.

    Raises:
        CircuitDiscoveryError: a file of another measurement, or of something else.
    """
    found = Saved(path, fingerprint)
    if path is not None:
        found._values.update(distributed.from_first(lambda: _read(path, fingerprint)))
    try:
        yield found
    finally:
        found.write(now=True)


def _read(path: Path, fingerprint: str) -> dict[tuple[str, bytes], tuple[np.ndarray, np.ndarray]]:
    if not path.exists():
        return {}
    try:
        header, tensors = read_arrays(path)
    except CircuitDiscoveryError as error:
        raise ResumeError(f"{path} is no saved measurement ({error}); delete it to measure anew") from None
    if header.get("format") != FORMAT:
        raise ResumeError(
            f"{path} is no saved measurement ({FORMAT!r} is expected); delete it to measure anew"
        )
    if header.get("of") != fingerprint:
        raise ResumeError(
            f"{path} was saved by another measurement (other model, task, circuit or options); delete it "
            "to measure anew"
        )
    values = {}
    try:
        for i, name in enumerate(header["names"]):
            rows = zip(tensors[f"{i}.keys"], tensors[f"{i}.known"], tensors[f"{i}.values"], strict=True)
            values |= {(name, key.tobytes()): (known.copy(), kept.copy()) for key, known, kept in rows}
    except (KeyError, TypeError, ValueError) as error:
        raise ResumeError(f"{path} is a broken measurement ({error!r}); delete it to measure anew") from None
    return values


def digest(*parts: Any) -> str:
    """A digest of strings, numbers, tuples, bytes and arrays, the same for the same values."""
    found = sha256()
    for part in parts:
        data = (
            part.tobytes()
            if isinstance(part, np.ndarray)
            else part
            if isinstance(part, bytes)
            else repr(part).encode()
        )
        found.update(b"%d:" % len(data) + data)
    return found.hexdigest()
