"""Nodes as sums of parts: neurons, features of a dictionary, experts, spans of positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch

from circuitdiscovery.arguments import guarded
from circuitdiscovery.engine import distributed
from circuitdiscovery.engine.metrics import Metric
from circuitdiscovery.engine.setup import Setup
from circuitdiscovery.errors import CircuitDiscoveryError, shown
from circuitdiscovery.features.dictionary import Dictionary
from circuitdiscovery.features.standing import check_model
from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.graph.nodes import no_node, parsed
from circuitdiscovery.graph.splits import LETTER, Schema, Split
from circuitdiscovery.model.model import Model
from circuitdiscovery.model.run import embed, plain_run
from circuitdiscovery.search.unit_damages import (
    NEURONS,
    Kind,
    chosen_by,
    features_of,
    line,
    mean_damages,
    need_of,
    unit_values,
)
from circuitdiscovery.task.task import Task

_KEPT_BY = "eap_ig"


@guarded
def split(
    model: Model,
    nodes: Mapping[str, Any],
    *,
    task: Task | None = None,
    keep: int | None = None,
    metric: str | Metric | Any | None = None,
    ablation: str | None = None,
) -> Graph:
    """The model's graph with some nodes as sums of parts, each of which is a node with edges of its own.

    Args:
        model: a loaded model.
        nodes: node -> what its parts are. An MLP: `"neurons"`, or the numbers of some neurons; `"experts"`.
            An MLP too: a dictionary of features (`features.load_sae`) of what it writes, or a transcoder.
            `input`, a head or an MLP: `"positions"`, the positions that the task names; `"all"`, every
            position, for prompts of one length; named spans, such as `{"first": [0, 1], "last": [-1]}`; or a
            .json file that says where the spans of each prompt are, for prompts of different length.
            What no part holds is in the part `rest`, so that all parts together are the node; one of which
            there is no part is left whole.
        task: whose positions are meant, or whose examples decide which neurons and features are kept.
        keep: how many neurons or features of each MLP become parts: those of the largest |damage| by
            integrated gradients on the task's examples. By default all; of features, where there is a task,
            all that are active on its clean or corrupted prompts, where the answer depends on it.
        metric, ablation: of the damage that `keep` chooses by, as in `neurons`; by default the task's own and
            `resample`. Give what the search will have.

    Returns:
        The graph, as searches and `Circuit` take it. Its parts are named `m2/n301` (a neuron), `m2/f17` (a
        feature), `m2/e3` (an expert), `a1.h0/@S2` and `a1.h0/@5` (positions), and `m2/rest`.

    Raises:
        CircuitDiscoveryError: no such node, neuron, expert or position; a kind that the node cannot be
            split into; a dictionary of another site or width; `keep` or positions without a task; a metric or
            an ablation without `keep`, or one by which parts cannot be ranked.

    >>> import circuitdiscovery as cd
    >>> model = cd.load_model("toy")
    >>> cd.split(model, {"m1": [3, 17]}).parts("m1")
    ('m1/n3', 'm1/n17', 'm1/rest')
    """
    if keep is not None and (type(keep) is not int or keep < 1):
        raise CircuitDiscoveryError(f"keep must be a whole number of at least 1, not {keep!r}")
    if keep is not None and task is None:
        raise CircuitDiscoveryError("keep needs a task, whose examples decide which parts are kept")
    if keep is None and (metric is not None or ablation is not None):
        raise CircuitDiscoveryError("metric and ablation are what keep chooses by: give keep, too")
    for node in nodes:
        if "/" in str(node):
            raise CircuitDiscoveryError(f"{node} is a part already: name the node itself, with all its parts")
        if node not in model.graph.nodes:
            raise no_node(node, model.graph.nodes)
    splits = [_split(model, node, parts, task) for node, parts in nodes.items() if not _is_empty(parts)]
    if task is not None:
        splits = _kept(model, task, splits, keep, {"metric": metric, "ablation": ablation or "resample"})
    return replace(model.graph, splits=tuple(splits))


def _is_empty(parts: Any) -> bool:
    """Whether a node is left whole: no neuron of it, or no span, is named."""
    return isinstance(parts, list | tuple | range | Mapping | np.ndarray) and not len(parts)


def _split(model: Model, node: str, parts: Any, task: Task | None) -> Split:
    kind = parsed(node).kind
    if isinstance(parts, str | Path) and str(parts).endswith(".json"):
        schema = Schema.load(parts)
        names = tuple(LETTER["positions"] + _name(node, name) for name in schema.names)
        return Split(node, "positions", names, digest=schema.digest, dictionary=schema)
    named = parts if isinstance(parts, str) else ""
    if named in ("positions", "all") or isinstance(parts, Mapping):
        return _positions(node, parts, task)
    if kind != "mlp":
        raise CircuitDiscoveryError(
            f"{node} can be split by positions only ('positions', 'all', or named spans), "
            f"not into {shown(parts)}"
        )
    if isinstance(parts, Dictionary):
        return _dictionary(model, node, parts)
    block = model.blocks[parsed(node).layer]
    if named == "experts":
        if block.experts is None:
            raise CircuitDiscoveryError(f"{node} of {model.name} is no mixture of experts")
        return Split(node, "experts", tuple(f"e{number}" for number in range(block.experts.count)))
    if block.W_in is None:
        raise CircuitDiscoveryError(f"{node} of {model.name} is a mixture of experts: it has no neurons")
    if named == "neurons":
        parts = range(block.d_mlp)
    return _neurons(node, parts, block.d_mlp)


def _neurons(node: str, numbers: Any, width: int) -> Split:
    if isinstance(numbers, str) or not isinstance(numbers, Sequence | np.ndarray | range):
        raise CircuitDiscoveryError(
            f"{node} is split into 'neurons', 'experts', 'positions', 'all', a list of neurons or named "
            f"spans, not {shown(numbers)}"
        )
    for number in numbers:
        if not isinstance(number, Integral) or isinstance(number, bool):
            raise CircuitDiscoveryError(f"{node}: a neuron is a whole number, not {shown(number)}")
        if not 0 <= int(number) < width:
            raise CircuitDiscoveryError(f"{node} has no neuron {number}: it has {width:,}, counted from 0")
    return Split(node, "neurons", tuple(f"n{int(number)}" for number in sorted(numbers)), own=True)


def _kept(
    model: Model, task: Task, splits: Sequence[Split], keep: int | None, how: Mapping[str, Any]
) -> list[Split]:
    """The splits with the parts of the largest |damage| alone, and of features at most the active ones."""
    kinds: dict[int, Kind] = {}
    for split in splits:
        if split.kind == "features":
            kinds[parsed(split.node).layer] = features_of(split.dictionary, model.stream_unit)
        elif split.kind == "neurons" and keep is not None:
            kinds[parsed(split.node).layer] = NEURONS
    if not kinds:
        if keep is not None and splits:
            raise CircuitDiscoveryError("keep is for neurons and features: spans and experts are all kept")
        return list(splits)
    setup = chosen_by(Setup.of(model, task, plain=True, need=need_of(kinds), **how))
    damages = {} if keep is None else mean_damages(setup, kinds, line(_KEPT_BY))
    active, found = _active(setup, kinds), []
    for split in splits:
        layer = parsed(split.node).layer
        if split.kind in ("neurons", "features") and layer in active:
            numbers = np.array(split.numbers, dtype=int)
            some = np.flatnonzero(active[layer][numbers])
            if keep is not None:
                each = np.abs(damages[layer][numbers[some]])
                some = np.sort(some[np.argsort(-each, kind="stable")[:keep]])
            if not len(some):
                continue
            split = replace(split, parts=tuple(split.parts[i] for i in some))
        found.append(split)
    return found


@torch.no_grad()
def _active(setup: Setup, kinds: Mapping[int, Kind]) -> dict[int, np.ndarray]:
    """layer -> [U] bool: the units of some layers' MLPs that are not 0 somewhere in some example's clean or
    corrupted prompt, up to the answer's position and in the last layer there alone: the logits do not depend
    on what they are elsewhere."""
    model = setup.model
    found = {layer: torch.zeros(kind.count(model.blocks[layer])) for layer, kind in kinds.items()}
    for batch in setup.batches:
        places = torch.arange(batch.clean.shape[1], device=batch.position.device)
        read = (places <= batch.position[:, None])[..., None]  # [N, T, 1]
        for prompts in (batch.clean, batch.corrupted):
            run = plain_run(model, embed(model, prompts), batch.position, keep_readings=True)
            for layer, values in unit_values(model, kinds, run).items():
                there = values != 0  # [N, T, U]; T is 1 in the last layer
                there = there & read.to(there.device) if there.shape[1] == len(places) else there
                found[layer] += there.any((0, 1)).cpu()
    return {layer: distributed.total(count).numpy() > 0 for layer, count in found.items()}


def _dictionary(model: Model, node: str, found: Dictionary) -> Split:
    """A node as the features of a dictionary, all of them."""
    if found.site is not None and found.site != node:
        raise CircuitDiscoveryError(f"the dictionary is of {found.site}, not of {node}")
    if found.d_out != model.d_model or found.d_in != model.d_model:
        width = found.d_out if found.d_out != model.d_model else found.d_in
        raise CircuitDiscoveryError(
            f"the dictionary is of width {width}, but {node} of {model.name} of width {model.d_model}"
        )
    if found.transcoder and found.normalizes != "none":
        raise CircuitDiscoveryError(
            f"{node}: a transcoder that normalises what it reads ({found.normalizes}) has no parts that read"
        )
    check_model(found, model, node)
    own = replace(found, site=node).to(model.device)
    parts = tuple(f"f{number}" for number in range(found.width))
    return Split(node, "features", parts, found.transcoder, digest=found.digest, dictionary=own)


# ------------------------------------------------------------------ positions


def _positions(node: str, parts: Any, task: Task | None) -> Split:
    at = LETTER["positions"]
    if isinstance(parts, Mapping):
        spans = {f"{at}{name}": _span(node, name, places) for name, places in parts.items()}
        return Split(node, "positions", tuple(spans), spans=tuple(spans.values()))
    if task is None:
        raise CircuitDiscoveryError(f"{node}: positions are a task's: give task=")
    if parts == "all":
        lengths = {len(example.clean) for part in (task, task.held_out) if part for example in part.examples}
        if len(lengths) > 1:
            raise CircuitDiscoveryError(
                f"{node}: 'all' positions are for prompts of one length; those of {task.title} have "
                f"{min(lengths)} to {max(lengths)} tokens"
            )
        (length,) = lengths
        return Split(
            node,
            "positions",
            tuple(f"{at}{i}" for i in range(length)),
            spans=tuple((i,) for i in range(length)),
        )
    return Split(node, "positions", tuple(at + name for name in _named(node, task)))


def _name(node: str, name: Any) -> str:
    if not isinstance(name, str) or not name or set(name) & set("/<>@"):
        raise CircuitDiscoveryError(
            f"{node}: a span has a name without '/', '<', '>' and '@', not {shown(name)}"
        )
    return name


def _span(node: str, name: Any, places: Any) -> tuple[int, ...]:
    places = [places] if isinstance(places, Integral) else places
    _name(node, name)
    if not isinstance(places, Sequence | range) or isinstance(places, str) or not len(places):
        raise CircuitDiscoveryError(f"{node}: span {name} is a list of positions, not {shown(places)}")
    for place in places:
        if not isinstance(place, Integral) or isinstance(place, bool):
            raise CircuitDiscoveryError(f"{node}: span {name} holds {shown(place)}, which is not a position")
    return tuple(int(place) for place in places)


def _named(node: str, task: Task) -> list[str]:
    """The named positions of a task that all its examples have; of those that are everywhere the same token,
    the first."""
    examples = [example.positions for part in (task, task.held_out) if part for example in part.examples]
    common = [name for name in examples[0] if all(name in each for each in examples)]
    if not common:
        raise CircuitDiscoveryError(f"{node}: the examples of {task.title} have no named position in common")
    found = list[str]()
    for name in common:
        same = [other for other in found if all(each[name] == each[other] for each in examples)]
        if same:
            continue
        for other in found:
            if any(each[name] == each[other] for each in examples):
                raise CircuitDiscoveryError(
                    f"{node}: {name} and {other} are the same token in some prompts of {task.title} and not "
                    "in others: name the spans yourself"
                )
        found.append(name)
    return found
