"""Typed requests as chat bodies: the same question of any dialect is the same body, and nothing is lost."""

from __future__ import annotations

from typing import Any

import attrs
import orjson
import pytest

from velollm.api import anthropic, ollama, openai
from velollm.cache.body import chat_body
from velollm.cache.keys import derive_keys, tenant_digest
from velollm.messages import (
    AudioPart,
    ChatRequest,
    FilePart,
    ImagePart,
    Message,
    ReasoningPart,
    RequestContext,
    ResponseFormat,
    TextPart,
    Tool,
    ToolCall,
    ToolChoice,
)

TENANT = tenant_digest("t")
NOT_CONTENT = {"stream", "include_usage", "user", "keep_alive", "source", "context"}


def key(request: ChatRequest) -> bytes:
    return derive_keys(TENANT, chat_body(request)).exact


def parse(endpoint: Any, payload: dict[str, Any]) -> ChatRequest:
    request: ChatRequest = endpoint.parse(payload, orjson.dumps(payload), RequestContext())
    return request


def test_one_question_in_three_dialects() -> None:
    messages = [{"role": "user", "content": "What is DNA?"}]
    asked = [
        parse(openai.ChatCompletions(), {"model": "m", "messages": messages, "max_tokens": 9, "temperature": 0}),
        parse(ollama.Chat(), {"model": "m", "messages": messages, "options": {"num_predict": 9, "temperature": 0}}),
        parse(anthropic.Messages(), {"model": "m", "messages": messages, "max_tokens": 9, "temperature": 0}).replace(
            think=None
        ),
        parse(
            ollama.Generate(), {"model": "m", "prompt": "What is DNA?", "options": {"num_predict": 9, "temperature": 0}}
        ),
    ]
    assert len({key(request) for request in asked}) == 1


CHANGES: dict[str, Any] = {
    "model": "n", "messages": [Message(role="user", content="What is RNA?")], "prompt": "x",
    "further_prompts": ["y"], "suffix": "x", "raw": True,
    "tools": [Tool(name="f")], "tool_choice": ToolChoice(mode="required"), "parallel_tool_calls": True,
    "response_format": ResponseFormat(kind="json_object"), "max_tokens": 3, "temperature": 0.5,
    "top_p": 0.5, "top_k": 4,
    "min_p": 0.1, "seed": 1, "stop": ["x"], "n": 2, "frequency_penalty": 0.5, "presence_penalty": 0.5,
    "repeat_penalty": 1.1, "logit_bias": {"1": 2.0}, "logprobs": True, "top_logprobs": 2, "echo": True, "think": True,
    "options": {"num_ctx": 9}, "extra": {"x": 1},
}  # fmt: skip


def test_every_field_of_a_request_is_thought_of() -> None:
    assert {field.name for field in attrs.fields(ChatRequest)} == CHANGES.keys() | NOT_CONTENT


@pytest.mark.parametrize("field", sorted(CHANGES.keys() - {"raw"}))
def test_what_can_change_the_answer_changes_the_key(field: str) -> None:
    asked = ChatRequest(model="m", messages=[Message(role="user", content="What is DNA?")])
    assert key(asked) != key(asked.replace(**{field: CHANGES[field]}))


@pytest.mark.parametrize("field", ["think", "parallel_tool_calls"])
def test_no_is_another_word_than_silence(field: str) -> None:
    assert key(ChatRequest()) != key(ChatRequest(**{field: False}))


def test_a_raw_prompt_is_no_chat() -> None:
    plain, raw = ChatRequest(model="m", prompt="What is DNA?"), ChatRequest(model="m", prompt="What is DNA?", raw=True)
    assert key(plain) != key(raw)
    assert derive_keys(TENANT, chat_body(plain)).prompt == "What is DNA?"
    assert derive_keys(TENANT, chat_body(raw)).prompt is None
    assert derive_keys(TENANT, chat_body(ChatRequest(prompt=[1, 2, 3]))).prompt is None


@pytest.mark.parametrize(
    "message",
    [
        Message(role="user", content=[ImagePart(data="AAAA")]),
        Message(role="user", content=[ImagePart(data="AAAB")]),
        Message(role="user", content=[ImagePart(url="http://x/y.png")]),
        Message(role="user", content=[AudioPart(data="AAAA", format="wav")]),
        Message(role="user", content=[FilePart(data="AAAA")]),
        Message(role="user", content=[ReasoningPart(text="hm")]),
        Message(role="user", content=[TextPart(text="a"), TextPart(text="b")]),
        Message(role="user", content=[TextPart(text="ab")]),
        Message(role="user", content="ab", name="ann"),
        Message(role="user", content="ab", extra={"x": 1}),
        Message(role="tool", content="ab", tool_call_id="1"),
        Message(role="tool", content="ab", tool_call_id="1", is_error=True),
        Message(role="assistant", content="ab", reasoning="hm"),
        Message(role="assistant", tool_calls=[ToolCall(id="1", name="f", arguments="{}")]),
        Message(role="assistant", tool_calls=[ToolCall(id="1", name="f", arguments="{} ")]),
    ],
)
def test_messages_differ_from_each_other(message: Message) -> None:
    others = [
        Message(role="user", content="AAAA"),
        Message(role="system", content="ab"),
        Message(role="user", content="x"),
    ]
    asked = key(ChatRequest(messages=[message]))
    assert asked not in {key(ChatRequest(messages=[other])) for other in others}
    for field in attrs.fields(Message):
        if getattr(message, field.name) and field.name not in ("role", "content"):
            bare = attrs.evolve(message, **{field.name: [] if field.name == "tool_calls" else None})
            if field.name == "extra":
                bare = attrs.evolve(message, extra={})
            assert key(ChatRequest(messages=[bare])) != asked


def test_marks_for_the_engines_own_cache_are_no_content() -> None:
    marked = TextPart(text="What is DNA?", extra={"cache_control": {"type": "ephemeral"}})
    one = ChatRequest(messages=[Message(role="user", content=[marked])])
    assert key(one) == key(ChatRequest(messages=[Message(role="user", content="What is DNA?")]))
