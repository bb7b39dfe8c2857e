"""Checks that circuits and scores share: of their arrays, and of whether they are of the same graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.files.disk import (
    data_frame,
)
from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.graph.nodes import no_node

if TYPE_CHECKING:
    import pandas as pd


LARGEST = 1e30  # of a score
Made = TypeVar("Made")


class HasOrigin(Protocol):
    """A circuit or scores, with their graph and where they come from."""

    @property
    def graph(self) -> Graph: ...
    @property
    def info(self) -> Mapping[str, Any]: ...


def node_order(graph: Graph) -> tuple[str, ...]:
    """All nodes in topological order: `input`; per layer shared keys and values, heads, MLP; `logits`.

    Parts follow the node that they are parts of, where that reads for them.
    """
    names = [*graph.parts("input")]
    for layer in range(graph.n_layers):
        names += graph.group_nodes(layer)
        for node in (*graph.head_nodes(layer), *graph.mlp_nodes(layer)):
            split = graph.split_of(node)
            names += [] if split is not None and split.own else [node]
            names += [] if split is None else split.names
    return (*names, "logits")


def check_same_graph(a: HasOrigin, b: HasOrigin) -> None:
    """Raise an error if two circuits (or scores) are of different graphs."""
    if a.graph != b.graph:
        mine, theirs = (described(x.info.get("model", {}).get("name"), x.graph) for x in (a, b))
        raise CircuitDiscoveryError(f"circuits of different graphs: {mine} and {theirs}")


def named_nodes(graph: Graph, names: Iterable[str]) -> set[str]:
    """The nodes of some names; of a node that is split its parts, and itself where it reads for them."""
    valid, named = node_order(graph), set(names)
    for split in graph.splits:
        if split.node in named:
            named |= set(split.names)
            named -= {split.node} - set(valid)
    if wrong := sorted(named - set(valid)):
        raise no_node(wrong[0], valid)
    return named


def _array(values: Any) -> np.ndarray:
    """Values as an array, a tensor's without its gradient; numpy has no bfloat16."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if str(values.dtype) == "torch.bfloat16" else values
    return np.asarray(values)


def floats(values: Any) -> np.ndarray:
    """A float32 or float64 array as it is, any other numbers as float64."""
    try:
        array = _array(values)
        if array.dtype.kind not in "biufO":
            raise TypeError(f"not {array.dtype} values")
        return array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise CircuitDiscoveryError(f"scores must be numbers: {error}") from None


def check_size(scores: np.ndarray, graph: Graph) -> None:
    """Refuse scores so large that their sums, or their values in float32, would be infinite."""
    large = np.abs(scores) > LARGEST
    if large.any():
        edge = graph.names(large)[0]
        raise CircuitDiscoveryError(
            f"the score of {edge} is {scores[graph.index(edge)]:.3g}; no score can be larger than {LARGEST:g}"
        )


def check_shape(what: str, array: np.ndarray, graph: Graph) -> None:
    if array.shape != graph.allowed.shape:
        raise CircuitDiscoveryError(
            f"{what} must be [sources, receivers] = {list(graph.allowed.shape)}, not {list(array.shape)}"
        )


def booleans(values: Any) -> np.ndarray:
    """A new array of True and False; 0 and 1 are accepted too."""
    try:
        array = _array(values)
        plain = array.dtype == bool or (array.dtype.kind in "iuf" and bool(np.isin(array, (0, 1)).all()))
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise CircuitDiscoveryError(f"a circuit's mask must hold True and False: {error}") from None
    if not plain:
        raise CircuitDiscoveryError(f"a circuit's mask must hold True and False, not {array.dtype} values")
    return array.astype(bool)


def is_edge(graph: Graph, edge: object) -> bool:
    try:
        graph.index(edge)  # pyright: ignore[reportArgumentType]
    except CircuitDiscoveryError:
        return False
    return True


def table_of(graph: Graph, mask: np.ndarray, scores: np.ndarray) -> pd.DataFrame:
    """One row per edge of a [sources, receivers] mask."""
    rows, columns = np.nonzero(mask)
    sources, receivers = [graph.sources[i] for i in rows], [graph.receivers[i] for i in columns]
    return data_frame(
        {"edge": graph.names(mask), "source": sources, "receiver": receivers, "score": scores[rows, columns]}
    )


def naming(where: str, make: Callable[[], Made]) -> Made:
    try:
        return make()
    except CircuitDiscoveryError as error:
        told = str(error)
        raise CircuitDiscoveryError(told if told.startswith(where) else f"{where}: {told}") from None


def described(name: str | None, graph: Graph) -> str:
    parts = [
        f"{graph.n_layers} layers of {graph.n_heads} heads"
        + (f" in {graph.n_kv_heads} groups" if graph.grouped else "")
    ]
    parts += ["parallel"] if graph.parallel else []
    parts += [] if graph.has_mlp else ["no MLPs"]
    parts += [] if graph.split_qkv else ["q, k and v merged"]
    return f"{name or 'an unnamed model'} ({', '.join(parts)}, {len(graph):,} edges)"


def origin(info: Mapping[str, Any]) -> str:
    parts = [info["model"]["name"] if "model" in info else None, info.get("task"), info.get("method")]
    known = [str(part) for part in parts if part]
    return f", {' '.join(known)}" if known else ""
