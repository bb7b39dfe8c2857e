"""Arguments of this package's types (model, task, graph, circuit, scores, hypothesis), or what names one."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from circuitdiscovery.arguments.call import Call, refused
from circuitdiscovery.arguments.homes import is_a, named
from circuitdiscovery.arguments.plain import path, several
from circuitdiscovery.errors import ArgumentError, shown
from circuitdiscovery.files.disk import shipped

TABLES = (".toml", ".csv", ".jsonl")


def task_like(value: Any) -> bool:
    """Whether a text or a path names a task, or could only name a task."""
    found = str(value)
    return Path(found).suffix.lower() in TABLES or (found in shipped("tasks") and not Path(found).exists())


def model(call: Call, name: str, value: Any) -> Any:
    """A loaded model; a name, a path or a Hugging Face model is loaded."""
    other = call.given.get("task", call.given.get("name_or_path"))
    text = isinstance(value, str | os.PathLike)
    if is_a(value, "Task") or (
        text and task_like(value) and not (isinstance(other, str) and task_like(other))
    ):
        if "name_or_path" in call.given:
            raise ArgumentError(
                f"{call.function}: model must be a model, not a task: {call.function}('ioi', model)"
            )
        if "task" in call.given:
            what = shown(value) if text else "a Task"
            raise ArgumentError(
                f"{call.function}: model is a task ({what}); the model comes first: "
                f"{call.function}(model, task)"
            )
        raise ArgumentError(f"{call.function}: model must be a model, not a task")
    if is_a(value, "Model"):
        cast(Any, value).check_weights()
        return value
    if text or _is_module(value) or (isinstance(value, tuple) and len(value) == 2 and _is_module(value[0])):
        return named("load_model")(path(call, name, value) if text else value)
    raise refused(call, name, "what cd.load_model gives, or a name or a path that it takes", value)


def _is_module(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


def _is(call: Call, name: str, what: str) -> ArgumentError:
    """The error that an argument is something else than what it has to be."""
    return ArgumentError(f"{call.function}: {name} is {what}")


def _told_apart(call: Call, name: str, value: Any, kind: str, what: str) -> None:
    """Refuse a thing of another kind that is easily taken for the wanted one."""
    if is_a(value, kind):
        raise _is(call, name, what)


def with_tokenizer(call: Call, name: str, value: Any) -> Any:
    """An object with a tokenizer; for a model without one the function raises its own error."""
    if hasattr(value, "tokenizer") and not is_a(value, "Task"):
        return value
    return model(call, name, value)


def task(call: Call, name: str, value: Any) -> Any:
    """A task; a name, a path or a table is loaded in the tokens of the call's model."""
    if is_a(value, "Task"):
        return value
    if is_a(value, "Model") or _is_module(value):
        raise _is(call, name, f"a model; the model comes first: {call.function}(model, task)")
    if not isinstance(value, str | os.PathLike) and not is_table(value):
        raise refused(call, name, "what cd.load_task gives, or a name or a path that it takes", value)
    if call.model() is None:
        raise refused(call, name, "what cd.load_task gives", value)
    if is_table(value):
        return named("Task").from_pandas(value, call.model())
    return named("load_task")(path(call, name, value), call.model())


def is_table(value: Any) -> bool:
    """Whether a value is a DataFrame."""
    return hasattr(value, "columns") and hasattr(value, "itertuples")


def reference(call: Call, name: str, value: Any) -> Any:
    """Reference prompts: a task, or rows of tokens."""
    if is_a(value, "Task") or isinstance(value, str | os.PathLike):
        return task(call, name, value)
    if not several(value):
        raise refused(call, name, "a task, or rows of token ids", value)
    return value


def graph(call: Call, name: str, value: Any) -> Any:
    """A graph, or an object with one: a model, a circuit, scores."""
    found = value if is_a(value, "Graph") else getattr(value, "graph", None)
    if is_a(found, "Graph"):
        return found
    if isinstance(value, str | os.PathLike):
        return model(call, name, value).graph
    raise refused(call, name, "a Graph, or a model, whose graph is taken", value)


def edges(call: Call, name: str, value: Any) -> Any:
    """Several edges: texts "a->b", pairs, a table of them, or those of a circuit or a graph."""
    if isinstance(value, str | bytes):
        raise refused(call, name, "a list of edges, such as ['input->m0', ('m0', 'logits')]", value)
    if is_a(value, "Graph") or is_a(value, "Circuit"):
        return value.edges
    if is_table(value):
        return _edges_of_table(call, name, value)
    if hasattr(value, "edges") and hasattr(value, "is_multigraph"):  # of networkx
        return list(value.edges(keys=True) if value.is_multigraph() else value.edges)
    if isinstance(value, Mapping):  # such as edges with their scores
        return list(value)
    if not several(value):
        raise refused(call, name, "a list of edges, such as ['input->m0', ('m0', 'logits')]", value)
    return list(cast(Iterable[Any], value))


def _edges_of_table(call: Call, name: str, table: Any) -> list[Any]:
    columns = [str(each) for each in table.columns]
    if {"source", "receiver"} <= set(columns):
        return list(zip(table["source"].tolist(), table["receiver"].tolist(), strict=True))
    if "edge" in columns:
        return table["edge"].tolist()
    raise _is(call, name, f"a table with the columns {', '.join(columns)}; it needs 'source' and 'receiver'")


def circuit(call: Call, name: str, value: Any) -> Any:
    """A circuit; the name or the path of one, the folder of a run, or edges."""
    valid = (
        "a Circuit, the path of a circuit.json or of a run's folder, or a list of edges such as "
        "['input->m0', ('m0', 'logits')]"
    )
    if is_a(value, "Circuit"):
        return value
    taken = "a score for every edge; take a circuit of them: scores.top(n) or scores.best(n)"
    _told_apart(call, name, value, "Scores", f"Scores, {taken}")
    if isinstance(value, str | os.PathLike):
        if "->" in str(value):
            raise refused(call, name, f"a list of edges, such as [{shown(str(value))}]", value)
        return named("load_circuit")(path(call, name, value))
    own = call.graph()
    if getattr(value, "dtype", None) is not None and str(value.dtype).endswith("bool") and own is not None:
        return named("Circuit")(own, value)
    if is_a(value, "Graph") or not (several(value) or is_table(value) or hasattr(value, "is_multigraph")):
        raise refused(call, name, valid, value)
    if any(is_a(value, kind) for kind in ("Task", "Model", "Explanation")):
        raise refused(call, name, valid, value)
    if own is None:
        raise _is(call, name, "a list of edges without a graph; give Circuit.from_edges(graph, edges)")
    return named("Circuit").from_edges(own, edges(call, name, value))


def circuits(call: Call, name: str, value: Any) -> Any:
    """Circuits, of one or several things that `circuit` takes."""
    one = is_a(value, "Circuit") or isinstance(value, str | os.PathLike) or not several(value)
    return [circuit(call, name, each) for each in ([value] if one else cast(Iterable[Any], value))]


def scores(call: Call, name: str, value: Any) -> Any:
    """Scores; the path of a file, or the folder of a run."""
    if is_a(value, "Scores"):
        return value
    wanted = "it must be Scores, a score for every edge, such as cd.eap gives"
    _told_apart(call, name, value, "Circuit", f"a Circuit; {wanted}")
    if isinstance(value, str | os.PathLike):
        found = Path(path(call, name, value))
        return named("Scores").load(found / "scores.safetensors" if found.is_dir() else found)
    own = call.graph()
    if own is not None and getattr(value, "shape", None) == own.allowed.shape:
        return named("Scores")(own, value)
    raise refused(call, name, "Scores, as cd.eap gives, or the path of its file or of a run's folder", value)


def hypothesis(call: Call, name: str, value: Any) -> Any:
    """A hypothesis; the name or the path of one is loaded."""
    if is_a(value, "Hypothesis"):
        return value
    if isinstance(value, str | os.PathLike):
        return named("load_hypothesis")(path(call, name, value))
    raise refused(call, name, "what cd.load_hypothesis gives, or a name or a path that it takes", value)
