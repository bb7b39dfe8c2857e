"""A .gguf file: the Hugging Face model and the tokenizer that it holds, and the
refusal of what transformers leaves out of it.
"""

from __future__ import annotations

import io
from collections import Counter
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch

from circuitdiscovery.errors import CircuitDiscoveryError, one_line
from circuitdiscovery.files.disk import needs_gguf
from circuitdiscovery.model.architectures.architecture import ATTENTION, EXPERTS
from circuitdiscovery.model.build import check_supported
from circuitdiscovery.model.folder import quiet_transformers
from circuitdiscovery.model.gguf_keys import check_keys, complete
from circuitdiscovery.model.tokenizer import encodes


def read_gguf(path: str | Path, name: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """The Hugging Face model and the tokenizer (None where there is none) that a .gguf
    file holds, its weights in full precision.

    Raises:
        CircuitDiscoveryError: no package `gguf`; a file that cannot be read; an architecture that is not
            supported; a tensor, or what the file states of the computation, that transformers leaves out,
            which would make another model of it.
    """
    needs_gguf(name)
    from gguf import GGUFReader
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    where: dict[str, Any] = {
        "pretrained_model_name_or_path": str(Path(path).parent),
        "gguf_file": Path(path).name,
    }
    safe: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    # transformers draws a bar for the conversion with tqdm itself, which its own switch does not turn off
    with quiet_transformers(), redirect_stderr(io.StringIO()):
        try:
            reader = GGUFReader(path)
            _check_layers(reader, name)
            config = AutoConfig.from_pretrained(**where, **safe)
            complete(config, _stated(reader))
            check_supported(config, name)
            hf: Any = AutoModelForCausalLM.from_pretrained(
                **where,
                **safe,
                config=config,
                dtype=dtype,
                attn_implementation=ATTENTION,
                experts_implementation=EXPERTS,
                use_safetensors=True,
            )
        except CircuitDiscoveryError:
            raise
        except Exception as error:  # a broken file fails in as many ways as it has fields
            raise CircuitDiscoveryError(
                f"{name}: the file {path} cannot be read as GGUF: {one_line(error)}"
            ) from error
        _check_all_read(reader, hf, name)
        check_keys(config, _stated(reader), name)
        if "tokenizer.ggml.tokens" not in reader.fields:
            return hf, None
        try:
            tokenizer = AutoTokenizer.from_pretrained(**where, **safe)
            usable = encodes(tokenizer)
        except Exception as error:  # as above
            raise CircuitDiscoveryError(f"{name}: the tokenizer cannot be used: {one_line(error)}") from error
    if not usable:
        raise CircuitDiscoveryError(f"{name}: the tokenizer cannot be used: it encodes text to nothing")
    return hf, tokenizer


def _stated(reader: Any) -> dict[str, Any]:
    """What a file states of the model, by the name of each key after the architecture's."""
    prefix = f"{reader.fields['general.architecture'].contents()}."
    keys = (key for key in reader.fields if key.startswith(prefix))
    return {key.removeprefix(prefix): reader.fields[key].contents() for key in keys}


def _check_layers(reader: Any, name: str) -> None:
    """Refuse more layers than the file has tensors, before a list of that length is made."""
    for key, field in reader.fields.items():
        if key.endswith(".block_count") and not 1 <= int(field.contents()) <= len(reader.tensors):
            raise CircuitDiscoveryError(
                f"{name}: the file says {field.contents()} layers, but has {len(reader.tensors)} tensors "
                "in all"
            )


def _check_all_read(reader: Any, hf: Any, name: str) -> None:
    """Refuse a file with a tensor that transformers leaves out without a word: biases, rotary factors."""
    free = Counter(tuple(sorted(parameter.shape)) for parameter in hf.parameters())
    for tensor in sorted(reader.tensors, key=lambda tensor: not tensor.name.endswith(".weight")):
        shape = tuple(sorted(map(int, tensor.shape)))
        if not free[shape]:
            raise CircuitDiscoveryError(
                f"{name}: transformers leaves out the file's tensor {tensor.name!r} ({hf.config.model_type})"
            )
        free[shape] -= 1
    missing = [shape for shape, count in free.items() if count]
    if missing:
        raise CircuitDiscoveryError(f"{name}: weights are missing, one of the shape {list(missing[0])}")
