"""TransformerLens 4's own attribution patching of edges, on the same weights and the first two prompts.

    python benchmarks/peers/transformer_lens_attribution.py FOLDER [--threads 2] [--repetitions 3]

It runs where TransformerLens 4.3 is installed, as in the project's own environment, and prints one JSON
object; F is one plain Hugging Face forward of the same two prompts.

`transformer_lens.tools.analysis.attribution_patch` at edge granularity, on a TransformerBridge without weight
processing: for each prompt a forward on the clean one, a forward and a backward on the corrupted one, and a
score for every edge at every position, which Python loops over. It has one metric for all prompts of a call,
so a task whose prompts have answers of their own is one call per prompt; inside, it goes prompt by prompt
too. Summed over positions its scores are those of EAP with the gradient on the corrupted run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from measure import (
    Prompts,
    hugging_face,
    main,
    parser,
    peak_gigabytes,
    peak_in_child,
    refuse_if_different,
    report,
    times,
)
from torch import Tensor

PROMPTS = 2


def save_words(folder: str, count: int) -> None:
    """Write a tokenizer of `count` words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    model = WordLevel({f"w{i}": i for i in range(count)}, unk_token="w0")
    special = dict.fromkeys(("unk_token", "bos_token", "eos_token", "pad_token"), "w0")
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), **special).save_pretrained(folder)


def bridge_of(folder: Path, prompts: Prompts, hf: Any) -> Any:
    """TransformerLens's model of the folder, proved to be Hugging Face's."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerFast

    # the bridge insists on a tokenizer, and reads it from its folder again
    with TemporaryDirectory() as words:
        save_words(words, hf.config.vocab_size)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(words)
        bridge: Any = TransformerBridge.boot_transformers(
            str(folder), dtype=torch.float32, device="cpu", tokenizer=tokenizer
        )
    bridge.eval()
    with torch.no_grad():
        refuse_if_different(bridge(prompts.clean), hf(prompts.clean).logits)
    return bridge


def metric_of(prompt: Prompts) -> Callable[[Tensor], Tensor]:
    """The logit difference of one prompt, from [1, T, vocabulary]."""
    return lambda logits: prompt.logit_diff(logits[:, -1])


def attribute(bridge: Any, prompts: Prompts) -> list[Any]:
    """Each prompt's AttributionResult."""
    from transformer_lens.tools.analysis.attribution_patching import EdgeAttributionConfig, attribution_patch

    config = EdgeAttributionConfig(granularity="edge")
    rows = [slice(row, row + 1) for row in range(len(prompts.clean))]
    each = [
        replace(
            prompts,
            **{name: getattr(prompts, name)[row] for name in ("clean", "corrupted", "correct", "incorrect")},
        )
        for row in rows
    ]
    return [attribution_patch(bridge, one.clean, one.corrupted, metric_of(one), config) for one in each]


def measure(arguments: argparse.Namespace) -> Any:
    """The whole report, or the memory of the row where this is a child process."""
    prompts = Prompts.read(arguments.folder, PROMPTS)
    hf = hugging_face(arguments.folder)
    work = partial(attribute, bridge_of(arguments.folder, prompts, hf), prompts)
    if arguments.memory:
        del hf
        return peak_gigabytes(work)

    @torch.no_grad()
    def forward() -> Any:
        return hf(prompts.clean).logits

    edges = len(work()[0].edge_scores)  # warms up
    spent = times({"F": forward, "attribution_patch": work}, arguments.repetitions)
    positions = prompts.clean.shape[1]
    row = {
        "seconds": median(spent["attribution_patch"]),
        "gigabytes": peak_in_child("attribution_patch"),
        "prompts": PROMPTS,
    }
    row |= {"positions": positions, "edges": edges // positions}
    packages = {"version": "transformer-lens", "transformers": "transformers"}
    return report("TransformerLens", arguments, median(spent["F"]), {"attribution_patch": row}, packages)


if __name__ == "__main__":
    main(parser(__doc__).parse_args(), measure)
