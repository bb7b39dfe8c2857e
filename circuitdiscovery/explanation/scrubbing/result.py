"""What causal scrubbing found, as a value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from circuitdiscovery.explanation.scrubbing.hypothesis import Variables
from circuitdiscovery.measure import intervals
from circuitdiscovery.measure.estimates import Estimate, drawn
from circuitdiscovery.values import Reported, part_in_words, plain

TOO_FEW = 0.1  # of the draws; where more of them are the prompt itself, the result says so


@dataclass(frozen=True, repr=False)
class Scrubbing(Reported):
    """What `scrub` found.

    Args:
        hypothesis, model, task: what was tested, and on what.
        part: "held_out" or "examples" of the task.
        examples: that were measured.
        prompts: that were drawn from.
        draws: for each example and node of the tree.
        metric: by which.
        edges: the hypothesis' edges with their variables.
        places: nodes of its tree.
        full: the metric of the model itself.
        scrubbed: of the scrubbed model.
        resampled: with everything exchanged, which is the hypothesis that nothing matters.
        recovered: (scrubbed - resampled) / (full - resampled): 1 where the hypothesis explains the behaviour,
            less where it calls irrelevant what is needed, and more where what it calls irrelevant hinders.
            None where the denominator cannot be told from 0, or the model is worse than with everything
            resampled.
        reason: why there is none.
        renamed: what hypotheses of the same shape about other heads recover, each of them once; none where
            `recovered` is None.
        own: edge -> the share of its draws that were the prompt itself, because no other agrees with it.
        own_rest: the same of what the hypothesis does not hold.
    """

    hypothesis: str
    model: str
    task: str
    part: str
    examples: int
    prompts: int
    draws: int
    metric: str
    edges: Mapping[str, Variables]
    places: int
    full: Estimate
    scrubbed: Estimate
    resampled: Estimate
    recovered: Estimate | None
    reason: str | None
    renamed: tuple[float, ...]
    own: Mapping[str, float]
    own_rest: float

    @property
    def renamed_mean(self) -> Estimate | None:
        """The mean of `renamed`, its interval over these hypotheses; None where there are none."""
        return mean(np.array(self.renamed), seed=0) if self.renamed else None

    @property
    def as_much(self) -> float | None:
        """The share of `renamed` that recovers at least as much; None where there are none."""
        return (
            None
            if self.recovered is None or not self.renamed
            else float(np.mean([each >= self.recovered for each in self.renamed]))
        )

    @property
    def p(self) -> float | None:
        """How likely it is that as few of `renamed` recover as much if the hypothesis is one of them at
        random: (1 + their number) / (1 + all); None where there are none."""
        if self.as_much is None:
            return None
        return (1 + round(self.as_much * len(self.renamed))) / (1 + len(self.renamed))

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON."""
        beside = {"renamed_mean": plain(self.renamed_mean), "as_much": self.as_much, "p": self.p}
        return plain(self) | beside

    def _lines(self) -> Iterator[tuple[str, str]]:
        yield (
            "hypothesis",
            f"{self.hypothesis}: {len(self.edges)} edges, {self.places} nodes in the tree of their paths",
        )
        drawn = f"{self.draws} draws each from {self.prompts} prompts"
        yield "measured", f"{self.metric} on {self.examples} {part_in_words(self.part)}, {drawn}"
        yield "F", f"model {self.full}, scrubbed {self.scrubbed}, everything resampled {self.resampled}"
        yield "recovered", str(self.recovered) if self.reason is None else f"none: {self.reason}"
        if self.as_much is not None:
            count = len(self.renamed)
            told = (
                f"mean {self.renamed_mean} over {count} of the same shape; "
                f"{round(self.as_much * count)} recover as much (p {self.p:.2g})"
            )
            yield "other heads", told
        few = [edge for edge, share in self.own.items() if share > TOO_FEW]
        if few or self.own_rest > TOO_FEW:
            worst = max(self.own.values(), default=0.0)
            told = (
                f"of {len(few)} edges, such as {few[0]}, up to {worst:.0%}"
                if few
                else f"of what is not held {self.own_rest:.0%}"
            )
            yield (
                "too few",
                (
                    f"prompts: {told} of the draws were the prompt itself, which tests nothing; give "
                    "more (`prompts=`)"
                ),
            )


def mean(values: np.ndarray, seed: int, binary: bool | None = None) -> Estimate:
    """The mean of some values with its interval (`binary`: see `intervals.mean`)."""
    return intervals.mean(values, drawn(len(values), seed), binary=binary)
