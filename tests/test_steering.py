"""Steering, beside Hugging Face's own hooks, edits of `run`, and what a direction promotes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from test_run_sites import hooked, layers, pair  # noqa: F401  # pyright: ignore
from tiny import VOCABULARY, random_prompts

import circuitdiscovery as cd
from circuitdiscovery.cli.main import cli
from circuitdiscovery.features.units import words_of
from circuitdiscovery.measure import intervals
from circuitdiscovery.measure.estimates import weights

f = cd.features
TASKS = ("ioi", "greater_than", "subject_verb_agreement", "gendered_pronoun")


@pytest.fixture(scope="module")
def task() -> cd.Task:
    return random_prompts(VOCABULARY, 4, 6).task


@pytest.fixture(scope="module")
def agreement_task(toy: Any) -> cd.Task:
    return cd.load_task("subject_verb_agreement", toy, examples=24)


def logits(model: Any, task: cd.Task, edits: Any) -> torch.Tensor:
    return f.run(model, [each.clean for each in task.examples], edits=edits).logits


def difference(task: cd.Task, found: torch.Tensor) -> np.ndarray:
    """[examples] the logit difference, by its definition."""
    return np.array(
        [
            float(row[list(each.correct)].mean() - row[list(each.incorrect)].mean())
            for row, each in zip(found, task.examples, strict=True)
        ]
    )


def after_first(x: torch.Tensor) -> torch.Tensor:
    """1 at every token but the first."""
    mask = torch.ones_like(x[..., :1])
    mask[:, 0] = 0
    return mask


def test_a_vector_is_added_as_hugging_faces_hooks_add_it(pair: Any, task: cd.Task) -> None:  # noqa: F811
    _, network, model = pair
    vector = torch.randn(model.d_model, generator=torch.Generator().manual_seed(3))
    move = f.steer(model, task, vector, by=[1, -2.5], at="resid1", largest=2.0, draws=1)
    tokens = torch.tensor([each.clean for each in task.examples])
    with torch.no_grad():
        plain = network(tokens).logits[:, -1]
    for i, by in enumerate((1, -2.5)):
        added = by * 2.0 * vector / vector.norm()
        with (
            hooked(layers(network)[1], lambda x, v=added: x + after_first(x) * v, before=True),
            torch.no_grad(),
        ):
            steered = network(tokens).logits[:, -1]
        expected = float((difference(task, steered) - difference(task, plain)).mean())
        assert move.effect[i] == pytest.approx(expected, rel=2e-4, abs=2e-5)
        rise = (steered.log_softmax(-1) - plain.log_softmax(-1)).mean(0)
        values = torch.tensor([value for _, value in move.tokens[i]])
        assert values == pytest.approx(rise.topk(10).values, rel=2e-4, abs=2e-5)
        numbers = [int(token) for token, _ in move.tokens[i]]
        assert rise[numbers] == pytest.approx(values, rel=2e-4, abs=2e-5)


def test_steering_a_neuron_is_an_edit_of_it(toy: Any, agreement_task: cd.Task) -> None:
    """By its largest activation times `by`, at every token but the first, or at one position."""
    task = agreement_task
    rows = [each.clean for each in task.examples]
    assert len({len(row) for row in rows}) == 1
    neurons = f.run(toy, rows).values("m2/n301")
    plain = difference(task, logits(toy, task, {}))
    size = float(neurons[:, 1:].abs().max())
    for position in (None, "subject"):
        move = f.steer(toy, task, "m2/n301", by=3, position=position, draws=1)
        where = torch.zeros(neurons.shape)
        if position is None:
            where[:, 1:] = 1
        else:
            for i, each in enumerate(task.examples):
                where[i, each.positions[position]] = 1
        edited = logits(toy, task, {"m2/n301": neurons + 3 * size * where})
        assert move.largest == pytest.approx(size) and move.site == "m2.neurons"
        assert move.effect == pytest.approx(float((difference(task, edited) - plain).mean()), rel=1e-4)


@pytest.mark.parametrize("at", ["m1", "resid2", "a1.h2", "a1.z", "m1.neurons", "m2.normed", "resid4"])
def test_a_vector_at_any_site_is_an_edit_there(toy: Any, agreement_task: cd.Task, at: str) -> None:
    task = agreement_task
    rows = [each.clean for each in task.examples]
    there = f.run(toy, rows).values(at)
    vector = torch.randn(there.shape[-1], generator=torch.Generator().manual_seed(0))
    unit = vector / vector.norm()
    move = f.steer(toy, task, vector, by=2, at=at, draws=2)
    size = float((there[:, 1:] @ unit).abs().max())
    assert move.largest == pytest.approx(size, rel=1e-4)
    edited = logits(toy, task, {at: lambda x: x + after_first(x) * 2 * size * unit})
    change = difference(task, edited) - difference(task, logits(toy, task, {}))
    assert move.effect == pytest.approx(float(change.mean()), rel=1e-3, abs=1e-5)


def test_random_directions_are_as_long_where_they_are_written(toy: Any, agreement_task: cd.Task) -> None:
    """A neuron's in the stream: as long as its column of W_out. At the last stream, where nothing follows but
    the norm, their logits are those of an edit of `run`."""
    from circuitdiscovery.features.steering import _random
    from circuitdiscovery.features.units import unit_of

    W_out = toy.blocks[2].W_out
    for site, noise in _random(toy, unit_of(toy, "m2/n7"), 3, 0):
        assert site.place == "m2.inner" and noise.norm() == pytest.approx(float(W_out[:, 7].norm()), rel=1e-5)
    vector = torch.ones(toy.d_model)
    ((site, noise),) = _random(toy, unit_of(toy, vector, "resid4"), 1, 5)
    move = f.steer(toy, agreement_task, vector, by=2, at="resid4", largest=3.0, draws=1, seed=5)
    edited = logits(toy, agreement_task, {site.place: lambda x: x + 2 * 3.0 * noise})
    change = difference(agreement_task, edited) - difference(agreement_task, logits(toy, agreement_task, {}))
    assert noise.norm() == pytest.approx(1.0) and move.random[0].effect == pytest.approx(
        float(change.mean()), rel=1e-4
    )


@pytest.fixture(scope="module")
def mixed(toy: Any) -> cd.Task:
    """Prompts of all behaviours, cut somewhere, as documents would be."""
    rows = [
        list(each.clean[: 5 + 4 * (i % 2)])
        for name in TASKS
        for i, each in enumerate(cd.load_task(name, toy, examples=12).examples)
    ]
    return cd.Task.from_tokens(
        clean=rows, corrupted=rows, correct=[[5]] * len(rows), incorrect=[[6]] * len(rows)
    )


def test_what_rises_is_what_the_decoder_row_promotes(toy: Any, mixed: cd.Task) -> None:
    """On features of an autoencoder: .6 of the ten tokens or more, and of random directions below .1."""
    rows = [each.clean for name in TASKS for each in cd.load_task(name, toy, examples=100).examples]
    acts = f.activations(toy, rows, "m2")
    sae = f.train_sae(acts, n=128, k=8, steps=150)
    active = (sae.encode(acts.values) > 0).float().mean(0)
    chosen = [int(i) for i in active.argsort(descending=True)[:48:4]]
    found = [f.steer(toy, mixed, sae[i], by=2, draws=1) for i in chosen]
    assert np.mean([each.overlap for each in found]) >= 0.6
    assert np.mean([each.random[0].overlap for each in found]) < 0.1
    # the share itself, by its definition
    one = found[0]
    promoted = words_of(toy, sae.vectors[chosen[0]]).topk(10).indices
    names = [toy.tokenizer.decode([int(i)]) for i in promoted]
    assert [name for name, _ in one.promoted] == names
    assert one.overlap == pytest.approx(sum(name in names for name, _ in one.tokens) / 10, abs=0.11)


def test_what_a_user_sees(toy: Any, agreement_task: cd.Task, tmp_path: Path) -> None:
    many = f.steer(toy, agreement_task, "m3/n5", by=[1, -4], draws=3)
    one = f.steer(toy, agreement_task, "m3/n5", by=1, draws=3, batch_size=5)
    assert one.effect == pytest.approx(many.effect[0], rel=1e-3)
    assert len(many.tokens) == 2 and len(one.tokens) == 10 and len(many.random) == 3
    assert many.effect[0].low < many.effect[0] < many.effect[0].high
    many.save(tmp_path / "move.json")
    assert f.Steering.load(tmp_path / "move.json") == many
    table = many.to_dataframe()
    assert table["direction"].tolist() == ["m3/n5"] * 2 + [f"random {i // 2}" for i in range(6)]
    assert "3 random: effect" in str(many) and str(many).startswith("m3/n5 of toy on subject_verb_agreement")
    accuracy = f.steer(toy, agreement_task, "m3/n5", by=1, metric="accuracy", draws=1)
    assert -1 <= accuracy.effect.low <= accuracy.effect <= accuracy.effect.high <= 1


def test_intervals_hold_the_truth(toy: Any) -> None:
    """The interval of an effect is that of a mean of changes; of 400 samples of 24 prompts, 95% of such
    intervals hold the mean over all 300 prompts, about."""
    task = cd.load_task("subject_verb_agreement", toy, examples=300)
    edited = logits(toy, task, {"m3/n5": lambda x: x + 6.0 * after_first(x[..., None])[..., 0]})
    changes = difference(task, edited) - difference(task, logits(toy, task, {}))
    part = f.steer(toy, task.select(range(24)), "m3/n5", by=2, largest=3.0, draws=1).effect
    expected = intervals.mean(changes[:24], weights(24, 0))
    assert (part.low, part, part.high) == pytest.approx((expected.low, expected, expected.high), rel=1e-3)
    rng = np.random.default_rng(0)
    samples = np.stack([rng.choice(changes, 24) for _ in range(400)])
    held = [each.low <= changes.mean() <= each.high for each in intervals.means(samples, weights(24, 0))]
    assert np.mean(held) >= 0.93


@pytest.mark.parametrize(
    ("unit", "how", "told"),
    [
        ("m2", {}, "m2 is not one neuron"),
        ("m9/n0", {}, "toy has no site 'm9/n0'"),
        (torch.ones(3), {"at": "resid2"}, "the vector is 3 wide, but resid2 of toy is 128"),
        (torch.ones(128), {}, "a vector with at='resid5'"),
        ("m3/n5", {"by": 0}, "by must be a number other than 0, or several, not 0"),
        ("m3/n5", {"by": [1, "2"]}, "by must be a number other than 0, or several, not '2'"),
        ("m3/n5", {"by": float("nan")}, "by must be a number other than 0, or several, not nan"),
        ("m3/n5", {"by": []}, "by: there is no number"),
        ("m3/n5", {"position": "S9"}, "no position 'S9'"),
        ("m3/n5", {"draws": 0}, "draws must be a whole number of at least 1"),
        ("m3/n5", {"largest": 0.0}, "its largest activation is 0"),
        ("m3/n5", {"metric": "nonsense"}, "no metric 'nonsense'"),
    ],
)
def test_what_cannot_be_asked(
    toy: Any, agreement_task: cd.Task, unit: Any, how: dict[str, Any], told: str
) -> None:
    with pytest.raises(cd.CircuitDiscoveryError, match=told):
        f.steer(toy, agreement_task, unit, **how)


def test_the_command(toy: Any, tmp_path: Path) -> None:
    line = ["steer", "toy", "subject_verb_agreement", "m3/n5", "--by", "2", "--examples", "8", "--json"]
    found = json.loads(CliRunner().invoke(cli, [*line, "--draws", "2"]).stdout)
    task = cd.load_task("subject_verb_agreement", toy, examples=8)
    assert found == json.loads(json.dumps(f.steer(toy, task, "m3/n5", by=[2], draws=2).to_dict()))
    sae = f.train_sae(f.activations(toy, task, "m2", position="all"), n=16, k=4, steps=20)
    sae.save(tmp_path / "sae")
    number = int(sae.encode(f.activations(toy, task, "m2", position="all").values).sum(0).argmax())
    line = ["steer", "toy", "subject_verb_agreement", f"m2/f{number}", "--dictionary", str(tmp_path / "sae")]
    told = CliRunner().invoke(cli, [*line, "--examples", "8", "--position", "END"]).stdout
    assert told.startswith(f"m2/f{number} of toy") and "position END" in told and "by 4" in told
    with pytest.raises(cd.CircuitDiscoveryError, match="UNIT 'm1/f3' is no feature of the dictionary"):
        CliRunner().invoke(
            cli, [*line[:3], "m1/f3", "--dictionary", str(tmp_path / "sae")], catch_exceptions=False
        )


@pytest.mark.parametrize("at", ["m3.stream", "m3.bare", "m3.normed"])
def test_what_an_mlp_reads_has_no_path_of_its_own_to_the_logits(
    toy: Any, agreement_task: cd.Task, at: str, tmp_path: Path
) -> None:
    """With what the MLP writes held, adding there changes no logit."""
    vector = torch.randn(128, generator=torch.Generator().manual_seed(0))
    plain = f.run(toy, agreement_task)
    held = f.run(toy, agreement_task, edits={at: lambda x: x + 5 * vector, "m3": plain.values("m3")})
    assert torch.equal(held.logits, plain.logits)

    move = f.steer(toy, agreement_task, vector, by=[1, 2], at=at, draws=2)
    assert move.promoted == () and move.overlap is None and float(move.effect[0]) != 0
    assert "overlap" not in str(move) and "random: effect" in str(move)
    move.save(tmp_path / "a.json")
    assert str(f.Steering.load(tmp_path / "a.json")) == str(move)
    assert not any(move.to_dataframe()["overlap"])
    found = f.top_activations(toy, vector, agreement_task, at=at, top=2)
    assert found.promoted == found.suppressed == () and found.attribution is None and found.snippets
    assert "nothing directly" in str(found)
    with pytest.raises(
        cd.CircuitDiscoveryError, match=r"^m3.* is what an MLP reads: nothing that stands there"
    ):
        f.project(toy, vector, at=at)
    with pytest.raises(cd.CircuitDiscoveryError, match="is what an MLP reads: nothing that stands there"):
        f.project(toy, at, task=agreement_task)
