"""`activations`: what stands at a site on many prompts, in memory or in files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuitdiscovery.arguments import guarded
from circuitdiscovery.engine.setup import Progress
from circuitdiscovery.errors import CircuitDiscoveryError, shown
from circuitdiscovery.features.forward import forward, has_inner, site_of
from circuitdiscovery.features.places import Places, flat, meant, positions_of
from circuitdiscovery.features.prompts import Prompts, batches, prompts_of
from circuitdiscovery.files.disk import is_folder, read_json, write_atomically, write_json
from circuitdiscovery.model.model import Model

MANIFEST = "activations.json"
_FORMAT = "circuitdiscovery activations 1"
_SHARD = 2**16  # tokens of a file, about
_AT_ONCE = 2**14  # rows that are looked at together where all are
_ALIGNED = 64  # bytes: torch's own memory begins at multiples of them


@dataclass(frozen=True, eq=False, repr=False)
class Activations:
    """What stands at a site, a row per token (see `activations`).

    Args:
        site: where.
        prompts: token ids, a row per prompt.
        rows, positions: [n], of each row of values its prompt and its position there, from 0.
        parts: [n_i, d] each, together the values; of files they are read where they are needed.
        model: the digest of the model's weights.
        position: which of each prompt, as it was asked for: "all", a name or a number; None: not known.
        normed: whether a norm or a multiplication is known to follow the site's node, before and after which
            it writes two things.
    """

    site: str | None
    prompts: tuple[tuple[int, ...], ...]
    rows: Tensor
    positions: Tensor
    parts: tuple[Tensor, ...]
    model: str
    position: str | int | None = None
    normed: bool = False

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @property
    def d(self) -> int:
        """The width."""
        return self.parts[0].shape[1]

    @property
    def values(self) -> Tensor:
        """[n, d]; of files this reads all of it into memory."""
        return self.parts[0] if len(self.parts) == 1 else torch.cat(self.parts)

    @property
    def places(self) -> Places:
        """Where the rows are of."""
        return Places(self.prompts, self.rows, self.positions)

    @property
    def tokens(self) -> Tensor:
        """[n]: the token at each row's position."""
        return self.places.tokens

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.cumsum([0, *map(len, self.parts)])

    def take(self, which: Tensor) -> Tensor:
        """[m, d]: the values of some rows."""
        if len(self.parts) == 1:
            return self.parts[0][which]
        numbers = which.numpy()
        parts = np.searchsorted(self._starts, numbers, side="right") - 1
        out = torch.empty(len(which), self.d, dtype=self.parts[0].dtype)
        for part in np.unique(parts):
            here = np.flatnonzero(parts == part)
            out[torch.from_numpy(here)] = self.parts[part][
                torch.from_numpy(numbers[here] - self._starts[part])
            ]
        return out

    def chunks(self) -> Iterator[Tensor]:
        """All values in order, as many at a time in memory as in files."""
        for start in range(0, len(self), _AT_ONCE):
            yield self._between(start, min(start + _AT_ONCE, len(self)))

    def _between(self, start: int, stop: int) -> Tensor:
        """[stop - start, d], copied only where they are of several parts, or begin where the last digits of
        products may be others."""
        found = [
            part[max(start - first, 0) : stop - first]
            for part, first in zip(self.parts, self._starts.tolist(), strict=False)
            if start < first + len(part) and first < stop
        ]
        aligned = len(found) == 1 and found[0].data_ptr() % _ALIGNED == 0
        return found[0] if aligned else torch.cat(found)

    @cached_property
    def digest(self) -> str:
        """Of the values and where they are of."""
        found = sha256(repr((self.site, self.model, len(self), self.d)).encode())
        for chunk in self.chunks():
            found.update(chunk.contiguous().view(torch.uint8).numpy().tobytes())
        return found.hexdigest()[:16]

    def __repr__(self) -> str:
        return f"<Activations at {self.site}: {len(self):,} rows of {self.d}>"


def as_activations(values: Any, what: str) -> Activations:
    """What `activations` gives, or [n, d] values of the user's own.

    Raises:
        CircuitDiscoveryError: anything else; no row; a number that is not finite.
    """
    if isinstance(values, np.ndarray) and values.ndim == 2 and values.dtype.kind in "biuf":
        # a copy, where torch has no such view or no such numbers
        native = float if values.dtype.char == "g" else values.dtype.newbyteorder("=")
        values = torch.from_numpy(np.require(values, native, ["C", "W"]))
    if isinstance(values, Activations):
        found = values
    elif isinstance(values, Tensor) and values.ndim == 2:
        own = values if values.is_floating_point() else values.float()
        none = torch.zeros(len(own), dtype=torch.long)
        found = Activations(None, (), none, none, (own.detach().cpu(),), "")
    else:
        raise CircuitDiscoveryError(
            f"{what} must be what features.activations gives, or a matrix [rows, d], not {shown(values)}"
        )
    if not len(found):
        raise CircuitDiscoveryError(f"{what} has no row")
    if not all(bool(torch.isfinite(chunk).all()) for chunk in found.chunks()):
        raise CircuitDiscoveryError(f"{what} has numbers that are not finite")
    return found


@guarded
def activations(
    model: Model,
    task_or_texts: Any,
    at: str,
    *,
    position: Any = None,
    first: bool = False,
    batch_size: int | None = None,
    to: str | Path | None = None,
    progress: Progress | None = None,
) -> Activations:
    """Collect what stands at a site on many prompts.

    Args:
        model: a loaded model.
        task_or_texts: a task, whose clean prompts are meant, texts, or rows of token ids.
        at: the site, as for `run`, such as "m2", "resid0", "a1.h3" or "m2.neurons".
        position: where: "all"; a position's number, negative from the end; of a task one of its names, such
            as "S2". By default the answer's position of a task, and of texts every token.
        first: where all tokens are meant, the first one too. It is left out by default: most heads look at
            it for want of anything else, and its activations are unlike all others.
        batch_size: how many prompts are run at once; by default about eight thousand tokens.
        to: a folder in which the values are kept, in files of about 65 thousand tokens, instead of in
            memory. Files of the same work that are there are not made anew.
        progress: called with (prompts done, prompts in all).

    Returns:
        The activations: `.values` [rows, d], `.tokens`, `.positions`, in the order of the prompts.

    Raises:
        CircuitDiscoveryError: no such site or position, an unknown token, a text without tokens, a folder
            with other activations.

    >>> import circuitdiscovery as cd
    >>> texts = ["The keys on the table are small.", "There is a dog by the door."]
    >>> cd.features.activations(cd.load_model("toy"), texts, "m2")
    <Activations at m2: 14 rows of 128>
    """
    site = site_of(model, at)
    prompts = prompts_of(model, task_or_texts, "task_or_texts")
    position = meant(prompts, position)
    places = positions_of(prompts, position, first)

    @torch.no_grad()
    def collected(start: int, stop: int) -> Tensor:
        """[n, d], of some prompts."""
        found: list[Tensor] = [torch.empty(0)] * (stop - start)
        for some, tokens in batches(model, prompts.rows[start:stop], batch_size):
            values = site.of(forward(model, tokens, (site.place,))[site.place])
            values = values[..., None] if values.dim() == 2 else values
            for row, each in zip(some, values, strict=True):
                found[row] = each[places[start + row]].cpu()
        if progress is not None:
            progress(stop, len(prompts.rows))
        return torch.cat(found)

    rows, positions = flat(places)
    normed = has_inner(model, site.place)
    if to is None:
        parts = [collected(*ends) for ends in _ends(prompts, places, _SHARD)]
        whole = (torch.cat(parts),)
        return Activations(site.name, prompts.rows, rows, positions, whole, model.digest, position, normed)
    dtype = str(model.dtype).removeprefix("torch.")
    info = {"site": site.name, "model": model.digest, "dtype": dtype, "position": position}
    info |= {"normed": True} if normed else {}
    _to_folder(Path(to), info, prompts, places, collected)
    return load_activations(to)


def _ends(prompts: Prompts, places: Sequence[Sequence[int]], most: int) -> list[tuple[int, int]]:
    """(first, last + 1) prompt of each part: of about so many tokens."""
    found, start, tokens = list[tuple[int, int]](), 0, 0
    for row, prompt in enumerate(prompts.rows):
        tokens += len(prompt)
        if tokens >= most:
            found.append((start, row + 1))
            start, tokens = row + 1, 0
    return [*found, (start, len(prompts.rows))] if start < len(prompts.rows) else found


# ------------------------------------------------------------------- in files


def _to_folder(
    folder: Path,
    info: Mapping[str, Any],
    prompts: Prompts,
    places: Sequence[Sequence[int]],
    collected: Callable[[int, int], Tensor],
) -> None:
    """Files of values, each written whole, and last what says that all are there."""
    from safetensors.torch import save

    ends = _ends(prompts, places, _SHARD)
    digest = sha256(repr((prompts.rows, [list(some) for some in places], ends)).encode()).hexdigest()[:16]
    manifest = {"format": _FORMAT, **info, "prompts": digest, "files": len(ends)}
    began = folder / MANIFEST
    if is_folder(folder) and (known := sorted(folder.glob("*.safetensors"))):
        other = next((each for each in known if _header(each) != manifest), None)
        if other is not None:
            raise CircuitDiscoveryError(f"{other} is of other activations; give another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CircuitDiscoveryError(f"cannot write {folder}: {error.strerror or error}") from None
    header = {"circuitdiscovery": json.dumps(manifest)}
    for number, (start, stop) in enumerate(ends):
        path = folder / _name(number)
        if path.exists():
            continue
        some = prompts.rows[start:stop]
        tensors = {
            "values": collected(start, stop).contiguous(),
            "rows": torch.tensor([row for row in range(start, stop) for _ in places[row]]),
            "positions": torch.tensor([place for row in range(start, stop) for place in places[row]]),
            "tokens": torch.tensor([token for row in some for token in row]),
            "lengths": torch.tensor([len(row) for row in some]),
        }
        write_atomically(path, save(tensors, header))
    write_json(began, manifest)


def _name(number: int) -> str:
    return f"{number:05}.safetensors"


def _header(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return json.loads((file.metadata() or {}).get("circuitdiscovery", "null"))
    except (OSError, SafetensorError, ValueError) as error:
        raise CircuitDiscoveryError(f"cannot read {path}: {error}") from None


@guarded
def load_activations(folder: str | Path) -> Activations:
    """The activations in a folder that `activations(..., to=folder)` wrote, whole.

    Their values stay in the files until they are needed.

    Args:
        folder: with activations.json and the files that it names.

    Raises:
        CircuitDiscoveryError: a folder without them, or with files of other activations.

    >>> import circuitdiscovery as cd, tempfile
    >>> model, folder = cd.load_model("toy"), tempfile.mkdtemp()
    >>> made = cd.features.activations(model, ["The dog is old."], "m2", to=folder)
    >>> cd.features.load_activations(folder)
    <Activations at m2: 4 rows of 128>
    """
    from safetensors import SafetensorError, safe_open

    path = Path(folder)
    if not (path / MANIFEST).is_file():
        raise CircuitDiscoveryError(f"{path}: there are no whole activations: {MANIFEST} is missing")
    manifest = read_json(path / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise CircuitDiscoveryError(f"{path / MANIFEST}: not of activations ({_FORMAT!r} is expected)")
    columns: dict[str, list[Tensor]] = {}
    for number in range(manifest["files"]):
        file = path / _name(number)
        if _header(file) != manifest:
            raise CircuitDiscoveryError(f"{file} is of other activations than {MANIFEST} says")
        try:
            with safe_open(file, framework="pt") as opened:
                for name in ("values", "rows", "positions", "tokens", "lengths"):
                    columns.setdefault(name, []).append(opened.get_tensor(name))
        except (OSError, SafetensorError) as error:
            raise CircuitDiscoveryError(f"cannot read {file}: {error}") from None
    rest = {name: torch.cat(each) for name, each in columns.items() if name != "values"}
    prompts = tuple(tuple(row.tolist()) for row in rest["tokens"].split(rest["lengths"].tolist()))
    return Activations(
        manifest["site"],
        prompts,
        rest["rows"],
        rest["positions"],
        tuple(columns["values"]),
        manifest["model"],
        manifest.get("position"),
        manifest.get("normed", False),
    )
