"""The neurons of a real model that matter most to a task, and what they write.

    python benchmarks/real_neurons.py [--model smollm2-135m] [--top 50] [--page docs/real-neurons.md]

By integrated gradients on 64 prompts; the damage of the chosen ones on 64 held-out prompts, with 95% intervals.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from pages import check, show
from real_models import MODELS, folder_of

import circuitdiscovery as cd

TASKS = ("subject_verb_agreement", "ioi")
SHOWN, LONGEST = 4, 12  # tokens, and characters of one


def table(model: cd.Model, name: str, top: int) -> Iterator[str]:
    """Lines of Markdown."""
    task = cd.load_task(name, model, examples=64)
    found = cd.neurons(model, task, top=top, method="eap_ig")
    layers = sorted({int(name.partition("/")[0][1:]) for name in found.names})
    yield f"### {name}"
    yield ""
    yield (
        f"{top} neurons in {len(layers)} layers (m{layers[0]} to m{layers[-1]}); damage to {found.metric}, "
        f"{found.ablation} ablation, measured on {found.measured} held-out prompts."
    )
    yield ""
    yield "| neuron | damage | raises | lowers |"
    yield "| --- | --- | --- | --- |"
    for neuron, damage in found.damages.items():
        ends = (_shown(each[neuron]) for each in (found.promoted, found.suppressed))
        yield f"| {neuron} | {damage} | {' | '.join(ends)} |"
    yield ""


def _shown(tokens: tuple[tuple[str, float], ...]) -> str:
    words = (repr(token)[1:-1][:LONGEST].replace("|", "\\|").replace("`", "'") for token, _ in tokens[:SHOWN])
    return " ".join(f"`{word}`" for word in words)


def main() -> None:
    """Print the tables, or write them into a page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, default="smollm2-135m")
    parser.add_argument("--top", type=int, default=50)
    parser.add_argument("--page", type=Path, help="write the tables into this page, between its marks")
    given = parser.parse_args()
    check(given.page)
    model = cd.load_model(folder_of(MODELS[given.model]))
    show("\n".join(line for name in TASKS for line in table(model, name, given.top)), given.page)


if __name__ == "__main__":
    main()
