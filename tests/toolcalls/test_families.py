"""Every family's calls, clean, as its template writes them: alone, several, nested, empty, behind reasoning."""

from __future__ import annotations

import pytest
from support.toolcall_formats import FORMATS, NESTING, TOOLS, Calls
from support.toolcall_stream import streamed

from velollm.toolcalls import fix

CALLS: dict[str, Calls] = {
    "single": [("read_sensor", {"station": "N-7", "depth": 12.5})],
    "no arguments": [("list_ports", {})],
    "parallel": [("read_sensor", {"station": "Brest"}), ("read_sensor", {"station": "Ayr", "raw": True})],
    "different tools": [("list_ports", {}), ("read_sensor", {"station": "a b"}), ("plan_route", {"stops": ["x", "y"]})],
    "nested": [
        ("plan_route", {"stops": ["Łódź", "São Paulo"], "options": {"avoid": ["tolls", "ferries"], "limit_km": 40}})
    ],
    "unicode": [("read_sensor", {"station": "東京 🗼 ’quoted’ ñ"})],
    "long text": [
        ("write_note", {"path": "notes/a.md", "body": "# Title\n\nOne, two; (three) [four]: five.\n- a = 1"})
    ],
    "looks like a number": [("read_sensor", {"station": "007"})],
    "looks like JSON": [("write_note", {"path": "x.json", "body": '{"a": [1, 2], "b": null}'})],
}
QUOTED = {"quotes": [("write_note", {"path": "C.txt", "body": "She said \"no\" and 'yes', \\ back\\slash\ttab"})]}
NO_ESCAPES = {"functiongemma", "gemma4"}


def check(text: str, calls: Calls, content: str | None = None) -> None:
    result = fix(text, TOOLS)
    assert [(call.name, call.arguments) for call in result.calls] == list(calls), (text, result.errors)
    assert result.content == content, text
    for seed in range(2):
        _, said, got = streamed(text, TOOLS, seed)
        assert got == [(call.name, call.arguments_json) for call in result.calls]
        assert said.strip() == (content or "")


HARMONY = {"gpt_oss", "gpt_oss_recipient_first"}


@pytest.mark.parametrize("shape", CALLS)
def test_a_clean_call_is_read_as_it_was_meant(shape: str) -> None:
    calls = CALLS[shape]
    for family, write in FORMATS.items():
        said = "\n".join(["Thought: I need it."] * len(calls)) if family == "react" else None
        check(write(calls), calls, said)


def test_quotes_and_backslashes_survive() -> None:
    for family in FORMATS.keys() - NO_ESCAPES - {"react"}:
        check(FORMATS[family](QUOTED["quotes"]), QUOTED["quotes"])


def test_reasoning_before_a_call_is_not_content() -> None:
    calls = CALLS["parallel"]
    for family in FORMATS.keys() - HARMONY - {"react"}:
        check(f"<think>\nThe sensor at Brest, then Ayr.\n</think>\n\n{FORMATS[family](calls)}", calls)


def test_harmony_keeps_its_analysis_out_of_the_content() -> None:
    calls = CALLS["single"]
    check(f"<|channel|>analysis<|message|>Need the sensor.<|end|><|start|>assistant{FORMATS['gpt_oss'](calls)}", calls)


def test_prose_that_announces_a_call_stays_content() -> None:
    calls = CALLS["single"]
    for family in FORMATS.keys() - HARMONY - {"react"}:
        check(f"Let me check the sensor.\n\n{FORMATS[family](calls)}", calls, "Let me check the sensor.")


def test_without_tools_the_text_stays_whole() -> None:
    for write in FORMATS.values():
        text = write(CALLS["parallel"])
        result = fix(text, [])
        assert result.calls == []
        assert result.content == text


def test_unknown_tools_are_never_called() -> None:
    for write in FORMATS.values():
        text = write([("launch_rocket", {"station": "N-7"})])
        result = fix(text, TOOLS)
        assert result.calls == []
        assert result.content == text


def test_text_between_tags_may_hold_markup() -> None:
    body = '<html>\n<body class="x">&lt;p&gt; &amp; </body>\n</html>'
    calls = [("write_note", {"path": "i.html", "body": body})]
    for family in sorted(NESTING):
        check(FORMATS[family](calls), calls)
