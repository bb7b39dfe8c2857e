"""The classes and functions of this package that arguments are converted with, imported when needed."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from circuitdiscovery.public import PUBLIC

HOMES = PUBLIC | {"stage": "reporting.progress"}  # name -> module


def named(name: str) -> Any:
    """A class or function of this package."""
    return getattr(import_module(f"circuitdiscovery.{HOMES[name]}"), name)


def is_a(value: Any, kind: str) -> bool:
    """Whether a value is of a class of this package; the class is not imported for that."""
    module = sys.modules.get(f"circuitdiscovery.{HOMES[kind]}")
    return module is not None and isinstance(value, getattr(module, kind))
