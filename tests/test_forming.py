"""How a circuit forms over training, against `evaluate`, `explain` and what was done to the models."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from test_parts import network_of

import circuitdiscovery as cd
from circuitdiscovery.cli.commands import forming as forming_command
from circuitdiscovery.cli.main import cli
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.explanation.attention import Sights, observe
from circuitdiscovery.measure.estimates import Estimate
from circuitdiscovery.universality import Checkpoint, Forming, checkpoint_folders, checkpoints, training_run

ROLES = {
    "duplicate token": ["a0.h0"],
    "mover of IO": ["a0.h1", "a0.h2"],
    "S-inhibition": ["a1.h1", "a1.h3"],
    "name mover": ["a2.h0", "a2.h2"],
    "early": ["m0"],
}
NODES = [node for nodes in ROLES.values() for node in nodes]


@pytest.fixture(scope="module")
def task(toy: cd.Model) -> cd.Task:
    return cd.load_task("ioi", toy, examples=16)


@pytest.fixture(scope="module")
def circuit(toy: cd.Model) -> cd.Circuit:
    return cd.Circuit.from_nodes(toy.graph, NODES).with_roles(ROLES)


@pytest.fixture(scope="module")
def untrained(toy: cd.Model) -> cd.Model:
    """The architecture and the tokens of toy, with the weights of its first step."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    assert toy.source is not None and toy.source.path is not None
    config = GPT2Config.from_pretrained(toy.source.path)
    return cd.load_model((GPT2LMHeadModel(config), toy.tokenizer), name="untrained")


@pytest.fixture(scope="module")
def forming(toy: cd.Model, untrained: cd.Model, task: cd.Task, circuit: cd.Circuit) -> Forming:
    return checkpoints({500: toy, 0: untrained, 1000: toy}, circuit, task)


def same(a: Estimate, b: Estimate | float) -> None:
    np.testing.assert_allclose(float(a), float(b), atol=2e-5)
    if isinstance(b, Estimate):
        np.testing.assert_allclose((a.low, a.high), (b.low, b.high), atol=2e-4)


def test_the_last_checkpoint_is_what_evaluate_and_explain_measure(
    toy: cd.Model, task: cd.Task, circuit: cd.Circuit, forming: Forming
) -> None:
    last = forming.steps[-1]
    found = cd.evaluate(toy, task, circuit, effort="quick")
    for name in ("full", "circuit", "empty"):
        same(getattr(last, name), getattr(found, name))
    assert found.normalized is not None
    same(last.faithfulness, found.normalized)
    cards = cd.explain(toy, task, circuit, nodes=NODES).cards
    for role, strength in last.roles.items():
        for node in ROLES[role]:
            same(strength.direct[node], cards[node].direct)
            same(strength.effects[node], cards[node].effect)
    for node in ROLES["S-inhibition"]:
        same(last.roles["S-inhibition"].nodes[node], cards[node].attention["END", "S2"])
    for node in ROLES["name mover"]:
        same(last.roles["name mover"].nodes[node], cards[node].attention["END", "IO"])
    same(last.roles["duplicate token"].nodes["a0.h0"], cards["a0.h0"].scores["duplicate token"])
    same(last.roles["early"].nodes["m0"], cards["m0"].direct)
    mean = np.mean([cards[node].attention["END", "S2"] for node in ROLES["S-inhibition"]])
    same(last.roles["S-inhibition"].mean, float(mean))
    assert last.roles["S-inhibition"].mean.low < mean < last.roles["S-inhibition"].mean.high
    assert forming.strongest["S-inhibition"] == max(ROLES["S-inhibition"], key=lambda n: cards[n].effect)


def test_a_mover_of_a_word_looks_where_the_circuit_reads_it(
    toy: cd.Model, task: cd.Task, circuit: cd.Circuit, forming: Forming
) -> None:
    used = task.held_out
    assert used is not None
    sights = Sights(toy, used, circuit, ROLES["mover of IO"])
    for seen in observe(toy, used):
        sights.add(seen)
    for node in ROLES["mover of IO"]:
        looks = sights.looks(node, "IO")
        assert looks is not None and looks > 0.1
        same(forming.steps[-1].roles["mover of IO"].nodes[node], looks)


def test_a_constant_sequence_has_constant_figures(forming: Forming) -> None:
    _, first, second = forming.steps
    assert (first.step, second.step) == (500, 1000)
    assert replace(first, step=1000).to_dict() == second.to_dict()


def test_an_untrained_model_is_told_as_not_knowing(forming: Forming) -> None:
    first = forming.steps[0]
    assert (
        not first.knows
        and np.isnan(first.faithfulness)
        and (first.reason or "").startswith("F(M) - F(empty) = ")
    )
    assert forming.steps[1].knows and forming.known_from == 500
    row = str(forming).splitlines()[4]
    assert row.split()[0] == "0" and row.endswith("none")
    assert "from step 500 on" in str(forming) and "at 1 of 3 steps" in str(forming)


def test_a_model_that_prefers_the_wrong_answer_does_not_know(toy: cd.Model, circuit: cd.Circuit) -> None:
    """It differs from no edges, but it is worse."""
    task = cd.load_task("ioi", toy, examples=16)
    turned = tuple(replace(e, correct=e.incorrect, incorrect=e.correct) for e in task.examples)
    found = checkpoints([toy], circuit, cd.Task(task.name, turned))
    assert "worse than no edges" in (found.steps[0].reason or "") and np.isnan(found.steps[0].faithfulness)
    assert found.known_from is None and "not at the last step" in str(found)


def test_highest_scores_are_those_of_all_heads(toy: cd.Model, task: cd.Task, forming: Forming) -> None:
    heads = [node for node in toy.graph.sources if node.startswith("a")]
    cards = cd.explain(toy, task, cd.Circuit.from_nodes(toy.graph, heads), nodes=heads, effort="quick").cards
    for score, (head, value) in forming.steps[-1].highest.items():
        assert head == max(heads, key=lambda node: cards[node].scores[score])
        assert value == pytest.approx(max(card.scores[score] for card in cards.values()))


def test_roles_without_a_figure_have_the_direct_effect(toy: cd.Model, circuit: cd.Circuit) -> None:
    """Of a task without IO, and of an MLP, whatever the role is called."""
    task = cd.load_task("greater_than", toy, examples=4)
    roles = {"name mover": ["a2.h0"], "induction": ["m0", "a0.h0"], "mover of YY": ["a1.h0"], "S": ["a1.h0"]}
    found = checkpoints([toy], circuit.with_roles(roles), task).steps[0].roles
    assert {role: each.figure for role, each in found.items()} == {
        "name mover": "direct effect",
        "induction": "direct effect",
        "mover of YY": "attention from where it is read to YY",
        "S": "direct effect",
    }
    assert found["S"].nodes == found["S"].direct


def test_a_role_that_no_node_has_is_none(toy: cd.Model, task: cd.Task, circuit: cd.Circuit) -> None:
    found = checkpoints([toy], circuit.with_roles({"name mover": ["a2.h0"], "early": []}), task)
    assert set(found.steps[0].roles) == {"name mover"} == set(found.strongest)
    assert len(found.to_dataframe()) == 1 and "early" not in str(found)


def test_a_search_at_each_checkpoint(toy: cd.Model, untrained: cd.Model, task: cd.Task) -> None:
    circuit = cd.Circuit.from_nodes(toy.graph, ["a0.h0", "a1.h3", "a2.h0"])
    found = checkpoints({0: untrained, 1: toy}, circuit, task, search=True)
    edges = [set(cd.eap_ig(model, task).best(len(circuit)).edges) for model in (untrained, toy)]
    assert [set(each.found or ()) for each in found.steps] == edges
    jaccard = len(edges[0] & edges[1]) / len(edges[0] | edges[1])
    assert found.overlap == (pytest.approx(jaccard), 1.0) and "overlap" in str(found)
    rng, total = np.random.default_rng(0), found.edges_total
    drawn = [[set(rng.permutation(total)[: found.edges].tolist()) for _ in range(2)] for _ in range(2000)]
    by_chance = np.mean([len(a & b) / len(a | b) for a, b in drawn])
    assert found.chance == pytest.approx(by_chance, rel=0.2)


def test_known_and_faithful_from(forming: Forming) -> None:
    """The first step after the last checkpoint that is not."""

    def of(*given: tuple[str | None, float]) -> Forming:
        steps = tuple(
            replace(forming.steps[-1], step=10 * i, reason=reason, faithfulness=Estimate(value))
            for i, (reason, value) in enumerate(given)
        )
        return replace(forming, steps=steps)

    found = of((None, 0.95), ("it", np.nan), (None, 0.5), (None, 0.9), (None, 1.2))
    assert found.known_from == 20 and found.faithful_from == 30
    assert of((None, 0.95)).known_from == 0
    assert of((None, 0.95), ("it", np.nan)).faithful_from is None


def test_where_the_circuit_was_found(toy: cd.Model, untrained: cd.Model, task: cd.Task) -> None:
    found = cd.eap(toy, task).best(20)
    assert found.info["model"]["digest"] == toy.digest
    assert checkpoints({0: untrained, 7: toy}, found, task).own_step == 7
    assert checkpoints({0: untrained}, found, task).own_step is None


# ------------------------------------------------------------------ which models


def test_folders_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("step-1000", "step_250", "step0", "checkpoint-20000", "tmp-checkpoint-9", "steps", "step-x"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-5").write_text("a file")
    found = checkpoint_folders(tmp_path)
    assert [(step, path.name) for step, path in found.items()] == [
        (0, "step0"),
        (250, "step_250"),
        (1000, "step-1000"),
        (20000, "checkpoint-20000"),
    ]
    (tmp_path / "step-250").mkdir()
    with pytest.raises(CircuitDiscoveryError, match="two checkpoints of step 250"):
        checkpoint_folders(tmp_path)
    with pytest.raises(CircuitDiscoveryError, match="holds no checkpoints"):
        checkpoint_folders(tmp_path / "steps")
    with pytest.raises(CircuitDiscoveryError, match="no such folder"):
        checkpoint_folders(tmp_path / "absent")


def test_lists_are_numbered_by_names_that_all_end_in_a_step() -> None:
    sources = training_run.sources_of
    assert list(sources(["run/step-1000", "pythia-step250"]).items()) == [
        (250, "pythia-step250"),
        (1000, "run/step-1000"),
    ]
    assert list(sources(["run/step-1000", "run/final"])) == [0, 1]


def test_one_model_is_held_at_a_time(
    toy: cd.Model, task: cd.Task, circuit: cd.Circuit, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[weakref.ref[cd.Model]] = []

    def load(*_: Any, **__: Any) -> cd.Model:
        gc.collect()
        assert not [each for each in loaded if each() is not None]
        model = replace(toy)
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr(training_run, "load_model", load)
    checkpoints({0: "toy", 1: "toy"}, circuit, task)
    assert len(loaded) == 2


class Words(dict[str, int]):
    """A tokenizer's vocabulary."""

    def get_vocab(self) -> dict[str, int]:
        return self


def test_what_cannot_be_measured_is_one_line(
    toy: cd.Model, task: cd.Task, circuit: cd.Circuit, tmp_path: Path
) -> None:
    """A folder of another architecture is refused before the first model is measured."""
    other = network_of("gpt2")
    other.save_pretrained(tmp_path / "step-7")
    models = {0: toy, 7: tmp_path / "step-7", 9: (other, None)}
    with pytest.raises(CircuitDiscoveryError, match=r"^the checkpoint of step 7: .*not of step-7 \(3 layers"):
        checkpoints(models, circuit, task, progress=lambda *_: pytest.fail("was measured"))
    for absent in (tmp_path / "nope", str(tmp_path / "nope"), "nope", "runs/nope", tmp_path / "nope.gguf"):
        with pytest.raises(CircuitDiscoveryError, match=r"^the checkpoint of step 7: .*nope"):
            checkpoints({0: toy, 7: absent}, circuit, task, progress=lambda *_: pytest.fail("was measured"))
    renamed = replace(toy, tokenizer=Words({"a": 0}))
    with pytest.raises(CircuitDiscoveryError, match="step 2: toy has other tokens than that of step 0"):
        checkpoints({0: toy, 2: renamed}, circuit, task)
    for models, told in (
        ({}, "no checkpoint is given"),
        ({"x": toy}, "a step is a whole number"),
        (toy, "models must be a folder"),
    ):
        with pytest.raises(CircuitDiscoveryError, match=told):
            checkpoints(models, circuit, task)
    with pytest.raises(CircuitDiscoveryError, match="only heads and MLPs"):
        checkpoints([toy], circuit.with_roles({"embedding": ["input"]}), task)


# ------------------------------------------------------------------ what is shown


def test_saved_drawn_and_as_a_table(forming: Forming, tmp_path: Path) -> None:
    forming.save(tmp_path / "forming.json")
    loaded = Forming.load(tmp_path / "forming.json")
    assert loaded.to_dict() == forming.to_dict() and str(loaded) == str(forming)
    table = forming.to_dataframe()
    assert table["step"].tolist() == [0, 500, 1000] and table["knows"].tolist() == [False, True, True]
    strongest, last = forming.strongest["name mover"], forming.steps[-1]
    assert table[f"name mover, {strongest}"].iloc[-1] == last.roles["name mover"].nodes[strongest]
    assert np.isnan(table["faithfulness"].iloc[0])
    figure = forming.plot()
    metric, faithfulness, roles = figure.axes[:3]
    assert metric.lines[0].get_ydata().tolist() == [float(each.full) for each in forming.steps]  # pyright: ignore
    drawn = faithfulness.lines[0].get_ydata()
    np.testing.assert_array_equal(drawn, [float(each.faithfulness) for each in forming.steps])
    assert {f"{role} ({node})" for role, node in forming.strongest.items()} - {"early (m0)"} <= {
        str(line.get_label()) for line in roles.lines
    }


def test_the_command(toy: cd.Model, task: cd.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same as in Python; Ctrl-C leaves one line."""
    assert toy.source is not None
    path = str(toy.source.path)
    found = cd.eap(toy, task).best(20).with_roles({"name mover": ["a2.h0"]})
    found.save(tmp_path / "circuit.json")
    words = ["checkpoints", str(tmp_path / "circuit.json"), f"5={path}", f"9={path}"]
    ran = CliRunner().invoke(cli, [*words, "--plot", str(tmp_path / "a.png")])
    assert ran.exit_code == 0, ran.exception
    expected = checkpoints({5: toy, 9: toy}, found, task)
    assert str(expected) in ran.output and (tmp_path / "a.png").read_bytes()[1:4] == b"PNG"
    with pytest.raises(CircuitDiscoveryError, match="two checkpoints of step 5"):
        CliRunner().invoke(cli, [*words, f"5={path}"], standalone_mode=False, catch_exceptions=False)

    def stop(*_: Any, **__: Any) -> Checkpoint:
        raise KeyboardInterrupt

    monkeypatch.setattr("circuitdiscovery.universality.forming.strengths", stop)
    stopped = CliRunner().invoke(cli, words)
    assert stopped.exit_code == 130 and stopped.output.strip() == "interrupted; nothing was kept"


def test_a_model_that_there_is_not_is_told_before_any_is_loaded(
    circuit: cd.Circuit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    circuit.save(tmp_path / "circuit.json")
    monkeypatch.setattr(cd, "load_model", lambda *_, **__: pytest.fail("was loaded"), raising=False)
    monkeypatch.setattr(forming_command, "load_unseen", lambda *_: pytest.fail("was loaded"))
    for absent in ("/nope", "nope", str(tmp_path)):
        asked = ["checkpoints", str(tmp_path / "circuit.json"), "1=toy", f"2={absent}", "3=toy"]
        with pytest.raises(CircuitDiscoveryError, match=r"nope|has no config\.json"):
            CliRunner().invoke(cli, [*asked, "--task", "ioi"], catch_exceptions=False)
