"""What a model remembers of where it was loaded from, and whether it still is what it was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from circuitdiscovery.errors import CircuitDiscoveryError

_NUMBERS = 16  # of each weight that are compared


@dataclass(frozen=True, eq=False)
class Shared:
    """The weights that a model has in common with the object that it was loaded from, as they were.

    torch counts the changes that are made in place, but for those through `.data` and by fused optimizers.
    Of these a few numbers of each weight tell, which are compared.

    Args:
        name: the model's.
        numbers: some of each weight: views, whose count of changes is the weight's.
        versions: that count when it was loaded.
        known: by device, the bytes of the numbers when it was loaded.
    """

    name: str
    numbers: tuple[Tensor, ...]
    versions: tuple[int, ...]
    known: tuple[Tensor, ...]

    @classmethod
    def of(cls, name: str, model: Any, weights: Iterable[Tensor]) -> Shared:
        """Those of an object's weights that a model has too."""
        own = {_memory(each) for each in _tensors(model)}
        numbers = tuple(_some(each) for each in weights if _memory(each) in own)
        return cls(name, numbers, tuple(each._version for each in numbers), _by_device(numbers))

    def check(self) -> None:
        """Refuse a model whose weights have changed."""
        counted = all(each._version == count for each, count in zip(self.numbers, self.versions, strict=True))
        if not counted or not all(map(torch.equal, _by_device(self.numbers), self.known)):
            raise CircuitDiscoveryError(
                f"{self.name}: its weights were written to since it was loaded, in the object that it shares "
                "them with; load that again, and to keep a state, load a copy: load_model(copy.deepcopy(hf))"
            )


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in a model or in a part of one."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, nn.Module):
        yield from value.parameters()
    elif isinstance(value, tuple):
        for each in value:
            yield from _tensors(each)
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _some(weight: Tensor) -> Tensor:
    """A view of about 16 of its numbers, evenly spread in memory."""
    extent = 1 + sum((size - 1) * step for size, step in zip(weight.shape, weight.stride(), strict=True))
    step = max(1, extent // _NUMBERS)
    return weight.detach().as_strided((-(-extent // step),), (step,))


def _by_device(numbers: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """The bytes of some numbers, for each device in one tensor."""
    found: dict[torch.device, list[Tensor]] = {}
    for each in numbers:
        found.setdefault(each.device, []).append(each)
    return tuple(torch.cat(some).view(torch.uint8) for some in found.values())


def same_weights(one: Any, other: Any) -> bool:
    """Whether two models have equal weights, wherever they are; what they share is not compared."""
    ours, theirs = (list(_tensors(replace(model, source=None))) for model in (one, other))
    return len(ours) == len(theirs) and all(map(_equal, ours, theirs))


def _equal(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.dtype == other.dtype and torch.equal(one, other.to(one.device)))


@dataclass(frozen=True, eq=False)
class Source:
    """A folder or a file, or else an object, which is not kept alive; a copy that was pickled has no object.

    Args:
        path: of the folder or the file.
        reference: to the object.
        shared: the weights that the model has in common with the object; a copy of the model has its own.
    """

    path: Path | None = None
    reference: ref[Any] | None = None
    shared: Shared | None = None

    @property
    def object(self) -> Any:
        """The object; None where it is gone, or there was none."""
        return None if self.reference is None else self.reference()

    def check(self) -> None:
        """Refuse a model whose weights have changed."""
        if self.shared is not None:
            self.shared.check()

    def __reduce__(self) -> tuple[Any, ...]:
        self.check()
        return Source, (self.path,)

    def __deepcopy__(self, _: Any) -> Source:
        self.check()
        return replace(self, shared=None)
