"""The code in docs/toolcalls.md works as it is pasted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent.parent / "docs" / "toolcalls.md"


def test_the_pasted_lines_do_what_they_say(capsys: pytest.CaptureFixture[str]) -> None:
    first, second, *_ = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    scope: dict[str, object] = {}
    exec(first, scope)
    said = capsys.readouterr().out.strip()
    assert said == first.rpartition("# ")[2].strip()
    exec(second, scope)
    said = capsys.readouterr().out
    assert said.startswith("Let me look.")
    assert "name='get_tides'" in said
    assert '{"port":"Ayr"}' in said
