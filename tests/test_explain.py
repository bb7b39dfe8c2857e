"""Node cards: attention, attribution and lens as TransformerLens has them, effects as `exact` measures them,
scores as their definitions written out slowly; and what comes back from files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from reference import Reference
from tiny import ARCHITECTURES, Prompts, Tiny, random_model, random_prompts, tiny_config
from torch import Tensor

import circuitdiscovery as cd
from circuitdiscovery.benchmark.problems.suite import planted
from circuitdiscovery.circuit.charts import heat_map
from circuitdiscovery.explanation import attention as attention_module
from circuitdiscovery.explanation import explain as explanation
from circuitdiscovery.explanation import interchange
from circuitdiscovery.explanation.attention import attention, observe, read_at
from circuitdiscovery.explanation.cards import Explanation, Pattern
from circuitdiscovery.explanation.head_scores import CopyScores, PatternScores, repeated_sequences
from circuitdiscovery.explanation.seen import Seen
from circuitdiscovery.features.words import words
from circuitdiscovery.files.disk import to_json
from circuitdiscovery.model.run import plain_run
from circuitdiscovery.reporting.data import contents_of
from circuitdiscovery.reporting.options import Options
from circuitdiscovery.task.task import Task

PLANTED = planted()


def task_of(tiny: Tiny, **more: Any) -> Task:
    prompts = tiny.prompts
    given: dict[str, Any] = {"clean": prompts.clean, "corrupted": prompts.corrupted}
    return Task.from_tokens(**(given | {"correct": prompts.correct, "incorrect": prompts.incorrect} | more))


def explain(
    tiny: Tiny, task: Task | None = None, circuit: cd.Circuit | None = None, **more: Any
) -> Explanation:
    graph = tiny.model.graph
    return cd.explain(
        tiny.model, task or task_of(tiny), cd.Circuit.full(graph) if circuit is None else circuit, **more
    )


def bridge_attention(reference: Reference, tokens: Tensor) -> Tensor:
    """[L, N, H, T, T] from TransformerBridge's own hooks."""
    found: dict[int, Tensor] = {}

    def keep(layer: int) -> Callable[..., None]:
        return lambda x, hook: found.__setitem__(layer, x.detach().clone())

    hooks = [(f"blocks.{layer}.attn.hook_pattern", keep(layer)) for layer in range(reference.graph.n_layers)]
    with torch.no_grad(), reference.bridge.hooks(fwd_hooks=hooks):
        reference.bridge(tokens)
    return torch.stack([found[layer] for layer in range(len(found))])


# ------------------------------------------------------------------ attention


def test_attention_is_the_bridges(any_model: Tiny) -> None:
    expected = bridge_attention(any_model.reference, any_model.prompts.clean)
    torch.testing.assert_close(
        attention(any_model.model, any_model.prompts.clean).transpose(1, 2), expected, rtol=0, atol=1e-5
    )


def test_attention_between_positions_is_a_mean_over_the_examples_that_have_both(gpt2: Tiny) -> None:
    places = [0, 1, 2, 4, 1]
    task = task_of(gpt2, positions={"A": places, "B": 3})
    lacking = replace(task.examples[2], positions={"B": 3})
    task = replace(task, examples=(*task.examples[:2], lacking, *task.examples[3:]))
    card = explain(gpt2, task).cards["a1.h2"]
    weights = bridge_attention(gpt2.reference, gpt2.prompts.clean)[1, :, 2]  # [N, T, T]
    there = [row for row in range(5) if row != 2]
    for pair, at in {
        ("B", "A"): lambda r: (3, places[r]),
        ("A", "B"): lambda r: (places[r], 3),
        ("END", "A"): lambda r: (5, places[r]),
    }.items():
        expected = np.mean([float(weights[row, *at(row)]) for row in there])
        assert card.attention[pair] == pytest.approx(expected, abs=1e-5)
    assert card.attention["END", "END"] == pytest.approx(float(weights[:, 5, 5].mean()), abs=1e-5)
    # what always comes later
    assert ("B", "END") not in card.attention and ("A", "END") not in card.attention


def test_what_end_attends_to_goes_by_name_or_by_text(gpt2: Tiny) -> None:
    clean = gpt2.prompts.clean.clone()
    clean[:, 1] = clean[:, 2] = 7  # one text twice
    task = replace(task_of(gpt2, clean=clean, position=4, positions={"A": 3, "Z": 4}))
    weights = bridge_attention(gpt2.reference, clean)[0, :, 1, 4]  # [N, T]
    expected: dict[str, float] = {
        "A": float(weights[:, 3].mean()),
        "Z": float(weights[:, 4].mean()),
        "7": float(weights[:, 1:3].sum(1).mean()),
    }
    assert len(set(clean[:, 0].tolist())) > 1
    expected["first token"] = float(weights[:, 0].mean())
    best = sorted(expected.items(), key=lambda each: -each[1])[:5]
    found = explain(gpt2, task).cards["a0.h1"].attended
    assert [name for name, _ in found] == [name for name, _ in best]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in best], abs=1e-5)


def test_a_position_has_one_name_the_tasks_own_first(gpt2: Tiny) -> None:
    """B and Z stand where A and END do; C does so only in some prompts."""
    task = task_of(gpt2, position=4, positions={"A": 0, "B": 0, "C": [0, 1, 1, 1, 1], "Z": 4})
    explained = explain(gpt2, task)
    card = explained.cards["a0.h1"]
    names = {"A", "C", "Z"}
    assert {name for pair in card.attention for name in pair} == names
    attended = {name for each in explained.cards.values() for name, _ in each.attended}
    assert {"A", "Z"} <= attended and not {"B", "END", "first token"} & attended
    assert all(set(pattern.positions) == names for pattern in card.patterns)
    assert all(lens.at == "Z" for each in explained.cards.values() for lens in each.lens)
    assert str(explained).splitlines()[1].endswith("  Z attends to")


def test_what_is_printed_begins_with_the_largest_effect(ioi: tuple[Task, cd.Circuit, Explanation]) -> None:
    explained = ioi[2]
    cards, lines = explained.cards, str(explained).splitlines()
    order = sorted(cards, key=lambda node: abs(float(cards[node].effect)), reverse=True)
    assert list(cards) != order and list(explained.to_dataframe()["node"]) == list(cards)
    assert [line.split()[0] for line in lines[2 : 2 + len(cards)]] == order
    told = [line.partition(":")[0] for line in lines[2 + len(cards) :] if not line.startswith(" ")]
    assert told == [node for node in order if cards[node].role]
    table = explained._repr_html_()
    assert sorted(order, key=lambda node: table.index(f">{node}<")) == order


def test_a_card_with_two_roles_comes_back_from_its_file(
    ioi: tuple[Task, cd.Circuit, Explanation], tmp_path: Path
) -> None:
    explained = ioi[2]
    roles = {"name mover": ("one", "two"), "induction": ("three",)}
    two = replace(explained.cards["a2.h0"], roles=roles)
    assert (two.role, two.evidence) == ("name mover", ("one", "two", "three"))
    assert str(two).splitlines()[0].endswith("a2.h0, name mover, induction")
    changed = replace(explained, cards={**explained.cards, "a2.h0": two})
    changed.save(tmp_path / "a.json")
    again = Explanation.load(tmp_path / "a.json")
    assert again.to_dict() == changed.to_dict() and list(again.cards["a2.h0"].roles.items()) == list(
        roles.items()
    )
    assert again.roles["induction"] == ("a2.h0",) and "a2.h0" in again.roles["name mover"]
    frame = again.to_dataframe().set_index("node")
    told = dict(frame["role"].dropna())
    assert str(told["a2.h0"]) == "name mover, induction" and "m0" not in told
    data = changed.to_dict()
    data["cards"]["a2.h0"]["role"] = "induction"  # the others say that it is the second
    with pytest.raises(cd.CircuitDiscoveryError, match=r"cards\.a2\.h0\.roles"):
        Explanation.from_dict(data)


def test_a_file_from_before_a_card_could_have_two_roles_is_read(
    ioi: tuple[Task, cd.Circuit, Explanation],
) -> None:
    data = ioi[2].to_dict()
    for card in data["cards"].values():
        del card["roles"]
    assert Explanation.from_dict(data).to_dict() == ioi[2].to_dict()


def test_patterns_are_of_the_first_prompts_whatever_their_lengths(gpt2: Tiny) -> None:
    rows = [[5, 6, 7, 8], [9, 10, 11], [12, 13, 14, 15]]
    task = Task.from_tokens(
        clean=rows, corrupted=rows, correct=[1, 2, 3], incorrect=[4, 5, 6], positions={"A": 1}
    )
    cards = explain(gpt2, task, prompts=2).cards
    patterns = cards["a2.h3"].patterns
    assert [pattern.tokens for pattern in patterns] == [("5", "6", "7", "8"), ("9", "10", "11")]
    assert (
        [pattern.text for pattern in patterns]
        == ["5 6 7 8", "9 10 11"]
        == [lens.text for lens in cards["m1"].lens]
    )
    assert patterns[1].positions == {"A": 1, "END": 2} and patterns[1].weights.dtype == np.float32
    for pattern, row in zip(patterns, rows, strict=False):
        assert pattern.weights.flags.owndata  # a view would keep all heads of the batch
        expected = bridge_attention(gpt2.reference, torch.tensor([row]))[2, 0, 3]
        np.testing.assert_allclose(pattern.weights, expected, atol=1e-5)
    assert (
        cards["m1"].patterns == ()
        and cards["m1"].attention == {}
        and cards["m1"].scores == {}
        and cards["m1"].attended == ()
    )


def slow_place(circuit: cd.Circuit, weights: Tensor, node: str, end: int) -> np.ndarray:
    """[T]: where a node is read, reader by reader; weights [L, H, T, T]."""
    graph, length = circuit.graph, weights.shape[-1]
    if node == "logits":
        return np.eye(length)[end]
    total, count = np.zeros(length), 0.0
    for edge in circuit.edges:
        source, _, receiver = edge.partition("->")
        share = circuit.score(edge)
        for reader in (graph.reader_nodes(receiver) or ("logits",)) if source == node else ():
            there = slow_place(circuit, weights, reader, end)
            if there.sum() == 0:
                continue
            if receiver[0] == "a" and not receiver.endswith("<q>"):
                layer, head = map(int, reader[1:].split(".h"))
                across = np.array(
                    [
                        sum(there[q] * float(weights[layer, head, q, k]) for q in range(length))
                        for k in range(length)
                    ]
                )
                # merged: as query, key and value
                there = across if "<" in receiver else np.mean([there, across, across], axis=0)
            total, count = total + (1.0 if share is None else abs(share)) * there, count + 1
    return total / total.sum() if count else total


@pytest.mark.parametrize(
    ("name", "split_qkv", "scored"), [("gpt2", True, False), ("llama", True, True), ("gpt2", False, True)]
)
def test_where_a_node_is_read_follows_the_circuits_edges(
    name: str, split_qkv: bool, scored: bool, tinies: Callable[[str], Tiny]
) -> None:
    tiny = tinies(name)
    graph, rng = cd.Graph.from_model(tiny.model, split_qkv=split_qkv), np.random.default_rng(0)
    mask = graph.allowed & (rng.random(graph.allowed.shape) < 0.2)
    circuit = cd.Circuit(graph, mask, rng.normal(size=mask.shape) if scored else None)
    task = task_of(tiny, position=4)
    (seen,) = observe(tiny.model, task)
    found = read_at(circuit, seen)
    assert len(found) > 5
    for node in (*graph.sources, "logits"):
        expected = slow_place(circuit, seen.attention[:, :, 0], node, 4)
        if node in found:
            np.testing.assert_allclose(found[node][0], expected, atol=1e-5)
        else:
            assert expected.sum() == 0  # leads nowhere


# ------------------------------------------------------------------ direct attribution and lens


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if "gemma" not in name])
def test_direct_attribution_is_transformer_lens(tinies: Callable[[str], Tiny], name: str) -> None:
    """Node by node; TransformerLens folds out of its heads what a value is at every position:
    b_V, and the bias of the norm before it. It does not know of norms after attention.
    """
    tiny = tinies(name)
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.tools.analysis import direct_logit_attribution
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny.words)
    bridge = TransformerBridge.boot_transformers(
        str(tiny.folder), dtype=torch.float32, device="cpu", tokenizer=tokenizer
    ).eval()
    bridge.enable_compatibility_mode(disable_warnings=True)
    bridge.set_use_attn_result(True)
    prompts, model = tiny.prompts, tiny.model
    told: dict[str, Tensor] = {}
    for unit in ("component", "head"):
        found = direct_logit_attribution(bridge, prompts.clean, prompts.correct, prompts.incorrect, unit=unit)
        told |= dict(zip(found.labels, found.attribution, strict=True))
    (seen,) = observe(model, task_of(tiny))
    direction = model.W_U[prompts.correct] - model.W_U[prompts.incorrect]
    ours = {node: (seen.written(row) * direction).sum(-1) for row, node in enumerate(model.graph.sources)}
    inverse = model.final_norm.jacobian(seen.stream)[1]
    for layer, block in enumerate(model.blocks):
        torch.testing.assert_close(ours[f"m{layer}"], told[f"{layer}_mlp_out"], atol=1e-4, rtol=1e-4)
        for head in range(model.graph.n_heads):
            group = head // (model.graph.n_heads // model.graph.n_kv_heads)
            fixed = torch.zeros(block.W_V.shape[1]) if block.b_V is None else block.b_V[group]
            fixed = fixed if block.norm1.bias is None else fixed + block.W_V[group] @ block.norm1.bias
            fixed = fixed @ block.W_O[head]
            fixed = (
                (fixed - fixed.mean() if model.final_norm.centred else fixed)
                * inverse
                * model.final_norm.weight
            )
            head_alone = ours[f"a{layer}.h{head}"] - (fixed * direction).sum(-1)
            torch.testing.assert_close(head_alone, told[f"L{layer}H{head}"], atol=1e-4, rtol=1e-4)
    embedded = told["embed"] + told["pos_embed"] if "pos_embed" in told else told["embed"]
    torch.testing.assert_close(ours["input"], embedded, atol=1e-4, rtol=1e-4)


def test_direct_attributions_and_biases_add_up_to_hugging_faces_logits(any_model: Tiny) -> None:
    add_up(any_model.model, any_model.hf, any_model.prompts)


def add_up(model: Any, hf: Any, prompts: Prompts) -> None:
    (seen,) = observe(model, prompts.task)
    total = sum(seen.written(row) for row in range(len(model.graph.sources)))
    biases = sum((block.b_O for block in model.blocks if block.b_O is not None), torch.zeros(model.d_model))
    norm = model.final_norm
    biases = (biases - biases.mean() if norm.centred else biases) * norm.jacobian(seen.stream)[1] * norm.scale
    total = total + biases + (0 if norm.bias is None else norm.bias)
    with torch.no_grad():
        expected, cap = hf(prompts.clean).logits[:, -1], model.logit_cap
    found = total @ model.W_U.T + (0 if model.b_U is None else model.b_U)
    torch.testing.assert_close(
        found if cap is None else cap * (found / cap).tanh(), expected, rtol=1e-4, atol=1e-4
    )


def biased() -> Any:
    """A tiny GPT-J, whose unembedding has a bias."""
    import transformers

    sizes: dict[str, Any] = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "rotary_dim": 4}
    hf = random_model(getattr(transformers, "GPTJConfig")(vocab_size=101, **sizes))  # noqa: B009
    with torch.no_grad():
        hf.lm_head.bias.normal_(generator=torch.Generator().manual_seed(0))
    return hf


def capped() -> Any:
    """A tiny Gemma whose logits are near the cap."""
    hf = random_model(tiny_config("gemma3"))
    with torch.no_grad():
        hf.model.norm.weight.add_(2.0)
    return hf


@pytest.mark.parametrize("make", [biased, capped])
def test_the_logit_difference_is_hugging_faces_before_a_cap(make: Callable[[], Any]) -> None:
    """Of several right answers the mean counts; all that is written, and biases, add up to it."""
    hf = make()
    prompts, model = random_prompts(101), cast(Any, cd.load_model(hf))
    add_up(model, hf, prompts)
    first = prompts.correct
    correct, incorrect = torch.stack([first, (first + 7) % 101], 1), ((first + 3) % 101)[:, None]
    task = Task.from_tokens(
        clean=prompts.clean, corrupted=prompts.corrupted, correct=correct, incorrect=incorrect
    )
    seen = Seen(model, task, cd.Circuit.full(model.graph), ["a1.h0"], 1, None)
    for each in observe(model, task):
        seen.add(each)
    with torch.no_grad():
        logits, rows = hf(prompts.clean).logits[:, -1].double(), torch.arange(5)[:, None]
    assert (model.b_U is None) == (make is capped)
    if make is capped:
        assert logits.abs().max() > 0.5 * model.logit_cap
        logits = model.logit_cap * (logits / model.logit_cap).atanh()
    expected = logits[rows, correct].mean(1) - logits[rows, incorrect].mean(1)
    np.testing.assert_allclose(seen.logit_diff, expected, rtol=1e-3, atol=1e-4)


def test_what_a_head_finds_at_the_answers_position_is_all_that_it_writes_at_the_first(
    any_model: Tiny,
) -> None:
    (seen,) = observe(any_model.model, task_of(any_model, position=0))
    for row, node in enumerate(any_model.model.graph.sources):
        if node[0] == "a":
            torch.testing.assert_close(seen.written_of_itself(node), seen.written(row), rtol=1e-4, atol=1e-5)


def test_what_a_head_finds_at_the_answers_position_is_its_attention_times_the_value_there(gpt2: Tiny) -> None:
    """By the bridge's pattern and values."""
    model, clean = gpt2.model, gpt2.prompts.clean
    (seen,) = observe(model, task_of(gpt2, position=4))
    values: list[Tensor] = []
    hook = ("blocks.1.attn.hook_v", lambda x, hook: values.append(x.clone()))  # [N, T, H, K]
    with torch.no_grad(), gpt2.reference.bridge.hooks(fwd_hooks=[hook]):
        gpt2.reference.bridge(clean)
    weights = bridge_attention(gpt2.reference, clean)[1, :, 2, 4, 4]  # [N]
    written = weights[:, None] * values[0][:, 4, 2]
    expected = model.final_norm.share(seen.stream, written @ model.blocks[1].W_O[2])
    torch.testing.assert_close(seen.written_of_itself("a1.h2"), expected, rtol=1e-4, atol=1e-5)


def test_a_card_has_the_mean_attribution_of_several_answers_at_the_answers_position(llama: Tiny) -> None:
    task = task_of(
        llama,
        correct=[[1, 2], [3, -1], [4, 5], [6, 7], [8, -1]],
        incorrect=[[9]] * 5,
        position=[5, 3, 5, 2, 4],
    )
    cards = explain(llama, task).cards
    values: list[float] = []
    # one prompt at a time, in double precision, with another implementation's sources
    for row, example in enumerate(task.examples):
        written = llama.reference64.run(torch.tensor([example.clean]))[1][:, 0, example.position]  # [S, D]
        stream = written.sum(0)  # Llama has no output biases
        scale = (
            llama.hf.model.norm.weight.detach().double()
            / (stream.square().mean() + llama.hf.config.rms_norm_eps).sqrt()
        )
        unembed = llama.hf.lm_head.weight.detach().double()
        wanted = unembed[list(example.correct)].mean(0) - unembed[list(example.incorrect)].mean(0)
        values.append((written[llama.model.graph.source_index["a2.h1"]] * scale @ wanted).item())
        assert len(example.correct) == (2, 1, 2, 2, 1)[row]
    assert float(cards["a2.h1"].direct) == pytest.approx(np.mean(values), abs=1e-4)
    direct = cards["a2.h1"].direct
    assert min(values) <= direct <= max(values) and direct.low <= direct <= direct.high


@pytest.mark.parametrize("node", ["a1.h2", "m2"])
def test_the_lens_is_transformer_lens_readout_of_what_a_node_writes(tiny: Tiny, node: str) -> None:
    from transformer_lens.tools.analysis import logit_readout

    sources = tiny.reference.run(tiny.prompts.clean)[1][:, :3, -1]
    written = sources[tiny.model.graph.source_index[node]]  # [3, D]
    if tiny.reference.after_attention and node[0] == "a":  # a share of what a norm makes of all heads
        together, (weight, eps) = sources[tiny.model.graph.heads(1)].sum(0), tiny.reference.after_attention[1]
        written = written * (together.square().mean(-1, keepdim=True) + eps).rsqrt() * (1 + weight)
    bridge, norm = tiny.reference.bridge, tiny.model.final_norm
    found: list[Tensor] = []
    hooks = [
        (
            f"blocks.{tiny.model.graph.n_layers - 1}.hook_resid_post",
            lambda x, hook: found.append(x[:3, -1].clone()),
        )
    ]
    with torch.no_grad(), bridge.hooks(fwd_hooks=hooks):
        bridge(tiny.prompts.clean)
    stream = found[0] - found[0].mean(-1, keepdim=True) if norm.centred else found[0]
    vectors = written - written.mean(-1, keepdim=True) if norm.centred else written
    vectors = vectors / (stream.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.scale
    lenses = explain(tiny).cards[node].lens
    assert [lens.at for lens in lenses] == ["END"] * 3
    for sign, side in ((1, "promoted"), (-1, "suppressed")):
        readout = logit_readout(bridge, sign * vectors, apply_ln=False, top_k=5)
        assert readout.top_ids is not None
        for lens, ids, values in zip(lenses, readout.top_ids.tolist(), readout.values.tolist(), strict=True):
            told = getattr(lens, side)
            assert [text for text, _ in told] == [str(token) for token in ids]
            cap = tiny.model.logit_cap  # which TransformerLens puts on the terms too
            ours = [value if cap is None else cap * math.tanh(value / cap) for _, value in told]
            assert ours == pytest.approx([sign * value for value in values], abs=1e-4)


def test_the_lens_decodes_where_there_is_a_tokenizer(tinies: Callable[[str], Tiny]) -> None:
    model = tinies("toy").model
    task = cd.load_task("gendered_pronoun", model, examples=2)
    card = cd.explain(model, task, cd.Circuit.from_nodes(model.graph, ["m2", "a0.h3"])).cards
    assert task.held_out is not None
    assert card["m2"].lens[0].promoted[0][0].strip() == task.held_out.examples[0].variables["pronoun"]
    assert card["a0.h3"].patterns[0].text == task.held_out.examples[0].text


def test_an_id_past_the_tokenizer_s_vocabulary_is_named(tinies: Callable[[str], Tiny]) -> None:
    """Embeddings are often padded. Here the first padded id is the likeliest answer wherever the right one is."""
    model = tinies("toy").model
    known, task = len(model.tokenizer), cd.load_task("ioi", model, examples=4)
    row = model.W_U[task.examples[0].correct[0]]
    padded = replace(model, W_U=torch.cat([model.W_U, 9 * row[None], -9 * row[None]]))
    circuit, options = cd.eap(model, task).top(60), Options(model="toy", task="ioi")
    cards = cd.explain(padded, task, circuit, effort="quick").cards
    ends = f"<token {known}>", f"<token {known + 1}>"
    (lens, *_) = cards["a2.h0"].lens
    assert (lens.promoted[0][0], lens.suppressed[0][0]) == ends
    units = [unit for card in cards.values() for unit in card.units]
    assert set(ends) <= {text for unit in units for text, _ in (*unit.promoted, *unit.suppressed)}
    assert not [unit for unit in units for text, _ in (*unit.promoted, *unit.suppressed) if not text]
    numbers = padded.W_U @ row
    assert (words(padded, numbers, 1)[0][0], words(padded, numbers, 1, largest=False)[0][0]) == ends
    measured = cd.evaluate(padded, task, circuit, effort="quick").to_dict()
    contents = contents_of(padded, task, circuit, None, measured, options, "quick", None)
    assert ends[0] in {prompt["full"]["token"] for prompt in contents["prompts"]}


# ------------------------------------------------------------------ effects and edges


@pytest.mark.parametrize("ablation", ["resample", "mean", "zero"])
def test_effects_are_those_of_exact_patching(tiny: Tiny, ablation: str) -> None:
    model, task = tiny.model, task_of(tiny)
    found = explain(tiny, ablation=ablation)
    expected = cd.exact(model, task, level="node", metric="logit_diff", ablation=ablation)
    assert list(found.cards) == list(model.graph.sources[1:])
    for node, card in found.cards.items():
        assert float(card.effect) == pytest.approx(expected[node], abs=2e-5)
        assert card.effect.low <= card.effect <= card.effect.high
        assert card.kind == ("mlp" if node[0] == "m" else "head")
    assert (found.metric, found.ablation, found.part, found.examples) == (
        "logit_diff",
        ablation,
        "examples",
        5,
    )


def test_a_share_of_none_may_have_changed_on_other_prompts(gpt2: Tiny) -> None:
    """Wrong with and without a node on all n prompts: Clopper and Pearson's limit at 97.5% on both sides."""
    logits = cd.run_circuit(gpt2.model, task_of(gpt2), cd.Circuit.full(gpt2.model.graph))
    task = task_of(gpt2, correct=logits.argmin(-1), incorrect=logits.argmax(-1))
    most = 1 - 0.0125 ** (1 / len(task))
    for card in explain(gpt2, task, metric="accuracy", nodes=["a1.h1", "m2"]).cards.values():
        assert (card.effect.low, card.effect, card.effect.high) == pytest.approx((-most, 0, most))


def test_lower_is_better_turns_the_effects_sign(gpt2: Tiny) -> None:
    found = explain(gpt2, metric="kl_divergence")
    expected = cd.exact(gpt2.model, task_of(gpt2), level="node", metric="kl_divergence")
    assert all(
        float(card.effect) == pytest.approx(expected[node], abs=2e-5) and card.effect >= -1e-6
        for node, card in found.cards.items()
    )


def test_held_out_examples_are_used_where_there_are_some(gpt2: Tiny) -> None:
    task = task_of(gpt2)
    both = replace(task.select([0, 1]), held_out=task.select([2, 3, 4]))
    found, expected = explain(gpt2, both), explain(gpt2, task.select([2, 3, 4]))
    assert (found.part, found.examples) == ("held_out", 3)
    assert found.to_dict()["cards"] == expected.to_dict()["cards"]


def test_batches_do_not_matter(llama: Tiny) -> None:
    one, two = (explain(llama, batch_size=size).cards["a1.h1"] for size in (None, 2))
    assert float(one.effect) == pytest.approx(float(two.effect), abs=1e-5) and float(
        one.direct
    ) == pytest.approx(float(two.direct), abs=1e-5)
    assert one.scores == pytest.approx(two.scores, abs=1e-5) and len(two.patterns) == 3


def test_edges_are_the_circuits_the_strongest_first_and_a_groups_belong_to_each_of_its_heads(
    llama: Tiny,
) -> None:
    graph = llama.model.graph
    names = [
        "input->a1.h0<q>",
        "input->a1.kv0<k>",
        "a0.h1->a1.kv0<v>",
        "input->a1.kv1<k>",
        "a1.h0->m1",
        "a1.h0->logits",
        "a1.h1->logits",
    ]
    scores = np.full(graph.allowed.shape, np.nan)
    for name, score in zip(names, (0.5, -2.0, 1.0, 3.0, 0.25, -0.75, 0.1), strict=True):
        scores[graph.index(name)] = score
    scores[graph.index("a1.h0->m1")] = np.nan
    circuit = cd.Circuit(graph, graph.mask(names), scores)
    cards = explain(llama, circuit=circuit).cards
    assert list(cards) == ["a0.h1", "a1.h0", "a1.h1", "m1"]  # in index order; a group has no card of its own
    assert cards["a1.h0"].in_edges == (
        ("input->a1.kv0<k>", -2.0),
        ("a0.h1->a1.kv0<v>", 1.0),
        ("input->a1.h0<q>", 0.5),
    )
    assert cards["a1.h1"].in_edges == (("input->a1.kv0<k>", -2.0), ("a0.h1->a1.kv0<v>", 1.0))
    assert cards["a1.h0"].out_edges == (("a1.h0->logits", -0.75), ("a1.h0->m1", None))
    assert len(explain(llama).cards["a1.h0"].in_edges) == 10


def test_merged_queries_keys_and_values_are_explained_too(gpt2: Tiny) -> None:
    merged = cd.Graph.from_model(gpt2.model, split_qkv=False)
    cards = explain(
        gpt2, circuit=cd.Circuit.from_edges(merged, ["input->a1.h1", "a1.h1->a2.h0", "a2.h0->logits"])
    ).cards
    expected = cd.exact(gpt2.model, task_of(gpt2), level="node", metric="logit_diff")
    assert cards["a1.h1"].in_edges == (("input->a1.h1", None),) and cards["a2.h0"].in_edges == (
        ("a1.h1->a2.h0", None),
    )
    assert float(cards["a1.h1"].effect) == pytest.approx(expected["a1.h1"], abs=2e-5)


# ------------------------------------------------------------------ scores


def test_scores_on_random_tokens_are_their_definitions(tiny: Tiny) -> None:
    """A triple loop over the bridge's patterns."""
    tokens = repeated_sequences(tiny.model, task_of(tiny))
    assert tokens is not None
    length, period = tokens.shape[1], tokens.shape[1] // 2
    weights = bridge_attention(tiny.reference, tokens)[1, :, 2].tolist()  # [N, T, T]
    scores = PatternScores.measure(tiny.model, task_of(tiny))
    found = dict.fromkeys(("previous token", "duplicate token", "induction"), 0.0)
    for row, ids in enumerate(tokens.tolist()):
        assert len(set(ids)) == period == 25 and ids[:period] == ids[period:]
        for query in range(1, length):
            found["previous token"] += weights[row][query][query - 1] / (length - 1)
            for key in range(query):
                if ids[key] == ids[query]:
                    found["duplicate token"] += weights[row][query][key] / period
                    found["induction"] += weights[row][query][key + 1] / period
    expected = {name: total / len(tokens) for name, total in found.items()}
    assert scores.of("a1.h2") == pytest.approx(expected, abs=1e-5)
    assert scores.even == pytest.approx(np.mean([1 / (i + 1) for i in range(1, length)]))


def test_random_tokens_are_ordinary_and_begin_as_the_prompts_do(
    gpt2: Tiny, tinies: Callable[[str], Tiny]
) -> None:
    clean = torch.randint(2, 101, (5, 6), generator=torch.Generator().manual_seed(0))
    clean[:, 0] = 1
    begun = repeated_sequences(gpt2.model, task_of(gpt2, clean=clean))
    assert begun is not None and begun.shape == (32, 51)
    assert (
        set(begun[:, 0].tolist()) == {1}
        and 1 not in begun[:, 1:]
        and torch.equal(begun[:, 1:26], begun[:, 26:])
    )
    clean[0, 3] = 1  # then it is a word like others
    plain = repeated_sequences(gpt2.model, task_of(gpt2, clean=clean))
    assert plain is not None and plain.shape == (32, 50) and 1 in plain
    toy = tinies("toy").model
    # every prompt begins with "The", which is no BOS
    drawn = repeated_sequences(toy, cd.load_task("greater_than", toy, examples=4))
    assert (
        drawn is not None
        and drawn.shape == (32, 50)
        and not set(drawn.flatten().tolist()) & set(toy.tokenizer.all_special_ids)
    )


def test_a_model_that_reads_few_tokens_has_no_scores_on_random_ones() -> None:
    problem = PLANTED["and"]()
    assert repeated_sequences(problem.model, problem.task) is None
    cards = cd.explain(problem.model, problem.task, problem.truth).cards
    assert set(cards["a0.h1"].scores) == {"copying", "negative copying"}


@pytest.mark.parametrize("name", ["gpt2", "llama_biased", "neox_parallel"])
def test_copying_is_what_a_head_writes_that_has_nothing_else_to_attend_to(
    name: str, tinies: Callable[[str], Tiny]
) -> None:
    """In a prompt of one token all attention is on it: the bridge is given the
    stream after its first MLP as such a prompt.
    """
    from transformer_lens.tools.analysis import logit_readout

    tiny = tinies(name)
    clean = tiny.prompts.clean
    answers = {"correct": clean[:, 1], "incorrect": clean[:, 3] + (clean[:, 3] == clean[:, 1])}
    task = task_of(tiny, **answers)
    bridge, layer, told = (
        tiny.reference.bridge,
        2,
        set(torch.stack(list(answers.values())).flatten().tolist()),
    )
    streams: list[Tensor] = []
    with (
        torch.no_grad(),
        bridge.hooks(fwd_hooks=[("blocks.0.hook_resid_post", lambda x, hook: streams.append(x.clone()))]),
    ):
        bridge(clean)
    chosen = [(row, at) for row, at in product(range(5), range(6)) if int(clean[row, at]) in told]
    stream = torch.stack([streams[0][row, at] for row, at in chosen])[:, None]  # [n, 1, D]
    words = torch.tensor([int(clean[row, at]) for row, at in chosen])
    results: list[Tensor] = []
    hooks = [
        (f"blocks.{layer}.hook_resid_pre", lambda x, hook: stream),
        (f"blocks.{layer}.attn.hook_result", lambda x, hook: results.append(x.clone())),
    ]
    with torch.no_grad(), bridge.hooks(fwd_hooks=hooks):
        bridge(words[:, None])
    cards = explain(tiny, task).cards
    shares = set()
    for head in range(4):
        for score, sign in (("copying", 1), ("negative copying", -1)):
            logits = logit_readout(bridge, sign * results[0][:, 0, head]).values  # [n, vocabulary]
            near = [
                int(word) in each.topk(5).indices.tolist() for word, each in zip(words, logits, strict=True)
            ]
            assert cards[f"a{layer}.h{head}"].scores[score] == pytest.approx(np.mean(near))
            shares.add(np.mean(near))
    assert name != "llama_biased" or len(shares) > 2  # this model's heads differ in it


def test_answers_are_among_the_highest_and_lowest_tokens_by_all_of_the_vocabulary(toy: Tiny) -> None:
    """Token by token, where only every sixteenth is looked at first."""
    task, heads = cd.load_task("ioi", toy.model), toy.model.graph.head_nodes(2)
    seen = Seen(toy.model, task, cd.Circuit.full(toy.model.graph), heads, 1, None)
    counts = {head: [0, 0, 0] for head in heads}
    for observed in observe(toy.model, task, 10):
        seen.add(observed)
        for head in heads:
            written = observed.written(toy.model.graph.source_index[head])
            for row, logits in zip(observed.batch.rows.tolist(), written @ toy.model.W_U.T, strict=True):
                order = logits.argsort().tolist()
                (right,), (wrong,) = task.examples[row].correct, task.examples[row].incorrect
                found = right in order[-5:], right in order[:5], wrong in order[:5]
                counts[head] = [count + each for count, each in zip(counts[head], found, strict=True)]
    assert toy.model.vocab_size > 500 and max(count[0] for count in counts.values()) > 20
    for head, count in counts.items():
        assert seen.shares(head) == pytest.approx([each / len(task) for each in count])


def test_copying_is_of_all_tokens_where_no_answer_stands_in_a_prompt(gpt2: Tiny) -> None:
    clean = gpt2.prompts.clean % 50
    task = task_of(gpt2, clean=clean, correct=[60] * 5, incorrect=[61] * 5)
    counts = CopyScores(gpt2.model, task, ["a0.h0"])
    for seen in observe(gpt2.model, task, 2):
        counts.add(seen)
    assert counts.total == clean.numel()


@pytest.fixture(scope="module")
def toy(tinies: Callable[[str], Tiny]) -> Tiny:
    return tinies("toy")


@pytest.fixture(scope="module")
def ioi(toy: Tiny) -> tuple[Task, cd.Circuit, Explanation]:
    """Some of the edges between thirteen nodes, with scores."""
    task, model = cd.load_task("ioi", toy.model), toy.model
    nodes = [
        "m0",
        "m1",
        "m3",
        "a1.h1",
        "a1.h3",
        *(f"a{layer}.h{head}" for layer in (0, 2) for head in range(4)),
    ]
    circuit = cd.eap(model, task).top(200) & cd.Circuit.from_nodes(model.graph, nodes)
    return task, circuit, cd.explain(model, task, circuit)


# ------------------------------------------------------------------ values, files, errors


def test_roles_are_the_cards_and_draw_takes_them(
    toy: Tiny, ioi: tuple[Task, cd.Circuit, Explanation], tmp_path: Path
) -> None:
    _, circuit, explained = ioi
    assert all(bool(card.evidence) == (card.role is not None) for card in explained.cards.values())
    assert {node for nodes in explained.roles.values() for node in nodes} == {
        n for n, card in explained.cards.items() if card.role
    }
    circuit.draw(tmp_path / "a.dot", roles=explained.roles)
    assert "S-inhibition" in (tmp_path / "a.dot").read_text()
    told = str(explained).splitlines()
    assert told[0] == "13 nodes of toy on ioi: logit_diff on 64 held-out examples, resample ablation, noising"
    assert "a1.h3: S-inhibition" in told and told.index("a1.h3: S-inhibition") + 1 == told.index(
        f"  {explained.cards['a1.h3'].evidence[0]}"
    )


def test_an_explanation_comes_back_from_its_file(
    ioi: tuple[Task, cd.Circuit, Explanation], tmp_path: Path
) -> None:
    explained = ioi[2]
    explained.save(tmp_path / "a.json")
    again = Explanation.load(tmp_path / "a.json")
    again.save(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert again.to_dict() == explained.to_dict() == json.loads((tmp_path / "a.json").read_text())
    assert again.roles == explained.roles and str(again).splitlines()[0] == str(explained).splitlines()[0]
    before, after = (each.cards["a2.h0"] for each in (explained, again))
    assert after.attention == pytest.approx(before.attention, rel=1e-5) and (
        after.lens[0].text,
        after.kind,
    ) == (
        before.lens[0].text,
        "head",
    )
    assert [edge for edge, _ in after.in_edges] == [edge for edge, _ in before.in_edges]
    assert (
        after.effect.high == pytest.approx(before.effect.high, rel=1e-5)
        and after.patterns[1].positions == before.patterns[1].positions
    )
    np.testing.assert_allclose(after.patterns[2].weights, before.patterns[2].weights, rtol=1e-5)
    # six significant digits
    assert len(str(explained.to_dict()["cards"]["a2.h0"]["effect"]["value"]).lstrip("0.")) <= 7


def test_the_same_call_gives_the_same_bytes(gpt2: Tiny, tmp_path: Path) -> None:
    task = task_of(gpt2, positions={"X": 1, "Y": 3})
    for name in ("a.json", "b.json"):
        explain(gpt2, task).save(tmp_path / name)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_a_file_has_the_largest_weights_of_long_prompts(
    ioi: tuple[Task, cd.Circuit, Explanation], tmp_path: Path
) -> None:
    tokens, rng = tuple(f" word{i}" for i in range(400)), np.random.default_rng(0)
    weights = np.exp(4 * rng.normal(size=(400, 400))) * np.tri(400)
    weights = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    long = Pattern("".join(tokens), tokens, weights, {"END": 399})
    card = ioi[2].cards["a2.h0"]
    explained = replace(ioi[2], cards={"a2.h0": replace(card, patterns=(long, card.patterns[0]))})
    explained.save(tmp_path / "a.json")
    whole = replace(explained, cards={"a2.h0": replace(card, patterns=(card.patterns[0],))})
    assert (tmp_path / "a.json").stat().st_size < len(to_json(whole.to_dict())) + 150_000
    again = Explanation.load(tmp_path / "a.json")
    found, short = (each.weights for each in again.cards["a2.h0"].patterns)
    np.testing.assert_allclose(short, card.patterns[0].weights, rtol=1e-5)
    known = ~np.isnan(found)
    np.testing.assert_allclose(found[known], weights[known], rtol=6e-3)
    assert known.sum() == 2048 and weights[known].min() == np.sort(weights, axis=None)[-2048]
    again.save(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    data = json.loads((tmp_path / "a.json").read_text())
    pattern = data["cards"]["a2.h0"]["patterns"][0]
    drawn = (
        heat_map(each, 300).count("fill-opacity") for each in (pattern, {**vars(long), "weights": weights})
    )
    assert list(drawn) == [300, 300]
    pattern["strongest"][5][1] = 400
    with pytest.raises(cd.CircuitDiscoveryError, match=r"cards.a2.h0.patterns.0.strongest"):
        Explanation.from_dict(data)


def test_a_file_that_has_all_patterns_whole_is_read(ioi: tuple[Task, cd.Circuit, Explanation]) -> None:
    data = ioi[2].to_dict()
    card = data["cards"]["a2.h0"]
    card["patterns"] = [{"text": "x", "tokens": ["x"] * 70, "weights": np.eye(70).tolist(), "positions": {}}]
    again = Explanation.from_dict(data | {"format": "circuitdiscovery explanation 2"})
    assert (again.cards["a2.h0"].patterns[0].weights == np.eye(70)).all()
    assert again.to_dict()["format"] == "circuitdiscovery explanation 3"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda data: data.pop("metric"), "lacks 'metric'"),
        (lambda data: data.update(format="x"), "field 'format'"),
        (lambda data: data["cards"]["a1.h1"].pop("lens"), "'cards.a1.h1' lacks 'lens'"),
        (
            lambda data: data["cards"]["a1.h1"].update(effect={"value": 1.0, "low": "a", "high": 2.0}),
            "'cards.a1.h1.effect.low' must be a number",
        ),
        (lambda data: data["cards"]["a1.h1"].update(kind="neuron"), "cards.a1.h1.kind"),
        (lambda data: data["cards"]["a1.h1"].update(node="a1.h2"), "cards.a1.h1.node"),
        (lambda data: data["cards"]["a1.h1"].update(attention=[["END", "S2"]]), "cards.a1.h1.attention"),
        (
            lambda data: data["cards"]["a1.h1"]["patterns"][0]["weights"].pop(),
            "cards.a1.h1.patterns.0.weights",
        ),
        (lambda data: data["cards"]["a1.h1"].update(evidence=[1]), "'cards.a1.h1.evidence' must be text"),
    ],
)
def test_a_broken_file_is_told_by_name_and_field(
    ioi: tuple[Task, cd.Circuit, Explanation], tmp_path: Path, change: Callable[[Any], Any], told: str
) -> None:
    data = ioi[2].to_dict()
    change(data)
    (tmp_path / "a.json").write_text(json.dumps(data))
    with pytest.raises(cd.CircuitDiscoveryError) as caught:
        Explanation.load(tmp_path / "a.json")
    assert told in str(caught.value) and "a.json" in str(caught.value) and "\n" not in str(caught.value)


def test_a_table_has_a_row_for_each_node(ioi: tuple[Task, cd.Circuit, Explanation]) -> None:
    explained = ioi[2]
    frame = explained.to_dataframe().set_index("node")
    scores = ["previous token", "duplicate token", "induction", "copying", "negative copying"]
    assert list(frame.columns) == [
        "role",
        "effect",
        "effect_low",
        "effect_high",
        "direct",
        *scores,
        "top attention",
    ]
    assert list(frame.index) == list(explained.cards)
    card = explained.cards["a1.h3"]
    assert (
        frame.loc["a1.h3", "role"] == "S-inhibition" and frame.loc["a1.h3", "effect_low"] == card.effect.low
    )
    assert (
        frame.loc["a1.h3", "top attention"] == f"S2 {card.attended[0][1]:.2f}"
        and frame.loc["a1.h3", "induction"] == card.scores["induction"]
    )
    assert (
        np.isnan(frame[scores].to_numpy()[list(explained.cards).index("m0")]).all()
        and frame["top attention"].isna().tolist()[4]
    )


def test_few_nodes_or_none(gpt2: Tiny) -> None:
    graph = gpt2.model.graph
    for circuit, nodes in (
        (cd.Circuit.empty(graph), []),
        (cd.Circuit.from_edges(graph, ["input->logits"]), []),
        (cd.Circuit.from_edges(graph, ["m1->logits"]), ["m1"]),
        (cd.Circuit.from_edges(graph, ["a0.h0->m0"]), ["a0.h0", "m0"]),  # leads nowhere
    ):
        found = explain(gpt2, circuit=circuit)
        assert (
            list(found.cards) == nodes
            and found.roles == {}
            and str(found).startswith(f"{len(nodes)} nodes of ")
        )
        assert Explanation.from_dict(found.to_dict()).to_dict() == found.to_dict() and len(
            found.to_dataframe()
        ) == len(nodes)


def test_progress_goes_to_an_end_that_is_known_from_the_start(
    toy: Tiny, ioi: tuple[Task, cd.Circuit, Explanation]
) -> None:
    task, circuit, _ = ioi
    for effort in ("full", "quick"):
        calls: list[tuple[int, int]] = []
        cd.explain(
            toy.model,
            task,
            circuit,
            effort=effort,
            progress=lambda done, total, c=calls: c.append((done, total)),
        )
        done, totals = zip(*calls, strict=True)
        assert list(done) == sorted(done) and all(a <= b for a, b in calls) and done[-1] == totals[-1]
        assert (
            done[0] == 0
            and len(calls) > 8
            and all(totals[-1] / 2 <= total <= 2 * totals[-1] for total in totals)
        )


# ------------------------------------------------------------------ effort


def test_quick_intervenes_on_some_examples_and_nodes_and_sees_all(
    gpt2: Tiny, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(explanation, "QUICK_NODES", 4)
    monkeypatch.setattr(explanation, "QUICK_EXAMPLES", 3)
    task, graph = task_of(gpt2), gpt2.model.graph
    circuit = cd.eap(gpt2.model, task, metric="logit_diff").top(40)
    found, whole = explain(gpt2, task, circuit, effort="quick"), explain(gpt2, task, circuit)
    assert set(found.cards) == set(circuit.strongest(4)) and list(found.cards) == sorted(
        found.cards, key=graph.sources.index
    )
    assert (
        set(found.cards) | set(found.unmeasured) == set(whole.cards)
        and whole.unmeasured == ()
        and len(found.cards) == 4
    )
    assert (found.effort, found.intervened, found.examples) == ("quick", 3, 5) and (
        whole.effort,
        whole.intervened,
    ) == ("full", 5)
    rows = {
        rows
        for rows in combinations(range(5), 3)
        for effects in [cd.exact(gpt2.model, task.select(rows), level="node", metric="logit_diff")]
        if all(abs(float(card.effect) - effects[node]) < 2e-5 for node, card in found.cards.items())
    }
    assert len(rows) == 1  # these three examples it was
    for node, card in found.cards.items():
        assert float(card.direct) == pytest.approx(float(whole.cards[node].direct), abs=1e-6)
        assert card.attention == pytest.approx(whole.cards[node].attention) and len(card.patterns) == len(
            whole.cards[node].patterns
        )
    lines = str(found).splitlines()
    assert "5 examples (none are held out) (interventions on 3 of them)" in lines[0]
    assert lines[-1] == f"not measured: {', '.join(found.unmeasured)}" and "not measured" not in str(whole)
    found.save(tmp_path / "a.json")
    again = Explanation.load(tmp_path / "a.json")
    assert (
        again.unmeasured == found.unmeasured
        and again.to_dict() == found.to_dict()
        and str(again).splitlines()[-1] == lines[-1]
    )


def test_copying_is_taken_on_some_tokens_evenly(gpt2: Tiny) -> None:
    # 30 tokens, none an answer
    task = task_of(gpt2, clean=gpt2.prompts.clean % 50, correct=[60] * 5, incorrect=[61] * 5)
    heads = [f"a2.h{head}" for head in range(4)]
    some = CopyScores(gpt2.model, task, heads, most=10)
    for seen in observe(gpt2.model, task, 2):
        some.add(seen)
    (seen,) = observe(gpt2.model, task)
    kept = torch.arange(30).reshape(5, 6) % 3 == 0  # every third
    block, stream, expected = (
        gpt2.model.blocks[2],
        (seen.sources[:6].sum(0) + gpt2.model.blocks[0].b_O)[kept],
        [],
    )
    for head in range(4):
        logits = (
            gpt2.model.final_norm(
                (block.norm1(stream) @ block.W_V[head].T + block.b_V[head]) @ block.W_O[head]
            )
            @ gpt2.model.W_U.T
        )
        for sign in (1, -1):
            near = zip(seen.batch.clean[kept].tolist(), (sign * logits).topk(5).indices.tolist(), strict=True)
            expected.append(np.mean([word in each for word, each in near]))
    assert some.total == 10 and any(expected)
    assert [share for head in heads for share in some.of(head).values()] == pytest.approx(expected)


def test_the_nodes_that_are_asked_for_have_cards(gpt2: Tiny) -> None:
    whole = explain(gpt2)
    found = explain(gpt2, nodes=["m1", "a0.h2"])
    assert list(found.cards) == ["a0.h2", "m1"] and len(found.unmeasured) == len(whole.cards) - 2
    assert found.to_dict()["cards"]["m1"]["lens"] == whole.to_dict()["cards"]["m1"]["lens"]
    assert float(found.cards["m1"].effect) == pytest.approx(float(whole.cards["m1"].effect), abs=1e-6)
    assert explain(gpt2, nodes=[]).cards == {}


def test_no_forward_holds_more_prompts_than_the_batch_size(
    llama: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def counted(model: Any, start: Tensor, *others: Any, **options: Any) -> Any:
        sizes.append(len(start))
        return plain_run(model, start, *others, **options)

    for module in (attention_module, interchange):
        monkeypatch.setattr(module, "plain_run", counted)
    explain(llama, task_of(llama, positions={"X": [1, 2, 1, 3, 2], "Y": 0}), batch_size=2)
    assert set(sizes) == {1, 2}


def test_an_explanation_of_the_former_format_is_read(ioi: tuple[Task, cd.Circuit, Explanation]) -> None:
    data = ioi[2].to_dict()
    for field in ("effort", "intervened", "unmeasured"):
        del data[field]
    with pytest.raises(cd.CircuitDiscoveryError, match="lacks 'effort'"):
        Explanation.from_dict(data)
    again = Explanation.from_dict(data | {"format": "circuitdiscovery explanation 1"})
    assert again.to_dict() == ioi[2].to_dict()


def test_bad_input_is_told_in_one_line(gpt2: Tiny, toy: Tiny) -> None:
    task, full = task_of(gpt2), cd.Circuit.full(gpt2.model.graph)
    bad: tuple[Any, ...] = (0, True, 1.5)
    for wrong, told in (
        (lambda: cd.explain(toy.model, task, full), "this is a circuit of"),
        (lambda: cd.explain(gpt2.model, task, full, metric="logits"), "no metric 'logits'"),
        (lambda: cd.explain(gpt2.model, task, full, ablation="none"), "no ablation 'none'"),
        (lambda: cd.explain(gpt2.model, task, full, batch_size=0), "batch_size must be"),
        (
            lambda: cd.explain(gpt2.model, task, full, effort="fast"),
            "no effort 'fast'; Valid efforts: full, quick",
        ),
        (
            lambda: cd.explain(gpt2.model, task, full, nodes=["a0.h9"]),
            "no head or MLP 'a0.h9'; did you mean 'a0.h",
        ),
        (lambda: cd.explain(gpt2.model, task, full, nodes=["input"]), "no head or MLP 'input'"),
        *(
            (
                lambda n=n: cd.explain(gpt2.model, task, full, prompts=n),
                "prompts must be a whole number of at least 1",
            )
            for n in bad
        ),
    ):
        with pytest.raises(cd.CircuitDiscoveryError, match=told) as caught:
            wrong()
        assert "\n" not in str(caught.value)
