"""The one exception family of the package, and the sentence every "no such name" is told in."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CircuitDiscoveryError(ValueError):
    """What was wrong, where, and what is valid: one line. The command line prints it and exits with 2."""

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(str(message)))


class ArgumentError(CircuitDiscoveryError, TypeError):
    """A call with an argument of another kind than the function takes, too many of them, or too few."""


class PlaceError(CircuitDiscoveryError, IndexError):
    """An index at which there is nothing."""


class ResumeError(CircuitDiscoveryError):
    """What was kept is not of what is to go on with it: the same call is refused again until what the
    message names is done.
    """


def printable(text: str) -> str:
    """The text without line breaks; what cannot be printed (a file's own bytes, a
    name with control characters) as its escape.

    >>> print(printable("a" + chr(10) + "b" + chr(0)))
    a b\\x00
    """
    text = " ".join(text.splitlines())
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def shown(value: object, most: int = 60) -> str:
    """A value in a message: its repr, cut to a length; of what has no short one, its type.

    >>> shown("0.01"), shown(10**5000), shown(object())
    ("'0.01'", 'int', 'object')
    """
    if value is None or isinstance(value, bool | int | float | str | bytes):
        cut = value[: most + 1] if isinstance(value, str | bytes) else value
        try:
            text = repr(cut)
        except ValueError:  # an integer of thousands of digits
            return type(value).__name__
        return text if len(text) <= most else f"{text[: most - 3]}..."
    return getattr(value, "__name__", None) or type(value).__name__


def unknown(
    kind: str, name: object, valid: Iterable[str], *, plural: str | None = None
) -> CircuitDiscoveryError:
    """The error for a name that is not one of `valid`, with the nearest one.

    >>> str(unknown("task", "ioy", ["greater_than", "ioi"]))
    "no task 'ioy'; did you mean 'ioi'? Valid tasks: greater_than, ioi"
    """
    names = list(valid)
    near = nearest(str(name), names)[:1] if not isinstance(name, str) or len(name) <= 200 else []
    hint = f"did you mean {near[0]!r}? " if near else ""
    listed = names if len(names) <= 30 else [*names[:12], "...", names[-1]]
    return CircuitDiscoveryError(
        f"no {kind} {shown(name, 100)}; {hint}Valid {plural or kind + 's'}: {', '.join(listed)}"
    )


def nearest(name: str, valid: Iterable[str]) -> list[str]:
    """Up to three of `valid` that look like the name, the nearest first; one that
    differs in capitals alone is the nearest.
    """
    names = list(valid)
    same = [other for other in names if other.lower() == name.lower()]
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return [*same, *(other for other in close if other not in same)][:3]


def one_line(error: BaseException, most: int = 300) -> str:
    """What an error of another package says, on one line and not too long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else f"{text[:most]}..."
