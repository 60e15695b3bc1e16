"""The line of a key, in TOML as people write it."""

from __future__ import annotations

import pytest

from velollm.config.toml_lines import Path, find_line

TEXT = """\
# [server] port = 1
top = 0
[server] # a comment
port = 8000
"quoted" = 1

[[backends]]
url = "a"
headers = { x = "y" }

[[backends]]
  url = "b"
[models."qwen3:8b"]
num_ctx = 1
[ a . b ]
c.d = 1
"""


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("top",), 2),
        (("server",), 3),
        (("server", "port"), 4),
        (("server", "quoted"), 5),
        (("server", "missing"), 3),
        (("backends", 0, "url"), 8),
        (("backends", 0, "headers", "x"), 9),
        (("backends", 1, "url"), 12),
        (("backends", 1, "missing"), 11),
        (("models", "qwen3:8b", "num_ctx"), 14),
        (("a", "b", "c", "d"), 16),
        (("nowhere",), None),
    ],
)
def test_lines(path: Path, line: int | None) -> None:
    assert find_line(TEXT, path) == line


def test_what_is_no_toml_has_no_lines() -> None:
    assert find_line("[[[\n= 3\n[a\x00]\n", ("a",)) is None
