"""Units on nodes' cards: neurons whose damage is known by construction, features by finite differences."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from test_parts_planted import SUMS, cell_damages, sums
from test_report import circuit_of, explanation_of, make_run
from test_snippets import EVIL, Tags

import circuitdiscovery as cd
from circuitdiscovery.cli.commands import cli
from circuitdiscovery.explanation.cards import CardSnippet, CardUnit, Explanation
from circuitdiscovery.features.dictionary import Dictionary
from circuitdiscovery.reporting.page import report

f = cd.features


@pytest.fixture(scope="module")
def task(toy: Any) -> Any:
    return replace(cd.load_task("subject_verb_agreement", toy, examples=12), held_out=None)


@pytest.fixture(scope="module")
def circuit(toy: Any) -> Any:
    return cd.Circuit.full(toy.graph)


def both_ways(model: Any, site: str) -> Dictionary:
    """An exact dictionary: each coordinate of what an MLP writes above 0, and below."""
    eye = torch.eye(model.d_model, dtype=model.dtype)
    zeros = torch.zeros(2 * len(eye), dtype=model.dtype)
    each = torch.cat([eye, -eye])
    return Dictionary("relu", site, "output", each, zeros, each, zeros[: len(eye)].clone())


def test_two_dictionaries_of_one_mlp_are_refused(toy: Any, tmp_path: Path) -> None:
    """Neither is left out unsaid; one of each MLP is read."""
    folders = {name: tmp_path / name for name in ("first", "second", "other")}
    for name, folder in folders.items():
        both_ways(toy, "m1" if name == "other" else "m2").save(folder)
    line = ["explain", "gpt2/ioi", "--model", "toy", "--task", "ioi"]
    for names, told in (
        (("first", "other", "second"), f"{folders['first']} and {folders['second']} are both of m2"),
        (("first", "other"), "not of toy"),  # told once they are read
    ):
        given = [word for name in names for word in ("--dictionary", str(folders[name]))]
        with pytest.raises(cd.CircuitDiscoveryError, match=told):
            CliRunner().invoke(cli, [*line, *given], catch_exceptions=False)


def test_a_planted_mlps_neurons_are_the_cells_that_are_looked_up() -> None:
    """Their damage is known; each is most active at its pair, and writes its sum."""
    one, neuron = sums()
    expected = cell_damages(neuron)
    explained = cd.explain(one.model, one.task, one.truth)
    units = explained.cards["m1"].units
    assert len(units) == 3 and units[0].name == f"m1/n{neuron[1, 2]}"
    for unit in units:
        assert unit.damage == pytest.approx(expected[unit.name], abs=0.01)
        cell = next(cell for cell, number in neuron.items() if unit.name == f"m1/n{number}")
        assert unit.promoted[0][0] == str(1 + sum(cell) % 6)
        clean = [pair[0] for pair in SUMS]
        if cell in clean and cell[0] != cell[1]:
            assert str(unit.snippets[0]) == f"0 {cell[0]} 7 [{cell[1]}]"
    assert explained.cards["a0.h2"].units == ()


def test_features_damages_are_finite_differences(task: Any) -> None:
    """The metric where what a feature writes is moved a little to what it writes on the other prompt."""
    model = cd.load_model("toy", dtype="float64")
    task = task.select(range(4))
    sae = both_ways(model, "m2")
    units = (
        cd.explain(model, task, cd.Circuit.full(model.graph), nodes=["m2"], features=sae).cards["m2"].units
    )
    assert len(units) == 3 and all(unit.name.startswith("m2/f") for unit in units)
    step, clean = 1e-5, [each.clean for each in task.examples]
    other = f.run(model, [each.corrupted for each in task.examples]).values("m2")
    assert isinstance(other, torch.Tensor)

    def metric(edits: Any) -> np.ndarray:
        logits = f.run(model, clean, edits=edits).logits
        return np.array(
            [
                float(row[list(e.correct)].mean() - row[list(e.incorrect)].mean())
                for row, e in zip(logits, task.examples, strict=True)
            ]
        )

    plain = metric({})
    for unit in units:
        number = int(unit.name[4:])

        def moved(x: torch.Tensor, rows: list[int], number: int = number) -> torch.Tensor:
            change = sae.encode(other[rows])[..., number] - sae.encode(x)[..., number]
            return x + step * change[..., None] * sae.vectors[number]

        damage = (plain - metric({"m2": moved})).mean() / step
        assert unit.damage == pytest.approx(damage, rel=1e-3, abs=1e-6)
    assert [abs(unit.damage or 0) for unit in units] == sorted(
        (abs(u.damage or 0) for u in units), reverse=True
    )


def test_a_part_that_is_a_neuron_says_what_it_writes(toy: Any, task: Any) -> None:
    graph = cd.split(toy, {"m3": [2, 8]})
    circuit = cd.Circuit.full(graph)
    cards = cd.explain(toy, task, circuit, nodes=["m3/n2", "m3/rest"], texts=["The dogs near the desk"]).cards
    (unit,) = cards["m3/n2"].units
    assert unit.name == "m3/n2" and unit.damage is None and cards["m3/rest"].units == ()
    alone = f.top_activations(toy, "m3/n2", ["The dogs near the desk"], top=3, window=8)
    assert [str(each) for each in unit.snippets] == [str(each) for each in alone.snippets]
    assert unit.promoted == alone.promoted[:5]


def test_a_part_that_is_a_feature_does_so_too(toy: Any, task: Any) -> None:
    sae = both_ways(toy, "m2")
    graph = cd.split(toy, {"m2": sae}, task=task, keep=3)
    split = graph.split_of("m2")
    assert split is not None
    part = split.names[0]
    (unit,) = cd.explain(toy, task, cd.Circuit.full(graph), nodes=[part]).cards[part].units
    found = f.top_activations(toy, sae[int(part[4:])], [list(each.clean) for each in task.examples], top=3)
    assert unit.promoted == found.promoted[:5] and unit.name == part
    assert unit.snippets[0].activations[unit.snippets[0].at] == pytest.approx(found.high)


def test_a_dictionary_that_does_not_say_its_site_has_that_of_the_node(
    toy: Any, task: Any, tmp_path: Path
) -> None:
    """As split was told, or load_circuit."""
    sae = both_ways(toy, "m2")
    untold = replace(sae, site=None)
    graphs = [cd.split(toy, {"m2": each}, task=task, keep=3) for each in (sae, untold)]
    cd.Circuit.full(graphs[0]).save(tmp_path / "c.json")
    loaded = cd.load_circuit(tmp_path / "c.json", dictionaries={"m2": untold})
    part = graphs[0].parts("m2")[0]
    told, *others = (
        str(cd.explain(toy, task, each, nodes=[part]).cards[part].units)
        for each in (*map(cd.Circuit.full, graphs), loaded)
    )
    assert part in told and others == [told, told]


@pytest.mark.parametrize("how", [{"metric": "kl"}, {"metric": "accuracy"}, {"ablation": "mean"}])
def test_without_a_gradient_or_another_prompt_there_are_none(
    toy: Any, task: Any, circuit: Any, how: Any
) -> None:
    assert cd.explain(toy, task, circuit, nodes=["m2"], **how).cards["m2"].units == ()


def test_experts_have_no_neurons(tinies: Any) -> None:
    from test_families import CASES, config_of
    from tiny import random_model, random_prompts

    model = cd.load_model((random_model(config_of(*CASES["mixtral"])), None))
    prompts = random_prompts(model.vocab_size, 3, 5)
    task = cd.Task.from_tokens(
        clean=prompts.clean, corrupted=prompts.corrupted, correct=prompts.correct, incorrect=prompts.incorrect
    )
    assert cd.explain(model, task, cd.Circuit.full(model.graph), nodes=["m0"]).cards["m0"].units == ()


def test_what_is_read_by_probes_stands_on_the_cards(
    toy: Any, task: Any, circuit: Any, tmp_path: Path
) -> None:
    explained = cd.explain(toy, task, circuit, nodes=["m3", "a1.h0"], labels=["number"])
    used = task.held_out or task
    for node in ("m3", "a1.h0"):  # what the probe of the node's own activations says
        acts = cd.features.activations(toy, used, node)
        own = cd.features.probe(acts, cd.features.labels(used, "number"))
        assert float(explained.cards[node].probes["number"]) == float(own.accuracy)
    explained.save(tmp_path / "a.json")
    again = Explanation.load(tmp_path / "a.json")
    assert again.to_dict() == explained.to_dict() == json.loads((tmp_path / "a.json").read_text())
    card = again.cards["m3"]
    assert f"number {card.probes['number']}" in str(card)
    assert card.units == cd.Card.from_dict(card.to_dict()).units and len(card.units) == 3
    assert np.isnan(card.units[0].snippets[0].activations[0])  # the first token does not count
    assert "[" in str(card) and "writes are" in str(card)
    with pytest.raises(cd.CircuitDiscoveryError, match="no label 'colour'"):
        cd.explain(toy, task, circuit, nodes=["m3"], labels=["colour"])


def test_a_label_that_no_probe_can_tell_is_refused_before_all_the_work(toy: Any, circuit: Any) -> None:
    few = cd.load_task("ioi", toy, examples=4)
    few = replace(few.select([0, 1, 2]), held_out=None)
    names = [example.variables["IO"] for example in few]
    assert len(set(names)) == 3  # each is there once

    def never(done: float, total: float) -> None:
        raise AssertionError("a run was made")

    with pytest.raises(cd.CircuitDiscoveryError, match="only one row has the label"):
        cd.explain(toy, few, circuit, nodes=["m3"], labels=["IO"], progress=never)


def test_prompts_of_one_token_have_snippets_of_it(toy: Any) -> None:
    """The first token counts where there is no other."""
    task = cd.Task.from_tokens(
        clean=[[5], [6], [7], [8]],
        corrupted=[[9], [10], [11], [12]],
        correct=[1, 2, 3, 4],
        incorrect=[2, 3, 4, 1],
    )
    units = cd.explain(toy, task, cd.Circuit.from_nodes(toy.graph, ["m1", "a0.h0"])).cards["m1"].units
    assert len(units) == 3
    for unit in units:
        acts = f.activations(toy, [[5], [6], [7], [8]], unit.name, first=True).values.flatten()
        assert unit.snippets[0].activations == (pytest.approx(float(acts.max()), rel=1e-4),)


def test_files_from_before_have_none(toy: Any, task: Any, circuit: Any) -> None:
    data = cd.explain(toy, task, circuit, nodes=["m3"]).to_dict()
    known = data["cards"]["m3"]
    assert "probes" not in known
    del known["units"]
    assert Explanation.from_dict(data).cards["m3"].units == ()
    for path, value in ((("units",), [{"name": "m3/n1"}]), (("probes",), {"x": 1})):
        with pytest.raises(cd.CircuitDiscoveryError, match=f"cards.m3.{path[0]}"):
            Explanation.from_dict(data | {"cards": {"m3": known | {path[0]: value}}})


@pytest.mark.parametrize(
    ("features", "told"),
    [
        (3, "features must be a dictionary"),
        ({"m2": 3}, "features must be a dictionary"),
        ("m1", "here of m1, not one of m2"),
        ("resid1", "takes dictionaries of MLPs, not one of resid1"),
        ("m9", "has no site 'm9'"),
    ],
)
def test_features_of_no_mlp(toy: Any, task: Any, circuit: Any, features: Any, told: str) -> None:
    if features == "m1":
        features = {"m1": both_ways(toy, "m2")}
    elif isinstance(features, str):
        features = both_ways(toy, features)
    with pytest.raises(cd.CircuitDiscoveryError, match=told):
        cd.explain(toy, task, circuit, nodes=["m2"], features=features)


def test_the_page_shows_them_as_text(tmp_path: Path) -> None:
    circuit = circuit_of()
    explanation = explanation_of(circuit)
    node = next(name for name in explanation["cards"] if name.startswith("m"))
    snippet = CardSnippet(("The", f" {EVIL}", " end"), (float("nan"), 2.0, -1.0), 1)
    unit = CardUnit(f"{node}/n7", 0.5, ((EVIL, 1.0),), ((" x", -1.0),), (snippet,))
    as_json = {**unit.__dict__, "promoted": [[EVIL, 1.0]], "suppressed": [[" x", -1.0]]}
    as_json["snippets"] = [{"tokens": list(snippet.tokens), "activations": [None, 2.0, -1.0], "at": 1}]
    explanation["cards"][node] |= {
        "units": [as_json],
        "probes": {EVIL: {"value": 0.9, "low": 0.8, "high": 1.0}},
    }
    path = report(make_run(tmp_path / "run", circuit, explanation=explanation))
    page = path.read_text("utf-8")
    tags = Tags(page)
    assert tags.names.count("script") == 1 and tags.said.count(EVIL) == 3
    assert "Neurons that matter most" in page and f"{node}/n7" in page and "What can be read there" in page
    assert 'class="chosen" style="--weight:1.0"' in page and 'class=" below" style="--weight:0.5"' in page
    broken = {**as_json, "snippets": [{"tokens": ["a"], "activations": [], "at": 0}]}
    explanation["cards"][node]["units"] = [broken]
    with pytest.raises(cd.CircuitDiscoveryError, match="lists that do not fit together"):
        report(make_run(tmp_path / "other", circuit, explanation=explanation))
