"""Linear classifiers of rows: which rows are held out, the fits, and the figures of the held-out ones.

- Several classes: softmax regression with a penalty l2/2 |w|^2 on all weights of standardised columns, by
  scipy's L-BFGS.
- Two classes: logistic regression with the same penalty on its weights w, which is softmax regression with
  twice the penalty, at whose optimum the classes have w/2 and -w/2; sparse, TransformerLens'
  `fit_sparse_probe`, which takes the k columns whose class means differ most on the training rows.
- Both weigh the classes equally. Where there are fewer rows than columns, the fit is made in the space that
  the training rows span: the penalty keeps the weights there, so that nothing changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.measure import intervals
from circuitdiscovery.measure.estimates import Estimate, drawn

HELD_OUT = 0.3  # of the rows, or of the groups' rows
_TRIES = 100


@dataclass(frozen=True, eq=False)
class Classifier:
    """A linear classifier: the class of x is the largest of `weights` x + `bias`.

    Args:
        weights: [classes, d], in the units of x.
        bias: [classes].
        columns: of a sparse one, which it reads; None: all.
    """

    weights: Tensor
    bias: Tensor
    columns: tuple[int, ...] | None = None

    def __call__(self, x: Tensor) -> np.ndarray:
        """[n], the number of each row's class."""
        return (x.to(self.weights) @ self.weights.T + self.bias).argmax(-1).numpy()


# ------------------------------------------------------------------ which rows are held out


def held_out(truth: np.ndarray, groups: np.ndarray | None, seed: int) -> np.ndarray:
    """[n] bool, about three tenths of each class; of groups, all rows or none.

    Args:
        truth: [n], numbers of classes from 0.
        groups: [n], numbers from 0.
        seed: of the order in which they are drawn.

    Raises:
        CircuitDiscoveryError: a class of fewer than two rows, or in fewer than two groups.
    """
    rng, counts = np.random.default_rng(seed), np.bincount(truth)
    wanted = np.clip(np.ceil(HELD_OUT * counts), 1, None)
    if groups is None:
        found = np.zeros(len(truth), dtype=bool)
        for number, size in enumerate(wanted.astype(int)):
            found[rng.permutation(np.flatnonzero(truth == number))[:size]] = True
        return found
    table = np.zeros((int(groups.max()) + 1, len(counts)))
    np.add.at(table, (groups, truth), 1)  # [groups, classes]: how many rows
    for _ in range(_TRIES):
        taken, now = np.zeros(len(table), dtype=bool), np.zeros(len(counts))
        for group in rng.permutation(len(table)):
            if _off(now + table[group], wanted, counts) < _off(now, wanted, counts):
                taken[group], now = True, now + table[group]
        if (now > 0).all() and (now < counts).all():
            return taken[groups]
    raise CircuitDiscoveryError(
        "the groups cannot be split so that every label is on both sides: each label needs rows in two "
        "groups, and rows of the same tokens are in one"
    )


def _off(now: np.ndarray, wanted: np.ndarray, counts: np.ndarray) -> float:
    """How far the held-out rows of each class are from what is wanted."""
    return float((((now - wanted) / counts) ** 2).sum())


# ------------------------------------------------------------------ fits


def fit(x: Tensor, truth: np.ndarray, test: np.ndarray, classes: int, k: int | None, l2: float) -> Classifier:
    """A classifier of the rows that are not held out.

    Args:
        x: [n, d].
        truth: [n], numbers of classes from 0.
        test: [n] bool, which rows are held out.
        classes: how many there are; each has rows on both sides where there are two.
        k: of a sparse one, how many columns.
        l2: the penalty.

    Raises:
        CircuitDiscoveryError: it does not converge.
    """
    train, truth = x.double().cpu()[torch.from_numpy(~test)], truth[~test]
    if k is not None:
        return _sparse(train, truth, k, l2)
    mean, scale = train.mean(0), train.std(0, correction=0)
    scale = torch.where(scale > 0, scale, 1.0)
    values, basis = (train - mean) / scale, None
    if len(values) < values.shape[1]:
        basis = torch.linalg.svd(values, full_matrices=False)[2]  # [rank, d]
        values = values @ basis.T
    rows, bias = _softmax(values, truth, classes, l2 if classes > 2 else 2 * l2)
    if classes == 2:  # w is the second row less the first
        rows, bias = rows - rows[0], bias - bias[0]
    rows = (rows if basis is None else rows @ basis) / scale
    return Classifier(rows, bias - rows @ mean)


def _sparse(x: Tensor, truth: np.ndarray, k: int, l2: float) -> Classifier:
    """A fit of two classes to rows that are all for training. TransformerLens holds half of its rows out: it
    is given each row twice, in two groups, of which it holds out one."""
    from transformer_lens.tools.analysis.sparse_probing import SparseProbeConvergenceError, fit_sparse_probe

    try:
        found = fit_sparse_probe(
            x.repeat(2, 1),
            torch.from_numpy(truth).repeat(2),
            k=k,
            test_fraction=0.5,
            groups=torch.arange(2).repeat_interleave(len(x)),
            preprocess="standardize",
            std_floor=0.0,
            l2_strength=l2,
        )
    except SparseProbeConvergenceError as error:
        raise CircuitDiscoveryError(f"the probe does not converge: {error}; a larger l2 may help") from None
    row = torch.zeros(x.shape[1], dtype=torch.float64)
    row[found.selected_features] = found.coefficients / found.preprocess_scale
    bias = found.intercept - row[found.selected_features] @ found.preprocess_mean
    columns = tuple(sorted(found.selected_features.tolist()))
    zero = torch.zeros_like(row)
    return Classifier(torch.stack([zero, row]), torch.stack([torch.zeros_like(bias), bias]), columns)


def _softmax(x: Tensor, truth: np.ndarray, classes: int, l2: float) -> tuple[Tensor, Tensor]:
    """([classes, d], [classes]), centred over the classes, of rows that are all for training."""
    from scipy.optimize import minimize
    from scipy.special import logsumexp

    rows, counts = x.numpy(), np.bincount(truth, minlength=classes)
    weight = 1 / (counts[truth] * (counts > 0).sum())  # [n], each class the same in all
    goal = np.eye(classes)[truth] * weight[:, None]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        own = flat.reshape(classes, -1)
        logits = rows @ own[:, :-1].T + own[:, -1]
        logs = logits - logsumexp(logits, axis=1, keepdims=True)
        error = weight[:, None] * np.exp(logs) - goal
        slope = np.concatenate([error.T @ rows + l2 * own[:, :-1], error.sum(0)[:, None]], axis=1)
        return float(-(goal * logs).sum() + l2 / 2 * (own[:, :-1] ** 2).sum()), slope.ravel()

    start = np.zeros(classes * (rows.shape[1] + 1))
    options = {"maxiter": 5000, "maxfun": 10000, "gtol": 1e-7, "ftol": 1e-14, "maxcor": 30}
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options=options)
    own = torch.from_numpy(found.x.reshape(classes, -1))
    own = own - own.mean(0)
    if not found.success or not bool(torch.isfinite(own).all()):
        raise CircuitDiscoveryError(f"the probe does not converge: {found.message}; a larger l2 may help")
    return own[:, :-1], own[:, -1]


# ------------------------------------------------------------------ figures of the held-out rows


def share_right(right: np.ndarray, units: np.ndarray | None, seed: int = 0) -> Estimate:
    """The share of rows that are right.

    Clopper and Pearson's interval of independent rows; of groups the bootstrap over them, and, where all rows
    are right or none, Clopper and Pearson's as if each group were one row.

    Args:
        right: [n] bool.
        units: [n], the number of each row's group; None: each row is one.
        seed: of the bootstrap.
    """
    if units is None:
        return intervals.share(int(right.sum()), len(right))
    parts, sizes = _summed(right[:, None], units)
    found = intervals.clipped(intervals.ratio(parts[:, 0], sizes, drawn(len(sizes), seed)), 0.0, 1.0)
    if 0 < float(found) < 1:
        return found
    return intervals.share(round(float(found) * len(sizes)), len(sizes))


def more_right(right: np.ndarray, other: np.ndarray, units: np.ndarray | None, seed: int = 0) -> Estimate:
    """The share of rows that are right, minus another share of the same rows, by the bootstrap.

    Where no unit differs from another, the limits are as far as those of a share of 1.

    Args:
        right, other: [n], from 0 to 1.
        units, seed: as for `share_right`.
    """
    own = np.arange(len(right)) if units is None else units
    parts, sizes = _summed((right * 1.0 - other)[:, None], own)
    found = intervals.clipped(intervals.ratio(parts[:, 0], sizes, drawn(len(sizes), seed)), -1.0, 1.0)
    if found.low < found.high:
        return found
    wide = 1 - intervals.share(len(sizes), len(sizes)).low
    return intervals.clipped(Estimate(float(found), float(found) - wide, float(found) + wide), -1.0, 1.0)


def f1(
    truth: np.ndarray, found: np.ndarray, classes: Sequence[int], units: np.ndarray | None, seed: int = 0
) -> Estimate:
    """F1 = 2 TP / (2 TP + FP + FN), the mean over classes, by the bootstrap of what each unit moves it by
    (the delta method).

    Where no row is wrong, its lower limit is that of the share of the units of the rarest class.

    Args:
        truth, found: [n], numbers of classes.
        classes: which are meant.
        units, seed: as for `share_right`.
    """
    own = np.arange(len(truth)) if units is None else units
    true = np.stack([(truth == number) & (found == number) for number in classes], 1).astype(float)
    either = np.stack([(truth == number).astype(float) + (found == number) for number in classes], 1)
    (tops, _), (bottoms, _) = _summed(2 * true, own), _summed(either, own)
    whole = np.where(bottoms.mean(0) > 0, bottoms.mean(0), 1.0)
    values = tops.mean(0) / whole  # [classes]
    if (truth == found).all():
        fewest = min(len(np.unique(own[truth == number])) for number in np.unique(truth))
        return intervals.share(fewest, fewest)
    each = values.mean() + ((tops - values * bottoms) / whole).mean(1)
    return intervals.clipped(intervals.mean(each, drawn(len(each), seed)), 0.0, 1.0)


def _summed(values: np.ndarray, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """([units, m] sums, [units] numbers of rows) of [n, m] values."""
    _, where = np.unique(units, return_inverse=True)
    sums = np.zeros((int(where.max()) + 1, values.shape[1]))
    np.add.at(sums, where, values)
    return sums, np.bincount(where).astype(float)
