"""Seeded mutations of a model folder: each ends in one CircuitDiscoveryError, or in a model
that computes what transformers computes.

`MUTATIONS` of them run here; CIRCUITDISCOVERY_MUTATIONS=400 in the environment runs so many. A new kind of
file is one more entry in `FILES`, a new kind of damage one more function in `_JSON` or `_BYTES`.
"""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Tiny, random_prompts

import circuitdiscovery as cd

MUTATIONS = int(os.environ.get("CIRCUITDISCOVERY_MUTATIONS", "56"))
ARCHITECTURES = ("gpt2", "llama_biased", "qwen2", "neox_parallel")
FILES = (
    "config.json",
    "config.json",
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "model.safetensors",
)
MEMORY = 2**29  # bytes that a refusal may take

ODD: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 7, 10**6, 10**9, 10**15, 2**63, 10**400, 0.0, 0.5, -2.5, 1e-30, 1e30, float("nan"),
    float("inf"), "", "x",
    "4", "gpt2", "llama", "t5", "relu", "gelu_new", "../../evil", "\x00", "é" * 300, [], [1], ["full_attention"] * 3, [[[]]], {}, {"a": 1},
    {"rope_type": "yarn"}, {"rope_type": "default", "rope_theta": 0}, {"rope_type": 3}, "kernels-community/flash-attn", "evil.Model",
]  # fmt: skip
NAMES = [
    "auto_map", "_attn_implementation", "attn_implementation", "quantization_config", "num_hidden_layers", "n_layer", "vocab_size",
    "n_embd",
    "hidden_size", "num_attention_heads", "n_head", "num_key_value_heads", "head_dim", "intermediate_size", "n_inner", "rope_parameters",
    "rope_theta", "rope_scaling", "partial_rotary_factor", "rotary_pct", "sliding_window", "layer_types", "tie_word_embeddings",
    "hidden_act",
    "activation_function", "is_decoder", "is_causal", "return_dict", "output_attentions", "output_hidden_states", "use_cache",
    "dtype",
    "torch_dtype", "fusion_config", "transformers_weights", "max_position_embeddings", "n_positions", "rms_norm_eps", "layer_norm_epsilon",
    "use_parallel_residual", "attention_bias", "mlp_bias", "scale_attn_weights", "pad_token_id", "id2label", "num_labels", "architectures",
    "distributed_config", "tokenizer_class", "chunk_size_feed_forward", "attention_dropout", "experts_implementation", "model_type",
    "add_cross_attention", "reorder_and_upcast_attn", "layer_norm_eps", "extra_special_tokens", "added_tokens_decoder", "model_max_length",
]  # fmt: skip


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    return [path, *(place for key, child in list(children)[:40] for place in _places(child, (*path, key)))]


def _put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    value[path[0]] = _put(value[path[0]], path[1:], new)
    return value


def change(rng: random.Random, value: Any) -> Any:
    """Another value at some place."""
    return _put(value, rng.choice(_places(value)[1:] or [()]), copy.deepcopy(rng.choice(ODD)))


def add(rng: random.Random, value: Any) -> Any:
    """A name that means something to transformers, with any value."""
    return {**value, rng.choice(NAMES): copy.deepcopy(rng.choice(ODD))}


def drop(rng: random.Random, value: Any) -> Any:
    """One name less."""
    gone = rng.choice(list(value))
    return {key: each for key, each in value.items() if key != gone}


def near(rng: random.Random, value: Any) -> Any:
    """A number that is a little or twice another."""
    numbers = [
        key for key, each in value.items() if isinstance(each, int | float) and not isinstance(each, bool)
    ]
    key = rng.choice(numbers) if numbers else rng.choice(list(value))
    return (
        {**value, key: rng.choice([1, -1, 1000]) + value[key] if rng.random() < 0.5 else 2 * value[key]}
        if numbers
        else value
    )


def cut(rng: random.Random, data: bytes) -> bytes:
    """The beginning of a file."""
    return data[: rng.randrange(len(data))]


def flip(rng: random.Random, data: bytes) -> bytes:
    """Some bytes of the beginning, where formats say what follows."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        out[rng.randrange(min(len(out), 4000))] = rng.randrange(256)
    return bytes(out)


def header(rng: random.Random, data: bytes) -> bytes:
    """One field of what a .safetensors file says of its weights; of any other file two lines exchanged."""
    try:
        size = struct.unpack("<Q", data[:8])[0]
        told = json.loads(data[8 : 8 + size])
    except (ValueError, struct.error):
        lines = data.splitlines(keepends=True)
        rng.shuffle(lines)
        return b"".join(lines)
    key = rng.choice([key for key in told if key != "__metadata__"])
    if rng.random() < 0.3:
        told[rng.choice(["x", f"{key}.more", key.replace("0", "7")])] = told.pop(key)
    else:
        field = rng.choice(["dtype", "shape", "data_offsets"])
        told[key] |= {
            field: rng.choice(
                [
                    "I8",
                    "F16",
                    "BF16",
                    "F64",
                    [1, 2],
                    [10**12],
                    [],
                    [-1],
                    [0, 4],
                    [2**62, 4],
                    *told[key]["shape"],
                ]
            )
        }
    text = json.dumps(told).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


_JSON: list[Callable[[random.Random, Any], Any]] = [change, change, add, add, drop, near]
_BYTES: list[Callable[[random.Random, bytes], bytes]] = [cut, flip, header]


def mutate(rng: random.Random, folder: Path) -> str:
    """Damage one file of a model folder; what was done, in words."""
    file = folder / rng.choice(FILES)
    if file.suffix == ".json" and rng.random() < 0.85:
        how = rng.choice(_JSON)
        file.write_text(json.dumps(how(rng, json.loads(file.read_text("utf-8")))), "utf-8")
    else:
        bytewise = rng.choice(_BYTES)
        file.write_bytes(bytewise(rng, file.read_bytes()))
        how = bytewise
    return f"{how.__name__} {file.name}"


# ------------------------------------------------------------------ what may come of it


@pytest.fixture(scope="module")
def folders(
    tinies: Callable[[str], Tiny], words: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    """Whole model folders with a tokenizer."""
    made = []
    for name in ARCHITECTURES:
        folder = tmp_path_factory.mktemp("whole") / name
        shutil.copytree(tinies(name).folder, folder)
        for file in words.iterdir():
            shutil.copy(file, folder)
        if not (folder / "generation_config.json").exists():
            (folder / "generation_config.json").write_text('{"bos_token_id": 1, "do_sample": false}')
        made.append(folder)
    return made


def outcome(folder: Path) -> str:
    """What loading gives: the error's text, or "right"; a model that computes
    something else than transformers fails the test.
    """
    try:
        model = cd.load_model(folder)
    except cd.CircuitDiscoveryError as error:
        text = str(error)
        assert text and "\n" not in text and len(text) < 700, text
        return text
    prompts = random_prompts(101, 3, min(6, model.max_length or 6))
    mine = cd.run_circuit(model, prompts.task, cd.Circuit.full(model.graph))
    assert bool(torch.isfinite(mine).all())
    from transformers import AutoModelForCausalLM

    config = json.loads((folder / "config.json").read_text("utf-8"))  # as above, without what says how
    config = {key: value for key, value in config.items() if key in _MEANS}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    (folder / "generation_config.json").unlink(missing_ok=True)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        expected = theirs.eval()(prompts.clean).logits[:, -1]
    torch.testing.assert_close(mine, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)
    return "right"


_MEANS = {
    *NAMES, "n_ctx", "max_window_layers", "use_sliding_window", "scale_attn_by_inverse_layer_idx", "rotary_emb_base", "hidden_dropout",
    "bos_token_id", "eos_token_id", "initializer_range", "attn_pdrop", "embd_pdrop", "resid_pdrop",
} - {"auto_map", "_attn_implementation", "attn_implementation", "dtype", "torch_dtype", "fusion_config", "transformers_weights",
     "distributed_config", "experts_implementation", "return_dict", "id2label", "num_labels", "architectures", "quantization_config",
     "output_attentions", "output_hidden_states", "use_cache"}  # fmt: skip


def test_mutated_folders_end_in_one_line_or_in_the_right_model(
    folders: list[Path], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource

    from transformers.utils import logging

    logging.disable_progress_bar()
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("something reads from standard input"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found: dict[str, str] = {}
    for seed in range(MUTATIONS):
        rng, folder = random.Random(seed), tmp_path / f"model{seed}"
        shutil.copytree(rng.choice(folders), folder)
        what = f"{seed}: {mutate(rng, folder)}"
        capfd.readouterr()
        try:
            with monkeypatch.context() as patch:
                patch.chdir(tmp_path)
                found[what] = outcome(folder)
        except Exception as error:
            pytest.fail(f"seed {seed} ({what}, {folder}) ended in {type(error).__name__}: {error}")
        told = capfd.readouterr()
        assert told.out == "", (what, told.out)
        shutil.rmtree(folder)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < MEMORY, f"memory grew by {grown:,} bytes"
    right = sum(text == "right" for text in found.values())
    assert 0 < right < len(found)  # else the mutations, or the refusals, are empty
