"""The memory budget: measured by the system, against the same search without one."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tiny import Tiny, random_prompts

import circuitdiscovery as cd
from circuitdiscovery.cli.commands import cli
from circuitdiscovery.engine import memory
from circuitdiscovery.files.text import size

STATUS, REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def held(field: str) -> int:
    """Bytes: of this process now (VmRSS), or the most since the peak began anew (VmHWM)."""
    lines = STATUS.read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def peak_of(run: Callable[[], Any]) -> tuple[Any, int]:
    """(what a call gives, the bytes that this process took for it at the peak)."""
    ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back to the system
    REFS.write_text("5")
    before = held("VmRSS")
    found = run()
    return found, held("VmHWM") - before


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


SEARCHES: dict[str, tuple[int, str, Callable[[Any, Any], Any]]] = {
    "eap": (96, "100MB", lambda model, task: cd.eap(model, task).values),
    "eap_ig": (96, "100MB", lambda model, task: cd.eap_ig(model, task, steps=3).values),
    "run_circuit": (96, "100MB", lambda model, task: cd.run_circuit(model, task, cd.Circuit.full(model.graph))),
    "acdc": (4, "100MB", lambda model, task: cd.acdc(model, task, threshold=1.0, group_testing=True).mask),
    "edge_pruning": (32, "100MB", lambda model, task: cd.edge_pruning(model, task, edges=50, steps=2).values),
}  # fmt: skip


@pytest.mark.skipif(not STATUS.is_file() or not REFS.is_file(), reason="needs Linux' own measure of memory")
@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_stays_within_its_budget_and_finds_the_same(wide: Any, name: str) -> None:
    examples, budget, search = SEARCHES[name]
    task = random_prompts(wide.vocab_size, examples, 32).task
    search(wide, random_prompts(wide.vocab_size, 1, 4).task)  # whatever is held from the first call on
    bounded, least = peak_of(lambda: _within(budget, lambda: search(wide, task)))
    free, most = peak_of(lambda: search(wide, task))
    print(name, least / 1e6, most / 1e6)
    assert least < size(budget) < most, (least / 1e6, most / 1e6)
    bounded, free = np.asarray(bounded, dtype=float), np.asarray(free, dtype=float)
    np.testing.assert_allclose(bounded, free, atol=2e-5 * np.abs(free).max())


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
