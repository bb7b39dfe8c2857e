"""`run`: a model as it is, but for values at some places that are read or replaced."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor

from circuitdiscovery.arguments import guarded
from circuitdiscovery.errors import CircuitDiscoveryError, shown
from circuitdiscovery.features.forward import LAST, LOGITS, Site, forward, site_of
from circuitdiscovery.features.prompts import batches, prompts_of
from circuitdiscovery.model.model import Model

Edit = Callable[[Tensor, list[int]], Any]


@dataclass(frozen=True, eq=False, repr=False)
class Run:
    """A run of prompts (see `run`).

    Args:
        prompts: token ids, a row per prompt; what was generated is not part of them.
        logits: [prompts, vocabulary], after each prompt's last token.
        generated: [prompts, n] token ids; n is 0 where nothing was asked for.
        edits: site -> what was done there, as it was given.
    """

    prompts: tuple[tuple[int, ...], ...]
    logits: Tensor
    generated: Tensor
    edits: Mapping[str, Any]
    _model: Model = field(repr=False)
    _batch_size: int | None = None

    @property
    def texts(self) -> list[str]:
        """What was generated, as text.

        Raises:
            CircuitDiscoveryError: the model has no tokenizer.
        """
        if self._model.tokenizer is None:
            raise CircuitDiscoveryError(f"{self._model.name} has no tokenizer; .generated has the tokens")
        decode = self._model.tokenizer.decode
        both = zip(self.prompts, self.generated.tolist(), strict=True)
        return [decode([*prompt, *new]).removeprefix(decode(list(prompt))) for prompt, new in both]

    def values(self, site: str) -> Any:
        """What stands at a site in this run, after the edit of it where there is one.

        It is computed when it is asked for.

        Args:
            site: any that `run` knows, or "logits": those after every token.

        Returns:
            [prompts, T, width] (of a neuron [prompts, T]); of prompts of different lengths a list with a
            tensor [T, width] for each.

        Raises:
            CircuitDiscoveryError: the model has no such site.
        """
        found = Site(site, site) if site == LOGITS else site_of(self._model, site)
        edits = _edits(self._model, self.edits)
        each: list[Tensor | None] = [None] * len(self.prompts)
        for rows, tokens in batches(self._model, self.prompts, self._batch_size):
            values = found.of(_once(self._model, tokens, rows, edits, found.place))
            values = values if found.unit is None else values.clone()  # a view would keep all units' values
            for row, value in zip(rows, values, strict=True):
                each[row] = value
        rows = [value for value in each if value is not None]
        return torch.stack(rows) if len({len(row) for row in rows}) == 1 else rows

    def __repr__(self) -> str:
        told = f", edits at {', '.join(self.edits)}" if self.edits else ""
        more = f", {self.generated.shape[1]} tokens generated" if self.generated.shape[1] else ""
        return f"<Run of {len(self.prompts)} prompts{told}{more}>"


@guarded
def run(
    model: Model,
    prompts: Any,
    *,
    edits: Mapping[str, Any] | None = None,
    generate: int = 0,
    batch_size: int | None = None,
) -> Run:
    """Run prompts through a model, with values at some sites replaced.

    Sites: the stream before each block and after the last, `resid0` ... `resid{L}`; what attention adds to
    the stream, `a1`; what one head writes, `a1.h3`; what attention's output matrix reads, `a1.z`; what an MLP
    adds, `m2`; its neurons, `m2.neurons`, or one of them, `m2/n301`; what it reads, `m2.stream` (before its
    norm), `m2.bare` (after the norm, without the norm's gain and bias) and `m2.normed`.

    Args:
        model: a loaded model.
        prompts: a text, several texts, rows of token ids, or a task, whose clean prompts are meant.
        edits: site -> a value (a number, or a tensor that can be expanded to the site's), or a function of
            what stands there, [n, T, width] ([n, T] of a neuron), that gives what to put in its place.
            Prompts of one length come together, without pads; a function of two arguments gets the numbers of
            these prompts as the second. To add a vector v: `{"resid5": lambda x: x + v}`.
        generate: how many tokens to generate after each prompt, each the most likely one under the edits,
            which see all tokens so far.
        batch_size: how many prompts are run at once; by default about eight thousand tokens.

    Returns:
        The run: `.logits` after each prompt's last token, `.values(site)`, and what was generated.

    Raises:
        CircuitDiscoveryError: no such site, an unknown token, an edit that gives another shape.

    >>> import circuitdiscovery as cd
    >>> model = cd.load_model("toy")
    >>> plain = cd.features.run(model, "The keys on the table", generate=1)
    >>> edited = cd.features.run(model, "The keys on the table", edits={"m0": 0.0}, generate=1)
    >>> plain.texts, edited.values("m0").abs().max().item()
    ([' are'], 0.0)
    """
    rows = prompts_of(model, prompts, "prompts").rows
    if generate < 0:
        raise CircuitDiscoveryError(f"generate must be a whole number of at least 0, not {generate}")
    if edits is not None and not isinstance(edits, Mapping):
        raise CircuitDiscoveryError(
            f"edits must be a mapping from sites to values or functions, not {shown(edits)}"
        )
    longest = max(map(len, rows)) + generate
    if generate and model.max_length is not None and longest > model.max_length:
        raise CircuitDiscoveryError(
            f"{model.name}: {generate} tokens after a prompt would be {longest} in all, more than its "
            f"{model.max_length} positions"
        )
    logits = torch.empty(len(rows), model.vocab_size, dtype=model.dtype, device=model.device)
    generated = torch.empty(len(rows), generate, dtype=torch.long, device=model.device)
    made = _edits(model, edits or {})
    for some, tokens in batches(model, rows, batch_size):
        logits[some] = _once(model, tokens, some, made, LAST)
        following = logits[some]
        for step in range(generate):
            following = _once(model, tokens, some, made, LAST) if step else following
            generated[some, step] = following.argmax(-1)
            tokens = torch.cat([tokens, generated[some, step][:, None]], 1)
    return Run(rows, logits, generated, dict(edits or {}), model, batch_size)


@torch.no_grad()
def _once(model: Model, tokens: Tensor, rows: list[int], edits: Mapping[str, Any], place: str) -> Tensor:
    """The values of one place."""
    functions = {where: partial(_applied, some, rows) for where, some in edits.items()}
    return forward(model, tokens, (place,), functions)[place]


def _edits(model: Model, edits: Mapping[str, Any]) -> dict[str, list[tuple[Site, Edit]]]:
    """By place, in the order in which they were given."""
    found: dict[str, list[tuple[Site, Edit]]] = {}
    for name, value in edits.items():
        site = site_of(model, name)
        found.setdefault(site.place, []).append((site, _edit(value)))
    return found


def _edit(value: Any) -> Edit:
    if not callable(value):
        return lambda x, rows: value
    try:
        given = signature(value).parameters.values()
    except (TypeError, ValueError):  # a function in C
        given = ()
    places = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    needed = sum(each.kind in places and each.default is Parameter.empty for each in given)
    return value if needed > 1 else lambda x, rows: value(x)


def _applied(some: Sequence[tuple[Site, Edit]], rows: list[int], values: Tensor) -> Tensor:
    """A place's values with the edits of its sites."""
    for site, edit in some:
        old = site.of(values)
        new = _shaped(site.name, edit(old, rows), old)
        if site.unit is None:
            values = new
        else:
            values = values.clone()
            site.of(values).copy_(new)
    return values


def _shaped(name: str, new: Any, old: Tensor) -> Tensor:
    try:
        return torch.as_tensor(new, dtype=old.dtype, device=old.device).expand_as(old)
    except (RuntimeError, TypeError, ValueError):
        what = list(new.shape) if isinstance(new, Tensor) else shown(new)
        raise CircuitDiscoveryError(
            f"edits[{name!r}] gives {what}; there it must be of shape {list(old.shape)}"
        ) from None
