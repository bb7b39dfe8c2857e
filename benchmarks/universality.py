"""What models have in common, and what it costs to find out.

    python benchmarks/universality.py cost | seeds | features [--page docs/universality.md]
    python benchmarks/universality.py real [--page docs/real-universality.md]

cost      time and memory of comparing 1,024 neurons with 1,024, of random GPT-2s, over two numbers of tokens
seeds     the neurons of `toy` beside those of models that were trained from other seeds, as
          `train_toy.py --seed N --out runs/toy-seeds/N` leaves them; those that are there
features  two dictionaries of the same activations of `toy`, from two seeds, and of two models of two seeds
real      the neurons of SmolLM2-135M beside those of Gemma 3 270M, by characters

Without a word: cost, seeds and features. What was measured is kept in --out, and measured again with --again
or where there are more seeds. F is a Hugging Face forward of the texts through both models; all in CPU time.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pages import check, show
from real_lenses import documents
from real_models import MODELS, folder_of
from toy_text import END, ROOT, document, load_world

import circuitdiscovery as cd
from circuitdiscovery.features.forward import LOGITS, forward
from circuitdiscovery.files.disk import write_json

u, f = cd.universality, cd.features
SEEDS = ROOT / "runs" / "toy-seeds"
TOKENS, VOCABULARY = (100_000, 1_000_000), 607  # of the random models
TOY_TOKENS, REAL_TOKENS = 50_000, 4_000
CONTEXT, WORDS = 64, 60  # tokens of a text of toy's, words of a piece of English
WIDTHS, STEPS = (128, 512), 300  # of dictionaries
EVERY = 4  # one text in so many is run to measure F
SNIPPETS, LONGEST = 2, 90  # of a neuron, and characters of each


def peak() -> int:
    """The most bytes that this process has held since the last call of `fresh`."""
    return int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) * 1024


def fresh() -> int:
    """Forget the peak; the bytes that are held now."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def spent(work: Callable[[], Any]) -> tuple[Any, float, int]:
    """(what it gives, CPU seconds, bytes above those that were held before)."""
    held, start = fresh(), time.process_time()
    found = work()
    return found, time.process_time() - start, peak() - held


def hugging_face(networks: Sequence[Any], rows: Sequence[Sequence[Sequence[int]]], size: int) -> float:
    """CPU seconds of one forward of all rows through each network, so many at once."""
    start = time.process_time()
    with torch.inference_mode():
        for network, own in zip(networks, rows, strict=True):
            for i in range(0, len(own), size):
                network(torch.tensor(own[i : i + size]))
    return time.process_time() - start


def layer_of(name: str) -> int:
    """The layer of a unit."""
    return int(re.findall(r"\d+", name)[0])


def told(found: Any, which: slice | int = slice(None)) -> dict[str, float]:
    """The share above .5 and the medians of the units, beside some of the others."""
    correlation, baseline = (
        np.atleast_2d(each[which]).mean(0) for each in (found.correlation, found.baseline)
    )
    excess = correlation - baseline
    layers = np.array([layer_of(name) for name in found.names])
    medians = {"correlation": correlation, "baseline": baseline, "excess": excess}
    return {
        "share": float((excess > 0.5).mean()),
        **{name: float(np.median(each)) for name, each in medians.items()},
        **{
            f"m{layer}": float((excess[layers == layer] > 0.5).mean()) for layer in sorted({*layers.tolist()})
        },
    }


# ------------------------------------------------------------------ what it costs


def cost() -> dict[str, Any]:
    """Of two random GPT-2s of two layers with 512 neurons each."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes: dict[str, Any] = {"n_positions": CONTEXT, "n_embd": 128, "n_layer": 2, "n_head": 4}
    sizes |= {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}
    networks = [GPT2LMHeadModel(GPT2Config(**sizes)).eval() for _ in range(2)]
    models = [cd.load_model((each, None)) for each in networks]
    u.neurons(*models, [[1, 2, 3]])  # what a first call loads
    found = {}
    for count in TOKENS:
        draw = torch.Generator().manual_seed(0)
        rows = torch.randint(0, VOCABULARY, (count // CONTEXT, CONTEXT), generator=draw).tolist()
        own = time.process_time()
        for model in models:
            for i in range(0, len(rows), 128):
                forward(model, torch.tensor(rows[i : i + 128]), [LOGITS])
        own = time.process_time() - own
        unit = hugging_face(networks, [rows, rows], 128)
        _, seconds, held = spent(lambda rows=rows: u.neurons(*models, rows))
        found[str(count)] = {"seconds": seconds, "f": unit, "own": own, "bytes": held}
    return found


def cost_table(found: dict[str, Any]) -> Iterator[str]:
    """Lines of Markdown."""
    yield "1,024 neurons of one random GPT-2 (2 layers, 4 heads, 128 wide) with the 1,024 of another:"
    yield ""
    yield "| tokens | time | in F | in forwards of this package | memory above the models |"
    yield "| --- | --- | --- | --- | --- |"
    for count, each in found.items():
        shares = f"{each['seconds'] / each['f']:.2f} | {each['seconds'] / each['own']:.2f}"
        yield f"| {int(count):,} | {each['seconds']:.1f} s | {shares} | {each['bytes'] / 1e6:,.0f} MB |"
    yield ""


# ------------------------------------------------------------------ toy's seeds


def toy_texts(model: cd.Model, seed: int) -> list[str]:
    """Documents that toy could have been trained on."""
    world, rng, found, count = load_world(), random.Random(seed), list[str](), 0
    while count < TOY_TOKENS:
        text = document(world, rng).replace(END, "")
        length = len(model.tokenizer.backend_tokenizer.encode(text).ids)
        if 1 < length <= CONTEXT:
            found.append(text)
            count += length
    return found


def seed_folders() -> list[Path]:
    """Those of the models of other seeds that are trained."""
    return sorted(each.parent for each in SEEDS.glob("*/model.safetensors"))


def seeds() -> dict[str, Any]:
    """Of toy's neurons beside other seeds'."""
    toy, others = cd.load_model("toy"), {each.name: cd.load_model(each) for each in seed_folders()}
    if not others:
        return {}
    texts = toy_texts(toy, seed=10)
    found, ceiling = (u.neurons(toy, each, texts) for each in (list(others.values()), toy))
    rows = {f"seed {name}": told(found, i) for i, name in enumerate(others)}
    rows |= {f"all {len(others)}": told(found), "itself": told(ceiling)}
    best = [described(toy, name, texts) for name in found.best(3)]
    for each in best:
        at = found.names.index(each["name"])
        each["partners"] = [
            f"{found.partners[i, at]} of seed {name} {found.correlation[i, at]:.2f}"
            for i, name in enumerate(others)
        ]
        each["excess"] = float(found.excess[at])
    return {"tokens": min(found.tokens), "rows": rows, "best": best, "dead": len(found.dead)}


def described(model: cd.Model, name: str, texts: Sequence[str]) -> dict[str, Any]:
    """What a neuron is active at, and what it writes."""
    found = f.top_activations(model, name, texts, top=SNIPPETS)
    return {
        "name": name,
        "snippets": [str(each) for each in found.snippets],
        "promoted": [word for word, _ in found.promoted[:4]],
    }


def seeds_table(found: dict[str, Any]) -> Iterator[str]:
    """Lines of Markdown."""
    if not found:
        yield f"No model of another seed is in {SEEDS.relative_to(ROOT)}."
        return
    layers = [name for name in next(iter(found["rows"].values())) if name[1:].isdigit()]
    yield f"`toy`'s 2,048 neurons beside those of models of other seeds, {found['tokens']:,} tokens:"
    yield ""
    yield f"| beside | excess above .5 | median correlation | baseline | excess | {' | '.join(layers)} |"
    yield "| --- | --- | --- | --- | --- |" + " --- |" * len(layers)
    for name, row in found["rows"].items():
        medians = (f"{row[each]:.2f}" for each in ("correlation", "baseline", "excess"))
        shares = (f"{row[each]:.1%}" for each in layers)
        yield f"| {name} | {row['share']:.1%} | {' | '.join(medians)} | {' | '.join(shares)} |"
    yield ""
    yield (
        "The last columns are shares above .5 of each layer's. Beside itself is as far as the excess can go, "
        "1 less the baseline. The three most universal:"
    )
    yield ""
    for each in found["best"]:
        yield f"- {each['name']}, excess {each['excess']:.2f} ({', '.join(each['partners'])}): {_said(each)}"
    yield ""


def _said(each: dict[str, Any]) -> str:
    words = " ".join(_quoted(word) for word in each["promoted"])
    bare = [(text, text.replace("[", "").replace("]", "")) for text in each["snippets"]]
    shown = [f"at {_quoted(_around(text))}" for text, without in bare if "://" not in without]
    return f"raises {words}; {', '.join([*shown, *['in a web address'] * (len(shown) < len(bare))])}"


def _around(text: str) -> str:
    """The part of a snippet that is nearest to its token, which stands in brackets."""
    middle = text.find("[")
    start = max(0, min(middle - LONGEST // 2, len(text) - LONGEST))
    return (text[start : start + LONGEST].partition(" ")[2] if start else text[:LONGEST]).strip()


def _quoted(text: str) -> str:
    return f"`{repr(text)[1:-1].replace('`', chr(39)).replace('|', '/')}`"


# ------------------------------------------------------------------ features


def features() -> dict[str, Any]:
    """Of dictionaries of what toy's m1 writes, of two seeds; and of two models."""
    toy, others = cd.load_model("toy"), {each.name: cd.load_model(each) for each in seed_folders()[:1]}
    train, held = (toy_texts(toy, seed) for seed in (20, 21))

    def dictionary(model: cd.Model, n: int, seed: int) -> cd.features.Dictionary:
        acts = f.activations(model, train, "m1", position="all")
        return f.train_sae(acts, n=n, k=8, steps=STEPS, seed=seed)

    rows = {}
    for n in WIDTHS:
        one = dictionary(toy, n, 0)
        pairs = {"the same activations, other seed": (dictionary(toy, n, 1), toy)}
        for name, other in others.items():
            pairs[f"toy of seed {name}"] = (dictionary(other, n, 0), other)
        for name, (two, model) in pairs.items():
            found = u.features(one, two, held, model=toy, other_model=model)
            rows[f"{n}: {name}"] = {
                "activation": told(found.by_activation) | {"dead": len(found.by_activation.dead)},
                "decoder": told(found.by_decoder),
                "same": float(found.agreement[0]),
            }
    return rows


def features_table(found: dict[str, Any]) -> Iterator[str]:
    """Lines of Markdown."""
    yield f"Features of top-8 dictionaries of what `toy`'s m1 writes ({STEPS:,} steps), beside another one's:"
    yield ""
    yield (
        "| features: beside | by activation: above .5 | median correlation | baseline | excess | "
        "by decoder: above .5 | median cosine | baseline | excess | one partner by both |"
    )
    yield "| --- |" + " --- |" * 9
    for name, row in found.items():
        cells = []
        for how in ("activation", "decoder"):
            medians = (f"{row[how][each]:.2f}" for each in ("correlation", "baseline", "excess"))
            cells += [f"{row[how]['share']:.1%}", *medians]
        yield f"| {name} | {' | '.join(cells)} | {row['same']:.1%} |"
    yield ""


# ------------------------------------------------------------------ real models


def real_texts(model: cd.Model) -> list[str]:
    """Pieces of English of sixty words, of about four thousand tokens together."""
    parts = list[str]()
    for text in documents().values():
        words = text.split()
        parts += [" ".join(words[i : i + WORDS]) for i in range(0, len(words) - WORDS + 1, WORDS)]
    random.Random(0).shuffle(parts)
    found, count = list[str](), 0
    while count < REAL_TOKENS:
        found.append(parts[len(found)])
        count += len(model.tokenizer(found[-1])["input_ids"])
    return found


def real() -> dict[str, Any]:
    """Of SmolLM2-135M beside Gemma 3 270M."""
    from transformers import AutoModelForCausalLM

    folders = [folder_of(MODELS[name]) for name in ("smollm2-135m", "gemma3-270m")]
    model, other = (cd.load_model(folder) for folder in folders)
    texts = real_texts(model)
    rows = [[[*each.tokenizer(text)["input_ids"]] for text in texts] for each in (model, other)]
    networks = [AutoModelForCausalLM.from_pretrained(each, dtype=torch.float32) for each in folders]
    unit = EVERY * hugging_face(networks, [each[::EVERY] for each in rows], 1)
    del networks
    u.neurons(model, other, texts[0][:40])  # what a first call loads
    found, seconds, held = spent(lambda: u.neurons(model, other, texts))
    best = [described(model, name, texts) for name in found.best(10)]
    for each in best:
        at = found.names.index(each["name"])
        each["correlation"], each["excess"] = float(found.correlation[0, at]), float(found.excess[at])
        each["partner"] = described(other, str(found.partners[0, at]), texts)
    return {
        "tokens": [sum(map(len, each)) for each in rows],
        "texts": len(texts),
        "neurons": [sum(block.d_mlp for block in each.blocks) for each in (model, other)],
        "f": unit,
        "seconds": seconds,
        "bytes": held,
        "found": told(found),
        "dead": len(found.dead),
        "partners": depths(found, len(model.blocks), len(other.blocks)),
        "best": best,
    }


def depths(found: Any, layers: int, theirs: int) -> list[float | None]:
    """Of each layer the mean depth of its universal neurons' partners, from 0 to 1; None where none is."""
    at = [list[int]() for _ in range(layers)]
    for own, other, excess in zip(found.names, found.partners[0], found.excess, strict=True):
        if excess > 0.5:
            at[layer_of(own)].append(layer_of(other))
    return [float(np.mean(each)) / (theirs - 1) if each else None for each in at]


def real_table(found: dict[str, Any]) -> Iterator[str]:
    """Lines of Markdown."""
    row, (one, two) = found["found"], found["neurons"]
    yield (
        f"{one:,} neurons of SmolLM2-135M with {two:,} of Gemma 3 270M over {found['texts']} pieces of "
        f"English, {found['tokens'][0]:,} tokens of the one and {found['tokens'][1]:,} of the other: "
        f"{found['seconds'] / 60:.1f} CPU minutes, {found['seconds'] / found['f']:.1f} F, "
        f"{found['bytes'] / 1e9:.1f} GB above the models."
    )
    yield ""
    yield "| excess above .5 | median correlation | baseline | excess | constant |"
    yield "| --- | --- | --- | --- | --- |"
    medians = (f"{row[each]:.2f}" for each in ("correlation", "baseline", "excess"))
    yield f"| {row['share']:.2%} | {' | '.join(medians)} | {found['dead']:,} |"
    yield ""
    yield "Shares above .5 by SmolLM2's layer; the mean depth of their partners (0 and 1: Gemma's ends):"
    yield ""
    layers = [name for name in row if name[1:].isdigit()]
    for part in range(0, len(layers), 10):
        some = layers[part : part + 10]
        where = found["partners"][part : part + 10]
        yield f"| layer | {' | '.join(some)} |"
        yield "| --- |" + " --- |" * len(some)
        yield f"| share | {' | '.join(f'{row[name]:.1%}' for name in some)} |"
        yield f"| depth | {' | '.join('' if each is None else f'{each:.2f}' for each in where)} |"
        yield ""
    yield "The ten most universal, each with its partner in Gemma:"
    yield ""
    for each in found["best"]:
        figures = f"correlation {each['correlation']:.2f}, excess {each['excess']:.2f}"
        yield f"- {each['name']} of SmolLM2, {figures}: {_said(each)}"
        yield f"    - {each['partner']['name']} of Gemma: {_said(each['partner'])}"
    yield ""


PARTS: dict[str, tuple[Callable[[], dict[str, Any]], Callable[[dict[str, Any]], Iterator[str]]]] = {
    "cost": (cost, cost_table),
    "seeds": (seeds, seeds_table),
    "features": (features, features_table),
    "real": (real, real_table),
}


def main() -> None:
    """Measure what is not kept yet, and print the tables or write them into a page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="by default all but real")
    parser.add_argument("--out", type=Path, default=Path("runs") / "universality")
    parser.add_argument("--again", action="store_true", help="measure what is kept, too")
    parser.add_argument("--page", type=Path, help="write the tables into this page, between its marks")
    given = parser.parse_args()
    check(given.page, "units")
    lines = list[str]()
    for name in given.parts or ("cost", "seeds", "features"):
        measure, table = PARTS[name]
        file, trained = given.out / f"{name}.json", [each.name for each in seed_folders()]
        kept = json.loads(file.read_text()) if file.exists() else {"seeds": None, "found": {}}
        new = name in ("seeds", "features") and kept["seeds"] != trained
        if given.again or not file.exists() or new:
            given.out.mkdir(parents=True, exist_ok=True)
            kept = {"seeds": trained, "found": measure()}
            write_json(file, kept)
        lines += table(kept["found"])
    show("\n".join(lines), given.page, "units")


if __name__ == "__main__":
    main()
