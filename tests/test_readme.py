"""The README's Python runs as it stands, and prints what the README says, up to the machine's last digits."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+\.?\d*", text.replace(",", ""))]


@pytest.mark.slow
def test_the_ten_lines_print_what_they_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, output = re.findall(
        r"```python\n(.*?)```\s*```\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL
    )[0]
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    printed = capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"ioi.json", "ioi.svg"}
    assert re.sub(r"-?\d+\.?\d*", "#", printed.replace(",", "")) == re.sub(
        r"-?\d+\.?\d*", "#", output.replace(",", "")
    )
    assert numbers(printed) == pytest.approx(numbers(output), rel=0.02, abs=0.02)
    first, *rest = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert first == code and rest
    for block in rest:  # they go on with what the first one made
        exec(compile(block, "README.md", "exec"), names)
    assert "S-inhibition" in capsys.readouterr().out


def test_each_link_leads_to_a_file_or_a_folder() -> None:
    links = re.findall(r"\]\((?!https?:)(.*?)\)", README.read_text(encoding="utf-8"))
    assert len(links) > 20
    assert not [link for link in links if not (README.parent / link).exists()]
