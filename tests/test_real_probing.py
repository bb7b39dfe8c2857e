"""The subject's number in SmolLM2-135M (marked `real`, run by `make real`), layer by layer.

Skipped, with the reason, where its package cannot be had.
"""

from __future__ import annotations

from typing import Any

import pytest
from test_real import fetched, real_models

import circuitdiscovery as cd

pytestmark = pytest.mark.real
f = cd.features


@pytest.fixture(scope="module")
def model() -> Any:
    return cd.load_model(fetched(real_models.SMOLLM2), device="cpu")


def test_the_subjects_number_comes_with_attention(model: Any) -> None:
    """At the last word: at chance before attention, from layer 2 on more than words learnt by heart. The
    accuracies are those of an earlier probe on other prompts of the kind, of one split of 144 rows."""
    task = cd.load_task("subject_verb_agreement", model, examples=480)
    table = f.probes(model, task, "number", at="resid")
    first = table["resid0"].scores
    assert first.accuracy.low < 0.5 < first.accuracy.high and first.selectivity is not None
    assert first.selectivity.low < 0 < first.selectivity.high
    for layer in range(2, model.n_layers + 1):
        selectivity = table[f"resid{layer}"].scores.selectivity
        assert selectivity is not None and selectivity > 0.1, layer
    for layer, accuracy in ((0, 0.47), (4, 1.0), (24, 0.99)):
        assert float(table[f"resid{layer}"].scores.accuracy) == pytest.approx(accuracy, abs=0.05)


def test_a_label_of_the_last_word_is_there_before_any_layer(model: Any) -> None:
    task = cd.load_task("subject_verb_agreement", model, examples=240)
    scores = f.probes(model, task, "attractor_number", at="resid0")["resid0"].scores
    assert scores.accuracy > 0.95 and scores.selectivity is not None and scores.selectivity < 0.1
