"""TransformerLens' own models, the attention-only ones among them: loaded, and equal to it hook by hook."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.model_bridge.bridge import TransformerBridge

import circuitdiscovery as cd

SHAPE: dict[str, Any] = {
    "d_model": 16, "n_layers": 2, "d_head": 4, "n_heads": 4, "n_ctx": 12, "d_vocab": 30, "act_fn": "gelu_new",
    "positional_embedding_type": "standard", "architecture": "TransformerLensNative",
}  # fmt: skip


def native(**options: Any) -> Any:
    torch.manual_seed(0)
    booted: Any = TransformerBridge
    bridge = booted.boot_native(TransformerBridgeConfig(**SHAPE | options))
    for parameter in bridge.original_model.parameters():  # norms and biases too
        parameter.data += 0.2 * torch.randn_like(parameter)
    return bridge.eval()


def tokens(count: int = 3, length: int = 6) -> torch.Tensor:
    return torch.randint(0, 30, (count, length), generator=torch.Generator().manual_seed(1))


def task_of(rows: torch.Tensor) -> cd.Task:
    count = len(rows)
    return cd.Task.from_tokens(
        clean=rows, corrupted=rows.roll(1, 0), correct=[1] * count, incorrect=[2] * count
    )


@pytest.mark.parametrize(
    "options",
    [
        {"attn_only": True, "normalization_type": "LN"},
        {"attn_only": True, "normalization_type": "LNPre"},
        {"attn_only": True, "normalization_type": None},
        {"attn_only": False, "normalization_type": "RMS", "final_rms": True, "n_key_value_heads": 2},
        {"attn_only": False, "normalization_type": "RMSPre", "gated_mlp": True, "act_fn": "silu"},
    ],
    ids=lambda each: "-".join(str(value) for value in each.values()),
)
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_the_whole_circuit_is_transformerlens_forward(options: dict[str, Any], dtype: str) -> None:
    bridge, rows = native(**options), tokens()
    if dtype == "float64":
        bridge = bridge.double()
    model = cd.load_model(bridge, dtype=dtype)
    assert model.graph.has_mlp is not options["attn_only"]
    logits = cd.run_circuit(model, task_of(rows), cd.Circuit.full(model.graph)).double()
    expected = bridge.original_model(rows)[:, -1].double()
    exact = 1e-10 if "RMS" not in str(options["normalization_type"]) else 2e-6  # theirs is in float32
    assert (logits - expected).abs().max() < (exact if dtype == "float64" else 0.05 * expected.abs().max())


@pytest.mark.parametrize("node", ["a0.h2", "a1.h0"])
def test_a_head_ablated_is_what_a_hook_ablates(node: str) -> None:
    """All of a head's out-edges removed with zero ablation: its z is 0 in TransformerLens."""
    bridge, rows = native(attn_only=True, normalization_type="LN").double(), tokens()
    model = cd.load_model(bridge, dtype="float64")
    kept = [edge for edge in model.graph.edges if not edge.startswith(f"{node}->")]
    layer, head = int(node[1]), int(node[-1])

    def silence(z: torch.Tensor, hook: Any) -> torch.Tensor:
        heads = z.view(*z.shape[:2], 4, 4).clone()
        heads[:, :, head] = 0
        return heads.view(z.shape)

    hooks: list[Any] = [(f"blocks.{layer}.attn.hook_z", silence)]
    expected = bridge.run_with_hooks(rows, fwd_hooks=hooks, return_type="logits")[:, -1]
    circuit = cd.Circuit.from_edges(model.graph, kept)
    logits = cd.run_circuit(model, task_of(rows), circuit, ablation="zero")
    torch.testing.assert_close(logits, expected, atol=1e-10, rtol=0)
    assert (expected - bridge(rows, return_type="logits")[:, -1]).abs().max() > 1e-3


def test_an_attention_only_model_goes_the_whole_way(tmp_path: Any) -> None:
    model = cd.load_model(native(attn_only=True, normalization_type="LN"), name="two layers")
    task = task_of(tokens(8))
    circuit = cd.acdc(model, task, threshold=0.001)
    assert 0 < len(circuit) < len(model.graph)
    assert cd.evaluate(model, task, cd.Circuit.full(model.graph)).kl == pytest.approx(0, abs=1e-6)
    assert cd.explain(model, task, circuit).cards
    circuit.draw(tmp_path / "circuit.svg")
    assert "a0.h" in (tmp_path / "circuit.svg").read_text()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"positional_embedding_type": "rotary"}, "positions of kind 'rotary'"),
        ({"act_fn": "solu_ln"}, "the activation 'solu_ln'"),
        ({"attn_scores_soft_cap": 5.0}, "a soft cap"),
        ({"final_rms": True}, "another norm at the end"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(options: dict[str, Any], named: str) -> None:
    with pytest.raises(cd.CircuitDiscoveryError, match=named):
        cd.load_model(native(normalization_type="LN", attn_only=False, **options))
