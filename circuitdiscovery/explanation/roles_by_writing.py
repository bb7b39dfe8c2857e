"""Heads that write the answer onto the logits, or against it or a wrong one, and heads that act through those
that move it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from circuitdiscovery.explanation.attention import Sights
from circuitdiscovery.explanation.head_scores import TOP
from circuitdiscovery.explanation.heads import (
    BROUGHT,
    DIRECT,
    IO,
    LITTLE,
    MAJORITY,
    PART,
    S2,
    Head,
    Look,
    Role,
    Setting,
    attended_most,
    cost_of,
    in_brackets,
    matters,
)
from circuitdiscovery.explanation.interventions import WRONG, Ablated, Asked, Cut, Trials
from circuitdiscovery.explanation.words import other_wrong_answer
from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.graph.nodes import letter_of, parsed
from circuitdiscovery.task.example import END

# ------------------------------------------------------------------ the right answer


def brings(head: Look, setting: Setting) -> bool:
    """Whether a head brings the answer to END, which need not move the logit difference much: one that brings
    the wrong answer nearly as often waits for an earlier head to tell it which.
    """
    return setting.stands * head.promotes >= MAJORITY and head.brought >= BROUGHT


def moves(head: Look, setting: Setting) -> int:
    """1 for a head that moves the logit difference by bringing the answer
    to END, -1 for one that so writes against the answer, 0 for others.
    """
    if not _writes(head, setting):
        return 0
    if head.direct > 0:
        return int(brings(head, setting))
    return -int(setting.stands * head.demotes >= MAJORITY)


def _writes(head: Look, setting: Setting) -> bool:
    """Whether what a head brings from before END moves the logit difference, to either side."""
    surely = head.direct.low > 0 or head.direct.high < 0  # a single example has no interval
    return surely and abs(head.direct) >= DIRECT * setting.logit_diff > 0 and head.brought >= BROUGHT


def mover(head: Head, sign: int, ablated: Ablated, sights: Sights, setting: Setting, trials: Trials) -> Role:
    """A name mover where the answer is the name at IO."""
    kind = "name mover" if setting.answer == IO else "mover"
    told, how = (head.promotes, "highest") if sign > 0 else (head.demotes, "lowest")
    where = (
        f"the answer is at {setting.answer}"
        if setting.answer
        else f"the answer stands in {setting.stands:.0%} of the prompts"
    )
    those = "" if setting.stands == 1 else " with the answer in them"
    first = (
        f"In {told:.0%} of the prompts{those} the answer is among the {TOP} {how} tokens of what it writes "
        f"at {sights.end}; {where}."
    )
    evidence = (first, *_written(head, ablated, sights, setting, trials))
    return Role(kind if sign > 0 else f"negative {kind}", evidence, ablated.edges[to_logits(head.node)])


def _written(
    head: Head, ablated: Ablated, sights: Sights, setting: Setting, trials: Trials
) -> tuple[str, ...]:
    """What a head writes onto the logits, and where it finds it."""
    share = head.direct / setting.logit_diff
    alone = cost_of(ablated.edges[to_logits(head.node)], head, trials)
    capped = "" if trials.model.logit_cap is None else " before the cap on its logits"
    return (
        f"It writes {head.direct} to the logit difference, {share:.0%} of the model's "
        f"{setting.logit_diff:.3g}{capped}; {head.brought:.0%} of this, by size, comes from tokens before "
        f"{sights.end}.",
        f"Ablating only its edge to the logits costs {alone}.",
        attended_most(sights, head),
    )


def to_logits(node: str) -> Cut:
    """A node's edge to the logits."""
    return node, (-1,)


# ------------------------------------------------------------------ a wrong answer


def suppresses(head: Look, setting: Setting) -> bool:
    """Whether a head may write against a wrong answer because that stands in the prompt."""
    mostly = setting.wrong_stands * head.demotes_wrong >= MAJORITY
    return mostly and head.direct > 0 and _writes(head, setting)


def suppressors(
    heads: Sequence[Head], ablated: Ablated, sights: Sights, setting: Setting, trials: Trials
) -> dict[str, Role]:
    """Those heads whose help is lost where another word stands in place of the wrong answer."""
    other = other_wrong_answer(trials.task, trials.rows) if heads else None
    if other is None:
        return {}
    asked: list[Asked] = [(head.node, WRONG, "whole") for head in heads]
    costs = trials.other_words(asked, {WRONG: other})
    found: dict[str, Role] = {}
    for head in heads:
        cost = costs[head.node, WRONG, "whole"]
        if cost.low > 0 and cost >= PART * head.effect:
            first = (
                f"In {head.demotes_wrong:.0%} of the prompts with a wrong answer in them, this is among the "
                f"{TOP} lowest tokens of what it writes at {sights.end}."
            )
            second = (
                f"Writing what it writes with another word in its place costs {cost_of(cost, head, trials)}."
            )
            evidence = (first, second, *_written(head, ablated, sights, setting, trials))
            found[head.node] = Role("suppressor of the wrong answer", evidence, cost)
    return found


# ------------------------------------------------------------------ who is the subject


def inhibition_cuts(graph: Graph, node: str, movers: Sequence[str]) -> dict[str, Cut]:
    """A node's edges into all that movers read, to the logits, and into their queries, keys
    and values where there are any of a letter.

    Nothing of a node that no mover reads, such as one that comes after them.
    """
    row = graph.source_index[node]
    read = [not set(graph.reader_nodes(name)).isdisjoint(movers) for name in graph.receivers]
    # for a group, all of its heads
    into = [column for column, one in enumerate(read) if one and graph.allowed[row, column]]
    if not into:
        return {}
    letters = {
        letter: [column for column in into if letter_of(graph.receivers[column]) == letter]
        for letter in "qkv"
    }
    cuts = {"through": (node, tuple(into)), "alone": to_logits(node)}
    return cuts | {letter: (node, tuple(some)) for letter, some in letters.items() if some}


def inhibition(
    head: Head,
    movers: Sequence[str],
    cuts: Mapping[str, Cut],
    ablated: Ablated,
    sights: Sights,
    trials: Trials,
) -> Role | None:
    """A head that tells the name movers after it who is the subject."""
    costs = {name: ablated.edges[cut] for name, cut in cuts.items()}
    through, alone = costs["through"], costs["alone"]
    if not matters(head, ablated) or through < MAJORITY * head.effect or abs(alone) > LITTLE * head.effect:
        return None
    into = [mover for mover in movers if parsed(mover).layer > parsed(head.node).layer]
    parts = [f"{costs[letter]:.3g} through their {letter}" for letter in "qkv" if letter in costs]
    evidence = (
        f"{sights.end} gives {sights.weight(head.node, END, S2):.2f} of its attention to {S2}.",
        (
            f"Ablating only its edges into {', '.join(into)} costs "
            f"{cost_of(through, head, trials)}{in_brackets(parts)}."
        ),
        f"Ablating only its edge to the logits costs {alone}.",
    )
    return Role("S-inhibition", evidence, through)
