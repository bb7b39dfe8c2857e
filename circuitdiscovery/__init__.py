"""From a transformer and a task to a measured, drawn circuit.

>>> import circuitdiscovery as cd
>>> "acdc" in cd.__all__
True

This page is the table of contents. Each name is imported when it is first used (PEP 562), because `import torch` takes seconds.
"""

from __future__ import annotations

from importlib import import_module as _import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from circuitdiscovery.ablation import Replacements, replacements
    from circuitdiscovery.circuit import Circuit, Scores, load_circuit
    from circuitdiscovery.comparison import Comparison, compare
    from circuitdiscovery.encoder import Example
    from circuitdiscovery.errors import CircuitDiscoveryError
    from circuitdiscovery.evaluation import Curve, Evaluation, curve, evaluate
    from circuitdiscovery.graph import Graph
    from circuitdiscovery.hypothesis import HypothesisTests, hypothesis_tests
    from circuitdiscovery.loading import load_model
    from circuitdiscovery.metrics import Metric
    from circuitdiscovery.model import Model
    from circuitdiscovery.patching import run_circuit
    from circuitdiscovery.reruns import Stability, stability
    from circuitdiscovery.search.acdc import acdc
    from circuitdiscovery.search.attribution import clean_corrupted, eap, eap_ig
    from circuitdiscovery.search.baseline import random
    from circuitdiscovery.search.edge_pruning import edge_pruning
    from circuitdiscovery.search.exact import exact
    from circuitdiscovery.search.hybrid import hybrid
    from circuitdiscovery.task import Task, load_task
    from circuitdiscovery.taskfile import shipped_tasks

__all__ = [
    "Circuit",
    "CircuitDiscoveryError",
    "Comparison",
    "Curve",
    "Evaluation",
    "Example",
    "Graph",
    "HypothesisTests",
    "Metric",
    "Model",
    "Replacements",
    "Scores",
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
    "hybrid",
    "hypothesis_tests",
    "load_circuit",
    "load_model",
    "load_task",
    "random",
    "replacements",
    "run_circuit",
    "shipped_tasks",
    "stability",
]

_HOME = {
    "ablation": ("Replacements", "replacements"),
    "circuit": ("Circuit", "Scores", "load_circuit"),
    "comparison": ("Comparison", "compare"),
    "encoder": ("Example",),
    "errors": ("CircuitDiscoveryError",),
    "evaluation": ("Curve", "Evaluation", "curve", "evaluate"),
    "graph": ("Graph",),
    "hypothesis": ("HypothesisTests", "hypothesis_tests"),
    "loading": ("load_model",),
    "metrics": ("Metric",),
    "model": ("Model",),
    "patching": ("run_circuit",),
    "reruns": ("Stability", "stability"),
    "search.acdc": ("acdc",),
    "search.attribution": ("clean_corrupted", "eap", "eap_ig"),
    "search.baseline": ("random",),
    "search.edge_pruning": ("edge_pruning",),
    "search.exact": ("exact",),
    "search.hybrid": ("hybrid",),
    "task": ("Task", "load_task"),
    "taskfile": ("shipped_tasks",),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(_import_module(f"{__name__}.{_MODULE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
