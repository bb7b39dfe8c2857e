"""The memory budget: measured by the system, against the same search without one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import budgeted
import pytest
import torch
from click.testing import CliRunner
from tiny import Tiny, random_prompts

import circuitdiscovery as cd
from circuitdiscovery.cli.commands import cli
from circuitdiscovery.engine import memory
from circuitdiscovery.engine.setup import Setup
from circuitdiscovery.files.text import size
from circuitdiscovery.search.alternatives import cases, most_alternatives


@pytest.fixture(scope="module")
def wide() -> Any:
    return budgeted.wide()


@pytest.mark.skipif(
    not budgeted.STATUS.is_file() or not budgeted.REFS.is_file(), reason="needs Linux' own measure of memory"
)
@pytest.mark.parametrize("name", budgeted.SEARCHES)
def test_a_search_stays_within_its_budget_and_finds_the_same(name: str, tmp_path: Path) -> None:
    file = tmp_path / "measured.pt"
    subprocess.run([sys.executable, budgeted.__file__, name, file], check=True)
    (bounded, least), (free, most) = torch.load(file)
    # the allocator keeps what was freed
    assert least < 1.5 * size(budgeted.SEARCHES[name].budget), least
    assert 1.5 * least < most, (least, most)
    assert free.any()
    torch.testing.assert_close(bounded, free, atol=2e-5 * float(free.abs().max()), rtol=0)


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


def test_means_of_many_lengths_are_counted(wide: Any) -> None:
    """One for each length is held whatever goes through: [sources, length, width] in float32."""
    lengths = [length for length in range(2, 32) for _ in range(3)]
    prompts = [[1 + (i + j) % 100 for j in range(length)] for i, length in enumerate(lengths)]
    task = cd.Task.from_tokens(
        clean=prompts, corrupted=[row[::-1] for row in prompts], correct=[0] * 90, incorrect=[1] * 90
    )
    means = 4 * len(wide.graph.sources) * wide.d_model * sum(set(lengths))
    for ablation, kept in (("resample", 0), ("mean_all", means / sum(set(lengths))), ("mean", means)):
        assert Setup.of(wide, task, ablation=ablation).held.always == kept
    # beside the mean, the sum of squares
    assert Setup.of(wide, task, ablation="random").held.always == 2 * means
    with cd.memory_budget(means), pytest.raises(cd.CircuitDiscoveryError, match="of all examples together"):
        cd.run_circuit(wide, task, cd.Circuit.full(wide.graph), ablation="mean")


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
