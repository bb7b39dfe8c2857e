"""Parts of planted models: which neurons and positions matter, and by how much,
follows from the tables that the models were made of.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from functools import cache
from itertools import product
from random import Random

import numpy as np
import pytest
import torch

import circuitdiscovery as cd
from circuitdiscovery.benchmark.problems.compiler import Program
from circuitdiscovery.benchmark.problems.hard import harden
from circuitdiscovery.benchmark.problems.problem import Problem
from circuitdiscovery.benchmark.problems.programs import BOS, LOGIT, RECIPES, Row
from circuitdiscovery.engine.setup import Setup
from circuitdiscovery.graph.nodes import split_edge

SOFT = 0.01  # a wrong key has 5e-5 of the attention
METHODS: dict[str, Callable[..., cd.Scores]] = {
    "eap": cd.eap,
    "eap_ig": cd.eap_ig,
    "exact": lambda model, task, graph: cd.exact(model, task, graph=graph, metric="logit_diff"),
}


def assert_scores(scores: cd.Scores, expected: Mapping[str, float], within: float = SOFT) -> None:
    """Of all edges; what is not mentioned is 0."""
    assert set(expected) <= set(scores)
    off = {edge: (scores[edge], expected.get(edge, 0.0)) for edge in scores}
    assert not {edge: pair for edge, pair in off.items() if abs(pair[0] - pair[1]) > within}


def runs(
    problem: Problem, graph: cd.Graph, ablation: str = "resample"
) -> Callable[[cd.Circuit], torch.Tensor]:
    """Circuit -> [examples, vocabulary]."""
    ((batch, patched),) = Setup.of(problem.model, problem.task, graph, ablation=ablation).patched_runs()
    assert batch.rows.tolist() == list(range(len(problem.task)))
    return lambda circuit: patched.logits(circuit.mask)


def among_parts(graph: cd.Graph, truth: cd.Circuit, parts: Iterable[str]) -> cd.Circuit:
    """The edges of a circuit, those of nodes that are split for these parts alone."""
    kept = {*truth.nodes, *parts, "logits"}
    return cd.Circuit.from_edges(
        graph,
        [edge for edge in graph.edges if ends(edge) <= kept and whole_edge(edge) in truth],
    )


def ends(edge: str) -> set[str]:
    """The nodes of an edge."""
    return {end.partition("<")[0] for end in split_edge(edge)}


def whole_edge(edge: str) -> str:
    """Between nodes: `m0/n3->a1.h1<v>` is one of `m0->a1.h1<v>`."""
    source, receiver = split_edge(edge)
    return f"{source.partition('/')[0]}->{receiver.partition('/')[0]}"


# ------------------------------------------------------------------ IOI: a neuron per name

PLACES = {"first": 2, "second": 4, "subject": 8}  # of names, and of no other words
NEURON = {8 + k: k for k in range(16)}  # token of a name -> what reads it, as the program's table has it
ANSWERS, REPEATED, OTHERS = range(8, 13), range(13, 18), range(18, 21)  # of 16 names, three are in no prompt
READERS = {"first": "a4.h1<v>", "second": "a1.h1<v>", "subject": "a2.h1<v>"}  # who reads the names of a place


def ioi_row(rng: Random) -> Row:
    """Other words differ too: a node that reads them, or a wrong place, would show."""
    answer, repeated = rng.choice(ANSWERS), rng.choice(REPEATED)
    pair = rng.sample([answer, repeated], 2)
    prompts = [[BOS, *rng.choices(range(1, 8), k=11)] for _ in range(2)]
    for prompt, names in zip(prompts, ([*pair, repeated], rng.sample(OTHERS, 3)), strict=True):
        for place, name in zip(PLACES.values(), names, strict=True):
            prompt[place] = name
    return prompts[0], prompts[1], [answer], [repeated]


@cache
def ioi(form: str = "") -> Problem:
    easy = replace(RECIPES["ioi"], row=ioi_row).problem("ioi", examples=24)
    return harden(easy, layernorm=form == "layernorm") if form else easy


def share(task: cd.Task, holds: Callable[[cd.Example, Mapping[str, int]], float]) -> float:
    """The mean over a task's prompts; they are given with the names of their places."""
    return float(
        np.mean([holds(each, {at: each.clean[i] for at, i in PLACES.items()}) for each in task.examples])
    )


def adds(example: cd.Example, name: int) -> int:
    """What one more of a name's logit does to correct less incorrect."""
    return (name == example.correct[0]) - (name == example.incorrect[0])


def damage_at(task: cd.Task, place: str, name: int | None = None) -> float:
    """Of exchanging a name, or all, in one place: the logits are the names of the first two
    places less that of the third, and those of the other prompt are neither correct nor incorrect."""
    sign = -LOGIT if place == "subject" else LOGIT
    return sign * share(task, lambda each, at: adds(each, at[place]) * (name in (None, at[place])))


def test_the_table_of_names() -> None:
    program = RECIPES["ioi"].build()
    reads = program.mlps[0].reads[program.tokens]
    assert {int(reads[k].argmax()): k for k in range(len(reads))} == NEURON
    assert torch.equal(program.mlps[0].writes, torch.eye(len(NEURON)))


@pytest.mark.parametrize("method", ["eap", "eap_ig", "exact"])
@pytest.mark.parametrize(("form", "within"), [("", SOFT), ("plain", 0.05), ("layernorm", 0.15)])
def test_neurons_are_those_of_the_answers(form: str, within: float, method: str) -> None:
    """Chosen of all MLPs, among the noise of the hard forms too. A repeated name's neuron is not one of
    them: what it adds at the name's first place is taken off at the second."""
    one = ioi(form)
    assert one.task.held_out is not None
    expected = {
        f"m0/n{NEURON[name]}": LOGIT * share(one.task.held_out, lambda each, _, n=name: n == each.correct[0])
        for name in ANSWERS
    }
    found = cd.neurons(one.model, one.task, top=len(expected), method=method)
    assert {name: float(damage) for name, damage in found.damages.items()} == pytest.approx(
        expected, abs=within
    )
    if not form:
        every = sum(block.d_mlp for block in one.model.blocks)
        damages = cd.neurons(one.model, one.task, top=every, method=method).damages
        assert all(abs(damages[name]) < SOFT for name in set(damages) - set(expected))
        assert all(damages[f"m0/n{k}"] == 0 for name, k in NEURON.items() if name > OTHERS[-1])


@pytest.mark.parametrize(
    ("method", "kept"), [("eap", NEURON.values()), ("eap_ig", NEURON.values()), ("exact", (0, 3, 6, 11, 15))]
)
def test_edges_of_the_neurons_of_names(method: str, kept: Collection[int]) -> None:
    """The rest holds the neurons that are no parts."""
    one = ioi()
    task = one.task.select(range(2)) if method == "exact" else one.task
    graph = cd.split(one.model, {"m0": list(kept)})
    expected: dict[str, float] = defaultdict(float, between_heads(task))
    for (name, k), (place, reader) in product(NEURON.items(), READERS.items()):
        part, damage = f"m0/n{k}" if k in kept else "m0/rest", damage_at(task, place, name)
        expected[f"{part}->{reader}"] += damage
        expected[f"input->{part}"] += damage
    assert_scores(METHODS[method](one.model, task, graph=graph), expected)


def between_heads(task: cd.Task) -> dict[str, float]:
    """a1.h1 carries the second name; a2.h1 less the third; a4.h1 all."""
    second, subject = damage_at(task, "second"), damage_at(task, "subject")
    return {
        "a1.h1->a2.h1<v>": second,
        "a2.h1->a4.h1<v>": second + subject,
        "a4.h1->logits": second + subject + damage_at(task, "first"),
    }


def test_the_circuit_of_the_neurons_of_names() -> None:
    """Those of the names that some prompt holds are enough. Without one of them, or without all edges
    into one reader, the logits of its names move: that of a repeated name does not, as above."""
    one = ioi()
    graph = cd.split(one.model, {"m0": "neurons"})
    parts = {name: f"m0/n{NEURON[name]}" for name in (*ANSWERS, *REPEATED, *OTHERS)}
    circuit = among_parts(graph, one.truth, parts.values())
    assert len(circuit) == 4 * len(parts) + 3
    logits = runs(one, graph)
    full = logits(cd.Circuit.full(graph))
    assert (logits(circuit) - full).abs().max() < one.bound

    def moves(names: Iterable[int], places: Iterable[str]) -> float:
        """The most that a logit moves without the edges of names into the readers of places."""
        gone = [f"{parts[name]}->{READERS[place]}" for name, place in product(names, places)]
        change, expected = logits(circuit - cd.Circuit.from_edges(graph, gone)) - full, torch.zeros_like(full)
        for (row, each), name, place in product(enumerate(one.task.examples), names, places):
            at, sign = PLACES[place], -LOGIT if place == "subject" else LOGIT
            expected[row, name] += sign * ((each.corrupted[at] == name) - (each.clean[at] == name))
        torch.testing.assert_close(change, expected, atol=SOFT, rtol=0)
        return float(change.abs().max())

    assert all(moves(parts, [place]) > LOGIT / 2 for place in PLACES)
    assert all((moves([name], PLACES) > LOGIT / 2) == (name not in REPEATED) for name in parts)
    assert all(moves([name], ["subject"]) > LOGIT / 2 for name in REPEATED)


# ------------------------------------------------------------------ look-ups: a neuron per cell of a table

DIGITS, PLUS = range(1, 7), 7  # i PLUS j is answered by the digit (i + j) mod 6, as 1 to 6


def total(i: int, j: int) -> int:
    return 1 + (i + j) % 6


def addition() -> tuple[Program, dict[tuple[int, int], int]]:
    """(BOS i PLUS j: a head fetches i to the end, where an MLP looks up the pair; cell -> neuron)."""
    program = Program(vocabulary=8, length=4, n_layers=2, n_heads=4)
    first = program.attend(
        "a0.h2",
        query=program.one,
        key=program.positions,
        match=lambda _, k: k == 1,
        value={program.tokens: torch.eye(8)},
    )
    inside = {(i, j): total(i, j) for i, j in product(DIGITS, DIGITS)}
    out = program.lookup("m1", (first, program.tokens), lambda i, j: inside.get((i, j)), 8)
    program.answer = {out: LOGIT * torch.eye(8)}
    reads = [program.mlps[1].reads[variable].argmax(1).tolist() for variable in (first, program.tokens)]
    return program, {cell: k for k, cell in enumerate(zip(*reads, strict=True))}


# four sums of six digits, each against another one of no digit in common
SUMS = [((1, 2), (3, 4)), ((2, 2), (5, 3)), ((4, 6), (1, 2)), ((5, 5), (6, 6))]


def sums() -> tuple[Problem, dict[tuple[int, int], int]]:
    program, neuron = addition()
    clean, other = ([[BOS, pair[side][0], PLUS, pair[side][1]] for pair in SUMS] for side in (0, 1))
    correct, incorrect = ([total(*pair[side]) for pair in SUMS] for side in (0, 1))
    model = program.compile("addition")
    task = cd.Task.from_tokens(clean=clean, corrupted=other, correct=correct, incorrect=incorrect)
    edges = ["input->a0.h2<v>", "a0.h2->m1", "input->m1", "m1->logits"]
    truth = cd.Circuit(model.graph, model.graph.mask(edges))
    return Problem("addition", model, task, truth, task, bound=1e-3), neuron


def cell_damages(neuron: Mapping[tuple[int, int], int]) -> dict[str, float]:
    """The cell of the clean sum adds to the correct answer, that of the other one, resampled, to the
    incorrect one; no other pair stands at the end."""
    found: dict[str, float] = defaultdict(float)
    for pair in SUMS:
        for cell in pair:
            found[f"m1/n{neuron[cell]}"] += LOGIT / len(SUMS)
    return found


@pytest.mark.parametrize("method", ["eap", "eap_ig", "exact"])
def test_neurons_are_the_cells_that_are_looked_up(method: str) -> None:
    one, neuron = sums()
    expected = cell_damages(neuron)
    assert len(neuron) == 36 and len(expected) == 7  # (1, 2) is in two pairs
    found = cd.neurons(one.model, one.task, top=36, method=method).damages
    assert next(iter(found)) == f"m1/n{neuron[1, 2]}" and set(list(found)[:7]) == set(expected)
    for name, damage in found.items():
        if name in expected:
            assert float(damage) == pytest.approx(expected[name], abs=SOFT)
        else:
            assert damage == 0  # though its pair may stand at another position


@pytest.mark.parametrize("method", METHODS)
def test_edges_of_the_cells_that_are_looked_up(method: str) -> None:
    one, neuron = sums()
    graph = cd.split(one.model, {"m1": "neurons"})
    scores, expected = METHODS[method](one.model, one.task, graph=graph), cell_damages(neuron)
    clean = {f"m1/n{neuron[cell]}" for cell, _ in SUMS}
    for edge in graph.edges:
        source, receiver = (node.partition("<")[0] for node in split_edge(edge))
        if source in expected:
            assert scores[edge] == pytest.approx(expected[source] * (receiver == "logits"), abs=SOFT)
        elif receiver in expected:
            # either digit switches a clean cell off, and none alone another one on; the line ends at both
            read = source in ("input", "a0.h2") and (receiver in clean or method == "eap_ig")
            assert scores[edge] > 0.1 if read else scores[edge] == 0
        elif "/" in source or "/" in receiver:
            assert scores[edge] == 0


def test_the_circuit_of_the_cells_that_are_looked_up() -> None:
    one, neuron = sums()
    graph = cd.split(one.model, {"m1": "neurons"})
    logits, used = runs(one, graph), list(cell_damages(neuron))
    full = logits(cd.Circuit.full(graph))
    circuit = among_parts(graph, one.truth, used)
    assert len(circuit) == 1 + 3 * len(used)
    assert (logits(circuit) - full).abs().max() < one.bound
    measured = cd.evaluate(one.model, one.task, circuit, effort="quick")
    assert float(measured.normalized or 0) == pytest.approx(1, abs=1e-3)
    for part in used:
        less = logits(circuit - cd.Circuit.from_edges(graph, [f"{part}->logits"]))
        moved = (less - full).abs().amax(1) > LOGIT - 0.1
        assert moved.tolist() == [part in {f"m1/n{neuron[cell]}" for cell in pair} for pair in SUMS]


def test_neurons_of_reverse() -> None:
    """The slot that is asked stands at the end, so that the cells (length, end) alone are read; their
    vectors say where to look, and without one the mover looks everywhere."""
    program = RECIPES["reverse"].build()
    lengths, places = program.mlps[1].reads.values()
    one = RECIPES["reverse"].problem("reverse", examples=24)
    task = replace(one.task, held_out=None)
    asked = [example.clean.index(1) for example in task.examples]
    used = {
        f"m1/n{k}": asked.count(int(length)) / len(asked)
        for k, (length, place) in enumerate(zip(lengths.argmax(1), places.argmax(1), strict=True))
        if int(length) in asked and int(place) == program.length - 1
    }
    found = cd.neurons(one.model, task, top=len(lengths), method="exact", ablation="zero").damages
    assert len(used) == len(set(asked)) == 4 and set(list(found)[:4]) == set(used)
    assert all(
        damage > LOGIT / 2 * used[name] if name in used else damage == 0 for name, damage in found.items()
    )
    graph = cd.split(one.model, {"m1": "neurons"})
    logits, full = runs(one, graph, "zero"), cd.Circuit.full(graph)
    unused = set(graph.parts("m1")) - set(used)
    circuit = cd.Circuit.from_edges(graph, [edge for edge in full.edges if not ends(edge) & unused])
    assert torch.equal(logits(circuit), logits(full))
    for name in used:
        less = circuit - cd.Circuit.from_edges(graph, [f"{name}->a3.h0<q>"])
        moved = (logits(less) - logits(full)).abs().amax(1) > 1
        length = int(lengths[int(name.partition("/n")[2])].argmax())
        assert moved.tolist() == [each == length for each in asked]


# ------------------------------------------------------------------ gates and a detector


def gate_damages(name: str, _: cd.Task) -> dict[str, float]:
    """Both inputs are on, on the other prompt both off: relu of the table, and what it writes."""
    gate = RECIPES[name].build().mlps[1]
    on = torch.relu(sum(matrix.sum(1) for matrix in gate.reads.values()) + gate.bias)
    change = (on - torch.relu(gate.bias)) * gate.writes[0]
    return {f"m1/n{k}": float(2 * LOGIT * each) for k, each in enumerate(change)}


def detector_damages(_: str, task: cd.Task) -> dict[str, float]:
    """The logit of k at a count of c is k c - k^2 / 2."""
    return {"m0/n0": float(np.mean([(e.correct[0] - e.incorrect[0]) ** 2 for e in task.examples]))}


@pytest.mark.parametrize("form", ["", "-hard"])
@pytest.mark.parametrize("method", ["eap", "eap_ig", "exact"])
@pytest.mark.parametrize(
    ("name", "damages", "count"),
    [("and", gate_damages, 1), ("or", gate_damages, 2), ("xproportion", detector_damages, 1)],
)
def test_neurons_of_gates_and_of_a_detector(
    name: str,
    damages: Callable[[str, cd.Task], dict[str, float]],
    count: int,
    method: str,
    form: str,
) -> None:
    """Of the AND's two, one writes nothing."""
    one = RECIPES[name].problem(name, examples=24)
    one = harden(one, layernorm=False) if form else one
    task = replace(one.task, held_out=None)
    expected = {part: damage for part, damage in damages(name, task).items() if damage}
    assert len(expected) == count
    found = cd.neurons(one.model, task, top=count, method=method).damages
    assert {part: float(damage) for part, damage in found.items()} == pytest.approx(expected, rel=0.05)


# ------------------------------------------------------------------ positions


@pytest.mark.parametrize("method", ["eap", "eap_ig"])
def test_places_of_names(method: str) -> None:
    """Whatever a node writes elsewhere, nothing reads."""
    one = ioi()
    heads = {"a1.h1": PLACES["subject"], "a2.h1": 11, "a4.h1": 11}
    graph = cd.split(one.model, dict.fromkeys(("input", "m0", *heads), "all"), task=one.task)
    expected = {f"m0/@{at}->{READERS[place]}": damage_at(one.task, place) for place, at in PLACES.items()}
    expected |= {f"input/@{at}->m0": damage_at(one.task, place) for place, at in PLACES.items()}
    for edge, damage in between_heads(one.task).items():
        source, receiver = split_edge(edge)
        expected[f"{source}/@{heads[source]}->{receiver}"] = damage
    assert_scores(METHODS[method](one.model, one.task, graph=graph), expected)


@pytest.mark.parametrize("method", ["eap", "eap_ig"])
def test_named_places_of_names(method: str) -> None:
    """IO and S1 change places from prompt to prompt: what each one adds is the same in either place."""
    one = ioi()
    graph = cd.split(one.model, dict.fromkeys(("input", "m0", "a1.h1"), "positions"), task=one.task)
    assert graph.parts("m0") == ("m0/@IO", "m0/@S1", "m0/@S2", "m0/@END", "m0/rest")
    first = share(one.task, lambda each, at: at["first"] == each.correct[0])
    expected = {"input/@IO->m0": LOGIT, "input/@S1->m0": -LOGIT, "input/@S2->m0": LOGIT}
    expected |= {
        "m0/@IO->a4.h1<v>": first * LOGIT,
        "m0/@IO->a1.h1<v>": (1 - first) * LOGIT,
        "m0/@S1->a4.h1<v>": (first - 1) * LOGIT,
        "m0/@S1->a1.h1<v>": -first * LOGIT,
        "m0/@S2->a2.h1<v>": LOGIT,
    }
    heads = between_heads(one.task)
    expected["a1.h1/@S2->a2.h1<v>"] = heads.pop("a1.h1->a2.h1<v>")
    scores = METHODS[method](one.model, one.task, graph=graph)
    assert 0 < first < 1
    assert_scores(scores, expected | heads)


@pytest.mark.parametrize("form", ["plain", "layernorm"])
def test_places_of_names_among_noise(form: str) -> None:
    """The scores that are not of the construction stay below the bound of what the noise does."""
    one = ioi(form)
    graph = cd.split(one.model, dict.fromkeys(("input", "m0", "a1.h1"), "positions"), task=one.task)
    scores, easy = cd.eap(one.model, one.task, graph=graph), cd.eap(ioi().model, one.task, graph=graph)
    assert_scores(scores, {edge: easy[edge] for edge in easy}, within=one.bound)


def test_places_of_a_gate() -> None:
    """Each head fetches the switch of one place to the end, and the AND needs both."""
    one = RECIPES["and"].problem("and", examples=8)
    graph = cd.split(one.model, dict.fromkeys(("input", "a0.h1", "a0.h3", "m1"), "all"), task=one.task)
    edges = "input/@1->a0.h1<v>", "input/@2->a0.h3<v>", "a0.h1/@3->m1", "a0.h3/@3->m1", "m1/@3->logits"
    assert_scores(METHODS["exact"](one.model, one.task, graph), dict.fromkeys(edges, 2 * LOGIT), 0.05)


def test_places_of_induction() -> None:
    """After the last letter's first mention (previous) stands the answer (next). There the first head
    writes the letter before, which the query meets; the answer is the value that is read."""
    one = RECIPES["induction"].problem("induction", examples=8)
    spans = dict.fromkeys(("input", "a0.h2"), "positions")
    graph = cd.split(one.model, spans | {"a1.h1": {"end": [-1]}}, task=one.task)
    edges = {
        "input/@previous->a0.h2<v>",
        "a0.h2/@next->a1.h1<k>",
        "input/@END->a1.h1<q>",
        "input/@next->a1.h1<v>",
        "a1.h1/@end->logits",
    }
    scores = METHODS["exact"](one.model, one.task, graph)
    assert {edge for edge in scores if abs(scores[edge]) > SOFT} == edges
    assert min(scores[edge] for edge in edges) > LOGIT / 2
    logits, circuit = runs(one, graph), cd.Circuit.from_edges(graph, edges)
    full = logits(cd.Circuit.full(graph))
    assert (logits(circuit) - full).abs().max() < SOFT
    for edge in edges:
        assert ((logits(circuit - cd.Circuit.from_edges(graph, [edge])) - full).abs().amax(1) > 1).all()
