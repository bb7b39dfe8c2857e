"""The door of every public function: each argument is checked, or made what the function takes, before the function begins.

`@guarded` reads a function's annotations. What kind an argument is of follows from its annotation (`KINDS`), its least value from
its name (`LEAST`), so that a new function is guarded by one line. Names and paths stand for what they name: a model, a task, a
circuit (a file, or the folder of a run), scores, a hypothesis. Whatever else is given is refused in one line that says what is valid.
The annotations stay narrower than what is accepted: they name the kind that a function works with.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import wraps
from inspect import Parameter, signature
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

from circuitdiscovery.errors import ArgumentError, shown, unknown
from circuitdiscovery.files.disk import can_be_a_path, shipped
from circuitdiscovery.names import ABLATION_NAMES, METRIC_NAMES, canonical

P = ParamSpec("P")
R = TypeVar("R")

LEAST = {"batch_size": 1, "seed": 0, "order": 0, "prompts": 1, "draws": 1, "permutations": 1, "reference": 1, "renamed": 0}
MOST = 2**63 - 1  # what numpy and torch hold
TABLES = (".toml", ".csv", ".jsonl")
_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


@dataclass
class Call:
    """One call: what is given, by name. `made` is what the call of the function gets."""

    function: str
    given: dict[str, Any]
    made: dict[str, Any]
    stack: ExitStack

    def model(self) -> Any:
        """The model that the call is about, loaded; None where it is about none."""
        return self.made.get("model")

    def graph(self) -> Any:
        """The graph that edges given as names are of: the model's, or another circuit's."""
        found = [self.made.get("graph"), getattr(self.model(), "graph", None)]
        found += [getattr(value, "graph", None) for value in (*self.made.values(), *self.given.values())]
        return next((graph for graph in found if graph is not None), None)


Check = Callable[[Call, str, Any], Any]


def guarded(function: Callable[P, R]) -> Callable[P, R]:
    """The function behind its door.

    >>> @guarded
    ... def twice(n: "int") -> int:
    ...     return 2 * n
    >>> twice("2")
    Traceback (most recent call last):
    circuitdiscovery.errors.ArgumentError: twice: n must be a whole number, not '2'
    """
    parameters = signature(function).parameters
    checks = [(name, check) for name, each in parameters.items() if (check := check_of(each)) is not None]
    checks.sort(key=lambda each: each[1] in _NEED_OTHERS)  # stable: a task needs its model, edges their graph
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
            call = Call(function.__name__, given, {} if own is None else {own: given[own]}, stack)
            for name, check in checks:
                if name in given:
                    call.made[name] = check(call, name, given[name])
            made = given | call.made
            places = [made.pop(name) for name in by_position[: len(args)]]  # first: the rest goes by name
            return cast(Any, function)(*places, **made)

    return door


def check_of(parameter: Parameter) -> Check | None:
    """The check of a parameter, by its annotation; None where there is none."""
    annotation = parameter.annotation if isinstance(parameter.annotation, str) else getattr(parameter.annotation, "__name__", "")
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
    function: Callable[..., Any], parameters: Mapping[str, Parameter], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ArgumentError:
    """Too many arguments by position, one too often, one of an unknown name, or one too few."""
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
    missing = [each for each in valid[len(args) - own :] if parameters[each].default is Parameter.empty and each not in kwargs]
    listed = ", ".join([*places, *([*(f"{each}=" for each in others if each in missing)] or (["..."] if others else []))])
    return ArgumentError(f"{name} needs {' and '.join(missing)}: {name}({listed})")


# ------------------------------------------------------------------- plain values


def _refused(call: Call, name: str, valid: str, value: Any) -> ArgumentError:
    return ArgumentError(f"{call.function}: {name} must be {valid}, not {shown(value)}")


def whole(call: Call, name: str, value: Any) -> int:
    """A whole number of any package, no less than its name allows."""
    least = LEAST.get(name)
    bound = "" if least is None else f" of at least {least}"
    bound += ", or None" if name == "order" else ""
    if not isinstance(value, Integral) or isinstance(value, bool):
        value = _scalar(value)
        if type(value) is not int:
            raise _refused(call, name, f"a whole number{bound}", value)
    found = int(value)
    if least is not None and found < least:
        raise _refused(call, name, f"a whole number{bound}", found)
    if abs(found) > MOST:
        raise ArgumentError(f"{call.function}: {name} must be a whole number of at most {MOST}, not a longer one")
    return found


def number(call: Call, name: str, value: Any) -> float:
    """A finite number of any package, as it is where it is Python's."""
    if not isinstance(value, Real) or isinstance(value, bool):
        value = _scalar(value)
    if isinstance(value, bool) or not isinstance(value, Real):
        raise _refused(call, name, "a finite number", value)
    if isinstance(value, Integral) and abs(int(value)) > MOST:
        raise ArgumentError(f"{call.function}: {name} must be a finite number, not one of so many digits")
    if not math.isfinite(value):
        raise ArgumentError(f"{call.function}: {name} must be a finite number, not {float(value)}")
    return value if isinstance(value, int | float) and type(value) in (int, float) else float(value)


def switch(call: Call, name: str, value: Any) -> bool:
    """True or False."""
    if type(value).__name__ in ("bool", "bool_"):
        return bool(value)
    raise _refused(call, name, "True or False", value)


def text(call: Call, name: str, value: Any) -> str:
    """A text; the function says which ones are valid, of anything else too."""
    return str(value) if isinstance(value, str) else shown(value)


def _scalar(value: Any) -> Any:
    """The Python number in a tensor or an array of one element without dimensions; anything else as it is."""
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value


def path(call: Call, name: str, value: Any) -> Any:
    """A path, with the home folder for ~."""
    if name.startswith("name_or") and is_a(value, "model.model", "Model"):
        raise ArgumentError(f"{call.function}: the name or the path comes first, not the Model: {call.function}('ioi', model)")
    if not isinstance(value, str | os.PathLike) or isinstance(os.fspath(value), bytes):
        raise _refused(call, name, "a name or a path" if name.startswith("name_or") else "a path", value)
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
    """Several numbers."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if not _several(value):
        raise _refused(call, name, "a list of numbers", value)
    return [number(call, f"{name}[{i}]", each) for i, each in enumerate(value)]


def _several(value: Any) -> bool:
    """Whether a value holds others, in an order of their own."""
    return isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping) and getattr(value, "shape", None) != ()


def names(call: Call, name: str, value: Any) -> list[str]:
    """Names of nodes: one, or several."""
    if isinstance(value, str):
        return [value]
    if not _several(value):
        raise _refused(call, name, "a list of names such as 'a0.h1' and 'm0'", value)
    found = list(value)
    for each in found:
        if not isinstance(each, str):
            raise _refused(call, name, "a list of names such as 'a0.h1' (a{layer}.h{head}) and 'm0'", each)
    return found


def roles(call: Call, name: str, value: Any) -> Mapping[str, Any]:
    """Roles with their nodes, or what has some: a circuit, an explanation."""
    value = getattr(value, "roles", value)
    if not isinstance(value, Mapping):
        raise _refused(call, name, "a mapping from roles to lists of nodes, such as {'name mover': ['a2.h0']}", value)
    return {str(role): names(call, f"{name}[{role!r}]", nodes) for role, nodes in value.items()}


def ablation(call: Call, name: str, value: Any) -> Any:
    """An ablation's name, or an ablation of one's own."""
    if isinstance(value, str):
        return canonical("ablation", value)
    if isinstance(value, type) or not hasattr(value, "rows"):
        raise _refused(call, name, f"one of {', '.join(ABLATION_NAMES)}, or an object with `rows`, such as cd.replacements gives", value)
    return value


def metric(call: Call, name: str, value: Any) -> Any:
    """A metric's name, a `Metric`, or a function of (logits, task); one of the logits alone is taken, too."""
    if value is None:
        return None
    if isinstance(value, str):
        return canonical("metric", value)
    function = getattr(value, "function", value)
    if isinstance(value, type) or not callable(function):
        raise _refused(call, name, f"one of {', '.join(METRIC_NAMES)}, or a function of (logits, task) -> [examples]", value)
    try:
        known = signature(function)
    except (TypeError, ValueError):  # of a function that is not Python's
        return value
    if _takes(known, 2):
        return value
    if not _takes(known, 1):
        raise ArgumentError(f"{call.function}: {name} must be a function of (logits, task) -> [examples], not of {known}")

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
        from circuitdiscovery.reporting.progress import stage

        return call.stack.enter_context(stage(call.function))
    if not callable(value) or isinstance(value, type):
        raise _refused(call, name, "True for a bar, or a function of (done, total)", value)
    return value


def search(call: Call, name: str, value: Any) -> Any:
    """A search: a function of (model, task) that gives a circuit."""
    if not callable(value) or isinstance(value, type):
        valid = "a function of (model, task) that gives a Circuit, such as lambda model, task: cd.eap(model, task).top(100)"
        raise _refused(call, name, valid, value)
    return value


# ------------------------------------------------------------------- things


def is_a(value: Any, home: str, kind: str) -> bool:
    """Whether a value is of one of our classes; a module that was not imported has no values."""
    module = sys.modules.get(f"circuitdiscovery.{home}")
    return module is not None and isinstance(value, getattr(module, kind))


def task_like(value: Any) -> bool:
    """Whether a text or a path names a task, or could name one alone."""
    found = str(value)
    return Path(found).suffix.lower() in TABLES or (found in shipped("tasks") and not Path(found).exists())


def model(call: Call, name: str, value: Any) -> Any:
    """A loaded model; a name, a path or a Hugging Face model is loaded."""
    other = call.given.get("task", call.given.get("name_or_path"))
    text = isinstance(value, str | os.PathLike)
    if is_a(value, "task.task", "Task") or (text and task_like(value) and not (isinstance(other, str) and task_like(other))):
        if "name_or_path" in call.given:
            raise ArgumentError(f"{call.function}: model must be a model, not a task: {call.function}('ioi', model)")
        if "task" in call.given:
            what = shown(value) if text else "a Task"
            raise ArgumentError(f"{call.function}: model is a task ({what}); the model comes first: {call.function}(model, task)")
        raise ArgumentError(f"{call.function}: model must be a model, not a task")
    if is_a(value, "model.model", "Model"):
        return value
    if text or _is_module(value) or (isinstance(value, tuple) and len(value) == 2 and _is_module(value[0])):
        from circuitdiscovery.model.load import load_model

        return load_model(path(call, name, value) if text else value)
    raise _refused(call, name, "what cd.load_model gives, or a name or a path that it takes", value)


def _is_module(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


def with_tokenizer(call: Call, name: str, value: Any) -> Any:
    """What has a tokenizer; a model that has none gives the function's own error."""
    if hasattr(value, "tokenizer") and not is_a(value, "task.task", "Task"):
        return value
    return model(call, name, value)


def task(call: Call, name: str, value: Any) -> Any:
    """A task; a name, a path or a table is made one in the call's model's tokens."""
    if is_a(value, "task.task", "Task"):
        return value
    if is_a(value, "model.model", "Model") or _is_module(value):
        raise ArgumentError(f"{call.function}: {name} is a model; the model comes first: {call.function}(model, task)")
    if not isinstance(value, str | os.PathLike) and not is_table(value):
        raise _refused(call, name, "what cd.load_task gives, or a name or a path that it takes", value)
    if call.model() is None:
        raise _refused(call, name, "what cd.load_task gives", value)
    from circuitdiscovery.task.task import Task, load_task

    from_pandas: Any = getattr(Task, "from_pandas", None)
    if is_table(value) and from_pandas is not None:
        return from_pandas(value, call.model())
    return load_task(cast(Any, value) if is_table(value) else path(call, name, value), call.model())


def is_table(value: Any) -> bool:
    """Whether a value is a DataFrame."""
    return hasattr(value, "columns") and hasattr(value, "itertuples")


def reference(call: Call, name: str, value: Any) -> Any:
    """Reference prompts: a task, or rows of tokens."""
    if is_a(value, "task.task", "Task"):
        return value
    if isinstance(value, str | os.PathLike):
        return task(call, name, value)
    if not _several(value):
        raise _refused(call, name, "a task, or rows of token ids", value)
    return value


def graph(call: Call, name: str, value: Any) -> Any:
    """A graph, or what has one: a model, a circuit, scores."""
    found = value if is_a(value, "graph.graph", "Graph") else getattr(value, "graph", None)
    if is_a(found, "graph.graph", "Graph"):
        return found
    if isinstance(value, str | os.PathLike):
        return model(call, name, value).graph
    raise _refused(call, name, "a Graph, or a model, whose graph is taken", value)


def edges(call: Call, name: str, value: Any) -> Any:
    """Several edges: texts "a->b", pairs, or a table of them; a circuit's or a graph's."""
    if isinstance(value, str | bytes):
        raise _refused(call, name, "a list of edges, such as ['input->m0', ('m0', 'logits')]", value)
    if is_a(value, "graph.graph", "Graph") or is_a(value, "circuit.circuit", "Circuit"):
        return value.edges
    if is_table(value):
        return _edges_of_table(call, name, value)
    if hasattr(value, "edges") and hasattr(value, "is_multigraph"):  # of networkx
        return list(value.edges(keys=True) if value.is_multigraph() else value.edges)
    if isinstance(value, Mapping):  # such as edges with their scores
        return list(value)
    if not _several(value):
        raise _refused(call, name, "a list of edges, such as ['input->m0', ('m0', 'logits')]", value)
    return list(cast(Iterable[Any], value))


def _edges_of_table(call: Call, name: str, table: Any) -> list[Any]:
    columns = [str(each) for each in table.columns]
    if {"source", "receiver"} <= set(columns):
        return list(zip(table["source"].tolist(), table["receiver"].tolist(), strict=True))
    if "edge" in columns:
        return table["edge"].tolist()
    raise ArgumentError(f"{call.function}: {name} is a table with the columns {', '.join(columns)}; it needs 'source' and 'receiver'")


def circuit(call: Call, name: str, value: Any) -> Any:
    """A circuit; the name or the path of one, the folder of a run, or edges."""
    from circuitdiscovery.circuit.circuit import Circuit, Scores, load_circuit

    valid = "a Circuit, the path of a circuit.json or of a run's folder, or a list of edges such as ['input->m0', ('m0', 'logits')]"
    if isinstance(value, Circuit):
        return value
    if isinstance(value, Scores):
        raise ArgumentError(
            f"{call.function}: {name} is Scores, a score for every edge; take a circuit of them: scores.top(n) or scores.best(n)"
        )
    if isinstance(value, str | os.PathLike):
        if "->" in str(value):
            raise _refused(call, name, f"a list of edges, such as [{shown(str(value))}]", value)
        return load_circuit(path(call, name, value))
    own = call.graph()
    if getattr(value, "dtype", None) is not None and str(value.dtype).endswith("bool") and own is not None:
        return Circuit(own, value)
    if is_a(value, "graph.graph", "Graph") or not (_several(value) or is_table(value) or hasattr(value, "is_multigraph")):
        raise _refused(call, name, valid, value)
    if any(is_a(value, *each) for each in (("task.task", "Task"), ("model.model", "Model"), ("explanation.cards", "Explanation"))):
        raise _refused(call, name, valid, value)
    if own is None:
        raise ArgumentError(f"{call.function}: {name} is a list of edges, but of which graph? Give Circuit.from_edges(graph, edges)")
    return Circuit.from_edges(own, cast(Any, edges(call, name, value)))


def scores(call: Call, name: str, value: Any) -> Any:
    """Scores; the path of a file, or the folder of a run."""
    from circuitdiscovery.circuit.circuit import Circuit, Scores

    if isinstance(value, Scores):
        return value
    if isinstance(value, Circuit):
        raise ArgumentError(f"{call.function}: {name} is a Circuit; it must be Scores, a score for every edge, such as cd.eap gives")
    if isinstance(value, str | os.PathLike):
        found = Path(path(call, name, value))
        return Scores.load(found / "scores.safetensors" if found.is_dir() else found)
    own = call.graph()
    if own is not None and getattr(value, "shape", None) == own.allowed.shape:
        return Scores(own, value)
    raise _refused(call, name, "Scores, as cd.eap gives, or the path of its file or of a run's folder", value)


def hypothesis(call: Call, name: str, value: Any) -> Any:
    """A hypothesis; the name or the path of one is loaded."""
    from circuitdiscovery.explanation.scrubbing.hypothesis import Hypothesis, load_hypothesis

    if isinstance(value, Hypothesis):
        return value
    if isinstance(value, str | os.PathLike):
        return load_hypothesis(path(call, name, value))
    raise _refused(call, name, "what cd.load_hypothesis gives, or a name or a path that it takes", value)


KINDS: dict[str, Check] = {
    "int": whole,
    "float": number,
    "bool": switch,
    "str": text,
    "str | Path": path,
    "Path": file,
    "Sequence[float]": fractions,
    "Sequence[str]": names,
    "Iterable[str]": names,
    "str | Iterable[str]": names,
    "Roles": roles,
    "str | Ablation": ablation,
    "str | Metric | Any": metric,
    "Progress": progress,
    "Callable[..., Circuit]": search,
    "Model": model,
    "HasTokenizer": with_tokenizer,
    "Task": task,
    "Task | Tensor | Sequence[Sequence[int]]": reference,
    "Graph": graph,
    "Edges": edges,
    "Circuit": circuit,
    "Scores": scores,
    "Hypothesis": hypothesis,
}
_NEED_OTHERS: set[Check] = {task, edges, circuit, scores, reference}
_OPTIONAL: dict[Check, Check] = {}
