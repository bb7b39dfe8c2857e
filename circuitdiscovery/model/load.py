"""`load_model`: from Hugging Face or TransformerLens to a `Model`. No other file knows them.

The config and the named weight tensors of a model of a family in `registry.ARCHITECTURES` become one
`Model`. What our forward does not compute is refused by name, and what it does compute is proved equal to the
model's own forward on random token ids before it is handed out.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import ref

import torch

from circuitdiscovery.arguments import guarded
from circuitdiscovery.errors import CircuitDiscoveryError, one_line, shown, unknown
from circuitdiscovery.files.disk import GGUF, HUB_NAME, data_folder, is_folder
from circuitdiscovery.model.build import architecture_of, build, weights_digest
from circuitdiscovery.model.config import CONFIG
from circuitdiscovery.model.folder import from_hub, quiet_transformers, read_folder
from circuitdiscovery.model.gguf import read_gguf
from circuitdiscovery.model.hooked import PTH, is_hooked, read_hooked
from circuitdiscovery.model.model import Model
from circuitdiscovery.model.object import DTYPES, held, inner_bridge, unwrapped
from circuitdiscovery.model.placement import Placement, placement
from circuitdiscovery.model.proof import prove
from circuitdiscovery.model.source import Shared, Source
from circuitdiscovery.model.tokenizer import read_tokenizer, tokenizer_of

__all__ = ["DTYPES", "bundled_models", "load_model", "quiet_transformers", "read_gguf", "weights_digest"]


def bundled_models() -> list[str]:
    """The names of the models that come with the package."""
    return sorted(path.parent.name for path in data_folder("models").glob("*/config.json"))


@guarded
def load_model(
    source: Any,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "float32",
    name: str | None = None,
    device_map: str | Mapping[str, Any] | None = None,
) -> Model:
    """Load a transformer.

    Args:
        source: a bundled model's name, a Hugging Face folder, a .gguf file (its weights in full precision;
            needs the extra `gguf`), a folder or a .pth file in TransformerLens' original format (such as
            Attn_Only_2L512W_C4_Code), a hub name, a Hugging Face causal language model (its tokenizer is
            looked up by its `name_or_path`), a pair (model, tokenizer), where the tokenizer's folder or name
            will do, or a TransformerBridge. An object's weights are shared, not copied, but for what is
            converted or moved. Where they are written to later, as by training, the model is refused: load
            the object again, or load a copy of it (`copy.deepcopy`) to keep a state. torch does not count
            changes through `.data` and by fused optimizers. A few numbers of each weight tell of these, so
            that one of single numbers is not seen.
        device: a torch device; by default CUDA where there is one, for an object the device it is on.
        dtype: float32, float64, bfloat16 or float16; objects are converted too.
        name: what files and messages call the model; by default the
            source's own name, a file's without its suffix.
        device_map: in place of `device`, to spread the layers over devices: `auto` (accelerate's, by the free
            memory of each), `balanced`, `sequential`, or a mapping from the names of Hugging Face's modules,
            such as "model.layers.0", to devices. Each layer is whole on one device; embeddings and
            unembedding are on the first layer's, and so is what searches keep.

    Returns:
        The model, checked against its own forward.

    Raises:
        CircuitDiscoveryError: an unknown name, device, device_map or dtype; a folder or a file that is not a
            complete model; an architecture or a feature that the forward does not compute, by name; a forward
            that differs from the model's own.

    >>> load_model("toy").graph.edges[0]
    'input->a0.h0<q>'
    """
    precision = as_dtype(dtype)
    if device is not None and device_map is not None:
        raise CircuitDiscoveryError("device and device_map exclude each other: give one of them")
    with quiet_transformers():
        if isinstance(source, (str, Path)):
            target = _device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            path, known_as = located(source)
            hf, tokenizer = read(path, known_as)
            origin = Source(path.absolute())
            return _model(unwrapped(hf), tokenizer, name or known_as, target, precision, device_map, origin)
        if isinstance(source, Model):
            raise CircuitDiscoveryError(f"{source.name} is loaded already; use it as it is")
        hf, tokenizer = source, getattr(source, "tokenizer", None)
        if isinstance(source, tuple) and len(source) == 2:
            hf, tokenizer = source[0], _given_tokenizer(source[1])
        bridge, hf = inner_bridge(hf), unwrapped(hf)
        target = _device(device or next((parameter.device for parameter in hf.parameters()), "cpu"))
        if tokenizer is None and getattr(getattr(hf, "config", None), "_name_or_path", ""):
            tokenizer = tokenizer_of(str(hf.config._name_or_path))
        origin = Source(reference=ref(hf if bridge is None else bridge))
        return _model(hf, tokenizer, name or _object_name(hf), target, precision, device_map, origin)


def read(path: Path, name: str) -> tuple[Any, Any]:
    """What a folder or a file of a model holds: a Hugging Face model or TransformerLens' own, in the dtype of
    the file, and the tokenizer (None where there is none).

    Raises:
        CircuitDiscoveryError: whatever in it is broken, asks for code, or is not computed.
    """
    if path.suffix.lower() == GGUF and path.is_file():
        return read_gguf(path, name, torch.float32)
    return read_hooked(path, name) if path.is_file() or is_hooked(path) else read_folder(path, name)


def _model(
    hf: Any,
    tokenizer: Any,
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    device_map: str | Mapping[str, Any] | None,
    source: Source,
) -> Model:
    """The model of a Hugging Face model, whose weights are converted in place where it was
    read from a path: it is nobody else's.
    """
    found = held(hf, name)
    digest = weights_digest(found.weights)
    if source.path is not None:  # its tables stay as precise as they are
        del found  # the weights in the dtype of the file, which are dropped one by one
        for parameter in hf.parameters():
            parameter.data = parameter.data.to(dtype)
        found = held(hf, name)
    where: Placement = lambda key: device  # noqa: E731
    if device_map is not None:
        prefix = architecture_of(found.config.model_type).layers
        where = placement(found.plain, found.layers, prefix, device_map, dtype, name)
    moved = {key: value.detach().to(where(key), dtype) for key, value in found.weights.items()}
    # those that were made in inference mode cannot be part of a gradient
    weights = {key: value.clone() if value.is_inference() else value for key, value in moved.items()}
    del moved
    try:
        model = build(found.config, weights, name, digest, tokenizer)
    except CircuitDiscoveryError:
        raise
    except Exception as error:  # a config's field of another kind, weights of another model
        why = (
            f"lacks the weight {error}"
            if isinstance(error, KeyError)
            else f"cannot be built: {one_line(error)}"
        )
        raise CircuitDiscoveryError(f"{name}: the model {why}") from error
    prove(model, found.plain, found.own, found.layers)
    if source.path is None:
        source = replace(source, shared=Shared.of(name, model, found.weights.values()))
    return replace(model, source=source)


def as_dtype(dtype: str | torch.dtype) -> torch.dtype:
    if isinstance(dtype, torch.dtype) and dtype in DTYPES.values():
        return dtype
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    return DTYPES[dtype]


def _device(device: str | torch.device) -> torch.device:
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        valid = [
            "cpu",
            *(f"cuda:{i}" for i in range(torch.cuda.device_count())),
            *(["mps"] if torch.backends.mps.is_available() else []),
        ]
        if str(device).split(":")[0] in ("cuda", "gpu") and not torch.cuda.is_available():
            raise CircuitDiscoveryError(
                f"no device {str(device)!r}: torch sees no GPU; Valid devices: {', '.join(valid)}"
            ) from error
        raise unknown("device", device, valid) from error
    return found


def located(source: str | Path, *, weights: bool = True) -> tuple[Path, str]:
    """(a folder or a file, what we call it); of a name on the hub its weights are fetched if asked."""
    text = str(source) if str(source).isprintable() else repr(str(source))
    if not str(source):
        raise CircuitDiscoveryError(f"an empty text is not a model; a model is {_listed()}")
    if text in bundled_models():
        return data_folder("models") / text, text
    try:
        path = Path(source).expanduser()
        exists, is_folder = path.exists(), path.is_dir()
    except (OSError, RuntimeError, ValueError):  # a name that is too long, an unknown user, a NUL
        raise CircuitDiscoveryError(f"{text[:100]!r} is not the name of a model or a folder") from None
    if is_folder:
        if not (path / CONFIG).is_file():
            raise CircuitDiscoveryError(f"{text}: not a model folder, {CONFIG} is missing")
        return path, path.resolve().name
    if path.suffix.lower() in (GGUF, PTH):
        if not path.is_file():
            raise CircuitDiscoveryError(f"{text}: there is no such file")
        return path, path.stem
    if exists:
        raise CircuitDiscoveryError(
            f"{text}: a model is a folder with {CONFIG}, a {GGUF} or a {PTH} file, this is another file"
        )
    if isinstance(source, Path) or not HUB_NAME.fullmatch(text):
        raise CircuitDiscoveryError(f"there is no folder {text}; a model is {_listed()}")
    if text.lower() in (*_ALSO_CALLED, *bundled_models()):
        raise CircuitDiscoveryError(_no_model(text))
    try:
        return from_hub(text, weights=weights), text
    except CircuitDiscoveryError:
        raise
    except Exception as error:  # no network, no such model, no access: each has its own
        why = f"there is no folder {text}, and the hub did not give it ({one_line(error)})"
        raise CircuitDiscoveryError(f"{_no_model(text)}; {why}") from error


# what TransformerLens and papers call models, for the families that are supported
_ALSO_CALLED = {"gpt2-small": "gpt2"} | {
    f"attn-only-{n}l": f"NeelNanda/Attn_Only_{n}L512W_C4_Code" for n in range(1, 5)
}
_MAKERS = {
    "pythia": "EleutherAI", "smollm": "HuggingFaceTB", "qwen2": "Qwen", "mistral-7b": "mistralai",
    "llama-3": "meta-llama", "llama-2": "meta-llama", "tinyllama": "TinyLlama",
}  # fmt: skip


def _listed() -> str:
    return (
        f"a folder, a {GGUF} or {PTH} file, a hub name (such as EleutherAI/pythia-70m) or a bundled model "
        f"({', '.join(bundled_models())})"
    )


def _no_model(name: str) -> str:
    known = _ALSO_CALLED.get(name.lower())
    maker = next((maker for start, maker in _MAKERS.items() if name.lower().startswith(start)), None)
    known = known or (f"{maker}/{name}" if maker else None)
    near = difflib.get_close_matches(name, bundled_models(), n=1, cutoff=0.5)
    hint = known or (near[0] if near else None)
    return (
        f"no model {name!r}; {f'did you mean {hint!r}? ' if hint else ''}Valid bundled models: "
        f"{', '.join(bundled_models())}"
    )


def _given_tokenizer(given: Any) -> Any:
    """A tokenizer; a folder's or a name's is read."""
    if given is None or callable(given):
        return given
    if not isinstance(given, str | Path):
        raise CircuitDiscoveryError(
            "a tokenizer is Hugging Face's, a folder or a name that has one, or None for a model without, "
            f"not {shown(given)}"
        )
    folder, name = Path(given).expanduser(), str(given)
    if name in bundled_models() or not is_folder(folder):
        folder, name = located(given, weights=False)
    found = read_tokenizer(folder, name)
    if found is None:
        raise CircuitDiscoveryError(f"{name}: there is no tokenizer in it")
    return found


def _object_name(hf: Any) -> str:
    path = getattr(getattr(hf, "config", None), "_name_or_path", "")
    if not path:
        return type(hf).__name__
    return Path(path).resolve().name if Path(path).is_dir() else str(path)
