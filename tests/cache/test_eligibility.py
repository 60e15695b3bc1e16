"""Which requests may be answered, by which tier, and which answers are kept."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support.cache import answer, ask

from velollm.cache.eligibility import (
    DATED,
    OWN_DATA,
    PERSONAL,
    RANDOM,
    TIERS,
    TIME_BOUND,
    Controls,
    Eligibility,
    Wording,
    assess,
    why_not_stored,
)
from velollm.errors import RequestError

EXACT = ("exact",)
CANONICAL = ("exact", "canonical")
TOOL = {"type": "function", "function": {"name": "f"}}
CALL = {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f"}}]}
RESULT = {"role": "tool", "tool_call_id": "1", "content": "5"}
IMAGE = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": "data:,"}}]


def look(body: dict[str, Any], controls: Controls | None = None, max_temperature: float = 0.0) -> Eligibility:
    last = body["messages"][-1].get("content") if body["messages"] else None
    return assess(body, last if isinstance(last, str) else None, controls or Controls(), max_temperature)


@pytest.mark.parametrize("fields", [{}, {"temperature": None}, {"top_p": 0.5}, {"seed": 3}])
def test_a_plain_question_is_open_to_every_tier(fields: dict[str, Any]) -> None:
    verdict = look(ask("What is DNA?", **fields))
    assert (verdict.read, verdict.write, verdict.tiers, verdict.reason) == (True, True, TIERS, "")


@pytest.mark.parametrize(
    ("body", "tiers", "reason"),
    [
        (ask("What is DNA?", tools=[TOOL]), EXACT, "tools"),
        (ask("What is DNA?", functions=[{"name": "f"}]), EXACT, "tools"),
        (ask("And now?", CALL, RESULT, {"role": "assistant", "content": "5."}), EXACT, "tools"),
        (ask(IMAGE), EXACT, "images"),
        (ask("And this?", {"role": "user", "content": IMAGE}), EXACT, "images"),
        (ask("What is DNA?", n=3), EXACT, "n"),
        (ask("What is DNA?", logprobs=True), EXACT, "logprobs"),
        (ask("x" * 5000), EXACT, "long"),
        (ask("x" * 1000), CANONICAL, "long"),
        (ask("What is DNA?\nAnswer briefly."), CANONICAL, "long"),
        (ask("What is DNA?", temperature=0.7), CANONICAL, "temperature"),
        (ask("Who is the current king of Spain?"), CANONICAL, "time-bound"),
        (ask("What is my name?"), CANONICAL, "personal"),
        (ask("What is in my inbox?"), CANONICAL, "personal"),
        (ask("Give me another example of irony"), CANONICAL, "random"),
    ],
)
def test_what_closes_a_tier(body: dict[str, Any], tiers: tuple[str, ...], reason: str) -> None:
    verdict = look(body)
    assert (verdict.tiers, verdict.reason) == (tiers, reason)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"messages": []}, "not-chat"),
        ({"messages": [5]}, "not-chat"),
        ({"prompt": "x", "messages": []}, "not-chat"),
        ({"messages": [{"role": "user", "content": "x"}, CALL, RESULT]}, "agent-turn"),
        (ask("A reminder: be brief.", CALL, RESULT), "agent-turn"),
        (ask("What time is it?"), "time-bound"),
        (ask("What's the weather like today?"), "time-bound"),
        (ask("Tell me a random fact.", temperature=None), "random"),
        (ask("Roll a die", temperature=0.9), "random"),
    ],
)
def test_what_the_cache_takes_no_part_in(body: dict[str, Any], reason: str) -> None:
    verdict = assess(body, _last_text(body), Controls(), 0.0)
    assert verdict.bypass
    assert verdict.reason == reason


def _last_text(body: dict[str, Any]) -> str | None:
    last = body["messages"][-1] if body["messages"] else None
    return last["content"] if isinstance(last, dict) and isinstance(last.get("content"), str) else None


@pytest.mark.parametrize(
    "prompt",
    ["What is a random forest?", "How do I close my account?", "How do I generate a random number in Python?"],
)
def test_words_that_only_sound_like_it(prompt: str) -> None:
    assert look(ask(prompt, temperature=None)).read


def test_chance_at_temperature_zero_is_no_chance() -> None:
    assert look(ask("Tell me a random fact.")).read


def test_a_temperature_may_be_allowed() -> None:
    assert look(ask("What is DNA?", temperature=0.7), max_temperature=1.0).tiers == TIERS


def test_controls() -> None:
    asked = ask("What is DNA?")
    assert look(asked, Controls(no_store=True)).bypass
    fresh = look(asked, Controls(no_cache=True))
    assert (fresh.read, fresh.write, fresh.reason) == (False, True, "no-cache")


@pytest.mark.parametrize(
    ("header", "ttl", "expected"),
    [
        (None, None, Controls()),
        ("no-cache", None, Controls(no_cache=True)),
        ("No-Store, max-age=60", None, Controls(no_store=True, max_age=60)),
        ('max-age="5"', "30", Controls(max_age=5, ttl=30)),
        ("max-age=0", "0", Controls(max_age=0, ttl=0)),
        ("max-age=-5, max-age", "", Controls()),
        ("max-age=\u0665, =,;;", "120", Controls(ttl=120)),
        ("max-age=999999999999999", None, Controls()),
    ],
)
def test_headers(header: str | None, ttl: str | None, expected: Controls) -> None:
    assert Controls.from_headers(header, ttl) == expected


@pytest.mark.parametrize("ttl", ["x", "-1", "soon", "nan", " ", "1h30", "9" * 5000])
def test_a_time_to_live_that_is_none(ttl: str) -> None:
    with pytest.raises(RequestError, match="x-velollm-cache-ttl"):
        Controls.from_headers(None, ttl)


@pytest.mark.parametrize(
    ("offered", "reason"),
    [
        (answer(), None),
        (answer("", tool_calls=[{"id": "1"}], finish="tool_calls"), None),
        (answer(finish="length"), "truncated"),
        (answer(finish="content_filter"), "truncated"),
        (answer(""), "empty"),
        ({"error": {"message": "no"}}, "error"),
        ({"choices": []}, "empty"),
        ({"choices": ["x"]}, "not-an-answer"),
        ({"choices": [{"finish_reason": "stop"}]}, "not-an-answer"),
        ("text", "not-an-answer"),
        (None, "not-an-answer"),
    ],
)
def test_only_complete_answers_are_kept(offered: object, reason: str | None) -> None:
    assert why_not_stored(offered) == reason


def test_one_truncated_choice_spoils_the_answer() -> None:
    both = answer()
    both["choices"].append(answer(finish="length")["choices"][0])
    assert why_not_stored(both) == "truncated"


@pytest.mark.parametrize("wording", [TIME_BOUND, DATED, PERSONAL, OWN_DATA, RANDOM])
@given(data=st.data())
def test_no_wording_is_found_without_a_telling_word(wording: Wording, data: st.DataObject) -> None:
    text = data.draw(st.from_regex(wording.pattern)).lower()
    assume(wording.pattern.search(text))
    assert wording.is_in(text, re.findall(r"\w+", text))
