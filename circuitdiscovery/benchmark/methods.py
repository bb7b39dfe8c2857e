"""The methods that the benchmark knows by name, and how a user's own becomes one more.

A method is a function (model, task) -> Scores, one Circuit, or a sequence of circuits. One that searches for
a given number of edges has a third argument `sizes`, and gives a circuit for each. A new one is a line in
`METHODS`; one's own is named `module:function`, where the module is importable or a file in the working
directory.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from inspect import signature
from typing import Any, cast

from circuitdiscovery.circuit.circuit import Circuit
from circuitdiscovery.circuit.scores import Scores
from circuitdiscovery.errors import CircuitDiscoveryError, unknown
from circuitdiscovery.model.model import Model
from circuitdiscovery.search.acdc import acdc
from circuitdiscovery.search.attribution import clean_corrupted, eap, eap_ig
from circuitdiscovery.search.baseline import random
from circuitdiscovery.search.edge_pruning import edge_pruning
from circuitdiscovery.search.exact import exact
from circuitdiscovery.search.hybrid import hybrid
from circuitdiscovery.search.matryoshka import matryoshka
from circuitdiscovery.search.path_patching import trace_back
from circuitdiscovery.task.task import Task

Found = Scores | Circuit | Sequence[Circuit]
Method = Callable[..., Found]
# nats of KL, 3.2 to 1e-4: from almost nothing to almost everything
THRESHOLDS = tuple(10 ** (-power / 2) for power in range(-1, 9))


def acdc_sweep(model: Model, task: Task) -> list[Circuit]:
    """ACDC at every threshold, as its paper draws a ROC curve (Conmy et al. 2023, section 4)."""
    return [acdc(model, task, threshold=threshold) for threshold in THRESHOLDS]


def trace_back_sweep(model: Model, task: Task) -> list[Circuit]:
    """Path patching from the logits back, at the same thresholds."""
    return [trace_back(model, task, threshold=threshold) for threshold in THRESHOLDS]


def edge_pruning_sweep(model: Model, task: Task, sizes: Sequence[int]) -> list[Circuit]:
    """Edge pruning at every size; each is a search of its own."""
    return [edge_pruning(model, task, edges=n).top(n) for n in sizes]


def hybrid_sweep(model: Model, task: Task, sizes: Sequence[int]) -> list[Circuit]:
    """The hybrid at every size."""
    return [hybrid(model, task, edges=n).top(n) for n in sizes]


def matryoshka_sweep(model: Model, task: Task, sizes: Sequence[int]) -> list[Circuit]:
    """Matryoshka attribution, finished at every size."""
    return [matryoshka(model, task, edges=n).top(n) for n in sizes]


METHODS: dict[str, Method] = {
    "acdc": acdc_sweep,
    "eap": eap,
    "eap_denoising": lambda model, task: eap(model, task, direction="denoising"),
    "eap_ig": eap_ig,
    "clean_corrupted": clean_corrupted,
    "exact": exact,
    "exact_denoising": lambda model, task: exact(model, task, direction="denoising"),
    "edge_pruning": edge_pruning_sweep,
    "hybrid": hybrid_sweep,
    "matryoshka": matryoshka_sweep,
    "trace_back": trace_back_sweep,
    "random": random,
}


def resolve(name: str) -> tuple[str, Method]:
    """(what tables call it, the function) of a method by its name or `module:function`.

    Raises:
        CircuitDiscoveryError: an unknown name; a module that cannot be imported or has no such function.
    """
    if ":" not in name:
        known = name.replace("-", "_")
        if known not in METHODS:
            raise CircuitDiscoveryError(
                f"{unknown('method', name, METHODS)}; or one's own as module:function"
            )
        return known, METHODS[known]
    module, _, function = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = getattr(import_module(module), function)
    except Exception as error:  # whatever a module of one's own raises while it is imported
        kind = (
            ""
            if isinstance(error, ImportError | AttributeError | ValueError)
            else f"{type(error).__name__}: "
        )
        raise CircuitDiscoveryError(f"method {name!r}: {kind}{error}") from None
    if not callable(found):
        raise CircuitDiscoveryError(
            f"method {name!r} is a {type(found).__name__}, not a function (model, task)"
        )
    try:
        signature(found).bind(None, None)
    except ValueError:  # nothing is known of it
        pass
    except TypeError as error:
        raise CircuitDiscoveryError(f"method {name!r} is not a function of (model, task): {error}") from None
    return name, cast(Method, found)
