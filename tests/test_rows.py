"""Rows of one's own: duplicates stay in one half, bad ones are counted and named in
words, and texts and tables at hand are taken.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import circuitdiscovery as cd
from circuitdiscovery.cli import main as cli
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.task.read import read_task

HEAD = "clean,corrupted,correct,incorrect"
COLUMNS = ("clean", "corrupted", "correct", "incorrect")


@pytest.fixture(scope="module")
def records(toy: Any) -> list[dict[str, Any]]:
    """Eight good rows."""
    decode = toy.tokenizer.decode
    return [
        {
            "clean": e.text,
            "corrupted": decode(e.corrupted),
            "correct": f" {decode(e.correct)}",
            "incorrect": f" {decode(e.incorrect)}",
        }
        for e in cd.load_task("ioi", toy, examples=8, seed=3).examples
    ]


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    lines = [f'"{r["clean"]}","{r["corrupted"]}",{r["correct"]},{r["incorrect"]}' for r in records]
    path.write_text("\n".join([HEAD, *lines]) + "\n")
    return path


# ------------------------------------------------------------------ halves


@pytest.mark.parametrize("copies", [2, 5])
def test_copies_of_a_prompt_are_all_in_one_half(
    toy: Any, records: list[dict[str, Any]], tmp_path: Path, copies: int
) -> None:
    path = write(tmp_path / "t.csv", records[:5] * copies)
    for seed in range(4):
        task = cd.load_task(path, toy, seed=seed)
        assert task.held_out is not None
        halves = [{example.clean for example in part.examples} for part in (task, task.held_out)]
        assert not halves[0] & halves[1] and [len(half) for half in halves] == [3, 2]
        assert (len(task), len(task.held_out)) == (3 * copies, 2 * copies)


def test_the_given_duplicates_are_apart(toy: Any, shared: Path) -> None:
    task = cd.load_task(shared / "faults" / "duplicate-rows.csv", toy)
    assert task.held_out is not None
    assert not {e.clean for e in task.examples} & {e.clean for e in task.held_out.examples}


def test_a_prompt_with_two_counterfactuals_is_in_one_half(
    toy: Any, records: list[dict[str, Any]], tmp_path: Path
) -> None:
    other = [{**records[0], "corrupted": records[0]["clean"].replace(records[0]["incorrect"], " Anna")}]
    task = cd.load_task(write(tmp_path / "t.csv", [*records[:3], *other]), toy)
    assert task.held_out is not None and len(task) + len(task.held_out) == 4
    assert not {e.clean for e in task.examples} & {e.clean for e in task.held_out.examples}


def both_ways(pairs: str) -> list[dict[str, str]]:
    """Rows of one word each way, such as red | blue and blue | red."""
    ask, each = "Mary and {} met. John gave a ring to", {"correct": " Mary", "incorrect": " John"}
    ways = [way for pair in pairs.split() for way in (pair.split("-"), pair.split("-")[::-1])]
    return [{"clean": ask.format(one), "corrupted": ask.format(other), **each} for one, other in ways]


def test_the_two_directions_of_a_pair_are_in_one_half(toy: Any) -> None:
    """Whatever ties rows, directly or through others: no prompt of one half is in the other at all."""
    for pairs in ("Tom-Anna James-Kate Lucy-Paul Peter-Sarah", "Tom-Anna Anna-James Kate-Lucy Paul-Kate"):
        for seed in range(6):
            task = cd.load_task(both_ways(pairs), toy, seed=seed)
            assert task.held_out is not None and (len(task), len(task.held_out)) == (4, 4)
            halves = [{p for e in part for p in (e.clean, e.corrupted)} for part in (task, task.held_out)]
            assert not halves[0] & halves[1]
            assert "corrupted ones" not in str(task)


def test_rows_that_are_all_tied_are_split_and_the_task_says_so(toy: Any) -> None:
    """One corrupted prompt for all rows: half of them are held out still."""
    rows = both_ways("Tom-Anna James-Anna Lucy-Anna")
    task = cd.load_task([*rows[::2], rows[1]], toy, seed=1)
    assert task.held_out is not None and (len(task), len(task.held_out)) == (2, 2)
    seen = {e.corrupted for e in task} & {e.clean for e in task.held_out}
    assert len(seen) == 1 and "held-out prompts that are corrupted ones of the search: 1 of 2>" in str(task)
    assert "corrupted ones" not in str(task.held_out)


# ------------------------------------------------------------------ bad rows


def bad(records: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """As many rows, every second of which is good, with an answer of two words in the others."""
    worse = [{**record, "correct": " Mary John"} for record in records[:count]]
    return [row for pair in zip(records, worse, strict=False) for row in pair]


def test_all_bad_rows_are_counted_and_five_are_named_in_words(
    toy: Any, records: list[dict[str, Any]], tmp_path: Path
) -> None:
    path = write(tmp_path / "t.csv", bad(records, 7))
    with pytest.raises(CircuitDiscoveryError) as caught:
        cd.load_task(path, toy)
    told = str(caught.value)
    assert told.startswith(
        f"{path}: 7 of 14 rows cannot be used (--skip-bad, in Python skip_bad=True, goes on without them): row 2: the answer ' Mary John'"
    )
    assert [f"row {row}: " in told for row in (2, 4, 6, 8, 10, 12, 14)] == [True] * 5 + [False] * 2
    assert told.endswith("; and 2 more") and "\n" not in told and "['" not in told


def test_skip_bad_goes_on_without_them(toy: Any, records: list[dict[str, Any]], tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", bad(records, 7))
    task = cd.load_task(path, toy, skip_bad=True)
    good = cd.load_task(write(tmp_path / "good.csv", records[:7]), toy)
    assert (
        task.examples == good.examples and task.info == {"skipped": 7} and "7 bad rows left out" in repr(task)
    )
    with pytest.raises(CircuitDiscoveryError, match="2 of 2 rows cannot be used"):
        cd.load_task(write(tmp_path / "none.csv", bad(records, 7)[1::2][:2]), toy, skip_bad=True)


def test_rows_that_cannot_be_read_count_with_those_that_do_not_fit(
    toy: Any, records: list[dict[str, Any]], tmp_path: Path
) -> None:
    path = write(tmp_path / "t.csv", [*bad(records, 2), *records[4:]])
    path.write_text(path.read_text() + "one,two\n" + "one,,three,four\n")
    with pytest.raises(
        CircuitDiscoveryError,
        match=r"4 of 10 rows .*row 2: .*; row 4: .*; row 9: has fewer cells .*; row 10: corrupted must",
    ):
        cd.load_task(path, toy)
    # without a tokenizer
    with pytest.raises(CircuitDiscoveryError, match=r"2 of 10 rows cannot be used .*row 9: .*row 10: "):
        read_task(path)
    assert cd.load_task(path, toy, skip_bad=True).info == {"skipped": 4}


def test_one_bad_row_is_named_as_ever(toy: Any, records: list[dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(
        CircuitDiscoveryError,
        match=r"t\.csv, row 2: the answer ' Mary John' does not .*: it is 2 tokens, '.*Mary\|.*John'$",
    ):
        cd.load_task(write(tmp_path / "t.csv", bad(records, 1)), toy)


def test_a_row_that_is_too_long_for_the_model_is_bad(
    toy: Any, records: list[dict[str, Any]], tmp_path: Path
) -> None:
    """It is named by its row in the file, whichever half it is in."""
    long = {**records[0], **{side: f"{records[0][side]}{' and' * 120}" for side in ("clean", "corrupted")}}
    path = write(tmp_path / "t.csv", [*records[:6], long])
    count = len(toy.tokenizer(long["clean"]).input_ids)
    told = rf"t\.csv, row 7: clean has {count} tokens, but the model reads at most {toy.n_positions}$"
    for seed in (0, 1, 2):
        with pytest.raises(CircuitDiscoveryError, match=told):
            cd.load_task(path, toy, seed=seed)
    assert cd.load_task(path, toy, skip_bad=True).info == {"skipped": 1}


@pytest.mark.parametrize("column", COLUMNS)
def test_half_a_surrogate_pair_is_no_text(
    toy: Any, records: list[dict[str, Any]], tmp_path: Path, column: str
) -> None:
    """JSON can say it, and UTF-8 cannot: what reads the file refuses the row."""
    wrong = {**records[0], column: f"{records[0][column]}\ud800"}
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(map(json.dumps, [records[1], wrong, *records[2:]])))
    with pytest.raises(CircuitDiscoveryError, match=rf"t\.jsonl, row 2: {column} ") as caught:
        read_task(path)
    str(caught.value).encode()
    with pytest.raises(CircuitDiscoveryError, match=f"row 2: {column} "):
        cd.load_task([records[1], wrong, *records[2:]], toy)
    assert cd.load_task(path, toy, skip_bad=True).info == {"skipped": 1}


def test_the_command_line_skips_them_when_asked(
    records: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "t.csv", [*records, *bad(records, 2)])
    path.write_text(path.read_text() + "one,two\n")
    arguments = [
        "discover",
        "toy",
        str(path),
        "--method",
        "eap",
        "--edges",
        "9",
        "--measure",
        "none",
        "--out",
        str(tmp_path / "run"),
    ]
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2 and "row 13: has fewer cells" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        cli.main([*arguments, "--skip-bad"])
    assert stopped.value.code == 0
    assert "--skip-bad" in CliRunner().invoke(cli.cli, ["discover", "--help"]).output


# ------------------------------------------------------------------ templates

FILE = """version = 1
description = "x"
templates = ["{A} met {B} and {A} saw", TEMPLATE]
correct = " {B}"
incorrect = " {A}"
slots = { A = "name", B = "name" }
counterfactuals.abc.redraw = ["A", "B"]
words.name = ["Ann", "Ben", "Tom", "Kim"]
"""
CASES = """version = 1
description = "x"
templates = ["{child} {name} said that", TEMPLATE]
correct = " {pronoun}"
incorrect = " {other}"
[slots]
girl = "girl"
boy = "boy"
[cases.girl]
child = "Girl"
name = "{girl}"
pronoun = "she"
other = "he"
[cases.boy]
child = "Boy"
name = "{boy}"
pronoun = "he"
other = "she"
[counterfactuals.gender]
case = { girl = "boy", boy = "girl" }
redraw = ["girl", "boy"]
[words]
girl = ["Ann", "Kim", "Sue"]
boy = ["Ben", "Tom", "Max"]
"""
ORDERS = """version = 1
description = "x"
templates = ["{which} {noun} near the car", TEMPLATE]
correct = " {verb}"
incorrect = " {other}"
slots = { noun = "noun" }
orders.one = { which = "This", verb = "is", other = "are" }
orders.two = { which = "These", verb = "are", other = "is" }
counterfactuals.noun.redraw = ["noun"]
words.noun = ["sheep", "fish", "deer"]
"""


@pytest.mark.parametrize(
    ("text", "template", "says"),
    [
        (FILE, "Then {A} saw", "field 'templates': 'Then {A} saw' lacks the slot 'B' of its answers"),
        (FILE, "Then", "'Then' lacks the slot 'B' of its answers"),
        (CASES, "Then", "'Then' lacks a slot that says which 'pronoun' is right: child, name"),
        (
            ORDERS,
            "Then {noun} near",
            "'Then {noun} near' lacks a slot that says which 'verb' is right: which",
        ),
    ],
)
def test_a_template_without_a_slot_of_its_answers_is_named(
    tmp_path: Path, text: str, template: str, says: str
) -> None:
    (tmp_path / "mine.toml").write_text(text.replace("TEMPLATE", f'"{template}"'))
    with pytest.raises(CircuitDiscoveryError) as caught:
        read_task(tmp_path / "mine.toml")
    assert str(caught.value).startswith(f"{tmp_path / 'mine.toml'}: ") and str(caught.value).endswith(says)


def test_a_name_that_says_the_same_in_every_order_needs_no_slot(tmp_path: Path) -> None:
    same = ORDERS.replace('verb = "are", other = "is"', 'verb = "is", other = "are"')
    (tmp_path / "t.toml").write_text(same.replace("TEMPLATE", '"Then {noun} near"'))
    read_task(tmp_path / "t.toml")


def test_a_template_may_leave_a_name_out(tmp_path: Path) -> None:
    """It is enough that something says the case; what is not drawn is not among the variables."""
    from test_task import word_level

    (tmp_path / "mine.toml").write_text(CASES.replace("TEMPLATE", '"The {child} said that"'))
    words = ["Girl", "Boy", "The", "said", "that", "she", "he", "Ann", "Kim", "Sue", "Ben", "Tom", "Max"]
    task = cd.load_task(tmp_path / "mine.toml", word_level(words))
    known = {"name" in example.variables for example in task.examples}
    assert known == {True, False} and all("child" in example.variables for example in task.examples)


def test_the_given_template_is_refused(shared: Path) -> None:
    with pytest.raises(
        CircuitDiscoveryError,
        match="'adjective' lacks a slot that says which 'pronoun' is right: child, name",
    ):
        read_task(shared / "faults" / "template-without-slot.toml")


# ------------------------------------------------------------------ what is at hand


def test_a_data_frame_and_a_list_are_tables(toy: Any, records: list[dict[str, Any]], tmp_path: Path) -> None:
    pd = pytest.importorskip("pandas")
    from_file = cd.load_task(write(tmp_path / "t.csv", records), toy, seed=1)
    frame = pd.DataFrame(records)
    tasks = [
        cd.load_task(frame, toy, seed=1),
        cd.Task.from_pandas(frame, toy, seed=1),
        cd.load_task(records, toy, seed=1),
    ]
    for task in tasks:
        assert (
            task.examples == from_file.examples
            and task.held_out is not None
            and from_file.held_out is not None
        )
        assert task.held_out.examples == from_file.held_out.examples
    gaps = frame.assign(position=[-2.0] + [float("nan")] * 7)
    given = cd.Task.from_pandas(gaps, toy)
    assert given.held_out is not None
    assert sum(e.position == len(e.clean) - 2 for e in (*given.examples, *given.held_out.examples)) == 1
    with pytest.raises(CircuitDiscoveryError, match=r"row 1: no column 'corupted'; did you mean 'corrupted'"):
        cd.load_task(frame.rename(columns={"corrupted": "corupted"}).iloc[:1], toy)
    with pytest.raises(CircuitDiscoveryError, match="table has no rows"):
        cd.load_task([], toy)
    with pytest.raises(CircuitDiscoveryError, match="table, row 1: must be an object, not a whole number"):
        cd.load_task([3], toy)


@pytest.mark.parametrize("several", [list, tuple, np.array])
def test_several_answers_are_a_list_of_any_kind(
    toy: Any, records: list[dict[str, Any]], several: Any
) -> None:
    """Cells of a table read from parquet are arrays."""
    rows = [{**record, "incorrect": several([record["incorrect"], " Anna"])} for record in records]
    expected = cd.load_task([{**row, "incorrect": list(row["incorrect"])} for row in rows], toy)
    assert {len(example.incorrect) for example in expected} == {2}
    for given in (rows, pytest.importorskip("pandas").DataFrame(rows)):
        assert cd.load_task(given, toy) == expected
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in COLUMNS}
    assert {len(example.incorrect) for example in cd.Task.from_prompts(toy, **columns)} == {2}
    with pytest.raises(CircuitDiscoveryError, match="row 1: incorrect must be an answer or several"):
        cd.load_task([{**rows[0], "incorrect": several([])}], toy)


def test_texts_that_cannot_be_used_are_skipped_where_asked(toy: Any, records: list[dict[str, Any]]) -> None:
    rows = bad(records, 4)
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in COLUMNS}
    with pytest.raises(CircuitDiscoveryError, match=r"4 of 8 rows cannot be used .* skip_bad=True"):
        cd.Task.from_prompts(toy, **columns)
    task = cd.Task.from_prompts(toy, **columns, skip_bad=True)
    assert [e.text for e in task] == [row["clean"] for row in rows[::2]]
    assert task.info == {"skipped": 4} and "4 bad rows left out" in str(task)
    with pytest.raises(CircuitDiscoveryError, match="4 of 4 rows cannot be used"):
        cd.Task.from_prompts(toy, **{name: rows[1::2] for name, rows in columns.items()}, skip_bad=True)


def test_texts_are_a_task(toy: Any, records: list[dict[str, Any]], tmp_path: Path) -> None:
    columns: dict[str, Any] = {name: [record[name] for record in records] for name in COLUMNS}
    task = cd.Task.from_prompts(toy, **columns)
    split = cd.load_task(records, toy)
    assert task.held_out is None and split.held_out is not None
    assert {e.clean for e in task.examples} == {e.clean for e in (*split.examples, *split.held_out.examples)}
    columns["correct"] = [[answer] for answer in columns["correct"]]
    assert cd.Task.from_prompts(toy, **columns, position=-1).examples == task.examples
    with pytest.raises(
        CircuitDiscoveryError, match=r"as many of each, not clean 8, corrupted 8, correct 8, incorrect 7"
    ):
        cd.Task.from_prompts(toy, **{**columns, "incorrect": columns["incorrect"][1:]})
    with pytest.raises(CircuitDiscoveryError, match="clean must be a list of texts, one per row, not str"):
        cd.Task.from_prompts(toy, **{**columns, "clean": "The cat"})
    with pytest.raises(
        CircuitDiscoveryError,
        match=r"must be token ids, not str; for texts there is Task\.from_prompts\(model, \.\.\.\)",
    ):
        cd.Task.from_tokens(clean=["The cat"], corrupted=["The dog"], correct=[1], incorrect=[2])


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("IOI", "ioi"),
        ("sva", "subject_verb_agreement"),
        ("SVA", "subject_verb_agreement"),
        ("gp", "gendered_pronoun"),
    ],
)
def test_another_case_and_first_letters_are_understood(name: str, meant: str) -> None:
    with pytest.raises(
        CircuitDiscoveryError,
        match=f"no task '{name}'; did you mean '{meant}'\\? Valid tasks: addition, ",
    ):
        read_task(name)


def test_a_bos_that_would_stand_twice_is_refused(toy: Any) -> None:
    from test_task import word_level
    from tokenizers.processors import TemplateProcessing

    model = word_level(["one", "two", "a", "b"])
    token, number = model.tokenizer.bos_token, model.tokenizer.bos_token_id
    rows = [
        {"clean": f"{token} one two", "corrupted": f"{token} two two", "correct": " a", "incorrect": " b"}
    ]
    assert cd.load_task(rows, model).examples[0].clean[0] == number  # the tokenizer puts none in front
    model.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{token} $A", special_tokens=[(token, number)]
    )
    with pytest.raises(
        CircuitDiscoveryError,
        match=r"row 1: begins with .*, which the tokenizer puts in front itself: take it out",
    ):
        cd.load_task(rows, model)
    rows = [{**rows[0], "clean": "one two", "corrupted": "two two"}]
    assert cd.load_task(rows, model).examples[0].clean.count(number) == 1
