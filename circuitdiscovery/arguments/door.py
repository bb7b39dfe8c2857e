"""The checks around public functions: each argument is checked or converted before its function begins.

`@guarded` reads a function's annotations. The annotation of an argument determines its check (`KINDS`), its
name its least value (`LEAST`), so one line guards a new function. A name or a path is accepted for what it
names: a model, a task, a circuit (a file, or the folder of a run), scores, a hypothesis. Anything else is
refused in one line that says what is valid. The annotations name the type that the function works with, which
is narrower than what is accepted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import wraps
from inspect import Parameter, signature
from typing import Any, ParamSpec, TypeVar, cast

from circuitdiscovery.arguments import plain, things
from circuitdiscovery.arguments.call import Call, Check
from circuitdiscovery.errors import ArgumentError, unknown

P = ParamSpec("P")
R = TypeVar("R")

KINDS: dict[str, Check] = {
    "int": plain.whole,
    "float": plain.number,
    "bool": plain.switch,
    "str": plain.text,
    "str | Path": plain.path,
    "Path": plain.file,
    "Sequence[float]": plain.fractions,
    "Sequence[int]": plain.rows,
    "Sequence[str]": plain.names,
    "Iterable[str]": plain.names,
    "str | Iterable[str]": plain.names,
    "Roles": plain.roles,
    "Mapping[str, Any]": plain.by_node,
    "str | Ablation": plain.ablation,
    "str | Metric | Any": plain.metric,
    "Progress": plain.progress,
    "Callable[..., Circuit]": plain.search,
    "Model": things.model,
    "HasGraph": things.model,
    "HasTokenizer": things.with_tokenizer,
    "Task": things.task,
    "Task | Tensor | Sequence[Sequence[int]]": things.reference,
    "Graph": things.graph,
    "Edges": things.edges,
    "Circuit": things.circuit,
    "Circuit | Sequence[Circuit]": things.circuits,
    "Scores": things.scores,
    "Hypothesis": things.hypothesis,
}
_NEED_OTHERS: set[Check] = {
    *(things.task, things.edges, things.circuit, things.circuits, things.scores, things.reference),
}
_OPTIONAL: dict[Check, Check] = {}
_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


def guarded(function: Callable[P, R]) -> Callable[P, R]:
    """The function with checks of its arguments.

    >>> @guarded
    ... def twice(n: "int") -> int:
    ...     return 2 * n
    >>> twice("2")
    Traceback (most recent call last):
    circuitdiscovery.errors.ArgumentError: twice: n must be a whole number, not '2'
    """
    parameters = signature(function).parameters
    checks = [(name, check) for name, each in parameters.items() if (check := check_of(each)) is not None]
    checks.sort(
        key=lambda each: each[1] in _NEED_OTHERS
    )  # a stable sort: a task needs its model, edges need their graph
    own = next(iter(parameters)) if next(iter(parameters), None) in ("self", "cls") else None
    by_position = [name for name, each in parameters.items() if each.kind in _POSITIONAL]
    required = [name for name, each in parameters.items() if each.default is Parameter.empty]
    named = frozenset(parameters) - ({own} if own else set())

    @wraps(function)
    def door(*args: P.args, **kwargs: P.kwargs) -> R:
        if len(args) > len(by_position) or not named.issuperset(kwargs):
            raise _wrong_call(function, parameters, args, kwargs)
        given = dict(zip(by_position, args, strict=False))
        if not given.keys().isdisjoint(kwargs):
            raise _wrong_call(function, parameters, args, kwargs)
        given.update(kwargs)
        if any(name not in given for name in required):
            raise _wrong_call(function, parameters, args, kwargs)
        with ExitStack() as stack:
            _leave_inference_mode(stack)
            call = Call(function.__name__, given, {} if own is None else {own: given[own]}, stack)
            for name, check in checks:
                if name in given:
                    call.made[name] = check(call, name, given[name])
            made = given | call.made
            places = [made.pop(name) for name in by_position[: len(args)]]  # first: the rest goes by name
            return cast(Any, function)(*places, **made)

    return door


def _leave_inference_mode(stack: ExitStack) -> None:
    """For one call: in torch's inference mode no gradient can be taken, nor later of what is made in it."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.is_inference_mode_enabled():
        stack.enter_context(torch.inference_mode(False))


def check_of(parameter: Parameter) -> Check | None:
    """The check of a parameter, by its annotation; None if it has none."""
    annotation = (
        parameter.annotation
        if isinstance(parameter.annotation, str)
        else getattr(parameter.annotation, "__name__", "")
    )
    optional = annotation.endswith(" | None")
    check = KINDS.get(annotation.removesuffix(" | None").strip("\"'"))
    if check is None or not optional:
        return check
    return _OPTIONAL.setdefault(check, _or_none(check))


def _or_none(check: Check) -> Check:
    def checked(call: Call, name: str, value: Any) -> Any:
        return None if value is None else check(call, name, value)

    if check in _NEED_OTHERS:
        _NEED_OTHERS.add(checked)
    return checked


def _wrong_call(
    function: Callable[..., Any],
    parameters: Mapping[str, Parameter],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> ArgumentError:
    """The error for too many positional arguments, or one that is given twice, unknown or missing."""
    own, name = next(iter(parameters), None) in ("self", "cls"), function.__name__
    places = [each for each, kind in parameters.items() if kind.kind in _POSITIONAL][own:]
    others = [each for each, kind in parameters.items() if kind.kind not in _POSITIONAL]
    valid = [*places, *others]
    if wrong := next((each for each in kwargs if each not in valid), None):
        return ArgumentError(f"{name} has no such argument: {unknown('argument', wrong, valid)}")
    if len(args) - own > len(places):
        rest = f"all else by name: {', '.join(f'{each}=' for each in others)}" if others else "nothing else"
        return ArgumentError(f"{name} takes {' and '.join(places) or 'nothing'} by position, {rest}")
    if twice := next((each for each in places[: len(args) - own] if each in kwargs), None):
        return ArgumentError(f"{name} is given {twice} twice, by position and by name")
    missing = [
        each
        for each in valid[len(args) - own :]
        if parameters[each].default is Parameter.empty and each not in kwargs
    ]
    listed = ", ".join(
        [*places, *([*(f"{each}=" for each in others if each in missing)] or (["..."] if others else []))]
    )
    return ArgumentError(f"{name} needs {' and '.join(missing)}: {name}({listed})")
