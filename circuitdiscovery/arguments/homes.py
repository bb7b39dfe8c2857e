"""Our classes and functions by name, imported when one is needed: what arguments are made of."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

HOMES = {  # of what arguments are made of, imported when one is made
    "Circuit": "circuit.circuit",
    "Explanation": "explanation.cards",
    "Graph": "graph.graph",
    "Hypothesis": "explanation.scrubbing.hypothesis",
    "Model": "model.model",
    "Scores": "circuit.scores",
    "Task": "task.task",
    "load_circuit": "circuit.load",
    "load_hypothesis": "explanation.scrubbing.hypothesis",
    "load_model": "model.load",
    "load_task": "task.load",
    "stage": "reporting.progress",
}


def named(name: str) -> Any:
    """One of our classes and functions."""
    return getattr(import_module(f"circuitdiscovery.{HOMES[name]}"), name)


def is_a(value: Any, kind: str) -> bool:
    """Whether a value is of one of our classes; a module that was not imported has no values."""
    module = sys.modules.get(f"circuitdiscovery.{HOMES[kind]}")
    return module is not None and isinstance(value, getattr(module, kind))
