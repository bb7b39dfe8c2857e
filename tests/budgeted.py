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
from circuitdiscovery.features.dictionary import Dictionary

STATUS, REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def wide(kind: str = "Llama", **more: Any) -> Any:
    """A random model whose examples take megabytes each."""
    torch.manual_seed(0)
    shape = {
        "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8,
        "num_key_value_heads": 4, "vocab_size": 101, "tie_word_embeddings": True,
    }  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(**shape | more)
    return cd.load_model(getattr(transformers, f"{kind}ForCausalLM")(config).eval())


def soft_capped() -> Any:
    """One that holds the attention scores of all pairs of positions."""
    return wide("Gemma2", head_dim=32, query_pre_attn_scalar=32)


def many_words() -> Any:
    """One whose logits take much more than all that its nodes write."""
    small: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    return wide(**small, num_key_value_heads=2, vocab_size=20_000)


def effects(model: Any, task: Any) -> list[float]:
    """Of some nodes, by their cards."""
    circuit = cd.random(model, task).best(20)
    return [card.effect for card in cd.explain(model, task, circuit, effort="quick").cards.values()]


def through_neurons(model: Any, task: Any) -> list[float]:
    """Of two heads on a later one, by paths through MLPs that are split into neurons."""
    graph = cd.split(model, {"m1": "neurons", "m2": "neurons"})
    step = cd.path_patching(model, task, graph=graph, receivers="a3.h0", senders=["a0.h0", "a1.h1"])
    return [float(effect) for effect in step.effects.values()]


def of_nodes(model: Any, task: Any) -> list[float]:
    return list(cd.exact(model, task, level="node").values())


def all_but_one(model: Any, task: Any) -> Any:
    """In few measurements; places depend on roundings."""
    edges = len(model.graph) - 1
    return cd.hybrid(model, task, edges=edges, rounds=1).top(edges).mask


def attributed(model: Any, task: Any) -> Any:
    return cd.eap(model, task).values


def measured_nodes(model: Any, task: Any) -> list[float]:
    """What a quick evaluation says of each node."""
    circuit = cd.Circuit.full(model.graph)
    return list(map(float, cd.evaluate(model, task, circuit, effort="quick").minimality.scores.values()))


def many_parts() -> Any:
    """One whose masks are larger than everything else where its neurons are sources of their own."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_inner=200, vocab_size=101)
    return cd.load_model(transformers.GPT2LMHeadModel(config).eval())


def measured_neurons(model: Any, task: Any) -> list[float]:
    found = cd.neurons(model, task, top=400, method="exact").damages
    return [float(found[name]) for name in sorted(found)]


def many_features() -> Any:
    """One that is small beside the features of its dictionary."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=101)
    return cd.load_model(transformers.GPT2LMHeadModel(config).eval())


def kept_features(model: Any, task: Any) -> list[float]:
    """Their numbers."""
    weight = torch.randn(16_000, 32, generator=torch.Generator().manual_seed(1))
    zero = torch.zeros(16_000), torch.zeros(32)
    sae = Dictionary("relu", "m0", "output", weight, zero[0], weight / 5, zero[1])
    split = cd.split(model, {"m0": sae}, task=task, keep=5).split_of("m0")
    assert split is not None
    return list(map(float, split.numbers))


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
    "exact of many words": Case("30MB", lambda model, task: cd.exact(model, task).values, 64, 6, many_words),
    "exact of many words by nodes": Case("60MB", of_nodes, 256, 6, many_words),
    "acdc of many words": Case(
        "30MB", lambda model, task: ~cd.acdc(model, task, threshold=1e9).mask, 64, 6, many_words
    ),
    "hybrid of many words": Case("30MB", all_but_one, 64, 6, many_words),
    "explain": Case("40MB", effects, 48),
    "path_patching": Case("120MB", through_neurons, 8),
    "evaluate": Case("60MB", measured_nodes, 128, 6, many_words),
    "neurons": Case("40MB", measured_neurons, 2, 4, many_parts),
    "features that are kept": Case("60MB", kept_features, 150, 6, many_features),
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
