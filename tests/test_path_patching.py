"""Path patching against its definition on TransformerBridge's hooks, TransformerLens'
own version, and circuits that are known.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from reference import Reference, carried, logit_diff
from test_families import CASES, config_of
from tiny import ARCHITECTURES, REAL, Prompts, Tiny, each_and_each, random_model, random_prompts, tiny_config
from torch import Tensor

import circuitdiscovery as cd
from circuitdiscovery.benchmark.problems.suite import planted
from circuitdiscovery.engine.fast import PatchedRun
from circuitdiscovery.model.run import plain_run
from circuitdiscovery.search.path_patching import PathEffects, path_patching
from circuitdiscovery.search.trace_back import trace_back

# ------------------------------------------------------------------ the definition
# (Wang et al. 2022, appendix B), on hooks


def group_of(reference: Reference, head: int) -> str:
    """The name that a head's key and value go by."""
    graph = reference.graph
    return f"kv{head * graph.n_kv_heads // graph.n_heads}" if graph.grouped else f"h{head}"


def slow(
    reference: Reference, clean: Tensor, replacement: Tensor, senders: list[str], receivers: list[str]
) -> Tensor:
    """[M, N, V], for each of M senders: two passes on the clean prompts, the second with
    what the first recorded at the receivers.

    In the first every head reads what it reads on the clean prompts, and the sender's
    replacement is added at whoever reads it.
    """
    graph, (_, written) = reference.graph, reference.run(clean)
    rows = [graph.source_index[sender] for sender in senders]
    changes = [reference.added(written, [row], (replacement - written)[[row]]) for row in rows]
    change = torch.cat(changes)  # [M * N, T, D]
    tokens = clean.repeat(len(senders), 1)
    usual: dict[tuple[int, str], Tensor] = {}
    at: dict[str, Tensor] = {}

    def hooks(of: Callable[[int, str, Tensor], Tensor]) -> Any:
        """`of(layer, letter, what is read)` at every place; letter "m" for MLPs and "" for the logits."""
        found = []
        for layer in range(graph.n_layers):
            names = {letter: f"blocks.{layer}.attn.hook_{letter}_input" for letter in "qkv"} | {
                "m": f"blocks.{layer}.hook_mlp_in"
            }
            for letter, name in names.items():
                found.append((name, lambda x, hook, i=layer, c=letter: of(i, c, x)))
        return [
            *found,
            (f"blocks.{graph.n_layers - 1}.hook_resid_post", lambda x, hook: of(graph.n_layers, "", x)),
        ]

    def names(layer: int, letter: str) -> list[str]:
        if letter in ("m", ""):
            return [f"m{layer}" if letter else "logits"]
        return [graph.receivers[column] for column in graph.columns(layer, letter)]

    def note(layer: int, letter: str, x: Tensor) -> Tensor:
        usual[layer, letter] = x.clone()
        return x

    def changed(name: str, x: Tensor) -> Tensor:
        reads = torch.from_numpy(graph.allowed[rows, graph.receiver_index[name]]).repeat_interleave(
            len(clean)
        )
        return torch.where(reads[:, None, None], x + change, x)

    def first(layer: int, letter: str, x: Tensor) -> Tensor:
        if letter in ("m", ""):
            (name,) = names(layer, letter)
            at[name] = changed(name, x)
            return at[name]
        for i, name in enumerate(names(layer, letter)):
            at[name] = changed(name, x[:, :, i])
        return usual[layer, letter]

    def second(layer: int, letter: str, x: Tensor) -> Tensor:
        if letter in ("m", ""):
            name = names(layer, letter)[0]
            return at[name] if name in receivers else x
        return torch.stack(
            [at[name] if name in receivers else x[:, :, i] for i, name in enumerate(names(layer, letter))],
            dim=2,
        )

    for what in (note, first):
        reference._forward(tokens, hooks(what))
    return reference._forward(tokens, hooks(second))[:, -1].unflatten(0, (len(senders), -1))


def damages(
    reference: Reference, prompts: Prompts, receivers: list[str], senders: Any, ablation: str = "resample"
) -> dict[str, float]:
    metric, replacement = (
        logit_diff(prompts.correct, prompts.incorrect),
        carried(reference, ablation, prompts.corrupted),
    )
    full = metric(reference.run(prompts.clean)[0][:, -1]).mean()
    patched = slow(reference, prompts.clean, replacement, list(senders), receivers)
    return {
        sender: float(full - metric(logits).mean()) for sender, logits in zip(senders, patched, strict=True)
    }


def agree(step: PathEffects, expected: dict[str, float]) -> None:
    assert max(map(abs, expected.values())) > 0.02  # or nothing would be compared
    assert {sender: float(effect) for sender, effect in step.effects.items()} == pytest.approx(
        expected, rel=0, abs=1e-4
    )


@pytest.mark.parametrize("kind", ["logits", "q", "k", "v", "m", "several"])
def test_the_definition_of_wang_et_al(tiny: Tiny, kind: str) -> None:
    """Every sender; among several receivers some are downstream of others."""
    reference, prompts = tiny.reference, tiny.prompts
    own = {
        "q": "a2.h1<q>",
        "k": f"a2.{group_of(reference, 1)}<k>",
        "v": f"a1.{group_of(reference, 3)}<v>",
        "m": "m1",
    }
    receivers = [*own.values(), "m2", "logits"] if kind == "several" else [own.get(kind, "logits")]
    step = path_patching(tiny.model, prompts.task, receivers=receivers)
    graph = reference.graph
    upstream = [
        name
        for name in graph.sources
        if any(graph.allowed[graph.source_index[name], graph.receiver_index[r]] for r in receivers)
    ]
    assert list(step.effects) == upstream
    assert set(step.receivers) == set(receivers)
    agree(step, damages(reference, prompts, receivers, upstream))


PARTS: dict[str, dict[str, Any]] = {
    "gpt2": {"m0": "neurons", "m1": [3, 17], "a1.h0": {"last": [-1]}},
    "gemma3": {"m0": [0, 5], "m1": {"first": [0, 1], "last": [-1]}, "input": {"first": [0]}},
    "mixtral": {"m0": "experts", "m1": {"last": [-1]}, "m2": "experts"},
    "merged": {"m1": "neurons", "m2": [1, 40]},
}


@pytest.mark.parametrize("receivers", [["logits"], ["m2", "a2.h1", "logits"]], ids=["logits", "several"])
@pytest.mark.parametrize("name", PARTS)
def test_a_node_in_parts_writes_and_reads_as_the_node(name: str, receivers: list[str]) -> None:
    """Of a sender that is whole, where MLPs after it and receivers are split."""
    known = {"mixtral": lambda: config_of(*CASES["mixtral"]), "merged": lambda: tiny_config("gpt2")}
    model = cd.load_model((random_model(known.get(name, lambda: tiny_config(name))()), None), dtype="float64")
    graph, prompts = cd.split(model, PARTS[name]), random_prompts(101, 4, 6)
    options: dict[str, Any] = {"receivers": receivers, "split_qkv": name != "merged"}
    whole = path_patching(model, prompts.task, **options)
    split = path_patching(model, prompts.task, graph=graph, **options).effects
    same = {sender: float(effect) for sender, effect in whole.effects.items() if sender in split}
    assert len(same) >= 12 and len(split) > len(same)
    assert {sender: float(split[sender]) for sender in same} == pytest.approx(same, rel=0, abs=1e-6)


@pytest.mark.parametrize("receiver", ["logits", "m2", "a2.h1<q>"])
@pytest.mark.parametrize("name", ["gpt2", "gemma3"])
def test_one_neuron_on_hooks(tinies: Callable[[str], Tiny], name: str, receiver: str) -> None:
    """As if the whole MLP wrote what it does with that neuron alone as on the corrupted prompt; Gemma's norm
    of the sum follows."""
    tiny, neurons = tinies(name), (3, 17)
    layer = tiny.hf.transformer.h[0] if name == "gpt2" else tiny.hf.model.layers[0]
    out = layer.mlp.c_proj if name == "gpt2" else layer.mlp.down_proj
    hidden: list[Tensor] = []
    handle = out.register_forward_pre_hook(lambda _, given: hidden.append(given[0]))
    reference, prompts, metric = (
        tiny.reference, tiny.prompts, logit_diff(tiny.prompts.correct, tiny.prompts.incorrect)
    )  # fmt: skip
    expected: dict[str, float] = {}
    with torch.no_grad():
        for tokens in (prompts.clean, prompts.corrupted):
            tiny.hf(tokens)
        handle.remove()
        logits, written = reference.run(prompts.clean)
        for neuron in neurons:
            mixed = hidden[0].clone()
            mixed[..., neuron] = hidden[1][..., neuron]
            changed = out(mixed) if name == "gpt2" else layer.post_feedforward_layernorm(out(mixed))
            replacement = written.clone()
            replacement[reference.graph.source_index["m0"]] = changed
            (patched,) = slow(reference, prompts.clean, replacement, ["m0"], [receiver])
            expected[f"m0/n{neuron}"] = float((metric(logits[:, -1]) - metric(patched)).mean())
    graph = cd.split(tiny.model, {"m0": list(neurons), "m1": [3, 17]})
    step = path_patching(
        tiny.model,
        prompts.task,
        graph=graph,
        receivers=receiver,
        senders=list(expected),
    )
    assert min(map(abs, expected.values())) > 1e-4
    assert {sender: float(effect) for sender, effect in step.effects.items()} == pytest.approx(
        expected, rel=1e-3, abs=2e-6
    )


@pytest.mark.parametrize("ablation", ["mean", "zero"])
def test_other_ablations(llama: Tiny, ablation: str) -> None:
    receivers = ["a2.h0<q>", "m1"]
    step = path_patching(llama.model, llama.prompts.task, receivers=receivers, ablation=ablation)
    agree(step, damages(llama.reference, llama.prompts, receivers, step.effects, ablation))


@pytest.mark.parametrize("receivers", [["logits"], ["a2.h3<q>", "a1.h0<q>", "m1"]])
def test_frozen_mlps_are_the_edges_patched_together(tiny: Tiny, receivers: list[str]) -> None:
    reference, prompts = tiny.reference, tiny.prompts
    metric, replacement = (
        logit_diff(prompts.correct, prompts.incorrect),
        carried(reference, "resample", prompts.corrupted),
    )
    full = float(metric(reference.run(prompts.clean)[0][:, -1]).mean())
    step = path_patching(tiny.model, prompts.task, receivers=receivers, through_mlps=False)
    edges = set(reference.graph.edges)
    masks = [
        reference.graph.mask({f"{sender}->{receiver}" for receiver in receivers} & edges)
        for sender in step.effects
    ]
    patched = reference.patched(prompts.clean, replacement, np.stack(masks))[:, :, -1]
    agree(
        step,
        {
            sender: full - float(metric(logits).mean())
            for sender, logits in zip(step.effects, patched, strict=True)
        },
    )


def test_frozen_mlps_need_no_clean_run(gpt2: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[object] = []

    def run(*given: Any, **more: Any) -> Any:
        ran.append(given)
        return plain_run(*given, **more)

    monkeypatch.setattr("circuitdiscovery.search.path_patching.plain_run", run)
    for through_mlps, runs in ((False, 0), (True, 1)):
        path_patching(gpt2.model, gpt2.prompts.task, senders=["a0.h0"], through_mlps=through_mlps)
        assert len(ran) == runs


def test_frozen_mlps_and_one_receiver_are_exact_patching(tiny: Tiny) -> None:
    task = tiny.prompts.task
    scores = cd.exact(tiny.model, task, metric="logit_diff")
    for receiver in tiny.model.graph.receivers[-9:]:
        step = path_patching(tiny.model, task, receivers=receiver, through_mlps=False)
        assert dict(step.effects) == pytest.approx(
            {sender: scores[f"{sender}->{receiver}"] for sender in step.effects}, abs=1e-5
        )


@pytest.mark.parametrize("letter", ["q", "k", "v"])
def test_transformer_lens_direct_paths(gpt2: Tiny, letter: Any) -> None:
    """It patches clean into corrupted: our clean prompts are its corrupted ones."""
    from transformer_lens.tools.analysis import get_act_patch_direct_path

    bridge, prompts = gpt2.reference.bridge, gpt2.prompts
    metric = logit_diff(prompts.correct, prompts.incorrect)
    ours, theirs = (bridge.run_with_cache(tokens)[1] for tokens in (prompts.clean, prompts.corrupted))
    patched = get_act_patch_direct_path(
        bridge,
        prompts.clean,
        theirs,
        ours,
        lambda logits: metric(logits[:, -1]).mean(),
        0,
        2,
        letter,
        verbose=False,
    )
    for layer in (1, 2):
        for head in range(4):
            receiver = f"a{layer}.h{head}<{letter}>"
            step = path_patching(
                gpt2.model, prompts.task, receivers=[receiver], senders=["a0.h2"], through_mlps=False
            )
            assert float(step.full) - step["a0.h2"] == pytest.approx(float(patched[layer, head]), abs=1e-4)


# ------------------------------------------------------------------ what must be so


@pytest.mark.parametrize("name", ["ioi", "induction", "xproportion", "and"])
def test_without_a_norm_the_direct_effects_on_the_logits_add_up(name: str) -> None:
    problem = planted(examples=16)[name]()
    step = path_patching(problem.model, problem.task, through_mlps=False)
    full, empty = (
        cd.run_circuit(problem.model, problem.task, make(problem.model.graph))
        for make in (cd.Circuit.full, cd.Circuit.empty)
    )
    correct, incorrect = (
        torch.tensor([getattr(e, side)[0] for e in problem.task.examples])
        for side in ("correct", "incorrect")
    )
    expected = (logit_diff(correct, incorrect)(full) - logit_diff(correct, incorrect)(empty)).mean()
    assert abs(float(expected)) > 1
    assert sum(step.effects.values()) == pytest.approx(float(expected), abs=1e-3)


def test_an_mlp_between_passes_on_what_it_makes_of_the_change() -> None:
    """In the planted IOI the names reach everyone through m0: directly where it is
    computed anew, not at all where it is frozen.
    """
    problem = planted(examples=16)["ioi"]()
    through, frozen = (
        path_patching(problem.model, problem.task, receivers="a4.h1<v>", through_mlps=way)
        for way in (True, False)
    )
    assert abs(frozen["input"]) < 1e-4 < 1 < through["input"]
    assert through["m0"] == pytest.approx(float(through["input"]), abs=1e-4)


@pytest.mark.parametrize("name", ["ioi", "induction"])
def test_the_walk_finds_the_planted_chain(name: str) -> None:
    """From the logits, step by step until nothing is left but the embedding: exactly the true edges."""
    problem = planted(examples=16)[name]()
    found: set[str] = set()
    receivers: tuple[str, ...] = ("logits",)
    while receivers:
        reached: list[str] = []
        for receiver in receivers:
            step = path_patching(problem.model, problem.task, receivers=[receiver], through_mlps=False)
            found |= {f"{sender}->{receiver}" for sender in step.strongest(threshold=0.1)}
            reached += step.back(threshold=0.1)
        receivers = tuple(dict.fromkeys(reached))
    assert found == set(problem.truth.edges)


def test_a_receiver_does_not_read_what_another_one_changed(gpt2: Tiny) -> None:
    """Where MLPs are computed anew, the logits read the frozen stream, whatever else
    reads too; with frozen MLPs they do not.
    """
    task = gpt2.prompts.task
    alone, both = (
        path_patching(gpt2.model, task, receivers=receivers)
        for receivers in (["logits"], ["a1.h0", "m2", "logits"])
    )
    assert dict(both.effects) == pytest.approx(dict(alone.effects), abs=1e-5)
    frozen = [
        path_patching(gpt2.model, task, receivers=r, through_mlps=False)
        for r in (["logits"], ["a1.h0", "m2", "logits"])
    ]
    assert abs(frozen[0]["input"] - frozen[1]["input"]) > 1e-2


def test_intervals_are_those_of_the_mean_over_the_examples(gpt2: Tiny) -> None:
    prompts = random_prompts(101, 60, 5, seed=2)
    step = path_patching(gpt2.model, prompts.task, receivers=["m1"], through_mlps=False)
    metric = logit_diff(prompts.correct, prompts.incorrect)
    full = metric(cd.run_circuit(gpt2.model, prompts.task, cd.Circuit.full(gpt2.model.graph)))
    assert (float(step.full), step.examples) == (pytest.approx(float(full.mean()), abs=1e-5), 60)
    for sender in ("input", "m0"):
        without = cd.Circuit.full(gpt2.model.graph) - cd.Circuit.from_edges(
            gpt2.model.graph, [f"{sender}->m1"]
        )
        each = full - metric(cd.run_circuit(gpt2.model, prompts.task, without))
        effect, error = step[sender], 1.96 * float(each.std()) / math.sqrt(len(each))
        assert float(effect) == pytest.approx(float(each.mean()), abs=1e-5)
        assert (effect - effect.low, effect.high - effect) == (
            pytest.approx(error, rel=0.25),
            pytest.approx(error, rel=0.25),
        )


def test_lower_is_better_turns_the_sign_round(gpt2: Tiny) -> None:
    """KL is 0 for the model itself, and damage is what it rises to."""
    step = path_patching(gpt2.model, gpt2.prompts.task, metric="kl_divergence", receivers=["m0", "logits"])
    assert float(step.full) == pytest.approx(0, abs=1e-6)
    assert min(step.effects.values()) > -1e-6 and max(step.effects.values()) > 0.01


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 2},
        {"batch_size": 2, "receivers": ["a1.h1"]},
        {"split_qkv": False, "receivers": ["a1.h1"]},
    ],
)
def test_batches_and_merged_receivers_change_nothing(gpt2: Tiny, options: dict[str, Any]) -> None:
    receivers = options.get("receivers", ["logits"])
    plain = path_patching(gpt2.model, gpt2.prompts.task, receivers=receivers)
    other = path_patching(gpt2.model, gpt2.prompts.task, **options)
    assert dict(other.effects) == pytest.approx(dict(plain.effects), abs=1e-5)
    again = path_patching(gpt2.model, gpt2.prompts.task, **options)
    assert json.dumps(again.to_dict()) == json.dumps(other.to_dict())


def test_prompts_of_several_lengths_and_answers_inside(gpt2: Tiny) -> None:
    """Each example counts once, and is read at its own position."""
    parts = [random_prompts(101, 3, length, seed=length) for length in (4, 6)]
    rows = [
        (c, k, a, b)
        for p in parts
        for c, k, a, b in zip(
            *(x.tolist() for x in (p.clean, p.corrupted, p.correct, p.incorrect)), strict=True
        )
    ]
    clean, corrupted, correct, incorrect = map(list, zip(*rows, strict=True))
    longer = [[*row, 7, 8] for row in clean], [[*row, 7, 8] for row in corrupted]
    answers: dict[str, Any] = {"correct": correct, "incorrect": incorrect}
    inside = cd.Task.from_tokens(clean=longer[0], corrupted=longer[1], position=[3] * 3 + [5] * 3, **answers)
    at_end = cd.Task.from_tokens(clean=clean, corrupted=corrupted, **answers)
    for receivers in (["logits"], ["a2.h1", "m2"]):
        a, b = (path_patching(gpt2.model, task, receivers=receivers) for task in (inside, at_end))
        assert dict(a.effects) == pytest.approx(dict(b.effects), abs=1e-4)
    means = [path_patching(gpt2.model, p.task, receivers=["a2.h1"])["m0"] for p in parts]
    assert path_patching(gpt2.model, at_end, receivers=["a2.h1"])["m0"] == pytest.approx(
        sum(means) / 2, abs=1e-5
    )


# ------------------------------------------------------------------ names, and what comes back


@pytest.fixture(scope="module")
def step(gpt2: Tiny) -> PathEffects:
    return path_patching(gpt2.model, gpt2.prompts.task)


def test_a_node_stands_for_all_it_reads_by(gpt2: Tiny, llama: Tiny) -> None:
    def receivers(tiny: Tiny, *names: str) -> tuple[str, ...]:
        return path_patching(tiny.model, tiny.prompts.task, receivers=names, senders=["input"]).receivers

    assert receivers(gpt2, "m1", "a1.h2") == ("a1.h2<q>", "a1.h2<k>", "a1.h2<v>", "m1")
    assert receivers(llama, "a1.h2") == ("a1.h2<q>", "a1.kv1<k>", "a1.kv1<v>")  # its group's
    assert receivers(llama, "a1.kv0", "a1.h0<q>") == ("a1.h0<q>", "a1.kv0<k>", "a1.kv0<v>")
    options: dict[str, Any] = {
        "graph": cd.split(llama.model, {"a1.h2": {"first": [0]}}),
        "senders": ["input"],
    }
    for name in ("a1.h2", "a1.h2/@first"):  # its positions read as it does
        found = path_patching(llama.model, llama.prompts.task, receivers=name, **options).receivers
        assert found == ("a1.h2<q>", "a1.kv1<k>", "a1.kv1<v>")
    with pytest.raises(cd.CircuitDiscoveryError, match=r"'a1\.h2<k>'; a1\.h2, a1\.h3 share a1\.kv1<k>"):
        path_patching(llama.model, llama.prompts.task, receivers="a1.h2<k>", **options)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"receivers": ["a9.h0<q>"]}, "no receiver 'a9.h0<q>'; did you mean"),
        ({"receivers": ["input"]}, "no receiver 'input'"),
        ({"receivers": ["a1.h3<k>"]}, "no receiver 'a1.h3<k>'; a1.h2, a1.h3 share a1.kv1<k>"),
        ({"receivers": []}, "receivers: at least one is needed"),
        ({"senders": ["m9"]}, "no sender 'm9'; did you mean 'm"),
        ({"senders": []}, "senders: at least one is needed"),
        (
            {"receivers": ["a1.h0<q>"], "senders": ["m1"]},
            "sender 'm1' is upstream of no receiver; the last one that is: m0",
        ),
        ({"metric": "nothing"}, "no metric 'nothing'"),
        ({"ablation": "nothing"}, "no ablation 'nothing'"),
    ],
)
def test_what_is_not_there_is_one_line(llama: Tiny, options: dict[str, Any], told: str) -> None:
    with pytest.raises(cd.CircuitDiscoveryError) as error:
        path_patching(llama.model, llama.prompts.task, **options)
    assert str(error.value).startswith(told) and "\n" not in str(error.value)


def test_strongest_and_back(step: PathEffects, llama: Tiny) -> None:
    by_size = sorted(step.effects.items(), key=lambda item: -abs(item[1]))
    assert step.strongest(3) == tuple(name for name, _ in by_size[:3])
    bar = abs(by_size[4][1])
    assert step.strongest(threshold=bar) == step.strongest(5)
    heads = [name for name in step.strongest(8) if ".h" in name]
    mlps = [name for name in step.strongest(8) if name[0] == "m"]
    assert heads and mlps
    assert set(step.back("q", 8)) == {*(f"{head}<q>" for head in heads), *mlps}
    assert set(step.back(n=8)) == {*(f"{head}<{letter}>" for head in heads for letter in "qkv"), *mlps}
    assert list(step.back(n=8)) == sorted(step.back(n=8), key=step.graph.receiver_index.__getitem__)
    grouped = path_patching(llama.model, llama.prompts.task, senders=["input", "a1.h2", "a1.h3"])
    assert grouped.back("k", 3) == ("a1.kv1<k>",)
    wrongs: tuple[dict[str, Any], ...] = (
        {},
        {"n": 3, "threshold": 0.1},
        {"n": 99},
        {"n": True},
        {"threshold": math.nan},
    )
    for wrong in wrongs:
        with pytest.raises(cd.CircuitDiscoveryError):
            step.strongest(**wrong)
    with pytest.raises(cd.CircuitDiscoveryError, match="no letter 'x'"):
        step.back("x", 3)
    with pytest.raises(cd.CircuitDiscoveryError, match="no sender 'm9'"):
        step["m9"]


def test_it_prints_and_exports(step: PathEffects, gpt2: Tiny) -> None:
    lines = str(step).splitlines()
    assert "logit_diff" in lines[0] and "5 examples" in lines[0] and lines[1].endswith("logits")
    assert [line.split()[0] for line in lines[2:]] == list(step.ranking())
    table = step.to_dataframe()
    assert list(table["sender"]) == list(step.effects) and list(table.columns) == [
        "sender",
        "effect",
        "low",
        "high",
    ]
    assert all(table["low"] <= table["effect"]) and all(table["effect"] <= table["high"])
    plain = json.loads(json.dumps(step.to_dict()))
    assert plain["effects"]["m0"]["value"] == step["m0"] and plain["receivers"] == ["logits"]
    assert plain["graph"] == step.graph.to_dict()  # whose names these are: `load` needs it


def test_progress(gpt2: Tiny) -> None:
    seen: list[tuple[int, int]] = []
    path_patching(
        gpt2.model, gpt2.prompts.task, senders=["m0", "m1"], batch_size=3, progress=lambda *x: seen.append(x)
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


# ------------------------------------------------------------------ trace_back


def connected(graph: Any, edges: set[str]) -> set[str]:
    """The edges with a path of edges to the logits, by networkx; a group's node feeds each of its heads."""
    view = nx.DiGraph()
    for edge in edges:
        source, _, receiver = edge.partition("->")
        view.add_edge(source, receiver)
        view.add_edges_from((receiver, head) for head in graph.reader_nodes(receiver))
    back = nx.ancestors(view, "logits") | {"logits"} if "logits" in view else set()
    return {edge for edge in edges if edge.partition("->")[2] in back}


@pytest.mark.parametrize(
    ("name", "options"),
    each_and_each(ARCHITECTURES + REAL, [{}, {"metric": "logit_diff"}, {"ablation": "zero"}]),
)
def test_trace_back_is_exact_patching_from_the_logits(
    tinies: Callable[[str], Tiny], name: str, options: dict[str, Any]
) -> None:
    model, task = tinies(name).model, tinies(name).prompts.task
    scores = cd.exact(model, task, **options)
    for quantile in (0.5, 0.9, 0.97):
        bar = float(np.quantile(scores.values[model.graph.allowed], quantile))
        circuit = trace_back(model, task, threshold=bar, **options)
        above = {edge for edge in model.graph.edges if scores[edge] >= bar}
        assert set(circuit.edges) == connected(model.graph, above)
        assert {edge: circuit.score(edge) for edge in circuit.edges} == {
            edge: scores[edge] for edge in circuit.edges
        }


def test_what_is_not_connected_is_left_out(gpt2: Tiny) -> None:
    scores = cd.exact(gpt2.model, gpt2.prompts.task)
    bar = float(np.quantile(scores.values[gpt2.model.graph.allowed], 0.97))
    circuit, above = (
        trace_back(gpt2.model, gpt2.prompts.task, threshold=bar),
        scores.above(bar, absolute=False),
    )
    assert 0 < len(circuit) < len(above) and circuit - above == cd.Circuit.empty(circuit.graph)


def test_only_reached_receivers_are_evaluated(gpt2: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    task, seen = gpt2.prompts.task, set()
    branch = PatchedRun.branch
    monkeypatch.setattr(
        PatchedRun,
        "branch",
        lambda self, mask, state, receiver, kept: (
            seen.add(receiver) or branch(self, mask, state, receiver, kept)
        ),
    )
    assert len(trace_back(gpt2.model, task, threshold=1e9)) == 0
    assert {gpt2.model.graph.receivers[column] for column in seen} == {"logits"}
    seen.clear()
    circuit = trace_back(gpt2.model, task, threshold=0.2)
    nodes = {edge.partition("->")[0] for edge in circuit.edges}
    reached = {r for r in gpt2.model.graph.receivers if r == "logits" or r.partition("<")[0] in nodes}
    assert {gpt2.model.graph.receivers[column] for column in seen} == reached
    assert len(reached) < len(gpt2.model.graph.receivers)


@pytest.mark.parametrize("name", ["induction", "reverse", "xproportion", "ioi", "and"])
def test_trace_back_finds_planted_circuits(name: str) -> None:
    problem = planted(examples=16)[name]()
    circuit = trace_back(problem.model, problem.task, threshold=0.01)
    assert circuit == problem.truth


def test_trace_back_cannot_see_an_or() -> None:
    """Either input of an OR can go alone: the walk ends at the gate, as the method must."""
    problem = planted(examples=16)["or"]()
    assert trace_back(problem.model, problem.task, threshold=0.01).edges == ("m1->logits",)


def test_trace_back_says_what_it_did(gpt2: Tiny, llama: Tiny) -> None:
    task, seen = gpt2.prompts.task, []
    circuit = trace_back(gpt2.model, task, threshold=0.1, split_qkv=False, progress=lambda *x: seen.append(x))
    assert circuit.info["method"] == "trace_back"
    assert circuit.info["options"] == {
        "threshold": 0.1,
        "metric": "kl_divergence",
        "ablation": "resample",
        "split_qkv": False,
    }
    assert seen == [(done, 16) for done in range(17)]
    again = trace_back(gpt2.model, task, threshold=0.1, split_qkv=False)
    assert json.dumps(again.to_dict()) == json.dumps(circuit.to_dict())
    with pytest.raises(cd.CircuitDiscoveryError, match="threshold must be a finite number"):
        trace_back(llama.model, llama.prompts.task, threshold=math.inf)
