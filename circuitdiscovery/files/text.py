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
