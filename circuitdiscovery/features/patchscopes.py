"""Patchscopes: a model says in words what stands in its own residual stream.

Source. Ghandeharioun et al. 2024 (arXiv 2401.06102), and the code that they published with it, from which the
identity prompt and the definitions of precision@1 and surprisal are. Their layers are counted by what a block
gives: their layer l is resid{l + 1} here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from circuitdiscovery.arguments import guarded
from circuitdiscovery.engine import memory
from circuitdiscovery.engine.metrics import precise
from circuitdiscovery.engine.setup import Progress
from circuitdiscovery.errors import CircuitDiscoveryError, shown
from circuitdiscovery.features.forward import LAST, forward
from circuitdiscovery.features.places import Places, places_of
from circuitdiscovery.features.prompts import at_once, batches
from circuitdiscovery.features.target import PLACEHOLDER, Target, expected_of, target_of
from circuitdiscovery.features.units import logits_of
from circuitdiscovery.files.disk import data_frame
from circuitdiscovery.measure import intervals
from circuitdiscovery.measure.estimates import Estimate, drawn
from circuitdiscovery.model.model import Model
from circuitdiscovery.task.tokens import as_python
from circuitdiscovery.values import Value

if TYPE_CHECKING:
    import pandas as pd

IDENTITY = f"cat -> cat\n1135 -> 1135\nhello -> hello\n{PLACEHOLDER}"
_SHOWN = 5  # prompts whose tokens are printed
T = TypeVar("T")


@dataclass(frozen=True, repr=False)
class Patchscope(Value):
    """What a model says of its stream (see `patchscope`).

    Where one place was asked for, `.tokens`, `.precision` and the like give one value; of a list of places
    one for each, in its order. Intervals are over the prompts.

    Args:
        model: its name.
        at, into: [places] where the stream is taken from, and where it is put.
        read: "?" or the text that was appended.
        target: the text whose placeholder it is put at; of token ids their numbers.
        single: whether one place was asked for.
        generated: [places, prompts] the generated tokens' ids.
        texts: [places, prompts] the same as text.
        expected: [prompts] the token that is right, and `expected_texts` the same as text.
        ranks: [places, prompts] how many tokens were more likely than the expected one.
        losses: [places, prompts] -log of the probability of the expected one, in nats.
        surprisals: [places, prompts] how unlikely the most likely token is as the model's own next one.
    """

    model: str
    at: tuple[str, ...]
    into: tuple[str, ...]
    read: str
    target: str
    single: bool
    generated: tuple[tuple[tuple[int, ...], ...], ...]
    texts: tuple[tuple[str, ...], ...]
    expected: tuple[int, ...]
    expected_texts: tuple[str, ...]
    ranks: tuple[tuple[int, ...], ...]
    losses: tuple[tuple[float, ...], ...]
    surprisals: tuple[tuple[float, ...], ...] | None

    @property
    def tokens(self) -> Any:
        """What was generated for each prompt, as text."""
        return self._by_place(self.texts)

    @guarded
    def precision(self, k: int = 1) -> Any:
        """The share of the prompts whose expected token is among the k most likely ones.

        Args:
            k: 1 is the paper's precision@1, where the model's own next token is expected.
        """
        if k < 1:
            raise CircuitDiscoveryError(f"k must be at least 1, not {k}")
        return self._by_place([self._share(row, k) for row in self.ranks])

    @property
    def surprisal(self) -> Any:
        """The mean of -log p(t), in nats: p is the model's own distribution of the token that follows in the
        source prompt, t the token that the Patchscope finds the most likely. None where an arrow was
        appended: then the question is about the current token, of which the model has no distribution.
        """
        return None if self.surprisals is None else self._by_place(self._means(self.surprisals))

    @property
    def loss(self) -> Any:
        """The mean of -log q(t), in nats: q is the Patchscope's distribution, t the expected token."""
        return self._by_place(self._means(self.losses))

    def to_dataframe(self) -> pd.DataFrame:
        """One row per place and prompt: at, into, prompt, said, expected, rank, loss, surprisal. Needs
        pandas."""
        rows = []
        for i, (at, into) in enumerate(zip(self.at, self.into, strict=True)):
            for j, token in enumerate(self.expected_texts):
                surprisal = None if self.surprisals is None else self.surprisals[i][j]
                rows.append(
                    (at, into, j, self.texts[i][j], token, self.ranks[i][j], self.losses[i][j], surprisal)
                )
        columns = ["at", "into", "prompt", "said", "expected", "rank", "loss", "surprisal"]
        return data_frame(rows, columns=columns)

    def _by_place(self, values: Sequence[T]) -> T | tuple[T, ...]:
        return values[0] if self.single else tuple(values)

    def _share(self, ranks: Sequence[int], k: int) -> Estimate:
        return intervals.share(sum(rank < k for rank in ranks), len(ranks))

    def _means(self, values: Sequence[Sequence[float]]) -> list[Estimate]:
        return intervals.means(np.array(values), drawn(len(self.expected), 0), skewed=True)

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        where = "at the placeholder" if self.read == PLACEHOLDER else f"after {self.read!r}"
        yield f"{self.model}: {len(self.expected)} prompts, read {where} of {self.target!r}"
        losses = self._means(self.losses)
        surprisals = [None] * len(self.at) if self.surprisals is None else self._means(self.surprisals)
        for i, (at, into) in enumerate(zip(self.at, self.into, strict=True)):
            told = f"precision@1 {self._share(self.ranks[i], 1)}, loss {losses[i]}"
            told += "" if surprisals[i] is None else f", surprisal {surprisals[i]}"
            some = " ".join(map(repr, self.texts[i][:_SHOWN]))
            yield f"{at if at == into else f'{at} into {into}':<20} {told}; it says {some}"


@guarded
def patchscope(
    model: Model,
    prompts: Any,
    at: Any,
    *,
    position: Any = -1,
    into: Any = None,
    target: Any = IDENTITY,
    target_position: int | None = None,
    read: str = PLACEHOLDER,
    generate: int = 1,
    expected: Any = None,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Patchscope:
    """Put the stream at a token of each prompt in the place of a placeholder in another prompt, and read what
    the model says there.

    There are two readings, which answer two questions. `read="?"` reads the token that the model expects
    after the placeholder: what follows next at the token that the stream is of. This is the paper's reading
    for the next token. `read="->"` appends an arrow, as the examples of the identity prompt have one, and
    reads what comes after it: which token the stream is of. The right token, of which `.precision` is the
    share, is the model's own most likely next token for the first, and the source token for the second. Early
    layers answer the second question, late layers the first.

    Args:
        model: a loaded model, which reads both prompts.
        prompts: the source prompts: texts, rows of token ids, or a task, whose clean prompts are meant.
        at: the layer whose stream is taken: 9 or "resid9" is what block 9 reads, the number of layers what
            the last norm reads. Several of them in a list.
        position: of the source token: a number, negative from the end; of a task one of its names too.
        into: the layer whose stream it replaces; by default the one that it is from.
        target: the prompt with the placeholder: a text, or a row of token ids with `target_position`; by
            default `features.IDENTITY`, whose lines repeat a word after an arrow.
        target_position: of the placeholder, negative from the target's end; by default the last "?" of the
            text, which must be a token of its own.
        read: "?": at the placeholder, and what follows it in the target is not used. Any other text is
            appended to the target after a space, and what follows it is read.
        generate: how many tokens to generate, each the most likely one.
        expected: the right tokens, if they are others: one for each prompt, or one for all, as texts that go
            on with the target, or as token ids.
        batch_size: how many prompts are run at once; by default about eight thousand tokens.
        progress: called with (runs done, runs in all), a run being a prompt at a place.

    Returns:
        What was said: `.tokens`, `.precision(k)`, `.surprisal`, `.loss`.

    Raises:
        CircuitDiscoveryError: no such layer or position; a placeholder that is missing or is part of a longer
            token; an unknown word; a target that is too long.

    >>> import circuitdiscovery as cd
    >>> texts = ["The keys on the table", "The dog by the gate", "The cup near the lamps"]
    >>> target = "The cat is old. The cats are old. The?"
    >>> cd.features.patchscope(cd.load_model("toy"), texts, at=3, target=target).tokens
    (' are', ' is', ' is')
    """
    at = as_python(at)
    single = isinstance(at, str) or not isinstance(at, Iterable)
    places = [_layer(model, each, "at") for each in ([at] if single else at)]
    if not places:
        raise CircuitDiscoveryError("at: there is no layer")
    layers = places if into is None else [_layer(model, into, "into")] * len(places)
    if generate < 1:
        raise CircuitDiscoveryError(f"generate must be a whole number of at least 1, not {generate}")
    if position is None or position == "all":
        raise CircuitDiscoveryError("position must be one token of each prompt: a number, or a task's name")
    put = target_of(model, target, target_position, read, generate)
    if read != PLACEHOLDER and model.n_layers in layers:
        raise CircuitDiscoveryError(
            f"into resid{model.n_layers}, the last stream, nothing after the placeholder reads what is put: "
            f"use read='{PLACEHOLDER}' there, or another layer"
        )
    source = places_of(model, prompts, position)
    streams = _streams(model, source, {*places, model.n_layers}, batch_size)
    given = None if expected is None else expected_of(model, expected, put, len(source.rows))
    right = given if given is not None else None if read == PLACEHOLDER else source.tokens
    pairs = list(zip(places, layers, strict=True))
    found = _said(model, streams, pairs, put, right, generate, batch_size, progress)
    return Patchscope(
        model=model.name,
        at=tuple(f"resid{each}" for each in places),
        into=tuple(f"resid{each}" for each in layers),
        read=read,
        target=put.text,
        single=single,
        generated=tuple(tuple(map(tuple, each)) for each in found.generated.tolist()),
        texts=tuple(tuple(put.said(model, row) for row in each) for each in found.generated.tolist()),
        expected=tuple(found.right.tolist()),
        expected_texts=tuple(put.said(model, [token]) for token in found.right.tolist()),
        ranks=tuple(map(tuple, found.ranks.tolist())),
        losses=tuple(map(tuple, found.losses.tolist())),
        surprisals=tuple(map(tuple, found.surprisals.tolist())) if read == PLACEHOLDER else None,
    )


# ------------------------------------------------------------------- what is asked


def _layer(model: Model, given: Any, where: str) -> int:
    """The number of a stream."""
    text = str(as_python(given))
    number = text.removeprefix("resid") if isinstance(given, str) else text
    if isinstance(given, bool) or not number.isdecimal() or int(number) > model.n_layers:
        raise CircuitDiscoveryError(
            f"{where}: {model.name} has no layer {shown(given)}; layers are 0 to {model.n_layers}, or resid0 "
            f"to resid{model.n_layers}"
        )
    return int(number)


# ------------------------------------------------------------------- what is run


@torch.no_grad()
def _streams(model: Model, source: Places, layers: set[int], batch_size: int | None) -> dict[int, Tensor]:
    """layer -> [prompts, d_model]: the streams at the source tokens."""
    shape = (len(source.rows), model.d_model)
    found = {layer: torch.empty(shape, dtype=model.dtype, device=model.device) for layer in layers}
    for rows, tokens in batches(model, source.prompts, batch_size):
        positions = source.positions[rows].to(model.device)

        def kept(layer: int, x: Tensor, rows: list[int] = rows, positions: Tensor = positions) -> Tensor:
            found[layer][rows] = x[torch.arange(len(rows), device=x.device), positions.to(x.device)].to(
                model.device
            )
            return x

        edits = {f"resid{layer}": lambda x, layer=layer: kept(layer, x) for layer in layers}
        forward(model, tokens, (f"resid{model.n_layers}",), edits)
    return found


@dataclass(frozen=True)
class _Found:
    """[places, prompts, n] ids; [prompts] the right tokens; [places, prompts] each."""

    generated: Tensor
    right: Tensor
    ranks: Tensor
    losses: Tensor
    surprisals: Tensor


@torch.no_grad()
def _said(
    model: Model,
    streams: Mapping[int, Tensor],
    pairs: Sequence[tuple[int, int]],
    target: Target,
    right: Tensor | None,
    generate: int,
    batch_size: int | None,
    progress: Progress | None,
) -> _Found:
    """What the model says in the target at each pair of layers; `right` is None for its own next token."""
    last = streams[model.n_layers]
    count, shape = len(last), (len(pairs), len(last))
    found = _Found(
        torch.empty(*shape, generate, dtype=torch.long),
        torch.empty(count, dtype=torch.long) if right is None else right,
        torch.empty(shape, dtype=torch.long),
        torch.empty(shape, dtype=torch.double),
        torch.empty(shape, dtype=torch.double),
    )
    fitting = min(at_once(model, len(target.tokens) + generate), memory.logits_at_once(model))
    done = 0
    for some in torch.arange(count).split(batch_size or fitting):
        own = precise(logits_of(model, last[some])).log_softmax(-1)  # [n, V]
        if right is None:
            found.right[some] = own.argmax(-1).cpu()
        wanted = found.right[some].to(own.device)[:, None]
        for i, (at, into) in enumerate(pairs):
            logits, generated = _generated(model, target, f"resid{into}", streams[at][some], generate)
            said = precise(logits).log_softmax(-1).to(own.device)
            of_right = said.gather(-1, wanted)
            found.generated[i, some] = generated.cpu()
            found.ranks[i, some] = (said > of_right).sum(-1).cpu()
            found.losses[i, some] = -of_right[:, 0].double().cpu()
            found.surprisals[i, some] = -own.gather(-1, said.argmax(-1, keepdim=True))[:, 0].double().cpu()
            done += len(some)
            if progress is not None:
                progress(done, count * len(pairs))
    return found


def _generated(
    model: Model, target: Target, place: str, values: Tensor, generate: int
) -> tuple[Tensor, Tensor]:
    """([n, V] the logits of what is read, [n, generate] tokens) with [n, d_model] values put at the
    placeholder. Before that place the runs are one."""

    def put(x: Tensor) -> Tensor:
        x = x.expand(len(values), -1, -1).clone()
        x[:, target.position] = values.to(x.device)
        return x

    tokens, first, generated = torch.tensor([target.tokens], device=model.device), None, list[Tensor]()
    for _ in range(generate):
        logits = forward(model, tokens, (LAST,), {place: put})[LAST]
        first = logits if first is None else first
        generated.append(logits.argmax(-1)[:, None].to(model.device))
        tokens = torch.cat([tokens.expand(len(values), -1), generated[-1]], 1)
    assert first is not None
    return first, torch.cat(generated, 1)
