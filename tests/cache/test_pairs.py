"""What the cache answers, on several hundred labelled pairs: the figures that the project promises."""

from __future__ import annotations

import pytest
from support.pairs import FOLDER, read_pairs, score

NEVER = (
    "ctx_differs", "direction_swap", "role_swap", "code_token", "long_text", "template_payload", "negation",
    "number_change",
)  # fmt: skip


@pytest.mark.parametrize("name", ["tuned", "held", "fresh"])
def test_the_promise(name: str) -> None:
    result = score(read_pairs(FOLDER / f"{name}.jsonl"))
    wrong = result.false_hits()
    assert result.precision >= 0.99
    assert result.recall >= 0.75
    assert max(wrong.values()) <= 0.05
    assert [name for name in NEVER if wrong[name]] == []
