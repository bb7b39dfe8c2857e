"""Reading a dictionary's files: tensors by name, configurations, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuitdiscovery.errors import CircuitDiscoveryError, one_line
from circuitdiscovery.features.dictionary import Dictionary
from circuitdiscovery.files.disk import read_json, read_text
from circuitdiscovery.files.fields import shown_value, typed

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, half precisions as the float32 that they are exactly.

    Raises:
        CircuitDiscoveryError: a file that cannot be read or is of another format, or integers in it.
    """
    from safetensors.torch import load_file

    try:
        found = load_file(path)
    except Exception as error:  # safetensors and torch each have their own
        raise CircuitDiscoveryError(f"{path}: the tensors cannot be read: {one_line(error)}") from None
    if not found:
        raise CircuitDiscoveryError(f"{path}: there are no tensors in it")
    return {name: _float(tensor, name, path) for name, tensor in found.items()}


def read_npz(path: Path) -> dict[str, Tensor]:
    """The arrays of an .npz file; a pickle in it is refused, not read.

    Raises:
        CircuitDiscoveryError: a file that cannot be read or is of another format, or integers in it.
    """
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: torch.from_numpy(np.ascontiguousarray(file[name])) for name in file.files}
    except Exception as error:  # zipfile, zlib and numpy each have their own
        raise CircuitDiscoveryError(f"{path}: the arrays cannot be read: {one_line(error)}") from None
    return {name: _float(tensor, name, path) for name, tensor in found.items()}


def _float(tensor: Tensor, name: str, path: Path) -> Tensor:
    if tensor.dtype not in _FLOATS:
        raise CircuitDiscoveryError(f"{path}: {name} is {str(tensor.dtype)[6:]}, not floating point")
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def made(path: Path, **parts: Any) -> Dictionary:
    """The dictionary of a file; what is wrong with it is told with the file."""
    try:
        return Dictionary(**parts)
    except CircuitDiscoveryError as error:
        raise CircuitDiscoveryError(f"{path}: {error}") from None


def taken(
    tensors: Mapping[str, Tensor], path: Path, needed: Collection[str], optional: Collection[str] = ()
) -> None:
    """Refuse tensors that are missing, or that nothing would be done with."""
    if missing := [name for name in needed if name not in tensors]:
        raise CircuitDiscoveryError(
            f"{path}: the tensor {missing[0]} is missing; there are {', '.join(sorted(tensors))}"
        )
    if surplus := [name for name in tensors if name not in needed and name not in optional]:
        raise CircuitDiscoveryError(
            f"{path}: the tensor {surplus[0]} is not used; used are {', '.join([*needed, *optional])}"
        )


def matrix(tensors: Mapping[str, Tensor], name: str, path: Path) -> Tensor:
    """A tensor that has to be a matrix, transposed."""
    if tensors[name].dim() != 2:
        raise CircuitDiscoveryError(f"{path}: {name} is a matrix, not of shape {list(tensors[name].shape)}")
    return tensors[name].T.contiguous()


def read_config(path: Path) -> dict[str, Any]:
    """The object of a JSON file."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise CircuitDiscoveryError(f"{path}: must be an object, not {shown_value(found)}")
    return found


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping of a YAML file; nothing in it can run."""
    import yaml

    text = read_text(path)
    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise CircuitDiscoveryError(f"{path}: not YAML: {one_line(error)}") from None
    if not isinstance(found, dict):
        raise CircuitDiscoveryError(f"{path}: must be a mapping, not {shown_value(found)}")
    return found


def field(config: Mapping[str, Any], name: str, kind: type, where: Path, default: Any) -> Any:
    """A field of a configuration, checked; the default where it is missing or null."""
    value = config.get(name)
    return default if value is None else typed(value, kind, str(where), name)


def sized(config: Mapping[str, Any], where: Path, sizes: Mapping[str, int]) -> None:
    """Refuse sizes that the configuration says otherwise than the tensors."""
    for name, size in sizes.items():
        if field(config, name, int, where, size) != size:
            raise CircuitDiscoveryError(f"{where}: {name} is {config[name]}, but {size} by the tensors")
