"""Whether activations can be told from what is said of a unit: the explanation score, and explanations by the
user's own model.

Bills et al. 2023 ("Language models can explain neurons in language models"): a simulator tells the
activations of a text's tokens from a sentence about the unit; the score is the correlation of its numbers
with the true ones over all tokens of all texts together, half of which are of the highest activations and
half random. The sentence is made from other snippets of the highest ones; their tokens are not scored where
snippets overlap.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from circuitdiscovery.errors import CircuitDiscoveryError, shown
from circuitdiscovery.measure.estimates import Estimate
from circuitdiscovery.measure.intervals import LEVEL
from circuitdiscovery.values import Value

if TYPE_CHECKING:
    from circuitdiscovery.features.snippets import Snippet, TopActivations

_STEPS = 10  # of activations in a prompt


@dataclass(frozen=True, repr=False)
class ExplanationScore(Value):
    """How well activations are told (see `TopActivations.score`).

    Args:
        unit: whose.
        score: the correlation over the tokens of the highest snippets and the random ones together, with a
            95% interval over snippets.
        random: that over the tokens of the random ones alone; None where the unit or the simulator is the
            same at all of them.
        snippets: how many of each kind that have tokens which `explain` does not show.
    """

    unit: str
    score: Estimate
    random: float | None
    snippets: int

    def __str__(self) -> str:
        alone = "not defined" if self.random is None else f"{self.random:.3g}"
        return (
            f"{self.unit}: explanation score {self.score}, on {self.snippets} of the highest snippets and "
            f"{self.snippets} random ones; on the random ones alone {alone}"
        )


def score(found: TopActivations, predict: Callable[[list[str]], Any]) -> ExplanationScore:
    """See `TopActivations.score`."""
    seen = {place for each in _explaining(found) for place in _places(each)}
    highest, random = (
        [each for each in some if _counted(each, seen).any()] for some in (found.snippets[1::2], found.random)
    )
    count = min(len(highest), len(random))
    if count < 2:
        raise CircuitDiscoveryError(
            f"{found.unit}: a score needs 4 of the highest snippets and 2 random ones at least, 2 of each "
            f"with tokens that explain does not show: there are {len(highest)} and {len(random)}"
        )
    groups = [[_pairs(each, predict, seen) for each in some[:count]] for some in (highest, random)]
    whole = correlation([each for group in groups for each in group])
    if np.isnan(whole):
        raise CircuitDiscoveryError(
            f"{found.unit}: the activations or what predict gives is the same for every token: there is no "
            "correlation"
        )
    alone = correlation(groups[1])
    return ExplanationScore(
        found.unit, _with_interval(whole, groups), None if np.isnan(alone) else alone, count
    )


def _explaining(found: TopActivations) -> Sequence[Snippet]:
    """The snippets that an explanation is made from."""
    return found.snippets[::2]


def _places(snippet: Snippet) -> list[tuple[int, int]]:
    """(prompt, position) of each of its tokens."""
    first = snippet.position - snippet.at
    return [(snippet.prompt, first + i) for i in range(len(snippet.tokens))]


def _counted(snippet: Snippet, seen: Collection[tuple[int, int]]) -> np.ndarray:
    """[tokens] bool: which are scored."""
    fresh = np.array([place not in seen for place in _places(snippet)])
    return fresh & ~np.isnan(snippet.activations)


def _pairs(
    snippet: Snippet, predict: Callable[[list[str]], Any], seen: Collection[tuple[int, int]]
) -> np.ndarray:
    """[2, tokens]: the activations that count, and what is predicted there."""
    given = predict(list(snippet.tokens))
    try:
        predicted = np.asarray(given, dtype=float)
    except (TypeError, ValueError):
        raise CircuitDiscoveryError(
            f"predict must give a number for every token, not {shown(given)}"
        ) from None
    if predicted.shape != (len(snippet.tokens),):
        raise CircuitDiscoveryError(
            f"predict must give {len(snippet.tokens)} numbers, one for every token of {shown(snippet.text)}, "
            f"not {list(predicted.shape)}"
        )
    if not np.isfinite(predicted).all():
        raise CircuitDiscoveryError("predict gives numbers that are not finite")
    return np.stack([np.array(snippet.activations), predicted])[:, _counted(snippet, seen)]


def correlation(snippets: Sequence[np.ndarray]) -> float:
    """Pearson's, over the tokens of all; NaN where one side is the same everywhere."""
    true, predicted = np.concatenate(snippets, axis=1)
    if np.ptp(true) == 0 or np.ptp(predicted) == 0:
        return float("nan")
    return float(np.clip(np.corrcoef(true, predicted)[0, 1], -1, 1))


def _with_interval(whole: float, groups: Sequence[Sequence[np.ndarray]]) -> Estimate:
    """By the jackknife over snippets, the highest and the random ones each for themselves, of Fisher's z,
    with Student's t at the degrees of freedom of Welch and Satterthwaite."""
    from scipy.special import stdtrit

    variances = list[float]()
    for i, group in enumerate(groups):
        others = [each for j, other in enumerate(groups) if j != i for each in other]
        left = [correlation([*others, *group[:k], *group[k + 1 :]]) for k in range(len(group))]
        z = np.arctanh(np.clip(left, -1 + 1e-12, 1 - 1e-12))
        variances.append((len(group) - 1) / len(group) * float(((z - z.mean()) ** 2).sum()))
    variance = sum(variances)
    if not variance >= 0:  # a snippet without which one side is the same everywhere
        return Estimate(whole)
    each = (v * v / (len(group) - 1) for v, group in zip(variances, groups, strict=True))
    degrees = variance * variance / (sum(each) or 1.0) or 1.0
    reach = float(stdtrit(degrees, (1 + LEVEL) / 2)) * variance**0.5
    centre = np.arctanh(np.clip(whole, -1 + 1e-12, 1 - 1e-12))
    low, high = np.tanh([centre - reach, centre + reach])
    return Estimate(whole, min(whole, float(low)), max(whole, float(high)))


# ------------------------------------------------------------------ by the user's own model


def explained(found: TopActivations, complete: Callable[[str], str]) -> str:
    """See `TopActivations.explain`."""
    if not found.snippets:
        raise CircuitDiscoveryError(f"{found.unit} is active nowhere: there is nothing to explain")
    said = complete(prompt(found))
    if not isinstance(said, str) or not said.strip():
        raise CircuitDiscoveryError(f"complete must give the text that follows the prompt, not {shown(said)}")
    return said.strip()


def prompt(found: TopActivations) -> str:
    """What a model is asked: every second of the highest snippets, token by token, with how active the unit
    is, from 0 to 10."""
    lines = [
        "A unit of a language model is active at some tokens of a text and not at others. Below are texts, a "
        f"token a line, each with how active the unit is there, from 0 (not at all) to {_STEPS} (as much as "
        "anywhere). Say in one short sentence what the tokens at which it is active have in common.",
    ]
    for number, snippet in enumerate(_explaining(found), 1):
        lines += ["", f"Text {number}:"]
        for token, value in zip(snippet.tokens, snippet.activations, strict=True):
            lines.append(f"{token!r}\t{_step(value, found.high)}")
    return "\n".join([*lines, "", "The unit is active at"])


def _step(value: float, most: float) -> int:
    return 0 if np.isnan(value) or most <= 0 else int(np.clip(round(_STEPS * value / most), 0, _STEPS))
