"""How many edges two circuits share once their nodes are aligned, how sure that is, and what chance gives.

An edge here is (source, reader, letter): what a group of heads reads together counts for each of its heads in
the circuit, so that models with other groups can be compared.

The interval takes the aligned nodes as a sample of nodes: edges of one node stand or fall together, so that
they say less than as many independent ones. The variance of the Jaccard index is the jackknife's over nodes;
the interval is Clopper and Pearson's of as many independent edges as have this variance (Korn and Graubard
1998, for shares of clustered samples).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from circuitdiscovery.circuit.circuit import Circuit
from circuitdiscovery.graph.nodes import INPUT, LOGITS, letter_of, parsed
from circuitdiscovery.measure.estimates import Estimate
from circuitdiscovery.universality.matching import Pair

DRAWS = 1000  # random alignments
_TAIL = 0.025
Link = tuple[str, str, str]  # source, reader, letter


@dataclass(frozen=True)
class Chance:
    """The Jaccard index under random alignments.

    Args:
        mean, low, high: of the draws, and the interval that holds 95% of them.
        p: the share of the draws, the alignment itself counted as one, that reach the alignment's index.
    """

    mean: float
    low: float
    high: float
    p: float

    def __str__(self) -> str:
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}], p {self.p:.2g}"


def links(circuit: Circuit, letters: bool = True) -> frozenset[Link]:
    """The edges of a circuit of whole nodes; without letters where one of two graphs has none."""
    graph, inner, found = circuit.graph, {*circuit.nodes} & {*circuit.graph.inner}, set[Link]()
    for row, column in np.argwhere(circuit.mask).tolist():
        source, receiver = graph.sources[row], graph.receivers[column]
        for reader in graph.reader_nodes(receiver) or (LOGITS,):
            if reader in inner or reader == LOGITS:
                found.add((source, reader, letter_of(receiver) if letters else ""))
    return frozenset(found)


def moved(edges: frozenset[Link], partner: Mapping[str, str]) -> frozenset[Link]:
    """Edges by other names of their ends; those with an end that has none are left out."""
    names = {INPUT: INPUT, LOGITS: LOGITS} | dict(partner)
    return frozenset(
        (names[source], names[reader], letter)
        for source, reader, letter in edges
        if source in names and reader in names
    )


def jaccard(a: frozenset[Link], b: frozenset[Link], pairs: Sequence[Pair]) -> Estimate:
    """The Jaccard index of the edges of `a`, named as in `b`, and of `b`, over all edges of either; an edge
    whose end has no partner is not shared.
    """
    partner = {pair.a: pair.b for pair in pairs}
    # all edges by the names of b; of a, ends without a partner keep theirs, which no node of b has
    ends = {node for source, reader, _ in a for node in (source, reader)} - {INPUT, LOGITS}
    mine = moved(a, {node: partner.get(node, f"{node} of the other") for node in ends})
    union = sorted(mine | b)
    if not union:
        return Estimate(np.nan)
    shared = np.array([link in mine and link in b for link in union], dtype=float)
    return clustered_share(shared, [(source, reader) for source, reader, _ in union])


def clustered_share(shared: np.ndarray, ends: Sequence[tuple[str, str]]) -> Estimate:
    """The share of [edges] that are 1, with an interval over the nodes that they join; `input` and `logits`,
    which every circuit has, are no sample.
    """
    from scipy.special import betaincinv, stdtrit

    nodes = sorted({node for pair in ends for node in pair} - {INPUT, LOGITS})
    index, count, value = {node: i for i, node in enumerate(nodes)}, len(shared), float(shared.mean())
    if len(nodes) < 2:
        return Estimate(value)
    at = [[index[node] for node in {*pair} if node in index] for pair in ends]
    of_node, hits = np.zeros(len(nodes)), np.zeros(len(nodes))
    for its, hit in zip(at, shared, strict=True):
        of_node[its] += 1
        hits[its] += hit
    rest = count - of_node
    left = np.where(rest > 0, (shared.sum() - hits) / np.maximum(1, rest), value)
    variance = (len(nodes) - 1) / len(nodes) * float(((left - left.mean()) ** 2).sum())
    binomial = value * (1 - value)
    effective = float(min(count, binomial / variance)) if variance > 0 else float(count)
    effective = min(count, len(nodes)) if binomial == 0 else effective
    student = float(stdtrit(len(nodes) - 1, 1 - _TAIL) / stdtrit(max(1, count - 1), 1 - _TAIL))
    effective = min(float(count), effective / student**2)
    hit = value * effective
    low = float(betaincinv(hit, effective - hit + 1, _TAIL)) if hit > 0 else 0.0
    high = float(betaincinv(hit + 1, effective - hit, 1 - _TAIL)) if hit < effective else 1.0
    return Estimate(value, min(low, value), max(high, value))


def chance(
    a: frozenset[Link],
    b: frozenset[Link],
    nodes: tuple[Sequence[str], Sequence[str]],
    reached: float,
    *,
    by_depth: bool,
    seed: int,
) -> Chance:
    """The index under random one-to-one alignments of heads with heads and MLPs with MLPs; NaN of no edges.

    Args:
        nodes: the inner nodes of both, in topological order.
        reached: the alignment's index.
        by_depth: whether alignments keep the order of layers, nodes of one layer at random: what depth alone
            gives.
    """
    if not (a or b):
        return Chance(*[np.nan] * 4)
    rng = np.random.default_rng(seed)
    mine, theirs = (
        {kind: [i for i, node in enumerate(each) if parsed(node).kind == kind] for kind in ("head", "mlp")}
        for each in nodes
    )
    layers = [np.array([parsed(node).layer for node in each], dtype=int) for each in nodes]
    partner = np.full((DRAWS, len(nodes[0]) + 2), -1)
    partner[:, -2:] = len(nodes[1]), len(nodes[1]) + 1  # input and logits
    for draw in range(DRAWS):
        for kind, own in mine.items():
            count = min(len(own), len(theirs[kind]))
            chosen = [rng.permutation(each)[:count] for each in (own, theirs[kind])]
            if by_depth:
                chosen = [
                    each[np.argsort(layer[each], kind="stable")] if count else each
                    for each, layer in zip(chosen, layers, strict=True)
                ]
            partner[draw, chosen[0].astype(int)] = chosen[1].astype(int)
    letters = {letter: i for i, letter in enumerate(sorted({link[2] for link in a | b}))}
    first, second = (_indexed(each, names, letters) for each, names in zip((a, b), nodes, strict=True))
    there = np.zeros((len(nodes[1]) + 3, len(nodes[1]) + 3, len(letters) + 1), dtype=bool)  # -1: no partner
    there[tuple(second.T)] = True
    common = there[partner[:, first[:, 0]], partner[:, first[:, 1]], first[:, 2]].sum(1)  # [draws]
    values = common / np.maximum(1, len(a) + len(b) - common)
    low, high = np.quantile(values, (_TAIL, 1 - _TAIL)).tolist()
    p = float((1 + (values >= reached - 1e-12).sum()) / (DRAWS + 1))
    return Chance(float(values.mean()), low, high, p)


def _indexed(edges: frozenset[Link], nodes: Sequence[str], letters: Mapping[str, int]) -> np.ndarray:
    """[edges, 3]: source, reader and letter."""
    index = {name: i for i, name in enumerate((*nodes, INPUT, LOGITS))}
    return np.array(
        [(index[source], index[reader], letters[letter]) for source, reader, letter in sorted(edges)],
        dtype=int,
    ).reshape(-1, 3)
