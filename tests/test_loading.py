"""Model folders: no code of theirs runs, what does not fit together is refused before it
is built, and names get a helpful answer.
"""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import Tiny, random_model, random_prompts, save_tiny, tiny_config

import circuitdiscovery as cd
from circuitdiscovery.cli.defaults import default_method
from circuitdiscovery.files.disk import data_folder
from circuitdiscovery.model.tokenizer import read_tokenizer


def refused(source: Any, match: str, **options: Any) -> str:
    with pytest.raises(cd.CircuitDiscoveryError, match=match) as caught:
        cd.load_model(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit(folder: Path, file: str = "config.json", **changes: Any) -> Path:
    """The folder with other fields in one of its JSON files."""
    path = folder / file
    told = json.loads(path.read_text("utf-8")) if path.exists() else {}
    path.write_text(json.dumps(told | changes), "utf-8")
    return folder


@pytest.fixture
def folder(gpt2: Tiny, words: Path, tmp_path: Path) -> Path:
    """A GPT-2 with a tokenizer, to be damaged."""
    made = Path(shutil.copytree(gpt2.folder, tmp_path / "model"))
    for file in words.iterdir():
        shutil.copy(file, made)
    return made


# ------------------------------------------------------------------ code

SCRIPT = """
import sys, circuitdiscovery as cd
for folder in sys.argv[2:]:
    try:
        model, planned = cd.load_model(folder), cd.plan(folder, sys.argv[1])
        print(model.digest, planned.edges == len(model.graph), model.tokenizer("w5 w7").input_ids)
    except cd.CircuitDiscoveryError as error:
        print(str(error).count(chr(10)), error)
"""


CODE = (
    "open('this-model-ran-code', 'w').write('x')\nfrom transformers import GPT2Config as C, "
    "GPT2LMHeadModel as M, GPT2Tokenizer as T\n"
)
MODELS: dict[str, Any] = {
    "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M", "AutoTokenizer": "code.T"}
}
TOKENIZERS: dict[str, Any] = {"auto_map": {"AutoTokenizer": ["code.T", None]}}


def test_code_in_a_folder_never_runs(gpt2: Tiny, folder: Path, tmp_path: Path) -> None:
    """Nor is anybody asked whether it may, in a process whose standard input says yes to everything. What
    transformers has a class for, as the hub's Phi-3, Falcon and MPT, is loaded as that.
    """
    (folder / "code.py").write_text(CODE)
    known, unknown = (Path(shutil.copytree(folder, tmp_path / name)) for name in ("known", "unknown"))
    for each in (known, unknown):
        edit(edit(each, **MODELS), "tokenizer_config.json", **TOKENIZERS)
    edit(unknown, model_type="mine")
    folders, own = [known, unknown], "config.json asks for Python code of its own (auto_map: "
    expected = [f"{gpt2.model.digest} True [5, 7]", f"0 unknown: {own}code.C"]
    given = Path(__file__).resolve().parents[2] / "shared" / "faults" / "remote-code"
    if given.is_dir():
        folders.append(Path(shutil.copytree(given, tmp_path / "remote-code")))
        expected.append(f"0 remote-code: {own}evil.EvilConfig")
    pairs = [{"clean": "w1 w2 w3", "corrupted": "w1 w4 w3", "correct": " w5", "incorrect": " w6"}] * 4
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "pairs.jsonl"), *map(str, folders)]
    result = subprocess.run(
        command, input="y\n" * 20, capture_output=True, text=True, cwd=tmp_path, check=False
    )
    lines = result.stdout.splitlines()
    assert len(lines) == len(expected) and all(map(str.startswith, lines, expected)), lines
    assert result.stderr == "" and not list(tmp_path.rglob("this-model-ran-code"))


@pytest.mark.parametrize("lacking", ["family", "file"])
def test_a_tokenizer_that_transformers_has_no_class_for(lacking: str, gpt2: Tiny, folder: Path) -> None:
    """As its family is not known, or as nothing is there that another class can read."""
    edit(folder, "tokenizer_config.json", **TOKENIZERS)
    cd.load_model((gpt2.hf, folder))
    if lacking == "family":
        edit(folder, model_type="mine")
    else:
        (folder / "tokenizer.json").unlink()
    refused((gpt2.hf, folder), r"tokenizer_config.json asks for Python code of its own \(auto_map: .*code.T")


TOKEN = {"content": "<|endoftext|>", "lstrip": False, "zstrip": True}
TOKENS: dict[str, tuple[str, Any]] = {
    "decoder": ("tokenizer_config.json", {"added_tokens_decoder": {"0": TOKEN}}),
    "special": ("tokenizer_config.json", {"bos_token": {"__type": "AddedToken", **TOKEN}}),
    "map": ("special_tokens_map.json", {"extra_special_tokens": [TOKEN]}),
    "fast": ("tokenizer.json", {"added_tokens": [{"id": 0, **TOKEN}]}),
}


@pytest.mark.parametrize("name", list(TOKENS))
def test_an_unknown_field_of_a_token_is_refused_by_name(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Rust would print that it ignores it to standard output, where results go."""
    toy = data_folder("models") / "toy"
    for each in toy.glob("*token*"):
        shutil.copy(each, tmp_path)
    assert read_tokenizer(tmp_path, "mine") is not None
    file, changes = TOKENS[name]
    known = json.loads((tmp_path / file).read_text("utf-8")) if (tmp_path / file).exists() else {}
    (tmp_path / file).write_text(json.dumps(known | changes), "utf-8")
    with pytest.raises(
        cd.CircuitDiscoveryError,
        match=rf"^mine: {file}: of the token '<\|endoftext\|>': no field 'zstrip'; did you mean",
    ):
        read_tokenizer(tmp_path, "mine")
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    "key", ["_attn_implementation", "attn_implementation", "_attn_implementation_internal"]
)
def test_a_kernel_in_a_config_is_not_fetched(
    folder: Path, gpt2: Tiny, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """The implementation is ours to choose, and the function is the same."""
    import transformers.integrations.hub_kernels as hub

    for name in ("get_kernel", "load_and_register_attn_kernel"):
        if hasattr(hub, name):
            monkeypatch.setattr(hub, name, lambda *_, **__: pytest.fail("a kernel is fetched"))
    edit(
        folder,
        **{key: "somebody/kernel"},
        fusion_config={"norms": True},
        transformers_weights="other.safetensors",
    )
    assert cd.load_model(folder).digest == gpt2.model.digest


def test_nothing_in_the_folder_is_looked_for(folder: Path, gpt2: Tiny) -> None:
    """Not an adapter of another model, not code to generate with."""
    edit(folder, "adapter_config.json", base_model_name_or_path="somebody/else", peft_type="LORA")
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text("raise SystemExit")
    (folder / "generation_config.json").write_text("not JSON")
    assert cd.load_model(folder).digest == gpt2.model.digest


def test_pickled_weights_are_refused(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    refused(folder, "no model.safetensors; pytorch_model.bin is a pickle")


# ------------------------------------------------------------------ config against weights


@pytest.mark.parametrize("name", ["gpt2", "llama", "neox_serial"])
def test_fewer_layers_than_weights_are_refused(
    name: str, tinies: Callable[[str], Tiny], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tinies(name).folder, tmp_path / "short"))
    fewer: dict[str, Any] = {"n_layer" if name == "gpt2" else "num_hidden_layers": 2}
    told = refused(
        edit(folder, **fewer), "short: .* weights of the file are not used by config.json, the first is .*2"
    )
    assert "layers.2." in told or "h.2." in told


def test_the_given_folder_with_fewer_layers(shared: Path) -> None:
    refused(
        shared / "faults" / "truncated-by-config",
        r"12 weights .* not used .* transformer.h.1.attn.c_attn.bias",
    )


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"n_layer": 10**9}, "n_layer 1000000000, but the file has 40 weights"),
        ({"n_layer": -1}, "n_layer -1"),
        ({"num_hidden_layers": 10**400}, "num_hidden_layers 1000"),
        (
            {"vocab_size": 10**11},
            r"wte.weight has shape \[101, 32\], but by config.json \[100000000000, 32\]",
        ),
        ({"n_inner": 10**12}, "mlp.c_fc"),
        ({"n_positions": 10**10}, "wpe.weight"),
        ({"n_embd": 2**24}, r"h.0.attn.c_attn.bias has shape \[96\]"),
        ({"n_embd": 2**40}, "cannot be used"),
        ({"n_embd": 2**70}, "cannot be used"),
        ({"n_head": 5}, "cannot be used"),
        ({"n_head": "four"}, "n_head.*four"),
        ({"layer_norm_epsilon": None}, "layer_norm_epsilon"),
        ({"activation_function": "no_such"}, "no_such"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantized"),
        ({"model_type": None}, "does not say which architecture"),
        ({"model_type": "transformer_lens_native"}, "config.json cannot be used"),
        ({"model_type": ["gpt2"]}, r"architecture \['gpt2'\] is not supported"),
    ],
    ids=str,
)
def test_sizes_are_refused_before_they_are_built(folder: Path, changes: dict[str, Any], match: str) -> None:
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(edit(folder, **changes), match)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**17  # KiB


def test_a_rotary_table_of_any_size_is_refused(tinies: Callable[[str], Tiny], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tinies("neox_parallel").folder, tmp_path / "wide"))
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1e9}
    refused(
        edit(folder, rope_parameters=rope),
        "rotary part of a head must be above 0 and at most 1, not 1000000000",
    )


def test_weights_that_are_not_floating_point_are_refused(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["transformer.h.0.mlp.c_fc.weight"] = weights["transformer.h.0.mlp.c_fc.weight"].to(torch.int8)
    save_file(weights, folder / "model.safetensors")
    refused(folder, "quantized weights .*h.0.mlp.c_fc.weight is I8")


def test_more_weights_than_a_config_has_are_refused_but_old_tables_are_not(folder: Path, gpt2: Tiny) -> None:
    """Old files hold causal masks, which are not weights."""
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"transformer.h.0.attn.bias": torch.ones(1, 1, 64, 64)}, folder / "model.safetensors")
    assert cd.load_model(folder).digest == gpt2.model.digest
    save_file(weights | {"transformer.h.0.attn.q_norm.weight": torch.ones(8)}, folder / "model.safetensors")
    refused(folder, "1 weights of the file are not used .*q_norm")


def test_a_file_without_the_prefix_is_the_same_model(folder: Path, gpt2: Tiny) -> None:
    """As the hub's own gpt2 is saved."""
    weights = load_file(folder / "model.safetensors")
    save_file(
        {key.removeprefix("transformer."): value for key, value in weights.items()},
        folder / "model.safetensors",
    )
    assert cd.load_model(folder).digest == gpt2.model.digest


def test_tied_weights_that_differ_are_refused(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "tied", "llama", tie_word_embeddings=True)
    digest, weights = cd.load_model(folder).digest, load_file(folder / "model.safetensors")
    same = weights["model.embed_tokens.weight"].clone()
    save_file(weights | {"lm_head.weight": same}, folder / "model.safetensors")
    assert cd.load_model(folder).digest == digest
    save_file(weights | {"lm_head.weight": same + 1}, folder / "model.safetensors")
    refused(folder, "ties model.embed_tokens.weight and lm_head.weight, but the file holds two")


def test_a_sharded_folder_is_the_same_model(gpt2: Tiny, tmp_path: Path) -> None:
    gpt2.hf.save_pretrained(tmp_path / "shards", max_shard_size="30KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert cd.load_model(tmp_path / "shards").digest == gpt2.model.digest
    index = tmp_path / "shards" / "model.safetensors.index.json"
    told = json.loads(index.read_text())
    name = next(iter(told["weight_map"]))
    index.write_text(
        json.dumps(told | {"weight_map": told["weight_map"] | {name: "../shards/other.safetensors"}})
    )
    refused(tmp_path / "shards", "names the file '../shards/other.safetensors'")


def test_a_model_saved_without_its_head_is_refused(tmp_path: Path) -> None:
    hf = random_model(tiny_config("llama"))
    hf.model.save_pretrained(tmp_path / "headless")
    refused(
        tmp_path / "headless",
        "1 weights of config.json are missing from the file, the first is lm_head.weight",
    )


# ------------------------------------------------------------------ names


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("gpt2-small", "did you mean 'gpt2'"),
        ("Toy", "did you mean 'toy'"),
        ("pythia-70m", "did you mean 'EleutherAI/pythia-70m'"),
        ("./nowhere", "^there is no folder ./nowhere"),
        ("~/nowhere/at/all", "^there is no folder ~/nowhere/at/all"),
        (Path("nowhere"), "^there is no folder nowhere"),
        ("two words", "^there is no folder two words"),
        ("", "an empty text"),
        ("a\0b", "a.x00b"),
        ("z" * 5000, "is not the name"),
    ],
    ids=lambda value: str(value)[:20].replace("\0", "0"),
)
def test_names_that_are_not_there(name: Any, match: str) -> None:
    refused(name, match)
    assert default_method(str(name)) == "acdc"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:1", "gpu"])
def test_a_machine_without_a_gpu_says_so(device: str) -> None:
    refused("toy", f"no device '{device}': torch sees no GPU", device=device)


@pytest.mark.parametrize(
    "options",
    [{"dtype": 3}, {"dtype": ["float32"]}, {"dtype": torch.int8}, {"device": 3.5}, {"device": [1]}],
    ids=str,
)
def test_options_of_another_kind(options: dict[str, Any]) -> None:
    refused("toy", "Valid", **options)


def test_a_published_circuit_on_another_model_is_named(gpt2: Tiny) -> None:
    with pytest.raises(cd.CircuitDiscoveryError, match=r"a circuit of gpt2/ioi \(12 layers"):
        cd.run_circuit(gpt2.model, gpt2.prompts.task, cd.load_circuit("gpt2/ioi"))


def test_habits_from_other_libraries(gpt2: Tiny) -> None:
    """Sizes are there; what is not says what to do instead, and `hasattr` still works."""
    model = gpt2.model
    assert (model.n_layers, model.n_heads, model.d_model, model.vocab_size) == (3, 4, 32, 101)
    for name, match in {"cfg": "model.graph", "to": "load_model", "run_with_cache": "explain"}.items():
        with pytest.raises(cd.CircuitDiscoveryError, match=match):
            getattr(model, name)
        assert not hasattr(model, name)
    with pytest.raises(AttributeError, match="no attribute 'elephant'"):
        _ = model.elephant
    with pytest.raises(cd.CircuitDiscoveryError, match="run_circuit"):
        model("a text")
    refused(model, "loaded already")


@pytest.mark.parametrize("name", ["gpt2", "llama", "neox_parallel"])
def test_a_model_can_be_copied_and_pickled(name: str, tinies: Callable[[str], Tiny]) -> None:
    import pickle

    model, prompts = tinies(name).model, random_prompts(101, 3)
    full = cd.Circuit.full(model.graph)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(
            cd.run_circuit(other, prompts.task, full), cd.run_circuit(model, prompts.task, full)
        )
