"""What is compared across models: neurons, attention heads and features of dictionaries, and their values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from circuitdiscovery.engine.setup import Progress
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.features.dictionary import Dictionary
from circuitdiscovery.features.forward import NEURONS, PATTERN, Site, forward, site_of
from circuitdiscovery.features.prompts import TOKENS
from circuitdiscovery.features.standing import places_of_dictionary
from circuitdiscovery.features.units import check_width, width_of
from circuitdiscovery.graph.nodes import head_name, mlp_name, part_name
from circuitdiscovery.model.model import Model
from circuitdiscovery.universality.aligning import Batch, Shared, batches
from circuitdiscovery.universality.correlating import Values

_ROWS = 1024  # places whose values are computed and summed together, at most
# of the memory that may be held: for sums, values, and what a run reads
_SUMS, _VALUES, _READ = 0.5, 0.1, 0.2
# (token or pair of tokens of the one model, that of the other, weight), [m] each
Places = tuple[Tensor, Tensor, Tensor]


class Units(Protocol):
    """All units of a kind of one model, layer by layer."""

    @property
    def model(self) -> Model:
        """Whose they are."""
        ...

    @property
    def kind(self) -> str:
        """What they are called, in the plural."""
        ...

    @property
    def sizes(self) -> list[int]:
        """How many each layer has."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """Of all."""
        ...

    @property
    def width(self) -> int:
        """How many numbers a run reads of one token, of all layers."""
        ...

    def read(self, tokens: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """[places, width] of each layer, of [N, T] tokens."""
        ...

    def values(self, read: Tensor) -> Tensor:
        """[m, units of the layer], of m places of what was read."""
        ...

    def places(self, batch: Batch) -> Places:
        """Which places stand for the same text."""
        ...


@dataclass(frozen=True)
class Neurons:
    """A model's neurons."""

    model: Model
    kind = "neurons"

    def __post_init__(self) -> None:
        for layer in range(self.model.n_layers):
            site_of(self.model, NEURONS.format(layer))  # where there are any

    @property
    def sizes(self) -> list[int]:
        """See `Units`."""
        return [block.d_mlp for block in self.model.blocks]

    @property
    def names(self) -> tuple[str, ...]:
        """See `Units`."""
        return tuple(
            part_name(mlp_name(layer), f"n{i}") for layer, size in enumerate(self.sizes) for i in range(size)
        )

    @property
    def width(self) -> int:
        """See `Units`."""
        return sum(self.sizes)

    def read(self, tokens: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """See `Units`."""
        places = [NEURONS.format(layer) for layer in layers]
        found = forward(self.model, tokens.to(self.model.device), places)
        return [found[place].flatten(0, 1) for place in places]

    def values(self, read: Tensor) -> Tensor:
        """See `Units`."""
        return _wide(read)

    def places(self, batch: Batch) -> Places:
        """See `Units`."""
        return batch.at, batch.there, batch.weights


@dataclass(frozen=True)
class Heads:
    """A model's attention heads; a place is a pair of a token and one before it, or itself."""

    model: Model
    kind = "heads"

    @property
    def sizes(self) -> list[int]:
        """See `Units`."""
        return [self.model.n_heads] * self.model.n_layers

    @property
    def names(self) -> tuple[str, ...]:
        """See `Units`."""
        return tuple(
            head_name(layer, i) for layer in range(self.model.n_layers) for i in range(self.model.n_heads)
        )

    @property
    def width(self) -> int:
        """See `Units`; of texts of a hundred tokens."""
        return 100 * sum(self.sizes)

    def read(self, tokens: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """See `Units`."""
        places = [PATTERN.format(layer) for layer in layers]
        found = forward(self.model, tokens.to(self.model.device), places)
        query, key = _pairs(tokens.shape[1])
        return [found[place][:, :, query, key].flatten(1).T for place in places]

    def values(self, read: Tensor) -> Tensor:
        """See `Units`."""
        return _wide(read)

    def places(self, batch: Batch) -> Places:
        """See `Units`; each pair counts once."""
        if not batch.same:
            raise CircuitDiscoveryError("attention is compared between models that make the same tokens")
        query, _ = _pairs(batch.tokens.shape[1])
        every = torch.arange(len(batch.tokens) * len(query), device=batch.at.device)
        return every, every, torch.ones(len(every), device=batch.at.device)


@dataclass(frozen=True)
class Features:
    """The features of a dictionary that stands at a site of a model."""

    model: Model
    dictionary: Dictionary
    kind = "features"

    def __post_init__(self) -> None:
        _, written = self._places
        check_width(self.model, "what the dictionary writes", written, self.dictionary.d_out)

    @property
    def _places(self) -> tuple[str, str]:
        """(what it reads, what it writes), places of the forward."""
        if self.dictionary.site is None:
            raise CircuitDiscoveryError("the dictionary does not say where in a model it stands")
        read, written = places_of_dictionary(self.dictionary, self.model)
        return read or written, written

    @property
    def written(self) -> Site:
        """Where it writes."""
        _, place = self._places
        return Site(place, place)

    @property
    def sizes(self) -> list[int]:
        """See `Units`: all are one layer."""
        return [self.dictionary.width]

    @property
    def names(self) -> tuple[str, ...]:
        """See `Units`."""
        return tuple(f"{self.dictionary.site}/f{i}" for i in range(self.dictionary.width))

    @property
    def width(self) -> int:
        """See `Units`."""
        return width_of(self.model, self._places[0])

    def read(self, tokens: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """See `Units`."""
        place, _ = self._places
        return [forward(self.model, tokens.to(self.model.device), [place])[place].flatten(0, 1)]

    def values(self, read: Tensor) -> Tensor:
        """See `Units`."""
        return self.dictionary.to(read.device).encode(read)

    def places(self, batch: Batch) -> Places:
        """See `Units`."""
        return batch.at, batch.there, batch.weights


def _pairs(length: int) -> tuple[Tensor, Tensor]:
    """(queries, keys): all from the second token on."""
    query, key = torch.tril_indices(length - 1, length - 1)
    return query + 1, key + 1


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


@dataclass(frozen=True)
class Reading:
    """The values of units of two models over the same text.

    Args:
        own, theirs: units of the one model, and of the other.
        both: what both read of each text.
        batch_size: texts in one forward; None: as memory has room for, up to about eight thousand tokens.
        memory: bytes that may be held.
        progress: called with (texts run, texts in all) of each pass.
    """

    own: Units
    theirs: Units
    both: Sequence[Shared]
    batch_size: int | None
    memory: float
    progress: Progress | None

    @property
    def room(self) -> float:
        """Bytes for the sums."""
        return _SUMS * self.memory

    @property
    def rows(self) -> int:
        """How many places are computed and summed together."""
        one = 4.0 * (sum(self.own.sizes) + sum(self.theirs.sizes))
        return int(max(1.0, min(_ROWS, _VALUES * self.memory / one)))

    def values(self, start: int, stop: int) -> Iterator[Values]:
        """Those of all texts, of the one model's units from one number up to another."""
        parts, first, done, device = list[tuple[int, slice]](), 0, 0, self.own.model.device
        for layer, size in enumerate(self.own.sizes):
            part = slice(max(0, start - first), min(size, stop - first))
            if part.start < part.stop:
                parts.append((layer, part))
            first += size
        tokens = int(
            max(1.0, min(TOKENS, _READ * self.memory / (4.0 * (self.own.width + self.theirs.width))))
        )
        for batch in batches(self.both, self.batch_size, self.own.model.device, tokens):
            own = self.own.read(batch.tokens, [layer for layer, _ in parts])
            theirs = self.theirs.read(batch.others, range(len(self.theirs.sizes)))
            where = zip(*(each.split(self.rows) for each in self.own.places(batch)), strict=True)
            for at, there, weights in where:
                mine = [
                    self.own.values(each[at.to(each.device)])[:, part].to(device)
                    for each, (_, part) in zip(own, parts, strict=True)
                ]
                other = [self.theirs.values(each[there.to(each.device)]).to(device) for each in theirs]
                yield weights.to(mine[0]), mine, other
            done += len(batch.tokens)
            if self.progress is not None:
                self.progress(done, len(self.both))
