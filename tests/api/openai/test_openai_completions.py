"""The completions endpoint, checked with the SDK's own model."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from openai.types import Completion

from velollm.api.openai import Completions
from velollm.errors import RequestError
from velollm.messages import ChatAnswer, ChatEvent, ChatRequest, Choice, RequestContext, Usage


def parse(**fields: object) -> ChatRequest:
    body = orjson.dumps({"model": "m", **fields})
    return Completions().parse(orjson.loads(body), body, RequestContext())


def test_request() -> None:
    request = parse(prompt="Once", max_tokens=3, logprobs=2, echo=True, best_of=2, n=2, extra_thing=1)
    assert (request.prompt, request.raw, request.max_tokens, request.echo) == ("Once", True, 3, True)
    assert (request.logprobs, request.top_logprobs, request.n) == (True, 2, 2)
    assert request.extra == {"best_of": 2, "extra_thing": 1}
    assert request.source is not None
    assert request.source.wire == "openai.completions"
    assert parse(prompt="def f():", suffix="return x").suffix == "return x"


@pytest.mark.parametrize(("prompt", "read"), [(["a"], "a"), ([1, 2], [1, 2]), ([[1, 2]], [1, 2]), ("", ""), ([5], [5])])
def test_prompts(prompt: object, read: object) -> None:
    assert parse(prompt=prompt).prompt == read


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": {}}, "prompt"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": [1, "b"]}, "prompt[1]"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": [None]}, "prompt[0]"),
        ({"prompt": "a", "logprobs": True}, "logprobs"),
        ({"prompt": "a", "best_of": 1, "n": 2}, "best_of"),
        ({"prompt": "a", "suffix": 1}, "suffix"),
    ],
)
def test_wrong_fields_are_named(fields: dict[str, object], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse(**fields)
    assert caught.value.param == param


def test_deeply_nested_prompt_is_refused() -> None:
    deep: object = "a"
    for _ in range(1000):
        deep = [deep]
    with pytest.raises(RequestError):
        Completions().parse({"prompt": deep}, b"", RequestContext())


ENTRY = {"token": "ab", "logprob": -0.5, "bytes": [97], "top_logprobs": [{"token": "x", "logprob": -1.0}]}


def test_whole_answer() -> None:
    choice = Choice(text="abab", finish_reason="length", logprobs={"content": [ENTRY, ENTRY]})
    answer = ChatAnswer(choices=[choice], usage=Usage(prompt_tokens=1, completion_tokens=2))
    body = Completions().render(ChatRequest(model="m", prompt="x"), answer)
    Completion.model_validate(body)
    assert body["id"].startswith("cmpl-")
    assert body["choices"][0]["logprobs"] == {
        "tokens": ["ab", "ab"],
        "token_logprobs": [-0.5, -0.5],
        "top_logprobs": [{"x": -1.0}, {"x": -1.0}],
        "text_offset": [0, 2],
    }
    assert body["usage"]["total_tokens"] == 3


def test_stream() -> None:
    renderer = Completions().stream(ChatRequest(model="m", prompt="x", include_usage=True))
    events = [
        ChatEvent("ab", logprobs={"content": [ENTRY]}),
        ChatEvent("ab", logprobs={"content": [ENTRY]}),
        ChatEvent(finish_reason="stop", usage=Usage(prompt_tokens=1, completion_tokens=2)),
    ]
    wire = b"".join(renderer.event(event) for event in events) + renderer.end()
    *frames, done = wire.split(b"\n\n")[:-1]
    assert done == b"data: [DONE]"
    chunks: list[dict[str, Any]] = [orjson.loads(frame.removeprefix(b"data: ")) for frame in frames]
    for chunk in chunks[2:]:  # the SDK's model knows no null finish_reason, which OpenAI streams until the end
        Completion.model_validate(chunk)
    assert [choice["text"] for chunk in chunks for choice in chunk["choices"]] == ["ab", "ab", ""]
    assert [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]] == [None, None, "stop"]
    assert chunks[1]["choices"][0]["logprobs"]["text_offset"] == [2]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["total_tokens"] == 3
