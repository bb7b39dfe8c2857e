"""Causal scrubbing against its definition, one forward of TransformerBridge per place in
the tree; and where the answer is known.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from reference import Reference, logit_diff
from tiny import Tiny, random_model, random_prompts, tiny_config
from torch import Tensor

import circuitdiscovery as cd
from circuitdiscovery.benchmark.problems.suite import planted
from circuitdiscovery.explanation.scrubbing import hypothesis
from circuitdiscovery.explanation.scrubbing import scrub as scrubbing
from circuitdiscovery.explanation.scrubbing.hypothesis import Hypothesis, load_hypothesis, shipped_hypotheses
from circuitdiscovery.explanation.scrubbing.result import Scrubbing
from circuitdiscovery.explanation.scrubbing.scrub import scrub
from circuitdiscovery.explanation.scrubbing.tree import Drawn, Prompts, other_heads
from circuitdiscovery.files.disk import data_folder


def with_variables(task: Any, variables: Callable[[int, Any], Mapping[str, str]]) -> Any:
    """The task, its examples' variables made by (row, example)."""
    return replace(
        task, examples=tuple(replace(e, variables=dict(variables(i, e))) for i, e in enumerate(task.examples))
    )


def drawn_trees(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, Any], Prompts, Drawn]]:
    """(edges, prompts, tree) of every hypothesis that is tested from now on, in order."""
    found: list[tuple[dict[str, Any], Prompts, Drawn]] = []
    draw = scrubbing.draw_tree

    def spy(graph: Any, edges: Any, prompts: Prompts, *rest: Any) -> Drawn:
        found.append((dict(edges), prompts, draw(graph, edges, prompts, *rest)))
        return found[-1][2]

    monkeypatch.setattr(scrubbing, "draw_tree", spy)
    return found


def places(drawn: Drawn) -> Iterator[tuple[Drawn, int, Drawn]]:
    """(reader, receiver's column, source) for every edge of the tree."""
    for column, below in drawn.inputs:
        yield drawn, column, below
        yield from places(below)


# ------------------------------------------------------------------ the definition, on hooks


class Slow:
    """What nodes write, scrubbed, for B = draws * examples: a forward
    of the bridge for every place in the tree.
    """

    def __init__(self, reference: Reference, prompts: Prompts) -> None:
        self.reference, self.tokens = reference, torch.tensor([example.clean for example in prompts.examples])
        self.graph = reference.graph
        self.written = reference.run(self.tokens)[1]  # [S, prompts, T, D]

    def write(self, drawn: Drawn) -> Tensor:
        """[B, T, D]."""
        if drawn.rest is None:
            return self.written[drawn.node, drawn.prompt.ravel()]
        tokens = self.tokens[drawn.rest.ravel()]
        written, hooks = self.reference._written(tokens)
        self.reference._forward(tokens, hooks + self._reading(drawn))
        return written[drawn.node]

    def logits(self, drawn: Drawn) -> Tensor:
        """[B, T, V]."""
        assert drawn.rest is not None
        return self.reference._forward(self.tokens[drawn.rest.ravel()], self._reading(drawn))

    def _reading(self, drawn: Drawn) -> Any:
        """Hooks on a run of the prompts that the rest comes from: what the tree
        says is exchanged for what those runs wrote.
        """
        assert drawn.rest is not None
        current = self.written[:, drawn.rest.ravel()]
        changes: dict[int, dict[int, Tensor]] = {}  # column -> row -> [B, T, D]
        for column, below in drawn.inputs:
            changes.setdefault(column, {})[below.node] = self.write(below) - current[below.node]

        def change(column: int) -> Tensor | float:
            if column not in changes:
                return 0.0
            rows = list(changes[column])
            return self.reference.added(current, rows, torch.stack([changes[column][row] for row in rows]))

        return self.reference._at_receivers(change)


HYPOTHESES: dict[str, dict[str, Any]] = {
    "a chain": {
        "a2.h1->logits": ["a"],
        "m1->a2.h1<q>": ["b"],
        "a0.h3->m1": ["a", "b"],
        "input->a0.h3<v>": [],
    },
    "every letter": {"a2.h0->logits": ["a"], "a1.h1->a2.h0": ["a"], "input->a1.h1": ["b"]},
    "many": {
        "m2->logits": ["a"],
        "m1->m2": ["a"],
        "input->m1": ["a"],
        "a0.h0->m1": ["b"],
        "input->logits": [],
        "m0->logits": ["a"],
        "a0.h2->m0": ["a"],
        "a1.h0->logits": ["b"],
        "a0.h0->a1.h0<v>": ["a"],
        "a0.h1->a1.h0<v>": ["b"],
        "m0->a1.h0<q>": ["a"],
    },
}


def grouped(graph: Any, edges: dict[str, Any]) -> dict[str, Any]:
    """The edges, those into a head's value into its group's where it has none of its
    own; in parallel blocks, those there are.
    """
    named = {}
    for edge, variables in edges.items():
        source, _, receiver = edge.partition("->")
        if graph.grouped and receiver.endswith("<v>"):
            layer, _, head = receiver.removesuffix("<v>").partition(".h")
            receiver = f"{layer}.kv{int(head) * graph.n_kv_heads // graph.n_heads}<v>"
        if not (graph.parallel and source[0] == "a" and receiver[0] == "m" and source[1] == receiver[1]):
            named[f"{source}->{receiver}"] = variables
    return named


@pytest.fixture(scope="module")
def task() -> Any:
    """12 examples of 5 tokens, with the variables a (of three values), b (of two) and id."""
    return with_variables(
        random_prompts(61, 12, 5, seed=4).task, lambda i, _: {"a": str(i % 3), "b": str(i % 2), "id": str(i)}
    )


@pytest.mark.parametrize("name", HYPOTHESES)
def test_the_definition(tiny: Tiny, task: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same draws."""
    trees = drawn_trees(monkeypatch)
    edges = grouped(tiny.reference.graph, HYPOTHESES[name])
    result = scrub(tiny.model, task, Hypothesis("tokens", {}, edges, shared=()), draws=2, renamed=0)
    slow, tree = Slow(tiny.reference, trees[1][1]), trees[1][2]
    assert {slow.graph.names(slow.graph.mask([e]))[0] for e in result.edges} == set(result.edges)
    metric = logit_diff(
        *(torch.tensor([getattr(e, side)[0] for e in task.examples] * 2) for side in ("correct", "incorrect"))
    )
    values = metric(slow.logits(tree)[:, -1]).numpy()  # draw by draw, as the tree's rows
    assert float(result.scrubbed) == pytest.approx(np.mean(values), abs=2e-4)
    assert len(set(np.round(values, 3))) > 12  # draws differ
    assert abs(float(result.scrubbed) - float(result.resampled)) > 1e-3  # and what is held matters


def test_every_edge_of_the_hypothesis_is_in_the_tree(
    llama: Tiny, task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As often as there are paths to it; a group's value stands at each of its heads."""
    trees = drawn_trees(monkeypatch)
    edges = {
        "a2.h2->logits": ["a"],
        "a2.h3->logits": ["a"],
        "m1->a2.kv1<v>": ["b"],
        "m0->m1": ["a"],
        "m0->a2.h2<q>": ["a"],
    }
    result = scrub(llama.model, task, Hypothesis("tokens", {}, edges, shared=()), draws=1, renamed=0)
    found = Counter(
        f"{llama.model.graph.sources[below.node]}->{llama.model.graph.receivers[column]}"
        for _, column, below in places(trees[1][2])
    )
    assert found == {
        "a2.h2->logits": 1,
        "a2.h3->logits": 1,
        "m1->a2.kv1<v>": 2,
        "m0->m1": 2,
        "m0->a2.h2<q>": 1,
    }
    assert result.places == 1 + found.total()


def test_what_is_drawn(gpt2: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts that agree on what they must and are otherwise any,
    each equally often; never the prompt itself.
    """
    trees = drawn_trees(monkeypatch)
    prompts = with_variables(
        random_prompts(101, 48, 3, seed=1).task,
        lambda i, _: {"a": str(i % 3), "b": str(i % 4), "kind": str(i % 2)},
    )
    edges = {"m2->logits": ["a"], "m1->m2": ["b"], "m0->m1": []}
    scrub(gpt2.model, prompts, Hypothesis("tokens", {}, edges, shared=("kind",)), draws=60, renamed=0)
    tree = trees[1][2]
    np.testing.assert_array_equal(tree.prompt, np.tile(np.arange(48), (60, 1)))

    def check(of: np.ndarray, found: np.ndarray, *same: int) -> None:
        """`same`: whose remainders must agree."""
        assert found.shape == (60, 48) and not (found == of).any()
        for modulus in (2, 3, 4):
            agree = (found % modulus == of % modulus).mean()
            assert agree == 1 if any(each % modulus == 0 for each in same) else agree < 0.7, modulus
        allowed = sum(all(x % each == 0 for each in same) for x in range(48)) - 1
        counts = np.array(
            [np.bincount(found[of == x] if (of == x).any() else [0], minlength=48).max() for x in range(48)]
        )
        pairs = Counter(zip(of.ravel().tolist(), found.ravel().tolist(), strict=True))
        # of those that can be drawn, about so many are
        assert len(pairs) > 0.6 * 48 * allowed * (1 - np.exp(-60 / allowed))
        assert counts.max() < 60 * 48 / 4

    assert tree.rest is not None
    check(tree.prompt, tree.rest, 2)
    ((_, m2),) = tree.inputs
    check(tree.prompt, m2.prompt, 2, 3)
    assert m2.rest is not None
    check(m2.prompt, m2.rest, 2)
    ((_, m1),) = m2.inputs
    check(m2.prompt, m1.prompt, 4)
    assert m1.rest is not None
    ((_, m0),) = m1.inputs
    check(m1.prompt, m0.prompt, 2)
    assert m0.rest is None and not (m1.prompt == m2.rest).all()


def test_all_prompts_that_agree_are_drawn_equally_often() -> None:
    examples = with_variables(
        random_prompts(101, 9, 3).task, lambda i, _: {"a": "x" if i in (1, 4, 5, 8) else str(i)}
    ).examples
    prompts, like = Prompts(examples, ()), np.full(30_000, 4)
    counts = np.bincount(prompts.draw(like, ("a",), np.random.default_rng(0)), minlength=9)
    assert counts[[1, 5, 8]] == pytest.approx(10_000, rel=0.05) and counts.sum() == counts[[1, 5, 8]].sum()
    # none agrees with these
    assert (prompts.draw(np.array([0, 2, 7]), ("a",), np.random.default_rng(0)) == [0, 2, 7]).all()
    counts = np.bincount(prompts.draw(like, (), np.random.default_rng(0)), minlength=9)
    assert counts[4] == 0 and np.delete(counts, 4) == pytest.approx(30_000 / 8, rel=0.1)


# ------------------------------------------------------------------ identities


@pytest.fixture(params=["gpt2", "bloom"], scope="module")
def small(request: pytest.FixtureRequest) -> Any:
    """Two layers of two heads, in BLOOM of two slopes."""
    return cd.load_model((random_model(tiny_config(request.param, n_layer=2, n_head=2)), None))


def test_everything_held_and_nothing_exchanged_is_the_model(small: Any, task: Any) -> None:
    every = {edge: ["id"] for edge in small.graph.edges}
    result = scrub(small, task, Hypothesis("tokens", {}, every, shared=()), draws=1)
    logits = cd.run_circuit(small, task, cd.Circuit.full(small.graph))
    expected = float(
        logit_diff(
            torch.tensor([e.correct[0] for e in task.examples]),
            torch.tensor([e.incorrect[0] for e in task.examples]),
        )(logits).mean()
    )
    assert float(result.scrubbed) == pytest.approx(expected, abs=1e-4)
    assert float(result.full) == pytest.approx(expected, abs=1e-5)
    by_kl = scrub(small, task, Hypothesis("tokens", {}, every, shared=()), draws=1, metric="kl_divergence")
    assert float(by_kl.recovered or 0) == pytest.approx(1, abs=1e-6)
    assert set(result.own.values()) == {1.0} and result.own_rest == 0
    assert by_kl.renamed == ()  # no exchange of heads changes a hypothesis of all edges


def test_nothing_held_is_another_prompt_judged_by_these_answers(tiny: Tiny) -> None:
    """Of two prompts the other one is always drawn."""
    prompts = random_prompts(61, 2, 5, seed=9)
    result = scrub(tiny.model, prompts.task, Hypothesis("tokens", shared=()), draws=3)
    with torch.no_grad():
        logits = tiny.hf(prompts.clean.flip(0)).logits[:, -1]
    expected = float(logit_diff(prompts.correct, prompts.incorrect)(logits).mean())
    assert (float(result.scrubbed), float(result.resampled)) == (
        pytest.approx(expected, abs=1e-4),
        pytest.approx(expected, abs=1e-4),
    )
    assert (result.edges, result.places, result.own, result.own_rest) == ({}, 1, {}, 0.0)


def test_everything_held_and_everything_exchanged_is_the_other_prompt(small: Any) -> None:
    """Where the variables are shared by two prompts only, each stands for the
    other at one level, for itself at the next.
    """
    prompts = with_variables(random_prompts(61, 2, 5, seed=9).task, lambda i, _: {"a": "same"})
    held = {f"{source}->logits": ["a"] for source in small.graph.sources}
    result = scrub(small, prompts, Hypothesis("tokens", {}, held, shared=("a",)), draws=1, renamed=0)
    assert float(result.scrubbed) == pytest.approx(float(result.resampled), abs=1e-4)


def test_recovered_is_the_share_of_the_way(gpt2: Tiny, task: Any) -> None:
    edges = {f"{source}->logits": ["id"] for source in ("m0", "m1", "m2", "a2.h0")}
    result = scrub(
        gpt2.model, task, Hypothesis("tokens", {}, edges, shared=()), metric="kl_divergence", renamed=4
    )
    assert float(result.full) == pytest.approx(0, abs=1e-6) and result.recovered is not None
    assert float(result.recovered) == pytest.approx(1 - result.scrubbed / result.resampled, abs=1e-6)
    assert result.recovered.low < result.recovered < result.recovered.high
    assert len(result.renamed) == 3 and result.renamed_mean is not None  # the other heads of the layer
    assert float(result.renamed_mean) == pytest.approx(np.mean(result.renamed))
    assert result.as_much == np.mean([each >= result.recovered for each in result.renamed])


def test_no_share_where_there_is_no_way(gpt2: Tiny, task: Any) -> None:
    def constant(logits: Tensor, _: Any) -> Tensor:
        return torch.arange(float(len(logits)))

    result = scrub(
        gpt2.model, task, Hypothesis("tokens", {"m2": ["a"]}, shared=()), metric=constant, renamed=1
    )
    assert (
        result.recovered is None
        and result.renamed == ()
        and result.as_much is None
        and result.renamed_mean is None
    )
    assert "is rounding" in str(result.reason) and "none: " in str(result)
    assert result.to_dict()["recovered"] is None


def test_intervals_are_over_the_examples(gpt2: Tiny) -> None:
    prompts = with_variables(random_prompts(101, 60, 4, seed=2).task, lambda i, _: {})
    metric = logit_diff(
        *(torch.tensor([getattr(e, side)[0] for e in prompts.examples]) for side in ("correct", "incorrect"))
    )
    each = metric(cd.run_circuit(gpt2.model, prompts, cd.Circuit.full(gpt2.model.graph)))
    full = scrub(gpt2.model, prompts, Hypothesis("tokens", shared=()), draws=1).full
    error = 1.96 * float(each.std()) / 60**0.5
    assert (full - full.low, full.high - full) == (
        pytest.approx(error, rel=0.25),
        pytest.approx(error, rel=0.25),
    )


# ------------------------------------------------------------------ planted circuits


@pytest.fixture(scope="module")
def ioi() -> Any:
    """The planted IOI, its prompts with the names of the first and the second place as variables."""
    problem = planted(examples=400)["ioi"]()
    held = with_variables(
        problem.task.held_out,
        lambda _, e: {**e.variables, "first": str(e.clean[2]), "second": str(e.clean[4])},
    )
    return replace(problem, task=replace(problem.task, held_out=held))


IOI = {
    "a4.h1->logits": ["IO"],
    "m0->a4.h1<v>": ["first", "S"],
    "a2.h1->a4.h1<v>": ["second", "S"],
    "m0->a2.h1<v>": ["S"],
    "a1.h1->a2.h1<v>": ["second"],
    "m0->a1.h1<v>": ["second"],
}


def test_the_planted_ioi_is_recovered(ioi: Any) -> None:
    """Wholly, by the true edges and variables, and by nothing about other heads."""
    held = {**IOI, "input->m0": ["first", "second", "S"]}
    result = scrub(ioi.model, ioi.task, Hypothesis("ioi", {}, held, shared=()), draws=3)
    assert set(result.edges) == set(ioi.truth.edges) and result.part == "held_out"
    assert float(result.recovered or 0) == pytest.approx(1, abs=0.01)
    assert result.as_much == 0 and abs(float(result.renamed_mean or 1)) < 0.4
    assert result.own["a4.h1->logits"] == result.own_rest == 0


@pytest.mark.parametrize(
    ("edge", "variables", "most"),
    [
        ("a4.h1->logits", ["S"], 0.1),
        ("a4.h1->logits", [], 0.1),
        ("m0->a4.h1<v>", ["S"], 0.6),
        ("m0->a2.h1<v>", ["second"], 0.85),
        ("a1.h1->a2.h1<v>", [], 0.7),
        ("m0->a1.h1<v>", ["first"], 0.7),
        ("a2.h1->a4.h1<v>", False, 0.6),
    ],
)
def test_a_wrong_variable_is_refuted(ioi: Any, edge: str, variables: Any, most: float) -> None:
    held = {
        name: value
        for name, value in IOI.items()
        if variables is not False or not name.endswith(("a2.h1<v>", "a1.h1<v>"))
    }
    held = {name: value for name, value in (held | {edge: variables}).items() if value is not False}
    result = scrub(ioi.model, ioi.task, Hypothesis("ioi", {}, held, shared=()), draws=3, renamed=0)
    assert float(result.recovered or 1) < most


def test_the_planted_induction() -> None:
    """The query knows the token, the keys where it stood before, the values what follows there."""
    problem = planted(examples=400)["induction"]()
    held_out = with_variables(
        problem.task.held_out, lambda _, e: {**e.variables, "place": str(e.positions["previous"])}
    )
    task = replace(problem.task, held_out=held_out)
    true: dict[str, Any] = {
        "a1.h1->logits": ["answer"],
        "input->a1.h1<q>": ["token"],
        "a0.h2->a1.h1<k>": ["token", "place"],
        "input->a0.h2<v>": ["token", "place"],
        "input->a1.h1<v>": ["answer", "place"],
    }
    result = scrub(problem.model, task, Hypothesis("induction", {}, true, shared=()), draws=3, renamed=5)
    assert set(result.edges) == set(problem.truth.edges)
    assert float(result.recovered or 0) == pytest.approx(1, abs=0.01) and result.as_much == 0
    for edge, wrong in (
        ("input->a1.h1<v>", ["place"]),
        ("a1.h1->logits", ["token"]),
        ("input->a1.h1<q>", ["place"]),
    ):
        refuted = scrub(
            problem.model,
            task,
            Hypothesis("induction", {}, {**true, edge: wrong}, shared=()),
            draws=3,
            renamed=0,
        )
        assert float(refuted.recovered or 1) < 0.35, edge


# ------------------------------------------------------------------ the same heads by other names


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_renamed_hypotheses_have_the_same_shape(
    tinies: Callable[[str], Tiny], name: str, task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads move within their layer, their edges with them; MLPs stay; a head keeps its group's company."""
    model, trees = tinies(name).model, drawn_trees(monkeypatch)
    edges = grouped(
        model.graph,
        HYPOTHESES["a chain"] | {"a1.h1->a2.h1": ["a"], "a0.h3->a1.h1": ["b"], "a0.h2->a1.h1<q>": ["a"]},
    )
    result = scrub(model, task, Hypothesis("tokens", {}, edges, shared=()), draws=1, metric="kl_divergence")
    renamed = [each for each, _, _ in trees[2:]]
    assert len({str(each) for each in renamed}) == len(renamed) == len(result.renamed) > 5

    def shape(held: Mapping[str, Any]) -> Any:
        """Heads and groups numbered as they first come, in the order of the edges from the logits back."""
        view = nx.MultiDiGraph()
        for edge, variables in held.items():
            source, _, receiver = edge.partition("->")
            view.add_edge(
                source, receiver.partition("<")[0], what=(receiver.partition("<")[2], tuple(variables))
            )
            for head in model.graph.reader_nodes(receiver) if ".kv" in receiver else ():
                view.add_edge(receiver.partition("<")[0], head, what="group")
        for node in view:
            view.nodes[node]["kind"] = (
                node if node[0] != "a" else node[:2] + (".kv" if ".kv" in node else ".h")
            )
        return view

    def same(a: Any, b: Any) -> bool:
        return nx.is_isomorphic(
            a,
            b,
            lambda x, y: x["kind"] == y["kind"],
            lambda x, y: sorted(map(str, x.values())) == sorted(map(str, y.values())),
        )

    for each in renamed:
        assert each != trees[1][0] and list(each) == sorted(each, key=model.graph.index)
        assert same(shape(each), shape(trees[1][0]))


def test_there_are_as_many_others_as_other_heads(gpt2: Tiny, task: Any) -> None:
    """Of a hypothesis about one head of four, three; if none recovers as much, p is 1 of 4."""
    held = {"a2.h0->logits": ("a",), "input->a2.h0<v>": ("b",)}
    others = list(other_heads(gpt2.model.graph, held, 20, seed=0))
    assert sorted(edge for each in others for edge in each if "logits" in edge) == [
        f"a2.h{head}->logits" for head in range(1, gpt2.model.graph.n_heads)
    ]
    found = scrub(gpt2.model, task, Hypothesis("tokens", {}, held, shared=()), metric="kl_divergence")
    count = sum(each >= (found.recovered or 0) for each in found.renamed)
    assert found.p == (1 + count) / (1 + len(others)) == found.to_dict()["p"]
    assert f"over {len(others)} of the same shape; {count} recover as much (p {found.p:.2g})" in str(found)


def test_what_no_exchange_changes_has_no_other_names(gpt2: Tiny, task: Any) -> None:
    result = scrub(
        gpt2.model,
        task,
        Hypothesis("tokens", {"m2": ["a"], "m0": ["a"]}, shared=()),
        draws=1,
        metric="kl_divergence",
    )
    assert result.recovered is not None
    assert result.renamed == () and result.as_much is None and "other heads" not in str(result)


# ------------------------------------------------------------------ prompts


def test_the_same_call_gives_the_same_bytes(gpt2: Tiny, task: Any) -> None:
    hypothesis = Hypothesis("tokens", {}, HYPOTHESES["a chain"], shared=())

    def run(**options: Any) -> str:
        return json.dumps(scrub(gpt2.model, task, hypothesis, draws=3, renamed=2, **options).to_dict())

    first = run()
    assert run() == first and run(seed=1) != first
    a, b = (scrub(gpt2.model, task, hypothesis, draws=3, renamed=2, batch_size=size) for size in (1, 5))
    assert (float(a.scrubbed), *a.renamed) == pytest.approx((float(b.scrubbed), *b.renamed), abs=1e-5)


def test_prompts_of_another_length_stand_apart(gpt2: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each length has its own prompts, and the answer is read where the example says."""
    trees = drawn_trees(monkeypatch)
    generator = torch.Generator().manual_seed(0)
    # of each two: no choice
    rows = [torch.randint(101, (length,), generator=generator).tolist() for length in (4, 6, 6, 4)]
    answers: dict[str, Any] = {"correct": [1, 2, 3, 4], "incorrect": [5, 6, 7, 8]}
    longer = [[*row, 9, 10] for row in rows]
    hypothesis = Hypothesis("tokens", {"m2": [], "a1.h1": [], "input": []}, shared=())
    at_end = scrub(
        gpt2.model, cd.Task.from_tokens(clean=rows, corrupted=rows, **answers), hypothesis, draws=2, renamed=0
    )
    assert [{len(example.clean) for example in prompts.examples} for _, prompts, _ in trees] == [
        {4},
        {6},
        {4},
        {6},
    ]
    inside = cd.Task.from_tokens(clean=longer, corrupted=longer, position=[3, 5, 5, 3], **answers)
    shifted = scrub(gpt2.model, inside, hypothesis, draws=2, renamed=0)
    for name in ("full", "scrubbed", "resampled"):
        assert float(getattr(shifted, name)) == pytest.approx(float(getattr(at_end, name)), abs=1e-4)
    assert (
        at_end.prompts == 4
        and len({round(float(x), 3) for x in (at_end.full, at_end.scrubbed, at_end.resampled)}) == 3
    )


def test_more_prompts_to_draw_from(gpt2: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured are the task's; drawn are both; one that is in both counts
    once. `own` is how many draws were no draws.
    """
    trees = drawn_trees(monkeypatch)
    everything = with_variables(
        random_prompts(101, 20, 4, seed=5).task, lambda i, _: {"a": str(i % 10), "id": str(i)}
    )
    measured, more = everything.select(range(10)), everything.select(range(8, 20))
    hypothesis = Hypothesis("tokens", {}, {"m2->logits": ["a"], "m1->m2": ["id"]}, shared=())
    alone, both = (
        scrub(gpt2.model, measured, hypothesis, prompts=prompts, draws=4, renamed=0)
        for prompts in (None, more)
    )
    assert (alone.examples, alone.prompts, both.examples, both.prompts) == (10, 10, 10, 20)
    assert (alone.own, both.own) == ({"m1->m2": 1.0, "m2->logits": 1.0}, {"m1->m2": 1.0, "m2->logits": 0.0})
    np.testing.assert_array_equal(trees[-1][2].inputs[0][1].prompt, np.tile(np.arange(10, 20), (4, 1)))
    assert float(alone.full) == float(both.full)
    assert "of 2 edges, such as m1->m2, up to 100% of the draws" in str(
        alone
    ) and "of 1 edges, such as m1->m2" in str(both)
    single = scrub(gpt2.model, everything.select([0]), hypothesis, draws=2, renamed=0)
    assert single.own_rest == 1 and float(single.scrubbed) == pytest.approx(float(single.full), abs=1e-4)


def test_equal_prompts_keep_the_variables_of_their_rows(gpt2: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows 0 and 1 read the same and differ in `a`: each is exchanged for the other row with its own `a`, and
    neither for the other."""
    trees = drawn_trees(monkeypatch)
    some = random_prompts(101, 3, 4, seed=5).task
    task = with_variables(some.select([0, 0, 1, 2]), lambda i, _: {"a": str(i % 2)})
    hypothesis = Hypothesis("tokens", {}, {"m2->logits": ["a"]}, shared=())
    found = scrub(gpt2.model, task, hypothesis, draws=40, renamed=0)
    assert (found.prompts, found.own) == (4, {"m2->logits": 0.0})
    (tree,) = [drawn for edges, _, drawn in trees if edges]
    np.testing.assert_array_equal(tree.inputs[0][1].prompt, np.tile([2, 3, 0, 1], (40, 1)))
    assert tree.rest is not None
    assert [set(column) for column in tree.rest.T.tolist()] == [{2, 3}, {2, 3}, {0, 1, 3}, {0, 1, 2}]


def test_equal_hypotheses_have_the_same_hash() -> None:
    """As a frozen value's, whatever the order of their tables."""
    one = Hypothesis("ioi", {"a0.h0": ["S"], "a1.h1": []}, {"a0.h0->logits": False})
    same = Hypothesis("ioi", {"a1.h1": (), "a0.h0": ("S",)}, {"a0.h0->logits": False})
    other = replace(one, nodes={})
    assert one == same and {one: 1} == {same: 1} and len({one, same, other}) == 2


def test_it_prints_and_exports(gpt2: Tiny, task: Any) -> None:
    hypothesis = Hypothesis("tokens", {"a2.h1": ["a"], "m1": ["b"]}, shared=(), name="mine")
    seen: list[tuple[int, int]] = []
    result = scrub(gpt2.model, task, hypothesis, draws=2, renamed=3, progress=lambda *x: seen.append(x))
    assert seen == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]
    assert isinstance(result, Scrubbing)
    assert {edge.partition("<")[0] for edge in result.edges} == {"m1->a2.h1", "m1->logits", "a2.h1->logits"}
    told = str(result)
    assert "mine: 5 edges" in told and "12 examples (none are held out), 2 draws each from 12 prompts" in told
    plain = json.loads(json.dumps(result.to_dict()))
    assert plain["scrubbed"]["value"] == result.scrubbed and plain["as_much"] == result.as_much
    assert plain["edges"]["m1->a2.h1<q>"] == ["b"] and plain["renamed"] == list(result.renamed)


# ------------------------------------------------------------------ hypotheses as they are written


def test_the_rule(gpt2: Tiny, llama: Tiny) -> None:
    """Every edge between two nodes and from each to the logits; then the edges one by one."""
    graph = gpt2.model.graph
    nodes = {"input": [], "a0.h1": ["x"], "m1": ["y"]}
    between = {f"input->a0.h1<{letter}>": () for letter in "qkv"} | {"input->m1": (), "input->logits": ()}
    expected = between | {"a0.h1->m1": ("x",), "a0.h1->logits": ("x",), "m1->logits": ("y",)}
    assert Hypothesis("t", nodes).edges_of(graph) == expected
    assert list(Hypothesis("t", nodes).edges_of(graph)) == sorted(expected, key=graph.index)
    edges = {"input->a0.h1<v>": ["z"], "input->a0.h1": False, "input->logits": False, "m0->m1": ["w"]}
    changed = {e: v for e, v in expected.items() if e != "input->logits" and "input->a0.h1" not in e}
    assert Hypothesis("t", nodes, edges).edges_of(graph) == changed | {
        "input->a0.h1<v>": ("z",),
        "m0->m1": ("w",),
    }
    assert Hypothesis("t", {}, {"m1->logits": ["y"], "input->m1": []}).edges_of(graph) == {
        "m1->logits": ("y",),
        "input->m1": (),
    }
    whole = Hypothesis("t", {"a1.h3": ["y"]}, {"m0->a1.h3": ["z"]}).edges_of(llama.model.graph)
    assert whole == {
        "a1.h3->logits": ("y",),
        "m0->a1.h3<q>": ("z",),
        "m0->a1.kv1<k>": ("z",),
        "m0->a1.kv1<v>": ("z",),
    }
    assert set(Hypothesis("t", {"a0.h0": [], "a1.h2": []}).edges_of(llama.model.graph)) == {
        *("a0.h0->a1.h2<q>", "a0.h0->a1.kv1<k>", "a0.h0->a1.kv1<v>", "a0.h0->logits", "a1.h2->logits")
    }


@pytest.mark.parametrize(
    ("made", "told"),
    [
        ({"nodes": {"a9.h9": []}}, "no node 'a9.h9'; did you mean"),
        ({"nodes": {"logits": []}}, "no node 'logits'"),
        ({"edges": {"m0->a1.h9<q>": []}}, "no edge 'm0->a1.h9<q>'; did you mean 'm0->a1.h"),
        ({"edges": {"m1->m0": []}}, "no edge 'm1->m0'"),
        ({"edges": {"a0.h0": []}}, "no edge 'a0.h0'"),
        (
            {"edges": {"m0->m1": []}},
            "m0->m1 leads nowhere: no path of the hypothesis goes on from it to the logits",
        ),
        ({"edges": {"m0->m1": False}}, "m0->m1 = false takes out an edge that the nodes do not give"),
        ({"nodes": {"m0": []}, "edges": {"m0->logits": False, "m0->m1": []}}, "m0->m1 leads nowhere"),
    ],
)
def test_what_does_not_fit_the_model_is_one_line(
    gpt2: Tiny, task: Any, made: dict[str, Any], told: str
) -> None:
    with pytest.raises(cd.CircuitDiscoveryError) as error:
        scrub(gpt2.model, task, Hypothesis("tokens", shared=(), name="mine", **made))
    assert str(error.value).startswith(f"hypothesis mine: {told}") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("made", "told"),
    [
        ({"nodes": {"m0": "a"}}, "nodes: 'm0' must be a list of variables, not 'a'"),
        ({"nodes": {"m0": False}}, "nodes: 'm0' must be a list of variables, not true or false"),
        (
            {"edges": {"m0->m1": True}},
            "edges: 'm0->m1' must be a list of variables, or false, not true or false",
        ),
        (
            {"edges": {"m0->m1": ["a", 1]}},
            "edges: 'm0->m1' must be a list of variables, or false, not a list",
        ),
        ({"edges": {"m0->m1": ["a", "a"]}}, "edges: 'm0->m1' has 'a' twice"),
        ({"edges": ["m0->m1"]}, "edges must be a table from names to variables, not a list"),
        ({"shared": "template"}, "shared must be a list of variables, not 'template'"),
        ({"task": ""}, "task must be a text, not ''"),
        ({"description": 3}, "description must be a text, not a whole number"),
    ],
)
def test_what_is_no_hypothesis_is_one_line(made: dict[str, Any], told: str) -> None:
    with pytest.raises(cd.CircuitDiscoveryError) as error:
        Hypothesis(**{"task": "t", "name": "mine", **made})
    assert str(error.value) == f"hypothesis mine: {told}"


def test_variables_that_are_not_there(gpt2: Tiny, task: Any) -> None:
    def told(hypothesis: Any, task: Any, **options: Any) -> str:
        with pytest.raises(cd.CircuitDiscoveryError) as error:
            scrub(gpt2.model, task, hypothesis, **options)
        return str(error.value)

    nodes = {"m0": ["aa"]}
    assert told(Hypothesis("tokens", nodes, shared=()), task).startswith(
        "hypothesis hypothesis: no variable 'aa'; did you mean 'a'?"
    )
    assert told(Hypothesis("tokens", {"m0": ["a"]}), task).startswith(
        "hypothesis hypothesis: shared: no variable 'template'; Valid"
    )
    bare = gpt2.prompts.task
    assert "row 0 of task tokens has no variables; Task.from_tokens(..., variables={...})" in told(
        Hypothesis("tokens", nodes, shared=()), bare
    )
    assert "row 0" in told(Hypothesis("tokens", {"m0": ["a"]}, shared=()), task, prompts=bare)
    assert told(Hypothesis("ioi"), task) == "hypothesis hypothesis is about the task 'ioi', not 'tokens'"
    assert (
        told("toy/ioi-position", task) == "hypothesis toy/ioi-position is about the task 'ioi', not 'tokens'"
    )
    for name, value in (("draws", 0), ("draws", 1.5), ("renamed", -1), ("seed", -1), ("batch_size", 0)):
        assert told(Hypothesis("tokens", shared=()), task, **{name: value}).startswith(
            f"scrub: {name} must be a whole number of at least"
        )
    assert "no metric 'x'" in told(Hypothesis("tokens", shared=()), task, metric="x")


def test_a_tree_that_is_too_large_is_refused(gpt2: Tiny, task: Any) -> None:
    everything = Hypothesis("tokens", dict.fromkeys(gpt2.model.graph.sources, ()), shared=())
    with pytest.raises(
        cd.CircuitDiscoveryError,
        match=r"the tree of its paths has [\d,]{6,} nodes, more than 10,000; leave out some of its 262 edges",
    ):
        scrub(gpt2.model, task, everything)


def test_the_file_that_the_documentation_shows_can_be_read(tmp_path: Path) -> None:
    shown = [line for line in (hypothesis.__doc__ or "").splitlines() if line.startswith("    ") or not line]
    (tmp_path / "shown.toml").write_text(dedent("\n".join(shown)), "utf-8")
    found = load_hypothesis(tmp_path / "shown.toml")
    assert (found.task, found.shared, found.nodes) == ("ioi", ("template",), {"a2.h0": ("IO",)})
    assert found.edges == {"a0.h1->a2.h0<v>": ("IO",), "a2.h0->logits": False}


def test_a_file_says_what_python_says(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    tables = '[nodes]\n"m0" = ["IO", "S"]\n[edges]\n"m0->a1.h0<q>" = []\n"m0->logits" = false\n'
    path.write_text(f'task = "ioi"\ndescription = "d"\nshared = ["order"]\n{tables}')
    edges = {"m0->a1.h0<q>": [], "m0->logits": False}
    assert load_hypothesis(path) == Hypothesis(
        "ioi", {"m0": ["IO", "S"]}, edges, ("order",), name="mine", description="d"
    )
    path.write_text('task = "ioi"\n[nodes]\n')
    assert load_hypothesis(str(path)).shared == ("template",) and load_hypothesis(path).variables == (
        "template",
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[nodes]\n", "field 'task' is missing"),
        ('task = "ioi"\n', "a hypothesis needs a table [nodes] or [edges]"),
        ('task = "ioi"\n[node]\n', "no field 'node'; did you mean 'nodes'?"),
        ('task = "ioi"\n[nodes\n', "not TOML: "),
        (
            'task = "ioi"\nnodes = 3\n',
            "hypothesis mine: nodes must be a table from names to variables, not a whole number",
        ),
        ("task = 3\n[nodes]\n", "hypothesis mine: task must be a text, not a whole number"),
        (
            'task = "ioi"\n[nodes]\nm0 = "IO"\n',
            "hypothesis mine: nodes: 'm0' must be a list of variables, not 'IO'",
        ),
        ("x = " + "[" * 10_000, "nested too deeply"),
        ("", "is empty"),
    ],
)
def test_a_broken_file_is_one_line_that_names_it(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(cd.CircuitDiscoveryError) as error:
        load_hypothesis(path)
    assert (
        str(error.value).startswith(str(path)) and told in str(error.value) and "\n" not in str(error.value)
    )


def test_a_name_that_is_not_shipped(tmp_path: Path) -> None:
    with pytest.raises(
        cd.CircuitDiscoveryError,
        match=r"no hypothesis 'toy/ioi-positions'; did you mean 'toy/ioi-position'\? Valid hypotheses: .*\.toml",
    ):
        load_hypothesis("toy/ioi-positions")
    with pytest.raises(cd.CircuitDiscoveryError, match="cannot read"):
        load_hypothesis(tmp_path / "absent.toml")


# ------------------------------------------------------------------ the shipped ones


@pytest.fixture(scope="module")
def toy(tinies: Callable[[str], Tiny]) -> Any:
    """(the bundled model with its tokenizer, IOI)."""
    model = cd.load_model("toy")
    return model, cd.load_task("ioi", model)


def test_shipped_hypotheses_are_no_graphs() -> None:
    assert shipped_hypotheses() == ["toy/ioi-no-duplicate", "toy/ioi-position"]
    with pytest.raises(cd.CircuitDiscoveryError, match="no circuit of toy is shipped"):
        cd.load_circuit("toy/ioi-position")


@pytest.mark.parametrize(
    ("name", "least", "most"), [("toy/ioi-position", 0.8, 1.2), ("toy/ioi-no-duplicate", -1.0, 0.1)]
)
def test_one_holds_and_one_is_refuted(toy: Any, name: str, least: float, most: float) -> None:
    model, task = toy
    result = scrub(model, task, load_hypothesis(name), draws=4, renamed=0)
    assert (result.part, result.examples) == ("held_out", 64)
    assert least < float(result.recovered or 0) < most
    assert result.own_rest < 0.01


@pytest.mark.slow
def test_they_are_what_they_are_with_every_exchange_made(toy: Any, tmp_path: Path) -> None:
    """Five names, so that prompts agree on them: as the files' comments say."""
    text = (data_folder("tasks") / "ioi.toml").read_text("utf-8")
    names = '["Alice", "Daniel", "Jack", "Laura", "Mary"]'
    (tmp_path / "ioi.toml").write_text(re.sub(r"(?s)\nname = \[.*?\]", f"\nname = {names}", text))
    model = toy[0]
    task, prompts = (
        cd.load_task(tmp_path / "ioi.toml", model, examples=n, seed=seed) for n, seed in ((64, 0), (3072, 1))
    )
    for name, least, most in (("toy/ioi-position", 0.8, 1.1), ("toy/ioi-no-duplicate", -0.2, 0.2)):
        result = scrub(model, task, load_hypothesis(name), prompts=prompts, draws=1, renamed=0)
        assert max(result.own.values()) < 0.05
        assert least < float(result.recovered or 0) < most
