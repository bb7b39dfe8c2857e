"""Fixtures: tiny random models of every supported architecture, prompts for them, and the folder with shared test data."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: no test may touch the network

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import circuitdiscovery as cd
from tests.reference import Reference

SHARED = Path(__file__).resolve().parents[2] / "shared"
VOCABULARY = 101
ARCHITECTURES = ("gpt2", "llama", "llama_biased", "mistral", "qwen2", "neox_parallel", "neox_serial")
REAL = ("stories260K", "toy")  # trained models, one outside the repository


@pytest.fixture(autouse=True, scope="session")
def _threads() -> Iterator[None]:
    """Two threads, so that timings and bytes do not depend on the machine; no progress bars."""
    from transformers.utils import logging

    before = torch.get_num_threads()
    torch.set_num_threads(min(2, before))
    logging.disable_progress_bar()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared test data beside the repository; tests that need it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"the folder {SHARED.name!r} beside the repository is absent")
    return SHARED


# ------------------------------------------------------------------ tiny models


def tiny_config(name: str, **changes: Any) -> Any:
    """The Hugging Face config of a tiny model: 3 layers, 4 heads (two groups where grouped), d_model 32, 101 tokens."""
    from transformers import GPT2Config, GPTNeoXConfig, LlamaConfig, MistralConfig, Qwen2Config

    llama: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "bos_token_id": 1,
        "eos_token_id": 1,
    }
    neox = {key: value for key, value in llama.items() if key != "num_key_value_heads"}
    scaled = {
        "rope_type": "llama3",
        "rope_theta": 100.0,
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }
    gpt2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "bos_token_id": 1, "eos_token_id": 1}
    makers: dict[str, Callable[[], Any]] = {
        "gpt2": lambda: GPT2Config(**(gpt2 | changes)),
        "llama": lambda: LlamaConfig(**(llama | changes)),
        "llama_biased": lambda: LlamaConfig(**(llama | {"attention_bias": True, "mlp_bias": True, "rope_parameters": scaled} | changes)),
        "mistral": lambda: MistralConfig(**(llama | changes)),
        "qwen2": lambda: Qwen2Config(**(llama | changes)),
        "neox_parallel": lambda: GPTNeoXConfig(**(neox | {"use_parallel_residual": True} | changes)),
        "neox_serial": lambda: GPTNeoXConfig(**(neox | {"use_parallel_residual": False} | changes)),
    }
    return makers[name]()


def random_model(config: Any, seed: int = 0) -> Any:
    """A Hugging Face causal language model whose every parameter matters: no norm at one, no bias at zero."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.copy_(parameter + 0.3 * noise)
            else:  # queries and keys strong enough for attention to differ from uniform
                fan_in = 4.0 if "wte" in name or "wpe" in name or "embed" in name else float(config.hidden_size)
                parameter.copy_(1.3 * noise / fan_in**0.5)
    return model


def save_tiny(folder: Path, name: str, **changes: Any) -> Path:
    """Write a tiny random model as a Hugging Face folder without a tokenizer."""
    random_model(tiny_config(name, **changes)).save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Prompts:
    """Token pairs and their answers."""

    clean: Tensor  # [N, T]
    corrupted: Tensor  # [N, T]
    correct: Tensor  # [N]
    incorrect: Tensor  # [N]

    def __len__(self) -> int:
        return len(self.clean)

    @cached_property
    def task(self) -> Any:
        """The same as a task."""
        return cd.Task.from_tokens(clean=self.clean, corrupted=self.corrupted, correct=self.correct, incorrect=self.incorrect)


def random_prompts(vocabulary: int, n_examples: int = 5, length: int = 6, seed: int = 0) -> Prompts:
    """Random token pairs; correct and incorrect answers differ."""
    generator = torch.Generator().manual_seed(seed)
    clean, corrupted = torch.randint(vocabulary, (2, n_examples, length), generator=generator)
    correct = torch.randint(vocabulary, (n_examples,), generator=generator)
    incorrect = (correct + 1 + torch.randint(vocabulary - 1, (n_examples,), generator=generator)) % vocabulary
    return Prompts(clean, corrupted, correct, incorrect)


@dataclass(frozen=True)
class Tiny:
    """One model folder, and everything that the tests want of it, made when it is first asked for."""

    name: str
    folder: Path
    words: Path  # a tokenizer, which TransformerBridge insists on

    @cached_property
    def hf(self) -> Any:
        """The Hugging Face model in float32."""
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32).eval()

    @cached_property
    def reference(self) -> Reference:
        """The slow reference in float32."""
        return Reference.boot(self.folder, self.words)

    @cached_property
    def reference64(self) -> Reference:
        """The slow reference in float64."""
        return Reference.boot(self.folder, self.words, dtype=torch.float64)

    @cached_property
    def model(self) -> Any:
        """What is tested."""
        return cd.load_model(self.folder)

    @cached_property
    def prompts(self) -> Prompts:
        """Five pairs of six random tokens."""
        return random_prompts(self.hf.config.vocab_size)


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
    if name in ARCHITECTURES:
        return save_tiny(tmp_path_factory.mktemp(name), name)
    folder = SHARED / "models" / name if name != "toy" else Path(cd.__file__).parent / "models" / name
    if not (folder / "config.json").is_file():
        pytest.skip(f"the model {name!r} is absent")
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
