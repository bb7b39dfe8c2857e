"""Regenerates docs/benchmark.md and its pictures: the planted and the toy suite with every method.

    python benchmarks/circuits.py [--out runs/benchmark-docs]

What was measured in the folder already is not measured again.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"
SUITES = ("planted", "toy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-docs"))
    out = parser.parse_args().out
    page = (DOCS / "benchmark.md").read_text("utf-8")
    for suite in SUITES:
        folder = out / suite
        command = [sys.executable, "-m", "circuitdiscovery", "benchmark", suite, "--out", str(folder), "--resume"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        table = (folder / "benchmark.md").read_text("utf-8").strip()
        begin, end = f"<!-- {suite} -->\n", f"\n<!-- end of {suite} -->"
        before, _, rest = page.partition(begin)
        page = f"{before}{begin}{table}{end}{rest.partition(end)[2]}"
        shutil.copy(folder / "benchmark.png", DOCS / f"benchmark-{suite}.png")
    (DOCS / "benchmark.md").write_text(page, "utf-8")


if __name__ == "__main__":
    main()
