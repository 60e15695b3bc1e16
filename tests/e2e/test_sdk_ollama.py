"""The ollama SDK against real engines: in front of Ollama itself, and of an engine that never heard of it."""

from __future__ import annotations

import json
from typing import Any

import ollama
import pytest

from .conftest import Served

pytestmark = pytest.mark.e2e
HI = [{"role": "user", "content": "Say hello."}]
GREEDY = {"temperature": 0, "num_predict": 12}


@pytest.fixture
def client(served: Served) -> Any:
    with ollama.Client(host=served.url) as client:
        yield client


def test_chat(client: Any, served: Served) -> None:
    answer = client.chat(model=served.model, messages=HI, options=GREEDY)
    assert answer.message.content.strip()
    assert answer.done
    assert answer.done_reason in ("stop", "length")
    assert answer.eval_count <= 12
    assert answer.total_duration > 0


def test_stream_says_the_same(client: Any, served: Served) -> None:
    whole = client.chat(model=served.model, messages=HI, options=GREEDY)
    parts = list(client.chat(model=served.model, messages=HI, options=GREEDY, stream=True))
    assert "".join(part.message.content or "" for part in parts) == whole.message.content
    assert [part.done for part in parts].count(True) == 1
    assert parts[-1].done


def test_generate(client: Any, served: Served) -> None:
    answer = client.generate(model=served.model, prompt="Say hello.", system="You are polite.", options=GREEDY)
    assert answer.response.strip()
    raw = "".join(
        part.response for part in client.generate(served.model, "The sky is", raw=True, options=GREEDY, stream=True)
    )
    assert raw.strip()


def test_structured_answer(client: Any, served: Served) -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    messages = [{"role": "user", "content": "Ada is 36. How old is Ada?"}]
    answer = client.chat(model=served.model, messages=messages, format=schema, options={"temperature": 0})
    assert isinstance(json.loads(answer.message.content)["age"], int)


def test_load_without_a_prompt(client: Any, served: Served) -> None:
    assert client.generate(model=served.model, prompt="").done_reason == "load"


def test_embed(client: Any, served: Served) -> None:
    answer = client.embed(model=served.model, input=["a cat", "a dog"])
    assert len(answer.embeddings) == 2
    assert len(answer.embeddings[0]) > 100
    assert len(client.embeddings(model=served.model, prompt="a cat").embedding) == len(answer.embeddings[0])


def test_models(client: Any, served: Served) -> None:
    listed = client.list().models
    assert any(model.model.startswith(served.model) for model in listed)
    assert all(model.digest for model in listed)
    shown = client.show(served.model)
    assert "completion" in shown.capabilities
    assert any(key.endswith(".context_length") for key in shown.modelinfo)
    assert isinstance(client.ps().models, list)


def test_errors(client: Any, served: Served) -> None:
    with pytest.raises(ollama.ResponseError) as missing:
        client.chat(model="no-such-model", messages=HI)
    assert missing.value.status_code == 404
    with pytest.raises(ollama.ResponseError) as bad:
        client.chat(model=served.model, messages=[{"role": "wizard", "content": "x"}])
    assert bad.value.status_code == 400


def test_model_management_passes_through(ollama: Served) -> None:  # the fixture, not the module
    from ollama import Client

    with Client(host=ollama.url) as client:
        manage_models(client, ollama)


def manage_models(client: Any, served: Served) -> None:
    from ollama import ResponseError

    client.copy(served.model, "a-copy")
    assert any(model.model.startswith("a-copy") for model in client.list().models)
    client.delete("a-copy")
    with pytest.raises(ResponseError):
        client.show("a-copy")
    created = list(client.create(model="derived", from_=served.model, system="You are terse.", stream=True))
    assert created[-1].status == "success"
    client.delete("derived")
