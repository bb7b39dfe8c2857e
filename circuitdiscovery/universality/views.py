"""What is known of a circuit's nodes that can be compared with another model's: roles, attention, activation.

- *role*: the roles that the evidence supports (`explain`).
- *attention*, of heads: mean weights between the task's named positions, what the answer's position gives to
  none of them, and the scores on random tokens (see explanation/head_scores.py).
- *activation*: how what a node writes differs from prompt to prompt, at each of the named positions. Nodes
  of two models are compared by linear CKA (Kornblith et al. 2019, arXiv 1905.00414), HSIC summed over the
  positions, with its unbiased estimator (Song et al. 2012): the cosine of the U-centred products of rows
  (Székely and Rizzo 2014). Without the correction any two wide nodes look alike.

Shapes: N prompts, P named positions, D d_model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from circuitdiscovery.circuit.circuit import Circuit
from circuitdiscovery.explanation.attention import Sights, observe, one_names
from circuitdiscovery.explanation.head_scores import PatternScores
from circuitdiscovery.graph.nodes import parsed
from circuitdiscovery.model.model import Model
from circuitdiscovery.task.example import Example
from circuitdiscovery.task.task import Task

ELSEWHERE = "elsewhere"  # what the answer's position gives to no named position
_FEWEST = 8  # prompts that models must share for activations to be compared
# view -> what it needs to be known of two circuits
NEEDS = {
    "role": "a node with a role",
    "attention": "heads in both",
    "activation": f"{_FEWEST} prompts that all models read and a named position that all have",
}
VIEWS = tuple(NEEDS)


@dataclass(frozen=True)
class Views:
    """What is known of a circuit's heads and MLPs.

    Args:
        nodes: in topological order.
        depth: [nodes], the layer over the number of layers.
        roles: of each node.
        attention: of each head, by what is measured.
        activation: [nodes, P * N * N] float32 of length 1: U-centred products of rows; None where prompts
            are too few. Zeros where a node writes the same in all.
    """

    nodes: tuple[str, ...]
    depth: np.ndarray
    roles: Mapping[str, frozenset[str]]
    attention: Mapping[str, Mapping[str, float]]
    activation: np.ndarray | None


def shared_rows(tasks: Sequence[Task]) -> list[list[int]]:
    """Of each task, the rows of the prompts that all have, in one order; rows without text are not shared
    unless the tokens are the same."""
    keys = [[each.text or each.clean for each in task.examples] for task in tasks]
    common = set.intersection(*map(set, keys))
    order = [key for key in dict.fromkeys(keys[0]) if key in common]
    return [[row.index(key) for key in order] for row in keys]


def shared_names(tasks: Sequence[Task]) -> list[str]:
    """The named positions, each by its one name, that every prompt of every task has."""
    found = [dict.fromkeys(one_names(task).values()) for task in tasks]
    return [
        name
        for name in found[0]
        if all(name in each for each in found)
        and all(name in example.positions for task in tasks for example in task.examples)
    ]


@torch.no_grad()
def views(
    model: Model,
    circuit: Circuit,
    task: Task,
    *,
    roles: Mapping[str, Sequence[str]],
    rows: Sequence[int],
    names: Sequence[str],
    by: Sequence[str],
    batch_size: int | None = None,
) -> Views:
    """The views of a circuit of whole nodes, from one plain run of the task's prompts.

    Args:
        roles: role -> nodes.
        rows, names: the prompts and named positions at which activations are compared.
        by: which views are asked for.
    """
    nodes = tuple(node for node in circuit.graph.inner if node in circuit.nodes)
    heads = [node for node in nodes if parsed(node).kind == "head"]
    sights = Sights(model, task, circuit, heads)
    place = {row: i for i, row in enumerate(rows)}
    wanted = "activation" in by and len(rows) >= _FEWEST and bool(names)
    written = torch.zeros(len(nodes), len(rows), len(names), model.d_model) if wanted else None
    which = [model.graph.source_index[node] for node in nodes]
    for seen in observe(model, task, batch_size) if {"attention", "activation"} & {*by} else ():
        if "attention" in by:
            sights.add(seen)
        if written is None:
            continue
        for i, row in enumerate(seen.batch.rows.tolist()):
            if row in place:
                at = _places(task.examples[row], names)
                written[:, place[row]] = seen.sources[which, i][:, at].float().cpu()
    scores = PatternScores({}, None)
    if heads and "attention" in by:
        scores = PatternScores.measure(model, task, batch_size=batch_size)
    return Views(
        nodes,
        np.array([parsed(node).layer / model.n_layers for node in nodes]),
        {node: frozenset(role for role, its in roles.items() if node in its) for node in nodes},
        {head: _attention(sights, scores, head) for head in heads} if "attention" in by else {},
        None if written is None else products(written),
    )


def _places(example: Example, names: Sequence[str]) -> list[int]:
    return [example.positions[name] for name in names]


def _attention(sights: Sights, scores: PatternScores, head: str) -> dict[str, float]:
    pairs = {f"{query} -> {key}": weight for (query, key), weight in sights.pairs(head).items()}
    named = sum(weight for pair, weight in pairs.items() if pair.startswith(f"{sights.end} -> "))
    return pairs | {ELSEWHERE: max(0.0, 1.0 - named)} | scores.of(head)


def products(written: Tensor) -> np.ndarray:
    """[nodes, P * N * N] of length 1: at each position, U-centred products of rows of [nodes, N, P, D]."""
    rows = written.transpose(1, 2).double()  # [nodes, P, N, D]
    rows = rows - rows.mean(2, keepdim=True)  # changes no U-centred product, but rounding
    n, gram = rows.shape[2], rows @ rows.mT
    gram.diagonal(dim1=-2, dim2=-1).zero_()
    total = gram.sum((-2, -1), keepdim=True) / ((n - 1) * (n - 2))
    gram = gram + total - (gram.sum(-2, keepdim=True) + gram.sum(-1, keepdim=True)) / (n - 2)
    gram.diagonal(dim1=-2, dim2=-1).zero_()
    flat = gram.flatten(1)
    size = flat.norm(dim=1, keepdim=True)
    return torch.where(size > 0, flat / size, 0.0).float().numpy()
