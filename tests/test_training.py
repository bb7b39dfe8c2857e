"""Training of sparse dictionaries: superposed directions that are known, and identities of each kind."""

# pyright: reportOptionalOperand=false, reportOperatorIssue=false, reportArgumentType=false
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import circuitdiscovery as cd
from circuitdiscovery.features import collecting, losses
from circuitdiscovery.features.dictionary import Dictionary
from circuitdiscovery.features.whole import KINDS

f = cd.features
SMALL: dict[str, Any] = {"n": 24, "k": 3, "steps": 60, "lr": 5e-3}


def superposed(seed: int, n: int, d: int, rows: int, active: float) -> tuple[Tensor, Tensor]:
    """(directions [n, d] of length 1, [rows, d] sums of a few of them)."""
    draw = torch.Generator().manual_seed(seed)
    directions = F.normalize(torch.randn(n, d, generator=draw), dim=1)
    present = torch.rand(rows, n, generator=draw) < active / n
    return directions, (present * (0.5 + torch.rand(rows, n, generator=draw))) @ directions


def recovered(sae: Dictionary, directions: Tensor) -> float:
    """The share of the directions that some feature writes, at a cosine of .9 or more."""
    return float(((F.normalize(sae.W_dec, dim=1) @ directions.T).amax(0) >= 0.9).float().mean())


@pytest.fixture(scope="module")
def some() -> Tensor:
    return superposed(0, 24, 12, 3000, 2)[1] + 0.7


def options(kind: str) -> dict[str, Any]:
    return SMALL | {"kind": kind}


def test_directions_in_superposition_are_found() -> None:
    """48 directions in 32 dimensions, two at a time."""
    directions, x = superposed(1, 48, 32, 6000, 2)
    sae = f.train_sae(x, kind="topk", n=96, k=3, steps=300, lr=5e-3)
    assert recovered(sae, directions) >= 0.95
    assert recovered(sae, superposed(2, 48, 32, 1, 2)[0]) < 0.2
    found = f.evaluate_sae(sae, x)
    assert found.explained_variance > 0.9 and found.l0 <= 3
    assert sae.history[-1]["step"] == 300
    assert sae.history[-1]["explained_variance"] == pytest.approx(found.explained_variance, abs=0.03)


@pytest.mark.parametrize(("kind", "sparsity", "share"), [("gated", 4.6, 0.95), ("jumprelu", 0.7, 0.85)])
def test_kinds_with_a_weight_find_them_at_about_the_true_number(
    kind: str, sparsity: float, share: float
) -> None:
    """In few steps; `benchmarks/superposition.py` has the figures of long trainings. JumpReLU finds none of
    them where its thresholds begin at a tenth of what a random row gives."""
    directions, x = superposed(1, 48, 32, 6000, 2)
    sae = f.train_sae(x, kind=kind, sparsity=sparsity, n=96, steps=300, lr=5e-3)
    assert recovered(sae, directions) >= share
    assert 1.5 < f.evaluate_sae(sae, x, baselines=False).l0 < 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_that_was_stopped_ends_with_the_same_bytes(
    kind: str, some: Tensor, tmp_path: Path
) -> None:
    whole = f.train_sae(some, **options(kind), seed=3)
    other = f.train_sae(some, **options(kind), seed=4)
    assert not torch.equal(whole.W_dec, other.W_dec)

    def stop(done: int, total: int) -> None:
        if done == 33:
            raise KeyboardInterrupt

    state = tmp_path / "training.state"
    with pytest.raises(KeyboardInterrupt):
        f.train_sae(some, **options(kind), seed=3, state=state, progress=stop)
    began: list[int] = []
    found = f.train_sae(
        some, **options(kind), seed=3, state=state, progress=lambda done, total: began.append(done)
    )
    assert began[0] == 21  # what was kept last
    assert found.digest == whole.digest and found.history == whole.history
    with pytest.raises(
        cd.CircuitDiscoveryError, match=r"the state of another training .*seed 3 there, 4 here"
    ):
        f.train_sae(some, **options(kind), seed=4, state=state)


@pytest.mark.parametrize("kind", KINDS)
def test_a_dictionary_is_of_the_activations_as_they_are(kind: str, some: Tensor) -> None:
    """Shifted and scaled activations have the same features, scaled: what the training sees is the same."""
    sae, scaled = f.train_sae(some, **options(kind)), f.train_sae(some * 8 - 3, **options(kind))
    expected = sae.encode(some) * 8
    close = ((scaled.encode(some * 8 - 3) - expected).abs() < 1e-2 * expected.abs().max()).float().mean()
    assert close > 0.999  # rounding can send one of two nearly equal ones into the k largest
    assert sae.subtracts_b_dec and sae.kind == kind
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(24), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_transcoder_of_an_identity_is_an_autoencoder_in_another_scale(kind: str, some: Tensor) -> None:
    """What it reads is centred and scaled, too, and not by what it writes."""
    target = some * 5 + 1
    sae = f.train_sae(some, **options(kind), target=target)
    assert sae.transcoder and not sae.subtracts_b_dec
    begun = f.evaluate_sae(sae, some, target=target)
    moved = f.train_sae(some * 8 - 3, **options(kind), target=target)
    found = f.evaluate_sae(moved, some * 8 - 3, target=target)
    assert found.explained_variance == pytest.approx(begun.explained_variance, abs=5e-3)
    assert found.l0 == pytest.approx(begun.l0, abs=0.05)


def by_hand(kind: str, held: dict[str, np.ndarray], x: np.ndarray, y: np.ndarray) -> float:
    """The published loss, row by row; k is 3, sparsity .7 and no feature is dead."""
    total = 0.0
    for row, goal in zip(x, y, strict=True):
        before = held["W_enc"] @ row + held["b_enc"]
        z, extra = np.maximum(before, 0), 0.0
        if kind == "topk":
            z[np.argsort(-before)[3:]] = 0
        if kind == "relu":
            extra = 0.7 * z.sum()
        if kind == "jumprelu":
            z = before * (before > np.exp(held["log_threshold"]))
            extra = 0.7 * (z > 0).sum()
        if kind == "gated":
            gate = z
            z = np.maximum(np.exp(held["r_mag"]) * (held["W_enc"] @ row) + held["b_mag"], 0) * (before > 0)
            through = held["W_dec"].T @ gate + held["b_dec"]
            extra = 0.7 * gate.sum() + ((goal - through) ** 2).sum()
        total += ((goal - held["W_dec"].T @ z - held["b_dec"]) ** 2).sum() + extra
    return total / len(x)


def parameters(kind: str) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(5)
    held = losses.start(kind, 10, 6, 6, draw)
    return {
        name: (each.detach() + 0.3 * torch.randn(each.shape, generator=draw)).double().requires_grad_()
        for name, each in held.items()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_published_one(kind: str) -> None:
    held = parameters(kind)
    draw = torch.Generator().manual_seed(6)
    x, y = torch.randn(2, 9, 6, generator=draw).double()
    none = torch.zeros(10, dtype=torch.bool)
    loss, squared, z = losses.loss_of(kind, held, x, y, k=3, sparsity=0.7, dead=none)
    arrays = {name: each.detach().numpy() for name, each in held.items()}
    assert float(loss.detach()) == pytest.approx(by_hand(kind, arrays, x.numpy(), y.numpy()), rel=1e-10)
    error = y - z @ held["W_dec"].detach() - held["b_dec"].detach()
    assert float(squared) == pytest.approx(float(error.square().sum(-1).mean()), rel=1e-10)


def test_the_gradient_of_a_threshold_is_the_kernels() -> None:
    """Rajamanoharan et al. 2024b, equations 11 and 12, for the loss as a whole."""
    held, draw = parameters("jumprelu"), torch.Generator().manual_seed(6)
    x, y = torch.randn(2, 2000, 6, generator=draw).double()
    none = torch.zeros(10, dtype=torch.bool)
    loss, _, z = losses.loss_of("jumprelu", held, x, y, k=0, sparsity=0.7, dead=none)
    (found,) = torch.autograd.grad(loss, [held["log_threshold"]])
    held = {name: each.detach() for name, each in held.items()}
    threshold, width = held["log_threshold"].exp(), losses.BANDWIDTH
    near = ((x @ held["W_enc"].T + held["b_enc"] - threshold).abs() < width / 2).double()
    back = -2 * (y - z @ held["W_dec"] - held["b_dec"]) @ held["W_dec"].T  # of the loss in z
    expected = (near * (-threshold / width * back - 0.7 / width)).mean(0) * threshold
    torch.testing.assert_close(found, expected)


def test_dead_features_write_what_is_missing() -> None:
    """Gao et al. 2024, A.2: of the dead alone, as many as half the width, and with no gradient but theirs."""
    held, draw = parameters("topk"), torch.Generator().manual_seed(6)
    x, y = torch.randn(2, 9, 6, generator=draw).double()
    dead = torch.arange(10) >= 4
    plain = losses.loss_of("topk", held, x, y, k=3, sparsity=0.0, dead=torch.zeros(10, dtype=torch.bool))
    found = losses.loss_of("topk", held, x, y, k=3, sparsity=0.0, dead=dead)
    arrays = {name: each.detach().numpy() for name, each in held.items()}
    total = 0.0
    for row, goal, z in zip(x.numpy(), y.numpy(), plain[2].numpy(), strict=True):
        error = goal - arrays["W_dec"].T @ z - arrays["b_dec"]
        own = np.where(dead.numpy(), arrays["W_enc"] @ row + arrays["b_enc"], -np.inf)
        own = np.where(own >= np.sort(own)[-3], np.maximum(own, 0), 0)  # half of 6
        total += ((arrays["W_dec"].T @ own - error) ** 2).sum()
    assert float((found[0] - plain[0]).detach()) == pytest.approx(total / 9 / 32, rel=1e-10)


def test_a_diverging_training_is_one_line_and_leaves_nothing(some: Tensor, tmp_path: Path) -> None:
    state = tmp_path / "training.state"
    for _ in range(2):
        with pytest.raises(cd.CircuitDiscoveryError, match=r"diverged at step \d+: the loss is not finite"):
            f.train_sae(some, kind="relu", n=8, lr=1e30, state=state)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"kind": "top"}, "no kind 'top'; did you mean 'topk'"),
        ({"k": 99}, "k is 99, but there are only 24 features"),
        ({"n": 0}, "n must be a whole number of at least 1"),
        ({"sparsity": 1.0}, "sparsity is for relu, jumprelu and gated"),
        ({"lr": -1.0}, "lr must be above 0"),
        ({"target": torch.zeros(5, 12)}, "target is everywhere the same|target has 5 rows, acts have 3,000"),
    ],
)
def test_what_cannot_be_trained(some: Tensor, given: dict[str, Any], told: str) -> None:
    with pytest.raises(cd.CircuitDiscoveryError, match=told):
        f.train_sae(some, **(SMALL | given))


def test_a_view_of_an_array_is_what_it_shows(some: Tensor) -> None:
    """Backwards, with strides below 0; one that is read only; one of the other order of bytes."""
    x, expected = some.numpy()[::-1], f.train_sae(some.flip(0), **SMALL).digest
    fixed = x.copy()
    fixed.flags.writeable = False
    for each in (x, fixed, x.astype(">f4")):
        assert f.train_sae(each, **SMALL).digest == expected


@pytest.mark.parametrize(
    ("acts", "told"),
    [
        (torch.full((9, 4), torch.nan), "acts has numbers that are not finite"),
        (torch.ones(9, 4), "acts is everywhere the same"),
        (torch.ones(0, 4), "acts has no row"),
        ([[1.0]], "acts must be what features.activations gives"),
        (np.array([["a", "b"]]), "acts must be what features.activations gives, or a matrix"),
    ],
)
def test_what_cannot_be_trained_on(acts: Any, told: str) -> None:
    with pytest.raises(cd.CircuitDiscoveryError, match=told):
        f.train_sae(acts)


# ------------------------------------------------------------------- in a model


TEXTS = ["The keys on the table are small.", "There is a dog by the door.", "The dog is old."]


@pytest.fixture(scope="module")
def toy() -> Any:
    return cd.load_model("toy")


@pytest.fixture(scope="module")
def task(toy: Any) -> Any:
    return cd.load_task("ioi", toy, examples=6)


@pytest.fixture(scope="module")
def more(toy: Any) -> Any:
    """So many examples that what a mean takes away is distinguishable from nothing."""
    return cd.load_task("ioi", toy, examples=40)


def identity(site: str, d: int, centre: Tensor) -> Dictionary:
    """Principal directions with both signs: relu(x) - relu(-x) = x."""
    rows, _ = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(0)))
    both = torch.cat([rows, -rows])
    zero = torch.zeros(2 * d)
    return Dictionary("relu", site, "output", both, zero, both, centre, subtracts_b_dec=True)


@pytest.mark.parametrize("site", ["m1", "resid2", "a1", "a1.z", "m1.neurons"])
def test_of_a_whole_dictionary_nothing_is_lost_and_of_an_empty_one_all(
    toy: Any, more: Any, site: str
) -> None:
    acts = f.activations(toy, TEXTS, site)
    mean = acts.values.mean(0)
    found = f.evaluate_sae(identity(site, acts.d, mean), acts, model=toy, task=more, baselines=False)
    assert found.explained_variance == pytest.approx(1, abs=1e-5) and found.l0 == pytest.approx(acts.d)
    assert found.kl_reconstruction < 1e-6 < found.kl_mean
    assert found.loss_recovered == pytest.approx(1, abs=1e-4)
    assert found.behaviour == pytest.approx(1, abs=1e-4) and abs(found.shrinkage) < 1e-5
    zero = torch.zeros(3, acts.d)
    empty = Dictionary("relu", site, "output", zero, torch.zeros(3), zero, mean)
    found = f.evaluate_sae(empty, acts, model=toy, task=more, baselines=False)
    assert found.explained_variance == pytest.approx(0, abs=1e-5) and found.dead == 1
    assert found.kl_reconstruction == pytest.approx(found.kl_mean, rel=1e-3)
    assert abs(found.loss_recovered) < 1e-3
    assert found.behaviour == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(
    ("site", "position", "where"),
    [
        ("m2", None, "position END"),
        ("resid1", "S2", "position S2"),
        ("resid1", -2, "position -2"),
        ("m2", "all", "every token but the first"),
    ],
)
def test_behaviour_is_of_the_activations_positions_on_held_out_examples(
    toy: Any, more: Any, site: str, position: Any, where: str, tmp_path: Path
) -> None:
    """The dictionary and the mean are put in by hand, prompt by prompt; the same of activations in files."""
    acts = f.activations(toy, more, site, position=position)
    sae, mean = f.train_sae(acts, n=64, k=2, steps=40), acts.values.mean(0)
    values = list[list[float]]()
    for example in more.held_out.examples:
        last = len(example.clean)
        known = {None: [example.position], "all": list(range(1, last)), -2: [last - 2]}
        at = [example.positions["S2"]] if position == "S2" else known[position]

        def put(made: Any, at: list[int] = at) -> Any:
            def edit(x: Tensor) -> Tensor:
                x = x.clone()
                x[0, at] = made(x[0, at])
                return x

            return edit

        edits = [lambda x: x, put(lambda x: sae.decode(sae.encode(x))), put(lambda x: mean.expand_as(x))]
        runs = [f.run(toy, [example.clean], edits={site: each}).values("logits") for each in edits]
        logits = [run[0, example.position] for run in runs]
        values.append([float(x[list(example.correct)] - x[list(example.incorrect)]) for x in logits])
    full, made, none = np.mean(values, 0)
    taken = np.array(values)[:, 0] - np.array(values)[:, 2]
    kept = f.activations(toy, more, site, position=position, to=tmp_path)
    for given in (acts, kept):
        found = f.evaluate_sae(sae, given, model=toy, task=more, baselines=False)
        if position == -2:  # the word before the last one's hardly matters
            assert taken.mean() < taken.std(ddof=1) / len(taken) ** 0.5
            assert found.behaviour is None and "is not distinguishable from 0" in found.behaviour_of
            continue
        assert found.behaviour == pytest.approx((made - none) / (full - none), rel=1e-3, abs=1e-3)
        assert found.behaviour_of == f"{where} of 40 held-out examples" and found.behaviour_of in str(found)
    told = "acts do not say of which position they are"
    words = f.word_labels(toy, more, "gender").activations(toy, site)
    with pytest.raises(cd.CircuitDiscoveryError, match=told):
        f.evaluate_sae(sae, words, model=toy, task=more)


@pytest.mark.parametrize("kind", KINDS)
def test_no_more_features_are_held_than_the_budget_allows(
    toy: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of activations, and in a run; the figures are the same."""
    acts, most = f.activations(toy, TEXTS, "m1"), list[int]()
    sae = f.train_sae(acts, kind=kind, n=512, k=4, steps=5)
    whole = f.evaluate_sae(sae, acts, model=toy, baselines=False)
    encode = Dictionary.encode

    def counted(self: Dictionary, x: Tensor) -> Tensor:
        found = encode(self, x)
        most.append(3 * found.numel() * found.element_size())
        return found

    monkeypatch.setattr(Dictionary, "encode", counted)
    with cd.memory_budget(8 * 3 * 4 * 512 * 2):  # an eighth is of two activations
        found = f.evaluate_sae(sae, acts, model=toy, baselines=False)
    assert max(most) <= 3 * 4 * 512 * 2 and len(most) > len(acts)
    for name in ("l0", "explained_variance", "shrinkage", "kl_reconstruction"):
        assert found.figures[name] == pytest.approx(whole.figures[name], rel=1e-3, abs=1e-6)


def test_features_of_half_their_size_are_shrunk_by_a_half() -> None:
    x = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    x = x - x.mean(0)
    whole = identity("m1", 8, torch.zeros(8))
    half = Dictionary("relu", "m1", "output", whole.W_enc, whole.b_enc, whole.W_dec / 2, whole.b_dec)
    found = f.evaluate_sae(half, x)
    assert found.shrinkage == pytest.approx(0.5) and found.explained_variance == pytest.approx(0.75)


@pytest.mark.parametrize("reads", ["normed", "bare", "stream"])
def test_a_transcoder_reads_the_run_that_it_writes_into(toy: Any, reads: str) -> None:
    """KL is that of a run with the MLP's output replaced by hand, and the graph's split takes it."""
    source, target = f.activations(toy, TEXTS, f"m1.{reads}"), f.activations(toy, TEXTS, "m1")
    sae = f.train_sae(source, n=64, k=4, steps=40, target=target)
    assert sae.site == "m1" and sae.reads == {"bare": "normed without gain"}.get(reads, reads)
    found = f.evaluate_sae(sae, source, target=target, model=toy, baselines=False)
    total = count = 0.0
    for text in TEXTS:
        plain = f.run(toy, text)
        written = plain.values("m1").clone()
        written[:, 1:] = sae.decode(sae.encode(plain.values(f"m1.{reads}")))[:, 1:]
        other = f.run(toy, text, edits={"m1": written}).values("logits").log_softmax(-1)
        expected = plain.values("logits").log_softmax(-1)
        divergence = (expected.exp() * (expected - other)).sum(-1)[:, 1:]
        total, count = total + float(divergence.sum()), count + divergence.numel()
    assert found.kl_reconstruction == pytest.approx(total / count, rel=1e-4)
    assert found.kl_reconstruction and found.kl_reconstruction.low == 0  # Student is below
    assert f"m1/f{63}" in cd.split(toy, {"m1": sae}).parts("m1")
    with pytest.raises(cd.CircuitDiscoveryError, match="give target="):
        f.evaluate_sae(sae, source)


def test_a_trained_dictionary_is_saved_and_read(toy: Any, tmp_path: Path) -> None:
    acts = f.activations(toy, TEXTS, "m1")
    for kind in KINDS:
        sae = f.train_sae(acts, kind=kind, n=40, k=4, steps=30)
        sae.save(tmp_path / kind)
        found = f.load_sae(tmp_path / kind)
        assert found.digest == sae.digest and found.site == "m1"
        assert torch.equal(found.encode(acts.values), sae.encode(acts.values))


@pytest.mark.parametrize(
    ("source", "target", "told"),
    [
        ("m1.normed", None, "is what an MLP reads: an autoencoder of it stands nowhere; give target="),
        ("m1.normed", "m2", "a transcoder reads an MLP's input .* acts are of m1.normed, target is of m2"),
        ("resid1", "m1", "acts are of resid1, target is of m1"),
    ],
)
def test_places_that_no_dictionary_has(toy: Any, source: str, target: str | None, told: str) -> None:
    other = None if target is None else f.activations(toy, TEXTS, target)
    with pytest.raises(cd.CircuitDiscoveryError, match=told):
        f.train_sae(f.activations(toy, TEXTS, source), n=8, k=2, steps=2, target=other)


@pytest.mark.parametrize(
    ("texts", "source", "target", "position", "told"),
    [
        (TEXTS, "m1.bare", "m1", 1, "reads activations at m1.normed, but these are at m1.bare"),
        (TEXTS, "m1.normed", "m2", 1, "writes activations at m1, but these are at m2"),
        (TEXTS, "m1.normed", "m1", -1, "target is of other positions than acts"),
        (TEXTS[::-1], "m1.normed", "m1", 1, "target is of other prompts than acts"),
        (TEXTS[:2], "m1.normed", "m1", 1, "target has 2 rows, acts have 3"),
    ],
)
def test_a_transcoder_is_of_one_place_row_for_row(
    toy: Any, texts: list[str], source: str, target: str, position: int, told: str
) -> None:
    """In a training, whose place the activations say, as in an evaluation."""
    read, written = f.activations(toy, TEXTS, "m1.normed"), f.activations(toy, TEXTS, "m1")
    sae = f.train_sae(read, n=8, k=2, steps=2, target=written)
    assert f.evaluate_sae(sae, read, target=written.values).rows == len(read)  # a matrix has rows alone
    acts, other = (
        f.activations(toy, TEXTS, source, position=1),
        f.activations(toy, texts, target, position=position),
    )
    with pytest.raises(cd.CircuitDiscoveryError, match=told):
        f.evaluate_sae(sae, acts, target=other)
    if told.startswith("target"):
        with pytest.raises(cd.CircuitDiscoveryError, match=told):
            f.train_sae(acts, n=8, k=2, steps=2, target=other)


def test_a_transcoder_is_of_files_and_memory_together(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files end elsewhere than what is looked at together; the figures do not say where they are read from."""
    monkeypatch.setattr(collecting, "_SHARD", 10)
    monkeypatch.setattr(collecting, "_AT_ONCE", 4)
    read, written = f.activations(toy, TEXTS * 5, "m2.normed"), f.activations(toy, TEXTS * 5, "m2")
    kept = f.activations(toy, TEXTS * 5, "m2.normed", to=tmp_path)
    assert len(kept.parts) > 3 and kept.digest == read.digest
    sae = f.train_sae(read, target=written, n=16, k=2, steps=5)
    found = f.evaluate_sae(sae, kept, target=written, baselines=False)
    assert found.to_dict() == f.evaluate_sae(sae, read, target=written, baselines=False).to_dict()
    how: dict[str, Any] = {"kinds": ["topk"], "sparsities": {"topk": [2]}, "n": 8, "steps": 3, "held_out": 0}
    assert len(f.sweep(kept, target=written, **how).rows) == 1


def test_a_norm_that_follows_a_node_makes_two_places_of_it(toy: Any, tinies: Any, tmp_path: Path) -> None:
    """Gemma has one; elsewhere a dictionary from before it and activations from after it are of one. Activations
    say it themselves, in files, too."""
    for model, same in ((toy, True), (cd.load_model(tinies("gemma3").hf), False)):
        prompts = [[5, 6, 7, 8], [9, 3, 4]]
        before, after = (f.activations(model, prompts, site) for site in ("m1.inner", "m1"))
        assert torch.equal(before.values, after.values) == same
        sae = f.train_sae(before, n=8, k=2, steps=2)
        assert sae.inner and f.evaluate_sae(sae, before, model=model, baselines=False).rows == 5
        kept = f.activations(model, prompts, "m1", to=tmp_path / model.digest[:8])
        unsaid = replace(after, normed=False)  # as activations were kept before: the model says it
        for given, how in ((after, {"model": model}), (unsaid, {"model": model}), (after, {}), (kept, {})):
            if same:
                assert f.evaluate_sae(sae, given, baselines=False, **how).rows == 5
                continue
            with pytest.raises(cd.CircuitDiscoveryError, match=r"at m1\.inner, but these are at m1$"):
                f.evaluate_sae(sae, given, baselines=False, **how)


def test_what_is_kept_of_nothing_is_undefined(toy: Any, task: Any) -> None:
    """Every prompt is right with the mean in the site's place, too: (F - F) / (F - F). Where the mean takes as
    much from some prompts as it gives to others, the share kept has no size either, and says why.
    """
    acts = f.activations(toy, task, "m1", position="all")
    mean, sure = acts.values.mean(0), replace(task, metric="accuracy", held_out=None)
    logits = f.run(toy, task, edits={"m1": lambda x: torch.cat([x[:, :1], mean.expand_as(x[:, 1:])], 1)})
    for row, example in enumerate(task):
        answers = logits.values("logits")[row][example.position]
        assert answers[list(example.correct)].max() > answers[list(example.incorrect)].max()
    for given in (sure, replace(sure, metric=cd.Metric("none", lambda logits, _: logits.sum(-1) * 0))):
        found = f.evaluate_sae(identity("m1", acts.d, mean), acts, model=toy, task=given, baselines=False)
        assert found.behaviour is None and "behaviour kept" not in str(found)
        assert "every token but the first of 6 examples (none are held out): F(x) - F(m) = 0" in str(found)
        assert " is rounding: the mean there changes nothing" in str(found)
        assert type(found).from_dict(found.to_dict()).to_dict() == found.to_dict()
    signs = torch.tensor([1.0, -1.0] * 3)
    tilted = cd.Metric("tilted", lambda logits, rows: logits[:, 0] * signs[: len(logits)])
    given = replace(sure, metric=tilted)
    found = f.evaluate_sae(identity("m1", acts.d, mean), acts, model=toy, task=given, baselines=False)
    assert found.behaviour is None and "is not distinguishable from 0" in str(found)


def test_what_is_kept_of_every_answer_may_be_lost_elsewhere(toy: Any) -> None:
    """What stands there keeps all of what its mean takes away, of 48 prompts; and a model that is better with
    the mean has nothing to keep."""
    task = replace(cd.load_task("ioi", toy, examples=48), metric="accuracy", held_out=None)
    acts = f.activations(toy, task, "resid2", position="all")
    same = identity("resid2", acts.d, acts.values.mean(0))
    turned = tuple(replace(e, correct=e.incorrect, incorrect=e.correct) for e in task.examples)
    kept, none = (
        f.evaluate_sae(same, acts, model=toy, task=replace(task, examples=each), baselines=False)
        for each in (task.examples, turned)
    )
    assert kept.behaviour is not None and kept.behaviour == 1 and kept.behaviour.low < 1 - 3 / 48
    assert none.behaviour is None and "worse than with the mean there" in str(none.behaviour_of)


def test_what_is_everywhere_the_same_is_not_shrunk() -> None:
    """All features are dead: what is written is b_dec, which has no size to compare."""
    x = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    zero = torch.zeros(3, 8)
    for written in (torch.ones(8), x.mean(0)):
        dead = Dictionary("relu", None, "output", zero, -torch.ones(3), zero, written)
        assert np.isnan(f.evaluate_sae(dead, x, baselines=False).shrinkage)


def test_a_batch_of_equal_rows_has_no_variance_to_explain() -> None:
    """Of two rows about every other batch has one of them twice."""
    x = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    explained = [point["explained_variance"] for point in f.train_sae(x, n=8, k=2, steps=50).history]
    assert 10 < np.isnan(explained).sum() < 40


def test_what_cannot_be_evaluated(toy: Any, task: Any) -> None:
    acts = f.activations(toy, TEXTS, "m1")
    sae = identity("m1", acts.d, acts.values.mean(0))
    for given, told in (
        ((acts, acts), "sae must be what features.train_sae"),
        ((sae, acts.values[:, :5]), "the dictionary reads activations of width 128, but these have 5"),
        ((sae, f.activations(toy, TEXTS, "m2")), "reads activations at m1, but these are at m2"),
    ):
        with pytest.raises(cd.CircuitDiscoveryError, match=told):
            f.evaluate_sae(*given)
    with pytest.raises(cd.CircuitDiscoveryError, match="an autoencoder writes what it reads"):
        f.evaluate_sae(sae, acts, target=acts)
    with pytest.raises(cd.CircuitDiscoveryError, match="acts are a matrix, without prompts"):
        f.evaluate_sae(sae, acts.values, model=toy)
    with pytest.raises(cd.CircuitDiscoveryError, match="task= needs model="):
        f.evaluate_sae(sae, acts, task=task)
