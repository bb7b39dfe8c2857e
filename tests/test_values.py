"""What people do with a value: print it, look at it in a notebook, copy it, keep it."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false, reportOptionalMemberAccess=false
from __future__ import annotations

import copy
import inspect
import json
import pickle
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import circuitdiscovery as cd
from circuitdiscovery.circuit.notebook import Drawing
from circuitdiscovery.values import LONGEST

SHOWN = ("Circuit", "Scores", "Evaluation", "Explanation", "Curve", "Comparison", "Task")
NO_VALUE = ("CircuitDiscoveryError", "Replacements", "Metric")  # an error; tensors with functions; a function


@pytest.fixture(scope="module")
def values() -> dict[str, Any]:
    """One of every public class."""
    model = cd.load_model("toy")
    task = cd.load_task("ioi", model, examples=4)
    scores = cd.eap(model, task)
    circuit = scores.top(60).with_roles({"<b>name mover</b>": ["a2.h0"]})
    explanation = cd.explain(model, task, circuit, nodes=["a2.h0", "m0"], effort="quick")
    hypothesis = cd.load_hypothesis("toy/ioi-position")
    return {
        "Card": explanation.cards["a2.h0"],
        "Circuit": circuit,
        "Comparison": cd.compare(circuit, scores.top(50), scores=scores),
        "Curve": cd.curve(model, task, scores),
        "Evaluation": cd.evaluate(model, task, circuit, effort="quick", scores=scores),
        "Example": task[0],
        "Explanation": explanation,
        "Graph": model.graph,
        "Hypothesis": hypothesis,
        "HypothesisTests": cd.hypothesis_tests(model, task, circuit, reference=2, permutations=10, edges=2),
        "Model": model,
        "Neurons": cd.neurons(model, task, top=3),
        "Plan": cd.plan(model, task),
        "PathEffects": cd.path_patching(model, task),
        "Scores": scores,
        "Scrubbing": cd.scrub(model, task, hypothesis, draws=1, renamed=0),
        "Stability": cd.stability(lambda model, task: cd.random(model, task).top(9), model, task, runs=5),
        "Task": task,
    }


CLASSES = [name for name in cd.__all__ if inspect.isclass(getattr(cd, name)) and name not in NO_VALUE]


def test_these_are_all(values: dict[str, Any]) -> None:
    assert sorted(values) == CLASSES
    assert all(type(value) is getattr(cd, name) for name, value in values.items())


@pytest.mark.parametrize("name", CLASSES)
def test_a_repr_is_short(values: dict[str, Any], name: str) -> None:
    text = repr(values[name])
    assert len(text) <= LONGEST and text.isprintable()
    assert name in text or name == "Task"


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))], ids=["deepcopy", "pickle"]
)
def test_a_copy_is_the_same(values: dict[str, Any], name: str, copied: Callable[[Any], Any]) -> None:
    value = values[name]
    other = copied(value)
    assert type(other) is type(value) and repr(other) == repr(value)
    for each in ("to_dict", "edges", "examples"):
        if hasattr(value, each):
            mine, theirs = getattr(value, each), getattr(other, each)
            assert (mine() if callable(mine) else mine) == (theirs() if callable(theirs) else theirs)
    if name in ("Scores", "Circuit"):
        with pytest.raises(ValueError, match="read-only"):
            (other.values if name == "Scores" else other.mask)[0, 0] = 1
        with pytest.raises(TypeError):
            other.info["task"] = "another"


def test_a_copied_model_gives_the_same_logits(values: dict[str, Any]) -> None:
    import torch

    model, task = values["Model"], values["Task"]
    other = pickle.loads(pickle.dumps(model))
    assert other.digest == model.digest
    first, second = (cd.run_circuit(each, task, values["Circuit"]) for each in (model, other))
    assert torch.equal(first, second)


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.add(tag)
        self.open += [] if tag in ("br", "img", "rect", "path", "line", "circle", "polygon") else [tag]

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.open and tag in self.open:
            while self.open.pop() != tag:
                pass


@pytest.mark.parametrize("name", SHOWN)
def test_a_notebook_shows_it(values: dict[str, Any], name: str) -> None:
    html = values[name]._repr_html_()
    tags = _Tags()
    tags.feed(html)
    assert ("svg" in tags.seen) == (name in ("Circuit", "Scores", "Curve")) and (
        "svg" in tags.seen or "table" in tags.seen
    )
    assert not tags.open and "script" not in tags.seen and "b" not in tags.seen
    assert not html.startswith("<?xml")


def test_texts_in_a_notebook_are_escaped() -> None:
    task = cd.Task.from_tokens(
        clean=[[1, 2]],
        corrupted=[[1, 3]],
        correct=[4],
        incorrect=[5],
        variables={"IO": ["<script>x</script>"]},
    )
    assert "&lt;script&gt;" in task._repr_html_() and "<script>" not in task._repr_html_()


def test_an_empty_circuit_is_shown_too() -> None:
    assert "0 of" in cd.Circuit.empty(cd.Graph(1, 1, 1))._repr_html_()


def test_a_circuit_is_a_sequence_of_its_edges(values: dict[str, Any]) -> None:
    circuit = values["Circuit"]
    assert (
        list(circuit) == list(circuit.edges)
        and len(circuit) == 60
        and circuit[-1] == circuit.edges[-1]
        and circuit[:2] == circuit.edges[:2]
    )
    with pytest.raises(IndexError, match="no edge 60"):
        circuit[60]
    assert [edge in circuit for edge in values["Graph"].edges] == circuit.mask[
        values["Graph"].allowed
    ].tolist()
    assert ("input", "m0") in circuit or "input->m0" not in circuit.edges
    with pytest.raises(cd.CircuitDiscoveryError, match="no edge"):
        assert "m0->m9" in circuit


def test_a_table_has_the_circuit_s_edges(values: dict[str, Any]) -> None:
    pytest.importorskip("pandas")
    circuit = values["Circuit"]
    table = circuit.to_dataframe()
    assert table["edge"].tolist() == list(circuit)
    assert (table["source"] + "->" + table["receiver"]).tolist() == list(circuit)
    assert table["score"].tolist() == [circuit.score(edge) for edge in circuit]


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in CLASSES
        if hasattr(getattr(cd, name), "to_dict") and hasattr(getattr(cd, name), "save")
    ],
)
def test_what_has_a_dictionary_is_saved(values: dict[str, Any], name: str, tmp_path: Path) -> None:
    for file in ("a.json", "b.json"):
        values[name].save(tmp_path / file)
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == json.loads(
        json.dumps(values[name].to_dict())
    )
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    with pytest.raises(cd.CircuitDiscoveryError, match=r"must end in \.json"):
        values[name].save(tmp_path / "a.txt")


SAVED = [name for name in CLASSES if hasattr(getattr(cd, name), "save")]


@pytest.mark.parametrize("name", SAVED)
def test_what_was_saved_is_loaded(values: dict[str, Any], name: str, tmp_path: Path) -> None:
    """By each class that has `save`: it says the same, and is saved as the same bytes."""
    value, path = values[name], tmp_path / ("a.safetensors" if name == "Scores" else "a.json")
    value.save(path)
    found = cd.load_task(path, values["Model"]) if name == "Task" else getattr(cd, name).load(path)
    assert type(found) is type(value) and str(found) == str(value)
    if name not in ("Card", "Explanation"):  # which are written to six digits
        assert repr(found) == repr(value) and (found == value or name in ("Stability", "Scores"))
    found.save(tmp_path / f"b{path.suffix}")
    assert (tmp_path / f"b{path.suffix}").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", [name for name in SAVED if name != "Scores"])
def test_a_broken_file_is_refused_in_one_line(values: dict[str, Any], name: str, tmp_path: Path) -> None:
    """Whatever field is missing or of another kind, and a field too many;
    never another error, and never another value.
    """
    good = tmp_path / "good.json"
    values[name].save(good)
    data, path = json.loads(good.read_text("utf-8")), tmp_path / "broken.json"
    left_out = [{key: data[key] for key in data if key != gone} for gone in data]
    for broken in (*({**data, key: [{"x": {}}]} for key in data), *left_out, {**data, "x": 1}, [], 3):
        path.write_text(json.dumps(broken), "utf-8")
        try:
            found = cd.load_task(path, values["Model"]) if name == "Task" else getattr(cd, name).load(path)
        except cd.CircuitDiscoveryError as error:
            assert str(path) in str(error) and "\n" not in str(error)
        else:  # a field that may be missing, or may hold anything
            assert broken in left_out or name in ("Circuit", "Task")
            found.save(path)


def test_a_file_that_contradicts_itself_is_refused(values: dict[str, Any], tmp_path: Path) -> None:
    values["Comparison"].save(tmp_path / "a.json")
    data = json.loads((tmp_path / "a.json").read_text("utf-8"))
    data["edges"]["recall"] = 0.123
    with pytest.raises(cd.CircuitDiscoveryError, match=r"field 'edges\.recall' contradicts the others"):
        cd.Comparison.from_dict(data)


def test_a_drawing_is_what_the_file_holds(values: dict[str, Any], tmp_path: Path) -> None:
    drawing = values["Circuit"].draw(tmp_path / "a.svg")
    assert isinstance(drawing, Drawing)
    assert drawing._repr_svg_() == (tmp_path / "a.svg").read_text("utf-8")


def test_scores_are_a_collection_of_edges(values: dict[str, Any]) -> None:
    scores = values["Scores"]
    assert (
        len(scores) == len(list(scores)) == 479
        and "input->m0" in scores
        and ("input", "m0") in scores
        and "m0->input" not in scores
    )
    assert (
        scores["input", "m0"] == scores["input->m0"] == float(scores.values[scores.graph.index("input->m0")])
    )
