"""Semi-synthetic problems: small GPT-2s that were trained to a prescribed circuit.

Gupta et al. 2024 (InterpBench, arXiv 2407.14494) train a transformer to do what a causal model does, under
interchange interventions too (Geiger et al. 2022, arXiv 2112.00826), and so that resampling what the causal
model has no place for changes nothing (strict IIT). They intervene on nodes;
benchmarks/train_semisynthetic.py does on edges, so the prescribed edges are the circuit under resample
ablation. Here are the causal models, which training and tests share, and the problems.

1. A causal model has a variable per node of the prescribed circuit, and reads it along the prescribed edges.
2. A resampled edge carries the value that its variable has on another prompt;
   the causal model says what to answer then.
3. A task's corrupted prompts are draws independent of the clean ones: they
   differ in everything that the edges carry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Generator, Tensor

from circuitdiscovery.benchmark.problems.problem import Problem
from circuitdiscovery.circuit.circuit import Circuit
from circuitdiscovery.errors import CircuitDiscoveryError, unknown
from circuitdiscovery.files.disk import data_folder
from circuitdiscovery.model.load import load_model
from circuitdiscovery.model.model import Model
from circuitdiscovery.task.task import Task

BOS = 0
VOCABULARY = 17  # the same for all: every causal model uses tokens 1 to 16 for its symbols and its answers
MAX_EXAMPLES = 10_000  # of a problem; induction, the smallest, has a million different prompts


@dataclass(frozen=True)
class CausalModel:
    """A high-level causal model, and the edges of a network along which it is computed.

    Args:
        name: the folder of the network.
        n_layers: of the network, four heads and an MLP each.
        edges: the prescribed circuit; the last edge, and no other, enters `logits`.
        variables: what each node of the circuit computes: variable -> node.
        draw: (n, generator) -> n prompts, [n, T].
        compute: (base [n, T], source [n, T], moved [n, edges] bool) -> answers [n], where the edges that are
            True in `moved` carry what they carry on the source prompt; the edge into `logits` need not be
            minded.
        bound: of the trained network: the most that resampling all other edges moves a logit.
    """

    name: str
    n_layers: int
    edges: tuple[str, ...]
    variables: Mapping[str, str]
    draw: Callable[[int, Generator], Tensor]
    compute: Callable[[Tensor, Tensor, Tensor], Tensor]
    bound: float

    def answers(self, base: Tensor, source: Tensor | None = None, moved: Tensor | None = None) -> Tensor:
        """The answers [n] to prompts [n, T], of which some edges ([n, edges] bool)
        carry what they do on the source prompts.
        """
        source = base if source is None else source
        if moved is None:
            moved = torch.zeros(len(base), len(self.edges), dtype=torch.bool)
        # the edge into the logits carries all that the source prompt says
        base = torch.where(moved[:, -1:], source, base)
        return self.compute(base, source, moved)


def _reader(base: Tensor, source: Tensor, moved: Tensor) -> Callable[..., Tensor]:
    """The prompts [n, T] that a variable knows: the source's where one of
    the edges (by index) on its way is moved.
    """
    return lambda *edges: torch.where(moved[:, list(edges)].any(dim=1, keepdim=True), source, base)


def _with_bos(tokens: Tensor) -> Tensor:
    return torch.nn.functional.pad(tokens, (1, 0), value=BOS)


def _shuffled(n: int, size: int, generator: Generator) -> Tensor:
    """[n, size]: 0 to size - 1 in a random order per row."""
    return torch.rand(n, size, generator=generator).argsort(dim=1)


# ------------------------------------------------------------------ induction: what
# stood after the token that is asked for

# tokens 1 to 4; all of them stand in every prompt, so that whatever a moved query asks for has an answer
N_KEYS = 4
N_VALUES = 12  # tokens 5 to 16; the four of a prompt differ


def _draw_induction(n: int, generator: Generator) -> Tensor:
    """[n, 10]: BOS, four pairs of a key and a value, the key that is asked for."""
    keys = 1 + _shuffled(n, N_KEYS, generator)
    values = 1 + N_KEYS + _shuffled(n, N_VALUES, generator)[:, :N_KEYS]
    asked = torch.randint(1, 1 + N_KEYS, (n, 1), generator=generator)
    pairs = torch.stack([keys, values], dim=2).flatten(1)  # [n, 8]
    return _with_bos(torch.cat([pairs, asked], dim=1))


def _compute_induction(base: Tensor, source: Tensor, moved: Tensor) -> Tensor:
    read = _reader(base, source, moved)
    keys, asked, values = read(0, 1)[:, 1:-1:2], read(2)[:, -1:], read(3)[:, 2:-1:2]
    return (values * (keys == asked)).sum(dim=1)


# ------------------------------------------------------------------
# fraction: how many of the tokens are marked

N_MARKED, N_SYMBOLS, N_COUNTED = 4, 12, 7  # tokens 1 to 4 are marked, 5 to 12 are not, 13 to 16 answer
FIRST_ANSWER = 1 + N_SYMBOLS


def _draw_fraction(n: int, generator: Generator) -> Tensor:
    """[n, 8]: BOS and seven symbols, of which any number from 0 to 7 is marked, each as often."""
    count = torch.randint(N_COUNTED + 1, (n, 1), generator=generator)
    marked = torch.randint(1, 1 + N_MARKED, (n, N_COUNTED), generator=generator)
    others = torch.randint(1 + N_MARKED, FIRST_ANSWER, (n, N_COUNTED), generator=generator)
    return _with_bos(torch.where(_shuffled(n, N_COUNTED, generator) < count, marked, others))


def _compute_fraction(base: Tensor, source: Tensor, moved: Tensor) -> Tensor:
    symbols = _reader(base, source, moved)(0, 1, 2)[:, 1:]
    return FIRST_ANSWER + (symbols <= N_MARKED).sum(dim=1) // 2


# ------------------------------------------------------------------ gate:
# the exclusive or of two symbols' classes

N_CLASSES = 4  # of symbols 1 to 12: two bits
FIRST, SECOND = 2, 5  # the positions of the two symbols; all others are there to be ignored


def _draw_gate(n: int, generator: Generator) -> Tensor:
    """[n, 8]: BOS and seven random symbols."""
    return _with_bos(torch.randint(1, FIRST_ANSWER, (n, 7), generator=generator))


def _compute_gate(base: Tensor, source: Tensor, moved: Tensor) -> Tensor:
    read = _reader(base, source, moved)
    first, second = read(0, 2)[:, FIRST] % N_CLASSES, read(1, 3)[:, SECOND] % N_CLASSES
    return FIRST_ANSWER + (first ^ second)


# ------------------------------------------------------------------ all of them

CAUSAL_MODELS: Mapping[str, CausalModel] = {
    "induction": CausalModel(
        name="induction",
        n_layers=2,
        edges=("input->a0.h2<v>", "a0.h2->a1.h1<k>", "input->a1.h1<q>", "input->a1.h1<v>", "a1.h1->logits"),
        variables={"previous token": "a0.h2", "induction": "a1.h1"},
        draw=_draw_induction,
        compute=_compute_induction,
        bound=0.02,  # measured on 10,000 pairs of prompts: 0.011
    ),
    "fraction": CausalModel(
        name="fraction",
        n_layers=2,
        edges=("input->m0", "m0->a1.h3<v>", "a1.h3->m1", "m1->logits"),
        variables={"is marked": "m0", "share": "a1.h3", "class": "m1"},
        draw=_draw_fraction,
        compute=_compute_fraction,
        bound=0.2,  # 0.12
    ),
    "gate": CausalModel(
        name="gate",
        n_layers=3,
        edges=("input->a0.h1<v>", "input->a1.h2<v>", "a0.h1->m1", "a1.h2->m1", "m1->logits"),
        variables={"first symbol": "a0.h1", "second symbol": "a1.h2", "exclusive or": "m1"},
        draw=_draw_gate,
        compute=_compute_gate,
        bound=0.25,  # 0.17
    ),
}
NAMES = tuple(CAUSAL_MODELS)


def folder(name: str) -> Path:
    """Where a trained network lies."""
    return data_folder("models") / "semisynthetic" / name


def problems(*, examples: int = 64, seed: int = 0) -> tuple[Problem, ...]:
    """Every semi-synthetic problem; see `problem`."""
    return tuple(problem(name, examples=examples, seed=seed) for name in NAMES)


def problem(name: str, *, examples: int = 64, seed: int = 0) -> Problem:
    """A trained network, its task and its circuit.

    Args:
        name: one of NAMES.
        examples: of the task; as many more are held out.
        seed: of the prompts.

    Raises:
        CircuitDiscoveryError: another name, or a number of examples that is not from 1 to 10,000.

    >>> problem("gate", examples=8).truth.edges[-1]
    'm1->logits'
    """
    if name not in CAUSAL_MODELS:
        raise unknown("semi-synthetic problem", name, NAMES)
    causal, title = CAUSAL_MODELS[name], f"semisynthetic-{name}"
    task = replace(draw_task(causal, examples=examples, seed=seed), name=title)
    model = load_model(folder(name), name=title)
    return Problem(
        title,
        model,
        task,
        _truth(causal, model),
        probe=replace(task, held_out=None),
        bound=causal.bound,
        trained=True,
    )


def _truth(causal: CausalModel, model: Model) -> Circuit:
    roles = {role: [node] for role, node in causal.variables.items()}
    info = {"model": {"name": model.name, "digest": model.digest}, "task": model.name, "roles": roles}
    return Circuit(model.graph, model.graph.mask(causal.edges), info=info)


def draw_task(causal: CausalModel, *, examples: int, seed: int) -> Task:
    """Clean prompts with their answers and corrupted ones with theirs, as many held out;
    no prompt stands twice among all of them.
    """
    if type(examples) is not int or not 1 <= examples <= MAX_EXAMPLES:
        raise CircuitDiscoveryError(
            f"examples must be a whole number from 1 to {MAX_EXAMPLES:,}, not {examples!r}"
        )
    clean, corrupted = draw_pairs(causal, 2 * examples, torch.Generator().manual_seed(seed))

    def part(rows: slice) -> Task:
        pair = clean[rows], corrupted[rows]
        correct, incorrect = map(causal.answers, pair)
        return replace(
            Task.from_tokens(clean=pair[0], corrupted=pair[1], correct=correct, incorrect=incorrect),
            seed=seed,
        )

    return replace(part(slice(examples)), held_out=part(slice(examples, None)))


def draw_pairs(causal: CausalModel, count: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Clean and corrupted prompts, [count, T] each: independent draws, but their
    answers differ and no prompt comes twice.
    """
    seen: set[tuple[int, ...]] = set()
    pairs: list[tuple[list[int], list[int]]] = []
    while len(pairs) < count:
        clean, corrupted = causal.draw(count, generator), causal.draw(count, generator)
        differ = causal.answers(clean) != causal.answers(corrupted)
        for pair in zip(clean[differ].tolist(), corrupted[differ].tolist(), strict=True):
            new = set(map(tuple, pair))
            if not new & seen:
                seen |= new
                pairs.append(pair)
    kept = torch.tensor(pairs[:count])  # [count, 2, T]
    return kept[:, 0], kept[:, 1]
