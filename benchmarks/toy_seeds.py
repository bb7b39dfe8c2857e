"""`toy` from other starts: what a folder of its seeds says on docs/universality.md, a section at a time.

    for seed in 1 2 3 4; do python benchmarks/train_toy.py --seed $seed --out SEEDS/$seed --checkpoints; done
    python benchmarks/toy_seeds.py digests|forming SEEDS [--page docs/universality.md]

SEEDS holds a folder for each seed, named by its number, as `train_toy.py` writes it. The weights are not shipped:
their digests are on the page. Each section is one function, from the folder to the text between the section's
marks on the page; pictures are written beside it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path

from pages import check, show
from toy_text import ROOT
from train_toy import STEPS

import circuitdiscovery as cd

DOCS = ROOT / "docs"
WEIGHTS = "model.safetensors"
TASKS = ("ioi", "induction", "greater_than")


def seeds(folder: Path) -> dict[int, Path]:
    """Seed -> its folder."""
    found = {int(path.name): path for path in folder.iterdir() if path.name.isdecimal()}
    return dict(sorted(found.items()))


# --- digests
# --------------------------------------------------------------------------------------------------------------


def digests(folder: Path) -> str:
    """The SHA-256 of each seed's weights."""
    rows = [
        f"| {seed} | `{sha256((path / WEIGHTS).read_bytes()).hexdigest()}` |"
        for seed, path in seeds(folder).items()
        if (path / WEIGHTS).exists()
    ]
    return "\n".join(["| seed | SHA-256 of model.safetensors |", "| --- | --- |", *rows]) + "\n"


# --- how circuits form
# --------------------------------------------------------------------------------------------------------------


def models_of(path: Path) -> dict[int, Path]:
    """Step -> the folder of the model, of a seed that was trained with checkpoints; the final model is the last."""
    found = cd.universality.checkpoint_folders(path)
    return found | ({STEPS: path} if (path / WEIGHTS).exists() else {})


def forming(folder: Path) -> str:
    """How the circuits of the final model form, of the first seed with checkpoints; IOI's as a table and a
    picture, the others in a line each."""
    seed, path = next((seed, path) for seed, path in seeds(folder).items() if list(path.glob("step-*")))
    models = models_of(path)
    last = cd.load_model(models[max(models)])
    text = ""
    for name in TASKS:
        task = cd.load_task(name, last)
        circuit = cd.acdc(last, task)
        circuit = circuit.with_roles(cd.explain(last, task, circuit).roles)
        found = cd.universality.checkpoints(models, circuit, task, search=name == TASKS[0])
        if name == TASKS[0]:
            found.plot(DOCS / f"{name}-forming.png")
            text += table(found) + "\n"
        text += f"- {line(found, seed)}\n"
    return text


def table(found: cd.universality.Forming) -> str:
    """The figures of each checkpoint."""
    roles = [f"{role}, {node}" for role, node in found.strongest.items()]
    scores = [f"any head's {score}" for score in found.steps[-1].highest]
    head = ["step", "model", "circuit", "no edges", "faithfulness", *roles, *scores, "overlap"]
    rows = [head, ["---:"] * len(head)]
    for each, overlap in zip(found.steps, found.overlap, strict=True):
        values = [each.roles[role].nodes[node] for role, node in found.strongest.items()]
        values += [value for _, value in each.highest.values()]
        known = str(each.faithfulness) if each.knows else "none"
        row = [f"{each.step:,}", str(each.full), f"{each.circuit:.2f}", f"{each.empty:.2f}", known]
        rows.append([*row, *(f"{value:.2f}" for value in [*values, overlap])])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def line(found: cd.universality.Forming, seed: int) -> str:
    """What a task's checkpoints say."""

    def since(step: int | None) -> str:
        return "not at the end" if step is None else f"from step {step:,} on"

    return (
        f"`{found.task}`, seed {seed}, {found.edges} of {found.edges_total} edges: known {since(found.known_from)}, "
        f"faithfulness at least .9 {since(found.faithful_from)}; at the end {found.steps[-1].faithfulness}."
    )


SECTIONS: Mapping[str, Callable[[Path], str]] = {"digests": digests, "forming": forming}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("section", choices=SECTIONS)
    parser.add_argument("folder", type=Path, metavar="SEEDS")
    parser.add_argument("--page", type=Path, help="write it there, between the section's marks")
    options = parser.parse_args()
    check(options.page, options.section)
    show(SECTIONS[options.section](options.folder), options.page, options.section)


if __name__ == "__main__":
    main()
