"""A unit: a number that a model computes at a place, and the direction that it writes with.

| what users give | its value | its direction |
| --- | --- | --- |
| "m2/n301", a neuron | its activation | its column of W_out |
| `sae[17]`, a feature of a dictionary | how active it is | its row of the decoder |
| a vector v, with a site | x v / |v|, of the activation x there | v / |v| |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from circuitdiscovery.errors import CircuitDiscoveryError, shown
from circuitdiscovery.features.dictionary import Feature
from circuitdiscovery.features.forward import Site, device_of, is_input, is_stream, norm_of, site_of
from circuitdiscovery.features.standing import places_of_dictionary
from circuitdiscovery.model.block import Block
from circuitdiscovery.model.model import Model
from circuitdiscovery.model.norm import Norm

_BEFORE_NORM = ("z", "heads", "neurons", "inner")  # parts of a node whose sum a norm may follow


@dataclass(frozen=True, eq=False, repr=False)
class Unit:
    """A unit of a model (see the module).

    Args:
        name: what it is called.
        read: the site whose values it is computed of.
        value: [..., width] at that site (of a neuron [...]) -> [...], how active it is.
        written: the site to which its direction is added.
        direction: [width] of that site, what one of it writes.
        inner: [d_model]: the same as the node writes it, before a norm that may follow; None where the site
            is only read.
        stream: [d_model]: the same as it is added to the residual stream, with the gain of such a norm; what
            that divides by, which depends on the prompt, is left out.
    """

    name: str
    read: Site
    value: Callable[[Tensor], Tensor]
    written: Site
    direction: Tensor
    inner: Tensor | None
    stream: Tensor | None

    def __repr__(self) -> str:
        return f"<Unit {self.name}>"


def unit_of(model: Model, unit: Any, at: str | None = None) -> Unit:
    """The unit that is meant.

    Args:
        model: a loaded model.
        unit: a neuron's name, a feature of a dictionary, or a vector (a tensor, an array or numbers).
        at: a vector's site, whose width it has.

    Raises:
        CircuitDiscoveryError: none of these; another width; a vector without a site, a site with a name.
    """
    if isinstance(unit, str | Feature):
        check_no_site(unit, at)
        return _feature(model, unit) if isinstance(unit, Feature) else _neuron(model, unit)
    if at is None:
        raise CircuitDiscoveryError(
            "a unit is a neuron such as 'm2/n301', a feature such as sae[17], or a vector with "
            f"at='resid5', not {shown(unit)}"
        )
    return _vector(model, unit, site_of(model, at))


def check_no_site(what: str | Feature, at: str | None) -> None:
    """Refuse a site beside what says itself where it stands."""
    if at is not None:
        raise CircuitDiscoveryError(f"at is for vectors; {shown(str(what))} says where it stands")


def _neuron(model: Model, name: str) -> Unit:
    site = site_of(model, name)
    if "/n" not in name:
        raise CircuitDiscoveryError(f"{name} is not one neuron; one of its neurons is {name}/n0, for example")
    block = model.blocks[int(name[1 : name.index("/")])]
    assert block.W_out is not None and site.unit is not None
    neurons = Site(site.place, site.place)
    direction = F.one_hot(torch.tensor(site.unit), block.d_mlp).to(block.W_out)
    inner = block.W_out[:, site.unit]
    return Unit(name, site, lambda x: x, neurons, direction, inner, _gained(model, neurons, inner))


def _feature(model: Model, feature: Feature) -> Unit:
    dictionary, number = feature.dictionary, feature.number
    if dictionary.site is None:
        raise CircuitDiscoveryError("the dictionary does not say where in a model it stands")
    read, written = places_of_dictionary(dictionary, model)
    dictionary = dictionary.to(device_of(model, written))
    which = torch.tensor([number], device=dictionary.vectors.device)
    direction = dictionary.vectors[number]
    check_width(model, f"{feature}", written, len(direction))
    return Unit(
        str(feature),
        Site(read or written, read or written),
        lambda x: dictionary.encode_some(x, which)[0],
        Site(written, written),
        direction,
        *_directions(model, Site(written, written), direction),
    )


def _vector(model: Model, given: Any, site: Site) -> Unit:
    try:
        vector = torch.as_tensor(np.asarray(given) if not isinstance(given, Tensor) else given)
        vector = vector.detach().to(device_of(model, site.place), model.dtype)
    except (TypeError, ValueError):
        raise CircuitDiscoveryError(f"a unit's vector must be numbers, not {shown(given)}") from None
    if vector.dim() != 1 or not bool(torch.isfinite(vector).all()) or not float(vector.norm()):
        raise CircuitDiscoveryError(
            "a unit's vector is one row of finite numbers that are not all 0, not of shape "
            f"{list(vector.shape)}"
        )
    if site.place.endswith(".neurons") and site.unit is not None:
        raise CircuitDiscoveryError(f"{site.name} is a number, not a place for a vector")
    check_width(model, "the vector", site.place, len(vector))
    direction = vector / vector.norm()
    written = _directions(model, site, direction)
    return Unit(f"a vector at {site.name}", site, lambda x: x @ direction, site, direction, *written)


def width_of(model: Model, place: str) -> int:
    """The width of the values at a place of the forward."""
    block = _block(model, place)
    if place.endswith(".z"):
        return block.W_O.shape[0] * block.W_O.shape[1]
    return block.d_mlp if place.endswith(".neurons") else model.d_model


def in_stream(model: Model, site: Site, direction: Tensor) -> Tensor:
    """[..., d_model]: what directions [..., width] at a site add to the stream that our forward keeps:
    through the output matrix where the site is before it, and with the gain of a norm that follows the node,
    without its division.

    Raises:
        CircuitDiscoveryError: a site that is only read.
    """
    return _gained(model, site, _inner(model, site, direction))


def _gained(model: Model, site: Site, inner: Tensor) -> Tensor:
    norm = norm_after(model, site.place)
    return inner if norm is None else norm.gained(inner)


def norm_after(model: Model, place: str) -> Norm | None:
    """The norm through which what stands at a place goes on its way to the stream, where there is one."""
    return norm_of(model, place) if place.partition(".")[2] in _BEFORE_NORM else None


def _directions(model: Model, site: Site, direction: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """(inner, stream) of a unit."""
    if is_input(site.place):
        return None, None
    inner = _inner(model, site, direction)
    return inner, _gained(model, site, inner)


def _inner(model: Model, site: Site, direction: Tensor) -> Tensor:
    """As `in_stream`, before a norm."""
    if is_input(site.place):
        raise CircuitDiscoveryError(
            f"{site.name} is what an MLP reads: nothing that stands there is added to the residual stream"
        )
    block = _block(model, site.place)
    if site.place.endswith((".z", ".neurons")):
        direction = direction.to(model.dtype)
    if site.place.endswith(".z"):
        heads = direction.reshape(-1, *block.W_O.shape[:2])  # [all directions, H, K]
        return block.together(heads.movedim(1, 0)[:, None])[0].view(*direction.shape[:-1], -1)
    if site.place.endswith(".neurons"):
        assert block.W_out is not None
        return F.linear(direction, block.W_out)
    unit = model.stream_unit if is_stream(site.place) else 1.0
    return direction if unit == 1.0 else direction / unit


def _block(model: Model, place: str) -> Block:
    layer = int("".join(c for c in place.split(".")[0] if c.isdigit()))
    return model.blocks[min(layer, model.n_layers - 1)]  # the last stream is after the last block


def check_width(model: Model, what: str, place: str, width: int) -> None:
    """Refuse what is not as wide as a place."""
    if width != (wanted := width_of(model, place)):
        raise CircuitDiscoveryError(f"{what} is {width} wide, but {place} of {model.name} is {wanted}")


def words_of(model: Model, stream: Tensor) -> Tensor:
    """[..., d_model] directions of the residual stream -> [..., vocabulary]: what each adds to the logits of
    the last layer, with the final norm's gain but not its division, and before a cap.

    nostalgebraist 2020 (the logit lens); of MLP value vectors Geva et al. 2022 (arXiv 2203.14680).
    """
    return model.logit_terms(model.final_norm.gained(stream).to(model.W_U))


def logits_of(model: Model, stream: Tensor) -> Tensor:
    """[..., d_model] streams in the model's own unit -> [..., vocabulary]: the logits as if they were the
    last ones."""
    return model.logits_of(model.stream_norm(stream.to(model.device)))
