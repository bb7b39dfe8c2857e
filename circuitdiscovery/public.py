"""The public names, with the module that each is in; the search methods' are in the registry."""

from __future__ import annotations

from circuitdiscovery.registry import METHODS

_PUBLIC: dict[str, str] = {
    name: module
    for module, names in {
        "circuit.circuit": ("Circuit",),
        "circuit.comparison": ("Comparison", "compare"),
        "circuit.load": ("load_circuit",),
        "circuit.scores": ("Scores",),
        "engine.ablation": ("replacements",),
        "engine.memory": ("memory_budget",),
        "engine.metrics": ("Metric",),
        "engine.replacements": ("Replacements",),
        "engine.run_circuit": ("run_circuit",),
        "errors": ("CircuitDiscoveryError",),
        "explanation.cards": ("Card", "Explanation"),
        "explanation.explain": ("explain",),
        "explanation.scrubbing.hypothesis": ("Hypothesis", "load_hypothesis"),
        "explanation.scrubbing.result": ("Scrubbing",),
        "explanation.scrubbing.scrub": ("scrub",),
        "graph.graph": ("Graph",),
        "measure.curve": ("Curve", "curve"),
        "measure.evaluation": ("Evaluation", "evaluate"),
        "measure.hypothesis_tests": ("HypothesisTests", "hypothesis_tests"),
        "measure.stability": ("Stability", "stability"),
        "model.load": ("load_model",),
        "model.model": ("Model",),
        "reporting.page": ("report",),
        "search.cost": ("Plan", "plan"),
        "search.neurons": ("Neurons", "neurons"),
        "search.path_patching": ("PathEffects", "path_patching"),
        "search.split": ("split",),
        "task.example": ("Example",),
        "task.load": ("load_task",),
        "task.read": ("shipped_tasks",),
        "task.task": ("Task",),
    }.items()
    for name in names
}
PUBLIC: dict[str, str] = _PUBLIC | {
    name: str(method.home).partition(":")[0][1:] for name, method in METHODS.items()
}
