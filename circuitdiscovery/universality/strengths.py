"""How strong the roles of a circuit's nodes are in a model: figures of head_scores.py and attention.py.

| role | strength |
| --- | --- |
| `previous token`, `duplicate token`, `induction` | the score of this name on random tokens |
| `name mover`, `negative name mover`, `backup name mover` | mean attention from END to IO |
| `S-inhibition` | mean attention from END to S2 |
| `mover of X` | mean attention to X from where the circuit reads the head |
| any other, one that an MLP has, or where a task has no such position | the direct effect on the logit \
difference |

Shapes: N examples of a batch, T positions, n examples in all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from circuitdiscovery.circuit.circuit import Circuit
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.explanation.attention import Observed, observe, one_names, read_at
from circuitdiscovery.explanation.head_scores import PatternScores
from circuitdiscovery.explanation.heads import IO, S2
from circuitdiscovery.features.attribution import direction_of
from circuitdiscovery.graph.nodes import head_name, head_of, parsed, whole_of
from circuitdiscovery.measure import intervals
from circuitdiscovery.measure.estimates import Estimate, drawn
from circuitdiscovery.model.model import Model
from circuitdiscovery.task.example import Example
from circuitdiscovery.task.task import Task

SCORES = ("previous token", "duplicate token", "induction")
CONTEXT = ("previous token", "induction")  # of which the highest of any head is told
_FROM_END = {"name mover": IO, "negative name mover": IO, "backup name mover": IO, "S-inhibition": S2}
_MOVER_OF = "mover of "
DIRECT = "direct effect"


@dataclass(frozen=True)
class Figure:
    """What a role's strength is: a score on random tokens, attention to a named position (from END, or from
    where the circuit reads the head), or else the direct effect."""

    score: str | None = None
    position: str | None = None
    from_end: bool = True

    def __str__(self) -> str:
        if self.score is not None:
            return f"{self.score} score"
        if self.position is None:
            return DIRECT
        return f"attention from {'END' if self.from_end else 'where it is read'} to {self.position}"

    @classmethod
    def of(cls, role: str, nodes: Sequence[str], task: Task, scored: bool) -> Figure:
        """The figure of a role; `scored`: whether there are scores on random tokens."""
        if not all(parsed(node).kind == "head" for node in nodes):
            return cls()
        if role in SCORES and scored:
            return cls(score=role)
        position = _FROM_END.get(role, role.removeprefix(_MOVER_OF) if role.startswith(_MOVER_OF) else None)
        return cls(position=position, from_end=role in _FROM_END) if position in one_names(task) else cls()


@dataclass(frozen=True)
class Strengths:
    """What is measured in one model.

    Args:
        figures: by role.
        nodes: by role and node.
        means: by role, over its nodes.
        direct: by node, the direct effect.
        highest: by score on random tokens, the head of the model that has the highest one, and this.
    """

    figures: Mapping[str, Figure]
    nodes: Mapping[str, Mapping[str, Estimate]]
    means: Mapping[str, Estimate]
    direct: Mapping[str, Estimate]
    highest: Mapping[str, tuple[str, float]]


def check_roles(circuit: Circuit) -> None:
    """Raise where a role is of something that is neither a head nor an MLP."""
    for role, nodes in circuit.roles.items():
        for node in nodes:
            if parsed(node).kind not in ("head", "mlp"):
                raise CircuitDiscoveryError(f"role {role!r} of {node}: only heads and MLPs have a strength")


@torch.no_grad()
def strengths(
    model: Model, task: Task, circuit: Circuit, *, batch_size: int | None = None, seed: int = 0
) -> Strengths:
    """The strength of each role of a circuit's nodes in a model.

    Args:
        task: all of its examples are run.
        circuit: with roles; a part of a node stands for the node. A role that no node has is left out.
        seed: of the bootstrap.

    Returns:
        With 95% intervals over the examples; scores on random tokens have none.
    """
    patterns = PatternScores.measure(model, task, batch_size=batch_size)
    roles = {
        role: tuple(dict.fromkeys(map(whole_of, nodes))) for role, nodes in circuit.roles.items() if nodes
    }
    figures = {role: Figure.of(role, nodes, task, bool(patterns.scores)) for role, nodes in roles.items()}
    named = dict.fromkeys(node for nodes in roles.values() for node in nodes)
    direct = {node: np.zeros(len(task)) for node in named}
    looks = {
        (role, node): np.zeros(len(task)) for role in roles if figures[role].position for node in roles[role]
    }
    for seen in observe(model, task, batch_size) if named else ():
        rows = seen.batch.rows.numpy(force=True)
        examples = [task.examples[row] for row in rows.tolist()]
        directions = torch.stack([direction_of(model, each) for each in examples])  # [N, D]
        for node in named:
            written = seen.written(model.graph.source_index[node])
            direct[node][rows] = (written * directions).sum(-1).double().numpy(force=True)
        reads = read_at(circuit.whole, seen) if any(not each.from_end for each in figures.values()) else {}
        for role, node in looks:
            looks[role, node][rows] = _looks(seen, node, figures[role], examples, reads).numpy(force=True)
    nodes, means = dict[str, dict[str, Estimate]](), dict[str, Estimate]()
    for role, some in roles.items():
        score = figures[role].score
        if score is None:
            values = [looks.get((role, node), direct[node]) for node in some]
            nodes[role] = {node: _mean(each, seed) for node, each in zip(some, values, strict=True)}
            means[role] = _mean(np.mean(values, axis=0), seed)
        else:
            nodes[role] = {node: Estimate(patterns.of(node)[score]) for node in some}
            means[role] = Estimate(float(np.mean(list(nodes[role].values()))))
    written_by = {node: _mean(each, seed) for node, each in direct.items()}
    return Strengths(figures, nodes, means, written_by, _highest(patterns))


def _looks(
    seen: Observed, node: str, figure: Figure, examples: Sequence[Example], reads: Mapping[str, Tensor]
) -> Tensor:
    """[N]: a head's attention to the figure's position; NaN in an example without this position, and where
    the circuit has no path from the head to the logits."""
    layer, head = head_of(node)
    pattern = seen.attention[layer, head]  # [N, T, T]
    rows = torch.arange(len(examples), device=pattern.device)
    if figure.from_end:
        looks = pattern[rows, seen.batch.position]
    elif node in reads:
        looks = torch.einsum("nq,nqk->nk", reads[node].to(pattern), pattern)
    else:
        looks = torch.full_like(pattern[:, 0], torch.nan)
    at = [each.positions.get(figure.position or "") for each in examples]
    places = torch.tensor([0 if each is None else each for each in at], device=pattern.device)
    missing = torch.tensor([each is None for each in at], device=pattern.device)
    return looks[rows, places].masked_fill(missing, torch.nan).double()


def _mean(values: np.ndarray, seed: int) -> Estimate:
    """Over the examples that have a value."""
    known = values[~np.isnan(values)]
    return intervals.mean(known, drawn(len(known), seed)) if len(known) else Estimate(np.nan)


def _highest(patterns: PatternScores) -> dict[str, tuple[str, float]]:
    found = dict[str, tuple[str, float]]()
    for name in CONTEXT:
        if name in patterns.scores:
            values = patterns.scores[name]
            layer, head = np.unravel_index(values.argmax(), values.shape)
            found[name] = head_name(int(layer), int(head)), float(values.max())
    return found
