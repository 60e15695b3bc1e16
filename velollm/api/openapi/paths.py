"""The operations: which path takes which body, and answers with what."""

from __future__ import annotations

from velollm.api.openapi.words import JSON, STR, array, integer, obj, optional, ref

__all__ = ["paths", "token_schemas"]

FAILURES = {
    "400": "The request is malformed, or asks for what is not supported.",
    "401": "No key, or a wrong one.",
    "403": "The key does not allow this.",
    "404": "No such model.",
    "405": "Not with this method.",
    "408": "The request did not arrive in time.",
    "413": "The body is too large.",
    "415": "The body is compressed.",
    "422": "The prompt does not fit into the model's context.",
    "429": "The key has used up its share for now; see `retry-after`.",
    "500": "An internal error.",
    "502": "The engine answered nonsense, or broke off.",
    "503": "The engine cannot be reached, or too much is waiting; see `retry-after`.",
    "504": "The engine did not answer in time.",
}
SSE = "text/event-stream"
NDJSON = "application/x-ndjson"
ERRORS = {"openai": "Error", "anthropic": "AnthropicError", "ollama": "OllamaError"}


def paths() -> JSON:
    """All paths that are answered here; others under /v1 and /api go to an engine that speaks their dialect."""
    chat = {
        "/v1/chat/completions": _post("openai", "ChatCompletionRequest", "ChatCompletion", SSE),
        "/v1/completions": _post("openai", "CompletionRequest", "Completion", SSE),
        "/v1/responses": _post("openai", "ResponsesRequest", "Response", SSE),
        "/v1/responses/input_tokens": _post("openai", "ResponsesRequest", "InputTokens"),
        "/v1/embeddings": _post("openai", "EmbeddingsRequest", "Embeddings"),
        "/v1/messages": _post("anthropic", "MessagesRequest", "Message", SSE),
        "/v1/messages/count_tokens": _post("anthropic", "CountTokensRequest", "TokenCount"),
    }
    ollama = {
        "/api/chat": _post("ollama", "OllamaChatRequest", "OllamaChat", NDJSON),
        "/api/generate": _post("ollama", "OllamaGenerateRequest", "OllamaGenerate", NDJSON),
        "/api/embed": _post("ollama", "OllamaEmbedRequest", "OllamaEmbed"),
        "/api/embeddings": _post("ollama", "OllamaEmbeddingsRequest", "OllamaEmbeddings"),
        "/api/show": _post("ollama", "OllamaShowRequest", "OllamaShow"),
        "/api/tags": _get("ollama", "OllamaModels"),
        "/api/ps": _get("ollama", "OllamaModels", "getOllamaRunning"),
        "/api/version": _get("ollama", "OllamaVersion"),
    }
    tokens = {
        "/tokenize": _post("openai", "TokenizeRequest", "Tokens"),
        "/detokenize": _post("openai", "DetokenizeRequest", "Text"),
    }
    return {**chat, **_openai_models(), **ollama, **tokens, **_service()}


def token_schemas() -> JSON:
    """The schemas of tokenize and detokenize, by name."""
    return {
        "TokenizeRequest": {
            "type": "object",
            "properties": {"content": STR, "model": optional(STR), "add_special": {"type": "boolean"}},
            "required": ["content"],
        },
        "Tokens": obj({"tokens": array(integer(0)), "count": integer(0)}),
        "DetokenizeRequest": obj({"tokens": array(integer(0, 2**31 - 1))}, {"model": STR}),
        "Text": obj({"content": STR, "prompt": STR}),
    }


def _content(*schemas: JSON, kind: str = "application/json") -> JSON:
    schema = schemas[0] if len(schemas) == 1 else {"anyOf": list(schemas)}
    return {kind: {"schema": schema}}


def _failures(*dialects: str) -> JSON:
    content = _content(*(ref(ERRORS[dialect]) for dialect in dialects))
    return {status: {"description": words, "content": content} for status, words in FAILURES.items()}


def _operation(name: str, dialect: str, answer: JSON, *others: str, **more: object) -> JSON:
    """`others` are dialects in which it may fail as well."""
    return {
        "operationId": name,
        "tags": [dialect],
        "responses": {"200": {"description": "The answer.", "content": answer}, **_failures(dialect, *others)},
        **more,
    }


def _post(dialect: str, asked: str, answered: str, stream: str | None = None) -> JSON:
    answer = _content(ref(answered))
    if stream is not None:
        answer[stream] = {"schema": {"description": "The events, when `stream` is true."}}
    body = {"required": True, "content": _content(ref(asked))}
    return {"post": _operation(f"post{answered}", dialect, answer, requestBody=body)}


def _get(dialect: str, answered: str, name: str | None = None) -> JSON:
    return {"get": _operation(name or f"get{answered}", dialect, _content(ref(answered)))}


def _openai_models() -> JSON:
    """Both dialects have these paths; the header `anthropic-version` says which one is meant."""
    header = {
        "name": "anthropic-version",
        "in": "header",
        "required": False,
        "schema": STR,
        "description": "With it, the answer has Anthropic's shape.",
    }
    name = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    many = _content(ref("Models"), ref("AnthropicModels"))
    one = _content(ref("Model"), ref("AnthropicModel"))
    return {
        "/v1/models": {"get": _operation("listModels", "openai", many, "anthropic", parameters=[header])},
        "/v1/models/{model}": {"get": _operation("getModel", "openai", one, "anthropic", parameters=[name, header])},
    }


def _service() -> JSON:
    """What the standalone server says of itself."""
    state = _content({"type": "object"})
    down = {"503": {"description": "No backend answers.", "content": state}}
    text = {"text/plain": {"schema": {"type": "string"}}}
    return {
        "/health": {"get": _plain("health", "VeloLLM is alive.", state)},
        "/ready": {"get": _plain("ready", "A backend answers.", state, down)},
        "/metrics": {"get": _plain("metrics", "Prometheus metrics.", text)},
    }


def _plain(name: str, words: str, content: JSON, more: JSON | None = None) -> JSON:
    answers = {"200": {"description": words, "content": content}, **(more or {})}
    return {"operationId": name, "tags": ["service"], "responses": answers}
