"""The OpenAPI description: well-formed, complete, and of one mind with the parsers and renderers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from jsonschema import Draft202012Validator
from support.asgi import ask
from support.backend import ScriptedBackend

from velollm import VeloLLM
from velollm.api.anthropic import (
    Messages,
    parse_count_tokens,
    render_count_tokens,
    render_error,
    render_model,
    render_models,
)
from velollm.api.ollama import (
    Chat,
    Embed,
    Generate,
    LegacyEmbeddings,
    render_ps,
    render_show,
    render_tags,
    render_version,
)
from velollm.api.ollama import render_error as render_ollama_error
from velollm.api.openai import ChatCompletions, Completions, Embeddings
from velollm.api.openai import render_error as render_openai_error
from velollm.api.openai import render_model as render_openai_model
from velollm.api.openai import render_models as render_openai_models
from velollm.api.openapi import openapi
from velollm.api.responses import Responses, render_input_tokens
from velollm.errors import RequestError, VeloError
from velollm.messages import ChatAnswer, Choice, ModelInfo, RequestContext, ToolCall, Usage
from velollm.messages import Embeddings as Vectors

DOCUMENT = openapi("1.2.3")
TURN = {"role": "user", "content": "Hi"}
CHAT: dict[str, Any] = {"model": "m", "messages": [TURN]}
MESSAGES: dict[str, Any] = {"model": "m", "max_tokens": 5, "messages": [TURN]}
RESPONSES: dict[str, Any] = {"model": "m", "input": "Hi"}
FLAT_TOOL = {"type": "function", "name": "f", "parameters": {}}
TOOL = {"type": "function", "function": {"name": "f"}}
PARSERS: dict[str, Any] = {
    "ChatCompletionRequest": ChatCompletions().parse,
    "CompletionRequest": Completions().parse,
    "EmbeddingsRequest": lambda payload, body, context: Embeddings().parse(payload, context),
    "MessagesRequest": Messages().parse,
    "CountTokensRequest": parse_count_tokens,
    "ResponsesRequest": Responses().parse,
    "OllamaChatRequest": Chat().parse,
    "OllamaGenerateRequest": Generate().parse,
    "OllamaEmbedRequest": lambda payload, body, context: Embed().parse(payload, context),
    "OllamaEmbeddingsRequest": lambda payload, body, context: LegacyEmbeddings().parse(payload, context),
}


def validator(name: str) -> Draft202012Validator:
    return Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]})


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for child in value.values():
            yield from nodes(child)
    elif isinstance(value, list):
        for child in value:
            yield from nodes(child)


def test_it_is_json_and_says_its_version() -> None:
    assert orjson.loads(orjson.dumps(DOCUMENT)) == DOCUMENT
    assert DOCUMENT["openapi"].startswith("3.1")
    assert DOCUMENT["info"]["version"] == "1.2.3"
    assert openapi("1.2.3") == DOCUMENT


def test_every_schema_is_one_and_every_reference_leads_somewhere() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    for schema in schemas.values():
        Draft202012Validator.check_schema(schema)
    used = {node["$ref"].rpartition("/")[2] for node in nodes(DOCUMENT) if "$ref" in node}
    assert used == schemas.keys()


def test_operations_are_named_once_and_document_their_errors() -> None:
    operations = [operation for path in DOCUMENT["paths"].values() for operation in path.values()]
    names = [operation["operationId"] for operation in operations]
    assert len(set(names)) == len(names)
    for operation in operations:
        assert operation["responses"]["200"]["content"]
        if operation["tags"] != ["service"]:
            assert operation["responses"].keys() >= {"400", "404", "413", "422", "429", "502", "503", "504"}


@pytest.mark.anyio
@pytest.mark.parametrize("headers", [{}, {"anthropic_version": "2023-06-01"}])
async def test_a_model_that_is_not_there_is_told_as_described(headers: dict[str, str]) -> None:
    answer = await ask(VeloLLM(backend=ScriptedBackend()), "GET", "/v1/models/none", **headers)
    assert answer.status == 404
    described = DOCUMENT["paths"]["/v1/models/{model}"]["get"]["responses"]["404"]["content"]["application/json"]
    schema = {**described["schema"], "components": DOCUMENT["components"]}
    Draft202012Validator(schema).validate(answer.json)


def test_every_path_that_the_door_answers_is_there() -> None:
    from velollm.door import ROUTES

    passed_on = {f"/api/{name}" for name in ("pull", "push", "create", "copy", "delete")}
    for path in ROUTES.keys() - passed_on:
        assert path in DOCUMENT["paths"]
        for method in DOCUMENT["paths"][path]:
            assert method.upper() in ROUTES[path]


GOOD: list[tuple[str, dict[str, Any]]] = [
    ("ChatCompletionRequest", CHAT),
    ("ChatCompletionRequest", {**CHAT, "tools": [TOOL], "tool_choice": "required", "stop": None, "n": 2}),
    ("ChatCompletionRequest", {**CHAT, "logprobs": True, "top_logprobs": 3, "unknown": 1}),
    ("ChatCompletionRequest", {"messages": [{"role": "assistant"}]}),
    ("ChatCompletionRequest", {"messages": [{"role": "tool", "content": [{"type": "text", "text": "x"}]}]}),
    ("CompletionRequest", {"prompt": "a"}),
    ("CompletionRequest", {"prompt": [1, 2], "logprobs": 5}),
    ("EmbeddingsRequest", {"input": ["a", "b"], "encoding_format": "base64"}),
    ("MessagesRequest", MESSAGES),
    ("MessagesRequest", {**MESSAGES, "system": [{"type": "text", "text": "x", "cache_control": {}}], "thinking": None}),
    ("MessagesRequest", {**MESSAGES, "thinking": {"type": "enabled", "budget_tokens": 1024}}),
    ("MessagesRequest", {**MESSAGES, "tools": [{"name": "f", "input_schema": {}}], "tool_choice": {"type": "any"}}),
    ("CountTokensRequest", CHAT),
    ("ResponsesRequest", RESPONSES),
    ("ResponsesRequest", {"input": [{"role": "user", "content": [{"type": "input_text", "text": "x"}]}]}),
    ("ResponsesRequest", {**RESPONSES, "tools": [FLAT_TOOL], "tool_choice": "required"}),
    ("ResponsesRequest", {**RESPONSES, "previous_response_id": None, "background": False, "store": True}),
    ("OllamaChatRequest", CHAT),
    ("OllamaChatRequest", {"model": "m", "messages": [], "keep_alive": 0}),
    ("OllamaChatRequest", {**CHAT, "tools": [TOOL], "options": None, "format": {}, "think": "high", "stream": False}),
    ("OllamaGenerateRequest", {"model": "m", "prompt": "a", "system": "", "keep_alive": "5m", "raw": True}),
    ("OllamaEmbedRequest", {"model": "m", "input": ["a", "b"], "dimensions": 5}),
    ("OllamaEmbeddingsRequest", {"model": "m", "prompt": "a"}),
]  # fmt: skip
BAD: list[tuple[str, dict[str, Any]]] = [
    ("ChatCompletionRequest", {}),
    ("ChatCompletionRequest", {"messages": []}),
    ("ChatCompletionRequest", {"messages": [{"role": "wizard", "content": "x"}]}),
    ("ChatCompletionRequest", {**CHAT, "temperature": 3}),
    ("ChatCompletionRequest", {**CHAT, "n": 0}),
    ("ChatCompletionRequest", {**CHAT, "tool_choice": "required"}),
    ("ChatCompletionRequest", {**CHAT, "top_logprobs": 3}),
    ("CompletionRequest", {"prompt": []}),
    ("EmbeddingsRequest", {"input": []}),
    ("MessagesRequest", CHAT),
    ("MessagesRequest", {**MESSAGES, "max_tokens": 0}),
    ("MessagesRequest", {**MESSAGES, "temperature": 1.5}),
    ("MessagesRequest", {**MESSAGES, "tool_choice": {"type": "any"}}),
    ("MessagesRequest", {**MESSAGES, "thread": {"type": "create"}}),
    ("MessagesRequest", {**MESSAGES, "mcp_servers": [{}]}),
    ("MessagesRequest", {**MESSAGES, "messages": [{"role": "user", "content": [{"type": "tool_use"}]}]}),
    ("CountTokensRequest", {"messages": [TURN]}),
    ("ResponsesRequest", {}),
    ("ResponsesRequest", {**RESPONSES, "previous_response_id": "resp_1"}),
    ("ResponsesRequest", {**RESPONSES, "background": True}),
    ("ResponsesRequest", {**RESPONSES, "tools": [{"type": "web_search"}]}),
    ("ResponsesRequest", {**RESPONSES, "tool_choice": "required"}),
    ("ResponsesRequest", {"input": [{"type": "item_reference", "id": "x"}]}),
    ("OllamaChatRequest", {"messages": [TURN]}),
    ("OllamaChatRequest", {**CHAT, "messages": [{"role": "wizard"}]}),
    ("OllamaChatRequest", {**CHAT, "messages": [{"role": "user", "content": []}]}),
    ("OllamaChatRequest", {**CHAT, "format": "yaml"}),
    ("OllamaChatRequest", {**CHAT, "think": "very"}),
    ("OllamaGenerateRequest", {"model": "m", "prompt": 5}),
    ("OllamaEmbedRequest", {"model": "m", "input": [[1]]}),
]


@pytest.mark.parametrize(("name", "payload"), GOOD)
def test_what_the_schema_allows_is_accepted(name: str, payload: dict[str, Any]) -> None:
    validator(name).validate(payload)
    PARSERS[name](payload, orjson.dumps(payload), RequestContext())


@pytest.mark.parametrize(("name", "payload"), BAD)
def test_what_the_schema_forbids_is_refused(name: str, payload: dict[str, Any]) -> None:
    assert not validator(name).is_valid(payload)
    with pytest.raises(RequestError):
        PARSERS[name](payload, orjson.dumps(payload), RequestContext())


@pytest.mark.parametrize(
    ("endpoint", "payload", "name"),
    [
        (ChatCompletions(), CHAT, "ChatCompletion"),
        (Completions(), {"prompt": "a"}, "Completion"),
        (Messages(), {**MESSAGES, "thinking": {"type": "adaptive"}}, "Message"),
        (Responses(), RESPONSES, "Response"),
        (Chat(), CHAT, "OllamaChat"),
        (Generate(), {"model": "m", "prompt": "a"}, "OllamaGenerate"),
    ],
)
@pytest.mark.parametrize("finish", ["stop", "length", "tool_calls", "content_filter"])
def test_answers_fit_their_schemas(endpoint: Any, payload: dict[str, Any], name: str, finish: Any) -> None:
    request = endpoint.parse(payload, orjson.dumps(payload), RequestContext(trailer={"cache": "hit"}))
    calls = [ToolCall(id="a", name="f", arguments='{"a":1}')]
    usage = Usage(prompt_tokens=3, completion_tokens=2, cached_tokens=1, reasoning_tokens=1)
    for choice in (
        Choice(text="a", finish_reason=finish),
        Choice(reasoning="hm", text="a", tool_calls=calls, finish_reason=finish),
        Choice(finish_reason=finish),
    ):
        validator(name).validate(endpoint.render(request, ChatAnswer(choices=[choice], usage=usage)))


def test_other_answers_fit_their_schemas() -> None:
    model = ModelInfo(id="m", created=5)
    error = VeloError("no", param="x")
    vectors = Vectors(vectors=[[0.5]])
    asked = {"input": "a"}
    for name, body in {
        "TokenCount": render_count_tokens(5),
        "InputTokens": render_input_tokens(5),
        "AnthropicModel": render_model(model),
        "AnthropicModels": render_models([]),
        "AnthropicError": render_error(error, "req_1"),
        "Model": render_openai_model(model),
        "Models": render_openai_models([model]),
        "Error": render_openai_error(error, "req_1"),
        "Embeddings": Embeddings().render(Embeddings().parse(asked, RequestContext()), asked, vectors),
        "OllamaEmbed": Embed().render(Embed().parse({"model": "m", **asked}, RequestContext()), asked, vectors),
        "OllamaModels": render_tags([model]),
        "OllamaShow": render_show(model),
        "OllamaVersion": render_version(),
        "OllamaError": render_ollama_error(error, "req_1"),
    }.items():
        validator(name).validate(body)
    validator("OllamaModels").validate(render_ps([model]))
