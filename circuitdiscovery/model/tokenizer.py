"""The tokenizer of a model folder, read so that nothing in it can run, and checked to encode text."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from circuitdiscovery.errors import CircuitDiscoveryError, one_line, shown, unknown
from circuitdiscovery.files.disk import read_json
from circuitdiscovery.model.config import CONFIG, refuse_code

TOKEN_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
)  # that describe added tokens
TOKEN_FIELDS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")


def read_tokenizer(folder: Path, name: str) -> Any:
    """The folder's tokenizer, None where it has none, checked to encode text to something.

    A folder whose tokenizer is of another class than its architecture's can load as that class and encode
    text to nothing; its tokenizer.json is then read as it stands. Code of its own is refused where
    transformers has no class for its kind of model, or none that reads its files.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    file, config = folder / "tokenizer.json", "tokenizer_config.json"
    told, model = (_object(folder / each, name) for each in (config, CONFIG))
    refuse_code(told, config, name, model.get("model_type"))
    _refuse_token_fields(folder, name)
    if not file.exists() and not list(folder.glob("*token*")):
        return None
    safe: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    loaders: list[Callable[[], Any]] = [lambda: AutoTokenizer.from_pretrained(str(folder), **safe)]
    if file.exists():
        loaders.append(lambda: PreTrainedTokenizerFast.from_pretrained(str(folder), **safe))
    problem = ""
    for loader in loaders:
        try:
            tokenizer = loader()
            if encodes(tokenizer):
                return tokenizer
            problem = "it encodes text to nothing"
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # each class fails in its own way; one in Rust can panic
            problem = one_line(error)
    refuse_code(told, config, name, None)
    raise CircuitDiscoveryError(f"{name}: the tokenizer cannot be used: {problem}")


def _object(path: Path, name: str) -> Mapping[str, Any]:
    """What a JSON file says; nothing where there is none."""
    data = read_json(path) if path.is_file() else {}
    if not isinstance(data, dict):
        raise CircuitDiscoveryError(f"{name}: {path.name} must be an object, not {type(data).__name__}")
    return data


def _refuse_token_fields(folder: Path, name: str) -> None:
    """Refuse fields of added tokens that the package tokenizers does not know: it
    says so on standard output, where results go.
    """
    for file in TOKEN_FILES:
        for token in _added_tokens(folder / file):
            for field in token:
                if field not in (*TOKEN_FIELDS, "id", "__type"):
                    told = unknown("field", str(field), TOKEN_FIELDS)
                    raise CircuitDiscoveryError(
                        f"{name}: {file}: of the token {shown(token['content'])}: {told}"
                    )


def _added_tokens(path: Path) -> Iterator[Mapping[str, Any]]:
    """The objects in a tokenizer's file that describe a token. Broken JSON has none: loading refuses it."""
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return
    left = [data.get("added_tokens") if path.name == "tokenizer.json" and isinstance(data, dict) else data]
    while left:
        value = left.pop()
        if isinstance(value, dict) and "content" in value:
            yield value
        elif isinstance(value, dict | list):
            left += value.values() if isinstance(value, dict) else value


def tokenizer_of(source: str) -> Any:
    """The tokenizer of the folder or the hub's model that an object came from;
    None where it has none that can be used.
    """
    from transformers import AutoTokenizer

    try:
        if Path(source).is_dir():
            return read_tokenizer(Path(source), source)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        return tokenizer if encodes(tokenizer) else None
    except Exception:  # an object does not need one
        return None


def bridges_own(tokenizer: Any) -> Any:
    """A copy of a tokenizer for TransformerLens, which gives it tokens that it lacks and, but for
    what is said here, looks for another one by its name.
    """
    own = copy.deepcopy(tokenizer)
    if own is not None:
        own.init_kwargs |= {"add_bos_token": True, "name_or_path": own.name_or_path}
    return own


def encodes(tokenizer: Any) -> bool:
    """Whether text becomes more than the special tokens that an empty string has."""
    return len(tokenizer("the cat").input_ids) > len(tokenizer("").input_ids)
