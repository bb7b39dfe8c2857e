"""Every code block of the documentation runs, in the order of its page, and prints what the page says.

```python          runs; the blocks of a page share their names and a folder
```console         every line that begins with `$ ` runs as a command in that folder
```text            directly after one of these: what it printed, up to the last digits of numbers
```LANG title="F"  is written to the file F
```html, svg, log  shows what a file holds, or what the command printed that wrote the page
"""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import runpy
import shlex
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields
from html import unescape
from inspect import signature
from itertools import islice
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


def assert_printed(printed: str, told: str, where: str, relative: float = 0.03) -> None:
    def words(text: str) -> str:
        return " ".join(re.sub(NUMBER, "#", text.replace(",", "")).split())

    def numbers(text: str) -> list[float]:
        return [float(number) for number in re.findall(NUMBER, text.replace(",", ""))]

    assert words(printed) == words(told), where
    assert numbers(printed) == pytest.approx(numbers(told), rel=relative, abs=0.02), where


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


# What one part has computed, those that follow in the same process need not compute again.
ONCE = """
import circuitdiscovery as cd


def once(function):
    known = {}

    def call(*arguments, **options):
        given = [*arguments, *options, *options.values()]
        key = tuple(each if isinstance(each, str | float) else id(each) for each in given)
        if key not in known:
            known[key] = function(*arguments, **options), given  # which is kept: no other gets its id
        return known[key][0]

    return call


for name in ("load_model", "load_task", "load_hypothesis", "acdc", "evaluate", "explain", "path_patching", "scrub"):
    setattr(cd, name, once(getattr(cd, name)))
"""


def readme_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), flags=re.DOTALL)


@dataclass(frozen=True)
class Ran:
    """Cells that ran, from the first to the last, and the folder that they ran in."""

    cells: list[Any]
    folder: Path


def printed_by(cell: Any) -> str:
    return "".join(output.text for output in cell.outputs if output.get("name") == "stdout")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ran]:
    """The code cells of each notebook and the README's blocks, in one process, because imports take seconds:
    each part in a folder of its own and without the names of those before it."""
    parts = {
        name: code_of(nbformat.read(DOCS / "notebooks" / name, as_version=4).cells) for name in NOTEBOOKS
    }
    parts["README.md"] = readme_blocks()
    folders = {name: tmp_path_factory.mktemp(name.partition(".")[0]) for name in parts}
    cells = [ONCE]
    for name, part in parts.items():
        cells += [f"%reset -f\nimport os; os.chdir({str(folders[name])!r}); del os", *part]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("JUPYTER_PLATFORM_DIRS", "1")
        patch.setenv("OMP_NUM_THREADS", "1")  # the other test processes have the other cores
        NotebookClient(book, timeout=300, kernel_name="python3").execute()
    left = iter(book.cells[1:])
    return {name: Ran(list(islice(left, 1, 1 + len(part))), folders[name]) for name, part in parts.items()}


def code_of(cells: list[Any]) -> list[str]:
    return [cell.source for cell in cells if cell.cell_type == "code"]


@pytest.mark.slow
def test_the_ten_lines_of_the_readme_print_what_they_say(ran: dict[str, Ran]) -> None:
    """The README's Python runs as it stands, and prints what the README says, up to the machine's last digits."""
    (first, *rest), folder = ran["README.md"].cells, ran["README.md"].folder
    code, output = re.findall(
        r"```python\n(.*?)```\s*```\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), flags=re.DOTALL
    )[0]
    assert first.source == code and rest
    assert {path.name for path in folder.iterdir()} == {"ioi.json", "ioi.svg"}
    printed, told = (re.sub(NUMBER, "#", text.replace(",", "")) for text in (printed_by(first), output))
    assert printed == told  # to the space
    assert_printed(printed_by(first), output, "README.md", 0.02)
    assert "S-inhibition" in "".join(map(printed_by, rest))  # they go on with what the first one made


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_every_notebook_runs_from_top_to_bottom_and_prints_what_its_page_says(
    notebook: str, ran: dict[str, Ran]
) -> None:
    """Its cells are the page's blocks in their order, at most with a picture after them."""
    cells = ran[notebook].cells
    page = list(blocks(NOTEBOOKS[notebook]))
    assert len(cells) == sum(block.language == "python" for block in page) >= 5
    at, printed = -1, ""
    for block in page:
        where = f"{NOTEBOOKS[notebook]}, line {block.line}"
        if block.language == "python":
            at += 1
            assert block.text.strip() in cells[at].source, where
            printed = printed_by(cells[at])
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


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documentation as a site, built without a warning."""
    pytest.importorskip("mkdocs", reason="make docs installs what the documentation is built with")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    command += ["--config-file", str(ROOT / "mkdocs.yml"), "--site-dir", str(folder)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def text_of(html: str) -> str:
    """The text of HTML without scripts, as it is read."""
    return unescape(re.sub(r"<[^>]*>", "", re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)))


def doctests(name: str, thing: Any) -> list[doctest.Example]:
    """The doctests of a public function or class and of its public members."""
    found = doctest.DocTestFinder().find(thing, name, module=sys.modules[thing.__module__])
    return [one for each in found if "._" not in each.name for one in each.examples]


def test_the_site_fetches_nothing(site: Path) -> None:
    page = (site / "api.html").read_text("utf-8")
    assert not re.findall(r'(?:src|href)="(https?://[^"]*\.(?:js|css|woff2?))"', page)


def test_each_public_name_has_one_heading(site: Path) -> None:
    page = (site / "api.html").read_text("utf-8")
    headings = re.findall(r'<h3 id="circuitdiscovery\.(\w+)"', page)
    assert sorted(headings) == sorted(set(cd.__all__) - {"__version__"})


def test_each_doctest_is_shown_as_code_and_nowhere_as_text(site: Path) -> None:
    page = (site / "api.html").read_text("utf-8")
    codes = [text_of(code) for code in re.findall(r"<pre>.*?</pre>", page, flags=re.DOTALL)]
    assert ">>>" not in text_of(re.sub(r"<pre>.*?</pre>", "", page, flags=re.DOTALL))
    shown = Counter(
        line[4:].strip() for code in codes for line in code.splitlines() if line[:3] in (">>>", "...")
    )
    examples = [
        one for name in cd.__all__ if name != "__version__" for one in doctests(name, getattr(cd, name))
    ]
    for package in (cd.features, cd.universality):
        examples += [one for name in package.__all__ for one in doctests(name, getattr(package, name))]
    assert len(examples) > 50
    assert shown == Counter(line.strip() for one in examples for line in one.source.splitlines())
    for one in examples:
        assert any(one.want.strip() in code for code in codes), one.source


def test_parameters_that_share_a_description_are_entries_each(site: Path) -> None:
    page = (site / "api.html").read_text("utf-8")
    for name in sorted(set(cd.__all__) - {"__version__", "CircuitDiscoveryError"}):
        own = re.split(r"<h[1-6] ", page[page.index(f'<h3 id="circuitdiscovery.{name}"') + 1 :])[0]
        table = re.split("Returns:|Raises:|Examples:", own.partition("Parameters:")[2])[0]
        named = re.findall(r"<tr.*?>\s*<td>\s*<code>(.*?)</code>", table)
        assert len(named) == len(set(named)), name
        assert set(named) <= set(signature(getattr(cd, name)).parameters), name
        assert name != "Example" or len(named) == len(fields(cd.Example))
