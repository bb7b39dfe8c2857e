"""Which neurons of an MLP, or which features of a dictionary of it, matter most to a task; what they write,
and where they are most active.

Units are ranked by attribution patching, to first order, with the gradient on the clean prompt (Syed et al.
2023, arXiv 2310.10348; search/unit_damages.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from circuitdiscovery.engine.ablation import Ablation
from circuitdiscovery.engine.memory import masked
from circuitdiscovery.engine.setup import Setup
from circuitdiscovery.errors import CircuitDiscoveryError, shown
from circuitdiscovery.explanation.cards import CardSnippet, CardUnit
from circuitdiscovery.explanation.interventions import Trials
from circuitdiscovery.features.active import top_activations
from circuitdiscovery.features.dictionary import Dictionary
from circuitdiscovery.features.labelling import labels as labels_of
from circuitdiscovery.features.places import places_of
from circuitdiscovery.features.probe_question import DRAWS, Question
from circuitdiscovery.features.probe_table import probes
from circuitdiscovery.features.sites import is_mlp
from circuitdiscovery.features.snippets import TopActivations
from circuitdiscovery.features.units import unit_of
from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.graph.nodes import mlp_name, parsed, part_name, whole_of
from circuitdiscovery.measure.estimates import Estimate
from circuitdiscovery.model.model import Model
from circuitdiscovery.model.run import parameters
from circuitdiscovery.search.unit_damages import ABLATIONS, NEURONS, features_of, unit_damages
from circuitdiscovery.task.task import Task

UNITS = 3  # of a card
SNIPPETS = 3  # of a unit
WORDS = 5  # that a unit writes
WINDOW = 8  # tokens of a snippet on each side
RANKING = 5.0  # the cost of ranking, in plain runs of the examples: two of them and a gradient

Dictionaries = Mapping[str, Dictionary]  # by node
Unit = tuple[str, Any, float | None]  # its name, what `top_activations` takes, its damage


def dictionaries(model: Model, given: Any) -> Dictionaries:
    """What `explain` was given as features, by node.

    Raises:
        CircuitDiscoveryError: no dictionary, or one that is not of an MLP of the model.
    """
    if given is None:
        return {}
    each = [(None, given)] if isinstance(given, Dictionary) else None
    each = list(given.items()) if isinstance(given, Mapping) else each
    if each is None or not all(isinstance(own, Dictionary) for _, own in each):
        raise CircuitDiscoveryError(
            "features must be a dictionary, as features.load_sae gives, or a mapping from nodes to them, not "
            f"{shown(given)}"
        )
    found: dict[str, Dictionary] = {}
    for node, own in each:
        if own.site is None or not is_mlp(own.site) or node not in (None, own.site):
            where = "" if node is None else f", here of {node}"
            raise CircuitDiscoveryError(f"features takes dictionaries of MLPs{where}, not one of {own.site}")
        unit_of(model, own[0])  # which checks the site and the width
        found[own.site] = own.to(model.device)
    return found


def expected(trials: Trials, nodes: Sequence[str]) -> float:
    """The approximate cost of `strongest`, in FLOP."""
    return trials.forward * (RANKING + 1) if any(parsed(node).kind == "mlp" for node in nodes) else 0.0


def strongest(
    trials: Trials,
    graph: Graph,
    nodes: Sequence[str],
    ablation: str | Ablation,
    known: Dictionaries,
    texts: Any,
) -> dict[str, tuple[CardUnit, ...]]:
    """The units of each MLP's card; of a part that is a neuron or a feature itself.

    Those of whole MLPs are ranked, which needs an ablation by `resample` or `zero` and a metric with a
    gradient on the clean prompt; by others there are none.

    Args:
        trials: the examples, the metric.
        graph: the circuit's, with the parts.
        nodes: that have cards.
        ablation: by which their effects are measured.
        known: node -> the dictionary whose features are meant in place of neurons.
        texts: where snippets are looked for; None: on the prompts of the examples.
    """
    units = {node: [own] for node in nodes if (own := _part(graph, node)) is not None}
    whole = [node for node in nodes if parsed(node).kind == "mlp" and not parsed(node).part]
    units |= _ranked(trials, whole, ablation, known)
    every = [own for some in units.values() for own in some]
    if not every:
        return {}
    prompts = [trials.task.examples[row].clean for row in trials.rows]
    first = texts is None and all(len(each) == 1 for each in prompts)  # nothing else to look at
    found = iter(_seen(trials, [own[1] for own in every], prompts if texts is None else texts, first))
    return {node: tuple(_shown(own, next(found)) for own in some) for node, some in units.items()}


def _part(graph: Graph, node: str) -> Unit | None:
    """A part that is a neuron or a feature."""
    split = graph.split_of(whole_of(node))
    if (
        split is None
        or split.kind not in ("neurons", "features")
        or node == split.names[-1]
        or node == split.node
    ):
        return None
    if split.kind == "neurons":
        return node, node, None
    number = int(parsed(node).part[1:])
    return (node, split.dictionary[number], None) if isinstance(split.dictionary, Dictionary) else None


def _ranked(
    trials: Trials, nodes: Sequence[str], ablation: str | Ablation, known: Dictionaries
) -> dict[str, list[Unit]]:
    model, blocks = trials.model, trials.model.blocks
    kinds = {
        layer: features_of(known[node], model.stream_unit) if node in known else NEURONS
        for node in nodes
        if node in known or blocks[parsed(node).layer].W_in is not None
        for layer in (parsed(node).layer,)
    }
    if not kinds or ablation not in ABLATIONS or trials.metric.share or trials.metric.divergence:
        return {}
    trials.work.plan(trials.forward * RANKING)
    some = trials.task.select(trials.rows)
    need = masked(model, trials.graph, some)
    setup = Setup(model, some, trials.graph, trials.metric, ablation, False, trials.batch_size, need)
    damages = unit_damages(setup, kinds, (1.0,))
    trials.work.did(trials.forward * RANKING)
    found: dict[str, list[Unit]] = {}
    for layer, each in damages.items():
        node, means = mlp_name(layer), each.mean(0)
        best = [int(i) for i in np.argsort(-abs(means), kind="stable")[:UNITS] if means[i] != 0]
        own = known.get(node)
        names = [part_name(node, f"{'n' if own is None else 'f'}{i}") for i in best]
        found[node] = [
            (name, name if own is None else own[i], float(means[i]))
            for name, i in zip(names, best, strict=True)
        ]
    return found


def _seen(trials: Trials, units: Sequence[Any], texts: Any, first: bool) -> list[TopActivations]:
    cost = 2.0 * parameters(trials.model) * sum(len(trials.task.examples[row].clean) for row in trials.rows)
    trials.work.plan(cost)
    how: dict[str, Any] = {"top": SNIPPETS, "window": WINDOW, "batch_size": trials.batch_size}
    found = top_activations(trials.model, list(units), texts, first=first, **how)
    trials.work.did(cost)
    return found


def _shown(unit: Unit, seen: TopActivations) -> CardUnit:
    name, _, damage = unit
    snippets = tuple(CardSnippet(each.tokens, each.activations, each.at) for each in seen.snippets)
    return CardUnit(name, damage, seen.promoted[:WORDS], seen.suppressed[:WORDS], snippets)


def check_labels(model: Model, task: Task, nodes: Sequence[str], labels: Sequence[str]) -> None:
    """Refuse labels that `probed` cannot ask for, before all the work.

    Raises:
        CircuitDiscoveryError: an unknown label; one of one kind, or that only one prompt has.
    """
    for label in labels:
        own = labels_of(task, label)
        if _sites(nodes):
            Question.of(places_of(model, task), own, None, None, DRAWS, 0)  # as `probes` does


def probed(trials: Trials, nodes: Sequence[str], labels: Sequence[str]) -> dict[str, dict[str, Estimate]]:
    """Node -> label -> the accuracy of a linear probe of what the node writes at the answer's position, on
    held-out prompts. Parts of a node other than neurons have none.

    Args:
        trials: the task, all of whose examples are used.
        nodes: that have cards.
        labels: of the task's prompts.
    """
    sites = _sites(nodes)
    found: dict[str, dict[str, Estimate]] = {node: {} for node in nodes}
    for label in labels if sites else ():
        table = probes(trials.model, trials.task, label, at=sites, batch_size=trials.batch_size)
        for site in sites:
            found[site][label] = table[site].scores.accuracy
    return found


def _sites(nodes: Sequence[str]) -> list[str]:
    """The nodes that have probes."""
    whole = [node for node in nodes if not parsed(node).part or parsed(node).part[1:].isdecimal()]
    return [node for node in whole if parsed(node).part[:1] in ("", "n")]
