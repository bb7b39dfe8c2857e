"""What the benchmark runs on: problems by name.

| suite | problems | truth |
| --- | --- | --- |
| `planted` | constructed and semi-synthetic models | the program that the weights hold |
| `toy` | the bundled model on IOI and greater-than | none: faithfulness at equal sparsity |
| `published` | GPT-2 small on IOI and greater-than | the circuits of the papers, in `graphs/gpt2/` |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial

from circuitdiscovery.benchmark.problems.problem import Problem
from circuitdiscovery.benchmark.problems.suite import planted
from circuitdiscovery.circuit.circuit import Circuit
from circuitdiscovery.circuit.load import load_circuit
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.model.load import load_model
from circuitdiscovery.model.model import Model
from circuitdiscovery.registry import canonical
from circuitdiscovery.task.load import load_task
from circuitdiscovery.task.task import Task

PUBLISHED = ("ioi", "greater_than")
EXAMPLES = {"planted": 32, "toy": 64, "published": 64}
QUICK_EXAMPLES = {"planted": 16, "toy": 32, "published": 16}


@dataclass(frozen=True)
class Entry:
    """A problem of the benchmark."""

    model: Model
    task: Task
    truth: Circuit | None
    why: str = ""


Entries = Mapping[str, Callable[[], Entry]]


def entries(suite: str, *, model: str | None = None, quick: bool = False, seed: int = 0) -> Entries:
    """Name -> a function that makes the problem.

    Args:
        suite: `planted`, `toy`, `published`, or one of the published circuits.
        model: of the published suite: a name or a folder; by default gpt2.
        quick: fewer examples.
        seed: of the prompts.

    Raises:
        CircuitDiscoveryError: an unknown suite; weights that cannot be had.
    """
    name = canonical("suite", suite)
    counts = QUICK_EXAMPLES if quick else EXAMPLES
    count = counts.get(name, counts["published"])
    if name == "planted":
        problems = planted(examples=count, seed=seed)
        return {each: partial(_planted, make) for each, make in problems.items()}
    # loaded when it is first needed, once for all of its tasks
    loaded = cache(partial(load_model, "toy") if name == "toy" else partial(_gpt2, model or "gpt2"))
    if name == "toy":
        return {task: partial(_on, loaded, task, count, seed) for task in PUBLISHED}
    wanted = PUBLISHED if name == "published" else (name,)
    return {f"gpt2/{task}": partial(_on, loaded, task, count, seed, f"gpt2/{task}") for task in wanted}


def _planted(make: Callable[[], Problem]) -> Entry:
    problem = make()
    return Entry(problem.model, problem.task, problem.truth, problem.why)


def _on(loaded: Callable[[], Model], task: str, examples: int, seed: int, truth: str | None = None) -> Entry:
    """A task on a model, with the name of a shipped circuit where the truth is known."""
    model, circuit = loaded(), None if truth is None else load_circuit(truth)
    if circuit is not None:
        circuit.check_model(model)
    return Entry(model, load_task(task, model, examples=examples, seed=seed), circuit)


def _gpt2(name: str) -> Model:
    try:
        return load_model(name)
    except CircuitDiscoveryError as error:
        raise CircuitDiscoveryError(
            f"the published circuits are GPT-2 small's, and its weights are needed: {error}; give "
            "--model FOLDER with "
            "config.json, model.safetensors and tokenizer.json of openai-community/gpt2 (550 MB)"
        ) from None
