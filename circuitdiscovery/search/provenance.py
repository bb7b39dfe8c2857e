"""Where a circuit comes from: the part of circuit.json that says which
model, task, method and options made it.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from circuitdiscovery.model.model import Model
from circuitdiscovery.task.task import Task
from circuitdiscovery.task.tokenization import tokenizer_digest

_PACKAGES = ("circuitdiscovery", "torch", "transformers", "numpy")


def provenance(model: Model, task: Task, method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Model, task, counterfactual, seed, examples, digests of both, method, options,
    versions: JSON, the same for the same search.
    """
    return {
        "model": {
            "name": model.name,
            "digest": model.digest,
            "dtype": str(model.dtype).removeprefix("torch."),
        },
        "task": task.title,
        "counterfactual": task.info.get("counterfactual"),
        "seed": task.seed,
        "examples": len(task),
        "data": data_of(model, task),
        "method": method,
        "options": dict(options),
        "versions": {name: _version(name) for name in _PACKAGES},
    }


def data_of(model: Model, task: Task) -> dict[str, str]:
    """Digests of what text and tables became: the examples' tokens, those held out,
    and the tokenizer, where there are these.
    """
    held_out = None if task.held_out is None else task.held_out.digest
    found = {"examples": task.digest, "held_out": held_out, "tokenizer": tokenizer_digest(model.tokenizer)}
    return {name: digest for name, digest in found.items() if digest is not None}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
