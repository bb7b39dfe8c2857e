"""`load_model`: from Hugging Face or TransformerLens to a `Model`. No other file knows them.

The config and the named weight tensors of a GPT-2, Llama, Mistral, Qwen2 or GPT-NeoX model become one `Model`. What our
forward does not compute is refused by name, and what it does compute is proved equal to the model's own forward on random
token ids before it is handed out.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from circuitdiscovery.errors import CircuitDiscoveryError, unknown
from circuitdiscovery.files import GGUF, data_folder, needs_gguf
from circuitdiscovery.forward import plain_run
from circuitdiscovery.graph import Graph
from circuitdiscovery.model import Block, Model, Norm, Rotary

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}

# ------------------------------------------------------------------ what is supported, from config and weights to blocks

Weights = Mapping[str, Tensor]


def _heads(weight: Tensor, d_head: int) -> Tensor:
    """[heads * d_head, d_model] -> [heads, d_head, d_model]; biases alike."""
    return weight.unflatten(0, (-1, d_head))


def _optional_heads(bias: Tensor | None, d_head: int) -> Tensor | None:
    return None if bias is None else _heads(bias, d_head)


def _gpt2_block(config: Any, weights: Weights, layer: int) -> Block:
    at = f"transformer.h.{layer}."
    d_head = config.n_embd // config.n_head
    # Conv1D holds [in, out]
    w_q, w_k, w_v = weights[at + "attn.c_attn.weight"].T.chunk(3)
    b_q, b_k, b_v = weights[at + "attn.c_attn.bias"].chunk(3)
    scale = d_head**-0.5 if config.scale_attn_weights else 1.0
    return Block(
        norm1=Norm(weights[at + "ln_1.weight"], weights[at + "ln_1.bias"], config.layer_norm_epsilon, kind="layer"),
        W_Q=_heads(w_q, d_head), W_K=_heads(w_k, d_head), W_V=_heads(w_v, d_head),
        b_Q=_heads(b_q, d_head), b_K=_heads(b_k, d_head), b_V=_heads(b_v, d_head),
        W_O=_heads(weights[at + "attn.c_proj.weight"], d_head), b_O=weights[at + "attn.c_proj.bias"],
        scale=scale / (layer + 1) if config.scale_attn_by_inverse_layer_idx else scale,
        norm2=Norm(weights[at + "ln_2.weight"], weights[at + "ln_2.bias"], config.layer_norm_epsilon, kind="layer"),
        W_in=weights[at + "mlp.c_fc.weight"].T, b_in=weights[at + "mlp.c_fc.bias"], W_gate=None, b_gate=None,
        W_out=weights[at + "mlp.c_proj.weight"].T, b_out=weights[at + "mlp.c_proj.bias"],
    )  # fmt: skip


def _llama_block(config: Any, weights: Weights, layer: int) -> Block:
    at = f"model.layers.{layer}."
    attention, mlp = at + "self_attn.", at + "mlp."
    d_head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    b_q, b_k, b_v = (_optional_heads(weights.get(f"{attention}{x}_proj.bias"), d_head) for x in "qkv")
    return Block(
        norm1=Norm(weights[at + "input_layernorm.weight"], None, config.rms_norm_eps, kind="rms"),
        W_Q=_heads(weights[attention + "q_proj.weight"], d_head),
        W_K=_heads(weights[attention + "k_proj.weight"], d_head),
        W_V=_heads(weights[attention + "v_proj.weight"], d_head),
        b_Q=b_q, b_K=b_k, b_V=b_v,
        W_O=_heads(weights[attention + "o_proj.weight"].T, d_head), b_O=weights.get(attention + "o_proj.bias"),
        scale=d_head**-0.5,
        norm2=Norm(weights[at + "post_attention_layernorm.weight"], None, config.rms_norm_eps, kind="rms"),
        W_in=weights[mlp + "up_proj.weight"], b_in=weights.get(mlp + "up_proj.bias"),
        W_gate=weights[mlp + "gate_proj.weight"], b_gate=weights.get(mlp + "gate_proj.bias"),
        W_out=weights[mlp + "down_proj.weight"], b_out=weights.get(mlp + "down_proj.bias"),
    )  # fmt: skip


def _neox_block(config: Any, weights: Weights, layer: int) -> Block:
    at = f"gpt_neox.layers.{layer}."
    d_head = config.hidden_size // config.num_attention_heads
    # heads are outermost and q, k, v inside each: no strided view serves a fused product, so these are copies
    w_q, w_k, w_v = (w.contiguous() for w in _heads(weights[at + "attention.query_key_value.weight"], 3 * d_head).chunk(3, dim=1))
    bias = _optional_heads(weights.get(at + "attention.query_key_value.bias"), 3 * d_head)
    b_q, b_k, b_v = (None, None, None) if bias is None else bias.chunk(3, dim=1)
    norms = [
        Norm(weights[f"{at}{name}.weight"], weights[f"{at}{name}.bias"], config.layer_norm_eps, kind="layer")
        for name in ("input_layernorm", "post_attention_layernorm")
    ]
    return Block(
        norm1=norms[0], W_Q=w_q, W_K=w_k, W_V=w_v, b_Q=b_q, b_K=b_k, b_V=b_v,
        W_O=_heads(weights[at + "attention.dense.weight"].T, d_head), b_O=weights.get(at + "attention.dense.bias"),
        scale=d_head**-0.5, norm2=norms[1],
        W_in=weights[at + "mlp.dense_h_to_4h.weight"], b_in=weights[at + "mlp.dense_h_to_4h.bias"], W_gate=None, b_gate=None,
        W_out=weights[at + "mlp.dense_4h_to_h.weight"], b_out=weights[at + "mlp.dense_4h_to_h.bias"],
    )  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """Where one family keeps what all families have."""

    block: Callable[[Any, Weights, int], Block]
    embedding: str
    final_norm: str
    unembedding: tuple[str, ...]
    positions: str | None = None


_LLAMA = Architecture(_llama_block, "model.embed_tokens.weight", "model.norm", ("lm_head.weight",))
ARCHITECTURES = {
    "gpt2": Architecture(_gpt2_block, "transformer.wte.weight", "transformer.ln_f", ("lm_head.weight",), "transformer.wpe.weight"),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "gpt_neox": Architecture(_neox_block, "gpt_neox.embed_in.weight", "gpt_neox.final_layer_norm", ("lm_head.weight", "embed_out.weight")),
}

# what our forward does not compute, by the name a reader of the model's paper knows it by
_POST_NORM, _MOE, _ALIBI = "post-norm (a norm after attention or the MLP)", "mixture of experts", "ALiBi position biases"
_KNOWN_REASONS = {
    "gemma2": _POST_NORM, "gemma3": _POST_NORM, "gemma3_text": _POST_NORM, "olmo2": _POST_NORM, "olmo3": _POST_NORM, "glm4": _POST_NORM,
    "mixtral": _MOE, "qwen2_moe": _MOE, "qwen3_moe": _MOE, "deepseek_v3": _MOE, "olmoe": _MOE, "gpt_oss": _MOE,
    "bloom": _ALIBI, "mpt": _ALIBI, "falcon": f"{_ALIBI} or multi-query attention", "qwen3": "a norm on queries and keys",
    "mamba": "a state space instead of attention", "mamba2": "a state space instead of attention", "t5": "an encoder", "bert": "an encoder",
}  # fmt: skip
_STATIC_ROPE = ("default", "linear", "llama3", "yarn")


def _check_supported(config: Any, name: str) -> None:
    """Refuse, by name, what the forward does not compute."""
    kind = config.model_type
    if kind not in ARCHITECTURES:
        reason = _KNOWN_REASONS.get(kind)
        raise CircuitDiscoveryError(
            f"{name}: architecture {kind!r} is not supported{f' ({reason})' if reason else ''}; supported: {', '.join(ARCHITECTURES)}"
        )
    if getattr(config, "add_cross_attention", False):
        raise CircuitDiscoveryError(f"{name}: cross-attention is not supported")
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope not in _STATIC_ROPE:
        raise CircuitDiscoveryError(f"{name}: rotary scaling {rope!r} depends on the prompt's length; supported: {', '.join(_STATIC_ROPE)}")


def _window(config: Any) -> int | None:
    kinds = getattr(config, "layer_types", None)
    slides = kinds is None or "sliding_attention" in kinds
    return getattr(config, "sliding_window", None) if slides else None


def _activation(name: str) -> Callable[[Tensor], Tensor]:
    """Hugging Face's activation, by torch's fused kernel where there is one for the same function."""
    if name in ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"):
        return lambda x: F.gelu(x, approximate="tanh")
    from transformers.activations import ACT2FN

    return {"gelu": F.gelu, "silu": F.silu, "swish": F.silu, "relu": F.relu}.get(name) or ACT2FN[name]


def _rotary(config: Any) -> Rotary | None:
    if config.model_type == "gpt2":
        return None
    if config.model_type == "gpt_neox":
        from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXRotaryEmbedding as Embedding
    else:
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding as Embedding
    embedding: Any = Embedding(config)
    return Rotary(embedding.inv_freq.float(), float(embedding.attention_scaling))


def _build(config: Any, weights: Weights, name: str, tokenizer: Any) -> Model:
    architecture = ARCHITECTURES[config.model_type]
    blocks = tuple(architecture.block(config, weights, layer) for layer in range(config.num_hidden_layers))
    norm, final = blocks[0].norm1, architecture.final_norm
    parallel = config.model_type == "gpt_neox" and config.use_parallel_residual
    return Model(
        name=name,
        digest=weights_digest(weights),
        tokenizer=tokenizer,
        graph=Graph(len(blocks), len(blocks[0].W_Q), len(blocks[0].W_K), parallel=parallel),
        W_E=weights[architecture.embedding],
        W_pos=weights[architecture.positions] if architecture.positions else None,
        blocks=blocks,
        final_norm=Norm(weights[final + ".weight"], weights.get(final + ".bias"), norm.eps, norm.kind),
        W_U=next(weights[key] for key in (*architecture.unembedding, architecture.embedding) if key in weights),
        activation=_activation(config.activation_function if config.model_type == "gpt2" else config.hidden_act),
        rotary=_rotary(config),
        window=_window(config),
    )


def weights_digest(weights: Weights) -> str:
    """SHA-256 over the sorted tensors' names, shapes and bytes; the same for a folder, its Hugging Face model and its bridge."""

    def one(name: str) -> str:
        tensor = weights[name].detach().cpu().contiguous()
        return f"{name} {list(tensor.shape)} {hashlib.sha256(tensor.view(torch.uint8).numpy().data).hexdigest()}"

    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter lock
        return hashlib.sha256("\n".join(pool.map(one, sorted(weights))).encode()).hexdigest()


# ------------------------------------------------------------------ loading


def bundled_models() -> list[str]:
    """The names of the models that come with the package."""
    return sorted(path.parent.name for path in data_folder("models").glob("*/config.json"))


def load_model(
    source: Any, *, device: str | torch.device | None = None, dtype: str | torch.dtype = "float32", name: str | None = None
) -> Model:
    """Load a transformer.

    Args:
        source: a bundled model's name, a Hugging Face folder, a .gguf file (its weights in full precision; needs the
            extra `gguf`), a hub name, a Hugging Face causal language model (its tokenizer is looked up by its
            `name_or_path`), a pair (model, tokenizer), or a TransformerBridge.
        device: a torch device; by default CUDA where there is one, for an object the device it is on.
        dtype: float32, float64, bfloat16 or float16; objects are converted too.
        name: what files and messages call the model; by default the source's own name, a file's without its suffix.

    Raises:
        CircuitDiscoveryError: an unknown name, device or dtype; a folder or a file that is not a complete model; an architecture or a
            feature that the forward does not compute, by name; a forward that differs from the model's own.

    >>> load_model("toy").graph.edges[0]
    'input->a0.h0<q>'
    """
    precision = _dtype(dtype)
    with quiet_transformers():
        if isinstance(source, (str, Path)):
            target = _device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            path, shown = _resolve(str(source))
            read = read_gguf if Path(path).is_file() else _from_folder
            hf, tokenizer = read(path, shown, precision)
        else:
            hf, tokenizer = source, getattr(source, "tokenizer", None)
            if isinstance(source, tuple) and len(source) == 2:
                hf, tokenizer = source
            _check_is_model(hf)
            target = _device(device or next(hf.parameters()).device)
            shown = _object_name(hf)
        model = _from_object(hf, tokenizer, name or shown, target, precision)
    return model


def _check_is_model(source: Any) -> None:
    if not hasattr(getattr(getattr(source, "original_model", source), "config", None), "model_type"):
        raise CircuitDiscoveryError(
            f"{type(source).__name__} is not a model: give a name, a folder, a Hugging Face causal language model, "
            "a pair (model, tokenizer) or a TransformerBridge"
        )


def _from_object(hf: Any, tokenizer: Any, name: str, device: torch.device, dtype: torch.dtype) -> Model:
    hf = getattr(hf, "original_model", hf)  # a TransformerBridge wraps the Hugging Face model
    config = hf.config
    _check_supported(config, name)
    weights = {key: value.detach().to(device, dtype) for key, value in _named_weights(hf).items()}
    if tokenizer is None and getattr(config, "_name_or_path", ""):
        tokenizer = _tokenizer(config._name_or_path, name, required=False)
    model = _build(config, weights, name, tokenizer)
    model = replace(model, rotary=model.rotary and replace(model.rotary, frequencies=model.rotary.frequencies.to(device)))
    _prove(model, hf)
    return model


def _named_weights(hf: Any) -> dict[str, Tensor]:
    """The weight tensors under the names Hugging Face gives them, also where a bridge has wrapped the modules."""
    state = {key.replace("._original_component", ""): value for key, value in hf.state_dict().items()}
    if len(state) == len(hf.state_dict()) and not any("_original_component" in key for key in hf.state_dict()):
        return state
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        expected = AutoModelForCausalLM.from_config(hf.config).state_dict()
    return {key: state[key] for key in expected}


@torch.no_grad()
def _prove(model: Model, hf: Any) -> None:
    """The forward on random token ids is the model's own, to rounding; otherwise the model is refused."""
    length = min(12, model.max_length or 12)
    tokens = torch.randint(model.vocab_size, (2, length), generator=torch.Generator().manual_seed(0))
    training = hf.training
    own = next(hf.parameters())
    theirs = hf.eval()(tokens.to(own.device)).logits[:, -1].to(model.device, torch.float64)
    hf.train(training)
    ours = plain_run(model, tokens.to(model.device), torch.full((2,), length - 1, device=model.device)).logits.double()
    # float32 agrees to 1e-6 of the largest logit; half precisions round at every step
    precise = model.dtype in (torch.float32, torch.float64) and own.dtype in (torch.float32, torch.float64)
    error, largest = float((ours - theirs).abs().max()), float(theirs.abs().max())
    if not error <= (1e-4 if precise else 0.1) * max(1.0, largest):
        raise CircuitDiscoveryError(
            f"{model.name}: our forward differs from the model's own by {error:.2g} (largest logit {largest:.2g}); "
            "the model has a feature that is not supported (norms folded by compatibility mode, a modified module, ...)"
        )


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    if isinstance(dtype, torch.dtype) and dtype in DTYPES.values():
        return dtype
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    return DTYPES[str(dtype)]


def _device(device: str | torch.device) -> torch.device:
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, ValueError) as error:
        valid = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count())), *(["mps"] if torch.backends.mps.is_available() else [])]
        raise unknown("device", device, valid) from error
    return found


def _resolve(source: str) -> tuple[str, str]:
    """(what Hugging Face loads, what we call it)."""
    if source in bundled_models():
        return str(data_folder("models") / source), source
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise CircuitDiscoveryError(f"{source}: not a model folder, config.json is missing")
        return str(path), path.resolve().name
    if path.suffix.lower() == GGUF:
        if not path.is_file():
            raise CircuitDiscoveryError(f"{source}: there is no such file")
        return str(path), path.stem
    if path.exists():
        raise CircuitDiscoveryError(f"{source}: a model is a folder with config.json or a {GGUF} file, this is another file")
    return source, source


def _object_name(hf: Any) -> str:
    path = getattr(getattr(getattr(hf, "original_model", hf), "config", None), "_name_or_path", "")
    if not path:
        return type(hf).__name__
    return Path(path).resolve().name if Path(path).is_dir() else path


def _from_folder(path: str, name: str, dtype: torch.dtype) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
        raise _not_found(path, name, error) from error
    _check_supported(config, name)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, output_loading_info=True)
        hf, report = loaded
    except Exception as error:  # safetensors, torch and Hugging Face each have their own for a broken file
        raise CircuitDiscoveryError(f"{name}: the weights cannot be read: {_first_line(error)}") from error
    if report["missing_keys"] or report.get("mismatched_keys"):
        keys = sorted(map(str, report["missing_keys"] or report["mismatched_keys"]))
        raise CircuitDiscoveryError(f"{name}: {len(keys)} weights are missing or of another shape, the first is {keys[0]}")
    return hf, _tokenizer(path, name, required=False)


def read_gguf(path: str | Path, name: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """The Hugging Face model and the tokenizer (None where there is none) that a .gguf file holds, its weights in full precision.

    Raises:
        CircuitDiscoveryError: no package `gguf`; a file that cannot be read; an architecture that is not supported; a tensor
            or a rotary scaling that transformers leaves out, which would make another model of it.
    """
    needs_gguf(name)
    from gguf import GGUFReader
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(Path(path).parent), "gguf_file": Path(path).name}
    # transformers draws a bar for the conversion with tqdm itself, which its own switch does not turn off
    with quiet_transformers(), redirect_stderr(io.StringIO()):
        try:
            reader = GGUFReader(path)
            config = AutoConfig.from_pretrained(**where)
            _check_supported(config, name)
            hf: Any = AutoModelForCausalLM.from_pretrained(**where, config=config, dtype=dtype)
        except CircuitDiscoveryError:
            raise
        except Exception as error:  # a broken file fails in as many ways as it has fields
            raise CircuitDiscoveryError(f"{name}: the file {path} cannot be read as GGUF: {_first_line(error)}") from error
        _check_all_read(reader, hf, name)
        if "tokenizer.ggml.tokens" not in reader.fields:
            return hf, None
        try:
            tokenizer = AutoTokenizer.from_pretrained(**where)
        except Exception as error:  # as above
            raise CircuitDiscoveryError(f"{name}: the tokenizer cannot be used: {_first_line(error)}") from error
    if not _encodes(tokenizer):
        raise CircuitDiscoveryError(f"{name}: the tokenizer cannot be used: it encodes text to nothing")
    return hf, tokenizer


def _check_all_read(reader: Any, hf: Any, name: str) -> None:
    """Refuse a file with a part that transformers leaves out without a word: biases, rotary factors, a rotary scaling."""
    free = Counter(tuple(sorted(parameter.shape)) for parameter in hf.parameters())
    for tensor in sorted(reader.tensors, key=lambda tensor: not tensor.name.endswith(".weight")):
        shape = tuple(sorted(map(int, tensor.shape)))
        if not free[shape]:
            raise CircuitDiscoveryError(f"{name}: transformers leaves out the file's tensor {tensor.name!r} ({hf.config.model_type})")
        free[shape] -= 1
    missing = [shape for shape, count in free.items() if count]
    if missing:
        raise CircuitDiscoveryError(f"{name}: weights are missing, one of the shape {list(missing[0])}")
    for key, field in reader.fields.items():
        if key.endswith(".rope.scaling.type") and field.contents() != "none":
            raise CircuitDiscoveryError(f"{name}: transformers leaves out the file's rotary scaling {field.contents()!r}")


def _not_found(path: str, name: str, error: Exception) -> CircuitDiscoveryError:
    if Path(path).is_dir():
        return CircuitDiscoveryError(f"{name}: config.json cannot be read: {_first_line(error)}")
    listed = unknown("model", name, bundled_models(), plural="bundled models")
    return CircuitDiscoveryError(f"{listed}; it is no folder, and the hub did not give it ({_first_line(error)})")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _tokenizer(path: str, name: str, *, required: bool) -> Any:
    """The folder's tokenizer, None where it has none, checked to encode text to something.

    A folder whose tokenizer is of another class than its architecture's can load as that class and encode text to nothing;
    its tokenizer.json is then read as it stands.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    file = Path(path) / "tokenizer.json"
    loaders: list[Callable[[], Any]] = [lambda: AutoTokenizer.from_pretrained(path)]
    if Path(path).is_dir():
        if not file.exists() and not list(Path(path).glob("*token*")):
            return None
        if file.exists():
            loaders.append(lambda: PreTrainedTokenizerFast.from_pretrained(path))
    problem = ""
    for loader in loaders:
        try:
            tokenizer = loader()
        except Exception as error:  # a tokenizer can fail in as many ways as there are classes
            problem = _first_line(error)
            continue
        if _encodes(tokenizer):
            return tokenizer
        problem = "it encodes text to nothing"
    if Path(path).is_dir() or required:
        raise CircuitDiscoveryError(f"{name}: the tokenizer cannot be used: {problem}")
    return None


def _encodes(tokenizer: Any) -> bool:
    """Whether text becomes more than the special tokens that an empty string has."""
    return len(tokenizer("the cat").input_ids) > len(tokenizer("").input_ids)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no warnings from transformers inside, the caller's settings after."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
