"""Sizes as people write them."""

from __future__ import annotations

import pytest

from velollm.cache.size import parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [("64MiB", 64 << 20), ("1 GB", 10**9), ("1.5k", 1536), ("500000", 500_000), ("10b", 10), (7, 7), ("2gib", 2 << 30)],
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "-1", "0", 0, -5, "64 parsecs", "1e9", "1 0", "\u0663MB x"])
def test_what_is_no_size(text: str | int) -> None:
    with pytest.raises(ValueError, match="size"):
        parse_size(text)
