"""Fixtures: tiny random models of every supported architecture, prompts for
them, and the folder with shared test data.
"""

from __future__ import annotations

import gc
import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: no test may touch the network

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fixture import Agreement
from tiny import ARCHITECTURES, CONFIGS, REAL, VOCABULARY, Tiny, save_tiny

from circuitdiscovery import registry
from circuitdiscovery.files.disk import data_folder
from circuitdiscovery.model.load import load_model

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first in each worker's part of the list (pytest-xdist deals out equal parts,
    and who has done his takes from the end of another's), so that no slow test is left at the end. A file
    stays together, because its tests share what they set up.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    slow = [file for file in files.values() if any(item.get_closest_marker("slow") for item in file)]
    rest = [item for file in files.values() if file not in slow for item in file]
    found: list[pytest.Item] = []
    for number in range(workers):
        found += [item for file in slow[number::workers] for item in file]
        room = max(0, len(items) * (number + 1) // workers - len(found))
        found, rest = found + rest[:room], rest[room:]
    items[:] = found


@pytest.fixture(autouse=True, scope="session")
def _threads() -> Iterator[None]:
    """One thread: the models are too small for more, and the same
    bytes need the same count; no progress bars.
    """
    from transformers.utils import logging

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    # half a million objects of torch and transformers stay: looking through them for garbage, again and
    # again, is a twelfth of the time
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _modules_of_users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A module that a test wrote and imported is forgotten with it: the next
    test may write another of the same name.
    """
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(
            str(tmp_path_factory.getbasetemp())
        ):
            del sys.modules[name]


TABLES = (
    *(registry.METHODS, registry.METRICS, registry.ABLATIONS, registry.ARCHITECTURES),
    *(registry.GENERATORS, registry.SUITES, registry.PANELS),
)


@pytest.fixture(autouse=True)
def _registry() -> Iterator[None]:
    """What a test or a page of the documentation enters is taken out again: pages of runs would show it."""
    before = [dict(table) for table in TABLES]
    yield
    for table, entries in zip(TABLES, before, strict=True):
        if table != entries:
            table.clear()
            table.update(entries)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared test data beside the repository; tests that need it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"the folder {SHARED.name!r} beside the repository is absent")
    return SHARED


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer of 101 words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    folder = tmp_path_factory.mktemp("words")
    special = {"unk_token": "w0", "bos_token": "w1", "eos_token": "w1", "pad_token": "w1"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tinies(tmp_path_factory: pytest.TempPathFactory, words: Path) -> Callable[[str], Tiny]:
    """Every model by name, made once."""
    made: dict[str, Tiny] = {}

    def get(name: str) -> Tiny:
        if name not in made:
            made[name] = Tiny(name, _folder(name, tmp_path_factory), words)
        return made[name]

    return get


def _folder(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if name in CONFIGS:
        return save_tiny(tmp_path_factory.mktemp(name), name)
    folder = SHARED / "models" / name if name != "toy" else data_folder("models") / name
    if not (folder / "config.json").is_file():
        pytest.skip(
            f"the model {name!r} is absent: no {folder.parent.parent.name}/{folder.parent.name}/{name}"
        )
    return folder


@pytest.fixture(scope="session", params=ARCHITECTURES)
def tiny(request: pytest.FixtureRequest, tinies: Callable[[str], Tiny]) -> Tiny:
    """Each tiny random model in turn."""
    return tinies(request.param)


@pytest.fixture(scope="session", params=ARCHITECTURES + REAL)
def any_model(request: pytest.FixtureRequest, tinies: Callable[[str], Tiny]) -> Tiny:
    """Each tiny random model and each trained one in turn."""
    return tinies(request.param)


@pytest.fixture(scope="session")
def gpt2(tinies: Callable[[str], Tiny]) -> Tiny:
    """The tiny random GPT-2."""
    return tinies("gpt2")


@pytest.fixture(scope="session")
def llama(tinies: Callable[[str], Tiny]) -> Tiny:
    """The tiny random Llama with grouped attention."""
    return tinies("llama")


@pytest.fixture(scope="session")
def toy() -> Any:
    """The bundled toy model with its tokenizer."""
    return load_model("toy")


@pytest.fixture(scope="session")
def agreement(shared: Path, words: Path) -> Agreement:
    """The agreement fixture."""
    folder = shared / "fixtures" / "agreement"
    return Agreement(Tiny("agreement", folder / "model", words), folder)
