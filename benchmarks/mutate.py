"""Break inputs, seeded, and see what comes of each: a result, one
clear line, or a fault. Slow; not part of CI.

    python benchmarks/mutate.py [--count 1600] [--seed 0] [--kind config ...]

It prints a table, and every fault with the seed that makes it again; the exit status is 1 where there is one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from mutations import Whole, outcome  # pyright: ignore[reportMissingImports]


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=1600, help="inputs in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", action="append", help="this kind only; repeat it for more")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        kinds = Whole.made(Path(place)).kinds()
        chosen = [name for name in kinds if asked.kind is None or name in asked.kind]
        counts, faults = {name: Counter[str]() for name in chosen}, []
        for number in range(asked.count):
            name = chosen[number % len(chosen)]
            seed = f"{asked.seed} {name} {number}"
            told = outcome(kinds[name], seed, Path(place) / "input")
            counts[name][told if told in ("result", "refused") else "fault"] += 1
            if told not in ("result", "refused"):
                faults.append(f"{seed!r}: {told}")
    print(f"{'kind':<20} {'result':>7} {'refused':>8} {'fault':>6}")
    for name, found in counts.items():
        print(f"{name:<20} {found['result']:>7} {found['refused']:>8} {found['fault']:>6}")
    print("\n".join(faults))
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
