"""Ordinary mistakes, one by one: each is accepted where that is sensible, else
told in one line that says what is valid.

Mistakes of one number are of one kind.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false, reportOptionalMemberAccess=false
from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import circuitdiscovery as cd
from circuitdiscovery.cli.main import main
from circuitdiscovery.reporting import progress

EDGES = ["input->m0", "m0->logits", "a2.h0->logits"]


@pytest.fixture(scope="module")
def ioi(toy: Any) -> Any:
    return cd.load_task("ioi", toy, examples=2)


@pytest.fixture(scope="module")
def scores(toy: Any, ioi: Any) -> Any:
    return cd.eap(toy, ioi)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, scores: Any, toy: Any, ioi: Any) -> Path:
    """A folder as `discover` leaves one, as far as these tests look."""
    folder = tmp_path_factory.mktemp("runs") / "toy-ioi-eap"
    folder.mkdir()
    scores.top(9).save(folder / "circuit.json")
    scores.save(folder / "scores.safetensors")
    found = cd.evaluate(toy, ioi, scores.top(9), effort="quick")
    found.save(folder / "evaluation.json")
    return folder


class Given:
    """What a mistake is made with."""

    def __init__(self, toy: Any, ioi: Any, scores: Any, run: Path, tmp: Path) -> None:
        self.model, self.task, self.scores, self.run, self.tmp = toy, ioi, scores, run, tmp
        self.circuit = scores.top(9)


@pytest.fixture
def given(
    toy: Any, ioi: Any, scores: Any, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Given]:
    monkeypatch.chdir(tmp_path)
    yield Given(toy, ioi, scores, run, tmp_path)


def graph_of(g: Given) -> Any:
    import networkx as nx

    return nx.MultiDiGraph(g.circuit.to_networkx())


def hf(g: Given) -> Any:
    import torch

    return torch.nn.Linear(2, 2)


# ---------------------------------------------------------------- refused in Python

REFUSED: dict[str, tuple[Callable[[Given], Any], str]] = {
    "1: a hub name of another library": (lambda g: cd.load_model("gpt2-smal"), "gpt2-smal"),
    "3: a device": (lambda g: cd.load_model("toy", device="gpu"), "cpu"),
    "4: a dtype": (lambda g: cd.load_model("toy", dtype="int8"), "float32"),
    "6: task and model exchanged": (
        lambda g: cd.load_task(g.model, "ioi"),
        r"load_task\('ioi', model\)|not Model",
    ),
    "6: of names": (lambda g: cd.load_task("toy", "ioi"), r"load_task\('ioi', model\)"),
    "9: a task's name": (lambda g: cd.load_task("IOI", g.model), "'ioi'"),
    "10: n=": (lambda g: cd.load_task("ioi", g.model, n=10), "no argument 'n'.*examples"),
    "11: words for tokens": (
        lambda g: cd.Task.from_tokens(clean=["The cat"], corrupted=["A"], correct=[1], incorrect=[2]),
        "token ids",
    ),
    "12: unequal lengths": (
        lambda g: cd.Task.from_tokens(clean=[[1]], corrupted=[[1, 2]], correct=[1], incorrect=[2]),
        "row 0",
    ),
    "13: by position": (
        lambda g: cd.acdc(g.model, g.task, 0.01),
        "acdc takes model and task by position, all else by name: threshold=",
    ),
    "13: tau=": (lambda g: cd.acdc(g.model, g.task, tau=0.01), "no argument 'tau'.*threshold"),
    "13: no task": (lambda g: cd.acdc(g.model), r"acdc needs task: acdc\(model, task, \.\.\.\)"),
    "13: twice": (lambda g: cd.acdc(g.model, g.task, task=g.task), "given task twice"),
    "14: a text for a number": (
        lambda g: cd.acdc(g.model, g.task, threshold="0.01"),
        "threshold must be a finite number, not '0.01'",
    ),
    "14: a text for a whole number": (
        lambda g: cd.eap_ig(g.model, g.task, steps="5"),
        "steps must be a whole number, not '5'",
    ),
    "14: a part of a number": (
        lambda g: cd.eap_ig(g.model, g.task, steps=2.5),
        "steps must be a whole number, not 2.5",
    ),
    "14: a seed below 0": (
        lambda g: cd.evaluate(g.model, g.task, g.circuit, seed=-5),
        "seed must be a whole number of at least 0, not -5",
    ),
    "14: infinitely much": (
        lambda g: cd.acdc(g.model, g.task, threshold=float("inf")),
        "threshold must be a finite number",
    ),
    "14: 5000 digits": (
        lambda g: cd.eap_ig(g.model, g.task, steps=10**5000),
        "steps must be a whole number of at most",
    ),
    "15: exchanged": (lambda g: cd.eap(g.task, g.model), r"the model comes first: eap\(model, task\)"),
    "15: names, exchanged": (lambda g: cd.acdc("ioi", "toy"), r"the model comes first: acdc\(model, task\)"),
    "15: the model twice": (lambda g: cd.eap(g.model, g.model), r"the model comes first: eap\(model, task\)"),
    "16: another model": (lambda g: cd.eap(hf(g), g.task), "Linear|module"),
    "16: a number": (
        lambda g: cd.eap(3, g.task),
        r"model must be what cd\.load_model gives, or a name or a path that it takes, not 3",
    ),
    "17: of nothing": (
        lambda g: cd.eap(g.model, g.task, metric=lambda: 0),
        r"metric must be a function of \(logits, task\)",
    ),
    "17: a list": (
        lambda g: cd.eap(g.model, g.task, metric=["nll"]),
        "metric must be one of logit_diff, .*, not list",
    ),
    "18: a metric": (lambda g: cd.eap(g.model, g.task, metric="logitdiff"), "'logit_diff'"),
    "18: an ablation": (lambda g: cd.eap(g.model, g.task, ablation="meen"), "'mean'"),
    "19: no gradient": (lambda g: cd.eap(g.model, g.task, metric="kl"), "eap_ig"),
    "20: a text": (
        lambda g: cd.eap(g.model, g.task, progress="yes"),
        r"progress must be True for a bar, or a function of \(done, total\)",
    ),
    "21: scores": (
        lambda g: cd.evaluate(g.model, g.task, g.scores),
        r"circuit is Scores, .* scores\.top\(n\) or scores\.best\(n\)",
    ),
    "21: a number": (
        lambda g: cd.explain(g.model, g.task, 3),
        "circuit must be a Circuit, the path of a circuit.json or of a run's folder",
    ),
    "21: a wrong edge": (lambda g: cd.evaluate(g.model, g.task, ["input->m9"]), "no edge 'input->m9'"),
    "22: no graph": (lambda g: cd.Circuit.from_edges(3, EDGES), "graph must be a Graph, or a model"),
    "23: numbers for receivers": (
        lambda g: cd.path_patching(g.model, g.task, receivers=(2, 0)),
        "receivers must be a list of names .*not 2",
    ),
    "23: three ends": (
        lambda g: cd.Circuit.from_edges(g.model, [("a", "b", "c", "d")]),
        "a pair such as .'m0', 'logits'.",
    ),
    "24: one text": (
        lambda g: cd.Circuit.from_edges(g.model, "m0->logits"),
        "must be a list of edges, such as",
    ),
    "25: no letter": (
        lambda g: cd.Circuit.from_edges(g.model, ["a1.h0->a2.h0"]),
        "a2.h0 is not one receiver: it reads by a2.h0<q>, a2.h0<k> and a2.h0<v>",
    ),
    "25: no such head": (
        lambda g: cd.Circuit.from_edges(g.model, ["a1.h0->a2.h9<v>"]),
        "did you mean 'a1.h0->a2.h",
    ),
    "26: a name of TransformerLens": (
        lambda g: cd.Circuit.from_nodes(g.model, ["blocks.2.attn.hook_z.0"]),
        r"'a2\.h0'.*a\{layer\}\.h\{head\}",
    ),
    "26: L2H0": (lambda g: cd.Circuit.from_nodes(g.model, ["L2H0"]), r"did you mean 'a2\.h0'"),
    "26: of a sender": (
        lambda g: cd.path_patching(g.model, g.task, senders=["L1H2"]),
        r"did you mean 'a1\.h2'",
    ),
    "26: of a card": (
        lambda g: cd.explain(g.model, g.task, cd.Circuit.full(g.model), nodes=["mlp1"]),
        "did you mean 'm1'",
    ),
    "27: an index": (lambda g: g.circuit["x"], "whole number or a slice"),
    "30: a suffix": (lambda g: g.circuit.draw("x.jpg"), r"must end in \.svg"),
    "31: no folder": (
        lambda g: g.circuit.save("nodir/x.json"),
        "cannot write nodir/x.json: there is no folder nodir",
    ),
    "33: a folder of something else": (
        lambda g: cd.load_circuit(g.tmp),
        "holds no circuit.json: it is not the folder of a run",
    ),
    "33: a missing folder": (lambda g: cd.load_circuit("runs/none"), "there is no folder 'runs/none'"),
    "34: no circuit of toy": (lambda g: cd.load_circuit("toy/ioi"), "no circuit of toy is shipped"),
    "35: an evaluation": (
        lambda g: cd.load_circuit(g.run / "evaluation.json"),
        "evaluation.json is an evaluation, not a circuit",
    ),
    "36: another model's": (lambda g: cd.evaluate(g.model, g.task, "gpt2/ioi"), "not of toy"),
    "37: scores": (lambda g: cd.compare(g.scores, g.circuit), r"a is Scores, .* scores\.top\(n\)"),
    "38: a part": (lambda g: g.scores.top(0.1), "whole number from 0 to 479"),
    "38: a text": (
        lambda g: g.scores.best("20"),
        "whole number from 0 to 479, the number there is, not '20'",
    ),
    "38: 5000 digits": (lambda g: g.scores.top(10**5000), "whole number from 0 to 479"),
    "39: no hypothesis": (lambda g: cd.scrub(g.model, g.task, "toy/ioi-positio"), "'toy/ioi-position'"),
    "39: a number": (
        lambda g: cd.scrub(g.model, g.task, 3),
        r"hypothesis must be what cd\.load_hypothesis gives",
    ),
}


@pytest.mark.parametrize("mistake", REFUSED, ids=lambda name: name)
def test_a_mistake_is_told_in_one_line(given: Given, mistake: str) -> None:
    make, told = REFUSED[mistake]
    with pytest.raises(cd.CircuitDiscoveryError, match=told) as caught:
        make(given)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 900


# --------------------------------------------------------------- accepted in Python


def same(found: Any, expected: Any) -> bool:
    return bool(found == expected)


def one_of_logits(logits: Any) -> Any:
    return logits[:, 0]


ACCEPTED: dict[str, Callable[[Given], bool]] = {
    "8: a model's name": lambda g: same(cd.load_task("ioi", "toy", examples=2), g.task),
    "13: no threshold": lambda g: same(cd.acdc(g.model, g.task), cd.acdc(g.model, g.task, threshold=0.002)),
    "14: of numpy": lambda g: same(
        cd.eap_ig(g.model, g.task, steps=__import__("numpy").int64(1)).top(5).info["options"]["steps"], 1
    ),
    "15: names": lambda g: len(cd.eap("toy", g.task)) == 479,
    "15: a task's name": lambda g: cd.random(g.model, "ioi").info["examples"] == 64,
    "17: of the logits alone": lambda g: (
        cd.eap(g.model, g.task, metric=one_of_logits).info["options"]["metric"] == "one_of_logits"
    ),
    "17: a Metric of the logits alone": lambda g: (
        len(cd.eap(g.model, g.task, metric=cd.Metric("own", one_of_logits))) == 479
    ),
    "18: kl": lambda g: (
        cd.eap_ig(g.model, g.task, steps=1, metric="kl").info["options"]["metric"] == "kl_divergence"
    ),
    "18: patch": lambda g: (
        cd.eap(g.model, g.task, ablation="patch").info["options"]["ablation"] == "resample"
    ),
    "20: progress=True": lambda g: len(cd.eap(g.model, g.task, progress=True)) == 479,
    "20: progress=False": lambda g: len(cd.eap(g.model, g.task, progress=False)) == 479,
    "21: a list of edges": lambda g: cd.evaluate(g.model, g.task, EDGES, effort="quick").edges == 3,
    "21: a path": lambda g: cd.run_circuit(g.model, g.task, str(g.run / "circuit.json")).shape[0] == 2,
    "21: a run's folder": lambda g: cd.run_circuit(g.model, g.task, g.run).shape[0] == 2,
    "21: a table": lambda g: cd.run_circuit(g.model, g.task, g.circuit.to_dataframe()).shape[0] == 2,
    "21: a mask": lambda g: cd.run_circuit(g.model, g.task, g.circuit.mask).shape[0] == 2,
    "22: a model": lambda g: same(
        cd.Circuit.from_edges(g.model, EDGES), cd.Circuit.from_edges(g.model.graph, EDGES)
    ),
    "23: pairs": lambda g: same(
        cd.Circuit.from_edges(g.model, [tuple(e.split("->")) for e in EDGES]),
        cd.Circuit.from_edges(g.model, EDGES),
    ),
    "23: of networkx": lambda g: same(cd.Circuit.from_edges(g.model, graph_of(g)), g.circuit),
    "23: of networkx's edges": lambda g: same(
        cd.Circuit.from_edges(g.model, graph_of(g).edges(keys=True)), g.circuit
    ),
    "27: iteration": lambda g: (
        tuple(g.circuit) == g.circuit.edges and [g.circuit[0], *g.circuit[1:]] == list(g.circuit)
    ),
    "27: a node": lambda g: "logits" in g.circuit and "a0.h0" not in cd.Circuit.empty(g.model),
    "27: an edge": lambda g: (
        g.circuit.edges[0] in g.circuit and tuple(g.circuit.edges[0].split("->")) in g.circuit
    ),
    "27: a task": lambda g: list(g.task) == list(g.task.examples) and g.task[0] == g.task.examples[0],
    "28: a table": lambda g: g.circuit.to_dataframe()["edge"].tolist() == list(g.circuit.edges),
    "28: a table of a task": lambda g: (
        g.task.to_dataframe()["clean"].tolist()[: len(g.task)] == [each.clean for each in g.task]
    ),
    "28: load": lambda g: same(cd.Circuit.load(g.run), g.circuit),
    "29: a drawing": lambda g: (
        "<svg" in g.circuit.draw()._repr_svg_() and "<svg" in g.circuit.plot()._repr_svg_()
    ),
    "32: over a file": lambda g: g.circuit.save("x.json") is None and g.circuit.save("x.json") is None,
    "33: a run's folder": lambda g: (
        same(cd.load_circuit(g.run), g.circuit) and same(cd.load_circuit(str(g.run)), g.circuit)
    ),
    "37: folders": lambda g: cd.compare(g.run, g.run).edges.jaccard == 1.0,
    "37: edges": lambda g: cd.compare(g.circuit, list(g.circuit)).edges.jaccard == 1.0,
    "37: scores' path": lambda g: cd.compare(g.run, g.circuit, scores=g.run).auc_trapezoid == 1.0,
    "39: a name": lambda g: cd.scrub(g.model, g.task, "toy/ioi-position", draws=1, renamed=0).draws == 1,
    "41: deepcopy": lambda g: (
        same(copy.deepcopy(g.circuit), g.circuit) and copy.deepcopy(g.circuit).info == g.circuit.info
    ),
    "41: pickle": lambda g: same(pickle.loads(pickle.dumps(g.circuit)), g.circuit),
    "41: scores": lambda g: (pickle.loads(pickle.dumps(g.scores)).values == g.scores.values).all(),
}


@pytest.mark.parametrize("mistake", ACCEPTED, ids=lambda name: name)
def test_what_is_sensible_is_accepted(given: Given, mistake: str) -> None:
    if "a table" in mistake:
        pytest.importorskip("pandas")
    assert ACCEPTED[mistake](given)


def test_home_is_the_home_folder(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:  # row 31
    monkeypatch.setenv("HOME", str(given.tmp))
    given.circuit.save("~/mine.json")
    assert cd.load_circuit("~/mine.json") == given.circuit == cd.load_circuit(given.tmp / "mine.json")


@pytest.mark.parametrize(
    ("name", "told"),
    [("ACDC", "'acdc'"), ("acdcc", "'acdc'"), ("discover", "is a command"), ("Circuits", "'Circuit'")],
)
def test_another_name_is_told(name: str, told: str) -> None:  # row 40
    with pytest.raises(AttributeError, match=told):
        getattr(cd, name)


# ---------------------------------------------------------------- on the command line

COMMANDS: dict[str, tuple[str, int, str]] = {
    "2: no folder": ("discover ./nowhere ioi", 2, "there is no folder ./nowhere"),
    "33: evaluate RUN": ("evaluate RUN --measure quick --examples 2", 0, "9 edges"),
    "33: draw RUN": ("draw RUN -o x.svg", 0, "x.svg"),
    "33: compare RUN": ("compare RUN RUN", 0, "1.000"),
    "33: explain RUN": ("explain RUN --node logits", 2, "no head or MLP 'logits'"),
    "43: exchanged": ("discover ioi toy", 2, "ioi is a task, not a model; the model comes first"),
    "44: --quiet": ("discover toy ioi --quiet", 2, "no option '--quiet'; Valid options: --method"),
    "44: --outdir": (
        "discover toy ioi --outdir x",
        2,
        "no option '--outdir'; did you mean '--out'? Valid options: ",
    ),
    "45: --steps of another method": (
        "discover toy ioi --steps 3",
        2,
        "--steps is not for acdc; valid with eap-ig",
    ),
    "45: --steps": (
        "discover toy ioi --method eap-ig --steps 1 --edges 5 --examples 2 --measure none --out made",
        0,
        "--steps 1 --out made --resume",
    ),
    "45: --rounds": (
        "discover toy ioi --method eap --rounds 3",
        2,
        "--rounds is not for eap; valid with hybrid",
    ),
    "46: explain": ("explain RUN --examples 2 --node a2.h0", 0, "1 nodes of toy on ioi"),
    "46: scrub": ("scrub toy toy/ioi-position --examples 2 --draws 1", 0, "toy/ioi-position: 43 edges"),
    "46: trace": ("trace toy ioi a2.h0<q> --examples 2", 0, "each sender writes to a2.h0<q>"),
    "46: path-patching": ("path-patching", 2, "it is circuitdiscovery trace"),
    "46: help": ("help", 2, "circuitdiscovery --help lists the commands"),
    "46: completion": ("--install-completion", 2, "_CIRCUITDISCOVERY_COMPLETE=bash_source circuitdiscovery"),
    "46: eap-ig": ("eap-ig toy ioi", 2, "it is circuitdiscovery discover --method eap-ig"),
    "46: another": ("frobnicate", 2, "Valid commands: benchmark"),
    "47: a task": ("tasks ioi", 0, "words name: 100"),
    "47: no task": ("tasks nothing", 2, "Valid tasks: addition"),
    "a function of one argument": (
        "benchmark toy --method os:system",
        2,
        "method 'os:system' is not a function of (model, task)",
    ),
    "no edges": ("compare RUN gpt2/ioi", 2, "circuits of different graphs"),
}


@pytest.mark.parametrize("mistake", COMMANDS, ids=lambda name: name)
def test_on_the_command_line(
    given: Given, mistake: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line, status, told = COMMANDS[mistake]
    words = [str(given.run) if word == "RUN" else word for word in line.split()]
    monkeypatch.setattr(sys, "argv", ["circuitdiscovery", *words])
    monkeypatch.setattr(progress, "FIRST_LINE", 600.0)  # a slow machine says that it is loading
    with pytest.raises(SystemExit) as ended:
        main(words)
    out, err = capsys.readouterr()
    assert ended.value.code == status, err
    assert told in (out if status == 0 else err)
    if status:
        assert out == "" and err.startswith("circuitdiscovery: ") and err.count("\n") == 1


def test_help_fits_eighty_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert not [line for line in lines if line.endswith("...") and "ARGS" not in line]


def test_a_circuit_that_was_removed_from_its_run(given: Given) -> None:
    folder = given.tmp / "gone"
    folder.mkdir()
    for record, told in (
        ("{}", "has found none yet"),
        ('{"summary": {}}', "was removed from the finished run"),
    ):
        (folder / "run.json").write_text(record)
        with pytest.raises(cd.CircuitDiscoveryError, match=f"holds no circuit.json: .*{told}"):
            cd.load_circuit(folder)
