"""Sparse dictionaries: each format against the published formulas, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import dictionaries as made
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from dictionaries import Arrays, activations, active, arrays
from reference import Reference
from test_families import CASES, config_of
from tiny import CONFIGS, random_model, random_prompts, tiny_config
from torch import Tensor

import circuitdiscovery as cd
from circuitdiscovery.cli.main import cli
from circuitdiscovery.features.dictionary import TENSORS, Dictionary
from circuitdiscovery.features.sites import hook_of, location_of
from circuitdiscovery.features.whole import KINDS

load = cd.features.load_sae
X = activations()
ARCHITECTURES = {"relu": "standard", "topk": "topk", "jumprelu": "jumprelu", "gated": "gated"}


def tensor(x: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(x))


def close(found: Tensor, expected: np.ndarray) -> None:
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, tensor(expected), atol=1e-10, rtol=1e-10)


def check(dictionary: Dictionary, features: np.ndarray, output: np.ndarray, folder: Path) -> None:
    """What it computes of X, all that follows from it, and that it is the same when it was saved and read."""
    assert 0 < (features != 0).mean() < 1  # of each kind some are active
    save = folder / "saved" / dictionary.digest[:8]
    dictionary.save(save)
    x, which = tensor(X), torch.tensor([7, 0, 39, 7])
    for each in (dictionary, load(save)):
        f = each.encode(x)
        close(f, features)
        close(each.encode_some(x, which), np.moveaxis(features[..., which], -1, 0))
        close(each.decode(f, x), output)
        none = torch.zeros_like(f)
        close(each.decode(f, x) - each.decode(none, x), features @ each.vectors.numpy())
        assert (each.width, each.vectors.shape) == (made.FEATURES, (made.FEATURES, output.shape[-1]))
        assert each.digest == dictionary.digest
        assert (each.site, each.reads, each.inner) == (dictionary.site, dictionary.reads, dictionary.inner)
        assert each.separately() == (each.kind != "topk")
        if not each.needs_input:
            close(each.decode(f), output)
        else:
            with pytest.raises(cd.CircuitDiscoveryError, match="decode needs x"):
                each.decode(f)


# ------------------------------------------------------------------- SAE Lens


def normalised(x: np.ndarray, how: str) -> tuple[np.ndarray, np.ndarray | float, np.ndarray | float]:
    """(what is encoded, the scale and the mean of which it is the rest)."""
    if how == "layer_norm":
        mean, deviation = x.mean(-1, keepdims=True), x.std(-1, ddof=1, keepdims=True)
        return (x - mean) / (deviation + 1e-5), deviation, mean
    if how == "constant_norm_rescale":
        scale = np.linalg.norm(x, axis=-1, keepdims=True) / np.sqrt(x.shape[-1])
        return x / scale, scale, 0.0
    return x, 1.0, 0.0


@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize("how", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("kind", KINDS)
def test_autoencoders_of_sae_lens(tmp_path: Path, kind: str, how: str, subtract: bool) -> None:
    found = arrays(kind)
    options = {"k": 6} if kind == "topk" else {}
    options |= {"normalize_activations": how, "apply_b_dec_to_input": subtract}
    read, scale, mean = normalised(X, how)
    f = active(kind, read - subtract * found["b_dec"], found)
    dictionary = load(made.sae_lens(tmp_path / "a", ARCHITECTURES[kind], found, **options))
    assert (dictionary.kind, dictionary.site, dictionary.reads) == (kind, "m2", "output")
    assert not dictionary.transcoder
    check(dictionary, f * scale, (f @ found["W_dec"] + found["b_dec"]) * scale + mean, tmp_path)


def test_of_the_k_largest_the_negative_are_zero(tmp_path: Path) -> None:
    found = arrays("topk")
    f = active("topk", X - found["b_dec"], found, k=30)
    assert ((f > 0).sum(-1) < 30).any()
    for folder in (
        made.sae_lens(tmp_path / "a", "topk", found, k=30),
        made.sparsify(tmp_path / "layers.2.mlp", found, k=30),
    ):
        check(load(folder), f, f @ found["W_dec"] + found["b_dec"], tmp_path)


def test_the_k_largest_are_taken_by_what_they_write(tmp_path: Path) -> None:
    """rescale_acts_by_decoder_norm: before the selection, and taken back after it."""
    found = arrays("topk")
    norms = np.linalg.norm(found["W_dec"], axis=-1)
    before = (X - found["b_dec"]) @ found["W_enc"] + found["b_enc"]
    f = made.relu(made.largest(before * norms, 6))
    assert ((f > 0) != (active("topk", X - found["b_dec"], found) > 0)).any()
    folder = made.sae_lens(tmp_path / "a", "topk", found, k=6, rescale_acts_by_decoder_norm=True)
    check(load(folder), f, (f / norms) @ found["W_dec"] + found["b_dec"], tmp_path)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("how", ["none", "layer_norm"])
@pytest.mark.parametrize("kind", KINDS)
def test_transcoders_of_sae_lens(tmp_path: Path, kind: str, how: str, skip: bool) -> None:
    """Of another width, an input that is normalised and an output that is not; a skip reads what was not."""
    found = arrays(kind, d_out=made.D_OUT, skip=skip)
    name = "_".join([*([kind] if kind != "relu" else []), *(["skip"] if skip else []), "transcoder"])
    options = {"k": 6} if kind == "topk" else {}
    folder = made.sae_lens(
        tmp_path / "a", name, found, d_out=made.D_OUT, apply_b_dec_to_input=None if skip else False,
        normalize_activations=how, metadata=made.THROUGH, **options,
    )  # fmt: skip
    dictionary = load(folder)
    assert (dictionary.site, dictionary.reads, dictionary.transcoder) == ("m2", "normed", True)
    f = active(kind, normalised(X, how)[0], found)
    check(
        dictionary, f, f @ found["W_dec"] + found["b_dec"] + (X @ found["W_skip"].T if skip else 0), tmp_path
    )


OLD = {
    "d_in": made.D_IN, "normalize_activations": False, "hook_point": "blocks.{layer}.hook_resid_pre",
    "hook_point_layer": 3, "hook_point_head_index": None, "expansion_factor": 4, "use_ghost_grads": False,
    "finetuning_scaling_factor": True,
}  # fmt: skip


@pytest.mark.parametrize("activation", ["relu", "topk"])
def test_old_layouts_of_sae_lens(tmp_path: Path, activation: str) -> None:
    """Before version 6: one object, other names, and b_dec is subtracted unless it is said that it is not."""
    found, scaling = arrays(activation), np.random.default_rng(5).uniform(0.5, 2, made.FEATURES)
    config = OLD | {"activation_fn_str": activation}
    config |= {"activation_fn_kwargs": {"k": 6}} if activation == "topk" else {}
    files = {"cfg.json": config, "sae_weights.safetensors": found | {"scaling_factor": scaling}}
    folder = made.write(tmp_path / "a", files)
    dictionary = load(folder, centred=False)
    assert (dictionary.kind, dictionary.site) == (activation, "resid3")
    f = active(activation, X - found["b_dec"], found)
    check(dictionary, f, (f * scaling) @ found["W_dec"] + found["b_dec"], tmp_path)


def test_a_factor_beside_the_weights_is_used(tmp_path: Path) -> None:
    """expected_average_only_in: activations times a factor, which a training that goes on has in a file."""
    found = arrays("jumprelu")
    folder = made.sae_lens(
        tmp_path / "a", "jumprelu", found, normalize_activations="expected_average_only_in"
    )
    with pytest.raises(cd.CircuitDiscoveryError, match="expected_average_only_in, whose factor is not in"):
        load(folder)
    made.write(folder, {"activation_scaler.json": {"scaling_factor": 0.25}})
    f = active("jumprelu", X * 0.25 - found["b_dec"], found)
    check(load(folder), f, (f @ found["W_dec"] + found["b_dec"]) / 0.25, tmp_path)


# ------------------------------------------------------------------- the others


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("transcode", [False, True])
def test_sparsify(tmp_path: Path, transcode: bool, skip: bool) -> None:
    found = arrays("topk", skip=skip)
    for layer in (0, 2):
        made.sparsify(tmp_path / "many" / f"layers.{layer}.mlp", found, transcode=transcode, k=6 - layer)
    off = {"matching_pursuit": False, "mp_untie": True, "gram_lookup": False, "lookup_max_order": 4}
    made.sparsify(tmp_path / "many" / "layers.0.mlp", found, transcode=transcode, **off)
    dictionary = load(tmp_path / "many", layer=0)
    assert (dictionary.site, dictionary.inner) == ("m0", True)
    assert dictionary.reads == ("normed" if transcode else "output")
    f = active("topk", X if transcode else X - found["b_dec"], found)
    check(
        dictionary, f, f @ found["W_dec"] + found["b_dec"] + (X @ found["W_skip"].T if skip else 0), tmp_path
    )
    assert load(tmp_path / "many", layer=2).k == 4 == load(tmp_path / "many" / "layers.2.mlp").k


def test_a_folder_of_sparsify_by_another_name(tmp_path: Path) -> None:
    """Where the name is no module's, the site is not known; what it reads is kept when it is saved."""
    found = arrays("topk")
    dictionary = load(made.sparsify(tmp_path / "mine", found, transcode=True))
    assert (dictionary.site, dictionary.reads, dictionary.inner) == (None, "normed", True)
    f = active("topk", X, found)
    check(dictionary, f, f @ found["W_dec"] + found["b_dec"], tmp_path)
    assert load(tmp_path / "mine", site="m4").site == "m4"
    refused("reads is 'output', but this is a transcoder", tmp_path / "mine", reads="output")
    folder = made.sae_lens(tmp_path / "b", "standard", found, metadata={})
    refused("reads is 'stream', but this is an autoencoder", folder, reads="stream")
    assert load(folder, site="a1.z").site == "a1.z"


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("kind", ["relu", "jumprelu", "negative", "topk"])
def test_circuit_tracer(tmp_path: Path, kind: str, skip: bool) -> None:
    """Its JumpReLU and its topk leave a selected feature below zero as it is."""
    found = arrays("jumprelu" if kind == "negative" else kind, skip=skip)
    options: dict[str, Any] = {"activation": "topk", "k": 30} if kind == "topk" else {}
    before = X @ found["W_enc"] + found["b_enc"]
    f = active(kind, X, found) if kind in ("relu", "jumprelu") else made.largest(before, 30)
    if kind == "negative":
        found["threshold"] = found["threshold"] - 1.5
        f = before * (before > found["threshold"])
    assert (f < 0).any() == (kind in ("negative", "topk"))
    dictionary = load(made.circuit_tracer(tmp_path / "a", found, **options), layer=2)
    assert (dictionary.site, dictionary.reads, dictionary.inner) == ("m2", "normed", False)
    check(
        dictionary, f, f @ found["W_dec"] + found["b_dec"] + (X @ found["W_skip"].T if skip else 0), tmp_path
    )


@pytest.mark.parametrize("skip", [False, True])
def test_gemma_scope_2(tmp_path: Path, skip: bool) -> None:
    found = arrays("jumprelu", skip=skip)
    hooks = {"hf_hook_point_in": "model.layers.5.pre_feedforward_layernorm.output"}
    hooks |= {"hf_hook_point_out": "model.layers.5.post_feedforward_layernorm.output"}
    dictionary = load(made.gemma_scope_2(tmp_path / "a", found, **(hooks if skip else {})))
    assert (dictionary.site, dictionary.reads) == (("m5", "normed") if skip else ("resid6", "output"))
    f = active("jumprelu", X, found)
    check(
        dictionary, f, f @ found["W_dec"] + found["b_dec"] + (X @ found["W_skip"].T if skip else 0), tmp_path
    )


def test_gemma_scope(tmp_path: Path) -> None:
    """Its file does not say where it stands, nor whether it is a transcoder: whose path says it has to be told."""
    found = arrays("jumprelu")
    folder = made.write(tmp_path / "gemma-scope-2b-pt-mlp" / "layer_5", {"params.npz": found})
    f = active("jumprelu", X, found)
    output = f @ found["W_dec"] + found["b_dec"]
    assert load(folder).site is None
    check(load(folder, site="m5"), f, output, tmp_path)
    folder = made.write(tmp_path / "gemma-scope-2b-pt-transcoders" / "layer_5", {"params.npz": found})
    with pytest.raises(
        cd.CircuitDiscoveryError, match="the path names a transcoder, but the file does not say what it reads"
    ):
        load(folder)
    check(load(folder, site="m5", reads="normed without gain"), f, output, tmp_path)


# ------------------------------------------------------------------- all alike


def test_the_same_dictionary_of_any_format_has_one_digest(tmp_path: Path) -> None:
    found = {name: each.astype(np.float32) for name, each in arrays("jumprelu").items()}
    options = {"apply_b_dec_to_input": False, "metadata": {"hook_name": "blocks.5.hook_resid_post"}}
    first = load(made.sae_lens(tmp_path / "a", "jumprelu", found, **options))
    assert first.W_enc.dtype == torch.float32
    second = load(made.gemma_scope_2(tmp_path / "b", found))
    third = load(made.write(tmp_path / "c", {"params.npz": found}), site="resid6")
    assert first.digest == second.digest == third.digest
    assert first.site == second.site == third.site == "resid6"
    wide = first.to(dtype="float64")
    assert (wide.W_dec.dtype, wide.digest) == (torch.float64, first.digest)
    wide.save(tmp_path / "d")
    assert load(tmp_path / "d").digest == first.digest


def test_half_precision_is_read_exactly(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    found = {name: tensor(each).bfloat16() for name, each in arrays("relu").items()}
    folder = made.sae_lens(tmp_path / "a", "standard", arrays("relu"))
    save_file(found, folder / "sae_weights.safetensors")
    dictionary = load(folder)
    assert dictionary.W_dec.dtype == torch.float32
    assert torch.equal(dictionary.W_dec, found["W_dec"].float())


ALL = {
    "relu": lambda: _dictionary("relu", W_skip=torch.ones(made.D_IN, made.D_IN)),
    "topk": lambda: _dictionary("topk", k=6, subtracts_b_dec=True),
    "jumprelu": lambda: _dictionary("jumprelu", normalizes="layer_norm"),
    "gated": lambda: _dictionary("gated", normalizes="constant_norm_rescale"),
}


def _dictionary(arrays_of: str, **options: Any) -> Dictionary:
    found = {name: tensor(each) for name, each in arrays(arrays_of).items()}
    found["W_enc"] = found["W_enc"].T.contiguous()
    if arrays_of == "gated":
        found["b_enc"] = found.pop("b_gate")
    parts: dict[str, Any] = {"kind": arrays_of, "site": "m2", "reads": "output"} | found | options
    return Dictionary(**parts)


@pytest.mark.parametrize("kind", KINDS)
def test_a_digest_changes_with_all_that_changes_what_is_computed(kind: str) -> None:
    dictionary = ALL[kind]()
    other = [
        replace(dictionary, digest="", **{name: each + 0.5}) for name, each in dictionary.tensors.items()
    ]
    other += [
        replace(dictionary, digest="", **{name: value})
        for name, value in (
            ("reads", "stream"), ("normalizes", "layer_norm"), ("normalizes", "none"), ("inner", True),
            ("subtracts_b_dec", not dictionary.subtracts_b_dec), ("k", 7), ("signed", True),
        )
        if getattr(dictionary, name) != value
        and (name != "k" or kind == "topk")
        and (name != "signed" or kind in ("topk", "jumprelu"))
        and (name != "reads" or not dictionary.subtracts_b_dec)
    ]  # fmt: skip
    assert len({dictionary.digest, *(each.digest for each in other)}) == len(other) + 1
    assert set(dictionary.tensors) <= set(TENSORS)
    assert dictionary.digest == ALL[kind]().digest == replace(dictionary, site="m1", digest="").digest


@pytest.mark.parametrize("kind", KINDS)
def test_encoding_is_differentiated(kind: str) -> None:
    """Some features' gradients with respect to what is read, against finite differences."""
    dictionary, which = ALL[kind](), torch.tensor([3, 11, 30])
    x = tensor(activations((2,), seed=3)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: dictionary.encode_some(x, which), (x,))


@pytest.mark.parametrize("shape", [(), (4,), (2, 3, 2)])
def test_the_k_largest_of_few_places_at_a_time(shape: tuple[int, ...]) -> None:
    x, which = tensor(activations(shape)), torch.tensor([5, 1])
    found = ALL["topk"]()
    with cd.memory_budget(8 * 3 * 4 * made.FEATURES):  # three places
        some = found.encode_some(x, which)
    torch.testing.assert_close(some, found.encode(x)[..., which].movedim(-1, 0))


def test_at_its_threshold_a_feature_is_not_active() -> None:
    """H(z - threshold) is 0 at 0, and so is the gate; a negative feature above a negative threshold is 0."""
    one, zero = torch.ones(1, 1), torch.zeros(1)
    parts: dict[str, Any] = {"site": None, "reads": "output", "W_enc": one, "b_enc": zero, "W_dec": one}
    jump = Dictionary("jumprelu", b_dec=zero, threshold=torch.ones(1), **parts)
    below = Dictionary("jumprelu", b_dec=zero, threshold=-torch.ones(1), **parts)
    gated = Dictionary("gated", b_dec=zero, r_mag=zero, b_mag=torch.ones(1), **parts)
    x = torch.tensor([[1.0], [1.5], [0.0], [-0.5]])
    assert jump.encode(x).flatten().tolist() == [0.0, 1.5, 0.0, 0.0]
    assert below.encode(x).flatten().tolist() == [1.0, 1.5, 0.0, 0.0]
    assert replace(below, signed=True).encode(x).flatten().tolist() == [1.0, 1.5, 0.0, -0.5]
    assert gated.encode(x).flatten().tolist() == [2.0, 2.5, 0.0, 0.0]


# ------------------------------------------------------------------- places


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3", "granite"])
def test_places_are_what_transformer_lens_has_there(name: str, tmp_path: Path) -> None:
    """Each hook's activation in a bridge against what our site of that name means, and has in a run."""
    network = random_model(tiny_config(name) if name in CONFIGS else config_of(*CASES[name]))
    network.save_pretrained(folder := tmp_path / name)
    model = cd.load_model(folder, dtype="float64")
    block, reference = (
        model.blocks[1],
        Reference.boot(folder, Path(cd.__file__).parent / "models" / "toy", torch.float64),
    )
    seen: dict[str, Tensor] = {}

    def keep(rest: str) -> tuple[str, Callable[..., None]]:
        return f"blocks.1.{rest}", lambda x, hook: seen.update({rest: x.clone()})

    rests = {
        "hook_resid_pre": "resid1", "hook_in": "resid1", "hook_resid_post": "resid2", "hook_out": "resid2",
        "hook_attn_out": "a1", "hook_mlp_out": "m1", "mlp.hook_out": "m1 inner", "attn.hook_out": "a1 inner",
        "attn.hook_z": "a1.z", "mlp.hook_post": "m1.neurons", "mlp.hook_in": "normed", "ln2.hook_out": "normed",
        "ln2.hook_normalized": "hook_normalized", "hook_resid_mid": "stream", "hook_mlp_in": "stream",
        "ln2.hook_in": "stream",
    }  # fmt: skip
    rows = [[1, 5, 7, 9, 30], [4, 4, 61, 2, 80]]
    reference._forward(torch.tensor(rows), [keep(rest) for rest in rests])
    run, unit = cd.features.run(model, rows), getattr(network.config, "residual_multiplier", 1.0)
    before, after = seen["hook_resid_pre"], seen["hook_resid_post"]
    stream = before + seen["hook_attn_out"]
    normed = block.norm2(stream / unit)
    plain = replace(block, mlp_norm=None, heads_norm=None)
    written = plain.mlp(normed)
    z = seen["attn.hook_z"].flatten(-2) @ block.W_O.flatten(0, 1)
    expected = {
        "resid1": before, "resid2": after, "a1": stream - before, "m1": after - stream, "m1 inner": written,
        "a1 inner": z if block.b_O is None else z + block.b_O,
        "normed": normed, "hook_normalized": block.norm2.jacobian(stream / unit)[0],
        "stream": stream,
    }  # fmt: skip
    for rest, meant in rests.items():
        place = location_of(f"blocks.1.{rest}", "")
        inner = " inner" if place.inner else ""
        assert (place.site + inner if place.reads == "output" else place.reads) == meant
        if meant in expected:
            torch.testing.assert_close(seen[rest], expected[meant], atol=1e-9, rtol=1e-9)
        ours = {"output": place.site + inner.replace(" ", "."), "hook_normalized": "m1.bare"}
        values = run.values(ours.get(place.reads, f"m1.{place.reads}"))
        torch.testing.assert_close(values, seen[rest].flatten(2), atol=1e-5, rtol=1e-5)
    assert block.W_out is not None
    out = seen["mlp.hook_post"] @ block.W_out.mT
    torch.testing.assert_close(
        out if block.b_out is None else out + block.b_out, written, atol=1e-9, rtol=1e-9
    )
    assert (name in ("gemma3", "granite")) == (not torch.allclose(seen["mlp.hook_out"], seen["hook_mlp_out"]))


@pytest.mark.parametrize(
    ("name", "modules"),
    [("bloom", {"m": "mlp", "a": "self_attention"}), ("mpt", {"m": "ffn"}), ("falcon in series", {})],
)
def test_modules_that_add_the_stream_are_not_what_a_node_writes(name: str, modules: dict[str, str]) -> None:
    network = random_model(config_of(*CASES[name]))
    model, rows = cd.load_model((network, None)), [[1, 5, 7, 9, 30], [4, 4, 61, 2, 80]]
    base, seen = network.base_model, dict[str, Tensor]()
    block = (base.h if hasattr(base, "h") else base.blocks)[1]
    names = {"m": ("mlp", "ffn"), "a": ("self_attention", "attn")}
    for letter, some in names.items():
        module = next(getattr(block, each) for each in some if hasattr(block, each))
        module.register_forward_hook(
            lambda _, __, out, key=letter: seen.update({key: out[0] if isinstance(out, tuple) else out})
        )
    with torch.no_grad():
        network(torch.tensor(rows))
    run, draw = cd.features.run(model, rows), torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    sae = Dictionary("relu", None, "output", draw, torch.zeros(8), draw, torch.zeros(32))
    for letter in "am":
        own = replace(sae, site=f"{letter}1", inner=True)
        assert torch.allclose(run.values(f"{letter}1"), seen[letter], atol=1e-5) == (letter not in modules)
        if letter not in modules:
            cd.features.top_activations(model, own[3], rows)
            continue
        after = run.values("resid2" if letter == "m" else "m1.stream")
        torch.testing.assert_close(seen[letter], after, atol=1e-5, rtol=1e-5)
        with pytest.raises(cd.CircuitDiscoveryError, match=f"module of {letter}1 gives holds the stream"):
            cd.features.top_activations(model, own[3], rows)
    if modules:
        with pytest.raises(
            cd.CircuitDiscoveryError, match=r"it is one of resid2: replace\(sae, site='resid2'"
        ):
            cd.split(model, {"m1": replace(sae, site=None, inner=True)})


HUGGING_FACE = [
    ("model.layers.2.output", "resid3", "output", False),
    ("transformer.h.2", "resid3", "output", False),
    ("gpt_neox.layers.2.mlp", "m2", "output", True),
    ("layers.2.self_attn", "a2", "output", True),
    ("model.layers.2.self_attn.o_proj.input", "a2.z", "output", False),
    ("model.language_model.layers.2.post_feedforward_layernorm.output", "m2", "output", False),
    ("model.layers.2.pre_feedforward_layernorm.output", "m2", "normed", False),
]


@pytest.mark.parametrize(("hook", "site", "reads", "inner"), HUGGING_FACE)
def test_places_of_hugging_face(hook: str, site: str, reads: str, inner: bool) -> None:
    place = location_of(hook, "")
    assert (place.site, place.reads, place.inner) == (site, reads, inner)


@pytest.mark.parametrize("site", ["m2", "a2", "a2.z", "m2.neurons", "resid0", "resid12"])
@pytest.mark.parametrize("inner", [False, True])
def test_a_place_is_read_as_it_was_written(site: str, inner: bool) -> None:
    place = location_of(hook_of(site, "output", inner), "")
    assert place.site == site and place.reads == "output"
    assert place.inner == (inner and site in ("m2", "a2"))
    assert int(hook_of(site, "output", inner).split(".")[1]) <= 11  # a model of 12 layers has this hook
    if site == "m2":
        for reads in ("normed", "hook_normalized", "stream"):
            assert location_of(hook_of(site, reads, inner), "").reads == reads


@pytest.mark.parametrize("name", ["gpt2", "gemma3"])
def test_hook_normalized_is_what_the_models_norm_has_there(name: str, tmp_path: Path) -> None:
    """HookedTransformer's LayerNorm has the hook after the gain and bias; its RMSNorm, and a LayerNorm whose
    gain is folded, before."""
    model = cd.load_model((random_model(tiny_config(name)), None))
    rows = [[1, 5, 7, 9, 30], [4, 4, 61, 2, 80]]
    draw = torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(0)).unbind()
    Dictionary("relu", "m1", "hook_normalized", draw[0], torch.zeros(8), draw[1], torch.zeros(32)).save(
        tmp_path
    )
    path = tmp_path / "cfg.json"
    config = json.loads(path.read_text())
    assert config["metadata"]["hook_name"] == "blocks.1.ln2.hook_normalized"
    normed = "normed" if name == "gpt2" else "bare"
    task = random_prompts(101, 2, 5).task
    for more, place in (
        ({}, normed),
        ({"model_from_pretrained_kwargs": {"fold_ln": True}}, "bare"),
        ({"model_class_name": "TransformerBridge"}, "bare"),
        ({"model_class_name": "HookedTransformer"}, normed),
    ):
        path.write_text(json.dumps(config | {"metadata": config["metadata"] | more}))
        sae = load(tmp_path)
        read, written = (
            cd.features.activations(model, rows, site, position="all") for site in (f"m1.{place}", "m1")
        )
        expected = sae.encode(read.values)
        found = cd.features.top_activations(model, sae[3], rows)
        assert found.high == pytest.approx(float(expected[:, 3].max()), rel=1e-5)
        assert cd.features.evaluate_sae(sae, read, target=written, model=model, baselines=False).rows == 8
        other = cd.features.activations(model, rows, {"normed": "m1.bare", "bare": "m1.normed"}[place])
        with pytest.raises(
            cd.CircuitDiscoveryError, match=f"reads activations at m1.{place}, but these are at"
        ):
            cd.features.evaluate_sae(sae, other, target=written, model=model)
        same = replace(sae, reads={"bare": "normed without gain"}.get(place, place), digest="")
        scores = [cd.eap(model, task, graph=cd.split(model, {"m1": each})) for each in (sae, same)]
        np.testing.assert_allclose(scores[0].values, scores[1].values)
        same.save(tmp_path / "again")
        assert load(tmp_path / "again").reads == same.reads
    assert load(tmp_path, reads="normed").reads == "normed"
    # as our own folders were before they said it: what is before the gain
    old = {key: each for key, each in config["metadata"].items() if key != "reads"}
    path.write_text(json.dumps(config | {"metadata": old}))
    assert load(tmp_path).reads == "normed without gain"
    homeless = replace(sae, site=None)
    with pytest.raises(cd.CircuitDiscoveryError, match="does not say where it stands"):
        cd.features.evaluate_sae(homeless, read, target=written, model=model)


def test_a_name_of_hugging_face_is_better(tmp_path: Path) -> None:
    """SAE Lens calls what an MLP of Gemma 3 reads `hook_mlp_in`, which to TransformerLens is the stream."""
    options: dict[str, Any] = {"d_out": made.D_IN, "apply_b_dec_to_input": False}
    metadata = {"hook_name": "blocks.2.hook_mlp_in", "hook_name_out": "blocks.2.hook_mlp_out"}
    folder = made.sae_lens(tmp_path / "a", "transcoder", arrays("relu"), metadata=metadata, **options)
    assert load(folder).reads == "stream"
    metadata |= {"hf_hook_name": "model.layers.2.pre_feedforward_layernorm.output"}
    folder = made.sae_lens(tmp_path / "b", "transcoder", arrays("relu"), metadata=metadata, **options)
    assert load(folder).reads == "normed"


# ------------------------------------------------------------------- what is refused


def refused(match: str, folder: Any, **options: Any) -> None:
    with pytest.raises(cd.CircuitDiscoveryError, match=match) as error:
        load(folder, **options)
    assert "\n" not in str(error.value) and len(str(error.value)) < 700


TRANSCODER = {"metadata": made.THROUGH, "apply_b_dec_to_input": False}
WRONG_CONFIGS: list[tuple[str, dict[str, Any], str]] = [
    ("temporal", {}, "architecture 'temporal' is not computed; computed are standard, topk, jumprelu, gated, "),
    ("standard", {"activation_fn": "tanh-relu"}, "activation function 'tanh-relu' of architecture standard is not"),
    ("jumprelu", {"activation_fn": "topk"}, "activation function 'topk' of architecture jumprelu is not computed"),
    ("topk", {}, "k of topk is missing"),
    ("topk", {"k": 0}, "k is 0; a topk dictionary of 40 features needs a k from 1 to 40"),
    ("topk", {"k": 41}, "k is 41; a topk dictionary"),
    ("topk", {"activation_fn_kwargs": {"k": 3, "postact_fn": "Identity"}}, "'postact_fn' of topk is not computed"),
    ("standard", {"normalize_activations": "covariance_whitening"}, "'covariance_whitening' is not computed"),
    ("standard", {"normalize_activations": True}, "expected_average_only_in, whose factor is not in the folder"),
    ("standard", {"apply_b_dec_to_input": "yes"}, "'apply_b_dec_to_input' must be true or false, not 'yes'"),
    ("standard", {"d_in": 13}, "d_in is 13, but 12 by the tensors"),
    ("standard", {"d_sae": 41}, "d_sae is 41, but 40 by the tensors"),
    ("standard", {"metadata": {"hook_name": "blocks.2.hook_resid_mid"}}, "blocks.2.hook_resid_mid is not supported"),
    ("standard", {"metadata": {"hook_name": "blocks.2.attn.hook_q"}}, "'blocks.2.attn.hook_q' is not known; known"),
    ("standard", {"metadata": {"hook_name": "hook_embed"}}, "the place 'hook_embed' is not known"),
    ("standard", {"metadata": {"hook_name": "blocks.2.attn.hook_z", "hook_head_index": 1}}, "hook_head_index is 1"),
    ("standard", {"normalize_activations": "constant_norm_rescale", "metadata": made.HOOKS |
                  {"model_from_pretrained_kwargs": {"center_writing_weights": True}}},
     "center_writing_weights and constant_norm_rescale together are not computed"),
    ("transcoder", TRANSCODER | {"metadata": made.THROUGH |
                                 {"model_from_pretrained_kwargs": {"center_writing_weights": True}}},
     "with center_writing_weights, whose activations at m2 differ"),
    ("transcoder", {"metadata": {}, "apply_b_dec_to_input": False}, "what the transcoder reads is not in the file; give reads="),
    ("transcoder", TRANSCODER | {"metadata": {"hook_name": "blocks.2.mlp.hook_in"}}, "hook_name_out is missing"),
    ("transcoder", TRANSCODER | {"metadata": made.THROUGH | {"hook_name": "blocks.1.mlp.hook_in"}},
     "this one reads the input of m1 and writes m2"),
    ("transcoder", {"metadata": made.THROUGH}, "b_dec is not part of what it reads"),
    ("transcoder", TRANSCODER | {"metadata": made.THROUGH | {"model_from_pretrained_kwargs": {"fold_ln": True}}},
     "trained on a model with fold_ln"),
    *(("standard", {"metadata": {"hook_name": "blocks.2.attn.hook_z", "model_from_pretrained_kwargs": {name: True}}},
       f"trained on a model with {name}, whose activations at a2.z differ")
      for name in ("fold_value_biases", "refactor_factored_attn_matrices")),
]  # fmt: skip


@pytest.mark.parametrize(("architecture", "options", "match"), WRONG_CONFIGS)
def test_a_configuration_that_is_not_computed(
    tmp_path: Path, architecture: str, options: dict[str, Any], match: str
) -> None:
    kind = architecture if architecture in KINDS else "relu"
    refused(match, made.sae_lens(tmp_path / "a", architecture, arrays(kind), **options))


CENTRED = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}


def test_centred_activations_are_made_of_the_models_own(tmp_path: Path) -> None:
    """As TransformerLens' center_writing_weights makes the stream: less its mean over the width, which is given
    back. Old folders do not say it; gpt2-small-res-jb's has no more than these fields."""
    found = arrays("relu")
    mean = X.mean(-1, keepdims=True)
    f = active("relu", X - mean - found["b_dec"], found)
    output = f @ found["W_dec"] + found["b_dec"] + mean
    told = made.sae_lens(tmp_path / "a", "standard", found, metadata=made.HOOKS | CENTRED)
    check(load(told), f, output, tmp_path)
    old = {
        "d_in": made.D_IN, "d_sae": made.FEATURES, "hook_point": "blocks.3.hook_resid_pre", "hook_point_layer": 3,
        "model_name": "gpt2-small", "dataset_path": "x", "context_size": 128, "dtype": "torch.float32",
    }  # fmt: skip
    folder = made.write(tmp_path / "b", {"cfg.json": old, "sae_weights.safetensors": found})
    refused(
        "does not say whether center_writing_weights was on, .*; give load_sae centred=True or centred=False, or",
        folder,
    )
    check(load(folder, centred=True), f, output, tmp_path)
    line = ["sae", "show", str(folder), "--centred", "--to", str(tmp_path / "said")]
    assert CliRunner().invoke(cli, line, catch_exceptions=False).exit_code == 0
    check(load(tmp_path / "said"), f, output, tmp_path)
    other = made.sparsify(tmp_path / "c", found, transcode=False)
    refused("centred= is of a folder of SAE Lens, which this is not", other, centred=True)
    f = active("relu", X - found["b_dec"], found)
    for plain in (load(folder, centred=False), load(told, centred=False)):
        check(plain, f, f @ found["W_dec"] + found["b_dec"], tmp_path)


@pytest.mark.parametrize("site", ["attn.hook_z", "mlp.hook_post"])
def test_what_no_layer_adds_is_not_centred(site: str, tmp_path: Path) -> None:
    found = arrays("relu")
    f = active("relu", X - found["b_dec"], found)
    metadata = {"hook_name": f"blocks.2.{site}"} | CENTRED
    folder = made.sae_lens(tmp_path / "a", "standard", found, metadata=metadata)
    check(load(folder), f, f @ found["W_dec"] + found["b_dec"], tmp_path)
    old = OLD | {"hook_point": f"blocks.2.{site}", "hook_point_layer": 2}
    folder = made.write(tmp_path / "b", {"cfg.json": old, "sae_weights.safetensors": found})
    check(load(folder), f, f @ found["W_dec"] + found["b_dec"], tmp_path)


def test_centred_activations_of_a_model_without_a_layer_norm(tmp_path: Path) -> None:
    rows = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    sae = Dictionary(
        "relu", "resid1", "output", rows, torch.zeros(8), rows, torch.zeros(32), normalizes="centre"
    )
    prompts = [[1, 5, 7, 9, 30], [4, 4, 61, 2, 80]]
    model = cd.load_model((random_model(tiny_config("gpt2")), None))
    acts = cd.features.activations(model, prompts, "resid1")
    centred = acts.values - acts.values.mean(-1, keepdim=True)
    found = cd.features.top_activations(model, sae[3], prompts)
    assert found.high == pytest.approx(float((centred @ rows[3]).max()), rel=1e-5)
    model = cd.load_model((random_model(tiny_config("gemma3")), None))
    with pytest.raises(cd.CircuitDiscoveryError, match="has no LayerNorm"):
        cd.features.top_activations(model, sae[3], prompts)
    with pytest.raises(cd.CircuitDiscoveryError, match="has no LayerNorm"):
        cd.split(model, {"m1": replace(sae, site="m1")})
    with pytest.raises(cd.CircuitDiscoveryError, match="centred where they are added to the stream"):
        replace(sae, site="a1.z")


def test_processing_that_does_not_matter_is_allowed(tmp_path: Path) -> None:
    metadata = made.HOOKS | {
        "model_from_pretrained_kwargs": {"fold_ln": True, "center_writing_weights": False}
    }
    assert load(made.sae_lens(tmp_path / "a", "standard", arrays("relu"), metadata=metadata)).site == "m2"


def _without(found: Arrays, name: str) -> Arrays:
    return {key: each for key, each in found.items() if key != name}


WRONG_TENSORS: list[tuple[str, Callable[[Arrays], Arrays], str]] = [
    ("relu", lambda t: _without(t, "W_dec"), "the tensor W_dec is missing; there are W_enc, b_dec, b_enc"),
    ("jumprelu", lambda t: _without(t, "threshold"), "the tensor threshold is missing"),
    ("gated", lambda t: _without(t, "b_mag"), "the tensor b_mag is missing"),
    ("relu", lambda t: t | {"W_skip": t["W_dec"]}, "the tensor W_skip is not used"),
    ("relu", lambda t: t | {"W_enc": t["W_enc"].T}, "d_in is 12, but 40 by the tensors"),
    ("relu", lambda t: t | {"W_dec": t["W_dec"].T}, "W_enc has shape|W_dec has shape"),
    ("relu", lambda t: t | {"W_dec": t["W_dec"][0]}, "W_dec is a matrix, not of shape"),
    ("relu", lambda t: t | {"W_enc": t["W_enc"][0]}, "W_enc is a matrix, not of shape"),
    ("relu", lambda t: t | {"b_enc": t["b_enc"][1:]}, r"b_enc has shape \[39\]; by its other tensors \[40\]"),
    ("jumprelu", lambda t: t | {"threshold": t["threshold"][:1]}, r"threshold has shape \[1\]"),
    (
        "relu",
        lambda t: t | {"W_dec": t["W_dec"] * np.where(t["W_dec"] > 4, np.nan, 1)},
        "W_dec has numbers that are",
    ),
    ("relu", lambda t: t | {"b_dec": np.full(12, np.inf)}, "b_dec has numbers that are not finite"),
    ("relu", lambda t: t | {"b_enc": np.zeros(40, np.int64)}, "b_enc is int64, not floating point"),
    ("relu", lambda t: t | {"scaling_factor": np.full(40, 2.0)}, "finetuning_scaling_factor is off"),
    ("relu", lambda t: t | {"scaling_factor": np.full(4, 2.0)}, r"scaling_factor has shape \[4\]"),
]


@pytest.mark.parametrize(("kind", "change", "match"), WRONG_TENSORS)
def test_tensors_that_are_wrong(
    tmp_path: Path, kind: str, change: Callable[[Arrays], Arrays], match: str
) -> None:
    folder = made.sae_lens(tmp_path / "a", ARCHITECTURES[kind], change(arrays(kind)))
    refused(f"sae_weights.safetensors: .*({match})|({match})", folder)


def test_what_the_others_do_that_is_not_computed(tmp_path: Path) -> None:
    top, jump = arrays("topk"), arrays("jumprelu")
    options: dict[str, Any]
    for number, (options, match) in enumerate([
        ({"activation": "groupmax"}, "activation 'groupmax' is not computed; topk is"),
        ({"signed": True}, "signed features, the largest by magnitude, are not computed"),
        *(({name: True}, f"'{name}' is on: what it changes is not computed")
          for name in ("matching_pursuit", "slice_encoder", "ito", "gram_lookup", "embed_skip", "monet")),
        ({"num_latents": 41}, "num_latents is 41, but 40 by the tensors"),
        ({"k": None}, "k is missing"),
        ({"skip_connection": True}, "the tensor W_skip is missing"),
    ]):  # fmt: skip
        refused(match, made.sparsify(tmp_path / f"s{number}" / "layers.0.mlp", top, **options))
    refused("'layers.0.norm.input' is not known|'layers.0.norm.output' is not known",
            made.sparsify(tmp_path / "layers.0.norm", top))  # fmt: skip
    refused("reads resid0 and writes resid1", made.sparsify(tmp_path / "layers.0", top, transcode=True))
    for number, (options, match) in enumerate([
        ({"model_kind": "cross_layer_transcoder"}, "model_kind 'cross_layer_transcoder' is not computed"),
        ({"feature_input_hook": "hook_resid_pre"}, "this one reads resid2 and writes m2"),
        ({"feature_output_hook": "hook_resid_post"}, "reads the input of m2 and writes resid3"),
        ({"feature_input_hook": "''"}, "field 'feature_input_hook' is missing"),
        ({"activation": "topk"}, "k of topk is missing"),
        ({"activation": "gelu"}, "activation 'gelu' is not computed"),
        ({"activation": "topk", "k": 3}, "threshold is not used where the activation is topk"),
        ({"activation": "relu"}, "threshold is not used where the activation is relu"),
        ({"scan": "!!python/object/apply:os.system [exit]"}, "config.yaml: not YAML"),
    ]):  # fmt: skip
        refused(match, made.circuit_tracer(tmp_path / f"c{number}", jump, **options), layer=2)
    folder = made.circuit_tracer(tmp_path / "j", arrays("relu"), activation="jump_relu")
    refused("threshold is missing, but the activation is jump_relu", folder, layer=2)
    for number, (options, match) in enumerate([
        ({"architecture": "topk"}, "architecture 'topk' is not computed; jump_relu is"),
        ({"hf_hook_point_in": None}, "field 'hf_hook_point_in' is missing"),
        ({"hf_hook_point_in": ["a", "b"]}, r"'hf_hook_point_in' must be text, not \['a', 'b'\]"),
        ({"hf_hook_point_in": "model.layers.5.pre_feedforward_layernorm.output"}, "an autoencoder of .* is not supported"),
        ({"affine_connection": True}, "affine_skip_connection is missing"),
        ({"width": 41}, "width is 41, but 40 by the tensors"),
    ]):  # fmt: skip
        refused(match, made.gemma_scope_2(tmp_path / f"g{number}", jump, **options))


def test_layers(tmp_path: Path) -> None:
    found = arrays("topk")
    many = made.sparsify(tmp_path / "many" / "layers.0.mlp", found).parent
    assert load(many).site == "m0"
    made.sparsify(many / "layers.10.mlp", found)
    refused(r"give layer=, or the folder of one of its dictionaries: layers.0.mlp, layers.10.mlp", many)
    refused("no dictionary of layer 1; give the folder of one: layers.0.mlp, layers.10.mlp", many, layer=1)
    made.sparsify(many / "layers.0", found)
    refused("several dictionaries of layer 0", many, layer=0)
    traced = made.circuit_tracer(tmp_path / "traced", arrays("relu"))
    refused("give layer=; there are 0, 1, 2", traced)
    refused("there is no layer 3; there are 0, 1, 2", traced, layer=3)
    assert load(traced, layer=1).site == "m1"
    assert load(made.circuit_tracer(tmp_path / "one", arrays("relu"), layers=1)).site == "m0"
    alone = made.sae_lens(tmp_path / "alone", "standard", arrays("relu"))
    refused("layer 3 is asked for, but the dictionary is of m2", alone, layer=3)
    assert load(alone, layer=2).site == "m2"
    stream = made.sparsify(tmp_path / "streams" / "layers.5", found)
    made.sparsify(tmp_path / "streams" / "layers.4", found)
    assert load(stream.parent, layer=5).site == "resid6" == load(stream, layer=5).site
    refused("layer 4 is asked for, but the dictionary is of resid6", stream, layer=4)
    refused("site is 'm2' by the folder, not 'm3'", alone, site="m3")
    refused("reads is 'output' by the folder, not 'stream'", alone, reads="stream")


def test_folders_without_a_dictionary(tmp_path: Path) -> None:
    refused(
        "there is no dictionary in this folder; looked for sae_weights.safetensors, sae.safetensors, params.safetensors, params.npz, "
        "config.yaml, and folders such as layers.0.mlp",
        tmp_path,
    )
    (tmp_path / "ae.pt").write_bytes(b"\x80\x04.")
    refused("; ae.pt is a pickle, which can run code: it is not read", tmp_path)
    refused("nowhere is not a folder", tmp_path / "nowhere")
    refused("is a file; give the folder that it is in", tmp_path / "ae.pt")
    refused("load_sae: folder must be a path, not 5", 5)
    refused("load_sae: folder", "a" * 5000)
    refused("'m1.h2' is not a site", tmp_path, site="m1.h2")
    refused("no input 'norm'", tmp_path, reads="norm")
    half = made.sae_lens(tmp_path / "half", "standard", arrays("relu"))
    (half / "cfg.json").unlink()
    refused("sae_weights.safetensors of SAE Lens is there, but cfg.json beside it is missing", half)
    made.write(half, {"cfg.json": "{"})
    refused("cfg.json, line 1: not JSON", half)
    made.write(half, {"cfg.json": "[]"})
    refused("cfg.json: must be an object, not ", half)
    made.write(half, {"cfg.json": {"architecture": "standard"}})
    (half / "sae_weights.safetensors").write_bytes(b"\0" * 64)
    refused("sae_weights.safetensors: the tensors cannot be read", half)
    lonely = made.write(
        tmp_path / "lonely", {"config.yaml": "model_kind: transcoder_set\ntranscoders: [hf://a/b]"}
    )
    refused("no layer_N.safetensors beside it; config.yaml lists files elsewhere", lonely)


def test_a_pickle_in_an_array_is_not_read(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (pytest.fail, ("a pickle was run",))

    found: dict[str, Any] = arrays("jumprelu") | {"b_dec": np.array([Bomb()], dtype=object)}
    refused(
        "params.npz: the arrays cannot be read: .*allow_pickle=False",
        made.write(tmp_path, {"params.npz": found}),
    )


def test_dictionaries_that_cannot_be_made() -> None:
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({"kind": "batch_topk"}, "no kind 'batch_topk'; did you mean 'topk'"),
        ({"reads": "input"}, "no reads 'input'"),
        ({"signed": True}, "a feature of a relu dictionary is never negative"),
        ({"reads": "stream", "site": "a1"}, "a transcoder is of an MLP"),
        ({"site": "b1"}, "'b1' is not a site"),
        ({"W_enc": torch.ones(())}, r"W_enc is a matrix, not of shape \[\]"),
        ({"threshold": torch.zeros(made.FEATURES)}, "a relu dictionary does not use threshold"),
        ({"kind": "jumprelu"}, "a jumprelu dictionary lacks threshold"),
        (
            {"W_dec": torch.ones(made.FEATURES, 3), "b_dec": torch.ones(3)},
            "writes what it reads, not 3 numbers of 12",
        ),
    )
    for options, match in wrong:
        with pytest.raises(cd.CircuitDiscoveryError, match=match):
            _dictionary(**({"arrays_of": "relu"} | options))
    with pytest.raises(cd.CircuitDiscoveryError, match=r"activations of width 12, not of shape \[2, 5\]"):
        ALL["relu"]().encode(torch.ones(2, 5))


# ------------------------------------------------------------------- saving


def test_tensors_that_share_memory_are_saved(tmp_path: Path) -> None:
    one = ALL["relu"]()
    same = torch.ones_like(one.b_enc)
    both = replace(one, W_enc=one.W_dec, b_enc=same, b_dec=same[: len(one.b_dec)])
    both.save(tmp_path)
    assert all((load(tmp_path).tensors[name] == each).all() for name, each in both.tensors.items())


def test_an_interrupted_save_leaves_nothing_that_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from circuitdiscovery.features import sae_lens

    ALL["relu"]().save(tmp_path)
    old = (tmp_path / "sae_weights.safetensors").read_bytes()

    def interrupted(path: Path, data: Any) -> None:
        if path.name == "cfg.json":
            raise KeyboardInterrupt
        write(path, data)

    write = sae_lens.write_atomically
    monkeypatch.setattr(sae_lens, "write_atomically", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ALL["topk"]().save(tmp_path)
    assert (tmp_path / "sae_weights.safetensors").read_bytes() != old
    refused("cfg.json beside it is missing", tmp_path)
    monkeypatch.undo()
    ALL["topk"]().save(tmp_path)
    assert load(tmp_path).kind == "topk"
    with pytest.raises(cd.CircuitDiscoveryError, match="cannot write"):
        ALL["relu"]().save(tmp_path / "cfg.json" / "in_a_file")
