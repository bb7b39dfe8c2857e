"""Probes: against planted variables, TransformerLens' own probes, and the definitions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tiny import Tiny
from transformer_lens.tools.analysis.sparse_probing import sweep_sparse_probe

import circuitdiscovery as cd
from circuitdiscovery.benchmark.problems.semisynthetic import problem
from circuitdiscovery.cli.main import cli
from circuitdiscovery.features import probe_fit
from circuitdiscovery.features.probe_question import Question

f = cd.features


def planted(n: int = 120, d: int = 20, noise: float = 0.3, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """Rows whose columns 3 and 7 tell a bit, and the bit."""
    rng = np.random.default_rng(seed)
    bit, x = rng.integers(0, 2, n), rng.normal(size=(n, d))
    x[:, 3] += 4 * bit + noise * rng.normal(size=n)
    x[:, 7] -= 3 * bit
    return torch.from_numpy(x), bit


@pytest.fixture(scope="module")
def gate() -> Any:
    """The network in which a0.h1 moves the first symbol's class, a1.h2 the second one's, to the last token, where
    m1 takes their exclusive or: the classes are in resid1 and resid2, their exclusive or in resid2.
    """
    return problem("gate", examples=200)


# ------------------------------------------------------------------ what is known by construction


def test_planted_variables_are_read_where_they_are_written_and_nowhere_before(gate: Any) -> None:
    classes = [example.clean[2] % 4 for example in gate.task]
    symbols = [example.clean[2] for example in gate.task]
    table = f.probes(gate.model, gate.task, classes, at=["resid0", "resid1", "resid2"], control=symbols)
    before, after, last = (row.scores for row in table.rows)
    assert before.accuracy.low < 0.25 < before.accuracy.high and after.accuracy == last.accuracy == 1.0
    assert before.selectivity is not None and abs(before.selectivity) < 0.15
    assert after.selectivity is not None and last.selectivity is not None and last.selectivity > 0.3
    assert after.shared == 1.0
    both = [one ^ (example.clean[5] % 4) for one, example in zip(classes, gate.task, strict=True)]
    either = f.probes(gate.model, gate.task, both, at=["resid1", "resid2"], control=False)
    assert either["resid1"].scores.accuracy < 0.7 and either["resid2"].scores.accuracy == 1.0
    assert either["resid2"].scores.selectivity is None


def test_erasing_takes_away_what_is_used_and_nothing_else(gate: Any) -> None:
    """m1 reads the first symbol's class in the stream after a1; what is left of it in resid2 nobody reads."""
    classes = [example.clean[2] % 4 for example in gate.task]
    how: dict[str, Any] = {"task": gate.task, "metric": "accuracy"}
    table = f.probes(gate.model, gate.task, classes, at=["resid0", "resid1", "resid2"], control=False, **how)
    effects = [float(row.erasure.effect) for row in table.rows if row.erasure is not None]
    assert effects[0] == effects[2] == 0 and effects[1] < -0.4
    for row in table.rows:
        assert row.erasure is not None and row.erasure.plain == 1 and abs(row.erasure.random) < 0.02
        assert row.erasure.effect.low <= row.erasure.effect <= row.erasure.effect.high


def test_what_is_erased_is_read_by_no_linear_classifier(toy: Any) -> None:
    """Least squares of the labels on the training rows has slope 0; the probe itself gives one label alone."""
    task = cd.load_task("subject_verb_agreement", toy, examples=60)
    own = f.labels(task, "number")
    acts = f.activations(toy, task, "resid3")
    probe = f.probe(acts, own, draws=1)
    basis, mean = probe.erased()
    torch.testing.assert_close(basis @ basis.T, torch.eye(2, dtype=torch.float64))
    x = acts.values.double()
    rest = x - (x - mean) @ basis.T @ basis
    assert len(set(probe.predict(rest))) == 1
    truth = np.array(own.values) == "singular"
    train = ~probe_fit.held_out(truth.astype(int), None, 0)
    rows, bits = rest.numpy()[train], truth[train].astype(float)
    slopes = (rows - rows.mean(0)).T @ (np.where(bits == 1, 1 / bits.sum(), -1 / (1 - bits).sum()))
    assert np.abs(slopes).max() < 1e-8 < 1e-2 < np.abs((x.numpy()[train]).T @ (bits - bits.mean())).max()
    assert probe.left() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("k, d", [(2, 30), (4, 30), (None, 2)])
@pytest.mark.parametrize("sizes", [(1.0, 1.0), (1e6, 1e3)])
def test_where_all_that_tells_a_label_is_erased_what_is_left_is_at_chance(
    k: int | None, d: int, sizes: tuple[float, float]
) -> None:
    """Two columns tell it, and all of them is erased: no rounding that remains there tells it."""
    chance, left = [], []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        bit, x = rng.integers(0, 2, 300), rng.normal(size=(300, d))
        x[:, -2:] = (x[:, -2:] + np.array([4, 3]) * bit[:, None] - np.array([2, 0])) * sizes
        probe = f.probe(x, bit, k=k, control=False, seed=seed)
        assert probe.accuracy > 0.9
        chance.append(max(bit.mean(), 1 - bit.mean()))
        left.append(probe.left())
    assert np.mean(left) < np.mean(chance) + 0.05


def test_texts_are_erased_where_they_are_probed(toy: Any) -> None:
    """At every token but the first, as the probe alone does there; a position that is given is both's."""
    task = cd.load_task("subject_verb_agreement", toy, examples=24)
    texts = [example.text for example in task]
    number = f.labels(task, "number").values
    bring = f.text_labels(toy, {kind: [text for text, own in zip(texts, number, strict=True) if own == kind]
                                for kind in ("plural", "singular")})  # fmt: skip
    how: dict[str, Any] = {"at": ["resid3"], "control": False, "task": task}
    for given, position, expected in (
        ((texts, number), None, "all"),
        ((bring,), None, "all"),
        ((texts, number), -1, -1),
        ((task, number), None, None),
    ):
        row = f.probes(toy, *given, position=position, **how).rows[0]
        if len(given) == 1:
            acts, own = bring.activations(toy, "resid3"), bring
        else:
            acts, own = f.activations(toy, given[0], "resid3", position=position), number
        alone = f.probe(acts, own, control=False)
        assert row.scores == alone.scores and row.erasure is not None
        assert row.erasure.effect == alone.erase(toy, task, position=expected).effect
    assert alone.erase(toy, task).effect != alone.erase(toy, task, position="all").effect


def test_erasing_is_the_projection_in_a_plain_run(toy: Any) -> None:
    """At one head, one position: the same as an edit by hand, prompt by prompt."""
    task = cd.load_task("ioi", toy, examples=12)
    probe = f.probe(
        f.activations(toy, task, "a2.h3", position="S2"), f.labels(task, "repeated"), control=False
    )
    found = probe.erase(toy, task, draws=1)  # where it reads
    basis, mean = (each.float() for each in probe.erased())
    changes = []
    assert task.held_out is not None
    for example in task.held_out:
        at, logits = example.positions["S2"], []

        def edit(x: torch.Tensor, at: int = at) -> torch.Tensor:
            new = x.clone()
            new[:, at] = x[:, at] - (x[:, at] - mean) @ basis.T @ basis
            return new

        for edits in ({}, {"a2.h3": edit}):
            run = f.run(toy, [list(example.clean[: example.position + 1])], edits=edits)
            logits.append(float(run.logits[0, example.correct[0]] - run.logits[0, example.incorrect[0]]))
        changes.append(logits[1] - logits[0])
    assert float(found.effect) == pytest.approx(np.mean(changes), abs=1e-4)


# ------------------------------------------------------------------ against other implementations


def test_sparse_probes_are_transformer_lens() -> None:
    """On the rows that their own split holds out, they select and classify the same."""
    x, bit = planted(noise=2.0)
    sweep = sweep_sparse_probe(
        x, torch.from_numpy(bit), ks=[1, 2, 4], preprocess="standardize", std_floor=0.0, seed=5
    )
    test = np.isin(np.arange(len(bit)), sweep.results[0].test_indices.numpy())
    for k, theirs in zip((1, 2, 4), sweep.results, strict=True):
        ours = probe_fit.fit(x, bit, test, 2, k, 0.01)
        assert (
            ours.columns == tuple(sorted(theirs.selected_features.tolist())) and 3 in theirs.selected_features
        )
        found, truth = ours(x)[test], bit[test]
        assert (found == truth).mean() == theirs.metrics.accuracy < 1
        assert float(probe_fit.f1(truth, found, [1], None)) == pytest.approx(theirs.metrics.f1)
        slopes = ours.weights[1][theirs.selected_features] * theirs.preprocess_scale
        torch.testing.assert_close(slopes, theirs.coefficients)


def test_a_dense_probe_has_the_gradient_of_logistic_regression() -> None:
    """At the optimum of mean balanced cross-entropy plus l2/2 |w|^2 on standardised columns, with more columns
    than rows; TransformerLens' probe of all columns is the same."""
    x, bit = planted(n=60, d=90)
    test, l2 = probe_fit.held_out(bit, None, 0), 0.05
    found = probe_fit.fit(x, bit, test, 2, None, l2)
    train, goal = x.numpy()[~test], bit[~test]
    mean, scale = train.mean(0), train.std(0)
    z, w = (train - mean) / scale, found.weights[1].numpy() * scale
    p = 1 / (1 + np.exp(-(z @ w + float(found.bias[1]) + mean @ found.weights[1].numpy())))
    weight = np.where(goal == 1, 0.5 / goal.mean(), 0.5 / (1 - goal.mean())) / len(goal)
    assert np.abs(z.T @ (weight * (p - goal)) + l2 * w).max() < 1e-6
    theirs = probe_fit.fit(x, bit, test, 2, x.shape[1], l2)
    for ours, other in ((found.weights, theirs.weights), (found.bias, theirs.bias)):
        torch.testing.assert_close(ours, other, rtol=0, atol=1e-4 * float(other.abs().max()))


def test_f1_and_accuracy_are_their_definitions() -> None:
    rng = np.random.default_rng(1)
    truth, found = rng.integers(0, 3, 50), rng.integers(0, 3, 50)
    by_hand = []
    for one in range(3):
        hits = ((truth == one) & (found == one)).sum()
        precision, recall = hits / (found == one).sum(), hits / (truth == one).sum()
        by_hand.append(2 * precision * recall / (precision + recall))
    assert float(probe_fit.f1(truth, found, range(3), None)) == pytest.approx(np.mean(by_hand))
    units = rng.integers(0, 9, 50)
    right = truth == found
    assert float(probe_fit.share_right(right, units)) == pytest.approx(right.mean())
    assert float(probe_fit.more_right(right, found == 0, units)) == pytest.approx(
        (right * 1.0 - (found == 0)).mean()
    )


@pytest.mark.parametrize("groups, size, share", [(20, 6, 0.8), (16, 5, 0.97)])
def test_intervals_over_groups_cover(groups: int, size: int, share: float) -> None:
    """Groups that differ in how often they are right: an interval over rows would be too narrow."""
    rng, inside, f1_inside, narrow, runs = np.random.default_rng(0), 0, 0, 0, 150
    units = np.repeat(np.arange(groups), size)
    for _ in range(runs):
        right = rng.random(groups * size) < np.repeat(rng.beta(2 * share, 2 - 2 * share, groups), size)
        found = probe_fit.share_right(right, units)
        rows = probe_fit.share_right(right, None)
        inside += found.low <= share <= found.high
        narrow += rows.low <= share <= rows.high
        truth = rng.integers(0, 2, len(right))
        score = probe_fit.f1(truth, np.where(right, truth, 1 - truth), [1], units)
        f1_inside += score.low <= share <= score.high  # labels are equally frequent
    assert inside / runs > 0.92 and f1_inside / runs > 0.92 and narrow < inside


# ------------------------------------------------------------------ splits and controls


def test_groups_are_held_out_whole_and_then_the_control_is_at_chance() -> None:
    rng = np.random.default_rng(0)
    types = np.repeat(np.arange(24), 10)
    x = torch.from_numpy(rng.normal(size=(24, 40))[types] * 3 + rng.normal(size=(240, 40)))
    truth = rng.integers(0, 2, 24)[types]
    shared = f.probe(x, truth, control=types)
    apart = f.probe(x, truth, control=types, groups=types)
    assert shared.scores.shared == 1 and apart.scores.shared == 0
    assert shared.scores.control is not None and shared.scores.control > 0.9  # types are learnt by heart
    assert apart.scores.control is not None and abs(apart.scores.control - 0.5) < 0.2
    test = probe_fit.held_out(truth, types, 0)
    assert not set(types[test]) & set(types[~test]) and 0.2 < test.mean() < 0.4
    assert "by construction" in str(apart) and "100%" in str(shared)
    # labels that are nothing but types' are told as well as control labels: no selectivity
    assert shared.selectivity is not None and abs(shared.selectivity) < 0.1


def test_any_split_that_has_both_labels_on_both_sides_is_fitted() -> None:
    """Of uneven groups, in which one label may be held out almost whole; at the optimum of its loss."""
    y = np.array([0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 1, 0])
    groups = np.array([2, 1, 1, 2, 2, 0, 2, 0, 2, 2, 2, 2, 1, 2, 2, 2, 0, 1, 2, 2])
    x, shares = np.random.default_rng(0).normal(size=(20, 3)), set[tuple[float, ...]]()
    for seed in range(50):
        found = f.probe(x, y, groups=groups, control=False, seed=seed)
        test = found._rows.test
        assert all(len(set(test[groups == group])) == 1 for group in range(3))
        shares.add(tuple(float(test[y == label].mean()) for label in (0, 1)))
        train, goal, weights = x[~test], y[~test], found.classifier.weights[1].numpy()
        z, w = (train - train.mean(0)) / train.std(0), weights * train.std(0)
        p = 1 / (1 + np.exp(-(train @ weights + float(found.classifier.bias[1]))))
        weight = np.where(goal == 1, 0.5 / goal.mean(), 0.5 / (1 - goal.mean())) / len(goal)
        assert np.abs(z.T @ (weight * (p - goal)) + 0.01 * w).max() < 1e-6
    assert len(shares) > 1 and all(0 < share < 1 for both in shares for share in both)


def test_rows_of_one_prompt_with_one_label_stay_together(toy: Any) -> None:
    texts = ["The keys are old.", "The key is old.", "The dogs are red.", "The dog is red."] * 3
    acts = f.activations(toy, texts, "resid1")
    found = f.probe(acts, ["many", "one"] * 6)
    train = set(acts.rows[torch.from_numpy(~found._rows.test)].tolist())
    assert train and not train & set(acts.rows[torch.from_numpy(found._rows.test)].tolist())


def test_it_works_on_every_architecture(tiny: Tiny) -> None:
    """At each kind of site, with the erasure's plain metric that of the model."""
    model = cd.load_model(tiny.folder)
    rng = torch.Generator().manual_seed(0)
    clean = torch.randint(2, 60, (16, 5), generator=rng)
    task = cd.Task.from_tokens(clean=clean, corrupted=clean.flip(0), correct=[3] * 16, incorrect=[4] * 16)
    labels = (clean[:, -1] % 2).tolist()
    at = ["resid0", f"resid{model.n_layers}", "a0", "a0.h1", *(["m0"] if model.graph.has_mlp else [])]
    table = f.probes(model, task, labels, at=at, task=task, draws=1)
    logits = f.run(model, clean).logits
    assert all(row.erasure is not None for row in table.rows)
    for row in table.rows:
        assert row.erasure is not None
        assert float(row.erasure.plain) == pytest.approx(
            float((logits[:, 3] - logits[:, 4]).mean()), abs=1e-4
        )


# ------------------------------------------------------------------ tables and faults


def test_a_table_is_saved_read_plotted_and_printed(toy: Any, tmp_path: Path) -> None:
    task = cd.load_task("subject_verb_agreement", toy, examples=40)
    table = f.probes(toy, task, "number", at=["resid1", "resid3"], k=[1, None], task=task, draws=1)
    for k in (np.array([1, 2]), [np.int64(1), torch.tensor(2)], (1, 2)):
        sized = f.probes(toy, task, "number", at=["resid1", "resid3"], k=k, control=False)
        assert [row.k for row in sized.rows] == [1, 2, 1, 2]
    assert f.probes(toy, task, "number", at=("resid3",), k=np.int64(1), control=False).rows[0].k == 1
    table.save(tmp_path / "table.json")
    again = f.Probes.load(tmp_path / "table.json")
    assert again == table and str(again) == str(table)
    frame = table.to_dataframe()
    assert list(frame["site"]) == ["resid1", "resid1", "resid3", "resid3"]
    assert frame["effect"].iloc[3] == float(table.rows[3].erasure.effect)  # pyright: ignore[reportOptionalMemberAccess]
    assert (
        len(table.plot(tmp_path / "table.png").axes) == 2 and (tmp_path / "table.png").stat().st_size > 5000
    )
    assert table["resid3"].k == 1
    alone = f.probe(f.activations(toy, task, "resid3"), f.labels(task, "number"), draws=1)
    assert table.rows[3].scores == alone.scores


X, BIT = planted(20)


def test_what_is_held_out_is_of_other_tokens_than_training(toy: Any) -> None:
    """Labels at random, one of each beginning: of rows alone, and of groups, which stay whole."""
    words = f.word_labels(toy, cd.load_task("subject_verb_agreement", toy, examples=128), "number")
    acts, rng = words.activations(toy, "resid2"), np.random.default_rng(0)
    starts = [words.prompts[row][: at + 1] for row, at in zip(words.rows, words.positions, strict=True)]
    drawn = {start: int(rng.integers(2)) for start in sorted(set(starts))}
    labels = [drawn[start] for start in starts]
    assert len(drawn) < len(starts)
    for groups in (None, words.rows):
        question = Question.of(acts.places, labels, False, groups, 4, 0)
        kept = [start for start, used in zip(starts, question.used, strict=True) if used]
        train, test = ({kept[i] for i in np.flatnonzero(part)} for part in (~question.test, question.test))
        assert not train & test and 0.1 < question.test.mean() < 0.4
        if groups is not None:
            rows = np.array(groups)[question.used]
            assert not set(rows[question.test]) & set(rows[~question.test])
            assert len(kept) < len(starts)
    found = f.probe(acts, labels, control=False, l2=1e-4)
    assert found.accuracy.low < 0.5 < found.accuracy.high


def test_labels_of_rows_are_not_taken_for_labels_of_prompts(toy: Any) -> None:
    """As many rows as prompts, two of which have no second token."""
    texts, labels = ["The", "The keys are", "The", "The keys were"], ["a", "b", "a", "b"]
    acts = f.activations(toy, texts, "resid1")
    assert acts.rows.tolist() == [1, 1, 3, 3]
    with pytest.raises(cd.CircuitDiscoveryError, match="4 labels are as many as rows and as prompts, but"):
        f.probe(acts, labels)
    assert f.probe(acts.values, labels).scores.train == 2  # of a matrix they are of rows


@pytest.mark.parametrize(
    "wrong, told",
    [
        ({"labels": ["a"] * 20}, "all 20 labels are 'a'"),
        ({"labels": [0, 1] * 9}, "there are 18 labels, but 20 rows of activations"),
        ({"labels": "number"}, "labels must be a list with a value per row"),
        ({"labels": [0] * 19 + [1]}, "only one row has the label '1'"),
        ({"groups": [1] * 20}, "groups are all one: two at least are needed"),
        ({"groups": BIT}, "the groups cannot be split so that every label is on both sides"),
        ({"control": [1, 2]}, "there are 2 control, but 20 rows"),
        ({"k": 21}, "k must be from 1 to the width, 20, not 21"),
        ({"k": 1, "labels": [0, 1, 2, 3] * 5}, "sparse probes (k=1) are of two labels; there are 4"),
        ({"l2": 0.0}, "l2 must be above 0"),
        ({"acts": "m2"}, "acts must be what features.activations gives"),
    ],
)
def test_what_cannot_be_is_one_line(wrong: dict[str, Any], told: str) -> None:
    given: dict[str, Any] = {"acts": X, "labels": BIT} | wrong
    with pytest.raises(cd.CircuitDiscoveryError) as error:
        f.probe(given.pop("acts"), given.pop("labels"), **given)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_faults_of_tables_and_erasures(toy: Any, gpt2: Tiny) -> None:
    task = cd.load_task("subject_verb_agreement", toy, examples=12)
    faults: tuple[tuple[dict[str, Any], str], ...] = (
        ({"at": "resid9"}, "toy has no site 'resid9'"),
        ({"at": []}, "at names no site"),
        ({"at": 5}, "probes: at must be a list of names .*, not 5"),
        ({"at": [["resid0"]]}, "probes: at must be a list of names"),
        ({"k": "1"}, "k must be a whole number"),
        ({"k": [1, True]}, "k must be a whole number"),
        ({"k": []}, "k must be a whole number"),
        ({"position": "S2"}, "no position 'S2'"),
    )
    for wrong, told in faults:
        with pytest.raises(cd.CircuitDiscoveryError, match=told):
            f.probes(toy, task, "number", **wrong)
    own = f.probe(f.activations(toy, task, "m1"), f.labels(task, "number"), control=False)
    other = cd.load_model(gpt2.folder)
    theirs = cd.Task.from_tokens(clean=[[5, 6]], corrupted=[[5, 7]], correct=[1], incorrect=[2])
    with pytest.raises(cd.CircuitDiscoveryError, match="the probe is of another model"):
        own.erase(other, theirs)
    with pytest.raises(cd.CircuitDiscoveryError, match="a probe of a matrix has no site"):
        f.probe(X, BIT).erase(toy, task)
    with pytest.raises(cd.CircuitDiscoveryError, match="values are 3 wide, the probe reads 128"):
        own.predict(torch.zeros(2, 3))


def test_the_command(tmp_path: Path) -> None:
    asked = ["probe", "toy", "subject-verb-agreement", "--examples", "40", "--at", "resid0,resid3"]
    result = CliRunner().invoke(cli, [*asked, "--label", "number", "--groups", "noun", "--erase", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [row["site"] for row in found["rows"]] == ["resid0", "resid3"]
    assert found["rows"][1]["scores"]["shared"] == 0 and found["rows"][1]["erasure"]["effect"]["value"] < -3
    table = tmp_path / "own.csv"
    table.write_text("text,token,label\n" + "The dogs are red.,dogs,many\nThe dog is red.,dog,one\n")
    with table.open("a") as file:
        file.write("The keys are red.,keys,many\nThe key is red.,key,one\n")
    result = CliRunner().invoke(cli, [*asked, "--csv", str(table)])
    assert result.exit_code == 0 and "own in toy: 2 labels" in result.stdout
    for wrong, told in (
        ([], "give --label NAME"),
        (["--label", "numbr"], "no label 'numbr'; did you mean 'number'?"),
        (["--label", "number", "--k", "0"], "'0' is not a whole number of at least 1"),
    ):
        result = CliRunner().invoke(cli, [*asked, *wrong])
        assert isinstance(result.exception, cd.CircuitDiscoveryError | SystemExit) and result.exit_code
        assert told in f"{result.exception}{result.output}"
