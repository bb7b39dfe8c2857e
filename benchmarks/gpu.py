"""One run on a card: are the results right there, and how fast, up to Llama-3.1-8B's shape in bfloat16.

    python benchmarks/gpu.py [--device cuda] [--out gpu.json] [--self-test]

1. Gates, on a small random model in float32: a circuit of all edges is Hugging Face's model, one of none is the
   corrupted run, the fast engine is the definition, and EAP is the definition's gradient.
2. The speed table, on GPT-2 small's shape in float32 and on Llama-3.1-8B's in bfloat16, random weights: each in
   multiples of F, one Hugging Face forward of the same prompts, with the peak of the memory above the model.

`--self-test` runs all of it on the CPU with tiny shapes: what is measured there says nothing.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import circuitdiscovery as cd
from circuitdiscovery.engine.definition import masked_logits
from circuitdiscovery.engine.setup import Setup
from circuitdiscovery.task.example import Example

SMALL = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 101,
}  # fmt: skip
LLAMA = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128_256, "rope_theta": 500_000.0,
}  # fmt: skip
CLOSE = 2e-4  # of the largest value, in float32: a card adds up in another order


def gpt2(dtype: torch.dtype, device: str) -> Any:
    """GPT-2 small's shape."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return _random(GPT2LMHeadModel, GPT2Config(), dtype, device)


def llama(shape: dict[str, Any], dtype: torch.dtype, device: str) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return _random(LlamaForCausalLM, LlamaConfig(**shape), dtype, device)


def _random(kind: Any, config: Any, dtype: torch.dtype, device: str) -> Any:
    """A Hugging Face model with random weights, made where it runs."""
    torch.manual_seed(0)
    config._attn_implementation = "eager"
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return kind(config).eval()
    finally:
        torch.set_default_dtype(before)


def prompts(vocabulary: int, count: int, length: int) -> cd.Task:
    """Random prompts, clean and corrupted."""
    tokens = torch.randint(
        vocabulary, (count, 2, length), generator=torch.Generator().manual_seed(1)
    ).tolist()
    return cd.Task(
        "random",
        tuple(
            Example(tuple(clean), tuple(other), (1,), (2,), length - 1, None, "") for clean, other in tokens
        ),
    )


def tokens_of(task: cd.Task, side: str, device: str) -> torch.Tensor:
    return torch.tensor([getattr(example, side) for example in task.examples], device=device)


# ------------------------------------------------------------------ gates


def gates(device: str) -> dict[str, float]:
    """By gate: the largest difference, in parts of the largest value."""
    hf = llama(SMALL, torch.float32, device)
    model, task = cd.load_model(hf), prompts(SMALL["vocab_size"], 6, 12)
    graph = model.graph

    def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
        return float((ours - theirs).abs().max() / theirs.abs().max())

    with torch.no_grad():
        clean, corrupted = (
            hf(tokens_of(task, side, device)).logits[:, -1] for side in ("clean", "corrupted")
        )
    nothing = cd.Circuit(graph, np.zeros_like(graph.allowed))
    ((batch, patched),) = Setup.of(model, task).patched_runs()
    mask = graph.allowed & (np.random.default_rng(0).random(graph.allowed.shape) < 0.5)

    def defined(mask: torch.Tensor) -> torch.Tensor:
        return masked_logits(model, graph, patched.start, patched.replacement, batch.position, mask)

    ones = torch.from_numpy(graph.allowed.astype(np.float32)).to(device).requires_grad_()
    metric = Setup.of(model, task).metric
    (gradient,) = torch.autograd.grad(metric(defined(ones), batch).mean(), ones)
    gradient = gradient.cpu() * torch.from_numpy(graph.allowed.copy())
    with torch.no_grad():
        same = apart(patched.logits(mask), defined(torch.from_numpy(mask.astype(np.float32)).to(device)))
    return {
        "all edges: the model": apart(cd.run_circuit(model, task, cd.Circuit.full(graph)), clean),
        "no edges: the corrupted run": apart(cd.run_circuit(model, task, nothing), corrupted),
        "the fast engine: the definition": same,
        "EAP: the definition's gradient": apart(torch.tensor(cd.eap(model, task).values), gradient),
    }


# ------------------------------------------------------------------ speed


class Clock:
    """Seconds of a call, the best of several, and the memory that it took above what was held (0 on a CPU)."""

    def __init__(self, device: str, repeat: int) -> None:
        self._cuda, self._repeat = device.startswith("cuda"), repeat

    def __call__(self, run: Callable[[], Any]) -> tuple[float, float]:
        best, held = float("inf"), 0
        for _ in range(self._repeat):
            if self._cuda:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
                held = torch.cuda.memory_allocated()
            begun = time.perf_counter()
            run()
            if self._cuda:
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - begun)
        return best, (torch.cuda.max_memory_allocated() - held) / 1e9 if self._cuda else 0.0


def speed(hf: Any, device: str, examples: int, length: int, repeat: int) -> dict[str, Any]:
    """By what is run: F and gigabytes; and the seconds of F."""
    dtype = next(hf.parameters()).dtype
    model, clock = cd.load_model(hf, dtype=str(dtype).removeprefix("torch.")), Clock(device, repeat)
    task = prompts(model.vocab_size, examples, length)
    tokens = tokens_of(task, "clean", device)

    def forward() -> None:
        with torch.no_grad():
            hf(tokens)

    scores = cd.eap(model, task)
    circuit = scores.top(max(1, len(model.graph) // 100))
    runs: dict[str, Callable[[], Any]] = {
        "eap": lambda: cd.eap(model, task),
        "eap_ig": lambda: cd.eap_ig(model, task),
        "run_circuit, 1% of the edges": lambda: cd.run_circuit(model, task, circuit),
        "matryoshka, 10 steps": lambda: cd.matryoshka(model, task, steps=10, drawn=0),
    }
    forward()
    seconds, _ = clock(forward)
    rows = {}
    for name, run in runs.items():
        took, gigabytes = clock(run)
        rows[name] = {"F": took / seconds, "GB": gigabytes}
        print(f"  {name}: {took / seconds:.1f} F, {took:.2f} s, {gigabytes:.2f} GB", flush=True)
    estimated = cd.plan(model, task).costs
    plans = {name: estimated[name].gigabytes for name in ("eap", "eap_ig")}
    return {"edges": len(model.graph), "seconds of F": seconds, "planned GB": plans, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--self-test", action="store_true")
    given = parser.parse_args()
    device = "cpu" if given.self_test else given.device
    found: dict[str, Any] = {"device": device, "torch": torch.__version__}
    if device.startswith("cuda"):
        torch.backends.cuda.matmul.allow_tf32 = False
        found["card"] = torch.cuda.get_device_name()
    found["gates"] = gates(device)
    for name, error in found["gates"].items():
        print(f"{name}: {error:.1e}", flush=True)
    models: dict[str, Callable[[], Any]] = {
        "GPT-2 small's shape, float32": lambda: gpt2(torch.float32, device),
        "Llama-3.1-8B's shape, bfloat16": lambda: llama(LLAMA, torch.bfloat16, device),
    }
    if given.self_test:
        models = {
            "tiny, float32": lambda: llama(SMALL, torch.float32, device),
            "tiny, bfloat16": lambda: llama(SMALL, torch.bfloat16, device),
        }
    found["speed"] = {}
    for name, make in models.items():
        print(name, flush=True)
        found["speed"][name] = speed(make(), device, 16, 16, 1 if given.self_test else 3)
    if given.out:
        given.out.write_text(json.dumps(found, indent=1))
    if wrong := [name for name, error in found["gates"].items() if not error < CLOSE]:
        raise SystemExit(f"wrong: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
