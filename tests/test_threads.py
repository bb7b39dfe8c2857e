"""One thread for small runs, all for large ones, and whatever the user has settled."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny import Tiny, random_prompts

import circuitdiscovery as cd
from circuitdiscovery.cli.run import discover
from circuitdiscovery.engine import threads
from circuitdiscovery.reporting.options import Options


@pytest.fixture(autouse=True)
def _three(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a machine of three cores where nobody said anything."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_the_weights_are_those_that_each_token_goes_through(gpt2: Tiny, llama: Tiny) -> None:
    assert threads.parameters(gpt2.model) == 3 * (4 * 32**2 + 2 * 32 * 128)
    # a gate; two groups of keys
    assert threads.parameters(llama.model) == 3 * (2 * 32**2 + 2 * 32 * 16 + 3 * 32 * 48)


def test_small_runs_have_one_thread_and_large_ones_all(gpt2: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    model, task = gpt2.model, random_prompts(101, 5, 6).task
    # tokens of a run: 30, or 12
    for size, batch_size, expected in ((30, None, 1), (29, None, 3), (29, 2, 1), (11, 2, 3)):
        monkeypatch.setattr(threads, "_SMALL", threads.parameters(model) * size + 1)
        assert threads.wanted(model, task, batch_size) == expected


def test_the_number_is_as_before_afterwards(gpt2: Tiny) -> None:
    with pytest.raises(ZeroDivisionError), threads.restored():
        threads.choose(gpt2.model, gpt2.prompts.task)
        assert torch.get_num_threads() == 1
        raise ZeroDivisionError
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_what_the_user_settled_stays(gpt2: Tiny, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "3")
    threads.choose(gpt2.model, gpt2.prompts.task)
    assert torch.get_num_threads() == 3


def test_a_search_in_python_leaves_the_number_alone(gpt2: Tiny) -> None:
    cd.eap(gpt2.model, gpt2.prompts.task)
    assert torch.get_num_threads() == 3


def test_discover_chooses_records_and_restores(tmp_path: Path) -> None:
    record = discover(Options("toy", "ioi", method="eap", edges=5, examples=1), tmp_path, [])
    assert record["threads"] == 1 and torch.get_num_threads() == 3
