"""How often the interval of `stability` holds the truth where runs share little, or all share the same.

    python benchmarks/coverage_of_pairs.py [--draws 2000] [--page docs/coverage.md]

Leaving out a run then often changes nothing, and the jackknife has no width. Each run here finds edges at
random, so that the truth, the mean Jaccard index of two runs, is known; no model is run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
from pages import check, show

from circuitdiscovery.measure.intervals import mean_over_pairs

EDGES = 479  # toy's
PAIRS = 200_000  # of runs, for the truth

Draw = Callable[[np.random.Generator, int], np.ndarray]  # of so many runs: bool [runs, edges]


def found(rng: np.random.Generator, runs: int, *, fixed: int = 0, others: int) -> np.ndarray:
    """Runs of which each finds some edges that all find, and others at random."""
    place = rng.random((runs, EDGES - fixed)).argsort(1).argsort(1)
    return np.hstack([np.ones((runs, fixed), dtype=bool), place < others])


def either(rng: np.random.Generator, runs: int) -> np.ndarray:
    """Runs of which each finds one of two circuits that share nothing."""
    return np.eye(2, dtype=bool)[rng.integers(2, size=runs)]


def jaccard(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of rows of edges."""
    return (a & b).sum(1) / (a | b).sum(1)


CASES: list[tuple[str, int, Draw]] = [
    ("2 edges", 5, partial(found, others=2)),
    ("2 edges", 10, partial(found, others=2)),
    ("5 edges", 5, partial(found, others=5)),
    ("5 edges", 10, partial(found, others=5)),
    ("20 edges", 10, partial(found, others=20)),
    ("one edge that all find, and one more", 5, partial(found, fixed=1, others=1)),
    ("one of two circuits that share nothing", 10, either),
]


def table(draws: int) -> Iterator[str]:
    """Lines of Markdown."""
    yield "| each run finds | runs | no two share an edge | covered | covered by the jackknife alone |"
    yield "| --- | --- | --- | --- | --- |"
    for name, runs, draw in CASES:
        rng = np.random.default_rng(0)
        some = [(draw(rng, 2000), draw(rng, 2000)) for _ in range(PAIRS // 2000)]
        truth = float(np.mean([jaccard(a, b).mean() for a, b in some]))
        first, second = np.array(list(combinations(range(runs), 2))).T
        nothing = held = alone = 0
        for _ in range(draws):
            circuits = draw(rng, runs)
            pairs = jaccard(circuits[first], circuits[second])
            here = mean_over_pairs(pairs, runs)
            holds = here.low <= truth <= here.high
            # what each run shares with the others
            of_run = np.bincount(first, pairs, runs) + np.bincount(second, pairs, runs)
            nothing, held = nothing + (not pairs.any()), held + holds
            alone += holds and not np.allclose(of_run, of_run[0])
        yield f"| {name} | {runs} | {nothing / draws:.3f} | {held / draws:.3f} | {alone / draws:.3f} |"
    yield ""


def main() -> None:
    """Print, or write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--page", type=Path, help="write the table into this page, between its marks")
    given = parser.parse_args()
    check(given.page, "pairs")
    show("\n".join(table(given.draws)), given.page, "pairs")


if __name__ == "__main__":
    main()
