"""From a transformer and a task to a measured, drawn circuit.

>>> import circuitdiscovery as cd
>>> "acdc" in cd.__all__
True

This page is the table of contents. Each name is imported when it is first used (PEP
562), because `import torch` takes seconds.
"""

from __future__ import annotations

from importlib import import_module as _import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from circuitdiscovery.circuit.circuit import Circuit
    from circuitdiscovery.circuit.comparison import Comparison, compare
    from circuitdiscovery.circuit.load import load_circuit
    from circuitdiscovery.circuit.scores import Scores
    from circuitdiscovery.engine.ablation import Replacements, replacements
    from circuitdiscovery.engine.metrics import Metric
    from circuitdiscovery.engine.patching import run_circuit
    from circuitdiscovery.errors import CircuitDiscoveryError
    from circuitdiscovery.explanation.cards import Card, Explanation
    from circuitdiscovery.explanation.explain import explain
    from circuitdiscovery.explanation.scrubbing.hypothesis import Hypothesis, load_hypothesis
    from circuitdiscovery.explanation.scrubbing.result import Scrubbing
    from circuitdiscovery.explanation.scrubbing.scrub import scrub
    from circuitdiscovery.graph.graph import Graph
    from circuitdiscovery.measure.curve import Curve, curve
    from circuitdiscovery.measure.evaluation import Evaluation, evaluate
    from circuitdiscovery.measure.hypothesis_tests import HypothesisTests, hypothesis_tests
    from circuitdiscovery.measure.stability import Stability, stability
    from circuitdiscovery.model.load import load_model
    from circuitdiscovery.model.model import Model
    from circuitdiscovery.reporting.page import report
    from circuitdiscovery.search.acdc import acdc
    from circuitdiscovery.search.attribution import clean_corrupted, eap, eap_ig
    from circuitdiscovery.search.baseline import random
    from circuitdiscovery.search.edge_pruning import edge_pruning
    from circuitdiscovery.search.exact import exact
    from circuitdiscovery.search.hybrid import hybrid
    from circuitdiscovery.search.matryoshka import matryoshka
    from circuitdiscovery.search.path_patching import PathEffects, path_patching, trace_back
    from circuitdiscovery.task.example import Example
    from circuitdiscovery.task.load import load_task
    from circuitdiscovery.task.read import shipped_tasks
    from circuitdiscovery.task.task import Task

__all__ = [
    "Card",
    "Circuit",
    "CircuitDiscoveryError",
    "Comparison",
    "Curve",
    "Evaluation",
    "Example",
    "Explanation",
    "Graph",
    "Hypothesis",
    "HypothesisTests",
    "Metric",
    "Model",
    "PathEffects",
    "Replacements",
    "Scores",
    "Scrubbing",
    "Stability",
    "Task",
    "__version__",
    "acdc",
    "clean_corrupted",
    "compare",
    "curve",
    "eap",
    "eap_ig",
    "edge_pruning",
    "evaluate",
    "exact",
    "explain",
    "hybrid",
    "hypothesis_tests",
    "load_circuit",
    "load_hypothesis",
    "load_model",
    "load_task",
    "matryoshka",
    "path_patching",
    "random",
    "replacements",
    "report",
    "run_circuit",
    "scrub",
    "shipped_tasks",
    "stability",
    "trace_back",
]

_HOME = {
    "engine.ablation": ("Replacements", "replacements"),
    "explanation.cards": ("Card", "Explanation"),
    "circuit.circuit": ("Circuit",),
    "circuit.load": ("load_circuit",),
    "circuit.scores": ("Scores",),
    "circuit.comparison": ("Comparison", "compare"),
    "task.example": ("Example",),
    "errors": ("CircuitDiscoveryError",),
    "measure.curve": ("Curve", "curve"),
    "measure.evaluation": ("Evaluation", "evaluate"),
    "explanation.explain": ("explain",),
    "graph.graph": ("Graph",),
    "measure.hypothesis_tests": ("HypothesisTests", "hypothesis_tests"),
    "model.load": ("load_model",),
    "engine.metrics": ("Metric",),
    "model.model": ("Model",),
    "engine.patching": ("run_circuit",),
    "reporting.page": ("report",),
    "measure.stability": ("Stability", "stability"),
    "explanation.scrubbing.result": ("Scrubbing",),
    "explanation.scrubbing.scrub": ("scrub",),
    "explanation.scrubbing.hypothesis": ("Hypothesis", "load_hypothesis"),
    "search.acdc": ("acdc",),
    "search.attribution": ("clean_corrupted", "eap", "eap_ig"),
    "search.baseline": ("random",),
    "search.edge_pruning": ("edge_pruning",),
    "search.exact": ("exact",),
    "search.hybrid": ("hybrid",),
    "search.matryoshka": ("matryoshka",),
    "search.path_patching": ("PathEffects", "path_patching", "trace_back"),
    "task.task": ("Task",),
    "task.load": ("load_task",),
    "task.read": ("shipped_tasks",),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(_no_attribute(name))
    value = getattr(_import_module(f"{__name__}.{_MODULE[name]}"), name)
    globals()[name] = value
    return value


def _no_attribute(name: str) -> str:
    from circuitdiscovery.errors import nearest

    told = f"module {__name__!r} has no attribute {name!r}"
    if name == "discover":
        return (
            f"{told}; `discover` is a command; in Python a search is one of acdc, eap, eap_ig, exact, "
            "hybrid, edge_pruning, ..."
        )
    near = [] if name.startswith("_") else nearest(name, __all__)
    return f"{told}; did you mean {near[0]!r}?" if near else told


def __dir__() -> list[str]:
    return __all__
