"""What parts cost: the scores of all neurons, and circuits among neurons as nodes.

    OMP_NUM_THREADS=1 python benchmarks/parts.py [--model smollm2-135m] [--keep 50] [--page docs/how-to/parts.md]

By default on random weights of GPT-2 small's shape, 16 prompts of 16 tokens; with a real model on
subject_verb_agreement, 16 prompts. Costs are in F, one Hugging Face forward of the prompts (CPU time; the
faster of two, measured before and after), memory is the peak above what was held before.

1. `neurons` scores the neurons of all MLPs as nodes; `eap` is measured in the same run.
2. `split` keeps some neurons of every MLP by integrated gradients, `eap` scores all edges among parts.
3. `run_circuit` of 1,000 edges: the best ones, and the best of those that enter or leave a neuron, with
   replacements that were computed before; the second of two runs. The best 1,000 edges of the graph without
   parts are run beside it.
4. All parts are the model, and no part is the replaced run: the largest difference of a logit.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pages import check, show
from real_models import MODELS, folder_of
from real_quality import Peak, seconds_of_forward

import circuitdiscovery as cd

EDGES = 1_000


def random_gpt2(layers: int) -> tuple[Any, Any, cd.Task]:
    """(model, Hugging Face model, task) of GPT-2 small's shape and random weights and tokens."""
    from transformers import AutoModelForCausalLM, GPT2Config

    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(GPT2Config(n_layer=layers)).eval()
    clean, corrupted = torch.randint(50257, (2, 16, 16))
    right, wrong = torch.randint(50257, (2, 16))
    answers = {"correct": right[:, None], "incorrect": wrong[:, None]}
    return cd.load_model((hf, None)), hf, cd.Task.from_tokens(clean=clean, corrupted=corrupted, **answers)


def real(name: str) -> tuple[Any, Any, cd.Task]:
    """(model, Hugging Face model, task) of a real model."""
    from transformers import AutoModelForCausalLM

    folder = folder_of(MODELS[name])
    model, hf = (
        cd.load_model(folder),
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(),
    )
    return model, hf, replace(cd.load_task("subject_verb_agreement", model, examples=16), held_out=None)


class Costs:
    """Costs of calls in F."""

    def __init__(self, hf: Any, task: cd.Task) -> None:
        self._hf, self._task, self._forward = hf, task, seconds_of_forward(hf, task)
        self.rows: dict[str, tuple[float, float]] = {}

    def of(self, name: str, call: Callable[[], Any], runs: int = 1) -> Any:
        """The result of the last of some calls, whose cost is kept."""
        found = None
        for _ in range(runs):
            memory, begun = Peak(), time.process_time()
            found = call()
            self.rows[name] = time.process_time() - begun, memory.gigabytes()
        return found

    def table(self) -> Iterator[str]:
        """Lines of Markdown."""
        forward = (self._forward + seconds_of_forward(self._hf, self._task)) / 2
        yield "| | F | GB |"
        yield "| --- | --- | --- |"
        for name, (seconds, gigabytes) in self.rows.items():
            yield f"| {name} | {seconds / forward:.3g} | {gigabytes:.2f} |"


def measured(model: Any, hf: Any, task: cd.Task, keep: int) -> Iterator[str]:
    """The table, and what is exact."""
    costs = Costs(hf, task)
    whole = costs.of("`eap`, the graph without parts", lambda: cd.eap(model, task), runs=2)
    costs.of("`neurons`, all of them", lambda: cd.neurons(model, task, top=50), runs=2)
    mlps = {f"m{layer}": "neurons" for layer in range(model.n_layers)}
    graph = costs.of(
        f"`split`, {keep} neurons of each MLP", lambda: cd.split(model, mlps, task=task, keep=keep)
    )
    scores = costs.of(f"`eap`, {len(graph):,} edges among parts", lambda: cd.eap(model, task, graph=graph))
    given = cd.replacements(model, task, graph=graph), cd.replacements(model, task)
    best, among = scores.best(EDGES), _among_parts(scores)
    for name, circuit in (("the best", best), ("the best at neurons", among)):
        parts = sum("/n" in node for node in circuit.nodes)
        told = f"a circuit of {len(circuit):,} edges: {name} ({parts} neurons)"
        costs.of(
            told, lambda circuit=circuit: cd.run_circuit(model, task, circuit, ablation=given[0]), runs=2
        )
    coarse = whole.best(EDGES)
    told = f"a circuit of {len(coarse):,} edges without parts"
    costs.of(told, lambda: cd.run_circuit(model, task, coarse, ablation=given[1]), runs=2)
    yield from costs.table()
    yield ""
    for name, circuit in (("All parts", cd.Circuit.full), ("No part", cd.Circuit.empty)):
        logits = [cd.run_circuit(model, task, circuit(each)) for each in (graph, model.graph)]
        apart, largest = (float(each.abs().max()) for each in (logits[0] - logits[1], logits[1]))
        yield f"{name}: at most {apart:.1e} from the graph without parts, of logits up to {largest:.0f}."
        yield ""


def _among_parts(scores: cd.Scores) -> cd.Circuit:
    graph = scores.graph
    neurons = [np.array(["/n" in name for name in names]) for names in (graph.sources, graph.receivers)]
    touching = graph.allowed & (neurons[0][:, None] | neurons[1])
    least = np.sort(np.abs(scores.values[touching]))[-EDGES]
    return cd.Circuit(graph, touching & (np.abs(scores.values) >= least))


def main() -> None:
    """Measure, and print or write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, help="a real model; by default GPT-2 small's shape")
    parser.add_argument("--layers", type=int, default=12, help="of GPT-2's shape")
    parser.add_argument("--keep", type=int, default=50)
    parser.add_argument("--page", type=Path, help="write the table into this page, between its marks")
    given = parser.parse_args()
    check(given.page)
    model, hf, task = random_gpt2(given.layers) if given.model is None else real(given.model)
    show("\n".join(measured(model, hf, task, given.keep)), given.page)


if __name__ == "__main__":
    main()
