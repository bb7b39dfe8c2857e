"""A sample of what benchmarks/mutate.py does at length: broken inputs end in a result or one clear line."""

from __future__ import annotations

from pathlib import Path

import pytest
from mutations import Whole, outcome

import circuitdiscovery as cd

COUNTS = {
    "circuit.json": 25,
    "scores": 15,
    "MIB's JSON": 8,
    "task file": 10,
    "table": 15,
    "hypothesis": 20,
    "command line": 25,
    "state of a search": 6,
    "run folder": 6,
    "weights": 6,
    "config": 12,
    "tokenizer": 6,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return Whole.made(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("name", COUNTS)
def test_a_broken_input_ends_in_a_result_or_one_line(whole: Whole, name: str, tmp_path: Path) -> None:
    told = {
        seed: outcome(whole.kinds()[name], f"sample {name} {seed}", tmp_path / str(seed))
        for seed in range(COUNTS[name])
    }
    assert not {seed: each for seed, each in told.items() if each not in ("result", "refused")}
    assert "refused" in told.values() and not list(tmp_path.iterdir())


def test_what_is_whole_is_read(whole: Whole) -> None:
    """Otherwise everything would be refused, and nothing tried."""
    circuit = cd.load_circuit(whole.run)
    assert circuit == cd.Scores.load(whole.run / "scores.safetensors").best(30)
    assert whole.state.stat().st_size > 0


def test_a_fault_would_be_seen(tmp_path: Path) -> None:
    def raw(random: object, folder: Path) -> object:
        return lambda: {}["x"]

    def half(random: object, folder: Path) -> object:
        def read() -> None:
            (folder / ".x.tmp").touch()
            raise cd.CircuitDiscoveryError("no")

        return read

    assert outcome(raw, "0", tmp_path / "a") == "KeyError: 'x'"  # type: ignore[arg-type]
    assert outcome(half, "0", tmp_path / "b") == "left .x.tmp"  # type: ignore[arg-type]


# ------------------------------------------------------------------- given inputs


def test_the_given_inputs(shared: Path, whole: Whole, tmp_path: Path) -> None:
    faults = shared / "faults"
    with pytest.raises(cd.CircuitDiscoveryError, match=r"no score can be larger than 1e\+30|of fewer digits"):
        cd.load_circuit(faults / "circuit-huge-score.json")
    with pytest.raises(cd.CircuitDiscoveryError, match="state-score-is-text"):
        cd.acdc(whole.model, whole.task, threshold=0.01, state=faults / "state-score-is-text.json")


def test_numbers_that_are_too_large(whole: Whole, tmp_path: Path) -> None:
    text = (whole.run / "circuit.json").read_text("utf-8")
    edge = cd.load_circuit(whole.run).edges[0]
    score = str(cd.load_circuit(whole.run).score(edge))
    for literal, told in (
        ("1e308", "no score can be larger"),
        ("9" * 400, "of fewer digits"),
        ("9" * 5000, "too long"),
        ('"x"', "a number, not 'x'"),
    ):
        (tmp_path / "circuit.json").write_text(text.replace(score, literal, 1), "utf-8")
        with pytest.raises(cd.CircuitDiscoveryError, match=told) as caught:
            cd.load_circuit(tmp_path)
        assert str(tmp_path / "circuit.json") in str(caught.value) and len(str(caught.value)) < 300
