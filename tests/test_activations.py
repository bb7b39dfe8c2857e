"""Activations of many prompts: which rows they have, and what they are in files."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import circuitdiscovery as cd
from circuitdiscovery.features import collecting

f = cd.features
TEXTS = ["The keys on the table are small.", "There is a dog by the door.", "The dog is old."]


@pytest.fixture(scope="module")
def toy() -> Any:
    return cd.load_model("toy")


def rows_of(model: Any, site: str, prompt: Any) -> torch.Tensor:
    return f.run(model, [prompt]).values(site)[0]


@pytest.mark.parametrize("site", ["m2", "resid0", "resid4", "a1.h3", "a1.z", "m2.neurons"])
@pytest.mark.parametrize("batch_size", [None, 1])
def test_rows_are_those_of_each_text_alone(toy: Any, site: str, batch_size: int | None) -> None:
    acts = f.activations(toy, TEXTS, site, batch_size=batch_size)
    ids = [toy.tokenizer(text).input_ids for text in TEXTS]
    torch.testing.assert_close(acts.values, torch.cat([rows_of(toy, site, row)[1:] for row in ids]))
    assert acts.tokens.tolist() == [token for row in ids for token in row[1:]]
    assert acts.positions.tolist() == [place for row in ids for place in range(1, len(row))]
    every = f.activations(toy, TEXTS, site, first=True)
    assert every.tokens.tolist() == [token for row in ids for token in row]


def test_a_tasks_rows_are_at_its_positions(toy: Any) -> None:
    task = cd.load_task("ioi", toy, examples=6)
    answers, second = f.activations(toy, task, "m1"), f.activations(toy, task, "m1", position="S2")
    for row, example in enumerate(task):
        own = rows_of(toy, "m1", list(example.clean))
        torch.testing.assert_close(answers.values[row], own[example.position])
        torch.testing.assert_close(second.values[row], own[example.positions["S2"]])
    assert (second.tokens == torch.tensor([each.clean[each.positions["S2"]] for each in task])).all()
    assert len(f.activations(toy, task, "m1", position="all")) == sum(len(each.clean) - 1 for each in task)
    last = f.activations(toy, TEXTS, "m1", position=-1)
    assert len(last) == 3 and (last.tokens == last.tokens[0]).all()


@pytest.mark.parametrize("position", [np.int64(-1), np.array(-1), torch.tensor(-1)])
def test_a_position_is_a_whole_number_of_any_package(toy: Any, position: Any) -> None:
    task = cd.load_task("subject_verb_agreement", toy, examples=12)
    torch.testing.assert_close(
        f.activations(toy, TEXTS, "m1", position=position).values,
        f.activations(toy, TEXTS, "m1", position=-1).values,
    )
    probe = f.probe(f.activations(toy, task, "m1"), f.labels(task, "number").values, control=False)
    calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = [
        (f.patchscope, (toy, task, 1), {"target": "The cat is old. The?"}),
        (f.steer, (toy, task, "m2/n301", 2), {"draws": 1}),
        (f.lens(toy).read, (task,), {}),
        (probe.erase, (toy, task), {"draws": 1}),
    ]
    for function, given, how in calls:
        found, expected = (function(*given, **how, position=each) for each in (position, -1))
        assert str(found) == str(expected)


def test_in_files_they_are_the_same(toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In several files; a row is found in the one that has it."""
    monkeypatch.setattr(collecting, "_SHARD", 10)
    texts = TEXTS * 5
    acts, kept = f.activations(toy, texts, "m2"), f.activations(toy, texts, "m2", to=tmp_path)
    assert len(kept.parts) > 3 and len(list(tmp_path.glob("*.safetensors"))) == len(kept.parts)
    for name in ("values", "tokens", "rows", "positions"):
        torch.testing.assert_close(getattr(kept, name), getattr(acts, name), rtol=0, atol=1e-6)
    which = torch.randint(len(acts), (50,), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(kept.take(which), acts.values[which], rtol=0, atol=1e-6)
    sizes: dict[str, Any] = {"n": 32, "k": 4, "steps": 20}
    assert torch.equal(f.train_sae(kept, **sizes).W_enc, f.train_sae(kept, **sizes).W_enc)
    torch.testing.assert_close(f.train_sae(kept, **sizes).W_enc, f.train_sae(acts, **sizes).W_enc)


def test_chunks_of_one_part_are_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """In memory and in files the same rows; copied only where they are of several parts, or off 64 bytes."""
    monkeypatch.setattr(collecting, "_AT_ONCE", 4)
    x, none = torch.arange(72.0).view(18, 4), torch.zeros(18, dtype=torch.long)  # rows of 16 bytes
    for sizes, own in (([18], [0, 1, 2, 3, 4]), ([3, 1, 0, 9, 5], [1, 2])):
        parts = tuple(part.clone() for part in x.split(sizes))
        chunks = list(collecting.Activations(None, (), none, none, parts, "").chunks())
        assert [chunk.tolist() for chunk in chunks] == [chunk.tolist() for chunk in x.split(4)]
        kept = {part.untyped_storage().data_ptr() for part in parts if len(part)}
        assert [i for i, chunk in enumerate(chunks) if chunk.untyped_storage().data_ptr() in kept] == own


def test_a_matrix_of_any_numbers_is_read() -> None:
    """Those of numpy that torch does not have, too."""
    x = np.random.default_rng(0).normal(size=(20, 3))
    for kind in ("<f8", ">f8", ">f4", np.longdouble, np.float16, ">i2"):
        given = x.astype(kind)
        found = collecting.as_activations(given, "acts").values.numpy()
        np.testing.assert_array_equal(found, given.astype(float))


def test_what_was_stopped_goes_on(toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No manifest, no activations; files that are there are not made anew."""
    monkeypatch.setattr(collecting, "_SHARD", 10)

    def stop(done: int, total: int) -> None:
        if done > 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        f.activations(toy, TEXTS * 5, "m2", to=tmp_path, progress=stop)
    with pytest.raises(cd.CircuitDiscoveryError, match="there are no whole activations"):
        f.load_activations(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    assert before
    whole = f.activations(toy, TEXTS * 5, "m2", to=tmp_path)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(whole) == len(f.activations(toy, TEXTS * 5, "m2"))
    with pytest.raises(cd.CircuitDiscoveryError, match="is of other activations"):
        f.activations(toy, TEXTS * 5, "m1", to=tmp_path)


@pytest.mark.parametrize(
    ("prompts", "at", "options", "told"),
    [
        (TEXTS, "m9", {}, "has no site 'm9'"),
        (TEXTS, "m1", {"position": "S2"}, "no position 'S2'.*Valid positions: all, a whole number"),
        (TEXTS, "m1", {"position": np.bool_(True)}, "no position True; Valid positions: all, a whole number"),
        (TEXTS, "m1", {"position": 7}, "position 7 is outside of prompt 2, which has 5 tokens"),
        ([[3]], "m1", {}, "no token but the first of each; first=True keeps that one"),
        ([""], "m1", {}, "makes no token"),
    ],
)
def test_what_cannot_be_collected(toy: Any, prompts: Any, at: str, options: Any, told: str) -> None:
    with pytest.raises(cd.CircuitDiscoveryError, match=told):
        f.activations(toy, prompts, at, **options)


def test_a_tasks_positions_are_named(toy: Any) -> None:
    task = cd.load_task("ioi", toy, examples=2)
    with pytest.raises(cd.CircuitDiscoveryError, match=r"no position 'S3'; did you mean 'S2'\?"):
        f.activations(toy, task, "m1", position="S3")


def test_every_name_is_guarded_and_documented() -> None:
    """The package's page of the API has all names, and no function but behind the checks of its arguments."""
    page = Path(__file__).parents[1] / "docs/api.md"
    told = set(re.findall(r"^::: circuitdiscovery\.features\.(\w+)$", page.read_text("utf-8"), re.MULTILINE))
    assert told == set(f.__all__)
    for name in f.__all__:
        value = getattr(f, name)
        assert (value.__doc__ or "").strip()
        if inspect.isfunction(value):
            with pytest.raises(cd.CircuitDiscoveryError, match=f"{name} needs "):
                value()
