"""Sizes and durations as people write them, and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velollm.config import parse_seconds, parse_size, show_seconds, show_size


@pytest.mark.parametrize(
    ("text", "size"),
    [("4096", 4096), (4096, 4096), ("16MiB", 16 << 20), ("16 mib", 16 << 20), ("500MB", 500_000_000), ("1.5k", 1500),
     ("1Gi", 1 << 30), (" 2T ", 2 * 10**12)],
)  # fmt: skip
def test_sizes(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "MiB", "-1", "0", 0, -5, "1e9", "1.2.3", "16 apples", None, True, 1.5, "9" * 40, 2**62]
)
def test_no_sizes(text: object) -> None:
    with pytest.raises(ValueError, match="must be a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2.5", 2.5), (30, 30.0), ("500ms", 0.5), ("30s", 30.0), ("1h30m", 5400.0), ("1d", 86400.0), ("0", 0.0),
     ("1 m", 60.0)],
)  # fmt: skip
def test_seconds(text: object, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1", -1, "nan", "inf", "1w", "1h30", None, True, "30 s x", 1e10])
def test_no_seconds(text: object) -> None:
    with pytest.raises(ValueError, match="must be a duration"):
        parse_seconds(text)


@given(st.integers(1, 2**62 - 1))
def test_a_size_that_is_shown_reads_the_same(size: int) -> None:
    assert parse_size(show_size(size)) == size


@given(st.floats(0, 10**9, allow_nan=False).map(lambda value: round(value, 3)))
def test_seconds_that_are_shown_read_the_same(seconds: float) -> None:
    assert parse_seconds(show_seconds(seconds)) == seconds
