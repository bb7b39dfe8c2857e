"""Plans: counted against torch's own counter of products, Hugging Face's parameters, and measured figures."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from tiny import Tiny, random_prompts
from torch.utils.flop_counter import FlopCounterMode

import circuitdiscovery as cd
from circuitdiscovery.cli.commands import cli
from circuitdiscovery.model.outline import of_config, outline
from circuitdiscovery.search.cost import estimated

PAGE = Path(__file__).resolve().parents[1] / "docs" / "real-models.md"


def smollm2() -> Any:
    """SmolLM2-135M's config, by its model card."""
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, vocab_size=49_152, tie_word_embeddings=True,
    )  # fmt: skip


def planned(model: Any, examples: int, length: int = 16) -> Any:
    return estimated(model, random_prompts(model.vocab_size, examples, length).task, 1e11)


def test_an_outline_is_the_model_without_its_weights(tiny: Tiny) -> None:
    found = outline(tiny.folder)
    assert found.graph == tiny.model.graph and found.device.type == "meta"
    count = sum(parameter.numel() for name, parameter in tiny.hf.named_parameters() if parameter.ndim > 1)
    assert planned(found, 4).weights == count  # all but norms and biases


def test_f_is_what_torch_counts(llama: Tiny) -> None:
    """Which does not count attention's own products, of positions with positions, on a CPU."""
    prompts = random_prompts(101, 6, 5)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        llama.hf(prompts.clean)
    plan = estimated(llama.model, prompts.task, 1.0)  # F in products of two numbers
    assert 2 * plan.forward == counter.get_total_flops()


def test_the_figures_that_were_measured_on_a_real_model() -> None:
    """Those of docs/real-models.md, of ioi where they are of 64 prompts."""
    if not PAGE.is_file():
        pytest.skip("needs the checkout")
    text, model = PAGE.read_text("utf-8"), of_config(smollm2(), "smollm2-135m")
    table = text[text.index("### ioi") :]
    plan = planned(model, 64)
    assert plan.edges == 70_651 and plan.weights == pytest.approx(134.5e6, rel=0.01)
    for name in ("eap", "eap_ig", "clean_corrupted"):
        match = re.search(rf"\| {name} \| ([\d.]+) \|", table)
        assert match
        assert plan.costs[name].forwards == pytest.approx(float(match[1]), rel=0.4), name
    learnt = planned(model, 128).costs["matryoshka"].forwards
    alone = re.search(r"alone on two cores, seed 1 at 1% took (\d+) F", text)
    assert alone and learnt == pytest.approx(float(alone[1]), rel=0.3)
    slow = {name: cost.forwards for name, cost in planned(model, 16).costs.items()}
    rows = dict(re.findall(r"\| (edge_pruning|hybrid|acdc) \| (?:about )?([\d.e+]+)", text))
    assert slow["edge_pruning"] == pytest.approx(float(rows["edge_pruning"]), rel=0.4)
    assert float(rows["acdc"]) < slow["acdc"]
    assert 0.5 < float(rows["hybrid"]) / slow["hybrid"] < 2


@pytest.mark.parametrize("threshold", [-1e9, 0.01, 0.1])
def test_acdc_takes_no_more_than_is_said(gpt2: Tiny, threshold: float) -> None:
    """By torch's own count; below every damage, each edge is refused and each chain ends at its first."""
    model, task = gpt2.model, gpt2.prompts.task
    plan = estimated(model, task, 1.0)
    with FlopCounterMode(display=False) as counter:
        cd.acdc(model, task, threshold=threshold)
    most = plan.costs["acdc"]
    assert most.at_most and counter.get_total_flops() / 2 < most.forwards * plan.forward


@pytest.mark.slow
def test_hybrid_takes_about_what_is_said() -> None:
    """Of what `discover` keeps of toy's edges; and no more is promised."""
    model = cd.load_model("toy")
    task = cd.load_task("ioi", model, examples=2)
    plan = estimated(model, task, 1.0)
    with FlopCounterMode(display=False) as counter:
        cd.hybrid(model, task, edges=48)
    about = plan.costs["hybrid"]
    took = counter.get_total_flops() / 2 / plan.forward
    assert not about.at_most and 0.5 < took / about.forwards < 2


def test_the_memory_that_was_measured() -> None:
    """docs/gemma.md's on ioi, in GB above what was held before; and SmolLM2's runs of many alternatives of the
    first layer's queries, on 8 prompts: 1.62."""
    from transformers import Gemma3TextConfig

    page = PAGE.with_name("gemma.md")
    if not page.is_file():
        pytest.skip("needs the checkout")
    text = page.read_text("utf-8")
    text = text[text.index("### ioi") : text.index("### ioi/flip")]
    shape: dict[str, Any] = {
        "hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18, "num_attention_heads": 4,
        "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 262_144,
    }  # fmt: skip
    costs = planned(of_config(Gemma3TextConfig(**shape), "gemma3-270m"), 64, 17).costs
    for name in ("eap", "eap_ig", "matryoshka"):
        match = re.search(rf"\| {name} \| [\d.]+ \| ([\d.]+) \|", text)
        assert match and costs[name].gigabytes == pytest.approx(float(match[1]), rel=0.35), name
    alternatives = planned(of_config(smollm2(), "smollm2-135m"), 8).costs["acdc"].gigabytes
    assert alternatives == pytest.approx(1.62, rel=0.2)


def test_what_a_card_takes() -> None:
    """Two bytes a weight, and a tenth of the card left free."""
    largest = planned(of_config(smollm2(), "smollm2-135m"), 16).largest
    assert list(largest) == ["24", "40", "80"]
    for card, billions in largest.items():
        assert 0.4 * float(card) < billions < 0.45 * float(card)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"examples": 5}, "examples and skip_bad say how a task is loaded, and tokens is loaded already"),
        ({"skip_bad": True}, "examples and skip_bad say how"),
        ({"dtype": "float23"}, "no dtype 'float23'; did you mean 'float32'"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(gpt2: Tiny, options: dict[str, Any], told: str) -> None:
    with pytest.raises(cd.CircuitDiscoveryError, match=told):
        cd.plan(gpt2.model, gpt2.prompts.task, **options)


def test_the_command_needs_no_weights(llama: Tiny, words: Path, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_bytes((llama.folder / "config.json").read_bytes())
    PreTrainedTokenizerFast.from_pretrained(words).save_pretrained(folder)
    pairs = [{"clean": "w1 w2 w3", "corrupted": "w1 w4 w3", "correct": " w5", "incorrect": " w6"}] * 4
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    ran = CliRunner().invoke(cli, ["plan", str(folder), str(tmp_path / "pairs.jsonl"), "--json"])
    assert ran.exit_code == 0, ran.output
    found = json.loads(ran.output)
    assert found["edges"] == len(llama.model.graph) and set(found["costs"]) >= {"eap", "acdc", "matryoshka"}
    assert " F, about " in str(cd.plan(str(folder), str(tmp_path / "pairs.jsonl")))
