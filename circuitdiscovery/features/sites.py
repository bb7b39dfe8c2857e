"""Where a dictionary stands: the names that other libraries have for places in a model, and ours.

TransformerLens: `blocks.2.hook_mlp_out` is what the MLP adds to the stream: after a norm if one follows it,
and in Granite times a number. A bridge's `blocks.2.mlp.hook_out` and Hugging Face's module `layers.2.mlp` are
before these. In BLOOM and MPT that module adds the stream, as BLOOM's attention does (`Model.adding`).

An MLP's input is named at three places: the stream (`hook_resid_mid`), the norm's output (`mlp.hook_in`), and
`ln2.hook_normalized`: of an RMSNorm that before the gain; of a LayerNorm the output again, but where the gain
was folded into the weights (`fold_ln`), or in a bridge.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from circuitdiscovery.errors import CircuitDiscoveryError, shown

_OUTPUT = "output"


@dataclass(frozen=True)
class Location:
    """A place in a model.

    Args:
        site: a node, a stream or what a node is made of.
        reads: "output", or which of the inputs of the site's node it is.
        inner: whether it is before a norm or a multiplication that may follow.
    """

    site: str
    reads: str = _OUTPUT
    inner: bool = False


# what follows `blocks.2.` -> the site ({0} is the layer, {1} the next), which input of it, whether inner;
# the first of several names of one place is the one that is written
_TRANSFORMER_LENS: dict[str, tuple[str, str, bool]] = {
    "hook_resid_pre": ("resid{0}", _OUTPUT, False),
    "hook_in": ("resid{0}", _OUTPUT, False),
    "hook_resid_post": ("resid{1}", _OUTPUT, False),
    "hook_out": ("resid{1}", _OUTPUT, False),
    "hook_mlp_out": ("m{0}", _OUTPUT, False),
    "mlp.hook_out": ("m{0}", _OUTPUT, True),
    "mlp.hook_post": ("m{0}.neurons", _OUTPUT, False),
    "hook_attn_out": ("a{0}", _OUTPUT, False),
    "attn.hook_out": ("a{0}", _OUTPUT, True),
    "attn.hook_z": ("a{0}.z", _OUTPUT, False),
    "mlp.hook_in": ("m{0}", "normed", False),
    "ln2.hook_out": ("m{0}", "normed", False),
    "ln2.hook_normalized": ("m{0}", "hook_normalized", False),
    "hook_resid_mid": ("m{0}", "stream", False),
    "hook_mlp_in": ("m{0}", "stream", False),
    "ln2.hook_in": ("m{0}", "stream", False),
}
# the same for what follows Hugging Face's `model.layers.2.`
_ATTENTION = ("self_attn", "attn", "attention", "self_attention")
_HUGGING_FACE: dict[str, tuple[str, str, bool]] = {
    "input": ("resid{0}", _OUTPUT, False),
    "output": ("resid{1}", _OUTPUT, False),
    "mlp.output": ("m{0}", _OUTPUT, True),
    "post_feedforward_layernorm.output": ("m{0}", _OUTPUT, False),
    **{f"{name}.output": ("a{0}", _OUTPUT, True) for name in _ATTENTION},
    "self_attn.o_proj.input": ("a{0}.z", _OUTPUT, False),
    "mlp.input": ("m{0}", "normed", False),
    "pre_feedforward_layernorm.output": ("m{0}", "normed", False),
    "pre_feedforward_layernorm.input": ("m{0}", "stream", False),
}
_BLOCK = re.compile(r"blocks\.(\d{1,5})\.(.+)")
_MODULE = re.compile(
    r"(?:model\.|transformer\.|gpt_neox\.|language_model\.)*(?:layers|h)\.(\d{1,5})(?:\.(.+))?"
)
_SITE = re.compile(r"resid\d{1,5}|m\d{1,5}(\.neurons)?|a\d{1,5}(\.z)?")


def layers_of(site: str) -> tuple[int, ...]:
    """The layers that a site is of: `a1.z` -> (1,); the stream is after one and before the next."""
    layer = _number(site)
    return (layer - 1, layer) if site.startswith("resid") else (layer,)


def _number(site: str) -> int:
    return int(re.findall(r"\d+", site)[0])


def location_of(hook: str, where: str | Path) -> Location:
    """The place that another library calls so.

    >>> location_of("blocks.2.hook_mlp_out", ""), location_of("model.layers.3.output", "").site
    (Location(site='m2', reads='output', inner=False), 'resid4')
    >>> location_of("blocks.2.ln2.hook_normalized", "").reads
    'hook_normalized'

    Args:
        hook: TransformerLens' name, or Hugging Face's module with `.input` or `.output`; without
            either, its output.
        where: the file, for errors.

    Raises:
        CircuitDiscoveryError: a name that is not known.
    """
    for pattern, table in ((_BLOCK, _TRANSFORMER_LENS), (_MODULE, _HUGGING_FACE)):
        if match := pattern.fullmatch(hook):
            layer, rest = int(match[1]), match[2] or _OUTPUT
            if known := table.get(rest) or table.get(f"{rest}.{_OUTPUT}"):
                site, reads, inner = known
                return Location(site.format(layer, layer + 1), reads, inner)
            raise CircuitDiscoveryError(
                f"{where}: the place {shown(hook)} is not known; known ones are {_listed(pattern is _BLOCK)}"
            )
    raise CircuitDiscoveryError(
        f"{where}: the place {shown(hook)} is not known; known ones are {_listed(True)}, and {_listed(False)}"
    )


def is_mlp(site: str) -> bool:
    """Whether a site is an MLP."""
    return re.fullmatch(r"m\d+", site) is not None


def is_module(name: str) -> bool:
    """Whether a text looks like the name of a module of Hugging Face: `layers.2.mlp`, `h.2`."""
    return _MODULE.fullmatch(name) is not None


def _listed(transformer_lens: bool) -> str:
    """The known names, of TransformerLens or of Hugging Face."""
    table = _TRANSFORMER_LENS if transformer_lens else _HUGGING_FACE
    return f"{'blocks.N.' if transformer_lens else 'layers.N.'}{{{', '.join(table)}}}"


def hook_of(site: str, reads: str = _OUTPUT, inner: bool = False) -> str:
    """TransformerLens' name of a place; the reverse of `location_of`.

    The stream is named by the block that it is after, which is there of the last stream too; what is normed
    without gain as in a model whose gains are folded.

    >>> hook_of("m2"), hook_of("m2", "normed"), hook_of("resid0"), hook_of("resid4")
    ('blocks.2.hook_mlp_out', 'blocks.2.mlp.hook_in', 'blocks.0.hook_resid_pre', 'blocks.3.hook_resid_post')
    """
    layer, reads = max(0, layers_of(site)[0]), "hook_normalized" if reads == "normed without gain" else reads
    for rest, known in _TRANSFORMER_LENS.items():
        if known[0].format(layer, layer + 1) == site and known[1:] == (reads, inner and reads == _OUTPUT):
            return f"blocks.{layer}.{rest}"
    return hook_of(
        site, reads
    )  # before no norm that is known: of a stream, of heads before their output matrix


def transcoded(read: Location, written: Location, where: str | Path) -> Location:
    """The MLP between two places, and which of its inputs is read; an error if there is none."""
    node, goal = read.site, written.site
    if read.reads == _OUTPUT or written.reads != _OUTPUT or node != goal:
        raise CircuitDiscoveryError(
            f"{where}: a transcoder reads an MLP's input and writes its output; this one reads {_told(read)} "
            f"and writes {_told(written)}"
        )
    return Location(node, read.reads, written.inner)


def _told(place: Location) -> str:
    return place.site if place.reads == _OUTPUT else f"the input of {place.site}"


def what_is_read(place: Location | None, transcoder: bool, told: str | None, where: str | Path) -> str:
    """Which input it is, by its place or else by what is told.

    Raises:
        CircuitDiscoveryError: neither says it of a transcoder, or what is told is not an input of such a one.
    """
    if place is not None:
        return place.reads
    if told is None and transcoder:
        raise CircuitDiscoveryError(f"{where}: what the transcoder reads is not in the file; give reads=")
    if told is not None and (told != _OUTPUT) != transcoder:
        kind = "a transcoder" if transcoder else "an autoencoder"
        raise CircuitDiscoveryError(f"{where}: reads is {told!r}, but this is {kind}")
    return told or _OUTPUT


def is_site(name: str) -> bool:
    """Whether a dictionary can say that it stands there."""
    return _SITE.fullmatch(name) is not None


def checked_site(site: str, where: str | Path) -> str:
    """A site as users write it, if it is one."""
    if not is_site(site):
        raise CircuitDiscoveryError(
            f"{where}: {shown(site)} is not a site; a site is an MLP (m2), attention (a2), its heads "
            "before the output matrix (a2.z), neurons (m2.neurons) or the stream before a block (resid2)"
        )
    return site
