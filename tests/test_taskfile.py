"""Task files and tables: what is right is read as written, what is wrong
is named with its file, place and field.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.task.read import read_task, shipped_tasks, task_path
from circuitdiscovery.task.table import Table
from circuitdiscovery.task.taskfile import Ref, TaskFile

GOOD = """
description = "d"
correct = " {A}"
incorrect = " {B}"
templates = ["So {first} met {second} and {B} saw"]
[slots]
A = "name"
B = "name"
[orders]
AB = { first = "{A}", second = "{B}" }
BA = { first = "{B}", second = "{A}" }
[counterfactuals.abc]
redraw = ["A", "B"]
[words]
name = ["Ann", "Ben", "Tom", "Kim"]
"""


def write(folder: Path, text: str | bytes, name: str = "mine.toml") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def read_file(name_or_path: str | Path) -> TaskFile:
    task = read_task(name_or_path)
    assert isinstance(task, TaskFile)
    return task


def message(path: str | Path) -> str:
    with pytest.raises(CircuitDiscoveryError) as caught:
        read_task(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --------------------------------------------------------------------- shipped


def test_the_ten_shipped_tasks() -> None:
    assert shipped_tasks() == [
        "addition",
        "capitals",
        "copy_color",
        "docstring",
        "gendered_pronoun",
        "greater_than",
        "induction",
        "ioi",
        "mcqa",
        "subject_verb_agreement",
    ]


def test_ioi_is_as_large_as_the_paper_says() -> None:
    ioi = read_file("ioi")
    assert len(ioi.templates) == 15 and len(ioi.orders) == 2 and set(ioi.counterfactuals) == {"abc", "flip"}
    assert len(ioi.words["name"][""]) == 100
    assert ioi.words["place"][""] == (
        "store",
        "garden",
        "restaurant",
        "school",
        "hospital",
        "office",
        "house",
        "station",
    )
    assert ioi.words["object"][""] == (
        "ring",
        "kiss",
        "bone",
        "basketball",
        "computer",
        "necklace",
        "drink",
        "snack",
    )


def test_greater_than_has_hannas_sentence_and_120_nouns() -> None:
    task = read_file("greater-than")
    assert len(set(task.words["noun"][""])) == 120 and task.metric == "prob_diff"
    assert (
        task.templates[0].fill(lambda ref: f"<{ref.name}>")
        == "The <noun> lasted from the year <century><year> to the year <century>"
    )


def test_agreement_lists_two_forms_of_each_noun_side_by_side() -> None:
    words = read_file("subject_verb_agreement").words
    forms = dict(zip(words["noun"]["singular"], words["noun"]["plural"], strict=True)) | dict(
        zip(*words["place"].values(), strict=True)
    )
    assert forms["key"] == "keys" and forms["knife"] == "knives" and forms["shelf"] == "shelves"
    assert all(plural.endswith("s") and plural != singular for singular, plural in forms.items())


@pytest.mark.parametrize("name", shipped_tasks())
def test_every_shipped_counterfactual_says_what_it_asks(name: str) -> None:
    for rule in read_file(name).counterfactuals.values():
        assert re.fullmatch(r"(Which|What) [^?]+\? [A-Z][^\n]+\.", rule.asks), rule.asks


def test_names_take_hyphens_and_unknown_ones_are_told_the_nearest() -> None:
    assert task_path("subject-verb-agreement") == task_path("subject_verb_agreement")
    assert "no task 'ioy'; did you mean 'ioi'?" in message("ioy") and "greater_than" in message("ioy")
    assert ".toml, .csv, .jsonl or .json" in message("some/file.txt") and ".toml" in message(Path("ioi"))


def test_reading_a_task_imports_no_torch() -> None:
    code = (
        "import sys; from circuitdiscovery.task.read import read_task; read_task('ioi'); assert "
        "'torch' not in sys.modules"
    )
    root = Path(__file__).parents[1]
    subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}
    )


# ------------------------------------------------------------------------ TOML


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    task = read_file(write(tmp_path, GOOD))
    assert task.name == "mine" and task.counterfactual == "abc" and task.metric == "logit_diff"
    assert task.templates[0].parts == ("So ", Ref("first"), " met ", Ref("second"), " and ", Ref("B"), " saw")


def test_doubled_braces_are_braces(tmp_path: Path) -> None:
    task = read_file(write(tmp_path, GOOD.replace("saw", "saw {{}}")))
    assert task.templates[0].fill(lambda ref: "x") == "So x met x and x saw {}"


def test_windows_line_ends_are_read(tmp_path: Path) -> None:
    assert read_file(write(tmp_path, GOOD.replace("\n", "\r\n"))).description == "d"


DEEP = "x = " + "[" * 100_000
BROKEN: dict[str, tuple[str | bytes, list[str]]] = {
    "empty": (" \n", ["empty"]),
    "not TOML": ("a = \n", ["not TOML", "line 1"]),
    "nested": (DEEP, ["nested"]),
    "latin-1": (b'description = "\xe9"', ["line 1", "UTF-8"]),
    "a huge number": ("version = " + "9" * 5000, ["not TOML"]),
    "missing field": (GOOD.replace("description", "#"), ["'description'", "missing"]),
    "missing answer": (GOOD.replace("incorrect =", "#"), ["'incorrect'", "missing"]),
    "missing counterfactual": (
        GOOD.replace('[counterfactuals.abc]\nredraw = ["A", "B"]', ""),
        ["counterfactuals", "missing"],
    ),
    "surplus field": ('template = "x"\n' + GOOD, ["no field 'template'", "did you mean 'templates'"]),
    "surplus in a counterfactual": (GOOD.replace("redraw =", "redrawn ="), ["counterfactuals.abc"]),
    "a number as what it asks": (
        GOOD.replace("redraw =", "asks = 3\nredraw ="),
        ["counterfactuals.abc", "'asks'", "must be a text"],
    ),
    "asked, but nothing changed": (
        GOOD.replace('redraw = ["A", "B"]', 'asks = "What?"'),
        ["counterfactuals.abc", "changes nothing"],
    ),
    "wrong type": (GOOD.replace('"d"', "3"), ["'description'", "must be a text", "a whole number"]),
    "a flag for a number": ("version = true\n" + GOOD, ["'version'", "true or false"]),
    "NaN": ("position = nan\n" + GOOD, ["'position'", "NaN"]),
    "a number among texts": (GOOD.replace('"Kim"', "3"), ["[words]", "'name'", "a whole number"]),
    "a table as text": (GOOD.replace('"name"\nB', "[]\nB"), ["[slots]", "'A'", "a list"]),
    "empty list": (GOOD.replace('["So {first} met {second} and {B} saw"]', "[]"), ["'templates'", "empty"]),
    "a word twice": (GOOD.replace("Kim", "Ann"), ["'name'", "'Ann' twice"]),
    "unknown metric": ('metric = "logits"\n' + GOOD, ["mine.toml", "no metric 'logits'", "logit_diff"]),
    "unknown slot": (GOOD.replace("{B} saw", "{C} saw"), ["'templates'", "no slot 'C'"]),
    "unknown list": (GOOD.replace('B = "name"', 'B = "names"'), ["[slots]", "'B'", "did you mean 'name'"]),
    "unknown column": (GOOD.replace("{B} saw", "{B.plural} saw"), ["'templates'", "no column 'plural'"]),
    "open brace": (GOOD.replace("{B} saw", "{B saw"), ["'templates'", "brace"]),
    "a format": (GOOD.replace("{B} saw", "{B:>9} saw"), ["'templates'", "{name.column}"]),
    "unknown redraw": (
        GOOD.replace('["A", "B"]', '["A", "D"]'),
        ["counterfactuals.abc", "redraw", "no slot 'D'"],
    ),
    "unknown set": (
        GOOD.replace('redraw = ["A", "B"]', 'set = { D = "{A}" }'),
        ["counterfactuals.abc", "set", "no slot 'D'"],
    ),
    "unknown case": (
        GOOD.replace('redraw = ["A", "B"]', 'case = { x = "y" }'),
        ["counterfactuals.abc", "case", "no case 'x'"],
    ),
    "unknown default": ('counterfactual = "abd"\n' + GOOD, ["no counterfactual 'abd'", "did you mean 'abc'"]),
    "orders that differ": (
        GOOD.replace('BA = { first = "{B}", second', 'BA = { first = "{B}", third'),
        ["'orders'", "'second'"],
    ),
    "one name for two things": (GOOD.replace("first", "A"), ["'A'", "two things"]),
    "a slot named order": (
        GOOD.replace("{B} saw", "{order} saw").replace('B = "name"', 'B = "name"\norder = "name"'),
        ["'order'", "which template, order and case", "another name"],
    ),
    "a name called template": (GOOD.replace("first", "template"), ["'template'", "another name"]),
    "aliases of aliases": (GOOD.replace('first = "{B}"', 'first = "{second}"'), ["refer to slots"]),
    "unknown multi_token": ('multi_token = ["nam"]\n' + GOOD, ["multi_token", "no list 'nam'"]),
    "unknown generator": (
        GOOD + '[generator]\nkind = "dates"\n',
        ["[generator]", "no kind 'dates'", "years"],
    ),
    "generator's field": (
        GOOD + '[generator]\nkind = "years"\ncenturies = [17]\n',
        ["[generator]", "'years'", "missing"],
    ),
    "generator's number": (
        GOOD + '[generator]\nkind = "years"\ncenturies = [1.5]\nyears = [2, 98]\n',
        ["'centuries'", "a number"],
    ),
    "generator's range": (
        GOOD + '[generator]\nkind = "years"\ncenturies = [17]\nyears = [2, 198]\n',
        ["'years'", "0 to 99"],
    ),
    "answers beside a generator": (
        GOOD + '[generator]\nkind = "years"\ncenturies = [17]\nyears = [2, 98]\n',
        ["no field 'correct'"],
    ),
    "a position of two words": (
        GOOD + '[positions]\nX = "{A} {B}"\n',
        ["[positions]", "'X'", "one name in braces"],
    ),
    "a position of nothing": (GOOD + '[positions]\nX = "{C}"\n', ["positions.X", "no slot 'C'"]),
    "a position that no template has": (
        GOOD.replace("{first}", "he") + '[positions]\nX = "{first}"\n',
        ["positions.X", "stands in no template"],
    ),
    "a position named END": (GOOD + '[positions]\nEND = "{A}"\n', ["[positions]", "'END'", "already"]),
    "a period too short": (
        '[generator]\nkind = "repeated_tokens"\nlength = 20\nperiods = [10]\n',
        ["'periods'", "half of length"],
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named_with_its_field(tmp_path: Path, name: str) -> None:
    text, parts = BROKEN[name]
    told = message(write(tmp_path, text))
    assert all(part in told for part in ["mine.toml", *parts]), told


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    assert "absent.toml" in message(tmp_path / "absent.toml")
    (tmp_path / "folder.csv").mkdir()
    assert "folder.csv" in message(tmp_path / "folder.csv")


def test_columns_of_different_length_are_told_apart(tmp_path: Path) -> None:
    text = GOOD.replace('name = ["Ann", "Ben", "Tom", "Kim"]', '[words.name]\none = ["a", "b"]\nmany = ["c"]')
    assert "one has 2, many has 1" in message(write(tmp_path, text))


# ---------------------------------------------------------------------- tables


def table(path: Path) -> Table:
    task = read_task(path)
    assert isinstance(task, Table)
    return task


def test_csv_and_jsonl_say_the_same(tmp_path: Path) -> None:
    comma = 'clean,corrupted,correct,incorrect,position\n"a, b",c d, x| y, z,\ne,f, x, y,-1\n'
    lines = (
        '{"clean": "a, b", "corrupted": "c d", "correct": [" x", " y"], "incorrect": " z"}\n\n'
        '{"clean": "e", "corrupted": "f", "correct": " x", "incorrect": " y", "position": -1}\n'
    )
    first, second = table(write(tmp_path, comma, "t.csv")), table(write(tmp_path, lines, "t.jsonl"))
    for a, b in zip(first.rows, second.rows, strict=True):
        assert (a.clean, a.corrupted, a.correct, a.incorrect, a.position) == (
            b.clean,
            b.corrupted,
            b.correct,
            b.incorrect,
            b.position,
        )
    assert (
        first.rows[0].clean == "a, b"
        and first.rows[0].correct == (" x", " y")
        and first.rows[1].position == -1
    )


HEAD = "clean,corrupted,correct,incorrect\n"
BAD_TABLES: dict[str, tuple[str, str | bytes, list[str]]] = {
    "empty csv": ("t.csv", "", ["empty"]),
    "only a header": ("t.csv", HEAD, ["no rows"]),
    "missing column": ("t.csv", "clean,corrupted,correct\na,b,c\n", ["line 1", "'incorrect'", "missing"]),
    "surplus column": (
        "t.csv",
        "clean,corupted,correct,incorrect\n",
        ["line 1", "no column 'corupted'", "'corrupted'"],
    ),
    "a column twice": ("t.csv", "clean,clean,correct,incorrect\n", ["line 1", "'clean' stands twice"]),
    "too many cells": ("t.csv", HEAD + "a,b,c,d\na,b,c,d,e\n", ["row 2", "more cells"]),
    "too few cells": ("t.csv", HEAD + "a,b,c\n", ["row 1", "fewer cells"]),
    "an open quote": ("t.csv", HEAD + 'a,b,c,d\na,b,"c,d\n', ["line", "not CSV"]),
    "an endless cell": ("t.csv", HEAD + "a" * 200_000 + ",b,c,d\n", ["line", "not CSV"]),
    "an empty answer": ("t.csv", HEAD + "a,b,c|,d\n", ["row 1", "correct"]),
    "an empty prompt": ("t.csv", HEAD + "a,,c,d\n", ["row 1", "corrupted"]),
    "a position in words": (
        "t.csv",
        HEAD.strip() + ",position\na,b,c,d,last\n",
        ["row 1", "position", "'last'"],
    ),
    "bad encoding": ("t.csv", HEAD.encode() + b"\xff,b,c,d\n", ["line 2", "UTF-8"]),
    "empty jsonl": ("t.jsonl", "\n\n", ["empty"]),
    "broken json": ("t.jsonl", '{"clean": "a"\n', ["line 1", "not JSON"]),
    "a list": ("t.jsonl", "[]\n", ["row 1", "object", "a list"]),
    "missing field": (
        "t.jsonl",
        '{"clean": "a", "corrupted": "b", "correct": "c"}\n',
        ["row 1", "'incorrect'", "missing"],
    ),
    "surplus field": (
        "t.jsonl",
        '{"clean": "a", "corrupted": "b", "correct": "c", "incorrect": "d", "x": 1}\n',
        ["row 1", "'x'"],
    ),
    "a field twice": ("t.jsonl", '{"clean": "a", "clean": "b"}\n', ["line 1", "'clean' stands twice"]),
    "a number": (
        "t.jsonl",
        '\n{"clean": 3, "corrupted": "b", "correct": "c", "incorrect": "d"}\n',
        ["row 1 (line 2)", "clean", "number"],
    ),
    "NaN": (
        "t.jsonl",
        '{"clean": NaN, "corrupted": "b", "correct": "c", "incorrect": "d"}\n',
        ["row 1", "clean", "NaN"],
    ),
    "NaN position": (
        "t.jsonl",
        '{"clean":"a","corrupted":"b","correct":"c","incorrect":"d","position":NaN}\n',
        ["row 1", "position", "NaN"],
    ),
    "no answers": (
        "t.jsonl",
        '{"clean": "a", "corrupted": "b", "correct": [], "incorrect": "d"}\n',
        ["row 1", "correct"],
    ),
    "answers in answers": (
        "t.jsonl",
        '{"clean": "a", "corrupted": "b", "correct": [["c"]], "incorrect": "d"}\n',
        ["row 1", "correct"],
    ),
    "nesting": ("t.jsonl", "[" * 100_000 + "]" * 100_000 + "\n", ["line 1", "nested"]),
    "a huge number": ("t.jsonl", '{"clean": ' + "9" * 5000 + "}\n", ["line 1", "too long"]),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_bad_table_is_named_with_its_row(tmp_path: Path, name: str) -> None:
    file, text, parts = BAD_TABLES[name]
    told = message(write(tmp_path, text, file))
    assert all(part in told for part in [file, *parts]), told
    assert len(told) < 400 + len(str(tmp_path))
