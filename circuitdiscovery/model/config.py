"""config.json of a model folder, read as data: no code of its own runs, and it is of a supported family."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from circuitdiscovery.errors import CircuitDiscoveryError, one_line
from circuitdiscovery.files.disk import read_json
from circuitdiscovery.model.architectures.architecture import EXPERTS
from circuitdiscovery.model.build import architecture_of, check_kind, check_supported

CONFIG = "config.json"
TEXT_PARTS = {"gemma3": "gemma3_text"}  # of models that read images too, by what these are called
# of config.json, what says how and not what is computed; names that begin with _ are left out too, but for
# those that the family's config declares
_IMPLEMENTATION = (
    "attn_implementation", "experts_implementation", "fusion_config", "distributed_config",
    "transformers_weights", "kernel_config", "use_kernels", "name_or_path", "dtype", "torch_dtype",
    "transformers_version", "return_dict", "auto_map", "reorder_and_upcast_attn",
)  # fmt: skip


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """config.json as it stands, of a supported family; of a model that reads images too, what
    it says of the text.

    Raises:
        CircuitDiscoveryError: a file that is not a JSON object; a family that only code of the folder's own
            computes, or another one that is not supported; quantized weights.
    """
    data = read_json(folder / CONFIG)
    if not isinstance(data, dict):
        raise CircuitDiscoveryError(f"{name}: {CONFIG} must be an object, not {type(data).__name__}")
    refuse_code(data, CONFIG, name, data.get("model_type"))
    if data.get("model_type") is None:
        raise CircuitDiscoveryError(f"{name}: {CONFIG} does not say which architecture it is of (model_type)")
    quantized, text = data.get("quantization_config"), data.get("text_config")
    part = TEXT_PARTS.get(str(data["model_type"]))
    if part is not None and isinstance(text, dict):
        data = {**text, "model_type": part}
    check_kind(data["model_type"], name)
    if quantized:
        raise CircuitDiscoveryError(
            f"{name}: quantized weights (quantization_config) are not supported; give the model in full "
            "precision"
        )
    return data


def refuse_code(data: Mapping[str, Any], file: str, name: str, kind: Any) -> None:
    """Raise where a file of a folder asks for Python code of its own, unless transformers has a class for
    that kind of model (`model_type`): it is taken, and the code is left aside.
    """
    if not (code := data.get("auto_map")):
        return
    from transformers import CONFIG_MAPPING

    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        named = ", ".join(map(str, code.values())) if isinstance(code, dict) else str(code)
        raise CircuitDiscoveryError(
            f"{name}: {file} asks for Python code of its own (auto_map: {named[:100]}), which is never run"
        )


def config_of(data: Mapping[str, Any], name: str) -> Any:
    """Hugging Face's config of what is computed."""
    from transformers import CONFIG_MAPPING

    try:
        kind = CONFIG_MAPPING[data["model_type"]]
        kept = {
            key: value
            for key, value in data.items()
            if key not in _IMPLEMENTATION and (key in kind.__annotations__ or not key.startswith("_"))
        }
        attention = architecture_of(data["model_type"]).attention
        config = kind.from_dict(kept, attn_implementation=attention, experts_implementation=EXPERTS)
    except Exception as error:  # each of its fields can be wrong in its own way
        raise CircuitDiscoveryError(f"{name}: {CONFIG} cannot be used: {one_line(error)}") from error
    check_supported(config, name)
    return config
