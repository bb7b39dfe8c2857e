"""How the cost of the engine grows with batch, length, depth and width, with the fitted exponents.

    python benchmarks/growth.py [--threads 2]

Each axis is varied alone around a random GPT-2 of 6 layers and 6 heads (d_model 384, vocabulary 1,000) on 16
prompts of 16 tokens. A figure is the median time over that of the axis' first size; the exponent is the slope
of a straight line through the logarithms. F is one plain Hugging Face forward.
"""

from __future__ import annotations

import argparse
import datetime
from dataclasses import replace

import numpy as np
import torch
from workload import Size, Workload, machine, seconds

BASE = Size(layers=6, heads=6, vocabulary=1000)
AXES = {
    "prompts": ("batch, prompts", (8, 16, 32, 64, 128)),
    "length": ("length, tokens", (8, 16, 32, 64, 128)),
    "layers": ("depth, layers", (3, 6, 12, 24)),
    "heads": ("width, heads of 64", (3, 6, 12, 24)),
}
ROWS = {"F": "F", "eap": "EAP", "eap_ig": "EAP-IG", "half": "random half"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{datetime.date.today()}, {machine()}\n")
    print(f"| | sizes | {' | '.join(ROWS.values())} | edges |")
    print("| --- " * (len(ROWS) + 3) + "|")
    for axis, (name, sizes) in AXES.items():
        taken: dict[str, list[float]] = {row: [] for row in ROWS}
        edges = []
        for value in sizes:
            work = Workload(replace(BASE, **{axis: value}))
            for row, each in seconds(work.rows(list(ROWS)), arguments.repetitions).items():
                taken[row].append(each)
            edges.append(len(work.model.graph))
        cells = [f"{_growth(each)}, exponent {_slope(sizes, each):.2f}" for each in taken.values()]
        print(
            f"| {name} | {', '.join(map(str, sizes))} | {' | '.join(cells)} | {_growth(edges)} |", flush=True
        )


def _growth(values: list[float] | list[int]) -> str:
    return " : ".join(f"{value / values[0]:.3g}" for value in values)


def _slope(sizes: tuple[int, ...], values: list[float]) -> float:
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


if __name__ == "__main__":
    main()
