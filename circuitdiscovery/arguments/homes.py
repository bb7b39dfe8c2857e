"""The classes and functions of this package that arguments are converted with, imported when needed."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

HOMES = {  # name -> module
    "Circuit": "circuit.circuit",
    "Explanation": "explanation.cards",
    "Graph": "graph.graph",
    "Hypothesis": "explanation.scrubbing.hypothesis",
    "Model": "model.model",
    "Scores": "circuit.scores",
    "Task": "task.task",
    "load_circuit": "circuit.circuit",
    "load_hypothesis": "explanation.scrubbing.hypothesis",
    "load_model": "model.load",
    "load_task": "task.task",
    "stage": "reporting.progress",
}


def named(name: str) -> Any:
    """A class or function of this package."""
    return getattr(import_module(f"circuitdiscovery.{HOMES[name]}"), name)


def is_a(value: Any, kind: str) -> bool:
    """Whether a value is of a class of this package; the class is not imported for that."""
    module = sys.modules.get(f"circuitdiscovery.{HOMES[kind]}")
    return module is not None and isinstance(value, getattr(module, kind))
