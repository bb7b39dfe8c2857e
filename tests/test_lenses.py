"""Lenses beside Hugging Face's forward, TransformerLens' logit lens and NumPy's least squares."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_families import CASES, config_of
from test_run_sites import hooked, layers, networks, seen
from tiny import ARCHITECTURES, VOCABULARY, Tiny, random_model, random_prompts, tiny_config
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import circuitdiscovery as cd
from circuitdiscovery.cli.main import main
from circuitdiscovery.features import lens_fitting, lenses
from circuitdiscovery.features.lens_fitting import KLTraining, gathered
from circuitdiscovery.features.lens_reading import LensReading
from circuitdiscovery.features.units import logits_of
from circuitdiscovery.reporting import progress

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
import toy_text  # noqa: E402  # pyright: ignore[reportMissingImports]

f = cd.features
TOKENS = random_prompts(VOCABULARY, 3, 7).clean
ROWS = TOKENS.tolist()


@pytest.fixture(scope="module", params=networks())
def pair(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """(Hugging Face's model, ours)."""
    name = request.param
    network = random_model(tiny_config(name) if name in ARCHITECTURES else config_of(*CASES[name]))
    return network, cd.load_model((network, None))


@pytest.fixture(scope="module")
def texts() -> tuple[list[str], list[str]]:
    """(to fit on, held out): documents of the toy model's text."""
    world, rng = toy_text.load_world(), random.Random(0)
    made = dict.fromkeys(toy_text.document(world, rng) for _ in range(500))
    short = [text for text in made if len(text.split()) < 40]
    return short[80:], short[:80]


@pytest.fixture(scope="module")
def tuned(toy: Any, texts: tuple[list[str], list[str]]) -> Any:
    return f.lens(toy, kind="tuned", fit_on=texts[0], steps=100)


def close(found: Tensor, expected: Tensor) -> None:
    assert (found - expected).abs().max() < 1e-5 * max(1.0, float(expected.abs().max()))


def test_the_last_layers_lens_is_hugging_faces_model(pair: tuple[Any, Any]) -> None:
    network, model = pair
    with torch.no_grad():
        expected = network(TOKENS).logits
    last = f"resid{model.n_layers}"
    stream = f.run(model, ROWS).values(last)
    for kind in ("logit", "linear", "tuned"):
        rows, steps = None if kind == "logit" else ROWS, 1 if kind == "tuned" else None
        lens = f.lens(model, kind=kind, fit_on=rows, steps=steps)
        close(lens.logits(last, stream), expected)
        reading = lens.read(ROWS, first=True)
        assert reading.kl[-1] == pytest.approx(0, abs=1e-6) and reading.recall(1)[-1] == 1
        assert lens.sites == tuple(f"resid{i}" for i in range(model.n_layers + 1))


def test_a_streams_logits_are_those_of_a_model_whose_last_block_gives_that_stream(
    pair: tuple[Any, Any],
) -> None:
    network, model = pair
    lens, run = f.lens(model), f.run(model, ROWS)
    for layer in range(model.n_layers):
        stream = seen(network, layers(network)[layer], before=True)
        with hooked(layers(network)[-1], lambda _, x=stream: x), torch.no_grad():
            expected = network(TOKENS).logits
        close(lens.logits(f"resid{layer}", run.values(f"resid{layer}")), expected)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3", "neox_parallel"])
def test_the_logit_lens_is_transformerlens(name: str, tinies: Callable[[str], Tiny]) -> None:
    from transformer_lens.tools.analysis import logit_lens

    model = cd.load_model(tinies(name).hf)
    theirs = logit_lens(model.to_bridge(), TOKENS, positions=None)
    lens, run = f.lens(model), f.run(model, ROWS)
    for i, site in enumerate(lens.sites):
        close(lens.logits(site, run.values(site)), theirs.values[i])


def test_a_token_is_recalled_where_it_is_the_lens_s_own() -> None:
    """In bfloat16, where many tokens have the same logit, of which one is the likeliest; by NumPy's stable
    sort of the logits, too."""
    model = cd.load_model((random_model(tiny_config("gpt2", vocab_size=2000)), None), dtype="bfloat16")
    lens, rows = f.lens(model), random_prompts(2000, 20, 12).clean.tolist()
    reading = lens.read(rows, first=True)
    right = reading.tokens[-1]
    own = (reading.tokens == right).double().mean(1).tolist()
    assert [float(each) for each in reading.recall(1)] == pytest.approx(own)
    logits = lens.logits("resid1", f.run(model, rows).values("resid1")).flatten(0, 1).double()
    order = np.argsort(-logits.numpy(), axis=-1, kind="stable")
    assert reading.ranks[1].tolist() == (order == right.numpy()[:, None]).argmax(1).tolist()


def test_ranks_and_recall_are_transformerlens_of_the_answers(toy: Any) -> None:
    from transformer_lens.tools.analysis import logit_lens

    task = cd.load_task("ioi", toy, examples=6)
    reading, bridge = f.lens(toy).read(task), toy.to_bridge()
    for row, example in enumerate(task.examples):
        theirs = logit_lens(
            bridge, torch.tensor([example.clean]), positions=example.position, targets=list(example.correct)
        )
        assert theirs.readout.target_ranks is not None
        ranks = theirs.readout.target_ranks.reshape(len(reading.sites), -1).amin(1)
        assert reading.ranks[:, row].tolist() == ranks.tolist()
    counts: list[Any] = [1, 10, np.int64(2), torch.tensor(3)]
    for k in counts:
        assert [float(each) for each in reading.recall(k)] == (reading.ranks < k).double().mean(1).tolist()


def by_numpy(x: Tensor, y: Tensor, intercept: bool) -> np.ndarray:
    a = x.double().numpy()
    a = np.concatenate([a, np.ones((len(a), 1))], 1) if intercept else a
    return a @ np.linalg.lstsq(a, y.double().numpy(), rcond=None)[0]


@pytest.mark.parametrize(("kind", "ahead"), [("linear", 0), ("future", 1), ("future", 3)])
def test_fits_are_numpys_least_squares(
    toy: Any, texts: tuple[list[str], list[str]], kind: str, ahead: int
) -> None:
    """From each token to the last stream, `ahead` tokens later, of all texts but their first tokens."""
    some = texts[0][:60]
    lens = f.lens(toy, kind=kind, fit_on=some, ahead=ahead or None)
    last, stream = (f.activations(toy, some, site) for site in ("resid4", "resid1"))
    lengths = [len(row) for row in last.prompts]
    here = torch.tensor(
        [
            at + ahead < lengths[row]
            for row, at in zip(stream.rows.tolist(), stream.positions.tolist(), strict=True)
        ]
    )
    there = last.positions > ahead
    expected = torch.from_numpy(by_numpy(stream.values[here], last.values[there], kind == "future"))
    found = lens.maps["resid1"](stream.values[here]).double()
    assert (found - expected).norm() < 1e-3 * expected.norm()
    assert lens.tokens == int(here.sum())


def test_tuned_is_nearer_than_linear_and_linear_than_logit_on_held_out_documents(
    toy: Any, tuned: Any, texts: tuple[list[str], list[str]]
) -> None:
    fit, held = texts
    linear, logit = f.lens(toy, kind="linear", fit_on=fit), f.lens(toy)
    kl = {
        kind: lens.read(held).kl for kind, lens in {"tuned": tuned, "linear": linear, "logit": logit}.items()
    }
    for layer in range(toy.n_layers):
        assert kl["tuned"][layer] < kl["linear"][layer] < kl["logit"][layer]
    assert all(each[-1] == 0 for each in kl.values())


def test_a_step_that_sees_a_part_of_the_vocabulary_estimates_the_whole_divergence(
    toy: Any, texts: tuple[list[str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = f.activations(toy, texts[1][:20], "resid4").values
    made = f.activations(toy, texts[1][:20], "resid2").values
    at = torch.arange(len(rows))
    whole = KLTraining(toy, rows, normed=True, lr=1e-3, steps=1)
    exact = float(whole._loss(made, at, whole._seen(torch.Generator())))
    found = (logits_of(toy, rows).log_softmax(-1), logits_of(toy, made).log_softmax(-1))
    assert exact == pytest.approx(float((found[0].exp() * (found[0] - found[1])).sum(-1).mean()), rel=1e-5)
    monkeypatch.setattr(lens_fitting, "COMMON", 150)
    monkeypatch.setattr(lens_fitting, "DRAWN", 150)
    part, generator = KLTraining(toy, rows, normed=True, lr=1e-3, steps=1), torch.Generator().manual_seed(0)
    estimates = [float(part._loss(made, at, part._seen(generator))) for _ in range(100)]
    assert np.mean(estimates) == pytest.approx(exact, rel=0.03)
    assert np.std(estimates) > 0


class LargestMade(TorchDispatchMode):
    """Of what torch makes inside, the most elements of one tensor."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        made = [each for each in tree_leaves(found) if isinstance(each, Tensor)]
        self.elements = max([self.elements, *(each.numel() for each in made)])
        return found


@pytest.mark.parametrize("normed", [True, False])
def test_a_training_makes_nothing_as_large_as_its_rows(toy: Any, normed: bool) -> None:
    """Which may lie in a file because they are more than fits into memory."""
    final, x = torch.randn(2, 20_000, toy.d_model, generator=torch.Generator().manual_seed(0))
    with LargestMade() as made:
        KLTraining(toy, final, normed=normed, lr=1e-3, steps=3).fit(x, 0)
    assert 0 < made.elements < final.numel() / 2


def test_heads_parts_add_up_to_what_their_layer_says(toy: Any, texts: tuple[list[str], list[str]]) -> None:
    lens = f.lens(toy, kind="attention", fit_on=texts[0][:200], steps=20)
    z = f.run(toy, texts[1][0]).values("a1.z")
    centre = lens.maps["a1.z"].centre
    assert centre is not None
    average = lens.logits("a1", centre)
    parts = sum(lens.logits(f"a1.h{head}", z) - average for head in range(toy.n_heads))
    close(average + parts, lens.logits("a1", z))
    reading = lens.read(texts[1][:20])
    assert len(reading.kl) == toy.n_layers * (toy.n_heads + 1)
    assert reading.kl[0] < min(reading.kl[1 : toy.n_heads + 1])  # all heads of a layer know more than one


def test_a_future_lens_is_compared_with_the_output_so_many_tokens_later(
    toy: Any, texts: tuple[list[str], list[str]]
) -> None:
    """Of a task the lens is read two tokens before the answer's position."""
    lens = f.lens(toy, kind="future", fit_on=texts[0], ahead=2)
    task = cd.load_task("ioi", toy, examples=8)
    reading = lens.read(task)
    assert reading.positions.tolist() == [example.position for example in task.examples]
    stream = f.activations(toy, task, "resid3", position="END")
    rows = list(stream.prompts)
    run = f.run(toy, rows)
    for row, example in enumerate(task.examples):
        logits = lens.logits("resid3", run.values("resid3")[row][example.position - 2])
        assert int(logits.argmax()) == int(reading.tokens[3, row])
    with pytest.raises(cd.CircuitDiscoveryError, match="looks 2 ahead"):
        lens.read([[5, 6]])


def test_a_saved_lens_is_the_same_and_of_its_model_alone(
    toy: Any, gpt2: Tiny, tuned: Any, texts: tuple[list[str], list[str]], tmp_path: Path
) -> None:
    tuned.save(tmp_path / "lens")
    loaded = f.Lens.load(tmp_path / "lens", toy)
    assert repr(loaded) == repr(tuned)
    assert loaded.read(texts[1][:5]).divergences.equal(tuned.read(texts[1][:5]).divergences)
    with pytest.raises(cd.CircuitDiscoveryError, match="a lens of another model, 'toy'"):
        f.Lens.load(tmp_path / "lens", cd.load_model(gpt2.hf))
    (tmp_path / "lens" / "lens.json").unlink()
    with pytest.raises(cd.CircuitDiscoveryError, match=r"lens\.json is missing"):
        f.Lens.load(tmp_path / "lens", toy)


def test_an_interrupted_save_leaves_nothing_that_is_read(
    toy: Any, texts: tuple[list[str], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the old lens, whose weights are gone, nor the new one's weights under the old one's name."""
    near, far = (f.lens(toy, kind="future", ahead=ahead, fit_on=texts[0][:60]) for ahead in (1, 3))
    near.save(tmp_path)

    def interrupted(path: Path, data: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(lenses, "write_json", interrupted)
    with pytest.raises(KeyboardInterrupt):
        far.save(tmp_path)
    with pytest.raises(cd.CircuitDiscoveryError, match=r"lens\.json is missing"):
        f.Lens.load(tmp_path, toy)
    monkeypatch.undo()
    far.save(tmp_path)
    assert f.Lens.load(tmp_path, toy).ahead == 3


def test_a_training_that_is_stopped_goes_on_to_the_same_lens(
    toy: Any, texts: tuple[list[str], list[str]], tmp_path: Path
) -> None:
    some, state = texts[0][:40], tmp_path / "state"
    how: dict[str, Any] = {"kind": "tuned", "fit_on": some, "steps": 5}
    whole = f.lens(toy, **how)

    def stop(done: int, total: int) -> None:
        assert total == len(some) + 4 * 5
        if done == len(some) + 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        f.lens(toy, **how, state=state, progress=stop)
    steps: list[int] = []
    found = f.lens(toy, **how, state=state, progress=lambda done, total: steps.append(done))
    assert min(step for step in steps if step > len(some)) == len(some) + 11  # two layers were there
    for place, each in whole.maps.items():
        assert all(tensor.equal(found.maps[place].tensors[name]) for name, tensor in each.tensors.items())
    with pytest.raises(cd.CircuitDiscoveryError, match="the state of another training"):
        f.lens(toy, kind="tuned", fit_on=texts[0][:41], steps=5, state=state)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"kind": "tund"}, "no kind 'tund'; did you mean 'tuned'"),
        ({"kind": "tuned"}, "a tuned lens is fitted: give fit_on="),
        ({"kind": "linear", "fit_on": [""]}, "fit_on, text 0"),
        ({"kind": "linear", "fit_on": ["the"]}, "fit_on has no token to fit on"),
        ({"kind": "future", "fit_on": ["the dog"], "ahead": 4}, "ahead must be a whole number from 1 to 3"),
        (
            {"kind": "linear", "fit_on": ["the dog"], "ahead": 1},
            "ahead is for the future lens, not the linear",
        ),
        ({"ahead": 2}, "ahead is for the future lens, not the logit one"),
        (
            {"fit_on": ["the dog"]},
            "fit_on is not for the logit lens, but for: linear, tuned, attention, future",
        ),
        ({"kind": "linear", "fit_on": ["the dog"], "steps": 5}, "steps is for lenses that are trained"),
        ({"kind": "tuned", "fit_on": ["the dog"], "lr": -1.0}, "lr must be above 0"),
    ],
)
def test_what_cannot_be_fitted_is_refused_in_one_line(toy: Any, options: dict[str, Any], told: str) -> None:
    with pytest.raises(cd.CircuitDiscoveryError, match=told) as caught:
        f.lens(toy, **options)
    assert "\n" not in str(caught.value)


def test_a_training_that_diverges_leaves_nothing(
    toy: Any, texts: tuple[list[str], list[str]], tmp_path: Path
) -> None:
    with pytest.raises(cd.CircuitDiscoveryError, match=r"diverged at step .*; give a smaller lr"):
        f.lens(toy, kind="tuned", fit_on=texts[0][:40], lr=1e38, state=tmp_path / "state")
    assert not list(tmp_path.iterdir())


def test_a_model_in_half_precision(texts: tuple[list[str], list[str]]) -> None:
    model = cd.load_model("toy", dtype="bfloat16")
    lens = f.lens(model, kind="tuned", fit_on=texts[0][:100], steps=30)
    reading = lens.read(texts[1][:10])
    plain = f.lens(model).read(texts[1][:10])
    assert reading.kl[-1] == 0 and all(a < b for a, b in zip(reading.kl[:-1], plain.kl[:-1], strict=True))


def test_more_than_fits_into_memory_lies_in_a_file(toy: Any, texts: tuple[list[str], list[str]]) -> None:
    rows = f.activations(toy, texts[0][:10], "resid0").prompts
    wanted = {"resid2": ("resid2", [range(1, len(row)) for row in rows])}
    plain = gathered(toy, rows, wanted, None)["resid2"]
    with cd.memory_budget(1000):
        filed = gathered(toy, rows, wanted, 2)["resid2"]
    torch.testing.assert_close(filed, plain)
    assert plain.allclose(f.activations(toy, rows, "resid2").values, atol=1e-5)


def reading_of(prompts: Tensor, values: Tensor) -> LensReading:
    """Of one site, with these divergences; what is above 1 counts as not recalled at 1."""
    none = torch.zeros(1, len(prompts), dtype=torch.long)
    return LensReading(
        "", "", "", ("resid0",), prompts, none[0], values[None], (values > 1).long()[None], none, ((),)
    )


def test_intervals_hold_the_truth_of_texts_whose_tokens_are_alike() -> None:
    """30 texts of unequal length, each with a level of its own: E exp(N(0, .25) + N(0, .25)), 400 times."""
    rng, held, recalled = np.random.default_rng(0), 0, 0
    lengths = rng.integers(5, 30, 30)
    prompts = torch.from_numpy(np.repeat(np.arange(30), lengths))
    for _ in range(400):
        level = np.repeat(rng.normal(0, 0.5, 30), lengths)
        values = torch.from_numpy(np.exp(level + rng.normal(0, 0.5, lengths.sum())))
        reading = reading_of(prompts, values)
        kl, share = reading.kl[0], reading.recall(1)[0]
        held += kl.low <= np.exp(0.25) <= kl.high
        recalled += share.low <= 0.5 <= share.high
    assert held >= 0.92 * 400 and recalled >= 0.92 * 400


def test_a_share_of_all_texts_is_not_certain() -> None:
    share = reading_of(torch.tensor([0, 0, 1, 1, 2]), torch.zeros(5)).recall(1)[0]
    assert share == 1 and share.low == pytest.approx(0.025 ** (1 / 3))  # Clopper and Pearson of 3 of 3


@pytest.mark.parametrize("prompts", [[0, 1, 2], [0, 0, 1, 1, 2]])
def test_limits_are_possible_ones(prompts: list[int]) -> None:
    """Of three texts that differ, Student's interval of a divergence reaches below 0, and of a share above 1."""
    reading = reading_of(torch.tensor(prompts), torch.tensor([0.9, 7.0, 0.1, 0.2, 0.1][: len(prompts)]))
    (kl,), (share,) = reading.kl, reading.recall(1)
    assert kl.low == 0 < kl < kl.high
    assert 0 <= share.low < share < share.high <= 1


def test_tables_and_pictures(toy: Any, tmp_path: Path) -> None:
    task = cd.load_task("subject_verb_agreement", toy, examples=8)
    reading = f.lens(toy).read(task)
    frame = reading.to_dataframe()
    assert list(frame["site"]) == list(reading.sites) and len(str(reading).splitlines()) == 7
    assert frame["kl"].tolist() == [float(each) for each in reading.kl]
    assert reading.top[-1][0][0] in ("is", "are") and len(reading.top[0]) == 10
    assert all(0 < value <= 1 for _, value in reading.top[-1][:2])
    for name in ("a.png", "a.svg"):
        reading.plot(tmp_path / name)
        assert (tmp_path / name).stat().st_size > 5000
    with pytest.raises(cd.CircuitDiscoveryError, match="must end in"):
        reading.plot(tmp_path / "a.doc")


CLI = [
    (["lens", "toy"], 2, "give a TASK, or --texts FILE"),
    (["lens", "toy", "ioi", "--kind", "tuned"], 2, "a tuned lens is fitted: give --fit-on FILE, or --saved DIR"),
    (["lens", "toy", "ioi", "--kind", "tund"], 2, "no kind 'tund'; did you mean 'tuned'"),
    (["lens", "toy", "--texts", "EMPTY"], 2, "EMPTY is empty"),
    (["lens", "toy", "ioi", "--saved", "EMPTY"], 2, "there is no lens in it"),
    (["lens", "toy", "ioi", "--saved", "EMPTY", "--kind", "tuned"], 2, "was fitted: --kind is for a new one"),
    (["lens", "toy", "ioi", "--saved", "EMPTY", "--ahead", "2"], 2, "was fitted: --ahead is for a new one"),
    (["lens", "toy", "ioi", "--fit-on", "TEXTS"], 2, "--fit-on is not for the logit lens; valid with --kind lin"),
    (["lens", "toy", "ioi", "--ahead", "3"], 2, "--ahead is for --kind future"),
    (["lens", "toy", "--texts", "TEXTS", "--examples", "1"], 2, "--examples is how many prompts of a task"),
    (["lens", "toy", "ioi", "--plot", "nowhere/a.png"], 2, "there is no folder nowhere"),
    (["lens", "toy", "ioi", "--examples", "4"], 0, "resid4   0 [0, 0]"),
    (["lens", "toy", "--texts", "TEXTS", "--kind", "linear", "--fit-on", "TEXTS", "--save", "LENS",
      "--plot", "LENS.png"], 0, "linear lens of toy on 2 texts: 14 positions"),
    (["lens", "toy", "ioi", "--examples", "4", "--saved", "LENS", "--json"], 0, '"lens": "linear lens of toy"'),
]  # fmt: skip


def test_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "FIRST_LINE", 600.0)  # a slow machine says that it is loading
    (tmp_path / "EMPTY").write_text("\n \n")
    (tmp_path / "TEXTS").write_text("The keys on the table are old.\n\nThere is a dog by the door.\n")
    names = {"EMPTY", "TEXTS", "LENS", "LENS.png"}
    for arguments, status, told in CLI:
        words = [str(tmp_path / each) if each in names else each for each in arguments]
        with pytest.raises(SystemExit) as ended:
            main(words)
        out, err = capsys.readouterr()
        assert ended.value.code == status, err
        assert told in (out if status == 0 else err)
        assert status == 0 or (out == "" and err.count("\n") == 1)
    assert {"lens.json", "lens.safetensors"} == {each.name for each in (tmp_path / "LENS").iterdir()}
    assert (tmp_path / "LENS.png").exists()
