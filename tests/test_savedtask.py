"""A task that is saved is the same task again, whatever made it."""

# pyright: reportOptionalMemberAccess=false, reportOptionalIterable=false, reportOptionalCall=false, reportArgumentType=false
from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import circuitdiscovery as cd
from circuitdiscovery.task.read import read_task
from circuitdiscovery.task.view import shown_task


@pytest.fixture(scope="module")
def model() -> Any:
    return cd.load_model("toy")


def of_tokens(model: Any) -> Any:
    rows = {
        "clean": [[1, 2, 3], [4, 5]],
        "corrupted": [[1, 9, 3], [4, 6]],
        "correct": [[7, 8], [9]],
        "incorrect": [[1], [2, 3]],
    }
    return cd.Task.from_tokens(
        **rows, position=[1, -1], positions={"S": [0, 0]}, variables={"who": ["Ann", "Bob"]}
    )


def of_a_table(model: Any) -> Any:
    names = ["Emma", "Luke", "Anna", "John", "Mary"]
    rows = [
        {
            "clean": f"After {a} and {b} met at the station, {a} gave a necklace to",
            "corrupted": f"After {b} and {a} met at the station, {b} gave a necklace to",
            "correct": f" {b}",
            "incorrect": f" {a}",
        }
        for a, b in zip(names, [*names[1:], names[0]], strict=True)
    ]
    return cd.load_task(rows, model, examples=1, metric="prob_diff")


TASKS: dict[str, Callable[[Any], Any]] = {
    "templates": lambda model: cd.load_task("ioi", model, examples=4, seed=3, counterfactual="flip"),
    "repeated tokens": lambda model: cd.load_task("induction", model, examples=3),
    "tokens": of_tokens,
    "a table": of_a_table,
    "a part": lambda model: of_a_table(model).held_out.select([0]),
    "another held out": lambda model: cd.Task(
        "mine", of_tokens(model).examples, held_out=of_a_table(model), metric="logit"
    ),
}


@pytest.mark.parametrize("name", list(TASKS))
def test_a_saved_task_is_the_same_again(model: Any, name: str, tmp_path: Path) -> None:
    """Field by field, with what means are taken over, and so does a second saving."""
    task, path = TASKS[name](model), tmp_path / "mine.json"
    task.save(path)
    found = cd.load_task(path, model)
    assert found == task and repr(found) == repr(task)
    for mine, theirs in ((task, found), (task.held_out, found.held_out)):
        if mine is not None:
            assert (mine.others, mine.digest, mine.info) == (theirs.others, theirs.digest, theirs.info)
            assert [vars(e) for e in mine] == [vars(e) for e in theirs]
            assert (mine.apart is None) == (theirs.apart is None) and (
                mine.apart is None or mine.apart() == theirs.apart()
            )
    found.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()
    assert "saved task" in next(shown_task(read_task(path)))


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"info": {"of": {"words": {"a"}}}}, r"task\.info\.of\.words"),
        ({"metric": cd.Metric("mine", lambda logits, task: logits[:, 0])}, r"task\.metric\.function"),
    ],
)
def test_what_cannot_be_written_is_named(changed: Any, field: str, model: Any, tmp_path: Path) -> None:
    task = replace(of_tokens(model), **changed)
    with pytest.raises(cd.CircuitDiscoveryError, match=f"task tokens: field '{field}' must be a text"):
        task.save(tmp_path / "mine.json")
    assert not list(tmp_path.iterdir())


def test_fewer_examples_are_the_first_ones(model: Any, tmp_path: Path) -> None:
    task = cd.load_task("ioi", model, examples=4)
    task.save(tmp_path / "mine.json")
    found = cd.load_task(tmp_path / "mine.json", model, examples=3)
    assert found.examples == task.examples[:3] and found.held_out.examples == task.held_out.examples[:3]
    assert set(found.others) >= {task.examples[3]}
    with pytest.raises(cd.CircuitDiscoveryError, match="examples must be from 1 to 4, not 5"):
        cd.load_task(tmp_path / "mine.json", model, examples=5)
    for option in ({"counterfactual": "flip"}, {"bos": True}):
        with pytest.raises(cd.CircuitDiscoveryError, match=r"a saved task has|counterfactuals of ioi: abc"):
            cd.load_task(tmp_path / "mine.json", model, **option)


def test_another_tokenizer_is_refused(model: Any, tmp_path: Path) -> None:
    class Other:
        bos_token_id = None

        def __call__(self, text: str) -> Any:
            return SimpleNamespace(input_ids=[1])

        def decode(self, ids: list[int]) -> str:
            return "?"

    cd.load_task("ioi", model, examples=2).save(tmp_path / "mine.json")
    with pytest.raises(cd.CircuitDiscoveryError, match="row 0: the model's tokenizer makes other tokens"):
        cd.load_task(tmp_path / "mine.json", SimpleNamespace(tokenizer=Other()))


def test_a_task_without_wrong_answers_is_measured_where_a_metric_needs_none(
    model: Any, tmp_path: Path
) -> None:
    of_tokens(model).save(tmp_path / "mine.json")
    data = json.loads((tmp_path / "mine.json").read_text("utf-8"))
    for prompt in data["prompts"]:
        prompt["incorrect"] = []
    (tmp_path / "mine.json").write_text(json.dumps(data), "utf-8")
    task, whole = cd.load_task(tmp_path / "mine.json", model), of_tokens(model)
    with pytest.raises(cd.CircuitDiscoveryError, match="'logit_diff' needs an incorrect answer"):
        cd.eap(model, task)
    found, expected = (cd.eap(model, each, metric="logit").values for each in (task, whole))
    assert abs(expected).max() > 0 and (found == expected).all()
    circuit = cd.eap(model, task, metric="logit").top(50)
    measured = [cd.evaluate(model, each, circuit, metric="logit", effort="quick") for each in (task, whole)]
    assert measured[0].normalized == measured[1].normalized


BROKEN: dict[str, tuple[Callable[[Any], Any], str]] = {
    "another file": (lambda d: {"edges": {}}, "is not a task that Task.save wrote"),
    "no prompts": (lambda d: d.pop("prompts"), "lacks 'prompts'"),
    "a field too many": (lambda d: d["task"].update(kind=1), "no field 'kind'"),
    "a text for a token": (
        lambda d: d["prompts"][0]["clean"].__setitem__(0, "a"),
        r"prompts\.0\.clean\.0' must be a whole number",
    ),
    "lengths": (lambda d: d["prompts"][0]["clean"].pop(), "clean has 2 tokens and corrupted 3"),
    "a negative token": (lambda d: d["prompts"][0]["correct"].__setitem__(0, -1), "none of them negative"),
    "the same answer": (lambda d: d["prompts"][0].update(incorrect=[7]), "the same token 7"),
    "a position": (lambda d: d["prompts"][0].update(position=3), "position is outside"),
    "an index": (lambda d: d["task"].update(examples=[5]), "names prompt 5 of 2"),
    "no examples": (lambda d: d["task"].update(examples=[]), "has no examples"),
    "a metric": (lambda d: d["task"].update(metric="x"), "no metric 'x'"),
}


@pytest.mark.parametrize("name", list(BROKEN))
def test_a_broken_file_is_refused_by_field(name: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    of_tokens(None).save(path)
    data = json.loads(path.read_text("utf-8"))
    change, told = BROKEN[name]
    other = change(data)
    path.write_text(json.dumps(other if name == "another file" else data), "utf-8")
    with pytest.raises(cd.CircuitDiscoveryError, match=told) as caught:
        read_task(path)
    assert str(path) in str(caught.value)
