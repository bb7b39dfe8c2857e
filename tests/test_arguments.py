"""The door of public functions: all have it, it takes what it should, and nothing raw comes through it."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false, reportOptionalMemberAccess=false
from __future__ import annotations

import inspect
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import circuitdiscovery as cd
from circuitdiscovery.arguments.door import check_of, guarded
from circuitdiscovery.errors import ArgumentError, printable, shown

FUNCTIONS = [
    name
    for name in cd.__all__
    if inspect.isfunction(getattr(cd, name)) and inspect.signature(getattr(cd, name)).parameters
]
METHODS = [
    (cd.Circuit, name)
    for name in ("from_edges", "from_nodes", "full", "empty", "without", "with_roles", "draw", "save")
]
METHODS += [(cd.Scores, name) for name in ("above", "plot", "save", "load")] + [
    (cd.Graph, "mask"),
    (cd.Graph, "from_model"),
]
# Whose kinds are many: the function itself says what is valid.
ITS_OWN = {
    ("load_model", "source"),
    ("load_model", "device"),
    ("load_model", "dtype"),
    ("load_task", "name_or_path"),
    ("load_model", "device_map"),
    ("memory_budget", "memory"),
    ("plan", "source"),
    ("plan", "task"),
    ("explain", "features"),
    ("explain", "texts"),
}


@pytest.fixture(scope="module")
def ioi(toy: Any) -> Any:
    return cd.load_task("ioi", toy, examples=2)


# ------------------------------------------------------------------- every function


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_public_function_has_a_door(name: str) -> None:
    function = getattr(cd, name)
    assert function.__code__ is DOOR, f"{name} lacks @guarded"
    parameters = inspect.signature(function).parameters.values()
    unchecked = [
        each.name for each in parameters if check_of(each) is None and (name, each.name) not in ITS_OWN
    ]
    assert not unchecked, "what they are annotated with is not among KINDS of arguments/door.py"


@pytest.mark.parametrize(("owner", "name"), METHODS)
def test_so_have_the_methods_that_take_things(owner: type, name: str) -> None:
    function = inspect.getattr_static(owner, name)
    assert getattr(function, "__func__", function).__code__ is DOOR


@guarded
def example(
    model: Any, *, n: int = 1, share: float = 0.5, on: bool = False, names: Iterable[str] = ()
) -> tuple[Any, ...]:
    """What it is given."""
    return model, n, share, on, names


DOOR = example.__code__  # pyright: ignore[reportFunctionMemberAccess]


def test_the_signature_and_the_docstring_stay() -> None:
    assert str(inspect.signature(example)).startswith("(model: 'Any', *, n: 'int' = 1")
    assert (example.__doc__, example.__name__, example.__module__) == (
        "What it is given.",
        "example",
        __name__,
    )


# ------------------------------------------------------------------- kinds


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), np.array(3)])
def test_whole_numbers(value: Any) -> None:
    found = example(0, n=value)[1]
    assert found == 3 and type(found) is int


@pytest.mark.parametrize("value", [0.25, np.float32(0.25), np.float64(0.25), np.array(0.25)])
def test_numbers(value: Any) -> None:
    found = example(0, share=value)[2]
    assert found == 0.25 and type(found) is float


def test_a_tensor_of_one_number_is_a_number() -> None:
    import torch

    assert example(0, n=torch.tensor(3), share=torch.tensor(0.25))[1:3] == (3, 0.25)


WRONG: list[tuple[dict[str, Any], str]] = [
    *(
        ({"n": value}, "n must be a whole number")
        for value in ("3", 3.0, True, None, [3], np.array([3]), b"3", np.bool_(True), 3j)
    ),
    *(
        ({"share": value}, "share must be a finite number")
        for value in ("0.5", True, None, [0.5], float("nan"), float("-inf"), 1j)
    ),
    *(({"share": 10**400}, "share must be a finite number, not one of so many digits") for _ in "1"),
    *(({"on": value}, "on must be True or False") for value in (1, "yes", None, [])),
    *(
        ({"names": value}, "names must be a list of names")
        for value in (3, None, {"a": 1}, [3], [["a"]], b"a")
    ),
    ({"m": 3}, "no argument 'm'"),
    ({"model": 3}, "given model twice"),
]


@pytest.mark.parametrize(("options", "told"), WRONG)
def test_wrong_kinds(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ArgumentError, match=told) as caught:
        example(0, **options)
    assert isinstance(caught.value, cd.CircuitDiscoveryError) and isinstance(caught.value, TypeError)


def test_an_error_is_one_line_that_can_be_printed() -> None:
    odd = "a\nb\r\n\x00\x1b[31m\u2028c"
    for text in (printable(odd), str(cd.CircuitDiscoveryError(odd)), str(ArgumentError(odd))):
        assert text.isprintable() and text.startswith("a b \\x00\\x1b[31m c")
    assert shown("x" * 1000) == "'" + "x" * 56 + "..."


# ------------------------------------------------------------------- nothing raw


ODD: list[Any] = [
    *(
        None,
        0,
        -1,
        2.5,
        float("nan"),
        10**5000,
        True,
        "",
        "x",
        "\0",
        "a" * 5000,
        "a\nb",
        b"x",
        [],
        [1],
        [None],
        (),
        ("a", "b"),
    ),
    *(
        {},
        {"a": 1},
        set(),
        object(),
        object,
        print,
        np.zeros(3),
        np.zeros((2, 2), dtype=bool),
        np.array("x"),
        Path("no"),
        Path("\0"),
    ),
    *(ValueError("x"), range(3), iter([1]), 3j, ..., type, cd),
]
SMALL: dict[str, dict[str, Any]] = {"edge_pruning": {"edges": 5}, "hybrid": {"edges": 5}}


@pytest.mark.parametrize(
    "name", [name for name in FUNCTIONS if name not in ("load_model", "load_task", "report")]
)
def test_odd_values_end_in_one_line(
    name: str, toy: Any, ioi: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever one argument is: the function begins with what it can take, or refuses it;
    the functions themselves do not run here.
    """
    monkeypatch.chdir(tmp_path)
    began: list[inspect.BoundArguments] = []
    function = getattr(cd, name)
    wanted = inspect.signature(function)

    @guarded
    def stub() -> None: ...

    fake = _with_signature(lambda *args, **kwargs: began.append(wanted.bind(*args, **kwargs)), function)
    scores = cd.Scores(toy.graph, np.ones(toy.graph.allowed.shape))
    full = {
        "model": toy,
        "task": ioi,
        "circuit": scores.top(5),
        "a": scores.top(5),
        "b": scores.top(5),
        "scores": scores,
    }
    full |= {
        "hypothesis": "toy/ioi-position",
        "search": lambda model, task: scores.top(5),
        "name_or_path": "gpt2/ioi",
    } | SMALL.get(name, {})
    usual = {
        key: value
        for key, value in full.items()
        if key in wanted.parameters and (key != "scores" or name == "curve")
    }
    for key in wanted.parameters:
        for value in ODD:
            began.clear()
            try:
                fake(**(usual | {key: value}))
            except cd.CircuitDiscoveryError as error:
                assert str(error).isprintable() and len(str(error)) < 2500, (key, shown(value))
            else:
                assert len(began) == 1, (key, shown(value))


def _with_signature(function: Any, like: Any) -> Any:
    """A function behind a door that has another's signature."""
    function.__signature__ = inspect.signature(like)
    function.__name__ = like.__name__
    return guarded(function)


def test_odd_values_of_the_functions_that_load(
    toy: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for value in ODD:
        for call in (
            lambda v=value: cd.load_circuit(v),
            lambda v=value: cd.load_hypothesis(v),
            lambda v=value: cd.report(v),
        ):
            with pytest.raises(cd.CircuitDiscoveryError) as caught:
                call()
            assert str(caught.value).isprintable()


def test_odd_values_of_methods(toy: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    scores = cd.Scores(toy.graph, np.ones(toy.graph.allowed.shape))
    circuit = scores.top(5)
    calls: list[Any] = [
        *(
            scores.top,
            scores.best,
            scores.greedy,
            scores.above,
            scores.__getitem__,
            cd.Scores.load,
            scores.save,
            scores.plot,
        ),
        *(
            circuit.__contains__,
            circuit.__getitem__,
            circuit.score,
            circuit.without,
            circuit.with_roles,
            circuit.save,
            circuit.draw,
        ),
        *(cd.Circuit.from_nodes, cd.Circuit.full, cd.Circuit.empty, cd.Graph.from_model, cd.Circuit.load),
        *(lambda value: cd.Circuit.from_nodes(toy, value), lambda value: cd.Circuit.from_edges(toy, value)),
        *(
            lambda value: cd.Circuit(toy.graph, value),
            lambda value: cd.Scores(toy.graph, value),
            lambda value: cd.Graph(value, 2, 2),
        ),
        *(lambda value: cd.Graph(2, 2, 2, has_mlp=value), toy.graph.index, toy.graph.mask),
    ]
    for call in calls:
        for value in ODD:
            try:
                call(value)
            except cd.CircuitDiscoveryError as error:
                assert str(error).isprintable(), (call, shown(value))
            except TypeError:
                assert call.__name__ == "from_nodes"  # one argument is missing there


# ------------------------------------------------------------------- bars, cost


def test_progress_true_shows_how_far_it_is(
    toy: Any, ioi: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from circuitdiscovery.reporting import progress

    told: list[tuple[str, int, int]] = []

    class Bar:
        def __init__(self, label: str) -> None:
            self.label = label

        def __enter__(self) -> Any:
            return lambda done, total: told.append((self.label, done, total))

        def __exit__(self, *_: object) -> None:
            told.append((self.label, -1, -1))

    monkeypatch.setattr(progress, "stage", Bar)
    cd.eap(toy, ioi, progress=True)
    assert told[0][0] == "eap" and told[-2][1] == told[-2][2] > 0 and told[-1] == ("eap", -1, -1)


def test_the_door_costs_microseconds(toy: Any, ioi: Any) -> None:
    """Against a bare forward of the smallest task: a search makes many."""
    calls = 200
    best = min(_seconds(lambda: example(toy, n=3, share=0.5, on=True), calls) for _ in range(5)) / calls
    circuit = cd.Circuit.empty(toy)
    forward = min(_seconds(lambda: cd.run_circuit(toy, ioi, circuit), 2) for _ in range(3)) / 2
    assert best < forward / 10


def _seconds(call: Any, times: int) -> float:
    began = time.process_time()
    for _ in range(times):
        call()
    return time.process_time() - began
