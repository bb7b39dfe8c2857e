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
told beside. "Name mover" and "S-inhibition" are for tasks with positions named IO and S2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from circuitdiscovery.explanation.attention import Sights
from circuitdiscovery.explanation.cards import visible
from circuitdiscovery.explanation.head_scores import TOP
from circuitdiscovery.explanation.interventions import Ablated, Asked, Cut, Trials, other_words
from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.graph.nodes import letter_of
from circuitdiscovery.measure.estimates import Estimate
from circuitdiscovery.task.example import END, Example
from circuitdiscovery.task.task import Task

IO, S2 = "IO", "S2"
MAJORITY = 0.5  # of a head's attention, of the prompts, of an effect: more than all the rest together
ATTENDS = 0.3  # of a head's attention to one named position: three times an even share of ten tokens
MATTERS = 0.05  # of |F(M) - F(empty)|: parts of a smaller effect say little about what a head is for
# of the logit difference: a head that writes less moves nothing that matters, whatever it copies
DIRECT = 0.05
# of an effect: what a head does by its edge to the logits, or with another word, is then beside the point
LITTLE = 0.25
# of an effect hangs on one word, and of that on what is moved: an ablation may
# change several words, or flip the answer
PART = 0.25
# times an even share, on random tokens: the head looks back by itself, not only at these prompts' words
ABOVE_EVEN = 1.5

Found = tuple[str, tuple[str, ...]]  # a role and its evidence


@dataclass(frozen=True)
class Look:
    """What is seen of one head in plain runs.

    Args:
        node: which.
        direct: what it writes onto the logit difference.
        scores: as in headscores.py.
        promotes: the share, of the prompts in which the answer stands, where it is among
            the highest tokens of what the head writes.
        demotes: the same with the lowest.
    """

    node: str
    direct: Estimate
    scores: Mapping[str, float]
    promotes: float
    demotes: float


@dataclass(frozen=True)
class Head(Look):
    """The same with `effect`, the damage of ablating it."""

    effect: Estimate


@dataclass(frozen=True)
class Setting:
    """What the heads of a task have in common.

    Args:
        logit_diff: the model's, of which direct effects are parts.
        stands: the share of the prompts in which an answer stands before END.
        answer: the named position where it mostly stands.
        names: the named positions, END apart.
        even: the score `previous token` of a head that attends to all tokens
            alike; None where there are no such scores.
    """

    logit_diff: float
    stands: float
    answer: str | None
    names: tuple[str, ...]
    even: float | None


def standing(example: Example) -> set[int]:
    """The right answers that are tokens of the prompt before END."""
    return set(example.correct) & set(example.clean[: example.position])


def answer_position(task: Task) -> str | None:
    """The named position before END whose token is the answer in most of a task's examples."""
    named = [(name, at, e) for e in task.examples for name, at in e.positions.items() if at < e.position]
    answers = [name for name, at, e in named if e.clean[at] in e.correct]
    most = max(dict.fromkeys(answers), key=answers.count, default=None)
    return most if most is not None and answers.count(most) >= MAJORITY * len(task) else None


def word_positions(task: Task) -> tuple[str, ...]:
    """The named positions that are another one than END in some example."""
    return tuple(
        dict.fromkeys(name for e in task.examples for name, at in e.positions.items() if at != e.position)
    )


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
    return ablated, found | _by_words(asked, sights, setting, trials)


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
                f"{later} gives {weight:.2f} of its attention to {earlier}, where the same token stands.",
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


# ------------------------------------------------------------------ by what it
# writes, and through which edges it acts


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
        f"the answer stands at {setting.answer}"
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
            f"It writes {head.direct} onto the logit difference, {share:.0%} of the model's "
            f"{setting.logit_diff:.3g}."
        ),
        (
            "Ablating its edge to the logits alone costs "
            f"{_of(ablated.edges[_to_logits(head.node)], head, trials)}."
        ),
        f"END attends most to {_listed(sights, head)}.",
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
    parts = [f"{costs[letter]:.3g} by their {letter}" for letter in "qkv" if letter in costs]
    return "S-inhibition", (
        f"END gives {sights.pairs(head.node)[END, S2]:.2f} of its attention to {S2}.",
        (
            f"Ablating its edges into {', '.join(movers)} alone costs "
            f"{_of(through, head, trials)}{_in_brackets(parts)}."
        ),
        f"Ablating its edge to the logits alone costs {alone}.",
    )


# ------------------------------------------------------------------ by the words that it depends on


def _by_words(heads: Sequence[Head], sights: Sights, setting: Setting, trials: Trials) -> dict[str, Found]:
    """Heads that are for one word: they tell by their keys that it is
    repeated, or move it elsewhere by their values.

    What each step tells decides which heads the next one is for.
    """
    heads = [head for head in heads if sights.copies(head.node) or _may_carry(head, sights)]
    others = other_words(trials.task, setting.names, trials.rows) if heads else {}
    trials.work.ahead = trials.asking([head.node for head in heads], len(others))
    whole = trials.other_words([(head.node, name, "whole") for head in heads for name in others], others)
    own = {head.node: {name: whole[head.node, name, "whole"] for name in others} for head in heads}
    matching = [
        (head, *pair)
        for head in heads
        for pair in sights.copies(head.node)
        if _may_match(head, pair[1], own[head.node])
    ]
    carrying = [
        (head, name) for head in heads if (name := _carried(head, own[head.node], sights)) is not None
    ]
    keys: list[Asked] = [(head.node, earlier, "keys") for head, _, earlier in matching]
    values: list[Asked] = [(head.node, name, "values") for head, name in carrying]
    parts = trials.other_words(list(dict.fromkeys([*keys, *values])), others)
    found: dict[str, Found] = {}
    matching = [
        each
        for each, key in zip(matching, keys, strict=True)
        if _counts(parts[key], own[key[0]][key[1]], MAJORITY)
    ]
    # the first pair of each
    matching = list({head.node: (head, *pair) for head, *pair in reversed(matching)}.values())
    for later, earlier in dict.fromkeys((later, earlier) for _, later, earlier in matching):
        some = [head for head, *pair in matching if pair == [later, earlier]]
        otherwise = trials.attention_to_other([head.node for head in some], later, earlier, others[earlier])
        for head in some:
            cost = parts[head.node, earlier, "keys"]
            found[head.node] = _matcher(head, later, earlier, cost, otherwise[head.node], sights, trials)
    for head, name in carrying:
        value = parts[head.node, name, "values"]
        if head.node not in found and _counts(value, own[head.node][name], PART):
            found[head.node] = _carrier(head, name, own[head.node], value, sights, trials)
    return found


def _counts(part: Estimate, whole: float, share: float) -> bool:
    return part.low > 0 and part >= share * whole


def _may_match(head: Head, earlier: str, own: Mapping[str, Estimate]) -> bool:
    """Whether another word there does damage; whether by the keys is yet to be seen."""
    return earlier in own and _counts(own[earlier], head.effect, PART)


def _matcher(
    head: Head, later: str, earlier: str, cost: Estimate, otherwise: float, sights: Sights, trials: Trials
) -> Found:
    """Its keys tell that a word is repeated; it may look at the copy or away from it."""
    weight = sights.copies(head.node)[later, earlier]
    return "duplicate token", (
        (
            f"{later} repeats {earlier}'s token. Another word there, seen by its keys alone, costs "
            f"{_of(cost, head, trials)}."
        ),
        (
            f"{later} gives {weight:.2f} of its attention to {earlier}, {otherwise:.2f} where another word "
            "stands there."
        ),
    )


def _may_carry(head: Head, sights: Sights) -> bool:
    stays = sights.stays(head.node)
    return stays is not None and stays <= 1 - ATTENDS


def _carried(head: Head, own: Mapping[str, Estimate], sights: Sights) -> str | None:
    """The one name at which another word does damage, if it does; whether by the values is yet to be seen."""
    name = max(own, key=lambda each: own[each], default=None)
    if name is None or not _may_carry(head, sights) or not _counts(own[name], head.effect, PART):
        return None
    return None if any(each > LITTLE * own[name] for other, each in own.items() if other != name) else name


def _carrier(
    head: Head, name: str, own: Mapping[str, Estimate], values: Estimate, sights: Sights, trials: Trials
) -> Found:
    cost = own[name]
    others = [f"{each:.3g} with another at {other}" for other, each in own.items() if other != name]
    at_end = (sights.read(head.node, END) or 0.0) >= MAJORITY
    return f"mover of {name}", (
        (
            f"Writing what it does with another word at {name} costs "
            f"{_of(cost, head, trials)}{_in_brackets(others)}."
        ),
        f"Another word there, seen by its values alone, costs {values:.3g}.",
        f"Where the circuit reads it, it gives {sights.looks(head.node, name) or 0.0:.2f} of its "
        f"attention to {name}, "
        f"and {sights.stays(head.node):.2f} to the position itself.",
        *([f"END attends most to {_listed(sights, head)}."] if at_end else []),
    )


# ------------------------------------------------------------------ words


def _of(cost: Estimate, head: Head, trials: Trials) -> str:
    return f"{cost} of {trials.metric.name}; ablating it whole costs {head.effect:.3g}"


def _in_brackets(parts: Sequence[str]) -> str:
    return f" ({', '.join(parts)})" if parts else ""


def _listed(sights: Sights, head: Head) -> str:
    return ", ".join(f"{visible(name)} ({weight:.2f})" for name, weight in sights.attended(head.node)[:3])
