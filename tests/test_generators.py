"""Generators of prompts that are added from outside of the package, used by a task file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

import circuitdiscovery as cd
from circuitdiscovery.registry import GENERATORS, Entry
from circuitdiscovery.task.example import Example
from circuitdiscovery.task.generators import GeneratedWords, PromptGenerator

COPIES = """
description = "The token after the first one, when the first one comes again"
metric = "logit_diff"
[generator]
kind = "copies"
gap = 2
[counterfactuals.others]
redraw = ["pair"]
"""
NUMBERS = """
description = "The number that follows"
templates = ["Mary and {number}", "John and {number}"]
[generator]
kind = "numbers"
span = [11, 15]
[positions]
N = "{number}"
[counterfactuals.other]
redraw = ["drawn"]
"""


def copies(
    task: object, encoder: Any, counterfactual: str, seed: int, *, gap: tuple[int, ...]
) -> Iterator[Example]:
    rng = Random(f"{seed} {counterfactual}")
    while True:
        a, b, c, d, *between = rng.sample(range(10, len(encoder.tokenizer)), 4 + gap[0])
        yield Example((a, b, *between, a), (c, d, *between, a), (b,), (d,), gap[0] + 2)


def numbers(task: object, encoder: Any, *, span: tuple[int, int]) -> GeneratedWords:
    low, high = span
    tokens = [encoder.ids(f" {number}")[-1] for number in range(low, high + 2)]

    def answers(row: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (tokens[row + 1],), tuple(tokens[: row + 1])

    return GeneratedWords({"number": [f"{number}" for number in range(low, high + 1)]}, answers)


def load(folder: Path, text: str, model: cd.Model, **options: Any) -> cd.Task:
    path = folder / "mine.toml"
    path.write_text(text)
    return cd.load_task(path, model, **options)


def test_no_clean_prompt_is_made_twice(
    toy: cd.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A generator that draws from few prompts gives each once, and says how many there are."""

    def few(task: object, encoder: Any, counterfactual: str, seed: int) -> Iterator[Example]:
        rng = Random(f"{seed}")
        while True:
            a, b, c = rng.sample(range(10, 14), 3)
            yield Example((a, b, a), (c, b, c), (b,), (c,), 2)

    monkeypatch.setitem(GENERATORS, "few", Entry(PromptGenerator((), "pair", prompts=few)))
    text = COPIES.replace('"copies"', '"few"').replace("gap = 2\n", "")
    task = load(tmp_path, text, toy, examples=4)
    assert task.held_out is not None and task.apart is not None
    clean = [example.clean for example in (*task, *task.held_out, *task.apart())]
    assert sorted(clean) == [(a, b, a) for a in range(10, 14) for b in range(10, 14) if a != b]
    assert len(load(tmp_path, text, toy)) == 6
    with pytest.raises(cd.CircuitDiscoveryError, match=r"from 1 to 6, not 7: .* makes 12 different prompts"):
        load(tmp_path, text, toy, examples=7)


def test_the_answer_of_repeated_tokens_is_of_the_position(toy: cd.Model, tmp_path: Path) -> None:
    """Of a prompt's last token but two: what followed it the time before, which stands after it as well."""
    text = (Path(cd.__file__).parents[1] / "tasks" / "induction.toml").read_text()
    for example in load(tmp_path, f"position = -3\n{text}", toy, examples=8):
        assert example.position == len(example.clean) - 3
        assert example.correct == (example.clean[-2],) and example.clean[-2] not in example.incorrect
        assert example.clean[example.positions["previous"]] == example.clean[-3]
        assert example.clean[example.positions["next"]] == example.clean[-2]
        assert example.variables["token"] == toy.tokenizer.decode([example.clean[-3]])
    with pytest.raises(cd.CircuitDiscoveryError, match="position 5 is before the first repeated token"):
        load(tmp_path, f"position = 5\n{text}", toy, examples=2)


def test_a_generator_of_whole_prompts(toy: cd.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GENERATORS, "copies", Entry(PromptGenerator(("gap",), "pair", prompts=copies)))
    task = load(tmp_path, COPIES, toy, examples=8)
    assert task.held_out is not None and task.apart is not None and task.info["counterfactual"] == "others"
    everything = [*task, *task.held_out, *task.apart()]
    assert len(task) == len(task.held_out) == 8 and len(set(everything)) == len(everything) > 100
    for example in everything:
        assert len(example.clean) == 5 and example.clean[0] == example.clean[4] == example.corrupted[4]
        assert example.correct == (example.clean[1],) and example.incorrect == (example.corrupted[1],)
        assert example.clean[2:] == example.corrupted[2:] and not {*example.clean[:2]} & {
            *example.corrupted[:2]
        }
    cd.run_circuit(toy, task, cd.Circuit(toy.graph, toy.graph.allowed))
    task.save(tmp_path / "mine.json")
    assert cd.load_task(tmp_path / "mine.json", toy) == task


def test_a_generator_of_words_for_templates(
    toy: cd.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = PromptGenerator(("span",), "drawn", words=numbers, columns=("number",))
    monkeypatch.setitem(GENERATORS, "numbers", Entry(made))
    task = load(tmp_path, NUMBERS, toy, examples=5)
    assert task.held_out is not None
    everything = [*task, *task.held_out]
    written = {f"{name} and {number}" for name in ("Mary", "John") for number in range(11, 16)}
    assert {example.text for example in everything} == written
    for example in everything:
        number = int(example.text[-2:])
        assert [toy.tokenizer.decode([token]).strip() for token in example.correct] == [str(number + 1)]
        assert len(example.incorrect) == number - 10 and example.variables["number"] == str(number)
        assert example.positions["N"] == len(example.clean) - 1
        assert example.corrupted[:-1] == example.clean[:-1] and example.corrupted != example.clean
    with pytest.raises(
        cd.CircuitDiscoveryError, match="from 1 to 5, not 6: the task mine makes 10 different"
    ):
        load(tmp_path, NUMBERS, toy, examples=6)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("gap = 2", "gap = 0", r"field 'gap' must be at least 1"),
        ("gap = 2", "", r"field 'gap' is missing"),
        ("gap = 2", "gap = 2\nwide = 3", r"no field 'wide'"),
        ('"pair"', '"pairs"', r"no slot 'pairs'; did you mean 'pair'"),
        ('"copies"', '"copy"', r"no kind 'copy'; did you mean 'copies'"),
        ('redraw = ["pair"]', 'set = { pair = "a" }', r"'pair' .* cannot be set"),
    ],
)
def test_its_mistakes_are_named(
    toy: cd.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, told: str
) -> None:
    def check(*, gap: tuple[int, ...]) -> tuple[str, str] | None:
        return None if gap[0] > 0 else ("gap", "must be at least 1")

    monkeypatch.setitem(
        GENERATORS, "copies", Entry(PromptGenerator(("gap",), "pair", prompts=copies, check=check))
    )
    with pytest.raises(cd.CircuitDiscoveryError, match=told):
        load(tmp_path, COPIES.replace(old, new), toy)


def test_too_few_prompts_are_counted(toy: cd.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def few(*about: Any, **options: Any) -> Iterator[Example]:
        made = copies(*about, **options)
        yield from (next(made) for _ in range(6))

    monkeypatch.setitem(GENERATORS, "copies", Entry(PromptGenerator(("gap",), "pair", prompts=few)))
    assert len(load(tmp_path, COPIES, toy)) == 3
    with pytest.raises(cd.CircuitDiscoveryError, match="from 1 to 3, not 4: the task mine makes 6 different"):
        load(tmp_path, COPIES, toy, examples=4)
