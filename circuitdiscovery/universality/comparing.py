"""`circuits`: whether several models do a task by the same circuit.

1. Each model's task is drawn for its tokenizer, of the same words, so that most prompts are the same.
2. Of each circuit's heads and MLPs is measured what can be compared across models (views.py).
3. Of two models the nodes are aligned one to one, by the largest sum of similarities (matching.py).
4. Edges that both have under the alignment are counted, beside random alignments (overlap.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitdiscovery.arguments import guarded
from circuitdiscovery.circuit.circuit import Circuit
from circuitdiscovery.errors import CircuitDiscoveryError, shown, unknown
from circuitdiscovery.explanation.explain import EFFORTS, explain
from circuitdiscovery.files.disk import data_frame
from circuitdiscovery.graph.nodes import parsed
from circuitdiscovery.measure.estimates import Estimate
from circuitdiscovery.model.model import Model
from circuitdiscovery.task.task import Task
from circuitdiscovery.universality.matching import Pair, align
from circuitdiscovery.universality.overlap import Chance, chance, jaccard, links
from circuitdiscovery.universality.tasks import check_pairs, tasks_for
from circuitdiscovery.universality.views import NEEDS, VIEWS, shared_names, shared_rows, views
from circuitdiscovery.values import Value

if TYPE_CHECKING:
    import pandas as pd

_HEADS = 30  # of a circuit, the strongest, whose roles are looked for


@dataclass(frozen=True)
class Between:
    """Two circuits beside each other.

    Args:
        a, b: their labels.
        alignment: the pairs of nodes, in the order of a's nodes.
        jaccard: of the edges under the alignment, with a 95% interval over the nodes.
        null: under random alignments of nodes of the same kind.
        null_by_depth: under random ones that keep the order of layers: what depth alone gives.
    """

    a: str
    b: str
    alignment: tuple[Pair, ...]
    jaccard: Estimate
    null: Chance
    null_by_depth: Chance


@dataclass(frozen=True, eq=False, repr=False)
class SharedCircuits(Value):
    """The circuits of several models for one task, beside each other (see `circuits`).

    Args:
        task: its name.
        models: label -> the model's name.
        circuits: label -> its circuit, of whole nodes.
        prompts: how many prompts all models read, on which activations were compared.
        by: what nodes were aligned by.
        between: each two of them.
        roles: role -> label -> its nodes in that circuit.
        missing: what was asked for, too, but is known of no two of them.
    """

    task: str
    models: Mapping[str, str]
    circuits: Mapping[str, Circuit]
    prompts: int
    by: tuple[str, ...]
    between: tuple[Between, ...]
    roles: Mapping[str, Mapping[str, tuple[str, ...]]]
    missing: tuple[str, ...] = ()

    @property
    def alignment(self) -> dict[tuple[str, str], tuple[Pair, ...]]:
        """Of each two labels the pairs of nodes."""
        return {(each.a, each.b): each.alignment for each in self.between}

    @property
    def jaccard(self) -> dict[tuple[str, str], Estimate]:
        """Of each two labels the Jaccard index of the edges, with its interval."""
        return {(each.a, each.b): each.jaccard for each in self.between}

    @property
    def null(self) -> dict[tuple[str, str], Chance]:
        """Of each two labels the same under random alignments."""
        return {(each.a, each.b): each.null for each in self.between}

    @property
    def in_all(self) -> tuple[str, ...]:
        """The roles that some node has in every circuit."""
        return tuple(role for role, nodes in self.roles.items() if len(nodes) == len(self.circuits))

    @property
    def in_some(self) -> tuple[str, ...]:
        """The roles that some circuits have and others have not."""
        return tuple(role for role in self.roles if role not in self.in_all)

    def to_dataframe(self) -> pd.DataFrame:
        """One row per aligned pair: the labels, the nodes, their similarity and each view. Needs pandas."""
        return data_frame(
            [
                {"a": each.a, "b": each.b, "node of a": pair.a, "node of b": pair.b}
                | {"similarity": pair.similarity}
                | {view: pair.views.get(view) for view in self.by}
                for each in self.between
                for pair in each.alignment
            ]
        )

    @guarded
    def draw(self, path: str | Path, *, max_edges: int | None = 60) -> None:
        """Draw the circuits side by side: aligned nodes have the same number, edges that the first circuit
        has too are blue.

        Args:
            path: a .svg, .png, .pdf or .dot file.
            max_edges: of each circuit, the strongest whole paths; None draws all.
        """
        from circuitdiscovery.universality.side_by_side import draw

        draw(self, path, max_edges)

    def __str__(self) -> str:
        return "\n".join(self._said())

    def _said(self) -> Iterator[str]:
        sizes = ", ".join(f"{label} ({len(circuit)} edges)" for label, circuit in self.circuits.items())
        yield f"circuits of {self.task}: {sizes}"
        missing = f" (not by {', '.join(self.missing)})" if self.missing else ""
        yield f"aligned by {', '.join(self.by)}{missing}; {self.prompts} prompts that all models read"
        for view in self.missing:
            yield f"  {view} needs {NEEDS[view]}"
        for each in self.between:
            yield f"{each.a}, {each.b}: {len(each.alignment)} nodes aligned, Jaccard {each.jaccard}"
            yield f"  random alignments {each.null}; by depth alone {each.null_by_depth}"
        for name, roles in (("in all", self.in_all), ("in some", self.in_some)):
            yield f"roles {name}: {', '.join(roles) or 'none'}"
        for role, nodes in self.roles.items():
            its = "; ".join(f"{label}: {', '.join(nodes.get(label, ())) or '-'}" for label in self.circuits)
            yield f"  {role:<28} {its}"


@guarded
def circuits(
    of: Mapping[str, tuple[Model, Circuit]],
    task: Any,
    *,
    by: Sequence[str] = VIEWS,
    examples: int | None = None,
    effort: str = "quick",
    seed: int = 0,
    batch_size: int | None = None,
    progress: Any = None,
) -> SharedCircuits:
    """Compare the circuits that several models have for one task: nodes aligned one to one, the edges that
    they share under the alignment, and their roles.

    Args:
        of: at least two; label -> (model, its circuit).
        task: a name, a file or rows, drawn for each model's tokenizer of the words that all of them have; a
            `Task` where all have the same tokens; or label -> `Task`. Prompts of the same text are compared.
        by: what nodes are aligned by: role, attention, activation, or some of them. Activations need 8
            prompts that all models read, and a named position that all have.
        examples: of a task that is drawn.
        effort: of `explain`, which looks for the roles of the 30 strongest heads of circuits that carry none.
        seed: of the task and of the random alignments.
        batch_size: examples in one forward.
        progress: called with (circuits done, circuits in all).

    Returns:
        For each two circuits the alignment, the Jaccard index of the edges with an interval over the nodes,
        and what random alignments give; the roles of each.

    Raises:
        CircuitDiscoveryError: fewer than two circuits, a circuit of another model, an unknown view or effort,
            a task that some model cannot read; two circuits of which no view is known that was asked for.

    >>> import circuitdiscovery as cd
    >>> model = cd.load_model("toy")
    >>> task = cd.load_task("ioi", model, examples=16)
    >>> scores = cd.eap(model, task)
    >>> of = {"30": (model, scores.top(30)), "40": (model, scores.top(40))}
    >>> found = cd.universality.circuits(of, task, by=["attention", "activation"])
    >>> all(pair.a == pair.b for pair in found.alignment["30", "40"])
    True
    """
    _check(of, by, effort)
    models = {label: model for label, (model, _) in of.items()}
    drawn = tasks_for(models, task, examples=examples, seed=seed)
    whole = {label: circuit.whole for label, (_, circuit) in of.items()}
    rows, names = shared_rows(list(drawn.values())), shared_names(list(drawn.values()))
    roles, seen = dict[str, Mapping[str, Sequence[str]]](), {}
    for number, (label, (model, circuit)) in enumerate(of.items()):
        roles[label] = _roles(model, circuit, drawn[label], effort, batch_size)
        seen[label] = views(
            model,
            whole[label],
            drawn[label],
            roles=roles[label],
            rows=rows[number],
            names=names,
            by=by,
            batch_size=batch_size,
        )
        if progress is not None:
            progress(number + 1, len(of))
    letters = all(circuit.graph.split_qkv for circuit in whole.values())
    edges = {label: links(circuit, letters) for label, circuit in whole.items()}
    between = list[Between]()
    for a, b in combinations(of, 2):
        pairs = align(seen[a], seen[b], by)
        if pairs and not any(_known(pairs, by)):
            needs = "; ".join(f"{view} needs {NEEDS[view]}" for view in by)
            raise CircuitDiscoveryError(
                f"{a} and {b} cannot be aligned by {', '.join(by)}: {needs}; they share {len(rows[0])} "
                f"prompts and {len(names)} named positions"
            )
        index = jaccard(edges[a], edges[b], pairs)
        nulls = [
            chance(
                edges[a], edges[b], (seen[a].nodes, seen[b].nodes), float(index), by_depth=depth, seed=seed
            )
            for depth in (False, True)
        ]
        between.append(Between(a, b, pairs, index, *nulls))
    found = {role: None for each in roles.values() for role in each}
    every = [pair for each in between for pair in each.alignment]
    known = _known(every, by) if every else [True] * len(by)
    return SharedCircuits(
        next(iter(drawn.values())).name,
        {label: model.name for label, model in models.items()},
        whole,
        len(rows[0]),
        tuple(view for view, there in zip(by, known, strict=True) if there),
        tuple(between),
        {role: {label: tuple(its[role]) for label, its in roles.items() if its.get(role)} for role in found},
        tuple(view for view, there in zip(by, known, strict=True) if not there),
    )


def _known(pairs: Sequence[Pair], by: Sequence[str]) -> list[bool]:
    """Which views are known of both nodes of some pair."""
    return [any(view in pair.views for pair in pairs) for view in by]


def _check(of: Any, by: Sequence[str], effort: str) -> None:
    if not isinstance(of, Mapping) or len(of) < 2:
        raise CircuitDiscoveryError(
            'give at least two circuits with their models: {"a": (model, circuit), "b": (other, its_circuit)}'
        )
    check_pairs(of)
    if isinstance(by, str) or not by:
        raise CircuitDiscoveryError(f"by must be some of {', '.join(VIEWS)}, not {shown(by)}")
    for view in by:
        if view not in VIEWS:
            raise unknown("view", view, VIEWS)
    if effort not in EFFORTS:
        raise unknown("effort", effort, EFFORTS)


def _roles(
    model: Model, circuit: Circuit, task: Task, effort: str, batch_size: int | None
) -> Mapping[str, Sequence[str]]:
    """Those it carries, else those of its strongest heads."""
    whole = circuit.whole
    if circuit.roles and not circuit.graph.splits:
        return circuit.roles
    nodes = whole.strongest(_HEADS) if effort == "quick" else whole.nodes
    heads = [node for node in nodes if parsed(node).kind == "head"]
    if not heads:
        return {}
    return explain(model, task, whole, effort=effort, nodes=heads, prompts=1, batch_size=batch_size).roles
