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

from circuitdiscovery.public import PUBLIC as _PUBLIC
from circuitdiscovery.registry import METHODS as _METHODS

__version__ = "0.1.0"
__all__ = sorted([*_PUBLIC, "__version__"])  # pyright: ignore[reportUnsupportedDunderAll]

_PACKAGES = ("features", "universality")  # with names of their own: cd.features.load_sae

if TYPE_CHECKING:
    import circuitdiscovery.features as features  # noqa: F401  # pyright: ignore[reportUnusedImport]
    import circuitdiscovery.universality as universality  # noqa: F401  # pyright: ignore[reportUnusedImport]
    from circuitdiscovery.circuit.circuit import Circuit as Circuit
    from circuitdiscovery.circuit.comparison import Comparison as Comparison
    from circuitdiscovery.circuit.comparison import compare as compare
    from circuitdiscovery.circuit.load import load_circuit as load_circuit
    from circuitdiscovery.circuit.scores import Scores as Scores
    from circuitdiscovery.engine.ablation import replacements as replacements
    from circuitdiscovery.engine.memory import memory_budget as memory_budget
    from circuitdiscovery.engine.metrics import Metric as Metric
    from circuitdiscovery.engine.replacements import Replacements as Replacements
    from circuitdiscovery.engine.run_circuit import run_circuit as run_circuit
    from circuitdiscovery.errors import CircuitDiscoveryError as CircuitDiscoveryError
    from circuitdiscovery.explanation.cards import Card as Card
    from circuitdiscovery.explanation.cards import Explanation as Explanation
    from circuitdiscovery.explanation.explain import explain as explain
    from circuitdiscovery.explanation.scrubbing.hypothesis import Hypothesis as Hypothesis
    from circuitdiscovery.explanation.scrubbing.hypothesis import load_hypothesis as load_hypothesis
    from circuitdiscovery.explanation.scrubbing.result import Scrubbing as Scrubbing
    from circuitdiscovery.explanation.scrubbing.scrub import scrub as scrub
    from circuitdiscovery.graph.graph import Graph as Graph
    from circuitdiscovery.measure.curve import Curve as Curve
    from circuitdiscovery.measure.curve import curve as curve
    from circuitdiscovery.measure.evaluation import Evaluation as Evaluation
    from circuitdiscovery.measure.evaluation import evaluate as evaluate
    from circuitdiscovery.measure.hypothesis_tests import HypothesisTests as HypothesisTests
    from circuitdiscovery.measure.hypothesis_tests import hypothesis_tests as hypothesis_tests
    from circuitdiscovery.measure.stability import Stability as Stability
    from circuitdiscovery.measure.stability import stability as stability
    from circuitdiscovery.model.load import load_model as load_model
    from circuitdiscovery.model.model import Model as Model
    from circuitdiscovery.reporting.page import report as report
    from circuitdiscovery.search.acdc import acdc as acdc
    from circuitdiscovery.search.attribution import clean_corrupted as clean_corrupted
    from circuitdiscovery.search.attribution import eap as eap
    from circuitdiscovery.search.attribution import eap_ig as eap_ig
    from circuitdiscovery.search.cost import Plan as Plan
    from circuitdiscovery.search.cost import plan as plan
    from circuitdiscovery.search.edge_pruning import edge_pruning as edge_pruning
    from circuitdiscovery.search.exact import exact as exact
    from circuitdiscovery.search.hybrid import hybrid as hybrid
    from circuitdiscovery.search.matryoshka import matryoshka as matryoshka
    from circuitdiscovery.search.neurons import Neurons as Neurons
    from circuitdiscovery.search.neurons import neurons as neurons
    from circuitdiscovery.search.path_patching import PathEffects as PathEffects
    from circuitdiscovery.search.path_patching import path_patching as path_patching
    from circuitdiscovery.search.random_scores import random as random
    from circuitdiscovery.search.split import split as split
    from circuitdiscovery.search.trace_back import trace_back as trace_back
    from circuitdiscovery.task.example import Example as Example
    from circuitdiscovery.task.load import load_task as load_task
    from circuitdiscovery.task.read import shipped_tasks as shipped_tasks
    from circuitdiscovery.task.task import Task as Task


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return _import_module(f"{__name__}.{name}")
    if name not in _PUBLIC:
        raise AttributeError(_no_attribute(name))
    value = getattr(_import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def _no_attribute(name: str) -> str:
    from circuitdiscovery.errors import nearest

    told = f"module {__name__!r} has no attribute {name!r}"
    if name == "discover":
        return f"{told}; `discover` is a command; in Python a search is one of {', '.join(_METHODS)}"
    near = [] if name.startswith("_") else nearest(name, __all__)
    return f"{told}; did you mean {near[0]!r}?" if near else told


def __dir__() -> list[str]:
    return __all__
