"""Fitting a lens: what stands at its sites, least squares, and training by KL.

Training. The paper (Belrose et al. 2023, arXiv 2303.08112; its code) starts a translator at the identity and
takes 250 steps of SGD on 2^18 tokens each. Here a step costs what a few hundred tokens cost, so each step has
to count:

1. A translator starts at the least squares solution, or at the identity where that is the better one.
2. It is learnt in coordinates in which what it reads has covariance 1, by Adam.
3. Of a large vocabulary a step sees the tokens that are likely on average and a fresh draw of the others,
   each of which stands for as many as were not drawn: its share log(others / drawn) is added to both logits
   before the softmax, so that with all tokens the loss is KL(model || lens) itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from tempfile import TemporaryFile

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from circuitdiscovery.engine.memory import budget
from circuitdiscovery.engine.setup import Progress
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.features.forward import forward
from circuitdiscovery.features.prompts import batches
from circuitdiscovery.features.units import width_of
from circuitdiscovery.model.model import Model
from circuitdiscovery.model.norm import Norm, no_norm

BATCH = 256
COMMON, DRAWN = 1024, 1024  # tokens of the vocabulary that a step sees
_WARM = 10  # steps in which the learning rate rises; it falls to 0 after them
_COUNTED = 2048  # rows on which it is counted which tokens are common
_FLAT = 1e-6  # of the mean variance: a direction with less is taken to have so much
_LEAST = 1e-30  # variance
_CUT = 1e-12  # of the largest variance: least squares leaves out directions with less
_AT_ONCE = 2**12  # rows
Places = Mapping[str, tuple[str, Sequence[Sequence[int]]]]
Rows = Callable[[Tensor], Tensor]


def gathered(
    model: Model,
    prompts: Sequence[tuple[int, ...]],
    wanted: Places,
    batch_size: int | None,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """name -> [n, width], on the CPU in float32 at least: what stands at some places, in the prompts' order.

    It is held in memory, or, where that is more than half of what may be held, in a temporary file.

    Args:
        model: a loaded model.
        prompts: token ids.
        wanted: name -> (a place of the forward, of each prompt the positions).
        batch_size: prompts in one forward.
        progress: called with (prompts done, prompts in all).
    """
    starts = {name: [0, *accumulate(map(len, where))] for name, (_, where) in wanted.items()}
    shapes = {name: (starts[name][-1], width_of(model, place)) for name, (place, _) in wanted.items()}
    held = _room(shapes, torch.promote_types(model.dtype, torch.float32))
    places, done = {place for place, _ in wanted.values()}, 0
    for some, tokens in batches(model, prompts, batch_size):
        found = forward(model, tokens, places)
        for name, (place, where) in wanted.items():
            for row, values in zip(some, found[place], strict=True):
                first = starts[name][row]
                held[name][first : first + len(where[row])] = values[list(where[row])].cpu()
        done += len(some)
        if progress is not None:
            progress(done, len(prompts))
    return held


def _room(shapes: Mapping[str, tuple[int, int]], dtype: torch.dtype) -> dict[str, Tensor]:
    kind = np.float64 if dtype == torch.float64 else np.float32
    size = sum(map(math.prod, shapes.values())) * np.dtype(kind).itemsize
    if size <= budget(torch.device("cpu")) / 2:
        return {name: torch.empty(shape, dtype=dtype) for name, shape in shapes.items()}
    found = {}
    for name, shape in shapes.items():
        with TemporaryFile() as file:  # the values stay as long as they are used
            found[name] = torch.from_numpy(np.memmap(file, kind, "w+", shape=shape))
    return found


@dataclass(frozen=True)
class Affine:
    """x -> (x - centre) weight' + bias.

    Args:
        weight: [d_out, d_in].
        bias: [d_out]; None: none.
        centre: [d_in]; None: none.
    """

    weight: Tensor
    bias: Tensor | None = None
    centre: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x if self.centre is None else x - self.centre, self.weight, self.bias)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Those that it has, by name."""
        return {part.name: each for part in fields(self) if (each := getattr(self, part.name)) is not None}

    def to(self, device: torch.device) -> Affine:
        """The same on a device."""
        return Affine(**{name: each.to(device) for name, each in self.tensors.items()})


def _as_it_is(rows: Tensor) -> Tensor:
    return rows


@dataclass(frozen=True)
class _Moments:
    """Of rows x and y, in float64: their means, and the covariances of x with itself and with y."""

    x: Tensor
    y: Tensor
    xx: Tensor
    xy: Tensor

    @classmethod
    def of(cls, x: Tensor, y: Tensor, centred: bool = True, to: Rows = _as_it_is) -> _Moments:
        """Of y what `to` makes of its rows is meant."""
        d, e = x.shape[1], y.shape[1]
        found = cls(*(torch.zeros(shape, dtype=torch.float64) for shape in ((d,), (e,), (d, d), (d, e))))
        parts = list(zip(x.split(_AT_ONCE), y.split(_AT_ONCE), strict=True))
        for a, b in parts if centred else ():
            found.x.add_(a.double().sum(0) / len(x))
            found.y.add_(to(b).double().sum(0) / len(x))
        for a, b in parts:
            left = a.double() - found.x
            found.xx.addmm_(left.T, left, alpha=1 / len(x))
            found.xy.addmm_(left.T, to(b).double() - found.y, alpha=1 / len(x))
        return found


def least_squares(x: Tensor, y: Tensor, *, bias: bool) -> Affine:
    """The map of [n, d_in] rows that is nearest to [n, d_out] in the mean square; of several the smallest."""
    found = _Moments.of(x, y, centred=bias)
    weight = (torch.linalg.pinv(found.xx, rtol=_CUT, hermitian=True) @ found.xy).T
    shift = found.y - weight @ found.x if bias else None
    return Affine(weight.to(x.dtype), None if shift is None else shift.to(x.dtype))


class KLTraining:
    """Maps to what the unembedding reads, each trained to give the model's own distribution.

    The rows may lie in a file: what is made of them is made of some at a time.

    Args:
        model: whose.
        final: [n, d_model], its last stream before the final norm, a row for each of what is read.
        normed: whether the maps are to that stream, and the final norm follows; else to what it gives.
        lr: Adam's learning rate, at its highest.
        steps: of Adam.
    """

    def __init__(self, model: Model, final: Tensor, *, normed: bool, lr: float, steps: int) -> None:
        self.lr, self.steps = lr, steps
        wide = torch.promote_types(model.dtype, torch.float32)
        self.model = replace(model, final_norm=_as(model.stream_norm, wide))
        self.final = final
        self.goal = _as_it_is if normed else self._normed
        self.after = self.model.final_norm if normed else no_norm(final[:1].to(model.device))
        self.common = self._common()

    def _normed(self, final: Tensor) -> Tensor:
        return self.model.final_norm(final.to(self.model.device)).cpu()

    def _common(self) -> Tensor | None:
        """All tokens, the likeliest on average first; None where all are seen."""
        if self.model.vocab_size <= COMMON + DRAWN:
            return None
        total = torch.zeros(self.model.vocab_size)
        every = max(1, len(self.final) // _COUNTED)
        with torch.no_grad():
            for part in self.final[::every].split(BATCH):
                logits = self.model.logits_of(self._normed(part).to(self.model.device, self.model.dtype))
                total += logits.float().softmax(-1).sum(0).cpu()
        return total.argsort(descending=True, stable=True)

    def _seen(self, generator: torch.Generator) -> tuple[Model, Tensor]:
        """(the model with the tokens that one step sees, what is added to each one's logit)."""
        model, wide = self.model, self.final.dtype
        if self.common is None:
            seen, share = torch.arange(model.vocab_size), torch.zeros(model.vocab_size, dtype=wide)
        else:
            others = len(self.common) - COMMON
            drawn = COMMON + torch.randperm(others, generator=generator)[:DRAWN]
            seen = self.common[torch.cat([torch.arange(COMMON), drawn])]
            share = torch.zeros(len(seen), dtype=wide)
            share[COMMON:] = math.log(others / DRAWN)
        seen = seen.to(model.device)
        bias = None if model.b_U is None else model.b_U[seen].to(wide)
        own = model if self.common is None and model.dtype == wide else None
        return own or replace(model, W_U=model.W_U[seen].to(wide), b_U=bias), share.to(model.device)

    def _loss(self, made: Tensor, rows: Tensor, seen: tuple[Model, Tensor]) -> Tensor:
        """The mean KL(model || lens) over some rows, estimated on the tokens that are seen."""
        model, share = seen
        target = model.logits_of(self._normed(self.final[rows]).to(model.device)) + share
        given = (model.logits_of(self.after(made)) + share).log_softmax(-1)
        return F.kl_div(given, target.log_softmax(-1), log_target=True, reduction="batchmean")

    def _deviation(self, mean: Tensor) -> float:
        """The root of the mean square of what the maps are to, about its mean."""
        parts = (self.goal(part) - mean for part in self.final.split(_AT_ONCE))
        return math.sqrt(sum(float(part.double().square().sum()) for part in parts) / self.final.numel())

    def fit(self, x: Tensor, seed: int, progress: Progress | None = None) -> Affine:
        """The map of [n, width] rows.

        Raises:
            CircuitDiscoveryError: the loss is not a finite number.
        """
        generator, device = torch.Generator().manual_seed(seed), self.model.device
        moments = _Moments.of(x, self.final, to=self.goal)
        values, vectors = torch.linalg.eigh(moments.xx)
        values = values.clamp_min(0) + _FLAT * values.mean().clamp_min(_LEAST)
        white = vectors * values.rsqrt()  # (x - its mean) @ white has covariance 1
        centre, whitener = moments.x.to(x.dtype), white.to(x.dtype)
        size = self._deviation(moments.y.to(x.dtype)) or 1.0
        starts = [(moments.y, white.T @ moments.xy / size)]
        if x.shape[1] == self.final.shape[1] and self.after is self.model.final_norm:  # the identity
            starts.append((moments.x, (vectors * values.sqrt()).T / size))
        rows = torch.randperm(len(x), generator=generator)

        def made(at: Tensor, start: Tensor, matrix: Tensor) -> Tensor:
            return start + size * (((x[at] - centre) @ whitener).to(device) @ matrix)

        with torch.no_grad():
            seen, at = self._seen(generator), rows[: 4 * BATCH]
            ready = [tuple(each.to(device, x.dtype) for each in start) for start in starts]
            first, matrix = min(ready, key=lambda each: float(self._loss(made(at, *each), at, seen)))
        matrix, shift = matrix.clone().requires_grad_(), torch.zeros_like(first).requires_grad_()
        adam = torch.optim.Adam([matrix, shift], lr=self.lr, betas=(0.9, 0.99))
        taken = len(rows)
        for step in range(self.steps):
            if taken + BATCH > len(rows):
                rows, taken = torch.randperm(len(x), generator=generator), 0
            at, taken = rows[taken : taken + BATCH], taken + BATCH
            loss = self._loss(made(at, first + size * shift, matrix), at, self._seen(generator))
            if not math.isfinite(float(loss.detach())):
                raise CircuitDiscoveryError(
                    f"the training diverged at step {step}: the loss is not finite; give a smaller lr (it is "
                    f"{self.lr:g})"
                )
            adam.zero_grad()
            loss.backward()
            adam.param_groups[0]["lr"] = self.lr * min((step + 1) / _WARM, 1 - step / self.steps)
            adam.step()
            if progress is not None:
                progress(step + 1, self.steps)
        with torch.no_grad():
            weight = size * (white @ matrix.detach().cpu().double()).T
            bias = (first + size * shift).detach().cpu()
        return Affine(weight.to(x.dtype), bias, centre)


def _as(norm: Norm, dtype: torch.dtype) -> Norm:
    bias = None if norm.bias is None else norm.bias.to(dtype)
    return replace(norm, weight=norm.weight.to(dtype), bias=bias)
