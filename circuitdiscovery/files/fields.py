"""Checks of the fields of an object in a file: which must exist, of which types, and what is wrong."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection
from typing import Any

from circuitdiscovery.errors import CircuitDiscoveryError, unknown

MOST = 2**63 - 1  # the largest integer of numpy
_WORDS: dict[type, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "an object",
    list: "a list",
}


def typed(value: Any, kind: type, where: str, field: str) -> Any:
    """The value if it is of this kind, else an error that names the field.

    An integer is a number; a boolean is not.
    """
    kinds = (int, float) if kind is float else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool):
        raise CircuitDiscoveryError(
            f"{where}: field {field!r} must be {_WORDS[kind]}, not {shown_value(value)}"
        )
    if isinstance(value, int) and abs(value) > MOST:
        raise CircuitDiscoveryError(f"{where}: field {field!r} must be {_WORDS[kind]} of fewer digits")
    return value


def has_control_characters(text: str) -> bool:
    """Whether a text has characters, such as a line's end, that cannot stand in a name or in a picture."""
    return any(unicodedata.category(letter) in ("Cc", "Cs") for letter in text)


def exactly(
    data: Any, required: Collection[str], where: str, field: str = "", optional: Collection[str] = ()
) -> dict[str, Any]:
    """The object if it has all required fields and no others but the optional ones, else an error."""
    place = f"{where}: field {field!r}" if field else where
    if not isinstance(data, dict):
        raise CircuitDiscoveryError(f"{place} must be an object, not {shown_value(data)}")
    missing = [name for name in required if name not in data]
    if missing:
        raise CircuitDiscoveryError(f"{place} lacks {', '.join(map(repr, missing))}")
    for name in data:
        if name not in required and name not in optional:
            raise CircuitDiscoveryError(f"{place}: {unknown('field', name, [*required, *optional])}")
    return data


def shown_value(value: Any) -> str:
    """A value of a file for an error message, shortened if it is long."""
    if isinstance(value, int) and abs(value) >= 10**60:
        return "a number of so many digits"  # Python refuses to print thousands
    text = "null" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
