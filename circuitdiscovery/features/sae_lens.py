"""SAE Lens' folders: cfg.json and sae_weights.safetensors, as its versions 1 to 6 write them.

Old versions keep everything in one object and call things otherwise (`hook_point`, `activation_fn_str`). An
architecture is named in parts: `jumprelu_skip_transcoder`. Those that SAE Lens does not have are named in the
same way when they are written, so that it refuses them: `topk_transcoder`, `signed_topk_skip_transcoder`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuitdiscovery.errors import CircuitDiscoveryError, shown
from circuitdiscovery.features.dictionary import TENSORS, Dictionary
from circuitdiscovery.features.files import field, made, matrix, read_config, read_tensors, sized, taken
from circuitdiscovery.features.sites import Location, hook_of, location_of, transcoded, what_is_read
from circuitdiscovery.files.disk import to_json, write_atomically

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
_SCALER = "activation_scaler.json"  # beside a checkpoint of a training that goes on
_LAYOUT = "6.0.0"  # the version of SAE Lens that made the layout which is written
_KINDS = {"standard": "relu", "topk": "topk", "jumprelu": "jumprelu", "gated": "gated"}
_VALID = (*_KINDS, "transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
_RENAMED = {
    "hook_point": "hook_name",
    "hook_point_layer": "hook_layer",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
_TENSORS: Mapping[str, tuple[str, ...]] = {
    "relu": ("b_enc",),
    "topk": ("b_enc",),
    "jumprelu": ("b_enc", "threshold"),
    "gated": ("b_gate", "r_mag", "b_mag"),
}
# what TransformerLens may do to the weights before activations are collected, and where it matters
_PROCESSING = {"fold_value_biases": ".z", "refactor_factored_attn_matrices": ".z", "fold_ln": "normed"}
_CENTRED = "center_writing_weights"
_OLD = "hook_point"  # what only old versions write


@dataclass(frozen=True)
class _Architecture:
    """What is computed, and SAE Lens' name for it: a kind and what is beside it."""

    kind: str
    transcoder: bool = False
    skip: bool = False
    signed: bool = False

    @property
    def name(self) -> str:
        kind = next(name for name, kind in _KINDS.items() if kind == self.kind)
        parts = {
            "signed": self.signed,
            kind: kind != "standard" or not self.transcoder,
            "skip": self.skip,
            "transcoder": self.transcoder,
        }
        return "_".join(part for part, there in parts.items() if there)


_BY_NAME = {
    each.name: each
    for kind in _KINDS.values()
    for transcoder in (False, True)
    for skip in (False, True)
    for signed in (False, True)
    for each in (_Architecture(kind, transcoder, skip, signed),)
}


def read(folder: Path, reads: str | None = None, centred: bool | None = None) -> Dictionary:
    """The dictionary of a folder.

    Args:
        reads: what a transcoder reads, where the folder does not say.
        centred: whether what it reads is centred, whatever the folder says.

    Raises:
        CircuitDiscoveryError: whatever is missing, contradictory or not computed, by name.
    """
    where, weights = folder / CONFIG, folder / WEIGHTS
    config = _flat(read_config(where), where)
    built = _architecture(config, where)
    place = _unfolded(config, _place(config, built, where), where)
    reads = what_is_read(place, built.transcoder, field(config, "reads", str, where, reads), where)
    normalizes = _normalizes(config, where)
    tensors = read_tensors(weights)
    names = ("W_enc", "W_dec", "b_dec", *_TENSORS[built.kind], *(("W_skip",) if built.skip else ()))
    taken(tensors, weights, names, ("scaling_factor",))
    encoder, decoder = matrix(tensors, "W_enc", weights), _decoder(tensors, config, where, weights)
    sized(config, where, {"d_in": encoder.shape[1], "d_sae": len(encoder)})
    if built.transcoder:
        sized(config, where, {"d_out": decoder.shape[1]})
    tensors |= {"W_enc": encoder, "W_dec": decoder, "b_enc": tensors[_TENSORS[built.kind][0]]}
    if normalizes == "expected_average_only_in":
        _scale(tensors, folder, where)
        normalizes = "none"
    if _centres(config, place, centred, where):
        if normalizes == "constant_norm_rescale":
            raise CircuitDiscoveryError(f"{where}: {_CENTRED} and {normalizes} together are not computed")
        normalizes = "centre" if normalizes == "none" else normalizes  # layer_norm centres, too
    if built.kind == "topk" and field(config, "rescale_acts_by_decoder_norm", bool, where, False):
        _rescale(tensors)
    return made(
        weights,
        kind=built.kind,
        site=place.site if place else None,
        reads=reads,
        **_own(tensors),
        k=_k(config, where) if built.kind == "topk" else None,
        subtracts_b_dec=field(config, "apply_b_dec_to_input", bool, where, not built.transcoder),
        normalizes=normalizes,
        signed=built.signed,
        inner=place.inner if place else field(config, "inner", bool, where, False),
    )


def _own(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The tensors that a dictionary has by the same name."""
    return {name: each for name, each in tensors.items() if name in TENSORS}


def _flat(config: dict[str, Any], where: Path) -> dict[str, Any]:
    """A configuration of any version: its metadata beside the rest, by the names of today."""
    metadata = field(config, "metadata", dict, where, {})
    renamed = {_RENAMED.get(name, name): value for name, value in config.items()}
    return {**metadata, **config, **renamed}


def _architecture(config: Mapping[str, Any], where: Path) -> _Architecture:
    """What is computed; the old `activation_fn` may say it."""
    name = field(config, "architecture", str, where, "standard")
    activation = field(config, "activation_fn", str, where, "relu")
    if name not in _BY_NAME:
        raise CircuitDiscoveryError(
            f"{where}: architecture {shown(name)} is not computed; computed are {', '.join(_VALID)}"
        )
    if activation == "topk" and name in ("standard", "topk"):
        return _Architecture("topk")
    if activation != "relu":
        raise CircuitDiscoveryError(
            f"{where}: the activation function {shown(activation)} of architecture {name} is not computed; "
            "relu and topk are"
        )
    return _BY_NAME[name]


def _k(config: Mapping[str, Any], where: Path) -> int:
    """The k of topk, which old versions keep with the activation function's arguments."""
    arguments = field(config, "activation_fn_kwargs", dict, where, {})
    if other := [name for name in arguments if name != "k" and arguments[name]]:
        raise CircuitDiscoveryError(f"{where}: {shown(other[0])} of topk is not computed")
    found = field(config, "k", int, where, field(arguments, "k", int, where, None))
    if found is None:
        raise CircuitDiscoveryError(f"{where}: k of topk is missing")
    return found


def _normalizes(config: Mapping[str, Any], where: Path) -> str:
    """How activations are normalised; of old versions, whether."""
    value = config.get("normalize_activations")
    if value is None or isinstance(value, bool):
        return "expected_average_only_in" if value else "none"
    valid = ("none", "layer_norm", "constant_norm_rescale", "expected_average_only_in")
    if value not in valid:
        raise CircuitDiscoveryError(f"{where}: normalize_activations {shown(value)} is not computed")
    return value


def _scale(tensors: dict[str, Tensor], folder: Path, where: Path) -> None:
    """Put the factor that activations are multiplied with before, and divided by after, into the weights."""
    if not (folder / _SCALER).is_file():
        raise CircuitDiscoveryError(
            f"{where}: normalize_activations is expected_average_only_in, whose factor is not in the folder; "
            "save it with the factor folded into the weights"
        )
    factor = field(read_config(folder / _SCALER), "scaling_factor", float, folder / _SCALER, 0.0)
    if not factor > 0:
        raise CircuitDiscoveryError(f"{folder / _SCALER}: scaling_factor must be above 0")
    tensors["W_enc"] = tensors["W_enc"] * factor
    tensors["W_dec"], tensors["b_dec"] = tensors["W_dec"] / factor, tensors["b_dec"] / factor


def _rescale(tensors: dict[str, Tensor]) -> None:
    """Put the decoder's norms into the encoder, so that the k largest are taken by what they write."""
    norms = tensors["W_dec"].norm(dim=-1)
    tensors["W_enc"], tensors["b_enc"] = tensors["W_enc"] * norms[:, None], tensors["b_enc"] * norms
    tensors["W_dec"] = tensors["W_dec"] / norms.clamp_min(torch.finfo(norms.dtype).tiny)[:, None]


def _decoder(tensors: Mapping[str, Tensor], config: Mapping[str, Any], where: Path, weights: Path) -> Tensor:
    """[features, d_out], with the factors of finetuning, which old versions multiply features with."""
    decoder, factors = tensors["W_dec"], tensors.get("scaling_factor")
    if decoder.dim() != 2:
        raise CircuitDiscoveryError(f"{weights}: W_dec is a matrix, not of shape {list(decoder.shape)}")
    if factors is None or torch.allclose(factors, torch.ones_like(factors)):
        return decoder
    if factors.shape != decoder.shape[:1]:
        raise CircuitDiscoveryError(f"{weights}: scaling_factor has shape {list(factors.shape)}")
    if not field(config, "finetuning_scaling_factor", bool, where, False):
        raise CircuitDiscoveryError(
            f"{weights}: scaling_factor is there, but by {CONFIG} finetuning_scaling_factor is off"
        )
    return decoder * factors[:, None]


# ------------------------------------------------------------------- where it stands


def _place(config: Mapping[str, Any], built: _Architecture, where: Path) -> Location | None:
    """Where it stands, by the names of the hooks; None where there are none."""
    if config.get("hook_head_index") is not None:
        raise CircuitDiscoveryError(
            f"{where}: hook_head_index is {shown(config['hook_head_index'])}; a dictionary of one head's "
            "part of a hook is not computed"
        )
    read = _hook(config, "hook_name", "hf_hook_name", where)
    if read is None:
        return None
    if not built.transcoder:
        if read.reads != "output":
            raise CircuitDiscoveryError(
                f"{where}: an autoencoder of {config.get('hook_name')} is not supported: it is neither a "
                "node nor the stream between blocks"
            )
        place = read
    else:
        written = _hook(config, "hook_name_out", "hf_hook_name_out", where)
        if written is None:
            raise CircuitDiscoveryError(f"{where}: hook_name_out is missing: where the transcoder writes")
        place = transcoded(read, written, where)
    _check_processing(config, place, where)
    return place


def _hook(config: Mapping[str, Any], name: str, better: str, where: Path) -> Location | None:
    """The place of a hook.

    Hugging Face's name is better where there is one: SAE Lens calls an MLP's normed input in
    Gemma 3 `hook_mlp_in`, which is TransformerLens' name of the stream before the norm.
    """
    if found := field(config, better, str, where, ""):
        return location_of(found, where)
    found = field(config, name, str, where, "")
    layer = field(config, "hook_layer", int, where, None)
    return location_of(found.replace("{layer}", str(layer)), where) if found else None


def _unfolded(config: Mapping[str, Any], place: Location | None, where: Path) -> Location | None:
    """A place at `hook_normalized`, where the model that it is of has that before every norm's gain.

    Folders of our own say no model, and once meant what is before the gain by this hook.
    """
    options = field(config, "model_from_pretrained_kwargs", dict, where, {})
    earlier = config.get("sae_lens_version") == _LAYOUT and not {"model_name", "reads"} & set(config)
    bare = options.get("fold_ln") or config.get("model_class_name") == "TransformerBridge" or earlier
    if place is None or place.reads != "hook_normalized" or not bare:
        return place
    return replace(place, reads="normed without gain")


def _check_processing(config: Mapping[str, Any], place: Location, where: Path) -> None:
    """Refuse a dictionary of a model whose weights were processed so that what it reads is another thing."""
    options = field(config, "model_from_pretrained_kwargs", dict, where, {})
    for name, matters in _PROCESSING.items():
        if options.get(name) and (place.site.endswith(matters) or place.reads == matters):
            raise _of_another(where, name, place.site)


def _of_another(where: Path, name: str, site: str) -> CircuitDiscoveryError:
    return CircuitDiscoveryError(
        f"{where}: it was trained on a model with {name}, whose activations at {site} differ from those of "
        "the model as it is"
    )


def _centres(config: Mapping[str, Any], place: Location | None, told: bool | None, where: Path) -> bool:
    """Whether it is of activations without their mean over the width: of a model with center_writing_weights,
    which centres the stream and what is added to it, so that nothing changes behind a LayerNorm.

    Old versions do not say what was done to the model's weights.
    """
    options = field(config, "model_from_pretrained_kwargs", dict, where, None)
    if place is not None and "." in place.site:
        return False
    if told is None and options is None and _OLD in config and place is not None and place.reads == "output":
        raise CircuitDiscoveryError(
            f"{where}: an old folder does not say whether {_CENTRED} was on, as for gpt2-small-res-jb; give "
            "load_sae centred=True or centred=False, or `sae show` --centred or --not-centred"
        )
    centred = bool((options or {}).get(_CENTRED)) if told is None else told
    if centred and place is not None and place.reads != "output":
        raise _of_another(where, _CENTRED, place.site)  # what it writes
    return centred


# ------------------------------------------------------------------- writing


def write(dictionary: Dictionary, folder: Path) -> None:
    """Write a dictionary; cfg.json last, so that a folder that has it is complete."""
    from safetensors.torch import save

    tensors = {name: each.detach().cpu() for name, each in dictionary.tensors.items()}
    tensors["W_enc"] = tensors["W_enc"].T
    if dictionary.kind == "gated":
        tensors["b_gate"] = tensors.pop("b_enc")
    # copies: what shares memory is refused
    data = save({name: each.clone(memory_format=torch.contiguous_format) for name, each in tensors.items()})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).unlink(missing_ok=True)
    except OSError as error:
        raise CircuitDiscoveryError(f"cannot write {folder}: {error.strerror or error}") from None
    write_atomically(folder / WEIGHTS, data)
    write_atomically(folder / CONFIG, to_json(_config(dictionary)))


def _config(dictionary: Dictionary) -> dict[str, Any]:
    """What cfg.json says."""
    site, reads = dictionary.site, dictionary.reads
    skip = dictionary.W_skip is not None
    built = _Architecture(dictionary.kind, dictionary.transcoder, skip, dictionary.signed)
    metadata: dict[str, Any] = {"sae_lens_version": _LAYOUT}
    if site is None and dictionary.transcoder:
        metadata |= {"reads": reads, "inner": dictionary.inner}  # of our own, for what no hook says
    if site is not None:
        metadata["hook_name"] = hook_of(site, reads, dictionary.inner)
    if site is not None and dictionary.transcoder:
        metadata["hook_name_out"] = hook_of(site, "output", dictionary.inner)
    if reads == "hook_normalized":
        metadata["reads"] = reads
    if reads == "normed without gain":
        metadata["model_from_pretrained_kwargs"] = {"fold_ln": True}
    if dictionary.normalizes == "centre":
        metadata["model_from_pretrained_kwargs"] = {_CENTRED: True}
    return {
        "architecture": built.name,
        "d_in": dictionary.d_in,
        "d_sae": dictionary.width,
        **({"d_out": dictionary.d_out} if dictionary.transcoder else {}),
        **({"k": dictionary.k, "rescale_acts_by_decoder_norm": False} if dictionary.kind == "topk" else {}),
        "dtype": str(dictionary.W_enc.dtype)[6:],
        "device": "cpu",
        "apply_b_dec_to_input": dictionary.subtracts_b_dec,
        "normalize_activations": "none" if dictionary.normalizes == "centre" else dictionary.normalizes,
        "reshape_activations": "hook_z" if site is not None and site.endswith(".z") else "none",
        "metadata": metadata,
    }
