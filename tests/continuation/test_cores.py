"""The parts of continuation that think: alignment of tokens, seams, retracing, the client's one stream."""

from __future__ import annotations

from itertools import pairwise

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from velollm.continuation import (
    Clear,
    Continuation,
    Diverged,
    Kept,
    Retrace,
    Said,
    Seam,
    Token,
    Unclear,
    align,
    ids_of_piece,
    obstacle,
    prefilled,
    safe_boundary,
)
from velollm.errors import UnsupportedError
from velollm.messages import (
    ChatEvent,
    ChatRequest,
    ImagePart,
    Message,
    ResponseFormat,
    ResponseMeta,
    Tool,
    ToolCallDelta,
    Usage,
)

HELLO = [Message(role="user", content="Hello")]


def tokens(*texts: str | bytes) -> list[Token]:
    return [(number, text.encode() if isinstance(text, str) else text) for number, text in enumerate(texts, 100)]


# ---- alignment ----


def test_pieces_that_are_tokens_of_the_whole_are_clear() -> None:
    assert align(["He", " you"], tokens("He", " you")) == [Clear([100]), Clear([101])]


def test_tokens_across_the_ends_of_pieces_are_unclear_between_common_ends() -> None:
    assert align(["Hel", "lo", " you"], tokens("Hello", " you")) == [Unclear(["Hel", "lo"]), Clear([101])]


def test_a_piece_of_several_whole_tokens_is_unclear() -> None:
    assert align(["Hello"], tokens("Hel", "lo")) == [Unclear(["Hello"])]


def test_the_bytes_of_one_character_are_clear() -> None:
    fox = " 🦊".encode()
    assert align([" 🦊"], tokens(fox[:3], fox[3:4], fox[4:])) == [Clear([100, 101, 102])]


def test_another_text_is_unclear_altogether() -> None:
    assert align(["Hello"], tokens(" Hello")) == [Unclear(["Hello"])]
    assert ids_of_piece("a", tokens("b")) is None
    assert ids_of_piece("a", []) is None


@given(st.lists(st.text(min_size=1, max_size=4), max_size=12), st.data())
def test_every_piece_is_accounted_for_once(pieces: list[str], data: st.DataObject) -> None:
    raw = "".join(pieces).encode("utf-8", "surrogatepass")
    cuts = sorted(data.draw(st.sets(st.integers(1, len(raw) - 1)))) if len(raw) > 1 else []
    bounds = [0, *cuts, len(raw)]
    cut_up = [(number, raw[a:b]) for number, (a, b) in enumerate(pairwise(bounds)) if a < b]
    parts = align(pieces, cut_up)
    seen = [piece for part in parts for piece in (part.pieces if isinstance(part, Unclear) else [None])]
    assert len(seen) == len(pieces)
    by_id = dict(cut_up)
    place = 0
    for part in parts:
        if isinstance(part, Clear):
            assert b"".join(by_id[n] for n in part.ids).decode("utf-8", "surrogatepass") == pieces[place]
        place += len(part.pieces) if isinstance(part, Unclear) else 1


# ---- the boundary, the seam ----


def test_a_safe_boundary_is_where_the_last_word_begins() -> None:
    assert safe_boundary(["One", " two", " thr", "ee"]) == 2
    assert safe_boundary(["One", "\n", " x"]) == 0
    assert safe_boundary(["One"]) == 0
    assert safe_boundary([]) == 0


def test_a_stop_string_across_the_seam_stops() -> None:
    seam = Seam("text E", ["END"])
    assert seam.feed("N") == ("", None)
    assert seam.feed("D more") == ("", "END")


def test_what_only_began_like_a_stop_string_comes_out() -> None:
    seam = Seam("text E", ["END"])
    assert seam.feed("N") == ("", None)
    assert seam.feed("OUGH") == ("NOUGH", None)
    assert not seam.open
    assert seam.feed("END") == ("END", None)


@given(st.text("ab", max_size=6), st.lists(st.text("ab", min_size=1, max_size=3), max_size=6), st.text("ab", min_size=2,
       max_size=4))  # fmt: skip
def test_the_seam_finds_what_a_search_in_the_whole_finds(before: str, pieces: list[str], stop: str) -> None:
    if stop in before:
        return
    seam, out, found = Seam(before, [stop]), "", None
    for piece in pieces:
        if found is None:
            text, found = seam.feed(piece)
            out += text
    if found is None:
        out += seam.end()
    whole = before + "".join(pieces)
    place = whole.find(stop)
    if 0 <= place < len(before):
        assert found == stop
        assert out == ""
    else:
        assert found is None
        assert out == "".join(pieces)


# ---- retracing ----


@given(st.text(min_size=1, max_size=20), st.integers(0, 20), st.integers(1, 5))
def test_a_repeated_answer_goes_on_where_the_first_ended(answer: str, cut: int, size: int) -> None:
    said = answer[:cut]
    retrace = Retrace(Said(pieces=(said,) if said else ()))
    out = ""
    for start in range(0, len(answer), size):
        event = retrace.feed(ChatEvent(answer[start : start + size]))
        out += event.text if event is not None else ""
    assert said + out == answer


@pytest.mark.parametrize(
    "event",
    [ChatEvent("other"), ChatEvent(finish_reason="stop"), ChatEvent(tool_calls=[ToolCallDelta(0, "a", "b")])],
)
def test_another_answer_is_noticed(event: ChatEvent) -> None:
    retrace = Retrace(Said(pieces=("Hello",)))
    assert retrace.feed(ChatEvent("He")) is None
    with pytest.raises(Diverged):
        retrace.feed(event)


def test_reasoning_is_retraced_before_the_text() -> None:
    retrace = Retrace(Said(pieces=("Yes",), reasoning="hm"))
    assert retrace.feed(ChatEvent(reasoning="h")) is None
    with pytest.raises(Diverged):
        retrace.feed(ChatEvent("Yes"))
    retrace = Retrace(Said(pieces=("Yes",), reasoning="hm"))
    assert retrace.feed(ChatEvent(reasoning="hm")) is None
    with pytest.raises(Diverged):
        retrace.feed(ChatEvent(reasoning="more"))


# ---- the client's one stream ----


def test_one_id_one_role_one_finish_one_usage() -> None:
    stream = Continuation(ChatRequest(messages=HELLO))
    first = ChatEvent(meta=ResponseMeta(id="a"), wire="openai.chat", raw=b"data: {}\n\n")
    assert stream.observe(first) is first
    stream.observe(ChatEvent("One"))
    stream.cut()
    assert stream.observe(ChatEvent(meta=ResponseMeta(id="b"), wire="openai.completions", raw=b"x")) is None
    second = stream.observe(ChatEvent(" two", wire="openai.completions", raw=b"x"))
    assert second == ChatEvent(" two")
    last = stream.observe(ChatEvent(finish_reason="stop", usage=Usage(prompt_tokens=3, completion_tokens=2)))
    assert last is not None
    assert last.usage is not None
    assert stream.finish == "stop"
    assert stream.said == Said(pieces=("One", " two"))
    assert not stream.may_be_cut


def test_what_is_cut_behind_its_finish_has_its_usage_still_and_no_other_word() -> None:
    def finished() -> Continuation:
        stream = Continuation(ChatRequest(messages=HELLO))
        stream.observe(ChatEvent("One", finish_reason="stop"))
        stream.cut()
        return stream

    usage = Usage(prompt_tokens=3, completion_tokens=1)
    stream = finished()
    assert stream.observe(ChatEvent(meta=ResponseMeta(id="b"), finish_reason="stop")) is None
    assert stream.observe(ChatEvent(usage=usage)) == ChatEvent(usage=usage)
    stream.cut()
    assert stream.observe(ChatEvent(finish_reason="stop", usage=usage)) is None
    for other in (ChatEvent(" two"), ChatEvent(finish_reason="length"), ChatEvent(reasoning="Hm")):
        with pytest.raises(Diverged):
            finished().observe(other)


def test_reasoning_calls_and_ends_are_not_interrupted_on_purpose() -> None:
    for event in (ChatEvent(reasoning="Hm"), ChatEvent(finish_reason="stop"), ChatEvent(index=1, text="x")):
        stream = Continuation(ChatRequest(messages=HELLO))
        stream.observe(ChatEvent("One"))
        assert stream.may_be_cut
        stream.observe(event)
        assert not stream.may_be_cut


def test_a_stop_string_across_the_cut_ends_the_stream() -> None:
    stream = Continuation(ChatRequest(messages=HELLO, stop=["END"]))
    stream.observe(ChatEvent("text E"))
    stream.cut()
    assert stream.observe(ChatEvent("N")) is None
    assert stream.observe(ChatEvent("D more")) == ChatEvent(finish_reason="stop", stop_sequence="END")
    assert stream.observe(ChatEvent(" still more")) is None


def test_text_that_was_held_at_the_seam_comes_before_the_finish() -> None:
    stream = Continuation(ChatRequest(messages=HELLO, stop=["END"]))
    stream.observe(ChatEvent("text E"))
    stream.cut()
    assert stream.observe(ChatEvent("N")) is None
    assert stream.observe(ChatEvent(finish_reason="length")) == ChatEvent("N", finish_reason="length")


@pytest.mark.parametrize(
    "changes",
    [
        {"n": 2}, {"tools": [Tool(name="f")]}, {"response_format": ResponseFormat(kind="json_object")},
        {"logprobs": True}, {"seed": 7, "temperature": 0.5}, {"seed": 7}, {"extra": {"grammar": "root ::= x"}},
        {"suffix": "x"}, {"options": {"mirostat": 2}},
        {"messages": [Message(role="user", content=[ImagePart(url="http://x/y.png")])]},
    ],
)  # fmt: skip
def test_what_cannot_be_continued(changes: dict[str, object]) -> None:
    assert obstacle(ChatRequest(**{"messages": HELLO, **changes})) is not None


def test_what_can_be_continued() -> None:
    assert obstacle(ChatRequest(messages=HELLO, seed=7, temperature=0, stop=["x"], max_tokens=5)) is None
    stream = Continuation(ChatRequest(messages=HELLO))
    assert stream.obstacle is None
    stream.observe(ChatEvent(tool_calls=[ToolCallDelta(0, "a", "f")]))
    assert stream.obstacle == "it has called tools"


# ---- prompts that end with the answer ----


def test_a_beginning_of_the_clients_own_stays_in_front() -> None:
    begun = ChatRequest(messages=[*HELLO, Message(role="assistant", content="Dear ")])
    assert prefilled(begun, "you", merge=True).messages[-1].content == "Dear you"
    assert [m.content for m in prefilled(begun, "you", merge=False).messages[1:]] == ["Dear ", "you"]
    assert prefilled(ChatRequest(prompt="Once", raw=True), " upon ", merge=False).prompt == "Once upon "
    templated = prefilled(ChatRequest(prompt="Hi"), "Yes", merge=False, extra={"a": 1})
    assert [m.role for m in templated.messages] == ["user", "assistant"]
    assert templated.prompt is None
    assert templated.extra == {"a": 1}
    with pytest.raises(UnsupportedError):
        prefilled(ChatRequest(prompt=[1, 2]), "x", merge=False)


def test_the_partial_answer_counts_as_answer() -> None:
    usage = Usage(prompt_tokens=15, completion_tokens=4, cached_tokens=14)
    assert Kept(pieces=3, tokens=5).usage_of_all(usage) == Usage(
        prompt_tokens=10, completion_tokens=9, cached_tokens=10
    )
    assert Kept(pieces=3, tokens=5, prompt=11).usage_of_all(usage).prompt_tokens == 11


def test_texts_that_came_at_once_are_still_the_pieces_that_they_were() -> None:
    together = ChatEvent("Hello world", pieces=3, texts=["Hel", "lo", " world"])
    stream = Continuation(ChatRequest(messages=HELLO))
    stream.observe(together)
    assert stream.said.pieces == ("Hel", "lo", " world")
    again = Retrace(Said(pieces=("Hel",))).feed(together)
    assert again is not None
    assert (again.text, again.parts()) == ("lo world", ["lo", " world"])
    assert attrs.evolve(together, text="lo wor").parts() == ("lo wor",)
    assert attrs.evolve(together, text="o world").parts() == ("o world",)
    assert attrs.evolve(together, text="").parts() == ()
