"""Sweeps of dictionaries, and the baselines beside them, each against its slow definition."""

# pyright: reportOptionalOperand=false, reportOperatorIssue=false, reportArgumentType=false
from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

import circuitdiscovery as cd
from circuitdiscovery.cli.commands.dictionaries import SAE_KINDS
from circuitdiscovery.cli.main import cli, main
from circuitdiscovery.features import losses, sweeping, training
from circuitdiscovery.features.whole import KINDS

f = cd.features
TEXTS = ["The keys on the table are small.", "There is a dog by the door.", "The dog is old."]
FEW: dict[str, Any] = {
    "n": 24,
    "steps": 8,
    "kinds": ["topk", "relu"],
    "sparsities": {"topk": [2, 4], "relu": [1]},
}


@pytest.fixture(scope="module")
def toy() -> Any:
    return cd.load_model("toy")


def strongest(values: np.ndarray, weights: np.ndarray, k: int) -> np.ndarray:
    """Rows with all but the k largest of |value| weight at 0."""
    kept = np.zeros_like(values)
    for row, own in enumerate(values):
        which = np.argsort(-np.abs(own) * weights)[:k]
        kept[row, which] = own[which]
    return kept


def test_pca_writes_the_largest_coordinates_along_principal_directions() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(300, 6, generator=draw) @ torch.randn(6, 6, generator=draw) + 3
    sae = f.train_sae(x, n=12, k=2, steps=10)
    found = f.evaluate_sae(sae, x).baselines
    centred = x.double().numpy() - x.double().numpy().mean(0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    written = strongest(centred @ directions.T, np.ones(6), 2) @ directions
    expected = 1 - ((centred - written) ** 2).sum() / (centred**2).sum()
    assert found["pca"].explained_variance == pytest.approx(expected, rel=1e-4)
    assert found["pca"].l0 == pytest.approx(2) and abs(found["pca"].shrinkage) < 1e-4
    assert list(found) == ["pca", "random"]
    assert 2 / 6 < found["random"].explained_variance < found["pca"].explained_variance


@pytest.mark.parametrize("node", ["m1", "m3"])
def test_neurons_are_kept_or_at_their_means(toy: Any, node: str) -> None:
    """Neuron by neuron, and put into a run by hand."""
    acts, neurons = f.activations(toy, TEXTS, node), f.activations(toy, TEXTS, f"{node}.neurons")
    sae = f.train_sae(acts, n=16, k=3, steps=10)
    found = f.evaluate_sae(sae, acts, model=toy).baselines["neurons"]
    block = toy.blocks[int(node[1:])]
    values, out = neurons.values.double().numpy(), block.W_out.double().numpy()
    mean = values.mean(0)
    kept = mean + strongest(values - mean, np.linalg.norm(out, axis=0), 3)
    written, y = kept @ out.T + block.b_out.double().numpy(), acts.values.double().numpy()
    expected = 1 - ((y - written) ** 2).sum() / ((y - y.mean(0)) ** 2).sum()
    assert found.explained_variance == pytest.approx(expected, rel=1e-3) and found.l0 == 3
    total = 0.0
    for number, text in enumerate(TEXTS):
        rows = torch.from_numpy(written[(acts.rows == number).numpy()]).float()

        def put(x: Tensor, rows: Tensor = rows) -> Tensor:
            return torch.cat([x[:, :1], rows[None]], 1)

        plain = f.run(toy, text).values("logits").log_softmax(-1)
        other = f.run(toy, text, edits={node: put}).values("logits").log_softmax(-1)
        total += float((plain.exp() * (plain - other)).sum(-1)[:, 1:].sum())
    assert found.kl_reconstruction == pytest.approx(total / len(acts), rel=1e-3)


def test_a_transcoder_stands_beside_neurons_alone(toy: Any) -> None:
    source, target = f.activations(toy, TEXTS, "m1.normed"), f.activations(toy, TEXTS, "m1")
    sae = f.train_sae(source, target=target, n=16, k=3, steps=10)
    assert list(f.evaluate_sae(sae, source, target=target, model=toy).baselines) == ["neurons"]
    assert not f.evaluate_sae(sae, source, target=target, model=toy, baselines=False).baselines


@pytest.fixture(scope="module")
def swept(toy: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    """(the activations, their sweep, its folder)."""
    acts, folder = f.activations(toy, TEXTS, "m1"), tmp_path_factory.mktemp("swept")
    return acts, f.sweep(acts, **FEW, model=toy, held_out=0.3, to=folder), folder


def test_a_sweep_is_the_trainings_and_evaluations_one_by_one(toy: Any, swept: tuple[Any, Any, Path]) -> None:
    """One of the three texts is held out; the trainings are of the two others."""
    _, found, folder = swept
    digest = f.load_sae(folder / "topk-2").digest
    parts = {number: [text for other, text in enumerate(TEXTS) if other != number] for number in range(3)}
    (out,) = (
        number
        for number, texts in parts.items()
        if f.train_sae(f.activations(toy, texts, "m1"), n=24, k=2, steps=8).digest == digest
    )
    train, rest = f.activations(toy, parts[out], "m1"), f.activations(toy, TEXTS[out], "m1")
    names = [
        "topk-2",
        "topk-4",
        "relu-1",
        *(f"{base}-{k}" for k in (2, 4) for base in ("pca", "random", "neurons")),
    ]
    assert [row.name for row in found.rows] == names
    for row, own in zip(found.rows, ({"k": 2}, {"k": 4}, {"sparsity": 1.0}), strict=False):
        sae = f.train_sae(train, kind=row.kind, n=24, steps=8, **own)
        assert f.load_sae(folder / row.name).digest == sae.digest
        expected = f.evaluate_sae(sae, rest, model=toy, baselines=False)
        assert row.quality == expected
    once = f.sweep(train, **(FEW | {"kinds": ["topk"], "sparsities": {"topk": [2]}}), held_out=0)
    again = f.evaluate_sae(f.load_sae(folder / "topk-2"), train, baselines=False)
    assert not once.held_out and once.rows[0].quality == again
    assert found.held_out and "measured on held-out activations" in str(found)
    table = found.to_dataframe()
    assert table.kind.tolist() == [row.kind for row in found.rows]
    assert table.loss_recovered.notna().all()


def test_a_sweep_that_was_stopped_goes_on(toy: Any, swept: tuple[Any, Any, Path], tmp_path: Path) -> None:
    acts, whole, folder = swept
    how = FEW | {"model": toy, "held_out": 0.3}

    def stop(done: int, total: int) -> None:
        assert total == 24
        if done == 13:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        f.sweep(acts, **how, to=tmp_path, progress=stop)
    assert (tmp_path / "topk-2" / "topk.json").exists() and not (tmp_path / "relu-1").exists()
    done: list[int] = []
    again = f.sweep(acts, **how, to=tmp_path, progress=lambda step, _: done.append(step))
    assert again == whole and done[0] == 8
    assert (tmp_path / "relu-1" / "relu.json").read_bytes() == (folder / "relu-1" / "relu.json").read_bytes()
    with pytest.raises(cd.CircuitDiscoveryError, match=r"has another sweep \(options differ\)"):
        f.sweep(acts, **(how | {"n": 25}), to=tmp_path)


def test_a_sweep_of_another_metric_is_another_sweep(toy: Any, tmp_path: Path) -> None:
    """Also where the metric is a function: it is known by its name."""
    task = cd.load_task("subject_verb_agreement", toy, examples=8)
    acts = f.activations(toy, task, "m1", position="all")
    how: dict[str, Any] = {"kinds": ["topk"], "sparsities": {"topk": [2]}, "n": 8, "steps": 2, "model": toy}

    def mine(logits: Tensor, part: Any) -> Tensor:
        return logits[:, 0]

    own = replace(task, metric=mine)  # type: ignore[arg-type]
    for number, (one, other) in enumerate([(task, replace(task, metric="logit")), (own, task)]):
        folder = tmp_path / str(number)
        found = f.sweep(acts, **how, task=one, to=folder)
        with pytest.raises(cd.CircuitDiscoveryError, match=r"has another sweep \(metric differ\)"):
            f.sweep(acts, **how, task=other, to=folder)
        assert f.sweep(acts, **how, task=one, to=folder) == found


def test_nothing_is_measured_on_what_was_trained_on(toy: Any) -> None:
    """Rows of the same tokens as one in training are left out, and prompts of the task that are trained on."""
    task = cd.load_task("subject_verb_agreement", toy, examples=96)
    acts = f.activations(toy, task, "m1", position="all")
    how: dict[str, Any] = {"kinds": ["topk"], "sparsities": {"topk": [2]}, "n": 8, "steps": 2, "model": toy}
    train, rest = sweeping._parts(acts, 0.25, 0)
    starts = [
        {part.prompts[row][: at + 1] for row, at in torch.stack([part.rows, part.positions], 1).tolist()}
        for part in (train, rest)
    ]
    trained = {train.prompts[row] for row in train.rows.tolist()}
    others = [example.clean for example in task if example.clean not in trained]
    assert not starts[0] & starts[1]
    assert starts[1] == {row[: at + 1] for row in others for at in range(1, len(row))} - starts[0]
    assert len(rest) < sum(len(row) - 1 for row in others)
    for given, count in ((task, len(task.held_out)), (replace(task, held_out=None), len(others))):
        found = f.sweep(acts, **how, task=given, held_out=0.25)
        part = "held-out examples" if given.held_out else "examples (none are held out)"
        assert found.rows[0].quality.behaviour_of == f"every token but the first of {count} {part}"
        assert f"{count} {part}" in str(found)
    again = f.activations(toy, [*(example.clean for example in task), task[0].clean[:2]], "m1")
    with pytest.raises(
        cd.CircuitDiscoveryError, match="all prompts of task subject_verb_agreement were trained on"
    ):
        f.sweep(again, **how, task=task.select(train.rows.unique()[:5].tolist()), held_out=0.001)
    with pytest.raises(cd.CircuitDiscoveryError, match="every prompt that is held out is trained on, too"):
        f.sweep(f.activations(toy, [task[0].clean] * 4, "m1"), **how)


def test_k_is_no_more_than_there_are_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default those that the width can have; another one is told before anything is trained."""
    x, trained = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)), list[dict[str, Any]]()

    def watched(acts: Any, **how: Any) -> Any:
        trained.append(how)
        return f.train_sae(acts, **how)

    monkeypatch.setattr(sweeping, "train_sae", watched)
    found = f.sweep(x, n=16, steps=2, kinds="topk")
    assert [row.sparsity for row in found.rows if row.kind == "topk"] == [4, 8, 16]
    assert [row.sparsity for row in found.rows if row.kind == "pca"] == [4, 8, 16]
    trained.clear()
    with pytest.raises(cd.CircuitDiscoveryError, match="k is 32, but there are only 16 features"):
        f.sweep(x, n=16, steps=2, kinds="topk", sparsities={"topk": [4, 32]})
    assert not trained


@pytest.mark.parametrize("values", [4, 4.0, np.int64(4), [4], np.array([4]), torch.tensor(4)])
def test_one_sparsity_is_a_number_or_a_list_of_one(values: Any) -> None:
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    found = f.sweep(x, n=8, steps=2, kinds="topk", sparsities={"topk": values})
    assert [row.name for row in found.rows] == ["topk-4", "pca-4", "random-4"]
    assert found.rows[0].quality.l0 <= 4


def test_two_close_sparsities_are_two_cells(tmp_path: Path) -> None:
    """Each is trained and kept with its own; a name is as short as its number is."""
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    weights = [1e-7, 0.5, 0.5000001, 1.0, 2, 1234567.0]
    how: dict[str, Any] = {"n": 8, "steps": 2, "kinds": ["relu"], "sparsities": {"relu": weights, "topk": 1}}
    found = f.sweep(x, **how, to=tmp_path)
    names = ["relu-1e-07", "relu-0.5", "relu-0.5000001", "relu-1", "relu-2", "relu-1234567"]
    assert [row.name for row in found.rows if row.kind == "relu"] == names
    assert {path.name for path in tmp_path.iterdir()} == {*names, "baselines-1", "sweep.json"}
    assert found == f.sweep(x, **how)


def test_the_picture_has_a_panel_for_each_figure(swept: tuple[Any, Any, Path], tmp_path: Path) -> None:
    found = swept[1]
    figure = found.plot(tmp_path / "sweep.png")
    assert [axes.get_ylabel() for axes in figure.axes] == ["explained variance", "loss recovered"]
    drawn = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].lines}
    assert list(drawn) == ["topk", "relu", "pca", "random", "neurons"]
    own = sorted((row.quality.l0, row.quality.explained_variance) for row in found.rows if row.kind == "topk")
    assert drawn["topk"] == [list(point) for point in own]
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(cd.CircuitDiscoveryError, match="must end in"):
        found.plot(tmp_path / "sweep.doc")
    found.save(tmp_path / "sweep.json")
    assert f.Sweep.load(tmp_path / "sweep.json") == found


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"kinds": ["top"]}, "no kind 'top'"),
        ({"sparsities": {"top": [1]}}, "no kind 'top'"),
        ({"sparsities": {"topk": [1.5]}}, "the sparsities of topk are whole numbers"),
        ({"sparsities": {"topk": "4"}}, "the sparsities of topk are whole numbers"),
        ({"sparsities": {"relu": [0.5, 0]}}, "the sparsities of relu are numbers above 0, not 0"),
        ({"sparsities": {"relu": None}}, "the sparsities of relu are numbers above 0, not None"),
        ({"sparsities": 4}, "sparsities must be a mapping from kinds to numbers"),
        ({"kinds": []}, "a sweep needs one kind and one sparsity at least"),
        ({"held_out": 1.0}, "held_out must be a share from 0 to below 1"),
        ({"held_out": -0.1}, "held_out must be a share"),
    ],
)
def test_what_cannot_be_swept(given: dict[str, Any], told: str) -> None:
    with pytest.raises(cd.CircuitDiscoveryError, match=told):
        f.sweep(torch.randn(9, 4), **(FEW | given))


def test_a_task_needs_a_model(toy: Any) -> None:
    with pytest.raises(cd.CircuitDiscoveryError, match="task= needs model="):
        f.sweep(torch.randn(9, 4), **FEW, task=cd.load_task("ioi", toy, examples=2))


# ------------------------------------------------------------------- the command line


def command(*words: object) -> str:
    found = CliRunner().invoke(cli, ["sae", *map(str, words)], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return found.stdout


def test_the_command_line_trains_shows_and_sweeps(toy: Any, tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.write_text("\n\n".join(TEXTS))
    how = ("--at", "m1", "--texts", texts, "--n", 32, "--steps", 8)
    command("train", "toy", *how, "--k", 2, "--to", tmp_path / "own")
    acts = f.activations(toy, TEXTS, "m1")
    sae = f.train_sae(acts, n=32, k=2, steps=8)
    assert f.load_sae(tmp_path / "own").digest == sae.digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own", "texts"]
    assert json.loads(command("show", tmp_path / "own", "--json"))["digest"] == sae.digest
    shown = json.loads(command("show", tmp_path / "own", "toy", "--texts", texts, "--json"))
    assert shown == f.evaluate_sae(sae, acts, model=toy).to_dict()
    found = command("sweep", "toy", *how, "--kind", "topk", "--to", tmp_path / "swept")
    assert "topk-4" in found and "neurons-32" in found
    assert (tmp_path / "swept" / "sweep.png").exists()


@pytest.mark.parametrize("name", ["train", "sweep"])
def test_ctrl_c_says_where_what_is_learnt_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """And the same command goes on there."""
    words = ["sae", name, "toy", "--at", "m1", "--task", "ioi", "--examples", "4", "--n", "32"]
    words += ["--steps", "8", "--kind", "topk", "--to", str(tmp_path / "own")]
    steps = losses.loss_of

    def stopping(*given: Any, **how: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return steps(*given, **how)

    left = 3
    monkeypatch.setattr(training, "_KEPT_STEPS", 2)
    monkeypatch.setattr(losses, "loss_of", stopping)
    with pytest.raises(SystemExit, match="130"):
        main(words)
    kept = tmp_path / ("own.state" if name == "train" else "own")
    assert f"what was done is in {kept}: the same command goes on from there" in capsys.readouterr().err
    assert kept.exists()
    left = 10_000
    with pytest.raises(SystemExit, match="0"):
        main(words)
    assert left > 10_000 - 8 or name == "sweep"


def test_wrong_words_are_one_line(tmp_path: Path) -> None:
    assert sorted(SAE_KINDS) == sorted(KINDS)
    for words, told in (
        (
            ("train", "toy", "--at", "m1", "--to", tmp_path / "own"),
            "give the prompts: --texts FILE or --task TASK",
        ),
        (("train", "toy", "--at", "m1", "--kind", "relu", "--k", "3", "--to", tmp_path), "--k is for topk"),
        (("show", tmp_path / "no"), "there is no folder"),
        (
            ("train", "toy", "--at", "m1", "--to", tmp_path, "--texts", __file__, "--task", "ioi"),
            "give --texts FILE or --task TASK, not both",
        ),
        (
            ("train", "toy", "--at", "m1", "--to", tmp_path, "--texts", __file__, "--examples", 2),
            "--examples is how many prompts of a task",
        ),
        (("show", tmp_path, "--task", "ioi"), "give MODEL, too"),
    ):
        with pytest.raises(cd.CircuitDiscoveryError, match=told):
            command(*words)
    assert not list(tmp_path.iterdir())
