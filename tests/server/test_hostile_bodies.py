"""Bodies that are broken, enormous, or of the wrong shape: 4xx in the client's dialect, at once, and nothing asked."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.asgi import Client, ask
from support.backend import ScriptedBackend
from support.serving import served

pytestmark = pytest.mark.anyio
CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
GOOD: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"model": "tiny", "prompt": "Hi"},
    "/v1/responses": {"model": "tiny", "input": "Hi"},
    "/v1/embeddings": {"model": "tiny", "input": "Hi"},
    "/v1/messages": {**CHAT, "max_tokens": 5},
    "/v1/messages/count_tokens": CHAT,
    "/api/chat": {**CHAT, "stream": False},
    "/api/generate": {"model": "tiny", "prompt": "Hi", "stream": False},
    "/api/embed": {"model": "tiny", "input": "Hi"},
    "/api/embeddings": {"model": "tiny", "prompt": "Hi"},
    "/api/show": {"model": "tiny"},
    "/tokenize": {"model": "tiny", "prompt": "Hi"},
    "/detokenize": {"model": "tiny", "tokens": [1]},
}
BROKEN = {
    "empty": b"",
    "null": b"null",
    "list": b"[]",
    "text": b'"x"',
    "number": b"1",
    "half": b'{"model": "ti',
    "deep lists": b"[" * 200_000 + b"]" * 200_000,
    "deep objects": b'{"a":' * 200_000 + b"1" + b"}" * 200_000,
    "deep inside": b'{"model":"tiny","messages":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "deep, unclosed": b'{"a":[' * 200_000,
    "objects without end": b'{"model":"tiny","messages":[' + b'{"role":"user","content":"x"},' * 40_000 + b"{}]}",
    "arrays without end": b'{"model":"tiny","x":[' + b"[[]]," * 20_000 + b"0]}",
    "fields without end": b'{"model":"tiny",' + b",".join(b'"f%d":1' % number for number in range(40_000)) + b"}",
    "another model in other case": b'{"model":"tiny","messages":[{"role":"user","content":"Hi"}],"Model":"secret"}',
    "huge integer": b'{"model":"tiny","max_tokens":' + b"9" * 1_000_000 + b"}",
    "NaN": b'{"model":"tiny","temperature":NaN}',
    "Infinity": b'{"model":"tiny","temperature":-Infinity}',
    "1e999": b'{"model":"tiny","temperature":1e999}',
    "lone surrogate": b'{"model":"tiny","messages":[{"role":"user","content":"\\ud800"}]}',
    "invalid UTF-8": b'{"model":"tiny\xff"}',
    "cut UTF-8": b'{"model":"tiny\xe2\x82"}',
    "NUL": b'{"model":"tiny"}\x00',
    "raw control": b'{"model":"ti\x00ny"}',
    "two values": b"{}{}",
    "UTF-16": '{"model":"tiny"}'.encode("utf-16"),
    "BOM": b"\xef\xbb\xbf{}",
    "comment": b'{/*x*/"model":"tiny"}',
    "single quotes": b"{'model': 'tiny'}",
    "trailing comma": b'{"model":"tiny",}',
    "form": b"model=tiny&prompt=hi",
}
SECONDS = 2.0  # of work


def in_dialect(path: str, answer: Client) -> str:
    """The message of an error, whose shape must be that of the client's API."""
    body = answer.json
    if path.startswith("/api/"):
        message = body["error"]
    elif path.startswith("/v1/messages"):
        assert body["type"] == "error"
        message = body["error"]["message"]
    else:
        assert set(body["error"]) >= {"message", "type", "code", "param"}
        message = body["error"]["message"]
    assert isinstance(message, str)
    return message


async def refused(backend: ScriptedBackend, path: str, body: bytes) -> str:
    begin = time.process_time()
    answer = await ask(served(backend), "POST", path, body)
    assert 400 <= answer.status < 500, answer.text[:500]
    assert time.process_time() - begin < SECONDS
    assert backend.requests == [] == backend.forwarded
    return in_dialect(path, answer)


@pytest.mark.parametrize("path", GOOD)
async def test_the_good_ones_are_good(path: str) -> None:
    assert (await ask(served(ScriptedBackend()), "POST", path, GOOD[path])).status == 200


@pytest.mark.parametrize("name", BROKEN)
async def test_what_is_no_request_is_refused(name: str) -> None:
    for path in GOOD:
        message = await refused(ScriptedBackend(), path, BROKEN[name])
        assert len(message) < 500


WRONG: list[tuple[str, dict[str, Any]]] = [
    *[("/v1/chat/completions", change) for change in (
        {"messages": []}, {"messages": {}}, {"messages": "Hi"}, {"messages": None}, {"messages": [1]},
        {"messages": [{}]}, {"messages": [None]}, {"messages": [{"role": "wizard", "content": "x"}]},
        {"messages": [{"role": 5, "content": "x"}]}, {"messages": [{"role": "user", "content": 5}]},
        {"messages": [{"role": "user", "content": [{"type": "hologram"}]}]},
        {"messages": [{"role": "user", "content": [5]}]}, {"messages": [{"role": "user"}]},
        {"model": 5}, {"model": ["tiny"]},
        {"stream": "yes"}, {"stream": 1}, {"n": 0}, {"n": 129}, {"n": -1}, {"n": "2"}, {"n": 1.5}, {"n": True},
        {"max_tokens": 0}, {"max_tokens": -1}, {"max_tokens": "9"}, {"max_tokens": 1.5}, {"max_tokens": 10**30},
        {"max_completion_tokens": 0}, {"temperature": "hot"}, {"temperature": -1}, {"temperature": [1]},
        {"top_p": 2}, {"top_p": -0.1}, {"stop": 5}, {"stop": [5]}, {"stop": {"a": 1}}, {"seed": "x"}, {"seed": 1.5},
        {"tools": {}}, {"tools": [5]}, {"tools": [{}]}, {"tools": [{"type": "function"}]},
        {"tools": [{"type": "function", "function": {"name": 5}}]}, {"tool_choice": 5},
        {"tool_choice": "required"}, {"response_format": 5}, {"response_format": {"type": "poem"}},
        {"response_format": {"type": "json_schema"}}, {"stream_options": 5}, {"logprobs": 5}, {"top_logprobs": 999},
        {"logit_bias": 5}, {"presence_penalty": "x"}, {"frequency_penalty": 99},
    )],
    *[("/v1/messages", change) for change in (
        {"max_tokens": 0}, {"max_tokens": "5"}, {"messages": []}, {"messages": [{"role": "system", "content": 5}]},
        {"system": 5}, {"tools": 5}, {"stop_sequences": "x"}, {"temperature": "x"}, {"stream": "x"}, {"thinking": 5},
    )],
    *[("/api/chat", change) for change in (
        {"messages": 5}, {"messages": [{"role": "user", "content": 5}]}, {"options": 5}, {"format": 5}, {"stream": 5},
        {"tools": 5}, {"keep_alive": []}, {"options": {"num_predict": "x"}}, {"options": {"temperature": []}},
    )],
    *[("/api/generate", change) for change in ({"prompt": 5}, {"images": 5}, {"context": "x"}, {"raw": 5})],
    *[("/v1/embeddings", change) for change in (
        {"input": 5}, {"input": {}}, {"input": []}, {"input": [[]]}, {"input": [None]}, {"encoding_format": "hex"},
        {"dimensions": -1}, {"dimensions": "x"},
    )],
    *[("/v1/completions", change) for change in ({"prompt": 5}, {"prompt": {}}, {"prompt": None}, {"suffix": 5})],
    *[("/v1/responses", change) for change in ({"input": 5}, {"input": [5]}, {"instructions": 5}, {"tools": 5})],
    *[("/tokenize", change) for change in ({"prompt": 5}, {"prompt": None})],
    *[("/detokenize", change) for change in ({"tokens": 5}, {"tokens": ["x"]}, {"tokens": None}, {"tokens": [-1]})],
]  # fmt: skip


@pytest.mark.parametrize(("path", "change"), WRONG, ids=lambda value: str(value)[:60])
async def test_wrong_types_and_ranges_are_refused(path: str, change: dict[str, Any]) -> None:
    await refused(ScriptedBackend(), path, json.dumps({**GOOD[path], **change}).encode())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
FIELDS = sorted({key for body in GOOD.values() for key in body} | {
    "tools", "tool_choice", "response_format", "stop", "n", "stream", "options", "format", "system", "max_tokens",
    "temperature", "thinking", "seed", "logprobs", "images", "template", "context", "suffix", "stream_options",
})  # fmt: skip


@pytest.mark.parametrize("path", GOOD)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(st.sampled_from(FIELDS), JSON, min_size=1, max_size=3))
async def test_no_shape_is_an_internal_error(path: str, changes: dict[str, Any]) -> None:
    body = {**GOOD[path], **changes}
    answer = await ask(served(ScriptedBackend()), "POST", path, body)
    assert answer.status == 200 or 400 <= answer.status < 500, (body, answer.text)


async def test_text_passes_byte_for_byte() -> None:
    text = "\u0000 \t \U0001f980 e\u0301 \u202e \ufeff \uffff \U0010ffff \r\n"
    backend = ScriptedBackend()
    body = {**CHAT, "messages": [{"role": "user", "content": text}]}
    assert (await ask(served(backend), "POST", "/v1/chat/completions", body)).status == 200
    assert backend.requests[0].messages[0].text == text


async def test_line_breaks_in_fields_never_become_headers() -> None:
    backend = ScriptedBackend()
    for value in ("tiny\r\nx-evil: 1", "tiny\nx-evil: 1"):
        body = {**CHAT, "model": value, "user": value, "metadata": {"a": value}}
        answer = await ask(served(backend), "POST", "/v1/chat/completions", body, x_request_id="a\r\nx-evil: 1")
        assert "x-evil" not in answer.headers
        assert not any("\n" in name + text or "\r" in name + text for name, text in answer.headers.items())


async def test_templates_stay_text() -> None:
    backend = ScriptedBackend()
    body = {**CHAT, "messages": [{"role": "user", "content": "{{7*7}}"}], "chat_template": "{{7*7}}"}
    answer = await ask(served(backend), "POST", "/v1/chat/completions", body)
    assert "49" not in str(answer.json.get("choices"))  # an id may hold any digits
    assert backend.requests == [] or backend.requests[0].messages[0].text == "{{7*7}}"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_compressed_bodies_are_not_opened(path: str) -> None:
    answer = await ask(served(ScriptedBackend()), "POST", path, b"\x1f\x8b" + b"\x00" * 100, content_encoding="gzip")
    assert answer.status == 415


@pytest.mark.parametrize(
    "path",
    ["/api/../api/delete", "//api/delete", "/api//delete", "/v1/../api/delete", "/api/./pull", "/v1/%2e%2e/api/pull",
     "/api\\delete", "/v1/..\\api/delete"],
)  # fmt: skip
async def test_odd_spellings_of_paths_reach_nothing(path: str) -> None:
    backend = ScriptedBackend(dialects=frozenset({"ollama", "openai"}))
    for method in ("POST", "DELETE", "GET"):
        answer = await ask(served(backend), method, path, b"{}")
        assert answer.status in (404, 405)
    assert backend.forwarded == []
