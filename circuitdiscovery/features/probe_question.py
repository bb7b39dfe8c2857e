"""What probes are asked: labels as numbers, the rows that are held out, and control labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from circuitdiscovery.errors import CircuitDiscoveryError, shown
from circuitdiscovery.features import probe_fit
from circuitdiscovery.features.labelling import Labels
from circuitdiscovery.features.places import Places

DRAWS = 4  # of control labels
_TRIES = 100  # to draw some that can be learnt
_MOST_CLASSES = 1000


@dataclass(frozen=True, eq=False)
class Question:
    """Labels with a split and control labels, the same for every site.

    Args:
        label: its name.
        classes: the labels, sorted.
        truth: [n], numbers of classes.
        units: [n], the number of each row's group; None: rows are alone.
        test: [n] bool, which rows are held out.
        controls: [n] each, control labels.
        shared: of the held-out rows, whose type is in training.
    """

    label: str
    classes: tuple[str, ...]
    truth: np.ndarray
    units: np.ndarray | None
    test: np.ndarray
    controls: tuple[np.ndarray, ...]
    shared: float | None

    @classmethod
    def of(cls, at: Places, labels: Any, control: Any, groups: Any, draws: int, seed: int) -> Question:
        """The question for the rows of activations at some places.

        Raises:
            CircuitDiscoveryError: another number of labels, types or groups than rows; labels of one kind.
        """
        own = labels if isinstance(labels, Labels) else None
        values, whole = _each(at, own.values if own else labels, "labels")
        classes, truth = np.unique(values, return_inverse=True)
        if len(classes) < 2:
            raise CircuitDiscoveryError(
                f"all {len(values):,} labels are {shown(str(classes[0]))}: a probe needs two"
            )
        if len(classes) > _MOST_CLASSES:
            raise CircuitDiscoveryError(f"labels are of {len(classes):,} kinds, more than {_MOST_CLASSES:,}")
        few = np.flatnonzero(np.bincount(truth) < 2)
        if len(few):
            raise CircuitDiscoveryError(
                f"only one row has the label {shown(str(classes[few[0]]))}: each label needs two at least"
            )
        groups = own.groups if groups is None and own is not None else groups
        units = _numbers(at, groups, "groups") if groups is not None else None
        if units is None and whole:
            units = at.rows.numpy()  # rows of one prompt share its label
        if units is not None and units.max() == 0:
            raise CircuitDiscoveryError("groups are all one: two at least are needed, one of them held out")
        test = probe_fit.held_out(truth, units, seed)
        types = None
        if control is not False:
            given = own.types if control is None and own is not None else control
            if given is not None:
                types = _numbers(at, given, "control")
            elif at.prompts:
                types = np.unique(at.tokens.numpy(), return_inverse=True)[1]
        name = own.name if own else "label"
        drawn = () if types is None else _controls(truth, types, test, draws, seed)
        shared = float(np.isin(types[test], types[~test]).mean()) if drawn and types is not None else None
        return cls(name, tuple(map(str, classes)), truth, units, test, drawn, shared)


def _each(at: Places, given: Any, what: str) -> tuple[np.ndarray, bool]:
    """([rows] texts, whether they were given for prompts of several rows) of one per row or per prompt."""
    values = given.tolist() if isinstance(given, Tensor | np.ndarray) else given
    if isinstance(values, str | bytes) or not hasattr(values, "__len__") or not hasattr(values, "__iter__"):
        raise CircuitDiscoveryError(f"{what} must be a list with a value per row, not {shown(given)}")
    texts = np.array([str(each) for each in values], dtype=object)
    if len(texts) == len(at.rows):
        return texts, False
    if at.prompts and len(texts) == len(at.prompts):
        return texts[at.rows.numpy()], True
    prompts = f" of {len(at.prompts):,} prompts" if at.prompts else ""
    raise CircuitDiscoveryError(
        f"there are {len(texts):,} {what}, but {len(at.rows):,} rows of activations{prompts}"
    )


def _numbers(at: Places, given: Any, what: str) -> np.ndarray:
    return np.unique(_each(at, given, what)[0], return_inverse=True)[1]


def _controls(
    truth: np.ndarray, types: np.ndarray, test: np.ndarray, draws: int, seed: int
) -> tuple[np.ndarray, ...]:
    """Control labels: of each type one, drawn as often as the true ones are; none where there is one type."""
    rng, count = np.random.default_rng(seed), int(truth.max()) + 1
    shares = np.bincount(truth) / len(truth)
    found: list[np.ndarray] = []
    for _ in range(_TRIES * draws):
        one = rng.choice(count, size=int(types.max()) + 1, p=shares)[types]
        if len(np.unique(one[~test])) > 1:
            found.append(one)
        if len(found) == draws:
            break
    return tuple(found)
