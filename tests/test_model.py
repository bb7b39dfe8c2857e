"""What load_model takes and gives, and what it refuses by name."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Tiny, random_model, random_prompts, save_gguf, tiny_config
from torch import Tensor

import circuitdiscovery as cd
from circuitdiscovery.reporting.options import check_model

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = SIZES | {"num_key_value_heads": 2}


def full_logits(model: Any, prompts: Any) -> Tensor:
    return cd.run_circuit(model, prompts.task, cd.Circuit.full(model.graph))


def hf_logits(hf: Any, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return hf(tokens).logits[:, -1]


def agrees(source: Any, hf: Any, length: int = 6, **options: Any) -> Any:
    """Load a source and compare its logits with a Hugging Face model's."""
    prompts = random_prompts(hf.config.vocab_size, 4, length, seed=30)
    model = cd.load_model(source, **options)
    torch.testing.assert_close(
        full_logits(model, prompts).float(), hf_logits(hf, prompts.clean), atol=1e-4, rtol=0
    )
    return model


# ------------------------------------------------------------------ what it takes


def test_a_folder(tiny: Tiny) -> None:
    model = agrees(tiny.folder, tiny.hf)
    assert model.name == tiny.folder.name and model.tokenizer is None
    assert agrees(str(tiny.folder), tiny.hf, name="mine").name == "mine"


def test_a_hugging_face_model(tiny: Tiny) -> None:
    model = agrees(copy.deepcopy(tiny.hf), tiny.hf)
    assert model.digest == tiny.model.digest


def test_a_transformer_bridge(tiny: Tiny) -> None:
    model = agrees(tiny.reference.bridge, tiny.hf)
    assert model.digest == tiny.model.digest


def test_a_model_with_its_tokenizer(gpt2: Tiny) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(gpt2.words)
    assert cd.load_model((gpt2.hf, tokenizer)).tokenizer is tokenizer
    for given in (gpt2.words, str(gpt2.words)):
        model = cd.load_model((gpt2.hf, given))
        assert model.tokenizer("w7 w8").input_ids[-2:] == [7, 8]
    assert cd.load_model((gpt2.hf, "toy")).tokenizer(" John").input_ids


@pytest.mark.parametrize("given", [3, ["w1"], "no/such/folder", "", Path("nowhere"), "empty"])
def test_a_tokenizer_that_is_none_is_refused(gpt2: Tiny, given: Any, tmp_path: Path) -> None:
    told = "tokenizer|there is no folder|an empty text"
    refused((gpt2.hf, tmp_path if given == "empty" else given), told)


def test_a_folder_with_a_tokenizer_whose_class_is_another(llama: Tiny, tmp_path: Path) -> None:
    """It can load as the architecture's class and encode text to nothing: text must survive."""
    for file in [*llama.folder.iterdir(), *llama.words.iterdir()]:
        shutil.copy(file, tmp_path)
    model = cd.load_model(tmp_path)
    assert model.tokenizer("w7 w8").input_ids[-2:] == [7, 8]


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_a_gguf_file(
    name: str, tinies: Callable[[str], Tiny], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Written in llama.cpp's order it is the folder's model again, to
    the last byte; its name is the file's stem.
    """
    tiny = tinies(name)
    path = save_gguf(tmp_path / "tiny.v1.gguf", tiny.hf)
    capfd.readouterr()
    model = agrees(path, tiny.hf)
    assert capfd.readouterr() == ("", "")  # no bars
    assert (
        model.name == "tiny.v1"
        and model.digest == tiny.model.digest == cd.load_model(str(path)).digest
        and model.tokenizer is None
    )
    assert cd.load_model(path, dtype="bfloat16").dtype == torch.bfloat16


def test_a_gguf_file_with_more_or_less_than_transformers_reads_is_refused(
    llama: Tiny, tmp_path: Path
) -> None:
    """transformers leaves such parts out without a word, and our forward would
    agree with a model that is not the file's.
    """
    bias = {"blk.1.attn_q.bias": torch.ones(llama.hf.config.hidden_size)}
    refused(save_gguf(tmp_path / "biased.gguf", llama.hf, tensors=bias), "biased.*blk.1.attn_q.bias")
    factors = {"rope_freqs.weight": torch.ones(4)}
    refused(save_gguf(tmp_path / "factors.gguf", llama.hf, tensors=factors), "factors.*rope_freqs.weight")
    refused(save_gguf(tmp_path / "scaled.gguf", llama.hf, rope="yarn"), "scaled.*rotary scaling 'yarn'")
    tied = random_model(tiny_config("llama", tie_word_embeddings=True))
    agrees(save_gguf(tmp_path / "tied.gguf", tied), tied)
    shallow = random_model(tiny_config("llama", num_hidden_layers=2))
    shallow.config.num_hidden_layers = 3
    refused(save_gguf(tmp_path / "shallow.gguf", shallow), "shallow.*weights are missing")


def test_broken_gguf_files(llama: Tiny, tmp_path: Path) -> None:
    refused(tmp_path / "absent.gguf", "absent.gguf: there is no such file")
    (tmp_path / "text.gguf").write_text("not a model at all, but long enough to look")
    refused(tmp_path / "text.gguf", "text.*cannot be read as GGUF")
    whole = save_gguf(tmp_path / "whole.gguf", llama.hf)
    (tmp_path / "cut.gguf").write_bytes(whole.read_bytes()[:5000])
    refused(tmp_path / "cut.gguf", "cut.*cannot be read as GGUF")


def test_a_gguf_file_without_the_package_says_what_to_install(
    llama: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_gguf(tmp_path / "tiny.gguf", llama.hf)
    monkeypatch.setitem(sys.modules, "gguf", None)
    told = r"needs the package gguf, which is not installed: pip install 'circuitdiscovery\[gguf\]'"
    refused(path, told)
    with pytest.raises(cd.CircuitDiscoveryError, match=told):
        check_model(str(path))


def test_loading_does_not_change_the_users_model(gpt2: Tiny) -> None:
    hf = copy.deepcopy(gpt2.hf).train()
    before = {key: value.clone() for key, value in hf.state_dict().items()}
    model = cd.load_model(hf)
    cd.eap(model, gpt2.prompts.task)
    assert hf.training and all(p.requires_grad and p.grad is None for p in hf.parameters())
    assert all(torch.equal(before[key], value) for key, value in hf.state_dict().items())


def test_the_digest_tells_weights_apart(gpt2: Tiny, tmp_path: Path) -> None:
    other = copy.deepcopy(gpt2.hf)
    with torch.no_grad():
        other.transformer.h[0].ln_1.bias[3] += 1e-3
    assert cd.load_model(other).digest != gpt2.model.digest
    shutil.copytree(gpt2.folder, tmp_path / "elsewhere")
    assert cd.load_model(tmp_path / "elsewhere").digest == gpt2.model.digest


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-5), ("bfloat16", 0.3), ("float16", 0.05)])
def test_dtypes(gpt2: Tiny, dtype: str, tolerance: float) -> None:
    model = cd.load_model(gpt2.folder, dtype=dtype)
    got = full_logits(model, gpt2.prompts)
    assert got.dtype == model.dtype == getattr(torch, dtype)
    assert (got.double() - hf_logits(gpt2.hf, gpt2.prompts.clean)).abs().max() < tolerance


def test_graph_of_each_architecture(tiny: Tiny) -> None:
    graph, grouped = tiny.model.graph, tiny.name in ("llama", "llama_biased", "mistral", "gemma3")
    assert (graph.n_layers, graph.n_heads, graph.n_kv_heads) == (3, 4, 2 if grouped else 4)
    assert graph.parallel is (tiny.name == "neox_parallel")


# ------------------------------------------------------------------ features within the supported families


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
        ("gpt2", {"scale_attn_weights": False}),
        ("gpt2", {"activation_function": "gelu"}),
        ("gpt2", {"activation_function": "relu"}),
        ("gpt2", {"n_inner": 40}),
        ("gpt2", {"tie_word_embeddings": False}),
        ("gpt2", {"layer_norm_epsilon": 0.1}),
        ("llama", {"num_key_value_heads": 4}),
        ("llama", {"num_key_value_heads": 1}),
        ("llama", {"head_dim": 16}),
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"rms_norm_eps": 0.1}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}}),
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}}),
        (
            "llama",
            {
                "rope_parameters": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "rope_theta": 1e4,
                    "original_max_position_embeddings": 16,
                }
            },
        ),
        ("llama", {"hidden_act": "gelu"}),
        ("mistral", {"sliding_window": 4096}),
        ("mistral", {"sliding_window": None}),
        ("qwen2", {"use_sliding_window": False, "sliding_window": 4}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 3}),
        ("neox_parallel", {"rotary_pct": 1.0}),
        (
            "neox_parallel",
            {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5}},
        ),
        ("neox_parallel", {"attention_bias": False}),
        ("neox_serial", {"hidden_act": "gelu_new"}),
    ],
    ids=str,
)
def test_a_switch_is_computed_or_refused(name: str, changes: dict[str, Any]) -> None:
    """Whatever a config switches, the logits are Hugging Face's; that it also
    matters is checked where it is cheap to.
    """
    agrees(hf := random_model(tiny_config(name, **changes)), hf, length=12)


@pytest.mark.parametrize("length", [12, 40])
def test_rotary_scalings_beyond_the_first_positions(tiny: Tiny, length: int) -> None:
    agrees(tiny.folder, tiny.hf, length=length)


def test_the_switches_matter(llama: Tiny, gpt2: Tiny) -> None:
    """Two of the tests above would pass for a forward that ignores its config, if these did not differ."""
    for tiny, name, changes in (
        (gpt2, "gpt2", {"scale_attn_by_inverse_layer_idx": True}),
        (llama, "llama", {"rms_norm_eps": 0.1}),
    ):
        other = random_model(tiny_config(name, **changes))
        assert (
            hf_logits(other, tiny.prompts.clean) - hf_logits(tiny.hf, tiny.prompts.clean)
        ).abs().max() > 0.05


# ------------------------------------------------------------------ what it refuses


def refused(source: Any, match: str, **options: Any) -> None:
    with pytest.raises(cd.CircuitDiscoveryError, match=match):
        cd.load_model(source, **options)


UNSUPPORTED = [
    ("Glm4Config", GROUPED | {"head_dim": 8}, "(?i)glm4.*post-norm"),
    ("GraniteMoeConfig", GROUPED | {"num_local_experts": 2}, "(?i)granitemoe.*experts"),
    ("Starcoder2Config", GROUPED, "(?i)'starcoder2'.*gpt2"),
    ("T5Config", {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}, "(?i)t5.*encoder"),
    ("BertConfig", SIZES, "(?i)bert.*encoder"),
    ("MambaConfig", {"hidden_size": 32, "num_hidden_layers": 2}, "(?i)mamba.*state space"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("config", "sizes", "message"), UNSUPPORTED, ids=[config for config, _, _ in UNSUPPORTED]
)
def test_other_architectures_are_refused_by_name(
    tmp_path: Path, config: str, sizes: dict[str, Any], message: str
) -> None:
    import transformers

    getattr(transformers, config)(vocab_size=101, **sizes).save_pretrained(tmp_path)
    refused(tmp_path, message)


def test_cross_attention_is_refused() -> None:
    refused(random_model(tiny_config("gpt2", add_cross_attention=True)), "cross-attention")


def test_a_forward_that_is_not_the_familys_is_refused(gpt2: Tiny) -> None:
    """Something that no config says: the proof at load time finds it."""
    hf = copy.deepcopy(gpt2.hf)
    block = hf.transformer.h[1]
    block.mlp.register_forward_hook(lambda module, args, out: 1.5 * out)
    refused(hf, "differs")


def test_a_bridge_with_folded_norms_is_refused(gpt2: Tiny, words: Path) -> None:
    from reference import Reference

    bridge = Reference.boot(gpt2.folder, words).bridge
    bridge.enable_compatibility_mode(disable_warnings=True)
    refused(bridge, "compatibility mode")


def test_unknown_names(tmp_path: Path) -> None:
    refused("gtp2-no-such-model", "gtp2-no-such-model")
    refused("./no/such/folder", "no/such/folder")
    refused(tmp_path, "config.json")
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", "file")


def test_unknown_options(gpt2: Tiny) -> None:
    refused(gpt2.folder, "no dtype 'float23'; did you mean 'float32'", dtype="float23")
    refused(gpt2.folder, "no device 'cupu'; did you mean 'cpu'", device="cupu")


@pytest.mark.parametrize(
    "source", [None, 3, object(), torch.nn.Linear(2, 2)], ids=["None", "int", "object", "Linear"]
)
def test_things_that_are_no_model(source: Any) -> None:
    refused(source, "model")


def test_a_folder_without_weights(gpt2: Tiny, tmp_path: Path) -> None:
    shutil.copy(gpt2.folder / "config.json", tmp_path)
    refused(tmp_path, "weights")


def test_broken_folders(gpt2: Tiny, tmp_path: Path) -> None:
    def folder(name: str) -> Path:
        return Path(shutil.copytree(gpt2.folder, tmp_path / name))

    truncated = folder("truncated") / "model.safetensors"
    truncated.write_bytes(truncated.read_bytes()[:1000])
    refused(truncated.parent, "truncated")
    config = folder("nonsense") / "config.json"
    config.write_text("{")
    refused(config.parent, "nonsense.*config")
    wider = folder("wider") / "config.json"
    wider.write_text(json.dumps(json.loads(wider.read_text()) | {"n_embd": 64}))
    refused(wider.parent, "wider")
    deeper = folder("deeper") / "config.json"
    deeper.write_text(json.dumps(json.loads(deeper.read_text()) | {"n_layer": 4}))
    refused(deeper.parent, r"deeper.*h\.3")
    unnamed = folder("unnamed") / "config.json"
    unnamed.write_text(json.dumps({"vocab_size": 3}))
    refused(unnamed.parent, "unnamed")
