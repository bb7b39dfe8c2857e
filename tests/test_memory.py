"""The memory budget: measured by the system, against the same search without one."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from forked import Forked
from tiny import Tiny, random_prompts

import circuitdiscovery as cd
from circuitdiscovery.cli.commands import cli
from circuitdiscovery.engine import memory
from circuitdiscovery.engine.setup import Setup
from circuitdiscovery.files.text import size
from circuitdiscovery.search.alternatives import cases, most_alternatives

STATUS, REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def held(field: str) -> int:
    """Bytes: of this process now (VmRSS), or the most since the peak began anew (VmHWM)."""
    lines = STATUS.read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def measured(run: Callable[[], Any], before: Callable[[], Any], folder: Path) -> tuple[Any, int]:
    """(what a call gives, the bytes that it took at its peak), in a process of its own that called another first."""
    said, file = folder / "said", folder / "found.pt"
    said.mkdir(parents=True)

    def own() -> None:
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 2**16)  # M_MMAP_THRESHOLD: what is freed goes back to the system at once
        before()  # what libraries read from their files is not counted
        gc.collect()
        gc.freeze()  # garbage is collected when it is a quarter of all objects, and not of earlier tests' too
        libc.malloc_trim(0)
        REFS.write_text("5")
        already = held("VmRSS")
        found = run()
        torch.save((torch.as_tensor(found).double(), held("VmHWM") - already), file)

    ended = Forked(own, folder, said).ended()
    assert ended.status == 0, ended.err
    return torch.load(file)


@pytest.fixture(scope="module")
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


@pytest.mark.skipif(not STATUS.is_file() or not REFS.is_file(), reason="needs Linux' own measure of memory")
@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_stays_within_its_budget_and_finds_the_same(wide: Any, name: str, tmp_path: Path) -> None:
    examples, budget, search = SEARCHES[name]
    task, small = (random_prompts(wide.vocab_size, *shape).task for shape in ((examples, 32), (4, 32)))
    first = partial(search, wide, small)
    bounded, least = measured(
        partial(_within, budget, partial(search, wide, task)), first, tmp_path / "bounded"
    )
    free, most = measured(partial(search, wide, task), first, tmp_path / "free")
    # the allocator keeps what was freed: the process holds up to about 1.7 times what lives, and twice where
    # the heap is torn by the tests before
    assert least < 2 * size(budget) and 1.5 * least < most, (least / 1e6, most / 1e6)
    assert free.any()
    torch.testing.assert_close(bounded, free, atol=2e-5 * float(free.abs().max()), rtol=0)


def _within(budget: int | str, run: Callable[[], Any]) -> Any:
    with cd.memory_budget(budget):
        return run()


def test_what_one_example_needs_is_said(wide: Any) -> None:
    task = random_prompts(wide.vocab_size, 2, 32).task
    with (
        cd.memory_budget("1MB"),
        pytest.raises(cd.CircuitDiscoveryError, match=r"0\.001 GB may be held: .*--memory"),
    ):
        cd.eap(wide, task)
    with cd.memory_budget("30MB"):
        assert cd.eap(wide, task).values.any()  # a part at a time
        with pytest.raises(cd.CircuitDiscoveryError, match=r"of all examples together .*give fewer examples"):
            cd.acdc(wide, random_prompts(wide.vocab_size, 20, 32).task)
    cd.eap(wide, task)  # the budget is over


def test_a_budget_never_takes_more_examples_at_once(llama: Tiny) -> None:
    need, plenty = memory.Need(each=10.0, always=5.0), 1e12
    assert need.at_once(7, plenty) == 7 and need.at_once(7, 120.0) == 7 and need.at_once(7, 60.0) == 3
    with cd.memory_budget("1TB"):
        many = cd.eap(llama.model, llama.prompts.task).values
    assert (many == cd.eap(llama.model, llama.prompts.task).values).all()


def test_a_budget_bounds_the_alternatives_of_one_forward(llama: Tiny) -> None:
    found = {}
    for budget in ("1GB", "2MB"):
        with cd.memory_budget(budget):
            setup = Setup.of(llama.model, llama.prompts.task, need=memory.stepwise)
            found[budget] = most_alternatives(cases(setup)[0], setup.graph.allowed, 0)
    assert 1 <= found["2MB"] < found["1GB"]


def test_free_memory_is_what_the_system_says() -> None:
    total = next(
        line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal")
    )
    assert 0 < memory.budget(torch.device("cpu")) < 0.8 * 1024 * int(total.split()[1])


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1 XB", "0", "iB", "1e9", "8 G B"])
def test_what_is_not_a_size_is_refused(text: str) -> None:
    with pytest.raises(cd.CircuitDiscoveryError, match="memory"):
        cd.memory_budget(text)
    assert CliRunner().invoke(cli, ["plan", "toy", "ioi", "--memory", text]).exit_code == 2


def test_the_command_line_bounds_and_says_what_fits() -> None:
    def planned(memory: str) -> str:
        ran = CliRunner().invoke(cli, ["plan", "toy", "ioi", "--memory", memory])
        assert ran.exit_code == 0, ran.output
        return ran.output

    assert "budget" in planned("1GB") and "does not fit" not in planned("1GB")
    assert "a part at a time fits" in planned("4MB") and "does not fit the budget" in planned("10kB")
