"""Addition, capitals, docstrings and multiple choice: what each prompt asks is read from its text by other means."""

from __future__ import annotations

import ast
import re
from collections import Counter

import pytest
from test_task import Reader, byte_like, decoded, gpt2, shipped_words, word_level, words

import circuitdiscovery as cd
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.task.example import Example
from circuitdiscovery.task.read import read_task
from circuitdiscovery.task.taskfile import TaskFile

__all__ = ["gpt2", "words"]  # fixtures

NEW = ["addition", "capitals", "copy_color", "docstring", "mcqa"]


def counterfactuals(*names: str) -> list[tuple[str, str]]:
    files = {name: read_task(name) for name in names}
    return [
        (name, each)
        for name, file in files.items()
        if isinstance(file, TaskFile)
        for each in file.counterfactuals
    ]


@pytest.fixture(params=["gpt2", "words", "digits"])
def reader(request: pytest.FixtureRequest) -> Reader:
    """GPT-2's tokenizer, one of whole words, and one that writes digits one by one."""
    if request.param == "digits":
        return byte_like(["+", "=", "\n", *shipped_words()], 1)
    return request.getfixturevalue(request.param)


def text_of(reader: Reader, ids: tuple[int, ...]) -> str:
    return reader.tokenizer.decode(ids).strip()


def changed(example: Example) -> list[int]:
    return [i for i, (a, b) in enumerate(zip(example.clean, example.corrupted, strict=True)) if a != b]


@pytest.mark.parametrize(("name", "rule"), counterfactuals(*NEW))
def test_the_pairs_are_as_long_and_the_answers_differ(name: str, rule: str, gpt2: Reader) -> None:
    task = cd.load_task(name, gpt2, counterfactual=rule)
    assert task.held_out is not None and len(task) == len(task.held_out) == 64
    for example in (*task, *task.held_out):
        assert changed(example) and not {*example.correct} & {*example.incorrect}
        assert len(example.correct) == 1 and len({*example.incorrect}) == len(example.incorrect)
        assert example.position == len(example.clean) - 1
    assert len({example.clean for example in (*task, *task.held_out)}) == 128


@pytest.mark.parametrize("name", NEW)
def test_the_seed_decides(name: str, gpt2: Reader) -> None:
    assert cd.load_task(name, gpt2, seed=3) == cd.load_task(name, gpt2, seed=3)
    one, other = (cd.load_task(name, gpt2, seed=seed) for seed in (1, 2))
    assert [example.clean for example in one] != [example.clean for example in other]


@pytest.mark.parametrize("name", NEW)
def test_a_tokenizer_without_the_words_is_told_in_a_line(name: str) -> None:
    with pytest.raises(CircuitDiscoveryError, match=rf"^task {name}[^\n]*$"):
        cd.load_task(name, word_level(["The", "capital", "of", "a", "box", "12", "35"]))


# ------------------------------------------------------------------------ addition

SUM = re.compile(r"(\d\d)\+(\d\d)=(\d\d)?")


def test_sums_are_true_and_the_answer_is_their_first_token(reader: Reader) -> None:
    whole = len(reader.tokenizer("12").input_ids) == 1
    for example in cd.load_task("addition", reader, examples=200):
        *shown, (a, b, nothing) = SUM.findall(example.text)
        assert len(shown) == 4 and not nothing and all(int(x) + int(y) == int(z) for x, y, z in shown)
        assert (a, b) not in [(x, y) for x, y, _ in shown]
        total = str(int(a) + int(b))
        right = total if whole else total[0]
        assert decoded(reader, example.correct) == [right]
        others = {str(each) if whole else str(each)[0] for each in range(20, 100)} - {right}
        assert {*decoded(reader, example.incorrect)} == others
        *same, (c, d, _) = SUM.findall("".join(decoded(reader, example.corrupted)))
        assert same == shown
        other = str(int(c) + int(d))
        assert (other if whole else other[0]) in others
        tokens = decoded(reader, example.clean)
        assert tokens[example.positions["A"]] == (a if whole else a[1])
        assert tokens[example.positions["B"]] == (b if whole else b[1]) and tokens[-1] == "="
        if not whole:
            assert [tokens[example.positions[f"{each}_TENS"]] for each in "AB"] == [a[0], b[0]]
            assert example.positions["A"] == example.positions["A_TENS"] + 1


def test_carries_are_asked_for() -> None:
    """In about half of the sums the ones carry into the tens digit, which is the answer."""
    reader = byte_like(["+", "=", "\n"], 1)
    sums = [SUM.findall(example.text)[-1] for example in cd.load_task("addition", reader, examples=200)]
    carries = Counter(int(a[1]) + int(b[1]) > 9 for a, b, _ in sums)
    assert min(carries.values()) > 60


def test_numbers_that_are_written_otherwise_are_refused_with_how() -> None:
    told = r"addition needs numbers .* writes '12\+35=47' as '12\|\+\|<unk>\|=\|47'$"
    with pytest.raises(CircuitDiscoveryError, match=told):
        cd.load_task("addition", word_level(["12", "47", "+", "="]))


# ------------------------------------------------------------------------ capitals

CAPITALS = {
    "Australia": "Canberra", "Canada": "Ottawa", "Chile": "Santiago", "China": "Beijing", "Cuba": "Havana", "Egypt": "Cairo",
    "France": "Paris", "Germany": "Berlin", "Greece": "Athens", "Hungary": "Budapest", "Iran": "Tehran", "Iraq": "Baghdad",
    "Ireland": "Dublin", "Italy": "Rome", "Japan": "Tokyo", "Kenya": "Nairobi", "Norway": "Oslo", "Peru": "Lima",
    "Poland": "Warsaw", "Portugal": "Lisbon", "Russia": "Moscow", "Spain": "Madrid", "Switzerland": "Bern", "Turkey": "Ankara",
    "Uganda": "Kampala", "Vietnam": "Hanoi", "Zimbabwe": "Harare",
}  # fmt: skip


@pytest.mark.parametrize("tokenizer", ["gpt2", "words"])
def test_the_wrong_capital_is_that_of_the_corrupted_prompts_country(
    tokenizer: str, request: pytest.FixtureRequest
) -> None:
    reader: Reader = request.getfixturevalue(tokenizer)
    seen: Counter[str] = Counter()
    file = read_task("capitals")
    assert isinstance(file, TaskFile)
    listed = dict(zip(*file.words["place"].values(), strict=True))
    assert len(set(listed.values())) == len(listed) and listed | CAPITALS == listed
    for example in cd.load_task("capitals", reader):
        for ids, answer in ((example.clean, example.correct), (example.corrupted, example.incorrect)):
            match = re.search(r"of (\w+) is", text_of(reader, ids))
            assert match and [listed[match[1]]] == [text_of(reader, answer)]
        (place,) = changed(example)
        assert place == example.positions["country"]
        assert text_of(reader, (example.clean[place],)) == example.variables["country"]
        seen[example.variables["country"]] += 1
    assert len(seen) > 30


# ----------------------------------------------------------------------- docstring


def parsed(text: str) -> tuple[list[str], list[str]]:
    """The arguments of a definition, and those that its docstring has described so far, as Python reads them."""
    (function,) = ast.parse(f'{text} x: y\n    """').body
    assert isinstance(function, ast.FunctionDef)
    docstring = ast.get_docstring(function) or ""
    arguments = [each.arg for each in function.args.args]
    assert arguments[0] == "self"
    return arguments[1:], re.findall(r":param (\w+): \w+ \w+$", docstring, re.MULTILINE)


# where the corrupted definition differs, and whether the docstring describes the same arguments
KEPT = {
    "random_random": ([2, 3, 4], False),
    "random_answer": ([4], True),
    "random_def": ([2, 3], True),
    "random_doc": ([], False),
}


@pytest.mark.parametrize("rule", KEPT)
def test_the_answer_is_the_argument_after_those_described(rule: str, gpt2: Reader) -> None:
    for example in cd.load_task("docstring", gpt2, counterfactual=rule):
        arguments, described = parsed(example.text)
        assert len(arguments) == 6 and described == arguments[2:4]
        assert text_of(gpt2, example.correct) == arguments[4]
        wrong = [text.strip() for text in decoded(gpt2, example.incorrect)]
        assert {*arguments} - {arguments[4]} < {*wrong} and len(wrong) == 6
        names = [arguments[2], arguments[3], arguments[4], *described]
        for place, word in zip(("A_def", "B_def", "C_def", "A_doc", "B_doc"), names, strict=True):
            assert text_of(gpt2, (example.clean[example.positions[place]],)) == word
        others, shown = parsed(gpt2.tokenizer.decode(example.corrupted))
        different = [i for i in range(6) if others[i] != arguments[i]]
        assert (different, shown == described) == KEPT[rule]
        assert others[4] in wrong or rule != "random_answer"
        assert shown == described or not {*shown} & {*arguments, *others}


# ----------------------------------------------------------------- multiple choice

QUESTION = re.compile(r"A (\w+) is (\w+)\. What color is a (\w+)\?")


def choices_in(text: str) -> dict[str, str]:
    """The choices by their letters."""
    found = re.findall(r"\b([A-H]) ?\. (\w+)", text[text.index("?") :])
    assert len(found) == 4
    return dict(found)


def normal(text: str) -> str:
    """A word-level tokenizer's text, with spaces as people write them."""
    return re.sub(r" ([.?:])", r"\1", text)


@pytest.mark.parametrize("tokenizer", ["gpt2", "words"])
@pytest.mark.parametrize(("name", "rule"), counterfactuals("mcqa", "copy_color"))
def test_the_named_color_is_the_right_choice(
    name: str, rule: str, tokenizer: str, request: pytest.FixtureRequest
) -> None:
    reader: Reader = request.getfixturevalue(tokenizer)
    places: Counter[str] = Counter()
    for example in cd.load_task(name, reader, counterfactual=rule):
        texts = [example.text, normal(text_of(reader, example.corrupted))]
        found = [QUESTION.search(text) for text in texts]
        assert all(match and match[1] == match[3] for match in found)
        colors = [match[2] for match in found if match]
        both = [choices_in(text) for text in texts]
        letters = [
            next(letter for letter in each if each[letter] == color)
            for each, color in zip(both, colors, strict=True)
        ]
        answers, wrong = (
            [text_of(reader, (token,)) for token in side] for side in (example.correct, example.incorrect)
        )
        meant = letters if name == "mcqa" else colors
        assert answers == [meant[0]] and len(wrong) == 3
        assert {*wrong} == {*(both[0] if name == "mcqa" else both[0].values())} - {meant[0]}
        assert (meant[1] in wrong) == (rule in ("answer_position", "color"))
        assert [*both[0].values()] == [*both[1].values()] or rule == "answer_position"
        for place in ("color", "choice"):
            assert text_of(reader, (example.clean[example.positions[place]],)) == colors[0]
        assert example.positions["color"] < example.positions["choice"] < example.positions["END"]
        places[letters[0]] += 1
    assert {*places.values()} == {16} and [*sorted(places)] == [*"ABCD"]
