"""Directions and heads' weights in words, beside TransformerLens' readout and dense matrices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_families import CASES, config_of
from tiny import VOCABULARY, Tiny, random_model, random_prompts, tiny_config
from torch import Tensor
from torch.nn import functional as F

import circuitdiscovery as cd
from circuitdiscovery.features import projection
from circuitdiscovery.features.dictionary import Dictionary

f = cd.features


def check(found: Any, numbers: Tensor, top: int = 10) -> None:
    """The ends are those of [vocabulary] numbers, or of a matrix [first, second] of them."""
    order = numbers.flatten().argsort(descending=True, stable=True)
    for ids, values, where in (
        (found.promoted_ids, found.promoted, order[:top]),
        (found.suppressed_ids, found.suppressed, order.flip(0)[:top]),
    ):
        assert len(ids) == len(values) == top
        expected = numbers.flatten()[where]
        told = torch.tensor([value for _, value in values], dtype=expected.dtype)
        size = 1e-5 * max(1.0, float(numbers.abs().max()))
        torch.testing.assert_close(told, expected, atol=size, rtol=1e-5)
        own = torch.stack([numbers[tuple(each)] for each in ids])  # the tokens are those of the values
        torch.testing.assert_close(own, expected, atol=size, rtol=1e-5)


def readout(model: Any, vector: Tensor) -> Tensor:
    """TransformerLens' [vocabulary] of a vector that went through the final norm but its division."""
    from transformer_lens.tools.analysis import logit_readout

    norm = model.final_norm
    vector = (vector - vector.mean() if norm.kind == "layer" else vector) * norm.weight
    return logit_readout(model.to_bridge(), vector, apply_ln=False).values


def test_neurons_features_and_vectors_are_transformerlens(toy: Any) -> None:
    found = f.project(toy, "m2/n301")
    check(found, readout(toy, toy.to_bridge().blocks[2].mlp.W_out[301]))
    assert found.promoted[0][0] == toy.tokenizer.decode([found.promoted_ids[0][0]])
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(5, 128, generator=generator)
    sae = Dictionary("relu", "m1", "output", rows, torch.zeros(5), rows, torch.zeros(128))
    check(f.project(toy, sae[3], top=4), readout(toy, rows[3]), 4)
    check(f.project(toy, rows[2], at="resid3"), readout(toy, rows[2]))
    check(f.project(toy, rows[2].tolist()), readout(toy, rows[2]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, np.float64, list])
def test_a_vector_of_any_numbers_has_its_length(toy: Any, dtype: Any) -> None:
    """Quarters, which every precision has."""
    vector = torch.randint(-8, 9, (128,), generator=torch.Generator().manual_seed(0)) / 4
    known = {list: vector.tolist(), np.float64: vector.numpy().astype(float)}
    given = vector.to(dtype) if isinstance(dtype, torch.dtype) else known[dtype]
    assert f.project(toy, given).promoted == f.project(toy, vector).promoted


@pytest.mark.parametrize("node", ["m2", "a1"])
def test_a_node_is_what_it_writes_on_average_at_the_answers_position(
    node: str, tinies: Callable[[str], Tiny]
) -> None:
    model, network = cd.load_model("toy"), tinies("toy").hf
    task, kept = cd.load_task("ioi", model, examples=6), list[Tensor]()
    block = network.transformer.h[int(node[1])]
    module = block.mlp if node[0] == "m" else block.attn
    handle = module.register_forward_hook(
        lambda _, given, out: kept.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.no_grad():
        for example in task.examples:
            network(torch.tensor([example.clean]))
    handle.remove()
    norm = network.transformer.ln_f
    with torch.no_grad():
        mean = torch.stack([x[0, each.position] for x, each in zip(kept, task.examples, strict=True)]).mean(0)
        expected = network.lm_head.weight @ ((mean - mean.mean()) * norm.weight)
    check(f.project(model, node, task=task), expected)


@pytest.mark.parametrize("budget", ["1GB", "16kB"])
def test_a_heads_output_weights_are_the_pairs_of_the_dense_matrix(
    llama: Tiny, budget: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Grouped heads: 3 reads the second group's values. Of the first layer the matrix is what the head writes
    of a prompt of one token."""
    monkeypatch.setattr(projection, "_ROWS_AT_ONCE", 64)
    model, network = cd.load_model(llama.hf), llama.hf
    attention, d = network.model.layers[0].self_attn, model.d_model // model.n_heads
    with torch.no_grad():
        read = network.model.layers[0].input_layernorm(network.model.embed_tokens.weight)
        values = read @ attention.v_proj.weight[d : 2 * d].T
        written = values @ attention.o_proj.weight[:, 3 * d : 4 * d].T
        dense = (written * network.model.norm.weight) @ network.lm_head.weight.T
    with cd.memory_budget(budget):
        check(f.project(model, "a0.h3"), dense)
    one = f.run(model, [[token] for token in range(VOCABULARY)]).values("a0.h3")[:, 0]
    torch.testing.assert_close(one, written, atol=1e-5, rtol=1e-5)


def test_a_heads_queries_and_keys_are_the_scores_of_tokens_at_one_position(llama: Tiny) -> None:
    model, network = cd.load_model(llama.hf), llama.hf
    attention, d = network.model.layers[1].self_attn, model.d_model // model.n_heads
    with torch.no_grad():
        read = network.model.layers[1].input_layernorm(network.model.embed_tokens.weight)
        queries = read @ attention.q_proj.weight[2 * d : 3 * d].T
        keys = read @ attention.k_proj.weight[d : 2 * d].T
    check(f.project(model, "a1.h2<qk>", top=7), queries @ keys.T / d**0.5, 7)


@pytest.mark.parametrize("name", ["gemma2", "olmo2", "qwen3", "cohere", "bloom", "mixtral", "phi"])
def test_heads_of_other_families(name: str) -> None:
    """Of the first layer: what the head writes in prompts of one token."""
    model = cd.load_model((random_model(config_of(*CASES[name])), None))
    block = model.blocks[0]
    found = f.project(model, "a0.h1", top=5)
    writes = f.run(model, [[token] for token in range(VOCABULARY)]).values("a0.h1")[:, 0]
    if block.b_V is not None:  # a constant
        writes = writes - block.b_V[len(block.b_V) // model.n_heads] @ block.W_O[1]
    if block.heads_norm is not None:  # what is added to the stream, but for its division
        writes = writes * block.heads_norm.scale
    norm = model.final_norm
    writes = writes - writes.mean(-1, keepdim=True) if norm.kind == "layer" else writes
    check(found, F.linear(writes * norm.scale, model.W_U) * model.logit_scale, 5)
    assert len(f.project(model, "a1.h2<qk>").promoted) == 10


@pytest.mark.parametrize(
    ("what", "options", "told"),
    [
        ("m2", {}, "m2 has no direction of its own: give task="),
        ("resid9", {}, "toy has no site 'resid9'; sites are resid0"),
        ("a1.h9", {}, "toy has no site 'a1.h9'"),
        ("a1.h9<qk>", {}, "toy has no site 'a1.h9'"),
        ("m2/n999", {}, "m2 has no neuron 999"),
        ([1.0, 2.0], {}, "the vector is 2 wide, but resid0 of toy is 128"),
        ("m2/n3", {"at": "m2"}, "at is for vectors"),
        ("a1.h3", {"at": "m2"}, "at is for vectors; 'a1.h3' says where it stands"),
        ("a1.h3<qk>", {"at": "resid0"}, "at is for vectors"),
        ("m2", {"at": "resid3", "task": "subject_verb_agreement"}, "at is for vectors; 'm2' says"),
        ("m2/n3", {"top": 0}, "top must be a whole number from 1 to 607"),
        ([0.0] * 128, {}, "finite numbers that are not all 0"),
    ],
)
def test_what_has_no_words_is_refused_in_one_line(
    toy: Any, what: Any, options: dict[str, Any], told: str
) -> None:
    if "task" in options:
        options = options | {"task": cd.load_task(options["task"], toy, examples=4)}
    with pytest.raises(cd.CircuitDiscoveryError, match=told) as caught:
        f.project(toy, what, **options)
    assert "\n" not in str(caught.value)


def test_it_is_a_table_and_a_file(toy: Any, tmp_path: Any) -> None:
    found = f.project(toy, "a2.h1", top=3)
    assert list(found.to_dataframe()["end"]) == ["promoted"] * 3 + ["suppressed"] * 3
    found.save(tmp_path / "words.json")
    assert f.Projection.load(tmp_path / "words.json") == found
    assert " -> " in found.promoted[0][0] and len(str(found).splitlines()) == 3


@pytest.mark.parametrize("name", ["gemma3", "olmo2"])
def test_a_norm_after_the_node_counts_everywhere(name: str) -> None:
    """By Hugging Face's modules, whose norms multiply what a node writes before it is added to the stream."""
    config = tiny_config(name) if name == "gemma3" else config_of(*CASES[name])
    network = random_model(config)
    model = cd.load_model((network, None))
    layer, task = network.model.layers[1], random_prompts(VOCABULARY, 4, 6).task
    one = 1 if name == "gemma3" else 0  # Gemma's gains are what is added to 1
    after, last = one + layer.post_feedforward_layernorm.weight, one + network.model.norm.weight

    column = layer.mlp.down_proj.weight[:, 5].detach()
    expected, without = (
        ((column * gains) @ network.lm_head.weight.T).detach() for gains in (after * last, last)
    )
    check(f.project(model, "m1/n5"), expected)
    check(f.project(model, column, at="m1.inner"), expected)
    sae = Dictionary("relu", "m1", "output", column[None], torch.zeros(1), column[None], torch.zeros(32))
    check(f.project(model, replace(sae, inner=True)[0]), expected)
    check(f.project(model, sae[0]), without)
    best = [token for token, _ in f.project(model, "m1/n5").promoted]
    assert [token for token, _ in f.top_activations(model, "m1/n5", task).promoted] == best
    assert [token for token, _ in f.steer(model, task, "m1/n5", by=1, largest=1.0).promoted] == best
    assert [token for token, _ in cd.neurons(model, task, top=96).promoted["m1/n5"]] == best[:6]
