"""How many parts of its MLPs a behaviour of `toy` needs: neurons, features, principal directions side by side.

    python benchmarks/parts_on_toy.py [--out runs/parts-on-toy] [--examples 64] [--only KIND ...] [--page PAGE]

Every dictionary and every cell (a task and a kind of parts) is kept in the folder when it is done: a run that
was stopped goes on with the next one. At the end the table is printed, or written into the page between two
marks.

1. Parts of all MLPs: neurons; features of an autoencoder (TopK 8 of 512) and of a transcoder (the same) of each
   MLP, trained on generated text; principal directions of the MLP's output on that text, each with both signs,
   as a dictionary relu(u (x - mean)), relu(-u (x - mean)): it writes x without error.
2. They are ranked on the task's examples by the magnitude of their mean damage, integrated gradients, and
   circuits are measured on as many held-out ones: every edge is kept but those of the parts that are removed
   (resample). Faithfulness is normalized: 1 is the model, 0 is the model without what its MLPs write, the rest
   of each MLP included.
3. Figures: the fewest parts, by bisection, from which it is .9, where the rest (b_out of neurons; the error of
   dictionaries) is kept and where it is ablated, and what all parts give without the rest: the difference to 1
   is the error's share.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pages import check, show
from toy_text import MIXTURE, document, load_world, pieces

import circuitdiscovery as cd
from circuitdiscovery.engine.setup import Setup
from circuitdiscovery.files.disk import write_json
from circuitdiscovery.graph.nodes import parsed
from circuitdiscovery.measure.evaluator import Evaluator
from circuitdiscovery.search.unit_damages import NEURONS, features_of, line, unit_damages

TASKS = ("ioi", "subject_verb_agreement")
KINDS = {
    "neurons": "neurons",
    "autoencoder": "features, autoencoder",
    "transcoder": "features, transcoder",
    "principal": "principal directions, both signs",
}
DOCUMENTS, LONGEST = 5_000, 62  # of the texts: how many, and tokens of each at most
FAITHFUL = 0.9


def texts() -> list[str]:
    """Generated documents, those of the training of `toy`."""
    world, rng = load_world(), random.Random(0)
    found = (document(world, rng, MIXTURE) for _ in range(DOCUMENTS))
    return [text for text in found if len(pieces(text)) <= LONGEST]


def principal(acts: Any) -> cd.features.Dictionary:
    """Principal directions with both signs, as a dictionary."""
    values = acts.values
    _, _, rows = torch.linalg.svd(values - values.mean(0), full_matrices=False)
    both = torch.cat([rows, -rows])
    return cd.features.Dictionary(
        "relu", acts.site, "output", both, torch.zeros(len(both)), both, values.mean(0), subtracts_b_dec=True
    )


def dictionary(kind: str, node: str, model: Any, prompts: list[str], folder: Path) -> Any:
    """A dictionary of an MLP, trained or read."""
    own = folder / f"{kind}-{node}"
    if (own / "cfg.json").exists():
        return cd.features.load_sae(own)
    acts = cd.features.activations(model, prompts, node)
    if kind == "principal":
        found = principal(acts)
    elif kind == "autoencoder":
        found = cd.features.train_sae(acts, state=folder / f"{kind}-{node}.state")
    else:
        read = cd.features.activations(model, prompts, f"{node}.normed")
        found = cd.features.train_sae(read, target=acts, state=folder / f"{kind}-{node}.state")
    found.save(own)
    (folder / f"{kind}-{node}.state").unlink(missing_ok=True)
    return found


def ranked(model: Any, task: cd.Task, graph: cd.Graph, parts: dict[str, Any]) -> list[str]:
    """The names of the parts, the strongest first."""
    kinds = {
        parsed(node).layer: NEURONS if isinstance(part, str) else features_of(part, model.stream_unit)
        for node, part in parts.items()
    }
    damages = unit_damages(Setup.of(model, task), kinds, line("eap_ig"))
    found = list[tuple[float, str]]()
    for node in parts:
        split = graph.split_of(node)
        assert split is not None
        of_node = np.abs(damages[parsed(node).layer].mean(0))
        found += [
            (-float(of_node[n]), f"{node}/{part}") for n, part in zip(split.numbers, split.parts, strict=True)
        ]
    return [name for _, name in sorted(found)]


def without(graph: cd.Graph, names: set[str]) -> np.ndarray:
    """The mask of every edge but those of some sources and, where they read for themselves, into them."""
    mask = graph.allowed.copy()
    mask[[i for i, name in enumerate(graph.sources) if name in names]] = False
    mask[:, [i for i, name in enumerate(graph.receivers) if name in names]] = False
    return mask


def fewest(kept: Any, count: int) -> int | None:
    """The fewest parts that are faithful enough, by bisection; None where all are not."""
    if kept(count) < FAITHFUL:
        return None
    low, high = 0, count
    while high - low > max(1, high // 50):
        middle = (low + high) // 2
        low, high = (low, middle) if kept(middle) >= FAITHFUL else (middle, high)
    return high


def cell(name: str, kind: str, model: Any, examples: int, parts: dict[str, Any]) -> dict[str, Any]:
    """One task and one kind of parts."""
    begun = time.process_time()
    task = cd.load_task(name, model, examples=examples)
    graph = cd.split(model, parts, task=task)
    order = ranked(model, task, graph, parts)
    held = task.held_out
    assert held is not None
    evaluator = Evaluator.build(Setup.of(model, held, graph))
    rests = {f"{node}/rest" for node in parts}
    full, none = (evaluator.values(mask) for mask in (graph.allowed, without(graph, {*order, *rests})))

    def share(removed: set[str]) -> float:
        found, reason = evaluator.normalized(evaluator.values(without(graph, removed)), full, none)
        assert found is not None, reason
        return float(found)

    return {
        "task": name,
        "kind": kind,
        "examples": len(task),
        "held out": len(held),
        "parts": len(order),
        "with the rest": fewest(lambda n: share(set(order[n:])), len(order)),
        "without the rest": fewest(lambda n: share({*order[n:], *rests}), len(order)),
        "all without the rest": share(rests),
        "rest alone": share(set(order)),
        "seconds": time.process_time() - begun,
    }


def table(cells: list[dict[str, Any]]) -> Iterator[str]:
    """Lines of Markdown."""
    yield "| task | parts | active | for .9 | for .9, rest ablated | all, rest ablated | the rest alone |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for each in cells:
        few, alone = (
            "not reached" if each[name] is None else f"{each[name]}"
            for name in ("with the rest", "without the rest")
        )
        yield (
            f"| {each['task']} | {KINDS[each['kind']]} | {each['parts']:,} | {few} | {alone} | "
            f"{each['all without the rest']:.2f} | {each['rest alone']:.2f} |"
        )
    yield ""
    counts = ", ".join(f"{name} {each}" for name, each in _examples(cells).items())
    yield f"Held-out prompts: {counts}."


def _examples(cells: list[dict[str, Any]]) -> dict[str, int]:
    return {each["task"]: each["held out"] for each in cells}


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("runs/parts-on-toy"))
    parser.add_argument("--examples", type=int, default=64)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    check(options.page)
    options.out.mkdir(parents=True, exist_ok=True)
    model, prompts = cd.load_model("toy"), texts()
    cells = []
    for kind in options.only:
        parts: dict[str, Any] = {}
        for layer in range(model.n_layers):
            node = f"m{layer}"
            whole = kind == "neurons"
            parts[node] = kind if whole else dictionary(kind, node, model, prompts, options.out)
        for name in TASKS:
            path = options.out / f"{name}-{kind}.json"
            if not path.exists():
                write_json(path, cell(name, kind, model, options.examples, parts))
            cells.append(json.loads(path.read_text()))
            print(json.dumps(cells[-1]), flush=True)
    show("\n".join(table(sorted(cells, key=lambda each: TASKS.index(each["task"])))), options.page)


if __name__ == "__main__":
    main()
