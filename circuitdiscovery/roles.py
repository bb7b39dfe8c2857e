"""What attention heads do in a task, by the names of the literature, each with its evidence; no role where no evidence holds.

| role | evidence |
| --- | --- |
| `induction` | END attends to what followed an earlier copy of its token; or the score on random tokens (Olsson et al. 2022) |
| `name mover`, `mover` | writes the answer, which stands in the prompt, onto the logit difference (Wang et al. 2022, section 3.1) |
| `negative name mover`, `negative mover` | the same, against the answer |
| `S-inhibition` | END attends to S2; acts through the heads that move the answer, hardly on its own (section 3.2) |
| `duplicate token` | attends to an earlier copy of a token, or tells by its keys alone that there is one (section 3.3) |
| `previous token` | attends to the token before: on random tokens, or from where the circuit reads it |
| `mover of X` | its values take the word at X from elsewhere: another word damages it there, and at no other named position |

Where a head looks does not tell what it does with what it finds there: an earlier head may have carried a name to another token,
and a head can tell that a token is repeated by looking away from its copy. So what a head moves is taken from what it writes and
from interventions (see interventions.py), and where it looks is told beside. "Name mover" and "S-inhibition" are for tasks with
positions named IO and S2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from circuitdiscovery.attention import Sights
from circuitdiscovery.cards import visible
from circuitdiscovery.encoder import Example
from circuitdiscovery.evaluation import Estimate
from circuitdiscovery.graph import Graph, letter_of
from circuitdiscovery.headscores import TOP
from circuitdiscovery.interventions import Depends, Trials
from circuitdiscovery.task import Task
from circuitdiscovery.taskfile import END

IO, S2 = "IO", "S2"
MAJORITY = 0.5  # of a head's attention, of the prompts, of an effect: more than all the rest together
ATTENDS = 0.3  # of a head's attention to one named position: three times an even share of ten tokens
MATTERS = 0.05  # of |F(M) - F(empty)|: parts of a smaller effect say little about what a head is for
DIRECT = 0.05  # of the logit difference: a head that writes less moves nothing that matters, whatever it copies
LITTLE = 0.25  # of an effect: what a head does by its edge to the logits, or with another word, is then beside the point
PART = 0.25  # of an effect hangs on one word, and of that on what is moved: an ablation may change several words, or flip the answer
ABOVE_EVEN = 1.5  # times an even share, on random tokens: the head looks back by itself, not only at these prompts' words

Found = tuple[str, tuple[str, ...]]  # a role and its evidence


@dataclass(frozen=True)
class Head:
    """What was measured of one head.

    Args:
        node: which.
        effect: damage of ablating it.
        direct: what it writes onto the logit difference.
        scores: as in headscores.py.
        promotes: the share, of the prompts in which the answer stands, where it is among the highest tokens of what the head writes.
        demotes: the same with the lowest.
    """

    node: str
    effect: Estimate
    direct: Estimate
    scores: Mapping[str, float]
    promotes: float
    demotes: float


@dataclass(frozen=True)
class Setting:
    """What the heads of a task have in common.

    Args:
        span: |F(M) - F(empty)|, in the metric that effects are measured in.
        logit_diff: the model's, of which direct effects are parts.
        stands: the share of the prompts in which an answer stands before END.
        answer: the named position where it mostly stands.
        names: the named positions, END apart.
        even: the score `previous token` of a head that attends to all tokens alike; None where there are no such scores.
    """

    span: float
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
    return tuple(dict.fromkeys(name for e in task.examples for name, at in e.positions.items() if at != e.position))


def find_roles(heads: Sequence[Head], sights: Sights, setting: Setting, trials: Trials) -> Mapping[str, Found]:
    """Node -> (role, evidence), for the heads that have one.

    What a head does on the task's own prompts goes before what it does on random tokens.
    """
    found: dict[str, Found] = {}

    def look(rule: Callable[[Head], Found | None]) -> None:
        for head in heads:
            if head.node not in found and (role := rule(head)) is not None:
                found[head.node] = role

    found |= _induction(heads, sights, trials)
    look(lambda head: _mover(head, sights, setting, trials))
    movers = [node for node, (role, _) in found.items() if role in ("name mover", "mover")]
    look(lambda head: _inhibition(head, movers, sights, setting, trials))
    look(lambda head: _duplicate(head, sights))
    look(_on_random_tokens)
    look(lambda head: _previous(head, sights, setting))
    rest = [head for head in heads if head.node not in found and _matters(head, setting)]
    return found | _by_words(rest, sights, setting, trials)


def _matters(head: Head, setting: Setting) -> bool:
    return head.effect.low > 0 and head.effect >= MATTERS * setting.span


# ------------------------------------------------------------------ by what a head looks at


def _induction(heads: Sequence[Head], sights: Sights, trials: Trials) -> dict[str, Found]:
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
                    f"END gives {weights[node]:.2f} of its attention to what followed an earlier copy of END's token.",
                    f"With another token in place of that copy it gives {without[node]:.2f} there.",
                ),
            )
    return found


def _duplicate(head: Head, sights: Sights) -> Found | None:
    for (later, earlier), weight in sights.copies(head.node).items():
        if weight >= ATTENDS:
            return "duplicate token", (f"{later} gives {weight:.2f} of its attention to {earlier}, where the same token stands.",)
    return None


_LOOKS_AT = {
    "induction": "the second occurrence of a token attends to the token after the first",
    "duplicate token": "the second occurrence of a token attends to the first",
    "previous token": "a token attends to the one before it",
}


def _on_random_tokens(head: Head) -> Found | None:
    known = {role: head.scores[role] for role in _LOOKS_AT if role in head.scores}
    role = max(known, key=known.__getitem__, default=None)
    if role is None or known[role] < MAJORITY:
        return None
    return role, (f"On random tokens {_LOOKS_AT[role]} with {known[role]:.2f} of the weight.",)


def _previous(head: Head, sights: Sights, setting: Setting) -> Found | None:
    """A head that attends to the token before where its readers attend to; elsewhere, only more than evenly."""
    weight, score = sights.before(head.node), head.scores.get("previous token", 0.0)
    if weight is None or weight < MAJORITY or setting.even is None or score < ABOVE_EVEN * setting.even:
        return None
    return "previous token", (
        f"Where the circuit reads it, it gives {weight:.2f} of its attention to the token before.",
        f"On random tokens it gives {score:.2f} to the token before; an even share is {setting.even:.2f}.",
    )


# ------------------------------------------------------------------ by what it writes, and through which edges it acts


def _mover(head: Head, sights: Sights, setting: Setting, trials: Trials) -> Found | None:
    """A head that takes the answer from elsewhere to END; a name mover where the answer is the name at IO."""
    moves = sights.pairs(head.node)[END, END] <= 1 - ATTENDS
    if setting.stands < MAJORITY or setting.logit_diff <= 0 or not moves:
        return None
    share = head.direct / setting.logit_diff
    kind = "name mover" if setting.answer == IO else "mover"
    if head.direct.low > 0 and share >= DIRECT and head.promotes >= MAJORITY:
        return kind, _moving(head, head.promotes, "highest", share, sights, setting, trials)
    if head.direct.high < 0 and share <= -DIRECT and head.demotes >= MAJORITY:
        return f"negative {kind}", _moving(head, head.demotes, "lowest", share, sights, setting, trials)
    return None


def _moving(head: Head, told: float, how: str, share: float, sights: Sights, setting: Setting, trials: Trials) -> tuple[str, ...]:
    where = f"the answer stands at {setting.answer}" if setting.answer else f"the answer stands in {setting.stands:.0%} of the prompts"
    return (
        f"In {told:.0%} of the prompts the answer is among the {TOP} {how} tokens of what it writes at END; {where}.",
        f"It writes {head.direct} onto the logit difference, {share:.0%} of the model's {setting.logit_diff:.3g}.",
        f"Ablating its edge to the logits alone costs {_of(trials.edges(head.node, [-1]), head, trials)}.",
        f"END attends most to {_listed(sights, head)}.",
    )


def _inhibition(head: Head, movers: Sequence[str], sights: Sights, setting: Setting, trials: Trials) -> Found | None:
    """A head that tells the name movers who is the subject."""
    weight = sights.pairs(head.node).get((END, S2), 0.0)
    if weight < ATTENDS or not movers or not _matters(head, setting):
        return None
    graph = trials.bench.graph
    into = _columns(graph, head.node, movers)
    through, alone = trials.edges(head.node, into), trials.edges(head.node, [-1])
    if through < MAJORITY * head.effect or abs(alone) > LITTLE * head.effect:
        return None
    letters = {letter: [column for column in into if letter_of(graph.receivers[column]) == letter] for letter in "qkv"}
    parts = [f"{trials.edges(head.node, some):.3g} by their {letter}" for letter, some in letters.items() if some]
    return "S-inhibition", (
        f"END gives {weight:.2f} of its attention to {S2}.",
        f"Ablating its edges into {', '.join(movers)} alone costs {_of(through, head, trials)}{_in_brackets(parts)}.",
        f"Ablating its edge to the logits alone costs {alone}.",
    )


def _columns(graph: Graph, node: str, readers: Sequence[str]) -> list[int]:
    """The receivers of some heads (or of their groups) that a node has an edge to."""
    row = graph.source_index[node]
    read = [not set(graph.reader_nodes(name)).isdisjoint(readers) for name in graph.receivers]
    return [column for column, one in enumerate(read) if one and graph.allowed[row, column]]


# ------------------------------------------------------------------ by the words that it depends on


def _by_words(heads: Sequence[Head], sights: Sights, setting: Setting, trials: Trials) -> dict[str, Found]:
    """Heads that are for one word: they tell by their keys that it is repeated, or move it elsewhere by their values."""
    nodes = [head.node for head in heads]
    depends = {name: trials.other_word(nodes, name) for name in setting.names} if heads else {}
    found: dict[str, Found] = {}
    for head in heads:
        own = {name: each[head.node] for name, each in depends.items() if each}
        role = _matcher(head, own, sights, trials) or _carrier(head, own, sights, trials)
        if role is not None:
            found[head.node] = role
    return found


def _counts(part: Estimate, whole: float, share: float) -> bool:
    return part.low > 0 and part >= share * whole


def _matcher(head: Head, own: Mapping[str, Depends], sights: Sights, trials: Trials) -> Found | None:
    """It may look at the copy or away from it."""
    for (later, earlier), weight in sights.copies(head.node).items():
        cost = own.get(earlier)
        if cost is None or not _counts(cost.whole, head.effect, PART) or not _counts(cost.keys, cost.whole, MAJORITY):
            continue
        otherwise = trials.attention_to_other(head.node, later, earlier)
        return "duplicate token", (
            f"{later} repeats {earlier}'s token. Another word there, seen by its keys alone, costs {_of(cost.keys, head, trials)}.",
            f"{later} gives {weight:.2f} of its attention to {earlier}, {otherwise:.2f} where another word stands there.",
        )
    return None


def _carrier(head: Head, own: Mapping[str, Depends], sights: Sights, trials: Trials) -> Found | None:
    name = max(own, key=lambda each: own[each].whole, default=None)
    stays = sights.stays(head.node)
    if name is None or stays is None or stays > 1 - ATTENDS:
        return None
    cost, rest = own[name], {other: each.whole for other, each in own.items() if other != name}
    if not _counts(cost.whole, head.effect, PART) or not _counts(cost.values, cost.whole, PART):
        return None
    if any(each > LITTLE * cost.whole for each in rest.values()):
        return None
    others = [f"{each:.3g} with another at {other}" for other, each in rest.items()]
    at_end = (sights.read(head.node, END) or 0.0) >= MAJORITY
    return f"mover of {name}", (
        f"Writing what it does with another word at {name} costs {_of(cost.whole, head, trials)}{_in_brackets(others)}.",
        f"Another word there, seen by its values alone, costs {cost.values:.3g}.",
        f"Where the circuit reads it, it gives {sights.looks(head.node, name) or 0.0:.2f} of its attention to {name}, "
        f"and {stays:.2f} to the position itself.",
        *([f"END attends most to {_listed(sights, head)}."] if at_end else []),
    )


# ------------------------------------------------------------------ words


def _of(cost: Estimate, head: Head, trials: Trials) -> str:
    return f"{cost} of {trials.bench.metric.name}; ablating it whole costs {head.effect:.3g}"


def _in_brackets(parts: Sequence[str]) -> str:
    return f" ({', '.join(parts)})" if parts else ""


def _listed(sights: Sights, head: Head) -> str:
    return ", ".join(f"{visible(name)} ({weight:.2f})" for name, weight in sights.attended(head.node)[:3])
