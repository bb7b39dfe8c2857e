"""Snippets: tokens that a unit is active at, with those around them, and all that is found of a unit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from circuitdiscovery.features.highest import Seen
from circuitdiscovery.features.units import words_of
from circuitdiscovery.features.words import Words, word, words
from circuitdiscovery.files.disk import data_frame
from circuitdiscovery.measure.estimates import Estimate
from circuitdiscovery.model.model import Model
from circuitdiscovery.values import Value

if TYPE_CHECKING:
    import pandas as pd

    from circuitdiscovery.features.ratings import Sheet
    from circuitdiscovery.features.scoring import ExplanationScore

WORDS = 10  # tokens that are named of what a unit writes


@dataclass(frozen=True)
class Snippet:
    """A token that a unit was active at, with those around it.

    Args:
        text: all of the snippet.
        token: the one that it is of, as text.
        activation: of the unit at that token.
        prompt, position: where it stands, each from 0.
        at: which of `tokens` it is.
        tokens, activations: those around it, and how active the unit is at each; NaN at a prompt's first
            token where that does not count.
    """

    text: str
    token: str
    activation: float
    prompt: int
    position: int
    at: int
    tokens: tuple[str, ...]
    activations: tuple[float, ...]

    def __str__(self) -> str:
        """The text with the token in brackets, on one line."""
        before, after = "".join(self.tokens[: self.at]), "".join(self.tokens[self.at + 1 :])
        word = self.token.lstrip(" ")
        return f"{before}{' ' * (len(self.token) - len(word))}[{word}]{after}".replace("\n", "⏎")


@dataclass(frozen=True)
class Bin:
    """The activations of one height that are not 0.

    Args:
        low, high: from the one to below the other.
        count: how many there are.
        snippets: a few of them, drawn at random.
    """

    low: float
    high: float
    count: int
    snippets: tuple[Snippet, ...]


@dataclass(frozen=True, eq=False, repr=False)
class TopActivations(Value):
    """What makes a unit active (see `top_activations`).

    Args:
        unit, model: their names.
        task: of whose prompts it is; None: of texts.
        prompts, tokens: how many there were; tokens that count.
        zero: the share of the tokens at which the unit is exactly 0.
        low, high: the lowest activation and the highest.
        snippets: of the highest activations, the highest first.
        random: as many of random tokens, whatever the unit does there.
        quantiles: the range of activations in at most ten bins of equal width, from the lowest.
        edges, counts: the same in more bins, without snippets: count i is of activations from edge i to below
            edge i + 1; those that are 0 are not counted.
        promoted, suppressed: the tokens whose logits one unit of activation raises and lowers the most, by
            what the unit writes, with the gains of the norm after its node and of the last one, without their
            divisions; none of what an MLP reads, which is not added to the stream.
        attribution: of a task: what the unit writes at the answer's position onto the logit difference, on
            average, through these norms as they are in each run; None of texts, or if nothing is promoted.
    """

    unit: str
    model: str
    task: str | None
    prompts: int
    tokens: int
    zero: float
    low: float
    high: float
    snippets: tuple[Snippet, ...]
    random: tuple[Snippet, ...]
    quantiles: tuple[Bin, ...]
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    promoted: Words
    suppressed: Words
    attribution: Estimate | None = None

    @property
    def histogram(self) -> tuple[np.ndarray, np.ndarray]:
        """(counts [n], edges [n + 1]), as numpy.histogram gives them; activations of 0 are not counted."""
        return np.array(self.counts), np.array(self.edges)

    def score(self, predict: Callable[[list[str]], Any]) -> ExplanationScore:
        """How well activations can be told from what is said of the unit (Bills et al. 2023).

        Args:
            predict: a simulator of the unit: from the tokens of a snippet, as texts, how active it thinks
                that the unit is at each, on any scale. It sees every second of the highest snippets, those
                that `explain` does not show, and as many random ones.

        Returns:
            The correlation of its numbers with the activations over all tokens of these snippets but those
            that `explain` shows, too, where snippets overlap.

        Raises:
            CircuitDiscoveryError: another number of predictions than of tokens, one that is not finite, the
                same for all tokens; fewer than two snippets of either kind.
        """
        from circuitdiscovery.features.scoring import score

        return score(self, predict)

    def explain(self, complete: Callable[[str], str]) -> str:
        """One sentence by your own language model.

        Args:
            complete: gives the text with which the model goes on after a prompt. It is asked once, with
                every second of the highest snippets; `score` uses the others.

        Returns:
            What it said, without the space around.

        Raises:
            CircuitDiscoveryError: it gave no text; there are no snippets.
        """
        from circuitdiscovery.features.scoring import explained

        return explained(self, complete)

    def rate(self, path: str | Path, *, controls: Any = None, seed: int = 0) -> Sheet:
        """A sheet on which people rate whether the unit's snippets have something in common (see `rate`).

        Args:
            path: a .csv or .html file; what the sheet does not say is written beside it, in .key.json.
            controls: other units' activations; by default random tokens.
            seed: of the order.
        """
        from circuitdiscovery.features.ratings import rate

        return rate([self], path, controls=controls, seed=seed)

    def html(self) -> str:
        """A whole page for a browser."""
        from circuitdiscovery.features.snippet_html import page

        return page(self)

    def to_dataframe(self) -> pd.DataFrame:
        """One row per snippet of the highest: activation, token, text, prompt, position. Needs pandas."""
        columns = ["activation", "token", "text", "prompt", "position"]
        rows = [tuple(getattr(each, name) for name in columns) for each in self.snippets]
        return data_frame(rows, columns=columns)

    def _repr_html_(self) -> str:
        from circuitdiscovery.features.snippet_html import fragment

        return fragment(self)

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        of = "texts" if self.task is None else f"prompts of {self.task}"
        yield f"{self.unit} of {self.model} on {self.tokens:,} tokens of {self.prompts:,} {of}"
        yield f"{'activation':<13} {self.low:.3g} to {self.high:.3g}, 0 at {self.zero:.1%} of the tokens"
        for name, some in (("promotes", self.promoted), ("suppresses", self.suppressed)):
            yield f"{name:<13} {', '.join(repr(token) for token, _ in some) or 'nothing directly'}"
        if self.attribution is not None:
            yield f"{'direct':<13} {self.attribution} of the logit difference"
        for each in self.snippets:
            yield f"{each.activation:>8.3g}  {each}"
        if self.quantiles:
            yield "by height"
        for each in reversed(self.quantiles):
            example = str(each.snippets[0]) if each.snippets else ""
            yield f"{each.low:>8.3g}  {each.count:>9,}  {example}".rstrip()


# ------------------------------------------------------------------ in words


class Texts:
    """Tokens as texts.

    Args:
        model: whose; without a tokenizer they are numbers.
    """

    def __init__(self, model: Model) -> None:
        self._model, self._tokenizer = model, model.tokenizer
        self._known: dict[int, str] = {}

    def token(self, token: int) -> str:
        """With the space in front where there is one."""
        if token not in self._known:
            self._known[token] = word(self._model, token)
        return self._known[token]

    def snippet(self, seen: Seen) -> Snippet:
        """What was kept of a token, in words."""
        tokens, at = self._each(seen.tokens), seen.position - seen.start
        values = tuple(map(float, seen.values))
        return Snippet(
            self._joined(seen.tokens),
            tokens[at],
            seen.value,
            seen.prompt,
            seen.position,
            at,
            tokens,
            values,
        )

    def _joined(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids)) if self._tokenizer is None else str(self._tokenizer.decode(list(ids)))

    def _each(self, ids: Sequence[int]) -> tuple[str, ...]:
        """What each token adds to the text; what is a part of a character alone, by itself."""
        found, before = list[str](), ""
        for i, token in enumerate(ids):
            now = self._joined(ids[: i + 1])
            found.append(now[len(before) :] if now.startswith(before) else self.token(token))
            before = now
        return tuple(found)


def written(model: Model, stream: Tensor, count: int = WORDS) -> tuple[Words, Words]:
    """(the tokens that a direction of the residual stream promotes, those that it suppresses), the strongest
    first, each with what it adds to the logit."""
    logits = words_of(model, stream).double()
    return words(model, logits, count), words(model, logits, count, largest=False)
