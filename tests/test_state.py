"""A search's state: what was kept comes back bit by bit, however the
search ended, and only to the same search.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import Tiny, random_prompts

import circuitdiscovery as cd
from circuitdiscovery.engine import state as state_file
from circuitdiscovery.engine.state import kept_in
from circuitdiscovery.registry import METHODS

TASK = random_prompts(101, 4, 5, seed=2).task
INFO = {
    "method": "mine",
    "options": {"edges": 5, "seed": 0},
    "model": {"name": "toy", "digest": "ab"},
    "data": {"examples": TASK.digest, "tokenizer": "cd"},
}
EMPTY = np.zeros(3)
PAGE = Path(__file__).parent.parent / "docs/concepts.md"


class Stopped(BaseException):
    """Like Ctrl-C, it is not an Exception."""


def stopped_at(step: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done >= step:
            raise Stopped

    return progress


# ------------------------------------------------------------------ the file


def test_what_was_kept_last_comes_back_bit_by_bit(tmp_path: Path) -> None:
    odd = np.array([0.1, -0.0, 5e-324, np.nan, np.inf, 1e308])
    flags, steps = np.array([[True, False]]), torch.tensor(7.0)
    drawn, following = torch.Generator().manual_seed(3), torch.empty(0)
    with pytest.raises(Stopped), kept_in(tmp_path / "s", INFO) as saved:
        assert not saved.found and saved.number("step", 0) == 0
        saved.keep({"odd": EMPTY}, step=1)
        torch.rand(5, generator=drawn)
        saved.keep({"odd": odd, "flags": flags, "steps": steps, "drawn": drawn}, step=2, loss=0.1 + 0.2)
        odd[0] = 9.0  # after it was kept: in the middle of the next step
        following = torch.rand(5, generator=drawn)
        raise Stopped
    with kept_in(tmp_path / "s", INFO) as saved:
        expected = np.array([0.1, -0.0, 5e-324, np.nan, np.inf, 1e308])
        assert saved.found and saved.array("odd", np.zeros(6)).tobytes() == expected.tobytes()
        assert saved.array("flags", np.zeros((1, 2), dtype=bool)).tolist() == [[True, False]]
        assert saved.tensor("steps", torch.tensor(0.0)) == 7.0
        assert (saved.number("step", 0), saved.number("loss", 0.0)) == (2, 0.1 + 0.2)
        assert torch.equal(torch.rand(5, generator=saved.generator("drawn", torch.Generator())), following)


def test_it_is_written_as_it_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(state_file.time, "monotonic", lambda: now[0])
    with kept_in(tmp_path / "s", INFO) as saved:
        saved.keep({"x": EMPTY}, step=1)
        assert not (tmp_path / "s").exists()
        now[0] += state_file.SAVE_SECONDS
        saved.keep({"x": EMPTY}, step=2)
        first = (tmp_path / "s").read_bytes()
        saved.keep({"x": EMPTY}, step=3)
        assert (tmp_path / "s").read_bytes() == first
    assert (tmp_path / "s").read_bytes() != first
    with kept_in(tmp_path / "s", INFO) as saved:
        assert saved.number("step", 0) == 3


def test_without_a_path_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with kept_in(None, INFO) as saved:
        saved.keep({"x": EMPTY}, step=1)
        assert saved.array("x", EMPTY) is not EMPTY
    assert not list(tmp_path.iterdir())


OTHER_ANSWER = dataclasses.replace(
    TASK.examples[0], correct=TASK.examples[0].incorrect, incorrect=TASK.examples[0].correct
)


def of_data(**other: Any) -> dict[str, Any]:
    """The search on other data."""
    return INFO | {"data": INFO["data"] | other}


def of_examples(*examples: Any) -> dict[str, Any]:
    """The search on a task of other examples."""
    return of_data(examples=dataclasses.replace(TASK, examples=examples).digest)


@pytest.mark.parametrize(
    ("info", "message"),
    [
        (
            INFO | {"options": {"edges": 6, "seed": 0}},
            "s: the state of another search (options: edges 5 there, 6 here)",
        ),
        (INFO | {"model": {"name": "toy", "digest": "cd"}}, "(model: digest 'ab' there, 'cd' here)"),
        (INFO | {"method": "yours"}, "(method 'mine' there, 'yours' here)"),
        (
            {"method": "mine", "model": INFO["model"], "data": INFO["data"]},
            "options {'edges': 5, 'seed': 0} there, None here)",
        ),
        (of_examples(OTHER_ANSWER, *TASK.examples[1:]), "(the task's rows are others than then)"),
        (of_examples(*TASK.examples[::-1]), "(the task's rows are others than then)"),
        (of_data(tokenizer="ef"), "(the tokenizer is another than then)"),
        (of_data(parts="ef"), "(the graph is split into parts now, and was not then)"),
        (of_data(given="ef"), "(replacements are given now, and were not then)"),
    ],
)
def test_the_state_of_another_search_is_refused_by_name(
    tmp_path: Path, info: dict[str, Any], message: str
) -> None:
    with kept_in(tmp_path / "s", INFO) as saved:
        saved.keep({"x": EMPTY}, step=1)
    before = (tmp_path / "s").read_bytes()
    with pytest.raises(cd.CircuitDiscoveryError) as error, kept_in(tmp_path / "s", info):
        pass
    assert message in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).endswith("; remove it to begin anew")
    assert (tmp_path / "s").read_bytes() == before


def test_a_search_goes_on_with_other_versions_than_it_was_begun_with(tmp_path: Path) -> None:
    """They say nothing of which search it is: an upgrade does not end one that is under way."""
    with kept_in(tmp_path / "s", INFO | {"versions": {"torch": "2.0.0", "numpy": "2.0.0"}}) as saved:
        saved.keep({"x": EMPTY}, step=1)
    for versions in ({"versions": {"torch": "2.1.0", "numpy": None}}, {}):
        with kept_in(tmp_path / "s", INFO | versions) as saved:
            assert saved.found and saved.number("step", 0) == 1


def test_the_state_of_a_search_and_that_of_a_training_are_told_apart(tmp_path: Path) -> None:
    """A training knows of no examples: whichever of the two was kept, the other one refuses it."""
    kinds = {"search": INFO, "training": {"kind": "topk", "n": 8}}
    for kept, given in (("search", "training"), ("training", "search")):
        with kept_in(tmp_path / kept, kinds[kept], kept) as saved:
            saved.keep({"x": EMPTY}, step=1)
        with (
            pytest.raises(cd.CircuitDiscoveryError, match=f"the state of another {given} .*there") as told,
            kept_in(tmp_path / kept, kinds[given], given),
        ):
            pass
        assert "\n" not in str(told.value)


@pytest.mark.parametrize("content", [b"", b"{}", b"\x00" * 100, b"cut"])
def test_a_file_that_is_no_state_is_refused(tmp_path: Path, content: bytes) -> None:
    with kept_in(tmp_path / "s", INFO) as saved:
        saved.keep({"x": EMPTY}, step=1)
    (tmp_path / "s").write_bytes((tmp_path / "s").read_bytes()[:-4] if content == b"cut" else content)
    with (
        pytest.raises(cd.CircuitDiscoveryError, match="s: not the state of a search"),
        kept_in(tmp_path / "s", INFO),
    ):
        pass


def test_scores_are_no_state(tmp_path: Path, gpt2: Tiny) -> None:
    cd.random(gpt2.model, TASK).save(tmp_path / "s.safetensors")
    with (
        pytest.raises(cd.CircuitDiscoveryError, match="not the state of a search"),
        kept_in(tmp_path / "s.safetensors", INFO),
    ):
        pass


def test_an_entry_of_another_shape_or_type_is_refused(tmp_path: Path) -> None:
    with kept_in(tmp_path / "s", INFO) as saved:
        saved.keep({"x": EMPTY}, step=1)
    with kept_in(tmp_path / "s", INFO) as saved:
        for name, default in (("x", np.zeros(4)), ("x", np.zeros(3, dtype=np.float32)), ("y", EMPTY)):
            with pytest.raises(
                cd.CircuitDiscoveryError, match=f"not the state of a search .{name} should be"
            ):
                saved.array(name, default)
        with pytest.raises(cd.CircuitDiscoveryError, match="step should be of type float"):
            saved.number("step", 0.5)
        with pytest.raises(cd.CircuitDiscoveryError, match=r"not the state of a search .x"):
            saved.generator("x", torch.Generator())


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with (
        pytest.raises(cd.CircuitDiscoveryError, match="cannot write"),
        kept_in(tmp_path / "no" / "s", INFO) as saved,
    ):
        saved.keep({"x": EMPTY}, step=1)


# -------------------------------------------------------------- the searches

SEARCHES: dict[str, dict[str, Any]] = {
    "acdc": {"threshold": 0.05},
    "edge_pruning": {"edges": 20, "steps": 7},
    "hybrid": {"edges": 9, "rounds": 1},
    "exact": {},
    "exact node": {"level": "node"},
    "trace_back": {"threshold": 0.05},
}
EVERY = SEARCHES | {"matryoshka": {"edges": 9, "steps": 2}}  # its own tests stop it


def found_by(tiny: Tiny, name: str, **options: Any) -> Any:
    """What a search finds, as something that is equal where every bit is."""
    found = getattr(cd, name.split()[0])(tiny.model, tiny.prompts.task, **(EVERY[name] | options))
    if isinstance(found, cd.Circuit):
        return found.to_dict()
    return (found.values.tobytes(), dict(found.info)) if isinstance(found, cd.Scores) else found


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_that_is_stopped_goes_on_to_the_same_bytes(llama: Tiny, tmp_path: Path, name: str) -> None:
    seen: list[tuple[int, int]] = []
    whole = found_by(llama, name, progress=lambda *now: seen.append(now))
    assert (
        [done for done, _ in seen] == sorted(done for done, _ in seen)
        and seen[0][0] == 0
        and seen[-1][0] == seen[-1][1]
    )
    for at in seen[:: max(1, len(seen) // 3)]:
        state = tmp_path / f"{at[0]}"
        with pytest.raises(Stopped):
            found_by(llama, name, state=state, progress=stopped_at(at[0]))
        begun: list[int] = []
        assert found_by(llama, name, state=state, progress=lambda done, total: begun.append(done)) == whole  # noqa: B023
        assert begun[0] == at[0]  # nothing is done twice
        assert found_by(llama, name, state=state) == whole  # and a finished one is as it was


@pytest.mark.parametrize("name", SEARCHES)
def test_progress_is_shown_before_anything_is_run(
    llama: Tiny, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stops at the first sight of it: no forward was run, though
    every search looks at the replacements first.
    """
    ran: list[object] = []
    monkeypatch.setattr("circuitdiscovery.engine.setup.batches", lambda *given: ran.append(given))
    with pytest.raises(Stopped):
        found_by(llama, name, progress=stopped_at(0))
    assert not ran


def test_every_search_that_keeps_a_state_is_tried() -> None:
    keeping = {name for name in METHODS if "state" in inspect.signature(getattr(cd, name)).parameters}
    assert keeping == {name.split()[0] for name in EVERY}


@pytest.mark.skipif(not PAGE.is_file(), reason="needs the checkout")
def test_the_documentation_says_which_searches_keep_a_state() -> None:
    said = re.search(r"Of the searches, (.*?) take\s+it too; (.*?) are", PAGE.read_text("utf-8"), re.DOTALL)
    assert said is not None
    keeping, not_keeping = (set(re.findall(r"`(\w+)`", names)) for names in said.groups())
    assert keeping == {name.split()[0] for name in EVERY}
    assert not_keeping == METHODS.keys() - keeping


@pytest.mark.parametrize("name", EVERY)
def test_a_state_is_of_its_graph_s_parts_and_of_its_given_replacements(
    llama: Tiny, tmp_path: Path, name: str
) -> None:
    """Two splits into spans of the same names, and one ablation with two strengths of noise: the provenance of
    what is found is the same, the values are not."""
    first, last = (cd.split(llama.model, {"input": {"x": places}}) for places in ([0, 1], [-1]))
    strong, weak = (
        cd.replacements(llama.model, llama.prompts.task, ablation="noise", k=k) for k in (3.0, 0.3)
    )
    kept: list[tuple[dict[str, Any], dict[str, dict[str, Any]]]] = [
        (
            {"graph": first},
            {"the graph's parts are others than then": {"graph": last}, "the graph was split into parts": {}},
        ),
        (
            {"ablation": strong},
            {
                "the given replacements are others than then": {"ablation": weak},
                "replacements were given then": {"ablation": "noise"},
            },
        ),
    ]
    for at, (own, others) in enumerate(kept):
        state = tmp_path / f"{at}"
        found, before = found_by(llama, name, state=state, **own), state.read_bytes()
        for message, other in others.items():
            with pytest.raises(
                cd.CircuitDiscoveryError, match=f"the state of another search .{message}"
            ) as told:
                found_by(llama, name, state=state, **other)
            assert "\n" not in str(told.value) and state.read_bytes() == before
        assert found_by(llama, name, state=state, **own) == found


def test_a_state_among_spans_by_name_is_of_their_places(llama: Tiny, tmp_path: Path) -> None:
    first, second = (
        dataclasses.replace(
            TASK, examples=tuple(dataclasses.replace(each, positions={"X": place}) for each in TASK.examples)
        )
        for place in (1, 2)
    )
    graph = cd.split(llama.model, {"input": "positions"}, task=first)
    cd.exact(llama.model, first, graph=graph, state=tmp_path / "s")
    with pytest.raises(cd.CircuitDiscoveryError, match="the graph's parts are others than then"):
        cd.exact(llama.model, second, graph=graph, state=tmp_path / "s")
