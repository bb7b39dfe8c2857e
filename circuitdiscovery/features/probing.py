"""`probe`: whether a linear classifier reads a label in activations, beside what it could learn by heart.

Selectivity (Hewitt and Liang 2019, arXiv 1909.03368): the accuracy minus that of the same kind of probe on a
control task, in which each type (a word) has a random label of its own, the same wherever the word stands.
Nothing but the word's identity tells such a label, so that its accuracy says what a probe learns by heart of
words that it has seen. Types must therefore be shared by training and held-out rows; where `groups` hold
whole types out, the control is at chance by construction, and selectivity says no more than the accuracy.

Sparse probes (Gurnee et al. 2023, arXiv 2305.01610) read k columns, such as neurons.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from circuitdiscovery.arguments import guarded
from circuitdiscovery.engine.metrics import Metric
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.features import probe_fit
from circuitdiscovery.features.collecting import Activations, as_activations
from circuitdiscovery.features.probe_fit import Classifier
from circuitdiscovery.features.probe_question import DRAWS, Question
from circuitdiscovery.measure.estimates import Estimate
from circuitdiscovery.model.model import Model
from circuitdiscovery.task.task import Task
from circuitdiscovery.values import Value, told

if TYPE_CHECKING:
    from circuitdiscovery.features.probe_erasing import Erasure

_ROUNDING = 1e-10  # of what is taken out of a column: float64's error is less


@dataclass(frozen=True, repr=False)
class ProbeScores(Value):
    """What a probe does on the rows that it was not fitted to, with 95% intervals over these rows (over their
    groups, where there are some). They say nothing of other splits.

    Args:
        train, test: how many rows it was fitted to, and how many are held out.
        chance: the accuracy of the label that is most frequent in training.
        accuracy: the share of held-out rows that are right.
        f1: 2 TP / (2 TP + FP + FN) of the last of two labels in the order of their names, of several labels
            the mean over them.
        control: the mean accuracy on control labels; None where there are no two types, or none was asked
            for.
        selectivity: accuracy - control.
        shared: the share of held-out rows whose type is in the training rows, too; at 0 the control is at
            chance by construction.
    """

    train: int
    test: int
    chance: float
    accuracy: Estimate
    f1: Estimate
    control: float | None = None
    selectivity: Estimate | None = None
    shared: float | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Probe:
    """A linear probe (see `probe`).

    Args:
        site: whose activations it reads; None of a matrix.
        label: what it tells.
        classes: the labels, sorted.
        scores: on the rows that it was not fitted to.
        classifier: its weights.
        k: how many columns it reads; None: all.
    """

    site: str | None
    label: str
    classes: tuple[str, ...]
    scores: ProbeScores
    classifier: Classifier = field(repr=False)
    k: int | None
    _rows: Rows = field(repr=False)

    @property
    def accuracy(self) -> Estimate:
        """The share of held-out rows that are right."""
        return self.scores.accuracy

    @property
    def f1(self) -> Estimate:
        """2 TP / (2 TP + FP + FN); see `ProbeScores`."""
        return self.scores.f1

    @property
    def selectivity(self) -> Estimate | None:
        """The accuracy minus that on control labels; None without a control."""
        return self.scores.selectivity

    @property
    def model(self) -> str:
        """The digest of the model's weights; of a matrix it is empty."""
        return self._rows.model

    @property
    def columns(self) -> tuple[int, ...] | None:
        """The columns that a sparse probe reads, such as neurons; None: all."""
        return self.classifier.columns

    def predict(self, values: Any) -> list[str]:
        """The label that the probe gives to each row.

        Args:
            values: activations of its site, or a matrix of that width.

        Raises:
            CircuitDiscoveryError: another width.
        """
        acts = as_activations(values, "values")
        width = self.classifier.weights.shape[1]
        if acts.d != width:
            raise CircuitDiscoveryError(f"values are {acts.d} wide, the probe reads {width}")
        return [self.classes[number] for number in self.classifier(acts.values)]

    def erased(self) -> tuple[Tensor, Tensor]:
        """([r, d], [d]): an orthonormal basis of what `erase` takes out, and the mean of the training rows.

        They span the probe's weights and the differences between the means of its labels (of a sparse probe
        in its columns): without them the probe reads nothing, and on the training rows no linear classifier
        does, because all labels have one mean there (Belrose et al. 2023, arXiv 2306.03819).
        """
        rows, truth = self._rows.values[~self._rows.test], self._rows.truth[~self._rows.test]
        means = torch.stack([rows[truth == number].mean(0) for number in range(len(self.classes))])
        apart = (means - means.mean(0)) * (self.classifier.weights != 0).any(0)
        both = [each / (each.norm() or 1.0) for each in (apart, self.classifier.weights.clone())]
        both[1] = both[1] - both[1].mean(0)
        _, sizes, basis = torch.linalg.svd(torch.cat(both), full_matrices=False)
        return basis[sizes > 1e-6 * sizes[0]], rows.mean(0)

    @guarded
    def erase(
        self,
        model: Model,
        task: Task,
        *,
        position: Any = None,
        metric: str | Metric | Any | None = None,
        draws: int = 4,
        batch_size: int | None = None,
        seed: int = 0,
    ) -> Erasure:
        """What a task loses where the model cannot read the label at the probe's site.

        Where it is erased the site's x becomes x - B'B (x - mean): B, of `erased`, spans the probe's weights
        and what is between the labels' means. Beside it as many random directions are taken
        out. The task's held-out examples are measured where it has some.

        Args:
            model: whose activations the probe reads.
            task: what is measured.
            position: where, as for `activations`; by default where the probe reads, or, where its activations
                do not say that, the answer's position.
            metric: by default the task's own.
            draws: how many sets of random directions.
            batch_size: how many prompts are run at once.
            seed: of the random directions.

        Returns:
            The effect with its interval, and that of random directions.

        Raises:
            CircuitDiscoveryError: a probe of a matrix or of another model; no such position.

        >>> import circuitdiscovery as cd
        >>> model = cd.load_model("toy")
        >>> task = cd.load_task("subject_verb_agreement", model, examples=48)
        >>> acts = cd.features.activations(model, task, "resid3")
        >>> probe = cd.features.probe(acts, cd.features.labels(task, "number"))
        >>> bool(probe.erase(model, task).effect < -5)
        True
        """
        from circuitdiscovery.features.probe_erasing import erase

        where = self._rows.position if position is None else position
        return erase(self, model, task, where, metric, draws, batch_size, seed)

    def left(self) -> float:
        """The accuracy on the held-out rows of a new probe that is fitted to what `erase` leaves."""
        own, (basis, mean) = self._rows, self.erased()
        apart = own.values - mean
        taken = apart @ basis.T  # [n, r]
        rest, most = apart - taken @ basis, taken.abs().amax(0) @ basis.abs()
        rest[:, rest.abs().amax(0) <= _ROUNDING * most] = 0  # else the fit would scale it to deviation 1
        found = probe_fit.fit(rest, own.truth, own.test, len(self.classes), None, own.l2)
        return float((found(rest) == own.truth)[own.test].mean())

    def _lines(self) -> Iterator[tuple[str, str]]:
        of = f"{self.label} at {self.site or 'a matrix'}"
        yield "probe", of if self.k is None else f"{of}, by columns {', '.join(map(str, self.columns or ()))}"
        yield "labels", ", ".join(self.classes)
        own = self.scores
        yield "rows", f"{own.train} for training, {own.test} held out"
        yield "accuracy", f"{own.accuracy}; always the most frequent label {own.chance:.3g}"
        yield "f1", str(own.f1)
        if own.selectivity is not None:
            yield "control", f"{own.control:.3g}; {shared_words(own.shared or 0.0)}"
            yield "selectivity", str(own.selectivity)

    def __str__(self) -> str:
        return "\n".join(f"{name:<13} {value}" for name, value in self._lines())

    def _repr_html_(self) -> str:
        return told(str(self))

    def __repr__(self) -> str:
        return f"<Probe of {self.label} at {self.site}: accuracy {self.accuracy}>"


def shared_words(shared: float) -> str:
    """Of a control, in words."""
    if not shared:
        return "no held-out row's type is in training: at chance by construction"
    return f"the types of {shared:.0%} of the held-out rows are in training"


@dataclass(frozen=True, eq=False)
class Rows:
    """What probes of one site are fitted to: values [n, d], truth [n], and which are held out [n] bool; of
    which position of each prompt, as `Activations` say it."""

    values: Tensor
    truth: np.ndarray
    test: np.ndarray
    l2: float
    model: str
    position: str | int | None


def probe_of(question: Question, acts: Activations, k: int | None, l2: float, seed: int) -> Probe:
    """The probe of one site."""
    if k is not None and len(question.classes) > 2:
        raise CircuitDiscoveryError(
            f"sparse probes (k={k}) are of two labels; there are {len(question.classes)}"
        )
    if k is not None and not 1 <= k <= acts.d:
        raise CircuitDiscoveryError(f"k must be from 1 to the width, {acts.d}, not {k}")
    values, test, count = acts.values.double()[question.used], question.test, len(question.classes)
    found = probe_fit.fit(values, question.truth, test, count, k, l2)
    own, truth = found(values)[test], question.truth[test]
    units = None if question.units is None else question.units[test]
    right = own == truth
    learnt = [
        (probe_fit.fit(values, each, test, count, k, l2)(values) == each)[test] for each in question.controls
    ]
    other = np.mean(learnt, axis=0) if learnt else None
    often = int(np.bincount(question.truth[~test]).argmax())
    scores = ProbeScores(
        train=int((~test).sum()),
        test=int(test.sum()),
        chance=float((truth == often).mean()),
        accuracy=probe_fit.share_right(right, units, seed),
        f1=probe_fit.f1(truth, own, range(1 if count == 2 else 0, count), units, seed),
        control=None if other is None else float(other.mean()),
        selectivity=None if other is None else probe_fit.more_right(right, other, units, seed),
        shared=question.shared,
    )
    rows = Rows(values, question.truth, test, l2, acts.model, acts.position)
    return Probe(acts.site, question.label, question.classes, scores, found, k, rows)


@guarded
def probe(
    acts: Any,
    labels: Any,
    *,
    k: int | None = None,
    control: Any = None,
    groups: Any = None,
    draws: int = DRAWS,
    l2: float = 0.01,
    seed: int = 0,
) -> Probe:
    """Fit a linear probe to activations, and measure it on rows that it has not seen.

    Three tenths of the rows are held out, of each label about as many; rows whose prompts are the same up to
    their tokens, and so their activations, are held out together. Two labels are told by logistic
    regression (with k= TransformerLens' `fit_sparse_probe`), several by softmax regression, on standardised
    columns and with all labels weighed the same.

    Args:
        acts: what `activations` gives, or a matrix [rows, d].
        labels: what `labels` gives, or texts, numbers or truth values: one per row, or one per prompt, whose
            rows are then held out together, but for those whose tokens are in training, too.
        k: of two labels: read k columns only, those whose means differ most.
        control: the type of each row, whose control label is the same wherever it stands; by default the word
            that the labels are of, else the row's token. False: no control.
        groups: the group of each row (or prompt): what the split must not share, and what is resampled for
            intervals. Held-out rows whose tokens are in training, too, are left out. Where groups hold out
            whole types, the control is at chance by construction.
        draws: how many sets of control labels the control is the mean of.
        l2: the penalty on the weights.
        seed: of the split, the control labels and the bootstrap.

    Returns:
        The probe: `.accuracy`, `.f1`, `.selectivity` with intervals, `.predict`, `.erase`.

    Raises:
        CircuitDiscoveryError: labels that are all equal, or of another number than the rows; fewer than two
            groups; a k that cannot be.

    >>> import circuitdiscovery as cd
    >>> model = cd.load_model("toy")
    >>> task = cd.load_task("subject_verb_agreement", model, examples=64)
    >>> number = cd.features.labels(task, "number")
    >>> probe = cd.features.probe(cd.features.activations(model, task, "resid3"), number)
    >>> float(probe.accuracy)
    1.0
    """
    if l2 <= 0:
        raise CircuitDiscoveryError(f"l2 must be above 0, not {l2}")
    found = as_activations(acts, "acts")
    question = Question.of(found.places, labels, control, groups, draws, seed)
    return probe_of(question, found, k, l2, seed)
