"""The anthropic SDK against real engines."""

from __future__ import annotations

from typing import Any

import anthropic
import pytest

from .conftest import Served

pytestmark = pytest.mark.e2e
GREEDY = {"temperature": 0}  # the SDK has no word of its own for it any more
HI: list[Any] = [{"role": "user", "content": "Say hello."}]
WEATHER: Any = {
    "name": "get_weather",
    "description": "The weather in a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


@pytest.fixture
def client(served: Served) -> Any:
    with anthropic.Anthropic(base_url=served.url, api_key="none", max_retries=0) as client:
        yield client


def test_message(client: Any, served: Served) -> None:
    answer = client.messages.create(model=served.model, max_tokens=16, messages=HI, extra_body=GREEDY)
    assert answer.content[0].text.strip()
    assert answer.stop_reason in ("end_turn", "max_tokens")
    assert answer.usage.output_tokens <= 16
    assert answer.usage.input_tokens + (answer.usage.cache_read_input_tokens or 0) > 0


def test_stream_says_the_same(client: Any, served: Served) -> None:
    whole = client.messages.create(model=served.model, max_tokens=16, messages=HI, extra_body=GREEDY)
    with client.messages.stream(model=served.model, max_tokens=16, messages=HI, extra_body=GREEDY) as stream:
        pieces = list(stream.text_stream)
        final = stream.get_final_message()
    assert len(pieces) > 1
    assert final.content[0].text == whole.content[0].text
    assert final.usage.output_tokens == whole.usage.output_tokens


def test_system_prompt_and_stop_sequence(client: Any, served: Served) -> None:
    answer = client.messages.create(
        model=served.model,
        max_tokens=40,
        system=[{"type": "text", "text": "You count.", "cache_control": {"type": "ephemeral"}}],
        messages=[{"role": "user", "content": "Repeat exactly: one two three four five"}],
        stop_sequences=["three"],
        extra_body=GREEDY,
    )
    assert all("three" not in block.text for block in answer.content)


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "get_weather"}])
def test_forced_tool_use_and_its_result(client: Any, served: Served, choice: Any) -> None:
    messages = [{"role": "user", "content": "What is the weather in Paris?"}]
    answer = client.messages.create(
        model=served.model, max_tokens=100, messages=messages, tools=[WEATHER], tool_choice=choice, extra_body=GREEDY
    )
    assert answer.stop_reason == "tool_use"
    use = next(block for block in answer.content if block.type == "tool_use")
    assert isinstance(use.input["city"], str)
    messages += [
        {"role": "assistant", "content": answer.content},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "sunny, 21 degrees"}]},
    ]
    after = client.messages.create(
        model=served.model, max_tokens=30, messages=messages, tools=[WEATHER], tool_choice={"type": "none"}
    )
    assert after.stop_reason in ("end_turn", "max_tokens")


def test_forced_tool_use_streams(client: Any, served: Served) -> None:
    with client.messages.stream(
        model=served.model, max_tokens=100, messages=HI, tools=[WEATHER], tool_choice={"type": "any"}, extra_body=GREEDY
    ) as stream:
        final = stream.get_final_message()
    assert isinstance(final.content[-1].input["city"], str)


def test_count_tokens_grows_with_the_prompt(client: Any, served: Served) -> None:
    short = client.messages.count_tokens(model=served.model, messages=HI)
    long = client.messages.count_tokens(model=served.model, messages=[{"role": "user", "content": "word " * 200}])
    assert 0 < short.input_tokens < long.input_tokens
    answer = client.messages.create(model=served.model, max_tokens=1, messages=HI)
    assert short.input_tokens == answer.usage.input_tokens + (answer.usage.cache_read_input_tokens or 0)


def test_models(client: Any, served: Served) -> None:
    assert any(model.id.startswith(served.model) for model in client.models.list())


def test_errors(client: Any, served: Served) -> None:
    with pytest.raises(anthropic.BadRequestError) as bad:
        client.messages.create(model=served.model, max_tokens=0, messages=HI)
    assert "max_tokens" in str(bad.value)
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(model="no-such-model", max_tokens=5, messages=HI)
