"""What each file of a run folder must hold at least (folder.py reads them)."""

from __future__ import annotations

from typing import Any

# What a file must hold at least: a type; [what each element is], or of several [what the first is, the
# second, ...]; {name: what its value is}, or {"*": what every value is}; or a tuple of these to choose from.
Shape = Any
NUMBER = (int, float)
# null: without an interval
ESTIMATE = {"value": NUMBER, "low": (*NUMBER, type(None)), "high": (*NUMBER, type(None))}
PAIRS = [[str, NUMBER]]
EDGES = [[str, (*NUMBER, type(None))]]
EVALUATION_SHAPE: Shape = {
    **dict.fromkeys(("model", "task", "part", "metric", "ablation", "direction"), str),
    **dict.fromkeys(("examples", "edges", "edges_pruned", "edges_total"), int),
    **dict.fromkeys(("full", "circuit", "empty", "faithfulness", "kl", "agreement"), ESTIMATE),
    "normalized": (ESTIMATE, type(None)),
    "reason": (str, type(None)),
    "completeness": {
        "sets": [{"kind": str, "nodes": [str], "incompleteness": ESTIMATE}],
        "max": ESTIMATE,
        "mean": ESTIMATE,
    },
    "minimality": {
        "scores": {"*": ESTIMATE},
        "below": [str],
        "bar": (*NUMBER, type(None)),
        "unmeasured": [str],
    },
    "effort": str,
    "empty_kl": (ESTIMATE, type(None)),
}
_ANSWER = {"token": str, "probability": NUMBER, "logit_diff": NUMBER, "right": bool}
_ANSWERS = {"tokens": [str], "count": int}
CONTENTS_SHAPE: Shape = {
    "format": str,
    "circuit": str,
    "task": {"*": (str, type(None))},
    "example": {
        "clean": [str],
        "corrupted": [str],
        "positions": {"*": int},
        "correct": _ANSWERS,
        "incorrect": _ANSWERS,
    },
    "effort": str,
    "asked": {**dict.fromkeys(("metric", "ablation", "direction", "part"), str), "examples": int},
    "scores": ({"positive": NUMBER, "negative": NUMBER, "damage": (*NUMBER, type(None))}, type(None)),
    "searched": ({"examples": int, "normalized": (ESTIMATE, type(None))}, type(None)),
    "prompts": (
        [
            {
                "text": str,
                "correct": _ANSWERS,
                "incorrect": _ANSWERS,
                "full": _ANSWER,
                "circuit": _ANSWER,
                "agree": bool,
            }
        ],
        type(None),
    ),
    "curve": (
        {"ranking": str, "edges": [int], "normalized": [ESTIMATE], "cpr": ESTIMATE, "cmd": ESTIMATE},
        type(None),
    ),
    "no_curve": (str, type(None)),
    "no_cards": (str, type(None)),
}
_PATTERN = {"text": str, "tokens": [str], "positions": {"*": int}}
_CARD = {
    "node": str,
    "kind": str,
    "role": (str, type(None)),
    "roles": {"*": [str]},
    "evidence": [str],
    **dict.fromkeys(("effect", "direct"), ESTIMATE),
    "attention": [[str, str, NUMBER]],
    "attended": PAIRS,
    **dict.fromkeys(("in_edges", "out_edges"), EDGES),
    "scores": {"*": NUMBER},
    "patterns": [(_PATTERN | {"weights": [[NUMBER]]}, _PATTERN | {"strongest": [[int, int, NUMBER]]})],
    "lens": [{"text": str, "at": str, "promoted": PAIRS, "suppressed": PAIRS}],
    "units": [
        {
            "name": str,
            "damage": (*NUMBER, type(None)),
            **dict.fromkeys(("promoted", "suppressed"), PAIRS),
            "snippets": [{"tokens": [str], "activations": [(*NUMBER, type(None))], "at": int}],
        }
    ],
    "probes": {"*": ESTIMATE},
}
EXPLANATION_SHAPE: Shape = {"cards": {"*": _CARD}, "unmeasured": [str]}
ROLES_SHAPE: Shape = {"cards": {"*": {"role": (str, type(None)), "roles": {"*": [str]}}}}
