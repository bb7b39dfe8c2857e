"""Tables that benchmarks write into the documentation's pages."""

from __future__ import annotations

from pathlib import Path

from circuitdiscovery.files.disk import write_atomically


def show(text: str, page: Path | None, name: str = "table") -> None:
    """Print a table, or write it into a page in place of the one between the marks of its name."""
    if page is None:
        print(text)
        return
    begin, end = (f"<!-- {name}: {which} -->" for which in ("begin", "end"))
    before, _, rest = page.read_text("utf-8").partition(begin)
    write_atomically(page, f"{before}{begin}\n\n{text}\n{end}{rest.partition(end)[2]}")
