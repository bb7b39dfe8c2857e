"""Labels for probes: those of tasks, words, texts and tables, against what the prompts say."""

from __future__ import annotations

import copy
import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import circuitdiscovery as cd
from circuitdiscovery.features.labelling import lexicon
from circuitdiscovery.task.read import read_task
from circuitdiscovery.task.taskfile import TaskFile

f = cd.features


def test_labels_of_shipped_tasks_are_what_their_prompts_say(toy: Any) -> None:
    task = cd.load_task("subject_verb_agreement", toy, examples=20)
    number, attractor = f.labels(task, "number"), f.labels(task, "attractor_number")
    for example, own, other, word in zip(
        task, number.values, attractor.values, number.types or (), strict=True
    ):
        subject, place = example.text.split()[1], example.text.split()[-1]
        verb = toy.tokenizer.decode([example.correct[0]]).strip()
        assert own == {"is": "singular", "are": "plural"}[verb] and word == subject
        singular = place in read_words("subject_verb_agreement", "place", "singular")
        assert other == ("singular" if singular else "plural")
    task = cd.load_task("ioi", toy, examples=20)
    for example, own in zip(task, f.labels(task, "repeated").values, strict=True):
        names = [
            each for each in example.clean if example.clean.count(each) == 2 and each == example.incorrect[0]
        ]
        first = min(example.positions["S1"], example.positions["IO"])
        assert own == ("first" if example.clean[first] == names[0] else "second")
    task = cd.load_task("greater_than", toy, examples=20)
    for example, tens, units in zip(
        task, f.labels(task, "tens").values, f.labels(task, "units").values, strict=True
    ):
        assert f"{tens}{units} to" in example.text
    task = cd.load_task("gendered_pronoun", toy, examples=20)
    for example, gender in zip(task, f.labels(task, "gender").values, strict=True):
        assert toy.tokenizer.decode([example.correct[0]]).strip() == {"female": "She", "male": "He"}[gender]


def read_words(task: str, name: str, column: str) -> tuple[str, ...]:
    read = read_task(task)
    assert isinstance(read, TaskFile)
    return read.words[name][column]


def test_any_variable_is_a_label_and_the_control_is_of_the_word_that_is_named(toy: Any) -> None:
    task = cd.load_task("ioi", toy, examples=8)
    template = f.labels(task, "template", of="IO")
    assert template.values == tuple(example.variables["template"] for example in task)
    assert template.types == tuple(example.variables["IO"] for example in task)
    agreement = cd.load_task("subject_verb_agreement", toy, examples=8)
    assert (
        f.labels(agreement, "number", of="attractor").values == f.labels(agreement, "attractor_number").values
    )


def test_words_are_labelled_at_their_last_token(toy: Any) -> None:
    texts = ["Mary gave the keys to John.", "The dog was by the table."]
    own = f.word_labels(toy, texts, "part_of_speech", first=True)
    for label, word, row, place in zip(own.values, own.types or (), own.rows, own.positions, strict=True):
        assert toy.tokenizer.decode([own.prompts[row][place]]).strip().lower() == word
        assert lexicon("part_of_speech")[word] == label
    said = dict(zip(own.types or (), own.values, strict=True))
    assert said["mary"] == "proper noun" and said["gave"] == said["was"] == "verb" and said["keys"] == "noun"
    assert f.word_labels(toy, texts, "number").values == ("plural", "singular", "singular")
    assert f.word_labels(toy, texts, "tense").values == ("past", "past")
    acts = own.activations(toy, "m1")
    for row, (prompt, place) in enumerate(zip(own.rows, own.positions, strict=True)):
        run = f.run(toy, [list(own.prompts[prompt])])
        torch.testing.assert_close(acts.values[row], run.values("m1")[0, place])


def test_a_prompts_first_token_is_left_out_of_words_too(toy: Any) -> None:
    texts = ["Mary gave the keys to John.", "The dog was by the table."]
    every, own = (f.word_labels(toy, texts, "part_of_speech", first=first) for first in (True, False))
    assert every.types is not None and every.types[0] == "mary" and every.positions.count(0) == 2
    assert 0 not in own.positions and len(own) == len(every) - 2


def test_words_of_a_tasks_prompts_are_in_them_as_they_are(toy: Any, tmp_path: Path) -> None:
    """With its BOS, which the tokenizer's own call does not put in front."""
    tokenizer = copy.deepcopy(toy.tokenizer)
    tokenizer.bos_token = tokenizer.eos_token
    model = replace(toy, tokenizer=tokenizer)
    rows: dict[str, Any] = {"clean": ["The keys", "The dogs"], "corrupted": ["The key", "The dog"]}
    rows |= {"correct": [" are"] * 2, "incorrect": [" is"] * 2}
    task = cd.Task.from_prompts(model, **rows, bos=True)
    assert all(each.clean[0] == tokenizer.bos_token_id for each in task.examples)
    own = f.word_labels(model, task, "number")
    assert own.prompts == tuple(each.clean for each in task.examples)
    assert own.types == ("keys", "dogs") and own.positions == (2, 2)
    without = f.word_labels(model, cd.Task.from_prompts(model, **rows, bos=False), "number")
    assert without.types == own.types and without.positions == (1, 1)


def test_words_of_two_classes_are_left_out() -> None:
    """ "paul" may be one name, "is" a verb; a word in a noun list and a verb list is in neither."""
    speech, gender = lexicon("part_of_speech"), lexicon("gender")
    assert speech["is"] == "verb" and "left" not in speech and "by" not in speech
    assert gender["she"] == "female" and gender["boy"] == "male"
    number = lexicon("number")
    for name in ("noun", "place"):
        both = [read_words("subject_verb_agreement", name, column) for column in ("singular", "plural")]
        assert all((number[a], number[b]) == ("singular", "plural") for a, b in zip(*both, strict=True))


def test_texts_kinds_are_held_out_whole(toy: Any) -> None:
    kinds = {
        "names": ["Mary met John.", "Paul met Mary."] * 4,
        "things": ["The dog is old.", "The key is red."] * 4,
    }
    own = f.text_labels(toy, kinds)
    assert own.groups == tuple(map(str, own.rows)) and min(own.positions) == 1
    table = f.probes(toy, own, at=["resid0", "resid2"])
    assert table.label == "kind" and table.classes == ("names", "things")
    assert table["resid2"].scores.accuracy > 0.8


def test_a_table_of_labels(toy: Any, tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text(
        'text,token,label\n"The dogs are red.",dogs,many\nThe dog is red.,1,one\nThe dog is red.,,end\n'
    )
    own = f.labels_from_csv(path, toy)
    assert own.name == "own" and own.values == ("many", "one", "end") and own.types is None
    assert [toy.tokenizer.decode([own.prompts[row][at]]).strip() for row, at in zip(own.rows, own.positions, strict=True)] == [
        "dogs", "dog", ".",
    ]  # fmt: skip
    assert len(own.prompts) == 2


def test_a_long_table_is_not_searched_for_each_row(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = list[str]()

    class Text(str):
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            compared.append(self)
            return str.__eq__(self, other)

    class Reader(csv.DictReader):
        def __next__(self) -> Any:
            row = super().__next__()
            return row | {"text": Text(row["text"])}

    texts = dict.fromkeys(each.text for each in cd.load_task("ioi", toy, examples=64))
    rows = "".join(f'"{text}",0,some\n' for text in texts)
    (tmp_path / "own.csv").write_text("text,token,label\n" + rows)
    monkeypatch.setattr(csv, "DictReader", Reader)
    own = f.labels_from_csv(tmp_path / "own.csv", toy)
    assert own.rows == tuple(range(len(own.prompts))) and len(own.rows) > 30
    assert len(compared) < 5 * len(own.rows)


@pytest.mark.parametrize(
    "text, told",
    [
        ("text,label\nThe dog.,a\n", "the column 'token' is missing"),
        ("text,token,label\n", "has no row"),
        ("text,token,label\nThe dog is red.,cat,a\n", "row 1: 'cat' stands not in the text"),
        ("text,token,label\nThe dog is the dog.,dog,a\n", "row 1: 'dog' stands 2 times in the text"),
        ("text,token,label\nThe dog is red.,9,a\n", "row 1: token 9 is outside of the text's 5 tokens"),
        ("text,token,label\nThe dog is red.,dog,\n", "row 1: there is no label"),
        ("text,token,label\nThe dogx is red.,dogx,a\n", "the tokenizer does not know a word"),
    ],
)
def test_a_wrong_table_is_one_line(toy: Any, tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "own.csv"
    path.write_text(text)
    with pytest.raises(cd.CircuitDiscoveryError) as error:
        f.labels_from_csv(path, toy)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_faults(toy: Any) -> None:
    task = cd.load_task("ioi", toy, examples=4)
    tokens = cd.Task.from_tokens(clean=[[5, 6]], corrupted=[[5, 7]], correct=[1], incorrect=[2])
    for call, told in (
        (lambda: f.labels(task, "repeatd"), "no label 'repeatd'; did you mean 'repeated'?"),
        (lambda: f.labels(task, "number", of="I0"), "no variable 'I0'; did you mean 'IO'?"),
        (lambda: f.labels(task, "number", of="S"), "the number of '"),
        (lambda: f.labels(tokens, "number"), "does not say what its prompts are made of"),
        (lambda: f.word_labels(toy, ["The dog."], "colour"), "no label 'colour'"),
        (lambda: f.word_labels(toy, tokens, "number"), "labels of words need prompts that are texts"),
        (lambda: f.word_labels(toy, ["is was"], "number"), "the number of no word in these 1 texts is known"),
        (
            lambda: f.text_labels(toy, {"a": ["The"], "b": ["The cat is here."]}),
            "kinds, label 'a': 'The' has no second token",
        ),
        (
            lambda: f.text_labels(toy, {"a": ["The dog.", "The"]}),
            "kinds, label 'a': 'The' has no second token",
        ),
        (lambda: f.text_labels(toy, {}), "kinds: there is no prompt"),
        (lambda: f.labels(task, "repeated").activations(toy, "m1"), "have no prompts of their own"),
        (lambda: f.probes(toy, ["The dog."], "number"), "a label's name is of a task"),
    ):
        with pytest.raises(cd.CircuitDiscoveryError) as error:
            call()
        assert told in str(error.value)


def test_a_task_of_a_shipped_name_has_the_labels_of_its_own_variables(toy: Any) -> None:
    """The rule of `repeated` is of the order, which this task's prompts do not say."""
    rows = cd.load_task("ioi", toy, examples=4).examples
    bare = tuple(replace(each, variables={"IO": each.variables["IO"]}) for each in rows)
    task = cd.Task("ioi", bare)
    with pytest.raises(cd.CircuitDiscoveryError, match=r"no label 'repeated'.*IO"):
        cd.features.labels(task, "repeated")
    assert cd.features.labels(task, "IO").values == tuple(each.variables["IO"] for each in rows)
