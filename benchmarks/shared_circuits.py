"""IOI in several models beside each other: `toy`, other seeds of it, SmolLM2-135M and Gemma 3 270M.

`python benchmarks/shared_circuits.py --seeds FOLDER --page docs/universal-circuits.md` finds each model's
circuit by `matryoshka`, the roles of its heads, aligns all of them and writes the page with a picture. FOLDER
holds what `train_toy.py --seed N --out FOLDER/N` wrote. What was found is kept in --out; models that are not
there are left out.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pages import check, show
from real_models import MODELS, folder_of

import circuitdiscovery as cd
from circuitdiscovery.universality import SharedCircuits, circuits

TASK = "ioi"
TOY_EDGES = 60
TOY_LAYERS = 4
SHARE = 0.01  # of the edges of a real model
EXPLAINED = 30  # of the strongest nodes: their heads' roles are looked for
PICTURES = {"ioi-toy-seed-1.png": "seed 1", "ioi-toy-smollm2.png": "smollm2-135m"}  # beside toy
LOG = logging.getLogger("shared_circuits")


@dataclass(frozen=True)
class Found:
    """A model's circuit, with its roles, and how many edges the model has and the circuit keeps of the task."""

    model: cd.Model
    circuit: cd.Circuit
    figures: Mapping[str, str]


def folders(seeds: Path | None) -> dict[str, str]:
    """label -> what `load_model` takes, of the models that are there."""
    found = {"toy": "toy"}
    if seeds is not None:
        trained = sorted(seeds.glob("*/model.safetensors"), key=lambda path: int(path.parent.name))
        found |= {f"seed {path.parent.name}": str(path.parent) for path in trained}
    return found | {name: str(folder_of(MODELS[name])) for name in ("smollm2-135m", "gemma3-270m")}


def found_in(label: str, folder: str, out: Path) -> Found:
    """A model's circuit, found now if it was not before."""
    name, model = label.replace(" ", "-"), cd.load_model(folder)
    saved, noted = out / f"{name}.json", out / f"{name}-figures.json"
    if not noted.exists():
        start, task = time.process_time(), cd.load_task(TASK, model)
        real = model.n_layers > TOY_LAYERS
        edges = round(SHARE * len(model.graph)) if real else TOY_EDGES
        scores = cd.matryoshka(model, task, edges=edges, state=out / f"{name}.state")
        circuit, whole = scores.top(edges), len(model.graph)
        LOG.info("%s: searched, %.0f s", label, time.process_time() - start)
        kept = cd.curve(model, task, scores, fractions=(0, edges / whole, 1)).normalized[1]
        heads = [node for node in circuit.strongest(EXPLAINED) if node.startswith("a")]
        roles = cd.explain(model, task, circuit, effort="quick" if real else "full", nodes=heads).roles
        circuit.with_roles(roles).save(saved)
        noted.write_text(json.dumps({"edges": f"{edges:,} of {whole:,}", "kept": str(kept)}))
        LOG.info("%s: measured, %.0f s", label, time.process_time() - start)
    return Found(model, cd.load_circuit(saved), json.loads(noted.read_text()))


def page(models: Mapping[str, Found], shared: SharedCircuits) -> str:
    """The tables."""
    lines = ["| model | edges | normalized faithfulness |", "| --- | --- | --- |"]
    lines += [
        f"| {label} | {each.figures['edges']} | {each.figures['kept']} |" for label, each in models.items()
    ]
    labels = list(models)
    lines += ["", f"| role | {' | '.join(labels)} |", f"| --- |{' --- |' * len(labels)}"]
    for role, nodes in sorted(shared.roles.items(), key=lambda each: -len(each[1])):
        its = " | ".join(", ".join(nodes.get(label, ())) or "-" for label in labels)
        lines.append(f"| {role} | {its} |")
    lines += ["", "| models | aligned nodes | shared edges (Jaccard) | random alignments | by depth alone |"]
    lines += ["| --- | --- | --- | --- | --- |"]
    lines += [
        f"| {each.a}, {each.b} | {len(each.alignment)} | {each.jaccard} | {each.null} | {each.null_by_depth} |"
        for each in shared.between
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Find, compare, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/shared-circuits"))
    parser.add_argument("--only", nargs="*", help="some of the models, to find their circuits alone")
    parser.add_argument("--page", type=Path)
    parser.add_argument("--pictures", type=Path, help="a folder: toy beside a seed, and beside SmolLM2")
    given = parser.parse_args()
    check(given.page)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    given.out.mkdir(parents=True, exist_ok=True)
    there = folders(given.seeds)
    if given.only:
        for label in given.only:
            found_in(label, there[label], given.out)
        return
    models = {label: found_in(label, folder, given.out) for label, folder in there.items()}
    start = time.process_time()
    shared = circuits({label: (each.model, each.circuit) for label, each in models.items()}, TASK)
    LOG.info("compared, %.0f s", time.process_time() - start)
    show(page(models, shared), given.page)
    for name, other in PICTURES.items():
        if given.pictures is not None and other in models:
            some = {label: (models[label].model, models[label].circuit) for label in ("toy", other)}
            circuits(some, TASK).draw(given.pictures / name)


if __name__ == "__main__":
    main()
