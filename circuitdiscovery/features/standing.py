"""What stands in a site's place: what a dictionary writes, or the mean, and the baselines beside it.

A baseline writes k numbers per activation, about as many as the dictionary has active features, chosen anew
for each:

    pca      the k largest coordinates along the principal directions of the activations
    random   the same along a random orthonormal basis
    neurons  the k neurons of the MLP that write most, each as it is, the others at their means; most is
             |activation - mean| times the length of what the neuron writes

Coordinates are of activations less their mean, and of both signs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.features.collecting import Activations
from circuitdiscovery.features.dictionary import Dictionary
from circuitdiscovery.features.forward import INPUTS, device_of, forward, has_inner, site_of
from circuitdiscovery.features.prompts import batches
from circuitdiscovery.features.sites import is_mlp
from circuitdiscovery.model.model import Model

WIDEST = 4096  # activations of more numbers have no baselines: a basis of them would be too large
_PLACES = {reads: (place,) for place, reads in INPUTS.items()} | {"hook_normalized": ("bare", "normed")}
Edit = Callable[[Tensor], Tensor]
Edits = Callable[[Model, Tensor], Mapping[str, Edit]]  # of a model, and [n, T] where it stays as it is
Rows = Iterator[
    tuple[Tensor, Tensor, Tensor]
]  # (which units are active [n, units], written, should be [n, d])


@dataclass(frozen=True)
class Stand:
    """Something that stands in a site's place.

    Args:
        units: how many there are of what is active.
        rows: gives what it writes for all activations, some at a time.
        edits: the edits of a run that put it there.
    """

    units: int
    rows: Callable[[], Rows]
    edits: Edits


def places_of_dictionary(sae: Dictionary, model: Model) -> tuple[str | None, str]:
    """(the place that a transcoder reads, the place that is written).

    Raises:
        CircuitDiscoveryError: the model has no such site, or no centred activations; a module's output that
            holds the stream.
    """
    assert sae.site is not None
    check_model(sae, model, sae.site)
    site = site_of(model, sae.site + (".inner" if sae.inner and "." not in sae.site else ""))
    return (_read(sae, model)[0] if sae.transcoder else None), site.place


def check_model(sae: Dictionary, model: Model, site: str) -> None:
    """Refuse a dictionary of centred activations in a model whose activations nothing centres, and one of a
    module's output that holds the stream."""
    if sae.inner and site[0] in model.adding and "." not in site:
        after = f"resid{int(site[1:]) + 1}"
        found = f"; it is one of {after}: replace(sae, site={after!r}, inner=False)"
        raise CircuitDiscoveryError(
            f"what Hugging Face's module of {site} gives holds the stream in {model.name}: a dictionary of "
            f"it is not one of {site}{found if is_mlp(site) and not sae.transcoder else ''}"
        )
    if sae.normalizes == "centre" and not model.final_norm.centred:
        raise CircuitDiscoveryError(
            f"the dictionary is of centred activations, but {model.name} has no LayerNorm, without which "
            "TransformerLens centres nothing: load it with centred=False"
        )


def _read(sae: Dictionary, model: Model | None) -> list[str]:
    """The place that a transcoder reads; without a model, or a site, it may be one of two."""
    places = _PLACES[sae.reads]
    if model is not None and sae.site is not None and len(places) > 1:
        centred = model.blocks[int(str(sae.site)[1:])].norm2.centred
        places = places[centred : centred + 1]
    return [f"{sae.site}.{place}" for place in places]


def check_rows(read: Activations, written: Activations) -> None:
    """Refuse a target that is not row for row of the same tokens as what is read.

    Raises:
        CircuitDiscoveryError: other prompts or positions; of a matrix, which does not say them, another
            number of rows.
    """
    if len(read) != len(written):
        raise CircuitDiscoveryError(
            f"target has {len(written):,} rows, acts have {len(read):,}: collect both on the same prompts "
            "and positions"
        )
    if not (read.prompts and written.prompts):
        return
    if read.prompts != written.prompts or not torch.equal(read.rows, written.rows):
        raise CircuitDiscoveryError("target is of other prompts than acts")
    if not torch.equal(read.positions, written.positions):
        raise CircuitDiscoveryError("target is of other positions than acts")


def check_activations(
    sae: Dictionary, read: Activations, written: Activations, model: Model | None = None
) -> None:
    """Refuse activations that are not of what a dictionary reads and writes, row for row.

    Where neither a norm nor a multiplication is known to follow the node, before and after are the same.

    Raises:
        CircuitDiscoveryError: another width or site, or a target of other rows.
    """
    site, after = sae.site, {sae.site, f"{sae.site}.inner"}
    if written.normed or (model is not None and site is not None and has_inner(model, site)):
        after = {f"{site}.inner" if sae.inner and "." not in str(site) else site}
    before = {*_read(sae, model)} if sae.transcoder else after
    for what, acts, width, sites in (
        ("reads", read, sae.d_in, before),
        ("writes", written, sae.d_out, after),
    ):
        if acts.d != width:
            raise CircuitDiscoveryError(
                f"the dictionary {what} activations of width {width}, but these have {acts.d}"
            )
        if site is not None and acts.site not in (None, *sites):
            raise CircuitDiscoveryError(
                f"the dictionary {what} activations at {min(map(str, sites))}, but these are at {acts.site}"
            )
    check_rows(read, written)


def reconstructed(sae: Dictionary, model: Model, kept: Tensor) -> dict[str, Edit]:
    """The edits of a run that put what a dictionary writes in its site's place.

    Args:
        sae: of a site of the model.
        model: which.
        kept: [n, T], where the site stays as it is.
    """
    read, place = places_of_dictionary(sae, model)
    device = device_of(model, place)
    own, seen = sae.to(device), list[Tensor]()

    def remember(x: Tensor) -> Tensor:
        seen[:] = [x]
        return x

    def edit(x: Tensor) -> Tensor:
        written = own.written(x if read is None else seen[0]).to(x.dtype)
        return torch.where(kept[..., None].to(x.device), x, written)

    return {place: edit} if read is None else {read: remember, place: edit}


def of_dictionary(sae: Dictionary, read: Activations, written: Activations) -> Stand:
    """A dictionary, on what it reads and should write."""

    def rows() -> Rows:
        for own, goal in zip(read.chunks(), written.chunks(), strict=True):
            for x, y in zip(own.split(sae.at_once), goal.split(sae.at_once), strict=True):
                x = x.to(sae.W_enc)
                numbers = sae.encode(x)
                yield (numbers != 0).cpu(), sae.decode(numbers, x).cpu(), y

    return Stand(sae.width, rows, lambda model, kept: reconstructed(sae, model, kept))


def of_basis(basis: Tensor, mean: Tensor, k: int, like: Dictionary) -> Dictionary:
    """The k largest coordinates along rows of an orthonormal basis [d, d], at a dictionary's site."""
    both = torch.cat([basis, -basis]).float()
    return Dictionary(
        kind="topk",
        site=like.site,
        reads="output",
        W_enc=both,
        b_enc=torch.zeros(len(both)),
        W_dec=both,
        b_dec=mean.float(),
        k=min(k, len(basis)),
        subtracts_b_dec=True,
        inner=like.inner,
    )


def principal(acts: Activations, mean: Tensor) -> Tensor:
    """[d, d]: the principal directions as rows, the one of most variance first."""
    squares = torch.zeros(acts.d, acts.d, dtype=torch.float64)
    for chunk in acts.chunks():
        centred = chunk.double() - mean
        squares += centred.T @ centred
    return torch.linalg.eigh(squares).eigenvectors.T.flip(0)


def random_basis(d: int, seed: int) -> Tensor:
    """[d, d], orthonormal."""
    draw = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(d, d, generator=draw, dtype=torch.float64)).Q


def mean_of(acts: Activations) -> Tensor:
    """[d], in float64."""
    total = sum((chunk.double().sum(0) for chunk in acts.chunks()), torch.zeros(acts.d).double())
    return total / len(acts)


def baselines(
    sae: Dictionary, fitted: Activations, measured: Activations, k: int, model: Model | None, seed: int
) -> dict[str, Stand]:
    """The baselines that there are of a dictionary's site, by name.

    Args:
        sae: of that site; a transcoder's have no bases, which would read what it should write.
        fitted: the activations whose mean and principal directions are taken.
        measured: those that are written.
        k: how many numbers for each.
        model: without one there are no neurons.
        seed: of the random basis.
    """
    found: dict[str, Stand] = {}
    if not sae.transcoder and fitted.d <= WIDEST:
        mean = mean_of(fitted)
        for name, basis in (("pca", principal(fitted, mean)), ("random", random_basis(fitted.d, seed))):
            found[name] = of_dictionary(of_basis(basis, mean, k, sae), measured, measured)
    if model is not None and measured.prompts and sae.site is not None and is_mlp(sae.site):
        block = model.blocks[int(sae.site[1:])]
        if block.W_out is not None:
            found["neurons"] = _neurons(model, places_of_dictionary(sae, model)[1], fitted, measured, k)
    return found


def _neurons(model: Model, place: str, fitted: Activations, measured: Activations, k: int) -> Stand:
    block = model.blocks[int(place[1:].partition(".")[0])]
    assert block.W_out is not None
    sizes = block.W_out.norm(dim=0)
    neurons = f"{place.partition('.')[0]}.neurons"
    total, count = torch.zeros(block.d_mlp, dtype=torch.float64), 0
    for tokens, at, _ in _runs(model, fitted):
        values = forward(model, tokens, (neurons,))[neurons][at].cpu()
        total += values.double().sum(0)
        count += len(values)
    mean = (total / count).to(block.device, model.dtype)

    def strongest(x: Tensor) -> Tensor:
        which = ((x - mean).abs() * sizes).topk(min(k, len(sizes)), dim=-1).indices
        return torch.zeros_like(x, dtype=torch.bool).scatter_(-1, which, True)

    def rows() -> Rows:
        for tokens, at, kept in _runs(model, measured):
            found = forward(model, tokens, (neurons, place))
            chosen = strongest(found[neurons])
            value = torch.where(kept[..., None].to(chosen.device) | chosen, found[neurons], mean)
            made = forward(model, tokens, (place,), {neurons: lambda _, value=value: value})[place]
            yield chosen[at].cpu(), made[at].cpu(), found[place][at].cpu()

    def edits(_: Model, kept: Tensor) -> Mapping[str, Edit]:
        return {neurons: lambda x: torch.where(kept[..., None].to(x.device) | strongest(x), x, mean)}

    return Stand(block.d_mlp, rows, edits)


def _runs(
    model: Model, acts: Activations, batch_size: int | None = None, most: int = 2**13
) -> Iterator[tuple[Tensor, tuple[Tensor, Tensor], Tensor]]:
    """(tokens [n, T], the activations' places in them, [n, T] all other places), some prompts at a time."""
    for _, tokens, kept in runs_of(model, acts, batch_size, most):
        yield tokens, tuple((~kept).nonzero().T.cpu()), kept  # type: ignore[misc]


def runs_of(
    model: Model, acts: Activations, batch_size: int | None, most: int
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """(numbers of prompts, their tokens [n, T], [n, T] where there is no activation), of prompts that have
    some."""
    inside: dict[int, list[int]] = {}
    for row, position in zip(acts.rows.tolist(), acts.positions.tolist(), strict=True):
        inside.setdefault(row, []).append(position)
    numbers = sorted(inside)
    prompts = [acts.prompts[number] for number in numbers]
    for rows, tokens in batches(model, prompts, batch_size, most):
        kept = torch.ones(tokens.shape, dtype=torch.bool, device=model.device)
        for i, row in enumerate(rows):
            kept[i, inside[numbers[row]]] = False
        yield [numbers[row] for row in rows], tokens, kept
