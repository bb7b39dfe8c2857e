"""What is seen and measured of an attention head, before it is known what the head does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from circuitdiscovery.explanation.attention import Sights
from circuitdiscovery.explanation.cards import visible
from circuitdiscovery.explanation.interventions import Trials
from circuitdiscovery.measure.estimates import Estimate
from circuitdiscovery.task.example import Example
from circuitdiscovery.task.task import Task

IO, S2 = "IO", "S2"
MAJORITY = 0.5  # of a head's attention, of the prompts, of an effect: more than all the rest together
ATTENDS = 0.3  # of a head's attention to one named position: three times an even share of ten tokens
MATTERS = 0.05  # of |F(M) - F(empty)|: parts of a smaller effect say little about what a head is for
# of the logit difference: a head that writes less moves nothing that matters, whatever it copies
DIRECT = 0.05
# of an effect: what a head does by its edge to the logits, or with another word, then does not matter
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
        scores: as in head_scores.py.
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
            alike; None without such scores.
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


# ------------------------------------------------------------------ words


def cost_of(cost: Estimate, head: Head, trials: Trials) -> str:
    """A part of what ablating a head costs, beside all of it."""
    return f"{cost} of {trials.metric.name}; ablating the whole head costs {head.effect:.3g}"


def in_brackets(parts: Sequence[str]) -> str:
    """The parts in a sentence; nothing where there are none."""
    return f" ({', '.join(parts)})" if parts else ""


def attended_most(sights: Sights, head: Head) -> str:
    """What END attends to most."""
    return ", ".join(f"{visible(name)} ({weight:.2f})" for name, weight in sights.attended(head.node)[:3])
