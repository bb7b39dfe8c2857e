"""Patchscopes of SmolLM2-135M (marked `real`, run by `make real`), beside the logit lens.

Skipped, with the reason, where its package cannot be had.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_real import fetched, real_models

import circuitdiscovery as cd
from circuitdiscovery.measure import intervals
from circuitdiscovery.measure.estimates import weights

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def model() -> Any:
    return cd.load_model(fetched(real_models.SMOLLM2), device="cpu")


@pytest.fixture(scope="module")
def prompts(model: Any) -> list[list[int]]:
    from real_patchscopes import sources  # pyright: ignore[reportMissingImports]  # test_real says where it is

    return sources(model, 120)


def test_at_layer_20_it_says_the_next_token_more_often_than_the_logit_lens(
    model: Any, prompts: list[list[int]]
) -> None:
    seen = cd.features.patchscope(model, prompts, [20, 30])
    lens = cd.features.patchscope(model, prompts, 20, into=30)
    hits = [np.array(each.ranks[0]) < 1 for each in (seen, lens)]
    first, second = (each.astype(float) for each in hits)
    gain = intervals.difference(first, second, weights(len(prompts), 0))
    assert gain.low > 0.1
    assert seen.precision(1)[1] == 1.0  # from the last stream into itself


def test_after_an_arrow_early_layers_say_which_token_it_is(model: Any, prompts: list[list[int]]) -> None:
    first, late = cd.features.patchscope(model, prompts[:40], [1, 26], read="->").precision(1)
    assert first.low > 0.2 > late.high
