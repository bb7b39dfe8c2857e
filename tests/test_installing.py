"""Installing: one set of pinned versions for every Python that pyproject.toml admits."""

from __future__ import annotations

import importlib.metadata as metadata
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.11.0", "3.11.2", "3.12.0", "3.13.0", "3.14.0")


def _pins() -> dict[str, str]:
    text = (ROOT / "constraints.txt").read_text("utf-8")
    return dict(re.findall(r"^([\w.-]+)==(\S+)", text, flags=re.MULTILINE))


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_pins_admit_every_python() -> None:
    """What each package's own metadata asks for, from the first release of 3.11 on."""
    pins = {_normal(name): version for name, version in _pins().items()}
    refused = []
    for package in metadata.distributions():
        wanted = package.metadata.json.get("requires_python")
        if isinstance(wanted, str) and pins.get(_normal(package.name)) == package.version:
            refused += [
                f"{package.name} {wanted}: not {each}"
                for each in PYTHONS
                if Version(each) not in SpecifierSet(wanted)
            ]
    assert not refused


def test_the_pins_are_what_pyproject_admits() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    pins = {_normal(name): version for name, version in _pins().items()}
    extras = project["optional-dependencies"]
    for text in [*project["dependencies"], *(each for extra in extras.values() for each in extra)]:
        wanted = Requirement(text)
        if wanted.name != project["name"]:
            assert pins[_normal(wanted.name)] in wanted.specifier, text
    tests = {Requirement(text).name for text in extras["test"]}
    assert not tests & {Requirement(text).name for text in extras["docs"]}, (
        "tests run without what the documentation needs"
    )


def _pythons() -> list[str]:
    """The interpreters that are there and start, by their whole version."""
    found: dict[str, str] = {}
    for name in ["/usr/bin/python3", *(f"python3.{minor}" for minor in range(11, 15))]:
        path = shutil.which(name)
        asked = path and subprocess.run(
            [path, "-c", "import sys; print(*sys.version_info[:3], sep='.')"], capture_output=True, text=True
        )
        if path and asked and asked.returncode == 0 and Version(asked.stdout.strip()) >= Version("3.11"):
            found.setdefault(asked.stdout.strip(), path)
    return sorted(found.values())


@pytest.mark.installs
@pytest.mark.parametrize("python", _pythons())
@pytest.mark.parametrize("extra", ["test", "dev"])
def test_pip_finds_a_way(python: str, extra: str, tmp_path: Path) -> None:
    subprocess.run([python, "-m", "venv", tmp_path / "venv"], check=True)
    command = [
        tmp_path / "venv/bin/python",
        "-m",
        "pip",
        "install",
        "--dry-run",
        "--constraint",
        ROOT / "constraints.txt",
        "torch",
    ]
    done = subprocess.run([*command, f"{ROOT}[{extra}]"], capture_output=True, text=True)
    assert done.returncode == 0, "\n".join(
        line for line in done.stderr.splitlines() if not line.startswith("WARNING")
    )
