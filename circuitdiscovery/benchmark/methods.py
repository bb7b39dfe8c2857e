"""Methods as the benchmark runs them: what gives one circuit is run at several thresholds or sizes; what
ranks all edges unless it is told how many are wanted (matryoshka) runs once.

A method is a function (model, task) -> Scores, one Circuit, or a sequence of circuits. One that searches for
a given number of edges has a third argument `sizes`, and gives a circuit for each. Your own is named
`module:function`, where the module is importable or a file in the working directory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from inspect import Parameter, signature
from typing import Any

from circuitdiscovery.circuit.circuit import Circuit
from circuitdiscovery.circuit.scores import Scores
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.model.model import Model
from circuitdiscovery.registry import BENCHMARK_ONLY, METHODS, Method, canonical
from circuitdiscovery.task.task import Task

Found = Scores | Circuit | Sequence[Circuit]
Run = Callable[..., Found]
# nats of KL, 3.2 to 1e-4: from almost nothing to almost everything
THRESHOLDS = tuple(10 ** (-power / 2) for power in range(-1, 9))


def at_thresholds(search: Callable[..., Circuit], model: Model, task: Task) -> list[Circuit]:
    """A search at every threshold, as ACDC's paper draws a ROC curve (Conmy et al. 2023, section 4)."""
    return [search(model, task, threshold=threshold) for threshold in THRESHOLDS]


def at_sizes(search: Callable[..., Scores], model: Model, task: Task, sizes: Sequence[int]) -> list[Circuit]:
    """A search for every size; each is a search of its own."""
    return [search(model, task, edges=n).top(n) for n in sizes]


def resolve(name: str) -> tuple[str, Run]:
    """(what tables call it, the function) of a method by its name or `module:function`.

    Raises:
        CircuitDiscoveryError: an unknown name; a module that cannot be imported or has no such function.
    """
    if ":" in name:
        return name, Method(name).load("sizes")
    try:
        known = canonical("benchmark method", name)
    except CircuitDiscoveryError as error:
        raise CircuitDiscoveryError(f"{error}; or your own as module:function") from None
    other_direction = known in BENCHMARK_ONLY
    method = METHODS[known.removesuffix("_denoising") if other_direction else known]
    search: Any = method.load("sizes")
    if other_direction:
        search = partial(search, direction="denoising")
    if method.sizes == "threshold":
        return known, partial(at_thresholds, search)
    told = method.sizes == "edges" and signature(search).parameters["edges"].default is Parameter.empty
    return known, partial(at_sizes, search) if told else search
