"""Correlations of units across models, against numpy's and against what was done to a copy."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.collections import PathCollection
from test_parts import network_of
from tiny import random_model, random_prompts, tiny_config
from torch import Tensor

import circuitdiscovery as cd
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.features.units import in_stream, unit_of, words_of
from circuitdiscovery.universality.correlating import best, groups_of, rotation
from circuitdiscovery.universality.dictionaries import FeatureUniversality
from circuitdiscovery.universality.kinds import Features
from circuitdiscovery.universality.units import Universality

VOCABULARY = 101
TEXTS = [
    "The keys on the table are small.",
    "There is a dog by the door.",
    "Mary gave a ring to John.",
    "The cats near the lamp were old.",
    "The dogs near the table are small.",
]


def prompts(count: int, length: int) -> list[list[int]]:
    return torch.randint(2, VOCABULARY, (count, length), generator=torch.Generator().manual_seed(3)).tolist()


def permuted(network: Any, orders: Sequence[Tensor]) -> Any:
    """A copy of a GPT-2 whose layers' neurons stand in other orders."""
    network = copy.deepcopy(network)
    for block, order in zip(network.transformer.h, orders, strict=True):
        block.mlp.c_fc.weight.data = block.mlp.c_fc.weight.data[:, order]
        block.mlp.c_fc.bias.data = block.mlp.c_fc.bias.data[order]
        block.mlp.c_proj.weight.data = block.mlp.c_proj.weight.data[order]
    return network


def test_a_permuted_copy_is_found_whole() -> None:
    """Every neuron's partner is itself, where the permutation put it, with correlation 1."""
    network = network_of("gpt2")
    size, layers = network.config.n_inner or 4 * network.config.n_embd, network.config.n_layer
    generator = torch.Generator().manual_seed(1)
    orders = [torch.randperm(size, generator=generator) for _ in range(layers)]
    model, other = cd.load_model((network, None)), cd.load_model((permuted(network, orders), None))
    found = cd.universality.neurons(model, other, prompts(40, 12))
    expected = [
        f"m{layer}/n{int((orders[layer] == i).nonzero())}" for layer in range(layers) for i in range(size)
    ]
    assert found.partners[0].tolist() == expected
    np.testing.assert_allclose(found.correlation, 1, atol=1e-5)
    assert found.dead == ()


def test_correlations_are_numpys(toy: cd.Model) -> None:
    """Of toy's neurons with those of a copy whose weights are moved: numpy's matrix, its maxima, and the
    baseline from the activations turned by hand."""
    other = moved(toy)
    found = cd.universality.neurons(toy, other, TEXTS, seed=5)
    values = [_all(model, TEXTS) for model in (toy, other)]  # per layer [tokens, neurons]
    one, two = (np.concatenate(each, 1) for each in values)
    both = np.corrcoef(one.T, two.T)[: one.shape[1], one.shape[1] :]
    np.testing.assert_allclose(found.correlation[0], np.nanmax(both, 1), atol=1e-4)
    names = np.array(found.names)
    assert (found.partners[0] == names[np.nanargmax(both, 1)]).mean() > 0.99
    turned = np.concatenate(
        [layer @ rotation(layer.shape[1], 5, i).numpy().T for i, layer in enumerate(values[1])], 1
    )
    baseline = np.corrcoef(one.T, turned.T)[: one.shape[1], one.shape[1] :].max(1)
    np.testing.assert_allclose(found.baseline[0], baseline, atol=1e-4)
    np.testing.assert_allclose(found.excess, found.correlation[0] - found.baseline[0])


def moved(model: cd.Model) -> cd.Model:
    """A model with other MLP weights."""
    generator = torch.Generator().manual_seed(0)
    blocks = []
    for block in model.blocks:
        assert block.W_in is not None
        noise = torch.randn(block.W_in.shape, generator=generator) * block.W_in.std()
        blocks.append(replace(block, W_in=block.W_in + noise))
    return replace(model, blocks=tuple(blocks))


def _all(model: cd.Model, texts: Sequence[str]) -> list[np.ndarray]:
    run = cd.features.run(model, texts)
    return [
        np.concatenate([np.asarray(each[1:]) for each in run.values(f"m{layer}.neurons")]).astype(float)
        for layer in range(model.n_layers)
    ]


def test_passes_change_nothing(toy: cd.Model) -> None:
    """With room for one layer at a time the texts run again, and the result is the same."""
    whole = cd.universality.neurons(toy, moved(toy), TEXTS)
    with cd.memory_budget("30MB"):
        parts = cd.universality.neurons(toy, moved(toy), TEXTS, batch_size=2)
    np.testing.assert_allclose(parts.correlation, whole.correlation, atol=1e-5)
    np.testing.assert_allclose(parts.baseline, whole.baseline, atol=1e-5)


def test_rotated_units_have_no_excess() -> None:
    """Units that are a rotation of those of the other correlate with them no more than with another rotation:
    the median excess is within .02 of 0, none is above .5; constant units are named and are 0."""
    rng = np.random.default_rng(0)
    one = np.maximum(rng.standard_normal((4000, 96)), 0.0)  # as neurons are
    one[:, 7] = 2.5
    turned = one @ rotation(96, 99, 0).numpy().T

    def run(start: int, stop: int) -> Iterator[tuple[Tensor, list[Tensor], list[Tensor]]]:
        for part in range(0, 4000, 500):
            values = (torch.from_numpy(each[part : part + 500]) for each in (one, turned))
            yield torch.ones(500, dtype=torch.float64), [next(values)[:, start:stop]], [next(values)]

    found = best(96, groups_of([96]), run, 1e9, 300, 0)
    excess = (found.correlation - found.baseline)[~found.dead]
    assert abs(np.median(excess)) < 0.02 and (excess < 0.5).all()
    assert np.flatnonzero(found.dead).tolist() == [7]
    assert found.correlation[7] == found.baseline[7] == 0 and found.partner[7] == -1


def test_a_layer_that_is_constant_has_no_baseline() -> None:
    """What is left of its variance is rounding: the baseline is that of the other layer alone."""
    draw = torch.Generator().manual_seed(0)
    own, theirs = torch.randn(400, 3, generator=draw), torch.randn(400, 4, generator=draw)
    still = 1e3 + 3e-3 * own[:, [0, 0, 1]]
    ones = torch.ones(400)

    def found(*layers: torch.Tensor) -> Any:
        groups = groups_of([layer.shape[1] for layer in layers])

        def run(start: int, stop: int) -> Any:
            for first in range(0, 400, 37):
                some = slice(first, first + 37)
                yield ones[some], [own[some, start:stop]], [layer[some] for layer in layers]

        return best(3, groups, run, 1e9, 64, 0)

    alone, beside = found(theirs), found(theirs, still)
    np.testing.assert_allclose(beside.baseline, alone.baseline, rtol=1e-5)
    np.testing.assert_array_equal(beside.partner, alone.partner)


def test_heads_of_a_permuted_copy() -> None:
    """Every head's partner is the head that attends as it does, wherever the copy has it."""
    network = copy.deepcopy(network_of("gpt2"))
    model = cd.load_model((network_of("gpt2"), None))
    width, heads = network.config.n_embd, network.config.n_head
    order = torch.tensor([2, 0, 3, 1])
    columns = (order[:, None] * (width // heads) + torch.arange(width // heads)).flatten()
    for block in network.transformer.h:
        for part in range(3):
            own = slice(part * width, (part + 1) * width)
            block.attn.c_attn.weight.data[:, own] = block.attn.c_attn.weight.data[:, own][:, columns]
            block.attn.c_attn.bias.data[own] = block.attn.c_attn.bias.data[own][columns]
        block.attn.c_proj.weight.data = block.attn.c_proj.weight.data[columns]
    found = cd.universality.heads(model, cd.load_model((network, None)), prompts(40, 12))
    expected = [
        f"a{layer}.h{int((order == i).nonzero())}" for layer in range(model.n_layers) for i in range(heads)
    ]
    assert found.partners[0].tolist() == expected
    np.testing.assert_allclose(found.correlation, 1, atol=1e-4)
    axes = found.plot().axes[0]
    shown = [tick for tick in axes.get_xticks() if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]]
    assert shown == list(range(model.n_layers))
    (points,) = axes.collections
    assert (
        isinstance(points, PathCollection) and points.get_sizes()[0] >= 20
    )  # points squared: 10 pixels wide


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    """Of features both, each with its arrays; undefined numbers are null, and rows are of one length."""
    nan, path = float("nan"), tmp_path / "a.json"
    one = Universality(
        "a", ("b", "c"), "neurons", (30, 20), ("m0/n0", "m1/n3"), np.array([[0.5, 0.25], [1 / 3, nan]]),
        np.array([["m1/n0", "m0/n2"], ["", "m0/n1"]]), np.array([[0.1, nan], [0.2, 0.3]]), ("m1/n3",),
    )  # fmt: skip
    both = FeatureUniversality(one, replace(one, correlation=np.zeros((2, 2), dtype=np.float32)))
    for found in (one, both):
        found.save(path)
        again = type(found).load(path)
        assert str(again) == str(found) and again.to_dict() == found.to_dict()
    one.save(path)
    again = Universality.load(path)
    np.testing.assert_array_equal(again.correlation, one.correlation)
    assert again.partners.tolist() == one.partners.tolist()
    data = json.loads(path.read_text("utf-8"))
    assert data["correlation"][1] == [1 / 3, None]
    for broken in (3, [[0.5, "x"], [0.1, 0.2]], [[0.5], [0.1, 0.2]], [[0.5, True], [0.1, 0.2]]):
        with pytest.raises(CircuitDiscoveryError, match=r"a\.json: field 'baseline' must be a") as told:
            Universality.from_dict(data | {"baseline": broken}, "a.json")
        assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", ["gemma3", "gpt-oss", "mpt"])
def test_patterns_that_are_read_are_those_that_are_used(name: str) -> None:
    """Where a run reads the attention's weights, its logits are the same as elsewhere."""
    from circuitdiscovery.features.forward import LOGITS, forward

    model = cd.load_model((network_of(name), None), dtype="float64")
    (batch,) = random_prompts(VOCABULARY, 3, 6).task.batches()
    plain = forward(model, batch.clean, (LOGITS,))[LOGITS]
    found = forward(model, batch.clean, (LOGITS, "a0.pattern", "a1.pattern"))
    torch.testing.assert_close(found[LOGITS], plain, atol=1e-5, rtol=1e-5)
    assert found["a1.pattern"].shape == (model.n_heads, 3, 6, 6)


class Letters:
    """A tokenizer of single characters, beside toy's of words."""

    def __init__(self, vocabulary: int) -> None:
        self.size, self.bos_token_id, self.unk_token_id, self.unk_token = vocabulary, None, None, None

    def __call__(self, text: str, return_offsets_mapping: bool = False) -> Any:
        from transformers.tokenization_utils_base import BatchEncoding

        data: dict[str, Any] = {"input_ids": [2 + ord(c) % (self.size - 2) for c in text]}
        if return_offsets_mapping:
            data["offset_mapping"] = [(i, i + 1) for i in range(len(text))]
        return BatchEncoding(data)

    def get_vocab(self) -> dict[str, int]:
        return {"a": 0}


class Words(Letters):
    """The same, whose tokens have texts: from 5 on some that toy has, too, among others that it does not; the
    last of toy's stands at a second token as well, so that no one token is it."""

    known = (" found", " roof", " After", "87", " Bob", " David", " desks", " ticket", ".")

    def __len__(self) -> int:
        return self.size

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        words = {**dict(enumerate(self.known, 5)), 40: self.known[-1]}
        return [words.get(each, f"word {each}") for each in ids]

    def decode(self, ids: Sequence[int]) -> str:
        return self.convert_ids_to_tokens(ids)[0]


def test_other_tokens_are_compared_by_characters(toy: cd.Model) -> None:
    """Each character counts once, with the values of its token: numpy's correlations over them."""
    network = network_of("gpt2")
    other = cd.load_model((network, Letters(VOCABULARY)))
    texts = TEXTS[:3]
    found = cd.universality.neurons(toy, other, texts)
    one, two = list[np.ndarray](), list[np.ndarray]()
    for text in texts:
        words = toy.tokenizer(text, return_offsets_mapping=True)
        mine, theirs = (np.concatenate(_each(model, text), 1) for model in (toy, other))
        for at in range(1, len(text)):
            token = [i for i, (start, end) in enumerate(words["offset_mapping"]) if start <= at < end]
            if token and token[0] > 0:
                one.append(mine[token[0]])
                two.append(theirs[at])
    both = np.corrcoef(np.array(one).T, np.array(two).T)[: len(one[0]), len(one[0]) :]
    np.testing.assert_allclose(found.correlation[0], np.nanmax(both, 1), atol=1e-4)


def _each(model: cd.Model, text: str) -> list[np.ndarray]:
    run = cd.features.run(model, text)
    return [np.asarray(run.values(f"m{layer}.neurons")[0]).astype(float) for layer in range(model.n_layers)]


def dictionary(
    toy: cd.Model, seed: int, n: int = 40, site: str = "m1", width: int = 128
) -> cd.features.Dictionary:
    """A random relu dictionary of a site of toy, whose features are active at about half of the tokens."""
    draw = torch.Generator().manual_seed(seed)
    encoder, decoder = (torch.randn(n, width, generator=draw) for _ in range(2))
    mean = torch.cat([*cd.features.activations(toy, prompts_of_toy(40), site, position="all").chunks()]).mean(
        0
    )
    return cd.features.Dictionary(
        "relu", site, "output", encoder, -encoder @ mean, decoder, torch.zeros(width)
    )


def reordered(sae: cd.features.Dictionary, order: Tensor) -> cd.features.Dictionary:
    own = {name: getattr(sae, name)[order] for name in ("W_enc", "b_enc", "W_dec")}
    return replace(sae, **own, digest="")


def test_a_permuted_dictionary_is_found_whole(toy: cd.Model, tmp_path: Path) -> None:
    """By activation and by decoder every feature's partner is where the permutation put it, with 1."""
    one, order = dictionary(toy, 0), torch.randperm(40, generator=torch.Generator().manual_seed(4))
    found = cd.universality.features(one, reordered(one, order), prompts_of_toy(60), model=toy)
    expected = [f"m1/f{int((order == i).nonzero())}" for i in range(40)]
    for each in (found.by_activation, found.by_decoder):
        assert each.partners[0].tolist() == expected
        np.testing.assert_allclose(each.correlation, 1, atol=1e-5)
    assert found.agreement.tolist() == [1.0] and found.same.all()
    assert "100.0% have one partner by both in m1 of toy" in str(found)
    table, first = found.to_dataframe(), found.by_decoder.partners[0, 0]
    assert table["partner in m1 of toy by decoder"][0] == first and len(table) == 40
    found.plot(tmp_path / "a.svg")
    assert (tmp_path / "a.svg").read_text().startswith("<?xml")


def prompts_of_toy(count: int) -> list[list[int]]:
    return torch.randint(2, 600, (count, 12), generator=torch.Generator().manual_seed(6)).tolist()


@pytest.mark.parametrize(("site", "width"), [("a1.z", 128), ("m1.neurons", 512), ("resid2", 128)])
def test_what_features_write_is_what_each_writes(toy: cd.Model, site: str, width: int) -> None:
    """The directions of all features at once, and of each one as a unit."""
    draw = torch.randn(2, 5, width, generator=torch.Generator().manual_seed(1))
    sae = cd.features.Dictionary("relu", site, "output", draw[0], torch.zeros(5), draw[1], torch.zeros(width))
    together = in_stream(toy, Features(toy, sae).written, sae.W_dec)
    alone = [stream for i in range(5) if (stream := unit_of(toy, sae[i]).stream) is not None]
    torch.testing.assert_close(together, torch.stack(alone))
    block = toy.blocks[1]
    assert block.W_out is not None
    through = {"a1.z": block.W_O.flatten(0, 1), "m1.neurons": block.W_out.T, "resid2": torch.eye(128)}
    torch.testing.assert_close(together, draw[1] @ through[site])


def test_features_of_another_random_dictionary_have_no_excess(toy: cd.Model) -> None:
    """Directions that have nothing to do with each other are no more alike than turned ones: the median
    excess is near 0 by decoder, and below by activation; none is above .5."""
    found = cd.universality.features(
        dictionary(toy, 0, 200), dictionary(toy, 1, 200), prompts_of_toy(200), model=toy
    )
    assert abs(np.median(found.by_decoder.excess)) < 0.02
    assert abs(np.median(found.by_activation.excess)) < 0.1
    assert found.by_decoder.share(0.3) == 0 == found.by_activation.share(0.5)
    assert float(found.agreement[0]) < 0.2


def test_trained_dictionaries_of_two_seeds_share_features(toy: cd.Model) -> None:
    """What two trainings find in the same activations is alike far beyond turned features; what two random
    dictionaries have is not (above)."""
    texts = [each.text for each in cd.load_task("ioi", toy, examples=128).examples]
    acts = cd.features.activations(toy, texts, "m1", position="all")
    one, two = (cd.features.train_sae(acts, n=64, k=4, steps=150, seed=seed) for seed in (0, 1))
    found = cd.universality.features(one, two, texts, model=toy).by_activation
    assert float(np.median(found.excess)) > 0.3 and found.share(0.5) > 0.2


def test_beside_features_that_are_never_active_there_is_no_partner(toy: cd.Model) -> None:
    """A correlation with a constant is undefined; half of the others dead, the best is that of the rest."""
    one, other = dictionary(toy, 0), dictionary(toy, 1)
    shift = torch.full((40,), 1e6)
    found, half = (
        cd.universality.features(
            one, replace(other, b_enc=other.b_enc - each, digest=""), prompts_of_toy(40), model=toy
        ).by_activation
        for each in (shift, shift * (torch.arange(40) < 20))
    )
    assert not found.dead and set(found.partners[0]) == {""}
    assert not found.correlation.any() and not found.baseline.any()
    assert "medians       correlation 0, baseline 0, excess 0" in str(found) and "no partner in" in str(found)
    assert all(int(name.rpartition("f")[2]) >= 20 for name in half.partners[0]) and half.baseline.any()


@pytest.mark.parametrize(("site", "width"), [("resid2", 128), ("m2.neurons", 512)])
def test_features_are_numpys(toy: cd.Model, site: str, width: int) -> None:
    """Of two dictionaries at other sites, numpy's correlations of what they encode, and of the rows of logits
    that their features write, through the MLP's output matrix where they are of neurons. What is never active,
    and what writes only the mean, which the last norm takes away, is dead and has no partner."""
    one, two = dictionary(toy, 2), dictionary(toy, 3, 30, site, width)
    one.b_enc[7], one.W_dec[[7, 9]] = -1e6, 3.0
    found = cd.universality.features(one, two, prompts_of_toy(40), model=toy)
    run = cd.features.run(toy, prompts_of_toy(40))
    values = [
        np.concatenate([sae.encode(torch.as_tensor(each))[1:].double().numpy() for each in run.values(at)])
        for sae, at in ((one, "m1"), (two, site))
    ]
    out = toy.blocks[2].W_out
    assert out is not None
    written = one.W_dec, two.W_dec if width == 128 else two.W_dec @ out.T
    logits = [words_of(toy, each).double().numpy().T for each in written]
    alive, partners = np.delete(np.arange(40), [7, 9]), list[np.ndarray]()
    for each, (a, b), dead in (
        (found.by_activation, values, ("m1/f7",)),
        (found.by_decoder, logits, ("m1/f7", "m1/f9")),
    ):
        assert each.dead == dead
        with np.errstate(divide="ignore", invalid="ignore"):
            both = np.corrcoef(a.T, b.T)[:40, 40:][alive]
            turned = np.corrcoef(a.T, (b @ rotation(30, 0, 0).numpy().T).T)[:40, 40:][alive]
        np.testing.assert_allclose(each.correlation[0, alive], both.max(1), atol=1e-5)
        assert each.partners[0, alive].tolist() == [f"{two.site}/f{i}" for i in both.argmax(1)]
        np.testing.assert_allclose(each.baseline[0, alive], turned.max(1), atol=1e-5)
        partners.append(both.argmax(1))
    same = partners[0] == partners[1]
    assert found.same[0, alive].tolist() == same.tolist() and not found.same[0, [7, 9]].any()
    assert float(found.agreement[0]) == pytest.approx(same.mean())


def test_features_of_models_of_other_tokens(toy: cd.Model) -> None:
    """By decoder over the texts of tokens that both have: numpy's correlations."""
    other = cd.load_model((network_of("gpt2"), Words(VOCABULARY)))
    width, draw = other.d_model, torch.Generator().manual_seed(8)
    encoder, decoder = (torch.randn(20, width, generator=draw) for _ in range(2))
    two = cd.features.Dictionary(
        "relu", "m0", "output", encoder, torch.zeros(20), decoder, torch.zeros(width)
    )
    found = cd.universality.features(dictionary(toy, 2), two, TEXTS[:2], model=toy, other_model=other)
    vocabulary = toy.tokenizer.get_vocab()
    tokens = [vocabulary[word] for word in Words.known[:-1]]
    ours = words_of(toy, dictionary(toy, 2).W_dec)[:, tokens].double().numpy()
    theirs = words_of(other, decoder)[:, 5 : 5 + len(tokens)].double().numpy()
    both = np.corrcoef(ours, theirs)[:40, 40:]
    np.testing.assert_allclose(found.by_decoder.correlation[0], both.max(1), atol=1e-5)
    assert found.by_decoder.tokens == (len(tokens),)


def test_passes_change_nothing_of_features(toy: cd.Model) -> None:
    """In chunks of features, with room for a few alone, the same is found."""
    saes, texts = (dictionary(toy, 0, 300), dictionary(toy, 1, 300)), prompts_of_toy(40)
    whole = cd.universality.features(*saes, texts, model=toy)
    with cd.memory_budget("700KB"):
        parts = cd.universality.features(*saes, texts, model=toy)
    np.testing.assert_allclose(parts.by_activation.correlation, whole.by_activation.correlation, atol=1e-5)
    np.testing.assert_allclose(parts.by_activation.baseline, whole.by_activation.baseline, atol=1e-5)


def test_what_cannot_be_compared_is_one_line(toy: cd.Model) -> None:
    """Other tokens without texts, attention across other tokens, no other model, no second token."""
    other = cd.load_model((network_of("gpt2"), Letters(VOCABULARY)))
    with pytest.raises(CircuitDiscoveryError, match="give texts, not token ids"):
        cd.universality.neurons(toy, other, [[5, 6, 7]])
    with pytest.raises(CircuitDiscoveryError, match="models that make the same tokens"):
        cd.universality.heads(toy, other, TEXTS[:1])
    with pytest.raises(CircuitDiscoveryError, match="others must be a loaded model"):
        cd.universality.neurons(toy, [], TEXTS)
    with pytest.raises(CircuitDiscoveryError, match="none has more than its first token"):
        cd.universality.neurons(toy, toy, ["The"])
    sae, features = dictionary(toy, 0), cd.universality.features
    with pytest.raises(CircuitDiscoveryError, match="others must be a dictionary"):
        features(sae, toy, TEXTS, model=toy)
    with pytest.raises(CircuitDiscoveryError, match="one for each of the 1 others"):
        features(sae, sae, TEXTS, model=toy, other_model=[toy, toy])
    with pytest.raises(CircuitDiscoveryError, match="does not say where in a model it stands"):
        features(sae, replace(sae, site=None), TEXTS, model=toy)
    with pytest.raises(CircuitDiscoveryError, match="writes is 128 wide, but m1 of GPT2LMHeadModel is 32"):
        features(sae, sae, TEXTS, model=toy, other_model=other)


def test_the_command(tmp_path: Path) -> None:
    """The same as in Python, with a picture; one model, and no text, are one line."""
    from click.testing import CliRunner

    from circuitdiscovery.cli.commands import cli

    (tmp_path / "a.txt").write_text("\n".join(TEXTS))
    words = ["universal", "toy", "toy", "--text", str(tmp_path / "a.txt"), "--plot", str(tmp_path / "a.png")]
    ran = CliRunner().invoke(cli, words)
    model = cd.load_model("toy")
    assert ran.exit_code == 0, ran.exception
    assert str(cd.universality.neurons(model, model, TEXTS)) in ran.output
    assert (tmp_path / "a.png").read_bytes()[1:4] == b"PNG"
    for some, told in (
        (["toy", "--task", "ioi"], "at least two models"),
        (["toy", "toy"], "give --text FILE"),
    ):
        with pytest.raises(CircuitDiscoveryError, match=told):
            CliRunner().invoke(cli, ["universal", *some], standalone_mode=False, catch_exceptions=False)


def test_dictionaries_before_and_after_a_norm_that_add_the_same_are_the_same() -> None:
    network = random_model(tiny_config("gemma3"))
    model = cd.load_model((network, None))
    draw, zeros = torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(0)), torch.zeros(32)
    gain = 1 + network.model.layers[1].post_feedforward_layernorm.weight.detach()
    before, after = (
        cd.features.Dictionary("relu", "m1", "normed", draw[0], zeros[:8], rows, zeros, inner=inner)
        for rows, inner in ((draw[1], True), (draw[1] * gain, False))
    )
    texts = random_prompts(101, 4, 6).clean.tolist()
    found = cd.universality.features(before, after, texts, model=model)
    assert found.by_decoder.correlation.min() == pytest.approx(1, abs=1e-5)
