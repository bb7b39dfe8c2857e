"""Models in TransformerLens' original format, such as its attention-only ones: the `state_dict` of a
HookedTransformer in a .pth file, beside the config.json that says its sizes.

1. The config is read as data; what the forward does not compute is refused by name.
2. The weights are read by `torch.load(weights_only=True)`, which runs no code.
3. TransformerLens renames them, every name and shape is compared with what the config makes of it, and its
   own native model takes them. That is the forward that ours is proved equal to.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuitdiscovery.errors import CircuitDiscoveryError, one_line
from circuitdiscovery.files.disk import read_json
from circuitdiscovery.model.architectures.native import NativeConfig
from circuitdiscovery.model.config import CONFIG
from circuitdiscovery.model.tokenizer import bridges_own, read_tokenizer, tokenizer_of

PTH = ".pth"
HOOKED_FILES = (CONFIG, "*final.pth", "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json")
_BIAS = "unembed.bias"
_NEEDED = ("d_model", "n_layers", "n_heads", "d_head", "n_ctx", "d_vocab")
_TAKEN = (
    *_NEEDED, "d_mlp", "d_vocab_out", "act_fn", "attn_only", "eps", "normalization_type", "final_rms",
    "gated_mlp", "positional_embedding_type", "attention_dir", "attn_scale", "n_key_value_heads",
    "attn_scores_soft_cap", "output_logits_soft_cap",
)  # fmt: skip
_LAYOUTS = ("neel-solu-old", "mingpt")  # of weights, which are named otherwise
_FEATURES = {
    "scale_attn_by_inverse_layer_idx": "scores that are divided by the layer's number",
    "use_local_attn": "attention to a window",
    "parallel_attn_mlp": "attention and MLP side by side",
    "use_qk_norm": "norms of queries and keys",
    "post_embedding_ln": "a norm of the embeddings",
    "use_normalization_before_and_after": "norms after attention and MLP",
    "rmsnorm_uses_offset": "norms from 1",
    "num_experts": "mixture of experts",
}


def is_hooked(folder: Path) -> bool:
    """Whether a folder's config.json is TransformerLens' and not Hugging Face's."""
    data = read_json(folder / CONFIG)
    own = isinstance(data, dict) and data.get("model_type") is None
    return own and {"d_model", "n_layers"} <= data.keys()


def hooked_files(path: Path, name: str) -> tuple[Path, Path]:
    """(the folder of config.json, the file of the weights) of a folder or of a .pth file.

    Raises:
        CircuitDiscoveryError: no such files; several weights, none of which is called final.
    """
    if path.is_file():  # training's steps are in a folder of their own
        folder = next((each for each in path.absolute().parents[:2] if (each / CONFIG).is_file()), None)
        if folder is None or not is_hooked(folder):
            raise CircuitDiscoveryError(f"{name}: TransformerLens' {CONFIG} is missing beside {path.name}")
        return folder, path
    found = sorted(path.glob(f"*{PTH}"))
    chosen = [each for each in found if each.stem.endswith("final")] or found
    if len(chosen) != 1:
        files = ", ".join(each.name for each in chosen[:5])
        raise CircuitDiscoveryError(
            f"{name}: the weights cannot be read: "
            + (f"which of {files}? Give the file" if chosen else f"there is no {PTH} file beside {CONFIG}")
        )
    return path, chosen[0]


def read_hooked(path: Path, name: str) -> tuple[Any, Any]:
    """TransformerLens' native model of a folder or a .pth file, a TransformerBridge in
    the dtype of the file, and the tokenizer (None where there is none).

    Raises:
        CircuitDiscoveryError: whatever in the files is broken, is not computed, or does not fit the rest.
    """
    folder, file = hooked_files(path, name)
    data = read_json(folder / CONFIG)
    config = hooked_config(data, name)
    weights = _read_weights(file, name)
    if not 1 <= config.n_layers <= len(weights):  # before a list of that length is made
        raise CircuitDiscoveryError(
            f"{name}: {CONFIG} says n_layers {config.n_layers}, but the file has {len(weights)} weights"
        )
    tokenizer = read_tokenizer(folder, name)
    if tokenizer is None and isinstance(data.get("tokenizer_name"), str):
        tokenizer = tokenizer_of(data["tokenizer_name"])
    return _filled(config, weights, tokenizer, name), tokenizer


# ------------------------------------------------------------------ config


def hooked_config(data: Mapping[str, Any], name: str) -> Any:
    """TransformerLens' config of what a config.json of its original format says.

    Raises:
        CircuitDiscoveryError: a size that is missing or is not a whole number; what is not computed, by name.
    """
    from transformer_lens.config import TransformerBridgeConfig

    for key in (*_NEEDED, *(["n_key_value_heads"] if data.get("n_key_value_heads") is not None else [])):
        value = data.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise CircuitDiscoveryError(f"{name}: {CONFIG} must say {key}, a whole number of at least 1")
    for what, asked in _left_out(data).items():
        if asked:
            raise CircuitDiscoveryError(f"{name}: {what} is not supported")
    told = {**data, "eps": data.get("eps", data.get("ln_eps", 1e-5))}  # by the training script's name too
    taken = {key: told[key] for key in _TAKEN if told.get(key) is not None}
    if data.get("shortformer_pos"):
        taken["positional_embedding_type"] = "shortformer"
    taken["normalization_type"] = data.get(
        "normalization_type", data.get("normalization", "LN")
    )  # null: none
    try:
        config = TransformerBridgeConfig(**taken, init_weights=False, architecture="TransformerLensNative")
        NativeConfig(config)
    except CircuitDiscoveryError as error:
        raise CircuitDiscoveryError(f"{name}: {error}") from None
    except Exception as error:  # each of its fields can be wrong in its own way
        raise CircuitDiscoveryError(f"{name}: {CONFIG} cannot be used: {one_line(error)}") from error
    return config


def _left_out(data: Mapping[str, Any]) -> dict[str, bool]:
    """What a HookedTransformer can have and TransformerLens' native model leaves out
    without a word -> whether the config asks for it.
    """
    layout = data.get("architecture", data.get("original_architecture"))
    return {
        **{words: bool(data.get(key)) for key, words in _FEATURES.items()},
        "attention without a scale": data.get("use_attn_scale") is False,
        f"the layout {layout!r}": layout in _LAYOUTS,
    }


# ------------------------------------------------------------------ weights


def _read_weights(file: Path, name: str) -> dict[str, Tensor]:
    """The tensors of a .pth file, read so that nothing in it can run, without the buffers of masks."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a pickle of anything else, or not one
        raise CircuitDiscoveryError(
            f"{name}: the weights cannot be read: {file.name}: {one_line(error)}"
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise CircuitDiscoveryError(
            f"{name}: the weights cannot be read: {file.name} is not a state_dict, names with their tensors"
        )
    weights = {key: value for key, value in state.items() if not key.endswith((".mask", ".IGNORE"))}
    if wrong := [key for key, value in weights.items() if not value.is_floating_point()]:
        kind = weights[wrong[0]].dtype
        raise CircuitDiscoveryError(f"{name}: the weight {wrong[0]} is {kind}, not a float")
    return weights


def _filled(config: Any, weights: Mapping[str, Tensor], tokenizer: Any, name: str) -> Any:
    """The bridge of a config and of weights under HookedTransformer's names."""
    from transformer_lens.utilities.tl_checkpoint_conversion import convert_tl_checkpoint

    try:
        with torch.device("meta"):  # of any size, without its memory
            expected = _empty(config, None, name).state_dict()
        converted = convert_tl_checkpoint(dict(weights), config)
    except Exception as error:  # sizes that do not go together, a name that is not TransformerLens'
        why = one_line(error)
        raise CircuitDiscoveryError(f"{name}: {CONFIG} does not fit the weights: {why}") from error
    if _BIAS not in converted:  # as in some files, where it is 0
        del expected[_BIAS]
    _check(converted, expected, name)
    dtype = reduce(torch.promote_types, {value.dtype for value in weights.values()})
    bridge = _empty(config, bridges_own(tokenizer), name).to(dtype, print_details=False)
    bridge.load_state_dict(converted, strict=_BIAS in expected)
    return bridge.eval()


def native_model(config: Any) -> Any:
    """TransformerLens' native model of a config, with a bias at its end, which a HookedTransformer has."""
    from transformer_lens.model_bridge.sources.native import NativeModel

    model = NativeModel(config)
    model.head.bias = torch.nn.Parameter(torch.zeros(model.head.out_features))
    return model


def _empty(config: Any, tokenizer: Any, name: str) -> Any:
    """The bridge of a native model whose weights are to be filled in."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    return build_bridge_from_module(
        native_model(config), config.architecture, tl_config=config, tokenizer=tokenizer, model_name=name
    )


def _check(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], name: str) -> None:
    """Refuse weights that are missing, of another shape, or not used."""
    if missing := [key for key in expected if key not in found]:
        raise CircuitDiscoveryError(
            f"{name}: {len(missing)} weights of {CONFIG} are missing from the file, the first is {missing[0]}"
        )
    if unused := [key for key in found if key not in expected]:
        raise CircuitDiscoveryError(
            f"{name}: {len(unused)} weights of the file are not used by {CONFIG}, the first is {unused[0]}"
        )
    for key, value in found.items():
        if value.shape != expected[key].shape:
            raise CircuitDiscoveryError(
                f"{name}: the weight {key} has shape {list(value.shape)}, but by {CONFIG} "
                f"{list(expected[key].shape)}"
            )
