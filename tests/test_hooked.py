"""Models in TransformerLens' original format, a config.json and a .pth file, equal to its formulas."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from test_native import native, task_of, tokens
from torch import Tensor

import circuitdiscovery as cd
from circuitdiscovery.model.folder import from_hub
from circuitdiscovery.model.outline import outline

# as the training script of Attn_Only_2L512W_C4_Code writes it, with sizes of a tiny model
CONFIG: dict[str, Any] = {
    "n_layers": 2, "d_model": 16, "d_mlp": 64, "d_head": 4, "n_heads": 4, "n_ctx": 12, "d_vocab": 30,
    "lr_hidden": 0.002, "betas": [0.9, 0.99], "normalization": "LN", "act_fn": "solu_ln", "attn_only": True,
    "shortformer_pos": False, "ln_eps": 1e-5, "seed": 10259, "use_bfloat16_matmul": True,
}  # fmt: skip


def random_state(config: Mapping[str, Any]) -> dict[str, Tensor]:
    """What HookedTransformer's `state_dict` holds for a config, each weight at random."""
    D, H, d, V = (config[key] for key in ("d_model", "n_heads", "d_head", "d_vocab"))
    shapes: dict[str, tuple[int, ...]] = {"embed.W_E": (V, D), "pos_embed.W_pos": (config["n_ctx"], D)}
    normed = config.get("normalization", config.get("normalization_type")) in ("LN", "RMS")
    biased = config.get("normalization", config.get("normalization_type")) == "LN"
    norms = {}
    for layer in range(config["n_layers"]):
        at = f"blocks.{layer}."
        norms |= dict.fromkeys([f"{at}ln1"] + [f"{at}ln2"] * (not config["attn_only"]))
        shapes |= {f"{at}attn.W_{each}": (H, D, d) for each in "QKV"} | {f"{at}attn.W_O": (H, d, D)}
        shapes |= {f"{at}attn.b_{each}": (H, d) for each in "QKV"} | {f"{at}attn.b_O": (D,)}
        if not config["attn_only"]:
            M = config["d_mlp"]
            shapes |= {f"{at}mlp.W_in": (D, M), f"{at}mlp.b_in": (M,), f"{at}mlp.W_out": (M, D)}
            shapes |= {f"{at}mlp.b_out": (D,)}
    for each in (*norms, "ln_final"):
        shapes |= ({f"{each}.w": (D,)} if normed else {}) | ({f"{each}.b": (D,)} if biased else {})
    shapes |= {"unembed.W_U": (D, V), "unembed.b_U": (V,)}
    generator = torch.Generator().manual_seed(0)
    state = {key: torch.randn(shape, generator=generator) * 0.5 for key, shape in shapes.items()}
    for layer in range(config["n_layers"]):
        state[f"blocks.{layer}.attn.mask"] = torch.ones(config["n_ctx"], config["n_ctx"]).tril().bool()
        state[f"blocks.{layer}.attn.IGNORE"] = torch.tensor(-1e5)
    return state


def save(folder: Path, config: Mapping[str, Any], state: Any, file: str = "model_final.pth") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    (folder / file).parent.mkdir(exist_ok=True)
    torch.save(state, folder / file)
    return folder


def formulas(config: Mapping[str, Any], state: Mapping[str, Tensor], rows: Tensor) -> Tensor:
    """[rows, position, vocabulary]: HookedTransformer's forward, written with its own einsums, in float64."""
    s = {key: value.double() for key, value in state.items()}
    kind = config.get("normalization", config.get("normalization_type"))

    def norm(x: Tensor, at: str) -> Tensor:
        x = x - x.mean(-1, keepdim=True) if kind in ("LN", "LNPre") else x
        x = x if kind is None else x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
        return x * s.get(f"{at}.w", torch.tensor(1.0)) + s.get(f"{at}.b", torch.tensor(0.0))

    later = torch.ones(rows.shape[1], rows.shape[1]).triu(1).bool()
    stream = s["embed.W_E"][rows] + s["pos_embed.W_pos"][: rows.shape[1]]
    for layer in range(config["n_layers"]):
        at = f"blocks.{layer}."
        x = norm(stream, f"{at}ln1")
        q, k, v = (
            torch.einsum("btm,hmd->bthd", x, s[f"{at}attn.W_{each}"]) + s[f"{at}attn.b_{each}"]
            for each in "QKV"
        )
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / config["d_head"] ** 0.5
        pattern = scores.masked_fill(later, -torch.inf).softmax(-1)
        z = torch.einsum("bhqk,bkhd->bqhd", pattern, v)
        stream = stream + torch.einsum("bqhd,hdm->bqm", z, s[f"{at}attn.W_O"]) + s[f"{at}attn.b_O"]
        if not config["attn_only"]:
            hidden = norm(stream, f"{at}ln2") @ s[f"{at}mlp.W_in"] + s[f"{at}mlp.b_in"]
            hidden = torch.nn.functional.gelu(hidden)
            stream = stream + hidden @ s[f"{at}mlp.W_out"] + s[f"{at}mlp.b_out"]
    return norm(stream, "ln_final") @ s["unembed.W_U"] + s["unembed.b_U"]


def last_logits(model: cd.Model, rows: Tensor) -> Tensor:
    return cd.run_circuit(model, task_of(rows), cd.Circuit.full(model.graph))


def refused(source: Path, match: str) -> None:
    with pytest.raises(cd.CircuitDiscoveryError, match=match) as caught:
        cd.load_model(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"normalization": "LNPre"},
        {"normalization": None},
        {"normalization": "RMS"},
        {"attn_only": False, "act_fn": "gelu"},
        {"n_layers": 1, "n_heads": 2, "d_head": 8, "attn_scale": 8**0.5, "use_attn_scale": True},
        {"n_heads": 3},  # whose heads together are not as wide as the stream
    ],
    ids=str,
)
def test_the_logits_are_those_of_the_formulas(changes: dict[str, Any], tmp_path: Path) -> None:
    config, rows = CONFIG | changes, tokens()
    state = random_state(config)
    expected = formulas(config, state, rows)[:, -1]
    folder = save(tmp_path / "tiny", config, state)
    for dtype in ("float32", "float64"):
        model = cd.load_model(folder, dtype=dtype)
        assert model.name == "tiny" and model.graph.has_mlp is not config["attn_only"]
        rms = config["normalization"] == "RMS"  # TransformerLens takes that in float32
        tolerance = 1e-5 if dtype == "float32" or rms else 1e-10
        found = last_logits(model, rows).double()
        assert (found - expected).abs().max() < tolerance * expected.abs().max()


def test_heads_edges_are_their_weights(tmp_path: Path) -> None:
    """A head without out-edges, at zero, is one whose W_O is 0."""
    rows, state = tokens(), random_state(CONFIG)
    model = cd.load_model(save(tmp_path, CONFIG, state), dtype="float64")
    state["blocks.0.attn.W_O"][1] = 0
    kept = [edge for edge in model.graph.edges if not edge.startswith("a0.h1->")]
    circuit = cd.Circuit.from_edges(model.graph, kept)
    logits = cd.run_circuit(model, task_of(rows), circuit, ablation="zero")
    torch.testing.assert_close(logits, formulas(CONFIG, state, rows)[:, -1], atol=1e-10, rtol=0)


def test_a_half_precision_and_a_file_without_a_bias_at_the_end(tmp_path: Path) -> None:
    """TransformerLens takes the bias for 0 where an old file has none."""
    state = random_state(CONFIG)
    state["unembed.b_U"] = torch.zeros(30)
    whole = cd.load_model(save(tmp_path / "whole", CONFIG, state))
    del state["unembed.b_U"]
    without = save(tmp_path / "without", CONFIG, state)
    assert cd.load_model(without).digest == cd.load_model(without, dtype="bfloat16").digest == whole.digest


@pytest.mark.parametrize("kind", ["LN", "LNPre"])
def test_a_file_is_the_object_of_the_same_weights(kind: str, tmp_path: Path) -> None:
    """What `HookedTransformer.state_dict` holds, made of a native model's weights."""
    bridge = native(attn_only=True, normalization_type=kind)
    held = bridge.original_model.state_dict()
    inner = {key.replace("._original_component", ""): value for key, value in held.items()}
    state = {"embed.W_E": inner["tok_embed.weight"], "pos_embed.W_pos": inner["pos.weight"]}
    state |= {"unembed.W_U": inner["head.weight"].T}
    for layer in range(2):
        for each in "qkv":
            at = f"layers.{layer}.attn.{each}"
            to = f"blocks.{layer}.attn.{{}}_{each.upper()}"
            state[to.format("W")] = inner[f"{at}.weight"].view(4, 4, 16).transpose(1, 2)
            state[to.format("b")] = inner[f"{at}.bias"].view(4, 4)
        state[f"blocks.{layer}.attn.W_O"] = inner[f"layers.{layer}.attn.o.weight"].T.view(4, 4, 16)
        state[f"blocks.{layer}.attn.b_O"] = inner[f"layers.{layer}.attn.o.bias"]
        if kind == "LN":
            state[f"blocks.{layer}.ln1.w"] = inner[f"layers.{layer}.ln1.weight"]
            state[f"blocks.{layer}.ln1.b"] = inner[f"layers.{layer}.ln1.bias"]
    if kind == "LN":
        state |= {"ln_final.w": inner["ln_out.weight"], "ln_final.b": inner["ln_out.bias"]}
    config = CONFIG | {"normalization": kind}
    model, rows = cd.load_model(save(tmp_path, config, state)), tokens()
    assert model.digest == cd.load_model(bridge).digest
    torch.testing.assert_close(
        last_logits(model, rows), bridge.original_model(rows)[:, -1], atol=1e-5, rtol=0
    )


def test_a_bias_of_the_object_counts() -> None:
    """A bridge gives its native model one at the end, which is zero until somebody fills it."""
    bridge, rows = native(attn_only=True, normalization_type="LN"), tokens()
    bridge.original_model.head.bias.data.normal_()
    torch.testing.assert_close(
        last_logits(cd.load_model(bridge), rows), bridge.original_model(rows)[:, -1], atol=1e-5, rtol=0
    )


# ------------------------------------------------------------------ files


def test_a_step_of_training_is_given_as_a_file(tmp_path: Path) -> None:
    """Beside the config, or in a folder of its own; a folder's own weights are the final ones."""
    first, last = random_state(CONFIG), random_state(CONFIG)
    first["embed.W_E"] = first["embed.W_E"] * 2
    folder = save(tmp_path / "m", CONFIG, last)
    save(folder, CONFIG, first, "checkpoints/tokens_1000.pth")
    save(folder, CONFIG, first, "early.pth")
    rows = tokens()
    for source, state in (
        (folder, last),
        (folder / "early.pth", first),
        (folder / "checkpoints" / "tokens_1000.pth", first),
    ):
        model = cd.load_model(source)
        expected = formulas(CONFIG, state, rows)[:, -1].float()
        torch.testing.assert_close(last_logits(model, rows), expected, atol=2e-5, rtol=1e-5)
    assert model.name == "tokens_1000"  # pyright: ignore[reportPossiblyUnboundVariable]


def test_the_bridge_of_a_file(tmp_path: Path) -> None:
    state, rows = random_state(CONFIG), tokens()
    for dtype in (torch.float32, torch.float64):
        model = cd.load_model(save(tmp_path, CONFIG, state), dtype=dtype)
        bridge: Any = model.to_bridge()
        theirs = bridge(rows, return_type="logits")[:, -1]
        torch.testing.assert_close(theirs, last_logits(model, rows), atol=1e-4, rtol=0)
        assert theirs.dtype == dtype and bridge.cfg.attn_only


def test_the_plan_of_a_folder_reads_no_weights(tmp_path: Path) -> None:
    folder = save(tmp_path, CONFIG, random_state(CONFIG))
    graph = cd.load_model(folder).graph
    (folder / "model_final.pth").unlink()
    assert outline(folder).graph == graph and outline(folder, "float16").dtype == torch.float16


def test_a_tokenizer_beside_it_is_read(words: Path, tmp_path: Path) -> None:
    folder = save(tmp_path, CONFIG, random_state(CONFIG))
    assert cd.load_model(folder).tokenizer is None
    (folder / "config.json").write_text(json.dumps(CONFIG | {"tokenizer_name": str(words)}))
    model = cd.load_model(folder)
    assert model.tokenizer("w5 w7").input_ids == [5, 7]
    bridge: Any = model.to_bridge()
    assert bridge.to_tokens("w5 w7").tolist() == [[1, 5, 7]]


def test_of_the_hub_the_final_weights_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    folder, asked = save(tmp_path, CONFIG, random_state(CONFIG)), []
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda name, file: str(folder / file))
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda name, allow_patterns: asked.append(allow_patterns) or str(folder),
    )
    assert from_hub("NeelNanda/Attn_Only_2L512W_C4_Code") == folder
    assert from_hub("NeelNanda/Attn_Only_2L512W_C4_Code", weights=False) == folder
    assert "*final.pth" in asked[0] and not any(each.endswith(".pth") for each in asked[1])
    save(tmp_path, CONFIG | {"shortformer_pos": True}, {})
    with pytest.raises(cd.CircuitDiscoveryError, match="shortformer"):
        from_hub("NeelNanda/Attn-Only-2L512W-Shortformer-6B-big-lr")
    assert len(asked) == 2
    with pytest.raises(cd.CircuitDiscoveryError, match="did you mean 'NeelNanda/Attn_Only_2L512W_C4_Code'"):
        cd.load_model("attn-only-2l")


# ------------------------------------------------------------------ refused in one line


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"shortformer_pos": True}, "positions of kind 'shortformer' is not supported"),
        ({"positional_embedding_type": "rotary"}, "positions of kind 'rotary'"),
        ({"attn_only": False}, "the activation 'solu_ln'"),
        ({"attn_only": False, "act_fn": "gelu_fast"}, "gelu_fast"),
        ({"normalization": "L2"}, "the norm 'L2'"),
        ({"final_rms": True}, "another norm at the end"),
        ({"attn_scores_soft_cap": 5.0}, "a soft cap"),
        ({"attention_dir": "bidirectional"}, "attention to later tokens"),
        ({"use_attn_scale": False}, "attention without a scale"),
        ({"scale_attn_by_inverse_layer_idx": True}, "divided by the layer's number"),
        ({"use_local_attn": True, "window_size": 4}, "attention to a window"),
        ({"parallel_attn_mlp": True}, "attention and MLP side by side"),
        ({"post_embedding_ln": True}, "a norm of the embeddings"),
        ({"num_experts": 4}, "mixture of experts"),
        ({"architecture": "neel-solu-old"}, "the layout 'neel-solu-old'"),
        ({"d_head": 8}, r"blocks.0.attn.W_Q.* has shape \(4, 16, 4\), expected \(4, 16, 8\)"),
        ({"n_ctx": 13}, r"pos_embed.weight has shape \[12, 16\], but by config.json \[13, 16\]"),
        ({"n_layers": 1}, "weights of the file are not used .*the first is blocks.1"),
        ({"n_layers": 3}, "weights of config.json are missing from the file, the first is blocks.2"),
        ({"n_layers": 10**9}, "n_layers 1000000000, but the file has 26 weights"),
        ({"d_vocab": 10**12}, r"embed.weight has shape \[30, 16\], but by config.json \[1000000000000, 16\]"),
        ({"n_heads": -1}, "must say n_heads, a whole number of at least 1"),
        ({"d_head": "four"}, "must say d_head, a whole number of at least 1"),
        ({"n_ctx": None}, "must say n_ctx"),
        ({"eps": "small"}, "cannot be used"),
    ],
    ids=str,
)
def test_what_is_not_computed_or_does_not_fit_is_refused(
    changes: dict[str, Any], match: str, tmp_path: Path
) -> None:
    import resource

    folder = save(tmp_path, CONFIG | changes, random_state(CONFIG | {"attn_only": True}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(folder, match)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**17  # KiB


class Trap:
    """Its pickle runs code."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


def test_code_in_a_file_never_runs(tmp_path: Path) -> None:
    trap = tmp_path / "this-file-ran-code"
    refused(save(tmp_path / "m", CONFIG, {"a": Trap(trap)}), "the weights cannot be read: model_final.pth: ")
    assert not trap.exists()


def test_files_that_hold_something_else(tmp_path: Path) -> None:
    state = random_state(CONFIG)
    refused(save(tmp_path / "list", CONFIG, [1, 2]), "is not a state_dict, names with their tensors")
    refused(save(tmp_path / "nested", CONFIG, {"model": state}), "is not a state_dict")
    refused(save(tmp_path / "other", CONFIG, state | {"probe": torch.ones(3)}), "probe")
    whole = state | {"blocks.0.attn.W_Q": torch.ones(4, 16, 4, dtype=torch.int8)}
    refused(save(tmp_path / "whole", CONFIG, whole), "blocks.0.attn.W_Q is torch.int8, not a float")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "final.pth").write_text("no pickle")
    refused(tmp_path / "m" / "final.pth", "TransformerLens' config.json is missing beside final.pth")
    (tmp_path / "m" / "config.json").write_text(json.dumps(CONFIG))
    refused(tmp_path / "m", "the weights cannot be read: final.pth")


def test_which_weights_must_be_clear(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", CONFIG, random_state(CONFIG), "a.pth")
    assert cd.load_model(folder).graph.n_layers == 2
    save(folder, CONFIG, random_state(CONFIG), "b.pth")
    refused(folder, r"which of a.pth, b.pth\? Give the file")
    for each in folder.glob("*.pth"):
        each.unlink()
    refused(folder, "there is no .pth file beside config.json")
    refused(folder / "c.pth", "there is no such file")
