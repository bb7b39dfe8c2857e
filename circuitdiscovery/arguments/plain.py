"""Arguments that are plain values: numbers, texts, paths, names, functions."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import wraps
from inspect import signature
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from circuitdiscovery.arguments.call import Call, refused
from circuitdiscovery.arguments.homes import is_a, named
from circuitdiscovery.errors import ArgumentError, shown
from circuitdiscovery.files.disk import can_be_a_path
from circuitdiscovery.registry import ABLATIONS, METRICS, canonical
from circuitdiscovery.registry.option import MOST

LEAST = {
    "batch_size": 1,
    "seed": 0,
    "order": 0,
    "prompts": 1,
    "draws": 1,
    "permutations": 1,
    "reference": 1,
    "renamed": 0,
}


def whole(call: Call, name: str, value: Any) -> int:
    """A whole number of any package, at least as large as its name requires."""
    least = LEAST.get(name)
    bound = "" if least is None else f" of at least {least}"
    bound += ", or None" if name == "order" else ""
    if not isinstance(value, Integral) or isinstance(value, bool):
        value = _scalar(value)
        if type(value) is not int:
            raise refused(call, name, f"a whole number{bound}", value)
    found = int(value)
    if least is not None and found < least:
        raise refused(call, name, f"a whole number{bound}", found)
    if abs(found) > MOST:
        raise ArgumentError(
            f"{call.function}: {name} must be a whole number of at most {MOST}, not a larger one"
        )
    return found


def number(call: Call, name: str, value: Any) -> float:
    """A finite number of any package, as a number of Python."""
    if not isinstance(value, Real) or isinstance(value, bool):
        value = _scalar(value)
    if isinstance(value, bool) or not isinstance(value, Real):
        raise refused(call, name, "a finite number", value)
    if isinstance(value, Integral) and abs(int(value)) > MOST:
        raise ArgumentError(f"{call.function}: {name} must be a finite number, not one of so many digits")
    if not math.isfinite(value):
        raise ArgumentError(f"{call.function}: {name} must be a finite number, not {float(value)}")
    return value if isinstance(value, int | float) and type(value) in (int, float) else float(value)


def switch(call: Call, name: str, value: Any) -> bool:
    """True or False."""
    if type(value).__name__ in ("bool", "bool_"):
        return bool(value)
    raise refused(call, name, "True or False", value)


def text(call: Call, name: str, value: Any) -> str:
    """A text; the function itself checks which texts are valid."""
    return str(value) if isinstance(value, str) else shown(value)


def _scalar(value: Any) -> Any:
    """The number in a tensor or an array without dimensions; anything else as it is."""
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value


def path(call: Call, name: str, value: Any) -> Any:
    """A path, with ~ expanded."""
    if name.startswith("name_or") and is_a(value, "Model"):
        raise ArgumentError(
            f"{call.function}: the name or the path comes first, not the Model: {call.function}('ioi', model)"
        )
    if not isinstance(value, str | os.PathLike) or isinstance(os.fspath(value), bytes):
        raise refused(call, name, "a name or a path" if name.startswith("name_or") else "a path", value)
    found = os.fspath(value)
    if not found or not can_be_a_path(found):
        raise ArgumentError(f"{call.function}: {name} must be a path, not {shown(found)}")
    if found.startswith("~"):
        return Path(found).expanduser()
    return value


def file(call: Call, name: str, value: Any) -> Path:
    """A path, as a Path."""
    return Path(path(call, name, value))


def fractions(call: Call, name: str, value: Any) -> Any:
    """A list of numbers."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if not several(value):
        raise refused(call, name, "a list of numbers", value)
    return [number(call, f"{name}[{i}]", each) for i, each in enumerate(value)]


def rows(call: Call, name: str, value: Any) -> list[int]:
    """Numbers of rows, at least one; the function itself checks how many rows there are."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if not several(value):
        raise refused(call, name, "a list of whole numbers", value)
    found = [whole(call, f"{name}[{i}]", each) for i, each in enumerate(value)]
    if not found:
        raise refused(call, name, "a list of at least one whole number", value)
    return found


def several(value: Any) -> bool:
    """Whether a value is an iterable of others, and not a text, a mapping or a single number."""
    return (
        isinstance(value, Iterable)
        and not isinstance(value, str | bytes | Mapping)
        and getattr(value, "shape", None) != ()
    )


def names(call: Call, name: str, value: Any) -> list[str]:
    """Names of nodes: one or several."""
    if isinstance(value, str):
        return [value]
    if not several(value):
        raise refused(call, name, "a list of names such as 'a0.h1' and 'm0'", value)
    found = list(value)
    for each in found:
        if not isinstance(each, str):
            raise refused(call, name, "a list of names such as 'a0.h1' (a{layer}.h{head}) and 'm0'", each)
    return found


def roles(call: Call, name: str, value: Any) -> Mapping[str, Any]:
    """Roles with their nodes, or an object with roles: a circuit, an explanation."""
    value = getattr(value, "roles", value)
    if not isinstance(value, Mapping):
        raise refused(
            call, name, "a mapping from roles to lists of nodes, such as {'name mover': ['a2.h0']}", value
        )
    return {str(role): names(call, f"{name}[{role!r}]", nodes) for role, nodes in value.items()}


def by_node(call: Call, name: str, value: Any) -> Mapping[str, Any]:
    """Something for each of some nodes."""
    if not isinstance(value, Mapping):
        raise refused(call, name, "a mapping from nodes, such as {'m2': ...}", value)
    return dict(value)


def ablation(call: Call, name: str, value: Any) -> Any:
    """The name of an ablation, or an object with `rows`."""
    if isinstance(value, str):
        return canonical("ablation", value)
    if isinstance(value, type) or not hasattr(value, "rows"):
        raise refused(
            call,
            name,
            f"one of {', '.join(ABLATIONS)}, or an object with `rows`, such as cd.replacements gives",
            value,
        )
    return value


def metric(call: Call, name: str, value: Any) -> Any:
    """The name of a metric, a `Metric`, or a function of (logits, task) or of the logits."""
    if value is None:
        return None
    if isinstance(value, str):
        return canonical("metric", value)
    function = getattr(value, "function", value)
    if isinstance(value, type) or not callable(function):
        raise refused(
            call,
            name,
            f"one of {', '.join(METRICS)}, or a function of (logits, task) -> [examples]",
            value,
        )
    try:
        known = signature(function)
    except (TypeError, ValueError):  # a function that is not written in Python
        return value
    if _takes(known, 2):
        return value
    if not _takes(known, 1):
        raise ArgumentError(
            f"{call.function}: {name} must be a function of (logits, task) -> [examples], not of {known}"
        )

    @wraps(function)
    def of_both(logits: Any, task: Any) -> Any:
        return function(logits)

    return of_both if function is value else replace(value, function=of_both)


def _takes(known: Any, count: int) -> bool:
    try:
        known.bind(*[None] * count)
    except TypeError:
        return False
    return True


def progress(call: Call, name: str, value: Any) -> Any:
    """A function of (done, total), or True for a bar while the function runs."""
    if value is None or value is False:
        return None
    if value is True:
        return call.stack.enter_context(named("stage")(call.function))
    if not callable(value) or isinstance(value, type):
        raise refused(call, name, "True for a bar, or a function of (done, total)", value)
    return value


def search(call: Call, name: str, value: Any) -> Any:
    """A search: a function of (model, task) that returns a circuit."""
    if not callable(value) or isinstance(value, type):
        valid = (
            "a function of (model, task) that returns a Circuit, such as lambda model, task: "
            "cd.eap(model, task).top(100)"
        )
        raise refused(call, name, valid, value)
    return value
