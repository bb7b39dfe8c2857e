"""What a benchmark is asked for; needs no torch."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from circuitdiscovery.errors import CircuitDiscoveryError

QUICK_METHODS = ("acdc", "eap", "eap_ig", "exact", "random")
METHODS = (
    "acdc",
    "eap",
    "eap_ig",
    "clean_corrupted",
    "exact",
    "exact_denoising",
    "trace_back",
    "hybrid",
    "edge_pruning",
    "matryoshka",
    "random",
)


@dataclass(frozen=True)
class BenchmarkOptions:
    """What `benchmark` is asked for.

    Args:
        suite: `planted`, `toy`, `published`, or a published circuit.
        methods: names, or `module:function`; empty: the default ones.
        model: of the published circuits: a name or a folder; None: gpt2.
        quick: fewer examples and methods.
        seed: of the prompts.
    """

    suite: str
    methods: tuple[str, ...] = ()
    model: str | None = None
    quick: bool = False
    seed: int = 0

    def check(self) -> None:
        """Refuse options that do not go together."""
        if self.suite in ("planted", "toy") and self.model is not None:
            raise CircuitDiscoveryError(
                f"the suite {self.suite} has models of its own; --model is for published, ioi and "
                "greater_than"
            )

    @property
    def chosen(self) -> tuple[str, ...]:
        """The methods that run."""
        return self.methods or (QUICK_METHODS if self.quick else METHODS)

    @property
    def name(self) -> str:
        """What its folder is called."""
        return f"benchmark-{self.suite.replace('_', '-')}{'-quick' if self.quick else ''}"

    def resume_command(self, folder: Path) -> str:
        """The command line that goes on with this benchmark."""
        words = ["circuitdiscovery", "benchmark", self.suite]
        words += [word for method in self.methods for word in ("--method", method)]
        words += ["--model", self.model] if self.model is not None else []
        words += [*(["--quick"] if self.quick else []), *(["--seed", str(self.seed)] if self.seed else [])]
        return shlex.join([*words, "--out", str(folder), "--resume"])
