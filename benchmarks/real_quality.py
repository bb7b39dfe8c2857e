"""What searches find on a real model, SmolLM2-135M: how faithful circuits of .5 to 5% of
the edges are, and what finding them costs.

    python benchmarks/real_quality.py [--out runs/real-quality] [--examples 64]
    [--only CELL ...] [--page docs/real-models.md]

Every cell (a task and a method) is a file in the folder, written when it is done: a run that was stopped goes
on with the next one, and a search within a cell from its state. At the end the table is printed, or written
into the page between two marks.

1. A search uses the task's examples, its circuits are measured on as many held-out ones: normalized
   faithfulness and KL of the best edges on paths (`Scores.best`), with 95% bootstrap intervals, beside the
   empty circuit's.
2. Its cost is in F, one Hugging Face forward of the search's prompts, measured before and after it in the
   same process; both in CPU time, so that what else the machine does matters little. OMP_NUM_THREADS=1 lets
   several runs share a machine.
3. `matryoshka`, the default on large models, is asked for one size at a time too, on IOI with 128 prompts:
   three seeds (of the examples and of the search) at 1% and at 2%, and 1% of the counterfactual `flip`.
4. hybrid, edge_pruning and acdc run on one task, from 16 prompts, as long as `--minutes` of CPU time allow.
   Of what takes longer the cost is estimated from the part that was done.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from real_models import smollm2

import circuitdiscovery as cd
from circuitdiscovery.engine.setup import Setup
from circuitdiscovery.files.disk import write_atomically, write_json
from circuitdiscovery.measure.estimates import Estimate
from circuitdiscovery.measure.evaluator import Evaluator

TASKS = ("ioi", "greater_than", "subject_verb_agreement", "gendered_pronoun", "induction")
SHARES = (0.005, 0.01, 0.02, 0.05)
METHODS: dict[str, Callable[..., cd.Scores]] = {
    "eap": cd.eap,
    "eap_ig": cd.eap_ig,
    "eap_ig with KL": partial(cd.eap_ig, metric="kl_divergence"),
    "clean_corrupted": cd.clean_corrupted,
    "matryoshka": cd.matryoshka,
    "random": cd.random,
}
ONE_SIZE = [*(("abc", share, seed) for share in (0.01, 0.02) for seed in range(3)), ("flip", 0.01, 0)]
ONE_SIZE_EXAMPLES = 128
SLOW_TASK, SLOW_EXAMPLES, SLOW_SHARE = "subject_verb_agreement", 16, 0.01
SLOW = ("edge_pruning", "hybrid", "acdc")
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


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
    circuits = [scores.best(max(1, round(share * len(scores.graph)))) for share in SHARES]
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


def cell(name: str, method: str, examples: int, model: Any, hf: Any, folder: Path) -> dict[str, Any]:
    """One task and method, searched and measured."""
    task = cd.load_task(name, model, examples=examples)
    held = task.held_out or task
    evaluator = Evaluator.build(Setup.of(model, held, model.graph))
    before = seconds_of_forward(hf, task)
    begun = time.process_time()
    more = {"state": folder / f"{name}-{method}.state"} if method == "matryoshka" else {}
    scores = METHODS[method](model, task, **more)
    spent = time.process_time() - begun
    after = seconds_of_forward(hf, task)
    rows = measured(evaluator, scores)
    nothing = evaluator.mean(evaluator.values(np.zeros_like(model.graph.allowed), "kl"))
    for path in more.values():
        path.unlink(missing_ok=True)
    return {
        "task": name,
        "method": method,
        "examples": len(task),
        "held out": len(held),
        "full": evaluator.mean(evaluator.values(model.graph.allowed)).to_dict(),
        "empty kl": nothing.to_dict(),
        "F": spent / ((before + after) / 2),
        "rows": rows,
    }


def one_size_cell(
    counterfactual: str, share: float, seed: int, model: Any, hf: Any, folder: Path
) -> dict[str, Any]:
    """matryoshka on IOI, finished at the one size that is measured."""
    task = cd.load_task("ioi", model, examples=ONE_SIZE_EXAMPLES, seed=seed, counterfactual=counterfactual)
    held, count = task.held_out or task, round(share * len(model.graph))
    before, begun = seconds_of_forward(hf, task), time.process_time()
    state = folder / f"one-size-{counterfactual}-{share:g}-{seed}.state"
    scores = cd.matryoshka(model, task, edges=count, seed=seed, state=state)
    spent = time.process_time() - begun
    after = seconds_of_forward(hf, task)
    evaluator = Evaluator.build(Setup.of(model, held, model.graph))
    found = row(evaluator, scores.best(count))
    state.unlink(missing_ok=True)
    return {
        "task": "ioi",
        "method": "matryoshka",
        "counterfactual": counterfactual,
        "seed": seed,
        "examples": len(task),
        "held out": len(held),
        "empty kl": evaluator.mean(evaluator.values(np.zeros_like(model.graph.allowed), "kl")).to_dict(),
        "F": spent / ((before + after) / 2),
        "rows": [found],
    }


def slow_cell(method: str, minutes: float, model: Any, hf: Any, folder: Path) -> dict[str, Any]:
    """A slow search at one size: measured where it ends in time, else its estimated cost."""
    task = cd.load_task(SLOW_TASK, model, examples=SLOW_EXAMPLES)
    count = round(SLOW_SHARE * len(model.graph))
    before, begun = seconds_of_forward(hf, task), time.process_time()
    seen = [0, 1]

    def progress(done: int, total: int) -> None:
        seen[:] = done, total
        if time.process_time() - begun > 60 * minutes and done < total:
            raise OutOfTime

    options: dict[str, Any] = {"threshold": 0.01} if method == "acdc" else {"edges": count}
    found: dict[str, Any] = {"task": SLOW_TASK, "method": method, "examples": len(task)}
    try:
        result = getattr(cd, method)(
            model, task, progress=progress, state=folder / f"{method}.state", **options
        )
    except OutOfTime:
        share = _weighted(model.graph, seen[0]) if method == "acdc" else seen[0] / seen[1]
        return found | {
            "F": (time.process_time() - begun) / before / max(share, 1e-9),
            "share": share,
            "rows": [],
        }
    spent = time.process_time() - begun
    evaluator = Evaluator.build(Setup.of(model, task.held_out or task, model.graph))
    circuit = result if isinstance(result, cd.Circuit) else result.best(count)
    return found | {
        "F": spent / before,
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


# ------------------------------------------------------------------ the table


def table(cells: list[dict[str, Any]]) -> Iterator[str]:
    """Lines of Markdown."""
    for name in TASKS:
        mine = [
            each
            for each in cells
            if each["task"] == name and each["method"] in METHODS and "seed" not in each
        ]
        if not mine:
            continue
        one = mine[0]
        yield f"### {name}"
        yield ""
        yield (
            f"{one['examples']} prompts to search, {one['held out']} held out; F(M) {_number(one['full'])}; "
            f"empty circuit: KL {_number(one['empty kl'])}."
        )
        yield ""
        yield f"| method | F | {' | '.join(f'{share:.1%}' for share in SHARES)} |"
        yield f"| --- | --- |{' --- |' * len(SHARES)}"
        for each in mine:
            yield f"| {each['method']} | {each['F']:,.3g} | {' | '.join(map(_figures, each['rows']))} |"
        yield ""
    single = [each for each in cells if each["method"] == "matryoshka" and "seed" in each]
    if single:
        yield f"### matryoshka at one size: ioi, {ONE_SIZE_EXAMPLES} prompts"
        yield ""
        yield "| counterfactual | seed | edges | F | normalized; KL | KL of the empty circuit |"
        yield "| --- | --- | --- | --- | --- | --- |"
        for each in single:
            found, empty = each["rows"][0], each["empty kl"]["value"]
            figures = f"{found['edges']:,} | {each['F']:,.3g} | {_figures(found)} | {empty:.2f}"
            yield f"| {each['counterfactual']} | {each['seed']} | {figures} |"
        yield ""
    slow = [each for each in cells if each["method"] in SLOW]
    if slow:
        yield f"### Slow searches: {SLOW_TASK}, {SLOW_SHARE:.0%} of the edges, {SLOW_EXAMPLES} prompts"
        yield ""
        yield "| method | F | edges | normalized; KL |"
        yield "| --- | --- | --- | --- |"
        for each in slow:
            if each["rows"]:
                yield (
                    f"| {each['method']} | {each['F']:,.3g} | {each['rows'][0]['edges']:,} | "
                    f"{_figures(each['rows'][0])} |"
                )
            else:
                yield (
                    f"| {each['method']} | about {each['F']:,.2g} (estimated from {each['share']:.1%} "
                    "of it) | | |"
                )
        yield ""


def _number(figure: dict[str, float]) -> str:
    return str(Estimate(figure["value"], figure["low"], figure["high"]))


def _figures(found: dict[str, Any]) -> str:
    kept = found["normalized"]
    return f"{kept['value']:.2f} [{kept['low']:.2f}, {kept['high']:.2f}]; {found['kl']['value']:.2f}"


def main() -> None:
    """Run what is missing, then print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/real-quality"))
    parser.add_argument("--examples", type=int, default=64)
    parser.add_argument(
        "--minutes", type=float, default=10, help="that hybrid, edge_pruning and acdc may take each"
    )
    parser.add_argument(
        "--only",
        nargs="*",
        help="cells, such as ioi:eap_ig, ioi-abc:0.01:0 or subject_verb_agreement:acdc; by default all",
    )
    parser.add_argument("--page", type=Path, help="write the table into this page, between its marks")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    wanted = {
        f"{task}:{method}": partial(cell, task, method, given.examples)
        for method in METHODS
        for task in TASKS
    }
    wanted |= {
        f"ioi-{name}:{share:g}:{seed}": partial(one_size_cell, name, share, seed)
        for name, share, seed in ONE_SIZE
    }
    wanted |= {f"{SLOW_TASK}:{method}": partial(slow_cell, method, given.minutes) for method in SLOW}
    paths = {name: given.out / f"{name.replace(':', '-').replace(' ', '-')}.json" for name in wanted}
    missing = [name for name in (given.only or wanted) if not paths[name].exists()]
    if missing:
        from transformers import AutoModelForCausalLM

        folder = smollm2()
        model, hf = (
            cd.load_model(folder),
            AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(),
        )
        for name in missing:
            print(name, flush=True)
            write_json(paths[name], wanted[name](model, hf, given.out))
    cells = [json.loads(path.read_text("utf-8")) for path in paths.values() if path.exists()]
    text = "\n".join(table(cells))
    if given.page is None:
        print(text)
        return
    before, _, rest = given.page.read_text("utf-8").partition(BEGIN)
    write_atomically(given.page, f"{before}{BEGIN}\n\n{text}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
