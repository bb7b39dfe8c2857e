"""What `discover` takes where nothing is said, by the size of the model's graph: needs no
torch, so that a run's name is known early.

Up to 2,000 edges: `acdc`, or a tenth of the edges for a method that takes a number. Above: `matryoshka` and
200 edges, or a hundredth where that is more, which kept most of the behaviour at that size (docs/gemma.md,
docs/real-models.md) where a decision for each edge would take an hour or days.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.files.disk import GGUF, HUB_NAME, data_folder, read_json, shipped

LARGE = 2_000  # edges above which a ranking of all is learnt
_NAMES = {  # of a config's numbers, the first one that it has
    "n_layers": ("n_layer", "num_hidden_layers", "num_layers", "n_layers", "block_count"),
    "n_heads": ("n_head", "num_attention_heads", "num_heads", "n_heads", "attention.head_count"),
    "n_kv_heads": ("num_key_value_heads", "attention.head_count_kv"),
}


def _falcon(config: Mapping[str, Any]) -> Mapping[str, Any]:
    new = config.get("new_decoder_architecture")
    return {
        "parallel": bool(new or config.get("parallel_attn", True)),
        "n_kv_heads": config.get("num_kv_heads") if new else 1 if config.get("multi_query", True) else None,
    }


def _gemma3(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Its files leave out what transformers has by default; larger ones have a part for the text."""
    text = config.get("text_config") or config
    return {
        "n_layers": text.get("num_hidden_layers", 26),
        "n_heads": text.get("num_attention_heads", 8),
        "n_kv_heads": text.get("num_key_value_heads", 4),
    }


_PARALLEL = dict.fromkeys(("phi", "gptj", "cohere"), lambda config: {"parallel": True})
# what their configs say in words of their own, or do not
_FAMILIES = {**_PARALLEL, "falcon": _falcon, "gemma3": _gemma3, "gemma3_text": _gemma3}


def default_method(model: str) -> str:
    """`acdc`, or `matryoshka` where the model's graph is large.

    >>> default_method("toy")
    'acdc'
    """
    edges = edges_of(model)
    return "matryoshka" if edges is not None and edges > LARGE else "acdc"


def edges_of(model: str) -> int | None:
    """The edges of a model's graph, from its config alone; None where
    that does not say it or is not at hand."""
    from circuitdiscovery.graph.graph import Graph  # numpy, which --help does without

    try:
        config = _config(model)
        numbers = {
            field: next((config[name] for name in names if config.get(name)), None)
            for field, names in _NAMES.items()
        }
        numbers["parallel"] = bool(config.get("use_parallel_residual", False))
        numbers |= _FAMILIES.get(str(config.get("model_type")), lambda _: {})(config)
        numbers["n_kv_heads"] = numbers["n_kv_heads"] or numbers["n_heads"]
        return len(Graph(**numbers))  # pyright: ignore[reportArgumentType]
    except (CircuitDiscoveryError, OSError, ValueError, TypeError, AttributeError, KeyError):
        return None  # loading the model says what is wrong with it


def _config(model: str) -> Mapping[str, Any]:
    if model in shipped("models"):
        return read_json(data_folder("models") / model / "config.json")
    path = Path(model)
    if path.suffix.lower() == GGUF:
        return _gguf_config(path)
    if path.is_dir():
        return read_json(path / "config.json")
    if not HUB_NAME.fullmatch(model):
        raise CircuitDiscoveryError(f"there is no folder {model}")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()  # it tells of every try without a network
    try:
        return read_json(hf_hub_download(model, "config.json"))
    finally:
        logging.set_verbosity(before)


def _gguf_config(path: Path) -> Mapping[str, Any]:
    """A GGUF file's numbers, without the architecture's name in front."""
    from gguf import GGUFReader

    fields = GGUFReader(path).fields
    return {
        name.partition(".")[2]: field.contents()
        for name, field in fields.items()
        if name.endswith(("_count", "_count_kv"))
    }
