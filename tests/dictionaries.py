"""Random sparse dictionaries, written as each library writes them, and their published formulas in NumPy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

Arrays = dict[str, np.ndarray]
D_IN, D_OUT, FEATURES = 12, 9, 40
HOOKS = {"hook_name": "blocks.2.hook_mlp_out"}
THROUGH = {"hook_name": "blocks.2.mlp.hook_in", "hook_name_out": "blocks.2.hook_mlp_out"}


def arrays(kind: str, *, d_out: int = D_IN, skip: bool = False, seed: int = 0) -> Arrays:
    """A random dictionary, by SAE Lens' names; the encoder is [d_in, features], the decoder [features, d_out]."""
    draw = np.random.default_rng(seed)
    found = {
        "W_enc": draw.normal(size=(D_IN, FEATURES)),
        "W_dec": draw.normal(size=(FEATURES, d_out)) * draw.uniform(0.2, 3, size=(FEATURES, 1)),
        "b_dec": draw.normal(size=d_out),
    }
    names = {"gated": ("b_gate", "r_mag", "b_mag"), "jumprelu": ("b_enc", "threshold")}.get(kind, ("b_enc",))
    found |= {name: draw.normal(size=FEATURES) for name in names}
    if skip:
        found["W_skip"] = draw.normal(size=(d_out, D_IN))
    if kind == "jumprelu":
        found["threshold"] = np.abs(found["threshold"])
    return found


def activations(shape: tuple[int, ...] = (3, 5), seed: int = 1) -> np.ndarray:
    """[*shape, d_in], with a mean and a scale of each its own."""
    draw = np.random.default_rng(seed)
    return draw.normal(size=(*shape, D_IN)) * draw.uniform(1, 4, size=(*shape, 1)) + draw.normal(
        size=(*shape, 1)
    )


# ------------------------------------------------------------------- formulas


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def largest(x: np.ndarray, k: int) -> np.ndarray:
    """x where it is among the k largest of its row, else 0."""
    kept = np.zeros_like(x)
    for row in np.ndindex(x.shape[:-1]):
        where = np.argsort(-x[row])[:k]
        kept[row][where] = x[row][where]
    return kept


def active(kind: str, x: np.ndarray, found: Arrays, k: int = 6) -> np.ndarray:
    """What the papers call f(x), of an activation from which all was subtracted that is to be."""
    product = x @ found["W_enc"]
    if kind == "gated":
        opened = (product + found["b_gate"]) > 0
        return opened * relu(x @ (found["W_enc"] * np.exp(found["r_mag"])) + found["b_mag"])
    before = product + found["b_enc"]
    if kind == "topk":
        return relu(largest(before, k))
    return relu(before) * (before > found["threshold"]) if kind == "jumprelu" else relu(before)


# ------------------------------------------------------------------- formats


def write(folder: Path, files: dict[str, Any]) -> Path:
    """Each file by its name: tensors as .safetensors, .npz, an object as JSON, a text as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / name
        if isinstance(content, str):
            path.write_text(content)
        elif path.suffix == ".safetensors":
            save_file({key: np.ascontiguousarray(each) for key, each in content.items()}, path)
        elif path.suffix == ".npz":
            np.savez(path, **content)
        else:
            path.write_text(json.dumps(content))
    return folder


def sae_lens(folder: Path, architecture: str, found: Arrays, **options: Any) -> Path:
    """The layout of SAE Lens 6."""
    metadata = {"sae_lens_version": "6.54.12", "model_name": "tiny"} | options.pop("metadata", HOOKS)
    config = {
        "architecture": architecture,
        "d_in": D_IN,
        "d_sae": FEATURES,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": metadata,
    }
    return write(folder, {"cfg.json": config | options, "sae_weights.safetensors": found})


def sparsify(folder: Path, found: Arrays, **options: Any) -> Path:
    """EleutherAI's layout."""
    tensors = {"encoder.weight": found["W_enc"].T, "encoder.bias": found["b_enc"]}
    tensors |= {name: each for name, each in found.items() if name in ("W_dec", "b_dec", "W_skip")}
    config = {
        "activation": "topk",
        "expansion_factor": 32,
        "normalize_decoder": True,
        "num_latents": FEATURES,
    }
    config |= {
        "k": 6,
        "multi_topk": False,
        "skip_connection": "W_skip" in found,
        "transcode": False,
        "d_in": D_IN,
    }
    return write(folder, {"cfg.json": config | options, "sae.safetensors": tensors})


def circuit_tracer(folder: Path, found: Arrays, layers: int = 3, **options: Any) -> Path:
    """circuit-tracer's layout; the last layer's dictionary is the one that is given."""
    tensors = {name: each for name, each in found.items() if name != "threshold"}
    tensors["W_enc"] = found["W_enc"].T
    if "threshold" in found:
        tensors["activation_function.threshold"] = found["threshold"]
    lines = {"model_name": "tiny", "model_kind": "transcoder_set"}
    lines |= {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "hook_mlp_out"} | options
    files: dict[str, Any] = {"config.yaml": "".join(f"{name}: {value}\n" for name, value in lines.items())}
    for layer in range(layers):
        changed = tensors if layer == layers - 1 else tensors | {"b_dec": tensors["b_dec"] + layer + 1}
        files[f"layer_{layer}.safetensors"] = changed
    return write(folder, files)


def gemma_scope_2(folder: Path, found: Arrays, **options: Any) -> Path:
    """Gemma Scope 2's layout."""
    tensors = {name.lower(): each for name, each in found.items() if name != "W_skip"}
    if "W_skip" in found:
        tensors["affine_skip_connection"] = found["W_skip"].T
    config = {"architecture": "jump_relu", "model_name": "google/gemma-3-270m", "width": FEATURES, "l0": 20}
    config |= {
        "hf_hook_point_in": "model.layers.5.output",
        "affine_connection": "W_skip" in found,
        "type": "sae",
    }
    return write(folder, {"config.json": config | options, "params.safetensors": tensors})
