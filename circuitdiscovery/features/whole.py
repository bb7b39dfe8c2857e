"""What a whole dictionary has: tensors that fit together, and options that its kind takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from circuitdiscovery.errors import CircuitDiscoveryError, unknown
from circuitdiscovery.features.sites import checked_site, is_mlp

if TYPE_CHECKING:
    from circuitdiscovery.features.dictionary import Dictionary

KINDS = ("relu", "topk", "jumprelu", "gated")
READS = ("output", "normed", "normed without gain", "hook_normalized", "stream")
NORMALIZES = ("none", "centre", "layer_norm", "constant_norm_rescale")
_NEEDS: Mapping[str, tuple[str, ...]] = {"jumprelu": ("threshold",), "gated": ("r_mag", "b_mag")}


def check(found: Dictionary) -> None:
    """Refuse what is not a whole dictionary.

    Raises:
        CircuitDiscoveryError: tensors that are missing, of wrong shapes or not finite; what does not go
            together.
    """
    for name, value, valid in (
        ("kind", found.kind, KINDS),
        ("reads", found.reads, READS),
        ("normalizes", found.normalizes, NORMALIZES),
    ):
        if value not in valid:
            raise unknown(name, value, valid, plural=f"values of {name}")
    for name in ("W_enc", "W_dec"):
        if getattr(found, name).dim() != 2:
            shape = list(getattr(found, name).shape)
            raise CircuitDiscoveryError(f"a dictionary's {name} is a matrix, not of shape {shape}")
    features, d_in = found.W_enc.shape
    d_out = found.W_dec.shape[1]
    for name, shape in {
        "W_enc": (features, d_in),
        "W_dec": (features, d_out),
        "b_dec": (d_out,),
        "W_skip": (d_out, d_in),
    }.items():
        _check_tensor(name, getattr(found, name), shape)
    for name in ("b_enc", "threshold", "r_mag", "b_mag"):
        _check_tensor(name, getattr(found, name), (features,))
    needed = _NEEDS.get(found.kind, ())
    for name in ("threshold", "r_mag", "b_mag"):
        if (getattr(found, name) is None) == (name in needed):
            verb = "lacks" if name in needed else "does not use"
            raise CircuitDiscoveryError(f"a {found.kind} dictionary {verb} {name}")
    if (found.kind == "topk") != (found.k is not None) or (
        found.k is not None and not 1 <= found.k <= features
    ):
        raise CircuitDiscoveryError(
            f"k is {found.k}; a topk dictionary of {features} features needs a k from 1 to {features}, "
            "and other kinds have none"
        )
    if found.signed and found.kind not in ("topk", "jumprelu"):
        raise CircuitDiscoveryError(
            f"a feature of a {found.kind} dictionary is never negative: it is not signed"
        )
    if found.site is not None:
        checked_site(found.site, "a dictionary")
        if found.transcoder and not is_mlp(found.site):
            raise CircuitDiscoveryError(f"a transcoder is of an MLP (m2), not of {found.site}")
    if found.normalizes == "centre" and (found.transcoder or "." in (found.site or "")):
        what = "a transcoder's" if found.transcoder else f"those of {found.site}"
        raise CircuitDiscoveryError(f"activations are centred where they are added to the stream, not {what}")
    if found.transcoder and found.subtracts_b_dec:
        raise CircuitDiscoveryError(
            "a transcoder's b_dec is not part of what it reads, so it cannot be subtracted"
        )
    if not found.transcoder and d_in != d_out:
        raise CircuitDiscoveryError(f"an autoencoder writes what it reads, not {d_out} numbers of {d_in}")


def _check_tensor(name: str, tensor: Tensor | None, shape: tuple[int, ...]) -> None:
    if tensor is None:
        return
    if tuple(tensor.shape) != shape:
        raise CircuitDiscoveryError(
            f"a dictionary's {name} has shape {list(tensor.shape)}; by its other tensors {list(shape)}"
        )
    if not bool(torch.isfinite(tensor).all()):
        raise CircuitDiscoveryError(f"a dictionary's {name} has numbers that are not finite")
