"""The openai SDK against real engines."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from .conftest import Served

pytestmark = pytest.mark.e2e
HI = [{"role": "user", "content": "Say hello."}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1, "maximum": 7}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}


class Person(BaseModel):
    name: str
    age: int


@pytest.fixture
def client(served: Served) -> Any:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(client: Any, served: Served, **more: Any) -> Any:
    options = {"messages": HI, "max_tokens": 16, "temperature": 0, **more}
    return client.chat.completions.create(model=served.model, **options)


def test_chat(client: Any, served: Served) -> None:
    answer = ask(client, served)
    assert answer.choices[0].message.content.strip()
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.completion_tokens <= 16
    assert answer.usage.prompt_tokens > 0


def test_stream_says_the_same(client: Any, served: Served) -> None:
    whole = ask(client, served)
    chunks = list(ask(client, served, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_forced_tool_call_validates(client: Any, served: Served) -> None:
    for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
        messages = [{"role": "user", "content": "What is the weather in Paris in the next 3 days?"}]
        answer = ask(client, served, messages=messages, tools=[WEATHER], tool_choice=choice, max_tokens=100)
        assert answer.choices[0].finish_reason == "tool_calls"
        call = answer.choices[0].message.tool_calls[0]
        assert call.id
        assert call.function.name == "get_weather"
        arguments = json.loads(call.function.arguments)
        assert isinstance(arguments["city"], str)
        assert 1 <= arguments["days"] <= 7


def test_forced_tool_call_streams(client: Any, served: Served) -> None:
    with client.chat.completions.stream(
        model=served.model, messages=HI, tools=[WEATHER], tool_choice="required", max_tokens=100, temperature=0
    ) as stream:
        final = stream.get_final_completion()
    call = final.choices[0].message.tool_calls[0]
    assert call.function.name == "get_weather"
    assert set(json.loads(call.function.arguments)) == {"city", "days"}


def test_structured_answer_parses(client: Any, served: Served) -> None:
    messages = [{"role": "user", "content": "Ada is 36 years old. Give name and age."}]
    answer = client.chat.completions.parse(
        model=served.model, messages=messages, response_format=Person, max_tokens=100, temperature=0
    )
    assert isinstance(answer.choices[0].message.parsed, Person)


def test_conversation_hits_the_prefix_cache(client: Any, served: Served) -> None:
    messages: list[Any] = [{"role": "user", "content": "Count slowly. " * 60}]
    first = ask(client, served, messages=messages)
    messages += [{"role": "assistant", "content": first.choices[0].message.content}]
    messages += [{"role": "user", "content": "Go on."}]
    second = ask(client, served, messages=messages)
    assert second.usage.prompt_tokens > first.usage.prompt_tokens
    if served.engine == "llamacpp":  # Ollama does not say how much it found
        assert second.usage.prompt_tokens_details.cached_tokens > 100


def test_several_answers(client: Any, served: Served) -> None:
    answer = ask(client, served, n=2, temperature=0.8, seed=1)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert all(choice.finish_reason for choice in answer.choices)


def test_stop_strings(client: Any, served: Served) -> None:
    messages = [{"role": "user", "content": "Repeat exactly: one two three four"}]
    answer = ask(client, served, messages=messages, stop=["three"], max_tokens=40)
    assert "three" not in answer.choices[0].message.content


def test_completions(client: Any, served: Served) -> None:
    answer = client.completions.create(model=served.model, prompt="The sky is", max_tokens=8, temperature=0)
    assert answer.choices[0].text
    chunks = list(
        client.completions.create(model=served.model, prompt="The sky is", max_tokens=8, temperature=0, stream=True)
    )
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == answer.choices[0].text


def test_responses(client: Any, served: Served) -> None:
    answer = client.responses.create(model=served.model, input="Say hello.", max_output_tokens=16, temperature=0)
    assert answer.output_text.strip()
    with client.responses.stream(model=served.model, input="Say hello.", max_output_tokens=16, temperature=0) as stream:
        events: list[Any] = list(stream)
    assert events[0].type == "response.created"
    assert events[-1].type in ("response.completed", "response.incomplete")
    assert events[-1].response.output_text == answer.output_text


def test_embeddings(client: Any, served: Served) -> None:
    as_base64 = client.embeddings.create(model=served.model, input=["a cat", "a dog"])
    as_floats = client.embeddings.create(model=served.model, input=["a cat", "a dog"], encoding_format="float")
    assert [row.index for row in as_base64.data] == [0, 1]
    assert len(as_base64.data[0].embedding) == len(as_floats.data[0].embedding) > 100
    assert as_base64.data[1].embedding == pytest.approx(as_floats.data[1].embedding, abs=1e-4)


def test_models(client: Any, served: Served) -> None:
    names = [model.id for model in client.models.list()]
    assert any(name.startswith(served.model) for name in names)
    assert client.models.retrieve(names[0]).id == names[0]


def test_errors(client: Any, served: Served) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        ask(client, served, messages=[{"role": "wizard", "content": "x"}])
    assert bad.value.param == "messages[0].role"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no-such-model")
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="no-such-model", messages=HI)
    assert "no-such-model" in missing.value.message


def test_32_streams_at_once_do_not_mix(served: Served) -> None:
    async def one(client: openai.AsyncOpenAI, number: int) -> tuple[str, str]:
        stream = await client.chat.completions.create(
            model=served.model,
            messages=[{"role": "user", "content": f"Say the number {number}."}],
            max_tokens=6,
            temperature=0,
            stream=True,
        )
        ids, text = set(), ""
        async for chunk in stream:
            ids.add(chunk.id)
            text += chunk.choices[0].delta.content or ""
        assert len(ids) == 1
        return ids.pop(), text

    async def all_of_them() -> list[tuple[str, str]]:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none") as client:
            return await asyncio.gather(*(one(client, number) for number in range(32)))

    answers = asyncio.run(all_of_them())
    assert len({answer[0] for answer in answers}) == 32
    assert all(text for _, text in answers)


def test_aborted_stream_frees_the_engine(client: Any, served: Served) -> None:
    stream = ask(
        client, served, messages=[{"role": "user", "content": "Write a long story."}], max_tokens=2000, stream=True
    )
    next(iter(stream))
    stream.close()
    assert ask(client, served, max_tokens=2, timeout=20).choices[0].message.content is not None
