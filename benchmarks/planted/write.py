"""Writes the planted circuits into graphs/planted/ and proves each by intervention on its problem's probe.

    python benchmarks/planted/write.py

Prints one Markdown table: how far a logit moves, at most over the probe, when everything but the true edges
is resampled, beside the stated bound; and the smallest share of examples whose answer's lead changes by more
than 1 when a single true edge is resampled.
"""

from __future__ import annotations

import circuitdiscovery as cd
from circuitdiscovery.benchmark.problems.problem import Problem
from circuitdiscovery.benchmark.problems.suite import planted
from circuitdiscovery.files.disk import data_folder


def proof(problem: Problem) -> tuple[float, float]:
    """(largest change of a logit with the true edges alone, smallest share of
    examples that a single true edge matters on).
    """
    model, probe, truth = problem.model, problem.probe, problem.truth
    full = cd.run_circuit(model, probe, cd.Circuit.full(model.graph))
    alone = cd.run_circuit(model, probe, truth)
    shares = []
    for edge in truth.edges:
        without = cd.run_circuit(model, probe, truth - cd.Circuit.from_edges(model.graph, [edge]))
        shares.append(float(((without - full).abs().amax(-1) > 1).float().mean()))
    return float((alone - full).abs().max()), min(shares)


def main() -> None:
    print(
        "| problem | true edges | of | change with these alone | bound | least share a single edge "
        "matters on |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for name, make in planted().items():
        problem = make()
        change, share = proof(problem)
        print(
            f"| {name} | {len(problem.truth)} | {len(problem.truth.graph):,} | {change:.2g} | "
            f"{problem.bound:g} | {share:.2f} |"
        )
        if "-hard" not in name:
            path = data_folder("graphs") / "planted" / f"{name}.json"
            path.parent.mkdir(exist_ok=True)
            problem.truth.save(path)


if __name__ == "__main__":
    main()
