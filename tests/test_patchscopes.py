"""Patchscopes, beside Hugging Face's own hooks and the paper's definitions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from test_run_sites import TOKENS, close, hooked, layers, networks, pair  # noqa: F401  # pyright: ignore
from torch import Tensor

import circuitdiscovery as cd
from circuitdiscovery.cli.main import cli
from circuitdiscovery.features.units import logits_of

f = cd.features
TARGET = [4, 9, 4, 27, 9, 27, 30, 8]
PLACE = 6
TEXTS = ["The keys on the table", "The dog by the gate", "The cups near the lamp", "The boats by the house"]
TOY_TARGET = "The cat is old. The cats are old. The?"


def stream(network: Any, tokens: Tensor, layer: int) -> Tensor:
    """Hugging Face's stream before a block, or after the last."""
    kept: list[Tensor] = []
    blocks = layers(network)
    module, before = (blocks[layer], True) if layer < len(blocks) else (blocks[-1], False)
    with hooked(module, lambda x: (kept.append(x.clone()), x)[1], before=before), torch.no_grad():
        network(tokens)
    return kept[0]


def said(network: Any, values: Tensor, layer: int, target: list[int]) -> Tensor:
    """[V]: Hugging Face's log-probabilities after a target with one [D] value put at its placeholder."""

    def put(x: Tensor) -> Tensor:
        x = x.clone()
        x[0, PLACE] = values
        return x

    blocks = layers(network)
    module, before = (blocks[layer], True) if layer < len(blocks) else (blocks[-1], False)
    with hooked(module, put, before=before), torch.no_grad():
        return network(torch.tensor([target])).logits[0, -1].log_softmax(-1)


@pytest.mark.parametrize("position", [-1, 3])
def test_the_last_layer_into_itself_says_the_models_own_token(pair: Any, position: int) -> None:  # noqa: F811
    _, network, model = pair
    found = f.patchscope(
        model, TOKENS, model.n_layers, position=position, target=TARGET, target_position=PLACE
    )
    with torch.no_grad():
        own = network(TOKENS).logits[:, position].log_softmax(-1)
    assert found.generated[0] == tuple((token,) for token in own.argmax(-1).tolist())
    assert found.precision(1) == 1.0 and found.expected == tuple(own.argmax(-1).tolist())
    close(torch.tensor(found.losses[0]), -own.amax(-1))
    assert found.surprisal == pytest.approx(float(-own.amax(-1).mean()), rel=1e-4)


@pytest.mark.parametrize(("at", "into"), [(1, None), (2, 0)])
def test_a_patch_is_hugging_faces(pair: Any, at: int, into: int | None) -> None:  # noqa: F811
    """Its most likely tokens, ranks, losses and the paper's surprisal, and three generated tokens."""
    _, network, model = pair
    how: dict[str, Any] = {"target": TARGET, "target_position": PLACE, "position": 4, "generate": 3}
    found = f.patchscope(model, TOKENS, at, into=into, **how)
    with torch.no_grad():
        own = network(TOKENS).logits[:, 4].log_softmax(-1)
    values, where = stream(network, TOKENS, at)[:, 4], at if into is None else into
    for row in range(len(TOKENS)):
        written = TARGET[: PLACE + 1]  # what follows the placeholder is not read
        first = said(network, values[row], where, written)
        for token in found.generated[0][row]:
            assert token == int(said(network, values[row], where, written).argmax())
            written = [*written, token]
        right = int(own[row].argmax())
        assert found.ranks[0][row] == int((first > first[right]).sum())
        assert found.losses[0][row] == pytest.approx(-float(first[right]), rel=1e-4, abs=1e-5)
        assert found.surprisals is not None
        expected = -float(own[row, int(first.argmax())])
        assert found.surprisals[0][row] == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_an_appended_arrow_is_read_after_the_whole_target(tinies: Any, words: Path) -> None:
    """The source token is expected then; other tokens where they are given."""
    from transformers import AutoTokenizer

    tiny = tinies("llama")
    model = cd.load_model((tiny.hf, AutoTokenizer.from_pretrained(words)))
    text, how = " ".join(f"w{token}" for token in TARGET), {"target_position": PLACE, "read": "w7"}
    found = f.patchscope(model, TOKENS, 1, target=text, position=2, **how)
    assert found.expected == tuple(TOKENS[:, 2].tolist()) and found.surprisal is None
    values = stream(tiny.hf, TOKENS, 1)[:, 2]
    for row, token in enumerate(TOKENS[:, 2].tolist()):
        log = said(tiny.hf, values[row], 1, [*TARGET, 7])
        assert found.generated[0][row] == (int(log.argmax()),)
        assert found.ranks[0][row] == int((log > log[token]).sum())
    other = f.patchscope(model, TOKENS, 1, target=text, position=2, expected=[" w5", 6, " w9"], **how)
    assert other.expected == (5, 6, 9) and other.generated == found.generated


def test_into_the_last_layer_it_is_the_logit_lens(toy: Any) -> None:
    found = f.patchscope(toy, TEXTS, range(5), into=4, target=TOY_TARGET)
    for layer in range(5):
        logits = logits_of(toy, f.activations(toy, TEXTS, f"resid{layer}", position=-1).values)
        assert [row[0] for row in found.generated[layer]] == logits.argmax(-1).tolist()


def test_several_layers_are_each_alone(toy: Any) -> None:
    many = f.patchscope(toy, TEXTS, ["resid3", 1], target=TOY_TARGET, generate=2, batch_size=3)
    assert many.at == ("resid3", "resid1") and many.into == many.at
    for i, layer in enumerate((3, 1)):
        one = f.patchscope(toy, TEXTS, layer, target=TOY_TARGET, generate=2)
        assert many.tokens[i] == one.tokens and many.ranks[i] == one.ranks[0]
        assert many.precision(1)[i] == one.precision(1)
        assert isinstance(one.tokens[0], str)
    assert all(text.startswith(" ") for text in many.tokens[0])


def test_what_follows_the_placeholder_is_not_read(toy: Any) -> None:
    found, other = (
        f.patchscope(toy, TEXTS, 2, target=target, generate=3)
        for target in (TOY_TARGET, f"{TOY_TARGET} The dog is old.")
    )
    assert found.generated == other.generated and found.losses == other.losses


def test_precision_counts_ranks(toy: Any, tmp_path: Path) -> None:
    found = f.patchscope(toy, TEXTS, [0, 2], target=TOY_TARGET)
    for k in (1, 3, 607):
        assert found.precision(k)[1] == np.mean([rank < k for rank in found.ranks[1]])
    assert found.loss[0] == pytest.approx(np.mean(found.losses[0]))
    found.save(tmp_path / "seen.json")
    assert f.Patchscope.load(tmp_path / "seen.json") == found
    table = found.to_dataframe()
    assert len(table) == 8 and table["said"][4:].tolist() == list(found.texts[1])


def test_the_positions_of_a_task(toy: Any) -> None:
    task = cd.load_task("subject_verb_agreement", toy, examples=6)
    found = f.patchscope(toy, task, 1, position="subject", target=TOY_TARGET)
    rows = [list(each.clean) for each in task.examples]
    for i, example in enumerate(task.examples):
        one = f.patchscope(toy, [rows[i]], 1, position=example.positions["subject"], target=TOY_TARGET)
        assert one.ranks[0][0] == found.ranks[0][i]


def test_intervals_hold_the_truth() -> None:
    """400 draws of 40 prompts: ranks of 0 with probability .8, losses that are log-normal."""
    rng = np.random.default_rng(0)
    ranks = rng.binomial(1, 0.2, (400, 40))
    losses = rng.lognormal(0, 1, (400, 40))
    places = tuple(f"resid{i}" for i in range(400))
    both = tuple(map(tuple, ranks.tolist())), tuple(map(tuple, losses.tolist()))
    found = f.Patchscope(
        "m", places, places, "?", "", False, (), (), tuple(range(40)), ("",) * 40, *both, both[1]
    )
    assert np.mean([each.low <= 0.8 <= each.high for each in found.precision(1)]) >= 0.95
    for means in (found.loss, found.surprisal):
        assert np.mean([each.low <= np.exp(0.5) <= each.high for each in means]) >= 0.93


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"at": 5}, "at: toy has no layer 5; layers are 0 to 4, or resid0 to resid4"),
        ({"at": [1, "m2"]}, "at: toy has no layer 'm2'"),
        ({"at": True}, "at: toy has no layer True"),
        ({"at": []}, "at: there is no layer"),
        ({"into": -1}, "into: toy has no layer -1"),
        ({"position": 5}, "position 5 is outside of prompt 0, which has 5 tokens"),
        ({"position": "S2"}, "no position 'S2'"),
        ({"position": "all"}, "position must be one token of each prompt"),
        ({"target": f.IDENTITY}, "does not know a word of 'cat -> cat.*give target= a text of words"),
        ({"target": "The cat is old."}, r"target 'The cat is old.' has no placeholder '\?'"),
        ({"target_position": 99}, "target_position 99 is outside of the target, which has 12 tokens"),
        ({"target": [5, 6]}, "a target of token ids needs target_position="),
        ({"target": [5, 999], "target_position": 0}, "target, row 0: .*token 999 is not in its vocabulary"),
        ({"target": [5, 6], "target_position": 0, "read": "is"}, "read='is' is appended to a text"),
        (
            {"target": f"{'The cat is old. ' * 13}The?"},
            "target and 1 generated tokens are 67 to be read, more ",
        ),
        ({"generate": 99}, "target and 99 generated tokens are 110 to be read, more than its 64 positions"),
        ({"generate": 0}, "generate must be a whole number of at least 1, not 0"),
        ({"read": ""}, r"read must be '\?', '->' or another text"),
        ({"read": "->"}, "target and read: the tokenizer does not know a word"),
        ({"into": 4, "read": "is"}, "into resid4, the last stream, nothing after the placeholder reads"),
        ({"expected": [" is"]}, "expected must be a token for each of the 4 prompts, or one for all"),
        ({"expected": " is old"}, "expected, 0: the answer ' is old' does not continue"),
        ({"expected": 607}, "expected, 0: 607 is not a token"),
    ],
)
def test_what_cannot_be_asked(toy: Any, how: dict[str, Any], told: str) -> None:
    with pytest.raises(cd.CircuitDiscoveryError, match=told):
        f.patchscope(toy, TEXTS, **({"at": 3, "target": TOY_TARGET} | how))


def test_a_placeholder_inside_of_a_token(words: Path, tinies: Any) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(WordLevel({"?": 0, "w?": 1, "w": 2}, unk_token="w"))
    tokenizer.pre_tokenizer = WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    model = cd.load_model((tinies("gpt2").hf, PreTrainedTokenizerFast(tokenizer_object=tokenizer)))
    with pytest.raises(
        cd.CircuitDiscoveryError, match=r"placeholder is part of the token 'w\?' of the target"
    ):
        f.patchscope(model, [[3, 4]], 1, target="w ? w?")
    assert len(f.patchscope(model, [[3, 4]], 1, target="w? ? w").tokens) == 1


def test_a_model_without_a_tokenizer(pair: Any) -> None:  # noqa: F811
    with pytest.raises(cd.CircuitDiscoveryError, match="has no tokenizer for the target: give its token ids"):
        f.patchscope(pair[2], TOKENS, 1)


def test_the_command(tmp_path: Path, toy: Any) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(TEXTS) + "\n\n")
    line = ["patchscope", "toy", "--texts", str(file), "--at", "3", "--target", TOY_TARGET, "--json"]
    found = json.loads(CliRunner().invoke(cli, line).stdout)
    assert found == json.loads(json.dumps(f.patchscope(toy, TEXTS, 3, target=TOY_TARGET).to_dict()))
    line = ["patchscope", "toy", "subject_verb_agreement", "--at", "2", "--at", "4", "--examples", "4"]
    told = CliRunner().invoke(cli, [*line, "--position", "subject", "--target", TOY_TARGET]).stdout
    assert told.startswith("toy: 4 prompts, read at the placeholder of") and "resid4" in told
    with pytest.raises(cd.CircuitDiscoveryError, match="give a TASK, or --texts FILE"):
        CliRunner().invoke(cli, ["patchscope", "toy", "--at", "3"], catch_exceptions=False)
