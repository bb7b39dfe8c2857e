"""A forward of the whole model at whose places values can be read and replaced.

Places of layer l, in the order in which they are computed; N prompts, T tokens each, D d_model, H heads, K
d_head:

    resid{l}    [N, T, D]   the stream before block l; resid{L} is the one that the last norm reads
    a{l}.pattern [H, N, T, T] the weight from each query to each key, of each head
    a{l}.z      [N, T, H K] what attention's output matrix reads, one head after the other
    a{l}.heads  [H, N, T, D] what each head writes (`a{l}.h{h}` is one of them)
    a{l}.inner  [N, T, D]   what attention writes, before a norm of that where one follows (Gemma 2 and 3)
    a{l}        [N, T, D]   what attention adds to the stream
    m{l}.stream [N, T, D]   what the MLP reads: the stream before its norm
    m{l}.bare   [N, T, D]   the same after the norm, without the norm's gain and bias
    m{l}.normed [N, T, D]   the same with them
    m{l}.neurons [N, T, U]  the activations of the MLP's neurons (`m{l}/n{u}` is one of them)
    m{l}.inner  [N, T, D]   what the MLP writes, before a norm of that where one follows
    m{l}        [N, T, D]   what the MLP adds to the stream
    last        [N, V], logits [N, T, V]: the logits after the last token, and after each

Values are on the device of the layer that makes them (`device_of`), logits on the model's.

Where an architecture multiplies what a layer adds by a number r (Granite), the stream and what is added to it
(a{l}, m{l}) are the model's own, r times those that our forward keeps (`Model.stream_unit`); a{l}.heads,
a{l}.inner and m{l}.inner are before the multiplication.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from circuitdiscovery.errors import CircuitDiscoveryError, shown
from circuitdiscovery.model.block import Block
from circuitdiscovery.model.model import Model
from circuitdiscovery.model.norm import Norm
from circuitdiscovery.model.run import embed, per_head

LAST, LOGITS = "last", "logits"
# of a layer
ATTENTION, PATTERN, Z, NEURONS = "a{}", "a{}.pattern", "a{}.z", "m{}.neurons"
# the places of what an MLP reads -> what a dictionary calls them (`Dictionary.reads`)
INPUTS = {"stream": "stream", "normed": "normed", "bare": "normed without gain"}
_STREAM = re.compile(r"resid(\d{1,5})")
_IN_STREAM = re.compile(r"(resid|a|m)\d+|m\d+\.stream")
_ATTENTION = re.compile(r"a(\d{1,5})(\.z|\.inner|\.h(\d{1,5}))?")
_MLP = re.compile(r"m(\d{1,5})(\.neurons|\.stream|\.bare|\.normed|\.inner|/n(\d{1,7}))?")
_VALID = (
    "sites are resid0 ... resid{0}, a0 ... a{1}, a0.z, a0.h0 ... a0.h{2}, m0 ... m{1}, m0.neurons, m0/n0, "
    "m0.stream, m0.bare, m0.normed"
)


@dataclass(frozen=True)
class Site:
    """What a user names.

    Args:
        name: as it was named.
        place: the place in the forward that it is, or is a part of.
        unit: which head or neuron of the place it is; None where it is all of the place.
    """

    name: str
    place: str
    unit: int | None = None

    @property
    def axis(self) -> int:
        """Along which the place's values have the unit."""
        return 0 if self.place.endswith(".heads") else -1

    def of(self, values: Tensor) -> Tensor:
        """The site's values, as a view of those of its place."""
        return values if self.unit is None else values.select(self.axis, self.unit)


def site_of(model: Model, name: object) -> Site:
    """The site of that name.

    Raises:
        CircuitDiscoveryError: the model has no such site.
    """
    text, layers = str(name), model.n_layers
    if isinstance(name, str) and (match := _STREAM.fullmatch(text)) and int(match[1]) <= layers:
        return Site(text, text)
    if isinstance(name, str) and (match := _ATTENTION.fullmatch(text)) and int(match[1]) < layers:
        if match[3] is None:
            return Site(text, text)
        if int(match[3]) < model.n_heads:
            return Site(text, f"a{int(match[1])}.heads", int(match[3]))
    if isinstance(name, str) and (match := _MLP.fullmatch(text)) and int(match[1]) < layers:
        return _of_mlp(model, text, int(match[1]), match)
    last = layers - 1
    told = _VALID.replace("{0}", str(layers)).replace("{1}", str(last)).replace("{2}", str(model.n_heads - 1))
    raise CircuitDiscoveryError(f"{model.name} has no site {shown(name)}; {told}")


def _of_mlp(model: Model, name: str, layer: int, match: re.Match[str]) -> Site:
    block = model.blocks[layer]
    if block.W_in is None and block.experts is None:
        raise CircuitDiscoveryError(f"{model.name} has no MLP: {name} is not a site")
    if match[2] == ".neurons" or match[3] is not None:
        if block.W_in is None:
            raise CircuitDiscoveryError(
                f"{name}: m{layer} of {model.name} is a mixture of experts: it has no neurons"
            )
        if match[3] is not None and int(match[3]) >= block.d_mlp:
            raise CircuitDiscoveryError(
                f"m{layer} has no neuron {int(match[3])}: it has {block.d_mlp:,}, counted from 0"
            )
    return Site(name, name) if match[3] is None else Site(name, f"m{layer}.neurons", int(match[3]))


def device_of(model: Model, place: str) -> torch.device:
    """Where the values of a place are."""
    layer = int(re.findall(r"\d+", place)[0])
    if place.startswith("resid"):  # what the layer before gives
        return model.blocks[layer - 1].device if layer else model.device
    return model.blocks[layer].device


def norm_of(model: Model, place: str) -> Norm | None:
    """The norm that follows the node of a place; None of streams."""
    node = re.match(r"([am])(\d+)", place)
    return None if node is None else model.blocks[int(node[2])].norm_after(node[1])


def has_inner(model: Model, place: str) -> bool:
    """Whether what the node of a place writes is another thing than what it adds to the stream: a norm or a
    multiplication follows it."""
    return not place.startswith("resid") and (norm_of(model, place) is not None or model.stream_unit != 1.0)


def is_input(place: str) -> bool:
    """Whether the values of a place are only read, by an MLP."""
    return place.partition(".")[2] in INPUTS


def is_stream(place: str) -> bool:
    """Whether the values of a place are streams or what is added to them, in the model's own unit."""
    return _IN_STREAM.fullmatch(place) is not None


class _AllRead(Exception):
    """Nothing that is wanted comes later."""


@dataclass
class Visit:
    """What one forward does at its places.

    Args:
        edits: place -> what makes other values of its values.
        wanted: the places that are read, after their edits.
        unit: `Model.stream_unit`.
        found: their values, by place.
    """

    edits: Mapping[str, Callable[[Tensor], Tensor]]
    wanted: Collection[str]
    unit: float
    found: dict[str, Tensor] = field(default_factory=dict)

    def at(self, place: str, values: Tensor) -> Tensor:
        """The values at a place, edited and read where that is asked for."""
        if not self.stops(place):
            return values
        unit = self.unit if is_stream(place) else 1.0
        own = values if unit == 1.0 else values * unit
        if place in self.edits:
            own = self.edits[place](own)
            values = own if unit == 1.0 else own / unit
        if place in self.wanted:
            self.found[place] = own
            if len(self.found) == len(self.wanted):
                raise _AllRead
        return values

    def stops(self, place: str) -> bool:
        """Whether anything happens at a place."""
        return place in self.edits or place in self.wanted


def forward(
    model: Model,
    tokens: Tensor,
    wanted: Collection[str],
    edits: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
) -> dict[str, Tensor]:
    """The values at some places where [N, T] tokens are run; nothing is computed that comes after them all.

    Weights have no gradients. What an edit puts in that has some can be differentiated through.

    Args:
        model: a loaded model.
        tokens: token ids, without pads.
        wanted: names of places.
        edits: place -> a function of its values that gives others of the same shape.
    """
    visit = Visit(edits or {}, set(wanted), model.stream_unit)
    with suppress(_AllRead):
        _run(model, tokens, visit)
    return visit.found


def _run(model: Model, tokens: Tensor, visit: Visit) -> None:
    x = visit.at("resid0", embed(model, tokens))
    for layer, block in enumerate(model.blocks):
        x = x.to(block.device)
        attended = _attention(model, block, x, layer, visit)
        read = x if model.graph.parallel else x + attended
        x = x + attended
        if model.graph.has_mlp:
            x = x + _mlp(block, read, layer, visit)
        x = visit.at(f"resid{layer + 1}", x)
    normalised = model.final_norm(x.to(model.device))
    if visit.stops(LAST):
        visit.at(LAST, model.logits_of(normalised[:, -1]))
    if visit.stops(LOGITS):
        visit.at(LOGITS, model.logits_of(normalised))


def _attention(model: Model, block: Block, x: Tensor, layer: int, visit: Visit) -> Tensor:
    """[N, T, D]: what attention adds to the stream."""
    q, k, v = (block.heads_make(letter, block.norm1(x)) for letter in "qkv")
    k, v = per_head(model, k), per_head(model, v)
    if visit.stops(f"a{layer}.pattern"):
        z = visit.at(f"a{layer}.pattern", block.pattern(q, k)).to(v.dtype) @ v  # [H, N, T, K]
    else:
        z = block.attend(q, k, v)
    if visit.stops(f"a{layer}.z"):
        flat = visit.at(f"a{layer}.z", z.permute(1, 2, 0, 3).flatten(2))
        z = flat.unflatten(2, (len(z), -1)).permute(2, 0, 1, 3)
    if visit.stops(f"a{layer}.heads"):
        written = visit.at(f"a{layer}.heads", block.written(z)).sum(0)
    else:
        written = block.together(z)
    inner = visit.at(f"a{layer}.inner", written if block.b_O is None else written + block.b_O)
    return visit.at(f"a{layer}", inner if block.heads_norm is None else block.heads_norm(inner))


def _mlp(block: Block, read: Tensor, layer: int, visit: Visit) -> Tensor:
    """[N, T, D]: what the MLP adds to the stream, from the stream that it reads."""
    norm, stream = block.norm2, visit.at(f"m{layer}.stream", read)
    if visit.stops(f"m{layer}.bare"):
        bare = visit.at(f"m{layer}.bare", norm.bare(stream))
        normed = bare * norm.scale if norm.bias is None else bare * norm.scale + norm.bias
    else:
        normed = norm(stream)
    normed = visit.at(f"m{layer}.normed", normed)
    if block.experts is None:
        assert block.W_out is not None
        inner = F.linear(visit.at(f"m{layer}.neurons", block.hidden(normed)), block.W_out, block.b_out)
    else:
        inner = block.experts(normed)
    inner = visit.at(f"m{layer}.inner", inner)
    return visit.at(f"m{layer}", inner if block.mlp_norm is None else block.mlp_norm(inner))
