"""Sheets that people rate: what they do not say, and what is made of the ratings."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest
from test_report_browser import CHROMIUM, QUIET
from test_snippets import EVIL, Tags, made

import circuitdiscovery as cd
from circuitdiscovery.features.snippets import TopActivations

f = cd.features


def named(name: str, word: str, count: int = 20) -> TopActivations:
    """Its highest snippets all mark one word, its random ones another."""
    found = made(count, (f"{word} a", f" {word}", " z"), seed=len(name))
    known = {**found.__dict__, "unit": name}
    return TopActivations(**{**known, "random": made(count, ("r", " random", " s")).snippets})


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def filled(path: Path, say: Callable[[dict[str, str]], str], to: Path | None = None) -> Path:
    """The sheet with what a rater says of each row."""
    rows = read(path)
    target = to or path
    with target.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(row | {"score": say(row)} for row in rows)
    return target


def sees(word: str) -> Callable[[dict[str, str]], str]:
    """A rater who finds one word's items clear, others not."""
    return lambda row: "3" if f"[{word}]" in row["snippet 1"] else "0"


def test_a_sheet_does_not_say_what_is_of_the_unit(tmp_path: Path) -> None:
    sheet = named("m1/n3", "key").rate(tmp_path / "sheet.csv")
    rows, text = read(tmp_path / "sheet.csv"), (tmp_path / "sheet.csv").read_text()
    assert sheet.items == len(rows) == 8 and list(rows[0])[:2] == ["item", "score"] and len(rows[0]) == 7
    assert "m1" not in text and "n3" not in text and "random tokens" not in text
    assert all(row["score"] == "" for row in rows) and len({row["item"] for row in rows}) == 8
    key = json.loads((tmp_path / "sheet.key.json").read_text())["items"]
    assert {row["item"] for row in rows} == set(key)
    for row in rows:
        word = "random" if key[row["item"]]["control"] else "key"
        assert all(f"[{word}]" in row[f"snippet {i}"] for i in range(1, 6))
    order = [key[row["item"]]["control"] for row in rows]
    assert order != sorted(order) and order != sorted(order, reverse=True)
    named("m1/n3", "key").rate(tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_text() == text  # the seed decides
    named("m1/n3", "key").rate(tmp_path / "other.csv", seed=1)
    assert {row["item"] for row in read(tmp_path / "other.csv")}.isdisjoint(key)


def test_items_of_a_unit_are_alike_in_height(tmp_path: Path) -> None:
    found = named("m1/n3", "key")
    own = tuple(f.Snippet(f"t{i}", f"t{i}", 20.0 - i, i, 0, 0, (f"t{i}",), (20.0 - i,)) for i in range(22))
    TopActivations(**{**found.__dict__, "snippets": own}).rate(tmp_path / "sheet.csv")
    rows = read(tmp_path / "sheet.csv")
    items = [
        sorted(int(row[f"snippet {i}"][2:-1]) for i in range(1, 6))
        for row in rows
        if "[t" in row["snippet 1"]
    ]
    assert sorted(items) == [[start, start + 4, start + 8, start + 12, start + 16] for start in range(4)]


def test_what_was_rated_comes_back(tmp_path: Path) -> None:
    """Of one unit the share of its items, with the interval of SciPy's binomial test."""
    named("m1/n3", "key").rate(tmp_path / "sheet.csv")
    filled(tmp_path / "sheet.csv", sees("key"))
    found = f.read_ratings(tmp_path / "sheet.csv")
    assert (float(found.interpretable), float(found.controls)) == (1, 0) and found.raters == 1
    expected = binomtest(4, 4).proportion_ci(0.95)
    assert (found.interpretable.low, found.interpretable.high) == pytest.approx((expected.low, expected.high))
    assert dict(found.by_unit) == {"m1/n3": 3.0, "random tokens": 0.0}
    assert "interpretable 1 [0.398, 1]" in str(found) and len(found.to_dataframe()) == 8
    found.save(tmp_path / "ratings.json")
    assert f.Ratings.load(tmp_path / "ratings.json").to_dict() == found.to_dict()
    rows = read(tmp_path / "sheet.csv")
    threes = [row["item"] for row in rows if row["score"] == "3"]
    said = dict(zip(threes, ("2", "1.9", "", "0"), strict=True))
    filled(tmp_path / "sheet.csv", lambda row: said.get(row["item"], "0"))
    again = f.read_ratings(tmp_path / "sheet.csv")
    assert float(again.interpretable) == pytest.approx(1 / 3)  # 2 counts, 1.9 does not, one was left out
    assert again.unrated == (threes[2],) and threes[2] in str(again)


def test_of_several_units_each_counts_once(tmp_path: Path) -> None:
    """By the mean over its items and over raters; controls are what is given."""
    units = [named("m1/f1", "key"), named("m1/f2", "dog", 10), named("m1/f3", "cat", 5)]
    sheet = f.rate(units, tmp_path / "sheet.csv", controls=named("m1/n9", "nine"))
    assert sheet.items == 4 + 2 + 1 + 4
    first = filled(tmp_path / "sheet.csv", sees("key"), tmp_path / "sheet-a.csv")
    second = filled(
        tmp_path / "sheet.csv",
        lambda row: "3" if "[nine]" not in row["snippet 1"] else "1",
        tmp_path / "sheet-b.csv",
    )
    found = f.read_ratings([first, second], key=tmp_path / "sheet.key.json")
    assert dict(found.by_unit) == pytest.approx({"m1/f1": 3, "m1/f2": 1.5, "m1/f3": 1.5, "m1/n9": 0.5}, abs=0)
    assert float(found.interpretable) == pytest.approx(1 / 3) and found.raters == 2
    expected = binomtest(1, 3).proportion_ci(0.95)
    assert (found.interpretable.low, found.interpretable.high) == pytest.approx((expected.low, expected.high))
    assert float(f.read_ratings(second, key=tmp_path / "sheet.key.json").interpretable) == 1


def test_names_of_items_are_no_numbers(tmp_path: Path) -> None:
    """A spreadsheet writes 01591125 as 1591125, and 9e154615 as infinity; older sheets have such names."""
    for seed in range(30):
        named("m1/n3", "key").rate(tmp_path / "sheet.csv", seed=seed)
        for row in read(tmp_path / "sheet.csv"):
            with pytest.raises(ValueError, match="could not convert"):
                float(row["item"])
    key = tmp_path / "sheet.key.json"
    item = read(tmp_path / "sheet.csv")[0]["item"]
    for path in (key, tmp_path / "sheet.csv"):
        path.write_text(path.read_text().replace(item, "01591125"))
    filled(tmp_path / "sheet.csv", lambda row: "3")
    assert f.read_ratings(tmp_path / "sheet.csv").items[0].item == "01591125"


def test_texts_of_a_sheet_are_texts(tmp_path: Path) -> None:
    """No markup in a page, no formula in a spreadsheet."""
    words = ("=1+1", EVIL, ' "q",\n')
    made(10, words).rate(tmp_path / "sheet.html")
    page = (tmp_path / "sheet.html").read_text()
    tags = Tags(page)
    assert tags.names.count("script") == 1 and tags.names.count("fieldset") == 4
    assert "m1" not in page and tags.said.count(EVIL) == 20
    made(10, words).rate(tmp_path / "sheet.csv")
    assert all(row["snippet 1"].startswith("'=1+1[") for row in read(tmp_path / "sheet.csv"))
    filled(tmp_path / "sheet.csv", lambda row: "1")
    assert len(f.read_ratings(tmp_path / "sheet.csv").items) == 4


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, chromium-browser or google-chrome on the PATH")
def test_a_page_makes_the_file_that_is_read(tmp_path: Path) -> None:
    """A rater chooses on all items but one, and saves."""
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install playwright)")
    named("m1/n3", "key").rate(tmp_path / "sheet.html")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=QUIET)
        page = browser.new_page()
        page.goto((tmp_path / "sheet.html").as_uri())
        items = page.locator("fieldset")
        for i in range(7):
            score = "3" if "[key]" in items.nth(i).inner_text() else "1"
            items.nth(i).locator(f"input[value='{score}']").check()
        with page.expect_download() as download:
            page.click("#save")
        assert download.value.suggested_filename == "sheet.csv"
        shutil.copy(download.value.path(), tmp_path / "sheet.csv")
        browser.close()
    found = f.read_ratings(tmp_path / "sheet.csv")
    assert len(found.unrated) == 1 and len(found.items) == 7
    assert (float(found.interpretable), float(found.controls)) == (1, 0)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (["item,score", "00000000,1"], "row 2: item '00000000' is not on the sheet"),
        (["item,score", "{0},1", "{0},2"], "row 3: item '{0}' is there twice"),
        (["item,score", "{0},4"], "row 2: score must be from 0 to 3, not '4'"),
        (["item,score", "{0},3.7"], "row 2: score must be from 0 to 3, not '3.7'"),
        (["item,score", "{0},-0.1"], "row 2: score must be from 0 to 3, not '-0.1'"),
        (["item,score", "{0},good"], "score must be from 0 to 3, not 'good'"),
        (["item,score", "{0},"], "no item has a score"),
        (["name,score", "{0},1"], "the columns 'item' and 'score' are needed"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, rows: list[str], told: str) -> None:
    named("m1/n3", "key").rate(tmp_path / "sheet.csv")
    item = read(tmp_path / "sheet.csv")[0]["item"]
    (tmp_path / "sheet.csv").write_text("\n".join(rows).replace("{0}", item))
    with pytest.raises(cd.CircuitDiscoveryError, match=told.replace("{0}", item)):
        f.read_ratings(tmp_path / "sheet.csv")


def test_what_cannot_be_rated(tmp_path: Path) -> None:
    few: Any = named("m1/n3", "key", 4)
    for call, told in (
        (lambda: few.rate(tmp_path / "a.csv"), "m1/n3 has 4 snippets: not enough for an item of 5"),
        (lambda: few.rate(tmp_path / "a.txt"), "must end in .csv or .html"),
        (lambda: f.rate([3], tmp_path / "a.csv"), "units must be what features.top_activations gives"),
        (lambda: f.rate([], tmp_path / "a.csv"), "units must be what features.top_activations gives"),
        (lambda: f.rate(few, tmp_path / "a.csv", each=0), "each must be a whole number of at least 1, not 0"),
        (
            lambda: f.rate(few, tmp_path / "a.csv", each=-1),
            "each must be a whole number of at least 1, not -1",
        ),
        (lambda: f.read_ratings(tmp_path / "none.csv"), "none.key.json"),
        (lambda: f.read_ratings([]), "paths is empty"),
    ):
        with pytest.raises(cd.CircuitDiscoveryError, match=told):
            call()
    assert not list(tmp_path.iterdir())  # nothing half-written


def test_the_order_is_random() -> None:
    """Where the controls stand on a sheet tells nothing: over many seeds the first item is one half the time."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        first = []
        for seed in range(200):
            path = Path(folder) / "sheet.csv"
            named("m1/n3", "key", 10).rate(path, seed=seed)
            first.append("[random]" in read(path)[0]["snippet 1"])
        assert abs(np.mean(first) - 0.5) < 0.15
