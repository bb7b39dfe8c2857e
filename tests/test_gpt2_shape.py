"""Gate 5 at GPT-2 small's shape: from states sampled from a finished search, a full forward per edge decides the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from reference import acdc_order
from torch.nn.functional import kl_div

import circuitdiscovery as cd
from circuitdiscovery.engine.fast import World

THRESHOLD = 0.01
STATES = 300


@pytest.fixture(scope="module")
def model() -> Any:
    """Random weights of GPT-2 small's shape (a small vocabulary), strong enough for edges to matter."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    hf = GPT2LMHeadModel(GPT2Config(vocab_size=2000, bos_token_id=0, eos_token_id=0)).eval()
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(4 if "wte" in name or "wpe" in name else 2.5)
    return cd.load_model((hf, None))


@pytest.fixture(scope="module")
def task() -> Any:
    tokens = torch.randint(2000, (2, 2, 6), generator=torch.Generator().manual_seed(1))
    return cd.Task.from_tokens(clean=tokens[0], corrupted=tokens[1], correct=[1, 2], incorrect=[3, 4])


@pytest.fixture(scope="module")
def found(model: Any, task: Any) -> dict[bool, tuple[Any, int]]:
    """With and without group testing the circuit, and how many alternatives were evaluated."""
    evaluated, branch = [0], World.branch

    def counted(self: World, mask: np.ndarray, state: Any, receiver: int, kept: np.ndarray) -> torch.Tensor:
        evaluated[0] += len(kept)
        return branch(self, mask, state, receiver, kept)

    found: dict[bool, tuple[Any, int]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(World, "branch", counted)
        for group_testing in (False, True):
            evaluated[0] = 0
            found[group_testing] = cd.acdc(model, task, threshold=THRESHOLD, group_testing=group_testing), evaluated[0]
    return found


@pytest.mark.slow
def test_group_testing_evaluates_less_and_finds_most_of_the_edges(found: dict[bool, tuple[Any, int]]) -> None:
    (exactly, each), (grouped, together) = found[False], found[True]
    assert together < 0.6 * each
    assert len(grouped & exactly) > 0.8 * len(grouped | exactly)


@pytest.mark.slow
def test_gate_5_naive_decisions_agree_at_gpt2_small_s_shape(model: Any, task: Any, found: dict[bool, tuple[Any, int]]) -> None:
    circuit = found[False][0]
    graph = circuit.graph
    assert len(graph) == 32491
    assert 50 < len(circuit) < 500
    alt, full = cd.replacements(model, task), cd.run_circuit(model, task, cd.Circuit.full(graph)).log_softmax(-1)

    def kl(mask: np.ndarray) -> float:
        logits = cd.run_circuit(model, task, cd.Circuit(graph, mask), ablation=alt)
        return float(kl_div(logits.log_softmax(-1), full, log_target=True, reduction="batchmean"))

    order = [graph.index(edge) for edge in acdc_order(graph)]
    # edges into nodes that lead nowhere go without a forward; two of three states are from the others
    alive = np.asarray(circuit.mask.any(axis=1))
    weights = np.array([1.0 if _alive(graph, column, alive) else 0.1 for _, column in order])
    weights /= weights.sum()
    close = 0
    for at in np.random.default_rng(0).choice(len(order), STATES, replace=False, p=weights):
        mask = circuit.mask.copy()
        for row, column in order[at:]:
            mask[row, column] = True
        old = kl(mask)
        mask[order[at]] = False
        damage = kl(mask) - old
        if abs(damage - THRESHOLD) <= 1e-5:
            close += 1
            continue
        assert (damage >= THRESHOLD) == circuit.mask[order[at]], graph.names(circuit.mask)[0]
    assert close < STATES // 10


def _alive(graph: Any, column: int, alive: np.ndarray) -> bool:
    readers = graph.reader_nodes(graph.receivers[column])
    return not readers or any(alive[graph.source_index[node]] for node in readers)
