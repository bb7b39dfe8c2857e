"""Numbers that a text says."""

from __future__ import annotations

import math
import re

from circuitdiscovery.errors import CircuitDiscoveryError


def finite(text: str) -> float:
    """The finite number that a text says."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise CircuitDiscoveryError(f"{text!r} is not a finite number")
    return value


def whole(text: str, least: int) -> int:
    """The whole number of at least so much that a text says."""
    if not re.fullmatch(r"[+-]?\d{1,18}", text) or int(text) < least:
        raise CircuitDiscoveryError(f"{text[:40]!r} is not a whole number of at least {least}")
    return int(text)


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def size(text: str) -> int:
    """The bytes that a text says: a number of at least 1, and a unit: kB, MB, GB, TB, or KiB, MiB, GiB, TiB.

    >>> size("8GB"), size("1.5 GiB"), size("1000")
    (8000000000, 1610612736, 1000)
    """
    match = re.fullmatch(r"(\d{1,18}(?:\.\d{1,9})?) ?([kmgt]?)(i?)b?", text.strip().lower())
    if match is None or (match[3] and not match[2]):
        raise CircuitDiscoveryError(f"{text[:40]!r} is not a size of memory such as 8GB, 500MB or 16GiB")
    power = {unit: i for i, unit in enumerate(_UNITS)}[match[2]]
    found = int(float(match[1]) * (1024**power if match[3] else _UNITS[match[2]]))
    if found < 1:
        raise CircuitDiscoveryError(f"{text[:40]!r} is less than one byte of memory")
    return found
