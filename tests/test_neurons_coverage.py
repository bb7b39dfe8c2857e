"""The 95% intervals of the neurons that are chosen, simulated on small tasks drawn from a large one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

import circuitdiscovery as cd
from circuitdiscovery.engine.setup import Setup
from circuitdiscovery.measure import intervals
from circuitdiscovery.measure.estimates import Estimate, weights
from circuitdiscovery.search import neurons
from circuitdiscovery.search.unit_damages import NEURONS, line, unit_damages

PROMPTS, TOP, TASKS = 200, 20, 60


@dataclass(frozen=True)
class Pool:
    """Of many prompts, what ablating each neuron does to each one."""

    model: cd.Model
    task: cd.Task
    damages: Mapping[int, np.ndarray]  # layer -> [prompts, neurons]

    def of(self, name: str) -> np.ndarray:
        """[prompts], of a neuron such as m1/n30."""
        node, _, neuron = name.partition("/n")
        return self.damages[int(node[1:])][:, int(neuron)]

    def covered(self, found: Iterable[tuple[str, Estimate]]) -> float:
        """The share of the intervals that hold the mean over all prompts."""
        return float(np.mean([each.low <= self.of(name).mean() <= each.high for name, each in found]))

    def alike(self) -> Pool:
        """As if all neurons mattered alike: on average a tenth of how much each one varies."""
        damages = {}
        for layer, each in self.damages.items():
            spread = each.std(0)
            damages[layer] = (each - each.mean(0)) / np.where(spread > 0, spread, 1) + 0.1
        return replace(self, damages=damages)

    def coverage(self, size: int, patch: pytest.MonkeyPatch) -> tuple[np.ndarray, np.ndarray]:
        """Of each task of so many prompts to choose on and as many others, ([tasks] what `neurons` covers,
        what the same intervals of the choice's own prompts would)."""
        row = {example.clean: i for i, example in enumerate(self.task.examples)}

        def looked_up(setup: Setup, *_: Any, only: Mapping[int, Any]) -> dict[int, np.ndarray]:
            rows = [row[example.clean] for example in setup.task.examples]
            return {layer: self.damages[layer][rows][:, units] for layer, units in only.items()}

        def averaged(setup: Setup, kinds: Iterable[int], *_: Any) -> dict[int, np.ndarray]:
            all_of = dict.fromkeys(kinds, slice(None))
            return {layer: each.mean(0) for layer, each in looked_up(setup, only=all_of).items()}

        patch.setattr(neurons, "mean_damages", averaged)
        patch.setattr(neurons, "unit_damages", looked_up)
        rng, draws, others, same = np.random.default_rng(0), weights(size, 0), [], []
        for _ in range(TASKS):
            chosen, other = (rng.integers(PROMPTS, size=size).tolist() for _ in range(2))
            task = replace(self.task.select(chosen), held_out=self.task.select(other))
            found = cd.neurons(self.model, task, top=TOP).damages
            own = intervals.means(np.stack([self.of(name)[chosen] for name in found]), draws)
            others.append(self.covered(found.items()))
            same.append(self.covered(zip(found, own, strict=True)))
        return np.array(others), np.array(same)


@pytest.fixture(scope="module")
def pool() -> Pool:
    model = cd.load_model("toy")
    task = cd.load_task("subject_verb_agreement", model, examples=PROMPTS, seed=1)
    kinds = dict.fromkeys(range(model.n_layers), NEURONS)
    task = replace(task, held_out=None)
    return Pool(model, task, unit_damages(Setup.of(model, task), kinds, line("eap")))


@pytest.mark.parametrize("size", [16, 64])
def test_intervals_cover(pool: Pool, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    covered, _ = pool.coverage(size, monkeypatch)
    assert covered.mean() == pytest.approx(0.95, abs=3 * covered.std() / TASKS**0.5)


@pytest.mark.parametrize(("size", "most"), [(16, 0.6), (64, 0.3)])
def test_those_of_the_choice_would_not(
    pool: Pool, size: int, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no neuron stands out, those chosen are those that their prompts overstate."""
    covered, same = pool.alike().coverage(size, monkeypatch)
    assert covered.mean() == pytest.approx(0.95, abs=3 * covered.std() / TASKS**0.5)
    assert same.mean() < most
