"""Text out of tokens: whole characters, nothing of a stop string, whatever the pieces."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from velollm.engine.text import TextStream


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in pairwise(places)]


@given(st.text(max_size=40), st.lists(st.integers(0, 200), max_size=30))
def test_no_character_in_pieces(text: str, cuts: list[int]) -> None:
    stream = TextStream()
    out = [stream.feed(piece) for piece in pieces(text.encode(), cuts)]
    assert "".join(out) == text
    assert "\ufffd" not in "".join(out) or "\ufffd" in text


@given(
    st.text("abc", max_size=30),
    st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.integers(0, 200), max_size=30),
)
def test_stop_strings_across_any_tokens(text: str, stops: list[str], cuts: list[int]) -> None:
    stream = TextStream(stops)
    out = ""
    for piece in pieces(text.encode(), cuts):
        out += stream.feed(piece)
        if stream.stopped is not None:
            break
    else:
        out += stream.finish()
    if stream.stopped is None:
        assert out == text
        assert not any(stop in text for stop in stops)
    else:
        assert text.startswith(out + stream.stopped)
        assert not any(stop in out for stop in stops)


def test_bytes_that_are_no_text() -> None:
    stream = TextStream()
    assert stream.feed(b"a\xff") == "a\ufffd"
    assert stream.feed("é".encode()[:1]) == ""
    assert stream.feed(b"b") == "\ufffdb"
    assert stream.feed("é".encode()[:1]) == ""
    assert stream.finish() == "", "half a character is dropped"


def test_what_may_become_a_stop_is_held_back() -> None:
    stream = TextStream(["</end>", "<stop>"])
    assert [stream.feed(piece) for piece in (b"one <", b"/en", b"d", b"ing <s")] == ["one ", "", "", "</ending "]
    assert stream.finish() == "<s"
