"""The pages that benchmarks write into: one that cannot be written is refused before anything is measured."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("needs the checkout", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))
WRITING = sorted(path.stem for path in BENCHMARKS.glob("*.py") if '"--page"' in path.read_text("utf-8"))
NEEDED = {"toy_seeds": ("forming", "nothing"), "shared_circuits": ("--seeds", "nothing")}
MARKS = {"toy_seeds": "forming", "coverage_of_pairs": "pairs", "universality": "units"}


@pytest.mark.parametrize("name", WRITING)
def test_a_page_that_cannot_be_written_is_refused_before_anything_is_measured(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No such page, one without marks, and one without the second mark, where the rest would be lost."""
    benchmark: Any = importlib.import_module(name)
    page, mark = tmp_path / "page.md", MARKS.get(name, "table")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *NEEDED.get(name, ()), "--page", str(page)])
    for text in (None, "words\n", f"words\n<!-- {mark}: begin -->\nmore\n"):
        if text is not None:
            page.write_text(text)
        with pytest.raises(SystemExit, match=rf"page.md: .*<!-- {mark}: begin --> and <!-- {mark}: end -->"):
            benchmark.main()
        assert [each.name for each in tmp_path.iterdir()] == ([] if text is None else ["page.md"])
        assert text is None or page.read_text() == text


def test_the_pages_that_commands_name_are_there_and_have_marks() -> None:
    named = {
        page
        for path in (*BENCHMARKS.glob("*.py"), *(ROOT / "docs").rglob("*.md"))
        for page in re.findall(r"--page (docs/\S+?\.md)", path.read_text("utf-8"))
    }
    assert "docs/coverage.md" in named
    assert not [page for page in sorted(named) if not (ROOT / page).is_file()]
    assert not [page for page in sorted(named) if ": begin -->" not in (ROOT / page).read_text("utf-8")]
