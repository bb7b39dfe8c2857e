"""A model folder: its config, weights and tokenizer, read so that nothing in it can run.

1. config.json, tokenizer_config.json and the headers of the .safetensors files are read as data, strictly.
   Python code of its own is left aside where transformers has a class for the family, and refused
   otherwise; what names an implementation (an attention kernel, a fusion) is left out: ours is fixed.
2. Every weight's name and shape is compared with what the config makes of
   it, before anything of that size is built.
3. Hugging Face gets a config and tensors, never the folder, so that it looks for
   nothing there: no adapter, no generation code.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuitdiscovery.errors import CircuitDiscoveryError, one_line
from circuitdiscovery.files.disk import read_json
from circuitdiscovery.model.config import CONFIG, config_of, read_config
from circuitdiscovery.model.expert_files import part_of, router_of
from circuitdiscovery.model.hooked import HOOKED_FILES, hooked_config, is_hooked
from circuitdiscovery.model.tokenizer import read_tokenizer

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
HUB_FILES = (
    CONFIG,
    "model*.safetensors",
    INDEX,
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)
_FLOATS = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_HEADS = {"embed_out.weight": "lm_head.weight", "lm_head.weight": "embed_out.weight"}
# masks and tables that old versions of transformers kept beside the weights
_TABLES = re.compile(r"(^|\.)(attn|attention)\.(bias|masked_bias)$|(^|\.)rotary_emb\.inv_freq$")
# what models that read images too have beside the text, and what stands in front of the text's names
_IMAGES = re.compile(r"^(model\.)?(vision_tower|multi_modal_projector)\.")
_TEXT = re.compile(r"^language_model\.|(?<=^model\.)language_model\.")


# ------------------------------------------------------------------ weights


@dataclass(frozen=True)
class Header:
    """What the .safetensors files of a folder say that they hold.

    Args:
        files: the names of each file's tensors.
        shapes, dtypes: by name.
    """

    files: Mapping[Path, tuple[str, ...]]
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]

    @property
    def dtype(self) -> torch.dtype:
        """The narrowest that holds the weights' values exactly."""
        found = {_FLOATS[each] for each in self.dtypes.values()}
        mixed = {torch.bfloat16, torch.float16} <= found
        return max(found | {torch.float32} if mixed else found, key=lambda dtype: torch.finfo(dtype).bits)


def read_header(folder: Path, name: str) -> Header:
    """The names, shapes and dtypes of a folder's weights; the tables that
    old versions kept beside them are left out.

    Raises:
        CircuitDiscoveryError: no such files, or broken ones; weights that are not floating point.
    """
    from safetensors import safe_open

    files, shapes, dtypes = {}, {}, {}
    for path in _weight_files(folder, name):
        try:
            with safe_open(path, framework="pt") as file:
                found = [(key, file.get_slice(key)) for key in list(file.keys()) if not _left_out(key)]
                shapes |= {key: tuple(part.get_shape()) for key, part in found}
                dtypes |= {key: str(part.get_dtype()) for key, part in found}
        except Exception as error:  # safetensors has its own, and a file system has others
            raise CircuitDiscoveryError(
                f"{name}: the weights cannot be read: {path.name}: {one_line(error)}"
            ) from error
        files[path] = tuple(key for key, _ in found)
    if not shapes:
        raise CircuitDiscoveryError(f"{name}: the weights cannot be read: there are none in {WEIGHTS}")
    if wrong := [key for key, dtype in dtypes.items() if dtype not in _FLOATS]:
        raise CircuitDiscoveryError(
            f"{name}: quantized weights ({wrong[0]} is {dtypes[wrong[0]]}) are not supported; give the "
            "model in full precision"
        )
    return Header(files, shapes, dtypes)


def _left_out(key: str) -> bool:
    return bool(_TABLES.search(key) or _IMAGES.match(key))


def _weight_files(folder: Path, name: str) -> Sequence[Path]:
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        other = [path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in sorted(folder.glob(pattern))]
        why = (
            f"; {other[0]} is a pickle, which can run code: save it with safe_serialization" if other else ""
        )
        raise CircuitDiscoveryError(f"{name}: the weights cannot be read: there is no {WEIGHTS}{why}")
    index = read_json(folder / INDEX)
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(each, str) for each in names.values()):
        raise CircuitDiscoveryError(f"{name}: {INDEX} has no weight_map from names to files")
    shards = sorted(set(names.values()))
    for shard in shards:
        if Path(shard).name != shard or not (folder / shard).is_file():
            raise CircuitDiscoveryError(
                f"{name}: {INDEX} names the file {shard!r}, which the folder does not hold"
            )
    return [folder / shard for shard in shards]


def _names(header: Header, expected: Mapping[str, Tensor], prefix: str) -> dict[str, str]:
    """Each weight's name in the file -> its name in the model.

    A model without its head was saved without the prefix, and transformers has called GPT-NeoX's head two
    things. An expert's matrix is a part of a weight.
    """

    def name(key: str) -> str:
        part = part_of(key)
        whole = key if part is None else part.whole
        known = (key, whole, f"{prefix}.{whole}", _HEADS.get(key, key), router_of(key), _TEXT.sub("", key))
        return next((each for each in known if each in expected), key)

    return {key: name(key) for key in header.shapes}


def _is_part(key: str, new: str) -> bool:
    """Whether a weight of the file is one expert's part of a weight."""
    part = part_of(key)
    return part is not None and new.endswith(part.whole)


def _place(key: str, new: str, tensors: Mapping[str, Tensor]) -> Tensor | None:
    """Where a weight of the file goes, of the model's tensors; None: nowhere."""
    part, whole = part_of(key), tensors.get(new)
    return part.of(whole) if part is not None and whole is not None and _is_part(key, new) else whole


def _check(header: Header, names: Mapping[str, str], expected: Mapping[str, Tensor], name: str) -> None:
    """Refuse weights that are missing, of another shape, or not used."""
    held = {id(expected[new]) for new in names.values() if new in expected}
    if missing := [key for key, tensor in expected.items() if id(tensor) not in held]:
        raise CircuitDiscoveryError(
            f"{name}: {len(missing)} weights of {CONFIG} are missing from the file, the first is {missing[0]}"
        )
    parts = Counter(new for key, new in names.items() if new in expected and _is_part(key, new))
    for key, new in names.items():
        place = _place(key, new, expected)
        if place is not None and tuple(place.shape) != header.shapes[key]:
            told = list(place.shape)
            raise CircuitDiscoveryError(
                f"{name}: the weight {key} has shape {list(header.shapes[key])}, but by {CONFIG} {told}"
            )
    for whole, count in parts.items():
        wanted = len(expected[whole]) * (2 if whole.endswith("gate_up_proj") else 1)
        if count != wanted:
            raise CircuitDiscoveryError(f"{name}: the file has {count} of the {wanted} matrices of {whole}")
    if unused := [key for key, new in names.items() if _place(key, new, expected) is None]:
        raise CircuitDiscoveryError(
            f"{name}: {len(unused)} weights of the file are not used by {CONFIG}, the first is {unused[0]}; "
            "the config says another model than the weights"
        )


def _check_layers(data: Mapping[str, Any], header: Header, name: str) -> None:
    """Refuse more layers than the file has tensors, before a list of that length is made."""
    for key in _LAYERS:
        value = data.get(key)
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= len(header.shapes)
        ):
            raise CircuitDiscoveryError(
                f"{name}: {CONFIG} says {key} {str(value)[:40]}, but the file has {len(header.shapes)} "
                "weights in all"
            )


def read_folder(folder: Path, name: str) -> tuple[Any, Any]:
    """The Hugging Face model, in the dtype of its file, and the
    tokenizer (None where there is none) of a folder.

    Raises:
        CircuitDiscoveryError: whatever in the folder is broken, asks for code, or does not fit the rest.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    data, header = read_config(folder, name), read_header(folder, name)
    _check_layers(data, header, name)
    config = config_of(data, name)
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    attention = config._attn_implementation
    try:
        with torch.device("meta"):  # of any size, without its memory
            expected = kind._from_config(config, attn_implementation=attention).state_dict(keep_vars=True)
    except Exception as error:  # sizes that do not go together
        raise CircuitDiscoveryError(f"{name}: {CONFIG} cannot be used: {one_line(error)}") from error
    names = _names(header, expected, kind.base_model_prefix)
    _check(header, names, expected, name)
    try:
        weights = _untied(_tensors(header, names, expected), expected, name)
        hf, report = kind.from_pretrained(
            None, config=config, state_dict=weights, dtype=header.dtype, attn_implementation=attention,
            use_safetensors=True, output_loading_info=True,
        )  # fmt: skip
    except CircuitDiscoveryError:
        raise
    except Exception as error:  # safetensors, torch and Hugging Face each have their own
        raise CircuitDiscoveryError(f"{name}: the weights cannot be read: {one_line(error)}") from error
    if left := [*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]]:
        raise CircuitDiscoveryError(f"{name}: transformers does not take the weight {min(map(str, left))}")
    hf.config._name_or_path = str(folder)
    return hf.eval(), read_tokenizer(folder, name)


def _tensors(header: Header, names: Mapping[str, str], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    found: dict[str, Tensor] = {}
    for path, keys in header.files.items():
        for key, tensor in load_file(path).items():
            if key not in keys:
                continue
            new = names[key]
            if not _is_part(key, new):
                found[new] = tensor
                continue
            found.setdefault(new, torch.empty(expected[new].shape, dtype=header.dtype))
            place = _place(key, new, found)
            assert place is not None
            place.copy_(tensor)
    return found


def _untied(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """One of the names of weights that the config ties; what the file
    holds under the others must be the same.
    """
    first: dict[int, str] = {}
    for key in expected:
        if key not in weights:
            continue
        other = first.setdefault(id(expected[key]), key)
        if other != key and not torch.equal(weights[other], weights[key]):
            raise CircuitDiscoveryError(
                f"{name}: {CONFIG} ties {other} and {key}, but the file holds two different ones"
            )
    return {key: weights[key] for key in first.values()}


# ------------------------------------------------------------------ hub


def from_hub(name: str, *, weights: bool = True) -> Path:
    """The folder of a model on the Hugging Face hub, fetched once, without code and, if asked, without
    weights; whatever goes wrong is raised as it is.
    """
    from huggingface_hub import hf_hub_download, snapshot_download

    folder = Path(hf_hub_download(name, CONFIG)).parent
    if hooked := is_hooked(folder):  # what is refused is refused before gigabytes are fetched
        hooked_config(read_json(folder / CONFIG), name)
    else:
        read_config(folder, name)
    wanted = HOOKED_FILES if hooked else HUB_FILES
    files = [each for each in wanted if weights or not each.endswith((".safetensors", ".pth"))]
    return Path(snapshot_download(name, allow_patterns=files))


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no warnings from transformers inside, the caller's settings after."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    level, hub_level, bars = (
        logging.get_verbosity(),
        hub_logging.get_verbosity(),
        logging.is_progress_bar_enabled(),
    )
    logging.set_verbosity_error()
    hub_logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        hub_logging.set_verbosity(hub_level)
        if bars:
            logging.enable_progress_bar()
