"""All planted problems, easy and hard; their true circuits lie in `graphs/planted/`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from circuitdiscovery.benchmark.problems import semisynthetic
from circuitdiscovery.benchmark.problems.hard import harden
from circuitdiscovery.benchmark.problems.problem import Problem
from circuitdiscovery.benchmark.problems.programs import RECIPES


def planted(*, examples: int = 64, seed: int = 0) -> Mapping[str, Callable[[], Problem]]:
    """Name -> a function that makes the problem: each program in its easy form and in two
    hard ones, and the semi-synthetic models.

    Args:
        examples: prompt pairs to search on, and as many held out.
        seed: of the prompts, and of the noise in the hard forms.
    """
    found: dict[str, Callable[[], Problem]] = {}
    for name, recipe in RECIPES.items():
        easy = partial(recipe.problem, name, examples=examples, seed=seed)
        found[name] = easy
        for layernorm in (False, True):
            found[f"{name}-hard{'-layernorm' if layernorm else ''}"] = partial(_hard, easy, layernorm, seed)
    for name in semisynthetic.NAMES:
        found[f"semisynthetic-{name}"] = partial(semisynthetic.problem, name, examples=examples, seed=seed)
    return found


def _hard(easy: Callable[[], Problem], layernorm: bool, seed: int) -> Problem:
    return harden(easy(), layernorm=layernorm, seed=seed)
