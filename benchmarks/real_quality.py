"""What searches find on a real model: how faithful small circuits are, and what finding them costs.

    python benchmarks/real_quality.py [--model smollm2-135m] [--out runs/real-quality-MODEL]
    [--examples 64] [--only CELL ...] [--page docs/real-models.md]

Every cell (a task under one of its counterfactuals, and a method) is a file in the folder, written when it is
done: a run that was stopped goes on with the next one, and a search within a cell from its state. At the end
the table is printed; with --page what was run goes into benchmarks/measured/MODEL.json, and all cells of that
file are the page's table.

1. A task that the model does not know is said so, and nothing is searched: its accuracy (the right answer's
   logit above the wrong one's) must be at least .75.
2. A search uses the task's examples, its circuits are measured on as many held-out ones: normalized
   faithfulness and KL of the best edges on paths (`Scores.best`), with 95% bootstrap intervals, beside the
   empty circuit's.
3. Its cost is in F, one Hugging Face forward of the search's prompts, measured before and after it in the
   same process; both in CPU time, so that what else the machine does matters little. OMP_NUM_THREADS=1 lets
   several runs share a machine. Its memory is the peak above what was held before it.
4. `matryoshka`, the default on large models, is asked for one size at a time too, on IOI with 128 prompts:
   three seeds (of the examples and of the search) at 1% and at 2%, and 1% of the counterfactual `flip`.
5. hybrid, edge_pruning and acdc run from 16 prompts, as long as `--minutes` of CPU time allow. Of what takes
   longer the cost is estimated from the part that was done.
6. Roles are those of the heads in matryoshka's circuit, else in that of eap_ig.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pages import check, show
from quality_table import ONE_SIZE_EXAMPLES, SLOW, SLOW_EXAMPLES, SLOW_SHARE, THRESHOLD, kept, table
from real_models import MODELS, folder_of

import circuitdiscovery as cd
from circuitdiscovery.engine.metrics import clean_logits
from circuitdiscovery.engine.setup import Setup
from circuitdiscovery.files.disk import write_json
from circuitdiscovery.measure.evaluator import Evaluator
from circuitdiscovery.task.read import read_task
from circuitdiscovery.task.taskfile import TaskFile


def task_names() -> tuple[str, ...]:
    """The shipped tasks under each of their counterfactuals, `name` or `name/counterfactual`; ioi first."""
    names = []
    for name in sorted(cd.shipped_tasks(), key=lambda name: (name != "ioi", name)):
        file = read_task(name)
        assert isinstance(file, TaskFile)
        others = (each for each in file.counterfactuals if each != file.counterfactual)
        names += [name, *(f"{name}/{other}" for other in others)]
    return tuple(names)


TASKS = task_names()
KNOWN = 0.75  # the accuracy from which a model knows a task


def shares(graph: cd.Graph) -> tuple[float, ...]:
    """Of the edges, how many are kept: fewer of a large graph."""
    return (0.005, 0.01, 0.02, 0.05) if len(graph) > 20_000 else (0.01, 0.02, 0.05, 0.1)


METHODS: dict[str, Callable[..., cd.Scores]] = {
    "eap": cd.eap,
    "eap_ig": cd.eap_ig,
    "eap_ig with KL": partial(cd.eap_ig, metric="kl_divergence"),
    "clean_corrupted": cd.clean_corrupted,
    "matryoshka": cd.matryoshka,
    "random": cd.random,
}
ONE_SIZE = [*(("abc", share, seed) for share in (0.01, 0.02) for seed in range(3)), ("flip", 0.01, 0)]
ROLES_OF = ("matryoshka", "eap_ig")  # the first of them that was run


class OutOfTime(Exception):
    """The minutes that a slow search may take are over."""


@torch.no_grad()
def seconds_of_forward(hf: Any, task: cd.Task) -> float:
    """One Hugging Face forward of a task's prompts, length by length; the faster of two."""

    def once() -> float:
        begun = time.process_time()
        for batch in task.batches(64):
            hf(batch.clean)
        return time.process_time() - begun

    return min(once() for _ in range(2))


def measured(evaluator: Evaluator, scores: cd.Scores) -> list[dict[str, Any]]:
    """Of the best edges at each share: how many are kept, normalized faithfulness and KL."""
    circuits = [scores.best(max(1, round(share * len(scores.graph)))) for share in shares(scores.graph)]
    allowed = scores.graph.allowed
    evaluator.measure([allowed, np.zeros_like(allowed), *(circuit.mask for circuit in circuits)])
    return [row(evaluator, circuit) for circuit in circuits]


def row(evaluator: Evaluator, circuit: cd.Circuit) -> dict[str, Any]:
    """One circuit's figures."""
    full, empty = evaluator.values(circuit.graph.allowed), evaluator.values(np.zeros_like(circuit.mask))
    kept, reason = evaluator.normalized(evaluator.values(circuit.mask), full, empty)
    assert kept is not None, reason
    return {
        "edges": len(circuit),
        "normalized": kept.to_dict(),
        "kl": evaluator.mean(evaluator.values(circuit.mask, "kl")).to_dict(),
    }


def knows(model: Any, task: cd.Task) -> tuple[float, float]:
    """(the share of examples whose best right answer is above the best wrong one, and above all tokens)."""
    right = top = 0
    for row, example in zip(clean_logits(model, task), task.examples, strict=True):
        best = row[list(example.correct)].max()
        right += bool(best > row[list(example.incorrect)].max())
        top += bool(best == row.max())
    return right / len(task), top / len(task)


class Peak:
    """The memory of this process above what it holds now (Linux)."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        self._held = self._read("VmRSS")

    @staticmethod
    def _read(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field))  # in kB

    def gigabytes(self) -> float:
        """Until now."""
        return max(0, self._read("VmHWM") - self._held) / 2**20


class Spent:
    """The CPU seconds of a search, with those of runs of it that were stopped; it keeps them as it goes."""

    def __init__(self, state: Path) -> None:
        self._state, self._path = state, state.with_suffix(".seconds")
        kept = state.exists() and self._path.exists()
        self._before = float(self._path.read_text()) if kept else 0.0
        self._begun = time.process_time()

    def seconds(self) -> float:
        """Until now."""
        return self._before + self.here()

    def here(self) -> float:
        """Those of this run alone."""
        return time.process_time() - self._begun

    def progress(self, done: int, total: int) -> None:
        """What a search calls as it goes."""
        self._path.write_text(str(self.seconds()))

    def over(self) -> None:
        """Nothing goes on from here: without its state."""
        for path in (self._state, self._path):
            path.unlink(missing_ok=True)


def cell(name: str, method: str, examples: int, model: Any, hf: Any, folder: Path) -> dict[str, Any]:
    """One task and method, searched and measured."""
    task_name, _, counterfactual = name.partition("/")
    task = cd.load_task(task_name, model, examples=examples, counterfactual=counterfactual or None)
    held = task.held_out or task
    accuracy, first = knows(model, held)
    found = {"task": name, "method": method, "examples": len(task), "accuracy": accuracy, "top-1": first}
    if accuracy < KNOWN:
        return found
    evaluator = Evaluator.build(Setup.of(model, held, model.graph))
    before = seconds_of_forward(hf, task)
    state = folder / f"{name.replace('/', '-')}-{method}.state"
    memory, spent = Peak(), Spent(state)
    more = {"state": state, "progress": spent.progress} if method == "matryoshka" else {}
    scores = METHODS[method](model, task, **more)
    seconds, gigabytes = spent.seconds(), memory.gigabytes()
    after = seconds_of_forward(hf, task)
    scores.save(scores_of(folder, name, method))
    rows = measured(evaluator, scores)
    nothing = evaluator.mean(evaluator.values(np.zeros_like(model.graph.allowed), "kl"))
    spent.over()
    return found | {
        "held out": len(held),
        "memory": gigabytes,
        "full": evaluator.mean(evaluator.values(model.graph.allowed)).to_dict(),
        "empty kl": nothing.to_dict(),
        "F": seconds / ((before + after) / 2),
        "rows": rows,
    }


def scores_of(folder: Path, name: str, method: str) -> Path:
    """Where a cell keeps its ranking, for its roles."""
    return folder / f"{name.replace('/', '-')}-{method}.safetensors"


def roles_cell(name: str, examples: int, model: Any, hf: Any, folder: Path) -> dict[str, Any]:
    """The roles of heads in the circuit of SLOW_SHARE of the edges, by a search that was run before."""
    task_name, _, counterfactual = name.partition("/")
    task = cd.load_task(task_name, model, examples=examples, counterfactual=counterfactual or None)
    found: dict[str, Any] = {"task": name, "method": "roles"}
    if knows(model, task.held_out or task)[0] < KNOWN:
        return found
    method = next((each for each in ROLES_OF if scores_of(folder, name, each).exists()), ROLES_OF[-1])
    if not scores_of(folder, name, method).exists():
        METHODS[method](model, task).save(scores_of(folder, name, method))
    circuit = cd.Scores.load(scores_of(folder, name, method)).best(round(SLOW_SHARE * len(model.graph)))
    before, begun = seconds_of_forward(hf, task), time.process_time()
    explained = cd.explain(model, task, circuit, effort="quick")
    spent = time.process_time() - begun
    cards = sorted(explained.cards.values(), key=lambda card: -abs(card.effect))
    strongest = [
        [card.node, card.effect, list(card.roles)] for card in cards if card.roles or card in cards[:3]
    ]
    return found | {"of": method, "F": spent / before, "nodes": len(circuit.nodes) - 2, "cards": strongest}


def one_size_cell(
    counterfactual: str, share: float, seed: int, model: Any, hf: Any, folder: Path
) -> dict[str, Any]:
    """matryoshka on IOI, finished at the one size that is measured."""
    task = cd.load_task("ioi", model, examples=ONE_SIZE_EXAMPLES, seed=seed, counterfactual=counterfactual)
    held, count = task.held_out or task, round(share * len(model.graph))
    state = folder / f"one-size-{counterfactual}-{share:g}-{seed}.state"
    before, spent = seconds_of_forward(hf, task), Spent(state)
    scores = cd.matryoshka(model, task, edges=count, seed=seed, state=state, progress=spent.progress)
    seconds = spent.seconds()
    after = seconds_of_forward(hf, task)
    evaluator = Evaluator.build(Setup.of(model, held, model.graph))
    found = row(evaluator, scores.best(count))
    spent.over()
    return {
        "task": "ioi",
        "method": "matryoshka",
        "counterfactual": counterfactual,
        "seed": seed,
        "examples": len(task),
        "held out": len(held),
        "empty kl": evaluator.mean(evaluator.values(np.zeros_like(model.graph.allowed), "kl")).to_dict(),
        "F": seconds / ((before + after) / 2),
        "rows": [found],
    }


def slow_cell(name: str, method: str, minutes: float, model: Any, hf: Any, folder: Path) -> dict[str, Any]:
    """A slow search at one size: measured where it ends in time, else its estimated cost."""
    task_name, _, counterfactual = name.partition("/")
    task = cd.load_task(task_name, model, examples=SLOW_EXAMPLES, counterfactual=counterfactual or None)
    count = round(SLOW_SHARE * len(model.graph))
    state = folder / f"{name.replace('/', '-')}-{method}.state"
    before, spent = seconds_of_forward(hf, task), Spent(state)
    seen = [0, 1]

    def progress(done: int, total: int) -> None:
        seen[:] = done, total
        spent.progress(done, total)
        if spent.here() > 60 * minutes and done < total:
            raise OutOfTime

    options: dict[str, Any] = {"threshold": THRESHOLD} if method == "acdc" else {"edges": count}
    found: dict[str, Any] = {"task": name, "method": method, "examples": len(task)}
    try:
        result = getattr(cd, method)(model, task, progress=progress, state=state, **options)
    except OutOfTime:
        share = _weighted(model.graph, seen[0]) if method == "acdc" else seen[0] / seen[1]
        return found | {"F": spent.seconds() / before / max(share, 1e-9), "share": share, "rows": []}
    seconds = spent.seconds()
    spent.over()
    evaluator = Evaluator.build(Setup.of(model, task.held_out or task, model.graph))
    circuit = result if isinstance(result, cd.Circuit) else result.best(count)
    return found | {
        "F": seconds / before,
        "held out": len(task.held_out or task),
        "rows": [row(evaluator, circuit)],
    }


def _weighted(graph: cd.Graph, decided: int) -> float:
    """The part of ACDC's work that so many decisions are: one in layer l of L runs the layers from l on."""
    per_layer = np.bincount(graph.receiver_layers, weights=graph.allowed.sum(0))[::-1]  # of the logits first
    depth = np.arange(1, len(per_layer) + 1)
    before = np.concatenate([[0], np.cumsum(per_layer)])
    done = np.clip(decided - before[:-1], 0, per_layer)
    return float((done * depth).sum() / (per_layer * depth).sum())


def main() -> None:
    """Run what is missing, then print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, default="smollm2-135m")
    parser.add_argument("--out", type=Path, help="by default runs/real-quality-MODEL")
    parser.add_argument("--examples", type=int, default=64)
    parser.add_argument(
        "--minutes", type=float, default=10, help="that hybrid, edge_pruning and acdc may take each"
    )
    parser.add_argument(
        "--only",
        nargs="*",
        help="cells, such as ioi:eap_ig, ioi-abc:0.01:0 or subject_verb_agreement:acdc; none: those that are "
        "there; by default all",
    )
    parser.add_argument("--page", type=Path, help="this page gets the table, between its marks")
    given = parser.parse_args()
    check(given.page)
    given.out = given.out or Path("runs") / f"real-quality-{given.model}"
    given.out.mkdir(parents=True, exist_ok=True)
    wanted = {
        f"{task}:{method}": partial(cell, task, method, given.examples)
        for task in TASKS
        for method in METHODS
    }
    wanted |= {
        f"ioi-{name}:{share:g}:{seed}": partial(one_size_cell, name, share, seed)
        for name, share, seed in ONE_SIZE
    }
    wanted |= {
        f"{task}:{method}": partial(slow_cell, task, method, given.minutes)
        for method in SLOW
        for task in TASKS
    }
    wanted |= {f"{task}:roles": partial(roles_cell, task, given.examples) for task in TASKS}
    paths = {name: given.out / f"{re.sub('[:/ ]', '-', name)}.json" for name in wanted}
    missing = [name for name in (wanted if given.only is None else given.only) if not paths[name].exists()]
    if missing:
        from transformers import AutoModelForCausalLM

        folder = folder_of(MODELS[given.model])
        model, hf = (
            cd.load_model(folder),
            AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(),
        )
        for name in missing:
            print(name, flush=True)
            write_json(paths[name], wanted[name](model, hf, given.out))
    cells = {name: json.loads(path.read_text("utf-8")) for name, path in paths.items() if path.exists()}
    if given.page is not None:
        cells = kept(given.model, list(paths), cells)
    show("\n".join(table(list(cells.values()))), given.page)


if __name__ == "__main__":
    main()
