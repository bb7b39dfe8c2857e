"""What is seen and measured of an attention head, before it is known what the head does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from circuitdiscovery.explanation.attention import Sights, one_names
from circuitdiscovery.explanation.cards import visible
from circuitdiscovery.explanation.interventions import Ablated, Trials
from circuitdiscovery.measure.estimates import Estimate
from circuitdiscovery.task.example import END
from circuitdiscovery.task.task import Task

IO, S2 = "IO", "S2"
MAJORITY = 0.5  # of a head's attention, of all prompts, of an effect: more than all the rest together
ATTENDS = 0.3  # of a head's attention to one named position: three times an even share of ten tokens
MATTERS = 0.05  # of |F(M) - F(empty)|: parts of a smaller effect say little about what a head is for
# of the logit difference: a head that writes less moves nothing that matters, whatever it copies
DIRECT = 0.05
# of what a head writes onto the logit difference is from before END; the rest it finds at END, where earlier
# heads have brought it
BROUGHT = 0.4
# of an effect: what a head does by its edge to the logits, or with another word, then does not matter
LITTLE = 0.25
# of an effect hangs on one word, and of that on what is moved: an ablation may
# change several words, or flip the answer
PART = 0.25
# times an even share, on random tokens: the head looks back by itself, not only at these prompts' words
ABOVE_EVEN = 1.5


@dataclass(frozen=True)
class Role:
    """A role that the evidence supports.

    Args:
        name: which.
        evidence: sentences with figures.
        cost: the damage of the intervention that it rests on; 0 where it rests on none.
    """

    name: str
    evidence: tuple[str, ...]
    cost: float = 0.0


@dataclass(frozen=True)
class Look:
    """What is seen of one head in plain runs.

    Args:
        node: which.
        direct: what it writes onto the logit difference.
        brought: the share of this that comes from tokens before END, not from END itself, by size.
        scores: as in head_scores.py.
        promotes: the share, of the prompts in which the answer stands, where it is among
            the highest tokens of what the head writes.
        demotes: the same with the lowest.
        demotes_wrong: the same as `demotes` for a wrong answer that stands in the prompt.
    """

    node: str
    direct: Estimate
    brought: float
    scores: Mapping[str, float]
    promotes: float
    demotes: float
    demotes_wrong: float


@dataclass(frozen=True)
class Head(Look):
    """The same with `effect`, the damage of ablating it."""

    effect: Estimate


@dataclass(frozen=True)
class Setting:
    """What the heads of a task have in common.

    Args:
        logit_diff: the model's before a cap on its logits, of which direct effects are parts.
        stands: the share of the prompts in which an answer stands before END.
        wrong_stands: the same for a wrong answer.
        answer: the named position where it mostly stands.
        names: the named positions, END apart.
        even: the score `previous token` of a head that attends to all tokens
            alike; None without such scores.
    """

    logit_diff: float
    stands: float
    wrong_stands: float
    answer: str | None
    names: tuple[str, ...]
    even: float | None


def answer_position(task: Task) -> str | None:
    """The named position before END whose token is the answer in most of a task's examples."""
    named = [(name, at, e) for e in task.examples for name, at in e.positions.items() if at < e.position]
    answers = [name for name, at, e in named if e.clean[at] in e.correct]
    most = max(dict.fromkeys(answers), key=answers.count, default=None)
    return most if most is not None and answers.count(most) >= MAJORITY * len(task) else None


def word_positions(task: Task) -> tuple[str, ...]:
    """The named positions that are another one than END in some example, each by one name."""
    names = one_names(task)
    return tuple(name for name, first in names.items() if name == first and name != names[END])


def matters(head: Head, ablated: Ablated) -> bool:
    """Whether ablating a head costs enough for parts of that to say what it is for."""
    return head.effect.low > 0 and head.effect >= MATTERS * abs(ablated.full - ablated.empty)


# ------------------------------------------------------------------ words


def cost_of(cost: Estimate, head: Head, trials: Trials) -> str:
    """A part of what ablating a head costs, beside all of it."""
    return f"{cost} of {trials.metric.name}; ablating the whole head costs {head.effect:.3g}"


def in_brackets(parts: Sequence[str]) -> str:
    """The parts in a sentence; nothing where there are none."""
    return f" ({', '.join(parts)})" if parts else ""


def attended_most(sights: Sights, head: Head) -> str:
    """A sentence on what END attends to most."""
    most = sights.attended(head.node)[:3]
    told = [f"{visible(name, sights.names)} ({weight:.2f})" for name, weight in most]
    return f"{sights.end} attends most to {', '.join(told)}."
