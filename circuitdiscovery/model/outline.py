"""A model's outline: its graph and the shapes of its weights, from its config, without reading them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.files.disk import read_json
from circuitdiscovery.model.architectures.native import NativeConfig
from circuitdiscovery.model.build import build
from circuitdiscovery.model.config import CONFIG, config_of, read_config
from circuitdiscovery.model.folder import quiet_transformers
from circuitdiscovery.model.hooked import hooked_config, is_hooked, native_model
from circuitdiscovery.model.load import as_dtype, located
from circuitdiscovery.model.model import Model
from circuitdiscovery.model.tokenizer import read_tokenizer


def outline(source: str | Path, dtype: str = "float32") -> Model:
    """A model without its weights: its tensors are on the device `meta`, which has shapes and no memory.

    Of a folder, config.json and the tokenizer are read; of a name on the hub, only these are fetched.

    Args:
        source: as in `load_model`, but for objects, whose weights are there.
        dtype: what the weights would be held as.

    Raises:
        CircuitDiscoveryError: as in `load_model`, as far as the config and the tokenizer say it.
    """
    with quiet_transformers():
        path, name = located(source, weights=False)
        if path.is_file():
            raise CircuitDiscoveryError(f"{name}: the outline of a file cannot be had; give a folder")
        if is_hooked(path):
            return of_hooked(read_json(path / CONFIG), name, dtype, read_tokenizer(path, name))
        config = config_of(read_config(path, name), name)
        return of_config(config, name, dtype, read_tokenizer(path, name))


def of_config(config: Any, name: str, dtype: str = "float32", tokenizer: Any = None) -> Model:
    """The outline of the model that Hugging Face's config describes."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    with torch.device("meta"):
        weights = kind._from_config(config, dtype=as_dtype(dtype)).state_dict()
    return build(config, weights, name, "", tokenizer)


def of_hooked(data: Mapping[str, Any], name: str, dtype: str = "float32", tokenizer: Any = None) -> Model:
    """The outline of the model that a config.json in TransformerLens' original format describes."""
    config = hooked_config(data, name)
    with torch.device("meta"):
        weights = native_model(config).to(as_dtype(dtype)).state_dict()
    return build(NativeConfig(config), weights, name, "", tokenizer)
