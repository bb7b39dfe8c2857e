"""Tables that benchmarks write into the documentation's pages."""

from __future__ import annotations

from pathlib import Path

from circuitdiscovery.files.disk import write_atomically

BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


def show(text: str, page: Path | None) -> None:
    """Print a table, or write it into a page in place of the one between its marks."""
    if page is None:
        print(text)
        return
    before, _, rest = page.read_text("utf-8").partition(BEGIN)
    write_atomically(page, f"{before}{BEGIN}\n\n{text}\n{END}{rest.partition(END)[2]}")
