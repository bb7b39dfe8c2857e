"""Tasks as tokens: what the papers say about the shipped ones, and every row that does not fit is named."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from string import ascii_letters
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.task.example import Example
from circuitdiscovery.task.form import shuffled
from circuitdiscovery.task.load import load_task
from circuitdiscovery.task.read import read_task, shipped_tasks
from circuitdiscovery.task.table import Row
from circuitdiscovery.task.task import Task
from circuitdiscovery.task.taskfile import TaskFile
from circuitdiscovery.task.tokenization import Encoder
from circuitdiscovery.task.vocabulary import contexts

MODELS = Path(__file__).parents[2] / "shared" / "models"


@dataclass(frozen=True)
class Reader:
    """As much of a model as a task needs."""

    tokenizer: Any


def shared_tokenizer(name: str) -> Reader:
    if not (MODELS / name).is_dir():
        pytest.skip(f"needs the tokenizer of {name} in a folder 'shared' beside the repository")
    return Reader(AutoTokenizer.from_pretrained(MODELS / name, local_files_only=True))


@pytest.fixture(scope="module")
def gpt2() -> Reader:
    return shared_tokenizer("gpt2-tokenizer")


@pytest.fixture(scope="module")
def stories() -> Reader:
    return shared_tokenizer("stories260K")


def word_level(words: list[str]) -> Reader:
    """A tokenizer of whole words, punctuation marks and pairs of digits, as the bundled model has."""
    vocab = {word: i for i, word in enumerate(["<unk>", "<bos>", *dict.fromkeys(words)])}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    digits = pre_tokenizers.Split(Regex(r"\d\d"), "isolated")
    inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), digits])  # type: ignore[assignment]
    return Reader(PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", bos_token="<bos>"))


def shipped_words() -> list[str]:
    """Every word of the shipped tasks."""
    found: list[str] = []
    for name in shipped_tasks():
        task = read_task(name)
        assert isinstance(task, TaskFile)
        lists = [column for columns in task.words.values() for column in columns.values()]
        tables = [
            *task.cases.values(),
            *task.orders.values(),
            *(r.set for r in task.counterfactuals.values()),
        ]
        texts = [*task.templates, *(text for table in tables for text in table.values())]
        found += [word for column in lists for word in column]
        found += re.findall(r"\w+|[^\w\s]+", " ".join(text.fill(lambda ref: " ") for text in texts))
    return found


@pytest.fixture(scope="module")
def words() -> Reader:
    """Every word of the shipped tasks, pairs of digits, and the marks of sums."""
    return word_level([f"{number:02d}" for number in range(100)] + ["+", "=", *shipped_words()])


def byte_like(words: list[str], most: int) -> Reader:
    """A tokenizer whose words carry the space before them, and that writes numbers apart from
    it, in groups of at most so many digits.
    """
    digits = [f"{number:0{size}d}" for size in range(1, most + 1) for number in range(10**size)]
    marks = [mark for mark in words if not mark[0].isalnum()]
    found = ["<unk>", " ", *digits, *marks, *(f"{space}{word}" for word in words for space in ("", " "))]
    inner = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(dict.fromkeys(found))}, unk_token="<unk>")
    )
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(rf" ?[A-Za-z]+|\d{{1,{most}}}|."), "isolated")  # type: ignore[assignment]
    inner.decoder = decoders.Fuse()  # type: ignore[assignment]
    return Reader(PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>"))


def names_in(task: Task, model: Reader, list_name: str = "name") -> list[tuple[list[str], list[str]]]:
    """The listed words of every clean and corrupted prompt, in order."""
    file = read_task(task.name)
    assert isinstance(file, TaskFile)
    listed = set(file.words[list_name][""])

    def found(ids: tuple[int, ...]) -> list[str]:
        return [word for word in re.findall(r"\w+", model.tokenizer.decode(ids)) if word in listed]

    return [(found(example.clean), found(example.corrupted)) for example in task.examples]


def decoded(model: Reader, ids: tuple[int, ...]) -> list[str]:
    return [model.tokenizer.decode([i]) for i in ids]


# ------------------------------------------------------------------ the literature


def test_ioi_tokenises_as_gpt2_writes_it(gpt2: Reader, tmp_path: Path) -> None:
    clean = "When Mary and John went to the store, John gave a drink to"
    row = {
        "clean": clean,
        "corrupted": clean.replace("John gave", "Mary gave"),
        "correct": " Mary",
        "incorrect": " John",
    }
    path = tmp_path / "paper.jsonl"
    path.write_text(json.dumps(row))
    (example,) = load_task(path, gpt2).examples
    assert example.correct == (5335,) and example.incorrect == (1757,)
    assert example.clean == (2215, 5335, 290, 1757, 1816, 284, 262, 3650, 11, 1757, 2921, 257, 4144, 284)
    assert example.position == 13


def test_acdcs_ioi_prompts_have_15_tokens(gpt2: Reader) -> None:
    task = load_task("ioi", gpt2, examples=200)
    first = [example for example in task.examples if example.template == 0]  # the first sentence, order ABBA
    assert first and {len(example.clean) for example in first} == {15}
    assert all(example.text.startswith("Then, ") for example in first)
    order = [
        names
        for names, example in zip(names_in(task, gpt2), task.examples, strict=True)
        if example.template == 0
    ]
    assert all(second == third != first for (first, second, third), _ in order)


@pytest.mark.parametrize("tokenizer", ["gpt2", "words"])
def test_every_ioi_template_and_order_occurs_in_examples_and_held_out(
    tokenizer: str, request: pytest.FixtureRequest
) -> None:
    task = load_task("ioi", request.getfixturevalue(tokenizer))
    assert task.held_out is not None and len(task) == len(task.held_out) == 64
    for half in (task, task.held_out):
        assert {example.template for example in half.examples} == set(range(30))


def test_abc_draws_three_names_that_are_new_and_different(gpt2: Reader) -> None:
    """The widely copied generator repeats a name in 3.1% of these: 800 rows would hold some twenty-five."""
    pairs = names_in(load_task("ioi", gpt2, examples=800), gpt2)
    assert all(len(clean) == 3 and len(set(clean)) == 2 for clean, _ in pairs)
    assert all(len(set(corrupted)) == 3 and not set(corrupted) & set(clean) for clean, corrupted in pairs)


def test_flip_turns_the_second_mention_round_and_nothing_else(gpt2: Reader) -> None:
    task = load_task("ioi", gpt2, counterfactual="flip")
    for example, (clean, corrupted) in zip(task.examples, names_in(task, gpt2), strict=True):
        other = next(name for name in clean if clean.count(name) == 1)
        assert sum(a != b for a, b in zip(example.clean, example.corrupted, strict=True)) == 1
        assert corrupted == [*clean[:2], other] and decoded(gpt2, example.correct) == [f" {other}"]
    same = load_task("ioi", gpt2)
    assert [example.clean for example in task.examples] == [example.clean for example in same.examples]


def test_greater_than_is_hannas(gpt2: Reader) -> None:
    task = load_task("greater_than", gpt2, examples=1000)
    pattern = r"The (\w+) lasted from the year (1[1-7])(\d\d) to the year (1[1-7])"
    found = [re.fullmatch(pattern, example.text) for example in task.examples]
    years = [match[3] for match in found if match]
    assert len(years) == 1000 and all(match and match[2] == match[4] for match in found)
    assert not {"00", "01", "99"} & set(years) and min(years) == "02" and max(years) == "98"
    assert {match[2] for match in found if match} == {str(century) for century in range(11, 18)}
    for example, year in zip(task.examples, years, strict=True):
        assert decoded(gpt2, example.correct) == [f"{later:02d}" for later in range(int(year) + 1, 100)]
        assert decoded(gpt2, example.incorrect) == [f"{other:02d}" for other in range(int(year) + 1)]
        (place,) = [
            i for i, (a, b) in enumerate(zip(example.clean, example.corrupted, strict=True)) if a != b
        ]
        assert decoded(gpt2, (example.clean[place], example.corrupted[place])) == [year, "01"]


def test_a_centurys_first_and_last_whole_year_are_left_out(gpt2: Reader) -> None:
    """In GPT-2's tokens the twelfth century ends with 1189 (1190 to 1199 are
    ` 119` and a digit), so 1188 is its last.
    """
    task = load_task("greater_than", gpt2, examples=3000)
    twelfth = {example.text.split()[6] for example in task.examples if " 11" in example.text}
    assert max(twelfth) == "1188" and "1102" not in twelfth and "1189" not in twelfth


@dataclass(frozen=True)
class Asked:
    """What a prompt of greater_than asks: read from its text."""

    example: Example
    century: str
    year: str

    @property
    def tens(self) -> int:
        return int(self.year[0])


def asked(task: Task, ending: str) -> list[Asked]:
    found = [
        re.fullmatch(rf"The \w+ lasted from the year (1[1-7])(\d\d) to the year {ending}", example.text)
        for example in task.examples
    ]
    assert all(found)
    return [
        Asked(example, match[1], match[2])
        for example, match in zip(task.examples, found, strict=True)
        if match
    ]


def test_years_in_single_digits_ask_for_the_tens_digit() -> None:
    reader = byte_like(shipped_words(), 1)
    rows = asked(load_task("greater_than", reader, examples=1000), r"\1")
    assert {row.tens for row in rows} == set(range(1, 9)) and {row.year[1] for row in rows} == set(
        "0123456789"
    )
    assert {row.century for row in rows} == {str(century) for century in range(11, 18)}
    for row in rows:
        example, tokens = row.example, decoded(reader, row.example.clean)
        assert decoded(reader, example.correct) == [str(digit) for digit in range(row.tens + 1, 10)]
        assert decoded(reader, example.incorrect) == [str(digit) for digit in range(row.tens)]
        assert tokens[-2:] == list(row.century) and tokens[-8:-2] == [*row.year, " to", " the", " year", " "]
        changed = [i for i, (a, b) in enumerate(zip(example.clean, example.corrupted, strict=True)) if a != b]
        assert "".join(decoded(reader, example.corrupted)) == "".join(tokens).replace(
            f"{row.century}{row.year}", f"{row.century}01"
        )
        assert example.positions["YY"] in changed and tokens[example.positions["YY"]] == row.year[0]
        assert (
            example.positions["XX"] == example.positions["YY"] - 1
            and tokens[example.positions["XX"]] == row.century[1]
        )
        assert example.variables["year"] == row.year and example.variables["century"] == row.century
    by_hand = next(row.example for row in rows if row.century + row.year == "1732")
    assert decoded(reader, by_hand.correct) == ["4", "5", "6", "7", "8", "9"] and decoded(
        reader, by_hand.incorrect
    ) == ["0", "1", "2"]


def test_years_of_three_digits_and_one_ask_for_the_token_with_the_tens_digit() -> None:
    """The prompt stops before the century: no text of such a tokenizer has a token that begins after it."""
    reader = byte_like(shipped_words(), 3)
    rows = asked(load_task("greater_than", reader, examples=500), "")
    assert {row.tens for row in rows} == set(range(1, 9))
    for row in rows:
        example, tokens = row.example, decoded(reader, row.example.clean)
        assert decoded(reader, example.correct) == [
            f"{row.century}{digit}" for digit in range(row.tens + 1, 10)
        ]
        assert decoded(reader, example.incorrect) == [f"{row.century}{digit}" for digit in range(row.tens)]
        assert (
            tokens[-2:] == [" year", " "] and tokens[example.positions["YY"]] == f"{row.century}{row.year[0]}"
        )
        assert "XX" not in example.positions and example.position == len(tokens) - 1
        assert decoded(reader, example.corrupted)[example.positions["YY"]] == f"{row.century}0"


def test_years_that_are_one_word_are_an_error_in_a_line() -> None:
    whole = word_level([*shipped_words(), "17", "1732", "1755"])
    whole.tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(
        CircuitDiscoveryError,
        match=r"greater_than needs years .* \(1\|7\|3\|2\) .* writes ' 1732' as '1732'$",
    ):
        load_task("greater_than", whole)


def test_agreement_flips_the_subject_and_varies_the_other_noun(gpt2: Reader) -> None:
    task = load_task("subject_verb_agreement", gpt2)
    file = read_task("subject_verb_agreement")
    assert isinstance(file, TaskFile)
    one, many = (file.words["noun"][number] for number in ("singular", "plural"))
    seen: Counter[tuple[str, bool]] = Counter()
    for example in task.examples:
        _, subject, _, _, other = example.text.split()
        plural = subject in many
        assert decoded(gpt2, example.correct + example.incorrect) == (
            [" are", " is"] if plural else [" is", " are"]
        )
        flipped = one[many.index(subject)] if plural else many[one.index(subject)]
        assert gpt2.tokenizer.decode(example.corrupted) == example.text.replace(
            f" {subject} ", f" {flipped} "
        )
        seen[subject, other.endswith("s")] += 1
    assert {plural for _, plural in seen} == {True, False}


def test_a_template_has_one_number_for_both_answers(words: Reader) -> None:
    """A mean over a template's rows must not know the answer: singular and plural share the template."""
    task = load_task("subject_verb_agreement", words)
    answers = {
        number: {example.correct for example in task.examples if example.template == number}
        for number in range(12)
    }
    assert all(len(found) == 2 for found in answers.values())


def test_pronouns_work_with_a_llama_tokenizer(stories: Reader) -> None:
    task = load_task("gendered_pronoun", stories)
    for example in task.examples:
        girl = " girl " in example.text
        assert example.clean[0] == stories.tokenizer.bos_token_id and len(example.clean) == len(
            example.corrupted
        )
        assert (" boy " if girl else " girl ") in stories.tokenizer.decode(example.corrupted)
        assert example.correct == ((338,) if girl else (346,)) and example.incorrect == (
            (346,) if girl else (338,)
        )
    assert stories.tokenizer.convert_ids_to_tokens([338, 346]) == ["▁She", "▁He"]


@pytest.mark.parametrize("tokenizer", ["gpt2", "stories", "words"])
def test_induction_repeats_and_its_counterfactual_does_not(
    tokenizer: str, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(tokenizer)
    task = load_task("induction", model)
    for example in task.examples:
        body = [token for token in example.clean if token not in model.tokenizer.all_special_ids]
        before = body.index(body[-1])
        assert len(body) == 20 and before < 19 and example.correct == (body[before + 1],)
        assert example.correct[0] not in example.corrupted and set(example.incorrect) <= set(body)
        period = 19 - before
        ending = len(body) - period
        assert body[period:] == body[:ending] and example.corrupted[-ending:] == example.clean[-ending:]
        assert not set(example.corrupted[:-ending]) & set(body)
    assert len({example.template for example in task.examples}) == 5


def test_an_inductions_text_is_without_the_token_that_the_tokenizer_puts_in_front(tmp_path: Path) -> None:
    """So that it can be tokenised again, and a saved task is known by its texts."""
    model = word_level([*ascii_letters, "one", "two"])
    token, number = model.tokenizer.bos_token, model.tokenizer.bos_token_id
    model.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{token} $A", special_tokens=[(token, number)]
    )
    task = load_task("induction", model, examples=2)
    for example in task:
        assert example.clean[0] == number and token not in example.text
        assert Encoder(model.tokenizer).prompt(example.text, "row") == example.clean
    task.save(tmp_path / "mine.json")
    assert load_task(tmp_path / "mine.json", model) == task
    other = word_level([*reversed(ascii_letters), "one", "two"])
    with pytest.raises(CircuitDiscoveryError, match="it is another model's task"):
        load_task(tmp_path / "mine.json", other)


@pytest.mark.parametrize("task", ["induction", "ioi"])
def test_a_tokenizer_that_ends_texts_is_an_error_in_a_line(task: str) -> None:
    model = word_level([*ascii_letters, *shipped_words(), "</s>"])
    number = model.tokenizer.convert_tokens_to_ids("</s>")
    model.tokenizer.add_special_tokens({"eos_token": "</s>"})
    model.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A </s>", special_tokens=[("<bos>", 1), ("</s>", number)]
    )
    with pytest.raises(CircuitDiscoveryError, match=f"task {task}: the tokenizer ends every text in '</s>'"):
        load_task(task, model, examples=4)


@pytest.mark.parametrize("name", shipped_tasks())
def test_a_word_level_tokenizer_makes_every_shipped_task(name: str, words: Reader) -> None:
    task = load_task(name, words)
    assert task.held_out is not None
    assert words.tokenizer.unk_token_id not in {
        token for example in task.examples for token in example.clean + example.corrupted
    }
    assert not {e.clean for e in task.examples} & {e.clean for e in task.held_out.examples}
    assert len({e.clean for e in task.examples + task.held_out.examples}) == 128
    task.check(len(words.tokenizer), 48)


def test_the_years_are_two_tokens_of_the_word_level_tokenizer(words: Reader) -> None:
    example = load_task("greater_than", words).examples[0]
    tokens = words.tokenizer.convert_ids_to_tokens(list(example.clean))
    assert len(tokens) == 12 and f"{tokens[6]}{tokens[7]}" == example.text.split()[6]


# -------------------------------------------------------------------- reproducible


def test_the_seed_alone_decides_in_any_process(words: Reader) -> None:
    assert load_task("ioi", words, seed=1) == load_task("ioi", words, seed=1)
    one, other = load_task("ioi", words, seed=1), load_task("ioi", words, seed=2)
    assert [e.clean for e in one.examples] != [e.clean for e in other.examples]


DRAW = """
import zlib
from types import SimpleNamespace
from circuitdiscovery.task.tokenization import Encoder
from circuitdiscovery.task.prompts import draw
from circuitdiscovery.task.read import read_task
class Tokenizer:
    bos_token_id = unk_token_id = None
    def __call__(self, text):
        return SimpleNamespace(input_ids=[zlib.crc32(word.encode()) for word in text.split()])
for name, rule in ("ioi", "abc"), ("subject_verb_agreement", "number"), ("gendered_pronoun", "gender"):
    _, _, rows = draw(read_task(name), Encoder(Tokenizer()), counterfactual=rule, seed=0)
    print([next(rows) for _ in range(100)])
"""


def test_drawing_does_not_follow_pythons_hashes() -> None:
    """The same examples under several hash seeds: no order comes from a set (trap 10)."""
    root = Path(__file__).parents[1]
    outputs = set[bytes]()
    for seed in ("1", "2", "3"):
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(root)}
        outputs.add(
            subprocess.run(
                [sys.executable, "-c", DRAW], check=True, env=environment, capture_output=True
            ).stdout
        )
    assert len(outputs) == 1 and outputs != {b""}


def test_a_lazy_shuffle_is_a_permutation_and_uniform() -> None:
    from random import Random

    assert sorted(shuffled(100, Random(0))) == list(range(100))
    orders = Counter(tuple(shuffled(3, Random(seed))) for seed in range(6000))
    assert len(orders) == 6 and all(abs(count - 1000) < 150 for count in orders.values())


# ------------------------------------------------------------------ left-out words


def test_words_that_are_not_single_tokens_are_left_out_and_told() -> None:
    file = read_task("ioi")
    assert isinstance(file, TaskFile)
    texts = " ".join(text.fill(lambda ref: " ") for text in file.templates)
    few = ["Mary", "John", "Paul", "Susan", "Thomas", "Helen"]
    model = word_level(
        [*re.findall(r"\w+|[^\w\s]", texts), *few, *file.words["place"][""], *file.words["object"][""]]
    )
    task = load_task("ioi", model)
    assert (
        set(task.info["left_out"]) == {"name"}
        and len(task.info["left_out"]["name"]) == 94
        and "Mary" not in task.info["left_out"]["name"]
    )
    assert "94 of name (Adam, Alan, Alex, ...)" in repr(task)
    assert {name for clean, corrupted in names_in(task, model) for name in clean + corrupted} <= set(few)


def test_too_few_words_left_is_an_error_that_names_list_and_words() -> None:
    with pytest.raises(
        CircuitDiscoveryError, match=r"task ioi needs 5 from the word list 'name', .* has 2 .* left out: Adam"
    ):
        load_task("ioi", word_level(["Mary", "John"]))


SUMS = """
description = "one digit more"
correct = "{B}"
incorrect = "{A}"
templates = ["so 1+{A}="]
[slots]
A = "digit"
B = "digit"
[counterfactuals.other]
redraw = ["A"]
[words]
digit = ["0", "1", "2", "3", "4", "five"]
"""


def test_words_are_tried_as_the_template_has_them(tmp_path: Path) -> None:
    """A digit that is one token after `=` and two after a space, and a
    word that is one token after a space alone.
    """
    reader = byte_like(["so", "+", "="], 1)
    path = tmp_path / "sums.toml"
    path.write_text(SUMS)
    task = load_task(path, reader, examples=2)
    assert task.info["left_out"] == {"digit": ["five"]}
    for example in task.examples:
        assert decoded(reader, example.clean)[:4] == ["so", " ", "1", "+"] and len(example.clean) == 6
        assert decoded(reader, example.correct)[0] in "01234"
    path.write_text(SUMS.replace("+{A}=", " + {A} = "))
    with pytest.raises(
        CircuitDiscoveryError,
        match=r"sums needs 3 from the word list 'digit'.* has 0 of its words as single tokens",
    ):
        load_task(path, reader)
    path.write_text(SUMS.replace("{A}=", "{A}{A}"))  # a digit after a digit
    assert len(load_task(path, reader, examples=2).examples[0].clean) == 6
    path.write_text(SUMS.replace('"{B}"', '" {B}"'))  # the answer alone follows a space
    with pytest.raises(CircuitDiscoveryError, match="has 0 of its words"):
        load_task(path, reader)


CONTEXTS = {
    "after marks, and as the second of two answers": (SUMS, [" 1+", "="]),
    "at the beginning and after itself": (SUMS.replace("so 1+{A}=", "{A}{A} is "), ["", None, " "]),
    "after a mark with a space": (SUMS.replace('"so 1+{A}="', "'so (\"{A}\"'"), [' ("', '"']),
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_what_words_follow_is_read_from_the_texts(name: str, tmp_path: Path) -> None:
    text, follow = CONTEXTS[name]
    path = tmp_path / "sums.toml"
    path.write_text(text)
    task = read_task(path)
    assert isinstance(task, TaskFile) and contexts(task) == {"digit": follow}


def test_the_shipped_words_follow_a_space_but_for_a_docstrings_first() -> None:
    for name in shipped_tasks():
        task = read_task(name)
        assert isinstance(task, TaskFile)
        for listed, follow in contexts(task).items():
            assert follow == ([' """'] if (name, listed) == ("docstring", "opening") else [" "])


def test_an_answer_with_a_space_too_many_is_told(tmp_path: Path) -> None:
    rows = "clean,corrupted,correct,incorrect\nso 1+2=,so 1+1=, 3,2\n"
    with pytest.raises(
        CircuitDiscoveryError, match=r"' 3' does not continue .*'3', without the space, would be one"
    ):
        csv_task(tmp_path, rows, byte_like(["so", "+", "="], 1))


# ------------------------------------------------------------------ tables, options

TABLE = "clean,corrupted,correct,incorrect\n" + "".join(
    f"one {w} two,two {w} two, {w}, one\n" for w in ("a", "b", "c", "d", "e")
)
SMALL = ["one", "two", "a", "b", "c", "d", "e"]


def csv_task(folder: Path, text: str, model: Any = None, **options: Any) -> Task:
    path = folder / "mine.csv"
    path.write_text(text)
    return load_task(path, model or word_level(SMALL), **options)


def test_a_table_is_split_in_half_by_the_seed(tmp_path: Path) -> None:
    tasks = [csv_task(tmp_path, TABLE, seed=seed) for seed in range(8)]
    texts = [f"one {w} two" for w in "abcde"]
    for task in tasks:
        assert (
            task.held_out is not None
            and (len(task), len(task.held_out)) == (3, 2)
            and task.metric == "logit_diff"
        )
        assert sorted(e.text for e in task.examples + task.held_out.examples) == texts
        assert [e.text for e in task.examples] == sorted(e.text for e in task.examples)
    assert len({tuple(e.text for e in task.examples) for task in tasks}) > 1


def test_a_table_of_one_row_has_none_held_out(tmp_path: Path) -> None:
    assert csv_task(tmp_path, "\n".join(TABLE.splitlines()[:2])).held_out is None


def test_a_task_has_an_example(tmp_path: Path) -> None:
    with pytest.raises(CircuitDiscoveryError, match="an example at least"):
        replace(csv_task(tmp_path, TABLE), examples=())


def test_several_answers_and_a_position(tmp_path: Path) -> None:
    text = "clean,corrupted,correct,incorrect,position\none two a b,two two a b, a| b, c,-2\n"
    (example,) = csv_task(tmp_path, text).examples
    assert len(example.correct) == 2 and example.position == 2


BAD_ROWS = {
    "lengths": ("one two,one, a, b", ["row 1", "clean has 2 tokens and corrupted 1: 'one|two' and 'one'"]),
    "several tokens": ("one two,two two, a b, c", ["row 1", "' a b'", "one token", "it is 2 tokens, 'a|b'"]),
    "no token": ("one two,two two, , c", ["row 1", "' '", "one token"]),
    "unknown in clean": ("one six,two two, a, b", ["row 1", "does not know", "|<unk>'"]),
    "unknown in corrupted": ("one two,two six, a, b", ["row 1", "does not know", "|<unk>'"]),
    "unknown answer": ("one two,two two, a| six, b", ["row 1", "' six' is unknown", "'<unk>'"]),
    "no space": ("one two,two two,a, b", ["row 1", "'a'", "' a', with a space, would be"]),
    "same answers": ("one two,two two, a| b, c| b", ["row 1", "same token", "'b'"]),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_row_that_does_not_fit_is_named_with_its_tokens(tmp_path: Path, name: str) -> None:
    row, parts = BAD_ROWS[name]
    with pytest.raises(CircuitDiscoveryError) as caught:
        csv_task(tmp_path, f"clean,corrupted,correct,incorrect\n{row}\n")
    assert all(part in str(caught.value) for part in ["mine.csv", *parts]), caught.value


def test_a_position_outside_of_the_prompt_is_named(tmp_path: Path) -> None:
    with pytest.raises(CircuitDiscoveryError, match=r"row 1: position 2 is outside of the prompt's 2 tokens"):
        csv_task(tmp_path, "clean,corrupted,correct,incorrect,position\none two,two two, a, b,2\n")


def test_a_forgotten_space_is_told(gpt2: Reader, tmp_path: Path) -> None:
    with pytest.raises(CircuitDiscoveryError, match="' Cambridge', with a space, would be one"):
        csv_task(
            tmp_path, "clean,corrupted,correct,incorrect\nI live in,You live in,Cambridge, Paris\n", gpt2
        )


def test_bos_is_put_in_front_or_taken_away(gpt2: Reader, stories: Reader) -> None:
    plain, started = load_task("ioi", gpt2), load_task("ioi", gpt2, bos=True)
    assert [(50256, *e.clean) for e in plain.examples] == [e.clean for e in started.examples]
    assert started.examples[0].position == plain.examples[0].position + 1
    assert all(e.clean[0] != 1 for e in load_task("gendered_pronoun", stories, bos=False).examples)
    model = word_level(["a"])
    model.tokenizer.bos_token = None
    with pytest.raises(CircuitDiscoveryError, match="no BOS"):
        Encoder(model.tokenizer, bos=True).ids("a")


def test_an_end_of_text_that_is_also_the_unknown_token_may_be_written_out(gpt2: Reader) -> None:
    """GPT-2's <|endoftext|> is BOS, EOS and unknown token at once."""
    encoder = Encoder(gpt2.tokenizer)
    assert encoder.prompt("<|endoftext|>Hi<|endoftext|>", "row")[0] == 50256


def test_options_are_checked(words: Reader, tmp_path: Path) -> None:
    for examples in (0, -3, True, 2.5):
        with pytest.raises(CircuitDiscoveryError, match="examples must be a whole number"):
            load_task("ioi", words, examples=examples)  # type: ignore[arg-type]
    with pytest.raises(CircuitDiscoveryError, match="no counterfactual 'abd'; did you mean 'abc'"):
        load_task("ioi", words, counterfactual="abd")
    with pytest.raises(CircuitDiscoveryError, match="no metric 'logits'"):
        load_task("ioi", words, metric="logits")
    with pytest.raises(CircuitDiscoveryError, match="from 1 to 3, not 4: mine has 5 rows"):
        csv_task(tmp_path, TABLE, examples=4)
    with pytest.raises(CircuitDiscoveryError, match="no tokenizer; give tokens"):
        load_task("ioi", Reader(None))
    with pytest.raises(CircuitDiscoveryError, match="table has its counterfactuals as rows"):
        csv_task(tmp_path, TABLE, counterfactual="abc")
    task = load_task("ioi", words, metric="kl-divergence")
    assert task.metric == "kl_divergence"
    for each in (task, replace(load_task("ioi", words), metric="kl_divergence")):
        assert each.held_out is not None and each.held_out.metric == "kl_divergence"


TINY = """
description = "two words of four, and which is missing does not matter"
correct = " {A}"
incorrect = " {B}"
templates = ["one {A} {B}"]
[slots]
A = "w"
B = "w"
[counterfactuals.other]
redraw = ["A", "B"]
[words]
w = ["a", "b", "c", "d"]
"""


def toml_task(folder: Path, text: str, **options: Any) -> Task:
    path = folder / "tiny.toml"
    path.write_text(text)
    return load_task(path, word_level(SMALL), **options)


def test_a_task_gives_all_its_prompts_and_says_how_many_there_are(tmp_path: Path) -> None:
    """Four words, two slots: 12 prompts, each drawn once."""
    task = toml_task(tmp_path, TINY, examples=6)
    assert task.held_out is not None
    texts = {e.text for e in task.examples + task.held_out.examples}
    assert texts == {f"one {a} {b}" for a in "abcd" for b in "abcd" if a != b}
    with pytest.raises(
        CircuitDiscoveryError,
        match="examples must be from 1 to 6, not 7: the task tiny makes 12 different prompts",
    ):
        toml_task(tmp_path, TINY, examples=7)
    assert len(toml_task(tmp_path, TINY)) == 6  # not asked for a number, it takes what there is


def test_a_task_of_one_prompt_is_one_example(tmp_path: Path) -> None:
    one = TINY.replace('A = "w"', 'A = "v"').replace('redraw = ["A", "B"]', 'set = { A = "b" }')
    one = one.replace('B = "w"', 'B = "u"') + 'v = ["a"]\nu = ["c"]\n'
    for examples in (None, 1):
        task = toml_task(tmp_path, one, examples=examples)
        assert [e.text for e in task] == ["one a c"] and task.held_out is None
    with pytest.raises(CircuitDiscoveryError, match="from 1 to 1, not 2: the task tiny makes 1 different"):
        toml_task(tmp_path, one, examples=2)


@pytest.mark.parametrize("examples", [3, 10, 10**6])
def test_words_of_the_answers_alone_make_no_other_prompts(tmp_path: Path, examples: int) -> None:
    """Four prompts, whatever the wrong answers are; it is told at once, however many these could be."""
    one = TINY.replace("one {A} {B}", "one {A} two").replace('" {B}"', '[" {B}", " {C}", " {D}"]')
    text = one.replace('B = "w"', 'B = "more"\nC = "more"\nD = "more"').replace('["A", "B"]', '["A"]')
    more = [f"q{first}{second}" for first in ascii_letters for second in ascii_letters]
    text += f"more = {json.dumps(more)}\n"
    (tmp_path / "tiny.toml").write_text(text)
    model = word_level([*SMALL, *more])
    told = f"from 1 to 2, not {examples}: the task tiny makes at most 4 different prompts"
    with pytest.raises(CircuitDiscoveryError, match=told):
        load_task(tmp_path / "tiny.toml", model, examples=examples)
    task = load_task(tmp_path / "tiny.toml", model)
    assert task.held_out is not None and task.apart is not None
    assert (len(task), len(task.held_out), task.apart()) == (2, 2, ())


def test_a_drawn_prompt_that_cannot_be_used_is_left_out_of_means(tmp_path: Path) -> None:
    """Two word lists share words: a prompt with one of them twice has the same right and wrong answer."""
    some, more = ([f"q{start}{letter}" for letter in ascii_letters] for start in "ab")
    text = TINY.replace('B = "w"', 'B = "m"').replace('["a", "b", "c", "d"]', json.dumps(some))
    (tmp_path / "tiny.toml").write_text(f"{text}m = {json.dumps([*some[:10], *more[10:]])}\n")
    model = word_level([*SMALL, *some, *more])
    task = load_task(tmp_path / "tiny.toml", model, examples=4)
    assert task.held_out is not None and task.apart is not None
    drawn = task.apart()
    assert len(drawn) == 500 and not set(drawn) & {*task, *task.held_out}
    assert all(example.variables["A"] != example.variables["B"] for example in drawn)
    with pytest.raises(CircuitDiscoveryError, match="correct and incorrect are the same token"):
        load_task(tmp_path / "tiny.toml", model, examples=1300)  # of the 2704 prompts ten cannot be used
    task.save(tmp_path / "mine.json")
    assert load_task(tmp_path / "mine.json", model) == task


def test_prompts_that_two_templates_share_count_once(tmp_path: Path) -> None:
    twice = TINY.replace('["one {A} {B}"]', '["one {A} {B}", "one {B} {A}"]')
    with pytest.raises(
        CircuitDiscoveryError, match="from 1 to 6, not 7: the task tiny makes 12 different prompts"
    ):
        toml_task(tmp_path, twice, examples=7)


def test_a_counterfactual_of_another_length_names_row_and_tokens(tmp_path: Path) -> None:
    longer = TINY.replace('redraw = ["A", "B"]', 'set = { A = "a b" }')
    with pytest.raises(
        CircuitDiscoveryError, match=r"task tiny, row 1: clean has 3 tokens and corrupted 4: 'one"
    ):
        toml_task(tmp_path, longer, examples=2)
    named = TINY.replace('redraw = ["A", "B"]', 'redraw = ["B"]').replace(
        "description", 'multi_token = ["w"]\ndescription'
    )
    with pytest.raises(
        CircuitDiscoveryError, match=r"task tiny, row 1: clean has \d tokens and corrupted \d: 'one"
    ):
        toml_task(tmp_path, named.replace('["a", "b", "c", "d"]', '["a", "a b", "a b c"]'), examples=1)


def test_a_swap_of_two_slots_is_one_of_the_clean_words(tmp_path: Path) -> None:
    task = toml_task(
        tmp_path, TINY.replace('redraw = ["A", "B"]', 'set = { A = "{B}", B = "{A}" }'), examples=6
    )
    for example in task.examples:
        assert example.corrupted == (example.clean[0], example.clean[2], example.clean[1])


# ------------------------------------------------------------- named positions


def word_at(reader: Reader, example: Example, name: str) -> str:
    return reader.tokenizer.decode(example.clean[example.positions[name]]).strip()


@pytest.mark.parametrize("tokenizer", ["words", "gpt2"])
def test_named_positions_are_where_the_words_stand(tokenizer: str, request: pytest.FixtureRequest) -> None:
    reader: Reader = request.getfixturevalue(tokenizer)
    for example in load_task("ioi", reader, examples=40).examples:
        words = re.findall(r"\w+", example.text)
        name, subject = example.variables["IO"], example.variables["S"]
        assert word_at(reader, example, "IO") == name and words.count(name) == 1
        assert (
            word_at(reader, example, "S1") == word_at(reader, example, "S2") == subject
            and words.count(subject) == 2
        )
        assert (
            example.positions["S1"]
            < example.positions["S2"]
            < example.positions["END"]
            == len(example.clean) - 1
        )
        assert (example.positions["IO"] < example.positions["S1"]) == (example.variables["order"] == "ABBA")
        assert example.variables["first"] == (name if example.variables["order"] == "ABBA" else subject)
    for example in load_task("greater_than", reader, examples=40).examples:
        century, year = re.findall(r"(\d\d)(\d\d)", example.text)[0]
        assert (example.variables["century"], example.variables["year"]) == (century, year)
        assert word_at(reader, example, "XX") == century and word_at(reader, example, "YY") == year
        assert example.positions["YY"] == example.positions["XX"] + 1
    for example in load_task("subject_verb_agreement", reader, examples=40).examples:
        subject = example.text.split()[1]
        assert word_at(reader, example, "subject") == subject == example.variables["subject"]
        assert (subject == example.variables["noun"]) == (example.variables["case"] == "singular")


def test_named_positions_of_a_name_of_several_tokens_are_its_last(stories: Reader) -> None:
    for example in load_task("gendered_pronoun", stories, examples=20).examples:
        here = example.positions["name"]
        until = stories.tokenizer.decode(example.clean[: here + 1], skip_special_tokens=True)
        assert until.endswith(f" {example.variables['name']}") and example.text.startswith(until)


def test_induction_names_what_stood_before(words: Reader) -> None:
    for example in load_task("induction", words, examples=20).examples:
        assert example.clean[example.positions["previous"]] == example.clean[-1]
        assert example.clean[example.positions["next"]] == example.correct[0]
        assert example.positions["next"] == example.positions["previous"] + 1 < len(example.clean) - 1


def test_a_word_that_the_tokenizer_joins_with_the_next_has_no_position() -> None:
    """`ab` is one token: a prompt that ends in `a` is not a part of it."""
    vocab = {"<unk>": 0, "ab": 1, "a": 2, "c": 3, "d": 4}
    inner = Tokenizer(models.WordPiece(vocab, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    encoder = Encoder(PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>"))
    row = Row("row 1", "c ab", "c d", (4,), (3,), ends={"a": len("c a"), "c": 1})
    assert dict(encoder.example(row).positions) == {"c": 0, "END": 1}


# ------------------------------------------------------------------------- tensors

ROWS: dict[str, Any] = {
    "clean": [[5, 6, 7], [8, 9, 1]],
    "corrupted": [[5, 5, 7], [8, 8, 1]],
    "correct": [1, 2],
    "incorrect": [3, 4],
}


def test_tensors_arrays_and_lists_are_the_same_task() -> None:
    plain = Task.from_tokens(**ROWS)
    tensors: dict[str, Any] = {name: torch.tensor(rows) for name, rows in ROWS.items()}
    assert plain == Task.from_tokens(**tensors)
    arrays: dict[str, Any] = {name: np.array(rows) for name, rows in ROWS.items()}
    assert plain == Task.from_tokens(**arrays)
    assert plain == Task.from_tokens(
        **ROWS
        | {"clean": [torch.tensor(row) for row in ROWS["clean"]], "correct": torch.tensor([[1, -1], [2, -1]])}
    )
    assert (
        plain.examples[0] == Example((5, 6, 7), (5, 5, 7), (1,), (3,), 2)
        and plain.held_out is None
        and plain.seed is None
    )


def test_positions_are_given_for_all_or_for_each() -> None:
    assert [e.position for e in Task.from_tokens(**ROWS, position=-2).examples] == [1, 1]
    assert [e.position for e in Task.from_tokens(**ROWS, position=torch.tensor([0, -1])).examples] == [0, 2]


@pytest.mark.parametrize("name", ["x->y", "a\nb", "a\x00b"])
def test_a_position_has_a_name_that_edges_and_pictures_can_have(name: str) -> None:
    """A part of a node is named after its position, and a circuit's file has its edges by name."""
    with pytest.raises(
        CircuitDiscoveryError, match=f"positions: .* such as 'S2', not {re.escape(repr(name))}"
    ):
        Task.from_tokens(clean=[[5, 6]], corrupted=[[5, 7]], correct=[1], incorrect=[2], positions={name: 0})


def test_named_positions_and_variables_are_given_per_row() -> None:
    task = Task.from_tokens(
        **ROWS, position=-2, positions={"a": -1, "b": torch.tensor([0, 1])}, variables={"x": ["p", 3]}
    )
    assert [dict(e.positions) for e in task.examples] == [
        {"a": 2, "b": 0, "END": 1},
        {"a": 2, "b": 1, "END": 1},
    ]
    assert [dict(e.variables) for e in task.examples] == [{"x": "p"}, {"x": "3"}]
    assert dict(Task.from_tokens(**ROWS).examples[0].positions) == {"END": 2}


BAD_TOKENS: dict[str, tuple[dict[str, Any], str]] = {
    "floats": ({"clean": torch.tensor([[5.0, 6, 7], [8, 9, 1]])}, "clean, row 0: must be token ids"),
    "a negative token": ({"corrupted": [[5, 5, 7], [8, -1, 1]]}, "corrupted, row 1: .* not -1"),
    "unequal lengths": (
        {"clean": [[5, 6, 7], [8, 9]]},
        r"row 1: clean has 2 tokens and corrupted 3: \[8, 9\] and",
    ),
    "unequal counts": ({"correct": [1]}, "clean 2, corrupted 2, correct 1, incorrect 2"),
    "no rows": ({name: [] for name in ROWS}, "needs rows"),
    "no token": ({"clean": [[], [8, 9, 1]]}, "clean, row 0: has no token"),
    "no answer": ({"correct": [[1], [-1]]}, "correct, row 1: has no answer"),
    "same answers": ({"correct": [1, [2, 4]]}, "row 1: correct and incorrect are the same token 4"),
    "a flag": ({"correct": [1, True]}, "correct, row 1"),
    "NaN": ({"correct": [1, float("nan")]}, "correct, row 1: must be token ids, not float"),
    "text": ({"clean": "abc"}, "clean must be a list or a tensor"),
    "a position outside": ({"position": 3}, "row 0: position 3 is outside of the prompt's 3 tokens"),
    "positions of another number": ({"position": [1]}, "position has 1 rows, but clean has 2"),
    "a named position outside": (
        {"positions": {"a": [0, 5]}},
        r"positions\['a'\], row 1: position 5 is outside",
    ),
    "positions without names": (
        {"positions": [1, 2]},
        "positions must be a mapping from names to values, not list",
    ),
    "a position named END": ({"positions": {"END": 0}}, "END is the answer's position"),
    "a variable of another number": (
        {"variables": {"x": ["p"]}},
        r"variables\['x'\] must hold a value per row, 2",
    ),
    "a variable as one number": (
        {"variables": {"x": 5}},
        r"variables\['x'\] must hold a value per row, 2, not int",
    ),
    "a variable as a number of numpy's": (
        {"variables": {"x": np.int64(5)}},
        r"variables\['x'\] must hold a value per row, 2, not int",
    ),
    "a variable's name that is none": ({"variables": {3: [1, 2]}}, "variables: a name is a text, not 3"),
    "a position's name that is none": ({"positions": {3: 1}}, "positions: a name is a text, not 3"),
    "a variable as one text": ({"variables": {"x": "pq"}}, r"variables\['x'\] must hold a value per row"),
    "a position of another type": ({"position": 1.5}, "position, row 0: must be a whole number"),
}


@pytest.mark.parametrize("name", BAD_TOKENS)
def test_tokens_that_do_not_fit_are_named_with_their_row(name: str) -> None:
    changed, told = BAD_TOKENS[name]
    with pytest.raises(CircuitDiscoveryError, match=told):
        Task.from_tokens(**ROWS | changed)


def test_check_names_what_a_model_cannot_read() -> None:
    task = Task.from_tokens(**ROWS)
    task.check(10, 3)
    with pytest.raises(
        CircuitDiscoveryError, match="row 1: clean has token 9, but the model's vocabulary has 9"
    ):
        task.check(9)
    with pytest.raises(CircuitDiscoveryError, match="row 0: has 3 tokens, but the model reads at most 2"):
        task.check(10, 2)


def test_batches_hold_every_row_once_by_length_and_without_pads() -> None:
    """Nothing is dropped at the end of a batch (trap 13)."""
    prompts = [[1, 2], [3, 4, 5], [6, 7], [8, 9], [1, 3, 4]]
    task = Task.from_tokens(
        clean=prompts,
        corrupted=prompts,
        correct=[[1], [2, 3], [4], [5], [6]],
        incorrect=[9] * 5,
        position=[0, 1, 1, -1, -1],
    )
    assert [batch.rows.tolist() for batch in task.batches()] == [[0, 2, 3], [1, 4]]
    batches = list(task.batches(2))
    assert [batch.rows.tolist() for batch in batches] == [[0, 2], [3], [1, 4]]
    assert batches[2].clean.tolist() == [[3, 4, 5], [1, 3, 4]] and batches[2].correct.tolist() == [
        [2, 3],
        [6, -1],
    ]
    assert (
        batches[0].position.tolist() == [0, 1]
        and batches[2].position.tolist() == [1, 2]
        and len(batches[1]) == 1
    )
    assert all(
        tensor.dtype == torch.long for tensor in (batches[0].clean, batches[0].correct, batches[0].rows)
    )
    assert (
        batches[1].lengths.tolist() == [2]
        and batches[2].lengths.tolist() == [3, 3]
        and not any(batch.padded for batch in batches)
    )
    assert batches[0].to("meta").clean.device.type == "meta"
    with pytest.raises(CircuitDiscoveryError, match="batch_size"):
        list(task.batches(0))


def test_select_keeps_the_rows_in_the_order_given() -> None:
    task = Task.from_tokens(**ROWS)
    assert task.select([1, 0]).examples == task.examples[::-1]


def test_rows_are_numbers_of_any_package_or_refused() -> None:
    task = Task.from_tokens(**ROWS)
    last = len(task) - 1
    kinds: list[Any] = [[last], [-1], torch.tensor([last]), np.array([-1]), range(last, last + 1)]
    for rows in kinds:
        chosen = task.select(rows)
        assert chosen.examples == task.examples[last:] and chosen.others == task.examples[:last]
        assert chosen.digest == task.select([last]).digest
    wrong: dict[str, Any] = {
        r"rows\[0\] must be a whole number, not True": [True, False],
        "rows must be a list of at least one whole number": [],
        "rows must be a list of whole numbers, not 1": 1,
        rf"rows must be from 0 to {last}, or from -{last + 1} to -1, not 7": [0, 7],
    }
    for told, rows in wrong.items():
        with pytest.raises(CircuitDiscoveryError, match=told):
            task.select(rows)


def test_what_a_counterfactual_asks_is_known(words: Reader, tmp_path: Path) -> None:
    asks = {name: load_task("ioi", words, counterfactual=name).info["asks"] for name in ("abc", "flip")}
    assert "Three other names" in asks["abc"] and "both names stay" in asks["flip"]
    assert "asks" not in toml_task(tmp_path, TINY, examples=2).info
    hyphens = TINY.replace("counterfactuals.other", "counterfactuals.the-other")
    assert toml_task(tmp_path, hyphens, examples=2).info["counterfactual"] == "the-other"


def test_info_is_ready_for_json_and_a_task_prints_as_a_line(words: Reader) -> None:
    task = load_task("ioi", words)
    assert json.loads(json.dumps(dict(task.info)))["counterfactual"] == "abc"
    assert re.fullmatch(
        r"<Task ioi: 64 examples of 14-19 tokens, 64 held out, logit_diff, counterfactual abc, seed 0>",
        str(task),
    )
    assert hash(task) == hash(load_task("ioi", words))


def test_tokens_are_what_the_tokenizer_itself_gives(tmp_path: Path) -> None:
    """Also where its file asks for truncation and padding, which a call of it does not do."""
    backend = Tokenizer(models.WordLevel({f"w{i}": i for i in range(10)}, unk_token="w0"))
    setattr(backend, "pre_tokenizer", pre_tokenizers.WhitespaceSplit())  # noqa: B010
    backend.enable_truncation(max_length=2)
    backend.enable_padding(length=7, pad_id=1)
    backend.save(str(tmp_path / "tokenizer.json"))

    def read() -> Any:
        return PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), unk_token="w0")

    encoder = Encoder(read())
    for text in ("w3", "w4 w5 w6 w7", "", "w8 unknown w9", "w4 w5 w6 w7"):
        assert encoder.ids(text) == tuple(read()(text).input_ids)
    assert len(encoder.ids("w4 w5 w6 w7")) == 4


@pytest.mark.parametrize(
    "how", [{"truncation": True, "max_length": 3}, {"padding": "max_length", "max_length": 40}]
)
def test_what_a_call_of_the_tokenizer_asks_for_is_of_that_call(how: dict[str, Any]) -> None:
    """A fast tokenizer remembers how its last call cut and padded; a task's prompts are whole."""
    model = word_level(shipped_words())
    model.tokenizer.pad_token = "<unk>"
    as_drawn = load_task("ioi", model, examples=4)
    assert as_drawn.apart is not None
    expected = as_drawn.apart()
    task = load_task("ioi", model, examples=4)
    model.tokenizer("one two three four five six", **how)
    backend = model.tokenizer.backend_tokenizer
    before = (backend.truncation, backend.padding)
    assert task.apart is not None and task.apart() == expected and len(expected) == 500
    assert load_task("ioi", model, examples=4) == task
    assert (backend.truncation, backend.padding) == before != (None, None)


def test_prompts_drawn_apart_are_all_that_can_be_used(tmp_path: Path) -> None:
    """Where an answer is of two tokens, or no counterfactual is as long, the drawing goes on."""
    text = TINY.replace('"d"]', '"d", "a b"]').replace('redraw = ["A", "B"]', 'redraw = ["B"]')
    task = toml_task(tmp_path, text.replace("description", 'multi_token = ["w"]\ndescription'), examples=1)
    assert task.held_out is not None and task.apart is not None
    texts = {e.text for e in (*task, *task.held_out, *task.apart())}
    assert texts == {f"one {a} {b}" for a in "abcd" for b in "abcd" if a != b}
