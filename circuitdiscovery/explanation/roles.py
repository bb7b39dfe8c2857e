"""What attention heads do in a task, by the names of the literature, each with its
evidence; no role where no evidence holds.

| role | evidence |
| --- | --- |
| `induction` | END attends to what followed an earlier copy of its token, or the score (Olsson et al. 2022) |
| `name mover`, `mover` | writes the answer, a word of the prompt, onto the logits (Wang et al. 2022, 3.1) |
| `negative name mover`, `negative mover` | the same, against the answer |
| `S-inhibition` | END attends to S2; acts through the heads that move the answer, hardly alone (3.2) |
| `duplicate token` | attends to an earlier copy of a token, or tells by its keys that there is one (3.3) |
| `previous token` | attends to the token before: on random tokens, or from where the circuit reads it |
| `mover of X` | another word at X damages its values there, and at no other named position |

Where a head looks does not tell what it does with what it finds there: an earlier head may have carried a
name to another token, and a head can tell that a token is repeated by looking away from its copy. So what a
head moves is taken from what it writes and from interventions (see interventions.py), and where it looks is
told as well. "Name mover" and "S-inhibition" are for tasks with positions named IO and S2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from circuitdiscovery.explanation.attention import Sights
from circuitdiscovery.explanation.head_scores import TOP
from circuitdiscovery.explanation.heads import (
    ABOVE_EVEN,
    ATTENDS,
    DIRECT,
    IO,
    LITTLE,
    MAJORITY,
    MATTERS,
    S2,
    Found,
    Head,
    Look,
    Setting,
    attended_most,
    cost_of,
    in_brackets,
)
from circuitdiscovery.explanation.interventions import Ablated, Cut, Trials
from circuitdiscovery.explanation.roles_by_word import roles_by_word
from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.graph.nodes import letter_of
from circuitdiscovery.measure.estimates import Estimate
from circuitdiscovery.task.example import END


def find_roles(
    looks: Sequence[Look], nodes: Sequence[str], sights: Sights, setting: Setting, trials: Trials
) -> tuple[Ablated, Mapping[str, Found]]:
    """(the ablations of some nodes, the heads among them too; head ->
    (role, evidence), for those that have one).

    What a head does on the task's own prompts goes before what it does on random tokens. Interventions are
    made only where what is seen makes a role possible, and those of all heads together.
    """
    found = _induction(looks, sights, trials)
    rest = [look for look in looks if look.node not in found]
    moving = {look.node: sign for look in rest if (sign := _moves(look, sights, setting))}
    told = [node for node, sign in moving.items() if sign > 0]
    inhibiting = {
        look.node: cuts
        for look in rest
        if told and look.node not in moving and sights.pairs(look.node).get((END, S2), 0.0) >= ATTENDS
        if (cuts := _inhibition_cuts(trials.graph, look.node, told))
    }
    cuts = [*map(_to_logits, moving), *(cut for each in inhibiting.values() for cut in each.values())]
    ablated = trials.ablate(nodes, list(dict.fromkeys(cuts)))
    heads = [Head(**vars(look), effect=ablated.nodes[look.node]) for look in looks]
    for head in heads:
        if head.node in moving:
            found[head.node] = _moving(head, moving[head.node], ablated, sights, setting, trials)
        elif head.node in inhibiting and matters(head, ablated):
            costs = {name: ablated.edges[cut] for name, cut in inhibiting[head.node].items()}
            role = _inhibition(head, told, costs, sights, trials)
            found |= {} if role is None else {head.node: role}
    for rule in (
        lambda head: _duplicate(head, sights),
        _on_random_tokens,
        lambda head: _previous(head, sights, setting),
    ):
        found |= {
            head.node: role for head in heads if head.node not in found and (role := rule(head)) is not None
        }
    asked = [head for head in heads if head.node not in found and matters(head, ablated)]
    return ablated, found | roles_by_word(asked, sights, setting, trials)


def matters(head: Head, ablated: Ablated) -> bool:
    """Whether ablating a head costs enough for parts of that to say what it is for."""
    return head.effect.low > 0 and head.effect >= MATTERS * abs(ablated.full - ablated.empty)


# ------------------------------------------------------------------ by what a head looks at


def _induction(heads: Sequence[Look], sights: Sights, trials: Trials) -> dict[str, Found]:
    """Heads that find the token after an earlier copy of END's because of the copy."""
    weights = {head.node: sights.induction(head.node) or 0.0 for head in heads}
    looking = [node for node, weight in weights.items() if weight >= MAJORITY]
    without = trials.after_copies(looking) if looking else {}
    found: dict[str, Found] = {}
    for node in looking:
        if without.get(node, 1.0) <= MAJORITY * weights[node]:
            found[node] = (
                "induction",
                (
                    (
                        f"END gives {weights[node]:.2f} of its attention to what followed an earlier copy of "
                        "END's token."
                    ),
                    f"With another token in place of that copy it gives {without[node]:.2f} there.",
                ),
            )
    return found


def _duplicate(head: Look, sights: Sights) -> Found | None:
    for (later, earlier), weight in sights.copies(head.node).items():
        if weight >= ATTENDS:
            return "duplicate token", (
                f"{later} gives {weight:.2f} of its attention to {earlier}, which has the same token.",
            )
    return None


_LOOKS_AT = {
    "induction": "the second occurrence of a token attends to the token after the first",
    "duplicate token": "the second occurrence of a token attends to the first",
    "previous token": "a token attends to the one before it",
}


def _on_random_tokens(head: Look) -> Found | None:
    known = {role: head.scores[role] for role in _LOOKS_AT if role in head.scores}
    role = max(known, key=known.__getitem__, default=None)
    if role is None or known[role] < MAJORITY:
        return None
    return role, (f"On random tokens {_LOOKS_AT[role]} with {known[role]:.2f} of the weight.",)


def _previous(head: Look, sights: Sights, setting: Setting) -> Found | None:
    """A head that attends to the token before where its readers attend
    to; elsewhere, only more than evenly."""
    weight, score = sights.before(head.node), head.scores.get("previous token", 0.0)
    if weight is None or weight < MAJORITY or setting.even is None or score < ABOVE_EVEN * setting.even:
        return None
    return "previous token", (
        f"Where the circuit reads it, it gives {weight:.2f} of its attention to the token before.",
        f"On random tokens it gives {score:.2f} to the token before; an even share is {setting.even:.2f}.",
    )


# ------------------------------------------------------------------ by what it writes


def _moves(head: Look, sights: Sights, setting: Setting) -> int:
    """1 for a head that takes the answer from elsewhere to END, -1 for
    one that writes against it, 0 for others.
    """
    moves = sights.pairs(head.node)[END, END] <= 1 - ATTENDS
    if setting.stands < MAJORITY or setting.logit_diff <= 0 or not moves:
        return 0
    share = head.direct / setting.logit_diff
    if head.direct.low > 0 and share >= DIRECT and head.promotes >= MAJORITY:
        return 1
    return -1 if head.direct.high < 0 and share <= -DIRECT and head.demotes >= MAJORITY else 0


def _moving(
    head: Head, sign: int, ablated: Ablated, sights: Sights, setting: Setting, trials: Trials
) -> Found:
    """A name mover where the answer is the name at IO."""
    kind = "name mover" if setting.answer == IO else "mover"
    told, how = (head.promotes, "highest") if sign > 0 else (head.demotes, "lowest")
    where = (
        f"the answer is at {setting.answer}"
        if setting.answer
        else f"the answer stands in {setting.stands:.0%} of the prompts"
    )
    share = head.direct / setting.logit_diff
    return kind if sign > 0 else f"negative {kind}", (
        (
            f"In {told:.0%} of the prompts the answer is among the {TOP} {how} tokens of what it writes at "
            f"END; {where}."
        ),
        (
            f"It writes {head.direct} to the logit difference, {share:.0%} of the model's "
            f"{setting.logit_diff:.3g}."
        ),
        (
            "Ablating only its edge to the logits costs "
            f"{cost_of(ablated.edges[_to_logits(head.node)], head, trials)}."
        ),
        f"END attends most to {attended_most(sights, head)}.",
    )


def _to_logits(node: str) -> Cut:
    return node, (-1,)


def _inhibition_cuts(graph: Graph, node: str, movers: Sequence[str]) -> dict[str, Cut]:
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
    cuts = {"through": (node, tuple(into)), "alone": _to_logits(node)}
    return cuts | {letter: (node, tuple(some)) for letter, some in letters.items() if some}


def _inhibition(
    head: Head, movers: Sequence[str], costs: Mapping[str, Estimate], sights: Sights, trials: Trials
) -> Found | None:
    """A head that tells the name movers who is the subject."""
    through, alone = costs["through"], costs["alone"]
    if through < MAJORITY * head.effect or abs(alone) > LITTLE * head.effect:
        return None
    parts = [f"{costs[letter]:.3g} through their {letter}" for letter in "qkv" if letter in costs]
    return "S-inhibition", (
        f"END gives {sights.pairs(head.node)[END, S2]:.2f} of its attention to {S2}.",
        (
            f"Ablating only its edges into {', '.join(movers)} costs "
            f"{cost_of(through, head, trials)}{in_brackets(parts)}."
        ),
        f"Ablating only its edge to the logits costs {alone}.",
    )
