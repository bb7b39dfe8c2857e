"""Regenerates docs/benchmark.md and its pictures: the planted and the toy suite with every method, and how
stable and how sure the circuits of the bundled model are.

    python benchmarks/circuits.py [--out runs/benchmark-docs]

What was measured in the folder already is not measured again.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import circuitdiscovery as cd

DOCS = Path(__file__).resolve().parent.parent / "docs"
RUNS = 10  # of each search
LABELS = {"examples": "draws of the examples", "seeds": "seeds", "order": "edge orders"}
SEARCHES: dict[str, dict[str, Callable[..., cd.Circuit]]] = {  # by what varies
    "examples": {
        "acdc, threshold .002": lambda model, task: cd.acdc(model, task, threshold=0.002),
        "eap_ig, 62 edges": lambda model, task: cd.eap_ig(model, task).top(62),
        "exact, 62 edges": lambda model, task: cd.exact(model, task).top(62),
    },
    "seeds": {
        "acdc, threshold .002, prompts by the seed": lambda model, task, seed: cd.acdc(
            model, cd.load_task("ioi", model, examples=32, seed=seed), threshold=0.002
        ),
        "edge_pruning, 62 edges": lambda model, task, seed: cd.edge_pruning(
            model, task, edges=62, seed=seed
        ).top(62),
    },
    "order": {
        "acdc, threshold .002": lambda model, task, order: cd.acdc(model, task, threshold=0.002, order=order)
    },
}


def suite(name: str, out: Path) -> str:
    """The table of a suite; its picture goes to docs/."""
    command = [sys.executable, "-m", "circuitdiscovery", "benchmark", name, "--out", str(out), "--resume"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    shutil.copy(out / "benchmark.png", DOCS / f"benchmark-{name}.png")
    return (out / "benchmark.md").read_text("utf-8").strip()


def stability(model: cd.Model, task: cd.Task) -> str:
    """How far runs of the same search agree."""
    rows = [
        "| search | runs over | edges | Jaccard of edges | of nodes | in every run | in any run |",
        "| --- " * 7 + "|",
    ]
    for over, searches in SEARCHES.items():
        for name, search in searches.items():
            found: Any = cd.stability(search, model, task, over=over, runs=RUNS)
            sizes = [len(circuit) for circuit in found.circuits]
            edges = f"{min(sizes)} to {max(sizes)}" if len(set(sizes)) > 1 else str(sizes[0])
            shares = (
                f"{found.edge_jaccard} | {found.node_jaccard} | {len(found.in_all)} | {len(found.in_any)}"
            )
            rows.append(f"| {name} | {RUNS} {LABELS[over]} | {edges} | {shares} |")
    return "\n".join(rows)


def hypotheses(model: cd.Model) -> str:
    """The tests of a circuit for each task."""
    parts = []
    for name in ("ioi", "greater_than"):
        task = cd.load_task(name, model)
        circuit = cd.hybrid(model, task, edges=47).top(47)
        parts.append(f"hybrid, 47 edges, {name}:\n\n```log\n{cd.hypothesis_tests(model, task, circuit)}\n```")
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-docs"))
    out = parser.parse_args().out
    model = cd.load_model("toy")
    sections: dict[str, Callable[[], str]] = {
        "planted": lambda: suite("planted", out / "planted"),
        "toy": lambda: suite("toy", out / "toy"),
        "stability": lambda: stability(model, cd.load_task("ioi", model, examples=32)),
        "hypotheses": lambda: hypotheses(model),
    }
    page = (DOCS / "benchmark.md").read_text("utf-8")
    for name, make in sections.items():
        kept = out / f"{name}.md"
        if not kept.exists():
            text = make()
            kept.write_text(text, "utf-8")
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        before, _, rest = page.partition(begin)
        page = f"{before}{begin}\n\n{kept.read_text('utf-8')}\n\n{end}{rest.partition(end)[2]}"
    (DOCS / "benchmark.md").write_text(page, "utf-8")


if __name__ == "__main__":
    main()
