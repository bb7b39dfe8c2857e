"""The roles of SmolLM2-135M's heads on IOI (marked `real`, run by `make real`), beside what Hugging Face's model and
runs of circuits show of these heads.

Skipped, with the reason, where its package cannot be had.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_real import answer_difference, fetched, real_models

import circuitdiscovery as cd
from circuitdiscovery.explanation.cards import Explanation

pytestmark = pytest.mark.real
HEADS = ("a20.h0", "a23.h3", "a23.h7", "a29.h0", "a29.h1")


@pytest.fixture(scope="module")
def folder() -> Path:
    return fetched(real_models.SMOLLM2)


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return cd.load_model(folder, device="cpu")


@pytest.fixture(scope="module")
def task(model: Any) -> cd.Task:
    held_out = cd.load_task("ioi", model, examples=32).held_out
    assert held_out is not None
    return held_out


@pytest.fixture(scope="module")
def explained(model: Any, task: cd.Task) -> Explanation:
    return cd.explain(model, task, cd.Circuit.from_nodes(model.graph, HEADS), effort="quick")


@pytest.fixture(scope="module")
def looks(folder: Path, task: cd.Task) -> dict[str, dict[str, float]]:
    """By head, Hugging Face's mean attention from END to each named position of eight prompts."""
    from transformers import AutoModelForCausalLM

    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    found: dict[str, dict[str, float]] = {
        head: dict.fromkeys(("IO", "S1", "S2", "END"), 0.0) for head in HEADS
    }
    for example in task.examples[:8]:
        with torch.no_grad():
            weights = hf(torch.tensor([example.clean]), output_attentions=True).attentions
        for head in HEADS:
            layer, index = map(int, head[1:].split(".h"))
            for name in found[head]:
                found[head][name] += float(weights[layer][0, index, -1, example.positions[name]]) / 8
    return found


def damage(model: Any, task: cd.Task, node: str, receivers: Sequence[str] | None = None) -> float:
    """What the answers' difference loses without a node's edges, or without those into some receivers."""
    some, graph = task.select(range(8)), model.graph
    full = cd.Circuit.full(graph)
    cut = [
        edge
        for edge in graph.edges
        if edge.startswith(f"{node}->") and (receivers is None or edge.partition("->")[2] in receivers)
    ]
    return answer_difference(model, some, full) - answer_difference(
        model, some, cd.Circuit(graph, full.mask & ~graph.mask(cut))
    )


def test_a_head_that_looks_at_the_subject_and_writes_against_it_is_the_wrong_answers_suppressor(
    model: Any, task: cd.Task, explained: Explanation, looks: dict[str, dict[str, float]]
) -> None:
    card = explained.cards["a23.h3"]
    assert list(card.roles) == ["suppressor of the wrong answer"]
    assert looks["a23.h3"]["S2"] > 0.4 and looks["a23.h3"]["IO"] < 0.1
    for lens, example in zip(card.lens, task.examples, strict=False):
        assert lens.suppressed[0][0] == model.tokenizer.decode([example.clean[example.positions["S2"]]])
    assert damage(model, task, "a23.h3", ["logits"]) > 1


def test_s_inhibition_acts_through_a_name_mover_that_writes_little_by_itself(
    model: Any, task: cd.Task, explained: Explanation, looks: dict[str, dict[str, float]]
) -> None:
    assert explained.cards["a20.h0"].role == "S-inhibition" and looks["a20.h0"]["S2"] > 0.6
    movers = [f"a23.h{head}<q>" for head in (0, 1, 2, 7)]
    through, whole = (damage(model, task, "a20.h0", each) for each in (movers, None))
    assert whole > 0.5 and through > 0.6 * whole
    assert damage(model, task, "a20.h0", movers[:3]) < 0.6 * whole  # a23.h7 makes the difference


def test_a_head_that_looks_at_end_itself_is_no_name_mover(
    explained: Explanation, looks: dict[str, dict[str, float]]
) -> None:
    for node, sign in (("a29.h1", 1), ("a29.h0", -1)):
        card = explained.cards[node]
        assert sign * float(card.direct) > 0.5 and not [role for role in card.roles if "mover" in role]
        assert looks[node]["END"] > 0.3 and looks[node]["IO"] < 0.05


def test_an_induction_head_that_moves_the_name_has_both_roles(
    explained: Explanation, looks: dict[str, dict[str, float]]
) -> None:
    card = explained.cards["a23.h7"]
    assert list(card.roles) == ["name mover", "induction"]
    assert card.scores["induction"] > 0.5 and looks["a23.h7"]["IO"] > 0.3
    assert np.sign(float(card.direct)) == 1


def test_the_sink_is_one_token(explained: Explanation) -> None:
    """The prompts begin with different words, which are one position."""
    assert len({pattern.tokens[0] for card in explained.cards.values() for pattern in card.patterns}) > 1
    for card in explained.cards.values():
        assert not {name for name, _ in card.attended} & {
            "Then",
            "When",
            "After",
            "While",
            "Today",
            "Because",
        }
    assert "first token" in dict(explained.cards["a23.h3"].attended)
