"""The programs whose circuits are planted: what each computes, its
prompts, and its edges under resample ablation.

An edge that carries only what clean and corrupted prompts have in common
(positions, lengths, constants) is not part of the
circuit: resampling it changes nothing, by construction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random

import torch
from torch import Tensor

from circuitdiscovery.benchmark.problems.compiler import Program, Variable
from circuitdiscovery.benchmark.problems.problem import Problem
from circuitdiscovery.circuit.circuit import Circuit
from circuitdiscovery.model.model import Model
from circuitdiscovery.task.task import Task

Row = tuple[list[int], list[int], list[int], list[int]]  # clean, corrupted, correct, incorrect
N_HEADS = 4
LOGIT = 6.0  # of an answer over the others
BOS = 0


@dataclass(frozen=True)
class Recipe:
    """A program, its prompts, and what it is known to do.

    Args:
        build: makes the model.
        row: draws a clean and a corrupted prompt with their answers.
        edges: the circuit.
        roles: what its nodes do.
        named: a clean prompt's named positions, and what it is made of.
        probe: draws the rows on which every edge of the circuit matters alone; None: those of the task.
        why: what makes the problem hard for some methods.
    """

    build: Callable[[], Program]
    row: Callable[[Random], Row]
    edges: tuple[str, ...]
    roles: dict[str, list[str]] = field(default_factory=dict)
    probe: Callable[[Random], Row] | None = None
    why: str = ""
    named: Callable[[list[int]], tuple[dict[str, int], dict[str, int]]] = lambda _: ({}, {})

    def problem(self, name: str, *, examples: int = 64, seed: int = 0) -> Problem:
        """The program as a search problem: as many examples held out, and as many to prove the circuit on."""
        model = self.build().compile(name)
        rows = _distinct(self.row, 2 * examples, Random(f"{name} {seed}"))
        task = self._task(name, rows[:examples], seed)
        task = replace(task, held_out=self._task(name, rows[examples:], seed))
        probe = (
            task
            if self.probe is None
            else self._task(name, _distinct(self.probe, examples, Random(f"{name} probe {seed}")), seed)
        )
        return Problem(name, model, task, self.truth(model, name), probe, bound=1e-4, why=self.why)

    def _task(self, name: str, rows: list[Row], seed: int) -> Task:
        clean, corrupted, correct, incorrect = map(list, zip(*rows, strict=True))
        named = [self.named(prompt) for prompt in clean]
        positions, variables = (
            {key: [row[part][key] for row in named] for key in named[0][part]} for part in (0, 1)
        )
        task = Task.from_tokens(
            clean=clean,
            corrupted=corrupted,
            correct=correct,
            incorrect=incorrect,
            positions=positions,
            variables=variables,
        )
        return replace(task, name=name, seed=seed)

    def truth(self, model: Model, name: str) -> Circuit:
        """The circuit in a model of the program's shape."""
        return Circuit(model.graph, model.graph.mask(self.edges), info={"task": name, "roles": self.roles})


def _distinct(row: Callable[[Random], Row], count: int, rng: Random) -> list[Row]:
    """Rows whose clean prompts differ, as many as there are up to a count."""
    found: dict[tuple[int, ...], Row] = {}
    for _ in range(200 * count):
        one = row(rng)
        found.setdefault(tuple(one[0]), one)
        if len(found) == count:
            break
    return list(found.values())


def _copied(variable: Variable, times: float = 1.0) -> dict[Variable, Tensor]:
    return {variable: times * torch.eye(variable.size)}


# ------------------------------------------------------------------ induction
# (Elhage et al. 2021; Olsson et al. 2022)

_LETTERS, _LENGTH = 24, 10


def _induction() -> Program:
    program = Program(vocabulary=_LETTERS, length=_LENGTH, n_layers=2, n_heads=N_HEADS)
    before = program.attend(
        "a0.h2",
        query=program.positions,
        key=program.positions,
        match=lambda q, k: k == max(q - 1, 0),
        value=_copied(program.tokens),
    )
    found = program.attend(
        "a1.h1", query=program.tokens, key=before, match=lambda q, k: q == k, value=_copied(program.tokens)
    )
    program.answer = _copied(found, LOGIT)
    return program


def _repeating(rng: Random) -> tuple[list[int], int]:
    """BOS and different letters, the last of which repeats an earlier one; what followed that one."""
    letters = rng.sample(range(1, _LETTERS), _LENGTH - 2)
    at = rng.randrange(len(letters) - 1)
    return [BOS, *letters, letters[at]], letters[at + 1]


def _induction_named(prompt: list[int]) -> tuple[dict[str, int], dict[str, int]]:
    previous = prompt.index(prompt[-1])
    return {"previous": previous, "next": previous + 1}, {"token": prompt[-1], "answer": prompt[previous + 1]}


def _induction_row(rng: Random) -> Row:
    clean, correct = _repeating(rng)
    while True:
        corrupted, incorrect = _repeating(rng)
        if (
            incorrect not in clean
            and correct not in corrupted
            and clean[-1] not in corrupted
            and corrupted[-1] not in clean
        ):
            return clean, corrupted, [correct], [incorrect]


# ------------------------------------------------------------------ Tracr's
# reverse (Lindner et al. 2023, section 4)

_SEPARATOR, _SLOT, _FIRST, _WIDTH = 1, 2, 3, 12


def _reverse() -> Program:
    """BOS x1 ... xn SEPARATOR, then slots: the k-th slot is answered by the k-th letter from the end."""
    program = Program(vocabulary=16, length=_WIDTH, n_layers=4, n_heads=N_HEADS)
    length = program.attend(
        "a0.h1",
        query=program.one,
        key=program.tokens,
        match=lambda _, token: token == _SEPARATOR,
        value=_copied(program.positions),
    )
    opposite = program.lookup(
        "m1",
        (length, program.positions),
        lambda at, here: 2 * at - here if 0 < 2 * at - here < at else None,
        _WIDTH,
    )
    turned = program.attend(
        "a3.h0",
        query=opposite,
        key=program.positions,
        match=lambda q, k: q == k,
        value=_copied(program.tokens),
    )
    program.answer = _copied(turned, LOGIT)
    return program


def _reverse_row(rng: Random) -> Row:
    n = rng.randrange(6, 10)  # letters; the slots fill the rest, and the last one is asked
    at = n + 1  # of the separator
    asked = 2 * at - (_WIDTH - 1)  # where the answer stands
    while True:
        clean, corrupted = ([rng.randrange(_FIRST, 16) for _ in range(n)] for _ in range(2))
        if clean[asked - 1] != corrupted[asked - 1]:
            slots = [_SLOT] * (_WIDTH - at - 1)
            asking = [_SEPARATOR, *slots]
            return (
                [BOS, *clean, *asking],
                [BOS, *corrupted, *asking],
                [clean[asked - 1]],
                [corrupted[asked - 1]],
            )


# ------------------------------------------------------------------ Tracr's fraction of previous
# tokens (Lindner et al. 2023, section 4)

_X, _OTHERS, _COUNT, _PLACES = 1, range(2, 8), 8, 9  # the answer "k of them" is the token _COUNT + k


def _xproportion() -> Program:
    program = Program(vocabulary=_COUNT + _PLACES, length=_PLACES, n_layers=2, n_heads=N_HEADS)
    is_x = torch.zeros(1, program.vocabulary)
    is_x[0, _X] = 1
    marked = program.neurons("m0", reads={program.tokens: is_x}, bias=torch.zeros(1), writes=torch.ones(1, 1))
    share = program.attend(
        "a1.h3", query=program.one, key=program.one, match=lambda *_: True, value=_copied(marked)
    )
    k = torch.arange(_PLACES).float()[:, None]
    scale = torch.zeros(program.vocabulary, 1)
    scale[_COUNT:] = k * _PLACES  # the logit of k is (c^2 - (k - c)^2) / 2 at a count of c = share x places
    constant = torch.zeros(program.vocabulary, 1)
    constant[_COUNT:], constant[:_COUNT] = -k.square() / 2, -LOGIT
    program.answer = {share: scale, program.one: constant}
    return program


def _xproportion_row(rng: Random) -> Row:
    counts = rng.sample(range(_PLACES - 1), 2)
    rows = []
    for count in counts:
        letters = [_X] * count + [rng.choice(_OTHERS) for _ in range(_PLACES - 1 - count)]
        rng.shuffle(letters)
        rows.append([BOS, *letters])
    return rows[0], rows[1], [_COUNT + counts[0]], [_COUNT + counts[1]]


# ------------------------------------------------------------------ IOI with the seven
# edges of InterpBench (Gupta et al. 2024)

_NAMES, _FILLERS, _FIRST_NAME, _SECOND_NAME, _SUBJECT, _END = range(8, 24), range(1, 8), 2, 4, 8, 11


def _ioi() -> Program:
    """The names of the first two places, less that of the third: the one that is not repeated."""
    program = Program(vocabulary=24, length=_END + 1, n_layers=5, n_heads=N_HEADS)
    is_name = torch.zeros(len(_NAMES), program.vocabulary)
    is_name[torch.arange(len(_NAMES)), torch.tensor(_NAMES)] = 1
    names = program.neurons(
        "m0", reads={program.tokens: is_name}, bias=torch.zeros(len(_NAMES)), writes=torch.eye(len(_NAMES))
    )

    def looking(at: int, *keys: int) -> Callable[[int, int], bool]:
        return lambda q, k: k in keys if q == at else k == BOS  # elsewhere at BOS, where there is no name

    places = {"query": program.positions, "key": program.positions}
    second = program.attend("a1.h1", **places, match=looking(_SUBJECT, _SECOND_NAME), value=_copied(names))
    inhibition = program.attend(
        "a2.h1", **places, match=looking(_END, _SUBJECT), value=_copied(second) | _copied(names, -1.0)
    )
    mover = program.attend(
        "a4.h1", **places, match=looking(_END, _FIRST_NAME, _END), value=_copied(names) | _copied(inhibition)
    )
    # half of the attention is on each of its two keys
    program.answer = {mover: 2 * LOGIT * is_name.T}
    return program


def _ioi_named(prompt: list[int]) -> tuple[dict[str, int], dict[str, int]]:
    first = prompt[_FIRST_NAME] == prompt[_SUBJECT]
    name, subject = (_SECOND_NAME, _FIRST_NAME) if first else (_FIRST_NAME, _SECOND_NAME)
    return {"IO": name, "S1": subject, "S2": _SUBJECT}, {"IO": prompt[name], "S": prompt[subject]}


def _ioi_row(rng: Random) -> Row:
    name, subject, *others = rng.sample(_NAMES, 5)
    sentence = [BOS, *rng.choices(_FILLERS, k=_END)]
    pair = [name, subject] if rng.random() < 0.5 else [subject, name]
    clean, corrupted = ([*sentence] for _ in range(2))
    for at, one, other in zip((_FIRST_NAME, _SECOND_NAME, _SUBJECT), (*pair, subject), others, strict=True):
        clean[at], corrupted[at] = one, other
    return clean, corrupted, [name], [subject]


# ------------------------------------------------------------------ gates of two heads

# eight tokens that switch an input on, eight that switch it off
_ON, _OFF, _YES, _NO, _CHOICES = 1, 9, 17, 18, 8


def _gate(both: float, either: float, gain: float = 1.0) -> Program:
    """`either` relu(a + b) + `both` relu(a + b - 1) of `gain` times two inputs that a head each fetches."""
    program = Program(vocabulary=19, length=4, n_layers=2, n_heads=N_HEADS)
    on = torch.zeros(1, 19)
    on[0, _ON : _ON + _CHOICES] = 1
    inputs = [
        program.attend(
            node,
            query=program.one,
            key=program.positions,
            match=lambda _, k, place=place: k == place,
            value={program.tokens: on},
        )
        for node, place in (("a0.h1", 1), ("a0.h3", 2))
    ]
    gate = program.neurons(
        "m1",
        reads={variable: torch.full((2, 1), gain) for variable in inputs},
        bias=torch.tensor([0.0, -1.0]),
        writes=torch.tensor([[either, both]]),
    )
    scale, constant = torch.zeros(19, 1), torch.full((19, 1), -LOGIT)
    scale[_YES], scale[_NO], constant[_YES], constant[_NO] = LOGIT, -LOGIT, 0, LOGIT
    program.answer = {gate: scale, program.one: constant}
    return program


def _gate_rows(*switches: tuple[bool, bool]) -> Callable[[Random], Row]:
    """Clean prompts with these switches on, against prompts with both off."""

    def prompt(rng: Random, *on: bool) -> list[int]:
        return [
            BOS,
            *((_ON if each else _OFF) + rng.randrange(_CHOICES) for each in on),
            rng.randrange(_ON, _YES),
        ]

    def row(rng: Random) -> Row:
        return prompt(rng, *rng.choice(switches)), prompt(rng, False, False), [_YES], [_NO]

    return row


_GATE_EDGES = ("input->a0.h1<v>", "input->a0.h3<v>", "a0.h1->m1", "a0.h3->m1", "m1->logits")
_GATE_ROLES = {"input of the gate": ["a0.h1", "a0.h3"], "gate": ["m1"]}

RECIPES: dict[str, Recipe] = {
    "induction": Recipe(
        _induction,
        _induction_row,
        ("input->a0.h2<v>", "a0.h2->a1.h1<k>", "input->a1.h1<q>", "input->a1.h1<v>", "a1.h1->logits"),
        {"previous token": ["a0.h2"], "induction": ["a1.h1"]},
        why="query and key act through a saturated softmax: to first order they hardly matter",
        named=_induction_named,
    ),
    "reverse": Recipe(_reverse, _reverse_row, ("input->a3.h0<v>", "a3.h0->logits"), {"reverse": ["a3.h0"]}),
    "xproportion": Recipe(
        _xproportion,
        _xproportion_row,
        ("input->m0", "m0->a1.h3<v>", "a1.h3->logits"),
        {"is x": ["m0"], "average": ["a1.h3"]},
    ),
    "ioi": Recipe(
        _ioi,
        _ioi_row,
        (
            "input->m0",
            "m0->a1.h1<v>",
            "m0->a2.h1<v>",
            "m0->a4.h1<v>",
            "a1.h1->a2.h1<v>",
            "a2.h1->a4.h1<v>",
            "a4.h1->logits",
        ),
        {"second name": ["a1.h1"], "S-inhibition": ["a2.h1"], "name mover": ["a4.h1"], "names": ["m0"]},
        named=_ioi_named,
    ),
    "and": Recipe(
        lambda: _gate(both=1.0, either=0.0),
        _gate_rows((True, True)),
        _GATE_EDGES,
        _GATE_ROLES,
        why="an AND: restoring one input alone (denoising) does nothing",
    ),
    "or": Recipe(
        # a gain above 1: one input alone is enough, whatever its noise
        lambda: _gate(both=-1.0, either=1.0, gain=1.25),
        _gate_rows((True, True)),
        _GATE_EDGES,
        _GATE_ROLES,
        probe=_gate_rows((True, False), (False, True)),
        why="an OR: ablating one input alone (noising) does nothing, and the gradient where both are on is 0",
    ),
}
