"""Lenses of a real model: KL to the model and recall by layer, and what fitting them costs.

    python benchmarks/real_lenses.py [--model smollm2-135m] [--out runs/real-lenses-MODEL] [--only KIND ...]
    [--pieces 320] [--held-out 16] [--page docs/real-lenses.md]

The text is English that every Python installation has: the language's own help topics and the descriptions of
the installed packages, of both the paragraphs that read as prose. A topic or package is wholly to fit on or
wholly held out; each is cut into pieces of 64 tokens.

Every lens, and every reading of one, is a file in the folder, written when it is done; a run that was stopped
goes on with the next one, a training from its last layer. With --page the tables go into the page, and the
picture beside it. F is one Hugging Face forward of the pieces that are fitted on; all in CPU time, so that
what else the machine does matters little.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
import zlib
from collections.abc import Iterator, Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch
from pages import check, show
from real_models import MODELS, folder_of

import circuitdiscovery as cd
from circuitdiscovery.features.lens_reading import plotted
from circuitdiscovery.files.disk import write_json

f = cd.features
LENSES = {
    "logit": {"kind": "logit"},
    "linear": {"kind": "linear"},
    "tuned": {"kind": "tuned"},
    **{f"future{ahead}": {"kind": "future", "ahead": ahead} for ahead in (1, 2, 3)},
    "attention": {"kind": "attention"},
}
TASKS = ("ioi", "subject_verb_agreement", "capitals")
LENGTH = 64  # tokens of a piece
HELD_OUT = 5  # one topic or package in so many
LETTERS = 0.93  # of a paragraph's characters, where it is prose
WORDS = 25  # of a paragraph, at least
EVERY = 3  # layers in the table


def prose(text: str) -> str:
    """The paragraphs of a text that read as English."""
    found = []
    for part in re.split(r"\n\s*\n", text):
        words = " ".join(part.split())
        letters = sum(c.isalpha() or c in " ,.;'" for c in words)
        if len(words.split()) >= WORDS and letters > LETTERS * len(words):
            found.append(words)
    return " ".join(found)


def documents() -> dict[str, str]:
    """name -> text: Python's help topics, and the descriptions of the installed packages."""
    from pydoc_data.topics import topics

    found = {f"topic {name}": prose(text) for name, text in topics.items()}
    for each in distributions():
        headers = each.metadata.json  # the description is one of them, wherever it stands in the file
        found[f"package {headers['name']}"] = prose(str(headers.get("description", "")))
    return {name: text for name, text in sorted(found.items()) if text}


def pieces(model: cd.Model) -> tuple[list[list[int]], list[list[int]]]:
    """(to fit on, held out): rows of 64 token ids, shuffled."""
    parts: tuple[list[list[int]], list[list[int]]] = [], []
    for name, text in documents().items():
        ids = model.tokenizer.backend_tokenizer.encode(text).ids
        rows = [ids[i : i + LENGTH] for i in range(0, len(ids) - LENGTH + 1, LENGTH)]
        parts[zlib.crc32(name.encode()) % HELD_OUT == 0].extend(rows)
    for rows in parts:
        random.Random(0).shuffle(rows)
    return parts


def one_f(folder: Path, rows: Sequence[Sequence[int]], some: int = 64) -> float:
    """The CPU seconds of one Hugging Face forward of some rows, counted up to all of them."""
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    start = time.process_time()
    with torch.no_grad():
        for i in range(0, some, 16):
            network(torch.tensor(rows[i : i + 16]))
    return (time.process_time() - start) * len(rows) / some


def shown(done: int, total: int) -> None:
    """How far a work is."""
    print(f"{done:,} of {total:,}", end="\r", flush=True)


def fitted(model: cd.Model, name: str, rows: Sequence[Sequence[int]], out: Path) -> Any:
    """A lens, from its folder where it is there."""
    folder = out / name
    if (folder / "lens.json").exists():
        return f.Lens.load(folder, model)
    out.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = dict(LENSES[name])
    if options["kind"] in ("tuned", "attention"):
        options["state"] = out / f"{name}.state"
    start = time.process_time()
    lens = f.lens(model, fit_on=None if name == "logit" else rows, progress=shown, **options)
    write_json(out / f"{name}-cost.json", {"seconds": time.process_time() - start})
    lens.save(folder)
    return lens


def read(lens: Any, on: Any, file: Path) -> dict[str, Any]:
    """A reading as JSON, from its file where it is there."""
    if not file.exists():
        write_json(file, lens.read(on, progress=shown).to_dict())
    return json.loads(file.read_text())


def measured(model: cd.Model, folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Everything: the readings by lens and by what was read."""
    train, held = pieces(model)
    train, held = train[: given.pieces], held[: given.held_out]
    out, found = given.out, dict[str, Any]()
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "f.json").exists():
        tokens = {"tokens": sum(map(len, train)), "held_out": sum(map(len, held))}
        write_json(out / "f.json", {"seconds": one_f(folder, train), **tokens})
    found["f"] = json.loads((out / "f.json").read_text())
    tasks = {name: cd.load_task(name, model, examples=64) for name in TASKS}
    for name in given.only or LENSES:
        lens = fitted(model, name, train, out)
        readings = {"text": read(lens, held, out / f"{name}-text.json")}
        for task in tasks if name in ("logit", "linear", "tuned") else ():
            readings[task] = read(lens, tasks[task], out / f"{name}-{task}.json")
        cost = out / f"{name}-cost.json"
        found[name] = {"seconds": json.loads(cost.read_text())["seconds"]} | readings
    return found


def number(estimate: dict[str, Any]) -> str:
    """A figure of a reading's JSON, short."""
    return f"{estimate['value']:.3g}"


def interval(estimate: dict[str, Any]) -> str:
    """The same with its interval."""
    return f"{estimate['value']:.3g} [{estimate['low']:.3g}, {estimate['high']:.3g}]"


def tables(found: dict[str, Any]) -> Iterator[str]:
    """Lines of Markdown."""
    streams = [name for name in ("logit", "linear", "tuned") if name in found]
    unit, tokens = found["f"]["seconds"], found["f"]
    yield (
        f"Fitted on {tokens['tokens']:,} tokens, measured on {tokens['held_out']:,} of other topics and "
        "packages, without each piece's first."
    )
    yield ""
    yield "| site | " + " | ".join(f"{name}: KL | @1 | @10" for name in streams) + " |"
    yield "| --- |" + " --- |" * (3 * len(streams))
    rows = [found[name]["text"]["sites"] for name in streams]
    for i, first in enumerate(rows[0]):
        if i % EVERY == 0 or i >= len(rows[0]) - 2:
            cells = (
                f"{interval(r[i]['kl'])} | {number(r[i]['recall_1'])} | {number(r[i]['recall_10'])}"
                for r in rows
            )
            yield f"| {first['site']} | {' | '.join(cells)} |"
    yield ""
    yield "| lens | cost of fitting | layers at which KL is below the logit lens's |"
    yield "| --- | --- | --- |"
    plain = rows[0]
    for name in streams[1:]:
        own = found[name]["text"]["sites"]
        below = sum(a["kl"]["value"] < b["kl"]["value"] for a, b in zip(own[:-1], plain[:-1], strict=True))
        seconds = found[name]["seconds"]
        cost = f"{seconds / unit:.1f} F ({seconds / 60:.1f} CPU minutes)"
        yield f"| {name} | {cost} | {below} of {len(own) - 1} |"
    yield ""
    yield from _tasks(found, streams)
    yield from _future(found, unit)
    yield from _heads(found, unit)


def _tasks(found: dict[str, Any], streams: Sequence[str]) -> Iterator[str]:
    yield "Recall@10 of the task's answer, on 64 prompts each:"
    yield ""
    yield "| site | " + " | ".join(f"{task}: {name}" for task in TASKS for name in streams) + " |"
    yield "| --- |" + " --- |" * (len(TASKS) * len(streams))
    sites = [row["site"] for row in found[streams[0]]["text"]["sites"]]
    for i, site in enumerate(sites):
        if i % EVERY == 0 or i == len(sites) - 1:
            cells = (number(found[name][task]["sites"][i]["recall_10"]) for task in TASKS for name in streams)
            yield f"| {site} | {' | '.join(cells)} |"
    yield ""


def _future(found: dict[str, Any], unit: float) -> Iterator[str]:
    names = [name for name in LENSES if name.startswith("future") and name in found]
    if not names:
        return
    yield "Future lens: recall@1 of the model's likeliest token so many tokens later, by site."
    yield ""
    sites = [row["site"] for row in found[names[0]]["text"]["sites"]]
    shown = [i for i in range(len(sites)) if i % EVERY == 0 or i == len(sites) - 1]
    yield "| ahead | " + " | ".join(sites[i] for i in shown) + " | cost |"
    yield "| --- |" + " --- |" * (len(shown) + 1)
    for name in names:
        rows, cost = found[name]["text"]["sites"], found[name]["seconds"] / unit
        cells = (number(rows[i]["recall_1"]) for i in shown)
        yield f"| {name[-1]} | {' | '.join(cells)} | {cost:.1f} F |"
    yield ""


def _heads(found: dict[str, Any], unit: float) -> Iterator[str]:
    if "attention" not in found:
        return
    rows = found["attention"]["text"]["sites"]
    layers = [row for row in rows if "." not in row["site"]]
    heads = sorted((row for row in rows if "." in row["site"]), key=lambda row: row["kl"]["value"])
    yield (
        f"Attention lens ({found['attention']['seconds'] / unit:.1f} F): KL of what each layer's heads write "
        "together, and the heads that say most."
    )
    yield ""
    yield "| layer | KL | recall@10 | | head | KL | recall@10 |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for layer, head in zip(layers[::EVERY], heads, strict=False):
        cells = (
            f"{row['site']} | {interval(row['kl'])} | {number(row['recall_10'])}" for row in (layer, head)
        )
        yield f"| {' | | '.join(cells)} |"
    yield ""


def picture(found: dict[str, Any], path: Path) -> None:
    """KL and recall@10 by layer of the lenses of streams."""
    plotted([found[name]["text"] for name in ("logit", "linear", "tuned")], path)


def main() -> None:
    """Measure what is not in the folder yet, and print the tables or write them into a page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, default="smollm2-135m")
    parser.add_argument("--out", type=Path, help="the folder of what is measured")
    parser.add_argument("--only", nargs="*", choices=LENSES, help="these lenses alone")
    parser.add_argument("--pieces", type=int, default=320, help="of 64 tokens, to fit on")
    parser.add_argument("--held-out", type=int, default=16, help="of 64 tokens, to measure on")
    parser.add_argument("--page", type=Path, help="write the tables into this page, between its marks")
    given = parser.parse_args()
    check(given.page)
    given.out = given.out or Path("runs") / f"real-lenses-{given.model}"
    folder = folder_of(MODELS[given.model])
    found = measured(cd.load_model(folder), folder, given)
    if given.page is not None:
        picture(found, given.page.with_suffix(".png"))
    if given.page is not None or not given.only:
        show("\n".join(tables(found)), given.page)


if __name__ == "__main__":
    main()
