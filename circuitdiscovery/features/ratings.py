"""Ratings by people: a sheet that does not say what is from a unit and what is not, and what was rated.

An item of a sheet is a few snippets with a token marked in each; a rater says from 0 to 3 whether the marked
tokens have something in common that can be put in words. Items of a unit hold snippets of its highest
activations; items of controls are made in the same way, of tokens drawn at random or of other units. Sheet
and key are two files: who rates is given the sheet alone.

The rule is our own: an item's score is the mean over raters; from 2 on ("a clear pattern, with exceptions")
it counts as interpretable. Of several units each counts once, by the mean of its items.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from circuitdiscovery.arguments import guarded
from circuitdiscovery.errors import CircuitDiscoveryError, shown
from circuitdiscovery.features.snippets import TopActivations
from circuitdiscovery.files.disk import ending, read_json, read_text, write_atomically, write_json
from circuitdiscovery.files.fields import exactly, typed
from circuitdiscovery.measure import intervals
from circuitdiscovery.measure.estimates import Estimate
from circuitdiscovery.values import Value

if TYPE_CHECKING:
    import pandas as pd

    from circuitdiscovery.features.snippets import Snippet

EACH = 5  # snippets of an item
COUNTS = 2.0  # the least score that counts as interpretable
SCALE = (
    "nothing in common",
    "a vague idea",
    "a clear pattern, with exceptions",
    "a clear pattern, without exceptions",
)
QUESTION = "Do the marked tokens have something in common that can be put in words?"
_FORMAT = "circuitdiscovery ratings key 1"
RANDOM = "random tokens"


@dataclass(frozen=True, repr=False)
class Sheet(Value):
    """What was written for people to rate (see `rate`).

    Args:
        path, key: the sheet, and what says which item is of what.
        items: how many items it has.
    """

    path: str
    key: str
    items: int

    def __str__(self) -> str:
        return f"{self.items} items in {self.path}; {self.key} says of what they are: keep it from raters"


@dataclass(frozen=True)
class Rated:
    """An item and what was said of it.

    Args:
        item: its name on the sheet.
        unit: whose snippets it has.
        control: whether it is a control.
        scores: by rater.
    """

    item: str
    unit: str
    control: bool
    scores: tuple[float, ...]

    @property
    def score(self) -> float:
        """The mean over raters."""
        return float(np.mean(self.scores))


@dataclass(frozen=True, repr=False)
class Ratings(Value):
    """What people said of a sheet (see `read_ratings`).

    Args:
        items: every item that all raters rated, in the order of the sheet.
        interpretable: the share of the units that are, from a mean score of 2 on; of one unit the share of
            its items.
        controls: the same of the controls.
        raters: how many.
        unrated: the items that some rater left out.
    """

    items: tuple[Rated, ...]
    interpretable: Estimate
    controls: Estimate
    raters: int
    unrated: tuple[str, ...] = ()

    @property
    def by_unit(self) -> Mapping[str, float]:
        """Unit -> its mean score, controls too."""
        return _means(self.items)

    def to_dataframe(self) -> pd.DataFrame:
        """One row per item: item, unit, control, score. Needs pandas."""
        from circuitdiscovery.files.disk import data_frame

        rows = [(each.item, each.unit, each.control, each.score) for each in self.items]
        return data_frame(rows, columns=["item", "unit", "control", "score"])

    def __str__(self) -> str:
        lines = [
            f"{len(self.items)} items by {self.raters} rater{'' if self.raters == 1 else 's'}",
            f"{'interpretable':<13} {self.interpretable}",
            f"{'controls':<13} {self.controls}",
        ]
        if self.unrated:
            lines.append(f"{'not rated':<13} {', '.join(self.unrated)}")
        return "\n".join([*lines, *(f"{unit:<13} {score:.3g}" for unit, score in self.by_unit.items())])


# ------------------------------------------------------------------ the sheet


@guarded
def rate(units: Any, path: str | Path, *, controls: Any = None, each: int = EACH, seed: int = 0) -> Sheet:
    """Write a sheet on which people rate whether units' snippets have something in common.

    Args:
        units: what `top_activations` gave, of one unit or a list.
        path: a .csv file, or a .html page that makes such a file of what is chosen on it. What the sheet does
            not say, which item is of what, is written beside it: sheet.csv has sheet.key.json.
        controls: what `top_activations` gave of other units, such as neurons beside features; by default
            items of random tokens, as many as units have.
        each: snippets of an item: a unit's highest ones are dealt out to as many items as they fill.
        seed: of the order of the items and of their names.

    Returns:
        The paths.

    Raises:
        CircuitDiscoveryError: items of no snippet; a unit with too few for an item; a path that ends
            otherwise, or cannot be written.

    >>> import circuitdiscovery as cd, tempfile
    >>> model, folder = cd.load_model("toy"), tempfile.mkdtemp()
    >>> task = cd.load_task("subject_verb_agreement", model, examples=32)
    >>> found = cd.features.top_activations(model, "m1/n3", task, top=10)
    >>> cd.features.rate(found, f"{folder}/sheet.csv").items
    4
    """
    kind = ending(path, ".csv", ".html")
    if each < 1:
        raise CircuitDiscoveryError(f"each must be a whole number of at least 1, not {each}")
    given = _units(units, "units")
    items = [(each_of.unit, False, group) for each_of in given for group in _dealt(each_of.snippets, each)]
    for of in given:
        _enough(of, of.snippets, each)
    if controls is None:
        for of in given:
            _enough(of, of.random, each)
        dealt = [group for of in given for group in _dealt(of.random, each)]
        items += [(RANDOM, True, group) for group in dealt]
    else:
        for of in (others := _units(controls, "controls")):
            _enough(of, of.snippets, each)
        items += [(of.unit, True, group) for of in others for group in _dealt(of.snippets, each)]
    draw = np.random.default_rng(seed)
    items = [items[i] for i in draw.permutation(len(items))]
    # a letter first: a spreadsheet takes 9e154615 for a number
    names = [f"i{number:08x}" for number in draw.choice(2**32, len(items), replace=False)]
    sheet = {
        name: [str(each) for each in draw.permuted(group)]
        for name, (*_, group) in zip(names, items, strict=True)
    }
    key = Path(path).with_suffix(".key.json")
    told = {
        name: {"unit": unit, "control": control}
        for name, (unit, control, _) in zip(names, items, strict=True)
    }
    write_json(key, {"format": _FORMAT, "items": told})
    write_atomically(path, _csv(sheet) if kind == ".csv" else _html(sheet, Path(path).stem))
    return Sheet(str(path), str(key), len(items))


def _units(given: Any, name: str) -> list[TopActivations]:
    found = [given] if isinstance(given, TopActivations) else given
    if (
        not isinstance(found, list | tuple)
        or not found
        or not all(isinstance(each, TopActivations) for each in found)
    ):
        raise CircuitDiscoveryError(
            f"{name} must be what features.top_activations gives, of one unit or several, not {shown(given)}"
        )
    return list(found)


def _enough(of: TopActivations, snippets: Sequence[Snippet], each: int) -> None:
    if len(snippets) < each:
        raise CircuitDiscoveryError(
            f"{of.unit} has {len(snippets)} snippets: not enough for an item of {each}"
        )


def _dealt(snippets: Sequence[Snippet], each: int) -> list[Sequence[Snippet]]:
    """As many items as they fill, each with some of the highest and some of the lowest."""
    count = len(snippets) // each
    return [snippets[i : count * each : count] for i in range(count)]


def _csv(sheet: Mapping[str, Sequence[str]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["item", "score", *(f"snippet {i + 1}" for i in range(len(next(iter(sheet.values())))))])
    writer.writerows([name, "", *map(_cell, snippets)] for name, snippets in sheet.items())
    return out.getvalue()


def _cell(text: str) -> str:
    """A text that a spreadsheet does not take for a formula."""
    return f"'{text}" if text[:1] in "=+-@\t\r" else text


def _html(sheet: Mapping[str, Sequence[str]], name: str) -> str:
    items = "".join(_item(item, snippets) for item, snippets in sheet.items())
    scale = "".join(f"<li value='{i}'>{escape(words)}</li>" for i, words in enumerate(SCALE))
    script = _SCRIPT.replace("NAME", json.dumps(f"{name}.csv").replace("<", "\\u003c"))
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><meta name='color-scheme' content='light "
        f"dark'><title>Rating</title><style>{_STYLE}</style></head><body><h1>{escape(QUESTION)}</h1><ol>"
        f"{scale}"
        f"</ol><form>{items}</form><button type='button' id='save'>Save the ratings</button>"
        f"<script>{script}</script></body></html>\n"
    )


def _item(item: str, snippets: Sequence[str]) -> str:
    lines = "".join(f"<li>{escape(text)}</li>" for text in snippets)
    choices = "".join(
        f"<label title='{escape(words)}'><input type='radio' name='{item}' value='{i}'> {i}</label>"
        for i, words in enumerate(SCALE)
    )
    return f"<fieldset><legend>{item}</legend><ul>{lines}</ul><div>{choices}</div></fieldset>"


_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "h1{font-size:1.3em}fieldset{margin:1em 0;border:1px solid #8886}label{margin-right:1.5em}"
    "legend{font:12px monospace}li{overflow-wrap:anywhere}"
)
_SCRIPT = """
document.getElementById("save").addEventListener("click", () => {
  const rows = [...document.querySelectorAll("fieldset")].map(each => {
    const chosen = each.querySelector("input:checked");
    return each.querySelector("legend").textContent + "," + (chosen ? chosen.value : "");
  });
  const file = new Blob(["item,score\\n" + rows.join("\\n") + "\\n"], { type: "text/csv" });
  Object.assign(document.createElement("a"), { href: URL.createObjectURL(file), download: NAME }).click();
});
"""


# ------------------------------------------------------------------ what was rated


@guarded
def read_ratings(paths: Any, *, key: str | Path | None = None) -> Ratings:
    """Read what people said of a sheet that `rate` wrote.

    Args:
        paths: the .csv file with scores from 0 to 3 in the column `score`, or several of them, one per rater.
        key: the .key.json file of the sheet; by default that beside the first file, of the same name.

    Returns:
        The share that is interpretable, with a 95% interval (Clopper and Pearson), beside the controls'.

    Raises:
        CircuitDiscoveryError: no key; a file without the columns `item` and `score`; an item that is not on
            the sheet, or twice; a score that is not from 0 to 3; no item that all rated.

    >>> import circuitdiscovery as cd, tempfile
    >>> from pathlib import Path
    >>> model, path = cd.load_model("toy"), Path(tempfile.mkdtemp()) / "sheet.csv"
    >>> task = cd.load_task("subject_verb_agreement", model, examples=32)
    >>> sheet = cd.features.top_activations(model, "m1/n3", task, top=10).rate(path)
    >>> _ = path.write_text(path.read_text().replace(",,", ",3,"))  # every item is given a 3
    >>> cd.features.read_ratings(path).interpretable
    1 [0.158, 1]
    """
    files = [Path(each) for each in ([paths] if isinstance(paths, str | Path) else paths)]
    if not files:
        raise CircuitDiscoveryError("paths is empty: give the files that were rated")
    where = files[0].with_suffix(".key.json") if key is None else Path(key)
    known = _key(where)
    rated = [_scores(path, known) for path in files]
    whole = [item for item in known if all(item in each for each in rated)]
    items = tuple(
        Rated(item, known[item][0], known[item][1], tuple(each[item] for each in rated)) for item in whole
    )
    if not items:
        raise CircuitDiscoveryError(f"{files[0]}: no item has a score")
    own, controls = (_share([each for each in items if each.control is kind]) for kind in (False, True))
    return Ratings(items, own, controls, len(files), tuple(item for item in known if item not in whole))


def _key(path: Path) -> dict[str, tuple[str, bool]]:
    data, where = read_json(path), str(path)
    exactly(data, ("format", "items"), where)
    if data["format"] != _FORMAT:
        raise CircuitDiscoveryError(
            f"{where}: field 'format' must be {_FORMAT!r}, not {shown(data['format'])}"
        )
    found: dict[str, tuple[str, bool]] = {}
    for item, each in typed(data["items"], dict, where, "items").items():
        exactly(each, ("unit", "control"), where, f"items.{item}")
        unit = typed(each["unit"], str, where, f"items.{item}.unit")
        found[item] = unit, typed(each["control"], bool, where, f"items.{item}.control")
    return found


def _scores(path: Path, known: Mapping[str, Any]) -> dict[str, float]:
    """Item -> score, of those that have one."""
    rows = csv.DictReader(io.StringIO(read_text(path).removeprefix("\ufeff")))
    if not {"item", "score"} <= set(rows.fieldnames or ()):
        raise CircuitDiscoveryError(f"{path}: the columns 'item' and 'score' are needed")
    found: dict[str, float] = {}
    for number, row in enumerate(rows, 2):
        item, said = (row["item"] or "").strip(), (row["score"] or "").strip()
        if item not in known or item in found:
            what = "is there twice" if item in found else "is not on the sheet"
            raise CircuitDiscoveryError(f"{path}, row {number}: item {shown(item)} {what}")
        if not said:
            continue
        try:
            value = float(said)
        except ValueError:
            value = -1.0
        if not 0 <= value <= len(SCALE) - 1:
            raise CircuitDiscoveryError(f"{path}, row {number}: score must be from 0 to 3, not {shown(said)}")
        found[item] = value
    return found


def _means(items: Sequence[Rated]) -> dict[str, float]:
    by: dict[str, list[float]] = {}
    for each in items:
        by.setdefault(each.unit, []).append(each.score)
    return {unit: float(np.mean(scores)) for unit, scores in by.items()}


def _share(items: Sequence[Rated]) -> Estimate:
    """Of one unit that of its items, of several that of the units; random tokens are one."""
    if not items:
        return Estimate(float("nan"))
    by = _means(items)
    scores = [each.score for each in items] if len(by) == 1 else list(by.values())
    return intervals.share(sum(score >= COUNTS for score in scores), len(scores))
