"""The table of docs/models.md: for each family a model on the hub, its size, and the memory of EAP.

    python benchmarks/models_table.py [--page docs/models.md]

The sizes are those of the model that is named; nothing is downloaded. The memory, beside the weights, is the
estimate of `cd.plan`, of EAP on 16 prompts of 16 tokens with weights in bfloat16.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pages import check, show

from circuitdiscovery.model.model import Model
from circuitdiscovery.model.outline import of_config, of_hooked
from circuitdiscovery.registry.families import FAMILIES
from circuitdiscovery.search.cost import estimated
from circuitdiscovery.task.task import Task

EXAMPLES, LENGTH = 16, 16
# family -> a model on the hub, and the sizes in its config.json that are not transformers' defaults. The
# comments say where that config was read: litgpt is litgpt/config.py of Lightning-AI/litgpt, mlc is
# python/mlc_llm/model/model_preset.py of mlc-ai/mlc-llm.
NAMED: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("openai-community/gpt2", {}),  # mlc
    "llama": ("meta-llama/Llama-2-7b-hf", {}),  # litgpt
    "mistral": ("mistralai/Mistral-7B-v0.1", {}),  # litgpt
    "qwen2": (  # mlc
        "Qwen/Qwen2-7B",
        {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
         "num_key_value_heads": 4, "vocab_size": 152064},
    ),
    "qwen3": (  # litgpt
        "Qwen/Qwen3-8B", {"intermediate_size": 12288, "num_hidden_layers": 36, "num_key_value_heads": 8}
    ),
    "smollm3": ("HuggingFaceTB/SmolLM3-3B", {}),  # config.json of models trained further from it
    "phi3": ("microsoft/Phi-3-mini-4k-instruct", {}),  # litgpt
    "granite": (  # config.json of its copy unsloth/granite-3.2-2b-instruct
        "ibm-granite/granite-3.2-2b-instruct",
        {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 40, "num_key_value_heads": 8,
         "vocab_size": 49155, "tie_word_embeddings": True},
    ),
    "gemma": ("google/gemma-7b", {}),  # litgpt
    "gemma2": ("google/gemma-2-2b", {}),  # litgpt, mlc
    "gemma3_text": (  # its own config.json
        "google/gemma-3-270m",
        {"hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18, "num_attention_heads": 4,
         "num_key_value_heads": 1, "vocab_size": 262144},
    ),
    "olmo2": ("allenai/OLMo-2-1124-7B", {"vocab_size": 100352}),  # litgpt, mlc
    "olmo3": ("allenai/Olmo-3-1025-7B", {"vocab_size": 100278}),  # gives its page's 7,298,011,136 weights
    "mixtral": ("mistralai/Mixtral-8x7B-v0.1", {}),  # litgpt
    "qwen2_moe": ("Qwen/Qwen1.5-MoE-A2.7B", {}),  # mlc
    "qwen3_moe": ("Qwen/Qwen3-30B-A3B-Base", {"num_hidden_layers": 48}),  # litgpt
    "olmoe": ("allenai/OLMoE-1B-7B-0924", {"intermediate_size": 1024}),  # its own config.json
    "gpt_oss": (  # config.json of its copy EchoCog/gpt-oss-20b
        "openai/gpt-oss-20b", {"num_hidden_layers": 24, "num_local_experts": 32}
    ),
    "stablelm": ("stabilityai/stablelm-3b-4e1t", {}),  # litgpt
    "cohere": (  # mlc
        "CohereForAI/aya-23-8B",
        {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
         "num_key_value_heads": 8},
    ),
    "gpt_neox": (  # litgpt
        "EleutherAI/pythia-160m",
        {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
         "vocab_size": 50304},
    ),
    "gpt_neo": ("EleutherAI/gpt-neo-1.3B", {}),  # config.json of its copy unrahul/gpt-neo-1.3B-OpenVINO-fp16
    "opt": ("facebook/opt-125m", {}),  # its config.json, as public notes print it
    "phi": ("microsoft/phi-1_5", {}),  # litgpt, mlc
    "gptj": ("EleutherAI/gpt-j-6B", {}),  # mlc
    "falcon": ("tiiuae/falcon-7b", {}),  # litgpt
    "bloom": (  # its config.json, as public notes print it
        "bigscience/bloom-560m", {"hidden_size": 1024, "n_layer": 24, "n_head": 16}
    ),
    "mpt": (  # config.json of its copy OpenVINO/mpt-7b-int8-ov
        "mosaicml/mpt-7b", {"d_model": 4096, "n_layers": 32, "n_heads": 32, "vocab_size": 50432}
    ),
    "transformer_lens_native": (  # solu/training/train_model_ddp.py of neelnanda-io/solu_project
        "NeelNanda/Attn_Only_2L512W_C4_Code",
        {"n_layers": 2, "d_model": 512, "n_heads": 8, "d_head": 64, "n_ctx": 1024, "d_vocab": 48262,
         "attn_only": True},
    ),
}  # fmt: skip


def prompts(vocabulary: int) -> Task:
    """So many of this length; which tokens does not matter."""
    tokens = [[i % vocabulary for i in range(LENGTH)]] * EXAMPLES
    return Task.from_tokens(clean=tokens, corrupted=tokens, correct=[0] * EXAMPLES, incorrect=[1] * EXAMPLES)


def outlined(kind: str) -> Model:
    """The model that is named for a family, without its weights."""
    from transformers import CONFIG_MAPPING

    name, sizes = NAMED[kind]
    if kind not in CONFIG_MAPPING:  # TransformerLens' own
        return of_hooked(sizes, name, "bfloat16")
    config: Any = CONFIG_MAPPING[kind]
    return of_config(config(**sizes), name, "bfloat16")


def rows() -> Iterator[str]:
    """Lines of Markdown."""
    yield "| family | what it is | for example | weights | edges | EAP needs |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for kind, (_, words) in FAMILIES.items():
        model = outlined(kind)
        plan = estimated(model, prompts(model.vocab_size), 1.0)
        size, memory = plan.weights / 1e9, plan.costs["eap"].gigabytes
        weights = f"{size:.2g} billion" if size < 100 else f"{size:.0f} billion"
        yield f"| `{kind}` | {words} | `{model.name}` | {weights} | {plan.edges:,} | {memory:.2g} GB |"


def main() -> None:
    """Print the table, or write it into the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--page", type=Path, help="write the table into this page, between its marks")
    given = parser.parse_args()
    check(given.page)
    text = "\n".join([*rows(), ""])
    show(text, given.page)


if __name__ == "__main__":
    main()
