"""The bundled model: its folder, its tokenizer, what training never sees, and
the model card's figures measured again.
"""

from __future__ import annotations

import json
import random
import re
import sys
import tomllib
from collections.abc import Iterator
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "circuitdiscovery" / "models" / "toy"
sys.path.insert(0, str(ROOT / "benchmarks"))

import toy_text  # noqa: E402  # pyright: ignore[reportMissingImports]
import train_toy  # noqa: E402  # pyright: ignore[reportMissingImports]

WORLD = toy_text.load_world()
CARD = (FOLDER / "README.md").read_text(encoding="utf-8")
IOI = "When Mary and John went to the store, John gave a drink to"


def read_task(name: str) -> dict[str, Any]:
    return tomllib.loads((ROOT / "tasks" / f"{name}.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(FOLDER).eval()


# --- the folder


def test_folder_is_small_and_standard() -> None:
    files = {path.name for path in FOLDER.iterdir()}
    assert {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
    } <= files
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 8_000_000


def test_architecture(model: Any, tokenizer: Any) -> None:
    config = model.config
    assert (config.model_type, model.dtype) == ("gpt2", torch.float32)
    assert config.n_layer >= 4 and config.n_head >= 4
    assert config.vocab_size == len(tokenizer)


def test_the_circuit_graph_has_479_edges(model: Any) -> None:
    # 20 writers after `input`; every head reads three times, every MLP and the
    # logits once, each from all that comes before
    sources = [1 + 5 * layer for layer in range(model.config.n_layer)]
    edges = sum(3 * 4 * before + before + 4 for before in sources) + sources[-1] + 5
    assert edges == 479


# --- the tokenizer


def words(value: object) -> Iterator[str]:
    """All strings in nested lists and tables."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from words(item)


@pytest.mark.parametrize("task", ["gendered_pronoun", "greater_than", "ioi", "subject_verb_agreement"])
def test_every_word_of_the_shipped_tasks_is_one_token(tokenizer: Any, task: str) -> None:
    listed = list(words(read_task(task)["words"]))
    before = tokenizer("the").input_ids
    assert listed
    for word in listed:
        ids = tokenizer(f"the {word}").input_ids
        assert ids[: len(before)] == before and len(ids) == len(before) + 1, word
        assert ids[-1] != tokenizer.unk_token_id, word


@pytest.mark.parametrize(
    ("prompt", "answer"), [(IOI, " Mary"), ("The war lasted from the year 1732 to the year 17", "33")]
)
def test_an_answer_is_one_token_more(tokenizer: Any, prompt: str, answer: str) -> None:
    ids = tokenizer(prompt).input_ids
    assert tokenizer(prompt + answer).input_ids[:-1] == ids
    assert tokenizer.unk_token_id not in tokenizer(prompt + answer).input_ids


def test_a_year_is_two_tokens(tokenizer: Any) -> None:
    assert tokenizer.convert_ids_to_tokens(tokenizer("the year 1732.").input_ids) == [
        " the",
        " year",
        " 17",
        "32",
        ".",
    ]
    years = [tokenizer(f"the year 17{year:02d}").input_ids for year in range(100)]
    assert len({row[-1] for row in years}) == 100 and {len(row) for row in years} == {4}


def test_no_token_is_put_before_the_text(tokenizer: Any) -> None:
    assert tokenizer.convert_ids_to_tokens(tokenizer(IOI).input_ids)[:2] == [" When", " Mary"]


def test_words_are_case_sensitive_and_unknown_ones_are_seen(tokenizer: Any) -> None:
    ids = tokenizer("The the zebra MARY").input_ids
    assert ids[0] != ids[1]
    assert ids[2:] == [tokenizer.unk_token_id] * 2


def test_text_survives_a_round_trip(tokenizer: Any) -> None:
    rng = random.Random(11)
    for text in [IOI, *(toy_text.ordinary(WORLD, rng) for _ in range(200))]:
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_the_shipped_tokenizer_is_the_scripts(tokenizer: Any) -> None:
    assert tokenizer.get_vocab() == train_toy.build_tokenizer(WORLD).get_vocab()


# --- what training sees


def documents(count: int) -> Iterator[str]:
    rng = random.Random(12)
    return islice(iter(lambda: toy_text.document(WORLD, rng), ""), count)


def test_two_names_that_are_held_out_never_share_a_document() -> None:
    names = set(words(read_task("ioi")["words"]["name"]))
    met = {
        pair
        for text in documents(6000)
        for pair in combinations(sorted(names & set(re.findall(r"[A-Z][a-z]+", text))), 2)
    }
    assert len(met) > 1000
    assert not any(toy_text.held_out(*pair) for pair in met)
    # a fifth of all pairs: that none of those was met is not chance
    pairs = list(combinations(sorted(names), 2))
    assert 0.15 < sum(toy_text.held_out(*pair) for pair in pairs) / len(pairs) < 0.25


def test_an_event_and_a_year_that_are_held_out_never_share_a_document() -> None:
    nouns = set(words(read_task("greater_than")["words"]["noun"]))
    met: set[tuple[str, str]] = set()
    for text in documents(6000):
        years = {year[-2:] for year in re.findall(r"\d{4}", text)}
        met |= {(noun, year) for noun in nouns & set(re.findall(r"[a-z]+", text)) for year in years}
    assert len(met) > 1000
    assert not any(toy_text.held_out(*pair) for pair in met)


def test_a_noun_and_a_place_that_are_held_out_never_share_a_document() -> None:
    listed = read_task("subject_verb_agreement")["words"]
    nouns, places = (
        {form: table["singular"][index] for forms in table.values() for index, form in enumerate(forms)}
        for table in (listed["noun"], listed["place"])
    )
    met: set[tuple[str, str]] = set()
    for text in documents(6000):
        found = set(re.findall(r"[a-z]+", text))
        met |= {(nouns[noun], places[place]) for noun in found & set(nouns) for place in found & set(places)}
    assert len(met) > 300
    assert not any(toy_text.held_out(*pair) for pair in met)


@pytest.mark.parametrize("task", ["ioi", "greater_than", "subject_verb_agreement", "gendered_pronoun"])
def test_prompts_for_measuring_leak_and_could_not_be_trained_on(task: str) -> None:
    prompts = toy_text.held_out_prompts(WORLD, task, random.Random(13), 200)
    assert all(toy_text.leaks(WORLD, prompt.text) for prompt in prompts)


def test_the_order_of_a_pair_does_not_matter() -> None:
    names = read_task("ioi")["words"]["name"]
    assert all(toy_text.held_out(a, b) == toy_text.held_out(b, a) for a, b in combinations(names, 2))


def test_the_training_text_depends_on_the_seed_alone(tokenizer: Any) -> None:
    first, again, other = (
        next(train_toy.batches(WORLD, tokenizer, random.Random(seed))) for seed in (0, 0, 1)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(first, other, strict=True))


# --- the figures


def card_figures() -> dict[str, float]:
    return {
        name: float(figure)
        for name, figure in re.findall(r"^\| (\w+ [\w ]+?) \| (-?[\d.]+) \|", CARD, re.MULTILINE)
    }


@pytest.fixture(scope="module")
def figures(model: Any, tokenizer: Any) -> dict[str, float]:
    return train_toy.measure(model, tokenizer, WORLD, count=1000, seed=20_000)


@pytest.mark.parametrize(
    ("figure", "bar"),
    [
        ("ioi accuracy", 0.99),
        ("ioi logit difference", 3.0),
        ("greater_than prob_diff", 0.9),
        ("subject_verb_agreement accuracy", 0.99),
        ("gendered_pronoun accuracy", 0.99),
        ("induction accuracy", 0.9),
    ],
)
def test_a_figure_reaches_its_bar(figures: dict[str, float], figure: str, bar: float) -> None:
    assert figures[figure] >= bar


def test_the_card_says_what_is_measured(figures: dict[str, float]) -> None:
    said = card_figures()
    assert set(said) == set(figures)
    for name, value in figures.items():
        # two samples of 1,000: .04 is over three standard errors of a
        # share of .93; a tenth for logit differences
        assert said[name] == pytest.approx(value, abs=0.04, rel=0.1 if "logit" in name else 0.0), name


def test_the_card_says_what_the_model_is(model: Any, tokenizer: Any) -> None:
    assert f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters" in CARD
    assert f"{len(tokenizer)} tokens" in CARD
    assert (
        f"seed {train_toy.SEED}, {train_toy.STEPS:,} steps of {train_toy.BATCH} documents in "
        f"{len(train_toy.PHASES)} phases"
    ) in CARD
    assert "python benchmarks/train_toy.py" in CARD


def answer_logits(model: Any, tokenizer: Any, prompt: str, answers: list[str]) -> torch.Tensor:
    """Logits of the answers after a prompt, with nothing but Hugging Face."""
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    with torch.no_grad():
        return model(ids).logits[0, -1, [tokenizer(prompt + answer).input_ids[-1] for answer in answers]]


@pytest.mark.parametrize("template", read_task("ioi")["templates"])
def test_ioi_holds_in_every_template_and_order(model: Any, tokenizer: Any, template: str) -> None:
    rng, listed = random.Random(14), read_task("ioi")["words"]
    pairs = [pair for pair in combinations(listed["name"], 2) if toy_text.held_out(*pair)]
    right: list[bool] = []
    for index, (io, subject) in enumerate(rng.sample(pairs, 40)):
        first, second = (io, subject) if index % 2 else (subject, io)
        slots = {kind: rng.choice(listed[kind]) for kind in ("place", "object")}
        logits = answer_logits(
            model,
            tokenizer,
            template.format(first=first, second=second, S2=subject, **slots),
            [f" {io}", f" {subject}"],
        )
        right.append(bool(logits[0] > logits[1]))
    assert sum(right[::2]) >= 19 and sum(right[1::2]) >= 19


def test_the_papers_examples(model: Any, tokenizer: Any) -> None:
    examples = [
        (IOI, " Mary", " John"),
        # both sides share their mass among many years
        ("The war lasted from the year 1732 to the year 17", "40", "20"),
        ("The keys on the cabinet", " are", " is"),
        ("Once upon a time, there was a little girl named Lily.", " She", " He"),
    ]
    for prompt, correct, incorrect in examples:
        right, wrong = answer_logits(model, tokenizer, prompt, [correct, incorrect])
        assert right > wrong + 1, prompt


def test_the_configs_are_json_without_paths() -> None:
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        text = (FOLDER / name).read_text(encoding="utf-8")
        assert "/" not in json.dumps(json.loads(text)), name
