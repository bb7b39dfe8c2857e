"""Reading is strict, writing is whole or not at all."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.files.disk import (
    data_folder,
    read_json,
    read_text,
    shipped,
    to_json,
    write_atomically,
    write_json,
)


def test_data_folders_hold_what_is_shipped() -> None:
    assert (data_folder("tasks") / "ioi.toml").is_file()
    assert {"ioi", "greater_than", "subject_verb_agreement", "gendered_pronoun", "induction"} <= set(
        shipped("tasks")
    )
    for name in shipped("graphs"):
        assert name.count("/") == 1 and (data_folder("graphs") / f"{name}.json").is_file()
    for name in shipped("models"):
        assert (data_folder("models") / name / "config.json").is_file()


def test_no_python_among_the_data() -> None:
    """A top-level import package `tasks` would break beside a user's own tasks.py."""
    assert not [path for kind in ("tasks", "graphs") for path in data_folder(kind).rglob("*.py")]


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("", None, "is empty"),
        (" \n\t\n", None, "is empty"),
        ('{"a": 1,\n "b": }', 2, "not JSON"),
        ('{"a": 1', 1, "not JSON"),
        ('{"a": "NaN",\n "b":\n NaN}', 3, "NaN is not a finite number"),
        ('["Infinity",\n -Infinity]', 2, "-Infinity is not a finite number"),
        ('{"a":\n 1e999}', 2, "1e999 is not a finite number"),
        ('{"b": "a",\n "a": 1,\n "a": 2}', None, "'a' stands twice"),
        ("[" * 100 + "]" * 100, None, "nested deeper than 64 levels"),
        ("[" * 200_000 + "]" * 200_000, None, "nested deeper than 64 levels"),
        ("[" * 200_000, None, "nested deeper than 64 levels"),
        ('{"a":' * 200_000 + "1" + "}" * 200_000, None, "nested deeper than 64 levels"),
        ("9" * 10_000, None, "too long"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_broken_json_is_an_error_that_names_file_and_line(
    tmp_path: Path, text: str, line: int | None, says: str
) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(CircuitDiscoveryError) as caught:
        read_json(path)
    message = str(caught.value)
    assert message.startswith(f"{path}, line {line}: " if line else str(path))
    assert says in message
    assert "\n" not in message


def test_text_that_is_not_utf8_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "latin.csv"
    path.write_bytes(b"clean,corrupted\nna\xefve,x\n")
    with pytest.raises(CircuitDiscoveryError, match=r"latin\.csv, line 2: not UTF-8"):
        read_text(path)


@pytest.mark.parametrize("name", ["missing.json", ".", "missing/missing.json"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(CircuitDiscoveryError, match="cannot read"):
        read_text(tmp_path / name)


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": "\xc3\xa9"}')
    assert read_json(tmp_path / "a.json") == {"a": "é"}


def test_json_comes_back_and_is_the_same_bytes(tmp_path: Path) -> None:
    value = {"ä": [1, 2.5, None, True], "nested": {"a": {"b": ["c"]}}}
    write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == value == read_json(tmp_path / "a.json")
    assert to_json(value).encode() == (tmp_path / "a.json").read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        to_json({"a": float("nan")})


def test_writing_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_atomically(path, b"one\r\n")
    assert path.read_bytes() == b"one\r\n"
    write_atomically(path, "zwö\n")
    assert path.read_bytes() == "zwö\n".encode()
    assert os.listdir(tmp_path) == ["a.bin"]
    longest = tmp_path / ("ä" * 127 + "a")  # 255 bytes, which is what the system takes
    write_atomically(longest, "one")
    assert longest.read_text() == "one"


def test_written_files_have_the_usual_permissions(tmp_path: Path) -> None:
    write_atomically(tmp_path / "ours", "x")
    (tmp_path / "usual").write_text("x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("failing", ["write_bytes", "replace"])
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=["full", "ctrl-c"]
)
def test_what_fails_half_way_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, error: BaseException
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail(*args: Any, **kwargs: Any) -> None:
        if failing == "write_bytes":
            with open(args[0], "wb") as file:
                file.write(b"ne")  # the disk takes a part of it
        raise error

    monkeypatch.setattr(*((Path, "write_bytes") if failing == "write_bytes" else (os, "replace")), fail)
    expected = CircuitDiscoveryError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        write_atomically(path, "new")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["a.txt"]
    assert path.read_text() == "old"
    if expected is CircuitDiscoveryError:
        assert str(caught.value) == f"cannot write {path}: No space left on device"


def test_a_new_file_is_one_processes_alone_without_hard_links_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", fail)
    write_atomically(tmp_path / "a.txt", "first", new=True)
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "a.txt", "second", new=True)
    monkeypatch.setattr(os, "replace", fail)  # what fails half way leaves nothing
    with pytest.raises(CircuitDiscoveryError, match=r"cannot write .*b\.txt"):
        write_atomically(tmp_path / "b.txt", "first", new=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "first"


@pytest.mark.parametrize("name", ["missing/a.txt", "folder", "file/a.txt"])
def test_a_path_that_cannot_be_written_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(CircuitDiscoveryError) as caught:
        write_atomically(tmp_path / name, "x")
    assert str(tmp_path / name) in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_device_is_never_replaced() -> None:
    with pytest.raises(CircuitDiscoveryError, match="not a regular file"):
        write_atomically("/dev/full", "x")
    assert Path("/dev/full").is_char_device()
