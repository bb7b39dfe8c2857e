"""What can be read in the stream of models of several sizes, and what of it is used.

    python benchmarks/real_probing.py [--out runs/real-probing] [--models NAME ...] [--only LABEL ...] [--read] [--page PAGE]

Every table (a label in a model) is kept in the folder when it is done: a run that was stopped goes on with the
next one. At the end the tables are printed, or written into the page between two marks.

1. Labels of prompts, probed where the answer is read, at the stream before the first blocks, before every
   eighth one and after the last. Three tenths of the prompts are held out. Beside each probe its directions are
   erased at that site and position, on 32 other prompts.
2. Labels of words (`word_labels`) in generated sentences, and of the kinds of texts: Python (the package's own),
   formulas in LaTeX (generated), prose (the package's pages).
3. Sparse probes of 1, 2 and 4 neurons of each MLP.
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pages import check, show
from real_models import MODELS, folder_of
from toy_text import MIXTURE, document, load_world

import circuitdiscovery as cd

f = cd.features
ROOT = Path(cd.__file__).parents[1]
PROMPTS, ERASED, TEXTS = 480, 32, 60
# label -> task
OF_PROMPTS = {
    "number": "subject_verb_agreement",
    "attractor_number": "subject_verb_agreement",
    "repeated": "ioi",
    "gender": "gendered_pronoun",
    "tens": "greater_than",
}
OF_WORDS = ("part_of_speech", "tense")
SPARSE = "number, neurons"
KINDS = "kind of text"
LABELS = (*OF_PROMPTS, SPARSE, *OF_WORDS, KINDS)
SELECTIVE = 0.1


def sites(model: cd.Model) -> list[str]:
    """The stream at the first layers, every eighth one and the last."""
    layers = sorted({*range(min(5, model.n_layers)), *range(0, model.n_layers, 8), model.n_layers})
    return [f"resid{layer}" for layer in layers]


def of_prompts(model: cd.Model, label: str) -> Any:
    """A label of a task's prompts, erased on others."""
    task = cd.load_task(OF_PROMPTS[label], model, examples=PROMPTS)
    assert task.held_out is not None
    return f.probes(model, task, label, at=sites(model), task=task.held_out.select(range(ERASED)))


def sparse(model: cd.Model) -> Any:
    """The subject's number in few neurons."""
    task = cd.load_task("subject_verb_agreement", model, examples=PROMPTS)
    return f.probes(model, task, "number", at="m.neurons", k=[1, 2, 4], draws=1)


def of_words(model: cd.Model, label: str) -> Any:
    """A label of the words in generated sentences."""
    world, rng = load_world(), random.Random(0)
    texts = [document(world, rng, MIXTURE) for _ in range(TEXTS)]
    return f.probes(model, f.word_labels(model, texts, label), at=sites(model))


def of_kinds(model: cd.Model) -> Any:
    """Python, LaTeX and prose, 40 texts each of up to 80 characters."""
    code = "\n".join(
        path.read_text("utf-8") for path in sorted((ROOT / "circuitdiscovery/graph").glob("*.py"))
    )
    prose = (ROOT / "docs/concepts.md").read_text("utf-8") + (ROOT / "docs/models.md").read_text("utf-8")
    lines = [line for line in prose.splitlines() if len(line) > 80 and not re.match(r"[|#`>\-]", line)]
    rng = random.Random(0)
    some = [code[start : start + 80] for start in range(0, len(code), 80)]
    kinds = {
        "python": rng.sample(some, 40),
        "latex": [formula(rng)[:80] for _ in range(40)],
        "prose": [line[:80] for line in rng.sample(lines, 40)],
    }
    return f.probes(model, f.text_labels(model, kinds, name=KINDS), at=sites(model))


def formula(rng: random.Random, depth: int = 3) -> str:
    """A random formula in LaTeX."""
    if not depth:
        return rng.choice([*"abcxyzn", r"\alpha", r"\beta", r"\theta", r"\lambda", "1", "2"])
    a, b = formula(rng, depth - 1), formula(rng, depth - 1)
    return rng.choice(
        [
            rf"\frac{{{a}}}{{{b}}}",
            rf"\sum_{{i=1}}^{{n}} {a} + {b}",
            rf"\int_0^1 {a} \, d{b}",
            rf"\sqrt{{{a} - {b}}}",
            rf"\left( {a} \right)^{{{b}}}",
            rf"\log {a} \leq {b}",
        ]
    )


def found(model: cd.Model | None, name: str, label: str, folder: Path) -> Any:
    """A table, measured or read; None where a model's tokenizer does not suit it, or without a model it is not
    there."""
    path = folder / f"{name}-{label.replace(' ', '-').replace(',', '')}.json"
    if path.exists():
        return f.Probes.load(path)
    if model is None:
        return None
    print(f"{name}: {label}", flush=True)
    try:
        if label in OF_PROMPTS:
            table = of_prompts(model, label)
        elif label in OF_WORDS:
            table = of_words(model, label)
        else:
            table = sparse(model) if label == SPARSE else of_kinds(model)
    except cd.CircuitDiscoveryError as error:
        if "tokenizer" not in str(error):
            raise
        return None
    table.save(path)
    return table


# ------------------------------------------------------------------ the tables


def summary(tables: dict[str, dict[str, Any]], labels: Sequence[str]) -> Iterator[str]:
    """One row for each label and model."""
    yield "| label | model | chance | resid0 | selective from | at | accuracy | selectivity | erased: most | there |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for label in labels:
        for name, own in tables.items():
            if own.get(label) is None:
                continue
            rows = own[label].rows
            first = next((row.site for row in rows if row.scores.selectivity > SELECTIVE), "never")
            best = max(rows, key=lambda row: row.scores.selectivity)
            cells = [
                label,
                name,
                f"{rows[0].scores.chance:.2f}",
                f"{float(rows[0].scores.accuracy):.2f}",
                first,
            ]
            cells += [best.site, str(best.scores.accuracy), str(best.scores.selectivity)]
            if best.erasure is not None:
                most = max(rows, key=lambda row: abs(row.erasure.effect))
                cells += [f"{most.site}: {most.erasure.effect}", f"{float(best.erasure.effect):.3g}"]
            else:
                cells += ["", ""]
            yield f"| {' | '.join(cells)} |"


def by_layer(table: Any) -> Iterator[str]:
    """A row for each site."""
    yield "| site | accuracy | control | selectivity | erased | random |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for row in table.rows:
        own, erasure = row.scores, row.erasure
        effects = [str(erasure.effect), f"{float(erasure.random):.3g}"] if erasure else ["", ""]
        cells = [row.site, str(own.accuracy), f"{own.control:.2f}", str(own.selectivity), *effects]
        yield f"| {' | '.join(cells)} |"


def few_neurons(tables: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Of each model and k the MLP whose neurons tell the number best."""
    yield "| model | k | MLP | neurons | f1 | accuracy |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for name, own in tables.items():
        for k in (1, 2, 4) if own.get(SPARSE) is not None else ():
            row = max((each for each in own[SPARSE].rows if each.k == k), key=lambda each: each.scores.f1)
            columns = ", ".join(f"n{column}" for column in row.columns)
            node = row.site.partition(".")[0]
            yield f"| {name} | {k} | {node} | {columns} | {row.scores.f1} | {row.scores.accuracy} |"


def page(tables: dict[str, dict[str, Any]]) -> Iterator[str]:
    """All tables that are there."""
    yield "### Models of several sizes"
    yield ""
    yield from summary(tables, [label for label in LABELS if label != SPARSE])
    for name, own in tables.items():
        if name != "toy" and own.get("number") is not None:
            yield from ("", f"### The subject's number in {name}", "")
            yield from by_layer(own["number"])
    if any(own.get(SPARSE) is not None for own in tables.values()):
        yield from ("", "### The subject's number in few neurons", "")
        yield from few_neurons(tables)
    yield ""


def main() -> None:
    """Measure what is not there yet, and print all of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/real-probing"))
    parser.add_argument("--models", nargs="+", choices=["toy", *MODELS], default=["toy", *MODELS])
    parser.add_argument("--only", nargs="+", choices=LABELS, default=LABELS)
    parser.add_argument("--read", action="store_true", help="measure nothing, print what is there")
    parser.add_argument("--page", type=Path, help="write the tables into this page, between its marks")
    given = parser.parse_args()
    check(given.page)
    given.out.mkdir(parents=True, exist_ok=True)
    tables: dict[str, dict[str, Any]] = {}
    for name in given.models:
        path = name if name == "toy" else folder_of(MODELS[name])
        model = None if given.read else cd.load_model(path)
        tables[name] = {label: found(model, name, label, given.out) for label in given.only}
    show("\n".join(page(tables)), given.page)


if __name__ == "__main__":
    main()
