"""The bytes of an entry: what was written comes back, and nothing else ever does."""

from __future__ import annotations

import zlib

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.cache import entry

from velollm.cache.entry import Damaged, Entry, decode, encode

ENTRIES = st.builds(
    Entry,
    key=st.binary(min_size=16, max_size=16),
    check=st.binary(max_size=16),
    tenant=st.binary(max_size=16),
    model=st.text(max_size=9),
    created=st.floats(0, 2e9),
    expires=st.floats(0, 2e9),
    answer=st.binary(max_size=99),
    alias=st.binary(max_size=16),
    alias_check=st.binary(max_size=32),
    scope=st.binary(max_size=16),
    prompt=st.text(max_size=30),
    tags=st.lists(st.text(max_size=5), max_size=3).map(tuple),
)


@given(ENTRIES)
def test_an_entry_comes_back_as_it_was(original: Entry) -> None:
    assert decode(encode(original)) == original


@given(st.data())
def test_a_flipped_bit_or_a_cut_is_noticed(data: st.DataObject) -> None:
    written = bytearray(encode(data.draw(ENTRIES)))
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(written) - 1))
        written[at] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del written[data.draw(st.integers(0, len(written) - 1)) :]
    with pytest.raises(Damaged):
        decode(bytes(written))


@given(st.binary(max_size=200))
def test_foreign_bytes_are_no_entry(foreign: bytes) -> None:
    with pytest.raises(Damaged):
        decode(foreign)


@pytest.mark.parametrize("header", [[], {}, ["zz"] * 12, [None] * 12, [b"".hex()] * 11, "text", 5])
def test_a_right_checksum_over_a_wrong_header_is_no_entry(header: object) -> None:
    head = orjson.dumps(header)
    body = len(head).to_bytes(4, "big") + head + b"{}"
    with pytest.raises(Damaged):
        decode(b"VLC2" + zlib.crc32(body).to_bytes(4, "big") + body)


def test_a_newer_version_is_not_read() -> None:
    with pytest.raises(Damaged):
        decode(b"VLC9" + encode(entry(1))[4:])


def test_size_covers_answer_and_prompt() -> None:
    assert entry(1, size=10_000).size >= 10_000
    assert entry(1, prompt="p" * 400, scope=b"s").size > entry(1, prompt="p" * 400).size >= 400
