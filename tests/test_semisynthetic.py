"""The semi-synthetic models: their prescribed edges do the work, no other edge does
any, and their nodes hold the variables.

Circuits run on the package's own forward, which other tests hold against TransformerBridge; interchange
accuracy is measured with hooks on Hugging Face's model. Neither knows the forward that the models were
trained with.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import circuitdiscovery as cd
from circuitdiscovery.benchmark.problems import semisynthetic
from circuitdiscovery.benchmark.problems.problem import Problem
from circuitdiscovery.benchmark.problems.semisynthetic import CAUSAL_MODELS, NAMES, CausalModel
from circuitdiscovery.model.load import bundled_models

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
from train_semisynthetic import SEED, card  # noqa: E402  # pyright: ignore[reportMissingImports]

EXAMPLES = 256
D_HEAD = 16


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    """Each of them in turn."""
    return request.param


@pytest.fixture(scope="module")
def problem(name: str) -> Problem:
    """With prompts of a seed that training did not measure on."""
    return semisynthetic.problem(name, examples=EXAMPLES, seed=17)


@pytest.fixture(scope="module")
def causal(name: str) -> CausalModel:
    return CAUSAL_MODELS[name]


@pytest.fixture(scope="module")
def full(problem: Problem) -> Tensor:
    """The whole model's logits [examples, vocabulary]."""
    return cd.run_circuit(problem.model, problem.task, cd.Circuit.full(problem.truth.graph))


def prompts(task: Any) -> tuple[Tensor, Tensor]:
    """Clean and corrupted, [examples, T]."""
    return torch.tensor([e.clean for e in task.examples]), torch.tensor([e.corrupted for e in task.examples])


def correct(task: Any) -> Tensor:
    """[examples]."""
    return torch.tensor([answer for example in task.examples for answer in example.correct])


def accuracy(logits: Tensor, task: Any) -> float:
    return agreement(logits.argmax(1), correct(task))


def agreement(a: Tensor, b: Tensor) -> float:
    return (a == b).float().mean().item()


# ------------------------------------------------------------------ the circuit


def test_the_model_does_the_task(problem: Problem, full: Tensor) -> None:
    assert accuracy(full, problem.task) >= 0.99
    held_out = problem.task.held_out
    assert held_out is not None
    assert (
        accuracy(cd.run_circuit(problem.model, held_out, cd.Circuit.full(problem.truth.graph)), held_out)
        >= 0.99
    )


def test_the_true_edges_do_it_alone(problem: Problem, causal: CausalModel, full: Tensor) -> None:
    alone = cd.run_circuit(problem.model, problem.task, problem.truth)
    assert agreement(alone.argmax(1), full.argmax(1)) >= 0.98
    assert problem.truth.edges == problem.truth.graph.names(problem.truth.graph.mask(causal.edges))
    assert problem.truth.pruned() == problem.truth


def test_every_true_edge_is_needed(problem: Problem) -> None:
    graph = problem.truth.graph
    for edge in problem.truth.edges:
        gone = cd.Circuit.from_edges(graph, [edge])
        for rest in (problem.truth - gone, cd.Circuit.full(graph) - gone):
            assert accuracy(cd.run_circuit(problem.model, problem.task, rest), problem.task) <= 0.8, edge


def test_no_other_edge_matters(problem: Problem, full: Tensor) -> None:
    """Nor does any set of them: half of them at random, all that enter or
    leave one node, and in denoising all of them.
    """
    graph, rng = problem.truth.graph, np.random.default_rng(0)
    masks = [
        graph.allowed & (problem.truth.mask | (rng.random(graph.allowed.shape) < 0.5)) for _ in range(10)
    ]
    masks += [
        graph.allowed & (problem.truth.mask | (np.arange(len(graph.sources)) != row)[:, None])
        for row in range(len(graph.sources))
    ]
    for mask in masks:
        logits = cd.run_circuit(problem.model, problem.task, cd.Circuit(graph, mask))
        assert agreement(logits.argmax(1), full.argmax(1)) >= 0.98
    restored = cd.run_circuit(problem.model, problem.task, problem.truth, direction="denoising")
    assert accuracy(restored, problem.task) >= 0.98


def test_the_bound_tells_the_truth_from_less(problem: Problem) -> None:
    graph, probe = problem.truth.graph, problem.probe
    whole = cd.run_circuit(problem.model, probe, cd.Circuit.full(graph))

    def moved(circuit: cd.Circuit) -> Tensor:  # [examples]
        return (cd.run_circuit(problem.model, probe, circuit) - whole).abs().amax(1)

    assert moved(problem.truth).max() <= problem.bound
    for edge in problem.truth.edges:
        assert moved(problem.truth - cd.Circuit.from_edges(graph, [edge])).quantile(0.5) > problem.bound, edge


# ------------------------------------------------------------------ the
# variables, on Hugging Face's own forward


@pytest.fixture(scope="module")
def network(name: str) -> Any:
    from transformers import GPT2LMHeadModel

    network: Any = GPT2LMHeadModel.from_pretrained(semisynthetic.folder(name))
    return network.eval()


@contextmanager
def output_of(network: Any, node: str, put: Tensor | None, seen: list[Tensor]) -> Iterator[None]:
    """Inside, what an MLP writes or what a head hands to c_proj goes to `seen`, and
    is replaced by `put` where there is one.
    """
    layer, head = re.fullmatch(r"[am](\d+)(?:\.h(\d+))?", node).groups()  # pyright: ignore[reportOptionalMemberAccess]
    block = network.transformer.h[int(layer)]
    at = slice(None) if head is None else slice(int(head) * D_HEAD, (int(head) + 1) * D_HEAD)

    def swap(x: Tensor) -> Tensor:
        seen.append(x[..., at].clone())
        x = x.clone()
        x[..., at] = x[..., at] if put is None else put
        return x

    if head is None:
        handle = block.mlp.register_forward_hook(lambda module, inputs, output: swap(output))
    else:
        handle = block.attn.c_proj.register_forward_pre_hook(lambda module, inputs: (swap(inputs[0]),))
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def interchanged(network: Any, node: str, base: Tensor, source: Tensor) -> Tensor:
    """The answers [n] to the base prompts with a node's output from the source prompts."""
    seen: list[Tensor] = []
    with output_of(network, node, None, seen):
        network(source)
    with output_of(network, node, seen[0], []):
        return network(base).logits[:, -1].argmax(1)


def test_the_nodes_hold_the_variables(problem: Problem, causal: CausalModel, network: Any) -> None:
    base, source = prompts(problem.task)
    for variable, node in causal.variables.items():
        moved = torch.tensor([edge.startswith(f"{node}->") for edge in causal.edges]).expand(len(base), -1)
        assert moved.any()
        found = interchanged(network, node, base, source)
        assert agreement(found, causal.answers(base, source, moved)) >= 0.97, variable
        assert agreement(found, causal.answers(base)) <= 0.8, variable  # or nothing was interchanged


def test_the_other_nodes_hold_nothing(problem: Problem, causal: CausalModel, network: Any) -> None:
    base, source = prompts(problem.task)
    others = set(problem.truth.graph.sources) - {"input", *causal.variables.values()}
    for node in sorted(others):
        assert agreement(interchanged(network, node, base, source), causal.answers(base)) >= 0.98, node


# ------------------------------------------------------------------ the causal models


def moved_edges(causal: CausalModel, *edges: str) -> Tensor:
    return torch.tensor([[edge in edges for edge in causal.edges]])


def test_induction_by_hand() -> None:
    causal = CAUSAL_MODELS["induction"]
    base, source = (
        torch.tensor([[0, 1, 5, 2, 6, 3, 7, 4, 8, 2]]),
        torch.tensor([[0, 4, 9, 3, 10, 2, 11, 1, 12, 1]]),
    )
    answer = partial(causal.answers, base, source)
    assert causal.answers(base) == 6 and causal.answers(source) == 12
    assert answer(moved_edges(causal, "input->a1.h1<q>")) == 5  # asks for 1
    # 2 stands third
    assert (
        answer(moved_edges(causal, "input->a0.h2<v>")) == answer(moved_edges(causal, "a0.h2->a1.h1<k>")) == 7
    )
    assert answer(moved_edges(causal, "input->a1.h1<v>")) == 10  # second of the source's values
    assert answer(moved_edges(causal, "input->a1.h1<v>", "input->a0.h2<v>")) == 11
    assert answer(moved_edges(causal, "a1.h1->logits")) == answer(moved_edges(causal, *causal.edges)) == 12


def test_fraction_by_hand() -> None:
    causal = CAUSAL_MODELS["fraction"]
    base, source = torch.tensor([[0, 1, 5, 12, 4, 6, 7, 8]]), torch.tensor([[0, 1, 2, 3, 4, 4, 4, 4]])
    assert causal.answers(base) == 14 and causal.answers(source) == 16  # 2 and 7 marked
    assert all(causal.answers(base, source, moved_edges(causal, edge)) == 16 for edge in causal.edges)


def test_gate_by_hand() -> None:
    causal = CAUSAL_MODELS["gate"]
    base, source = torch.tensor([[0, 9, 1, 9, 9, 2, 9, 9]]), torch.tensor([[0, 8, 4, 8, 8, 5, 8, 8]])
    assert causal.answers(base) == 16 and causal.answers(source) == 14  # 1 ^ 2 and 0 ^ 1
    for edge, told in zip(causal.edges, (15, 13, 15, 13, 14), strict=True):  # 0 ^ 2 or 1 ^ 1
        assert causal.answers(base, source, moved_edges(causal, edge)) == told
    for variable, told in (("first symbol", 15), ("second symbol", 13), ("exclusive or", 14)):
        leaving = [edge for edge in causal.edges if edge.startswith(f"{causal.variables[variable]}->")]
        assert causal.answers(base, source, moved_edges(causal, *leaving)) == told


# ------------------------------------------------------------------ the problems


def test_the_problem_is_whole(problem: Problem, name: str) -> None:
    assert problem.name == problem.model.name == problem.task.name == f"semisynthetic-{name}"
    assert problem.trained and problem.model.tokenizer is None
    assert problem.model.graph.n_heads * D_HEAD == problem.model.d_model
    assert problem.truth.info["model"] == {"name": problem.name, "digest": problem.model.digest}
    assert {node for nodes in problem.truth.roles.values() for node in nodes} == set(problem.truth.nodes) - {
        "input",
        "logits",
    }


def test_the_folder_loads_as_any_other(problem: Problem, name: str) -> None:
    folder = semisynthetic.folder(name)
    model = cd.load_model(folder)
    assert (model.name, model.digest) == (name, problem.model.digest)
    assert (folder / "model.safetensors").stat().st_size < 2**20
    assert name not in bundled_models()  # these are for measuring, not for use


def test_no_prompt_stands_twice(problem: Problem) -> None:
    held_out = problem.task.held_out
    assert held_out is not None and len(held_out) == len(problem.task) == EXAMPLES
    rows = [row for task in (problem.task, held_out) for side in prompts(task) for row in side.tolist()]
    assert len(set(map(tuple, rows))) == 4 * EXAMPLES


def test_answers_are_the_causal_models(problem: Problem, causal: CausalModel) -> None:
    clean, corrupted = prompts(problem.task)
    assert torch.equal(correct(problem.task), causal.answers(clean))
    incorrect = torch.tensor([answer for example in problem.task.examples for answer in example.incorrect])
    assert torch.equal(incorrect, causal.answers(corrupted))
    assert (clean[:, 0] == semisynthetic.BOS).all() and (clean[:, 1:] != semisynthetic.BOS).all()


def test_the_seed_decides_the_prompts(causal: CausalModel) -> None:
    first, again, other = (semisynthetic.draw_task(causal, examples=8, seed=seed) for seed in (3, 3, 4))
    assert first == again and first.examples != other.examples


def test_problems_gives_all() -> None:
    assert [p.name for p in semisynthetic.problems(examples=2)] == [f"semisynthetic-{name}" for name in NAMES]


def test_errors_say_what_is_valid(causal: CausalModel) -> None:
    with pytest.raises(
        cd.CircuitDiscoveryError, match="no semi-synthetic problem 'gat'; did you mean 'gate'"
    ):
        semisynthetic.problem("gat")
    for wrong in (0, 10_001, True, 2.0):
        with pytest.raises(
            cd.CircuitDiscoveryError, match="examples must be a whole number from 1 to 10,000"
        ):
            semisynthetic.draw_task(causal, examples=wrong, seed=0)  # type: ignore[arg-type]


def test_the_card_is_the_script_s_and_names_files_that_exist() -> None:
    """Whose measured rows are left out."""
    text = (semisynthetic.folder("") / "README.md").read_text("utf-8")
    head, figures = text.split("| model | accuracy |")
    rows = [line for line in figures.splitlines() if line.startswith(tuple(f"| {name} |" for name in NAMES))]
    assert len(rows) == len(NAMES) and card({}, seed=SEED) == text.replace("\n".join(rows) + "\n", "", 1)
    for path in re.findall(r"[\w/]+/\w+\.py", head):
        assert (ROOT / path).is_file()
