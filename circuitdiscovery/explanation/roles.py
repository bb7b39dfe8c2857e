"""What attention heads do in a task, by the names of the literature, each with its
evidence; no role where no evidence holds.

| role | evidence |
| --- | --- |
| `induction` | END attends to what followed an earlier copy of its token, or the score (Olsson et al. 2022) |
| `name mover`, `mover` | brings the answer, a word of the prompt, to the logits (Wang et al. 2022, 3.1) |
| `negative name mover`, `negative mover` | the same, against the right answer |
| `suppressor of the wrong answer` | writes against a wrong answer that stands in the prompt, because of it |
| `S-inhibition` | END attends to S2; acts through the heads that move the answer, hardly alone (3.2) |
| `duplicate token` | attends to a copy because it is one, or tells by its keys that there is one (3.3) |
| `previous token` | attends to the token before: on random tokens, or from where the circuit reads it |
| `mover of X` | another word at X damages its values there, and at no other named position |

1. Where a head looks does not tell what it does with what it finds there: an earlier head may have carried
   a name to another token, and a head can tell that a token is repeated by looking away from its copy. So
   what a head moves is taken from what it writes and from interventions (see interventions.py), and where it
   looks is told as well. "Name mover" and "S-inhibition" are for tasks with positions named IO and S2.
2. A mover brings the answer to END: what it writes onto the logit difference comes from tokens before END.
   A head that makes more, or less, of what earlier heads have brought to END is not a mover.
3. A suppressor of the wrong answer helps the right one; a negative mover writes against the right one. Where
   they attend to the word that they suppress, both are copy suppression (McDougall et al. 2023, arXiv
   2310.04625).
4. S-inhibition is judged by all heads of the model that bring the answer to END, whether the circuit has
   them or not, and even if they write little onto the logit difference: some bring both names.
5. A head has every role that its evidence supports, the one of largest damage first. There are two
   exceptions: an induction head is not named a mover of what it finds as well, and what a word at one
   position does in a head is asked only where no other role is found.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from circuitdiscovery.explanation.attention import Sights
from circuitdiscovery.explanation.heads import (
    ABOVE_EVEN,
    ATTENDS,
    MAJORITY,
    S2,
    Head,
    Look,
    Role,
    Setting,
    matters,
)
from circuitdiscovery.explanation.interventions import Ablated, Trials
from circuitdiscovery.explanation.roles_by_word import roles_by_word
from circuitdiscovery.explanation.roles_by_writing import (
    brings,
    inhibition,
    inhibition_cuts,
    mover,
    moves,
    suppresses,
    suppressors,
    to_logits,
)
from circuitdiscovery.explanation.words import other_word
from circuitdiscovery.task.example import END

Roles = Mapping[str, Sequence[Role]]  # by head, the strongest role first


def find_roles(
    watched: Sequence[Look], nodes: Sequence[str], sights: Sights, setting: Setting, trials: Trials
) -> tuple[Ablated, Roles]:
    """The roles of the heads among some nodes.

    Interventions are made only where what is seen makes a role possible, and those of all heads together.

    Args:
        watched: these heads, and others of the model, which may bring the answer too.
        nodes: what is ablated.
        sights, setting, trials: of these heads, of the task, and to intervene with.

    Returns:
        (the ablations of the nodes, the roles of the heads that have some)
    """
    looks = [look for look in watched if look.node in nodes]
    finding, repeating = (find(looks, sights, trials) for find in (_induction, _duplicates))
    movers = [look.node for look in watched if brings(look, setting)]
    signs = {look.node: moves(look, setting) for look in looks if look.node not in finding}
    moving = {node: sign for node, sign in signs.items() if sign}
    suppressing = [look.node for look in looks if suppresses(look, setting)]
    inhibiting = {
        look.node: cuts
        for look in looks
        if sights.weight(look.node, END, S2) >= ATTENDS
        if (cuts := inhibition_cuts(trials.graph, look.node, movers))
    }
    cuts = [
        *map(to_logits, [*moving, *suppressing]),
        *(cut for each in inhibiting.values() for cut in each.values()),
    ]
    ablated = trials.ablate(nodes, list(dict.fromkeys(cuts)))
    heads = [Head(**vars(look), effect=ablated.nodes[look.node]) for look in looks]
    against = suppressors(
        [head for head in heads if head.node in suppressing], ablated, sights, setting, trials
    )
    found: dict[str, list[Role]] = {}
    for head in heads:
        node = head.node
        roles = [
            mover(head, moving[node], ablated, sights, setting, trials) if node in moving else None,
            against.get(node),
            inhibition(head, movers, inhibiting[node], ablated, sights, trials)
            if node in inhibiting
            else None,
            finding.get(node),
            repeating.get(node),
            _on_random_tokens(head),
            _previous(head, sights, setting),
        ]
        by_name: dict[str, Role] = {}
        for role in roles:
            if role is not None:
                by_name.setdefault(role.name, role)
        found[node] = sorted(by_name.values(), key=lambda role: -abs(role.cost))
    asked = [head for head in heads if not found[head.node] and matters(head, ablated)]
    for node, role in roles_by_word(asked, sights, setting, trials).items():
        found[node] = [role]
    return ablated, {node: roles for node, roles in found.items() if roles}


# ------------------------------------------------------------------ by what a head looks at


def _induction(heads: Sequence[Look], sights: Sights, trials: Trials) -> dict[str, Role]:
    """Heads that find the token after an earlier copy of END's because of the copy."""
    weights = {head.node: sights.induction(head.node) or 0.0 for head in heads}
    looking = [node for node, weight in weights.items() if weight >= MAJORITY]
    without = trials.after_copies(looking) if looking else {}
    found: dict[str, Role] = {}
    for node in looking:
        if without.get(node, 1.0) <= MAJORITY * weights[node]:
            evidence = (
                (
                    f"{sights.end} gives {weights[node]:.2f} of its attention to what followed an "
                    f"earlier copy of {sights.end}'s token."
                ),
                f"With another token in place of that copy it gives {without[node]:.2f} there.",
            )
            found[node] = Role("induction", evidence)
    return found


def _duplicates(heads: Sequence[Look], sights: Sights, trials: Trials) -> dict[str, Role]:
    """Heads that attend to an earlier copy of a token because it is one; many
    look at a place, such as the first token, whatever stands there.
    """
    looking: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for head in heads:
        for pair, weight in sights.copies(head.node).items():
            if weight >= max(ATTENDS, ABOVE_EVEN * sights.even(pair)):
                looking[pair][head.node] = weight
    found: dict[str, Role] = {}
    for (later, earlier), weights in looking.items():
        other = other_word(trials.task, earlier, trials.rows, trials.model.tokenizer)
        without = trials.attention_to_other(list(weights), later, earlier, other) if other else {}
        for node, weight in weights.items():
            if without.get(node, 1.0) <= MAJORITY * weight:
                evidence = (
                    f"{later} gives {weight:.2f} of its attention to {earlier}, which has the same token.",
                    f"With another word at {earlier} it gives {without[node]:.2f} there.",
                )
                found.setdefault(node, Role("duplicate token", evidence))
    return found


_LOOKS_AT = {
    "induction": "the second occurrence of a token attends to the token after the first",
    "duplicate token": "the second occurrence of a token attends to the first",
    "previous token": "a token attends to the one before it",
}


def _on_random_tokens(head: Look) -> Role | None:
    known = {role: head.scores[role] for role in _LOOKS_AT if role in head.scores}
    role = max(known, key=known.__getitem__, default=None)
    if role is None or known[role] < MAJORITY:
        return None
    return Role(role, (f"On random tokens {_LOOKS_AT[role]} with {known[role]:.2f} of the weight.",))


def _previous(head: Look, sights: Sights, setting: Setting) -> Role | None:
    """A head that attends to the token before where its readers attend
    to; elsewhere, only more than evenly."""
    weight, score = sights.before(head.node), head.scores.get("previous token", 0.0)
    if weight is None or weight < MAJORITY or setting.even is None or score < ABOVE_EVEN * setting.even:
        return None
    evidence = (
        f"Where the circuit reads it, it gives {weight:.2f} of its attention to the token before.",
        f"On random tokens it gives {score:.2f} to the token before; an even share is {setting.even:.2f}.",
    )
    return Role("previous token", evidence)
