"""`lens`: what a model would say at each layer, read from its residual stream or from its heads.

Of x, what stands at a site, the logits are

    logit       W_U norm(x)
    linear      W_U norm(A x), A x nearest to the last stream in the mean square
    tuned       W_U norm(A x + b), A and b trained on KL(model || lens)
    future      W_U norm(A x + b), A x + b nearest to the last stream `ahead` tokens later
    attention   W_U (A (z - its mean) + b), z what a layer's heads attend to, trained as the tuned one; of one
                head the same with the others at their mean

Sources: nostalgebraist 2020 (logit lens). Din et al. 2023, arXiv 2303.09435. Belrose et al. 2023, arXiv
2303.08112. Pal et al. 2023, arXiv 2311.04897: the linear model of hidden states, fitted as in its code.
Sakarvadia et al. 2023, arXiv 2310.16270: there each head has a matrix [vocabulary, d_model], which starts at
W_U; here it has one of [d_model, d_head] before W_U.

norm, W_U, a scale and a cap of the logits are the model's own. At the last stream the logit, linear and tuned
lens are the identity: they are the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from circuitdiscovery.arguments import guarded
from circuitdiscovery.engine.setup import Progress, within
from circuitdiscovery.engine.state import State, kept_in
from circuitdiscovery.errors import CircuitDiscoveryError, shown, unknown
from circuitdiscovery.features.files import read_config, read_tensors
from circuitdiscovery.features.forward import ATTENTION, Z, site_of
from circuitdiscovery.features.lens_fitting import Affine, KLTraining, gathered, least_squares
from circuitdiscovery.features.lens_reading import LensReading, read
from circuitdiscovery.features.prompts import Prompts, prompts_of
from circuitdiscovery.features.units import logits_of, width_of
from circuitdiscovery.files.disk import is_folder, write_atomically, write_json
from circuitdiscovery.graph.nodes import head_name, parsed
from circuitdiscovery.model.model import Model

KINDS = ("logit", "linear", "tuned", "attention", "future")
TRAINED = ("tuned", "attention")
CONFIG, WEIGHTS = "lens.json", "lens.safetensors"
AHEAD = 3  # at most
_FORMAT = "circuitdiscovery lens 1"
_STEPS, _LR = 200, 3e-4


@dataclass(frozen=True, eq=False, repr=False)
class Lens:
    """A lens of a model (see `lens`).

    Args:
        kind: which.
        ahead: how many tokens after a position the one is whose output it gives; 0 of all but `future`.
        maps: place -> what is done to what stands there; a place without one is read as it is.
        tokens: how many it was fitted on.
    """

    kind: str
    ahead: int
    maps: Mapping[str, Affine]
    tokens: int
    _model: Model = field(repr=False)

    @property
    def sites(self) -> tuple[str, ...]:
        """What it reads: the streams; of the attention lens each layer's heads together ("a1"), and each."""
        model = self._model
        if self.kind != "attention":
            return _streams(model)
        heads = range(model.n_heads)
        return tuple(
            name
            for i in range(model.n_layers)
            for name in (ATTENTION.format(i), *(head_name(i, head) for head in heads))
        )

    def place_of(self, site: str) -> str:
        """Where in a run the values are that a site's logits are computed of."""
        return f"{site.partition('.')[0]}.z" if self.kind == "attention" else site

    @torch.no_grad()
    def logits(self, site: str, values: Tensor) -> Tensor:
        """[..., vocabulary].

        Args:
            site: one of `sites`.
            values: [..., width], what stands at its place (`place_of`).

        Raises:
            CircuitDiscoveryError: the lens does not read there; values of another width.
        """
        if site not in self.sites:
            raise unknown("site of the lens", site, self.sites)
        model, place = self._model, self.place_of(site)
        if values.shape[-1] != width_of(model, place):
            raise CircuitDiscoveryError(
                f"{place} of {model.name} is {width_of(model, place)} wide, not of shape {list(values.shape)}"
            )
        own = self.maps.get(place)
        if own is None:
            return logits_of(model, values.to(model.device, model.dtype))
        if "." in site:
            heads, number = model.n_heads, parsed(site).index
            values = values.unflatten(-1, (heads, -1))[..., number, :]
            assert own.centre is not None
            weight, centre = own.weight.unflatten(1, (heads, -1)), own.centre.unflatten(0, (heads, -1))
            own = Affine(weight[:, number], own.bias, centre[number])
        made = own(values.to(own.weight.device, own.weight.dtype)).to(model.device, model.dtype)
        return model.logits_of(made) if self.kind == "attention" else logits_of(model, made)

    @guarded
    def read(
        self,
        task_or_texts: Any,
        *,
        position: Any = None,
        first: bool = False,
        batch_size: int | None = None,
        progress: Progress | None = None,
    ) -> LensReading:
        """What the lens shows at each of its sites, beside what the model says.

        Args:
            task_or_texts: a task, whose clean prompts are meant, texts, or rows of token ids.
            position: where the model's output is that the lens is compared with, as for `activations`; by
                default a task's answer's position, and of texts every token but the first. A lens with
                `ahead` reads that many tokens before.
            first: whether the first token is read, too.
            batch_size: how many prompts are run at once.
            progress: called with (prompts done, prompts in all), and once more for the reading.

        Returns:
            `.kl`, `.recall(k)` and `.top`, each by site. What is recalled is a task's answer, and of texts
            the model's own likeliest token.

        Raises:
            CircuitDiscoveryError: as `activations`; prompts that are shorter than the lens looks ahead.
        """
        how: dict[str, Any] = {"position": position, "first": first, "batch_size": batch_size}
        return read(self, self._model, task_or_texts, progress=progress, **how)

    @guarded
    def save(self, folder: str | Path) -> None:
        """Write lens.safetensors, and last lens.json, so that a folder that has it is complete.

        Args:
            folder: is made where it does not exist.

        Raises:
            CircuitDiscoveryError: a folder that cannot be written.
        """
        from safetensors.torch import save

        path = Path(folder)
        try:
            path.mkdir(parents=True, exist_ok=True)
            (path / CONFIG).unlink(missing_ok=True)
        except OSError as error:
            raise CircuitDiscoveryError(f"cannot write {path}: {error.strerror or error}") from None
        tensors = {
            f"{place} {name}": tensor.contiguous()
            for place, each in self.maps.items()
            for name, tensor in each.tensors.items()
        }
        if tensors:
            write_atomically(path / WEIGHTS, save(tensors))
        known = {"format": _FORMAT, "kind": self.kind, "ahead": self.ahead, "tokens": self.tokens}
        write_json(path / CONFIG, known | {"model": self._model.name, "digest": self._model.digest})

    @classmethod
    @guarded
    def load(cls, folder: str | Path, model: Model) -> Self:
        """The lens that `save` wrote.

        Args:
            folder: with lens.json and lens.safetensors.
            model: the one that it is of; its weights are compared by their digest.

        Raises:
            CircuitDiscoveryError: a folder without a lens, or with one of another model.
        """
        path = Path(folder)
        if not is_folder(path) or not (path / CONFIG).is_file():
            raise CircuitDiscoveryError(f"{path}: there is no lens in it: {CONFIG} is missing")
        known = read_config(path / CONFIG)
        if known.get("format") != _FORMAT or known.get("kind") not in KINDS:
            raise CircuitDiscoveryError(f"{path / CONFIG}: not of a lens ({_FORMAT!r} is expected)")
        if known.get("digest") != model.digest:
            raise CircuitDiscoveryError(
                f"{path} has a lens of another model, {shown(known.get('model'))}: its weights are not those "
                f"of {model.name}"
            )
        kind, ahead, tokens = known["kind"], known.get("ahead"), known.get("tokens")
        if type(ahead) is not int or type(tokens) is not int:
            raise CircuitDiscoveryError(f"{path / CONFIG}: ahead and tokens must be whole numbers")
        places = _fitted(model, kind)
        found = read_tensors(path / WEIGHTS) if places else {}
        maps = {place: _map(path / WEIGHTS, found, model, place, kind) for place in places}
        return cls(kind, ahead, maps, tokens, model)

    def __repr__(self) -> str:
        more = f", {self.ahead} tokens ahead" if self.ahead else ""
        fitted = f", fitted on {self.tokens:,} tokens" if self.tokens else ""
        return f"<Lens of {self._model.name}: {self.kind}{more}{fitted}>"


def _streams(model: Model) -> tuple[str, ...]:
    return tuple(f"resid{i}" for i in range(model.n_layers + 1))


def _fitted(model: Model, kind: str) -> tuple[str, ...]:
    """The places at which a kind of lens has a map."""
    if kind == "attention":
        return tuple(Z.format(i) for i in range(model.n_layers))
    streams = _streams(model)
    return {"logit": (), "future": streams}.get(kind, streams[:-1])


def _map(file: Path, tensors: Mapping[str, Tensor], model: Model, place: str, kind: str) -> Affine:
    width = width_of(model, place)
    shapes: dict[str, tuple[int, ...]] = {"weight": (model.d_model, width)}
    shapes |= {} if kind == "linear" else {"bias": (model.d_model,)}
    shapes |= {"centre": (width,)} if kind in TRAINED else {}
    for name, shape in shapes.items():
        tensor = tensors.get(f"{place} {name}")
        if tensor is None or tuple(tensor.shape) != shape:
            raise CircuitDiscoveryError(
                f"{file}: the tensor '{place} {name}' of shape {list(shape)} is missing"
            )
    return Affine(**{name: tensors[f"{place} {name}"] for name in shapes}).to(model.device)


@guarded
def lens(
    model: Model,
    *,
    kind: str = "logit",
    fit_on: Any = None,
    ahead: int | None = None,
    steps: int | None = None,
    lr: float | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    state: str | Path | None = None,
    progress: Progress | None = None,
) -> Lens:
    """A lens: what the model would say, read at each layer.

    Args:
        model: a loaded model.
        kind: `logit`: each stream through the model's last norm and unembedding, as it is. `linear`: after
            the matrix that brings it nearest to the last stream. `tuned`: after an affine map that is trained
            to give the model's own distribution. `attention`: the same of what heads write. `future`: after
            the affine map that brings it nearest to the last stream some tokens later.
        fit_on: texts, or rows of token ids, of every kind but `logit`: thousands of tokens, more than the
            model is wide. Their first tokens are left out.
        ahead: how many tokens later, 1 to 3 (`future`); by default 1.
        steps, lr: of Adam for each layer (`tuned` and `attention`); by default 200 and 0.0003.
        batch_size: how many prompts are run at once.
        seed: for the order of the tokens in the training.
        state: a file in which a training is kept, layer by layer; it goes on from there.
        progress: called with (work done, work in all), in prompts that are run and steps of the training.

    Returns:
        The lens; `.read(task_or_texts)` looks through it.

    Raises:
        CircuitDiscoveryError: an unknown kind; what is not for the kind; no texts to fit on, or without
            tokens; a training that diverges.

    >>> import circuitdiscovery as cd
    >>> model = cd.load_model("toy")
    >>> reading = cd.features.lens(model, kind="logit").read(cd.load_task("ioi", model, examples=8))
    >>> reading.sites[-1], float(reading.kl[-1]), float(reading.recall(1)[-1])
    ('resid4', 0.0, 1.0)
    """
    if kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    if fit_on is not None and kind == "logit":
        raise CircuitDiscoveryError(f"fit_on is not for the logit lens, but for: {', '.join(KINDS[1:])}")
    if ahead is not None and kind != "future":
        raise CircuitDiscoveryError(f"ahead is for the future lens, not the {kind} one")
    later = 0 if kind != "future" else 1 if ahead is None else ahead
    if kind == "future" and not 1 <= later <= AHEAD:
        raise CircuitDiscoveryError(f"ahead must be a whole number from 1 to {AHEAD}, not {ahead}")
    for name, value in (("steps", steps), ("lr", lr)):
        if value is not None and kind not in TRAINED:
            raise CircuitDiscoveryError(f"{name} is for lenses that are trained: tuned and attention")
        if value is not None and not value > 0:
            raise CircuitDiscoveryError(f"{name} must be above 0, not {value:g}")
    places = _fitted(model, kind)
    if not places:
        return Lens(kind, 0, {}, 0, model)
    if fit_on is None:
        raise CircuitDiscoveryError(f"a {kind} lens is fitted: give fit_on= texts")
    prompts = prompts_of(model, fit_on, "fit_on")
    where = [range(1, len(row) - later) for row in prompts.rows]
    if not any(where):
        raise CircuitDiscoveryError(
            f"fit_on has no token to fit on: a text needs {2 + later} tokens, of which the first is left out"
        )
    steps, training = (_STEPS if steps is None else steps), kind in TRAINED
    rows, whole = len(prompts.rows), len(prompts.rows) + (len(places) * steps if training else 0)
    last = site_of(model, f"resid{model.n_layers}").place
    wanted: dict[str, tuple[str, Sequence[Sequence[int]]]] = {place: (place, where) for place in places}
    wanted["final"] = (last, [[at + later for at in each] for each in where])
    work = _work(model, prompts, kind, steps, _LR if lr is None else lr, seed)
    with kept_in(state, work, "training") as saved:
        held = gathered(model, prompts.rows, wanted, batch_size, within(progress, 0, rows, whole))
        final = held["final"]
        if training:
            maps = _trained(
                model, held, places, final, work, saved, within(progress, rows, whole - rows, whole)
            )
        else:
            maps = {place: least_squares(held[place], final, bias=kind == "future") for place in places}
    maps = {place: each.to(model.device) for place, each in maps.items()}
    return Lens(kind, later, maps, len(final), model)


def _work(model: Model, prompts: Prompts, kind: str, steps: int, lr: float, seed: int) -> dict[str, Any]:
    """What a training is, as JSON."""
    texts = sha256(repr(prompts.rows).encode()).hexdigest()[:16]
    known = {"kind": kind, "steps": steps, "lr": lr, "seed": seed}
    return known | {"model": model.digest, "texts": texts}


def _trained(
    model: Model,
    held: Mapping[str, Tensor],
    places: tuple[str, ...],
    final: Tensor,
    work: Mapping[str, Any],
    saved: State,
    progress: Progress | None,
) -> dict[str, Affine]:
    """The maps of all places, each kept when it is learnt."""
    kind, steps = work["kind"], work["steps"]
    training = KLTraining(model, final, normed=kind == "tuned", lr=work["lr"], steps=steps)
    number = np.float64 if final.dtype == torch.float64 else np.float32
    count, width = len(places), width_of(model, places[0])
    shapes = {
        "weight": (count, model.d_model, width),
        "bias": (count, model.d_model),
        "centre": (count, width),
    }
    arrays = {name: saved.array(name, np.zeros(shape, number)) for name, shape in shapes.items()}
    for i in range(saved.number("done", 0), count):
        found = training.fit(held[places[i]], work["seed"], within(progress, i * steps, steps, count * steps))
        for name, tensor in found.tensors.items():
            arrays[name][i] = tensor.numpy()
        saved.keep(arrays, done=i + 1)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return {
        place: Affine(**{name: each[i] for name, each in tensors.items()}) for i, place in enumerate(places)
    }
