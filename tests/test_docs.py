"""Every code block of the documentation runs, in the order of its page, and prints what the page says.

```python          runs; the blocks of a page share their names and a folder
```console         every line that begins with `$ ` runs as a command in that folder
```text            directly after one of these: what it printed, up to the last digits of numbers
```LANG title="F"  is written to the file F
```html, svg, log  shows what a file holds, or what the command printed that wrote the page
"""

from __future__ import annotations

import contextlib
import io
import re
import runpy
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pytest
from click.testing import CliRunner
from forked import as_torchrun
from nbclient import NotebookClient

import circuitdiscovery as cd
from circuitdiscovery.cli.main import cli

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
# and the page with the same blocks
NOTEBOOKS = {"ioi.ipynb": "tutorials/ioi.md", "greater_than.ipynb": "tutorials/greater-than.md"}
NUMBER = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"
SHOWN = {"html", "svg", "log"}


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the file it stands for, its line, its text, and
    whether it follows the one before at once.
    """

    language: str
    title: str | None
    line: int
    text: str
    follows: bool


def blocks(page: str) -> Iterator[Block]:
    text, end = (DOCS / page).read_text("utf-8"), 0
    for found in re.finditer(r"^```(.*?)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE):
        info = found[1].strip()
        title = re.search(r'title="(.*?)"', info)
        line = text[: found.start()].count("\n") + 1
        yield Block(
            info.split(" ")[0], title and title[1], line, found[2], not text[end : found.start()].strip()
        )
        end = found.end()


def run_python(block: Block, names: dict[str, Any], where: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile("\n" * block.line + block.text, where, "exec"), names)
    return out.getvalue()


def run_command(line: str) -> str:
    """What a command printed."""
    words = shlex.split(line, comments=True)
    if words[0] == "circuitdiscovery":  # in this process: importing torch takes seconds
        result = CliRunner().invoke(cli, words[1:])
        assert result.exit_code == 0, f"{line}\n{result.output}"
        return result.stdout
    if words[0] == "torchrun":
        assert words[1] == "--nproc-per-node", line
        with tempfile.TemporaryDirectory() as said:
            results = as_torchrun(int(words[2]), lambda: run_module(words[3:]), Path.cwd(), Path(said))
        assert not any(result.status for result in results), f"{line}\n{results}"
        return "".join(result.out for result in results)
    result = subprocess.run(words, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, f"{line}\n{result.stderr}"
    return result.stdout


def run_module(words: list[str]) -> None:
    """`python FILE ...` or `python -m MODULE ...` in this process."""
    sys.argv = words[1:] if words[0] == "-m" else words
    if words[0] == "-m":
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(words[0], run_name="__main__")


def assert_printed(printed: str, told: str, where: str) -> None:
    def words(text: str) -> str:
        return " ".join(re.sub(NUMBER, "#", text.replace(",", "")).split())

    def numbers(text: str) -> list[float]:
        return [float(number) for number in re.findall(NUMBER, text.replace(",", ""))]

    assert words(printed) == words(told), where
    assert numbers(printed) == pytest.approx(numbers(told), rel=0.03, abs=0.02), where


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted(set(PAGES) - set(NOTEBOOKS.values())))
def test_every_block_runs_and_prints_what_the_page_says(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    names: dict[str, Any] = {"__name__": "__main__"}
    printed: str | None = None
    for block in blocks(page):
        where = f"{page}, line {block.line}"
        if block.title is not None:
            Path(block.title).write_text(block.text, "utf-8")
        elif block.language == "text":
            assert printed is not None and block.follows, f"{where}: what printed this?"
            assert_printed(printed, block.text, where)
        elif block.language == "python":
            printed = run_python(block, names, where)
        elif block.language == "console":
            lines = [line.removeprefix("$ ") for line in block.text.splitlines() if line.startswith("$ ")]
            printed = "".join(run_command(line) for line in lines)
        else:
            assert block.language in SHOWN, f"{where}: a block of {block.language!r} that nothing runs"


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_every_notebook_runs_from_top_to_bottom_and_prints_what_its_page_says(
    notebook: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cells are the page's blocks in their order, at most with a picture after them."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the other test processes have the other cores
    stored = nbformat.read(DOCS / "notebooks" / notebook, as_version=4)
    NotebookClient(
        stored, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    cells = [cell for cell in stored.cells if cell.cell_type == "code"]
    page = list(blocks(NOTEBOOKS[notebook]))
    assert len(cells) == sum(block.language == "python" for block in page) >= 5
    at, printed = -1, ""
    for block in page:
        where = f"{NOTEBOOKS[notebook]}, line {block.line}"
        if block.language == "python":
            at += 1
            assert block.text.strip() in cells[at].source, where
            printed = "".join(output.text for output in cells[at].outputs if output.get("name") == "stdout")
        else:
            assert block.language == "text" and block.follows, where
            assert_printed(printed, block.text, where)


def test_the_api_page_has_every_public_name() -> None:
    told = re.findall(
        r"^::: circuitdiscovery\.(\w+)$", (DOCS / "api.md").read_text("utf-8"), flags=re.MULTILINE
    )
    assert sorted(told) == sorted(set(cd.__all__) - {"__version__"})


def test_every_notebook_has_its_page() -> None:
    assert set(NOTEBOOKS) == {path.name for path in (DOCS / "notebooks").glob("*.ipynb")}
    assert set(NOTEBOOKS.values()) <= set(PAGES)


def test_pictures_are_there() -> None:
    for page in PAGES:
        for path in re.findall(r"!\[.*?\]\((.*?)\)", (DOCS / page).read_text("utf-8")):
            assert ((DOCS / page).parent / path).is_file(), f"{page}: {path}"


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip(
        "mkdocs", reason="the documentation's packages are not there: make docs installs them"
    )
    built = subprocess.run(
        [
            sys.executable,
            "-m",
            "mkdocs",
            "build",
            "--strict",
            "--quiet",
            "--config-file",
            str(ROOT / "mkdocs.yml"),
            "--site-dir",
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    page = (tmp_path / "api.html").read_text("utf-8")
    assert all(f'id="circuitdiscovery.{name}"' in page for name in set(cd.__all__) - {"__version__"})
    fetched = re.findall(r'(?:src|href)="(https?://[^"]*\.(?:js|css|woff2?))"', page)
    assert not fetched
