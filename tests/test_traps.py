"""The traps that other implementations have fallen into, by the numbers of the
list that names them: those of the engine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference import carried, integrated, logit_diff
from tiny import Tiny, random_prompts
from torch import Tensor
from torch.nn import functional as F

import circuitdiscovery as cd


def only_batch(task: Any) -> Any:
    (batch,) = task.batches()
    return batch


def test_trap_1_mean_ablation_is_per_position_and_per_source(gpt2: Tiny) -> None:
    """Some take the mean over the last token only, or broadcast one vector to every source."""
    got = cd.replacements(gpt2.model, gpt2.prompts.task, ablation="mean").rows(only_batch(gpt2.prompts.task))
    with torch.no_grad():  # of the MLP of layer 1, from Hugging Face alone
        written: list[Tensor] = []
        handle = gpt2.hf.transformer.h[1].mlp.register_forward_hook(
            lambda module, args, out: written.append(out)
        )
        gpt2.hf(gpt2.prompts.corrupted)
        handle.remove()
    row = gpt2.model.graph.source_index["m1"]
    for example in range(len(gpt2.prompts)):
        others = [i for i in range(len(gpt2.prompts)) if i != example]
        torch.testing.assert_close(got[row, example], written[0][others].mean(0), atol=1e-5, rtol=0)  # [T, D]
    means = got[:, 0]  # [S, T, D]
    assert (means[:, 0] - means[:, -1]).norm(dim=-1).min() > 0.01
    assert torch.pdist(means[:, 2]).min() > 0.01


def test_trap_2_a_nodes_score_is_of_its_output(llama: Tiny) -> None:
    """Some multiply the gradient at a node's input with its output. By definition:
    move all its out-edges at once, by a little.
    """
    prompts, reference = llama.prompts, llama.reference64
    scores = cd.eap(llama.model, prompts.task).by_node()
    current, replacement = reference.run(prompts.clean)[1], carried(reference, "resample", prompts.corrupted)
    metric, step = logit_diff(prompts.correct, prompts.incorrect), 1e-4
    for row, name in enumerate(reference.graph.sources):
        moved = np.zeros_like(reference.graph.allowed)
        moved[row] = reference.graph.allowed[row]
        points = (current + t * (replacement - current) for t in (step, -step))
        up, down = (
            metric(reference.patched(prompts.clean, point, moved)[:, -1]).mean().item() for point in points
        )
        assert scores[name] == pytest.approx(
            -(up - down) / (2 * step), abs=1e-4 * max(map(abs, scores.values()))
        ), name


def test_trap_4_input_carries_the_position_embedding(gpt2: Tiny) -> None:
    """Without it positions are never ablated."""
    transformer = gpt2.hf.transformer
    got = cd.replacements(gpt2.model, gpt2.prompts.task).rows(only_batch(gpt2.prompts.task))[0]
    with torch.no_grad():
        expected = transformer.wte(gpt2.prompts.corrupted) + transformer.wpe(
            torch.arange(gpt2.prompts.clean.shape[1])
        )
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


def test_trap_4_without_input_nothing_knows_the_position(gpt2: Tiny) -> None:
    """Zero ablation of all that `input` writes: the same token
    everywhere, the same logits for every length."""
    graph = gpt2.model.graph
    mask = graph.allowed.copy()
    mask[graph.source_index["input"]] = False
    rows = []
    for length in (2, 5):
        task = random_prompts(101, 3, length).task
        rows.append(cd.run_circuit(gpt2.model, task, cd.Circuit(graph, mask), ablation="zero"))
    everything = torch.cat(rows)
    torch.testing.assert_close(everything, everything[:1].expand_as(everything), atol=1e-5, rtol=0)


def test_trap_5_the_rule_of_integrated_gradients(gpt2: Tiny) -> None:
    """A left Riemann sum never evaluates the clean end: one step of
    it is the gradient at the corrupted end."""
    prompts, reference = gpt2.prompts, gpt2.reference64
    left = cd.eap_ig(gpt2.model, prompts.task, steps=1, rule="left")
    middle = cd.eap_ig(gpt2.model, prompts.task, steps=1)  # midpoint is the default
    replacement, metric = (
        carried(reference, "resample", prompts.corrupted),
        logit_diff(prompts.correct, prompts.incorrect),
    )
    edges = [f"input->{receiver}" for receiver in left.graph.receivers[::5]]
    for scores, alpha in ((left, 0.0), (middle, 0.5)):
        expected = integrated(reference, prompts.clean, replacement, edges, metric, [alpha])
        assert {e: scores[e] for e in edges} == pytest.approx(
            expected, abs=1e-4 * np.abs(scores.values).max()
        )
    assert left.info["options"]["rule"] == "left" and middle.info["options"]["rule"] == "midpoint"
    with pytest.raises(cd.CircuitDiscoveryError, match=r"midpoint.*left"):
        cd.eap_ig(gpt2.model, prompts.task, rule="right")


def test_trap_5_the_midpoint_rule_is_better(gpt2: Tiny) -> None:
    task = gpt2.prompts.task
    limit = cd.eap_ig(gpt2.model, task, steps=200).values
    error = {
        rule: np.abs(cd.eap_ig(gpt2.model, task, steps=10, rule=rule).values - limit).max()
        for rule in ("midpoint", "left")
    }
    assert error["midpoint"] < 0.5 * error["left"]


def test_trap_6_kl_is_summed_over_the_vocabulary(gpt2: Tiny) -> None:
    """Some average, which is 1/vocabulary of it."""
    graph, prompts = gpt2.model.graph, gpt2.prompts
    damage = cd.exact(gpt2.model, prompts.task, metric="kl_divergence", level="node")["input"]
    mask = graph.allowed.copy()
    mask[graph.source_index["input"]] = False
    with torch.no_grad():
        full = gpt2.hf(prompts.clean).logits[:, -1].log_softmax(-1)
    ablated = cd.run_circuit(gpt2.model, prompts.task, cd.Circuit(graph, mask)).log_softmax(-1)
    expected = F.kl_div(ablated, full, log_target=True, reduction="batchmean").item()
    assert damage == pytest.approx(expected, rel=1e-4) and expected > 0.1


def test_trap_7_unequal_lengths_are_refused() -> None:
    """Some compare prompts of unequal length in silence, or pad one."""
    with pytest.raises(cd.CircuitDiscoveryError, match=r"row 1.*3.*2"):
        cd.Task.from_tokens(
            clean=[[1, 2], [1, 2, 3]], corrupted=[[3, 4], [3, 4]], correct=[5, 5], incorrect=[6, 6]
        )


def test_trap_7_rows_of_other_lengths_change_nothing(tiny: Tiny) -> None:
    """Pads stand on the right and attention is causal: a row alone has the logits
    and scores that it has among longer ones.
    """
    short, long = random_prompts(101, 1, 3, seed=1), random_prompts(101, 1, 8, seed=2)
    keys = ("clean", "corrupted", "correct", "incorrect")
    together = cd.Task.from_tokens(
        **{key: [getattr(short, key)[0].tolist(), getattr(long, key)[0].tolist()] for key in keys}
    )
    circuit = cd.eap(tiny.model, short.task).top(60)
    for row, alone in enumerate((short.task, long.task)):
        got = cd.run_circuit(tiny.model, together, circuit)[row]
        torch.testing.assert_close(got, cd.run_circuit(tiny.model, alone, circuit)[0], atol=1e-5, rtol=0)
    mean = (cd.eap(tiny.model, short.task).values + cd.eap(tiny.model, long.task).values) / 2
    np.testing.assert_allclose(cd.eap(tiny.model, together).values, mean, atol=1e-5)


def test_trap_8_keys_and_values_belong_to_groups(llama: Tiny) -> None:
    """Expanding them to one per query head counts edges that are not independent."""
    graph = llama.model.graph
    heads, groups, layers = 4, 2, 3
    assert [r for r in graph.receivers if r.startswith("a0.kv")] == [
        "a0.kv0<k>",
        "a0.kv0<v>",
        "a0.kv1<k>",
        "a0.kv1<v>",
    ]
    assert not any(r.startswith("a0.h") and r[-2] in "kv" for r in graph.receivers)
    upstream = [1 + layer * (heads + 1) for layer in range(layers)]
    expected = sum(n * (heads + 2 * groups) + (n + heads) for n in upstream) + 1 + layers * (heads + 1)
    assert len(graph) == expected == len(cd.eap(llama.model, llama.prompts.task).graph)
    with pytest.raises(cd.CircuitDiscoveryError):
        cd.eap(llama.model, llama.prompts.task, split_qkv=False)


def test_trap_8_a_groups_edge_moves_both_of_its_heads(llama: Tiny) -> None:
    """From Hugging Face alone: the value projection of group 1 in
    layer 1 reads the corrupted prompt's embedding.
    """
    prompts, model = llama.prompts, llama.model
    attention, norm = llama.hf.model.layers[1].self_attn, llama.hf.model.layers[1].input_layernorm
    embed, streams = llama.hf.model.embed_tokens, []
    with torch.no_grad():
        handle = norm.register_forward_pre_hook(lambda module, args: streams.append(args[0]))
        llama.hf(prompts.clean)
        handle.remove()
        patched = norm(streams[0] + embed(prompts.corrupted) - embed(prompts.clean))

        def swap(module: Any, args: Any, out: Tensor) -> Tensor:
            theirs = F.linear(patched, module.weight)
            # d_head is 8: group 1 is the second half
            return torch.cat([out[..., :8], theirs[..., 8:]], dim=-1)

        handle = attention.v_proj.register_forward_hook(swap)
        expected = llama.hf(prompts.clean).logits[:, -1]
        handle.remove()
    without = cd.Circuit.full(model.graph) - cd.Circuit.from_edges(model.graph, ["input->a1.kv1<v>"])
    torch.testing.assert_close(cd.run_circuit(model, prompts.task, without), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("name", "feature"), [("Glm4", "post-norm")])
def test_trap_9_post_norm_is_refused(tmp_path: Path, name: str, feature: str) -> None:
    """A head's contribution would pass the norm after attention with a shared denominator: where that is not
    computed (it is for Gemma and OLMo, tests/test_families.py)."""
    import transformers

    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
    }
    config = getattr(transformers, f"{name}Config")(vocab_size=101, head_dim=8, **sizes)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    for source in (tmp_path, model):
        with pytest.raises(cd.CircuitDiscoveryError, match=feature):
            cd.load_model(source)


def test_trap_12_zero_ablation_leaves_the_output_biases(gpt2: Tiny) -> None:
    """b_O belongs to no head: with every edge gone the logits are those of the sum of the output biases."""
    transformer = gpt2.hf.transformer
    with torch.no_grad():
        stream = sum(block.attn.c_proj.bias for block in transformer.h)
        expected = gpt2.hf.lm_head(transformer.ln_f(stream))
    got = cd.run_circuit(gpt2.model, gpt2.prompts.task, cd.Circuit.empty(gpt2.model.graph), ablation="zero")
    torch.testing.assert_close(got, expected.expand_as(got), atol=1e-4, rtol=0)


def test_trap_12_zero_ablation_takes_value_and_mlp_biases(gpt2: Tiny) -> None:
    """b_V W_O is part of its head, and b_out of its MLP: a model that differs in
    them only is the same when they are ablated.
    """
    import copy

    other = copy.deepcopy(gpt2.hf)
    with torch.no_grad():
        other.transformer.h[2].attn.c_attn.bias[64 + 8 : 64 + 16] += 1.0  # b_V of head 1
        other.transformer.h[1].mlp.c_proj.bias += 1.0
    changed, task = cd.load_model(other, name="changed"), gpt2.prompts.task
    graph = changed.graph
    mask = graph.allowed.copy()
    mask[[graph.source_index["a2.h1"], graph.source_index["m1"]]] = False
    ours, theirs = (
        cd.run_circuit(m, task, cd.Circuit(graph, mask), ablation="zero") for m in (gpt2.model, changed)
    )
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    full = [cd.run_circuit(m, task, cd.Circuit.full(graph)) for m in (gpt2.model, changed)]
    assert (full[0] - full[1]).abs().max() > 0.1


@pytest.mark.parametrize("method", ["eap", "eap_ig", "clean_corrupted", "exact"])
def test_trap_13_every_example_counts_once_whatever_the_batch(gpt2: Tiny, llama: Tiny, method: str) -> None:
    """Some drop the last batch, or scale scores by its size: five
    examples in batches of two, and one by one."""
    for tiny in (gpt2, llama):
        task, search = tiny.prompts.task, getattr(cd, method)
        whole = search(tiny.model, task).values
        np.testing.assert_allclose(search(tiny.model, task, batch_size=2).values, whole, atol=1e-5)
        alone = [search(tiny.model, task.select([row])).values for row in range(len(task))]
        np.testing.assert_allclose(np.mean(alone, axis=0), whole, atol=1e-5)
