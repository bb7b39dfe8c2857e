"""A real language model that this project did not train: stories260K (Karpathy's
llama2.c), and its gendered-pronoun circuit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import Tiny

import circuitdiscovery as cd


@pytest.fixture(scope="module")
def model(tinies: Callable[[str], Tiny]) -> Any:
    return tinies("stories260K").model


def preference(model: Any, prompt: str) -> float:
    """The logit of " She" minus that of " He" after a prompt."""
    ids = {text: model.tokenizer(prompt + text).input_ids[-1] for text in (" She", " He")}
    clean = [model.tokenizer(prompt).input_ids]
    task = cd.Task.from_tokens(clean=clean, corrupted=clean, correct=[ids[" She"]], incorrect=[ids[" He"]])
    logits = cd.run_circuit(model, task, cd.Circuit.full(model.graph))[0]
    return float(logits[ids[" She"]] - logits[ids[" He"]])


def test_the_model_prefers_the_pronoun_by_the_known_margins(model: Any) -> None:
    # the model's published behaviour: 6-7 logits for the girl, 4-5 the other way for the boy
    assert 6 < preference(model, "Once upon a time, there was a little girl named Lily.") < 7
    assert 4 < -preference(model, "Once upon a time, there was a little boy named Tim.") < 5


@pytest.mark.slow
def test_its_gendered_pronoun_circuit_is_found(model: Any) -> None:
    task = cd.load_task("gendered_pronoun", model, examples=8)
    circuit = cd.acdc(model, task, threshold=0.003)
    random = cd.random(model, task).top(len(circuit))
    held_out: Any = task.held_out

    def difference(edges: Any) -> float:
        logits = cd.run_circuit(model, held_out, edges)
        answers = [
            torch.tensor([getattr(example, side) for example in held_out.examples])
            for side in ("correct", "incorrect")
        ]
        right, wrong = (logits.gather(1, ids).mean() for ids in answers)
        return float(right - wrong)

    full, empty = (
        difference(edges) for edges in (cd.Circuit.full(model.graph), cd.Circuit.empty(model.graph))
    )
    found, chance = ((difference(edges) - empty) / (full - empty) for edges in (circuit, random))
    assert len(circuit) < 0.1 * len(model.graph)
    assert found > 0.6 > 0.1 > chance
    # a group's key and value are one edge each: no edge is counted once per query head
    assert any(".kv" in edge for edge in circuit.edges)
    assert not any(
        "<k>" in edge or "<v>" in edge for edge in circuit.edges if ".kv" not in edge.partition("->")[2]
    )
