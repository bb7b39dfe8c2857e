"""The proof at load: what differs from Hugging Face's own forward is refused, in every dtype."""

from __future__ import annotations

import copy
import hashlib
import re
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from test_families import CASES, config_of
from tiny import Tiny, random_model, tiny_config

import circuitdiscovery as cd
from circuitdiscovery.model import proof
from circuitdiscovery.model.build import weights_digest

LAYERS = {"gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers"}


def attentions(hf: Any) -> list[Any]:
    layers = hf.get_submodule(LAYERS.get(hf.config.model_type, "model.layers"))
    return [
        getattr(layer, "self_attn", None) or getattr(layer, "attn", None) or layer.attention
        for layer in layers
    ]


def refused(source: Any, match: str, **options: Any) -> None:
    with pytest.raises(cd.CircuitDiscoveryError, match=match):
        cd.load_model(source, **options)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("layer", [0, -1])
def test_a_scale_that_is_2_percent_off_is_refused(tiny: Tiny, layer: int, dtype: str) -> None:
    """Of one layer, whether the model is given in float32 or in the
    half precision; without the fault it loads.
    """
    for given in (torch.float32, getattr(torch, dtype)):
        hf = copy.deepcopy(tiny.hf).to(given)
        cd.load_model(hf, dtype=dtype)
        attentions(hf)[layer].scaling *= 1.02
        refused(hf, "differs", dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_trained_models_with_another_scale_are_refused(any_model: Tiny, dtype: str) -> None:
    """An attention scale that was 5% or 50% wrong was once accepted on trained models."""
    hf = copy.deepcopy(any_model.hf)
    for attention in attentions(hf):
        attention.scaling *= 1.02
    refused(hf, "differs", dtype=dtype)


def test_a_fault_at_one_position_is_refused(gpt2: Tiny) -> None:
    """The last position's logits alone do not tell."""
    hf = copy.deepcopy(gpt2.hf)

    def spoil(module: Any, args: Any, out: Any) -> Any:
        out = out.clone()
        out[:, 1:2] += 0.01
        return out

    hf.lm_head.register_forward_hook(spoil)
    for dtype in ("float32", "bfloat16"):
        refused(hf, "differs", dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("part", ["", "mlp", "self_attn.o_proj"])
def test_a_fault_in_a_middle_layer_of_experts_is_refused(
    part: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a large model, too, whose first and last layers alone are compared in float32."""
    monkeypatch.setattr(proof, "SMALL", 0)
    hf = random_model(config_of(*CASES["qwen3 with experts"]))
    cd.load_model((hf, None), dtype=dtype)
    hf.model.layers[1].get_submodule(part).register_forward_hook(lambda module, args, out: out * 0)
    for given in (hf, copy.deepcopy(hf).to(getattr(torch, dtype))):
        refused((given, None), "differs", dtype=dtype)


def test_weights_that_are_not_finite_are_refused(gpt2: Tiny) -> None:
    hf = copy.deepcopy(gpt2.hf)
    hf.transformer.h[1].mlp.c_fc.weight.data[0, 0] = float("nan")
    refused(hf, "not finite")


def test_the_proof_leaves_the_users_model_as_it_was(gpt2: Tiny) -> None:
    """Modules in different modes stay in them, also where the model is refused."""
    hf = copy.deepcopy(gpt2.hf).train()
    hf.transformer.h[0].eval()
    modes = [module.training for module in hf.modules()]
    cd.load_model(hf)
    assert [module.training for module in hf.modules()] == modes
    hf.register_forward_hook(lambda module, args, out: 1 / 0)
    refused(hf, "own forward fails: division by zero")
    assert [module.training for module in hf.modules()] == modes


# ------------------------------------------------------------------ the digest


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_the_digest_does_not_depend_on_the_dtype_that_is_asked_for(
    gpt2: Tiny, half: torch.dtype, tmp_path: Path
) -> None:
    """It is the file's, or the object's; and a half precision's is that of the same values in float32."""
    name = str(half).removeprefix("torch.")
    whole = gpt2.model.digest
    assert {
        cd.load_model(source, dtype=dtype).digest
        for source in (gpt2.folder, gpt2.hf)
        for dtype in ("float32", name, "float64")
    } == {whole}
    rounded = copy.deepcopy(gpt2.hf).to(half)
    rounded.save_pretrained(tmp_path / "half")
    digests = {cd.load_model(tmp_path / "half", dtype=dtype).digest for dtype in ("float32", name)}
    digests |= {cd.load_model(rounded, dtype=dtype).digest for dtype in ("float32", name)}
    assert len(digests) == 1 and digests == {cd.load_model(copy.deepcopy(rounded).float()).digest} != {whole}


def test_a_weight_without_a_dimension_counts(llama: Tiny) -> None:
    hf = copy.deepcopy(llama.hf)
    hf.lm_head.extra = torch.nn.Parameter(torch.tensor(1.5))
    assert cd.load_model(hf).digest != llama.model.digest
    inner = hashlib.sha256(struct.pack("<f", 1.5)).hexdigest()
    assert weights_digest({"a": hf.lm_head.extra}) == hashlib.sha256(f"a [] {inner}".encode()).hexdigest()


def test_a_circuit_found_in_float32_is_one_of_the_same_model_in_half_precision(gpt2: Tiny) -> None:
    circuit = cd.acdc(gpt2.model, gpt2.prompts.task, threshold=0.1)
    half = cd.load_model(gpt2.folder, dtype="bfloat16")
    assert cd.run_circuit(half, gpt2.prompts.task, circuit).dtype == torch.bfloat16


def test_the_digest_of_toy_stands() -> None:
    """Saved circuits name it."""
    assert re.fullmatch("[0-9a-f]{64}", cd.load_model("toy").digest)
    assert cd.load_model("toy").digest == cd.load_model("toy", dtype="bfloat16").digest


def test_rotary_tables_stay_precise_in_half_precision(llama: Tiny) -> None:
    """`hf.bfloat16()` rounds its own table of frequencies; ours is the config's."""
    half = cd.load_model(random_model(tiny_config("llama")).bfloat16(), dtype="bfloat16")
    ours, expected = (model.blocks[0].rotary for model in (half, llama.model))
    assert ours is not None and expected is not None and torch.equal(ours.frequencies, expected.frequencies)
