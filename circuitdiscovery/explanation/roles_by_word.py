"""Heads that depend on the word at one named position: they tell by their keys that it is repeated, or by
their values they move it elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from circuitdiscovery.explanation.attention import Sights
from circuitdiscovery.explanation.heads import (
    ATTENDS,
    LITTLE,
    MAJORITY,
    PART,
    Head,
    Role,
    Setting,
    attended_most,
    cost_of,
    in_brackets,
)
from circuitdiscovery.explanation.interventions import Asked, Trials
from circuitdiscovery.explanation.words import other_words
from circuitdiscovery.measure.estimates import Estimate
from circuitdiscovery.task.example import END


def roles_by_word(heads: Sequence[Head], sights: Sights, setting: Setting, trials: Trials) -> dict[str, Role]:
    """Heads that are for one word: they tell by their keys that it is
    repeated, or move it elsewhere by their values.

    What each step tells decides which heads the next one is for.
    """
    heads = [head for head in heads if sights.copies(head.node) or _may_carry(head, sights)]
    known = trials.task, setting.names, trials.rows, trials.model.tokenizer
    others = other_words(*known) if heads else {}
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
    found: dict[str, Role] = {}
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
        for head in some if otherwise else ():
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
) -> Role:
    """Its keys tell that a word is repeated; it may look at the copy or away from it."""
    weight = sights.copies(head.node)[later, earlier]
    evidence = (
        (
            f"{later} repeats {earlier}'s token. Swapping the word at {earlier}, through the keys only, "
            f"costs {cost_of(cost, head, trials)}."
        ),
        (
            f"{later} gives {weight:.2f} of its attention to {earlier}, {otherwise:.2f} where another word "
            "stands there."
        ),
    )
    return Role("duplicate token", evidence, cost)


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
) -> Role:
    cost = own[name]
    others = [f"{each:.3g} with another at {other}" for other, each in own.items() if other != name]
    at_end = (sights.read(head.node, END) or 0.0) >= MAJORITY
    evidence = (
        (
            f"Writing what it writes with another word at {name} costs "
            f"{cost_of(cost, head, trials)}{in_brackets(others)}."
        ),
        f"Swapping the word there, through the values only, costs {values:.3g}.",
        f"Where the circuit reads it, it gives {sights.looks(head.node, name) or 0.0:.2f} of its "
        f"attention to {name}, "
        f"and {sights.stays(head.node):.2f} to the position itself.",
        *([attended_most(sights, head)] if at_end else []),
    )
    return Role(f"mover of {name}", evidence, cost)
