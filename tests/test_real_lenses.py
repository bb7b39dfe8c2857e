"""Lenses of SmolLM2-135M (marked `real`, run by `make real`): the last layer is Hugging Face's model, and fitted
lenses are nearer to it than the logit lens at every layer, on texts that they were not fitted on.

Skipped, with the reason, where its package cannot be had.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_real import fetched, real_models

import circuitdiscovery as cd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import real_lenses  # pyright: ignore[reportMissingImports]

pytestmark = pytest.mark.real
LAYERS = 30


@pytest.fixture(scope="module")
def folder() -> Path:
    return fetched(real_models.SMOLLM2)


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return cd.load_model(folder, device="cpu")


def test_the_last_layer_is_hugging_faces_model(folder: Path, model: Any) -> None:
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    row = model.tokenizer("The keys near the cabinet")["input_ids"]
    with torch.no_grad():
        expected = network(torch.tensor([row])).logits
    last = f"resid{LAYERS}"
    found = cd.features.lens(model).logits(last, cd.features.run(model, [row]).values(last))
    assert (found - expected).abs().max() < 1e-5 * float(expected.abs().max())


def test_fitted_lenses_are_below_the_logit_lens_at_every_layer(model: Any) -> None:
    """With a twentieth of the steps that the page's lens takes."""
    train, held = real_lenses.pieces(model)
    rows = train[:60]
    of = {"logit": {}, "linear": {"fit_on": rows}, "tuned": {"fit_on": rows, "steps": 10}}
    kl = {kind: cd.features.lens(model, kind=kind, **how).read(held[:3]).kl for kind, how in of.items()}
    for layer in range(LAYERS):
        assert kl["tuned"][layer] < kl["logit"][layer] and kl["linear"][layer] < kl["logit"][layer]
    assert all(each[-1] == 0 for each in kl.values())
