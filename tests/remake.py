"""Writes into the documentation, the README and the notebooks what their code prints now;
read the difference before it is committed.

python tests/remake.py [PAGE ...]        # docs' pages, such as
tutorials/ioi.md; by default all, and the README
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import nbformat
from nbclient import NotebookClient
from test_docs import DOCS, NOTEBOOKS, PAGES, ROOT, blocks, run_command, run_python

README = ROOT / "README.md"


def with_texts(page: str, texts: Sequence[tuple[int, str, str]]) -> str:
    """The page with each block's text, found by its line, in place of the old one."""
    lines = page.splitlines(keepends=True)
    for line, old, new in sorted(texts, reverse=True):
        assert "".join(lines[line : line + old.count("\n")]) == old
        lines[line : line + old.count("\n")] = [new.rstrip("\n") + "\n"]
    return "".join(lines)


def of_page(page: str) -> str:
    """A page of the documentation, run from top to bottom."""
    names: dict[str, Any] = {"__name__": "__main__"}
    printed, texts = "", []
    for block in blocks(page):
        if block.title is not None:
            Path(block.title).write_text(block.text, "utf-8")
        elif block.language == "text":
            texts.append((block.line, block.text, printed))
        elif block.language == "python":
            printed = run_python(block, names, page)
        elif block.language == "console":
            printed = "".join(
                run_command(line[2:]) for line in block.text.splitlines() if line.startswith("$ ")
            )
    return with_texts((DOCS / page).read_text("utf-8"), texts)


def of_notebook(name: str) -> str:
    """The page that has a notebook's blocks, which is run and saved."""
    page, path = NOTEBOOKS[name], DOCS / "notebooks" / name
    stored = nbformat.read(path, as_version=4)
    options = {"timeout": 600, "kernel_name": "python3", "record_timing": False}
    NotebookClient(stored, resources={"metadata": {"path": "."}}, **options).execute()
    stored.metadata["language_info"] = {"name": "python"}
    for cell in stored.cells:
        if cell.cell_type == "code":  # warnings name folders of this machine
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    nbformat.write(stored, path)
    outputs = iter([cell.outputs for cell in stored.cells if cell.cell_type == "code"])
    printed, texts = "", []
    for block in blocks(page):
        if block.language == "python":
            printed = "".join(output.text for output in next(outputs) if output.get("name") == "stdout")
        else:
            texts.append((block.line, block.text, printed))
    return with_texts((DOCS / page).read_text("utf-8"), texts)


def of_readme() -> str:
    """The README, whose first Python block is followed by what it prints."""
    text = README.read_text("utf-8")
    found = re.search(r"```python\n(.*?)```\s*```\n(.*?)```", text, flags=re.DOTALL)
    assert found is not None
    block = type("Block", (), {"line": 1, "text": found[1]})
    return text[: found.start(2)] + run_python(block, {}, "README.md") + text[found.end(2) :]  # pyright: ignore[reportArgumentType]


def main() -> None:
    """Page by page, each in a folder of its own."""
    of = {page: name for name, page in NOTEBOOKS.items()}
    os.environ |= {"PYTHONPATH": str(ROOT), "JUPYTER_PLATFORM_DIRS": "1"}
    for page in sys.argv[1:] or ["README.md", *PAGES]:
        print(page, flush=True)
        with tempfile.TemporaryDirectory() as folder, chdir(folder):
            sys.path.insert(0, folder)
            made = (
                of_readme() if page == "README.md" else of_notebook(of[page]) if page in of else of_page(page)
            )
            sys.path.remove(folder)
        (README if page == "README.md" else DOCS / page).write_text(made, "utf-8")


if __name__ == "__main__":
    main()
