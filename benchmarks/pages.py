"""Tables that benchmarks write into the documentation's pages."""

from __future__ import annotations

from pathlib import Path

from circuitdiscovery.files.disk import write_atomically


def check(page: Path | None, name: str = "table") -> None:
    """Before anything is measured: end where `show` could not write into this page."""
    if page is not None:
        _around(page, name)


def show(text: str, page: Path | None, name: str = "table") -> None:
    """Print a text, or write it into a page in place of the one between the marks of this name."""
    if page is None:
        print(text)
        return
    before, after = _around(page, name)
    write_atomically(page, f"{before}\n\n{text}\n{after}")


def _around(page: Path, name: str) -> tuple[str, str]:
    """A page up to its first mark of this name, and from the second one on, with the marks."""
    begin, end = (f"<!-- {name}: {mark} -->" for mark in ("begin", "end"))
    before, _, rest = (page.read_text("utf-8") if page.is_file() else "").partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"{page}: not a page with the marks {begin} and {end}")
    return before + begin, end + after
