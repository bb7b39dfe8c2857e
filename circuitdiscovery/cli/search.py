"""The search of a run and its measurement, by what the command line asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.registry import DEFAULT_THRESHOLD, METHODS, default_edges
from circuitdiscovery.reporting.options import MEASURED_WITH, Options
from circuitdiscovery.reporting.progress import say, stage

if TYPE_CHECKING:
    from circuitdiscovery.circuit.circuit import Circuit
    from circuitdiscovery.circuit.scores import Scores
    from circuitdiscovery.graph.graph import Graph
    from circuitdiscovery.measure.evaluation import Evaluation
    from circuitdiscovery.model.model import Model
    from circuitdiscovery.task.task import Task


def search(
    model: Model, task: Task, options: Options, *, state: Path | None = None
) -> tuple[Circuit, Scores | None]:
    """The circuit by the method asked for, and the scores it was taken from
    (None where the method gives a circuit).

    A method takes of the options those that its signature names.

    Raises:
        CircuitDiscoveryError: a method that gives something else, or that cannot search among parts.
    """
    import circuitdiscovery as cd

    function = METHODS[options.method].load()
    accepted = signature(function).parameters.keys() - {"model", "task"}
    graph = graph_of(model, task, options)
    if graph.splits and "graph" not in accepted:
        raise CircuitDiscoveryError(f"method {options.method!r} takes no graph: it cannot search among parts")
    edges = wanted(graph, options)
    threshold = DEFAULT_THRESHOLD if options.threshold is None else options.threshold
    with stage(options.name) as report:
        given = options.to_dict() | {
            "edges": edges,
            "threshold": threshold,
            "graph": graph,
            "progress": report,
            "state": state,
        }
        found = function(model, task, **{name: value for name, value in given.items() if name in accepted})
    if isinstance(found, cd.Circuit):
        return found, None
    scores = found if isinstance(found, cd.Scores) else None
    if scores is not None:
        circuit = chosen(scores, options)
    elif isinstance(found, Mapping):
        circuit = of_nodes(model, task, graph, found, options)
    else:
        raise CircuitDiscoveryError(
            f"method {options.method!r} must give Scores or a Circuit, not {type(found).__name__}"
        )
    if options.edges is not None and len(circuit) < options.edges:
        whole = "nodes" if scores is None else "paths"
        most = f"--edges {options.edges} is how many at most"
        say(f"the circuit has {len(circuit):,} edges: {most}, of whole {whole}")
    return circuit, scores


def wanted(graph: Graph, options: Options) -> int:
    """How many edges a circuit shall have, at most."""
    return options.edges or default_edges(len(graph))


def chosen(scores: Scores, options: Options) -> Circuit:
    """The circuit that options take from scores."""
    if options.threshold is not None:
        return scores.above(options.threshold)
    return scores.best(wanted(scores.graph, options))


def graph_of(model: Model, task: Task, options: Options) -> Graph:
    """The graph that options search in; the parts that are kept are chosen by the metric and the ablation of
    the search, or where neurons are not ranked by that ablation, by resample."""
    import circuitdiscovery as cd
    from circuitdiscovery.search.unit_damages import ABLATIONS

    nodes = options.parts(model.graph.n_layers * model.graph.has_mlp)
    if not nodes:
        return cd.Graph.from_model(model, split_qkv=options.split_qkv)
    keep, by = options.keep or options.neurons, dict[str, Any]()
    if keep is not None:
        ranked = options.ablation in ABLATIONS
        by = {
            "metric": options.metric or METHODS[options.method].metric,
            "ablation": options.ablation if ranked else "resample",
        }
        if not ranked:
            say(f"the neurons that are kept are chosen not by {options.ablation} ablation, but by resample")
    graph = cd.split(model, nodes, task=task, keep=keep, **by)
    return graph if options.split_qkv else replace(graph, split_qkv=False)


def of_nodes(
    model: Model, task: Task, graph: Graph, damages: Mapping[str, float], options: Options
) -> Circuit:
    """The circuit that options take from damages by node, as `circuit_of_nodes`, with what it comes from."""
    import circuitdiscovery as cd
    from circuitdiscovery.search.exact import circuit_of_nodes
    from circuitdiscovery.search.provenance import provenance

    edges = wanted(graph, options)
    circuit = circuit_of_nodes(graph, damages, threshold=options.threshold, edges=edges)
    told = options.some("metric", "ablation", "direction", "split_qkv")
    return cd.Circuit(
        graph, circuit.mask, info=provenance(model, task, options.method, {**told, **options.how})
    )


def evaluate(
    model: Model,
    task: Task,
    circuit: Circuit,
    scores: Scores | None,
    options: Options,
    *,
    effort: str = "full",
    state: Path | None = None,
) -> Evaluation:
    """The circuit's evaluation under the options that it was searched with;
    its price is said first, on standard error.
    """
    from circuitdiscovery.measure import evaluation

    examples = len(task.held_out or task)
    say(
        f"measuring ({effort}): about {evaluation.price(circuit, examples, effort):.0f} forwards of "
        f"{examples} prompts"
    )
    with stage("measuring") as report:
        return evaluation.evaluate(
            model,
            task,
            circuit,
            scores=scores,
            effort=effort,
            state=state,
            progress=report,
            **options.some(*MEASURED_WITH, "seed"),
        )
