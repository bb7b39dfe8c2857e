"""Docstrings as griffe's Google parser reads them, for the page API (mkdocs.yml names this file).

The docstrings are written for `help()`. Two of their conventions are not Google's, and would be garbled:

1. a doctest stands without a heading; it becomes the section `Examples:`, which is shown as code;
2. parameters that share a description share an entry, `clean, corrupted: ...`; each becomes one of its own.
"""

from __future__ import annotations

import re
from itertools import groupby
from typing import Any

import griffe

NAMED = ("Args:", "Attributes:")  # the sections whose entries begin with names
SHARED = re.compile(r"    (\w+(?:, \w+)+): ")


class Docstrings(griffe.Extension):
    """Rewrites each docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every module, class, function and attribute that griffe finds."""
        if obj.docstring is not None:
            obj.docstring.value = google(obj.docstring.value)


def google(docstring: str) -> str:
    """A docstring by Google's conventions."""
    paragraphs = ["\n".join(lines) for blank, lines in groupby(docstring.split("\n"), _is_blank) if not blank]
    return "\n\n".join(_paragraph(each) for each in paragraphs)


def _is_blank(line: str) -> bool:
    return not line.strip()


def _paragraph(text: str) -> str:
    if text.startswith(">>>"):
        return "\n    ".join(["Examples:", *text.split("\n")])
    if not text.startswith(NAMED):
        return text
    return "\n".join(one for entry in re.split(r"\n(?=    \S)", text) for one in _for_each_name(entry))


def _for_each_name(entry: str) -> list[str]:
    shared = SHARED.match(entry)
    if shared is None:
        return [entry]
    return [f"    {name}: {entry[shared.end() :]}" for name in shared[1].split(", ")]
