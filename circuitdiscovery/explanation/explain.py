"""What the nodes of a circuit do: a card for each node, with its role if the evidence supports one.

1. *effect*: the damage of ablating only this node in the full model, all its out-edges at once, with a
   bootstrap interval.
2. *direct*: direct logit attribution (Elhage et al. 2021, "A Mathematical Framework for Transformer
   Circuits"; Wang et al. 2022, arXiv 2211.00593, section 3.1): what the node writes at END, through the final
   norm with its scale frozen at the clean run, projected onto the mean unembedding of the correct answers
   minus that of the incorrect ones. Over all sources and biases it adds up to the logit difference, of a
   model that caps its logits (Gemma 2) to that before the cap.
3. *attention*: what a head attends to (attention.py), and the scores that distinguish kinds of heads
   (head_scores.py).
4. *lens*: what the node writes at END, through the same frozen norm and the unembedding (the logit lens,
   nostalgebraist 2020, of one node): the tokens that it promotes and suppresses most.
5. *roles*: the roles that the evidence supports (roles.py).
6. *units*: of an MLP the neurons, or the features of a dictionary, that matter most to the task, with what
   they write and where they are active (features.py).

Of a node that is split its parts have cards: effect, direct, lens and edges are the part's own; attention,
scores and roles, which are defined for heads, are those of the whole head.

2, 3 and 4 come from plain runs of all examples. Interventions (1, 6, and those that the roles need) also use
all examples; with `effort="quick"` they use 24 examples and the 30 nodes of largest score, with wider
intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from circuitdiscovery.arguments import guarded
from circuitdiscovery.circuit.circuit import Circuit
from circuitdiscovery.engine.ablation import Ablation, name_of, on_demand
from circuitdiscovery.engine.metrics import Metric, bind
from circuitdiscovery.engine.replacements import Replacements
from circuitdiscovery.engine.setup import Progress
from circuitdiscovery.errors import CircuitDiscoveryError, unknown
from circuitdiscovery.explanation.attention import observe
from circuitdiscovery.explanation.cards import Card, Explanation
from circuitdiscovery.explanation.features import (
    Dictionaries,
    check_labels,
    dictionaries,
    expected,
    probed,
    strongest,
)
from circuitdiscovery.explanation.head_scores import PERIOD, SEQUENCES, PatternScores
from circuitdiscovery.explanation.heads import Look, Setting, answer_position, word_positions
from circuitdiscovery.explanation.interventions import SEED, Trials
from circuitdiscovery.explanation.json_values import Edges
from circuitdiscovery.explanation.parts import effects_of
from circuitdiscovery.explanation.roles import find_roles
from circuitdiscovery.explanation.seen import EACH, Seen
from circuitdiscovery.graph.nodes import no_node, parsed, whole_of
from circuitdiscovery.measure import intervals
from circuitdiscovery.measure.estimates import drawn
from circuitdiscovery.measure.work import Work
from circuitdiscovery.model.model import Model
from circuitdiscovery.model.run import parameters
from circuitdiscovery.task.task import Task

EFFORTS = ("full", "quick")
PROMPTS = 3  # prompts shown whole: enough to see what changes from one to the next
EDGES = 10  # edges of a node on its card, in each direction
SEEN = 2.0  # the cost of a plain run that keeps sources and attention, in plain runs
ASKED = 0.4  # the share of heads that are expected to be tested with other words
QUICK_NODES = 30  # cards: more than anybody reads
QUICK_EXAMPLES = (
    24  # for interventions, always the same: with 64 examples, intervals become 1.6 times as wide
)
UNITS = 100  # of progress in a plain run of the examples
QUICK_TOKENS = 256  # for copy scores: a share is then accurate to 0.03


@guarded
@torch.no_grad()
def explain(
    model: Model,
    task: Task,
    circuit: Circuit,
    *,
    metric: str | Metric | Any | None = None,
    ablation: str | Ablation = "resample",
    prompts: int = PROMPTS,
    effort: str = "full",
    nodes: Sequence[str] | None = None,
    features: Any = None,
    texts: Any = None,
    labels: Sequence[str] | None = None,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Explanation:
    """Collect the evidence of what the nodes of a circuit do: a card for each head and MLP, or for some.

    Args:
        model: the model that the circuit is of.
        task: its held-out examples are used if it has some, else its examples.
        circuit: its nodes get cards, of a node that is split its parts. Its edges determine only the lists on
            cards and where heads are read.
        metric: measures the effects: a name, a `Metric` or a function of (logits, task); by default the
            task's own.
        ablation: what an ablated node's edges carry: a name, or your own (an object with `rows`).
        prompts: for how many of the first prompts attention and lens are kept whole, at least 1.
        effort: `full` runs every intervention on every example. `quick` runs them on 24 examples, makes cards
            for the 30 nodes of largest score, and takes copy scores on at most 256 tokens.
        nodes: the heads and MLPs that get a card, for any effort; the others are in `unmeasured`. The name of
            a node that is split stands for its parts.
        features: a dictionary of an MLP (`features.load_sae`), or MLPs with theirs: their cards have features
            in place of neurons.
        texts: where it is looked for what makes neurons and features active, as `features.top_activations`
            takes it; by default on the prompts of the interventions.
        labels: of the task's prompts, as `features.labels` names them: a linear probe of what each node
            writes at the answer's position tells, on held-out prompts, how well each can be read there.
        batch_size: examples in one forward; by default as many as bounded memory holds.
        progress: called with (done, expected) in hundredths of a plain run of the examples; True: a bar.

    Returns:
        The cards by node, the roles, and how they were measured. The cards are in index order, from the first
        layer to the last; what is printed of them begins with the node of largest effect.

    Raises:
        CircuitDiscoveryError: a circuit of another model; an unknown metric, ablation or effort; fewer than
            one prompt; a node that is not a head or MLP of the circuit; features of no MLP of the model;
            replacements that do not hold all nodes and parts.

    >>> import circuitdiscovery as cd
    >>> from circuitdiscovery.explanation.explain import explain
    >>> model = cd.load_model("toy")
    >>> task = cd.load_task("ioi", model)
    >>> explain(model, task, cd.Circuit.from_nodes(model.graph, ["a2.h0", "a1.h3"])).roles["name mover"]
    ('a2.h0',)
    """
    circuit.check_model(model)
    if effort not in EFFORTS:
        raise unknown("effort", effort, EFFORTS)
    if isinstance(ablation, Replacements) and (
        ablation.of.graph.splits or circuit.graph.without("positions").splits
    ):
        raise CircuitDiscoveryError(
            "cards take given replacements of whole nodes, of a circuit without parts other than positions: "
            f"name the ablation, ablation={name_of(ablation)!r}"
        )
    if type(prompts) is not int or prompts < 1:
        raise CircuitDiscoveryError(f"prompts must be a whole number of at least 1, not {prompts!r}")
    used, inner = (
        task.held_out or task,
        tuple(node for node in circuit.graph.inner if node in circuit.nodes),
    )
    chosen = _chosen(circuit, inner, nodes, effort)
    rows = _rows(len(used), effort)
    seen, some = (
        Seen(model, used, circuit, chosen, prompts, QUICK_TOKENS if effort == "quick" else None),
        used.select(rows),
    )
    known = dictionaries(model, features)
    bound, carried = bind(metric or used.metric, model, some, plain=False), on_demand(model, some, ablation)
    work = Work(
        progress, 2.0 * parameters(model) * sum(len(example.clean) for example in used.examples) / UNITS
    )
    trials = Trials(model, circuit.graph.whole, used, rows, bound, carried, batch_size, work)
    asked = [labels] if isinstance(labels, str) else list(labels or ())
    check_labels(model, used, chosen, asked)
    more = _Asked(known, texts, asked)
    cards = _cards(trials, circuit, seen, ablation, more) if chosen else {}
    return Explanation(
        model=model.name,
        task=task.title,
        part="examples" if task.held_out is None else "held_out",
        examples=len(used),
        metric=bound.name,
        ablation=name_of(ablation),
        effort=effort,
        intervened=len(rows),
        unmeasured=tuple(node for node in inner if node not in chosen),
        cards=cards,
        mean_over=getattr(carried, "mean_over", None),
    )


@dataclass(frozen=True)
class _Asked:
    """What cards show beside what is always measured (see `explain`)."""

    features: Dictionaries
    texts: Any
    labels: Sequence[str]


def _chosen(
    circuit: Circuit, inner: Sequence[str], nodes: Sequence[str] | None, effort: str
) -> tuple[str, ...]:
    """The heads and MLPs of the circuit that get cards, in index order."""
    if nodes is None:
        return (
            circuit.strongest(QUICK_NODES) if effort == "quick" and len(inner) > QUICK_NODES else tuple(inner)
        )
    found: set[str] = set()
    for node in nodes:
        split = circuit.graph.split_of(node)
        named = set(inner) & set((node,) if split is None else split.names)
        if not named:
            raise no_node(node, inner, "head or MLP", "heads and MLPs of this circuit")
        found |= named
    return tuple(node for node in inner if node in found)


def _rows(count: int, effort: str) -> tuple[int, ...]:
    """The examples that interventions run on, in order: all, or a fixed draw."""
    if effort == "full" or count <= QUICK_EXAMPLES:
        return tuple(range(count))
    return tuple(sorted(np.random.default_rng(0).choice(count, QUICK_EXAMPLES, replace=False).tolist()))


def _cards(
    trials: Trials, circuit: Circuit, seen: Seen, ablation: str | Ablation, more: _Asked
) -> dict[str, Card]:
    model, task, graph, heads, work = trials.model, trials.task, circuit.graph, seen.heads, trials.work
    parts = [node for node in seen.nodes if parsed(node).part]
    nodes = tuple(node for node in trials.graph.sources if node in heads or node in seen.nodes)
    names = word_positions(task)
    tokens = sum(len(example.clean) for example in task.examples)
    forward = 2.0 * parameters(model)
    looking = SEEN * forward * tokens + 2.0 * model.unembedding_size * (
        len(seen.watched) * len(task) * 2 / EACH + len(heads) * seen.copying.total
    )
    random = forward * SEQUENCES * (2 * PERIOD + 1) if heads else 0.0
    work.ahead = looking + random + trials.ablating(nodes) + ASKED * trials.asking(heads, len(names))
    work.ahead += expected(trials, seen.nodes)
    work.report()
    work.plan(looking)
    for observed in observe(model, task, trials.batch_size):
        seen.add(observed)
        work.did(looking * len(observed.batch) / len(task))
    work.plan(random)
    patterns = PatternScores({}, None)
    if heads:
        patterns = PatternScores.measure(
            model, task, batch_size=trials.batch_size, progress=lambda share: work.did(random * share)
        )
    of_direct = (
        intervals.means(np.stack(list(seen.direct.values())), drawn(len(task), SEED)) if seen.direct else []
    )
    direct = dict(zip(seen.direct, of_direct, strict=True))
    scores = {head: patterns.of(head) | seen.copying.of(head) for head in heads}
    looks = [
        Look(head, direct[head], seen.brought(head), scores.get(head, {}), *seen.shares(head))
        for head in seen.watched
    ]
    setting = Setting(
        logit_diff=float(seen.logit_diff.mean()),
        stands=float(seen.stands[0].mean()),
        wrong_stands=float(seen.stands[1].mean()),
        answer=answer_position(task),
        names=names,
        even=patterns.even,
    )
    ablated, roles = find_roles(looks, nodes, seen.sights, setting, trials)
    effects = {**ablated.nodes, **effects_of(parts, trials, graph, ablation)}
    units = strongest(trials, graph, seen.nodes, ablation, more.features, more.texts)
    read = probed(trials, seen.nodes, more.labels)
    work.ahead = 0.0
    work.report()
    return {
        node: Card(
            node=node,
            kind="head" if head in heads else "mlp",
            roles={role.name: role.evidence for role in roles.get(head, ())},
            effect=effects[node],
            direct=direct[node],
            attention=seen.sights.pairs(head) if head in heads else {},
            attended=seen.sights.attended(head) if head in heads else (),
            scores=scores.get(head, {}),
            patterns=seen.patterns(head),
            lens=seen.lens(node),
            in_edges=_edges(circuit, columns=[node in graph.reader_nodes(name) for name in graph.receivers]),
            out_edges=_edges(circuit, rows=[name == node for name in graph.sources]),
            units=units.get(node, ()),
            probes=read.get(node, {}),
        )
        for node, head in ((node, whole_of(node)) for node in seen.nodes)
    }


def _edges(
    circuit: Circuit, *, rows: Sequence[bool] | None = None, columns: Sequence[bool] | None = None
) -> Edges:
    """The circuit's strongest edges out of the sources in `rows`, or into the receivers in `columns`."""
    mask = circuit.mask.copy()
    mask &= np.array(rows)[:, None] if rows is not None else np.array(columns)
    found = [(name, circuit.score(name)) for name in circuit.graph.names(mask)]
    return tuple(sorted(found, key=lambda edge: -abs(edge[1]) if edge[1] is not None else 1.0)[:EDGES])
