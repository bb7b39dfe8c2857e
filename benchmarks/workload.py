"""What the speed benchmarks share: random models and prompts of a size,
times, and peak memory in a child process.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from peers.measure import peak_gigabytes, times
from transformers import GPT2Config, GPT2LMHeadModel

import circuitdiscovery as cd
from circuitdiscovery.benchmark.run import machine as machine

N_BEST = 1000


@dataclass(frozen=True)
class Size:
    """A GPT-2 and a batch; by default GPT-2 small's shape (32,491 edges)."""

    prompts: int = 16
    length: int = 16
    layers: int = 12
    heads: int = 12  # of 64 dimensions each
    vocabulary: int = 50257


class Workload:
    """A random model of a size, seeded, and random prompts and answers for it."""

    def __init__(self, size: Size) -> None:
        torch.manual_seed(0)
        shape: dict[str, Any] = {
            "n_layer": size.layers,
            "n_head": size.heads,
            "n_embd": 64 * size.heads,
            "vocab_size": size.vocabulary,
        }
        self.hugging_face = GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0, **shape)).eval()
        self.model = cd.load_model((self.hugging_face, None))
        generator = torch.Generator().manual_seed(1)
        self.clean, self.corrupted = torch.randint(
            size.vocabulary, (2, size.prompts, size.length), generator=generator
        )
        answers = torch.randperm(size.vocabulary, generator=generator)[: 2 * size.prompts]
        self.correct, self.incorrect = answers.reshape(2, size.prompts)
        self.task = cd.Task.from_tokens(
            clean=self.clean, corrupted=self.corrupted, correct=self.correct, incorrect=self.incorrect
        )

    @torch.no_grad()
    def forward(self) -> Any:
        """F: one plain Hugging Face forward of the clean prompts."""
        return self.hugging_face(self.clean).logits

    def half(self) -> cd.Circuit:
        """A random half of the edges."""
        allowed = self.model.graph.allowed
        return cd.Circuit(self.model.graph, allowed & (np.random.default_rng(0).random(allowed.shape) < 0.5))

    def best(self) -> cd.Circuit:
        """The best edges by EAP."""
        return cd.eap(self.model, self.task).greedy(N_BEST)

    def rows(self, names: Sequence[str]) -> dict[str, Callable[[], Any]]:
        """The timed calls."""
        made: dict[str, Callable[[], Any]] = {}
        for name in names:
            if name in ("half", "best"):
                circuit, carried = getattr(self, name)(), cd.replacements(self.model, self.task)
                made[name] = lambda c=circuit, a=carried: cd.run_circuit(self.model, self.task, c, ablation=a)
            else:
                made[name] = {"F": self.forward, "eap": self.eap, "eap_ig": self.eap_ig}[name]
        return made

    def eap(self) -> Any:
        return cd.eap(self.model, self.task)

    def eap_ig(self) -> Any:
        return cd.eap_ig(self.model, self.task, steps=5)


def seconds(functions: Mapping[str, Callable[[], Any]], repetitions: int) -> dict[str, float]:
    """The median time of each function, all of them called in turn."""
    taken = times(functions, repetitions + 1)
    return {name: statistics.median(each[1:]) for name, each in taken.items()}  # the first call warms up


def peak_in_child(script: str, row: str, size: Size) -> float:
    """GB of peak resident memory above the loaded model, of one row
    in a child process that calls `print_peak`.
    """
    command = [
        sys.executable,
        script,
        "--memory",
        row,
        "--prompts",
        str(size.prompts),
        "--length",
        str(size.length),
    ]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_peak(row: str, size: Size) -> None:
    """In the child: run one row once and print the peak."""
    print(peak_gigabytes(Workload(size).rows([row])[row]))
