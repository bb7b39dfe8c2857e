"""What a lens shows at its sites, beside what the model says."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from circuitdiscovery.arguments import guarded
from circuitdiscovery.engine import memory
from circuitdiscovery.engine.metrics import precise
from circuitdiscovery.engine.setup import Progress
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.features.lens_fitting import gathered
from circuitdiscovery.features.places import Places, places_of
from circuitdiscovery.features.units import logits_of
from circuitdiscovery.features.words import words
from circuitdiscovery.files.disk import data_frame
from circuitdiscovery.files.figures import figure_path, write_figure
from circuitdiscovery.measure import intervals
from circuitdiscovery.measure.estimates import Estimate, drawn
from circuitdiscovery.model.model import Model
from circuitdiscovery.task.task import Task
from circuitdiscovery.values import told

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from circuitdiscovery.features.lenses import Lens

TOP = 10  # tokens of a site
_SHOWN = 5  # tokens in the table


@dataclass(frozen=True, eq=False, repr=False)
class LensReading:
    """What a lens shows (see `Lens.read`).

    Args:
        lens: in words.
        on: what was read, in words.
        recalled: what `recall` is about, in words.
        sites: where.
        prompts, positions: [n], of each row its prompt and the position of the model's output.
        divergences: [sites, n], KL(model || lens) in nats.
        ranks: [sites, n], how many tokens the lens holds likelier than the one to be recalled, or as likely
            and of lower number; of several right answers the best is meant.
        tokens: [sites, n], the lens's likeliest token.
        top: [sites], the tokens of highest mean probability, each with it.
    """

    lens: str
    on: str
    recalled: str
    sites: tuple[str, ...]
    prompts: Tensor
    positions: Tensor
    divergences: Tensor
    ranks: Tensor
    tokens: Tensor
    top: tuple[tuple[tuple[str, float], ...], ...]

    @property
    def kl(self) -> tuple[Estimate, ...]:
        """[sites]: the mean KL(model || lens), with a 95% interval over prompts."""
        return self._means(self.divergences)

    @guarded
    def recall(self, k: int = 10) -> tuple[Estimate, ...]:
        """[sites]: how often the token is among the k likeliest of the lens, with a 95% interval over
        prompts.

        Args:
            k: a whole number of at least 1.

        Raises:
            CircuitDiscoveryError: another k.
        """
        if k < 1:
            raise CircuitDiscoveryError(f"k must be a whole number of at least 1, not {k}")
        return self._means(self.ranks < k)

    def _means(self, values: Tensor) -> tuple[Estimate, ...]:
        rows = values.double().numpy()
        _, prompt, counts = np.unique(self.prompts.numpy(), return_inverse=True, return_counts=True)
        if len(counts) == 1:
            return tuple(Estimate(float(row.mean())) for row in rows)
        draws = drawn(len(counts), 0)
        if len(counts) == rows.shape[1]:  # one row of each prompt
            if values.dtype == torch.bool:
                return tuple(intervals.share(int(row.sum()), len(row)) for row in rows)
            return tuple(intervals.means(rows, draws, skewed=True))
        sums = [np.bincount(prompt, row, len(counts)) for row in rows]
        most = 1.0 if values.dtype == torch.bool else math.inf
        found = [intervals.clipped(intervals.ratio(each, counts, draws), 0.0, most) for each in sums]
        if values.dtype == torch.bool:  # of one outcome alone the draws have no spread
            found = [
                each if 0 < each < 1 else intervals.share(int(each) * len(counts), len(counts))
                for each in found
            ]
        return tuple(found)

    def to_dataframe(self) -> pd.DataFrame:
        """One row per site: kl, recall at 1 and 10, each with its interval, and the tokens. Needs pandas."""
        columns = ["site", *(f"{name}{end}" for name in ("kl", "recall_1", "recall_10")
                             for end in ("", "_low", "_high")), "top"]  # fmt: skip
        rows = []
        for site, *numbers, top in zip(
            self.sites, self.kl, self.recall(1), self.recall(10), self.top, strict=True
        ):
            ends = (end for each in numbers for end in (float(each), each.low, each.high))
            rows.append((site, *ends, ", ".join(token for token, _ in top)))
        return data_frame(rows, columns=columns)

    def to_dict(self) -> dict[str, Any]:
        """The table, as JSON."""
        each = zip(self.sites, self.kl, self.recall(1), self.recall(10), self.top, strict=True)
        rows = [
            {"site": site, "kl": kl.to_dict(), "recall_1": one.to_dict(), "recall_10": ten.to_dict(),
             "top": [list(pair) for pair in top]}
            for site, kl, one, ten, top in each
        ]  # fmt: skip
        known = {"lens": self.lens, "on": self.on, "recalled": self.recalled}
        return known | {"rows": self.ranks.shape[1], "sites": rows}

    @guarded
    def plot(self, path: str | Path | None = None) -> Figure:
        """KL and recall at 1 and 10 by site, with their intervals, by matplotlib.

        Args:
            path: a .png or .svg file to write; by default none.

        Returns:
            The figure, which a notebook displays.

        Raises:
            CircuitDiscoveryError: a path with another ending, or that cannot be written.
        """
        return plotted([self.to_dict()], path)

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def __repr__(self) -> str:
        return (
            f"<LensReading of {self.lens} on {self.on}: {len(self.sites)} sites, {len(self.prompts):,} rows>"
        )

    def _repr_html_(self) -> str:
        return told(str(self))

    def _lines(self) -> Iterator[str]:
        yield f"{self.lens} on {self.on}: {self.ranks.shape[1]:,} positions; recall of {self.recalled}"
        yield f"{'site':<8} {'KL(model || lens)':<24} {'recall@1':<22} {'recall@10':<22} likeliest tokens"
        for site, kl, one, ten, top in zip(
            self.sites, self.kl, self.recall(1), self.recall(10), self.top, strict=True
        ):
            shown = " ".join(repr(token)[1:-1] for token, _ in top[:_SHOWN])
            yield f"{site:<8} {kl!s:<24} {one!s:<22} {ten!s:<22} {shown}"


def read(
    lens: Lens,
    model: Model,
    given: Any,
    *,
    position: Any,
    first: bool,
    batch_size: int | None,
    progress: Progress | None,
) -> LensReading:
    """See `Lens.read`."""
    read_at = places_of(model, given, position, first)
    kept = _within(read_at, given, position, lens.ahead, 0 if first else 1)
    prompt, place = read_at.rows[kept], read_at.positions[kept]
    where = [list[int]() for _ in read_at.prompts]
    for row, at in zip(prompt.tolist(), place.tolist(), strict=True):
        where[row].append(at)
    before = [[at - lens.ahead for at in each] for each in where]
    wanted = {name: (name, before) for name in dict.fromkeys(map(lens.place_of, lens.sites))}
    wanted["final"] = (f"resid{model.n_layers}", where)
    held = gathered(model, read_at.prompts, wanted, batch_size, progress)
    answers = [given.examples[row].correct for row in prompt.tolist()] if isinstance(given, Task) else None
    sites, n = len(lens.sites), len(prompt)
    divergences, ranks = torch.empty(sites, n, dtype=torch.float64), torch.empty(sites, n, dtype=torch.long)
    tokens, total = torch.empty_like(ranks), torch.zeros(sites, model.vocab_size, dtype=torch.float64)
    size = memory.logits_at_once(model)
    for start in range(0, n, size):
        here = slice(start, start + size)
        plain = logits_of(model, held["final"][here].to(model.device, model.dtype))
        right = plain.argmax(-1, keepdim=True) if answers is None else _padded(answers[here], model)
        expected = precise(plain).log_softmax(-1)
        chances = expected.exp()
        for i, site in enumerate(lens.sites):
            logits = lens.logits(site, held[lens.place_of(site)][here])
            made = precise(logits).log_softmax(-1)
            divergences[i, here] = torch.einsum("nv,nv->n", chances, expected - made).double().cpu()
            ranks[i, here] = _ranks(logits, right).cpu()
            tokens[i, here] = logits.argmax(-1).cpu()
            total[i] += made.exp_().sum(0).double().cpu()
    on = f"{given.name}" if isinstance(given, Task) else f"{len(read_at.prompts):,} texts"
    return LensReading(
        lens=f"{lens.kind} lens of {model.name}" + (f", {lens.ahead} ahead" if lens.ahead else ""),
        on=on,
        recalled="the model's likeliest token" if answers is None else "the answer",
        sites=lens.sites,
        prompts=prompt,
        positions=place,
        divergences=divergences,
        ranks=ranks,
        tokens=tokens,
        top=tuple(words(model, row / n, TOP) for row in total),
    )


def _within(read_at: Places, given: Any, position: Any, ahead: int, least: int) -> Tensor:
    """Which rows have a token so many before; of named positions all must have."""
    if not ahead:
        return torch.ones(len(read_at.rows), dtype=torch.bool)
    named = isinstance(given, Task) or position not in (None, "all")
    kept = read_at.positions - ahead >= (0 if named and position != "all" else least)
    if (named and position != "all" and not bool(kept.all())) or not bool(kept.any()):
        raise CircuitDiscoveryError(
            f"a lens that looks {ahead} ahead needs prompts with {ahead} tokens before the position"
        )
    return kept


def _ranks(logits: Tensor, right: Tensor) -> Tensor:
    """[n]: how many tokens come before the best right one by logit, and among equal logits, of which a half
    precision has many, by number, as with argmax.

    Args:
        logits: [n, vocabulary].
        right: [n, most], -1 where a row has fewer.
    """
    own = logits.gather(-1, right.clamp_min(0)).masked_fill(right < 0, -torch.inf)
    best = own.amax(-1, keepdim=True)
    first = right.masked_fill(own < best, logits.shape[-1]).amin(-1, keepdim=True)
    tied = logits[:, : int(first.max())] == best
    before = torch.arange(tied.shape[1], device=first.device) < first
    return (logits > best).sum(-1) + (tied & before).sum(-1)


def _padded(answers: Sequence[tuple[int, ...]], model: Model) -> Tensor:
    """[n, most]: the right answers, -1 where a row has fewer."""
    most = max(map(len, answers))
    return torch.tensor([[*each, *[-1] * (most - len(each))] for each in answers], device=model.device)


def plotted(tables: Sequence[Mapping[str, Any]], path: str | Path | None = None) -> Figure:
    """KL and recall by site: of one reading recall at 1 and 10, of several a line for each, and recall at 10.

    Args:
        tables: what `LensReading.to_dict` gives, of readings with the same sites.
        path: a .png or .svg file to write; None: none.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    where = figure_path(path)
    figure = Figure(figsize=(10.0, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    single = len(tables) == 1
    for table in tables:
        _line(left, table, "kl", table["lens"])
        for k in (1, 10) if single else (10,):
            _line(right, table, f"recall_{k}", f"recall@{k}" if single else table["lens"])
    recalled = tables[0]["recalled"]
    left.set(ylabel="KL(model || lens), nats", yscale="symlog" if not single else "linear", ylim=(0, None))
    right.set(ylabel=f"recall of {recalled}" if single else f"recall@10 of {recalled}", ylim=(0, 1.02))
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    return write_figure(figure, where)


def _line(axes: Any, table: Mapping[str, Any], figure: str, label: str) -> None:
    rows = table["sites"]
    at, every = np.arange(len(rows)), max(1, len(rows) // 10)
    value, low, high = (
        np.array([row[figure][end] for row in rows], dtype=float) for end in ("value", "low", "high")
    )
    (line,) = axes.plot(at, value, label=label, linewidth=1.6)
    axes.fill_between(at, low, high, color=line.get_color(), alpha=0.18, linewidth=0)
    axes.set_xticks(at[::every], [rows[i]["site"] for i in at[::every]], rotation=45, fontsize=8)
