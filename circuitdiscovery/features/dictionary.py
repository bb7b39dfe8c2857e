"""A sparse dictionary: from an activation its features, and from features the activation that they write.

Sources. relu: Bricken et al. 2023 (Towards Monosemanticity). topk: Gao et al. 2024 (arXiv 2406.04093).
jumprelu: Rajamanoharan et al. 2024b (arXiv 2407.14435), section 3. gated: Rajamanoharan et al. 2024a (arXiv
2404.16014), section 3.2. Transcoders: Dunefsky et al. 2024 (arXiv 2406.11944). Skip connections: Paulo et al.
2025 (arXiv 2501.18823). Normalised activations: as SAE Lens has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from circuitdiscovery.arguments import guarded
from circuitdiscovery.engine import memory
from circuitdiscovery.errors import CircuitDiscoveryError, shown
from circuitdiscovery.features.whole import check
from circuitdiscovery.model.build import weights_digest
from circuitdiscovery.model.load import as_dtype

Kind = Literal["relu", "topk", "jumprelu", "gated"]
TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold", "r_mag", "b_mag", "W_skip")
_LAYER_NORM_EPS = 1e-5  # SAE Lens adds it to the deviation, not to the variance
_BYTES = 2**26  # of all features' pre-activations that are held at a time where a few are asked for


@dataclass(frozen=True, eq=False)
class Dictionary:
    """A sparse autoencoder or a transcoder (see `load_sae`).

    Args:
        kind: how features become active: where their pre-activation is positive (relu), among the k largest
            (topk), above its threshold (jumprelu), or where a gate is open (gated).
        site: where it stands: a node ("m2"), all heads of a layer together ("a1": what attention writes,
            "a1.z": what their output matrices read, one head after the other), an MLP's neurons
            ("m2.neurons"), or the residual stream before a block ("resid2"); None where the folder does not
            say.
        reads: "output": an autoencoder, which reads what stands at the site; otherwise a transcoder of an
            MLP, which reads the stream before its norm ("stream"), what the norm gives ("normed"), or that
            before the norm's gain and bias ("normed without gain"); "hook_normalized" is what
            TransformerLens' HookedTransformer calls so: that of an RMSNorm, what a LayerNorm gives.
        W_enc: [features, d_in], and b_enc: [features]; of a gated one the gate's bias.
        W_dec: [features, d_out], and b_dec: [d_out].
        threshold: [features] (jumprelu).
        k: how many features are active at most (topk).
        r_mag, b_mag: [features]: the magnitude's weights are exp(r_mag) times the gate's, b_mag is its bias
            (gated).
        W_skip: [d_out, d_in]: what a transcoder reads goes to its output through it, too.
        subtracts_b_dec: whether b_dec is taken from what is read (an autoencoder's).
        normalizes: what is done to each activation before (and undone to an autoencoder's output): "none",
            "centre" (mean 0 over its width; of what is added to the stream, and the stream, in a model whose
            writing weights TransformerLens centred), "layer_norm" (mean 0, deviation 1) or
            "constant_norm_rescale" (norm sqrt(d_in)).
        signed: whether a feature that was selected may be negative (circuit-tracer's topk and jumprelu).
        inner: whether the site is meant before the norm that Gemma 2 and 3 have after it, or the number that
            Granite multiplies it with; elsewhere there is no difference.
        digest: SHA-256 over the tensors and all else that changes what is computed; given, it is kept.
        history: of one that was trained here, the training's curve (see `train_sae`); files do not have it.

    Raises:
        CircuitDiscoveryError: tensors that are missing, of wrong shapes or not finite.
    """

    kind: str
    site: str | None
    reads: str
    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    threshold: Tensor | None = None
    k: int | None = None
    r_mag: Tensor | None = None
    b_mag: Tensor | None = None
    W_skip: Tensor | None = None
    subtracts_b_dec: bool = False
    normalizes: str = "none"
    signed: bool = False
    inner: bool = False
    digest: str = ""
    history: tuple[Mapping[str, float], ...] = ()

    def __post_init__(self) -> None:
        check(self)
        if not self.digest:
            object.__setattr__(self, "digest", _digest(self))

    # ------------------------------------------------------------------ what it is

    @property
    def width(self) -> int:
        """The number of features."""
        return len(self.W_enc)

    @property
    def d_in(self) -> int:
        """The width of what it reads."""
        return self.W_enc.shape[1]

    @property
    def d_out(self) -> int:
        """The width of what it writes."""
        return self.W_dec.shape[1]

    @property
    def transcoder(self) -> bool:
        """Whether it reads something else than what it writes."""
        return self.reads != "output"

    @property
    def needs_input(self) -> bool:
        """Whether `decode` needs what was read, too: for a skip connection or a normalised activation."""
        return self.W_skip is not None or self._rescales

    @property
    def vectors(self) -> Tensor:
        """[features, d_out]: what a feature writes where its value is 1.

        `decode(f, x)` is `f @ vectors` and what no feature adds: `decode` of zeros.
        """
        return self.W_dec

    def separately(self) -> bool:
        """Whether each feature's value depends on its own row alone: not where the k largest are taken."""
        return self.kind != "topk"

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors that it has, by name."""
        return {name: each for name in TENSORS if (each := getattr(self, name)) is not None}

    @property
    def _rescales(self) -> bool:
        """Whether a normalised activation's scale is given back: of an autoencoder."""
        return self.normalizes != "none" and not self.transcoder

    # ------------------------------------------------------------------ what it computes

    def encode(self, x: Tensor) -> Tensor:
        """[..., d_in] -> [..., features]: how active each feature is.

        All that happens to an activation before is part of it, and it is computed in the dictionary's own
        precision, whatever the activation's. Where an autoencoder normalises activations, the values are in
        the activation's own scale, so that a feature always writes its value times its row.

        Raises:
            CircuitDiscoveryError: an activation of another width.
        """
        read, scale, _ = self._read(x)
        found = self._active(F.linear(read, self.W_enc), self.b_enc, self.threshold, self.r_mag, self.b_mag)
        return found if scale is None else found * scale

    def encode_some(self, x: Tensor, which: Tensor) -> Tensor:
        """[..., d_in], [n] indices of features -> [n, ...]: `encode(x)[..., which].movedim(-1, 0)`.

        Nothing is computed of the other features, except where the k largest are taken.
        """
        if not self.separately():
            return self._some_of_all(x, which)
        read, scale, _ = self._read(x)
        rest = (None if each is None else each[which] for each in (self.threshold, self.r_mag, self.b_mag))
        found = self._active(F.linear(read, self.W_enc[which]), self.b_enc[which], *rest)
        return (found if scale is None else found * scale).movedim(-1, 0)

    def values_of(self, products: Tensor, which: Tensor) -> Tensor:
        """[n, ...] products of rows of W_enc with what is read -> [n, ...]: how active these features are,
        where each depends on its own row alone (`separately`)."""
        rest = (self.b_enc, self.threshold, self.r_mag, self.b_mag)
        own = (None if each is None else each[which] for each in rest)
        bias, *rest = (None if each is None else each.view(-1, *(1,) * (products.dim() - 1)) for each in own)
        assert bias is not None
        return self._active(products, bias, *rest)

    def decode(self, f: Tensor, x: Tensor | None = None) -> Tensor:
        """[..., features] -> [..., d_out]: what they write together.

        Args:
            f: what `encode` gave, or any other values.
            x: [..., d_in], what was read; only where `needs_input`.

        Raises:
            CircuitDiscoveryError: no x where it is needed.
        """
        if not self.needs_input:
            return f @ self.W_dec + self.b_dec
        if x is None:
            why = "has a skip connection" if self.W_skip is not None else "normalises what it reads"
            raise CircuitDiscoveryError(f"decode needs x, what was read: this dictionary {why}")
        written = f @ self.W_dec
        if self.W_skip is not None:  # it reads what was not normalised
            written = written + F.linear(x.to(self.W_skip.dtype), self.W_skip)
        _, scale, shift = self._read(x)
        written = written + (self.b_dec if scale is None else self.b_dec * scale)
        return written if shift is None else written + shift

    @property
    def at_once(self) -> int:
        """Of how many activations all features are held at once, in the memory that may be held."""
        each = 3 * self.W_enc.element_size() * self.width  # products, and twice what is made of them
        return memory.at_once(each, self.W_enc.device, _BYTES)

    def written(self, x: Tensor) -> Tensor:
        """[..., d_in] -> [..., d_out]: `decode(encode(x), x)`, of some activations at a time."""
        rows = x.reshape(-1, x.shape[-1])
        parts = [self.decode(self.encode(some), some) for some in rows.split(self.at_once)]
        return torch.cat(parts).reshape(*x.shape[:-1], self.d_out)

    def _read(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(what W_enc is multiplied with [..., d_in], the scale and the mean to give back [..., 1])."""
        if x.shape[-1:] != (self.d_in,):
            raise CircuitDiscoveryError(
                f"the dictionary reads activations of width {self.d_in}, not of shape {list(x.shape)}"
            )
        x, scale, shift = x.to(self.W_enc.dtype), None, None
        if self.normalizes in ("centre", "layer_norm"):
            shift = x.mean(-1, keepdim=True)
            x = x - shift
        if self.normalizes == "layer_norm":
            scale = x.std(-1, keepdim=True)
            x = x / (scale + _LAYER_NORM_EPS)
        elif self.normalizes == "constant_norm_rescale":
            scale = x.norm(dim=-1, keepdim=True) / self.d_in**0.5
            x = x / scale.clamp_min(torch.finfo(x.dtype).tiny)
        x = x - self.b_dec if self.subtracts_b_dec else x
        return (x, scale, shift) if self._rescales else (x, None, None)

    def _active(
        self,
        product: Tensor,
        bias: Tensor,
        threshold: Tensor | None,
        r_mag: Tensor | None,
        b_mag: Tensor | None,
    ) -> Tensor:
        """The values of the features whose rows gave this product, all [..., n]."""
        before = product + bias
        if threshold is not None:
            return (before if self.signed else before.relu()) * (before > threshold)
        if r_mag is not None and b_mag is not None:
            return (product * r_mag.exp() + b_mag).relu() * (before > 0)
        if self.k is None:
            return before.relu()
        largest, where = before.topk(self.k, dim=-1, sorted=False)
        return torch.zeros_like(before).scatter(-1, where, largest if self.signed else largest.relu())

    def _some_of_all(self, x: Tensor, which: Tensor) -> Tensor:
        """Some features of all, for a few activations at a time."""
        rows = x.reshape(-1, x.shape[-1])
        parts = [self.encode(part)[:, which].T for part in rows.split(self.at_once)]
        return torch.cat(parts, dim=1).reshape(len(which), *x.shape[:-1])

    # ------------------------------------------------------------------ where it goes

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | str | None = None) -> Self:
        """The same on a device or in another precision; its digest stays.

        Raises:
            CircuitDiscoveryError: an unknown dtype.
        """
        precision = None if dtype is None else as_dtype(dtype)
        moved = {name: each.to(device=device, dtype=precision) for name, each in self.tensors.items()}
        if all(moved[name] is each for name, each in self.tensors.items()):
            return self  # without looking through all its weights again
        return replace(self, **moved)

    @guarded
    def save(self, folder: str | Path) -> None:
        """Write it in SAE Lens' layout, cfg.json and sae_weights.safetensors; `load_sae` reads it.

        cfg.json is written last, so that a folder that has it is complete.

        Args:
            folder: is made where it does not exist.

        Raises:
            CircuitDiscoveryError: a folder that cannot be written.
        """
        from circuitdiscovery.features.sae_lens import write

        write(self, Path(folder))

    def __getitem__(self, number: int) -> Feature:
        """One of its features, by number; negative numbers count from the end.

        Raises:
            CircuitDiscoveryError: it has no such feature.
        """
        if isinstance(number, bool) or not isinstance(number, int | np.integer):
            raise CircuitDiscoveryError(f"a feature is a whole number, as in sae[17], not {shown(number)}")
        if not -self.width <= number < self.width:
            raise CircuitDiscoveryError(
                f"the dictionary has no feature {number}: it has {self.width:,}, counted from 0"
            )
        return Feature(self, int(number) % self.width)

    def __len__(self) -> int:
        return self.width

    def __repr__(self) -> str:
        what = "transcoder" if self.transcoder else "autoencoder"
        return (
            f"Dictionary({self.kind} {what}, site={self.site!r}, features={self.width}, d_in={self.d_in}, "
            f"d_out={self.d_out})"
        )


@dataclass(frozen=True, eq=False)
class Feature:
    """One feature of a dictionary: `sae[17]`."""

    dictionary: Dictionary
    number: int

    def __str__(self) -> str:
        return f"{self.dictionary.site or 'a dictionary'}/f{self.number}"


def _digest(found: Dictionary) -> str:
    """The same for the same values in any precision that holds them."""

    def narrow(tensor: Tensor) -> Tensor:
        single = tensor.float()
        return single if torch.equal(single.to(tensor.dtype), tensor) else tensor

    rest = [found.kind, found.reads, found.k, found.subtracts_b_dec, found.normalizes]
    told = repr([*rest, found.signed, found.inner]).encode()
    tensors = {name: narrow(each) for name, each in found.tensors.items()}
    return weights_digest(tensors | {"computation": torch.frombuffer(bytearray(told), dtype=torch.uint8)})
