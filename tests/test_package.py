"""The package as it is imported, built and installed."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import circuitdiscovery as cd

PACKAGE = Path(cd.__file__).parent
ROOT = PACKAGE.parent

# The packages in the order of the data flow: each imports only from those
# before it, late and for type checkers too.
ORDER = [
    *(
        "errors",
        "files",
        "registry",
        "public",
        "arguments",
        "values",
        "graph",
        "model",
        "task",
        "circuit",
        "engine",
    ),
    *(
        "measure",
        "features",
        "search",
        "explanation",
        "universality",
        "reporting",
        "benchmark",
        "cli",
        "__main__",
    ),
]

in_checkout = pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="needs the checkout")


def run(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(a) for a in arguments], capture_output=True, text=True, **options)  # type: ignore[call-overload]


# ------------------------------------------------------------------- imports


LIGHT = ("cli.main", "cli.run", "reporting.options", "task.read", "benchmark.options")


@pytest.mark.parametrize("module", ["circuitdiscovery", *(f"circuitdiscovery.{name}" for name in LIGHT)])
def test_import_is_light(module: str) -> None:
    code = f"import sys, json, {module}; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(run(sys.executable, "-c", code).stdout)
    assert module in loaded
    assert not {"torch", "transformers", "transformer_lens", "numpy", "networkx", "pygraphviz", "rich"} & set(
        loaded
    )


def test_circuits_need_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; import circuitdiscovery as cd; cd.Graph, cd.Scores, "
        "cd.load_circuit, cd.compare"
    )
    result = run(sys.executable, "-c", code)
    assert result.returncode == 0, result.stderr


def _imports(path: Path) -> Iterator[str]:
    """The packages, or single files at the top, that a file imports from."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{PACKAGE.name}."):
            yield str(node.module).split(".")[1]
        elif isinstance(node, ast.ImportFrom) and node.module == PACKAGE.name:
            yield from (alias.name for alias in node.names if not alias.name.startswith("__"))


def test_packages_import_only_from_packages_before_them() -> None:
    tops = {path: path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")}
    assert set(tops.values()) == {*ORDER, "__init__"}
    wrong = [
        f"{path.relative_to(PACKAGE)} imports from {other}"
        for path, top in tops.items()
        for other in _imports(path)
        if top != "__init__" and other not in ORDER[: ORDER.index(top) + (path.parent != PACKAGE)]
    ]
    assert not wrong


@in_checkout
@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_the_pages_list_the_packages_in_this_order(page: str) -> None:
    """Those of the data flow, from the one that imports least."""
    text = (ROOT / page).read_text("utf-8")
    told = re.search(r"only from (?:the )?packages before it.*?:\s(.*?)\.\s", text, re.DOTALL)
    assert told is not None
    listed = re.sub(r"\(.*?\)", "", told[1]).replace("[", "").replace("]", "")
    assert [name.strip() for name in listed.split(",")] == ORDER[
        ORDER.index("graph") : ORDER.index("cli") + 1
    ]


# -------------------------------------------------------------- public names


def _declared() -> dict[str, str]:
    """Public name -> module, as type checkers read it from the TYPE_CHECKING block."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text("utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    return {
        alias.asname or alias.name: str(node.module)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_all_is_exactly_the_public_names() -> None:
    declared = _declared()
    assert set(cd.__all__) == {*declared, "__version__"}
    assert dir(cd) == cd.__all__ == sorted(cd.__all__)
    for name, module in declared.items():
        # the lazy import and the checkers' one agree, and both are its home
        assert getattr(cd, name).__module__ == module
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        cd.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_public_names_are_documented() -> None:
    undocumented = [
        name for name in cd.__all__ if name != "__version__" and not (getattr(cd, name).__doc__ or "").strip()
    ]
    assert not undocumented


@in_checkout
def test_the_docs_say_the_version_that_is_built() -> None:
    head = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert (
        head.index("## [Unreleased]") < head.find(f"## [{cd.__version__}]")
        or f"## [{cd.__version__}]" not in head
    )


@in_checkout
def test_constraints_pin_every_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    names = {
        requirement.partition(">")[0].partition("[")[0].lower().replace("_", "-") for requirement in wanted
    }
    assert names - {project["name"]} <= pinned
    assert "torch==2.13.0" in lines


# ------------------------------------------------------------------ the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    result = run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    return next(folder.glob("*.whl"))


@in_checkout
@pytest.mark.slow
def test_the_wheel_holds_code_and_data_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for file in [*(ROOT / "tasks").glob("*.toml"), *(ROOT / "graphs").glob("*/*.json")]:
        assert f"circuitdiscovery/_data/{file.relative_to(ROOT).as_posix()}" in names
    assert "circuitdiscovery/py.typed" in names
    assert {name.split("/")[0] for name in names} == {
        "circuitdiscovery",
        f"circuitdiscovery-{cd.__version__}.dist-info",
    }
    assert any(name.endswith("LICENSE") for name in names)


@in_checkout
@pytest.mark.slow
def test_the_wheel_runs_in_a_fresh_environment(wheel: Path, tmp_path: Path) -> None:
    """Away from the checkout, with nothing but the wheel and the dependencies of this environment."""
    home = tmp_path / "venv"
    venv.create(home, with_pip=False)
    site = next(home.glob("lib/*/site-packages"))
    result = run(
        sys.executable, "-m", "pip", "--python", home, "install", "--quiet", "--no-deps", "--no-index", wheel
    )
    assert result.returncode == 0, result.stderr
    # last on the path, so that an editable install of this checkout cannot stand in for the wheel
    dependencies = [path for path in sys.path if path.endswith("site-packages")]
    (site / "dependencies.pth").write_text("import sys; sys.path += " + repr(dependencies) + "\n")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")} | {
        "HF_HUB_OFFLINE": "1"
    }
    where = {"cwd": tmp_path, "env": environment}
    listed = run(home / "bin/circuitdiscovery", "tasks", **where)
    assert (listed.returncode, listed.stderr) == (0, "")
    assert {line.split()[0] for line in listed.stdout.splitlines()} >= {"ioi", "greater_than", "induction"}
    code = (
        "import circuitdiscovery as cd; print(cd.__file__);"
        "model = cd.load_model('toy'); task = cd.load_task('ioi', model, examples=4);"
        "print(len(task), len(cd.acdc(model, task, threshold=1.0).graph))"
    )
    ran = run(home / "bin/python", "-c", code, **where)
    assert ran.returncode == 0, ran.stderr
    file, counts = ran.stdout.splitlines()
    assert Path(file).is_relative_to(home)
    assert counts.split() == ["4", str(len(cd.Graph.from_model(cd.load_model("toy"))))]
