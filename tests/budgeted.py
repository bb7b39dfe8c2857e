"""What searches hold with and without a memory budget: `python budgeted.py NAME FILE`, an interpreter of its own.

The heap of a process that ran other tests has holes: there a search was seen to hold twice what it holds here.
"""

from __future__ import annotations

import ctypes
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from forked import Forked
from tiny import random_prompts

import circuitdiscovery as cd

STATUS, REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def wide(kind: str = "Llama", **more: Any) -> Any:
    """A random model whose examples take megabytes each."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=256, intermediate_size=512, num_hidden_layers=6, num_attention_heads=8,
        num_key_value_heads=4, vocab_size=101, tie_word_embeddings=True, **more,
    )  # fmt: skip
    return cd.load_model(getattr(transformers, f"{kind}ForCausalLM")(config).eval())


def soft_capped() -> Any:
    """One that holds the attention scores of all pairs of positions."""
    return wide("Gemma2", head_dim=32, query_pre_attn_scalar=32)


def effects(model: Any, task: Any) -> list[float]:
    """Of some nodes, by their cards."""
    circuit = cd.random(model, task).best(20)
    return [card.effect for card in cd.explain(model, task, circuit, effort="quick").cards.values()]


def through_neurons(model: Any, task: Any) -> list[float]:
    """Of two heads on a later one, by paths through MLPs that are split into neurons."""
    graph = cd.split(model, {"m1": "neurons", "m2": "neurons"})
    step = cd.path_patching(model, task, graph=graph, receivers="a3.h0", senders=["a0.h0", "a1.h1"])
    return [float(effect) for effect in step.effects.values()]


def attributed(model: Any, task: Any) -> Any:
    return cd.eap(model, task).values


class Case(NamedTuple):
    budget: str
    search: Callable[[Any, Any], Any]
    examples: int
    length: int = 32
    model: Callable[[], Any] = wide


SEARCHES = {
    "eap": Case("60MB", attributed, 48),
    "eap of long prompts": Case("500MB", attributed, 8, 512, soft_capped),
    "run_circuit": Case(
        "60MB", lambda model, task: cd.run_circuit(model, task, cd.Circuit.full(model.graph)), 48
    ),
    "edge_pruning": Case(
        "100MB", lambda model, task: cd.edge_pruning(model, task, edges=50, steps=1).values, 12
    ),
    "explain": Case("40MB", effects, 48),
    "path_patching": Case("120MB", through_neurons, 8),
}


def held(field: str) -> int:
    """Bytes: of this process now (VmRSS), or the most since the peak began anew (VmHWM)."""
    lines = STATUS.read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def measured(run: Callable[[], Any], before: Callable[[], Any]) -> tuple[Any, int]:
    """(what a call gives, the bytes that it took at its peak), in a fork that called another first."""
    with tempfile.TemporaryDirectory() as folder:

        def own() -> None:
            libc = ctypes.CDLL(None)
            libc.mallopt(-3, 2**16)  # M_MMAP_THRESHOLD: what is freed goes back to the system at once
            before()  # what libraries read from their files is not counted
            libc.malloc_trim(0)
            REFS.write_text("5")
            already = held("VmRSS")
            found = run()
            torch.save((torch.as_tensor(found).double(), held("VmHWM") - already), "found.pt")

        ended = Forked(own, Path(folder), Path(folder)).ended()
        assert ended.status == 0, ended.err
        return torch.load(Path(folder) / "found.pt")


def main(name: str, file: str) -> None:
    """Write what a search finds and takes within its budget, and without one."""
    torch.set_num_threads(1)  # a fork waits for ever for threads that its parent had
    case = SEARCHES[name]
    model = case.model()
    task = random_prompts(model.vocab_size, case.examples, case.length).task
    small = random_prompts(model.vocab_size, 4, 32).task

    def run(limit: str | None) -> Any:
        with cd.memory_budget(limit) if limit else nullcontext():
            return case.search(model, task)

    before = partial(case.search, model, small)
    torch.save([measured(partial(run, limit), before) for limit in (case.budget, None)], file)


if __name__ == "__main__":
    main(*sys.argv[1:])
