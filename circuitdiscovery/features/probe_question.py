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
        used: [rows] bool: all but those held out by their group whose tokens stand in training, too: the
            prompt up to the row's token, on which alone its activation depends.
        truth: [n], numbers of classes, of the rows that are used.
        units: [n], the number of each row's group; None: rows are alone, each of other tokens.
        test: [n] bool, which rows are held out.
        controls: [n] each, control labels.
        shared: of the held-out rows, whose type is in training.
    """

    label: str
    classes: tuple[str, ...]
    used: np.ndarray
    truth: np.ndarray
    units: np.ndarray | None
    test: np.ndarray
    controls: tuple[np.ndarray, ...]
    shared: float | None

    @classmethod
    def of(cls, at: Places, labels: Any, control: Any, groups: Any, draws: int, seed: int) -> Question:
        """The question for the rows of activations at some places.

        Raises:
            CircuitDiscoveryError: another number of labels, types or groups than rows; labels of one kind;
                rows that cannot be split.
        """
        own = labels if isinstance(labels, Labels) else None
        if own is None or not own.prompts:
            _check_order(at, own.values if own else labels)
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
        prefixes = at.prefixes if at.prompts else np.arange(len(truth))
        if at.prompts:
            units = _joined(at, prefixes, units)
        if units is not None and units.max() == 0:
            what = "groups are" if groups is not None or whole else "the rows' tokens are"
            raise CircuitDiscoveryError(f"{what} all one: two at least are needed, one of them held out")
        test = probe_fit.held_out(truth, units, seed)
        used = ~(test & np.isin(prefixes, prefixes[~test]))
        gone = np.setdiff1d(truth, truth[test & used])
        if len(gone):
            raise CircuitDiscoveryError(
                f"every row with the label {shown(str(classes[gone[0]]))} that is held out is of tokens that "
                "are in training, too: give rows of later positions"
            )
        types = None
        if control is not False:
            given = own.types if control is None and own is not None else control
            if given is not None:
                types = _numbers(at, given, "control")
            elif at.prompts:
                types = np.unique(at.tokens.numpy(), return_inverse=True)[1]
        name = own.name if own else "label"
        truth, test = truth[used], test[used]
        types, units = (None if each is None else each[used] for each in (types, units))
        drawn = () if types is None else _controls(truth, types, test, draws, seed)
        shared = float(np.isin(types[test], types[~test]).mean()) if drawn and types is not None else None
        return cls(name, tuple(map(str, classes)), used, truth, units, test, drawn, shared)


def _check_order(at: Places, values: Any) -> None:
    """Refuse values of which nobody knows whether they are one per row or one per prompt."""
    count = len(at.rows)
    if not at.prompts or not hasattr(values, "__len__") or not len(values) == count == len(at.prompts):
        return
    if at.rows.tolist() != list(range(count)):
        raise CircuitDiscoveryError(
            f"{count:,} labels are as many as rows and as prompts, but rows are not one per prompt: leave "
            "prompts without a row out, and give a label per row"
        )


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


def _joined(at: Places, prefixes: np.ndarray, units: np.ndarray | None) -> np.ndarray | None:
    """Groups of rows, those joined that have the tokens of a prompt's last row in common; without groups
    rows of the same tokens, and None where all are of other tokens."""
    if units is None:
        numbers, own = np.unique(prefixes, return_inverse=True)
        return own if len(numbers) < len(own) else None
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    order = np.lexsort((at.positions.numpy(), at.rows.numpy()))
    last = order[np.append(np.diff(at.rows.numpy()[order]) > 0, True)]
    shared = np.isin(prefixes, prefixes[last])
    ends = units[shared], units.max() + 1 + prefixes[shared]
    size = int(ends[1].max()) + 1
    graph = coo_array((np.ones(len(ends[0]), bool), ends), shape=(size, size))
    return np.unique(connected_components(graph, directed=False)[1][units], return_inverse=True)[1]


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
