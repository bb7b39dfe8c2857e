"""NaN and infinity are refused where they are first seen, by row: a
search would keep every edge by them, or none.

Every metric value that is computed anywhere is looked at here, and the logits of the runs that everything is
compared with: the clean run, and the one with every edge replaced. All of these are computed anyway, before a
search takes its first decision. A search that descends looks at each step's gradient as well.

Where those two runs are the same but for rounding there is nothing to explain, and
nothing is measured in shares of their difference.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from circuitdiscovery.errors import CircuitDiscoveryError

_PLACES = 4  # units in the last place


def finite_values(values: Tensor, rows: Tensor, metric: str) -> Tensor:
    """[..., N] values of a metric on some rows, where they are finite.

    Raises:
        CircuitDiscoveryError: one is NaN or infinite; names the first row.
    """
    right = values.detach().isfinite()
    if bool(right.all()):
        return values
    column = _first(right, rows)
    wrong = values.detach()[..., column][~right[..., column]].flatten()[0].item()
    raise CircuitDiscoveryError(
        f"row {int(rows[column])}: metric {metric!r} is {wrong}, and not a finite number; leave the row out"
    )


def finite_logits(logits: Tensor, rows: Tensor | Sequence[int], run: str) -> Tensor:
    """[N, vocabulary] logits of some rows, where none is NaN.

    Args:
        logits: at the answer's position.
        rows: their numbers in the task.
        run: which run they are of, for the error: `clean` or `replaced`.

    Raises:
        CircuitDiscoveryError: one is NaN; names the first row.
    """
    right = ~logits.detach().isnan().any(-1)  # [N]
    if bool(right.all()):
        return logits
    row = int(rows[_first(right, rows)])
    raise CircuitDiscoveryError(
        f"row {row}: the {run} run's logits are not numbers (NaN); leave the row out, or try dtype float32"
    )


def finite_gradient(gradient: Tensor, rows: Tensor) -> Tensor:
    """A loss's gradient on some rows together, where all of it is finite.

    Raises:
        CircuitDiscoveryError: it is not; names the rows.
    """
    if bool(gradient.isfinite().all()):
        return gradient
    raise CircuitDiscoveryError(
        f"the gradient of rows {', '.join(map(str, rows.tolist()))} is not finite; leave them out, or try "
        "dtype float32"
    )


def rounding(logits: Tensor, dtype: torch.dtype, metric: str = "logit_diff") -> Tensor:
    """[N]: below what a metric of two runs of the same cannot be told apart, from
    [..., N, vocabulary] logits of one of them.

    A run's logits are right to a few units in the last place of the largest; a probability
    moves by no more than a quarter of that.
    """
    largest = logits.detach().abs().amax(-1).double()
    largest = largest.reshape(-1, largest.shape[-1]).amax(0)
    slope = 0.25 if metric in ("probability", "prob_diff", "accuracy") else 1.0
    return slope * _PLACES * torch.finfo(dtype).eps * largest


def _first(right: Tensor, rows: Tensor | Sequence[int]) -> int:
    """The column of the least row that is not right in any version."""
    wrong = (~right).reshape(-1, right.shape[-1]).any(0).nonzero().flatten().tolist()
    return min(wrong, key=lambda column: int(rows[column]))
