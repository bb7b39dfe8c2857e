"""`train_sae`: a sparse dictionary of activations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuitdiscovery.arguments import guarded
from circuitdiscovery.engine.setup import Progress
from circuitdiscovery.engine.state import State, adam_arrays, adam_as_kept, kept_in
from circuitdiscovery.errors import CircuitDiscoveryError, unknown
from circuitdiscovery.features import losses
from circuitdiscovery.features.collecting import Activations, as_activations
from circuitdiscovery.features.dictionary import Dictionary
from circuitdiscovery.features.end_to_end import Downstream
from circuitdiscovery.features.forward import INPUTS
from circuitdiscovery.features.sites import is_site
from circuitdiscovery.features.standing import check_rows
from circuitdiscovery.features.whole import KINDS
from circuitdiscovery.model.model import Model

_BATCH = 1024
STEPS = 2000
_WARM = 100  # steps in which the learning rate rises
_DECAY = 0.2  # of the steps, the last ones, in which it falls to 0
_SPARSE = 0.3  # of the steps, the first ones, in which sparsity's weight rises
_SPARSITY: Mapping[str, float] = {"topk": 0.0, "relu": 1.0, "jumprelu": 0.5, "gated": 2.0}
_POINTS = 100  # of the curve
_KEPT_STEPS = 20  # between two copies of all that a training stands on
_CURVE = ("step", "loss", "explained_variance", "l0", "dead")


class _Diverged(CircuitDiscoveryError):
    """The loss is not finite."""


@dataclass(frozen=True)
class _Scale:
    """What activations are centred and scaled by: E|x - centre|^2 = d times the scale's square."""

    centre: Tensor
    size: float

    @classmethod
    def of(cls, acts: Activations, what: str) -> _Scale:
        total, squares = torch.zeros(acts.d, dtype=torch.float64), 0.0
        for chunk in acts.chunks():
            total += chunk.double().sum(0)
        centre = total / len(acts)
        for chunk in acts.chunks():
            squares += float((chunk.double() - centre).square().sum())
        if squares <= 0.0:
            raise CircuitDiscoveryError(f"{what} is everywhere the same: there is nothing to learn")
        return cls(centre.float(), math.sqrt(squares / len(acts) / acts.d))

    def __call__(self, x: Tensor) -> Tensor:
        return (x.float() - self.centre) / self.size


@guarded
def train_sae(
    acts: Any,
    *,
    kind: str = "topk",
    n: int = 512,
    k: int = 8,
    sparsity: float | None = None,
    steps: int | None = None,
    lr: float | None = None,
    target: Any = None,
    end_to_end: Model | None = None,
    downstream: float = 0.0,
    seed: int = 0,
    state: str | Path | None = None,
    progress: Progress | None = None,
) -> Dictionary:
    """Train a sparse dictionary: an autoencoder of activations, or a transcoder from some to others.

    Activations are centred and scaled for the training, so that their mean squared distance from their mean
    is their width; the dictionary is of the activations as they are. Adam, with batches of 1,024 rows drawn
    at random, a learning rate that rises over 100 steps and falls over the last fifth, and decoder rows of
    length 1.

    Args:
        acts: what `activations` gives, or a matrix [rows, d].
        kind: "topk" (Gao et al. 2024, arXiv 2406.04093, with their auxiliary loss for dead features), "relu"
            (Bricken et al. 2023: an L1 penalty), "jumprelu" (Rajamanoharan et al. 2024b, arXiv 2407.14435) or
            "gated" (the same, 2024a, arXiv 2404.16014). `features.losses` has their formulas.
        n: how many features.
        k: how many are active at once; of "topk" alone.
        sparsity: the weight of the penalty of the other kinds; by default 1 of "relu", .5 of "jumprelu"
            and 2 of "gated". The thresholds of "jumprelu" move by at most lr in a step, as logarithms: in a
            few hundred steps its weight changes little.
        steps: how many; by default 2,000.
        lr: the learning rate; by default 2e-4 sqrt(2^14 / n) (the scaling of Gao et al.).
        target: what is to be written, row for row: makes a transcoder of what an MLP reads (`m2.normed`,
            `m2.bare` or `m2.stream`) and what it writes (`m2`; Dunefsky et al. 2024, arXiv 2406.11944).
        end_to_end: the model that the activations are of, to train for what it does with what the dictionary
            writes: KL(model || model with that in the site's place) takes the place of the squared error
            (Braun et al. 2024, arXiv 2405.12241, section 2.3; `features.end_to_end` has the formula). Batches
            are of whole prompts then.
        downstream: with `end_to_end`, the weight of the errors of the residual streams after the site (the
            same, section 2.4).
        seed: of the first directions and of the batches: the same seed, the same dictionary.
        state: a file in which a training is kept that may be stopped: the same call goes on with it.
        progress: called with (steps done, steps in all).

    Returns:
        The dictionary. Its `.history` is the training's curve, about 100 times: step, loss and
        explained_variance (of the batch; NaN where its rows are all the same), l0 and dead (how many features
        have had no value for 100 steps).

    Raises:
        CircuitDiscoveryError: an unknown kind; numbers that are not finite, in the activations or, where the
            training diverges, in the loss; a target of other rows; end_to_end of activations without prompts
            or of another model.

    >>> import circuitdiscovery as cd, torch
    >>> acts = torch.randn(500, 16, generator=torch.Generator().manual_seed(0))
    >>> sae = cd.features.train_sae(acts, kind="topk", n=32, k=4, steps=50)
    >>> sae, len(sae.history)
    (Dictionary(topk autoencoder, site=None, features=32, d_in=16, d_out=16), 50)
    """
    if kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    read = as_activations(acts, "acts")
    written = read if target is None else as_activations(target, "target")
    steps = STEPS if steps is None else steps
    for name, value, least in (("n", n, 1), ("k", k, 1), ("steps", steps, 1)):
        if value < least:
            raise CircuitDiscoveryError(f"{name} must be a whole number of at least {least}, not {value}")
    if kind == "topk" and k > n:
        raise CircuitDiscoveryError(f"k is {k}, but there are only {n} features")
    if kind == "topk" and sparsity is not None:
        raise CircuitDiscoveryError("sparsity is for relu, jumprelu and gated; of topk it is k")
    for name, number in (("sparsity", sparsity), ("lr", lr)):
        if number is not None and not number > 0:
            raise CircuitDiscoveryError(f"{name} must be above 0, not {number:g}")
    if downstream < 0 or (downstream and end_to_end is None):
        raise CircuitDiscoveryError("downstream is a weight of at least 0, and needs end_to_end=")
    site, reads = _where(read, None if target is None else written)
    work = {
        "kind": kind,
        "n": n,
        "k": k if kind == "topk" else None,
        "sparsity": _SPARSITY[kind] if sparsity is None else sparsity,
        "steps": steps,
        "lr": 2e-4 * math.sqrt(2**14 / n) if lr is None else lr,
        "seed": seed,
        "end_to_end": None if end_to_end is None else end_to_end.digest,
        "downstream": downstream,
        "acts": read.digest if state is not None else None,
        "target": written.digest if state is not None and target is not None else None,
    }
    scales = _Scale.of(read, "acts"), _Scale.of(written, "target")
    after = None
    if end_to_end is not None:
        draw = torch.Generator().manual_seed(seed)
        after = Downstream(end_to_end, written, scales[1].centre, downstream, draw)
    try:
        with kept_in(state, work, "training") as saved:
            training = _Training(work, read, written, scales, after, saved)
            while training.step < steps:
                training.advance()
                if progress is not None:
                    progress(training.step, steps)
    except _Diverged:
        if state is not None:  # nothing good comes of going on with it
            Path(state).unlink(missing_ok=True)
        raise
    return training.dictionary(site, reads)


def _where(read: Activations, written: Activations | None) -> tuple[str | None, str]:
    """(site, reads) of the dictionary."""
    if written is None:
        if read.site is not None and any(read.site.endswith(f".{name}") for name in INPUTS):
            raise CircuitDiscoveryError(
                f"{read.site} is what an MLP reads: an autoencoder of it stands nowhere; give target= for a "
                "transcoder"
            )
        return read.site, "output"
    check_rows(read, written)
    if read.site is None or written.site is None:
        return None, "normed"
    node, _, what = read.site.partition(".")
    if what not in INPUTS or written.site not in (node, f"{node}.inner"):
        raise CircuitDiscoveryError(
            f"a transcoder reads an MLP's input ({', '.join(f'm2.{name}' for name in INPUTS)}) and writes "
            f"its output (m2); acts are of {read.site}, target is of {written.site}"
        )
    return written.site, INPUTS[what]


class _Training:
    """All that a training stands on, step after step."""

    def __init__(
        self,
        work: Mapping[str, Any],
        read: Activations,
        written: Activations,
        scales: tuple[_Scale, _Scale],
        after: Downstream | None,
        saved: State,
    ) -> None:
        self.work, self.read, self.written, self.scales, self.saved = work, read, written, scales, saved
        self.after = after
        generator = torch.Generator().manual_seed(work["seed"])
        fresh = losses.start(work["kind"], work["n"], read.d, written.d, generator)
        self.held = {name: saved.tensor(name, each).requires_grad_() for name, each in fresh.items()}
        self.adam = torch.optim.Adam(self.held.values(), lr=work["lr"])
        adam_as_kept(self.adam, self.held, saved)
        self.generator = saved.generator("drawn", generator)
        self.silent = saved.tensor("silent", torch.zeros(work["n"]))
        self.curve = saved.array("curve", np.zeros((_POINTS + 1, len(_CURVE))))
        self.step = saved.number("step", 0)

    @property
    def transcoder(self) -> bool:
        return self.read is not self.written

    def advance(self) -> None:
        """One step of Adam."""
        work, held, step = self.work, self.held, self.step
        which = self._draw()
        x = self.scales[0](self.read.take(which))
        y = self.scales[1](self.written.take(which)) if self.transcoder else x
        dead = self.silent >= losses.DEAD_STEPS
        loss, squared, z = losses.loss_of(
            work["kind"],
            held,
            x if self.transcoder else x - held["b_dec"],
            y,
            k=work["k"] or 0,
            sparsity=work["sparsity"] * min(1.0, step / (_SPARSE * work["steps"])),
            dead=dead,
            away=self._away(which),
        )
        if not math.isfinite(float(loss.detach())):
            raise _Diverged(
                f"the training diverged at step {step}: the loss is not finite; give a smaller lr "
                f"(it is {work['lr']:g})"
            )
        self.adam.zero_grad()
        loss.backward()
        with torch.no_grad():
            self._descend()
            self.silent = torch.where((z > 0).any(0), 0.0, self.silent + 1)
            self._note(float(loss.detach()), squared, y, z, dead)
        self.step += 1
        if self.saved.path is not None and (self.step % _KEPT_STEPS == 0 or self.step == work["steps"]):
            rest = {"drawn": self.generator, "silent": self.silent, "curve": self.curve}
            self.saved.keep({**adam_arrays(self.adam, held), **rest}, step=self.step)

    def _draw(self) -> Tensor:
        """The rows of a batch."""
        if self.after is not None:
            return self.after.draw(_BATCH, self.generator)
        return torch.randint(len(self.read), (min(_BATCH, len(self.read)),), generator=self.generator)

    def _away(self, which: Tensor) -> Callable[[Tensor], Tensor] | None:
        """The distance from what should be written, of scaled values; None: the squared one."""
        if self.after is None:
            return None
        distance, scale = self.after.away(which), self.scales[1]
        return lambda made: distance(made * scale.size + scale.centre)

    def _descend(self) -> None:
        """Adam's step, the gradients together at most of length 1; the decoder's is without its part along
        the rows, which are of length 1 before and after."""
        work, decoder = self.work, self.held["W_dec"]
        assert decoder.grad is not None
        decoder.grad -= (decoder.grad * decoder).sum(1, keepdim=True) * decoder
        torch.nn.utils.clip_grad_norm_(self.held.values(), 1.0)
        left = (work["steps"] - self.step) / (_DECAY * work["steps"])
        self.adam.param_groups[0]["lr"] = work["lr"] * min(1.0, (self.step + 1) / _WARM, left)
        self.adam.step()
        decoder.div_(decoder.norm(dim=1, keepdim=True).clamp_min(1e-12))

    def _note(self, loss: float, squared: Tensor, y: Tensor, z: Tensor, dead: Tensor) -> None:
        """A point of the curve, at about a hundred steps."""
        every = -(-self.work["steps"] // _POINTS)
        last = self.step == self.work["steps"] - 1
        if self.step % every and not last:
            return
        spread = float((y - y.mean(0)).square().sum(-1).mean())
        same = bool((y == y[0]).all())  # the mean of equal rows may differ from them by rounding
        variance = math.nan if same else 1 - float(squared) / spread
        row = min(self.step // every, _POINTS - 1) if not last else _POINTS
        active = float((z > 0).sum(-1).float().mean())
        self.curve[row] = self.step + 1, loss, variance, active, int(dead.sum())

    def dictionary(self, site: str | None, reads: str) -> Dictionary:
        """What was learnt, of the activations as they are.

        Scaled activations are (x - c) / s and what is written s' times what was learnt, plus c'. All kinds
        are unchanged where pre-activations, thresholds and values are multiplied alike, by s'.
        """
        (read, written), held = self.scales, {name: each.detach() for name, each in self.held.items()}
        encoder = held["W_enc"] * (written.size / read.size)
        shift = encoder @ read.centre if self.transcoder else 0.0
        rest: dict[str, Any] = {}
        if self.work["kind"] == "gated":
            scaled = held["r_mag"].exp() * shift
            rest |= {"r_mag": held["r_mag"].clone(), "b_mag": held["b_mag"] * written.size - scaled}
        if self.work["kind"] == "jumprelu":
            rest["threshold"] = held["log_threshold"].exp() * written.size
        node = None if site is None else site.removesuffix(".inner")
        curve = self.curve[self.curve[:, 0] > 0]
        return Dictionary(
            kind=self.work["kind"],
            site=node if node is not None and is_site(node) else None,
            reads=reads,
            W_enc=encoder,
            b_enc=held["b_enc"] * written.size - shift,
            W_dec=held["W_dec"].clone(),
            b_dec=held["b_dec"] * written.size + written.centre,
            k=self.work["k"],
            subtracts_b_dec=not self.transcoder,
            inner=site != node,
            history=tuple(dict(zip(_CURVE, row, strict=True)) for row in curve.tolist()),
            **rest,
        )
