"""In a half precision too: KL of the full circuit is 0, and metrics are sums in float32 or better."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import Tiny, random_prompts

import circuitdiscovery as cd
from circuitdiscovery.engine.metrics import METRICS, Metric, bind, kl_from
from circuitdiscovery.measure.bench import Bench

DTYPES = ("float64", "float32", "bfloat16", "float16")


def bench_of(model: Any, task: Any, **options: Any) -> Bench:
    setting = {"ablation": "resample", "metric": "logit_diff", "direction": "noising", "batch_size": 3, "seed": 0} | options
    return Bench.build(model, task, model.graph, **setting)


@pytest.mark.parametrize("direction", ["noising", "denoising"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["gpt2", "llama", "neox_parallel", "toy"])
def test_kl_of_the_full_circuit_is_0(name: str, dtype: str, direction: str, tinies: Callable[[str], Tiny]) -> None:
    """On each row, as what is measured beside KL and as the metric, whatever is measured with it, and as a circuit with every edge
    that matters, which another run computes."""
    model = cd.load_model(tinies(name).folder, dtype=dtype)
    task = cd.load_task("ioi", model, examples=6) if name == "toy" else random_prompts(101, 6).task
    full, empty = cd.Circuit.full(model.graph), cd.Circuit.empty(model.graph)
    head = full.without(["a1.h2"])
    bench = bench_of(model, task, metric="kl_divergence", direction=direction)
    bench.measure([head.mask, full.mask, empty.mask], full.mask)
    for what in ("kl", "metric"):
        assert abs(bench.values(full.mask, what)).max() < 1e-6
        assert bench.values(empty.mask, what).min() > -1e-6 and bench.values(empty.mask, what).max() > 0.01
    assert bench.values(full.mask, "agreement").min() == 1


@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_evaluate_gives_the_full_circuit_a_kl_of_0(gpt2: Tiny, ablation: str) -> None:
    """The replacements that are added and taken away again round, which the reference does too."""
    model = cd.load_model(gpt2.folder, dtype="bfloat16")
    found = cd.evaluate(model, gpt2.prompts.task, cd.Circuit.full(model.graph), ablation=ablation, effort="quick")
    assert abs(float(found.kl)) < 1e-6 and float(found.agreement) == 1
    assert float(found.faithfulness) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_metrics_are_computed_in_float32(gpt2: Tiny, dtype: torch.dtype) -> None:
    """What they give is what they give of the same logits in float64, to float32's rounding; a metric of one's own too."""
    task = gpt2.prompts.task
    batch = next(iter(task.batches(8)))
    logits = (3 * torch.randn(2, len(task), 101, generator=torch.Generator().manual_seed(1))).to(dtype)

    def entropy(x: torch.Tensor, part: Any) -> torch.Tensor:
        assert x.dtype in (torch.float32, torch.float64)
        return -(x.softmax(-1) * x.log_softmax(-1)).sum(-1)

    for metric in (*METRICS, Metric("entropy", entropy)):
        bound = bind(metric, gpt2.model, task)
        torch.testing.assert_close(bound(logits, batch).double(), bound(logits.double(), batch).double(), atol=2e-6, rtol=0)
    torch.testing.assert_close(kl_from(logits[0], logits[1]).double(), kl_from(logits[0].double(), logits[1].double()), atol=5e-6, rtol=0)
    assert kl_from(logits[0], logits[0]).abs().max() < 1e-6
