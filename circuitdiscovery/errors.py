"""The one exception family of the package, and the sentence every "no such name" is told in."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CircuitDiscoveryError(ValueError):
    """What was wrong, where, and what is valid. The command line prints it as one line and exits with 2."""


def unknown(kind: str, name: object, valid: Iterable[str], *, plural: str | None = None) -> CircuitDiscoveryError:
    """The error for a name that is not one of `valid`, with the nearest one.

    >>> str(unknown("task", "ioy", ["greater_than", "ioi"]))
    "no task 'ioy'; did you mean 'ioi'? Valid tasks: greater_than, ioi"
    """
    names = list(valid)
    near = nearest(str(name), names)[:1]
    hint = f"did you mean {near[0]!r}? " if near else ""
    listed = names if len(names) <= 30 else [*names[:12], "...", names[-1]]
    return CircuitDiscoveryError(f"no {kind} {name!r}; {hint}Valid {plural or kind + 's'}: {', '.join(listed)}")


def nearest(name: str, valid: Iterable[str]) -> list[str]:
    """Up to three of `valid` that look like the name, the nearest first."""
    return difflib.get_close_matches(name, list(valid), n=3, cutoff=0.5)


def one_line(error: BaseException, most: int = 300) -> str:
    """What an error of another package says, on one line and not too long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else f"{text[:most]}..."
