"""Circuits of several models beside each other: against copies whose nodes were moved, enumerated alignments and
simulations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import random_prompts
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

import circuitdiscovery as cd
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.files.disk import data_folder
from circuitdiscovery.task.load import tasks_alike
from circuitdiscovery.task.tokenization import Encoder
from circuitdiscovery.universality.matching import Pair, align, similarities
from circuitdiscovery.universality.overlap import chance, clustered_share, jaccard, links
from circuitdiscovery.universality.tasks import task_for
from circuitdiscovery.universality.views import Views, products

SEED = 5


@pytest.fixture(scope="module")
def toy() -> cd.Model:
    return cd.load_model("toy")


@pytest.fixture(scope="module")
def task(toy: cd.Model) -> cd.Task:
    return cd.load_task("ioi", toy, examples=24)


def moved_heads(model: cd.Model, orders: Sequence[Sequence[int]]) -> cd.Model:
    """A copy of toy whose layers' heads stand in other orders: head i of a layer is the old head order[i]."""
    network = toy_network()
    d_head = model.blocks[0].d_head
    for block, order in zip(network.transformer.h, orders, strict=True):
        columns = torch.cat([torch.arange(head * d_head, (head + 1) * d_head) for head in order])
        width = model.d_model
        reads = torch.cat([part * width + columns for part in range(3)])
        block.attn.c_attn.weight.data = block.attn.c_attn.weight.data[:, reads]
        block.attn.c_attn.bias.data = block.attn.c_attn.bias.data[reads]
        block.attn.c_proj.weight.data = block.attn.c_proj.weight.data[columns]
    return cd.load_model((network, model.tokenizer))


def toy_network() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(data_folder("models") / "toy")


def renamed(circuit: cd.Circuit, graph: cd.Graph, orders: Sequence[Sequence[int]]) -> cd.Circuit:
    """The same circuit in the copy."""
    new = {
        f"a{layer}.h{old}": f"a{layer}.h{i}"
        for layer, order in enumerate(orders)
        for i, old in enumerate(order)
    }

    def name(end: str) -> str:
        head, _, letter = end.partition("<")
        return new.get(head, head) + (f"<{letter}" if letter else "")

    return cd.Circuit.from_edges(graph, ["->".join(map(name, edge.split("->"))) for edge in circuit.edges])


def test_a_copy_with_moved_heads_is_aligned_exactly(toy: cd.Model, task: cd.Task) -> None:
    """Every node finds itself by each of the views alone but the roles, and all edges are shared."""
    orders = [[2, 0, 3, 1], [1, 3, 2, 0], [3, 2, 1, 0], [0, 2, 1, 3]]
    other = moved_heads(toy, orders)
    circuit = cd.eap(toy, task).top(70)
    there = renamed(circuit, other.graph, orders)
    for by in (["attention"], ["activation"], ["role", "attention", "activation"]):
        found = cd.universality.circuits({"a": (toy, circuit), "b": (other, there)}, task, by=by)
        for pair in found.alignment["a", "b"]:
            if pair.a.startswith("m"):
                assert pair.b == pair.a
            else:
                layer, head = int(pair.a[1]), int(pair.a[-1])
                assert pair.b == f"a{layer}.h{orders[layer].index(head)}"
        assert float(found.jaccard["a", "b"]) == 1
        assert found.jaccard["a", "b"].low < 1 == found.jaccard["a", "b"].high
        assert found.null["a", "b"].p < 0.01
    for nodes in found.roles.values():
        assert len(nodes["a"]) == len(nodes["b"])
    assert found.in_all == tuple(found.roles) and found.in_some == ()
    assert found.prompts == 24


def test_depth_alone_is_not_taken_for_a_view(toy: cd.Model) -> None:
    """Of four prompts activations are not known: of two circuits that are the same, too."""
    task = cd.load_task("ioi", toy, examples=4)
    circuit = cd.eap(toy, task).top(40)
    of = {"a": (toy, circuit), "b": (toy, circuit)}
    told = "a and b cannot be aligned by activation: activation needs 8 prompts .*; they share 4 prompts"
    with pytest.raises(CircuitDiscoveryError, match=told):
        cd.universality.circuits(of, task, by=["activation"])
    found = cd.universality.circuits(of, task, by=["attention", "activation"])
    assert (found.by, found.missing) == (("attention",), ("activation",))
    assert "aligned by attention (not by activation); 4 prompts" in str(found)
    assert type(found).from_dict(found.to_dict()).missing == ("activation",)


def test_what_was_saved_is_loaded(toy: cd.Model, task: cd.Task, tmp_path: Path) -> None:
    """Its circuits too, with their scores and provenance; one that is broken is refused by name."""
    circuit = cd.eap(toy, task).top(9)
    bare = cd.Circuit.from_edges(toy.graph, [])
    found = cd.universality.circuits({"a": (toy, circuit), "b": (toy, bare)}, task, by=["role"])
    found.save(tmp_path / "a.json")
    again = type(found).load(tmp_path / "a.json")
    assert str(again) == str(found) and again.circuits == found.circuits
    assert again.circuits["a"].to_dict() == circuit.to_dict()
    again.save(tmp_path / "b.json")
    assert (tmp_path / "b.json").read_bytes() == (tmp_path / "a.json").read_bytes()
    data = json.loads((tmp_path / "a.json").read_text("utf-8"))
    for name, value, message in (
        ("n_edges", 8, r"a\.json: circuits\.b: field 'n_edges' says 8, but there are 0"),
        ("edges", {"m0->m9": None}, r"a\.json: circuits\.b: .*no edge"),
        ("examples", "x", r"a\.json: circuits\.b: field 'examples' must be a whole number"),
    ):
        broken = data["circuits"]["b"] | {"n_edges": 1 if name == "edges" else 0, name: value}
        with pytest.raises(CircuitDiscoveryError, match=message):
            type(found).from_dict(data | {"circuits": {"b": broken}}, "a.json")


def test_edges_that_are_shared_are_counted(toy: cd.Model) -> None:
    """By hand: 2 of 5 edges, where one node of each circuit has no partner."""
    a = cd.Circuit.from_edges(toy.graph, ["input->a0.h0<v>", "a0.h0->m1", "a0.h0->logits", "a0.h1->logits"])
    b = cd.Circuit.from_edges(toy.graph, ["input->a1.h2<v>", "a1.h2->m2", "m3->logits"])
    pairs = (Pair("a0.h0", "a1.h2", 1.0, {}), Pair("m1", "m2", 1.0, {}))
    assert float(jaccard(links(a), links(b), pairs)) == pytest.approx(2 / 5)
    assert float(jaccard(links(b), links(a), [replace(p, a=p.b, b=p.a) for p in pairs])) == pytest.approx(
        2 / 5
    )


def test_two_circuits_without_edges_share_none_of_none(toy: cd.Model, task: cd.Task) -> None:
    """0/0, by any alignment: neither the index nor its p-value is defined."""
    none = cd.Circuit.from_edges(toy.graph, [])
    found = chance(frozenset(), frozenset(), ([], []), float("nan"), by_depth=False, seed=0)
    assert all(np.isnan(each) for each in (found.mean, found.low, found.high, found.p))
    assert "p nan" in str(cd.universality.circuits({"a": (toy, none), "b": (toy, none)}, task))


def test_random_alignments_are_those_of_every_permutation(toy: cd.Model) -> None:
    """The mean over draws is the mean over all alignments, enumerated."""
    a = cd.Circuit.from_edges(toy.graph, ["a0.h0->a1.h0<q>", "a0.h0->m1", "a1.h0->m1", "m1->logits"])
    b = cd.Circuit.from_edges(toy.graph, ["a0.h1->a1.h2<q>", "a1.h2->m2", "a2.h0->m2", "m2->logits"])
    nodes = ["a0.h0", "a1.h0", "m1"], ["a0.h1", "a1.h2", "a2.h0", "m2"]
    expected = []
    for heads in permutations(nodes[1][:3], 2):
        pairs = [Pair(x, y, 0, {}) for x, y in zip(nodes[0], (*heads, "m2"), strict=True)]
        expected.append(float(jaccard(links(a), links(b), pairs)))
    found = chance(links(a), links(b), nodes, max(expected), by_depth=False, seed=0)
    assert found.mean == pytest.approx(np.mean(expected), abs=0.02)
    assert found.p == pytest.approx(np.mean(np.isclose(expected, max(expected))), abs=0.04)
    # by depth, the first two layers' heads cannot change places
    ordered = [
        float(
            jaccard(
                links(a), links(b), [Pair(x, y, 0, {}) for x, y in zip(nodes[0], (*some, "m2"), strict=True)]
            )
        )
        for some in (("a0.h1", "a1.h2"), ("a0.h1", "a2.h0"), ("a1.h2", "a2.h0"))
    ]
    assert chance(links(a), links(b), nodes, 1.0, by_depth=True, seed=0).mean == pytest.approx(
        np.mean(ordered), abs=0.02
    )


def views_of(depth: Sequence[float], roles: Sequence[str], seed: int) -> Views:
    rng = np.random.default_rng(seed)
    nodes = tuple(f"a{i}.h0" for i in range(len(depth)))
    activation = rng.normal(size=(len(depth), 30)).astype(np.float32)
    return Views(
        nodes,
        np.array(depth),
        {node: frozenset(role.split()) for node, role in zip(nodes, roles, strict=True)},
        {
            node: {"x": float(v), "y": float(w)}
            for node, (v, w) in zip(nodes, rng.random((len(nodes), 2)), strict=True)
        },
        activation / np.linalg.norm(activation, axis=1, keepdims=True),
    )


def test_the_alignment_is_the_best_of_all(toy: cd.Model) -> None:
    """No permutation has a larger sum of similarities; what nobody knows of a pair does not count."""
    a, b = (
        views_of([0, 0.2, 0.4, 0.6], ["p", "q r", "", ""], 1),
        views_of([0, 0.1, 0.5, 0.7], ["q", "", "p", ""], 2),
    )
    by, every = ("role", "attention", "activation"), range(4)
    known = similarities(a, b, every, every, by)
    assert np.isnan(known["role"][2, 1]) and known["role"][1, 0] == 0.5 and known["role"][0, 1] == 0
    total = np.nanmean(np.stack([known[name] for name in by]), axis=0)
    best = max(permutations(every), key=lambda order: total[every, order].sum())
    found = align(a, b, by)
    assert [pair.b for pair in found] == [b.nodes[j] for j in best]
    assert sum(pair.similarity for pair in found) == pytest.approx(total[every, best].sum())


@pytest.mark.parametrize("by", [("role",), ("attention",), ("role", "attention")])
def test_a_pair_of_which_nothing_is_known_is_as_similar_as_its_depths(by: tuple[str, ...]) -> None:
    """Whichever views were asked for; what is known of another pair changes nothing."""
    nodes, depth = ("a0.h0", "m0", "m2"), np.array([0.0, 0.0, 0.5])
    roles = {"a0.h0": frozenset({"p"}), "m0": frozenset(), "m2": frozenset()}
    a = Views(nodes, depth, roles, {"a0.h0": {"x": 1.0, "y": 0.0}}, None)
    pairs = {(pair.a, pair.b): pair.similarity for pair in align(a, replace(a, depth=depth + 0.25), by)}
    assert pairs == {("a0.h0", "a0.h0"): 1.0, ("m0", "m0"): 0.75, ("m2", "m2"): 0.75}


def test_cka_is_unbiased() -> None:
    """The same values turned and scaled have 1; wide values that have nothing in common have 0 on average,
    which the biased estimator misses by far."""
    generator = torch.Generator().manual_seed(SEED)

    def draw(width: int) -> torch.Tensor:
        return torch.randn(1, 10, 2, width, generator=generator, dtype=torch.float64)

    turn, _ = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64))
    one = draw(8)
    assert (products(one) @ products(3 * one @ turn).T).item() == pytest.approx(1, abs=1e-5)
    values = [(products(draw(64)) @ products(draw(64)).T).item() for _ in range(200)]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(len(values))
    rows = [draw(64).flatten(0, 2) for _ in range(2)]
    centred = [each - each.mean(0) for each in rows]
    sizes = [float((each.T @ each).norm()) for each in centred]
    biased = float((centred[0].T @ centred[1]).norm()) ** 2 / np.prod(sizes)
    assert biased > 0.5


def hsic(k: np.ndarray, m: np.ndarray) -> float:
    """Song et al. 2012, equation 5, of products of rows without their diagonals."""
    n = len(k)
    first = np.trace(k @ m) + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k @ m).sum()
    return first / (n * (n - 3))


def test_cka_is_the_ratio_of_unbiased_hsic() -> None:
    """The cosine of U-centred products is Song's HSIC, summed over two positions, over the roots of its two
    own ones."""
    generator = torch.Generator().manual_seed(SEED)
    pair = [torch.randn(1, 6, 2, 5, generator=generator, dtype=torch.float64) for _ in range(2)]
    pair[1] = pair[1] + pair[0]
    sums = np.zeros((2, 2))
    for position in range(2):
        grams = [each[0, :, position].numpy() @ each[0, :, position].numpy().T for each in pair]
        for gram in grams:
            np.fill_diagonal(gram, 0)
        sums += [[hsic(k, m) for m in grams] for k in grams]
    expected = sums[0, 1] / np.sqrt(sums[0, 0] * sums[1, 1])
    assert (products(pair[0]) @ products(pair[1]).T).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("nodes", "sharing", "spread"), [(10, 0.0, 1.0), (25, -1.5, 1.0), (40, 1.0, 2.0), (12, -3.0, 0.0)]
)
def test_the_interval_covers(nodes: int, sharing: float, spread: float) -> None:
    """Circuits whose nodes differ in how many edges they have and share: at least 95% of the intervals hold
    the share of all such circuits together; those that take edges for independent hold far fewer where nodes
    differ."""
    rng = np.random.default_rng(SEED)
    first, second = np.triu_indices(nodes, 1)
    intervals, hits, total = [], 0.0, 0
    for _ in range(400):
        u, v, d = rng.normal(0, spread, (3, nodes))
        there = rng.random(len(first)) < 1 / (1 + np.exp(1 - d[first] - d[second]))
        if there.sum() < 2:
            continue
        i, j = first[there], second[there]
        shared = (rng.random(len(i)) < 1 / (1 + np.exp(-sharing - u[i] - v[j]))).astype(float)
        hits, total = hits + shared.sum(), total + len(shared)
        intervals.append(clustered_share(shared, [(f"m{x}", f"m{y}") for x, y in zip(i, j, strict=True)]))
    covered = np.mean([each.low <= hits / total <= each.high for each in intervals])
    assert covered >= 0.94
    if spread == 2:
        naive = [float(each) for each in intervals]
        wide = 1.96 * np.sqrt(np.array(naive) * (1 - np.array(naive)) / (total / len(intervals)))
        assert np.mean(np.abs(np.array(naive) - hits / total) <= wide) < 0.8


def test_tasks_of_several_tokenizers_have_the_same_prompts(toy: cd.Model) -> None:
    """Words that one tokenizer does not have are drawn for none."""
    from transformers import PreTrainedTokenizerFast

    data = toy.tokenizer.backend_tokenizer.to_str()
    missing = [" Mary", " John", " Anna", " James"]
    for i, word in enumerate(missing):
        data = data.replace(f'"{word}"', f'" zz{i}"')
    from tokenizers import Tokenizer

    other = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(data), unk_token=toy.tokenizer.unk_token
    )

    class Other:
        tokenizer = other

    one, two = tasks_alike("ioi", [toy, Other()], examples=60)
    assert [each.text for each in one] == [each.text for each in two]
    assert not any(word in each.text for each in one for word in missing)
    alone = cd.load_task("ioi", toy, examples=60)
    assert any(word in each.text for each in alone for word in missing)


def test_the_picture_numbers_aligned_nodes(toy: cd.Model, task: cd.Task, tmp_path: Path) -> None:
    scores = cd.eap(toy, task)
    of = {"small": (toy, scores.top(20)), "large": (toy, scores.top(30))}
    found = cd.universality.circuits(of, task, by=["activation"])
    found.draw(tmp_path / "both.dot")
    dot = (tmp_path / "both.dot").read_text()
    for i, pair in enumerate(found.alignment["small", "large"]):
        assert pair.a == pair.b
        assert dot.count(f"<B>{i + 1}</B></FONT>  {pair.a}>") == 2
    # all edges of the smaller circuit are shared: as many lines are blue in both
    drawn = {tuple(end.split("<")[0] for end in edge.split("->")) for edge in of["small"][1].edges}
    assert dot.count("penwidth=2") == 2 * len(drawn)
    found.draw(tmp_path / "both.svg")
    assert (tmp_path / "both.svg").read_text().lstrip().startswith("<?xml")
    with pytest.raises(CircuitDiscoveryError, match=r"\.jpg"):
        found.draw(tmp_path / "both.jpg")


def test_wrong_arguments_are_told_in_one_line(toy: cd.Model, task: cd.Task) -> None:
    circuit = cd.Circuit.full(toy.graph)
    of: Any = {"a": (toy, circuit), "b": (toy, circuit)}
    for given, told in (
        (({"a": (toy, circuit)}, task), "at least two"),
        (({"a": (toy, circuit), "b": toy}, task), "'b': give"),
        (({**of, "c": (toy, "x")}, task), "'c': give"),
    ):
        with pytest.raises(CircuitDiscoveryError, match=told):
            cd.universality.circuits(*given)  # pyright: ignore[reportArgumentType]
    with pytest.raises(CircuitDiscoveryError, match="did you mean 'attention'"):
        cd.universality.circuits(of, task, by=["atention"])
    with pytest.raises(CircuitDiscoveryError, match="there is none for 'b'"):
        cd.universality.circuits(of, {"a": task})
    with pytest.raises(CircuitDiscoveryError, match="effort"):
        cd.universality.circuits(of, task, effort="fast")


def test_tokens_of_another_model_are_refused(toy: cd.Model) -> None:
    other = random_prompts(50)
    given = cd.Task.from_tokens(
        clean=other.clean, corrupted=other.corrupted, correct=other.correct, incorrect=other.incorrect
    )
    circuit = cd.Circuit.full(toy.graph)
    named = replace(
        given, examples=tuple(replace(each, text="Mary and John met.") for each in given.examples)
    )
    with pytest.raises(CircuitDiscoveryError, match="is not in the tokens of toy"):
        cd.universality.circuits({"a": (toy, circuit), "b": (toy, circuit)}, named)


def test_random_tokens_are_of_the_model_that_drew_them() -> None:
    """Their text is written in other tokens: `a` and `b` one after the other are `ab`, which is one token."""
    pairs = [(a, b) for a in "abcdefgh" for b in "ijklmnop"]
    words = [*"abcdefghijklmnop", *(a + b for a, b in pairs)]

    def model(words: list[str]) -> Any:
        inner = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, pairs))
        inner.decoder = decoders.Fuse()  # type: ignore[assignment]
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
        return SimpleNamespace(tokenizer=tokenizer, name="mine", n_positions=None)

    ids = Encoder(model(words).tokenizer).ids
    task = cd.load_task("induction", model(words), examples=64)
    task = task.select([row for row, each in enumerate(task) if ids(each.text) != each.clean])
    assert task_for(model(words), task) is task
    with pytest.raises(CircuitDiscoveryError, match="is not in the tokens of mine"):
        task_for(model([*reversed(words)]), task)


def test_the_command_compares_circuits(toy: cd.Model, task: cd.Task, tmp_path: Path) -> None:
    """Given circuits, and circuits by eap-ig, give what `circuits` gives; wrong combinations are told."""
    from click.testing import CliRunner

    from circuitdiscovery.cli.commands import cli

    scores = cd.eap_ig(toy, task)
    files = [tmp_path / f"{size}.json" for size in (20, 30)]
    for file, size in zip(files, (20, 30), strict=True):
        scores.top(size).save(file)
    words = ["universal", "toy", "toy", "--task", "ioi", "--examples", "24"]
    given = [*words, *(part for file in files for part in ("--circuit", str(file)))]
    ran = CliRunner().invoke(cli, [*given, "--plot", str(tmp_path / "both.svg")])
    assert ran.exit_code == 0, ran.exception
    of = {"toy 1": (toy, scores.top(20)), "toy 2": (toy, scores.top(30))}
    assert str(cd.universality.circuits(of, "ioi", examples=24)) in ran.output
    assert (tmp_path / "both.svg").exists()
    searched = CliRunner().invoke(cli, [*words, "--edges", "20"])
    both = {label: (toy, scores.top(20)) for label in ("toy 1", "toy 2")}
    assert str(cd.universality.circuits(both, "ioi", examples=24)) in searched.output
    for some, told in (
        (["--of", "circuits"], "give --circuit CIRCUIT for each MODEL"),
        (["--circuit", "toy-ioi"], "2 models, 1 circuits"),
        (["--of", "heads", "--edges", "5"], "are for --of circuits, not --of heads"),
        (["--edges", "5", "--circuit", "a.json"], "not both"),
    ):
        with pytest.raises(CircuitDiscoveryError, match=told):
            CliRunner().invoke(cli, [*words, *some], standalone_mode=False, catch_exceptions=False)
