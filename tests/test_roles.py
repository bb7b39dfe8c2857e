"""What heads do: interventions as another implementation makes them, and roles where they are
known, by construction or by intervening.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_explain import bridge_attention, task_of
from tiny import Tiny, random_model, tiny_config
from torch import Tensor

import circuitdiscovery as cd
from circuitdiscovery.benchmark.problems import programs
from circuitdiscovery.benchmark.problems.compiler import Program
from circuitdiscovery.benchmark.problems.problem import Problem
from circuitdiscovery.benchmark.problems.suite import planted
from circuitdiscovery.engine.ablation import on_demand
from circuitdiscovery.engine.metrics import bind
from circuitdiscovery.explanation import roles
from circuitdiscovery.explanation.attention import Sights, observe
from circuitdiscovery.explanation.cards import Explanation, visible
from circuitdiscovery.explanation.head_scores import PatternScores
from circuitdiscovery.explanation.heads import Look, Setting
from circuitdiscovery.explanation.interventions import Asked, Part, Trials
from circuitdiscovery.explanation.roles_by_writing import brings, moves, suppresses
from circuitdiscovery.explanation.words import other_word
from circuitdiscovery.graph.nodes import parsed
from circuitdiscovery.measure.estimates import Estimate
from circuitdiscovery.measure.work import Work
from circuitdiscovery.task.batch import Batch
from circuitdiscovery.task.task import Task

PLANTED = planted()
PARTS: tuple[Part, ...] = ("whole", "values", "keys")


# ------------------------------------------------------------------ interventions


def trials_of(tiny: Tiny, task: Task) -> Trials:
    model, rows = tiny.model, tuple(range(len(task)))
    metric, ablation = bind("logit_diff", model, task), on_demand(model, task, "resample")
    return Trials(model, model.graph, task, rows, metric, ablation, None, Work(None, 1.0))


def test_another_word_is_another_examples_and_new_to_the_prompt(gpt2: Tiny) -> None:
    rows = [[1, 2, 3], [4, 2, 5], [6, 1, 2], [7, 8, 9]]
    answers: dict[str, Any] = {"correct": [20, 20, 20, 21], "incorrect": [21, 21, 21, 20]}
    task = Task.from_tokens(clean=rows, corrupted=rows, positions={"X": 1}, **answers)
    found = other_word(task, "X")
    # the last example's answers contradict the others'; where none does, or its word stands
    # there already, the next one's is taken
    assert found is not None and [e.corrupted for e in found.examples] == [
        (1, 8, 3),
        (4, 8, 5),
        (6, 8, 2),
        (7, 2, 9),
    ]
    agreeing = other_word(
        Task.from_tokens(
            clean=rows, corrupted=rows, correct=[20] * 4, incorrect=[21] * 4, positions={"X": 1}
        ),
        "X",
    )
    assert agreeing is not None and [e.corrupted for e in agreeing.examples] == [
        (1, 8, 3),
        (4, 1, 5),
        (6, 8, 2),
        (7, 2, 9),
    ]
    assert (
        other_word(
            Task.from_tokens(
                clean=[[1, 2], [3, 2]],
                corrupted=[[1, 2]] * 2,
                correct=[3, 4],
                incorrect=[5, 6],
                positions={"X": 1},
            ),
            "X",
        )
        is None
    )


class Pieces:
    """A tokenizer, as far as words need one: some tokens by their text, the others between them."""

    texts: Mapping[int, str] = {10: " Ar", 11: " Th", 12: " Ed", 13: " Do", 20: "ic", 21: "eo"}

    def decode(self, ids: list[int]) -> str:
        return "".join(self.texts.get(token, f" t{token}") for token in ids)

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [self.decode([token]) for token in ids]


def in_words(rows: list[list[int]], names: list[str | None], **positions: Any) -> Task:
    """Prompts of text; the name of each is known or not."""
    task = Task.from_tokens(
        clean=rows, corrupted=rows, correct=[90] * len(rows), incorrect=[91] * len(rows), positions=positions
    )
    examples = [
        replace(e, text=Pieces().decode([*e.clean]), variables={} if name is None else {"who": name})
        for e, name in zip(task.examples, names, strict=True)
    ]
    return replace(task, examples=tuple(examples))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["Aric", "Theo", "Aric", "Ed"], [[1, 11, 21, 5], [1, 10, 20, 6], [1, 11, 21, 7], [1, 12, 8, 9]]),
        ([None] * 4, None),  # whether "ic" is a word is unknown
    ],
)
def test_a_word_of_several_tokens_gives_way_as_a_whole(
    names: list[str | None], expected: list[list[int]] | None
) -> None:
    """To a word of as many tokens; there is none for Ed."""
    rows = [[1, 10, 20, 5], [1, 11, 21, 6], [1, 10, 20, 7], [1, 12, 8, 9]]
    found = other_word(in_words(rows, names, name=[2, 2, 2, 1]), "name", tokenizer=Pieces())
    assert (None if found is None else [[*e.corrupted] for e in found.examples]) == expected


def test_words_that_end_alike_are_no_copies(gpt2: Tiny) -> None:
    """Aric and Doic."""
    model = replace(gpt2.model, tokenizer=Pieces())
    for second, copies in ((10, {("second", "first")}), (13, set[tuple[str, str]]())):
        rows = [[1, 10, 20, filler, second, 20, 6] for filler in (30, 31)]
        task = in_words(rows, ["Aric", "Aric"], first=2, second=5)
        both = [replace(e, variables={"one": "Aric", "two": "Doic"}) for e in task.examples]
        task = replace(task, examples=tuple(both))
        sights = Sights(model, task, cd.Circuit.full(model.graph), ["a1.h3"])
        for seen in observe(model, task):
            sights.add(seen)
        assert set(sights.copies("a1.h3")) == copies


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_another_word_changes_what_a_head_writes_moves_or_matches(
    name: str, tinies: Callable[[str], Tiny]
) -> None:
    """On the bridge's hooks: its out-edges, the edges into its values, and those into its
    keys with the other run at that place alone.
    """
    tiny = tinies(name)
    task = task_of(tiny, positions={"X": [1, 2, 1, 3, 2]})
    graph, reference = tiny.model.graph, tiny.reference
    other = other_word(task, "X")
    assert other is not None
    clean, changed = tiny.prompts.clean, torch.tensor([e.corrupted for e in other.examples])
    current, carried = (reference.run(tokens)[1] for tokens in (clean, changed))
    at_x = current.clone()
    for row, example in enumerate(task.examples):
        at_x[:, row, example.positions["X"]] = carried[:, row, example.positions["X"]]

    def damage(values: Tensor, row: Any, columns: Any) -> float:
        moved = np.zeros_like(graph.allowed)
        moved[row, columns] = graph.allowed[row, columns]
        full, less = (reference.patched(clean, values, each)[:, -1] for each in (np.zeros_like(moved), moved))
        rows = torch.arange(5)
        return float(
            ((full - less)[rows, tiny.prompts.correct] - (full - less)[rows, tiny.prompts.incorrect]).mean()
        )

    asked: list[Asked] = [(node, "X", part) for node in ("a1.h3", "a2.h1") for part in PARTS]
    found = trials_of(tiny, task).other_words(asked, {"X": other})
    for node, layer, head in (("a1.h3", 1, 3), ("a2.h1", 2, 1)):
        group = head // (graph.n_heads // graph.n_kv_heads)
        assert float(found[node, "X", "whole"]) == pytest.approx(
            damage(carried, graph.source_index[node], slice(None)), abs=1e-4
        )
        for values, letter, told in (
            (carried, "v", found[node, "X", "values"]),
            (at_x, "k", found[node, "X", "keys"]),
        ):
            assert float(told) == pytest.approx(
                damage(values, slice(None), graph.columns(layer, letter)[group]), abs=1e-4
            )


def test_examples_without_another_word_do_not_count(gpt2: Tiny) -> None:
    """As if only the others were asked."""
    rows = [[5, 6, 5], [7, 8, 7], [9, 10, 9], [11, 12, 11]]
    task = Task.from_tokens(
        clean=rows, corrupted=rows, correct=[1] * 4, incorrect=[2] * 4, positions={"first": 0, "second": 2}
    )
    changed = (
        *task.examples[:2],
        *(replace(e, corrupted=(50 + i, *e.clean[1:])) for i, e in enumerate(task.examples[2:])),
    )
    asked: list[Asked] = [("a1.h3", "first", part) for part in PARTS]
    few, all_of_them = trials_of(gpt2, task.select([2, 3])), trials_of(gpt2, task)
    alone = few.other_words(asked, {"first": replace(task, examples=changed[2:])})
    found = all_of_them.other_words(asked, {"first": replace(task, examples=changed)})
    for each in asked:
        assert float(found[each]) == pytest.approx(float(alone[each]), abs=1e-5) and abs(alone[each]) > 1e-3
    weights = bridge_attention(gpt2.reference, torch.tensor([[50, 10, 9], [51, 12, 11]]))[1, :, 3, 2, 0]
    other = replace(task, examples=changed)
    looks = all_of_them.attention_to_other(["a1.h3"], "second", "first", other)
    assert looks["a1.h3"] == pytest.approx(float(weights.mean()), abs=1e-5)


def test_edges_alone_are_ablated_alone(gpt2: Tiny) -> None:
    scores = cd.exact(gpt2.model, task_of(gpt2), metric="logit_diff")
    graph = gpt2.model.graph
    cut = ("a1.h0", (graph.receiver_index["a2.h2<k>"],))
    found = trials_of(gpt2, task_of(gpt2)).ablate([], [cut]).edges[cut]
    assert float(found) == pytest.approx(scores["a1.h0->a2.h2<k>"], abs=2e-5)


def test_attention_without_the_copies_of_the_last_token(gpt2: Tiny) -> None:
    # of the last one's copy END itself is what follows
    rows = [[5, 6, 7, 8, 5], [9, 10, 9, 11, 9], [12, 13, 14, 16, 16]]
    task = Task.from_tokens(clean=rows, corrupted=rows, correct=[1, 2, 3], incorrect=[4, 5, 6])
    # each copy gives way to the next example's token at its place, if that is new to the prompt
    changed = {0: ([9, 6, 7, 8, 5], [1]), 1: ([12, 10, 14, 11, 9], [1, 3])}
    expected = [
        sum(float(bridge_attention(gpt2.reference, torch.tensor([prompt]))[1, 0, 3, 4, at]) for at in after)
        for prompt, after in changed.values()
    ]
    assert trials_of(gpt2, task).after_copies(["a1.h3"])["a1.h3"] == pytest.approx(
        np.mean(expected), abs=1e-5
    )
    weights = bridge_attention(gpt2.reference, torch.tensor(rows))[1, :, 3, 4]  # [N, T]
    sights = Sights(gpt2.model, task, cd.Circuit.full(gpt2.model.graph), ["a1.h3"])
    for seen in observe(gpt2.model, task):
        sights.add(seen)
    assert sights.induction("a1.h3") == pytest.approx(
        float(weights[0, 1] + weights[1, 1] + weights[1, 3]) / 2, abs=1e-5
    )


# ------------------------------------------------------------------ roles that are known by construction

HEADS = {
    "induction": ("induction", "previous token"),
    "ioi": ("S-inhibition", "name mover"),  # a1.h1 attends to the second name, repeated or not
}


def known_heads(problem: Problem) -> dict[str, tuple[str, ...]]:
    named = {role for roles in HEADS.values() for role in roles}
    return {role: nodes for role, nodes in problem.truth.roles.items() if role in named}


@pytest.mark.parametrize(
    "name", [f"{program}{form}" for program in HEADS for form in ("", "-hard", "-hard-layernorm")]
)
def test_planted_heads_have_their_roles_and_no_other_head_has_one(name: str) -> None:
    problem = PLANTED[name]()
    found = cd.explain(problem.model, problem.task, cd.Circuit.full(problem.model.graph))
    assert dict(found.roles) == known_heads(problem)
    assert len(found.cards) == len(problem.model.graph.sources) - 1


def test_trained_heads_have_the_roles_that_they_were_trained_to() -> None:
    problem = PLANTED["semisynthetic-induction"]()
    assert dict(cd.explain(problem.model, problem.task, problem.truth).roles) == known_heads(problem)


def test_planted_attention_scores_and_attributions_are_what_was_built() -> None:
    one = PLANTED["induction"]()
    cards = cd.explain(one.model, one.task, one.truth).cards
    assert cards["a0.h2"].scores["previous token"] == pytest.approx(1, abs=0.01)
    assert cards["a1.h1"].scores["induction"] == pytest.approx(1, abs=0.01)
    assert cards["a1.h1"].attention["END", "next"] == pytest.approx(1, abs=0.01)
    assert cards["a1.h1"].scores["copying"] > 0.99
    assert float(cards["a1.h1"].direct) == pytest.approx(6, abs=0.01) and float(
        cards["a0.h2"].direct
    ) == pytest.approx(0, abs=0.01)
    two = PLANTED["ioi"]()
    cards = cd.explain(two.model, two.task, two.truth).cards
    assert cards["a2.h1"].attention["END", "S2"] == pytest.approx(1, abs=0.01)
    assert float(cards["a4.h1"].direct) == pytest.approx(6, abs=0.05)


@pytest.mark.parametrize(
    "name",
    ["xproportion", "xproportion-hard", "and-hard", "or", "semisynthetic-fraction", "semisynthetic-gate"],
)
def test_heads_that_do_none_of_these_things_have_no_role(name: str) -> None:
    problem = PLANTED[name]()
    found = cd.explain(problem.model, problem.task, cd.Circuit.full(problem.model.graph))
    assert found.roles == {} and all(card.evidence == () for card in found.cards.values())


def with_head(problem: Problem, times: float) -> Any:
    """The model with a copy of `reverse`'s head a3.h0 in a3.h1, whose output is turned or scaled."""
    block = problem.model.blocks[3]
    parts = {}
    for part in ("W_Q", "W_K", "W_V", "W_O"):
        weight = getattr(block, part).clone()
        weight[1] = weight[0] * (times if part == "W_O" else 1.0)
        parts[part] = weight
    return replace(problem.model, blocks=(*problem.model.blocks[:3], replace(block, **parts)))


def test_a_head_that_writes_against_the_answer_is_a_negative_mover() -> None:
    problem = PLANTED["reverse"]()
    found = cd.explain(with_head(problem, -0.4), problem.task, cd.Circuit.full(problem.model.graph))
    assert dict(found.roles) == {"mover": ("a3.h0",), "negative mover": ("a3.h1",)}
    assert float(found.cards["a3.h1"].direct) == pytest.approx(-0.4 * 6, abs=0.01)
    assert any(
        sentence.startswith("In 100% of the prompts the answer is among the 5 lowest")
        for sentence in found.cards["a3.h1"].evidence
    )


def test_a_logit_difference_before_a_cap_is_called_so() -> None:
    """What heads write adds up to 6; the cap makes less of it."""
    problem = PLANTED["reverse"]()
    for cap, told in ((None, "100% of the model's 6;"), (4.0, "100% of the model's 6 before the cap on its")):
        model = replace(problem.model, logit_cap=cap)
        (written,) = [
            sentence
            for sentence in cd.explain(model, problem.task, problem.truth).cards["a3.h0"].evidence
            if sentence.startswith("It writes")
        ]
        assert told in written


def test_a_head_that_writes_too_little_is_no_mover() -> None:
    problem = PLANTED["reverse"]()
    found = cd.explain(with_head(problem, 0.03), problem.task, cd.Circuit.full(problem.model.graph))
    assert dict(found.roles) == {"mover": ("a3.h0",)}
    # whatever it looks at and copies
    assert found.cards["a3.h1"].scores == pytest.approx(found.cards["a3.h0"].scores)


@pytest.mark.parametrize(("others", "role"), [(16, "mover"), (36, None)])
def test_a_mover_brings_the_answer_in_most_of_the_prompts(others: int, role: str | None) -> None:
    """`reverse` moves the answer wherever it is, but of the answers of some prompts none is in the prompt."""
    problem = PLANTED["reverse"]()
    given = problem.task.examples
    absent = [
        replace(e, correct=(next(token for token in range(problem.model.vocab_size) if token not in used),))
        for e in given[:others]
        for used in [{*e.clean, *e.incorrect}]
    ]
    task = replace(problem.task, examples=(*absent, *given[others:]), held_out=None)
    card = cd.explain(problem.model, task, problem.truth).cards["a3.h0"]
    assert len(given) == 64 and card.role == role
    assert role is None or card.evidence[0].startswith("In 100% of the prompts with the answer in them the ")


@pytest.mark.parametrize(
    ("stands", "promotes", "mostly"), [(1.0, 0.6, True), (0.8, 0.6, False), (0.8, 0.7, True)]
)
def test_most_of_the_prompts_are_most_of_all(stands: float, promotes: float, mostly: bool) -> None:
    """Of 100 prompts 80 have the answer in them; a head that promotes it in 48 of these does so in most of these,
    but not of all."""
    look = Look("a0.h0", Estimate(1.0, 0.9, 1.1), 1.0, {}, promotes, promotes, promotes)
    setting = Setting(2.0, stands, stands, None, (), None)
    against = replace(look, direct=Estimate(-1.0, -1.1, -0.9))
    assert brings(look, setting) == mostly
    assert [moves(look, setting), moves(against, setting)] == [mostly, -mostly]
    assert suppresses(look, setting) == mostly


def test_a_single_example_shows_no_direct_effect_for_sure() -> None:
    problem = PLANTED["reverse"]()
    for count, named in ((1, ()), (3, ("a3.h0",))):
        task = replace(problem.task.select(range(count)), held_out=None)
        assert cd.explain(problem.model, task, problem.truth).roles.get("mover", ()) == named


def test_names_are_for_tasks_with_a_position_of_that_name() -> None:
    problem = PLANTED["ioi"]()
    assert problem.task.held_out is not None
    renamed = [
        replace(e, positions={"one": e.positions["IO"], "two": e.positions["S1"], "three": e.positions["S2"]})
        for e in problem.task.held_out.examples
    ]
    found = cd.explain(problem.model, replace(problem.task.held_out, examples=tuple(renamed)), problem.truth)
    assert found.cards["a4.h1"].role == "mover" and found.cards["a2.h1"].role != "S-inhibition"


def test_the_name_of_a_position_is_not_in_quotes() -> None:
    """A token's text is, unless it is words."""
    problem = PLANTED["ioi"]()
    examples = [
        replace(e, positions={"C_def": e.positions["IO"]} | dict(e.positions)) for e in problem.task.examples
    ]
    task = replace(problem.task, examples=tuple(examples), held_out=None)
    found = cd.explain(problem.model, task, problem.truth, nodes=["a4.h1"])
    assert found.cards["a4.h1"].attended[0][0] in ("C_def", "END")
    assert " C_def 0.29" in str(found) and " C_def (0.29)" in str(found) and "'C_def'" not in str(found)
    assert [visible(text, ["C_def"]) for text in ("C_def", "C_abc", " the", ".")] == [
        "C_def",
        "'C_abc'",
        "the",
        "'.'",
    ]


# ------------------------------------------------------------------ heads that are built into `ioi`


def built(add: Callable[[Program], None]) -> tuple[Any, Task]:
    """The program `ioi` with one more head, and its prompts."""
    program, task = programs._ioi(), PLANTED["ioi"]().task
    add(program)
    return program.compile("ioi"), replace(task, held_out=None)


def looks_from_end(*keys: int) -> dict[str, Any]:
    """What END attends to; all else attends to BOS."""
    return {"match": lambda q, k: k in keys if q == programs._END else k == programs.BOS}


def head(program: Program, node: str, match: Any, value: Any, answer: Tensor) -> None:
    """One more head, which writes `answer` [vocabulary, size of the value] of what it attends to."""
    place = {"query": program.positions, "key": program.positions}
    program.answer = {**program.answer, program.attend(node, **place, **match, value=value): answer}


def test_a_head_that_writes_against_the_wrong_answer_is_its_suppressor() -> None:
    """It attends to S2 and writes -3 to the logit of the name there: the direct effect, and the
    damage where the name is another one, is 3.
    """

    def add(program: Program) -> None:
        match, value = looks_from_end(programs._SUBJECT), {program.tokens: torch.eye(24)}
        head(program, "a3.h2", match, value, -3.0 * torch.eye(24))

    model, task = built(add)
    found = cd.explain(model, task, cd.Circuit.full(model.graph))
    assert dict(found.roles) == known_heads(PLANTED["ioi"]()) | {"suppressor of the wrong answer": ("a3.h2",)}
    card = found.cards["a3.h2"]
    assert float(card.direct) == pytest.approx(3, abs=0.01)
    (swapped,) = [told for told in card.evidence if told.startswith("Writing what it writes with another")]
    cost, *_, whole = re.findall(r"-?\d+(?:\.\d+)?", swapped)
    assert (float(cost), float(whole)) == pytest.approx((3, 3), abs=0.02)


def test_a_head_that_writes_against_some_words_wherever_they_stand_suppresses_no_answer() -> None:
    """The wrong answers of these prompts are among five names, which one head always writes against."""
    some = list(programs._NAMES)[:5]

    def add(program: Program) -> None:
        against = torch.zeros(24, 1)
        against[some] = -3.0
        head(program, "a3.h2", {"match": lambda q, k: True}, {program.one: torch.ones(1, 1)}, against)

    model, task = built(add)
    chosen = [e for e in task.examples if e.incorrect[0] in some and e.correct[0] not in some]
    found = cd.explain(model, replace(task, examples=tuple(chosen)), cd.Circuit.full(model.graph))
    card = found.cards["a3.h2"]
    assert len(chosen) > 8 and float(card.direct) == pytest.approx(3, abs=0.01) and card.roles == {}
    suppressed = {name for lens in card.lens for name, value in lens.suppressed if value < -2.9}
    assert suppressed == set(map(str, some))


def test_s_inhibition_acts_through_the_models_movers_not_only_the_circuits() -> None:
    problem = PLANTED["ioi"]()
    alone = cd.Circuit.from_nodes(problem.model.graph, ["a2.h1"])
    for found in (
        cd.explain(problem.model, problem.task, alone),
        cd.explain(problem.model, problem.task, problem.truth, nodes=["a2.h1"]),
    ):
        assert dict(found.roles) == {"S-inhibition": ("a2.h1",)} and list(found.cards) == ["a2.h1"]
        assert "into a4.h1 costs" in " ".join(found.cards["a2.h1"].evidence)


def test_a_head_that_finds_the_answer_at_end_is_no_mover() -> None:
    """It looks at END, where the name mover has left the name, and writes half as much again."""

    def add(program: Program) -> None:
        program.n_layers = 6
        moved, match = program.heads[4, 1].out, {"match": lambda q, k: k in (q, programs.BOS)}
        written = program.answer[moved]  # 12 for half of the attention
        head(program, "a5.h1", match, {moved: torch.eye(moved.size)}, 0.5 * written)

    model, task = built(add)
    found = cd.explain(model, task, cd.Circuit.full(model.graph))
    assert dict(found.roles) == known_heads(PLANTED["ioi"]())
    card = found.cards["a5.h1"]
    assert float(card.direct) == pytest.approx(1.5, abs=0.05)
    assert card.attention["END", "END"] == pytest.approx(0.5, abs=0.01)


def test_a_head_with_two_roles_has_both(monkeypatch: pytest.MonkeyPatch) -> None:
    of = PatternScores.of
    monkeypatch.setattr(
        PatternScores,
        "of",
        lambda self, head: of(self, head) | ({"induction": 0.75} if head == "a4.h1" else {}),
    )
    problem = PLANTED["ioi"]()
    found = cd.explain(problem.model, problem.task, problem.truth)
    card = found.cards["a4.h1"]
    assert (list(card.roles), card.role) == (["name mover", "induction"], "name mover")
    assert dict(found.roles) == known_heads(problem) | {"induction": ("a4.h1",)}
    assert card.roles["induction"] == (card.evidence[-1],) and "with 0.75 of the weight" in card.evidence[-1]
    told = str(found).splitlines()
    assert (
        "a4.h1: name mover" in told and told[told.index("a4.h1: induction") + 1].strip() == card.evidence[-1]
    )
    assert any(line.startswith("a4.h1  name mover, induction  ") for line in told)


def test_a_head_that_looks_at_equal_tokens_finds_copies() -> None:
    """Of the subject's two mentions S2 attends to both alike."""

    def add(program: Program) -> None:
        same: dict[str, Any] = {"match": lambda q, k: q == k, "value": {program.one: torch.ones(1, 1)}}
        program.attend("a0.h3", query=program.tokens, key=program.tokens, **same)

    model, task = built(add)
    found = cd.explain(model, task, cd.Circuit.full(model.graph))
    assert dict(found.roles) == known_heads(PLANTED["ioi"]()) | {"duplicate token": ("a0.h3",)}
    assert found.cards["a0.h3"].evidence == (
        "S2 gives 0.50 of its attention to S1, which has the same token.",
        "With another word at S1 it gives 0.00 there.",
    )


# ------------------------------------------------------------------ heads that ignore the token


def always_first() -> Any:
    """A GPT-2 of one layer whose head 0 attends to the first position, whatever stands there."""
    hf = random_model(tiny_config("gpt2", n_layer=1))
    attention, width = hf.transformer.h[0].attn, 32
    with torch.no_grad():
        hf.transformer.wpe.weight[0, 0] = 100.0  # the largest of the first position's numbers
        attention.c_attn.bias[0] = attention.c_attn.weight[0, width] = 20.0  # a query, and its key
    return cd.load_model(hf)


def repeating(length: int, second: int, count: int = 6) -> Task:
    """Prompts whose first token stands again at a position, which goes by `W2`."""
    clean = [[10 * row + at + 1 for at in range(length)] for row in range(count)]
    for prompt in clean:
        prompt[second] = prompt[0]
    corrupted = [[*prompt[:second], prompt[second] + 60, *prompt[second + 1 :]] for prompt in clean]
    return Task.from_tokens(
        clean=[[token % 101 for token in prompt] for prompt in clean],
        corrupted=[[token % 101 for token in prompt] for prompt in corrupted],
        correct=[90] * count,
        incorrect=[91] * count,
        positions={"W1": 0, "W2": second},
    )


def test_a_head_that_looks_at_a_place_whatever_stands_there_finds_no_copies(gpt2: Tiny) -> None:
    """One that always looks at the first token, and heads that look evenly at the three of a prompt."""
    model = always_first()
    cards = cd.explain(model, repeating(10, 8), cd.Circuit.full(model.graph)).cards
    assert cards["a0.h0"].attention["W2", "W1"] > 0.99
    assert "duplicate token" not in cards["a0.h0"].roles
    assert cards["a0.h0"].attended[0] == ("W1", pytest.approx(1, abs=0.01))
    cards = cd.explain(gpt2.model, repeating(3, 2), cd.Circuit.full(gpt2.model.graph)).cards
    assert any(cards[node].attention["W2", "W1"] > 0.3 for node in cards if node[0] == "a")
    assert not any("duplicate token" in card.roles for card in cards.values())


# ------------------------------------------------------------------ roles of toy,
# by intervening on another implementation


class Lab:
    """Interventions on TransformerBridge's hooks, measured as the loss of the logit difference."""

    def __init__(self, tiny: Tiny, task: Task) -> None:
        self.reference, self.graph, self.task = tiny.reference, tiny.model.graph, task
        self.batches = list(task.batches())
        self._known: dict[bytes, tuple[Tensor, Tensor]] = {}

    def _run(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The reference's logits and sources, computed once for the same prompts."""
        key = tokens.numpy().tobytes()
        if key not in self._known:
            self._known[key] = self.reference.run(tokens)
        return self._known[key]

    def damage(self, other: Mapping[int, list[int]], edges: list[str], at: str | None = None) -> float:
        """Of edges that carry what they do on other prompts (by row),
        everywhere or at one named position alone.
        """
        return float(np.mean(np.concatenate([self._each(batch, other, edges, at) for batch in self.batches])))

    def _each(
        self, batch: Batch, other: Mapping[int, list[int]], edges: list[str], at: str | None
    ) -> np.ndarray:
        rows = batch.rows.tolist()
        clean, written = self._run(batch.clean)
        carried = self._run(torch.tensor([other[row] for row in rows]))[1]
        if at is not None:
            alone = written.clone()
            for i, row in enumerate(rows):
                place = self.task.examples[row].positions[at]
                alone[:, i, place] = carried[:, i, place]
            carried = alone
        patched = self.reference.patched(batch.clean, carried, self.graph.mask(edges))
        lost = (clean - patched)[torch.arange(len(rows)), batch.position]
        examples = [self.task.examples[row] for row in rows]
        return np.array(
            [
                float(x[list(e.correct)].mean() - x[list(e.incorrect)].mean())
                for x, e in zip(lost, examples, strict=True)
            ]
        )

    def contrary(self, place: str) -> dict[int, list[int]]:
        """The clean prompts with the word that an example with other answers has at a
        position; as they are where there is none.
        """
        found = {}
        for row, example in enumerate(self.task.examples):
            others = [
                e
                for e in self.task.examples
                if e.correct[0] in example.incorrect or example.correct[0] in e.incorrect
            ]
            words = [e.clean[e.positions[place]] for e in others or self.task.examples]
            prompt = list(example.clean)
            prompt[example.positions[place]] = next(
                (word for word in words if word not in prompt), prompt[example.positions[place]]
            )
            found[row] = prompt
        return found

    def prompts(self, **words: str) -> dict[int, list[int]]:
        """The clean prompts with other tokens: `IO="new"` is a name that is
        new to the prompt, `S2="IO"` the one at IO.
        """
        found = {}
        for row, example in enumerate(self.task.examples):
            prompt = list(example.clean)
            names = [e.clean[e.positions["IO"]] for e in self.task.examples]
            new = next(name for name in names[row:] + names[:row] if name not in prompt)
            for place, word in words.items():
                prompt[example.positions[place]] = (
                    new if word == "new" else example.clean[example.positions[word]]
                )
            found[row] = prompt
        return found


@pytest.fixture(scope="module")
def toy(tinies: Callable[[str], Tiny]) -> Tiny:
    return tinies("toy")


@pytest.fixture(scope="module")
def ioi(toy: Tiny) -> tuple[Task, cd.Circuit, Explanation]:
    task = cd.load_task("ioi", toy.model)
    circuit = cd.acdc(toy.model, task, threshold=0.002)
    return task, circuit, cd.explain(toy.model, task, circuit)


def test_toys_ioi_roles_are_what_interventions_find(
    toy: Tiny, ioi: tuple[Task, cd.Circuit, Explanation]
) -> None:
    """For each head four questions; the one whose answer carries most of it is its role.

    name mover: does its edge to the logits alone carry another name at IO? S-inhibition:
        with the other name repeated, does what it
    writes at END into the movers' queries alone turn the answer round? duplicate token: with nothing
    repeated, does what it writes at S2 alone, where nothing else stands, do the damage? mover of IO: does
    another name at IO go through it into the movers' values?
    """
    task, circuit, explained = ioi
    assert task.held_out is not None
    lab = Lab(toy, task.held_out.select(range(24)))
    movers = [f"a2.h{head}" for head in range(4)]
    renamed, flipped, unrepeated = lab.prompts(IO="new"), lab.prompts(S2="IO"), lab.prompts(S1="new")
    heads = [node for node in circuit.nodes if node[0] == "a"]
    for node in heads:
        out = [edge for edge in toy.model.graph.edges if edge.startswith(f"{node}->")]

        def into(letter: str, out: list[str] = out) -> list[str]:
            return [
                edge for edge in out if edge.partition("->")[2] in [f"{mover}<{letter}>" for mover in movers]
            ]

        damage = {
            "name mover": lab.damage(renamed, [f"{node}->logits"]),
            "S-inhibition": lab.damage(flipped, into("q"), at="END"),
            "duplicate token": lab.damage(unrepeated, out, at="S2"),
            "mover of IO": lab.damage(renamed, into("v")),
        }
        best = max(damage, key=damage.__getitem__)
        rest = sorted(damage.values())[-2]
        assert damage[best] > 0.3 and rest < 0.35 * damage[best], (node, damage)
        assert explained.cards[node].role == best, (node, damage)
    assert set(explained.roles) == {"name mover", "S-inhibition", "duplicate token", "mover of IO"}


def test_a_quick_explanation_names_the_same_roles(
    toy: Tiny, ioi: tuple[Task, cd.Circuit, Explanation]
) -> None:
    task, circuit, explained = ioi
    quick = cd.explain(toy.model, task, circuit, effort="quick")
    assert quick.roles == explained.roles and quick.intervened == 24 and quick.unmeasured == ()
    for node, card in quick.cards.items():
        assert float(card.direct) == float(explained.cards[node].direct)  # what is seen is of all examples
        assert (
            card.effect.high - card.effect.low
            > explained.cards[node].effect.high - explained.cards[node].effect.low
        )


def test_a_head_after_all_movers_inhibits_none(
    toy: Tiny, ioi: tuple[Task, cd.Circuit, Explanation], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever END looks, a head of the last layer has no edge into a mover: nothing of
    it is cut, and the rest keep their roles.
    """
    task, _, explanation = ioi
    movers = explanation.roles["name mover"]
    graph, after = toy.model.graph, 1 + max(parsed(node).layer for node in movers)
    monkeypatch.setattr(roles, "ATTENDS", -1.0)
    found = cd.explain(
        toy.model, task, cd.Circuit.from_nodes(graph, [*movers, *graph.head_nodes(after)])
    ).roles
    assert set(movers) <= set(found["name mover"]) and not set(found.get("S-inhibition", ())) & set(
        graph.head_nodes(after)
    )


def test_toys_movers_carry_the_answer_and_its_inhibition_heads_turn_it_round(
    toy: Tiny, ioi: tuple[Task, cd.Circuit, Explanation]
) -> None:
    task, _, explained = ioi
    assert task.held_out is not None
    lab = Lab(toy, task.held_out.select(range(24)))
    movers, inhibition = explained.roles["name mover"], explained.roles["S-inhibition"]
    assert movers == ("a2.h0", "a2.h1", "a2.h2", "a2.h3") and inhibition == ("a1.h1", "a1.h3")
    full = np.mean([float(card.direct) for card in explained.cards.values()]) * len(explained.cards)
    # they name the other name
    assert lab.damage(lab.prompts(IO="new"), [f"{node}->logits" for node in movers]) > 0.9 * full
    queries = [f"{node}->{mover}<q>" for node in inhibition for mover in movers]
    assert lab.damage(lab.prompts(S2="IO"), queries, at="END") > 1.5 * full  # the answer is then the subject
    keys = [f"{source}->a0.h0<k>" for source in ("input",)]
    # the match of S2 with S1 is what tells
    assert lab.damage(lab.prompts(S1="new"), keys, at="S1") > 0.8 * full


def test_the_evidences_figures_are_those_of_another_implementation(
    toy: Tiny, ioi: tuple[Task, cd.Circuit, Explanation]
) -> None:
    task, _, explained = ioi
    held = task.held_out
    assert held is not None
    lab, edges = Lab(toy, held), toy.model.graph.edges
    corrupted = {row: list(example.corrupted) for row, example in enumerate(held.examples)}
    looks = np.zeros((4, 4))
    for example in held.examples:
        weights = bridge_attention(toy.reference, torch.tensor([example.clean]))[:, 0]
        looks += weights[:, :, example.position, example.positions["S2"]].numpy() / len(held)

    def figures(node: str, begin: str) -> list[float]:
        """The numbers in a node's sentence, names apart."""
        (sentence,) = [sentence for sentence in explained.cards[node].evidence if sentence.startswith(begin)]
        return [float(found) for found in re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?", sentence.replace("%", ""))]

    def whole(node: str) -> float:
        return lab.damage(corrupted, [edge for edge in edges if edge.startswith(f"{node}->")])

    alone = figures("a2.h0", "Ablating only its edge to the logits")
    assert (alone[0], alone[3]) == pytest.approx(
        (lab.damage(corrupted, ["a2.h0->logits"]), whole("a2.h0")), rel=0.01
    )
    written = figures("a2.h0", "It writes")
    card = explained.cards["a2.h0"]
    assert written[:3] == pytest.approx([float(card.direct), card.direct.low, card.direct.high], rel=0.01)
    assert written[3] == pytest.approx(100 * float(card.direct) / written[4], abs=0.6)
    assert figures("a1.h3", "END gives") == pytest.approx([looks[1, 3]], abs=0.006)
    through = figures("a1.h3", "Ablating only its edges into")
    queries = [f"a1.h3->a2.h{head}<q>" for head in range(4)]
    into = [f"{edge[:-3]}<{letter}>" for edge in queries for letter in "qkv"]
    expected = lab.damage(corrupted, into), whole("a1.h3"), lab.damage(corrupted, queries)
    assert (through[0], through[3], through[4]) == pytest.approx(expected, rel=0.01)
    other = other_word(held, "S1")
    assert other is not None
    keys = lab.damage(
        {row: list(e.corrupted) for row, e in enumerate(other.examples)}, ["input->a0.h0<k>"], at="S1"
    )
    matched = figures("a0.h0", "S2 repeats")
    assert (matched[0], matched[3]) == pytest.approx((keys, whole("a0.h0")), rel=0.01)


@pytest.mark.parametrize(
    ("name", "word", "movers"),
    [
        ("greater_than", "YY", ("a1.h0",)),
        ("subject_verb_agreement", "subject", ("a0.h3", "a2.h1", "a2.h3")),
        ("gendered_pronoun", "child", ("a0.h3", "a1.h0")),
        ("induction", "next", ("a0.h1", "a0.h2", "a0.h3")),
    ],
)
def test_toys_movers_of_a_word_move_that_word_and_no_other(
    toy: Tiny, name: str, word: str, movers: tuple[str, ...]
) -> None:
    """With another word there, what they write does the damage, through their values; with
    another word at another name it does not.
    """
    task = cd.load_task(name, toy.model)
    assert task.held_out is not None
    found = cd.explain(toy.model, task, cd.eap_ig(toy.model, task).top(120))
    assert set(movers) <= set(found.roles[f"mover of {word}"])
    if name == "induction":
        assert found.roles["mover"] == ("a2.h0", "a2.h1", "a2.h2", "a2.h3") and found.roles[
            "duplicate token"
        ] == ("a0.h0",)
    lab = Lab(toy, task.held_out.select(range(16)))
    names = [place for place, at in task.examples[0].positions.items() if at != task.examples[0].position]
    for node in movers:
        edges = [edge for edge in toy.model.graph.edges if edge.startswith(f"{node}->")]
        values = [edge for edge in toy.model.graph.edges if edge.endswith(f"->{node}<v>")]
        damage = {place: lab.damage(lab.contrary(place), edges) for place in names}
        assert damage[word] > 0.1 and all(
            each < 0.2 * damage[word] for place, each in damage.items() if place != word
        ), (node, damage)
        assert lab.damage(lab.contrary(word), values) > 0.3 * damage[word]
