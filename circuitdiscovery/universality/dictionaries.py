"""`features`: which features of a sparse dictionary other dictionaries have too.

Twice, by what makes a feature active and by what it says (Bricken et al. 2023, "Towards Monosemanticity",
call them activation similarity and logit weight similarity):

    by activation  Pearson's correlation of two features' values over the same text
    by decoder     Pearson's correlation over the vocabulary of what two features add to the logits: the
                   cosine, once each is centred over the tokens. With decoder rows d, e and unembeddings U, V
                   (with the last norm's gain; of the tokens that both models have, centred over them) it is
                   d U'V e' / |U d| |V e|, so that no row of logits is made.

The baseline is that of neurons, for both: the best of the other dictionary's features, turned by a random
rotation. By decoder these are random directions that are spread as the dictionary's own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from circuitdiscovery.arguments import guarded
from circuitdiscovery.engine.setup import Progress
from circuitdiscovery.errors import CircuitDiscoveryError, shown
from circuitdiscovery.features.dictionary import Dictionary
from circuitdiscovery.features.units import in_stream
from circuitdiscovery.files.figures import figure_path, write_figure
from circuitdiscovery.model.model import Model
from circuitdiscovery.task.tokenization import Encoder
from circuitdiscovery.universality.aligning import same_vocabulary
from circuitdiscovery.universality.correlating import Best, compared, groups_of
from circuitdiscovery.universality.kinds import Features
from circuitdiscovery.universality.units import Universality, distinct, gathered, universality
from circuitdiscovery.values import Value

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_TOKENS = 2**12  # whose unembeddings are multiplied together
_FLAT = 1e-12  # of the largest that a variance can be, below which it is rounding


@dataclass(frozen=True, eq=False, repr=False)
class FeatureUniversality(Value):
    """Which features of a dictionary others have too (see `features`).

    Args:
        by_activation: the best partners by what makes a feature active; .tokens are those of the texts.
        by_decoder: the best partners by what a feature adds to the logits; .tokens are those of the
            vocabulary that were compared. Dead are features that add the same to all.
    """

    by_activation: Universality
    by_decoder: Universality

    @property
    def same(self) -> np.ndarray:
        """[others, features]: whether both find the same partner."""
        return (self.by_activation.partners == self.by_decoder.partners) & self._alive

    @property
    def agreement(self) -> np.ndarray:
        """[others]: the share of the features that are not dead by either for which both find the same
        partner; NaN where all are dead."""
        alive = int(self._alive.sum())
        return self.same.sum(1) / (alive or np.nan)

    @property
    def _alive(self) -> np.ndarray:
        dead = {*self.by_activation.dead, *self.by_decoder.dead}
        return np.array([name not in dead for name in self.by_activation.names])

    def to_dataframe(self) -> pd.DataFrame:
        """The tables of both side by side, one row per feature. Needs pandas."""
        found = self.by_activation.to_dataframe()
        return found.merge(
            self.by_decoder.to_dataframe(), on="unit", suffixes=(" by activation", " by decoder")
        )

    @guarded
    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw the excess of every feature by activation beside that by decoder.

        Args:
            path: a .png, .svg or .pdf file to write; by default none.

        Returns:
            Matplotlib's figure.
        """
        from matplotlib.figure import Figure

        where = figure_path(path)
        figure = Figure(figsize=(5, 4.4), layout="constrained")
        axes, same = figure.subplots(), self.same.all(0)
        for chosen, label in ((same, "the same partner by both"), (~same, "others")):
            values = (each.excess[chosen] for each in (self.by_activation, self.by_decoder))
            axes.scatter(*values, s=5, alpha=0.6, linewidths=0, label=label)
        axes.set(xlabel="excess correlation by activation", ylabel="excess correlation by decoder")
        axes.legend(frameon=False)
        return write_figure(figure, where)

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        for how, found in (("by activation", self.by_activation), ("by decoder", self.by_decoder)):
            yield f"{how}: {found}"
        for other, share in zip(self.by_activation.others, self.agreement, strict=True):
            yield f"{'the same':<13} {share:.1%} have one partner by both in {other}"


@guarded
def features(
    sae: Dictionary,
    others: Any,
    texts: Any,
    *,
    model: Model,
    other_model: Any = None,
    seed: int = 0,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> FeatureUniversality:
    """Which features of a sparse dictionary other dictionaries have too, of the same model or of other ones.

    Args:
        sae: a dictionary.
        others: another one, or several.
        texts: as for `neurons`.
        model: the model at whose site `sae` stands.
        other_model: the model of the others, or one for each of them; by default `model`.
        seed, batch_size, progress: as for `neurons`.

    Returns:
        Of each feature the best partners in every other dictionary, by activation and by decoder.

    Raises:
        CircuitDiscoveryError: a dictionary that does not say where it stands, or does not fit its model;
            another number of other models than of others; models without a token in common; an unknown token,
            no text.

    >>> import circuitdiscovery as cd
    >>> model = cd.load_model("toy")
    >>> texts = ["The keys on the table are small.", "There is a dog by the door."]
    >>> acts = cd.features.activations(model, texts, "m1", position="all")
    >>> one, two = (cd.features.train_sae(acts, n=16, k=2, steps=20, seed=seed) for seed in (0, 1))
    >>> found = cd.universality.features(one, [one, two], texts, model=model)
    >>> found.by_decoder.partners[0, :2].tolist(), found.by_activation.others
    (['m1/f0', 'm1/f1'], ('m1 of toy 1', 'm1 of toy 2'))
    """
    several = list(others) if isinstance(others, list | tuple) else [others]
    if not several or not all(isinstance(each, Dictionary) for each in several):
        raise CircuitDiscoveryError(f"others must be a dictionary, or several, not {shown(others)}")
    given = model if other_model is None else other_model
    models = list(given) if isinstance(given, list | tuple) else [given] * len(several)
    if len(models) != len(several) or not all(isinstance(each, Model) for each in models):
        raise CircuitDiscoveryError(
            f"other_model must be a loaded model, or one for each of the {len(several)} others, not "
            f"{shown(given)}"
        )
    own = Features(model, sae)
    theirs = [Features(*each) for each in zip(models, several, strict=True)]
    named = [f"{each.dictionary.site} of {each.model.name}" for each in (own, *theirs)]
    names = [named[0], *distinct(named[1:])]
    return FeatureUniversality(
        universality(own, theirs, texts, names, seed, batch_size, progress),
        _by_decoder(own, theirs, names, seed),
    )


# ------------------------------------------------------------------ by decoder


def _by_decoder(own: Features, others: Sequence[Features], names: Sequence[str], seed: int) -> Universality:
    found, tokens = list[Best](), list[int]()
    written = _written(own)
    for theirs in others:
        models = own.model, theirs.model
        decoders = _Decoders(written, _written(theirs), models, _tokens(*models))
        found.append(compared(decoders, groups_of(theirs.sizes), seed, []))
        tokens.append(len(decoders.tokens[0]))
    return gathered("features", names, own.names, [each.names for each in others], found, tokens)


def _written(features: Features) -> Tensor:
    """[features, d_model]: what each writes to the residual stream."""
    written = features.dictionary.to(features.model.device).vectors
    return in_stream(features.model, features.written, written).cpu().double()


def _tokens(model: Model, other: Model) -> tuple[list[int], list[int]]:
    """Tokens of the one, and those of the other with the same texts."""
    if same_vocabulary(model, other) and model.vocab_size == other.vocab_size:
        every = list(range(model.vocab_size))
        return every, every
    words, theirs = _words(model), _words(other)
    both = [word for word in words if word in theirs]
    if not both:
        raise CircuitDiscoveryError(f"{model.name} and {other.name} have no token in common")
    return [words[word] for word in both], [theirs[word] for word in both]


def _words(model: Model) -> dict[str, int]:
    """token's text -> token, of the texts that one token alone has."""
    if model.tokenizer is None:
        return {}
    encoder, count = Encoder(model.tokenizer), min(model.vocab_size, len(model.tokenizer))
    texts = [encoder.token(token) for token in range(count)]
    pieces = model.tokenizer.convert_ids_to_tokens(list(range(count)))
    for token, piece in enumerate(pieces):  # a tokenizer may take the space off a text that begins with one
        if piece[:1] == " " != texts[token][:1]:
            texts[token] = f" {texts[token]}"
    times = Counter(texts)
    return {text: token for token, text in enumerate(texts) if text and times[text] == 1}


def _unembeddings(model: Model, tokens: Sequence[int]) -> Iterator[Tensor]:
    """[some, d_model]: what the stream is multiplied with for the logits of tokens, as `words_of` does."""
    norm = model.final_norm
    for first in range(0, len(tokens), _TOKENS):
        rows = model.logit_directions(tokens[first : first + _TOKENS]).cpu().double()
        yield norm.centre(rows * norm.scale.cpu().double())


@dataclass(frozen=True)
class _Decoders:
    """The covariances, over some tokens, of what features of two dictionaries add to the logits.

    Args:
        own, theirs: [features, d_model] each, what they write.
        models: whose they are.
        tokens: of the one model, and the same of the other.
    """

    own: Tensor
    theirs: Tensor
    models: tuple[Model, Model]
    tokens: tuple[list[int], list[int]]

    @cached_property
    def products(self) -> tuple[Tensor, Tensor, Tensor]:
        """[d, d], [d', d'] and [d, d']: the means over the tokens of the products of the unembeddings'
        numbers, within the one model, within the other and across, once each is centred."""
        count = len(self.tokens[0])
        means = [
            torch.stack([rows.sum(0) for rows in _unembeddings(model, tokens)]).sum(0) / count
            for model, tokens in zip(self.models, self.tokens, strict=True)
        ]
        found = [torch.zeros(len(a), len(b), dtype=a.dtype) for a, b in _pairs(*means)]
        for both in zip(*map(_unembeddings, self.models, self.tokens), strict=True):
            centred = (rows - mean for rows, mean in zip(both, means, strict=True))
            for into, (a, b) in zip(found, _pairs(*centred), strict=True):
                into += a.T @ b / count
        return found[0], found[1], found[2]

    @property
    def deviations(self) -> tuple[Tensor, Tensor]:
        """See `Covariances`."""
        own, theirs, _ = self.products
        return _deviations(self.own, own), _deviations(self.theirs, theirs)

    def between(self, rows: slice, group: slice) -> Tensor:
        """See `Covariances`."""
        return (self.own[rows] @ self.products[2] @ self.theirs[group].T).float()

    def turned(self, matrix: Tensor, group: slice) -> Tensor:
        """See `Covariances`."""
        return _deviations(matrix @ self.theirs[group], self.products[1])


def _pairs(one: Tensor, other: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
    return (one, one), (other, other), (one, other)


def _deviations(written: Tensor, products: Tensor) -> Tensor:
    """[features]: the standard deviation over the tokens of what each adds to their logits; 0 where that is
    rounding."""
    variance = ((written @ products) * written).sum(1)
    size = written.square().sum(1) * products.diagonal().sum()
    return torch.where(variance > _FLAT * size, variance, 0.0).sqrt()
