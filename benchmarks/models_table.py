"""The table of docs/models.md: for each family a model on the hub, its size, and what EAP needs beside its weights.

    python benchmarks/models_table.py [--page docs/models.md]

The sizes are those of each family's config in transformers where nothing is said, which need not be those of the
model that is named; nothing is downloaded. The memory is the estimate of `cd.plan`, of EAP on 16
prompts of 16 tokens with weights in bfloat16.
"""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pages import show

from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.families import FAMILIES
from circuitdiscovery.model.outline import of_config
from circuitdiscovery.search.cost import estimated
from circuitdiscovery.task.task import Task

EXAMPLES, LENGTH = 16, 16
# where the model that transformers names is of another kind, or is refused
EXAMPLES_OF = {
    "gemma2": "google/gemma-2-2b",
    "gemma3_text": "google/gemma-3-270m",
    "opt": "facebook/opt-125m",
    "bloom": "bigscience/bloom-560m",
}


def prompts(vocabulary: int) -> Task:
    """So many of this length; which tokens does not matter."""
    tokens = [[i % vocabulary for i in range(LENGTH)]] * EXAMPLES
    return Task.from_tokens(clean=tokens, corrupted=tokens, correct=[0] * EXAMPLES, incorrect=[1] * EXAMPLES)


def rows() -> Iterator[str]:
    """Lines of Markdown."""
    from transformers import CONFIG_MAPPING

    yield "| family | what it is | for example | default size | edges | EAP needs |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for kind, (_, words) in FAMILIES.items():
        if kind not in CONFIG_MAPPING:  # TransformerLens' own
            yield f"| `{kind}` | {words} | `TransformerBridge.boot_native` | | | |"
            continue
        config: Any = CONFIG_MAPPING[kind]
        source = inspect.getsource(inspect.getmodule(config))  # pyright: ignore[reportArgumentType]
        named = re.search(r'checkpoint="([^"]+)"', source)
        example = EXAMPLES_OF.get(kind, named[1] if named else "")
        try:
            model = of_config(config(), kind, "bfloat16")
        except CircuitDiscoveryError:  # the default has what is not computed
            yield f"| `{kind}` | {words} | | | | |"
            continue
        plan = estimated(model, prompts(model.vocab_size), 1.0)
        size, memory = plan.weights / 1e9, plan.costs["eap"].gigabytes
        weights = f"{size:.2g} billion" if size < 100 else f"{size:.0f} billion"
        yield f"| `{kind}` | {words} | `{example}` | {weights} | {plan.edges:,} | {memory:.2g} GB |"


def main() -> None:
    """Print the table, or write it into the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--page", type=Path, help="write the table into this page, between its marks")
    given = parser.parse_args()
    text = "\n".join([*rows(), ""])
    show(text, given.page)


if __name__ == "__main__":
    main()
