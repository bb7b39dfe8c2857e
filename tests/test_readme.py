"""The README's links; what its Python prints is in test_docs."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_each_link_leads_to_a_file_or_a_folder() -> None:
    links = re.findall(r"\]\((?!https?:)(.*?)\)", README.read_text(encoding="utf-8"))
    assert len(links) > 20
    assert not [link for link in links if not (README.parent / link).exists()]
