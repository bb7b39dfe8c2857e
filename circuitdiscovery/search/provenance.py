"""Where a circuit comes from: the part of circuit.json that says which model, task, method and options made it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from circuitdiscovery.model import Model
from circuitdiscovery.task import Task

_PACKAGES = ("circuitdiscovery", "torch", "transformers", "numpy")


def provenance(model: Model, task: Task, method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Model name and digest, task, counterfactual, seed, examples, method and options, versions: JSON, the same for the same search."""
    return {
        "model": {"name": model.name, "digest": model.digest, "dtype": str(model.dtype).removeprefix("torch.")},
        "task": task.name,
        "counterfactual": task.info.get("counterfactual"),
        "seed": task.seed,
        "examples": len(task),
        "method": method,
        "options": dict(options),
        "versions": {name: _version(name) for name in _PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
