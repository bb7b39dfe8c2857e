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
from typing import Any

import torch
from forked import Forked
from tiny import random_prompts

import circuitdiscovery as cd

STATUS, REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def wide() -> Any:
    """A random Llama whose examples take megabytes each."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=256, intermediate_size=512, num_hidden_layers=6, num_attention_heads=8,
        num_key_value_heads=4, vocab_size=101, tie_word_embeddings=True,
    )  # fmt: skip
    return cd.load_model(LlamaForCausalLM(config).eval())


def effects(model: Any, task: Any) -> list[float]:
    """Of some nodes, by their cards."""
    circuit = cd.random(model, task).best(20)
    return [card.effect for card in cd.explain(model, task, circuit, effort="quick").cards.values()]


def through_neurons(model: Any, task: Any) -> list[float]:
    """Of two heads on a later one, by paths through MLPs that are split into neurons."""
    graph = cd.split(model, {"m1": "neurons", "m2": "neurons"})
    step = cd.path_patching(model, task, graph=graph, receivers="a3.h0", senders=["a0.h0", "a1.h1"])
    return [float(effect) for effect in step.effects.values()]


SEARCHES: dict[str, tuple[int, str, Callable[[Any, Any], Any]]] = {
    "eap": (48, "60MB", lambda model, task: cd.eap(model, task).values),
    "run_circuit": (48, "60MB", lambda model, task: cd.run_circuit(model, task, cd.Circuit.full(model.graph))),
    "edge_pruning": (12, "100MB", lambda model, task: cd.edge_pruning(model, task, edges=50, steps=1).values),
    "explain": (48, "40MB", effects),
    "path_patching": (8, "120MB", through_neurons),
}  # fmt: skip


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
    examples, budget, search = SEARCHES[name]
    model = wide()
    task, small = (random_prompts(model.vocab_size, *shape).task for shape in ((examples, 32), (4, 32)))

    def run(limit: str | None) -> Any:
        with cd.memory_budget(limit) if limit else nullcontext():
            return search(model, task)

    before = partial(search, model, small)
    torch.save([measured(partial(run, limit), before) for limit in (budget, None)], file)


if __name__ == "__main__":
    main(*sys.argv[1:])
