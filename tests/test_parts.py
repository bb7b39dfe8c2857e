"""Nodes as sums of parts: all parts are the node, and every edge of a part is what the definition says."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference import honest_float64
from test_families import CASES, VOCABULARY, config_of
from tiny import CONFIGS, random_model, random_prompts, tiny_config
from torch import Tensor

import circuitdiscovery as cd
from circuitdiscovery import features
from circuitdiscovery.engine.definition import masked_logits
from circuitdiscovery.engine.relaxed import Relaxed
from circuitdiscovery.engine.setup import Setup
from circuitdiscovery.features.dictionary import Dictionary
from circuitdiscovery.graph.nodes import whole_of
from circuitdiscovery.model.run import plain_run

SPANS = {"first": [0, 1], "last": [-1]}
ABLATIONS = ("resample", "mean", "mean_all", "zero", "noise", "random")


def network_of(name: str) -> Any:
    """A random Hugging Face model of three layers."""
    return random_model(tiny_config(name) if name in CONFIGS else config_of(*CASES[name]))


def split_of(model: cd.Model) -> cd.Graph:
    """Something of everything that a model's nodes can be split into."""
    last = model.n_layers - 1
    nodes: dict[str, Any] = {"input": SPANS, "a0.h1": {"second": [1]}, f"a{last}.h0": SPANS}
    for layer, block in enumerate(model.blocks):
        if block.experts is not None:
            nodes[f"m{layer}"] = "experts"
        elif block.d_mlp:
            nodes[f"m{layer}"] = (SPANS, "neurons", [3, 17])[layer % 3]
    return cd.split(model, nodes)


def lifted(graph: cd.Graph, coarse: np.ndarray) -> np.ndarray:
    """A mask of the graph without parts, as one of a graph with parts."""
    whole = graph.whole
    rows = [whole.source_index[whole_of(name)] for name in graph.sources]
    columns = [
        whole.receiver_index[name if name in whole.receiver_index else whole_of(name)]
        for name in graph.receivers
    ]
    return coarse[np.ix_(rows, columns)]


def merged(graph: cd.Graph, values: np.ndarray) -> np.ndarray:
    """Scores of edges among parts, added up to those among nodes."""
    whole, total = graph.whole, np.zeros(graph.whole.allowed.shape)
    for row, source in enumerate(graph.sources):
        for column, receiver in enumerate(graph.receivers):
            into = receiver if receiver in whole.receiver_index else whole_of(receiver)
            total[whole.source_index[whole_of(source)], whole.receiver_index[into]] += values[row, column]
    return total


class Defined:
    """The definition on one batch of a task."""

    def __init__(self, model: cd.Model, task: cd.Task, graph: cd.Graph, ablation: str = "resample") -> None:
        self.model, self.graph = model, graph
        ((self.batch, self.patched),) = Setup.of(model, task, graph, ablation=ablation).patched_runs()

    def __call__(self, mask: Tensor | np.ndarray) -> Tensor:
        patched, mask = self.patched, torch.as_tensor(mask).to(self.model.dtype)
        given = patched.start, patched.carried(slice(None)), patched.position
        return masked_logits(self.model, self.graph, *given, mask, patched.parts.inside)


@pytest.mark.parametrize("name", [*CONFIGS, *CASES])
def test_every_architecture(name: str) -> None:
    """In float64: all and no edges and lifted circuits are the model's without parts, and on random masks the
    engine, its branches, the gradient by hand and EAP are the definition's."""
    model = cd.load_model((network_of(name), None), dtype="float64")
    task, graph = random_prompts(VOCABULARY, 3, 6).task, split_of(model)
    assert len(graph.splits) == 3 + model.graph.has_mlp * model.n_layers
    check(model, task, graph)


def check(model: cd.Model, task: cd.Task, graph: cd.Graph) -> None:
    """A graph of a model with parts, on a task, against the model without and the definition."""
    rng = np.random.default_rng(0)
    split, whole = Defined(model, task, graph), Defined(model, task, model.graph)
    for share in (1.0, 0.0, 0.6, 0.3):
        coarse = model.graph.allowed & (rng.random(model.graph.allowed.shape) < share)
        expected = whole.patched.logits(coarse)
        torch.testing.assert_close(
            split.patched.logits(lifted(graph, coarse)), expected, atol=1e-10, rtol=1e-10
        )
    for share in (0.9, 0.5, 0.1):
        mask = graph.allowed & (rng.random(graph.allowed.shape) < share)
        torch.testing.assert_close(split.patched.logits(mask), split(mask), atol=1e-10, rtol=1e-10)
    real = torch.tensor(rng.random(graph.allowed.shape) * graph.allowed).requires_grad_()
    (slow,) = torch.autograd.grad(split(real)[:, :7].square().sum(), real)
    slow = slow * torch.tensor(graph.allowed)
    _, gradient = Relaxed.build(model, graph).gradient(
        split.patched, real.detach(), lambda logits: logits[:, :7].square().sum()
    )
    torch.testing.assert_close(gradient, slow, rtol=1e-8, atol=1e-9 * float(slow.abs().max()))
    ones = torch.tensor(graph.allowed).double().requires_grad_()
    rows, batch = torch.arange(len(split.batch)), split.batch
    logits = split(ones)
    difference = (logits[rows, batch.correct[:, 0]] - logits[rows, batch.incorrect[:, 0]]).mean()
    (slow,) = torch.autograd.grad(difference, ones)
    scores = cd.eap(model, task, graph=graph).values
    # routers compute in float32, so that another order of the same sum moves the gradient
    tolerance = 1e-10 if all(block.experts is None for block in model.blocks) else 1e-6
    np.testing.assert_allclose(scores[graph.allowed], slow.numpy()[graph.allowed], rtol=0, atol=tolerance)
    state = split.patched.clean_state(_clean(split))
    for column in rng.permutation(len(graph.receivers))[:6]:
        kept = graph.allowed[:, column] & (rng.random((3, len(graph.sources))) < 0.5)
        found = split.patched.branch(graph.allowed, state, int(column), kept)
        for each, logits in zip(kept, found, strict=True):
            mask = graph.allowed.copy()
            mask[:, column] = each
            torch.testing.assert_close(logits, split(mask), atol=1e-10, rtol=1e-10)


def _clean(split: Defined) -> Tensor:
    patched = split.patched
    sources = plain_run(
        split.model, patched.start, patched.position, keep_sources=True, parts=patched.parts
    ).sources
    assert sources is not None
    return sources


@pytest.mark.parametrize("name", ["gpt2", "llama_biased", "gemma3"])
def test_attribution_adds_up(name: str) -> None:
    """Over the parts of a node attributions are the node's, by every ablation; the neurons of an MLP with a norm
    after it stand before that norm, and add up to those of the graph in which all of it is the rest."""
    model = cd.load_model((network_of(name), None), dtype="float64")
    task, graph = random_prompts(VOCABULARY, 12, 6).task, split_of(model)
    rest = cd.split(model, {"m1": [0], "m2": [0]}) if model.blocks[0].mlp_norm else model.graph
    for ablation in ABLATIONS:
        found = merged(graph, cd.eap(model, task, graph=graph, ablation=ablation).values)
        expected = merged(rest, cd.eap(model, task, graph=rest, ablation=ablation).values)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_no_part_is_the_replaced_run(ablation: str) -> None:
    """By every ablation, with all its edges removed a split graph is the graph without parts; and splitting
    some nodes changes the draws of no other."""
    model = cd.load_model("toy", dtype="float64")
    task = cd.load_task("ioi", model, examples=6)
    graph = cd.split(
        model, {"m1": range(20), "m2": [1, 2], "input": "positions", "a1.h0": "positions"}, task=task
    )
    split, whole = Defined(model, task, graph, ablation), Defined(model, task, model.graph, ablation)
    nothing = np.zeros_like(model.graph.allowed)
    expected = whole.patched.logits(nothing)
    torch.testing.assert_close(split.patched.logits(lifted(graph, nothing)), expected, atol=1e-10, rtol=1e-10)
    for node in model.graph.nodes:
        replaced = split.patched.carried(graph.rows(node)).sum(0)
        torch.testing.assert_close(
            replaced, whole.patched.carried(model.graph.rows(node))[0], atol=1e-11, rtol=1e-11
        )


def test_one_edge_into_one_neuron_by_hooks() -> None:
    """With the edge from a head into one neuron removed, the neuron alone reads the stream with the head as in
    the corrupted run: computed by hooks of Hugging Face's own modules."""
    network = network_of("llama").double()
    model = cd.load_model((network, None), dtype="float64")
    prompts = random_prompts(VOCABULARY, 4, 6)
    graph, neuron, head = cd.split(model, {"m1": [7, 30]}), 30, 2
    mask = graph.allowed.copy()
    mask[graph.index(f"a0.h{head}->m1/n{neuron}")] = False
    found = cd.run_circuit(model, prompts.task, cd.Circuit(graph, mask))
    layer, width = network.model.layers[1], model.blocks[0].d_head
    seen: dict[str, Tensor] = {}

    def head_of(_: Any, given: tuple[Tensor, ...]) -> None:
        own = given[0][..., head * width : (head + 1) * width]
        weight = network.model.layers[0].self_attn.o_proj.weight[:, head * width : (head + 1) * width]
        seen["head"] = own @ weight.T

    def stream(_: Any, given: tuple[Tensor, ...]) -> None:
        seen["stream"] = given[0]

    def activation(read: Tensor) -> Tensor:
        read = layer.post_attention_layernorm(read)
        gate, up = layer.mlp.gate_proj.weight[neuron], layer.mlp.up_proj.weight[neuron]
        return torch.nn.functional.silu(read @ gate) * (read @ up)

    def changed(_: Any, __: Any, out: Tensor) -> Tensor:
        own, other = seen["stream"], seen["stream"] - seen["head"] + corrupted
        more = activation(other) - activation(own)
        return out + more[..., None] * layer.mlp.down_proj.weight[:, neuron]

    hooks = [network.model.layers[0].self_attn.o_proj.register_forward_pre_hook(head_of)]
    with torch.no_grad(), honest_float64():
        network(prompts.corrupted)
        corrupted = seen["head"]
        plain = network(prompts.clean).logits[:, -1]
        hooks.append(layer.post_attention_layernorm.register_forward_pre_hook(stream))
        hooks.append(layer.mlp.register_forward_hook(changed))
        expected = network(prompts.clean).logits[:, -1] - plain
    change = found - cd.run_circuit(model, prompts.task, cd.Circuit.full(graph))
    # Hugging Face's rotary tables are of float32
    assert (change - expected).abs().max() < 1e-5 * expected.abs().max()


def dictionary_of(kind: str, reads: str, width: int, inner: bool) -> Dictionary:
    """A random dictionary of 24 features."""
    draw = torch.Generator().manual_seed(0)

    def some(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64) / width**0.5

    more: dict[str, Any] = {
        "relu": {},
        "topk": {"k": 5},
        "jumprelu": {"threshold": some(24).abs()},
        "gated": {"r_mag": some(24), "b_mag": some(24)},
    }[kind]
    tensors = some(24, width), some(24), some(24, width), some(width)
    return Dictionary(kind, None, reads, *tensors, inner=inner, **more)


@pytest.mark.parametrize("name", ["gpt2", "gemma3", "neox_parallel"])
@pytest.mark.parametrize(
    ("kind", "reads"),
    [("relu", "output"), ("topk", "output"), ("gated", "normed"), ("jumprelu", "stream"),
     ("topk", "normed"), ("topk", "normed without gain"), ("relu", "normed without gain")],
)  # fmt: skip
def test_features(name: str, kind: str, reads: str) -> None:
    """Of autoencoders and transcoders, before and after a norm of the MLP: exact as other parts are."""
    model = cd.load_model((network_of(name), None), dtype="float64")
    task = random_prompts(VOCABULARY, 3, 6).task
    graph = cd.split(model, {f"m{i}": dictionary_of(kind, reads, 32, inner=i == 1) for i in (0, 1)})
    assert len(graph.sources) == len(model.graph.sources) + 48
    check(model, task, graph)


@pytest.mark.parametrize("reads", ["output", "normed", "stream"])
def test_features_of_a_model_that_multiplies_what_layers_add(reads: str) -> None:
    """What is added, and the stream, are Hugging Face's: one feature less, by hooks of its modules."""
    network = network_of("granite").double()
    model = cd.load_model((network, None), dtype="float64")
    found, prompts = dictionary_of("relu", reads, 32, inner=False), random_prompts(VOCABULARY, 3, 6)
    graph, layer = cd.split(model, {"m1": found}), network.model.layers[1]
    check(model, prompts.task, graph)
    mask, r, seen = graph.allowed.copy(), network.config.residual_multiplier, list[Tensor]()
    mask[graph.source_index["m1/f3"]] = False

    def without(_: Any, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
        read = {"output": r * out, "normed": given[0], "stream": seen[-1]}[reads]
        value = (read @ found.W_enc[3] + found.b_enc[3]).relu()
        seen.append(value)
        return out - value[..., None] * found.W_dec[3] / r

    layer.post_attention_layernorm.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad(), honest_float64():
        plain = network(prompts.clean).logits[:, -1]
        layer.mlp.register_forward_hook(without)
        expected = network(prompts.clean).logits[:, -1] - plain
    circuits = [cd.Circuit(graph, each) for each in (mask, graph.allowed)]
    logits = [cd.run_circuit(model, prompts.task, each, ablation="zero") for each in circuits]
    # Hugging Face's rotary tables are of float32
    assert (logits[0] - logits[1] - expected).abs().max() < 1e-5 * expected.abs().max()
    (value,) = cd.features.top_activations(model, [replace(found, site="m1")[3]], prompts.clean, first=True)
    assert value.high == pytest.approx(float(seen[-1].max()), rel=1e-5)
    damages = np.abs(cd.eap_ig(model, prompts.task, graph=graph).values.sum(1))
    best = sorted(graph.parts("m1")[:-1], key=lambda name: -damages[graph.source_index[name]])[:5]
    kept = cd.split(model, {"m1": found}, task=prompts.task, keep=5)
    assert set(kept.parts("m1")[:-1]) == set(best)


def test_the_features_that_matter_are_kept() -> None:
    """By the damages that EAP-IG gives the features as parts of the graph; those that are never active are not
    among them."""
    model = cd.load_model((network_of("gpt2"), None), dtype="float64")
    task = random_prompts(VOCABULARY, 8, 6).task
    for reads in ("output", "normed"):
        dictionary = dictionary_of("jumprelu", reads, 32, inner=False)
        dictionary = replace(dictionary, threshold=torch.linspace(0, 8, 24).double(), digest="")
        every = cd.split(model, {"m1": dictionary})
        damages = np.abs(cd.eap_ig(model, task, graph=every).values.sum(1))
        best = sorted(every.parts("m1")[:-1], key=lambda name: -damages[every.source_index[name]])[:5]
        kept = cd.split(model, {"m1": dictionary}, task=task, keep=5)
        assert set(kept.parts("m1")[:-1]) == set(best)
        active = cd.split(model, {"m1": dictionary}, task=task).parts("m1")[:-1]
        assert len(active) < 24
        assert {name for name in every.parts("m1")[:-1] if damages[every.source_index[name]] > 0} <= set(
            active
        )


def test_every_feature_that_is_active_is_a_part() -> None:
    """A feature of what stands in both prompts acts in both alike: resampling does it no damage, zeroing does,
    and it is a part. So is one that acts in corrupted prompts alone; one of pads is not."""
    model = cd.load_model("toy", dtype="float64")
    task = replace(cd.load_task("ioi", model, examples=6), held_out=None)
    clean, corrupted = (
        [features.run(model, [list(prompt)]).values("m1")[0] for prompt in prompts]
        for prompts in zip(*((each.clean, each.corrupted) for each in task.examples), strict=True)
    )
    short = min((each.clean for each in task.examples), key=len)
    padded = features.run(model, [[*short, 0, 0]]).values("m1")[0][-1]
    tokens = torch.cat([*clean, *corrupted])

    def alone(candidates: Tensor) -> tuple[Tensor, Tensor]:
        """(weight, threshold) of a feature that acts at one of some tokens, and at its copies, alone."""
        for token in candidates:
            weight = torch.linalg.solve(tokens.T @ tokens, token)
            least, own = (tokens @ weight)[(tokens - token).norm(dim=-1) > 1e-9].max(), token @ weight
            if own > 1.2 * least:
                return weight / own, (own + least) / (2 * own)
        raise AssertionError("no token is apart from all others")

    first = torch.stack([each[0] for each in clean])
    places = [(one != other).any(-1) for one, other in zip(clean, corrupted, strict=True)]
    other = torch.cat([each[place] for each, place in zip(corrupted, places, strict=True)])
    weights, least = map(torch.stack, zip(*map(alone, (first, other, padded[None])), strict=True))
    zeros = torch.zeros(model.d_model, dtype=torch.float64)
    dictionary = Dictionary("relu", "m1", "output", weights, -least, weights, zeros)
    graph = cd.split(model, {"m1": dictionary}, task=task)
    assert graph.parts("m1") == ("m1/f0", "m1/f1", "m1/rest")
    resampled, zeroed = (
        cd.exact(model, task, graph=graph, level="node", ablation=each) for each in ("resample", "zero")
    )
    assert abs(resampled["m1/f0"]) < 1e-9 < 1e-6 < abs(zeroed["m1/f0"])
    assert abs(resampled["m1/f1"]) > 1e-6


def test_a_node_without_a_part_is_left_whole() -> None:
    """The neurons that matter most are split layer by layer, of which some have none."""
    model = cd.load_model("toy")
    task = cd.load_task("ioi", model, examples=4)
    best = cd.neurons(model, task, top=2)
    graph = cd.split(model, {node: best.of(node) for node in ("m0", "m1", "m2", "m3")})
    assert {split.node for split in graph.splits} == {name.partition("/")[0] for name in best.names}
    assert len(graph.splits) < 4 and len(cd.eap(model, task, graph=graph)) == len(graph)
    zeros = torch.zeros(3, model.d_model)
    never = Dictionary("relu", "m1", "output", zeros, -torch.ones(3), zeros, torch.zeros(model.d_model))
    for keep in (None, 2):
        assert cd.split(model, {"m1": never, "m2": []}, task=task, keep=keep) == model.graph


def test_a_schema_maps_prompts_of_different_length_to_the_same_spans(tmp_path: Path) -> None:
    """As named spans do, row by row; a task's words alone would be their last tokens."""
    model = cd.load_model("toy", dtype="float64")
    task = cd.load_task("ioi", model, examples=40)
    short, long = (
        [each for each in task.examples if len(each.clean) == length]
        for length in sorted({len(each.clean) for each in task.examples})[:2]
    )
    assert short and long
    some = replace(task, examples=(*short[:2], *long[:2]), held_out=None)
    where = {each.text: {"head": [0, len(each.clean) - 2], "tail": [len(each.clean) - 2, len(each.clean) - 1]}
             for each in some.examples}  # fmt: skip
    (tmp_path / "spans.json").write_text(json.dumps(where))
    by_schema = cd.split(model, {"a1.h1": str(tmp_path / "spans.json")})
    assert by_schema.parts("a1.h1") == ("a1.h1/@head", "a1.h1/@tail", "a1.h1/rest")
    mask = by_schema.allowed.copy()
    mask[by_schema.source_index["a1.h1/@tail"]] = False
    found = cd.run_circuit(model, some, cd.Circuit(by_schema, mask))
    named = cd.split(model, {"a1.h1": {"tail": [-2]}})
    other = named.allowed.copy()
    other[named.source_index["a1.h1/@tail"]] = False
    expected = cd.run_circuit(model, some, cd.Circuit(named, other))
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)
    unknown = replace(some, examples=(task.examples[-1],))
    with pytest.raises(cd.CircuitDiscoveryError, match="no spans of the prompt"):
        cd.run_circuit(model, unknown, cd.Circuit(by_schema, mask))


@pytest.mark.parametrize(("metric", "ablation"), [("kl_divergence", "resample"), ("nll", "zeros")])
def test_parts_are_kept_by_the_metric_and_the_ablation_that_are_asked_for(metric: str, ablation: str) -> None:
    model, nodes = cd.load_model("toy"), {"m3": "neurons"}
    task = cd.load_task("ioi", model, examples=8)
    how: dict[str, Any] = {"metric": metric, "ablation": ablation}
    kept = cd.split(model, nodes, task=task, keep=8, **how).parts("m3")
    best = cd.neurons(model, task, top=8, method="eap_ig", graph=cd.split(model, nodes), **how)
    assert set(kept) == {*best.names, "m3/rest"}
    assert set(kept) != set(cd.split(model, nodes, task=task, keep=8).parts("m3"))


@pytest.mark.parametrize(
    ("nodes", "more", "message"),
    [
        ({"m9": "neurons"}, {}, "no node 'm9'"),
        ({"m1": [512]}, {}, "m1 has no neuron 512: it has 512"),
        ({"m1": [1, 1]}, {}, "parts of the same name"),
        ({"m1": "neuron"}, {}, "is split into 'neurons'"),
        ({"a1.h0": "neurons"}, {}, "by positions only"),
        ({"m1/n3": "neurons"}, {}, "is a part already"),
        ({"m1": "experts"}, {}, "no mixture of experts"),
        ({"input": "positions"}, {}, "give task="),
        ({"input": {"a/b": [1]}}, {}, "a name without"),
        ({"input": {"late": [99]}}, {"run": True}, "has no position 99"),
        ({"input": {"a": [1], "b": [1, 2]}}, {"run": True}, "share a token"),
        ({"m1": "neurons"}, {"keep": 5}, "keep needs a task"),
        ({"m1": "neurons"}, {"keep": 0}, "at least 1"),
        ({"m1": [3]}, {"task": "ioi", "metric": "nll"}, "metric and ablation are what keep chooses by"),
        ({"m1": [3]}, {"task": "ioi", "ablation": "zero"}, "metric and ablation are what keep chooses by"),
        (
            {"m1": "neurons"},
            {"task": "ioi", "keep": 5, "ablation": "mean"},
            "resample or zero, not by 'mean'",
        ),
        ({"input": "all"}, {"task": "ioi"}, "for prompts of one length"),
    ],
)
def test_mistakes_are_refused_in_one_line(nodes: Any, more: dict[str, Any], message: str) -> None:
    model = cd.load_model("toy")
    run, task = more.pop("run", False), cd.load_task("ioi", model, examples=8)
    more |= {"task": task} if "task" in more else {}
    with pytest.raises(cd.CircuitDiscoveryError, match=re.escape(message)) as caught:
        graph = cd.split(model, nodes, **more)
        if run:
            cd.run_circuit(model, task, cd.Circuit.full(graph))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"node": "m1", "kind": "neurons", "parts": ["n512"], "own": True}, "there is no m1/n512"),
        ({"node": "m1", "kind": "experts", "parts": ["e0"]}, "m1 of toy has 0 experts"),
        ({"node": "m1", "kind": "neurons", "parts": ["n3"]}, "neurons read for themselves"),
        ({"node": "m1", "kind": "neurons", "parts": ["nx"], "own": True}, "a letter and a number"),
        ({"node": "m1", "kind": "neurons", "parts": ["n7", "n07"], "own": True}, "without leading zeros"),
        ({"node": "m1", "kind": "neurons", "parts": [], "own": True}, "m1 is split into no parts"),
        ({"node": "m1", "kind": "features", "parts": ["f3"], "digest": "0"}, "is needed to run"),
    ],
)
def test_parts_of_a_file_that_the_model_does_not_have(split: Any, message: str, tmp_path: Path) -> None:
    model = cd.load_model("toy")
    graph = model.graph.to_dict() | {"splits": [split]}
    with pytest.raises(cd.CircuitDiscoveryError, match=re.escape(message)):
        found = cd.Graph.from_dict(graph, "c.json")
        cd.run_circuit(model, cd.load_task("ioi", model, examples=2), cd.Circuit.full(found))


def test_neurons_by_a_numpy_array() -> None:
    model = cd.load_model("toy")
    assert cd.split(model, {"m1": np.array([17, 3])}) == cd.split(model, {"m1": [3, 17]})


def test_a_dictionary_that_does_not_fit_is_refused() -> None:
    model = cd.load_model((network_of("gpt2"), None))
    fits = dictionary_of("relu", "output", 32, inner=False)
    for found, message in (
        (dictionary_of("relu", "output", 16, inner=False), "of width 16"),
        (replace(fits, site="m2"), "is of m2, not of m1"),
        (replace(fits, site="resid1"), "is of resid1, not of m1"),
    ):
        with pytest.raises(cd.CircuitDiscoveryError, match=message):
            cd.split(model, {"m1": found})
    graph = cd.split(model, {"m1": fits})
    without = replace(graph, splits=tuple(replace(each, dictionary=None) for each in graph.splits))
    with pytest.raises(cd.CircuitDiscoveryError, match="is needed to run"):
        cd.run_circuit(model, random_prompts(VOCABULARY, 3, 6).task, cd.Circuit.full(without))


def test_neurons_are_the_nodes_of_the_split_graph() -> None:
    """Their damages are EAP's and EAP-IG's of the neurons as sources of a graph in which all are parts, and
    exactly, those of removing all edges of one."""
    model = cd.load_model((network_of("gemma3"), None), dtype="float64")
    task = random_prompts(VOCABULARY, 6, 6).task
    graph = cd.split(model, {"m0": "neurons", "m1": "neurons", "m2": "neurons"})
    for method in ("eap", "eap_ig"):
        found = cd.neurons(model, task, top=40, method=method).damages
        scores = getattr(cd, method)(model, task, graph=graph).by_node()
        for name, damage in found.items():
            assert damage == pytest.approx(scores[name], abs=1e-10)
        least = min(abs(damage) for damage in found.values())
        assert sum(abs(value) >= least - 1e-12 for name, value in scores.items() if "/n" in name) == 40
    exactly = cd.neurons(model, task, top=3, method="exact").damages
    full = cd.run_circuit(model, task, cd.Circuit.full(graph))
    for name, damage in exactly.items():
        mask = graph.allowed.copy()
        mask[graph.source_index[name]] = False
        gone = cd.run_circuit(model, task, cd.Circuit(graph, mask))
        rows = torch.arange(len(task))
        right, wrong = (
            [each[0] for each in answers]
            for answers in zip(*((e.correct, e.incorrect) for e in task.examples), strict=True)
        )
        lost = (full - gone)[rows, right] - (full - gone)[rows, wrong]
        assert damage == pytest.approx(float(lost.mean()), abs=1e-10)


def removed(model: cd.Model, task: cd.Task, graph: cd.Graph, name: str) -> tuple[Tensor, Tensor]:
    """[examples, vocabulary] each: the logits with every edge, and without those out of one source."""
    mask = graph.allowed.copy()
    mask[graph.source_index[name]] = False
    full, gone = (cd.run_circuit(model, task, cd.Circuit(graph, each)) for each in (graph.allowed, mask))
    return full, gone


def test_neurons_by_a_divergence() -> None:
    """Their damages are EAP-IG's of the neurons as sources, and exactly, the divergence from the model's
    logits; the parts that are kept of a task with that metric are those of the largest."""
    model, kl = cd.load_model((network_of("gpt2"), None), dtype="float64"), "kl_divergence"
    task = replace(random_prompts(VOCABULARY, 6, 6).task, metric=kl)
    graph = cd.split(model, {"m0": "neurons", "m1": "neurons", "m2": "neurons"})
    scores = cd.eap_ig(model, task, metric=kl, graph=graph).by_node()
    for name, damage in cd.neurons(model, task, top=40, method="eap_ig").damages.items():
        assert damage == pytest.approx(scores[name], abs=1e-10)
    order = sorted((name for name in scores if name.startswith("m1/n")), key=lambda name: -abs(scores[name]))
    kept = cd.split(model, {"m1": "neurons"}, task=task, keep=3)
    assert {*kept.parts("m1")} == {*order[:3], "m1/rest"}
    for name, damage in cd.neurons(model, task, top=3, method="exact", metric=kl).damages.items():
        full, gone = (each.log_softmax(-1) for each in removed(model, task, graph, name))
        assert damage == pytest.approx(float((full.exp() * (full - gone)).sum(-1).mean()), abs=1e-10)


@pytest.mark.parametrize("held_out", [False, True])
def test_neurons_by_a_share(held_out: bool) -> None:
    """Accuracy has no gradient: the choice is that by the logit difference, and what is measured is how often
    the right answer is ahead no more, less how often it is ahead only then."""
    model = cd.load_model((network_of("gpt2"), None), dtype="float64")
    rows = random_prompts(VOCABULARY, 24, 6).task
    task = replace(rows.select(range(12)), held_out=rows.select(range(12, 24)) if held_out else None)
    measured = task.held_out or task
    graph = cd.split(model, {"m0": "neurons", "m1": "neurons", "m2": "neurons"})
    found = cd.neurons(model, task, top=30, method="exact", metric="accuracy")
    assert found.names == cd.neurons(model, task, top=30, method="eap_ig", metric="logit_diff").names
    at, right, wrong = (
        torch.arange(len(measured)),
        [each.correct[0] for each in measured.examples],
        [each.incorrect[0] for each in measured.examples],
    )
    expected = {}
    for name in found.names:
        full, gone = (each[at, right] > each[at, wrong] for each in removed(model, measured, graph, name))
        expected[name] = float((full.double() - gone.double()).mean())
    assert {name: float(damage) for name, damage in found.damages.items()} == pytest.approx(expected)
    assert any(expected.values())
    assert all(damage.has_interval == held_out for damage in found.damages.values())
    kept = cd.split(model, {"m1": "neurons"}, task=replace(task, metric="accuracy"), keep=3)
    assert kept == cd.split(model, {"m1": "neurons"}, task=task, keep=3)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"metric": "kl_divergence"}, "no gradient on the clean run, .*; use method='eap_ig' or 'exact'$"),
        ({"metric": "accuracy"}, "'accuracy' has no gradient: use method='exact', or another metric$"),
        ({"metric": "accuracy", "method": "eap_ig"}, "'accuracy' has no gradient: use method='exact'"),
        (
            {"metric": lambda logits, _: logits.detach()[:, 0], "method": "exact"},
            "has no gradient, by which neurons",
        ),
    ],
)
def test_neurons_by_a_metric_without_a_gradient(options: dict[str, Any], told: str) -> None:
    model = cd.load_model("toy")
    with pytest.raises(cd.CircuitDiscoveryError, match=told):
        cd.neurons(model, cd.load_task("ioi", model, examples=4), top=3, **options)


@pytest.mark.parametrize("name", ["llama", "gemma3", "olmo2"])
def test_the_tokens_that_a_neuron_writes(name: str) -> None:
    """On Hugging Face's modules: the neuron's column of the output matrix, through the norm after the MLP where
    there is one and the last norm, whose divisions are undone."""
    network = network_of(name).double()
    model = cd.load_model((copy.deepcopy(network), None), dtype="float64")
    found = cd.neurons(model, random_prompts(VOCABULARY, 4, 6).task, top=8)
    for neuron in found.names:
        layer, unit = int(neuron[1]), int(neuron.partition("/n")[2])
        block = network.model.layers[layer]
        vector = block.mlp.down_proj.weight[:, unit].detach()

        def through(norm: Any, vector: Tensor) -> Tensor:
            """[D]: what a norm makes of a vector, without its division."""
            size = vector.square().mean().sqrt()
            return norm(vector / size).detach() * size

        after = getattr(block, "post_feedforward_layernorm", None)
        vector = vector if after is None else through(after, vector)
        logits = network.lm_head.weight @ through(network.model.norm, vector)
        for tokens, values in ((found.promoted, logits), (found.suppressed, -logits)):
            best = values.topk(6)
            assert [int(token) for token, _ in tokens[neuron]] == best.indices.tolist()
            told = torch.tensor([abs(value) for _, value in tokens[neuron]], dtype=torch.float64)
            torch.testing.assert_close(told, best.values.abs().detach(), atol=1e-4, rtol=1e-4)
