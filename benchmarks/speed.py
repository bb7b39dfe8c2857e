"""What the engine costs, in multiples of F: one plain Hugging Face forward of the same batch in the same process.

    python benchmarks/speed.py [--prompts 16] [--length 16] [--threads 2] [--receivers 24]

A random model of GPT-2 small's shape (12 layers, 12 heads, d_model 768, 32,491 edges). Every row is the median of
interleaved repetitions. Memory is the peak of the process's resident set above the loaded model, each row in its own child process.
ACDC decisions are timed on receivers spread over all layers, from states in which every later receiver keeps a sample of
its edges, so that a whole search ends at about `--edges` edges; the row says "sampled".
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import circuitdiscovery as cd
from circuitdiscovery.metrics import bind
from circuitdiscovery.search.acdc import _Search, receiver_order
from circuitdiscovery.search.cases import cases

ROWS = ("eap", "eap_ig", "half", "best")


def hugging_face_model() -> GPT2LMHeadModel:
    """GPT-2 small's shape with random weights, seeded."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0)).eval()


def random_task(prompts: int, length: int) -> cd.Task:
    """Random tokens and answers, seeded."""
    generator = torch.Generator().manual_seed(1)
    clean, corrupted = torch.randint(50257, (2, prompts, length), generator=generator)
    answers = torch.randperm(50257, generator=generator)[: 2 * prompts].reshape(2, prompts)
    return cd.Task.from_tokens(clean=clean, corrupted=corrupted, correct=answers[0], incorrect=answers[1])


def seconds(functions: dict[str, Callable[[], Any]], repetitions: int) -> dict[str, float]:
    """The median time of each function, all of them called in turn."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repetitions + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(each[1:]) for name, each in times.items()}  # the first call warms up


def workloads(model: cd.Model, task: cd.Task) -> dict[str, Callable[[], Any]]:
    """The timed calls, by row."""
    graph = model.graph
    rng = np.random.default_rng(0)
    alt = cd.replacements(model, task)
    half = cd.Circuit(graph, graph.allowed & (rng.random(graph.allowed.shape) < 0.5))
    best = cd.eap(model, task).greedy(1000)
    return {
        "eap": lambda: cd.eap(model, task),
        "eap_ig": lambda: cd.eap_ig(model, task, steps=5),
        "half": lambda: cd.run_circuit(model, task, half, ablation=alt),
        "best": lambda: cd.run_circuit(model, task, best, ablation=alt),
    }


def acdc_decisions(model: cd.Model, task: cd.Task, receivers: int, edges: int) -> tuple[float, int]:
    """(seconds a decision, decisions) over receivers spread over the whole order."""
    graph = model.graph
    metric = bind("kl_divergence", model, task)
    found, _ = cases(model, task, graph, ablation="resample")
    order = receiver_order(graph)
    rng = np.random.default_rng(0)
    keep = edges / len(graph)
    spent, decided = 0.0, 0
    for position in np.linspace(0, len(order) - 1, receivers).astype(int):
        mask = graph.allowed.copy()
        for done in order[:position]:
            mask[:, done] &= rng.random(len(mask)) < keep
        mask[:, -1] |= position > 0  # every node stays alive, so that each decision needs its forward
        scores = np.zeros(mask.shape)
        search = _Search(task, graph, metric, threshold_of(model, task, found, metric, mask, order[position], keep), False, found)
        start = time.perf_counter()
        search.decide(order[position], mask, scores)  # as the search itself does
        spent += time.perf_counter() - start
        decided += int(graph.allowed[:, order[position]].sum())
    return spent / decided, decided


def threshold_of(model: cd.Model, task: cd.Task, found: Any, metric: Any, mask: np.ndarray, receiver: int, keep: float) -> float:
    """A threshold at which about a share `keep` of a receiver's edges stay."""
    trial = _Search(task, model.graph, metric, -float("inf"), True, found)
    _, scores = trial.decide(receiver, mask, np.zeros(mask.shape))
    damage = np.abs(scores[model.graph.allowed[:, receiver], receiver])
    return float(np.quantile(damage, 1 - keep))


def peak_above_model(row: str, arguments: argparse.Namespace) -> float:
    """GB of peak resident memory above the loaded model, of one row in a child process."""
    command = [sys.executable, __file__, "--memory", row, "--prompts", str(arguments.prompts), "--length", str(arguments.length)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_peak(row: str, arguments: argparse.Namespace) -> None:
    model = cd.load_model((hugging_face_model(), None))
    task = random_task(arguments.prompts, arguments.length)
    work = {"eap": lambda: cd.eap(model, task), "eap_ig": lambda: cd.eap_ig(model, task)}.get(row) or workloads(model, task)[row]
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak (Linux)
    before = kilobytes("VmRSS")
    work()
    print((kilobytes("VmHWM") - before) / 2**20)


def kilobytes(field: str) -> int:
    """A field of this process's memory status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--length", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--receivers", type=int, default=24)
    parser.add_argument("--edges", type=int, default=1000)
    parser.add_argument("--memory", choices=ROWS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory:
        print_peak(arguments.memory, arguments)
        return
    hf = hugging_face_model()
    task = random_task(arguments.prompts, arguments.length)
    clean = torch.tensor([example.clean for example in task.examples])
    model = cd.load_model((hf, None))

    @torch.no_grad()
    def forward() -> Any:
        return hf(clean).logits

    timed = seconds({"F": forward, **workloads(model, task)}, arguments.repetitions)
    decision, decided = acdc_decisions(model, task, arguments.receivers, arguments.edges)
    again = seconds({"F": forward}, arguments.repetitions)["F"]
    names = {
        "eap": f"EAP, all {len(model.graph):,} edges",
        "eap_ig": "EAP-IG, 5 steps",
        "half": "a circuit's logits, replacements given: random half of the edges",
        "best": "a circuit's logits, replacements given: best 1,000 edges",
    }
    size = f"{arguments.prompts} prompts of {arguments.length} tokens"
    print(f"{datetime.date.today()}, {platform.machine()}, {arguments.threads} threads, {size}, F = {timed['F']:.2f} s\n")
    print("| | time in F | peak above the loaded model |\n| --- | --- | --- |")
    for row in ROWS:
        print(f"| {names[row]} | {timed[row] / timed['F']:.2f} | {peak_above_model(row, arguments):.2f} GB |")
    print(f"| one ACDC decision (sampled, {decided}) | {decision / statistics.mean([timed['F'], again]):.2f} | |")


if __name__ == "__main__":
    main()
