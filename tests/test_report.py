"""The report: what the page says is what the files say, nothing in a prompt can break it,
and in a browser it does what it promises.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import math
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from circuitdiscovery.circuit import charts, numbers
from circuitdiscovery.circuit.circuit import Circuit
from circuitdiscovery.circuit.draw import ROLE_COLOURS
from circuitdiscovery.circuit.layout import strongest_paths
from circuitdiscovery.circuit.scores import Scores
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.files.disk import read_json, write_json
from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.graph.nodes import node_of
from circuitdiscovery.measure.curve import Curve
from circuitdiscovery.measure.estimates import Estimate
from circuitdiscovery.reporting import sentences
from circuitdiscovery.reporting.data import mass
from circuitdiscovery.reporting.drawing import letters
from circuitdiscovery.reporting.folder import FORMAT, fingerprint, strongest_roles_of, with_roles
from circuitdiscovery.reporting.page import report

GRAPH = Graph(n_layers=3, n_heads=4, n_kv_heads=4)
GROUPED = Graph(n_layers=3, n_heads=4, n_kv_heads=2)
INFO = {
    "model": {"name": "toy", "digest": "0123456789abcdef"},
    "task": "ioi",
    "method": "eap",
    "versions": {"torch": "2.0"},
}
EVIL = (
    "</script><b>x</b><script>window.broken = 1</script>\"'><img src=x onerror='window.broken = 1'>"
    "&amp;</style>"
)


# ---------------------------------------------------------- a run folder by hand


def estimate(value: float, width: float = 0.05) -> dict[str, float]:
    return {"value": value, "low": value - width, "high": value + width}


def circuit_of(graph: Graph = GRAPH, edges: int = 40, seed: int = 0, scored: bool = True) -> Circuit:
    """A circuit with scores of both signs."""
    found = Scores(graph, np.random.default_rng(seed).normal(size=graph.allowed.shape), INFO).top(edges)
    return found if scored else Circuit(graph, found.mask, None, INFO)


def evaluation_of(circuit: Circuit) -> dict[str, Any]:
    nodes = [node for node in circuit.nodes if node not in ("input", "logits")]
    sets = [
        ("empty", [], 0.2),
        ("role mover", nodes[:1], 0.1),
        ("random", nodes[:5], 0.4),
        ("random", nodes[1:2], 0.3),
    ]
    sets.append(("greedy", nodes[2:4], 0.8))
    return {
        "model": "toy",
        "task": "ioi",
        "part": "held_out",
        "examples": 64,
        "metric": "logit_diff",
        "ablation": "resample",
        "direction": "noising",
        "edges": len(circuit),
        "edges_pruned": len(circuit.pruned()),
        "edges_total": len(circuit.graph),
        "full": estimate(4.9),
        "circuit": estimate(4.7),
        "empty": estimate(-0.1),
        "faithfulness": estimate(0.2),
        "normalized": estimate(0.96, 0.03),
        "reason": None,
        "kl": estimate(0.0123, 0.001),
        "agreement": estimate(0.87, 0.02),
        "completeness": {
            "sets": [
                {"kind": kind, "nodes": chosen, "incompleteness": estimate(value)}
                for kind, chosen, value in sets
            ],
            "max": estimate(0.8),
            "mean": estimate(0.36),
        },
        "minimality": {
            "scores": {node: estimate(0.01 * (i + 3), 0.005) for i, node in enumerate(nodes)},
            "below": nodes[:2],
            "bar": 0.05,
        },
        "curve": None,
    }


def card_of(
    circuit: Circuit, node: str, role: str | None, tokens: list[str], strongest: Sequence[str]
) -> dict[str, Any]:
    """`strongest`: the circuit's edges, by the size of their scores."""
    rng = np.random.default_rng(sum(map(ord, node)))
    into = [edge for edge in strongest if node_of(edge.split("->")[1]) == node]
    out = [edge for edge in strongest if edge.split("->")[0] == node]
    head, count = not node.startswith("m"), len(tokens)
    weights = np.tril(rng.dirichlet(np.full(count, 0.3), size=count)).round(6).tolist()
    named = {"S1": 1, "IO": 3, "END": count - 1}
    pattern = {"text": " ".join(tokens), "tokens": tokens, "weights": weights, "positions": named}
    lens = {
        "text": " ".join(tokens),
        "at": "END",
        "promoted": [[" Mary", 3.5], [tokens[0], 1.0]],
        "suppressed": [["\n", -2.0]],
    }
    return {
        "node": node,
        "kind": "head" if head else "mlp",
        "role": role,
        "evidence": ["attends IO with 0.83"] if role else [],
        "effect": estimate(round(rng.normal(), 4)),
        "direct": estimate(round(rng.normal(), 4)),
        "attention": ATTENTION if head else [],
        "attended": [["IO", 0.83], [tokens[0], 0.07]] if head else [],
        "scores": {"previous token": 0.1234, "copying": 0.91} if head else {},
        "patterns": [pattern] * 2 if head else [],
        "lens": [lens],
        "in_edges": [[edge, circuit.score(edge)] for edge in into[:10]],
        "out_edges": [[edge, circuit.score(edge)] for edge in out[:10]],
    }


ATTENTION: Any = [["END", "IO", 0.83], ["END", "S1", 0.05], ["IO", "S1", 0.4]]
TOKENS = ["When", " Mary", " and", " John", " went", " to"]


def explanation_of(
    circuit: Circuit, tokens: list[str] = TOKENS, roles: tuple[str, ...] = ("name mover", "induction")
) -> dict[str, Any]:
    # a group's keys and values are no node of their own
    nodes = [node for node in circuit.nodes if node in circuit.graph.sources[1:]]
    of = {
        node: roles[i % (len(roles) + 1)] if i % (len(roles) + 1) < len(roles) and node[0] == "a" else None
        for i, node in enumerate(nodes)
    }
    strongest = sorted(circuit.edges, key=lambda edge: -abs(circuit.score(edge) or 0))
    return {"cards": {node: card_of(circuit, node, of[node], tokens, strongest) for node in nodes}}


def contents_of(circuit: Circuit, tokens: list[str] = TOKENS) -> dict[str, Any]:
    side = {
        name: {"tokens": [word], "count": 1} for name, word in (("correct", " John"), ("incorrect", " Mary"))
    }
    said = {"token": " John", "probability": 0.93, "logit_diff": 4.2, "right": True}
    other = {"token": " Mary", "probability": 0.41, "logit_diff": -1.7, "right": False}
    prompts = [
        {
            "text": f"prompt {i}: {' '.join(tokens)}",
            **side,
            "full": said,
            "circuit": other if i == 2 else said,
            "agree": i != 2,
        }
        for i in range(4)
    ]
    curve = {"ranking": "eap_ig", "edges": [0, 2, 8, 32, 128], "cpr": estimate(0.7), "cmd": estimate(0.3)}
    curve |= {"area": estimate(0.8), "distance": estimate(0.2)}
    return {
        "format": FORMAT,
        "circuit": fingerprint(circuit),
        "no_curve": None,
        "no_cards": None,
        "task": {
            "name": "ioi",
            "description": "Who gets it",
            "source": "somebody",
            "counterfactual": "abc",
            "asks": "Whose?",
        },
        "example": {
            "clean": tokens,
            "corrupted": [*tokens[:-1], " from"],
            "positions": {"S1": 1, "IO": 3, "END": len(tokens) - 1},
            **side,
        },
        "prompts": prompts,
        "curve": curve | {"normalized": [estimate(value) for value in (0.0, 0.1, 0.4, 0.9, 1.0)]},
    }


def make_run(folder: Path, circuit: Circuit, **parts: Any) -> Path:
    """A finished run's folder; `parts` replace a file's value, or leave the file out where they are None."""
    folder.mkdir(parents=True, exist_ok=True)
    circuit.save(folder / "circuit.json")
    options = {"model": "toy", "task": "ioi", "method": "eap", "seed": 7}
    values = {
        "run": {"options": options, "summary": {}, "command": ["x"], "started": "2026-01-01"},
        "evaluation": evaluation_of(circuit),
    }
    values |= {"explanation": explanation_of(circuit), "report": contents_of(circuit)} | parts
    for name, value in values.items():
        if value is not None:
            write_json(folder / f"{name}.json", value)
    return folder


def changed(value: Any, path: str, to: Any) -> Any:
    """A copy of JSON with what stands at a dotted path replaced, or left out where `to` is Ellipsis."""
    value = copy.deepcopy(value)
    *steps, last = re.split(r"\.(?!h\d)", path)  # a dot of a node's name is none of the path's
    at: Any = value
    for step in steps:
        at = at[int(step) if isinstance(at, list) else step]
    key: Any = int(last) if isinstance(at, list) else last
    if to is ...:
        del at[key]
    else:
        at[key] = to
    return value


class Page(HTMLParser):
    """The page as a browser's parser sees it: elements with their attributes, and the text in each."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.ids: list[str] = []
        self.text = ""
        self.inside: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.elements.append((tag, values))
        self.ids += [values["id"]] if "id" in values else []
        self.inside.append(tag)
        if tag == "script":
            self.scripts.append("")
        if tag not in ("b", "i", "span", "a", "code"):
            self.text += " "

    def handle_endtag(self, tag: str) -> None:
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self.inside and self.inside[-1] == "script":
            self.scripts[-1] += data
        elif not self.inside or self.inside[-1] != "style":
            self.text += data

    def all(self, tag: str, **wanted: str) -> list[dict[str, str]]:
        return [
            values
            for name, values in self.elements
            if name == tag and all(word in values.get(key, "").split() for key, word in wanted.items())
        ]

    def words(self) -> str:
        return " ".join(self.text.split())


def page_of(folder: Path) -> Page:
    return Page(report(folder).read_text("utf-8"))


@pytest.fixture
def circuit() -> Circuit:
    return circuit_of()


# ------------------------------------------------------------- the whole page


def test_the_page_is_one_file_that_asks_for_nothing(tmp_path: Path, circuit: Circuit) -> None:
    path = report(make_run(tmp_path / "run", circuit))
    assert path == tmp_path / "run" / "report.html"
    page = Page(path.read_text("utf-8"))
    for tag, values in page.elements:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "audio", "video")
        assert "src" not in values and "srcset" not in values
        assert values.get("href", "#").startswith("#")
        assert not [name for name in values if name.startswith("on")]
    assert "url(" not in path.read_text("utf-8").replace(
        "url(#plot)", ""
    ) and "@import" not in path.read_text("utf-8")
    (policy,) = (values["content"] for values in page.all("meta") if "http-equiv" in values)
    (script,) = page.scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy


def test_every_link_leads_somewhere_and_no_id_stands_twice(tmp_path: Path, circuit: Circuit) -> None:
    page = page_of(make_run(tmp_path / "run", circuit))
    assert len(set(page.ids)) == len(page.ids)
    targets = [values["href"][1:] for values in page.all("a") if "href" in values]
    assert set(targets) <= set(page.ids) and len(targets) > 20
    labelled = [name for _, values in page.elements for name in values.get("aria-labelledby", "").split()]
    assert set(labelled) <= set(page.ids)


def test_the_same_run_gives_the_same_bytes_wherever_it_lies(tmp_path: Path, circuit: Circuit) -> None:
    runs = [make_run(tmp_path / name, circuit) for name in ("a", "b/c")]
    record = read_json(runs[1] / "run.json")
    write_json(runs[1] / "run.json", record | {"started": "2030-12-31", "command": ["other"], "threads": 9})
    code = "import sys; from circuitdiscovery.reporting.page import report; report(sys.argv[1])"
    for seed, run in zip(("1", "2"), runs, strict=True):
        subprocess.run(
            [sys.executable, "-c", code, run], env={**os.environ, "PYTHONHASHSEED": seed}, check=True
        )
    first, second = ((run / "report.html").read_bytes() for run in runs)
    assert first == second
    assert str(tmp_path).encode() not in first and b"2026-01-01" not in first


def test_a_complete_folder_needs_no_torch(tmp_path: Path, circuit: Circuit) -> None:
    run = make_run(tmp_path / "run", circuit)
    code = (
        "import sys; sys.modules['torch'] = None; from circuitdiscovery.reporting.page import report; "
        "report(sys.argv[1])"
    )
    result = subprocess.run([sys.executable, "-c", code, run], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_a_circuit_without_heads_and_mlps_says_so(tmp_path: Path, circuit: Circuit) -> None:
    direct = Circuit.from_edges(circuit.graph, ["input->logits"])
    run = make_run(tmp_path, direct, explanation=explanation_of(direct) | {"cards": {}})
    section = report(run).read_text("utf-8").partition('<h2 id="roles-h">')[2].partition("</section>")[0]
    assert "The circuit has no heads or MLPs." in section


def test_out_writes_that_file_and_no_other(tmp_path: Path, circuit: Circuit) -> None:
    run = make_run(tmp_path / "run", circuit)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    assert report(run, tmp_path / "mine.html") == tmp_path / "mine.html"
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    assert (tmp_path / "mine.html").read_bytes() == report(run).read_bytes()


def test_nothing_in_a_run_breaks_out_of_its_place(tmp_path: Path) -> None:
    circuit = circuit_of()
    circuit = Circuit(
        circuit.graph,
        circuit.mask,
        circuit.scores,
        {**INFO, "model": {"name": EVIL, "digest": EVIL}, "versions": {EVIL: EVIL}},
    )
    tokens = ["When", EVIL, " and", " John", "\n", " "]
    contents = contents_of(circuit, tokens)
    contents["task"] = dict.fromkeys(contents["task"], EVIL)
    contents["prompts"][0]["full"] = {**contents["prompts"][0]["full"], "token": EVIL}
    explanation = explanation_of(circuit, tokens, (EVIL, "induction"))
    for card in explanation["cards"].values():
        card["evidence"] = [EVIL] if card["role"] else []
        card["scores"] = {EVIL: 0.5}
    evaluation = changed(evaluation_of(circuit), "completeness.sets.1.kind", f"role {EVIL}")
    record = {"options": {"model": EVIL, "task": "ioi", "ablation": EVIL}, "summary": {}}
    page = page_of(
        make_run(
            tmp_path / "run",
            circuit,
            report=contents,
            explanation=explanation,
            evaluation=evaluation,
            run=record,
        )
    )
    assert len(page.scripts) == 1 and "broken" not in page.scripts[0]
    assert not page.all("img") and not [values for _, values in page.elements if "onerror" in values]
    assert page.text.count(EVIL) > 20
    plain = page_of(make_run(tmp_path / "plain", circuit_of()))
    assert {tag for tag, _ in page.elements} <= {tag for tag, _ in plain.elements}


@pytest.mark.parametrize("n", [1, 40, 400])
@pytest.mark.parametrize("graph", [GRAPH, GROUPED, Graph(12, 12, 12)], ids=["small", "grouped", "gpt2"])
def test_the_page_stays_small(tmp_path: Path, graph: Graph, n: int) -> None:
    circuit = circuit_of(graph, min(n, len(graph)))
    run = make_run(tmp_path / "run", circuit, explanation=explanation_of(circuit, TOKENS * 6))
    assert report(run).stat().st_size < 5_000_000


def test_a_real_models_circuit_is_drawn_in_part_and_says_so(tmp_path: Path) -> None:
    """707 edges and some 200 nodes, with every card and attention pattern: still
    small, and the drawing still one to read.
    """
    circuit = circuit_of(Graph(n_layers=30, n_heads=9, n_kv_heads=3), 707)
    circuit = Circuit(
        circuit.graph, circuit.mask | circuit.graph.mask(["input->m0", "m0->logits"]), circuit.scores, INFO
    )
    text = report(make_run(tmp_path / "run", circuit)).read_text("utf-8")
    drawn, nodes = (
        set(re.findall(r'data-edge="([^"]+)"', text.replace("&gt;", ">").replace("&lt;", "<"))),
        re.findall(r'data-node="([^"]+)"', text),
    )
    assert circuit.scores is not None and drawn == set(strongest_paths(circuit, circuit.scores, 60).edges)
    assert 0 < len(drawn) <= 60 and f"{len(drawn)} of {len(circuit)} edges shown" in text
    assert text.count("<details") > 150 and len(text) < 5_000_000
    ends = set(re.findall(r'data-from="([^"]+)" data-to="([^"]+)"', text))
    groups = [node for node in nodes if ".kv" in node]
    assert groups and all(
        (group, head) in ends
        for group in groups
        for head in circuit.graph.reader_nodes(f"{group}<k>")
        if head in nodes
    )


# ---------------------------------------------------------------- what it says


@pytest.mark.parametrize("graph", [GRAPH, GROUPED], ids=["single", "grouped"])
def test_of_which_edges_mib_s_areas_are(tmp_path: Path, graph: Graph) -> None:
    text = page_of(make_run(tmp_path / "run", circuit_of(graph))).words()
    assert " CMD " in text and (" (edges into k and v by group; MIB's are by head)." in text) == graph.grouped


def test_the_header_says_what_was_asked_and_how(tmp_path: Path, circuit: Circuit) -> None:
    text = page_of(make_run(tmp_path / "run", circuit)).words()
    for said in (
        "toy: 3 layers of 4 heads",
        "0123456789ab",
        "Who gets it",
        "somebody",
        "Corrupted prompts: abc. Whose?",
        "logit_diff",
        "resample",
        "noising",
        "seed 7",
        "torch 2.0",
    ):
        assert said in text
    assert "0123456789abcdef" not in text
    assert "circuitdiscovery discover toy ioi --method eap --seed 7" in text


def test_a_position_has_all_of_its_names_in_the_example(tmp_path: Path, circuit: Circuit) -> None:
    """The cards call it by the task's own name, the text beside the example by END."""
    contents = contents_of(circuit)
    contents["example"]["positions"] = {"END": 5, "S1": 1, "attractor": 5}
    page = page_of(make_run(tmp_path / "run", circuit, report=contents))
    assert " to attractor, END " in page.words() and " Mary S1 " in page.words()


def test_the_command_names_no_folder_of_this_machine() -> None:
    options = sentences.Options(
        "/home/me/models/mine",
        "/home/me/my task.csv",
        method="eap_ig",
        device="cuda",
        batch_size=3,
        split_qkv=False,
    )
    assert (
        sentences.command(options)
        == "circuitdiscovery discover ./mine './my task.csv' --method eap_ig --no-split-qkv"
    )


def test_the_verdict_states_each_figure_with_its_interval(tmp_path: Path, circuit: Circuit) -> None:
    text = page_of(make_run(tmp_path / "run", circuit)).words()
    for said in (
        "96% [93%, 99%]",
        "87% [85%, 89%]",
        "0.0123 [0.0113, 0.0133]",
        "0.2 [0.15, 0.25]",
        "0.8 [0.75, 0.85]",
        "4.7",
        "4.9",
        f"{numbers.MINUS}0.1",
    ):
        assert said in text, said
    for said in (
        "96% normalized faithfulness 93% to 99%",
        "87% same top token 85% to 89%",
        "0.0123 KL divergence, nats 0.0113 to 0.0133",
    ):
        assert said in text, said
    assert "40 edges" in text and f"{len(GRAPH)}" in text
    nodes = set(circuit.nodes) - {"input", "logits"}
    assert f"{len(nodes)} of its 15 heads and MLPs" in text
    assert (
        f"2 of its {len(nodes)} nodes matter by less than 1% of the span at every K that was tried: " in text
    )
    assert "knocked out of both (5 sets tried)" in text and "could be removed" not in text
    random = sum(each["kind"] == "random" for each in evaluation_of(circuit)["completeness"]["sets"])
    assert f" on average over the {random} random sets, " in text


def test_what_has_no_interval_stands_alone(circuit: Circuit) -> None:
    bare = {"value": 0.8, "low": None, "high": None}
    evaluation = evaluation_of(circuit)
    evaluation["completeness"]["max"] = bare
    assert "; at most by 0.8" in " ".join(sentences.verdict(evaluation, 9, 15).sentences)
    one = sentences.verdict(evaluation | {"normalized": bare}, 9, 15, None)
    assert one.word == "Uncertain" and "a single prompt is little evidence" in one.headline


VERDICTS = [
    ({"normalized": estimate(0.97, 0.05)}, "Faithful"),
    ({"normalized": estimate(0.97, 0.15)}, "Mostly faithful"),
    ({"normalized": estimate(0.6, 0.05)}, "Partly faithful"),
    ({"normalized": estimate(0.3, 0.05)}, "Not faithful"),
    ({"normalized": estimate(-0.2, 0.05)}, "Not faithful"),
    ({"normalized": estimate(1.6, 0.05)}, "Not faithful"),
    ({"normalized": estimate(0.97, 0.4)}, "Uncertain"),
    ({"normalized": None, "reason": "the span is 0"}, "Undetermined"),
]


@pytest.mark.parametrize(
    ("part", "word"), VERDICTS, ids=[f"{word} {i}" for i, (_, word) in enumerate(VERDICTS)]
)
def test_the_verdict_is_honest(circuit: Circuit, part: dict[str, Any], word: str) -> None:
    found = sentences.verdict(evaluation_of(circuit) | part, 9, 15)
    assert found.word == word
    text = " ".join(found.sentences)
    if part["normalized"] is None:
        assert "is undetermined" in text and "the span is 0" in text and "%" not in found.headline
    elif part["normalized"]["value"] < 0.5:
        assert "not enough to explain" in text


def test_the_verdict_warns() -> None:
    base = evaluation_of(circuit_of())
    said = {name: " ".join(sentences.verdict(base | part, 9, 15).sentences) for name, part in WARNED.items()}
    assert "The interval is wide" in said["wide"] and "The interval is wide" not in said["plain"]
    assert "than the single answers" in said["other token"] and "than the single answers" not in said["plain"]
    assert "that the search has not seen" in said["plain"] and "none were held out" in said["seen"]
    assert "with every edge ablated" in said["plain"] and "with no edge restored" in said["denoising"]
    assert "40 of them lie on a path" not in said["plain"] and "; 3 of them lie on a path" in said["pruned"]


WARNED: dict[str, dict[str, Any]] = {
    "plain": {"edges_pruned": 40},
    "wide": {"normalized": estimate(0.96, 0.2)},
    "other token": {"agreement": estimate(0.5)},
    "seen": {"part": "examples"},
    "pruned": {"edges_pruned": 3},
    "denoising": {"direction": "denoising"},
}


BESIDE_EMPTY = {
    "better by both": (estimate(0.96, 0.03), estimate(0.1, 0.05), None),
    "better by neither": (
        estimate(0.02, 0.05),
        estimate(3.0, 0.6),
        "It is not better than the empty circuit: it keeps 2%",
    ),
    "worse than nothing": (
        estimate(-0.3, 0.05),
        estimate(5.7, 0.6),
        "It is not better than the empty circuit",
    ),
    "by the metric only": (
        estimate(0.9, 0.1),
        estimate(5.7, 0.6),
        "Only one of two measures finds it better than the empty circuit: it keeps",
    ),
    "by KL only": (
        estimate(0.03, 0.04),
        estimate(2.0, 0.2),
        "Only one of two measures finds it better than the empty circuit: its KL",
    ),
    # [0, ..]; 3.1 is above 3.0
    "touching": (estimate(0.05, 0.05), estimate(2.6, 0.5), "It is not better than the empty circuit"),
    "no share": (None, estimate(2.6, 0.5), None),
}


@pytest.mark.parametrize(("kept", "kl", "says"), BESIDE_EMPTY.values(), ids=BESIDE_EMPTY)
def test_a_circuit_that_is_no_better_than_none_is_warned_of(
    kept: Any, kl: dict[str, float], says: str | None
) -> None:
    """The empty circuit's KL is 3.7 [3.0, 4.4]."""
    evaluation = evaluation_of(circuit_of()) | {
        "normalized": kept,
        "kl": kl,
        "empty_kl": estimate(3.7, 0.7),
        "reason": "small",
    }
    found = sentences.warnings(evaluation)
    assert len(found) == (says is not None) and (says or "") in " ".join(found)
    assert all(sentence in sentences.verdict(evaluation, 9, 15).sentences for sentence in found)
    assert "(the empty circuit's 3.7 [3, 4.4])" in " ".join(sentences.verdict(evaluation, 9, 15).sentences)
    if says:
        assert f"{numbers.interval(kl)} nats, the empty circuit's 3.7 [3, 4.4]" in found[0]


@pytest.mark.parametrize(("there", "says"), [(0.96, False), (0.9, False), (0.8, True), (1.2, True)])
def test_halves_of_the_prompts_that_disagree_are_warned_of(
    circuit: Circuit, there: float, says: bool
) -> None:
    """Held out: 0.96 [0.93, 0.99]; on the search's prompts an interval of 0.04 to each side."""
    contents = contents_of(circuit) | {
        "searched": {"examples": 48, "normalized": estimate(there, 0.04)},
        "scores": None,
    }
    found = sentences.warnings(evaluation_of(circuit), contents)
    assert len(found) == says
    for sentence in found:
        assert "two halves of the prompts disagree: on the 48 prompts of the search" in sentence
        assert f"{there:.0%} [" in sentence and "on the 64 held-out ones 96% [93%, 99%]" in sentence
        assert f"warning       {sentence}" in sentences.told(evaluation_of(circuit), contents)
    assert not sentences.warnings(evaluation_of(circuit) | {"normalized": None}, contents)
    contents["searched"]["normalized"] = None
    assert not sentences.warnings(evaluation_of(circuit), contents)


def test_the_page_says_what_was_measured_and_what_was_not(tmp_path: Path, circuit: Circuit) -> None:
    evaluation = evaluation_of(circuit) | {"effort": "quick", "empty_kl": estimate(3.7, 0.7)}
    evaluation["minimality"]["unmeasured"] = ["m1", "a2.h3"]
    contents = contents_of(circuit) | {
        "effort": "quick",
        "scores": {"positive": 66.25, "negative": -49.125, "damage": 4.25},
    }
    explanation = explanation_of(circuit) | {"unmeasured": ["a1.h1", "m2"]}
    record = {"options": {"model": "toy", "task": "ioi"}, "summary": {}, "effort": "quick"}
    text = page_of(
        make_run(
            tmp_path / "run",
            circuit,
            evaluation=evaluation,
            report=contents,
            explanation=explanation,
            run=record,
        )
    ).words()
    assert "logit_diff, resample ablation, noising; quickly (--measure quick)" in text
    assert f"positive 66.2, negative {numbers.MINUS}49.1; the damage of removing everything 4.25" in text
    assert "0.0113 to 0.0133; empty circuit 3.7" in text
    assert "Not measured, because their scores are smaller: m1, a2.h3." in text
    assert "Not measured, because their scores are smaller: a1.h1, m2." in text
    assert (
        "nodes of largest score alone matter by less than 1% of the span: " in text
        and "; the other 2 were not measured." in text
    )


def test_a_circuit_that_was_not_measured_has_a_page_that_says_so(tmp_path: Path, circuit: Circuit) -> None:
    asked = {
        "metric": "logit_diff",
        "ablation": "resample",
        "direction": "noising",
        "examples": 64,
        "part": "held_out",
    }
    contents = contents_of(circuit) | {"effort": "none", "asked": asked, "prompts": None, "curve": None}
    contents |= {
        "no_curve": "not measured",
        "no_cards": "not measured",
        "scores": {"positive": 3.0, "negative": -1.0, "damage": None},
    }
    record = {"options": {"model": "toy", "task": "ioi", "measure": "none"}, "summary": {}, "effort": "none"}
    page = page_of(
        make_run(tmp_path / "run", circuit, evaluation=None, explanation=None, report=contents, run=record)
    )
    text = page.words()
    for said in (
        "Not measured how much of the behaviour these 40 of",
        "There are no cards: not measured.",
        "There is no curve: not measured.",
    ):
        assert said in text, said
    assert (
        "There is no table of prompts: not measured." in text
        and "the logit difference" in text
        and "Who gets it" in text
    )
    assert f"positive 3, negative {numbers.MINUS}1" in text and "F(empty)" not in text
    assert "%" not in text.partition("Not measured how")[2].partition("40 of")[0] and not page.all(
        "table", **{"class": "bars"}
    )
    assert {values["data-edge"] for values in page.all("g") if "data-edge" in values} == set(circuit.edges)
    targets = {values["href"][1:] for values in page.all("a") if "href" in values}
    assert targets <= set(page.ids)


@pytest.mark.parametrize("value", [0.000123456, 0.0576, 0.97, 4.936, 57.61, 999.4, 1234.5, 1e6, -3.2])
def test_numbers_keep_three_digits(value: float) -> None:
    text = numbers.number(value)
    assert float(text.replace(numbers.MINUS, "-").replace(",", "")) == pytest.approx(value, rel=0.005)
    assert "-" not in text.replace("e-", "")


# ----------------------------------------------------------------- the drawing


@pytest.mark.parametrize(
    "graph", [GRAPH, GROUPED, Graph(2, 3, 3, split_qkv=False), Graph(2, 3, 3, has_mlp=False)], ids=str
)
@pytest.mark.parametrize("scored", [True, False])
def test_the_drawing_has_every_edge_with_its_ends_and_score(
    tmp_path: Path, graph: Graph, scored: bool
) -> None:
    circuit = circuit_of(graph, 30, scored=scored)
    page = page_of(make_run(tmp_path / "run", circuit))
    found = {
        values["data-edge"]: values for values in page.all("g", **{"class": "edge"}) if "data-edge" in values
    }
    assert set(found) == set(circuit.edges)
    for edge, values in found.items():
        source, receiver = edge.split("->")
        score = circuit.score(edge)
        assert (values["data-from"], values["data-to"]) == (source, node_of(receiver))
        assert values.get("data-score") == (None if score is None else repr(score))
        assert ("hurts" in values["class"].split()) == (score is not None and score < 0)
        assert values["aria-label"].startswith(edge)
    nodes = {values["data-node"]: values for values in page.all("a", **{"class": "node"})}
    assert set(nodes) == set(circuit.nodes)
    assert all(
        values.get("href") == f"#card-{node}" for node, values in nodes.items() if node in graph.sources[1:]
    )
    assert bool([values for values in page.all("input") if values["type"] == "range"]) == scored


@pytest.mark.parametrize(("method", "damages"), [("eap", True), ("matryoshka", False), ("mine:own", None)])
def test_scores_that_are_no_damages_are_not_called_so(
    tmp_path: Path, circuit: Circuit, method: str, damages: bool | None
) -> None:
    info = INFO | {"method": method}
    page = page_of(make_run(tmp_path / "run", replace(circuit, info=info))).words()
    assert ("ablating it hurts" in page) == ("ablation hurts" in page) == (damages is True)
    assert ("place in the search's order" in page) == (damages is False)
    assert (mass(Scores(GRAPH, np.ones(GRAPH.allowed.shape), info), 4.0) is not None) == (damages is True)


def test_roles_have_a_colour_and_a_letter_in_drawing_and_legend(tmp_path: Path, circuit: Circuit) -> None:
    explanation = explanation_of(circuit)
    path = report(make_run(tmp_path / "run", circuit, explanation=explanation))
    text = path.read_text("utf-8")
    roles = list(dict.fromkeys(card["role"] for card in explanation["cards"].values() if card["role"]))
    assert len(roles) == 2
    for role, letter, colour in zip(roles, "AB", ROLE_COLOURS, strict=False):
        for node in (node for node, card in explanation["cards"].items() if card["role"] == role):
            (drawn,) = re.findall(rf'<a class="node" data-node="{re.escape(node)}".*?</a>', text)
            assert (
                f'fill="{colour.lower()}"' in drawn
                and f">{letter}</text>" in drawn
                and f'aria-label="{node}, {role}"' in drawn
            )
        assert f'style="--tint:{colour}">{letter}</span> {role}' in text
    plain = [node for node, card in explanation["cards"].items() if not card["role"]]
    (drawn,) = re.findall(rf'<a class="node" data-node="{re.escape(plain[0])}".*?</a>', text)
    assert "badge" not in drawn
    assert list(letters([str(i) for i in range(28)]).values())[24:] == ["Y", "Z", "AA", "AB"]


def test_the_empty_circuit_has_a_page(tmp_path: Path) -> None:
    circuit = Circuit(GRAPH, np.zeros_like(GRAPH.allowed), None, INFO)
    page = page_of(make_run(tmp_path / "run", circuit))
    assert "0 of" in page.words() and "minimality does not apply" in page.words()


# ------------------------------------------------------------------- the cards


def test_every_node_has_a_card_with_its_figures(tmp_path: Path, circuit: Circuit) -> None:
    explanation = explanation_of(circuit)
    text = report(make_run(tmp_path / "run", circuit, explanation=explanation)).read_text("utf-8")
    parts = dict(re.findall(r'<details class="card" id="card-([^"]+)"(.*?)</details>', text, re.DOTALL))
    cards = explanation["cards"]
    assert list(parts) == sorted(cards, key=lambda node: -abs(cards[node]["effect"]["value"]))
    for node, part in parts.items():
        card, said = explanation["cards"][node], Page(f"<p{part}</p>").words()
        for estimate_ in (card["effect"], card["direct"]):
            assert numbers.interval(estimate_) in said
        assert (card["role"] or ("MLP" if node[0] == "m" else "no role")) in said
        assert all(sentence in said for sentence in card["evidence"])
        for edge, score in [*card["in_edges"], *card["out_edges"]]:
            other = edge.split("->")[0] if [edge, score] in card["in_edges"] else node_of(edge.split("->")[1])
            assert other in said and numbers.number(score) in said
            assert other in ("input", "logits") or f'href="#card-{other}"' in part
        if node[0] == "a":
            assert "previous token score 0.123" in said and "copying score 0.91" in said
            assert "END → IO 83%" in said and "IO → S1 40%" in said
            assert part.count('class="heat"') == 2
        else:
            assert 'class="heat"' not in part and "What END attends to" not in said


def test_heat_maps_have_a_cell_for_each_weight_at_its_place() -> None:
    weights = [[1.0, 0, 0], [0.25, 0.75, 0], [0.004, 0.396, 0.6]]
    pattern = {
        "text": "a b c",
        "tokens": ["a", " <u>", " c"],
        "weights": weights,
        "positions": {"IO": 1, "END": 2},
    }
    page = Page(charts.heat_map(pattern, 100))
    cells = {
        (int(v["y"]) // charts.CELL, int(v["x"]) // charts.CELL): float(v["fill-opacity"])
        for v in page.all("rect")
        if "fill-opacity" in v
    }
    expected = {(r, c): w for r, row in enumerate(weights) for c, w in enumerate(row) if w >= 0.01}
    assert cells == pytest.approx(expected, abs=0.005)
    assert "c (END) → <u> (IO): 0.396" in page.text
    few = Page(charts.heat_map(pattern, 2))
    assert sorted(v["fill-opacity"] for v in few.all("rect") if "fill-opacity" in v) == ["0.75", "1.00"]


def test_of_long_prompts_the_page_draws_the_weights_that_the_file_has(
    tmp_path: Path, circuit: Circuit
) -> None:
    explanation = explanation_of(circuit)
    node = next(node for node, card in explanation["cards"].items() if card["kind"] == "head")
    tokens = [f" t{i}" for i in range(70)]
    pattern = {"text": "x", "tokens": tokens, "strongest": [[3, 1, 0.5], [69, 68, 0.25]], "positions": {}}
    explanation["cards"][node]["patterns"] = [pattern]
    page = Page(report(make_run(tmp_path / "run", circuit, explanation=explanation)).read_text("utf-8"))
    assert "t3 → t1: 0.5" in page.text and "t69 → t68: 0.25" in page.text
    assert page.text.count("Of a long prompt only the largest weights are known.") == 1


def test_the_role_table_says_which_heads_and_where_they_look(tmp_path: Path, circuit: Circuit) -> None:
    explanation = explanation_of(circuit)
    text = report(make_run(tmp_path / "run", circuit, explanation=explanation)).read_text("utf-8")
    (table,) = re.findall(r'<table class="roles">.*?</table>', text, re.DOTALL)
    rows = re.findall(r"<tr><th scope=\"row\">.*?</tr>", table, re.DOTALL)
    for row in rows:
        role = next(role for role in ("name mover", "induction") if role in row)
        nodes = re.findall(r'href="#card-([^"]+)"', row)
        cards = {node: card for node, card in explanation["cards"].items() if card["role"] == role}
        assert nodes == sorted(cards, key=lambda node: -abs(cards[node]["effect"]["value"]))
        assert Page(row).words().count("END → IO 83%") == len(nodes)
    assert len(rows) == 2


def test_a_head_with_two_roles_is_shown_with_both(tmp_path: Path, circuit: Circuit) -> None:
    explanation = explanation_of(circuit)
    node = next(node for node, card in explanation["cards"].items() if card["role"] == "name mover")
    card = explanation["cards"][node]
    card["roles"] = {"name mover": ["attends IO with 0.83"], "induction": ["follows a copy"]}
    card["evidence"] = [sentence for told in card["roles"].values() for sentence in told]
    text = report(make_run(tmp_path / "run", circuit, explanation=explanation)).read_text("utf-8")
    (part,) = re.findall(rf'<details class="card" id="card-{re.escape(node)}".*?</details>', text, re.DOTALL)
    assert part.count('class="chip"') == 2 and "Why name mover" in part and "Why induction" in part
    (table,) = re.findall(r'<table class="roles">.*?</table>', text, re.DOTALL)
    for role, (sentence,) in card["roles"].items():
        (row,) = [row for row in table.split("<tr>") if f"</span> {role}<" in row]
        assert f'href="#card-{node}"' in row and sentence in row


def test_a_node_is_drawn_in_the_colour_of_its_strongest_role(tmp_path: Path, circuit: Circuit) -> None:
    """Whichever role other nodes have first."""
    explanation = explanation_of(circuit)
    second = [node for node, card in explanation["cards"].items() if card["role"] == "name mover"][1]
    explanation["cards"][second]["roles"] = {"induction": ["follows a copy"], "name mover": ["attends IO"]}
    page = page_of(make_run(tmp_path / "run", circuit, explanation=explanation))
    (drawn,) = page.all("a", **{"class": "node", "data-node": second})
    assert drawn["aria-label"] == f"{second}, induction"
    strongest = strongest_roles_of(with_roles(explanation)["cards"])
    assert list(strongest) == ["name mover", "induction"]
    assert second in strongest["induction"] and second not in strongest["name mover"]


# ------------------------------------------------------------------ the measures


SVG = "{http://www.w3.org/2000/svg}"


def titles(element: ElementTree.Element) -> list[str]:
    return [title.text or "" for title in element.iter(f"{SVG}title")]


def _points(svg: str) -> list[tuple[float, float]]:
    return [(float(v["cx"]), float(v["cy"])) for v in Page(svg).all("circle", **{"class": "dot"})]


def test_the_curve_is_logarithmic_and_marks_the_circuit() -> None:
    known = contents_of(circuit_of())["curve"]
    svg = charts.curve(known, edges=16, normalized=estimate(0.5, 0.1), total=479)
    (zero, *points), values = _points(svg), (0.1, 0.4, 0.9, 1.0)
    xs, ys = zip(*points, strict=True)
    # 2, 8, 32, 128: equal steps
    assert zero[0] < xs[0] and np.diff(xs) == pytest.approx(xs[1] - xs[0], abs=0.3)
    slope = (ys[3] - ys[0]) / (values[3] - values[0])
    assert slope < 0 and [ys[0] + slope * (v - values[0]) for v in values] == pytest.approx(ys, abs=0.3)
    (x, y) = map(float, re.findall(r'class="marker" d="M([\d.]+),([\d.]+)', svg)[0])
    assert x == pytest.approx((xs[1] + xs[2]) / 2, abs=0.3)  # 16 is halfway from 8 to 32
    assert y + 8 == pytest.approx(ys[0] + slope * (0.5 - values[0]), abs=0.5)
    marked = svg.partition('id="chosen"')[2]
    low, high = map(float, re.findall(r"M[\d.]+,([\d.]+)V([\d.]+)", marked)[0])
    assert low - high == pytest.approx(-slope * 0.2, abs=0.5)
    assert "this circuit: 16 edges, 50%" in svg and "50%, 95% interval 40% to 60%" in svg


@pytest.mark.parametrize("value", [-30.0, 0.0, 1.0, 40.0])
def test_the_curve_takes_any_value(value: float) -> None:
    known = contents_of(circuit_of())["curve"] | {"normalized": [estimate(value, 10.0)] * 5}
    svg = charts.curve(known, edges=479, normalized=estimate(value, 10.0), total=479)
    found = [float(each) for each in re.findall(r"[\d.]+(?=[,\"VhM ])", svg.partition("clip-path")[2])]
    assert all(math.isfinite(each) and each < 1500 for each in found)


def test_the_curve_stands_alone_as_a_picture(tmp_path: Path) -> None:
    values = [Estimate(value, value - 0.1, value + 0.1) for value in (0.0, 0.5, 0.996)]
    found = Curve(
        (0.01, 0.1, 1.0),
        (5, 48, 479),
        (0, 40, 479),
        tuple(values),
        values[0],
        values[1],
        values[0],
        values[1],
    )
    chart = found.plot(tmp_path / "curve.svg")
    assert chart._repr_svg_() == (tmp_path / "curve.svg").read_text("utf-8")
    root = ElementTree.fromstring(chart.svg)
    ys = [float(dot.get("cy", "")) for dot in root.iter(f"{SVG}circle")]
    assert ys[0] - ys[1] == pytest.approx((ys[0] - ys[2]) * 0.5 / 0.996, abs=0.2)
    assert 'id="chosen"' not in chart.svg
    with pytest.raises(CircuitDiscoveryError, match=r"curve\.png must end in \.svg"):
        found.plot(tmp_path / "curve.png")


# ------------------------------------------------------------ layer by head


@pytest.mark.parametrize(
    "graph", [Graph(4, 4, 4), Graph(30, 9, 3), Graph(12, 12, 12), Graph(2, 3, 3, has_mlp=False)], ids=str
)
def test_node_scores_stand_by_layer_and_head(tmp_path: Path, graph: Graph) -> None:
    scores = Scores(graph, np.random.default_rng(1).normal(size=graph.allowed.shape), INFO)
    chart = scores.plot(tmp_path / "nodes.svg")
    assert (tmp_path / "nodes.svg").read_text("utf-8") == chart.svg and scores.plot().svg == chart.svg
    sums = dict.fromkeys(graph.sources[1:], 0.0)
    for edge, (row, column) in zip(graph.edges, np.argwhere(graph.allowed), strict=True):
        sums[edge.split("->")[0]] = sums.get(edge.split("->")[0], 0.0) + float(scores.values[row, column])
    del sums["input"]
    cells = {
        title.split(": ")[0]: (rect, title)
        for rect in ElementTree.fromstring(chart.svg).iter(f"{SVG}rect")
        for title in titles(rect)
    }
    assert set(cells) == set(sums)
    xs, ys = ({node: float(rect.get(axis, "")) for node, (rect, _) in cells.items()} for axis in "xy")
    for node, (rect, title) in cells.items():
        layer, column = re.findall(r"\d+", node)[0], node.partition(".")[2]
        assert title == f"{node}: {numbers.number(sums[node])}" and rect.get("class") == (
            "plus" if sums[node] >= 0 else "minus"
        )
        assert ys[node] == ys[f"a{layer}.h0"] and (not column or xs[node] == xs[f"a0.{column}"])
        assert float(rect.get("fill-opacity", "")) ** 2 == pytest.approx(
            abs(sums[node]) / max(map(abs, sums.values())), abs=2e-3
        )
    places = [(ys[node], xs[node]) for node in graph.sources[1:]]
    assert places == sorted(places)  # layers downwards, heads to the right, the MLP after them


def test_scores_of_nothing_have_a_map_too() -> None:
    svg = Scores(GRAPH, np.zeros(GRAPH.allowed.shape)).plot().svg
    assert "nan" not in svg and 'fill-opacity="0.000"' in svg


@pytest.mark.parametrize("own", [True, False])
def test_the_page_has_the_map_of_the_runs_scores_else_of_the_kept_edges(
    tmp_path: Path, circuit: Circuit, own: bool
) -> None:
    folder = make_run(tmp_path / "run", circuit)
    scores = Scores(GRAPH, np.random.default_rng(9).normal(size=GRAPH.allowed.shape), INFO)
    if own:
        scores.save(folder / "scores.safetensors")
    text = report(folder).read_text("utf-8")
    for node in GRAPH.sources[1:]:
        kept = [edge for edge in circuit.edges if edge.startswith(f"{node}->")]
        score = scores.by_node()[node] if own else sum(circuit.score(edge) or 0.0 for edge in kept)
        assert f"<title>{node}: {numbers.number(score)}</title>" in text
    figure = Page(text.partition('id="node-scores">')[2].partition("</figure>")[0])
    assert len(figure.all("rect", **{"class": "kept"})) == 1 + len(
        {edge.split("->")[0] for edge in circuit.edges} - {"input"}
    )
    without = make_run(tmp_path / "without", circuit_of(scored=False))
    assert 'id="node-scores"' not in report(without).read_text("utf-8")


def test_bars_are_as_long_as_their_values(tmp_path: Path, circuit: Circuit) -> None:
    text = report(make_run(tmp_path / "run", circuit)).read_text("utf-8")
    evaluation = evaluation_of(circuit)
    for section, values in (
        ("completeness", [each["incompleteness"]["value"] for each in evaluation["completeness"]["sets"]]),
        ("minimality", [score["value"] for score in evaluation["minimality"]["scores"].values()]),
    ):
        (part,) = re.findall(rf'<section id="{section}".*?</section>', text, re.DOTALL)
        widths = [float(width) for width in re.findall(r'class="fill" style="width:([\d.]+)%', part)]
        largest = max(value + (0.05 if section == "completeness" else 0.005) for value in values)
        assert widths == pytest.approx([100 * value / largest for value in values], abs=0.01)
    assert float(re.findall(r"--bar:([\d.]+)%", text)[0]) == pytest.approx(
        100 * evaluation["minimality"]["bar"] / largest, abs=0.01
    )
    kinds = re.findall(r'scope="rowgroup">(.*?)<', text)
    assert kinds == [
        "nothing knocked out",
        "role mover",
        "a random half of the nodes",
        "the nodes that drive them furthest apart",
    ]
    below = re.findall(r'<tr class="below"><td class="names">.*?#card-([^"]+)".*?below 1%', text)
    assert below == evaluation["minimality"]["below"]


def test_rows_where_they_disagree_are_marked_in_words(tmp_path: Path, circuit: Circuit) -> None:
    text = report(make_run(tmp_path / "run", circuit)).read_text("utf-8")
    rows = re.findall(r'<tr class="(agree|differ)">(.*?)</tr>', text, re.DOTALL)
    assert [kind for kind, _ in rows] == ["agree", "agree", "differ", "agree"]
    said = [Page(row).words() for _, row in rows]
    assert said[2].endswith(f"went to John / Mary John ✓ 93% Δ 4.2 Mary 41% Δ {numbers.MINUS}1.7 ✗ no")
    assert said[1].endswith("John ✓ 93% Δ 4.2 John ✓ 93% Δ 4.2 yes")


def test_without_a_curve_the_page_says_why(tmp_path: Path, circuit: Circuit) -> None:
    contents = contents_of(circuit) | {"curve": None, "no_curve": "the metric has no gradient"}
    page = page_of(make_run(tmp_path / "run", circuit, report=contents))
    assert "There is no curve: the metric has no gradient." in page.words()
    assert not page.all("polyline", **{"class": "ranked"})


# -------------------------------------------------------------- what is refused


def test_what_is_no_run_folder_is_refused(tmp_path: Path, circuit: Circuit) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for name, why in (
        ("missing", "there is no such folder"),
        ("empty", "it has no run.json"),
        ("file", "it is a file"),
    ):
        with pytest.raises(CircuitDiscoveryError, match=f"{name} is not a run folder: {why}"):
            report(tmp_path / name)
    unfinished = make_run(
        tmp_path / "run", circuit, run={"options": {"model": "toy", "task": "ioi", "seed": 3}}
    )
    with pytest.raises(
        CircuitDiscoveryError,
        match=r"report\.html are missing; go on with: circuitdiscovery discover toy ioi --seed 3 --out .*run --resume",
    ):
        report(unfinished)
    run = make_run(tmp_path / "good", circuit)
    for path, why in (
        (tmp_path / "a.txt", "must end in .html"),
        (tmp_path / "no" / "a.html", "there is no folder"),
        (tmp_path / "d.html", "not a regular"),
    ):
        (tmp_path / "d.html").mkdir(exist_ok=True)
        with pytest.raises(CircuitDiscoveryError, match=why):
            report(run, path)


BROKEN = [
    ("evaluation", "kl.low", ..., "evaluation.json: the field 'kl.low' is missing"),
    ("evaluation", "kl", 3, "evaluation.json: the field 'kl' must not be 3"),
    ("evaluation", "examples", True, "evaluation.json: the field 'examples' must not be True"),
    (
        "evaluation",
        "minimality.unmeasured",
        [3],
        "evaluation.json: the field 'minimality.unmeasured.0' must not be 3",
    ),
    ("evaluation", "empty_kl", 3, "evaluation.json: the field 'empty_kl' must not be 3"),
    ("explanation", "unmeasured", "m0", "explanation.json: the field 'unmeasured' must not be 'm0'"),
    ("report", "searched", {"examples": 3}, "report.json: the field 'searched.normalized' is missing"),
    ("report", "scores", 1, "report.json: the field 'scores' must not be 1"),
    (
        "evaluation",
        "completeness.sets.1.nodes",
        [4],
        "evaluation.json: the field 'completeness.sets.1.nodes.0' must not be 4",
    ),
    ("evaluation", "edges", 7, "of a circuit of 7 edges, but circuit.json has 40"),
    (
        "explanation",
        "cards.m0.effect.value",
        "big",
        "explanation.json: the field 'cards.m0.effect.value' must not be 'big'",
    ),
    (
        "explanation",
        "cards.m0.in_edges",
        [["input->m0"]],
        "the field 'cards.m0.in_edges.0' must hold 2 things, not 1",
    ),
    (
        "explanation",
        "cards.a0.h0.patterns.0.weights.1",
        [1.0],
        "explanation.json: the field 'cards.a0.h0.patterns' holds lists",
    ),
    (
        "explanation",
        "cards.a0.h0.patterns.0",
        {"text": "x", "tokens": ["x"], "strongest": [[0, 1, 0.5]], "positions": {}},
        "the field 'cards.a0.h0.patterns' has weights of tokens that there are not",
    ),
    (
        "report",
        "example.corrupted",
        ["a"],
        "report.json: the field 'example' holds lists that do not fit together",
    ),
    ("report", "curve.edges", [1, 2], "report.json: the field 'curve' holds lists that do not fit together"),
    ("explanation", "cards", ..., "explanation.json: the field 'cards' is missing"),
    ("report", "prompts.2.agree", 1, "report.json: the field 'prompts.2.agree' must not be 1"),
    ("report", "curve.edges", "many", "report.json: the field 'curve"),
    ("run", "options.seed", "x", "run.json: the field 'options.seed' must not be 'x'"),
    ("run", "options.task", ..., "run.json: the field 'options.task' is missing"),
]


@pytest.mark.parametrize(
    ("file", "field", "to", "says"), BROKEN, ids=[f"{file} {field}" for file, field, _, _ in BROKEN]
)
def test_a_broken_file_is_named_with_its_field(
    tmp_path: Path, circuit: Circuit, file: str, field: str, to: Any, says: str
) -> None:
    run = make_run(tmp_path / "run", circuit)
    write_json(run / f"{file}.json", changed(read_json(run / f"{file}.json"), field, to))
    with pytest.raises(CircuitDiscoveryError, match=re.escape(says)):
        report(run)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    "file", ["circuit.json", "evaluation.json", "report.json", "explanation.json", "run.json"]
)
@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_a_torn_file_is_named(tmp_path: Path, circuit: Circuit, file: str, text: str) -> None:
    run = make_run(tmp_path / "run", circuit)
    (run / file).write_text(text)
    with pytest.raises(CircuitDiscoveryError, match=re.escape(file)):
        report(run)


@pytest.mark.parametrize("file", ["circuit.json", "evaluation.json"])
def test_a_missing_file_is_named(tmp_path: Path, circuit: Circuit, file: str) -> None:
    run = make_run(tmp_path / "run", circuit)
    (run / file).unlink()
    with pytest.raises(CircuitDiscoveryError, match=file):
        report(run)


def test_without_its_model_an_older_run_still_has_a_page(tmp_path: Path, circuit: Circuit) -> None:
    """No explanation.json, no report.json, and a model that is not there any more."""
    gone = tmp_path / "models" / "mine"
    record = {"options": {"model": str(gone), "task": "ioi"}, "summary": {}}
    run = make_run(tmp_path / "run", circuit, explanation=None, report=None, run=record)
    page = page_of(run)
    assert "There are no cards:" in page.words() and "mine" in page.words()
    assert str(tmp_path) not in (run / "report.html").read_text("utf-8")
    assert not page.all("details") and not page.all("table", **{"class": "prompts"})
    assert {values["data-edge"] for values in page.all("g") if "data-edge" in values} == set(circuit.edges)
    assert "96% [93%, 99%]" in page.words() and "Indirect object identification" in page.words()
    assert "abc. What tells the name at all?" in page.words()  # as the task's file says
    assert {path.name for path in run.iterdir()} == {
        "circuit.json",
        "evaluation.json",
        "run.json",
        "report.html",
    }


def test_what_was_explained_of_another_circuit_is_not_shown(tmp_path: Path, circuit: Circuit) -> None:
    record = {"options": {"model": str(tmp_path / "gone"), "task": "ioi"}, "summary": {}}
    other = contents_of(circuit_of(seed=5))
    page = page_of(make_run(tmp_path / "run", circuit, report=other, run=record))
    assert "There are no cards:" in page.words() and not page.all("details")


def test_a_full_disk_leaves_the_page_that_was_there(
    tmp_path: Path, circuit: Circuit, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", circuit)
    report(run).write_text("the page of before")

    def full(path: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(CircuitDiscoveryError, match=r"cannot write .*report\.html: No space left"):
        report(run)
    monkeypatch.undo()
    assert (run / "report.html").read_text() == "the page of before"
