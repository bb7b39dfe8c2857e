"""Where tasks/, graphs/ and models/ are, in a checkout and in a wheel, and how files are read and written.

Reading is strict: a file that was read is complete and has only finite numbers. Writing is atomic: a file
that exists was written to its end.
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from circuitdiscovery.errors import CircuitDiscoveryError

if TYPE_CHECKING:
    import pandas as pd

PACKAGE = Path(__file__).resolve().parent.parent
Kind = Literal["tasks", "graphs", "models"]
_PATTERNS: dict[Kind, str] = {"tasks": "*.toml", "graphs": "*/*.json", "models": "*/config.json"}
GGUF = ".gguf"  # the suffix of a model file of llama.cpp
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")  # a model on the Hugging Face hub
MAX_DEPTH = 64  # of nested JSON: our files are at most 6 deep, and Python's functions fail at about 1000


def data_folder(kind: Kind) -> Path:
    """The folder of the bundled tasks, graphs or models.

    Models are part of the package. Tasks and graphs are in `_data/` of an installed wheel, and next to the
    package in a checkout.
    """
    if kind == "models":
        return PACKAGE / "models"
    installed = PACKAGE / "_data" / kind
    return installed if installed.is_dir() else PACKAGE.parent / kind


def shipped(kind: Kind) -> list[str]:
    """The names of the bundled tasks (`ioi`), graphs (`gpt2/ioi`) or models (`toy`), sorted.

    >>> shipped("tasks")[:2]
    ['addition', 'capitals']
    """
    folder = data_folder(kind)
    files = (path.relative_to(folder) for path in folder.glob(_PATTERNS[kind]))
    return sorted((path.parent if kind == "models" else path.with_suffix("")).as_posix() for path in files)


def needs_gguf(name: str) -> None:
    """Raise an error if the package that reads GGUF files is not installed."""
    if find_spec("gguf") is None:
        raise CircuitDiscoveryError(
            f"{name}: reading GGUF needs the package gguf, which is not installed: pip install "
            "'circuitdiscovery[gguf]'"
        )


def data_frame(rows: Any, **options: Any) -> pd.DataFrame:
    """A DataFrame; an error if pandas is not installed."""
    try:
        import pandas as pd
    except ImportError:
        raise CircuitDiscoveryError(
            "to_dataframe needs pandas: pip install 'circuitdiscovery[pandas]'"
        ) from None
    return pd.DataFrame(rows, **options)


# ------------------------------------------------------------------- reading


def can_be_a_path(name: str | Path) -> bool:
    """Whether a file could have this name.

    >>> can_be_a_path("runs/toy"), can_be_a_path("a" * 5000), can_be_a_path("a" + chr(0)), can_be_a_path("")
    (True, False, False, False)
    """
    try:
        parts = os.fsencode(name).split(b"/")
    except (UnicodeError, ValueError):
        return False
    return (
        parts != [b""]
        and all(len(part) <= 255 and b"\0" not in part for part in parts)
        and sum(map(len, parts)) + len(parts) <= 4096
    )


def expanded(path: str | Path) -> Path:
    """The path, with ~ as a shell expands it, which leaves --out=~/x as it is.

    Raises:
        CircuitDiscoveryError: an empty path; the home of somebody whom the system does not know.
    """
    if not str(path):
        raise CircuitDiscoveryError("an empty text is no path (the current folder is .)")
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise CircuitDiscoveryError(f"{path}: there is no such home folder") from None


def circuit_place(text: str) -> str:
    """Where a circuit is: a shipped name, or the whole path of a file or a folder.

    Raises:
        CircuitDiscoveryError: nothing there.
    """
    if text in shipped("graphs"):
        return text
    if not can_be_a_path(text) or not (path := expanded(text)).exists():
        raise CircuitDiscoveryError(f"{text[:100]!r} is neither a file, a folder nor a shipped circuit")
    return str(path.resolve())


def is_folder(path: str | Path) -> bool:
    """Whether this folder exists; False for a name that no folder can have."""
    return can_be_a_path(path) and os.path.isdir(path)


def read_arrays(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a .safetensors file.

    Args:
        path: the file.

    Returns:
        The header that this package wrote (empty in a file of other origin), and the arrays by name.

    Raises:
        CircuitDiscoveryError: a file that cannot be read, or is not a .safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            header = (file.metadata() or {}).get("circuitdiscovery", "null")
            arrays = {name: file.get_tensor(name) for name in list(file.keys())}
    except (OSError, SafetensorError, TypeError, ValueError) as error:
        raise CircuitDiscoveryError(f"cannot read {path}: {error}") from None
    try:
        told = json.loads(header)
    except (ValueError, RecursionError):
        told = None
    return told if isinstance(told, dict) else {}, arrays


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file; a missing file, an empty one or one that is not text is an error."""
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:  # a name with a NUL byte is a ValueError
        raise _cannot("read", path, error) from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise CircuitDiscoveryError(f"{path}, line {line}: not UTF-8 text") from None
    if not text.strip():
        raise CircuitDiscoveryError(f"{path} is empty")
    return text


def read_json(path: str | Path) -> Any:
    """The value of a JSON file, read strictly.

    Broken JSON, NaN, infinite numbers, a repeated name in one object and more than 64 levels of nesting are
    errors that name the file and, if known, the line.
    """
    text = read_text(path)
    try:
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise CircuitDiscoveryError(f"{path}, line {error.lineno}: not JSON: {error.msg}") from None
    except _NotFinite as error:
        raise CircuitDiscoveryError(
            f"{path}, line {_line(text, str(error))}: {error} is not a finite number"
        ) from None
    except CircuitDiscoveryError as error:
        raise CircuitDiscoveryError(f"{path}: {error}") from None
    except (RecursionError, MemoryError):
        raise _too_deep(path) from None
    except ValueError:  # an integer of thousands of digits
        raise CircuitDiscoveryError(f"{path}: a number is too long") from None
    if _deeper_than(value, MAX_DEPTH):
        raise _too_deep(path)
    return value


class _NotFinite(Exception):
    """The message is the number as the file has it."""


def _refuse(literal: str) -> NoReturn:
    raise _NotFinite(literal)


def _finite(literal: str) -> float:
    value = float(literal)
    return value if math.isfinite(value) else _refuse(literal)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) == len(pairs):
        return value
    names = [name for name, _ in pairs]
    twice = next(name for name in names if names.count(name) > 1)
    raise CircuitDiscoveryError(f"{twice!r} stands twice in one object")


def _line(text: str, literal: str) -> int:
    """The line of the first occurrence of `literal` as a token, not inside a string."""
    for token in re.finditer(r'"[^"\\]*(?:\\.[^"\\]*)*"|[^\s\[\]{},:"]+', text):
        if token[0] == literal:
            return text.count("\n", 0, token.start()) + 1
    return 1


def _deeper_than(value: Any, limit: int) -> bool:
    level: list[Any] = [value]
    for _ in range(limit + 1):
        level = [child for node in level for child in _children(node)]
        if not level:
            return False
    return True


def _children(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _too_deep(path: str | Path) -> CircuitDiscoveryError:
    return CircuitDiscoveryError(f"{path}: nested deeper than {MAX_DEPTH} levels")


# ------------------------------------------------------------------- writing


def write_atomically(path: str | Path, data: str | bytes, *, new: bool = False) -> None:
    """Write a file completely or not at all: to a temporary file next to it, which is then renamed.

    If anything goes wrong (a full disk, Ctrl-C), the old file at `path` stays as it was and no partial file
    is left. Where it has to be a `new` file, one that is there already is a FileExistsError: of several
    processes one writes it.
    """
    path = expanded(path)
    try:
        if path.exists() and not path.is_file():
            raise CircuitDiscoveryError(f"cannot write {path}: it is not a regular file")
        if not path.parent.exists():
            raise CircuitDiscoveryError(f"cannot write {path}: there is no folder {path.parent}")
    except OSError as error:  # a name that is too long
        raise _cannot("write", path, error) from None
    # of a name that may be as long as names can be
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            temporary.write_bytes(data.encode() if isinstance(data, str) else data)
            (_name_new if new else os.replace)(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except FileExistsError:
        raise
    except (OSError, ValueError) as error:
        raise _cannot("write", path, error) from None


def _name_new(temporary: Path, path: Path) -> None:
    """Rename a file where nothing has the name yet."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        path.open("xb").close()
        try:
            os.replace(temporary, path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    temporary.unlink(missing_ok=True)


def ending(path: str | Path, *valid: str) -> str:
    """The ending of a file's name in lower case; an error if it is not one of the valid endings.

    >>> ending("a.JSON", ".json", ".safetensors")
    '.json'
    """
    found = Path(path).suffix.lower()
    if found not in valid:
        either = " or ".join(filter(None, (", ".join(valid[:-1]), valid[-1])))
        raise CircuitDiscoveryError(f"{path} must end in {either}")
    return found


def to_json(value: Any) -> str:
    """JSON text, the same for the same value; NaN and infinite numbers are a ValueError."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: str | Path, value: Any, *, new: bool = False) -> None:
    """`to_json(value)`, written atomically."""
    write_atomically(path, to_json(value), new=new)


def _cannot(verb: str, path: str | Path, error: OSError | ValueError) -> CircuitDiscoveryError:
    return CircuitDiscoveryError(f"cannot {verb} {path}: {getattr(error, 'strerror', None) or error}")
