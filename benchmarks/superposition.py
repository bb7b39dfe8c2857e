"""Which kinds of sparse dictionaries find directions in superposition, at equal L0.

    python benchmarks/superposition.py [--seeds 5] [--directions 128] [--width 64] [--active 4] [--l0 4] [--out DIR]

Directions of length 1 are drawn at random; each is in a row with the same small probability, with a size between
.5 and 1.5. A direction counts as found where a row of the decoder has a cosine of .9 or more with it. Of the
kinds with a weight of sparsity the weight is looked for at which L0 is the wanted one, by default the number of
active directions. The figures of each seed and kind are kept in a folder: the same call goes on.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import circuitdiscovery as cd

ROWS, COSINE = 20_000, 0.9
START = {"relu": 5.0, "gated": 4.6, "jumprelu": 0.7}  # weights of sparsity, where the search begins
NEAR, TRIALS = 0.03, 6  # of the wanted L0; how often a weight is tried


def superposed(seed: int, n: int, d: int, active: float) -> tuple[Tensor, Tensor]:
    """(directions [n, d], rows [ROWS, d])."""
    draw = torch.Generator().manual_seed(seed)
    directions = F.normalize(torch.randn(n, d, generator=draw), dim=1)
    present = torch.rand(ROWS, n, generator=draw) < active / n
    return directions, (present * (0.5 + torch.rand(ROWS, n, generator=draw))) @ directions


def trained(kind: str, x: Tensor, directions: Tensor, l0: int, seed: int, **how: Any) -> dict[str, Any]:
    """One dictionary's figures."""
    own: dict[str, Any] = {"k": l0} if kind == "topk" else how
    sae = cd.features.train_sae(x, kind=kind, n=2 * len(directions), seed=seed, **own)
    best = (F.normalize(sae.W_dec, dim=1) @ directions.T).amax(0)
    found = cd.features.evaluate_sae(sae, x)
    return {
        "kind": kind,
        "seed": seed,
        "sparsity": how.get("sparsity"),
        "l0": found.l0,
        "found": int((best >= COSINE).sum()),
        "worst": float(best.min()),
        "explained_variance": found.explained_variance,
        "dead": found.dead,
    }


def at_equal_l0(kind: str, x: Tensor, directions: Tensor, l0: int, seed: int) -> Iterator[dict[str, Any]]:
    """Trainings whose L0 comes nearer and nearer to the wanted one: L0 falls as the weight rises, about as a
    power of it."""
    log, slope, before = math.log(START.get(kind, 1.0)), -0.7, None
    for _ in range(1 if kind == "topk" else TRIALS):
        found = trained(kind, x, directions, l0, seed, sparsity=math.exp(log))
        yield found
        off = math.log(max(found["l0"], 0.1) / l0)
        if abs(off) < NEAR:
            return
        if before is not None and abs(log - before[0]) > 1e-6:
            slope = min(-0.05, (off - before[1]) / (log - before[0]))
        before = log, off
        log -= max(-1.5, min(1.5, off / slope))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    for name, default in (("seeds", 5), ("directions", 128), ("width", 64), ("active", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--l0", type=int)
    parser.add_argument("--out", type=Path, default=Path("runs/superposition"))
    given = parser.parse_args()
    wanted = given.l0 or given.active
    torch.set_num_threads(1)
    for seed in range(given.seeds):
        directions, x = superposed(seed, given.directions, given.width, given.active)
        for kind in ("topk", "relu", "gated", "jumprelu"):
            name = f"{given.directions}-{given.width}-{given.active}-{wanted}-{kind}-{seed}.json"
            path = given.out / name
            if not path.exists():
                every = list(at_equal_l0(kind, x, directions, wanted, seed))
                best = min(every, key=lambda each: abs(math.log(each["l0"] / wanted)))
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(best))
            row = json.loads(path.read_text())
            print(
                f"seed {seed}  {kind:<9} {row['found']:>4} of {given.directions}  worst cosine {row['worst']:.3f}"
                f"  L0 {row['l0']:.2f}  explained variance {row['explained_variance']:.3f}"
                f"  sparsity {row['sparsity']}  dead {row['dead']:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
