"""What a real model says of its own stream: Patchscopes per layer, beside the logit lens.

    python benchmarks/real_patchscopes.py [--model smollm2-135m] [--prompts 120] [--out runs/real-patchscopes]
        [--page docs/real-patchscopes.md]

Sources are paragraphs of Python's language reference (pydoc), each cut at a random token. Every reading and
layer into which streams are put is kept in the folder when it is done: a run that was stopped goes on with the
next one. Another version of Python, whose prompts are others, needs another folder.
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
from pages import check, show
from real_models import MODELS, folder_of

import circuitdiscovery as cd
from circuitdiscovery.measure import intervals
from circuitdiscovery.measure.estimates import Estimate, weights

READINGS = ("?", "->")
SHORTEST, LONGEST = 8, 32  # tokens of a source
STEP = 4  # layers between those of the tables of pairs
INTO = (3, 20)
PARAGRAPH = re.compile(r"[A-Z][a-z]+ [a-z]")
SYMBOLS = re.compile(r"[>=|*\[\]{}~]|::|\.\.\.")


def paragraphs() -> list[str]:
    """Prose of Python's language reference."""
    found = dict[str, None]()
    for _, text in sorted(topics.items()):
        for part in re.split(r"\n\s*\n", text):
            words = " ".join(part.split())
            prose = PARAGRAPH.match(words) and words[-1] in ".:" and not SYMBOLS.search(words)
            if prose and len(words.split()) >= 20:
                found[words] = None
    return list(found)


def sources(model: cd.Model, count: int) -> list[list[int]]:
    """Token ids: paragraphs, each cut at a random token."""
    rng = random.Random(0)
    chosen = rng.sample(paragraphs(), count)
    tokenizer: Any = model.tokenizer
    return [tokenizer(text).input_ids[: rng.randint(SHORTEST, LONGEST)] for text in chosen]


def patched(
    model: cd.Model, prompts: list[list[int]], read: str, into: int | None, folder: Path
) -> cd.features.Patchscope:
    """A reading into one layer, or where it was taken, made or read.

    Into the last layer, where only the last norm and the unembedding follow, it is the logit lens.
    """
    asked, last = "next" if read == "?" else "current", model.n_layers
    path = folder / f"{asked}-{'same' if into is None else into}-{len(prompts)}.json"
    if path.exists():
        return cd.features.Patchscope.load(path)
    how: dict[str, Any] = {"read": read}
    if into is None or into == last:
        layers = range(last + (read == "?" or into == last))
    else:
        layers = range(2, last, STEP)
    if into == last and read != "?":
        how = {"expected": [prompt[-1] for prompt in prompts]}
    found = cd.features.patchscope(model, prompts, layers, into=into, **how)
    folder.mkdir(parents=True, exist_ok=True)
    found.save(path)
    return found


def share(ranks: Any, k: int) -> Estimate:
    return intervals.share(int((np.asarray(ranks) < k).sum()), len(ranks))


def tables(model: cd.Model, count: int, folder: Path) -> Iterator[str]:
    """Lines of Markdown."""
    prompts = sources(model, count)
    pairs = [(read, into) for into in (None, model.n_layers, *INTO) for read in READINGS]
    found = {(read, into): patched(model, prompts, read, into, folder) for read, into in pairs}
    draws = weights(count, 0)
    same, arrow = found["?", None], found["->", None]
    lens, lens_current = (found[read, model.n_layers] for read in READINGS)
    assert same.surprisals is not None and lens.surprisals is not None
    yield "### Into the same layer"
    yield ""
    yield "| layer | next @1 | lens | next @1 - lens | next @5 | lens | surprisal | lens | current @1 | lens |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for layer in range(model.n_layers + 1):
        ours = same.ranks[layer]
        hits = [(np.array(each) < 1).astype(float) for each in (ours, lens.ranks[layer])]
        cells = [
            *(share(ours, 1), share(lens.ranks[layer], 1), intervals.difference(hits[0], hits[1], draws)),
            *(share(ours, 5), share(lens.ranks[layer], 5)),
            *intervals.means(np.stack([same.surprisals[layer], lens.surprisals[layer]]), draws, skewed=True),
            share(arrow.ranks[layer], 1) if layer < model.n_layers else "",
            share(lens_current.ranks[layer], 1),
        ]
        yield f"| {layer} | {' | '.join(map(_cell, cells))} |"
    for read, title in (("?", "Next token, @1"), ("->", "Current token, @1")):
        layers = [int(each.removeprefix("resid")) for each in found[read, INTO[0]].at]
        yield ""
        yield f"### {title}, from a layer (rows) into another (columns)"
        yield ""
        yield f"| from | same | {' | '.join(f'into {into}' for into in INTO)} |"
        yield f"| --- | {' | '.join('---' for _ in range(len(INTO) + 1))} |"
        for i, layer in enumerate(layers):
            rows = [found[read, None].ranks[layer], *(found[read, into].ranks[i] for into in INTO)]
            yield f"| {layer} | {' | '.join(f'{float(share(row, 1)):.2f}' for row in rows)} |"
    yield ""


def _cell(value: Any) -> str:
    if not isinstance(value, Estimate):
        return str(value)
    return f"{float(value):.2f} [{value.low:.2f}, {value.high:.2f}]"


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables, or write them into a page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, default="smollm2-135m")
    parser.add_argument("--prompts", type=int, default=120)
    parser.add_argument("--out", type=Path, default=Path("runs/real-patchscopes"))
    parser.add_argument("--page", type=Path, help="write the tables into this page, between its marks")
    given = parser.parse_args(argv)
    check(given.page)
    model = cd.load_model(folder_of(MODELS[given.model]))
    show("\n".join(tables(model, given.prompts, given.out)), given.page)


if __name__ == "__main__":
    main()
