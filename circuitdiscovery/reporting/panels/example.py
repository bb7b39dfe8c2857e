"""The head of the page: an example, and how the run was made."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from circuitdiscovery.circuit import numbers
from circuitdiscovery.circuit.circuit_json import options_of
from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.registry import ablation_words
from circuitdiscovery.reporting import sentences
from circuitdiscovery.reporting.folder import Run
from circuitdiscovery.reporting.panels.panel import Json, Panel, beside
from circuitdiscovery.task.example import END

_USUAL = {"split_qkv": True, "absolute": False}
_EFFORTS = {"none": "not measured", "quick": "quickly (--measure quick)", "full": "in full"}
_TOLD = ("ablation", "metric", "direction")  # of a search's options, in lines of their own


def values(run: Run) -> dict[str, Any]:
    """The example, the metric and the ablation in words, the settings."""
    evaluation = run.evaluation
    return {
        "facts": facts(run),
        "command": sentences.command(run.options),
        "example": _example(run.contents),
        "metric_meaning": sentences.METRIC_MEANING.get(evaluation["metric"]),
        "ablation": sentences.in_words("ablation", evaluation["ablation"]),
    }


def facts(run: Run) -> list[tuple[str, str]]:
    """(name, value) of each setting, the model first."""
    circuit, options, evaluation = run.circuit, run.options, run.evaluation
    info, graph = circuit.info, circuit.graph
    model = info.get("model", {})
    shape = f"{numbers.plural(graph.n_layers, 'layer')} of {numbers.plural(graph.n_heads, 'head')}"
    shape += f" in {graph.n_kv_heads} groups" if graph.grouped else ""
    shape += "" if graph.has_mlp else ", no MLPs"
    told = (
        f"{key.replace('_', ' ')} {_plain(value)}"
        for key, value in options_of(info)
        if key not in _TOLD and value is not None and _USUAL.get(key) is not value
    )
    details = ", ".join(dict.fromkeys(told))
    searched = info.get("options", {}).get("metric") or evaluation["metric"]
    versions = ", ".join(f"{name} {version}" for name, version in info.get("versions", {}).items() if version)
    how = ablation_words(evaluation["ablation"], evaluation.get("mean_over"))
    held_out = (
        f"{evaluation['examples']} more held out to evaluate"
        if evaluation["part"] == "held_out"
        else "none held out"
    )
    return [
        (
            "model",
            f"{model.get('name', Path(options.model).name)}: {shape}, {model.get('dtype', options.dtype)}",
        ),
        ("weights", f"{model['digest'][:12]}" if "digest" in model else "unknown"),
        *([("parts", _parts(graph))] if graph.splits else []),
        ("search", f"{options.method.replace('_', '-')}{f' ({details})' if details else ''}, by {searched}"),
        (
            "measured",
            f"{evaluation['metric']}, {how}, {evaluation['direction']}; {_EFFORTS[run.effort]}",
        ),
        *(
            [("scores", sentences.mass(run.contents["scores"]))]
            if run.contents and run.contents["scores"]
            else []
        ),
        (
            "examples",
            f"{info.get('examples', evaluation['examples'])} prompt pairs, {held_out}; seed {options.seed}",
        ),
        ("versions", versions or "unknown"),
    ]


def _parts(graph: Graph) -> str:
    """The nodes that are sums of parts, and of how many."""
    return ", ".join(
        f"{split.node} of {numbers.plural(len(split.parts), split.kind.removesuffix('s'))} and the rest"
        for split in graph.splits
    )


def _plain(value: Any) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def _example(contents: Json | None) -> dict[str, Any] | None:
    """The example pair's tokens, each with the names of its position, END last, and
    whether the corrupted prompt differs there.
    """
    if contents is None:
        return None
    example = contents["example"]
    places: dict[int, list[str]] = defaultdict(list)
    for name, index in sorted(example["positions"].items(), key=lambda each: each[0] == END):
        places[index].append(name)
    pairs = list(zip(example["clean"], example["corrupted"], strict=True))
    sides = {
        side: [
            {"text": pair[i], "place": ", ".join(places[at]), "differs": pair[0] != pair[1]}
            for at, pair in enumerate(pairs)
        ]
        for i, side in enumerate(("clean", "corrupted"))
    }
    return sides | {name: example[name] for name in ("correct", "incorrect")}


EXAMPLE = Panel(beside(__file__), values)
