"""What a model remembers of where it was loaded from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import ref


@dataclass(frozen=True)
class Source:
    """A folder or a file, or else an object, which is not kept alive; a copy that was pickled has no object.

    Args:
        path: of the folder or the file.
        reference: to the object.
    """

    path: Path | None = None
    reference: ref[Any] | None = None

    @property
    def object(self) -> Any:
        """The object; None where it is gone, or there was none."""
        return None if self.reference is None else self.reference()

    def __reduce__(self) -> tuple[Any, ...]:
        return Source, (self.path,)

    def __deepcopy__(self, _: Any) -> Source:
        return self
