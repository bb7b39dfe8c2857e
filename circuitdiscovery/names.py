"""The names that options take, apart from what they name: the command
line checks them before torch is imported.
"""

from __future__ import annotations

from typing import Literal

from circuitdiscovery.errors import unknown

METRIC_NAMES = ("logit_diff", "logit", "probability", "prob_diff", "nll", "accuracy", "kl_divergence")
ABLATION_NAMES = ("resample", "mean", "mean_all", "zero", "noise", "random")
METHOD_NAMES = (
    "acdc",
    "eap",
    "eap_ig",
    "clean_corrupted",
    "exact",
    "trace_back",
    "hybrid",
    "edge_pruning",
    "matryoshka",
    "random",
)
BENCHMARK_METHODS = (*METHOD_NAMES, "eap_denoising", "exact_denoising")
# the last two: one of the published circuits
SUITE_NAMES = ("planted", "toy", "published", "ioi", "greater_than")
DIRECTIONS = ("noising", "denoising")
DTYPES = ("float32", "float64", "bfloat16", "float16")
MEASURES = ("none", "quick", "full")  # how much of a found circuit is measured, the least first

DEFAULT_THRESHOLD = (
    # acdc and trace_back, damage in nats of KL: about an eighth of toy's edges are left
    # on ioi, and nearly all of the behaviour
    0.002
)

Kind = Literal["metric", "ablation", "method", "direction", "dtype", "suite", "benchmark method", "measure"]
VALID: dict[Kind, tuple[str, ...]] = {
    "metric": METRIC_NAMES,
    "ablation": ABLATION_NAMES,
    "method": METHOD_NAMES,
    "direction": DIRECTIONS,
    "dtype": DTYPES,
    "suite": SUITE_NAMES,
    "benchmark method": BENCHMARK_METHODS,
    "measure": MEASURES,
}


# What people call them elsewhere.
ALIASES: dict[Kind, dict[str, str]] = {
    "metric": {
        "kl": "kl_divergence",
        "kl_div": "kl_divergence",
        "logit_difference": "logit_diff",
        "prob": "probability",
    },
    "ablation": {
        "patch": "resample",
        "corrupt": "resample",
        "corrupted": "resample",
        "interchange": "resample",
        "zeros": "zero",
    },
}


def canonical(kind: Kind, name: str) -> str:
    """The name with underscores, where it is one of its kind; hyphens are taken too, and what others call it.

    >>> canonical("method", "eap-ig"), canonical("metric", "kl")
    ('eap_ig', 'kl_divergence')
    """
    valid = VALID[kind]
    found = str(name).replace("-", "_")
    found = ALIASES.get(kind, {}).get(found, found)
    if found not in valid:
        raise unknown(kind, name, valid)
    return found


def ablation_words(name: str, mean_over: int | None) -> str:
    """An ablation in a report's words, with the fewest prompts that a
    replacement is a mean over where it is one.

    >>> ablation_words("mean", 16)
    'mean ablation (over 16 or more prompts)'
    """
    return f"{name} ablation" + (f" (over {mean_over} or more prompts)" if mean_over is not None else "")
