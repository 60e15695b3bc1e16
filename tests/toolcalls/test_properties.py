"""What holds for any text: random calls in any format, mutated at random, cut into any pieces."""

from __future__ import annotations

import json
import os
import random
import re
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.toolcall_formats import FORMATS, TOOLS, tool
from support.toolcall_stream import streamed

from velollm.toolcalls import StreamFixer, fix

EXAMPLES = int(os.environ.get("VELOLLM_TEST_EXAMPLES", "60"))
bounded = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))

WORDS = st.text(
    st.characters(codec="utf-8", exclude_characters="<>`\x00", exclude_categories=["Cs", "Cc"]), max_size=20
)
# A word that no reader could take for something else: the formats that quote nothing cannot tell " a" from "a".
TEXTS = WORDS.map(str.strip).filter(bool)
NUMBERS = st.integers(-(10**9), 10**9)
ARGUMENTS = {
    "read_sensor": st.fixed_dictionaries(
        {"station": TEXTS}, optional={"depth": NUMBERS | st.floats(-1e6, 1e6, width=32), "raw": st.booleans()}
    ),
    "plan_route": st.fixed_dictionaries(
        {"stops": st.lists(TEXTS, min_size=1, max_size=4)},
        optional={
            "options": st.fixed_dictionaries(
                {"avoid": st.lists(st.sampled_from(["tolls", "ferries", "unpaved"]), min_size=1, max_size=3)},
                optional={"limit_km": st.integers(1, 10**6)},
            )
        },
    ),
    "write_note": st.fixed_dictionaries(
        {"path": TEXTS, "body": TEXTS}, optional={"mode": st.sampled_from(["new", "add"])}
    ),
    "list_ports": st.just({}),
}
CALLS = st.lists(
    st.sampled_from(sorted(ARGUMENTS)).flatmap(lambda name: ARGUMENTS[name].map(lambda given: (name, given))),
    min_size=1, max_size=3, unique_by=lambda call: json.dumps(call, sort_keys=True),
)  # fmt: skip
JSON_FORMATS = [
    "hermes",
    "mistral_args",
    "kimi_k2",
    "granite3",
    "gpt_oss",
    "internlm",
    "nemotron",
    "command_a",
    "plamo",
]
PIECES = [
    '"', "'", "{", "}", "[", "]", ",", ":", "\\", "\n", " ", "<", ">", "`", "```", "//", "null", "0", "a", "</think>",
    "<think>", "<tool_call>", "</tool_call>", "<|im_end|>", "[TOOL_CALLS]", "</parameter>", "</arg_value>", "é", "“",
    "list_ports()", "functions.", "Action: ", ">>>", "=", ";", "(", ")", "<|channel|>", "\r\n", "\t", "\u00a0", "−",
]  # fmt: skip
SCHEMAS = {item["function"]["name"]: jsonschema.Draft202012Validator(item["function"]["parameters"]) for item in TOOLS}


def mutated(text: str, seed: int, times: int) -> str:
    chance = random.Random(seed)
    for _ in range(times):
        at = chance.randrange(len(text) + 1)
        to = min(len(text), at + chance.choice((1, 1, 2, 5, 20)))
        kind = chance.randrange(5)
        if kind == 0:
            text = text[:at] + text[to:]
        elif kind == 1:
            text = text[:at] + chance.choice(PIECES) + text[at:]
        elif kind == 2:
            text = text[:at] + chance.choice(PIECES) + text[to:]
        elif kind == 3:
            text = text[:to] + text[at:]
        else:
            text = text[:at]
    return text


@bounded
@given(calls=CALLS, family=st.sampled_from(JSON_FORMATS))
def test_what_was_written_is_what_is_read(calls: Any, family: str) -> None:
    result = fix(FORMATS[family](calls), TOOLS)
    assert [(call.name, call.arguments) for call in result.calls] == calls
    assert not result.repairs


@bounded
@given(
    calls=CALLS,
    family=st.sampled_from(sorted(FORMATS)),
    seed=st.integers(0, 2**32),
    times=st.integers(0, 4),
    lead=st.sampled_from(["", "Let me see.\n", "<think>", "<think>hm</think>", "It is so: "]),
    tail=st.sampled_from(["", "\n", "</think>", " Done.", "<|im_end|>"]),
    reason=st.sampled_from([None, "stop", "length"]),
)
def test_mutations(calls: Any, family: str, seed: int, times: int, lead: str, tail: str, reason: str | None) -> None:
    """No crash; what runs validates; any chunking gives the same; what was said is not taken back."""
    text = mutated(lead + FORMATS[family](calls) + tail, seed, times)
    result = fix(text, TOOLS, reason)
    for call in result.calls:
        SCHEMAS[call.name].validate(call.arguments)
    if not result.calls:
        assert (result.content or "") == text
    fixer, said, got = streamed(text, TOOLS, seed, reason)
    assert got == [(call.name, call.arguments_json) for call in result.calls]
    assert fixer.result == result
    if not result.calls:
        assert said == text
    elif not result.reasoning:
        assert said.strip() == (result.content or "").strip()


@bounded
@given(calls=CALLS, family=st.sampled_from(sorted(FORMATS)), end=st.floats(0, 1))
def test_a_cut_text_never_runs_what_was_not_meant(calls: Any, family: str, end: float) -> None:
    text = FORMATS[family](calls)
    for call in fix(text[: int(end * len(text))], TOOLS, "length").calls:
        assert (call.name, call.arguments) in calls


@bounded
@given(calls=CALLS)
def test_structured_calls_that_are_right_stay_as_they_are(calls: Any) -> None:
    for encode in (json.dumps, lambda given: given):
        entries = [{"id": "x", "function": {"name": name, "arguments": encode(given)}} for name, given in calls]
        result = fix(entries, TOOLS)
        assert [(call.name, call.arguments) for call in result.calls] == calls
        assert not result.repairs
        again = fix(
            [{"function": {"name": call.name, "arguments": call.arguments_json}} for call in result.calls], TOOLS
        )
        assert again == result


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(min_size=1), inner, max_size=4),
    max_leaves=12,
)


@bounded
@given(value=st.dictionaries(st.text(min_size=1).filter(lambda key: bool(key.strip())), VALUES, max_size=4))
def test_valid_json_is_left_alone(value: dict[str, Any]) -> None:
    """Whatever the arguments hold, where no schema asks for anything else."""
    free = [tool("free")]
    if set(value) & {"arguments", "input", "parameters", "properties", "args", "params", "kwargs", "tool_input"}:
        return
    for indent in (None, 2):
        text = json.dumps({"name": "free", "arguments": value}, indent=indent)
        if re.search(r'"[A-Za-z]:\\[bfnrt]', text):
            return  # taken for a path, by rule
        for wrapped in (text, f"<tool_call>\n{text}\n</tool_call>"):
            result = fix(wrapped, free)
            assert [call.arguments for call in result.calls] == [value]


@bounded
@given(
    text=st.text()
    | st.lists(st.sampled_from([*PIECES, '{"name": "list_ports"', "list_ports", "arguments", "read_sensor"])).map(
        "".join
    )
)
def test_any_text(text: str) -> None:
    result = fix(text, TOOLS)
    fixer, said, got = streamed(text, TOOLS, len(text))
    assert fixer.result == result
    assert got == [(call.name, call.arguments_json) for call in result.calls]
    if not result.calls:
        assert said == text


@pytest.mark.parametrize("lead", ["", " ", "\t ", "Sure.\n ", "It is so:\n\n   ", "Yes. "])
def test_the_first_delta_may_end_anywhere(lead: str) -> None:
    """Tokenizers like to begin an answer with a space and a bracket."""
    for family, form in FORMATS.items():
        text = lead + form([("list_ports", {}), ("write_note", {"path": "a", "body": "b"})])
        whole = fix(text, TOOLS)
        for cut in range(1, min(len(text), len(lead) + 16)):
            fixer = StreamFixer(TOOLS)
            events = [*fixer.feed(text[:cut]), *fixer.feed(text[cut:]), *fixer.finish(None)]
            assert (fixer.result.calls, fixer.result.content) == (whole.calls, whole.content), (family, text[:cut])
            said = "".join(event.text or "" for event in events)
            assert said.strip() == (whole.content or "").strip() or whole.reasoning, (family, text[:cut])
