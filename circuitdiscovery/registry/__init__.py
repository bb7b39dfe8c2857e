"""What goes by a name, one line each: where it is, what it takes, what it is in words. Imports nothing heavy.

| to add | write | and a line in |
| --- | --- | --- |
| a search method | a function `(model, task, *, ...) -> Scores or Circuit` in `search/` | `METHODS` |
| a metric | a function `(logits, batch) -> values` in `engine/metrics.py` | `METRICS` |
| an ablation | a function `(model, **how) -> Made` in `engine/ablation.py` | `ABLATIONS` |
| an architecture | an `Architecture` in `model/architectures/` | `FAMILIES` (families.py) |
| a prompt generator | a `PromptGenerator` in `task/generators/` | `GENERATORS` |
| a panel of the report | a function `(run) -> its template's values` in `reporting/panels/` | `PANELS` |

From outside of the package the same line is an assignment: `METHODS["mine"] = Method("mymodule:mine",
"...")`. The command line, `cd.__all__`, the benchmark and the checks of arguments all read these tables.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from importlib import import_module
from inspect import signature
from typing import Any, Literal, cast

from circuitdiscovery.errors import CircuitDiscoveryError, unknown
from circuitdiscovery.registry.families import FAMILIES
from circuitdiscovery.registry.option import Option

# nats: about an eighth of toy's edges are left on ioi, and nearly all of the behaviour
DEFAULT_THRESHOLD = 0.002
FEW = 200  # edges that are kept of all but the smallest and the largest graphs
DRAWN = 480  # prompts, beside a task's own
REPULSION = 0.5  # for all edges of an earlier circuit; in units of the loss with every edge closed
DIRECTIONS = ("noising", "denoising")
DTYPES = ("float32", "float64", "bfloat16", "float16")
KL = "kl_divergence"
MEASURES = ("none", "quick", "full")  # how much of a found circuit is measured, the least first


@dataclass(frozen=True)
class Entry:
    """One thing that goes by a name.

    Args:
        home: the thing itself, or where it is: `module:name`, with a leading dot inside of this package.
        words: what it is.
    """

    home: Any
    words: str = ""

    def load(self) -> Any:
        """The thing, imported where it is not yet.

        Raises:
            CircuitDiscoveryError: a module, or a name in it, that cannot be imported.
        """
        if not isinstance(self.home, str):
            return self.home
        module, _, name = self.home.partition(":")
        if not module.startswith("."):
            if os.getcwd() not in sys.path:
                sys.path.insert(0, os.getcwd())
            return _theirs(module, name, self.home)
        return getattr(import_module(module, "circuitdiscovery"), name)


def _theirs(module: str, name: str, home: str) -> Any:
    try:
        return getattr(import_module(module), name)
    except Exception as error:  # whatever a module of somebody else's raises while it is imported
        known = isinstance(error, ImportError | AttributeError | ValueError)
        raise CircuitDiscoveryError(
            f"{home!r}: {'' if known else f'{type(error).__name__}: '}{error}"
        ) from None


# ------------------------------------------------------------------ search methods


@dataclass(frozen=True)
class Method(Entry):
    """A search.

    Args:
        options: of its parameters, those that not every method has, with their defaults;
            a default of None is said by the method.
        metric: what it searches by unless told; None: the task's own.
        sizes: `any`: it scores edges, and a circuit of any number of them is taken from the scores; `edges`:
            it searches for a number of edges; `threshold`: its circuit's size follows from a threshold.
        gradient: where it takes the metric's gradient, which one that is 0 or 1 on each prompt does not have:
            on the `clean` run, where that of a divergence is 0, or on `other` runs, too.
        damages: whether its scores are damages of ablating the edge, measured or estimated; False: they are
            places in an order, larger where an edge goes later; None: it is unknown, or they are neither.
    """

    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    metric: str | None = None
    sizes: Literal["any", "edges", "threshold"] = "any"
    gradient: Literal["clean", "other"] | None = None
    damages: bool | None = None

    def takes(self, option: str) -> bool:
        """Whether the method has an option."""
        return option in self.options

    def load(self, *given: str) -> Any:
        """The function.

        Args:
            given: what it may ask for beside model and task.

        Raises:
            CircuitDiscoveryError: what is not a function of (model, task), or asks for more than is given.
        """
        found = super().load()
        if isinstance(self.home, str) and self.home.startswith("."):
            return found
        if not callable(found):
            kind = type(found).__name__
            raise CircuitDiscoveryError(f"method {self.home!r} is a {kind}, not a function (model, task)")
        try:
            known = signature(found)
            known.bind(None, None, **{name: None for name in given if name in known.parameters})
        except ValueError:  # nothing is known of it
            pass
        except TypeError as error:
            raise CircuitDiscoveryError(
                f"method {self.home!r} is not a function of (model, task): {error}"
            ) from None
        return found


OPTIONS = {
    "threshold": Option("number", "keep no edge of damage below T; of scores, those of |score| T or more"),
    "edges": Option("count", "keep at most N edges, all on whole paths, of large total |score|"),
    "direction": Option(DIRECTIONS, "damage the clean run, or mend the corrupted one"),
    "level": Option(("edge", "node"), "ablate one edge at a time, or all that a node writes"),
    "steps": Option("count", "how many"),
    "rule": Option(("midpoint", "left"), "where on the line the gradients are taken"),
    "rounds": Option("whole", "how often removed edges may come back, at most"),
    "drawn": Option(
        "whole", f"further prompts to draw from the task's templates, {DRAWN} unless told", at_most=True
    ),
    "order": Option("whole", "decide the edges in a random order, by this seed"),
    "apart_from": Option("circuits", "find a circuit that shares little with this one"),
    "repulsion": Option(
        "number",
        "what all edges of such a circuit cost, as a share of the loss with every edge removed, "
        f"{REPULSION} unless told",
        least=0,
        needs="apart_from",
    ),
    "absolute": Option("switch", "keep edges whose removal helps, too"),
    "group_testing": Option(
        "switch", "remove edges together where they do no harm: faster, not always the same edges"
    ),
}
METHODS: dict[str, Method] = {
    "acdc": Method(
        ".search.acdc:acdc", "remove edge after edge that does no damage (Conmy et al. 2023)",
        {"threshold": DEFAULT_THRESHOLD, "absolute": False, "order": None, "group_testing": False},
        metric=KL, sizes="threshold", damages=True,
    ),
    "eap": Method(
        ".search.attribution:eap", "edge attribution patching (Syed et al. 2023)",
        {"direction": "noising"}, gradient="clean", damages=True,
    ),
    "eap_ig": Method(
        ".search.attribution:eap_ig", "EAP with integrated gradients (Hanna et al. 2024)",
        {"steps": 5, "rule": "midpoint"}, gradient="other", damages=True,
    ),
    "clean_corrupted": Method(
        ".search.attribution:clean_corrupted", "EAP with the gradients of both ends", gradient="other",
        damages=True,
    ),
    "exact": Method(
        ".search.exact:exact", "the damage of each edge, measured",
        {"level": "edge", "direction": "noising"}, metric=KL, damages=True,
    ),
    "trace_back": Method(
        ".search.trace_back:trace_back", "path patching back from the logits (Wang et al. 2022)",
        {"threshold": DEFAULT_THRESHOLD}, metric=KL, sizes="threshold", damages=True,
    ),
    "hybrid": Method(
        ".search.hybrid:hybrid", "attribution, then elimination by measured damage",
        {"edges": None, "rounds": 4}, sizes="edges", gradient="other", damages=False,
    ),
    "edge_pruning": Method(
        ".search.edge_pruning:edge_pruning", "learn a mask (Bhaskar et al. 2024)",
        {"edges": None, "steps": 200, "apart_from": None, "repulsion": None},
        metric=KL, sizes="edges", gradient="other", damages=False,
    ),
    "matryoshka": Method(
        ".search.matryoshka:matryoshka", "learn an order of the edges (Matryoshka Attribution)",
        {"edges": None, "steps": 520, "drawn": None}, sizes="edges", gradient="other", damages=False,
    ),
    "random": Method(".search.random_scores:random", "random scores, to compare with"),
}  # fmt: skip


def are_damages(info: Mapping[str, Any]) -> bool | None:
    """Whether scores of a provenance are damages (see `Method`)."""
    method = METHODS.get(str(info.get("method")))
    return method.damages if method is not None else None


# ------------------------------------------------------------------ what is measured


@dataclass(frozen=True)
class Metric(Entry):
    """A metric.

    Args:
        higher_is_better: whether a larger value means that the model does the task better.
        needs_incorrect: whether every example must have an incorrect answer.
        divergence: whether it compares with the full model's logits, with value and gradient 0 at these.
        skewed: whether it is never negative, and about log-normal from prompt to prompt.
        share: whether it is 0 or 1 on every prompt.
    """

    higher_is_better: bool = True
    needs_incorrect: bool = False
    divergence: bool = False
    skewed: bool = False
    share: bool = False


METRICS: dict[str, Metric] = {
    "logit_diff": Metric(".engine.metrics:logit_diff", "logit difference", needs_incorrect=True),
    "logit": Metric(".engine.metrics:logit", "logit of the right answer"),
    "probability": Metric(".engine.metrics:probability", "probability of the right answer"),
    "prob_diff": Metric(".engine.metrics:prob_diff", "probability difference", needs_incorrect=True),
    "nll": Metric(".engine.metrics:nll", "negative log-likelihood", higher_is_better=False, skewed=True),
    "accuracy": Metric(".engine.metrics:accuracy", "accuracy", needs_incorrect=True, share=True),
    KL: Metric(
        ".engine.metrics:kl_from", "KL divergence from the model",
        higher_is_better=False, divergence=True, skewed=True,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Ablation(Entry):
    """An ablation.

    Args:
        own_run: whether an example's replacements are one run's own activations.
    """

    own_run: bool = False


ABLATIONS: dict[str, Ablation] = {  # the words say what an edge then carries
    "resample": Ablation(".engine.ablation:resample", "what it has on the corrupted prompt", own_run=True),
    "mean": Ablation(".engine.ablation:mean", "its mean over corrupted prompts at that position"),
    "mean_all": Ablation(".engine.ablation:mean_all", "its mean over all tokens of the corrupted prompts"),
    "zero": Ablation(".engine.ablation:zero", "zero"),
    "noise": Ablation(".engine.ablation:noise", "what it carries with noise on the embeddings", own_run=True),
    "random": Ablation(".engine.ablation:random", "random values with the same mean and variance"),
}  # fmt: skip


# ------------------------------------------------------------------ models, reports, benchmarks

ARCHITECTURES: dict[str, Entry] = {  # by Hugging Face's model_type; each file holds its own name in capitals
    kind: Entry(f".model.architectures.{file}:{file.upper()}", words)
    for kind, (file, words) in FAMILIES.items()
}
GENERATORS: dict[str, Entry] = {  # of prompts, by the kind that a task file's [generator] names
    "years": Entry(".task.generators.years:GENERATOR", "years whose last two digits the answer exceeds"),
    "repeated_tokens": Entry(".task.generators.repeated_tokens:GENERATOR", "random tokens, said twice"),
    "sums": Entry(".task.generators.sums:GENERATOR", "sums of two numbers of two digits"),
}
SUITES: dict[str, Entry] = {  # of the benchmark; the last two: one of the published circuits
    name: Entry(".benchmark.suites:entries", words)
    for name, words in {
        "planted": "models whose circuit is known by construction",
        "toy": "the bundled model's tasks",
        "published": "GPT-2 small's published circuits",
        "ioi": "the published circuit of IOI",
        "greater_than": "the published circuit of greater-than",
    }.items()
}
PANELS: dict[str, Entry] = {  # of the report, from top to bottom; the first stands in its head
    name: Entry(f".reporting.panels.{name}:{name.upper()}", words)
    for name, words in {
        "example": "an example, and how the run was made",
        "verdict": "the verdict in words and figures",
        "roles": "what the nodes do",
        "circuit": "the drawing, and a card for each node",
        "curve": "faithfulness by circuit size",
        "criteria": "completeness and minimality",
        "prompts": "the answers, prompt by prompt",
    }.items()
}
BENCHMARK_ONLY = ("eap_denoising", "exact_denoising")  # methods that are another one's in the other direction

# ------------------------------------------------------------------ names

Kind = Literal["metric", "ablation", "method", "direction", "dtype", "suite", "benchmark method", "measure"]
TABLES: Mapping[str, Mapping[str, Entry]] = {
    "method": METHODS, "metric": METRICS, "ablation": ABLATIONS, "suite": SUITES,
}  # fmt: skip
_LISTS = {"direction": DIRECTIONS, "dtype": DTYPES, "measure": MEASURES}
_OPEN: Mapping[str, type[Entry]] = {"method": Method, "metric": Metric, "ablation": Ablation}
# What people call them elsewhere.
ALIASES: dict[str, dict[str, str]] = {
    "metric": {"kl": KL, "kl_div": KL, "logit_difference": "logit_diff", "prob": "probability"},
    "ablation": dict.fromkeys(("patch", "corrupt", "corrupted", "interchange"), "resample")
    | {"zeros": "zero"},
}


def valid(kind: Kind) -> tuple[str, ...]:
    """The names of a kind that there are now."""
    if kind == "benchmark method":
        return (*METHODS, *BENCHMARK_ONLY)
    return tuple(TABLES[kind]) if kind in TABLES else _LISTS[kind]


def canonical(kind: Kind, name: str) -> str:
    """The name with underscores, where it is one of its kind; hyphens are taken too, and what others call it.

    Names come from files, too, so nothing is imported here: see `opened`.

    Raises:
        CircuitDiscoveryError: a name that is not one of its kind.

    >>> canonical("method", "eap-ig"), canonical("metric", "kl")
    ('eap_ig', 'kl_divergence')
    """
    if name in TABLES.get(kind, {}):
        return name
    found = str(name).replace("-", "_")
    found = ALIASES.get(kind, {}).get(found, found)
    if found not in valid(kind):
        raise unknown(kind, name, valid(kind))
    return found


def opened(kind: Kind, name: str) -> str:
    """As `canonical`, of a name that a user types: your own method, metric or ablation is `module:name`,
    which is imported and gets a line in its table.

    Raises:
        CircuitDiscoveryError: a name that is not one of its kind; a module that cannot be imported.
    """
    if kind not in _OPEN or ":" not in name:
        return canonical(kind, name)
    table = cast(MutableMapping[str, Entry], TABLES[kind])
    if name not in table:
        found = _OPEN[kind](name).load()
        if not callable(found):
            raise CircuitDiscoveryError(f"{kind} {name!r} is a {type(found).__name__}, not a function")
        table[name] = _OPEN[kind](name)
    return name


def checked_direction(direction: str, ablation: str) -> str:
    """The direction's name, where it goes with the ablation. Denoising puts the clean run's activations into
    the corrupted run: no ablation enters, and only `resample` can stand for none.

    Raises:
        CircuitDiscoveryError: an unknown direction; denoising with another ablation.
    """
    found = canonical("direction", direction)
    if found == "denoising" and ablation != "resample":
        raise CircuitDiscoveryError(
            "denoising takes no ablation but resample, because what it puts in is the clean run's; "
            f"{ablation!r} is for direction noising"
        )
    return found


def ablation_words(name: str, mean_over: int | None) -> str:
    """An ablation in a report's words, with the fewest prompts that a
    replacement is a mean over where it is one.

    >>> ablation_words("mean", 16)
    'mean ablation (over 16 or more prompts)'
    """
    return f"{name} ablation" + (f" (over {mean_over} or more prompts)" if mean_over is not None else "")


def default_edges(total: int) -> int:
    """How many edges of a graph are kept: a tenth, but no more than 200, or 1% where that is more.

    >>> default_edges(479), default_edges(5_644), default_edges(70_651)
    (48, 200, 707)
    """
    return max(1, round(max(0.01 * total, min(0.1 * total, FEW))))
