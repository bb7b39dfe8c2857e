"""`project`: a direction of the residual stream in words, and a head's weights in words.

    "m2/n301"                      the neuron's column of W_out
    sae[17]                        the feature's row of the decoder
    a vector, with at= of a site   itself
    a site, with task=             the mean of what stands there
    "a1.h3"                        token -> token, E W_V W_O W_U': of each token that the head attends to, the
                                   tokens that this raises
    "a1.h3<qk>"                    token -> token, E W_Q (E W_K)': of each token, those that it attends to

E has each token's embedding as the head reads it: after the layer's norm, as if it were the whole stream.

Sources: neurons, Geva et al. 2022, arXiv 2203.14680; weights, Dar et al. 2023, arXiv 2209.02535.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from circuitdiscovery.arguments import guarded
from circuitdiscovery.engine import memory
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.features.collecting import activations
from circuitdiscovery.features.dictionary import Feature
from circuitdiscovery.features.forward import site_of
from circuitdiscovery.features.units import check_no_site, in_stream, unit_of, words_of
from circuitdiscovery.features.words import Words, word, words
from circuitdiscovery.files.disk import data_frame
from circuitdiscovery.model.model import Model
from circuitdiscovery.task.task import Task
from circuitdiscovery.values import Value

if TYPE_CHECKING:
    import pandas as pd

_QK = "<qk>"
_HEAD = re.compile(r"a(\d{1,5})\.h(\d{1,5})(<qk>)?")
_ROWS_AT_ONCE = 2**12  # embeddings


@dataclass(frozen=True, repr=False)
class Projection(Value):
    """A direction or a head's weights in words (see `project`).

    Args:
        what: of what it is.
        model: whose.
        value: what the numbers are.
        promoted: the tokens with the highest numbers, from the highest; of a head's weights pairs of tokens,
            as "from -> to".
        suppressed: those with the lowest, from the lowest.
        promoted_ids, suppressed_ids: the same as token ids, two of a pair.
    """

    what: str
    model: str
    value: str
    promoted: Words
    suppressed: Words
    promoted_ids: tuple[tuple[int, ...], ...]
    suppressed_ids: tuple[tuple[int, ...], ...]

    def to_dataframe(self) -> pd.DataFrame:
        """One row per token or pair: end (promoted or suppressed), token, value. Needs pandas."""
        rows = [
            (end, token, value)
            for end, some in (("promoted", self.promoted), ("suppressed", self.suppressed))
            for token, value in some
        ]
        return data_frame(rows, columns=["end", "token", "value"])

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"{self.what} of {self.model}: {self.value}"
        for end, some in (("promoted", self.promoted), ("suppressed", self.suppressed)):
            yield f"{end:<13} {', '.join(f'{token!r} {value:.3g}' for token, value in some)}"


@guarded
def project(
    model: Model, what: Any, *, at: str | None = None, task: Task | None = None, top: int = 10
) -> Projection:
    """Which tokens a direction of the residual stream raises and lowers, or which pairs of tokens a head's
    weights bind.

    A direction's numbers are what one of it adds to the logits of the last layer: with the final norm's gain,
    without its division by the stream's size, before a cap. A norm that follows the node (Gemma 2 and 3)
    counts in the same way.

    Args:
        model: a loaded model.
        what: a neuron ("m2/n301"), a feature (`sae[17]`), a vector, a head's output weights ("a1.h3") or its
            queries and keys ("a1.h3<qk>"), or with a task any node or site ("m2", "a1", "resid3").
        at: a vector's site, whose width it has; by default the residual stream.
        task: take the mean of what stands at the node or site at the answer's position of the task's clean
            prompts.
        top: how many tokens or pairs at each end.

    Returns:
        `.promoted` and `.suppressed`: (token, number).

    Raises:
        CircuitDiscoveryError: none of these; a node without a task; a site of what is not a vector, or of
            what an MLP reads, of which nothing is added to the stream.

    >>> import circuitdiscovery as cd
    >>> model = cd.load_model("toy")
    >>> task = cd.load_task("subject_verb_agreement", model, examples=16)
    >>> len(cd.features.project(model, "m2", task=task, top=3).promoted)
    3
    """
    if not 1 <= top <= model.vocab_size:
        raise CircuitDiscoveryError(f"top must be a whole number from 1 to {model.vocab_size:,}, not {top}")
    if isinstance(what, str | Feature):
        check_no_site(what, at)
    if task is not None:
        if not isinstance(what, str):
            raise CircuitDiscoveryError(
                "task is for a node or a site by its name: what stands there on average"
            )
        return _of_tokens(model, f"the mean of {what} on {task.title}", _mean(model, what, task), top)
    if isinstance(what, str) and (match := _HEAD.fullmatch(what)):
        return _of_head(model, what, match, top)
    if isinstance(what, str) and "/" not in what:
        site_of(model, what)  # whether it is one at all
        raise CircuitDiscoveryError(
            f"{what} has no direction of its own: give task= for the mean of what stands there, or one of "
            "its neurons (m2/n301), a head (a1.h3, a1.h3<qk>), a feature (sae[17]), or a vector"
        )
    if isinstance(what, str | Feature):
        unit = unit_of(model, what, at)
        assert unit.stream is not None  # a node writes it
        return _of_tokens(model, unit.name, unit.stream, top)
    unit = unit_of(model, what, "resid0" if at is None else at)
    size = float(torch.as_tensor(what).detach().double().norm())
    stream = in_stream(model, unit.written, unit.direction) * size
    return _of_tokens(model, "a vector" if at is None else unit.name, stream, top)


def _mean(model: Model, name: str, task: Task) -> Tensor:
    """[d_model]: the mean at a site, as the stream has it."""
    site = site_of(model, name)
    mean = activations(model, task, name).values.double().mean(0).to(model.device, model.dtype)
    if site.place.endswith(".neurons") and site.unit is not None:
        raise CircuitDiscoveryError(f"{name} is a number: its direction needs no task")
    return in_stream(model, site, mean)


def _of_tokens(model: Model, what: str, stream: Tensor, top: int) -> Projection:
    logits = words_of(model, stream)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    ends = [words(model, logits, top, largest) for largest in (True, False)]
    ids = [[(i,) for i in logits.topk(top, largest=largest).indices.tolist()] for largest in (True, False)]
    told = "what one of it adds to the logits"
    return Projection(what, model.name, told, ends[0], ends[1], tuple(ids[0]), tuple(ids[1]))


# ------------------------------------------------------------------- pairs of tokens


def _of_head(model: Model, name: str, match: re.Match[str], top: int) -> Projection:
    site = site_of(model, name.removesuffix(_QK))
    block, head = model.blocks[int(match[1])], int(match[2])
    if match[3]:
        left, right = (
            torch.cat(
                [_normed(getattr(block, f"{letter}_norm"), part) for part in _read(model, match, letter)]
            )
            for letter in "qk"
        )
        left, told = left * block.scale, "score of the first as query with the second as key, at one position"
    else:
        own = head * len(block.W_V) // len(block.W_Q)
        embedded = (block.norm1(part) for part in _embeddings(model, block.device))
        left = torch.cat([part @ block.W_V[own].T for part in embedded])
        written = in_stream(model, site, block.W_O[head]).to(model.device)
        right = words_of(model, written).T.to(left.device)
        told = "what attending to the first adds to the logit of the second"
    pairs = _extremes(left, right, top)
    ends = [tuple((f"{word(model, a)} -> {word(model, b)}", value) for value, a, b in each) for each in pairs]
    ids = [tuple((a, b) for _, a, b in each) for each in pairs]
    return Projection(name, model.name, told, ends[0], ends[1], ids[0], ids[1])


def _embeddings(model: Model, device: torch.device) -> Iterator[Tensor]:
    """[some, d_model]: the tokens' embeddings, as the stream has them, without positions."""
    for rows in model.W_E[: model.vocab_size].split(_ROWS_AT_ONCE):
        yield model.embedded(rows).to(device)


def _read(model: Model, match: re.Match[str], letter: str) -> Iterator[Tensor]:
    """[some, d_head]: the queries or keys that a head makes of the tokens."""
    block = model.blocks[int(match[1])]
    for rows in _embeddings(model, block.device):
        yield block.head_reads(letter, int(match[2]), rows)


def _normed(norm: Any, x: Tensor) -> Tensor:
    return x if norm is None else norm(x)


def _extremes(left: Tensor, right: Tensor, top: int) -> list[list[tuple[float, int, int]]]:
    """The pairs (value, row, column) of the highest numbers of left right', and of the lowest.

    The matrix [rows, columns] is made some rows at a time; of these, those whose extreme is not among the
    best so far are left out before a sort.
    """
    found: list[tuple[Tensor, Tensor]] = [
        (left.new_empty(0), torch.empty(0, dtype=torch.long, device=left.device))
    ] * 2
    columns, size = len(right), memory.at_once(4 * len(right), left.device)
    for start in range(0, len(left), size):
        values = left[start : start + size] @ right.T
        for end, sign in enumerate((1, -1)):
            best, where = found[end]
            extremes = sign * (values.amax(1) if sign > 0 else values.amin(1))
            floor = best.min() if len(best) == top else -torch.inf
            rows = torch.nonzero(extremes > floor)[:, 0]
            if not len(rows):
                continue
            rows = rows[extremes[rows].argsort(descending=True)[:top]]  # the rest are in no more than these
            some = (sign * values[rows]).flatten()
            high = some.topk(min(top, len(some)))
            at = (start + rows[high.indices // columns]) * columns + high.indices % columns
            best, where = torch.cat([best, high.values]), torch.cat([where, at])
            order = best.argsort(descending=True, stable=True)[:top]
            found[end] = best[order], where[order]
    return [
        [
            (sign * value, at // columns, at % columns)
            for value, at in zip(best.tolist(), where.tolist(), strict=True)
        ]
        for sign, (best, where) in zip((1, -1), found, strict=True)
    ]
